//! `sidekey usage`, `ledger`, `status` and `provider`: what was consumed, by whom, through what.
//!
//! Owns their output; the figures are the API's.

use serde_json::{Value, json};

use crate::cli::Session;
use crate::cli::args::{Format, LedgerArgs, ProviderCommand, UsageArgs};
use crate::cli::client::AdminClient;
use crate::cli::failure::{Exit, Failure};
use crate::cli::out::{self, Column};
use crate::cli::{keys, prices, provider_keys};
use crate::control::encoded;
use crate::storage::Dimension;

const LEDGER_COLUMNS: &[Column<'_>] = &[
    ("TIME", "/time"),
    ("KEY", "/virtual_key_id"),
    ("PROVIDER", "/provider"),
    ("MODEL", "/model_requested"),
    ("STATUS", "/status"),
    ("OUTCOME", "/outcome"),
    ("IN", "/tokens/input"),
    ("OUT", "/tokens/output"),
    ("COST", "/cost_usd"),
    ("MS", "/latency_ms"),
    ("PAID BY", "/key_source"),
];

const PROVIDER_COLUMNS: &[Column<'_>] = &[
    ("ID", "/id"),
    ("DIALECT", "/dialect"),
    ("BASE URL", "/base_url"),
    ("KEYS", "/keys"),
    ("ACTIVE", "/active_keys"),
    ("ENABLED", "/enabled"),
];

/// A page of the API holds no more.
const MAX_PAGE: usize = 1000;

/// `sidekey usage`.
pub(super) async fn usage(session: &Session, client: &AdminClient, args: &UsageArgs) -> Result<(), Failure> {
    let mut path = format!("/api/usage?by={}", args.by.as_str());
    let days = args.days.map(|days| days.to_string());
    let key = match &args.key {
        Some(key) => Some(keys::resolve(client, key).await?),
        None => None,
    };
    let provider_key = match &args.provider_key {
        Some(key) => Some(provider_keys::resolve(client, key).await?),
        None => None,
    };
    for (name, value) in [
        ("days", &days),
        ("from", &args.from),
        ("to", &args.to),
        ("key", &key),
        ("provider_key", &provider_key),
        ("user", &args.user),
        ("team", &args.team),
        ("plan", &args.plan),
        ("provider", &args.provider),
        ("model", &args.model),
        ("group", &args.group),
        ("source", &args.source),
    ] {
        if let Some(value) = value {
            path.push_str(&format!("&{name}={}", encoded(value)));
        }
    }
    let report = match &args.prices {
        Some(file) => client.post(&path, &json!({"prices": prices::read(file)?})).await?,
        None => client.get(&path).await?,
    };
    print_report(session, &report.body, args.by)?;
    if session.out.format == Format::Table && report.body["totals"]["requests"] != 0 {
        out::say(&paid(&report.body));
    }
    Ok(())
}

/// Who paid, and what of it the system did not have to.
fn paid(report: &Value) -> String {
    let part = |(source, part): (&String, &Value)| {
        let cost = part["cost_usd"].as_str().map_or_else(String::new, |cost| format!(" (${cost})"));
        (part["requests"] != 0).then(|| format!("{source} {}{cost}", part["requests"]))
    };
    let parts: Vec<String> = report["key_sources"].as_object().into_iter().flatten().filter_map(part).collect();
    let saved = report["cost_on_user_keys_usd"].as_str().filter(|cost| *cost != "0");
    let saved = saved.map_or_else(String::new, |cost| format!("; on users' own keys: ${cost}"));
    format!("paid for by: {}{saved}", parts.join(", "))
}

/// A report: the document, a line for each group, or a table that ends with the totals.
pub(super) fn print_report(session: &Session, report: &Value, by: Dimension) -> Result<(), Failure> {
    let by = by.as_str();
    let mut items = report["groups"].as_array().cloned().unwrap_or_default();
    if session.out.format == Format::Table && !items.is_empty() {
        let mut totals = report["totals"].clone();
        totals[by] = json!("total");
        items.push(totals);
    }
    let (head, place) = (by.to_uppercase(), format!("/{by}"));
    let columns: [Column<'_>; 8] = [
        (&head, &place),
        ("REQUESTS", "/requests"),
        ("INPUT", "/tokens/input"),
        ("CACHED", "/tokens/cached_input"),
        ("OUTPUT", "/tokens/output"),
        ("REASONING", "/tokens/reasoning"),
        ("TOTAL", "/tokens/total"),
        ("COST USD", "/cost_usd"),
    ];
    Ok(session.out.many(report, &items, &columns)?)
}

/// `sidekey ledger`: as many pages as it takes.
pub(super) async fn ledger(session: &Session, client: &AdminClient, args: &LedgerArgs) -> Result<(), Failure> {
    let mut filter = String::new();
    if let Some(key) = &args.key {
        filter.push_str(&format!("&key={}", keys::resolve(client, key).await?));
    }
    if let Some(group) = &args.group {
        filter.push_str(&format!("&group={}", encoded(group)));
    }
    let mut entries: Vec<Value> = Vec::new();
    let mut cursor = String::new();
    while entries.len() < args.limit {
        let limit = (args.limit - entries.len()).min(MAX_PAGE);
        let mut page = client.get(&format!("/api/ledger?limit={limit}{filter}{cursor}")).await?.body;
        if let Some(Value::Array(more)) = page.get_mut("entries").map(Value::take) {
            entries.extend(more);
        }
        match page["next_cursor"].as_str() {
            Some(next) => cursor = format!("&cursor={}", encoded(next)),
            None => break,
        }
    }
    Ok(session.out.many(&json!({"entries": entries}), &entries, LEDGER_COLUMNS)?)
}

/// `sidekey provider`.
pub(super) async fn provider(
    session: &Session,
    client: &AdminClient,
    command: &ProviderCommand,
) -> Result<(), Failure> {
    match command {
        ProviderCommand::List => {
            let found = client.get("/api/providers?limit=1000").await?.body;
            let items = found["providers"].as_array().cloned().unwrap_or_default();
            Ok(session.out.many(&found, &items, PROVIDER_COLUMNS)?)
        }
        ProviderCommand::Show { provider } => {
            let found = client.get(&format!("/api/providers/{}", encoded(provider))).await?;
            Ok(session.out.one(&found.body, out::card)?)
        }
    }
}

/// `sidekey status`: the daemon's own word, so none running is a failure of its own kind.
pub(super) async fn status(session: &Session) -> Result<(), Failure> {
    let status = daemon(session).await?.get("/api/status").await?;
    Ok(session.out.one(&status.body, out::card)?)
}

/// The daemon, for what only it can know.
///
/// # Errors
/// When none answers.
pub(super) async fn daemon(session: &Session) -> Result<AdminClient, Failure> {
    let socket = session.loaded.admin_socket();
    AdminClient::of_daemon(&socket).await.ok_or_else(|| {
        let failure = Failure::new(Exit::Unreachable, format!("no daemon answers on {}", socket.display()));
        failure.fix("start one: `sidekey run`; or name its place with --data-dir")
    })
}
