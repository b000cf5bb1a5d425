//! The control plane: the admin API over keys, providers, usage and status, and the telemetry.
//!
//! Owns the JSON of the API, its errors, pages and versions. Leaves records to `storage` and who may speak to
//! [`socket`]: whoever reaches the router is the operator.
//!
//! | route | methods |
//! |---|---|
//! | `/api/keys` | GET list, POST create |
//! | `/api/keys/validate` | POST |
//! | `/api/keys/{id}` | GET, PATCH, DELETE |
//! | `/api/keys/{id}/rotate`, `/enable`, `/disable`, `/revoke` | POST |
//! | `/api/keys/{id}/usage?days=` | GET |
//! | `/api/plans` | GET list, POST create |
//! | `/api/plans/{name}` | GET, PATCH, DELETE |
//! | `/api/users`, `/api/teams` | GET list |
//! | `/api/users/{id}`, `/api/teams/{id}` | GET, PATCH create or change, DELETE |
//! | `/api/pools` | GET list, POST create |
//! | `/api/pools/{name}` | GET, PATCH, DELETE |
//! | `/api/pools/{name}/lease`, `/usage` | POST, by holders of virtual keys |
//! | `/api/prices?provider=&model=&layer=` | GET list, POST import |
//! | `/api/prices/{provider}/{model}` | GET, PUT, DELETE |
//! | `/api/prices/explain?model=&provider=` | GET |
//! | `/api/providers`, `/api/providers/{id}` | GET |
//! | `/api/provider-keys` | GET list, POST add |
//! | `/api/provider-keys/{id}` | GET, PATCH, DELETE |
//! | `/api/provider-keys/{id}/rotate`, `/enable`, `/disable`, `/test` | POST |
//! | `/api/provider-keys/{id}/usage?days=` | GET |
//! | `/api/usage?days=&by=&key=` | GET, POST under other prices |
//! | `/api/usage/groups/{id}` | GET |
//! | `/api/ledger?key=&group=&limit=&cursor=` | GET |
//! | `/api/alerts?kind=&min_severity=&since=&limit=&cursor=` | GET |
//! | `/api/alerts/test` | POST |
//! | `/api/audit?actor=&object=&action=&since=&order=&limit=&cursor=`, `/api/audit/verify?head=` | GET |
//! | `/api/explain?key=&model=&provider=&endpoint=&input_tokens=&max_tokens=` | GET |
//! | `/api/status` | GET |
//! | `/api/backup` | POST: writes the file |

pub mod alerts;
mod audit;
mod audited;
mod ca;
mod explain;
pub mod health;
mod keys;
mod leases;
mod named;
mod owners;
mod plans;
pub mod policy;
mod pools;
mod prices;
pub mod problem;
mod provider_keys;
pub mod socket;
mod status;
mod usage;
pub mod view;

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;

use axum::Router;
use axum::routing::{get, post};
use http::{HeaderMap, StatusCode, header};

use crate::clock::Clock;
use crate::control::alerts::Alerts;
use crate::control::health::Readiness;
use crate::control::problem::Problem;
use crate::explain::{Explanation, Question};
use crate::id::{KeyId, ScopeId};
use crate::lease::{LeaseWish, Leased};
use crate::live::Live;
use crate::plan::Plan;
use crate::pool::Pool;
use crate::provider::{Refusal, Registry};
use crate::storage::{Store, StoreError};
use crate::virtual_key::KeysSection;

pub use self::ca::{Roots, generations};
pub use self::leases::Leases;
pub use self::provider_keys::{TestResult, Verdict, apply};
pub use self::status::{ConfigReport, Facts, Listening};

/// Asks a provider whether it takes a stored key, by the key's id, without spending.
pub type KeyTester = Arc<dyn Fn(KeyId) -> Pin<Box<dyn Future<Output = TestResult> + Send>> + Send + Sync>;

/// Says what would become of a request.
pub type Explainer = Arc<dyn Fn(&Question) -> Explanation + Send + Sync>;

