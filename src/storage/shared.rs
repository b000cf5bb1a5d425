//! What the handles of a store and its writer thread share: the queue, the wake-up, the live snapshot, health.
//!
//! Owns the hand-over from the request path to the writer. Leaves writing to `storage::writer`.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Sender, SyncSender, TrySendError};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock};
use std::thread::Thread;

use arc_swap::ArcSwap;
use prometheus::{IntCounter, IntGauge};
use tokio::sync::oneshot;

use crate::audit::{Act, Note};
use crate::clock::{Clock, Nanos};
use crate::entry::Entry;
use crate::metrics::Metrics;
use crate::pricing::PriceTable;

use super::audit::View;
use super::backup;
use super::block::Packed;
use super::key_metrics::KeyUse;
use super::provider_keys::EnvironmentKey;
use super::records::{Request, Stored};
use super::reservations::{Reservations, Slot};
use super::snapshot::Snapshot;
use super::{QueueFull, StoreError, StoreHealth};

/// At most one line about dropped entries in this time.
const DROP_LOG_EVERY: Nanos = 10_000_000_000;

/// An entry on its way.
#[derive(Debug)]
pub(super) struct Queued {
    pub(super) entry: Entry,
    /// Answered once it is committed.
    pub(super) done: Option<oneshot::Sender<()>>,
    /// Cleared once it is committed.
    pub(super) slot: Option<Slot>,
}

/// Entries that are committed and in no block yet.
#[derive(Clone, Debug, Default)]
pub(super) struct Pending {
    pub(super) first_seq: u64,
    pub(super) entries: Packed,
}

/// What readers of the ledger read.
#[derive(Debug)]
pub(super) struct LedgerTrees {
    pub(super) blocks: sled::Tree,
    pub(super) rollups: sled::Tree,
}

/// What handles ask of the writer.
#[derive(Debug)]
pub(super) enum Command {
    /// Take what the environment and the configuration say now.
    Adopt(Box<(Vec<EnvironmentKey>, Arc<PriceTable>)>, oneshot::Sender<()>),
    /// Append a record to the audit log.
    Audit(Box<Note>, oneshot::Sender<Result<(), StoreError>>),
    /// Change a record, as part of an act.
    Change(Box<Request>, Option<Arc<Act>>, oneshot::Sender<Result<Stored, StoreError>>),
    /// Stop, after everything queued is committed.
    Close,
    /// Hand out every row of the small trees, as of now.
    Export(oneshot::Sender<Result<(backup::Head, backup::Rows), StoreError>>),
    /// Commit everything queued; the answer is what is in no block yet.
    Flush(oneshot::Sender<Result<Pending, StoreError>>),
}

#[derive(Debug)]
pub(super) struct Shared {
    pub(super) snapshot: ArcSwap<Snapshot>,
    pub(super) clock: Clock,
    pub(super) metrics: StoreMetrics,
    pub(super) key_use: KeyUse,
    /// The ledger's trees for readers; `None` while the engine is being reopened. Readers hold the lock while they
    /// scan; the writer takes it only to take the trees away.
    pub(super) ledger: RwLock<Option<LedgerTrees>>,
    pub(super) health: Mutex<StoreHealth>,
    pub(super) audit: View,
    commands: SyncSender<Command>,
    entries: Sender<Queued>,
    /// Entries in `entries`, or about to be: counted here because the channel itself is unbounded, and so takes no
    /// memory while it is empty.
    queued: AtomicUsize,
    /// Places in the queue that are promised to requests under way.
    promised: AtomicUsize,
    pub(super) reservations: Reservations,
    capacity: usize,
    dropped_logged: AtomicU64,
    writer: OnceLock<Thread>,
    sleeping: AtomicBool,
    urgent: AtomicBool,
    closed: AtomicBool,
    /// Makes the audit log's writes fail so.
    #[cfg(test)]
    pub(super) audit_fault: Mutex<Option<std::io::ErrorKind>>,
    /// Makes every write fail so.
    #[cfg(test)]
    pub(super) fault: Mutex<Option<std::io::ErrorKind>>,
}

