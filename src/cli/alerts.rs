//! `sidekey alerts`: what the running daemon has told operators, and whether receivers hear it.
//!
//! Owns its words and output; the events are in the daemon's memory, so none running is a failure.

use std::process::ExitCode;

use clap::{Args, Subcommand, ValueEnum};
use serde_json::{Value, json};

use crate::cli::failure::{Exit, Failure};
use crate::cli::out::Column;
use crate::cli::{Session, usage};
use crate::control::encoded;

const COLUMNS: &[Column<'_>] = &[
    ("TIME", "/time"),
    ("SEVERITY", "/severity"),
    ("KIND", "/kind"),
    ("SUBJECT", "/subject"),
    ("MESSAGE", "/message"),
];

const TESTED: &[Column<'_>] =
    &[("WEBHOOK", "/webhook"), ("OK", "/ok"), ("STATUS", "/status"), ("MS", "/latency_ms"), ("DETAIL", "/detail")];

/// Flags of `alerts`.
#[derive(Args, Debug)]
#[command(args_conflicts_with_subcommands = true)]
pub struct AlertsArgs {
    /// What else than a list.
    #[command(subcommand)]
    pub command: Option<AlertsCommand>,
    /// At most so many
    #[arg(long, default_value_t = 20)]
    pub limit: usize,
    /// Of this kind only: budget.threshold, or budget for all on budgets
    #[arg(long)]
    pub kind: Option<String>,
    /// Only these and worse
    #[arg(long, value_enum)]
    pub min_severity: Option<Least>,
}

/// `alerts test`.
#[derive(Debug, Subcommand)]
pub enum AlertsCommand {
    /// Sends a test to every webhook of the configuration, or to one
    Test {
        /// Its name in the configuration
        name: Option<String>,
    },
}

/// How much an event matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Least {
    /// Good to know
    Info,
    /// Something may stop working soon
    Warning,
    /// Something has stopped working
    Error,
}

impl Least {
    fn as_str(self) -> &'static str {
        match self {
            Self::Info => "info",
            Self::Warning => "warning",
            Self::Error => "error",
        }
    }
}

pub(super) async fn run(session: &Session, args: &AlertsArgs) -> Result<ExitCode, Failure> {
    let daemon = usage::daemon(session).await?;
    if let Some(AlertsCommand::Test { name }) = &args.command {
        let found = daemon.post("/api/alerts/test", &json!({"webhook": name})).await?.body;
        let items: Vec<Value> = found["results"].as_array().cloned().unwrap_or_default();
        session.out.many(&found, &items, TESTED)?;
        let all = items.iter().all(|item| item["ok"] == true);
        return Ok(if all { ExitCode::SUCCESS } else { ExitCode::from(Exit::Failure as u8) });
    }
    let mut path = format!("/api/alerts?limit={}", args.limit);
    if let Some(kind) = &args.kind {
        path.push_str(&format!("&kind={}", encoded(kind)));
    }
    if let Some(least) = args.min_severity {
        path.push_str(&format!("&min_severity={}", least.as_str()));
    }
    let found = daemon.get(&path).await?.body;
    let items: Vec<Value> = found["alerts"].as_array().cloned().unwrap_or_default();
    session.out.many(&found, &items, COLUMNS)?;
    Ok(ExitCode::SUCCESS)
}
