//! The log on stderr: `[log]` of the configuration.

use std::io::IsTerminal;

use tracing::level_filters::LevelFilter;
use tracing_subscriber::fmt;

use crate::config::{Environment, LogFormat, LogLevel, LogSection};

/// Starts logging. A second start in one process is refused by `tracing` and changes nothing.
pub(super) fn start(section: LogSection, environment: &Environment) {
    let level = match section.level {
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Trace => LevelFilter::TRACE,
    };
    let terminal = std::io::stderr().is_terminal();
    let json = match section.format {
        LogFormat::Auto => !terminal,
        LogFormat::Json => true,
        LogFormat::Pretty => false,
    };
    let builder = fmt().with_max_level(level).with_writer(std::io::stderr);
    let started = if json {
        builder.json().flatten_event(true).with_current_span(false).with_span_list(false).try_init()
    } else {
        builder.with_ansi(terminal && environment.allows_color()).try_init()
    };
    if let Err(error) = started {
        tracing::debug!(%error, "a log is there already");
    }
}
