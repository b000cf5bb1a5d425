//! Requests and answers at the edge of what HTTP allows, and of what a key allows.

use bytes::Bytes;

use crate::support::client::{Client, Request};
use crate::support::provider::Provider;
use crate::support::script::{Message, Reply, Socket};
use crate::support::sidekey::{REAL_KEY, Sidekey};

const CHAT: &str = "/openai/v1/chat/completions";
const BODY: &str = r#"{"model":"gpt-4o-mini","max_tokens":60,"messages":[]}"#;
const ANSWER: &str = r#"{"model":"gpt-4o-mini","usage":{"prompt_tokens":3,"completion_tokens":4,"total_tokens":7}}"#;

async fn start() -> (Provider, Sidekey) {
    let provider = Provider::always(Message::json(200, ANSWER)).await;
    let sidekey = Sidekey::with("openai", &provider.url()).await;
    (provider, sidekey)
}

#[tokio::test]
async fn an_upgrade_header_buys_no_tokens() {
    let (provider, sidekey) = start().await;
    let key = sidekey.create_key(&["--tpm", "50"]).await.key;
    let request = Request::post(CHAT, BODY).bearer(&key).header("connection", "upgrade").header("upgrade", "websocket");
    let answer = sidekey.send(&request).await;
    assert_eq!((answer.status, provider.count()), (429, 0), "{}", answer.text());
}

#[tokio::test]
async fn a_subprotocol_chosen_by_the_provider_does_not_echo_its_key() {
    let provider = Provider::always(Reply::WebSocket(Socket::Echo)).await;
    let sidekey = Sidekey::with("openai", &provider.url()).await;
    let key = sidekey.create_key(&[]).await.key;
    let request = Request::get("/openai/v1/realtime?model=gpt-4o-realtime-preview")
        .header("sec-websocket-protocol", format!("openai-insecure-api-key.{key}, realtime"));
    let (head, _socket) = Client::connect(sidekey.proxy).await.unwrap().websocket(request).await.expect("101");
    assert_eq!(head.headers.get("sec-websocket-protocol"), None);
    let offered = format!("openai-insecure-api-key.{REAL_KEY}, realtime");
    assert_eq!(provider.last().header("sec-websocket-protocol"), Some(offered.as_str()));
}

#[tokio::test]
async fn a_key_revoked_while_the_body_comes_is_not_served() {
    let (provider, sidekey) = start().await;
    let key = sidekey.create_key(&["--name", "gone"]).await.key;
    let mut client = Client::connect(sidekey.proxy).await.unwrap();
    let request = Request::post(CHAT, "").bearer(&key).header("Content-Length", BODY.len().to_string());
    client.write_head(&request).await.unwrap();
    client.write(&BODY.as_bytes()[..10]).await.unwrap();
    sidekey.ok(&["key", "revoke", "gone"]).await;
    client.write(&BODY.as_bytes()[10..]).await.unwrap();
    let answer = client.answer("POST").await.unwrap().collect().await;
    assert_eq!((answer.status, provider.count()), (401, 0), "{}", answer.text());
}

#[tokio::test]
async fn an_empty_post_says_that_it_is_empty() {
    let (provider, sidekey) = start().await;
    let key = sidekey.create_key(&[]).await.key;
    let request = Request::post("/openai/v1/batches/batch_1/cancel", "").bearer(&key);
    assert_eq!(sidekey.send(&request).await.status, 200);
    assert_eq!(provider.last().header("content-length"), Some("0"));
}

#[tokio::test]
async fn framing_that_lies_ends_as_the_provider_meant_it() {
    let (provider, sidekey) = start().await;
    let key = sidekey.create_key(&[]).await.key;
    for (name, raw, body, complete) in [
        (
            "a length beside chunks",
            "HTTP/1.1 200 OK\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
            "hello",
            true,
        ),
        ("a cut answer of HTTP/1.0", "HTTP/1.0 200 OK\r\ncontent-length: 10\r\n\r\nhello", "hello", false),
        ("a whole answer of HTTP/1.0", "HTTP/1.0 200 OK\r\ncontent-length: 5\r\n\r\nhello", "hello", true),
        ("until the end of the connection", "HTTP/1.0 200 OK\r\n\r\nhello", "hello", true),
    ] {
        provider.push(Reply::Raw(Bytes::from_static(raw.as_bytes())));
        let mut client = Client::connect(sidekey.proxy).await.unwrap();
        let answer = client.send(&Request::post(CHAT, BODY).bearer(&key)).await.unwrap();
        assert_eq!((answer.text().as_str(), answer.complete), (body, complete), "{name}");
    }
}

