//! A [`Failure`]: why a command did not do what it was asked, the fix, and the exit code.
//!
//! Owns the codes, which people's scripts rely on.

use std::process::ExitCode;

use crate::config::Fault;

/// What the exit code says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Anything that has no code of its own.
    Failure = 1,
    /// The command line is wrong.
    Usage = 2,
    /// The configuration is wrong.
    Config = 3,
    /// No daemon answers, and the command needs one.
    Unreachable = 4,
    /// The API refused.
    Refused = 5,
    /// The store is locked by another process, or damaged.
    Store = 6,
}

/// Why a command failed. The message never holds a key.
#[derive(Debug)]
pub struct Failure {
    /// The exit code.
    pub exit: Exit,
    /// One line.
    pub message: String,
    /// What to do about it.
    pub fix: Option<String>,
}

impl Failure {
    /// A failure without a fix.
    pub fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self { exit, message: message.into(), fix: None }
    }

    /// With what to do about it.
    #[must_use]
    pub fn fix(mut self, fix: impl Into<String>) -> Self {
        self.fix = Some(fix.into());
        self
    }

    /// The lines for standard error.
    #[must_use]
    pub fn lines(&self) -> Vec<String> {
        let message = format!("error: {}", self.message);
        std::iter::once(message).chain(self.fix.as_ref().map(|fix| format!("  fix: {fix}"))).collect()
    }

    /// The process's exit code.
    #[must_use]
    pub fn code(&self) -> ExitCode {
        ExitCode::from(self.exit as u8)
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self::new(Exit::Failure, format!("{error:#}"))
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Self::new(Exit::Failure, error.to_string())
    }
}

impl From<Vec<Fault>> for Failure {
    fn from(faults: Vec<Fault>) -> Self {
        let shown: Vec<String> = faults.iter().map(ToString::to_string).collect();
        Self::new(Exit::Config, shown.join("\nerror: "))
    }
}
