//! `/api/ca`: the roots that clients are to trust, and a new one in place of the old.
//!
//! Owns what is told of the local CA; leaves certificates to `net::ca`. No key is ever told.

use std::path::PathBuf;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use http::StatusCode;
use rustls::pki_types::CertificateDer;
use serde::Serialize;

use crate::clock::rfc3339;
use crate::control::ControlState;
use crate::control::problem::Problem;
use crate::net::ca::{CaError, Generation, LIFETIME, pem};
use crate::storage::{CaRecord, Store};

/// The roots in use by this process, oldest first.
#[derive(Clone, Debug)]
pub struct Roots {
    /// True when the store has them; false when they end with the process.
    pub kept: bool,
    /// Where their files are.
    pub dir: PathBuf,
    roots: Vec<Root>,
}

/// What is told of the roots.
#[derive(Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(super) struct CaView {
    /// True when the store has them; false when they end with the process.
    kept: bool,
    /// The roots alone.
    root_file: PathBuf,
    /// The system's roots and these.
    bundle_file: PathBuf,
    /// True when there is a newer one that a restart brings into use.
    restart_needed: bool,
    roots: Vec<RootView>,
}

/// A root that clients are to trust.
#[derive(Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema), schemars(rename = "CaRoot"))]
pub(super) struct RootView {
    id: String,
    fingerprint: String,
    #[cfg_attr(test, schemars(extend("format" = "date-time")))]
    created: String,
    #[cfg_attr(test, schemars(extend("format" = "date-time")))]
    expires: String,
    /// The names it may vouch for.
    names: Vec<String>,
    pem: String,
}

/// The public part of a generation.
#[derive(Clone, Debug)]
struct Root {
    id: String,
    certificate: CertificateDer<'static>,
    fingerprint: String,
    names: Vec<String>,
    created_ms: u64,
    expires_ms: u64,
}

impl Roots {
    /// Of these generations.
    #[must_use]
    pub fn new(generations: &[Generation], kept: bool, dir: PathBuf) -> Self {
        let root = |one: &Generation| Root {
            id: one.id.clone(),
            certificate: one.root.clone(),
            fingerprint: one.fingerprint(),
            names: one.names.clone(),
            created_ms: one.created_ms,
            expires_ms: one.expires_ms,
        };
        Self { kept, dir, roots: generations.iter().map(root).collect() }
    }

    /// What clients trust.
    pub fn certificates(&self) -> impl Iterator<Item = &CertificateDer<'static>> {
        self.roots.iter().map(|root| &root.certificate)
    }

    /// The roots alone, for programs that add them to their own.
    #[must_use]
    pub fn root_file(&self) -> PathBuf {
        self.dir.join("root.pem")
    }

    /// The system's roots and these, for programs that know one file.
    #[must_use]
    pub fn bundle_file(&self) -> PathBuf {
        self.dir.join("bundle.pem")
    }

    fn view(&self, in_store: &[String]) -> CaView {
        let root = |root: &Root| RootView {
            id: root.id.clone(),
            fingerprint: root.fingerprint.clone(),
            created: rfc3339(root.created_ms),
            expires: rfc3339(root.expires_ms),
            names: root.names.clone(),
            pem: pem(&root.certificate),
        };
        let known = |id: &String| self.roots.iter().any(|root| root.id == *id);
        CaView {
            kept: self.kept,
            root_file: self.root_file(),
            bundle_file: self.bundle_file(),
            restart_needed: self.kept && !in_store.iter().all(known),
            roots: self.roots.iter().map(root).collect(),
        }
    }
}

/// The generations of a store that can be read, oldest first.
#[must_use]
pub fn generations(store: &Store) -> Vec<Generation> {
    let snapshot = store.snapshot();
    let read = |(record, _): (Arc<CaRecord>, u64)| Generation::from_bytes(&record.generation()?).ok();
    let mut generations: Vec<Generation> = snapshot.all_named::<CaRecord>().filter_map(read).collect();
    generations.sort_by_key(|generation| generation.created_ms);
    generations
}

fn shown(state: &ControlState) -> CaView {
    let in_store = generations(&state.store);
    let ids: Vec<String> = in_store.iter().map(|generation| generation.id.clone()).collect();
    match &state.roots {
        Some(roots) => roots.view(&ids),
        None => Roots::new(&in_store, true, state.store.dir().join("ca")).view(&ids),
    }
}

pub(super) async fn show(State(state): State<Arc<ControlState>>) -> Json<CaView> {
    Json(shown(&state))
}

/// The new root.
#[derive(Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(super) struct CaRotated {
    id: String,
    fingerprint: String,
    restart_needed: bool,
}

/// A new root in place of all others. Whoever trusts only those has to be told, so nothing changes before a restart.
pub(super) async fn rotate(State(state): State<Arc<ControlState>>) -> Result<Json<CaRotated>, Problem> {
    if state.roots.as_ref().is_some_and(|roots| !roots.kept) {
        return Err(Problem::new(StatusCode::CONFLICT, "ephemeral", "this CA is made anew at each start")
            .fix("restart sidekey"));
    }
    let old = generations(&state.store);
    let made = Generation::create(&state.registry.get().host_names(), state.clock.wall_ms(), LIFETIME)?;
    state.store.put_named(CaRecord::new(&made.id, made.created_ms, &made.to_bytes()), Some(0)).await?;
    for generation in old {
        state.store.delete_named::<CaRecord>(&generation.id, None).await?;
    }
    let fingerprint = made.fingerprint();
    Ok(Json(CaRotated { id: made.id, fingerprint, restart_needed: state.roots.is_some() }))
}

impl From<CaError> for Problem {
    fn from(error: CaError) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "ca", error.to_string())
    }
}
