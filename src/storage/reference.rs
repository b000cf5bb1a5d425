//! Provider keys that lie elsewhere: `env:NAME`, `file:/path`, `exec:command`.
//!
//! Owns fetching them and keeping the last good value. Leaves running [`References::watch`] to `app`, and never shows
//! what a command printed.
//!
//! A file is looked at each second, through symbolic links, since Kubernetes and Vault's agent replace the link; one
//! that cannot be read keeps its last good value. A command runs at first sight and each refresh interval; when it
//! fails it is tried again sooner, and its last good value is used until it is stale.

use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;
use zeroize::Zeroizing;

use crate::clock::Nanos;
use crate::id::KeyId;
use crate::provider_key::Origin;
use crate::secret::Secret;

use super::provider_keys::ProviderKeyState;
use super::shared::Handle;

const TICK: Duration = Duration::from_secs(1);
const EXEC_TIMEOUT: Duration = Duration::from_secs(30);
/// A failed command is tried again after this, or its interval if that is shorter.
const EXEC_RETRY_SECS: u64 = 30;
/// No key is longer.
const MAX_BYTES: u64 = 64 << 10;
/// A file changed so recently may change again within the same time stamp.
const FRESH_SECS: i64 = 2;
const SECOND: Nanos = 1_000_000_000;

/// What a command must not inherit: it needs a token of its own, never what opens the store.
const WITHHELD: [&str; 3] = ["SIDEKEY_MASTER_KEY", "SIDEKEY_MASTER_KEY_FILE", "CREDENTIALS_DIRECTORY"];

/// How long a command's last good value is used while it fails: four intervals, at least an hour.
#[must_use]
fn stale_after(refresh_secs: u64) -> Duration {
    Duration::from_secs(refresh_secs.saturating_mul(4).max(3600))
}

/// Why a reference gives no value. Never what it gave.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReferenceError {
    /// Nothing, or white space.
    #[error("{0} is empty")]
    Empty(String),
    /// The command ended badly.
    #[error("{0} failed: {1}")]
    Failed(String, String),
    /// More than 64 KiB, or not text.
    #[error("{0} is not a key: more than 64 KiB, or not UTF-8")]
    NotAKey(String),
    /// The command took too long.
    #[error("{0} took more than 30 s")]
    TimedOut(String),
    /// The environment has no such variable.
    #[error("{0} is not set")]
    Unset(String),
}

/// Keeps the secrets of references up to date in the live snapshot. Cloning shares it.
#[derive(Clone, Debug)]
pub struct References(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    shared: Handle,
    env_values: HashMap<String, Secret>,
    known: Mutex<HashMap<KeyId, Known>>,
}

/// What is known of one reference.
#[derive(Debug)]
struct Known {
    origin: Origin,
    running: bool,
    due: Nanos,
    /// When the last good value came; 0 is never.
    good: Nanos,
    failing: bool,
    stamp: Option<Stamp>,
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

/// A fetched value; `None` when the file is as it was.
type Fetched = Result<(Option<Secret>, Option<Stamp>), ReferenceError>;

struct Done {
    state: Arc<ProviderKeyState>,
    fetched: Fetched,
}

impl References {
    pub(super) fn new(shared: Handle, env_values: HashMap<String, Secret>) -> Self {
        Self(Arc::new(Inner { shared, env_values, known: Mutex::default() }))
    }

