//! What becomes of a provider key that is refused, and of its client: every recorded error of every dialect
//! (`tests/fixtures/refusals/`), through the whole program.

use bytes::Bytes;
use serde_json::{Value, json};

use crate::support::client::Request;
use crate::support::encoding::Encoding;
use crate::support::provider::Provider;
use crate::support::script::{Framing, Message};
use crate::support::sidekey::{Options, Sidekey};

const DIALECTS: [(&str, &str); 6] = [
    ("anthropic", "/v1/messages"),
    ("bedrock", "/model/m/converse"),
    ("cohere", "/v2/chat"),
    ("gemini", "/v1beta/models/m:generateContent"),
    ("ollama", "/api/chat"),
    ("openai", "/v1/chat/completions"),
];
const BODY: &str = r#"{"model":"m","messages":[{"role":"user","content":"hi"}]}"#;
const SPARE: &str = "sk-spare-5Tn9vRb2cYh5dJf8gLs4pAe6u";

fn cases(dialect: &str) -> Vec<Value> {
    let file = format!("{}/tests/fixtures/refusals/{dialect}.json", env!("CARGO_MANIFEST_DIR"));
    serde_json::from_slice(&std::fs::read(&file).expect("the fixtures")).expect("JSON")
}

/// The recorded answer, and its body as the client should see it.
fn answer(case: &Value) -> (Message, Bytes) {
    let text: Bytes = case["body"].as_str().map_or_else(|| case["body"].to_string(), str::to_owned).into();
    let status = case["status"].as_u64().and_then(|status| u16::try_from(status).ok()).expect("a status");
    let mut message = Message::new(status).header("content-type", "application/json");
    for pair in case["headers"].as_array().into_iter().flatten() {
        message = message.header(pair[0].as_str().expect("a name"), pair[1].as_str().expect("a value"));
    }
    let body = match case["encoding"].as_str() {
        Some(coding) => {
            message = message.header("content-encoding", coding);
            Encoding::parse(coding).encode(&text)
        }
        None => text,
    };
    (message.chunk(body.clone()), body)
}

