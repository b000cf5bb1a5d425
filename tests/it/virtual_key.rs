//! Virtual keys: who is let in, with what, and what a refusal looks like.

use serde_json::Value;

use crate::support::client::{Answer, Request};
use crate::support::provider::Provider;
use crate::support::script::Message;
use crate::support::sidekey::{Options, REAL_KEY, Sidekey};

const CHAT: &str = "/openai/v1/chat/completions";
const ANSWER: &str = r#"{"model":"m","usage":{"prompt_tokens":1,"completion_tokens":2,"total_tokens":3}}"#;

fn chat(model: &str) -> Request {
    Request::post(CHAT, format!(r#"{{"model":"{model}","messages":[]}}"#))
}

async fn start() -> (Provider, Sidekey) {
    let provider = Provider::always(Message::json(200, ANSWER)).await;
    let sidekey = Sidekey::with("openai", &provider.url()).await;
    (provider, sidekey)
}

fn assert_refused(what: &str, answer: &Answer, status: u16, code: &str) {
    assert_eq!((answer.status, &*answer.code()), (status, code), "{what}: {}", answer.text());
    assert_eq!(answer.header("x-should-retry"), Some("false"), "{what}");
    assert_eq!(answer.header("retry-after"), None, "{what}");
    let json = answer.json();
    for field in ["message", "type"] {
        assert!(json["error"][field].is_string(), "{what}: {json}");
    }
}

#[tokio::test]
async fn strangers_are_refused_and_look_alike() {
    let (provider, sidekey) = start().await;
    let key = sidekey.create_key(&[]).await.key;
    let other = sidekey.create_key(&["--name", "gone"]).await;
    sidekey.ok(&["key", "delete", &other.id]).await;
    let last = if key.ends_with('a') { "b" } else { "a" };
    let wrong = format!("{}{last}", &key[..key.len() - 1]);
    let unknown = wrong.replacen(&key["sk-side-".len()..][..16], "0123456789abcdef", 1);
    let mut texts = vec![];
    for (name, presented) in [
        ("wrong secret", &*wrong),
        ("unknown id", &unknown),
        ("deleted", &other.key),
        ("malformed", "sk-side-nothing"),
        ("longer", &format!("{key}a")),
        ("shorter", &key[..key.len() - 1]),
    ] {
        let answer = sidekey.send(&chat("gpt-4o").bearer(presented)).await;
        assert_refused(name, &answer, 401, "invalid_api_key");
        assert!(!answer.text().contains(presented), "{name}: the key is echoed");
        texts.push((name, answer.json()["error"]["message"].clone()));
    }
    assert!(texts.iter().all(|(_, text)| *text == texts[0].1), "a stranger learns which: {texts:?}");
    for (name, request) in [
        ("missing", chat("gpt-4o")),
        ("a real key", chat("gpt-4o").bearer("sk-proj-0123456789abcdef0123456789abcdef")),
        ("empty", chat("gpt-4o").header("authorization", "Bearer ")),
        ("basic", chat("gpt-4o").header("authorization", "Basic c2s6c2s=")),
    ] {
        assert_refused(name, &sidekey.send(&request).await, 401, "invalid_api_key");
    }
    assert_eq!(provider.count(), 0, "a stranger's request went upstream");
}

#[tokio::test]
async fn status_decides_at_once() {
    let (provider, sidekey) = start().await;
    let key = sidekey.create_key(&[]).await;
    let send = || async { sidekey.send(&chat("gpt-4o").bearer(&key.key)).await };
    assert_eq!(send().await.status, 200);
    sidekey.ok(&["key", "disable", &key.id]).await;
    assert_refused("disabled", &send().await, 403, "permission_denied");
    sidekey.ok(&["key", "enable", &key.id]).await;
    assert_eq!(send().await.status, 200);
    sidekey.ok(&["key", "revoke", &key.id]).await;
    assert_refused("revoked", &send().await, 401, "invalid_api_key");
    assert_eq!(provider.count(), 2);
}

#[tokio::test]
async fn expiry_is_told_to_the_holder_only() {
    let (_provider, sidekey) = start().await;
    let key = sidekey.create_key(&["--expires-days", "1"]).await;
    assert_eq!(sidekey.send(&chat("gpt-4o").bearer(&key.key)).await.status, 200);
    let expires = key.data["expires_at"].as_str().or_else(|| key.data["expires"].as_str());
    assert!(expires.is_some_and(|time| time.contains('T')), "no time of expiry: {}", key.data);
    let expired = sidekey.cli(&["key", "update", &key.id, "--expires-days", "0"]).await;
    // Zero days is either refused or over at once; it never means "for ever".
    if expired.status.success() {
        assert_refused("expired", &sidekey.send(&chat("gpt-4o").bearer(&key.key)).await, 401, "invalid_api_key");
    }
}

#[tokio::test]
async fn models_are_globs() {
    let (provider, sidekey) = start().await;
    let key = sidekey.create_key(&["--models", "gpt-4o*,claude-?-x"]).await.key;
    for (model, allowed) in [
        ("gpt-4o", true),
        ("gpt-4o-mini", true),
        ("claude-3-x", true),
        ("gpt-4", false),
        ("claude-35-x", false),
        ("GPT-4O", false),
        ("ft:gpt-4o:acme", false),
        ("gpt-4", false),
    ] {
        let answer = sidekey.send(&chat(model).bearer(&key)).await;
        if allowed {
            assert_eq!(answer.status, 200, "{model}: {}", answer.text());
        } else {
            assert_refused(model, &answer, 403, "model_not_allowed");
            assert_eq!(answer.json()["error"]["param"], "model");
        }
    }
    assert_eq!(provider.count(), 3);
    // What a provider would read and a careless scanner would not.
    for body in [
        r#"{"mod\u0065l":"o3-pro","messages":[]}"#,
        r#"{"messages":[{"model":"gpt-4o"}],"model":"o3-pro"}"#,
        r#"{"metadata":{"model":"gpt-4o"},"model":"o3-pro"}"#,
        "\u{feff}{\"model\":\"o3-pro\"}",
        r#"{"model":["gpt-4o"]}"#,
        r#"{"model":null}"#,
        r#"{"messages":[]}"#,
        r"[]",
        "not json",
        "",
    ] {
        let answer = sidekey.send(&Request::post(CHAT, body.to_owned()).bearer(&key)).await;
        assert!((400..500).contains(&answer.status), "{body}: {}", answer.status);
    }
    assert_eq!(provider.count(), 3, "a body whose model is not allowed went upstream");
}

#[tokio::test]
async fn a_key_limited_by_model_may_not_use_what_names_none() {
    let (provider, sidekey) = start().await;
    let limited = sidekey.create_key(&["--models", "gpt-4o"]).await.key;
    let widened =
        sidekey.create_key(&["--name", "widened", "--models", "gpt-4o", "--endpoints", "chat,files"]).await.key;
    let open = sidekey.create_key(&["--name", "open"]).await.key;
    for (name, path, limited_status, widened_status) in [
        ("files", "/openai/v1/files", 403, 200),
        ("batches", "/openai/v1/batches", 403, 403),
        ("assistants", "/openai/v1/threads/t/runs", 403, 403),
        ("unknown", "/openai/v1/something-new", 403, 403),
    ] {
        let request = || Request::post(path, "{}");
        let answer = sidekey.send(&request().bearer(&limited)).await;
        assert_eq!(answer.status, limited_status, "{name}, limited: {}", answer.text());
        assert_eq!(sidekey.send(&request().bearer(&widened)).await.status, widened_status, "{name}, widened");
        assert_eq!(sidekey.send(&request().bearer(&open)).await.status, 200, "{name}, open");
    }
    // Lists of models cost nothing and are free to all.
    assert_eq!(sidekey.send(&Request::get("/openai/v1/models").bearer(&limited)).await.status, 200);
    assert_eq!(provider.count(), 6);
}

#[tokio::test]
async fn endpoints_providers_and_sources() {
    let provider = Provider::always(Message::json(200, ANSWER)).await;
    let options = Options::new().provider("openai", &provider.url()).provider("groq", &provider.url());
    let sidekey = Sidekey::start(&options).await;
    sidekey.add_provider_key("openai", REAL_KEY).await;
    sidekey.add_provider_key("groq", REAL_KEY).await;
    let embeddings = || Request::post("/openai/v1/embeddings", r#"{"model":"e","input":"x"}"#);
    let groq = || Request::post("/groq/openai/v1/chat/completions", r#"{"model":"m"}"#);
    for (name, flags, request, status) in [
        ("endpoint", &["--endpoints", "chat"][..], chat("m"), 200),
        ("other endpoint", &["--endpoints", "chat"], embeddings(), 403),
        ("two endpoints", &["--endpoints", "chat,embeddings"], embeddings(), 200),
        ("provider", &["--providers", "groq"], groq(), 200),
        ("other provider", &["--providers", "groq"], chat("m"), 403),
        ("source", &["--sources", "127.0.0.0/8"], chat("m"), 200),
        ("other source", &["--sources", "10.0.0.0/8,192.168.0.0/16"], chat("m"), 403),
    ] {
        let key = sidekey.create_key(&[&["--name", name], flags].concat()).await.key;
        let answer = sidekey.send(&request.bearer(&key).header("x-forwarded-for", "10.1.2.3")).await;
        assert_eq!(answer.status, status, "{name}: {}", answer.text());
        if status == 403 {
            assert_refused(name, &answer, 403, "permission_denied");
        }
    }
}

#[tokio::test]
async fn a_rotated_key_lives_through_its_grace() {
    let (_provider, sidekey) = start().await;
    let key = sidekey.create_key(&[]).await;
    let rotate = |grace: &'static str| async {
        let text = sidekey.ok(&["key", "rotate", &key.id, "--grace", grace, "-o", "json"]).await;
        let made: Value = serde_json::from_str(&text).expect("JSON");
        made["key"].as_str().expect("the new key").to_owned()
    };
    let second = rotate("1h").await;
    assert!(second.contains(&key.id), "the id stays");
    for presented in [&key.key, &second] {
        assert_eq!(sidekey.send(&chat("m").bearer(presented)).await.status, 200);
    }
    let third = rotate("0s").await;
    assert_eq!(sidekey.send(&chat("m").bearer(&third)).await.status, 200);
    for presented in [&key.key, &second] {
        assert_refused("old", &sidekey.send(&chat("m").bearer(presented)).await, 401, "invalid_api_key");
    }
}

#[tokio::test]
async fn keys_survive_a_restart_and_a_kill() {
    let (_provider, mut sidekey) = start().await;
    let key = sidekey.create_key(&[]).await;
    sidekey.stop().await;
    sidekey.restart().await;
    assert_eq!(sidekey.send(&chat("m").bearer(&key.key)).await.status, 200);
    let late = sidekey.create_key(&["--name", "late"]).await;
    sidekey.kill().await;
    sidekey.restart().await;
    assert_eq!(sidekey.send(&chat("m").bearer(&late.key)).await.status, 200, "an acknowledged key was lost");
}

#[tokio::test]
async fn refusals_speak_the_clients_dialect() {
    let provider = Provider::always(Message::json(200, "{}")).await;
    let names = ["openai", "anthropic", "gemini", "cohere", "ollama", "bedrock"];
    let options = names.iter().fold(Options::new(), |options, name| options.provider(name, &provider.url()));
    let sidekey = Sidekey::start(&options).await;
    for (path, pointer, want) in [
        ("/openai/v1/chat/completions", "/error/code", Value::from("invalid_api_key")),
        ("/anthropic/v1/messages", "/error/type", "authentication_error".into()),
        ("/gemini/v1beta/models/gemini-2.0-flash:generateContent", "/error/code", 401.into()),
        ("/v1/messages", "/type", "error".into()),
        ("/v1/chat/completions", "/error/code", "invalid_api_key".into()),
    ] {
        let answer = sidekey.send(&Request::post(path, r#"{"model":"m"}"#)).await;
        assert_eq!(answer.status, 401, "{path}");
        assert_eq!(answer.json().pointer(pointer), Some(&want), "{path}: {}", answer.text());
    }
    for path in ["/cohere/v2/chat", "/bedrock/model/m/converse"] {
        let answer = sidekey.send(&Request::post(path, "{}")).await;
        assert_eq!((answer.status, answer.json()["message"].is_string()), (401, true), "{path}: {}", answer.text());
    }
    let answer = sidekey.send(&Request::post("/ollama/api/chat", "{}")).await;
    assert_eq!((answer.status, answer.json()["error"].is_string()), (401, true), "{}", answer.text());
}

#[tokio::test]
async fn whose_key_pays() {
    let (provider, sidekey) = start().await;
    let (users, teams) = ("sk-of-alice-0123456789abcdefghij", "sk-of-team-0123456789abcdefghij");
    sidekey.add_provider_key_as("openai", users, &["--name", "alice", "--owner", "user:alice"]).await;
    sidekey.add_provider_key_as("openai", teams, &["--name", "team", "--owner", "team:t1"]).await;
    for (name, flags, secret, source) in [
        ("alice", &["--user", "alice", "--team", "t1"][..], users, "user"),
        ("bob", &["--user", "bob", "--team", "t1"], teams, "team"),
        ("carol", &["--user", "carol", "--team", "t2"], REAL_KEY, "system"),
        ("nobody", &[], REAL_KEY, "system"),
    ] {
        let key = sidekey.create_key(&[&["--name", name], flags].concat()).await.key;
        let answer = sidekey.send(&chat("m").bearer(&key).header("x-sidekey-group", "job-7")).await;
        assert_eq!(answer.status, 200, "{name}: {}", answer.text());
        assert_eq!(answer.header("x-sidekey-key-source"), Some(source), "{name}");
        assert_eq!(provider.last().header("authorization"), Some(&*format!("Bearer {secret}")), "{name}");
        assert_eq!(provider.last().header("x-sidekey-group"), None, "our own header went upstream");
        let entry = sidekey.entry(&answer.request_id()).await;
        assert_eq!((&entry["key_source"], &entry["group"]), (&source.into(), &"job-7".into()), "{name}");
    }
}

#[tokio::test]
async fn the_next_key_is_tried_when_one_is_refused() {
    let first = "sk-first-0123456789abcdefghijklmn";
    let refused = move |status: u16, body: &'static str| {
        move |seen: &crate::support::provider::Seen| -> crate::support::script::Reply {
            if seen.contains(first) { Message::json(status, body).into() } else { Message::json(200, ANSWER).into() }
        }
    };
    for (status, body) in [
        (401, r#"{"error":{"message":"bad key sk-first-0123456789abcdefghijklmn","code":"invalid_api_key"}}"#),
        (403, r#"{"error":{"message":"no"}}"#),
        (429, r#"{"error":{"message":"slow","code":"rate_limit_exceeded"}}"#),
        (429, r#"{"error":{"message":"no money","code":"insufficient_quota"}}"#),
        (503, r#"{"error":{"message":"down"}}"#),
    ] {
        let provider = Provider::start(refused(status, body)).await;
        let sidekey = Sidekey::start(&Options::new().provider("openai", &provider.url())).await;
        sidekey.add_provider_key_as("openai", first, &["--name", "first", "--owner", "user:alice"]).await;
        sidekey.add_provider_key_as("openai", REAL_KEY, &["--name", "second"]).await;
        let key = sidekey.create_key(&["--user", "alice"]).await.key;
        let answer = sidekey.send(&chat("m").bearer(&key)).await;
        assert_eq!((answer.status, provider.count()), (200, 2), "{status}: {}", answer.text());
        assert_eq!(answer.header("x-sidekey-key-source"), Some("system"), "{status}");
        assert_eq!(provider.seen()[0].body(), provider.seen()[1].body(), "{status}");
        assert_eq!(sidekey.entry(&answer.request_id()).await["attempts"], 2, "{status}");
    }
}
