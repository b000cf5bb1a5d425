//! Plans: named bundles of what virtual keys may do, attached to keys and changed in one place.
//!
//! Owns the record; leaves enforcing it to `limit` and `proxy`.

use serde::{Deserialize, Serialize};

use crate::policy::Policy;
use crate::route::Routes;

/// A plan. What a key says itself goes before what its plan says.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Plan {
    /// What people call it, and what keys name it by.
    pub name: String,
    /// Globs of models its keys may call; empty is all. A key's own globs narrow it further.
    pub models: Vec<String>,
    /// What names of models mean to its keys, before the configuration says so.
    #[serde(skip_serializing_if = "Routes::is_empty")]
    pub routes: Routes,
    /// What each of its keys may use.
    #[serde(flatten)]
    pub policy: Policy,
    /// What all of its keys may use together.
    pub shared: Policy,
    /// The operator's own notes.
    pub description: String,
}
