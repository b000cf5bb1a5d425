//! `sidekey doctor`: one line for each thing that can be wrong, with its fix.
//!
//! Owns the checks. Nothing is changed, and nothing is spent: providers are only connected to. How programs come to
//! sidekey is tried by `clients`, against a proxy of doctor's own.

pub(super) mod clients;
mod probe;
mod watch;

use std::ffi::OsString;
use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use serde_json::Value;

use crate::cli::checks::{Line, fail, ok, report, warn};
use crate::cli::client::AdminClient;
use crate::cli::failure::Failure;
use crate::cli::out::Out;
use crate::cli::{Session, store};
use crate::config::Fault;

const PATIENCE: Duration = Duration::from_secs(3);
/// Two descriptors a stream, and some for the store and the listeners.
const FEW_DESCRIPTORS: u64 = 4096;

/// Runs every check; with a command, says how that one comes to sidekey, and no more.
///
/// # Errors
/// When the command cannot be run, or the output not be written.
pub(super) async fn run(session: &Session, command: &[OsString]) -> Result<ExitCode, Failure> {
    if !command.is_empty() {
        return clients::command(session, command).await;
    }
    let places = &session.loaded.places;
    let mut lines = vec![configuration(session)];
    lines.extend(modes(&places.data_dir));
    lines.push(master_key(session));
    lines.extend(limits());
    let socket = session.loaded.admin_socket();
    match AdminClient::of_daemon(&socket).await {
        Some(client) => {
            lines.push(ok("daemon", format!("answers on {}", socket.display())));
            lines.extend(contents(&client).await);
        }
        None => {
            lines.push(warn("daemon", "not running", "`sidekey run`"));
            let listen = session.loaded.config.listen;
            let admin = listen.admin.map(|at| ("admin", at));
            let all = [("proxy", listen.proxy), ("telemetry", listen.telemetry)].into_iter().chain(admin);
            lines.extend(all.map(|(name, at)| port(name, at)));
            match store::connect(session).await {
                Ok(connected) => {
                    lines.push(ok("store", format!("opens at {}", places.data_dir.display())));
                    lines.extend(contents(&connected.client).await);
                    connected.close().await;
                }
                Err(failure) => lines.push(fail("store", failure.message, failure.fix.unwrap_or_default())),
            }
        }
    }
    match clients::runtimes(session).await {
        Ok(found) => lines.extend(found),
        Err(failure) => lines.push(warn("clients", failure.message, failure.fix.unwrap_or_default())),
    }
    report(session.out, &lines)
}

/// What `doctor` says when the configuration itself cannot be read.
///
/// # Errors
/// When the output cannot be written.
pub(super) fn faulty(out: Out, faults: &[Fault]) -> Result<ExitCode, Failure> {
    let line =
        |fault: &Fault| fail("configuration", fault.to_string(), "correct it; `sidekey config check` reads it again");
    report(out, &faults.iter().map(line).collect::<Vec<_>>())
}

fn configuration(session: &Session) -> Line {
    let file = &session.loaded.places.config_file;
    let said =
        if file.exists() { file.display().to_string() } else { format!("{} is not there: defaults", file.display()) };
    match session.loaded.warnings.first() {
        None => ok("configuration", said),
        Some(first) => warn("configuration", first.clone(), "correct or unset that variable"),
    }
}

/// What holds secrets is for its owner alone.
fn modes(data_dir: &Path) -> Vec<Line> {
    let Ok(found) = fs::metadata(data_dir) else {
        return vec![fail("data directory", format!("{} is not there", data_dir.display()), "`sidekey init`")];
    };
    let mut lines = vec![mode("data directory", data_dir, found.permissions().mode(), "700")];
    let key = data_dir.join("master.key");
    if let Ok(found) = fs::metadata(&key) {
        lines.push(mode("master key file", &key, found.permissions().mode(), "600"));
    }
    lines
}

fn mode(check: &str, path: &Path, mode: u32, wanted: &str) -> Line {
    let detail = format!("{} has mode {:03o}", path.display(), mode & 0o777);
    if mode & 0o077 == 0 {
        return ok(check, detail);
    }
    fail(check, format!("{detail}: others can read it"), format!("chmod {wanted} {}", path.display()))
}

fn master_key(session: &Session) -> Line {
    match store::master_key_source(session) {
        Ok(Some(source)) => ok("master key", format!("from {source}")),
        Ok(None) => fail("master key", "there is none", "`sidekey init`"),
        Err(error) => fail("master key", error, "put that source right, or unset it"),
    }
}

