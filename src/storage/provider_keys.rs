//! Provider keys in use, and the order in which choosing reads them.
//!
//! Owns their run-time state and [`Tiers`]; leaves the snapshot they stand in to `storage::snapshot`, and choosing to
//! `pool` and `proxy::select`.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use arc_swap::ArcSwapOption;
use rustc_hash::FxHashMap;
use wildmatch::WildMatch;

use crate::clock::Nanos;
use crate::id::{KeyId, Owner, ScopeId};
use crate::limit::{Moment, Scope, Watch};
use crate::policy::Policy;
use crate::pool::{Contender, Pool};
use crate::provider_key::{Health, Origin, OriginTag, ProviderKey, Replaced, Standing, Status};
use crate::secret::Secret;

use super::snapshot::KeyStats;

/// What a provider key's envelopes hold.
#[derive(Debug, Default)]
pub(super) struct Secrets {
    /// The secret, where it is sealed.
    pub(super) secret: Option<Secret>,
    /// The one that the last rotation replaced.
    pub(super) replaced: Option<Arc<Secret>>,
}

impl From<Option<Secret>> for Secrets {
    fn from(secret: Option<Secret>) -> Self {
        Self { secret, replaced: None }
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
    /// The same, as a permit takes it.
    pub scopes: Arc<[Arc<Scope>]>,
    /// What it went through; the same object before and after a change of the record.
    pub stats: Arc<ProviderKeyStats>,
    /// What its last rotation replaced; the same object before and after other changes of the record.
    pub replaced: Option<Arc<ReplacedSecret>>,
    /// True when it comes from an environment variable, not from the store.
    pub environment: bool,
    /// The record's models, ready to be matched.
    models: Box<[WildMatch]>,
    glance: Glance,
}

/// What choosing asks of every key, in one line of the processor's cache: of a hundred keys, most are seen by this alone.
#[repr(align(64))]
struct Glance {
    id: KeyId,
    stats: Arc<ProviderKeyStats>,
    /// Of the upstream it goes to; `None` for a key of the environment, which goes wherever the configuration says.
    bound_to: Option<OriginTag>,
    weight: u32,
    priority: u32,
    is_enabled: bool,
    is_limited: bool,
    pays_for_all: bool,
}

impl fmt::Debug for ProviderKeyState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { record, secret, scope, scopes: _, stats, replaced, environment, models: _, glance: _ } = self;
        f.debug_struct("ProviderKeyState")
            .field("record", record)
            .field("resolved", &secret.load().is_some())
            .field("scope", scope)
            .field("stats", stats)
            .field("replaced", replaced)
            .field("environment", environment)
            .finish()
    }
}

/// What a provider key went through.
#[derive(Debug, Default)]
pub struct ProviderKeyStats {
    /// What it paid for.
    pub used: KeyStats,
    /// Whether it may be used.
    pub health: Health,
    /// Counts the rotations that were taken back: for an open request, the key is then another one.
    pub taken_back: AtomicU32,
    /// Requests that were sent with it since that was last recorded in the audit log.
    pub uses: AtomicU64,
}

/// The secret that a rotation replaced, and what became of the one in its place.
pub struct ReplacedSecret {
    /// See [`Replaced`].
    said: Replaced,
    /// `None` for a reference that nothing has resolved since the start.
    secret: Option<Arc<Secret>>,
    /// The provider has taken the new one.
    proven: AtomicBool,
    taken_back: AtomicBool,
}

impl fmt::Debug for ReplacedSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReplacedSecret").field("said", &self.said).finish_non_exhaustive()
    }
}

impl ReplacedSecret {
    /// Notes that the provider takes the new secret: one that says "you may not do this" is then about the request.
    pub fn note_proven(&self) {
        if !self.proven.load(Ordering::Relaxed) {
            self.proven.store(true, Ordering::Relaxed);
        }
    }

    /// True when the provider has taken the new secret.
    #[must_use]
    pub fn is_proven(&self) -> bool {
        self.proven.load(Ordering::Relaxed)
    }

    /// What the record says of it.
    pub(super) fn said(&self) -> &Replaced {
        &self.said
    }

    pub(super) fn secret(&self) -> Option<&Arc<Secret>> {
        self.secret.as_ref()
    }

