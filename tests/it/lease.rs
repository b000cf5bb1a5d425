//! Leases: a real key handed out, what is reserved for it, and what is reported of it.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use crate::support::client::PATIENCE;
use crate::support::provider::Provider;
use crate::support::script::Message;
use crate::support::sidekey::{Key, Options, Sidekey};

const ALICES: &str = "sk-alice-Kq7WmZ3xTn9vRb2cYh5dJf8gLs4p";
const SYSTEMS: &str = "sk-system-Wm7KqZ3xTn9vRb2cYh5dJf8gLs4p";
const PRICE: &str = "[prices.\"openai/m\"]\ninput = \"1\"\noutput = \"2\"\n";

/// A pool of a key of alice's and one of the system's.
async fn start(config: &str) -> (Provider, Sidekey) {
    let provider = Provider::always(Message::json(200, "{}")).await;
    let sidekey = Sidekey::start(&Options::new().config(config).provider("openai", &provider.url())).await;
    sidekey.add_provider_key_as("openai", ALICES, &["--name", "alices", "--owner", "user:alice"]).await;
    sidekey.add_provider_key_as("openai", SYSTEMS, &["--name", "systems"]).await;
    sidekey.ok(&["pool", "create", "--name", "batch", "--keys", "alices,systems"]).await;
    (provider, sidekey)
}

async fn key(sidekey: &Sidekey, flags: &[&str]) -> Key {
    sidekey.create_key(&[&["--pool", "batch", "--lease"], flags].concat()).await
}

async fn ask(sidekey: &Sidekey, path: &str, key: &str, body: &Value) -> (u16, Value) {
    sidekey.admin_as("POST", &format!("/api/pools/{path}"), &format!("x-sidekey-key: {key}\r\n"), body).await
}

/// What the budget of a key shows.
async fn budget(sidekey: &Sidekey, id: &str) -> (Value, Value) {
    let shown = sidekey.admin("GET", &format!("/api/keys/{id}"), &Value::Null).await;
    let limits = shown["in_force"].as_array().expect("limits").clone();
    let budget = limits.into_iter().find(|limit| limit["limit"] == "budget").expect("a budget");
    (budget["used"].clone(), budget["reserved"].clone())
}

#[tokio::test]
async fn a_key_is_handed_out_and_what_it_was_used_for_is_counted() {
    let (provider, sidekey) = start(PRICE).await;
    let alice = key(&sidekey, &["--user", "alice"]).await;
    assert_eq!(alice.data["lease"], true);
    let (status, lease) = ask(&sidekey, "batch/lease", &alice.key, &json!({"model": "m", "ttl": "5m"})).await;
    assert_eq!(status, 201, "{lease}");
    assert_eq!(
        (&lease["key"], &lease["provider"], &lease["key_source"]),
        (&json!(ALICES), &json!("openai"), &json!("user"))
    );
    assert_eq!(lease["base_url"], provider.url());
    assert!(lease["expires"].as_str() > lease["granted"].as_str(), "{lease}");
    // Nobody else is given alice's.
    let bob = key(&sidekey, &["--user", "bob"]).await;
    let (_, other) = ask(&sidekey, "batch/lease", &bob.key, &json!({})).await;
    assert_eq!((&other["key"], &other["key_source"]), (&json!(SYSTEMS), &json!("system")));

    let tokens = json!({"input": 1_000, "output": 500});
    let report =
        json!({"lease": lease["lease"], "report": "call-1", "tokens": tokens, "endpoint": "chat", "status": 200});
    let (status, first) = ask(&sidekey, "batch/usage", &alice.key, &report).await;
    // 1,000 at a dollar and 500 at two dollars the million.
    assert_eq!((status, &first["recorded"], &first["cost_usd"]), (201, &json!(true), &json!("0.002")), "{first}");
    let (status, again) = ask(&sidekey, "batch/usage", &alice.key, &report).await;
    assert_eq!((status, &again["recorded"]), (200, &json!(false)), "{again}");
    let entry = sidekey.entry(first["request_id"].as_str().expect("an id")).await;
    assert_eq!(
        (&entry["virtual_key_id"], &entry["key_source"], &entry["pool"]),
        (&json!(alice.id), &json!("user"), &json!("batch"))
    );
    assert_eq!(
        (&entry["tokens"]["total"], &entry["endpoint"], &entry["outcome"]),
        (&json!(1_500), &json!("chat"), &json!("ok"))
    );
    assert_eq!(sidekey.ledger().await.len(), 1, "the same report twice is one entry");
    // Who has not got the lease may not report of it, and a last report is the last.
    let (status, refused) = ask(&sidekey, "batch/usage", &bob.key, &report).await;
    assert_eq!((status, &refused["code"]), (404, &json!("unknown_lease")));
    let last = json!({"lease": lease["lease"], "report": "call-2", "status": 429, "final": true});
    let (status, refused) = ask(&sidekey, "batch/usage", &alice.key, &last).await;
    assert_eq!((status, &refused["cost_usd"]), (201, &Value::Null), "{refused}");
    let late = json!({"lease": lease["lease"], "report": "call-3"});
    let (status, refused) = ask(&sidekey, "batch/usage", &alice.key, &late).await;
    assert_eq!((status, &refused["code"]), (409, &json!("lease_ended")), "{refused}");
    // It is told and recorded, and the key is nowhere but in the answer.
    let told = sidekey.admin("GET", "/api/alerts?limit=50", &Value::Null).await.to_string();
    let audit = sidekey.admin("GET", "/api/audit?limit=50", &Value::Null).await.to_string();
    for (name, text, words) in
        [("alerts", &told, ["lease.granted", "lease.reported"]), ("audit", &audit, ["pool.lease", "pool.usage"])]
    {
        assert!(words.iter().all(|word| text.contains(word)), "{name}: {text}");
    }
    for text in [told, audit, sidekey.stderr()] {
        assert!(!text.contains(ALICES) && !text.contains(SYSTEMS), "a key is shown: {text}");
    }
}

