//! The store as the command line opens it: only when no daemon has it.
//!
//! Owns connecting, backup and restore.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::json;

use crate::audit::{Actor, Note};
use crate::cli::Session;
use crate::cli::client::AdminClient;
use crate::cli::failure::{Exit, Failure};
use crate::cli::out;
use crate::clock::Clock;
use crate::control::alerts::Alerts;
use crate::control::health::Readiness;
use crate::control::{Console, ControlState, Facts, router};
use crate::live::Live;
use crate::metrics::Metrics;
use crate::provider::Registry;
use crate::storage::{self, Store, StoreError};

/// How long a store that another command holds is waited for.
const PATIENCE: Duration = Duration::from_secs(2);
const PAUSE: Duration = Duration::from_millis(50);

/// A client, and the store behind it when that is ours.
#[derive(Debug)]
pub(super) struct Connected {
    pub(super) client: AdminClient,
    store: Option<Store>,
}

impl Connected {
    /// Closes our own store: what was changed is on disk once this returns.
    pub(super) async fn close(self) {
        drop(self.client);
        if let Some(store) = self.store {
            // Closing waits for the writer's thread. A panic there is in the log.
            let _ = tokio::task::spawn_blocking(move || store.close()).await;
        }
    }
}

/// The daemon's API, or our own over the store.
pub(super) async fn connect(session: &Session) -> Result<Connected, Failure> {
    if let Some(client) = AdminClient::of_daemon(&session.loaded.admin_socket()).await {
        return Ok(Connected { client, store: None });
    }
    let registry = registry(session)?;
    let mut waited = Duration::ZERO;
    let store = loop {
        match open(session, &registry, false) {
            // Another command, which is soon done; or a daemon that has just started.
            Err(StoreError::Locked { .. }) if waited < PATIENCE => {
                tokio::time::sleep(PAUSE).await;
                waited += PAUSE;
                if let Some(client) = AdminClient::of_daemon(&session.loaded.admin_socket()).await {
                    return Ok(Connected { client, store: None });
                }
            }
            opened => break opened?,
        }
    };
    let client = AdminClient::Local(router(state(session, &store, registry)).own());
    Ok(Connected { client, store: Some(store) })
}

/// Opens the store of the data directory.
pub(super) fn open(session: &Session, registry: &Registry, create: bool) -> Result<Store, StoreError> {
    let loaded = &session.loaded;
    let mut options = loaded.store_options(&session.environment, registry, Clock::system(), Metrics::default());
    options.create = create;
    Store::open(options)
}

/// The providers in force.
pub(super) fn registry(session: &Session) -> Result<Registry, Failure> {
    let built = session.loaded.config.registry();
    // `config::load` has refused these already.
    built.map_err(|faults| {
        let shown: Vec<String> = faults.iter().map(ToString::to_string).collect();
        Failure::new(Exit::Config, shown.join("\nerror: "))
    })
}

fn state(session: &Session, store: &Store, registry: Registry) -> ControlState {
    let registry = Live::new(registry);
    let clock = Clock::system();
    ControlState {
        tester: (session.hooks.tester)(store, &registry, &session.environment),
        alerts: Alerts::default(),
        explainer: (session.hooks.explainer)(store, &registry, &clock),
        store: store.clone(),
        registry,
        roots: None,
        leases: None,
        activity: None,
        facts: Facts {
            started_ms: clock.wall_ms(),
            config_file: session.loaded.places.config_file.clone(),
            settings: Live::new(session.loaded.settings(&session.loaded)),
            ..Facts::default()
        },
        clock,
        keys: Live::new(session.loaded.config.keys.clone()),
        console: Console::default(),
        readiness: Readiness::default(),
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        let text = error.to_string();
        match error {
            StoreError::Locked { .. } => Self::new(Exit::Store, text)
                .fix("wait for that process; if it is a daemon whose admin socket is gone, restart it"),
            error if error.is_unusable() => Self::new(Exit::Store, text),
            _ => Self::new(Exit::Failure, text),
        }
    }
}

/// Where the master key would come from; for `doctor`.
pub(super) fn master_key_source(session: &Session) -> Result<Option<String>, String> {
    let inputs = session.environment.master_key_inputs();
    let found = storage::master_key_source(&session.loaded.places.data_dir, &inputs);
    found.map(|source| source.map(|source| source.to_string())).map_err(|error| error.to_string())
}

/// `sidekey backup`: whoever has the store writes the file.
pub(super) async fn backup(client: &AdminClient, file: &Path) -> Result<(), Failure> {
    let path = absolute(file)?;
    client.post("/api/backup", &json!({"path": path})).await?;
    out::say(&format!("wrote {}; it opens only with this installation's master key: keep that too", path.display()));
    Ok(())
}

/// `sidekey restore`: into a data directory without a store, and with no daemon on it.
pub(super) async fn restore(session: &Session, file: &Path, force: bool) -> Result<(), Failure> {
    let dir = session.loaded.places.data_dir.clone();
    if AdminClient::of_daemon(&session.loaded.admin_socket()).await.is_some() {
        let failure = Failure::new(Exit::Store, format!("a daemon runs on {}", dir.display()));
        return Err(failure.fix("stop it first"));
    }
    let inputs = session.environment.master_key_inputs();
    let aside = storage::restore(&dir, &inputs, &absolute(file)?, force, &Clock::system())?;
    record_restore(session, file).await?;
    out::say(&format!("restored {} from {}", dir.display(), file.display()));
    if let Some(aside) = aside {
        out::say(&format!("what was there is in {}", aside.display()));
    }
    Ok(())
}

/// The store has no log before it is there, so what was restored is recorded after.
async fn record_restore(session: &Session, file: &Path) -> Result<(), Failure> {
    let registry = registry(session)?;
    let store = open(session, &registry, false)?;
    let by = Actor::user(rustix::process::geteuid().as_raw(), "command");
    let name = file.file_name().unwrap_or(file.as_os_str()).to_string_lossy();
    let recorded = store.audit().record(Note::new(by, "backup.restore", format!("backup {name}"))).await;
    let closed = Connected { client: AdminClient::Local(axum::Router::new()), store: Some(store) };
    closed.close().await;
    Ok(recorded?)
}

/// The daemon works in another directory.
fn absolute(file: &Path) -> Result<PathBuf, Failure> {
    Ok(std::path::absolute(file)?)
}
