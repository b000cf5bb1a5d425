//! `sidekey exec`: a command with a virtual key that lives as long as it does, and none of the real ones.
//!
//! Owns the key and what the command finds in its environment. Leaves the process to `child`, the variables to `sdk` and
//! `proxied`, shutting the command in to `sandbox`, and the proxy to the running daemon, or to a private one of this
//! process when none runs.

pub(super) mod child;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use serde_json::{Map, Value, json};
use tempfile::TempDir;
use tokio::process::{Child, Command};

use crate::cli::args::{ExecArgs, Mode, allowed};
use crate::cli::client::AdminClient;
use crate::cli::failure::Failure;
use crate::cli::out;
use crate::cli::proxied::{self, Changes};
use crate::cli::sdk::{Real, Targets, hosts};
use crate::cli::trust::{self, TrustFiles};
use crate::clock::{Clock, rfc3339};
use crate::config::{Environment, Places};
use crate::secret::Secret;

pub(in crate::cli) use self::child::code_of_failed_start;

/// Set in the child: an `exec` inside an `exec` would hand out a key of a key.
pub const MARK: &str = "SIDEKEY_EXEC";
/// The master key and its place: the keeper's, never the child's.
const MASTER: &str = "SIDEKEY_MASTER_KEY";
const MASTER_FILE: &str = "SIDEKEY_MASTER_KEY_FILE";
/// What comes after the command's end may take so long: somebody waits for its code.
const PATIENCE: Duration = Duration::from_secs(10);

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
    let taken = Taken::of(&targets.real, args, &around.environment);
    let prepare = |command: &mut Command| prepare(command, &taken.names, &changes, &set);
    let done = start(args, around, proxy, trust.as_ref(), &taken.files, prepare).await;
    let told = if args.quiet || done.is_err() { None } else { Some(args.mode) };
    if let Some(why) = clean_up(client, &id, told, PATIENCE).await {
        out::say(&format!("warning: the virtual key {id} could not be deleted, and expires by itself: {why}"));
    }
    done
}

/// Says what was used, and deletes the key; why not, if so: that is no reason to keep the command's code back.
async fn clean_up(client: &AdminClient, id: &str, told: Option<Mode>, patience: Duration) -> Option<String> {
    let all = async {
        if let Some(mode) = told
            && let Ok(usage) = client.get(&format!("/api/keys/{id}/usage?days=30")).await
        {
            out::say(&summary(&usage.body, mode));
        }
        client.delete(&format!("/api/keys/{id}")).await.err().map(|failure| failure.message)
    };
    tokio::time::timeout(patience, all).await.unwrap_or_else(|_| Some("sidekey does not answer".to_owned()))
}

/// What of the environment is kept from the command.
struct Taken {
    names: Vec<String>,
    /// What the variables among them name that name files.
    files: Vec<PathBuf>,
}

