//! Provider keys: the real ones, their owner and status. The secret itself is sealed elsewhere.
//!
//! Owns the record; leaves sealing to `storage::vault`, resolving references to `storage::reference`, and choosing
//! among keys to `proxy::select`.

use serde::{Deserialize, Serialize};

use crate::id::{KeyId, Owner};
use crate::policy::Policy;

/// Whether a provider key may be used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// May be used.
    #[default]
    Active,
    /// Switched off by hand.
    Disabled,
    /// Refused by the provider, until tested or switched on by hand.
    Error,
}

impl Status {
    /// The word shown.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Disabled => "disabled",
            Self::Error => "error",
        }
    }
}

/// Where the secret comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Origin {
    /// Sealed in the store.
    Sealed,
    /// The environment variable of this name, read at start.
    Env {
        /// The variable.
        name: String,
    },
    /// A file, read again when it changes.
    File {
        /// Its absolute path.
        path: String,
    },
    /// The first line a command prints, run again after the interval.
    Exec {
        /// The command line, split at white space; no shell.
        command: String,
        /// Seconds between runs.
        refresh_secs: u64,
    },
}

impl Origin {
    /// Reads `env:NAME`, `file:/path` and `exec:command`; `None` for anything else, which is then a secret itself.
    #[must_use]
    pub fn parse_reference(text: &str) -> Option<Self> {
        let (kind, rest) = text.split_once(':')?;
        let rest = rest.trim();
        match kind {
            "env" if !rest.is_empty() => Some(Self::Env { name: rest.to_owned() }),
            "exec" if !rest.is_empty() => {
                Some(Self::Exec { command: rest.to_owned(), refresh_secs: DEFAULT_REFRESH_SECS })
            }
            "file" if rest.starts_with('/') => Some(Self::File { path: rest.to_owned() }),
            _ => None,
        }
    }

    /// The word shown: `sealed`, `env:NAME`, `file:/path`, `exec:command`.
    #[must_use]
    pub fn describe(&self) -> String {
        match self {
            Self::Env { name } => format!("env:{name}"),
            Self::Exec { command, .. } => format!("exec:{command}"),
            Self::File { path } => format!("file:{path}"),
            Self::Sealed => "sealed".to_owned(),
        }
    }
}

/// How long a token from a command is used before it is fetched anew; cloud tokens live an hour.
pub const DEFAULT_REFRESH_SECS: u64 = 900;

/// The record of a provider key, without its secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProviderKey {
    /// Its id.
    pub id: KeyId,
    /// The provider's id.
    pub provider: String,
    /// What people call it.
    pub name: String,
    /// Who pays with it.
    pub owner: Owner,
    /// Usable or not.
    #[serde(default)]
    pub status: Status,
    /// Where the secret comes from.
    pub origin: Origin,
    /// What may be shown of the secret.
    #[serde(default)]
    pub masked: String,
    /// The upstream it was entered for, `scheme://host:port`; a provider whose host changes does not get it.
    pub bound_to: String,
    /// Globs of models it may pay for; empty is all.
    #[serde(default)]
    pub models: Vec<String>,
    /// Lower goes first within a tier.
    #[serde(default)]
    pub priority: u32,
    /// What may be used of it.
    #[serde(flatten)]
    pub policy: Policy,
    /// Wall time of creation, milliseconds.
    pub created_ms: u64,
    /// Why it is in `error`; redacted.
    #[serde(default)]
    pub last_error: Option<String>,
    /// Counts changes: the ETag, and part of what the sealed secret is bound to.
    #[serde(default)]
    pub version: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references() {
        for (text, want) in [
            ("env:OPENAI", Some("env:OPENAI")),
            ("file:/run/secrets/k", Some("file:/run/secrets/k")),
            ("exec:gcloud auth print-access-token", Some("exec:gcloud auth print-access-token")),
            ("file:relative", None),
            ("env:", None),
            ("sk-proj-abc", None),
            ("https://x", None),
        ] {
            assert_eq!(Origin::parse_reference(text).map(|origin| origin.describe()).as_deref(), want, "{text}");
        }
    }
}
