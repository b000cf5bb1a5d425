//! What each key used over its life, saved now and then: exact, because the ledger's entries since are added at start.
//!
//! Owns the rows of the `usage` and `tat` trees. Leaves counting to `storage::snapshot`, when to save to
//! `storage::writer`.
//!
//! # Why not in every commit
//! A commit that rewrites the counters of every key it saw costs more than the entries themselves. Saving them about
//! each second together with the ledger's sequence number they are as of, in one atomic batch, gives the same promise:
//! a counter is the sum of its entries, whenever the process ends.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::entry::Entry;
use crate::id::KeyId;

use super::checksum::Checksum;
use super::snapshot::SavedStats;

const ROW_VERSION: u8 = 1;
/// The row that says what the others are as of.
pub(super) const AS_OF: &[u8] = b"@";

/// The ledger's sequence number the counters include everything below, and the sum of their rows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct AsOf {
    pub(super) seq: u64,
    pub(super) sum: Checksum,
}

/// Whose counters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Counted {
    ProviderKey(KeyId),
    VirtualKey(KeyId),
}

impl Counted {
    pub(super) fn to_key(self) -> Vec<u8> {
        let (kind, id) = match self {
            Self::ProviderKey(id) => (b'p', id),
            Self::VirtualKey(id) => (b'v', id),
        };
        [&[kind][..], id.as_bytes()].concat()
    }

    pub(super) fn read(key: &[u8]) -> Option<Self> {
        let (kind, id) = key.split_first()?;
        let id = KeyId::from_bytes(id.try_into().ok()?);
        match kind {
            b'p' => Some(Self::ProviderKey(id)),
            b'v' => Some(Self::VirtualKey(id)),
            _ => None,
        }
    }
}

/// Whose counters an entry adds to.
pub(super) fn counted(entry: &Entry) -> impl Iterator<Item = Counted> + use<> {
    let virtual_key = entry.virtual_key.map(Counted::VirtualKey);
    virtual_key.into_iter().chain(entry.provider_key.map(Counted::ProviderKey))
}

impl SavedStats {
    pub(super) fn add(&mut self, entry: &Entry) {
        self.last_used_ms = self.last_used_ms.max(entry.time_ms);
        self.requests = self.requests.wrapping_add(1);
        self.tokens = self.tokens.wrapping_add(entry.tokens.billable());
        self.spent_nano_usd = self.spent_nano_usd.wrapping_add(entry.cost_nano_usd.unwrap_or(0));
    }
}

/// A row of these trees: a version, then postcard.
pub(super) fn saved_row<T: Serialize>(value: &T) -> Vec<u8> {
    // Plain numbers into memory: it cannot fail, and an empty row reads as damage, not as zero.
    postcard::to_extend(value, vec![ROW_VERSION]).unwrap_or_default()
}

/// Reads [`saved_row`].
pub(super) fn read_saved<T: DeserializeOwned>(row: &[u8]) -> Option<T> {
    match row.split_first() {
        Some((&ROW_VERSION, rest)) => postcard::from_bytes(rest).ok(),
        _ => None,
    }
}
