//! How programs come to sidekey in the environment that `exec --mode proxy` gives: each runtime that is found, or one
//! command of the user's.
//!
//! Owns what is concluded from what was seen, and what is to be done about it. Leaves seeing to `watch`, and the small
//! programs to `probe`.

use std::ffi::OsString;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::{ExitCode, Stdio};
use std::sync::Arc;

use serde::Serialize;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::process::{Child, Command};
use tokio::task::JoinSet;

use crate::app;
use crate::cli::checks::{Line, fail, ok, warn};
use crate::cli::doctor::probe::{self, RUNTIMES, Ran, Runtime};
use crate::cli::doctor::watch::{Became, KEY, Seen, Watched};
use crate::cli::exec::{MARK, child};
use crate::cli::failure::{Exit, Failure};
use crate::cli::proxied::{self, Changes};
use crate::cli::sdk::{Targets, hosts};
use crate::cli::trust::TrustFiles;
use crate::cli::{Session, environment, out, store};
use crate::net::listener;

/// How a program comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(in crate::cli) enum Finding {
    /// By the proxy, and it trusts the certificate.
    Proxied,
    /// By the proxy, and it refuses the certificate.
    Untrusted,
    /// Not by the proxy.
    Direct,
    /// Nothing can be said.
    Unclear,
}

/// What is between a program and the providers: the proxy, what is set for the program, and the files it is to trust.
struct Around {
    watched: Arc<Watched>,
    listener: TcpListener,
    changes: Changes,
    keys: Vec<(&'static str, String)>,
    /// Variables that may hold real keys.
    real: Vec<String>,
    dir: TempDir,
}

impl Around {
    fn new(session: &Session) -> Result<Self, Failure> {
        let listener = listener::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))?;
        let proxy = listener.local_addr()?;
        let dialer = app::dialer(&session.environment, &[proxy.port()]);
        let dialer = dialer.map_err(|error| Failure::new(Exit::Failure, error.to_string()))?;
        let (watched, generation) = Watched::new(store::registry(session)?, dialer)?;
        let dir = tempfile::Builder::new().prefix("sidekey-doctor-").tempdir()?;
        let files = TrustFiles::in_dir(dir.path());
        // What cannot be read of the parent's is told by what comes of it.
        files.write(&session.environment, std::slice::from_ref(&generation.root))?;
        let providers = environment::configured(session)?;
        let targets = Targets::of(proxy, &[], &providers)?;
        let changes = proxied::proxied(&session.environment, proxy, &files, &hosts(&providers));
        let keys = targets.keys(KEY);
        let real = targets.real.names().map(str::to_owned).collect();
        Ok(Self { watched, listener: TcpListener::from_std(listener)?, changes, keys, real, dir })
    }
}

