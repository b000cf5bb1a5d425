//! The Cohere dialect: Bearer key; chat, embed, rerank in two versions, the model in the body.
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

/// The Cohere dialect.
#[derive(Debug)]
pub struct Cohere;

/// Its one value.
pub static COHERE: Cohere = Cohere;

const WORK: &[(&[&str], Endpoint, Wire)] = &[
    (&["chat"], Endpoint::Chat, Wire::Cohere),
    (&["generate"], Endpoint::Generate, Wire::Cohere),
    (&["summarize"], Endpoint::Generate, Wire::Cohere),
    (&["classify"], Endpoint::Generate, Wire::Cohere),
    (&["embed"], Endpoint::Embeddings, Wire::Cohere),
    (&["rerank"], Endpoint::Rerank, Wire::Cohere),
    (&["tokenize"], Endpoint::CountTokens, Wire::None),
    (&["detokenize"], Endpoint::CountTokens, Wire::None),
];

impl Dialect for Cohere {
    fn name(&self) -> &'static str {
        "cohere"
    }

    fn auth(&self) -> Auth {
        Auth::Bearer
    }

    fn classify<'a>(&self, method: &Method, path: &'a str) -> Call<'a> {
        let segments = Segments::of(path);
        if segments.contain("compatibility") {
            return OPENAI.classify(method, path);
        }
        let call = Call::new(&COHERE, Endpoint::Other);
        if *method == Method::POST
            && let Some(&(_, endpoint, wire)) = WORK.iter().find(|(tail, ..)| segments.end_with(tail))
        {
            return Call { endpoint, wire, body_model: true, ..call };
        }
        if segments.contain("embed-jobs") {
            return Call { endpoint: Endpoint::Batches, ..call };
        }
        if segments.contain("datasets") {
            return Call { endpoint: Endpoint::Files, ..call };
        }
        if segments.contain("finetuning") {
            return Call { endpoint: Endpoint::FineTuning, ..call };
        }
        match segments.position("models") {
            Some(at) if *method == Method::GET => {
                let end = segments.len();
                Call { endpoint: Endpoint::Models, model: segments.join(at + 1, end), ..call }
            }
            _ => call,
        }
    }

    fn refusal_body(&self, refusal: &Refusal) -> Bytes {
        let id = refusal.request_id.map(|id| id.to_string());
        Bytes::from(json!({ "id": id, "message": refusal.message }).to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::super::refusal::RefusalKind;
    use super::*;

    #[test]
    fn paths() {
        for (method, path, endpoint, wire) in [
            ("POST", "/v1/chat", Endpoint::Chat, Wire::Cohere),
            ("POST", "/v2/chat", Endpoint::Chat, Wire::Cohere),
            ("POST", "/v2/embed", Endpoint::Embeddings, Wire::Cohere),
            ("POST", "/v1/generate", Endpoint::Generate, Wire::Cohere),
            ("POST", "/v2/rerank", Endpoint::Rerank, Wire::Cohere),
            ("POST", "/v1/tokenize", Endpoint::CountTokens, Wire::None),
            ("GET", "/v1/models", Endpoint::Models, Wire::None),
            ("GET", "/v2/chat", Endpoint::Other, Wire::None),
            ("POST", "/v1/embed-jobs", Endpoint::Batches, Wire::None),
            ("POST", "/compatibility/v1/chat/completions", Endpoint::Chat, Wire::OpenAiChat),
        ] {
            let call = COHERE.classify(&method.parse().unwrap(), path);
            assert_eq!((call.endpoint, call.wire), (endpoint, wire), "{method} {path}");
        }
    }

    #[test]
    fn errors() {
        let body = COHERE.refusal_body(&Refusal::new(RefusalKind::RateLimited, "slow"));
        assert_eq!(body, r#"{"id":null,"message":"slow"}"#);
    }
}
