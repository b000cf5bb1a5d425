//! What the process gives up and what it asks for, once, at the start.
//!
//! Owns limits of the process; leaves secrets in memory to `secret`.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// No core dumps, no reading of our memory by others of the same user, and as many open files as are allowed. A refusal
/// is logged: sidekey works without, only less guarded.
pub(super) fn harden() {
    if let Err(error) = setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) }) {
        tracing::warn!(%error, "core dumps stay possible");
    }
    #[cfg(target_os = "linux")]
    if let Err(error) = rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable) {
        tracing::warn!(%error, "the process stays traceable");
    }
    let files = getrlimit(Resource::Nofile);
    if files.current != files.maximum
        && let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: files.maximum, ..files })
    {
        tracing::warn!(%error, "the limit of open files stays low");
    }
}
