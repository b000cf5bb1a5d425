//! `sidekey_provider_keys`: how many provider keys are in which state, looked up when somebody asks.
//!
//! A rest ends by itself and nobody tells a gauge, so it is read from the snapshot at each exposition. Labels are
//! providers and the five states: keys have none of their own, since users may bring thousands.

use std::sync::Weak;

use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{IntGaugeVec, Opts};

use crate::metrics::Metrics;
use crate::provider_key::Status;

use super::shared::{Handle, Shared};

#[derive(Clone)]
struct ProviderKeys {
    /// Not kept alive for the sake of its figures.
    shared: Weak<Shared>,
    gauge: IntGaugeVec,
}

/// Adds the family.
pub(super) fn register(shared: &Handle, metrics: &Metrics) {
    let opts = Opts::new("sidekey_provider_keys", "Provider keys by state.");
    let gauge = IntGaugeVec::new(opts, &["provider", "status"]).expect("the name and the labels are valid");
    metrics.register(ProviderKeys { shared: std::sync::Arc::downgrade(shared), gauge });
}

impl Collector for ProviderKeys {
    fn desc(&self) -> Vec<&Desc> {
        self.gauge.desc()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let Some(shared) = self.shared.upgrade() else { return Vec::new() };
        let (snapshot, now) = (shared.snapshot.load(), shared.clock.now());
        self.gauge.reset();
        for key in snapshot.all_provider_keys() {
            let provider = key.record.provider.as_str();
            for status in Status::ALL {
                self.gauge.with_label_values(&[provider, status.as_str()]);
            }
            self.gauge.with_label_values(&[provider, key.standing(now).status.as_str()]).inc();
        }
        self.gauge.collect()
    }
}
