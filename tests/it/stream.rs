//! Streams: each frame as soon as it is there, and an end that reaches both sides.

use std::time::Duration;

use bytes::Bytes;

use crate::support::client::{Client, Request};
use crate::support::provider::Provider;
use crate::support::script::{End, Gate, Message};
use crate::support::sidekey::{Options, REAL_KEY, Sidekey};

const CHAT: &str = "/openai/v1/chat/completions";
const BODY: &str = r#"{"model":"gpt-4o-mini","stream":true,"messages":[]}"#;
const USAGE: &str =
    "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":9,\"completion_tokens\":4,\"total_tokens\":13}}\n\n";

fn event(text: &str) -> String {
    format!("data: {{\"choices\":[{{\"index\":0,\"delta\":{{\"content\":\"{text}\"}}}}]}}\n\n")
}

async fn start() -> (Provider, Sidekey, String) {
    let provider = Provider::always(Message::json(500, "{}")).await;
    let sidekey = Sidekey::with("openai", &provider.url()).await;
    let key = sidekey.create_key(&[]).await.key;
    (provider, sidekey, key)
}

#[tokio::test]
async fn each_event_comes_before_the_next_is_sent() {
    let (provider, sidekey, key) = start().await;
    let gates: Vec<_> = (0..5).map(|_| Gate::new()).collect();
    let events: Vec<_> = (0..5).map(|n| event(&format!("word{n} "))).collect();
    let mut reply = Message::sse([]);
    for (event, gate) in events.iter().zip(&gates) {
        reply = reply.chunk(event.clone()).gate(gate);
    }
    provider.push(reply.chunk(USAGE));
    let mut client = Client::connect(sidekey.proxy).await.unwrap();
    let mut streaming = client.start(&Request::post(CHAT, BODY).bearer(&key)).await.unwrap();
    for (event, gate) in events.iter().zip(&gates) {
        assert_eq!(streaming.until("\n\n").await, event.as_bytes());
        gate.open();
    }
    let rest = streaming.collect().await;
    assert!(rest.complete);
    assert_eq!(rest.text(), USAGE);
}

#[tokio::test]
async fn half_an_event_is_not_held_back() {
    let (provider, sidekey, key) = start().await;
    let gate = Gate::new();
    provider.push(Message::sse([]).chunk("data: {\"choi").gate(&gate).chunk("ces\":[]}\n\n"));
    let mut client = Client::connect(sidekey.proxy).await.unwrap();
    let mut streaming = client.start(&Request::post(CHAT, BODY).bearer(&key)).await.unwrap();
    assert_eq!(streaming.until("choi").await, b"data: {\"choi");
    gate.open();
    assert_eq!(streaming.collect().await.text(), "ces\":[]}\n\n");
}

#[tokio::test]
async fn the_head_comes_before_the_first_byte_of_the_body() {
    let (provider, sidekey, key) = start().await;
    let gate = Gate::new();
    provider.push(Message::sse([]).header("x-early", "yes").gate(&gate).chunk(USAGE));
    let mut client = Client::connect(sidekey.proxy).await.unwrap();
    let streaming = client.start(&Request::post(CHAT, BODY).bearer(&key)).await.unwrap();
    assert_eq!((streaming.status, streaming.headers.get("x-early")), (200, Some("yes")));
    gate.open();
    assert_eq!(streaming.collect().await.text(), USAGE);
}

#[tokio::test]
async fn chunk_borders_stay() {
    let (provider, sidekey, key) = start().await;
    let pieces: Vec<Bytes> =
        (1..200_usize).map(|n| Bytes::from(vec![b'a' + u8::try_from(n % 26).unwrap(); n])).collect();
    provider.push(Message::sse([]).chunks(pieces.clone()));
    let mut client = Client::connect(sidekey.proxy).await.unwrap();
    let answer = client.send(&Request::post(CHAT, BODY).bearer(&key)).await.unwrap();
    assert_eq!(answer.body, pieces.concat());
    // A chunk may come in two parts where a read ended inside it; two chunks are never made one.
    let borders = |pieces: &[Bytes]| -> Vec<usize> {
        pieces
            .iter()
            .scan(0, |at, piece| {
                *at += piece.len();
                Some(*at)
            })
            .collect()
    };
    let got = borders(&answer.pieces);
    let lost: Vec<_> = borders(&pieces).into_iter().filter(|at| !got.contains(at)).collect();
    assert!(lost.is_empty(), "borders lost at {lost:?}");
}

