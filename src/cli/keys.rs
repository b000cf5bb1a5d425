//! `sidekey key`: virtual keys over the admin API.
//!
//! Owns turning flags into requests and answers into output. A key is printed once: when it is made.

use serde_json::{Map, Value, json};

use crate::cli::args::{
    FallbackArg, Format, Grants, KeyCommand, KeyCreate, KeyUpdate, ListArgs, StreamUsageArg, allowed, as_id,
};
use crate::cli::client::AdminClient;
use crate::cli::failure::{Exit, Failure};
use crate::cli::out::{self, Column};
use crate::cli::policy::put;
use crate::cli::{Session, policy, secret_input, usage};
use crate::control::encoded;
use crate::storage::Dimension;
use crate::unit::duration;

const COLUMNS: &[Column<'_>] = &[
    ("ID", "/id"),
    ("NAME", "/name"),
    ("STATUS", "/status"),
    ("USER", "/user"),
    ("TEAM", "/team"),
    ("PLAN", "/plan"),
    ("MODELS", "/models"),
    ("RPM", "/limits/rpm"),
    ("TPM", "/limits/tpm"),
    ("BUDGET", "/max_budget"),
    ("LEFT", "/budget_remaining"),
    ("EXPIRES", "/expires"),
    ("LAST USED", "/last_used"),
    ("REQUESTS", "/total_requests"),
];

/// Runs one.
///
/// # Errors
/// What the API refuses.
pub(super) async fn run(session: &Session, client: &AdminClient, command: KeyCommand) -> Result<(), Failure> {
    match command {
        KeyCommand::Create(args) => create(session, client, &args).await,
        KeyCommand::Delete(key) => {
            let id = resolve(client, &key.key).await?;
            client.delete(&format!("/api/keys/{id}")).await?;
            out::say(&format!("deleted {id}"));
            Ok(())
        }
        KeyCommand::Disable(key) => act(session, client, &key.key, "disable").await,
        KeyCommand::Enable(key) => act(session, client, &key.key, "enable").await,
        KeyCommand::List(args) => list(session, client, &args).await,
        KeyCommand::Revoke(key) => act(session, client, &key.key, "revoke").await,
        KeyCommand::Rotate { key, grace } => {
            let id = resolve(client, &key).await?;
            let body = json!({"grace": duration::format(grace)});
            let made = client.post(&format!("/api/keys/{id}/rotate"), &body).await?;
            shown_once(session, &made.body)
        }
        KeyCommand::Show(key) => {
            let id = resolve(client, &key.key).await?;
            let found = client.get(&format!("/api/keys/{id}")).await?;
            Ok(session.out.one(&found.body, policy::card)?)
        }
        KeyCommand::Test { stdin } => test(session, client, stdin).await,
        KeyCommand::Update(args) => update(session, client, &args).await,
        KeyCommand::Usage { key, days } => {
            let id = resolve(client, &key).await?;
            let report = client.get(&format!("/api/keys/{id}/usage?days={days}")).await?;
            usage::print_report(session, &report.body, Dimension::Day)
        }
    }
}

async fn create(session: &Session, client: &AdminClient, args: &KeyCreate) -> Result<(), Failure> {
    let mut body = grants(&args.grants);
    body.insert("name".to_owned(), json!(args.name));
    if let Some(prefix) = &args.prefix {
        body.insert("prefix".to_owned(), json!(prefix));
    }
    let made = client.post("/api/keys", &Value::Object(body)).await?;
    shown_once(session, &made.body)
}

async fn update(session: &Session, client: &AdminClient, args: &KeyUpdate) -> Result<(), Failure> {
    let mut body = grants(&args.grants);
    body.extend(args.name.as_ref().map(|name| ("name".to_owned(), json!(name))));
    if body.is_empty() {
        return Err(Failure::new(Exit::Usage, "nothing to change").fix("name what to change, as --rpm 60"));
    }
    let id = resolve(client, &args.key).await?;
    let changed = client.patch(&format!("/api/keys/{id}"), &Value::Object(body), None).await?;
    Ok(session.out.one(&changed.body, policy::card)?)
}

/// The flags that were given, as the API's fields; `none`, an empty name and an empty note become null.
fn grants(grants: &Grants) -> Map<String, Value> {
    fn named(text: &String) -> Option<&String> {
        Some(text).filter(|text| !text.is_empty())
    }
    let mut body = Map::new();
    put(&mut body, "user", grants.user.as_ref().map(named));
    put(&mut body, "team", grants.team.as_ref().map(named));
    put(&mut body, "models", grants.models.as_deref().map(allowed));
    put(&mut body, "providers", grants.providers.as_deref().map(allowed));
    put(&mut body, "endpoints", grants.endpoints.as_deref().map(allowed));
    put(&mut body, "sources", grants.sources.as_deref().map(allowed));
    put(&mut body, "plan", grants.plan.as_ref().map(named));
    put(&mut body, "pool", grants.pool.as_ref().map(named));
    put(&mut body, "lease", grants.lease);
    put(&mut body, "canary", grants.canary);
    put(&mut body, "expires_days", grants.expires_days.map(|days| days.0));
    put(
        &mut body,
        "fallback",
        grants.fallback.map(|fallback| match fallback {
            FallbackArg::None => "none",
            FallbackArg::System => "system",
        }),
    );
    put(
        &mut body,
        "stream_usage",
        grants.stream_usage.map(|usage| match usage {
            StreamUsageArg::Observe => "observe",
            StreamUsageArg::Request => "request",
        }),
    );
    body.extend(policy::fields(&grants.policy));
    if !grants.metadata.is_empty() {
        let notes: Map<String, Value> =
            grants.metadata.iter().map(|(key, value)| (key.clone(), json!(named(value)))).collect();
        body.insert("metadata".to_owned(), Value::Object(notes));
    }
    body
}

