//! `/api/users` and `/api/teams`: what a user or a team may use, whatever keys they hold.
//!
//! Owns what may be said of one; leaves making users and teams to whoever names them on a key, for they are only names.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use axum::Json;
use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use http::{HeaderMap, StatusCode, header};
use serde::{Deserialize, Serialize};

use crate::control::body::Tell;
use crate::control::caller::Caller;
use crate::control::named::ListQuery;
use crate::control::policy::{With, bare, globs, said};
use crate::control::problem::{Asked, Problem, check_name};
use crate::control::routes::{Least, Table};
use crate::control::view::{SharedView, keys_by_scope};
use crate::control::{ControlState, Page, etag, expected_version, page};
use crate::id::ScopeId;
use crate::limit::Moment;
use crate::owner::OwnerPolicy;
use crate::policy::Policy;
use crate::storage::{Kind, RecordId, ScopeState, Snapshot, StoreError, scopes_of};

/// Makes a scope of an id: a user's, or a team's.
type Make = fn(Arc<str>) -> ScopeId;

/// What is said of a user or a team: an absent field keeps its value, null takes it away.
#[derive(Debug, Default, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema), schemars(rename = "HolderWish"))]
#[serde(default, deny_unknown_fields)]
pub(super) struct Wish {
    /// Globs of models their keys may ask for; null, or `*`, is all.
    #[serde(deserialize_with = "said")]
    models: Option<Option<Vec<String>>>,
    #[serde(deserialize_with = "said")]
    description: Option<Option<String>>,
}

/// A user or a team, and how it stands. Version 0 is one without a policy.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema), schemars(rename = "Holder"))]
pub(super) struct OwnerView {
    id: String,
    models: Vec<String>,
    /// What all of its keys may use together.
    #[serde(flatten)]
    policy: Policy,
    description: String,
    #[serde(flatten)]
    used: SharedView,
    version: u64,
}

impl OwnerView {
    fn new(snapshot: &Snapshot, keys: &HashMap<ScopeId, usize>, scope: &ScopeId, at: Moment) -> Self {
        let (OwnerPolicy { models, policy, description, .. }, version) = record(snapshot, scope);
        let used = SharedView::new(snapshot, keys, scope, at);
        Self { id: bare(scope), models, policy, description, used, version }
    }
}

/// One page of users, by id.
#[derive(Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(super) struct UserList {
    users: Vec<OwnerView>,
    next_cursor: Option<String>,
}

/// One page of teams, by id.
#[derive(Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(super) struct TeamList {
    teams: Vec<OwnerView>,
    next_cursor: Option<String>,
}

/// Adds the routes of users, or of teams: `at` is `/api/` and the name of the list.
pub(super) fn routes(table: Table, at: &'static str, make: Make, read: Least, write: Least) -> Table {
    let list = move |state, caller, query| std::future::ready(list(make, state, &caller, query));
    let show = move |state, caller, Path(id): Path<String>| std::future::ready(show(&make(id.into()), state, &caller));
    let set = move |state, Path(id): Path<String>, headers, body| set(make(id.into()), state, headers, body);
    let delete = move |state, Path(id): Path<String>, headers| delete(make(id.into()), state, headers);
    let one = format!("{at}/{{id}}");
    table.get(at, read, list).get(one.clone(), read, show).patch(one.clone(), write, set).delete(one, write, delete)
}

fn list(
    make: Make,
    State(state): State<Arc<ControlState>>,
    caller: &Caller,
    Asked(query): Asked<ListQuery>,
) -> Result<Response, Problem> {
    let snapshot = state.store.snapshot();
    let known = known(&snapshot, make).into_iter().filter(|scope| sees(caller, scope)).collect();
    let Page { items, next: next_cursor } = page(known, bare, query.cursor, query.limit)?;
    let (keys, now) = (keys_by_scope(&snapshot), Moment::of(&state.clock));
    let views = items.iter().map(|scope| OwnerView::new(&snapshot, &keys, scope, now)).collect();
    Ok(match make("".into()) {
        ScopeId::Team(_) => Json(TeamList { teams: views, next_cursor }).into_response(),
        _ => Json(UserList { users: views, next_cursor }).into_response(),
    })
}