#[tokio::test]
async fn a_burst_arrives_whole() {
    let (provider, sidekey, key) = start().await;
    let events: Vec<_> = (0..20_000).map(|n| event(&format!("w{n}"))).collect();
    provider.push(Message::sse(events.iter().map(String::as_str)).chunk(USAGE).chunk("data: [DONE]\n\n"));
    let mut client = Client::connect(sidekey.proxy).await.unwrap();
    let answer = client.send(&Request::post(CHAT, BODY).bearer(&key)).await.unwrap();
    assert!(answer.complete);
    assert_eq!(answer.text(), format!("{}{USAGE}data: [DONE]\n\n", events.concat()));
    let entry = sidekey.entry(&answer.request_id()).await;
    assert_eq!((&entry["tokens"]["output"], &entry["stream"]), (&4.into(), &true.into()));
}

#[tokio::test]
async fn a_line_of_many_megabytes_passes() {
    let (provider, sidekey, key) = start().await;
    let line = Bytes::from(vec![b'x'; 1 << 20]);
    provider.push(Message::sse(["data: "]).chunks(vec![line; 20]).chunk("\n\n").chunk(USAGE));
    let mut client = Client::connect(sidekey.proxy).await.unwrap();
    let answer = client.send(&Request::post(CHAT, BODY).bearer(&key)).await.unwrap();
    assert_eq!(answer.body.len(), 6 + (20 << 20) + 2 + USAGE.len());
    assert_eq!(sidekey.entry(&answer.request_id()).await["tokens"]["total"], 13, "what follows the long line counts");
}

#[tokio::test]
async fn a_client_that_leaves_cancels_the_upstream_and_is_charged() {
    let (provider, sidekey, key) = start().await;
    let gate = Gate::new();
    provider.push(Message::sse([&*event("Hello"), &*event(" there")]).gate(&gate).chunk(USAGE));
    let mut client = Client::connect(sidekey.proxy).await.unwrap();
    let mut streaming = client.start(&Request::post(CHAT, BODY).bearer(&key)).await.unwrap();
    let request_id = streaming.headers.get("x-sidekey-request-id").unwrap_or_default().to_owned();
    streaming.until("there").await;
    drop(client);
    provider.last().wait_for_cancel(Duration::from_secs(1)).await;
    let entry = sidekey.entry(&request_id).await;
    assert_eq!(entry["outcome"], "client_disconnected");
    assert_eq!(entry["tokens_source"], "estimated");
    assert!(entry["tokens"]["output"].as_u64() > Some(0), "what went by is charged: {entry}");
}

#[tokio::test]
async fn a_client_that_leaves_before_the_head_cancels_too() {
    let (provider, sidekey, key) = start().await;
    let gate = Gate::new();
    provider.push(Message::sse([]).held_by(&gate));
    let mut client = Client::connect(sidekey.proxy).await.unwrap();
    let request = Request::post(CHAT, BODY).bearer(&key).header("content-length", BODY.len().to_string());
    client.write_head(&request).await.unwrap();
    client.write(BODY.as_bytes()).await.unwrap();
    let seen = provider.wait_for_request(0).await;
    seen.wait(Duration::from_secs(5), "received", |progress| progress.whole).await;
    drop(client);
    seen.wait_for_cancel(Duration::from_secs(1)).await;
    sidekey.entry_where("the request left alone", |entry| entry["outcome"] == "client_disconnected").await;
}

#[tokio::test]
async fn usage_already_seen_is_what_a_leaving_client_pays() {
    let (provider, sidekey, key) = start().await;
    let gate = Gate::new();
    provider.push(Message::sse([&*event("Hi"), USAGE]).gate(&gate).chunk("data: [DONE]\n\n"));
    let mut client = Client::connect(sidekey.proxy).await.unwrap();
    let mut streaming = client.start(&Request::post(CHAT, BODY).bearer(&key)).await.unwrap();
    let request_id = streaming.headers.get("x-sidekey-request-id").unwrap_or_default().to_owned();
    streaming.until("usage").await;
    drop(client);
    provider.last().wait_for_cancel(Duration::from_secs(1)).await;
    let entry = sidekey.entry(&request_id).await;
    assert_eq!((&entry["tokens"]["output"], &entry["tokens_source"]), (&4.into(), &"reported".into()));
}

