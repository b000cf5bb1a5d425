//! One rate, so many per minute, decided by `governor`'s GCRA on a cell of our own.
//!
//! Owns the cell, its arithmetic and the quota. Leaves what is counted, and undoing several rates together, to its
//! parent.
//!
//! The cell holds one number: the theoretical arrival time (TAT), the moment at which everything admitted so far
//! will have been refilled. governor keeps that number to itself, relative to a start of its own; a settlement, the
//! response headers and a restart must read and move it. So the state store is a cell we share with the limiter, and
//! the clock is frozen at 0 while the limiter is made: what it then stores is absolute time on our clock.

use std::cell::Cell as ThreadCell;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use governor::clock::{Clock, Reference};
use governor::middleware::NoOpMiddleware;
use governor::nanos::Nanos as GovernorNanos;
use governor::state::{NotKeyed, StateStore};
use governor::{Quota, RateLimiter};

use crate::clock::Nanos;

/// Nanoseconds in the window that all our rates are given in.
const MINUTE: u64 = 60_000_000_000;

/// How far a settlement can push a rate into debt, in minutes of its limit. It bounds the lockout that one grossly
/// underestimated request can cause; usage beyond it is in the ledger but no longer delays anyone.
pub(super) const MAX_DEBT_MINUTES: u64 = 10;

/// The TAT of one rate; 0 is "never used". Outlives changes of the limit. Clones share it.
///
/// It is read by anybody at any time, and changed under the lock of its scope only, which is why a store suffices:
/// [`Rate::take`], [`Rate::settle`], [`Rate::restore`] and [`Cell::undo`] are for who holds that lock. `Relaxed`
/// everywhere: the number is the whole state, nothing else is published through it.
#[derive(Clone, Debug, Default)]
pub(super) struct Cell(Arc<AtomicU64>);

impl Cell {
    fn get(&self) -> Nanos {
        self.0.load(Ordering::Relaxed)
    }

    fn update(&self, f: impl Fn(Nanos) -> Nanos) {
        self.0.store(f(self.get()), Ordering::Relaxed);
    }

    /// Takes back `taken` nanoseconds as if they had never been: what lies before now is refilled already, so no floor
    /// is needed.
    pub(super) fn undo(&self, taken: u64) {
        if taken > 0 {
            self.update(|tat| tat.saturating_sub(taken));
        }
    }
}

impl StateStore for Cell {
    type Key = NotKeyed;

    fn measure_and_replace<T, F, E>(&self, _: &NotKeyed, f: F) -> Result<T, E>
    where
        F: Fn(Option<GovernorNanos>) -> Result<(T, GovernorNanos), E>,
    {
        let before = self.get();
        let (answer, after) = f((before != 0).then(|| before.into()))?;
        self.0.store(after.into(), Ordering::Relaxed);
        Ok(answer)
    }
}

thread_local! {
    static NOW: ThreadCell<Nanos> = const { ThreadCell::new(0) };
}

/// A clock that reads what its thread last set: one reading of time serves every decision on a request.
#[derive(Clone, Copy, Debug)]
struct Frozen;

impl Clock for Frozen {
    type Instant = GovernorNanos;

    fn now(&self) -> GovernorNanos {
        NOW.get().into()
    }
}

type Limiter = RateLimiter<NotKeyed, Cell, Frozen, NoOpMiddleware<GovernorNanos>>;

/// Why a rate did not admit. The longer wait is the greater.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Wait {
    /// It will, after this long, if nobody else comes first.
    For(Duration),
    /// More is asked than the limit itself.
    Never,
}

/// A limit per minute on a [`Cell`].
#[derive(Debug)]
pub(super) struct Rate {
    cell: Cell,
    limit: u64,
    /// Nanoseconds that refill one unit. Rounded up: governor's own truncation would run a rate too fast.
    weight: u64,
    /// How far the TAT may lie ahead of now for an admission: burst times weight.
    capacity: u64,
    /// How far it may lie ahead at all.
    max_ahead: u64,
    /// `None` for a limit of 0, which governor cannot say.
    limiter: Option<Limiter>,
}

impl Rate {
    /// `limit` units per minute, all of which may be used at once. What a settlement adds may run `debt_minutes`
    /// beyond that. Limits above `u32::MAX` hold as that.
    pub(super) fn new(cell: &Cell, limit: u64, debt_minutes: u64) -> Self {
        let burst = u32::try_from(limit).unwrap_or(u32::MAX);
        let weight = MINUTE.div_ceil(u64::from(burst.max(1)));
        let capacity = weight * u64::from(burst);
        let limiter = NonZeroU32::new(burst)
            .and_then(|burst| Some(Quota::with_period(Duration::from_nanos(weight))?.allow_burst(burst)))
            .map(|quota| {
                NOW.set(0);
                RateLimiter::new(quota, cell.clone(), Frozen)
            });
        Self { cell: cell.clone(), limit, weight, capacity, max_ahead: capacity * (1 + debt_minutes), limiter }
    }

