//! `/api/provider-keys`: the real keys. They go in and are never seen again.
//!
//! Owns adding, changing and testing; leaves sealing to `storage` and the call of a test to the [`super::KeyTester`].

use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Waker};
use std::time::Duration;

use axum::Json;
use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use http::{HeaderMap, StatusCode, header};
use serde::{Deserialize, Serialize};

use crate::clock::{Clock, rfc3339};
use crate::control::body::{Tell, parse};
use crate::control::caller::{Caller, not_yours};
use crate::control::policy::{PolicyWish, With};
use crate::control::problem::{Asked, Problem, check_name};
use crate::control::view::ProviderKeyView;
use crate::control::{ControlState, Page, etag, expected_version, key_id, page};
use crate::event::{self, Severity};
use crate::id::{KeyId, Owner};
use crate::limit::Moment;
use crate::policy::Policy;
use crate::pool::MAX_WEIGHT;
use crate::provider_key::{Blow, Change as Became, DEFAULT_GRACE, Origin, ProviderKey, Replaced, Standing, Status};
use crate::secret::Secret;
use crate::storage::{ProviderKeyState, RecordId, Store, StoreError};
use crate::unit::duration;

/// What a provider said to a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// It takes the key.
    Accepted,
    /// It refuses the key.
    Rejected,
    /// It did not answer, or not about the key.
    Unreachable,
    /// The reference it is leads to no key now.
    Unreadable,
    /// There is nothing that can be asked without spending.
    Untestable,
}

impl Verdict {
    /// Every one, for metrics.
    pub const ALL: [Self; 5] = [Self::Accepted, Self::Rejected, Self::Unreachable, Self::Unreadable, Self::Untestable];

    /// The word, also a metric's label.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Accepted => "accepted",
            Self::Rejected => "rejected",
            Self::Unreachable => "unreachable",
            Self::Unreadable => "unreadable",
            Self::Untestable => "untestable",
        }
    }
}

/// How a test went.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct TestResult {
    /// What was learned.
    pub verdict: Verdict,
    /// The provider's status, when it answered.
    pub status: Option<u16>,
    /// For people; nothing of the provider's text, which can echo the key.
    pub detail: String,
    /// From asking to the answer, milliseconds.
    pub latency_ms: u64,
}

impl TestResult {
    /// Of a test that was not made.
    #[must_use]
    pub fn unasked(detail: &str) -> Self {
        Self { verdict: Verdict::Untestable, status: None, detail: detail.to_owned(), latency_ms: 0 }
    }
}

#[derive(Debug, Default, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub(super) struct ListQuery {
    provider: Option<String>,
    owner: Option<Owner>,
    name: Option<String>,
    /// What the name has in it, in capitals or not.
    q: Option<String>,
    status: Option<Status>,
    limit: Option<usize>,
    cursor: Option<KeyId>,
}

/// One page of provider keys: those of the store, the oldest first, then those of the environment.
#[derive(Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(super) struct ProviderKeyList {
    provider_keys: Vec<ProviderKeyView>,
    next_cursor: Option<KeyId>,
}

pub(super) async fn list(
    State(state): State<Arc<ControlState>>,
    caller: Caller,
    Asked(query): Asked<ListQuery>,
) -> Result<Json<ProviderKeyList>, Problem> {
    let snapshot = state.store.snapshot();
    let now = state.clock.now();
    let part = query.q.as_ref().map(|part| part.to_lowercase());
    let wanted = |key: &&Arc<ProviderKeyState>| {
        caller.sees_owner(&key.record.owner)
            && query.provider.as_ref().is_none_or(|provider| *provider == key.record.provider)
            && query.owner.as_ref().is_none_or(|owner| *owner == key.record.owner)
            && query.name.as_ref().is_none_or(|name| *name == key.record.name)
            && part.as_deref().is_none_or(|part| key.record.name.to_lowercase().contains(part))
            && query.status.is_none_or(|status| status == key.standing(now).status)
    };
    let mut keys: Vec<&Arc<ProviderKeyState>> = snapshot.all_provider_keys().filter(wanted).collect();
    keys.sort_by_key(|key| (key.environment, key.record.created_ms, key.record.id));
    let Page { items, next } = page(keys, |key| key.record.id, query.cursor, query.limit)?;
    let views = items.iter().map(|key| ProviderKeyView::new(key, &state.clock)).collect();
    Ok(Json(ProviderKeyList { provider_keys: views, next_cursor: next }))
}

