//! Limits under load: never more than allowed, told exactly, and not forgotten.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::support::client::{Answer, Client, Request};
use crate::support::provider::Provider;
use crate::support::script::{Gate, Message};
use crate::support::sidekey::{REAL_KEY, Sidekey};

const CHAT: &str = "/openai/v1/chat/completions";

/// Ten tokens in, as the estimate may see it, and exactly 100 in the answer.
const BODY: &str = r#"{"model":"gpt-4o-mini","max_tokens":60,"messages":[{"role":"user","content":"Say hello."}]}"#;
const ANSWER: &str =
    r#"{"model":"gpt-4o-mini","choices":[],"usage":{"prompt_tokens":40,"completion_tokens":60,"total_tokens":100}}"#;

async fn start() -> (Provider, Sidekey) {
    let provider = Provider::always(Message::json(200, ANSWER)).await;
    let sidekey = Sidekey::with("openai", &provider.url()).await;
    (provider, sidekey)
}

fn chat(key: &str) -> Request {
    Request::post(CHAT, BODY).bearer(key)
}

fn number(answer: &Answer, name: &str) -> Option<u64> {
    answer.header(name)?.parse().ok()
}

/// Sends `total` requests, `parallel` at a time, and counts the answers by status.
async fn hammer(proxy: SocketAddr, key: &str, total: u64, parallel: u64) -> std::collections::BTreeMap<u16, u64> {
    let next = Arc::new(AtomicU64::new(0));
    let mut tasks = JoinSet::new();
    for _ in 0..parallel {
        let (next, request) = (Arc::clone(&next), chat(key));
        tasks.spawn(async move {
            let mut client = Client::connect(proxy).await.expect("sidekey listens");
            let mut statuses = vec![];
            while next.fetch_add(1, Ordering::Relaxed) < total {
                let answer = client.send(&request).await.expect("an answer");
                statuses.push(answer.status);
                if answer.headers.lists("connection", "close") {
                    client = Client::connect(proxy).await.expect("sidekey listens");
                }
            }
            statuses
        });
    }
    let mut counts = std::collections::BTreeMap::new();
    while let Some(statuses) = tasks.join_next().await {
        for status in statuses.expect("workers do not panic") {
            *counts.entry(status).or_default() += 1;
        }
    }
    counts
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_requests_against_a_request_limit() {
    let (provider, sidekey) = start().await;
    let rpm = 300_u64;
    let key = sidekey.create_key(&["--rpm", "300"]).await.key;
    let started = Instant::now();
    let counts = hammer(sidekey.proxy, &key, 10_000, 64).await;
    let elapsed = started.elapsed();
    let passed = counts.get(&200).copied().unwrap_or(0);
    // The bucket at the start, and what flowed in meanwhile; one more for the moment between our clock and its.
    let most = rpm + u64::try_from(elapsed.as_millis()).unwrap() * rpm / 60_000 + 1;
    assert!(passed >= rpm && passed <= most, "{passed} passed in {elapsed:?}; {rpm} to {most} are right ({counts:?})");
    assert_eq!(passed + counts.get(&429).copied().unwrap_or(0), 10_000, "{counts:?}");
    assert_eq!(provider.count() as u64, passed, "refused requests went upstream");
    // Every request has its entry, or there is a count of what was dropped.
    let last = sidekey.send(&chat(&key)).await;
    sidekey.entry(&last.request_id()).await;
    let paid = sidekey.ledger().await.iter().filter(|entry| entry["outcome"] == "ok").count() as u64;
    let paid_last = u64::from(last.status == 200);
    assert_eq!(paid, passed + paid_last, "the ledger and the answers disagree");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_requests_against_a_token_limit() {
    let (provider, sidekey) = start().await;
    let tpm = 20_000_u64;
    let key = sidekey.create_key(&["--tpm", "20000"]).await.key;
    let started = Instant::now();
    let counts = hammer(sidekey.proxy, &key, 10_000, 64).await;
    let elapsed = started.elapsed();
    let passed = counts.get(&200).copied().unwrap_or(0);
    // What was reserved too little by the last 64 is the only excess; each used 100 in truth.
    let most = tpm + u64::try_from(elapsed.as_millis()).unwrap() * tpm / 60_000 + 64 * 100;
    let used = passed * 100;
    assert!(used >= tpm * 8 / 10 && used <= most, "{used} tokens in {elapsed:?}; up to {most} are right ({counts:?})");
    assert_eq!(provider.count() as u64, passed);
}

#[tokio::test]
async fn a_refusal_says_when_to_come_back() {
    let (_provider, sidekey) = start().await;
    let key = sidekey.create_key(&["--rpm", "120", "--tpm", "1000000"]).await.key;
    let mut client = Client::connect(sidekey.proxy).await.unwrap();
    // Asks for so much that it is not refilled before the answer, however busy the machine.
    let first = Request::post(CHAT, BODY.replace("60", "200000")).bearer(&key);
    let first = client.send(&first).await.unwrap();
    assert_eq!(number(&first, "x-ratelimit-limit-rpm"), Some(120));
    assert_eq!(number(&first, "x-ratelimit-remaining-rpm"), Some(119));
    assert_eq!(number(&first, "x-ratelimit-limit-tpm"), Some(1_000_000));
    assert!(number(&first, "x-ratelimit-remaining-tpm") < Some(1_000_000));
    let mut last_remaining = 119;
    let refused = loop {
        let answer = client.send(&chat(&key)).await.unwrap();
        if answer.status == 429 {
            break answer;
        }
        let remaining = number(&answer, "x-ratelimit-remaining-rpm").expect("the header is on every answer");
        assert!(remaining <= last_remaining + 1, "{remaining} after {last_remaining}");
        last_remaining = remaining;
    };
    assert_eq!(refused.code(), "rate_limit_exceeded");
    assert_eq!(refused.header("x-should-retry"), Some("true"));
    assert_eq!(number(&refused, "x-ratelimit-remaining-rpm"), Some(0));
    let (seconds, millis) =
        (number(&refused, "retry-after"), number(&refused, "retry-after-ms").expect("retry-after-ms"));
    assert!((1..=500).contains(&millis), "{millis} ms");
    assert_eq!(seconds, Some(millis.div_ceil(1000)));
    assert!(refused.text().contains("120"), "the limit is not named: {}", refused.text());
    tokio::time::sleep(std::time::Duration::from_millis(millis)).await;
    assert_eq!(client.send(&chat(&key)).await.unwrap().status, 200, "the promised moment was too early");
    let open = sidekey.create_key(&["--name", "open"]).await.key;
    let answer = client.send(&chat(&open)).await.unwrap();
    assert!(
        answer.headers.0.iter().all(|(name, _)| !name.to_lowercase().starts_with("x-ratelimit-")),
        "no limit, no header"
    );
}

#[tokio::test]
async fn more_than_the_limit_itself_is_refused_at_once() {
    let (provider, sidekey) = start().await;
    let key = sidekey.create_key(&["--tpm", "50"]).await.key;
    let request = Request::post(CHAT, BODY.replace("60", "4000")).bearer(&key);
    let answer = sidekey.send(&request).await;
    assert_eq!(answer.status, 429, "{}", answer.text());
    assert_eq!((answer.header("retry-after"), provider.count()), (None, 0), "waiting would not help");
}

#[tokio::test]
async fn tokens_are_settled_by_what_was_used() {
    let (_provider, sidekey) = start().await;
    let key = sidekey.create_key(&["--tpm", "100000"]).await.key;
    // Asks for much, uses 100: what was reserved too much comes back.
    let request = Request::post(CHAT, BODY.replace("60", "50000")).bearer(&key);
    for _ in 0..5 {
        let answer = sidekey.send(&request).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        sidekey.entry(&answer.request_id()).await;
    }
    let answer = sidekey.send(&chat(&key)).await;
    let remaining = number(&answer, "x-ratelimit-remaining-tpm").expect("the header");
    // The bucket refills in between, so the upper bound says only that something was taken.
    assert!((98_000..100_000).contains(&remaining), "{remaining} of 100000 remain after 5 x 100 and an estimate");
}

#[tokio::test]
async fn an_underestimate_becomes_a_debt() {
    let (provider, sidekey) = start().await;
    let key = sidekey.create_key(&["--tpm", "1000"]).await.key;
    provider.push(Message::json(
        200,
        r#"{"model":"m","usage":{"prompt_tokens":40,"completion_tokens":1960,"total_tokens":2000}}"#,
    ));
    let answer = sidekey.send(&chat(&key)).await;
    assert_eq!(answer.status, 200);
    sidekey.entry(&answer.request_id()).await;
    let refused = sidekey.send(&chat(&key)).await;
    assert_eq!(refused.status, 429, "{}", refused.text());
    // 1,000 of debt at 1,000 a minute, and this request's own estimate.
    let wait = number(&refused, "retry-after-ms").expect("retry-after-ms");
    assert!((55_000..=75_000).contains(&wait), "{wait} ms");
}

#[tokio::test]
async fn requests_in_flight() {
    let (provider, sidekey) = start().await;
    let key = sidekey.create_key(&["--max-in-flight", "2"]).await.key;
    let gate = Gate::new();
    for _ in 0..2 {
        provider.push(Message::sse(["data: 1\n\n"]).gate(&gate));
    }
    let mut clients = [Client::connect(sidekey.proxy).await.unwrap(), Client::connect(sidekey.proxy).await.unwrap()];
    let [one, two] = &mut clients;
    let mut first = one.start(&chat(&key)).await.unwrap();
    let mut second = two.start(&chat(&key)).await.unwrap();
    first.until("1").await;
    second.until("1").await;
    let refused = sidekey.send(&chat(&key)).await;
    assert_eq!((refused.status, &*refused.code()), (429, "rate_limit_exceeded"), "{}", refused.text());
    // One leaves; its place is free as soon as sidekey knows.
    drop(clients);
    gate.open();
    sidekey.entry_where("the stream that was left", |entry| entry["outcome"] == "client_disconnected").await;
    assert_eq!(sidekey.send(&chat(&key)).await.status, 200);
}

#[tokio::test]
async fn limits_survive_a_restart_and_a_kill() {
    let (_provider, mut sidekey) = start().await;
    let key = sidekey.create_key(&["--rpm", "60", "--tpm", "100000"]).await;
    for round in ["stop", "kill"] {
        let mut client = Client::connect(sidekey.proxy).await.unwrap();
        let mut last = client.send(&chat(&key.key)).await.unwrap();
        while last.status == 200 {
            last = client.send(&chat(&key.key)).await.unwrap();
        }
        sidekey.entry(&last.request_id()).await;
        let used_up = Instant::now();
        if round == "stop" {
            sidekey.stop().await
        } else {
            sidekey.kill().await
        }
        sidekey.restart().await;
        let counts = hammer(sidekey.proxy, &key.key, 100, 1).await;
        let passed = counts.get(&200).copied().unwrap_or(0);
        let flowed_in = used_up.elapsed().as_secs() + 2;
        assert!(passed <= flowed_in, "after {round}: {passed} passed, {flowed_in} flowed in");
    }
}

#[tokio::test]
async fn refused_requests_cost_nothing() {
    let (provider, sidekey) = start().await;
    let key = sidekey.create_key(&["--tpm", "100000"]).await.key;
    provider.push(Message::json(400, r#"{"error":{"message":"no","type":"invalid_request_error"}}"#));
    let answer = sidekey.send(&chat(&key)).await;
    assert_eq!(answer.status, 400);
    let entry = sidekey.entry(&answer.request_id()).await;
    assert_eq!((&entry["tokens_source"], &entry["outcome"]), (&"none".into(), &"upstream_error".into()));
    let answer = sidekey.send(&chat(&key)).await;
    assert!(number(&answer, "x-ratelimit-remaining-tpm") > Some(99_000), "{:?}", answer.headers);
    assert!(!answer.text().contains(REAL_KEY));
}
