//! [`Learned`]: what a provider said is left of a key's limits, so that choice avoids a key before it refuses.
//!
//! Owns the memory of it; leaves reading the headers to `provider`. Limits are those of a model, so there is a slot for
//! each of a few; one that is not among them is simply not known. A race of two answers leaves the figures of either:
//! they are a hint, and the provider has the last word.
//!
//! What is used is kept as the moment at which all of it has come back, and how long all of it takes: it then fades by
//! itself, and what is sent meanwhile is added to it.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use crate::clock::Nanos;

/// Models remembered for each key; those of one remainder share a slot.
const SLOTS: usize = 4;

/// What is left of one limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Left {
    /// The limit.
    pub limit: u64,
    /// What remains of it.
    pub remaining: u64,
    /// When nothing will be used of it, if nothing more is.
    pub full_in: Duration,
}

/// What is left of a key's limits. Of several that count the same, the one most used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Room {
    /// Requests.
    pub requests: Option<Left>,
    /// Tokens.
    pub tokens: Option<Left>,
}

/// A model, as far as limits tell models apart: a hash of its name, never 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ModelTag(u64);

impl ModelTag {
    /// Of a model, or of requests that name none.
    #[must_use]
    pub fn of(model: Option<&str>) -> Self {
        // FNV-1a: a slot mixed up costs a hint.
        let hash = model
            .unwrap_or_default()
            .bytes()
            .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
        Self(hash | 1 << 63)
    }
}

/// What is known of a key for one model, at one moment.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Look {
    /// See [`Learned::rests_until`].
    pub rests_until: Nanos,
    /// See [`Learned::share`].
    pub share: f32,
    /// See [`Learned::has_room`].
    pub has_room: bool,
}

/// See the module. What is known of one model lies in one line of the processor's cache.
#[derive(Debug, Default)]
#[repr(align(64))]
pub struct Learned {
    slots: [Slot; SLOTS],
}

#[derive(Debug, Default)]
struct Slot {
    tag: AtomicU64,
    requests: Gauge,
    tokens: Gauge,
    /// The day's share for this model is gone until then.
    rests_until: AtomicU64,
}

#[derive(Debug, Default)]
struct Gauge {
    /// The bits of an `f32`, as is the next: looking at a gauge divides nothing.
    limit: AtomicU32,
    /// The share that comes back in a nanosecond.
    per_nano: AtomicU32,
    /// When everything used will have come back; 0 when nothing is known.
    full_at: AtomicU64,
    /// How long it takes for all of the limit to come back.
    window: AtomicU64,
}

impl Learned {
    /// All that choosing asks, at once.
    #[must_use]
    pub fn look(&self, now: Nanos, tag: ModelTag, tokens: u64) -> Look {
        let Some(slot) = self.slot(tag) else { return Look { rests_until: 0, share: 0.0, has_room: true } };
        let (requests, tokens) = (slot.requests.look(now, 1), slot.tokens.look(now, tokens));
        Look {
            rests_until: slot.rests_until.load(Ordering::Relaxed),
            share: requests.0.max(tokens.0),
            has_room: requests.1 && tokens.1,
        }
    }

    /// The share used, 0.0 to 1.0 and beyond, of the limit most used.
    #[must_use]
    pub fn share(&self, now: Nanos, tag: ModelTag) -> f32 {
        self.look(now, tag, 0).share
    }

    /// False when the provider would refuse a request of about `tokens` tokens, by what it said.
    #[must_use]
    pub fn has_room(&self, now: Nanos, tag: ModelTag, tokens: u64) -> bool {
        self.look(now, tag, tokens).has_room
    }

    /// Until when the key is not to be used for this model; 0 when it may be.
    #[must_use]
    pub fn rests_until(&self, tag: ModelTag) -> Nanos {
        self.slot(tag).map_or(0, |slot| slot.rests_until.load(Ordering::Relaxed))
    }

    /// Counts a request that is being sent.
    pub fn take(&self, now: Nanos, tag: ModelTag, tokens: u64) {
        if let Some(slot) = self.slot(tag) {
            slot.requests.take(now, 1);
            slot.tokens.take(now, tokens);
        }
    }

    /// Takes what a provider said.
    pub fn note(&self, now: Nanos, tag: ModelTag, room: Room) {
        let slot = self.claim(tag);
        slot.requests.set(now, room.requests);
        slot.tokens.set(now, room.tokens);
    }

    /// Keeps the key from this model until then.
    pub fn rest(&self, tag: ModelTag, until: Nanos) {
        self.claim(tag).rests_until.store(until, Ordering::Relaxed);
    }

    /// Forgets everything.
    pub fn clear(&self) {
        self.slots.iter().for_each(|slot| slot.tag.store(0, Ordering::Relaxed));
    }

    fn slot(&self, tag: ModelTag) -> Option<&Slot> {
        let slot = &self.slots[index(tag)];
        (slot.tag.load(Ordering::Relaxed) == tag.0).then_some(slot)
    }

    /// The slot of `tag`; it forgets what it knew of another model.
    fn claim(&self, tag: ModelTag) -> &Slot {
        let slot = &self.slots[index(tag)];
        if slot.tag.swap(tag.0, Ordering::Relaxed) != tag.0 {
            slot.requests.full_at.store(0, Ordering::Relaxed);
            slot.tokens.full_at.store(0, Ordering::Relaxed);
            slot.rests_until.store(0, Ordering::Relaxed);
        }
        slot
    }
}

