//! `/api/status`, `/api/providers`, `/api/backup`: the installation as a whole.
//!
//! Owns what is told of the process.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use axum::Json;
use axum::body::Bytes;
use axum::extract::{Path, State};
use http::{HeaderMap, StatusCode};
use serde::{Deserialize, Serialize};

use crate::clock::rfc3339;
use crate::control::body::{Tell, parse};
use crate::control::named::ListQuery;
use crate::control::problem::{Asked, Problem};
use crate::control::view::ProviderView;
use crate::control::{ControlState, Page, Setting, page};
use crate::live::Live;
use crate::provider::Upstream;
use crate::provider_key::Status;
use crate::storage::StoreHealth;

/// What is told of the process.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// Wall time of the start, milliseconds.
    pub started_ms: u64,
    /// The configuration file.
    pub config_file: PathBuf,
    /// The addresses in fact bound; `None` when no daemon runs.
    pub listening: Option<Listening>,
    /// What became of reading the configuration.
    pub config: Live<ConfigReport>,
    /// Every setting.
    pub settings: Live<Vec<Setting>>,
}

/// What became of reading the configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ConfigReport {
    /// Counts the times it was read and put in force, from 1 at the start.
    pub generation: u64,
    /// When that was, RFC 3339.
    pub loaded: String,
    /// Why what was read last is not in force.
    pub error: Option<String>,
    /// Keys whose values will be in force after a restart.
    pub needs_restart: Vec<String>,
}

/// The addresses in fact bound: a port of 0 has become a real one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Listening {
    /// Reverse and connect.
    pub proxy: SocketAddr,
    /// Probes and metrics.
    pub telemetry: Option<SocketAddr>,
    /// Redirected connections.
    pub transparent: Option<SocketAddr>,
    /// The admin API and the console.
    pub admin: Option<SocketAddr>,
    /// True when the admin API's clients speak TLS.
    pub admin_tls: bool,
    /// The admin socket.
    pub admin_socket: Option<PathBuf>,
}

impl Listening {
    /// The ports that are sidekey's own.
    pub fn ports(&self) -> impl Iterator<Item = u16> {
        let addresses = [Some(self.proxy), self.admin, self.telemetry, self.transparent];
        addresses.into_iter().flatten().map(|address| address.port())
    }

    /// Where a browser on this machine finds the admin API.
    #[must_use]
    pub fn admin_url(&self) -> Option<String> {
        let mut address = self.admin?;
        if address.ip().is_unspecified() {
            address.set_ip(std::net::Ipv4Addr::LOCALHOST.into());
        }
        Some(format!("{}://{address}", if self.admin_tls { "https" } else { "http" }))
    }
}

/// The installation as a whole.
#[derive(Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema), schemars(rename = "Status"))]
pub(super) struct StatusView {
    version: &'static str,
    pid: u32,
    #[cfg_attr(test, schemars(extend("format" = "date-time")))]
    started: String,
    uptime_s: u64,
    /// True when requests should come here.
    ready: bool,
    /// Why they should not.
    failing: Vec<String>,
    draining: bool,
    /// Null when no daemon runs.
    listen: Option<Listening>,
    data_dir: PathBuf,
    config_file: PathBuf,
    config: ConfigReport,
    /// Where the master key is from.
    master_key: String,
    store: StoreHealth,
    keys: KeyCounts,
    provider_keys: ProviderKeyCounts,
}

/// Virtual keys.
#[derive(Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(super) struct KeyCounts {
    total: usize,
    active: usize,
}

/// Provider keys, by status.
#[derive(Default, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(super) struct ProviderKeyCounts {
    total: usize,
    active: usize,
    cooling: usize,
    disabled: usize,
    error: usize,
    exhausted: usize,
}

impl ProviderKeyCounts {
    fn of(statuses: impl Iterator<Item = Status>) -> Self {
        let mut counts = Self::default();
        for status in statuses {
            let count = match status {
                Status::Active => &mut counts.active,
                Status::Cooling => &mut counts.cooling,
                Status::Disabled => &mut counts.disabled,
                Status::Error => &mut counts.error,
                Status::Exhausted => &mut counts.exhausted,
            };
            *count += 1;
            counts.total += 1;
        }
        counts
    }
}

