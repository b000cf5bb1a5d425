//! [`Scope`]: the run-time state of what one key, user, team, plan or provider key may use.
//!
//! Owns taking from all of its limits or from none, and what outlives the process; leaves the arithmetic to `rate` and
//! `amount`, what is said of them to `report`, and several scopes at once to [`super::Permit`].

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arc_swap::ArcSwap;

use crate::clock::Nanos;
use crate::id::ScopeId;
use crate::policy::{Limits, Policy, Shadow};

use super::amount::{Amount, Amounts, Held, SavedAmount, Terms};
use super::consumption::{Consumption, Measure};
use super::rate::{Cell, MAX_DEBT_MINUTES, Rate};
use super::refused::Kind;
use super::unknown::Unknown;
use super::watch::Watch;
use super::{Moment, RateHeaders, SavedRates};

/// What one scope may use and has used. Lives in the snapshot behind an `Arc`; nothing here waits.
///
/// What requests change comes first, close together.
#[derive(Debug)]
#[repr(C, align(64))]
pub struct Scope {
    /// Whatever of a scope a request changes, it changes under this lock, once at its beginning and once at its end; a
    /// lock for each limit would send a cache line to and fro between threads for each.
    amounts: Mutex<Amounts>,
    /// Requests open. Counted whether or not there is a limit, so that one can be set at any time.
    in_flight: Gauge,
    /// Tokens that open requests hold of TPM: for messages only, the cell already counts them.
    reserved: Gauge,
    rpm: Cell,
    tpm: Cell,
    id: ScopeId,
    in_force: ArcSwap<InForce>,
    watch: Watch,
}

/// What a policy says, ready to be held to.
#[derive(Debug)]
pub(super) struct InForce {
    pub(super) policy: Policy,
    pub(super) rpm: Option<Rate>,
    pub(super) tpm: Option<Rate>,
}

/// A figure that is read without the lock and changed under it only.
#[derive(Debug, Default)]
struct Gauge(AtomicU64);

impl Gauge {
    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    fn change(&self, _lock: &mut Amounts, by: impl FnOnce(u64) -> u64) {
        self.0.store(by(self.get()), Ordering::Relaxed);
    }
}

/// What a request has taken of a scope, beside a place in flight.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Taken {
    /// Nanoseconds taken of each cell at the weights of that moment: what must go back even if the limit has changed.
    rpm: u64,
    tpm: u64,
    tokens: u64,
    /// How many amounts it holds something of.
    pub(super) amounts: usize,
}

impl Scope {
    /// Nothing used yet.
    #[must_use]
    pub fn new(id: ScopeId, policy: &Policy, watch: Watch) -> Self {
        let (rpm, tpm) = (Cell::default(), Cell::default());
        let mut amounts = Amounts::default();
        amounts.hold_to(terms(policy), 0);
        Self {
            id,
            amounts: Mutex::new(amounts),
            in_flight: Gauge::default(),
            reserved: Gauge::default(),
            in_force: ArcSwap::from_pointee(InForce::new(policy, &rpm, &tpm)),
            rpm,
            tpm,
            watch,
        }
    }

    /// The lock.
    pub(super) fn amounts(&self) -> MutexGuard<'_, Amounts> {
        self.amounts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn in_force(&self) -> arc_swap::Guard<Arc<InForce>> {
        self.in_force.load()
    }

    /// Whose it is.
    #[must_use]
    pub fn id(&self) -> &ScopeId {
        &self.id
    }

