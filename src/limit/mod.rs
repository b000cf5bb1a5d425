//! Limits of one key while it is used: requests per minute, tokens per minute, requests at the same time.
//!
//! Owns the decision, reserve before and settle after, and its state. Leaves daily tokens and budgets, which are
//! windows and not rates, to the store's ledgers, the estimate to `tokens`, and the answer a client gets to `proxy`.
//!
//! # How a rate behaves
//! A limit of 60 RPM admits 60 requests at once when nothing was used for a minute, and refills one a second: the
//! burst is the limit, since that is what an SDK's user reads into `X-RateLimit-Limit-RPM: 60`, and since a request
//! may need up to the whole TPM. The promise is therefore: **in any span of time, at most the limit plus what
//! refills in that span**. After an idle minute a sliding minute can see nearly twice the limit; a steady load never
//! sees more than the limit. Refills are rounded so as never to run fast.
//!
//! TPM is reserved by estimate and settled by what the provider reports. What was too much is returned, what was too
//! little becomes debt, and the debt is refilled before the next request passes. It reaches at most 10 minutes ahead,
//! so that one wild underestimate does not lock a key out for hours. An estimate above the limit itself is refused at
//! once. A request that needs no tokens (a list of models) is not held up by TPM.

mod in_flight;
mod permit;
mod rate;
mod refused;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use serde::{Deserialize, Serialize};

use crate::clock::Nanos;
use crate::virtual_key::Limits;

use in_flight::InFlight;
use rate::{Cell, MAX_DEBT_MINUTES, Rate, Wait};

pub use permit::Permit;
pub use refused::{Kind, Refused};

/// What to advise when too many requests are open: nobody knows when one ends, and a poll a second is cheap.
const IN_FLIGHT_RETRY: Duration = Duration::from_secs(1);

/// The run-time state of one key's limits. Lives in the snapshot behind an `Arc`; nothing here waits or locks.
#[derive(Debug)]
pub struct KeyLimits {
    rpm: Cell,
    tpm: Cell,
    in_flight: InFlight,
    /// Tokens that open permits hold: for messages only, the cell already counts them.
    reserved: AtomicU64,
    quota: ArcSwap<Quota>,
}

#[derive(Debug)]
struct Quota {
    limits: Limits,
    rpm: Option<Rate>,
    tpm: Option<Rate>,
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

/// What a restart must not forget: when each rate will be refilled, in wall time, nanoseconds since the epoch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SavedLimits {
    /// `None` when RPM is refilled already or has no limit.
    pub rpm_until_ns: Option<u64>,
    /// `None` when TPM is refilled already or has no limit.
    pub tpm_until_ns: Option<u64>,
}

impl SavedLimits {
    /// True when there is nothing to remember: forgetting it changes no decision.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl KeyLimits {
    /// Nothing used yet.
    #[must_use]
    pub fn new(limits: &Limits) -> Self {
        let (rpm, tpm) = (Cell::default(), Cell::default());
        let quota = ArcSwap::from_pointee(Quota::new(limits, &rpm, &tpm));
        Self { rpm, tpm, in_flight: InFlight::default(), reserved: AtomicU64::new(0), quota }
    }

    /// Changes the limits from now on. What is used stays used, in minutes of refill: half of the old limit used is
    /// half of the new. Open permits settle under the new limits.
    pub fn configure(&self, limits: &Limits) {
        if self.limits() != *limits {
            self.quota.store(Arc::new(Quota::new(limits, &self.rpm, &self.tpm)));
        }
    }

    /// The limits in force.
    #[must_use]
    pub fn limits(&self) -> Limits {
        self.quota.load().limits
    }

    /// Requests open.
    #[must_use]
    pub fn in_flight(&self) -> u64 {
        self.in_flight.get()
    }

