//! `[admin]` of the configuration: where the admin API is, beside `listen.admin`, and who may reach it.
//!
//! Owns the section; leaves what is wrong together with other sections to `config`.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// `[admin]`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AdminSection {
    /// The Unix socket; `<data_dir>/admin.sock` unless set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub socket: Option<PathBuf>,
    /// Hosts by which `listen.admin` may be called, beside the loopback address's; with a port or with any.
    pub hosts: Vec<String>,
    /// TLS at `listen.admin`, both sides of which show certificates.
    pub tls: AdminTls,
}

/// `[admin.tls]`: files in PEM, all of them or none.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AdminTls {
    /// Our certificate, and those that lead to its root.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cert: Option<PathBuf>,
    /// Its key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<PathBuf>,
    /// The roots of clients' certificates: who shows none of theirs does not get in.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_ca: Option<PathBuf>,
}

impl AdminTls {
    /// The files; `None` when there is to be no TLS.
    ///
    /// # Errors
    /// The name of the first that is missing beside others.
    pub fn files(&self) -> Result<Option<[&Path; 3]>, &'static str> {
        match (&self.cert, &self.key, &self.client_ca) {
            (Some(cert), Some(key), Some(client_ca)) => Ok(Some([cert, key, client_ca])),
            (None, None, None) => Ok(None),
            (None, ..) => Err("cert"),
            (_, None, _) => Err("key"),
            (.., None) => Err("client_ca"),
        }
    }
}
