//! Opening a store whatever state it is in: makes an empty one ours, and puts a damaged one aside for its recovery file.
//!
//! Owns what lies where in the data directory. Leaves telling damage to `storage::load`.
//!
//! `format` is the store's version; `store/` is sled's; `journal` holds the last entries; `reservations` the open requests; `audit/` what was
//! done by whom;
//! `recovery` holds the small trees as of the last change of a record; a damaged `store/` becomes `store.damaged-<time>` and
//! is never deleted; `store.rebuilt` and `store.old` are there while one takes the place of the other.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use crate::virtual_key::DigestKey;

use super::StoreError;
use super::backup;
use super::block::{BlockKey, Unpacker};
use super::engine::{Engine, EngineError, Tree, guarded};
use super::journal::Frame;
use super::load::{FORMAT, LoadError, Loaded, first_rows, forget_audit, format_row, load};
use super::lock::prepare_dir;
use super::tail::{BlocksEnd, Rows, Tail};
use super::vault::Vault;

/// Rows written at once when a store is rebuilt.
const CHUNK: usize = 256;

/// The places in a data directory.
#[derive(Clone, Debug)]
pub(super) struct Layout {
    pub(super) dir: PathBuf,
}

impl Layout {
    pub(super) fn store(&self) -> PathBuf {
        self.dir.join("store")
    }

    pub(super) fn recovery(&self) -> PathBuf {
        self.dir.join("recovery")
    }

    pub(super) fn journal(&self) -> PathBuf {
        self.dir.join("journal")
    }

    pub(super) fn audit(&self) -> PathBuf {
        self.dir.join("audit")
    }

    pub(super) fn reservations(&self) -> PathBuf {
        self.dir.join("reservations")
    }

    fn format(&self) -> PathBuf {
        self.dir.join("format")
    }

    fn rebuilt(&self) -> PathBuf {
        self.dir.join("store.rebuilt")
    }

    fn replaced(&self) -> PathBuf {
        self.dir.join("store.old")
    }

    fn aside(&self, why: &str, now_ms: u64) -> PathBuf {
        self.dir.join(format!("store.{why}-{now_ms}"))
    }

    /// True when there is, or was, a store here: then a missing master key must not be made up.
    pub(super) fn is_used(&self) -> bool {
        self.store().join("db").exists() || self.recovery().exists() || self.format().exists()
    }
}

/// An open store and what is in it; `recovered` says what was wrong, when its recovery file had to be used.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) engine: Engine,
    pub(super) loaded: Loaded,
    pub(super) recovered: Option<String>,
}

/// Opens the store, makes it if there is none, restores it if it is damaged.
pub(super) fn open(layout: &Layout, vault: &Vault, journal: &[Frame], now_ms: u64) -> Result<Opened, StoreError> {
    let format = read_format(layout)?;
    if let Some(found) = format.filter(|found| *found > FORMAT) {
        return Err(StoreError::TooNew { dir: layout.dir.clone(), found, known: FORMAT });
    }
    let opened = open_or_recover(layout, vault, journal, now_ms, format.is_none())?;
    if format != Some(FORMAT) {
        // An earlier version must not write to what it cannot read; the file comes last, so that this is tried again.
        opened.engine.commit(&[format_row()])?;
        write_format(layout)?;
    }
    Ok(opened)
}

fn open_or_recover(
    layout: &Layout,
    vault: &Vault,
    journal: &[Frame],
    now_ms: u64,
    is_new: bool,
) -> Result<Opened, StoreError> {
    tidy(layout)?;
    prepare_dir(&layout.store())?;
    let damage = match Engine::open(&layout.store()) {
        Ok(engine) => match load(&engine, vault, journal) {
            Ok(Some(loaded)) => match lost_since(layout, &loaded) {
                None => return Ok(Opened { engine, loaded, recovered: None }),
                Some(lost) => lost,
            },
            Ok(None) if is_new && !layout.recovery().exists() => return initialise(engine, vault),
            Ok(None) => "every row is lost".to_owned(),
            Err(error) => error.damage().map_or_else(|| Err(refusal(layout, error)), Ok)?,
        },
        Err(error) if error.is_damage() => error.to_string(),
        Err(error) => return Err(refusal(layout, error.into())),
    };
    recover(layout, vault, journal, &damage, now_ms)
}

/// Ends what [`put_compacted`] began in a process that ended in the middle of it.
fn tidy(layout: &Layout) -> Result<(), StoreError> {
    let old = layout.replaced();
    if old.exists() && !layout.store().exists() {
        rename(&old, &layout.store())?;
    } else if old.exists() {
        fs::remove_dir_all(&old).map_err(|source| StoreError::io("cannot remove", &old, source))?;
    }
    Ok(())
}

