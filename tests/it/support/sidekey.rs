//! The program under test: the real binary, in a data directory of its own, spoken to as its users do.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep, timeout};

use super::client::{self, Request};

/// How long a start, a stop or a line of the ledger may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// An upstream to declare in the configuration.
#[derive(Clone, Debug)]
struct Declared {
    id: String,
    base_url: String,
    /// Of one that is not built in.
    dialect: Option<String>,
    /// More lines of its table.
    more: String,
}

/// How to start one.
#[derive(Clone, Debug, Default)]
pub(crate) struct Options {
    providers: Vec<Declared>,
    config: String,
    env: Vec<(String, String)>,
}

impl Options {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// Sends what is for a built-in provider to `base_url`.
    pub(crate) fn provider(self, id: &str, base_url: &str) -> Self {
        self.provider_with(id, base_url, "")
    }

    /// The same, with more lines of its table.
    pub(crate) fn provider_with(mut self, id: &str, base_url: &str, more: &str) -> Self {
        self.providers.push(Declared { id: id.into(), base_url: base_url.into(), dialect: None, more: more.into() });
        self
    }

    /// Declares a provider of the operator's own.
    pub(crate) fn own_provider(mut self, id: &str, dialect: &str, base_url: &str) -> Self {
        let (id, dialect) = (id.into(), Some(dialect.into()));
        self.providers.push(Declared { id, base_url: base_url.into(), dialect, more: String::new() });
        self
    }

    /// Adds lines at the head of the configuration; whole tables are fine, `[listen]` is taken.
    pub(crate) fn config(mut self, toml: &str) -> Self {
        self.config.push_str(toml);
        self.config.push('\n');
        self
    }

    /// Sets a variable for the daemon and the commands.
    pub(crate) fn env(mut self, name: &str, value: impl Into<String>) -> Self {
        self.env.push((name.into(), value.into()));
        self
    }

    fn toml(&self) -> String {
        let mut toml = self.config.clone();
        toml += "[listen]\nproxy = \"127.0.0.1:0\"\nadmin = \"127.0.0.1:0\"\ntelemetry = \"127.0.0.1:0\"\n";
        for Declared { id, base_url, dialect, more } in &self.providers {
            write!(toml, "\n[providers.{id}]\nbase_url = {base_url:?}\n").expect("a string takes it");
            if let Some(dialect) = dialect {
                writeln!(toml, "dialect = {dialect:?}").expect("a string takes it");
            }
            writeln!(toml, "{more}").expect("a string takes it");
        }
        toml
    }
}

/// A running sidekey; killed when dropped.
#[derive(Debug)]
pub(crate) struct Sidekey {
    /// Where clients go.
    pub(crate) proxy: SocketAddr,
    /// The admin API over TCP.
    pub(crate) admin: SocketAddr,
    /// `/metrics`, `/readyz` and their like.
    pub(crate) telemetry: SocketAddr,
    folder: TempDir,
    env: Vec<(String, String)>,
    child: Child,
}

/// A virtual key just made.
#[derive(Clone, Debug)]
pub(crate) struct Key {
    /// The key itself.
    pub(crate) key: String,
    /// Its public part.
    pub(crate) id: String,
    /// `key_data`.
    pub(crate) data: Value,
}

/// The binary: this build's, or the one `SIDEKEY_TEST_BIN` names (to try a packaged one).
pub(crate) fn binary() -> PathBuf {
    std::env::var_os("SIDEKEY_TEST_BIN").map_or_else(|| env!("CARGO_BIN_EXE_sidekey").into(), PathBuf::from)
}

fn command(folder: &Path, env: &[(String, String)]) -> Command {
    let mut command = Command::new(binary());
    command.env_clear();
    for name in ["PATH", "LLVM_PROFILE_FILE", "RUST_BACKTRACE"] {
        if let Some(value) = std::env::var_os(name) {
            command.env(name, value);
        }
    }
    command
        .env("HOME", folder)
        .env("SIDEKEY_DATA_DIR", folder.join("data"))
        .env("SIDEKEY_CONFIG", folder.join("sidekey.toml"))
        .envs(env.iter().map(|(name, value)| (name, value)))
        .current_dir(folder)
        .kill_on_drop(true);
    command
}

