//! What limits tell operators beside refusals: thresholds passed, and what a limit in shadow would have refused.
//!
//! Owns the wording and the family; leaves when to `scope`.

use prometheus::{IntCounterVec, Opts};

use crate::clock::rfc3339;
use crate::event::{Events, Kind as EventKind, Severity};
use crate::id::ScopeId;
use crate::metrics::Metrics;

use super::amount::Passed;
use super::refused::Kind;

/// Where limits tell. Cloning shares it; the default tells nobody.
#[derive(Clone, Debug, Default)]
pub struct Watch(Option<Told>);

#[derive(Clone, Debug)]
struct Told {
    events: Events,
    shadowed: IntCounterVec,
}

fn family() -> IntCounterVec {
    let opts = Opts::new("sidekey_shadow_refusals_total", "Requests that a limit in shadow would have refused.");
    IntCounterVec::new(opts, &["scope", "limit"]).expect("the name and the labels are valid")
}

impl Watch {
    /// Tells `events`, and counts in `metrics`.
    #[must_use]
    pub fn new(events: Events, metrics: &Metrics) -> Self {
        let shadowed = metrics.register(family());
        for scope in ScopeId::KINDS {
            for limit in Kind::NAMES {
                shadowed.with_label_values(&[scope, limit]);
            }
        }
        Self(Some(Told { events, shadowed }))
    }

    pub(super) fn shadowed(&self, scope: &ScopeId, limit: Kind) {
        if let Some(told) = &self.0 {
            told.shadowed.with_label_values(&[scope.kind(), limit.as_str()]).inc();
        }
    }

    #[cold]
    pub(super) fn passed(&self, scope: &ScopeId, passed: &Passed) {
        let Some(told) = &self.0 else { return };
        let Passed { terms, percent, standing } = passed;
        let (what, per) = (terms.measure.name(), terms.window.per().as_str());
        let (used, limit) = (terms.measure.show(standing.used), terms.measure.show(terms.limit));
        let resets = match standing.end_ms {
            u64::MAX => String::new(),
            end_ms => format!("; it begins anew at {}", rfc3339(end_ms)),
        };
        let severity = if *percent >= 100 { Severity::Error } else { Severity::Warning };
        let message = format!("{percent} % of the {what} per {per} is used: {used} of {limit}{resets}");
        told.events.emit(EventKind::BudgetThreshold, severity, scope.to_string(), message);
    }
}
