//! [`Scope`]: the run-time state of what one key, user, team, plan or provider key may use.
//!
//! Owns taking from all of its limits or from none, and what is said of them; leaves the arithmetic to `rate` and
//! `amount`, and several scopes at once to [`super::Permit`].

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;

use crate::clock::Nanos;
use crate::id::ScopeId;
use crate::policy::{Counts, Limits, Per, Policy, Shadow};

use super::amount::{Amount, Consumption, Held, Measure, SavedAmount, Standing, Terms};
use super::in_flight::InFlight;
use super::permit::Hold;
use super::rate::{Cell, MAX_DEBT_MINUTES, Rate, Wait};
use super::refused::{Kind, Refused};
use super::watch::Watch;
use super::{Moment, RateHeaders, SavedRates};

/// What to advise when too many requests are open: nobody knows when one ends, and a poll a second is cheap.
const IN_FLIGHT_RETRY: Duration = Duration::from_secs(1);

/// What one scope may use and has used. Lives in the snapshot behind an `Arc`; nothing here waits.
#[derive(Debug)]
pub struct Scope {
    id: ScopeId,
    rpm: Cell,
    tpm: Cell,
    in_flight: InFlight,
    /// Tokens that open requests hold of TPM: for messages only, the cell already counts them.
    reserved: AtomicU64,
    in_force: ArcSwap<InForce>,
    watch: Watch,
}

/// What a policy says, ready to be held to.
#[derive(Debug)]
struct InForce {
    policy: Policy,
    rpm: Option<Rate>,
    tpm: Option<Rate>,
    amounts: Vec<(Terms, Arc<Amount>)>,
}

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

/// Amounts that do not know yet what was used in their windows before they were there.
#[derive(Debug, Default)]
#[must_use = "until they are told, what was used before counts for nothing"]
pub struct Unknown(Vec<(Terms, Arc<Amount>)>);

impl Unknown {
    /// True when there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Tells the amounts that never begin anew what was used in a whole life, and forgets those that this is all for.
    pub fn lifetime(&mut self, wall_ms: u64, tokens: u64, nano_usd: u64) {
        self.0.retain(|(terms, amount)| {
            let used = match terms.measure {
                _ if terms.window.per() != Per::Total => return true,
                Measure::Money => nano_usd,
                Measure::Tokens(Counts::Total) => tokens,
                Measure::Tokens(_) => return true,
            };
            amount.make_up_by(wall_ms, used);
            amount.note_passed(terms, wall_ms);
            false
        });
    }

    /// From which time on entries are wanted, wall time, milliseconds.
    #[must_use]
    pub fn since_ms(&self, wall_ms: u64) -> Option<u64> {
        self.0.iter().map(|(terms, _)| terms.window.at(wall_ms).start_ms).min()
    }

    /// Tells of an entry.
    pub fn make_up(&self, time_ms: u64, consumption: &Consumption) {
        self.0.iter().for_each(|(_, amount)| amount.make_up(time_ms, consumption));
    }
}

impl Scope {
    /// Nothing used yet.
    #[must_use]
    pub fn new(id: ScopeId, policy: &Policy, watch: Watch) -> Self {
        let (rpm, tpm) = (Cell::default(), Cell::default());
        let in_force = InForce::new(policy, &rpm, &tpm, |terms| Arc::new(Amount::new(terms, 0)));
        let (in_flight, reserved) = (InFlight::default(), AtomicU64::new(0));
        Self { id, rpm, tpm, in_flight, reserved, in_force: ArcSwap::from_pointee(in_force), watch }
    }

    /// Whose it is.
    #[must_use]
    pub fn id(&self) -> &ScopeId {
        &self.id
    }

    /// Changes the limits from now on. What is used stays used: of a rate, in minutes of refill; of an amount, as long
    /// as window and measure stay. Open permits settle under the new limits. Returns the amounts that are new: they are
    /// to be told what the ledger holds of their windows.
    pub fn configure(&self, policy: &Policy, wall_ms: u64) -> Unknown {
        let before = self.in_force.load();
        let mut unknown = Unknown::default();
        if before.policy == *policy {
            return unknown;
        }
        let next = InForce::new(policy, &self.rpm, &self.tpm, |terms| {
            let known = before.amounts.iter().find(|(theirs, _)| theirs.counts_as(terms));
            known.map(|(_, amount)| Arc::clone(amount)).unwrap_or_else(|| {
                let amount = Arc::new(Amount::new(terms, wall_ms));
                unknown.0.push((terms.clone(), Arc::clone(&amount)));
                amount
            })
        });
        self.in_force.store(Arc::new(next));
        unknown
    }

