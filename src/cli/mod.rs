//! The command line: what is typed, what is printed, and the exit code.
//!
//! Owns dispatch and the session of a command. Everything a command does to the store goes through the admin API,
//! over the daemon's socket or in this process.

pub mod alerts;
pub mod args;
pub mod audit;
pub mod ca;
mod checks;
pub mod client;
mod daemon;
mod demo;
mod doctor;
pub mod environment;
pub mod exec;
mod explain;
pub mod failure;
mod init;
mod keys;
pub mod out;
mod owners;
pub mod plan_args;
mod plans;
mod policy;
pub mod pools;
pub mod price_args;
mod prices;
mod progress;
mod provider_keys;
pub mod proxied;
mod redirect;
#[cfg(target_os = "linux")]
mod sandbox;
pub mod sdk;
pub mod secret_input;
pub mod settings;
mod store;
#[cfg(test)]
mod tests;
mod tokens;
pub mod trust;
mod ui;
mod usage;

use std::ffi::OsString;
use std::fmt;
use std::net::SocketAddr;
use std::pin::Pin;
use std::process::ExitCode;

use axum::Router;
use clap::{CommandFactory, Parser};

use crate::cli::args::{Cli, Command, Global, Shell};
use crate::cli::client::AdminClient;
use crate::cli::failure::{Exit, Failure};
use crate::cli::out::Out;
use crate::clock::Clock;
use crate::config::{self, Environment, Fault, Loaded, NoPlace, Places};
use crate::control::{Explainer, KeyTester};
use crate::live::Live;
use crate::provider::Registry;
use crate::storage::Store;

/// What the command line asks of `app`, handed in so that tests can stand in for it.
#[derive(Clone, Copy, Debug)]
pub struct Hooks {
    /// Makes what explains the request path.
    pub explainer: fn(&Store, &Live<Registry>, &Clock) -> Explainer,
    /// Starts a proxy for one command, on a free port of the loopback address.
    pub private: fn(Loaded, Environment) -> PrivateStart,
    /// Runs the proxy until it is told to stop.
    pub run: fn(Loaded, Environment) -> Result<(), Failure>,
    /// Makes what tests provider keys.
    pub tester: fn(&Store, &Live<Registry>, &Environment) -> KeyTester,
}

/// The start of a [`Private`] proxy, which has threads of its own.
pub type PrivateStart = Pin<Box<dyn Future<Output = Result<Private, Failure>>>>;

/// A proxy of this process, without admin socket and telemetry.
pub struct Private {
    /// Where it listens.
    pub proxy: SocketAddr,
    /// Its admin API.
    pub admin: Router,
    /// Drains it, flushes its ledger and closes its store.
    pub stop: Pin<Box<dyn Future<Output = ()>>>,
}

impl fmt::Debug for Private {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Private").field("proxy", &self.proxy).finish_non_exhaustive()
    }
}

/// What a command works with.
#[derive(Debug)]
pub struct Session {
    /// The environment it was started in.
    pub environment: Environment,
    /// The configuration in force.
    pub loaded: Loaded,
    /// Where its answer goes.
    pub out: Out,
    /// True when nobody is to be asked.
    pub no_input: bool,
    /// What it asks of `app`.
    pub hooks: Hooks,
}

/// Reads the command line, does what it says, and gives the exit code.
#[must_use]
pub fn main() -> ExitCode {
    let words: Vec<OsString> = std::env::args_os().collect();
    #[cfg(target_os = "linux")]
    if let Some(code) = sandbox::main(&words) {
        return code;
    }
    run(&words, Environment::capture(), daemon::HOOKS).unwrap_or_else(|failure| {
        for line in failure.lines() {
            out::say(&line);
        }
        failure.code()
    })
}

