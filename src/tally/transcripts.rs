//! Replays recorded provider traffic through the observer and compares with what each exchange really consumed.

use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use http::{HeaderMap, HeaderName, HeaderValue};
use serde_json::Value;

use super::{Observer, Tally, Wire};
use crate::unit::Usage;

pub(super) struct Exchange {
    pub(super) id: String,
    pub(super) provider: String,
    wire: Wire,
    stream_asked: bool,
    status: u16,
    pub(super) headers: HeaderMap,
    pub(super) body: Vec<u8>,
    plain: Vec<u8>,
    pub(super) expected: Vec<Usage>,
    pub(super) model_requested: Option<String>,
    pub(super) model_reported: Option<String>,
}

/// The folder, or `None` where it was not laid out.
pub(super) fn folder() -> Option<PathBuf> {
    #[expect(clippy::disallowed_methods, reason = "tests are told where the recordings are")]
    let named = std::env::var_os("SIDEKEY_TRANSCRIPTS").map(PathBuf::from);
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let near = ["../shared/transcripts", "../../shared/transcripts"].map(|path| root.join(path));
    named.into_iter().chain(near).find(|path| path.join("index.jsonl").is_file())
}

fn wire(name: &str) -> Wire {
    match name {
        "anthropic-messages" => Wire::AnthropicMessages,
        "anthropic-complete" => Wire::AnthropicComplete,
        "bedrock-converse" => Wire::BedrockConverse,
        "bedrock-invoke" => Wire::BedrockInvoke,
        "gemini-generate" => Wire::GeminiGenerate,
        "gemini-embed" => Wire::GeminiEmbed,
        "openai-chat" | "mistral-chat" | "groq-chat" => Wire::OpenAiChat,
        "openai-completions" => Wire::OpenAiCompletions,
        "openai-responses" => Wire::OpenAiResponses,
        "openai-embeddings" | "mistral-embeddings" | "voyage-embeddings" => Wire::OpenAiEmbeddings,
        "openai-images" => Wire::OpenAiImages,
        "openai-audio" => Wire::OpenAiAudio,
        name if name.starts_with("cohere-") => Wire::Cohere,
        name if name.starts_with("ollama-") => Wire::Ollama,
        _ => Wire::None,
    }
}

fn usage(value: &Value) -> Usage {
    let figure = |name: &str| value[name].as_u64();
    Usage {
        input: figure("input_tokens"),
        cached_input: figure("cached_input_tokens"),
        cache_write: figure("cache_write_tokens"),
        output: figure("output_tokens"),
        reasoning: figure("reasoning_tokens"),
        total: figure("total_tokens"),
        ..Usage::default()
    }
}

pub(super) fn exchanges() -> Option<Vec<Exchange>> {
    let Some(folder) = folder() else {
        println!("no transcripts here: set SIDEKEY_TRANSCRIPTS to replay them");
        return None;
    };
    let index = std::fs::read_to_string(folder.join("index.jsonl")).unwrap();
    Some(index.lines().map(|line| exchange(&folder, &serde_json::from_str(line).unwrap())).collect())
}

fn exchange(folder: &Path, line: &Value) -> Exchange {
    let text = |name: &str| line[name].as_str().map(str::to_owned);
    let mut headers = HeaderMap::new();
    for pair in line["response_headers"].as_array().unwrap() {
        let name = HeaderName::try_from(pair[0].as_str().unwrap()).unwrap();
        headers.append(name, HeaderValue::try_from(pair[1].as_str().unwrap()).unwrap());
    }
    let body = text("response_body_file").map(|file| std::fs::read(folder.join(file)).unwrap()).unwrap_or_default();
    let mut plain = body.clone();
    if line["content_encoding"] == "gzip" {
        plain.clear();
        flate2::read::GzDecoder::new(&*body).read_to_end(&mut plain).unwrap();
    }
    let mut expected = vec![usage(&line["expected"])];
    expected.extend(line["expected_alt"].as_array().unwrap().iter().map(usage));
    Exchange {
        id: text("id").unwrap(),
        provider: text("provider").unwrap(),
        wire: wire(line["wire"].as_str().unwrap()),
        stream_asked: line["stream_requested"] == true,
        status: line["status"].as_u64().unwrap() as u16,
        headers,
        body,
        plain,
        expected,
        model_requested: text("model_requested"),
        model_reported: text("model_reported"),
    }
}

impl Exchange {
    pub(super) fn replay(&self, headers: &HeaderMap, body: &[u8], size: usize) -> Tally {
        let mut observer = Observer::new(self.wire, self.stream_asked, self.status, headers);
        body.chunks(size).for_each(|chunk| observer.feed(chunk));
        observer.finish()
    }

    fn recoded(&self, coding: &'static str) -> (HeaderMap, Vec<u8>) {
        let mut headers = self.headers.clone();
        headers.insert(http::header::CONTENT_ENCODING, HeaderValue::from_static(coding));
        (headers, encode(coding, &self.plain))
    }
}

