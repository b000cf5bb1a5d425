//! One try with one provider key: what it holds of the key, and what the key is told of how it went.
//!
//! Owns the end of a try, however it comes about; leaves choosing the key to `select` and sending to `forward`.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::clock::Nanos;
use crate::entry::Entry;
use crate::id::KeySource;
use crate::limit::{Consumption, Moment, Permit, Refused};
use crate::provider::{Action, Meaning};
use crate::provider_key::{Blow, Change, ModelTag, Room};
use crate::proxy::settle::Books;
use crate::secret::Secret;
use crate::storage::ProviderKeyState;

/// Why a key that was chosen is not used.
#[derive(Debug)]
pub(super) enum Passed {
    /// Its own limits have no room.
    Limited(Box<Refused>),
    /// Somebody else's probe is out.
    Probed,
}

/// A try with a key. Dropped, it gives back what it holds, and says nothing of the key.
#[derive(Debug)]
pub(super) struct Attempt {
    pub(super) key: Arc<ProviderKeyState>,
    pub(super) secret: Arc<Secret>,
    pub(super) source: KeySource,
    tag: ModelTag,
    /// It alone shows whether the key's provider is well again.
    probe: bool,
    /// What it holds of the key's own limits; given back whole unless the request is sent.
    permit: Option<Permit>,
    is_sent: bool,
}

impl Attempt {
    /// Counts a request that is thought to need so much in on a key that was chosen.
    ///
    /// # Errors
    /// [`Passed`] when the key cannot serve it after all.
    pub(super) fn begin(
        key: &Arc<ProviderKeyState>,
        secret: Arc<Secret>,
        at: Moment,
        tag: ModelTag,
        need: Consumption,
    ) -> Result<Self, Passed> {
        let health = &key.stats.health;
        let permit = match key.scope.is_unlimited() {
            true => None,
            false => Some(Permit::reserve(Arc::clone(&key.scopes), at, need).map_err(Passed::Limited)?),
        };
        let Some(probe) = health.enter(at.now) else {
            if let Some(permit) = permit {
                permit.refund();
            }
            return Err(Passed::Probed);
        };
        health.learned.take(at.now, tag, need.total);
        let source = key.record.owner.source();
        Ok(Self { key: Arc::clone(key), secret, source, tag, probe, permit, is_sent: false })
    }

    /// The key itself, to be handed out in place of a request, with what is reserved of its own limits.
    pub(super) fn leased(mut self) -> (Arc<ProviderKeyState>, Arc<Secret>, KeySource, Option<Permit>) {
        (Arc::clone(&self.key), Arc::clone(&self.secret), self.source, self.permit.take())
    }

    /// The request goes out: from now on it counts for the key, and unless it is settled as one that consumed nothing.
    pub(super) fn sent(&mut self, now: Nanos) {
        if let Some(permit) = &mut self.permit {
            permit.charge(now, Consumption::default());
        }
        self.key.stats.uses.fetch_add(1, Ordering::Relaxed);
        self.is_sent = true;
    }

    /// Takes what the provider says is left of the key's limits.
    pub(super) fn learn(&self, room: Room, now: Nanos) {
        self.key.stats.health.learned.note(now, self.tag, room);
    }

    /// Tells the key what its provider's answer means: at once in memory, so that no later request chooses otherwise.
    pub(super) fn judged(&self, meaning: &Meaning, books: &Books) {
        let health = &self.key.stats.health;
        let (now, wall_ms) = (books.clock.now(), books.clock.wall_ms());
        let blow = match meaning.action {
            Action::Cool => Blow::Cool,
            Action::Exhausted => Blow::Exhausted,
            Action::Forbidden => Blow::Forbidden,
            Action::Overloaded => Blow::Fault,
            Action::Refused => Blow::Refused,
            Action::Elsewhere => return,
            Action::ModelExhausted => {
                let wait = meaning.wait.map_or(0, |wait| Nanos::try_from(wait.as_nanos()).unwrap_or(Nanos::MAX));
                return health.learned.rest(self.tag, now.saturating_add(wait));
            }
            Action::Relay => {
                if let Some(replaced) = &self.key.replaced {
                    replaced.note_proven();
                }
                return self.note(health.succeeded(now, wall_ms), books);
            }
        };
        // A key that was rotated meanwhile is another one.
        let same = self.key.secret.load().as_ref().is_some_and(|secret| Arc::ptr_eq(secret, &self.secret));
        if (same || !self.is_replaced(books)) && !self.takes_back(blow, &meaning.reason, books, Moment { now, wall_ms })
        {
            self.note(health.struck(blow, meaning.wait, &meaning.reason, now, wall_ms), books);
        }
    }

    /// Takes back the rotation that brought a secret which is refused now.
    fn takes_back(&self, blow: Blow, why: &str, books: &Books, at: Moment) -> bool {
        let refused = match (blow, &self.key.replaced) {
            (Blow::Refused, Some(_)) => true,
            // Once the provider has taken it, this is about what was asked for.
            (Blow::Forbidden, Some(replaced)) => !replaced.is_proven(),
            _ => false,
        };
        refused && books.store.take_back(&self.key, why, at)
    }

    /// True when another secret stands where this one came from.
    fn is_replaced(&self, books: &Books) -> bool {
        let snapshot = books.store.snapshot();
        let secret = snapshot.provider_key(self.key.record.id).and_then(|key| key.secret.load_full());
        secret.is_none_or(|secret| secret != self.secret)
    }

    fn note(&self, change: Option<Change>, books: &Books) {
        if let Some(change) = change {
            books.store.note_provider_key(&self.key, change);
        }
    }

    /// The end, now, of the request that this try was the last of.
    pub(super) fn settle(mut self, entry: &Entry, (now, consumed): (Nanos, Consumption), broke: bool, books: &Books) {
        if let Some(permit) = self.permit.take_if(|_| self.is_sent) {
            permit.settle(now, consumed);
        }
        if broke {
            // Its head was good, the rest was not.
            self.judged(&Meaning::unreachable("the answer broke off"), books);
        }
        if self.key.environment && entry.status < 400 {
            self.key.stats.used.touch(entry.time_ms);
        }
    }
}

impl Drop for Attempt {
    fn drop(&mut self) {
        self.key.stats.health.leave(self.probe);
        if let Some(permit) = self.permit.take_if(|_| !self.is_sent) {
            permit.refund();
        }
    }
}
