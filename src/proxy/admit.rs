//! Room for one request: the estimate, and the permit that holds it.
//!
//! Owns the estimate; leaves the decision to `limit`.

use std::sync::Arc;

use http::Method;

use crate::limit::{Consumption, Moment, Permit};
use crate::policy::Otherwise;
use crate::pricing::{Expected, PriceTable, Resolved};
use crate::provider::{Asked, Call, Endpoint};
use crate::proxy::authenticate::Caller;
use crate::proxy::error::Error;
use crate::storage::{EntryPlace, Ledger};
use crate::tally::Wire;

/// Output reserved where the request sets no bound, until answers have shown how long they are: more than most have, so
/// that parallel requests seldom overdraw; settlement returns what was too much.
const DEFAULT_OUTPUT: u64 = 512;

/// Bytes of a second of sound in a file of unknown form: twice what speech needs in a good one, half of what music has.
const SOUND_BYTES_PER_S: u64 = 8_000;
/// Tokens of a second of sound, as OpenAI and Google count it to within a few; what is said in one is fewer.
const SOUND_TOKENS_PER_S: u64 = 32;
/// Tokens of the sound that a token of text makes when it is spoken.
const SPOKEN: u64 = 6;

/// A request as far as what it will consume rests on it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asks<'a> {
    pub(super) method: &'a Method,
    pub(super) call: &'a Call<'a>,
    pub(super) asked: &'a Asked,
    /// Its size in tokens, as if it were text.
    pub(super) input: u64,
}

impl Asks<'_> {
    /// The sound that is sent, milliseconds.
    fn audio_ms(&self) -> u64 {
        match self.call.endpoint {
            Endpoint::Audio => self.input.saturating_mul(4 * 1000) / SOUND_BYTES_PER_S,
            _ => 0,
        }
    }

    /// What it is thought to consume of what is counted in tokens; nothing for calls that consume nothing.
    pub(super) fn estimate(&self, caller: &Caller, model: Option<&str>) -> Consumption {
        let wire = self.call.wire;
        if wire == Wire::None {
            return Consumption::default();
        }
        let learned = || caller.key().zip(model).and_then(|(key, model)| key.outputs.expected(model));
        let output =
            if wire.has_output() { self.asked.max_output.or_else(learned).unwrap_or(DEFAULT_OUTPUT) } else { 0 };
        match self.audio_ms() {
            0 => Consumption::tokens(self.input, output),
            ms => Consumption::tokens(ms.saturating_mul(SOUND_TOKENS_PER_S).div_ceil(1000), output),
        }
    }

    /// The same of a call that is known by its endpoint alone: a session is not estimated.
    pub(super) fn planned(&self, caller: &Caller, model: Option<&str>) -> Consumption {
        match self.call.endpoint {
            Endpoint::Realtime => session(),
            _ => self.estimate(caller, model),
        }
    }

    /// What has a price of it.
    fn expected(&self, estimate: &Consumption) -> Expected {
        let Consumption { input, output, .. } = *estimate;
        let of_text = Expected { input, output, ..Expected::default() };
        match self.call.endpoint {
            Endpoint::Images => Expected { images: self.asked.count.unwrap_or(1).max(1), ..of_text },
            Endpoint::Speech => Expected { output: input.saturating_mul(SPOKEN), ..of_text },
            // What is heard is written down.
            Endpoint::Audio => Expected { output: input, audio_ms: self.audio_ms(), ..of_text },
            _ => of_text,
        }
    }
}

/// What is reserved for a session: what it will consume shows only as it goes; one token, so that a debt keeps it out.
pub(super) fn session() -> Consumption {
    Consumption::tokens(1, 0)
}

/// The estimate with what it costs, and the price it costs that by, where there is one.
///
/// # Errors
/// When the caller has a budget, and nobody knows what the model, or what is asked for, costs.
pub(super) fn price(
    estimate: Consumption,
    asks: Asks<'_>,
    caller: &Caller,
    (provider, model): (&str, Option<&str>),
    prices: &PriceTable,
) -> Result<(Consumption, Option<Arc<Resolved>>), Error> {
    let denies = caller.key().is_some_and(|key| key.unpriced == Otherwise::Deny);
    if denies && asks.call.costs_unseen(asks.method) {
        return Err(Error::Uncounted { provider: provider.to_owned(), endpoint: asks.call.endpoint });
    }
    if asks.call.wire == Wire::None {
        return Ok((estimate, None));
    }
    if let Some(found) = model.and_then(|model| prices.resolve(provider, model)) {
        let nano_usd = found.price.estimate(&asks.expected(&estimate), None);
        return Ok((Consumption { nano_usd, ..estimate }, Some(found)));
    }
    if denies {
        let model = model.unwrap_or("of an unknown name").to_owned();
        return Err(Error::Unpriced { provider: provider.to_owned(), model });
    }
    Ok((estimate, None))
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
