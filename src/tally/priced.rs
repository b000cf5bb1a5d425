//! Prices recorded provider traffic, and compares with a calculation of its own from the published list and from what
//! each exchange really consumed.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Value;

use super::transcripts::{Exchange, exchanges, folder};
use crate::pricing::{Layer, PriceTable, Spelling};
use crate::unit::Usage;

/// A published list, beside the recordings.
struct List(Vec<Value>);

impl List {
    fn read(recordings: &Path) -> Self {
        let text = std::fs::read_to_string(recordings.join("../prices.json")).unwrap();
        let mut list: Value = serde_json::from_str(&text).unwrap();
        Self(list["models"].as_array_mut().unwrap().drain(..).collect())
    }

    /// Rows of this model, as the list names it.
    fn rows(&self, provider: &str, model: &str) -> Vec<&Value> {
        let theirs: &[&str] = match provider {
            "azure-openai" => &["azure", "azure_ai"],
            "together" => &["together_ai"],
            other => &[other],
        };
        let found = |row: &&Value| theirs.iter().any(|name| row["provider"] == **name) && row["model"] == *model;
        self.0.iter().filter(found).collect()
    }
}

/// The decimal's value in units of its twelfth place.
fn twelfths(text: &str) -> u128 {
    let (whole, places) = text.split_once('.').unwrap_or((text, ""));
    assert!(places.len() <= 12, "{text}");
    format!("{whole}{places:0<12}").parse().unwrap()
}

/// The row's rate of this name: from the long prompt's rates when they hold, else the common one.
fn rate(row: &Value, usage: &Usage, names: &[&str]) -> Option<u128> {
    let long = row["above"]
        .as_array()
        .into_iter()
        .flatten()
        .filter(|above| usage.input.unwrap_or(0) > above["over_input_tokens"].as_u64().unwrap());
    let longest = long.max_by_key(|above| above["over_input_tokens"].as_u64());
    let said = |name: &&str| longest.and_then(|above| above[*name].as_str()).or_else(|| row[*name].as_str());
    names.iter().find_map(said).map(twelfths)
}

/// What the list says a call costs, by its six figures and those of the finer ones that recordings have, in nano-USD; `None` when it does not say.
///
/// A rate is dollars for a million tokens in units of 10^-12, so 10^-18 dollars a token.
fn by_hand(row: &Value, usage: &Usage) -> Option<u64> {
    let (input, output) = (usage.input.unwrap_or(0), usage.output.unwrap_or(0));
    // Some answers were edited, and their parts are more than the whole.
    let cached = usage.cached_input.unwrap_or(0).min(input);
    let written = usage.cache_write.unwrap_or(0).min(input - cached);
    let written_1h = usage.cache_write_1h.unwrap_or(0).min(written);
    let text = input - cached - written;
    let heard = usage.audio_input.unwrap_or(0).saturating_sub(usage.cached_audio_input.unwrap_or(0)).min(text);
    let seen = usage.image_input.unwrap_or(0).saturating_sub(usage.cached_image_input.unwrap_or(0)).min(text - heard);
    let reasoning = usage.reasoning.unwrap_or(0).min(output);
    let mut total = 0_u128;
    for (tokens, names) in [
        (text - heard - seen, &["input"][..]),
        (heard, &["audio_input", "input"]),
        (seen, &["image_input", "input"]),
        (cached, &["cached_input", "input"]),
        (written - written_1h, &["cache_write", "input"]),
        (written_1h, &["cache_write_1h", "cache_write", "input"]),
        (output - reasoning, &["output", "image_output", "audio_output"]),
        (reasoning, &["reasoning", "output"]),
    ] {
        if tokens > 0 {
            total += u128::from(tokens) * rate(row, usage, names)?;
        }
    }
    if let Some(fee) = row["per_request"].as_str() {
        total += twelfths(fee) * 1_000_000;
    }
    if let Some(fee) = row["search_per_query"].as_str() {
        total += u128::from(usage.searches.unwrap_or(0)) * twelfths(fee) * 1_000_000;
    }
    Some(u64::try_from((total + 500_000_000) / 1_000_000_000).unwrap())
}

/// The provider's id in sidekey.
fn provider(exchange: &Exchange) -> &str {
    if exchange.provider == "azure" { "azure-openai" } else { &exchange.provider }
}

#[test]
fn every_priced_exchange_costs_what_the_list_says() {
    let (Some(exchanges), Some(folder)) = (exchanges(), folder()) else { return };
    let (list, table) = (List::read(&folder), PriceTable::default());
    let mut spelled: BTreeMap<&str, u32> = BTreeMap::new();
    let (mut unpriced, mut wrong) = (BTreeMap::<String, u32>::new(), Vec::new());
    for exchange in exchanges.iter().filter(|exchange| !exchange.expected[0].is_empty()) {
        let (provider, usage) = (provider(exchange), exchange.expected[0]);
        let (reported, requested) = (exchange.model_reported.as_deref(), exchange.model_requested.as_deref());
        let Some(found) = table.price(provider, reported, requested) else {
            for model in [reported, requested].into_iter().flatten() {
                assert!(
                    list.rows(provider, model).iter().all(|row| by_hand(row, &usage).is_none()),
                    "{provider}/{model}"
                );
            }
            *unpriced.entry(provider.to_owned()).or_default() += 1;
            continue;
        };
        assert_eq!(found.layer, Layer::BuiltIn);
        // A name that the list has is used as it is.
        let known = [reported, requested].into_iter().flatten().find(|model| !list.rows(provider, model).is_empty());
        if let Some(known) = known.filter(|_| found.spelling == Spelling::Exact) {
            assert_eq!(&*found.name.model, known, "{}", exchange.id);
        }
        let rows = list.rows(&found.name.provider, &found.name.model);
        let want: Vec<Option<u64>> = rows.iter().map(|row| by_hand(row, &usage)).collect();
        let cost = found.price.cost(&usage, None);
        let tally = exchange.replay(&exchange.headers, &exchange.body, usize::MAX);
        let finer: Vec<Option<u64>> = rows.iter().map(|row| by_hand(row, &tally.usage)).collect();
        let counted = found.price.cost(&tally.usage, tally.service_tier);
        assert!(finer.contains(&counted), "{}: {counted:?}, want one of {finer:?}", exchange.id);
        if counted != cost {
            println!("{}: {cost:?}, with its finer figures {counted:?}", exchange.id);
        }
        if want.contains(&cost) {
            *spelled.entry(found.spelling.as_str()).or_default() += 1;
        } else {
            wrong.push(format!("{}: {} {cost:?}, want one of {want:?}", exchange.id, found.name));
        }
    }
    println!("priced, by the spelling of the model: {spelled:?}; without a price: {unpriced:?}");
    assert!(wrong.is_empty(), "{}:\n{}", wrong.len(), wrong.join("\n"));
    assert!(spelled.values().sum::<u32>() > 300, "{spelled:?}");
}