fn run(words: &[OsString], environment: Environment, hooks: Hooks) -> Result<ExitCode, Failure> {
    secret_input::refuse_in_words(words)?;
    let cli = match Cli::try_parse_from(words) {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version go to standard output with code 0; a closed pipe there is nobody reading.
            let _ = error.print();
            return Ok(ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(Exit::Usage as u8)));
        }
    };
    let out = Out { format: cli.global.output };
    match &cli.command {
        Command::Completion { shell } => return print(out, &completion(*shell)),
        Command::Man => return print(out, &manual()?),
        _ => {}
    }
    let loaded = match load(&cli, &environment) {
        Err(Unloaded::Faults(faults)) if matches!(cli.command, Command::Doctor { .. }) => {
            return doctor::faulty(out, &faults);
        }
        loaded => loaded?,
    };
    if !matches!(cli.command, Command::Run(_)) {
        for warning in &loaded.warnings {
            out::say(&format!("warning: {warning}"));
        }
    }
    let session = Session { environment, loaded, out, no_input: cli.global.no_input, hooks };
    dispatch(session, cli.command)
}

fn dispatch(session: Session, command: Command) -> Result<ExitCode, Failure> {
    match command {
        Command::Completion { .. } | Command::Man => {}
        Command::Config(command) => block_on(settings::run(&session, &command))?,
        Command::Demo { once } => demo::run(session.loaded, once, session.out)?,
        Command::Doctor { command } => return block_on(doctor::run(&session, &command)),
        Command::Env(args) => block_on(environment::run(&session, &args))?,
        Command::Exec(args) => return block_on(execute(session, args)),
        Command::Init => block_on(init::run(&session))?,
        Command::Redirect(command) => return redirect::run(&session, &command),
        Command::Restore { file, force } => block_on(store::restore(&session, &file, force))?,
        Command::Run(_) => (session.hooks.run)(session.loaded, session.environment)?,
        command @ (Command::Alerts(_)
        | Command::Audit(_)
        | Command::Backup { .. }
        | Command::Ca(_)
        | Command::Explain(_)
        | Command::Key(_)
        | Command::Ledger(_)
        | Command::Plan(_)
        | Command::Pool(_)
        | Command::Prices(_)
        | Command::Provider(_)
        | Command::ProviderKey(_)
        | Command::Status
        | Command::Team(_)
        | Command::Token(_)
        | Command::Ui { .. }
        | Command::User(_)
        | Command::Usage(_)) => return block_on(through_api(&session, command)),
    }
    Ok(ExitCode::SUCCESS)
}

/// Commands that are requests of the admin API.
async fn through_api(session: &Session, command: Command) -> Result<ExitCode, Failure> {
    match command {
        Command::Alerts(args) => return alerts::run(session, &args).await,
        Command::Ui { no_open } => return ui::run(session, no_open).await.map(|()| ExitCode::SUCCESS),
        Command::Status => return usage::status(session).await.map(|()| ExitCode::SUCCESS),
        _ => {}
    }
    let connected = store::connect(session).await?;
    let client = &connected.client;
    let done = match command {
        Command::Audit(args) => audit::run(session, client, &args).await,
        Command::Backup { file } => store::backup(client, &file).await,
        Command::Ca(command) => ca::run(session, client, command).await,
        Command::Explain(args) => explain::run(session, client, &args).await,
        Command::Key(command) => keys::run(session, client, command).await,
        Command::Ledger(args) => usage::ledger(session, client, &args).await,
        Command::Plan(command) => plans::run(session, client, command).await,
        Command::Pool(command) => pools::run(session, client, command).await,
        Command::Prices(command) => prices::run(session, client, command).await,
        Command::Provider(command) => usage::provider(session, client, &command).await,
        Command::ProviderKey(command) => provider_keys::run(session, client, command).await,
        Command::Team(command) => owners::run(session, client, "team", command).await,
        Command::Token(command) => tokens::run(session, client, command).await,
        Command::Usage(args) => usage::usage(session, client, &args).await,
        Command::User(command) => owners::run(session, client, "user", command).await,
        _ => Ok(()),
    };
    connected.close().await;
    done.map(|()| ExitCode::SUCCESS)
}

