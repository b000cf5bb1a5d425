//! `sidekey exec`: a command with a virtual key that lives as long as it does, and none of the real ones.
//!
//! Owns the child: its environment, signals and exit code. Leaves the proxy to the running daemon, or to a private one
//! of this process when none runs.

use std::ffi::OsString;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::os::unix::process::ExitStatusExt;
use std::process::{ExitCode, ExitStatus};

use serde_json::{Map, Value, json};
use tokio::process::{Child, Command};
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::cli::args::{ExecArgs, allowed};
use crate::cli::client::AdminClient;
use crate::cli::failure::{Exit, Failure};
use crate::cli::out;
use crate::cli::sdk::Targets;
use crate::clock::{Clock, rfc3339};
use crate::secret::Secret;

/// Set in the child: an `exec` inside an `exec` would hand out a key of a key.
pub const MARK: &str = "SIDEKEY_EXEC";
const NOT_RUNNABLE: u8 = 126;
const NOT_FOUND: u8 = 127;

/// Mints the key, runs the command, deletes the key; says what was used.
///
/// # Errors
/// When a provider is not known, nothing would lead the command to it, or the key cannot be made. What the command
/// does is in its exit code.
pub async fn run(client: &AdminClient, proxy: SocketAddr, args: &ExecArgs) -> Result<ExitCode, Failure> {
    let targets = targets(client, proxy, args).await?;
    let clock = Clock::system();
    let expires = clock.wall_ms().saturating_add(u64::try_from(args.ttl.as_millis()).unwrap_or(u64::MAX));
    let made = client.post("/api/keys", &wish(args, &rfc3339(expires))).await?.body;
    let id = made["key_data"]["id"].as_str().unwrap_or_default().to_owned();
    let key = Secret::new(made["key"].as_str().unwrap_or_default().to_owned());
    let code = run_child(args, &targets, &key).await;
    if !args.quiet
        && let Ok(usage) = client.get(&format!("/api/keys/{id}/usage?days=30")).await
    {
        out::say(&summary(&usage.body));
    }
    client.delete(&format!("/api/keys/{id}")).await?;
    Ok(code)
}

/// Where the variables lead. A command that gets some can be told the other base URLs by its own configuration.
async fn targets(client: &AdminClient, proxy: SocketAddr, args: &ExecArgs) -> Result<Targets, Failure> {
    let mut targets = Targets::of(proxy, &args.provider, &client.get("/api/providers").await?.body)?;
    for failure in std::mem::take(&mut targets.by_hand) {
        if targets.is_empty() {
            return Err(failure);
        }
        out::say(&format!("warning: {}; {}", failure.message, failure.fix.unwrap_or_default()));
    }
    Ok(targets)
}

/// The body of the key's creation.
fn wish(args: &ExecArgs, expires: &str) -> Value {
    let program = args.command.first().map(|word| word.to_string_lossy().into_owned()).unwrap_or_default();
    let program = program.rsplit('/').next().unwrap_or_default().to_owned();
    let mut limits = Map::new();
    for (name, limit) in [("rpm", args.rpm), ("tpm", args.tpm)] {
        limits.extend(limit.map(|limit| (name.to_owned(), json!(limit))));
    }
    let name: String = format!("exec {program}").chars().filter(|c| !c.is_control()).take(64).collect();
    json!({
        "name": name.trim(),
        "user": args.user,
        "team": args.team,
        "models": allowed(&args.models),
        "providers": args.provider,
        "limits": limits,
        "budgets": args.budget,
        "expires": expires,
        "ephemeral": true,
    })
}

/// One line on what was used.
fn summary(usage: &Value) -> String {
    let totals = &usage["totals"];
    let figure = |name: &str| totals["tokens"][name].as_u64().map_or_else(|| "-".to_owned(), |n| n.to_string());
    let cost = totals["cost_usd"].as_str().map(|cost| format!(", {cost} USD")).unwrap_or_default();
    format!(
        "sidekey: {} requests, {} input and {} output tokens{cost}",
        totals["requests"].as_u64().unwrap_or(0),
        figure("input"),
        figure("output")
    )
}

