//! Packs a list of published prices into the program's built-in table.
//!
//! ```sh
//! cargo run --example pack_prices -- prices.json 2026-11-25 src/pricing/built_in.zst
//! ```
//!
//! The list is any file that `sidekey prices import` reads. The date says as of when its prices hold; its `sources` are
//! named in the table's first line.

use std::io::Write;
use std::process::ExitCode;

use sidekey::pricing::{pack, read};

fn main() -> ExitCode {
    let (said, code) = match run() {
        Ok(said) => (said, ExitCode::SUCCESS),
        Err(error) => (format!("error: {error}"), ExitCode::FAILURE),
    };
    let _nobody_reads = writeln!(std::io::stderr(), "{said}");
    code
}

fn run() -> Result<String, Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [from, date, to] = &arguments[..] else { return Err("write: LIST DATE TABLE".into()) };
    let text = std::fs::read_to_string(from)?;
    let prices = read(&text)?;
    let count = prices.len();
    let packed = pack(prices, date, &sources(&text))?;
    std::fs::write(to, &packed)?;
    Ok(format!("{count} models, {} bytes", packed.len()))
}

/// `litellm 1.109.1, litellm 1.90.0`, as the list names them.
fn sources(text: &str) -> String {
    let list: serde_json::Value = serde_json::from_str(text).unwrap_or_default();
    let source = |source: &serde_json::Value| {
        Some(format!(
            "{} {} ({})",
            source["package"].as_str()?,
            source["version"].as_str()?,
            source["licence"].as_str()?
        ))
    };
    let sources: Vec<String> = list["sources"].as_array().into_iter().flatten().filter_map(source).collect();
    sources.join(", ")
}
