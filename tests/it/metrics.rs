//! The page of metrics after real traffic, as Prometheus reads it.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Stdio;
use std::sync::Arc;

use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use crate::support::client::{Client, Request};
use crate::support::provider::Provider;
use crate::support::script::{Message, Reply};
use crate::support::sidekey::{Options, Sidekey};

const CHAT: &str = "/openai/v1/chat/completions";

fn body(model: &str, more: &str) -> String {
    format!(r#"{{"model":"{model}","messages":[{{"role":"user","content":"Hi."}}]{more}}}"#)
}

/// A provider that answers by what it is asked: streams, refuses the key `first`, does not know the model `none`.
async fn provider() -> Provider {
    Provider::start(|seen| {
        if seen.contains("sk-real-first") {
            return Message::json(429, r#"{"error":{"code":"rate_limit_exceeded","message":"slow"}}"#).into();
        }
        Reply::FromBody(Arc::new(|body| {
            let asked: Value = serde_json::from_slice(body).unwrap_or_default();
            let usage = json!({"prompt_tokens": 40, "completion_tokens": 60, "total_tokens": 100});
            match (asked["model"].as_str(), asked["stream"].as_bool()) {
                (Some("none"), _) => Message::json(404, r#"{"error":{"code":"model_not_found","message":"no"}}"#),
                (_, Some(true)) => {
                    let last = json!({"choices": [], "usage": usage});
                    Message::sse([&*format!("data: {last}\n\n"), "data: [DONE]\n\n"])
                }
                (model, _) => Message::json(200, json!({"model": model, "choices": [], "usage": usage}).to_string()),
            }
        }))
    })
    .await
}

/// One that has seen some of everything.
async fn after_traffic(provider: &Provider) -> (Sidekey, String) {
    let shadow = "[log]\naccess = true\n[routes.smart]\n\
                  targets = [{ provider = \"down\", model = \"x\" }, { provider = \"openai\", model = \"gpt-4o-mini\" }]\n";
    let options = Options::new().config(shadow).provider("openai", &provider.url()).own_provider(
        "down",
        "openai",
        "http://127.0.0.1:9",
    );
    let sidekey = Sidekey::start(&options).await;
    for (provider, name, priority) in [("openai", "first", "0"), ("openai", "second", "1"), ("down", "third", "0")] {
        let secret = format!("sk-real-{name}-Kq7WmZ3xTn9vRb2cYh5dJf8g");
        sidekey.add_provider_key_as(provider, &secret, &["--name", name, "--priority", priority]).await;
    }
    let key = sidekey.create_key(&[]).await.key;
    let limited = sidekey.create_key(&["--name", "limited", "--rpm", "1"]).await.key;
    let shadowed = sidekey.create_key(&["--name", "shadowed", "--budget", "0.000000001/day,shadow"]).await.key;
    let canary = sidekey.create_key(&["--name", "canary", "--canary"]).await.key;
    let unknown = format!("sk-side-a1b2c3d4e5f67890-{}", &key[key.len() - 43..]);
    let chat = |key: &str, body: String| Request::post(CHAT, body).bearer(key);
    for (what, request, want) in [
        ("a failover from key to key", chat(&key, body("gpt-4o-mini", "")), 200),
        ("a stream", chat(&key, body("gpt-4o-mini", r#","stream":true"#)), 200),
        ("no price", chat(&key, body("made-up", "")), 200),
        ("a provider's error", chat(&key, body("none", "")), 404),
        ("a failover from target to target", chat(&key, body("smart", "")), 200),
        ("in shadow", chat(&shadowed, body("gpt-4o-mini", "")), 200),
        ("one of one", chat(&limited, body("gpt-4o-mini", "")), 200),
        ("two of one", chat(&limited, body("gpt-4o-mini", "")), 429),
        ("a stranger", Request::post(CHAT, body("gpt-4o-mini", "")), 401),
        ("a malformed key", chat("sk-side-a1b2c3d4e5f67890-wrong", body("gpt-4o-mini", "")), 401),
        ("an unknown key", chat(&unknown, body("gpt-4o-mini", "")), 401),
        ("a trap", chat(&canary, body("gpt-4o-mini", "")), 401),
        ("nowhere", Request::get("/nobody/v1/models").bearer(&key), 404),
    ] {
        let answer = sidekey.send(&request).await;
        assert_eq!(answer.status, want, "{what}: {}", answer.text());
    }
    // A tunnel that may not be.
    let mut client = Client::connect(sidekey.proxy).await.expect("it listens");
    client.write(b"CONNECT 127.0.0.1:9 HTTP/1.1\r\nhost: 127.0.0.1:9\r\n\r\n").await.expect("it reads");
    let head = client.read_head().await.expect("an answer");
    assert_eq!(head.start[1], "403");
    (sidekey, key)
}

/// The names of families, with their types.
fn families(page: &str) -> BTreeMap<String, String> {
    let types = page.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '));
    types.map(|(name, kind)| (name.to_owned(), kind.to_owned())).collect()
}

/// What promtool says of a page: nothing, when there is nothing to say.
async fn promtool(page: &str) -> String {
    let spawned = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let mut child = match spawned {
        Ok(child) => child,
        Err(error) => {
            assert!(std::env::var_os("CI").is_none(), "promtool is missing: {error}");
            eprintln!("SKIPPED: promtool is missing (Debian: prometheus); the page was not linted");
            return String::new();
        }
    };
    let mut stdin = child.stdin.take().expect("stdin is piped");
    stdin.write_all(page.as_bytes()).await.expect("promtool reads");
    drop(stdin);
    let output = child.wait_with_output().await.expect("our own child");
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    if output.status.success() { said } else { format!("{}: {said}", output.status) }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_live_page_is_as_prometheus_likes_it() {
    let provider = provider().await;
    let (sidekey, _) = after_traffic(&provider).await;
    // Those of keys are counted as entries are committed.
    sidekey.entry_where("the tokens of the last request", |entry| entry["model_requested"] == "smart").await;
    let page = sidekey.metrics().await;
    assert_eq!(promtool(&page).await, "", "{page}");
    // The lint itself works.
    if Command::new("promtool").arg("--version").output().await.is_ok() {
        assert_ne!(promtool("# TYPE requests counter\nrequests 1\n").await, "");
    }

    let found = families(&page);
    let readme = include_str!("../../README.md");
    let rows = readme.lines().skip_while(|line| !line.starts_with("| metric |")).skip(2);
    let rows = rows.take_while(|line| line.starts_with('|')).map(|row| {
        let cells: Vec<_> = row.split('|').map(|cell| cell.trim().replace('`', "")).collect();
        (cells[1].clone(), cells[2].split(", ").filter(|label| !label.is_empty()).map(str::to_owned).collect())
    });
    let table: BTreeMap<String, BTreeSet<String>> = rows.collect();
    assert_eq!(found.keys().collect::<Vec<_>>(), table.keys().collect::<Vec<_>>(), "the table of metrics");
    for (name, kind) in &found {
        let labels = labels_of(&page, name, kind);
        assert!(!labels.is_empty(), "{name} has no line");
        for of_line in labels {
            assert_eq!(&of_line, &table[name], "the labels of {name}");
        }
    }
    // Everything that has been seen, and not only declared.
    for line in [
        r#"sidekey_requests_total{outcome="ok",provider="openai"} 6"#,
        r#"sidekey_requests_total{outcome="upstream_error",provider="openai"} 1"#,
        r#"sidekey_requests_total{outcome="refused",provider="openai"} 1"#,
        r#"sidekey_failovers_total{provider="down",to="target"} 1"#,
        r#"sidekey_key_validation_failures_total{reason="canary"} 1"#,
        r#"sidekey_key_validation_failures_total{reason="malformed"} 1"#,
        r#"sidekey_key_validation_failures_total{reason="missing"} 1"#,
        r#"sidekey_key_validation_failures_total{reason="unknown"} 1"#,
        r#"sidekey_refusals_total{code="rate_limit_exceeded"} 1"#,
        r#"sidekey_limit_refusals_total{limit="rpm",scope="key"} 1"#,
        r#"sidekey_unpriced_requests_total{provider="openai"} 1"#,
        r#"sidekey_provider_answers_total{action="cool",provider="openai"} 1"#,
        r#"sidekey_time_to_first_byte_seconds_count{provider="openai"} 7"#,
    ] {
        assert!(page.lines().any(|found| found == line), "{line}:\n{page}");
    }
}

/// The names of the labels of each line of a family, but for the bounds of buckets.
fn labels_of(page: &str, name: &str, kind: &str) -> Vec<BTreeSet<String>> {
    let suffixes: &[&str] = if kind == "histogram" { &["_bucket", "_count", "_sum"] } else { &[""] };
    let is_line = |line: &str| {
        let own = line.split(['{', ' ']).next().unwrap_or_default();
        suffixes.iter().any(|suffix| own.strip_suffix(suffix) == Some(name))
    };
    let lines = page.lines().filter(|line| !line.starts_with('#') && is_line(line));
    let labels = |line: &str| {
        let inside = line.split_once('{').and_then(|(_, rest)| rest.rsplit_once('}')).map_or("", |(inside, _)| inside);
        let names = inside.split("\",").filter_map(|pair| pair.split_once('=')).map(|(label, _)| label.to_owned());
        names.filter(|label| label != "le").collect()
    };
    lines.map(labels).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn names_that_clients_make_up_do_not_make_the_page_longer() {
    let provider = provider().await;
    let (sidekey, key) = after_traffic(&provider).await;
    let mut lines = Vec::new();
    for round in 0..3 {
        let mut client = Client::connect(sidekey.proxy).await.expect("it listens");
        let mut last = String::new();
        for n in 0..100 {
            // Models, paths, keys: whatever a client can say. Each model answers.
            let request = Request::post(CHAT, body(&format!("m-{round}-{n}"), "")).bearer(&key);
            let answer = client.send(&request).await.expect("an answer");
            assert_eq!(answer.status, 200, "{}", answer.text());
            last = answer.request_id();
            let wrong = Request::get(&format!("/nobody-{round}-{n}/v1/x")).bearer(&format!("sk-side-{n:016x}-wrong"));
            assert!(client.send(&wrong).await.expect("an answer").status >= 400);
        }
        sidekey.entry(&last).await;
        let page = sidekey.metrics().await;
        assert_eq!(promtool(&page).await, "");
        lines.push(page.lines().count());
    }
    assert!(lines[0] == lines[1] && lines[1] == lines[2], "{lines:?}");
}
