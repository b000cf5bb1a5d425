//! Replays exchanges through sidekey and says what came out different.
//!
//! Owns the comparison; `transcripts` and `fixtures` say which exchanges.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use serde_json::Value;
use tokio::task::JoinSet;

use super::client::{Answer, Client, Request};
use super::cut::Cut;
use super::encoding::Encoding;
use super::http1::{Headers, is_hop_by_hop};
use super::provider::{Provider, Seen};
use super::script::{Framing, Message, Reply};
use super::sidekey::{Options, Sidekey};

/// Figures of one call: input, cached input, cache write, output, reasoning, total.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Figures(pub(crate) [Option<u64>; 6]);

impl Figures {
    /// From an object with the ledger's names, with or without the index's suffix.
    pub(crate) fn read(value: &Value) -> Self {
        let names = ["input", "cached_input", "cache_write", "output", "reasoning", "total"];
        Self(names.map(|name| {
            let long = format!("{name}_tokens");
            value.get(name).or_else(|| value.get(&long)).and_then(Value::as_u64)
        }))
    }

    pub(crate) fn is_empty(self) -> bool {
        self == Self::default()
    }

    pub(crate) fn output(self) -> Option<u64> {
        self.0[3]
    }

    pub(crate) fn reasoning(self) -> Option<u64> {
        self.0[4]
    }
}

/// One recorded request and its answer.
#[derive(Clone, Debug)]
pub(crate) struct Exchange {
    pub(crate) id: String,
    /// sidekey's name of the provider: the first part of the path.
    pub(crate) provider: String,
    pub(crate) method: String,
    /// The provider's own path, with its query.
    pub(crate) path: String,
    /// The header the virtual key goes into.
    pub(crate) auth: &'static str,
    pub(crate) request_headers: Headers,
    pub(crate) request_body: Bytes,
    pub(crate) status: u16,
    /// Without framing, coding and what belongs to a connection.
    pub(crate) response_headers: Headers,
    /// As on the wire: coded by `encoding`.
    pub(crate) body: Bytes,
    pub(crate) encoding: Option<Encoding>,
    /// Readings that are right; empty when the call reports none.
    pub(crate) expected: Vec<Figures>,
    /// True when "nothing was reported" is right, alone or beside `expected`.
    pub(crate) may_be_silent: bool,
}

/// One way to send an exchange.
#[derive(Clone, Debug)]
pub(crate) struct Case {
    pub(crate) exchange: Arc<Exchange>,
    pub(crate) cut: Cut,
    /// The body sent: coded as `encoding` says.
    pub(crate) body: Bytes,
    pub(crate) encoding: Option<Encoding>,
    pub(crate) framing: Framing,
}

/// Where the case is named, so that the provider knows what to answer.
const CASE: &str = "x-test-case";

impl Case {
    /// The exchange as it was recorded.
    pub(crate) fn as_recorded(exchange: &Arc<Exchange>, cut: Cut) -> Self {
        let bodiless = exchange.status == 204 || exchange.status == 304;
        // Chunk borders exist only where there are chunks.
        let framing = match cut {
            _ if bodiless => Framing::Bodiless,
            Cut::Whole => Framing::Length,
            Cut::OneByte | Cut::Random(_) => Framing::Chunked,
        };
        let exchange = Arc::clone(exchange);
        Self { cut, body: exchange.body.clone(), encoding: exchange.encoding, framing, exchange }
    }

    /// The same content in another coding.
    pub(crate) fn recoded(exchange: &Arc<Exchange>, encoding: Encoding, seed: u64) -> Self {
        let plain = exchange.encoding.map_or_else(|| exchange.body.clone(), |coding| coding.decode(&exchange.body));
        let body = encoding.encode(&plain);
        let exchange = Arc::clone(exchange);
        Self { cut: Cut::Random(seed), body, encoding: Some(encoding), framing: Framing::Chunked, exchange }
    }

    fn reply_headers(&self) -> Headers {
        let mut headers = self.exchange.response_headers.clone();
        if let Some(encoding) = self.encoding {
            headers.push("Content-Encoding", encoding.name());
        }
        headers
    }

