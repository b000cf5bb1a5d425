//! The OpenAI dialect: Bearer key; chat, completions, responses, embeddings and their relatives, under any prefix.
//!
//! Owns which path means what, and the shape of an error; leaves hosts and prefixes to the provider table, and usage
//! fields to `tally`. A path is read by its tail, since every provider has a prefix of its own (`/openai/v1`,
//! `/api/paas/v4`, `/openai/deployments/<name>`).

use bytes::Bytes;
use http::Method;
use serde_json::json;

use super::anthropic::ANTHROPIC;
use super::path::{Segments, query};
use super::refusal::{Counted, Refusal, RefusalKind};
use super::{Auth, Call, Dialect, Endpoint};
use crate::tally::Wire;

/// The OpenAI dialect.
#[derive(Debug)]
pub struct OpenAi;

/// Its one value.
pub static OPENAI: OpenAi = OpenAi;

/// Tails that a POST asks for work with. A longer tail stands before its own end.
const WORK: &[(&[&str], Endpoint, Wire)] = &[
    (&["chat", "completions"], Endpoint::Chat, Wire::OpenAiChat),
    // Mistral's agents answer as chat does; their model is the agent's.
    (&["agents", "completions"], Endpoint::Chat, Wire::OpenAiChat),
    (&["completions"], Endpoint::Completions, Wire::OpenAiCompletions),
    (&["responses", "input_tokens"], Endpoint::CountTokens, Wire::None),
    (&["responses", "compact"], Endpoint::Responses, Wire::OpenAiResponses),
    (&["responses"], Endpoint::Responses, Wire::OpenAiResponses),
    (&["embeddings"], Endpoint::Embeddings, Wire::OpenAiEmbeddings),
    (&["images", "generations"], Endpoint::Images, Wire::OpenAiImages),
    (&["images", "edits"], Endpoint::Images, Wire::OpenAiImages),
    (&["images", "variations"], Endpoint::Images, Wire::OpenAiImages),
    (&["audio", "transcriptions"], Endpoint::Audio, Wire::OpenAiAudio),
    (&["audio", "translations"], Endpoint::Audio, Wire::OpenAiAudio),
    (&["audio", "speech"], Endpoint::Speech, Wire::OpenAiAudio),
    (&["moderations"], Endpoint::Moderations, Wire::None),
    // Together and Voyage count it as embeddings.
    (&["rerank"], Endpoint::Rerank, Wire::OpenAiEmbeddings),
    (&["videos"], Endpoint::Videos, Wire::None),
];

/// Resources that a path belongs to when one of its segments names them.
const RESOURCES: &[(&str, Endpoint)] = &[
    ("files", Endpoint::Files),
    ("uploads", Endpoint::Files),
    ("batches", Endpoint::Batches),
    ("fine_tuning", Endpoint::FineTuning),
    ("assistants", Endpoint::Assistants),
    ("threads", Endpoint::Assistants),
    ("conversations", Endpoint::Assistants),
    ("vector_stores", Endpoint::Assistants),
];

impl Dialect for OpenAi {
    fn name(&self) -> &'static str {
        "openai"
    }

    fn auth(&self) -> Auth {
        Auth::Bearer
    }

    fn classify<'a>(&self, method: &Method, path: &'a str) -> Call<'a> {
        let segments = Segments::of(path);
        if is_anthropic(&segments) {
            return ANTHROPIC.classify(method, path);
        }
        let call = Call::new(&OPENAI, Endpoint::Other);
        if segments.contain("realtime") {
            return realtime(call, path, &segments);
        }
        if *method == Method::POST
            && let Some(&(_, endpoint, wire)) = WORK.iter().find(|(tail, ..)| segments.end_with(tail))
        {
            return with_path_model(Call { endpoint, wire, body_model: true, ..call }, segments);
        }
        stored(call, method, segments)
    }

    fn refusal_body(&self, refusal: &Refusal) -> Bytes {
        let error = json!({
            "message": refusal.message,
            "type": error_type(refusal),
            "param": refusal.param,
            "code": refusal.kind.code(),
        });
        Bytes::from(json!({ "error": error }).to_string())
    }

    /// Responses have events with names and a flat error (<https://platform.openai.com/docs/api-reference/responses-streaming/error>).
    fn refusal_event(&self, wire: Wire, refusal: &Refusal) -> Bytes {
        let body = self.refusal_body(refusal);
        if wire != Wire::OpenAiResponses {
            return Bytes::from([b"data: ", &body[..], b"\n\n"].concat());
        }
        let error = json!({
            "type": "error",
            "code": refusal.kind.code(),
            "message": refusal.message,
            "param": refusal.param,
        });
        Bytes::from(format!("event: error\ndata: {error}\n\n"))
    }
}

