//! Time as a parameter: [`Clock`] for the program, [`Clock::manual`] for tests that move time by hand.
//!
//! Owns the two readings every decision is made on: a monotonic one for rates and latencies, and the wall for
//! expiry, records and windows. Leaves sleeping to tokio.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use jiff::Timestamp;

/// Nanoseconds on the monotonic clock since this [`Clock`] was made; never 0, so that 0 can mean "never".
pub type Nanos = u64;

/// A source of both times. Cloning shares it.
#[derive(Clone, Debug)]
pub struct Clock(Kind);

#[derive(Clone, Debug)]
enum Kind {
    System(Instant),
    Manual(Arc<Manual>),
}

#[derive(Debug)]
struct Manual {
    nanos: AtomicU64,
    wall_ms: AtomicU64,
}

impl Clock {
    /// The machine's clock.
    #[must_use]
    #[expect(clippy::disallowed_methods, reason = "the one place that reads the raw clock")]
    pub fn system() -> Self {
        Self(Kind::System(Instant::now()))
    }

    /// A clock that stands still at `wall_ms` (milliseconds since the epoch) until [`Clock::advance_ms`] moves it.
    #[must_use]
    pub fn manual(wall_ms: u64) -> Self {
        Self(Kind::Manual(Arc::new(Manual { nanos: AtomicU64::new(1), wall_ms: AtomicU64::new(wall_ms) })))
    }

    /// Moves a manual clock, both times; the machine's clock is not ours to move, so nothing happens there.
    pub fn advance_ms(&self, ms: u64) {
        if let Kind::Manual(manual) = &self.0 {
            manual.nanos.fetch_add(ms.saturating_mul(1_000_000), Ordering::Relaxed);
            manual.wall_ms.fetch_add(ms, Ordering::Relaxed);
        }
    }

    /// Monotonic time.
    #[must_use]
    #[expect(clippy::disallowed_methods, reason = "the one place that reads the raw clock")]
    pub fn now(&self) -> Nanos {
        match &self.0 {
            Kind::System(start) => {
                u64::try_from(Instant::now().duration_since(*start).as_nanos()).unwrap_or(u64::MAX).max(1)
            }
            Kind::Manual(manual) => manual.nanos.load(Ordering::Relaxed),
        }
    }

    /// Wall time, milliseconds since the epoch.
    #[must_use]
    #[expect(clippy::disallowed_methods, reason = "the one place that reads the raw clock")]
    pub fn wall_ms(&self) -> u64 {
        match &self.0 {
            Kind::System(_) => SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX)),
            Kind::Manual(manual) => manual.wall_ms.load(Ordering::Relaxed),
        }
    }
}

/// RFC 3339 in UTC with milliseconds, as in every record and answer; times out of range become the epoch.
#[must_use]
pub fn rfc3339(wall_ms: u64) -> String {
    let time = Timestamp::from_millisecond(i64::try_from(wall_ms).unwrap_or(0)).unwrap_or(Timestamp::UNIX_EPOCH);
    format!("{time:.3}")
}

/// Reads an RFC 3339 time as milliseconds since the epoch.
///
/// # Errors
/// When `text` is not such a time or lies before 1970.
pub fn parse_rfc3339(text: &str) -> Result<u64, String> {
    let time: Timestamp = text.parse().map_err(|error| format!("{text:?} is not an RFC 3339 time: {error}"))?;
    u64::try_from(time.as_millisecond()).map_err(|_| format!("{text:?} lies before 1970"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn manual_time_moves_by_hand() {
        let clock = Clock::manual(1_000);
        let before = clock.now();
        clock.advance_ms(5);
        assert_eq!((clock.now() - before, clock.wall_ms()), (5_000_000, 1_005));
    }

    #[test]
    fn rfc3339_round_trip() {
        let text = rfc3339(1_700_000_000_123);
        assert_eq!(text, "2023-11-14T22:13:20.123Z");
        assert_eq!(parse_rfc3339(&text), Ok(1_700_000_000_123));
        assert!(parse_rfc3339("yesterday").is_err());
    }
}
