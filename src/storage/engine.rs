//! sled, and the guards it needs: nothing outside this file knows which engine keeps the rows.
//!
//! Owns opening (a damaged file makes sled panic), the trees, atomic commits and making them durable. Leaves what
//! rows mean to `storage::load` and the writers.
//!
//! # Why each guard
//! sled 0.34 answers damage with a panic, keeps failing after one failed write until it is reopened, turns values
//! beyond a few kilobytes into files it never frees, and its `flush` does not reach the disk itself. So: every call
//! runs under `catch_unwind`, any error makes the writer drop and reopen the engine, larger values are refused, and
//! [`Engine::sync`] asks the kernel for the rest.

use std::fs::File;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::time::Duration;

use sled::transaction::{ConflictableTransactionError, TransactionError, Transactional};

use super::lock::restrict_files;

/// The longest value kept.
pub(super) const MAX_VALUE: usize = 4096;
/// What sled may keep in memory; it takes more than it is given.
const CACHE_BYTES: u64 = 4 << 20;
/// How often sled's own thread reaches the disk. Never `None`: then nothing would.
const FLUSH_EVERY_MS: u64 = 500;
const LOCK_RETRIES: u32 = 40;
const LOCK_PAUSE: Duration = Duration::from_millis(50);

/// The trees, in the order of [`Tree::ALL`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tree {
    Meta,
    VirtualKeys,
    ProviderKeys,
    Secrets,
    Counters,
    Limits,
    Ledger,
    Named,
    Rollups,
}

impl Tree {
    pub(super) const ALL: [Self; 9] = [
        Self::Meta,
        Self::VirtualKeys,
        Self::ProviderKeys,
        Self::Secrets,
        Self::Counters,
        Self::Limits,
        Self::Ledger,
        Self::Named,
        Self::Rollups,
    ];
    /// All but the ledger and its roll-ups: what the recovery file holds.
    pub(super) const SMALL: [Self; 7] =
        [Self::Meta, Self::VirtualKeys, Self::ProviderKeys, Self::Secrets, Self::Counters, Self::Limits, Self::Named];
    /// Changed together, by an operator, and covered by the manifest: its form has their sums in this order.
    pub(super) const RECORDS: [Self; 4] = [Self::VirtualKeys, Self::ProviderKeys, Self::Secrets, Self::Named];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Counters => "usage",
            Self::Ledger => "ledger",
            Self::Limits => "tat",
            Self::Meta => "meta",
            Self::Named => "named",
            Self::ProviderKeys => "provider_keys",
            Self::Rollups => "rollups",
            Self::Secrets => "secrets",
            Self::VirtualKeys => "virtual_keys",
        }
    }

    pub(super) fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|tree| tree.name() == name)
    }
}

/// What went wrong in the engine.
#[derive(Debug, thiserror::Error)]
pub(super) enum EngineError {
    #[error("the store's files cannot be read or written: {0}")]
    Io(#[from] io::Error),
    #[error("the store's files are held by another process")]
    Locked,
    #[error("the store's files are damaged: {0}")]
    Panicked(String),
    #[error("the store's engine: {0}")]
    Sled(sled::Error),
    #[error("a value of {0} bytes is over the limit of {MAX_VALUE}")]
    TooLarge(usize),
}

impl From<sled::Error> for EngineError {
    fn from(error: sled::Error) -> Self {
        match error {
            sled::Error::Io(error) => Self::Io(error),
            other => Self::Sled(other),
        }
    }
}

impl EngineError {
    /// True when the files themselves are at fault, not the disk or the system.
    pub(super) fn is_damage(&self) -> bool {
        matches!(self, Self::Panicked(_) | Self::Sled(_))
    }
}

/// A row to write, or with no value to remove.
#[derive(Clone, Debug)]
pub(super) struct Change {
    pub(super) tree: Tree,
    pub(super) key: Vec<u8>,
    pub(super) value: Option<Vec<u8>>,
}

/// An open store.
#[derive(Debug)]
pub(super) struct Engine {
    // Declared before `db`, so that the trees are let go first.
    trees: Vec<sled::Tree>,
    db: sled::Db,
    file: File,
}

impl Engine {
    /// Opens or makes the store in `dir`, which exists. A lock left by an engine of this process that is being
    /// dropped is waited for, up to 2 s.
    pub(super) fn open(dir: &Path) -> Result<Self, EngineError> {
        let mut tries = 0;
        loop {
            match guarded(|| Self::try_open(dir)) {
                Err(EngineError::Io(error)) if error.to_string().contains("could not acquire lock") => {
                    if tries == LOCK_RETRIES {
                        return Err(EngineError::Locked);
                    }
                    tries += 1;
                    std::thread::sleep(LOCK_PAUSE);
                }
                other => return other,
            }
        }
    }