/// As `exec` prepares a command.
fn surround(command: &mut Command, real: &[String], changes: &Changes, keys: &[(&'static str, String)]) {
    for name in real.iter().map(String::as_str).chain(["SIDEKEY_MASTER_KEY", "SIDEKEY_MASTER_KEY_FILE"]) {
        command.env_remove(name);
    }
    for name in &changes.unset {
        command.env_remove(name);
    }
    command.env(MARK, "1").envs(changes.set.iter().chain(keys).map(|(name, value)| (name, value)));
}

/// A line for each runtime that is found.
///
/// # Errors
/// When there is no port, no randomness or no room for files.
pub(super) async fn runtimes(session: &Session) -> Result<Vec<Line>, Failure> {
    let path = session.environment.get("PATH").unwrap_or_default();
    let there: Vec<&'static Runtime> = RUNTIMES.iter().filter(|one| probe::is_on(path, one.program)).collect();
    let Around { watched, listener, changes, keys, real, dir } = Around::new(session)?;
    Runtime::prepare(dir.path())?;
    let (at, set): (PathBuf, _) = (dir.path().to_owned(), Arc::new((real, changes, keys)));
    let mut running = JoinSet::new();
    for (number, runtime) in there.iter().copied().enumerate() {
        let (at, set) = (at.clone(), Arc::clone(&set));
        running.spawn(async move {
            let ran = runtime.run(&at, |command| surround(command, &set.0, &set.1, &set.2)).await;
            (number, runtime, ran)
        });
    }
    let mut ran = watched.during(listener, running.join_all()).await;
    ran.sort_by_key(|(number, ..)| *number);
    let seen = watched.seen();
    Ok(ran.iter().filter_map(|(_, runtime, ran)| told(runtime, ran, &seen)).collect())
}

/// What is said of a runtime: it concerns whoever uses it so, and is no fault of this installation.
fn told(runtime: &Runtime, ran: &Ran, seen: &[Seen]) -> Option<Line> {
    let mine: Vec<&Seen> = seen.iter().filter(|one| one.host == runtime.host()).collect();
    let check = format!("client {}", runtime.name);
    let (finding, line) = match (concluded(&mine), ran) {
        (Some((Finding::Proxied, _)), _) => {
            (Finding::Proxied, ok(&check, "proxied: it comes by HTTPS_PROXY, and trusts"))
        }
        (Some((finding, why)), _) => {
            (finding, warn(&check, format!("untrusted: it refuses the certificate ({why})"), runtime.untrusted))
        }
        (None, Ran::Absent) => return None,
        (None, Ran::Broken(why)) => (
            Finding::Unclear,
            warn(&check, format!("it does not run here: {why}"), "`sidekey doctor -- ` a command of yours"),
        ),
        (None, Ran::Asked(why)) => {
            (Finding::Direct, warn(&check, format!("direct: it goes past the proxy ({why})"), runtime.direct))
        }
    };
    Some(line.found(finding))
}

/// What connections to providers show; `None` when there was none. One that came and trusted outweighs others: a program
/// may have parts that do not.
fn concluded(seen: &[&Seen]) -> Option<(Finding, String)> {
    let asked = seen.iter().any(|one| matches!(one.became, Became::Asked { .. }));
    let refused = seen.iter().find_map(|one| match &one.became {
        Became::Untrusted(why) => Some(why.clone()),
        _ => None,
    });
    match (asked, refused) {
        (true, _) => Some((Finding::Proxied, String::new())),
        (false, Some(why)) => Some((Finding::Untrusted, why)),
        (false, None) => None,
    }
}

/// Runs a command, and says how it came.
///
/// # Errors
/// When it cannot be run, or the output not be written.
pub(super) async fn command(session: &Session, words: &[OsString]) -> Result<ExitCode, Failure> {
    let Around { watched, listener, changes, keys, real, dir } = Around::new(session)?;
    let (program, rest) = words.split_first().expect("clap wants one word at least");
    let mut command = Command::new(program);
    command.args(rest);
    surround(&mut command, &real, &changes, &keys);
    // Standard output is for the answer.
    command.stdout(Stdio::from(std::io::stderr().as_fd().try_clone_to_owned()?));
    let running = child::run(program, command, async |_: &mut Child| Ok(std::future::ready(())));
    let code = watched.during(listener, running).await?;
    drop(dir);
    let name = program.to_string_lossy().rsplit('/').next().unwrap_or_default().to_owned();
    let lines = command_lines(&name, code, &watched);
    report(session, &lines, code)
}

fn command_lines(name: &str, code: u8, watched: &Watched) -> Vec<Line> {
    let seen = watched.seen();
    let (providers, others): (Vec<&Seen>, Vec<&Seen>) = seen.iter().partition(|one| watched.is_providers(&one.host));
    let mut lines = vec![verdict(name, code, &providers, &others)];
    let mut told: Vec<&Seen> = Vec::new();
    for one in &seen {
        if !told.contains(&one) {
            told.push(one);
            lines.push(connection(one));
        }
    }
    lines
}

fn verdict(name: &str, code: u8, providers: &[&Seen], others: &[&Seen]) -> Line {
    const DIRECT: &str = "`sidekey exec --sandbox` leads it here whatever it reads; with a base URL there is nothing to \
                          trust: `sidekey exec`";
    const UNTRUSTED: &str = "a setting of its own that names roots; `sidekey ca install` for the daemon's, if it reads the \
                             system's; a base URL: `sidekey exec`";
    let keyless = providers.iter().any(|one| one.became == Became::Asked { keyed: false });
    let keyed = providers.iter().any(|one| one.became == Became::Asked { keyed: true });
    match concluded(providers) {
        Some((Finding::Proxied, _)) if keyless && !keyed => {
            let fix = "have it read its key from the variable, or carry a virtual key in the proxy's URL";
            warn(name, "proxied: but it shows another key than the one in its environment, or none", fix)
                .found(Finding::Proxied)
        }
        Some((Finding::Proxied, _)) => ok(name, "proxied: it comes by HTTPS_PROXY, and trusts").found(Finding::Proxied),
        Some((finding, why)) => {
            fail(name, format!("untrusted: it refuses the certificate ({why})"), UNTRUSTED).found(finding)
        }
        None if code == 126 || code == 127 => {
            fail(name, format!("it does not run: exit code {code}"), "give a command that this machine has")
                .found(Finding::Unclear)
        }
        None if others.is_empty() => {
            let detail = "direct: nothing came by the proxy; if it asked a provider, that one has seen the virtual key and \
                          answered 401";
            fail(name, detail, DIRECT).found(Finding::Direct)
        }
        None => {
            let detail = "unclear: it comes by the proxy, and asked no provider; parts of it may go past";
            warn(name, detail, "give a command that asks a provider").found(Finding::Unclear)
        }
    }
}

/// A line for one connection.
fn connection(seen: &Seen) -> Line {
    let check = format!("{}:{}", seen.host, seen.port);
    match &seen.became {
        Became::Granted => ok(&check, "opened ahead, and not used"),
        Became::Asked { keyed: true } => ok(&check, "intercepted, with the virtual key"),
        Became::Asked { keyed: false } => ok(&check, "intercepted, without the virtual key"),
        Became::Joined => ok(&check, "tunnelled: no provider's"),
        Became::Untrusted(why) => warn(&check, format!("TLS was not agreed on: {why}"), "see above"),
        Became::Unreached(why) => {
            warn(&check, format!("not reached: {why}"), "no provider's; see whether it is needed")
        }
    }
}

fn report(session: &Session, lines: &[Line], code: u8) -> Result<ExitCode, Failure> {
    out::say(&format!("sidekey: the command ended with exit code {code}"));
    let more: [(&str, Value); 1] = [("exit_code", json!(code))];
    crate::cli::checks::report_with(session.out, lines, more)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::checks::Mark;

    fn seen(host: &str, became: Became) -> Seen {
        Seen { host: host.to_owned(), port: 443, became }
    }

    #[test]
    fn verdicts_of_a_command() {
        let (keyed, keyless) = (Became::Asked { keyed: true }, Became::Asked { keyed: false });
        let refused = || Became::Untrusted("UnknownCA".to_owned());
        for (code, providers, others, mark, finding, says) in [
            (0, vec![keyed.clone()], 0, Mark::Ok, Finding::Proxied, "trusts"),
            (1, vec![refused(), keyed.clone()], 1, Mark::Ok, Finding::Proxied, "trusts"),
            (1, vec![keyless.clone(), keyed], 0, Mark::Ok, Finding::Proxied, "trusts"),
            (1, vec![keyless], 0, Mark::Warn, Finding::Proxied, "another key"),
            (1, vec![Became::Granted, refused()], 1, Mark::Fail, Finding::Untrusted, "(UnknownCA)"),
            (0, vec![], 0, Mark::Fail, Finding::Direct, "nothing came"),
            (0, vec![Became::Granted], 0, Mark::Fail, Finding::Direct, "nothing came"),
            (0, vec![], 1, Mark::Warn, Finding::Unclear, "asked no provider"),
            (127, vec![], 0, Mark::Fail, Finding::Unclear, "does not run"),
        ] {
            let providers: Vec<Seen> = providers.into_iter().map(|became| seen("api.openai.com", became)).collect();
            let others: Vec<Seen> = (0..others).map(|_| seen("pypi.org", Became::Joined)).collect();
            let line = verdict("app", code, &providers.iter().collect::<Vec<_>>(), &others.iter().collect::<Vec<_>>());
            assert_eq!((line.status, line.finding), (mark, Some(finding)), "{line:?}");
            assert!(line.detail.contains(says), "{line:?}");
            assert!(line.is_good() == line.fix.is_none(), "{line:?}");
        }
    }

    #[test]
    fn findings_of_a_runtime() {
        let runtime = &RUNTIMES[0];
        let asked = Ran::Asked("could not resolve".to_owned());
        let of = |ran: &Ran, became: Option<Became>| {
            let seen: Vec<Seen> = became.map(|became| seen(&runtime.host(), became)).into_iter().collect();
            told(runtime, ran, &seen).map(|line| (line.status, line.finding.unwrap()))
        };
        for (ran, became, want) in [
            (&asked, Some(Became::Asked { keyed: false }), Some((Mark::Ok, Finding::Proxied))),
            (&asked, Some(Became::Untrusted(String::new())), Some((Mark::Warn, Finding::Untrusted))),
            (&asked, None, Some((Mark::Warn, Finding::Direct))),
            (&Ran::Broken(String::new()), None, Some((Mark::Warn, Finding::Unclear))),
            (&Ran::Absent, None, None),
        ] {
            assert_eq!(of(ran, became), want, "{ran:?}");
        }
        let of_others = [seen("other.sidekey-doctor.invalid", Became::Asked { keyed: false })];
        assert_eq!(told(runtime, &asked, &of_others).unwrap().finding, Some(Finding::Direct));
    }
}
