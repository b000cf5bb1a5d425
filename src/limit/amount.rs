//! Amounts in windows: budgets of money and quotas of tokens, reserved before and settled after.
//!
//! Owns what is used and reserved in the window of now and in the one before, and what of it is in the ledger. Leaves
//! where windows begin to `window`, and holding several amounts at once, under one lock, to `scope`.
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

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::policy::{Budget, Per, Quota};

use super::consumption::{Consumption, Measure};
use super::window::{Stretch, Window};

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
///
/// What requests change comes first, and lies in one line of the processor's cache.
#[derive(Debug)]
#[repr(C, align(64))]
pub(super) struct Amount {
    now: Sums,
    /// How many thresholds have been told.
    told: usize,
    /// Of the window of now, what is in the ledger.
    recorded: u64,
    /// Requests that arrived before this wall time hold no reservation here: what they cost counts when it is recorded.
    since_ms: u64,
    /// Like that of no other amount that its scope ever had.
    pub(super) id: u32,
    pub(super) terms: Terms,
    before: Sums,
}

/// All that one scope is held to.
#[derive(Debug, Default)]
pub(super) struct Amounts {
    pub(super) list: Vec<Amount>,
    next_id: u32,
}

impl Amounts {
    /// Holds to these from now on. What is used stays used where measure and window stay. Returns the ids of those that
    /// are new.
    pub(super) fn hold_to(&mut self, terms: impl Iterator<Item = Terms>, since_ms: u64) -> Vec<u32> {
        let mut before = std::mem::take(&mut self.list);
        let mut new = Vec::new();
        for terms in terms {
            let known = before.iter().position(|amount| amount.terms.counts_as(&terms));
            let amount = known.map(|index| Amount { terms: terms.clone(), ..before.swap_remove(index) });
            let amount = amount.unwrap_or_else(|| {
                new.push(self.next_id);
                self.next_id += 1;
                Amount::new(self.next_id - 1, terms, since_ms)
            });
            self.list.push(amount);
        }
        new
    }

    pub(super) fn get(&mut self, id: u32) -> Option<&mut Amount> {
        self.list.iter_mut().find(|amount| amount.id == id)
    }
}

#[derive(Clone, Copy, Debug)]
struct Sums {
    stretch: Stretch,
    used: u64,
    reserved: u64,
}

/// What one request has reserved of an amount.
#[derive(Clone, Copy, Debug)]
pub(super) struct Held {
    /// The amount it is of.
    pub(super) id: u32,
    /// The window's beginning.
    start_ms: u64,
    reserved: u64,
}

/// Where an amount stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Standing {
    pub(super) used: u64,
    pub(super) reserved: u64,
    /// When the window ends, wall time, milliseconds; `u64::MAX` is never.
    pub(super) end_ms: u64,
}

/// A threshold that has just been passed.
#[derive(Clone, Debug)]
pub(super) struct Passed {
    pub(super) terms: Terms,
    pub(super) percent: u8,
    pub(super) standing: Standing,
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
    fn new(id: u32, terms: Terms, since_ms: u64) -> Self {
        // A window that holds no time: the first look moves on from it.
        let none = Sums::new(Stretch { start_ms: 0, end_ms: 0 });
        Self { id, terms, since_ms, now: none, before: none, recorded: 0, told: 0 }
    }

    /// Moves on to the window of `wall_ms`, if that is later than the one of now.
    fn look(&mut self, wall_ms: u64) {
        if wall_ms >= self.now.stretch.end_ms {
            self.move_on(wall_ms);
        }
    }

    #[cold]
    fn move_on(&mut self, wall_ms: u64) {
        let window = &self.terms.window;
        let next = window.at(wall_ms);
        // A window that was jumped over has seen no request.
        let follows = next.start_ms == self.now.stretch.end_ms;
        let between = || next.start_ms.checked_sub(1).map_or(self.now, |ms| Sums::new(window.at(ms)));
        self.before = if follows { self.now } else { between() };
        (self.now, self.recorded, self.told) = (Sums::new(next), 0, 0);
    }

    /// The sums of the window a request of this time counts in. A time before the window before can only be a clock that
    /// was set back far: then it counts now.
    fn sums(&mut self, wall_ms: u64) -> &mut Sums {
        self.look(wall_ms);
        if self.before.stretch.contains(wall_ms) { &mut self.before } else { &mut self.now }
    }

    fn starting(&mut self, start_ms: u64) -> Option<&mut Sums> {
        [&mut self.now, &mut self.before].into_iter().find(|sums| sums.stretch.start_ms == start_ms)
    }

    /// True when a request that arrived at `wall_ms` can have `needed`. What costs nothing can, even when all is used up.
    pub(super) fn has_room(&mut self, wall_ms: u64, needed: u64) -> bool {
        let limit = self.terms.limit;
        self.sums(wall_ms).has_room(limit, needed)
    }

    /// Reserves `needed` for a request that arrived at `wall_ms`, whether or not there is room.
    pub(super) fn reserve(&mut self, wall_ms: u64, needed: u64) -> Held {
        let id = self.id;
        let sums = self.sums(wall_ms);
        sums.reserved = sums.reserved.saturating_add(needed);
        Held { id, start_ms: sums.stretch.start_ms, reserved: needed }
    }