/// What a store that looks whole lacks of its recovery file: a damaged log ends early, and what came later is gone
/// without a trace in the file itself.
fn lost_since(layout: &Layout, loaded: &Loaded) -> Option<String> {
    if loaded.lost > 0 {
        return Some(format!("{} entries of the ledger before the journal are lost", loaded.lost));
    }
    let head = backup::verify(&layout.recovery()).ok()?;
    if head.generation > loaded.manifest.generation {
        return Some("the store is older than its recovery file".to_owned());
    }
    let entries = head.next_seq.checked_sub(loaded.tail.next_seq()).filter(|entries| *entries > 0)?;
    Some(format!("the last {entries} entries of the ledger are lost"))
}

/// The version in the `format` file; `None` when the store is new. Damage that takes every row leaves an engine that
/// looks new, and a later version's engine may not open at all: both are told by this file.
fn read_format(layout: &Layout) -> Result<Option<u32>, StoreError> {
    match fs::read_to_string(layout.format()) {
        Ok(text) => Ok(Some(text.trim().parse().unwrap_or(FORMAT))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(StoreError::io("cannot read", &layout.format(), error)),
    }
}

fn write_format(layout: &Layout) -> Result<(), StoreError> {
    let write = || {
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(layout.format())?;
        writeln!(file, "{FORMAT}")?;
        file.sync_all()?;
        fs::File::open(&layout.dir)?.sync_all()
    };
    write().map_err(|source| StoreError::io("cannot write", &layout.format(), source))
}

fn refusal(layout: &Layout, error: LoadError) -> StoreError {
    let dir = layout.dir.clone();
    match error {
        LoadError::Damaged(reason) => StoreError::Damaged { dir, reason },
        LoadError::Engine(EngineError::Locked) => StoreError::Locked { dir, pid: None },
        LoadError::Engine(error) => error.into(),
        LoadError::TooNew(found) => StoreError::TooNew { dir, found, known: FORMAT },
        LoadError::WrongMaster => StoreError::WrongMaster { dir },
    }
}

fn initialise(engine: Engine, vault: &Vault) -> Result<Opened, StoreError> {
    engine.commit(&first_rows(vault, &DigestKey::random()?)?)?;
    match load(&engine, vault, &[]) {
        Ok(Some(loaded)) => Ok(Opened { engine, loaded, recovered: None }),
        Ok(None) => Err(StoreError::Unavailable("the store does not keep what is written".to_owned())),
        Err(error) => Err(StoreError::Unavailable(error.to_string())),
    }
}

/// Moves the damaged store aside and builds a new one from the recovery file, with what can be read of the ledger.
/// Without a recovery file nothing is touched.
fn recover(layout: &Layout, vault: &Vault, journal: &[Frame], damage: &str, now_ms: u64) -> Result<Opened, StoreError> {
    let damaged = |why: &str| StoreError::Damaged { dir: layout.dir.clone(), reason: format!("{damage}; {why}") };
    let head = backup::verify(&layout.recovery()).map_err(|error| damaged(&error.to_string()))?;
    if head.fingerprint != *vault.fingerprint() {
        return Err(StoreError::WrongMaster { dir: layout.dir.clone() });
    }
    let engine = rebuild(layout, &layout.recovery())?;
    let aside = layout.aside("damaged", now_ms);
    rename(&layout.store(), &aside)?;
    let salvaged = match salvage(&aside, &engine) {
        Ok(blocks) => blocks,
        Err(error) => {
            tracing::error!(%error, "the damaged store's ledger cannot be read");
            0
        }
    };
    engine.sync()?;
    drop(engine);
    rename(&layout.rebuilt(), &layout.store())?;
    let engine = Engine::open(&layout.store())?;
    match load(&engine, vault, journal) {
        Ok(Some(mut loaded)) => {
            // The gap that lost blocks left is said now, and need not be said at every start.
            let mut rows = loaded.tail.plain_blocks(now_ms);
            rows.push(loaded.tail.mark(now_ms));
            engine.apply(Tree::Ledger, rows)?;
            engine.sync()?;
            loaded.tail = Tail::resume(BlocksEnd::find(&engine)?, journal, loaded.tail.next_seq());
            tracing::error!(
                damage,
                aside = %aside.display(),
                keys = loaded.virtual_keys.len(),
                ledger_blocks = salvaged,
                "the store was damaged and has been restored from its recovery file"
            );
            Ok(Opened { engine, loaded, recovered: Some(format!("{damage}; kept as {}", aside.display())) })
        }
        Ok(None) => Err(damaged("the recovery file is empty")),
        Err(error) => Err(damaged(&format!("the recovery file does not help: {error}"))),
    }
}

/// A new engine at [`Layout::rebuilt`] with the rows of a backup or recovery file.
fn rebuild(layout: &Layout, from: &Path) -> Result<Engine, StoreError> {
    let rebuilt = layout.rebuilt();
    match fs::remove_dir_all(&rebuilt) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(StoreError::io("cannot remove", &rebuilt, error));
        }
        _ => {}
    }
    prepare_dir(&rebuilt)?;
    let engine = Engine::open(&rebuilt)?;
    let mut chunk: (Tree, Rows) = (Tree::Meta, Rows::new());
    backup::read(from, |tree, key, value| {
        if tree != chunk.0 || chunk.1.len() == CHUNK {
            engine.apply(chunk.0, std::mem::take(&mut chunk.1))?;
            chunk.0 = tree;
        }
        chunk.1.push((key.to_vec(), Some(value.to_vec())));
        Ok(())
    })?;
    engine.apply(chunk.0, chunk.1)?;
    Ok(engine)
}

