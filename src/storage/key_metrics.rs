//! What virtual keys used, as metrics: families that are read from the keys when somebody asks, and cost requests nothing.
//!
//! Owns how many keys are shown; leaves counting to [`KeyStats`].

use std::sync::Weak;
use std::sync::atomic::{AtomicU64, Ordering};

use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{CounterVec, Opts};

use super::shared::Shared;
use super::snapshot::KeyStats;

/// Keys that are shown by id, those that spent most; all others are one `other`.
const SHOWN: usize = 1000;
const OTHER: &str = "other";

/// A family: its name, its help, and what of a key it shows.
type Family = (&'static str, &'static str, fn(&KeyStats) -> f64);

const FAMILIES: [Family; 3] = [
    ("sidekey_key_cost_usd_total", "What virtual keys cost, US dollars.", |stats| read(&stats.spent_nano_usd) / 1e9),
    ("sidekey_key_requests_total", "Requests of virtual keys.", |stats| read(&stats.total_requests)),
    ("sidekey_key_tokens_total", "Tokens of virtual keys.", |stats| read(&stats.total_tokens)),
];

#[expect(clippy::cast_precision_loss, reason = "Prometheus has nothing finer")]
fn read(figure: &AtomicU64) -> f64 {
    figure.load(Ordering::Relaxed) as f64
}

/// The families of a store's keys.
#[derive(Clone, Debug)]
pub(super) struct KeyMetrics {
    descriptions: Vec<Desc>,
    shared: Weak<Shared>,
}

impl KeyMetrics {
    pub(super) fn new(shared: Weak<Shared>) -> Self {
        let descriptions =
            FAMILIES.iter().flat_map(|family| empty(family).desc().into_iter().cloned().collect::<Vec<_>>());
        Self { descriptions: descriptions.collect(), shared }
    }
}

fn empty((name, help, _): &Family) -> CounterVec {
    CounterVec::new(Opts::new(*name, *help), &["key_id"]).expect("the names and the label are valid")
}

impl Collector for KeyMetrics {
    fn desc(&self) -> Vec<&Desc> {
        self.descriptions.iter().collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let Some(shared) = self.shared.upgrade() else { return Vec::new() };
        let snapshot = shared.snapshot.load();
        let mut keys: Vec<_> = snapshot.virtual_keys().collect();
        // By how much each was used; the id makes an order of those that were not.
        keys.sort_by_cached_key(|key| {
            let [spent, requests] = [&key.stats.spent_nano_usd, &key.stats.total_requests];
            (std::cmp::Reverse([spent, requests].map(|figure| figure.load(Ordering::Relaxed))), key.record.id)
        });
        let (shown, others) = keys.split_at(keys.len().min(SHOWN));
        let family = |family: &Family| {
            let counters = empty(family);
            for key in shown {
                counters.with_label_values(&[&*key.record.id.to_string()]).inc_by((family.2)(&key.stats));
            }
            let rest = others.iter().map(|key| (family.2)(&key.stats)).sum();
            counters.with_label_values(&[OTHER]).inc_by(rest);
            counters.collect()
        };
        FAMILIES.iter().flat_map(family).collect()
    }
}
