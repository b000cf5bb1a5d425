//! The ledger's handle: entries in, without waiting; questions out.
//!
//! Owns the choice between group and sync durability, and that a question sees what was recorded before it. Leaves
//! queueing to `storage::shared`, committing to `storage::writer` and reading to `storage::query`.

use std::future::Future;
use std::pin::Pin;
use std::sync::PoisonError;
use std::task::{Context, Poll};

use tokio::sync::oneshot;

use crate::entry::Entry;
use crate::pricing::PriceTable;
use crate::unit::Usage;

use super::block::StoredEntry;
use super::engine::EngineError;
use super::query::{self, LedgerFilter, Page, Source};
use super::reservations::Slot;
use super::shared::{Command, Handle, Pending, Queued};
use super::usage::{self, Dimension, UsageReport};
use super::{Durability, QueueFull, StoreError};

/// Records entries and answers questions about them. Cloning shares it.
#[derive(Clone, Debug)]
pub struct Ledger {
    pub(super) shared: Handle,
    pub(super) durability: Durability,
}

impl Ledger {
    /// Queues an entry: a few hundred nanoseconds, never waits. It is on disk about a commit interval later.
    ///
    /// # Errors
    /// When the queue is full or the store closed: the entry is not recorded, which is counted and logged here.
    pub fn record(&self, entry: Entry) -> Result<(), QueueFull> {
        self.place().record(entry)
    }

    /// Queues an entry and asks for a commit at once, one that survives a power cut. Dropping the [`Commit`] does not
    /// take the entry back.
    ///
    /// # Errors
    /// As [`Ledger::record`].
    pub fn record_sync(&self, entry: Entry) -> Result<Commit, QueueFull> {
        self.place().record_sync(entry)
    }

    /// A place for an entry to come, as long as there is room.
    #[must_use]
    pub fn place(&self) -> EntryPlace {
        EntryPlace { shared: self.shared.clone(), promised: false, slot: None }
    }

    /// A place for an entry to come, with room kept for it: what is admitted with one will be recorded.
    ///
    /// # Errors
    /// When the queue is full or the store closed.
    pub fn promise(&self) -> Result<EntryPlace, QueueFull> {
        self.shared.promise()?;
        let mut place = self.place();
        place.promised = true;
        Ok(place)
    }

    /// What the operator chose: whether the response's last frame is to wait for [`Ledger::record_sync`].
    #[must_use]
    pub fn durability(&self) -> Durability {
        self.durability
    }

    /// Waits until everything recorded before is committed. Cancel safe.
    ///
    /// # Errors
    /// When the store cannot be written now, or is closed.
    pub async fn flush(&self) -> Result<(), StoreError> {
        self.commit_queued().await.map(drop)
    }

    async fn commit_queued(&self) -> Result<Pending, StoreError> {
        let (reply, done) = oneshot::channel();
        self.shared.command(Command::Flush(reply))?;
        done.await.map_err(|_| StoreError::Closed)?
    }

    /// The entries a filter means, including those recorded just before. Reads the disk on a thread of its own. Cancel
    /// safe.
    ///
    /// # Errors
    /// When the store cannot be read now, or is closed.
    pub async fn query(&self, filter: LedgerFilter) -> Result<Page, StoreError> {
        self.read(move |source| query::entries(source, &filter)).await
    }

    /// Sums over the entries a filter means, including those recorded just before. Cancel safe.
    ///
    /// # Errors
    /// As [`Ledger::query`].
    pub async fn usage(&self, filter: LedgerFilter, by: Dimension) -> Result<UsageReport, StoreError> {
        self.read(move |source| usage::usage(source, &filter, by)).await
    }

    /// [`Ledger::usage`] as it would be under other prices. Every entry is read for it.
    ///
    /// # Errors
    /// As [`Ledger::query`].
    pub async fn usage_repriced(
        &self,
        filter: LedgerFilter,
        by: Dimension,
        prices: PriceTable,
    ) -> Result<UsageReport, StoreError> {
        self.read(move |source| usage::usage_repriced(source, &filter, by, &prices)).await
    }