impl Sidekey {
    /// Starts one and waits until it is ready.
    pub(crate) async fn start(options: &Options) -> Self {
        let folder = tempfile::Builder::new().prefix("sidekey-it-").tempdir().expect("a temporary folder");
        std::fs::write(folder.path().join("sidekey.toml"), options.toml()).expect("a writable folder");
        let init = command(folder.path(), &options.env).arg("init").stdin(Stdio::null()).output().await;
        let init = init.expect("the binary runs");
        assert!(init.status.success(), "init: {}", String::from_utf8_lossy(&init.stderr));
        let child = spawn(folder.path(), &options.env);
        let unbound = SocketAddr::from(([127, 0, 0, 1], 0));
        let mut sidekey =
            Self { proxy: unbound, admin: unbound, telemetry: unbound, folder, env: options.env.clone(), child };
        sidekey.wait_until_ready().await;
        sidekey
    }

    /// Starts one with `provider` in front of `base_url` and a provider key for it.
    pub(crate) async fn with(provider: &str, base_url: &str) -> Self {
        let sidekey = Self::start(&Options::new().provider(provider, base_url)).await;
        sidekey.add_provider_key(provider, REAL_KEY).await;
        sidekey
    }

    async fn wait_until_ready(&mut self) {
        let deadline = Instant::now() + PATIENCE;
        let mut bound = false;
        // Another process comes up: its file and its port can only be asked for again and again.
        loop {
            if let Some(status) = self.child.try_wait().expect("our own child") {
                panic!("sidekey run ended with {status}:\n{}", self.stderr());
            }
            if !bound && let Some([proxy, admin, telemetry]) = self.read_run_json() {
                (self.proxy, self.admin, self.telemetry, bound) = (proxy, admin, telemetry, true);
            }
            if bound && self.readyz().await == Some(200) {
                return;
            }
            assert!(Instant::now() < deadline, "sidekey run is not ready in {PATIENCE:?}:\n{}", self.stderr());
            sleep(Duration::from_millis(10)).await;
        }
    }

    fn read_run_json(&self) -> Option<[SocketAddr; 3]> {
        let text = std::fs::read(self.data_dir().join("run.json")).ok()?;
        let run: Value = serde_json::from_slice(&text).ok()?;
        // A file left behind by a killed process names another pid.
        (run["pid"].as_u64() == self.child.id().map(u64::from)).then_some(())?;
        let address = |name: &str| run[name].as_str()?.parse().ok();
        Some([address("proxy")?, address("admin")?, address("telemetry")?])
    }

    async fn readyz(&self) -> Option<u16> {
        let mut client = client::Client::connect(self.telemetry).await.ok()?;
        Some(client.send(&Request::get("/readyz")).await.ok()?.status)
    }

    /// Where the store is.
    pub(crate) fn data_dir(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    /// The roots of its local CA.
    pub(crate) fn root_pem(&self) -> PathBuf {
        self.data_dir().join("ca/root.pem")
    }

    /// Where the configuration, the data and the logs are.
    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Everything the daemon wrote to stderr so far, over all restarts.
    pub(crate) fn stderr(&self) -> String {
        let text = std::fs::read(self.folder.path().join("stderr.log")).unwrap_or_default();
        String::from_utf8_lossy(&text).into_owned()
    }

    /// Runs a command with `input` on its stdin.
    pub(crate) async fn cli_with(&self, args: &[&str], input: &str) -> Output {
        let mut child = command(self.folder.path(), &self.env)
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the binary runs");
        let mut stdin = child.stdin.take().expect("stdin is piped");
        // A command that does not read its stdin may be gone before this is written.
        drop(stdin.write_all(input.as_bytes()).await);
        drop(stdin);
        let output = timeout(PATIENCE * 3, child.wait_with_output()).await;
        output.unwrap_or_else(|_| panic!("sidekey {} does not end", args.join(" "))).expect("our own child")
    }

    /// Runs a command with these variables beside its own.
    pub(crate) async fn cli_env(&self, args: &[&str], env: &[(&str, &str)]) -> Output {
        let mut command = command(self.folder.path(), &self.env);
        command.args(args).envs(env.iter().copied()).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let output = timeout(PATIENCE * 3, command.output()).await;
        output.unwrap_or_else(|_| panic!("sidekey {} does not end", args.join(" "))).expect("our own child")
    }

    /// Starts a command with its stdin and stdout in our hands.
    pub(crate) fn spawn_cli(&self, args: &[&str]) -> Child {
        let mut command = command(self.folder.path(), &self.env);
        command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped());
        command.spawn().expect("the binary runs")
    }

