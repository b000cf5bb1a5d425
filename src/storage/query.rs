//! Questions to the ledger: entries by filter, and sums by dimension.
//!
//! Owns filters, sums and reading blocks in order. Leaves committing what is queued, so that it is seen, to
//! `storage::ledger`.

use std::collections::HashMap;
use std::str::FromStr;

use serde::ser::{SerializeMap, SerializeStruct};
use serde::{Serialize, Serializer};

use crate::clock::rfc3339;
use crate::entry::{Entry, Outcome};
use crate::id::{KeyId, KeySource};
use crate::unit::{TokensSource, Usage, usd};

use super::block::{BlockKey, Entries, Head, StoredEntry, Unpacker};
use super::engine::{EngineError, guarded};
use super::shared::Pending;

const DAY_MS: u64 = 86_400_000;

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
    fn matches(&self, entry: &StoredEntry<'_>) -> bool {
        let same = |want: &Option<String>, is: Option<&str>| want.is_none() || want.as_deref() == is;
        self.from_ms.is_none_or(|from| entry.time_ms >= from)
            && self.to_ms.is_none_or(|to| entry.time_ms < to)
            && self.key.is_none_or(|key| entry.virtual_key.as_ref() == Some(key.as_bytes()))
            && self.provider_key.is_none_or(|key| entry.provider_key.as_ref() == Some(key.as_bytes()))
            && (self.key_source.is_none() || self.key_source == entry.key_source)
            && same(&self.user, entry.user)
            && same(&self.team, entry.team)
            && same(&self.provider, Some(entry.provider))
            && same(&self.group, entry.group)
            && (same(&self.model, entry.model_requested) || same(&self.model, entry.model_reported))
    }

    /// False when no entry of a block can match.
    fn may_match(&self, head: &Head) -> bool {
        self.from_ms.is_none_or(|from| head.latest_ms >= from) && self.to_ms.is_none_or(|to| head.earliest_ms < to)
    }
}

/// What is read: the blocks before the pending entries, then those.
pub(super) struct Source<'a> {
    pub(super) tree: &'a sled::Tree,
    pub(super) pending: &'a Pending,
}

/// Hands runs of entries that may match to `visit`, with the number of the first and how many there are, until it says
/// no. Returns how many blocks were unreadable.
fn scan(
    source: &Source<'_>,
    filter: &LedgerFilter,
    newest_first: bool,
    mut visit: impl FnMut(u64, u64, Entries<'_>) -> bool,
) -> Result<u64, EngineError> {
    let Source { tree, pending } = source;
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

/// What sums are made by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dimension {
    /// The UTC day.
    Day,
    /// The endpoint.
    Endpoint,
    /// `x-sidekey-group`.
    Group,
    /// The virtual key.
    Key,
    /// The model asked for, else the one the provider named.
    Model,
    /// Nothing: totals only.
    None,
    /// The provider.
    Provider,
    /// The provider key.
    ProviderKey,
    /// The tier that paid.
    Source,
    /// The team.
    Team,
    /// The user.
    User,
}

impl Dimension {
    /// Every one.
    pub const ALL: [Self; 11] = [
        Self::Day,
        Self::Endpoint,
        Self::Group,
        Self::Key,
        Self::Model,
        Self::None,
        Self::Provider,
        Self::ProviderKey,
        Self::Source,
        Self::Team,
        Self::User,
    ];

    /// The word for it, and the field of a group that holds its value.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Day => "day",
            Self::Endpoint => "endpoint",
            Self::Group => "group",
            Self::Key => "key",
            Self::Model => "model",
            Self::None => "none",
            Self::Provider => "provider",
            Self::ProviderKey => "provider_key",
            Self::Source => "source",
            Self::Team => "team",
            Self::User => "user",
        }
    }

    /// The words for all of them, for people.
    #[must_use]
    pub fn words() -> String {
        let words = Self::ALL.map(Self::as_str);
        let (last, others) = words.split_last().unwrap_or((&"", &[]));
        format!("{} or {last}", others.join(", "))
    }
}

