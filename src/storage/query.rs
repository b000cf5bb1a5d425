//! Questions to the ledger: entries by filter.
//!
//! Owns filters and reading blocks in order. Leaves sums to `storage::usage`, and committing what is queued, so that it is
//! seen, to `storage::ledger`.

use std::str::FromStr;

use crate::entry::Entry;
use crate::id::{KeyId, KeySource};

use super::block::{BlockKey, Entries, Head, StoredEntry, Unpacker};
use super::engine::{EngineError, guarded};
use super::shared::Pending;
use super::usage::Facts;

/// Which entries are meant; an unset field leaves all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LedgerFilter {
    /// Arrived at or after this wall time, milliseconds.
    pub from_ms: Option<u64>,
    /// Arrived before this wall time, milliseconds.
    pub to_ms: Option<u64>,
    /// The virtual key.
    pub key: Option<KeyId>,
    /// The user.
    pub user: Option<String>,
    /// The team.
    pub team: Option<String>,
    /// The plan whose limits held.
    pub plan: Option<String>,
    /// The provider's id.
    pub provider: Option<String>,
    /// The provider key that paid.
    pub provider_key: Option<KeyId>,
    /// The model asked for, or the one the provider named.
    pub model: Option<String>,
    /// The tier that paid.
    pub key_source: Option<KeySource>,
    /// `x-sidekey-group`.
    pub group: Option<String>,
    /// At most so many entries; [`super::Ledger::usage`] does not look at it.
    pub limit: Option<usize>,
    /// The last recorded first.
    pub newest_first: bool,
    /// Go on after the page that ended here.
    pub after: Option<Cursor>,
}

/// A place between two entries of the ledger; good as long as the entries are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cursor(u64);

impl std::fmt::Display for Cursor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:x}", self.0)
    }
}

impl FromStr for Cursor {
    type Err = std::num::ParseIntError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        u64::from_str_radix(text, 16).map(Self)
    }
}

/// Entries, and where to go on when there may be more.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Page {
    /// In the order asked for.
    pub entries: Vec<Entry>,
    /// Set when the limit was reached.
    pub next: Option<Cursor>,
}

impl LedgerFilter {
    pub(super) fn matches(&self, entry: &StoredEntry<'_>) -> bool {
        self.from_ms.is_none_or(|from| entry.time_ms >= from)
            && self.to_ms.is_none_or(|to| entry.time_ms < to)
            && self.fits(&Facts::of(entry))
    }

    /// All but the time.
    pub(super) fn fits(&self, facts: &Facts<'_>) -> bool {
        let same = |want: &Option<String>, is: Option<&str>| want.is_none() || want.as_deref() == is;
        self.key.is_none_or(|key| facts.virtual_key.as_ref() == Some(key.as_bytes()))
            && self.provider_key.is_none_or(|key| facts.provider_key.as_ref() == Some(key.as_bytes()))
            && (self.key_source.is_none() || self.key_source == facts.key_source)
            && same(&self.user, facts.user)
            && same(&self.team, facts.team)
            && same(&self.plan, facts.plan)
            && same(&self.provider, Some(facts.provider))
            && same(&self.group, facts.group)
            && (same(&self.model, facts.model_requested) || same(&self.model, facts.model_reported))
    }

    /// False when no entry of a block can match.
    fn may_match(&self, head: &Head) -> bool {
        self.from_ms.is_none_or(|from| head.latest_ms >= from) && self.to_ms.is_none_or(|to| head.earliest_ms < to)
    }
}

/// What is read: the blocks before the pending entries, then those; and the roll-ups of both.
pub(super) struct Source<'a> {
    pub(super) tree: &'a sled::Tree,
    pub(super) rollups: &'a sled::Tree,
    pub(super) pending: &'a Pending,
}

/// Hands runs of entries that may match to `visit`, with the number of the first and how many there are, until it says
/// no. Returns how many blocks were unreadable.
pub(super) fn scan(
    source: &Source<'_>,
    filter: &LedgerFilter,
    newest_first: bool,
    mut visit: impl FnMut(u64, u64, Entries<'_>) -> bool,
) -> Result<u64, EngineError> {
    let Source { tree, pending, .. } = source;
    let visit_pending = |visit: &mut dyn FnMut(u64, u64, Entries<'_>) -> bool| {
        let count = pending.entries.entries() as u64;
        count == 0 || visit(pending.first_seq, count, pending.entries.iter())
    };
    if newest_first && !visit_pending(&mut visit) {
        return Ok(0);
    }
    // Every entry arrived at or before its block's epoch.
    let start = BlockKey { epoch_ms: filter.from_ms.unwrap_or(0), first_seq: 0 }.to_bytes();
    let (damaged, more) = guarded(|| {
        let mut rows = tree.range(start..);
        let mut unpacker = Unpacker::new();
        let mut damaged = 0;
        while let Some(row) = if newest_first { rows.next_back() } else { rows.next() } {
            let (key, value) = row?;
            let (Some(at), Some(head)) = (BlockKey::from_bytes(&key), Head::read(&value)) else {
                damaged += 1;
                continue;
            };
            // A block written since the pending entries were handed out holds them again.
            if at.first_seq >= pending.first_seq || !filter.may_match(&head) {
                continue;
            }
            let Some(entries) = unpacker.unpack(&value) else {
                damaged += 1;
                continue;
            };
            if !visit(at.first_seq, head.entries.into(), entries) {
                return Ok((damaged, false));
            }
        }
        Ok((damaged, true))
    })?;
    if more && !newest_first {
        visit_pending(&mut visit);
    }
    Ok(damaged)
}

/// Hands every entry from the number `seq` on to `visit`, in no order.
pub(super) fn scan_from(
    source: &Source<'_>,
    seq: u64,
    mut visit: impl FnMut(&StoredEntry<'_>),
) -> Result<u64, EngineError> {
    // From the end, to the block that holds it.
    scan(source, &LedgerFilter::default(), true, |first_seq, _, entries| {
        let wanted = (first_seq..).zip(entries).filter(|(at, _)| *at >= seq);
        wanted.for_each(|(_, entry)| visit(&entry));
        first_seq > seq
    })
}

/// The entries a filter means, and the number of unreadable blocks.
pub(super) fn entries(source: &Source<'_>, filter: &LedgerFilter) -> Result<(Page, u64), EngineError> {
    let limit = filter.limit.unwrap_or(usize::MAX);
    let mut page = Page::default();
    let damaged = scan(source, filter, filter.newest_first, |first_seq, count, entries| {
        let wanted = |seq: u64| match filter.after {
            Some(Cursor(after)) if filter.newest_first => seq < after,
            Some(Cursor(after)) => seq > after,
            None => true,
        };
        let last = first_seq + count.saturating_sub(1);
        if !wanted(if filter.newest_first { first_seq } else { last }) {
            return true;
        }
        let mut found: Vec<(u64, Entry)> = (first_seq..)
            .zip(entries)
            .filter(|(seq, entry)| wanted(*seq) && filter.matches(entry))
            .map(|(seq, entry)| (seq, entry.to_entry()))
            .collect();
        if filter.newest_first {
            found.reverse();
        }
        for (seq, entry) in found {
            if page.entries.len() == limit {
                return false;
            }
            page.entries.push(entry);
            page.next = (page.entries.len() == limit).then_some(Cursor(seq));
        }
        true
    })?;
    Ok((page, damaged))
}
