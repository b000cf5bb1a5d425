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

use super::engine::EngineError;
use super::query::{self, Dimension, LedgerFilter, Page, Source, UsageReport};
use super::shared::{Command, Handle, Pending, Queued};
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
        self.shared.push(Queued { entry, done: None })
    }

    /// Queues an entry and asks for a commit at once, one that survives a power cut. Dropping the [`Commit`] does not
    /// take the entry back.
    ///
    /// # Errors
    /// As [`Ledger::record`].
    pub fn record_sync(&self, entry: Entry) -> Result<Commit, QueueFull> {
        let (done, committed) = oneshot::channel();
        self.shared.push(Queued { entry, done: Some(done) })?;
        Ok(Commit(committed))
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
        self.read(move |source| query::usage(source, &filter, by)).await
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
            let tree = shared.ledger.read().unwrap_or_else(PoisonError::into_inner);
            let tree = tree.as_ref().ok_or_else(|| StoreError::Unavailable("the ledger is being reopened".into()))?;
            let (answer, damaged) = question(&Source { tree, pending: &pending })?;
            if damaged > 0 {
                shared.metrics.damaged_blocks.inc_by(damaged);
                tracing::error!(blocks = damaged, "ledger blocks are unreadable and were left out");
            }
            Ok(answer)
        };
        tokio::task::spawn_blocking(work).await.map_err(|_| StoreError::Closed)?
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
