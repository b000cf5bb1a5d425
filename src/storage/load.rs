//! Reading a store as a whole: checks that it is ours, of a known version, complete, and opens every record.
//!
//! Owns the `meta` tree and the manifest that notices lost rows. Leaves opening files to `storage::engine`, and what
//! to do about damage to `storage::recover`.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::id::ScopeId;
use crate::limit::SavedRates;
use crate::provider_key::{Origin, ProviderKey};
use crate::secret::Secret;
use crate::virtual_key::{DigestKey, VirtualKey};

use super::StoreError;
use super::audit::Link;
use super::block::{BlockKey, Entries, StoredEntry, Unpacker};
use super::checksum::Checksum;
use super::counters::{AS_OF, AsOf, Saved, read_saved, scope_of_row};
use super::engine::{Change, Engine, EngineError, Tree, guarded};
use super::journal::Frame;
use super::named::{Kind, NamedState};
use super::provider_keys::Secrets;
use super::records::{checksum, open_row, read_record, replaced_key};
use super::rollup;
use super::tail::{BlocksEnd, Tail};
use super::vault::{Place, Vault, VaultError};

/// The version of the whole store: what is newer than this program is refused.
pub(super) const FORMAT: u32 = 2;

const FORMAT_KEY: &[u8] = b"format";
const MASTER_KEY: &[u8] = b"master";
const DIGEST_KEY: &[u8] = b"digest_key";
const MANIFEST_KEY: &[u8] = b"manifest";
const AUDIT_KEY: &[u8] = b"audit";

/// What the records' trees hold, sealed in `meta` by the same commit that changes them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Manifest {
    /// Counts commits of records.
    pub(super) generation: u64,
    sums: [Checksum; Tree::RECORDS.len()],
}

impl Manifest {
    pub(super) fn sum_mut(&mut self, tree: Tree) -> Option<&mut Checksum> {
        let at = Tree::RECORDS.iter().position(|each| *each == tree)?;
        self.sums.get_mut(at)
    }

    pub(super) fn to_change(&self, vault: &Vault) -> Result<Change, StoreError> {
        let plain = postcard::to_stdvec(self).map_err(|error| StoreError::Unavailable(error.to_string()))?;
        Ok(Change {
            tree: Tree::Meta,
            key: MANIFEST_KEY.to_vec(),
            value: Some(vault.seal(meta(MANIFEST_KEY), &plain)?),
        })
    }

    fn read(vault: &Vault, row: &[u8]) -> Result<Self, LoadError> {
        let plain = vault.open(meta(MANIFEST_KEY), row)?;
        let read = postcard::from_bytes(&plain).or_else(|_| {
            // Format 1 had no tree of named records.
            let (generation, first): (u64, [Checksum; 3]) = postcard::from_bytes(&plain)?;
            let mut sums = [Checksum::default(); Tree::RECORDS.len()];
            sums[..first.len()].copy_from_slice(&first);
            Ok(Self { generation, sums })
        });
        read.map_err(|_: postcard::Error| LoadError::Damaged("the manifest cannot be read".to_owned()))
    }
}

/// The row that says where the audit log has come to, at least: who takes away the end of that log would have to take this
/// store back as well.
pub(super) fn audit_row(vault: &Vault, link: Link) -> Result<Change, StoreError> {
    let plain = postcard::to_stdvec(&link).map_err(|error| StoreError::Unavailable(error.to_string()))?;
    let value = Some(vault.seal(meta(AUDIT_KEY), &plain)?);
    Ok(Change { tree: Tree::Meta, key: AUDIT_KEY.to_vec(), value })
}

fn read_audit_row(engine: &Engine, vault: &Vault) -> Result<Option<Link>, LoadError> {
    let Some(row) = engine.read(Tree::Meta, AUDIT_KEY)? else { return Ok(None) };
    let plain = vault.open(meta(AUDIT_KEY), &row)?;
    let link = postcard::from_bytes(&plain);
    link.map(Some).map_err(|_| LoadError::Damaged("the place of the audit log cannot be read".to_owned()))
}

