//! Files of prices: our own form, and lists of published prices.
//!
//! Owns what a file may look like. Ours is JSON or TOML, `prices` by name:
//!
//! ```json
//! {"prices": {"openai/gpt-4o": {"input": "2.5", "cached_input": "1.25", "output": "10"}}}
//! ```
//!
//! What `sidekey prices list -o json` prints is read back too. A published list is JSON with `models`, one object each:
//! `provider`, `model`, `mode`, the rates under the names of a [`Price`] (per million tokens) and some in units of their own
//! (`input_per_second`, `output_per_image`, `search_per_query`).

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

use super::rate::{BadRate, Item, Rate, Rates};
use super::{Above, Price, PriceName};
use crate::unit::ServiceTier;

/// Prices by name.
pub type Prices = BTreeMap<PriceName, Price>;

/// Why a file has no prices.
#[derive(Debug, thiserror::Error)]
pub enum BadFile {
    /// Neither JSON nor TOML, or a price that is none.
    #[error("{0}")]
    Form(String),
    /// It has no prices.
    #[error("has neither `prices` nor `models`")]
    Nothing,
    /// A row of a list is none.
    #[error("{name}: {field}: {error}")]
    Row {
        /// Whose row.
        name: String,
        /// Which field.
        field: &'static str,
        /// What is wrong.
        error: BadRate,
    },
}

#[derive(Deserialize)]
struct Document {
    prices: Option<Prices>,
}

#[derive(Deserialize)]
struct Listed {
    prices: Vec<ListedPrice>,
}

#[derive(Deserialize)]
struct ListedPrice {
    name: PriceName,
    price: Price,
}

#[derive(Deserialize)]
struct Published {
    models: Vec<Row>,
}

/// Reads a file of prices.
///
/// # Errors
/// What is wrong, with line and column where there are some.
pub fn read(text: &str) -> Result<Prices, BadFile> {
    let form = |error: &dyn std::fmt::Display| BadFile::Form(error.to_string().trim_end().to_owned());
    if !text.trim_start().starts_with('{') {
        let document: Document = toml::from_str(text).map_err(|error| form(&error))?;
        return document.prices.ok_or(BadFile::Nothing);
    }
    let outline: BTreeMap<String, Value> = serde_json::from_str(text).map_err(|error| form(&error))?;
    let read = |error: serde_json::Error| form(&error);
    match (outline.get("prices"), outline.get("models")) {
        (Some(Value::Array(_)), _) => {
            let listed: Listed = serde_json::from_str(text).map_err(read)?;
            Ok(listed.prices.into_iter().map(|row| (row.name, row.price)).collect())
        }
        (Some(_), _) => {
            let document: Document = serde_json::from_str(text).map_err(read)?;
            document.prices.ok_or(BadFile::Nothing)
        }
        (None, Some(_)) => published(serde_json::from_str::<Published>(text).map_err(read)?.models),
        (None, None) => Err(BadFile::Nothing),
    }
}

/// A row of a published list.
#[derive(Deserialize)]
struct Row {
    provider: String,
    model: String,
    /// The name with the provider's prefix, where it has one.
    key: Option<String>,
    mode: Option<String>,
    /// From which of the list's sources, the newest first.
    #[serde(default)]
    src: u32,
    #[serde(default)]
    above: Vec<BTreeMap<String, Value>>,
    #[serde(default)]
    tiers: BTreeMap<ServiceTier, BTreeMap<String, Value>>,
    #[serde(flatten)]
    rates: BTreeMap<String, Value>,
}

/// Lists that name a provider by another name than we.
const PROVIDERS: [(&str, &str); 3] =
    [("azure", "azure-openai"), ("azure_ai", "azure-openai"), ("together_ai", "together")];

/// Where a model is listed more than once: the name without prefix or with the provider's own before another product's of
/// the same vendor, then the newer source, then the name without prefix.
type Rank = (bool, u32, bool, bool);

