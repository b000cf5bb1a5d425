//! The process of the command: its start, the signals it is passed, its exit code.
//!
//! Owns the process from start to end; leaves what it finds in its environment to `exec`.

use std::ffi::OsString;
use std::io::ErrorKind;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

use tokio::process::{Child, Command};
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::cli::failure::{Exit, Failure};
use crate::cli::out;

const NOT_RUNNABLE: u8 = 126;
const NOT_FOUND: u8 = 127;

/// Starts the command, waits for its end, and gives its code; `around` runs for as long.
///
/// # Errors
/// When `shut_in` fails: then there was no command.
pub(in crate::cli) async fn run<S: Future<Output = ()>>(
    program: &OsString,
    mut command: Command,
    shut_in: impl AsyncFnOnce(&mut Child) -> Result<S, Failure>,
) -> Result<u8, Failure> {
    let signals = Forwarded::new()?;
    let mut child = match command.spawn() {
        Ok(child) => child,
        Err(error) => {
            out::say(&format!("error: {}: {error}", program.to_string_lossy()));
            return Ok(code_of_failed_start(&error));
        }
    };
    let around = match shut_in(&mut child).await {
        Ok(around) => around,
        Err(failure) => {
            // It waits for leave to begin, which it will not get.
            let _ = child.kill().await;
            return Err(failure);
        }
    };
    Ok(tokio::select! {
        status = wait(child, signals) => code_of(status.ok()),
        () = async { around.await; std::future::pending().await } => Exit::Failure as u8,
    })
}

/// As shells have it.
pub(in crate::cli) fn code_of_failed_start(error: &std::io::Error) -> u8 {
    if error.kind() == ErrorKind::NotFound { NOT_FOUND } else { NOT_RUNNABLE }
}

/// Signals meant for the command. An interrupt typed at a terminal reaches it without us: the terminal sends it to
/// the whole group, and a second one would look like impatience.
struct Forwarded {
    hangup: Signal,
    interrupt: Signal,
    quit: Signal,
    terminate: Signal,
}

impl Forwarded {
    fn new() -> std::io::Result<Self> {
        Ok(Self {
            hangup: signal(SignalKind::hangup())?,
            interrupt: signal(SignalKind::interrupt())?,
            quit: signal(SignalKind::quit())?,
            terminate: signal(SignalKind::terminate())?,
        })
    }

    /// The next signal to pass on.
    async fn next(&mut self) -> rustix::process::Signal {
        use rustix::process::Signal as Sent;
        let from_terminal = || std::io::IsTerminal::is_terminal(&std::io::stdin());
        loop {
            tokio::select! {
                _ = self.terminate.recv() => return Sent::TERM,
                _ = self.hangup.recv() => return Sent::HUP,
                _ = self.interrupt.recv() => if !from_terminal() { return Sent::INT },
                _ = self.quit.recv() => if !from_terminal() { return Sent::QUIT },
            }
        }
    }
}

async fn wait(mut child: Child, mut signals: Forwarded) -> std::io::Result<ExitStatus> {
    loop {
        let sent = tokio::select! {
            status = child.wait() => return status,
            sent = signals.next() => sent,
        };
        let pid = child.id().and_then(|pid| i32::try_from(pid).ok()).and_then(rustix::process::Pid::from_raw);
        // It may have ended in between: then the wait above says so.
        if let Some(pid) = pid {
            let _ = rustix::process::kill_process(pid, sent);
        }
    }
}

/// As shells have it: the command's own code, or 128 and the signal.
fn code_of(status: Option<ExitStatus>) -> u8 {
    let Some(status) = status else { return Exit::Failure as u8 };
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal));
    code.and_then(|code| u8::try_from(code).ok()).unwrap_or(Exit::Failure as u8)
}
