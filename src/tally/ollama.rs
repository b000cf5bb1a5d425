//! Ollama's own API: counts at the root of the last document.

use std::sync::LazyLock;

use super::figures::{Figure, sum};
use super::reading::*;
use crate::scan::json::{Paths, Want};
use crate::unit::Usage;

static PATHS: LazyLock<Paths> = LazyLock::new(|| {
    Paths::new(&[
        ("", ROOT, Want::Mark),
        ("model", MODEL, Want::Raw),
        ("error", ERROR, Want::Mark),
        ("done", DONE, Want::Raw),
        ("prompt_eval_count", Figure::Input.tag(), Want::Raw),
        ("eval_count", Figure::Output.tag(), Want::Raw),
        ("response", TEXT, Want::Text),
        ("thinking", TEXT, Want::Text),
        ("message.content", TEXT, Want::Text),
        ("message.thinking", TEXT, Want::Text),
        ("message.tool_calls.function.name", CALL, Want::Text),
        ("message.tool_calls.function.arguments", OBJECT, Want::Raw),
    ])
});

pub(super) static OLLAMA: LazyLock<Rules> = LazyLock::new(|| Rules {
    paths: &PATHS,
    merge: Merge::Replace,
    terminal: &[],
    settle: |reports| {
        let [input, output] = [Figure::Input, Figure::Output].map(|figure| reports.body.get(figure));
        Usage { input, output, total: sum(&[input, output]), ..Usage::default() }
    },
});