#[tokio::test]
async fn a_truncated_stream_is_charged_for_what_went_by() {
    let (provider, sidekey, key) = start().await;
    provider.push(Message::sse([&*event("Hello there, this was cut")]).ending(End::Truncate));
    let mut client = Client::connect(sidekey.proxy).await.unwrap();
    let answer = client.send(&Request::post(CHAT, BODY).bearer(&key)).await.unwrap();
    assert!(!answer.complete);
    let entry = sidekey.entry(&answer.request_id()).await;
    assert_eq!((&entry["outcome"], &entry["tokens_source"]), (&"upstream_error".into(), &"estimated".into()));
    assert!(entry["tokens"]["output"].as_u64() > Some(0), "{entry}");
}

#[tokio::test]
async fn a_slow_reader_stops_the_upstream() {
    let (provider, sidekey, key) = start().await;
    let piece = Bytes::from(vec![b'z'; 1 << 20]);
    provider.push(Message::sse([]).chunks(vec![piece; 64]));
    let mut client = Client::connect(sidekey.proxy).await.unwrap();
    let streaming = client.start(&Request::post(CHAT, BODY).bearer(&key)).await.unwrap();
    // Sockets buffer some megabytes; 64 would have to lie in sidekey's memory.
    let unread = tokio::time::timeout(Duration::from_millis(500), async {
        provider.last().wait(Duration::from_secs(60), "sent", |progress| progress.replied).await;
    });
    assert!(unread.await.is_err(), "64 MiB were taken from the provider and given to nobody");
    assert_eq!(streaming.collect().await.body.len(), 64 << 20);
}

#[tokio::test]
async fn streams_are_independent() {
    let (provider, sidekey, key) = start().await;
    let gate = Gate::new();
    for _ in 0..32 {
        provider.push(Message::sse([&*event("first")]).gate(&gate).chunk(USAGE));
    }
    let mut clients = vec![];
    for _ in 0..32 {
        clients.push(Client::connect(sidekey.proxy).await.unwrap());
    }
    let mut streams = vec![];
    for client in &mut clients {
        let mut stream = client.start(&Request::post(CHAT, BODY).bearer(&key)).await.unwrap();
        stream.until("first").await;
        streams.push(stream);
    }
    // All are open at once.
    gate.open();
    for stream in streams {
        assert!(stream.collect().await.text().ends_with(USAGE));
    }
}

#[tokio::test]
async fn usage_is_asked_for_only_when_told_to() {
    let provider = Provider::always(Message::sse([USAGE])).await;
    let options = Options::new().provider("openai", &provider.url());
    let sidekey = Sidekey::start(&options).await;
    sidekey.add_provider_key("openai", REAL_KEY).await;
    let observing = sidekey.create_key(&["--name", "observing"]).await.key;
    let asking = sidekey.create_key(&["--name", "asking", "--stream-usage", "request"]).await.key;
    sidekey.send(&Request::post(CHAT, BODY).bearer(&observing)).await;
    assert_eq!(provider.last().body(), BODY);
    sidekey.send(&Request::post(CHAT, BODY).bearer(&asking)).await;
    let sent: serde_json::Value = serde_json::from_slice(&provider.last().body()).expect("JSON");
    assert_eq!(sent["stream_options"]["include_usage"], true);
    let mut rest = sent;
    rest.as_object_mut().expect("an object").remove("stream_options");
    assert_eq!(rest, serde_json::from_str::<serde_json::Value>(BODY).unwrap());
}

#[tokio::test]
async fn a_stop_lets_open_streams_end() {
    let (provider, mut sidekey, key) = start().await;
    let gate = Gate::new();
    provider.push(Message::sse([&*event("first")]).gate(&gate).chunk(USAGE));
    let mut client = Client::connect(sidekey.proxy).await.unwrap();
    let mut stream = client.start(&Request::post(CHAT, BODY).bearer(&key)).await.unwrap();
    let request_id = stream.headers.get("x-sidekey-request-id").unwrap_or_default().to_owned();
    stream.until("first").await;
    sidekey.signal(rustix::process::Signal::TERM);
    sidekey.wait_until_draining().await;
    gate.open();
    let rest = stream.collect().await;
    assert!(rest.complete && rest.text().ends_with(USAGE), "the drain cut a stream");
    drop(client);
    sidekey.wait_for_exit().await;
    sidekey.restart().await;
    assert_eq!(sidekey.entry(&request_id).await["tokens"]["total"], 13);
}
