//! The store: keys, their secrets and the ledger, on disk and as a live view in memory.
//!
//! Owns everything below the data directory. The request path reads a [`Snapshot`] and pushes entries to a queue;
//! nothing on it waits for the disk. Leaves deciding to `proxy`, and showing to `control`.
//!
//! ```text
//! request path ── Snapshot (ArcSwap) ◄─┐            control plane ── change ─┐
//!      └── Ledger::record ── queue ──► writer thread ◄────────────────────────┘
//!                                        │ one commit, then the new snapshot
//!                                        ▼
//!                                      engine (sled) + recovery file
//! ```
//!
//! | file | owns |
//! |---|---|
//! | `engine` | sled and the guards it needs |
//! | `vault`, `master` | sealed envelopes, and the master key they hang on |
//! | `load`, `recover`, `lock`, `backup` | opening, damage, one owner, files to keep |
//! | `records`, `named`, `ca`, `snapshot` | changes of keys and of named records, and the view of them |
//! | `provider_keys` | provider keys and pools in use |
//! | `scopes` | keys, users, teams and plans in use, and what limits they are held to |
//! | `ledger`, `reservations`, `journal`, `tail`, `block`, `counters`, `query`, `rollup`, `usage` | entries: in, safe, packed, summed, out |
//! | `audit` | what was done by whom |
//! | `reference` | secrets that lie elsewhere |
//! | `reprice` | what entries would cost under other prices |
//! | `key_metrics` | what keys used, as metrics |
//! | `shared`, `writer` | the queue and the thread behind it |

mod audit;
mod backup;
mod block;
mod ca;
mod checksum;
mod counters;
mod engine;
mod error;
mod gauge;
mod journal;
mod key_metrics;
mod lease;
mod ledger;
mod load;
mod lock;
mod master;
mod named;
mod provider_keys;
mod query;
mod records;
mod recover;
mod reference;
mod reprice;
mod reservations;
mod rollup;
mod scopes;
mod shared;
mod snapshot;
mod tail;
#[cfg(test)]
mod tests;
mod usage;
mod vault;
mod writer;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{channel, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use rustc_hash::FxHashSet;
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use crate::audit::{Act, Actor};
use crate::clock::{Clock, Nanos, rfc3339};
use crate::entry::Entry;
use crate::event::{self, Events, Severity};
use crate::id::{KeyId, RequestId, ScopeId};
use crate::limit::{Moment, Watch};
use crate::metrics::Metrics;
use crate::pricing::PriceTable;
use crate::provider_key::{Change, ProviderKey, Status};
use crate::secret::Secret;
use crate::virtual_key::VirtualKey;

use journal::Journal;
use key_metrics::KeyMetrics;
use load::Loaded;
use lock::{DirLock, prepare_dir};
use named::Record;
use records::{Request, Stored};
use recover::{Layout, Opened};
use reservations::{Reservations, Slot};
use rollup::Rollup;
use scopes::Scopes;
use shared::Queued;
use shared::{Command, Handle, Shared};
use writer::{Parts, Vigil, Writer};

pub use audit::{Audit, AuditFilter, AuditPage, AuditRecord, AuditVerdict, BadRecord};
pub use ca::CaRecord;
pub use error::{QueueFull, RecordId, StoreError};
pub use lease::{LeaseRecord, Reserve};
pub use ledger::{Commit, EntryPlace, Ledger};
pub use master::{MasterKey, MasterKeyError, MasterKeyInputs, MasterKeySource};
pub use named::{Kind, Named, NamedState};
pub use provider_keys::{EnvironmentKey, PoolState, ProviderKeyState, ProviderKeyStats, ReplacedSecret, Tiers};
pub use query::{Cursor, LedgerFilter, Page};
pub use reference::{ReferenceError, References};
pub use scopes::{KeyState, ModelList, ScopeState, scopes_of};
pub use snapshot::{KeyStats, Snapshot};
pub use usage::{BadDimension, Dimension, UsageGroup, UsageReport, UsageTotals};
pub use vault::{Place, Vault, VaultError};

/// Commands that wait for the writer at most.
const COMMANDS_MAX: usize = 1024;

/// When an entry counts as recorded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Durability {
    /// When it is queued; it is on disk about a commit interval later.
    #[default]
    Group,
    /// When it is on disk: the response's last frame waits for that.
    Sync,
}

