//! What can be typed: the command line as clap types.
//!
//! Owns names, flags and help. Effects are in the module of each command.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use ipnet::IpNet;

use crate::access::Role;
use crate::cli::alerts::AlertsArgs;
use crate::cli::audit::AuditArgs;
use crate::cli::ca::CaCommand;
use crate::cli::plan_args::{OwnerCommand, PlanCommand};
use crate::cli::pools::PoolCommand;
use crate::cli::price_args::PricesCommand;
use crate::id::{KeyId, Owner};
use crate::policy::{Budget, Counts, Otherwise, Quota};
use crate::storage::Dimension;
use crate::unit::duration;

/// A sidecar reverse proxy for LLM APIs: virtual keys in, sealed provider keys out.
#[derive(Debug, Parser)]
#[command(name = "sidekey", version, max_term_width = 110)]
pub struct Cli {
    /// Flags of every command.
    #[command(flatten)]
    pub global: Global,
    /// The command.
    #[command(subcommand)]
    pub command: Command,
}

/// Flags of every command.
#[derive(Args, Clone, Debug)]
pub struct Global {
    /// The configuration file [env: SIDEKEY_CONFIG]
    #[arg(long, global = true, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Where the store, the master key and the admin socket lie [env: SIDEKEY_DATA_DIR]
    #[arg(long, global = true, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// Overrides one key of the configuration, as listen.proxy=127.0.0.1:0; may be repeated
    #[arg(long = "set", global = true, value_name = "KEY=VALUE", value_parser = pair)]
    pub set: Vec<(String, String)>,
    /// How answers are printed
    #[arg(short = 'o', long = "output", global = true, value_enum, default_value_t)]
    pub output: Format,
    /// Never ask at the terminal
    #[arg(long, global = true)]
    pub no_input: bool,
}

/// How answers are printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people
    #[default]
    Table,
    /// One JSON document
    Json,
    /// One JSON object a line
    Jsonl,
    /// Lists as CSV (RFC 4180)
    Csv,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Makes the data directory, the master key, the store and a commented sidekey.toml; safe to repeat
    Init,
    /// Runs the proxy in the foreground
    Run(RunArgs),
    /// Shows sidekey at work against a pretend provider, without any account
    Demo {
        /// Tell the story and end
        #[arg(long)]
        once: bool,
    },
    /// Runs a command with a virtual key that dies with it
    Exec(ExecArgs),
    /// Says what would become of a request, and why, without sending it or charging for it
    Explain(ExplainArgs),
    /// Prints the variables that point SDKs at sidekey
    Env(EnvArgs),
    /// Virtual keys: what apps hold
    #[command(subcommand)]
    Key(KeyCommand),
    /// Plans: what keys may do, changed in one place
    #[command(subcommand)]
    Plan(PlanCommand),
    /// Pools: named sets of provider keys
    #[command(subcommand)]
    Pool(PoolCommand),
    /// Prices: what models cost
    #[command(subcommand)]
    Prices(PricesCommand),
    /// Providers: who can be called
    #[command(subcommand)]
    Provider(ProviderCommand),
    /// Provider keys: the real ones
    #[command(subcommand)]
    ProviderKey(ProviderKeyCommand),
    /// Admin tokens: what programs and people show at the TCP address of the admin API
    #[command(subcommand)]
    Token(TokenCommand),
    /// Opens the console in a browser, logged in
    Ui {
        /// Only prints the address; it is good once, for a minute
        #[arg(long)]
        no_open: bool,
    },
    /// Teams: what all keys of one may use together
    #[command(subcommand)]
    Team(OwnerCommand),
    /// Users: what all keys of one may use together
    #[command(subcommand)]
    User(OwnerCommand),
    /// What was consumed
    Usage(UsageArgs),
    /// The record of requests, newest first
    Ledger(LedgerArgs),
    /// What the running daemon has told operators, newest first: budgets nearly gone and the like
    #[command(visible_alias = "alert")]
    Alerts(AlertsArgs),
    /// What was done to keys, policies and secrets, and by whom: newest first
    Audit(AuditArgs),
    /// What the running daemon says of itself
    Status,
    /// The kernel's rules that lead an app's connections to sidekey
    #[command(subcommand)]
    Redirect(RedirectCommand),
    /// The local CA: what clients trust that use sidekey as their proxy
    #[command(subcommand)]
    Ca(CaCommand),
    /// Checks this installation, and how the runtimes found come to sidekey; every line that fails names its fix
    Doctor {
        /// A command to run in the environment of `exec --mode proxy`: says whether it comes by the proxy, goes past it,
        /// or refuses the certificate. No provider is asked
        #[arg(last = true, value_name = "CMD")]
        command: Vec<std::ffi::OsString>,
    },
    /// The configuration
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Writes a backup; its secrets stay sealed by the master key
    Backup {
        /// The file to write; it must not exist
        file: PathBuf,
    },
    /// Puts a backup into the data directory
    Restore {
        /// The backup
        file: PathBuf,
        /// Also where a store is: that one moves aside
        #[arg(long)]
        force: bool,
    },
    /// Prints a shell's completion script
    Completion {
        /// The shell
        #[arg(value_enum)]
        shell: Shell,
    },
    /// Prints the manual page
    Man,
}

