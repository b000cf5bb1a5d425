//! What can be typed of prices.
//!
//! Owns names, flags and help, as `args` does for the other commands, and rates as they are typed.

use std::path::PathBuf;
use std::str::FromStr;

use clap::{Args, Subcommand, ValueEnum};
use serde_json::{Map, Value, json};

use crate::config::nearest;
use crate::pricing::{Item, PriceName, Rate};
use crate::unit::ServiceTier;

/// `sidekey prices`.
#[derive(Debug, Subcommand)]
pub enum PricesCommand {
    /// What models cost: the list in the program under the configuration's prices and those set here
    #[command(alias = "ls")]
    List(PriceList),
    /// What is said under exactly this name
    Show(PriceRef),
    /// Says how a model's price is found, and what a call would cost
    Explain(PriceExplain),
    /// Sets the price of a model, over what the configuration and the list say
    Set(PriceSet),
    /// Sets all prices of a file: TOML or JSON with `prices` by name, what `prices list -o json` prints, or a published list
    Import {
        /// The file; - is standard input
        file: PathBuf,
    },
    /// Takes back what was set; the configuration's price or the list's counts again
    Delete(PriceRef),
}

/// A price, by name.
#[derive(Args, Clone, Debug)]
pub struct PriceRef {
    /// provider/model, or */model for every provider
    pub name: PriceName,
}

/// `sidekey prices list`.
#[derive(Args, Clone, Debug)]
pub struct PriceList {
    /// Only this provider's
    #[arg(long)]
    pub provider: Option<String>,
    /// Only models this glob matches
    #[arg(long, value_name = "GLOB")]
    pub model: Option<String>,
    /// Only what is said there
    #[arg(long, value_enum)]
    pub layer: Option<LayerArg>,
}

/// Where a price is said.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LayerArg {
    /// Set here: prices set, prices import
    Store,
    /// In the configuration
    Config,
    /// In the program
    BuiltIn,
}

/// `sidekey prices explain`.
#[derive(Args, Clone, Debug)]
pub struct PriceExplain {
    /// The model as requests or answers name it; provider/model where the provider is not said
    pub model: String,
    /// The provider it is called at
    #[arg(long)]
    pub provider: Option<String>,
    /// Prices a call of so many tokens in
    #[arg(long, value_name = "N")]
    pub input_tokens: Option<u64>,
    /// Of which so many come from a cache
    #[arg(long, value_name = "N")]
    pub cached_input_tokens: Option<u64>,
    /// And so many out
    #[arg(long, value_name = "N")]
    pub output_tokens: Option<u64>,
}

/// `sidekey prices set`.
#[derive(Args, Clone, Debug)]
pub struct PriceSet {
    /// provider/model, or */model for every provider
    pub name: PriceName,
    /// Dollars per million tokens, as input=2.5 output=10 cached_input=1.25; batch.input=1.25 for a class of service,
    /// above.200000.input=5 for longer prompts; per_request, per_search, per_image and per_second in dollars each;
    /// or same_as=provider/model
    #[arg(required = true, value_name = "RATE=DOLLARS")]
    pub rates: Vec<SaidRate>,
}

/// One rate as it is typed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SaidRate {
    when: When,
    what: String,
    value: String,
}

/// When a rate holds.
#[derive(Clone, Debug, PartialEq, Eq)]
enum When {
    /// Unless something else is said.
    Always,
    /// For a prompt of more tokens.
    Above(u64),
    /// In this class of service.
    In(ServiceTier),
}

impl FromStr for SaidRate {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, value) = text.split_once('=').ok_or("write RATE=DOLLARS, as input=2.5")?;
        if name == "same_as" {
            value.parse::<PriceName>().map_err(|error| error.to_string())?;
            return Ok(Self { when: When::Always, what: name.to_owned(), value: value.to_owned() });
        }
        let (when, what) = match name.rsplit_once('.') {
            None => (When::Always, name),
            Some((when, what)) => (parse_when(when)?, what),
        };
        let item = Item::of_name(what).ok_or_else(|| unknown(what))?;
        Rate::parse(item, value).map_err(|error| error.to_string())?;
        Ok(Self { when, what: what.to_owned(), value: value.to_owned() })
    }
}

fn parse_when(text: &str) -> Result<When, String> {
    if let Some(tokens) = text.strip_prefix("above.") {
        let tokens = tokens.parse().map_err(|_| format!("{tokens:?} is no number of tokens"))?;
        return Ok(When::Above(tokens));
    }
    let tier = ServiceTier::ALL.into_iter().find(|tier| tier.as_str() == text);
    tier.map(When::In)
        .ok_or_else(|| format!("{text:?} is neither a class of service (batch, flex, priority) nor above.N"))
}

fn unknown(rate: &str) -> String {
    let known = Item::ALL.map(Item::as_str);
    match nearest(rate, known) {
        Some(right) => format!("there is no rate {rate:?}; did you mean {right}?"),
        None => format!("there is no rate {rate:?}; there are {}", known.join(", ")),
    }
}

/// The price that these rates make, as the API takes it.
#[must_use]
pub fn price(rates: &[SaidRate]) -> Value {
    let mut price = Map::new();
    let mut above: Vec<Value> = Vec::new();
    for SaidRate { when, what, value } in rates {
        match when {
            When::Always => drop(price.insert(what.clone(), json!(value))),
            When::In(tier) => {
                price.entry("tiers").or_insert_with(|| json!({}))[tier.as_str()][what] = json!(value);
            }
            When::Above(tokens) => match above.iter_mut().find(|one| one["over_input_tokens"] == *tokens) {
                Some(one) => one[what] = json!(value),
                None => above.push(json!({"over_input_tokens": tokens, what.as_str(): value})),
            },
        }
    }
    if !above.is_empty() {
        price.insert("above".to_owned(), Value::Array(above));
    }
    Value::Object(price)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pricing::Price;

    #[test]
    fn rates_as_they_are_typed() {
        let typed = "input=2.50 output=10 batch.input=1.25 batch.output=5 above.200000.input=5 above.9.input=3 above.9.output=4";
        let rates: Vec<SaidRate> = typed.split(' ').map(|text| text.parse().unwrap()).collect();
        let price: Price = serde_json::from_value(price(&rates)).unwrap();
        let want = r#"{"input":"2.5","output":"10","above":[{"over_input_tokens":9,"input":"3","output":"4"},{"over_input_tokens":200000,"input":"5"}],"tiers":{"batch":{"input":"1.25","output":"5"}}}"#;
        assert_eq!(serde_json::to_string(&price).unwrap(), want);
        let same: SaidRate = "same_as=openai/gpt-4o".parse().unwrap();
        assert_eq!(super::price(&[same]), json!({"same_as": "openai/gpt-4o"}));
    }

    #[test]
    fn what_is_no_rate_is_told() {
        for (text, want) in [
            ("input", "write RATE=DOLLARS"),
            ("imput=1", "there is no rate \"imput\"; did you mean input?"),
            ("input=-1", "\"-1\" is not a price"),
            ("input=$1", "\"$1\" is not a price"),
            ("slow.input=1", "\"slow\" is neither a class of service"),
            ("above.x.input=1", "\"x\" is no number of tokens"),
            ("same_as=gpt-4o", "\"gpt-4o\" names no model"),
        ] {
            let error = text.parse::<SaidRate>().unwrap_err();
            assert!(error.starts_with(want), "{text}: {error}");
        }
    }
}
