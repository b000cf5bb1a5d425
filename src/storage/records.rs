//! Records of keys: their rows, and changes to them with optimistic concurrency.
//!
//! Owns what a change means and which rows it writes, all sealed. Leaves committing them to `storage::writer`.
//!
//! A record's row is `version 1 | record version u64 | envelope of its JSON`. A provider key's secret lies in a tree of
//! its own, sealed for the record's id and version, and is sealed anew with each change of the record: an old secret
//! put back under a new record does not open. What a rotation replaced lies beside it, as long as it may come back.

use std::sync::Arc;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::id::{KeyId, Owner, ScopeId};
use crate::plan::Plan;
use crate::provider_key::{Origin, ProviderKey, Replaced, Standing, Status};
use crate::secret::Secret;
use crate::virtual_key::VirtualKey;

use super::checksum::Checksum;
use super::engine::{Change, Engine, MAX_VALUE, Tree};
use super::load::Manifest;
use super::named::{Kind, NamedState, Record};
use super::provider_keys::{ProviderKeyState, Secrets};
use super::scopes::KeyState;
use super::snapshot::Snapshot;
use super::vault::{Place, Vault, VaultError};
use super::{RecordId, StoreError};

const ROW_VERSION: u8 = 1;
const ROW_HEAD: usize = 9;

/// A change an operator, or the request path, asks for.
#[derive(Debug)]
pub(super) enum Request {
    CreateProviderKey(ProviderKey, Option<Secret>),
    CreateVirtualKey(VirtualKey),
    DeleteNamed(Kind, Arc<str>, Option<u64>),
    DeleteProviderKey(KeyId, Option<u64>),
    DeleteVirtualKey(KeyId, Option<u64>),
    MarkProviderKey(KeyId, Standing),
    PutNamed(Record, Option<u64>),
    /// The secret that this rotation replaced is not needed any more.
    RetireReplaced(KeyId, u64),
    /// This rotation is taken back.
    TakeBack(KeyId, u64),
    UpdateProviderKey(ProviderKey, u64, Option<Secret>),
    UpdateVirtualKey(VirtualKey, u64),
}

/// What a change left in the store.
#[derive(Debug)]
pub(super) enum Stored {
    Named(NamedState),
    Nothing,
    ProviderKey(Arc<ProviderKeyState>),
    VirtualKey(Arc<KeyState>),
}

/// Changes gathered for one commit.
pub(super) struct Edit<'a> {
    vault: &'a Vault,
    engine: &'a Engine,
    pub(super) snapshot: Snapshot,
    pub(super) manifest: Manifest,
    pub(super) changes: Vec<Change>,
    /// Ids whose counters and limits go too.
    pub(super) gone: Vec<KeyId>,
    /// Some price is another now.
    repriced: bool,
}

impl<'a> Edit<'a> {
    pub(super) fn new(vault: &'a Vault, engine: &'a Engine, snapshot: &Snapshot, manifest: &Manifest) -> Self {
        let (snapshot, manifest) = (snapshot.clone(), manifest.clone());
        Self { vault, engine, snapshot, manifest, changes: Vec::new(), gone: Vec::new(), repriced: false }
    }

    /// Adds one change, or says why it cannot be; then nothing of it is added.
    pub(super) fn apply(&mut self, request: Request) -> Result<Stored, StoreError> {
        match request {
            Request::CreateProviderKey(record, secret) => self.create_provider_key(record, secret),
            Request::CreateVirtualKey(record) => {
                if self.snapshot.virtual_key(record.id).is_some() {
                    return Err(StoreError::Exists { id: record.id.into() });
                }
                self.put_virtual_key(VirtualKey { version: 1, ..record })
            }
            Request::DeleteNamed(kind, name, expected) => self.delete_named(kind, &name, expected),
            Request::DeleteProviderKey(id, expected) => self.delete_provider_key(id, expected),
            Request::DeleteVirtualKey(id, expected) => {
                let state = self.snapshot.virtual_key(id).ok_or_else(|| StoreError::NotFound { id: id.into() })?;
                check_version(id, state.record.version, expected)?;
                self.remove_row(Tree::VirtualKeys, id.as_bytes())?;
                self.snapshot.virtual_keys.remove(&id);
                self.gone.push(id);
                Ok(Stored::Nothing)
            }
            Request::MarkProviderKey(id, standing) => self.mark_provider_key(id, standing),
            Request::PutNamed(record, expected) => self.put_named(record, expected),
            Request::RetireReplaced(id, rotation) => self.retire_replaced(id, rotation),
            Request::TakeBack(id, rotation) => self.take_back(id, rotation),
            Request::UpdateProviderKey(record, expected, secret) => self.update_provider_key(record, expected, secret),
            Request::UpdateVirtualKey(record, expected) => {
                let id = record.id;
                let state = self.snapshot.virtual_key(id).ok_or_else(|| StoreError::NotFound { id: id.into() })?;
                check_version(id, state.record.version, Some(expected))?;
                self.put_virtual_key(VirtualKey { version: expected + 1, ..record })
            }
        }
    }