/// Where a secret comes from: itself, or a reference to it.
struct Source {
    secret: Option<String>,
    reference: Option<String>,
}

impl Source {
    fn resolve(self, caller: &Caller) -> Result<(Origin, Option<Secret>), Problem> {
        let secret = self.secret.map(Secret::new);
        // A reference has this process read a file or run a command.
        if self.reference.is_some() && !caller.is_admin() {
            let detail = "only an admin may say where this process finds a key";
            return Err(Problem::new(StatusCode::FORBIDDEN, "forbidden", detail)
                .field("reference")
                .fix("send the secret itself"));
        }
        match (secret, self.reference) {
            (Some(secret), None) => {
                let text = secret.expose();
                if text.is_empty() || text.trim() != text || text.chars().any(|c| c.is_control() || !c.is_ascii()) {
                    return Err(Problem::invalid("secret", "must be one line of ASCII without spaces around")
                        .fix("send the key alone"));
                }
                Ok((Origin::Sealed, Some(secret)))
            }
            (None, Some(reference)) => {
                let origin = Origin::parse_reference(&reference);
                // What was sent may be the key itself: it is not repeated.
                let origin = origin.ok_or_else(|| {
                    Problem::invalid("reference", "must be env:NAME, file:/path or exec:command")
                        .fix("send the key itself as secret")
                })?;
                Ok((origin, None))
            }
            _ => Err(Problem::invalid("secret", "either secret or reference is needed").fix("send one of them")),
        }
    }
}

#[derive(Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema), schemars(rename = "ProviderKeyAddition"))]
#[serde(deny_unknown_fields)]
pub(super) struct Addition {
    /// The provider, by id or alias.
    provider: String,
    /// What people call it.
    #[cfg_attr(test, schemars(length(min = 1, max = 128)))]
    name: String,
    /// Whose it is; `system` unless it is said.
    #[serde(default)]
    owner: Option<Owner>,
    /// Globs of models it is used for; none is all.
    #[serde(default)]
    models: Vec<String>,
    /// Lower goes first.
    #[serde(default)]
    priority: u32,
    /// Its share under the policy `weighted`.
    #[serde(default = "one")]
    #[cfg_attr(test, schemars(range(min = 1, max = 1_000)))]
    weight: u32,
    /// The real key. This, or `reference`.
    #[serde(default)]
    #[cfg_attr(test, schemars(extend("writeOnly" = true)))]
    secret: Option<String>,
    /// Where to find it: `env:NAME`, `file:/path` or `exec:command`. For admins.
    #[serde(default)]
    reference: Option<String>,
}

fn one() -> u32 {
    1
}

