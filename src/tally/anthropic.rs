//! Anthropic messages and its retired completions.
//!
//! Usage stands in `message_start` and again in `message_delta`; figures are running totals, and `input_tokens` leaves out
//! what was read from or written to the cache.

use std::sync::LazyLock;

use super::figures::{Figure, Figures, first, sum};
use super::reading::*;
use crate::scan::json::{Paths, Tag, Want};
use crate::unit::Usage;

/// Figures inside a usage object.
pub(super) const USAGE: &[(&str, Figure)] = &[
    ("input_tokens", Figure::Input),
    ("output_tokens", Figure::Output),
    ("cache_read_input_tokens", Figure::Cached),
    ("cache_creation_input_tokens", Figure::CacheWrite),
    ("cache_creation.ephemeral_1h_input_tokens", Figure::CacheWrite1h),
    ("server_tool_use.web_search_requests", Figure::Searches),
    ("output_tokens_details.thinking_tokens", Figure::Reasoning),
    ("output_tokens_details.reasoning_tokens", Figure::ReasoningAlias),
];

/// What a message says, streamed or whole. What server tools return is not the model's output.
pub(super) const MORE: &[(&str, Tag, Want)] = &[
    ("", ROOT, Want::Mark),
    ("type", TYPE, Want::Raw),
    ("model", MODEL, Want::Raw),
    ("message.model", MODEL, Want::Raw),
    ("usage.service_tier", TIER, Want::Raw),
    ("message.usage.service_tier", TIER, Want::Raw),
    ("error", ERROR, Want::Mark),
    ("error.type", ERROR_KIND, Want::Raw),
    ("error.details.error_code", ERROR_CODE, Want::Raw),
    ("delta.text", TEXT, Want::Text),
    ("delta.thinking", TEXT, Want::Text),
    ("delta.partial_json", TEXT, Want::Text),
    ("content_block.text", TEXT, Want::Text),
    ("content_block.thinking", TEXT, Want::Text),
    ("content_block.name", CALL, Want::Text),
    ("content.text", TEXT, Want::Text),
    ("content.thinking", TEXT, Want::Text),
    ("content.name", CALL, Want::Text),
    ("content.input", OBJECT, Want::Raw),
    ("completion", TEXT, Want::Text),
    ("stop_reason", FINISH, Want::Raw),
];

/// Event types after which nothing more is due.
pub(super) const TERMINAL: &[&str] = &["message_stop", "error"];

static PATHS: LazyLock<Paths> = LazyLock::new(|| {
    let mut wanted: Vec<(String, Tag, Want)> = Vec::new();
    for place in ["usage", "message.usage"] {
        wanted.extend(USAGE.iter().map(|&(name, figure)| (format!("{place}.{name}"), figure.tag(), Want::Raw)));
    }
    let mut all: Vec<(&str, Tag, Want)> = wanted.iter().map(|(path, tag, want)| (path.as_str(), *tag, *want)).collect();
    all.extend(MORE);
    Paths::new(&all)
});

pub(super) static MESSAGES: LazyLock<Rules> = LazyLock::new(|| Rules {
    paths: &PATHS,
    merge: Merge::Overlay,
    terminal: TERMINAL,
    settle: |reports| settle(&reports.body),
});

/// Input is the sum of three; the total is ours to make.
pub(super) fn settle(figures: &Figures) -> Usage {
    let [cached_input, cache_write] = [Figure::Cached, Figure::CacheWrite].map(|figure| figures.get(figure));
    let input = sum(&[figures.get(Figure::Input), cached_input, cache_write]);
    let output = figures.get(Figure::Output);
    let reasoning = first(figures, &[Figure::Reasoning, Figure::ReasoningAlias]);
    let total = figures.get(Figure::Total).or_else(|| sum(&[input, output]));
    let [cache_write_1h, searches] = [Figure::CacheWrite1h, Figure::Searches].map(|figure| figures.get(figure));
    Usage { input, cached_input, cache_write, cache_write_1h, output, reasoning, total, searches, ..Usage::default() }
}