    /// The largest share used of any limit, 0.0 to 1.0 and beyond when in debt; 0.0 without limits.
    #[must_use]
    pub fn share_used(&self, now: Nanos) -> f64 {
        let quota = self.quota.load();
        let rates = [&quota.rpm, &quota.tpm].into_iter().flatten().map(|rate| (rate.used(now), rate.limit()));
        let open = quota.limits.max_in_flight.map(|max| (self.in_flight.get(), max));
        rates.chain(open).map(|(used, limit)| share(used, limit)).fold(0.0, f64::max)
    }

    /// What the `X-RateLimit-*` headers say at `now`.
    #[must_use]
    pub fn remaining(&self, now: Nanos) -> RateHeaders {
        let quota = self.quota.load();
        RateHeaders {
            limit_rpm: quota.limits.rpm,
            remaining_rpm: quota.rpm.as_ref().map(|rate| rate.remaining(now)),
            limit_tpm: quota.limits.tpm,
            remaining_tpm: quota.tpm.as_ref().map(|rate| rate.remaining(now)),
        }
    }

    /// Admits one request of about `tokens` tokens, or takes nothing.
    ///
    /// # Errors
    /// [`Refused`] when a limit has no room for it; of several, the one to wait longest for.
    pub fn reserve(self: &Arc<Self>, now: Nanos, tokens: u64) -> Result<Permit, Refused> {
        let quota = self.quota.load();
        match self.take(&quota, now, tokens) {
            Ok((rpm_taken, tpm_taken)) => Ok(Permit::new(Arc::clone(self), rpm_taken, tpm_taken, tokens)),
            Err(hit) => Err(self.refused(&quota, now, tokens, hit)),
        }
    }

    /// Takes of all limits, as nanoseconds of the two cells, or of none.
    fn take(&self, quota: &Quota, now: Nanos, tokens: u64) -> Result<(u64, u64), (Kind, Wait)> {
        let max = quota.limits.max_in_flight;
        self.in_flight.enter(max).map_err(|_| (Kind::InFlight, in_flight_wait(max)))?;
        let rpm = take(quota.rpm.as_ref(), now, 1).map_err(|wait| {
            self.in_flight.leave();
            (Kind::Rpm, wait)
        })?;
        let tpm = take(quota.tpm.as_ref(), now, tokens).map_err(|wait| {
            self.undo(rpm, 0);
            self.in_flight.leave();
            (Kind::Tpm, wait)
        })?;
        Ok((rpm, tpm))
    }

    /// Describes a refusal. Another limit may make the request wait longer than the one it met first: who retries
    /// when told to should not be refused again by the next.
    #[cold]
    fn refused(&self, quota: &Quota, now: Nanos, tokens: u64, hit: (Kind, Wait)) -> Refused {
        let max = quota.limits.max_in_flight;
        let others = [
            quota.rpm.as_ref().and_then(|rate| rate.wait(now, 1)).map(|wait| (Kind::Rpm, wait)),
            quota.tpm.as_ref().and_then(|rate| rate.wait(now, tokens)).map(|wait| (Kind::Tpm, wait)),
            max.filter(|max| self.in_flight.get() >= *max).map(|_| (Kind::InFlight, in_flight_wait(max))),
        ];
        let longest = others.into_iter().flatten().fold(hit, |a, b| if b.1 > a.1 { b } else { a });
        let used = |rate: &Option<Rate>| rate.as_ref().map_or(0, |rate| rate.used(now));
        let open = self.in_flight.get();
        let limits = quota.limits;
        let (value, used, reserved, needed) = match longest.0 {
            Kind::InFlight => (max, open, open, 1),
            Kind::Rpm => (limits.rpm, used(&quota.rpm), open, 1),
            Kind::Tpm => (limits.tpm, used(&quota.tpm), self.reserved.load(Ordering::Relaxed), tokens),
        };
        let retry_after = match longest.1 {
            Wait::For(time) => Some(time),
            Wait::Never => None,
        };
        let value = value.unwrap_or(u64::MAX);
        Refused { limit: longest.0, value, used, reserved: reserved.min(used), needed, retry_after }
    }

