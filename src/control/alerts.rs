//! `/api/alerts`: what operators were told of late.
//!
//! Owns the question; leaves what is told, and how long it is kept, to `event`.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::control::problem::{Asked, Problem};
use crate::control::{ControlState, DEFAULT_PAGE, MAX_PAGE};

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct AlertsQuery {
    limit: Option<usize>,
}

/// Events, newest first.
pub(super) async fn list(
    State(state): State<Arc<ControlState>>,
    Asked(query): Asked<AlertsQuery>,
) -> Result<Json<Value>, Problem> {
    let limit = query.limit.unwrap_or(DEFAULT_PAGE).clamp(1, MAX_PAGE);
    let mut alerts = state.store.events().recent();
    alerts.truncate(limit);
    let alerts: Vec<_> = alerts.iter().map(|event| &**event).collect();
    Ok(Json(json!({"alerts": alerts})))
}