impl Taken {
    fn of(real: &Real, args: &ExecArgs, environment: &Environment) -> Self {
        let real_ones = real.names().filter(|name| !args.keeps(name));
        let names: Vec<String> = real_ones.chain([MASTER, MASTER_FILE]).map(str::to_owned).collect();
        let of_files = names.iter().filter(|name| *name == MASTER_FILE || real.files.contains(*name));
        let files = of_files.filter_map(|name| environment.get(name).map(PathBuf::from)).collect();
        Self { names, files }
    }
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

fn prepare(command: &mut Command, taken: &[String], changes: &Changes, set: &[(&'static str, String)]) {
    command.env(MARK, "1");
    for name in taken.iter().map(String::as_str).chain(changes.unset.iter().copied()) {
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
    emptied: &[PathBuf],
    prepare: impl Fn(&mut Command),
) -> Result<ExitCode, Failure> {
    let (program, words) = args.command.split_first().expect("clap wants one word at least");
    match trust.filter(|_| args.sandbox) {
        None => {
            let mut command = Command::new(program);
            prepare(command.args(words));
            child::run(program, command, async |_: &mut Child| Ok(std::future::ready(()))).await.map(ExitCode::from)
        }
        Some(trust) => shut_in(args, around, proxy, &trust.files, emptied, prepare).await,
    }
}

#[cfg(target_os = "linux")]
async fn shut_in(
    args: &ExecArgs,
    around: &Around,
    proxy: SocketAddr,
    files: &TrustFiles,
    emptied: &[PathBuf],
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
        emptied: emptied.to_vec(),
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
    _: &[PathBuf],
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
    use axum::routing::{MethodRouter, delete, get, post};

    use super::*;

    /// The admin API as far as `exec` uses it; remembers what was asked.
    fn api(asked: &Arc<Mutex<Vec<String>>>) -> AdminClient {
        let deleted = Arc::clone(asked);
        api_with(asked, delete(move || async move { deleted.lock().unwrap().push("deleted".to_owned()) }))
    }

    fn api_with(asked: &Arc<Mutex<Vec<String>>>, deleted: MethodRouter) -> AdminClient {
        let made = Arc::clone(asked);
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
            .route("/api/keys/00", deleted)
            .route("/api/keys/00/usage", get(|| async { axum::Json(json!({"totals": {"requests": 2}})) }));
        AdminClient::Local(router)
    }

    fn args(command: &[&str]) -> ExecArgs {
        ExecArgs {
            rpm: Some(5),
            tpm: None,
            models: vec!["gpt-*".to_owned()],
            ttl: Duration::from_secs(60),
            budget: Vec::new(),
            mode: Mode::BaseUrl,
            sandbox: false,
            allow: Vec::new(),
            keep_keys: None,
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
    async fn the_code_is_the_commands_whatever_becomes_of_the_key() {
        for (name, script, want) in [
            ("success", "exit 0", 0),
            ("failure", "exit 1", 1),
            ("a code of its own", "exit 42", 42),
            ("one of ours", "exit 6", 6),
            ("signal", "kill -TERM $$", 143),
        ] {
            let asked = Arc::default();
            let client = api_with(&asked, delete(|| async { http::StatusCode::SERVICE_UNAVAILABLE }));
            let args = args(&["/bin/sh", "-c", script]);
            let code = run(&client, "127.0.0.1:7".parse().unwrap(), &args, &around()).await.unwrap();
            assert_eq!(format!("{code:?}"), format!("{:?}", ExitCode::from(want)), "{name}");
        }
        // Nor whether there is an answer at all.
        let client = api_with(&Arc::default(), delete(std::future::pending::<()>));
        let why = clean_up(&client, "00", None, Duration::from_millis(10)).await;
        assert_eq!(why.as_deref(), Some("sidekey does not answer"));
        let client = api(&Arc::default());
        assert_eq!(clean_up(&client, "00", Some(Mode::Proxy), PATIENCE).await, None);
    }

    #[test]
    fn what_is_taken_from_the_environment() {
        let environment = Environment::from_pairs([
            ("OPENAI_API_KEY", "sk-real"),
            ("OPENAI_API_KEY_FILE", "/run/secrets/openai"),
            ("GROQ_API_KEY_FILE", "/run/secrets/groq"),
            ("SIDEKEY_MASTER_KEY_FILE", "/run/secrets/master"),
        ]);
        let real = Real {
            keys: ["GROQ_API_KEY", "OPENAI_API_KEY"].map(str::to_owned).into(),
            files: ["GROQ_API_KEY_FILE", "OPENAI_API_KEY_FILE"].map(str::to_owned).into(),
        };
        let all = ["GROQ_API_KEY", "OPENAI_API_KEY", "GROQ_API_KEY_FILE", "OPENAI_API_KEY_FILE"];
        for (keep, taken, files) in [
            (None, &all[..], &["/run/secrets/groq", "/run/secrets/openai", "/run/secrets/master"][..]),
            (Some(vec![]), &[], &["/run/secrets/master"]),
            (
                Some(vec!["OPENAI_API_KEY_FILE".to_owned(), MASTER.to_owned()]),
                &all[..3],
                &["/run/secrets/groq", "/run/secrets/master"],
            ),
        ] {
            let args = ExecArgs { keep_keys: keep, ..args(&["true"]) };
            let got = Taken::of(&real, &args, &environment);
            assert_eq!(got.names, [taken, &[MASTER, MASTER_FILE]].concat(), "{:?}", args.keep_keys);
            assert_eq!(got.files, files.iter().map(PathBuf::from).collect::<Vec<_>>(), "{:?}", args.keep_keys);
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
