//! The registry of metrics and their exposition. Each module declares its own families beside its code.
//!
//! Owns the Prometheus registry; leaves what is counted to the modules that count, and serving it to `control::health`.

use prometheus::{Encoder, Registry, TextEncoder};

/// All families of one sidekey. Cloning shares it.
#[derive(Clone, Debug, Default)]
pub struct Metrics(Registry);

impl Metrics {
    /// Adds a family; a second one of the same name is a bug in sidekey, reported in the log and left out.
    pub fn register<C: prometheus::core::Collector + Clone + 'static>(&self, family: C) -> C {
        if let Err(error) = self.0.register(Box::new(family.clone())) {
            tracing::error!(%error, "metric family left out");
        }
        family
    }

    /// The text exposition format, version 0.0.4.
    #[must_use]
    pub fn expose(&self) -> Vec<u8> {
        let mut out = Vec::new();
        if let Err(error) = TextEncoder::new().encode(&self.0.gather(), &mut out) {
            tracing::error!(%error, "metrics not encoded");
        }
        out
    }
}
