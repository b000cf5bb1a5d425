//! `/api/prices`: what models cost, where that is said, and how the price of a call is found.
//!
//! Owns the questions and the changes; leaves the table to `pricing` and keeping prices to `storage`.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Json;
use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use http::{HeaderMap, StatusCode, header};
use serde::{Deserialize, Serialize};
use wildmatch::WildMatch;

use crate::control::body::{Tell, parse};
use crate::control::problem::{Asked, Problem};
use crate::control::{ControlState, Page, etag, expected_version, page};
use crate::pricing::{
    ANY, Layer, Overlay, Price, PriceName, PriceRecord, PriceTable, Prices, Resolved, Spelling, Tried, Versioned,
};
use crate::unit::{ServiceTier, Usage, usd};

/// A price as it is said somewhere.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema), schemars(rename = "FiledPrice"))]
pub(super) struct PriceView {
    name: PriceName,
    layer: Layer,
    price_version: Arc<str>,
    price: Price,
}

impl PriceView {
    fn new(name: PriceName, (layer, said): (Layer, Versioned)) -> Self {
        Self { name, layer, price_version: said.version, price: said.price }
    }
}

#[derive(Debug, Default, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub(super) struct ListQuery {
    provider: Option<String>,
    model: Option<String>,
    layer: Option<Layer>,
    limit: Option<usize>,
    cursor: Option<PriceName>,
}

/// One page of prices, by name.
#[derive(Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(super) struct PriceList {
    /// The version of the table that is in the program.
    built_in: &'static str,
    prices: Vec<PriceView>,
    next_cursor: Option<PriceName>,
}

pub(super) async fn list(
    State(state): State<Arc<ControlState>>,
    Asked(query): Asked<ListQuery>,
) -> Result<Json<PriceList>, Problem> {
    let provider = query.provider.map(|name| known_provider(&state, &name)).transpose()?;
    let model = query.model.as_deref().map(WildMatch::new);
    let wanted = |name: &PriceName, layer: Layer| {
        provider.as_deref().is_none_or(|provider| provider == &*name.provider)
            && model.as_ref().is_none_or(|glob| glob.matches(&name.model))
            && query.layer.is_none_or(|wanted| wanted == layer)
    };
    let all = state.store.snapshot().prices().all().into_iter();
    let prices: Vec<(PriceName, (Layer, Versioned))> = all.filter(|(name, (layer, _))| wanted(name, *layer)).collect();
    let Page { items, next } = page(prices, |(name, _)| name.clone(), query.cursor, query.limit)?;
    let prices = items.into_iter().map(|(name, said)| PriceView::new(name, said)).collect();
    Ok(Json(PriceList { built_in: crate::pricing::built_in_version(), prices, next_cursor: next }))
}

pub(super) async fn show(
    State(state): State<Arc<ControlState>>,
    Path(name): Path<String>,
) -> Result<Response, Problem> {
    let name = known_name(&state, &name)?;
    let snapshot = state.store.snapshot();
    let said = snapshot.prices().said(&name).ok_or_else(|| no_price(&name))?;
    let version = snapshot.named::<PriceRecord>(&name.to_string()).map(|(_, version)| version);
    // Version 0 is what was not set here.
    Ok(([(header::ETAG, etag(version.unwrap_or(0)))], Json(PriceView::new(name, said))).into_response())
}

/// Sets one price, over whatever the configuration and the program say of it.
pub(super) async fn put(
    State(state): State<Arc<ControlState>>,
    Path(name): Path<String>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, Problem> {
    let price: Price = parse(&headers, &body, Tell::All)?;
    let name = known_name(&state, &name)?;
    check_same(&state, &BTreeMap::from([(name.clone(), price.clone())]))?;
    let record = PriceRecord { name: name.clone(), price, set_ms: state.clock.wall_ms() };
    let (_, version) = state.store.put_named(record, expected_version(&headers)?).await?;
    let said = state.store.snapshot().prices().said(&name).ok_or_else(|| no_price(&name))?;
    let status = if version == 1 { StatusCode::CREATED } else { StatusCode::OK };
    Ok((status, [(header::ETAG, etag(version))], Json(PriceView::new(name, said))).into_response())
}

/// Takes back what was set here; the configuration's price or the list's counts again.
pub(super) async fn delete(
    State(state): State<Arc<ControlState>>,
    Path(name): Path<String>,
    headers: HeaderMap,
) -> Result<StatusCode, Problem> {
    let name = known_name(&state, &name)?;
    let expected = expected_version(&headers)?;
    let layer = state.store.snapshot().prices().said(&name).map(|(layer, _)| layer);
    match layer {
        Some(Layer::Store) => {}
        Some(layer) => {
            let detail = format!("the price of {name} is from the {} table, and is not set here", layer.as_str());
            return Err(Problem::new(StatusCode::NOT_FOUND, "not_found", detail).fix("set another price over it"));
        }
        None => return Err(no_price(&name)),
    }
    state.store.delete_named::<PriceRecord>(&name.to_string(), expected).await?;
    Ok(StatusCode::NO_CONTENT)
}

#[derive(Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema), schemars(rename = "PriceImport"))]
#[serde(deny_unknown_fields)]
pub(super) struct Import {
    prices: Prices,
}

/// How many prices were set.
#[derive(Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(super) struct Imported {
    imported: usize,
}