#[tokio::test]
async fn an_answer_that_may_be_about_the_key_stays_whole() {
    let provider = Provider::always(Message::json(200, "{}")).await;
    let sidekey = Sidekey::with("gemini", &provider.url()).await;
    let key = sidekey.create_key(&[]).await.key;
    let request =
        Request::post("/gemini/v1beta/models/gemini-2.5-flash:generateContent", "{}").header("x-goog-api-key", &key);
    // Longer than what is looked at, and cut.
    let long = format!("{{\"error\":{{\"message\":\"{}\"}}}}", "x".repeat(100_000));
    provider.push(Message::json(400, long.clone()));
    let answer = sidekey.send(&request).await;
    assert_eq!((answer.status, answer.text() == long), (400, true));
    provider.push(Reply::Raw(Bytes::from_static(b"HTTP/1.1 400 Bad\r\ncontent-length: 50\r\n\r\n{\"error\":")));
    let answer = sidekey.send(&request).await;
    assert_eq!((answer.status, answer.text().as_str(), answer.complete), (400, "{\"error\":", false));
}

#[tokio::test]
async fn a_busy_key_is_told_rather_than_a_refused_one() {
    let (provider, sidekey) = start().await;
    sidekey.add_provider_key_as("openai", "sk-second", &["--name", "second"]).await;
    let key = sidekey.create_key(&[]).await.key;
    provider.push(Message::json(429, "{\"busy\":true}").header("retry-after", "7"));
    provider.push(Message::json(401, "{}"));
    let answer = sidekey.send(&Request::post(CHAT, BODY).bearer(&key)).await;
    assert_eq!((answer.status, answer.header("retry-after"), provider.count()), (429, Some("7"), 2));
    let answer = sidekey.send(&Request::post(CHAT, BODY).bearer(&key)).await;
    assert_eq!((answer.status, answer.code().as_str(), provider.count()), (503, "no_provider_key", 2));
    let wait: u64 = answer.header("retry-after").expect("one is only cooling").parse().unwrap();
    assert!((5..=9).contains(&wait), "{wait}");
    for name in ["main", "second"] {
        sidekey.ok(&["provider-key", "enable", name]).await;
    }
    provider.push(Message::json(401, "{}"));
    let answer = sidekey.send(&Request::post(CHAT, BODY).bearer(&key)).await;
    assert_eq!((answer.status, answer.text().as_str(), provider.count()), (200, ANSWER, 4), "the next key serves it");
    assert_eq!(sidekey.entry(&answer.request_id()).await["attempts"], 2);
}

#[tokio::test]
async fn a_refusal_reaches_a_client_that_is_still_sending() {
    let (provider, sidekey) = start().await;
    let body = format!("{{\"model\":\"m\",\"input\":\"{}\"}}", "x".repeat(4 << 20));
    let mut client = Client::connect(sidekey.proxy).await.unwrap();
    let answer = client.send(&Request::post(CHAT, body.clone()).bearer("sk-side-nonsense")).await.unwrap();
    assert_eq!((answer.status, provider.count()), (401, 0));
    // The connection is as good as before.
    let key = sidekey.create_key(&[]).await.key;
    assert_eq!(client.send(&Request::post(CHAT, body).bearer(&key)).await.unwrap().status, 200);
}

#[tokio::test]
async fn the_model_of_a_large_form_is_checked() {
    let (provider, sidekey) = start().await;
    let key = sidekey.create_key(&["--models", "whisper-*"]).await.key;
    let form = |model: &str| {
        let sound = "s".repeat(9 << 20);
        format!(
            "--b\r\nContent-Disposition: form-data; name=\"model\"\r\n\r\n{model}\r\n--b\r\n\
             Content-Disposition: form-data; name=\"file\"; filename=\"a\"\r\n\r\n{sound}\r\n--b--\r\n"
        )
    };
    for (model, status, count) in [("whisper-1", 200, 1), ("gpt-4o-transcribe", 403, 1)] {
        let request = Request::new("POST", "/openai/v1/audio/transcriptions")
            .header("content-type", "Multipart/Form-Data; boundary=b")
            .bearer(&key)
            .body(form(model));
        let answer = sidekey.send(&request).await;
        assert_eq!((answer.status, provider.count()), (status, count), "{model}: {}", answer.text());
    }
}

#[tokio::test]
async fn a_body_that_turns_out_bad_while_it_streams_is_the_clients_fault() {
    let (_provider, sidekey) = start().await;
    let key = sidekey.create_key(&[]).await.key;
    let body = format!("{{\"model\":\"m\",\"input\":\"{}\",\"model\":\"n\"}}", "x".repeat(9 << 20));
    let answer = sidekey.send(&Request::post(CHAT, body).bearer(&key)).await;
    assert_eq!((answer.status, answer.header("x-should-retry")), (400, Some("false")), "{}", answer.text());
    let entry = sidekey.entry(&answer.request_id()).await;
    assert_eq!(entry["outcome"], "refused", "{entry}");
}