/// `sidekey token`.
#[derive(Debug, Subcommand)]
pub enum TokenCommand {
    /// Makes one and shows it, once
    #[command(alias = "add")]
    Create {
        /// What it is called
        #[arg(long)]
        name: String,
        /// admin, operator, reader or user:ID
        #[arg(long)]
        role: Role,
        /// Days from now until it expires, 90 unless given; none is never
        #[arg(long, value_name = "DAYS", value_parser = days)]
        expires_days: Option<OrNone<u32>>,
    },
    /// All of them
    #[command(alias = "ls")]
    List,
    /// Takes one back, for good
    #[command(alias = "delete")]
    Revoke {
        /// Its id or name
        token: String,
    },
}

/// `sidekey run`.
#[derive(Args, Clone, Debug, Default)]
pub struct RunArgs {
    /// The proxy's address, over listen.proxy
    #[arg(long, value_name = "ADDRESS")]
    pub proxy: Option<String>,
    /// The admin API's address, or off, over listen.admin
    #[arg(long, value_name = "ADDRESS")]
    pub admin: Option<String>,
    /// The telemetry's address, over listen.telemetry
    #[arg(long, value_name = "ADDRESS")]
    pub telemetry: Option<String>,
    /// The least level of the log, over log.level
    #[arg(long, value_name = "LEVEL")]
    pub log_level: Option<String>,
}

/// `sidekey exec`.
#[derive(Args, Clone, Debug)]
pub struct ExecArgs {
    /// Requests per minute
    #[arg(long)]
    pub rpm: Option<u64>,
    /// Tokens per minute
    #[arg(long)]
    pub tpm: Option<u64>,
    /// Globs of models the command may call, with commas
    #[arg(long, value_delimiter = ',', value_name = "GLOBS")]
    pub models: Vec<String>,
    /// Dollars the command may spend, as 2.50 or 20/day; may be repeated
    #[arg(long, value_name = "USD[/WINDOW]")]
    pub budget: Vec<Budget>,
    /// How long the key lives at most, even if sidekey is killed
    #[arg(long, value_parser = duration::parse, default_value = "24h")]
    pub ttl: Duration,
    /// The provider the command may call; may be repeated
    #[arg(long)]
    pub provider: Vec<String>,
    /// The user whose provider keys pay first
    #[arg(long)]
    pub user: Option<String>,
    /// The team whose provider keys pay next
    #[arg(long)]
    pub team: Option<String>,
    /// How the command is led to sidekey
    #[arg(long, value_enum, default_value_t)]
    pub mode: Mode,
    /// Leaves the command no other way out: a network of its own in which all leads to sidekey (Linux)
    #[arg(long)]
    pub sandbox: bool,
    /// What the command reaches in a sandbox all the same: a port as 127.0.0.1:5432, or a Unix socket's path; may be
    /// repeated
    #[arg(long, value_name = "WHAT", requires = "sandbox")]
    pub allow: Vec<Allowed>,
    /// Leaves the command the variables of real keys, or of those named alone, with commas. What the virtual key stands in is set
    /// all the same
    #[arg(long, value_name = "NAMES", num_args = 0.., require_equals = true, value_delimiter = ',')]
    pub keep_keys: Option<Vec<String>>,
    /// Says nothing at the end
    #[arg(long, short)]
    pub quiet: bool,
    /// The command and its arguments
    #[arg(last = true, required = true, value_name = "CMD")]
    pub command: Vec<std::ffi::OsString>,
}