pub(super) async fn add(
    State(state): State<Arc<ControlState>>,
    caller: Caller,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, Problem> {
    let With { policy: wished, rest: addition } = With::<Addition>::parse(&headers, &body, Tell::Names)?;
    let source = Source { secret: addition.secret, reference: addition.reference };
    let (origin, secret) = source.resolve(&caller)?;
    let registry = state.registry.get();
    let upstream = registry.lookup(&addition.provider);
    let upstream =
        upstream.map_err(|error| Problem::invalid("provider", error.to_string()).fix("name one of /api/providers"))?;
    let now = state.clock.wall_ms();
    let mut policy = Policy::default();
    apply_limits(&wished, &mut policy)?;
    let record = ProviderKey {
        id: KeyId::random().map_err(|error| Problem::internal(error.to_string()))?,
        provider: upstream.id.to_string(),
        name: addition.name,
        owner: own_owner(&caller, addition.owner)?.unwrap_or(Owner::System),
        standing: Standing { since_ms: Some(now), ..Standing::default() },
        origin,
        masked: secret.as_ref().map(Secret::masked).unwrap_or_default(),
        bound_to: upstream.origin().to_owned(),
        models: addition.models,
        priority: addition.priority,
        policy,
        weight: addition.weight,
        replaced: None,
        created_ms: now,
        version: 0,
    };
    check(&state, &record)?;
    let made = state.store.create_provider_key(record, secret).await?;
    let location = format!("/api/provider-keys/{}", made.record.id);
    Ok((
        StatusCode::CREATED,
        [(header::LOCATION, location), (header::ETAG, etag(made.record.version))],
        Json(ProviderKeyView::new(&made, &state.clock)),
    )
        .into_response())
}

/// The owner that was said; a user's keys are their own.
fn own_owner(caller: &Caller, said: Option<Owner>) -> Result<Option<Owner>, Problem> {
    let Some(user) = caller.user() else { return Ok(said) };
    match said {
        Some(said) if !caller.sees_owner(&said) => Err(not_yours("owner", "leave it out: the key is yours")),
        _ => Ok(Some(Owner::User(user.to_owned()))),
    }
}

/// What is said of the key's own limits. What becomes of a request beside that is for the virtual key to say.
fn apply_limits(wish: &PolicyWish, policy: &mut Policy) -> Result<(), Problem> {
    wish.apply(policy)?;
    let beside = [
        ("unpriced", policy.unpriced.is_some()),
        ("unrecorded", policy.unrecorded.is_some()),
        ("hard_stop", policy.hard_stop.is_some()),
    ];
    match beside.into_iter().find(|(_, said)| *said) {
        Some((field, _)) => {
            Err(Problem::invalid(field, "is not of provider keys").fix("say it of the virtual key, or of its plan"))
        }
        None => Ok(()),
    }
}

/// A name is how people point at a key, so one provider has it once.
fn check(state: &ControlState, record: &ProviderKey) -> Result<(), Problem> {
    if !(1..=MAX_WEIGHT).contains(&record.weight) {
        return Err(Problem::invalid("weight", format!("must be 1 to {MAX_WEIGHT}")).fix("leave it out for 1"));
    }
    check_name("name", &record.name)?;
    let snapshot = state.store.snapshot();
    let twin = |key: &Arc<ProviderKeyState>| key.record.id != record.id && key.record.name == record.name;
    if snapshot.provider_keys(&record.provider).iter().any(twin) {
        let detail = format!("{} has a key of that name", record.provider);
        return Err(Problem::new(StatusCode::CONFLICT, "exists", detail)
            .field("name")
            .fix("choose another name, or rotate that key"));
    }
    Ok(())
}

pub(super) async fn show(
    State(state): State<Arc<ControlState>>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<Response, Problem> {
    Ok(answer(&state, &*find(&state, &caller, &id)?))
}

#[derive(Default, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema), schemars(rename = "ProviderKeyWish"))]
#[serde(default, deny_unknown_fields)]
pub(super) struct Change {
    name: Option<String>,
    owner: Option<Owner>,
    models: Option<Vec<String>>,
    priority: Option<u32>,
    weight: Option<u32>,
}

pub(super) async fn update(
    State(state): State<Arc<ControlState>>,
    caller: Caller,
    Path(id): Path<String>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, Problem> {
    let With { policy: wished, rest: wish } = With::<Change>::parse(&headers, &body, Tell::Names)?;
    let mut record = stored(&state, &caller, &id)?.record.clone();
    record.name = wish.name.unwrap_or(record.name);
    record.owner = own_owner(&caller, wish.owner)?.unwrap_or(record.owner);
    record.models = wish.models.unwrap_or(record.models);
    record.priority = wish.priority.unwrap_or(record.priority);
    record.weight = wish.weight.unwrap_or(record.weight);
    apply_limits(&wished, &mut record.policy)?;
    check(&state, &record)?;
    write(&state, &headers, record, None).await
}

#[derive(Default, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema), schemars(rename = "ProviderKeyRotation"))]
#[serde(default, deny_unknown_fields)]
pub(super) struct Rotation {
    /// The real key. This, or `reference`.
    #[cfg_attr(test, schemars(extend("writeOnly" = true)))]
    secret: Option<String>,
    /// Where to find it: `env:NAME`, `file:/path` or `exec:command`. For admins.
    reference: Option<String>,
    /// Asks the provider first; what is not good changes nothing.
    test: bool,
    /// For how long the former secret comes back should the provider refuse the new one.
    grace: Option<String>,
}

/// A provider key with its new secret.
#[derive(Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema), schemars(rename = "RotatedProviderKey"))]
pub(super) struct RotatedView {
    #[serde(flatten)]
    key: ProviderKeyView,
    /// How the test went, when one was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    test: Option<TestResult>,
}

/// A new secret in place of the old one, which is remembered for a while. It is bound to the provider's present host:
/// whoever enters it means that. Requests that were sent with the old one end with it.
pub(super) async fn rotate(
    State(state): State<Arc<ControlState>>,
    caller: Caller,
    Path(id): Path<String>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, Problem> {
    let rotation: Rotation = parse(&headers, &body, Tell::Names)?;
    let source = Source { secret: rotation.secret, reference: rotation.reference };
    let (origin, secret) = source.resolve(&caller)?;
    let grace = rotation.grace.as_deref().map(duration::parse).transpose();
    let grace = grace.map_err(|error| Problem::invalid("grace", error).fix("write it as 1h"))?.unwrap_or(DEFAULT_GRACE);
    let before = stored(&state, &caller, &id)?;
    let mut record = before.record.clone();
    let registry = state.registry.get();
    let upstream = registry.lookup(&record.provider);
    let upstream =
        upstream.map_err(|error| Problem::invalid("provider", error.to_string()).fix("name one of /api/providers"))?;
    let expected = expected_version(&headers)?.unwrap_or(record.version);
    record.replaced = replaced(&state, &before, grace, expected + 1);
    record.bound_to = upstream.origin().to_owned();
    record.masked = secret.as_ref().map(Secret::masked).unwrap_or_default();
    record.origin = origin;
    // Whatever the old one was, only being switched off is not about it.
    if record.standing.status != Status::Disabled {
        record.standing = Standing { since_ms: Some(state.clock.wall_ms()), ..Standing::default() };
    }
    if !rotation.test {
        return Ok(answer(&state, &*put_rotated(&state, record, expected, secret).await?));
    }
    let candidate = ProviderKey {
        id: KeyId::random().map_err(|error| Problem::internal(error.to_string()))?,
        name: format!("{} of a rotation", record.id),
        standing: Standing { status: Status::Disabled, ..Standing::default() },
        replaced: None,
        ..record.clone()
    };
    let (result, fetched) = try_out(&state, candidate, secret.clone()).await?;
    let refused = |code, detail: String| {
        let problem = Problem::new(StatusCode::UNPROCESSABLE_ENTITY, code, detail);
        Err(problem.fix("the key is as it was; rotate to a good one, or without the test: --no-test"))
    };
    match result.verdict {
        Verdict::Rejected => return refused("rejected", result.detail),
        Verdict::Unreadable => return refused("unreadable", format!("the reference gives no key: {}", result.detail)),
        Verdict::Accepted | Verdict::Unreachable | Verdict::Untestable => {}
    }
    let after = put_rotated(&state, record, expected, secret).await?;
    if after.record.origin != Origin::Sealed && fetched.is_some() {
        after.secret.store(fetched);
    }
    let view = RotatedView { key: ProviderKeyView::new(&after, &state.clock), test: Some(result) };
    Ok(([(header::ETAG, etag(after.record.version))], Json(view)).into_response())
}

/// What a rotation remembers of the key as it is; nothing of one that the provider does not take.
fn replaced(state: &ControlState, before: &ProviderKeyState, grace: Duration, rotation: u64) -> Option<Replaced> {
    let standing = before.standing(state.clock.now());
    if grace.is_zero() || standing.status == Status::Error {
        return None;
    }
    let ProviderKey { origin, masked, bound_to, .. } = before.record.clone();
    let grace_ms = u64::try_from(grace.as_millis()).unwrap_or(u64::MAX);
    let until_ms = state.clock.wall_ms().saturating_add(grace_ms);
    Some(Replaced { until_ms, rotation, origin, masked, bound_to, standing })
}

async fn put_rotated(
    state: &ControlState,
    record: ProviderKey,
    expected: u64,
    secret: Option<Secret>,
) -> Result<Arc<ProviderKeyState>, StoreError> {
    let after = state.store.update_provider_key(record, expected, secret).await?;
    after.stats.health.clear();
    let ProviderKey { id, provider, name, masked, origin, replaced, .. } = &after.record;
    let new = if masked.is_empty() { origin.describe() } else { masked.clone() };
    let former = replaced.as_ref().map_or_else(String::new, |former| {
        format!(" in place of {}, which comes back if it is refused until {}", former.shown(), rfc3339(former.until_ms))
    });
    let message = format!("{provider}/{name} is {new}{former}");
    let subject = format!("provider key {id}");
    state.store.events().emit(event::Kind::ProviderKeyRotated, Severity::Info, subject, message);
    Ok(after)
}

/// Tests a key that is in the store, switched off, for as long as that takes; also gives what its reference led to.
async fn try_out(
    state: &ControlState,
    candidate: ProviderKey,
    secret: Option<Secret>,
) -> Result<(TestResult, Option<Arc<Secret>>), StoreError> {
    let id = candidate.id;
    let mut cleaner = Cleaner { store: &state.store, id: Some(id) };
    state.store.create_provider_key(candidate, secret).await?;
    let result = (state.tester)(id).await;
    let fetched = state.store.snapshot().provider_key(id).and_then(|key| key.secret.load_full());
    let deleted = state.store.delete_provider_key(id, None).await;
    cleaner.id = None;
    match deleted {
        Ok(()) | Err(StoreError::NotFound { .. }) => Ok((result, fetched)),
        Err(error) => Err(error),
    }
}

/// Removes a candidate whose test was given up, since nobody waits for the answer any more.
struct Cleaner<'a> {
    store: &'a Store,
    id: Option<KeyId>,
}

impl Drop for Cleaner<'_> {
    fn drop(&mut self) {
        if let Some(id) = self.id {
            // The first poll hands the order to the store's writer; the rest would only wait for it.
            let deletion = pin!(self.store.delete_provider_key(id, None));
            let _ordered = deletion.poll(&mut Context::from_waker(Waker::noop()));
        }
    }
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

async fn set_status(
    state: &ControlState,
    caller: &Caller,
    id: &str,
    headers: &HeaderMap,
    status: Status,
) -> Result<Response, Problem> {
    let key = find(state, caller, id)?;
    let before = key.standing(state.clock.now()).status;
    let standing = Standing { status, since_ms: Some(state.clock.wall_ms()), ..Standing::default() };
    let expected = expected_version(headers)?.unwrap_or(key.record.version);
    if key.environment && expected != key.record.version {
        let id = RecordId::Key(key.record.id);
        return Err(StoreError::Conflict { id, current: key.record.version }.into());
    }
    let after = match key.environment {
        // It can be forgiven, but only its variable switches it off.
        true if status == Status::Active => key,
        true => stored(state, caller, id)?,
        false => {
            let record = ProviderKey { standing: standing.clone(), ..key.record.clone() };
            state.store.update_provider_key(record, expected, None).await?
        }
    };
    if status == Status::Active {
        after.stats.health.clear();
    }
    if before != status {
        state.store.note_provider_key(&after, Became { standing, before, fresh: true, kept: false });
    }
    Ok(answer(state, &after))
}

pub(super) async fn delete(
    State(state): State<Arc<ControlState>>,
    caller: Caller,
    Path(id): Path<String>,
    headers: HeaderMap,
) -> Result<StatusCode, Problem> {
    let expected = expected_version(&headers)?;
    let id = stored(&state, &caller, &id)?.record.id;
    state.store.delete_provider_key(id, expected).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// A test of a provider key, and the key after it.
#[derive(Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(super) struct TestedKey {
    test: TestResult,
    key: ProviderKeyView,
}

/// Asks the provider, and writes down what it means: a refused key goes to `error`, an accepted one comes back from it.
pub(super) async fn test(
    State(state): State<Arc<ControlState>>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<Json<TestedKey>, Problem> {
    let id = find(&state, &caller, &id)?.record.id;
    let result = (state.tester)(id).await;
    let key = find(&state, &caller, &id.to_string())?;
    apply(&state.store, &key, &result, &state.clock);
    let key = ProviderKeyView::new(&key, &state.clock);
    Ok(Json(TestedKey { test: result, key }))
}

/// Puts in force what a test of a key says. One switched off by hand stays off, and one whose money is gone is not
/// tested by a request that costs nothing.
pub fn apply(store: &Store, key: &ProviderKeyState, result: &TestResult, clock: &Clock) {
    let (now, wall_ms, health) = (clock.now(), clock.wall_ms(), &key.stats.health);
    let before = key.standing(now).status;
    let change = match (before, result.verdict) {
        (Status::Error, Verdict::Accepted) => {
            health.clear();
            let standing = Standing { since_ms: Some(wall_ms), ..Standing::default() };
            Some(Became { standing, before, fresh: true, kept: true })
        }
        (Status::Active | Status::Cooling, Verdict::Rejected)
            if store.take_back(key, &result.detail, Moment { now, wall_ms }) =>
        {
            None
        }
        (Status::Active | Status::Cooling, Verdict::Rejected) => {
            health.struck(Blow::Refused, None, &result.detail, now, wall_ms)
        }
        _ => None,
    };
    if let Some(change) = change {
        store.note_provider_key(key, change);
    }
}

/// The key of this id, also one of the environment.
pub(super) fn find(state: &ControlState, caller: &Caller, id: &str) -> Result<Arc<ProviderKeyState>, Problem> {
    let id = key_id(id)?;
    let found = state.store.snapshot().provider_key(id).cloned();
    let found = found.filter(|key| caller.sees_owner(&key.record.owner));
    found.ok_or_else(|| Problem::not_found(&format!("provider key {id}")))
}

/// The key of this id, when it is in the store.
fn stored(state: &ControlState, caller: &Caller, id: &str) -> Result<Arc<ProviderKeyState>, Problem> {
    let key = find(state, caller, id)?;
    if key.environment {
        let detail = format!("this key comes from the variable {}", key.record.name);
        return Err(
            Problem::new(StatusCode::CONFLICT, "environment", detail).fix("change or unset that variable and restart")
        );
    }
    Ok(key)
}

fn answer(state: &ControlState, key: &ProviderKeyState) -> Response {
    let view = ProviderKeyView::new(key, &state.clock);
    ([(header::ETAG, etag(key.record.version))], Json(view)).into_response()
}

async fn write(
    state: &ControlState,
    headers: &HeaderMap,
    record: ProviderKey,
    secret: Option<Secret>,
) -> Result<Response, Problem> {
    let expected = expected_version(headers)?.unwrap_or(record.version);
    let after = state.store.update_provider_key(record, expected, secret).await?;
    Ok(answer(state, &after))
}
