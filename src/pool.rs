//! Pools: named sets of provider keys, and the choice among keys that are equal in tier and priority.
//!
//! Owns the record and the policies; leaves who may use which key to `proxy::select`, and what keys go through to
//! `provider_key`.
//!
//! | policy | goes first |
//! |---|---|
//! | `least-used` | the lowest share of its limits used; then the fewest faults, the fewest open requests, the longest unused |
//! | `weighted` | whoever is furthest behind its share of the weights |
//! | `round-robin` | the longest unused |
//! | `random` | anyone |
//!
//! Under every policy a key without room, by its own limits or by what its provider said, goes behind those that have
//! some. A sticky pool sends what begins alike to one key, so that the provider's prompt cache serves it again: the
//! highest hash of beginning and key wins (rendezvous hashing), so that a key that comes or goes moves no others.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::clock::Nanos;
use crate::id::KeyId;
use crate::provider_key::{Health, Look, ModelTag};

/// Who goes first among equals.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum PoolPolicy {
    /// The lowest share of its limits used.
    #[default]
    LeastUsed,
    /// Anyone.
    Random,
    /// The longest unused.
    RoundRobin,
    /// In proportion to weights.
    Weighted,
}

impl PoolPolicy {
    /// Every one.
    pub const ALL: [Self; 4] = [Self::LeastUsed, Self::Random, Self::RoundRobin, Self::Weighted];

    /// The word.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::LeastUsed => "least-used",
            Self::Random => "random",
            Self::RoundRobin => "round-robin",
            Self::Weighted => "weighted",
        }
    }
}

impl fmt::Display for PoolPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for PoolPolicy {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|policy| policy.as_str() == text);
        found.ok_or_else(|| format!("{text:?} is no policy; use least-used, weighted, round-robin or random"))
    }
}

/// A named set of provider keys.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Pool {
    /// What people call it, and what virtual keys name it by.
    pub name: String,
    /// Its keys, of any provider.
    pub keys: Vec<KeyId>,
    /// Who goes first among equals.
    pub policy: PoolPolicy,
    /// True when requests that begin alike go to one key.
    pub sticky: bool,
}

/// The heaviest a key can be.
pub const MAX_WEIGHT: u32 = 1_000;
/// How far a key of weight 1 moves when it is chosen.
const STRIDE: u64 = 1 << 20;

/// What a choice is for.
#[derive(Clone, Copy, Debug)]
pub struct Wish {
    /// Monotonic time.
    pub now: Nanos,
    /// The model that will be called.
    pub tag: ModelTag,
    /// Tokens it is thought to need.
    pub tokens: u64,
    /// What requests that begin alike have in common, where they are to meet at one key.
    pub stick: Option<u64>,
    /// Any number, another for each request: what `random` is made of.
    pub seed: u64,
}

/// A key that may be chosen.
#[derive(Clone, Copy, Debug)]
pub struct Contender<'a> {
    /// Its id.
    pub id: KeyId,
    /// What it went through.
    pub health: &'a Health,
    /// Its share under `weighted`.
    pub weight: u32,
    /// The largest share used of its own limits, 0.0 to 1.0 and beyond when in debt.
    pub share: f32,
}

