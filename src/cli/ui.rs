//! `sidekey ui`: opens the console in a browser, logged in by a code that is good once.
//!
//! Owns asking for the code and starting the browser.

use std::fs;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::cli::Session;
use crate::cli::failure::Failure;
use crate::cli::out;
use crate::cli::usage::daemon;

/// What starts the browser that the user prefers.
const OPENER: &str = if cfg!(target_os = "macos") { "open" } else { "xdg-open" };

/// Runs it.
///
/// # Errors
/// When no daemon answers, or it has no TCP address.
pub(super) async fn run(session: &Session, no_open: bool) -> Result<(), Failure> {
    let code = daemon(session).await?.post("/api/session/code", &json!({})).await?.body;
    session.out.one(&code, |code| format!("{}\n", text(code, "url")))?;
    if no_open {
        return Ok(());
    }
    let opened = page(&session.loaded.places.data_dir, text(&code, "url")).and_then(|page| {
        // The words of a command can be read by every user of this machine, and the address holds the code.
        Command::new(OPENER).arg(page).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()
    });
    if opened.is_err() {
        out::say("no browser could be started: open the address above within a minute");
    }
    Ok(())
}

fn text<'a>(code: &'a Value, field: &str) -> &'a str {
    code[field].as_str().unwrap_or_default()
}

/// A page that only this user can read, and that leads on to `url`.
fn page(data_dir: &Path, url: &str) -> std::io::Result<PathBuf> {
    let path = std::path::absolute(data_dir)?.join("ui.html");
    match fs::remove_file(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
    writeln!(file, "<!doctype html><meta http-equiv=\"refresh\" content=\"0;url={url}\"><title>sidekey</title>")?;
    Ok(path)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn the_page_is_the_users_alone_and_leads_on() {
        let dir = tempfile::tempdir().unwrap();
        for code in ["1", "2"] {
            let path = page(dir.path(), &format!("http://127.0.0.1:4142/#code={code}")).unwrap();
            assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
            assert!(fs::read_to_string(&path).unwrap().contains(&format!("url=http://127.0.0.1:4142/#code={code}\"")));
        }
    }
}
