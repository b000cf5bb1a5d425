//! The settings in force, as an operator asks for them: with a daemon and without one.

use std::time::Duration;

use serde_json::{Value, json};

use crate::support::sidekey::{Options, Sidekey};

const SECRET: &str = "canary0of0a0secret";

async fn told(sidekey: &Sidekey) -> Value {
    sidekey.admin("GET", "/api/config", &Value::Null).await
}

async fn shown(sidekey: &Sidekey, flags: &[&str]) -> Value {
    let args = [flags, &["config", "show", "-o", "json"]].concat();
    serde_json::from_str(&sidekey.ok(&args).await).expect("JSON")
}

fn setting<'a>(config: &'a Value, key: &str) -> &'a Value {
    let settings = config["settings"].as_array().expect("settings");
    settings.iter().find(|setting| setting["key"] == key).unwrap_or_else(|| panic!("no {key}"))
}

#[tokio::test]
async fn settings_have_origins_and_no_secrets() {
    let hook = format!(
        "[alerts.webhooks.ops]\nurl = \"https://hooks.test/{SECRET}\"\nsecret = \"env:HOOK\"\n\
         [telemetry]\notlp_endpoint = \"http://me:{SECRET}@127.0.0.1:9\"\n[store]\nretention_days = 7\n"
    );
    let options = Options::new().config(&hook).env("HOOK", SECRET).env("OPENAI_API_KEY", SECRET);
    let mut sidekey = Sidekey::start(&options.env("SIDEKEY_LOG__LEVEL", "debug")).await;
    let file = sidekey.folder().join("sidekey.toml");
    let config = told(&sidekey).await;
    assert_eq!((&config["file"], &config["generation"], &config["error"]), (&json!(file), &json!(1), &Value::Null));
    for (key, value, origin, place) in [
        ("log.level", json!("debug"), "environment", json!("SIDEKEY_LOG__LEVEL")),
        ("store.retention_days", json!(7), "file", json!(format!("{}:7", file.display()))),
        ("alerts.webhooks.ops.url", json!("https://hooks.test/***"), "file", json!(format!("{}:2", file.display()))),
        ("telemetry.otlp_endpoint", json!("http://***@127.0.0.1:9"), "file", json!(format!("{}:5", file.display()))),
        ("keys.default_expires_days", json!(365), "default", Value::Null),
    ] {
        let setting = setting(&config, key);
        assert_eq!(
            (&setting["value"], &setting["origin"], &setting["where"]),
            (&value, &json!(origin), &place),
            "{key}"
        );
    }
    assert_eq!(shown(&sidekey, &[]).await, config);
    // Flags are asked about, and not the daemon.
    let flagged = shown(&sidekey, &["--set", "store.retention_days=8"]).await;
    assert_eq!(setting(&flagged, "store.retention_days")["origin"], "flag");
    let table = sidekey.ok(&["config", "show"]).await;
    assert!(table.lines().any(|line| line.starts_with("log.level") && line.contains("SIDEKEY_LOG__LEVEL")), "{table}");

    let text = std::fs::read_to_string(&file).expect("it is there");
    std::fs::write(&file, text.replace("retention_days = 7", "retention_days = 9")).expect("a writable folder");
    let mut config = told(&sidekey).await;
    for _ in 0..2000 {
        if config["generation"] == 2 {
            break;
        }
        // The daemon looks at its file in its own time.
        tokio::time::sleep(Duration::from_millis(10)).await;
        config = told(&sidekey).await;
    }
    let waiting = setting(&config, "store.retention_days").clone();
    let figures = ["value", "needs_restart", "at_start", "in_force"].map(|field| waiting[field].clone());
    assert_eq!(figures, [json!(9), json!(true), json!(true), json!(7)]);

    std::fs::write(&file, "[log]\nlevel = 3\n").expect("a writable folder");
    for _ in 0..2000 {
        if !config["error"].is_null() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
        config = told(&sidekey).await;
    }
    assert!(config["error"].as_str().is_some_and(|error| error.contains("sidekey.toml:2")), "{}", config["error"]);
    assert_eq!(setting(&config, "store.retention_days"), &waiting, "what was in force stays");

    std::fs::write(&file, text).expect("a writable folder");
    sidekey.stop().await;
    let alone = shown(&sidekey, &[]).await;
    assert_eq!((&alone["generation"], &alone["loaded"]), (&Value::Null, &Value::Null));
    assert_eq!(setting(&alone, "store.retention_days")["value"], 7);
    for text in [config, flagged, alone].map(|config| config.to_string()).into_iter().chain([table, sidekey.stderr()]) {
        assert!(!text.contains(SECRET), "{text}");
    }
}
