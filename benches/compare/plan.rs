//! What the processes tell each other: plans as JSON on the command line, outcomes as JSON on standard output, and
//! the bytes of requests and answers.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

/// The key that only the upstream accepts: a proxy that forgets to swap gets 401.
pub(crate) const REAL_KEY: &str = "sk-bench-real-0123456789abcdefghijklmnopqrstuvwxyz";
/// The header that tells the upstream what to do; proxies pass it on like any other.
pub(crate) const SCRIPT: &str = "x-bench-script";
/// Stands before the 20 digits of an event's time of sending.
pub(crate) const EVENT_MARK: &[u8] = b"chatcmpl-";
pub(crate) const EVENT_DIGITS: usize = 20;

/// Whom the load talks to.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Target {
    pub(crate) addr: SocketAddr,
    pub(crate) path: String,
    pub(crate) key: String,
}

/// The whole order for one load process.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Plan {
    pub(crate) target: Target,
    pub(crate) work: Work,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) enum Work {
    /// As many requests as `connections` can, for `ms` after a warm-up.
    Throughput { connections: usize, body: usize, ms: u64 },
    /// `rate` requests a second, whatever the answers take.
    Paced { rate: u64, ms: u64 },
    /// `streams` at once, `events` each, one every `every_ms`.
    Streams { streams: usize, events: usize, every_ms: u64 },
    /// One stream after another, `events` each, all of them sent at once.
    Burst { streams: usize, events: usize },
    /// `streams` that send one event and stay open until standard input ends.
    Idle { streams: usize },
}

/// For the bare proxy: where to listen, where to send, which token to accept.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Proxy {
    pub(crate) listen: SocketAddr,
    pub(crate) upstream: SocketAddr,
    pub(crate) token: String,
}

/// Figures by name.
pub(crate) type Outcome = BTreeMap<String, f64>;

/// What the upstream is to answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Script {
    Json,
    Burst { events: usize },
    Paced { events: usize, every_ms: u64 },
    Idle,
}

impl Script {
    pub(crate) fn header(self) -> String {
        match self {
            Self::Json => "json".to_owned(),
            Self::Burst { events } => format!("burst:{events}"),
            Self::Paced { events, every_ms } => format!("paced:{events}:{every_ms}"),
            Self::Idle => "idle".to_owned(),
        }
    }

    pub(crate) fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split(':');
        let script = match parts.next()? {
            "json" => Self::Json,
            "burst" => Self::Burst { events: parts.next()?.parse().ok()? },
            "paced" => Self::Paced { events: parts.next()?.parse().ok()?, every_ms: parts.next()?.parse().ok()? },
            "idle" => Self::Idle,
            _ => return None,
        };
        Some(script)
    }
}

/// A chat completion request with a body of about `size` bytes. The messages come before the model, as SDKs send it.
pub(crate) fn request(target: &Target, script: Script, size: usize) -> Vec<u8> {
    let stream = script != Script::Json;
    let tail = format!(r#""}}],"model":"gpt-4o-mini","max_tokens":64,"stream":{stream}}}"#);
    let mut body = String::from(r#"{"messages":[{"role":"user","content":""#);
    let words = "The quick brown fox jumps over the lazy dog, said \\\"nobody\\\"; ";
    while body.len() + words.len() + tail.len() < size {
        body.push_str(words);
    }
    body.push_str(&tail);
    let Target { addr, path, key } = target;
    let (script, length) = (script.header(), body.len());
    format!(
        "POST {path} HTTP/1.1\r\nhost: {addr}\r\nauthorization: Bearer {key}\r\ncontent-type: application/json\r\n\
         accept: application/json\r\nuser-agent: bench\r\n{SCRIPT}: {script}\r\ncontent-length: {length}\r\n\r\n{body}"
    )
    .into_bytes()
}

/// A whole answer of about 1 KB with usage.
pub(crate) fn json_answer() -> Vec<u8> {
    let content = "Of course. Here is a short answer that fills the body. ".repeat(11);
    let body = format!(
        r#"{{"id":"chatcmpl-bench","object":"chat.completion","created":1700000000,"model":"gpt-4o-mini-2024-07-18","choices":[{{"index":0,"message":{{"role":"assistant","content":"{content}","refusal":null}},"logprobs":null,"finish_reason":"stop"}}],"usage":{{"prompt_tokens":251,"completion_tokens":42,"total_tokens":293,"prompt_tokens_details":{{"cached_tokens":0}},"completion_tokens_details":{{"reasoning_tokens":0}}}}}}"#
    );
    answer("200 OK", &body)
}

pub(crate) fn answer(status: &str, body: &str) -> Vec<u8> {
    let length = body.len();
    format!(
        "HTTP/1.1 {status}\r\ncontent-type: application/json\r\nx-request-id: req_bench\r\nopenai-processing-ms: 1\r\n\
         content-length: {length}\r\n\r\n{body}"
    )
    .into_bytes()
}

pub(crate) const STREAM_HEAD: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\n\
    cache-control: no-cache\r\nx-request-id: req_bench\r\ntransfer-encoding: chunked\r\n\r\n";

/// One event of about 200 bytes, sent at `at_ns`, as a chunk of its own.
pub(crate) fn event(at_ns: u64, out: &mut Vec<u8>) {
    chunk(
        &format!(
            r#"data: {{"id":"chatcmpl-{at_ns:020}","object":"chat.completion.chunk","created":1700000000,"model":"gpt-4o-mini","choices":[{{"index":0,"delta":{{"content":" word"}},"finish_reason":null}}],"usage":null}}"#
        ),
        out,
    );
}

/// The usage, the end of the stream and the end of the body.
pub(crate) fn stream_end(out: &mut Vec<u8>) {
    let usage = r#"data: {"object":"chat.completion.chunk","created":1700000000,"model":"gpt-4o-mini","choices":[],"usage":{"prompt_tokens":251,"completion_tokens":42,"total_tokens":293}}"#;
    chunk(usage, out);
    chunk("data: [DONE]", out);
    out.extend_from_slice(b"0\r\n\r\n");
}

fn chunk(line: &str, out: &mut Vec<u8>) {
    let length = line.len() + 2;
    out.extend_from_slice(format!("{length:x}\r\n{line}\n\n\r\n").as_bytes());
}
