//! Amazon Bedrock: Converse in a form of its own, Invoke in the form of each model's family.
//!
//! For Invoke, Bedrock's own count at the end of a stream goes first, then the body in its family's form, then the
//! `x-amzn-bedrock-*-token-count` headers. Input leaves out what was read from or written to the cache.

use std::sync::LazyLock;

use http::HeaderMap;

use super::figures::{Figure, Figures};
use super::reading::*;
use super::{anthropic, openai};
use crate::scan::json::{Paths, Tag, Want};
use crate::unit::Usage;

const CONVERSE: &[(&str, Figure)] = &[
    ("inputTokens", Figure::Input),
    ("outputTokens", Figure::Output),
    ("totalTokens", Figure::Total),
    ("cacheReadInputTokens", Figure::Cached),
    ("cacheReadInputTokenCount", Figure::Cached),
    ("cacheWriteInputTokens", Figure::CacheWrite),
    ("cacheWriteInputTokenCount", Figure::CacheWrite),
];

/// Families on Invoke that speak like OpenAI (AI21 Jamba, DeepSeek, Qwen, imported models).
const LIKE_OPENAI: &[(&str, Figure)] = &[
    ("prompt_tokens", Figure::Prompt),
    ("completion_tokens", Figure::Output),
    ("total_tokens", Figure::Total),
    ("prompt_tokens_details.cached_tokens", Figure::Cached),
    ("completion_tokens_details.reasoning_tokens", Figure::Reasoning),
];

const METRICS_NAMES: &[(&str, Figure)] = &[
    ("inputTokenCount", Figure::Input),
    ("outputTokenCount", Figure::Output),
    ("cacheReadInputTokenCount", Figure::Cached),
    ("cacheWriteInputTokenCount", Figure::CacheWrite),
];

const HEADERS: &[(&str, Figure)] = &[
    ("x-amzn-bedrock-input-token-count", Figure::Input),
    ("x-amzn-bedrock-output-token-count", Figure::Output),
    ("x-amzn-bedrock-cache-read-input-token-count", Figure::Cached),
    ("x-amzn-bedrock-cache-write-input-token-count", Figure::CacheWrite),
];

/// Converse's text, streamed and whole; Nova speaks so on Invoke too, with the event's name as a key.
const CONVERSE_TEXT: &[(&str, Tag, Want)] = &[
    ("output.message.content.text", TEXT, Want::Text),
    ("output.message.content.reasoningContent.reasoningText.text", TEXT, Want::Text),
    ("output.message.content.toolUse.name", CALL, Want::Text),
    ("output.message.content.toolUse.input", OBJECT, Want::Raw),
    ("delta.text", TEXT, Want::Text),
    ("delta.toolUse.input", TEXT, Want::Text),
    ("delta.reasoningContent.text", TEXT, Want::Text),
    ("start.toolUse.name", CALL, Want::Text),
    ("stopReason", FINISH, Want::Raw),
    ("serviceTier.type", TIER, Want::Raw),
    ("metadata.serviceTier.type", TIER, Want::Raw),
];

/// Text of the other families on Invoke.
const INVOKE_TEXT: &[(&str, Tag, Want)] = &[
    ("contentBlockDelta.delta.text", TEXT, Want::Text),
    ("contentBlockDelta.delta.toolUse.input", TEXT, Want::Text),
    ("contentBlockStart.start.toolUse.name", CALL, Want::Text),
    ("messageStop.stopReason", FINISH, Want::Raw),
    ("generation", TEXT, Want::Text),
    ("outputText", TEXT, Want::Text),
    ("results.outputText", TEXT, Want::Text),
    ("outputs.text", TEXT, Want::Text),
    ("completions.data.text", TEXT, Want::Text),
    ("generations.text", TEXT, Want::Text),
    ("text", TEXT, Want::Text),
    ("choices.text", TEXT, Want::Text),
    ("choices.message.content", TEXT, Want::Text),
    ("choices.delta.content", TEXT, Want::Text),
];

/// A place, the names below it, and the group of their tags.
type Place = (&'static str, &'static [(&'static str, Figure)], Tag);

fn table(places: &[Place], more: &[&[(&str, Tag, Want)]]) -> Paths {
    let mut wanted: Vec<(String, Tag, Want)> = Vec::new();
    for &(place, names, group) in places {
        wanted
            .extend(names.iter().map(|&(name, figure)| (format!("{place}.{name}"), group + figure as Tag, Want::Raw)));
    }
    let mut all: Vec<(&str, Tag, Want)> = wanted.iter().map(|(path, tag, want)| (path.as_str(), *tag, *want)).collect();
    more.iter().for_each(|more| all.extend(*more));
    Paths::new(&all)
}

static CONVERSE_PATHS: LazyLock<Paths> = LazyLock::new(|| {
    let places = [("usage", CONVERSE, FIGURES), ("metadata.usage", CONVERSE, FIGURES)];
    table(&places, &[&[("", ROOT, Want::Mark)], CONVERSE_TEXT])
});

static INVOKE_PATHS: LazyLock<Paths> = LazyLock::new(|| {
    // Llama and Titan count at the root. In their streams only Bedrock's own count is whole.
    let at_root = [
        ("prompt_token_count", Figure::Prompt.tag() | WHOLE, Want::Raw),
        ("generation_token_count", Figure::Output.tag() | WHOLE, Want::Raw),
        ("inputTextTokenCount", Figure::Prompt.tag() | WHOLE, Want::Raw),
        ("results.tokenCount", (ITEMS + Figure::Output as Tag) | WHOLE, Want::Raw),
    ];
    let places = [
        ("usage", CONVERSE, FIGURES),
        ("metadata.usage", CONVERSE, FIGURES),
        ("usage", anthropic::USAGE, FIGURES),
        ("message.usage", anthropic::USAGE, FIGURES),
        ("usage", LIKE_OPENAI, FIGURES),
        ("amazon-bedrock-invocationMetrics", METRICS_NAMES, METRICS),
    ];
    table(&places, &[&at_root, CONVERSE_TEXT, INVOKE_TEXT, anthropic::MORE])
});

pub(super) static CONVERSE_RULES: LazyLock<Rules> = LazyLock::new(|| Rules {
    paths: &CONVERSE_PATHS,
    merge: Merge::Overlay,
    terminal: &[],
    settle: |reports| anthropic::settle(&reports.body),
});

pub(super) static INVOKE_RULES: LazyLock<Rules> = LazyLock::new(|| Rules {
    paths: &INVOKE_PATHS,
    merge: Merge::Overlay,
    terminal: anthropic::TERMINAL,
    settle: |reports| {
        let extra = reports.extra.as_deref();
        let own = extra.map(|extra| extra.metrics).filter(|metrics| !metrics.is_empty());
        let body = Some(reports.body).filter(|body| !body.is_empty());
        let headers = extra.map(|extra| extra.headers);
        own.or(body).or(headers).map_or_else(Usage::default, |figures| settle(&figures))
    },
});

fn settle(figures: &Figures) -> Usage {
    if figures.get(Figure::Prompt).is_some() { openai::settle(figures) } else { anthropic::settle(figures) }
}

/// The figures in a response's headers.
pub(super) fn headers(headers: &HeaderMap) -> Figures {
    let mut figures = Figures::default();
    for &(name, figure) in HEADERS {
        let value = headers.get(name).and_then(|value| value.to_str().ok()?.trim().parse().ok());
        if let Some(value) = value {
            figures.set(figure, value);
        }
    }
    figures
}
