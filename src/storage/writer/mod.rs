//! The writer thread: the only one that changes the store.
//!
//! Owns the order of commits, the snapshot's replacement after each, saving counters and limits, pruning, the recovery
//! file, and going on after a failure. Leaves what is written to `storage::records`, `storage::journal`,
//! `storage::tail` and `storage::counters`.
//!
//! # Pace
//! While entries come, it wakes every commit interval and commits what gathered; the request path then only pushes
//! to a queue. With nothing to do it sleeps, and the first entry wakes it. Changes of records and waiting callers are
//! served at once.
//!
//! # Failure
//! Entries are committed to the journal, records and packed blocks to the engine; each can fail alone, on a full disk
//! most likely. What fails is tried again with growing pauses. Until then entries wait in the queue when the journal
//! fails, and gather in journal and memory when the engine does.

mod audited;
mod upkeep;
mod vigil;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::time::Duration;

use rustc_hash::FxHashSet;
use tokio::sync::oneshot;

use crate::audit::Act;
use crate::clock::Nanos;
use crate::event::{Events, Kind, Severity};
use crate::id::{KeyId, ScopeId};
use crate::limit::{Moment, SavedRates, Watch};
use crate::pricing::PriceTable;

use super::audit::Log;
use super::block::Packed;
use super::counters::{self, AsOf};
use super::engine::{Engine, EngineError, Tree};
use super::journal::Journal;
use super::load::{Manifest, Start, audit_row, walk};
use super::lock::DirLock;
use super::provider_keys::{EnvironmentKey, ProviderKeyState};
use super::records::{Edit, Request, Stored};
use super::recover::{self, Layout, Opened};
use super::rollup::Rollup;
use super::scopes::{self, consumed, counted};
use super::shared::{Command, Handle, LedgerTrees, Pending, Queued, answer};
use super::snapshot::Snapshot;
use super::tail::Tail;
use super::vault::Vault;
use super::{StoreError, StoreSection, backup};

/// Entries in one commit at most.
const BATCH_MAX: usize = 2048;
/// The recovery file is written this long after a change, so that many changes make one file.
const RECOVERY_DELAY: Nanos = 250_000_000;
/// And this long after an entry, for the counters, and so that a ledger that lost its end is noticed.
const RECOVERY_EVERY: Nanos = 300_000_000_000;
/// How much a power cut may cost at `group` durability.
const SYNC_EVERY: Nanos = 500_000_000;
/// The journal starts anew when it is longer than this.
const JOURNAL_MAX: u64 = 2 << 20;
/// Unpacked entries that gather at most while the engine fails; beyond, they wait in the queue.
const PENDING_MAX: usize = 16 << 20;
const BACKOFF_MIN: Nanos = 100_000_000;
const BACKOFF_MAX: Nanos = 5_000_000_000;
const IDLE: Duration = Duration::from_secs(1);
/// How often places of open requests are cleared that nobody has taken again.
const TIDY_EVERY: Nanos = 1_000_000_000;

pub(super) use vigil::Vigil;

type Reply = oneshot::Sender<Result<Stored, StoreError>>;

pub(super) struct Writer {
    shared: Handle,
    commands: Receiver<Command>,
    entries: Receiver<Queued>,
    layout: Layout,
    vault: Vault,
    section: StoreSection,
    engine: Option<Engine>,
    journal: Journal,
    audit: Log,
    vigil: Vigil,
    events: Events,
    /// Operators were told that the store is down.
    told_down: bool,
    manifest: Manifest,
    tail: Tail,
    /// Taken from the queue, not committed yet.
    hand: Vec<Queued>,
    batch: Packed,
    counters: Saved,
    rollup: Rollup,
    /// Bytes of blocks removed since the store was last written anew.
    pruned: u64,
    touched: FxHashSet<ScopeId>,
    gone: Vec<KeyId>,
    due: Due,
    engine_pause: Nanos,
    journal_pause: Nanos,
    // Dropped last: the next process may open the store only when this one is done with it.
    _lock: DirLock,
}

/// What lies in the `usage` and `tat` trees.
struct Saved {
    as_of: AsOf,
    scopes: HashMap<ScopeId, counters::Saved>,
    rates: HashMap<ScopeId, SavedRates>,
}

