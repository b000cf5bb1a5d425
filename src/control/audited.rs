//! Has what is asked of the admin API recorded in the audit log.
//!
//! Owns what an act is called, and which acts are recorded here: those that change no record, and those refused. Changes are
//! recorded by the store as it makes them, as part of the act that this sets up around the request.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http::{Method, StatusCode};

use crate::audit::{Act, Actor, Outcome};
use crate::control::ControlState;
use crate::control::caller::Caller;
use crate::control::gate::X_USER_ID;
use crate::control::problem::{Code, Problem};

/// Lists, and one of each.
const KINDS: &[(&str, &str)] = &[
    ("ca", "ca"),
    ("keys", "key"),
    ("plans", "plan"),
    ("pools", "pool"),
    ("prices", "price"),
    ("provider-keys", "provider_key"),
    ("providers", "provider"),
    ("routes", "route"),
    ("session", "session"),
    ("teams", "team"),
    ("tokens", "token"),
    ("users", "user"),
];
/// Questions that are asked by POST, because of what is in them.
const QUESTIONS: &[&str] = &["key.validate", "usage.create"];
/// What has an effect beside the records of the store: it is in the log before it begins.
const EFFECTS: &[&str] = &["alerts.test", "backup.create", "pool.lease", "provider_key.test"];

/// What a request does, and to what.
fn named(method: &Method, path: &str) -> (String, String) {
    let mut parts = path.trim_start_matches("/api/").splitn(2, '/');
    let (list, rest) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    let kind = KINDS
        .iter()
        .find(|(name, _)| *name == list)
        .map_or_else(|| list.replace('-', "_"), |(_, kind)| (*kind).to_owned());
    let (id, verb) = match rest.rsplit_once('/') {
        _ if rest.is_empty() => ("", None),
        // What is posted to one name is no record's: `/api/ca/rotate`.
        None if *method == Method::POST => ("", Some(rest)),
        // A price's name has a slash.
        Some((id, verb)) if *method == Method::POST => (id, Some(verb)),
        _ => (rest, None),
    };
    let verb = verb.unwrap_or(match *method {
        Method::DELETE => "delete",
        Method::PATCH | Method::PUT => "update",
        Method::POST if list == "prices" => "import",
        Method::POST => "create",
        _ => "read",
    });
    let object = if id.is_empty() { kind.clone() } else { format!("{kind} {id}") };
    (format!("{kind}.{verb}"), object)
}

/// Who asks.
fn actor(request: &Request) -> Actor {
    let caller = request.extensions().get::<Caller>();
    let (Some(caller), own) = (caller, rustix::process::geteuid().as_raw()) else {
        return Actor { actor: "nobody".to_owned(), role: None, from: "nowhere".to_owned() };
    };
    let mut actor = caller.actor(own);
    if let Some(user) = request.headers().get(X_USER_ID).and_then(|value| value.to_str().ok()) {
        let role = actor.role.unwrap_or_else(|| "admin".to_owned());
        actor.role = Some(format!("{role} as user:{user}"));
    }
    actor
}

/// Around every request.
pub(super) async fn watch(State(state): State<Arc<ControlState>>, request: Request, next: Next) -> Response {
    let (action, object) = named(request.method(), request.uri().path());
    let asks_only = matches!(*request.method(), Method::GET | Method::HEAD) || QUESTIONS.contains(&&*action);
    let act = Act::new(actor(&request), action, object);
    let audit = state.store.audit();
    if asks_only {
        let response = next.run(request).await;
        if matches!(response.status(), StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) {
            audit.refused(act.note(refused(&response))).await;
        }
        return response;
    }
    let has_effects = EFFECTS.contains(&&*act.action);
    if has_effects && let Err(error) = audit.record(act.note(Outcome::Started)).await {
        return Problem::from(error).into_response();
    }
    let response = Arc::clone(&act).scope(next.run(request)).await;
    let is_done = response.status().as_u16() < 400;
    if !is_done {
        audit.refused(act.note(refused(&response))).await;
    } else if has_effects || !act.is_noted() {
        // The answer waits: who was told that it is done may rely on its being in the log.
        if let Err(error) = audit.record(act.note(Outcome::Ok)).await {
            return Problem::from(error).into_response();
        }
    }
    response
}

fn refused(response: &Response) -> Outcome {
    let code = response.extensions().get::<Code>().map(|code| code.0.to_owned());
    Outcome::Refused(code.unwrap_or_else(|| response.status().as_str().to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_requests_are_called() {
        for (method, path, action, object) in [
            (Method::POST, "/api/keys", "key.create", "key"),
            (Method::PATCH, "/api/keys/a1", "key.update", "key a1"),
            (Method::POST, "/api/keys/a1/rotate", "key.rotate", "key a1"),
            (Method::POST, "/api/keys/validate", "key.validate", "key"),
            (Method::DELETE, "/api/provider-keys/b2", "provider_key.delete", "provider_key b2"),
            (Method::POST, "/api/provider-keys/b2/test", "provider_key.test", "provider_key b2"),
            (Method::POST, "/api/prices", "price.import", "price"),
            (Method::PUT, "/api/prices/openai/gpt-4o", "price.update", "price openai/gpt-4o"),
            (Method::POST, "/api/usage", "usage.create", "usage"),
            (Method::POST, "/api/ca/rotate", "ca.rotate", "ca"),
            (Method::POST, "/api/backup", "backup.create", "backup"),
            (Method::POST, "/api/alerts/test", "alerts.test", "alerts"),
            (Method::PATCH, "/api/users/alice", "user.update", "user alice"),
            (Method::GET, "/api/ledger", "ledger.read", "ledger"),
        ] {
            assert_eq!(named(&method, path), (action.to_owned(), object.to_owned()), "{method} {path}");
        }
    }
}