impl ExecArgs {
    /// True when the command meets certificates of sidekey's CA.
    #[must_use]
    pub fn intercepts(&self) -> bool {
        self.sandbox || self.mode == Mode::Proxy
    }

    /// True for a variable of a real key that is left to the command.
    #[must_use]
    pub fn keeps(&self, name: &str) -> bool {
        self.keep_keys.as_ref().is_some_and(|names| names.is_empty() || names.iter().any(|kept| kept == name))
    }
}

/// How a program is led to sidekey.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Mode {
    /// By its SDK's base URL: no TLS, nothing to trust
    #[default]
    BaseUrl,
    /// By HTTPS_PROXY and a CA: also what knows no base URL
    Proxy,
}

/// Something outside a sandbox that can be reached from within.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Allowed {
    /// A port of the loopback address.
    Port(SocketAddr),
    /// A Unix socket.
    Socket(PathBuf),
}

impl FromStr for Allowed {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.starts_with('/') {
            return Ok(Self::Socket(text.into()));
        }
        // The sandbox listens on those itself.
        let taken = [0, 53, 443];
        match text.parse::<SocketAddr>() {
            Ok(address) if address.ip().is_loopback() && !taken.contains(&address.port()) => Ok(Self::Port(address)),
            _ => Err("write a port of the loopback address, as 127.0.0.1:5432, or the path of a socket".to_owned()),
        }
    }
}

/// `sidekey redirect`.
#[derive(Debug, Subcommand)]
pub enum RedirectCommand {
    /// Writes the rules; a second time changes nothing
    Install {
        /// What they say.
        #[command(flatten)]
        rules: RedirectArgs,
        /// The tools to write them with
        #[arg(long, value_enum, default_value_t)]
        backend: Backend,
        /// Prints the commands and changes nothing
        #[arg(long)]
        dry_run: bool,
    },
    /// Takes the rules away
    Remove {
        /// The tools to take them away with
        #[arg(long, value_enum, default_value_t)]
        backend: Backend,
        /// Prints the commands and changes nothing
        #[arg(long)]
        dry_run: bool,
    },
    /// Says whether the rules are there, and tries them as the user who asks
    Check {
        /// What they should say.
        #[command(flatten)]
        rules: RedirectArgs,
        /// The tools to read them with
        #[arg(long, value_enum, default_value_t)]
        backend: Backend,
    },
}

/// What the rules say.
#[derive(Args, Clone, Debug)]
pub struct RedirectArgs {
    /// Users whose connections pass, by number, with commas: the one sidekey runs as; the data directory's owner unless
    /// given
    #[arg(long, value_delimiter = ',', value_name = "UIDS")]
    pub uid: Vec<u32>,
    /// TCP ports that are redirected, with commas; the same ports of UDP are refused
    #[arg(long, value_delimiter = ',', value_name = "PORTS", default_value = "443", value_parser = clap::value_parser!(u16).range(1..))]
    pub ports: Vec<u16>,
}

/// The tools that write rules.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Backend {
    /// nft where it can be used, else iptables
    #[default]
    Auto,
    /// iptables and ip6tables, in the flavour that the machine prefers
    Iptables,
    /// iptables-legacy and ip6tables-legacy, where others write rules with these
    IptablesLegacy,
    /// nft
    Nft,
}