    /// Keeps every reference up to date until dropped; dropping it ends the commands it runs.
    pub async fn watch(&self) {
        let mut jobs = JoinSet::new();
        // Whatever an abandoned round had begun has ended with it.
        self.0
            .known
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .values_mut()
            .for_each(|known| known.running = false);
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = tick.tick() => self.start_due(false, &mut jobs),
                Some(Ok(done)) = jobs.join_next(), if !jobs.is_empty() => drop(self.adopt(done)),
            }
        }
    }

    /// Fetches every reference now; returns those that gave nothing. Dropping it ends the commands it runs; the next
    /// round of [`References::watch`] runs them again.
    pub async fn refresh_now(&self) -> Vec<(KeyId, ReferenceError)> {
        let mut jobs = JoinSet::new();
        self.start_due(true, &mut jobs);
        let mut failed = Vec::new();
        while let Some(done) = jobs.join_next().await {
            let Ok(done) = done else { continue };
            let id = done.state.record.id;
            failed.extend(self.adopt(done).err().map(|error| (id, error)));
        }
        failed
    }

    /// Fetches this one now, whatever [`References::watch`] is about; a key that is no reference is left alone. A
    /// value is in force at once. Dropping it ends the command it runs.
    ///
    /// # Errors
    /// Why it gave nothing; an earlier value stays.
    pub async fn fetch(&self, state: &Arc<ProviderKeyState>) -> Result<(), ReferenceError> {
        let mut jobs = JoinSet::new();
        if !state.environment {
            self.start(Arc::clone(state), None, &mut jobs);
        }
        let Some(Ok(Done { state, fetched })) = jobs.join_next().await else { return Ok(()) };
        if let (Some(value), _) = fetched? {
            state.secret.store(Some(Arc::new(value)));
        }
        Ok(())
    }

    fn start_due(&self, all: bool, jobs: &mut JoinSet<Done>) {
        let snapshot = self.0.shared.snapshot.load();
        let now = self.0.shared.clock.now();
        let mut known = self.0.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|id, _| snapshot.provider_key(*id).is_some());
        let references =
            snapshot.all_provider_keys().filter(|state| !state.environment && state.record.origin != Origin::Sealed);
        for state in references {
            let fresh = || Known::new(&state.record.origin);
            let entry = known.entry(state.record.id).or_insert_with(fresh);
            if entry.origin != state.record.origin {
                *entry = fresh();
            }
            drop_when_stale(state, entry, now);
            // One forced while another runs makes two commands; waiting for the other would be no answer.
            if (entry.running || now < entry.due) && !all {
                continue;
            }
            entry.running = true;
            let stamp = if all { None } else { entry.stamp };
            self.start(state.clone(), stamp, jobs);
        }
    }

    fn start(&self, state: Arc<ProviderKeyState>, stamp: Option<Stamp>, jobs: &mut JoinSet<Done>) {
        match &state.record.origin {
            Origin::Sealed => {}
            Origin::Env { name } => {
                let value = self.0.env_values.get(name).filter(|value| !value.expose().is_empty()).cloned();
                let fetched = value.map(|value| (Some(value), None)).ok_or_else(|| ReferenceError::Unset(name.clone()));
                jobs.spawn(async move { Done { state, fetched } });
            }
            Origin::File { path } => {
                let path = path.clone();
                let wall_ms = self.0.shared.clock.wall_ms();
                jobs.spawn_blocking(move || Done { state, fetched: read_file(&path, stamp, wall_ms) });
            }
            Origin::Exec { command, .. } => {
                let command = command.clone();
                jobs.spawn(async move { Done { state, fetched: run(&command).await } });
            }
        }
    }

    /// Puts a value in force, or notes the failure.
    fn adopt(&self, done: Done) -> Result<(), ReferenceError> {
        let Done { state, fetched } = done;
        let now = self.0.shared.clock.now();
        let mut known = self.0.known.lock().unwrap_or_else(PoisonError::into_inner);
        // The record may have changed its origin while this was under way.
        let Some(entry) = known.get_mut(&state.record.id).filter(|entry| entry.origin == state.record.origin) else {
            return Ok(());
        };
        entry.running = false;
        entry.due = now.saturating_add(entry.pause(fetched.is_ok()));
        match fetched {
            Ok((value, stamp)) => {
                entry.stamp = stamp;
                entry.good = now;
                if entry.failing {
                    entry.failing = false;
                    tracing::info!(id = %state.record.id, "provider key reference works again");
                }
                if let Some(value) = value {
                    state.secret.store(Some(Arc::new(value)));
                }
                Ok(())
            }
            Err(error) => {
                entry.stamp = None;
                if !entry.failing {
                    entry.failing = true;
                    let kept = state.secret.load().is_some();
                    tracing::error!(id = %state.record.id, %error, kept, "provider key reference gives nothing");
                }
                Err(error)
            }
        }
    }
}

