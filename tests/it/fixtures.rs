//! Small exchanges written for sidekey, one for every wire, framing, coding and oddity it must know.
//!
//! `tests/fixtures/<provider>/<name>.json` says path, request, answer and the figures that are right; the body stands
//! in it (`json`, `frames`) or beside it (`body`).

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use serde_json::Value;

use crate::support::cut::Cut;
use crate::support::encoding::Encoding;
use crate::support::eventstream;
use crate::support::http1::Headers;
use crate::support::replay::{Case, Exchange, Figures, replay};

fn load() -> Vec<Arc<Exchange>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let mut found = vec![];
    for folder in std::fs::read_dir(&root).expect("tests/fixtures").flatten() {
        let provider = folder.file_name().to_string_lossy().into_owned();
        for file in std::fs::read_dir(folder.path()).expect("a folder").flatten() {
            let name = file.file_name().to_string_lossy().into_owned();
            let text = std::fs::read(file.path()).expect("a readable file");
            // A body may be JSON as well: a manifest is what has a path.
            let manifest: Option<Value> =
                if name.ends_with(".json") { serde_json::from_slice(&text).ok() } else { None };
            if let Some(manifest) = manifest.filter(|manifest| manifest["path"].is_string()) {
                found.push(Arc::new(exchange(&provider, &name, &manifest, &folder.path())));
            }
        }
    }
    found.sort_by(|a, b| a.id.cmp(&b.id));
    found
}

fn exchange(provider: &str, name: &str, manifest: &Value, folder: &Path) -> Exchange {
    let encoding = manifest["encoding"].as_str().map(Encoding::parse);
    let plain: Bytes = match (&manifest["body"], &manifest["frames"]) {
        (Value::String(file), _) => std::fs::read(folder.join(file)).expect("the body beside it").into(),
        (_, Value::Array(frames)) => {
            frames.iter().flat_map(|frame| eventstream::frame(&frame[0], &frame[1])).collect::<Vec<_>>().into()
        }
        _ => manifest["json"].to_string().into(),
    };
    let mut response_headers = Headers::default();
    for pair in manifest["headers"].as_array().expect("headers") {
        response_headers.push(pair[0].as_str().expect("a name"), pair[1].as_str().expect("a value"));
    }
    let request = &manifest["request"];
    let mut request_headers = Headers::default();
    if !request.is_null() {
        request_headers.push("content-type", "application/json");
    }
    let first = Figures::read(&manifest["expected"]);
    let others = manifest["expected_alt"].as_array().into_iter().flatten().map(Figures::read);
    Exchange {
        id: format!("{provider}/{name}"),
        provider: provider.to_owned(),
        method: if request.is_null() { "GET" } else { "POST" }.to_owned(),
        path: manifest["path"].as_str().expect("a path").to_owned(),
        auth: match manifest["auth"].as_str() {
            Some("x-api-key") => "x-api-key",
            Some("api-key") => "api-key",
            Some("x-goog-api-key") => "x-goog-api-key",
            _ => "authorization",
        },
        request_headers,
        request_body: if request.is_null() { Bytes::new() } else { request.to_string().into() },
        status: manifest["status"].as_u64().and_then(|n| u16::try_from(n).ok()).expect("a status"),
        response_headers,
        body: encoding.map_or_else(|| plain.clone(), |encoding| encoding.encode(&plain)),
        encoding,
        expected: std::iter::once(first).chain(others).filter(|figures| !figures.is_empty()).collect(),
        may_be_silent: first.is_empty(),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fixtures_pass_untouched_and_are_counted() {
    let exchanges = load();
    let mut ran = BTreeMap::<&str, usize>::new();
    let mut cases = vec![];
    for (number, exchange) in exchanges.iter().enumerate() {
        *ran.entry(&exchange.provider).or_default() += 1;
        let seed = 1000 + number as u64;
        let cuts = [Cut::Whole, Cut::OneByte, Cut::Random(seed), Cut::Random(seed + 7919)];
        cases.extend(cuts.map(|cut| Case::as_recorded(exchange, cut)));
    }
    let outcome = replay(cases, 8).await;
    eprintln!("fixtures: {} exchanges, {} cases, {} tallies; {ran:?}", exchanges.len(), outcome.cases, outcome.tallies);
    assert!(exchanges.len() > 80 && outcome.tallies > 0, "fixtures are missing");
    outcome.assert_clean("fixtures");
}