/// `sidekey env`.
#[derive(Args, Clone, Debug)]
pub struct EnvArgs {
    /// The form
    #[arg(long, value_enum, default_value_t)]
    pub shell: EnvForm,
    /// Only these providers; may be repeated
    #[arg(long)]
    pub provider: Vec<String>,
    /// How programs are led to sidekey
    #[arg(long, value_enum, default_value_t)]
    pub mode: Mode,
    /// Reads a virtual key from standard input and sets the SDKs' key variables too
    #[arg(long)]
    pub key_stdin: bool,
}

/// The form of `sidekey env`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum EnvForm {
    /// export NAME='value'
    #[default]
    Bash,
    /// export NAME='value'
    Zsh,
    /// set -gx NAME 'value'
    Fish,
    /// One JSON object
    Json,
}

/// A shell with completions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[expect(missing_docs, reason = "the shells' own names")]
pub enum Shell {
    Bash,
    Zsh,
    Fish,
}

/// A value, or `none` for none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OrNone<T>(pub Option<T>);

impl<T: FromStr<Err: std::fmt::Display>> FromStr for OrNone<T> {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "none" {
            return Ok(Self(None));
        }
        text.parse().map(|value| Self(Some(value))).map_err(|error| format!("{error}; or write none"))
    }
}

/// `sidekey key`.
#[derive(Debug, Subcommand)]
pub enum KeyCommand {
    /// Makes a virtual key and shows it, once
    Create(Box<KeyCreate>),
    /// All of them
    #[command(alias = "ls")]
    List(ListArgs),
    /// One of them
    Show(KeyRef),
    /// Changes what one may do
    Update(Box<KeyUpdate>),
    /// Gives one a new secret and shows it, once
    Rotate {
        /// The key's id or name
        key: String,
        /// How long the old secret still works
        #[arg(long, value_parser = duration::parse, default_value = "0s")]
        grace: Duration,
    },
    /// Switches one on
    Enable(KeyRef),
    /// Switches one off, until it is enabled
    Disable(KeyRef),
    /// Takes one back for good
    Revoke(KeyRef),
    /// Says whether a key read from standard input would be accepted, and what it may do
    Test {
        /// Reads the key from standard input; otherwise it is asked for
        #[arg(long)]
        stdin: bool,
    },
    /// Removes one; its entries stay in the ledger
    Delete(KeyRef),
    /// What one consumed
    Usage {
        /// The key's id or name
        key: String,
        /// Days back from now
        #[arg(long, default_value_t = 30)]
        days: u32,
    },
}

/// A key, by id or name.
#[derive(Args, Clone, Debug)]
pub struct KeyRef {
    /// Its id or name
    pub key: String,
}

/// What narrows a list.
#[derive(Args, Clone, Debug, Default)]
pub struct ListArgs {
    /// Only this user's
    #[arg(long)]
    pub user: Option<String>,
    /// Only this team's
    #[arg(long)]
    pub team: Option<String>,
    /// Only this plan's
    #[arg(long)]
    pub plan: Option<String>,
}

/// What a virtual key may do.
#[derive(Args, Clone, Debug, Default)]
pub struct Grants {
    /// The user it belongs to; '' is nobody
    #[arg(long)]
    pub user: Option<String>,
    /// The team it belongs to; '' is none
    #[arg(long)]
    pub team: Option<String>,
    /// Globs of models it may call, with commas; '*' or '' is all
    #[arg(long, value_delimiter = ',', value_name = "GLOBS")]
    pub models: Option<Vec<String>>,
    /// Providers it may call, with commas; '*' or '' is all
    #[arg(long, value_delimiter = ',', value_name = "IDS")]
    pub providers: Option<Vec<String>>,
    /// Endpoints it may call, with commas; '*' or '' is all but client_secrets
    #[arg(long, value_delimiter = ',', value_name = "NAMES")]
    pub endpoints: Option<Vec<String>>,
    /// Networks it may be used from, with commas; '*' or '' is all
    #[arg(long, value_delimiter = ',', value_name = "CIDRS", value_parser = network)]
    pub sources: Option<Vec<String>>,
    /// The plan it is on; '' is none
    #[arg(long, value_name = "NAME")]
    pub plan: Option<String>,
    /// What it may use.
    #[command(flatten)]
    pub policy: PolicyArgs,
    /// Days from now until it expires; none or '' is never
    #[arg(long, value_name = "DAYS", value_parser = days)]
    pub expires_days: Option<OrNone<u32>>,
    /// The pool whose provider keys alone pay; '' is none
    #[arg(long)]
    pub pool: Option<String>,
    /// Lets it be given real keys of its pool for a while, with all that this means; true or false
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true")]
    pub lease: Option<bool>,
    /// Makes it a trap: any use is refused like an unknown key's, and told as an alert; true or false
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true")]
    pub canary: Option<bool>,
    /// Whether others' keys pay when its own cannot
    #[arg(long, value_enum)]
    pub fallback: Option<FallbackArg>,
    /// How usage of streams is learned
    #[arg(long, value_enum)]
    pub stream_usage: Option<StreamUsageArg>,
    /// A note of your own; may be repeated. On update the other notes stay, and KEY= removes one
    #[arg(long, value_name = "KEY=VALUE", value_parser = pair)]
    pub metadata: Vec<(String, String)>,
}

