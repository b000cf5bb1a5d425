//! Pools of provider keys: whose key pays, which is chosen, and what happens when it fails.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};

use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::support::client::{Client, Request};
use crate::support::provider::{Provider, Seen};
use crate::support::script::Message;
use crate::support::sidekey::Sidekey;

const CHAT: &str = "/openai/v1/chat/completions";
const BODY: &str = r#"{"model":"gpt-4o-mini","max_tokens":60,"messages":[{"role":"user","content":"Say hello."}]}"#;
const ANSWER: &str =
    r#"{"model":"gpt-4o-mini","choices":[],"usage":{"prompt_tokens":40,"completion_tokens":60,"total_tokens":100}}"#;

fn secret(n: usize) -> String {
    format!("sk-real-{n}-Kq7WmZ3xTn9vRb2cYh5dJf8gLs4p")
}

fn key_of(seen: &Seen) -> usize {
    let text = seen.header("authorization").expect("a credential");
    text.split('-').nth(2).and_then(|n| n.parse().ok()).expect("one of ours")
}

async fn start(keys: usize, flags: &[&str]) -> (Provider, Sidekey) {
    let provider = Provider::always(Message::json(200, ANSWER)).await;
    let sidekey = Sidekey::with("openai", &provider.url()).await;
    sidekey.ok(&["provider-key", "disable", "main"]).await;
    for n in 0..keys {
        let name = format!("k{n}");
        let flags: Vec<&str> = ["--name", &name].iter().chain(flags).copied().collect();
        sidekey.add_provider_key_as("openai", &secret(n), &flags).await;
    }
    (provider, sidekey)
}

fn counts(provider: &Provider) -> BTreeMap<usize, usize> {
    provider.seen().iter().fold(BTreeMap::new(), |mut counts, seen| {
        *counts.entry(key_of(seen)).or_default() += 1;
        counts
    })
}

#[tokio::test]
async fn a_keys_own_limits_lead_to_the_next_key() {
    let (provider, sidekey) = start(2, &["--rpm", "2", "--quota", "1000/day"]).await;
    let key = sidekey.create_key(&[]).await.key;
    for _ in 0..4 {
        assert_eq!(sidekey.send(&Request::post(CHAT, BODY).bearer(&key)).await.status, 200);
    }
    assert_eq!(counts(&provider), BTreeMap::from([(0, 2), (1, 2)]));
    // The bucket refills while a busy machine goes on: more than it can give meanwhile is asked for.
    let large = BODY.replace("60", "2000");
    let refused = sidekey.send(&Request::post(CHAT, large).bearer(&key)).await;
    assert_eq!((refused.status, &*refused.code()), (503, "no_provider_key"), "{}", refused.text());
    assert!(refused.text().contains("provider key"), "{}", refused.text());
    assert_eq!(provider.count(), 4, "it was sent all the same");
    // What was used is what the answers said, not what was reserved.
    sidekey.entry_where("all four", |entry| entry["outcome"] == "ok").await;
    let shown = sidekey.provider_key("k0").await;
    let quota = shown["in_force"].as_array().expect("limits").iter().find(|limit| limit["limit"] == "quota");
    let quota = quota.unwrap_or_else(|| panic!("no quota: {shown}"));
    assert_eq!((&quota["used"], &quota["reserved"]), (&json!(200), &json!(0)), "{shown}");
    // Without its limits it serves at once.
    sidekey.ok(&["provider-key", "update", "k0", "--rpm", "none", "--quota", "none"]).await;
    for _ in 0..3 {
        assert_eq!(sidekey.send(&Request::post(CHAT, BODY).bearer(&key)).await.status, 200);
    }
    let (status, problem) = sidekey
        .admin_as(
            "PATCH",
            &format!("/api/provider-keys/{}", shown["id"].as_str().expect("an id")),
            "",
            &json!({"hard_stop": true}),
        )
        .await;
    assert_eq!((status, &problem["field"]), (422, &json!("hard_stop")), "{problem}");
}

#[tokio::test]
async fn a_pool_holds_its_keys_alone() {
    let (provider, sidekey) = start(3, &[]).await;
    sidekey.ok(&["pool", "create", "--name", "two", "--keys", "k0,openai/k1", "--policy", "round-robin"]).await;
    let key = sidekey.create_key(&["--pool", "two"]).await;
    let send = || async {
        let answer = sidekey.send(&Request::post(CHAT, BODY).bearer(&key.key)).await;
        (answer.status, answer.code())
    };
    for _ in 0..6 {
        assert_eq!(send().await.0, 200);
    }
    assert_eq!(counts(&provider), BTreeMap::from([(0, 3), (1, 3)]));
    let refused = sidekey.cli(&["pool", "delete", "two"]).await;
    assert!(!refused.status.success(), "a virtual key is bound to it");
    // What changes is in force for the next request.
    let shown: Value =
        serde_json::from_str(&sidekey.ok(&["pool", "update", "two", "--keys", "k2", "-o", "json"]).await).unwrap();
    assert_eq!((&shown["keys"][0]["name"], &shown["virtual_keys"]), (&json!("k2"), &json!(1)), "{shown}");
    assert_eq!(send().await.0, 200);
    assert_eq!(counts(&provider).get(&2), Some(&1));
    sidekey.ok(&["provider-key", "disable", "k2"]).await;
    assert_eq!(send().await, (503, "no_provider_key".to_owned()), "the others are not the pool's");
    assert_eq!(provider.count(), 7);
    sidekey.ok(&["key", "revoke", &key.id]).await;
    sidekey.ok(&["key", "delete", &key.id]).await;
    sidekey.ok(&["pool", "delete", "two"]).await;
}

