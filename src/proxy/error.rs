//! Why a request ends here: one enum, and the one mapping to what the client sees.
//!
//! Owns the wording; leaves status, code and body to `provider::refusal`.

use std::time::Duration;

use crate::limit;
use crate::net::upstream::SendError;
use crate::provider::{Action, BadPath, BadRequest, Counted, Endpoint, Meaning, Refusal, RefusalKind};
use crate::virtual_key::Rejection;

/// Why the proxy did not relay an answer. Messages never hold a key.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error("{0}")]
    BadPath(#[from] BadPath),
    #[error("{0}")]
    BadRequest(#[from] BadRequest),
    #[error("the request body is longer than {limit} bytes; send less, or raise limits.max_body")]
    BodyTooLarge { limit: usize },
    #[error("the client broke off its request")]
    ClientBody,
    #[error("the client stopped in the middle of its request")]
    ClientSlow,
    #[error("this virtual key may not use the endpoint {endpoint:?}; its endpoints are {allowed}")]
    EndpointNotAllowed { endpoint: &'static str, allowed: String },
    #[error("{0}")]
    Internal(&'static str),
    #[error("virtual key not accepted: {}", .0.as_str())]
    KeyNotAccepted(Rejection),
    #[error("{0}")]
    Limited(#[from] Box<limit::Refused>),
    #[error("this virtual key may not use the model {model:?}; its models are {allowed}")]
    ModelNotAllowed { model: String, allowed: String },
    #[error(
        "this virtual key is limited to the models {allowed}, and a request to {endpoint:?} names none that can be \
         checked; allow the endpoint by name: sidekey key update --endpoints"
    )]
    ModelUnknown { endpoint: &'static str, allowed: String },
    #[error("no usable provider key for {provider}{detail}; add one: sidekey provider-key add {provider}")]
    NoProviderKey { provider: String, detail: String, retry_after: Option<Duration> },
    #[error("{detail}; paths are /<provider>/<its own path>, or /v1/…; providers: {known}")]
    NoSuchProvider { detail: String, known: String },
    #[error("{provider} refused the provider key with status {status}; see: sidekey provider-key test --all")]
    ProviderKeyRejected { provider: String, status: u16 },
    #[error("this virtual key may not use the provider {provider:?}; its providers are {allowed}")]
    ProviderNotAllowed { provider: String, allowed: String },
    #[error("the route {pattern:?} leads to {provider}: {source}")]
    Route { pattern: String, provider: String, source: Box<Self> },
    #[error("{0}")]
    Misrouted(String),
    #[error("{0}")]
    NoTarget(String),
    #[error("two different virtual keys in one request; send one")]
    SeveralKeys,
    #[error(
        "nobody knows what the model {model:?} of {provider} costs, and this virtual key has a budget; set its price: \
         sidekey prices set {provider}/{model}; or let it pass: --unpriced allow"
    )]
    Unpriced { provider: String, model: String },
    #[error(
        "what {endpoint} at {provider} costs shows in no answer, and this virtual key has a budget; let it pass: \
         --unpriced allow"
    )]
    Uncounted { provider: String, endpoint: Endpoint },
    #[error("the request cannot be recorded now, and this virtual key must not be used without: {0}; try again later")]
    Unrecorded(String),
    #[error("{provider}: {source}")]
    Unreachable { provider: String, source: SendError },
    #[error("{provider} sent no answer within {seconds} s")]
    UpstreamTimeout { provider: String, seconds: u64 },
}

impl Error {
    /// What the client sees, whatever its dialect.
    pub(super) fn refusal(&self) -> Refusal {
        match self {
            Self::KeyNotAccepted(reason) => rejection(*reason),
            Self::Route { source, .. } => Refusal { message: self.to_string(), ..source.refusal() },
            Self::Limited(refused) => {
                let counted = match refused.limit {
                    limit::Kind::Quota(..) | limit::Kind::Tpm => Counted::Tokens,
                    limit::Kind::Budget(_) | limit::Kind::InFlight | limit::Kind::Rpm => Counted::Requests,
                };
                let wait = refused.retry_after.map(in_ms);
                Refusal::new(self.kind(), self.to_string()).counting(counted).after_ms(wait)
            }
            Self::ModelNotAllowed { .. } | Self::Unpriced { .. } => {
                Refusal::new(self.kind(), self.to_string()).about("model")
            }
            Self::NoProviderKey { retry_after, .. } => {
                Refusal::new(self.kind(), self.to_string()).after_ms(retry_after.map(in_ms))
            }
            Self::BadRequest(bad) => {
                let refusal = Refusal::new(self.kind(), self.to_string());
                match bad.param {
                    Some(param) => refusal.about(param),
                    None => refusal,
                }
            }
            _ => Refusal::new(self.kind(), self.to_string()),
        }
    }

