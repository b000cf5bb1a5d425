//! An [`Observer`]: follows one response body from its first byte to its last.
//!
//! Owns decoding and the choice of framing; leaves the cut into JSON documents to `documents` and what they say to `reading`.

use http::header::{CONTENT_ENCODING, CONTENT_TYPE, SEC_WEBSOCKET_EXTENSIONS};
use http::{HeaderMap, HeaderName};

use super::documents::{Documents, Wrapped};
use super::reading::Reading;
use super::{GaveUp, Tally, Wire, bedrock};
use crate::scan::decode::{self, Decoder};
use crate::scan::{eventstream, lines, sse, websocket};
use crate::unit::Usage;

/// Follows one response body. Never fails and never holds the body; costs some 100 ns an event.
#[derive(Debug)]
pub struct Observer {
    decoder: Option<Box<Decoder>>,
    framing: Framing,
    documents: Documents,
    gave_up: Option<GaveUp>,
}

#[derive(Debug)]
enum Framing {
    /// Not yet known: the first byte decides between JSON and an event stream under a wrong name.
    Unknown {
        lines: bool,
    },
    /// JSON documents one after another, or one array of them.
    Json,
    Lines(lines::Scanner),
    Sse(Box<Sse>),
    EventStream(Box<EventStream>),
    WebSocket(Box<websocket::Scanner>),
    /// Nothing to read.
    Opaque,
}

#[derive(Debug, Default)]
struct Sse {
    scanner: sse::Scanner,
    /// Bytes of `[DONE]` matched in this event; more than its length when it is something else.
    done: usize,
    bare: bool,
}

#[derive(Debug, Default)]
struct EventStream {
    scanner: eventstream::Scanner,
    /// Set for payloads that wrap their document: `{"bytes":"<base64>"}`.
    wrapped: Option<Wrapped>,
}

impl Observer {
    /// An observer of a response of which the head is here. `stream_asked` is what the request asked for.
    #[must_use]
    pub fn new(wire: Wire, stream_asked: bool, status: u16, headers: &HeaderMap) -> Self {
        let mut reading = Reading::new(wire.rules());
        if wire == Wire::BedrockInvoke && status < 400 {
            reading.headers(bedrock::headers(headers));
        }
        let framing = Framing::of(wire, stream_asked, status, headers);
        reading.streamed = framing.is_streamed();
        let mut observer = Self { decoder: None, framing, documents: Documents::new(reading), gave_up: None };
        match decode::codings(headers.get_all(CONTENT_ENCODING).iter().map(|value| value.to_str().unwrap_or("?"))) {
            Some(codings) if codings.is_empty() => {}
            Some(codings) => observer.decoder = Some(Box::new(Decoder::new(&codings))),
            None => observer.give_up(GaveUp::Coding),
        }
        observer
    }

    /// Takes the next bytes of the body, as they went to the client.
    pub fn feed(&mut self, chunk: &[u8]) {
        let Some(mut decoder) = self.decoder.take() else {
            return self.framed(chunk);
        };
        if matches!(self.framing, Framing::Opaque) {
            return;
        }
        decoder.feed(chunk, &mut |plain| self.framed(plain));
        match decoder.failed() {
            Some(error) => self.give_up(error.into()),
            None => self.decoder = Some(decoder),
        }
    }

    /// Output tokens so far: what the provider has reported of them, or roughly what the text comes to that went by,
    /// whichever is more.
    #[must_use]
    pub fn output_so_far(&self) -> u64 {
        self.documents.reading.output_so_far()
    }

    /// What the provider has reported so far.
    #[must_use]
    pub fn usage_so_far(&self) -> Usage {
        self.documents.reading.usage_so_far()
    }

    /// True when a WebSocket's next byte begins a frame.
    #[must_use]
    pub fn is_between_frames(&self) -> bool {
        matches!(&self.framing, Framing::WebSocket(scanner) if scanner.is_between_frames())
    }

    /// The body has ended, or broken off: says what was counted. The observer is spent.
    pub fn finish(&mut self) -> Tally {
        let Self { framing, documents, .. } = self;
        match framing {
            Framing::Sse(sse) => {
                let Sse { scanner, done, bare } = &mut **sse;
                scanner.finish(|_, part| documents.sse(part, done, bare));
                documents.end();
            }
            Framing::Lines(scanner) => scanner.finish(|part| documents.line(part)),
            Framing::Json => documents.end(),
            Framing::EventStream(stream) if !stream.scanner.is_at_boundary() => documents.abandon(),
            Framing::WebSocket(_) => documents.abandon(),
            Framing::EventStream(_) | Framing::Unknown { .. } | Framing::Opaque => {}
        }
        let whole = matches!(framing, Framing::Json) && documents.whole > 0 && !documents.broken;
        let mut tally = documents.reading.finish();
        tally.ended |= whole;
        tally.gave_up = self.gave_up;
        tally
    }

