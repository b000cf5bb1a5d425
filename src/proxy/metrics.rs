//! What the request path counts. Handles are looked up once per provider, so a request only adds to atomics.

use prometheus::core::Collector;
use prometheus::proto::{Metric, MetricFamily};
use prometheus::{
    Counter, CounterVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, Opts,
};

use crate::activity::{Buckets, Counts};
use crate::entry::{Entry, Outcome};
use crate::id::{KeySource, ScopeId};
use crate::limit::{Kind, Refused};
use crate::metrics::Metrics;
use crate::provider::Action;
use crate::virtual_key::Rejection;

/// Families of the request path.
#[derive(Clone, Debug)]
pub(super) struct Families {
    requests: IntCounterVec,
    tokens: IntCounterVec,
    cost: CounterVec,
    unpriced: IntCounterVec,
    refusals: IntCounterVec,
    limited: IntCounterVec,
    rejections: IntCounterVec,
    duration: HistogramVec,
    first_byte: HistogramVec,
    overhead: HistogramVec,
    failovers: IntCounterVec,
    answers: IntCounterVec,
    sources: IntCounterVec,
    /// Responses being relayed.
    pub(super) in_flight: IntGauge,
    /// Refused before anybody knew for whom: no account was opened. A figure of [`Families::counts`] alone.
    pub(super) strangers: IntCounter,
}

/// The handles of one provider.
#[derive(Debug)]
pub(super) struct ProviderMetrics {
    outcomes: [IntCounter; 5],
    tokens: [IntCounter; 5],
    cost: Counter,
    unpriced: IntCounter,
    duration: Histogram,
    first_byte: Histogram,
    overhead: Histogram,
    /// Requests that went on to another provider key.
    pub(super) failovers: IntCounter,
    /// Requests that a route led on to another target.
    pub(super) moved_on: IntCounter,
    answers: [IntCounter; Action::ALL.len()],
    sources: [IntCounter; SOURCES.len()],
}

const SOURCES: [KeySource; 3] = [KeySource::User, KeySource::Team, KeySource::System];

const OUTCOMES: [Outcome; 5] =
    [Outcome::Ok, Outcome::Refused, Outcome::UpstreamError, Outcome::ClientDisconnected, Outcome::AbortedByDrain];

impl Families {
    pub(super) fn new(metrics: &Metrics) -> Self {
        let counter = |name: &str, help: &str, labels: &[&str]| {
            // Names and labels are constants of this file.
            let family = IntCounterVec::new(Opts::new(name, help), labels).expect("a valid family");
            metrics.register(family)
        };
        let histogram = |name: &str, help: &str, buckets: Vec<f64>| {
            let options = HistogramOpts::new(name, help).buckets(buckets);
            metrics.register(HistogramVec::new(options, &["provider"]).expect("a valid family"))
        };
        let cost = Opts::new("sidekey_cost_usd_total", "What requests cost, US dollars.");
        let cost = CounterVec::new(cost, &["provider"]).expect("a valid family");
        let in_flight = IntGauge::new("sidekey_streams_in_flight", "Responses being relayed.").expect("a valid gauge");
        let families = Self {
            requests: counter("sidekey_requests_total", "Requests by how they ended.", &["provider", "outcome"]),
            tokens: counter("sidekey_tokens_total", "Tokens by kind.", &["provider", "type"]),
            cost: metrics.register(cost),
            unpriced: counter(
                "sidekey_unpriced_requests_total",
                "Requests that consumed tokens of a model without a price.",
                &["provider"],
            ),
            refusals: counter("sidekey_refusals_total", "Requests sidekey refused, by code.", &["code"]),
            limited: counter(
                "sidekey_limit_refusals_total",
                "Requests that a limit refused, by whose limit and which.",
                &["scope", "limit"],
            ),
            rejections: counter(
                "sidekey_key_validation_failures_total",
                "Virtual keys not accepted, by reason.",
                &["reason"],
            ),
            duration: histogram("sidekey_request_duration_seconds", "From head to last byte.", seconds()),
            first_byte: histogram("sidekey_time_to_first_byte_seconds", "From head to the answer's head.", seconds()),
            overhead: histogram("sidekey_overhead_seconds", "What sidekey itself added before sending.", micros()),
            failovers: counter(
                "sidekey_failovers_total",
                "Requests that went on to another provider key, or from a provider to a route's next target.",
                &["provider", "to"],
            ),
            answers: counter(
                "sidekey_provider_answers_total",
                "Answers of providers, by what they meant for the key.",
                &["provider", "action"],
            ),
            sources: counter("sidekey_key_source_total", "Requests by the tier that paid.", &["provider", "source"]),
            in_flight: metrics.register(in_flight),
            strangers: IntCounter::new("strangers", "not exposed").expect("a valid counter"),
        };
        for scope in ScopeId::KINDS {
            for limit in Kind::NAMES {
                families.limited.with_label_values(&[scope, limit]);
            }
        }
        for reason in Rejection::ALL {
            families.rejections.with_label_values(&[reason.as_str()]);
        }
        families
    }

