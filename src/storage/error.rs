//! What can go wrong with the store, said so that an operator knows what to do.
//!
//! Owns the messages. Leaves exit statuses to `cli` and answers to `control`.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::id::{KeyId, NoRandomness};

use super::engine::EngineError;
use super::master::MasterKeyError;
use super::named::Kind;
use super::vault::VaultError;

/// The queue is full, or the store closed: the entry is not recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the ledger's queue is full")]
pub struct QueueFull;

/// Which record an error is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RecordId {
    /// A virtual key or a provider key.
    Key(KeyId),
    /// A record of this kind and name.
    Named(Kind, Arc<str>),
}

impl fmt::Display for RecordId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Key(id) => fmt::Display::fmt(id, f),
            Self::Named(kind, name) => write!(f, "{} {name:?}", kind.as_str()),
        }
    }
}

impl From<KeyId> for RecordId {
    fn from(id: KeyId) -> Self {
        Self::Key(id)
    }
}

/// What can go wrong with the store.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The audit log cannot be written, so nothing may be done that belongs in it.
    #[error("the audit log cannot be written, and nothing is done that is not in it: {0}")]
    Audit(String),
    /// A backup file that cannot be used.
    #[error("{path} cannot be restored: {reason}", path = path.display())]
    BadBackup {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// Too many commands wait.
    #[error("the store is busy; try again")]
    Busy,
    /// The store was closed.
    #[error("the store is closed")]
    Closed,
    /// Somebody else changed the record first.
    #[error("{id} was changed meanwhile: its version is {current}")]
    Conflict {
        /// The record.
        id: RecordId,
        /// Its version now.
        current: u64,
    },
    /// The files are damaged and there is nothing to restore them from.
    #[error("the store in {dir} is damaged: {reason}; restore a backup with `sidekey restore`", dir = dir.display())]
    Damaged {
        /// The data directory.
        dir: PathBuf,
        /// What was found.
        reason: String,
    },
    /// A record of this id is there already.
    #[error("{id} exists already")]
    Exists {
        /// The record.
        id: RecordId,
    },
    /// Another record needs it.
    #[error("{id} is in use by key {by}")]
    InUse {
        /// The record.
        id: RecordId,
        /// A key that names it.
        by: KeyId,
    },
    /// A file could not be read or written.
    #[error("{what} {path}: {source}", path = path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// Another process has the store open.
    #[error("the store in {dir} is in use by {}", owner(*pid), dir = dir.display())]
    Locked {
        /// The data directory.
        dir: PathBuf,
        /// Who, when it is known.
        pid: Option<u32>,
    },
    /// The master key is there and cannot be used.
    #[error(transparent)]
    Master(#[from] MasterKeyError),
    /// There is no store, and none was to be made.
    #[error("there is no store in {dir}; make one with `sidekey init`", dir = dir.display())]
    Missing {
        /// The data directory.
        dir: PathBuf,
    },
    /// There is a store and no master key to open it.
    #[error(
        "the store in {dir} needs its master key: give it by systemd credential, SIDEKEY_MASTER_KEY_FILE, \
         SIDEKEY_MASTER_KEY, or put master.key back",
        dir = dir.display()
    )]
    NoMaster {
        /// The data directory.
        dir: PathBuf,
    },
    /// A sealed provider key needs a secret.
    #[error("provider key {id} has no secret; give one or a reference")]
    NoSecret {
        /// The record.
        id: KeyId,
    },
    /// There is a store where one was to be restored.
    #[error("there is a store in {dir} already; restore over it only with --force", dir = dir.display())]
    NotEmpty {
        /// The data directory.
        dir: PathBuf,
    },
    /// No such record.
    #[error("{id} does not exist")]
    NotFound {
        /// The record.
        id: RecordId,
    },
    /// The operating system gives no randomness.
    #[error(transparent)]
    Random(#[from] NoRandomness),
    /// A record is too long to be kept.
    #[error("the record of {id} takes {bytes} bytes, {max} are the most; shorten its lists or metadata")]
    TooLarge {
        /// The record.
        id: RecordId,
        /// How long it is.
        bytes: usize,
        /// How long it may be.
        max: usize,
    },
    /// The store was written by a later version.
    #[error("the store in {dir} has format {found}, this version knows up to {known}; use a later one", dir = dir.display())]
    TooNew {
        /// The data directory.
        dir: PathBuf,
        /// Its format.
        found: u32,
        /// The last format known.
        known: u32,
    },
    /// The store cannot be used now; the proxy goes on from memory, and the store is reopened by itself.
    #[error("the store is not available: {0}")]
    Unavailable(String),
    /// Sealing or opening a record failed.
    #[error(transparent)]
    Vault(#[from] VaultError),
    /// The master key is another store's.
    #[error("the master key given is not the one of the store in {dir}; nothing was changed", dir = dir.display())]
    WrongMaster {
        /// The data directory.
        dir: PathBuf,
    },
}

fn owner(pid: Option<u32>) -> String {
    pid.map_or_else(|| "another process".to_owned(), |pid| format!("process {pid}"))
}

impl StoreError {
    /// True when the store is locked, damaged, or not to be opened with what was given: exit status 6.
    #[must_use]
    pub fn is_unusable(&self) -> bool {
        matches!(
            self,
            Self::Damaged { .. }
                | Self::Locked { .. }
                | Self::Master(_)
                | Self::NoMaster { .. }
                | Self::TooNew { .. }
                | Self::WrongMaster { .. }
        )
    }

    /// True when the engine failed, so that the commit it was part of must not go on.
    pub(super) fn is_failure(&self) -> bool {
        matches!(self, Self::Io { .. } | Self::Unavailable(_) | Self::Vault(_))
    }

    pub(super) fn io(what: &'static str, path: &Path, source: std::io::Error) -> Self {
        Self::Io { what, path: path.to_owned(), source }
    }

    pub(super) fn bad_backup(path: &Path, reason: &str) -> Self {
        Self::BadBackup { path: path.to_owned(), reason: reason.to_owned() }
    }
}

impl From<EngineError> for StoreError {
    fn from(error: EngineError) -> Self {
        Self::Unavailable(error.to_string())
    }
}
