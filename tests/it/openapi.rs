//! The OpenAPI document, held against the running server by schemathesis: every operation, every check.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::process::Command;
use tokio::time::timeout;

use crate::sdk::venv;
use crate::support::client::{Request, send};
use crate::support::provider::Provider;
use crate::support::script::Message;
use crate::support::sidekey::{Options, REAL_KEY, Sidekey};

const ANSWER: &str = r#"{"id":"x","object":"chat.completion","model":"gpt-4o","choices":[{"index":0,"message":{"role":
    "assistant","content":"Hello"},"finish_reason":"stop"}],"usage":{"prompt_tokens":7,"completion_tokens":3,
    "total_tokens":10}}"#;

/// Operations that no request of the run brings to a good end, and why.
const NEVER_GOOD: &[(&str, &str)] = &[
    ("DELETE /api/session", "ends the session of who asks, and no token of the command line is one"),
    ("GET /ui/{path}", "has what is in the console, whose names are not guessed"),
    ("POST /api/session", "needs a code that is good once"),
];

/// A sidekey with something of everything, and what must stay of it.
async fn furnished() -> (Provider, Sidekey, Vec<(&'static str, String)>) {
    let provider = Provider::always(Message::json(200, ANSWER)).await;
    let webhook = format!(
        "[alerts.webhooks.ops]\nurl = \"{}/hook\"\nsecret = \"env:HOOK_SECRET\"\nallow_private = true\n",
        provider.url()
    );
    let options = Options::new().provider("openai", &provider.url()).provider("anthropic", &provider.url());
    let sidekey =
        Sidekey::start(&options.config(&webhook).env("HOOK_SECRET", "whsec_c2lkZWtleS10ZXN0LXNlY3JldA==")).await;
    sidekey.add_provider_key("openai", REAL_KEY).await;
    sidekey.add_provider_key_as("anthropic", REAL_KEY, &["--name", "alices", "--owner", "user:alice"]).await;
    sidekey.ok(&["pool", "create", "--name", "leased", "--keys", "main"]).await;
    sidekey.ok(&["plan", "create", "--name", "basic", "--rpm", "1000", "--shared-budget", "500/month"]).await;
    sidekey.ok(&["user", "set", "alice", "--budget", "20/month"]).await;
    sidekey.ok(&["prices", "set", "openai/gpt-4o", "input=2", "output=8"]).await;
    let app = sidekey.create_key(&["--name", "app", "--user", "alice", "--team", "t1", "--plan", "basic"]).await;
    let leaser = sidekey.create_key(&["--name", "leaser", "--pool", "leased", "--lease"]).await;
    let chat = json!({"model": "gpt-4o", "messages": [{"role": "user", "content": "Hi"}]}).to_string();
    for _ in 0..5 {
        let request = Request::post("/openai/v1/chat/completions", chat.clone()).header("x-sidekey-group", "job");
        assert_eq!(sidekey.send(&request.bearer(&app.key)).await.status, 200);
    }
    sidekey.entry_where("the calls", |entry| entry["group"] == "job").await;
    let token = sidekey.ok(&["token", "create", "--name", "schemathesis", "--role", "admin"]).await.trim().to_owned();
    let token_id = token.split('-').nth(2).expect("an id").to_owned();
    let main = sidekey.provider_key("main").await["id"].as_str().expect("an id").to_owned();
    let kept = [token_id, leaser.id, main, "leased".to_owned()].join(" ");
    let folder = sidekey.folder().display().to_string();
    let head = format!("x-sidekey-key: {}\r\n", leaser.key);
    let (_, lease) = sidekey.admin_as("POST", "/api/pools/leased/lease", &head, &json!({})).await;
    let lease = lease["lease"].as_str().expect("a lease").to_owned();
    let names = ["SIDEKEY_TOKEN", "SIDEKEY_KEY", "SIDEKEY_KEPT", "SIDEKEY_FOLDER", "SIDEKEY_LEASE"];
    (provider, sidekey, names.into_iter().zip([token, leaser.key, kept, folder, lease]).collect())
}

/// Method and path of every operation.
fn operations(document: &Value) -> BTreeSet<String> {
    let paths = document["paths"].as_object().expect("paths").iter();
    let each = paths.flat_map(|(path, methods)| {
        let methods = methods.as_object().expect("methods").keys();
        methods.map(move |method| format!("{} {path}", method.to_uppercase()))
    });
    each.collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_document_is_true() {
    let here = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/openapi");
    let Some(python) = venv("openapi", &here.join("requirements.txt")).await else { return };
    let (_provider, sidekey, env) = furnished().await;
    // As anyone gets it, and as it is checked in.
    let host = sidekey.admin.to_string();
    let served = send(sidekey.admin, &Request::get("/openapi.json").header("host", host)).await;
    let document: Value = serde_json::from_slice(&served.body).expect("JSON");
    assert_eq!(sidekey.admin("GET", "/openapi.json", &Value::Null).await, document, "over the socket");

    let url = format!("http://{}", sidekey.admin);
    let mut command = Command::new(python.with_file_name("schemathesis"));
    command.args(["--config-file", "schemathesis.toml", "run", "--url", &url, "served.json"]);
    // Of an address, it would leave out the route of the document. What it leaves behind goes with the folder.
    std::fs::write(sidekey.folder().join("served.json"), &served.body).expect("a writable folder");
    for file in ["schemathesis.toml", "hooks.py"] {
        std::fs::copy(here.join(file), sidekey.folder().join(file)).expect("a writable folder");
    }
    command.current_dir(sidekey.folder()).envs(env).stdin(Stdio::null()).kill_on_drop(true);
    let ran = timeout(Duration::from_secs(900), command.output()).await.expect("an end").expect("it runs");
    let said = String::from_utf8_lossy(&ran.stdout);
    assert!(ran.status.success(), "{said}\n{}\n{}", String::from_utf8_lossy(&ran.stderr), sidekey.stderr());
    assert!(!sidekey.stderr().contains("panicked"), "{}", sidekey.stderr());
    assert_eq!(sidekey.admin("GET", "/api/status", &Value::Null).await["ready"], json!(true));

    let all = operations(&document);
    assert!(said.contains(&format!("Tested: {}\n", all.len())), "not all of {}: {said}", all.len());
    let good = std::fs::read(sidekey.folder().join("answered.json")).expect("the hooks tell");
    let good: BTreeSet<String> = serde_json::from_slice(&good).expect("a list");
    let never: BTreeSet<String> = NEVER_GOOD.iter().map(|(operation, _)| (*operation).to_owned()).collect();
    let lacking: Vec<_> = all.difference(&good).filter(|operation| !never.contains(*operation)).collect();
    assert!(lacking.is_empty(), "never came to a good end: {lacking:?}");
}
