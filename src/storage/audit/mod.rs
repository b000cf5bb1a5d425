//! The audit log: what was done to the store and with its secrets, by whom, each record chained to the one before.
//!
//! Owns its handle and its rate of refusals; leaves a record's form to `chain`, files to `log`, questions to `read`, and what a
//! change is called to `describe`. The writer's thread appends: a change is recorded, and on disk, before it is committed, and
//! is not made when that fails.

mod chain;
mod describe;
mod log;
mod read;
#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::oneshot;

use crate::audit::{Note, Outcome};
use crate::clock::Nanos;
use crate::virtual_key::DigestKey;

use super::StoreError;
use super::shared::{Command, Handle};

pub use chain::AuditRecord;
pub(super) use chain::Link;
pub(super) use describe::Target;
pub(super) use log::Log;
pub use read::{AuditFilter, AuditPage, AuditVerdict, BadRecord};

use chain::{Head, Key};

/// Refusals recorded one by one within [`WINDOW`]; of more, how many.
const REFUSALS: u32 = 60;
const WINDOW: Nanos = 60_000_000_000;

/// The key of a store's audit log.
pub(super) fn open(
    dir: &std::path::Path,
    secret: &DigestKey,
    anchor: Option<Link>,
) -> std::io::Result<(Log, Option<String>)> {
    Log::open(dir, Key::new(secret), anchor)
}

/// What readers and the writer share of the log.
#[derive(Debug)]
pub(super) struct View {
    dir: PathBuf,
    head: Mutex<Head>,
    refusals: Mutex<Refusals>,
}

#[derive(Debug, Default)]
struct Refusals {
    since: Nanos,
    recorded: u32,
    /// Of those beyond.
    left_out: u64,
}

impl View {
    pub(super) fn new(dir: PathBuf) -> Self {
        Self { dir, head: Mutex::new(Head::EMPTY), refusals: Mutex::default() }
    }

    /// Notes where the log has come to.
    pub(super) fn follow(&self, log: &Log) {
        *self.head.lock().unwrap_or_else(PoisonError::into_inner) = log.whole_head();
    }

    fn head(&self) -> Head {
        *self.head.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Records what is done, and tells what was. Cloning shares it.
#[derive(Clone, Debug)]
pub struct Audit {
    pub(super) shared: Handle,
}

impl Audit {
    /// Records something done with a secret, or to be done; it is on disk once this returns. Changes of records are
    /// recorded by the store itself.
    ///
    /// # Errors
    /// When it cannot be written: then what it tells of must not be done.
    pub async fn record(&self, note: Note) -> Result<(), StoreError> {
        let (reply, done) = oneshot::channel();
        self.shared.command(Command::Audit(Box::new(note), reply))?;
        done.await.map_err(|_| StoreError::Closed)?
    }

    /// Records a refusal, but no more than `REFUSALS` a minute: of those beyond, the next record says how many there were.
    pub async fn refused(&self, mut note: Note) {
        let now = self.shared.clock.now();
        {
            let mut refusals = self.shared.audit.refusals.lock().unwrap_or_else(PoisonError::into_inner);
            if refusals.since == 0 || now.saturating_sub(refusals.since) >= WINDOW {
                (refusals.since, refusals.recorded) = (now, 0);
            }
            if refusals.recorded == REFUSALS {
                refusals.left_out += 1;
                return;
            }
            refusals.recorded += 1;
            let left_out = std::mem::take(&mut refusals.left_out);
            note.count = (left_out > 0).then_some(left_out + 1);
        }
        let (action, object) = (note.action.clone(), note.object.clone());
        if let Err(error) = self.record(note).await {
            // Nothing was done, so nothing is undone for it.
            tracing::error!(%error, action, object, "a refusal is not in the audit log");
        }
    }

    /// The records a filter means, newest first. Reads the disk on a thread of its own. Cancel safe.
    ///
    /// # Errors
    /// When the files cannot be read.
    pub async fn records(&self, filter: AuditFilter) -> Result<AuditPage, StoreError> {
        self.read(move |dir, key, head| read::records(dir, key, head, &filter)).await
    }

    /// Follows the whole chain; `noted` is a place in it, by number and hash, that was written down earlier. Cancel safe.
    ///
    /// # Errors
    /// When the files cannot be read. What is wrong in them is the answer.
    pub async fn verify(&self, noted: Option<(u64, String)>) -> Result<AuditVerdict, StoreError> {
        let noted: Option<Arc<(u64, String)>> = noted.map(Arc::new);
        loop {
            let (cut, noted) = (self.shared.audit.head().cut, noted.clone());
            let verdict = self
                .read(move |dir, key, head| {
                    let noted = noted.as_ref().map(|noted| (noted.0, noted.1.as_str()));
                    read::verify(dir, key, head, noted)
                })
                .await?;
            // The first files may have been removed meanwhile.
            if self.shared.audit.head().cut == cut {
                return Ok(verdict);
            }
        }
    }

    async fn read<T: Send + 'static>(
        &self,
        question: impl FnOnce(&std::path::Path, &Key, Head) -> std::io::Result<T> + Send + 'static,
    ) -> Result<T, StoreError> {
        let shared = self.shared.clone();
        let work = move || {
            let key = Key::new(shared.snapshot.load().digest_key());
            let View { dir, .. } = &shared.audit;
            question(dir, &key, shared.audit.head())
                .map_err(|source| StoreError::io("cannot read the audit log", dir, source))
        };
        tokio::task::spawn_blocking(work).await.map_err(|_| StoreError::Closed)?
    }
}

/// The record of one change, as part of the act it belongs to.
pub(super) fn note_of(act: Option<&crate::audit::Act>, target: Target, after: Option<serde_json::Value>) -> Note {
    let by = act.map_or_else(crate::audit::Actor::sidekey, |act| act.by.clone());
    let verb = match target.before.is_some() {
        false => "create",
        true if after.is_none() => "delete",
        true => "update",
    };
    let kind = target.kind;
    let action = act.map_or_else(|| format!("{kind}.{verb}"), |act| act.action_on(kind, verb));
    let Target { object, before, .. } = target;
    Note { by, action, object, before, after, result: Outcome::Ok, count: None }
}
