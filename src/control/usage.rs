//! `/api/usage` and `/api/ledger`: what was consumed.
//!
//! Owns the questions; leaves summing to `storage`.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Json;
use axum::body::Bytes;
use axum::extract::{Path, State};
use http::HeaderMap;
use serde::{Deserialize, Serialize};

use crate::clock::parse_rfc3339;
use crate::control::body::{Tell, parse};
use crate::control::caller::{Caller, not_yours};
use crate::control::problem::{Asked, Problem};
use crate::control::{ControlState, keys, provider_keys};
use crate::entry::EntryView;
use crate::id::{KeyId, KeySource, is_name};
use crate::pricing::{Overlay, Prices};
use crate::storage::{Cursor, Dimension, LedgerFilter, UsageReport, UsageTotals};

#[cfg(test)]
const DIMENSIONS: [&str; 12] = {
    let mut words = [""; 12];
    let mut n = 0;
    while n < words.len() {
        words[n] = Dimension::ALL[n].as_str();
        n += 1;
    }
    words
};

const DAY_MS: u64 = 86_400_000;
const DEFAULT_DAYS: u32 = 30;
const DEFAULT_LIMIT: usize = 100;
const MAX_LIMIT: usize = 1000;

#[derive(Debug, Default, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub(super) struct ReportQuery {
    /// The last days, today included: 30 unless something is said.
    days: Option<u32>,
    /// A day, or an RFC 3339 time.
    from: Option<String>,
    /// Before this day, or RFC 3339 time.
    to: Option<String>,
    /// What sums are made by: `model` unless it is said.
    #[cfg_attr(test, schemars(extend("enum" = DIMENSIONS)))]
    by: Option<String>,
    key: Option<KeyId>,
    provider_key: Option<KeyId>,
    user: Option<String>,
    team: Option<String>,
    plan: Option<String>,
    provider: Option<String>,
    model: Option<String>,
    group: Option<String>,
    source: Option<KeySource>,
}

pub(super) async fn report(
    State(state): State<Arc<ControlState>>,
    caller: Caller,
    Asked(query): Asked<ReportQuery>,
) -> Result<Json<UsageReport>, Problem> {
    let (filter, by) = asked(&state, &caller, query)?;
    Ok(Json(state.store.ledger().usage(filter, by).await?))
}

#[derive(Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub(super) struct OtherPrices {
    prices: Prices,
}

/// The same under other prices; a model that they do not have costs what it would now.
pub(super) async fn repriced(
    State(state): State<Arc<ControlState>>,
    caller: Caller,
    Asked(query): Asked<ReportQuery>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Json<UsageReport>, Problem> {
    let OtherPrices { prices } = parse(&headers, &body, Tell::All)?;
    let (filter, by) = asked(&state, &caller, query)?;
    let prices = state.store.snapshot().prices().with_trial(Overlay::hashed("trial", prices));
    Ok(Json(state.store.ledger().usage_repriced(filter, by, prices).await?))
}

fn asked(state: &ControlState, caller: &Caller, query: ReportQuery) -> Result<(LedgerFilter, Dimension), Problem> {
    let by = query.by.as_deref().unwrap_or("model");
    let by = by
        .parse::<Dimension>()
        .map_err(|error| Problem::invalid("by", error.to_string()).fix("write one of those, or leave it out"))?;
    let filter = LedgerFilter {
        key: query.key,
        provider_key: query.provider_key,
        user: own_user(caller, query.user)?,
        team: query.team,
        plan: query.plan,
        provider: query.provider,
        model: query.model,
        group: query.group,
        key_source: query.source,
        ..within(state, query.days, query.from.as_deref(), query.to.as_deref())?
    };
    Ok((filter, by))
}

#[derive(Debug, Default, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub(super) struct DaysQuery {
    days: Option<u32>,
}

pub(super) async fn of_key(
    State(state): State<Arc<ControlState>>,
    caller: Caller,
    Path(id): Path<String>,
    Asked(query): Asked<DaysQuery>,
) -> Result<Json<UsageReport>, Problem> {
    let key = Some(keys::find(&state, &caller, &id)?.record.id);
    let filter = LedgerFilter { key, user: own_user(&caller, None)?, ..last(&state, query.days) };
    Ok(Json(state.store.ledger().usage(filter, Dimension::Day).await?))
}

pub(super) async fn of_provider_key(
    State(state): State<Arc<ControlState>>,
    caller: Caller,
    Path(id): Path<String>,
    Asked(query): Asked<DaysQuery>,
) -> Result<Json<UsageReport>, Problem> {
    let provider_key = Some(provider_keys::find(&state, &caller, &id)?.record.id);
    let filter = LedgerFilter { provider_key, user: own_user(&caller, None)?, ..last(&state, query.days) };
    Ok(Json(state.store.ledger().usage(filter, Dimension::Day).await?))
}

/// The calls of one group, oldest first, and whose keys paid for how many.
#[derive(Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(super) struct GroupUsage {
    group: String,
    #[serde(rename = "apiKeyUsageLog")]
    api_key_usage_log: Vec<EntryView>,
    /// True when there are more calls than are listed.
    truncated: bool,
    /// Requests by who paid.
    #[serde(rename = "apiKeyUsageSummary")]
    api_key_usage_summary: BTreeMap<&'static str, u64>,
    totals: UsageTotals,
    next_cursor: Option<String>,
}

/// Which of a group's calls.
#[derive(Debug, Default, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub(super) struct GroupQuery {
    /// At most so many, 1,000 unless it is said.
    limit: Option<usize>,
    cursor: Option<String>,
}

