//! Handing out a real key: what is asked, and what is given.
//!
//! Owns their shapes, which `control` asks in and `proxy` answers in; leaves deciding to `proxy`.

use std::sync::Arc;

use crate::clock::Nanos;
use crate::id::KeySource;
use crate::limit::{Consumption, Moment, Permit};
use crate::provider::Upstream;
use crate::secret::Secret;
use crate::storage::{KeyState, ProviderKeyState};

/// A wish for a real key.
#[derive(Clone, Debug)]
pub struct LeaseWish {
    /// Whose; its pool is what is chosen from.
    pub key: Arc<KeyState>,
    /// Of which provider.
    pub upstream: Arc<Upstream>,
    /// For which model.
    pub model: Option<String>,
    /// What it is thought to consume.
    pub need: Consumption,
    /// When.
    pub at: Moment,
}

/// A real key that is given.
#[derive(Debug)]
pub struct Leased {
    /// Which.
    pub key: Arc<ProviderKeyState>,
    /// The key itself.
    pub secret: Arc<Secret>,
    /// Whose it is.
    pub source: KeySource,
    /// What is reserved for it.
    pub hold: LeaseHold,
}

/// What is reserved for a lease: of the virtual key's limits, and of the provider key's own. Dropped, it stays charged.
#[derive(Debug)]
pub struct LeaseHold {
    /// Of the virtual key's.
    pub permit: Permit,
    /// Of the provider key's, where it has any.
    pub own: Option<Permit>,
}

impl LeaseHold {
    /// Ends it with what was really used.
    pub fn settle(self, now: Nanos, consumed: Consumption) {
        self.permit.settle(now, consumed);
        if let Some(own) = self.own {
            own.settle(now, consumed);
        }
    }

    /// Ends it as if it had never been.
    pub fn refund(self) {
        self.permit.refund();
        if let Some(own) = self.own {
            own.refund();
        }
    }
}