/// When something is to be done next, monotonic.
struct Due {
    save: Nanos,
    look: Nanos,
    prune: Nanos,
    uses: Nanos,
    recovery: Option<Nanos>,
    tidy: Nanos,
    /// The journal has to reach the disk.
    sync: Option<Nanos>,
    /// The engine failed.
    reopen: Nanos,
    /// The journal failed.
    journal: Option<Nanos>,
}

pub(super) struct Parts {
    pub(super) shared: Handle,
    pub(super) commands: Receiver<Command>,
    pub(super) entries: Receiver<Queued>,
    pub(super) layout: Layout,
    pub(super) vault: Vault,
    pub(super) section: StoreSection,
    pub(super) opened: Opened,
    pub(super) rollup: Rollup,
    /// Entries of the last process that it did not live to record.
    pub(super) aborted: Vec<Queued>,
    /// What was used since it was last saved.
    pub(super) touched: FxHashSet<ScopeId>,
    pub(super) journal: Journal,
    pub(super) audit: Log,
    /// How that log was found other than it was left.
    pub(super) damage: Option<String>,
    pub(super) vigil: Vigil,
    pub(super) events: Events,
    pub(super) lock: DirLock,
}

impl Writer {
    pub(super) fn new(parts: Parts) -> Self {
        let Parts {
            shared,
            commands,
            entries,
            layout,
            vault,
            section,
            opened,
            rollup,
            aborted,
            touched,
            journal,
            audit,
            damage,
            vigil,
            events,
            lock,
        } = parts;
        shared.given(aborted.len());
        let Opened { engine, loaded, .. } = opened;
        let now = shared.clock.now();
        let gone = orphans(&loaded.saved, &shared.snapshot.load());
        let mut writer = Self {
            manifest: loaded.manifest,
            tail: loaded.tail,
            counters: Saved { as_of: loaded.as_of, scopes: loaded.saved, rates: loaded.rates },
            hand: aborted,
            rollup,
            pruned: 0,
            batch: Packed::default(),
            touched,
            gone,
            due: Due {
                save: now,
                look: now,
                prune: now,
                uses: now.saturating_add(audited::USES_EVERY),
                recovery: Some(now),
                tidy: now,
                sync: None,
                reopen: now,
                journal: None,
            },
            engine_pause: BACKOFF_MIN,
            journal_pause: BACKOFF_MIN,
            engine: None,
            journal,
            audit,
            vigil,
            events,
            told_down: false,
            shared,
            commands,
            entries,
            layout,
            vault,
            section,
            _lock: lock,
        };
        writer.put_engine(engine);
        writer.note_damage(damage);
        writer
    }

    /// Runs until the store is closed.
    pub(super) fn run(mut self) {
        self.shared.set_writer(std::thread::current());
        let interval = Duration::from_millis(self.section.commit_interval_ms);
        loop {
            self.shared.take_urgent();
            let closing = self.shared.is_closed();
            self.reopen_if_due(closing);
            let flushes = self.serve_commands();
            let committed = self.commit_entries();
            for reply in flushes {
                answer(reply, self.pending());
            }
            self.periodic(closing);
            let now = self.shared.clock.now();
            self.shared.note_health(|health| health.last_progress = now);
            if closing && (self.due.journal.is_some() || self.shared.queued() == 0) {
                return self.finish();
            }
            if committed == 0 {
                self.shared.sleep(self.idle_time(now));
            }
            if !self.shared.is_closed() && self.shared.queued() > 0 {
                self.shared.gather(interval);
            }
        }
    }

    fn idle_time(&self, now: Nanos) -> Duration {
        let reopen = self.engine.is_none().then_some(self.due.reopen);
        // Much to prune is pruned at once, not some each second.
        let prune = self.engine.is_some().then_some(self.due.prune);
        let next = [reopen, prune, self.due.recovery, self.due.sync, self.due.journal].into_iter().flatten().min();
        next.map_or(IDLE, |at| Duration::from_nanos(at.saturating_sub(now).max(1_000_000)).min(IDLE))
    }

    fn finish(&mut self) {
        let waiting = self.shared.queued();
        if waiting > 0 {
            tracing::error!(entries = waiting, "the store was closed with entries that could not be written");
        }
        if let Err(error) = self.journal.sync() {
            tracing::error!(%error, "the journal was closed without reaching the disk");
        }
        match self.engine.as_ref().map(Engine::sync) {
            Some(Ok(())) => self.restart_journal(),
            Some(Err(error)) => tracing::error!(%error, "the store was closed without reaching the disk"),
            None => tracing::error!("the store was closed while it could not be written"),
        }
        *self.write_ledger() = None;
        self.engine = None;
        self.shared.metrics.up.set(0);
    }