    /// Adds the manifest, when there is anything to commit.
    pub(super) fn finish(&mut self) -> Result<(), StoreError> {
        if self.repriced {
            let before = Arc::clone(self.snapshot.prices());
            self.snapshot.lay_prices(&before);
        }
        self.manifest.generation += 1;
        self.snapshot.generation = self.manifest.generation;
        self.changes.push(self.manifest.to_change(self.vault)?);
        Ok(())
    }

    fn put_virtual_key(&mut self, record: VirtualKey) -> Result<Stored, StoreError> {
        let id = record.id;
        if let Some(name) = record.plan.as_deref().filter(|name| self.snapshot.named::<Plan>(name).is_none()) {
            return Err(StoreError::NotFound { id: RecordId::Named(Kind::Plan, name.into()) });
        }
        let value = record_row(self.vault, Tree::VirtualKeys, id, record.version, &record)?;
        self.put_row(Tree::VirtualKeys, id.as_bytes(), value)?;
        Ok(Stored::VirtualKey(self.snapshot.put_virtual_key(record)))
    }

    fn create_provider_key(&mut self, record: ProviderKey, secret: Option<Secret>) -> Result<Stored, StoreError> {
        let id = record.id;
        if self.snapshot.provider_key(id).is_some() {
            return Err(StoreError::Exists { id: id.into() });
        }
        self.put_provider_key(ProviderKey { version: 1, ..record }, secret)
    }

    fn update_provider_key(
        &mut self,
        mut record: ProviderKey,
        expected: u64,
        secret: Option<Secret>,
    ) -> Result<Stored, StoreError> {
        let id = record.id;
        let state = self.stored_provider_key(id)?;
        check_version(id, state.record.version, Some(expected))?;
        // What became of the key since the record was read is not undone by a change of its name.
        if state.record.standing.since_ms > record.standing.since_ms {
            record.standing = state.record.standing.clone();
        }
        // Only what was sealed is sealed again: a value that a reference resolved to is not ours to keep.
        let kept = || if state.record.origin == Origin::Sealed { state.secret.load_full() } else { None };
        let secret = secret.or_else(|| kept().map(|secret| (*secret).clone()));
        self.put_provider_key(ProviderKey { version: expected + 1, ..record }, secret)
    }

    fn put_provider_key(&mut self, mut record: ProviderKey, secret: Option<Secret>) -> Result<Stored, StoreError> {
        let id = record.id;
        let secret = match (&record.origin, secret) {
            (Origin::Sealed, Some(secret)) => Some(secret),
            (Origin::Sealed, None) => return Err(StoreError::NoSecret { id }),
            // A reference brings its own.
            _ => None,
        };
        if let Some(secret) = &secret {
            record.masked = secret.masked();
        }
        let before = self.snapshot.provider_key(id).cloned();
        let said = record.replaced.as_ref().zip(before.as_deref());
        let known = said.and_then(|(said, before)| before.replaced_by(said, record.version));
        let is_sealed = record.replaced.as_ref().is_some_and(|said| said.origin == Origin::Sealed);
        record.replaced = record.replaced.filter(|_| known.as_ref().is_some_and(|old| old.is_some() || !is_sealed));
        let replaced = known.flatten().filter(|_| record.replaced.is_some());
        let value = record_row(self.vault, Tree::ProviderKeys, id, record.version, &record)?;
        // Both are sealed before a row is changed: what cannot be leaves the edit as it was.
        let sealed = self.seal_secret(&record, id.as_bytes(), secret.as_ref())?;
        let sealed_replaced =
            self.seal_secret(&record, &replaced_key(id), replaced.as_deref().filter(|_| is_sealed))?;
        self.put_row(Tree::ProviderKeys, id.as_bytes(), value)?;
        self.put_secret(id.as_bytes(), sealed)?;
        self.put_secret(&replaced_key(id), sealed_replaced)?;
        let watch = &self.snapshot.scopes.watch;
        let secrets = Secrets { secret, replaced };
        let state = Arc::new(ProviderKeyState::stored(record, secrets, before.as_deref(), watch));
        self.snapshot.put_provider_key(state.clone());
        Ok(Stored::ProviderKey(state))
    }