pub(super) async fn status(State(state): State<Arc<ControlState>>) -> Json<StatusView> {
    let (snapshot, now, facts) = (state.store.snapshot(), state.clock.wall_ms(), &state.facts);
    let active = snapshot.virtual_keys().filter(|key| key.record.status_word(now) == "active").count();
    let statuses = snapshot.all_provider_keys().map(|key| key.standing(state.clock.now()).status);
    let provider_keys = ProviderKeyCounts::of(statuses);
    let failures = if facts.listening.is_some() { state.readiness.failures() } else { Vec::new() };
    Json(StatusView {
        version: env!("CARGO_PKG_VERSION"),
        pid: std::process::id(),
        started: rfc3339(facts.started_ms),
        uptime_s: now.saturating_sub(facts.started_ms) / 1000,
        ready: facts.listening.is_some() && failures.is_empty(),
        failing: failures,
        draining: state.readiness.is_draining(),
        listen: facts.listening.clone(),
        data_dir: state.store.dir().to_path_buf(),
        config_file: facts.config_file.clone(),
        config: (*facts.config.get()).clone(),
        master_key: state.store.master_key_source().to_string(),
        store: state.store.health(),
        keys: KeyCounts { total: snapshot.virtual_keys().len(), active },
        provider_keys,
    })
}

/// One page of providers: the built-in ones, and the operator's own.
#[derive(Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(super) struct ProviderList {
    providers: Vec<ProviderView>,
    next_cursor: Option<String>,
}

pub(super) async fn providers(
    State(state): State<Arc<ControlState>>,
    Asked(query): Asked<ListQuery>,
) -> Result<Json<ProviderList>, Problem> {
    let snapshot = state.store.snapshot();
    let all = state.registry.get().iter().cloned().collect();
    let Page { items, next } =
        page(all, |upstream: &Arc<Upstream>| upstream.id.to_string(), query.cursor, query.limit)?;
    let view =
        |upstream: &Arc<Upstream>| ProviderView::new(upstream, snapshot.provider_keys(&upstream.id), state.clock.now());
    Ok(Json(ProviderList { providers: items.iter().map(view).collect(), next_cursor: next }))
}

pub(super) async fn provider(
    State(state): State<Arc<ControlState>>,
    Path(name): Path<String>,
) -> Result<Json<ProviderView>, Problem> {
    let row = crate::provider::provider(&name);
    let id = row.map_or(name.as_str(), |row| row.id);
    let registry = state.registry.get();
    let Some(upstream) = registry.iter().find(|upstream| &*upstream.id == id) else {
        let why = registry.lookup(&name).err().map_or_else(String::new, |error| error.to_string());
        return Err(Problem::new(StatusCode::NOT_FOUND, "not_found", why));
    };
    Ok(Json(ProviderView::new(upstream, state.store.snapshot().provider_keys(&upstream.id), state.clock.now())))
}

#[derive(Debug, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub(super) struct BackupWish {
    /// Where to, on the machine sidekey runs on; nothing may be there yet.
    #[cfg_attr(test, schemars(extend("pattern" = "^/")))]
    path: PathBuf,
}

/// A backup that was written.
#[derive(Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(super) struct BackupMade {
    path: PathBuf,
    /// Counts changes of the store.
    generation: u64,
}

/// Writes a backup on this machine: the file is the operator's, as the socket is.
pub(super) async fn backup(
    State(state): State<Arc<ControlState>>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Json<BackupMade>, Problem> {
    let wish: BackupWish = parse(&headers, &body, Tell::All)?;
    if !wish.path.is_absolute() {
        return Err(Problem::invalid("path", "must be absolute").fix("write it from the root on"));
    }
    if wish.path.exists() {
        return Err(Problem::new(StatusCode::CONFLICT, "exists", format!("{} is there already", wish.path.display()))
            .field("path")
            .fix("choose another place"));
    }
    state.store.backup(wish.path.clone()).await?;
    Ok(Json(BackupMade { path: wish.path, generation: state.store.snapshot().generation() }))
}