    /// True for the first who asks.
    pub(super) fn take_back(&self) -> bool {
        !self.taken_back.swap(true, Ordering::AcqRel)
    }
}

impl ProviderKeyState {
    fn new(
        record: ProviderKey,
        secret: Arc<ArcSwapOption<Secret>>,
        scope: Arc<Scope>,
        stats: Arc<ProviderKeyStats>,
        environment: bool,
    ) -> Self {
        let models: Box<[WildMatch]> = record.models.iter().map(|glob| WildMatch::new(glob)).collect();
        let glance = Glance {
            id: record.id,
            stats: Arc::clone(&stats),
            bound_to: (!environment).then(|| OriginTag::of(&record.bound_to)),
            weight: record.weight,
            priority: record.priority,
            is_enabled: record.standing.status != Status::Disabled,
            is_limited: record.policy.limits_anything(),
            pays_for_all: models.is_empty(),
        };
        let scopes = Arc::from([Arc::clone(&scope)]);
        Self { record, secret, scope, scopes, stats, replaced: None, environment, models, glance }
    }

    /// A stored key; `secrets` are what its envelopes held, `before` is what it takes the place of.
    pub(super) fn stored(record: ProviderKey, secrets: Secrets, before: Option<&Self>, watch: &Watch) -> Self {
        let Secrets { secret, replaced } = secrets;
        let kept = before.filter(|before| before.record.origin == record.origin);
        let cell = match secret {
            // A cell of its own: the commit that brings this secret can still fail.
            Some(secret) => Arc::new(ArcSwapOption::from_pointee(secret)),
            None => kept.map(|before| before.secret.clone()).unwrap_or_default(),
        };
        let made = || Arc::new(Scope::new(ScopeId::ProviderKey(record.id), &record.policy, watch.clone()));
        let scope = before.map_or_else(made, |before| before.scope.clone());
        let replaced = record.replaced.as_ref().map(|said| {
            let known = before.and_then(|before| before.replaced.as_ref());
            let known = known.filter(|known| known.said.rotation == said.rotation).cloned();
            known.unwrap_or_else(|| {
                let (proven, taken_back) = (AtomicBool::new(false), AtomicBool::new(false));
                Arc::new(ReplacedSecret { said: said.clone(), secret: replaced, proven, taken_back })
            })
        });
        let stats = before.map(|before| before.stats.clone()).unwrap_or_default();
        Self { replaced, ..Self::new(record, cell, scope, stats, false) }
    }

