//! Virtual keys that nobody is to use, laid out to be found: who uses one has been where they should not.
//!
//! Owns telling of it, not too often; leaves knowing such a key to `virtual_key`, and refusing to `proxy::error`.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};

use crate::clock::{Clock, Nanos};
use crate::event::{Events, Kind, Severity};
use crate::id::KeyId;
use crate::virtual_key::VirtualKey;

/// One key is told of no sooner than after this.
const AGAIN: Nanos = 60_000_000_000;
/// Keys remembered at most; of others each use is told.
const KEYS_MAX: usize = 1024;

/// Who was told of which.
#[derive(Debug)]
pub(super) struct Canaries {
    events: Events,
    clock: Clock,
    /// When each was told last, and its uses since.
    told: Mutex<HashMap<KeyId, (Nanos, u64)>>,
}

impl Canaries {
    pub(super) fn new(events: Events, clock: Clock) -> Self {
        Self { events, clock, told: Mutex::default() }
    }

    /// Tells of a use.
    #[cold]
    pub(super) fn used(&self, key: &VirtualKey, peer: IpAddr) {
        let now = self.clock.now();
        let before = {
            let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
            if told.len() >= KEYS_MAX {
                told.retain(|_, (at, _)| now.saturating_sub(*at) < AGAIN);
            }
            match told.get_mut(&key.id) {
                Some((at, uses)) if now.saturating_sub(*at) < AGAIN => {
                    *uses += 1;
                    return;
                }
                known => {
                    let uses = known.map_or(0, |(_, uses)| *uses);
                    told.insert(key.id, (now, 0));
                    uses
                }
            }
        };
        let more = if before == 0 { String::new() } else { format!(", and {before} times since it was last told") };
        let message = format!("the canary key {:?} was used from {}{more}", key.name, peer.to_canonical());
        self.events.emit(Kind::KeyCanary, Severity::Error, format!("key {}", key.id), message);
    }
}
