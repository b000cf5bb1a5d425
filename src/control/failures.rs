//! Failed attempts to show a token or a code, by address: many are answered with 429, but nobody is locked out.
//!
//! Owns the count; leaves what a failure is to the door and to `session`.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};

use http::StatusCode;

use crate::clock::Nanos;
use crate::control::problem::Problem;

/// Failed attempts of each address: ten at once, and one more every six seconds.
#[derive(Debug, Default)]
pub(super) struct Failures(Mutex<HashMap<IpAddr, Nanos>>);

impl Failures {
    const EACH: Nanos = 6_000_000_000;
    const BURST: Nanos = 10 * Self::EACH;
    /// Addresses remembered at most.
    const MAX: usize = 4096;

    /// Counts one.
    ///
    /// # Errors
    /// 429 when there are too many.
    pub(super) fn count(&self, address: IpAddr, now: Nanos) -> Result<(), Problem> {
        let Some(wait) = self.wait(address, now) else { return Ok(()) };
        let detail = "too many failed attempts from this address";
        Err(Problem::new(StatusCode::TOO_MANY_REQUESTS, "too_many_failures", detail)
            .fix("a good token is accepted all the same; wait before trying another")
            .retry_after(wait))
    }

    /// Counts one; gives the seconds to wait when there are too many.
    fn wait(&self, address: IpAddr, now: Nanos) -> Option<u64> {
        let mut until = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if until.len() >= Self::MAX && !until.contains_key(&address) {
            until.retain(|_, until| *until > now);
            if until.len() >= Self::MAX {
                return Some(Self::EACH / 1_000_000_000);
            }
        }
        // When its failures so far will be forgotten.
        let end = until.get(&address).copied().unwrap_or(0).max(now);
        if end + Self::EACH > now + Self::BURST {
            return Some((end + Self::EACH - now - Self::BURST).div_ceil(1_000_000_000));
        }
        until.insert(address, end + Self::EACH);
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_are_counted_for_each_address_and_forgotten() {
        let failures = Failures::default();
        let [a, b]: [IpAddr; 2] = ["127.0.0.1".parse().unwrap(), "::1".parse().unwrap()];
        let now = 1_000_000_000_000;
        for n in 0..10 {
            assert_eq!(failures.wait(a, now), None, "{n}");
        }
        assert_eq!(failures.wait(a, now), Some(6));
        assert_eq!(failures.wait(b, now), None, "another address");
        assert_eq!(failures.wait(a, now + Failures::EACH), None);
        assert_eq!(failures.wait(a, now + Failures::EACH), Some(6));
        for n in 0..2 * Failures::MAX as u32 {
            failures.wait(IpAddr::from(n.to_be_bytes()), now);
        }
        assert!(failures.0.lock().unwrap().len() <= Failures::MAX);
    }
}