/// The calls of one group, oldest first, and whose keys paid for how many.
pub(super) async fn of_group(
    State(state): State<Arc<ControlState>>,
    caller: Caller,
    Path(group): Path<String>,
    Asked(query): Asked<GroupQuery>,
) -> Result<Json<GroupUsage>, Problem> {
    if !is_name(&group) {
        return Err(Problem::not_found("group of that name"));
    }
    let filter = LedgerFilter { group: Some(group.clone()), user: own_user(&caller, None)?, ..LedgerFilter::default() };
    let sums = filter.clone();
    let limit = Some(query.limit.unwrap_or(MAX_LIMIT).clamp(1, MAX_LIMIT));
    let filter = LedgerFilter { limit, after: cursor(query.cursor.as_deref())?, ..filter };
    let page = state.store.ledger().query(filter).await?;
    let report = state.store.ledger().usage(sums, Dimension::Source).await?;
    let calls: Vec<EntryView> = page.entries.iter().map(EntryView::from).collect();
    // Calls that nobody paid for were refused.
    let paid = report.paid.iter().filter_map(|(source, totals)| Some((source.as_ref()?, totals)));
    let summary = paid.map(|(source, totals)| (source.as_str(), totals.requests)).collect();
    Ok(Json(GroupUsage {
        group,
        truncated: report.totals.requests > calls.len() as u64,
        api_key_usage_log: calls,
        api_key_usage_summary: summary,
        totals: report.totals,
        next_cursor: page.next.map(|cursor| cursor.to_string()),
    }))
}

#[derive(Debug, Default, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub(super) struct LedgerQuery {
    key: Option<KeyId>,
    provider_key: Option<KeyId>,
    user: Option<String>,
    team: Option<String>,
    provider: Option<String>,
    model: Option<String>,
    group: Option<String>,
    limit: Option<usize>,
    cursor: Option<String>,
}

/// One page of the ledger, newest first.
#[derive(Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(super) struct Entries {
    entries: Vec<EntryView>,
    next_cursor: Option<String>,
}

/// Entries, newest first.
pub(super) async fn ledger(
    State(state): State<Arc<ControlState>>,
    caller: Caller,
    Asked(query): Asked<LedgerQuery>,
) -> Result<Json<Entries>, Problem> {
    let filter = LedgerFilter {
        key: query.key,
        provider_key: query.provider_key,
        user: own_user(&caller, query.user)?,
        team: query.team,
        provider: query.provider,
        model: query.model,
        group: query.group,
        limit: Some(query.limit.unwrap_or(DEFAULT_LIMIT).clamp(1, MAX_LIMIT)),
        newest_first: true,
        after: cursor(query.cursor.as_deref())?,
        ..LedgerFilter::default()
    };
    let page = state.store.ledger().query(filter).await?;
    let entries = page.entries.iter().map(EntryView::from).collect();
    Ok(Json(Entries { entries, next_cursor: page.next.map(|cursor| cursor.to_string()) }))
}

fn cursor(said: Option<&str>) -> Result<Option<Cursor>, Problem> {
    let cursor = said.map(str::parse::<Cursor>).transpose();
    cursor.map_err(|_| Problem::invalid("cursor", "is not one of ours").fix("start from the first page"))
}

/// Whose usage: a user's is their own.
fn own_user(caller: &Caller, said: Option<String>) -> Result<Option<String>, Problem> {
    match caller.user() {
        Some(own) if said.as_deref().is_some_and(|said| said != own) => {
            Err(not_yours("user", "leave it out: you see your own"))
        }
        Some(own) => Ok(Some(own.to_owned())),
        None => Ok(said),
    }
}

/// The last days, today included: whole ones, as the sums are kept, in UTC.
fn last(state: &ControlState, days: Option<u32>) -> LedgerFilter {
    let tomorrow = state.clock.wall_ms() / DAY_MS + 1;
    let first = tomorrow.saturating_sub(u64::from(days.unwrap_or(DEFAULT_DAYS)).max(1));
    LedgerFilter { from_ms: Some(first * DAY_MS), to_ms: Some(tomorrow * DAY_MS), ..LedgerFilter::default() }
}

/// The last days, or a stretch of time; without an end, up to now.
fn within(
    state: &ControlState,
    days: Option<u32>,
    from: Option<&str>,
    to: Option<&str>,
) -> Result<LedgerFilter, Problem> {
    let time = |field, text: Option<&str>| {
        let parsed = text.map(|text| match text.len() {
            10 => parse_rfc3339(&format!("{text}T00:00:00Z")),
            _ => parse_rfc3339(text),
        });
        let problem = |_| {
            Problem::invalid(field, "must be a day, or an RFC 3339 time")
                .fix("write it as 2026-11-25 or 2026-11-25T10:00:00Z")
        };
        parsed.transpose().map_err(problem)
    };
    let (from_ms, to_ms) = (time("from", from)?, time("to", to)?);
    if from_ms.or(to_ms).is_none() {
        return Ok(last(state, days));
    }
    if days.is_some() {
        return Err(Problem::invalid("days", "from and to say it too").fix("send one of them"));
    }
    if to_ms.is_some_and(|to| from_ms.is_some_and(|from| to <= from)) {
        return Err(Problem::invalid("to", "is not after from").fix("say a later end, or an earlier beginning"));
    }
    Ok(LedgerFilter { from_ms, to_ms, ..LedgerFilter::default() })
}
