//! The run: every system through every phase, round by round.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;

use crate::plan::{Outcome, Plan, Target, Work};
use crate::probe;
use crate::strace::Trace;
use crate::system::{Process, Sidekey, Started, System, free_address};
use crate::table::Samples;

const PHASES: [&str; 7] = ["start", "throughput", "large", "latency", "streams", "burst", "memory"];
/// How long memory has to come back after streams have closed.
const SETTLE: Duration = Duration::from_secs(3);

/// The command line.
pub(crate) struct Options {
    rounds: usize,
    quick: bool,
    only: Vec<String>,
    sidekey: PathBuf,
}

impl Options {
    pub(crate) fn parse(args: &[String]) -> Result<Self> {
        let sidekey = PathBuf::from(env!("CARGO_BIN_EXE_sidekey"));
        let mut options = Self { rounds: 0, quick: false, only: Vec::new(), sidekey };
        let mut args = args.iter();
        while let Some(arg) = args.next() {
            let mut value = || args.next().with_context(|| format!("{arg} needs a value"));
            match arg.as_str() {
                "--bench" => {}
                "--quick" => options.quick = true,
                "--nice" => probe::set_nice(value()?.parse().context("--nice")?)?,
                "--rounds" => options.rounds = value()?.parse().context("--rounds")?,
                "--sidekey" => options.sidekey = value()?.into(),
                "--only" => options.only.push(value()?.clone()),
                other => anyhow::bail!("unknown option {other}: see the head of benches/compare/main.rs"),
            }
        }
        let known = |phase: &String| PHASES.contains(&phase.as_str());
        ensure!(options.only.iter().all(known), "--only takes one of {}", PHASES.join(", "));
        if options.rounds == 0 {
            options.rounds = if options.quick { 1 } else { 3 };
        }
        Ok(options)
    }

    fn has(&self, phase: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|only| only == phase)
    }

    /// `full` milliseconds, or a third of it.
    fn ms(&self, full: u64) -> u64 {
        if self.quick { full / 3 } else { full }
    }
}

pub(crate) fn run(options: &Options) -> Result<()> {
    let dir = TempDir::new()?;
    let upstream = free_address()?;
    let _upstream = Process::start(&mut Process::role("upstream", &upstream)?, probe::LOAD_CORE)?;
    System::Direct.start(upstream).context("the upstream does not come up")?;
    let mut systems = vec![System::Direct, System::Bare];
    match Sidekey::set_up(&options.sidekey, &dir.path().join("sidekey"), upstream) {
        Ok(sidekey) => systems.push(System::Sidekey(Box::new(sidekey))),
        Err(error) => eprintln!("without sidekey: {error:#}"),
    }
    let mut samples = Samples::default();
    let mut failed = 0;
    for round in 0..options.rounds {
        for system in &systems {
            let name = system.name();
            eprintln!("round {} of {}: {name}", round + 1, options.rounds);
            let run =
                |started| Run { options, system, started, scratch: dir.path(), round, samples: &mut samples }.phases();
            // One that fails must not cost the figures of the others.
            if let Err(error) = system.start(upstream).and_then(run) {
                eprintln!("{name} failed: {error:#}");
                failed += 1;
            }
        }
    }
    println!("{}", samples.table());
    ensure!(failed == 0, "{failed} turns failed: see above");
    Ok(())
}

/// One system in one round.
struct Run<'a> {
    options: &'a Options,
    system: &'a System,
    started: Started,
    scratch: &'a Path,
    round: usize,
    samples: &'a mut Samples,
}

