//! `/api/audit`: what was done, by whom.
//!
//! Owns the questions; leaves the log to `storage::audit`, and what gets into it to [`super::audited`] and the store.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use serde::{Deserialize, Serialize};

use crate::clock::parse_rfc3339;
use crate::control::problem::{Asked, Problem};
use crate::control::{ControlState, DEFAULT_PAGE, MAX_PAGE};
use crate::storage::{AuditFilter, AuditRecord, AuditVerdict};

#[derive(Debug, Default, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub(super) enum Order {
    #[default]
    Newest,
    Oldest,
}

#[derive(Debug, Default, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub(super) struct AuditQuery {
    actor: Option<String>,
    object: Option<String>,
    action: Option<String>,
    #[cfg_attr(test, schemars(extend("format" = "date-time")))]
    since: Option<String>,
    order: Order,
    limit: Option<usize>,
    cursor: Option<u64>,
}

/// One page of the audit log.
#[derive(Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(super) struct AuditList {
    records: Vec<AuditRecord>,
    next_cursor: Option<u64>,
}

pub(super) async fn list(
    State(state): State<Arc<ControlState>>,
    Asked(query): Asked<AuditQuery>,
) -> Result<Json<AuditList>, Problem> {
    let since = query.since.as_deref().map(parse_rfc3339).transpose();
    let filter = AuditFilter {
        actor: query.actor,
        object: query.object,
        action: query.action,
        since_ms: since.map_err(|error| Problem::invalid("since", error).fix("write it as 2026-11-25T10:00:00Z"))?,
        oldest_first: matches!(query.order, Order::Oldest),
        cursor: query.cursor,
        limit: query.limit.unwrap_or(DEFAULT_PAGE).clamp(1, MAX_PAGE),
    };
    let page = state.store.audit().records(filter).await?;
    Ok(Json(AuditList { records: page.records, next_cursor: page.next }))
}

#[derive(Debug, Default, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub(super) struct VerifyQuery {
    /// The head as it was noted elsewhere: a number, a colon and 64 hex digits.
    #[cfg_attr(test, schemars(regex(pattern = "^[0-9]{1,19}:[0-9a-fA-F]{64}$")))]
    head: Option<String>,
}

pub(super) async fn verify(
    State(state): State<Arc<ControlState>>,
    Asked(query): Asked<VerifyQuery>,
) -> Result<Json<AuditVerdict>, Problem> {
    let read = |said: &str| {
        let (seq, hash) = said.split_once(':')?;
        let hash = Some(hash).filter(|hash| hash.len() == 64 && hash.bytes().all(|c| c.is_ascii_hexdigit()))?;
        Some((seq.parse().ok()?, hash.to_ascii_lowercase()))
    };
    let noted = query.head.as_deref().map(|said| {
        let bad = || Problem::invalid("head", "must be a number, a colon and 64 hex digits").fix("as `verify` gave it");
        read(said).ok_or_else(bad)
    });
    Ok(Json(state.store.audit().verify(noted.transpose()?).await?))
}