/// `exec` through the daemon, or through a proxy of this process.
async fn execute(session: Session, args: args::ExecArgs) -> Result<ExitCode, Failure> {
    if session.environment.get(exec::MARK).is_some() {
        let failure = Failure::new(Exit::Usage, "this is already inside `sidekey exec`");
        return Err(failure.fix("run the command itself: its variables are set"));
    }
    let around = exec::Around { environment: session.environment.clone(), places: session.loaded.places.clone() };
    if let Some(client) = AdminClient::of_daemon(&session.loaded.admin_socket()).await {
        return exec::run(&client, proxy_of(&client).await?, &args, &around).await;
    }
    let private = (session.hooks.private)(session.loaded, session.environment).await?;
    let client = AdminClient::Local(private.admin);
    let code = exec::run(&client, private.proxy, &args, &around).await;
    private.stop.await;
    code
}

/// Where the daemon's proxy listens.
async fn proxy_of(daemon: &AdminClient) -> Result<SocketAddr, Failure> {
    let status = daemon.get("/api/status").await?.body;
    let proxy = status["listen"]["proxy"].as_str().and_then(|text| text.parse().ok());
    proxy.ok_or_else(|| Failure::new(Exit::Unreachable, "the daemon does not say where its proxy listens"))
}

/// Why there is no configuration.
enum Unloaded {
    Faults(Vec<Fault>),
    Places(NoPlace),
}

impl From<Unloaded> for Failure {
    fn from(unloaded: Unloaded) -> Self {
        match unloaded {
            Unloaded::Faults(faults) => faults.into(),
            Unloaded::Places(error) => Self::new(Exit::Config, error.to_string()),
        }
    }
}

fn load(cli: &Cli, environment: &Environment) -> Result<Loaded, Unloaded> {
    let Global { config, data_dir, .. } = &cli.global;
    let mut places = Places::find(environment, data_dir.as_deref(), config.as_deref()).map_err(Unloaded::Places)?;
    if matches!(cli.command, Command::Init) {
        // `init` writes the named file.
        places.config_named = false;
    }
    let mut overrides = cli.global.set.clone();
    if let Command::Run(args) = &cli.command {
        let said = [
            ("listen.proxy", &args.proxy),
            ("listen.admin", &args.admin),
            ("listen.telemetry", &args.telemetry),
            ("log.level", &args.log_level),
        ];
        overrides.extend(said.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value.clone()?))));
    }
    // What the daemon says of a faulty file can be asked with that very file in place.
    let asks_daemon = matches!(cli.command, Command::Status | Command::Alerts { .. });
    match config::load(environment, places.clone(), &overrides) {
        Err(_) if asks_daemon => Ok(Loaded::defaults(places)),
        loaded => loaded.map_err(Unloaded::Faults),
    }
}

fn block_on<T>(work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(work)
}

fn print(out: Out, text: &str) -> Result<ExitCode, Failure> {
    out.text(text)?;
    Ok(ExitCode::SUCCESS)
}

fn completion(shell: Shell) -> String {
    let shell = match shell {
        Shell::Bash => clap_complete::Shell::Bash,
        Shell::Fish => clap_complete::Shell::Fish,
        Shell::Zsh => clap_complete::Shell::Zsh,
    };
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "sidekey", &mut text);
    String::from_utf8_lossy(&text).into_owned()
}

/// The manual: the program's page, then a page for each command.
fn manual() -> Result<String, Failure> {
    let mut text = Vec::new();
    let mut program = Cli::command();
    // Only a built command knows its names in full.
    program.build();
    clap_mangen::Man::new(program.clone()).render(&mut text)?;
    for command in program.get_subcommands() {
        let title = command.get_display_name().unwrap_or_default().to_owned();
        clap_mangen::Man::new(command.clone()).title(title).render(&mut text)?;
    }
    Ok(String::from_utf8_lossy(&text).into_owned())
}
