//! The live view of the store: what the request path reads without waiting.
//!
//! Owns [`Snapshot`] and the run-time state that hangs on each key and outlives changes of its record. Leaves
//! replacing it to the writer, and deciding by it to `proxy`.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rustc_hash::FxHashMap;
use serde::{Deserialize, Serialize};

use crate::entry::Entry;
use crate::id::KeyId;
use crate::limit::Moment;
use crate::pool::Pool;
use crate::pricing::{PriceRecord, PriceTable};
use crate::virtual_key::DigestKey;

use super::named::{Kind, Named, NamedState};
use super::provider_keys::{EnvironmentKey, PoolState, ProviderKeyState, Tiers};
use super::scopes::{KeyState, Scopes};

/// Everything the request path needs, as of one moment. Never changed in place, but for the atomics in it.
#[derive(Clone, Debug)]
pub struct Snapshot {
    pub(super) virtual_keys: FxHashMap<KeyId, Arc<KeyState>>,
    provider_keys: FxHashMap<KeyId, Arc<ProviderKeyState>>,
    tiers: FxHashMap<String, Tiers>,
    pools: FxHashMap<String, PoolState>,
    pub(super) named: BTreeMap<(Kind, Arc<str>), NamedState>,
    pub(super) scopes: Scopes,
    prices: Arc<PriceTable>,
    pub(super) digest_key: DigestKey,
    pub(super) generation: u64,
}

impl Snapshot {
    pub(super) fn new(digest_key: DigestKey, generation: u64, scopes: Scopes) -> Self {
        Self {
            virtual_keys: FxHashMap::default(),
            provider_keys: FxHashMap::default(),
            tiers: FxHashMap::default(),
            pools: FxHashMap::default(),
            named: BTreeMap::new(),
            scopes,
            prices: Arc::default(),
            digest_key,
            generation,
        }
    }

    /// The virtual key of this id.
    #[must_use]
    pub fn virtual_key(&self, id: KeyId) -> Option<&Arc<KeyState>> {
        self.virtual_keys.get(&id)
    }

    /// All virtual keys, in no order.
    pub fn virtual_keys(&self) -> impl ExactSizeIterator<Item = &Arc<KeyState>> {
        self.virtual_keys.values()
    }

    /// The keys of a provider, by tier and order within it.
    #[must_use]
    pub fn provider_keys(&self, provider: &str) -> &[Arc<ProviderKeyState>] {
        self.tiers.get(provider).map_or(&[], Tiers::all)
    }

    /// The same, by whom they serve.
    #[must_use]
    pub fn tiers(&self, provider: &str) -> Option<&Tiers> {
        self.tiers.get(provider)
    }

    /// The pool of this name.
    #[must_use]
    pub fn pool(&self, name: &str) -> Option<&PoolState> {
        self.pools.get(name)
    }

    /// All provider keys of all providers, in no order.
    pub fn all_provider_keys(&self) -> impl Iterator<Item = &Arc<ProviderKeyState>> {
        self.provider_keys.values()
    }

    /// The provider key of this id, also one of the environment.
    #[must_use]
    pub fn provider_key(&self, id: KeyId) -> Option<&Arc<ProviderKeyState>> {
        self.provider_keys.get(&id)
    }

    /// The record of this name, and its version.
    #[must_use]
    pub fn named<T: Named>(&self, name: &str) -> Option<(Arc<T>, u64)> {
        let state = self.named.get(&(T::KIND, Arc::from(name)))?;
        Some((state.value::<T>()?, state.version))
    }

    /// All records of this kind by name, with their versions.
    pub fn all_named<T: Named>(&self) -> impl Iterator<Item = (Arc<T>, u64)> {
        let from = (T::KIND, Arc::from(""));
        let of_kind = self.named.range(from..).take_while(|((kind, _), _)| *kind == T::KIND);
        of_kind.filter_map(|(_, state)| Some((state.value::<T>()?, state.version)))
    }

    /// What models cost: prices set in the store over those of the configuration over those of the program.
    #[must_use]
    pub fn prices(&self) -> &Arc<PriceTable> {
        &self.prices
    }

    /// Lays the prices set in the store over those of `below`.
    pub(super) fn lay_prices(&mut self, below: &PriceTable) {
        let records = self.all_named::<PriceRecord>().map(|(record, _)| PriceRecord::clone(&record));
        self.prices = Arc::new(below.with_store(records.collect()));
    }

