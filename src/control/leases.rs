//! `/api/pools/{pool}/lease` and `/usage`: a real key handed out for a while, and what was used of it.
//!
//! Owns who may ask, the reservation, the reports and the end; leaves the choice to the [`super::Lessor`]. These two
//! routes are for holders of virtual keys: the key stands in `x-sidekey-key`, and decides, whoever reaches the router.
//!
//! A lease is kept in the store, without the key. What it reserves is held in memory and taken up again at a start. A
//! report is noted on disk before the lease says that it has come, and charged after it: killed in between, sidekey charges
//! it at its next start, and what is sent again meets a lease that knows it.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use http::{HeaderMap, HeaderName, StatusCode, header};
use serde::{Deserialize, Serialize};
use tokio::sync::Mutex;

use crate::clock::{Clock, rfc3339};
use crate::control::body::{Tell, parse};
use crate::control::caller::Caller;
use crate::control::problem::Problem;
use crate::control::{ControlState, Lessor};
use crate::entry::{Entry, Outcome};
use crate::event::{Kind, Severity};
use crate::id::{KeyId, KeySource, RequestId, is_name};
use crate::lease::{LeaseHold, LeaseWish};
use crate::limit::{Consumption, Moment, Permit};
use crate::policy::Otherwise;
use crate::pricing::Expected;
use crate::provider::{Endpoint, Refusal, Upstream};
use crate::storage::{EntryPlace, KeyState, LeaseRecord, Reserve, Store};
use crate::unit::{TokensSource, Usage, duration, parse_usd, usd};
use crate::virtual_key::{Rejection, parse_id};

/// Where the virtual key stands: `authorization` is the operator's.
const KEY: HeaderName = HeaderName::from_static("x-sidekey-key");
/// Reports of one lease at most: its record must stay small.
const REPORTS_MAX: usize = 128;
/// What the ledger shows of what was reserved and never reported.
const UNREPORTED: &str = "lease_unreported";

/// The leases of this process.
pub struct Leases {
    lessor: Lessor,
    /// The longest time one may be given, and the time when none is asked for.
    max: Duration,
    /// What is reserved for each; also what keeps two reports of one lease apart.
    held: Mutex<HashMap<KeyId, LeaseHold>>,
}

impl fmt::Debug for Leases {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Leases").field("max", &self.max).finish_non_exhaustive()
    }
}

impl Leases {
    /// Takes up the leases in the store: what they reserve is reserved again, as far as there is room.
    #[must_use]
    pub fn resume(store: &Store, clock: &Clock, lessor: Lessor, max: Duration) -> Self {
        let snapshot = store.snapshot();
        let open = snapshot.all_named::<LeaseRecord>().filter(|(lease, _)| !lease.ended);
        let held = open.filter_map(|(lease, _)| Some((lease.id, hold(store, &lease, Moment::of(clock))?)));
        let held = Mutex::new(held.collect());
        Self { lessor, max, held }
    }

