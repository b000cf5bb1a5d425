//! `sidekey init`: data directory, master key, store and a commented `sidekey.toml`; what is there stays as it is.
//!
//! Owns making these and saying what comes next.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use serde_json::json;

use crate::cli::args::Format;
use crate::cli::client::AdminClient;
use crate::cli::failure::Failure;
use crate::cli::out;
use crate::cli::{Session, store};
use crate::config::template;

/// Runs it.
///
/// # Errors
/// When a place cannot be written, or holds a store that does not open.
pub(super) async fn run(session: &Session) -> Result<(), Failure> {
    let places = &session.loaded.places;
    let wrote = write_template(&places.config_file)?;
    let running = AdminClient::of_daemon(&session.loaded.admin_socket()).await.is_some();
    let (existed, master_key) = if running {
        (true, None)
    } else {
        let existed = places.data_dir.join("master.key").exists();
        let store = store::open(session, &store::registry(session)?, true)?;
        let source = store.master_key_source().to_string();
        store.close();
        (existed, Some(source))
    };
    let document = json!({
        "data_dir": places.data_dir,
        "config_file": places.config_file,
        "config_written": wrote,
        "master_key": master_key,
        "daemon_running": running,
    });
    if session.out.format != Format::Table {
        return Ok(session.out.json(&document)?);
    }
    let shown = |made: bool| if made { "made" } else { "kept" };
    let mut text = format!("{} {}\n", shown(wrote), places.config_file.display());
    text.push_str(&match master_key {
        Some(source) => format!("{} {} (master key: {source})\n", shown(!existed), places.data_dir.display()),
        None => format!("kept {} (a daemon runs on it)\n", places.data_dir.display()),
    });
    session.out.text(&text)?;
    for line in next_steps(session) {
        out::say(&line);
    }
    Ok(())
}

/// A file that is there is the operator's.
fn write_template(path: &Path) -> Result<bool, Failure> {
    if path.exists() {
        return Ok(false);
    }
    let failed = |error: std::io::Error| anyhow::anyhow!("cannot write {}: {error}", path.display());
    if let Some(directory) = path.parent().filter(|directory| !directory.as_os_str().is_empty()) {
        fs::create_dir_all(directory).map_err(failed)?;
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o644).open(path).map_err(failed)?;
    file.write_all(template().as_bytes()).map_err(failed)?;
    Ok(true)
}

fn next_steps(session: &Session) -> Vec<String> {
    let proxy = session.loaded.config.listen.proxy;
    [
        "",
        "next:",
        "  sidekey provider-key add openai --name main      # asks for the real key; --stdin takes it from a pipe",
        "  sidekey key create --name app                    # shows the app's virtual key, once",
        "  sidekey run                                      # the proxy, in the foreground",
        "then, for the app:",
    ]
    .map(str::to_owned)
    .into_iter()
    .chain([format!("  export OPENAI_BASE_URL=http://{proxy}/openai/v1 OPENAI_API_KEY=<the virtual key>")])
    .collect()
}
