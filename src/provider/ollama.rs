//! The Ollama dialect: no key, or a Bearer one; `/api/chat` and `/api/generate`, streamed unless told otherwise.
//!
//! Owns which path means what, and the shape of an error; leaves hosts to the provider table, usage fields to `tally`.

use bytes::Bytes;
use http::Method;
use serde_json::json;

use super::openai::OPENAI;
use super::path::Segments;
use super::refusal::Refusal;
use super::{Auth, Call, Dialect, Endpoint};
use crate::tally::Wire;

/// The Ollama dialect.
#[derive(Debug)]
pub struct Ollama;

/// Its one value.
pub static OLLAMA: Ollama = Ollama;

impl Dialect for Ollama {
    fn name(&self) -> &'static str {
        "ollama"
    }

    fn auth(&self) -> Auth {
        Auth::Bearer
    }

    fn classify<'a>(&self, method: &Method, path: &'a str) -> Call<'a> {
        let segments = Segments::of(path);
        let call = Call::new(&OLLAMA, Endpoint::Other);
        if segments.start_with(&["v1"]) {
            return Call { any_case: true, ..OPENAI.classify(method, path) };
        }
        if *method != Method::POST {
            let lists = ["tags", "ps", "version"].iter().any(|word| segments.end_with(&["api", word]));
            return if lists { Call { endpoint: Endpoint::Models, ..call } } else { call };
        }
        let (endpoint, wire, streams_unless_told) = match () {
            () if segments.end_with(&["api", "chat"]) => (Endpoint::Chat, Wire::Ollama, true),
            () if segments.end_with(&["api", "generate"]) => (Endpoint::Generate, Wire::Ollama, true),
            () if segments.end_with(&["api", "embed"]) => (Endpoint::Embeddings, Wire::Ollama, false),
            () if segments.end_with(&["api", "embeddings"]) => (Endpoint::Embeddings, Wire::Ollama, false),
            () => return call,
        };
        Call { endpoint, wire, streams_unless_told, body_model: true, any_case: true, ..call }
    }

    fn refusal_body(&self, refusal: &Refusal) -> Bytes {
        Bytes::from(json!({ "error": refusal.message }).to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::super::refusal::RefusalKind;
    use super::*;

    #[test]
    fn paths() {
        for (method, path, endpoint, wire, streams) in [
            ("POST", "/api/chat", Endpoint::Chat, Wire::Ollama, true),
            ("POST", "/api/generate/", Endpoint::Generate, Wire::Ollama, true),
            ("POST", "/api/embed", Endpoint::Embeddings, Wire::Ollama, false),
            ("GET", "/api/tags", Endpoint::Models, Wire::None, false),
            ("POST", "/api/pull", Endpoint::Other, Wire::None, false),
            ("DELETE", "/api/delete", Endpoint::Other, Wire::None, false),
            ("POST", "/v1/chat/completions", Endpoint::Chat, Wire::OpenAiChat, false),
            ("POST", "/v1/messages", Endpoint::Messages, Wire::AnthropicMessages, false),
        ] {
            let call = OLLAMA.classify(&method.parse().unwrap(), path);
            assert_eq!(
                (call.endpoint, call.wire, call.streams_unless_told),
                (endpoint, wire, streams),
                "{method} {path}"
            );
        }
    }

    #[test]
    fn errors() {
        assert_eq!(OLLAMA.refusal_body(&Refusal::new(RefusalKind::NotFound, "no")), r#"{"error":"no"}"#);
    }
}
