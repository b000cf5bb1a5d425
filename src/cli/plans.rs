//! `sidekey plan`: plans over the admin API.
//!
//! Owns turning flags into requests and answers into output.

use serde_json::{Map, Value, json};

use crate::cli::args::allowed;
use crate::cli::client::AdminClient;
use crate::cli::failure::{Exit, Failure};
use crate::cli::keys::all_pages;
use crate::cli::out::{self, Column};
use crate::cli::plan_args::{AboutArgs, PlanCommand, PlanTerms};
use crate::cli::policy::{self, put};
use crate::cli::{Session, args};
use crate::control::encoded;
use crate::route::{Route, Routes};

const COLUMNS: &[Column<'_>] = &[
    ("NAME", "/name"),
    ("KEYS", "/keys"),
    ("MODELS", "/models"),
    ("ROUTES", "/routes"),
    ("RPM", "/limits/rpm"),
    ("TPM", "/limits/tpm"),
    ("BUDGETS", "/budgets"),
    ("QUOTAS", "/quotas"),
    ("SHARED", "/shared"),
    ("SPENT", "/spent"),
    ("LAST USED", "/last_used"),
];

/// Runs one.
///
/// # Errors
/// What the API refuses.
pub(super) async fn run(session: &Session, client: &AdminClient, command: PlanCommand) -> Result<(), Failure> {
    match command {
        PlanCommand::Create(args) => {
            let mut body = terms(&args.terms);
            body.insert("name".to_owned(), json!(args.name));
            let made = client.post("/api/plans", &Value::Object(body)).await?;
            Ok(session.out.one(&made.body, policy::card)?)
        }
        PlanCommand::Delete(plan) => {
            client.delete(&path(&plan.name)).await?;
            out::say(&format!("deleted {}", plan.name));
            Ok(())
        }
        PlanCommand::List => {
            let items = all_pages(client, "/api/plans?limit=1000", "plans").await?;
            list(session, "plans", &items, COLUMNS)
        }
        PlanCommand::Show(plan) => {
            let found = client.get(&path(&plan.name)).await?;
            Ok(session.out.one(&found.body, policy::card)?)
        }
        PlanCommand::Update(args) => {
            let body = terms(&args.terms);
            if body.is_empty() {
                return Err(Failure::new(Exit::Usage, "nothing to change").fix("name what to change, as --rpm 60"));
            }
            let changed = client.patch(&path(&args.name), &Value::Object(body), None).await?;
            Ok(session.out.one(&changed.body, policy::card)?)
        }
    }
}

fn path(name: &str) -> String {
    format!("/api/plans/{}", encoded(name))
}

/// Records with a policy: as they come, or for people.
pub(super) fn list(session: &Session, field: &str, items: &[Value], columns: &[Column<'_>]) -> Result<(), Failure> {
    let document = json!({field: items});
    if session.out.format == args::Format::Table {
        let items: Vec<Value> = items.iter().map(policy::as_typed).collect();
        return Ok(session.out.many(&document, &items, columns)?);
    }
    Ok(session.out.many(&document, items, columns)?)
}

/// The flags that were given, as the API's fields.
fn terms(terms: &PlanTerms) -> Map<String, Value> {
    let mut body = about(&terms.about);
    let routes = terms.route.iter().filter_map(|route| route.0.as_deref());
    let routes: Routes = routes.map(|route| Route::new(&route.pattern, route.targets.to_vec())).collect();
    put(&mut body, "routes", (!terms.route.is_empty()).then_some(routes));
    body.extend(policy::fields(&terms.each));
    let shared = policy::fields(&terms.shared.policy());
    put(&mut body, "shared", Some(shared).filter(|shared| !shared.is_empty()));
    body
}

/// Models and notes that were given, as the API's fields; an empty note becomes null.
pub(super) fn about(about: &AboutArgs) -> Map<String, Value> {
    let mut body = Map::new();
    put(&mut body, "models", about.models.as_deref().map(allowed));
    put(&mut body, "description", about.description.as_ref().map(|text| Some(text).filter(|text| !text.is_empty())));
    body
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::args::{Cli, Command};

    #[test]
    fn flags_become_fields() {
        for (flags, want) in [
            ("", json!({})),
            ("--models gpt-*,o3 --rpm 5", json!({"models": ["gpt-*", "o3"], "limits": {"rpm": 5}})),
            (
                "--shared-rpm 60 --shared-tpm none --tpm 7",
                json!({"limits": {"tpm": 7}, "shared": {"limits": {"rpm": 60, "tpm": null}}}),
            ),
            ("--shared-budget none --shared-quota none", json!({"shared": {"budgets": [], "quotas": []}})),
            (
                "--route smart=3*openai/gpt-4o,groq/l --route s=openai",
                json!({"routes": {
                    "s": {"targets": [{"provider": "openai"}]},
                    "smart": {"targets": [
                        {"provider": "openai", "model": "gpt-4o", "weight": 3}, {"provider": "groq", "model": "l"},
                    ]},
                }}),
            ),
            ("--route none", json!({"routes": {}})),
            ("--models * --description=", json!({"models": [], "description": null})),
        ] {
            let line = format!("sidekey plan update free {flags}");
            let Command::Plan(PlanCommand::Update(update)) =
                Cli::try_parse_from(line.split_whitespace()).unwrap().command
            else {
                panic!("{line}");
            };
            assert_eq!(Value::Object(terms(&update.terms)), want, "{flags}");
        }
    }
}