    fn writable(&self) -> Result<&Engine, StoreError> {
        self.engine.as_ref().ok_or_else(|| StoreError::Unavailable("it is being reopened after a failure".to_owned()))
    }

    fn put_engine(&mut self, engine: Engine) {
        let tree = |tree| engine.tree(tree).clone();
        *self.write_ledger() = Some(LedgerTrees { blocks: tree(Tree::Ledger), rollups: tree(Tree::Rollups) });
        self.engine = Some(engine);
        self.note_up();
    }

    fn note_up(&mut self) {
        let up = self.engine.is_some() && self.due.journal.is_none();
        self.shared.metrics.up.set(up.into());
        let mut reason = None;
        self.shared.note_health(|health| {
            health.up = up;
            reason = health.last_error.clone();
        });
        if self.told_down == up {
            self.told_down = !up;
            let (kind, severity, text) = match up {
                true => (Kind::StoreUp, Severity::Info, "it can be written again".to_owned()),
                false => {
                    (Kind::StoreDown, Severity::Error, reason.unwrap_or_else(|| "it cannot be written".to_owned()))
                }
            };
            self.events.emit(kind, severity, "store", text);
        }
    }

    fn write_ledger(&self) -> std::sync::RwLockWriteGuard<'_, Option<LedgerTrees>> {
        self.shared.ledger.write().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Lets go of the engine after an error: sled fails every write after the first failed one, until reopened.
    fn fail(&mut self, error: &EngineError) {
        let pause_ms = self.engine_pause / 1_000_000;
        tracing::error!(%error, pause_ms, "the store cannot be written; it will be reopened");
        self.note_failure(error.to_string());
        *self.write_ledger() = None;
        self.engine = None;
        self.due.reopen = self.shared.clock.now().saturating_add(self.engine_pause);
        self.engine_pause = (self.engine_pause * 2).min(BACKOFF_MAX);
        self.note_up();
    }

    fn fail_journal(&mut self, error: &std::io::Error) {
        let pause_ms = self.journal_pause / 1_000_000;
        tracing::error!(%error, pause_ms, "the journal cannot be written; entries wait in the queue");
        self.note_failure(format!("the journal cannot be written: {error}"));
        self.due.journal = Some(self.shared.clock.now().saturating_add(self.journal_pause));
        self.journal_pause = (self.journal_pause * 2).min(BACKOFF_MAX);
        self.note_up();
    }

    fn note_failure(&self, text: String) {
        self.shared.metrics.failures.inc();
        self.shared.note_health(|health| health.last_error = Some(text));
    }

    fn reopen_if_due(&mut self, closing: bool) {
        if self.engine.is_some() || (!closing && self.shared.clock.now() < self.due.reopen) {
            return;
        }
        let frames = self.journal.read().map_err(|error| StoreError::Unavailable(error.to_string()));
        let wall_ms = self.shared.clock.wall_ms();
        match frames.and_then(|frames| recover::open(&self.layout, &self.vault, &frames, wall_ms)) {
            Ok(opened) => self.take_up(opened),
            Err(error) => {
                tracing::error!(%error, "the store cannot be reopened");
                self.note_failure(error.to_string());
                self.due.reopen = self.shared.clock.now().saturating_add(self.engine_pause);
                self.engine_pause = (self.engine_pause * 2).min(BACKOFF_MAX);
            }
        }
    }

    /// Goes on with a reopened store: records as they are on disk, counters and limits as they are in memory.
    fn take_up(&mut self, opened: Opened) {
        let Opened { engine, mut loaded, recovered } = opened;
        tracing::warn!("the store is open again");
        self.shared.metrics.reopened.inc();
        if let Some(reason) = recovered {
            self.shared.note_health(|health| health.recovered = Some(reason));
        }
        let before = self.shared.snapshot.load_full();
        let next = super::build_snapshot(&mut loaded, Some(&before), Watch::default());
        self.manifest = loaded.manifest;
        self.tail = loaded.tail;
        self.gone = orphans(&loaded.saved, &next);
        self.counters = Saved { as_of: loaded.as_of, scopes: loaded.saved, rates: loaded.rates };
        // What was added in memory is in the ledger too, and added again from there.
        match Rollup::resume(&engine, &self.tail) {
            Ok(rollup) => self.rollup = rollup,
            Err(error) => tracing::error!(%error, "roll-ups are behind the ledger until the next start"),
        }
        // Every counter is compared with what is saved: which ones the lost commits held is not known.
        self.touched = next.all_used().collect();
        self.put_engine(engine);
        self.publish(next);
    }

