//! Commands as a shell sees them: what they print, the code they end with, and what is left in the store.

use std::process::Output;

use serde_json::Value;

use crate::support::client::Request;
use crate::support::provider::Provider;
use crate::support::script::{Message, Reply};
use crate::support::sidekey::{Options, REAL_KEY, Sidekey};

/// A provider that takes [`REAL_KEY`] and refuses any other.
async fn provider() -> Provider {
    Provider::start(|seen| {
        let good = seen.header("authorization") == Some(&*format!("Bearer {REAL_KEY}"));
        Reply::from(Message::json(if good { 200 } else { 401 }, "{}"))
    })
    .await
}

fn text(output: &Output) -> (Option<i32>, String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

async fn json(sidekey: &Sidekey, args: &[&str]) -> Value {
    serde_json::from_str(&sidekey.ok(args).await).expect("JSON")
}

#[tokio::test]
async fn a_reference_is_fetched_before_it_is_tested() {
    let provider = provider().await;
    let options = Options::new().provider("openai", &provider.url()).env("THE_KEY", REAL_KEY);
    let mut sidekey = Sidekey::start(&options).await;
    let file = sidekey.folder().join("key");
    std::fs::write(&file, format!("{REAL_KEY}\n")).expect("a writable folder");
    let (good, gone) = (format!("file:{}", file.display()), format!("file:{}.gone", file.display()));
    let command = format!("exec:cat {}", file.display());
    for daemon in [true, false] {
        if !daemon {
            sidekey.stop().await;
        }
        for reference in [&*good, &command, "env:THE_KEY"] {
            let add = ["provider-key", "add", "openai", "--name", "f", "--ref", reference, "-o", "json"];
            let added = json(&sidekey, &add).await;
            assert_eq!(added["test"]["verdict"], "accepted", "{reference}, daemon {daemon}: {added}");
            assert_eq!(added["resolved"], true, "{reference}, daemon {daemon}");
            sidekey.ok(&["provider-key", "delete", "f"]).await;
        }
        for reference in [&*gone, "env:NO_SUCH_VARIABLE", "exec:false"] {
            let add = ["provider-key", "add", "openai", "--name", "f", "--ref", reference];
            let (code, out, said) = text(&sidekey.cli(&add).await);
            assert_eq!((code, &*out), (Some(5), ""), "{reference}, daemon {daemon}: {said}");
            assert!(said.starts_with("error: the reference gives no key: "), "{reference}: {said}");
            assert!(said.contains("--no-test") && said.contains("nothing was stored"), "{reference}: {said}");
            let left = json(&sidekey, &["provider-key", "list", "-o", "json"]).await;
            assert_eq!(left["provider_keys"], Value::Array(vec![]), "{reference}, daemon {daemon}");
        }
        let add = ["provider-key", "add", "openai", "--name", "later", "--ref", &gone, "--no-test"];
        sidekey.ok(&add).await;
        let (code, out, _) = text(&sidekey.cli(&["provider-key", "test", "later"]).await);
        assert!(code == Some(1) && out.contains("unreadable"), "daemon {daemon}: {code:?} {out}");
        std::fs::copy(&file, gone.trim_start_matches("file:")).expect("a writable folder");
        assert!(sidekey.ok(&["provider-key", "test", "later"]).await.contains("accepted"), "daemon {daemon}");
        std::fs::remove_file(gone.trim_start_matches("file:")).expect("just made");
        sidekey.ok(&["provider-key", "delete", "later"]).await;
    }
}

#[tokio::test]
async fn a_refusal_is_said_once() {
    let provider = provider().await;
    let sidekey = Sidekey::start(&Options::new().provider("openai", &provider.url())).await;
    let add = ["provider-key", "add", "openai", "--name", "bad", "--stdin"];
    let (code, _, said) = text(&sidekey.cli_with(&add, "sk-of-nobody-0123456789").await);
    assert_eq!(code, Some(5), "{said}");
    assert!(said.starts_with("error: the provider refuses the key: 401\n  fix: "), "{said}");
}

#[tokio::test]
async fn a_new_secret_is_tested_before_it_replaces_the_old_one() {
    let provider = provider().await;
    let options = Options::new().provider("openai", &provider.url()).env("THE_KEY", REAL_KEY);
    let mut sidekey = Sidekey::start(&options).await;
    let (good, bad) = (sidekey.folder().join("good"), sidekey.folder().join("bad"));
    std::fs::write(&good, REAL_KEY).expect("a writable folder");
    std::fs::write(&bad, "sk-of-nobody-0123456789").expect("a writable folder");
    let file = |path: &std::path::Path| format!("file:{}", path.display());
    let (good, bad, gone) = (file(&good), file(&bad), format!("{}.gone", file(&good)));
    sidekey.add_provider_key("openai", REAL_KEY).await;
    let key = sidekey.create_key(&[]).await.key;
    for daemon in [true, false] {
        if !daemon {
            sidekey.stop().await;
        }
        let before = json(&sidekey, &["provider-key", "show", "main", "-o", "json"]).await;
        let rotate = ["provider-key", "rotate", "main"];
        for (flags, input, why) in [
            (&["--ref", &*gone][..], "", "error: the reference gives no key: "),
            (&["--ref", "env:NO_SUCH_VARIABLE"], "", "error: the reference gives no key: NO_SUCH"),
            (&["--ref", "exec:false"], "", "error: the reference gives no key: "),
            (&["--ref", &bad], "", "error: the provider refuses the key: 401\n"),
            (&["--stdin"], "sk-of-nobody-0123456789", "error: the provider refuses the key: 401\n"),
        ] {
            let (code, out, said) = text(&sidekey.cli_with(&[&rotate, flags].concat(), input).await);
            assert_eq!((code, &*out), (Some(5), ""), "{flags:?}, daemon {daemon}: {said}");
            assert!(said.starts_with(why) && said.contains("--no-test"), "{flags:?}: {said}");
            let after = json(&sidekey, &["provider-key", "list", "-o", "json"]).await;
            assert_eq!(after["provider_keys"], Value::Array(vec![before.clone()]), "{flags:?}, daemon {daemon}");
        }
        for (flags, input) in [(&["--ref", &*good][..], ""), (&["--ref", "env:THE_KEY"], ""), (&["--stdin"], REAL_KEY)]
        {
            let rotated = text(&sidekey.cli_with(&[&rotate, flags, &["-o", "json"]].concat(), input).await);
            let rotated: Value = serde_json::from_str(&rotated.1).unwrap_or_else(|_| panic!("{flags:?}: {rotated:?}"));
            assert_eq!(rotated["test"]["verdict"], "accepted", "{flags:?}, daemon {daemon}: {rotated}");
            assert_eq!(rotated["id"], before["id"], "{flags:?}");
            if daemon {
                // In force at once, a reference too.
                let answer = sidekey.send(&Request::get("/openai/v1/models").bearer(&key)).await;
                assert_eq!(answer.status, 200, "{flags:?}: {}", answer.text());
            }
        }
    }
    let untested = ["provider-key", "rotate", "main", "--ref", &gone, "--no-test", "-o", "json"];
    let rotated = json(&sidekey, &untested).await;
    assert_eq!((&rotated["origin"], &rotated["test"]), (&Value::from(gone), &Value::Null));
}

#[tokio::test]
async fn exec_takes_the_keys_of_own_providers_away() {
    let own =
        "[providers.my-gateway]\ndialect = \"openai\"\nbase_url = \"http://127.0.0.1:9\"\nenv = [\"MY_GATEWAY_KEY\"]";
    let options = Options::new().config(own).env("MY_GATEWAY_KEY", REAL_KEY).env("OTHER", "kept");
    let mut sidekey = Sidekey::start(&options).await;
    for daemon in [true, false] {
        if !daemon {
            sidekey.stop().await;
        }
        for provider in [&["--provider", "openai"][..], &["--provider", "my-gateway"], &[]] {
            let exec = [&["exec", "--quiet"], provider, &["--", "sh", "-c", "echo ${MY_GATEWAY_KEY-gone} $OTHER"]];
            assert_eq!(sidekey.ok(&exec.concat()).await, "gone kept\n", "{provider:?}, daemon {daemon}");
        }
    }
}

#[tokio::test]
async fn usage_knows_a_dimension_by_either_spelling() {
    let provider = provider().await;
    let sidekey = Sidekey::with("openai", &provider.url()).await;
    let key = sidekey.create_key(&[]).await.key;
    let answer = sidekey.send(&Request::get("/openai/v1/models").bearer(&key)).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    let entry = sidekey.entry(answer.header("x-sidekey-request-id").unwrap_or_default()).await;
    let paid = entry["provider_key_id"].as_str().expect("an id");
    for by in ["provider-key", "provider_key"] {
        let out = sidekey.ok(&["usage", "--by", by]).await;
        let firsts: Vec<&str> = out.lines().filter_map(|line| line.split_whitespace().next()).collect();
        assert_eq!(firsts, ["PROVIDER_KEY", paid, "total"], "{by}: {out}");
    }
}

#[tokio::test]
async fn env_asks_the_daemon() {
    let options = Options::new().own_provider("my-gateway", "openai", "http://127.0.0.1:9");
    let mut sidekey = Sidekey::start(&options).await;
    // The configuration has port 0: only the daemon knows the real one.
    let (proxy, url) = (sidekey.proxy, |proxy| format!("http://{proxy}/my-gateway/v1"));
    let env = ["env", "--provider", "my-gateway", "--key-stdin", "--shell", "json"];
    let (code, out, said) = text(&sidekey.cli_with(&env, "sk-side-x").await);
    assert_eq!(code, Some(0), "{said}");
    let set: Value = serde_json::from_str(&out).expect("JSON");
    assert_eq!((&set["OPENAI_BASE_URL"], &set["OPENAI_API_KEY"]), (&Value::from(url(proxy)), &"sk-side-x".into()));

    let exec =
        ["exec", "--quiet", "--provider", "my-gateway", "--", "sh", "-c", "echo $OPENAI_BASE_URL $OPENAI_API_KEY"];
    let got = sidekey.ok(&exec).await;
    assert!(got.starts_with(&format!("{} sk-side-", url(proxy))), "{got}");

    for args in [&["env", "--provider", "my-gatway"][..], &["exec", "--provider", "my-gatway", "--", "true"]] {
        let (code, out, said) = text(&sidekey.cli(args).await);
        assert_eq!((code, &*out), (Some(2), ""), "{said}");
        assert!(said.contains("did you mean \"my-gateway\"?"), "{said}");
    }

    sidekey.stop().await;
    let set = json(&sidekey, &["env", "--provider", "my-gateway", "--shell", "json"]).await;
    assert_eq!(set["OPENAI_BASE_URL"], "http://127.0.0.1:0/my-gateway/v1", "the configured one, without a daemon");
}

#[tokio::test]
async fn a_key_is_widened_again() {
    let sidekey = Sidekey::start(&Options::new()).await;
    let narrow =
        ["--user", "alice", "--team", "t1", "--models", "gpt-*", "--providers", "openai", "--endpoints", "chat"];
    let more = ["--sources", "10.0.0.0/8", "--metadata", "a=1", "--metadata", "b=2"];
    let key = sidekey.create_key(&[&narrow[..], &more].concat()).await;
    let update =
        async |flags: &[&str]| json(&sidekey, &[&["key", "update", &key.id, "-o", "json"], flags].concat()).await;
    for (flag, field, said) in [
        ("--models", "models", ["", "*"]),
        ("--providers", "providers", ["", "*"]),
        ("--endpoints", "endpoints", ["", "*"]),
        ("--sources", "sources", ["", "*"]),
        ("--user", "user", ["", ""]),
        ("--team", "team", ["", ""]),
        ("--expires-days", "expires", ["", "none"]),
    ] {
        for said in said {
            let changed = update(&[flag, said]).await;
            let value = &changed[field];
            assert!(value.is_null() || value.as_array().is_some_and(Vec::is_empty), "{flag} {said:?}: {changed}");
        }
    }
    let changed = update(&["--metadata", "b=3", "--metadata", "c=x=y"]).await;
    assert_eq!(changed["metadata"], serde_json::json!({"a": "1", "b": "3", "c": "x=y"}));
    let changed = update(&["--metadata", "a="]).await;
    assert_eq!(changed["metadata"], serde_json::json!({"b": "3", "c": "x=y"}));
}