    /// True when `held` can be grown by `more`.
    pub(super) fn has_more(&mut self, held: &Held, more: u64) -> bool {
        let limit = self.terms.limit;
        self.starting(held.start_ms).is_none_or(|sums| sums.has_room(limit, more))
    }

    /// Reserves more, whether or not there is room.
    pub(super) fn grow(&mut self, held: &mut Held, more: u64) {
        let Some(sums) = self.starting(held.start_ms) else { return };
        sums.reserved = sums.reserved.saturating_add(more);
        held.reserved = held.reserved.saturating_add(more);
    }

    /// Ends a reservation with what was really consumed; `None` is what was reserved. Nothing is kept of a window that
    /// is two windows old. Tells which threshold that has passed.
    pub(super) fn settle(&mut self, held: &Held, actual: Option<u64>) -> Option<Passed> {
        let sums = self.starting(held.start_ms)?;
        sums.reserved = sums.reserved.saturating_sub(held.reserved);
        sums.used = sums.used.saturating_add(actual.unwrap_or(held.reserved));
        self.passed()
    }

    /// Where it stands for a request that arrived at `wall_ms`.
    pub(super) fn standing(&mut self, wall_ms: u64) -> Standing {
        self.sums(wall_ms).standing()
    }

    /// Adds what a committed entry consumed that arrived at `time_ms`.
    pub(super) fn record(&mut self, time_ms: u64, consumption: &Consumption) {
        let consumed = self.terms.measure.of(consumption);
        self.note_recorded(time_ms, consumed);
        if time_ms < self.since_ms {
            self.use_up(time_ms, consumed);
        }
    }

    /// Adds what an entry consumed that nobody reserved for here, and that is still to be recorded.
    pub(super) fn charge(&mut self, time_ms: u64, consumption: &Consumption) {
        self.look(time_ms);
        self.use_up(time_ms, self.terms.measure.of(consumption));
    }

    /// Adds what an entry consumed that nobody reserved for here, for it is older than this process or this amount.
    pub(super) fn make_up(&mut self, time_ms: u64, consumption: &Consumption) {
        self.make_up_by(time_ms, self.terms.measure.of(consumption));
    }

    pub(super) fn make_up_by(&mut self, time_ms: u64, consumed: u64) {
        self.note_recorded(time_ms, consumed);
        self.use_up(time_ms, consumed);
    }

    fn note_recorded(&mut self, time_ms: u64, consumed: u64) {
        self.look(time_ms);
        if self.now.stretch.contains(time_ms) {
            self.recorded = self.recorded.saturating_add(consumed);
        }
    }

    fn use_up(&mut self, time_ms: u64, consumed: u64) {
        let held = [&mut self.now, &mut self.before].into_iter().find(|sums| sums.stretch.contains(time_ms));
        if let Some(sums) = held {
            sums.used = sums.used.saturating_add(consumed);
        }
    }

    pub(super) fn save(&self) -> SavedAmount {
        let Terms { measure, window, .. } = &self.terms;
        SavedAmount {
            measure: *measure,
            per: window.per(),
            zone: window.zone().to_owned(),
            start_ms: self.now.stretch.start_ms,
            recorded: self.recorded,
        }
    }

    /// Takes up what was saved, if it is of this amount. Of another window than that of now it is forgotten: as what is
    /// before the window of now, it can concern a late request only.
    pub(super) fn restore(&mut self, saved: &SavedAmount, wall_ms: u64) -> bool {
        let Terms { measure, window, .. } = &self.terms;
        let same = (saved.measure, saved.per, &*saved.zone) == (*measure, window.per(), window.zone());
        self.look(wall_ms);
        if same && saved.start_ms == self.now.stretch.start_ms {
            self.recorded = saved.recorded;
            self.now.used = saved.recorded;
        }
        same
    }

    /// Looks at the thresholds without telling: what was passed before a restart has been told.
    pub(super) fn note_passed(&mut self, wall_ms: u64) {
        self.look(wall_ms);
        let _told = self.passed();
    }

    /// The highest threshold passed since this was last asked.
    fn passed(&mut self) -> Option<Passed> {
        let (terms, used) = (&self.terms, self.now.used);
        let passed = terms.alert_at.iter().take_while(|percent| used >= terms.threshold(**percent).max(1)).count();
        if passed == self.told {
            return None;
        }
        let news = passed > self.told;
        self.told = passed;
        let percent = *terms.alert_at.get(passed.checked_sub(1)?).filter(|_| news)?;
        Some(Passed { terms: terms.clone(), percent, standing: self.now.standing() })
    }
}

impl Sums {
    fn new(stretch: Stretch) -> Self {
        Self { stretch, used: 0, reserved: 0 }
    }

    fn has_room(&self, limit: u64, needed: u64) -> bool {
        needed == 0 || self.used.saturating_add(self.reserved).saturating_add(needed) <= limit
    }

    fn standing(&self) -> Standing {
        Standing { used: self.used, reserved: self.reserved, end_ms: self.stretch.end_ms }
    }
}
