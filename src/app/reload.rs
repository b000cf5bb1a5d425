//! Reloading the configuration while sidekey runs: at SIGHUP, and when the file changes.
//!
//! Owns noticing changes, and putting a valid configuration in force. A faulty one changes nothing, and is told in the log,
//! as an event, in `sidekey status` and as a metric. What a running process cannot change is named.
//!
//! Each second the file's stamp is compared, through symbolic links: a ConfigMap and most editors replace the file, which
//! a watch on it would lose, and one `stat` a second costs less than a library that watches directories.

use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use prometheus::{IntCounterVec, IntGauge, Opts};
use tokio::sync::Notify;
use tokio::time::MissedTickBehavior;

use crate::app::log;
use crate::app::worker::Ending;
use crate::clock::{Clock, rfc3339};
use crate::config::{Config, Environment, Fault, Loaded};
use crate::control::{ConfigReport, Setting};
use crate::event::{Kind, Severity};
use crate::ingress::{FrontParts, Port};
use crate::live::Live;
use crate::metrics::Metrics;
use crate::net::listener::Patience;
use crate::provider::Registry;
use crate::provider_key::ProviderKeysSection;
use crate::proxy::ProxyParts;
use crate::storage::{References, Store};
use crate::virtual_key::KeysSection;

const TICK: Duration = Duration::from_secs(1);
/// A file that has just changed may be half written: it must be the same after this.
const SETTLE: Duration = Duration::from_millis(100);

/// What of the configuration is in force, where it can be replaced.
#[derive(Clone, Debug)]
pub(super) struct InForce {
    pub(super) registry: Live<Registry>,
    pub(super) keys: Live<KeysSection>,
    pub(super) kept: Live<ProviderKeysSection>,
    pub(super) ending: Live<Ending>,
    pub(super) port: Arc<Port>,
    pub(super) report: Live<ConfigReport>,
    pub(super) settings: Live<Vec<Setting>>,
}

/// Reloads.
#[derive(Debug)]
pub(super) struct Reloader {
    environment: Environment,
    store: Store,
    clock: Clock,
    families: Families,
    asked: Notify,
    /// `None` once nothing is to be changed any more.
    state: Mutex<Option<State>>,
}

#[derive(Debug)]
struct State {
    /// What the process was started with.
    started: Loaded,
    /// The hosts the local CA may sign for.
    hosts: BTreeSet<String>,
    loaded: Loaded,
    in_force: InForce,
}

#[derive(Debug)]
struct Families {
    successful: IntGauge,
    since: IntGauge,
    reloads: IntCounterVec,
}

const RELOADED: &str = "reloaded";
const REJECTED: &str = "rejected";

impl Families {
    fn new(metrics: &Metrics) -> Self {
        // Names and labels are constants of this file.
        let gauge = |name: &str, help: &str| metrics.register(IntGauge::new(name, help).expect("a valid gauge"));
        let opts = Opts::new("sidekey_config_reloads_total", "Times the configuration was read again, by result.");
        let reloads = metrics.register(IntCounterVec::new(opts, &["result"]).expect("a valid family"));
        for result in [RELOADED, REJECTED] {
            reloads.with_label_values(&[result]);
        }
        Self {
            successful: gauge(
                "sidekey_config_last_reload_successful",
                "1 when the configuration in force is what was read last.",
            ),
            since: gauge(
                "sidekey_config_last_reload_success_timestamp_seconds",
                "When the configuration in force was read, Unix time.",
            ),
            reloads,
        }
    }
}

impl Reloader {
    pub(super) fn new(
        loaded: &Loaded,
        environment: &Environment,
        store: &Store,
        clock: &Clock,
        metrics: &Metrics,
        in_force: InForce,
    ) -> Self {
        let families = Families::new(metrics);
        families.successful.set(1);
        families.since.set(seconds(clock));
        in_force.report.set(ConfigReport {
            generation: 1,
            loaded: rfc3339(clock.wall_ms()),
            ..ConfigReport::default()
        });
        in_force.settings.set(loaded.settings(loaded));
        let hosts = in_force.registry.get().host_names().into_iter().collect();
        let state = State { started: loaded.clone(), hosts, loaded: loaded.clone(), in_force };
        Self {
            environment: environment.clone(),
            store: store.clone(),
            clock: clock.clone(),
            families,
            asked: Notify::new(),
            state: Mutex::new(Some(state)),
        }
    }

    /// Asks for a reload; it happens on the thread of the control plane.
    pub(super) fn ask(&self) {
        self.asked.notify_one();
    }

