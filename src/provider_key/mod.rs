//! Provider keys: the real ones, their owner and status. The secret itself is sealed elsewhere.
//!
//! Owns the record, and what a key goes through while it is used ([`Health`]); leaves sealing to `storage::vault`,
//! resolving references to `storage::reference`, and choosing among keys to `pool` and `proxy::select`.

mod health;
mod learned;
pub mod section;

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::id::{KeyId, Owner};
use crate::policy::Policy;

pub use health::{Blow, Change, FORBIDDEN_MAX, Health, OPENS_AFTER, Standing};
pub use learned::{Learned, Left, Look, ModelTag, Room};
pub use section::ProviderKeysSection;

/// Whether a provider key may be used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema), schemars(rename = "ProviderKeyStatus"))]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// May be used.
    #[default]
    Active,
    /// At rest for a while: it was used too often, or its provider had too many faults.
    Cooling,
    /// Switched off by hand.
    Disabled,
    /// Refused by the provider, until tested or switched on by hand.
    Error,
    /// Its money, or its tokens of the day, are gone, until its reset or until it is switched on by hand.
    Exhausted,
}

impl Status {
    /// Every one, for metrics.
    pub const ALL: [Self; 5] = [Self::Active, Self::Cooling, Self::Disabled, Self::Error, Self::Exhausted];

    /// The word shown.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Cooling => "cooling",
            Self::Disabled => "disabled",
            Self::Error => "error",
            Self::Exhausted => "exhausted",
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

/// An upstream's origin, as far as origins must be told apart at a glance: a hash of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OriginTag(u64);

impl OriginTag {
    /// Of `scheme://host:port`.
    #[must_use]
    pub fn of(origin: &str) -> Self {
        // FNV-1a.
        let hash = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        Self(origin.bytes().fold(0xcbf2_9ce4_8422_2325, hash))
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
    /// Usable or not, as last written down; what it is now is in its [`Health`].
    #[serde(flatten)]
    pub standing: Standing,
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
    /// Its share under the policy `weighted`.
    #[serde(default = "one")]
    pub weight: u32,
    /// What may be used of it.
    #[serde(flatten)]
    pub policy: Policy,
    /// What its last rotation replaced, as long as that may come back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replaced: Option<Replaced>,
    /// Wall time of creation, milliseconds.
    pub created_ms: u64,
    /// Counts changes: the ETag, and part of what the sealed secret is bound to.
    #[serde(default)]
    pub version: u64,
}

fn one() -> u32 {
    1
}

/// What a rotation replaced: in use again when the provider refuses what took its place, until its grace ends.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Replaced {
    /// Wall time, milliseconds, at which it is forgotten.
    pub until_ms: u64,
    /// The version of the record that the rotation made; tells rotations apart.
    pub rotation: u64,
    /// Where the secret came from.
    pub origin: Origin,
    /// What may be shown of it.
    pub masked: String,
    /// The upstream it was entered for.
    pub bound_to: String,
    /// How it stood.
    pub standing: Standing,
}

impl Replaced {
    /// What may be shown of it: the masked secret, or the reference.
    #[must_use]
    pub fn shown(&self) -> String {
        if self.masked.is_empty() { self.origin.describe() } else { self.masked.clone() }
    }
}

/// For how long a rotation remembers what it replaced, unless said.
pub const DEFAULT_GRACE: Duration = Duration::from_secs(600);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_of_before_are_read() {
        let text = r#"{"id":"0101010101010101","provider":"openai","name":"main","owner":"system","status":"error",
            "origin":{"kind":"sealed"},"masked":"sk-…","bound_to":"https://api.openai.com:443","created_ms":1,
            "last_error":"401","version":3}"#;
        let record: ProviderKey = serde_json::from_str(text).unwrap();
        let standing = Standing { status: Status::Error, last_error: Some("401".to_owned()), ..Standing::default() };
        assert_eq!((record.standing.clone(), record.weight, record.priority), (standing, 1, 0));
        assert_eq!(serde_json::from_str::<ProviderKey>(&serde_json::to_string(&record).unwrap()).unwrap(), record);
    }

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
