//! The OpenAI family: chat, completions, responses, embeddings, images, audio and realtime, with the spellings of all
//! who speak that dialect (Azure, Groq, xAI, Mistral, DeepSeek, Databricks, Together, OpenRouter, Perplexity, Voyage…).

use std::sync::LazyLock;

use super::figures::{Figure, Figures, first};
use super::reading::*;
use crate::scan::json::{Paths, Tag, Want};
use crate::unit::Usage;

/// Figures inside a usage object. Where two names mean the same, providers give one of them.
const USAGE: &[(&str, Figure)] = &[
    ("prompt_tokens", Figure::Input),
    ("input_tokens", Figure::Input),
    ("completion_tokens", Figure::Output),
    ("output_tokens", Figure::Output),
    ("total_tokens", Figure::Total),
    ("prompt_tokens_details.cached_tokens", Figure::Cached),
    ("prompt_token_details.cached_tokens", Figure::Cached),
    ("input_tokens_details.cached_tokens", Figure::Cached),
    ("input_token_details.cached_tokens", Figure::Cached),
    ("prompt_cache_hit_tokens", Figure::CachedAlias),
    ("cache_read_input_tokens", Figure::CachedAlias),
    ("num_cached_tokens", Figure::CachedAlias),
    ("cached_tokens", Figure::CachedAlias),
    ("prompt_tokens_details.cache_write_tokens", Figure::CacheWrite),
    ("input_tokens_details.cache_write_tokens", Figure::CacheWrite),
    ("cache_creation_input_tokens", Figure::CacheWrite),
    ("completion_tokens_details.reasoning_tokens", Figure::Reasoning),
    ("output_tokens_details.reasoning_tokens", Figure::Reasoning),
    ("output_token_details.reasoning_tokens", Figure::Reasoning),
    ("reasoning_tokens", Figure::ReasoningAlias),
    ("prompt_tokens_details.audio_tokens", Figure::AudioInput),
    ("input_tokens_details.audio_tokens", Figure::AudioInput),
    ("input_token_details.audio_tokens", Figure::AudioInput),
    ("completion_tokens_details.audio_tokens", Figure::AudioOutput),
    ("output_tokens_details.audio_tokens", Figure::AudioOutput),
    ("output_token_details.audio_tokens", Figure::AudioOutput),
    ("input_token_details.cached_tokens_details.audio_tokens", Figure::CachedAudioInput),
    ("input_token_details.cached_tokens_details.image_tokens", Figure::CachedImageInput),
    ("prompt_tokens_details.image_tokens", Figure::ImageInput),
    ("input_tokens_details.image_tokens", Figure::ImageInput),
    ("input_token_details.image_tokens", Figure::ImageInput),
    ("completion_tokens_details.image_tokens", Figure::ImageOutput),
    ("output_tokens_details.image_tokens", Figure::ImageOutput),
    ("num_search_queries", Figure::Searches),
    ("prompt_audio_seconds", Figure::AudioSeconds),
];

/// The usage paths under each of `places`, and what every OpenAI document may carry.
fn table(places: &[&str], more: &[(&str, Tag, Want)]) -> Paths {
    let mut wanted: Vec<(String, Tag, Want)> = Vec::new();
    for place in places {
        wanted.push((format!("{place}.type"), UNIT, Want::Raw));
        wanted.push((format!("{place}.seconds"), SECONDS, Want::Raw));
        // OpenRouter; Perplexity has more than one figure.
        wanted.push((format!("{place}.cost"), COST, Want::Raw));
        wanted.push((format!("{place}.cost.total_cost"), COST, Want::Raw));
        wanted.extend(USAGE.iter().map(|&(name, figure)| (format!("{place}.{name}"), figure.tag(), Want::Raw)));
    }
    let common = [
        ("", ROOT, Want::Mark),
        ("model", MODEL, Want::Raw),
        ("service_tier", TIER, Want::Raw),
        ("type", TYPE, Want::Raw),
        ("error", ERROR, Want::Mark),
        ("error.code", ERROR_CODE, Want::Raw),
        ("error.type", ERROR_KIND, Want::Raw),
    ];
    let mut all: Vec<(&str, Tag, Want)> = wanted.iter().map(|(path, tag, want)| (path.as_str(), *tag, *want)).collect();
    all.extend(common);
    all.extend(more);
    Paths::new(&all)
}