impl Shared {
    pub(super) fn new(
        snapshot: Snapshot,
        clock: Clock,
        metrics: &Metrics,
        capacity: usize,
        (commands, entries): (SyncSender<Command>, Sender<Queued>),
        reservations: Reservations,
        audit: View,
    ) -> Self {
        Self {
            snapshot: ArcSwap::from_pointee(snapshot),
            clock,
            metrics: StoreMetrics::register(metrics),
            key_use: KeyUse::default(),
            ledger: RwLock::new(None),
            health: Mutex::new(StoreHealth::default()),
            audit,
            commands,
            entries,
            queued: AtomicUsize::new(0),
            promised: AtomicUsize::new(0),
            reservations,
            capacity,
            dropped_logged: AtomicU64::new(0),
            writer: OnceLock::new(),
            sleeping: AtomicBool::new(false),
            urgent: AtomicBool::new(false),
            closed: AtomicBool::new(false),
            #[cfg(test)]
            audit_fault: Mutex::default(),
            #[cfg(test)]
            fault: Mutex::default(),
        }
    }

    /// Where tests make a write fail; elsewhere it never does.
    pub(super) fn check_fault(&self) -> std::io::Result<()> {
        #[cfg(test)]
        if let Some(kind) = *self.fault.lock().unwrap_or_else(PoisonError::into_inner) {
            return Err(kind.into());
        }
        Ok(())
    }

    /// The same for the audit log.
    #[cfg_attr(not(test), expect(clippy::unused_self, reason = "only tests make it fail"))]
    pub(super) fn check_audit_fault(&self) -> std::io::Result<()> {
        #[cfg(test)]
        if let Some(kind) = *self.audit_fault.lock().unwrap_or_else(PoisonError::into_inner) {
            return Err(kind.into());
        }
        Ok(())
    }

    /// Keeps a place in the queue for an entry to come: [`Shared::push`] with it never refuses for want of room.
    pub(super) fn promise(&self) -> Result<(), QueueFull> {
        let promised = self.promised.fetch_add(1, Ordering::SeqCst);
        if self.queued().saturating_add(promised) >= self.capacity || self.closed.load(Ordering::Relaxed) {
            self.unpromise();
            return Err(QueueFull);
        }
        Ok(())
    }

    pub(super) fn unpromise(&self) {
        self.promised.fetch_sub(1, Ordering::SeqCst);
    }

    /// Queues an entry; never waits. The writer is woken only when it sleeps with nothing to do. `promised` uses up a
    /// promise, whatever comes of it.
    pub(super) fn push(&self, queued: Queued, promised: bool) -> Result<(), Box<Queued>> {
        let urgent = queued.done.is_some();
        let before = self.queued.fetch_add(1, Ordering::SeqCst);
        let kept = self.promised.load(Ordering::SeqCst);
        if promised {
            self.unpromise();
        }
        let full = !promised && before.saturating_add(kept) >= self.capacity;
        if full || self.closed.load(Ordering::Relaxed) {
            self.queued.fetch_sub(1, Ordering::SeqCst);
            self.note_dropped();
            return Err(Box::new(queued));
        }
        if let Err(back) = self.entries.send(queued) {
            self.note_dropped();
            return Err(Box::new(back.0));
        }
        if urgent {
            self.urgent.store(true, Ordering::SeqCst);
        }
        // Both sides are SeqCst: either we see the writer asleep, or it sees our count before it sleeps.
        if self.sleeping.load(Ordering::SeqCst) && self.sleeping.swap(false, Ordering::SeqCst) || urgent {
            self.unpark();
        }
        Ok(())
    }

    /// Sends a command and wakes the writer.
    pub(super) fn command(&self, command: Command) -> Result<(), StoreError> {
        if self.closed.load(Ordering::Relaxed) {
            return Err(StoreError::Closed);
        }
        self.commands.try_send(command).map_err(|error| match error {
            TrySendError::Disconnected(_) => StoreError::Closed,
            TrySendError::Full(_) => StoreError::Busy,
        })?;
        self.urgent.store(true, Ordering::SeqCst);
        self.unpark();
        Ok(())
    }

    /// Tells the writer to finish; entries and commands that come later are refused.
    pub(super) fn close(&self) {
        // The queue of commands may be full for a moment; the flag alone is enough, the command only wakes.
        let _full_or_gone = self.commands.try_send(Command::Close);
        self.closed.store(true, Ordering::SeqCst);
        self.urgent.store(true, Ordering::SeqCst);
        self.unpark();
    }

