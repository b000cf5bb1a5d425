//! Recorded traffic of real providers, sent through the real program: bytes as they were, tokens as reported.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use serde_json::Value;

use crate::support::client::Request;
use crate::support::cut::Cut;
use crate::support::encoding::Encoding;
use crate::support::http1::{Headers, is_hop_by_hop};
use crate::support::provider::Provider;
use crate::support::replay::{self, Case, Exchange, Figures, real_key, replay};
use crate::support::script::Message;
use crate::support::sidekey::Sidekey;

/// The folder of recordings: `SIDEKEY_TRANSCRIPTS`, else beside the checkout. `None`, said loudly, when there is
/// none; on a build server that is a failure.
pub(crate) fn folder() -> Option<PathBuf> {
    let beside = || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../shared/transcripts");
    let folder = std::env::var_os("SIDEKEY_TRANSCRIPTS").map_or_else(beside, PathBuf::from);
    if folder.join("index.jsonl").is_file() {
        return Some(folder);
    }
    let ci = std::env::var_os("CI").is_some_and(|value| value == "true");
    assert!(!ci, "no recorded exchanges in {}: set SIDEKEY_TRANSCRIPTS", folder.display());
    eprintln!("SKIPPED: no recorded exchanges in {}; only the fixtures are replayed", folder.display());
    None
}

/// A recorded exchange, and what the index says of it beside.
#[derive(Clone, Debug)]
pub(crate) struct Recorded {
    pub(crate) exchange: Arc<Exchange>,
    pub(crate) wire_family: String,
    pub(crate) framing: String,
}

/// Every exchange of the index.
pub(crate) fn load(folder: &std::path::Path) -> Vec<Recorded> {
    let index = std::fs::read_to_string(folder.join("index.jsonl")).expect("index.jsonl is readable");
    let bytes = |row: &Value, field: &str| match row[field].as_str() {
        Some(name) => std::fs::read(folder.join(name)).unwrap_or_else(|e| panic!("{name}: {e}")).into(),
        None => Bytes::new(),
    };
    index
        .lines()
        .map(|line| {
            let row: Value = serde_json::from_str(line).expect("a line of JSON");
            let text = |field: &str| row[field].as_str().unwrap_or_default().to_owned();
            let (expected, may_be_silent) = expected(&row);
            let exchange = Exchange {
                id: text("id"),
                provider: provider(&text("provider")).to_owned(),
                method: text("method"),
                path: text("path"),
                auth: auth(&text("auth_style")),
                request_headers: headers(&row["request_headers"], replay::is_left_out),
                request_body: request_body(&row, bytes(&row, "request_body_file")),
                status: row["status"].as_u64().and_then(|n| u16::try_from(n).ok()).expect("a status"),
                response_headers: headers(&row["response_headers"], is_framing),
                body: bytes(&row, "response_body_file"),
                encoding: row["content_encoding"].as_str().map(Encoding::parse),
                expected,
                may_be_silent,
            };
            Recorded { exchange: Arc::new(exchange), wire_family: text("wire_family"), framing: text("framing") }
        })
        .collect()
}

/// sidekey's name for a provider of the index.
fn provider(name: &str) -> &str {
    match name {
        "azure" => "azure-openai",
        "local" => "vllm",
        other => other,
    }
}

fn auth(style: &str) -> &'static str {
    match style {
        "x-api-key" => "x-api-key",
        "api-key" => "api-key",
        "x-goog-api-key" => "x-goog-api-key",
        // A signature cannot be made of a virtual key: those clients take a bearer key.
        "bearer" | "sigv4" => "authorization",
        other => panic!("unknown auth_style {other}"),
    }
}

fn is_framing(name: &str) -> bool {
    is_hop_by_hop(name) || ["content-length", "content-encoding"].iter().any(|n| n.eq_ignore_ascii_case(name))
}

fn headers(list: &Value, leave_out: fn(&str) -> bool) -> Headers {
    let mut headers = Headers::default();
    for pair in list.as_array().into_iter().flatten() {
        let (name, value) = (pair[0].as_str().expect("a name"), pair[1].as_str().expect("a value"));
        if !leave_out(name) {
            headers.push(name, value.trim());
        }
    }
    headers
}

/// Where only an answer was published, a request that could have led to it.
fn request_body(row: &Value, recorded: Bytes) -> Bytes {
    if row["request_fidelity"] != "absent" || row["method"] != "POST" {
        return recorded;
    }
    let model = row["model_requested"].as_str().or_else(|| row["model_reported"].as_str()).unwrap_or("some-model");
    serde_json::json!({"model": model, "stream": row["streaming"]}).to_string().into()
}