    fn seal_secret(
        &self,
        record: &ProviderKey,
        key: &[u8],
        secret: Option<&Secret>,
    ) -> Result<Option<Vec<u8>>, StoreError> {
        let seal = |secret: &Secret| {
            seal_row(self.vault, Tree::Secrets, record.id.into(), key, record.version, secret.expose().as_bytes())
        };
        secret.map(seal).transpose()
    }

    fn put_secret(&mut self, key: &[u8], sealed: Option<Vec<u8>>) -> Result<(), StoreError> {
        match sealed {
            Some(sealed) => self.put_row(Tree::Secrets, key, sealed),
            None => self.remove_row(Tree::Secrets, key),
        }
    }

    /// Has what the last rotation replaced be the key again. Another rotation, or none, is left alone.
    fn take_back(&mut self, id: KeyId, rotation: u64) -> Result<Stored, StoreError> {
        let before = self.stored_provider_key(id)?;
        let Some(replaced) = before.replaced.as_ref().filter(|replaced| replaced.said().rotation == rotation) else {
            return Ok(Stored::Nothing);
        };
        let Replaced { origin, masked, bound_to, standing, .. } = replaced.said().clone();
        let is_off = before.record.standing.status == Status::Disabled;
        let standing = if is_off { before.record.standing.clone() } else { standing };
        let version = before.record.version + 1;
        let record =
            ProviderKey { origin, masked, bound_to, standing, replaced: None, version, ..before.record.clone() };
        let secret = replaced.secret().cloned();
        let own = secret.as_deref().filter(|_| record.origin == Origin::Sealed).cloned();
        let is_reference = own.is_none();
        let stored = self.put_provider_key(record, own)?;
        if let (Stored::ProviderKey(state), true) = (&stored, is_reference) {
            // What the reference led to before; it is soon looked up again.
            state.secret.store(secret);
        }
        Ok(stored)
    }

    /// Forgets what the last rotation replaced. It is no change of what an operator said: the version stays.
    fn retire_replaced(&mut self, id: KeyId, rotation: u64) -> Result<Stored, StoreError> {
        let before = self.stored_provider_key(id)?;
        if before.record.replaced.as_ref().is_none_or(|replaced| replaced.rotation != rotation) {
            return Ok(Stored::Nothing);
        }
        self.remove_row(Tree::Secrets, &replaced_key(id))?;
        self.put_same_version(&before, ProviderKey { replaced: None, ..before.record.clone() })
    }

    /// Writes a record whose version, and with it the sealed secret, stays.
    fn put_same_version(&mut self, before: &ProviderKeyState, record: ProviderKey) -> Result<Stored, StoreError> {
        let id = record.id;
        let value = record_row(self.vault, Tree::ProviderKeys, id, record.version, &record)?;
        self.put_row(Tree::ProviderKeys, id.as_bytes(), value)?;
        let watch = &self.snapshot.scopes.watch;
        let state = Arc::new(ProviderKeyState::stored(record, Secrets::default(), Some(before), watch));
        self.snapshot.put_provider_key(state.clone());
        Ok(Stored::ProviderKey(state))
    }