#[tokio::test]
async fn what_begins_alike_sticks_together() {
    let (provider, sidekey) = start(5, &[]).await;
    sidekey.ok(&["pool", "create", "--name", "all", "--keys", "k0,k1,k2,k3,k4", "--sticky"]).await;
    let key = sidekey.create_key(&["--pool", "all"]).await.key;
    let body = |talk: usize, turn: usize| {
        let start = format!("{talk} ").repeat(600);
        json!({"model": "gpt-4o-mini", "messages": [{"role": "user", "content": format!("{start}{turn}")}]}).to_string()
    };
    let mut used = HashSet::new();
    for talk in 0..8 {
        let before = provider.count();
        for turn in 0..4 {
            assert_eq!(sidekey.send(&Request::post(CHAT, body(talk, turn)).bearer(&key)).await.status, 200);
        }
        let keys: HashSet<usize> = provider.seen()[before..].iter().map(|seen| key_of(seen)).collect();
        assert_eq!(keys.len(), 1, "talk {talk} went to {keys:?}");
        used.extend(keys);
    }
    assert!(used.len() > 1, "all talks went to one key");
}

/// Whose a secret is, by the owner in it.
fn owner_of(seen: &Seen) -> String {
    seen.header("authorization").and_then(|text| text.split('-').nth(2)).expect("one of ours").to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_request_is_sent_with_a_key_of_others() {
    let turns = AtomicU64::new(0);
    let provider = Provider::start(move |_| {
        // Some fail, so that other keys are tried too; not so many that every key of a caller rests all the time.
        match turns.fetch_add(1, Ordering::Relaxed) % 8 {
            0 => Message::json(500, "{}").into(),
            1 => Message::json(503, "{}").into(),
            _ => Message::json(200, ANSWER).into(),
        }
    })
    .await;
    let sidekey = Sidekey::start(&crate::support::sidekey::Options::new().provider("openai", &provider.url())).await;
    for (n, owner) in
        ["system", "system", "user:ann", "user:bob", "team:red", "team:blue", "team:ann"].iter().enumerate()
    {
        let secret = format!("sk-real-{}-{n}Kq7WmZ3xTn9vRb2cYh5dJf8g", owner.replace(':', "."));
        sidekey.add_provider_key_as("openai", &secret, &["--name", &format!("k{n}"), "--owner", owner]).await;
    }
    sidekey.ok(&["pool", "create", "--name", "some", "--keys", "k0,k2,k5"]).await;
    let mut tasks = JoinSet::new();
    let callers: [(&[&str], &[&str]); 8] = [
        (&[], &["system"]),
        (&["--user", "ann"], &["user.ann", "system"]),
        (&["--user", "bob", "--team", "red"], &["user.bob", "team.red", "system"]),
        (&["--team", "ann"], &["team.ann", "system"]),
        (&["--user", "ann", "--team", "blue", "--fallback", "none"], &["user.ann"]),
        (&["--team", "blue", "--fallback", "none"], &["team.blue"]),
        (&["--user", "bob", "--team", "blue", "--pool", "some"], &["team.blue", "system"]),
        (&["--user", "carol", "--pool", "some"], &["system"]),
    ];
    for (n, (flags, _)) in callers.iter().enumerate() {
        let key = sidekey.create_key(&[&["--name", &format!("caller {n}")], *flags].concat()).await.key;
        let proxy = sidekey.proxy;
        tasks.spawn(async move {
            let mut client = Client::connect(proxy).await.expect("sidekey listens");
            for _ in 0..60 {
                let request = Request::post(CHAT, BODY).bearer(&key).header("x-caller", n.to_string());
                client.send(&request).await.expect("an answer");
            }
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.expect("an answer each");
    }
    let mut used: HashMap<usize, HashSet<String>> = HashMap::new();
    for seen in provider.seen() {
        let caller: usize = seen.header("x-caller").and_then(|text| text.parse().ok()).expect("our header");
        used.entry(caller).or_default().insert(owner_of(&seen));
    }
    for (n, (flags, allowed)) in callers.iter().enumerate() {
        let allowed: HashSet<String> = allowed.iter().map(|owner| (*owner).to_owned()).collect();
        let theirs = used.get(&n).unwrap_or_else(|| panic!("{flags:?}: nothing was sent"));
        assert!(theirs.is_subset(&allowed), "{flags:?}: {theirs:?}");
    }
    let tiers: usize = used.values().map(HashSet::len).sum();
    assert!(tiers > callers.len(), "nobody fell back: {used:?}");
}
