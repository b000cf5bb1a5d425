//! The systems under test, each a process of its own: how one is set up, started, asked for a first answer, stopped.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde::Serialize;

use crate::plan::{self, Proxy, REAL_KEY, Script, Target};
use crate::probe;
use crate::wire::{self, Framing};

/// Longer than any start or stop takes on a machine that is not broken.
const PATIENCE: Duration = Duration::from_secs(20);
/// A path every system forwards.
const PATH: &str = "/v1/chat/completions";

/// A child process that does not outlive this value.
pub(crate) struct Process(Child);

impl Process {
    pub(crate) fn pid(&self) -> u32 {
        self.0.id()
    }

    /// This program again, in another role.
    pub(crate) fn role(role: &str, plan: &impl Serialize) -> Result<Command> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg(role).arg(serde_json::to_string(plan)?);
        Ok(command)
    }

    /// Starts `command` on `core`.
    pub(crate) fn start(command: &mut Command, core: usize) -> Result<Self> {
        let pinned = probe::pin(core);
        let child = command.stdin(Stdio::null()).spawn().with_context(|| format!("starting {command:?}"));
        if pinned {
            probe::unpin();
        }
        Ok(Self(child?))
    }

    fn stop(&mut self) -> Result<()> {
        let pid = i32::try_from(self.pid()).ok().and_then(Pid::from_raw).context("no process id")?;
        if self.0.try_wait()?.is_none() {
            kill_process(pid, Signal::TERM)?;
        }
        let end = probe::monotonic_ns() + u64::try_from(PATIENCE.as_nanos())?;
        while self.0.try_wait()?.is_none() {
            ensure!(probe::monotonic_ns() < end, "process {} does not stop", self.pid());
            thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.stop().is_err() {
            // It did not go when asked.
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }
}

/// A free address. Nothing holds it once this returns, but the kernel does not give it out again soon.
pub(crate) fn free_address() -> Result<SocketAddr> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}

/// One of the columns.
pub(crate) enum System {
    Direct,
    Bare,
    Sidekey(Box<Sidekey>),
}

/// A system that answers.
pub(crate) struct Started {
    /// `None` when nothing stands between load and upstream.
    pub(crate) proxy: Option<Process>,
    pub(crate) target: Target,
    /// From the start of the process to its first answer, milliseconds.
    pub(crate) first_answer_ms: f64,
}

impl System {
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Bare => "bare",
            Self::Direct => "direct",
            Self::Sidekey(_) => "sidekey",
        }
    }

    /// The program measured.
    pub(crate) fn program(&self) -> Result<Option<PathBuf>> {
        Ok(match self {
            Self::Direct => None,
            Self::Bare => Some(std::env::current_exe()?),
            Self::Sidekey(sidekey) => Some(sidekey.program.clone()),
        })
    }

    pub(crate) fn start(&self, upstream: SocketAddr) -> Result<Started> {
        let (command, target) = match self {
            Self::Direct => (None, Target { addr: upstream, path: PATH.to_owned(), key: REAL_KEY.to_owned() }),
            Self::Bare => {
                let plan = Proxy { listen: free_address()?, upstream, token: "sk-bench-virtual".to_owned() };
                let target = Target { addr: plan.listen, path: PATH.to_owned(), key: plan.token.clone() };
                (Some(Process::role("bare", &plan)?), target)
            }
            Self::Sidekey(sidekey) => {
                let path = format!("/openai{PATH}");
                (Some(sidekey.command(&["run"])), Target { addr: sidekey.listen, path, key: sidekey.key.clone() })
            }
        };
        let begin = probe::monotonic_ns();
        let proxy = command.map(|mut command| Process::start(&mut command, probe::PROXY_CORE)).transpose()?;
        let request = plan::request(&target, Script::Json, 1_024);
        wait_for_ok(target.addr, &request).with_context(|| format!("{} gives no answer", self.name()))?;
        let first_answer_ms = (probe::monotonic_ns() - begin) as f64 / 1e6;
        Ok(Started { proxy, target, first_answer_ms })
    }
}

