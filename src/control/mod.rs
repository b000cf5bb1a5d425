//! The control plane: the admin API over keys, providers, usage and status, and the telemetry.
//!
//! Owns the JSON of the API, its errors, pages and versions, and who may do what. Leaves records to `storage`.
//!
//! ```text
//! Unix socket ── peer's uid ──────────────┐
//! this process ───────────────────────────┼─ Caller ─► gate ── role, body ─► routes
//! TCP ── host, origin, path ── token ─────┘
//! ```
//!
//! | file | owns |
//! |---|---|
//! | `routes` | every route, and the least role that may use it |
//! | `socket`, `tcp`, `door` | the ways in, and who gets through them |
//! | `gate`, `caller`, `failures` | roles, bodies; who asks; too many failed attempts |
//! | `audit`, `audited` | the audit log: questions to it, and what gets into it |
//! | `tokens`, `session`, `pages` | admin tokens, the console's login, its pages |
//! | `problem`, `body`, `view`, `policy`, `named` | what the lists have in common |
//! | `openapi` | the document of all this, and that it is true |
//! | the others | one list of the API each |

mod activity;
pub mod alerts;
mod audit;
mod audited;
mod body;
mod ca;
pub mod caller;
mod config;
mod door;
mod explain;
mod failures;
mod gate;
pub mod health;
mod keys;
mod leases;
mod named;
#[cfg(test)]
mod openapi;
mod own;
mod owners;
pub mod pages;
mod plans;
pub mod policy;
mod pools;
mod prices;
pub mod problem;
mod provider_keys;
mod routes;
pub mod section;
mod session;
pub mod socket;
mod status;
pub mod tcp;
mod tokens;
mod usage;
pub mod view;

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;

use axum::Router;
use http::{HeaderMap, StatusCode, header};

use crate::activity::Activity;
use crate::clock::Clock;
use crate::control::alerts::Alerts;
use crate::control::caller::Caller;
use crate::control::health::Readiness;
use crate::control::problem::Problem;
use crate::explain::{Explanation, Question};
use crate::id::KeyId;
use crate::lease::{LeaseWish, Leased};
use crate::live::Live;
use crate::provider::{Refusal, Registry};
use crate::storage::{Store, StoreError};
use crate::virtual_key::KeysSection;

pub use self::ca::{Roots, generations};
pub use self::config::{ConfigView, SaidBy, Setting};
pub use self::leases::Leases;
pub use self::provider_keys::{TestResult, Verdict, apply};
pub use self::routes::{Least, listed};
pub use self::session::Console;
pub use self::status::{ConfigReport, Facts, Listening};
pub use crate::provider::encoded;

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
    /// What requests came to; `None` when no daemon runs.
    pub activity: Option<Arc<Activity>>,
    /// The console: its pages, and who may log in to it.
    pub console: Console,
}

impl fmt::Debug for ControlState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ControlState").field("facts", &self.facts).finish_non_exhaustive()
    }
}

/// The admin API, to be served by one way in or another.
#[derive(Clone)]
pub struct Api {
    gated: Router,
    state: Arc<ControlState>,
}

impl fmt::Debug for Api {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Api").finish_non_exhaustive()
    }
}

/// The admin API.
pub fn router(state: ControlState) -> Api {
    let state = Arc::new(state);
    Api { gated: gate::gated(Arc::clone(&state)), state }
}

impl Api {
    /// For requests of this process itself, which may do everything.
    pub fn own(&self) -> Router {
        self.gated.clone().layer(axum::Extension(Caller::process()))
    }

    /// For who says who asks by themselves: without a [`Caller`] every request is refused.
    pub fn gated(&self) -> Router {
        self.gated.clone()
    }

    /// For a TCP address: whoever shows a token may do what its role allows.
    fn of_tcp(&self, hosts: Vec<String>, tls: bool) -> Router {
        let door = Arc::new(door::Door { state: Arc::clone(&self.state), hosts, tls });
        let entered = self.gated.clone().layer(axum::middleware::from_fn_with_state(door, door::enter));
        // What the door refuses is an answer too.
        entered.layer(axum::middleware::from_fn(gate::seal))
    }
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
            StoreError::NoSecret { .. } => Self::invalid("secret", text).fix("send the secret too"),
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
        Problem::new(StatusCode::BAD_REQUEST, "bad_request", "is not a tag of ours")
            .field("if-match")
            .fix("send the ETag as it came")
    })
}

fn key_id(text: &str) -> Result<KeyId, Problem> {
    text.parse().map_err(|error: crate::id::BadId| Problem::not_found(&format!("key of that id: {error}")))
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
