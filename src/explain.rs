//! What would become of a request, and why: the question, and the answer.
//!
//! Owns their shapes, which `control` asks in and `proxy` answers in; leaves deciding to `proxy`.

use std::sync::Arc;

use http::StatusCode;

use crate::id::KeySource;
use crate::limit::{Consumption, Report};
use crate::provider::{Endpoint, Refusal, Upstream};
use crate::route::Target;
use crate::storage::{KeyState, ProviderKeyState};
use crate::virtual_key::Rejection;

/// A request that may come.
#[derive(Clone, Debug)]
pub struct Question {
    /// Whose.
    pub key: Arc<KeyState>,
    /// Of which model.
    pub model: Option<String>,
    /// Of which provider, by id or alias; `None` leaves it to the model, as a bare path does.
    pub provider: Option<String>,
    /// What for; `None` is what clients of the provider's dialect ask for most.
    pub endpoint: Option<Endpoint>,
    /// Tokens it holds.
    pub input_tokens: u64,
    /// The most tokens it lets the provider generate, when it says.
    pub max_tokens: Option<u64>,
}

/// What would become of it now. Nothing was taken, charged or sent.
#[derive(Debug)]
pub struct Explanation {
    /// Why the key is not accepted. The address it is used from is not judged.
    pub rejection: Option<Rejection>,
    /// What leads it there.
    pub route: Option<RouteTaken>,
    /// Whom it leads to; `None` when to nobody.
    pub upstream: Option<Arc<Upstream>>,
    /// What it asks for.
    pub endpoint: Option<Endpoint>,
    /// The model that would be called, as lists see it.
    pub model: Option<String>,
    /// Provider keys in the order in which they would be tried, and whose they are.
    pub provider_keys: Vec<(Arc<ProviderKeyState>, KeySource)>,
    /// What it is thought to consume.
    pub need: Consumption,
    /// True when the cost in `need` is known, though it be nothing.
    pub priced: bool,
    /// Every limit it counts for.
    pub limits: Vec<Report>,
    /// The refusal, and its status in the client's dialect; `None` when it would be admitted.
    pub refusal: Option<(StatusCode, Refusal)>,
}

/// The route that leads a request.
#[derive(Debug)]
pub struct RouteTaken {
    /// What it is for.
    pub pattern: String,
    /// True when it is the plan's.
    pub of_plan: bool,
    /// Its targets, in the order in which they would be tried; those that share in the order in which they are written.
    pub targets: Vec<TargetTaken>,
}

/// One of its targets.
#[derive(Debug)]
pub struct TargetTaken {
    /// As it is written.
    pub target: Target,
    /// The lower is tried first; equals share.
    pub order: usize,
    /// Its weight, and of what whole.
    pub share: (u64, u64),
    /// Why it would be passed over.
    pub passed: Option<String>,
}
