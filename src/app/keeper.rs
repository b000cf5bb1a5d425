//! What becomes of provider keys by itself: those in `error` are tested again, what rotations replaced is forgotten, and
//! leases end.
//!
//! Owns when; leaves the test to [`super::tester`] and what it means to `control`. It runs on the control plane's thread,
//! so that nothing of it can delay a request.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;
use std::time::Duration;

use prometheus::{IntCounterVec, Opts};
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;

use crate::audit::{Actor, Note};
use crate::clock::{Clock, Nanos};
use crate::control::{KeyTester, Leases, TestResult, Verdict, apply};
use crate::id::KeyId;
use crate::live::Live;
use crate::metrics::Metrics;
use crate::provider_key::{ProviderKeysSection, Status};
use crate::storage::Store;

/// How often it looks.
const TICK: Duration = Duration::from_secs(1);
/// Tests under way at most.
const TESTS_MAX: usize = 8;

/// See the module.
pub(super) struct Keeper {
    store: Store,
    tester: KeyTester,
    clock: Clock,
    section: Live<ProviderKeysSection>,
    leases: Arc<Leases>,
    tests: IntCounterVec,
    /// Keys in `error`.
    pending: HashMap<KeyId, Pending>,
}

impl std::fmt::Debug for Keeper {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Keeper").field("pending", &self.pending.len()).finish_non_exhaustive()
    }
}

/// A key that waits for its next test.
#[derive(Clone, Copy, Debug)]
struct Pending {
    /// The pause before the test that comes, without its jitter.
    pause: Duration,
    due: Nanos,
    running: bool,
}

impl Keeper {
    pub(super) fn new(
        store: Store,
        tester: KeyTester,
        clock: Clock,
        section: Live<ProviderKeysSection>,
        leases: Arc<Leases>,
        metrics: &Metrics,
    ) -> Self {
        let opts =
            Opts::new("sidekey_provider_key_retests_total", "Tests of provider keys in error, by what came of them.");
        let tests = IntCounterVec::new(opts, &["verdict"]).expect("the name and the label are valid");
        let tests = metrics.register(tests);
        for verdict in Verdict::ALL {
            tests.with_label_values(&[verdict.as_str()]);
        }
        Self { store, tester, clock, section, leases, tests, pending: HashMap::new() }
    }

    /// Works until dropped; that gives up the tests under way.
    pub(super) async fn work(mut self) {
        let mut tests = JoinSet::new();
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = tick.tick() => {
                    if let Err(error) = self.store.retire_replaced(self.clock.wall_ms()).await {
                        tracing::debug!(%error, "secrets that were replaced are kept for now");
                    }
                    self.leases.expire(&self.store, &self.clock).await;
                    if self.section.get().retest {
                        self.start_due(&mut tests);
                    }
                }
                Some(done) = tests.join_next(), if !tests.is_empty() => {
                    // A panic of a test is in the log already, by the hook; its key is not tested again.
                    if let Ok((id, version, result)) = done {
                        self.finish(id, version, &result);
                    }
                }
            }
        }
    }

    fn start_due(&mut self, tests: &mut JoinSet<(KeyId, u64, TestResult)>) {
        let now = self.clock.now();
        let snapshot = Arc::clone(&self.store.snapshot());
        let in_error =
            |id: KeyId| snapshot.provider_key(id).is_some_and(|key| key.standing(now).status == Status::Error);
        self.pending.retain(|id, pending| pending.running || in_error(*id));
        for key in snapshot.all_provider_keys().filter(|key| key.standing(now).status == Status::Error) {
            let id = key.record.id;
            let pending = match self.pending.entry(id) {
                Entry::Occupied(known) => known.into_mut(),
                Entry::Vacant(new) => {
                    let pause = self.section.get().retest_first;
                    new.insert(Pending { pause, due: now.saturating_add(jittered(pause)), running: false })
                }
            };
            if pending.running || now < pending.due || tests.len() >= TESTS_MAX {
                continue;
            }
            pending.running = true;
            let (test, version) = ((self.tester)(id), key.record.version);
            // It uses the key: what cannot be recorded is not done.
            let audit = self.store.audit();
            let note = Note::new(Actor::sidekey(), "provider_key.test", format!("provider_key {id}"));
            tests.spawn(async move {
                let result = match audit.record(note).await {
                    Ok(()) => test.await,
                    Err(error) => TestResult::unasked(&error.to_string()),
                };
                (id, version, result)
            });
        }
    }

    /// `version` is that of the record when the test began: one of a key that was rotated meanwhile says nothing.
    fn finish(&mut self, id: KeyId, version: u64, result: &TestResult) {
        self.tests.with_label_values(&[result.verdict.as_str()]).inc();
        let key = self.store.snapshot().provider_key(id).cloned();
        if let Some(key) = key.as_ref().filter(|key| key.record.version == version) {
            apply(&self.store, key, result, &self.clock);
        }
        let now = self.clock.now();
        let still = key.is_some_and(|key| key.standing(now).status == Status::Error);
        match self.pending.entry(id) {
            Entry::Occupied(mut known) if still => {
                let pending = known.get_mut();
                let pause = pending.pause.saturating_mul(2).min(self.section.get().retest_max);
                *pending = Pending { pause, due: now.saturating_add(jittered(pause)), running: false };
                tracing::debug!(%id, detail = result.detail, pause_s = pause.as_secs(), "a provider key is still in error");
            }
            Entry::Occupied(known) => drop(known.remove()),
            Entry::Vacant(_) => {}
        }
    }
}

/// A tenth more or less, so that keys that failed together are not tested together for ever.
fn jittered(pause: Duration) -> Nanos {
    let nanos = Nanos::try_from(pause.as_nanos()).unwrap_or(Nanos::MAX / 2);
    // Without randomness, and that is worse elsewhere, all wait alike.
    let dice = KeyId::random().map_or(100, |id| u64::from_be_bytes(*id.as_bytes()) % 201);
    nanos / 1_000 * (900 + dice)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jitter_stays_within_a_tenth() {
        let (least, most) = (54_000_000_000, 66_000_000_000);
        let all: Vec<Nanos> = (0..200).map(|_| jittered(Duration::from_secs(60))).collect();
        assert!(all.iter().all(|pause| (least..=most).contains(pause)), "{all:?}");
        assert!(all.iter().any(|pause| *pause != all[0]));
    }
}