    /// Ends those whose time is over: what was reserved and not reported is charged.
    pub async fn expire(&self, store: &Store, clock: &Clock) {
        let now_ms = clock.wall_ms();
        let over: Vec<Arc<LeaseRecord>> = {
            let snapshot = store.snapshot();
            snapshot
                .all_named::<LeaseRecord>()
                .map(|(lease, _)| lease)
                .filter(|lease| lease.until_ms <= now_ms)
                .collect()
        };
        for lease in over {
            // A report that came in time has gone first.
            let mut held = self.held.lock().await;
            let found = store.snapshot().named::<LeaseRecord>(&lease.id.to_string());
            let Some((lease, version)) = found else { continue };
            let unreported = Some(lease.left).filter(|left| !lease.ended && !left.is_empty());
            let mut place = store.ledger().place();
            let entry = unreported.map(|left| {
                let tokens = Usage {
                    input: Some(left.input),
                    output: Some(left.output),
                    total: Some(left.input.saturating_add(left.output)),
                    ..Usage::default()
                };
                let said = Said { status: 499, outcome: Outcome::ClientDisconnected, tokens, ..Said::default() };
                let cost = (left.nano_usd > 0).then_some(left.nano_usd);
                let source = TokensSource::Estimated;
                Entry { cost_nano_usd: cost, tokens_source: source, ..entry(store, &lease, &said, clock.wall_ms()) }
            });
            if let Some(entry) = &entry {
                // What cannot be noted is recorded all the same, should sidekey live that long.
                let _ = place.note(entry, entry.tokens, entry.cost_nano_usd);
            }
            if let Err(error) = store.delete_named::<LeaseRecord>(&lease.id.to_string(), Some(version)).await {
                tracing::warn!(lease = %lease.id, %error, "a lease that is over is kept for now");
                continue;
            }
            let consumed = lease.left.need();
            let hold = held.remove(&lease.id);
            let Some(entry) = entry else {
                hold.into_iter().for_each(|hold| hold.settle(clock.now(), Consumption::default()));
                continue;
            };
            charge(store, &lease, hold, (clock, entry.time_ms), consumed);
            let message = format!("{} ended without its last report: what was reserved is charged", shown(&lease));
            let subject = format!("key {}", lease.virtual_key);
            store.events().emit(Kind::LeaseUnreported, Severity::Warning, subject, message);
            let _counted_and_logged_there = place.record(entry);
        }
    }
}

fn shown(lease: &LeaseRecord) -> String {
    let key = lease.provider_key.map_or_else(|| "a key of the environment".to_owned(), |id| format!("key {id}"));
    format!("lease {} of {key} of {} in the pool {:?}", lease.id, lease.provider, lease.pool)
}

/// Reserves what is left of a lease.
fn hold(store: &Store, lease: &LeaseRecord, at: Moment) -> Option<LeaseHold> {
    let snapshot = store.snapshot();
    let need = lease.left.need();
    let permit = Permit::reserve(Arc::clone(&snapshot.virtual_key(lease.virtual_key)?.scopes), at, need).ok()?;
    let own = lease.provider_key.and_then(|id| snapshot.provider_key(id)).filter(|key| !key.scope.is_unlimited());
    let own = own.and_then(|key| Permit::reserve(Arc::clone(&key.scopes), at, need).ok());
    Some(LeaseHold { permit, own })
}

/// Charges what was used: by the reservation, or where there is none to all amounts it counts for.
fn charge(
    store: &Store,
    lease: &LeaseRecord,
    hold: Option<LeaseHold>,
    (clock, time_ms): (&Clock, u64),
    used: Consumption,
) {
    if let Some(hold) = hold {
        return hold.settle(clock.now(), used);
    }
    let snapshot = store.snapshot();
    let key = snapshot.virtual_key(lease.virtual_key);
    let own = lease.provider_key.and_then(|id| snapshot.provider_key(id));
    let scopes = key.iter().flat_map(|key| &*key.scopes).chain(own.map(|key| &key.scope));
    scopes.for_each(|scope| scope.charge(time_ms, &used));
}

