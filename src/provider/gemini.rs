//! The Gemini dialect, at Google AI and at Vertex: the model and the method stand in the path, `models/<model>:<method>`.
//!
//! Owns which path means what, and the shape of an error; leaves hosts to the provider table, usage fields to `tally`.
//! Vertex serves other vendors' models in their own wires under the same paths (`rawPredict`), and both have a layer
//! for OpenAI's SDKs.

use std::borrow::Cow;

use bytes::Bytes;
use http::Method;
use serde_json::json;

use super::anthropic::ANTHROPIC;
use super::openai::OPENAI;
use super::path::Segments;
use super::refusal::{Refusal, RefusalKind};
use super::{Auth, Call, Dialect, Endpoint};
use crate::tally::Wire;

/// The Gemini dialect.
#[derive(Debug)]
pub struct Gemini;

/// Its one value.
pub static GEMINI: Gemini = Gemini;

/// Methods of a model.
const METHODS: &[(&str, Endpoint, Wire, Option<bool>)] = &[
    ("generateContent", Endpoint::Generate, Wire::GeminiGenerate, Some(false)),
    ("streamGenerateContent", Endpoint::Generate, Wire::GeminiGenerate, Some(true)),
    ("embedContent", Endpoint::Embeddings, Wire::GeminiEmbed, Some(false)),
    ("batchEmbedContents", Endpoint::Embeddings, Wire::GeminiEmbed, Some(false)),
    ("countTokens", Endpoint::CountTokens, Wire::None, Some(false)),
    ("computeTokens", Endpoint::CountTokens, Wire::None, Some(false)),
    ("batchGenerateContent", Endpoint::Batches, Wire::None, Some(false)),
    ("asyncBatchEmbedContent", Endpoint::Batches, Wire::None, Some(false)),
    ("predict", Endpoint::Images, Wire::None, Some(false)),
    ("predictLongRunning", Endpoint::Videos, Wire::None, Some(false)),
    ("fetchPredictOperation", Endpoint::Stored, Wire::None, Some(false)),
];

impl Dialect for Gemini {
    fn name(&self) -> &'static str {
        "gemini"
    }

    fn auth(&self) -> Auth {
        Auth::XGoogApiKey
    }

    fn classify<'a>(&self, method: &Method, path: &'a str) -> Call<'a> {
        let segments = Segments::of(path);
        if is_for_openai(&segments) {
            return OPENAI.classify(method, path);
        }
        let call = Call::new(&GEMINI, Endpoint::Other);
        if *method == Method::POST
            && let Some(at) = segments.position("models").or_else(|| segments.position("tunedModels"))
        {
            let vendor = at.checked_sub(1).and_then(|at| segments.get(at)).map(str::to_ascii_lowercase);
            let end = segments.len();
            return match segments.join(at + 1, end) {
                Some(last) => of_model(call, &last, vendor.as_deref()),
                None => call,
            };
        }
        resource(call, method, segments)
    }

    fn refusal_body(&self, refusal: &Refusal) -> Bytes {
        let mut details = vec![json!({
            "@type": "type.googleapis.com/google.rpc.ErrorInfo",
            "reason": reason(refusal.kind),
            "domain": "sidekey",
        })];
        if let Some(ms) = refusal.retry_ms() {
            let delay = format!("{}.{:03}s", ms / 1000, ms % 1000);
            details.push(json!({ "@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": delay }));
        }
        if refusal.kind == RefusalKind::InsufficientQuota {
            let violation = json!({ "subject": "virtual key", "description": refusal.message });
            details.push(json!({ "@type": "type.googleapis.com/google.rpc.QuotaFailure", "violations": [violation] }));
        }
        let error = json!({
            "code": self.refusal_status(refusal.kind).as_u16(),
            "message": refusal.message,
            "status": status(refusal.kind),
            "details": details,
        });
        Bytes::from(json!({ "error": error }).to_string())
    }

    fn plain_model<'a>(&self, model: &'a str) -> &'a str {
        model.rsplit_once("models/").map_or(model, |(_, name)| name)
    }
}

/// `/v1beta/openai/…`, and Vertex's `…/endpoints/openapi/…`. Elsewhere the words are names that people chose.
fn is_for_openai(segments: &Segments<'_>) -> bool {
    let is = |at: usize, word: &str| segments.get(at).is_some_and(|segment| segment.eq_ignore_ascii_case(word));
    is(1, "openai") || segments.position("endpoints").is_some_and(|at| is(at + 1, "openapi"))
}

