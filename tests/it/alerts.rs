//! Alerts as their receiver sees them: signed, in order, once, again until they arrive, and before the end.

use std::time::Duration;

use aws_lc_rs::hmac;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use crate::support::client::Request;
use crate::support::provider::{Provider, Seen};
use crate::support::script::{Gate, Message};
use crate::support::sidekey::{Options, REAL_KEY, Sidekey};

const SECRET: &[u8] = b"0123456789abcdef0123456789abcdef";

/// A sidekey whose receiver is `receiver`, and whose provider refuses every key.
async fn start(receiver: &Provider, more: &str) -> (Sidekey, Provider) {
    let provider = Provider::always(Message::json(401, "{}")).await;
    let hook = format!(
        "[alerts]\ninstance = \"here\"\n{more}\n[alerts.webhooks.ops]\nurl = \"{}/hook?a=b\"\nsecret = \"env:HOOK\"\n\
         allow_private = true\ntimeout = \"500ms\"\n",
        receiver.url()
    );
    let secret = format!("whsec_{}", STANDARD.encode(SECRET));
    let options = Options::new().provider("openai", &provider.url()).config(&hook).env("HOOK", secret);
    (Sidekey::start(&options).await, provider)
}

/// Adds keys that the provider refuses, and has them tried: one alert each, in their order.
async fn refuse_keys(sidekey: &Sidekey, names: &[&str]) {
    for name in names {
        sidekey.add_provider_key_as("openai", &format!("{REAL_KEY}-{name}"), &["--name", name]).await;
    }
    let key = sidekey.create_key(&["--name", names[0]]).await;
    let request = Request::post("/openai/v1/chat/completions", r#"{"model":"gpt-4o","messages":[]}"#).bearer(&key.key);
    assert_eq!(sidekey.send(&request).await.status, 502);
}

/// Checks what a receiver must; gives the body.
fn checked(seen: &Seen) -> Value {
    assert_eq!((&*seen.method, &*seen.target), ("POST", "/hook?a=b"));
    let header = |name| seen.header(name).unwrap_or_else(|| panic!("no {name}"));
    let (id, time) = (header("webhook-id"), header("webhook-timestamp"));
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970").as_secs();
    assert!(now.abs_diff(time.parse().expect("seconds")) < 300, "{time}");
    let body = seen.body();
    let signed = [format!("{id}.{time}.").as_bytes(), &body].concat();
    let signature = header("webhook-signature").strip_prefix("v1,").expect("a version");
    let signature = STANDARD.decode(signature).expect("base64");
    hmac::verify(&hmac::Key::new(hmac::HMAC_SHA256, SECRET), &signed, &signature).expect("the signature is good");
    assert!(!seen.contains(REAL_KEY) && !seen.contains("sk-side-"));
    serde_json::from_slice(&body).expect("JSON")
}

async fn received(receiver: &Provider, number: usize) -> Value {
    let seen = receiver.wait_for_request(number).await;
    seen.wait(Duration::from_secs(10), "whole", |progress| progress.whole).await;
    checked(&seen)
}

#[tokio::test]
async fn an_alert_is_signed_and_sent_until_it_arrives() {
    let receiver = Provider::always(Message::new(204)).await;
    receiver.push(Message::new(500));
    let never = Gate::new();
    receiver.push(Message { before: Some(never), ..Message::new(200) });
    let (sidekey, _provider) = start(&receiver, "").await;
    refuse_keys(&sidekey, &["first", "second", "third"]).await;
    let mut told = Vec::new();
    for number in 0..5 {
        told.push(received(&receiver, number).await);
    }
    // The first is answered 500, then not at all, and then arrives; those behind it wait.
    let message = |body: &Value| body["data"]["message"].as_str().expect("text").to_owned();
    for (number, name) in [(0, "first"), (1, "first"), (2, "first"), (3, "second"), (4, "third")] {
        assert!(message(&told[number]).starts_with(&format!("openai/{name} is error")), "{number}: {}", told[number]);
    }
    assert_eq!(told[0], told[2]);
    let seen = receiver.seen();
    let id = |number: usize| seen[number].header("webhook-id").expect("an id").to_owned();
    assert!(id(0) == id(1) && id(1) == id(2) && id(2) != id(3));
    let first = &told[0];
    assert_eq!((&first["type"], &first["data"]["severity"]), (&"provider_key.error".into(), &"error".into()));
    assert_eq!((&first["data"]["instance"], &first["data"]["count"]), (&"here".into(), &1.into()));
    let page = sidekey.metrics().await;
    assert!(page.contains("sidekey_alerts_total{outcome=\"failed\"} 0"), "{page}");
    let listed: Value =
        serde_json::from_str(&sidekey.ok(&["alerts", "--kind", "provider_key", "-o", "json"]).await).expect("JSON");
    assert_eq!(listed["alerts"].as_array().map(Vec::len), Some(3));
    assert_eq!(format!("msg_{}", listed["alerts"][2]["id"].as_str().expect("an id")), id(0));
}

#[tokio::test]
async fn what_repeats_is_counted_and_told_before_the_end() {
    let receiver = Provider::always(Message::new(200)).await;
    let (mut sidekey, _provider) = start(&receiver, "").await;
    refuse_keys(&sidekey, &["only"]).await;
    for _ in 0..3 {
        sidekey.ok(&["provider-key", "enable", "only"]).await;
        let key = sidekey.create_key(&["--name", "again"]).await;
        sidekey.send(&Request::post("/openai/v1/chat/completions", r#"{"model":"gpt-4o"}"#).bearer(&key.key)).await;
    }
    assert_eq!(received(&receiver, 0).await["data"]["count"], 1);
    assert_eq!(receiver.count(), 1);
    sidekey.stop().await;
    assert_eq!(received(&receiver, 1).await["data"]["count"], 3);
    assert_eq!(receiver.count(), 2);
}

#[tokio::test]
async fn a_test_says_whether_a_receiver_hears() {
    let receiver = Provider::always(Message::new(200)).await;
    let (sidekey, _provider) = start(&receiver, "").await;
    let said = sidekey.ok(&["alerts", "test", "ops"]).await;
    assert!(said.contains("ops") && said.contains("it has arrived"), "{said}");
    assert_eq!(received(&receiver, 0).await["type"], "alert.test");
    receiver.push(Message::new(404));
    let output = sidekey.cli(&["alert", "test", "-o", "json"]).await;
    let told: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!((output.status.code(), &told["results"][0]["status"]), (Some(1), &404.into()));
    assert_eq!(sidekey.cli(&["alerts", "test", "nobody"]).await.status.code(), Some(5));
    let audit = sidekey.ok(&["audit", "--action", "alerts.test", "-o", "jsonl"]).await;
    assert_eq!(audit.lines().count(), 6, "each began and ended: {audit}");
}

#[tokio::test]
async fn a_receiver_that_cannot_be_is_named_at_the_start() {
    let sidekey = Sidekey::start(&Options::new()).await;
    let file = sidekey.folder().join("hooks.toml");
    let config = file.to_str().expect("text").to_owned();
    for (line, exit, part) in [
        ("url = \"https://169.254.169.254/\"\nsecret = \"plain\"", 3, "alerts.webhooks.a.secret"),
        ("url = \"http://a.example/\"\nsecret = \"env:A\"", 3, "alerts.webhooks.a.url"),
        ("url = \"https://a.example/\"\nsecret = \"env:NOT_SET\"", 3, "the variable NOT_SET is not set"),
    ] {
        std::fs::write(&file, format!("[alerts.webhooks.a]\n{line}\n")).expect("a writable folder");
        let other = sidekey.folder().join("other");
        let other = other.to_str().expect("text");
        sidekey.cli(&["--data-dir", other, "init"]).await;
        let run =
            ["--config", &config, "--data-dir", other, "run", "--proxy", "127.0.0.1:0", "--telemetry", "127.0.0.1:0"];
        let output = sidekey.cli(&run).await;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(exit), "{line}: {said}");
        assert!(said.contains(part) && !said.contains("plain"), "{said}");
    }
}

#[tokio::test]
async fn a_canary_key_is_refused_like_an_unknown_one_and_told_of() {
    let provider = Provider::always(Message::json(200, "{}")).await;
    let sidekey = Sidekey::start(&Options::new().provider("openai", &provider.url())).await;
    sidekey.add_provider_key("openai", REAL_KEY).await;
    let canary = sidekey.create_key(&["--name", "in the wiki", "--canary"]).await;
    assert_eq!(canary.data["canary"], true);
    let ask = |key: String| {
        let request = Request::post("/openai/v1/chat/completions", r#"{"model":"gpt-4o"}"#).bearer(&key);
        let sidekey = &sidekey;
        async move { sidekey.send(&request).await }
    };
    let last = canary.key.len() - 1;
    let unknown = format!("sk-side-0123456789abcdef-{}", "x".repeat(43));
    let wrong = format!("{}{}", &canary.key[..last], if canary.key.ends_with('0') { '1' } else { '0' });
    let strip = |answer: crate::support::client::Answer| {
        let body: Value = serde_json::from_slice(&answer.body).expect("JSON");
        (answer.status, body["error"]["message"].clone(), body["error"]["code"].clone())
    };
    let expected = strip(ask(unknown).await);
    assert_eq!(expected.0, 401);
    // Only who has the secret sets it off; twice is told once.
    for key in [wrong, canary.key.clone(), canary.key] {
        assert_eq!(strip(ask(key).await), expected);
    }
    assert_eq!(provider.count(), 0);
    let told = sidekey.ok(&["alerts", "--kind", "key.canary", "-o", "jsonl"]).await;
    let told: Vec<Value> = told.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert_eq!(told.len(), 1, "{told:?}");
    assert_eq!(told[0]["severity"], "error");
    assert_eq!(told[0]["message"], "the canary key \"in the wiki\" was used from 127.0.0.1");
    let page = sidekey.metrics().await;
    assert!(page.contains("sidekey_key_validation_failures_total{reason=\"canary\"} 2"), "{page}");
    sidekey.ok(&["key", "update", "in the wiki", "--canary", "false"]).await;
}
