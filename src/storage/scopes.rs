//! Who is counted for: the run-time state of keys, and of the users, teams and plans they belong to.
//!
//! Owns which scopes a key's requests count for, and by which policy each is held; leaves counting to `limit`, and
//! keeping it over restarts to the writer.

use std::borrow::Cow;
use std::sync::Arc;

use rustc_hash::FxHashMap;
use wildmatch::WildMatch;

use crate::clock::Nanos;
use crate::entry::Entry;
use crate::id::{Owner, ScopeId};
use crate::limit::{Consumption, Outputs, RateHeaders, Scope, Unknown, Watch};
use crate::owner::OwnerPolicy;
use crate::plan::Plan;
use crate::policy::{Otherwise, Policy};
use crate::virtual_key::VirtualKey;

use super::block::StoredEntry;
use super::engine::EngineError;
use super::snapshot::{KeyStats, Snapshot};

/// A user, a team or a plan in use; the same object as long as the process lives.
#[derive(Debug)]
pub struct ScopeState {
    /// What all of its keys together use.
    pub scope: Arc<Scope>,
    /// What they used, over a whole life.
    pub stats: Arc<KeyStats>,
}

/// A virtual key in use.
#[derive(Debug)]
pub struct KeyState {
    /// Its record.
    pub record: VirtualKey,
    /// Its plan.
    pub plan: Option<Arc<Plan>>,
    /// What the key may use: its own policy, and where that says nothing its plan's.
    pub policy: Policy,
    /// Its rates, amounts and open requests; the same object before and after a change of the record.
    pub scope: Arc<Scope>,
    /// Every scope that its requests count for, its own first.
    pub scopes: Arc<[Arc<Scope>]>,
    /// What it used; the same object before and after a change of the record.
    pub stats: Arc<KeyStats>,
    /// How long its answers usually are; the same object before and after a change of the record.
    pub outputs: Arc<Outputs>,
    /// True to end streams that use up what was reserved for them.
    pub hard_stop: bool,
    /// What becomes of a request for a model without a price; it passes where there is no budget.
    pub unpriced: Otherwise,
    /// What becomes of a request that cannot be recorded; unless said, it passes where there is no budget and no quota.
    pub unrecorded: Otherwise,
    /// Allow-lists of models: a model must be in every one. Lists that allow all are left out.
    pub models: Vec<ModelList>,
}

/// Which models may be called, and who says so.
#[derive(Clone, Debug)]
pub struct ModelList {
    /// The key, its plan, its user or its team.
    pub of: ScopeId,
    /// Globs of models.
    pub globs: Vec<String>,
}

impl ModelList {
    /// True when a glob matches `model`; case counts.
    #[must_use]
    pub fn allows(&self, model: &str) -> bool {
        self.globs.iter().any(|glob| WildMatch::new(glob).matches(model))
    }
}

impl KeyState {
    /// True when no list narrows the models.
    #[must_use]
    pub fn allows_every_model(&self) -> bool {
        self.models.is_empty()
    }

    /// True when each list, the key's, its plan's, its user's and its team's, has a glob that matches `model`.
    #[must_use]
    pub fn allows_model(&self, model: &str) -> bool {
        self.models.iter().all(|list| list.allows(model))
    }

    /// The lists, for people.
    #[must_use]
    pub fn models_shown(&self) -> String {
        self.models.iter().map(|list| list.globs.join(", ")).collect::<Vec<_>>().join("; and of these ")
    }

    /// What the `X-RateLimit-*` headers say: of all scopes the one of which least is left.
    #[must_use]
    pub fn remaining(&self, now: Nanos) -> RateHeaders {
        self.scopes.iter().map(|scope| scope.remaining(now)).fold(RateHeaders::default(), RateHeaders::tightest)
    }
}

/// The scopes of a key's record, beside its own.
pub fn scopes_of(record: &VirtualKey) -> impl Iterator<Item = ScopeId> {
    let plan = record.plan.as_deref().map(|name| ScopeId::Plan(name.into()));
    let user = record.user.as_deref().map(|id| ScopeId::User(id.into()));
    let team = record.team.as_deref().map(|id| ScopeId::Team(id.into()));
    [plan, user, team].into_iter().flatten()
}