    /// The rotation that `said` is of, and the secret it replaced: the one in force, or the one that makes `version`.
    pub(super) fn replaced_by(&self, said: &Replaced, version: u64) -> Option<Option<Arc<Secret>>> {
        match self.replaced.as_ref().filter(|known| known.said.rotation == said.rotation) {
            Some(known) => Some(known.secret.clone()),
            None if said.rotation == version => Some(self.secret.load_full()),
            None => None,
        }
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
            standing: Standing::default(),
            origin: Origin::Env { name: key.variable },
            masked: key.secret.masked(),
            bound_to: String::new(),
            models: Vec::new(),
            priority: 0,
            weight: 1,
            policy: Policy::default(),
            replaced: None,
            created_ms: now_ms,
            version: 0,
        };
        let secret = Arc::new(ArcSwapOption::from_pointee(key.secret));
        let scope = Arc::new(Scope::new(ScopeId::ProviderKey(record.id), &record.policy, Watch::default()));
        Self::new(record, secret, scope, Arc::default(), true)
    }

    /// True when both hold the same secret.
    pub(super) fn has_secret_of(&self, other: &Self) -> bool {
        *self.secret.load() == *other.secret.load()
    }

    /// The id entries name it by; `None` for a key of the environment.
    #[must_use]
    pub fn stored_id(&self) -> Option<KeyId> {
        (!self.environment).then_some(self.record.id)
    }

    /// Whether it may be used, why not, and until when.
    #[must_use]
    pub fn standing(&self, now: Nanos) -> Standing {
        match self.record.standing.status {
            Status::Disabled => self.record.standing.clone(),
            _ => self.stats.health.standing(now),
        }
    }

    /// True when it is switched on. Whether it rests is for its [`Health`] to say.
    #[must_use]
    pub fn is_enabled(&self) -> bool {
        self.record.standing.status != Status::Disabled
    }

    /// True when it may pay for this model; a call without one is anybody's.
    #[must_use]
    pub fn pays_for(&self, model: Option<&str>) -> bool {
        self.models.is_empty() || model.is_none_or(|model| self.models.iter().any(|glob| glob.matches(model)))
    }

    /// True when a request for this model may be sent there with it, as far as the record says. A tag can be another
    /// origin's too: [`ProviderKeyState::is_bound_to`] is to follow.
    #[must_use]
    pub fn is_for(&self, origin: OriginTag, model: Option<&str>) -> bool {
        let Glance { bound_to, is_enabled, pays_for_all, .. } = &self.glance;
        *is_enabled && bound_to.is_none_or(|own| own == origin) && (*pays_for_all || self.pays_for(model))
    }

    /// True when it was entered for this origin; one of the environment belongs to the provider as configured.
    #[must_use]
    pub fn is_bound_to(&self, origin: &str) -> bool {
        self.environment || self.record.bound_to == origin
    }

    /// The key as one among others.
    #[must_use]
    pub fn contender(&self, at: Moment) -> Contender<'_> {
        let Glance { id, stats, weight, is_limited, .. } = &self.glance;
        #[expect(clippy::cast_possible_truncation, reason = "a ratio for comparing keys, not an account")]
        let share = if *is_limited { self.scope.share_used(at) as f32 } else { 0.0 };
        Contender { id: *id, health: &stats.health, weight: *weight, share }
    }

    /// Lower goes first within a tier.
    #[must_use]
    pub fn priority(&self) -> u32 {
        self.glance.priority
    }

    fn tier(&self) -> Tier<'_> {
        match &self.record.owner {
            _ if self.environment => Tier::Environment,
            Owner::System => Tier::System,
            Owner::Team(id) => Tier::Team(id),
            Owner::User(id) => Tier::User(id),
        }
    }
}

/// Whom a key serves, in the order in which keys are tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Tier<'a> {
    User(&'a str),
    Team(&'a str),
    System,
    Environment,
}

type Keys = Vec<Arc<ProviderKeyState>>;

/// The keys of one provider, by whom they serve; within each by priority, then age.
#[derive(Clone, Debug, Default)]
pub struct Tiers {
    all: Keys,
    users: FxHashMap<String, Range<usize>>,
    teams: FxHashMap<String, Range<usize>>,
    system: Range<usize>,
    environment: Range<usize>,
}

impl Tiers {
    /// Those of each provider.
    pub(super) fn of<'a>(keys: impl Iterator<Item = &'a Arc<ProviderKeyState>>) -> FxHashMap<String, Self> {
        let mut by_provider: FxHashMap<String, Keys> = FxHashMap::default();
        for key in keys {
            by_provider.entry(key.record.provider.clone()).or_default().push(Arc::clone(key));
        }
        by_provider.into_iter().map(|(provider, keys)| (provider, Self::new(keys))).collect()
    }

    fn new(mut all: Keys) -> Self {
        let order = |a: &Arc<ProviderKeyState>, b: &Arc<ProviderKeyState>| {
            let key = |state: &ProviderKeyState| (state.record.priority, state.record.created_ms, state.record.id);
            a.tier().cmp(&b.tier()).then_with(|| key(a).cmp(&key(b)))
        };
        all.sort_unstable_by(order);
        let mut tiers = Self::default();
        let mut start = 0;
        for chunk in all.chunk_by(|a, b| a.tier() == b.tier()) {
            let range = start..start + chunk.len();
            start = range.end;
            match chunk[0].tier() {
                Tier::Environment => tiers.environment = range,
                Tier::System => tiers.system = range,
                Tier::Team(id) => drop(tiers.teams.insert(id.to_owned(), range)),
                Tier::User(id) => drop(tiers.users.insert(id.to_owned(), range)),
            }
        }
        Self { all, ..tiers }
    }

    /// All of them.
    #[must_use]
    pub fn all(&self) -> &[Arc<ProviderKeyState>] {
        &self.all
    }

    /// This user's.
    #[must_use]
    pub fn of_user(&self, id: &str) -> &[Arc<ProviderKeyState>] {
        self.slice(self.users.get(id))
    }

    /// This team's.
    #[must_use]
    pub fn of_team(&self, id: &str) -> &[Arc<ProviderKeyState>] {
        self.slice(self.teams.get(id))
    }

    /// The system's, in the store.
    #[must_use]
    pub fn of_system(&self) -> &[Arc<ProviderKeyState>] {
        self.slice(Some(&self.system))
    }

    /// The system's, of the environment.
    #[must_use]
    pub fn of_environment(&self) -> &[Arc<ProviderKeyState>] {
        self.slice(Some(&self.environment))
    }

    fn slice(&self, range: Option<&Range<usize>>) -> &[Arc<ProviderKeyState>] {
        range.and_then(|range| self.all.get(range.clone())).unwrap_or_default()
    }
}