fn encode(coding: &str, plain: &[u8]) -> Vec<u8> {
    let mut packed = Vec::new();
    match coding {
        "br" => brotli::CompressorWriter::new(&mut packed, 4096, 3, 20).write_all(plain).unwrap(),
        "zstd" => packed = zstd::encode_all(plain, 1).unwrap(),
        "deflate" => {
            let mut encoder = flate2::write::ZlibEncoder::new(&mut packed, flate2::Compression::fast());
            encoder.write_all(plain).unwrap();
        }
        _ => {
            let mut encoder = flate2::write::GzEncoder::new(&mut packed, flate2::Compression::fast());
            encoder.write_all(plain).unwrap();
        }
    }
    packed
}

#[test]
fn every_recorded_exchange_is_counted_as_the_provider_did() {
    let Some(exchanges) = exchanges() else { return };
    let (mut reported, mut silent, mut wrong) = (0, 0, Vec::new());
    for exchange in &exchanges {
        let tally = exchange.replay(&exchange.headers, &exchange.body, usize::MAX);
        // The finer figures are not in the index.
        let Usage { input, cached_input, cache_write, output, reasoning, total, .. } = tally.usage;
        let six = Usage { input, cached_input, cache_write, output, reasoning, total, ..Usage::default() };
        if !exchange.expected.contains(&six) {
            wrong.push(format!("{}: {:?}, want {:?}", exchange.id, tally.usage, exchange.expected));
        } else if exchange.expected[0].is_empty() {
            silent += 1;
        } else {
            reported += 1;
        }
    }
    println!("{} exchanges: {reported} reported and right, {silent} silent and right", exchanges.len());
    assert!(wrong.is_empty(), "{} of {} wrong:\n{}", wrong.len(), exchanges.len(), wrong.join("\n"));
}

#[test]
fn chunks_and_codings_change_nothing() {
    let Some(exchanges) = exchanges() else { return };
    let mut runs = 0;
    for exchange in &exchanges {
        let whole = exchange.replay(&exchange.headers, &exchange.body, usize::MAX);
        for size in [1, 7, 64, 1460, 16 * 1024] {
            assert_eq!(exchange.replay(&exchange.headers, &exchange.body, size), whole, "{} by {size}", exchange.id);
            runs += 1;
        }
        for coding in ["gzip", "br", "zstd", "deflate"] {
            let (headers, body) = exchange.recoded(coding);
            for size in [13, 1460] {
                let mut tally = exchange.replay(&headers, &body, size);
                if exchange.plain.is_empty() {
                    tally = whole.clone();
                }
                assert_eq!(tally, whole, "{} in {coding} by {size}", exchange.id);
                runs += 1;
            }
        }
    }
    println!("{runs} replays agree");
}

#[test]
fn the_model_is_the_one_reported() {
    let Some(exchanges) = exchanges() else { return };
    let (mut same, mut other) = (0, Vec::new());
    // The index does not look for a model in Anthropic's retired completions.
    for exchange in exchanges.iter().filter(|one| !matches!(one.wire, Wire::None | Wire::AnthropicComplete)) {
        let tally = exchange.replay(&exchange.headers, &exchange.body, usize::MAX);
        if tally.model_reported.as_deref() == exchange.model_reported.as_deref() {
            same += 1;
        } else {
            other.push(format!("{}: {:?}, index {:?}", exchange.id, tally.model_reported, exchange.model_reported));
        }
    }
    println!("{same} models as in the index");
    assert!(other.is_empty(), "{}", other.join("\n"));
}

/// Reasoning that is counted but not shown cannot be estimated: those answers are printed, not judged.
#[test]
#[cfg(feature = "tokenizer")]
fn estimates_come_near_the_reported_output() {
    let Some(exchanges) = exchanges() else { return };
    let mut errors: std::collections::BTreeMap<&str, Vec<f64>> = std::collections::BTreeMap::new();
    for exchange in exchanges.iter().filter(|exchange| exchange.wire.has_output() && exchange.status < 400) {
        let tally = exchange.replay(&exchange.headers, &exchange.body, usize::MAX);
        let hidden = tally.usage.reasoning.unwrap_or(0);
        let Some(output) = tally.usage.output.filter(|&output| output > 0) else { continue };
        let model = tally.model_reported.as_deref().or(exchange.model_requested.as_deref());
        let guess = crate::tokens::estimate_output(model, &tally.text);
        let error = (guess as f64 - output as f64) / output as f64;
        let openai = matches!(exchange.provider.as_str(), "openai" | "azure");
        let groups = match (hidden, openai) {
            (0, true) => &["= openai", &exchange.provider][..],
            (0, false) => &["= others", &exchange.provider],
            _ => &["~ hidden reasoning"],
        };
        for &group in groups {
            errors.entry(group).or_default().push(error);
        }
    }
    let mut medians = std::collections::BTreeMap::new();
    for (group, mut list) in errors {
        list.sort_by(|a, b| a.abs().total_cmp(&b.abs()));
        let median = list[list.len() / 2].abs();
        let mean = list.iter().sum::<f64>() / list.len() as f64;
        println!(
            "{group:12} {:3} answers, median error {:5.1} %, mean {:+6.1} %",
            list.len(),
            median * 100.0,
            mean * 100.0
        );
        medians.insert(group, median);
    }
    assert!(medians["= openai"] <= 0.05, "{medians:?}");
    assert!(medians["= others"] <= 0.15, "{medians:?}");
}
