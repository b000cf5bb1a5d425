//! What the API promises of every route, held over the table: pages, versions, errors by field.

use std::collections::BTreeMap;

use http::Method;
use serde_json::{Value, json};

use super::operation::Op;
use super::{document, operations};
use crate::control::tests::Api;
use crate::virtual_key::KeysSection;

/// Lists that come whole, and why.
const WHOLE: &[(&str, &str)] = &[
    ("/api/activity", "has as many steps as fit on a chart"),
    ("/api/ca", "there are two roots at most while one takes the other's place"),
    ("/api/config", "there are as many settings as the program has"),
    ("/api/explain", "has what one request meets"),
    ("/api/prices/explain", "has the spellings of one name"),
    ("/api/status", "has what the daemon lacks"),
    ("/api/usage", "are sums, which are made at once or not at all"),
];

/// Operations on a record that leave its version alone, and why.
const UNVERSIONED: &[(&str, &str)] = &[
    ("DELETE /api/session", "is the caller's own token, which nobody else changes"),
    ("POST /api/provider-keys/{id}/test", "changes how the key stands, which is no part of the record"),
    ("POST /api/pools/{name}/lease", "makes a lease, and leaves the pool as it is"),
    ("POST /api/pools/{name}/usage", "changes a lease"),
];

fn resolved<'a>(document: &'a Value, schema: &'a Value) -> &'a Value {
    let name = schema["$ref"].as_str().and_then(|at| at.strip_prefix("#/components/schemas/"));
    name.map_or(schema, |name| &document["components"]["schemas"][name])
}

#[test]
fn every_list_comes_in_pages() {
    let document = document();
    for (path, methods) in document["paths"].as_object().unwrap() {
        let answer = &methods["get"]["responses"]["200"]["content"]["application/json"]["schema"];
        let properties = &resolved(&document, answer)["properties"];
        let is_one = path.ends_with('}') && path != "/api/usage/groups/{id}" || path.ends_with("/usage");
        let lists = properties.as_object().into_iter().flatten().any(|(_, schema)| schema["type"] == "array");
        if is_one || !lists || WHOLE.iter().any(|(whole, _)| whole == path) {
            continue;
        }
        let asked: Vec<&str> =
            methods["get"]["parameters"].as_array().unwrap().iter().filter_map(|p| p["name"].as_str()).collect();
        assert!(asked.contains(&"limit") && asked.contains(&"cursor"), "{path} cannot be asked for by pages");
        assert!(properties.get("next_cursor").is_some(), "{path} does not lead to its next page");
    }
}

/// What acts on a record: changes it, removes it, or does something to it by a word.
fn acting(operations: &[Op]) -> Vec<&Op> {
    let shown = |path: &str| operations.iter().any(|op| op.method == Method::GET && op.path == path);
    let on_record = |op: &&Op| match op.method {
        Method::PATCH | Method::PUT | Method::DELETE => shown(op.path),
        Method::POST => op.path.rsplit_once('/').is_some_and(|(record, _)| record.ends_with('}') && shown(record)),
        _ => false,
    };
    operations.iter().filter(on_record).collect()
}

#[test]
fn every_change_of_a_record_may_name_its_version() {
    let operations = operations();
    for op in acting(&operations) {
        let at = format!("{} {}", op.method, op.path);
        let excused = UNVERSIONED.iter().any(|(other, _)| *other == at);
        assert!(op.if_match != excused, "{at} takes If-Match, or has a reason in this file, and not both");
    }
}