/// What may be used.
#[derive(Args, Clone, Debug, Default)]
pub struct PolicyArgs {
    /// Requests per minute, or none
    #[arg(long, value_name = "N")]
    pub rpm: Option<OrNone<u64>>,
    /// Tokens per minute, or none
    #[arg(long, value_name = "N")]
    pub tpm: Option<OrNone<u64>>,
    /// Which tokens --tpm counts: total, input, output, uncached or uncached_input
    #[arg(long, value_name = "WHICH")]
    pub tpm_counts: Option<Counts>,
    /// Requests at the same time, or none
    #[arg(long, value_name = "N")]
    pub max_in_flight: Option<OrNone<u64>>,
    /// Dollars, as 100 or 20/month,zone=Europe/Berlin,alert=50:80,shadow; may be repeated; none is no budget
    #[arg(long, value_name = "USD[/WINDOW]")]
    pub budget: Vec<OrNone<Budget>>,
    /// Tokens in a window, as 1000000/day,counts=uncached; may be repeated; none is no quota
    #[arg(long, value_name = "N[/WINDOW]")]
    pub quota: Vec<OrNone<Quota>>,
    /// Rates that only count what they would refuse, with commas: rpm, tpm, max_in_flight; '' is none
    #[arg(long, value_delimiter = ',', value_name = "RATES")]
    pub shadow: Option<Vec<String>>,
    /// What becomes of a request for a model without a price where there is a budget: deny, allow, or none for the default
    #[arg(long, value_name = "WHAT")]
    pub unpriced: Option<OrNone<Otherwise>>,
    /// What becomes of a request that cannot be recorded: deny, allow, or none for the default
    #[arg(long, value_name = "WHAT")]
    pub unrecorded: Option<OrNone<Otherwise>>,
    /// Ends a stream that uses up what was reserved for it, when there is no more; true, false, or none
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true")]
    pub hard_stop: Option<OrNone<bool>>,
}

/// `--fallback`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum FallbackArg {
    /// The team's after the user's, then the system's
    System,
    /// Nobody's
    None,
}

/// `--stream-usage`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum StreamUsageArg {
    /// Change nothing; estimate when the provider does not say
    Observe,
    /// Ask OpenAI-dialect providers for it
    Request,
}

/// `sidekey key create`.
#[derive(Args, Clone, Debug)]
pub struct KeyCreate {
    /// What people call it
    #[arg(long)]
    pub name: String,
    /// What it begins with, over keys.prefix
    #[arg(long)]
    pub prefix: Option<String>,
    /// What it may do.
    #[command(flatten)]
    pub grants: Grants,
}

/// `sidekey key update`.
#[derive(Args, Clone, Debug)]
pub struct KeyUpdate {
    /// The key's id or name
    pub key: String,
    /// A new name
    #[arg(long)]
    pub name: Option<String>,
    /// What it may do.
    #[command(flatten)]
    pub grants: Grants,
}

