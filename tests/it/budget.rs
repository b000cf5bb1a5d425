//! Quotas and budgets at work: what they admit, how a stream ends that uses them up, what is learned for the next.

use serde_json::{Value, json};

use crate::support::client::{Client, Request};
use crate::support::provider::Provider;
use crate::support::script::{Framing, Gate, Message};
use crate::support::sidekey::{Options, REAL_KEY, Sidekey};

const CHAT: &str = "/openai/v1/chat/completions";

/// What of the key's limits is named so.
async fn limit(sidekey: &Sidekey, key: &str, name: &str) -> Value {
    let shown: Value = serde_json::from_str(&sidekey.ok(&["key", "show", key, "-o", "json"]).await).expect("JSON");
    let found = shown["in_force"].as_array().expect("a list").iter().find(|limit| limit["limit"] == name);
    found.unwrap_or_else(|| panic!("no {name} in {shown}")).clone()
}

#[tokio::test]
async fn a_stream_ends_where_its_quota_does() {
    let words = "words ".repeat(40);
    let event = |data: Value| format!("data: {data}\n\n");
    let chat = event(json!({"choices": [{"delta": {"content": words}}]}));
    let responses = event(json!({"type": "response.output_text.delta", "delta": words}));
    let messages = event(json!({"type": "content_block_delta", "delta": {"type": "text_delta", "text": words}}));
    let provider = Provider::always(Message::new(500)).await;
    let options = Options::new().provider("openai", &provider.url()).provider("anthropic", &provider.url());
    let sidekey = Sidekey::start(&options).await;
    sidekey.add_provider_key("openai", REAL_KEY).await;
    sidekey.add_provider_key("anthropic", REAL_KEY).await;
    let body = r#"{"model":"gpt-4o-mini","max_tokens":100,"stream":true,"messages":[]}"#;
    for (path, flags, long, last) in [
        (CHAT, &["--hard-stop"][..], &chat, r#"data: {"error":"#),
        ("/openai/v1/responses", &["--hard-stop"], &responses, "event: error\ndata: {"),
        ("/anthropic/v1/messages", &["--hard-stop"], &messages, "event: error\ndata: {"),
        // Without it, it goes on to its end.
        (CHAT, &[], &chat, "data: {\"choices\""),
    ] {
        provider.push(Message::sse(std::iter::repeat_n(long.as_str(), 30)));
        let flags = [flags, &["--quota", "700/day"]].concat();
        let key = sidekey.create_key(&flags).await;
        let answer = sidekey.send(&Request::post(path, body).bearer(&key.key)).await;
        let text = answer.text();
        assert!(answer.complete && answer.status == 200, "{path}: {}", answer.status);
        let events: Vec<&str> = text.trim_end().split("\n\n").collect();
        let (ending, before) = events.split_last().unwrap();
        assert!(ending.starts_with(last), "{path} ends with {ending}");
        // What passed before is untouched.
        assert!(before.iter().all(|event| *event == long.trim_end()), "{path}: {before:?}");
        let entry = sidekey.entry(&answer.request_id()).await;
        if flags.len() == 2 {
            assert_eq!((events.len(), &entry["outcome"]), (30, &json!("ok")), "{path}");
            continue;
        }
        assert!(ending.contains("insufficient_quota") || ending.contains("billing_error"), "{ending}");
        assert!(ending.contains("the stream was ended: quota of 700 tokens per day has no room"), "{ending}");
        assert!((9..14).contains(&before.len()), "{path}: {} events passed", before.len());
        assert_eq!((&entry["outcome"], &entry["error_code"]), (&json!("refused"), &json!("insufficient_quota")));
        let used = limit(&sidekey, &key.id, "quota").await;
        assert_eq!((&used["used"], &used["reserved"]), (&entry["tokens"]["total"], &json!(0)), "{path}");
        let total = entry["tokens"]["total"].as_u64().unwrap();
        assert!((400..800).contains(&total), "{path}: {total}");
    }
}

#[tokio::test]
async fn a_stream_that_cannot_be_added_to_breaks_off() {
    let line = format!("{{\"message\":{{\"content\":\"{}\"}}}}\n", "words ".repeat(40));
    let stream = Message::new(200).header("Content-Type", "application/x-ndjson").framed(Framing::Chunked);
    let stream = (0..30).fold(stream, |stream, _| stream.chunk(line.clone()));
    let provider = Provider::always(stream).await;
    let sidekey = Sidekey::with("ollama", &provider.url()).await;
    let key = sidekey.create_key(&["--hard-stop", "--quota", "700/day"]).await;
    let body = r#"{"model":"llama3","options":{"num_predict":100},"messages":[]}"#;
    let answer = sidekey.send(&Request::post("/ollama/api/chat", body).bearer(&key.key)).await;
    assert!(!answer.complete, "a truncated answer must look like one");
    let entry = sidekey.entry(&answer.request_id()).await;
    assert_eq!((&entry["outcome"], &entry["error_code"]), (&json!("refused"), &json!("insufficient_quota")));
}

#[tokio::test]
async fn the_next_reservation_is_as_long_as_the_last_answers() {
    let answer = |tokens: u64| {
        let usage = json!({"prompt_tokens": 5, "completion_tokens": tokens, "total_tokens": tokens + 5});
        Message::json(200, json!({"choices": [], "usage": usage}).to_string())
    };
    let provider = Provider::always(answer(40)).await;
    let sidekey = Sidekey::with("openai", &provider.url()).await;
    let key = sidekey.create_key(&["--quota", "1000000/day"]).await;
    let body = |model: &str, more: &str| format!(r#"{{"model":"{model}","messages":[]{more}}}"#);
    for _ in 0..12 {
        sidekey.send(&Request::post(CHAT, body("gpt-4o-mini", "")).bearer(&key.key)).await;
    }
    for (model, more, least, most) in [
        ("gpt-4o-mini", "", 40, 90),
        // What a request says itself goes before, and another model is another thing.
        ("gpt-4o-mini", r#","max_tokens":300"#, 300, 340),
        ("gpt-4o", "", 512, 560),
    ] {
        let gate = Gate::new();
        provider.push(answer(40).held_by(&gate));
        let seen = provider.count();
        let mut client = Client::connect(sidekey.proxy).await.unwrap();
        let request = Request::post(CHAT, body(model, more)).bearer(&key.key);
        let sent = tokio::spawn(async move { client.send(&request).await.unwrap().status });
        provider.wait_for_request(seen).await;
        let reserved = limit(&sidekey, &key.id, "quota").await["reserved"].as_u64().unwrap();
        assert!((least..most).contains(&reserved), "{model}{more}: {reserved}");
        gate.open();
        assert_eq!(sent.await.unwrap(), 200);
    }
}

#[tokio::test]
async fn a_command_spends_no_more_than_it_may() {
    if !crate::support::netns::is_there("curl") {
        assert!(std::env::var_os("CI").is_none(), "curl is missing");
        return eprintln!("SKIPPED: curl is missing; exec --budget was not tried");
    }
    let usage = r#"{"model":"gpt-4o-mini","choices":[],"usage":{"prompt_tokens":1000,"completion_tokens":1000}}"#;
    let provider = Provider::always(Message::json(200, usage)).await;
    let mut sidekey = Sidekey::start(&Options::new().provider("openai", &provider.url())).await;
    sidekey.add_provider_key("openai", REAL_KEY).await;
    let call = r#"for i in 1 2 3; do curl -sS -o /dev/null -w '%{http_code} ' "$OPENAI_BASE_URL/chat/completions" \
        -H "Authorization: Bearer $OPENAI_API_KEY" -d '{"model":"gpt-4o-mini","max_tokens":1000,"messages":[]}'; done"#;
    // A request costs 0.15 + 0.60 thousandths of a dollar; the first may, the second no more.
    let exec = ["exec", "--provider", "openai", "--budget", "0.001", "--", "sh", "-c", call];
    for daemon in [true, false] {
        if !daemon {
            sidekey.stop().await;
        }
        let output = sidekey.cli(&exec).await;
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(String::from_utf8_lossy(&output.stdout), "200 429 429 ", "daemon {daemon}: {said}");
        let want = "sidekey: 3 requests, 1000 input and 1000 output tokens, 0.00075 USD\n";
        assert!(said.ends_with(want), "daemon {daemon}: {said}");
    }
}
