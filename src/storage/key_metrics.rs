//! What virtual keys used since the start, as metrics: counted by the writer as entries are committed, and read when somebody
//! asks, so that requests pay nothing for it.
//!
//! Owns which keys and models have labels of their own.
//!
//! # Why first come, first served
//! Names of models come from clients, and there may be more keys than a scrape should have lines. A counter must not move
//! from one label to another either: what it had there would seem to have been used twice. So whoever is first gets a label
//! and keeps it, and what comes when there are no more is `other` from its first request on. A model gets one once it has
//! answered, so that made-up names get none.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{CounterVec, Opts};

use crate::entry::{Entry, Outcome};
use crate::id::{KeyId, is_name};

use super::shared::Shared;

/// Keys that have labels of their own.
const KEYS_MAX: usize = 1000;
/// Models of one key, and of all keys together.
const MODELS_MAX: usize = 32;
const PAIRS_MAX: usize = 4000;
const OTHER: &str = "other";
/// The model of requests that name none.
const NONE: &str = "none";

/// What was used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Used {
    requests: u64,
    tokens: u64,
    cost_nano_usd: u64,
}

impl Used {
    fn add(&mut self, entry: &Entry) {
        self.requests += 1;
        self.tokens += entry.tokens.billable();
        self.cost_nano_usd += entry.cost_nano_usd.unwrap_or(0);
    }
}

/// By model; few keys use many.
#[derive(Debug, Default)]
struct OfKey {
    models: Vec<(Arc<str>, Used)>,
    other: Used,
}

impl OfKey {
    fn place(&mut self, entry: &Entry, pairs: &mut usize) -> &mut Used {
        let model = entry.model_requested.as_ref().or(entry.model_reported.as_ref());
        let name = model.map_or(NONE, |model| model);
        if let Some(at) = self.models.iter().position(|(known, _)| **known == *name) {
            return &mut self.models[at].1;
        }
        // What is no name could be of any length.
        let known = model.is_none() || (entry.outcome == Outcome::Ok && is_name(name));
        if !known || self.models.len() >= MODELS_MAX || *pairs >= PAIRS_MAX {
            return &mut self.other;
        }
        *pairs += 1;
        let name = model.map_or_else(|| NONE.into(), Arc::clone);
        let at = self.models.len();
        self.models.push((name, Used::default()));
        &mut self.models[at].1
    }
}

/// What each key used of each model.
#[derive(Debug, Default)]
struct Counted {
    keys: HashMap<KeyId, OfKey>,
    /// Models of all keys.
    pairs: usize,
    /// Of keys without labels.
    others: Used,
}

impl Counted {
    fn add(&mut self, id: KeyId, entry: &Entry) {
        let full = self.keys.len() >= KEYS_MAX;
        let used = match self.keys.get_mut(&id) {
            Some(of_key) => of_key.place(entry, &mut self.pairs),
            None if full => &mut self.others,
            None => self.keys.entry(id).or_default().place(entry, &mut self.pairs),
        };
        used.add(entry);
    }

    /// Lets go of keys that are no more.
    fn keep(&mut self, exists: impl Fn(KeyId) -> bool) {
        self.keys.retain(|id, _| exists(*id));
        self.pairs = self.keys.values().map(|of_key| of_key.models.len()).sum();
    }
}

/// [`Counted`], between the writer and who asks.
#[derive(Debug, Default)]
pub(super) struct KeyUse(Mutex<Counted>);