/// `<model>:<method>`; a model's name may hold a colon itself, a method never does.
fn of_model<'a>(call: Call<'a>, last: &str, vendor: Option<&str>) -> Call<'a> {
    let Some((model, method)) = last.rsplit_once(':') else { return call };
    let raw = method.eq_ignore_ascii_case("rawPredict");
    if raw || method.eq_ignore_ascii_case("streamRawPredict") {
        return raw_predict(call, model, vendor, if raw { None } else { Some(true) });
    }
    let known = METHODS.iter().find(|(name, ..)| name.eq_ignore_ascii_case(method));
    let (endpoint, wire, streams) = match known {
        // Vertex embeds by `predict` too.
        Some((name, ..)) if *name == "predict" && model.contains("embedding") => {
            (Endpoint::Embeddings, Wire::GeminiEmbed, Some(false))
        }
        Some(&(_, endpoint, wire, streams)) => (endpoint, wire, streams),
        None => (Endpoint::Other, Wire::None, None),
    };
    Call { endpoint, wire, streams, model: Some(Cow::Owned(model.to_owned())), ..call }
}

/// Another vendor's model behind Vertex, in that vendor's wire.
fn raw_predict<'a>(call: Call<'a>, model: &str, vendor: Option<&str>, streams: Option<bool>) -> Call<'a> {
    let model = Some(Cow::Owned(model.to_owned()));
    match vendor_of(vendor) {
        Vendor::Anthropic if model.as_deref() == Some("count-tokens") => {
            Call { endpoint: Endpoint::CountTokens, body_model: true, speaks: &ANTHROPIC, ..call }
        }
        Vendor::Anthropic => Call {
            endpoint: Endpoint::Messages,
            wire: Wire::AnthropicMessages,
            model,
            streams,
            speaks: &ANTHROPIC,
            ..call
        },
        Vendor::Mistral => {
            Call { endpoint: Endpoint::Chat, wire: Wire::OpenAiChat, model, streams, speaks: &OPENAI, ..call }
        }
        Vendor::Other => Call { model, streams, ..call },
    }
}

enum Vendor {
    Anthropic,
    Mistral,
    Other,
}

fn vendor_of(name: Option<&str>) -> Vendor {
    match name {
        Some("anthropic") => Vendor::Anthropic,
        Some("mistralai") => Vendor::Mistral,
        _ => Vendor::Other,
    }
}

/// Paths that are no method of a model.
fn resource<'a>(call: Call<'a>, method: &Method, segments: Segments<'a>) -> Call<'a> {
    let post = *method == Method::POST;
    if segments.contain("files") {
        return Call { endpoint: Endpoint::Files, ..call };
    }
    if segments.contain("cachedContents") {
        return Call { endpoint: Endpoint::Caches, body_model: post, ..call };
    }
    if segments.contain("batches") || segments.contain("batchPredictionJobs") {
        return Call { endpoint: Endpoint::Batches, ..call };
    }
    if segments.contain("interactions") {
        // Creating one is work; the others read and cancel it.
        let made = post && segments.end_with(&["interactions"]);
        let endpoint = if made { Endpoint::Generate } else { Endpoint::Stored };
        return Call { endpoint, body_model: made, ..call };
    }
    if segments.contain("operations") {
        return Call { endpoint: Endpoint::Stored, ..call };
    }
    if segments.contain("auth_tokens") || segments.contain("authTokens") {
        return Call { endpoint: Endpoint::ClientSecrets, ..call };
    }
    if segments.get(0) == Some("ws") {
        return Call { endpoint: Endpoint::Realtime, streams: Some(true), ..call };
    }
    match segments.position("models") {
        Some(at) if *method == Method::GET => {
            let end = segments.len();
            Call { endpoint: Endpoint::Models, model: segments.join(at + 1, end), ..call }
        }
        _ => call,
    }
}

fn reason(kind: RefusalKind) -> String {
    match kind {
        // What Google's own clients look for.
        RefusalKind::InvalidKey | RefusalKind::MissingKey => "API_KEY_INVALID".to_owned(),
        _ => kind.code().to_ascii_uppercase(),
    }
}