#[tokio::test]
async fn who_is_given_none() {
    let (_provider, sidekey) = start("").await;
    sidekey.ok(&["pool", "create", "--name", "other", "--keys", "systems"]).await;
    let good = key(&sidekey, &[]).await;
    let plain = sidekey.create_key(&["--pool", "batch"]).await;
    let limited = key(&sidekey, &["--models", "gpt-*", "--providers", "openai"]).await;
    let elsewhere = key(&sidekey, &["--providers", "anthropic"]).await;
    let budgeted = key(&sidekey, &["--budget", "1", "--quota", "1000/day"]).await;
    let off = key(&sidekey, &[]).await;
    sidekey.ok(&["key", "disable", &off.id]).await;
    let far = key(&sidekey, &["--sources", "10.0.0.0/8"]).await;
    let rated = key(&sidekey, &["--rpm", "1"]).await;
    assert_eq!(ask(&sidekey, "batch/lease", &rated.key, &json!({})).await.0, 201);
    let wrong = format!("{}x", &good.key[..good.key.len() - 1]);
    let reserve = |input: u64, usd: &str| json!({"reserve": {"input_tokens": input, "usd": usd}});
    for (name, path, key, body, status, code) in [
        ("no flag", "batch/lease", &*plain.key, json!({}), 403, "permission_denied"),
        ("another pool", "other/lease", &good.key, json!({}), 403, "permission_denied"),
        ("no pool", "nowhere/lease", &good.key, json!({}), 403, "permission_denied"),
        ("no key", "batch/lease", "", json!({}), 401, "invalid_api_key"),
        ("a wrong secret", "batch/lease", &wrong, json!({}), 401, "invalid_api_key"),
        ("disabled", "batch/lease", &off.key, json!({}), 403, "permission_denied"),
        ("from elsewhere", "batch/lease", &far.key, json!({}), 403, "permission_denied"),
        ("too long", "batch/lease", &good.key, json!({"ttl": "11m"}), 422, "invalid"),
        ("for nothing", "batch/lease", &good.key, json!({"ttl": "0s"}), 422, "invalid"),
        ("no model said", "batch/lease", &limited.key, json!({}), 403, "permission_denied"),
        ("another model", "batch/lease", &limited.key, json!({"model": "o3"}), 403, "model_not_allowed"),
        ("its model", "batch/lease", &limited.key, json!({"model": "gpt-4o"}), 201, ""),
        ("another provider", "batch/lease", &elsewhere.key, json!({}), 403, "permission_denied"),
        ("an unknown provider", "batch/lease", &good.key, json!({"provider": "opnai"}), 422, "invalid"),
        ("nothing reserved", "batch/lease", &budgeted.key, json!({}), 422, "invalid"),
        ("no money reserved", "batch/lease", &budgeted.key, reserve(10, "0"), 422, "invalid"),
        ("too much reserved", "batch/lease", &budgeted.key, reserve(10, "1.01"), 429, "insufficient_quota"),
        ("reserved", "batch/lease", &budgeted.key, reserve(10, "0.5"), 201, ""),
        ("the rest is too little", "batch/lease", &budgeted.key, reserve(10, "0.6"), 429, "insufficient_quota"),
        ("too often", "batch/lease", &rated.key, json!({}), 429, "rate_limit_exceeded"),
        ("an unknown field", "batch/lease", &good.key, json!({"tll": "1m"}), 400, "bad_request"),
        (
            "an unknown lease",
            "batch/usage",
            &good.key,
            json!({"lease": "0123456789abcdef", "report": "a"}),
            404,
            "unknown_lease",
        ),
    ] {
        let (got, answer) = ask(&sidekey, path, key, &body).await;
        assert_eq!((got, answer["code"].as_str().unwrap_or_default()), (status, code), "{name}: {answer}");
    }
    for name in ["alices", "systems"] {
        sidekey.ok(&["provider-key", "disable", name]).await;
    }
    let (status, answer) = ask(&sidekey, "batch/lease", &good.key, &json!({})).await;
    assert_eq!((status, &answer["code"]), (503, &json!("no_provider_key")), "{answer}");
    let output = sidekey.cli(&["key", "update", &good.id, "--pool", ""]).await;
    assert_eq!(output.status.code(), Some(5), "a key that may lease has a pool");
    sidekey.ok(&["key", "update", &good.id, "--lease", "false"]).await;
    assert_eq!(ask(&sidekey, "batch/lease", &good.key, &json!({})).await.0, 403);
}

