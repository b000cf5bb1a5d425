//! What the installation did in the last minutes, as the console's charts get it.

use serde_json::{Value, json};

use crate::support::client::{Client, Request};
use crate::support::provider::Provider;
use crate::support::script::{Gate, Message};
use crate::support::sidekey::{REAL_KEY, Sidekey};

const CHAT: &str = "/openai/v1/chat/completions";
const BODY: &str = r#"{"model":"gpt-4o-mini","messages":[]}"#;
const ANSWER: &str = r#"{"model":"gpt-4o-mini","usage":{"prompt_tokens":1000,"completion_tokens":50,"total_tokens":1050,
    "prompt_tokens_details":{"cached_tokens":400}}}"#;

async fn activity(sidekey: &Sidekey, minutes: &str) -> Value {
    sidekey.admin("GET", &format!("/api/activity{minutes}"), &Value::Null).await
}

/// The sum of a figure over all points: requests may end on either side of a border.
fn sum(activity: &Value, figure: &str) -> u64 {
    let points = activity["points"].as_array().expect("points");
    points.iter().map(|point| point.pointer(figure).and_then(Value::as_u64).expect("a figure")).sum()
}

#[tokio::test]
async fn requests_are_in_the_open_step_at_once() {
    let gate = Gate::new();
    let provider = Provider::always(Message::json(200, ANSWER)).await;
    let sidekey = Sidekey::with("openai", &provider.url()).await;
    let key = sidekey.create_key(&[]).await.key;
    let narrow = sidekey.create_key(&["--name", "narrow", "--models", "other-*"]).await.key;
    let request = Request::post(CHAT, BODY).bearer(&key);
    assert_eq!(activity(&sidekey, "").await["now"], json!({"streams_in_flight": 0, "draining": false}));

    let mut open = Client::connect(sidekey.proxy).await.expect("it listens");
    provider.push(Message::sse(["data: 1\n\n"]).gate(&gate).chunk("data: [DONE]\n\n"));
    let mut stream = open.start(&request).await.expect("an answer");
    stream.until("data: 1").await;
    // Refused: a stranger, whom no provider's counters know, and a model that is not allowed. Failed: what the provider refuses.
    assert_eq!(sidekey.send(&request).await.status, 200);
    let answered = sidekey.send(&request).await.request_id();
    provider.push(Message::json(400, r#"{"error":{"code":"bad","message":"no"}}"#));
    assert_eq!(sidekey.send(&request).await.status, 400);
    assert_eq!(sidekey.send(&Request::post(CHAT, BODY).bearer(&narrow)).await.status, 403);
    assert_eq!(sidekey.send(&Request::post(CHAT, BODY)).await.status, 401);

    let told = activity(&sidekey, "?minutes=2").await;
    assert_eq!((&told["step_s"], told["points"].as_array().map(Vec::len)), (&json!(10), Some(12)));
    for (figure, want) in [
        ("/requests", 5),
        ("/refusals", 2),
        ("/errors", 1),
        ("/tokens/input", 2000),
        ("/tokens/output", 100),
        ("/tokens/cached_input", 800),
    ] {
        assert_eq!(sum(&told, figure), want, "{figure}: {told}");
    }
    let points = told["points"].as_array().expect("points");
    let dollars = |value: &Value| value.as_str().and_then(|usd| usd.parse::<f64>().ok()).expect("a sum of dollars");
    let cost: f64 = points.iter().map(|point| dollars(&point["cost_usd"])).sum();
    let of_one = dollars(&sidekey.entry(&answered).await["cost_usd"]);
    assert!((cost - 2.0 * of_one).abs() < 1e-12, "{cost} of {of_one}");
    assert!(cost > 0.0);
    let timed: Vec<_> = points.iter().filter(|point| !point["ttfb_ms"]["p50"].is_null()).collect();
    assert!(!timed.is_empty() && timed.len() < points.len(), "{told}");
    for point in timed {
        let [half, most] = ["p50", "p95"].map(|name| point["ttfb_ms"][name].as_f64().expect("a number"));
        assert!(0.0 < half && half <= most && most < 90_000.0, "{point}");
    }
    assert_eq!((&told["now"]["streams_in_flight"], &points[11]["streams_in_flight"]), (&json!(1), &json!(1)));

    gate.open();
    assert!(stream.collect().await.complete);
    drop(open);
    // The figures of an ended answer are there once its connection is told so.
    for _ in 0..2000 {
        let told = activity(&sidekey, "?minutes=1440").await;
        assert_eq!((&told["step_s"], told["points"].as_array().map(Vec::len)), (&json!(60), Some(1440)));
        if sum(&told, "/requests") == 6 && told["now"]["streams_in_flight"] == 0 {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    panic!("the stream is not counted");
}

#[tokio::test]
async fn questions_that_cannot_be() {
    let sidekey = Sidekey::with("openai", "http://127.0.0.1:9").await;
    for (query, status) in [("?minutes=0", 422), ("?minutes=1441", 422), ("?minutes=x", 400), ("?days=1", 400)] {
        let (got, problem) = sidekey.admin_as("GET", &format!("/api/activity{query}"), "", &Value::Null).await;
        assert_eq!(got, status, "{query}: {problem}");
        assert!(problem["detail"].as_str().is_some_and(|detail| !detail.contains(REAL_KEY)), "{problem}");
    }
}