    fn reply(&self) -> Reply {
        let mut message = Message::new(self.exchange.status).framed(self.framing).chunks(self.cut.apply(&self.body));
        message.headers = self.reply_headers();
        message.into()
    }

    fn request(&self, number: usize, key: &str) -> Request {
        let exchange = &self.exchange;
        let mut request = Request::new(&exchange.method, &format!("/{}{}", exchange.provider, exchange.path));
        request.headers = self.forwarded(number);
        let value = if exchange.auth == "authorization" { format!("Bearer {key}") } else { key.to_owned() };
        request.header(exchange.auth, value).body(exchange.request_body.clone())
    }

    /// The headers that must reach the provider as they are.
    fn forwarded(&self, number: usize) -> Headers {
        let mut headers = self.exchange.request_headers.clone();
        headers.push(CASE, number.to_string());
        headers
    }

    pub(crate) fn name(&self) -> String {
        let coding = self.encoding.map_or("identity", Encoding::name);
        format!("{} [{:?} {coding}]", self.exchange.id, self.cut)
    }
}

/// Headers of a request that a replay leaves out: the connection's, and credentials other than its own.
pub(crate) fn is_left_out(name: &str) -> bool {
    const NAMES: [&str; 8] = [
        "host",
        "content-length",
        "authorization",
        "x-api-key",
        "api-key",
        "x-goog-api-key",
        "x-amz-security-token",
        "cookie",
    ];
    is_hop_by_hop(name) || name.eq_ignore_ascii_case("expect") || NAMES.iter().any(|n| n.eq_ignore_ascii_case(name))
}

/// The real key of a provider in a replay.
pub(crate) fn real_key(provider: &str) -> String {
    format!("real-{provider}-Kq7WmZ3xTn9vRb2cYh5dJf8gLs4pAe6u")
}

/// Where a provider wants its key.
fn real_credential(provider: &str) -> (&'static str, String) {
    let key = real_key(provider);
    match provider {
        "anthropic" => ("x-api-key", key),
        "azure-openai" => ("api-key", key),
        "gemini" => ("x-goog-api-key", key),
        _ => ("authorization", format!("Bearer {key}")),
    }
}

/// Options that send every provider of `exchanges` to `upstream`.
pub(crate) fn options<'a>(exchanges: impl IntoIterator<Item = &'a Arc<Exchange>>, upstream: &str) -> Options {
    let mut names: Vec<_> = exchanges.into_iter().map(|exchange| exchange.provider.as_str()).collect();
    names.sort_unstable();
    names.dedup();
    names.into_iter().fold(Options::new(), |options, name| options.provider(name, upstream))
}

/// What a run gave.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    /// What was wrong, one line each.
    pub(crate) faults: Vec<String>,
    /// Cases sent.
    pub(crate) cases: usize,
    /// Tallies compared with expected figures.
    pub(crate) tallies: usize,
    /// The entry of each case; null where there is none.
    pub(crate) entries: Vec<Value>,
}

impl Outcome {
    /// Panics with the first faults, if there are any.
    pub(crate) fn assert_clean(&self, what: &str) {
        let shown: Vec<_> = self.faults.iter().take(60).cloned().collect();
        let count = self.faults.len();
        assert!(count == 0, "{what}: {count} faults in {} cases; the first:\n{}", self.cases, shown.join("\n"));
    }
}

