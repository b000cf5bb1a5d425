//! Gemini and Vertex: `usageMetadata` in every chunk, the last one counts.
//!
//! What went through tools is part of the input, thoughts are part of the output; both lie outside the counts beside them.

use std::sync::LazyLock;

use super::figures::{Figure, Figures, sum};
use super::reading::*;
use crate::scan::json::{Paths, Tag, Want};
use crate::unit::Usage;

const USAGE: &[(&str, Figure)] = &[
    ("promptTokenCount", Figure::Input),
    ("toolUsePromptTokenCount", Figure::ToolInput),
    ("candidatesTokenCount", Figure::Output),
    ("responseTokenCount", Figure::Output),
    ("thoughtsTokenCount", Figure::Reasoning),
    ("cachedContentTokenCount", Figure::Cached),
    ("totalTokenCount", Figure::Total),
];

const MORE: &[(&str, Tag, Want)] = &[
    ("", ROOT, Want::Mark),
    ("modelVersion", MODEL, Want::Raw),
    ("response.modelVersion", MODEL, Want::Raw),
    ("error", ERROR, Want::Mark),
    ("error.code", ERROR_CODE, Want::Raw),
    ("error.status", ERROR_KIND, Want::Raw),
];

fn table(more: &[(&str, Tag, Want)]) -> Paths {
    let mut wanted: Vec<(String, Tag, Want)> = Vec::new();
    for place in ["usageMetadata", "response.usageMetadata"] {
        for (details, of) in [
            ("promptTokensDetails", OF_PROMPT),
            ("cacheTokensDetails", OF_CACHE),
            ("candidatesTokensDetails", OF_ANSWER),
        ] {
            wanted.push((format!("{place}.{details}"), of, Want::Mark));
            wanted.push((format!("{place}.{details}.modality"), MODALITY, Want::Raw));
            wanted.push((format!("{place}.{details}.tokenCount"), MODAL_TOKENS, Want::Raw));
        }
        wanted.extend(USAGE.iter().map(|&(name, figure)| (format!("{place}.{name}"), figure.tag(), Want::Raw)));
    }
    let mut all: Vec<(&str, Tag, Want)> = wanted.iter().map(|(path, tag, want)| (path.as_str(), *tag, *want)).collect();
    all.extend(MORE);
    all.extend(more);
    Paths::new(&all)
}

static GENERATE_PATHS: LazyLock<Paths> = LazyLock::new(|| {
    table(&[
        ("candidates.content.parts.text", TEXT, Want::Text),
        ("candidates.content.parts.functionCall.name", CALL, Want::Text),
        ("candidates.content.parts.functionCall.args", OBJECT, Want::Raw),
        ("candidates.content.parts.executableCode.code", TEXT, Want::Text),
        ("candidates.finishReason", FINISH, Want::Raw),
        ("response.candidates.content.parts.text", TEXT, Want::Text),
        ("response.candidates.finishReason", FINISH, Want::Raw),
    ])
});

static EMBED_PATHS: LazyLock<Paths> = LazyLock::new(|| {
    // Vertex `predict`: a count for each text.
    let items = ITEMS + Figure::Input as Tag;
    table(&[
        ("predictions.embeddings.statistics.token_count", items, Want::Raw),
        ("predictions.statistics.token_count", items, Want::Raw),
    ])
});

pub(super) static GENERATE: LazyLock<Rules> = LazyLock::new(|| Rules {
    paths: &GENERATE_PATHS,
    merge: Merge::Replace,
    terminal: &[],
    settle: |reports| settle(&reports.body),
});

pub(super) static EMBED: LazyLock<Rules> = LazyLock::new(|| Rules {
    paths: &EMBED_PATHS,
    merge: Merge::Replace,
    terminal: &[],
    settle: |reports| settle(&reports.body),
});

fn settle(figures: &Figures) -> Usage {
    let reasoning = figures.get(Figure::Reasoning);
    let input = sum(&[figures.get(Figure::Input), figures.get(Figure::ToolInput)]);
    let output = sum(&[figures.get(Figure::Output), reasoning]);
    let total = figures.get(Figure::Total).or_else(|| sum(&[input, output]));
    Usage {
        input,
        cached_input: figures.get(Figure::Cached),
        output,
        reasoning,
        total,
        audio_input: figures.get(Figure::AudioInput),
        audio_output: figures.get(Figure::AudioOutput),
        image_input: figures.get(Figure::ImageInput),
        image_output: figures.get(Figure::ImageOutput),
        cached_audio_input: figures.get(Figure::CachedAudioInput),
        cached_image_input: figures.get(Figure::CachedImageInput),
        ..Usage::default()
    }
}
