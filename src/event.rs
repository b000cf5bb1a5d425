//! Events: what happened that an operator wants to be told, such as a budget that is nearly gone or a key that a
//! provider no longer takes.
//!
//! Owns their kinds and handing them on; leaves what is done with them to whoever subscribes.
//!
//! An event never holds a key, nor text of a request. Emitting one never waits: subscribers that fall behind miss the
//! oldest and are told how many.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use prometheus::{IntCounterVec, Opts};
use serde::{Deserialize, Serialize, Serializer};
use tokio::sync::broadcast;

use crate::clock::{Clock, rfc3339};
use crate::id::RequestId;
use crate::metrics::Metrics;

/// Events that are kept for whoever asks later.
const KEPT: usize = 1_000;
/// Events that a subscriber may be behind.
const BEHIND: usize = 256;

/// A kind of event. Its word is `<thing>.<what happened>`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// The audit log was found other than it was left.
    AuditDamaged,
    /// The audit log cannot be written: what belongs in it is refused.
    AuditFailed,
    /// A budget or quota has passed one of its thresholds.
    BudgetThreshold,
    /// A certificate of ours ends soon, or has ended.
    CertificateExpiring,
    /// A changed configuration is faulty: the one before stays in force.
    ConfigRejected,
    /// A changed configuration is in force.
    ConfigReloaded,
    /// A virtual key was used that nobody is to use.
    KeyCanary,
    /// A virtual key is used far more than it ever was.
    KeyUnusual,
    /// A real key was handed out.
    LeaseGranted,
    /// It was told what was used of one that was handed out.
    LeaseReported,
    /// A lease has ended, and not all that was reserved for it was reported.
    LeaseUnreported,
    /// Requests were served and not recorded, because the ledger's queue was full.
    LedgerDropped,
    /// No provider key of a pool, or of a provider, can be used.
    PoolEmpty,
    /// A model was used that has no price.
    PriceUnknown,
    /// A provider key may be used again.
    ProviderKeyActive,
    /// A provider key rests for a while.
    ProviderKeyCooling,
    /// A provider key was switched off.
    ProviderKeyDisabled,
    /// A provider takes a key no longer.
    ProviderKeyError,
    /// A provider key's money, or its tokens of the day, are gone.
    ProviderKeyExhausted,
    /// A provider key has a new secret.
    ProviderKeyRotated,
    /// A provider key has its former secret again, because the new one is refused.
    ProviderKeyTakenBack,
    /// The store cannot be written.
    StoreDown,
    /// The store can be written again.
    StoreUp,
}

impl Kind {
    /// Every one, for the metric's initial zeros.
    pub const ALL: [Self; 23] = [
        Self::AuditDamaged,
        Self::AuditFailed,
        Self::BudgetThreshold,
        Self::CertificateExpiring,
        Self::ConfigRejected,
        Self::ConfigReloaded,
        Self::KeyCanary,
        Self::KeyUnusual,
        Self::LeaseGranted,
        Self::LeaseReported,
        Self::LeaseUnreported,
        Self::LedgerDropped,
        Self::PoolEmpty,
        Self::PriceUnknown,
        Self::ProviderKeyActive,
        Self::ProviderKeyCooling,
        Self::ProviderKeyDisabled,
        Self::ProviderKeyError,
        Self::ProviderKeyExhausted,
        Self::ProviderKeyRotated,
        Self::ProviderKeyTakenBack,
        Self::StoreDown,
        Self::StoreUp,
    ];

    /// Its word; also the metric's label.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::AuditDamaged => "audit.damaged",
            Self::AuditFailed => "audit.failed",
            Self::BudgetThreshold => "budget.threshold",
            Self::CertificateExpiring => "certificate.expiring",
            Self::ConfigRejected => "config.rejected",
            Self::ConfigReloaded => "config.reloaded",
            Self::KeyCanary => "key.canary",
            Self::KeyUnusual => "key.unusual",
            Self::LeaseGranted => "lease.granted",
            Self::LeaseReported => "lease.reported",
            Self::LeaseUnreported => "lease.unreported",
            Self::LedgerDropped => "ledger.dropped",
            Self::PoolEmpty => "pool.empty",
            Self::PriceUnknown => "price.unknown",
            Self::ProviderKeyActive => "provider_key.active",
            Self::ProviderKeyCooling => "provider_key.cooling",
            Self::ProviderKeyDisabled => "provider_key.disabled",
            Self::ProviderKeyError => "provider_key.error",
            Self::ProviderKeyExhausted => "provider_key.exhausted",
            Self::ProviderKeyRotated => "provider_key.rotated",
            Self::ProviderKeyTakenBack => "provider_key.taken_back",
            Self::StoreDown => "store.down",
            Self::StoreUp => "store.up",
        }
    }
}

