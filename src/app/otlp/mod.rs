//! Traces and metrics for a collector: OTLP over HTTP, in JSON.
//!
//! Owns gathering ended requests and sending them on, on the thread of the control plane: a collector that is slow or gone
//! costs requests nothing, only spans, and how many is counted.

mod encode;
mod names;

use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use bytes::Bytes;
use http::header::{CONTENT_TYPE, HOST, HeaderName, HeaderValue, USER_AGENT};
use http::{Method, Request, Uri};
use prometheus::{IntCounterVec, Opts};
use tokio::sync::mpsc::Receiver;
use tokio::time::MissedTickBehavior;

use self::encode::{Points, Server};
use crate::clock::{Clock, Nanos};
use crate::config::{Environment, TelemetrySection};
use crate::live::Live;
use crate::metrics::Metrics;
use crate::net::body::{Chunks, Outgoing};
use crate::net::dial::{Dialer, Origin, Reach};
use crate::net::upstream::Pool;
use crate::provider::Registry;
use crate::proxy::error_text;
use crate::span::{Ended, Spans};

/// Spans in one message.
const BATCH: usize = 512;
const TICK: Duration = Duration::from_secs(1);
/// Metrics go out this often.
const METRICS_EVERY: Nanos = 10_000_000_000;
/// For one message, connecting included.
const PATIENCE: Duration = Duration::from_secs(10);
/// After a failure it is tried again after one second, then after twice as long each time.
const PAUSE_MAX: Nanos = 30_000_000_000;
const SECOND: Nanos = 1_000_000_000;

const SENT: &str = "sent";
const DROPPED: &str = "dropped";
const UNSAMPLED: &str = "unsampled";

/// Sends spans and metrics to one collector.
#[derive(Debug)]
pub(super) struct Exporter {
    waiting: Receiver<Box<Ended>>,
    batch: Vec<Ended>,
    points: Points,
    since_ms: u64,
    metrics_due: Nanos,
    resume: Nanos,
    pause: Nanos,
    target: Target,
    resource: serde_json::Value,
    sample_percent: u8,
    spans: IntCounterVec,
    registry: Live<Registry>,
    clock: Clock,
}

/// Where to.
#[derive(Debug)]
struct Target {
    pool: Arc<Pool>,
    authority: HeaderValue,
    path: String,
    headers: Vec<(HeaderName, HeaderValue)>,
}

/// A message that was not taken.
struct Untaken {
    /// Another try may help.
    again: bool,
    why: String,
}

/// Declares the family, and makes both ends of the queue, where a collector is named.
pub(super) fn start(
    section: &TelemetrySection,
    environment: Option<&Environment>,
    dialer: &Dialer,
    registry: &Live<Registry>,
    clock: &Clock,
    metrics: &Metrics,
) -> (Option<Spans>, Option<Exporter>) {
    let opts = Opts::new("sidekey_otlp_spans_total", "Ended requests handed to the exporter of traces, by result.");
    let spans = metrics.register(IntCounterVec::new(opts, &["result"]).expect("a valid family"));
    for result in [SENT, DROPPED, UNSAMPLED] {
        spans.with_label_values(&[result]);
    }
    let said = |name| environment.and_then(|environment| environment.get(name));
    let endpoint = match &section.otlp_endpoint {
        Some(endpoint) => Some(endpoint.as_str()),
        None => said("OTEL_EXPORTER_OTLP_ENDPOINT").filter(|_| said("OTEL_SDK_DISABLED") != Some("true")),
    };
    let Some(endpoint) = endpoint else { return (None, None) };
    if let Some(protocol) = said("OTEL_EXPORTER_OTLP_PROTOCOL").filter(|said| !said.starts_with("http/")) {
        tracing::warn!(protocol, "OTEL_EXPORTER_OTLP_PROTOCOL: only http is spoken; no traces are sent");
        return (None, None);
    }
    let target = match Target::new(endpoint, said("OTEL_EXPORTER_OTLP_HEADERS"), dialer, clock) {
        Ok(target) => target,
        Err(why) => {
            tracing::warn!("no traces are sent: {why}");
            return (None, None);
        }
    };
    let (handle, waiting) = Spans::new(spans.with_label_values(&[DROPPED]));
    let service = section.service_name.as_deref().or_else(|| said("OTEL_SERVICE_NAME")).unwrap_or("sidekey");
    let exporter = Exporter {
        waiting,
        batch: Vec::with_capacity(BATCH),
        points: Points::default(),
        since_ms: clock.wall_ms(),
        metrics_due: clock.now().saturating_add(METRICS_EVERY),
        resume: 0,
        pause: SECOND,
        target,
        resource: encode::resource(service),
        sample_percent: section.sample_percent,
        spans,
        registry: registry.clone(),
        clock: clock.clone(),
    };
    (Some(handle), Some(exporter))
}

