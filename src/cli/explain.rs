//! `sidekey explain`: what would become of a request, and why.
//!
//! Owns its output; the answer is the request path's own.

use serde_json::{Value, json};

use crate::cli::args::ExplainArgs;
use crate::cli::client::AdminClient;
use crate::cli::failure::Failure;
use crate::cli::out::{self, Column};
use crate::cli::{Session, keys};
use crate::control::encoded;

const LIST_COLUMNS: &[Column<'_>] =
    &[("LIST OF", "/of"), ("SCOPE", "/scope"), ("ID", "/scope_id"), ("ALLOWS", "/allows"), ("LIST", "/list")];

const ROUTE_COLUMNS: &[Column<'_>] = &[
    ("ORDER", "/order"),
    ("TARGET", "/provider"),
    ("MODEL", "/model"),
    ("SHARE", "/share"),
    ("PASSED OVER", "/passed_over"),
];

const KEY_COLUMNS: &[Column<'_>] = &[
    ("PROVIDER KEY", "/id"),
    ("NAME", "/name"),
    ("KEY", "/masked"),
    ("OWNER", "/owner"),
    ("SOURCE", "/source"),
    ("ENVIRONMENT", "/environment"),
];

const LIMIT_COLUMNS: &[Column<'_>] = &[
    ("SCOPE", "/scope"),
    ("ID", "/scope_id"),
    ("LIMIT", "/limit"),
    ("PER", "/per"),
    ("VALUE", "/value"),
    ("USED", "/used"),
    ("RESERVED", "/reserved"),
    ("NEEDED", "/needed"),
    ("REMAINING", "/remaining"),
    ("WOULD REFUSE", "/would_refuse"),
    ("FREES AT", "/frees_at"),
    ("SHADOW", "/shadow"),
];

/// Asks, and shows the answer. That the request would be refused is no failure of the question.
pub(super) async fn run(session: &Session, client: &AdminClient, args: &ExplainArgs) -> Result<(), Failure> {
    let mut path =
        format!("/api/explain?key={}&input_tokens={}", keys::resolve(client, &args.key).await?, args.input_tokens);
    for (name, value) in [("model", &args.model), ("provider", &args.provider), ("endpoint", &args.endpoint)] {
        if let Some(value) = value {
            path.push_str(&format!("&{name}={}", encoded(value)));
        }
    }
    if let Some(max) = args.max_tokens {
        path.push_str(&format!("&max_tokens={max}"));
    }
    let found = client.get(&path).await?;
    Ok(session.out.one(&found.body, shown)?)
}

/// The verdict first, then what it was made of.
fn shown(found: &Value) -> String {
    let mut text = found["would_be"].as_str().unwrap_or_default().to_owned();
    let refusal = &found["refusal"];
    if refusal.is_object() {
        let (code, message) = (refusal["code"].as_str(), refusal["message"].as_str());
        text.push_str(&format!(
            ": {} {}: {}",
            refusal["status"],
            code.unwrap_or_default(),
            message.unwrap_or_default()
        ));
    }
    text.push_str("\n\n");
    let route = &found["route"];
    let route = route["model"].as_str().map(|model| format!("{model} ({})", route["of"].as_str().unwrap_or_default()));
    text.push_str(&out::card(&json!({
        "key": found["key"],
        "route": route,
        "provider": found["provider"],
        "endpoint": found["endpoint"],
        "model": found["model"],
        "estimate": found["estimate"],
    })));
    for (name, columns) in [
        ("/route/targets", ROUTE_COLUMNS),
        ("/lists", LIST_COLUMNS),
        ("/provider_keys", KEY_COLUMNS),
        ("/limits", LIMIT_COLUMNS),
    ] {
        let items = found.pointer(name).and_then(Value::as_array);
        if let Some(items) = items.filter(|items| !items.is_empty()) {
            text.push('\n');
            text.push_str(&out::table(items, columns));
        }
    }
    text
}
