//! What the installation did over time: by how much its counters grew, in steps of ten seconds for an hour and of a minute
//! for a day.
//!
//! Owns the steps and reading percentiles off buckets; leaves counting to the modules that count, and looking in time to
//! `app`. Requests pay nothing for it: what is read are counters that are there anyway.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Mutex, PoisonError};

use crate::clock::Clock;

/// Figures since the start, all of which only grow but for `in_flight`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Counts {
    /// Requests that were answered.
    pub ok: u64,
    /// Requests that sidekey refused.
    pub refused: u64,
    /// All others that have ended.
    pub failed: u64,
    /// Tokens read, those from a cache included.
    pub input: u64,
    /// Tokens read from a cache.
    pub cached_input: u64,
    /// Tokens made.
    pub output: u64,
    /// Money, billionths of a dollar.
    pub cost_nano_usd: u64,
    /// Times to the first byte.
    pub first_byte: Buckets,
    /// Responses being relayed now.
    pub in_flight: u64,
}

/// Observations by size: each bucket has its upper bound and how many are in it alone. The last bound is infinite.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Buckets(Vec<(f64, u64)>);

/// Some steps in a row, the last of which is not over yet.
#[derive(Clone, Debug, PartialEq)]
pub struct Series {
    /// How long one is, milliseconds.
    pub step_ms: u64,
    /// When the first began, wall time in milliseconds.
    pub from_ms: u64,
    /// When it was read.
    pub to_ms: u64,
    /// When counting began; before it there is nothing.
    pub since_ms: u64,
    /// What was counted in each, one right after the other; `in_flight` is the most that was seen.
    pub points: Vec<Counts>,
    /// Responses being relayed when it was read.
    pub in_flight: u64,
}

/// Reads the counters.
pub type Reader = Box<dyn Fn() -> Counts + Send + Sync>;

/// The installation's last day.
pub struct Activity {
    reader: Reader,
    clock: Clock,
    state: Mutex<State>,
}

impl fmt::Debug for Activity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Activity").finish_non_exhaustive()
    }
}

const FINE_MS: u64 = 10_000;
const COARSE_MS: u64 = 60_000;
const HOUR_MINUTES: u32 = 60;
/// The longest stretch that is kept.
pub const MAX_MINUTES: u32 = 24 * 60;

struct State {
    since_ms: u64,
    before: Counts,
    fine: Ring,
    coarse: Ring,
}

impl Activity {
    /// One that begins now.
    #[must_use]
    pub fn new(reader: Reader, clock: Clock) -> Self {
        let now = clock.wall_ms();
        let state = State {
            since_ms: now,
            before: reader(),
            fine: Ring::new(FINE_MS, HOUR_MINUTES, now),
            coarse: Ring::new(COARSE_MS, MAX_MINUTES, now),
        };
        Self { reader, clock, state: Mutex::new(state) }
    }

    /// Reads the counters. What they have grown by belongs to the time when they were read before.
    pub fn look(&self) {
        self.with_state(|_| ());
    }

    /// How long until the next look is due, milliseconds: at the end of a step.
    #[must_use]
    pub fn due_ms(&self) -> u64 {
        FINE_MS - self.clock.wall_ms() % FINE_MS
    }

    /// The last `minutes`, up to this moment: in short steps as far as these are kept.
    #[must_use]
    pub fn last(&self, minutes: u32) -> Series {
        self.with_state(|state| {
            let ring = if minutes <= HOUR_MINUTES { &state.fine } else { &state.coarse };
            let steps = steps(ring.step_ms, minutes);
            let first = ring.open.saturating_sub(steps as u64 - 1);
            let kept = ring.points.len().min(steps);
            let mut points = vec![Counts::default(); steps - kept];
            points.extend(ring.points.iter().skip(ring.points.len() - kept).cloned());
            Series {
                step_ms: ring.step_ms,
                from_ms: first * ring.step_ms,
                to_ms: self.clock.wall_ms(),
                since_ms: state.since_ms,
                points,
                in_flight: state.before.in_flight,
            }
        })
    }

