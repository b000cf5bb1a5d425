//! `[provider_keys]` of the configuration: what sidekey does with provider keys by itself.
//!
//! Owns the section and its defaults; leaves obeying it to `app`.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::unit::duration;

/// What sidekey does with provider keys by itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ProviderKeysSection {
    /// Whether keys in `error` are tested again.
    pub retest: bool,
    /// How long after a key was refused, at first; each test that fails doubles it.
    #[serde(with = "duration")]
    pub retest_first: Duration,
    /// The longest pause between two tests.
    #[serde(with = "duration")]
    pub retest_max: Duration,
    /// The longest time a lease of a real key may be given, and the time when none is asked for.
    #[serde(with = "duration")]
    pub lease_max: Duration,
}

impl Default for ProviderKeysSection {
    fn default() -> Self {
        Self {
            retest: true,
            retest_first: Duration::from_secs(60),
            retest_max: Duration::from_secs(3600),
            lease_max: Duration::from_secs(600),
        }
    }
}
