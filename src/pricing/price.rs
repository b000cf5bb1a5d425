//! A [`Price`]: the rates of one model, and how they change with a long prompt and with the class of service.
//!
//! Owns its text form, which is the same in configuration, files, answers and the store: names of rates with decimals as
//! text, `above` for long prompts, `tiers` for classes of service, `same_as` for the price of another model.

use std::collections::BTreeMap;

use serde::ser::{SerializeMap, Serializer};
use serde::{Deserialize, Serialize};

use super::name::PriceName;
use super::rate::{BadRate, Item, Rate, Rates, Said};
use crate::unit::ServiceTier;

/// What a model costs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(try_from = "SaidPrice")]
pub struct Price {
    /// The standard rates.
    pub rates: Rates,
    /// Other rates for long prompts, the shortest first. What one does not say is as before.
    pub above: Vec<Above>,
    /// Other rates for a class of service. What one does not say is as the standard.
    pub tiers: BTreeMap<ServiceTier, Rates>,
    /// The price is that of another model; then nothing else is said.
    pub same_as: Option<PriceName>,
}

/// Rates that hold once the prompt is long.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "SaidAbove")]
pub struct Above {
    /// The prompt has more tokens than this, cached ones included.
    pub over_input_tokens: u64,
    /// What is different then.
    pub rates: Rates,
}

/// Why something is no price.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadPrice {
    /// A rate that is none.
    #[error("{field}: {error}")]
    Rate {
        /// Which rate.
        field: &'static str,
        /// What is wrong.
        error: BadRate,
    },
    /// Nothing is said.
    #[error("says no rate: one of {}", Item::ALL.map(Item::as_str).join(", "))]
    Empty,
    /// It is not said from where on the rates hold.
    #[error("above: over_input_tokens is missing, the length of prompt from which these rates hold")]
    NoLength,
    /// Two prices in one.
    #[error("same_as is the price of another model, and stands alone")]
    SameAsAndRates,
}

impl Price {
    /// Whether it says something, and one thing.
    ///
    /// # Errors
    /// When it does not.
    pub fn check(&self) -> Result<(), BadPrice> {
        let rates = !self.rates.is_empty() || !self.above.is_empty() || !self.tiers.is_empty();
        match (&self.same_as, rates) {
            (Some(_), true) => Err(BadPrice::SameAsAndRates),
            (None, _) if self.rates.is_empty() => Err(BadPrice::Empty),
            _ => Ok(()),
        }
    }
}

/// The fields of a map of rates, and some more.
macro_rules! said {
    ($name:ident { $($field:ident: $type:ty),* }) => {
        #[derive(Default, Deserialize)]
        #[serde(default, deny_unknown_fields)]
        struct $name {
            input: Option<Said>,
            cached_input: Option<Said>,
            cache_write: Option<Said>,
            cache_write_1h: Option<Said>,
            output: Option<Said>,
            reasoning: Option<Said>,
            audio_input: Option<Said>,
            audio_output: Option<Said>,
            image_input: Option<Said>,
            image_output: Option<Said>,
            cached_audio_input: Option<Said>,
            cached_image_input: Option<Said>,
            per_request: Option<Said>,
            per_search: Option<Said>,
            per_image: Option<Said>,
            per_second: Option<Said>,
            $($field: $type,)*
        }

        impl $name {
            fn rates(&self) -> Result<Rates, BadPrice> {
                rates([
                    &self.input,
                    &self.cached_input,
                    &self.cache_write,
                    &self.cache_write_1h,
                    &self.output,
                    &self.reasoning,
                    &self.audio_input,
                    &self.audio_output,
                    &self.image_input,
                    &self.image_output,
                    &self.cached_audio_input,
                    &self.cached_image_input,
                    &self.per_request,
                    &self.per_search,
                    &self.per_image,
                    &self.per_second,
                ])
            }
        }
    };
}

said!(SaidPrice { above: Vec<Above>, tiers: BTreeMap<ServiceTier, Rates>, same_as: Option<PriceName> });
said!(SaidAbove { over_input_tokens: Option<u64> });
said!(SaidRates {});

