//! `sidekey provider-key`: the real keys over the admin API. They go in and never come out.
//!
//! Owns turning flags into requests; leaves reading a secret to `secret_input`.

use serde_json::{Map, Value, json};

use crate::cli::args::{
    Format, ProviderKeyAdd, ProviderKeyCommand, ProviderKeyRotate, ProviderKeyUpdate, SecretArgs, allowed, as_id,
};
use crate::cli::client::AdminClient;
use crate::cli::failure::{Exit, Failure};
use crate::cli::keys::{all_pages, one_of};
use crate::cli::out::{self, Column};
use crate::cli::progress::Progress;
use crate::cli::{Session, policy, secret_input, usage};
use crate::control::encoded;
use crate::provider_key::Origin;
use crate::secret::Secret;
use crate::storage::Dimension;
use crate::unit::duration;

const COLUMNS: &[Column<'_>] = &[
    ("ID", "/id"),
    ("PROVIDER", "/provider"),
    ("NAME", "/name"),
    ("OWNER", "/owner"),
    ("STATUS", "/status"),
    ("KEY", "/masked"),
    ("ORIGIN", "/origin"),
    ("LAST USED", "/last_used"),
    ("REQUESTS", "/total_requests"),
    ("LAST ERROR", "/last_error"),
];

const TEST_COLUMNS: &[Column<'_>] = &[
    ("PROVIDER", "/key/provider"),
    ("NAME", "/key/name"),
    ("VERDICT", "/test/verdict"),
    ("STATUS", "/test/status"),
    ("MS", "/test/latency_ms"),
    ("DETAIL", "/test/detail"),
];

/// Runs one.
///
/// # Errors
/// What the API refuses, or a test that fails.
pub(super) async fn run(session: &Session, client: &AdminClient, command: ProviderKeyCommand) -> Result<(), Failure> {
    match command {
        ProviderKeyCommand::Add(args) => add(session, client, &args).await,
        ProviderKeyCommand::Delete(key) => {
            let id = resolve(client, &key.key).await?;
            client.delete(&format!("/api/provider-keys/{id}")).await?;
            out::say(&format!("deleted {id}"));
            Ok(())
        }
        ProviderKeyCommand::Disable(key) => act(session, client, &key.key, "disable").await,
        ProviderKeyCommand::Enable(key) => act(session, client, &key.key, "enable").await,
        ProviderKeyCommand::List { provider } => {
            let narrowed = provider.map_or_else(String::new, |provider| format!("&provider={}", encoded(&provider)));
            let items = all_pages(client, &format!("/api/provider-keys?limit=1000{narrowed}"), "provider_keys").await?;
            Ok(session.out.many(&json!({"provider_keys": items}), &items, COLUMNS)?)
        }
        ProviderKeyCommand::Rotate(args) => rotate(session, client, &args).await,
        ProviderKeyCommand::Show(key) => {
            let id = resolve(client, &key.key).await?;
            let found = client.get(&format!("/api/provider-keys/{id}")).await?;
            Ok(session.out.one(&found.body, policy::card)?)
        }
        ProviderKeyCommand::Test { key, all } => test(session, client, key.as_deref(), all).await,
        ProviderKeyCommand::Update(args) => update(session, client, &args).await,
        ProviderKeyCommand::Usage { key, days } => {
            let id = resolve(client, &key).await?;
            let report = client.get(&format!("/api/provider-keys/{id}/usage?days={days}")).await?;
            usage::print_report(session, &report.body, Dimension::Day)
        }
    }
}

async fn add(session: &Session, client: &AdminClient, args: &ProviderKeyAdd) -> Result<(), Failure> {
    let mut body = source(session, &args.secret)?;
    body.insert("provider".to_owned(), json!(args.provider));
    body.insert("name".to_owned(), json!(args.name));
    body.insert("owner".to_owned(), json!(args.owner));
    body.insert("models".to_owned(), json!(allowed(&args.models)));
    body.insert("priority".to_owned(), json!(args.priority));
    body.insert("weight".to_owned(), json!(args.weight));
    body.extend(policy::fields(&args.policy));
    let mut made = client.post("/api/provider-keys", &Value::Object(body)).await?.body;
    let id = made["id"].as_str().unwrap_or_default().to_owned();
    if !args.no_test {
        let tested = client.post(&format!("/api/provider-keys/{id}/test"), &json!({})).await?.body;
        made = tested["key"].clone();
        made["test"] = tested["test"].clone();
    }
    let detail = made["test"]["detail"].as_str().unwrap_or_default().to_owned();
    let verdict = made["test"]["verdict"].as_str();
    if verdict == Some("unreadable") {
        // What leads nowhere is a slip of the pen: nobody wants it kept.
        client.delete(&format!("/api/provider-keys/{id}")).await?;
        let failure = Failure::new(Exit::Refused, format!("the reference gives no key: {detail}"));
        return Err(failure.fix(unread(client, args)));
    }
    session.out.one(&made, policy::card)?;
    match verdict {
        Some("rejected") => Err(Failure::new(Exit::Refused, detail)
            .fix(format!("the key is kept, in error; replace it: `sidekey provider-key rotate {id} --stdin`"))),
        _ => {
            warn_untested(&made);
            Ok(())
        }
    }
}

/// The API tests the new key while the old one is in force, and changes nothing when it is not good.
async fn rotate(session: &Session, client: &AdminClient, args: &ProviderKeyRotate) -> Result<(), Failure> {
    let id = resolve(client, &args.key).await?;
    let mut body = source(session, &args.secret)?;
    body.insert("test".to_owned(), json!(!args.no_test));
    body.insert("grace".to_owned(), json!(duration::format(args.grace)));
    let changed = client.post(&format!("/api/provider-keys/{id}/rotate"), &Value::Object(body)).await?.body;
    session.out.one(&changed, policy::card)?;
    warn_untested(&changed);
    Ok(())
}

