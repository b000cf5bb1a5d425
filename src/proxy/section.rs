//! `[limits]` of the configuration: sizes, times and defaults of the request path.
//!
//! Owns the section and its defaults; leaves reading it to `config` and obeying it to the steps of the proxy.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::unit::{byte_size, duration};

pub use crate::virtual_key::UnknownKeys;

/// Bounds of the request path.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ProxySection {
    /// Request bytes kept so that another provider key can be tried; larger bodies stream and are sent once.
    #[serde(with = "byte_size")]
    pub replay_limit: usize,
    /// The largest request body, bytes; above it 413.
    #[serde(with = "byte_size")]
    pub max_body: usize,
    /// The provider of bare `/v1` paths that neither path nor model decides.
    pub default_provider: String,
    /// How long a client may take to send a request's head; a kept connection may be idle as long.
    #[serde(with = "duration")]
    pub header_timeout: Duration,
    /// How long connecting to an upstream may take, TLS included.
    #[serde(with = "duration")]
    pub connect_timeout: Duration,
    /// How long open requests may take to end once sidekey is asked to stop.
    #[serde(with = "duration")]
    pub drain_timeout: Duration,
    /// `keys.unknown_keys`, which `config` copies here: it is said among the keys and obeyed on the path.
    #[serde(skip)]
    pub unknown_keys: UnknownKeys,
}

impl Default for ProxySection {
    fn default() -> Self {
        Self {
            replay_limit: 8 << 20,
            max_body: 64 << 20,
            default_provider: "openai".to_owned(),
            header_timeout: Duration::from_secs(75),
            connect_timeout: Duration::from_secs(10),
            drain_timeout: Duration::from_secs(30),
            unknown_keys: UnknownKeys::Refuse,
        }
    }
}
