//! What is on disk when an answer has ended, and commands that bring a proxy of their own.

use std::collections::{HashMap, HashSet};
use std::io::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::time::Instant;

use crate::support::client::{self, Client, Request};
use crate::support::cut::Dice;
use crate::support::provider::Provider;
use crate::support::script::{Gate, Message, Reply};
use crate::support::sidekey::{Options, REAL_KEY, Sidekey};

const CHAT: &str = "/openai/v1/chat/completions";
const BODY: &str = r#"{"model":"gpt-4o-mini","messages":[]}"#;
const ANSWER: &str = r#"{"model":"gpt-4o-mini","usage":{"prompt_tokens":3,"completion_tokens":4,"total_tokens":7}}"#;

#[tokio::test]
async fn with_sync_an_answer_ends_when_its_entry_is_on_disk() {
    let provider = Provider::always(Message::json(200, ANSWER)).await;
    let options = Options::new().provider("openai", &provider.url()).config("[store]\ndurability = \"sync\"");
    let mut sidekey = Sidekey::start(&options).await;
    sidekey.add_provider_key("openai", REAL_KEY).await;
    let key = sidekey.create_key(&[]).await.key;
    let streamed = Message::sse([format!("data: {ANSWER}\n\n").as_str(), "data: [DONE]\n\n"]);
    for message in [Message::json(200, ANSWER), streamed] {
        provider.push(message);
        let mut client = Client::connect(sidekey.proxy).await.unwrap();
        let answer = client.send(&Request::post(CHAT, BODY).bearer(&key)).await.unwrap();
        sidekey.kill().await;
        assert!(answer.complete);
        sidekey.restart().await;
        let ledger = sidekey.ledger().await;
        let found = ledger.iter().find(|entry| entry["request_id"] == answer.request_id().as_str());
        assert_eq!(found.expect("the entry survived")["tokens"]["total"], 7);
    }
}

#[tokio::test]
async fn a_kill_under_load_loses_the_last_moment_only() {
    // The commit interval is 10 ms; a busy machine may need a few of them.
    const LATEST: Duration = Duration::from_millis(500);
    let provider = Provider::always(Message::json(200, ANSWER)).await;
    let mut sidekey = Sidekey::with("openai", &provider.url()).await;
    let key = sidekey.create_key(&[]).await.key;
    let (proxy, request) = (sidekey.proxy, Request::post(CHAT, BODY).bearer(&key));
    let clients: Vec<_> = (0..8)
        .map(|_| {
            let request = request.clone();
            tokio::spawn(async move {
                let mut client = Client::connect(proxy).await.unwrap();
                let mut served = vec![];
                // Until sidekey is killed.
                while let Ok(answer) = client.send(&request).await {
                    if !answer.complete {
                        break;
                    }
                    served.push((answer.request_id(), Instant::now()));
                }
                served
            })
        })
        .collect();
    tokio::time::sleep(Duration::from_secs(2)).await;
    sidekey.kill().await;
    let killed = Instant::now();
    let mut served = vec![];
    for client in clients {
        served.extend(client.await.unwrap());
    }
    sidekey.restart().await;
    let ledger = sidekey.ledger().await;
    let recorded: HashSet<_> = ledger.iter().filter_map(|entry| entry["request_id"].as_str()).collect();
    assert_eq!(recorded.len(), ledger.len(), "an entry is there twice");
    let (old, young): (Vec<_>, Vec<_>) =
        served.iter().partition(|(_, at)| killed.saturating_duration_since(*at) > LATEST);
    let lost = old.iter().filter(|(id, _)| !recorded.contains(id.as_str())).count();
    assert!(old.len() > 100, "{} and {} answers", old.len(), young.len());
    assert_eq!(lost, 0, "of {} settled entries", old.len());
}

/// How often sidekey is killed; `SIDEKEY_TEST_KILLS` says otherwise.
const KILLS: usize = 40;
/// Rounds after which a new one begins with an empty store: what is looked through after each grows.
const KILLS_EACH: usize = 20;

/// Sends numbered requests until the connection breaks; some are left in the middle of their answer for ever.
async fn load(proxy: SocketAddr, key: String, next: Arc<AtomicUsize>, hang: usize) {
    let Ok(mut client) = Client::connect(proxy).await else { return };
    loop {
        let number = next.fetch_add(1, Ordering::SeqCst);
        let path =
            if number.is_multiple_of(hang) { format!("{CHAT}?n={number}&hang") } else { format!("{CHAT}?n={number}") };
        let body = r#"{"model":"gpt-4o-mini","messages":[],"stream":true,"max_tokens":40}"#;
        let request = Request::post(&path, body).bearer(&key).header("x-sidekey-group", number.to_string());
        match client.send(&request).await {
            Ok(answer) if answer.complete => {}
            _ => return,
        }
    }
}

