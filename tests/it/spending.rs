//! Everything that costs: a budget that is used up stops it, whatever it is counted in, and what an answer does not tell is
//! not free.

use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::{Message as Frame, protocol::CloseFrame};

use crate::budget::nano;
use crate::support::client::{self, Client, Request};
use crate::support::provider::Provider;
use crate::support::script::{Message, Reply, Socket};
use crate::support::sidekey::Sidekey;

const CHAT: &str = "/openai/v1/chat/completions";
const FORM: &str = "multipart/form-data; boundary=b";

fn form(model: &str) -> String {
    format!(
        "--b\r\nContent-Disposition: form-data; name=\"model\"\r\n\r\n{model}\r\n--b\r\nContent-Disposition: form-data; \
         name=\"file\"; filename=\"a.mp3\"\r\nContent-Type: audio/mpeg\r\n\r\n{}\r\n--b--\r\n",
        "x".repeat(16_000)
    )
}

async fn shown(sidekey: &Sidekey, key: &str) -> Value {
    serde_json::from_str(&sidekey.ok(&["key", "show", key, "-o", "json"]).await).expect("JSON")
}

/// A key whose budget is overdrawn.
async fn spent(sidekey: &Sidekey, provider: &Provider) -> String {
    let key = sidekey.create_key(&["--budget", "0.001"]).await.key;
    let usage = json!({"prompt_tokens": 4000, "completion_tokens": 4000, "total_tokens": 8000});
    provider.push(Message::json(200, json!({"choices": [], "usage": usage}).to_string()));
    let body = r#"{"model":"gpt-4o-mini","max_tokens":10,"messages":[]}"#;
    assert_eq!(sidekey.send(&Request::post(CHAT, body).bearer(&key)).await.status, 200);
    key
}

