//! Plans: named bundles of what virtual keys may do, attached to keys and changed in one place.
//!
//! Owns the record; leaves enforcing it to `limit` and `proxy`.

use serde::{Deserialize, Serialize};

use crate::virtual_key::Limits;

/// A plan. What a key says itself goes before what its plan says.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Plan {
    /// What people call it, and what keys name it by.
    pub name: String,
    /// What each of its keys gets, unless the key says otherwise.
    pub limits: Limits,
    /// Globs of models its keys may call; empty is all.
    pub models: Vec<String>,
}
