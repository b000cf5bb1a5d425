//! Limits, budgets and quotas as flags, shared by the commands for keys, plans, users, teams and provider keys.
//!
//! Owns turning them into the API's fields.

use std::fmt::Display;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

use crate::cli::args::{OrNone, PolicyArgs};
use crate::cli::out::{self, Column};
use crate::policy::{Budget, Quota};
use crate::route::Routes;

const LIMIT_COLUMNS: &[Column<'_>] = &[
    ("SCOPE", "/scope"),
    ("ID", "/scope_id"),
    ("LIMIT", "/limit"),
    ("PER", "/per"),
    ("COUNTS", "/counts"),
    ("VALUE", "/value"),
    ("USED", "/used"),
    ("RESERVED", "/reserved"),
    ("REMAINING", "/remaining"),
    ("RESETS", "/resets"),
    ("SHADOW", "/shadow"),
];

/// The flags that were given, as the API's fields; `none` becomes null.
pub(super) fn fields(args: &PolicyArgs) -> Map<String, Value> {
    let mut limits = Map::new();
    put(&mut limits, "rpm", args.rpm.map(|rpm| rpm.0));
    put(&mut limits, "tpm", args.tpm.map(|tpm| tpm.0));
    put(&mut limits, "tpm_counts", args.tpm_counts);
    put(&mut limits, "max_in_flight", args.max_in_flight.map(|max| max.0));
    let mut body = Map::new();
    put(&mut body, "limits", Some(limits).filter(|limits| !limits.is_empty()));
    put(&mut body, "budgets", list(&args.budget));
    put(&mut body, "quotas", list(&args.quota));
    let rates = |rates: &Vec<String>| -> Vec<String> {
        rates.iter().filter(|rate| !rate.is_empty()).map(|rate| rate.trim().replace('-', "_")).collect()
    };
    put(&mut body, "shadow", args.shadow.as_ref().map(rates));
    put(&mut body, "unpriced", args.unpriced.map(|what| what.0));
    put(&mut body, "unrecorded", args.unrecorded.map(|what| what.0));
    put(&mut body, "hard_stop", args.hard_stop.map(|stop| stop.0));
    body
}

/// Adds a field, when it was given.
pub(super) fn put<T: Serialize>(map: &mut Map<String, Value>, name: &str, value: Option<T>) {
    map.extend(value.map(|value| (name.to_owned(), json!(value))));
}

/// All that were given; `none` among them takes the others away that are there.
fn list<T>(given: &[OrNone<T>]) -> Option<Vec<&T>> {
    (!given.is_empty()).then(|| given.iter().filter_map(|one| one.0.as_ref()).collect())
}

/// A record with a policy, for people: names and values, and below them how each limit stands.
pub(super) fn card(record: &Value) -> String {
    let mut record = as_typed(record);
    let limits = record.as_object_mut().and_then(|fields| fields.shift_remove("in_force"));
    let mut text = out::card(&record);
    if let Some(Value::Array(limits)) = limits.filter(|limits| *limits != json!([])) {
        text.push('\n');
        text.push_str(&out::table(&limits, LIMIT_COLUMNS));
    }
    text
}

/// A record whose budgets and quotas are as they are typed, `20/month`, and in which what says nothing is null.
pub(super) fn as_typed(record: &Value) -> Value {
    let mut record = record.clone();
    for (name, value) in record.as_object_mut().into_iter().flatten() {
        match name.as_str() {
            "budgets" => *value = typed::<Budget>(value),
            "quotas" => *value = typed::<Quota>(value),
            "limits" if value.as_object().is_some_and(|limits| limits.values().all(Value::is_null)) => {
                *value = Value::Null;
            }
            "routes" => *value = as_routes(value),
            "shared" => *value = as_typed(value),
            "description" if *value == json!("") => *value = Value::Null,
            _ => {}
        }
    }
    record
}

