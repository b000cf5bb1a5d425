//! Spans and metrics as OTLP's JSON (opentelemetry-proto 1.x, "JSON Protobuf Encoding").
//!
//! Owns the form. Its own few lines: the messages that could be generated, and what encodes them, are many times as much.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::names;
use crate::entry::{Entry, Outcome};
use crate::span::Ended;

/// Sets of attributes a metric may have between two exports; more are one `other`.
const SETS_MAX: usize = 2000;

/// Attributes in the making.
struct Attributes(Vec<Value>);

impl Attributes {
    fn text(&mut self, key: &str, value: Option<&str>) {
        self.0.extend(value.map(|value| json!({"key": key, "value": {"stringValue": value}})));
    }

    fn whole(&mut self, key: &str, value: Option<u64>) {
        // 64 bits are text in this encoding.
        self.0.extend(value.map(|value| json!({"key": key, "value": {"intValue": value.to_string()}})));
    }

    fn number(&mut self, key: &str, value: Option<f64>) {
        self.0.extend(value.map(|value| json!({"key": key, "value": {"doubleValue": value}})));
    }

    fn flag(&mut self, key: &str, value: bool) {
        self.0.push(json!({"key": key, "value": {"boolValue": value}}));
    }
}

/// Where a provider is.
pub(super) type Server = Option<(String, u16)>;

fn error_type(entry: &Entry) -> Option<String> {
    match entry.outcome {
        Outcome::Ok => None,
        outcome => Some(match (&entry.error_code, entry.status) {
            (Some(code), _) => code.to_string(),
            (None, status) if status >= 400 => status.to_string(),
            (None, _) => outcome.as_str().to_owned(),
        }),
    }
}

#[expect(clippy::cast_precision_loss, reason = "times and costs of requests are far below 2^52 units")]
pub(super) fn span(ended: &Ended, trace: u128, span: u64, server: Server) -> Value {
    let entry = &ended.entry;
    let model = entry.model_requested.as_deref();
    let operation = names::operation(&entry.endpoint);
    let mut attributes = Attributes(Vec::with_capacity(28));
    attributes.text(names::OPERATION, Some(operation));
    attributes.text(names::PROVIDER, Some(names::provider(&entry.provider)));
    attributes.text(names::REQUEST_MODEL, model);
    attributes.text(names::RESPONSE_MODEL, entry.model_reported.as_deref());
    attributes.flag(names::REQUEST_STREAM, entry.stream);
    attributes.whole(names::INPUT_TOKENS, entry.tokens.input);
    attributes.whole(names::OUTPUT_TOKENS, entry.tokens.output);
    attributes.whole(names::CACHE_READ_TOKENS, entry.tokens.cached_input);
    attributes.whole(names::CACHE_CREATION_TOKENS, entry.tokens.cache_write);
    attributes.whole(names::REASONING_TOKENS, entry.tokens.reasoning);
    attributes.number(names::FIRST_CHUNK, (entry.ttfb_us > 0).then(|| entry.ttfb_us as f64 / 1e6));
    attributes.whole(names::STATUS_CODE, Some(entry.status.into()));
    attributes.text(names::ERROR_TYPE, error_type(entry).as_deref());
    let (address, port) = server.unzip();
    attributes.text(names::SERVER_ADDRESS, address.as_deref());
    attributes.whole(names::SERVER_PORT, port.map(u64::from));
    attributes.text("sidekey.request.id", Some(&entry.request_id.to_string()));
    attributes.text("sidekey.key.id", entry.virtual_key.map(|id| id.to_string()).as_deref());
    attributes.text("sidekey.user", entry.user.as_deref());
    attributes.text("sidekey.team", entry.team.as_deref());
    attributes.text("sidekey.group", entry.group.as_deref());
    attributes.text("sidekey.provider_key.id", entry.provider_key.map(|id| id.to_string()).as_deref());
    attributes.text("sidekey.key_source", entry.key_source.map(|source| source.as_str()));
    attributes.text("sidekey.outcome", Some(entry.outcome.as_str()));
    attributes.text("sidekey.endpoint", Some(&entry.endpoint));
    attributes.number("sidekey.cost.usd", entry.cost_nano_usd.map(|nano| nano as f64 / 1e9));
    attributes.whole("sidekey.attempts", Some(entry.attempts.into()));
    attributes.number("sidekey.overhead", Some(entry.overhead_ns as f64 / 1e9));
    let name = model.map_or_else(|| operation.to_owned(), |model| format!("{operation} {model}"));
    let start = u128::from(entry.time_ms) * 1_000_000;
    let mut span = json!({
        "traceId": format!("{trace:032x}"),
        "spanId": format!("{span:016x}"),
        "name": name,
        // CLIENT: sidekey calls the provider.
        "kind": 3,
        "startTimeUnixNano": start.to_string(),
        "endTimeUnixNano": (start + u128::from(entry.latency_us) * 1_000).to_string(),
        "attributes": attributes.0,
        "status": if entry.outcome == Outcome::Ok { json!({}) } else { json!({"code": 2}) },
    });
    if let Some(parent) = ended.parent {
        span["parentSpanId"] = json!(format!("{:016x}", parent.span));
    }
    span
}