/// Chooses a real key to hand out.
pub type Lessor = Arc<dyn Fn(&LeaseWish) -> Result<Leased, Refusal> + Send + Sync>;

/// What the admin API works on.
pub struct ControlState {
    /// Records and the ledger.
    pub store: Store,
    /// Providers.
    pub registry: Live<Registry>,
    /// The roots of this process; `None` when no daemon runs.
    pub roots: Option<Roots>,
    /// Time.
    pub clock: Clock,
    /// What new virtual keys get.
    pub keys: Live<KeysSection>,
    /// What is told of the process.
    pub facts: Facts,
    /// Whether requests should come here.
    pub readiness: Readiness,
    /// Tests provider keys.
    pub tester: KeyTester,
    /// Who is told of events; nobody when no daemon runs.
    pub alerts: Alerts,
    /// Explains what the request path would do.
    pub explainer: Explainer,
    /// The real keys that are out; `None` when no daemon runs.
    pub leases: Option<Arc<Leases>>,
}

impl fmt::Debug for ControlState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ControlState").field("facts", &self.facts).finish_non_exhaustive()
    }
}

/// The admin API. Serve it only where every peer is the operator.
pub fn router(state: ControlState) -> Router {
    let state = Arc::new(state);
    Router::new()
        .route("/api/keys", get(keys::list).post(keys::create))
        .route("/api/keys/validate", post(keys::validate))
        .route("/api/keys/{id}", get(keys::show).patch(keys::update).delete(keys::delete))
        .route("/api/keys/{id}/rotate", post(keys::rotate))
        .route("/api/keys/{id}/enable", post(keys::enable))
        .route("/api/keys/{id}/disable", post(keys::disable))
        .route("/api/keys/{id}/revoke", post(keys::revoke))
        .route("/api/keys/{id}/usage", get(usage::of_key))
        .route("/api/plans", get(plans::list).post(plans::create))
        .route("/api/plans/{name}", get(plans::show).patch(plans::update).delete(named::delete::<Plan>))
        .route("/api/pools", get(pools::list).post(pools::create))
        .route("/api/pools/{name}", get(pools::show).patch(pools::update).delete(named::delete::<Pool>))
        .route("/api/pools/{name}/lease", post(leases::grant))
        .route("/api/pools/{name}/usage", post(leases::report))
        .merge(owners::routes("/api/users", ScopeId::User))
        .merge(owners::routes("/api/teams", ScopeId::Team))
        .route("/api/prices", get(prices::list).post(prices::import))
        .route("/api/prices/explain", get(prices::explain))
        .route("/api/prices/{*name}", get(prices::show).put(prices::put).delete(prices::delete))
        .route("/api/providers", get(status::providers))
        .route("/api/providers/{id}", get(status::provider))
        .route("/api/provider-keys", get(provider_keys::list).post(provider_keys::add))
        .route(
            "/api/provider-keys/{id}",
            get(provider_keys::show).patch(provider_keys::update).delete(provider_keys::delete),
        )
        .route("/api/provider-keys/{id}/rotate", post(provider_keys::rotate))
        .route("/api/provider-keys/{id}/enable", post(provider_keys::enable))
        .route("/api/provider-keys/{id}/disable", post(provider_keys::disable))
        .route("/api/provider-keys/{id}/test", post(provider_keys::test))
        .route("/api/provider-keys/{id}/usage", get(usage::of_provider_key))
        .route("/api/usage", get(usage::report).post(usage::repriced))
        .route("/api/usage/groups/{id}", get(usage::of_group))
        .route("/api/ledger", get(usage::ledger))
        .route("/api/alerts", get(alerts::list))
        .route("/api/alerts/test", post(alerts::test))
        .route("/api/audit", get(audit::list))
        .route("/api/audit/verify", get(audit::verify))
        .route("/api/ca", get(ca::show))
        .route("/api/ca/rotate", post(ca::rotate))
        .route("/api/explain", get(explain::explain))
        .route("/api/status", get(status::status))
        .route("/api/backup", post(status::backup))
        .fallback(|| async { Problem::not_found("such route") })
        .method_not_allowed_fallback(|| async {
            Problem::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", "this route has other methods")
        })
        .layer(axum::middleware::from_fn_with_state(Arc::clone(&state), audited::watch))
        .with_state(state)
}