fn drop_when_stale(state: &ProviderKeyState, known: &mut Known, now: Nanos) {
    let Origin::Exec { refresh_secs, .. } = &known.origin else { return };
    let limit = Nanos::try_from(stale_after(*refresh_secs).as_nanos()).unwrap_or(Nanos::MAX);
    let stale = known.good != 0 && now.saturating_sub(known.good) > limit;
    if stale && state.secret.swap(None).is_some() {
        tracing::error!(id = %state.record.id, "provider key from a command is too old and no longer used");
    }
}

impl Known {
    fn new(origin: &Origin) -> Self {
        Self { origin: origin.clone(), running: false, due: 0, good: 0, failing: false, stamp: None }
    }

    fn pause(&self, worked: bool) -> Nanos {
        match &self.origin {
            // The environment of a process does not change.
            Origin::Sealed | Origin::Env { .. } => Nanos::MAX,
            Origin::File { .. } => 0,
            Origin::Exec { refresh_secs, .. } => {
                let secs = if worked { *refresh_secs } else { EXEC_RETRY_SECS.min(*refresh_secs) };
                secs.max(1).saturating_mul(SECOND)
            }
        }
    }
}

fn read_file(path: &str, before: Option<Stamp>, wall_ms: u64) -> Fetched {
    let name = || format!("file:{path}");
    let failed = |error: std::io::Error| ReferenceError::Failed(name(), error.kind().to_string());
    // One open file for both, so that a link replaced in between cannot mix two files.
    let file = File::open(path).map_err(failed)?;
    let meta = file.metadata().map_err(failed)?;
    let stamp = Stamp {
        device: meta.dev(),
        inode: meta.ino(),
        size: meta.size(),
        modified: (meta.mtime(), meta.mtime_nsec()),
        changed: (meta.ctime(), meta.ctime_nsec()),
    };
    let now = i64::try_from(wall_ms / 1000).unwrap_or(i64::MAX);
    if before == Some(stamp) && now.saturating_sub(meta.ctime()) > FRESH_SECS {
        return Ok((None, before));
    }
    let mut bytes = Zeroizing::new(Vec::with_capacity(256));
    file.take(MAX_BYTES + 1).read_to_end(&mut bytes).map_err(failed)?;
    Ok((Some(to_secret(&bytes, name)?), Some(stamp)))
}

async fn run(command: &str) -> Fetched {
    // The arguments may be private; the program's name is what helps.
    let program = command.split_whitespace().next().unwrap_or_default().to_owned();
    let name = || format!("exec:{program}");
    let failed = |error: std::io::Error| ReferenceError::Failed(name(), error.kind().to_string());
    let mut process = std::process::Command::new(&program);
    process.args(command.split_whitespace().skip(1));
    process.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    // A group of its own, so that what the command started ends with it.
    process.process_group(0);
    WITHHELD.iter().for_each(|variable| {
        process.env_remove(variable);
    });
    let mut child = tokio::process::Command::from(process).kill_on_drop(true).spawn().map_err(failed)?;
    let group = child.id().and_then(|id| rustix::process::Pid::from_raw(id.cast_signed()));
    let mut bytes = Zeroizing::new(Vec::with_capacity(4096));
    let stdout = child.stdout.take();
    let work = async {
        if let Some(stdout) = stdout {
            stdout.take(MAX_BYTES + 1).read_to_end(&mut bytes).await?;
        }
        child.wait().await
    };
    let Ok(status) = tokio::time::timeout(EXEC_TIMEOUT, work).await else {
        if let Some(group) = group {
            // Gone already is as good.
            let _gone = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
        }
        return Err(ReferenceError::TimedOut(name()));
    };
    let status = status.map_err(failed)?;
    if !status.success() {
        return Err(ReferenceError::Failed(name(), status.to_string()));
    }
    let line = bytes.split(|byte| *byte == b'\n').next().unwrap_or_default();
    Ok((Some(to_secret(line, name)?), None))
}

