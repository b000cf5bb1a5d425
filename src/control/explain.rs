//! `/api/explain`: what would become of a request, and why, without sending it or charging for it.
//!
//! Owns the question as it is asked and the answer as it is shown; leaves deciding to the [`super::Explainer`].

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use serde::{Deserialize, Serialize};

use crate::clock::rfc3339;
use crate::control::caller::Caller;
use crate::control::policy::{Figure, LimitView, bare};
use crate::control::problem::{Asked, Problem};
use crate::control::{ControlState, keys};
use crate::explain::{Explanation, Question, RouteTaken};
use crate::id::{KeyId, KeySource, Owner};
use crate::limit::{Kind, Report};
use crate::provider::Endpoint;
use crate::storage::KeyState;
use crate::unit::usd;

#[derive(Debug, Default, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub(super) struct ExplainQuery {
    /// The virtual key, by its id.
    #[cfg_attr(test, schemars(with = "KeyId", required))]
    key: String,
    model: Option<String>,
    provider: Option<String>,
    endpoint: Option<String>,
    input_tokens: u64,
    max_tokens: Option<u64>,
}

/// The answer.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema), schemars(rename = "Explanation"))]
pub(super) struct ExplainView {
    /// `admitted` or `refused`.
    #[cfg_attr(test, schemars(extend("enum" = ["admitted", "refused"])))]
    would_be: &'static str,
    /// What the client would be told.
    #[serde(skip_serializing_if = "Option::is_none")]
    refusal: Option<RefusalView>,
    key: KeyPart,
    /// The route that leads it there.
    route: Option<RouteView>,
    /// Whom it leads to.
    provider: Option<String>,
    endpoint: Option<&'static str>,
    model: Option<String>,
    /// What the lists say, each by itself.
    lists: Vec<ListView>,
    /// Provider keys in the order in which they would be tried.
    provider_keys: Vec<PayingView>,
    estimate: EstimateView,
    /// Every limit the request counts for.
    limits: Vec<WouldView>,
}

#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema), schemars(rename = "Refusal"))]
pub(super) struct RefusalView {
    /// In the client's dialect.
    status: u16,
    code: &'static str,
    message: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    retry_after_ms: Option<u64>,
}

#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema), schemars(rename = "ExplainedKey"))]
pub(super) struct KeyPart {
    id: KeyId,
    name: String,
    #[cfg_attr(test, schemars(with = "crate::control::keys::Shown"))]
    status: &'static str,
    user: Option<String>,
    team: Option<String>,
    plan: Option<String>,
    /// Why it would not be accepted.
    rejection: Option<&'static str>,
}

/// A list that narrows something; an empty one is everything.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema), schemars(rename = "ExplainedList"))]
pub(super) struct ListView {
    /// `provider`, `endpoint` or `model`.
    of: &'static str,
    /// Whose list: `key`, `plan`, `user` or `team`.
    scope: &'static str,
    scope_id: String,
    allows: bool,
    list: Vec<String>,
}

#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema), schemars(rename = "ExplainedRoute"))]
pub(super) struct RouteView {
    /// The model's name or glob that it is for.
    model: String,
    /// `plan` or `config`.
    of: &'static str,
    /// In the order in which they would be tried.
    targets: Vec<TargetView>,
}

#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema), schemars(rename = "ExplainedTarget"))]
pub(super) struct TargetView {
    provider: String,
    /// The model's name there; null is the one that was asked for.
    model: Option<String>,
    /// Targets of one order share.
    order: usize,
    /// Of how many requests how many, `3/4`.
    share: String,
    /// Why it would be passed over; null when it would not.
    passed_over: Option<String>,
}

#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema), schemars(rename = "PayingKey"))]
pub(super) struct PayingView {
    id: KeyId,
    name: String,
    masked: String,
    owner: Owner,
    /// The tier.
    source: KeySource,
    environment: bool,
}

/// What the request is thought to consume.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema), schemars(rename = "Estimate"))]
pub(super) struct EstimateView {
    input: u64,
    output: u64,
    /// Dollars, a decimal string; null when the model has no price.
    cost_usd: Option<String>,
}

/// A limit, and what it would say to the request.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema), schemars(rename = "ExplainedLimit"))]
pub(super) struct WouldView {
    #[serde(flatten)]
    limit: LimitView,
    needed: Figure,
    would_refuse: bool,
    /// When there is room again if nobody else comes first; null when there is room, or waiting does not help.
    #[cfg_attr(test, schemars(extend("format" = "date-time")))]
    frees_at: Option<String>,
    /// Why it would refuse.
    reason: Option<String>,
}

