//! What recorded entries would cost under other prices.
//!
//! Owns which of the two prices counts; leaves looking prices up to `pricing` and summing to `storage::usage`.

use crate::pricing::{Layer, PriceTable, REPORTED};
use crate::unit::Usage;

use super::block::StoredEntry;

/// The entry with the cost it has by `prices`, and none when they have no price for it.
pub(super) fn repriced<'a>(mut entry: StoredEntry<'a>, prices: &PriceTable) -> StoredEntry<'a> {
    if entry.tokens == Usage::default() && entry.cost_nano_usd.is_none() {
        return entry;
    }
    let found = prices.price(entry.provider, entry.model_reported, entry.model_requested);
    let own = found.as_ref().is_some_and(|found| found.layer != Layer::BuiltIn);
    // What a provider charged goes before a list, as when it was recorded.
    if entry.price_version == Some(REPORTED) && !own {
        return entry;
    }
    entry.cost_nano_usd = found.and_then(|found| found.price.cost(&entry.tokens, entry.service_tier));
    entry
}
