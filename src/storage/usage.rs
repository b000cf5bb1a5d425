//! Sums over the ledger by dimension.
//!
//! Owns the sums and which of them roll-ups can answer. Leaves entries to `storage::query`, and roll-ups to
//! `storage::rollup`.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::str::FromStr;

use serde::ser::{SerializeMap, SerializeStruct};
use serde::{Serialize, Serializer};

use crate::clock::rfc3339;
use crate::entry::Outcome;
use crate::id::{KeyId, KeySource};
use crate::pricing::PriceTable;
use crate::unit::{TokensSource, Usage, usd};

use super::block::StoredEntry;
use super::engine::EngineError;
use super::query::{self, LedgerFilter, Source};
use super::reprice::repriced;
use super::rollup::{self, DAY_MS};

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
    /// The plan whose limits held.
    Plan,
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
    pub const ALL: [Self; 12] = [
        Self::Day,
        Self::Endpoint,
        Self::Group,
        Self::Key,
        Self::Model,
        Self::None,
        Self::Plan,
        Self::Provider,
        Self::ProviderKey,
        Self::Source,
        Self::Team,
        Self::User,
    ];

    /// The word for it, and the field of a group that holds its value.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Day => "day",
            Self::Endpoint => "endpoint",
            Self::Group => "group",
            Self::Key => "key",
            Self::Model => "model",
            Self::None => "none",
            Self::Plan => "plan",
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
    /// Entries that have tokens, and no cost because no price is known.
    pub unpriced: u64,
}

impl UsageTotals {
    pub(super) fn add(&mut self, entry: &StoredEntry<'_>) {
        self.requests += 1;
        self.failed += u64::from(entry.outcome != Outcome::Ok);
        self.tokens.add(&entry.tokens);
        if let Some(cost) = entry.cost_nano_usd {
            self.cost_nano_usd = Some(self.cost_nano_usd.unwrap_or(0).saturating_add(cost));
        }
        self.unpriced += u64::from(entry.cost_nano_usd.is_none() && !entry.tokens.is_empty());
        match entry.tokens_source {
            TokensSource::Estimated => self.estimated += 1,
            TokensSource::None => self.uncounted += 1,
            TokensSource::Reported => self.reported += 1,
        }
    }

    pub(super) fn merge(&mut self, other: &Self) {
        self.requests += other.requests;
        self.failed += other.failed;
        self.tokens.add(&other.tokens);
        if let Some(cost) = other.cost_nano_usd {
            self.cost_nano_usd = Some(self.cost_nano_usd.unwrap_or(0).saturating_add(cost));
        }
        self.reported += other.reported;
        self.estimated += other.estimated;
        self.uncounted += other.uncounted;
        self.unpriced += other.unpriced;
    }

    /// What is said of a part.
    fn brief(&self) -> impl Serialize + use<> {
        #[derive(Serialize)]
        struct Brief {
            requests: u64,
            tokens: u64,
            cost_usd: Option<String>,
        }
        Brief { requests: self.requests, tokens: self.tokens.billable(), cost_usd: self.cost_nano_usd.map(usd) }
    }

    fn serialize_into<M: SerializeMap>(&self, map: &mut M) -> Result<(), M::Error> {
        map.serialize_entry("requests", &self.requests)?;
        map.serialize_entry("failed", &self.failed)?;
        map.serialize_entry("tokens", &self.tokens)?;
        map.serialize_entry("tokens_source", &Sources(*self))?;
        map.serialize_entry("cost_usd", &self.cost_nano_usd.map(usd))?;
        map.serialize_entry("unpriced", &self.unpriced)
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
    /// The same by who paid: users, teams, the system, nobody. What users paid, bringing their own keys, the system did
    /// not have to.
    pub paid: [(Option<KeySource>, UsageTotals); 4],
    /// Days in their order, everything else by tokens, most first. Empty for [`Dimension::None`].
    pub groups: Vec<UsageGroup>,
}

impl Serialize for UsageReport {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let groups: Vec<_> = self.groups.iter().map(|group| Named(self.by.as_str(), group)).collect();
        let mut report = serializer.serialize_struct("UsageReport", 6)?;
        report.serialize_field("from", &self.from_ms.map(rfc3339))?;
        report.serialize_field("to", &self.to_ms.map(rfc3339))?;
        report.serialize_field("totals", &self.totals)?;
        report.serialize_field("key_sources", &Paid(&self.paid))?;
        let [(_, users), ..] = &self.paid;
        report.serialize_field("cost_on_user_keys_usd", &users.cost_nano_usd.map(usd))?;
        report.serialize_field("groups", &groups)?;
        report.end()
    }
}

