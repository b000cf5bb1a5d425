//! `sidekey ca`: the roots of the local CA, shown, exported, put into the system's trust and taken out of it.
//!
//! Owns the commands; leaves where each system keeps its trust to `stores`, and the CA itself to the admin API.

mod stores;

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand, ValueEnum};
use serde_json::{Value, json};

use crate::cli::Session;
use crate::cli::ca::stores::{Machine, Step, Store};
use crate::cli::client::AdminClient;
use crate::cli::failure::{Exit, Failure};
use crate::cli::out::{self, Column};

/// `sidekey ca`.
#[derive(Debug, Subcommand)]
pub enum CaCommand {
    /// The roots that clients are to trust
    Show,
    /// Prints the roots as PEM; no key is ever exported
    Export {
        /// The system's roots with them, for programs that read one file
        #[arg(long)]
        bundle: bool,
    },
    /// Has this machine trust the roots
    Install(CaStores),
    /// Has this machine trust them no longer
    Uninstall(CaStores),
    /// Makes a new root in place of all others, which takes effect when sidekey is restarted
    Rotate,
}

/// Where roots are put.
#[derive(Args, Clone, Debug)]
pub struct CaStores {
    /// Only in these; all that are found, unless said
    #[arg(long = "store", value_enum)]
    pub stores: Vec<StoreKind>,
    /// Only say what would be done
    #[arg(long)]
    pub dry_run: bool,
}

/// A kind of trust store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum StoreKind {
    /// The one most programs read: Debian, Fedora, SUSE, Arch or macOS
    System,
    /// Firefox and Chromium
    Nss,
    /// The one of JAVA_HOME
    Java,
}

const COLUMNS: &[Column<'_>] =
    &[("ID", "/id"), ("CREATED", "/created"), ("EXPIRES", "/expires"), ("FINGERPRINT (SHA-256)", "/fingerprint")];

/// Runs one.
///
/// # Errors
/// When there is no CA yet, the API refuses, or a store cannot be changed.
pub(super) async fn run(session: &Session, client: &AdminClient, command: CaCommand) -> Result<(), Failure> {
    if let CaCommand::Rotate = command {
        return rotate(session, client).await;
    }
    let told = client.get("/api/ca").await?.body;
    let roots = told["roots"].as_array().cloned().unwrap_or_default();
    if roots.is_empty() {
        let failure = Failure::new(Exit::Failure, "there is no local CA yet");
        return Err(failure.fix("start sidekey once: sidekey run; or make one: sidekey ca rotate"));
    }
    match command {
        CaCommand::Show => show(session, &told, &roots),
        CaCommand::Export { bundle } => export(session, &roots, bundle),
        CaCommand::Install(stores) => install(session, &roots, &stores),
        CaCommand::Uninstall(stores) => uninstall(session, &roots, &stores),
        CaCommand::Rotate => Ok(()),
    }
}

fn show(session: &Session, told: &Value, roots: &[Value]) -> Result<(), Failure> {
    session.out.many(told, roots, COLUMNS)?;
    if told["kept"] == false {
        out::say("made anew at each start (connect.ca = \"ephemeral\")");
    }
    for (what, file) in [("the roots", "root_file"), ("with the system's", "bundle_file")] {
        out::say(&format!("{what}: {}", told[file].as_str().unwrap_or_default()));
    }
    if told["restart_needed"] == true {
        out::say("the store has another root than the daemon uses: restart it");
    }
    Ok(())
}

fn export(session: &Session, roots: &[Value], bundle: bool) -> Result<(), Failure> {
    let own: String = roots.iter().filter_map(|root| root["pem"].as_str()).collect();
    let system = if bundle { crate::net::tls::system_bundle() } else { String::new() };
    Ok(session.out.text(&format!("{system}{own}"))?)
}

async fn rotate(session: &Session, client: &AdminClient) -> Result<(), Failure> {
    let made = client.post("/api/ca/rotate", &json!({})).await?.body;
    session.out.one(&made, out::card)?;
    if made["restart_needed"] == true {
        out::say("restart sidekey, then have clients trust the new root: sidekey ca install");
    }
    Ok(())
}

/// A root as files and stores name it.
#[derive(Debug)]
struct Root {
    id: String,
    pem: String,
}

fn roots_of(told: &[Value]) -> Vec<Root> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    told.iter().map(|root| Root { id: text(&root["id"]), pem: text(&root["pem"]) }).collect()
}

fn install(session: &Session, told: &[Value], args: &CaStores) -> Result<(), Failure> {
    let machine = Machine::of(&session.environment);
    let files = tempfile_dir(&session.loaded.places.data_dir);
    let steps =
        |store: &Store| roots_of(told).iter().flat_map(|root| store.install(&root.id, &root.pem, &files)).collect();
    each(session, &machine, args, "trusts", steps)
}

fn uninstall(session: &Session, told: &[Value], args: &CaStores) -> Result<(), Failure> {
    let machine = Machine::of(&session.environment);
    let files = tempfile_dir(&session.loaded.places.data_dir);
    let steps =
        |store: &Store| roots_of(told).iter().flat_map(|root| store.uninstall(&root.id, &root.pem, &files)).collect();
    each(session, &machine, args, "no longer trusts", steps)
}

/// Where single roots are put for tools that read files.
fn tempfile_dir(data_dir: &Path) -> PathBuf {
    data_dir.join("ca")
}

/// Takes the steps of every store, or says them.
fn each(
    session: &Session,
    machine: &Machine,
    args: &CaStores,
    done: &str,
    steps: impl Fn(&Store) -> Vec<Step>,
) -> Result<(), Failure> {
    let wanted = |store: &Store| args.stores.is_empty() || args.stores.contains(&store.kind());
    let stores: Vec<Store> = machine.stores().into_iter().filter(wanted).collect();
    if stores.is_empty() {
        let failure = Failure::new(Exit::Failure, "no trust store of a known kind was found");
        return Err(failure.fix("set SSL_CERT_FILE to the bundle of `sidekey ca show`, or use --store"));
    }
    let mut text = String::new();
    let mut failed = None;
    for store in stores {
        let mut last = Ok(());
        for step in store.once(steps(&store)) {
            if args.dry_run {
                text.push_str(&format!("{step}\n"));
                continue;
            }
            last = step.take();
            if last.is_err() {
                break;
            }
        }
        match last {
            Ok(()) if args.dry_run => {}
            Ok(()) => text.push_str(&format!("{} {done} the local CA\n", store.name())),
            Err(why) => failed = Some(format!("{}: {why}", store.name())),
        }
    }
    session.out.text(&text)?;
    match failed {
        None => Ok(()),
        Some(why) => {
            let failure = Failure::new(Exit::Failure, why);
            Err(failure.fix("system stores are root's: run it with sudo; --dry-run shows each step, --store chooses"))
        }
    }
}