    fn give_up(&mut self, why: GaveUp) {
        self.documents.abandon();
        self.gave_up = Some(why);
        self.framing = Framing::Opaque;
        self.decoder = None;
    }

    fn framed(&mut self, mut chunk: &[u8]) {
        if let Framing::Unknown { lines } = self.framing {
            // White space and a byte order mark mean nothing to either.
            let blank = |byte: &u8| byte.is_ascii_whitespace() || matches!(byte, 0xef | 0xbb | 0xbf);
            let Some(at) = chunk.iter().position(|byte| !blank(byte)) else { return };
            chunk = &chunk[at..];
            self.framing = Framing::sniff(chunk[0], lines);
            self.documents.reading.streamed = self.framing.is_streamed();
        }
        let documents = &mut self.documents;
        let fault = match &mut self.framing {
            Framing::Sse(sse) => {
                let Sse { scanner, done, bare } = &mut **sse;
                scanner.feed(chunk, |_, part| documents.sse(part, done, bare));
                None
            }
            Framing::Json => {
                documents.concatenated(chunk);
                None
            }
            Framing::Lines(scanner) => {
                scanner.feed(chunk, |part| documents.line(part));
                None
            }
            Framing::EventStream(stream) => {
                let EventStream { scanner, wrapped } = &mut **stream;
                let fed = scanner.feed(chunk, |part| documents.message(part, wrapped.as_mut()));
                fed.err().map(GaveUp::from)
            }
            Framing::WebSocket(scanner) => {
                scanner.feed(chunk, |part| documents.websocket(part)).err().map(GaveUp::from)
            }
            Framing::Unknown { .. } | Framing::Opaque => None,
        };
        if let Some(fault) = fault {
            self.give_up(fault);
        }
    }
}

impl Framing {
    fn of(wire: Wire, stream_asked: bool, status: u16, headers: &HeaderMap) -> Self {
        let text = |name: HeaderName| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
        if status == 101 {
            let deflate = websocket::Deflate::of_server(text(SEC_WEBSOCKET_EXTENSIONS));
            return Self::WebSocket(Box::new(websocket::Scanner::new(deflate)));
        }
        let kind = text(CONTENT_TYPE).split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
        match kind.as_str() {
            "text/event-stream" => Self::Sse(Box::default()),
            "application/vnd.amazon.eventstream" => Self::EventStream(Box::new(EventStream {
                scanner: eventstream::Scanner::new(),
                wrapped: (wire == Wire::BedrockInvoke).then(Wrapped::new),
            })),
            _ if ["audio/", "image/", "video/"].iter().any(|media| kind.starts_with(media)) => Self::Opaque,
            "application/x-ndjson"
            | "application/ndjson"
            | "application/jsonl"
            | "application/x-jsonlines"
            | "application/stream+json" => Self::Unknown { lines: true },
            _ => Self::Unknown { lines: stream_asked && wire == Wire::Ollama },
        }
    }

    /// No JSON begins with the letter of an SSE field or with a colon.
    fn sniff(byte: u8, lines: bool) -> Self {
        match byte {
            b'd' | b'e' | b'i' | b'r' | b':' => Self::Sse(Box::default()),
            _ if lines => Self::Lines(lines::Scanner::default()),
            _ => Self::Json,
        }
    }

    fn is_streamed(&self) -> bool {
        matches!(self, Self::Sse(_) | Self::EventStream(_) | Self::WebSocket(_))
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use proptest::prelude::*;

    use super::*;
    use crate::tally::StreamError;
    use crate::unit::Usage;

    fn head(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs.iter().map(|&(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value))).collect()
    }

    fn tally_of(wire: Wire, kind: &'static str, body: &[u8], size: usize) -> Tally {
        let mut observer = Observer::new(wire, true, 200, &head(&[("content-type", kind)]));
        body.chunks(size).for_each(|chunk| observer.feed(chunk));
        observer.finish()
    }

    fn used(input: u64, output: u64) -> Usage {
        Usage { input: Some(input), output: Some(output), total: Some(input + output), ..Usage::default() }
    }