    /// Writes down what became of a key. It is not a change of what an operator said: the version stays, and with it
    /// the sealed secret.
    fn mark_provider_key(&mut self, id: KeyId, standing: Standing) -> Result<Stored, StoreError> {
        let before = self.stored_provider_key(id)?;
        // Switched off by hand stays switched off.
        if before.record.standing.status == Status::Disabled || before.record.standing == standing {
            return Ok(Stored::Nothing);
        }
        let record = ProviderKey { standing, ..before.record.clone() };
        self.put_same_version(&before, record)
    }

    fn delete_provider_key(&mut self, id: KeyId, expected: Option<u64>) -> Result<Stored, StoreError> {
        let state = self.stored_provider_key(id)?;
        check_version(id, state.record.version, expected)?;
        self.remove_row(Tree::ProviderKeys, id.as_bytes())?;
        self.remove_row(Tree::Secrets, id.as_bytes())?;
        self.remove_row(Tree::Secrets, &replaced_key(id))?;
        self.snapshot.remove_provider_key(id);
        self.gone.push(id);
        Ok(Stored::Nothing)
    }

    fn stored_provider_key(&self, id: KeyId) -> Result<Arc<ProviderKeyState>, StoreError> {
        let state = self.snapshot.provider_key(id).filter(|state| !state.environment);
        state.cloned().ok_or_else(|| StoreError::NotFound { id: id.into() })
    }

    /// Adds a record, or replaces one: without `expected` whatever is there, with 0 nothing, else this version of it.
    fn put_named(&mut self, record: Record, expected: Option<u64>) -> Result<Stored, StoreError> {
        let Record { kind, name, json, value } = record;
        let before = self.snapshot.named.get(&(kind, name.clone())).map(|state| state.version);
        let id = || RecordId::Named(kind, name.clone());
        match (before, expected) {
            (Some(_), Some(0)) => return Err(StoreError::Exists { id: id() }),
            (None, Some(1..)) => return Err(StoreError::NotFound { id: id() }),
            (before, expected) => check_version(id(), before.unwrap_or(0), expected)?,
        }
        let version = before.unwrap_or(0) + 1;
        let key = kind.row_key(&name);
        let row = seal_row(self.vault, Tree::Named, id(), &key, version, &json)?;
        self.put_row(Tree::Named, &key, row)?;
        let state = NamedState { version, value };
        self.snapshot.named.insert((kind, name.clone()), state.clone());
        self.renew(kind, &name);
        Ok(Stored::Named(state))
    }

    fn delete_named(&mut self, kind: Kind, name: &Arc<str>, expected: Option<u64>) -> Result<Stored, StoreError> {
        let id = RecordId::Named(kind, name.clone());
        let Some(state) = self.snapshot.named.get(&(kind, name.clone())) else {
            return Err(StoreError::NotFound { id });
        };
        check_version(id.clone(), state.version, expected)?;
        let names = |key: &&Arc<KeyState>| match kind {
            Kind::Plan => key.record.plan.as_deref() == Some(&**name),
            Kind::Pool => key.record.pool.as_deref() == Some(&**name),
            Kind::Ca | Kind::Lease | Kind::Owner | Kind::Price | Kind::Token => false,
        };
        if let Some(key) = self.snapshot.virtual_keys.values().find(names) {
            return Err(StoreError::InUse { id, by: key.record.id });
        }
        self.remove_row(Tree::Named, &kind.row_key(name))?;
        self.snapshot.named.remove(&(kind, name.clone()));
        self.renew(kind, name);
        Ok(Stored::Nothing)
    }

    /// Has what a record is for follow it: keys at once, prices when the last of them is known.
    fn renew(&mut self, kind: Kind, name: &Arc<str>) {
        let scope = match kind {
            Kind::Ca | Kind::Lease | Kind::Token => return,
            Kind::Plan => ScopeId::Plan(name.clone()),
            // The index of pools is made anew with each snapshot.
            Kind::Pool => return,
            Kind::Price => {
                self.repriced = true;
                return;
            }
            Kind::Owner => match name.parse() {
                Ok(Owner::Team(id)) => ScopeId::Team(id.into()),
                Ok(Owner::User(id)) => ScopeId::User(id.into()),
                Ok(Owner::System) | Err(_) => return,
            },
        };
        self.snapshot.renew(&scope);
    }

