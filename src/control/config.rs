//! `/api/config`: every setting in force, and who said it.
//!
//! Owns the answer's form; leaves reading what was said, and hiding what is secret in it, to `config`.

use std::path::PathBuf;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use serde::Serialize;
use serde_json::Value;

use crate::control::{ConfigReport, ControlState};

/// One setting. What is secret in a value is `***`.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Setting {
    /// Its dotted name.
    pub key: String,
    /// Its value, as it would stand in the file; null when it is unset.
    pub value: Value,
    /// Who said it.
    pub origin: SaidBy,
    /// Where: `<file>:<line>`, the variable, or the flag; null for a default.
    #[serde(rename = "where")]
    pub place: Option<String>,
    /// True when it is read at the start only.
    pub at_start: bool,
    /// True when it was changed since, and what is said now is not in force yet.
    pub needs_restart: bool,
    /// Then, what is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub in_force: Option<Value>,
}

/// Who said a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum SaidBy {
    /// Nobody: it is built in.
    Default,
    /// The configuration file.
    File,
    /// An environment variable.
    Environment,
    /// A flag of the command line.
    Flag,
}

/// The configuration as it is.
#[derive(Clone, Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema), schemars(rename = "Config"))]
pub struct ConfigView {
    /// The file, whether it is there or not.
    pub file: PathBuf,
    /// Every setting, by name, in the order of the documents.
    pub settings: Vec<Setting>,
    /// Counts the times it was read and put in force; null when no daemon runs.
    pub generation: Option<u64>,
    /// When that was last, RFC 3339; null when no daemon runs.
    pub loaded: Option<String>,
    /// Why what was read last is not in force.
    pub error: Option<String>,
}

impl ConfigView {
    /// What no daemon has put in force.
    #[must_use]
    pub fn unused(file: PathBuf, settings: Vec<Setting>) -> Self {
        Self { file, settings, generation: None, loaded: None, error: None }
    }
}

pub(super) async fn show(State(state): State<Arc<ControlState>>) -> Json<ConfigView> {
    let facts = &state.facts;
    let view = ConfigView::unused(facts.config_file.clone(), Vec::clone(&facts.settings.get()));
    let ConfigReport { generation, loaded, error, .. } = ConfigReport::clone(&facts.config.get());
    // Without a daemon nothing was ever put in force.
    Json(match generation {
        0 => view,
        _ => ConfigView { generation: Some(generation), loaded: Some(loaded), error, ..view },
    })
}
