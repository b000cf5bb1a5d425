//! `sidekey exec`: a command with a virtual key that lives as long as it does, and none of the real ones.
//!
//! Owns the key and what the command finds in its environment. Leaves the process to `child`, the variables to `sdk` and
//! `proxied`, shutting the command in to `sandbox`, and the proxy to the running daemon, or to a private one of this
//! process when none runs.

pub(super) mod child;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use serde_json::{Map, Value, json};
use tempfile::TempDir;
use tokio::process::{Child, Command};

use crate::cli::args::{ExecArgs, Mode, allowed};
use crate::cli::client::AdminClient;
use crate::cli::failure::Failure;
use crate::cli::out;
use crate::cli::proxied::{self, Changes};
use crate::cli::sdk::{Targets, hosts};
use crate::cli::trust::{self, TrustFiles};
use crate::clock::{Clock, rfc3339};
use crate::config::{Environment, Places};
use crate::secret::Secret;

pub(in crate::cli) use self::child::code_of_failed_start;

/// Set in the child: an `exec` inside an `exec` would hand out a key of a key.
pub const MARK: &str = "SIDEKEY_EXEC";

/// Where a command is run from.
#[derive(Clone, Debug)]
pub struct Around {
    /// What this process was started with.
    pub environment: Environment,
    /// Where sidekey's own things lie.
    pub places: Places,
}

/// Mints the key, runs the command, deletes the key; says what was used.
///
/// # Errors
/// When a provider is not known, nothing would lead the command to it, the key cannot be made, or the command not be
/// shut in. What the command does is in its exit code.
pub async fn run(
    client: &AdminClient,
    proxy: SocketAddr,
    args: &ExecArgs,
    around: &Around,
) -> Result<ExitCode, Failure> {
    let providers = client.get("/api/providers?limit=1000").await?.body;
    let targets = targets(&providers, proxy, args)?;
    let trust = if args.intercepts() { Some(Trust::of(client, around).await?) } else { None };
    let clock = Clock::system();
    let expires = clock.wall_ms().saturating_add(u64::try_from(args.ttl.as_millis()).unwrap_or(u64::MAX));
    let made = client.post("/api/keys", &wish(args, &rfc3339(expires))).await?.body;
    let id = made["key_data"]["id"].as_str().unwrap_or_default().to_owned();
    let key = Secret::new(made["key"].as_str().unwrap_or_default().to_owned());
    let proxy = targets.proxy();
    let changes = match (&trust, args.mode) {
        (Some(trust), Mode::Proxy) => proxied::proxied(&around.environment, proxy, &trust.files, &hosts(&providers)),
        (Some(trust), Mode::BaseUrl) => proxied::trusting(&around.environment, &trust.files),
        (None, _) => Changes::default(),
    };
    let set = match args.mode {
        Mode::BaseUrl => targets.variables(Some(key.expose())),
        Mode::Proxy => targets.keys(key.expose()),
    };
    let prepare = |command: &mut Command| prepare(command, &targets, &changes, &set);
    let done = start(args, around, proxy, trust.as_ref(), prepare).await;
    if !args.quiet
        && done.is_ok()
        && let Ok(usage) = client.get(&format!("/api/keys/{id}/usage?days=30")).await
    {
        out::say(&summary(&usage.body, args.mode));
    }
    client.delete(&format!("/api/keys/{id}")).await?;
    done
}

/// Where the variables lead. A command that gets some can be told the other base URLs by its own configuration.
fn targets(providers: &Value, proxy: SocketAddr, args: &ExecArgs) -> Result<Targets, Failure> {
    let mut targets = Targets::of(proxy, &args.provider, providers)?;
    for failure in std::mem::take(&mut targets.by_hand) {
        // Through the proxy port the provider's own URL is right.
        if args.intercepts() {
            continue;
        }
        if targets.is_empty() {
            return Err(failure);
        }
        out::say(&format!("warning: {}; {}", failure.message, failure.fix.unwrap_or_default()));
    }
    Ok(targets)
}

/// The files of trust, for as long as the command runs.
struct Trust {
    files: TrustFiles,
    _dir: TempDir,
}

impl Trust {
    async fn of(client: &AdminClient, around: &Around) -> Result<Self, Failure> {
        let roots = trust::roots(client).await?;
        let dir = tempfile::Builder::new().prefix("sidekey-exec-").tempdir()?;
        let files = TrustFiles::in_dir(dir.path());
        for warning in files.write(&around.environment, &roots)? {
            out::say(&format!("warning: {warning}"));
        }
        Ok(Self { files, _dir: dir })
    }
}