/// `/anthropic/v1/messages` at DeepSeek, Azure and others; a thread's `messages` are not meant.
fn is_anthropic(segments: &Segments<'_>) -> bool {
    segments.position("messages").is_some_and(|at| {
        let before = at.checked_sub(1).and_then(|before| segments.get(before));
        before.is_some_and(|word| word.eq_ignore_ascii_case("v1") || word.eq_ignore_ascii_case("anthropic"))
    })
}

/// Azure's deployments, and the engines OpenAI once had, name the model in the path; the provider goes by that, and
/// leaves the body's alone.
fn with_path_model<'a>(call: Call<'a>, segments: Segments<'a>) -> Call<'a> {
    let Some(at) = segments.position("deployments").or_else(|| segments.position("engines")) else { return call };
    match segments.join(at + 1, at + 2) {
        Some(model) => Call { model: Some(model), body_model: false, ..call },
        None => call,
    }
}

/// A socket's model stands in its query, as `deployment` at Azure. What hands out credentials to browsers stands apart.
fn realtime<'a>(call: Call<'a>, path: &'a str, segments: &Segments<'_>) -> Call<'a> {
    if segments.end_with(&["realtime"]) {
        let model = match (query(path, "model"), query(path, "deployment")) {
            (Some(_), Some(_)) => None,
            (model, deployment) => model.or(deployment),
        };
        return Call { endpoint: Endpoint::Realtime, wire: Wire::OpenAiRealtime, model, streams: Some(true), ..call };
    }
    let secrets = ["client_secrets", "sessions", "transcription_sessions"].iter().any(|word| segments.contain(word));
    Call { endpoint: if secrets { Endpoint::ClientSecrets } else { Endpoint::Realtime }, ..call }
}

/// What is no work of its own: reading, listing and deleting.
fn stored<'a>(call: Call<'a>, method: &Method, segments: Segments<'a>) -> Call<'a> {
    let read = *method == Method::GET || *method == Method::HEAD;
    if let Some(&(_, endpoint)) = RESOURCES.iter().find(|(word, _)| segments.contain(word)) {
        // An assistant has a model, and a run may have one of its own.
        let body_model = *method == Method::POST && matches!(endpoint, Endpoint::Assistants | Endpoint::FineTuning);
        return Call { endpoint, body_model, ..call };
    }
    if read && segments.end_with(&["responses"]) {
        // Nothing lists responses: this opens a socket for many of them, each naming its model in a message.
        return Call { endpoint: Endpoint::Realtime, wire: Wire::OpenAiRealtime, streams: Some(true), ..call };
    }
    if ["responses", "completions", "videos"].iter().any(|word| segments.contain(word)) {
        let harmless = *method != Method::POST || segments.end_with(&["cancel"]);
        let endpoint = match () {
            () if harmless => Endpoint::Stored,
            // Making a new film of an old one.
            () if segments.end_with(&["remix"]) => Endpoint::Videos,
            () => Endpoint::Other,
        };
        return Call { endpoint, ..call };
    }
    match segments.position("models") {
        Some(at) if read => {
            let end = segments.len();
            Call { endpoint: Endpoint::Models, model: segments.join(at + 1, end), ..call }
        }
        _ => call,
    }
}