    fn with_state<T>(&self, then: impl FnOnce(&State) -> T) -> T {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        // Under the lock: of two looks the later one has the higher figures.
        let counts = (self.reader)();
        let now = self.clock.wall_ms();
        let grown = counts.since(&state.before);
        state.fine.take(&grown, now);
        state.coarse.take(&grown, now);
        state.before = counts;
        then(&state)
    }
}

/// How many steps a stretch has.
fn steps(step_ms: u64, minutes: u32) -> usize {
    usize::try_from(u64::from(minutes) * 60_000 / step_ms).unwrap_or(usize::MAX)
}

/// Steps of one length, the oldest first; those that are too old are gone.
struct Ring {
    step_ms: u64,
    length: usize,
    points: VecDeque<Counts>,
    /// The number of the last one, counted from the epoch.
    open: u64,
}

impl Ring {
    fn new(step_ms: u64, minutes: u32, now_ms: u64) -> Self {
        let points = VecDeque::from([Counts::default()]);
        Self { step_ms, length: steps(step_ms, minutes), points, open: now_ms / step_ms }
    }

    /// Adds to the step that is open, then opens those up to now.
    fn take(&mut self, grown: &Counts, now_ms: u64) {
        let now = now_ms / self.step_ms;
        if now + 1 < self.open {
            // The clock was set back: the times of what is here are yet to come.
            self.points.clear();
            self.points.push_back(Counts::default());
            self.open = now;
        }
        self.add(grown);
        let missing = now.saturating_sub(self.open);
        if missing == 0 {
            return;
        }
        let opened = usize::try_from(missing).unwrap_or(usize::MAX).min(self.length);
        self.points.extend(std::iter::repeat_n(Counts::default(), opened));
        let excess = self.points.len().saturating_sub(self.length);
        self.points.drain(..excess);
        self.open = now;
        // What is in flight at the border is so on both sides.
        self.add(&Counts { in_flight: grown.in_flight, ..Counts::default() });
    }

    fn add(&mut self, grown: &Counts) {
        if let Some(point) = self.points.back_mut() {
            point.add(grown);
        }
    }
}

impl Counts {
    /// The growth since `before`.
    fn since(&self, before: &Self) -> Self {
        Self {
            ok: self.ok.saturating_sub(before.ok),
            refused: self.refused.saturating_sub(before.refused),
            failed: self.failed.saturating_sub(before.failed),
            input: self.input.saturating_sub(before.input),
            cached_input: self.cached_input.saturating_sub(before.cached_input),
            output: self.output.saturating_sub(before.output),
            cost_nano_usd: self.cost_nano_usd.saturating_sub(before.cost_nano_usd),
            first_byte: self.first_byte.since(&before.first_byte),
            in_flight: self.in_flight,
        }
    }

    fn add(&mut self, more: &Self) {
        self.ok += more.ok;
        self.refused += more.refused;
        self.failed += more.failed;
        self.input += more.input;
        self.cached_input += more.cached_input;
        self.output += more.output;
        self.cost_nano_usd += more.cost_nano_usd;
        self.first_byte.add(&more.first_byte);
        self.in_flight = self.in_flight.max(more.in_flight);
    }

    /// Requests that have ended, however they did.
    #[must_use]
    pub fn requests(&self) -> u64 {
        self.ok + self.refused + self.failed
    }
}

impl Buckets {
    /// Adds buckets as Prometheus has them: each holds what the ones below it hold too, and `all` is how many there are.
    pub fn add_cumulative(&mut self, buckets: impl IntoIterator<Item = (f64, u64)>, all: u64) {
        let mut below = 0;
        let mut alone = Vec::new();
        for (bound, upto) in buckets.into_iter().filter(|(bound, _)| bound.is_finite()).chain([(f64::INFINITY, all)]) {
            // They are read one after the other while others count.
            alone.push((bound, upto.saturating_sub(below)));
            below = upto.max(below);
        }
        self.add(&Self(alone));
    }

    fn add(&mut self, more: &Self) {
        if self.0.is_empty() {
            self.0.clone_from(&more.0);
            return;
        }
        for ((_, count), (_, more)) in self.0.iter_mut().zip(&more.0) {
            *count += more;
        }
    }

