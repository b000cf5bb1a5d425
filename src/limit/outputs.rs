//! How long answers usually are, learned for each model that a virtual key calls.
//!
//! Owns the estimate where a request sets no bound itself; leaves reserving by it to [`super::Permit`].
//!
//! The mean and the mean deviation follow the answers as TCP's round-trip estimate follows round trips (RFC 6298 §2): an
//! eighth of each new one, a quarter of each new deviation. Mean plus two deviations is more than most answers have, so
//! that requests at the same time seldom overdraw together.

use std::sync::{Mutex, PoisonError};

/// Models remembered for each key; of more, the one not called for longest is forgotten.
const MODELS: usize = 16;
/// Answers seen before what they say is believed.
const ENOUGH: u32 = 4;
/// The least that is reserved: one short answer after many says little about the next.
const LEAST: u64 = 16;

/// What is known of one key's answers. At most some 400 bytes.
#[derive(Debug, Default)]
pub struct Outputs(Mutex<Vec<Model>>);

#[derive(Clone, Copy, Debug)]
struct Model {
    /// A hash of its name: two that share one only share an estimate.
    name: u64,
    seen: u32,
    mean: f32,
    deviation: f32,
}

impl Outputs {
    /// Output tokens that an answer of this model will hardly have more of; `None` while too few were seen.
    #[must_use]
    pub fn expected(&self, model: &str) -> Option<u64> {
        let name = hash(model);
        let models = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let known = models.iter().find(|known| known.name == name && known.seen >= ENOUGH)?;
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "an estimate, and never negative")]
        let expected = 2.0_f32.mul_add(known.deviation, known.mean).ceil() as u64;
        Some(expected.max(LEAST))
    }

    /// Notes an answer that came to its end.
    pub fn note(&self, model: &str, tokens: u64) {
        #[expect(clippy::cast_precision_loss, reason = "an estimate")]
        let tokens = tokens as f32;
        let name = hash(model);
        let mut models = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // The last called stands last.
        let mut known = match models.iter().position(|known| known.name == name) {
            Some(at) => models.remove(at),
            None => Model { name, seen: 0, mean: tokens, deviation: tokens / 2.0 },
        };
        if known.seen > 0 {
            known.deviation += ((tokens - known.mean).abs() - known.deviation) / 4.0;
            known.mean += (tokens - known.mean) / 8.0;
        }
        known.seen = known.seen.saturating_add(1);
        if models.len() == MODELS {
            models.remove(0);
        }
        models.push(known);
    }
}

fn hash(model: &str) -> u64 {
    let hash = blake3::hash(model.as_bytes());
    let mut out = [0; 8];
    out.copy_from_slice(&hash.as_bytes()[..8]);
    u64::from_le_bytes(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_follows_what_comes() {
        let outputs = Outputs::default();
        for (tokens, want) in [(100, None), (100, None), (100, None), (100, Some(143)), (100, Some(132))] {
            outputs.note("m", tokens);
            assert_eq!(outputs.expected("m"), want);
        }
        (0..50).for_each(|_| outputs.note("m", 100));
        assert_eq!(outputs.expected("m"), Some(101));
        (0..8).for_each(|_| outputs.note("m", 2_000));
        assert!(outputs.expected("m").unwrap() > 2_000, "it rises at once");
        (0..100).for_each(|_| outputs.note("m", 1));
        assert_eq!(outputs.expected("m"), Some(LEAST));
        assert_eq!(outputs.expected("other"), None);
    }

    #[test]
    fn it_covers_most_answers() {
        let outputs = Outputs::default();
        let mut random = 7_u64;
        let mut covered = 0;
        for n in 0..2_000 {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            // Between 50 and 849, evenly.
            let tokens = 50 + (random >> 33) % 800;
            covered += usize::from(n >= 100 && outputs.expected("m").is_some_and(|expected| tokens <= expected));
            outputs.note("m", tokens);
        }
        assert!(covered > 1_750, "{covered} of 1900");
    }

    #[test]
    fn memory_is_bounded() {
        let outputs = Outputs::default();
        let names: Vec<String> = (0..MODELS + 3).map(|n| format!("model-{n}")).collect();
        for _ in 0..5 {
            names.iter().for_each(|name| outputs.note(name, 10));
        }
        assert_eq!(outputs.0.lock().unwrap().len(), MODELS);
        (0..5).for_each(|_| outputs.note(&names[0], 10));
        names[1..].iter().take(MODELS - 1).for_each(|name| outputs.note(name, 10));
        assert!(outputs.expected(&names[0]).is_some(), "of those that are called it forgets none");
    }
}
