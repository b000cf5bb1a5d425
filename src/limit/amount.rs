//! Amounts in windows: budgets of money and quotas of tokens, reserved before and settled after.
//!
//! Owns what is used and reserved in the window of now and in the one before, and what of it is in the ledger. Leaves
//! where windows begin to `window`, and holding several amounts at once to its parent.
//!
//! # The promise
//! What is used in a window is the sum of what the requests that arrived in it have cost, and a request is admitted only
//! while that, with all that open requests have reserved and its own reservation, is within the amount. So a window can
//! be overspent by no more than its requests cost beyond their reservations. Nothing refills: a window begins anew, and
//! does so when it is looked at.
//!
//! A request belongs to the window it arrived in, however late it is admitted or ends; for that the window before is
//! remembered too.
//!
//! Two sums are kept: `used`, which a settlement raises at once, and `recorded`, which is raised once the ledger has the
//! entry. The second is what is saved, with the number of the last entry it holds; after a crash the entries behind it
//! are added again, and both are then what the ledger says.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use crate::policy::{Budget, Counts, Per, Quota};
use crate::unit::{Usage, usd};

use super::window::{Stretch, Window};

/// What a request needs, or has consumed, in every unit that something is limited in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Consumption {
    /// Tokens of the request.
    pub input: u64,
    /// Those of them that come from a prompt cache.
    pub cached_input: u64,
    /// Tokens of the answer.
    pub output: u64,
    /// What the provider says it is in all, which may be more than input and output.
    pub total: u64,
    /// Billionths of a US dollar.
    pub nano_usd: u64,
}

impl Consumption {
    /// Of so many tokens in and out.
    #[must_use]
    pub fn tokens(input: u64, output: u64) -> Self {
        Self { input, output, total: input.saturating_add(output), ..Self::default() }
    }

    /// Of what a provider reported, or sidekey counted; a cost that is not known is none.
    #[must_use]
    pub fn of(usage: &Usage, nano_usd: Option<u64>) -> Self {
        Self {
            input: usage.input.unwrap_or(0),
            cached_input: usage.cached_input.unwrap_or(0),
            output: usage.output.unwrap_or(0),
            total: usage.billable(),
            nano_usd: nano_usd.unwrap_or(0),
        }
    }

    /// Both together.
    #[must_use]
    pub fn plus(&self, more: &Self) -> Self {
        Self {
            input: self.input.saturating_add(more.input),
            cached_input: self.cached_input.saturating_add(more.cached_input),
            output: self.output.saturating_add(more.output),
            total: self.total.saturating_add(more.total),
            nano_usd: self.nano_usd.saturating_add(more.nano_usd),
        }
    }

    /// The tokens that count.
    #[must_use]
    pub fn counted(&self, counts: Counts) -> u64 {
        match counts {
            Counts::Input => self.input,
            Counts::Output => self.output,
            Counts::Total => self.total,
            Counts::Uncached => self.total.saturating_sub(self.cached_input),
            Counts::UncachedInput => self.input.saturating_sub(self.cached_input),
        }
    }
}

/// What an amount is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Measure {
    /// Billionths of a US dollar.
    Money,
    /// Tokens, of those that count.
    Tokens(Counts),
}

impl Measure {
    /// How much of it something is.
    #[must_use]
    pub fn of(self, consumption: &Consumption) -> u64 {
        match self {
            Self::Money => consumption.nano_usd,
            Self::Tokens(counts) => consumption.counted(counts),
        }
    }

    /// What an amount of it is called.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Money => "budget",
            Self::Tokens(_) => "quota",
        }
    }

    /// An amount of it, for people.
    pub(super) fn show(self, amount: u64) -> String {
        match self {
            Self::Money => format!("${}", usd(amount)),
            Self::Tokens(Counts::Total) => format!("{amount} tokens"),
            Self::Tokens(counts) => format!("{amount} {} tokens", counts.as_str().replace('_', " ")),
        }
    }
}

/// How an amount is held to.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Terms {
    pub(super) measure: Measure,
    pub(super) window: Window,
    pub(super) limit: u64,
    pub(super) shadow: bool,
    pub(super) alert_at: Arc<[u8]>,
}

impl Terms {
    pub(super) fn of_budget(budget: &Budget) -> Self {
        Self {
            measure: Measure::Money,
            window: Window::new(budget.per, budget.time_zone.as_deref()),
            limit: budget.nano_usd,
            shadow: budget.shadow,
            alert_at: budget.alert_at.as_slice().into(),
        }
    }

    pub(super) fn of_quota(quota: &Quota) -> Self {
        Self {
            measure: Measure::Tokens(quota.counts),
            window: Window::new(quota.per, quota.time_zone.as_deref()),
            limit: quota.tokens,
            shadow: quota.shadow,
            alert_at: quota.alert_at.as_slice().into(),
        }
    }