impl Serialize for Kind {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

/// How much it matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Good to know.
    Info,
    /// Something may stop working soon.
    Warning,
    /// Something has stopped working.
    Error,
}

/// One event.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema), schemars(rename = "Alert"))]
pub struct Event {
    /// Tells it from others; sorts by time.
    pub id: RequestId,
    /// When, RFC 3339 in JSON; wall time, milliseconds.
    #[serde(serialize_with = "as_rfc3339")]
    #[cfg_attr(test, schemars(with = "String", extend("format" = "date-time")))]
    pub time: u64,
    /// What kind.
    pub kind: Kind,
    /// How much it matters.
    pub severity: Severity,
    /// What it is about, such as `key a1b2c3d4e5f67890` or `team t1`.
    pub subject: String,
    /// What happened, for people.
    pub message: String,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's own shape")]
fn as_rfc3339<S: Serializer>(time: &u64, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&rfc3339(*time))
}

/// Where events are told. Cloning shares it.
#[derive(Clone)]
pub struct Events(Arc<Inner>);

struct Inner {
    clock: Clock,
    recent: Mutex<VecDeque<Arc<Event>>>,
    live: broadcast::Sender<Arc<Event>>,
    count: IntCounterVec,
}

impl fmt::Debug for Events {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Events").finish_non_exhaustive()
    }
}

fn family() -> IntCounterVec {
    let opts = Opts::new("sidekey_events_total", "Events told to operators, by kind.");
    IntCounterVec::new(opts, &["kind"]).expect("the name and the label are valid")
}

impl Events {
    /// With no event yet; its family goes to `metrics`.
    #[must_use]
    pub fn new(clock: Clock, metrics: &Metrics) -> Self {
        let count = metrics.register(family());
        for kind in Kind::ALL {
            count.with_label_values(&[kind.as_str()]);
        }
        Self(Arc::new(Inner { clock, recent: Mutex::default(), live: broadcast::channel(BEHIND).0, count }))
    }

    /// Tells an event: to the log, to those who subscribed, and to those who will ask.
    pub fn emit(&self, kind: Kind, severity: Severity, subject: impl Into<String>, message: impl Into<String>) {
        let time = self.0.clock.wall_ms();
        let id = RequestId::new(time);
        let event = Arc::new(Event { id, time, kind, severity, subject: subject.into(), message: message.into() });
        let Event { subject, message, .. } = &*event;
        match severity {
            Severity::Info => tracing::info!(target: "sidekey::event", kind = kind.as_str(), subject, "{message}"),
            Severity::Warning => tracing::warn!(target: "sidekey::event", kind = kind.as_str(), subject, "{message}"),
            Severity::Error => tracing::error!(target: "sidekey::event", kind = kind.as_str(), subject, "{message}"),
        }
        self.0.count.with_label_values(&[kind.as_str()]).inc();
        let mut recent = self.0.recent.lock().unwrap_or_else(PoisonError::into_inner);
        if recent.len() == KEPT {
            recent.pop_front();
        }
        recent.push_back(Arc::clone(&event));
        // Inside the lock, so that subscribers see the same order. Nobody listening is no fault.
        let _nobody = self.0.live.send(event);
    }

    /// The last events, newest first.
    #[must_use]
    pub fn recent(&self) -> Vec<Arc<Event>> {
        self.0.recent.lock().unwrap_or_else(PoisonError::into_inner).iter().rev().cloned().collect()
    }

    /// Events from now on.
    #[must_use]
    pub fn subscribe(&self) -> broadcast::Receiver<Arc<Event>> {
        self.0.live.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_kept_told_and_counted() {
        let metrics = Metrics::default();
        let events = Events::new(Clock::manual(1_700_000_000_123), &metrics);
        let mut live = events.subscribe();
        for n in 0..=KEPT {
            events.emit(Kind::BudgetThreshold, Severity::Warning, "team t1", format!("{n}"));
        }
        let recent = events.recent();
        assert_eq!((recent.len(), &*recent[0].message, &*recent[KEPT - 1].message), (KEPT, "1000", "1"));
        assert!(matches!(live.try_recv(), Err(broadcast::error::TryRecvError::Lagged(n)) if n == 745));
        assert_eq!(live.try_recv().unwrap().message, "745");
        let want = r#","time":"2023-11-14T22:13:20.123Z","kind":"budget.threshold","severity":"warning","subject":"team t1","message":"1000"}"#;
        let shown = serde_json::to_string(&*recent[0]).unwrap();
        assert_eq!(shown, format!("{{\"id\":\"{}\"{want}", recent[0].id));
        let exposed = String::from_utf8(metrics.expose()).unwrap();
        assert!(exposed.contains("sidekey_events_total{kind=\"budget.threshold\"} 1001"), "{exposed}");
    }
}