async fn run_child(args: &ExecArgs, targets: &Targets, key: &Secret) -> ExitCode {
    let Some((program, words)) = args.command.split_first() else { return ExitCode::from(NOT_FOUND) };
    let signals = match Forwarded::new() {
        Ok(signals) => signals,
        Err(error) => {
            out::say(&format!("error: signals: {error}"));
            return ExitCode::from(Exit::Failure as u8);
        }
    };
    match child(program, words, targets, key).spawn() {
        Ok(child) => ExitCode::from(code_of(wait(child, signals).await.ok())),
        Err(error) => {
            out::say(&format!("error: {}: {error}", program.to_string_lossy()));
            ExitCode::from(if error.kind() == ErrorKind::NotFound { NOT_FOUND } else { NOT_RUNNABLE })
        }
    }
}

fn child(program: &OsString, words: &[OsString], targets: &Targets, key: &Secret) -> Command {
    let mut command = Command::new(program);
    command.args(words).env(MARK, "1");
    for name in &targets.real {
        command.env_remove(name);
    }
    // The master key and its place are the keeper's, not the child's.
    command.env_remove("SIDEKEY_MASTER_KEY").env_remove("SIDEKEY_MASTER_KEY_FILE");
    command.envs(targets.variables(Some(key.expose())));
    command
}

/// Signals meant for the command. An interrupt typed at a terminal reaches it without us: the terminal sends it to
/// the whole group, and a second one would look like impatience.
struct Forwarded {
    hangup: Signal,
    interrupt: Signal,
    quit: Signal,
    terminate: Signal,
}

impl Forwarded {
    fn new() -> std::io::Result<Self> {
        Ok(Self {
            hangup: signal(SignalKind::hangup())?,
            interrupt: signal(SignalKind::interrupt())?,
            quit: signal(SignalKind::quit())?,
            terminate: signal(SignalKind::terminate())?,
        })
    }

    /// The next signal to pass on.
    async fn next(&mut self) -> rustix::process::Signal {
        use rustix::process::Signal as Sent;
        let from_terminal = || std::io::IsTerminal::is_terminal(&std::io::stdin());
        loop {
            tokio::select! {
                _ = self.terminate.recv() => return Sent::TERM,
                _ = self.hangup.recv() => return Sent::HUP,
                _ = self.interrupt.recv() => if !from_terminal() { return Sent::INT },
                _ = self.quit.recv() => if !from_terminal() { return Sent::QUIT },
            }
        }
    }
}

async fn wait(mut child: Child, mut signals: Forwarded) -> std::io::Result<ExitStatus> {
    loop {
        let sent = tokio::select! {
            status = child.wait() => return status,
            sent = signals.next() => sent,
        };
        let pid = child.id().and_then(|pid| i32::try_from(pid).ok()).and_then(rustix::process::Pid::from_raw);
        // It may have ended in between: then the wait above says so.
        if let Some(pid) = pid {
            let _ = rustix::process::kill_process(pid, sent);
        }
    }
}

