//! What the admin API shows of records: JSON with fixed names, never a secret.
//!
//! Owns the shapes; people's scripts rely on them.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use ipnet::IpNet;
use serde::Serialize;

use crate::clock::{Clock, Nanos, rfc3339};
use crate::control::policy::{Figure, LimitView};
use crate::id::{KeyId, Owner, ScopeId};
use crate::limit::{Consumption, Kind, Moment};
use crate::policy::Policy;
use crate::provider::Upstream;
use crate::provider_key::{Replaced, Status};
use crate::storage::{KeyState, KeyStats, ProviderKeyState, Snapshot, scopes_of};
use crate::unit::usd;
use crate::virtual_key::{Fallback, StreamUsage};

/// A virtual key, without its secret.
#[derive(Clone, Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema), schemars(rename = "Key"))]
#[expect(missing_docs, reason = "named like the fields of VirtualKey")]
pub struct KeyView {
    pub id: KeyId,
    pub name: String,
    #[cfg_attr(test, schemars(with = "crate::control::keys::Shown"))]
    pub status: &'static str,
    pub prefix: String,
    pub user: Option<String>,
    pub team: Option<String>,
    #[cfg_attr(test, schemars(extend("format" = "date-time")))]
    pub created: String,
    #[cfg_attr(test, schemars(extend("format" = "date-time")))]
    pub expires: Option<String>,
    pub models: Vec<String>,
    pub providers: Vec<String>,
    pub endpoints: Vec<String>,
    #[cfg_attr(test, schemars(with = "Vec<String>"))]
    pub sources: Vec<IpNet>,
    pub plan: Option<String>,
    /// What the key's own record says; its plan adds to it.
    #[serde(flatten)]
    pub policy: Policy,
    /// How every limit of every scope stands that its requests count for.
    pub in_force: Vec<LimitView>,
    /// The budget in force, of several the one of which least is left; US dollars, a decimal string.
    pub max_budget: Option<Figure>,
    /// What is left of it.
    pub budget_remaining: Option<Figure>,
    pub pool: Option<String>,
    /// Whether it may be given real keys of that pool.
    pub lease: bool,
    pub fallback: Fallback,
    pub stream_usage: Option<StreamUsage>,
    pub ephemeral: bool,
    pub canary: bool,
    pub metadata: BTreeMap<String, String>,
    /// Until when the secret before the last rotation works too.
    #[cfg_attr(test, schemars(extend("format" = "date-time")))]
    pub rotation_grace_until: Option<String>,
    #[cfg_attr(test, schemars(extend("format" = "date-time")))]
    pub last_used: Option<String>,
    pub total_requests: u64,
    pub total_tokens: u64,
    /// US dollars, a decimal string.
    pub spent: String,
    pub version: u64,
}

impl KeyView {
    /// The view of a key at a time.
    #[must_use]
    pub fn new(state: &KeyState, at: Moment) -> Self {
        let record = state.record.clone();
        let stats = Stats::read(&state.stats);
        let grace = record.previous.filter(|previous| at.wall_ms < previous.until_ms);
        let need = Consumption::default();
        let reports: Vec<_> = state.scopes.iter().flat_map(|scope| scope.report(at, &need)).collect();
        let budgets = reports.iter().filter(|report| matches!(report.limit, Kind::Budget(_)));
        let budget = budgets.min_by_key(|report| report.remaining());
        Self {
            max_budget: budget.map(|report| Figure::of(report.limit, report.value)),
            budget_remaining: budget.map(|report| Figure::of(report.limit, report.remaining())),
            in_force: reports.iter().map(LimitView::from).collect(),
            status: record.status_word(at.wall_ms),
            id: record.id,
            name: record.name,
            prefix: record.prefix,
            user: record.user,
            team: record.team,
            created: rfc3339(record.created_ms),
            expires: record.expires_ms.map(rfc3339),
            models: record.models,
            providers: record.providers,
            endpoints: record.endpoints,
            sources: record.sources,
            plan: record.plan,
            policy: record.policy,
            pool: record.pool,
            lease: record.lease,
            fallback: record.fallback,
            stream_usage: record.stream_usage,
            ephemeral: record.ephemeral,
            canary: record.canary,
            metadata: record.metadata,
            rotation_grace_until: grace.map(|previous| rfc3339(previous.until_ms)),
            last_used: stats.last_used,
            total_requests: stats.requests,
            total_tokens: stats.tokens,
            spent: stats.spent,
            version: record.version,
        }
    }
}