/// A text that names no dimension.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("usage is summed by {words}, not {0:?}", words = Dimension::words())]
pub struct BadDimension(String);

impl FromStr for Dimension {
    type Err = BadDimension;

    fn from_str(text: &str) -> Result<Self, BadDimension> {
        let wanted = text.replace('-', "_");
        Self::ALL.into_iter().find(|each| each.as_str() == wanted).ok_or_else(|| BadDimension(text.to_owned()))
    }
}

/// Sums over entries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct UsageTotals {
    /// Entries.
    pub requests: u64,
    /// Entries whose outcome is not `ok`.
    pub failed: u64,
    /// Figure by figure; one nobody reported stays unknown.
    pub tokens: Usage,
    /// In billionths of a US dollar; `None` when no entry has a price.
    pub cost_nano_usd: Option<u64>,
    /// Entries whose tokens the provider reported.
    pub reported: u64,
    /// Entries whose tokens sidekey counted.
    pub estimated: u64,
    /// Entries without tokens.
    pub uncounted: u64,
}

impl UsageTotals {
    fn add(&mut self, entry: &StoredEntry<'_>) {
        self.requests += 1;
        self.failed += u64::from(entry.outcome != Outcome::Ok);
        self.tokens.add(&entry.tokens);
        if let Some(cost) = entry.cost_nano_usd {
            self.cost_nano_usd = Some(self.cost_nano_usd.unwrap_or(0).saturating_add(cost));
        }
        match entry.tokens_source {
            TokensSource::Estimated => self.estimated += 1,
            TokensSource::None => self.uncounted += 1,
            TokensSource::Reported => self.reported += 1,
        }
    }

    fn serialize_into<M: SerializeMap>(&self, map: &mut M) -> Result<(), M::Error> {
        map.serialize_entry("requests", &self.requests)?;
        map.serialize_entry("failed", &self.failed)?;
        map.serialize_entry("tokens", &self.tokens)?;
        map.serialize_entry("tokens_source", &Sources(*self))?;
        map.serialize_entry("cost_usd", &self.cost_nano_usd.map(usd))
    }
}

struct Sources(UsageTotals);

impl Serialize for Sources {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(3))?;
        map.serialize_entry(TokensSource::Reported.as_str(), &self.0.reported)?;
        map.serialize_entry(TokensSource::Estimated.as_str(), &self.0.estimated)?;
        map.serialize_entry(TokensSource::None.as_str(), &self.0.uncounted)?;
        map.end()
    }
}

impl Serialize for UsageTotals {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        self.serialize_into(&mut map)?;
        map.end()
    }
}

/// The sums of one value of the dimension.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UsageGroup {
    /// The value; `None` for entries without one.
    pub value: Option<String>,
    /// Its sums.
    pub totals: UsageTotals,
}

/// An answer to `usage`: its JSON is that of `sidekey usage -o json`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UsageReport {
    /// What the groups are made by.
    pub by: Dimension,
    /// From this wall time on, milliseconds; `None` from the beginning.
    pub from_ms: Option<u64>,
    /// Before this wall time, milliseconds; `None` until now.
    pub to_ms: Option<u64>,
    /// Over all groups.
    pub totals: UsageTotals,
    /// Days in their order, everything else by tokens, most first. Empty for [`Dimension::None`].
    pub groups: Vec<UsageGroup>,
}

impl Serialize for UsageReport {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let groups: Vec<_> = self.groups.iter().map(|group| Named(self.by.as_str(), group)).collect();
        let mut report = serializer.serialize_struct("UsageReport", 4)?;
        report.serialize_field("from", &self.from_ms.map(rfc3339))?;
        report.serialize_field("to", &self.to_ms.map(rfc3339))?;
        report.serialize_field("totals", &self.totals)?;
        report.serialize_field("groups", &groups)?;
        report.end()
    }
}

struct Named<'a>(&'static str, &'a UsageGroup);

