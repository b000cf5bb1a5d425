//! The thread of the control plane: admin API, telemetry, references.

use std::collections::HashMap;
use std::io;
use std::net::TcpListener;
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use crate::activity::Activity;
use crate::app::keeper::Keeper;
use crate::app::otlp::Exporter;
use crate::app::reload::Reloader;
use crate::app::{StartError, expiry};
use crate::clock::Clock;
use crate::control::Api;
use crate::control::alerts::Alerts;
use crate::control::health::{self, Readiness};
use crate::control::socket::{AdminSocket, serve_tcp};
use crate::control::tcp::AdminTcp;
use crate::metrics::Metrics;
use crate::net::drain::{Drain, Watch};
use crate::secret::Secret;
use crate::storage::{References, Store};

/// How long the start waits for keys that are fetched; what takes longer arrives later.
const REFERENCES: Duration = Duration::from_secs(5);
/// How long open admin requests may take to end.
const LINGER: Duration = Duration::from_secs(2);

/// What it serves.
pub(super) struct Service<'a> {
    pub(super) api: Api,
    pub(super) admin_socket: Option<&'a Path>,
    pub(super) admin: Option<AdminTcp>,
    pub(super) shown: Option<expiry::Shown>,
    pub(super) telemetry: Option<(TcpListener, Metrics, Readiness)>,
    pub(super) store: Store,
    pub(super) alerts: Alerts,
    pub(super) secrets: HashMap<String, Secret>,
    pub(super) keeper: Keeper,
    pub(super) activity: Arc<Activity>,
    pub(super) reloader: Arc<Reloader>,
    pub(super) exporter: Option<Exporter>,
}

/// The thread.
#[derive(Debug)]
pub(super) struct Control {
    drain: Arc<Drain>,
    thread: JoinHandle<()>,
}

impl Control {
    /// Binds the admin socket, forgets the keys of commands that were killed, fetches references, and starts serving.
    pub(super) fn start(service: Service<'_>) -> Result<Self, StartError> {
        let Service { api, admin_socket, admin, telemetry, store, alerts, secrets, .. } = service;
        let Service { keeper, activity, shown, reloader, mut exporter, .. } = service;
        let watched = store.clone();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let references = store.references(secrets);
        let socket = runtime.block_on(async {
            let socket = match admin_socket {
                Some(path) => Some(AdminSocket::bind(path).await?),
                None => None,
            };
            forget_ephemeral(&store).await;
            fetch(&references).await;
            Ok::<_, StartError>(socket)
        })?;
        let ways = Ways { api, socket, admin };
        let drain = Arc::new(Drain::default());
        let watch = drain.watch();
        let thread = std::thread::Builder::new().name("sidekey-control".to_owned()).spawn(move || {
            let clock = Clock::system();
            let keeping =
                async { tokio::join!(keeper.work(), expiry::watch(&watched, shown.as_ref(), &clock), look(&activity)) };
            let served = runtime.block_on(async {
                let exporting = async {
                    match &mut exporter {
                        Some(exporter) => exporter.work().await,
                        None => std::future::pending().await,
                    }
                };
                let served = tokio::select! {
                    served = serve(ways, telemetry, alerts, &references, &reloader, keeping, watch) => served,
                    () = exporting => Ok(()),
                };
                if let Some(exporter) = &mut exporter {
                    let _ = tokio::time::timeout(LINGER, exporter.finish()).await;
                }
                served
            });
            if let Err(error) = served {
                tracing::error!(%error, "the control plane has ended");
            }
        })?;
        Ok(Self { drain, thread })
    }

    /// Ends it.
    pub(super) fn stop(self) {
        self.drain.signal();
        // A panic is in the log already, by the hook.
        let _ = self.thread.join();
    }
}

/// Looks at the end of each step. Does not end.
async fn look(activity: &Activity) {
    loop {
        tokio::time::sleep(Duration::from_millis(activity.due_ms())).await;
        activity.look();
    }
}

/// Keys made for a command whose `exec` could not delete them.
async fn forget_ephemeral(store: &Store) {
    let now = Clock::system().wall_ms();
    let snapshot = Arc::clone(&store.snapshot());
    let dead = snapshot.virtual_keys().filter(|key| key.record.ephemeral && key.record.status_word(now) == "expired");
    for key in dead {
        if let Err(error) = store.delete_virtual_key(key.record.id, None).await {
            tracing::warn!(id = %key.record.id, %error, "an expired key of a command is kept");
        }
    }
}

async fn fetch(references: &References) {
    match tokio::time::timeout(REFERENCES, references.refresh_now()).await {
        Ok(failed) => {
            for (id, error) in failed {
                tracing::warn!(%id, %error, "a provider key cannot be fetched");
            }
        }
        Err(_) => tracing::warn!("some provider keys are still being fetched"),
    }
}

/// The admin API, and the ways to it.
struct Ways {
    api: Api,
    socket: Option<AdminSocket>,
    admin: Option<AdminTcp>,
}

async fn serve(
    Ways { api, socket, admin }: Ways,
    telemetry: Option<(TcpListener, Metrics, Readiness)>,
    alerts: Alerts,
    references: &References,
    reloader: &Reloader,
    keeping: impl Future,
    watch: Watch,
) -> io::Result<()> {
    let stopped = |mut watch: Watch| async move { watch.signalled().await };
    let [for_socket, for_admin, for_telemetry] = [(); 3].map(|()| stopped(watch.clone()));
    let socket = async {
        match socket {
            Some(socket) => socket.serve(api.gated(), for_socket).await,
            None => std::future::pending().await,
        }
    };
    let admin = async {
        match admin {
            Some(admin) => admin.serve(&api, for_admin).await,
            None => std::future::pending().await,
        }
    };
    let telemetry = async {
        match telemetry {
            Some((listener, metrics, readiness)) => {
                let listener = tokio::net::TcpListener::from_std(listener)?;
                serve_tcp(listener, health::router(metrics, readiness), for_telemetry).await
            }
            None => std::future::pending().await,
        }
    };
    let telling = alerts.run(watch.clone());
    let telling = async {
        telling.await;
        Ok(())
    };
    let stop = async {
        stopped(watch).await;
        tokio::time::sleep(LINGER).await;
    };
    tokio::select! {
        served = async { tokio::try_join!(socket, admin, telemetry, telling) } => served.map(drop),
        () = references.watch() => Ok(()),
        _ = keeping => Ok(()),
        () = reloader.run(references) => Ok(()),
        () = stop => Ok(()),
    }
}