    /// What it says of the key, or of the way to its provider: the client's own faults say nothing. A connection that was
    /// lost before a byte of the answer came is a fault like silence is: the next key may do better, at the price that
    /// the first may have been served.
    pub(super) fn meaning(&self) -> Meaning {
        match self {
            Self::Unreachable { source: SendError::Dial(_), .. } => Meaning::unreachable("cannot be reached"),
            Self::Unreachable { source: SendError::Http(_), .. } => Meaning::unreachable("lost the connection"),
            Self::UpstreamTimeout { .. } => Meaning::unreachable("no answer in time"),
            _ => Meaning { action: Action::Relay, wait: None, reason: String::new() },
        }
    }

    /// True when the request went upstream, or tried to.
    pub(super) fn is_upstreams(&self) -> bool {
        matches!(self, Self::ProviderKeyRejected { .. } | Self::Unreachable { .. } | Self::UpstreamTimeout { .. })
    }

    /// The mapping.
    pub(super) fn kind(&self) -> RefusalKind {
        match self {
            Self::BadPath(_)
            | Self::BadRequest(_)
            | Self::ClientBody
            | Self::ClientSlow
            | Self::Misrouted(_)
            | Self::SeveralKeys => RefusalKind::BadRequest,
            Self::Route { source, .. } => source.kind(),
            Self::BodyTooLarge { .. } => RefusalKind::BodyTooLarge,
            Self::EndpointNotAllowed { .. }
            | Self::ModelUnknown { .. }
            | Self::ProviderNotAllowed { .. }
            | Self::Uncounted { .. } => RefusalKind::PermissionDenied,
            Self::Internal(_) => RefusalKind::Internal,
            Self::KeyNotAccepted(reason) => rejection(*reason).kind,
            Self::Limited(refused) if refused.limit.is_rate() => RefusalKind::RateLimited,
            Self::Limited(_) => RefusalKind::InsufficientQuota,
            Self::ModelNotAllowed { .. } | Self::Unpriced { .. } => RefusalKind::ModelNotAllowed,
            Self::NoProviderKey { .. } | Self::NoTarget(_) => RefusalKind::NoProviderKey,
            Self::NoSuchProvider { .. } => RefusalKind::NotFound,
            Self::ProviderKeyRejected { .. } => RefusalKind::ProviderKeyRejected,
            Self::Unrecorded(_) => RefusalKind::Overloaded,
            Self::Unreachable { .. } => RefusalKind::UpstreamUnreachable,
            Self::UpstreamTimeout { .. } => RefusalKind::UpstreamTimeout,
        }
    }
}

/// Whole milliseconds, rounded up.
fn in_ms(wait: Duration) -> u64 {
    u64::try_from(wait.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX)
}

/// What a stranger may know: unknown, wrong, malformed and revoked look alike. Only a holder of the right secret is
/// told that the key is disabled, expired, or used from elsewhere.
fn rejection(reason: Rejection) -> Refusal {
    let (kind, message) = match reason {
        Rejection::Missing => (
            RefusalKind::MissingKey,
            "no virtual key in the request; send it where the SDK puts its API key, as in Authorization: Bearer",
        ),
        Rejection::Canary | Rejection::Malformed | Rejection::Revoked | Rejection::Unknown | Rejection::WrongSecret => {
            (RefusalKind::InvalidKey, "the virtual key is not valid; make one: sidekey key create")
        }
        Rejection::Expired => {
            (RefusalKind::InvalidKey, "the virtual key has expired; extend it: sidekey key update --expires-days")
        }
        Rejection::Disabled => {
            (RefusalKind::PermissionDenied, "the virtual key is disabled; enable it: sidekey key enable")
        }
        Rejection::SourceNotAllowed => {
            (RefusalKind::PermissionDenied, "the virtual key may not be used from this network address")
        }
    };
    Refusal::new(kind, message)
}

/// A list for a message.
pub(super) fn list(names: &[String]) -> String {
    names.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strangers_learn_nothing() {
        let unknown = rejection(Rejection::Unknown);
        for reason in [Rejection::Canary, Rejection::Malformed, Rejection::WrongSecret, Rejection::Revoked] {
            assert_eq!(rejection(reason), unknown, "{reason:?}");
        }
        assert_eq!(rejection(Rejection::Missing).kind, RefusalKind::MissingKey);
        assert_eq!(rejection(Rejection::Expired).kind, RefusalKind::InvalidKey);
        assert_eq!(rejection(Rejection::Disabled).kind, RefusalKind::PermissionDenied);
    }
}