    /// The rates in force.
    #[must_use]
    pub fn limits(&self) -> Limits {
        self.in_force.load().policy.limits
    }

    /// True when it holds a request to nothing.
    #[must_use]
    pub fn is_unlimited(&self) -> bool {
        let in_force = self.in_force.load();
        let Limits { rpm, tpm, max_in_flight, tpm_counts: _ } = in_force.policy.limits;
        rpm.or(tpm).or(max_in_flight).is_none() && in_force.amounts.is_empty()
    }

    /// True when there is a budget, and not only in shadow.
    #[must_use]
    pub fn has_budget(&self) -> bool {
        let is_budget = |terms: &Terms| terms.measure == Measure::Money && !terms.shadow;
        self.in_force.load().amounts.iter().any(|(terms, _)| is_budget(terms))
    }

    /// True when there is a budget or a quota, and not only in shadow.
    #[must_use]
    pub fn counts_amounts(&self) -> bool {
        self.in_force.load().amounts.iter().any(|(terms, _)| !terms.shadow)
    }

    /// Requests open.
    #[must_use]
    pub fn in_flight(&self) -> u64 {
        self.in_flight.get()
    }

    /// The largest share used of any limit, 0.0 to 1.0 and beyond when in debt; 0.0 without limits.
    #[must_use]
    pub fn share_used(&self, at: Moment) -> f64 {
        let in_force = self.in_force.load();
        let rates = [&in_force.rpm, &in_force.tpm].into_iter().flatten().map(|rate| (rate.used(at.now), rate.limit()));
        let open = in_force.policy.limits.max_in_flight.map(|max| (self.in_flight.get(), max));
        let amounts = in_force.amounts.iter().map(|(terms, amount)| {
            let Standing { used, reserved, .. } = amount.standing(at.wall_ms);
            (used.saturating_add(reserved), terms.limit)
        });
        rates.chain(open).chain(amounts).map(|(used, limit)| share(used, limit)).fold(0.0, f64::max)
    }

    /// What the `X-RateLimit-*` headers say at `now`.
    #[must_use]
    pub fn remaining(&self, now: Nanos) -> RateHeaders {
        let in_force = self.in_force.load();
        RateHeaders {
            limit_rpm: in_force.policy.limits.rpm,
            remaining_rpm: in_force.rpm.as_ref().map(|rate| rate.remaining(now)),
            limit_tpm: in_force.policy.limits.tpm,
            remaining_tpm: in_force.tpm.as_ref().map(|rate| rate.remaining(now)),
        }
    }

    /// Admits one request, or takes nothing.
    pub(super) fn reserve(self: &Arc<Self>, at: Moment, need: &Consumption) -> Result<Hold, Kind> {
        let in_force = self.in_force.load();
        let max = in_force.policy.limits.max_in_flight;
        if self.in_flight.enter(max).is_err() {
            if !in_force.is_shadow(Shadow::MaxInFlight) {
                return Err(Kind::InFlight);
            }
            self.in_flight.enter_anyway();
            self.watch.shadowed(&self.id, Kind::InFlight);
        }
        // From here on dropping the hold undoes what was taken.
        let mut hold = Hold::new(Arc::clone(self));
        hold.rpm_taken = self.take(&in_force, in_force.rpm.as_ref(), Shadow::Rpm, at.now, 1)?;
        let tokens = need.counted(in_force.policy.limits.tpm_counts);
        hold.tpm_taken = self.take(&in_force, in_force.tpm.as_ref(), Shadow::Tpm, at.now, tokens)?;
        hold.tokens = tokens;
        self.reserved.fetch_add(tokens, Ordering::Relaxed);
        for (terms, amount) in &in_force.amounts {
            let held = amount.reserve(terms, at.wall_ms, terms.measure.of(need)).map_err(|_| Kind::of(terms))?;
            if held.over {
                self.watch.shadowed(&self.id, Kind::of(terms));
            }
            hold.amounts.push(held);
        }
        Ok(hold)
    }

    fn take(
        &self,
        in_force: &InForce,
        rate: Option<&Rate>,
        which: Shadow,
        now: Nanos,
        units: u64,
    ) -> Result<u64, Kind> {
        let Some(rate) = rate else { return Ok(0) };
        match rate.take(now, units) {
            Ok(taken) => Ok(taken),
            Err(_) if in_force.is_shadow(which) => {
                self.watch.shadowed(&self.id, which.into());
                Ok(0)
            }
            Err(_) => Err(which.into()),
        }
    }

