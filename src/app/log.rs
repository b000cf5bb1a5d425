//! The log on stderr: `[log]` of the configuration.
//!
//! Owns its form, its level, and the last look at each line: secrets have types that do not print, and what still looks
//! like a key is blotted out here.

use std::io::{self, IsTerminal, Write};
use std::sync::OnceLock;

use tracing::level_filters::LevelFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Registry, fmt, reload};

use crate::config::{Environment, LogFormat, LogLevel, LogSection};
use crate::secret::blot;

/// The level in force, of the one log a process has.
static LEVEL: OnceLock<reload::Handle<LevelFilter, Registry>> = OnceLock::new();

/// Starts logging. A second start in one process is refused by `tracing` and changes nothing.
pub(super) fn start(section: LogSection, environment: &Environment) {
    let terminal = io::stderr().is_terminal();
    let json = match section.format {
        LogFormat::Auto => !terminal,
        LogFormat::Json => true,
        LogFormat::Pretty => false,
    };
    let (filter, handle) = reload::Layer::new(filter(section.level));
    let log = tracing_subscriber::registry().with(filter);
    let started = if json {
        let lines = fmt::layer().json().flatten_event(true).with_current_span(false).with_span_list(false);
        log.with(lines.with_writer(|| Blotted)).try_init()
    } else {
        let colored = terminal && environment.allows_color();
        log.with(fmt::layer().with_ansi(colored).with_writer(|| Blotted)).try_init()
    };
    match started {
        Ok(()) => drop(LEVEL.set(handle)),
        Err(error) => tracing::debug!(%error, "a log is there already"),
    }
}

/// Shows another level from now on.
pub(super) fn set_level(level: LogLevel) {
    if let Some(Err(error)) = LEVEL.get().map(|handle| handle.reload(filter(level))) {
        tracing::warn!(%error, "the log's level stays as it is");
    }
}

fn filter(level: LogLevel) -> LevelFilter {
    match level {
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Trace => LevelFilter::TRACE,
    }
}

/// stderr, of which a whole line is written at once.
struct Blotted;

impl Write for Blotted {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        io::stderr().lock().write_all(&blot(line))?;
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().lock().flush()
    }
}