/// Where the key stands in what the provider received.
fn key_of(seen: &crate::support::provider::Seen) -> String {
    ["authorization", "x-api-key", "x-goog-api-key", "api-key"]
        .iter()
        .find_map(|name| seen.header(name))
        .map(|value| value.trim_start_matches("Bearer ").to_owned())
        .unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_dialects_refusals() {
    let provider = Provider::always(Message::json(200, "{}")).await;
    let names = ["azure-openai", "deepseek", "groq", "mistral", "openrouter", "perplexity", "vertex"];
    let all = DIALECTS.iter().map(|(dialect, _)| *dialect).chain(names);
    let options = all.fold(Options::new(), |options, name| options.provider(name, &provider.url()));
    let sidekey = Sidekey::start(&options).await;
    let key = sidekey.create_key(&[]).await.key;
    let mut count = 0;
    for (dialect, path) in DIALECTS {
        for case in cases(dialect) {
            let id = case["provider"].as_str().unwrap_or(dialect);
            let name = format!("{dialect}: {}", case["name"]);
            case_of(&sidekey, &provider, &key, id, path, &case, &name).await;
            count += 1;
        }
    }
    assert!(count > 60, "fixtures are missing");
    // What happened was told, and nothing of the provider's text with it.
    let log = sidekey.stderr();
    for word in ["provider_key.error", "provider_key.exhausted", "provider_key.cooling", "provider_key.active"] {
        assert!(log.contains(word), "no event {word}");
    }
    assert!(!log.contains("Incorrect API key provided"), "a provider's text is in the log");
}

async fn case_of(
    sidekey: &Sidekey,
    provider: &Provider,
    virtual_key: &str,
    id: &str,
    path: &str,
    case: &Value,
    name: &str,
) {
    let secret = "sk-real-Kq7WmZ3xTn9vRb2cYh5dJf8gLs4pAe6u";
    let add = |name: &str, secret: &str, priority: u32| json!({"provider": id, "name": name, "secret": secret, "priority": priority});
    let made = sidekey.admin("POST", "/api/provider-keys", &add("tried", secret, 0)).await;
    let tried = format!("/api/provider-keys/{}", made["id"].as_str().expect("an id"));
    let request = Request::post(&format!("/{id}{path}"), BODY).bearer(virtual_key);

    // Alone.
    let (message, body) = answer(case);
    provider.push(message.clone());
    let before = provider.count();
    let got = sidekey.send(&request).await;
    let own = case["client"].as_u64();
    assert_eq!(Some(u64::from(got.status)), own.or_else(|| case["status"].as_u64()), "{name}: {}", got.text());
    match own {
        Some(_) => assert!(got.text().contains("refused the provider key"), "{name}: {}", got.text()),
        None => assert_eq!(got.body, body, "{name}: not as the provider sent it"),
    }
    assert!(!got.text().contains("sk-real"), "{name}: part of a key reached the client");
    assert_eq!(provider.count(), before + 1, "{name}: a key was tried twice");
    let shown = sidekey.admin("GET", &tried, &Value::Null).await;
    assert_eq!(shown["status"], case["after"], "{name}: {shown}");
    let until = case["wait_ms"].is_u64() || case["wait"].is_string() || case["after"] == "cooling";
    assert_eq!(shown["until"].is_string(), until && case["after"] != "active", "{name}: {shown}");
    if case["action"] != "relay" && case["action"] != "elsewhere" && case["action"] != "model_exhausted" {
        assert_eq!(shown["failures"], 1, "{name}: {shown}");
        assert_eq!(shown["last_error"], case["reason"], "{name}: {shown}");
    }

    // With a spare one behind it.
    sidekey.admin("POST", &format!("{tried}/enable"), &json!({})).await;
    let made = sidekey.admin("POST", "/api/provider-keys", &add("spare", SPARE, 1)).await;
    let spare = format!("/api/provider-keys/{}", made["id"].as_str().expect("an id"));
    provider.push(message);
    let before = provider.count();
    let got = sidekey.send(&request).await;
    let tried_keys: Vec<String> = provider.seen()[before..].iter().map(|seen| key_of(seen)).collect();
    if case["action"] == "relay" {
        assert_eq!(tried_keys, [secret], "{name}");
        assert_eq!(got.body, body, "{name}");
    } else {
        assert_eq!(
            (got.status, tried_keys),
            (200, vec![secret.to_owned(), SPARE.to_owned()]),
            "{name}: {}",
            got.text()
        );
        // From now on the key is not asked at all, unless nothing is wrong with it.
        let before = provider.count();
        assert_eq!(sidekey.send(&request).await.status, 200, "{name}");
        let rests = case["after"] != "active" || case["action"] == "model_exhausted";
        assert_eq!(key_of(&provider.seen()[before]), if rests { SPARE } else { secret }, "{name}");
    }
    for path in [tried, spare] {
        sidekey.admin("DELETE", &path, &Value::Null).await;
    }
}

#[tokio::test]
async fn three_in_a_row_that_are_not_permitted() {
    let provider = Provider::always(Message::json(403, r#"{"error":{"code":"permission_denied"}}"#)).await;
    let sidekey = Sidekey::with("openai", &provider.url()).await;
    let key = sidekey.create_key(&[]).await.key;
    let request = Request::post("/openai/v1/chat/completions", BODY).bearer(&key);
    for _ in 0..2 {
        assert_eq!(sidekey.send(&request).await.status, 502);
    }
    provider.push(Message::json(200, "{}"));
    assert_eq!(sidekey.send(&request).await.status, 200);
    for status in ["active", "active", "error"] {
        assert_eq!(sidekey.send(&request).await.code(), "provider_key_rejected");
        assert_eq!(sidekey.provider_key("main").await["status"], status);
    }
    assert_eq!((sidekey.send(&request).await.code().as_str(), provider.count()), ("no_provider_key", 6));
}

#[tokio::test]
async fn an_error_in_the_first_event_of_a_stream() {
    let provider = Provider::always(Message::json(200, "{}")).await;
    let sidekey = Sidekey::start(&Options::new().provider("azure-openai", &provider.url())).await;
    for (name, secret, priority) in
        [("first", "sk-first-0123456789abcdef", "0"), ("second", "sk-second-0123456789", "1")]
    {
        let flags = ["--name", name, "--priority", priority];
        sidekey.add_provider_key_as("azure-openai", secret, &flags).await;
    }
    let key = sidekey.create_key(&[]).await.key;
    let request = Request::post("/azure-openai/openai/deployments/d/chat/completions?api-version=1", BODY).bearer(&key);
    let error = "data: {\"error\":{\"code\":\"429\",\"message\":\"exceeded\"}}\n\n";
    let (one, two) = ("data: {\"choices\":[]}\n\n", "data: [DONE]\n\n");

    provider.push(Message::sse([error]).header("retry-after", "30"));
    provider.push(Message::sse([one, two]));
    let answer = sidekey.send(&request).await;
    assert_eq!((answer.status, answer.text()), (200, format!("{one}{two}")), "the next key serves it");
    let first = sidekey.provider_key("first").await;
    assert_eq!((&first["status"], &first["last_error"]), (&json!("cooling"), &json!("429")));

    // With nothing left to try, it is the client's as it came.
    provider.push(Message::sse([error, two]));
    let answer = sidekey.send(&request).await;
    assert_eq!((answer.status, answer.text()), (200, format!("{error}{two}")));
    assert_eq!(sidekey.provider_key("second").await["status"], "cooling");

    // Nothing is held back beyond the first event.
    sidekey.ok(&["provider-key", "enable", "first"]).await;
    let gate = crate::support::script::Gate::new();
    provider.push(
        Message::new(200)
            .header("content-type", "text/event-stream")
            .framed(Framing::Chunked)
            .chunk(one)
            .gate(&gate)
            .chunk(two),
    );
    let mut client = crate::support::client::Client::connect(sidekey.proxy).await.unwrap();
    let mut streaming = client.start(&request).await.unwrap();
    assert_eq!(streaming.until("choices").await, one.as_bytes());
    gate.open();
    assert_eq!(streaming.collect().await.body, two.as_bytes());
}