    /// The handles of `provider`.
    pub(super) fn provider(&self, provider: &str) -> ProviderMetrics {
        let tokens = |kind: &str| self.tokens.with_label_values(&[provider, kind]);
        ProviderMetrics {
            outcomes: OUTCOMES.map(|outcome| self.requests.with_label_values(&[provider, outcome.as_str()])),
            tokens: ["input", "cache_read", "cache_creation", "output", "reasoning"].map(tokens),
            cost: self.cost.with_label_values(&[provider]),
            unpriced: self.unpriced.with_label_values(&[provider]),
            duration: self.duration.with_label_values(&[provider]),
            first_byte: self.first_byte.with_label_values(&[provider]),
            overhead: self.overhead.with_label_values(&[provider]),
            failovers: self.failovers.with_label_values(&[provider, "key"]),
            moved_on: self.failovers.with_label_values(&[provider, "target"]),
            answers: Action::ALL.map(|action| self.answers.with_label_values(&[provider, action.as_str()])),
            sources: SOURCES.map(|source| self.sources.with_label_values(&[provider, source.as_str()])),
        }
    }

    /// Counts a virtual key that was not accepted.
    pub(super) fn rejected(&self, reason: Rejection) {
        self.rejections.with_label_values(&[reason.as_str()]).inc();
    }

    /// Counts what a limit refused.
    pub(super) fn limited(&self, refused: &Refused) {
        self.limited.with_label_values(&[refused.scope.kind(), refused.limit.as_str()]).inc();
    }

    /// All providers together, up to now.
    pub(super) fn counts(&self) -> Counts {
        let mut counts = Counts {
            refused: self.strangers.get(),
            in_flight: u64::try_from(self.in_flight.get()).unwrap_or(0),
            ..Counts::default()
        };
        for (outcome, requests) in labelled(&self.requests.collect(), "outcome") {
            let sum = match outcome.as_str() {
                "ok" => &mut counts.ok,
                "refused" => &mut counts.refused,
                _ => &mut counts.failed,
            };
            *sum += requests;
        }
        for (kind, tokens) in labelled(&self.tokens.collect(), "type") {
            let sum = match kind.as_str() {
                "input" => &mut counts.input,
                "cache_read" => &mut counts.cached_input,
                "output" => &mut counts.output,
                // Parts of these.
                _ => continue,
            };
            *sum += tokens;
        }
        let costs = self.cost.collect();
        let cost: f64 = metrics_of(&costs).map(|metric| metric.get_counter().get_value()).sum();
        counts.cost_nano_usd = whole(cost * 1e9);
        counts.first_byte = buckets(&self.first_byte.collect());
        counts
    }

    /// Counts a refusal.
    pub(super) fn refused(&self, code: &str) {
        self.refusals.with_label_values(&[code]).inc();
    }
}

impl ProviderMetrics {
    /// Counts an answer by what it meant.
    pub(super) fn judged(&self, action: Action) {
        self.answers[action as usize].inc();
    }

    /// Counts an ended request.
    #[expect(clippy::cast_precision_loss, reason = "times and costs of requests are far below 2^52 units")]
    pub(super) fn record(&self, entry: &Entry) {
        for (outcome, counter) in OUTCOMES.iter().zip(&self.outcomes) {
            if *outcome == entry.outcome {
                counter.inc();
            }
        }
        if let Some(source) = entry.key_source {
            self.sources[source as usize].inc();
        }
        let usage = &entry.tokens;
        let figures = [usage.input, usage.cached_input, usage.cache_write, usage.output, usage.reasoning];
        for (counter, figure) in self.tokens.iter().zip(figures) {
            if let Some(tokens) = figure {
                counter.inc_by(tokens);
            }
        }
        match entry.cost_nano_usd {
            Some(cost) => self.cost.inc_by(cost as f64 / 1e9),
            None if usage.billable() > 0 => self.unpriced.inc(),
            None => {}
        }
        self.duration.observe(entry.latency_us as f64 / 1e6);
        if entry.attempts > 0 {
            self.first_byte.observe(entry.ttfb_us as f64 / 1e6);
            self.overhead.observe(entry.overhead_ns as f64 / 1e9);
        }
    }
}

fn metrics_of(families: &[MetricFamily]) -> impl Iterator<Item = &Metric> {
    families.iter().flat_map(MetricFamily::get_metric)
}

/// Counters by the value of one of their labels.
fn labelled<'a>(families: &'a [MetricFamily], label: &'a str) -> impl Iterator<Item = (String, u64)> + 'a {
    metrics_of(families).filter_map(move |metric| {
        let label = metric.get_label().iter().find(|pair| pair.name() == label)?;
        Some((label.value().to_owned(), whole(metric.get_counter().get_value())))
    })
}

fn buckets(families: &[MetricFamily]) -> Buckets {
    let mut sum = Buckets::default();
    for metric in metrics_of(families) {
        let histogram = metric.get_histogram();
        let buckets = histogram.get_bucket().iter();
        sum.add_cumulative(
            buckets.map(|bucket| (bucket.upper_bound(), bucket.cumulative_count())),
            histogram.get_sample_count(),
        );
    }
    sum
}

/// A counter's value as the whole number it is.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a counter is not negative, and far below 2^64"
)]
fn whole(value: f64) -> u64 {
    value.round() as u64
}

/// Doubling from 10 ms to 82 s, as the GenAI conventions of OpenTelemetry have them.
fn seconds() -> Vec<f64> {
    (0..14).map(|n| 0.01 * f64::from(1 << n)).collect()
}

/// From 5 µs to 10 ms.
fn micros() -> Vec<f64> {
    vec![5e-6, 1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 1e-2]
}
