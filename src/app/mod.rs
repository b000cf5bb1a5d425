//! The program: its threads, from start to a drained end.
//!
//! Owns which thread does what and in which order things begin and end. One thread moves requests (`sidekey-proxy`), one
//! serves admin API, telemetry and references (`sidekey-control`), so that nothing an operator asks can delay a
//! request; the store and the counting of tokens have threads of their own. Leaves what a command prints to `cli`.

mod ca;
mod control;
mod error;
mod expiry;
mod harden;
mod keeper;
mod log;
mod otlp;
mod process;
mod reload;
mod run;
mod tester;
mod worker;

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;

use axum::Router;

use crate::activity::Activity;
use crate::app::reload::{InForce, Reloader};
use crate::clock::Clock;
use crate::config::{Environment, Loaded};
use crate::control::alerts::Alerts;
use crate::control::health::{Check, Readiness};
use crate::control::tcp::AdminTcp;
use crate::control::{Api, Console, ControlState, Explainer, Facts, Leases, Lessor, Listening};
use crate::ingress::{FrontParts, Loops, Port};
use crate::live::Live;
use crate::metrics::Metrics;
use crate::net::dial::Dialer;
use crate::net::drain::Drain;
use crate::net::listener;
use crate::net::tls::{self, TlsClient};
use crate::net::validity;
use crate::net::via::{Said, Via};
use crate::provider::Registry;
use crate::proxy::{Proxy, ProxyParts, Shared};
use crate::storage::Store;

pub use self::error::StartError;
pub use self::run::run;
pub use self::tester::tester;

/// Where to listen.
#[derive(Clone, Debug)]
pub struct Listen {
    /// Clients; port 0 takes a free one.
    pub proxy: SocketAddr,
    /// Probes and metrics.
    pub telemetry: Option<SocketAddr>,
    /// Redirected connections; with a loopback address, at that of the other family too.
    pub transparent: Option<SocketAddr>,
    /// The admin API over TCP.
    pub admin: Option<SocketAddr>,
    /// The admin API's Unix socket.
    pub admin_socket: Option<PathBuf>,
}

/// A sidekey at work. [`Running::stop`] ends it; dropping it leaves its threads behind.
pub struct Running {
    listening: Listening,
    api: Api,
    readiness: Readiness,
    store: Store,
    shared: Arc<Shared>,
    drain: Arc<Drain>,
    /// Signalled when open requests are to be waited for no longer.
    hurry: Arc<Drain>,
    reloader: Arc<Reloader>,
    worker: JoinHandle<()>,
    control: control::Control,
}

impl std::fmt::Debug for Running {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Running").field("listening", &self.listening).finish_non_exhaustive()
    }
}