#[expect(clippy::cast_possible_truncation, reason = "a remainder below SLOTS")]
fn index(tag: ModelTag) -> usize {
    (tag.0 % SLOTS as u64) as usize
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    clippy::cast_sign_loss,
    reason = "ratios for comparing keys, not accounts"
)]
impl Gauge {
    /// The share used, and whether there is room for so many units.
    fn look(&self, now: Nanos, units: u64) -> (f32, bool) {
        let ahead = self.full_at.load(Ordering::Relaxed).saturating_sub(now);
        if ahead == 0 {
            return (0.0, true);
        }
        // Signed numbers become floats in one step of the processor; none here is beyond them.
        let share = ahead.cast_signed() as f32 * f32::from_bits(self.per_nano.load(Ordering::Relaxed));
        let limit = f32::from_bits(self.limit.load(Ordering::Relaxed));
        // A millionth of the limit, and a thousandth of a unit, for the rounding.
        (share, (1.0 - share) * limit + limit * 1e-6 + 1e-3 >= units.cast_signed() as f32)
    }

    fn take(&self, now: Nanos, units: u64) {
        let full_at = self.full_at.load(Ordering::Relaxed);
        if full_at == 0 {
            return;
        }
        let limit = (f32::from_bits(self.limit.load(Ordering::Relaxed)) as u64).max(1);
        let cost = u128::from(self.window.load(Ordering::Relaxed)) * u128::from(units) / u128::from(limit);
        let cost = Nanos::try_from(cost).unwrap_or(Nanos::MAX);
        self.full_at.store(full_at.max(now).saturating_add(cost), Ordering::Relaxed);
    }

    fn set(&self, now: Nanos, left: Option<Left>) {
        let Some(Left { limit, remaining, full_in }) = left else {
            return self.full_at.store(0, Ordering::Relaxed);
        };
        let full_in = Nanos::try_from(full_in.as_nanos()).unwrap_or(Nanos::MAX / 2);
        let used = limit.saturating_sub(remaining);
        if used > 0 {
            let window = u128::from(full_in) * u128::from(limit) / u128::from(used);
            let window = Nanos::try_from(window).unwrap_or(Nanos::MAX);
            self.window.store(window, Ordering::Relaxed);
            self.per_nano.store((1.0 / window.max(1) as f32).to_bits(), Ordering::Relaxed);
        }
        self.limit.store((limit as f32).to_bits(), Ordering::Relaxed);
        // Known, and nothing used: the next request begins to count from the window of before.
        self.full_at.store(if used > 0 { now.saturating_add(full_in) } else { 1 }, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Nanos = 1_000_000_000;
    const SECOND: Nanos = 1_000_000_000;

    fn left(limit: u64, remaining: u64, full_in: u64) -> Option<Left> {
        Some(Left { limit, remaining, full_in: Duration::from_secs(full_in) })
    }

    #[test]
    fn what_is_used_comes_back() {
        let (learned, tag) = (Learned::default(), ModelTag::of(Some("gpt-4o")));
        assert_eq!((learned.share(NOW, tag), learned.has_room(NOW, tag, 1 << 40)), (0.0, true));
        learned.note(NOW, tag, Room { requests: left(100, 40, 36), tokens: left(1000, 900, 6) });
        for (after, share, most) in [(0, 0.6, 900), (3, 0.55, 950), (18, 0.3, 1 << 40), (36, 0.0, 1 << 40)] {
            let now = NOW + after * SECOND;
            assert!((learned.share(now, tag) - share).abs() < 1e-3, "{after}: {}", learned.share(now, tag));
            assert!(learned.has_room(now, tag, most), "{after}");
        }
        assert!(!learned.has_room(NOW, tag, 901));
        assert_eq!(learned.share(NOW, ModelTag::of(Some("o3"))), 0.0, "another model's");
    }

    #[test]
    fn nothing_left_until_one_comes_back() {
        let (learned, tag) = (Learned::default(), ModelTag::of(None));
        learned.note(NOW, tag, Room { requests: left(60, 0, 60), tokens: None });
        assert!(!learned.has_room(NOW, tag, 1));
        assert!(learned.has_room(NOW + SECOND, tag, 1), "one a second comes back");
        learned.take(NOW + SECOND, tag, 1);
        assert!(!learned.has_room(NOW + SECOND, tag, 1), "and was sent");
    }

    #[test]
    fn what_is_sent_counts_at_once() {
        let (learned, tag) = (Learned::default(), ModelTag::of(Some("m")));
        learned.note(NOW, tag, Room { requests: left(10, 9, 6), tokens: left(100, 90, 6) });
        learned.take(NOW, tag, 50);
        assert!((learned.share(NOW, tag) - 0.6).abs() < 1e-3);
        assert!(learned.has_room(NOW, tag, 40) && !learned.has_room(NOW, tag, 41));
        // A later word of the provider replaces it.
        learned.note(NOW, tag, Room { requests: left(10, 10, 0), tokens: left(100, 100, 0) });
        assert_eq!(learned.share(NOW, tag), 0.0);
    }

    #[test]
    fn a_model_can_rest_alone() {
        let (learned, pro, flash) = (Learned::default(), ModelTag::of(Some("pro")), ModelTag::of(Some("flash")));
        learned.rest(pro, 7);
        assert_eq!((learned.rests_until(pro), learned.rests_until(flash)), (7, 0));
        learned.clear();
        assert_eq!(learned.rests_until(pro), 0);
    }
}