/// Where chat puts what was said, below `choices.delta` or `choices.message`.
const SAID: &[(&str, Tag, Want)] = &[
    ("content", TEXT, Want::Text),
    ("content.text", TEXT, Want::Text),
    ("content.thinking.text", TEXT, Want::Text),
    ("refusal", TEXT, Want::Text),
    ("reasoning_content", REASONING, Want::Text),
    ("reasoning", REASONING_ALIAS, Want::Text),
    ("audio.transcript", TEXT, Want::Text),
    ("tool_calls.function.name", CALL, Want::Text),
    ("tool_calls.function.arguments", TEXT, Want::Text),
    ("tool_calls.custom.name", CALL, Want::Text),
    ("tool_calls.custom.input", TEXT, Want::Text),
    ("function_call.name", CALL, Want::Text),
    ("function_call.arguments", TEXT, Want::Text),
];

static CHAT_PATHS: LazyLock<Paths> = LazyLock::new(|| {
    let mut said: Vec<(String, Tag, Want)> = Vec::new();
    for &(name, tag, want) in SAID {
        said.push((format!("choices.delta.{name}"), tag, want));
        // Perplexity repeats the whole message so far in every chunk.
        said.push((format!("choices.message.{name}"), tag | WHOLE, want));
    }
    let mut more: Vec<(&str, Tag, Want)> = said.iter().map(|(path, tag, want)| (path.as_str(), *tag, *want)).collect();
    more.push(("choices.finish_reason", FINISH, Want::Raw));
    table(&["usage", "x_groq.usage", "choices.usage", "result.usage", "response.usage"], &more)
});

static COMPLETIONS_PATHS: LazyLock<Paths> = LazyLock::new(|| {
    table(
        &["usage", "x_groq.usage", "choices.usage"],
        &[
            ("choices.text", TEXT, Want::Text),
            ("choices.message.content", TEXT | WHOLE, Want::Text),
            ("choices.delta.content", TEXT, Want::Text),
            ("value", TEXT, Want::Text),
            ("choices.finish_reason", FINISH, Want::Raw),
        ],
    )
});

static RESPONSES_PATHS: LazyLock<Paths> = LazyLock::new(|| {
    table(
        &["usage", "response.usage"],
        &[
            ("response.model", MODEL, Want::Raw),
            ("response.service_tier", TIER, Want::Raw),
            ("response.error", ERROR, Want::Mark),
            ("response.error.code", ERROR_CODE, Want::Raw),
            ("response.error.type", ERROR_KIND, Want::Raw),
            ("code", ERROR_CODE, Want::Raw),
            ("delta", TEXT, Want::Text),
            ("item.name", CALL, Want::Text),
            ("output.content.text", TEXT | WHOLE, Want::Text),
            ("output.content.refusal", TEXT | WHOLE, Want::Text),
            ("output.summary.text", TEXT | WHOLE, Want::Text),
            ("output.name", CALL | WHOLE, Want::Text),
            ("output.arguments", TEXT | WHOLE, Want::Text),
            ("output.input", TEXT | WHOLE, Want::Text),
            ("output.code", TEXT | WHOLE, Want::Text),
        ],
    )
});

static PLAIN_PATHS: LazyLock<Paths> = LazyLock::new(|| {
    table(
        &["usage"],
        &[
            ("data.b64_json", IMAGE, Want::Mark),
            ("data.url", IMAGE, Want::Mark),
            // A transcript with all its details.
            ("duration", SECONDS, Want::Raw),
        ],
    )
});

static REALTIME_PATHS: LazyLock<Paths> = LazyLock::new(|| {
    table(
        &["response.usage"],
        &[("session.model", MODEL, Want::Raw), ("delta", TEXT, Want::Text), ("item.name", CALL, Want::Text)],
    )
});

static NO_PATHS: LazyLock<Paths> = LazyLock::new(|| table(&[], &[]));

pub(super) static CHAT: LazyLock<Rules> = LazyLock::new(|| Rules {
    paths: &CHAT_PATHS,
    merge: Merge::Replace,
    terminal: &["response.completed", "response.incomplete", "response.failed"],
    settle: |reports| settle(&reports.body),
});

pub(super) static COMPLETIONS: LazyLock<Rules> = LazyLock::new(|| Rules {
    paths: &COMPLETIONS_PATHS,
    merge: Merge::Replace,
    terminal: &[],
    settle: |reports| settle(&reports.body),
});

pub(super) static RESPONSES: LazyLock<Rules> = LazyLock::new(|| Rules {
    paths: &RESPONSES_PATHS,
    merge: Merge::Replace,
    terminal: &["response.completed", "response.incomplete", "response.failed", "error"],
    settle: |reports| settle(&reports.body),
});

/// Embeddings, images and audio: usage at the root, nothing that is output text.
pub(super) static PLAIN: LazyLock<Rules> = LazyLock::new(|| Rules {
    paths: &PLAIN_PATHS,
    merge: Merge::Replace,
    terminal: &["image_generation.completed", "image_edit.completed", "transcript.text.done", "speech.audio.done"],
    settle: |reports| settle(&reports.body),
});