/// A provider key, masked.
#[derive(Clone, Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema), schemars(rename = "ProviderKey"))]
#[expect(missing_docs, reason = "named like the fields of ProviderKey")]
pub struct ProviderKeyView {
    pub id: KeyId,
    pub provider: String,
    pub name: String,
    pub owner: Owner,
    /// `active`, `cooling`, `disabled`, `error` or `exhausted`.
    #[cfg_attr(test, schemars(with = "Status"))]
    pub status: &'static str,
    /// `sealed`, `env:NAME`, `file:/path`, `exec:command`.
    pub origin: String,
    /// False while a reference has not been resolved.
    pub resolved: bool,
    /// True when it comes from a variable of the provider, and is not in the store.
    pub environment: bool,
    pub masked: String,
    pub bound_to: String,
    pub models: Vec<String>,
    pub priority: u32,
    /// Its share under the policy `weighted`.
    pub weight: u32,
    /// Its own limits.
    #[serde(flatten)]
    pub policy: Policy,
    /// How each of them stands.
    pub in_force: Vec<LimitView>,
    /// What may be shown of the secret before the last rotation, as long as it may come back.
    pub replaced: Option<String>,
    /// Until when it does, should the provider refuse the present one.
    #[cfg_attr(test, schemars(extend("format" = "date-time")))]
    pub rotation_grace_until: Option<String>,
    #[cfg_attr(test, schemars(extend("format" = "date-time")))]
    pub created: String,
    /// When a rest ends by itself.
    #[cfg_attr(test, schemars(extend("format" = "date-time")))]
    pub until: Option<String>,
    /// Since when its status is what it is.
    #[cfg_attr(test, schemars(extend("format" = "date-time")))]
    pub since: Option<String>,
    pub last_error: Option<String>,
    /// Faults and refusals since its last success.
    pub failures: u32,
    pub in_flight: u32,
    #[cfg_attr(test, schemars(extend("format" = "date-time")))]
    pub last_used: Option<String>,
    pub total_requests: u64,
    pub total_tokens: u64,
    pub spent: String,
    pub version: u64,
}

impl ProviderKeyView {
    /// The view of a key at a time.
    #[must_use]
    pub fn new(state: &ProviderKeyState, clock: &Clock) -> Self {
        let record = state.record.clone();
        let stats = Stats::read(&state.stats.used);
        let standing = state.standing(clock.now());
        let reports = state.scope.report(Moment::of(clock), &Consumption::default());
        let replaced = record.replaced.filter(|replaced| clock.wall_ms() < replaced.until_ms);
        Self {
            id: record.id,
            provider: record.provider,
            name: record.name,
            owner: record.owner,
            status: standing.status.as_str(),
            origin: record.origin.describe(),
            resolved: state.secret.load().is_some(),
            environment: state.environment,
            masked: record.masked,
            bound_to: record.bound_to,
            models: record.models,
            priority: record.priority,
            weight: record.weight,
            policy: record.policy,
            in_force: reports.iter().map(LimitView::from).collect(),
            replaced: replaced.as_ref().map(Replaced::shown),
            rotation_grace_until: replaced.map(|replaced| rfc3339(replaced.until_ms)),
            created: rfc3339(record.created_ms),
            until: standing.until_ms.map(rfc3339),
            since: standing.since_ms.map(rfc3339),
            last_error: standing.last_error,
            failures: standing.failures,
            in_flight: state.stats.health.in_flight(),
            last_used: stats.last_used,
            total_requests: stats.requests,
            total_tokens: stats.tokens,
            spent: stats.spent,
            version: record.version,
        }
    }
}

/// A plan, a user or a team as it is used: by all of its keys together.
#[derive(Clone, Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema), schemars(rename = "SharedUse"))]
#[expect(missing_docs, reason = "named like the fields of KeyView")]
pub struct SharedView {
    /// Virtual keys that name it.
    pub keys: usize,
    /// How each of its limits stands.
    pub in_force: Vec<LimitView>,
    #[cfg_attr(test, schemars(extend("format" = "date-time")))]
    pub last_used: Option<String>,
    pub total_requests: u64,
    pub total_tokens: u64,
    pub spent: String,
}