#[tokio::test]
async fn what_is_reserved_is_charged_unless_it_is_reported() {
    let (_provider, mut sidekey) = start(&format!("{PRICE}[provider_keys]\nlease_max = \"1h\"\n")).await;
    let held = key(&sidekey, &["--budget", "10"]).await;
    let wish = |ttl: &str| json!({"model": "m", "ttl": ttl, "reserve": {"input_tokens": 100, "output_tokens": 50, "usd": "4"}});
    let (status, lease) = ask(&sidekey, "batch/lease", &held.key, &wish("1h")).await;
    assert_eq!(status, 201, "{lease}");
    assert_eq!(budget(&sidekey, &held.id).await, (json!("0"), json!("4")));
    // A restart forgets neither the lease nor what it holds.
    sidekey.kill().await;
    sidekey.restart().await;
    assert_eq!(budget(&sidekey, &held.id).await, (json!("0"), json!("4")));
    let report = |id: &str, last: bool| json!({"lease": lease["lease"], "report": id, "tokens": {"input": 1_000_000, "output": 0}, "final": last});
    assert_eq!(ask(&sidekey, "batch/usage", &held.key, &report("a", false)).await.0, 201);
    assert_eq!(budget(&sidekey, &held.id).await, (json!("1"), json!("3")));
    sidekey.kill().await;
    sidekey.restart().await;
    assert_eq!(ask(&sidekey, "batch/usage", &held.key, &report("a", false)).await.0, 200, "it was reported before");
    assert_eq!(budget(&sidekey, &held.id).await, (json!("1"), json!("3")));
    assert_eq!(ask(&sidekey, "batch/usage", &held.key, &report("b", true)).await.0, 201);
    assert_eq!(budget(&sidekey, &held.id).await, (json!("2"), json!("0")), "the last report gives the rest back");

    let (_, lease) = ask(&sidekey, "batch/lease", &held.key, &wish("1s")).await;
    let entry = sidekey.entry_where("what was not reported", |entry| entry["error_code"] == "lease_unreported").await;
    assert_eq!(
        (&entry["cost_usd"], &entry["tokens"]["total"], &entry["tokens_source"]),
        (&json!("4"), &json!(150), &json!("estimated"))
    );
    let deadline = Instant::now() + PATIENCE;
    while budget(&sidekey, &held.id).await != (json!("6"), json!("0")) {
        assert!(Instant::now() < deadline, "{:?}", budget(&sidekey, &held.id).await);
        sleep(Duration::from_millis(20)).await;
    }
    let late = json!({"lease": lease["lease"], "report": "late"});
    assert_eq!(ask(&sidekey, "batch/usage", &held.key, &late).await.0, 404, "it has expired");
}
