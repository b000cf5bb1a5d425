//! How limits stand: for refusals, for those who ask, and for choosing the key with the most room.
//!
//! Owns [`Report`]s; leaves the figures to `rate` and `amount`, and their wording to [`Refused`].

use std::time::Duration;

use crate::id::ScopeId;
use crate::policy::Shadow;

use super::Moment;
use super::amount::Standing;
use super::consumption::Consumption;
use super::rate::Wait;
use super::refused::{Kind, Refused};
use super::scope::Scope;

/// What to advise when too many requests are open: nobody knows when one ends, and a poll a second is cheap.
const IN_FLIGHT_RETRY: Duration = Duration::from_secs(1);

/// One limit, as it stands for a request that may come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// Whose.
    pub scope: ScopeId,
    /// Which.
    pub limit: Kind,
    /// What it is set to.
    pub value: u64,
    /// What is used.
    pub used: u64,
    /// What open requests hold; of a rate it is part of `used`, of a budget or quota it is not.
    pub reserved: u64,
    /// What the request needs.
    pub needed: u64,
    /// Why it would be refused, shadow or not.
    pub refusal: Option<Refused>,
    /// True when it only counts.
    pub shadow: bool,
    /// When its window ends, wall time, milliseconds.
    pub resets_ms: Option<u64>,
}

impl Report {
    /// What is left for a request that comes now.
    #[must_use]
    pub fn remaining(&self) -> u64 {
        let held = if self.limit.is_rate() { 0 } else { self.reserved };
        self.value.saturating_sub(self.used.saturating_add(held))
    }
}

impl Scope {
    /// The largest share used of any limit, 0.0 to 1.0 and beyond when in debt; 0.0 without limits.
    #[must_use]
    pub fn share_used(&self, at: Moment) -> f64 {
        let in_force = self.in_force();
        let rates = [&in_force.rpm, &in_force.tpm].into_iter().flatten().map(|rate| (rate.used(at.now), rate.limit()));
        let open = in_force.policy.limits.max_in_flight.map(|max| (self.in_flight(), max));
        let known = rates.chain(open).map(|(used, limit)| share(used, limit)).fold(0.0, f64::max);
        // Most keys have none, and this is asked of every key at every choice.
        if !in_force.policy.holds_amounts() {
            return known;
        }
        let mut amounts = self.amounts();
        let amounts = amounts.list.iter_mut().map(|amount| {
            let Standing { used, reserved, .. } = amount.standing(at.wall_ms);
            share(used.saturating_add(reserved), amount.terms.limit)
        });
        amounts.fold(known, f64::max)
    }

    /// Every limit, as it stands for a request of this need.
    #[must_use]
    pub fn report(&self, at: Moment, need: &Consumption) -> Vec<Report> {
        let in_force = self.in_force();
        let tokens = need.counted(in_force.policy.limits.tpm_counts);
        let rates = [
            (Kind::Rpm, Shadow::Rpm, in_force.rpm.as_ref(), 1, self.in_flight()),
            (Kind::Tpm, Shadow::Tpm, in_force.tpm.as_ref(), tokens, self.tokens_reserved()),
        ];
        let rates = rates.into_iter().filter_map(|(limit, shadow, rate, needed, held)| {
            let rate = rate?;
            let used = rate.used(at.now);
            Some((
                limit,
                rate.limit(),
                used,
                held.min(used),
                needed,
                rate.wait(at.now, needed),
                in_force.is_shadow(shadow),
            ))
        });
        let open = in_force.policy.limits.max_in_flight.map(|max| {
            let open = self.in_flight();
            let wait = (open >= max).then_some(if max == 0 { Wait::Never } else { Wait::For(IN_FLIGHT_RETRY) });
            (Kind::InFlight, max, open, open, 1, wait, in_force.is_shadow(Shadow::MaxInFlight))
        });
        let rates = rates.chain(open).map(|(limit, value, used, reserved, needed, wait, shadow)| {
            let refusal = wait.map(|wait| {
                let retry_after = match wait {
                    Wait::For(time) => Some(time),
                    Wait::Never => None,
                };
                Refused { scope: self.id().clone(), limit, value, used, reserved, needed, retry_after, resets_ms: None }
            });
            Report { scope: self.id().clone(), limit, value, used, reserved, needed, refusal, shadow, resets_ms: None }
        });
        let mut amounts = self.amounts();
        let amounts = amounts.list.iter_mut().map(|amount| {
            let Standing { used, reserved, end_ms } = amount.standing(at.wall_ms);
            let terms = &amount.terms;
            let (limit, value, needed) = (Kind::of(terms), terms.limit, terms.measure.of(need));
            let resets_ms = (end_ms != u64::MAX).then_some(end_ms);
            let over = needed > 0 && used.saturating_add(reserved).saturating_add(needed) > value;
            let scope = || self.id().clone();
            let refused =
                || Refused { scope: scope(), limit, value, used, reserved, needed, retry_after: None, resets_ms };
            let refusal = over.then(refused);
            Report { scope: scope(), limit, value, used, reserved, needed, refusal, shadow: terms.shadow, resets_ms }
        });
        rates.chain(amounts).collect()
    }

    /// Describes the refusal of a limit that was met.
    #[cold]
    pub(super) fn refused(&self, met: Kind, at: Moment, need: &Consumption) -> Refused {
        let report = self.report(at, need).into_iter().find(|report| report.limit == met);
        let figures =
            report.map(|report| (report.value, report.used, report.reserved, report.needed, report.resets_ms));
        // The limit may have been taken away, or freed, since.
        let (value, used, reserved, needed, resets_ms) = figures.unwrap_or_default();
        let retry_after = if met.is_rate() { Some(IN_FLIGHT_RETRY) } else { None };
        Refused { scope: self.id().clone(), limit: met, value, used, reserved, needed, retry_after, resets_ms }
    }
}

#[expect(clippy::cast_precision_loss, reason = "a ratio for ordering keys, not an account")]
fn share(used: u64, limit: u64) -> f64 {
    if limit == 0 { 1.0 } else { used as f64 / limit as f64 }
}
