//! What a large ledger costs, with the real binary: `cargo bench --bench ledger`.
//!
//! Fills a store with a million entries over thirty days, then measures a start of `sidekey run`, its memory beside one
//! with an empty store, `usage --days 30` at the API and as a whole command, and the disk: an entry, and after pruning.
//! Options, after `--`: `--entries N` (1,000,000). Nothing is asserted about time.

#![expect(
    clippy::disallowed_methods,
    clippy::print_stderr,
    clippy::print_stdout,
    reason = "a program that measures, and whose output is its purpose"
)]

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use sidekey::clock::Clock;
use sidekey::entry::{Entry, Outcome};
use sidekey::id::{KeyId, KeySource, RequestId};
use sidekey::metrics::Metrics;
use sidekey::storage::{MasterKeyInputs, Store, StoreOptions, StoreSection};
use sidekey::unit::{TokensSource, Usage};

const DAYS: u64 = 30;
const DAY_MS: u64 = 86_400_000;
const PATIENCE: Duration = Duration::from_secs(120);

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    // `cargo test --all-targets` runs benches too, without this flag: nothing to test here.
    if !args.iter().any(|arg| arg == "--bench" || arg == "fill") {
        return ExitCode::SUCCESS;
    }
    let option = |name: &str| args.iter().position(|arg| arg == name).and_then(|at| args.get(at + 1));
    let number = |name: &str, default| option(name).map_or(Ok(default), |text| text.parse());
    let done = (|| match args.first().map(String::as_str) {
        Some("fill") => {
            let dir = option("--dir").context("--dir is missing")?;
            fill(Path::new(dir), number("--from", 0)?, number("--entries", 0)?)
        }
        _ => measure(number("--entries", 1_000_000)?),
    })();
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("ledger: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn wall_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

/// Records entries as if they had come over the last days, evenly.
fn fill(dir: &Path, from: u64, entries: u64) -> Result<()> {
    let step = DAYS * DAY_MS / entries;
    let clock = Clock::manual(wall_ms() - entries * step);
    let store = Store::open(StoreOptions {
        dir: dir.to_owned(),
        create: true,
        master: MasterKeyInputs::default(),
        environment_keys: Vec::new(),
        prices: Arc::default(),
        section: StoreSection { retention_days: 0, ..StoreSection::default() },
        unusual: Default::default(),
        clock: clock.clone(),
        metrics: Metrics::default(),
    })?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let ledger = store.ledger();
    let begin = Instant::now();
    for n in from..from + entries {
        clock.advance_ms(step);
        ledger.record(entry(n, clock.wall_ms()))?;
        if n % 20_000 == 0 {
            runtime.block_on(ledger.flush())?;
        }
    }
    runtime.block_on(ledger.flush())?;
    println!("filled: {:.0} entries/s", entries as f64 / begin.elapsed().as_secs_f64());
    store.close();
    Ok(())
}

/// An entry like those of real traffic: a hundred keys of twenty users in five teams, six models of three providers.
fn entry(n: u64, time_ms: u64) -> Entry {
    let mix = n.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 20;
    let key = mix % 100;
    let provider = (mix >> 8) % 3;
    let (name, models) = [
        ("openai", [("gpt-4o-mini", "gpt-4o-mini-2024-07-18"), ("gpt-4o", "gpt-4o-2024-08-06")]),
        (
            "anthropic",
            [
                ("claude-sonnet-4-0", "claude-sonnet-4-20250514"),
                ("claude-3-5-haiku-latest", "claude-3-5-haiku-20241022"),
            ],
        ),
        ("gemini", [("gemini-2.0-flash", "gemini-2.0-flash-001"), ("gemini-2.5-pro", "gemini-2.5-pro")]),
    ][provider as usize];
    let (asked, reported) = models[(key % 2) as usize];
    let id = |n: u64| KeyId::from_bytes(n.wrapping_mul(0xd134_2543_de82_ef95).to_be_bytes());
    let (input, output) = (200 + (mix >> 12) % 3000, 10 + (mix >> 24) % 800);
    Entry {
        request_id: RequestId::new(time_ms),
        time_ms,
        virtual_key: Some(id(key)),
        user: Some(format!("user-{}", key % 20).into()),
        team: Some(format!("team-{}", key % 5).into()),
        group: n.is_multiple_of(10).then(|| format!("job-{}", n / 50).into()),
        provider: name.into(),
        provider_key: Some(id(1000 + provider)),
        key_source: Some([KeySource::User, KeySource::Team, KeySource::System][(key % 3) as usize]),
        dialect: "openai".into(),
        endpoint: "chat".into(),
        model_requested: Some(asked.into()),
        model_reported: Some(reported.into()),
        stream: n.is_multiple_of(2),
        tokens: Usage {
            input: Some(input),
            cached_input: Some(input / 4),
            output: Some(output),
            total: Some(input + output),
            ..Usage::default()
        },
        tokens_source: TokensSource::Reported,
        cost_nano_usd: Some(input * 150 + output * 600),
        status: 200,
        outcome: if n.is_multiple_of(50) { Outcome::UpstreamError } else { Outcome::Ok },
        error_code: None,
        latency_us: 300_000 + (mix >> 16) % 4_000_000,
        ttfb_us: 100_000 + (mix >> 20) % 400_000,
        overhead_ns: 30_000 + (mix >> 10) % 60_000,
        attempts: 1,
        upstream_request_id: Some(format!("req_{:024x}", n.wrapping_mul(0x2545_f491_4f6c_dd1d)).into()),
        price_version: Some("built-in 2025-11-24".into()),
        service_tier: None,
        plan: Some(format!("plan-{}", key % 3).into()),
        pool: None,
    }
}

fn measure(entries: u64) -> Result<()> {
    let dir = tempfile::Builder::new().prefix("sidekey-ledger-").tempdir()?;
    let empty = Place::new(&dir.path().join("empty"))?;
    let full = Place::new(&dir.path().join("full"))?;
    let status = Command::new(std::env::current_exe()?)
        .args(["fill", "--entries", &entries.to_string(), "--dir"])
        .arg(full.data())
        .status()?;
    ensure!(status.success(), "filling failed");
    full.say_disk("filled", entries)?;
    for (name, place) in [("empty", &empty), ("full", &full), ("empty", &empty), ("full", &full)] {
        let running = place.start()?;
        println!("{name}: ready after {:.0} ms, {} KB resident", running.ready_ms, running.rss_kb()?);
        for path in ["/api/usage?days=30&by=model", "/api/usage?days=30&by=day", "/api/usage?days=30&by=key"] {
            let mut times: Vec<f64> = (0..10).map(|_| place.ask(path)).collect::<Result<_>>()?;
            times.sort_by(f64::total_cmp);
            println!("{name}: {path}: median {:.1} ms, most {:.1} ms", times[5], times[9]);
        }
        let begin = Instant::now();
        place.say(&["usage", "--days", "30", "--by", "model"])?;
        println!("{name}: usage --days 30: {:.1} ms", begin.elapsed().as_secs_f64() * 1e3);
        println!("{name}: after it {} KB resident", running.rss_kb()?);
    }
    full.config("retention_days = 3")?;
    let running = full.start()?;
    let begin = Instant::now();
    let before = full.disk()?.0;
    // Blocks go first; the file is written anew when they have.
    while full.disk()?.0 > before / 2 && begin.elapsed() < PATIENCE {
        std::thread::sleep(Duration::from_millis(100));
    }
    full.say_disk(&format!("pruned, {:.1} s", begin.elapsed().as_secs_f64()), entries / 10)?;
    println!("pruned: {} KB resident", running.rss_kb()?);
    drop(running);
    full.say_disk("stopped", entries / 10)?;
    let running = full.start()?;
    println!("pruned: ready after {:.0} ms, {} KB resident", running.ready_ms, running.rss_kb()?);
    full.say_disk("started again", entries / 10)?;
    Ok(())
}

/// A data directory with a configuration.
struct Place {
    dir: PathBuf,
    telemetry: SocketAddr,
}

impl Place {
    fn new(dir: &Path) -> Result<Self> {
        fs::create_dir_all(dir)?;
        let place = Self { dir: dir.to_owned(), telemetry: TcpListener::bind("127.0.0.1:0")?.local_addr()? };
        place.config("")?;
        place.say(&["init"])?;
        Ok(place)
    }

    fn data(&self) -> PathBuf {
        self.dir.join("data")
    }

    fn config(&self, store: &str) -> Result<()> {
        let telemetry = self.telemetry;
        let text = format!(
            "[listen]\nproxy = \"127.0.0.1:0\"\nadmin = \"off\"\ntelemetry = \"{telemetry}\"\n[store]\n{store}\n[log]\nlevel = \"error\"\n"
        );
        Ok(fs::write(self.dir.join("sidekey.toml"), text)?)
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_sidekey"));
        command.env_clear().env("HOME", &self.dir).env("SIDEKEY_DATA_DIR", self.data());
        command.env("SIDEKEY_CONFIG", self.dir.join("sidekey.toml")).args(args).stdout(Stdio::null());
        command
    }

    fn say(&self, args: &[&str]) -> Result<()> {
        let output = self.command(args).output()?;
        ensure!(output.status.success(), "sidekey {args:?}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    }

    fn start(&self) -> Result<Running> {
        let begin = Instant::now();
        let child = self.command(&["run"]).stdin(Stdio::null()).spawn()?;
        let mut running = Running { child, ready_ms: 0.0 };
        while !self.is_ready() {
            ensure!(begin.elapsed() < PATIENCE, "sidekey is not ready");
            std::thread::sleep(Duration::from_millis(1));
        }
        running.ready_ms = begin.elapsed().as_secs_f64() * 1e3;
        Ok(running)
    }

    fn is_ready(&self) -> bool {
        let Ok(mut stream) = TcpStream::connect(self.telemetry) else { return false };
        let mut answer = String::new();
        let asked = stream.write_all(b"GET /readyz HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
        asked.is_ok() && stream.read_to_string(&mut answer).is_ok() && answer.starts_with("HTTP/1.1 200")
    }

    /// Milliseconds of one question to the admin API.
    fn ask(&self, path: &str) -> Result<f64> {
        let mut stream = UnixStream::connect(self.data().join("admin.sock"))?;
        let begin = Instant::now();
        write!(stream, "GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        ensure!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        Ok(begin.elapsed().as_secs_f64() * 1e3)
    }

    /// Bytes of the files, and those they take on disk.
    fn disk(&self) -> Result<(u64, u64)> {
        let (mut bytes, mut blocks) = (0, 0);
        let mut folders = vec![self.data()];
        while let Some(folder) = folders.pop() {
            // Files and folders come and go while it runs.
            let Ok(items) = fs::read_dir(folder) else { continue };
            for item in items {
                let Ok(meta) = item.as_ref().map_err(|_| ()).and_then(|item| item.metadata().map_err(|_| ())) else {
                    continue;
                };
                if meta.is_dir() {
                    folders.push(item?.path());
                } else {
                    bytes += meta.len();
                    blocks += meta.blocks() * 512;
                }
            }
        }
        Ok((bytes, blocks))
    }

    fn say_disk(&self, when: &str, entries: u64) -> Result<()> {
        let (bytes, blocks) = self.disk()?;
        println!("{when}: {bytes} bytes in files, {blocks} on disk: {:.1} an entry", blocks as f64 / entries as f64);
        Ok(())
    }
}

struct Running {
    child: Child,
    ready_ms: f64,
}

impl Running {
    fn rss_kb(&self) -> Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
        Ok(line.trim().trim_end_matches(" kB").parse()?)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let pid = i32::try_from(self.child.id()).ok().and_then(rustix::process::Pid::from_raw);
        if let Some(pid) = pid {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
        let _ = self.child.wait();
    }
}