    pub(super) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::SeqCst)
    }

    pub(super) fn queued(&self) -> usize {
        self.queued.load(Ordering::SeqCst)
    }

    /// Notes entries that the writer has without the queue.
    pub(super) fn given(&self, count: usize) {
        self.queued.fetch_add(count, Ordering::SeqCst);
    }

    /// Notes that `count` entries were taken from the queue.
    pub(super) fn took(&self, count: usize) {
        self.queued.fetch_sub(count, Ordering::SeqCst);
    }

    pub(super) fn set_writer(&self, thread: Thread) {
        // Set once, by the writer thread itself.
        let _set_before = self.writer.set(thread);
    }

    /// Parks the writer until something comes or the time is over. Called by the writer only.
    pub(super) fn sleep(&self, idle: std::time::Duration) {
        self.sleeping.store(true, Ordering::SeqCst);
        if self.queued() == 0 && !self.urgent.load(Ordering::SeqCst) {
            std::thread::park_timeout(idle);
        }
        self.sleeping.store(false, Ordering::SeqCst);
    }

    /// Lets entries gather, unless somebody waits. Called by the writer only.
    pub(super) fn gather(&self, interval: std::time::Duration) {
        if !self.urgent.load(Ordering::SeqCst) {
            std::thread::park_timeout(interval);
        }
    }

    /// True once after each urgent request.
    pub(super) fn take_urgent(&self) -> bool {
        self.urgent.swap(false, Ordering::SeqCst)
    }

    pub(super) fn note_health(&self, change: impl FnOnce(&mut StoreHealth)) {
        change(&mut self.health.lock().unwrap_or_else(PoisonError::into_inner));
    }

    fn unpark(&self) {
        if let Some(thread) = self.writer.get() {
            thread.unpark();
        }
    }

    fn note_dropped(&self) {
        self.metrics.dropped.inc();
        let now = self.clock.now();
        let last = self.dropped_logged.load(Ordering::Relaxed);
        let due = last == 0 || now.saturating_sub(last) >= DROP_LOG_EVERY;
        let ours = || self.dropped_logged.compare_exchange(last, now, Ordering::Relaxed, Ordering::Relaxed).is_ok();
        if due && ours() {
            let dropped = self.metrics.dropped.get();
            tracing::error!(dropped, queue = self.capacity, "ledger queue full: entries are not recorded");
        }
    }
}

/// The store's metric families.
#[derive(Clone, Debug)]
pub(super) struct StoreMetrics {
    pub(super) entries: IntCounter,
    pub(super) dropped: IntCounter,
    pub(super) unnoted: IntCounter,
    pub(super) aborted: IntCounter,
    pub(super) commits: IntCounter,
    pub(super) failures: IntCounter,
    pub(super) reopened: IntCounter,
    pub(super) damaged_blocks: IntCounter,
    pub(super) audited: IntCounter,
    pub(super) unaudited: IntCounter,
    pub(super) up: IntGauge,
    pub(super) queue: IntGauge,
}

impl StoreMetrics {
    fn register(metrics: &Metrics) -> Self {
        Self {
            entries: counter(metrics, "sidekey_ledger_entries_total", "Ledger entries committed."),
            dropped: counter(
                metrics,
                "sidekey_ledger_dropped_total",
                "Ledger entries not recorded because the queue was full.",
            ),
            unnoted: counter(
                metrics,
                "sidekey_ledger_unnoted_total",
                "Requests that went out without a note that would survive the end of sidekey.",
            ),
            aborted: counter(
                metrics,
                "sidekey_ledger_aborted_total",
                "Requests settled by estimate at the start, because sidekey ended before they did.",
            ),
            commits: counter(metrics, "sidekey_store_commits_total", "Commits to the store."),
            failures: counter(metrics, "sidekey_store_failures_total", "Commits that failed."),
            reopened: counter(metrics, "sidekey_store_reopened_total", "Times the store was reopened after a failure."),
            damaged_blocks: counter(
                metrics,
                "sidekey_ledger_damaged_blocks_total",
                "Ledger blocks found unreadable by a query.",
            ),
            audited: counter(metrics, "sidekey_audit_records_total", "Records of the audit log written."),
            unaudited: counter(
                metrics,
                "sidekey_audit_failures_total",
                "Times the audit log could not be written, and what belonged in it was refused.",
            ),
            up: gauge(metrics, "sidekey_store_up", "1 while the store can be written."),
            queue: gauge(metrics, "sidekey_ledger_queue", "Ledger entries waiting at the last commit."),
        }
    }
}

fn counter(metrics: &Metrics, name: &str, help: &str) -> IntCounter {
    let counter = IntCounter::new(name, help).expect("the names above are valid and carry no labels");
    metrics.register(counter)
}

fn gauge(metrics: &Metrics, name: &str, help: &str) -> IntGauge {
    let gauge = IntGauge::new(name, help).expect("the names above are valid and carry no labels");
    metrics.register(gauge)
}

/// Sends an answer; whoever no longer waits for it does not miss it.
pub(super) fn answer<T>(reply: oneshot::Sender<T>, value: T) {
    let _gone = reply.send(value);
}

/// A shared handle to the state.
pub(super) type Handle = Arc<Shared>;