    /// True when what is used under `other` is used under these terms too.
    pub(super) fn counts_as(&self, other: &Self) -> bool {
        self.measure == other.measure && self.window == other.window
    }

    fn threshold(&self, percent: u8) -> u64 {
        u64::try_from(u128::from(self.limit) * u128::from(percent) / 100).unwrap_or(u64::MAX)
    }
}

/// What is used of one amount. Outlives changes of its limit.
#[derive(Debug)]
pub(super) struct Amount {
    window: Window,
    measure: Measure,
    /// Requests that arrived before this wall time hold no reservation here: what they cost counts when it is recorded.
    since_ms: u64,
    state: Mutex<State>,
}

#[derive(Clone, Copy, Debug)]
struct State {
    now: Sums,
    before: Sums,
    /// Of the window of now, what is in the ledger.
    recorded: u64,
    /// How many thresholds have been told.
    told: usize,
}

#[derive(Clone, Copy, Debug)]
struct Sums {
    stretch: Stretch,
    used: u64,
    reserved: u64,
}

impl Sums {
    fn new(stretch: Stretch) -> Self {
        Self { stretch, used: 0, reserved: 0 }
    }
}

/// What one request has reserved of an amount.
#[derive(Debug)]
pub(super) struct Held {
    amount: Arc<Amount>,
    /// The window's beginning.
    start_ms: u64,
    reserved: u64,
    /// Admitted in shadow only.
    pub(super) over: bool,
}

/// Where an amount stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Standing {
    pub(super) used: u64,
    pub(super) reserved: u64,
    /// When the window ends, wall time, milliseconds; `u64::MAX` is never.
    pub(super) end_ms: u64,
}

/// An amount as it is saved: what the ledger holds of its window.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedAmount {
    measure: Measure,
    per: Per,
    zone: String,
    start_ms: u64,
    recorded: u64,
}

impl Amount {
    /// With nothing used. `since_ms` is the wall time from which on requests reserve here; 0 when all did.
    pub(super) fn new(terms: &Terms, since_ms: u64) -> Self {
        // A window that holds no time: the first look moves on from it.
        let none = Sums::new(Stretch { start_ms: 0, end_ms: 0 });
        let state = State { now: none, before: none, recorded: 0, told: 0 };
        Self { window: terms.window.clone(), measure: terms.measure, since_ms, state: Mutex::new(state) }
    }

    pub(super) fn measure(&self) -> Measure {
        self.measure
    }

    /// The state, in the window of `wall_ms` if that is later than the one it was in.
    fn state(&self, wall_ms: u64) -> MutexGuard<'_, State> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if wall_ms >= state.now.stretch.end_ms {
            let next = self.window.at(wall_ms);
            // A window that was jumped over has seen no request.
            let follows = next.start_ms == state.now.stretch.end_ms;
            let between = || next.start_ms.checked_sub(1).map_or(state.now, |ms| Sums::new(self.window.at(ms)));
            let before = if follows { state.now } else { between() };
            *state = State { now: Sums::new(next), before, recorded: 0, told: 0 };
        }
        state
    }

    /// Reserves `needed` for a request that arrived at `wall_ms`, or says where the amount stands. What costs nothing
    /// passes, even when all is used up; in shadow everything does, and is told to be `over`.
    pub(super) fn reserve(self: &Arc<Self>, terms: &Terms, wall_ms: u64, needed: u64) -> Result<Held, Standing> {
        let mut state = self.state(wall_ms);
        let sums = state.of(wall_ms);
        let over = !sums.has_room(terms.limit, needed);
        if over && !terms.shadow {
            return Err(sums.standing());
        }
        sums.reserved = sums.reserved.saturating_add(needed);
        let start_ms = sums.stretch.start_ms;
        drop(state);
        Ok(Held { amount: Arc::clone(self), start_ms, reserved: needed, over })
    }

    /// Where it stands for a request that arrived at `wall_ms`.
    pub(super) fn standing(&self, wall_ms: u64) -> Standing {
        self.state(wall_ms).of(wall_ms).standing()
    }

    /// Adds what a committed entry consumed that arrived at `time_ms`.
    pub(super) fn record(&self, time_ms: u64, consumption: &Consumption) {
        let consumed = self.measure.of(consumption);
        let mut state = self.state(time_ms);
        if state.now.stretch.contains(time_ms) {
            state.recorded = state.recorded.saturating_add(consumed);
        }
        if time_ms < self.since_ms {
            state.use_up(time_ms, consumed);
        }
    }

    /// Adds what an entry consumed that nobody reserved for here, and that is still to be recorded.
    pub(super) fn charge(&self, time_ms: u64, consumption: &Consumption) {
        self.state(time_ms).use_up(time_ms, self.measure.of(consumption));
    }

    /// Adds what an entry consumed that nobody reserved for here, for it is older than this process or this amount.
    pub(super) fn make_up(&self, time_ms: u64, consumption: &Consumption) {
        self.make_up_by(time_ms, self.measure.of(consumption));
    }

    pub(super) fn make_up_by(&self, time_ms: u64, consumed: u64) {
        let mut state = self.state(time_ms);
        if state.now.stretch.contains(time_ms) {
            state.recorded = state.recorded.saturating_add(consumed);
        }
        state.use_up(time_ms, consumed);
    }

    pub(super) fn save(&self) -> SavedAmount {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        SavedAmount {
            measure: self.measure,
            per: self.window.per(),
            zone: self.window.zone().to_owned(),
            start_ms: state.now.stretch.start_ms,
            recorded: state.recorded,
        }
    }

    /// Takes up what was saved, if it is of this amount. Of another window than that of now it is forgotten: as what is
    /// before the window of now, it can concern a late request only.
    pub(super) fn restore(&self, saved: &SavedAmount, wall_ms: u64) -> bool {
        let same = (saved.measure, saved.per, &*saved.zone) == (self.measure, self.window.per(), self.window.zone());
        let mut state = self.state(wall_ms);
        if same && saved.start_ms == state.now.stretch.start_ms {
            state.recorded = saved.recorded;
            state.now.used = saved.recorded;
        }
        same
    }

    /// Looks at the thresholds without telling: what was passed before a restart has been told.
    pub(super) fn note_passed(&self, terms: &Terms, wall_ms: u64) {
        let _told = self.state(wall_ms).passed(terms);
    }
}