impl KeyUse {
    /// Adds entries that were committed.
    pub(super) fn add<'a>(&self, entries: impl Iterator<Item = &'a Entry>) {
        let mut counted = self.lock();
        for entry in entries {
            if let Some(id) = entry.virtual_key {
                counted.add(id, entry);
            }
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Counted> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A family: its name, its help, whether by model, and what it shows.
type Family = (&'static str, &'static str, bool, fn(&Used) -> f64);

#[expect(clippy::cast_precision_loss, reason = "Prometheus has nothing finer")]
const FAMILIES: [Family; 3] = [
    ("sidekey_key_cost_usd_total", "What virtual keys cost, US dollars.", false, |used| {
        used.cost_nano_usd as f64 / 1e9
    }),
    ("sidekey_key_requests_total", "Requests of virtual keys, by model.", true, |used| used.requests as f64),
    ("sidekey_key_tokens_total", "Tokens of virtual keys, by model.", true, |used| used.tokens as f64),
];

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

fn empty((name, help, by_model, _): &Family) -> CounterVec {
    let labels: &[&str] = if *by_model { &["key_id", "model"] } else { &["key_id"] };
    CounterVec::new(Opts::new(*name, *help), labels).expect("the names and the labels are valid")
}

impl Collector for KeyMetrics {
    fn desc(&self) -> Vec<&Desc> {
        self.descriptions.iter().collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let Some(shared) = self.shared.upgrade() else { return Vec::new() };
        let mut counted = shared.key_use.lock();
        let snapshot = shared.snapshot.load();
        counted.keep(|id| snapshot.virtual_key(id).is_some());
        FAMILIES.iter().flat_map(|family| exposed(family, &counted)).collect()
    }
}

fn exposed(family: &Family, counted: &Counted) -> Vec<MetricFamily> {
    let (counters, (.., by_model, shown)) = (empty(family), family);
    let put = |key: &str, model: &str, used: &Used| {
        let labels: &[&str] = if *by_model { &[key, model] } else { &[key] };
        counters.with_label_values(labels).inc_by(shown(used));
    };
    put(OTHER, OTHER, &counted.others);
    for (id, of_key) in &counted.keys {
        let id = id.to_string();
        of_key.models.iter().for_each(|(model, used)| put(&id, model, used));
        if of_key.other != Used::default() {
            put(&id, OTHER, &of_key.other);
        }
    }
    counters.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::block::tests::entry as sample;

    fn id(n: u64) -> KeyId {
        KeyId::from_bytes(n.to_be_bytes())
    }

    fn entry(model: Option<&str>, outcome: Outcome) -> Entry {
        let tokens = crate::unit::Usage { total: Some(10), ..Default::default() };
        let model_requested = model.map(Into::into);
        Entry { model_requested, model_reported: None, outcome, tokens, cost_nano_usd: Some(7), ..sample(0) }
    }

    /// Of each family: label values and value.
    fn told(counted: &Counted) -> Vec<Vec<(Vec<String>, f64)>> {
        let lines = |family: &Family| {
            let families = exposed(family, counted);
            let metrics = families.iter().flat_map(MetricFamily::get_metric);
            let line = |metric: &prometheus::proto::Metric| {
                let labels = metric.get_label().iter().map(|pair| pair.value().to_owned());
                (labels.collect(), metric.get_counter().get_value())
            };
            metrics.map(line).collect()
        };
        FAMILIES.iter().map(lines).collect()
    }

    #[test]
    fn models_have_labels_once_they_answered() {
        use Outcome::{Ok, Refused, UpstreamError};
        let mut counted = Counted::default();
        let long = "m".repeat(1000);
        for (model, outcome) in [
            (Some("made-up"), UpstreamError),
            (Some("a"), Ok),
            (Some("a"), Refused),
            (Some("b"), Refused),
            (Some("b"), Ok),
            (Some(&*long), Ok),
            (None, Refused),
        ] {
            counted.add(id(1), &entry(model, outcome));
        }
        let [cost, requests, tokens] = told(&counted).try_into().unwrap();
        let find = |lines: &[(Vec<String>, f64)], labels: &[&str]| {
            lines.iter().find(|(of, _)| of == labels).map(|(_, value)| *value)
        };
        let key = id(1).to_string();
        for (model, want) in
            [("a", Some(2.0)), ("b", Some(1.0)), ("none", Some(1.0)), ("other", Some(3.0)), ("made-up", None)]
        {
            assert_eq!(find(&requests, &[&key, model]), want, "{model}");
            assert_eq!(find(&tokens, &[&key, model]), want.map(|requests| requests * 10.0), "{model}");
        }
        assert_eq!((requests.len(), find(&requests, &["other", "other"])), (5, Some(0.0)));
        let spent = find(&cost, &[&key]).unwrap();
        assert!((spent - 49e-9).abs() < 1e-15, "{spent}");
    }

    #[test]
    fn lines_are_bounded_and_counters_only_grow() {
        let mut counted = Counted::default();
        let mut before: HashMap<Vec<String>, f64> = HashMap::new();
        for round in 0..4 {
            // One key with ten thousand models, and ten thousand keys with some each.
            for n in 0..10_000_u64 {
                counted.add(id(0), &entry(Some(&format!("m{n}")), Outcome::Ok));
                counted.add(id(n), &entry(Some(&format!("m{}", n % 7 + round)), Outcome::Ok));
            }
            let lines = told(&counted);
            assert!(lines[0].len() <= KEYS_MAX + 1, "{}", lines[0].len());
            let bound = PAIRS_MAX + KEYS_MAX + 1;
            assert!(lines[1..].iter().all(|lines| lines.len() <= bound), "{}", lines[1].len());
            let sum: f64 = lines[1].iter().map(|(_, value)| value).sum();
            assert!((sum - 20_000.0 * (round + 1) as f64).abs() < 0.5, "{sum}");
            for (labels, value) in lines.into_iter().nth(1).unwrap() {
                let old = before.insert(labels.clone(), value).unwrap_or(0.0);
                assert!(value >= old, "{labels:?}");
            }
        }
        assert_eq!(counted.keys[&id(0)].models.len(), MODELS_MAX);
        // Those that are deleted make room.
        counted.keep(|key| key == id(5000));
        assert_eq!((counted.keys.len(), counted.pairs), (0, 0));
        counted.add(id(5000), &entry(None, Outcome::Ok));
        assert_eq!(told(&counted)[1].len(), 2);
    }
}
