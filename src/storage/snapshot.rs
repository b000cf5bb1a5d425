//! The live view of the store: what the request path reads without waiting.
//!
//! Owns [`Snapshot`] and the run-time state that hangs on each key and outlives changes of its record. Leaves
//! replacing it to the writer, and deciding by it to `proxy`.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arc_swap::ArcSwapOption;
use serde::{Deserialize, Serialize};

use crate::entry::Entry;
use crate::id::{KeyId, Owner, ScopeId};
use crate::limit::{Scope, Watch};
use crate::policy::Policy;
use crate::pricing::{PriceRecord, PriceTable};
use crate::provider_key::{Origin, ProviderKey, Status};
use crate::secret::Secret;
use crate::virtual_key::DigestKey;

use super::named::{Kind, Named, NamedState};
use super::scopes::{KeyState, Scopes};

/// Everything the request path needs, as of one moment. Never changed in place, but for the atomics in it.
#[derive(Clone, Debug)]
pub struct Snapshot {
    pub(super) virtual_keys: HashMap<KeyId, Arc<KeyState>>,
    provider_keys: HashMap<String, Vec<Arc<ProviderKeyState>>>,
    provider_keys_by_id: HashMap<KeyId, Arc<ProviderKeyState>>,
    pub(super) named: BTreeMap<(Kind, Arc<str>), NamedState>,
    pub(super) scopes: Scopes,
    prices: Arc<PriceTable>,
    pub(super) digest_key: DigestKey,
    pub(super) generation: u64,
}

impl Snapshot {
    pub(super) fn new(digest_key: DigestKey, generation: u64, scopes: Scopes) -> Self {
        Self {
            virtual_keys: HashMap::new(),
            provider_keys: HashMap::new(),
            provider_keys_by_id: HashMap::new(),
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

    /// The keys of a provider: stored ones by priority, then age, then those of the environment.
    #[must_use]
    pub fn provider_keys(&self, provider: &str) -> &[Arc<ProviderKeyState>] {
        self.provider_keys.get(provider).map_or(&[], Vec::as_slice)
    }

    /// All provider keys of all providers, in no order.
    pub fn all_provider_keys(&self) -> impl Iterator<Item = &Arc<ProviderKeyState>> {
        self.provider_keys_by_id.values()
    }

    /// The provider key of this id, also one of the environment.
    #[must_use]
    pub fn provider_key(&self, id: KeyId) -> Option<&Arc<ProviderKeyState>> {
        self.provider_keys_by_id.get(&id)
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

    pub(super) fn put_provider_key(&mut self, state: Arc<ProviderKeyState>) {
        self.remove_provider_key(state.record.id);
        self.provider_keys_by_id.insert(state.record.id, state.clone());
        let keys = self.provider_keys.entry(state.record.provider.clone()).or_default();
        let at = keys.partition_point(|other| other.order() < state.order());
        keys.insert(at, state);
    }

    pub(super) fn remove_provider_key(&mut self, id: KeyId) {
        let Some(state) = self.provider_keys_by_id.remove(&id) else { return };
        if let Some(keys) = self.provider_keys.get_mut(&state.record.provider) {
            keys.retain(|other| other.record.id != id);
            if keys.is_empty() {
                self.provider_keys.remove(&state.record.provider);
            }
        }
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

/// A provider key in use.
pub struct ProviderKeyState {
    /// Its record. One of the environment has an id too, the same at every start, but no row in the store.
    pub record: ProviderKey,
    /// The key itself; `None` while a reference has not been resolved, or its value is too old. The same cell before
    /// and after a change of the record that leaves the origin as it was.
    pub secret: Arc<ArcSwapOption<Secret>>,
    /// Its own rates, amounts and open requests; the same object before and after a change of the record.
    pub scope: Arc<Scope>,
    /// What it went through; the same object before and after a change of the record.
    pub stats: Arc<ProviderKeyStats>,
    /// True when it comes from an environment variable, not from the store.
    pub environment: bool,
}

impl fmt::Debug for ProviderKeyState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { record, secret, scope, stats, environment } = self;
        f.debug_struct("ProviderKeyState")
            .field("record", record)
            .field("resolved", &secret.load().is_some())
            .field("scope", scope)
            .field("stats", stats)
            .field("environment", environment)
            .finish()
    }
}

/// What a provider key went through since the start; only `used` is kept over restarts.
#[derive(Debug, Default)]
pub struct ProviderKeyStats {
    /// What it paid for.
    pub used: KeyStats,
    /// Refusals and faults since its last success; `proxy` counts and clears.
    pub failures: AtomicU64,
    /// Open requests; `proxy` counts.
    pub in_flight: AtomicU64,
    /// Wall time, milliseconds, until which it rests after a 429; `proxy` sets.
    pub cooling_until_ms: AtomicU64,
}

impl ProviderKeyState {
    /// The id entries name it by; `None` for a key of the environment.
    #[must_use]
    pub fn stored_id(&self) -> Option<KeyId> {
        (!self.environment).then_some(self.record.id)
    }

    /// A stored key; `secret` is what its envelope held, `before` what it replaces.
    pub(super) fn stored(record: ProviderKey, secret: Option<Secret>, before: Option<&Self>, watch: &Watch) -> Self {
        let kept = before.filter(|before| before.record.origin == record.origin);
        let cell = match secret {
            // A cell of its own: the commit that brings this secret can still fail.
            Some(secret) => Arc::new(ArcSwapOption::from_pointee(secret)),
            None => kept.map(|before| before.secret.clone()).unwrap_or_default(),
        };
        let stats = before.map(|before| before.stats.clone()).unwrap_or_default();
        let made = || Arc::new(Scope::new(ScopeId::ProviderKey(record.id), &record.policy, watch.clone()));
        let scope = before.map_or_else(made, |before| before.scope.clone());
        Self { record, secret: cell, scope, stats, environment: false }
    }

    /// A system key from the environment. Its id is made of provider and variable, so that it is the same at every
    /// start.
    pub(super) fn of_environment(key: EnvironmentKey, now_ms: u64) -> Self {
        let named = format!("{}\0{}", key.provider, key.variable);
        let hash = blake3::derive_key("sidekey v1 environment key id", named.as_bytes());
        let mut id = [0; 8];
        id.copy_from_slice(&hash[..8]);
        let record = ProviderKey {
            id: KeyId::from_bytes(id),
            provider: key.provider,
            name: key.variable.clone(),
            owner: Owner::System,
            status: Status::Active,
            origin: Origin::Env { name: key.variable },
            masked: key.secret.masked(),
            bound_to: String::new(),
            models: Vec::new(),
            priority: u32::MAX,
            policy: Policy::default(),
            created_ms: now_ms,
            last_error: None,
            version: 0,
        };
        let secret = Arc::new(ArcSwapOption::from_pointee(key.secret));
        let scope = Arc::new(Scope::new(ScopeId::ProviderKey(record.id), &record.policy, Watch::default()));
        Self { record, secret, scope, stats: Arc::default(), environment: true }
    }

    fn order(&self) -> (bool, u32, u64, KeyId) {
        (self.environment, self.record.priority, self.record.created_ms, self.record.id)
    }
}

/// A system key that the environment brings: `OPENAI_API_KEY` and the like.
#[derive(Clone, Debug)]
pub struct EnvironmentKey {
    /// The provider's id.
    pub provider: String,
    /// The variable's name.
    pub variable: String,
    /// Its value.
    pub secret: Secret,
}