/// `sidekey provider`.
#[derive(Debug, Subcommand)]
pub enum ProviderCommand {
    /// All of them
    #[command(alias = "ls")]
    List,
    /// One of them
    Show {
        /// Its id
        provider: String,
    },
}

/// `sidekey provider-key`.
#[derive(Debug, Subcommand)]
pub enum ProviderKeyCommand {
    /// Seals a real key in the store, or notes where it is to be found
    #[command(alias = "create")]
    Add(ProviderKeyAdd),
    /// All of them, masked
    #[command(alias = "ls")]
    List {
        /// Only this provider's
        #[arg(long)]
        provider: Option<String>,
    },
    /// One of them, masked
    Show(KeyRef),
    /// Changes its name, owner, models or priority
    Update(ProviderKeyUpdate),
    /// Puts a new secret in its place
    Rotate(ProviderKeyRotate),
    /// Switches one on, also after an error
    Enable(KeyRef),
    /// Switches one off
    Disable(KeyRef),
    /// Asks the provider whether it takes the key, without spending
    Test {
        /// Its id or name
        #[arg(required_unless_present = "all", conflicts_with = "all")]
        key: Option<String>,
        /// Tests every one
        #[arg(long)]
        all: bool,
    },
    /// Removes one and its secret
    Delete(KeyRef),
    /// What was paid with one
    Usage {
        /// Its id or name
        key: String,
        /// Days back from now
        #[arg(long, default_value_t = 30)]
        days: u32,
    },
}

/// Where a real key comes from; asked for at the terminal when nothing is said.
#[derive(Args, Clone, Debug, Default)]
pub struct SecretArgs {
    /// Reads it from standard input
    #[arg(long, group = "source")]
    pub stdin: bool,
    /// Reads it from a file, once
    #[arg(long, group = "source", value_name = "FILE")]
    pub key_file: Option<PathBuf>,
    /// Stores a reference instead: env:NAME, file:/path or exec:command
    #[arg(long = "ref", group = "source", value_name = "REFERENCE")]
    pub reference: Option<String>,
}

/// `sidekey provider-key add`.
#[derive(Args, Clone, Debug)]
pub struct ProviderKeyAdd {
    /// The provider's id
    pub provider: String,
    /// What people call it
    #[arg(long)]
    pub name: String,
    /// user:ID, team:ID or system
    #[arg(long, default_value = "system")]
    pub owner: Owner,
    /// Globs of models it may pay for, with commas
    #[arg(long, value_delimiter = ',', value_name = "GLOBS")]
    pub models: Vec<String>,
    /// Lower goes first within a tier
    #[arg(long, default_value_t = 0)]
    pub priority: u32,
    /// Its share among equals under the policy weighted, 1 to 1000
    #[arg(long, default_value_t = 1)]
    pub weight: u32,
    /// Its own limits.
    #[command(flatten)]
    pub policy: PolicyArgs,
    /// Does not ask the provider whether it takes the key
    #[arg(long)]
    pub no_test: bool,
    /// Where the secret comes from.
    #[command(flatten)]
    pub secret: SecretArgs,
}

/// `sidekey provider-key rotate`.
#[derive(Args, Clone, Debug)]
pub struct ProviderKeyRotate {
    /// Its id or name
    pub key: String,
    /// Does not ask the provider whether it takes the new one
    #[arg(long)]
    pub no_test: bool,
    /// How long the former secret is kept: it comes back when the provider refuses the new one
    #[arg(long, value_parser = duration::parse, default_value = "10m")]
    pub grace: Duration,
    /// Where the new secret comes from.
    #[command(flatten)]
    pub secret: SecretArgs,
}

/// `sidekey provider-key update`.
#[derive(Args, Clone, Debug)]
pub struct ProviderKeyUpdate {
    /// Its id or name
    pub key: String,
    /// A new name
    #[arg(long)]
    pub name: Option<String>,
    /// user:ID, team:ID or system
    #[arg(long)]
    pub owner: Option<Owner>,
    /// Globs of models it may pay for, with commas
    #[arg(long, value_delimiter = ',', value_name = "GLOBS")]
    pub models: Option<Vec<String>>,
    /// Lower goes first within a tier
    #[arg(long)]
    pub priority: Option<u32>,
    /// Its share among equals under the policy weighted, 1 to 1000
    #[arg(long)]
    pub weight: Option<u32>,
    /// Its own limits.
    #[command(flatten)]
    pub policy: PolicyArgs,
}

