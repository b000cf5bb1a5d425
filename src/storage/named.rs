//! Records that have a name instead of an id: plans and the like.
//!
//! Owns their kinds, their rows' keys and how each kind is read back. Leaves changing them to `storage::records` and
//! the view of them to `storage::snapshot`.
//!
//! A row's key is the kind's letter and the name; its value is that of any record: sealed JSON of at most 4 KB.

use std::any::Any;
use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::access::AccessToken;
use crate::owner::OwnerPolicy;
use crate::plan::Plan;
use crate::pool::Pool;
use crate::pricing::PriceRecord;

use super::StoreError;
use super::ca::CaRecord;
use super::lease::LeaseRecord;

/// A kind of named record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// [`CaRecord`]s.
    Ca,
    /// [`LeaseRecord`]s.
    Lease,
    /// [`OwnerPolicy`]s.
    Owner,
    /// [`Plan`]s.
    Plan,
    /// [`Pool`]s.
    Pool,
    /// [`PriceRecord`]s.
    Price,
    /// [`AccessToken`]s.
    Token,
}

/// A record with a name. A new kind takes an implementation beside its type, and a line in each table below.
pub trait Named: Serialize + DeserializeOwned + fmt::Debug + Send + Sync + 'static {
    /// Its kind; no two types share one.
    const KIND: Kind;

    /// Its name, unique among its kind.
    fn name(&self) -> Cow<'_, str>;
}

impl Named for AccessToken {
    const KIND: Kind = Kind::Token;

    fn name(&self) -> Cow<'_, str> {
        Cow::Owned(self.id.to_string())
    }
}

impl Named for OwnerPolicy {
    const KIND: Kind = Kind::Owner;

    fn name(&self) -> Cow<'_, str> {
        Cow::Borrowed(&self.owner)
    }
}

impl Named for Plan {
    const KIND: Kind = Kind::Plan;

    fn name(&self) -> Cow<'_, str> {
        Cow::Borrowed(&self.name)
    }
}

impl Named for PriceRecord {
    const KIND: Kind = Kind::Price;

    fn name(&self) -> Cow<'_, str> {
        Cow::Owned(self.name.to_string())
    }
}

impl Named for Pool {
    const KIND: Kind = Kind::Pool;

    fn name(&self) -> Cow<'_, str> {
        Cow::Borrowed(&self.name)
    }
}

impl Kind {
    /// The word for one of them.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ca => "ca",
            Self::Lease => "lease",
            Self::Owner => "owner",
            Self::Plan => "plan",
            Self::Pool => "pool",
            Self::Price => "price",
            Self::Token => "token",
        }
    }

    fn letter(self) -> u8 {
        match self {
            Self::Ca => b'c',
            Self::Lease => b'e',
            Self::Owner => b'o',
            Self::Plan => b'p',
            Self::Pool => b'l',
            Self::Price => b'$',
            Self::Token => b't',
        }
    }

    fn of_letter(letter: u8) -> Option<Self> {
        match letter {
            b'c' => Some(Self::Ca),
            b'e' => Some(Self::Lease),
            b'l' => Some(Self::Pool),
            b'o' => Some(Self::Owner),
            b'p' => Some(Self::Plan),
            b't' => Some(Self::Token),
            b'$' => Some(Self::Price),
            _ => None,
        }
    }

    /// Reads a record of this kind; `None` when it is not one.
    pub(super) fn decode(self, json: &[u8]) -> Option<Value> {
        match self {
            Self::Ca => decode::<CaRecord>(json),
            Self::Lease => decode::<LeaseRecord>(json),
            Self::Owner => decode::<OwnerPolicy>(json),
            Self::Plan => decode::<Plan>(json),
            Self::Pool => decode::<Pool>(json),
            Self::Price => decode::<PriceRecord>(json),
            Self::Token => decode::<AccessToken>(json),
        }
    }

    /// A record of this kind as JSON.
    fn encode(self, value: &Value) -> Option<serde_json::Value> {
        match self {
            Self::Ca => encode::<CaRecord>(value),
            Self::Lease => encode::<LeaseRecord>(value),
            Self::Owner => encode::<OwnerPolicy>(value),
            Self::Plan => encode::<Plan>(value),
            Self::Pool => encode::<Pool>(value),
            Self::Price => encode::<PriceRecord>(value),
            Self::Token => encode::<AccessToken>(value),
        }
    }

    pub(super) fn row_key(self, name: &str) -> Vec<u8> {
        [&[self.letter()][..], name.as_bytes()].concat()
    }

    pub(super) fn of_row_key(key: &[u8]) -> Option<(Self, Arc<str>)> {
        let (letter, name) = key.split_first()?;
        Some((Self::of_letter(*letter)?, Arc::from(std::str::from_utf8(name).ok()?)))
    }
}

fn decode<T: Named>(json: &[u8]) -> Option<Value> {
    let value: T = serde_json::from_slice(json).ok()?;
    Some(Arc::new(value))
}

fn encode<T: Named>(value: &Value) -> Option<serde_json::Value> {
    serde_json::to_value(value.downcast_ref::<T>()?).ok()
}

pub(super) type Value = Arc<dyn Any + Send + Sync>;

/// A named record as the snapshot holds it.
#[derive(Clone)]
pub struct NamedState {
    /// Counts its changes: the ETag.
    pub(super) version: u64,
    pub(super) value: Value,
}

impl fmt::Debug for NamedState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NamedState").field("version", &self.version).finish_non_exhaustive()
    }
}

impl NamedState {
    pub(super) fn value<T: Named>(&self) -> Option<Arc<T>> {
        Arc::clone(&self.value).downcast().ok()
    }

    /// As JSON, with whatever secret is in it.
    pub(super) fn to_json(&self, kind: Kind) -> Option<serde_json::Value> {
        kind.encode(&self.value)
    }
}

/// A record on its way to the writer.
pub(super) struct Record {
    pub(super) kind: Kind,
    pub(super) name: Arc<str>,
    pub(super) json: Vec<u8>,
    pub(super) value: Value,
}

impl fmt::Debug for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Record").field("kind", &self.kind).field("name", &self.name).finish_non_exhaustive()
    }
}

impl Record {
    pub(super) fn new<T: Named>(record: T) -> Result<Self, StoreError> {
        let json = serde_json::to_vec(&record).map_err(|error| StoreError::Unavailable(error.to_string()))?;
        Ok(Self { kind: T::KIND, name: Arc::from(&*record.name()), json, value: Arc::new(record) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_of_rows_are_read_back() {
        for name in ["free", "", "p", "ä/b c"] {
            let key = Kind::Plan.row_key(name);
            assert_eq!(Kind::of_row_key(&key), Some((Kind::Plan, Arc::from(name))), "{name:?}");
        }
        for key in [&b""[..], b"?x", b"p\xff"] {
            assert_eq!(Kind::of_row_key(key), None, "{key:?}");
        }
    }
}