    /// Reserves `more` tokens and money for a request that is admitted already, or nothing.
    pub(super) fn grow(&self, hold: &mut Hold, at: Moment, more: &Consumption) -> Result<(), Kind> {
        let in_force = self.in_force.load();
        let before: Vec<u64> = hold.amounts.iter().map(Held::reserved).collect();
        let grown = hold.amounts.iter_mut().try_for_each(|held| match in_force.terms_of(held) {
            Some(terms) => held.grow(terms, terms.measure.of(more)).map_err(|_| Kind::of(terms)),
            None => Ok(()),
        });
        let tokens = more.counted(in_force.policy.limits.tpm_counts);
        let taken = grown.and_then(|()| self.take(&in_force, in_force.tpm.as_ref(), Shadow::Tpm, at.now, tokens));
        match taken {
            Ok(taken) => {
                hold.tpm_taken += taken;
                hold.tokens = hold.tokens.saturating_add(tokens);
                self.reserved.fetch_add(tokens, Ordering::Relaxed);
                Ok(())
            }
            Err(kind) => {
                hold.amounts.iter_mut().zip(before).for_each(|(held, before)| held.shrink_to(before));
                Err(kind)
            }
        }
    }

    /// Every limit, as it stands for a request of this need.
    #[must_use]
    pub fn report(&self, at: Moment, need: &Consumption) -> Vec<Report> {
        let in_force = self.in_force.load();
        let tokens = need.counted(in_force.policy.limits.tpm_counts);
        let rates = [
            (Kind::Rpm, Shadow::Rpm, in_force.rpm.as_ref(), 1, self.in_flight.get()),
            (Kind::Tpm, Shadow::Tpm, in_force.tpm.as_ref(), tokens, self.reserved.load(Ordering::Relaxed)),
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
            let open = self.in_flight.get();
            let wait = (open >= max).then_some(if max == 0 { Wait::Never } else { Wait::For(IN_FLIGHT_RETRY) });
            (Kind::InFlight, max, open, open, 1, wait, in_force.is_shadow(Shadow::MaxInFlight))
        });
        let rates = rates.chain(open).map(|(limit, value, used, reserved, needed, wait, shadow)| {
            let refusal = wait.map(|wait| {
                let retry_after = match wait {
                    Wait::For(time) => Some(time),
                    Wait::Never => None,
                };
                Refused { scope: self.id.clone(), limit, value, used, reserved, needed, retry_after, resets_ms: None }
            });
            Report { scope: self.id.clone(), limit, value, used, reserved, needed, refusal, shadow, resets_ms: None }
        });
        let amounts = in_force.amounts.iter().map(|(terms, amount)| {
            let Standing { used, reserved, end_ms } = amount.standing(at.wall_ms);
            let (limit, value, needed) = (Kind::of(terms), terms.limit, terms.measure.of(need));
            let resets_ms = (end_ms != u64::MAX).then_some(end_ms);
            let over = needed > 0 && used.saturating_add(reserved).saturating_add(needed) > value;
            let scope = || self.id.clone();
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
        Refused { scope: self.id.clone(), limit: met, value, used, reserved, needed, retry_after, resets_ms }
    }

    /// What to write down at `at` for [`Scope::restore`].
    #[must_use]
    pub fn export(&self, at: Moment) -> SavedRates {
        let in_force = self.in_force.load();
        let until = |rate: &Option<Rate>| {
            let ahead = rate.as_ref()?.ahead(at.now);
            (ahead > 0).then(|| wall_ns(at.wall_ms).saturating_add(ahead))
        };
        SavedRates { rpm_until_ns: until(&in_force.rpm), tpm_until_ns: until(&in_force.tpm) }
    }

    /// Takes up what [`Scope::export`] wrote, maybe long ago, maybe under other limits. A wall clock that was set back
    /// makes nobody wait longer than a full limit, and for tokens the largest debt, would.
    pub fn restore(&self, saved: &SavedRates, at: Moment) {
        let in_force = self.in_force.load();
        for (rate, until) in [(&in_force.rpm, saved.rpm_until_ns), (&in_force.tpm, saved.tpm_until_ns)] {
            if let (Some(rate), Some(until)) = (rate, until) {
                rate.restore(at.now, until.saturating_sub(wall_ns(at.wall_ms)));
            }
        }
    }

    /// The amounts, as far as the ledger has them.
    #[must_use]
    pub fn save_amounts(&self) -> Vec<SavedAmount> {
        self.in_force.load().amounts.iter().map(|(_, amount)| amount.save()).collect()
    }

    /// Takes up what [`Scope::save_amounts`] gave. Returns the amounts of which nothing was saved.
    pub fn restore_amounts(&self, saved: &[SavedAmount], wall_ms: u64) -> Unknown {
        let in_force = self.in_force.load();
        let known = |amount: &Amount| saved.iter().any(|saved| amount.restore(saved, wall_ms));
        Unknown(in_force.amounts.iter().filter(|(_, amount)| !known(amount)).cloned().collect())
    }

    /// Notes that the ledger has an entry of this scope, by the time of the request's arrival.
    pub fn record(&self, time_ms: u64, consumption: &Consumption) {
        for (_, amount) in &self.in_force.load().amounts {
            amount.record(time_ms, consumption);
        }
    }

    /// Adds what an entry that is still to be recorded consumed, and no permit of this process was for.
    pub fn charge(&self, time_ms: u64, consumption: &Consumption) {
        for (_, amount) in &self.in_force.load().amounts {
            amount.charge(time_ms, consumption);
        }
    }

    /// Adds a recorded entry that no permit of this process was for.
    pub fn make_up(&self, time_ms: u64, consumption: &Consumption) {
        for (_, amount) in &self.in_force.load().amounts {
            amount.make_up(time_ms, consumption);
        }
    }

    /// Says that whatever thresholds are passed by now have been told.
    pub fn note_passed(&self, wall_ms: u64) {
        for (terms, amount) in &self.in_force.load().amounts {
            amount.note_passed(terms, wall_ms);
        }
    }

    /// The end of what [`Scope::reserve`] began.
    pub(super) fn settle(&self, hold: &mut Hold, end: Settlement) {
        let in_force = self.in_force.load();
        match end {
            Settlement::Keep => {}
            Settlement::Charge { now, consumed } => {
                let tokens = consumed.counted(in_force.policy.limits.tpm_counts);
                match &in_force.tpm {
                    Some(rate) => rate.settle(now, hold.tpm_taken, tokens),
                    // The limit went away meanwhile: nothing to charge, and nothing kept should it come back.
                    None => self.tpm.undo(hold.tpm_taken),
                }
            }
            Settlement::Refund => {
                self.rpm.undo(hold.rpm_taken);
                self.tpm.undo(hold.tpm_taken);
            }
        }
        for held in hold.amounts.drain(..) {
            let terms = in_force.terms_of(&held);
            let actual = match end {
                Settlement::Keep => None,
                Settlement::Charge { consumed, .. } => Some(held.amount().measure().of(&consumed)),
                Settlement::Refund => Some(0),
            };
            if let (Some((percent, standing)), Some(terms)) = (held.settle(actual, terms), terms) {
                self.watch.passed(&self.id, terms, percent, standing);
            }
        }
        self.reserved.fetch_sub(hold.tokens, Ordering::Relaxed);
        self.in_flight.leave();
    }
}

/// How a reservation ends.
#[derive(Clone, Copy, Debug)]
pub(super) enum Settlement {
    Keep,
    Charge { now: Nanos, consumed: Consumption },
    Refund,
}

impl InForce {
    fn new(policy: &Policy, rpm: &Cell, tpm: &Cell, mut amount: impl FnMut(&Terms) -> Arc<Amount>) -> Self {
        let budgets = policy.budgets.iter().map(Terms::of_budget);
        let terms = budgets.chain(policy.quotas.iter().map(Terms::of_quota));
        Self {
            policy: policy.clone(),
            rpm: policy.limits.rpm.map(|limit| Rate::new(rpm, limit, 0)),
            tpm: policy.limits.tpm.map(|limit| Rate::new(tpm, limit, MAX_DEBT_MINUTES)),
            amounts: terms.map(|terms| (terms.clone(), amount(&terms))).collect(),
        }
    }

    fn is_shadow(&self, which: Shadow) -> bool {
        self.policy.shadow.contains(&which)
    }

    fn terms_of(&self, held: &Held) -> Option<&Terms> {
        self.amounts.iter().find(|(_, amount)| Arc::ptr_eq(amount, held.amount())).map(|(terms, _)| terms)
    }
}

impl From<Shadow> for Kind {
    fn from(rate: Shadow) -> Self {
        match rate {
            Shadow::MaxInFlight => Self::InFlight,
            Shadow::Rpm => Self::Rpm,
            Shadow::Tpm => Self::Tpm,
        }
    }
}

impl Kind {
    fn of(terms: &Terms) -> Self {
        match terms.measure {
            Measure::Money => Self::Budget(terms.window.per()),
            Measure::Tokens(counts) => Self::Quota(terms.window.per(), counts),
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "a ratio for ordering keys, not an account")]
fn share(used: u64, limit: u64) -> f64 {
    if limit == 0 { 1.0 } else { used as f64 / limit as f64 }
}

pub(super) fn wall_ns(wall_ms: u64) -> u64 {
    wall_ms.saturating_mul(1_000_000)
}
