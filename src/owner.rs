//! What a user or a team may use, whatever keys they hold.
//!
//! Owns the record; leaves enforcing it to `limit` and `proxy`.

use serde::{Deserialize, Serialize};

use crate::policy::Policy;

/// The policy of a user or a team: all of their virtual keys together are held to it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct OwnerPolicy {
    /// Whose, as [`crate::id::Owner`] is written: `user:<id>` or `team:<id>`.
    pub owner: String,
    /// Globs of models that their keys may call; empty is all.
    pub models: Vec<String>,
    /// What they may use.
    #[serde(flatten)]
    pub policy: Policy,
    /// The operator's own notes.
    pub description: String,
}