/// `sidekey usage`.
#[derive(Args, Clone, Debug)]
pub struct UsageArgs {
    /// The last days, today included, in UTC; 30 unless another time is given
    #[arg(long, conflicts_with_all = ["from", "to"])]
    pub days: Option<u32>,
    /// From this day or time on, as 2026-11-25 or 2026-11-25T08:00:00Z
    #[arg(long, value_name = "TIME")]
    pub from: Option<String>,
    /// Before this day or time
    #[arg(long, value_name = "TIME")]
    pub to: Option<String>,
    /// What the groups are.
    #[arg(long, default_value = "model", help = format!("What the groups are: {}", Dimension::words()))]
    pub by: Dimension,
    /// Only this virtual key, by id or name
    #[arg(long)]
    pub key: Option<String>,
    /// Only this user's
    #[arg(long)]
    pub user: Option<String>,
    /// Only this team's
    #[arg(long)]
    pub team: Option<String>,
    /// Only those of keys on this plan
    #[arg(long)]
    pub plan: Option<String>,
    /// Only those sent to this provider
    #[arg(long)]
    pub provider: Option<String>,
    /// Only those that this provider key paid for, by id or name
    #[arg(long)]
    pub provider_key: Option<String>,
    /// Only those of this model, as asked for or as the provider named it
    #[arg(long)]
    pub model: Option<String>,
    /// Only those of this x-sidekey-group
    #[arg(long)]
    pub group: Option<String>,
    /// Only those paid for by user, team or system
    #[arg(long, value_name = "WHO")]
    pub source: Option<String>,
    /// Costs as they would be by this file's prices, as prices import reads it; - is standard input
    #[arg(long, value_name = "FILE")]
    pub prices: Option<PathBuf>,
}

/// `sidekey explain`.
#[derive(Args, Clone, Debug)]
pub struct ExplainArgs {
    /// The virtual key, by id or name
    #[arg(long)]
    pub key: String,
    /// The model it would name
    #[arg(long)]
    pub model: Option<String>,
    /// The provider it would be sent to; unless given, whom the model leads to
    #[arg(long)]
    pub provider: Option<String>,
    /// What it would ask for, as chat or embeddings; unless given, what the provider's clients ask for most
    #[arg(long)]
    pub endpoint: Option<String>,
    /// Tokens it would hold
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub input_tokens: u64,
    /// The most output tokens it would ask for; unless given, what is learned of this key and model, or 512
    #[arg(long, value_name = "N")]
    pub max_tokens: Option<u64>,
}

/// `sidekey ledger`.
#[derive(Args, Clone, Debug)]
pub struct LedgerArgs {
    /// Only this virtual key, by id or name
    #[arg(long)]
    pub key: Option<String>,
    /// At most so many entries
    #[arg(long, default_value_t = 100)]
    pub limit: usize,
    /// Only the requests of this x-sidekey-group
    #[arg(long)]
    pub group: Option<String>,
}

/// `sidekey config`.
#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Reads the configuration and reports every fault
    Check,
    /// Prints every setting in force, and who said it
    Show,
    /// Says where a value comes from, and what it won over
    Explain {
        /// The key, as listen.proxy
        key: String,
    },
    /// Prints the JSON Schema of sidekey.toml
    Schema,
}

fn pair(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("write KEY=VALUE")?;
    if key.trim().is_empty() {
        Err("write KEY=VALUE".to_owned())
    } else {
        Ok((key.trim().to_owned(), value.to_owned()))
    }
}

/// A network, or what stands for all of them.
fn network(text: &str) -> Result<String, String> {
    let text = text.trim();
    if !matches!(text, "" | "*") {
        text.parse::<IpNet>().map_err(|_| "write networks such as 10.0.0.0/8, or '*'")?;
    }
    Ok(text.to_owned())
}