/// `[store]` of the config.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct StoreSection {
    /// `group` or `sync`.
    pub durability: Durability,
    /// How long entries gather before a commit, milliseconds.
    pub commit_interval_ms: u64,
    /// Entries that wait for a commit at most; what comes beyond is not recorded.
    pub queue_capacity: usize,
    /// Days the ledger is kept; 0 is for ever.
    pub retention_days: u32,
    /// Days its sums are kept, by which usage is answered; 0 is for ever.
    pub rollup_days: u32,
    /// Days the audit log is kept; 0 is for ever.
    pub audit_retention_days: u32,
}

impl Default for StoreSection {
    fn default() -> Self {
        Self {
            durability: Durability::Group,
            commit_interval_ms: 10,
            queue_capacity: 65_536,
            retention_days: 90,
            rollup_days: 400,
            audit_retention_days: 1095,
        }
    }
}

/// When a virtual key's rate is unusual: more requests in a minute than both of these.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unusual {
    /// So many times what it had a minute before; 0 is never.
    pub factor: u32,
    /// So many.
    pub floor: u32,
}

impl Default for Unusual {
    fn default() -> Self {
        Self { factor: 10, floor: 60 }
    }
}

/// What [`Store::open`] needs.
#[derive(Clone, Debug)]
pub struct StoreOptions {
    /// The data directory.
    pub dir: PathBuf,
    /// Make directory, master key and store when they are not there.
    pub create: bool,
    /// Where the master key may come from.
    pub master: MasterKeyInputs,
    /// System keys the environment brings.
    pub environment_keys: Vec<EnvironmentKey>,
    /// Prices of the program and the configuration; those set in the store lie over them.
    pub prices: Arc<PriceTable>,
    /// `[store]` of the config.
    pub section: StoreSection,
    /// When operators are told that a virtual key is used unlike before.
    pub unusual: Unusual,
    /// The time.
    pub clock: Clock,
    /// Where the store's families go.
    pub metrics: Metrics,
}

/// How the store is doing, for readiness and `doctor`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct StoreHealth {
    /// True while it can be written.
    pub up: bool,
    /// What was damaged, when it was restored from its recovery file since the start.
    pub recovered: Option<String>,
    /// The last failure since the start.
    pub last_error: Option<String>,
    /// Monotonic time of the writer's last round; old when it is stuck.
    pub last_progress: Nanos,
    /// Entries waiting for a commit.
    pub queued: usize,
    /// Entries not recorded since the start.
    pub dropped: u64,
}

/// A handle to the open store. Cloning shares it; the store closes when [`Store::close`] is called or the last handle
/// goes, [`Ledger`]s not counted.
#[derive(Clone, Debug)]
pub struct Store {
    shared: Handle,
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    shared: Handle,
    thread: Mutex<Option<JoinHandle<()>>>,
    dir: PathBuf,
    section: StoreSection,
    master: MasterKeySource,
    events: Events,
}