    /// Units per minute.
    pub(super) fn limit(&self) -> u64 {
        self.limit
    }

    /// Reserves `n` units. Says how many nanoseconds that took of the cell, for [`Rate::settle`] or
    /// [`Cell::undo`].
    pub(super) fn take(&self, now: Nanos, n: u64) -> Result<u64, Wait> {
        let Some(count) = u32::try_from(n).ok().and_then(NonZeroU32::new) else {
            return if n == 0 { Ok(0) } else { Err(Wait::Never) };
        };
        let limiter = self.limiter.as_ref().ok_or(Wait::Never)?;
        NOW.set(now);
        match limiter.check_n(count) {
            Ok(Ok(())) => Ok(n * self.weight),
            Ok(Err(until)) => Err(Wait::For(until.earliest_possible().duration_since(now.into()).into())),
            Err(_) => Err(Wait::Never),
        }
    }

    /// What [`Rate::take`] would answer, without taking.
    pub(super) fn wait(&self, now: Nanos, n: u64) -> Option<Wait> {
        let need = n.saturating_mul(self.weight);
        if n > 0 && need > self.capacity {
            return Some(Wait::Never);
        }
        let over = self.ahead(now).saturating_add(need).saturating_sub(self.capacity);
        (n > 0 && over > 0).then(|| Wait::For(Duration::from_nanos(over)))
    }

    /// Replaces a reservation of `taken` nanoseconds by the `actual` units used: returns the difference or charges it.
    ///
    /// A charge counts from now: a reservation that time has refilled does not pay for what came late.
    pub(super) fn settle(&self, now: Nanos, taken: u64, actual: u64) {
        let cost = actual.saturating_mul(self.weight);
        let Some(debt) = cost.checked_sub(taken) else {
            return self.cell.undo(taken - cost);
        };
        if debt > 0 {
            let cap = now.saturating_add(self.max_ahead);
            self.cell.update(|tat| tat.max(now).saturating_add(debt).min(cap.max(tat)));
        }
    }

    /// Units that may be used at once right now.
    pub(super) fn remaining(&self, now: Nanos) -> u64 {
        (self.capacity.saturating_sub(self.ahead(now)) / self.weight).min(self.limit)
    }

    /// Units used or reserved and not yet refilled; above the limit when in debt.
    pub(super) fn used(&self, now: Nanos) -> u64 {
        self.ahead(now).div_ceil(self.weight)
    }

    /// Nanoseconds until all is refilled.
    pub(super) fn ahead(&self, now: Nanos) -> u64 {
        self.cell.get().saturating_sub(now)
    }

