//! How many writes a proxy makes towards its client, counted by `strace` where there is one.

use std::fs;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process};

/// A running trace of one process.
pub(crate) struct Trace {
    child: Child,
    log: PathBuf,
}

impl Trace {
    /// `None` without `strace`, or without leave to use it.
    pub(crate) fn start(pid: u32, scratch: &Path) -> Result<Option<Self>> {
        let log = scratch.join(format!("strace-{pid}"));
        let calls = "trace=write,writev,sendto,sendmsg,sendmmsg";
        let spawned = Command::new("strace")
            .args(["-f", "-q", "-yy", "-s", "0", "-e", calls, "-e", "signal=none", "-p", &pid.to_string(), "-o"])
            .arg(&log)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        let mut child = match spawned {
            Ok(child) => child,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).context("starting strace"),
        };
        for _ in 0..200 {
            if child.try_wait()?.is_some() {
                return Ok(None);
            }
            if fs::read_to_string(format!("/proc/{pid}/status"))?.contains(&format!("TracerPid:\t{}", child.id())) {
                return Ok(Some(Self { child, log }));
            }
            thread::sleep(Duration::from_millis(10));
        }
        child.kill()?;
        child.wait()?;
        Ok(None)
    }

    /// Ends it. Gives how many writes went out of connections accepted at `listen`.
    pub(crate) fn writes_from(mut self, listen: SocketAddr) -> Result<usize> {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw).context("no process id")?;
        kill_process(pid, Signal::INT)?;
        self.child.wait()?;
        let log = fs::read_to_string(&self.log)?;
        let local = format!("[{listen}->");
        let ours = |line: &&str| line.contains(&local) && !line.contains("resumed>") && !line.contains("EAGAIN");
        Ok(log.lines().filter(ours).count())
    }
}

impl Drop for Trace {
    fn drop(&mut self) {
        // Ended already, unless something failed in between.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