    fn recovery_within(&mut self, delay: Nanos) {
        let at = self.shared.clock.now().saturating_add(delay);
        self.due.recovery = Some(self.due.recovery.map_or(at, |due| due.min(at)));
    }

    fn publish(&self, mut next: Snapshot) {
        next.index();
        let wall_ms = self.shared.clock.wall_ms();
        let unknown = next.enforce(wall_ms);
        self.shared.snapshot.store(Arc::new(next));
        let Some(engine) = self.engine.as_ref().filter(|_| !unknown.is_empty()) else { return };
        let snapshot = self.shared.snapshot.load();
        for (id, unknown) in unknown {
            let Some((stats, scope)) = snapshot.used(&id) else { continue };
            let told = scopes::tell(&id, unknown, stats, wall_ms, &mut |since, visit| {
                walk(engine, &self.tail, Start::Time(since), u64::MAX, visit)
            });
            if let Err(error) = told {
                tracing::error!(%error, scope = %id, "what was used before its limits were set is not counted");
            }
            scope.note_passed(wall_ms);
        }
    }

    /// Serves what was asked; returns those who wait for the entries queued before them.
    fn serve_commands(&mut self) -> Vec<oneshot::Sender<Result<Pending, StoreError>>> {
        let (mut changes, mut exports, mut flushes, mut notes) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        while let Ok(command) = self.commands.try_recv() {
            match command {
                Command::Adopt(ground, reply) => {
                    self.adopt(*ground);
                    answer(reply, ());
                }
                Command::Audit(note, reply) => notes.push((*note, reply)),
                Command::Change(request, act, reply) => changes.push((request, act, reply)),
                Command::Close => {}
                Command::Export(reply) => exports.push(reply),
                Command::Flush(reply) => flushes.push(reply),
            }
        }
        self.commit_changes(changes);
        self.record(notes);
        for reply in exports {
            answer(reply, self.export());
        }
        flushes
    }

    /// Nothing of it is stored: it is said again at each start.
    fn adopt(&mut self, (keys, prices): (Vec<EnvironmentKey>, Arc<PriceTable>)) {
        let before = self.shared.snapshot.load_full();
        let mut next = Snapshot::clone(&before);
        next.lay_prices(&prices);
        next.put_environment_keys(keys, Moment::of(&self.shared.clock));
        self.publish(next);
        let now = self.shared.snapshot.load_full();
        let stays =
            |key: &Arc<ProviderKeyState>| now.provider_key(key.record.id).is_some_and(|now| Arc::ptr_eq(now, key));
        self.record_uses(before.all_provider_keys().filter(|key| key.environment && !stays(key)));
    }

