//! What the writer does now and then: saving counters and limits, pruning, the recovery file.
//!
//! Owns when and how much of it; leaves commits to `storage::writer`.

use crate::clock::Nanos;
use crate::id::ScopeId;
use crate::limit::Moment;

use super::super::backup;
use super::super::block::Head;
use super::super::counters::{AS_OF, AsOf, Saved, row_key, saved_row};
use super::super::engine::{Engine, EngineError, Tree, guarded};
use super::super::tail::Rows;
use super::super::{recover, rollup};
use super::Writer;

/// How often counters and limits are saved, when they changed.
const SAVE_EVERY: Nanos = 1_000_000_000;
/// Looking at every key's limits may take a hundredth of the time between two looks, at about 100 ns each.
const LOOK_PER_KEY: Nanos = 10_000;
const PRUNE_EVERY: Nanos = 3_600_000_000_000;
/// Blocks removed in one commit at most.
const PRUNE_MAX: usize = 512;
/// Below this a store is not written anew.
const COMPACT_MIN: u64 = 8 << 20;
const DAY_MS: u64 = 86_400_000;

impl Writer {
    pub(super) fn save_if_due(&mut self, now: Nanos, closing: bool) -> Result<(), EngineError> {
        if self.engine.is_none() || (!closing && now < self.due.save) {
            return Ok(());
        }
        self.due.save = now.saturating_add(SAVE_EVERY);
        let wrote = self.save_counters()?;
        let wrote = self.save_rollups()? || wrote;
        let wrote = self.save_limits(now, closing)? || wrote;
        match &self.engine {
            Some(engine) if wrote => engine.flush(),
            _ => Ok(()),
        }
    }

    fn save_counters(&mut self) -> Result<bool, EngineError> {
        let Some(engine) = &self.engine else { return Ok(false) };
        if self.tail.next_seq() == self.counters.as_of.seq && self.touched.is_empty() && self.gone.is_empty() {
            return Ok(false);
        }
        // The counters must not be ahead of the entries they count.
        self.journal.sync()?;
        let snapshot = self.shared.snapshot.load();
        let secret = self.vault.checksum_key();
        let mut sum = self.counters.as_of.sum;
        let mut rows = Rows::new();
        let mut note = |id: &ScopeId, old: Option<&Saved>, new: Option<&Saved>| {
            let key = row_key(id);
            if let Some(old) = old {
                sum.remove(secret, &key, &old.row());
            }
            if let Some(new) = new {
                sum.add(secret, &key, &new.row());
            }
            rows.push((key, new.map(Saved::row)));
        };
        let mut saved: Vec<(ScopeId, Option<Saved>)> = Vec::new();
        for id in &self.touched {
            let old = self.counters.scopes.get(id);
            let used = snapshot.used(id);
            let new = used.map(|(stats, scope)| Saved { stats: stats.save(), amounts: scope.save_amounts() });
            if old != new.as_ref() && new.is_some() {
                note(id, old, new.as_ref());
                saved.push((id.clone(), new));
            }
        }
        for id in self.gone.iter().flat_map(|id| [ScopeId::Key(*id), ScopeId::ProviderKey(*id)]) {
            // A key made again under the same id keeps its counters.
            if snapshot.used(&id).is_none() && self.counters.scopes.contains_key(&id) {
                note(&id, self.counters.scopes.get(&id), None);
                saved.push((id, None));
            }
        }
        let as_of = AsOf { seq: self.tail.next_seq(), sum };
        rows.push((AS_OF.to_vec(), Some(saved_row(&as_of))));
        engine.apply(Tree::Counters, rows)?;
        self.counters.as_of = as_of;
        for (id, new) in saved {
            match new {
                Some(new) => self.counters.scopes.insert(id, new),
                None => self.counters.scopes.remove(&id),
            };
        }
        self.touched.clear();
        Ok(true)
    }

    fn save_rollups(&mut self) -> Result<bool, EngineError> {
        let Some(engine) = &self.engine else { return Ok(false) };
        let next_seq = self.tail.next_seq();
        let rows = self.rollup.rows(engine, next_seq)?;
        if rows.is_empty() {
            return Ok(false);
        }
        // As for counters.
        self.journal.sync()?;
        engine.apply(Tree::Rollups, rows)?;
        self.rollup.saved(next_seq);
        Ok(true)
    }