/// As shells have it: the command's own code, or 128 and the signal.
fn code_of(status: Option<ExitStatus>) -> u8 {
    let Some(status) = status else { return Exit::Failure as u8 };
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal));
    code.and_then(|code| u8::try_from(code).ok()).unwrap_or(Exit::Failure as u8)
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use axum::Router;
    use axum::routing::{delete, get, post};

    use super::*;

    /// The admin API as far as `exec` uses it; remembers what was asked.
    fn api(asked: &Arc<Mutex<Vec<String>>>) -> AdminClient {
        let (made, deleted) = (Arc::clone(asked), Arc::clone(asked));
        let router = Router::new()
            .route(
                "/api/keys",
                post(move |body: String| async move {
                    made.lock().unwrap().push(body);
                    axum::Json(json!({"key": "sk-side-virtual", "key_data": {"id": "00"}}))
                }),
            )
            .route(
                "/api/providers",
                get(|| async { axum::Json(json!({"providers": [{"id": "mine", "dialect": "openai", "v1": "/v1"}]})) }),
            )
            .route("/api/keys/00", delete(move || async move { deleted.lock().unwrap().push("deleted".to_owned()) }))
            .route("/api/keys/00/usage", get(|| async { axum::Json(json!({"totals": {"requests": 2}})) }));
        AdminClient::Local(router)
    }

    fn args(command: &[&str]) -> ExecArgs {
        ExecArgs {
            rpm: Some(5),
            tpm: None,
            models: vec!["gpt-*".to_owned()],
            budget: Vec::new(),
            ttl: std::time::Duration::from_secs(60),
            provider: vec!["openai".to_owned()],
            user: None,
            team: None,
            quiet: true,
            command: command.iter().map(OsString::from).collect(),
        }
    }

    #[tokio::test]
    async fn the_key_dies_with_the_command_whose_code_it_has() {
        let script = "test \"$OPENAI_API_KEY\" = sk-side-virtual && test -z \"$GOOGLE_API_KEY\" && \
                      test \"$OPENAI_BASE_URL\" = http://127.0.0.1:7/openai/v1 && exit 42";
        for (name, command, want) in [
            ("environment", vec!["/bin/sh", "-c", script], 42),
            ("signal", vec!["/bin/sh", "-c", "kill -TERM $$"], 143),
            ("not found", vec!["/nonexistent/program"], 127),
            ("not runnable", vec!["/dev/null"], 126),
        ] {
            let asked = Arc::default();
            let client = api(&asked);
            let code = run(&client, "127.0.0.1:7".parse().unwrap(), &args(&command)).await.unwrap();
            assert_eq!(format!("{code:?}"), format!("{:?}", ExitCode::from(want)), "{name}");
            let asked = asked.lock().unwrap();
            let made: Value = serde_json::from_str(&asked[0]).unwrap();
            assert_eq!((&made["limits"], &made["ephemeral"]), (&json!({"rpm": 5}), &json!(true)));
            assert_eq!(asked[1], "deleted", "{name}");
        }
    }

    #[tokio::test]
    async fn no_command_without_a_way_to_its_provider() {
        let script = |id: &str| format!("test \"$OPENAI_BASE_URL\" = http://127.0.0.1:7/{id}/v1 && exit 42");
        for (providers, id, want) in [
            (&["mine"][..], "mine", Ok(42)),
            (&["mine", "openai"], "openai", Ok(42)),
            (&["mine", "vllm"], "", Err("no SDK reads a variable for \"mine\" beside the others")),
            (&["mien"], "", Err("there is no provider \"mien\"")),
        ] {
            let asked = Arc::default();
            let args = ExecArgs {
                provider: providers.iter().map(|id| (*id).to_owned()).collect(),
                ..args(&["/bin/sh", "-c", &script(id)])
            };
            let done = run(&api(&asked), "127.0.0.1:7".parse().unwrap(), &args).await;
            let done = done.map(|code| format!("{code:?}"));
            let want = want.map(|code| format!("{:?}", ExitCode::from(code)));
            assert_eq!(done.as_ref().map_err(|failure| &*failure.message), want.as_ref().map_err(|text| *text));
            assert_eq!(asked.lock().unwrap().is_empty(), want.is_err(), "a key was made for {providers:?}");
        }
    }

    #[test]
    fn summaries() {
        for (cost, want) in [(Value::Null, ""), (json!("0.0021"), ", 0.0021 USD")] {
            let usage = json!({"totals": {"requests": 3, "tokens": {"input": 10, "output": null}, "cost_usd": cost}});
            assert_eq!(summary(&usage), format!("sidekey: 3 requests, 10 input and - output tokens{want}"));
        }
    }
}