/// The virtual key of a request. A refusal does not tell apart what a stranger must not know.
fn authenticate(
    state: &ControlState,
    caller: &Caller,
    headers: &HeaderMap,
    is_report: bool,
) -> Result<Arc<KeyState>, Problem> {
    let refused = |status, code, detail: &str| {
        Problem::new(status, code, detail).field(KEY.as_str()).fix("send the virtual key in this header")
    };
    let unknown = || match caller.address {
        Some(address) => match state.console.failures.count(address.ip(), state.clock.now()) {
            Ok(()) => refused(StatusCode::UNAUTHORIZED, "invalid_api_key", "the virtual key is not valid"),
            Err(too_many) => too_many,
        },
        None => refused(StatusCode::UNAUTHORIZED, "invalid_api_key", "the virtual key is not valid"),
    };
    let text = headers.get(KEY).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let snapshot = state.store.snapshot();
    let digest = snapshot.digest_key().digest(text);
    let key = parse_id(text).and_then(|id| snapshot.virtual_key(id)).ok_or_else(unknown)?;
    // Whoever comes by the socket is on this machine, and has its address.
    let [v4, v6] = [std::net::Ipv4Addr::LOCALHOST.into(), std::net::Ipv6Addr::LOCALHOST.into()];
    let addresses = caller.address.map_or([v4, v6], |address| [address.ip(); 2]);
    let checked = addresses.map(|ip| key.record.check(digest, state.clock.wall_ms(), Some(ip)));
    match checked.into_iter().find(Result::is_ok).unwrap_or(checked[0]) {
        Ok(()) => Ok(Arc::clone(key)),
        Err(Rejection::WrongSecret) => Err(unknown()),
        Err(Rejection::Canary) => {
            let message = format!("the canary key {:?} was used to ask for a lease", key.record.name);
            state.store.events().emit(Kind::KeyCanary, Severity::Error, format!("key {}", key.record.id), message);
            Err(unknown())
        }
        // What was used is to be told, whatever became of the key meanwhile.
        Err(_) if is_report => Ok(Arc::clone(key)),
        Err(Rejection::Revoked) => Err(unknown()),
        Err(why) => {
            Err(refused(StatusCode::FORBIDDEN, "permission_denied", &format!("the virtual key: {}", why.as_str())))
        }
    }
}

#[derive(Debug, Default, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema), schemars(rename = "LeaseWish"))]
#[serde(default, deny_unknown_fields)]
pub(super) struct Wish {
    provider: Option<String>,
    model: Option<String>,
    ttl: Option<String>,
    reserve: Reservation,
}

#[derive(Debug, Default, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub(super) struct Reservation {
    input_tokens: u64,
    output_tokens: u64,
    /// Dollars, a decimal string.
    usd: Option<String>,
}

/// A real key that is out for a while.
#[derive(Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(super) struct Lease<'a> {
    lease: KeyId,
    /// The real key, which is shown this once.
    key: &'a str,
    provider: &'a str,
    /// Null for a key of the environment.
    provider_key_id: Option<KeyId>,
    key_source: KeySource,
    base_url: String,
    model: Option<&'a str>,
    #[cfg_attr(test, schemars(extend("format" = "date-time")))]
    granted: String,
    #[cfg_attr(test, schemars(extend("format" = "date-time")))]
    expires: String,
    reserved: Reserved,
}

/// What is held for a lease.
#[derive(Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(super) struct Reserved {
    input_tokens: u64,
    output_tokens: u64,
    /// Dollars, a decimal string.
    usd: String,
}