    fn put_row(&mut self, tree: Tree, key: &[u8], value: Vec<u8>) -> Result<(), StoreError> {
        self.note_old(tree, key)?;
        if let Some(sum) = self.manifest.sum_mut(tree) {
            sum.add(self.vault.checksum_key(), key, &value);
        }
        self.changes.push(Change { tree, key: key.to_vec(), value: Some(value) });
        Ok(())
    }

    fn remove_row(&mut self, tree: Tree, key: &[u8]) -> Result<(), StoreError> {
        if self.note_old(tree, key)? {
            self.changes.push(Change { tree, key: key.to_vec(), value: None });
        }
        Ok(())
    }

    /// Takes the row that is there, or was put by an earlier change of this commit, out of the checksum.
    fn note_old(&mut self, tree: Tree, key: &[u8]) -> Result<bool, StoreError> {
        let earlier = self.changes.iter().rev().find(|change| change.tree == tree && change.key == key);
        let old = match earlier {
            Some(change) => change.value.clone(),
            None => self.engine.read(tree, key)?.map(|value| value.to_vec()),
        };
        if let (Some(old), Some(sum)) = (&old, self.manifest.sum_mut(tree)) {
            sum.remove(self.vault.checksum_key(), key, old);
        }
        Ok(old.is_some())
    }
}

/// The row of the secret that a rotation replaced, beside that of the key's own.
pub(super) fn replaced_key(id: KeyId) -> [u8; 9] {
    let mut key = [b'-'; 9];
    key[..8].copy_from_slice(id.as_bytes());
    key
}

fn check_version(id: impl Into<RecordId>, current: u64, expected: Option<u64>) -> Result<(), StoreError> {
    match expected {
        Some(expected) if expected != current => Err(StoreError::Conflict { id: id.into(), current }),
        _ => Ok(()),
    }
}

fn record_row<T: Serialize>(
    vault: &Vault,
    tree: Tree,
    id: KeyId,
    version: u64,
    record: &T,
) -> Result<Vec<u8>, StoreError> {
    let json = serde_json::to_vec(record).map_err(|error| StoreError::Unavailable(error.to_string()))?;
    seal_row(vault, tree, id.into(), id.as_bytes(), version, &json)
}

fn seal_row(
    vault: &Vault,
    tree: Tree,
    id: RecordId,
    key: &[u8],
    version: u64,
    plain: &[u8],
) -> Result<Vec<u8>, StoreError> {
    let mut row = Vec::with_capacity(ROW_HEAD + super::vault::OVERHEAD + plain.len());
    row.push(ROW_VERSION);
    row.extend_from_slice(&version.to_be_bytes());
    row.extend(vault.seal(Place { tree: tree.name(), id: key, version }, plain)?);
    if row.len() > MAX_VALUE {
        let max = MAX_VALUE - ROW_HEAD - super::vault::OVERHEAD;
        return Err(StoreError::TooLarge { id, bytes: plain.len(), max });
    }
    Ok(row)
}

/// A row opened: the record's version and its plain text.
pub(super) fn open_row(
    vault: &Vault,
    tree: Tree,
    key: &[u8],
    row: &[u8],
) -> Result<(u64, zeroize::Zeroizing<Vec<u8>>), VaultError> {
    let (head, sealed) = row.split_first_chunk::<ROW_HEAD>().ok_or(VaultError::Broken)?;
    let (mark, version) = (head[0], u64::from_be_bytes([1, 2, 3, 4, 5, 6, 7, 8].map(|at| head[at])));
    if mark != ROW_VERSION {
        return Err(VaultError::Broken);
    }
    Ok((version, vault.open(Place { tree: tree.name(), id: key, version }, sealed)?))
}

/// A record read back from its row.
pub(super) fn read_record<T: DeserializeOwned>(
    vault: &Vault,
    tree: Tree,
    key: &[u8],
    row: &[u8],
) -> Result<T, VaultError> {
    let (_, json) = open_row(vault, tree, key, row)?;
    serde_json::from_slice(&json).map_err(|_| VaultError::Broken)
}

/// The sum of a tree's rows as they are.
pub(super) fn checksum(vault: &Vault, rows: &[(sled::IVec, sled::IVec)]) -> Checksum {
    Checksum::of(vault.checksum_key(), rows.iter().map(|(key, value)| (&key[..], &value[..])))
}
