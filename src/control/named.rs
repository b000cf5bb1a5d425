//! What records with names have in common in the admin API: plans, pools, and the policies of users and teams.
//!
//! Owns finding, naming and removing one; leaves what may be said of each to the module of its kind.

use std::sync::Arc;

use axum::extract::{Path, State};
use http::{HeaderMap, StatusCode};
use serde::Deserialize;

use crate::control::problem::{Problem, check_name};
use crate::control::{ControlState, expected_version};
use crate::storage::Named;

/// Which of them a list has.
#[derive(Debug, Default, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub(super) struct ListQuery {
    pub(super) limit: Option<usize>,
    pub(super) cursor: Option<String>,
}

/// The name that a new one was given.
pub(super) fn new_name(said: Option<&String>) -> Result<String, Problem> {
    let name = said.ok_or_else(|| Problem::invalid("name", "is missing").fix("say what it is called"))?;
    check_name("name", name)?;
    Ok(name.clone())
}

/// The one of this name, and its version.
pub(super) fn find<T: Named>(state: &ControlState, name: &str) -> Result<(Arc<T>, u64), Problem> {
    let found = state.store.snapshot().named::<T>(name);
    found.ok_or_else(|| Problem::not_found(&format!("{} {name:?}", T::KIND.as_str())))
}

pub(super) async fn delete<T: Named>(
    State(state): State<Arc<ControlState>>,
    Path(name): Path<String>,
    headers: HeaderMap,
) -> Result<StatusCode, Problem> {
    state.store.delete_named::<T>(&name, expected_version(&headers)?).await?;
    Ok(StatusCode::NO_CONTENT)
}
