//! sidekey beside the least a proxy can do, in one run: `cargo bench --bench compare`.
//!
//! Three systems take the same load in turns: *direct* (no proxy), *bare* (a hyper pass-through that only looks up a
//! token and swaps the key) and *sidekey* (the real binary, with its store, limits and ledger). Upstream, proxy and
//! load are processes of their own: the proxy on core 0, the others on core 1, where there are two. Rounds are
//! interleaved, figures are medians, and what to read is the ratios: absolute figures are the machine's.
//!
//! Options, after `--`: `--quick` (one short round), `--rounds N` (3), `--only PHASE` (repeatable: start, throughput,
//! large, latency, streams, burst, memory), `--sidekey PATH` (another binary), `--nice N` (on a machine that others use
//! too). Nothing is asserted about time.
//! Bare uses the system's allocator; the load speaks HTTP/1.1 without TLS on both sides.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a program whose output is its purpose")]

mod bare;
mod load;
mod paced;
mod plan;
mod probe;
mod rounds;
mod strace;
mod system;
mod table;
mod upstream;
mod wire;

use std::process::ExitCode;

use anyhow::{Context, Result};
use rounds::Options;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("compare: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &[String]) -> Result<()> {
    let json = || args.get(1).context("a plan in JSON is missing");
    match args.first().map(String::as_str) {
        Some("upstream") => upstream::run(&serde_json::from_str(json()?)?),
        Some("bare") => bare::run(&serde_json::from_str(json()?)?),
        Some("load") => load::run(&serde_json::from_str(json()?)?),
        // `cargo test --all-targets` runs benches too, without this flag: nothing to test here.
        _ if !args.iter().any(|arg| arg == "--bench") => Ok(()),
        _ => rounds::run(&Options::parse(args)?),
    }
}