fn published(rows: Vec<Row>) -> Result<Prices, BadFile> {
    let mut best: BTreeMap<PriceName, (Rank, Price)> = BTreeMap::new();
    for row in rows {
        let provider =
            PROVIDERS.iter().find(|(theirs, _)| *theirs == row.provider).map_or(&*row.provider, |(_, ours)| ours);
        let Ok(name) = format!("{provider}/{}", row.model).parse::<PriceName>() else { continue };
        if !is_callable(&row.model) {
            continue;
        }
        let price = price(&row).map_err(|(field, error)| BadFile::Row { name: name.to_string(), field, error })?;
        // What is priced by characters, pixels or months is not counted by any answer.
        if price.check().is_err() {
            continue;
        }
        let rank = rank(&row);
        match best.get(&name) {
            Some((known, _)) if *known <= rank => {}
            _ => drop(best.insert(name, (rank, price))),
        }
    }
    Ok(best.into_iter().map(|(name, (_, price))| (name, price)).collect())
}

/// Sizes of pictures and terms of contract are written before some names: nobody calls a model by these.
fn is_callable(model: &str) -> bool {
    !model.ends_with('/') && !model.contains("-x-") && !model.contains("-commitment/")
}

fn rank(row: &Row) -> Rank {
    let prefix = row.key.as_deref().and_then(|key| key.strip_suffix(&*row.model));
    let own = [format!("{}/", row.provider), format!("{}_ai/", row.provider)];
    let foreign = prefix.is_some_and(|prefix| !own.iter().any(|own| own == prefix));
    (foreign, row.src, row.provider == "azure_ai", row.key.is_some())
}

type Fault = (&'static str, BadRate);

fn price(row: &Row) -> Result<Price, Fault> {
    let mut rates = tokens(&row.rates)?;
    let mut take = |item: Item, field: &'static str| -> Result<(), Fault> {
        if let Some(text) = row.rates.get(field).and_then(Value::as_str)
            && rates[item].is_none()
        {
            rates[item] = Some(Rate::parse(item, text).map_err(|error| (field, error))?);
        }
        Ok(())
    };
    take(Item::PerRequest, "per_request")?;
    // By the size of the search it is an object: which size was asked is not in an answer.
    take(Item::PerSearch, "search_per_query")?;
    let mode = row.mode.as_deref().unwrap_or_default();
    if mode == "image" {
        take(Item::PerImage, "output_per_image")?;
        if !row.rates.contains_key("input") {
            take(Item::PerImage, "input_per_image")?;
        }
    }
    if matches!(mode, "realtime" | "transcription") {
        // One price of a duration, said twice.
        take(Item::PerSecond, "input_per_second")?;
        take(Item::PerSecond, "output_per_second")?;
    }
    let mut price = Price { rates, ..Price::default() };
    for above in &row.above {
        if let Some(over) = above.get("over_input_tokens").and_then(Value::as_u64) {
            price.above.push(Above { over_input_tokens: over, rates: tokens(above)? });
        }
    }
    price.above.sort_by_key(|above| above.over_input_tokens);
    for (tier, said) in &row.tiers {
        price.tiers.insert(*tier, tokens(said)?);
    }
    Ok(price)
}