    /// Runs a command.
    pub(crate) async fn cli(&self, args: &[&str]) -> Output {
        self.cli_with(args, "").await
    }

    /// Runs a command that must succeed; its stdout.
    pub(crate) async fn ok(&self, args: &[&str]) -> String {
        let output = self.cli(args).await;
        let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "sidekey {}: {}\n{stdout}{stderr}", args.join(" "), output.status);
        stdout.into_owned()
    }

    /// Makes a virtual key with these flags.
    pub(crate) async fn create_key(&self, flags: &[&str]) -> Key {
        let mut args = vec!["key", "create", "-o", "json"];
        if !flags.contains(&"--name") {
            args.extend(["--name", "test"]);
        }
        args.extend(flags);
        let made: Value = serde_json::from_str(&self.ok(&args).await).expect("JSON");
        let text = |value: &Value| value.as_str().unwrap_or_else(|| panic!("not as designed: {made}")).to_owned();
        Key { key: text(&made["key"]), id: text(&made["key_data"]["id"]), data: made["key_data"].clone() }
    }

    /// Gives `provider` a real key.
    pub(crate) async fn add_provider_key(&self, provider: &str, secret: &str) {
        self.add_provider_key_as(provider, secret, &["--name", "main"]).await;
    }

    /// The same, with flags.
    pub(crate) async fn add_provider_key_as(&self, provider: &str, secret: &str, flags: &[&str]) {
        let mut args = vec!["provider-key", "add", provider, "--stdin", "--no-test"];
        args.extend(flags);
        let output = self.cli_with(&args, secret).await;
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "sidekey {}: {stderr}", args.join(" "));
    }

    /// The ledger, newest first.
    pub(crate) async fn ledger(&self) -> Vec<Value> {
        let lines = self.ok(&["ledger", "--limit", "1000000", "-o", "jsonl"]).await;
        lines.lines().map(|line| serde_json::from_str(line).expect("a line of JSON")).collect()
    }

    /// The entry of a request, as soon as it is recorded.
    pub(crate) async fn entry(&self, request_id: &str) -> Value {
        assert!(!request_id.is_empty(), "the answer had no x-sidekey-request-id");
        self.entry_where(&format!("request_id {request_id}"), |entry| entry["request_id"] == request_id).await
    }

    /// The newest entry that fits, as soon as there is one. The ledger is written in batches, off the request's
    /// path: a reader can only ask again.
    pub(crate) async fn entry_where(&self, what: &str, fits: impl Fn(&Value) -> bool) -> Value {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(entry) = self.ledger().await.into_iter().find(|entry| fits(entry)) {
                return entry;
            }
            assert!(Instant::now() < deadline, "no entry of {what} in {PATIENCE:?}");
        }
    }

    /// The metrics page.
    pub(crate) async fn metrics(&self) -> String {
        client::send(self.telemetry, &Request::get("/metrics")).await.text()
    }

    /// Asks the admin API for something that must be granted; its JSON.
    pub(crate) async fn admin(&self, method: &str, path: &str, body: &Value) -> Value {
        let (status, answer) = self.admin_as(method, path, "", body).await;
        assert!((200..300).contains(&status), "{method} {path}: {status} {answer}");
        answer
    }

    /// The same, with more lines of head, and whatever comes back.
    pub(crate) async fn admin_as(&self, method: &str, path: &str, head: &str, body: &Value) -> (u16, Value) {
        let mut socket = UnixStream::connect(self.data_dir().join("admin.sock")).await.expect("the daemon listens");
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let request = format!(
            "{method} {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-type: application/json\r\n\
             content-length: {}\r\n{head}\r\n{body}",
            body.len()
        );
        socket.write_all(request.as_bytes()).await.expect("the daemon reads");
        let mut answer = String::new();
        let read = timeout(PATIENCE, socket.read_to_string(&mut answer)).await;
        read.unwrap_or_else(|_| panic!("{method} {path}: no answer")).expect("text");
        let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
        let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
        (status, serde_json::from_str(body).unwrap_or_default())
    }

    /// A provider key as it is shown.
    pub(crate) async fn provider_key(&self, name: &str) -> Value {
        let list = self.admin("GET", &format!("/api/provider-keys?name={name}"), &Value::Null).await;
        list["provider_keys"][0].clone()
    }

    /// Sends one request to the proxy port.
    pub(crate) async fn send(&self, request: &Request) -> client::Answer {
        client::send(self.proxy, request).await
    }

    /// Asks it to end and expects a clean end.
    pub(crate) async fn stop(&mut self) {
        self.signal(Signal::TERM);
        self.wait_for_exit().await;
    }

    /// Waits for a clean end, after a signal that asks for one.
    pub(crate) async fn wait_for_exit(&mut self) {
        let status = timeout(PATIENCE, self.child.wait()).await;
        let status = status.unwrap_or_else(|_| panic!("no end after SIGTERM:\n{}", self.stderr())).expect("our child");
        assert_eq!(status.code(), Some(0), "after SIGTERM:\n{}", self.stderr());
    }

    /// Waits until it has taken notice of a signal that asks for its end.
    pub(crate) async fn wait_until_draining(&self) {
        let deadline = Instant::now() + PATIENCE;
        // A signal has no answer: the probe can only be asked again and again.
        while self.readyz().await != Some(503) {
            assert!(Instant::now() < deadline, "not draining in {PATIENCE:?}:\n{}", self.stderr());
            sleep(Duration::from_millis(2)).await;
        }
    }

    /// Kills it where it stands.
    pub(crate) async fn kill(&mut self) {
        self.child.kill().await.expect("our own child");
    }

    /// How many descriptors it has open, and its resident memory in bytes (Linux).
    pub(crate) fn held(&self) -> (usize, u64) {
        let process = PathBuf::from(format!("/proc/{}", self.child.id().expect("it runs")));
        let open = std::fs::read_dir(process.join("fd")).expect("our own child").count();
        let status = std::fs::read_to_string(process.join("status")).expect("our own child");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("its memory");
        let kib: u64 = line.trim().trim_end_matches(" kB").parse().expect("a number");
        (open, kib * 1024)
    }

    /// Sends it a signal.
    pub(crate) fn signal(&self, signal: Signal) {
        let pid = self.child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
        kill_process(pid.expect("it runs"), signal).expect("our own child");
    }

    /// Starts it again, after `stop` or `kill`; the ports are new.
    pub(crate) async fn restart(&mut self) {
        self.child = spawn(self.folder.path(), &self.env);
        self.wait_until_ready().await;
    }
}

/// The real key that [`Sidekey::with`] adds.
pub(crate) const REAL_KEY: &str = "sk-real-Kq7WmZ3xTn9vRb2cYh5dJf8gLs4pAe6u";

fn spawn(folder: &Path, env: &[(String, String)]) -> Child {
    let log = |name| {
        let file = std::fs::OpenOptions::new().create(true).append(true).open(folder.join(name));
        Stdio::from(file.expect("a writable folder"))
    };
    command(folder, env)
        .arg("run")
        .stdin(Stdio::null())
        .stdout(log("stdout.log"))
        .stderr(log("stderr.log"))
        .spawn()
        .expect("the binary runs")
}