fn warn_untested(key: &Value) {
    if key["test"]["verdict"] == "unreachable" {
        out::say(&format!("warning: not tested: {}", key["test"]["detail"].as_str().unwrap_or_default()));
    }
}

/// What to do about a reference that gives nothing.
fn unread(client: &AdminClient, args: &ProviderKeyAdd) -> String {
    let variable = args.secret.reference.as_deref().is_some_and(|reference| reference.starts_with("env:"));
    let first = match (variable, client.is_daemon()) {
        (true, true) => "the daemon's own environment counts: set it there and restart the daemon",
        (true, false) => "set it, here and where the daemon starts",
        (false, _) => "put the key there",
    };
    format!("nothing was stored; {first}, then add it again; --no-test adds it before it is there")
}

/// `secret` or `reference`, as the API has them.
fn source(session: &Session, args: &SecretArgs) -> Result<Map<String, Value>, Failure> {
    if let Some(reference) = &args.reference {
        if Origin::parse_reference(reference).is_none() {
            let failure = Failure::new(Exit::Usage, "--ref takes env:NAME, file:/path or exec:command");
            return Err(failure.fix("a key itself goes in through --stdin"));
        }
        return Ok(Map::from_iter([("reference".to_owned(), json!(reference))]));
    }
    let secret: Secret = match &args.key_file {
        Some(path) => secret_input::from_file(path)?,
        None if args.stdin => secret_input::from_stdin()?,
        None => secret_input::from_prompt("provider key", session.no_input)?,
    };
    Ok(Map::from_iter([("secret".to_owned(), json!(secret.expose()))]))
}

async fn update(session: &Session, client: &AdminClient, args: &ProviderKeyUpdate) -> Result<(), Failure> {
    let mut body = Map::new();
    body.extend(args.name.as_ref().map(|name| ("name".to_owned(), json!(name))));
    body.extend(args.owner.as_ref().map(|owner| ("owner".to_owned(), json!(owner))));
    body.extend(args.models.as_deref().map(|models| ("models".to_owned(), json!(allowed(models)))));
    body.extend(args.priority.map(|priority| ("priority".to_owned(), json!(priority))));
    body.extend(args.weight.map(|weight| ("weight".to_owned(), json!(weight))));
    body.extend(policy::fields(&args.policy));
    if body.is_empty() {
        return Err(Failure::new(Exit::Usage, "nothing to change").fix("name what to change, as --priority 1"));
    }
    let id = resolve(client, &args.key).await?;
    let changed = client.patch(&format!("/api/provider-keys/{id}"), &Value::Object(body), None).await?;
    Ok(session.out.one(&changed.body, policy::card)?)
}

async fn act(session: &Session, client: &AdminClient, key: &str, verb: &str) -> Result<(), Failure> {
    let id = resolve(client, key).await?;
    let changed = client.post(&format!("/api/provider-keys/{id}/{verb}"), &json!({})).await?;
    Ok(session.out.one(&changed.body, policy::card)?)
}

async fn test(session: &Session, client: &AdminClient, key: Option<&str>, all: bool) -> Result<(), Failure> {
    let mut keys = Vec::new();
    if all {
        let items = all_pages(client, "/api/provider-keys?limit=1000", "provider_keys").await?;
        keys.extend(items.iter().filter_map(|item| Some((item["id"].as_str()?.to_owned(), label(item)))));
    } else if let Some(key) = key {
        keys.push((resolve(client, key).await?, key.to_owned()));
    }
    let mut results = Vec::new();
    let mut progress = Progress::new(keys.len(), session.out.format);
    for (id, label) in &keys {
        progress.begin(label);
        let tested = client.post(&format!("/api/provider-keys/{id}/test"), &json!({})).await?.body;
        let verdict = tested["test"]["verdict"].as_str().unwrap_or_default();
        progress.end(&format!("{label}: {verdict}, {} ms", tested["test"]["latency_ms"]));
        results.push(tested);
    }
    drop(progress);
    match (&results[..], all, session.out.format) {
        ([only], false, Format::Json) => session.out.json(only)?,
        _ => session.out.many(&json!({"results": results}), &results, TEST_COLUMNS)?,
    }
    let failed =
        |result: &&Value| matches!(result["test"]["verdict"].as_str(), Some("rejected" | "unreachable" | "unreadable"));
    match results.iter().filter(failed).count() {
        0 => Ok(()),
        failed => Err(Failure::new(Exit::Failure, format!("{failed} of {} keys failed the test", results.len()))),
    }
}

/// What people call a key: `openai/main`.
fn label(key: &Value) -> String {
    format!("{}/{}", key["provider"].as_str().unwrap_or_default(), key["name"].as_str().unwrap_or_default())
}

/// The id of a provider key named by id, by name, or as `provider/name`.
pub(super) async fn resolve(client: &AdminClient, said: &str) -> Result<String, Failure> {
    if as_id(said).is_some() {
        return Ok(said.to_owned());
    }
    let query = match said.split_once('/') {
        Some((provider, name)) => format!("provider={}&name={}", encoded(provider), encoded(name)),
        None => format!("name={}", encoded(said)),
    };
    let found = client.get(&format!("/api/provider-keys?{query}")).await?.body;
    one_of(&found["provider_keys"], said, "provider key")
}