/// By the words for who paid.
struct Paid<'a>(&'a [(Option<KeySource>, UsageTotals)]);

impl Serialize for Paid<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (source, totals) in self.0 {
            map.serialize_entry(source.map_or("none", KeySource::as_str), &totals.brief())?;
        }
        map.end()
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

/// Sums over the entries a filter means, and the number of unreadable blocks. Whole days come from roll-ups, the rest is
/// summed entry by entry; [`Dimension::Group`] and its filter always are.
pub(super) fn usage(
    source: &Source<'_>,
    filter: &LedgerFilter,
    by: Dimension,
) -> Result<(UsageReport, u64), EngineError> {
    let days = whole_days(filter).filter(|_| by != Dimension::Group && filter.group.is_none());
    if let Some(days) = days {
        // A batch that comes in between makes it begin anew; they come once a second.
        for _ in 0..RETRIES {
            if let Some(done) = from_rollups(source, filter, by, days.clone())? {
                return Ok(done);
            }
        }
    }
    let mut sums = Sums::new(by);
    let damaged = sum_entries(source, filter, &mut sums)?;
    Ok((sums.report(filter), damaged))
}

/// [`usage`] as it would be under other prices: entry by entry, since roll-ups tell no long prompt from many short ones.
pub(super) fn usage_repriced(
    source: &Source<'_>,
    filter: &LedgerFilter,
    by: Dimension,
    prices: &PriceTable,
) -> Result<(UsageReport, u64), EngineError> {
    let mut sums = Sums::new(by);
    let damaged = query::scan(source, filter, false, |_, _, entries| {
        let wanted = entries.filter(|entry| filter.matches(entry));
        wanted.for_each(|entry| sums.add(&repriced(entry, prices)));
        true
    })?;
    Ok((sums.report(filter), damaged))
}

/// How often roll-ups that change while they are read are read again before entries are.
const RETRIES: usize = 5;

/// The days since the epoch that lie wholly in a filter's time; `None` when there are none.
fn whole_days(filter: &LedgerFilter) -> Option<Range<u64>> {
    let first = filter.from_ms.unwrap_or(0).div_ceil(DAY_MS);
    let end = filter.to_ms.map_or(u64::MAX / DAY_MS, |to| to / DAY_MS);
    (first < end).then_some(first..end)
}