fn show(scope: &ScopeId, State(state): State<Arc<ControlState>>, caller: &Caller) -> Result<Response, Problem> {
    if !sees(caller, scope) {
        return Err(Problem::not_found(&scope.to_string()));
    }
    let snapshot = state.store.snapshot();
    let named = snapshot.virtual_keys().any(|key| scopes_of(&key.record).any(|id| id == *scope));
    if !named && record(&snapshot, scope).1 == 0 && !snapshot.scope(scope).is_some_and(|state| is_used(state)) {
        return Err(Problem::not_found(&scope.to_string()).fix("a policy makes one, or a key that names it"));
    }
    Ok(answer(&state, scope))
}

/// A user sees itself, and no team.
fn sees(caller: &Caller, scope: &ScopeId) -> bool {
    caller.user().is_none_or(|own| matches!(scope, ScopeId::User(id) if **id == *own))
}

/// Makes or changes the policy.
async fn set(
    scope: ScopeId,
    State(state): State<Arc<ControlState>>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, Problem> {
    let With { policy, rest: wish } = With::<Wish>::parse(&headers, &body, Tell::All)?;
    check_name("id", &bare(&scope))?;
    let (mut record, version) = record(&state.store.snapshot(), &scope);
    let expected = expected_version(&headers)?.unwrap_or(version);
    if expected != version {
        let id = RecordId::Named(Kind::Owner, record.owner.into());
        return Err(StoreError::Conflict { id, current: version }.into());
    }
    policy.apply(&mut record.policy)?;
    if let Some(models) = globs(&wish.models)? {
        record.models = models;
    }
    if let Some(description) = wish.description {
        record.description = description.unwrap_or_default();
    }
    state.store.put_named(record, Some(expected)).await?;
    Ok(answer(&state, &scope))
}

/// Takes the policy away; who it was for stays, with what they used.
async fn delete(
    scope: ScopeId,
    State(state): State<Arc<ControlState>>,
    headers: HeaderMap,
) -> Result<StatusCode, Problem> {
    let expected = expected_version(&headers)?;
    if record(&state.store.snapshot(), &scope).1 == 0 {
        return Err(Problem::not_found(&format!("policy of {scope}")));
    }
    state.store.delete_named::<OwnerPolicy>(&owner(&scope), expected).await?;
    Ok(StatusCode::NO_CONTENT)
}

fn answer(state: &ControlState, scope: &ScopeId) -> Response {
    let snapshot = state.store.snapshot();
    let view = OwnerView::new(&snapshot, &keys_by_scope(&snapshot), scope, Moment::of(&state.clock));
    ([(header::ETAG, etag(view.version))], Json(view)).into_response()
}

/// Its policy and that one's version; an empty one of version 0 when it has none.
fn record(snapshot: &Snapshot, scope: &ScopeId) -> (OwnerPolicy, u64) {
    let owner = owner(scope);
    match snapshot.named::<OwnerPolicy>(&owner) {
        Some((record, version)) => ((*record).clone(), version),
        None => (OwnerPolicy { owner, ..OwnerPolicy::default() }, 0),
    }
}

/// The name of its policy, as [`crate::id::Owner`] is written.
fn owner(scope: &ScopeId) -> String {
    format!("{}:{}", scope.kind(), bare(scope))
}

/// Those that have a policy, that a key names, or that have used something, by id.
fn known(snapshot: &Snapshot, make: Make) -> BTreeSet<ScopeId> {
    let prefix = owner(&make("".into()));
    let records = snapshot.all_named::<OwnerPolicy>();
    let with_policy = records.filter_map(|(record, _)| Some(make(record.owner.strip_prefix(&prefix)?.into())));
    let with_key = snapshot.virtual_keys().flat_map(|key| scopes_of(&key.record));
    let with_use = snapshot.shared_scopes().filter(|state| is_used(state)).map(|state| state.scope.id().clone());
    let all = with_policy.chain(with_key).chain(with_use);
    all.filter(|scope| prefix.starts_with(scope.kind())).collect()
}

fn is_used(state: &ScopeState) -> bool {
    state.stats.total_requests.load(Ordering::Relaxed) > 0
}