impl Serialize for Named<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry(self.0, &self.1.value)?;
        self.1.totals.serialize_into(&mut map)?;
        map.end()
    }
}

/// Sums over the entries a filter means, and the number of unreadable blocks.
pub(super) fn usage(
    source: &Source<'_>,
    filter: &LedgerFilter,
    by: Dimension,
) -> Result<(UsageReport, u64), EngineError> {
    let mut totals = UsageTotals::default();
    let mut numbers: HashMap<Option<u64>, UsageTotals> = HashMap::new();
    let mut texts: HashMap<String, UsageTotals> = HashMap::new();
    let damaged = scan(source, filter, false, |_, _, entries| {
        for entry in entries.filter(|entry| filter.matches(entry)) {
            totals.add(&entry);
            match group_of(&entry, by) {
                Some(Value::Number(number)) => numbers.entry(number).or_default().add(&entry),
                Some(Value::Text(Some(text))) => match texts.get_mut(text) {
                    Some(totals) => totals.add(&entry),
                    None => texts.entry(text.to_owned()).or_default().add(&entry),
                },
                Some(Value::Text(None)) => numbers.entry(None).or_default().add(&entry),
                None => {}
            }
        }
        true
    })?;
    let named = |(number, totals): (Option<u64>, _)| (number.map(|number| number_name(number, by)), totals);
    let groups = numbers.into_iter().map(named);
    let groups = groups.chain(texts.into_iter().map(|(text, totals)| (Some(text), totals)));
    let mut groups: Vec<UsageGroup> = groups.map(|(value, totals)| UsageGroup { value, totals }).collect();
    sort(&mut groups, by);
    Ok((UsageReport { by, from_ms: filter.from_ms, to_ms: filter.to_ms, totals, groups }, damaged))
}

fn sort(groups: &mut [UsageGroup], by: Dimension) {
    match by {
        Dimension::Day => groups.sort_by(|a, b| a.value.cmp(&b.value)),
        _ => groups.sort_by(|a, b| {
            let tokens = |group: &UsageGroup| (group.totals.tokens.billable(), group.totals.requests);
            tokens(b).cmp(&tokens(a)).then_with(|| a.value.cmp(&b.value))
        }),
    }
}

/// A group's value: texts are looked up borrowed, ids and days as numbers, since millions of entries pass by.
enum Value<'a> {
    Number(Option<u64>),
    Text(Option<&'a str>),
}

fn group_of<'a>(entry: &StoredEntry<'a>, by: Dimension) -> Option<Value<'a>> {
    let id = |id: Option<[u8; 8]>| Value::Number(id.map(u64::from_be_bytes));
    Some(match by {
        Dimension::Day => Value::Number(Some(entry.time_ms / DAY_MS)),
        Dimension::Endpoint => Value::Text(Some(entry.endpoint)),
        Dimension::Group => Value::Text(entry.group),
        Dimension::Key => id(entry.virtual_key),
        Dimension::Model => Value::Text(entry.model()),
        Dimension::None => return None,
        Dimension::Provider => Value::Text(Some(entry.provider)),
        Dimension::ProviderKey => id(entry.provider_key),
        Dimension::Source => Value::Text(entry.key_source.map(KeySource::as_str)),
        Dimension::Team => Value::Text(entry.team),
        Dimension::User => Value::Text(entry.user),
    })
}

fn number_name(number: u64, by: Dimension) -> String {
    match by {
        Dimension::Day => rfc3339(number * DAY_MS)[..10].to_owned(),
        _ => KeyId::from_bytes(number.to_be_bytes()).to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_dimensions() {
        for each in Dimension::ALL {
            assert_eq!(each.as_str().parse(), Ok(each));
            assert_eq!(each.as_str().replace('_', "-").parse(), Ok(each));
        }
        let said = "colour".parse::<Dimension>().unwrap_err().to_string();
        assert_eq!(said, format!("usage is summed by {}, not \"colour\"", Dimension::words()));
        assert!(Dimension::words().starts_with("day, endpoint, ") && Dimension::words().ends_with(", team or user"));
    }
}