    /// Commits all changes asked for as one; each is answered once it is durable and published. Their records reach the
    /// audit log before: what cannot be recorded is not done.
    fn commit_changes(&mut self, changes: Vec<(Box<Request>, Option<Arc<Act>>, Reply)>) {
        if changes.is_empty() {
            return;
        }
        let Some(engine) = &self.engine else {
            for (.., reply) in changes {
                answer(reply, self.writable().map(|_| Stored::Nothing));
            }
            return;
        };
        let mut edit = Edit::new(&self.vault, engine, &self.shared.snapshot.load(), &self.manifest);
        let mut waiting = Vec::with_capacity(changes.len());
        let (mut failure, mut notes) = (None, Vec::new());
        for (request, act, reply) in changes {
            let target = audited::target(&request, act.as_deref(), &edit.snapshot);
            match edit.apply(*request) {
                Ok(stored) => {
                    waiting.push((stored, reply));
                    notes.extend(target.map(|target| audited::note(act.as_deref(), target, &edit.snapshot)));
                }
                Err(error) => {
                    // A row that cannot be read leaves the edit half made: nothing of it may be committed.
                    failure = failure.or_else(|| error.is_failure().then(|| error.to_string()));
                    answer(reply, Err(error));
                }
            }
        }
        let result = match failure {
            Some(reason) => Err(EngineError::Panicked(reason)),
            None if edit.changes.is_empty() => Ok(()),
            None => edit.finish().map_err(|error| EngineError::Panicked(error.to_string())),
        };
        let recorded = match result {
            Ok(()) => audited::append(&mut self.audit, &self.shared, notes.clone()),
            Err(_) => Ok(()),
        };
        if let Err(error) = recorded {
            waiting.into_iter().for_each(|(_, reply)| answer(reply, Err(StoreError::Audit(error.to_string()))));
            return;
        }
        let result = result.and_then(|()| {
            if !notes.is_empty() {
                let row = audit_row(&self.vault, self.audit.head());
                edit.changes.push(row.map_err(|error| EngineError::Panicked(error.to_string()))?);
            }
            if edit.changes.is_empty() {
                return Ok(());
            }
            self.shared.check_fault()?;
            engine.commit(&edit.changes)
        });
        let Edit { snapshot, manifest, changes, gone, .. } = edit;
        match result {
            Ok(()) => {
                if !changes.is_empty() {
                    self.manifest = manifest;
                    self.record_last_uses(&gone);
                    self.gone.extend(gone);
                    self.publish(snapshot);
                    self.shared.metrics.commits.inc();
                    self.recovery_within(RECOVERY_DELAY);
                }
                waiting.into_iter().for_each(|(stored, reply)| answer(reply, Ok(stored)));
            }
            Err(error) => {
                self.fail(&error);
                self.take_back(notes);
                let text = error.to_string();
                waiting.into_iter().for_each(|(_, reply)| answer(reply, Err(StoreError::Unavailable(text.clone()))));
            }
        }
    }

    /// Commits what is queued; returns the number of entries.
    fn commit_entries(&mut self) -> usize {
        let mut committed = 0;
        let now = self.shared.clock.now();
        while self.due.journal.is_none_or(|at| now >= at || self.shared.is_closed()) {
            if self.engine.is_none() && self.tail.pending().len() > PENDING_MAX {
                break;
            }
            let room = BATCH_MAX.saturating_sub(self.hand.len());
            self.hand.extend(self.entries.try_iter().take(room));
            let count = self.hand.len();
            if count == 0 {
                break;
            }
            if let Err(error) = self.commit_hand() {
                self.fail_journal(&error);
                break;
            }
            self.note_committed();
            self.recovery_within(RECOVERY_EVERY);
            let at = now.saturating_add(SYNC_EVERY);
            self.due.sync = self.due.sync.or(Some(at));
            committed += count;
            if let Err(error) = self.store_blocks() {
                self.fail(&error);
            }
            if count < BATCH_MAX {
                break;
            }
        }
        self.shared.metrics.queue.set(i64::try_from(self.shared.queued()).unwrap_or(i64::MAX));
        committed
    }

    /// Appends the hand to the journal: then it is committed.
    fn commit_hand(&mut self) -> std::io::Result<()> {
        self.batch.clear();
        self.hand.iter().for_each(|queued| self.batch.push(&queued.entry));
        self.shared.check_fault()?;
        self.journal.append(self.tail.next_seq(), &self.batch)?;
        self.tail.add(&self.batch);
        if self.due.journal.take().is_some() {
            self.journal_pause = BACKOFF_MIN;
            self.note_up();
        }
        if self.hand.iter().any(|queued| queued.done.is_some()) {
            // Committed it is, whatever happens here; who waits for the disk must not be told that it is there.
            if let Err(error) = self.journal.sync() {
                self.hand.iter_mut().for_each(|queued| queued.done = None);
                self.fail_journal(&error);
            }
        }
        Ok(())
    }

    /// Moves pending entries on into packed blocks. Not flushed: the journal has them until the engine is synced.
    fn store_blocks(&mut self) -> Result<(), EngineError> {
        let Some(engine) = &self.engine else { return Ok(()) };
        if let Some((end, rows)) = self.tail.blocks(self.shared.clock.wall_ms()) {
            self.shared.check_fault()?;
            engine.apply(Tree::Ledger, rows)?;
            self.tail.stored(end);
            self.engine_pause = BACKOFF_MIN;
        }
        if self.journal.len() > JOURNAL_MAX {
            engine.sync()?;
            self.restart_journal();
        }
        Ok(())
    }

    /// Leaves in the journal only what is in no block. The engine was just synced.
    fn restart_journal(&mut self) {
        // A journal that cannot start anew goes on as it is.
        if let Err(error) = self.journal.restart(self.tail.pending_seq(), self.tail.pending()) {
            tracing::warn!(%error, "the journal cannot start anew");
        }
    }

