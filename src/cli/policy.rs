//! Limits, budgets and quotas as flags, shared by the commands for keys, plans, users, teams and provider keys.
//!
//! Owns turning them into the API's fields.

use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::cli::args::{OrNone, PolicyArgs};

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

fn put<T: Serialize>(map: &mut Map<String, Value>, name: &str, value: Option<T>) {
    map.extend(value.map(|value| (name.to_owned(), json!(value))));
}

/// All that were given; `none` among them takes the others away that are there.
fn list<T>(given: &[OrNone<T>]) -> Option<Vec<&T>> {
    (!given.is_empty()).then(|| given.iter().filter_map(|one| one.0.as_ref()).collect())
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
}
