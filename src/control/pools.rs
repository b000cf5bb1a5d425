//! `/api/pools`: named sets of provider keys, and who goes first among them.
//!
//! Owns what may be said of one; leaves attaching it to `keys`, and who needs it to `storage`.

use std::sync::Arc;

use axum::Json;
use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use http::{HeaderMap, StatusCode, header};
use serde::{Deserialize, Serialize};

use crate::clock::Nanos;
use crate::control::body::{Tell, parse};
use crate::control::named::{self, ListQuery};
use crate::control::problem::{Asked, Problem};
use crate::control::{ControlState, Page, encoded, etag, expected_version, page};
use crate::id::{KeyId, Owner};
use crate::pool::{Pool, PoolPolicy};
use crate::storage::Snapshot;

/// Keys of one pool at most: choosing looks at each of them.
const KEYS_MAX: usize = 1_000;

/// What is said of a pool, at its making and at a change: an absent field keeps its value.
#[derive(Debug, Default, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema), schemars(rename = "PoolWish"))]
#[serde(default, deny_unknown_fields)]
pub(super) struct Wish {
    /// What virtual keys name it by; cannot change.
    #[cfg_attr(test, schemars(length(min = 1, max = 128)))]
    name: Option<String>,
    /// Its provider keys, of any provider.
    keys: Option<Vec<KeyId>>,
    /// Who goes first among equals.
    policy: Option<PoolPolicy>,
    /// Whether requests that begin alike go to one key.
    sticky: Option<bool>,
}

/// A pool, and how its keys stand.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema), schemars(rename = "Pool"))]
pub(super) struct PoolView {
    name: String,
    policy: PoolPolicy,
    sticky: bool,
    keys: Vec<Member>,
    /// Virtual keys that are bound to it.
    virtual_keys: usize,
    version: u64,
}

#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema), schemars(rename = "PoolMember"))]
pub(super) struct Member {
    id: KeyId,
    provider: String,
    name: String,
    owner: Owner,
    #[cfg_attr(test, schemars(with = "crate::provider_key::Status"))]
    status: &'static str,
}

impl PoolView {
    /// Keys that are no more are left out.
    fn new(snapshot: &Snapshot, pool: &Pool, version: u64, now: Nanos) -> Self {
        let members = pool.keys.iter().filter_map(|id| snapshot.provider_key(*id)).map(|key| Member {
            id: key.record.id,
            provider: key.record.provider.clone(),
            name: key.record.name.clone(),
            owner: key.record.owner.clone(),
            status: key.standing(now).status.as_str(),
        });
        let bound = snapshot.virtual_keys().filter(|key| key.record.pool.as_deref() == Some(&*pool.name));
        Self {
            name: pool.name.clone(),
            policy: pool.policy,
            sticky: pool.sticky,
            keys: members.collect(),
            virtual_keys: bound.count(),
            version,
        }
    }
}

/// One page of pools, by name.
#[derive(Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(super) struct PoolList {
    pools: Vec<PoolView>,
    next_cursor: Option<String>,
}

pub(super) async fn list(
    State(state): State<Arc<ControlState>>,
    Asked(query): Asked<ListQuery>,
) -> Result<Json<PoolList>, Problem> {
    let snapshot = state.store.snapshot();
    let pools: Vec<(Arc<Pool>, u64)> = snapshot.all_named::<Pool>().collect();
    let Page { items, next } = page(pools, |(pool, _)| pool.name.clone(), query.cursor, query.limit)?;
    let now = state.clock.now();
    let view = |(pool, version): &(Arc<Pool>, u64)| PoolView::new(&snapshot, pool, *version, now);
    Ok(Json(PoolList { pools: items.iter().map(view).collect(), next_cursor: next }))
}

pub(super) async fn create(
    State(state): State<Arc<ControlState>>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, Problem> {
    let wish: Wish = parse(&headers, &body, Tell::All)?;
    let name = named::new_name(wish.name.as_ref())?;
    let location = format!("/api/pools/{}", encoded(&name));
    let mut pool = Pool { name, ..Pool::default() };
    apply(&state, wish, &mut pool)?;
    let (pool, version) = state.store.put_named(pool, Some(0)).await?;
    Ok((StatusCode::CREATED, [(header::LOCATION, location)], answer(&state, &pool, version)).into_response())
}

pub(super) async fn show(
    State(state): State<Arc<ControlState>>,
    Path(name): Path<String>,
) -> Result<Response, Problem> {
    let (pool, version) = named::find::<Pool>(&state, &name)?;
    Ok(answer(&state, &pool, version))
}

pub(super) async fn update(
    State(state): State<Arc<ControlState>>,
    Path(name): Path<String>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, Problem> {
    let wish: Wish = parse(&headers, &body, Tell::All)?;
    if wish.name.as_ref().is_some_and(|said| *said != name) {
        return Err(Problem::invalid("name", "cannot change: keys name their pool by it").fix("make a new pool"));
    }
    let (before, version) = named::find::<Pool>(&state, &name)?;
    let expected = expected_version(&headers)?.unwrap_or(version);
    let mut pool = (*before).clone();
    apply(&state, wish, &mut pool)?;
    let (pool, version) = state.store.put_named(pool, Some(expected)).await?;
    Ok(answer(&state, &pool, version))
}

fn answer(state: &ControlState, pool: &Pool, version: u64) -> Response {
    let view = PoolView::new(&state.store.snapshot(), pool, version, state.clock.now());
    ([(header::ETAG, etag(version))], Json(view)).into_response()
}

/// Writes what was said into `pool`.
fn apply(state: &ControlState, wish: Wish, pool: &mut Pool) -> Result<(), Problem> {
    if let Some(mut keys) = wish.keys {
        let snapshot = state.store.snapshot();
        if let Some(id) = keys.iter().find(|id| snapshot.provider_key(**id).is_none()) {
            return Err(Problem::invalid("keys", format!("there is no provider key {id}"))
                .fix("list those there are: sidekey provider-key list"));
        }
        keys.sort_unstable();
        keys.dedup();
        if keys.len() > KEYS_MAX {
            return Err(Problem::invalid("keys", format!("a pool has at most {KEYS_MAX} keys"))
                .fix("make another pool of the rest"));
        }
        pool.keys = keys;
    }
    pool.policy = wish.policy.unwrap_or(pool.policy);
    pool.sticky = wish.sticky.unwrap_or(pool.sticky);
    Ok(())
}
