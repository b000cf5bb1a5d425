//! `/api/keys`: virtual keys.
//!
//! Owns what may be said of one and its defaults; leaves checking a presented key to `virtual_key`.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Json;
use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use http::{HeaderMap, StatusCode, header};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::clock::parse_rfc3339;
use crate::control::body::{Tell, parse};
use crate::control::caller::{Caller, not_yours};
use crate::control::own;
use crate::control::policy::{With, allowed, globs, said, set};
use crate::control::problem::{Asked, Problem, check_name};
use crate::control::view::KeyView;
use crate::control::{ControlState, Page, etag, expected_version, key_id, page};
use crate::id::{KeyId, Owner};
use crate::limit::Moment;
use crate::owner::OwnerPolicy;
use crate::plan::Plan;
use crate::policy::{Budget, Limits, Policy};
use crate::provider::{Endpoint, NoProvider, provider};
use crate::storage::KeyState;
use crate::unit::duration;
use crate::virtual_key::{
    Fallback, KeysSection, Previous, Status, StreamUsage, VirtualKey, generate, is_prefix, parse_id,
};

const DAY_MS: u64 = 86_400_000;

/// What is said of a key, at its making and at a change: an absent field keeps its value or gets the default, null
/// takes the value away.
#[derive(Debug, Default, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema), schemars(rename = "KeyWish"))]
#[serde(default, deny_unknown_fields)]
pub(super) struct Wish {
    /// What people call it.
    #[cfg_attr(test, schemars(length(min = 1, max = 128)))]
    name: Option<String>,
    /// What it begins with; said at its making only.
    #[cfg_attr(test, schemars(regex(pattern = r"^[A-Za-z0-9_-]{0,31}[A-Za-z0-9_]$")))]
    prefix: Option<String>,
    /// Whose it is.
    #[serde(deserialize_with = "said")]
    user: Option<Option<String>>,
    #[serde(deserialize_with = "said")]
    team: Option<Option<String>>,
    /// Globs of models it may ask for; null, or `*`, is all.
    #[serde(deserialize_with = "said")]
    models: Option<Option<Vec<String>>>,
    /// Providers it may call, by id or alias; null, or `*`, is all.
    #[serde(deserialize_with = "said")]
    providers: Option<Option<Vec<String>>>,
    /// Endpoints it may call; null, or `*`, is all.
    #[serde(deserialize_with = "said")]
    endpoints: Option<Option<Vec<String>>>,
    /// Networks it may come from, such as `10.0.0.0/8`; null, or `*`, is all.
    #[serde(deserialize_with = "said")]
    sources: Option<Option<Vec<String>>>,
    /// The plan that holds it.
    #[serde(deserialize_with = "said")]
    plan: Option<Option<String>>,
    /// Days from now; null is never.
    #[serde(deserialize_with = "said")]
    expires_days: Option<Option<u32>>,
    /// When it expires; null is never.
    #[cfg_attr(test, schemars(extend("format" = "date-time")))]
    #[serde(deserialize_with = "said")]
    expires: Option<Option<String>>,
    /// How the usage of its streams is learned.
    #[serde(deserialize_with = "said")]
    stream_usage: Option<Option<StreamUsage>>,
    /// The pool whose provider keys pay for it.
    #[serde(deserialize_with = "said")]
    pool: Option<Option<String>>,
    /// Whether it may be given real keys of that pool.
    lease: Option<bool>,
    /// Whether the next tier pays when the first cannot.
    fallback: Option<Fallback>,
    /// Notes by name: those not named stay, null takes one away.
    #[serde(deserialize_with = "said")]
    metadata: Option<Option<BTreeMap<String, Option<String>>>>,
    /// Whether it goes when the daemon ends; said at its making only.
    ephemeral: Option<bool>,
    /// Whether nobody is to use it, and any use is told.
    canary: Option<bool>,
}

#[derive(Debug, Default, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub(super) struct ListQuery {
    user: Option<String>,
    team: Option<String>,
    plan: Option<String>,
    name: Option<String>,
    /// What the name has in it, in capitals or not.
    q: Option<String>,
    status: Option<Shown>,
    limit: Option<usize>,
    cursor: Option<KeyId>,
}