pub(super) async fn grant(
    State(state): State<Arc<ControlState>>,
    caller: Caller,
    Path(pool): Path<String>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, Problem> {
    let leases = leases(&state)?;
    let key = authenticate(&state, &caller, &headers, false)?;
    let wish: Wish = parse(&headers, &body, Tell::Names)?;
    check_grant(&key, &pool)?;
    let ttl = ttl(&wish, leases.max)?;
    let upstream = provider(&state, &wish, &pool)?;
    let at = Moment::of(&state.clock);
    let left = reservation(&state, &wish, &key, &upstream, at)?;
    let asked = LeaseWish { key: Arc::clone(&key), upstream, model: wish.model, need: left.need(), at };
    let leased = (leases.lessor)(&asked).map_err(refused)?;
    let id = KeyId::random().map_err(|error| Problem::internal(error.to_string()))?;
    let ttl_ms = u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX);
    let record = LeaseRecord {
        id,
        virtual_key: key.record.id,
        pool,
        provider: asked.upstream.id.to_string(),
        dialect: asked.upstream.dialect.name().to_owned(),
        provider_key: leased.key.stored_id(),
        key_source: leased.source,
        model: asked.model,
        granted_ms: at.wall_ms,
        until_ms: at.wall_ms.saturating_add(ttl_ms),
        left,
        reported: Vec::new(),
        ended: false,
    };
    // Before it is known, so that nothing can end it in between.
    let mut held = leases.held.lock().await;
    let (record, _) = match state.store.put_named(record, Some(0)).await {
        Ok(kept) => kept,
        Err(error) => {
            leased.hold.refund();
            return Err(error.into());
        }
    };
    held.insert(id, leased.hold);
    drop(held);
    let until = rfc3339(record.until_ms);
    let message = format!("{} was given out until {until}, to the virtual key {:?}", shown(&record), key.record.name);
    state.store.events().emit(Kind::LeaseGranted, Severity::Warning, format!("key {}", key.record.id), message);
    let body = Lease {
        lease: id,
        key: leased.secret.expose(),
        provider: &record.provider,
        provider_key_id: record.provider_key,
        key_source: record.key_source,
        base_url: super::view::base_url(&asked.upstream),
        model: record.model.as_deref(),
        granted: rfc3339(record.granted_ms),
        expires: until,
        reserved: Reserved { input_tokens: left.input, output_tokens: left.output, usd: usd(left.nano_usd) },
    };
    // Nothing on the way may keep it.
    Ok((StatusCode::CREATED, [(header::CACHE_CONTROL, "no-store")], Json(body)).into_response())
}

fn leases(state: &ControlState) -> Result<&Arc<Leases>, Problem> {
    state.leases.as_ref().ok_or_else(|| {
        Problem::new(StatusCode::SERVICE_UNAVAILABLE, "no_daemon", "only the daemon gives keys out")
            .fix("start it: sidekey run")
    })
}

fn check_grant(key: &KeyState, pool: &str) -> Result<(), Problem> {
    let denied = |detail: String| Problem::new(StatusCode::FORBIDDEN, "permission_denied", detail);
    if !key.record.lease {
        return Err(denied("this virtual key may not have real keys".to_owned())
            .fix(format!("if it is to: sidekey key update {} --lease", key.record.id)));
    }
    match key.record.pool.as_deref() {
        Some(own) if own == pool => Ok(()),
        // Which pools there are is not for the holder of a key.
        _ => Err(denied(format!("this virtual key is not bound to the pool {pool:?}"))),
    }
}

fn ttl(wish: &Wish, max: Duration) -> Result<Duration, Problem> {
    let ttl = wish.ttl.as_deref().map(duration::parse).transpose();
    let ttl = ttl.map_err(|error| Problem::invalid("ttl", error).fix("write it as 5m"))?.unwrap_or(max);
    if ttl.is_zero() || ttl > max {
        let detail =
            format!("must be more than nothing and at most {} (provider_keys.lease_max)", duration::format(max));
        return Err(Problem::invalid("ttl", detail).fix("leave it out for the longest"));
    }
    Ok(ttl)
}

/// The provider that was named, or the only one that the pool has keys of.
fn provider(state: &ControlState, wish: &Wish, pool: &str) -> Result<Arc<Upstream>, Problem> {
    let snapshot = state.store.snapshot();
    let named = match &wish.provider {
        Some(name) => name.clone(),
        None => {
            let providers = snapshot.pool(pool).map(|pool| pool.providers().collect::<Vec<_>>()).unwrap_or_default();
            match providers[..] {
                [only] => only.to_owned(),
                _ => {
                    return Err(Problem::invalid("provider", "is missing: the pool has keys of several, or of none")
                        .fix("say of which"));
                }
            }
        }
    };
    let registry = state.registry.get();
    let found = registry
        .lookup(&named)
        .map_err(|error| Problem::invalid("provider", error.to_string()).fix("name one of /api/providers"))?;
    Ok(Arc::clone(found))
}