fn limits() -> [Line; 2] {
    use rustix::process::{Resource, getrlimit};
    let descriptors = getrlimit(Resource::Nofile).current;
    let shown = descriptors.map_or_else(|| "no limit".to_owned(), |limit| limit.to_string());
    let descriptors = if descriptors.is_some_and(|limit| limit < FEW_DESCRIPTORS) {
        warn("descriptors", format!("{shown} open files; a stream takes two"), "ulimit -n 65536, or LimitNOFILE=65536")
    } else {
        ok("descriptors", shown)
    };
    let cores = match getrlimit(Resource::Core).current {
        Some(0) => ok("core dumps", "off"),
        _ => ok("core dumps", "on in this shell; `sidekey run` switches its own off"),
    };
    [descriptors, cores]
}

fn port(name: &str, address: SocketAddr) -> Line {
    let check = format!("{name} address");
    match TcpListener::bind(address) {
        Ok(_) => ok(&check, format!("{address} is free")),
        Err(error) => fail(&check, format!("{address}: {error}"), format!("free it, or set listen.{name}")),
    }
}

/// What the store holds, and whether providers with keys can be reached.
async fn contents(client: &AdminClient) -> Vec<Line> {
    let Ok(found) = client.get("/api/providers?limit=1000").await else {
        return vec![fail("providers", "the API does not answer", "`sidekey status`")];
    };
    let providers = found.body["providers"].as_array().cloned().unwrap_or_default();
    let keyed: Vec<&Value> = providers.iter().filter(|provider| provider["active_keys"].as_u64() > Some(0)).collect();
    let mut lines = Vec::new();
    if keyed.is_empty() {
        let fix = "`sidekey provider-key add openai --name main --stdin < FILE`";
        lines.push(warn("provider keys", "there is none that can be used", fix));
    }
    if let Ok(keys) = client.get("/api/keys?limit=1").await
        && keys.body["keys"].as_array().is_some_and(Vec::is_empty)
    {
        lines.push(warn("virtual keys", "there is none", "`sidekey key create --name app`"));
    }
    for provider in keyed {
        lines.push(reach(provider).await);
    }
    lines
}

/// Name, address and a connection; nothing is sent, so nothing can be spent.
async fn reach(provider: &Value) -> Line {
    let url = provider["base_url"].as_str().unwrap_or_default();
    let check = format!("provider {}", provider["id"].as_str().unwrap_or_default());
    let Some((host, port)) = place_of(url) else {
        return fail(&check, format!("{url} is not a URL"), "correct its base_url");
    };
    let fix = "check DNS, firewall and its base_url";
    match tokio::time::timeout(PATIENCE, tokio::net::TcpStream::connect((host.as_str(), port))).await {
        Ok(Ok(_)) => ok(&check, format!("{host}:{port} answers")),
        Ok(Err(error)) => fail(&check, format!("{host}:{port}: {error}"), fix),
        Err(_) => fail(&check, format!("{host}:{port} does not answer within {} s", PATIENCE.as_secs()), fix),
    }
}

fn place_of(url: &str) -> Option<(String, u16)> {
    let uri: http::Uri = url.parse().ok()?;
    let default = if uri.scheme_str()? == "http" { 80 } else { 443 };
    let host = uri.host()?.trim_start_matches('[').trim_end_matches(']').to_owned();
    Some((host, uri.port_u16().unwrap_or(default)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::checks::Mark;

    #[test]
    fn modes_are_told() {
        for (found, want) in
            [(0o40700, Mark::Ok), (0o40750, Mark::Fail), (0o100_600, Mark::Ok), (0o100_644, Mark::Fail)]
        {
            assert_eq!(mode("x", Path::new("/x"), found, "700").status, want, "{found:o}");
        }
    }

    #[test]
    fn places() {
        for (url, want) in [
            ("https://api.openai.com:443", Some(("api.openai.com", 443))),
            ("http://127.0.0.1:9001/x", Some(("127.0.0.1", 9001))),
            ("http://localhost", Some(("localhost", 80))),
            ("https://[::1]:8443", Some(("::1", 8443))),
            ("nonsense", None),
        ] {
            let got = place_of(url);
            assert_eq!(got.as_ref().map(|(host, port)| (host.as_str(), *port)), want, "{url}");
        }
    }

    #[test]
    fn a_taken_port_fails() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        assert_eq!(port("proxy", taken.local_addr().unwrap()).status, Mark::Fail);
    }
}
