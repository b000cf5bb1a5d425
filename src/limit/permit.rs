//! [`Permit`]: what one admitted request holds of a key's limits, given back exactly once.
//!
//! Owns the end of a reservation; leaves its beginning to [`KeyLimits::reserve`].

use std::sync::Arc;

use super::KeyLimits;
use crate::clock::Nanos;

/// The reservations of one request: a place in flight, one of RPM, and tokens of TPM.
///
/// It ends when it is dropped, whichever way that comes about, and only then, so that nothing is settled twice or
/// never. [`Permit::settle`] and [`Permit::refund`] say how; without them it is as [`Permit::charge`] last said; and
/// without that the estimate stays charged, since a request that was sent and lost sight of was not free.
#[derive(Debug)]
#[must_use = "dropping a permit ends its request's place in flight"]
pub struct Permit {
    limits: Arc<KeyLimits>,
    /// Nanoseconds taken of each cell at the weights of that moment: what must go back even if the limit has changed.
    rpm_taken: u64,
    tpm_taken: u64,
    tokens: u64,
    end: End,
}

#[derive(Clone, Copy, Debug)]
enum End {
    Keep,
    Charge { now: Nanos, tokens: u64 },
    Refund,
}

impl Permit {
    /// Of a place in flight and of cells that are already taken.
    pub(super) fn new(limits: Arc<KeyLimits>, rpm_taken: u64, tpm_taken: u64, tokens: u64) -> Self {
        limits.hold(tokens);
        Self { limits, rpm_taken, tpm_taken, tokens, end: End::Keep }
    }

    /// Tokens reserved.
    #[must_use]
    pub fn reserved(&self) -> u64 {
        self.tokens
    }

    /// The limits it belongs to.
    #[must_use]
    pub fn limits(&self) -> &Arc<KeyLimits> {
        &self.limits
    }

    /// What to charge if it is dropped from here on: `tokens` in all, as known at `now`. Moves nothing yet.
    pub fn charge(&mut self, now: Nanos, tokens: u64) {
        self.end = End::Charge { now, tokens };
    }

    /// Ends it with what was really used: the difference to the reservation is returned, or charged, into debt if
    /// need be.
    pub fn settle(mut self, now: Nanos, actual_tokens: u64) {
        self.charge(now, actual_tokens);
    }

    /// Ends it as if the request had never come, because it was never sent: RPM and tokens go back whole.
    pub fn refund(mut self) {
        self.end = End::Refund;
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let Self { limits, rpm_taken, tpm_taken, tokens, end } = self;
        match *end {
            End::Keep => {}
            End::Charge { now, tokens } => limits.settle_tokens(now, *tpm_taken, tokens),
            End::Refund => limits.undo(*rpm_taken, *tpm_taken),
        }
        limits.release(*tokens);
    }
}