/// What is to be held for the lease. Where a budget or a quota holds the key, it must be said: nothing else keeps what is
/// spent with a key that is out within them.
fn reservation(
    state: &ControlState,
    wish: &Wish,
    key: &KeyState,
    upstream: &Upstream,
    at: Moment,
) -> Result<Reserve, Problem> {
    let Reservation { input_tokens: input, output_tokens: output, usd } = &wish.reserve;
    let (input, output) = (*input, *output);
    let said = usd.as_deref().map(parse_usd).transpose();
    let said = said.map_err(|error| Problem::invalid("reserve.usd", error).fix("write it as \"0.25\""))?;
    let snapshot = state.store.snapshot();
    let price = || snapshot.prices().resolve(&upstream.id, wish.model.as_deref()?);
    let nano_usd = match said {
        Some(said) => said,
        None => {
            price().map_or(0, |found| found.price.estimate(&Expected { input, output, ..Expected::default() }, None))
        }
    };
    let reports = key.scopes.iter().flat_map(|scope| scope.report(at, &Consumption::default()));
    for limit in reports.filter(|report| !report.shadow).map(|report| report.limit) {
        let (field, none) = match limit {
            crate::limit::Kind::Budget(_) => ("reserve.usd", nano_usd == 0),
            crate::limit::Kind::Quota(..) | crate::limit::Kind::Tpm => ("reserve.output_tokens", input + output == 0),
            crate::limit::Kind::InFlight | crate::limit::Kind::Rpm => continue,
        };
        if none {
            let detail = format!("this virtual key has a {}: say what the lease may consume", limit.as_str());
            return Err(Problem::invalid(field, detail).fix("what is not used of it comes back with the last report"));
        }
    }
    Ok(Reserve { input, output, nano_usd })
}

fn refused(refusal: Refusal) -> Problem {
    let problem = Problem::new(refusal.kind.status(), refusal.kind.code(), refusal.message);
    match refusal.param {
        Some(param) => problem.field(&param),
        None => problem,
    }
}

/// What was used of a lease.
#[derive(Debug, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema), schemars(rename = "LeaseReport"))]
#[serde(deny_unknown_fields)]
pub(super) struct Report {
    lease: KeyId,
    /// Of the reporter's: the same one twice is one.
    report: String,
    model: Option<String>,
    /// The provider's.
    #[serde(default = "ok")]
    status: u16,
    #[serde(default)]
    tokens: Usage,
    endpoint: Option<String>,
    upstream_request_id: Option<String>,
    /// No other will follow: what is left of the reservation comes back.
    #[serde(default, rename = "final")]
    is_final: bool,
}

fn ok() -> u16 {
    200
}

/// What became of a report.
#[derive(Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(super) struct Reported<'a> {
    /// False when it had come before.
    recorded: bool,
    lease: KeyId,
    report: &'a str,
    #[serde(flatten)]
    entry: Option<ReportedEntry>,
}

/// The entry that a report became.
#[derive(Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(super) struct ReportedEntry {
    request_id: RequestId,
    /// Dollars, a decimal string; null when there is no price.
    cost_usd: Option<String>,
}

/// What an entry of a lease says beside the lease.
#[derive(Debug)]
struct Said {
    status: u16,
    outcome: Outcome,
    tokens: Usage,
    model: Option<String>,
    endpoint: &'static str,
    upstream_request_id: Option<String>,
}

impl Default for Said {
    fn default() -> Self {
        let (tokens, model, upstream_request_id) = (Usage::default(), None, None);
        Self { status: 200, outcome: Outcome::Ok, tokens, model, endpoint: "lease", upstream_request_id }
    }
}