impl SharedView {
    /// The view of a scope at a time; one that is not in use has used nothing. `keys` is [`keys_by_scope`].
    #[must_use]
    pub fn new(snapshot: &Snapshot, keys: &HashMap<ScopeId, usize>, id: &ScopeId, at: Moment) -> Self {
        let state = snapshot.scope(id);
        let stats = state.map_or_else(|| Stats::read(&KeyStats::default()), |state| Stats::read(&state.stats));
        let reports = state.map(|state| state.scope.report(at, &Consumption::default())).unwrap_or_default();
        Self {
            keys: keys.get(id).copied().unwrap_or(0),
            in_force: reports.iter().map(LimitView::from).collect(),
            last_used: stats.last_used,
            total_requests: stats.requests,
            total_tokens: stats.tokens,
            spent: stats.spent,
        }
    }
}

/// How many virtual keys name each plan, user and team.
#[must_use]
pub fn keys_by_scope(snapshot: &Snapshot) -> HashMap<ScopeId, usize> {
    let mut keys = HashMap::new();
    for id in snapshot.virtual_keys().flat_map(|key| scopes_of(&key.record)) {
        *keys.entry(id).or_default() += 1;
    }
    keys
}

struct Stats {
    last_used: Option<String>,
    requests: u64,
    tokens: u64,
    spent: String,
}

impl Stats {
    fn read(stats: &KeyStats) -> Self {
        let last = stats.last_used_ms.load(Ordering::Relaxed);
        Self {
            last_used: (last != 0).then(|| rfc3339(last)),
            requests: stats.total_requests.load(Ordering::Relaxed),
            tokens: stats.total_tokens.load(Ordering::Relaxed),
            spent: usd(stats.spent_nano_usd.load(Ordering::Relaxed)),
        }
    }
}

/// A provider as configured.
#[derive(Clone, Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema), schemars(rename = "Provider"))]
#[expect(missing_docs, reason = "named like the fields of Upstream")]
pub struct ProviderView {
    pub id: String,
    pub aliases: Vec<&'static str>,
    pub dialect: &'static str,
    pub base_url: String,
    /// More hosts that mean it, from the configuration.
    pub hosts: Vec<String>,
    /// What stands here for `/v1` of OpenAI's paths.
    pub v1: Option<String>,
    /// False for one of the operator's own.
    pub builtin: bool,
    pub enabled: bool,
    /// True where a key is optional.
    pub keyless: bool,
    /// Variables that may hold a system key.
    pub env: Vec<String>,
    /// Provider keys that may be used now.
    pub active_keys: usize,
    /// All provider keys.
    pub keys: usize,
}

impl ProviderView {
    /// The view of a provider and its keys.
    #[must_use]
    pub fn new(upstream: &Upstream, keys: &[Arc<ProviderKeyState>], now: Nanos) -> Self {
        let active = |state: &&Arc<ProviderKeyState>| state.standing(now).status == Status::Active;
        Self {
            id: upstream.id.to_string(),
            aliases: upstream.row.map_or_else(Vec::new, |row| row.aliases.to_vec()),
            dialect: upstream.dialect.name(),
            base_url: base_url(upstream),
            hosts: upstream.further_hosts().to_vec(),
            v1: upstream.v1.as_deref().map(str::to_owned),
            builtin: upstream.row.is_some(),
            enabled: upstream.enabled,
            keyless: upstream.keyless,
            env: upstream.env.to_vec(),
            active_keys: keys.iter().filter(active).count(),
            keys: keys.len(),
        }
    }
}

/// As people write it: without the scheme's own port.
pub(super) fn base_url(upstream: &Upstream) -> String {
    let origin = upstream.origin();
    let plain = [("https://", ":443"), ("http://", ":80")]
        .into_iter()
        .find_map(|(scheme, port)| if origin.starts_with(scheme) { origin.strip_suffix(port) } else { None });
    format!("{}{}", plain.unwrap_or(origin), upstream.base_path())
}
