//! Roll-ups: what each day came to, kept beside the ledger, so that a month is summed from rows and not from entries.
//!
//! Owns the cube, its rows and how far it has come. Leaves when it is saved to `storage::writer`, and summing it to
//! `storage::usage`.
//!
//! # Why exact
//! A row holds the sums of one [`Cell`] of one UTC day. Rows are saved about each second, in one batch with the number of
//! the first entry they do not hold; entries from there on are summed one by one. After a crash they are added again, from
//! that number on, so none is missing and none counts twice. Everything here can be made anew from the ledger, and is when
//! it is lost; but it is kept for longer than entries are.
//!
//! # Why bounded
//! Names of models come from clients. A day has 4,096 cells; what comes beyond goes to cells without models, and beyond
//! twice that to one without anything but the provider. Totals stay exact, only their parts are coarser; a day whose parts
//! are asked for then is summed from its entries, as long as they are all kept.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};

use rustc_hash::FxHashMap;
use serde::{Deserialize, Serialize};

use crate::entry::Entry;
use crate::id::KeySource;
use crate::unit::Usage;

use super::block::StoredEntry;
use super::engine::{Engine, EngineError, Tree, guarded};
use super::load::{Start, walk};
use super::tail::{Rows, Tail};
use super::usage::{Facts, UsageTotals};

pub(super) const DAY_MS: u64 = 86_400_000;
/// The row that says from which entry on the others hold nothing.
const AS_OF: &[u8] = b"@";
const ROW_VERSION: u8 = 1;
const CELLS_MAX: usize = 4096;
/// What stands for the models that have no cells of their own.
const OTHER: &str = "(other)";
/// Days whose cells are known without asking the disk.
const DAYS_KNOWN: usize = 4;

/// What requests have in common that are summed together.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Cell<'a> {
    virtual_key: Option<[u8; 8]>,
    provider_key: Option<[u8; 8]>,
    key_source: Option<KeySource>,
    #[serde(borrow)]
    user: Option<Cow<'a, str>>,
    #[serde(borrow)]
    team: Option<Cow<'a, str>>,
    #[serde(borrow)]
    plan: Option<Cow<'a, str>>,
    #[serde(borrow)]
    provider: Cow<'a, str>,
    #[serde(borrow)]
    endpoint: Cow<'a, str>,
    #[serde(borrow)]
    model_requested: Option<Cow<'a, str>>,
    #[serde(borrow)]
    model_reported: Option<Cow<'a, str>>,
}

type Hash = [u8; 8];

impl<'a> Cell<'a> {
    fn of(entry: &StoredEntry<'a>) -> Self {
        Self {
            virtual_key: entry.virtual_key,
            provider_key: entry.provider_key,
            key_source: entry.key_source,
            user: entry.user.map(Cow::Borrowed),
            team: entry.team.map(Cow::Borrowed),
            plan: entry.plan.map(Cow::Borrowed),
            provider: Cow::Borrowed(entry.provider),
            endpoint: Cow::Borrowed(entry.endpoint),
            model_requested: entry.model_requested.map(Cow::Borrowed),
            model_reported: entry.model_reported.map(Cow::Borrowed),
        }
    }

    /// For a day that has as many as it may.
    fn without_models(self) -> Self {
        let other = |model: Option<Cow<'a, str>>| model.map(|_| Cow::Borrowed(OTHER));
        Self { model_requested: other(self.model_requested), model_reported: other(self.model_reported), ..self }
    }

    /// For a day that has twice as many.
    fn bare(self) -> Self {
        Self { provider: self.provider, ..Self::default() }
    }

    fn hash(&self) -> Hash {
        let mut hasher = blake3::Hasher::new();
        let mut put = |bytes: Option<&[u8]>| {
            // The length first, so that no two fields can be read as two others.
            let len = bytes.map_or(u32::MAX, |bytes| bytes.len() as u32);
            hasher.update(&len.to_be_bytes()).update(bytes.unwrap_or_default());
        };
        put(self.virtual_key.as_ref().map(|id| &id[..]));
        put(self.provider_key.as_ref().map(|id| &id[..]));
        put(self.key_source.map(|source| source.as_str().as_bytes()));
        for text in [&self.user, &self.team, &self.plan, &self.model_requested, &self.model_reported] {
            put(text.as_deref().map(str::as_bytes));
        }
        put(Some(self.provider.as_bytes()));
        put(Some(self.endpoint.as_bytes()));
        let mut out = [0; 8];
        out.copy_from_slice(&hasher.finalize().as_bytes()[..8]);
        out
    }

