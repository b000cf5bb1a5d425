//! Limits while they are used: rates, requests at the same time, budgets of money and quotas of tokens.
//!
//! Owns the decision, reserve before and settle after, and its state. Leaves what is written down to `policy`, the
//! estimate to `tokens` and `pricing`, saving to `storage`, and the answer a client gets to `proxy`.
//!
//! # Scopes
//! A request counts for several scopes at once: its virtual key, that key's plan, user and team. A [`Permit`] is
//! reserved on all of them or on none; what an earlier one took is given back when a later one refuses. Under load two
//! requests that race for the last place can both be refused that way, never both be admitted.
//!
//! # How a rate behaves
//! A limit of 60 RPM admits 60 requests at once when nothing was used for a minute, and refills one a second: the
//! burst is the limit, since that is what an SDK's user reads into `X-RateLimit-Limit-RPM: 60`, and since a request
//! may need up to the whole TPM. The promise is therefore: **in any span of time, at most the limit plus what
//! refills in that span**, by what requests were thought to need when they came. After an idle minute a sliding minute can see nearly twice the limit; a steady load never
//! sees more than the limit. Refills are rounded so as never to run fast.
//!
//! TPM is reserved by estimate and settled by what the provider reports. What was too much is returned whole, also when
//! time has refilled it by then: held back, long answers with a high `max_tokens` would halve the rate that is used. So over
//! all, no more tokens pass than the limit's, while a moment may see what was returned late on top. What was too little becomes debt, and the debt is refilled before the next request passes. It reaches at most 10 minutes ahead,
//! so that one wild underestimate does not lock a key out for hours. An estimate above the limit itself is refused at
//! once. A request that needs no tokens (a list of models) is not held up by TPM.
//!
//! # How a budget or quota behaves
//! It does not refill: it is an amount in a window of the calendar, see `amount`.

mod amount;
mod consumption;
mod outputs;
mod permit;
mod rate;
mod refused;
mod report;
mod scope;
mod unknown;
mod watch;
mod window;

use serde::{Deserialize, Serialize};

use crate::clock::{Clock, Nanos};

pub use amount::SavedAmount;
pub use consumption::{Consumption, Measure};
pub use outputs::Outputs;
pub use permit::Permit;
pub use refused::{Kind, Refused};
pub use report::Report;
pub use scope::Scope;
pub use unknown::Unknown;
pub use watch::Watch;

/// When a request is decided on: rates refill by the monotonic clock, windows begin and end by the wall's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment {
    /// Now.
    pub now: Nanos,
    /// When the request arrived, wall time, milliseconds: it counts in the window of that time.
    pub wall_ms: u64,
}

impl Moment {
    /// Now, for a request that arrives now.
    #[must_use]
    pub fn of(clock: &Clock) -> Self {
        Self { now: clock.now(), wall_ms: clock.wall_ms() }
    }
}

/// What `X-RateLimit-*` says. A limit that does not exist has neither figure.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RateHeaders {
    /// Requests per minute.
    pub limit_rpm: Option<u64>,
    /// Requests that would pass at once now.
    pub remaining_rpm: Option<u64>,
    /// Tokens per minute.
    pub limit_tpm: Option<u64>,
    /// Tokens that would pass at once now; what open requests reserved is gone from it.
    pub remaining_tpm: Option<u64>,
}

impl RateHeaders {
    /// Of several scopes: of each rate the one of which least is left.
    #[must_use]
    pub fn tightest(self, other: Self) -> Self {
        let less = |a: Option<u64>, b: Option<u64>| b.is_some_and(|b| a.is_none_or(|a| b < a));
        let mut both = self;
        if less(self.remaining_rpm, other.remaining_rpm) {
            (both.limit_rpm, both.remaining_rpm) = (other.limit_rpm, other.remaining_rpm);
        }
        if less(self.remaining_tpm, other.remaining_tpm) {
            (both.limit_tpm, both.remaining_tpm) = (other.limit_tpm, other.remaining_tpm);
        }
        both
    }
}

/// What a restart must not forget: when each rate will be refilled, in wall time, nanoseconds since the epoch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SavedRates {
    /// `None` when RPM is refilled already or has no limit.
    pub rpm_until_ns: Option<u64>,
    /// `None` when TPM is refilled already or has no limit.
    pub tpm_until_ns: Option<u64>,
}

impl SavedRates {
    /// True when there is nothing to remember: forgetting it changes no decision.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

#[cfg(test)]
mod tests;
