//! Every recorded exchange: its path is classified, its body read.

use std::path::PathBuf;

use http::Method;
use serde::Deserialize;

use super::*;

#[derive(Deserialize)]
struct Row {
    id: String,
    provider: String,
    wire: String,
    method: String,
    host: String,
    path: String,
    request_headers: Vec<(String, String)>,
    request_body_file: Option<String>,
    request_fidelity: String,
    stream_requested: bool,
    model_requested: Option<String>,
}

#[expect(clippy::disallowed_methods, reason = "a test finds its data by the environment")]
pub(super) fn folder() -> Option<PathBuf> {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let said = std::env::var_os("SIDEKEY_TRANSCRIPTS").map(PathBuf::from);
    let places = [root.join("../shared/transcripts"), root.join("../../shared/transcripts")];
    let found = said.into_iter().chain(places).find(|place| place.join("index.jsonl").is_file());
    if found.is_none() {
        eprintln!("no recorded exchanges: set SIDEKEY_TRANSCRIPTS to a folder with index.jsonl; nothing is tested");
    }
    found
}

/// What the index calls a wire, here.
fn expected(wire: &str) -> Wire {
    match wire {
        "anthropic-complete" => Wire::AnthropicComplete,
        "anthropic-messages" => Wire::AnthropicMessages,
        "bedrock-converse" => Wire::BedrockConverse,
        "bedrock-invoke" => Wire::BedrockInvoke,
        "cohere-chat-v1" | "cohere-generate-v1" | "cohere-chat-v2" | "cohere-embed-v2" | "cohere-rerank-v1"
        | "cohere-rerank-v2" => Wire::Cohere,
        "gemini-embed" => Wire::GeminiEmbed,
        "gemini-generate" => Wire::GeminiGenerate,
        "ollama-chat" | "ollama-generate" => Wire::Ollama,
        "openai-audio" => Wire::OpenAiAudio,
        "openai-chat" | "groq-chat" | "mistral-chat" => Wire::OpenAiChat,
        "openai-completions" => Wire::OpenAiCompletions,
        "openai-embeddings" | "mistral-embeddings" | "voyage-embeddings" => Wire::OpenAiEmbeddings,
        "openai-images" => Wire::OpenAiImages,
        "openai-responses" => Wire::OpenAiResponses,
        "anthropic-count-tokens"
        | "gemini-count-tokens"
        | "openai-moderations"
        | "openai-responses-retrieve"
        | "other" => Wire::None,
        unknown => panic!("the index has a new wire, {unknown}"),
    }
}

/// The provider of a row: by its name, else by its host.
fn row_of(row: &Row) -> &'static dyn Dialect {
    let named = provider(&row.provider).map(|provider| provider.dialect);
    named.unwrap_or(&OPENAI)
}

#[test]
fn every_recorded_request_is_read() {
    let Some(folder) = folder() else { return };
    let index = std::fs::read_to_string(folder.join("index.jsonl")).unwrap();
    let mut rows = 0;
    for line in index.lines() {
        let row: Row = serde_json::from_str(line).unwrap();
        rows += 1;
        assert_eq!(check_path(&row.path), Ok(()), "{}", row.path);
        let method: Method = row.method.parse().unwrap();
        let call = row_of(&row).classify(&method, &row.path);
        assert_eq!(call.wire, expected(&row.wire), "{}: {} {}", row.id, row.method, row.path);
        let content_type = row.request_headers.iter().find(|(name, _)| name.eq_ignore_ascii_case("content-type"));
        let body = row.request_body_file.as_ref().map(|file| std::fs::read(folder.join(file)).unwrap());
        let Some(body) = body else { continue };
        let asked = request::sniff(&call, content_type.map(|(_, value)| value.as_str()), &body)
            .unwrap_or_else(|error| panic!("{}: {error}", row.id));
        check_model(&row, &call, &asked, &body);
        if row.request_fidelity == "as-recorded" && call.endpoint.consumes() && call.wire != Wire::None {
            assert_eq!(call.is_stream(&asked), row.stream_requested, "{} {}", row.id, row.path);
        }
    }
    assert!(rows > 700, "the index has {rows} rows");
}

/// The index takes the body's model first; at Azure the deployment in the path outranks it.
fn check_model(row: &Row, call: &Call<'_>, asked: &Asked, body: &[u8]) {
    let Some(want) = row.model_requested.as_deref() else { return };
    let body: serde_json::Value = serde_json::from_slice(body).unwrap_or_default();
    if let Some(in_body) = body["model"].as_str() {
        assert_eq!(asked.model.as_deref(), Some(in_body), "{}", row.id);
    }
    let counts = call.model(asked);
    if want.starts_with("arn:") {
        // The account was masked in the path, not in the index.
        let end = |arn: &str| arn.rsplit(':').next().map(str::to_owned);
        assert_eq!(counts.and_then(end), end(want), "{}", row.id);
    } else if call.model.is_some() && body["model"].is_string() {
        assert!(counts.is_some(), "{}", row.id);
    } else if !row.path.contains("/deployments/") && call.endpoint != Endpoint::Other {
        assert_eq!(counts, Some(call.speaks.plain_model(want)), "{} {}", row.id, row.path);
    }
}

#[test]
fn recorded_hosts_lead_to_their_provider() {
    let Some(folder) = folder() else { return };
    let registry = Registry::build(&std::collections::BTreeMap::new(), None).unwrap();
    let index = std::fs::read_to_string(folder.join("index.jsonl")).unwrap();
    for line in index.lines() {
        let row: Row = serde_json::from_str(line).unwrap();
        let Some(provider) = provider(&row.provider).filter(|row| row.base_url.is_some() && !row.keyless) else {
            continue;
        };
        let found = registry.by_host(&row.host).unwrap_or_else(|| panic!("{}", row.host));
        assert_eq!((&*found.id, found.host()), (provider.id, &*row.host));
    }
}