/// One of each record that can be changed, by the path of its kind.
async fn furnished() -> (Api, BTreeMap<&'static str, String>) {
    let api = Api::new(KeysSection::default());
    let mut there = BTreeMap::new();
    for (kind, body, at) in [
        ("/api/keys/{id}", json!({"name": "a"}), "/key_data/id"),
        ("/api/plans/{name}", json!({"name": "a"}), "/name"),
        ("/api/pools/{name}", json!({"name": "a"}), "/name"),
        ("/api/tokens/{id}", json!({"name": "a", "role": "reader"}), "/token_data/id"),
        ("/api/provider-keys/{id}", json!({"provider": "openai", "name": "a", "secret": "sk-a"}), "/id"),
    ] {
        let list = kind.rsplit_once('/').unwrap().0;
        let made = api.post(list, body).await;
        assert_eq!((made.status, made.etag.as_deref()), (201, Some("\"1\"")), "{list}: {}", made.text);
        there.insert(kind, made.body.pointer(at).and_then(Value::as_str).unwrap().to_owned());
    }
    for (kind, name) in [("/api/users/{id}", "alice"), ("/api/teams/{id}", "t1")] {
        let set = api.patch(&kind.replace("{id}", name), json!({"models": ["a"]}), None).await;
        assert_eq!(set.status, 200, "{kind}: {}", set.text);
        there.insert(kind, name.to_owned());
    }
    let price = api.ask(Method::PUT, "/api/prices/openai/m", Some(json!({"input": "1"})), None).await;
    assert_eq!(price.status, 201, "{}", price.text);
    there.insert("/api/prices/{*name}", "openai/m".to_owned());
    (api, there)
}

/// The path of an operation on the record that is there.
fn path(op: &Op, there: &BTreeMap<&'static str, String>) -> Option<String> {
    let (kind, name) = there.iter().find(|(kind, _)| op.path.starts_with(**kind))?;
    let (list, _) = kind.rsplit_once('/')?;
    Some(format!("{list}/{name}{}", op.path.strip_prefix(kind)?))
}

#[tokio::test]
async fn another_version_is_not_changed() {
    let (api, there) = furnished().await;
    let operations = operations();
    for op in acting(&operations).into_iter().filter(|op| op.if_match) {
        let path = path(op, &there).unwrap_or_else(|| panic!("there is no record for {}", op.path));
        let body = match (&op.method, op.path.ends_with("/rotate")) {
            (&Method::PUT, _) => Some(json!({"input": "1"})),
            (&Method::POST, true) if op.path.starts_with("/api/provider-keys/") => Some(json!({"secret": "sk-b"})),
            _ => Some(json!({})),
        };
        let refused = api.ask(op.method.clone(), &path, body.clone(), Some("\"999\"")).await;
        let told = (refused.status, refused.body["code"].as_str());
        assert_eq!(told, (412, Some("conflict")), "{} {path}: {}", op.method, refused.text);
        let odd = api.ask(op.method.clone(), &path, body, Some("999")).await;
        assert_eq!((odd.status, &odd.body["field"]), (400, &json!("if-match")), "{} {path}: {}", op.method, odd.text);
    }
    for (kind, name) in &there {
        let list = kind.rsplit_once('/').unwrap().0;
        let shown = api.get(&format!("{list}/{name}")).await;
        assert_eq!((shown.status, shown.etag.as_deref()), (200, Some("\"1\"")), "{kind} is as it was: {}", shown.text);
    }
}

#[tokio::test]
async fn what_is_not_understood_is_told_by_field() {
    let (api, there) = furnished().await;
    for op in operations() {
        let path = path(&op, &there).unwrap_or_else(|| op.path.to_owned());
        if op.takes_body() {
            let refused = api.ask(op.method.clone(), &path, Some(json!({"no_such_field": 1})), None).await;
            // Who holds a virtual key, and whether there is a daemon, comes first.
            if op.path.ends_with("/lease") || op.path == "/api/pools/{name}/usage" {
                continue;
            }
            let told = (refused.status, &refused.body["field"]);
            assert_eq!(told, (400, &json!("no_such_field")), "{} {path}: {}", op.method, refused.text);
            assert!(refused.body["fix"].is_string(), "{} {path}: {}", op.method, refused.text);
        }
        if op.takes_query() {
            let refused = api.ask(op.method.clone(), &format!("{path}?no_such_field=1"), None, None).await;
            let told = (refused.status, &refused.body["field"]);
            assert_eq!(told, (400, &json!("no_such_field")), "{} {path}: {}", op.method, refused.text);
            assert!(refused.body["fix"].is_string(), "{} {path}: {}", op.method, refused.text);
        }
    }
}
