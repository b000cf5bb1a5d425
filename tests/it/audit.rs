//! The audit log as an operator sees it: over the daemon, without one, and after somebody has been at its files.

use serde_json::Value;

use crate::support::client::Request;
use crate::support::provider::Provider;
use crate::support::script::Message;
use crate::support::sidekey::{Options, REAL_KEY, Sidekey};

async fn records(sidekey: &Sidekey, args: &[&str]) -> Vec<Value> {
    let args = [&["audit", "-o", "json", "--limit", "100"], args].concat();
    let found: Value = serde_json::from_str(&sidekey.ok(&args).await).expect("JSON");
    found["records"].as_array().expect("a list").clone()
}

fn said(records: &[Value], field: &str) -> Vec<String> {
    records
        .iter()
        .map(|record| record[field].as_str().map_or_else(|| record[field].to_string(), str::to_owned))
        .collect()
}

#[tokio::test]
async fn it_is_the_same_log_with_a_daemon_and_without_one() {
    let mut sidekey = Sidekey::start(&Options::new()).await;
    let key = sidekey.create_key(&["--name", "app"]).await;
    sidekey.ok(&["key", "disable", "app"]).await;
    sidekey.stop().await;
    sidekey.ok(&["key", "enable", "app"]).await;
    let backup = sidekey.folder().join("backup");
    sidekey.ok(&["backup", backup.to_str().expect("text")]).await;
    let object = format!("key {}", key.id);
    let of_key = records(&sidekey, &["--object", &object]).await;
    assert_eq!(said(&of_key, "action"), ["key.enable", "key.disable", "key.create"]);
    assert_eq!(said(&of_key, "from"), ["command", "socket", "socket"]);
    let all = records(&sidekey, &[]).await;
    let uid = format!("uid:{}", rustix::process::geteuid().as_raw());
    assert!(said(&all, "actor").iter().all(|actor| *actor == uid || actor == "sidekey"), "{all:?}");
    assert!(said(&records(&sidekey, &["--action", "backup"]).await, "result") == ["ok", "started"]);
    let text = sidekey.ok(&["audit", "export", "-o", "jsonl"]).await;
    let secret = key.key.rsplit('-').next().expect("a secret");
    assert!(text.lines().count() == all.len() && !text.contains(REAL_KEY) && !text.contains(secret), "{text}");
    let hash = |line: &str| blake3_of(line.split(",\"hash\":").next().expect("a line"));
    for pair in text.lines().collect::<Vec<_>>().windows(2) {
        let next: Value = serde_json::from_str(pair[1]).expect("JSON");
        assert_eq!(next["prev"], hash(pair[0]));
    }
    let restored = sidekey.ok(&["restore", backup.to_str().expect("text"), "--force"]).await;
    assert!(restored.is_empty(), "{restored}");
    assert_eq!(said(&records(&sidekey, &["--action", "backup.restore"]).await, "result"), ["ok"]);
    assert!(sidekey.ok(&["audit", "verify"]).await.starts_with("whole: "));
}

fn blake3_of(text: &str) -> String {
    blake3::hash(text.as_bytes()).to_hex().to_string()
}

#[tokio::test]
async fn a_record_that_was_changed_is_named() {
    let mut sidekey = Sidekey::start(&Options::new()).await;
    for name in ["one", "two", "three"] {
        sidekey.create_key(&["--name", name]).await;
    }
    let whole: Value = serde_json::from_str(&sidekey.ok(&["audit", "verify", "-o", "json"]).await).expect("JSON");
    let head = format!("{}:{}", whole["last"], whole["head"].as_str().expect("a hash"));
    sidekey.ok(&["audit", "verify", "--head", &head]).await;
    let file = sidekey.data_dir().join("audit").join("0000000000000001.jsonl");
    let text = std::fs::read_to_string(&file).expect("the log");
    std::fs::write(&file, text.replace("\"two\"", "\"owt\"")).expect("ours");
    for daemon in [true, false] {
        if !daemon {
            sidekey.stop().await;
        }
        let output = sidekey.cli(&["audit", "verify"]).await;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(6), "{said}");
        assert!(said.contains("was changed (") && said.contains("line "), "{said}");
    }
    assert_eq!(sidekey.cli(&["audit", "verify", "--head", "x"]).await.status.code(), Some(5));
    assert_eq!(sidekey.cli(&["audit", "--since", "monday"]).await.status.code(), Some(2));
}

#[tokio::test]
async fn each_use_of_a_provider_key_is_counted() {
    let provider = Provider::start(|seen| match seen.contains("sk-real-first") {
        true => Message::json(500, "{}").into(),
        false => Message::json(200, r#"{"model":"gpt-4o-mini","choices":[]}"#).into(),
    })
    .await;
    let options = Options::new().provider("openai", &provider.url()).provider("mistral", &provider.url());
    let mut sidekey = Sidekey::start(&options.env("MISTRAL_API_KEY", REAL_KEY)).await;
    for (name, priority) in [("first", "0"), ("second", "1")] {
        let secret = format!("sk-real-{name}-Kq7WmZ3xTn9vRb2cYh5dJf8g");
        sidekey.add_provider_key_as("openai", &secret, &["--name", name, "--priority", priority]).await;
    }
    let key = sidekey.create_key(&[]).await.key;
    let body = r#"{"model":"gpt-4o-mini","messages":[]}"#;
    for path in ["/openai/v1/chat/completions", "/openai/v1/chat/completions", "/mistral/v1/chat/completions"] {
        assert_eq!(sidekey.send(&Request::post(path, body).bearer(&key)).await.status, 200);
    }
    let mut ids = Vec::new();
    for name in ["first", "second", "MISTRAL_API_KEY"] {
        ids.push(format!("provider_key {}", sidekey.provider_key(name).await["id"].as_str().expect("an id")));
    }
    // A test of one is an act of its own.
    sidekey.ok(&["provider-key", "test", "second"]).await;
    sidekey.stop().await;
    let uses = records(&sidekey, &["--action", "provider_key.use"]).await;
    let counted =
        |object: &String| uses.iter().find(|use_| use_["object"] == **object).map(|use_| use_["count"].clone());
    // What the first failed the second answered, so it was used as often.
    assert_eq!(
        ids.iter().map(counted).collect::<Vec<_>>(),
        [Some(2.into()), Some(2.into()), Some(1.into())],
        "{uses:?}"
    );
    let tests = records(&sidekey, &["--action", "provider_key.test"]).await;
    assert_eq!(said(&tests, "result"), ["ok", "started"]);
    assert!(tests.iter().all(|test| test["object"] == *ids[1]), "{tests:?}");
}