#[tokio::test]
async fn nothing_that_costs_passes_a_budget_that_is_used_up() {
    let provider = Provider::always(Message::json(200, "{}")).await;
    let sidekey = Sidekey::with("openai", &provider.url()).await;
    let key = spent(&sidekey, &provider).await;
    let (used_up, unseen) = ((429, "insufficient_quota"), (403, "permission_denied"));
    for (path, body, (status, code)) in [
        (CHAT, r#"{"model":"gpt-4o","messages":[]}"#.to_owned(), used_up),
        ("/openai/v1/embeddings", r#"{"model":"text-embedding-3-small","input":"a"}"#.into(), used_up),
        ("/openai/v1/responses", r#"{"model":"gpt-4o","input":"a"}"#.into(), used_up),
        ("/openai/v1/images/generations", r#"{"model":"dall-e-3","prompt":"a"}"#.into(), used_up),
        ("/openai/v1/images/generations", r#"{"model":"gpt-image-1","prompt":"a","n":2}"#.into(), used_up),
        ("/openai/v1/audio/transcriptions", form("whisper-1"), used_up),
        ("/openai/v1/audio/transcriptions", form("gpt-4o-transcribe"), used_up),
        ("/openai/v1/audio/speech", r#"{"model":"gpt-4o-mini-tts","input":"a"}"#.into(), used_up),
        ("/openai/v1/batches", r#"{"input_file_id":"f"}"#.into(), unseen),
        ("/openai/v1/videos", r#"{"model":"sora-2","prompt":"a"}"#.into(), unseen),
        ("/openai/v1/fine_tuning/jobs", r#"{"model":"gpt-4o","training_file":"f"}"#.into(), unseen),
        ("/openai/v1/threads/t/runs", r#"{"assistant_id":"a"}"#.into(), unseen),
        ("/openai/v1/realtime/client_secrets", "{}".into(), unseen),
        ("/openai/v1/of/which/nobody/knows", "{}".into(), unseen),
    ] {
        let seen = provider.count();
        let kind = if body.starts_with("--b") { FORM } else { "application/json" };
        let request = Request::new("POST", path).header("content-type", kind).body(body).bearer(&key);
        let answer = sidekey.send(&request).await;
        assert_eq!((answer.status, &*answer.code()), (status, code), "{path}: {}", answer.text());
        assert_eq!(provider.count(), seen, "{path} went upstream");
    }
    let request = Request::get("/openai/v1/realtime?model=gpt-4o-realtime-preview").bearer(&key);
    let refused = Client::connect(sidekey.proxy).await.unwrap().websocket(request).await.expect_err("a refusal");
    assert_eq!((refused.status, &*refused.code()), used_up);
    // What is free stays so.
    for free in [
        Request::get("/openai/v1/models"),
        Request::get("/openai/v1/batches/b"),
        Request::post("/openai/v1/moderations", r#"{"input":"a"}"#),
        Request::post("/openai/v1/responses/input_tokens", r#"{"model":"gpt-4o","input":"a"}"#),
    ] {
        let target = free.target.clone();
        assert_eq!(sidekey.send(&free.bearer(&key)).await.status, 200, "{target}");
    }
}

#[tokio::test]
async fn what_shows_in_no_answer_is_allowed_by_word_only() {
    let provider = Provider::always(Message::json(200, "{}")).await;
    let sidekey = Sidekey::with("openai", &provider.url()).await;
    for (flags, status) in
        [(&["--budget", "5"][..], 403), (&["--budget", "5", "--unpriced", "allow"], 200), (&["--rpm", "50"], 200)]
    {
        let key = sidekey.create_key(flags).await.key;
        let request = Request::post("/openai/v1/batches", r#"{"input_file_id":"f"}"#).bearer(&key);
        assert_eq!(sidekey.send(&request).await.status, status, "{flags:?}");
    }
}

#[tokio::test]
async fn an_answer_without_figures_costs_what_was_reserved() {
    let provider = Provider::always(Message::new(200).header("Content-Type", "audio/mpeg").chunk("sound")).await;
    let sidekey = Sidekey::with("openai", &provider.url()).await;
    let key = sidekey.create_key(&["--budget", "1"]).await;
    // 16 KB are two seconds, at $0.0001 each; the words around them count too.
    for (path, body, least, most) in [
        ("/openai/v1/audio/transcriptions", form("whisper-1"), 200_000, 220_000),
        (
            "/openai/v1/audio/speech",
            r#"{"model":"gpt-4o-mini-tts","input":"to be spoken"}"#.to_owned(),
            500_000,
            2_000_000,
        ),
    ] {
        let before = nano(&shown(&sidekey, &key.id).await["spent"]);
        let kind = if body.starts_with("--b") { FORM } else { "application/json" };
        let request = Request::new("POST", path).header("content-type", kind).body(body).bearer(&key.key);
        let answer = sidekey.send(&request).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        let entry = sidekey.entry(&answer.request_id()).await;
        let cost = nano(&entry["cost_usd"]);
        assert!((least..=most).contains(&cost), "{path}: {cost}");
        assert_eq!(entry["tokens_source"], "estimated");
        assert_eq!(nano(&shown(&sidekey, &key.id).await["spent"]) - before, cost, "{path}");
    }
}

#[tokio::test]
async fn a_session_ends_where_its_budget_does() {
    let done = r#"{"type":"response.done","response":{"usage":{"total_tokens":2000,"input_tokens":1000,"output_tokens":1000,"input_token_details":{"text_tokens":1000},"output_token_details":{"text_tokens":1000}}}}"#;
    let provider = Provider::always(Reply::WebSocket(Socket::Answer(done.to_owned()))).await;
    let sidekey = Sidekey::with("openai", &provider.url()).await;
    // $5 and $20 a million: an answer costs 0.025.
    let key = sidekey.create_key(&["--budget", "0.06"]).await;
    let request = || Request::get("/openai/v1/realtime?model=gpt-4o-realtime-preview").bearer(&key.key);
    let (_, mut socket) = Client::connect(sidekey.proxy).await.unwrap().websocket(request()).await.expect("101");
    let mut got = Vec::new();
    for nth in 1..=3_u64 {
        socket.send(r#"{"type":"response.create"}"#.into()).await.unwrap();
        got.push(timeout(client::PATIENCE, socket.next()).await.expect("in time").expect("a message").unwrap());
        let standing = &shown(&sidekey, &key.id).await["in_force"][0];
        // While there is room, it is taken by what has gone by: nobody else gets it.
        if nth < 3 {
            assert_eq!(nano(&standing["reserved"]), nth * 25_000_000, "{standing}");
        }
    }
    while let Ok(Some(Ok(frame))) = timeout(client::PATIENCE, socket.next()).await {
        got.push(frame);
    }
    assert_eq!(got.len(), 4, "{got:?}");
    let Some(Frame::Close(Some(CloseFrame { code, reason }))) = got.last() else { panic!("{got:?}") };
    assert_eq!(*code, CloseCode::Policy);
    assert!(reason.contains("budget"), "{reason}");
    let entry = sidekey.entry_where("the session", |entry| entry["endpoint"] == "realtime").await;
    assert_eq!(nano(&entry["cost_usd"]), 75_000_000, "{entry}");
    let refused = Client::connect(sidekey.proxy).await.unwrap().websocket(request()).await.expect_err("a refusal");
    assert_eq!((refused.status, &*refused.code()), (429, "insufficient_quota"));
}
