//! What becomes of provider keys while they are used: rotations, tests of what was refused, and how soon a change is in
//! force.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use crate::support::client::{Client, PATIENCE, Request};
use crate::support::provider::{Provider, Seen};
use crate::support::script::{Gate, Message};
use crate::support::sidekey::{Options, Sidekey};

const CHAT: &str = "/openai/v1/chat/completions";
const BODY: &str = r#"{"model":"m","messages":[]}"#;
const ANSWER: &str = r#"{"model":"m","usage":{"prompt_tokens":1,"completion_tokens":2,"total_tokens":3}}"#;
const OLD: &str = "sk-old-Kq7WmZ3xTn9vRb2cYh5dJf8gLs4pAe6u";
const NEW: &str = "sk-new-Wm7KqZ3xTn9vRb2cYh5dJf8gLs4pAe9z";

/// A provider that answers each key with the status a test has set, 200 unless set; its tests are always passed.
#[derive(Clone, Default)]
struct Moods(Arc<Mutex<HashMap<String, u16>>>);

impl Moods {
    fn set(&self, key: &str, status: u16) {
        self.0.lock().expect("no holder panics").insert(key.to_owned(), status);
    }

    fn answer(&self, seen: &Seen) -> Message {
        let status = self.0.lock().expect("no holder panics").get(&bearer(seen)).copied().unwrap_or(200);
        match (status, seen.target.starts_with("/v1/models")) {
            (200, _) | (_, true) => Message::json(200, ANSWER),
            (status, false) => Message::json(status, r#"{"error":{"message":"no","code":"invalid_api_key"}}"#),
        }
    }
}

fn bearer(seen: &Seen) -> String {
    seen.header("authorization").unwrap_or_default().trim_start_matches("Bearer ").to_owned()
}

/// One key named main, with the old secret; and a virtual key.
async fn start() -> (Moods, Provider, Sidekey, String) {
    let moods = Moods::default();
    let provider = {
        let moods = moods.clone();
        Provider::start(move |seen| moods.answer(seen).into()).await
    };
    let sidekey = Sidekey::start(&Options::new().provider("openai", &provider.url())).await;
    sidekey.add_provider_key("openai", OLD).await;
    let key = sidekey.create_key(&[]).await.key;
    (moods, provider, sidekey, key)
}

async fn rotate(sidekey: &Sidekey, flags: &[&str]) -> Value {
    let args: Vec<&str> =
        ["provider-key", "rotate", "main", "--stdin", "-o", "json"].iter().chain(flags).copied().collect();
    let output = sidekey.cli_with(&args, NEW).await;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("JSON")
}

async fn chat(sidekey: &Sidekey, key: &str) -> u16 {
    sidekey.send(&Request::post(CHAT, BODY).bearer(key)).await.status
}

#[tokio::test]
async fn a_rotation_shifts_what_comes_and_lets_end_what_is_open() {
    let (_moods, provider, sidekey, key) = start().await;
    let gate = Gate::new();
    provider.push(Message::json(200, ANSWER).held_by(&gate));
    let mut open = Client::connect(sidekey.proxy).await.unwrap();
    let request = Request::post(CHAT, BODY).bearer(&key);
    let waiting = tokio::spawn(async move { open.send(&request).await.expect("an answer").status });
    let first = provider.wait_for_request(0).await;
    let shown = rotate(&sidekey, &["--grace", "1h"]).await;
    assert_eq!((&shown["masked"], &shown["replaced"]), (&json!("sk-…Ae9z"), &json!("sk-…Ae6u")), "{shown}");
    assert!(shown["rotation_grace_until"].is_string(), "{shown}");
    assert_eq!(chat(&sidekey, &key).await, 200);
    assert_eq!((bearer(&first), bearer(&provider.last())), (OLD.to_owned(), NEW.to_owned()));
    gate.open();
    assert_eq!(waiting.await.unwrap(), 200, "what was open ends with the old secret");
    // An update in between loses neither.
    sidekey.ok(&["provider-key", "update", "main", "--priority", "3"]).await;
    assert!(sidekey.provider_key("main").await["replaced"].is_string());
    assert_eq!(chat(&sidekey, &key).await, 200);
    assert_eq!(bearer(&provider.last()), NEW);
}

#[tokio::test]
async fn a_rotation_is_taken_back_when_the_new_secret_is_refused() {
    for (name, status, restarts) in [("401", 401, false), ("403", 403, false), ("401 after a restart", 401, true)] {
        let (moods, provider, mut sidekey, key) = start().await;
        moods.set(NEW, status);
        rotate(&sidekey, &["--no-test"]).await;
        if restarts {
            sidekey.kill().await;
            sidekey.restart().await;
        }
        // The client sees nothing of it: the former secret serves the same request.
        let before = provider.count();
        assert_eq!(chat(&sidekey, &key).await, 200, "{name}");
        let used: Vec<String> = provider.seen()[before..].iter().map(|seen| bearer(seen)).collect();
        assert_eq!(used, [NEW, OLD], "{name}");
        assert_eq!(chat(&sidekey, &key).await, 200, "{name}");
        assert_eq!((bearer(&provider.last()), provider.count() - before), (OLD.to_owned(), 3), "{name}");
        let told = sidekey.admin("GET", "/api/alerts?limit=5", &Value::Null).await.to_string();
        assert!(told.contains("provider_key.taken_back") && told.contains("sk-…Ae6u again"), "{name}: {told}");
        // It is kept.
        let deadline = Instant::now() + PATIENCE;
        while sidekey.provider_key("main").await["replaced"] != Value::Null {
            assert!(Instant::now() < deadline, "{name}: not noted");
        }
        sidekey.stop().await;
        sidekey.restart().await;
        let shown = sidekey.provider_key("main").await;
        assert_eq!((&shown["status"], &shown["masked"]), (&json!("active"), &json!("sk-…Ae6u")), "{name}: {shown}");
        assert_eq!(chat(&sidekey, &key).await, 200, "{name}");
        assert_eq!(bearer(&provider.last()), OLD, "{name}");
    }
}

#[tokio::test]
async fn what_is_not_taken_back() {
    // Without a grace, the new secret is as good as any: it is in error.
    let (moods, provider, sidekey, key) = start().await;
    moods.set(NEW, 401);
    let shown = rotate(&sidekey, &["--no-test", "--grace", "0s"]).await;
    assert_eq!((&shown["replaced"], &shown["rotation_grace_until"]), (&Value::Null, &Value::Null));
    assert_eq!(chat(&sidekey, &key).await, 502);
    assert_eq!((&sidekey.provider_key("main").await["status"], provider.count()), (&json!("error"), 1));

    // A former secret that was refused is not worth remembering.
    let shown = rotate(&sidekey, &["--no-test"]).await;
    assert_eq!(shown["replaced"], Value::Null, "{shown}");

    // Once the provider has taken the new secret, a 403 is about what was asked for.
    let (moods, provider, sidekey, key) = start().await;
    rotate(&sidekey, &["--no-test"]).await;
    assert_eq!(chat(&sidekey, &key).await, 200);
    moods.set(NEW, 403);
    assert_eq!(chat(&sidekey, &key).await, 502);
    assert!(sidekey.provider_key("main").await["replaced"].is_string());
    // A 401 is not.
    moods.set(NEW, 401);
    assert_eq!(chat(&sidekey, &key).await, 200);
    assert_eq!(bearer(&provider.last()), OLD);

    // When the grace is over, nothing of the former secret is left.
    let (moods, provider, sidekey, key) = start().await;
    moods.set(NEW, 401);
    rotate(&sidekey, &["--no-test", "--grace", "1ms"]).await;
    let deadline = Instant::now() + PATIENCE;
    while sidekey.provider_key("main").await["replaced"] != Value::Null {
        assert!(Instant::now() < deadline, "still remembered");
    }
    assert_eq!(chat(&sidekey, &key).await, 502);
    assert_eq!((bearer(&provider.last()), provider.count()), (NEW.to_owned(), 1));
    let output = sidekey.cli_with(&["provider-key", "rotate", "main", "--stdin", "--grace", "soon"], NEW).await;
    assert_eq!(output.status.code(), Some(2), "{}", String::from_utf8_lossy(&output.stderr));
}

#[tokio::test]
async fn a_test_takes_a_rotation_back_too() {
    let provider = Provider::start(|seen| {
        let status = if bearer(seen) == NEW { 401 } else { 200 };
        Message::json(status, r#"{"error":{"message":"no","code":"invalid_api_key"}}"#).into()
    })
    .await;
    let sidekey = Sidekey::start(&Options::new().provider("openai", &provider.url())).await;
    sidekey.add_provider_key("openai", OLD).await;
    let refused = sidekey.cli_with(&["provider-key", "rotate", "main", "--stdin"], NEW).await;
    assert_eq!(refused.status.code(), Some(5), "the test fails, nothing changes");
    assert_eq!(sidekey.provider_key("main").await["masked"], "sk-…Ae6u");
    rotate(&sidekey, &["--no-test"]).await;
    assert_eq!(sidekey.cli(&["provider-key", "test", "main"]).await.status.code(), Some(1));
    let deadline = Instant::now() + PATIENCE;
    while sidekey.provider_key("main").await["masked"] != "sk-…Ae6u" {
        assert!(Instant::now() < deadline, "not taken back");
    }
    assert_eq!(sidekey.provider_key("main").await["status"], "active");
}

/// A provider whose tests are refused until `good`, and held by `gate`; it counts those that are under way.
struct Tested {
    provider: Provider,
    good: Arc<AtomicBool>,
    asked: Arc<AtomicUsize>,
}

impl Tested {
    async fn start(gate: Option<Gate>) -> Self {
        let (good, asked) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let provider = {
            let (good, asked) = (Arc::clone(&good), Arc::clone(&asked));
            Provider::start(move |seen| {
                asked.fetch_add(usize::from(seen.target == "/v1/models"), Ordering::SeqCst);
                let message = match good.load(Ordering::SeqCst) {
                    true => Message::json(200, ANSWER),
                    false => Message::json(401, r#"{"error":{"message":"no","code":"invalid_api_key"}}"#),
                };
                match &gate {
                    Some(gate) if seen.target == "/v1/models" => message.held_by(gate).into(),
                    _ => message.into(),
                }
            })
            .await
        };
        Self { provider, good, asked }
    }

    /// A sidekey of which the only key is in `error`.
    async fn refused(&self, config: &str) -> (Sidekey, String) {
        let options = Options::new().config(config).provider("openai", &self.provider.url());
        let sidekey = Sidekey::start(&options).await;
        sidekey.add_provider_key("openai", OLD).await;
        let key = sidekey.create_key(&[]).await.key;
        assert_eq!(chat(&sidekey, &key).await, 502);
        assert_eq!(sidekey.provider_key("main").await["status"], "error");
        (sidekey, key)
    }

    async fn until_asked(&self, times: usize) {
        let deadline = Instant::now() + PATIENCE;
        while self.asked.load(Ordering::SeqCst) < times {
            assert!(Instant::now() < deadline, "not asked {times} times");
            sleep(Duration::from_millis(20)).await;
        }
    }
}

#[tokio::test]
async fn what_is_in_error_is_tested_again() {
    let (tested, left) = (Tested::start(None).await, Tested::start(None).await);
    let (off, _) = left.refused("[provider_keys]\nretest = false\nretest_first = \"1s\"").await;
    let (sidekey, key) = tested.refused("[provider_keys]\nretest_first = \"1s\"\nretest_max = \"1s\"").await;
    tested.until_asked(2).await;
    assert_eq!(sidekey.provider_key("main").await["status"], "error");
    tested.good.store(true, Ordering::SeqCst);
    let deadline = Instant::now() + PATIENCE;
    while sidekey.provider_key("main").await["status"] != "active" {
        assert!(Instant::now() < deadline, "never active again");
        sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(chat(&sidekey, &key).await, 200);
    let told = sidekey.admin("GET", "/api/alerts?limit=5", &Value::Null).await.to_string();
    assert!(told.contains("provider_key.active") && told.contains("is active, was error"), "{told}");
    let metrics = sidekey.metrics().await;
    assert!(metrics.contains(r#"sidekey_provider_key_retests_total{verdict="accepted"} 1"#), "{metrics}");
    // Switched off, it was not asked in all that time.
    assert_eq!((left.asked.load(Ordering::SeqCst), &off.provider_key("main").await["status"]), (0, &json!("error")));
}

#[tokio::test]
async fn one_test_of_a_key_at_a_time() {
    let gate = Gate::new();
    let tested = Tested::start(Some(gate.clone())).await;
    let (sidekey, _) = tested.refused("[provider_keys]\nretest_first = \"1s\"").await;
    tested.until_asked(1).await;
    // While that one waits for its answer, those who ask by hand wait for their turn.
    let id = sidekey.provider_key("main").await["id"].as_str().expect("an id").to_owned();
    let path = format!("/api/provider-keys/{id}/test");
    let none = json!({});
    let by_hand = async {
        let (first, second) = tokio::join!(sidekey.admin("POST", &path, &none), sidekey.admin("POST", &path, &none));
        (first["test"]["verdict"].clone(), second["test"]["verdict"].clone())
    };
    let watch = async {
        sleep(Duration::from_millis(500)).await;
        let asked = tested.asked.load(Ordering::SeqCst);
        tested.good.store(true, Ordering::SeqCst);
        gate.open();
        asked
    };
    let (verdicts, asked) = tokio::join!(by_hand, watch);
    assert_eq!((asked, verdicts), (1, (json!("accepted"), json!("accepted"))));
    assert_eq!(tested.asked.load(Ordering::SeqCst), 3);
    assert_eq!(sidekey.provider_key("main").await["status"], "active");
}

#[tokio::test]
async fn all_are_tested_with_their_times() {
    let (_moods, provider, sidekey, _) = start().await;
    sidekey.add_provider_key_as("openai", NEW, &["--name", "second"]).await;
    let output = sidekey.cli(&["provider-key", "test", "--all"]).await;
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && stderr.is_empty(), "a bar in a pipe: {stderr}");
    assert!(stdout.lines().next().is_some_and(|head| head.split_whitespace().any(|word| word == "MS")), "{stdout}");
    assert_eq!((stdout.matches("accepted").count(), provider.count()), (2, 2), "{stdout}");
    let json: Value =
        serde_json::from_str(&sidekey.ok(&["provider-key", "test", "--all", "-o", "json"]).await).unwrap();
    assert!(json["results"][1]["test"]["latency_ms"].is_u64(), "{json}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_is_in_force_once_its_command_returns() {
    // Each request says how many commands had returned when it began, the provider notes how many had begun when it
    // came: where both are the same, only those can have been in force.
    let (returned, begun) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let sure: Arc<Mutex<Vec<(usize, String)>>> = Arc::default();
    let provider = {
        let (begun, sure) = (Arc::clone(&begun), Arc::clone(&sure));
        Provider::start(move |seen| {
            let returned: usize = seen.header("x-returned").expect("our header").parse().expect("a number");
            if returned == begun.load(Ordering::SeqCst) {
                sure.lock().unwrap().push((returned, bearer(seen)));
            }
            Message::json(200, ANSWER).into()
        })
        .await
    };
    let sidekey = Sidekey::start(&Options::new().provider("openai", &provider.url())).await;
    sidekey.add_provider_key_as("openai", OLD, &["--name", "main", "--priority", "5"]).await;
    let key = sidekey.create_key(&[]).await.key;
    let ended = Arc::new(AtomicBool::new(false));
    let mut clients = JoinSet::new();
    for _ in 0..4 {
        let (returned, ended, key, proxy) = (Arc::clone(&returned), Arc::clone(&ended), key.clone(), sidekey.proxy);
        clients.spawn(async move {
            let mut client = Client::connect(proxy).await.expect("sidekey listens");
            while !ended.load(Ordering::SeqCst) {
                let began = returned.load(Ordering::SeqCst).to_string();
                let request = Request::post(CHAT, BODY).bearer(&key).header("x-returned", &began);
                assert_eq!(client.send(&request).await.expect("an answer").status, 200);
            }
        });
    }
    let commands: [&[&str]; 6] = [
        &["provider-key", "add", "openai", "--name", "new", "--stdin", "--no-test"],
        &["provider-key", "disable", "new"],
        &["provider-key", "enable", "new"],
        &["provider-key", "update", "new", "--priority", "9"],
        &["provider-key", "update", "new", "--priority", "0"],
        &["provider-key", "delete", "new"],
    ];
    let wanted = [OLD, NEW, OLD, NEW, OLD, NEW, OLD];
    for (n, args) in commands.iter().enumerate() {
        begun.store(n + 1, Ordering::SeqCst);
        let output = sidekey.cli_with(args, NEW).await;
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        returned.store(n + 1, Ordering::SeqCst);
        let deadline = Instant::now() + PATIENCE;
        while sure.lock().unwrap().iter().filter(|(after, _)| *after == n + 1).count() < 10 {
            assert!(Instant::now() < deadline, "no requests after {args:?}");
            sleep(Duration::from_millis(5)).await;
        }
    }
    ended.store(true, Ordering::SeqCst);
    while let Some(done) = clients.join_next().await {
        done.expect("no client sees a failure");
    }
    for (after, used) in &*sure.lock().unwrap() {
        assert_eq!(used, wanted[*after], "after {after} commands");
    }
}

#[tokio::test]
async fn how_soon_a_new_key_serves() {
    const ROUNDS: usize = 20;
    let (_moods, provider, sidekey, key) = start().await;
    sidekey.ok(&["provider-key", "update", "main", "--priority", "100"]).await;
    let mut times = Vec::new();
    for round in 0..ROUNDS {
        // Each goes before all that were there.
        let (name, priority) = (format!("key-{round}"), (ROUNDS - round).to_string());
        let secret = format!("sk-new-{round}-Wm7KqZ3xTn9vRb2cYh5dJf8gLs4p");
        let args = ["provider-key", "add", "openai", "--name", &name, "--priority", &priority, "--stdin", "--no-test"];
        let added = sidekey.cli_with(&args, &secret).await;
        let returned = Instant::now();
        assert!(added.status.success(), "{}", String::from_utf8_lossy(&added.stderr));
        assert_eq!(chat(&sidekey, &key).await, 200);
        times.push(returned.elapsed());
        assert_eq!(provider.count(), round + 1);
        assert_eq!(bearer(&provider.last()), secret, "the first request after `add` does not know of the key");
    }
    times.sort_unstable();
    let (median, worst) = (times[ROUNDS / 2], times[ROUNDS - 1]);
    println!(
        "from the return of `provider-key add` to the end of the first request by that key: median {median:?}, worst {worst:?}"
    );
}