pub(super) async fn report(
    State(state): State<Arc<ControlState>>,
    caller: Caller,
    Path(pool): Path<String>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, Problem> {
    let leases = leases(&state)?;
    let key = authenticate(&state, &caller, &headers, true)?;
    let report: Report = parse(&headers, &body, Tell::Names)?;
    let said = said(&report)?;
    // From here on, one report after the other.
    let mut held = leases.held.lock().await;
    let (lease, version) = open_lease(&state, &report, &key, &pool)?;
    let mark = mark(&report.report);
    if lease.reported.contains(&mark) {
        let known = Reported { recorded: false, lease: lease.id, report: &report.report, entry: None };
        return Ok(Json(known).into_response());
    }
    if lease.ended {
        let detail = "its last report has come already";
        return Err(Problem::new(StatusCode::CONFLICT, "lease_ended", detail).field("lease").fix("take another lease"));
    }
    if lease.reported.len() >= REPORTS_MAX {
        return Err(
            Problem::invalid("report", format!("a lease has {REPORTS_MAX} reports at most")).fix("take another lease")
        );
    }
    let entry = priced(&state, entry(&state.store, &lease, &said, state.clock.wall_ms()));
    let consumed = Consumption::of(&entry.tokens, entry.cost_nano_usd);
    let place = noted(&state, &key, &entry)?;
    let mut next = (*lease).clone();
    next.left = lease.left.less(&consumed);
    next.reported.push(mark);
    next.ended = report.is_final;
    let (next, _) = state.store.put_named(next, Some(version)).await?;
    charge(&state.store, &lease, held.remove(&lease.id), (&state.clock, entry.time_ms), consumed);
    if !next.ended
        && let Some(rest) = hold(&state.store, &next, Moment::of(&state.clock))
    {
        held.insert(lease.id, rest);
    }
    drop(held);
    let (entry_id, cost) = (entry.request_id, entry.cost_nano_usd.map(usd));
    let tokens = entry.tokens.billable();
    let message = format!("{}: {tokens} tokens of {:?} were reported", shown(&lease), entry.model_requested.as_deref());
    state.store.events().emit(Kind::LeaseReported, Severity::Info, format!("key {}", lease.virtual_key), message);
    let unrecorded = |text: String| Problem::new(StatusCode::SERVICE_UNAVAILABLE, "store_unavailable", text);
    let commit = place.record_sync(entry).map_err(|error| unrecorded(error.to_string()))?;
    commit.await?;
    let entry = Some(ReportedEntry { request_id: entry_id, cost_usd: cost });
    let body = Reported { recorded: true, lease: lease.id, report: &report.report, entry };
    Ok((StatusCode::CREATED, Json(body)).into_response())
}

fn said(report: &Report) -> Result<Said, Problem> {
    if !is_name(&report.report) {
        return Err(Problem::invalid("report", "must be 1 to 128 printable characters, another for each report")
            .fix("count your reports"));
    }
    if !(100..=599).contains(&report.status) {
        return Err(Problem::invalid("status", "must be the provider's HTTP status").fix("leave it out for 200"));
    }
    for (field, text) in [("model", &report.model), ("upstream_request_id", &report.upstream_request_id)] {
        if text.as_deref().is_some_and(|text| !is_name(text)) {
            return Err(Problem::invalid(field, "must be 1 to 128 printable characters").fix("leave it out"));
        }
    }
    let endpoint = match &report.endpoint {
        None => "lease",
        Some(name) => {
            let found = name
                .parse::<Endpoint>()
                .map_err(|error| Problem::invalid("endpoint", error.to_string()).fix("leave it out"))?;
            found.as_str()
        }
    };
    let outcome = if report.status < 400 { Outcome::Ok } else { Outcome::UpstreamError };
    let mut tokens = report.tokens;
    if tokens.total.is_none() && (tokens.input.is_some() || tokens.output.is_some()) {
        tokens.total = Some(tokens.input.unwrap_or(0).saturating_add(tokens.output.unwrap_or(0)));
    }
    let (model, upstream_request_id) = (report.model.clone(), report.upstream_request_id.clone());
    Ok(Said { status: report.status, outcome, tokens, model, endpoint, upstream_request_id })
}

/// The lease that is reported of. Another's looks like none.
fn open_lease(
    state: &ControlState,
    report: &Report,
    key: &KeyState,
    pool: &str,
) -> Result<(Arc<LeaseRecord>, u64), Problem> {
    let found = state.store.snapshot().named::<LeaseRecord>(&report.lease.to_string());
    let now = state.clock.wall_ms();
    let own = |(lease, _): &(Arc<LeaseRecord>, u64)| {
        lease.virtual_key == key.record.id && lease.pool == pool && now < lease.until_ms
    };
    found.filter(own).ok_or_else(|| {
        let detail = format!("this virtual key has no lease {} in this pool, or it has expired", report.lease);
        Problem::new(StatusCode::NOT_FOUND, "unknown_lease", detail).field("lease").fix("take another lease")
    })
}

fn mark(report: &str) -> u64 {
    let hash = blake3::hash(report.as_bytes());
    hash.as_bytes()[..8].iter().fold(0, |mark, byte| mark << 8 | u64::from(*byte))
}

/// A place for the entry, and the note by which it is charged should sidekey end before it is recorded.
fn noted(state: &ControlState, key: &KeyState, entry: &Entry) -> Result<EntryPlace, Problem> {
    let unrecorded = |text: String| {
        let problem = Problem::new(StatusCode::SERVICE_UNAVAILABLE, "store_unavailable", text);
        Err(problem.fix("send the report again"))
    };
    let ledger = state.store.ledger();
    let mut place = match key.unrecorded {
        Otherwise::Allow => ledger.place(),
        Otherwise::Deny => match ledger.promise() {
            Ok(place) => place,
            Err(full) => return unrecorded(full.to_string()),
        },
    };
    match place.note(entry, entry.tokens, entry.cost_nano_usd) {
        Ok(()) => Ok(place),
        Err(error) => unrecorded(error.to_string()),
    }
}

fn priced(state: &ControlState, mut entry: Entry) -> Entry {
    let snapshot = state.store.snapshot();
    let found = snapshot.prices().price(&entry.provider, None, entry.model_requested.as_deref());
    let served = entry.status < 400 || !entry.tokens.is_empty();
    if let Some(found) = found.filter(|_| served)
        && let Some(cost) = found.price.cost(&entry.tokens, None)
    {
        entry.cost_nano_usd = Some(cost);
        entry.price_version = Some(Arc::clone(&found.version));
    }
    entry
}

fn entry(store: &Store, lease: &LeaseRecord, said: &Said, time_ms: u64) -> Entry {
    let snapshot = store.snapshot();
    let key = snapshot.virtual_key(lease.virtual_key).map(|key| &key.record);
    let name = |text: &Option<String>| text.as_deref().map(Arc::from);
    let tokens_source = if said.tokens.is_empty() { TokensSource::None } else { TokensSource::Reported };
    Entry {
        request_id: RequestId::new(time_ms),
        time_ms,
        virtual_key: Some(lease.virtual_key),
        user: key.and_then(|key| name(&key.user)),
        team: key.and_then(|key| name(&key.team)),
        group: Some(format!("lease-{}", lease.id).into()),
        provider: lease.provider.as_str().into(),
        provider_key: lease.provider_key,
        key_source: Some(lease.key_source),
        dialect: lease.dialect.clone().into(),
        endpoint: said.endpoint.into(),
        model_requested: name(&said.model).or_else(|| name(&lease.model)),
        model_reported: None,
        stream: false,
        tokens: said.tokens,
        tokens_source,
        cost_nano_usd: None,
        status: said.status,
        outcome: said.outcome,
        error_code: (said.outcome == Outcome::ClientDisconnected).then(|| UNREPORTED.into()),
        latency_us: 0,
        ttfb_us: 0,
        overhead_ns: 0,
        attempts: 1,
        upstream_request_id: name(&said.upstream_request_id),
        price_version: None,
        service_tier: None,
        plan: key.and_then(|key| name(&key.plan)),
        pool: Some(lease.pool.as_str().into()),
    }
}
