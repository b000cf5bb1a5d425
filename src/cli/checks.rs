//! Checks as lines: what was looked at, how it is, and the fix.
//!
//! Owns their form, for `doctor` and for what else checks.

use std::process::ExitCode;

use serde::Serialize;
use serde_json::{Value, json};

use crate::cli::doctor::clients::Finding;
use crate::cli::failure::{Exit, Failure};
use crate::cli::out::{Column, Out};

/// How a check ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Mark {
    Ok,
    Warn,
    Fail,
}

/// One line.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Line {
    pub(super) status: Mark,
    pub(super) check: String,
    pub(super) detail: String,
    pub(super) fix: Option<String>,
    /// How a program comes to sidekey, where that is what was looked at.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) finding: Option<Finding>,
}

impl Line {
    /// With what was found of a program.
    pub(super) fn found(self, finding: Finding) -> Self {
        Self { finding: Some(finding), ..self }
    }

    /// True unless something is to be done.
    pub(super) fn is_good(&self) -> bool {
        self.status == Mark::Ok
    }
}

pub(super) fn ok(check: &str, detail: impl Into<String>) -> Line {
    Line { status: Mark::Ok, check: check.to_owned(), detail: detail.into(), fix: None, finding: None }
}

pub(super) fn warn(check: &str, detail: impl Into<String>, fix: impl Into<String>) -> Line {
    Line { status: Mark::Warn, check: check.to_owned(), detail: detail.into(), fix: Some(fix.into()), finding: None }
}

pub(super) fn fail(check: &str, detail: impl Into<String>, fix: impl Into<String>) -> Line {
    Line { status: Mark::Fail, check: check.to_owned(), detail: detail.into(), fix: Some(fix.into()), finding: None }
}

const COLUMNS: &[Column<'_>] = &[("STATE", "/status"), ("CHECK", "/check"), ("DETAIL", "/detail"), ("FIX", "/fix")];
/// Prints them; the exit code says whether one failed.
///
/// # Errors
/// When the output cannot be written.
pub(super) fn report(out: Out, lines: &[Line]) -> Result<ExitCode, Failure> {
    report_with(out, lines, [])
}

/// The same, with more in the document.
///
/// # Errors
/// When the output cannot be written.
pub(super) fn report_with<const N: usize>(
    out: Out,
    lines: &[Line],
    more: [(&str, Value); N],
) -> Result<ExitCode, Failure> {
    let items: Vec<Value> = lines.iter().map(|line| json!(line)).collect();
    let healthy = lines.iter().all(|line| line.status != Mark::Fail);
    let mut document = json!({"healthy": healthy, "checks": items});
    for (name, value) in more {
        document[name] = value;
    }
    out.many(&document, &items, COLUMNS)?;
    Ok(if healthy { ExitCode::SUCCESS } else { ExitCode::from(Exit::Failure as u8) })
}
