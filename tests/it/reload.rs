//! A changed configuration: in force without a restart, or, when it is faulty, not at all.

use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;

use crate::support::client::{self, Client, Request};
use crate::support::provider::Provider;
use crate::support::script::{Gate, Message};
use crate::support::sidekey::{Options, REAL_KEY, Sidekey};

const CHAT: &str = "/openai/v1/chat/completions";
const BODY: &str = r#"{"model":"house-1","messages":[]}"#;
const USAGE: &str =
    r#"{"model":"house-1","usage":{"prompt_tokens":1000000,"completion_tokens":0,"total_tokens":1000000}}"#;

/// Writes the configuration as `change` makes it of what it is.
fn rewrite(sidekey: &Sidekey, change: impl FnOnce(String) -> String) {
    let path = sidekey.folder().join("sidekey.toml");
    let text = std::fs::read_to_string(&path).expect("it is there");
    let aside = sidekey.folder().join("sidekey.toml.new");
    std::fs::write(&aside, change(text)).expect("a writable folder");
    std::fs::rename(&aside, &path).expect("a writable folder");
}

async fn config(sidekey: &Sidekey) -> Value {
    sidekey.admin("GET", "/api/status", &Value::Null).await["config"].clone()
}

/// What is told of the configuration, once `told` holds of it.
async fn until(sidekey: &Sidekey, what: &str, told: impl Fn(&Value) -> bool) -> Value {
    for _ in 0..2000 {
        let config = config(sidekey).await;
        if told(&config) {
            return config;
        }
        // The daemon looks at its file in its own time.
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("not {what}: {}\n{}", config(sidekey).await, sidekey.stderr());
}

async fn generation(sidekey: &Sidekey, wanted: u64) -> Value {
    until(sidekey, "reloaded", |config| config["generation"] == wanted && config["error"].is_null()).await
}

#[tokio::test]
async fn a_changed_file_is_in_force_and_nothing_open_is_cut() {
    let gate = Gate::new();
    let held = gate.clone();
    let first = Provider::start(move |_| Message::sse(["data: 1\n\n"]).gate(&held).chunk("data: 2\n\n").into()).await;
    let second = Provider::always(Message::json(200, USAGE)).await;
    let options = Options::new().provider("openai", &first.url()).env("OPENAI_API_KEY", REAL_KEY);
    let sidekey = Sidekey::start(&options).await;
    let key = sidekey.create_key(&[]).await.key;
    let request = Request::post(CHAT, BODY).bearer(&key);
    let mut open = Client::connect(sidekey.proxy).await.unwrap();
    let mut stream = open.start(&request).await.unwrap();
    stream.until("data: 1").await;
    let mut kept = Client::connect(sidekey.proxy).await.unwrap();
    assert_eq!(kept.send(&Request::get("/nobody/v1/models").bearer(&key)).await.unwrap().status, 404);

    // Providers, prices, defaults of keys, limits, the log: all at once.
    rewrite(&sidekey, |text| {
        let more = "[keys]\ndefault_rpm = 7\n[limits]\nmax_body = \"1KiB\"\nreplay_limit = \"1KiB\"\n\
                    [log]\naccess = true\n[prices.\"openai/house-1\"]\ninput = \"2\"\n\
                    [routes.smart]\ntargets = [{ provider = \"openai\", model = \"house-1\" }]\n\
                    [providers.house]\ndialect = \"openai\"\nbase_url = \"http://127.0.0.1:9\"\n";
        format!("{more}{}", text.replace(&first.url(), &second.url()))
    });
    let config = generation(&sidekey, 2).await;
    assert_eq!(config["needs_restart"], Value::Array(vec![]), "{config}");

    // A connection that was there before leads to the new provider.
    let answer = kept.send(&request).await.unwrap();
    assert_eq!((answer.status, second.count()), (200, 1), "{}", answer.text());
    assert_eq!(sidekey.entry(&answer.request_id()).await["cost_usd"], "2");
    let led = Request::post(CHAT, BODY.replace("house-1", "smart")).bearer(&key);
    assert_eq!((sidekey.send(&led).await.status, second.last().body()), (200, BODY.into()), "routes");
    assert_eq!(sidekey.create_key(&["--name", "late"]).await.data["limits"]["rpm"], 7, "keys.default_rpm");
    let large = Request::post(CHAT, " ".repeat(2000)).bearer(&key);
    assert_eq!(sidekey.send(&large).await.status, 413, "limits.max_body");
    assert!(sidekey.ok(&["provider", "list"]).await.contains("house"));
    assert!(sidekey.stderr().contains("sidekey::access"), "log.access");
    let events = sidekey.admin("GET", "/api/alerts", &Value::Null).await.to_string();
    assert!(events.contains("config.reloaded") && events.contains("prices.openai/house-1"), "{events}");

    gate.open();
    let rest = stream.collect().await;
    assert!(rest.complete && rest.text().ends_with("data: 2\n\n"), "a reload cut a stream");
}

#[tokio::test]
async fn a_faulty_file_changes_nothing_and_is_told() {
    let provider = Provider::always(Message::json(200, USAGE)).await;
    let sidekey = Sidekey::with("openai", &provider.url()).await;
    let key = sidekey.create_key(&[]).await.key;
    let request = Request::post(CHAT, BODY).bearer(&key);
    let mut line = 0;
    rewrite(&sidekey, |text| {
        let text = format!("{text}\n[limits]\nreplay_limit = \"1KiB\"\nmax_bdy = \"1KiB\"\n");
        line = text.lines().count();
        text
    });
    sidekey.signal(Signal::HUP);
    let told = until(&sidekey, "rejected", |config| !config["error"].is_null()).await;
    let error = told["error"].as_str().expect("text");
    assert!(
        error.contains(&format!("sidekey.toml:{line}:1: ")) && error.contains("did you mean `max_body`?"),
        "{told}"
    );
    assert_eq!(told["generation"], 1);
    let metrics = sidekey.metrics().await;
    assert!(metrics.contains("sidekey_config_last_reload_successful 0"), "{metrics}");
    assert!(metrics.contains("sidekey_config_reloads_total{result=\"rejected\"}"), "{metrics}");
    assert_eq!(sidekey.send(&request).await.status, 200);
    assert!(sidekey.ok(&["status"]).await.contains("max_bdy"), "status shows it");
    let events = sidekey.admin("GET", "/api/alerts", &Value::Null).await.to_string();
    assert!(events.contains("config.rejected"), "{events}");

    rewrite(&sidekey, |text| text.replace("max_bdy", "max_body"));
    generation(&sidekey, 2).await;
    assert_eq!(sidekey.send(&Request::post(CHAT, " ".repeat(2000)).bearer(&key)).await.status, 413);
    assert!(sidekey.metrics().await.contains("sidekey_config_last_reload_successful 1"));
}

#[tokio::test]
async fn what_needs_a_restart_is_named() {
    let provider = Provider::always(Message::json(200, USAGE)).await;
    let sidekey = Sidekey::with("openai", &provider.url()).await;
    rewrite(&sidekey, |text| {
        let text = text.replace("telemetry = \"127.0.0.1:0\"", "telemetry = \"127.0.0.1:4999\"");
        format!("{text}\nhosts = [\"llm.house.example\"]\n[store]\nretention_days = 5\n")
    });
    let config = generation(&sidekey, 2).await;
    let named = serde_json::json!(["listen.telemetry", "store.retention_days", "providers.*.hosts"]);
    assert_eq!(config["needs_restart"], named);
    assert_eq!(client::send(sidekey.telemetry, &Request::get("/readyz")).await.status, 200);
    // Taken back, nothing is left to be named.
    rewrite(&sidekey, |text| {
        let text = text.replace("\"127.0.0.1:4999\"", "\"127.0.0.1:0\"");
        text.replace("hosts = [\"llm.house.example\"]\n[store]\nretention_days = 5\n", "")
    });
    assert_eq!(generation(&sidekey, 3).await["needs_restart"], Value::Array(vec![]));
}

#[tokio::test]
async fn a_hang_up_fetches_keys_that_lie_elsewhere() {
    let provider = Provider::always(Message::json(200, USAGE)).await;
    let folder = tempfile::tempdir().unwrap();
    let (in_file, printed) = (folder.path().join("in_file"), folder.path().join("printed"));
    std::fs::write(&in_file, "sk-first-of-the-file\n").unwrap();
    std::fs::write(&printed, "sk-first-of-the-command\n").unwrap();
    let options = Options::new()
        .provider("openai", &provider.url())
        .provider("groq", &provider.url())
        .env("OPENAI_API_KEY_FILE", in_file.to_str().unwrap());
    let sidekey = Sidekey::start(&options).await;
    let command = format!("exec:cat {}", printed.display());
    sidekey.ok(&["provider-key", "add", "groq", "--name", "c", "--ref", &command, "--no-test"]).await;
    while sidekey.provider_key("c").await["resolved"] != true {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let key = sidekey.create_key(&[]).await.key;
    let sent = async |path: &str| {
        assert_eq!(sidekey.send(&Request::post(path, BODY).bearer(&key)).await.status, 200);
        provider.last().header("authorization").unwrap_or_default().to_owned()
    };
    let groq = "/groq/openai/v1/chat/completions";
    assert_eq!(sent(CHAT).await, "Bearer sk-first-of-the-file");
    assert_eq!(sent(groq).await, "Bearer sk-first-of-the-command");
    std::fs::write(&in_file, "sk-second-of-the-file\n").unwrap();
    std::fs::write(&printed, "sk-second-of-the-command\n").unwrap();
    sidekey.signal(Signal::HUP);
    generation(&sidekey, 2).await;
    assert_eq!(sent(CHAT).await, "Bearer sk-second-of-the-file");
    // Commands run after that.
    for _ in 0..1000 {
        if sent(groq).await == "Bearer sk-second-of-the-command" {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("the command was not run again");
}