#[tokio::test]
async fn whenever_it_is_killed_what_was_served_is_recorded_once() {
    let never = Gate::new();
    let whole = Message::sse([format!("data: {ANSWER}\n\n").as_str(), "data: [DONE]\n\n"]);
    let held = Message::sse(["data: {\"choices\":[{\"delta\":{\"content\":\"Hel\"}}]}\n\n"]).gate(&never);
    let provider = Provider::start(move |seen| {
        Reply::Http(if seen.target.ends_with("&hang") { held.clone() } else { whole.clone() })
    })
    .await;
    let kills = std::env::var("SIDEKEY_TEST_KILLS").map_or(KILLS, |text| text.parse().expect("a number"));
    let mut dice = Dice(7);
    let (mut killed, mut aborted, mut served) = (0, 0, 0);
    while killed < kills {
        let mut sidekey = Sidekey::with("openai", &provider.url()).await;
        let budget = ["--user", "u1", "--budget", "1000/month", "--quota", "1000000000/day"];
        let key = sidekey.create_key(&budget).await;
        let (first, next) = (provider.count(), Arc::new(AtomicUsize::new(1)));
        for _ in 0..KILLS_EACH.min(kills - killed) {
            let clients: Vec<_> =
                (0..6).map(|_| tokio::spawn(load(sidekey.proxy, key.key.clone(), Arc::clone(&next), 23))).collect();
            tokio::time::sleep(Duration::from_micros(dice.next() % 120_000)).await;
            sidekey.kill().await;
            killed += 1;
            for client in clients {
                client.await.unwrap();
            }
            sidekey.restart().await;
            let ledger = sidekey.ledger().await;
            let mut times: HashMap<&str, usize> = HashMap::new();
            ledger.iter().filter_map(|entry| entry["group"].as_str()).for_each(|n| *times.entry(n).or_default() += 1);
            assert!(times.values().all(|times| *times == 1), "counted twice: {times:?}");
            let seen = provider.seen();
            let sent = seen[first..].iter().map(|seen| {
                let number = seen.target.split("n=").nth(1).unwrap();
                number.trim_end_matches("&hang")
            });
            let lost: Vec<_> = sent.filter(|number| !times.contains_key(number)).collect();
            assert!(lost.is_empty(), "after {killed} kills the provider served {lost:?}, of which nothing is recorded");
            // What is counted is what is recorded: of the key, and of its quota.
            let shown: Value =
                serde_json::from_str(&sidekey.ok(&["key", "show", &key.id, "-o", "json"]).await).unwrap();
            let tokens: u64 = ledger.iter().filter_map(|entry| entry["tokens"]["total"].as_u64()).sum();
            assert_eq!((&shown["total_requests"], &shown["total_tokens"]), (&json!(ledger.len()), &json!(tokens)));
            let quota = shown["in_force"].as_array().unwrap().iter().find(|limit| limit["limit"] == "quota").unwrap();
            assert_eq!((&quota["used"], &quota["reserved"]), (&json!(tokens), &json!(0)), "{quota}");
            for entry in ledger.iter().filter(|entry| entry["outcome"] == "aborted_by_crash") {
                assert_eq!(entry["tokens_source"], "estimated");
                assert_eq!(entry["tokens"]["output"], 40, "{entry}");
                let version = entry["price_version"].as_str().unwrap_or_default();
                assert!(version.starts_with("built-in ") && entry["cost_usd"].is_string(), "{entry}");
            }
        }
        let ledger = sidekey.ledger().await;
        aborted += ledger.iter().filter(|entry| entry["outcome"] == "aborted_by_crash").count();
        served += provider.count() - first;
    }
    println!("{killed} kills, {served} requests served, {aborted} settled by estimate at a start");
    assert!(aborted >= killed / 4 && served > killed * 5, "{served} served, {aborted} aborted");
}

/// A file system of its own, of a few megabytes; unmounted when dropped.
struct SmallDisk(PathBuf);

impl SmallDisk {
    /// Mounts one at `path` with what was there; `None` where this user may not.
    fn mount(path: &Path) -> Option<Self> {
        let aside = path.with_extension("aside");
        let run = |command: &mut Command| command.status().is_ok_and(|status| status.success());
        std::fs::rename(path, &aside).expect("a folder of ours");
        std::fs::create_dir(path).expect("a folder of ours");
        if !run(Command::new("mount").args(["-t", "tmpfs", "-o", "size=4m,mode=700", "tmpfs"]).arg(path)) {
            return None;
        }
        let disk = Self(path.to_owned());
        assert!(run(Command::new("cp").arg("-a").arg(aside.join(".")).arg(path)));
        Some(disk)
    }

