//! Who may use the admin API: roles, and the tokens that carry one.
//!
//! Owns the words, the record of a token and its form. Leaves what each role may do to `control`, and storing to
//! `storage`.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::id::{KeyId, is_name};
use crate::virtual_key::Digest;

/// What every admin token begins with; a dash, its id, a dash and its secret follow, as in a virtual key.
pub const TOKEN_PREFIX: &str = "sidekey-admin";

/// What the holder of a token may do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Role {
    /// Everything.
    Admin,
    /// Everything but what trust rests on: tokens, backups, the CA.
    Operator,
    /// Reads.
    Reader,
    /// Their own keys and usage only.
    User(String),
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Admin => f.write_str("admin"),
            Self::Operator => f.write_str("operator"),
            Self::Reader => f.write_str("reader"),
            Self::User(id) => write!(f, "user:{id}"),
        }
    }
}

/// A text that is not a role.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a role is admin, operator, reader or user:<id>, not {0:?}")]
pub struct BadRole(String);

impl FromStr for Role {
    type Err = BadRole;

    fn from_str(text: &str) -> Result<Self, BadRole> {
        match (text, text.strip_prefix("user:")) {
            ("admin", _) => Ok(Self::Admin),
            ("operator", _) => Ok(Self::Operator),
            ("reader", _) => Ok(Self::Reader),
            (_, Some(id)) if is_name(id) => Ok(Self::User(id.to_owned())),
            _ => Err(BadRole(text.to_owned())),
        }
    }
}

impl Serialize for Role {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Role {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// The record of an admin token. The token itself is not in it: only its digest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AccessToken {
    /// The public part.
    pub id: KeyId,
    /// What people call it.
    pub name: String,
    /// What it may do.
    pub role: Role,
    /// Keyed digest of the whole token.
    pub digest: Digest,
    /// Wall time of creation, milliseconds.
    pub created_ms: u64,
    /// Wall time of expiry, milliseconds; `None` never expires.
    pub expires_ms: Option<u64>,
    /// Wall time of its last use, milliseconds, to within a minute.
    #[serde(default)]
    pub last_used_ms: Option<u64>,
    /// True for one that a login with a code made.
    #[serde(default)]
    pub session: bool,
}

impl AccessToken {
    /// True when its expiry has passed.
    #[must_use]
    pub fn is_expired(&self, wall_ms: u64) -> bool {
        self.expires_ms.is_some_and(|at| wall_ms >= at)
    }

    /// True when the presented token is this one, and still good.
    #[must_use]
    pub fn accepts(&self, presented: Digest, wall_ms: u64) -> bool {
        self.digest == presented && !self.is_expired(wall_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::virtual_key::{DigestKey, generate, has_prefix, parse_id};

    #[test]
    fn roles() {
        for text in ["admin", "operator", "reader", "user:alice", "user:a:b"] {
            assert_eq!(text.parse::<Role>().map(|role| role.to_string()).as_deref(), Ok(text));
        }
        for bad in ["", "root", "Admin", "user:", "user: a", "team:t1"] {
            assert!(bad.parse::<Role>().is_err(), "{bad}");
        }
    }

    #[test]
    fn only_the_right_token_in_its_time_is_accepted() {
        let digests = DigestKey::from_bytes([7; 32]);
        let id = KeyId::from_bytes([1; 8]);
        let text = generate(TOKEN_PREFIX, id).expect("randomness");
        assert!(has_prefix(TOKEN_PREFIX, text.expose()) && parse_id(text.expose()) == Some(id));
        let digest = digests.digest(text.expose());
        let token = AccessToken {
            id,
            name: "ci".into(),
            role: Role::Reader,
            digest,
            created_ms: 0,
            expires_ms: Some(100),
            last_used_ms: None,
            session: false,
        };
        for (presented, now, want) in [(digest, 99, true), (digest, 100, false), (digests.digest("x"), 1, false)] {
            assert_eq!(token.accepts(presented, now), want, "{now}");
        }
        let text = serde_json::to_string(&token).unwrap();
        assert_eq!(serde_json::from_str::<AccessToken>(&text).unwrap(), token);
    }
}