fn to_secret(bytes: &[u8], name: impl Fn() -> String) -> Result<Secret, ReferenceError> {
    if bytes.len() as u64 > MAX_BYTES {
        return Err(ReferenceError::NotAKey(name()));
    }
    let text = std::str::from_utf8(bytes).map_err(|_| ReferenceError::NotAKey(name()))?.trim();
    if text.is_empty() { Err(ReferenceError::Empty(name())) } else { Ok(Secret::new(text.to_owned())) }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn files_are_followed_through_links() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        fs::create_dir_all(path("v1")).unwrap();
        fs::create_dir_all(path("v2")).unwrap();
        fs::write(path("v1/key"), " sk-one\n").unwrap();
        fs::write(path("v2/key"), "sk-two\n").unwrap();
        symlink("v1", path("data")).unwrap();
        let file = path("data/key").to_str().unwrap().to_owned();
        let later = u64::MAX / 2;
        let (first, stamp) = read_file(&file, None, later).unwrap();
        assert_eq!(first.unwrap().expose(), "sk-one");
        assert_eq!(read_file(&file, stamp, later).unwrap().0, None, "unchanged");
        assert!(read_file(&file, stamp, 0).unwrap().0.is_some(), "too fresh to trust its time");
        // As kubelet does: the link is replaced by a rename.
        symlink("v2", path("data.new")).unwrap();
        fs::rename(path("data.new"), path("data")).unwrap();
        assert_eq!(read_file(&file, stamp, later).unwrap().0.unwrap().expose(), "sk-two");
    }

    #[test]
    fn what_is_no_key_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        let read = |bytes: &[u8]| {
            fs::write(&path, bytes).unwrap();
            read_file(path.to_str().unwrap(), None, 0).map(|(value, _)| value.unwrap().expose().to_owned())
        };
        assert_eq!(read(b"k").as_deref(), Ok("k"));
        assert!(matches!(read(b" \n"), Err(ReferenceError::Empty(_))));
        assert!(matches!(read(&[0xff, 0xfe]), Err(ReferenceError::NotAKey(_))));
        assert!(matches!(read(&[b'a'; 70_000]), Err(ReferenceError::NotAKey(_))));
        fs::remove_file(&path).unwrap();
        assert!(matches!(read_file(path.to_str().unwrap(), None, 0), Err(ReferenceError::Failed(..))));
    }

    #[tokio::test]
    async fn commands_give_their_first_line_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let script = |text: &str| {
            let path = dir.path().join("script");
            fs::write(&path, text).unwrap();
            format!("sh {}", path.display())
        };
        let secret = |fetched: Fetched| fetched.map(|(value, _)| value.unwrap().expose().to_owned());
        assert_eq!(secret(run(&script("echo tok-1\necho second")).await).as_deref(), Ok("tok-1"));
        for (name, text) in
            [("fails", "echo tok-secret; exit 3"), ("silent", "true"), ("too much", "echo tok-secret; yes tok-secret")]
        {
            let error = run(&script(text)).await.unwrap_err().to_string();
            assert!(!error.contains("tok-secret"), "{name}: {error}");
        }
        assert!(matches!(run("/no/such/program x").await, Err(ReferenceError::Failed(..))));
        let held = run(&script("echo ${SIDEKEY_MASTER_KEY:-none}")).await;
        assert_eq!(secret(held).as_deref(), Ok("none"));
    }
}