/// `None` when the roll-ups were changed meanwhile.
fn from_rollups(
    source: &Source<'_>,
    filter: &LedgerFilter,
    by: Dimension,
    days: Range<u64>,
) -> Result<Option<(UsageReport, u64)>, EngineError> {
    let models = by == Dimension::Model || filter.model.is_some();
    let mut rolled: BTreeMap<u64, RolledDay> = BTreeMap::new();
    let as_of = rollup::visit(source.rollups, days.start, days.end, |facts, totals| {
        let day = rolled.entry(facts.day).or_insert_with(|| RolledDay::new(by));
        day.requests += totals.requests;
        day.coarse |= rollup::hides(facts, models);
        if filter.fits(facts) {
            day.sums.merge(facts, totals);
        }
    })?;
    let Some(as_of) = as_of else { return Ok(None) };
    let mut sums = Sums::new(by);
    for (number, day) in rolled {
        let fine = if day.coarse { day_from_entries(source, filter, by, number, as_of)? } else { RolledDay::new(by) };
        // Where entries have been pruned, coarse sums are the best there is.
        let complete = day.coarse && fine.requests == day.requests;
        sums.absorb(if complete { fine.sums } else { day.sums });
    }
    let mut damaged = query::scan_from(source, as_of, |entry| {
        if days.contains(&(entry.time_ms / DAY_MS)) && filter.matches(entry) {
            sums.add(entry);
        }
    })?;
    let edges = [(filter.from_ms, Some(days.start * DAY_MS)), (Some(days.end * DAY_MS), filter.to_ms)];
    for (from_ms, to_ms) in edges {
        if from_ms.unwrap_or(0) < to_ms.unwrap_or(0) {
            damaged += sum_entries(source, &LedgerFilter { from_ms, to_ms, ..filter.clone() }, &mut sums)?;
        }
    }
    Ok(Some((sums.report(filter), damaged)))
}

/// What a day came to.
struct RolledDay {
    /// Of all entries, whether they fit or not.
    requests: u64,
    /// Some of what is asked for was too much for the day's cells.
    coarse: bool,
    sums: Sums,
}

impl RolledDay {
    fn new(by: Dimension) -> Self {
        Self { requests: 0, coarse: false, sums: Sums::new(by) }
    }
}

/// A day summed from those of its entries that the roll-ups hold.
fn day_from_entries(
    source: &Source<'_>,
    filter: &LedgerFilter,
    by: Dimension,
    day: u64,
    as_of: u64,
) -> Result<RolledDay, EngineError> {
    let (from_ms, to_ms) = (Some(day * DAY_MS), Some((day + 1) * DAY_MS));
    let of_day = LedgerFilter { from_ms, to_ms, ..LedgerFilter::default() };
    let mut found = RolledDay::new(by);
    query::scan(source, &of_day, false, |first_seq, _, entries| {
        let held = (first_seq..as_of).zip(entries).map(|(_, entry)| entry);
        for entry in held.filter(|entry| of_day.matches(entry)) {
            found.requests += 1;
            if filter.matches(&entry) {
                found.sums.add(&entry);
            }
        }
        first_seq < as_of
    })?;
    Ok(found)
}

fn sum_entries(source: &Source<'_>, filter: &LedgerFilter, sums: &mut Sums) -> Result<u64, EngineError> {
    query::scan(source, filter, false, |_, _, entries| {
        entries.filter(|entry| filter.matches(entry)).for_each(|entry| sums.add(&entry));
        true
    })
}

/// What filters and dimensions ask for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Facts<'a> {
    /// Days since the epoch.
    pub(super) day: u64,
    pub(super) virtual_key: Option<[u8; 8]>,
    pub(super) provider_key: Option<[u8; 8]>,
    pub(super) key_source: Option<KeySource>,
    pub(super) user: Option<&'a str>,
    pub(super) team: Option<&'a str>,
    pub(super) plan: Option<&'a str>,
    pub(super) group: Option<&'a str>,
    pub(super) provider: &'a str,
    pub(super) endpoint: &'a str,
    pub(super) model_requested: Option<&'a str>,
    pub(super) model_reported: Option<&'a str>,
}

impl<'a> Facts<'a> {
    pub(super) fn of(entry: &StoredEntry<'a>) -> Self {
        Self {
            day: entry.time_ms / DAY_MS,
            virtual_key: entry.virtual_key,
            provider_key: entry.provider_key,
            key_source: entry.key_source,
            user: entry.user,
            team: entry.team,
            plan: entry.plan,
            group: entry.group,
            provider: entry.provider,
            endpoint: entry.endpoint,
            model_requested: entry.model_requested,
            model_reported: entry.model_reported,
        }
    }
}