/// For a store that is put where there is no audit log: its own begins there.
pub(super) fn forget_audit(engine: &Engine) -> Result<(), EngineError> {
    engine.commit_one(Tree::Meta, vec![(AUDIT_KEY.to_vec(), None)])
}

fn meta(id: &[u8]) -> Place<'_> {
    Place { tree: Tree::Meta.name(), id, version: 0 }
}

/// Why a store cannot be loaded.
#[derive(Debug, thiserror::Error)]
pub(super) enum LoadError {
    #[error("{0}")]
    Damaged(String),
    #[error(transparent)]
    Engine(#[from] EngineError),
    #[error("format {0}")]
    TooNew(u32),
    #[error("another master key")]
    WrongMaster,
}

impl From<VaultError> for LoadError {
    fn from(error: VaultError) -> Self {
        // The master key's fingerprint was compared before anything was opened, so this is damage.
        Self::Damaged(error.to_string())
    }
}

impl LoadError {
    /// Why, when a recovery file may help.
    pub(super) fn damage(&self) -> Option<String> {
        match self {
            Self::Damaged(reason) => Some(reason.clone()),
            Self::Engine(error) if error.is_damage() => Some(error.to_string()),
            Self::Engine(_) | Self::TooNew(_) | Self::WrongMaster => None,
        }
    }
}

/// A whole store, read.
#[derive(Debug)]
pub(super) struct Loaded {
    pub(super) digest_key: DigestKey,
    pub(super) manifest: Manifest,
    pub(super) virtual_keys: Vec<VirtualKey>,
    pub(super) provider_keys: Vec<(ProviderKey, Secrets)>,
    pub(super) named: BTreeMap<(Kind, Arc<str>), NamedState>,
    /// Counters as they lie on disk.
    pub(super) saved: HashMap<ScopeId, Saved>,
    pub(super) as_of: AsOf,
    pub(super) rates: HashMap<ScopeId, SavedRates>,
    pub(super) tail: Tail,
    /// Where the audit log had come to, at least.
    pub(super) audit: Option<Link>,
    /// Entries that should be in blocks and are not.
    pub(super) lost: u64,
}

/// Reads and checks everything but the ledger's older blocks. `None` for an empty store.
pub(super) fn load(engine: &Engine, vault: &Vault, journal: &[Frame]) -> Result<Option<Loaded>, LoadError> {
    let Some(format) = engine.read(Tree::Meta, FORMAT_KEY)? else {
        let blank = guarded(|| Ok(Tree::ALL.iter().all(|tree| engine.tree(*tree).is_empty())))?;
        return if blank { Ok(None) } else { Err(LoadError::Damaged("the format's row is lost".to_owned())) };
    };
    let format = <[u8; 4]>::try_from(&format[..]).map_err(|_| LoadError::Damaged("bad format row".to_owned()))?;
    if u32::from_be_bytes(format) > FORMAT {
        return Err(LoadError::TooNew(u32::from_be_bytes(format)));
    }
    if need(engine, MASTER_KEY)? != vault.fingerprint() {
        return Err(LoadError::WrongMaster);
    }
    let digest_key = vault.open(meta(DIGEST_KEY), &need(engine, DIGEST_KEY)?)?;
    let digest_key = <[u8; 32]>::try_from(&digest_key[..]).map_err(|_| LoadError::Damaged("bad digest key".into()))?;
    let mut manifest = Manifest::read(vault, &need(engine, MANIFEST_KEY)?)?;
    let rows = |tree, manifest: &mut Manifest| verified_rows(engine, vault, tree, manifest);
    let virtual_keys = rows(Tree::VirtualKeys, &mut manifest)?;
    let provider_keys = rows(Tree::ProviderKeys, &mut manifest)?;
    let secrets: HashMap<_, _> = rows(Tree::Secrets, &mut manifest)?.into_iter().collect();
    let named = rows(Tree::Named, &mut manifest)?;
    let named = named.iter().map(|(key, row)| read_named(vault, key, row)).collect::<Result<_, _>>()?;

    let read = |(key, row): &(sled::IVec, sled::IVec)| read_record(vault, Tree::VirtualKeys, key, row);
    let virtual_keys = virtual_keys.iter().map(read).collect::<Result<_, _>>()?;
    let read = |(key, row): &(sled::IVec, sled::IVec)| {
        let record: ProviderKey = read_record(vault, Tree::ProviderKeys, key, row)?;
        let read = |key: &[u8]| secrets.get(key).map(|row| read_secret(vault, &record, key, row)).transpose();
        let (secret, replaced) = (read(key)?, read(&replaced_key(record.id))?.map(Arc::new));
        if record.origin == Origin::Sealed && secret.is_none() {
            return Err(LoadError::Damaged(format!("the secret of provider key {} is lost", record.id)));
        }
        Ok((record, Secrets { secret, replaced }))
    };
    let provider_keys = provider_keys.iter().map(read).collect::<Result<_, _>>()?;

    let (as_of, saved) = read_counters(engine, vault)?;
    let blocks = BlocksEnd::find(engine)?;
    let tail = Tail::resume(blocks, journal, as_of.seq.max(rollup::as_of(engine)?));
    // The journal starts anew only when everything before it has reached the disk.
    let journal_seq = journal.first().map_or(0, |frame| frame.first_seq);
    let lost = journal_seq.saturating_sub(blocks.next_seq);
    let rates = engine.rows(Tree::Limits)?;
    let rates = rates.iter().filter_map(|(key, row)| Some((scope_of_row(key)?, read_saved(row)?))).collect();
    Ok(Some(Loaded {
        digest_key: DigestKey::from_bytes(digest_key),
        manifest,
        virtual_keys,
        provider_keys,
        named,
        saved,
        as_of,
        rates,
        tail,
        audit: read_audit_row(engine, vault)?,
        lost,
    }))
}

fn read_named(vault: &Vault, key: &[u8], row: &[u8]) -> Result<((Kind, Arc<str>), NamedState), LoadError> {
    let (version, json) = open_row(vault, Tree::Named, key, row)?;
    let read = Kind::of_row_key(key).and_then(|(kind, name)| {
        let value = kind.decode(&json)?;
        Some(((kind, name), NamedState { version, value }))
    });
    read.ok_or_else(|| LoadError::Damaged(format!("the record {:?} cannot be read", String::from_utf8_lossy(key))))
}

/// The row that raises a store of an earlier format to this one.
pub(super) fn format_row() -> Change {
    Change { tree: Tree::Meta, key: FORMAT_KEY.to_vec(), value: Some(FORMAT.to_be_bytes().to_vec()) }
}

/// The rows that make an empty store one of ours.
pub(super) fn first_rows(vault: &Vault, digest_key: &DigestKey) -> Result<Vec<Change>, StoreError> {
    let row = |key: &[u8], value| Change { tree: Tree::Meta, key: key.to_vec(), value: Some(value) };
    let manifest = Manifest { generation: 1, ..Manifest::default() };
    Ok(vec![
        format_row(),
        row(MASTER_KEY, vault.fingerprint().to_vec()),
        row(DIGEST_KEY, vault.seal(meta(DIGEST_KEY), digest_key.expose())?),
        manifest.to_change(vault)?,
    ])
}

fn need(engine: &Engine, key: &[u8]) -> Result<Vec<u8>, LoadError> {
    let row = engine.read(Tree::Meta, key)?.map(|row| row.to_vec());
    row.ok_or_else(|| LoadError::Damaged(format!("the row {:?} is lost", String::from_utf8_lossy(key))))
}

type TreeRows = Vec<(sled::IVec, sled::IVec)>;

fn verified_rows(engine: &Engine, vault: &Vault, tree: Tree, manifest: &mut Manifest) -> Result<TreeRows, LoadError> {
    let rows = engine.rows(tree)?;
    let found = checksum(vault, &rows);
    match manifest.sum_mut(tree) {
        Some(sum) if *sum != found => {
            Err(LoadError::Damaged(format!("{} rows in {} do not match the manifest", rows.len(), tree.name())))
        }
        _ => Ok(rows),
    }
}

fn read_secret(vault: &Vault, record: &ProviderKey, key: &[u8], row: &[u8]) -> Result<Secret, LoadError> {
    let (version, plain) = open_row(vault, Tree::Secrets, key, row)?;
    let text = String::from_utf8(plain.to_vec()).ok().filter(|_| version == record.version);
    text.map(Secret::new).ok_or_else(|| LoadError::Damaged(format!("the secret of {} is another's", record.id)))
}

fn read_counters(engine: &Engine, vault: &Vault) -> Result<(AsOf, HashMap<ScopeId, Saved>), LoadError> {
    let rows = engine.rows(Tree::Counters)?;
    let mut found = Checksum::default();
    let mut as_of = None;
    let mut counters = HashMap::with_capacity(rows.len());
    for (key, row) in &rows {
        if &key[..] == AS_OF {
            as_of = read_saved::<AsOf>(row);
            continue;
        }
        found.add(vault.checksum_key(), key, row);
        let (Some(id), Some(saved)) = (scope_of_row(key), Saved::read(row)) else {
            return Err(LoadError::Damaged("a counter's row cannot be read".to_owned()));
        };
        counters.insert(id, saved);
    }
    match as_of {
        Some(as_of) if as_of.sum == found => Ok((as_of, counters)),
        None if counters.is_empty() => Ok((AsOf::default(), counters)),
        _ => Err(LoadError::Damaged("the counters do not match their checksum".to_owned())),
    }
}

/// Where to begin reading the ledger.
#[derive(Clone, Copy, Debug)]
pub(super) enum Start {
    /// At the entry of this number.
    Seq(u64),
    /// At what arrived at this wall time, milliseconds.
    Time(u64),
}

/// Hands every entry from there on whose number is below `until_seq` to `visit`, those in no block yet included.
pub(super) fn walk(
    engine: &Engine,
    tail: &Tail,
    from: Start,
    until_seq: u64,
    visit: &mut dyn FnMut(&StoredEntry<'_>),
) -> Result<(), EngineError> {
    let mut hand = |first_seq: u64, entries: Entries<'_>| {
        let wanted = |seq: u64, entry: &StoredEntry<'_>| match from {
            Start::Seq(from) => seq >= from,
            Start::Time(from) => entry.time_ms >= from,
        };
        let below = (first_seq..until_seq).zip(entries);
        below.filter(|(seq, entry)| wanted(*seq, entry)).for_each(|(_, entry)| visit(&entry));
    };
    guarded(|| {
        let tree = engine.tree(Tree::Ledger);
        let mut start = BlockKey { epoch_ms: 0, first_seq: 0 }.to_bytes().to_vec();
        match from {
            // Every entry arrived at or before its block's epoch.
            Start::Time(epoch_ms) => start = BlockKey { epoch_ms, first_seq: 0 }.to_bytes().to_vec(),
            Start::Seq(from) => {
                for row in tree.iter().rev() {
                    let (key, _) = row?;
                    start = key.to_vec();
                    if BlockKey::from_bytes(&key).is_some_and(|at| at.first_seq <= from) {
                        break;
                    }
                }
            }
        }
        let mut unpacker = Unpacker::new();
        for row in tree.range(start..) {
            let (key, value) = row?;
            if let (Some(at), Some(entries)) = (BlockKey::from_bytes(&key), unpacker.unpack(&value)) {
                hand(at.first_seq, entries);
            }
        }
        Ok(())
    })?;
    hand(tail.pending_seq(), tail.pending().iter());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::master::MasterKey;
    use super::*;

    #[test]
    fn a_manifest_of_format_1_is_read() {
        let vault = Vault::new(&MasterKey::from_bytes([7; 32])).unwrap();
        let sum = Checksum::of(&[1; 32], [(&b"k"[..], &b"v"[..])].into_iter());
        let plain = postcard::to_stdvec(&(7_u64, [sum, Checksum::default(), sum])).unwrap();
        let manifest = Manifest::read(&vault, &vault.seal(meta(MANIFEST_KEY), &plain).unwrap()).unwrap();
        let want = Manifest { generation: 7, sums: [sum, Checksum::default(), sum, Checksum::default()] };
        assert_eq!(manifest, want);
        let row = want.to_change(&vault).unwrap().value.unwrap();
        assert_eq!(Manifest::read(&vault, &row).unwrap(), want);
    }
}
