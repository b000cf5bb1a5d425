//! `/api/plans`: named bundles of what virtual keys may do.
//!
//! Owns what may be said of one; leaves attaching it to `keys`, and who needs it to `storage`.

use std::collections::HashMap;
use std::sync::Arc;

use axum::Json;
use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use http::{HeaderMap, StatusCode, header};
use serde::{Deserialize, Serialize};

use crate::control::body::Tell;
use crate::control::named::{self, ListQuery};
use crate::control::policy::{PolicyWish, With, globs, said};
use crate::control::problem::{Asked, Problem};
use crate::control::view::{SharedView, keys_by_scope};
use crate::control::{ControlState, Page, encoded, etag, expected_version, page};
use crate::id::ScopeId;
use crate::limit::Moment;
use crate::plan::Plan;
use crate::policy::Policy;
use crate::provider::Registry;
use crate::route::Routes;
use crate::storage::Snapshot;

/// What is said of a plan, at its making and at a change: an absent field keeps its value, null takes it away.
#[derive(Debug, Default, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema), schemars(rename = "PlanWish"))]
#[serde(default, deny_unknown_fields)]
pub(super) struct Wish {
    /// What virtual keys name it by; cannot change.
    #[cfg_attr(test, schemars(length(min = 1, max = 128)))]
    name: Option<String>,
    /// Globs of models its keys may ask for; null, or `*`, is all.
    #[serde(deserialize_with = "said")]
    models: Option<Option<Vec<String>>>,
    /// What names of models mean to its keys.
    #[serde(deserialize_with = "said")]
    routes: Option<Option<Routes>>,
    /// What all of its keys may use together.
    #[serde(deserialize_with = "said")]
    shared: Option<Option<PolicyWish>>,
    #[serde(deserialize_with = "said")]
    description: Option<Option<String>>,
}

/// A plan, and how it stands.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema), schemars(rename = "Plan"))]
pub(super) struct PlanView {
    name: String,
    models: Vec<String>,
    /// What names of models mean to its keys.
    routes: Routes,
    /// What each of its keys may use.
    #[serde(flatten)]
    policy: Policy,
    /// What all of its keys may use together; `in_force` says how that stands.
    shared: Policy,
    description: String,
    #[serde(flatten)]
    used: SharedView,
    version: u64,
}

impl PlanView {
    fn new(snapshot: &Snapshot, keys: &HashMap<ScopeId, usize>, plan: &Plan, version: u64, at: Moment) -> Self {
        let used = SharedView::new(snapshot, keys, &ScopeId::Plan(plan.name.as_str().into()), at);
        let Plan { name, models, routes, policy, shared, description } = plan.clone();
        Self { name, models, routes, policy, shared, description, used, version }
    }
}

/// One page of plans, by name.
#[derive(Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(super) struct PlanList {
    plans: Vec<PlanView>,
    next_cursor: Option<String>,
}

pub(super) async fn list(
    State(state): State<Arc<ControlState>>,
    Asked(query): Asked<ListQuery>,
) -> Result<Json<PlanList>, Problem> {
    let snapshot = state.store.snapshot();
    let plans: Vec<(Arc<Plan>, u64)> = snapshot.all_named::<Plan>().collect();
    let Page { items, next } = page(plans, |(plan, _)| plan.name.clone(), query.cursor, query.limit)?;
    let (keys, at) = (keys_by_scope(&snapshot), Moment::of(&state.clock));
    let view = |(plan, version): &(Arc<Plan>, u64)| PlanView::new(&snapshot, &keys, plan, *version, at);
    Ok(Json(PlanList { plans: items.iter().map(view).collect(), next_cursor: next }))
}

pub(super) async fn create(
    State(state): State<Arc<ControlState>>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, Problem> {
    let wish = With::<Wish>::parse(&headers, &body, Tell::All)?;
    let name = named::new_name(wish.rest.name.as_ref())?;
    let location = format!("/api/plans/{}", encoded(&name));
    let mut plan = Plan { name, ..Plan::default() };
    apply(&wish, &mut plan, &state.registry.get())?;
    let (plan, version) = state.store.put_named(plan, Some(0)).await?;
    let made = answer(&state, &plan, version);
    Ok((StatusCode::CREATED, [(header::LOCATION, location)], made).into_response())
}

pub(super) async fn show(
    State(state): State<Arc<ControlState>>,
    Path(name): Path<String>,
) -> Result<Response, Problem> {
    let (plan, version) = named::find::<Plan>(&state, &name)?;
    Ok(answer(&state, &plan, version))
}

pub(super) async fn update(
    State(state): State<Arc<ControlState>>,
    Path(name): Path<String>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, Problem> {
    let wish = With::<Wish>::parse(&headers, &body, Tell::All)?;
    if wish.rest.name.as_ref().is_some_and(|said| *said != name) {
        return Err(Problem::invalid("name", "cannot change: keys name their plan by it").fix("make a new plan"));
    }
    let (before, version) = named::find::<Plan>(&state, &name)?;
    let expected = expected_version(&headers)?.unwrap_or(version);
    let mut plan = (*before).clone();
    apply(&wish, &mut plan, &state.registry.get())?;
    let (plan, version) = state.store.put_named(plan, Some(expected)).await?;
    Ok(answer(&state, &plan, version))
}

fn answer(state: &ControlState, plan: &Plan, version: u64) -> Response {
    let snapshot = state.store.snapshot();
    let view = PlanView::new(&snapshot, &keys_by_scope(&snapshot), plan, version, Moment::of(&state.clock));
    ([(header::ETAG, etag(version))], Json(view)).into_response()
}

/// Writes what was said into `plan`.
fn apply(With { policy, rest: wish }: &With<Wish>, plan: &mut Plan, registry: &Registry) -> Result<(), Problem> {
    policy.apply(&mut plan.policy)?;
    match &wish.shared {
        None => {}
        Some(None) => plan.shared = Policy::default(),
        Some(Some(shared)) => shared.apply(&mut plan.shared).map_err(|problem| problem.within("shared"))?,
    }
    if let Some(routes) = &wish.routes {
        let routes = routes.clone().unwrap_or_default();
        if let Some(fault) = registry.route_faults(&routes).first() {
            return Err(Problem::invalid("routes", fault.to_string()).fix("correct the route, and send all of them"));
        }
        plan.routes = routes;
    }
    if let Some(models) = globs(&wish.models)? {
        plan.models = models;
    }
    if let Some(description) = &wish.description {
        plan.description = description.clone().unwrap_or_default();
    }
    Ok(())
}