/// The rates of tokens. One of reasoning that is the output's says nothing of its own.
fn tokens(said: &BTreeMap<String, Value>) -> Result<Rates, Fault> {
    let mut rates = Rates::default();
    for item in Item::ALL.into_iter().filter(|item| item.is_tokens()) {
        if let Some(text) = said.get(item.as_str()).and_then(Value::as_str) {
            rates[item] = Some(Rate::parse(item, text).map_err(|error| (item.as_str(), error))?);
        }
    }
    if rates[Item::Reasoning] == rates[Item::Output] {
        rates[Item::Reasoning] = None;
    }
    Ok(rates)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms_of_files() {
        let want = r#"{"openai/gpt-4o":{"input":"2.5","output":"10"}}"#;
        for text in [
            r#"{"prices": {"openai/gpt-4o": {"input": "2.50", "output": "10"}}}"#,
            r#" {"version": "mine", "prices": [{"name": "openai/gpt-4o", "layer": "store", "price": {"input": "2.5", "output": "10"}}]}"#,
            "[prices.\"openai/gpt-4o\"]\ninput = \"2.5\"\noutput = 10\n",
            r#"{"about": "a list", "models": [{"provider": "openai", "model": "gpt-4o", "mode": "chat", "input": "2.5", "output": "10", "reasoning": "10", "src": 0, "context_window": 128000}]}"#,
        ] {
            assert_eq!(serde_json::to_string(&read(text).unwrap()).unwrap(), want, "{text}");
        }
        for (text, want) in [
            ("{}", "has neither `prices` nor `models`"),
            ("x = 1", "has neither `prices` nor `models`"),
            ("{", "EOF while parsing an object at line 1 column 1"),
            (r#"{"prices": {"gpt-4o": {"input": "1"}}}"#, "\"gpt-4o\" names no model"),
            (r#"{"prices": {"openai/x": {"input": "a"}}}"#, "input: \"a\" is not a price"),
            (
                r#"{"models": [{"provider": "p", "model": "m", "input": "1.2.3"}]}"#,
                "p/m: input: \"1.2.3\" is not a price",
            ),
        ] {
            let error = read(text).unwrap_err().to_string();
            assert!(error.starts_with(want), "{text}: {error}");
        }
    }

    #[test]
    fn rows_of_a_list() {
        let read = |rows: &str| serde_json::to_string(&read(&format!(r#"{{"models": [{rows}]}}"#)).unwrap()).unwrap();
        for (name, rows, want) in [
            (
                "another name of the provider",
                r#"{"provider":"together_ai","model":"a/b","mode":"chat","input":"1"}"#,
                r#"{"together/a/b":{"input":"1"}}"#,
            ),
            (
                "a duration said twice",
                r#"{"provider":"p","model":"w","mode":"transcription","input_per_second":"0.1","output_per_second":"0.1"}"#,
                r#"{"p/w":{"per_second":"0.1"}}"#,
            ),
            (
                "a picture",
                r#"{"provider":"p","model":"d","mode":"image","input_per_image":"0.04"}"#,
                r#"{"p/d":{"per_image":"0.04"}}"#,
            ),
            (
                "a picture read",
                r#"{"provider":"p","model":"d","mode":"chat","input":"1","input_per_image":"0.04"}"#,
                r#"{"p/d":{"input":"1"}}"#,
            ),
            ("characters", r#"{"provider":"p","model":"d","mode":"speech","input_per_character":"0.04"}"#, "{}"),
            (
                "searches by size",
                r#"{"provider":"p","model":"d","mode":"chat","input":"1","search_per_query":{"low":"1"}}"#,
                r#"{"p/d":{"input":"1"}}"#,
            ),
            (
                "searches",
                r#"{"provider":"p","model":"d","mode":"chat","input":"1","search_per_query":"0.01"}"#,
                r#"{"p/d":{"input":"1","per_search":"0.01"}}"#,
            ),
            ("sizes", r#"{"provider":"p","model":"hd/1024-x-1024/d","mode":"image","input_per_image":"0.04"}"#, "{}"),
            (
                "the same twice: without prefix",
                r#"{"provider":"p","model":"d","key":"p/d","input":"1","src":0},{"provider":"p","model":"d","input":"2","src":0}"#,
                r#"{"p/d":{"input":"2"}}"#,
            ),
            (
                "the same twice: the newer source",
                r#"{"provider":"vertex","model":"d","key":"vertex_ai/d","input":"1","src":0},{"provider":"vertex","model":"d","input":"2","src":1}"#,
                r#"{"vertex/d":{"input":"1"}}"#,
            ),
            (
                "the same twice: not another product",
                r#"{"provider":"mistral","model":"d","key":"codestral/d","input":"0","src":0},{"provider":"mistral","model":"d","key":"mistral/d","input":"2","src":1}"#,
                r#"{"mistral/d":{"input":"2"}}"#,
            ),
            (
                "long prompts and classes",
                r#"{"provider":"p","model":"d","input":"1","output":"2","above":[{"over_input_tokens":5,"input":"3"}],"tiers":{"flex":{"output":"1"}}}"#,
                r#"{"p/d":{"input":"1","output":"2","above":[{"over_input_tokens":5,"input":"3"}],"tiers":{"flex":{"output":"1"}}}}"#,
            ),
        ] {
            assert_eq!(read(rows), want, "{name}");
        }
    }
}