/// An endpoint's parts, or why it is none.
///
/// # Errors
/// When it is no http(s) URL.
fn parts(endpoint: &str) -> Result<(Uri, bool), String> {
    // It is not repeated: it may hold a password.
    let uri: Uri = endpoint.parse().map_err(|error| format!("the endpoint is no URL ({error})"))?;
    match (uri.scheme_str(), uri.host(), uri.query()) {
        (Some("http"), Some(_), None) => Ok((uri, false)),
        (Some("https"), Some(_), None) => Ok((uri, true)),
        _ => Err("the endpoint is no collector; write http://host:4318 or https://host".to_owned()),
    }
}

impl Target {
    fn new(endpoint: &str, headers: Option<&str>, dialer: &Dialer, clock: &Clock) -> Result<Self, String> {
        let (uri, tls) = parts(endpoint)?;
        let host = uri.host().unwrap_or_default();
        let authority = uri.authority().map_or(host, |authority| authority.as_str());
        let (credentials, authority) =
            authority.rsplit_once('@').map_or((None, authority), |(user, at)| (Some(user), at));
        let port = uri.port_u16().unwrap_or(if tls { 443 } else { 80 });
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        let origin = Origin { host: bare.into(), port, tls, http2: false, reach: Reach::Any };
        let mut said = headers.map(parse_headers).transpose()?.unwrap_or_default();
        if let Some(credentials) = credentials {
            let encoded = base64::engine::general_purpose::STANDARD.encode(credentials);
            let mut value = HeaderValue::try_from(format!("Basic {encoded}")).map_err(|error| error.to_string())?;
            value.set_sensitive(true);
            said.push((http::header::AUTHORIZATION, value));
        }
        Ok(Self {
            pool: Arc::new(Pool::new(origin, dialer.clone(), PATIENCE, clock.clone())),
            authority: HeaderValue::try_from(authority).map_err(|error| error.to_string())?,
            path: uri.path().trim_end_matches('/').to_owned(),
            headers: said,
        })
    }

    async fn post(&self, signal: &str, message: &serde_json::Value) -> Result<(), Untaken> {
        let never = |error: &dyn std::fmt::Display| Untaken { again: false, why: error.to_string() };
        let mut chunks = Chunks::default();
        chunks.push(Bytes::from(message.to_string()));
        let mut request = Request::new(Outgoing::Held(chunks));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = Uri::try_from(format!("{}/v1/{signal}", self.path)).map_err(|error| never(&error))?;
        let headers = request.headers_mut();
        headers.insert(HOST, self.authority.clone());
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(USER_AGENT, HeaderValue::from_static(concat!("sidekey/", env!("CARGO_PKG_VERSION"))));
        headers.extend(self.headers.iter().cloned());
        let mut response = match tokio::time::timeout(PATIENCE, self.pool.send(Box::new(request))).await {
            Ok(Ok(response)) => response,
            Ok(Err(error)) => return Err(Untaken { again: true, why: error.to_string() }),
            Err(_) => return Err(Untaken { again: true, why: format!("no answer within {} s", PATIENCE.as_secs()) }),
        };
        let status = response.status();
        // To its end, so that the connection can be used again; nothing in it is repeated.
        drop(error_text(&mut response, PATIENCE).await);
        match status.as_u16() {
            200..300 => Ok(()),
            429 | 502..=504 => Err(Untaken { again: true, why: format!("it answers {status}") }),
            _ => Err(Untaken { again: false, why: format!("it answers {status}") }),
        }
    }
}

/// `name=value,name=value`, as `OTEL_EXPORTER_OTLP_HEADERS` has them. An error does not repeat values.
fn parse_headers(text: &str) -> Result<Vec<(HeaderName, HeaderValue)>, String> {
    let parse = |pair: &str| {
        let (name, value) = pair.split_once('=')?;
        let mut value = HeaderValue::try_from(decoded(value.trim())).ok()?;
        value.set_sensitive(true);
        Some((name.trim().parse().ok()?, value))
    };
    let pairs = text.split(',').filter(|pair| !pair.trim().is_empty());
    pairs
        .map(|pair| parse(pair).ok_or_else(|| "OTEL_EXPORTER_OTLP_HEADERS is not name=value,name=value".to_owned()))
        .collect()
}