    fn try_open(dir: &Path) -> Result<Self, EngineError> {
        let config = sled::Config::new().path(dir).cache_capacity(CACHE_BYTES).flush_every_ms(Some(FLUSH_EVERY_MS));
        let db = config.open()?;
        let trees = Tree::ALL.iter().map(|tree| db.open_tree(tree.name())).collect::<Result<_, _>>()?;
        restrict_files(dir)?;
        // Read-only: all it is for is `sync_data`.
        let file = File::open(dir.join("db"))?;
        Ok(Self { trees, db, file })
    }

    /// Bytes of its main file.
    pub(super) fn file_len(&self) -> Result<u64, EngineError> {
        Ok(self.file.metadata()?.len())
    }

    pub(super) fn tree(&self, tree: Tree) -> &sled::Tree {
        &self.trees[tree as usize]
    }

    /// Every row of a tree, in order of keys.
    pub(super) fn rows(&self, tree: Tree) -> Result<Vec<(sled::IVec, sled::IVec)>, EngineError> {
        guarded(|| Ok(self.tree(tree).iter().collect::<Result<_, _>>()?))
    }

    pub(super) fn read(&self, tree: Tree, key: &[u8]) -> Result<Option<sled::IVec>, EngineError> {
        guarded(|| Ok(self.tree(tree).get(key)?))
    }

    /// Applies changes to any trees but the ledger, all or none, and makes them survive a power cut.
    pub(super) fn commit(&self, changes: &[Change]) -> Result<(), EngineError> {
        changes.iter().try_for_each(|change| check_len(change.value.as_deref()))?;
        guarded(|| {
            let done = self.trees[..].transaction(|trees| {
                for change in changes {
                    let tree = &trees[change.tree as usize];
                    match &change.value {
                        Some(value) => tree.insert(change.key.as_slice(), value.as_slice())?,
                        None => tree.remove(change.key.as_slice())?,
                    };
                }
                Ok::<(), ConflictableTransactionError<()>>(())
            });
            match done {
                Ok(()) | Err(TransactionError::Abort(())) => self.sync(),
                Err(TransactionError::Storage(error)) => Err(error.into()),
            }
        })
    }

    /// Applies changes to one tree, all or none, and makes them survive the end of this process.
    pub(super) fn commit_one(&self, tree: Tree, changes: Vec<(Vec<u8>, Option<Vec<u8>>)>) -> Result<(), EngineError> {
        self.apply(tree, changes)?;
        self.flush()
    }

    /// [`Engine::commit_one`] without the flush.
    pub(super) fn apply(&self, tree: Tree, changes: Vec<(Vec<u8>, Option<Vec<u8>>)>) -> Result<(), EngineError> {
        changes.iter().try_for_each(|(_, value)| check_len(value.as_deref()))?;
        let mut batch = sled::Batch::default();
        for (key, value) in changes {
            match value {
                Some(value) => batch.insert(key, value),
                None => batch.remove(key),
            }
        }
        guarded(|| Ok(self.tree(tree).apply_batch(batch)?))
    }

    /// Makes what was written survive the end of this process.
    pub(super) fn flush(&self) -> Result<(), EngineError> {
        guarded(|| Ok(self.db.flush().map(drop)?))
    }

    /// Makes what was written survive a power cut.
    pub(super) fn sync(&self) -> Result<(), EngineError> {
        self.flush()?;
        Ok(self.file.sync_data()?)
    }
}

fn check_len(value: Option<&[u8]>) -> Result<(), EngineError> {
    match value {
        Some(value) if value.len() > MAX_VALUE => Err(EngineError::TooLarge(value.len())),
        _ => Ok(()),
    }
}

/// Runs `work`, turning a panic of sled into an error. Its state after a panic is never used again: the caller drops
/// the engine.
pub(super) fn guarded<T>(work: impl FnOnce() -> Result<T, EngineError>) -> Result<T, EngineError> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
        Err(EngineError::Panicked(text.unwrap_or("no reason given").to_owned()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commits_all_trees_or_none() {
        let dir = tempfile::tempdir().unwrap();
        let engine = Engine::open(dir.path()).unwrap();
        let put = |tree, value: Vec<u8>| Change { tree, key: b"k".to_vec(), value: Some(value) };
        engine.commit(&[put(Tree::Meta, vec![1]), put(Tree::Secrets, vec![2])]).unwrap();
        let large = engine.commit(&[put(Tree::Meta, vec![9]), put(Tree::Secrets, vec![0; MAX_VALUE + 1])]);
        assert!(matches!(large, Err(EngineError::TooLarge(4097))));
        drop(engine);
        let engine = Engine::open(dir.path()).unwrap();
        assert_eq!(engine.read(Tree::Meta, b"k").unwrap().as_deref(), Some(&[1][..]));
        assert_eq!(engine.rows(Tree::Secrets).unwrap().len(), 1);
    }

    #[test]
    fn tree_names_are_unique() {
        for tree in Tree::ALL {
            assert_eq!(Tree::named(tree.name()), Some(tree));
            assert_eq!(Tree::ALL[tree as usize], tree);
        }
    }
}