    /// What presented virtual keys are digested with.
    #[must_use]
    pub fn digest_key(&self) -> &DigestKey {
        &self.digest_key
    }

    /// Counts the changes of records since the store was made.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Puts a key in, or in the place of the one of its id; [`Snapshot::index`] is to follow.
    pub(super) fn put_provider_key(&mut self, state: Arc<ProviderKeyState>) {
        self.provider_keys.insert(state.record.id, state);
    }

    /// Puts the keys of the environment in place of those so far; [`Snapshot::index`] is to follow. One that is as it
    /// was goes on as it was.
    pub(super) fn put_environment_keys(&mut self, keys: Vec<EnvironmentKey>, at: Moment) {
        let mut before = HashMap::new();
        self.provider_keys.retain(|id, state| {
            if state.environment {
                before.insert(*id, Arc::clone(state));
            }
            !state.environment
        });
        for key in keys {
            let new = ProviderKeyState::of_environment(key, at.wall_ms);
            let known = before.remove(&new.record.id).filter(|known| known.has_secret_of(&new));
            let state = known.unwrap_or_else(|| {
                new.stats.health.resume(&new.record, at.now, at.wall_ms);
                Arc::new(new)
            });
            self.put_provider_key(state);
        }
    }

    /// Takes a key out; [`Snapshot::index`] is to follow.
    pub(super) fn remove_provider_key(&mut self, id: KeyId) {
        self.provider_keys.remove(&id);
    }

    /// Orders the provider keys as choosing reads them.
    pub(super) fn index(&mut self) {
        self.tiers = Tiers::of(self.provider_keys.values());
        let pools = self.all_named::<Pool>().map(|(pool, _)| {
            let members = pool.keys.iter().filter_map(|id| self.provider_keys.get(id));
            (pool.name.clone(), PoolState::new(Arc::clone(&pool), members))
        });
        self.pools = pools.collect();
    }
}

/// What a key used, over its whole life. Kept up by the store from ledger entries once they are committed, so it is
/// their exact sum; read it with `Relaxed`.
#[derive(Debug, Default)]
pub struct KeyStats {
    /// Wall time of the last request's arrival, milliseconds; 0 is never.
    pub last_used_ms: AtomicU64,
    /// Entries that name the key.
    pub total_requests: AtomicU64,
    /// Their billable tokens.
    pub total_tokens: AtomicU64,
    /// Their cost, in billionths of a US dollar.
    pub spent_nano_usd: AtomicU64,
}

/// [`KeyStats`] as stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct SavedStats {
    pub(super) last_used_ms: u64,
    pub(super) requests: u64,
    pub(super) tokens: u64,
    pub(super) spent_nano_usd: u64,
}

impl KeyStats {
    /// Raises the time of last use; for keys of the environment, whose use no entry names.
    pub fn touch(&self, wall_ms: u64) {
        self.last_used_ms.fetch_max(wall_ms, Ordering::Relaxed);
    }

    pub(super) fn add(&self, entry: &Entry) {
        self.touch(entry.time_ms);
        self.total_requests.fetch_add(1, Ordering::Relaxed);
        self.total_tokens.fetch_add(entry.tokens.billable(), Ordering::Relaxed);
        self.spent_nano_usd.fetch_add(entry.cost_nano_usd.unwrap_or(0), Ordering::Relaxed);
    }

    pub(super) fn save(&self) -> SavedStats {
        SavedStats {
            last_used_ms: self.last_used_ms.load(Ordering::Relaxed),
            requests: self.total_requests.load(Ordering::Relaxed),
            tokens: self.total_tokens.load(Ordering::Relaxed),
            spent_nano_usd: self.spent_nano_usd.load(Ordering::Relaxed),
        }
    }

    pub(super) fn restore(&self, saved: SavedStats) {
        self.last_used_ms.store(saved.last_used_ms, Ordering::Relaxed);
        self.total_requests.store(saved.requests, Ordering::Relaxed);
        self.total_tokens.store(saved.tokens, Ordering::Relaxed);
        self.spent_nano_usd.store(saved.spent_nano_usd, Ordering::Relaxed);
    }
}