/// Sends all cases through one sidekey, `workers` at a time, and compares everything.
pub(crate) async fn replay(cases: Vec<Case>, workers: usize) -> Outcome {
    let cases = Arc::new(cases);
    let answers = Arc::clone(&cases);
    let provider = Provider::start(move |seen| {
        let number = seen.header(CASE).and_then(|number| number.parse::<usize>().ok());
        let case = number.and_then(|number| answers.get(number));
        case.map_or_else(|| Message::json(500, r#"{"error":"no such case"}"#).into(), Case::reply)
    })
    .await;
    let exchanges: Vec<_> = cases.iter().map(|case| Arc::clone(&case.exchange)).collect();
    let sidekey = Sidekey::start(&options(&exchanges, &provider.url())).await;
    let mut names: Vec<_> = exchanges.iter().map(|exchange| exchange.provider.clone()).collect();
    names.sort_unstable();
    names.dedup();
    for name in &names {
        sidekey.add_provider_key(name, &real_key(name)).await;
    }
    let key = sidekey.create_key(&[]).await;

    let next = Arc::new(AtomicUsize::new(0));
    let mut tasks = JoinSet::new();
    for _ in 0..workers {
        tasks.spawn(work(Arc::clone(&cases), Arc::clone(&next), sidekey.proxy, key.key.clone()));
    }
    let mut outcome = Outcome { cases: cases.len(), ..Outcome::default() };
    let mut request_ids = vec![String::new(); cases.len()];
    while let Some(done) = tasks.join_next().await {
        for (number, request_id, faults) in done.expect("workers do not panic") {
            request_ids[number] = request_id;
            outcome.faults.extend(faults.into_iter().map(|fault| format!("{}: {fault}", cases[number].name())));
        }
    }
    for (number, seen) in by_case(&provider) {
        let case = &cases[number];
        let faults = compare_request(case, number, &seen, &key.key, &provider.addr.to_string());
        outcome.faults.extend(faults.into_iter().map(|fault| format!("{}: upstream: {fault}", case.name())));
    }
    compare_ledger(&cases, &request_ids, &sidekey, &mut outcome).await;
    outcome.faults.sort();
    outcome
}

fn by_case(provider: &Provider) -> HashMap<usize, Arc<Seen>> {
    let number = |seen: &Seen| seen.header(CASE).and_then(|number| number.parse().ok());
    provider.seen().into_iter().filter_map(|seen| Some((number(&seen)?, seen))).collect()
}

async fn work(
    cases: Arc<Vec<Case>>,
    next: Arc<AtomicUsize>,
    proxy: std::net::SocketAddr,
    key: String,
) -> Vec<(usize, String, Vec<String>)> {
    let mut done = vec![];
    let mut client: Option<Client> = None;
    loop {
        let number = next.fetch_add(1, Ordering::Relaxed);
        let Some(case) = cases.get(number) else { return done };
        let mut connection = match client.take() {
            Some(connection) => connection,
            None => Client::connect(proxy).await.expect("sidekey listens"),
        };
        match connection.send(&case.request(number, &key)).await {
            Ok(answer) => {
                if answer.complete && !answer.headers.lists("connection", "close") {
                    client = Some(connection);
                }
                done.push((number, answer.request_id(), compare_answer(case, &answer)));
            }
            Err(error) => done.push((number, String::new(), vec![format!("no answer: {error}")])),
        }
    }
}

/// Added by sidekey, or the connection's own.
fn is_ours(name: &str) -> bool {
    const NAMES: [&str; 4] =
        ["x-ratelimit-limit-rpm", "x-ratelimit-remaining-rpm", "x-ratelimit-limit-tpm", "x-ratelimit-remaining-tpm"];
    is_hop_by_hop(name) || name.starts_with("x-sidekey-") || NAMES.contains(&name) || name == "content-length"
}

/// What differs between the answer scripted and the one that came.
pub(crate) fn compare_answer(case: &Case, answer: &Answer) -> Vec<String> {
    let mut faults = vec![];
    if answer.status != case.exchange.status {
        faults.push(format!(
            "status {} instead of {}: {}",
            answer.status,
            case.exchange.status,
            shorten(&answer.text())
        ));
    }
    if !answer.complete {
        faults.push("truncated".to_owned());
    }
    if answer.body != case.body {
        let at = answer.body.iter().zip(&case.body).take_while(|(a, b)| a == b).count();
        faults.push(format!(
            "body of {} bytes instead of {}, other from byte {at}",
            answer.body.len(),
            case.body.len()
        ));
    }
    let keep = |headers: &Headers| {
        let mut lines = headers.normal();
        lines.retain(|(name, _)| !is_ours(name));
        lines
    };
    diff("response header", &keep(&case.reply_headers()), &keep(&answer.headers), &mut faults);
    if case.framing == Framing::Length && answer.header("content-length") != Some(&case.body.len().to_string()) {
        faults.push(format!("content-length {:?} instead of {}", answer.header("content-length"), case.body.len()));
    }
    faults
}

fn compare_request(case: &Case, number: usize, seen: &Seen, key: &str, authority: &str) -> Vec<String> {
    let exchange = &case.exchange;
    let mut faults = vec![];
    if (seen.method.as_str(), seen.target.as_str()) != (exchange.method.as_str(), exchange.path.as_str()) {
        faults.push(format!("{} {} instead of {} {}", seen.method, seen.target, exchange.method, exchange.path));
    }
    if seen.body() != exchange.request_body {
        faults.push("the request's body differs".to_owned());
    }
    if seen.contains(key) {
        faults.push("the virtual key went upstream".to_owned());
    }
    if seen.header("host") != Some(authority) {
        faults.push(format!("host {:?} instead of {authority}", seen.header("host")));
    }
    let mut want = case.forwarded(number);
    let (name, value) = real_credential(&exchange.provider);
    want.push(name, value);
    let mut got = seen.headers.normal();
    got.retain(|(name, _)| name != "host" && name != "content-length" && !is_hop_by_hop(name));
    diff("header", &want.normal(), &got, &mut faults);
    faults
}

fn diff(what: &str, want: &[(String, String)], got: &[(String, String)], faults: &mut Vec<String>) {
    let count = |lines: &[(String, String)], line: &(String, String)| lines.iter().filter(|l| *l == line).count();
    for line in want {
        if count(got, line) < count(want, line) {
            faults.push(format!("{what} missing: {}: {}", line.0, shorten(&line.1)));
        }
    }
    for line in got {
        if count(got, line) > count(want, line) {
            faults.push(format!("{what} added: {}: {}", line.0, shorten(&line.1)));
        }
    }
    if faults.is_empty() && want != got {
        faults.push(format!("{what}s of one name changed their order"));
    }
}

fn shorten(text: &str) -> String {
    text.chars().take(160).collect()
}

async fn compare_ledger(cases: &[Case], request_ids: &[String], sidekey: &Sidekey, outcome: &mut Outcome) {
    // The last entries are written within milliseconds: once the newest is there, so are the others.
    let mut entries: HashMap<String, Value> = HashMap::new();
    for last in request_ids.iter().rev().filter(|id| !id.is_empty()).take(1) {
        sidekey.entry(last).await;
    }
    for _ in 0..50 {
        entries =
            sidekey.ledger().await.into_iter().map(|e| (e["request_id"].as_str().unwrap_or("").into(), e)).collect();
        if request_ids.iter().filter(|id| !id.is_empty()).all(|id| entries.contains_key(id)) {
            break;
        }
    }
    for (case, request_id) in cases.iter().zip(request_ids) {
        let entry = entries.remove(request_id).unwrap_or(Value::Null);
        outcome.entries.push(entry.clone());
        let fault = if request_id.is_empty() {
            Some("the answer had no x-sidekey-request-id".to_owned())
        } else if entry.is_null() {
            Some("not in the ledger".to_owned())
        } else {
            outcome.tallies += usize::from(!case.exchange.expected.is_empty());
            tally_fault(case, &entry)
        };
        outcome.faults.extend(fault.map(|fault| format!("{}: {fault}", case.name())));
    }
}

fn tally_fault(case: &Case, entry: &Value) -> Option<String> {
    let (expected, silent) = (&case.exchange.expected, case.exchange.may_be_silent);
    let (got, source) = (Figures::read(&entry["tokens"]), entry["tokens_source"].as_str().unwrap_or("absent"));
    let wanted = expected.first().map(|figures| figures.0);
    if source != "reported" {
        return (!silent).then(|| format!("tokens_source is {source}; expected {wanted:?}"));
    }
    (!expected.contains(&got)).then(|| format!("tally {:?} instead of {wanted:?}", got.0))
}
