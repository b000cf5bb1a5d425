//! The console in a browser: Debian's Chromium, driven by the flows in `tests/browser`, against real sidekeys.
//!
//! Pictures of its pages are left in `target/tmp/console`.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::process::Command;
use tokio::time::timeout;

use crate::sdk;
use crate::support::provider::{Provider, Seen};
use crate::support::script::{Message, Reply};
use crate::support::sidekey::{Options, Sidekey};

/// How long all flows together may take, on a machine that does other things too.
const PATIENCE: Duration = Duration::from_secs(600);
/// Those whose answers do not come in each other's way.
const SIDEKEYS: [&str; 6] = ["main", "paging", "roles", "hostile", "figures", "crowd"];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn flows() {
    if !sdk::present("chromium").await || !sdk::present("node").await {
        return;
    }
    let Some(modules) = sdk::modules("browser", &source()).await else { return };
    let provider = Provider::start(answer).await;
    let mut sidekeys = Vec::new();
    for name in SIDEKEYS {
        let options = Options::new().provider("openai", &provider.url()).provider("anthropic", &provider.url());
        sidekeys.push((name, Sidekey::start(&options).await));
    }
    let described = sidekeys.iter().map(|(name, sidekey)| {
        let of = json!({
            "url": format!("http://{}", sidekey.admin),
            "proxy": format!("http://{}", sidekey.proxy),
            "socket": sidekey.data_dir().join("admin.sock"),
        });
        ((*name).to_owned(), of)
    });
    let given = json!({
        "modules": modules,
        "chromium": "/usr/bin/chromium",
        "shots": Path::new(env!("CARGO_TARGET_TMPDIR")).join("console"),
        "sidekeys": described.collect::<serde_json::Map<_, _>>(),
        // Flows by name, and pages from the disk: while one works on them.
        "only": std::env::var("SIDEKEY_TEST_FLOWS").ok(),
        "ui": std::env::var("SIDEKEY_TEST_UI").ok().map(|folder| vec![folder]),
    });
    let mut command = Command::new("node");
    command.arg("run.js").current_dir(source()).env("SIDEKEY_TEST", given.to_string());
    command.stdin(Stdio::null()).stdout(Stdio::piped()).kill_on_drop(true);
    let output = command.spawn().expect("node runs").wait_with_output();
    let output = timeout(PATIENCE, output).await.expect("the flows end").expect("our own child");
    let said = String::from_utf8_lossy(&output.stdout);
    let report: Value = serde_json::from_str(said.lines().last().unwrap_or_default()).unwrap_or_default();
    eprintln!("{report:#}");
    let flows = report["flows"].as_array().unwrap_or_else(|| panic!("no report: {}\n{said}", output.status));
    assert!(!flows.is_empty(), "no flow ran");
    let failed = flows.iter().filter(|flow| !flow["failed"].is_null());
    let failed: Vec<_> =
        failed.map(|flow| format!("{}: {}", flow["name"], flow["failed"].as_str().unwrap_or("?"))).collect();
    assert!(failed.is_empty(), "{}", failed.join("\n\n"));
}

fn source() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/browser")
}

/// A provider that takes any key but those with `bad` in them.
fn answer(seen: &Seen) -> Reply {
    let key = seen.header("authorization").or_else(|| seen.header("x-api-key")).unwrap_or_default();
    if key.contains("bad") {
        return Message::json(401, r#"{"error":{"message":"no such key"}}"#).into();
    }
    if seen.method == "GET" {
        return Message::json(200, r#"{"object":"list","data":[]}"#).into();
    }
    sdk::answer(seen)
}
