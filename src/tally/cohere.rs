//! Cohere: `meta` in version 1, `usage` in version 2; `tokens` is what was read and written, `billed_units` what is paid.

use std::sync::LazyLock;

use super::figures::{Figure, Figures, first, sum};
use super::reading::*;
use crate::scan::json::{Paths, Tag, Want};
use crate::unit::Usage;

const USAGE: &[(&str, Figure)] = &[
    ("tokens.input_tokens", Figure::Input),
    ("tokens.output_tokens", Figure::Output),
    ("billed_units.input_tokens", Figure::BilledInput),
    ("billed_units.output_tokens", Figure::BilledOutput),
    ("cached_tokens", Figure::Cached),
];

const MORE: &[(&str, Tag, Want)] = &[
    ("", ROOT, Want::Mark),
    ("type", TYPE, Want::Raw),
    ("model", MODEL, Want::Raw),
    ("error", ERROR, Want::Mark),
    ("error.code", ERROR_CODE, Want::Raw),
    ("error.type", ERROR_KIND, Want::Raw),
    // Version 1. The last event of its stream repeats the text in `response`.
    ("text", TEXT, Want::Text),
    ("tool_calls.name", CALL | WHOLE, Want::Text),
    ("tool_calls.parameters", OBJECT | WHOLE, Want::Raw),
    ("generations.text", TEXT, Want::Text),
    ("is_finished", DONE, Want::Raw),
    // Version 2.
    ("message.content.text", TEXT, Want::Text),
    ("message.content.thinking", TEXT, Want::Text),
    ("message.tool_plan", TEXT, Want::Text),
    ("message.tool_calls.function.name", CALL, Want::Text),
    ("message.tool_calls.function.arguments", TEXT, Want::Text),
    ("delta.message.content.text", TEXT, Want::Text),
    ("delta.message.content.thinking", TEXT, Want::Text),
    ("delta.message.tool_plan", TEXT, Want::Text),
    ("delta.message.tool_calls.function.name", CALL, Want::Text),
    ("delta.message.tool_calls.function.arguments", TEXT, Want::Text),
];

static PATHS: LazyLock<Paths> = LazyLock::new(|| {
    let mut wanted: Vec<(String, Tag, Want)> = Vec::new();
    for place in ["usage", "delta.usage", "meta", "response.meta"] {
        wanted.extend(USAGE.iter().map(|&(name, figure)| (format!("{place}.{name}"), figure.tag(), Want::Raw)));
    }
    let mut all: Vec<(&str, Tag, Want)> = wanted.iter().map(|(path, tag, want)| (path.as_str(), *tag, *want)).collect();
    all.extend(MORE);
    Paths::new(&all)
});

pub(super) static COHERE: LazyLock<Rules> = LazyLock::new(|| Rules {
    paths: &PATHS,
    merge: Merge::Replace,
    terminal: &["message-end"],
    settle: |reports| settle(&reports.body),
});

/// Tokens first; what was billed only if that is all there is.
fn settle(figures: &Figures) -> Usage {
    let tokens = first(figures, &[Figure::Input, Figure::Output]).is_some();
    let names = if tokens { [Figure::Input, Figure::Output] } else { [Figure::BilledInput, Figure::BilledOutput] };
    let [input, output] = names.map(|name| figures.get(name));
    Usage { input, cached_input: figures.get(Figure::Cached), output, total: sum(&[input, output]), ..Usage::default() }
}
