//! [`Permit`]: what one admitted request holds of all the scopes it counts for, given back exactly once.
//!
//! Owns taking from several scopes or from none, and the end of a reservation; leaves each scope's part to
//! [`Scope`].

use std::sync::Arc;

use super::amount::{Consumption, Held};
use super::report::Report;
use super::scope::{Scope, Settlement};
use super::{Moment, Refused};
use crate::clock::Nanos;
use crate::id::ScopeId;

/// The reservations of one request: of each scope a place in flight, one of RPM, tokens of TPM, and of every budget and
/// quota what it is thought to cost.
///
/// It ends when it is dropped, whichever way that comes about, and only then, so that nothing is settled twice or
/// never. [`Permit::settle`] and [`Permit::refund`] say how; without them it is as [`Permit::charge`] last said; and
/// without that the estimate stays charged, since a request that was sent and lost sight of was not free.
#[derive(Debug)]
#[must_use = "dropping a permit ends its request's place in flight"]
pub struct Permit {
    holds: Vec<Hold>,
    reserved: Consumption,
    end: Settlement,
}

/// One scope's part of a permit. Dropped before the permit has it, it undoes itself: a later limit has refused.
#[derive(Debug)]
pub(super) struct Hold {
    scope: Arc<Scope>,
    pub(super) taken: Taken,
    end: Settlement,
}

/// What is taken of a scope, beside the place in flight.
#[derive(Debug, Default)]
pub(super) struct Taken {
    /// Nanoseconds taken of each cell at the weights of that moment: what must go back even if the limit has changed.
    pub(super) rpm: u64,
    pub(super) tpm: u64,
    pub(super) tokens: u64,
    pub(super) amounts: Vec<Held>,
}

impl Hold {
    /// Of a place in flight that is taken.
    pub(super) fn new(scope: Arc<Scope>) -> Self {
        Self { scope, taken: Taken::default(), end: Settlement::Refund }
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.scope.settle(&mut self.taken, self.end);
    }
}

impl Permit {
    /// Reserves `need` on every one of `scopes`, or on none: one decision.
    ///
    /// # Errors
    /// [`Refused`] when a limit has no room for it. Of several, the one that waiting does not help against, else the one
    /// to wait longest for: who retries when told to should not be refused again by the next.
    pub fn reserve(scopes: &[Arc<Scope>], at: Moment, need: Consumption) -> Result<Self, Box<Refused>> {
        let mut holds = Vec::with_capacity(scopes.len());
        for scope in scopes {
            // Nobody asks how many requests a user has open who is held to nothing.
            if scope.is_unlimited() && matches!(scope.id(), ScopeId::Plan(_) | ScopeId::Team(_) | ScopeId::User(_)) {
                continue;
            }
            match scope.reserve(at, &need) {
                Ok(hold) => holds.push(hold),
                Err(met) => {
                    // Given back before the others are asked, so that they tell what is free without this request.
                    drop(holds);
                    let longest = refusal(scopes, at, &need);
                    return Err(Box::new(longest.unwrap_or_else(|| scope.refused(met, at, &need))));
                }
            }
        }
        Ok(Self { holds, reserved: need, end: Settlement::Keep })
    }

    /// Why [`Permit::reserve`] would refuse now; takes nothing, and tells nobody.
    #[must_use]
    pub fn refusal(scopes: &[Arc<Scope>], at: Moment, need: Consumption) -> Option<Refused> {
        refusal(scopes, at, &need)
    }

    /// What is reserved.
    #[must_use]
    pub fn reserved(&self) -> Consumption {
        self.reserved
    }

    /// Reserves `more` tokens and money for a request that is under way.
    ///
    /// # Errors
    /// [`Refused`] when a limit has no room for it. What the scopes before it gave stays reserved until the permit ends,
    /// which a request that gets no more does at once.
    pub fn grow(&mut self, at: Moment, more: Consumption) -> Result<(), Box<Refused>> {
        for hold in &mut self.holds {
            let Hold { scope, taken, .. } = hold;
            scope.grow(taken, at, &more).map_err(|met| Box::new(scope.refused(met, at, &more)))?;
        }
        self.reserved = self.reserved.plus(&more);
        Ok(())
    }

    /// What to charge if it is dropped from here on, as known at `now`. Moves nothing yet.
    pub fn charge(&mut self, now: Nanos, consumed: Consumption) {
        self.end = Settlement::Charge { now, consumed };
    }

    /// Ends it with what was really used: the difference to the reservation is returned, or charged, into debt if
    /// need be.
    pub fn settle(mut self, now: Nanos, consumed: Consumption) {
        self.charge(now, consumed);
    }

    /// Ends it as if the request had never come, because it was never sent: everything goes back whole.
    pub fn refund(mut self) {
        self.end = Settlement::Refund;
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        for hold in &mut self.holds {
            hold.end = self.end;
        }
    }
}

/// The limit to name when several refuse; shadows do not.
#[cold]
fn refusal(scopes: &[Arc<Scope>], at: Moment, need: &Consumption) -> Option<Refused> {
    let reports = scopes.iter().flat_map(|scope| scope.report(at, need));
    let refusals = reports.filter(|report| !report.shadow).filter_map(|Report { refusal, .. }| refusal);
    // The first of equals: scopes come in the order in which people think of them.
    refusals.reduce(|first, next| if next.weight() > first.weight() { next } else { first })
}
