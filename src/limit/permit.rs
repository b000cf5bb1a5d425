//! [`Permit`]: what one admitted request holds of all the scopes it counts for, given back exactly once.
//!
//! Owns taking from several scopes or from none, and the end of a reservation; leaves each scope's part to
//! [`Scope`].

use std::sync::Arc;

use super::amount::Held;
use super::consumption::Consumption;
use super::report::Report;
use super::scope::{Scope, Settlement, Taken};
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
    /// Counted once, not each by itself: the counts are written by every thread.
    scopes: Arc<[Arc<Scope>]>,
    holds: Vec<Hold>,
    /// What it holds of the amounts, those of one scope after the other.
    held: Vec<Held>,
    reserved: Consumption,
    end: Settlement,
}

/// One scope's part of a permit.
#[derive(Debug)]
struct Hold {
    /// Which of the permit's scopes.
    at: usize,
    taken: Taken,
}

impl Permit {
    /// Reserves `need` on every one of `scopes`, or on none: one decision.
    ///
    /// # Errors
    /// [`Refused`] when a limit has no room for it. Of several, the one that waiting does not help against, else the one
    /// to wait longest for: who retries when told to should not be refused again by the next.
    pub fn reserve(scopes: impl Into<Arc<[Arc<Scope>]>>, at: Moment, need: Consumption) -> Result<Self, Box<Refused>> {
        let scopes = scopes.into();
        let holds = Vec::with_capacity(scopes.len());
        // Dropped on the way, it gives back what the scopes before gave.
        let mut permit =
            Self { scopes: Arc::clone(&scopes), holds, held: Vec::new(), reserved: need, end: Settlement::Refund };
        for (index, scope) in scopes.iter().enumerate() {
            // Nobody asks how many requests a user has open who is held to nothing.
            if scope.is_unlimited() && matches!(scope.id(), ScopeId::Plan(_) | ScopeId::Team(_) | ScopeId::User(_)) {
                continue;
            }
            match scope.reserve(at, &need, &mut permit.held) {
                Ok(taken) => permit.holds.push(Hold { at: index, taken }),
                Err(met) => {
                    // Before the others are asked, so that they tell what is free without this request.
                    drop(permit);
                    let longest = refusal(&scopes, at, &need);
                    return Err(Box::new(longest.unwrap_or_else(|| scope.refused(met, at, &need))));
                }
            }
        }
        permit.end = Settlement::Keep;
        Ok(permit)
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
        let mut rest = &mut *self.held;
        for Hold { at: index, taken } in &mut self.holds {
            let scope = &self.scopes[*index];
            let (held, others) = rest.split_at_mut(taken.amounts);
            scope.grow(taken, held, at, &more).map_err(|met| Box::new(scope.refused(met, at, &more)))?;
            rest = others;
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
        let mut rest = &*self.held;
        for Hold { at: index, taken } in &self.holds {
            let scope = &self.scopes[*index];
            let (held, others) = rest.split_at(taken.amounts);
            scope.settle(taken, held, self.end);
            rest = others;
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