/// Chooses among keys of one tier and priority, and notes that the key's turn has come: gives its place among
/// `contenders`. `None` when none of them may be used now.
pub fn choose<'a>(
    policy: PoolPolicy,
    wish: &Wish,
    contenders: impl Iterator<Item = (usize, Contender<'a>)>,
) -> Option<usize> {
    let mut best: Option<(Rank, usize, &'a Health, u32)> = None;
    let (mut last_turn, mut last_pass, mut lightest) = (0, 0, MAX_WEIGHT);
    for (index, contender) in contenders {
        let health = contender.health;
        if !health.is_usable(wish.now) {
            continue;
        }
        let look = health.learned.look(wish.now, wish.tag, wish.tokens);
        if look.rests_until > wish.now {
            continue;
        }
        let (turn, pass) = health.turns();
        last_turn = last_turn.max(turn);
        last_pass = last_pass.max(pass);
        lightest = lightest.min(contender.weight.max(1));
        let rank = rank(policy, wish, &contender, &look, (turn, pass));
        if best.as_ref().is_none_or(|(first, ..)| rank < *first) {
            best = Some((rank, index, health, contender.weight));
        }
    }
    let (_, index, chosen, weight) = best?;
    // A key that was away has no claim to what it missed: it starts beside the others, at most one turn behind.
    let stride = STRIDE / u64::from(weight.max(1));
    let behind = last_pass.saturating_sub(STRIDE / u64::from(lightest));
    chosen.take_turn(last_turn + 1, chosen.turns().1.max(behind) + stride);
    Some(index)
}

/// The lower goes first: whether it is crowded and what its policy says, then what decides among equals.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Rank(u64, u64, u64);

fn rank(policy: PoolPolicy, wish: &Wish, contender: &Contender<'_>, look: &Look, (turn, pass): (u64, u64)) -> Rank {
    let Contender { id, health, share: own, .. } = contender;
    let crowded = u64::from(*own >= 1.0 || !look.has_room) << 63;
    let at_random = |seed: u64| mix(seed ^ u64::from_be_bytes(*id.as_bytes())) >> 1;
    if let Some(stick) = wish.stick {
        return Rank(crowded | at_random(stick), 0, 0);
    }
    match policy {
        PoolPolicy::LeastUsed => {
            let share = own.max(look.share);
            // The bits of a float that is not negative are in the order of its values.
            let troubles = u64::from(health.failures(wish.now)) << 32 | u64::from(health.in_flight());
            Rank(crowded | u64::from(share.max(0.0).to_bits()), troubles, turn)
        }
        PoolPolicy::Random => Rank(crowded | at_random(wish.seed), 0, 0),
        PoolPolicy::RoundRobin => Rank(crowded | turn, 0, 0),
        PoolPolicy::Weighted => Rank(crowded | pass, turn, 0),
    }
}

/// Spreads the bits of a number over all of it (the finaliser of SplitMix64).
fn mix(number: u64) -> u64 {
    let number = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ (number >> 31)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;
    use crate::provider_key::{Blow, Left, Room};

    const NOW: Nanos = 1_000_000_000;

    struct Key {
        id: KeyId,
        health: Health,
        weight: u32,
        share: f32,
    }

    fn keys(weights: &[u32]) -> Vec<Key> {
        let key = |(n, weight): (usize, &u32)| Key {
            id: KeyId::from_bytes([u8::try_from(n).unwrap(); 8]),
            health: Health::default(),
            weight: *weight,
            share: 0.0,
        };
        weights.iter().enumerate().map(key).collect()
    }

    fn wish(seed: u64) -> Wish {
        Wish { now: NOW, tag: ModelTag::of(Some("m")), tokens: 10, stick: None, seed }
    }

    fn pick(policy: PoolPolicy, wish: &Wish, keys: &[Key]) -> Option<usize> {
        let contenders = keys.iter().map(|Key { id, health, weight, share }| Contender {
            id: *id,
            health,
            weight: *weight,
            share: *share,
        });
        choose(policy, wish, contenders.enumerate())
    }

    fn shares(policy: PoolPolicy, keys: &[Key], rounds: u64) -> Vec<u64> {
        let mut counts = vec![0; keys.len()];
        for seed in 0..rounds {
            counts[pick(policy, &wish(seed), keys).expect("a key")] += 1;
        }
        counts
    }

    #[test]
    fn words() {
        for policy in PoolPolicy::ALL {
            assert_eq!(policy.as_str().parse(), Ok(policy));
            assert_eq!(serde_json::to_string(&policy).unwrap(), format!("\"{policy}\""));
        }
        assert!("fastest".parse::<PoolPolicy>().is_err());
    }

    #[test]
    fn without_limits_turns_are_even() {
        for policy in [PoolPolicy::LeastUsed, PoolPolicy::RoundRobin, PoolPolicy::Weighted] {
            let counts = shares(policy, &keys(&[1; 7]), 7_000);
            assert!(counts.iter().all(|count| *count == 1_000), "{policy}: {counts:?}");
        }
        let counts = shares(PoolPolicy::Random, &keys(&[1; 7]), 7_000);
        assert!(counts.iter().all(|count| (880..1_120).contains(count)), "random: {counts:?}");
    }

    #[test]
    fn weights_hold() {
        let weights = [1, 2, 3, 10, 84];
        let counts = shares(PoolPolicy::Weighted, &keys(&weights), 10_000);
        for (count, weight) in counts.iter().zip(weights) {
            // To the turn: a share is never further from its weight than one request.
            assert!(count.abs_diff(u64::from(weight) * 100) <= 1, "{counts:?}");
        }
    }

    #[test]
    fn a_key_that_was_away_has_missed_its_turns() {
        let mut keys = keys(&[1, 1, 1]);
        let late = keys.pop().unwrap();
        shares(PoolPolicy::Weighted, &keys, 1_000);
        keys.push(late);
        let counts = shares(PoolPolicy::Weighted, &keys, 300);
        assert!(counts.iter().all(|count| (98..=102).contains(count)), "{counts:?}");
    }

    #[test]
    fn the_least_used_goes_first() {
        let mut keys = keys(&[1, 1, 1]);
        let room = |remaining| Room {
            requests: Some(Left { limit: 100, remaining, full_in: Duration::from_secs(30) }),
            tokens: None,
        };
        let wish = wish(0);
        for (key, remaining) in keys.iter().zip([10, 80, 50]) {
            key.health.learned.note(NOW, wish.tag, room(remaining));
        }
        assert_eq!(pick(PoolPolicy::LeastUsed, &wish, &keys), Some(1));
        keys[1].share = 0.6;
        assert_eq!(pick(PoolPolicy::LeastUsed, &wish, &keys), Some(2), "its own limits count as well");
        // What has no room goes last, whatever the policy.
        keys[2].health.learned.note(NOW, wish.tag, room(0));
        keys[1].health.learned.note(NOW, wish.tag, room(0));
        for policy in PoolPolicy::ALL {
            for _ in 0..5 {
                assert_eq!(pick(policy, &wish, &keys), Some(0), "{policy}");
            }
        }
        keys[0].health.learned.note(NOW, wish.tag, room(0));
        assert!(pick(PoolPolicy::LeastUsed, &wish, &keys).is_some(), "a hint is no refusal");
    }

    #[test]
    fn open_requests_and_faults_decide_among_equals() {
        let mut keys = keys(&[1, 1]);
        assert_eq!(keys[0].health.enter(NOW), Some(false));
        assert_eq!((0..4).map(|n| pick(PoolPolicy::LeastUsed, &wish(n), &keys).unwrap()).collect::<Vec<_>>(), [1; 4]);
        keys[1].health.struck(Blow::Fault, None, "500", NOW, 0);
        assert_eq!(pick(PoolPolicy::LeastUsed, &wish(0), &keys), Some(0), "a fault weighs more");
        keys[1].health.succeeded(NOW, 0);
        keys[0].share = 1.0;
        assert_eq!(pick(PoolPolicy::RoundRobin, &wish(0), &keys), Some(1), "no room");
    }

    #[test]
    fn what_rests_is_not_chosen() {
        let keys = keys(&[1, 1]);
        keys[0].health.struck(Blow::Refused, None, "401", NOW, 0);
        keys[1].health.learned.rest(ModelTag::of(Some("m")), NOW + 5);
        assert_eq!(pick(PoolPolicy::LeastUsed, &wish(0), &keys), None);
        let other = Wish { tag: ModelTag::of(Some("other")), ..wish(0) };
        assert_eq!(pick(PoolPolicy::LeastUsed, &other, &keys), Some(1), "only that model rests");
        assert_eq!(pick(PoolPolicy::LeastUsed, &Wish { now: NOW + 6, ..wish(0) }, &keys), Some(1));
    }

    proptest! {
        /// Whatever sticks together stays together when another key goes, and goes back when it returns.
        #[test]
        fn sticking(stick in any::<u64>(), count in 2..20_usize, seed in any::<u64>()) {
            let keys = keys(&vec![1; count]);
            let wish = Wish { stick: Some(stick), ..wish(seed) };
            let first = pick(PoolPolicy::Random, &wish, &keys).unwrap();
            prop_assert_eq!(pick(PoolPolicy::LeastUsed, &wish, &keys), Some(first));
            let other = (first + 1) % count;
            keys[other].health.struck(Blow::Refused, None, "401", NOW, 0);
            prop_assert_eq!(pick(PoolPolicy::Random, &wish, &keys), Some(first));
            keys[first].health.struck(Blow::Cool, None, "429", NOW, 0);
            let second = pick(PoolPolicy::Random, &wish, &keys);
            prop_assert!(second != Some(first) && (count == 2) == second.is_none());
            keys[first].health.clear();
            prop_assert_eq!(pick(PoolPolicy::Random, &wish, &keys), Some(first));
        }

        /// Least-used keeps shares within 5 % of each other at equal limits, weighted within 2 % of its weights,
        /// whatever is refilled in between.
        #[test]
        fn shares_are_fair(weights in proptest::collection::vec(1..=20_u32, 2..8), pause in 0..20_000_000_u64) {
            let rounds = 10_000;
            let mut equal = keys(&vec![1; weights.len()]);
            let mut counts = vec![0_u64; equal.len()];
            let mut wish = wish(1);
            for _ in 0..rounds {
                let chosen = pick(PoolPolicy::LeastUsed, &wish, &equal).unwrap();
                counts[chosen] += 1;
                equal[chosen].share += 1.0 / 600.0;
                #[expect(clippy::cast_precision_loss, reason = "minutes of less than one")]
                let refilled = pause as f32 / 60e9;
                equal.iter_mut().for_each(|key| key.share = (key.share - refilled).max(0.0));
                wish.now += pause;
            }
            let even = rounds / equal.len() as u64;
            prop_assert!(counts.iter().all(|count| count.abs_diff(even) * 20 <= even), "{:?}", counts);
            let total: u64 = weights.iter().map(|weight| u64::from(*weight)).sum();
            let counts = shares(PoolPolicy::Weighted, &keys(&weights), rounds);
            for (count, weight) in counts.iter().zip(&weights) {
                let want = rounds * u64::from(*weight) / total;
                prop_assert!(count.abs_diff(want) * 50 <= want.max(50), "{:?} of {:?}", counts, weights);
            }
        }
    }
}
