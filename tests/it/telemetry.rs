//! Traces and metrics as a collector of OpenTelemetry gets them.

use serde_json::{Value, json};

use crate::support::client::Request;
use crate::support::provider::Provider;
use crate::support::script::Message;
use crate::support::sidekey::{Options, REAL_KEY, Sidekey};

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const SPAN: &str = "00f067aa0ba902b7";
const ANSWER: &str = r#"{"model":"gpt-4o-mini-2024-07-18","usage":{"prompt_tokens":7,"completion_tokens":5,"total_tokens":12,"prompt_tokens_details":{"cached_tokens":3},"completion_tokens_details":{"reasoning_tokens":2}}}"#;

/// A sidekey that tells `collector`, with a key and what it asks.
async fn start(provider: &Provider, collector: &Provider, more: &str) -> (Sidekey, Request) {
    let telemetry = format!("[telemetry]\notlp_endpoint = \"{}/base\"\n{more}", collector.url());
    let options = Options::new().provider("openai", &provider.url()).config(&telemetry);
    let sidekey = Sidekey::start(&options.env("OTEL_EXPORTER_OTLP_HEADERS", "x-collector=abc%20d")).await;
    sidekey.add_provider_key("openai", REAL_KEY).await;
    let key = sidekey.create_key(&["--name", "app", "--user", "alice"]).await;
    let body = r#"{"model":"gpt-4o-mini","messages":[]}"#;
    (sidekey, Request::post("/openai/v1/chat/completions", body).bearer(&key.key))
}

/// What the collector got under this path, with whatever stands below these fields, one list after the other.
fn got(collector: &Provider, path: &str, fields: [&str; 3]) -> Vec<Value> {
    let bodies = collector.seen().into_iter().filter(|seen| seen.target == path).map(|seen| {
        assert_eq!((&*seen.method, seen.header("content-type")), ("POST", Some("application/json")));
        assert_eq!(seen.header("x-collector"), Some("abc d"));
        assert!(!seen.contains(REAL_KEY) && !seen.contains("sk-side-"), "a key was sent");
        serde_json::from_slice::<Value>(&seen.body()).expect("JSON")
    });
    let below = |value: Value, field: &&str| value[*field].as_array().expect("a list").clone();
    fields.iter().fold(bodies.collect::<Vec<_>>(), |values, field| {
        values.into_iter().flat_map(|value| below(value, field)).collect()
    })
}

/// Attributes, by name.
fn attributes(of: &Value) -> Value {
    let pair = |attribute: &Value| {
        let value = attribute["value"].as_object().and_then(|value| value.values().next()).expect("a value");
        (attribute["key"].as_str().expect("a key").to_owned(), value.clone())
    };
    of["attributes"].as_array().expect("attributes").iter().map(pair).collect()
}

