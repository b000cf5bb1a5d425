//! Requests at the same time: a counter with an upper bound.
//!
//! Owns the counter; leaves leaving it exactly once to [`super::Permit`].

use std::sync::atomic::{AtomicU64, Ordering};

/// How many requests are open. Counted whether or not there is a limit, so that one can be set at any time.
#[derive(Debug, Default)]
pub(super) struct InFlight(AtomicU64);

impl InFlight {
    /// Counts one more in, unless `max` are in already.
    pub(super) fn enter(&self, max: Option<u64>) -> Result<(), u64> {
        let Some(max) = max else {
            self.enter_anyway();
            return Ok(());
        };
        let room = |open| if open < max { Some(open + 1) } else { None };
        self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, room).map(drop)
    }

    /// Counts one more in, whatever the limit.
    pub(super) fn enter_anyway(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts one out that [`InFlight::enter`] counted in.
    pub(super) fn leave(&self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }

    pub(super) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holds_the_line() {
        let open = InFlight::default();
        assert_eq!([Some(2), Some(2), Some(2), None].map(|max| open.enter(max)), [Ok(()), Ok(()), Err(2), Ok(())]);
        open.leave();
        open.leave();
        assert_eq!((open.get(), open.enter(Some(0))), (1, Err(1)));
    }
}