/// Sums as they grow.
struct Sums {
    by: Dimension,
    paid: [(Option<KeySource>, UsageTotals); 4],
    numbers: HashMap<Option<u64>, UsageTotals>,
    texts: HashMap<String, UsageTotals>,
}

impl Sums {
    fn new(by: Dimension) -> Self {
        let sources = [Some(KeySource::User), Some(KeySource::Team), Some(KeySource::System), None];
        let paid = sources.map(|source| (source, UsageTotals::default()));
        Self { by, paid, numbers: HashMap::new(), texts: HashMap::new() }
    }

    fn add(&mut self, entry: &StoredEntry<'_>) {
        self.part(entry.key_source).add(entry);
        if let Some(group) = self.group(&Facts::of(entry)) {
            group.add(entry);
        }
    }

    fn merge(&mut self, facts: &Facts<'_>, totals: &UsageTotals) {
        self.part(facts.key_source).merge(totals);
        if let Some(group) = self.group(facts) {
            group.merge(totals);
        }
    }

    fn absorb(&mut self, other: Self) {
        for ((_, part), (_, more)) in self.paid.iter_mut().zip(&other.paid) {
            part.merge(more);
        }
        for (number, more) in other.numbers {
            self.numbers.entry(number).or_default().merge(&more);
        }
        for (text, more) in other.texts {
            self.texts.entry(text).or_default().merge(&more);
        }
    }

    fn part(&mut self, source: Option<KeySource>) -> &mut UsageTotals {
        let at = match source {
            Some(KeySource::User) => 0,
            Some(KeySource::Team) => 1,
            Some(KeySource::System) => 2,
            None => 3,
        };
        &mut self.paid[at].1
    }

    fn group(&mut self, facts: &Facts<'_>) -> Option<&mut UsageTotals> {
        Some(match group_of(facts, self.by)? {
            Value::Number(number) => self.numbers.entry(number).or_default(),
            Value::Text(None) => self.numbers.entry(None).or_default(),
            Value::Text(Some(text)) => {
                if !self.texts.contains_key(text) {
                    self.texts.insert(text.to_owned(), UsageTotals::default());
                }
                self.texts.get_mut(text)?
            }
        })
    }

    fn report(self, filter: &LedgerFilter) -> UsageReport {
        let Self { by, paid, numbers, texts } = self;
        let mut totals = UsageTotals::default();
        paid.iter().for_each(|(_, part)| totals.merge(part));
        let named = |(number, totals): (Option<u64>, _)| (number.map(|number| number_name(number, by)), totals);
        let groups = numbers.into_iter().map(named);
        let groups = groups.chain(texts.into_iter().map(|(text, totals)| (Some(text), totals)));
        let mut groups: Vec<UsageGroup> = groups.map(|(value, totals)| UsageGroup { value, totals }).collect();
        sort(&mut groups, by);
        UsageReport { by, from_ms: filter.from_ms, to_ms: filter.to_ms, totals, paid, groups }
    }
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

fn group_of<'a>(facts: &Facts<'a>, by: Dimension) -> Option<Value<'a>> {
    let id = |id: Option<[u8; 8]>| Value::Number(id.map(u64::from_be_bytes));
    Some(match by {
        Dimension::Day => Value::Number(Some(facts.day)),
        Dimension::Endpoint => Value::Text(Some(facts.endpoint)),
        Dimension::Group => Value::Text(facts.group),
        Dimension::Key => id(facts.virtual_key),
        Dimension::Model => Value::Text(facts.model_requested.or(facts.model_reported)),
        Dimension::None => return None,
        Dimension::Plan => Value::Text(facts.plan),
        Dimension::Provider => Value::Text(Some(facts.provider)),
        Dimension::ProviderKey => id(facts.provider_key),
        Dimension::Source => Value::Text(facts.key_source.map(KeySource::as_str)),
        Dimension::Team => Value::Text(facts.team),
        Dimension::User => Value::Text(facts.user),
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