    /// Puts the refill `ahead` nanoseconds from now, at most as far as a debt can reach; never nearer than it is.
    pub(super) fn restore(&self, now: Nanos, ahead: u64) {
        if ahead > 0 {
            let tat = now.saturating_add(ahead.min(self.max_ahead));
            self.cell.update(|current| current.max(tat));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const START: Nanos = 1;

    fn rate(limit: u64) -> Rate {
        Rate::new(&Cell::default(), limit, MAX_DEBT_MINUTES)
    }

    fn seconds(s: f64) -> Wait {
        Wait::For(Duration::from_secs_f64(s))
    }

    #[test]
    fn the_whole_limit_at_once_then_one_at_a_time() {
        let rate = rate(60);
        for left in (0..60).rev() {
            assert_eq!(rate.take(START, 1), Ok(1_000_000_000));
            assert_eq!(rate.remaining(START), left);
        }
        assert_eq!(rate.take(START, 1), Err(seconds(1.0)));
        assert_eq!(rate.take(START + 999_999_999, 1), Err(Wait::For(Duration::from_nanos(1))));
        assert!(rate.take(START + 1_000_000_000, 1).is_ok());
        assert_eq!(rate.remaining(START + 500 * MINUTE), 60);
    }

    #[test]
    fn more_than_the_limit_never_passes() {
        for (name, limit, n, want) in [
            ("limit", 100, 100, Ok(60_000_000_000)),
            ("one more", 100, 101, Err(Wait::Never)),
            ("beyond u32", 100, u64::from(u32::MAX) + 1, Err(Wait::Never)),
            ("nothing", 100, 0, Ok(0)),
            ("closed", 0, 1, Err(Wait::Never)),
            ("nothing of closed", 0, 0, Ok(0)),
            ("huge limit", u64::MAX, 1, Ok(14)),
        ] {
            assert_eq!(rate(limit).take(START, n), want, "{name}");
            assert_eq!(rate(limit).wait(START, n), want.err(), "{name}");
        }
    }

    #[test]
    fn debt_is_paid_before_the_next_passes_and_is_capped() {
        let rate = rate(60);
        let taken = rate.take(START, 10).unwrap();
        rate.settle(START, taken, 90);
        assert_eq!((rate.used(START), rate.remaining(START)), (90, 0));
        assert_eq!(rate.take(START, 1), Err(seconds(31.0)));
        rate.settle(START, 0, u64::MAX);
        assert_eq!(rate.ahead(START), MINUTE * (1 + MAX_DEBT_MINUTES));
    }

    #[test]
    fn a_late_charge_counts_from_now() {
        let rate = rate(60);
        let taken = rate.take(START, 1).unwrap();
        rate.settle(START + 10 * MINUTE, taken, 31);
        assert_eq!(rate.used(START + 10 * MINUTE), 30);
    }

    #[test]
    fn a_settlement_never_shortens_what_others_owe() {
        let cell = Cell::default();
        Rate::new(&cell, 60, 10).settle(START, 0, 600);
        let without_debt = Rate::new(&cell, 60, 0);
        without_debt.settle(START, 0, 1);
        assert_eq!(without_debt.used(START), 600);
    }

    #[derive(Clone, Debug)]
    struct Step {
        pause: u64,
        n: u64,
        actual: u64,
        settle_after: usize,
    }

    fn steps(limit: u64) -> impl Strategy<Value = Vec<Step>> {
        let pause = prop_oneof![Just(0), 0..MINUTE / 20, 0..MINUTE];
        let step = (pause, 1..=limit, 0..=2 * limit, 0..6_usize);
        proptest::collection::vec(
            step.prop_map(|(pause, n, actual, settle_after)| Step { pause, n, actual, settle_after }),
            1..60,
        )
    }

    proptest! {
        /// In every window of length w, what is admitted is at most burst + w/weight.
        #[test]
        fn no_window_exceeds_burst_and_refill(
            (limit, steps) in (1..500_u64).prop_flat_map(|limit| (Just(limit), steps(limit))),
        ) {
            let rate = rate(limit);
            let mut now = START;
            let mut admitted = Vec::new();
            for step in steps {
                now += step.pause;
                let predicted = rate.wait(now, step.n);
                match rate.take(now, step.n) {
                    Ok(_) => {
                        prop_assert_eq!(predicted, None);
                        admitted.push((now, step.n));
                    }
                    Err(wait) => prop_assert_eq!(predicted, Some(wait)),
                }
            }
            for (i, (from, _)) in admitted.iter().enumerate() {
                let mut sum = 0;
                for (to, n) in &admitted[i..] {
                    sum += n;
                    prop_assert!(sum * rate.weight <= rate.capacity + (to - from));
                    prop_assert!(sum <= limit + (to - from).div_ceil(MINUTE / limit));
                }
            }
        }

        /// With wrong estimates and late settlements, what is used in a window exceeds that bound at most by the
        /// underestimates of what was admitted in it and by what was returned in it of earlier reservations.
        #[test]
        fn wrong_estimates_cost_no_more_than_their_error(
            (limit, steps) in (1..500_u64).prop_flat_map(|limit| (Just(limit), steps(limit))),
        ) {
            let rate = rate(limit);
            let mut now = START;
            let mut open: Vec<(usize, u64, usize)> = Vec::new();
            let mut admitted = Vec::new();
            let mut returned = Vec::new();
            for (index, step) in steps.iter().enumerate() {
                now += step.pause;
                open.retain(|&(due, taken, which)| {
                    if due > index {
                        return true;
                    }
                    let (at, n, actual): (u64, u64, u64) = admitted[which];
                    rate.settle(now, taken, actual);
                    returned.push((now, at, n.saturating_sub(actual)));
                    false
                });
                if let Ok(taken) = rate.take(now, step.n) {
                    open.push((index + step.settle_after, taken, admitted.len()));
                    admitted.push((now, step.n, step.actual));
                }
            }
            for (i, (from, ..)) in admitted.iter().enumerate() {
                let (mut used, mut allowance) = (0, 0);
                for (to, n, actual) in &admitted[i..] {
                    used += actual;
                    allowance += actual.saturating_sub(*n);
                    let early: u64 =
                        returned.iter().filter(|(when, at, _)| when >= from && when <= to && at <= from).map(|r| r.2).sum();
                    prop_assert!(used * rate.weight <= rate.capacity + (to - from) + (allowance + early) * rate.weight);
                }
            }
        }
    }
}
