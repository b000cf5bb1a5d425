//! The local CA of this process: taken from the store or made, and its public part where clients find it.
//!
//! Owns which generations are in use and the files of their roots; leaves making them to `net::ca`.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crate::app::StartError;
use crate::clock::Clock;
use crate::config::Loaded;
use crate::control::{self, Roots};
use crate::ingress::section::CaKeeping;
use crate::net::ca::{Ca, Generation, LIFETIME, pem};
use crate::net::tls;
use crate::provider::Registry;
use crate::storage::{CaRecord, Store};

/// How long a CA is good for that ends with its process: longer than a pod lives.
const EPHEMERAL: Duration = Duration::from_secs(365 * 24 * 3600);

/// The CA, and what is told of it.
pub(super) fn start(
    loaded: &Loaded,
    store: &Store,
    registry: &Registry,
    clock: &Clock,
) -> Result<(Arc<Ca>, Roots), StartError> {
    let section = &loaded.config.connect;
    let names = registry.host_names();
    let generations = match section.ca {
        CaKeeping::Ephemeral => vec![Generation::create(&names, clock.wall_ms(), EPHEMERAL)?],
        CaKeeping::Kept => kept(store, &names, clock)?,
    };
    let dir = match (&section.ca_dir, section.ca) {
        (Some(dir), _) => dir.clone(),
        (None, CaKeeping::Kept) => loaded.places.data_dir.join("ca"),
        // Beside the roots that clients were told to trust, not over them.
        (None, CaKeeping::Ephemeral) => loaded.places.data_dir.join("ca-ephemeral"),
    };
    let roots = Roots::new(&generations, section.ca == CaKeeping::Kept, dir);
    publish(&roots).map_err(|source| StartError::CaFiles { dir: roots.dir.clone(), source })?;
    Ok((Arc::new(Ca::new(generations, clock.clone())?), roots))
}

/// The store's generations, oldest first, and a new one where none may sign for every name.
fn kept(store: &Store, names: &[String], clock: &Clock) -> Result<Vec<Generation>, StartError> {
    let now_ms = clock.wall_ms();
    let mut generations = control::generations(store);
    generations.retain(|generation| now_ms < generation.expires_ms);
    let suffices = |generation: &Generation| names.iter().all(|name| generation.permits(name));
    if !generations.iter().any(suffices) {
        let made = Generation::create(names, now_ms, LIFETIME)?;
        let record = CaRecord::new(&made.id, made.created_ms, &made.to_bytes());
        let runtime = tokio::runtime::Builder::new_current_thread().build()?;
        runtime.block_on(store.put_named(record, Some(0)))?;
        if !generations.is_empty() {
            tracing::warn!("providers have new hosts: clients must trust one more root; see: sidekey ca show");
        }
        generations.push(made);
    }
    Ok(generations)
}

/// Writes `root.pem` and `bundle.pem`, each whole or not at all. They are public, and read by apps of other users.
fn publish(roots: &Roots) -> io::Result<()> {
    fs::create_dir_all(&roots.dir)?;
    // A volume that is mounted there is not sidekey's to change, and its readers' concern.
    let _ = fs::set_permissions(&roots.dir, fs::Permissions::from_mode(0o755));
    let own: String = roots.certificates().map(pem).collect();
    write(&roots.root_file(), &own)?;
    write(&roots.bundle_file(), &format!("{}{own}", tls::system_bundle()))
}

fn write(path: &Path, text: &str) -> io::Result<()> {
    if fs::read_to_string(path).is_ok_and(|before| before == text) {
        return Ok(());
    }
    let aside = path.with_extension("pem.new");
    fs::write(&aside, text)?;
    fs::set_permissions(&aside, fs::Permissions::from_mode(0o644))?;
    fs::rename(&aside, path)
}