/// Who speaks.
pub(super) fn resource(service: &str) -> Value {
    let mut attributes = Attributes(Vec::new());
    attributes.text("service.name", Some(service));
    attributes.text("service.version", Some(env!("CARGO_PKG_VERSION")));
    json!({"attributes": attributes.0})
}

fn scope() -> Value {
    let mut attributes = Attributes(Vec::new());
    attributes.text("sidekey.conventions", Some(names::VERSION));
    json!({"name": "sidekey", "version": env!("CARGO_PKG_VERSION"), "attributes": attributes.0})
}

pub(super) fn traces(resource: &Value, spans: &[Value]) -> Value {
    json!({"resourceSpans": [{"resource": resource, "scopeSpans": [{"scope": scope(), "spans": spans}]}]})
}

/// Sums of one set of attributes since the last export.
#[derive(Debug)]
struct Histogram {
    attributes: Vec<Value>,
    count: u64,
    sum: f64,
    buckets: [u64; 15],
}

/// The metrics since the last export.
#[derive(Debug, Default)]
pub(super) struct Points {
    tokens: BTreeMap<String, Histogram>,
    durations: BTreeMap<String, Histogram>,
}

impl Points {
    #[expect(clippy::cast_precision_loss, reason = "tokens and times of requests are far below 2^52 units")]
    pub(super) fn add(&mut self, entry: &Entry, server: &Server) {
        let common = || {
            let mut attributes = Attributes(Vec::with_capacity(7));
            attributes.text(names::OPERATION, Some(names::operation(&entry.endpoint)));
            attributes.text(names::PROVIDER, Some(names::provider(&entry.provider)));
            attributes.text(names::REQUEST_MODEL, entry.model_requested.as_deref());
            attributes.text(names::RESPONSE_MODEL, entry.model_reported.as_deref());
            attributes.text(names::SERVER_ADDRESS, server.as_ref().map(|(host, _)| &**host));
            attributes.whole(names::SERVER_PORT, server.as_ref().map(|(_, port)| u64::from(*port)));
            attributes
        };
        for (kind, figure) in [("input", entry.tokens.input), ("output", entry.tokens.output)] {
            if let Some(tokens) = figure {
                let mut attributes = common();
                attributes.text(names::TOKEN_TYPE, Some(kind));
                observe(&mut self.tokens, attributes.0, &names::TOKEN_BOUNDS, tokens as f64);
            }
        }
        let mut attributes = common();
        attributes.text(names::ERROR_TYPE, error_type(entry).as_deref());
        observe(&mut self.durations, attributes.0, &names::SECOND_BOUNDS, entry.latency_us as f64 / 1e6);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.durations.is_empty()
    }

    /// What was counted from `since_ms` to `now_ms`.
    pub(super) fn export(&self, resource: &Value, since_ms: u64, now_ms: u64) -> Value {
        let times = (u128::from(since_ms) * 1_000_000, u128::from(now_ms) * 1_000_000);
        let metric = |name: &str, unit: &str, bounds: &[f64], points: &BTreeMap<String, Histogram>| {
            let points: Vec<Value> = points.values().map(|point| point.export(bounds, times)).collect();
            // Delta: what was told is not told again.
            json!({"name": name, "unit": unit, "histogram": {"aggregationTemporality": 1, "dataPoints": points}})
        };
        let metrics = json!([
            metric(names::TOKEN_USAGE, "{token}", &names::TOKEN_BOUNDS, &self.tokens),
            metric(names::DURATION, "s", &names::SECOND_BOUNDS, &self.durations),
        ]);
        json!({"resourceMetrics": [{"resource": resource, "scopeMetrics": [{"scope": scope(), "metrics": metrics}]}]})
    }
}

fn observe(points: &mut BTreeMap<String, Histogram>, attributes: Vec<Value>, bounds: &[f64; 14], value: f64) {
    let mut name = Value::from(attributes.clone()).to_string();
    let mut attributes = attributes;
    if points.len() >= SETS_MAX && !points.contains_key(&name) {
        name = "other".to_owned();
        let mut other = Attributes(Vec::new());
        other.text(names::REQUEST_MODEL, Some("other"));
        attributes = other.0;
    }
    let fresh = || Histogram { attributes, count: 0, sum: 0.0, buckets: [0; 15] };
    let point = points.entry(name).or_insert_with(fresh);
    point.count += 1;
    point.sum += value;
    point.buckets[bounds.iter().position(|bound| value <= *bound).unwrap_or(bounds.len())] += 1;
}

impl Histogram {
    fn export(&self, bounds: &[f64], (since, now): (u128, u128)) -> Value {
        json!({
            "attributes": self.attributes,
            "startTimeUnixNano": since.to_string(),
            "timeUnixNano": now.to_string(),
            "count": self.count.to_string(),
            "sum": self.sum,
            "bucketCounts": self.buckets.iter().map(ToString::to_string).collect::<Vec<_>>(),
            "explicitBounds": bounds,
        })
    }
}
