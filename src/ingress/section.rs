//! `[connect]` of the configuration: what is done for clients that come through `HTTPS_PROXY`.
//!
//! Owns the section and its defaults; leaves reading it to `config` and obeying it to `connect` and `app`.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// What is done for clients that use sidekey as a proxy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ConnectSection {
    /// What is done with hosts that are no provider's.
    pub other_hosts: OtherHosts,
    /// The ports of other hosts that may be connected to.
    pub ports: Vec<u16>,
    /// Whether other hosts may be at private and loopback addresses. Link-local ones, where clouds keep credentials, are
    /// always refused.
    pub allow_private: bool,
    /// Where the local CA's key is.
    pub ca: CaKeeping,
    /// Where `root.pem` and `bundle.pem` are written; unless set, `ca` in the data directory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca_dir: Option<PathBuf>,
}

impl Default for ConnectSection {
    fn default() -> Self {
        Self {
            other_hosts: OtherHosts::Tunnel,
            ports: vec![443, 80],
            allow_private: false,
            ca: CaKeeping::Kept,
            ca_dir: None,
        }
    }
}

/// What is done with hosts that are no provider's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OtherHosts {
    /// Their bytes pass both ways, unread.
    #[default]
    Tunnel,
    /// 403.
    Deny,
}

/// Where the local CA's key is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CaKeeping {
    /// Sealed in the store: clients trust it once.
    #[default]
    Kept,
    /// In memory, made anew at each start: nothing to steal, and clients have to be told each time.
    Ephemeral,
}