    /// What readers do not find in the engine; an error when not all that was queued is committed.
    fn pending(&self) -> Result<Pending, StoreError> {
        match self.due.journal {
            Some(_) => Err(StoreError::Unavailable("the journal cannot be written".to_owned())),
            None if !self.hand.is_empty() => Err(StoreError::Unavailable("entries wait for the store".to_owned())),
            None => Ok(Pending { first_seq: self.tail.pending_seq(), entries: self.tail.pending().clone() }),
        }
    }

    /// Adds the committed entries to the counters and answers who waits.
    fn note_committed(&mut self) {
        let snapshot = self.shared.snapshot.load();
        let count = self.hand.len();
        let mut rolled = Ok(());
        self.shared.key_use.add(self.hand.iter().map(|queued| &queued.entry));
        for Queued { entry, done, slot } in self.hand.drain(..) {
            rolled = rolled.and_then(|()| self.rollup.add(self.engine.as_ref(), &entry));
            for id in counted(&entry) {
                if let Some((stats, scope)) = snapshot.used(&id) {
                    stats.add(&entry);
                    scope.record(entry.time_ms, &consumed(&entry));
                    self.touched.insert(id);
                }
            }
            self.vigil.note(&entry, &snapshot);
            if let Some(slot) = slot {
                self.shared.reservations.release(slot);
            }
            if let Some(done) = done {
                answer(done, ());
            }
        }
        if let Err(error) = rolled {
            // Reopened, it starts from what is on disk.
            self.fail(&error);
        }
        self.shared.took(count);
        self.shared.metrics.entries.inc_by(count as u64);
        self.shared.metrics.commits.inc();
    }

    fn sync_journal_if_due(&mut self, now: Nanos) {
        if self.due.sync.is_some_and(|at| now >= at) {
            self.due.sync = None;
            if let Err(error) = self.journal.sync().and_then(|()| self.shared.reservations.sync()) {
                self.fail_journal(&error);
            }
        }
    }

    fn periodic(&mut self, closing: bool) {
        let now = self.shared.clock.now();
        self.sync_journal_if_due(now);
        self.vigil.look(now, self.shared.metrics.dropped.get(), self.shared.metrics.unaudited.get());
        if closing || now >= self.due.tidy {
            self.due.tidy = now.saturating_add(TIDY_EVERY);
            self.shared.reservations.tidy();
        }
        let result = self.save_if_due(now, closing).and_then(|()| self.prune_if_due(now, closing));
        let result = result.and_then(|()| self.write_recovery_if_due(now, closing));
        self.record_uses_if_due(now, closing);
        if let Err(error) = result {
            self.fail(&error);
        }
    }

    fn head(&self) -> backup::Head {
        backup::Head {
            fingerprint: *self.vault.fingerprint(),
            generation: self.manifest.generation,
            next_seq: self.tail.next_seq(),
            made_ms: self.shared.clock.wall_ms(),
        }
    }

    /// Every row of the small trees, and the entries that are in no block, as of now.
    fn export(&mut self) -> Result<(backup::Head, backup::Rows), StoreError> {
        let engine = self.writable()?;
        let mut rows = backup::Rows::new();
        for tree in Tree::SMALL.into_iter().chain([Tree::Rollups]) {
            rows.extend(engine.rows(tree)?.into_iter().map(|(key, value)| (tree, key.to_vec(), value.to_vec())));
        }
        let pending = self.tail.plain_blocks(self.shared.clock.wall_ms());
        let pending = pending.into_iter().filter_map(|(key, value)| Some((Tree::Ledger, key, value?)));
        rows.extend(pending);
        Ok((self.head(), rows))
    }
}

/// Keys that are counted on disk and no longer exist: deleted just before the process ended. What users, teams and plans
/// have used is kept: it is theirs again when they come back.
fn orphans(saved: &HashMap<ScopeId, counters::Saved>, snapshot: &Snapshot) -> Vec<KeyId> {
    let gone = saved.keys().filter(|id| snapshot.used(id).is_none());
    let key = |id: &ScopeId| match id {
        ScopeId::Key(id) | ScopeId::ProviderKey(id) => Some(*id),
        ScopeId::Plan(_) | ScopeId::Team(_) | ScopeId::User(_) => None,
    };
    gone.filter_map(key).collect()
}
