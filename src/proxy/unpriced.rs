//! Models that were used and have no price: operators are told of each once.
//!
//! Owns who was told; leaves looking prices up to `pricing`, and refusing to `proxy::admit`.

use std::collections::HashSet;
use std::sync::{Mutex, PoisonError};

use crate::entry::Entry;
use crate::event::{Events, Kind, Severity};
use crate::pricing::PriceName;

/// Models remembered at most: what is called beyond is only counted.
const MODELS: usize = 256;

/// Who was told of which model since the start.
#[derive(Debug)]
pub(super) struct Unpriced {
    events: Events,
    told: Mutex<HashSet<PriceName>>,
}

impl Unpriced {
    pub(super) fn new(events: Events) -> Self {
        Self { events, told: Mutex::default() }
    }

    /// Tells of the entry's model, unless that was done before. Only for one that was served: a name of a client's alone
    /// can be anything.
    pub(super) fn tell(&self, entry: &Entry) {
        let model = entry.model_reported.as_deref().or(entry.model_requested.as_deref());
        let name = model.and_then(|model| format!("{}/{model}", entry.provider).parse::<PriceName>().ok());
        let Some(name) = name.filter(|_| entry.status < 400) else { return };
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if told.len() >= MODELS || !told.insert(name.clone()) {
            return;
        }
        drop(told);
        let message = format!("it has no price, so its requests have no cost; set one: sidekey prices set {name}");
        self.events.emit(Kind::PriceUnknown, Severity::Warning, format!("model {name}"), message);
    }
}