/// A copy of a store at [`Layout::rebuilt`], without the room that removed rows have left.
pub(super) fn compact(layout: &Layout, engine: &Engine) -> Result<(), EngineError> {
    let rebuilt = layout.rebuilt();
    match fs::remove_dir_all(&rebuilt) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
        _ => {}
    }
    prepare_dir(&rebuilt).map_err(io::Error::other)?;
    let copy = Engine::open(&rebuilt)?;
    for tree in Tree::ALL {
        let mut chunk = Rows::new();
        let mut rows = engine.tree(tree).iter();
        while let Some(row) = guarded(|| Ok(rows.next().transpose()?))? {
            chunk.push((row.0.to_vec(), Some(row.1.to_vec())));
            if chunk.len() == CHUNK {
                copy.apply(tree, std::mem::take(&mut chunk))?;
            }
        }
        copy.apply(tree, chunk)?;
    }
    copy.sync()
}

/// Puts that copy in the store's place; the engine that was there must be gone.
pub(super) fn put_compacted(layout: &Layout) -> Result<Engine, EngineError> {
    fs::rename(layout.store(), layout.replaced())?;
    fs::rename(layout.rebuilt(), layout.store())?;
    fs::File::open(&layout.dir)?.sync_all()?;
    fs::remove_dir_all(layout.replaced())?;
    Engine::open(&layout.store())
}

/// Copies the ledger blocks that are whole from a damaged store; the number of them.
fn salvage(from: &Path, into: &Engine) -> Result<usize, EngineError> {
    let damaged = Engine::open(from)?;
    let mut unpacker = Unpacker::new();
    let (mut blocks, mut next_seq) = (0, 0);
    let mut chunk = Rows::new();
    let mut rows = damaged.tree(Tree::Ledger).iter();
    // Each step is guarded on its own: one damaged page must not cost those read before it.
    while let Ok(Some(row)) = guarded(|| Ok(rows.next())) {
        let Ok((key, value)) = row else { break };
        let Some(at) = BlockKey::from_bytes(&key).filter(|at| at.first_seq >= next_seq) else { continue };
        let Some(entries) = unpacker.unpack(&value).map(Iterator::count) else { continue };
        next_seq = at.first_seq + entries as u64;
        blocks += 1;
        chunk.push((key.to_vec(), Some(value.to_vec())));
        if chunk.len() == CHUNK {
            into.apply(Tree::Ledger, std::mem::take(&mut chunk))?;
        }
    }
    into.apply(Tree::Ledger, chunk)?;
    Ok(blocks)
}

/// Puts the store of a backup file in the place of what is there, which moves aside. Returns where to.
pub(super) fn restore(layout: &Layout, vault: &Vault, from: &Path, now_ms: u64) -> Result<Option<PathBuf>, StoreError> {
    let engine = rebuild(layout, from)?;
    match load(&engine, vault, &[]) {
        Ok(Some(_)) => {}
        Ok(None) => return Err(StoreError::bad_backup(from, "it is empty")),
        Err(LoadError::WrongMaster) => return Err(StoreError::WrongMaster { dir: layout.dir.clone() }),
        Err(error) => return Err(StoreError::bad_backup(from, &error.to_string())),
    }
    if !layout.audit().exists() {
        forget_audit(&engine)?;
    }
    engine.sync()?;
    drop(engine);
    // The recovery file of the old store goes first: found beside the new one it would look like its future.
    match fs::remove_file(layout.recovery()) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(StoreError::io("cannot remove", &layout.recovery(), error));
        }
        _ => {}
    }
    let aside = layout.store().exists().then(|| layout.aside("replaced", now_ms));
    if let Some(aside) = &aside {
        rename(&layout.store(), aside)?;
        if layout.journal().exists() {
            rename(&layout.journal(), &aside.join("journal"))?;
        }
    }
    rename(&layout.rebuilt(), &layout.store())?;
    Ok(aside)
}

fn rename(from: &Path, to: &Path) -> Result<(), StoreError> {
    fs::rename(from, to).map_err(|source| StoreError::io("cannot move", from, source))
}