impl Store {
    /// Opens the store, restoring it from its recovery file when it is damaged. Blocks on the disk.
    ///
    /// # Errors
    /// When another process has it, the master key is missing or wrong, or the files are beyond repair. Nothing that
    /// was there is overwritten then.
    pub fn open(options: StoreOptions) -> Result<Self, StoreError> {
        let StoreOptions { dir, create, master, environment_keys, prices, section, unusual, clock, metrics } = options;
        let layout = Layout { dir: dir.clone() };
        if !create && !layout.is_used() {
            return Err(StoreError::Missing { dir });
        }
        prepare_dir(&dir)?;
        let lock = DirLock::take(&dir)?;
        let (vault, source) = open_vault(&layout, &master, create)?;
        let failed = |source| StoreError::io("cannot open the journal", &layout.journal(), source);
        let (journal, frames) = Journal::open(&layout.journal()).map_err(failed)?;
        let mut opened = recover::open(&layout, &vault, &frames, clock.wall_ms())?;
        drop(frames);
        let events = Events::new(clock.clone(), &metrics);
        let watch = Watch::new(events.clone(), &metrics);
        let failed = |source| StoreError::io("cannot open the file of open requests", &layout.reservations(), source);
        let (reservations, held) = Reservations::open(&layout.reservations()).map_err(failed)?;
        let aborted = aborted(&opened, &reservations, held)?;
        let (snapshot, touched) = first_snapshot(&mut opened, environment_keys, &prices, &clock, watch)?;
        charge(&snapshot, &aborted);
        let failed = |source| StoreError::io("cannot open the audit log", &layout.audit(), source);
        let anchor = opened.loaded.audit;
        let (audit, damage) = audit::open(&layout.audit(), &snapshot.digest_key, anchor).map_err(failed)?;
        if let Some(reason) = &damage {
            let text = format!("{reason}; `sidekey audit verify` says what is missing");
            events.emit(event::Kind::AuditDamaged, Severity::Error, "audit log", text);
        }
        let view = audit::View::new(layout.audit());
        view.follow(&audit);
        let rollup = Rollup::resume(&opened.engine, &opened.loaded.tail)?;
        let (commands, command_queue) = sync_channel(COMMANDS_MAX);
        let (entries, entry_queue) = channel();
        let shared =
            Shared::new(snapshot, clock, &metrics, section.queue_capacity, (commands, entries), reservations, view);
        let shared = Arc::new(shared);
        metrics.register(KeyMetrics::new(Arc::downgrade(&shared)));
        gauge::register(&shared, &metrics);
        shared.metrics.aborted.inc_by(aborted.len() as u64);
        shared.note_health(|health| health.recovered = opened.recovered.clone());
        let writer = Writer::new(Parts {
            shared: shared.clone(),
            commands: command_queue,
            entries: entry_queue,
            layout,
            vault,
            section: section.clone(),
            opened,
            rollup,
            aborted,
            touched,
            journal,
            audit,
            damage,
            vigil: Vigil::new(events.clone(), unusual),
            events: events.clone(),
            lock,
        });
        let thread = std::thread::Builder::new().name("sidekey-store".to_owned()).spawn(move || writer.run());
        let thread = thread.map_err(|source| StoreError::io("cannot start the writer of", &dir, source))?;
        let thread = Mutex::new(Some(thread));
        let inner = Inner { shared: shared.clone(), thread, dir, section, master: source, events };
        Ok(Self { shared, inner: Arc::new(inner) })
    }

    /// The live view: what the request path decides by.
    #[must_use]
    pub fn snapshot(&self) -> arc_swap::Guard<Arc<Snapshot>> {
        self.shared.snapshot.load()
    }

    /// The ledger.
    #[must_use]
    pub fn ledger(&self) -> Ledger {
        Ledger { shared: self.shared.clone(), durability: self.inner.section.durability }
    }

    /// Where events of keys, limits and the store itself are told.
    #[must_use]
    pub fn events(&self) -> &Events {
        &self.inner.events
    }

    /// The audit log.
    #[must_use]
    pub fn audit(&self) -> Audit {
        Audit { shared: self.shared.clone() }
    }

    /// Where the master key was found.
    #[must_use]
    pub fn master_key_source(&self) -> &MasterKeySource {
        &self.inner.master
    }