impl Started {
    /// What must hold before its figures mean anything: a wrong key is refused, and a body comes through untouched.
    pub(crate) fn check(&self) -> Result<()> {
        let right = ask(self.target.addr, &plan::request(&self.target, Script::Json, 1_024))?;
        let body = |answer: &[u8]| wire::head_end(answer).map(|head| answer[head..].to_vec());
        ensure!(body(&right) == body(&plan::json_answer()), "the body of an answer is changed on the way");
        let stranger = Target { key: self.target.key.replace(char::is_numeric, "0") + "x", ..self.target.clone() };
        let wrong = ask(self.target.addr, &plan::request(&stranger, Script::Json, 1_024))?;
        ensure!(wire::status(&wrong) == Some(401), "a wrong key is not refused by 401");
        Ok(())
    }
}

/// Asks until the answer is 200.
fn wait_for_ok(addr: SocketAddr, request: &[u8]) -> Result<()> {
    let end = probe::monotonic_ns() + u64::try_from(PATIENCE.as_nanos())?;
    loop {
        let error = match ask(addr, request) {
            Ok(answer) if wire::status(&answer) == Some(200) => return Ok(()),
            Ok(answer) => anyhow::anyhow!("{}", String::from_utf8_lossy(&answer)),
            Err(error) => error,
        };
        if probe::monotonic_ns() > end {
            return Err(error);
        }
        thread::sleep(Duration::from_micros(200));
    }
}

/// One whole answer of known length.
fn ask(addr: SocketAddr, request: &[u8]) -> Result<Vec<u8>> {
    let mut stream = TcpStream::connect(addr)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(request)?;
    let mut answer = Vec::new();
    let mut piece = [0; 4 * 1024];
    loop {
        if let Some(head) = wire::head_end(&answer) {
            match wire::framing(&answer[..head])? {
                Framing::Length(length) if answer.len() < head + length => {}
                Framing::Length(_) | Framing::Chunked => return Ok(answer),
            }
        }
        let read = stream.read(&mut piece)?;
        ensure!(read > 0, "the connection ended inside an answer");
        answer.extend_from_slice(&piece[..read]);
    }
}

/// sidekey, set up in a directory of its own as a person would do it.
pub(crate) struct Sidekey {
    program: PathBuf,
    dir: PathBuf,
    listen: SocketAddr,
    key: String,
}

impl Sidekey {
    pub(crate) fn set_up(program: &Path, dir: &Path, upstream: SocketAddr) -> Result<Self> {
        let (listen, admin, telemetry) = (free_address()?, free_address()?, free_address()?);
        let config = format!(
            "[listen]\nproxy = \"{listen}\"\nadmin = \"{admin}\"\ntelemetry = \"{telemetry}\"\n\n\
             [providers.openai]\nbase_url = \"http://{upstream}\"\n"
        );
        std::fs::create_dir_all(dir)?;
        std::fs::write(dir.join("sidekey.toml"), config)?;
        let mut sidekey = Self { program: program.to_owned(), dir: dir.to_owned(), listen, key: String::new() };
        sidekey.say(&["init"], "")?;
        let _running = Process::start(&mut sidekey.command(&["run"]), probe::PROXY_CORE)?;
        wait_for_ok(telemetry, b"GET /readyz HTTP/1.1\r\nhost: localhost\r\n\r\n").context("sidekey is not ready")?;
        sidekey.say(&["provider-key", "add", "openai", "--name", "main", "--stdin", "--no-test"], REAL_KEY)?;
        // Limits that are counted and never reached.
        let create = ["key", "create", "--name", "bench", "--rpm", "1000000000", "--tpm", "4000000000", "-o", "json"];
        let made: serde_json::Value = serde_json::from_slice(&sidekey.say(&create, "")?.stdout)?;
        sidekey.key = made["key"].as_str().context("key create -o json shows no key")?.to_owned();
        Ok(sidekey)
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        // Nothing of this environment: a proxy or a real key in it would change what is measured.
        command.env_clear().env("HOME", &self.dir).env("SIDEKEY_DATA_DIR", self.dir.join("data"));
        command.env("SIDEKEY_CONFIG", self.dir.join("sidekey.toml")).args(args).stdout(Stdio::null());
        command
    }

    fn say(&self, args: &[&str], stdin: &str) -> Result<Output> {
        let mut command = self.command(args);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        child.stdin.take().context("no standard input")?.write_all(stdin.as_bytes())?;
        let output = child.wait_with_output()?;
        if !output.status.success() {
            bail!("sidekey {}: {}: {}", args.join(" "), output.status, String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(output)
    }
}
