//! Amounts that begin in the middle of their window, and what is told them of its beginning.
//!
//! Owns [`Unknown`]; leaves reading the ledger to `storage`.

use std::sync::Arc;

use crate::policy::{Counts, Per};

use super::amount::{Amount, Consumption, Measure, Terms};

/// Amounts that do not know yet what was used in their windows before they were there.
#[derive(Debug, Default)]
#[must_use = "until they are told, what was used before counts for nothing"]
pub struct Unknown(pub(super) Vec<(Terms, Arc<Amount>)>);

impl Unknown {
    /// True when there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Tells the amounts that never begin anew what was used in a whole life, and forgets those that this is all for.
    pub fn lifetime(&mut self, wall_ms: u64, tokens: u64, nano_usd: u64) {
        self.0.retain(|(terms, amount)| {
            let used = match terms.measure {
                _ if terms.window.per() != Per::Total => return true,
                Measure::Money => nano_usd,
                Measure::Tokens(Counts::Total) => tokens,
                Measure::Tokens(_) => return true,
            };
            amount.make_up_by(wall_ms, used);
            amount.note_passed(terms, wall_ms);
            false
        });
    }

    /// From which time on entries are wanted, wall time, milliseconds.
    #[must_use]
    pub fn since_ms(&self, wall_ms: u64) -> Option<u64> {
        self.0.iter().map(|(terms, _)| terms.window.at(wall_ms).start_ms).min()
    }

    /// Tells of an entry.
    pub fn make_up(&self, time_ms: u64, consumption: &Consumption) {
        self.0.iter().for_each(|(_, amount)| amount.make_up(time_ms, consumption));
    }
}