impl From<StoreError> for Problem {
    fn from(error: StoreError) -> Self {
        let text = error.to_string();
        match error {
            StoreError::Audit(_) => Self::new(StatusCode::SERVICE_UNAVAILABLE, "audit_unavailable", text)
                .fix("look at the disk of the data directory: nothing was changed"),
            StoreError::Conflict { .. } => Self::new(StatusCode::PRECONDITION_FAILED, "conflict", text)
                .fix("read it again: somebody changed it in between"),
            StoreError::Exists { .. } => Self::new(StatusCode::CONFLICT, "exists", text),
            StoreError::InUse { by, .. } => Self::new(StatusCode::CONFLICT, "in_use", text)
                .fix(format!("take it off its keys first: sidekey key update {by} --plan ''")),
            StoreError::NotFound { .. } => Self::new(StatusCode::NOT_FOUND, "not_found", text),
            StoreError::NoSecret { .. } => Self::invalid("secret", text),
            StoreError::TooLarge { .. } => Self::new(StatusCode::UNPROCESSABLE_ENTITY, "too_large", text),
            _ => Self::new(StatusCode::SERVICE_UNAVAILABLE, "store_unavailable", text),
        }
    }
}

/// The tag of a record's version.
fn etag(version: u64) -> String {
    format!("\"{version}\"")
}

/// The version a change is meant for, when `If-Match` names one.
fn expected_version(headers: &HeaderMap) -> Result<Option<u64>, Problem> {
    let Some(said) = headers.get(header::IF_MATCH) else { return Ok(None) };
    let text = said.to_str().unwrap_or_default().trim();
    if text == "*" {
        return Ok(None);
    }
    let version = text.strip_prefix('"').and_then(|text| text.strip_suffix('"')).and_then(|text| text.parse().ok());
    version.map(Some).ok_or_else(|| {
        Problem::new(StatusCode::BAD_REQUEST, "bad_request", "if-match is not a tag of ours")
            .fix("send the ETag as it came")
    })
}

fn key_id(text: &str) -> Result<KeyId, Problem> {
    text.parse().map_err(|error: crate::id::BadId| Problem::not_found(&format!("key of that id: {error}")))
}

/// Text as one part of a path or a query's value (RFC 3986 §2.3).
#[must_use]
pub fn encoded(text: &str) -> String {
    let mut out = String::new();
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

/// One page of a list.
struct Page<T, I> {
    items: Vec<T>,
    /// The last item's id, when more follow.
    next: Option<I>,
}

const DEFAULT_PAGE: usize = 100;
const MAX_PAGE: usize = 1000;

/// The items after `cursor`; a cursor whose item is gone meanwhile is an error, since nobody knows where it stood.
fn page<T, I: PartialEq>(
    items: Vec<T>,
    id: impl Fn(&T) -> I,
    cursor: Option<I>,
    limit: Option<usize>,
) -> Result<Page<T, I>, Problem> {
    let limit = limit.unwrap_or(DEFAULT_PAGE).clamp(1, MAX_PAGE);
    let start = match cursor {
        None => 0,
        Some(cursor) => {
            let at = items.iter().position(|item| id(item) == cursor);
            1 + at.ok_or_else(|| Problem::invalid("cursor", "its item is gone").fix("start from the first page"))?
        }
    };
    let more = items.len() > start + limit;
    let items: Vec<T> = items.into_iter().skip(start).take(limit).collect();
    let next = if more { items.last().map(id) } else { None };
    Ok(Page { items, next })
}

#[cfg(test)]
mod tests;