    /// What to write down at `now`, which is `wall_ms` milliseconds since the epoch, for [`KeyLimits::restore`].
    #[must_use]
    pub fn export(&self, now: Nanos, wall_ms: u64) -> SavedLimits {
        let quota = self.quota.load();
        let until = |rate: &Option<Rate>| {
            let ahead = rate.as_ref()?.ahead(now);
            (ahead > 0).then(|| wall_ns(wall_ms).saturating_add(ahead))
        };
        SavedLimits { rpm_until_ns: until(&quota.rpm), tpm_until_ns: until(&quota.tpm) }
    }

    /// Takes up what [`KeyLimits::export`] wrote, maybe long ago, maybe under other limits. A wall clock that was set
    /// back makes nobody wait longer than a full limit, and for tokens the largest debt, would.
    pub fn restore(&self, saved: &SavedLimits, now: Nanos, wall_ms: u64) {
        let quota = self.quota.load();
        for (rate, until) in [(&quota.rpm, saved.rpm_until_ns), (&quota.tpm, saved.tpm_until_ns)] {
            if let (Some(rate), Some(until)) = (rate, until) {
                rate.restore(now, until.saturating_sub(wall_ns(wall_ms)));
            }
        }
    }

    fn hold(&self, tokens: u64) {
        self.reserved.fetch_add(tokens, Ordering::Relaxed);
    }

    fn release(&self, tokens: u64) {
        self.reserved.fetch_sub(tokens, Ordering::Relaxed);
        self.in_flight.leave();
    }

    fn undo(&self, rpm_taken: u64, tpm_taken: u64) {
        self.rpm.undo(rpm_taken);
        self.tpm.undo(tpm_taken);
    }

    fn settle_tokens(&self, now: Nanos, taken: u64, actual: u64) {
        match &self.quota.load().tpm {
            Some(rate) => rate.settle(now, taken, actual),
            // The limit went away meanwhile: nothing to charge, and nothing kept should it come back.
            None => self.tpm.undo(taken),
        }
    }
}

impl Quota {
    fn new(limits: &Limits, rpm: &Cell, tpm: &Cell) -> Self {
        Self {
            limits: *limits,
            rpm: limits.rpm.map(|limit| Rate::new(rpm, limit, 0)),
            tpm: limits.tpm.map(|limit| Rate::new(tpm, limit, MAX_DEBT_MINUTES)),
        }
    }
}

/// Reserves on every one of `scopes` (the key, its user, its team, a plan), or on none: one decision.
///
/// # Errors
/// The index of the scope that refused, and why. What earlier ones took is given back.
pub fn reserve_all<'a>(
    scopes: impl IntoIterator<Item = &'a Arc<KeyLimits>>,
    now: Nanos,
    tokens: u64,
) -> Result<Vec<Permit>, (usize, Refused)> {
    let mut permits = Vec::new();
    for (index, scope) in scopes.into_iter().enumerate() {
        match scope.reserve(now, tokens) {
            Ok(permit) => permits.push(permit),
            Err(refused) => {
                permits.into_iter().for_each(Permit::refund);
                return Err((index, refused));
            }
        }
    }
    Ok(permits)
}

fn take(rate: Option<&Rate>, now: Nanos, n: u64) -> Result<u64, Wait> {
    rate.map_or(Ok(0), |rate| rate.take(now, n))
}

fn in_flight_wait(max: Option<u64>) -> Wait {
    if max == Some(0) { Wait::Never } else { Wait::For(IN_FLIGHT_RETRY) }
}

#[expect(clippy::cast_precision_loss, reason = "a ratio for ordering keys, not an account")]
fn share(used: u64, limit: u64) -> f64 {
    if limit == 0 { 1.0 } else { used as f64 / limit as f64 }
}

fn wall_ns(wall_ms: u64) -> u64 {
    wall_ms.saturating_mul(1_000_000)
}

#[cfg(test)]
mod tests;