impl Run<'_> {
    fn phases(mut self) -> Result<()> {
        self.started.check()?;
        if self.options.has("start") {
            self.first_answer()?;
        }
        if self.options.has("memory") {
            // Before any load: what a process kept of it would hide what a stream costs.
            self.memory()?;
        }
        if self.options.has("throughput") {
            self.throughput(1_024, "rps", "cpu_us", Some("user_us"))?;
        }
        if self.options.has("large") {
            self.throughput(64 * 1_024, "rps_64k", "cpu_64k_us", None)?;
        }
        if self.options.has("latency") {
            self.latency()?;
        }
        if self.options.has("streams") {
            self.streams()?;
        }
        if self.options.has("burst") {
            self.burst()?;
        }
        Ok(())
    }

    fn record(&mut self, id: &'static str, value: f64) {
        self.samples.record(self.round, self.system.name(), id, value);
    }

    fn pid(&self) -> Option<u32> {
        self.started.proxy.as_ref().map(Process::pid)
    }

    fn rss_mb(&self) -> Result<Option<f64>> {
        self.pid().map(|pid| Ok(probe::rss_kb(pid)? as f64 / 1_024.0)).transpose()
    }

    /// Runs a load to its end. Gives its outcome and the proxy's time on the processor, all and user, microseconds.
    fn load(&self, work: Work) -> Result<(Outcome, Option<(f64, f64)>)> {
        let cpu = || -> Result<Option<(u64, u64)>> {
            self.pid().map(|pid| Ok((probe::cpu_ns(pid)?, probe::user_ns(pid)?))).transpose()
        };
        let before = cpu()?;
        let outcome = Load::start(&self.started.target, work)?.outcome()?;
        let micros = |after: u64, before: u64| after.saturating_sub(before) as f64 / 1_000.0;
        let spent = before.zip(cpu()?).map(|(before, after)| (micros(after.0, before.0), micros(after.1, before.1)));
        Ok((outcome, spent))
    }

    fn first_answer(&mut self) -> Result<()> {
        if let Some(program) = self.system.program()? {
            self.record("start_ms", self.started.first_answer_ms);
            if self.round == 0 {
                let bytes = probe::stripped_bytes(&program, self.scratch)?;
                self.record("size_mb", bytes as f64 / 1e6);
            }
        }
        Ok(())
    }

    fn throughput(
        &mut self,
        body: usize,
        rps: &'static str,
        cpu: &'static str,
        user: Option<&'static str>,
    ) -> Result<()> {
        let (outcome, spent) = self.load(Work::Throughput { connections: 64, body, ms: self.options.ms(3_000) })?;
        self.record(rps, outcome["rps"]);
        if let Some((all_us, user_us)) = spent {
            self.record(cpu, all_us / outcome["requests"]);
            if let Some(user) = user {
                self.record(user, user_us / outcome["requests"]);
            }
        }
        Ok(())
    }

    fn latency(&mut self) -> Result<()> {
        let (outcome, _) = self.load(Work::Paced { rate: 2_000, ms: self.options.ms(3_000) })?;
        self.record("p50_us", outcome["p50_us"]);
        self.record("p99_us", outcome["p99_us"]);
        Ok(())
    }

    fn streams(&mut self) -> Result<()> {
        let events = usize::try_from(self.options.ms(3_000) / 50)?;
        let (outcome, spent) = self.load(Work::Streams { streams: 200, events, every_ms: 50 })?;
        self.record("ttfb_us", outcome["ttfb_us"]);
        self.record("delay_p50_us", outcome["p50_us"]);
        self.record("delay_p99_us", outcome["p99_us"]);
        if let Some((all_us, _)) = spent {
            self.record("event_cpu_us", all_us / outcome["events"]);
        }
        Ok(())
    }

    fn burst(&mut self) -> Result<()> {
        let streams = if self.options.quick { 200 } else { 1_000 };
        let (outcome, spent) = self.load(Work::Burst { streams, events: 200 })?;
        let Some(((all_us, _), pid)) = spent.zip(self.pid()) else { return Ok(()) };
        self.record("burst_cpu_us", all_us / outcome["events"]);
        // A second, shorter pass: a traced process is too slow to be timed.
        let Some(trace) = Trace::start(pid, self.scratch)? else { return Ok(()) };
        let streams = 50;
        self.load(Work::Burst { streams, events: 200 })?;
        let writes = trace.writes_from(self.started.target.addr)?;
        self.record("burst_writes", writes as f64 / streams as f64);
        Ok(())
    }

    fn memory(&mut self) -> Result<()> {
        let Some(rest) = self.rss_mb()? else { return Ok(()) };
        self.record("rest_mb", rest);
        let streams = if self.options.quick { 500 } else { 2_000 };
        let load = Load::start(&self.started.target, Work::Idle { streams })?;
        let (load, outcome) = load.first_line()?;
        ensure!(outcome["open"] == streams as f64, "{} of {streams} streams opened", outcome["open"]);
        let open = self.rss_mb()?.context("the proxy is gone")?;
        self.record("open_mb", open);
        self.record("stream_kb", (open - rest) * 1_024.0 / streams as f64);
        drop(load);
        thread::sleep(SETTLE);
        let closed = self.rss_mb()?.context("the proxy is gone")?;
        self.record("closed_mb", closed);
        Ok(())
    }
}

/// A load process.
struct Load {
    child: std::process::Child,
    output: BufReader<std::process::ChildStdout>,
}

impl Load {
    fn start(target: &Target, work: Work) -> Result<Self> {
        let mut command = Process::role("load", &Plan { target: target.clone(), work })?;
        let pinned = probe::pin(probe::LOAD_CORE);
        let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().context("starting the load");
        if pinned {
            probe::unpin();
        }
        let mut child = child?;
        let output = BufReader::new(child.stdout.take().context("no standard output")?);
        Ok(Self { child, output })
    }

    /// Waits for its first line, not for its end.
    fn first_line(mut self) -> Result<(Self, Outcome)> {
        let mut line = String::new();
        self.output.read_line(&mut line)?;
        let outcome = serde_json::from_str(&line).context("the load failed; its reason stands above")?;
        Ok((self, outcome))
    }

    fn outcome(self) -> Result<Outcome> {
        let (mut load, outcome) = self.first_line()?;
        ensure!(load.child.wait()?.success(), "the load failed");
        Ok(outcome)
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        // Its standard input ends, and so does it.
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}