/// With `%20` and its like undone (W3C Baggage §3.3.1.3).
fn decoded(text: &str) -> String {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, tail)) = rest.split_first() {
        let hex = (*first == b'%').then(|| tail.get(..2)).flatten().and_then(|hex| std::str::from_utf8(hex).ok());
        match hex.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            Some(byte) => {
                out.push(byte);
                rest = &tail[2..];
            }
            None => {
                out.push(*first);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

impl Exporter {
    /// Gathers and sends until dropped.
    pub(super) async fn work(&mut self) {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                Some(ended) = self.waiting.recv(), if self.batch.len() < BATCH => {
                    self.take(ended);
                    if self.batch.len() < BATCH {
                        continue;
                    }
                }
                _ = tick.tick() => {}
            }
            if self.clock.now() >= self.resume {
                let metrics = self.clock.now() >= self.metrics_due;
                self.send(metrics).await;
            }
        }
    }

    /// Sends what is left.
    pub(super) async fn finish(&mut self) {
        loop {
            while self.batch.len() < BATCH
                && let Ok(ended) = self.waiting.try_recv()
            {
                self.take(ended);
            }
            let all = self.batch.len() < BATCH;
            self.send(all).await;
            if all || !self.batch.is_empty() {
                return;
            }
        }
    }

    fn take(&mut self, ended: Box<Ended>) {
        self.points.add(&ended.entry, &self.server(&ended.entry.provider));
        if self.is_sampled(&ended) {
            self.batch.push(*ended);
        } else {
            self.spans.with_label_values(&[UNSAMPLED]).inc();
        }
    }

    /// As the client decided; where it has not, by the ids, so that one trace is decided once.
    fn is_sampled(&self, ended: &Ended) -> bool {
        let share = || ended.entry.request_id.random_bits() >> 2 & 0xffff;
        ended.parent.map_or_else(|| share() * 100 < u64::from(self.sample_percent) << 16, |parent| parent.sampled)
    }

    fn server(&self, provider: &str) -> Server {
        let registry = self.registry.get();
        registry.by_id(provider).map(|upstream| (upstream.host().to_owned(), upstream.port()))
    }

    async fn send(&mut self, metrics: bool) {
        if !self.batch.is_empty() {
            let span = |ended: &Ended| {
                let id = u128::from_be_bytes(*ended.entry.request_id.as_bytes());
                // UUIDv7: what tells two of one millisecond apart is in its second half.
                let own = u64::from_be_bytes(id.to_be_bytes()[8..].try_into().unwrap_or_default());
                let trace = ended.parent.map_or(id, |parent| parent.trace);
                encode::span(ended, trace, own, self.server(&ended.entry.provider))
            };
            let spans: Vec<_> = self.batch.iter().map(span).collect();
            let sent = self.target.post("traces", &encode::traces(&self.resource, &spans)).await;
            if !self.settled(sent, spans.len() as u64) {
                return;
            }
            self.batch.clear();
        }
        if metrics && !self.points.is_empty() {
            let now = self.clock.wall_ms();
            let message = self.points.export(&self.resource, self.since_ms, now);
            let sent = self.target.post("metrics", &message).await;
            if self.settled(sent, 0) {
                (self.points, self.since_ms) = (Points::default(), now);
            }
            self.metrics_due = self.clock.now().saturating_add(METRICS_EVERY);
        }
    }

    /// Whether the message is done with, taken or not.
    fn settled(&mut self, sent: Result<(), Untaken>, spans: u64) -> bool {
        match sent {
            Ok(()) => {
                self.pause = SECOND;
                self.spans.with_label_values(&[SENT]).inc_by(spans);
                true
            }
            Err(Untaken { again: true, why }) => {
                tracing::warn!(pause_s = self.pause / SECOND, "the collector of traces cannot be reached: {why}");
                self.resume = self.clock.now().saturating_add(self.pause);
                self.pause = (self.pause * 2).min(PAUSE_MAX);
                false
            }
            Err(Untaken { again: false, why }) => {
                tracing::warn!(spans, "the collector refuses what it was sent: {why}");
                self.spans.with_label_values(&[DROPPED]).inc_by(spans);
                true
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints() {
        for (text, want) in [
            ("http://localhost:4318", true),
            ("https://otel.example/base", true),
            ("localhost:4317", false),
            ("grpc://x:1", false),
            ("http://x/?q", false),
            ("", false),
        ] {
            assert_eq!(parts(text).is_ok(), want, "{text}");
        }
        for text in ["grpc://me:secret@x:1", "http://me:secret@x/?q", "http://me:secret@x y"] {
            assert!(!parts(text).unwrap_err().contains("secret"), "{text}");
        }
    }

    #[test]
    fn headers_of_the_environment() {
        let parsed = parse_headers("x-key=a%20b, authorization=Basic%20xyz=").unwrap();
        let shown: Vec<_> = parsed.iter().map(|(name, value)| (name.as_str(), value.to_str().unwrap())).collect();
        assert_eq!(shown, [("x-key", "a b"), ("authorization", "Basic xyz=")]);
        assert!(parsed.iter().all(|(_, value)| value.is_sensitive()));
        let error = parse_headers("sk-secret").unwrap_err();
        assert!(!error.contains("sk-secret"), "{error}");
    }
}
