//! Keys that fail in every way at once, under load: as long as one of them serves, no client sees a failure.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use crate::support::client::{Client, PATIENCE, Request};
use crate::support::provider::{Provider, Seen};
use crate::support::script::{Message, Reply};
use crate::support::sidekey::{Options, Sidekey};

/// Azure's streams tell of errors late, in their first event.
const CHAT: &str = "/azure-openai/openai/deployments/d/chat/completions?api-version=1";
const BODY: &str = r#"{"model":"gpt-4o-mini","max_tokens":60,"messages":[{"role":"user","content":"Say hello."}]}"#;
const ANSWER: &str =
    r#"{"model":"gpt-4o-mini","choices":[],"usage":{"prompt_tokens":40,"completion_tokens":60,"total_tokens":100}}"#;
const EVENTS: [&str; 3] = [
    "data: {\"model\":\"gpt-4o-mini\",\"choices\":[{\"index\":0,\"delta\":{\"content\":\"Hello.\"}}]}\n\n",
    "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":40,\"completion_tokens\":60,\"total_tokens\":100}}\n\n",
    "data: [DONE]\n\n",
];
const KEYS: usize = 10;
/// Serve always, but that they fail in turns: one of them is well at any time.
const STEADY: [usize; 2] = [0, 1];
/// Are refused for good after a few requests, each in its own way.
const DOOMED: [usize; 3] = [7, 8, 9];
/// Requests that a doomed key serves before.
const SERVED: u64 = 3;
const PARALLEL: usize = 200;
/// What stands for no request in [`Clients`].
const IDLE: u64 = u64::MAX;

/// How long it is; `SIDEKEY_TEST_STORM_SECONDS` for longer.
fn length() -> Duration {
    let said = std::env::var("SIDEKEY_TEST_STORM_SECONDS").ok();
    Duration::from_secs(said.and_then(|text| text.parse().ok()).unwrap_or(3))
}

fn secret(n: usize) -> String {
    format!("sk-real-{n}-Kq7WmZ3xTn9vRb2cYh5dJf8gLs4p")
}

fn key_of(seen: &Seen) -> usize {
    let text = seen.header("api-key").expect("a credential");
    text.split('-').nth(2).and_then(|n| n.parse().ok()).expect("one of ours")
}

/// What the provider does, and did.
#[derive(Default)]
struct Weather {
    requests: [AtomicU64; KEYS],
    /// The steady key that fails, if one does, and how often the steady ones have failed.
    failing: Mutex<Option<usize>>,
    failed: AtomicU64,
    /// Requests that heard that a key is refused for good.
    refused: Mutex<HashMap<usize, HashSet<String>>>,
}

