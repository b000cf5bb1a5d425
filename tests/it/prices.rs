//! What calls cost: by the list in the program, by the configuration, and by what operators set.

use std::sync::Arc;

use serde_json::Value;

use crate::support::client::Request;
use crate::support::provider::Provider;
use crate::support::script::{Message, Reply};
use crate::support::sidekey::Sidekey;

const CHAT: &str = "/openai/v1/chat/completions";

/// An answer of 40 tokens to 60.
fn answer(model: &str) -> String {
    format!(
        r#"{{"model":"{model}","choices":[],"usage":{{"prompt_tokens":40,"completion_tokens":60,"total_tokens":100}}}}"#
    )
}

fn chat(key: &str, model: &str) -> Request {
    Request::post(CHAT, format!(r#"{{"model":"{model}","messages":[{{"role":"user","content":"Hi."}}]}}"#)).bearer(key)
}

/// A provider that uses the model it is asked for.
async fn provider() -> Provider {
    Provider::start(|_| {
        Reply::FromBody(Arc::new(|body| {
            let asked: Value = serde_json::from_slice(body).expect("JSON");
            Message::json(200, answer(asked["model"].as_str().expect("a model")))
        }))
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn entries_have_a_cost_or_say_that_there_is_none() {
    let provider = provider().await;
    let sidekey = Sidekey::with("openai", &provider.url()).await;
    let key = sidekey.create_key(&[]).await;
    for (model, cost) in [
        // 40 at 0.15 and 60 at 0.6 dollars a million.
        ("gpt-4o-mini-2024-07-18", Some("0.000042")),
        ("gpt-4o-mini", Some("0.000042")),
        ("made-up", None),
    ] {
        let answer = sidekey.send(&chat(&key.key, model)).await;
        let entry = sidekey.entry(&answer.request_id()).await;
        assert_eq!(entry["cost_usd"].as_str(), cost, "{entry}");
        let version = entry["price_version"].as_str();
        assert_eq!(version.is_some_and(|version| version.starts_with("built-in 20")), cost.is_some(), "{entry}");
    }
    let metrics = sidekey.metrics().await;
    for line in [
        r#"sidekey_cost_usd_total{provider="openai"} 0.000084"#,
        r#"sidekey_unpriced_requests_total{provider="openai"} 1"#,
    ] {
        assert!(metrics.contains(line), "{line}:\n{metrics}");
    }
    let shown = sidekey.ok(&["key", "show", &key.id, "-o", "json"]).await;
    assert!(shown.contains(r#""spent": "0.000084""#) || shown.contains(r#""spent":"0.000084""#), "{shown}");
}
