//! The end: what a SIGTERM leaves to clients, and what it takes from them.

use rustix::process::Signal;
use tokio::task::JoinSet;

use crate::support::client::{self, Client, Request};
use crate::support::provider::Provider;
use crate::support::script::{Gate, Message};
use crate::support::sidekey::{Options, REAL_KEY, Sidekey};

const CHAT: &str = "/openai/v1/chat/completions";
const BODY: &str = r#"{"model":"gpt-4o-mini","stream":true,"messages":[]}"#;
const FIRST: &str = "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"first\"}}]}\n\n";
const USAGE: &str =
    "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":9,\"completion_tokens\":4,\"total_tokens\":13}}\n\n";

/// A provider whose streams stop after their first event until the gate is opened.
async fn start(config: &str) -> (Provider, Gate, Sidekey, String) {
    let gate = Gate::new();
    let held = gate.clone();
    let provider = Provider::start(move |seen| {
        if seen.method == "GET" {
            return Message::json(200, "{}").into();
        }
        Message::sse([FIRST]).gate(&held).chunk(USAGE).into()
    })
    .await;
    let sidekey = Sidekey::start(&Options::new().provider("openai", &provider.url()).config(config)).await;
    sidekey.add_provider_key("openai", REAL_KEY).await;
    let key = sidekey.create_key(&[]).await.key;
    (provider, gate, sidekey, key)
}

/// Reads a stream to its first event, then waits for the rest: whether it came whole.
async fn follow(proxy: std::net::SocketAddr, key: String, begun: tokio::sync::mpsc::Sender<()>) -> (bool, String) {
    let mut client = Client::connect(proxy).await.expect("the port is open");
    let mut stream = client.start(&Request::post(CHAT, BODY).bearer(&key)).await.expect("an answer");
    let id = stream.headers.get("x-sidekey-request-id").unwrap_or_default().to_owned();
    stream.until("first").await;
    begun.send(()).await.expect("the test listens");
    let rest = stream.collect().await;
    (rest.complete && rest.text().ends_with(USAGE), id)
}

#[tokio::test]
async fn five_hundred_streams_end_whole_and_are_recorded() {
    const STREAMS: usize = 500;
    let (_provider, gate, mut sidekey, key) = start("").await;
    let (begun, mut beginning) = tokio::sync::mpsc::channel(STREAMS);
    let mut streams = JoinSet::new();
    for _ in 0..STREAMS {
        streams.spawn(follow(sidekey.proxy, key.clone(), begun.clone()));
    }
    for _ in 0..STREAMS {
        beginning.recv().await.expect("all begin");
    }
    sidekey.signal(Signal::TERM);
    sidekey.wait_until_draining().await;
    gate.open();
    let ended = streams.join_all().await;
    assert_eq!(ended.iter().filter(|(whole, _)| !whole).count(), 0, "streams were cut");
    sidekey.wait_for_exit().await;
    sidekey.restart().await;
    let ledger = sidekey.ledger().await;
    assert_eq!(ledger.len(), STREAMS);
    for (_, id) in ended {
        let entry = ledger.iter().find(|entry| entry["request_id"] == *id).expect("each has an entry");
        assert_eq!((&entry["outcome"], &entry["tokens"]["total"]), (&"ok".into(), &13.into()));
    }
}

#[tokio::test]
async fn who_comes_during_the_delay_is_served_and_told_to_go() {
    let (_provider, _gate, mut sidekey, key) = start("[shutdown]\nmin_delay = \"4s\"").await;
    let models = Request::get("/openai/v1/models").bearer(&key);
    let mut kept = Client::connect(sidekey.proxy).await.unwrap();
    let before = kept.send(&models).await.unwrap();
    assert_eq!((before.status, before.header("connection")), (200, None));
    let silent = Client::connect(sidekey.proxy).await.unwrap();
    sidekey.signal(Signal::TERM);
    sidekey.wait_until_draining().await;
    // One that was kept, one that was open and silent, new ones.
    let fresh = Client::connect(sidekey.proxy).await.unwrap();
    for (what, mut client) in [("kept", kept), ("silent", silent), ("fresh", fresh)] {
        let answer = client.send(&models).await.unwrap();
        assert_eq!((answer.status, answer.header("connection")), (200, Some("close")), "{what}");
        assert!(client.send(&models).await.is_err(), "{what}: the connection is over");
    }
    assert_eq!(client::send_h2(sidekey.proxy, &models).await.status, 200);
    let idle = Client::connect(sidekey.proxy).await.unwrap();
    sidekey.wait_for_exit().await;
    drop(idle);
}

#[tokio::test]
async fn while_a_client_is_left_others_are_served_too() {
    let (_provider, gate, mut sidekey, key) = start("").await;
    let mut client = Client::connect(sidekey.proxy).await.unwrap();
    let mut stream = client.start(&Request::post(CHAT, BODY).bearer(&key)).await.unwrap();
    stream.until("first").await;
    sidekey.signal(Signal::TERM);
    sidekey.wait_until_draining().await;
    let models = Request::get("/openai/v1/models").bearer(&key);
    let answer = sidekey.send(&models).await;
    assert_eq!((answer.status, answer.header("connection")), (200, Some("close")));
    assert_eq!(client::send_h2(sidekey.proxy, &models).await.status, 200);
    gate.open();
    assert!(stream.collect().await.complete);
    sidekey.wait_for_exit().await;
}

#[tokio::test]
async fn what_is_cut_is_cut_visibly_and_recorded() {
    // By a second signal, also within the delay, and by the deadline.
    for (config, signals) in [
        ("[shutdown]\nmin_delay = \"10s\"", 2),
        ("", 2),
        ("[limits]\ndrain_timeout = \"1s\"", 1),
        ("[limits]\ndrain_timeout = \"1s\"\n[shutdown]\nmin_delay = \"500ms\"", 1),
    ] {
        let (_provider, _gate, mut sidekey, key) = start(config).await;
        let mut client = Client::connect(sidekey.proxy).await.unwrap();
        let mut stream = client.start(&Request::post(CHAT, BODY).bearer(&key)).await.unwrap();
        let id = stream.headers.get("x-sidekey-request-id").unwrap_or_default().to_owned();
        stream.until("first").await;
        sidekey.signal(Signal::TERM);
        sidekey.wait_until_draining().await;
        if signals > 1 {
            sidekey.signal(Signal::INT);
        }
        assert!(!stream.collect().await.complete, "{config:?}: a cut stream looks whole");
        sidekey.wait_for_exit().await;
        sidekey.restart().await;
        let entry = sidekey.entry(&id).await;
        assert_eq!((&entry["outcome"], &entry["tokens_source"]), (&"aborted_by_drain".into(), &"estimated".into()));
    }
}
