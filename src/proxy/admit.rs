//! Room for one request: the estimate, and the permit that holds it.
//!
//! Owns the estimate; leaves the decision to `limit`.

use std::sync::Arc;

use crate::limit::{Consumption, Moment, Permit};
use crate::policy::Otherwise;
use crate::pricing::{PriceTable, Resolved};
use crate::provider::Asked;
use crate::proxy::authenticate::Caller;
use crate::proxy::error::Error;
use crate::storage::{EntryPlace, Ledger};
use crate::tally::Wire;

/// Output reserved where the request sets no bound, until answers have shown how long they are: more than most have, so
/// that parallel requests seldom overdraw; settlement returns what was too much.
const DEFAULT_OUTPUT: u64 = 512;

/// What a request is thought to consume, by what was read of it; nothing for calls that consume nothing.
pub(super) fn estimate(wire: Wire, input: u64, asked: &Asked, caller: &Caller, model: Option<&str>) -> Consumption {
    if wire == Wire::None {
        return Consumption::default();
    }
    let learned = || caller.key().zip(model).and_then(|(key, model)| key.outputs.expected(model));
    let output = if wire.has_output() { asked.max_output.or_else(learned).unwrap_or(DEFAULT_OUTPUT) } else { 0 };
    Consumption::tokens(input, output)
}

/// What is reserved for a session: what it will consume shows only as it goes; one token, so that a debt keeps it out.
pub(super) fn session() -> Consumption {
    Consumption::tokens(1, 0)
}

/// The estimate with what it costs, and the price it costs that by, where there is one.
///
/// # Errors
/// When the caller has a budget, and nobody knows what the model costs.
pub(super) fn price(
    estimate: Consumption,
    wire: Wire,
    caller: &Caller,
    (provider, model): (&str, Option<&str>),
    prices: &PriceTable,
) -> Result<(Consumption, Option<Arc<Resolved>>), Error> {
    if wire == Wire::None {
        return Ok((estimate, None));
    }
    if let Some(found) = model.and_then(|model| prices.resolve(provider, model)) {
        let nano_usd = found.price.estimate(estimate.input, estimate.output, None);
        return Ok((Consumption { nano_usd, ..estimate }, Some(found)));
    }
    match caller.key() {
        Some(key) if key.unpriced == Otherwise::Deny => Err(Error::Unpriced {
            provider: provider.to_owned(),
            model: model.unwrap_or("of an unknown name").to_owned(),
        }),
        _ => Ok((estimate, None)),
    }
}

/// Reserves the estimate on every limit of the caller, or nothing.
pub(super) fn admit(caller: &Caller, estimate: Consumption, at: Moment) -> Result<Option<Permit>, Error> {
    let Some(key) = caller.key() else { return Ok(None) };
    Ok(Some(Permit::reserve(Arc::clone(&key.scopes), at, estimate)?))
}

/// Room in the ledger for the request's entry: kept for it where the caller must not be served unrecorded.
pub(super) fn place(caller: &Caller, ledger: &Ledger) -> Result<EntryPlace, Error> {
    match caller.key() {
        Some(key) if key.unrecorded == Otherwise::Deny => {
            ledger.promise().map_err(|full| Error::Unrecorded(full.to_string()))
        }
        _ => Ok(ledger.place()),
    }
}
