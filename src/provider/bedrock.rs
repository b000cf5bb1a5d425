//! The Bedrock dialect: Bearer key; `/model/<id>/converse` or `/invoke`, the model's id or ARN percent-encoded.
//!
//! Owns which path means what, and the shape of an error; leaves regions to the provider table, the event stream to
//! `scan` and usage fields to `tally`. Requests signed with SigV4 bind method, path and body to a secret that sidekey
//! does not hold; only API keys are exchanged.

use bytes::Bytes;
use http::{HeaderName, Method};
use serde_json::json;

use super::openai::OPENAI;
use super::path::Segments;
use super::refusal::{Refusal, RefusalKind};
use super::{Auth, Call, Dialect, Endpoint};
use crate::tally::Wire;

/// The Bedrock dialect.
#[derive(Debug)]
pub struct Bedrock;

/// Its one value.
pub static BEDROCK: Bedrock = Bedrock;

const ERROR_TYPE: HeaderName = HeaderName::from_static("x-amzn-errortype");

/// What can be asked of a model.
const ACTIONS: &[(&str, Endpoint, Wire, Option<bool>)] = &[
    ("converse", Endpoint::Chat, Wire::BedrockConverse, Some(false)),
    ("converse-stream", Endpoint::Chat, Wire::BedrockConverse, Some(true)),
    ("invoke", Endpoint::Generate, Wire::BedrockInvoke, Some(false)),
    ("invoke-with-response-stream", Endpoint::Generate, Wire::BedrockInvoke, Some(true)),
    ("invoke-with-bidirectional-stream", Endpoint::Realtime, Wire::None, Some(true)),
    ("count-tokens", Endpoint::CountTokens, Wire::None, Some(false)),
];

impl Dialect for Bedrock {
    fn name(&self) -> &'static str {
        "bedrock"
    }

    fn auth(&self) -> Auth {
        Auth::Bearer
    }

    fn classify<'a>(&self, method: &Method, path: &'a str) -> Call<'a> {
        let segments = Segments::of(path);
        let call = Call::new(&BEDROCK, Endpoint::Other);
        let of_model = segments.get(0).is_some_and(|word| word.eq_ignore_ascii_case("model"));
        if !of_model {
            let foreign = segments.contain("openai") || segments.contain("v1") || segments.contain("anthropic");
            return if foreign { OPENAI.classify(method, path) } else { resource(call, method, &segments) };
        }
        let last = segments.len() - 1;
        let known = ACTIONS.iter().find(|(name, ..)| segments.end_with(&[name]));
        match known {
            Some(&(_, endpoint, wire, streams)) if *method == Method::POST && last > 1 => {
                Call { endpoint, wire, streams, model: segments.join(1, last), ..call }
            }
            _ => call,
        }
    }

    fn refusal_body(&self, refusal: &Refusal) -> Bytes {
        Bytes::from(json!({ "message": refusal.message }).to_string())
    }

    fn refusal_header(&self, kind: RefusalKind) -> Option<(HeaderName, &'static str)> {
        Some((ERROR_TYPE, exception(kind)))
    }
}

fn resource<'a>(call: Call<'a>, method: &Method, segments: &Segments<'_>) -> Call<'a> {
    if segments.contain("async-invoke") || segments.contain("model-invocation-job") {
        return Call { endpoint: Endpoint::Batches, ..call };
    }
    if *method == Method::GET && (segments.contain("foundation-models") || segments.contain("inference-profiles")) {
        return Call { endpoint: Endpoint::Models, ..call };
    }
    call
}

/// The exceptions of the Bedrock runtime. AWS SDKs retry `ThrottlingException`, so a budget must not be one.
fn exception(kind: RefusalKind) -> &'static str {
    match kind {
        RefusalKind::BadRequest | RefusalKind::BodyTooLarge => "ValidationException",
        RefusalKind::InsufficientQuota => "ServiceQuotaExceededException",
        RefusalKind::Internal | RefusalKind::ProviderKeyRejected | RefusalKind::UpstreamUnreachable => {
            "InternalServerException"
        }
        RefusalKind::InvalidKey | RefusalKind::MissingKey => "UnrecognizedClientException",
        RefusalKind::ModelNotAllowed | RefusalKind::PermissionDenied => "AccessDeniedException",
        RefusalKind::NoProviderKey | RefusalKind::Overloaded => "ServiceUnavailableException",
        RefusalKind::NotFound => "ResourceNotFoundException",
        RefusalKind::RateLimited => "ThrottlingException",
        RefusalKind::UpstreamTimeout => "ModelTimeoutException",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths() {
        for (method, path, endpoint, model, wire) in [
            (
                "POST",
                "/model/amazon.nova-lite-v1%3A0/converse",
                Endpoint::Chat,
                Some("amazon.nova-lite-v1:0"),
                Wire::BedrockConverse,
            ),
            (
                "POST",
                "/model/amazon.nova-lite-v1:0/converse-stream",
                Endpoint::Chat,
                Some("amazon.nova-lite-v1:0"),
                Wire::BedrockConverse,
            ),
            (
                "POST",
                "/model/arn%3Aaws%3Abedrock%3Aus-east-1%3A1%3Aprofile%2Fp/invoke",
                Endpoint::Generate,
                Some("arn:aws:bedrock:us-east-1:1:profile/p"),
                Wire::BedrockInvoke,
            ),
            (
                "POST",
                "/model/arn:aws:bedrock:us-east-1:1:profile/p/invoke",
                Endpoint::Generate,
                Some("arn:aws:bedrock:us-east-1:1:profile/p"),
                Wire::BedrockInvoke,
            ),
            ("POST", "/model/m/invoke-with-response-stream", Endpoint::Generate, Some("m"), Wire::BedrockInvoke),
            ("POST", "/model/m/count-tokens", Endpoint::CountTokens, Some("m"), Wire::None),
            ("POST", "/model/converse", Endpoint::Other, None, Wire::None),
            ("POST", "/model", Endpoint::Other, None, Wire::None),
            ("GET", "/model/m/converse", Endpoint::Other, None, Wire::None),
            ("GET", "/foundation-models", Endpoint::Models, None, Wire::None),
            ("POST", "/async-invoke", Endpoint::Batches, None, Wire::None),
            ("POST", "/openai/v1/chat/completions", Endpoint::Chat, None, Wire::OpenAiChat),
            ("POST", "/anthropic/v1/messages", Endpoint::Messages, None, Wire::AnthropicMessages),
        ] {
            let call = BEDROCK.classify(&method.parse().unwrap(), path);
            assert_eq!((call.endpoint, call.model.as_deref(), call.wire), (endpoint, model, wire), "{method} {path}");
        }
    }

    #[test]
    fn exceptions_are_named_in_a_header() {
        let response = Refusal::new(RefusalKind::RateLimited, "slow").response(&BEDROCK);
        assert_eq!(response.headers()["x-amzn-errortype"], "ThrottlingException");
        assert_eq!(response.body(), r#"{"message":"slow"}"#);
    }
}