fn as_routes(routes: &Value) -> Value {
    match serde_json::from_value::<Routes>(routes.clone()) {
        Ok(routes) if routes.is_empty() => Value::Null,
        Ok(routes) => json!(routes.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")),
        Err(_) => routes.clone(),
    }
}

fn typed<T: DeserializeOwned + Display>(amounts: &Value) -> Value {
    match serde_json::from_value::<Vec<T>>(amounts.clone()) {
        // Commas are inside of each.
        Ok(amounts) => json!(amounts.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")),
        // Of a daemon that knows more than this program.
        Err(_) => amounts.clone(),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::args::{Cli, Command, KeyCommand};

    #[test]
    fn flags_become_fields() {
        for (flags, want) in [
            ("", json!({})),
            ("--rpm 60 --tpm none", json!({"limits": {"rpm": 60, "tpm": null}})),
            (
                "--budget 100 --budget 2.5/day,shadow",
                json!({"budgets": [
                    {"usd": "100", "per": "total", "alert_at": [80, 100], "shadow": false},
                    {"usd": "2.5", "per": "day", "alert_at": [80, 100], "shadow": true},
                ]}),
            ),
            ("--budget none --quota none", json!({"budgets": [], "quotas": []})),
            ("--shadow rpm,max-in-flight --hard-stop", json!({"shadow": ["rpm", "max_in_flight"], "hard_stop": true})),
            ("--hard-stop none --unpriced allow", json!({"hard_stop": null, "unpriced": "allow"})),
            (
                "--tpm-counts uncached-input --unrecorded deny",
                json!({
                    "limits": {"tpm_counts": "uncached_input"}, "unrecorded": "deny",
                }),
            ),
        ] {
            let line = format!("sidekey key update k {flags}");
            let Command::Key(KeyCommand::Update(update)) =
                Cli::try_parse_from(line.split_whitespace()).unwrap().command
            else {
                panic!("{line}");
            };
            assert_eq!(Value::Object(fields(&update.grants.policy)), want, "{flags}");
        }
        for flags in ["--budget x", "--budget 1/hour", "--quota 1.5", "--unpriced maybe", "--tpm-counts words"] {
            assert!(
                Cli::try_parse_from(format!("sidekey key update k {flags}").split_whitespace()).is_err(),
                "{flags}"
            );
        }
    }

    #[test]
    fn records_for_people() {
        let record = json!({
            "name": "free", "limits": {"rpm": null},
            "budgets": [
                {"usd": "20", "per": "month", "time_zone": "Europe/Berlin", "alert_at": [80, 100], "shadow": true},
                {"usd": "1", "per": "day"},
            ],
            "description": "",
            "routes": {"smart": {"targets": [{"provider": "openai", "model": "gpt-4o", "weight": 3}, {"provider": "groq"}]}},
            "shared": {"limits": {"rpm": 5}, "quotas": [{"tokens": 7, "per": "day", "counts": "input"}]},
            "in_force": [{"scope": "plan", "scope_id": "free", "limit": "rpm", "value": 5, "used": 1, "reserved": 0,
                "remaining": 4, "resets": null, "shadow": false}],
            "spent": "0",
        });
        let text = card(&record);
        let words: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
        let want = [
            &["name", "free"][..],
            &["limits", "-"],
            &["budgets", "20/month,zone=Europe/Berlin,shadow", "1/day"],
            &["description", "-"],
            &["routes", "smart=3*openai/gpt-4o,groq"],
            &["shared", "limits=rpm=5", "quotas=7/day,counts=input"],
            &["spent", "0"],
            &[],
            &["SCOPE", "ID", "LIMIT", "PER", "COUNTS", "VALUE", "USED", "RESERVED", "REMAINING", "RESETS", "SHADOW"],
            &["plan", "free", "rpm", "-", "-", "5", "1", "0", "4", "-", "false"],
        ];
        assert_eq!(words, want);
    }
}