fn status(kind: RefusalKind) -> &'static str {
    match kind {
        RefusalKind::BadRequest | RefusalKind::BodyTooLarge => "INVALID_ARGUMENT",
        RefusalKind::InsufficientQuota | RefusalKind::RateLimited => "RESOURCE_EXHAUSTED",
        RefusalKind::Internal => "INTERNAL",
        RefusalKind::InvalidKey | RefusalKind::MissingKey => "UNAUTHENTICATED",
        RefusalKind::ModelNotAllowed | RefusalKind::PermissionDenied => "PERMISSION_DENIED",
        RefusalKind::NotFound => "NOT_FOUND",
        RefusalKind::UpstreamTimeout => "DEADLINE_EXCEEDED",
        RefusalKind::NoProviderKey
        | RefusalKind::Overloaded
        | RefusalKind::ProviderKeyRejected
        | RefusalKind::UpstreamUnreachable => "UNAVAILABLE",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths() {
        let vertex = "/v1/projects/p/locations/l/publishers";
        for (method, path, endpoint, model, streams) in [
            (
                "POST",
                "/v1beta/models/gemini-2.5-flash:generateContent",
                Endpoint::Generate,
                Some("gemini-2.5-flash"),
                Some(false),
            ),
            ("POST", "/v1beta/models/g%3AstreamGenerateContent?alt=sse", Endpoint::Generate, Some("g"), Some(true)),
            ("POST", "/v1beta/tunedModels/t:generateContent", Endpoint::Generate, Some("t"), Some(false)),
            ("POST", "/v1beta/models/g:countTokens", Endpoint::CountTokens, Some("g"), Some(false)),
            ("POST", "/v1beta/models/e:batchEmbedContents", Endpoint::Embeddings, Some("e"), Some(false)),
            ("POST", "/v1beta/models/g:batchGenerateContent", Endpoint::Batches, Some("g"), Some(false)),
            ("POST", "/v1beta/models/g:unheardOf", Endpoint::Other, Some("g"), None),
            ("POST", "/v1beta/models/g", Endpoint::Other, None, None),
            ("GET", "/v1beta/models", Endpoint::Models, None, None),
            ("GET", "/v1beta/models/g", Endpoint::Models, Some("g"), None),
            ("POST", "/upload/v1beta/files?upload_id=x", Endpoint::Files, None, None),
            ("POST", "/v1beta/cachedContents", Endpoint::Caches, None, None),
            ("POST", "/v1beta/interactions", Endpoint::Generate, None, None),
            ("GET", "/v1beta/interactions/i", Endpoint::Stored, None, None),
            ("POST", "/v1beta/openai/chat/completions", Endpoint::Chat, None, None),
            ("POST", "/v1alpha/auth_tokens", Endpoint::ClientSecrets, None, None),
            (
                "GET",
                "/ws/google.ai.generativelanguage.v1beta.GenerativeService.BidiGenerateContent",
                Endpoint::Realtime,
                None,
                Some(true),
            ),
            (
                "POST",
                &format!("{vertex}/google/models/g:generateContent?%24alt=json%3Benum-encoding%3Dint"),
                Endpoint::Generate,
                Some("g"),
                Some(false),
            ),
            (
                "POST",
                &format!("{vertex}/google/models/text-embedding-005:predict"),
                Endpoint::Embeddings,
                Some("text-embedding-005"),
                Some(false),
            ),
            (
                "POST",
                &format!("{vertex}/google/models/imagen-4:predict"),
                Endpoint::Images,
                Some("imagen-4"),
                Some(false),
            ),
            (
                "POST",
                &format!("{vertex}/anthropic/models/claude-3@2024:rawPredict"),
                Endpoint::Messages,
                Some("claude-3@2024"),
                None,
            ),
            (
                "POST",
                &format!("{vertex}/anthropic/models/claude-3:streamRawPredict"),
                Endpoint::Messages,
                Some("claude-3"),
                Some(true),
            ),
            ("POST", &format!("{vertex}/anthropic/models/count-tokens:rawPredict"), Endpoint::CountTokens, None, None),
            (
                "POST",
                &format!("{vertex}/mistralai/models/mistral-large:rawPredict"),
                Endpoint::Chat,
                Some("mistral-large"),
                None,
            ),
            (
                "POST",
                "/v1/projects/openai/locations/l/publishers/google/models/g:generateContent",
                Endpoint::Generate,
                Some("g"),
                Some(false),
            ),
            ("POST", "/v1/projects/p/locations/l/endpoints/openapi/chat/completions", Endpoint::Chat, None, None),
        ] {
            let call = GEMINI.classify(&method.parse().unwrap(), path);
            assert_eq!(
                (call.endpoint, call.model.as_deref(), call.streams),
                (endpoint, model, streams),
                "{method} {path}"
            );
        }
        assert_eq!(GEMINI.plain_model("models/gemini-pro"), "gemini-pro");
    }

    #[test]
    fn errors() {
        let refusal = Refusal::new(RefusalKind::RateLimited, "slow").after_ms(Some(1500));
        let body: serde_json::Value = serde_json::from_slice(&GEMINI.refusal_body(&refusal)).unwrap();
        assert_eq!((&body["error"]["code"], &body["error"]["status"]), (&json!(429), &json!("RESOURCE_EXHAUSTED")));
        assert_eq!(body["error"]["details"][1]["retryDelay"], "1.500s");
        let key = GEMINI.refusal_body(&Refusal::new(RefusalKind::InvalidKey, "no"));
        let body: serde_json::Value = serde_json::from_slice(&key).unwrap();
        assert_eq!((&body["error"]["code"], &body["error"]["status"]), (&json!(401), &json!("UNAUTHENTICATED")));
        assert_eq!(body["error"]["details"][0]["reason"], "API_KEY_INVALID");
    }
}
