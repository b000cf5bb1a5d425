//! [`Scope`]: the run-time state of what one key, user, team, plan or provider key may use.
//!
//! Owns taking from all of its limits or from none, and what outlives the process; leaves the arithmetic to `rate` and
//! `amount`, what is said of them to `report`, and several scopes at once to [`super::Permit`].

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arc_swap::ArcSwap;

use crate::clock::Nanos;
use crate::id::ScopeId;
use crate::policy::{Limits, Policy, Shadow};

use super::amount::{Amount, Consumption, Held, Measure, SavedAmount, Terms};
use super::in_flight::InFlight;
use super::permit::{Hold, Taken};
use super::rate::{Cell, MAX_DEBT_MINUTES, Rate};
use super::refused::Kind;
use super::unknown::Unknown;
use super::watch::Watch;
use super::{Moment, RateHeaders, SavedRates};

/// What one scope may use and has used. Lives in the snapshot behind an `Arc`; nothing here waits.
#[derive(Debug)]
pub struct Scope {
    id: ScopeId,
    rpm: Cell,
    tpm: Cell,
    pub(super) in_flight: InFlight,
    /// Tokens that open requests hold of TPM: for messages only, the cell already counts them.
    pub(super) reserved: AtomicU64,
    pub(super) in_force: ArcSwap<InForce>,
    watch: Watch,
}

/// What a policy says, ready to be held to.
#[derive(Debug)]
pub(super) struct InForce {
    pub(super) policy: Policy,
    pub(super) rpm: Option<Rate>,
    pub(super) tpm: Option<Rate>,
    pub(super) amounts: Vec<(Terms, Arc<Amount>)>,
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
        !self.in_force.load().policy.limits_anything()
    }

    /// Requests open.
    #[must_use]
    pub fn in_flight(&self) -> u64 {
        self.in_flight.get()
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
        let taken = &mut hold.taken;
        taken.rpm = self.take(&in_force, in_force.rpm.as_ref(), Shadow::Rpm, at.now, 1)?;
        let tokens = need.counted(in_force.policy.limits.tpm_counts);
        taken.tpm = self.take(&in_force, in_force.tpm.as_ref(), Shadow::Tpm, at.now, tokens)?;
        taken.tokens = tokens;
        self.reserved.fetch_add(tokens, Ordering::Relaxed);
        for (terms, amount) in &in_force.amounts {
            let held = amount.reserve(terms, at.wall_ms, terms.measure.of(need)).map_err(|_| Kind::of(terms))?;
            if held.over {
                self.watch.shadowed(&self.id, Kind::of(terms));
            }
            taken.amounts.push(held);
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
    pub(super) fn grow(&self, hold: &mut Taken, at: Moment, more: &Consumption) -> Result<(), Kind> {
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
                hold.tpm += taken;
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
    pub(super) fn settle(&self, taken: &mut Taken, end: Settlement) {
        let in_force = self.in_force.load();
        match end {
            Settlement::Keep => {}
            Settlement::Charge { now, consumed } => {
                let tokens = consumed.counted(in_force.policy.limits.tpm_counts);
                match &in_force.tpm {
                    Some(rate) => rate.settle(now, taken.tpm, tokens),
                    // The limit went away meanwhile: nothing to charge, and nothing kept should it come back.
                    None => self.tpm.undo(taken.tpm),
                }
            }
            Settlement::Refund => {
                self.rpm.undo(taken.rpm);
                self.tpm.undo(taken.tpm);
            }
        }
        for held in taken.amounts.drain(..) {
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
        self.reserved.fetch_sub(taken.tokens, Ordering::Relaxed);
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

    pub(super) fn is_shadow(&self, which: Shadow) -> bool {
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
    pub(super) fn of(terms: &Terms) -> Self {
        match terms.measure {
            Measure::Money => Self::Budget(terms.window.per()),
            Measure::Tokens(counts) => Self::Quota(terms.window.per(), counts),
        }
    }
}

pub(super) fn wall_ns(wall_ms: u64) -> u64 {
    wall_ms.saturating_mul(1_000_000)
}