impl Running {
    /// Binds, opens the store and starts the threads. Blocks on the disk.
    ///
    /// # Errors
    /// When an address is taken, the store does not open, or the system refuses. Nothing runs then.
    pub fn start(loaded: &Loaded, environment: &Environment, listen: &Listen) -> Result<Self, StartError> {
        let listener = bind("listen.proxy", listen.proxy)?;
        let telemetry = listen.telemetry.map(|address| bind("listen.telemetry", address)).transpose()?;
        let admin = listen.admin.map(|address| bind_admin(address, loaded)).transpose()?;
        let redirected = listen.transparent.map_or(Ok(Vec::new()), bind_redirected)?;
        let (clock, metrics) = (Clock::system(), Metrics::default());
        let registry = Live::new(loaded.config.registry()?);
        let listening = Listening {
            proxy: listener.local_addr()?,
            telemetry: telemetry.as_ref().map(std::net::TcpListener::local_addr).transpose()?,
            transparent: redirected.first().map(std::net::TcpListener::local_addr).transpose()?,
            admin: admin.as_ref().map(|admin| admin.listener.local_addr()).transpose()?,
            admin_tls: admin.as_ref().is_some_and(|admin| admin.tls.is_some()),
            admin_socket: listen.admin_socket.clone(),
        };
        let own_ports: Arc<[u16]> = listening.ports().collect();
        let dialer = dialer(environment, &own_ports)?;
        let store = Store::open(loaded.store_options(environment, &registry.get(), clock.clone(), metrics.clone()))?;
        process::register(&metrics, &clock);
        // A command's own proxy does not take up what is meant for the command.
        let variables = listen.admin.is_some().then_some(environment);
        let (spans, exporter) = otlp::start(&loaded.config.telemetry, variables, &dialer, &registry, &clock, &metrics);
        let parts = ProxyParts {
            store: store.clone(),
            registry: registry.get(),
            dialer: dialer.clone(),
            clock: clock.clone(),
            section: loaded.config.proxy(),
            prefix: loaded.config.keys.prefix.clone(),
            access_log: loaded.config.log.access,
            keeps_trace: loaded.config.telemetry.forward_trace_context,
            spans,
        };
        let shared = Arc::new(Shared::new(&parts, &metrics)?);
        let activity = Arc::new(Activity::new(shared.counts(), clock.clone()));
        let (ca, roots) = ca::start(loaded, &store, &registry.get(), &clock)?;
        let loops = Arc::new(Loops::default());
        let mut checks = vec![store_check(&store)];
        if !redirected.is_empty() {
            checks.push(loops_check(&loops));
        }
        let readiness = Readiness::new(checks);
        let tester = tester::with(&store, &registry, environment, dialer.clone(), clock.clone());
        let kept = Live::new(loaded.config.provider_keys.clone());
        let leases = Arc::new(Leases::resume(&store, &clock, lessor(&store), kept.get().lease_max));
        let keeper = keeper::Keeper::new(
            store.clone(),
            Arc::clone(&tester),
            clock.clone(),
            kept.clone(),
            Arc::clone(&leases),
            &metrics,
        );
        let (keys, report, settings) = (Live::new(loaded.config.keys.clone()), Live::default(), Live::default());
        let env = |name: &str| environment.get(name).map(str::to_owned);
        let alerts = Alerts::new(&loaded.config.alerts, &env, &dialer, store.events(), &clock, &metrics);
        let alerts = alerts.map_err(StartError::Alerts)?;
        let api = crate::control::router(ControlState {
            store: store.clone(),
            registry: registry.clone(),
            keys: keys.clone(),
            facts: Facts {
                started_ms: clock.wall_ms(),
                config_file: loaded.places.config_file.clone(),
                listening: Some(listening.clone()),
                config: report.clone(),
                settings: settings.clone(),
            },
            readiness: readiness.clone(),
            roots: Some(roots),
            tester,
            leases: Some(leases),
            activity: Some(Arc::clone(&activity)),
            alerts: alerts.clone(),
            explainer: explainer(&store, &registry, &clock),
            console: Console::new(crate::console::pages),
            clock: clock.clone(),
        });

        let (drain, hurry) = (Arc::new(Drain::default()), Arc::new(Drain::default()));
        let front = FrontParts {
            ca,
            section: loaded.config.connect.clone(),
            own_ports,
            metrics: metrics.clone(),
            patience: reload::patience(&loaded.config),
            connect_timeout: parts.section.connect_timeout,
            dialer,
            clock: clock.clone(),
            drain: Arc::clone(&drain),
        };
        let port = Port::new(Proxy::new(parts, &shared, Arc::clone(&drain)), front);
        let ending = Live::new(reload::ending(&loaded.config));
        let in_force =
            InForce { registry, keys, kept, ending: ending.clone(), port: Arc::clone(&port), report, settings };
        let reloader = Arc::new(Reloader::new(loaded, environment, &store, &clock, &metrics, in_force));
        let control = control::Control::start(control::Service {
            api: api.clone(),
            admin_socket: listen.admin_socket.as_deref(),
            shown: admin.as_ref().and_then(|_| shown(loaded)),
            admin,
            telemetry: telemetry.map(|listener| (listener, metrics, readiness.clone())),
            store: store.clone(),
            alerts,
            secrets: environment.secrets(),
            keeper,
            activity,
            reloader: Arc::clone(&reloader),
            exporter,
        })?;
        let worker = worker::Worker {
            listener,
            redirected,
            loops,
            port,
            shared: Arc::clone(&shared),
            drain: Arc::clone(&drain),
            ending,
        };
        let worker = worker.start(hurry.watch())?;
        readiness.set_started();
        Ok(Self { listening, api, readiness, store, shared, drain, hurry, reloader, worker, control })
    }

    /// The addresses in fact bound.
    #[must_use]
    pub fn listening(&self) -> &Listening {
        &self.listening
    }

    /// The admin API, for requests of this process.
    pub fn admin(&self) -> Router {
        self.api.own()
    }

    /// What cuts a [`Running::stop`] short when signalled.
    #[must_use]
    pub fn hurry(&self) -> Arc<Drain> {
        Arc::clone(&self.hurry)
    }

    /// Asks for the configuration and references to be read again.
    pub fn reload(&self) {
        self.reloader.ask();
    }

