//! What the writer does now and then: saving counters and limits, pruning, the recovery file.
//!
//! Owns when and how much of it; leaves commits to `storage::writer`.

use crate::clock::Nanos;
use crate::id::KeyId;

use super::super::backup;
use super::super::block::Head;
use super::super::counters::{AS_OF, AsOf, Counted, saved_row};
use super::super::engine::{EngineError, Tree, guarded};
use super::super::snapshot::{KeyStats, SavedStats};
use super::super::tail::Rows;
use super::{Writer, stats_of};

/// How often counters and limits are saved, when they changed.
const SAVE_EVERY: Nanos = 1_000_000_000;
/// Looking at every key's limits may take a hundredth of the time between two looks, at about 100 ns each.
const LOOK_PER_KEY: Nanos = 10_000;
const PRUNE_EVERY: Nanos = 3_600_000_000_000;
/// Blocks removed in one commit at most.
const PRUNE_MAX: usize = 512;
const DAY_MS: u64 = 86_400_000;

impl Writer {
    pub(super) fn save_if_due(&mut self, now: Nanos, closing: bool) -> Result<(), EngineError> {
        if self.engine.is_none() || (!closing && now < self.due.save) {
            return Ok(());
        }
        self.due.save = now.saturating_add(SAVE_EVERY);
        let wrote = self.save_counters()?;
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
        let mut note = |key: Counted, old: Option<SavedStats>, new: Option<SavedStats>| {
            let name = key.to_key();
            if let Some(old) = old {
                sum.remove(secret, &name, &saved_row(&old));
            }
            if let Some(new) = new {
                sum.add(secret, &name, &saved_row(&new));
            }
            rows.push((name, new.map(|new| saved_row(&new))));
        };
        let mut stats: Vec<(Counted, Option<SavedStats>)> = Vec::new();
        for key in &self.touched {
            let old = self.counters.stats.get(key).copied();
            let new = stats_of(&snapshot, *key).map(KeyStats::save);
            if old != new && new.is_some() {
                note(*key, old, new);
                stats.push((*key, new));
            }
        }
        for key in self.gone.iter().flat_map(|id| [Counted::VirtualKey(*id), Counted::ProviderKey(*id)]) {
            // A key made again under the same id keeps its counters.
            if stats_of(&snapshot, key).is_none() && self.counters.stats.contains_key(&key) {
                note(key, self.counters.stats.get(&key).copied(), None);
                stats.push((key, None));
            }
        }
        let as_of = AsOf { seq: self.tail.next_seq(), sum };
        rows.push((AS_OF.to_vec(), Some(saved_row(&as_of))));
        engine.apply(Tree::Counters, rows)?;
        self.counters.as_of = as_of;
        for (key, new) in stats {
            match new {
                Some(new) => self.counters.stats.insert(key, new),
                None => self.counters.stats.remove(&key),
            };
        }
        self.touched.clear();
        Ok(true)
    }

    fn save_limits(&mut self, now: Nanos, closing: bool) -> Result<bool, EngineError> {
        let Some(engine) = &self.engine else { return Ok(false) };
        if (!closing && now < self.due.look) && self.gone.is_empty() {
            return Ok(false);
        }
        let snapshot = self.shared.snapshot.load();
        let keys = snapshot.virtual_keys.len() as u64;
        self.due.look = now.saturating_add(SAVE_EVERY.max(keys.saturating_mul(LOOK_PER_KEY)));
        let wall_ms = self.shared.clock.wall_ms();
        let mut rows = Rows::new();
        for (id, state) in &snapshot.virtual_keys {
            let limits = state.limits.export(now, wall_ms);
            let saved = self.counters.limits.get(id);
            if saved.copied().unwrap_or_default() == limits {
                continue;
            }
            rows.push((id.as_bytes().to_vec(), (!limits.is_empty()).then(|| saved_row(&limits))));
            self.counters.limits.insert(*id, limits);
        }
        self.gone.clear();
        let gone: Vec<KeyId> =
            self.counters.limits.keys().filter(|id| !snapshot.virtual_keys.contains_key(id)).copied().collect();
        for id in gone {
            self.counters.limits.remove(&id);
            rows.push((id.as_bytes().to_vec(), None));
        }
        self.counters.limits.retain(|_, limits| !limits.is_empty());
        if rows.is_empty() {
            return Ok(false);
        }
        engine.apply(Tree::Limits, rows)?;
        Ok(true)
    }

    /// Removes blocks from the front whose last entry is older than is kept.
    pub(super) fn prune_if_due(&mut self, now: Nanos, closing: bool) -> Result<(), EngineError> {
        let Some(engine) = &self.engine else { return Ok(()) };
        if now < self.due.prune || closing || self.section.retention_days == 0 {
            return Ok(());
        }
        let kept_ms = u64::from(self.section.retention_days) * DAY_MS;
        let cutoff = self.shared.clock.wall_ms().saturating_sub(kept_ms);
        let rows: Rows = guarded(|| {
            let mut rows = Rows::new();
            for row in engine.tree(Tree::Ledger).iter().take(PRUNE_MAX) {
                let (key, value) = row?;
                // A block nobody can read ages by its neighbours: it goes when it is at the front.
                if Head::read(&value).is_some_and(|head| head.latest_ms >= cutoff) {
                    break;
                }
                rows.push((key.to_vec(), None));
            }
            Ok(rows)
        })?;
        let more = rows.len() == PRUNE_MAX;
        if !rows.is_empty() {
            engine.commit_one(Tree::Ledger, rows)?;
        }
        self.due.prune = if more { now } else { now.saturating_add(PRUNE_EVERY) };
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