    const SSE: &str = "text/event-stream; charset=utf-8";
    const JSON: &str = "application/json";

    #[test]
    fn framings_under_any_name_are_read() {
        const USED: &str =
            r#"{"model":"m","choices":[],"usage":{"prompt_tokens":3,"completion_tokens":4,"total_tokens":7}}"#;
        let sse = format!("data: {{\"choices\":[],\"usage\":null}}\n\ndata: {USED}\n\ndata: [DONE]\n\n");
        let no_blank = format!("data: {{\"choices\":[]}}\ndata: {USED}\ndata: [DONE]\n");
        let lines = format!("{{\"choices\":[]}}\n{USED}\n");
        let array = format!("[{{\"choices\":[]}},\n{USED}]");
        let pretty = USED.replace(',', ",\r\n  ").replace('{', "{\r\n");
        for (name, kind, body) in [
            ("sse", SSE, sse.clone()),
            ("sse as text", "text/plain", sse.clone()),
            ("sse as json", JSON, sse.replace('\n', "\r")),
            ("sse without a name", "", format!("\u{feff}: hello\n\n{sse}")),
            ("sse without blank lines", SSE, no_blank),
            ("json", JSON, pretty.clone()),
            ("json as sse", SSE, pretty),
            ("json as octets", "application/octet-stream", USED.to_owned()),
            ("ndjson", "application/x-ndjson; charset=utf-8", lines.clone()),
            ("ndjson as json", JSON, lines.clone()),
            ("ndjson as sse", SSE, lines),
            ("array", JSON, array),
            ("unterminated", SSE, format!("data: {USED}")),
        ] {
            for size in [1, 5, 1 << 20] {
                let tally = tally_of(Wire::OpenAiChat, kind, body.as_bytes(), size);
                assert_eq!(tally.usage, used(3, 4), "{name} by {size}");
                assert_eq!(tally.model_reported.as_deref(), Some("m"), "{name} by {size}");
            }
        }
        assert_eq!(tally_of(Wire::OpenAiChat, "audio/mpeg", USED.as_bytes(), 9).usage, Usage::default());
        assert_eq!(tally_of(Wire::None, JSON, USED.as_bytes(), 9).usage, Usage::default());
    }