#[tokio::test]
async fn requests_become_spans_and_metrics() {
    let provider = Provider::always(Message::json(200, ANSWER)).await;
    let collector = Provider::always(Message::json(200, "{}")).await;
    // What is refused for the moment comes again.
    collector.push(Message::json(503, "{}"));
    let (mut sidekey, request) = start(&provider, &collector, "service_name = \"here\"\n").await;
    let parent = |flags| format!("00-{TRACE}-{SPAN}-{flags}");
    let traced =
        request.clone().header("traceparent", parent("01")).header("tracestate", "a=b").header("baggage", "c=d");
    let id = sidekey.send(&traced).await.request_id();
    // The client has decided against.
    sidekey.send(&request.clone().header("traceparent", parent("00"))).await;
    sidekey.send(&request).await;
    provider.push(Message::json(400, r#"{"error":{"code":"bad_request","message":"no"}}"#));
    sidekey.send(&request).await;
    for seen in provider.seen() {
        assert!(["traceparent", "tracestate", "baggage"].iter().all(|name| seen.header(name).is_none()));
    }
    collector.wait_for_request(0).await;
    sidekey.stop().await;

    // The first try, which was answered 503, held spans that came again.
    let mut spans = got(&collector, "/base/v1/traces", ["resourceSpans", "scopeSpans", "spans"]);
    let mut known = std::collections::HashSet::new();
    spans.retain(|span| known.insert(span["spanId"].to_string()));
    assert_eq!(spans.len(), 3, "{spans:?}");
    let span = spans.iter().find(|span| span["traceId"] == TRACE).expect("the client's trace");
    assert_eq!(
        (&span["parentSpanId"], &span["name"], &span["kind"]),
        (&json!(SPAN), &json!("chat gpt-4o-mini"), &json!(3))
    );
    let said = attributes(span);
    for (name, want) in [
        ("gen_ai.operation.name", json!("chat")),
        ("gen_ai.provider.name", json!("openai")),
        ("gen_ai.request.model", json!("gpt-4o-mini")),
        ("gen_ai.response.model", json!("gpt-4o-mini-2024-07-18")),
        ("gen_ai.usage.input_tokens", json!("7")),
        ("gen_ai.usage.output_tokens", json!("5")),
        ("http.response.status_code", json!("200")),
        ("server.address", json!("127.0.0.1")),
        ("sidekey.request.id", json!(id)),
        ("sidekey.user", json!("alice")),
        ("sidekey.key_source", json!("system")),
    ] {
        assert_eq!(said[name], want, "{name}");
    }
    // The conventions' names as they were pinned: every one that such a call can have, and none that they do not know.
    let names = |said: &Value| {
        let names = said.as_object().expect("names").keys().filter(|name| !name.starts_with("sidekey.")).cloned();
        names.collect::<std::collections::BTreeSet<_>>()
    };
    let pinned = [
        "gen_ai.operation.name",
        "gen_ai.provider.name",
        "gen_ai.request.model",
        "gen_ai.request.stream",
        "gen_ai.response.model",
        "gen_ai.response.time_to_first_chunk",
        "gen_ai.usage.cache_read.input_tokens",
        "gen_ai.usage.input_tokens",
        "gen_ai.usage.output_tokens",
        "gen_ai.usage.reasoning.output_tokens",
        "http.response.status_code",
        "server.address",
        "server.port",
    ];
    assert_eq!(names(&said), pinned.map(str::to_owned).into());
    let times =
        ["startTimeUnixNano", "endTimeUnixNano"].map(|field| span[field].as_str().expect("text").parse::<u64>());
    assert!(times[0].as_ref().expect("a number") <= times[1].as_ref().expect("a number"));
    let own = spans.iter().filter(|span| span["parentSpanId"].is_null()).collect::<Vec<_>>();
    assert_eq!(own.len(), 2);
    let failed = own.iter().find(|span| span["status"]["code"] == 2).expect("the refused one");
    assert_eq!(attributes(failed)["error.type"], json!("bad_request"));
    let resources = got(&collector, "/base/v1/traces", ["resourceSpans", "scopeSpans", "spans"]);
    assert!(resources.len() >= 3);

    let metrics = got(&collector, "/base/v1/metrics", ["resourceMetrics", "scopeMetrics", "metrics"]);
    let points = |name: &str| -> Vec<Value> {
        let named = metrics.iter().filter(|metric| metric["name"] == name);
        named.flat_map(|metric| metric["histogram"]["dataPoints"].as_array().expect("points").clone()).collect()
    };
    let count = |points: &[Value]| -> u64 {
        points.iter().map(|point| point["count"].as_str().expect("text").parse::<u64>().expect("a number")).sum()
    };
    // Metrics hold what is not sampled too.
    assert_eq!(count(&points("gen_ai.client.operation.duration")), 4);
    let tokens = points("gen_ai.client.token.usage");
    for (point, kinds) in [(&tokens[0], 1), (&points("gen_ai.client.operation.duration")[0], 0)] {
        let mut names = names(&attributes(point));
        assert_eq!(names.remove("gen_ai.token.type"), kinds == 1, "{point}");
        names.remove("gen_ai.response.model");
        names.remove("error.type");
        let common =
            ["gen_ai.operation.name", "gen_ai.provider.name", "gen_ai.request.model", "server.address", "server.port"];
        assert_eq!(names, common.map(str::to_owned).into(), "{point}");
    }
    for (name, unit) in [("gen_ai.client.token.usage", "{token}"), ("gen_ai.client.operation.duration", "s")] {
        assert!(metrics.iter().any(|metric| metric["name"] == name && metric["unit"] == unit), "{name}");
    }
    let input = tokens.iter().filter(|point| attributes(point)["gen_ai.token.type"] == "input");
    assert!((input.map(|point| point["sum"].as_f64().expect("a number")).sum::<f64>() - 21.0).abs() < 1e-9);
}

#[tokio::test]
async fn trace_context_ends_here_without_a_collector_too() {
    let provider = Provider::always(Message::json(200, ANSWER)).await;
    let sidekey = Sidekey::with("openai", &provider.url()).await;
    let key = sidekey.create_key(&[]).await.key;
    let request = Request::post("/openai/v1/chat/completions", r#"{"model":"gpt-4o-mini","messages":[]}"#).bearer(&key);
    let names = ["traceparent", "tracestate", "baggage"];
    let traced = names.iter().fold(request, |request, name| request.header(name, format!("00-{TRACE}-{SPAN}-01")));
    assert_eq!(sidekey.send(&traced.header("x-trace", "kept")).await.status, 200);
    let seen = provider.last();
    assert!(names.iter().all(|name| seen.header(name).is_none()) && seen.header("x-trace") == Some("kept"));
}

#[tokio::test]
async fn trace_context_goes_on_when_told() {
    let provider = Provider::always(Message::json(200, ANSWER)).await;
    let collector = Provider::always(Message::json(200, "{}")).await;
    let (sidekey, request) = start(&provider, &collector, "forward_trace_context = true\n").await;
    let parent = format!("00-{TRACE}-{SPAN}-01");
    assert_eq!(sidekey.send(&request.header("traceparent", parent.clone())).await.status, 200);
    assert_eq!(provider.last().header("traceparent"), Some(&*parent));
}

#[tokio::test]
async fn a_collector_that_is_gone_costs_spans_only() {
    let provider = Provider::always(Message::json(200, ANSWER)).await;
    let collector = Provider::always(Message::json(400, "{}")).await;
    let (sidekey, request) = start(&provider, &collector, "").await;
    for _ in 0..3 {
        assert_eq!(sidekey.send(&request).await.status, 200);
    }
    collector.wait_for_request(0).await;
    let dropped = |text: &str| {
        text.lines()
            .any(|line| line.starts_with(r#"sidekey_otlp_spans_total{result="dropped"}"#) && !line.ends_with(" 0"))
    };
    for _ in 0..100 {
        if dropped(&sidekey.metrics().await) {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    panic!("nothing is said to be dropped: {}", sidekey.metrics().await);
}
