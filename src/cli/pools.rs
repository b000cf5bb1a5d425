//! `sidekey pool`: pools over the admin API.
//!
//! Owns its flags, turning them into requests, and answers into output.

use clap::{Args, Subcommand};
use serde_json::{Map, Value, json};

use crate::cli::Session;
use crate::cli::args::Format;
use crate::cli::client::AdminClient;
use crate::cli::failure::{Exit, Failure};
use crate::cli::keys::all_pages;
use crate::cli::out::{self, Column};
use crate::cli::policy::put;
use crate::cli::provider_keys;
use crate::control::encoded;
use crate::pool::PoolPolicy;

const COLUMNS: &[Column<'_>] = &[
    ("NAME", "/name"),
    ("POLICY", "/policy"),
    ("STICKY", "/sticky"),
    ("VIRTUAL KEYS", "/virtual_keys"),
    ("KEYS", "/keys"),
];

const KEY_COLUMNS: &[Column<'_>] =
    &[("ID", "/id"), ("PROVIDER", "/provider"), ("NAME", "/name"), ("OWNER", "/owner"), ("STATUS", "/status")];

/// `sidekey pool`.
#[derive(Debug, Subcommand)]
pub enum PoolCommand {
    /// Makes a pool
    Create(PoolCreate),
    /// All of them
    #[command(alias = "ls")]
    List,
    /// One of them, and how its keys stand
    Show(PoolRef),
    /// Changes one; what is under way goes on
    Update(PoolUpdate),
    /// Removes one that no virtual key is bound to; its keys stay
    Delete(PoolRef),
}

/// A pool.
#[derive(Args, Clone, Debug)]
pub struct PoolRef {
    /// Its name
    pub name: String,
}

/// `sidekey pool create`.
#[derive(Args, Clone, Debug)]
pub struct PoolCreate {
    /// What virtual keys name it by: key create --pool
    #[arg(long)]
    pub name: String,
    /// What it holds.
    #[command(flatten)]
    pub terms: PoolTerms,
}

/// `sidekey pool update`.
#[derive(Args, Clone, Debug)]
pub struct PoolUpdate {
    /// Its name
    pub name: String,
    /// What it holds.
    #[command(flatten)]
    pub terms: PoolTerms,
}

/// What a pool holds.
#[derive(Args, Clone, Debug, Default)]
pub struct PoolTerms {
    /// Its provider keys, by id, name or provider/name, with commas; '' is none
    #[arg(long, value_delimiter = ',', value_name = "KEYS")]
    pub keys: Option<Vec<String>>,
    /// Who goes first among equals: least-used, weighted, round-robin or random
    #[arg(long)]
    pub policy: Option<PoolPolicy>,
    /// Sends requests of one virtual key that begin alike to one provider key, for the provider's prompt cache
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true")]
    pub sticky: Option<bool>,
}

/// Runs one.
///
/// # Errors
/// What the API refuses.
pub(super) async fn run(session: &Session, client: &AdminClient, command: PoolCommand) -> Result<(), Failure> {
    match command {
        PoolCommand::Create(args) => {
            let mut body = terms(client, &args.terms).await?;
            body.insert("name".to_owned(), json!(args.name));
            let made = client.post("/api/pools", &Value::Object(body)).await?;
            Ok(session.out.one(&made.body, card)?)
        }
        PoolCommand::Delete(pool) => {
            client.delete(&path(&pool.name)).await?;
            out::say(&format!("deleted {}", pool.name));
            Ok(())
        }
        PoolCommand::List => {
            let items = all_pages(client, "/api/pools?limit=1000", "pools").await?;
            let shown: Vec<Value> = items.iter().map(brief).collect();
            let rows = if session.out.format == Format::Table { &shown } else { &items };
            Ok(session.out.many(&json!({"pools": items}), rows, COLUMNS)?)
        }
        PoolCommand::Show(pool) => {
            let found = client.get(&path(&pool.name)).await?;
            Ok(session.out.one(&found.body, card)?)
        }
        PoolCommand::Update(args) => {
            let body = terms(client, &args.terms).await?;
            if body.is_empty() {
                return Err(Failure::new(Exit::Usage, "nothing to change").fix("name what to change, as --sticky"));
            }
            let changed = client.patch(&path(&args.name), &Value::Object(body), None).await?;
            Ok(session.out.one(&changed.body, card)?)
        }
    }
}

fn path(name: &str) -> String {
    format!("/api/pools/{}", encoded(name))
}

/// The flags that were given, as the API's fields.
async fn terms(client: &AdminClient, terms: &PoolTerms) -> Result<Map<String, Value>, Failure> {
    let mut body = Map::new();
    if let Some(said) = &terms.keys {
        let mut keys = Vec::new();
        for key in said.iter().map(|key| key.trim()).filter(|key| !key.is_empty()) {
            keys.push(provider_keys::resolve(client, key).await?);
        }
        put(&mut body, "keys", Some(keys));
    }
    put(&mut body, "policy", terms.policy);
    put(&mut body, "sticky", terms.sticky);
    Ok(body)
}

/// A pool for a line of a table: its keys by name.
fn brief(pool: &Value) -> Value {
    let mut pool = pool.clone();
    let keys = pool["keys"].as_array().into_iter().flatten();
    let name = |key: &Value| Some(format!("{}/{}", key["provider"].as_str()?, key["name"].as_str()?));
    pool["keys"] = json!(keys.filter_map(name).collect::<Vec<_>>());
    pool
}

/// A pool for people: names and values, and below them its keys.
fn card(pool: &Value) -> String {
    let mut pool = pool.clone();
    let keys = pool.as_object_mut().and_then(|fields| fields.shift_remove("keys"));
    let mut text = out::card(&pool);
    if let Some(Value::Array(keys)) = keys.filter(|keys| *keys != json!([])) {
        text.push('\n');
        text.push_str(&out::table(&keys, KEY_COLUMNS));
    }
    text
}