    #[test]
    fn errors_in_a_stream_are_seen_without_their_message() {
        let error = |code: &str, kind: &str| {
            let word = |word: &str| Some(word.into()).filter(|_| !word.is_empty());
            Some(StreamError { code: word(code), kind: word(kind) })
        };
        for (name, wire, kind, body, want) in [
            (
                "openai",
                Wire::OpenAiChat,
                SSE,
                r#"data: {"error":{"message":"x","type":"t","code":"c"}}"#,
                error("c", "t"),
            ),
            ("number", Wire::OpenAiChat, SSE, r#"data: {"error":{"message":"x","code":502}}"#, error("502", "")),
            ("string", Wire::Ollama, JSON, r#"{"error":"model not found"}"#, error("", "")),
            ("null", Wire::OpenAiResponses, JSON, r#"{"error":null,"code":"c"}"#, None),
            (
                "anthropic",
                Wire::AnthropicMessages,
                SSE,
                "event: error\ndata: {\"type\":\"error\",\"error\":{\"type\":\"overloaded_error\"}}\n\n",
                error("", "overloaded_error"),
            ),
            (
                "responses",
                Wire::OpenAiResponses,
                SSE,
                r#"data: {"type":"error","code":"server_error","message":"x"}"#,
                error("server_error", ""),
            ),
            (
                "failed",
                Wire::OpenAiResponses,
                SSE,
                r#"data: {"type":"response.failed","response":{"error":{"code":"c","message":"x"}}}"#,
                error("c", ""),
            ),
            (
                "bare",
                Wire::GeminiGenerate,
                SSE,
                "data: {\"candidates\":[]}\n\n{\n  \"error\": {\n    \"code\": 499,\n    \"status\": \"CANCELLED\"\n  }\n}\n",
                error("499", "CANCELLED"),
            ),
            (
                "array",
                Wire::GeminiGenerate,
                JSON,
                r#"[{"error":{"code":429,"status":"RESOURCE_EXHAUSTED"}}]"#,
                error("429", "RESOURCE_EXHAUSTED"),
            ),
        ] {
            for size in [1, 1000] {
                assert_eq!(tally_of(wire, kind, body.as_bytes(), size).error, want, "{name} by {size}");
            }
        }
        let long = format!(r#"data: {{"error":{{"code":"{}"}}}}"#, "c".repeat(1000));
        let code = tally_of(Wire::OpenAiChat, SSE, long.as_bytes(), 100).error.unwrap().code.unwrap();
        assert_eq!(code.len(), 128);
    }

    #[test]
    fn the_end_is_told_from_a_cut() {
        for (name, wire, kind, body, want) in [
            ("done line", Wire::OpenAiChat, SSE, "data: {}\n\ndata: [DONE]", true),
            ("no end", Wire::OpenAiChat, SSE, "data: {\"choices\":[{\"finish_reason\":null}]}\n\n", false),
            ("almost done", Wire::OpenAiChat, SSE, "data: [DONF]\n\n", false),
            ("finish", Wire::OpenAiChat, SSE, "data: {\"choices\":[{\"finish_reason\":\"stop\"}]}\n\n", true),
            ("whole", Wire::OpenAiChat, JSON, "{\"choices\":[]}\n", true),
            ("half", Wire::OpenAiChat, JSON, "{\"choices\":[]", false),
            ("nothing", Wire::OpenAiChat, JSON, "", false),
            ("stop", Wire::AnthropicMessages, SSE, "data: {\"type\":\"message_stop\"}\n\n", true),
            ("last line", Wire::Ollama, "application/x-ndjson", "{\"done\":false}\n{\"done\":true}\n", true),
            ("first line", Wire::Ollama, "application/x-ndjson", "{\"done\":false}\n", false),
        ] {
            assert_eq!(tally_of(wire, kind, body.as_bytes(), 3).ended, want, "{name}");
        }
    }

    #[test]
    fn reports_merge_by_dialect() {
        let whole = |usage: Usage| (usage.input, usage.output);
        for (name, wire, body, want) in [
            (
                "last of each field",
                Wire::AnthropicMessages,
                r#"data: {"type":"message_start","message":{"usage":{"input_tokens":5,"cache_read_input_tokens":7,"output_tokens":1}}}

data: {"type":"message_delta","usage":{"output_tokens":9}}"#,
                (Some(12), Some(9)),
            ),
            (
                "the last counts as a whole",
                Wire::OpenAiChat,
                r#"data: {"usage":{"prompt_tokens":5,"completion_tokens":1}}

data: {"usage":{"prompt_tokens":5,"completion_tokens":2}}

data: {"usage":null}

data: {"usage":{}}"#,
                (Some(5), Some(2)),
            ),
            (
                "zero is a figure",
                Wire::OpenAiChat,
                r#"data: {"usage":{"prompt_tokens":0,"completion_tokens":0}}"#,
                (Some(0), Some(0)),
            ),
            (
                "seconds are no tokens",
                Wire::OpenAiAudio,
                r#"{"text":"x","usage":{"type":"duration","seconds":7}}"#,
                (None, None),
            ),
            (
                "cut in the report",
                Wire::OpenAiChat,
                r#"data: {"usage":{"prompt_tokens":5,"completion_tok"#,
                (None, None),
            ),
            (
                "cut after the report",
                Wire::OpenAiChat,
                r#"{"choices":[],"usage":{"prompt_tokens":5,"completion_tokens":2}"#,
                (Some(5), Some(2)),
            ),
            (
                "usage in a choice",
                Wire::OpenAiChat,
                r#"data: {"choices":[{"usage":{"prompt_tokens":5,"completion_tokens":2}}]}"#,
                (Some(5), Some(2)),
            ),
            (
                "in a message only",
                Wire::OpenAiChat,
                r#"{"choices":[{"message":{"content":"{\"usage\":{\"prompt_tokens\":5}}"}}]}"#,
                (None, None),
            ),
        ] {
            for size in [1, 1000] {
                let kind = if body.starts_with('{') { JSON } else { SSE };
                assert_eq!(whole(tally_of(wire, kind, body.as_bytes(), size).usage), want, "{name} by {size}");
            }
        }
    }

    #[test]
    fn a_realtime_session_adds_up() {
        let mut bytes = Vec::new();
        for text in [
            r#"{"type":"session.created","session":{"model":"gpt-realtime"}}"#,
            r#"{"type":"response.output_audio.delta","delta":"AAAA"}"#,
            r#"{"type":"response.output_text.delta","delta":"hello"}"#,
            r#"{"type":"response.done","response":{"usage":{"total_tokens":30,"input_tokens":10,"output_tokens":20,"input_token_details":{"cached_tokens":4}}}}"#,
            r#"{"type":"response.done","response":{"usage":{"total_tokens":3,"input_tokens":1,"output_tokens":2}}}"#,
        ] {
            bytes.extend([0x81, 126, 0, text.len() as u8]);
            bytes.extend_from_slice(text.as_bytes());
        }
        for size in [1, 10, 10_000] {
            let mut observer = Observer::new(Wire::OpenAiRealtime, true, 101, &HeaderMap::new());
            bytes.chunks(size).for_each(|chunk| observer.feed(chunk));
            let tally = observer.finish();
            assert_eq!(tally.usage, Usage { cached_input: Some(4), ..used(11, 22) });
            assert_eq!(tally.model_reported.as_deref(), Some("gpt-realtime"));
            assert_eq!(tally.text.bytes(), 5);
        }
    }

    #[test]
    fn what_cannot_be_read_is_left_alone() {
        let body = br#"{"usage":{"prompt_tokens":5,"completion_tokens":2}}"#;
        for (name, pairs, why) in [
            ("unknown coding", &[("content-encoding", "lzma")][..], true),
            ("bad gzip", &[("content-encoding", "gzip")], true),
            ("bad messages", &[("content-type", "application/vnd.amazon.eventstream")], true),
        ] {
            let mut observer = Observer::new(Wire::OpenAiChat, false, 200, &head(pairs));
            observer.feed(&[0x1f, 0x8b, 8, 0]);
            observer.feed(body);
            observer.feed(body);
            let tally = observer.finish();
            assert_eq!((tally.gave_up.is_some(), tally.usage), (why, Usage::default()), "{name}");
        }
        // A header that lies about a coding costs nothing.
        let mut observer = Observer::new(Wire::OpenAiChat, false, 200, &head(&[("content-encoding", "gzip")]));
        observer.feed(body);
        assert_eq!(observer.finish().usage, used(5, 2));
    }

    #[test]
    fn an_observer_is_small_and_may_move() {
        fn moves<T: Send>() {}
        moves::<Observer>();
        moves::<Tally>();
        assert!(size_of::<Observer>() <= 1024, "{}", size_of::<Observer>());
    }

    proptest! {
        #[test]
        fn chunking_changes_nothing(
            events in proptest::collection::vec(prop_oneof![
                Just(r#"{"model":"m","choices":[{"delta":{"content":"h\u00e9llo \"x\"","tool_calls":[{"function":{"name":"f","arguments":"{\"a\":"}}]},"finish_reason":null}]}"#.to_owned()),
                (0u32..99, 0u32..99).prop_map(|(a, b)| format!(r#"{{"usage":{{"prompt_tokens":{a},"completion_tokens":{b}}}}}"#)),
                Just("[DONE]".to_owned()),
                Just(r#"{"error":{"code":"c"}}"#.to_owned()),
                "[\\[\\]{}:,\"a-z0-9]{0,12}",
            ], 0..8),
            end in prop_oneof![Just("\n\n"), Just("\r\n\r\n"), Just("\r\r"), Just("\n")],
            framing in 0usize..4,
            cuts in proptest::collection::vec(1usize..40, 0..40),
        ) {
            let (kind, body) = match framing {
                0 => (SSE, events.iter().map(|event| format!("data: {event}{end}")).collect::<String>()),
                1 => ("application/x-ndjson", events.iter().map(|event| format!("{event}\n")).collect()),
                2 => (JSON, format!("[{}]", events.join(", "))),
                _ => (JSON, events.join(" ")),
            };
            let whole = tally_of(Wire::OpenAiChat, kind, body.as_bytes(), usize::MAX);
            let mut observer = Observer::new(Wire::OpenAiChat, true, 200, &head(&[("content-type", kind)]));
            let mut rest = body.as_bytes();
            for size in cuts {
                let (chunk, left) = rest.split_at(size.min(rest.len()));
                observer.feed(chunk);
                rest = left;
            }
            observer.feed(rest);
            prop_assert_eq!(observer.finish(), whole);
        }

        #[test]
        fn any_bytes_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..200), kind in 0usize..4, status in prop_oneof![Just(101u16), Just(200)]) {
            let kind = [SSE, JSON, "application/vnd.amazon.eventstream", "application/x-ndjson"][kind];
            let run = |size: usize| {
                let mut observer = Observer::new(Wire::BedrockInvoke, true, status, &head(&[("content-type", kind)]));
                bytes.chunks(size).for_each(|chunk| observer.feed(chunk));
                observer.finish()
            };
            prop_assert_eq!(run(3), run(1000));
        }
    }
}