    fn save_limits(&mut self, now: Nanos, closing: bool) -> Result<bool, EngineError> {
        let Some(engine) = &self.engine else { return Ok(false) };
        if (!closing && now < self.due.look) && self.gone.is_empty() {
            return Ok(false);
        }
        let snapshot = self.shared.snapshot.load();
        let at = Moment { now, wall_ms: self.shared.clock.wall_ms() };
        let mut rows = Rows::new();
        let mut looked_at: u64 = 0;
        for id in snapshot.all_used() {
            looked_at += 1;
            let Some((_, scope)) = snapshot.used(&id) else { continue };
            let rates = scope.export(at);
            let saved = self.counters.rates.get(&id);
            if saved.copied().unwrap_or_default() == rates {
                continue;
            }
            rows.push((row_key(&id), (!rates.is_empty()).then(|| saved_row(&rates))));
            self.counters.rates.insert(id, rates);
        }
        self.due.look = now.saturating_add(SAVE_EVERY.max(looked_at.saturating_mul(LOOK_PER_KEY)));
        self.gone.clear();
        let gone: Vec<ScopeId> = self.counters.rates.keys().filter(|id| snapshot.used(id).is_none()).cloned().collect();
        for id in gone {
            self.counters.rates.remove(&id);
            rows.push((row_key(&id), None));
        }
        self.counters.rates.retain(|_, rates| !rates.is_empty());
        if rows.is_empty() {
            return Ok(false);
        }
        engine.apply(Tree::Limits, rows)?;
        Ok(true)
    }

    /// Removes blocks from the front whose last entry is older than is kept.
    pub(super) fn prune_if_due(&mut self, now: Nanos, closing: bool) -> Result<(), EngineError> {
        let Some(engine) = &self.engine else { return Ok(()) };
        if now < self.due.prune || closing {
            return Ok(());
        }
        self.prune_rollups(engine)?;
        let mut pruned = 0;
        let kept_ms = u64::from(self.section.retention_days) * DAY_MS;
        // Without a bound, nothing is too old.
        let cutoff = if kept_ms == 0 { 0 } else { self.shared.clock.wall_ms().saturating_sub(kept_ms) };
        let rows: Rows = guarded(|| {
            let mut rows = Rows::new();
            let mut blocks = engine.tree(Tree::Ledger).iter().take(PRUNE_MAX).peekable();
            while let Some(row) = blocks.next() {
                let (key, value) = row?;
                if rows.len() + 1 < PRUNE_MAX && blocks.peek().is_none() {
                    // The last one stays: it says where the ledger has come to.
                    break;
                }
                // A block nobody can read ages by its neighbours: it goes when it is at the front.
                if Head::read(&value).is_some_and(|head| head.latest_ms >= cutoff) {
                    break;
                }
                pruned += (key.len() + value.len()) as u64;
                rows.push((key.to_vec(), None));
            }
            Ok(rows)
        })?;
        self.pruned += pruned;
        let more = rows.len() == PRUNE_MAX;
        if !rows.is_empty() {
            engine.commit_one(Tree::Ledger, rows)?;
        }
        self.due.prune = if more { now } else { now.saturating_add(PRUNE_EVERY) };
        if more { Ok(()) } else { self.compact_if_worth_it() }
    }

    /// Removes sums that are older than they are kept. Some at a time; the rest next time.
    fn prune_rollups(&self, engine: &Engine) -> Result<(), EngineError> {
        if self.section.rollup_days == 0 {
            return Ok(());
        }
        let first = (self.shared.clock.wall_ms() / DAY_MS).saturating_sub(self.section.rollup_days.into());
        let rows = rollup::removals(engine, first, PRUNE_MAX)?;
        if rows.is_empty() { Ok(()) } else { engine.commit_one(Tree::Rollups, rows) }
    }

    /// Writes the store anew when much of its file is of rows that are gone: sled uses their room again, and never gives
    /// it back. Entries wait in the queue meanwhile, a second or so for a million.
    fn compact_if_worth_it(&mut self) -> Result<(), EngineError> {
        let Some(engine) = &self.engine else { return Ok(()) };
        let len = engine.file_len()?;
        if self.pruned < COMPACT_MIN || self.pruned < len / 4 {
            return Ok(());
        }
        self.pruned = 0;
        recover::compact(&self.layout, engine)?;
        *self.write_ledger() = None;
        self.engine = None;
        let engine = recover::put_compacted(&self.layout)?;
        tracing::info!(
            before = len,
            after = engine.file_len()?,
            "the store was written anew, without what was removed"
        );
        self.put_engine(engine);
        Ok(())
    }

    pub(super) fn write_recovery_if_due(&mut self, now: Nanos, closing: bool) -> Result<(), EngineError> {
        let due = self.due.recovery.is_some_and(|at| closing || now >= at);
        let Some(engine) = self.engine.as_ref().filter(|_| due) else { return Ok(()) };
        self.due.recovery = None;
        let head = self.head();
        guarded(|| {
            let mut file = backup::Writer::create(&self.layout.recovery(), head)?;
            for tree in Tree::SMALL {
                for row in engine.tree(tree).iter() {
                    let (key, value) = row?;
                    file.row(tree, &key, &value)?;
                }
            }
            Ok(file.finish()?)
        })
    }
}