/// The readings that are right, and whether silence is one of them.
fn expected(row: &Value) -> (Vec<Figures>, bool) {
    let others = row["expected_alt"].as_array().into_iter().flatten().map(Figures::read);
    let readings: Vec<_> = std::iter::once(Figures::read(&row["expected"])).chain(others).collect();
    let silent = readings.iter().any(|figures| figures.is_empty());
    (readings.into_iter().filter(|figures| !figures.is_empty()).collect(), silent)
}

/// True for answers that blame the key or the provider: sidekey acts on these instead of passing them on at once.
fn is_refusal(exchange: &Exchange) -> bool {
    let bad_key = || memchr::memmem::find(&exchange.body, b"API_KEY_INVALID").is_some();
    match exchange.status {
        401 | 402 | 403 | 429 => true,
        400 => exchange.provider == "gemini" && bad_key(),
        status => status >= 500,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn recorded_exchanges_pass_untouched_and_are_counted() {
    let Some(folder) = folder() else { return };
    let recorded = load(&folder);
    let started = tokio::time::Instant::now();
    let mut cases = vec![];
    let mut ran = BTreeMap::<String, usize>::new();
    for (number, Recorded { exchange, wire_family, .. }) in recorded.iter().enumerate() {
        if is_refusal(exchange) {
            continue;
        }
        *ran.entry(wire_family.clone()).or_default() += 1;
        let seed = number as u64;
        cases.push(Case::as_recorded(exchange, Cut::Whole));
        if exchange.body.is_empty() {
            continue;
        }
        let cuts = [Cut::OneByte, Cut::Random(2 * seed), Cut::Random(2 * seed + 1)];
        cases.extend(cuts.map(|cut| Case::as_recorded(exchange, cut)));
        if !exchange.expected.is_empty() {
            cases.extend(Encoding::ALL.map(|encoding| Case::recoded(exchange, encoding, seed)));
        }
    }
    let outcome = replay(cases, 8).await;
    let exchanges: usize = ran.values().sum();
    eprintln!(
        "transcripts: {exchanges} exchanges, {} cases, {} tallies, {:.1?}; {ran:?}",
        outcome.cases,
        outcome.tallies,
        started.elapsed()
    );
    assert!(exchanges > 0 && outcome.tallies > 0, "nothing ran");
    outcome.assert_clean("transcripts");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn recorded_refusals_are_passed_on_or_replaced() {
    let Some(folder) = folder() else { return };
    let refusals: Vec<_> = load(&folder).into_iter().map(|r| r.exchange).filter(|e| is_refusal(e)).collect();
    let provider = Provider::always(Message::json(500, "{}")).await;
    let sidekey = Sidekey::start(&replay::options(&refusals, &provider.url())).await;
    let virtual_key = sidekey.create_key(&[]).await.key;
    let mut faults = vec![];
    for (number, exchange) in refusals.iter().enumerate() {
        // A key of its own for each: a refused one is out of service, and its breaker open.
        let name = format!("r{number}");
        let secret = format!("{}-{number}", real_key(&exchange.provider));
        sidekey.add_provider_key_as(&exchange.provider, &secret, &["--name", &name]).await;
        let case = Case::as_recorded(exchange, Cut::Random(number as u64));
        let mut message = Message::new(exchange.status).framed(case.framing).chunks(case.cut.apply(&case.body));
        message.headers = exchange.response_headers.clone();
        if let Some(encoding) = exchange.encoding {
            message = message.header("content-encoding", encoding.name());
        }
        let before = provider.count();
        provider.push(message);
        let mut request = Request::new(&exchange.method, &format!("/{}{}", exchange.provider, exchange.path));
        request.headers = exchange.request_headers.clone();
        let presented =
            if exchange.auth == "authorization" { format!("Bearer {virtual_key}") } else { virtual_key.clone() };
        let request = request.header(exchange.auth, presented).body(exchange.request_body.clone());
        let answer = sidekey.send(&request).await;
        if provider.count() != before + 1 {
            faults.push(format!("{}: {} requests went upstream", exchange.id, provider.count() - before));
        }
        // The provider's own words about a key may echo it: sidekey says it in its own.
        if matches!(exchange.status, 400 | 401 | 403) {
            if answer.status != 502 || answer.body == exchange.body {
                faults.push(format!("{}: {} instead of our own 502", exchange.id, answer.status));
            }
            if answer.header("x-should-retry") != Some("false") {
                faults.push(format!("{}: no x-should-retry: false", exchange.id));
            }
        } else {
            let found = replay::compare_answer(&case, &answer);
            faults.extend(found.into_iter().map(|fault| format!("{}: {fault}", exchange.id)));
        }
        sidekey.ok(&["provider-key", "disable", &name]).await;
    }
    eprintln!("transcripts: {} refusals", refusals.len());
    assert!(!refusals.is_empty(), "nothing ran");
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}
