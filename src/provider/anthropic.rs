//! The Anthropic dialect: key in `x-api-key`; messages, with the model in the body.
//!
//! Owns which path means what, and the shape of an error; leaves hosts to the provider table, usage fields to `tally`.

use bytes::Bytes;
use http::{Method, StatusCode};
use serde_json::json;

use super::openai::OPENAI;
use super::path::Segments;
use super::refusal::{Refusal, RefusalKind};
use super::{Auth, Call, Dialect, Endpoint};
use crate::tally::Wire;

/// The Anthropic dialect.
#[derive(Debug)]
pub struct Anthropic;

/// Its one value.
pub static ANTHROPIC: Anthropic = Anthropic;

impl Dialect for Anthropic {
    fn name(&self) -> &'static str {
        "anthropic"
    }

    fn auth(&self) -> Auth {
        Auth::XApiKey
    }

    fn classify<'a>(&self, method: &Method, path: &'a str) -> Call<'a> {
        let segments = Segments::of(path);
        let call = Call::new(&ANTHROPIC, Endpoint::Other);
        let post = *method == Method::POST;
        if segments.contain("batches") {
            return Call { endpoint: Endpoint::Batches, ..call };
        }
        if segments.contain("files") || segments.contain("skills") {
            return Call { endpoint: Endpoint::Files, ..call };
        }
        if post && segments.end_with(&["messages", "count_tokens"]) {
            return Call { endpoint: Endpoint::CountTokens, body_model: true, ..call };
        }
        if post && segments.end_with(&["messages"]) {
            return Call { endpoint: Endpoint::Messages, wire: Wire::AnthropicMessages, body_model: true, ..call };
        }
        if post && segments.end_with(&["complete"]) {
            return Call { endpoint: Endpoint::Completions, wire: Wire::AnthropicComplete, body_model: true, ..call };
        }
        match segments.position("models") {
            Some(at) if *method == Method::GET => {
                let end = segments.len();
                Call { endpoint: Endpoint::Models, model: segments.join(at + 1, end), ..call }
            }
            // Anthropic answers OpenAI's SDKs too. What has messages comes from there, and must not go back.
            _ if segments.contain("completions") && !segments.contain("messages") => OPENAI.classify(method, path),
            _ => call,
        }
    }

    fn refusal_status(&self, kind: RefusalKind) -> StatusCode {
        match kind {
            RefusalKind::InsufficientQuota => StatusCode::PAYMENT_REQUIRED,
            _ => kind.status(),
        }
    }

    fn refusal_body(&self, refusal: &Refusal) -> Bytes {
        let error = json!({
            "type": error_type(refusal.kind),
            "message": refusal.message,
            "details": { "error_code": refusal.kind.code() },
        });
        let body =
            json!({ "type": "error", "error": error, "request_id": refusal.request_id.map(|id| id.to_string()) });
        Bytes::from(body.to_string())
    }

    /// <https://docs.anthropic.com/en/docs/build-with-claude/streaming#error-events>
    fn refusal_event(&self, _wire: Wire, refusal: &Refusal) -> Bytes {
        let body = self.refusal_body(refusal);
        Bytes::from([b"event: error\ndata: ", &body[..], b"\n\n"].concat())
    }
}

fn error_type(kind: RefusalKind) -> &'static str {
    match kind {
        RefusalKind::BadRequest => "invalid_request_error",
        RefusalKind::BodyTooLarge => "request_too_large",
        RefusalKind::InsufficientQuota => "billing_error",
        RefusalKind::InvalidKey | RefusalKind::MissingKey => "authentication_error",
        RefusalKind::ModelNotAllowed | RefusalKind::PermissionDenied => "permission_error",
        RefusalKind::NotFound => "not_found_error",
        RefusalKind::Overloaded => "overloaded_error",
        RefusalKind::RateLimited => "rate_limit_error",
        RefusalKind::UpstreamTimeout => "timeout_error",
        RefusalKind::Internal
        | RefusalKind::NoProviderKey
        | RefusalKind::ProviderKeyRejected
        | RefusalKind::UpstreamUnreachable => "api_error",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths() {
        for (method, path, endpoint, model, wire) in [
            ("POST", "/v1/messages?beta=true", Endpoint::Messages, None, Wire::AnthropicMessages),
            ("POST", "//v1/messages/", Endpoint::Messages, None, Wire::AnthropicMessages),
            ("POST", "/v1/messages/count_tokens", Endpoint::CountTokens, None, Wire::None),
            ("POST", "/v1/messages/batches", Endpoint::Batches, None, Wire::None),
            ("GET", "/v1/messages/batches/b/results", Endpoint::Batches, None, Wire::None),
            ("POST", "/v1/complete", Endpoint::Completions, None, Wire::AnthropicComplete),
            ("GET", "/v1/models", Endpoint::Models, None, Wire::None),
            ("GET", "/v1/models/claude-3", Endpoint::Models, Some("claude-3"), Wire::None),
            ("POST", "/v1/files", Endpoint::Files, None, Wire::None),
            ("POST", "/v1/chat/completions", Endpoint::Chat, None, Wire::OpenAiChat),
            ("GET", "/v1/messages", Endpoint::Other, None, Wire::None),
            ("POST", "/v1/messages/completions", Endpoint::Other, None, Wire::None),
            ("GET", "/v1/organizations/usage", Endpoint::Other, None, Wire::None),
        ] {
            let call = ANTHROPIC.classify(&method.parse().unwrap(), path);
            assert_eq!((call.endpoint, call.model.as_deref(), call.wire), (endpoint, model, wire), "{method} {path}");
        }
        assert_eq!(ANTHROPIC.classify(&Method::POST, "/v1/chat/completions").speaks.name(), "openai");
    }

    #[test]
    fn a_budget_is_a_matter_of_payment() {
        let response = Refusal::new(RefusalKind::InsufficientQuota, "spent").response(&ANTHROPIC);
        assert_eq!(response.status(), 402);
        let body: serde_json::Value = serde_json::from_slice(response.body()).unwrap();
        assert_eq!((&body["type"], &body["error"]["type"]), (&json!("error"), &json!("billing_error")));
        assert_eq!(body["request_id"], serde_json::Value::Null);
    }
}
