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

use crate::id::{KeyId, ScopeId};
use crate::limit::SavedAmount;

use super::checksum::Checksum;
use super::snapshot::SavedStats;

const ROW_VERSION: u8 = 1;
/// Of [`Saved`], since it has amounts.
const AMOUNTS_VERSION: u8 = 2;
/// The row that says what the others are as of.
pub(super) const AS_OF: &[u8] = b"@";

/// The ledger's sequence number the counters include everything below, and the sum of their rows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct AsOf {
    pub(super) seq: u64,
    pub(super) sum: Checksum,
}

/// The key of a scope's row.
pub(super) fn row_key(id: &ScopeId) -> Vec<u8> {
    let (kind, name): (u8, &[u8]) = match id {
        ScopeId::Key(id) => (b'v', id.as_bytes()),
        ScopeId::Plan(name) => (b'n', name.as_bytes()),
        ScopeId::ProviderKey(id) => (b'p', id.as_bytes()),
        ScopeId::Team(id) => (b't', id.as_bytes()),
        ScopeId::User(id) => (b'u', id.as_bytes()),
    };
    [&[kind][..], name].concat()
}

/// Reads [`row_key`].
pub(super) fn scope_of_row(key: &[u8]) -> Option<ScopeId> {
    let (kind, name) = key.split_first()?;
    let id = || Some(KeyId::from_bytes(name.try_into().ok()?));
    let text = || Some(std::str::from_utf8(name).ok()?.into());
    match kind {
        b'n' => text().map(ScopeId::Plan),
        b'p' => id().map(ScopeId::ProviderKey),
        b't' => text().map(ScopeId::Team),
        b'u' => text().map(ScopeId::User),
        b'v' => id().map(ScopeId::Key),
        _ => None,
    }
}

/// A scope's row: what it used over its life, and of its budgets and quotas in their windows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Saved {
    pub(super) stats: SavedStats,
    pub(super) amounts: Vec<SavedAmount>,
}

impl Saved {
    pub(super) fn row(&self) -> Vec<u8> {
        let plain = vec![AMOUNTS_VERSION];
        // As `saved_row`.
        postcard::to_extend(&(self.stats, &self.amounts), plain).unwrap_or_default()
    }

    pub(super) fn read(row: &[u8]) -> Option<Self> {
        match row.split_first()? {
            (&AMOUNTS_VERSION, rest) => {
                let (stats, amounts) = postcard::from_bytes(rest).ok()?;
                Some(Self { stats, amounts })
            }
            // Before there were budgets.
            _ => Some(Self { stats: read_saved(row)?, amounts: Vec::new() }),
        }
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
