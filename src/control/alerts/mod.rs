//! `/api/alerts`: what operators were told of late, and who is told of it.
//!
//! Owns the questions; leaves what is told, and how long it is kept, to `event`, and telling receivers to `deliver`.

mod deliver;
mod hook;
pub mod section;

use std::sync::Arc;

use axum::Json;
use axum::body::Bytes;
use axum::extract::State;
use http::{HeaderMap, StatusCode};
use serde::{Deserialize, Serialize};

use crate::clock::parse_rfc3339;
use crate::control::body::{Tell, parse};
use crate::control::problem::{Asked, Problem};
use crate::control::{ControlState, Page, page};
use crate::event::{Event, Severity};
use crate::id::RequestId;

pub use self::deliver::{Alerts, Tested};

#[derive(Debug, Default, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub(super) struct AlertsQuery {
    /// A kind, or the first word of some.
    kind: Option<String>,
    min_severity: Option<Severity>,
    #[cfg_attr(test, schemars(extend("format" = "date-time")))]
    since: Option<String>,
    limit: Option<usize>,
    cursor: Option<RequestId>,
}

/// One page of events, newest first.
#[derive(Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(super) struct AlertList {
    alerts: Vec<Arc<Event>>,
    next_cursor: Option<RequestId>,
}

/// Events, newest first.
pub(super) async fn list(
    State(state): State<Arc<ControlState>>,
    Asked(query): Asked<AlertsQuery>,
) -> Result<Json<AlertList>, Problem> {
    let since = query.since.as_deref().map(parse_rfc3339).transpose();
    let since =
        since.map_err(|error| Problem::invalid("since", error).fix("write it as 2026-11-25T10:00:00Z"))?.unwrap_or(0);
    let wanted = |event: &Arc<Event>| {
        let word = event.kind.as_str();
        let about = |said: &String| word == said || word.split('.').next() == Some(said.trim_end_matches(".*"));
        event.time >= since
            && query.kind.as_ref().is_none_or(about)
            && query.min_severity.is_none_or(|least| event.severity >= least)
    };
    let found = state.store.events().recent().into_iter().filter(wanted).collect();
    let Page { items, next } = page(found, |event: &Arc<Event>| event.id, query.cursor, query.limit)?;
    Ok(Json(AlertList { alerts: items, next_cursor: next }))
}

#[derive(Debug, Default, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema), schemars(rename = "AlertTestWish"))]
#[serde(default, deny_unknown_fields)]
pub(super) struct TestWish {
    webhook: Option<String>,
}

/// How the tests went.
#[derive(Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(super) struct AlertTests {
    results: Vec<Tested>,
}

/// Sends a test to receivers.
pub(super) async fn test(
    State(state): State<Arc<ControlState>>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Json<AlertTests>, Problem> {
    let wish: TestWish = parse(&headers, &body, Tell::All)?;
    let results = state.alerts.test(wish.webhook.as_deref()).await;
    let results = results.ok_or_else(|| match &wish.webhook {
        Some(name) => Problem::not_found(&format!("receiver {name:?}"))
            .field("webhook")
            .fix("name one of alerts.webhooks, or none for all"),
        None => Problem::new(StatusCode::CONFLICT, "no_webhooks", "no receiver is configured")
            .fix("name one: [alerts.webhooks.<name>] in the configuration"),
    })?;
    Ok(Json(AlertTests { results }))
}