/// Sets many. All of them are read before the first is written.
pub(super) async fn import(
    State(state): State<Arc<ControlState>>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Json<Imported>, Problem> {
    let Import { prices } = parse(&headers, &body, Tell::All)?;
    // A list may have providers that are not here, or not yet.
    let own = |(name, price): (PriceName, Price)| (known_name(&state, &name.to_string()).unwrap_or(name), price);
    let prices: Prices = prices.into_iter().map(own).collect();
    check_same(&state, &prices)?;
    let set_ms = state.clock.wall_ms();
    let imported = prices.len();
    let records = prices.into_iter().map(|(name, price)| PriceRecord { name, price, set_ms });
    state.store.put_all_named(records.collect()).await?;
    Ok(Json(Imported { imported }))
}

#[derive(Debug, Default, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub(super) struct ExplainQuery {
    /// The model, alone or as `provider/model`.
    #[cfg_attr(test, schemars(required, length(min = 1)))]
    model: String,
    provider: Option<String>,
    tier: Option<ServiceTier>,
    input_tokens: Option<u64>,
    cached_input_tokens: Option<u64>,
    output_tokens: Option<u64>,
}

/// Under which names a model's price is looked for, what is found, and what a call would cost.
#[derive(Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(super) struct PriceExplanation {
    provider: String,
    model: String,
    found: Option<FoundPrice>,
    /// Dollars, a decimal string; null when nothing was said of the call, or there is no price.
    cost_usd: Option<String>,
    /// Names in the order in which they are looked for.
    tried: Vec<Tried>,
}

/// The price that counts, and where it was found.
#[derive(Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(super) struct FoundPrice {
    name: PriceName,
    layer: Layer,
    price_version: Arc<str>,
    spelling: Spelling,
    /// Names that were the same as the next.
    via: Vec<PriceName>,
    price: Price,
}

impl From<&Resolved> for FoundPrice {
    fn from(found: &Resolved) -> Self {
        let Resolved { price, version, layer, name, spelling, said: _, via } = found.clone();
        Self { name, layer, price_version: version, spelling, via, price }
    }
}

/// Under which names a model's price is looked for, what is found, and what a call would cost.
pub(super) async fn explain(
    State(state): State<Arc<ControlState>>,
    Asked(query): Asked<ExplainQuery>,
) -> Result<Json<PriceExplanation>, Problem> {
    let (provider, model) = whose(&state, query.provider.as_deref(), &query.model)?;
    let snapshot = state.store.snapshot();
    let table: &PriceTable = snapshot.prices();
    let found = table.resolve(&provider, &model);
    let usage = Usage {
        input: query.input_tokens,
        cached_input: query.cached_input_tokens,
        output: query.output_tokens,
        ..Usage::default()
    };
    let cost = found.as_ref().filter(|_| !usage.is_empty()).and_then(|found| found.price.cost(&usage, query.tier));
    let tried = table.tried(&provider, &model);
    let found = found.as_deref().map(FoundPrice::from);
    Ok(Json(PriceExplanation { provider, model, found, cost_usd: cost.map(usd), tried }))
}

/// The provider and the model that were meant: named apart, as `provider/model`, or a model that only one provider has.
fn whose(state: &ControlState, provider: Option<&str>, model: &str) -> Result<(String, String), Problem> {
    if model.is_empty() {
        return Err(Problem::invalid("model", "is missing").fix("name it as provider/model"));
    }
    if let Some(provider) = provider {
        return Ok((known_provider(state, provider)?, model.to_owned()));
    }
    if let Some((provider, model)) = model.split_once('/')
        && let Ok(provider) = known_provider(state, provider)
    {
        return Ok((provider, model.to_owned()));
    }
    let registry = state.registry.get();
    let serving = registry.iter().find(|upstream| upstream.enabled && upstream.serves(model));
    let serving = serving.ok_or_else(|| {
        Problem::invalid("provider", format!("is missing: {model:?} alone does not tell it"))
            .fix("write the model as provider/model, or name the provider")
    })?;
    Ok((serving.id.to_string(), model.to_owned()))
}

/// The id of a provider that is built in or configured, by its id or alias; [`ANY`] stands for all.
fn known_provider(state: &ControlState, name: &str) -> Result<String, Problem> {
    if name == ANY {
        return Ok(name.to_owned());
    }
    let id = state
        .registry
        .get()
        .id_of(name)
        .map_err(|error| Problem::invalid("provider", error.to_string()).fix("name one of /api/providers"))?;
    Ok(id.to_string())
}

fn known_name(state: &ControlState, name: &str) -> Result<PriceName, Problem> {
    let name: PriceName = name.parse().map_err(|error: crate::pricing::BadName| {
        Problem::invalid("name", error.to_string()).fix("write it as openai/gpt-4o")
    })?;
    let provider = known_provider(state, &name.provider).map_err(|problem| problem.field("name"))?;
    Ok(PriceName { provider: provider.into(), ..name })
}

fn no_price(name: &PriceName) -> Problem {
    Problem::not_found(&format!("price of {name}"))
        .fix(format!("ask how it is looked for: sidekey prices explain {name}"))
}

/// Refuses a price that is the same as one that there is not.
fn check_same(state: &ControlState, prices: &Prices) -> Result<(), Problem> {
    let same = |(name, price): (&PriceName, &Price)| Some((name.clone(), price.same_as.clone()?));
    let same: Vec<(PriceName, PriceName)> = prices.iter().filter_map(same).collect();
    if same.is_empty() {
        return Ok(());
    }
    let trial = state.store.snapshot().prices().with_trial(Overlay::hashed("trial", prices.clone()));
    let lost = same.into_iter().find(|(name, _)| trial.resolve(&name.provider, &name.model).is_none());
    match lost {
        Some((name, other)) => Err({
            Problem::invalid("same_as", format!("{name}: there is no price of {other}"))
                .fix("set that price first, or say the rates")
        }),
        None => Ok(()),
    }
}