impl State {
    /// The window a request of this time counts in. A time before the window before can only be a clock that was set
    /// back far: then it counts now.
    fn of(&mut self, wall_ms: u64) -> &mut Sums {
        if self.before.stretch.contains(wall_ms) { &mut self.before } else { &mut self.now }
    }

    fn starting(&mut self, start_ms: u64) -> Option<&mut Sums> {
        [&mut self.now, &mut self.before].into_iter().find(|sums| sums.stretch.start_ms == start_ms)
    }

    /// The highest threshold passed since this was last asked, as a percentage.
    fn passed(&mut self, terms: &Terms) -> Option<(u8, Standing)> {
        let used = self.now.used;
        let passed = terms.alert_at.iter().take_while(|percent| used >= terms.threshold(**percent).max(1)).count();
        let news = passed > self.told;
        self.told = passed;
        let highest = terms.alert_at.get(passed.checked_sub(1)?).filter(|_| news)?;
        Some((*highest, self.now.standing()))
    }

    fn use_up(&mut self, time_ms: u64, consumed: u64) {
        let held = [&mut self.now, &mut self.before].into_iter().find(|sums| sums.stretch.contains(time_ms));
        if let Some(sums) = held {
            sums.used = sums.used.saturating_add(consumed);
        }
    }
}

impl Sums {
    fn has_room(&self, limit: u64, needed: u64) -> bool {
        needed == 0 || self.used.saturating_add(self.reserved).saturating_add(needed) <= limit
    }

    fn standing(&self) -> Standing {
        Standing { used: self.used, reserved: self.reserved, end_ms: self.stretch.end_ms }
    }
}

impl Held {
    /// The amount it is of.
    pub(super) fn amount(&self) -> &Arc<Amount> {
        &self.amount
    }

    /// Reserves more, or says where the amount stands.
    pub(super) fn grow(&mut self, terms: &Terms, more: u64) -> Result<(), Standing> {
        let mut state = self.amount.state.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(sums) = state.starting(self.start_ms) else { return Ok(()) };
        if !sums.has_room(terms.limit, more) && !terms.shadow {
            return Err(sums.standing());
        }
        sums.reserved = sums.reserved.saturating_add(more);
        self.reserved = self.reserved.saturating_add(more);
        Ok(())
    }

    /// Gives back what was reserved beyond `reserved`.
    pub(super) fn shrink_to(&mut self, reserved: u64) {
        let back = self.reserved.saturating_sub(reserved);
        let mut state = self.amount.state.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(sums) = state.starting(self.start_ms) {
            sums.reserved = sums.reserved.saturating_sub(back);
        }
        self.reserved -= back;
    }

    pub(super) fn reserved(&self) -> u64 {
        self.reserved
    }

    /// Ends the reservation with what was really consumed; `None` is what was reserved. Nothing is kept of a window that
    /// is two windows old. Tells which threshold of `terms` that has passed, and where the amount stands then.
    pub(super) fn settle(self, actual: Option<u64>, terms: Option<&Terms>) -> Option<(u8, Standing)> {
        let mut state = self.amount.state.lock().unwrap_or_else(PoisonError::into_inner);
        let sums = state.starting(self.start_ms)?;
        sums.reserved = sums.reserved.saturating_sub(self.reserved);
        sums.used = sums.used.saturating_add(actual.unwrap_or(self.reserved));
        state.passed(terms?)
    }
}