/// Embeddings: tokens read are all there are, and some (Voyage) give only their total.
pub(super) static EMBEDDINGS: LazyLock<Rules> = LazyLock::new(|| Rules {
    paths: &PLAIN_PATHS,
    merge: Merge::Replace,
    terminal: &[],
    settle: |reports| {
        let mut usage = settle(&reports.body);
        if usage.output.is_none() {
            usage.input = usage.input.or(usage.total);
        }
        usage
    },
});

/// Each response of a session is a call of its own.
pub(super) static REALTIME: LazyLock<Rules> = LazyLock::new(|| Rules {
    paths: &REALTIME_PATHS,
    merge: Merge::Sum,
    terminal: &[],
    settle: |reports| settle(&reports.body),
});

/// Carries no consumption: only errors and the model's name are read.
pub(super) static NOTHING: LazyLock<Rules> =
    LazyLock::new(|| Rules { paths: &NO_PATHS, merge: Merge::Replace, terminal: &[], settle: |_| Usage::default() });

/// OpenAI's figures include the cache and the reasoning, unless the total says that something lies outside.
pub(super) fn settle(figures: &Figures) -> Usage {
    let mut usage = Usage {
        input: first(figures, &[Figure::Input, Figure::Prompt]),
        cached_input: first(figures, &[Figure::Cached, Figure::CachedAlias]),
        cache_write: figures.get(Figure::CacheWrite),
        output: figures.get(Figure::Output),
        reasoning: first(figures, &[Figure::Reasoning, Figure::ReasoningAlias]),
        total: figures.get(Figure::Total),
        cache_write_1h: None,
        audio_input: figures.get(Figure::AudioInput),
        audio_output: figures.get(Figure::AudioOutput),
        image_input: figures.get(Figure::ImageInput),
        image_output: figures.get(Figure::ImageOutput),
        cached_audio_input: figures.get(Figure::CachedAudioInput),
        cached_image_input: figures.get(Figure::CachedImageInput),
        searches: figures.get(Figure::Searches),
        images: figures.get(Figure::Images),
        audio_input_ms: figures.get(Figure::AudioMs),
    };
    if let (Some(input), Some(output), Some(total)) = (usage.input, usage.output, usage.total) {
        let outside = total.saturating_sub(input.saturating_add(output));
        if outside > 0 {
            add_outside(&mut usage, figures, outside);
        }
    }
    // Perplexity counts reasoning that is in neither its output nor its total; that is no part of the output.
    if figures.get(Figure::Reasoning).is_none() {
        usage.reasoning = usage.reasoning.filter(|reasoning| usage.output.is_some_and(|output| *reasoning <= output));
    }
    usage.total = usage.total.or_else(|| super::figures::sum(&[usage.input, usage.output]));
    usage
}

/// Gives `outside`, tokens that the total has and the parts have not, to the part that lacks exactly them.
fn add_outside(usage: &mut Usage, figures: &Figures, outside: u64) {
    let cache = usage.cached_input.unwrap_or(0).saturating_add(usage.cache_write.unwrap_or(0));
    let has = |figure| figures.get(figure) == Some(outside);
    if usage.reasoning == Some(outside) || has(Figure::AudioOutput) {
        usage.output = usage.output.map(|output| output + outside);
    } else if has(Figure::AudioInput)
        || cache == outside
        || figures.get(Figure::AudioSeconds).is_some_and(|seconds| seconds > 0)
    {
        usage.input = usage.input.map(|input| input + outside);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_total_decides_what_lies_outside() {
        use Figure::*;
        for (name, given, input, output) in [
            ("plain", &[(Input, 10), (Output, 5), (Total, 15), (Reasoning, 3)][..], 10, 5),
            ("xai", &[(Input, 49), (Output, 32), (Total, 264), (Reasoning, 183)], 49, 215),
            ("mistral audio", &[(Input, 4), (Output, 635), (Total, 3264), (AudioSeconds, 203)], 2629, 635),
            ("cache outside", &[(Input, 10), (Output, 5), (Total, 115), (CachedAlias, 60), (CacheWrite, 40)], 110, 5),
            ("alias outside", &[(Input, 3), (Output, 7), (Total, 100), (ReasoningAlias, 90)], 3, 97),
            ("beside", &[(Input, 33), (Output, 70), (Total, 103), (ReasoningAlias, 900)], 33, 70),
            ("unexplained", &[(Input, 10), (Output, 5), (Total, 99)], 10, 5),
            ("total too small", &[(Input, 10), (Output, 5), (Total, 1)], 10, 5),
        ] {
            let mut figures = Figures::default();
            for &(figure, value) in given {
                figures.set(figure, value);
            }
            let usage = settle(&figures);
            assert_eq!((usage.input, usage.output), (Some(input), Some(output)), "{name}");
        }
    }
}