    fn into_owned(self) -> Cell<'static> {
        let own = |text: Option<Cow<'a, str>>| text.map(|text| Cow::Owned(text.into_owned()));
        Cell {
            virtual_key: self.virtual_key,
            provider_key: self.provider_key,
            key_source: self.key_source,
            user: own(self.user),
            team: own(self.team),
            plan: own(self.plan),
            provider: Cow::Owned(self.provider.into_owned()),
            endpoint: Cow::Owned(self.endpoint.into_owned()),
            model_requested: own(self.model_requested),
            model_reported: own(self.model_reported),
        }
    }

    /// What filters and dimensions ask for.
    fn facts(&self, day: u64) -> Facts<'_> {
        Facts {
            day,
            virtual_key: self.virtual_key,
            provider_key: self.provider_key,
            key_source: self.key_source,
            user: self.user.as_deref(),
            team: self.team.as_deref(),
            plan: self.plan.as_deref(),
            group: None,
            provider: &self.provider,
            endpoint: &self.endpoint,
            model_requested: self.model_requested.as_deref(),
            model_reported: self.model_reported.as_deref(),
        }
    }
}

/// What was added since the rows were saved, and how far that is.
#[derive(Debug, Default)]
pub(super) struct Rollup {
    /// The number of the first entry that no row holds.
    as_of: u64,
    added: FxHashMap<(u64, Hash), (Cell<'static>, UsageTotals)>,
    /// The cells of the days of late, on disk or not.
    known: HashMap<u64, HashSet<Hash>>,
    /// Where the last entry went, by day: the next one nearly always goes there too.
    last: Option<(u64, Hash)>,
}

impl Rollup {
    /// As the rows on disk are, and with what the ledger has beyond them. Of a store that has none yet, that is all of it.
    pub(super) fn resume(engine: &Engine, tail: &Tail) -> Result<Self, EngineError> {
        let mut rollup = Self { as_of: as_of(engine)?, ..Self::default() };
        let mut result = Ok(());
        walk(engine, tail, Start::Seq(rollup.as_of), u64::MAX, &mut |entry| {
            if result.is_ok() {
                result = rollup.add_stored(Some(engine), entry);
            }
        })?;
        result.map(|()| rollup)
    }

    /// Adds an entry that is committed.
    pub(super) fn add(&mut self, engine: Option<&Engine>, entry: &Entry) -> Result<(), EngineError> {
        self.add_stored(engine, &StoredEntry::of(entry))
    }

    fn add_stored(&mut self, engine: Option<&Engine>, entry: &StoredEntry<'_>) -> Result<(), EngineError> {
        let day = entry.time_ms / DAY_MS;
        let mut cell = Cell::of(entry);
        if let Some((last, totals)) = self.last.filter(|last| last.0 == day).and_then(|last| self.added.get_mut(&last))
            && *last == cell
        {
            totals.add(entry);
            return Ok(());
        }
        let mut hash = cell.hash();
        let known = self.known(engine, day)?;
        if known.len() >= CELLS_MAX && !known.contains(&hash) {
            let full = known.len() >= 2 * CELLS_MAX;
            cell = cell.without_models();
            hash = cell.hash();
            if full && !known.contains(&hash) {
                cell = cell.bare();
                hash = cell.hash();
            }
        }
        known.insert(hash);
        self.last = Some((day, hash));
        match self.added.get_mut(&(day, hash)) {
            Some((_, totals)) => totals.add(entry),
            None => {
                let mut totals = UsageTotals::default();
                totals.add(entry);
                self.added.insert((day, hash), (cell.into_owned(), totals));
            }
        }
        Ok(())
    }

    /// The cells a day has.
    fn known(&mut self, engine: Option<&Engine>, day: u64) -> Result<&mut HashSet<Hash>, EngineError> {
        if self.known.len() >= DAYS_KNOWN && !self.known.contains_key(&day) {
            let oldest = self.known.keys().copied().min();
            oldest.map(|oldest| self.known.remove(&oldest));
        }
        if let std::collections::hash_map::Entry::Vacant(vacant) = self.known.entry(day) {
            let mut cells = HashSet::new();
            if let Some(engine) = engine {
                guarded(|| {
                    for row in engine.tree(Tree::Rollups).scan_prefix(day_key(day)).keys() {
                        cells.extend(row?.get(4..).and_then(|hash| Hash::try_from(hash).ok()));
                    }
                    Ok(())
                })?;
            }
            // Those not on disk yet, when the day was forgotten and comes again.
            cells.extend(self.added.keys().filter(|(added, _)| *added == day).map(|(_, hash)| *hash));
            vacant.insert(cells);
        }
        Ok(self.known.entry(day).or_default())
    }