/// The scopes an entry counts for.
pub(super) fn counted(entry: &Entry) -> impl Iterator<Item = ScopeId> + use<> {
    [
        entry.virtual_key.map(ScopeId::Key),
        entry.provider_key.map(ScopeId::ProviderKey),
        entry.plan.clone().map(ScopeId::Plan),
        entry.user.clone().map(ScopeId::User),
        entry.team.clone().map(ScopeId::Team),
    ]
    .into_iter()
    .flatten()
}

/// What an entry consumed of rates and amounts.
pub(super) fn consumed(entry: &Entry) -> Consumption {
    Consumption::of(&entry.tokens, entry.cost_nano_usd)
}

/// Reads the ledger from a wall time on, milliseconds, and shows each entry.
pub(super) type Walk<'a> = &'a mut dyn FnMut(u64, &mut dyn FnMut(&StoredEntry<'_>)) -> Result<(), EngineError>;

/// Tells amounts that are new what was used in their windows before, by what the ledger holds.
pub(super) fn tell(
    id: &ScopeId,
    mut unknown: Unknown,
    stats: &KeyStats,
    wall_ms: u64,
    walk: Walk<'_>,
) -> Result<(), EngineError> {
    let used = stats.save();
    unknown.lifetime(wall_ms, used.tokens, used.spent_nano_usd);
    let Some(since_ms) = unknown.since_ms(wall_ms).filter(|_| used.requests > 0) else { return Ok(()) };
    walk(since_ms, &mut |stored| {
        if stored.counts_for(id) {
            let consumption = Consumption::of(&stored.tokens, stored.cost_nano_usd);
            unknown.make_up(stored.time_ms, &consumption);
        }
    })
}

/// Users, teams and plans, by name.
#[derive(Clone, Debug, Default)]
pub(super) struct Scopes {
    states: FxHashMap<ScopeId, Arc<ScopeState>>,
    pub(super) watch: Watch,
}

impl Scopes {
    pub(super) fn new(watch: Watch) -> Self {
        Self { states: FxHashMap::default(), watch }
    }

    pub(super) fn get(&self, id: &ScopeId) -> Option<&Arc<ScopeState>> {
        self.states.get(id)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Arc<ScopeState>> {
        self.states.values()
    }

    /// Makes the state of a user, a team or a plan when it is not there.
    pub(super) fn need_if_shared(&mut self, id: &ScopeId) {
        if matches!(id, ScopeId::Plan(_) | ScopeId::Team(_) | ScopeId::User(_)) {
            self.need(id);
        }
    }

    /// The state of this scope, made when it is not there.
    fn need(&mut self, id: &ScopeId) -> &Arc<ScopeState> {
        let watch = &self.watch;
        self.states.entry(id.clone()).or_insert_with(|| {
            let scope = Arc::new(Scope::new(id.clone(), &Policy::default(), watch.clone()));
            Arc::new(ScopeState { scope, stats: Arc::default() })
        })
    }
}

impl Snapshot {
    /// What is in use of a user, a team or a plan; `None` when no key and no record names it.
    #[must_use]
    pub fn scope(&self, id: &ScopeId) -> Option<&Arc<ScopeState>> {
        self.scopes.get(id)
    }

    /// What is in use of users, teams and plans, in no order.
    pub fn shared_scopes(&self) -> impl Iterator<Item = &Arc<ScopeState>> {
        self.scopes.iter()
    }

    /// The models and the policy that hold for all keys of a user, a team or a plan together.
    fn shared(&self, id: &ScopeId) -> (Vec<String>, Policy) {
        let owner = |owner: Owner| {
            let found = self.named::<OwnerPolicy>(&owner.to_string());
            found.map(|(record, _)| (record.models.clone(), record.policy.clone()))
        };
        let found = match id {
            ScopeId::Plan(name) => self.named::<Plan>(name).map(|(plan, _)| (plan.models.clone(), plan.shared.clone())),
            ScopeId::Team(id) => owner(Owner::Team(id.to_string())),
            ScopeId::User(id) => owner(Owner::User(id.to_string())),
            ScopeId::Key(_) | ScopeId::ProviderKey(_) => None,
        };
        found.unwrap_or_default()
    }

    /// Adds a key, or puts it in the place of what it was before.
    pub(super) fn put_virtual_key(&mut self, record: VirtualKey) -> Arc<KeyState> {
        let before = self.virtual_keys.get(&record.id).cloned();
        let plan = record.plan.as_deref().and_then(|name| self.named::<Plan>(name)).map(|(plan, _)| plan);
        let policy = plan.as_ref().map_or_else(|| record.policy.clone(), |plan| record.policy.or(&plan.policy));
        let (scope, stats, outputs) = before.map_or_else(
            || {
                let scope = Scope::new(ScopeId::Key(record.id), &policy, self.scopes.watch.clone());
                (Arc::new(scope), Arc::default(), Arc::default())
            },
            |before| (before.scope.clone(), before.stats.clone(), before.outputs.clone()),
        );
        let mut scopes = vec![scope.clone()];
        let mut models = vec![ModelList { of: ScopeId::Key(record.id), globs: record.models.clone() }];
        let mut policies = vec![policy.clone()];
        for of in scopes_of(&record) {
            let (globs, shared) = self.shared(&of);
            scopes.push(self.scopes.need(&of).scope.clone());
            policies.push(shared);
            models.push(ModelList { of, globs });
        }
        // A list that holds `*` allows all, as an empty one does.
        models.retain(|list| !list.globs.is_empty() && !list.globs.iter().any(|glob| glob == "*"));
        let deny_if = |held: bool| if held { Otherwise::Deny } else { Otherwise::Allow };
        let priced = policies.iter().any(Policy::holds_money);
        let unpriced = policies.iter().find_map(|policy| policy.unpriced).filter(|_| priced);
        let unrecorded = policies.iter().find_map(|policy| policy.unrecorded);
        let state = Arc::new(KeyState {
            plan,
            policy,
            scope,
            scopes: scopes.into(),
            stats,
            outputs,
            hard_stop: policies.iter().find_map(|policy| policy.hard_stop).unwrap_or(false),
            unpriced: unpriced.unwrap_or_else(|| deny_if(priced)),
            unrecorded: unrecorded.unwrap_or_else(|| deny_if(policies.iter().any(Policy::holds_amounts))),
            models,
            record,
        });
        self.virtual_keys.insert(state.record.id, state.clone());
        state
    }

    /// Takes up a change of a plan, or of a user's or team's policy.
    pub(super) fn renew(&mut self, id: &ScopeId) {
        self.scopes.need(id);
        let concerned = |record: &VirtualKey| scopes_of(record).any(|scope| scope == *id);
        let keys = self.virtual_keys.values().filter(|state| concerned(&state.record));
        for record in keys.map(|state| state.record.clone()).collect::<Vec<_>>() {
            self.put_virtual_key(record);
        }
    }

    /// Puts every policy in force. Not done while the snapshot is made, because the commit can fail after it. Returns
    /// the scopes whose amounts do not know yet what was used before.
    pub(super) fn enforce(&self, wall_ms: u64) -> Vec<(ScopeId, Unknown)> {
        let keys = self.virtual_keys.values().map(|state| (&state.scope, Cow::Borrowed(&state.policy)));
        let provider_keys = self.all_provider_keys().map(|state| (&state.scope, Cow::Borrowed(&state.record.policy)));
        let others = self.scopes.iter().map(|state| (&state.scope, Cow::Owned(self.shared(state.scope.id()).1)));
        let unknown = keys
            .chain(provider_keys)
            .chain(others)
            .map(|(scope, policy)| (scope.id().clone(), scope.configure(&policy, wall_ms)));
        unknown.filter(|(_, unknown)| !unknown.is_empty()).collect()
    }

    /// What a scope that is in use has used, and its limits.
    pub(super) fn used(&self, id: &ScopeId) -> Option<(&KeyStats, &Arc<Scope>)> {
        match id {
            ScopeId::Key(id) => self.virtual_key(*id).map(|state| (&*state.stats, &state.scope)),
            ScopeId::ProviderKey(id) => {
                let state = self.provider_key(*id).filter(|state| !state.environment)?;
                Some((&state.stats.used, &state.scope))
            }
            ScopeId::Plan(_) | ScopeId::Team(_) | ScopeId::User(_) => {
                self.scope(id).map(|state| (&*state.stats, &state.scope))
            }
        }
    }

    /// The ids of all of that.
    pub(super) fn all_used(&self) -> impl Iterator<Item = ScopeId> {
        let keys = self.virtual_keys.keys().map(|id| ScopeId::Key(*id));
        let provider_keys = self.all_provider_keys().filter(|state| !state.environment);
        let provider_keys = provider_keys.map(|state| ScopeId::ProviderKey(state.record.id));
        keys.chain(provider_keys).chain(self.scopes.iter().map(|state| state.scope.id().clone()))
    }
}