impl Weather {
    fn answer(&self, seen: &Seen) -> Reply {
        let (key, id) = (key_of(seen), id_of(seen));
        let n = self.requests[key].fetch_add(1, Ordering::SeqCst);
        let is_stream = id.ends_with("stream");
        if STEADY.contains(&key) {
            if *self.failing.lock().expect("no holder panics") != Some(key) {
                return well(is_stream).into();
            }
            self.failed.fetch_add(1, Ordering::SeqCst);
            // A rest that ends by itself, and before long: a breaker that has opened lets only one request try.
            return refusal(is_stream, 429, "rate_limit_exceeded").header("retry-after-ms", "200").into();
        }
        if DOOMED.contains(&key) && n >= SERVED {
            self.refused.lock().expect("no holder panics").entry(key).or_default().insert(id);
            return match key {
                7 => refusal(false, 401, "invalid_api_key"),
                8 => refusal(false, 402, "billing_not_active"),
                _ => refusal(is_stream, 429, "insufficient_quota"),
            }
            .into();
        }
        let dice = (n + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(u32::try_from(key).expect("a few") * 7);
        match dice % 100 {
            _ if DOOMED.contains(&key) => well(is_stream),
            0..8 => refusal(false, 500, "server_error"),
            8..12 => refusal(false, 503, "overloaded"),
            12..16 => refusal(false, 429, "rate_limit_exceeded").header("retry-after", "1"),
            16..18 => refusal(false, 403, "forbidden"),
            18..22 => return Reply::Raw(Bytes::new()),
            22..26 => return Reply::Raw(Bytes::from_static(b"HTTP/1.1 200 OK\r\ncontent-ty")),
            26..30 => refusal(is_stream, 429, "rate_limit_exceeded"),
            30..34 => refusal(is_stream, 500, "server_error"),
            _ => well(is_stream),
        }
        .into()
    }
}

fn id_of(seen: &Seen) -> String {
    seen.header("x-storm").expect("our header").to_owned()
}

fn well(is_stream: bool) -> Message {
    if is_stream { Message::sse(EVENTS) } else { Message::json(200, ANSWER) }
}

/// With its status, or late: with 200 and in the first event.
fn refusal(late: bool, status: u16, code: &str) -> Message {
    let error = format!(r#"{{"error":{{"message":"no","code":"{code}"}}}}"#);
    if late { Message::sse([&*format!("data: {error}\n\n")]) } else { Message::json(status, error) }
}

/// Who sends, and since when their present request is under way.
struct Clients {
    age: AtomicU64,
    /// The age in which each client's request began.
    began: [AtomicU64; PARALLEL],
    ended: AtomicBool,
}

impl Clients {
    /// Waits until every request that is under way now has ended.
    async fn turn_over(&self) {
        let age = self.age.fetch_add(1, Ordering::SeqCst) + 1;
        let over = || self.began.iter().all(|began| began.load(Ordering::SeqCst) >= age);
        let wait = async {
            while !over() {
                sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(PATIENCE * 3, wait).await.expect("every request ends");
    }
}

/// Lets the steady keys fail in turns, for as long as the storm is, and each of them once at least. One begins to fail only
/// when the other is known to be well, and no request is under way that could know it otherwise.
async fn turn(weather: &Weather, clients: &Clients, sidekey: &Sidekey) -> usize {
    let end = Instant::now() + length();
    let mut turns = 0;
    while Instant::now() < end || turns < STEADY.len() {
        let key = STEADY[turns % STEADY.len()];
        let before = weather.failed.load(Ordering::SeqCst);
        *weather.failing.lock().expect("no holder panics") = Some(key);
        let wait = async {
            while weather.failed.load(Ordering::SeqCst) == before {
                sleep(Duration::from_millis(5)).await;
            }
            // Others meet it too, and its rest ends meanwhile.
            sleep(Duration::from_millis(500)).await;
        };
        timeout(PATIENCE * 3, wait).await.expect("a key that was well is used");
        *weather.failing.lock().expect("no holder panics") = None;
        // Whoever was refused has told, and so its rest is the last.
        clients.turn_over().await;
        let wait = async {
            while sidekey.provider_key(&format!("k{key}")).await["status"] != "active" {
                sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(PATIENCE, wait).await.expect("a rest ends");
        // Whoever has passed it over while it rested is served.
        clients.turn_over().await;
        turns += 1;
    }
    clients.ended.store(true, Ordering::SeqCst);
    turns
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_good_key_is_enough_in_a_storm() {
    let weather: Arc<Weather> = Arc::default();
    let provider = {
        let weather = Arc::clone(&weather);
        Provider::start(move |seen| weather.answer(seen)).await
    };
    // A longer storm would see keys tested again, which are no requests of clients.
    let options = Options::new().provider("azure-openai", &provider.url());
    let sidekey = Sidekey::start(&options.config("[provider_keys]\nretest = false\n")).await;
    for n in 0..KEYS {
        sidekey.add_provider_key_as("azure-openai", &secret(n), &["--name", &format!("k{n}")]).await;
    }
    let key = sidekey.create_key(&[]).await.key;
    let clients = Arc::new(Clients {
        age: AtomicU64::new(0),
        began: std::array::from_fn(|_| AtomicU64::new(IDLE)),
        ended: AtomicBool::new(false),
    });
    let mut tasks = JoinSet::new();
    for worker in 0..PARALLEL {
        let (key, proxy, clients) = (key.clone(), sidekey.proxy, Arc::clone(&clients));
        tasks.spawn(async move {
            let mut client = Client::connect(proxy).await.expect("sidekey listens");
            let mut times = Vec::new();
            while !clients.ended.load(Ordering::SeqCst) {
                let (kind, want) =
                    if times.len() % 2 == 0 { ("stream", EVENTS.concat()) } else { ("whole", ANSWER.to_owned()) };
                let id = format!("{worker}-{}-{kind}", times.len());
                clients.began[worker].store(clients.age.load(Ordering::SeqCst), Ordering::SeqCst);
                let began = Instant::now();
                let answer = client.send(&Request::post(CHAT, BODY).bearer(&key).header("x-storm", &id)).await;
                let answer = answer.expect("an answer");
                assert_eq!((answer.status, answer.text()), (200, want), "{id}");
                assert!(answer.complete, "{id}: cut off");
                times.push((id, began, Instant::now()));
                clients.began[worker].store(IDLE, Ordering::SeqCst);
            }
            times
        });
    }
    let turns = turn(&weather, &clients, &sidekey).await;
    let mut times = HashMap::new();
    while let Some(done) = tasks.join_next().await {
        times
            .extend(done.expect("no client sees a failure").into_iter().map(|(id, began, ended)| (id, (began, ended))));
    }
    let (mut reached, mut by_key) = (HashSet::new(), BTreeMap::<usize, usize>::new());
    let seen = provider.seen();
    for seen in &seen {
        assert!(reached.insert((id_of(seen), key_of(seen))), "a request reached a key twice");
        *by_key.entry(key_of(seen)).or_default() += 1;
    }
    let refused = weather.refused.lock().expect("no holder panics").clone();
    assert_eq!(refused.len(), DOOMED.len(), "not every bad key was tried: {refused:?}");
    for (key, ids) in &refused {
        let known = ids.iter().map(|id| times[id].1).min().expect("one at least");
        let late = reached.iter().filter(|(id, used)| used == key && times[id].0 > known).count();
        assert_eq!(late, 0, "key {key} was used after it was refused for good");
        let want = if *key == DOOMED[0] { "error" } else { "exhausted" };
        assert_eq!(sidekey.provider_key(&format!("k{key}")).await["status"], want, "key {key}");
    }
    // All are recorded, with as many attempts as the provider saw.
    let deadline = Instant::now() + Duration::from_secs(60);
    let attempts = loop {
        let ledger = sidekey.ledger().await;
        if ledger.len() >= times.len() || Instant::now() > deadline {
            assert_eq!(ledger.len(), times.len(), "entries are missing");
            break ledger.iter().filter_map(|entry| entry["attempts"].as_u64()).sum::<u64>();
        }
    };
    assert_eq!(attempts, seen.len() as u64, "the ledger and the provider disagree");
    println!("{} requests, {attempts} attempts, {turns} turns, {by_key:?} by key", times.len());
}