fn days(text: &str) -> Result<OrNone<u32>, String> {
    if text.is_empty() { Ok(OrNone(None)) } else { text.parse() }
}

/// What was said of an allow-list; nothing, or `*` alone, is everything: the empty list.
#[must_use]
pub fn allowed(said: &[String]) -> &[String] {
    match said {
        [all] if matches!(all.trim(), "" | "*") => &[],
        said => said,
    }
}

/// An id, when the text is one; else it is a name.
#[must_use]
pub fn as_id(text: &str) -> Option<KeyId> {
    text.parse().ok()
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn clap_is_content() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_session_of_the_design_parses() {
        for line in [
            "init",
            "run",
            "provider-key add openai --name main --stdin",
            "provider-key add openai --name main --stdin --owner user:alice --no-test",
            "provider-key add openai --name main --ref exec:gcloud",
            "key create --name app --user alice --team t1 --models gpt-4o*,claude-* --rpm 60 --tpm 100000 --expires-days 365 -o json",
            "key create --name app --rpm none --sources 10.0.0.0/8,127.0.0.0/8 --metadata a=b --metadata c=d=e",
            "key rotate app --grace 24h",
            "usage --days 30 --by model -o json",
            "ledger --key a1b2c3d4e5f67890 --limit 5 -o jsonl",
            "exec --rpm 10 --models gpt-* -- python -c x",
            "env --shell fish",
            "usage --by provider-key",
            "plan create --name free --rpm 5 --budget 1/day --shared-budget 20/month --shared-tpm none --models gpt-4o*",
            "plan update free --shared-quota 1000000 --shared-rpm 60 --shared-max-in-flight 4 --description x",
            "user set alice --budget 20/month,zone=Europe/Berlin --quota none",
            "team ls",
            "alerts --limit 5",
            "explain --key app --model gpt-4o --provider openai --input-tokens 1000 --max-tokens 500",
            "prices list --provider openai --model gpt-4o* --layer store",
            "prices set openai/gpt-4o input=2.5 output=10 batch.input=1.25 above.200000.input=5",
            "prices explain gpt-4o --provider openai --input-tokens 1000 --output-tokens 10",
            "prices import -",
            "usage --prices prices.json --by day",
            "provider-key rotate main --stdin --no-test",
            "provider-key test --all",
            "config explain listen.proxy",
            "token create --name ci --role user:alice --expires-days none",
            "token revoke ci",
            "run --admin off",
            "ui --no-open",
            "status -o json",
            "completion zsh",
        ] {
            let words = std::iter::once("sidekey").chain(line.split(' '));
            assert!(Cli::try_parse_from(words).is_ok(), "{line}");
        }
    }

    #[test]
    fn the_help_lists_every_dimension() {
        let help = Cli::command().find_subcommand_mut("usage").expect("a command").render_long_help().to_string();
        let help = help.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(help.contains(&Dimension::words()), "{help}");
    }

    #[test]
    fn what_is_everything() {
        for (said, want) in [
            (&[""][..], &[][..]),
            (&["*"], &[]),
            (&["a", "b"], &["a", "b"]),
            (&["a", ""], &["a", ""]),
            (&["a", "*"], &["a", "*"]),
        ] {
            let said: Vec<String> = said.iter().map(|text| (*text).to_owned()).collect();
            assert_eq!(allowed(&said), want, "{said:?}");
        }
    }

    #[test]
    fn what_does_not_parse() {
        for line in [
            "key create",
            "key create --name a --budget much",
            "key create --name a --budget 100/hour",
            "provider-key add openai --name main --stdin --key-file x",
            "provider-key add openai --name main --owner alice",
            "provider-key test",
            "key create --name a --rpm many",
            "key create --name a --sources here",
            "key create --name a --expires-days soon",
            "exec",
            "token create --name a --role root",
            "usage --by colour",
            "--set x run",
        ] {
            let words = std::iter::once("sidekey").chain(line.split(' '));
            assert!(Cli::try_parse_from(words).is_err(), "{line}");
        }
    }
}
