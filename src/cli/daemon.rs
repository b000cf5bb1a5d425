//! What the command line asks of [`app`](crate::app): the daemon, a proxy for one command, tests of keys.

use crate::app::{self, Listen, Running, StartError};
use crate::cli::failure::{Exit, Failure};
use crate::cli::{Hooks, Private, PrivateStart};
use crate::config::{Environment, Loaded};
use crate::control::socket::SocketError;
use crate::ingress::section::CaKeeping;

/// The program's own.
pub(super) const HOOKS: Hooks = Hooks { explainer: app::explainer, private, run, tester: app::tester };

fn run(loaded: Loaded, environment: Environment) -> Result<(), Failure> {
    let done = app::run(&loaded, &environment);
    drop((loaded, environment));
    Ok(done?)
}

/// Starting blocks on the disk and on runtimes of its own, so it has a thread of its own.
fn private(mut loaded: Loaded, environment: Environment) -> PrivateStart {
    // One command needs no root that outlives it.
    loaded.config.connect.ca = CaKeeping::Ephemeral;
    Box::pin(async move {
        let free = std::net::SocketAddr::from((std::net::Ipv4Addr::LOCALHOST, 0));
        let listen = Listen { proxy: free, telemetry: None, transparent: None, admin: None, admin_socket: None };
        let starting = std::thread::spawn(move || Running::start(&loaded, &environment, &listen));
        let started = starting.join().map_err(|_| Failure::new(Exit::Failure, "the proxy panicked at its start"))?;
        let running = started?;
        let (proxy, admin) = (running.listening().proxy, running.admin());
        let stop = async move { running.stop() };
        Ok(Private { proxy, admin, stop: Box::pin(stop) })
    })
}

impl From<StartError> for Failure {
    fn from(error: StartError) -> Self {
        let text = error.to_string();
        match error {
            StartError::Store(error) => error.into(),
            StartError::Bind { key, .. } => Self::new(Exit::Failure, text)
                .fix(format!("stop what listens there, or choose another address: --set {key}=127.0.0.1:0")),
            StartError::Alerts(_) | StartError::Config(_) | StartError::Proxy(_) => Self::new(Exit::Config, text),
            StartError::AdminTls(_) => Self::new(Exit::Config, text).fix("correct the files that admin.tls names"),
            StartError::Tls(_) => Self::new(Exit::Config, text).fix("correct SSL_CERT_FILE, or unset it"),
            StartError::Socket(SocketError::InUse(_)) => {
                Self::new(Exit::Store, text).fix("a daemon runs on this data directory; stop it, or use another")
            }
            StartError::CaFiles { .. } => {
                Self::new(Exit::Failure, text).fix("choose another place: --set connect.ca_dir=…")
            }
            StartError::Ca(_) | StartError::Io(_) | StartError::Socket(_) => Self::new(Exit::Failure, text),
        }
    }
}
