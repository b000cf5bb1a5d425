//! `sidekey alerts`: what operators were told of late.
//!
//! Owns its output. Events are kept in the daemon's memory, so none running is a failure.

use serde_json::Value;

use crate::cli::failure::Failure;
use crate::cli::out::Column;
use crate::cli::{Session, usage};

const COLUMNS: &[Column<'_>] = &[
    ("TIME", "/time"),
    ("SEVERITY", "/severity"),
    ("KIND", "/kind"),
    ("SUBJECT", "/subject"),
    ("MESSAGE", "/message"),
];

/// Shows the last `limit`.
pub(super) async fn run(session: &Session, limit: usize) -> Result<(), Failure> {
    let found = usage::daemon(session).await?.get(&format!("/api/alerts?limit={limit}")).await?.body;
    let items: Vec<Value> = found["alerts"].as_array().cloned().unwrap_or_default();
    Ok(session.out.many(&found, &items, COLUMNS)?)
}
