//! The pretend provider: speaks OpenAI's streaming chat completions, and remembers the key it was shown.

use std::collections::VecDeque;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE};
use http::{HeaderMap, Response, StatusCode};
use http_body::Frame;
use serde_json::{Value, json};
use tokio::time::Sleep;

/// The real key of the story; it opens nothing anywhere.
pub(super) const REAL_KEY: &str = "sk-proj-pretend-9f8e7d6c5b4a39281706f5e4d3c2b1a0";
const WORDS: [&str; 9] = [
    "I swap ",
    "your app's ",
    "virtual key ",
    "for the real one, ",
    "hold it to ",
    "its limits, ",
    "count ",
    "every ",
    "token.",
];
/// Between two events, as a model would take.
const PAUSE: Duration = Duration::from_millis(60);

/// A running one; it ends with its runtime.
#[derive(Debug)]
pub(super) struct Pretend {
    pub(super) address: SocketAddr,
    seen: Arc<Mutex<String>>,
}

impl Pretend {
    pub(super) async fn start() -> io::Result<Self> {
        let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let seen = Arc::new(Mutex::new(String::new()));
        let router = Router::new().fallback(answer).with_state(Arc::clone(&seen));
        serve(listener, router);
        Ok(Self { address, seen })
    }

    /// The `authorization` of the last request.
    pub(super) fn seen(&self) -> String {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

#[expect(clippy::disallowed_methods, reason = "ends with the command's runtime")]
fn serve(listener: tokio::net::TcpListener, router: Router) {
    tokio::spawn(async move { axum::serve(listener, router).await });
}

async fn answer(State(seen): State<Arc<Mutex<String>>>, headers: HeaderMap) -> Response<Body> {
    let shown = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok()).unwrap_or_default();
    shown.clone_into(&mut seen.lock().unwrap_or_else(PoisonError::into_inner));
    let mut response = Response::new(Body::new(Events { left: events().into(), pause: None }));
    if shown != format!("Bearer {REAL_KEY}") {
        *response.status_mut() = StatusCode::UNAUTHORIZED;
        *response.body_mut() = Body::from(r#"{"error":{"message":"not the real key","code":"invalid_api_key"}}"#);
    }
    response.headers_mut().insert(CONTENT_TYPE, http::HeaderValue::from_static("text/event-stream"));
    response
}

/// What is streamed, in one piece.
pub(super) fn stream() -> Vec<u8> {
    events().concat()
}

fn events() -> Vec<Bytes> {
    let event = |chunk: Value| Bytes::from(format!("data: {chunk}\n\n"));
    let chunk = |choices: Value, usage: Value| {
        json!({"id": "chatcmpl-demo", "object": "chat.completion.chunk", "created": 1_700_000_000,
               "model": "gpt-4o-mini-2024-07-18", "choices": choices, "usage": usage})
    };
    let words = WORDS.iter().map(|word| chunk(json!([{"index": 0, "delta": {"content": word}}]), Value::Null));
    let end = [
        chunk(json!([{"index": 0, "delta": {}, "finish_reason": "stop"}]), Value::Null),
        chunk(json!([]), json!({"prompt_tokens": 13, "completion_tokens": 24, "total_tokens": 37})),
    ];
    words.chain(end).map(event).chain([Bytes::from_static(b"data: [DONE]\n\n")]).collect()
}

/// The words in a piece of the stream, for showing.
pub(super) fn text_of(piece: &[u8]) -> String {
    let lines = piece.split(|byte| *byte == b'\n').filter_map(|line| line.strip_prefix(b"data: "));
    let words = lines.filter_map(|line| {
        let chunk: Value = serde_json::from_slice(line).ok()?;
        Some(chunk["choices"][0]["delta"]["content"].as_str()?.to_owned())
    });
    words.collect()
}

/// Events with pauses between them.
struct Events {
    left: VecDeque<Bytes>,
    pause: Option<Pin<Box<Sleep>>>,
}

impl http_body::Body for Events {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        if let Some(pause) = &mut self.pause {
            std::task::ready!(pause.as_mut().poll(cx));
        }
        self.pause = Some(Box::pin(tokio::time::sleep(PAUSE)));
        Poll::Ready(self.left.pop_front().map(|event| Ok(Frame::data(event))))
    }
}