fn prepare(command: &mut Command, targets: &Targets, changes: &Changes, set: &[(&'static str, String)]) {
    command.env(MARK, "1");
    for name in &targets.real {
        command.env_remove(name);
    }
    // The master key and its place are the keeper's, not the child's.
    command.env_remove("SIDEKEY_MASTER_KEY").env_remove("SIDEKEY_MASTER_KEY_FILE");
    for name in &changes.unset {
        command.env_remove(name);
    }
    command.envs(changes.set.iter().chain(set).map(|(name, value)| (name, value)));
}

/// Starts the command, shut in or not, and waits for it.
async fn start(
    args: &ExecArgs,
    around: &Around,
    proxy: SocketAddr,
    trust: Option<&Trust>,
    prepare: impl Fn(&mut Command),
) -> Result<ExitCode, Failure> {
    let (program, words) = args.command.split_first().expect("clap wants one word at least");
    match trust.filter(|_| args.sandbox) {
        None => {
            let mut command = Command::new(program);
            prepare(command.args(words));
            child::run(program, command, async |_: &mut Child| Ok(std::future::ready(()))).await.map(ExitCode::from)
        }
        Some(trust) => shut_in(args, around, proxy, &trust.files, prepare).await,
    }
}

#[cfg(target_os = "linux")]
async fn shut_in(
    args: &ExecArgs,
    around: &Around,
    proxy: SocketAddr,
    files: &TrustFiles,
    prepare: impl Fn(&mut Command),
) -> Result<ExitCode, Failure> {
    use crate::cli::sandbox::{Sandbox, Setup};

    let (program, words) = args.command.split_first().expect("clap wants one word at least");
    let runtime_dir = around.environment.get("XDG_RUNTIME_DIR").map(PathBuf::from);
    let uid = rustix::process::getuid().as_raw();
    let runtime_dir = runtime_dir.unwrap_or_else(|| format!("/run/user/{uid}").into());
    let sandbox = Sandbox::new(Setup {
        proxy,
        instead: files.system_files(),
        hidden: vec![around.places.data_dir.clone(), runtime_dir],
        allow: args.allow.clone(),
        quiet: args.quiet,
    })?;
    let mut command = sandbox.command(program, words);
    prepare(&mut command);
    child::run(program, command, async |child: &mut Child| Ok(sandbox.open(child).await?.run()))
        .await
        .map(ExitCode::from)
}

#[cfg(not(target_os = "linux"))]
async fn shut_in(
    _: &ExecArgs,
    _: &Around,
    _: SocketAddr,
    _: &TrustFiles,
    _: impl Fn(&mut Command),
) -> Result<ExitCode, Failure> {
    let failure = Failure::new(crate::cli::failure::Exit::Usage, "a sandbox wants the namespaces of Linux");
    Err(failure.fix("leave --sandbox out; --mode proxy leads programs here by their environment"))
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
fn summary(usage: &Value, mode: Mode) -> String {
    let totals = &usage["totals"];
    let figure = |name: &str| totals["tokens"][name].as_u64().map_or_else(|| "-".to_owned(), |n| n.to_string());
    let requests = totals["requests"].as_u64().unwrap_or(0);
    let cost = totals["cost_usd"].as_str().map(|cost| format!(", {cost} USD")).unwrap_or_default();
    let hint = match (requests, mode) {
        (0, Mode::BaseUrl) => "; a program that does not read base URLs may want --mode proxy",
        _ => "",
    };
    format!(
        "sidekey: {requests} requests, {} input and {} output tokens{cost}{hint}",
        figure("input"),
        figure("output")
    )
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;
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
            ttl: std::time::Duration::from_secs(60),
            budget: Vec::new(),
            mode: Mode::BaseUrl,
            sandbox: false,
            allow: Vec::new(),
            provider: vec!["openai".to_owned()],
            user: None,
            team: None,
            quiet: true,
            command: command.iter().map(OsString::from).collect(),
        }
    }

    fn around() -> Around {
        let environment = Environment::from_pairs([("HOME", "/nonexistent")]);
        let places = Places::find(&environment, None, None).unwrap();
        Around { environment, places }
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
            let code = run(&client, "127.0.0.1:7".parse().unwrap(), &args(&command), &around()).await.unwrap();
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
            let done = run(&api(&asked), "127.0.0.1:7".parse().unwrap(), &args, &around()).await;
            let done = done.map(|code| format!("{code:?}"));
            let want = want.map(|code| format!("{:?}", ExitCode::from(code)));
            assert_eq!(done.as_ref().map_err(|failure| &*failure.message), want.as_ref().map_err(|text| *text));
            assert_eq!(asked.lock().unwrap().is_empty(), want.is_err(), "a key was made for {providers:?}");
        }
    }

    #[test]
    fn summaries() {
        let usage = |requests: u64, cost: Value| json!({"totals": {"requests": requests, "tokens": {"input": 10, "output": null}, "cost_usd": cost}});
        for (usage, mode, want) in [
            (usage(3, Value::Null), Mode::BaseUrl, "sidekey: 3 requests, 10 input and - output tokens"),
            (usage(3, json!("0.0021")), Mode::Proxy, "sidekey: 3 requests, 10 input and - output tokens, 0.0021 USD"),
        ] {
            assert_eq!(summary(&usage, mode), want);
        }
        assert!(summary(&usage(0, Value::Null), Mode::BaseUrl).ends_with("may want --mode proxy"));
        assert!(!summary(&usage(0, Value::Null), Mode::Proxy).contains("--mode"));
    }
}