/// How a virtual key stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema), schemars(rename = "KeyStatus"))]
#[serde(rename_all = "lowercase")]
pub(super) enum Shown {
    /// May be used.
    Active,
    /// Switched off by hand, until switched on.
    Disabled,
    /// Its time is over.
    Expired,
    /// Taken back for good.
    Revoked,
}

impl Shown {
    fn as_str(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Disabled => "disabled",
            Self::Expired => "expired",
            Self::Revoked => "revoked",
        }
    }
}

/// One page of virtual keys, the oldest first.
#[derive(Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(super) struct KeyList {
    keys: Vec<KeyView>,
    next_cursor: Option<KeyId>,
}

/// A virtual key with its secret, which is shown this once.
#[derive(Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(super) struct KeyMade<'a> {
    key: &'a str,
    key_data: KeyView,
}

pub(super) async fn list(
    State(state): State<Arc<ControlState>>,
    caller: Caller,
    Asked(query): Asked<ListQuery>,
) -> Result<Json<KeyList>, Problem> {
    let snapshot = state.store.snapshot();
    let at = Moment::of(&state.clock);
    let part = query.q.as_ref().map(|part| part.to_lowercase());
    let wanted = |key: &&Arc<KeyState>| {
        let matches =
            |said: &Option<String>, value: Option<&str>| said.as_deref().is_none_or(|said| Some(said) == value);
        caller.sees_user(key.record.user.as_deref())
            && matches(&query.user, key.record.user.as_deref())
            && matches(&query.team, key.record.team.as_deref())
            && matches(&query.plan, key.record.plan.as_deref())
            && matches(&query.name, Some(&key.record.name))
            && part.as_deref().is_none_or(|part| key.record.name.to_lowercase().contains(part))
            && query.status.is_none_or(|status| status.as_str() == key.record.status_word(at.wall_ms))
    };
    let mut keys: Vec<&Arc<KeyState>> = snapshot.virtual_keys().filter(wanted).collect();
    keys.sort_by_key(|key| (key.record.created_ms, key.record.id));
    let Page { items, next } = page(keys, |key| key.record.id, query.cursor, query.limit)?;
    Ok(Json(KeyList { keys: items.iter().map(|key| KeyView::new(key, at)).collect(), next_cursor: next }))
}