    async fn read<T: Send + 'static>(
        &self,
        question: impl FnOnce(&Source<'_>) -> Result<(T, u64), EngineError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let pending = match self.commit_queued().await {
            Ok(pending) => pending,
            // What cannot be committed now must not hide what was, as far as it is in blocks.
            Err(StoreError::Unavailable(_) | StoreError::Busy) => Pending { first_seq: u64::MAX, ..Pending::default() },
            Err(error) => return Err(error),
        };
        let shared = self.shared.clone();
        let work = move || {
            let trees = shared.ledger.read().unwrap_or_else(PoisonError::into_inner);
            let trees = trees.as_ref().ok_or_else(|| StoreError::Unavailable("the ledger is being reopened".into()))?;
            let source = Source { tree: &trees.blocks, rollups: &trees.rollups, pending: &pending };
            let (answer, damaged) = question(&source)?;
            if damaged > 0 {
                shared.metrics.damaged_blocks.inc_by(damaged);
                tracing::error!(blocks = damaged, "ledger blocks are unreadable and were left out");
            }
            Ok(answer)
        };
        tokio::task::spawn_blocking(work).await.map_err(|_| StoreError::Closed)?
    }
}

/// The place in the ledger of a request under way. Dropped, it is as if the request had never come.
#[derive(Debug)]
pub struct EntryPlace {
    shared: Handle,
    promised: bool,
    slot: Option<Slot>,
}

impl EntryPlace {
    /// True when room is kept for the entry.
    #[must_use]
    pub fn is_promised(&self) -> bool {
        self.promised
    }

    /// Notes `entry`, with `estimate` and its cost as what it consumed, for the case that this process ends before the
    /// request does. To be called before the request goes upstream, and again when it is to be charged to another key. One
    /// write to the page cache: a microsecond, as a rule.
    ///
    /// # Errors
    /// When the disk is full or fails, or far too many requests are open. Nothing is noted then.
    pub fn note(&mut self, entry: &Entry, estimate: Usage, cost_nano_usd: Option<u64>) -> std::io::Result<()> {
        let reservations = &self.shared.reservations;
        let mut noted = StoredEntry::of(entry);
        (noted.tokens, noted.cost_nano_usd) = (estimate, cost_nano_usd);
        let slot = self.slot.take().or_else(|| reservations.take());
        let noted = match &slot {
            Some(slot) => self.shared.check_fault().and_then(|()| reservations.note(slot, noted)),
            None => Err(std::io::ErrorKind::QuotaExceeded.into()),
        };
        self.slot = slot;
        if noted.is_err() {
            self.shared.metrics.unnoted.inc();
        }
        noted
    }

    /// Queues the entry; see [`Ledger::record`].
    ///
    /// # Errors
    /// When the queue is full, unless room was kept, or the store closed.
    pub fn record(self, entry: Entry) -> Result<(), QueueFull> {
        self.push(entry, None)
    }

    /// Queues the entry and asks for a commit at once; see [`Ledger::record_sync`].
    ///
    /// # Errors
    /// As [`EntryPlace::record`].
    pub fn record_sync(self, entry: Entry) -> Result<Commit, QueueFull> {
        let (done, committed) = oneshot::channel();
        self.push(entry, Some(done))?;
        Ok(Commit(committed))
    }

    fn push(mut self, entry: Entry, done: Option<oneshot::Sender<()>>) -> Result<(), QueueFull> {
        let promised = std::mem::take(&mut self.promised);
        let pushed = self.shared.push(Queued { entry, done, slot: self.slot.take() }, promised);
        pushed.map_err(|back| {
            // Not recorded, and known not to be: the next start must not find it either.
            self.slot = back.slot;
            QueueFull
        })
    }
}

impl Drop for EntryPlace {
    fn drop(&mut self) {
        if self.promised {
            self.shared.unpromise();
        }
        if let Some(slot) = self.slot.take() {
            self.shared.reservations.clear(slot);
        }
    }
}

/// Resolves once an entry is committed. Cancel safe.
#[derive(Debug)]
pub struct Commit(oneshot::Receiver<()>);

impl Future for Commit {
    type Output = Result<(), StoreError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.0).poll(cx).map(|done| done.map_err(|_| StoreError::Closed))
    }
}