/// The rates said, in the order of [`Item::ALL`].
fn rates(said: [&Option<Said>; Item::COUNT]) -> Result<Rates, BadPrice> {
    let mut rates = Rates::default();
    for (item, said) in Item::ALL.into_iter().zip(said) {
        if let Some(Said(text)) = said {
            rates[item] =
                Some(Rate::parse(item, text).map_err(|error| BadPrice::Rate { field: item.as_str(), error })?);
        }
    }
    Ok(rates)
}

impl TryFrom<SaidPrice> for Price {
    type Error = BadPrice;

    fn try_from(said: SaidPrice) -> Result<Self, BadPrice> {
        let rates = said.rates()?;
        let SaidPrice { mut above, tiers, same_as, .. } = said;
        above.sort_by_key(|above| above.over_input_tokens);
        let price = Self { rates, above, tiers, same_as };
        price.check().map(|()| price)
    }
}

impl TryFrom<SaidAbove> for Above {
    type Error = BadPrice;

    fn try_from(said: SaidAbove) -> Result<Self, BadPrice> {
        Ok(Self { over_input_tokens: said.over_input_tokens.ok_or(BadPrice::NoLength)?, rates: said.rates()? })
    }
}

impl<'de> Deserialize<'de> for Rates {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        SaidRates::deserialize(deserializer)?.rates().map_err(serde::de::Error::custom)
    }
}

impl Serialize for Price {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        put(&mut map, &self.rates)?;
        if !self.above.is_empty() {
            map.serialize_entry("above", &self.above)?;
        }
        if !self.tiers.is_empty() {
            map.serialize_entry("tiers", &self.tiers)?;
        }
        if let Some(name) = &self.same_as {
            map.serialize_entry("same_as", name)?;
        }
        map.end()
    }
}

impl Serialize for Above {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("over_input_tokens", &self.over_input_tokens)?;
        put(&mut map, &self.rates)?;
        map.end()
    }
}

impl Serialize for Rates {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        put(&mut map, self)?;
        map.end()
    }
}

fn put<M: SerializeMap>(map: &mut M, rates: &Rates) -> Result<(), M::Error> {
    rates.iter().try_for_each(|(item, rate)| map.serialize_entry(item.as_str(), &rate.format(item)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_back() {
        for text in [
            r#"{"input":"0.15","output":"0.6"}"#,
            r#"{"per_request":"0.005"}"#,
            r#"{"input":"3","cached_input":"0.3","output":"15","above":[{"over_input_tokens":200000,"input":"6","output":"22.5"}],"tiers":{"batch":{"input":"1.5"},"flex":{"output":"7.5"}}}"#,
            r#"{"same_as":"openai/gpt-4o"}"#,
        ] {
            let price: Price = serde_json::from_str(text).unwrap();
            assert_eq!(serde_json::to_string(&price).unwrap(), text);
        }
        let whole: Price = serde_json::from_str(r#"{"input":3}"#).unwrap();
        assert_eq!(whole.rates[Item::Input], Some(Rate::new(3_000_000_000)));
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (text, want) in [
            (r#"{"input":0.15}"#, "a price is exact: write it as text, \"0.15\""),
            (r#"{"output":"1,5"}"#, "output: \"1,5\" is not a price: write dollars as a decimal, as in \"0.15\""),
            (r#"{"imput":"1"}"#, "unknown field `imput`, expected one of `input`, `cached_input`"),
            (r#"{}"#, "says no rate: one of input, cached_input,"),
            (r#"{"same_as":"openai/gpt-4o","input":"1"}"#, "same_as is the price of another model, and stands alone"),
            (r#"{"same_as":"gpt-4o"}"#, "\"gpt-4o\" names no model: write provider/model"),
            (r#"{"input":"1","above":[{"input":"2"}]}"#, "above: over_input_tokens is missing"),
            (r#"{"input":"1","tiers":{"slow":{"input":"2"}}}"#, "unknown variant `slow`, expected one of `batch`"),
        ] {
            let error = serde_json::from_str::<Price>(text).unwrap_err().to_string();
            assert!(error.starts_with(want), "{text}: {error}");
        }
    }
}