pub(super) async fn explain(
    State(state): State<Arc<ControlState>>,
    caller: Caller,
    Asked(query): Asked<ExplainQuery>,
) -> Result<Json<ExplainView>, Problem> {
    if query.key.is_empty() {
        return Err(Problem::invalid("key", "is missing").fix("name a virtual key by its id"));
    }
    let endpoint = query.endpoint.as_deref().map(str::parse::<Endpoint>).transpose();
    let question = Question {
        key: keys::find(&state, &caller, &query.key)?,
        model: query.model,
        provider: query.provider,
        endpoint: endpoint.map_err(|error| {
            Problem::invalid("endpoint", error.to_string()).fix("name an endpoint such as chat, or leave it out")
        })?,
        input_tokens: query.input_tokens,
        max_tokens: query.max_tokens,
    };
    let explanation = (state.explainer)(&question);
    Ok(Json(ExplainView::new(&question.key, explanation, state.clock.wall_ms())))
}

impl ExplainView {
    fn new(key: &KeyState, explanation: Explanation, now: u64) -> Self {
        let Explanation { rejection, route, upstream, endpoint, model, provider_keys, need, priced, limits, refusal } =
            explanation;
        let record = &key.record;
        Self {
            would_be: if refusal.is_some() { "refused" } else { "admitted" },
            refusal: refusal.map(|(status, refusal)| RefusalView {
                status: status.as_u16(),
                code: refusal.kind.code(),
                retry_after_ms: refusal.retry_ms(),
                message: refusal.message,
            }),
            key: KeyPart {
                id: record.id,
                name: record.name.clone(),
                status: record.status_word(now),
                user: record.user.clone(),
                team: record.team.clone(),
                plan: record.plan.clone(),
                rejection: rejection.map(|rejection| rejection.as_str()),
            },
            route: route.map(RouteView::from),
            lists: lists(key, upstream.as_ref().map(|upstream| &*upstream.id), endpoint, model.as_deref()),
            provider: upstream.map(|upstream| upstream.id.to_string()),
            endpoint: endpoint.map(Endpoint::as_str),
            model,
            provider_keys: provider_keys
                .into_iter()
                .map(|(state, source)| PayingView {
                    id: state.record.id,
                    name: state.record.name.clone(),
                    masked: state.record.masked.clone(),
                    owner: state.record.owner.clone(),
                    source,
                    environment: state.environment,
                })
                .collect(),
            estimate: EstimateView {
                input: need.input,
                output: need.output,
                cost_usd: priced.then(|| usd(need.nano_usd)),
            },
            limits: limits.iter().map(|report| WouldView::new(report, now)).collect(),
        }
    }
}

impl From<RouteTaken> for RouteView {
    fn from(route: RouteTaken) -> Self {
        let targets = route.targets.into_iter().map(|taken| TargetView {
            provider: taken.target.provider,
            model: taken.target.model,
            order: taken.order,
            share: format!("{}/{}", taken.share.0, taken.share.1),
            passed_over: taken.passed,
        });
        Self { model: route.pattern, of: if route.of_plan { "plan" } else { "config" }, targets: targets.collect() }
    }
}

/// The lists that there are, and what each says to the request.
fn lists(key: &KeyState, provider: Option<&str>, endpoint: Option<Endpoint>, model: Option<&str>) -> Vec<ListView> {
    let record = &key.record;
    let own = |of, allows, list: &[String]| ListView {
        of,
        scope: "key",
        scope_id: record.id.to_string(),
        allows,
        list: list.to_vec(),
    };
    let mut lists = Vec::new();
    if !record.providers.is_empty() {
        let allows = provider.is_some_and(|provider| record.allows_provider(provider));
        lists.push(own("provider", allows, &record.providers));
    }
    if !record.endpoints.is_empty() {
        let allows = endpoint.is_some_and(|endpoint| record.names_endpoint(endpoint.as_str()));
        lists.push(own("endpoint", allows, &record.endpoints));
    }
    lists.extend(key.models.iter().map(|list| ListView {
        of: "model",
        scope: list.of.kind(),
        scope_id: bare(&list.of),
        allows: model.is_some_and(|model| list.allows(model)),
        list: list.globs.clone(),
    }));
    lists
}

impl WouldView {
    fn new(report: &Report, now: u64) -> Self {
        let refusal = report.refusal.as_ref();
        let wait = |wait: Duration| now.saturating_add(u64::try_from(wait.as_nanos().div_ceil(1_000_000)).unwrap_or(0));
        let frees = refusal.and_then(|refusal| match refusal.limit {
            Kind::Budget(_) | Kind::Quota(..) if refusal.needed > refusal.value => None,
            Kind::Budget(_) | Kind::Quota(..) => refusal.resets_ms,
            Kind::InFlight | Kind::Rpm | Kind::Tpm => refusal.retry_after.map(wait),
        });
        Self {
            limit: LimitView::from(report),
            needed: Figure::of(report.limit, report.needed),
            would_refuse: refusal.is_some() && !report.shadow,
            frees_at: frees.map(rfc3339),
            reason: refusal.map(ToString::to_string),
        }
    }
}