async fn list(session: &Session, client: &AdminClient, args: &ListArgs) -> Result<(), Failure> {
    let mut query = String::new();
    for (name, value) in [("user", &args.user), ("team", &args.team), ("plan", &args.plan)] {
        if let Some(value) = value {
            query.push_str(&format!("&{name}={}", encoded(value)));
        }
    }
    let items = all_pages(client, &format!("/api/keys?limit=1000{query}"), "keys").await?;
    Ok(session.out.many(&json!({"keys": items}), &items, COLUMNS)?)
}

/// Every page of a list.
///
/// # Errors
/// What the API refuses.
pub(super) async fn all_pages(client: &AdminClient, path: &str, field: &str) -> Result<Vec<Value>, Failure> {
    let mut items = Vec::new();
    let mut cursor = String::new();
    loop {
        let mut page = client.get(&format!("{path}{cursor}")).await?.body;
        if let Some(Value::Array(more)) = page.get_mut(field).map(Value::take) {
            items.extend(more);
        }
        match page["next_cursor"].as_str() {
            Some(next) => cursor = format!("&cursor={}", encoded(next)),
            None => return Ok(items),
        }
    }
}

async fn act(session: &Session, client: &AdminClient, key: &str, verb: &str) -> Result<(), Failure> {
    let id = resolve(client, key).await?;
    let changed = client.post(&format!("/api/keys/{id}/{verb}"), &json!({})).await?;
    Ok(session.out.one(&changed.body, policy::card)?)
}

async fn test(session: &Session, client: &AdminClient, stdin: bool) -> Result<(), Failure> {
    let key =
        if stdin { secret_input::from_stdin()? } else { secret_input::from_prompt("virtual key", session.no_input)? };
    let said = client.post("/api/keys/validate", &json!({"key": key.expose()})).await?.body;
    session.out.one(&said, |said| match said["reason"].as_str() {
        None => format!("accepted\n{}", policy::card(&said["key_data"])),
        Some(reason) => format!("refused: {reason}\n"),
    })?;
    match said["reason"].as_str() {
        None => Ok(()),
        Some(reason) => Err(Failure::new(Exit::Refused, format!("the key would be refused: {reason}"))),
    }
}

/// The key on a line of its own, so that it can be taken from there.
fn shown_once(session: &Session, made: &Value) -> Result<(), Failure> {
    session.out.one(made, |made| format!("{}\n", made["key"].as_str().unwrap_or_default()))?;
    if session.out.format == Format::Table {
        out::say("this key is shown once; sidekey keeps only a digest of it");
        out::say(policy::card(&made["key_data"]).trim_end());
    }
    Ok(())
}

/// The id of a key named by id or by a name that only one key has.
///
/// # Errors
/// When no key, or more than one, has the name.
pub(super) async fn resolve(client: &AdminClient, said: &str) -> Result<String, Failure> {
    if as_id(said).is_some() {
        return Ok(said.to_owned());
    }
    let found = client.get(&format!("/api/keys?name={}", encoded(said))).await?.body;
    one_of(&found["keys"], said, "virtual key")
}

/// The id of the only item.
///
/// # Errors
/// When there is none, or more than one.
pub(super) fn one_of(items: &Value, said: &str, what: &str) -> Result<String, Failure> {
    let ids: Vec<&str> = items.as_array().into_iter().flatten().filter_map(|item| item["id"].as_str()).collect();
    match ids[..] {
        [id] => Ok(id.to_owned()),
        [] => Err(Failure::new(Exit::Refused, format!("there is no {what} {said:?}"))),
        _ => {
            let failure = Failure::new(Exit::Refused, format!("more than one {what} is named {said:?}"));
            Err(failure.fix(format!("say which by its id: {}", ids.join(", "))))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::args::{OrNone, PolicyArgs};

    #[test]
    fn flags_become_fields() {
        let said = Grants {
            user: Some("alice".to_owned()),
            models: Some(vec!["gpt-*".to_owned()]),
            policy: PolicyArgs { rpm: Some(OrNone(Some(60))), tpm: Some(OrNone(None)), ..PolicyArgs::default() },
            expires_days: Some(OrNone(None)),
            stream_usage: Some(StreamUsageArg::Request),
            metadata: vec![("a".to_owned(), "b".to_owned()), ("c".to_owned(), String::new())],
            team: Some(String::new()),
            providers: Some(vec!["*".to_owned()]),
            sources: Some(vec![String::new()]),
            ..Grants::default()
        };
        let want = json!({
            "user": "alice", "team": null, "providers": [], "sources": [], "models": ["gpt-*"], "limits": {"rpm": 60, "tpm": null},
            "expires_days": null, "stream_usage": "request", "metadata": {"a": "b", "c": null},
        });
        assert_eq!(Value::Object(grants(&said)), want);
        assert!(grants(&Grants::default()).is_empty());
    }

    #[test]
    fn names_must_be_unique() {
        for (items, want) in [
            (json!([{"id": "a"}]), Ok("a")),
            (json!([]), Err("there is no key \"x\"")),
            (json!([{"id": "a"}, {"id": "b"}]), Err("more than one key is named \"x\"")),
        ] {
            let got = one_of(&items, "x", "key");
            assert_eq!(got.as_deref().map_err(|failure| failure.message.as_str()), want);
        }
    }
}