    /// Changes nothing from now on, and lets go of the request path.
    pub(super) fn stop(&self) {
        *self.lock() = None;
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<State>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reloads when asked, fetching references too, and when a file has changed. Does not end.
    pub(super) async fn run(&self, references: &References) {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut seen = self.stamps();
        loop {
            let asked = tokio::select! {
                _ = tick.tick() => false,
                () = self.asked.notified() => true,
            };
            let mut now = self.stamps();
            if !asked && now == seen {
                continue;
            }
            loop {
                tokio::time::sleep(SETTLE).await;
                let before = std::mem::replace(&mut now, self.stamps());
                if before == now {
                    break;
                }
            }
            seen = now;
            self.reload().await;
            if asked {
                for (id, error) in references.refresh_now().await {
                    tracing::warn!(%id, %error, "a provider key cannot be fetched");
                }
            }
        }
    }

    /// Of the configuration, and of the files that hold system keys.
    fn stamps(&self) -> Vec<Option<Stamp>> {
        let state = self.lock();
        let Some(state) = &*state else { return Vec::new() };
        let mut files: Vec<PathBuf> = vec![state.loaded.places.config_file.clone()];
        files.extend(self.environment.key_files(&state.in_force.registry.get()));
        files.iter().map(|file| Stamp::of(file)).collect()
    }

    async fn reload(&self) {
        let Some(before) = self.lock().as_ref().map(|state| state.loaded.clone()) else { return };
        let loaded = match before.again(&self.environment) {
            Ok(loaded) => loaded,
            Err(faults) => return self.reject(&faults),
        };
        let Ok(registry) = loaded.config.registry() else {
            // Loading has built it once, and refused faults of it.
            return self.reject(&[]);
        };
        let keys = self.environment.system_keys(&registry, &loaded.config.keys.prefix);
        let prices = loaded.config.prices(&registry);
        if let Err(error) = self.store.adopt(keys, prices).await {
            tracing::error!(%error, "prices and system keys are not reloaded");
        }
        self.accept(loaded, registry);
    }

    fn accept(&self, loaded: Loaded, registry: Registry) {
        let mut state = self.lock();
        let Some(state) = &mut *state else { return };
        for warning in &loaded.warnings {
            tracing::warn!("{warning}");
        }
        let changed = state.loaded.differences(&loaded);
        let mut needs_restart: Vec<String> =
            state.started.differences(&loaded).into_iter().filter(|key| key.1).map(|key| key.0).collect();
        if registry.host_names().iter().any(|host| !state.hosts.contains(host)) {
            needs_restart.push("providers.*.hosts".to_owned());
        }
        if state.loaded.config != loaded.config {
            state.in_force.put(&loaded.config, registry);
        }
        state.in_force.settings.set(loaded.settings(&state.started));
        state.loaded = loaded;
        self.families.successful.set(1);
        self.families.since.set(seconds(&self.clock));
        self.families.reloads.with_label_values(&[RELOADED]).inc();
        let generation = state.in_force.report.get().generation + 1;
        let now = rfc3339(self.clock.wall_ms());
        state.in_force.report.set(ConfigReport {
            generation,
            loaded: now,
            error: None,
            needs_restart: needs_restart.clone(),
        });
        let changed = changed.into_iter().map(|key| key.0).collect::<Vec<_>>().join(", ");
        let changed = if changed.is_empty() { "nothing".to_owned() } else { changed };
        let (severity, rest) = match needs_restart.is_empty() {
            true => (Severity::Info, String::new()),
            false => (Severity::Warning, format!("; in force after a restart: {}", needs_restart.join(", "))),
        };
        self.store.events().emit(Kind::ConfigReloaded, severity, "config", format!("changed: {changed}{rest}"));
    }

    fn reject(&self, faults: &[Fault]) {
        let state = self.lock();
        let Some(state) = &*state else { return };
        let shown: Vec<String> = faults.iter().map(ToString::to_string).collect();
        let shown = shown.join("; ");
        self.families.successful.set(0);
        self.families.reloads.with_label_values(&[REJECTED]).inc();
        let report = ConfigReport { error: Some(shown.clone()), ..ConfigReport::clone(&state.in_force.report.get()) };
        state.in_force.report.set(report);
        let message = format!("not reloaded, the configuration so far stays in force: {shown}");
        self.store.events().emit(Kind::ConfigRejected, Severity::Error, "config", message);
    }
}

impl InForce {
    /// Requests that are open go on as they began.
    fn put(&self, config: &Config, registry: Registry) {
        log::set_level(config.log.level);
        self.registry.set(registry);
        self.keys.set(config.keys.clone());
        self.kept.set(config.provider_keys.clone());
        self.ending.set(ending(config));
        let registry = self.registry.get();
        self.port.replace(|proxy, front| {
            let change = |parts: &mut ProxyParts| {
                parts.registry = registry;
                parts.section = config.proxy();
                parts.prefix.clone_from(&config.keys.prefix);
                parts.access_log = config.log.access;
            };
            let front = FrontParts {
                section: config.connect.clone(),
                patience: patience(config),
                connect_timeout: config.limits.connect_timeout,
                ..front
            };
            (proxy.again(change), front)
        });
    }
}

/// How long the end takes.
pub(super) fn ending(config: &Config) -> Ending {
    Ending { min_delay: config.shutdown.min_delay, drain_timeout: config.limits.drain_timeout }
}

/// How patient the proxy port is.
pub(super) fn patience(config: &Config) -> Patience {
    Patience { header_timeout: config.limits.header_timeout }
}

fn seconds(clock: &Clock) -> i64 {
    i64::try_from(clock.wall_ms() / 1000).unwrap_or(i64::MAX)
}

/// Tells whether a file may have changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    fn of(path: &Path) -> Option<Self> {
        let about = std::fs::metadata(path).ok()?;
        Some(Self {
            device: about.dev(),
            inode: about.ino(),
            size: about.size(),
            modified: (about.mtime(), about.mtime_nsec()),
            changed: (about.ctime(), about.ctime_nsec()),
        })
    }
}