    fn fill(&self) {
        let mut file = std::fs::File::create(self.0.join("filler")).expect("room for a name");
        // Page by page, so that not one is left.
        while file.write_all(&[7; 4096]).is_ok() {}
    }

    fn empty(&self) {
        std::fs::remove_file(self.0.join("filler")).expect("the filler");
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        drop(Command::new("umount").arg("--lazy").arg(&self.0).status());
    }
}

#[tokio::test]
async fn a_full_disk_stops_who_must_be_recorded_and_nobody_else() {
    let gate = Gate::new();
    let provider = Provider::always(Message::json(200, ANSWER)).await;
    let mut sidekey = Sidekey::with("openai", &provider.url()).await;
    let free = sidekey.create_key(&["--name", "free"]).await.key;
    let budgeted = sidekey.create_key(&["--name", "held", "--quota", "1000000/day"]).await;
    sidekey.stop().await;
    let Some(disk) = SmallDisk::mount(&sidekey.data_dir()) else {
        assert!(std::env::var_os("CI").is_none(), "this user may not mount a disk");
        eprintln!("SKIPPED: 1 test of a full disk, because this user may not mount one");
        return;
    };
    sidekey.restart().await;
    disk.fill();
    let (mut served, mut open) = (vec![], vec![]);
    // More at once than there are places on disk for: whoever is held to something is refused from then on.
    let request = |key: &str| Request::post(CHAT, BODY).bearer(key);
    for _ in 0..3 {
        provider.push(Message::json(200, ANSWER).held_by(&gate));
        let count = provider.count();
        let (proxy, request) = (sidekey.proxy, request(&free));
        open.push(tokio::spawn(async move { client::send(proxy, &request).await }));
        provider.wait_for_request(count).await;
    }
    let refused = sidekey.send(&request(&budgeted.key)).await;
    assert_eq!((refused.status, refused.code().as_str()), (503, "overloaded"), "{}", refused.text());
    assert_eq!(refused.header("x-should-retry"), Some("true"));
    for _ in 0..20 {
        let answer = sidekey.send(&request(&free)).await;
        assert_eq!(answer.status, 200, "others go on: {}", answer.text());
        served.push(answer.request_id());
    }
    gate.open();
    for task in open {
        served.push(task.await.unwrap().request_id());
    }
    assert!(sidekey.metrics().await.contains("\nsidekey_store_up 0\n"), "it says that it cannot write");
    disk.empty();
    // Nobody lends a hand.
    let recovered = async {
        while sidekey.send(&request(&budgeted.key)).await.status != 200
            || !sidekey.metrics().await.contains("\nsidekey_store_up 1\n")
        {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(client::PATIENCE, recovered).await.expect("it goes on by itself");
    let ledger = sidekey.ledger().await;
    let times = |id: &String| ledger.iter().filter(|entry| entry["request_id"] == id.as_str()).count();
    let times: Vec<usize> = served.iter().map(times).collect();
    assert!(times.iter().all(|times| *times == 1), "recorded {times:?} times; sidekey said:\n{}", sidekey.stderr());
    sidekey.stop().await;
}

#[tokio::test]
async fn exec_brings_its_own_proxy_when_no_daemon_runs() {
    let provider = Provider::always(Message::json(200, ANSWER)).await;
    let mut sidekey = Sidekey::with("openai", &provider.url()).await;
    sidekey.stop().await;
    let script = "echo \"$OPENAI_BASE_URL $OPENAI_API_KEY\"; read -r done; exit 7";
    let mut child = sidekey.spawn_cli(&["exec", "--rpm", "5", "--", "/bin/sh", "-c", script]);
    let (mut stdin, stdout) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
    let line = BufReader::new(stdout).lines().next_line().await.unwrap().expect("the child says where its proxy is");
    let (url, key) = line.split_once(' ').unwrap();
    let address = url.trim_start_matches("http://").split('/').next().unwrap().parse().unwrap();
    let answer = client::send(address, &Request::post(CHAT, BODY).bearer(key)).await;
    assert_eq!((answer.status, answer.header("x-ratelimit-limit-rpm")), (200, Some("5")), "{}", answer.text());
    assert_eq!(provider.last().header("authorization"), Some(format!("Bearer {REAL_KEY}").as_str()));
    stdin.write_all(b"done\n").await.unwrap();
    assert_eq!(child.wait().await.unwrap().code(), Some(7));
    let ledger = sidekey.ledger().await;
    assert_eq!(ledger[0]["request_id"], answer.request_id().as_str());
    assert_eq!(sidekey.ok(&["key", "list", "-o", "jsonl"]).await.matches("exec").count(), 0, "the key is gone");
}