    /// Is no longer ready, serves those who still come for `shutdown.min_delay`, waits for open requests up to
    /// `limits.drain_timeout`, settles what is left, and closes the store. Blocks.
    pub fn stop(self) {
        self.readiness.set_draining();
        self.drain.leave();
        // A panic of a thread is in the log already, by the hook; the rest is still to be saved.
        let _ = self.worker.join();
        self.reloader.stop();
        if let Some(shared) = Arc::into_inner(self.shared) {
            shared.close();
        }
        drop(self.api);
        self.control.stop();
        self.store.close();
    }
}

/// Explains by what the request path would do over `store`.
#[must_use]
pub fn explainer(store: &Store, registry: &Live<Registry>, clock: &Clock) -> Explainer {
    let (store, registry, clock) = (store.clone(), registry.clone(), clock.clone());
    Arc::new(move |question| crate::proxy::explain(&store, &registry.get(), &clock, question))
}

/// Hands out what the request path would choose over `store`.
fn lessor(store: &Store) -> Lessor {
    let store = store.clone();
    Arc::new(move |wish| crate::proxy::lease(&store, wish))
}

fn bind(key: &'static str, address: SocketAddr) -> Result<std::net::TcpListener, StartError> {
    listener::bind(address).map_err(|source| StartError::Bind { key, address, source })
}

fn bind_admin(address: SocketAddr, loaded: &Loaded) -> Result<AdminTcp, StartError> {
    let section = &loaded.config.admin;
    // Half of it was refused with the configuration.
    let files = section.tls.files().unwrap_or_default();
    let tls = files.map(|[cert, key, client_ca]| tls::mutual_server(cert, key, client_ca));
    let tls = tls.transpose().map_err(StartError::AdminTls)?;
    Ok(AdminTcp { listener: bind("listen.admin", address)?, hosts: section.hosts.clone(), tls })
}

/// The certificate that clients of the admin API are shown.
fn shown(loaded: &Loaded) -> Option<expiry::Shown> {
    let file = loaded.config.admin.tls.cert.clone()?;
    Some(expiry::Shown { ends_ms: validity::file_ends_ms(&file)?, file })
}

/// The kernel leads each family to its own loopback address.
fn bind_redirected(address: SocketAddr) -> Result<Vec<std::net::TcpListener>, StartError> {
    let first = bind("listen.transparent", address)?;
    let twin = match address.ip() {
        IpAddr::V4(ip) if ip.is_loopback() => Some(IpAddr::V6(Ipv6Addr::LOCALHOST)),
        IpAddr::V6(ip) if ip.is_loopback() => Some(IpAddr::V4(Ipv4Addr::LOCALHOST)),
        _ => None,
    };
    let Some(twin) = twin else { return Ok(vec![first]) };
    match bind("listen.transparent", SocketAddr::new(twin, first.local_addr()?.port())) {
        Ok(second) => Ok(vec![first, second]),
        // Without a family nothing can be led here by it.
        Err(StartError::Bind { source, .. }) if is_missing_family(&source) => Ok(vec![first]),
        Err(error) => Err(error),
    }
}

fn is_missing_family(error: &io::Error) -> bool {
    let unsupported = rustix::io::Errno::AFNOSUPPORT.raw_os_error();
    error.kind() == io::ErrorKind::AddrNotAvailable || error.raw_os_error() == Some(unsupported)
}

/// Trusts Mozilla's roots and those of `SSL_CERT_FILE`, which OpenSSL's users know, and goes through the proxies that the
/// environment names; the spelling in lower case goes first, as for curl.
///
/// # Errors
/// When the roots cannot be read, or a proxy is none.
pub fn dialer(environment: &Environment, own_ports: &[u16]) -> Result<Dialer, StartError> {
    let tls = TlsClient::new(environment.get("SSL_CERT_FILE").map(Path::new))?;
    let either = |lower: &str, upper: &str| environment.get(lower).or_else(|| environment.get(upper));
    let said = Said {
        https: either("https_proxy", "HTTPS_PROXY"),
        http: either("http_proxy", "HTTP_PROXY"),
        all: either("all_proxy", "ALL_PROXY"),
        no: either("no_proxy", "NO_PROXY"),
    };
    Ok(Dialer::new(tls, Via::new(said, own_ports)?, own_ports.into()))
}

fn loops_check(loops: &Arc<Loops>) -> Check {
    let loops = Arc::clone(loops);
    ("transparent", Arc::new(move || loops.check()))
}

fn store_check(store: &Store) -> Check {
    let store = store.clone();
    let check = move || {
        let health = store.health();
        if health.up { Ok(()) } else { Err(health.last_error.unwrap_or_else(|| "cannot be written".to_owned())) }
    };
    ("store", Arc::new(check))
}