/// A pool in use.
#[derive(Clone, Debug)]
pub struct PoolState {
    /// Its record.
    pub record: Arc<Pool>,
    tiers: FxHashMap<String, Tiers>,
}

impl PoolState {
    pub(super) fn new<'a>(record: Arc<Pool>, keys: impl Iterator<Item = &'a Arc<ProviderKeyState>>) -> Self {
        Self { record, tiers: Tiers::of(keys) }
    }

    /// The providers it has keys of.
    pub fn providers(&self) -> impl Iterator<Item = &str> {
        self.tiers.keys().map(String::as_str)
    }

    /// Its keys of a provider.
    #[must_use]
    pub fn tiers(&self, provider: &str) -> Option<&Tiers> {
        self.tiers.get(provider)
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

#[cfg(test)]
mod tests {
    use super::*;

    fn key(n: u8, owner: &str, priority: u32, created_ms: u64) -> Arc<ProviderKeyState> {
        let record = ProviderKey {
            id: KeyId::from_bytes([n; 8]),
            provider: "openai".to_owned(),
            name: format!("k{n}"),
            owner: owner.parse().unwrap(),
            standing: Standing::default(),
            origin: Origin::Sealed,
            masked: String::new(),
            bound_to: String::new(),
            models: if n == 9 { vec!["gpt-4o*".to_owned()] } else { Vec::new() },
            priority,
            weight: 1,
            policy: Policy::default(),
            replaced: None,
            created_ms,
            version: 1,
        };
        let secrets = Some(Secret::new("k".to_owned())).into();
        Arc::new(ProviderKeyState::stored(record, secrets, None, &Watch::default()))
    }

    #[test]
    fn tiers_are_in_order() {
        let environment = EnvironmentKey {
            provider: "openai".to_owned(),
            variable: "OPENAI_API_KEY".to_owned(),
            secret: Secret::new("k".to_owned()),
        };
        let environment = Arc::new(ProviderKeyState::of_environment(environment, 1));
        let keys = [
            key(1, "system", 1, 1),
            environment,
            key(2, "system", 0, 9),
            key(3, "user:bob", 0, 1),
            key(4, "team:t1", 0, 1),
            key(5, "user:alice", 0, 2),
            key(6, "user:alice", 0, 1),
        ];
        let tiers = &Tiers::of(keys.iter())["openai"];
        let names = |keys: &[Arc<ProviderKeyState>]| keys.iter().map(|key| key.record.name.clone()).collect::<Vec<_>>();
        assert_eq!(names(tiers.of_user("alice")), ["k6", "k5"]);
        assert_eq!(names(tiers.of_user("bob")), ["k3"]);
        assert_eq!(names(tiers.of_team("t1")), ["k4"]);
        assert_eq!(names(tiers.of_system()), ["k2", "k1"]);
        assert_eq!(names(tiers.of_environment()), ["OPENAI_API_KEY"]);
        assert_eq!((tiers.of_user("t1").len(), tiers.of_team("alice").len(), tiers.all().len()), (0, 0, 7));
    }

    #[test]
    fn models() {
        let (any, some) = (key(1, "system", 0, 0), key(9, "system", 0, 0));
        for (model, want) in [(Some("gpt-4o-mini"), true), (Some("o3"), false), (None, true)] {
            assert_eq!((any.pays_for(model), some.pays_for(model)), (true, want), "{model:?}");
        }
    }
}