    /// The rows that hold everything below the entry `next_seq`; [`Rollup::saved`] once they are written.
    pub(super) fn rows(&self, engine: &Engine, next_seq: u64) -> Result<Rows, EngineError> {
        if next_seq <= self.as_of {
            return Ok(Rows::new());
        }
        let mut rows = Rows::with_capacity(self.added.len() + 1);
        for ((day, hash), (cell, added)) in &self.added {
            let key = [&day_key(*day)[..], hash].concat();
            let before = engine.read(Tree::Rollups, &key)?;
            let mut totals = before.as_deref().and_then(read).map(|(_, totals)| totals).unwrap_or_default();
            totals.merge(added);
            rows.push((key, Some(row(cell, &totals))));
        }
        rows.push((AS_OF.to_vec(), Some(next_seq.to_be_bytes().to_vec())));
        Ok(rows)
    }

    pub(super) fn saved(&mut self, next_seq: u64) {
        self.as_of = next_seq;
        self.added.clear();
    }
}

/// True when a cell holds what was too much for cells of its own: with `models` when it is about those, else about any value.
pub(super) fn hides(facts: &Facts<'_>, models: bool) -> bool {
    // Every entry has an endpoint.
    let bare = facts.endpoint.is_empty();
    bare || (models && [facts.model_requested, facts.model_reported].contains(&Some(OTHER)))
}

/// The number of the first entry that no row of the store holds.
pub(super) fn as_of(engine: &Engine) -> Result<u64, EngineError> {
    let row = engine.read(Tree::Rollups, AS_OF)?.and_then(|row| row[..].try_into().ok());
    Ok(row.map_or(0, u64::from_be_bytes))
}

/// Hands every cell of the days from `first` to before `end` to `visit`; returns the number of the first entry that no
/// row holds, or `None` when rows were saved meanwhile: then what was visited may be of two states.
pub(super) fn visit(
    tree: &sled::Tree,
    first: u64,
    end: u64,
    mut visit: impl FnMut(&Facts<'_>, &UsageTotals),
) -> Result<Option<u64>, EngineError> {
    guarded(|| {
        let as_of = || -> Result<u64, EngineError> {
            let row = tree.get(AS_OF)?.and_then(|row| row[..].try_into().ok());
            Ok(row.map_or(0, u64::from_be_bytes))
        };
        let before = as_of()?;
        let (first, end) = (first.min(u64::from(u32::MAX)), end.min(u64::from(u32::MAX)));
        for item in tree.range(day_key(first).to_vec()..day_key(end).to_vec()) {
            let (key, value) = item?;
            let day = key.first_chunk::<4>().map(|day| u64::from(u32::from_be_bytes(*day)));
            // The row of `AS_OF` is no cell: it is a byte long.
            if let (Some(day), Some((cell, totals))) = (day, read(&value)) {
                visit(&cell.facts(day), &totals);
            }
        }
        Ok(Some(before).filter(|before| as_of().is_ok_and(|after| after == *before)))
    })
}

/// What removes the rows of days before `day`, at most `max` of them.
pub(super) fn removals(engine: &Engine, day: u64, max: usize) -> Result<Rows, EngineError> {
    guarded(|| {
        let keys = engine.tree(Tree::Rollups).range(..day_key(day).to_vec()).keys().take(max);
        keys.map(|key| Ok((key?.to_vec(), None))).collect()
    })
}

fn day_key(day: u64) -> [u8; 4] {
    u32::try_from(day).unwrap_or(u32::MAX).to_be_bytes()
}

/// Totals as they are stored.
type Saved = (u64, u64, Usage, Option<u64>, [u64; 4]);

fn row(cell: &Cell<'_>, totals: &UsageTotals) -> Vec<u8> {
    let UsageTotals { requests, failed, tokens, cost_nano_usd, reported, estimated, uncounted, unpriced } = *totals;
    let saved: Saved = (requests, failed, tokens, cost_nano_usd, [reported, estimated, uncounted, unpriced]);
    // Plain values into memory: it cannot fail.
    postcard::to_extend(&(cell, saved), vec![ROW_VERSION]).unwrap_or_default()
}

fn read(row: &[u8]) -> Option<(Cell<'_>, UsageTotals)> {
    let (&ROW_VERSION, rest) = row.split_first()? else { return None };
    let (cell, saved): (Cell<'_>, Saved) = postcard::from_bytes(rest).ok()?;
    let (requests, failed, tokens, cost_nano_usd, [reported, estimated, uncounted, unpriced]) = saved;
    let totals = UsageTotals { requests, failed, tokens, cost_nano_usd, reported, estimated, uncounted, unpriced };
    Some((cell, totals))
}

#[cfg(test)]
mod tests {
    use super::super::block::tests::entry;
    use super::*;

    fn open() -> (tempfile::TempDir, Engine) {
        let dir = tempfile::tempdir().unwrap();
        let engine = Engine::open(dir.path()).unwrap();
        (dir, engine)
    }

    fn save(rollup: &mut Rollup, engine: &Engine, next_seq: u64) {
        engine.apply(Tree::Rollups, rollup.rows(engine, next_seq).unwrap()).unwrap();
        rollup.saved(next_seq);
    }

    fn requests(engine: &Engine) -> (u64, usize) {
        let (mut requests, mut cells) = (0, 0);
        let count = |_: &Facts<'_>, totals: &UsageTotals| {
            requests += totals.requests;
            cells += 1;
        };
        visit(engine.tree(Tree::Rollups), 0, u64::MAX, count).unwrap().unwrap();
        (requests, cells)
    }

    #[test]
    fn cells_of_a_day_are_bounded_and_their_sums_are_not() {
        let (_dir, engine) = open();
        let mut rollup = Rollup::default();
        let many = 2 * CELLS_MAX as u64 + 500;
        for n in 0..many {
            let entry = Entry {
                model_requested: Some(format!("model-{n}").into()),
                user: Some(format!("u{n}").into()),
                ..entry(0)
            };
            rollup.add(Some(&engine), &entry).unwrap();
            if n % 1000 == 0 {
                save(&mut rollup, &engine, n + 1);
                // Forgotten, it is learned from the disk again.
                rollup.known.clear();
            }
        }
        save(&mut rollup, &engine, many);
        let (requests, cells) = requests(&engine);
        assert_eq!(requests, many);
        assert!(cells <= 2 * CELLS_MAX + 1, "{cells}");
        // Another day has cells of its own.
        let later = Entry { time_ms: entry(0).time_ms + DAY_MS, ..entry(0) };
        rollup.add(Some(&engine), &later).unwrap();
        save(&mut rollup, &engine, many + 1);
        let mut models = Vec::new();
        let day = later.time_ms / DAY_MS;
        visit(engine.tree(Tree::Rollups), day, day + 1, |facts, _| {
            models.push(facts.model_requested.map(str::to_owned))
        })
        .unwrap();
        assert_eq!(models, [later.model_requested.as_deref().map(str::to_owned)]);
    }

    #[test]
    fn rows_fit_with_the_longest_names() {
        let long: std::sync::Arc<str> = "\u{1F511}".repeat(128).into();
        let text = || Some(long.clone());
        let entry = Entry {
            user: text(),
            team: text(),
            plan: text(),
            model_requested: text(),
            model_reported: text(),
            ..entry(1)
        };
        let (_dir, engine) = open();
        let mut rollup = Rollup::default();
        rollup.add(None, &entry).unwrap();
        save(&mut rollup, &engine, 1);
        assert_eq!(requests(&engine), (1, 1));
    }

    #[test]
    fn old_days_go() {
        let (_dir, engine) = open();
        let mut rollup = Rollup::default();
        let start = entry(0).time_ms;
        for n in 0..10 {
            rollup.add(Some(&engine), &Entry { time_ms: start + n * DAY_MS, ..entry(0) }).unwrap();
        }
        save(&mut rollup, &engine, 10);
        let removals = removals(&engine, start / DAY_MS + 4, 100).unwrap();
        engine.apply(Tree::Rollups, removals).unwrap();
        assert_eq!((requests(&engine).0, as_of(&engine).unwrap()), (6, 10));
    }
}