    /// The data directory.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.inner.dir
    }

    /// Takes the system keys that the environment brings, and the prices of the configuration, in place of those so
    /// far; in force once this returns.
    ///
    /// # Errors
    /// When the store is closed or has too much to do.
    pub async fn adopt(&self, keys: Vec<EnvironmentKey>, prices: PriceTable) -> Result<(), StoreError> {
        let (reply, done) = oneshot::channel();
        self.shared.command(Command::Adopt(Box::new((keys, Arc::new(prices))), reply))?;
        done.await.map_err(|_| StoreError::Closed)
    }

    /// How the store is doing.
    #[must_use]
    pub fn health(&self) -> StoreHealth {
        let mut health = self.shared.health.lock().unwrap_or_else(PoisonError::into_inner).clone();
        health.queued = self.shared.queued();
        health.dropped = self.shared.metrics.dropped.get();
        health
    }

    /// Adds a virtual key; its version becomes 1. Durable and live once this returns. Dropping the future does not
    /// undo it, as for all changes below.
    ///
    /// # Errors
    /// When the id is taken, the record too long, or the store not available.
    pub async fn create_virtual_key(&self, record: VirtualKey) -> Result<Arc<KeyState>, StoreError> {
        self.virtual_key_change(Request::CreateVirtualKey(record)).await
    }

    /// Replaces the record of a virtual key that still has version `expected`; its version grows by one.
    ///
    /// # Errors
    /// When it is gone or was changed meanwhile, is too long, or the store is not available.
    pub async fn update_virtual_key(&self, record: VirtualKey, expected: u64) -> Result<Arc<KeyState>, StoreError> {
        self.virtual_key_change(Request::UpdateVirtualKey(record, expected)).await
    }

    /// Removes a virtual key, if `expected` is given only at this version. Its entries stay in the ledger.
    ///
    /// # Errors
    /// When it is gone or was changed meanwhile, or the store is not available.
    pub async fn delete_virtual_key(&self, id: KeyId, expected: Option<u64>) -> Result<(), StoreError> {
        self.change(Request::DeleteVirtualKey(id, expected)).await.map(drop)
    }

    /// Adds a provider key, its secret sealed; `masked` is set here. A record whose origin is a reference brings none.
    ///
    /// # Errors
    /// As [`Store::create_virtual_key`]; also when the origin is sealed and there is no secret.
    pub async fn create_provider_key(
        &self,
        record: ProviderKey,
        secret: Option<Secret>,
    ) -> Result<Arc<ProviderKeyState>, StoreError> {
        self.provider_key_change(Request::CreateProviderKey(record, secret)).await
    }

    /// Replaces the record of a provider key that still has version `expected`; without `secret` a sealed one keeps
    /// the one it has.
    ///
    /// # Errors
    /// As [`Store::update_virtual_key`]; also when the origin becomes sealed and there is no secret.
    pub async fn update_provider_key(
        &self,
        record: ProviderKey,
        expected: u64,
        secret: Option<Secret>,
    ) -> Result<Arc<ProviderKeyState>, StoreError> {
        self.provider_key_change(Request::UpdateProviderKey(record, expected, secret)).await
    }

    /// Removes a provider key and its secret.
    ///
    /// # Errors
    /// As [`Store::delete_virtual_key`].
    pub async fn delete_provider_key(&self, id: KeyId, expected: Option<u64>) -> Result<(), StoreError> {
        self.change(Request::DeleteProviderKey(id, expected)).await.map(drop)
    }

    /// Adds or replaces a named record; gives its new version. With `expected` only over that version, 0 being none.
    ///
    /// # Errors
    /// When `expected` does not hold, the record is too long, or the store is not available.
    pub async fn put_named<T: Named>(&self, record: T, expected: Option<u64>) -> Result<(Arc<T>, u64), StoreError> {
        let record = Record::new(record)?;
        match self.change(Request::PutNamed(record, expected)).await? {
            Stored::Named(state) => state.value::<T>().map(|value| (value, state.version)).ok_or(StoreError::Closed),
            Stored::Nothing | Stored::ProviderKey(_) | Stored::VirtualKey(_) => Err(StoreError::Closed),
        }
    }

    /// Adds or replaces many named records, whatever was there. The writer commits those that wait for it together; of more
    /// than it takes at once, and when it fails in between, the first are written.
    ///
    /// # Errors
    /// As [`Store::put_named`].
    pub async fn put_all_named<T: Named>(&self, records: Vec<T>) -> Result<(), StoreError> {
        let records: Vec<Record> = records.into_iter().map(Record::new).collect::<Result<_, _>>()?;
        let mut records = records.into_iter().peekable();
        while records.peek().is_some() {
            let mut written = Vec::new();
            // Others must get a word in.
            for record in records.by_ref().take(COMMANDS_MAX / 2) {
                let (reply, done) = oneshot::channel();
                self.shared.command(Command::Change(
                    Box::new(Request::PutNamed(record, None)),
                    Act::current(),
                    reply,
                ))?;
                written.push(done);
            }
            for done in written {
                done.await.map_err(|_| StoreError::Closed)??;
            }
        }
        Ok(())
    }

    /// Removes a named record, if `expected` is given only at this version.
    ///
    /// # Errors
    /// When there is none, it was changed meanwhile, or the store is not available.
    pub async fn delete_named<T: Named>(&self, name: &str, expected: Option<u64>) -> Result<(), StoreError> {
        self.change(Request::DeleteNamed(T::KIND, Arc::from(name), expected)).await.map(drop)
    }

    /// Tells and keeps what became of a provider key, as its health has it already; never waits, and a failure is only
    /// logged. A key of the environment has nothing to be kept in.
    pub fn note_provider_key(&self, key: &ProviderKeyState, change: Change) {
        let record = &key.record;
        let Change { standing, before, fresh, kept } = change;
        if fresh {
            let (kind, severity) = told(standing.status);
            let why = standing.last_error.as_deref().map_or_else(String::new, |why| format!(": {why}"));
            let until = standing.until_ms.map_or_else(String::new, |until| format!(", until {}", rfc3339(until)));
            let (provider, name) = (&record.provider, &record.name);
            let message =
                format!("{provider}/{name} is {}, was {}{why}{until}", standing.status.as_str(), before.as_str());
            self.events().emit(kind, severity, format!("provider key {}", record.id), message);
        }
        if !kept || key.environment {
            return;
        }
        let (reply, _not_awaited) = oneshot::channel();
        let status = standing.status.as_str();
        let request = Request::MarkProviderKey(record.id, standing);
        if let Err(error) = self.shared.command(Command::Change(Box::new(request), Act::current(), reply)) {
            tracing::error!(id = %record.id, status, %error, "a provider key's status was not noted");
        }
    }

    /// Takes back the last rotation of a provider key, because its new secret is refused: at once in memory, so that no
    /// later request is sent with it. False when there is none to take back; an open request that had the new secret
    /// then says nothing of the key. Never waits; that it cannot be kept is only logged.
    pub fn take_back(&self, key: &ProviderKeyState, why: &str, at: Moment) -> bool {
        let snapshot = self.snapshot();
        let Some(current) = snapshot.provider_key(key.record.id) else { return false };
        let same = |a: &Arc<ReplacedSecret>, b: &Arc<ReplacedSecret>| Arc::ptr_eq(a, b);
        let (Some(replaced), Some(known)) = (&current.replaced, &key.replaced) else { return false };
        let said = replaced.said();
        if !same(replaced, known) || at.wall_ms >= said.until_ms {
            return false;
        }
        let refused = current.record.masked.clone();
        current.secret.store(replaced.secret().cloned());
        if !replaced.take_back() {
            return true;
        }
        let health = &current.stats.health;
        health.clear();
        health.resume(&ProviderKey { standing: said.standing.clone(), ..current.record.clone() }, at.now, at.wall_ms);
        current.stats.taken_back.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let ProviderKey { id, provider, name, .. } = &current.record;
        let (of, by) = (said.shown(), if refused.is_empty() { current.record.origin.describe() } else { refused });
        let message = format!("{provider}/{name} is {of} again: {by}, which took its place, is refused: {why}");
        self.events().emit(event::Kind::ProviderKeyTakenBack, Severity::Error, format!("provider key {id}"), message);
        let (reply, _not_awaited) = oneshot::channel();
        let act = Act::new(Actor::sidekey(), "provider_key.take_back", format!("provider_key {id}"));
        let request = Request::TakeBack(*id, said.rotation);
        if let Err(error) = self.shared.command(Command::Change(Box::new(request), Some(act), reply)) {
            tracing::error!(%id, %error, "a rotation that was taken back is not noted");
        }
        true
    }

    /// Forgets the secrets that rotations replaced and whose grace is over; gives how many.
    ///
    /// # Errors
    /// As [`Store::update_provider_key`].
    pub async fn retire_replaced(&self, wall_ms: u64) -> Result<usize, StoreError> {
        let over = |key: &Arc<ProviderKeyState>| {
            let replaced = key.record.replaced.as_ref().filter(|replaced| replaced.until_ms <= wall_ms);
            replaced.map(|replaced| (key.record.id, replaced.rotation))
        };
        let over: Vec<(KeyId, u64)> = self.snapshot().all_provider_keys().filter_map(over).collect();
        for (id, rotation) in &over {
            let act = Act::new(Actor::sidekey(), "provider_key.retire", format!("provider_key {id}"));
            match act.scope(self.change(Request::RetireReplaced(*id, *rotation))).await {
                // Deleted meanwhile, and the secret with it.
                Ok(_) | Err(StoreError::NotFound { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(over.len())
    }

    /// Writes a backup file, mode 0600: everything in the store, secrets still sealed, so that restoring it needs the
    /// same master key. Cancelling leaves at most a `.partial` file.
    ///
    /// # Errors
    /// When the store cannot be read or the file not written.
    pub async fn backup(&self, path: PathBuf) -> Result<(), StoreError> {
        self.ledger().flush().await?;
        let (reply, rows) = oneshot::channel();
        self.shared.command(Command::Export(reply))?;
        let (head, rows) = rows.await.map_err(|_| StoreError::Closed)??;
        let shared = self.shared.clone();
        let work = move || write_backup(&shared, head, &rows, &path);
        tokio::task::spawn_blocking(work).await.map_err(|_| StoreError::Closed)?
    }

    /// Commits what is queued, saves counters and limits, and closes the files. Blocks until done; what is recorded
    /// later is refused.
    pub fn close(&self) {
        self.inner.close();
    }

    async fn change(&self, request: Request) -> Result<Stored, StoreError> {
        let (reply, done) = oneshot::channel();
        self.shared.command(Command::Change(Box::new(request), Act::current(), reply))?;
        done.await.map_err(|_| StoreError::Closed)?
    }

    async fn virtual_key_change(&self, request: Request) -> Result<Arc<KeyState>, StoreError> {
        match self.change(request).await? {
            Stored::VirtualKey(state) => Ok(state),
            Stored::Named(_) | Stored::Nothing | Stored::ProviderKey(_) => Err(StoreError::Closed),
        }
    }

    async fn provider_key_change(&self, request: Request) -> Result<Arc<ProviderKeyState>, StoreError> {
        match self.change(request).await? {
            Stored::ProviderKey(state) => Ok(state),
            Stored::Named(_) | Stored::Nothing | Stored::VirtualKey(_) => Err(StoreError::Closed),
        }
    }
}

/// How a provider key's new status is told.
fn told(status: Status) -> (event::Kind, Severity) {
    match status {
        Status::Active => (event::Kind::ProviderKeyActive, Severity::Info),
        Status::Cooling => (event::Kind::ProviderKeyCooling, Severity::Info),
        Status::Disabled => (event::Kind::ProviderKeyDisabled, Severity::Info),
        Status::Error => (event::Kind::ProviderKeyError, Severity::Error),
        Status::Exhausted => (event::Kind::ProviderKeyExhausted, Severity::Error),
    }
}

impl Inner {
    fn close(&self) {
        self.shared.close();
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if thread.is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the store's writer ended by a panic");
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.close();
    }
}

/// Where [`Store::open`] would take the master key from; `None` when there is none yet.
///
/// # Errors
/// When a source is there and cannot be used.
pub fn master_key_source(dir: &Path, master: &MasterKeyInputs) -> Result<Option<MasterKeySource>, MasterKeyError> {
    Ok(master::find(master, dir)?.map(|(_, source)| source))
}

/// Puts the store of a backup file into a data directory; the file is checked whole before anything is touched. What
/// was there moves aside, and only with `replace`; returns where to.
///
/// # Errors
/// When the file is bad, the master key is not the one it was made under, a store is there, or it is in use.
pub fn restore(
    dir: &Path,
    master: &MasterKeyInputs,
    from: &Path,
    replace: bool,
    clock: &Clock,
) -> Result<Option<PathBuf>, StoreError> {
    let head = backup::verify(from)?;
    let layout = Layout { dir: dir.to_owned() };
    prepare_dir(dir)?;
    let _lock = DirLock::take(dir)?;
    if layout.is_used() && !replace {
        return Err(StoreError::NotEmpty { dir: dir.to_owned() });
    }
    let (key, _) = master::find(master, dir)?.ok_or_else(|| StoreError::NoMaster { dir: dir.to_owned() })?;
    let vault = Vault::new(&key)?;
    if head.fingerprint != *vault.fingerprint() {
        return Err(StoreError::WrongMaster { dir: dir.to_owned() });
    }
    recover::restore(&layout, &vault, from, clock.wall_ms())
}

fn open_vault(layout: &Layout, inputs: &MasterKeyInputs, create: bool) -> Result<(Vault, MasterKeySource), StoreError> {
    let (key, source) = match master::find(inputs, &layout.dir)? {
        Some(found) => found,
        // Another key would make what is there unreadable for good.
        None if layout.is_used() || !create => return Err(StoreError::NoMaster { dir: layout.dir.clone() }),
        None => master::create(&layout.dir)?,
    };
    Ok((Vault::new(&key)?, source))
}

/// What the last process did not live to record, of what it had noted: those of which the ledger has no entry. The places
/// of the others are cleared.
fn aborted(opened: &Opened, reservations: &Reservations, held: Vec<(Slot, Entry)>) -> Result<Vec<Queued>, StoreError> {
    let Some(since) = held.iter().map(|(_, entry)| entry.time_ms).min() else { return Ok(Vec::new()) };
    let mut held: HashMap<RequestId, (Slot, Entry)> = held.into_iter().map(|held| (held.1.request_id, held)).collect();
    let Opened { engine, loaded, .. } = opened;
    load::walk(engine, &loaded.tail, load::Start::Time(since), u64::MAX, &mut |stored| {
        if let Some((slot, _)) = held.remove(&stored.request_id()) {
            reservations.clear(slot);
        }
    })?;
    if !held.is_empty() {
        tracing::warn!(requests = held.len(), "sidekey ended before these requests did; they are settled by estimate");
    }
    let mut aborted: Vec<Queued> = held
        .into_values()
        .map(|(slot, entry)| Queued { entry: reservations::as_aborted(entry), done: None, slot: Some(slot) })
        .collect();
    aborted.sort_by_key(|queued| queued.entry.time_ms);
    Ok(aborted)
}

/// Counts what those requests are thought to have consumed; the counters follow when the ledger has them.
fn charge(snapshot: &Snapshot, aborted: &[Queued]) {
    for entry in aborted.iter().map(|queued| &queued.entry) {
        for id in scopes::counted(entry) {
            if let Some((_, scope)) = snapshot.used(&id) {
                scope.charge(entry.time_ms, &scopes::consumed(entry));
            }
        }
    }
}

/// The snapshot of a store just opened, with counters and limits as they were left, and the scopes that entries have
/// been added to since they were saved.
fn first_snapshot(
    opened: &mut Opened,
    environment_keys: Vec<EnvironmentKey>,
    prices: &PriceTable,
    clock: &Clock,
    watch: Watch,
) -> Result<(Snapshot, FxHashSet<ScopeId>), StoreError> {
    let Opened { engine, loaded, .. } = opened;
    let mut snapshot = build_snapshot(loaded, None, watch);
    snapshot.lay_prices(prices);
    let at = Moment::of(clock);
    snapshot.put_environment_keys(environment_keys, at);
    snapshot.index();
    for state in snapshot.all_provider_keys() {
        state.stats.health.resume(&state.record, at.now, at.wall_ms);
    }
    // What a user has spent outlives their keys, whose policy is not in force yet.
    loaded.saved.keys().for_each(|id| snapshot.scopes.need_if_shared(id));
    let _told_by_the_ledger = snapshot.enforce(at.wall_ms);
    for id in snapshot.all_used() {
        let Some((stats, scope)) = snapshot.used(&id) else { continue };
        let saved = loaded.saved.get(&id).cloned().unwrap_or_default();
        stats.restore(saved.stats);
        if let Some(rates) = loaded.rates.get(&id) {
            scope.restore(rates, at);
        }
        let unknown = scope.restore_amounts(&saved.amounts, at.wall_ms);
        scopes::tell(&id, unknown, stats, at.wall_ms, &mut |since, visit| {
            load::walk(engine, &loaded.tail, load::Start::Time(since), loaded.as_of.seq, visit)
        })?;
    }
    let mut touched = FxHashSet::default();
    let since = load::Start::Seq(loaded.as_of.seq);
    load::walk(engine, &loaded.tail, since, u64::MAX, &mut |stored| {
        let entry = stored.to_entry();
        for id in scopes::counted(&entry) {
            if let Some((stats, scope)) = snapshot.used(&id) {
                stats.add(&entry);
                scope.make_up(entry.time_ms, &scopes::consumed(&entry));
                touched.insert(id);
            }
        }
    })?;
    for id in snapshot.all_used() {
        if let Some((_, scope)) = snapshot.used(&id) {
            scope.note_passed(at.wall_ms);
        }
    }
    Ok((snapshot, touched))
}

/// A snapshot of what was loaded; run-time state and keys of the environment come from the one `before`.
fn build_snapshot(loaded: &mut Loaded, before: Option<&Snapshot>, watch: Watch) -> Snapshot {
    let scopes = before.map_or_else(|| Scopes::new(watch), |before| before.scopes.clone());
    let mut snapshot = Snapshot::new(loaded.digest_key.clone(), loaded.manifest.generation, scopes);
    snapshot.named = std::mem::take(&mut loaded.named);
    if let Some(before) = before {
        snapshot.lay_prices(before.prices());
    }
    for record in std::mem::take(&mut loaded.virtual_keys) {
        if let Some(known) = before.and_then(|before| before.virtual_key(record.id)) {
            // For its run-time state; the record takes its place at once.
            snapshot.virtual_keys.insert(record.id, known.clone());
        }
        snapshot.put_virtual_key(record);
    }
    for (record, secrets) in std::mem::take(&mut loaded.provider_keys) {
        let known = before.and_then(|before| before.provider_key(record.id));
        let state = ProviderKeyState::stored(record, secrets, known.map(|state| &**state), &snapshot.scopes.watch);
        snapshot.put_provider_key(Arc::new(state));
    }
    for state in before.into_iter().flat_map(Snapshot::all_provider_keys).filter(|state| state.environment) {
        snapshot.put_provider_key(state.clone());
    }
    snapshot
}

fn write_backup(shared: &Shared, head: backup::Head, rows: &backup::Rows, path: &Path) -> Result<(), StoreError> {
    let failed = |source| StoreError::io("cannot write the backup", path, source);
    let mut file = backup::Writer::create(path, head).map_err(failed)?;
    for (tree, key, value) in rows {
        file.row(*tree, key, value).map_err(failed)?;
    }
    let first_pending = rows.iter().find(|(tree, ..)| *tree == engine::Tree::Ledger);
    let first_pending = first_pending.and_then(|(_, key, _)| block::BlockKey::from_bytes(key)).map(|at| at.first_seq);
    let trees = shared.ledger.read().unwrap_or_else(PoisonError::into_inner);
    let trees = trees.as_ref().ok_or_else(|| StoreError::Unavailable("the ledger is being reopened".to_owned()))?;
    engine::guarded(|| {
        for row in trees.blocks.iter() {
            let (key, value) = row?;
            // A block written since the rows were handed out holds the pending entries again.
            let first_seq = block::BlockKey::from_bytes(&key).map(|at| at.first_seq);
            if first_pending.is_none() || first_seq < first_pending {
                file.row(engine::Tree::Ledger, &key, &value)?;
            }
        }
        Ok(file.finish()?)
    })
    .map_err(Into::into)
}

impl Store {
    /// What resolves references; `env_values` are the variables that `env:` origins may name.
    #[must_use]
    pub fn references(&self, env_values: HashMap<String, Secret>) -> References {
        References::new(self.shared.clone(), env_values)
    }
}