pub(super) async fn create(
    State(state): State<Arc<ControlState>>,
    caller: Caller,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, Problem> {
    let With { policy, rest: wish } = With::<Wish>::parse(&headers, &body, Tell::All)?;
    if let Some(user) = caller.user() {
        wish.check_own(&state, user)?;
    }
    let at = Moment::of(&state.clock);
    let now = at.wall_ms;
    let id = KeyId::random().map_err(|error| Problem::internal(error.to_string()))?;
    let prefix = wish.prefix.clone().unwrap_or_else(|| state.keys.get().prefix.clone());
    if !is_prefix(&prefix) {
        return Err(Problem::invalid("prefix", "must be 1 to 32 letters, digits, `-` and `_`, not ending in a dash")
            .fix("leave it out for that of the configuration"));
    }
    let key = generate(&prefix, id).map_err(|error| Problem::internal(error.to_string()))?;
    let digest = state.store.snapshot().digest_key().digest(key.expose());
    let default_days = u64::from(state.keys.get().default_expires_days);
    let mut record = VirtualKey {
        id,
        name: wish.name.clone().ok_or_else(|| Problem::invalid("name", "is missing").fix("say what it is called"))?,
        digest,
        previous: None,
        prefix,
        user: caller.user().map(str::to_owned),
        team: None,
        status: Status::Active,
        created_ms: now,
        expires_ms: Some(now + default_days * DAY_MS),
        models: Vec::new(),
        providers: Vec::new(),
        endpoints: Vec::new(),
        sources: Vec::new(),
        plan: None,
        policy: defaults(
            &state.keys.get(),
            flat(&wish.plan).and_then(|name| state.store.snapshot().named(name)).map(|(plan, _)| plan),
        ),
        pool: None,
        lease: false,
        fallback: Fallback::System,
        stream_usage: None,
        ephemeral: wish.ephemeral.unwrap_or(false),
        canary: false,
        metadata: BTreeMap::new(),
        version: 0,
    };
    wish.apply(&state, &mut record, now)?;
    let least = record.policy.clone();
    policy.apply(&mut record.policy)?;
    if caller.user().is_some() {
        own::check(&record, &least, now + default_days * DAY_MS)?;
    }
    let made = state.store.create_virtual_key(record).await?;
    let body = KeyMade { key: key.expose(), key_data: KeyView::new(&made, at) };
    let location = format!("/api/keys/{id}");
    Ok((StatusCode::CREATED, [(header::LOCATION, location), (header::ETAG, etag(made.record.version))], Json(body))
        .into_response())
}

pub(super) async fn show(
    State(state): State<Arc<ControlState>>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<Response, Problem> {
    Ok(answer(&state, &*find(&state, &caller, &id)?))
}

pub(super) async fn update(
    State(state): State<Arc<ControlState>>,
    caller: Caller,
    Path(id): Path<String>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, Problem> {
    let With { policy, rest: wish } = With::<Wish>::parse(&headers, &body, Tell::All)?;
    for (field, said) in [("prefix", wish.prefix.is_some()), ("ephemeral", wish.ephemeral.is_some())] {
        if said {
            return Err(Problem::invalid(field, "cannot change").fix("make a new key"));
        }
    }
    if caller.user().is_some() && !(policy.is_empty() && wish.is_about_itself()) {
        let problem =
            not_yours("body", "users change name and metadata; for more ask an operator, or make another key");
        return Err(problem);
    }
    let now = state.clock.wall_ms();
    change(&state, &caller, &id, &headers, |record| {
        if let Some(name) = &wish.name {
            record.name.clone_from(name);
        }
        policy.apply(&mut record.policy)?;
        wish.apply(&state, record, now)
    })
    .await
}

pub(super) async fn delete(
    State(state): State<Arc<ControlState>>,
    caller: Caller,
    Path(id): Path<String>,
    headers: HeaderMap,
) -> Result<StatusCode, Problem> {
    let expected = expected_version(&headers)?;
    let id = find(&state, &caller, &id)?.record.id;
    state.store.delete_virtual_key(id, expected).await?;
    Ok(StatusCode::NO_CONTENT)
}

#[derive(Debug, Default, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema), schemars(rename = "KeyRotation"))]
#[serde(default, deny_unknown_fields)]
pub(super) struct Rotation {
    grace: Option<String>,
}

pub(super) async fn rotate(
    State(state): State<Arc<ControlState>>,
    caller: Caller,
    Path(id): Path<String>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, Problem> {
    let rotation: Rotation = parse(&headers, &body, Tell::All)?;
    let grace = rotation.grace.as_deref().map(duration::parse).transpose();
    let grace = grace.map_err(|error| Problem::invalid("grace", error).fix("write it as 1h"))?.unwrap_or_default();
    let before = find(&state, &caller, &id)?;
    if before.record.status == Status::Revoked {
        return Err(revoked());
    }
    let key =
        generate(&before.record.prefix, before.record.id).map_err(|error| Problem::internal(error.to_string()))?;
    let at = Moment::of(&state.clock);
    let now = at.wall_ms;
    let expected = expected_version(&headers)?.unwrap_or(before.record.version);
    let mut record = before.record.clone();
    let until_ms = now.saturating_add(u64::try_from(grace.as_millis()).unwrap_or(u64::MAX));
    record.previous = (until_ms > now).then_some(Previous { digest: record.digest, until_ms });
    record.digest = state.store.snapshot().digest_key().digest(key.expose());
    let made = state.store.update_virtual_key(record, expected).await?;
    let body = KeyMade { key: key.expose(), key_data: KeyView::new(&made, at) };
    Ok(([(header::ETAG, etag(made.record.version))], Json(body)).into_response())
}

pub(super) async fn enable(
    State(state): State<Arc<ControlState>>,
    caller: Caller,
    Path(id): Path<String>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    set_status(&state, &caller, &id, &headers, Status::Active).await
}

pub(super) async fn disable(
    State(state): State<Arc<ControlState>>,
    caller: Caller,
    Path(id): Path<String>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    set_status(&state, &caller, &id, &headers, Status::Disabled).await
}

pub(super) async fn revoke(
    State(state): State<Arc<ControlState>>,
    caller: Caller,
    Path(id): Path<String>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    set_status(&state, &caller, &id, &headers, Status::Revoked).await
}

async fn set_status(
    state: &ControlState,
    caller: &Caller,
    id: &str,
    headers: &HeaderMap,
    status: Status,
) -> Result<Response, Problem> {
    change(state, caller, id, headers, |record| {
        // Whoever took a key back relies on its staying so.
        if record.status == Status::Revoked && status != Status::Revoked {
            return Err(revoked());
        }
        record.status = status;
        Ok(())
    })
    .await
}

fn revoked() -> Problem {
    Problem::new(StatusCode::CONFLICT, "revoked", "the key is revoked, for good").fix("make a new key")
}

#[derive(Debug, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema), schemars(rename = "PresentedKey"))]
#[serde(deny_unknown_fields)]
pub(super) struct Presented {
    key: String,
}

/// Whether a key would be accepted now.
#[derive(Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(super) struct Validated {
    valid: bool,
    /// Why it would not.
    reason: Option<&'static str>,
    /// The key, when it would.
    key_data: Option<KeyView>,
}

/// Whether a key would be accepted now. The holder of the operator's socket is told the true reason, which a stranger
/// at the proxy is not.
pub(super) async fn validate(
    State(state): State<Arc<ControlState>>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Json<Validated>, Problem> {
    let presented: Presented = parse(&headers, &body, Tell::Names)?;
    let key = crate::secret::Secret::new(presented.key);
    let snapshot = state.store.snapshot();
    let at = Moment::of(&state.clock);
    let found = parse_id(key.expose()).map(|id| snapshot.virtual_key(id));
    let (reason, data) = match found {
        None => (Some("malformed"), None),
        Some(None) => (Some("unknown"), None),
        Some(Some(found)) => {
            let digest = snapshot.digest_key().digest(key.expose());
            // The source is the app's, not ours: it is not judged here.
            let record = VirtualKey { sources: Vec::new(), ..found.record.clone() };
            match record.check(digest, at.wall_ms, None) {
                Ok(()) => (None, Some(KeyView::new(found, at))),
                Err(rejection) => (Some(rejection.as_str()), None),
            }
        }
    };
    Ok(Json(Validated { valid: reason.is_none(), reason, key_data: data }))
}

/// The key of this id; that of somebody else is none.
pub(super) fn find(state: &ControlState, caller: &Caller, id: &str) -> Result<Arc<KeyState>, Problem> {
    let id = key_id(id)?;
    let found = state.store.snapshot().virtual_key(id).cloned();
    let found = found.filter(|key| caller.sees_user(key.record.user.as_deref()));
    found.ok_or_else(|| Problem::not_found(&format!("virtual key {id}")))
}

fn answer(state: &ControlState, key: &KeyState) -> Response {
    let view = KeyView::new(key, Moment::of(&state.clock));
    ([(header::ETAG, etag(key.record.version))], Json(view)).into_response()
}

/// Reads, changes, writes; a change in between is a 412, whether the caller named a version or not.
async fn change(
    state: &ControlState,
    caller: &Caller,
    id: &str,
    headers: &HeaderMap,
    edit: impl FnOnce(&mut VirtualKey) -> Result<(), Problem>,
) -> Result<Response, Problem> {
    let before = find(state, caller, id)?;
    let expected = expected_version(headers)?.unwrap_or(before.record.version);
    let mut record = before.record.clone();
    edit(&mut record)?;
    let after = state.store.update_virtual_key(record, expected).await?;
    Ok(answer(state, &after))
}

impl Wish {
    /// True when nothing is said but what a key is called, and notes.
    fn is_about_itself(&self) -> bool {
        let Self {
            name: _,
            metadata: _,
            prefix,
            user,
            team,
            models,
            providers,
            endpoints,
            sources,
            plan,
            expires_days,
            expires,
            stream_usage,
            pool,
            lease,
            fallback,
            ephemeral,
            canary,
        } = self;
        let texts = [user, team, plan, pool, expires].iter().all(|said| said.is_none());
        let lists = [models, providers, endpoints, sources].iter().all(|said| said.is_none());
        let others = expires_days.is_none() && stream_usage.is_none() && fallback.is_none() && ephemeral.is_none();
        texts && lists && others && prefix.is_none() && lease.is_none() && canary.is_none()
    }

    /// What a user may not say of a key of their own. What all of them may use together is the user's policy, so there
    /// must be one.
    fn check_own(&self, state: &ControlState, user: &str) -> Result<(), Problem> {
        if state.store.snapshot().named::<OwnerPolicy>(&Owner::User(user.to_owned()).to_string()).is_none() {
            let detail = format!("user {user:?} has no policy, which is what holds the keys they make");
            return Err(Problem::new(StatusCode::FORBIDDEN, "forbidden", detail)
                .fix(format!("an operator makes one: sidekey user set {user:?} --budget 20/month")));
        }
        if self.user.as_ref().is_some_and(|said| said.as_deref() != Some(user)) {
            return Err(not_yours("user", "leave it out: the key is yours"));
        }
        let said = [
            ("team", self.team.is_some()),
            ("plan", self.plan.is_some()),
            ("pool", self.pool.is_some()),
            ("lease", self.lease.is_some()),
            // Where no model can be checked, naming an endpoint is what allows it.
            ("endpoints", self.endpoints.is_some()),
            ("ephemeral", self.ephemeral.is_some()),
            ("canary", self.canary.is_some()),
        ];
        match said.into_iter().find(|(_, said)| *said) {
            Some((field, _)) => Err(not_yours(field, "leave it out, or ask an operator")),
            None => Ok(()),
        }
    }

    /// Writes what was said into `record`.
    fn apply(&self, state: &ControlState, record: &mut VirtualKey, now: u64) -> Result<(), Problem> {
        for (field, name) in [
            ("name", Some(&record.name)),
            ("user", flat(&self.user)),
            ("team", flat(&self.team)),
            ("plan", flat(&self.plan)),
        ] {
            name.map_or(Ok(()), |name| check_name(field, name))?;
        }
        if let Some(plan) = flat(&self.plan).filter(|plan| state.store.snapshot().named::<Plan>(plan).is_none()) {
            let problem = Problem::invalid("plan", format!("there is no plan {plan:?}"));
            return Err(problem.fix(format!("make it first: sidekey plan create --name {plan:?}")));
        }
        set(&mut record.user, &self.user);
        set(&mut record.team, &self.team);
        set(&mut record.plan, &self.plan);
        set(&mut record.stream_usage, &self.stream_usage);
        if let Some(name) = flat(&self.pool).filter(|name| state.store.snapshot().pool(name).is_none()) {
            return Err(Problem::invalid("pool", format!("there is no pool {name:?}"))
                .fix(format!("make it first: sidekey pool create --name {name:?}")));
        }
        set(&mut record.pool, &self.pool);
        record.lease = self.lease.unwrap_or(record.lease);
        record.canary = self.canary.unwrap_or(record.canary);
        if record.lease && record.pool.is_none() {
            let problem = Problem::invalid("lease", "real keys are handed out of a pool, and the key is bound to none");
            return Err(problem.fix("name its pool too: --pool"));
        }
        record.fallback = self.fallback.unwrap_or(record.fallback);
        self.apply_lists(state, record)?;
        self.apply_metadata(record);
        self.apply_expiry(state, record, now)
    }

    fn apply_metadata(&self, record: &mut VirtualKey) {
        match &self.metadata {
            None => {}
            Some(None) => record.metadata.clear(),
            Some(Some(notes)) => {
                for (name, note) in notes {
                    match note {
                        Some(note) => record.metadata.insert(name.clone(), note.clone()),
                        None => record.metadata.remove(name),
                    };
                }
            }
        }
    }

    fn apply_lists(&self, state: &ControlState, record: &mut VirtualKey) -> Result<(), Problem> {
        if let Some(models) = globs(&self.models)? {
            record.models = models;
        }
        if let Some(providers) = allowed(&self.providers) {
            let known = providers.iter().map(|name| provider_id(state, name));
            record.providers = known.collect::<Result<_, _>>()?;
        }
        if let Some(endpoints) = allowed(&self.endpoints) {
            for name in endpoints {
                name.parse::<Endpoint>().map_err(|error| {
                    Problem::invalid("endpoints", error.to_string()).fix("name endpoints such as chat, or null for all")
                })?;
            }
            record.endpoints = endpoints.to_vec();
        }
        if let Some(sources) = allowed(&self.sources) {
            let network = |text: &String| {
                let parsed = text.trim().parse::<IpNet>();
                parsed.map_err(|_| {
                    let problem = Problem::invalid("sources", format!("{text:?} is no network"));
                    problem.fix("write networks such as 10.0.0.0/8, or null for all")
                })
            };
            record.sources = sources.iter().map(network).collect::<Result<_, _>>()?;
        }
        Ok(())
    }

    fn apply_expiry(&self, state: &ControlState, record: &mut VirtualKey, now: u64) -> Result<(), Problem> {
        let field = if self.expires.is_some() { "expires" } else { "expires_days" };
        match (&self.expires_days, &self.expires) {
            (Some(_), Some(_)) => {
                return Err(Problem::invalid("expires", "expires_days says it too").fix("send one of them"));
            }
            (Some(days), None) => record.expires_ms = days.map(|days| now + u64::from(days) * DAY_MS),
            (None, Some(time)) => {
                let time = time.as_deref().map(parse_rfc3339).transpose();
                record.expires_ms =
                    time.map_err(|error| Problem::invalid(field, error).fix("write it as 2026-11-25T10:00:00Z"))?;
            }
            (None, None) if record.created_ms != now => return Ok(()),
            (None, None) => {}
        }
        if record.expires_ms.is_some_and(|at| at <= now) {
            return Err(Problem::invalid(field, "lies not in the future").fix("revoke or disable the key instead"));
        }
        let Some(max) = state.keys.get().max_expires_days else { return Ok(()) };
        let latest = now + u64::from(max) * DAY_MS;
        if record.expires_ms.is_none_or(|at| at > latest) {
            return Err(Problem::invalid(field, format!("a key may live {max} days at most (keys.max_expires_days)"))
                .fix("let it expire sooner"));
        }
        Ok(())
    }
}

/// What a key may use of which nothing was said: neither of it, nor of its plan.
fn defaults(section: &KeysSection, plan: Option<Arc<Plan>>) -> Policy {
    let of_plan = plan.map(|plan| plan.policy.clone()).unwrap_or_default();
    let unless = |default: Option<u64>, said: Option<u64>| default.filter(|_| said.is_none());
    let limits = Limits {
        rpm: unless(section.default_rpm, of_plan.limits.rpm),
        tpm: unless(section.default_tpm, of_plan.limits.tpm),
        ..Limits::default()
    };
    let said = |budget: &Budget| of_plan.budgets.iter().any(|of_plan| of_plan.per == budget.per);
    let budgets = section.default_budget.clone().into_iter().filter(|budget| !said(budget)).collect();
    Policy { limits, budgets, ..Policy::default() }
}

/// A provider by id or alias, as its id; one that is switched off, or still lacks its base URL, may be named ahead.
fn provider_id(state: &ControlState, name: &str) -> Result<String, Problem> {
    let registry = state.registry.get();
    match registry.lookup(name) {
        Ok(upstream) => Ok(upstream.id.to_string()),
        Err(NoProvider::Disabled(id)) => Ok(id),
        Err(NoProvider::NeedsBaseUrl { id, .. }) => Ok(id.to_owned()),
        Err(error @ NoProvider::Unknown { .. }) => match provider(name) {
            Some(row) => Ok(row.id.to_owned()),
            None => Err(Problem::invalid("providers", error.to_string()).fix("name one of /api/providers")),
        },
    }
}

fn flat<T>(said: &Option<Option<T>>) -> Option<&T> {
    said.as_ref().and_then(Option::as_ref)
}
