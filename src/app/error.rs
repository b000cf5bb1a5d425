//! Why sidekey does not start.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

use crate::control::socket::SocketError;
use crate::net::ca::CaError;
use crate::net::tls::TlsError;
use crate::net::via::BadProxy;
use crate::provider::ConfigFault;
use crate::storage::StoreError;

/// Why sidekey does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A receiver of alerts cannot be.
    #[error("{0}")]
    Alerts(String),
    /// The admin API's TLS cannot be set up.
    #[error("admin.tls: {0}")]
    AdminTls(TlsError),
    /// An address cannot be listened on.
    #[error("cannot listen on {address} ({key}): {source}")]
    Bind {
        /// The key of the configuration.
        key: &'static str,
        /// What it says.
        address: SocketAddr,
        /// Why not.
        source: io::Error,
    },
    /// The local CA cannot be made or read.
    #[error("the local CA: {0}")]
    Ca(#[from] CaError),
    /// The files of the local CA's roots cannot be written.
    #[error("cannot write the roots of the local CA into {}: {source}", dir.display())]
    CaFiles {
        /// Where to.
        dir: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A provider's section is wrong.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Config(Vec<ConfigFault>),
    /// A proxy of the environment cannot be used.
    #[error(transparent)]
    Proxy(#[from] BadProxy),
    /// The system refuses a thread, a timer or a file.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// The admin socket cannot be bound.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// The store does not open.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// TLS towards providers cannot be set up.
    #[error(transparent)]
    Tls(#[from] TlsError),
}

impl From<Vec<ConfigFault>> for StartError {
    fn from(faults: Vec<ConfigFault>) -> Self {
        Self::Config(faults)
    }
}
