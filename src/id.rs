//! Names of things: virtual keys, provider keys, requests, owners.
//!
//! Owns their spelling; leaves what they name to the domain modules.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use aws_lc_rs::rand;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// Eight random bytes, written as 16 hex characters: the public part of a virtual key, or a provider key's name.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct KeyId([u8; 8]);

impl KeyId {
    /// A new random id.
    ///
    /// # Errors
    /// When the operating system gives no randomness.
    pub fn random() -> Result<Self, NoRandomness> {
        let mut bytes = [0; 8];
        rand::fill(&mut bytes).map_err(|_| NoRandomness)?;
        Ok(Self(bytes))
    }

    /// The id made of these bytes.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 8]) -> Self {
        Self(bytes)
    }

    /// Its bytes, as stored.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 8] {
        &self.0
    }
}

/// The operating system's random source failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the operating system gives no randomness")]
pub struct NoRandomness;

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", u64::from_be_bytes(self.0))
    }
}

impl fmt::Debug for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A text that is not an id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an id is 16 lower-case hex characters")]
pub struct BadId;

impl FromStr for KeyId {
    type Err = BadId;

    fn from_str(text: &str) -> Result<Self, BadId> {
        if text.len() != 16 {
            return Err(BadId);
        }
        let number = text.bytes().try_fold(0_u64, |number, c| {
            let digit = match c {
                b'0'..=b'9' => c - b'0',
                b'a'..=b'f' => c - b'a' + 10,
                _ => return Err(BadId),
            };
            Ok(number << 4 | u64::from(digit))
        })?;
        Ok(Self(number.to_be_bytes()))
    }
}

impl Serialize for KeyId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for KeyId {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// A request's id: UUIDv7 (RFC 9562), so that ids sort by time.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RequestId(Uuid);

impl RequestId {
    /// A new id, made at `wall_ms`.
    #[must_use]
    pub fn new(wall_ms: u64) -> Self {
        let random = *Uuid::new_v4().as_bytes();
        let mut tail = [0; 10];
        tail.copy_from_slice(&random[6..]);
        Self(uuid::Builder::from_unix_timestamp_millis(wall_ms, &tail).into_uuid())
    }

    /// The id made of these bytes.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(Uuid::from_bytes(bytes))
    }

    /// 62 bits of it that differ from request to request and can be told by nobody before.
    #[must_use]
    pub fn random_bits(&self) -> u64 {
        self.0.as_u64_pair().1 << 2
    }

    /// Its 16 bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 16] {
        self.0.as_bytes()
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl fmt::Debug for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl FromStr for RequestId {
    type Err = uuid::Error;

    fn from_str(text: &str) -> Result<Self, uuid::Error> {
        Uuid::from_str(text).map(Self)
    }
}

/// Whose provider key it is: `user:<id>`, `team:<id>` or `system`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Owner {
    /// The operator's: the last tier.
    System,
    /// A team's.
    Team(String),
    /// A user's: serves that user only.
    User(String),
}

impl Owner {
    /// The tier this owner's keys pay in.
    #[must_use]
    pub fn source(&self) -> KeySource {
        match self {
            Self::System => KeySource::System,
            Self::Team(_) => KeySource::Team,
            Self::User(_) => KeySource::User,
        }
    }
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::System => f.write_str("system"),
            Self::Team(id) => write!(f, "team:{id}"),
            Self::User(id) => write!(f, "user:{id}"),
        }
    }
}

/// A text that is not an owner.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an owner is user:<id>, team:<id> or system, not {0:?}")]
pub struct BadOwner(String);

impl FromStr for Owner {
    type Err = BadOwner;

    fn from_str(text: &str) -> Result<Self, BadOwner> {
        match text.split_once(':') {
            None if text == "system" => Ok(Self::System),
            Some(("team", id)) if is_name(id) => Ok(Self::Team(id.to_owned())),
            Some(("user", id)) if is_name(id) => Ok(Self::User(id.to_owned())),
            _ => Err(BadOwner(text.to_owned())),
        }
    }
}

impl Serialize for Owner {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Owner {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// Whose limits, or whose use: what is counted for by itself.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ScopeId {
    /// A virtual key.
    Key(KeyId),
    /// All keys of a plan together.
    Plan(Arc<str>),
    /// A provider key.
    ProviderKey(KeyId),
    /// A team.
    Team(Arc<str>),
    /// A user.
    User(Arc<str>),
}

impl ScopeId {
    /// Every [`ScopeId::kind`].
    pub const KINDS: [&'static str; 5] = ["key", "plan", "provider_key", "team", "user"];

    /// The kind's word; also a metric's label.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Key(_) => "key",
            Self::Plan(_) => "plan",
            Self::ProviderKey(_) => "provider_key",
            Self::Team(_) => "team",
            Self::User(_) => "user",
        }
    }
}

impl fmt::Display for ScopeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Key(id) => write!(f, "key {id}"),
            Self::Plan(name) => write!(f, "plan {name}"),
            Self::ProviderKey(id) => write!(f, "provider key {id}"),
            Self::Team(id) => write!(f, "team {id}"),
            Self::User(id) => write!(f, "user {id}"),
        }
    }
}

/// Which tier paid for a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum KeySource {
    /// The caller's own key.
    User,
    /// The caller's team's key.
    Team,
    /// The operator's key.
    System,
}

impl KeySource {
    /// The word used in headers, metrics and the ledger.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::System => "system",
            Self::Team => "team",
            Self::User => "user",
        }
    }
}

/// True for names of users, teams, keys, groups: 1 to 128 characters, printable, no leading or trailing space.
#[must_use]
pub fn is_name(text: &str) -> bool {
    !text.is_empty() && text.chars().count() <= 128 && text.trim() == text && !text.chars().any(char::is_control)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn key_ids_are_sixteen_hex_characters() {
        let id = KeyId::random().expect("randomness");
        assert_eq!(id.to_string().parse(), Ok(id));
        for bad in ["", "a1b2", "a1b2c3d4e5f6789", "A1B2C3D4E5F67890", "a1b2c3d4e5f6789g", "+1b2c3d4e5f67890"] {
            assert_eq!(bad.parse::<KeyId>(), Err(BadId), "{bad}");
        }
    }

    #[test]
    fn request_ids_sort_by_time() {
        assert!(RequestId::new(1) < RequestId::new(2));
        assert_ne!(RequestId::new(1), RequestId::new(1));
        assert_eq!(RequestId::new(7).to_string().as_bytes()[14], b'7');
    }

    #[test]
    fn owners() {
        for text in ["system", "team:t1", "user:alice", "user:a:b"] {
            assert_eq!(text.parse::<Owner>().map(|owner| owner.to_string()).as_deref(), Ok(text));
        }
        for bad in ["", "alice", "user:", "team: x", "group:x", "system:x"] {
            assert!(bad.parse::<Owner>().is_err(), "{bad}");
        }
    }
}