    /// Nothing at all when nothing has grown: most steps of most installations are such.
    fn since(&self, before: &Self) -> Self {
        let before = before.0.iter().map(|(_, count)| *count).chain(std::iter::repeat(0));
        let grown: Vec<_> =
            self.0.iter().zip(before).map(|((bound, count), before)| (*bound, count.saturating_sub(before))).collect();
        if grown.iter().all(|(_, count)| *count == 0) { Self::default() } else { Self(grown) }
    }

    /// The value below which the share `q` of all lies, as Prometheus' `histogram_quantile` has it: evenly spread inside
    /// its bucket, and in the last bucket that one's lower bound. `None` when there is nothing.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
    pub fn quantile(&self, q: f64) -> Option<f64> {
        let all: u64 = self.0.iter().map(|(_, count)| count).sum();
        if all == 0 {
            return None;
        }
        let rank = q * all as f64;
        let (mut below, mut lower) = (0.0, 0.0);
        for (upper, count) in &self.0 {
            let count = *count as f64;
            if below + count >= rank && count > 0.0 {
                return Some(if upper.is_finite() { lower + (upper - lower) * (rank - below) / count } else { lower });
            }
            below += count;
            lower = *upper;
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    /// On a border of both kinds of step.
    const START: u64 = 1_700_000_040_000;

    fn buckets(counts: &[u64]) -> Buckets {
        let bounds = [0.1, 0.2, 0.4, f64::INFINITY];
        Buckets(bounds.into_iter().zip(counts.iter().copied()).collect())
    }

    #[test]
    fn percentiles_of_buckets() {
        for (name, counts, q, want) in [
            ("nothing", [0, 0, 0, 0], 0.5, None),
            ("inside the first", [10, 0, 0, 0], 0.5, Some(0.05)),
            ("at a bound", [5, 5, 0, 0], 0.5, Some(0.1)),
            ("inside the second", [2, 4, 4, 0], 0.5, Some(0.175)),
            ("over empty ones", [0, 0, 10, 0], 0.5, Some(0.3)),
            ("high", [90, 6, 4, 0], 0.95, Some(0.1 + 0.1 * 5.0 / 6.0)),
            ("beyond the last bound", [0, 0, 1, 9], 0.95, Some(0.4)),
            ("one", [0, 1, 0, 0], 0.95, Some(0.195)),
        ] {
            let got = buckets(&counts).quantile(q);
            let same = match (got, want) {
                (Some(got), Some(want)) => (got - want).abs() < 1e-9,
                (got, want) => got == want,
            };
            assert!(same, "{name}: {got:?}, not {want:?}");
        }
    }

    #[test]
    fn cumulative_buckets_become_single_ones() {
        let mut sum = Buckets::default();
        sum.add_cumulative([(0.1, 2), (0.2, 5), (0.4, 5)], 6);
        assert_eq!(sum, buckets(&[2, 3, 0, 1]));
        sum.add_cumulative([(0.1, 1), (0.2, 1), (0.4, 1), (f64::INFINITY, 1)], 1);
        assert_eq!(sum, buckets(&[3, 3, 0, 1]));
        // A bucket that was read later than the sum.
        let mut torn = Buckets::default();
        torn.add_cumulative([(0.1, 2), (0.2, 2), (0.4, 2)], 1);
        assert_eq!(torn, buckets(&[2, 0, 0, 0]));
    }

    struct Bench {
        counts: Arc<Mutex<Counts>>,
        clock: Clock,
        activity: Activity,
    }

    fn bench() -> Bench {
        let counts = Arc::new(Mutex::new(Counts { ok: 1000, ..Counts::default() }));
        let (clock, read) = (Clock::manual(START), Arc::clone(&counts));
        let activity = Activity::new(Box::new(move || read.lock().unwrap().clone()), clock.clone());
        Bench { counts, clock, activity }
    }

    impl Bench {
        fn count(&self, ok: u64) {
            self.counts.lock().unwrap().ok += ok;
        }

        fn pass(&self, ms: u64) {
            self.clock.advance_ms(ms);
            self.activity.look();
        }

        /// Where there is something, by the step's number from the end, and how much.
        fn seen(&self, minutes: u32) -> Vec<(usize, u64)> {
            let points = self.activity.last(minutes).points;
            let seen = points.iter().rev().enumerate().filter(|(_, point)| point.requests() > 0);
            seen.map(|(back, point)| (back, point.requests())).collect()
        }
    }

    #[test]
    fn what_was_counted_belongs_to_the_step_it_was_counted_in() {
        let bench = bench();
        bench.count(1);
        // Nobody has looked yet: asking does.
        assert_eq!(bench.seen(60), [(0, 1)]);
        bench.pass(9_999);
        bench.count(2);
        bench.pass(1);
        assert_eq!(bench.seen(60), [(1, 3)]);
        bench.count(4);
        bench.pass(10_000);
        bench.pass(30_000);
        bench.count(8);
        assert_eq!(bench.seen(60), [(0, 8), (4, 4), (5, 3)]);
        assert_eq!(bench.seen(1), [(0, 8), (4, 4), (5, 3)]);
        // In one minute's step, all of them.
        assert_eq!(bench.seen(61), [(0, 15)]);
    }

    #[test]
    fn series_have_all_their_steps() {
        let bench = bench();
        bench.pass(25_000);
        for (minutes, step_ms, steps) in [(1, 10_000, 6), (60, 10_000, 360), (61, 60_000, 61), (1440, 60_000, 1440)] {
            let series = bench.activity.last(minutes);
            assert_eq!((series.step_ms, series.points.len()), (step_ms, steps), "{minutes}");
            let end = series.from_ms + steps as u64 * step_ms;
            assert!(end > series.to_ms && end - series.to_ms <= step_ms, "{minutes}: the last one is open");
            assert_eq!((series.since_ms, series.from_ms % step_ms), (START, 0));
        }
    }

    #[test]
    fn what_is_too_old_is_forgotten() {
        let bench = bench();
        bench.count(1);
        for _ in 0..359 {
            bench.pass(10_000);
        }
        assert_eq!(bench.seen(60), [(359, 1)]);
        bench.pass(10_000);
        assert_eq!((bench.seen(60), bench.seen(61)), (vec![], vec![(60, 1)]));
        for _ in 0..1439 - 60 {
            bench.pass(60_000);
        }
        assert_eq!(bench.seen(1440), [(1439, 1)]);
        bench.pass(60_000);
        assert_eq!(bench.seen(1440), []);
        let state = bench.activity.state.lock().unwrap();
        assert_eq!((state.fine.points.len(), state.coarse.points.len()), (360, 1440));
    }

    #[test]
    fn clocks_that_jump() {
        // By milliseconds; whether what was counted before is still there.
        for (name, jump, kept) in [
            ("a little back", -9_000_i64, true),
            ("a day back", -86_400_000, false),
            ("half an hour on", 1_800_000, true),
            ("a year on", 31_536_000_000, false),
        ] {
            let mut ring = Ring::new(FINE_MS, HOUR_MINUTES, START);
            let grown = Counts { ok: 1, ..Counts::default() };
            ring.take(&grown, START + 10_000);
            let now = (START + 10_000).checked_add_signed(jump).unwrap();
            ring.take(&Counts::default(), now);
            let there: u64 = ring.points.iter().map(|point| point.ok).sum();
            assert_eq!(there == 1, kept, "{name}");
            assert!(ring.points.len() <= 360, "{name}");
            ring.take(&grown, now);
            assert_eq!(ring.points.back().map(|point| point.ok), Some(1), "{name}");
        }
    }

    #[test]
    fn the_most_that_was_in_flight() {
        let bench = bench();
        for in_flight in [3, 7, 2] {
            bench.counts.lock().unwrap().in_flight = in_flight;
            bench.pass(4_000);
        }
        let points = bench.activity.last(1).points;
        let seen: Vec<_> = points.iter().map(|point| point.in_flight).collect();
        assert_eq!(seen, [0, 0, 0, 0, 7, 2]);
    }
}
