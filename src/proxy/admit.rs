//! Room for one request: the estimate, and the permit that holds it.
//!
//! Owns the estimate; leaves the decision to `limit`.

use crate::clock::Nanos;
use crate::limit::Permit;
use crate::provider::Asked;
use crate::proxy::authenticate::Caller;
use crate::proxy::error::Error;
use crate::tally::Wire;

/// Output reserved where the request sets no bound: more than most answers have, so that parallel requests seldom
/// overdraw; settlement returns what was too much.
const DEFAULT_OUTPUT: u64 = 512;

/// What a request is thought to consume.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Estimate {
    /// Tokens it holds.
    pub(super) input: u64,
    /// Tokens it will be answered with.
    pub(super) output: u64,
}

impl Estimate {
    /// By what was read of the request; nothing for calls that consume nothing.
    pub(super) fn of(wire: Wire, input: u64, asked: &Asked) -> Self {
        if wire == Wire::None {
            return Self::default();
        }
        let output = if wire.has_output() { asked.max_output.unwrap_or(DEFAULT_OUTPUT) } else { 0 };
        Self { input, output }
    }

    fn total(self) -> u64 {
        self.input.saturating_add(self.output)
    }
}

/// Reserves the estimate on every limit of the caller, or nothing.
pub(super) fn admit(caller: &Caller, estimate: Estimate, now: Nanos) -> Result<Option<Permit>, Error> {
    let Some(key) = caller.key() else { return Ok(None) };
    Ok(Some(key.limits.reserve(now, estimate.total())?))
}