    /// Changes the limits from now on. What is used stays used: of a rate, in minutes of refill; of an amount, as long
    /// as window and measure stay. Open permits settle under the new limits. Returns the amounts that are new: they are
    /// to be told what the ledger holds of their windows.
    pub fn configure(self: &Arc<Self>, policy: &Policy, wall_ms: u64) -> Unknown {
        let mut unknown = Unknown::none(self);
        if self.in_force.load().policy == *policy {
            return unknown;
        }
        let mut amounts = self.amounts();
        unknown.ids = amounts.hold_to(terms(policy), wall_ms);
        // Under the lock, so that no request is held to the limits of one policy and the amounts of another.
        self.in_force.store(Arc::new(InForce::new(policy, &self.rpm, &self.tpm)));
        drop(amounts);
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

    /// Tokens that open requests hold of TPM.
    pub(super) fn tokens_reserved(&self) -> u64 {
        self.reserved.get()
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

    /// Admits one request, or takes nothing. What is held of the amounts is added to `held`.
    pub(super) fn reserve(&self, at: Moment, need: &Consumption, held: &mut Vec<Held>) -> Result<Taken, Kind> {
        let amounts = &mut *self.amounts();
        let in_force = self.in_force();
        if in_force.policy.limits.max_in_flight.is_some_and(|max| self.in_flight.get() >= max) {
            self.over(Kind::InFlight, in_force.is_shadow(Shadow::MaxInFlight))?;
        }
        for amount in &mut amounts.list {
            if !amount.has_room(at.wall_ms, amount.terms.measure.of(need)) {
                self.over(Kind::of(&amount.terms), amount.terms.shadow)?;
            }
        }
        let rpm = self.take(&in_force, in_force.rpm.as_ref(), Shadow::Rpm, at.now, 1)?;
        let tokens = need.counted(in_force.policy.limits.tpm_counts);
        let tpm = self.take(&in_force, in_force.tpm.as_ref(), Shadow::Tpm, at.now, tokens);
        let tpm = tpm.inspect_err(|_| self.rpm.undo(rpm))?;
        held.extend(amounts.list.iter_mut().map(|amount| amount.reserve(at.wall_ms, amount.terms.measure.of(need))));
        self.in_flight.change(amounts, |open| open + 1);
        self.reserved.change(amounts, |reserved| reserved.saturating_add(tokens));
        Ok(Taken { rpm, tpm, tokens, amounts: amounts.list.len() })
    }

    /// A limit has no room: it refuses, or counts in shadow that it would.
    fn over(&self, limit: Kind, shadow: bool) -> Result<(), Kind> {
        if !shadow {
            return Err(limit);
        }
        self.watch.shadowed(&self.id, limit);
        Ok(())
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
        rate.take(now, units).or_else(|_| self.over(which.into(), in_force.is_shadow(which)).map(|()| 0))
    }

    /// Reserves `more` tokens and money for a request that is admitted already, or nothing.
    pub(super) fn grow(
        &self,
        taken: &mut Taken,
        held: &mut [Held],
        at: Moment,
        more: &Consumption,
    ) -> Result<(), Kind> {
        let amounts = &mut *self.amounts();
        let in_force = self.in_force();
        for held in &*held {
            if let Some(amount) = amounts.get(held.id)
                && !amount.has_more(held, amount.terms.measure.of(more))
            {
                self.over(Kind::of(&amount.terms), amount.terms.shadow)?;
            }
        }
        let tokens = more.counted(in_force.policy.limits.tpm_counts);
        taken.tpm += self.take(&in_force, in_force.tpm.as_ref(), Shadow::Tpm, at.now, tokens)?;
        taken.tokens = taken.tokens.saturating_add(tokens);
        self.reserved.change(amounts, |reserved| reserved.saturating_add(tokens));
        for held in held {
            if let Some(amount) = amounts.get(held.id) {
                amount.grow(held, amount.terms.measure.of(more));
            }
        }
        Ok(())
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
        let _lock = self.amounts();
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
        self.amounts().list.iter().map(Amount::save).collect()
    }

    /// Takes up what [`Scope::save_amounts`] gave. Returns the amounts of which nothing was saved.
    pub fn restore_amounts(self: &Arc<Self>, saved: &[SavedAmount], wall_ms: u64) -> Unknown {
        let mut unknown = Unknown::none(self);
        for amount in &mut self.amounts().list {
            if !saved.iter().any(|saved| amount.restore(saved, wall_ms)) {
                unknown.ids.push(amount.id);
            }
        }
        unknown
    }

    /// Notes that the ledger has an entry of this scope, by the time of the request's arrival.
    pub fn record(&self, time_ms: u64, consumption: &Consumption) {
        self.amounts().list.iter_mut().for_each(|amount| amount.record(time_ms, consumption));
    }

    /// Adds what an entry that is still to be recorded consumed, and no permit of this process was for.
    pub fn charge(&self, time_ms: u64, consumption: &Consumption) {
        self.amounts().list.iter_mut().for_each(|amount| amount.charge(time_ms, consumption));
    }

    /// Adds a recorded entry that no permit of this process was for.
    pub fn make_up(&self, time_ms: u64, consumption: &Consumption) {
        self.amounts().list.iter_mut().for_each(|amount| amount.make_up(time_ms, consumption));
    }

    /// Says that whatever thresholds are passed by now have been told.
    pub fn note_passed(&self, wall_ms: u64) {
        self.amounts().list.iter_mut().for_each(|amount| amount.note_passed(wall_ms));
    }

    /// The end of what [`Scope::reserve`] or [`Scope::grow`] began.
    pub(super) fn settle(&self, taken: &Taken, held: &[Held], end: Settlement) {
        let mut guard = self.amounts();
        let amounts = &mut *guard;
        self.settle_rates(taken, end);
        self.in_flight.change(amounts, |open| open.saturating_sub(1));
        self.reserved.change(amounts, |reserved| reserved.saturating_sub(taken.tokens));
        let mut news = Vec::new();
        for held in held {
            // An amount that is held to no longer is counted no longer.
            let Some(amount) = amounts.get(held.id) else { continue };
            let actual = match end {
                Settlement::Keep => None,
                Settlement::Charge { consumed, .. } => Some(amount.terms.measure.of(&consumed)),
                Settlement::Refund => Some(0),
            };
            news.extend(amount.settle(held, actual));
        }
        // Who is told may write it to a slow terminal.
        drop(guard);
        news.iter().for_each(|passed| self.watch.passed(&self.id, passed));
    }

    fn settle_rates(&self, taken: &Taken, end: Settlement) {
        match end {
            Settlement::Keep => {}
            Settlement::Charge { now, consumed } => {
                let in_force = self.in_force();
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
    fn new(policy: &Policy, rpm: &Cell, tpm: &Cell) -> Self {
        Self {
            policy: policy.clone(),
            rpm: policy.limits.rpm.map(|limit| Rate::new(rpm, limit, 0)),
            tpm: policy.limits.tpm.map(|limit| Rate::new(tpm, limit, MAX_DEBT_MINUTES)),
        }
    }

    pub(super) fn is_shadow(&self, which: Shadow) -> bool {
        self.policy.shadow.contains(&which)
    }
}

fn terms(policy: &Policy) -> impl Iterator<Item = Terms> {
    policy.budgets.iter().map(Terms::of_budget).chain(policy.quotas.iter().map(Terms::of_quota))
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
