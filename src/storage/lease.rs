//! A lease of a real key at rest: a named record like any. The key itself is not in it.
//!
//! Owns the record; leaves handing keys out, and what is reported of them, to `control`.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use crate::id::{KeyId, KeySource};
use crate::limit::Consumption;

use super::named::{Kind, Named};

/// A real key that was handed out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseRecord {
    /// Tells leases apart.
    pub id: KeyId,
    /// Whose virtual key it was given to.
    pub virtual_key: KeyId,
    /// The pool it was taken from.
    pub pool: String,
    /// The provider.
    pub provider: String,
    /// Its dialect's name.
    pub dialect: String,
    /// The provider key; `None` for one of the environment.
    pub provider_key: Option<KeyId>,
    /// Whose it is.
    pub key_source: KeySource,
    /// What it was asked for, where that was said.
    #[serde(default)]
    pub model: Option<String>,
    /// Wall time of its beginning, milliseconds.
    pub granted_ms: u64,
    /// Wall time of its end, milliseconds.
    pub until_ms: u64,
    /// What is reserved for it and not yet reported.
    pub left: Reserve,
    /// Digests of the ids of what was reported.
    #[serde(default)]
    pub reported: Vec<u64>,
    /// The last report has come.
    #[serde(default)]
    pub ended: bool,
}

/// What is reserved for a lease.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reserve {
    /// Tokens of requests.
    pub input: u64,
    /// Tokens of answers.
    pub output: u64,
    /// Billionths of a US dollar.
    pub nano_usd: u64,
}

impl Reserve {
    /// As limits count it.
    #[must_use]
    pub fn need(&self) -> Consumption {
        Consumption { nano_usd: self.nano_usd, ..Consumption::tokens(self.input, self.output) }
    }

    /// What is left of it.
    #[must_use]
    pub fn less(&self, used: &Consumption) -> Self {
        Self {
            input: self.input.saturating_sub(used.input),
            output: self.output.saturating_sub(used.output),
            nano_usd: self.nano_usd.saturating_sub(used.nano_usd),
        }
    }

    /// True when nothing is.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl Named for LeaseRecord {
    const KIND: Kind = Kind::Lease;

    fn name(&self) -> Cow<'_, str> {
        Cow::Owned(self.id.to_string())
    }
}
