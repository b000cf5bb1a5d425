//! Amounts that begin in the middle of their window, and what is told them of its beginning.
//!
//! Owns [`Unknown`]; leaves reading the ledger to `storage`.

use std::sync::Arc;

use crate::policy::{Counts, Per};

use super::amount::Amount;
use super::consumption::{Consumption, Measure};
use super::scope::Scope;

/// Amounts that do not know yet what was used in their windows before they were there.
#[derive(Debug)]
#[must_use = "until they are told, what was used before counts for nothing"]
pub struct Unknown {
    scope: Arc<Scope>,
    pub(super) ids: Vec<u32>,
}

impl Unknown {
    pub(super) fn none(scope: &Arc<Scope>) -> Self {
        Self { scope: Arc::clone(scope), ids: Vec::new() }
    }

    /// True when there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }

    /// Tells the amounts that never begin anew what was used in a whole life, and forgets those that this is all for.
    pub fn lifetime(&mut self, wall_ms: u64, tokens: u64, nano_usd: u64) {
        let mut amounts = self.scope.amounts();
        self.ids.retain(|id| {
            let Some(amount) = amounts.get(*id) else { return false };
            let used = match amount.terms.measure {
                _ if amount.terms.window.per() != Per::Total => return true,
                Measure::Money => nano_usd,
                Measure::Tokens(Counts::Total) => tokens,
                Measure::Tokens(_) => return true,
            };
            amount.make_up_by(wall_ms, used);
            amount.note_passed(wall_ms);
            false
        });
    }

    /// From which time on entries are wanted, wall time, milliseconds.
    #[must_use]
    pub fn since_ms(&self, wall_ms: u64) -> Option<u64> {
        let amounts = self.scope.amounts();
        let ours = amounts.list.iter().filter(|amount| self.ids.contains(&amount.id));
        ours.map(|amount| amount.terms.window.at(wall_ms).start_ms).min()
    }

    /// Tells of an entry.
    pub fn make_up(&self, time_ms: u64, consumption: &Consumption) {
        let ours = |amount: &&mut Amount| self.ids.contains(&amount.id);
        self.scope.amounts().list.iter_mut().filter(ours).for_each(|amount| amount.make_up(time_ms, consumption));
    }
}