fn error_type(refusal: &Refusal) -> &'static str {
    match refusal.kind {
        RefusalKind::BadRequest
        | RefusalKind::BodyTooLarge
        | RefusalKind::InvalidKey
        | RefusalKind::MissingKey
        | RefusalKind::NotFound => "invalid_request_error",
        RefusalKind::InsufficientQuota => "insufficient_quota",
        RefusalKind::ModelNotAllowed | RefusalKind::PermissionDenied => "permission_error",
        RefusalKind::RateLimited => match refusal.counted {
            Counted::Requests => "requests",
            Counted::Tokens => "tokens",
        },
        RefusalKind::Internal
        | RefusalKind::NoProviderKey
        | RefusalKind::Overloaded
        | RefusalKind::ProviderKeyRejected
        | RefusalKind::UpstreamTimeout
        | RefusalKind::UpstreamUnreachable => "server_error",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths() {
        for (method, path, endpoint, model, wire) in [
            ("POST", "/v1/chat/completions", Endpoint::Chat, None, Wire::OpenAiChat),
            ("POST", "/chat/completions/", Endpoint::Chat, None, Wire::OpenAiChat),
            ("POST", "/V1/%63hat/completions?x=1", Endpoint::Chat, None, Wire::OpenAiChat),
            ("POST", "/client/v4/accounts/a/ai/v1/chat/completions", Endpoint::Chat, None, Wire::OpenAiChat),
            (
                "POST",
                "//openai/deployments/my-gpt/chat/completions?api-version=1",
                Endpoint::Chat,
                Some("my-gpt"),
                Wire::OpenAiChat,
            ),
            ("POST", "/openai/deployments/e/embeddings", Endpoint::Embeddings, Some("e"), Wire::OpenAiEmbeddings),
            (
                "POST",
                "/v1/engines/davinci/completions",
                Endpoint::Completions,
                Some("davinci"),
                Wire::OpenAiCompletions,
            ),
            ("POST", "/v1/fim/completions", Endpoint::Completions, None, Wire::OpenAiCompletions),
            ("GET", "/v1/chat/completions/chatcmpl-1", Endpoint::Stored, None, Wire::None),
            ("POST", "/v1/responses", Endpoint::Responses, None, Wire::OpenAiResponses),
            ("POST", "/v1/responses/compact", Endpoint::Responses, None, Wire::OpenAiResponses),
            ("POST", "/v1/responses/input_tokens", Endpoint::CountTokens, None, Wire::None),
            ("GET", "/v1/responses/resp_1", Endpoint::Stored, None, Wire::None),
            ("GET", "/v1/responses", Endpoint::Realtime, None, Wire::OpenAiRealtime),
            ("POST", "/v1/responses/resp_1/unheard-of", Endpoint::Other, None, Wire::None),
            ("POST", "/v1/responses/resp_1/cancel", Endpoint::Stored, None, Wire::None),
            ("DELETE", "/v1/responses/resp_1", Endpoint::Stored, None, Wire::None),
            ("GET", "/v1/models", Endpoint::Models, None, Wire::None),
            ("GET", "/v1/models/org%2Fm", Endpoint::Models, Some("org/m"), Wire::None),
            ("GET", "/v1/models/org/m", Endpoint::Models, Some("org/m"), Wire::None),
            ("DELETE", "/v1/models/ft:x", Endpoint::Other, None, Wire::None),
            ("POST", "/hf-inference/models/x", Endpoint::Other, None, Wire::None),
            ("POST", "/v1/files", Endpoint::Files, None, Wire::None),
            ("GET", "/v1/files/f/content", Endpoint::Files, None, Wire::None),
            ("POST", "/v1/batches", Endpoint::Batches, None, Wire::None),
            ("POST", "/v1/threads/t/runs", Endpoint::Assistants, None, Wire::None),
            ("POST", "/v1/threads/t/messages", Endpoint::Assistants, None, Wire::None),
            ("POST", "/v1/fine_tuning/jobs", Endpoint::FineTuning, None, Wire::None),
            ("POST", "/anthropic/v1/messages", Endpoint::Messages, None, Wire::AnthropicMessages),
            ("POST", "/api/v1/messages", Endpoint::Messages, None, Wire::AnthropicMessages),
            ("GET", "/v1/realtime?model=gpt-realtime", Endpoint::Realtime, Some("gpt-realtime"), Wire::OpenAiRealtime),
            (
                "GET",
                "/openai/realtime?deployment=rt&api-version=1",
                Endpoint::Realtime,
                Some("rt"),
                Wire::OpenAiRealtime,
            ),
            ("GET", "/v1/realtime?model=a&deployment=b", Endpoint::Realtime, None, Wire::OpenAiRealtime),
            ("GET", "/v1/realtime?model=a&model=b", Endpoint::Realtime, None, Wire::OpenAiRealtime),
            ("POST", "/v1/realtime/client_secrets", Endpoint::ClientSecrets, None, Wire::None),
            ("POST", "/v1/audio/speech", Endpoint::Speech, None, Wire::OpenAiAudio),
            ("POST", "/v1/videos/v/remix", Endpoint::Videos, None, Wire::None),
            ("POST", "/v2/rerank", Endpoint::Rerank, None, Wire::OpenAiEmbeddings),
            ("POST", "/v1/unheard-of", Endpoint::Other, None, Wire::None),
            ("POST", "/", Endpoint::Other, None, Wire::None),
        ] {
            let call = OPENAI.classify(&method.parse().unwrap(), path);
            assert_eq!((call.endpoint, call.model.as_deref(), call.wire), (endpoint, model, wire), "{method} {path}");
        }
    }

    #[test]
    fn a_deployment_outranks_the_body() {
        let call = OPENAI.classify(&Method::POST, "/openai/deployments/x/chat/completions");
        assert!(!call.body_model);
        assert!(OPENAI.classify(&Method::POST, "/v1/chat/completions").body_model);
    }

    #[test]
    fn errors() {
        let refusal = Refusal::new(RefusalKind::RateLimited, "slow").counting(Counted::Tokens).about("max_tokens");
        assert_eq!(
            OPENAI.refusal_body(&refusal),
            r#"{"error":{"message":"slow","type":"tokens","param":"max_tokens","code":"rate_limit_exceeded"}}"#
        );
    }
}
