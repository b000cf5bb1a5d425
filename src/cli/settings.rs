//! `sidekey config`: check, show, explain, schema.
//!
//! Owns their output; leaves reading the configuration to `config`.

use serde_json::{Value, json};

use crate::cli::Session;
use crate::cli::args::{ConfigCommand, Format};
use crate::cli::client::AdminClient;
use crate::cli::failure::{Exit, Failure};
use crate::cli::out::{self, Column};
use crate::config::{KEYS, Origin, nearest, schema};
use crate::control::ConfigView;

/// Runs one. A faulty configuration has failed before this, with every fault.
///
/// # Errors
/// When there is no such key, or the output cannot be written.
pub async fn run(session: &Session, command: &ConfigCommand) -> Result<(), Failure> {
    match command {
        ConfigCommand::Check => check(session),
        ConfigCommand::Explain { key } => explain(session, key),
        ConfigCommand::Schema => Ok(session.out.json(&schema())?),
        ConfigCommand::Show => show(session).await,
    }
}

fn check(session: &Session) -> Result<(), Failure> {
    let loaded = &session.loaded;
    let document = json!({
        "file": loaded.places.config_file,
        "exists": loaded.places.config_file.exists(),
        "data_dir": loaded.places.data_dir,
        "warnings": loaded.warnings,
    });
    session.out.one(&document, |_| {
        let found = if loaded.places.config_file.exists() { "" } else { " (not there: defaults)" };
        format!("ok: {}{found}\n", loaded.places.config_file.display())
    })?;
    Ok(())
}

/// What the daemon goes by, where one runs on the file that is asked about; else what it would.
async fn show(session: &Session) -> Result<(), Failure> {
    let (loaded, here) = (&session.loaded, &session.loaded.places.config_file);
    let mut view = json!(ConfigView::unused(here.clone(), loaded.settings(loaded)));
    if !loaded.has_flags()
        && let Some(daemon) = AdminClient::of_daemon(&loaded.admin_socket()).await
    {
        let told = daemon.get("/api/config").await?.body;
        if told["file"] == view["file"] {
            view = told;
        } else {
            out::say(&format!(
                "the daemon goes by {}; this is {}",
                told["file"].as_str().unwrap_or("?"),
                here.display()
            ));
        }
    }
    if session.out.format == Format::Table
        && let Some(error) = view["error"].as_str()
    {
        out::say(&format!("not in force: {error}"));
    }
    let items = view["settings"].as_array().cloned().unwrap_or_default();
    session.out.many(&view, &items, COLUMNS)?;
    Ok(())
}

const COLUMNS: &[Column<'_>] = &[
    ("KEY", "/key"),
    ("VALUE", "/value"),
    ("SAID BY", "/origin"),
    ("WHERE", "/where"),
    ("NEEDS RESTART", "/needs_restart"),
];

fn explain(session: &Session, key: &str) -> Result<(), Failure> {
    let said = session.loaded.explain(key);
    let Some(winner) = said.first() else {
        let keys = session.loaded.keys();
        let failure = Failure::new(Exit::Usage, format!("there is no key {key}"));
        return Err(match nearest(key, keys.iter().map(String::as_str)) {
            Some(right) => failure.fix(format!("did you mean {right}?")),
            None => failure.fix("`sidekey config schema` lists them"),
        });
    };
    let doc = KEYS.iter().find(|row| row.matches(key)).map(|row| row.doc);
    let items: Vec<Value> = said
        .iter()
        .enumerate()
        .map(|(rank, said)| json!({"value": said.value, "origin": said.origin.to_string(), "wins": rank == 0}))
        .collect();
    let document = json!({
        "key": key,
        "value": winner.value,
        "origin": winner.origin.to_string(),
        "set": winner.origin != Origin::Default,
        "said": items,
        "doc": doc,
    });
    if session.out.format == Format::Table
        && let Some(doc) = doc
    {
        out::say(doc);
    }
    session.out.many(&document, &items, &[("VALUE", "/value"), ("SAID BY", "/origin"), ("WINS", "/wins")])?;
    Ok(())
}
