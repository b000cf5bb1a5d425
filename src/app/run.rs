//! `sidekey run`: the daemon.
//!
//! Owns its signals and the file that tells others where it listens; leaves the work to [`Running`].

use std::fs;
use std::io::{self, IsTerminal};
use std::path::{Path, PathBuf};

use serde_json::json;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::app::{Listen, Running, StartError, harden, log};
use crate::config::{Environment, Loaded};
use crate::control::Listening;

/// Runs until SIGTERM or SIGINT, then drains; a second one ends the wait for open requests. SIGHUP reloads.
///
/// # Errors
/// When it cannot start.
pub fn run(loaded: &Loaded, environment: &Environment) -> Result<(), StartError> {
    log::start(loaded.config.log, environment);
    for warning in &loaded.warnings {
        tracing::warn!("{warning}");
    }
    harden::harden();
    let listen = Listen {
        proxy: loaded.config.listen.proxy,
        telemetry: Some(loaded.config.listen.telemetry),
        transparent: loaded.config.listen.transparent,
        admin: loaded.config.listen.admin,
        admin_socket: Some(loaded.admin_socket()),
    };
    let signals = Signals::new()?;
    let running = Running::start(loaded, environment, &listen)?;
    let file = match RunFile::write(&loaded.places.data_dir, running.listening()) {
        Ok(file) => file,
        Err(error) => {
            running.stop();
            return Err(error.into());
        }
    };
    let listening = running.listening();
    tracing::info!(proxy = %listening.proxy, telemetry = listening.telemetry.map(tracing::field::display), "ready");
    while signals.wait() == Asked::Reload {
        running.reload();
    }
    tracing::info!("asked to stop");
    let hurry = running.hurry();
    let again = std::thread::Builder::new().name("sidekey-signals".to_owned()).spawn(move || {
        while signals.wait() == Asked::Reload {}
        hurry.signal();
    });
    if let Err(error) = again {
        tracing::warn!(%error, "a second signal will not be heard");
    }
    running.stop();
    drop(file);
    tracing::info!("stopped");
    Ok(())
}

/// What a signal asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asked {
    Reload,
    Stop,
}

/// The signals that ask for something.
struct Signals {
    runtime: tokio::runtime::Runtime,
    asked: std::sync::Mutex<[Signal; 3]>,
    /// It was started from a terminal.
    terminal: bool,
}

impl Signals {
    fn new() -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
        let asked = {
            let _entered = runtime.enter();
            [signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?, signal(SignalKind::hangup())?]
        };
        Ok(Self { runtime, asked: std::sync::Mutex::new(asked), terminal: io::stdin().is_terminal() })
    }

    /// Blocks until the next one.
    fn wait(&self) -> Asked {
        let mut asked = self.asked.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let [terminate, interrupt, hangup] = &mut *asked;
        self.runtime.block_on(async {
            tokio::select! {
                _ = terminate.recv() => Asked::Stop,
                _ = interrupt.recv() => Asked::Stop,
                // That of a terminal which was closed asks for the end: then stdin is none any more.
                _ = hangup.recv() => match self.terminal && !io::stdin().is_terminal() {
                    true => Asked::Stop,
                    false => Asked::Reload,
                },
            }
        })
    }
}

/// `run.json` in the data directory: where the daemon of this pid listens, for scripts. Removed at the end.
struct RunFile(PathBuf);

impl RunFile {
    fn write(data_dir: &Path, listening: &Listening) -> io::Result<Self> {
        let path = data_dir.join("run.json");
        let aside = data_dir.join("run.json.new");
        let text = json!({
            "pid": std::process::id(),
            "proxy": listening.proxy,
            "telemetry": listening.telemetry,
            "transparent": listening.transparent,
            "admin": listening.admin,
            "admin_socket": listening.admin_socket,
        });
        // Renamed into place: a reader sees all of it or nothing.
        fs::write(&aside, format!("{text}\n"))?;
        fs::rename(&aside, &path)?;
        Ok(Self(path))
    }
}

impl Drop for RunFile {
    fn drop(&mut self) {
        // Another pid in it tells readers enough, should this fail.
        let _ = fs::remove_file(&self.0);
    }
}
