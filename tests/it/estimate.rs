//! How well tokens are counted when the provider does not say: the recorded answers again, their usage cut out.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use serde_json::Value;

use crate::support::cut::Cut;
use crate::support::eventstream;
use crate::support::http1::Headers;
use crate::support::replay::{Case, Exchange, Figures, replay};
use crate::transcripts::{Recorded, folder, load};

/// Largest median error allowed, in percent: models whose tokenizer is public, and all others.
const OPENAI_MEDIAN: f64 = 5.0;
const OTHER_MEDIAN: f64 = 15.0;

/// Families whose answers hold generated text.
const FAMILIES: [&str; 11] = [
    "anthropic-messages",
    "bedrock-converse",
    "bedrock-invoke",
    "cohere-chat-v1",
    "cohere-chat-v2",
    "gemini-generate",
    "ollama-chat",
    "ollama-generate",
    "openai-chat",
    "openai-completions",
    "openai-responses",
];

/// Fields that hold usage on some wire, whatever else stands in them.
const USAGE: [&str; 13] = [
    "usage",
    "usageMetadata",
    "x_groq",
    "meta",
    "billed_units",
    "tokens",
    "prompt_eval_count",
    "eval_count",
    "amazon-bedrock-invocationMetrics",
    "inputTextTokenCount",
    "prompt_token_count",
    "generation_token_count",
    "timings",
];

/// Takes usage out of a value. What a model wrote is in strings, and stays.
fn cut(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.retain(|name, _| !USAGE.contains(&name.as_str()));
            fields.values_mut().for_each(cut);
        }
        Value::Array(items) => items.iter_mut().for_each(cut),
        _ => {}
    }
    if value["results"].is_array() {
        for result in value["results"].as_array_mut().into_iter().flatten() {
            result.as_object_mut().map(|fields| fields.remove("tokenCount"));
        }
    }
}

fn cut_json(text: &[u8]) -> Option<Vec<u8>> {
    let mut value: Value = serde_json::from_slice(text).ok()?;
    cut(&mut value);
    Some(value.to_string().into_bytes())
}

/// The body without usage, in the same framing; `None` when it cannot be taken apart.
fn without_usage(framing: &str, body: &[u8]) -> Option<Bytes> {
    match framing {
        "json" | "json-array" => cut_json(body).map(Bytes::from),
        "sse" | "ndjson" => {
            let mut out = vec![];
            for line in body.split_inclusive(|byte| *byte == b'\n') {
                let start = line.iter().position(|byte| *byte == b'{').unwrap_or(line.len());
                let prefix = &line[..start];
                let is_data = prefix.is_empty() || prefix.starts_with(b"data:");
                match cut_json(&line[start..]).filter(|_| is_data) {
                    Some(event) => {
                        out.extend_from_slice(prefix);
                        out.extend(event);
                        out.push(b'\n');
                    }
                    None => out.extend_from_slice(line),
                }
            }
            Some(out.into())
        }
        "aws-eventstream" => {
            let has_usage = |payload: &[u8]| {
                use base64::Engine as _;
                let value: Value = serde_json::from_slice(payload).unwrap_or_default();
                let coded = value["bytes"].as_str().unwrap_or_default();
                let inner = base64::engine::general_purpose::STANDARD.decode(coded).unwrap_or_default();
                let find = |bytes: &[u8], word: &str| memchr::memmem::find(bytes, word.as_bytes()).is_some();
                ["\"usage\"", "invocationMetrics"].iter().any(|word| find(payload, word) || find(&inner, word))
            };
            let frames = eventstream::split(body).into_iter().filter(|(_, payload)| !has_usage(payload));
            Some(frames.flat_map(|(frame, _)| frame).copied().collect::<Vec<_>>().into())
        }
        _ => None,
    }
}

fn keeps_counts(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    name.ends_with("-token-count") || name == "num_tokens" || name == "num_chars"
}

/// The exchange with nothing reported, and the output that was.
fn silenced(recorded: &Recorded) -> Option<(Arc<Exchange>, u64)> {
    let Recorded { exchange, wire_family, framing } = recorded;
    let figures = exchange.expected.first()?;
    let output = figures.output().filter(|output| *output > 0)?;
    // Reasoning is billed and often not shown: nobody could count it.
    let hidden = figures.reasoning().unwrap_or(0) > 0;
    if hidden || exchange.status != 200 || !FAMILIES.contains(&wire_family.as_str()) {
        return None;
    }
    let plain = exchange.encoding.map_or_else(|| exchange.body.clone(), |encoding| encoding.decode(&exchange.body));
    let headers = exchange.response_headers.0.iter().filter(|(name, _)| !keeps_counts(name)).cloned().collect();
    let silent = Exchange {
        body: without_usage(framing, &plain)?,
        encoding: None,
        response_headers: Headers(headers),
        expected: vec![],
        may_be_silent: true,
        ..Exchange::clone(exchange)
    };
    Some((Arc::new(silent), output))
}

fn median(errors: &mut [f64]) -> f64 {
    errors.sort_by(f64::total_cmp);
    errors.get(errors.len() / 2).copied().unwrap_or(0.0)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn outputs_without_usage_are_estimated_well() {
    let Some(folder) = folder() else { return };
    let silenced: Vec<_> = load(&folder).iter().filter_map(silenced).collect();
    let cases = silenced.iter().map(|(exchange, _)| Case::as_recorded(exchange, Cut::Whole)).collect();
    let outcome = replay(cases, 8).await;
    let mut groups = BTreeMap::<&str, Vec<f64>>::new();
    let (mut of_openai, mut of_others, mut faults) = (vec![], vec![], outcome.faults.clone());
    for ((exchange, output), entry) in silenced.iter().zip(&outcome.entries) {
        let got = Figures::read(&entry["tokens"]).output();
        let (Some(got), Some("estimated")) = (got, entry["tokens_source"].as_str()) else {
            faults.push(format!("{}: not estimated: {}", exchange.id, entry["tokens_source"]));
            continue;
        };
        let error = 100.0 * as_f64(got.abs_diff(*output)) / as_f64(*output);
        groups.entry(&exchange.provider).or_default().push(error);
        let openai = matches!(exchange.provider.as_str(), "openai" | "azure-openai");
        if openai { &mut of_openai } else { &mut of_others }.push(error);
    }
    for (provider, errors) in &mut groups {
        eprintln!("estimate: {provider}: median error {:.1} % of {} answers", median(errors), errors.len());
    }
    let (openai, others) = (median(&mut of_openai), median(&mut of_others));
    eprintln!("estimate: OpenAI {openai:.1} % of {}, others {others:.1} % of {}", of_openai.len(), of_others.len());
    assert!(faults.is_empty(), "{} faults; the first:\n{}", faults.len(), faults[..faults.len().min(40)].join("\n"));
    assert!(of_openai.len() > 10 && of_others.len() > 50, "too few answers ran");
    assert!(openai <= OPENAI_MEDIAN, "OpenAI models: {openai:.1} %");
    assert!(others <= OTHER_MEDIAN, "other models: {others:.1} %");
}

fn as_f64(n: u64) -> f64 {
    f64::from(u32::try_from(n).expect("tokens of one answer"))
}
