//! [`Refusal`]: what sidekey itself says no with, and the one table of statuses, codes and retry headers.
//!
//! Owns the table; leaves the body's shape to each dialect, and the wording to whoever refuses. A message never holds a
//! key, nor text of a provider that could.

use http::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, RETRY_AFTER};
use http::{Response, StatusCode};

use bytes::Bytes;

use super::Dialect;
use crate::id::RequestId;

/// Tells the SDKs of OpenAI and Anthropic, and their relatives, whether to try again.
pub const SHOULD_RETRY: HeaderName = HeaderName::from_static("x-should-retry");
/// As `retry-after`, in milliseconds.
pub const RETRY_AFTER_MS: HeaderName = HeaderName::from_static("retry-after-ms");

/// Why sidekey refuses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RefusalKind {
    /// The request is not well formed, or ambiguous.
    BadRequest,
    /// The body is longer than allowed.
    BodyTooLarge,
    /// A budget or the tokens of the day are used up.
    InsufficientQuota,
    /// Our own fault.
    Internal,
    /// The virtual key is malformed, unknown, wrong, expired or revoked.
    InvalidKey,
    /// No virtual key.
    MissingKey,
    /// The key may not use this model.
    ModelNotAllowed,
    /// No provider key is usable now.
    NoProviderKey,
    /// No such provider or path.
    NotFound,
    /// sidekey cannot take the request now: it is shutting down, or cannot record it.
    Overloaded,
    /// The key is disabled, or the endpoint, provider or source is not allowed.
    PermissionDenied,
    /// The provider refused every one of our keys.
    ProviderKeyRejected,
    /// RPM, TPM or requests in flight.
    RateLimited,
    /// The provider did not answer in time.
    UpstreamTimeout,
    /// The provider could not be reached, or broke off before its head.
    UpstreamUnreachable,
}

/// Whether the same request could succeed later.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Retry {
    /// `x-should-retry: false`, no `retry-after`.
    Never,
    /// `x-should-retry: true`, and `retry-after` when it is known.
    Later,
    /// As `Later` when the time is known, else as `Never`.
    IfTimed,
    /// Left to the SDK.
    Default,
}

impl RefusalKind {
    /// Every kind, for tests and metrics.
    pub const ALL: [Self; 15] = [
        Self::BadRequest,
        Self::BodyTooLarge,
        Self::InsufficientQuota,
        Self::Internal,
        Self::InvalidKey,
        Self::MissingKey,
        Self::ModelNotAllowed,
        Self::NoProviderKey,
        Self::NotFound,
        Self::Overloaded,
        Self::PermissionDenied,
        Self::ProviderKeyRejected,
        Self::RateLimited,
        Self::UpstreamTimeout,
        Self::UpstreamUnreachable,
    ];

    /// The table: status, code, retry.
    const fn row(self) -> (StatusCode, &'static str, Retry) {
        match self {
            Self::BadRequest => (StatusCode::BAD_REQUEST, "invalid_request", Retry::Never),
            Self::BodyTooLarge => (StatusCode::PAYLOAD_TOO_LARGE, "request_too_large", Retry::Never),
            Self::InsufficientQuota => (StatusCode::TOO_MANY_REQUESTS, "insufficient_quota", Retry::Never),
            Self::Internal => (StatusCode::INTERNAL_SERVER_ERROR, "internal_error", Retry::Default),
            Self::InvalidKey | Self::MissingKey => (StatusCode::UNAUTHORIZED, "invalid_api_key", Retry::Never),
            Self::ModelNotAllowed => (StatusCode::FORBIDDEN, "model_not_allowed", Retry::Never),
            Self::NoProviderKey => (StatusCode::SERVICE_UNAVAILABLE, "no_provider_key", Retry::IfTimed),
            Self::NotFound => (StatusCode::NOT_FOUND, "not_found", Retry::Never),
            Self::Overloaded => (StatusCode::SERVICE_UNAVAILABLE, "overloaded", Retry::Later),
            Self::PermissionDenied => (StatusCode::FORBIDDEN, "permission_denied", Retry::Never),
            Self::ProviderKeyRejected => (StatusCode::BAD_GATEWAY, "provider_key_rejected", Retry::Never),
            Self::RateLimited => (StatusCode::TOO_MANY_REQUESTS, "rate_limit_exceeded", Retry::IfTimed),
            Self::UpstreamTimeout => (StatusCode::GATEWAY_TIMEOUT, "upstream_timeout", Retry::Default),
            Self::UpstreamUnreachable => (StatusCode::BAD_GATEWAY, "upstream_unreachable", Retry::Default),
        }
    }

    /// The status in every dialect that has no other opinion ([`Dialect::refusal_status`]).
    #[must_use]
    pub const fn status(self) -> StatusCode {
        self.row().0
    }

    /// The code, also in the ledger.
    #[must_use]
    pub const fn code(self) -> &'static str {
        self.row().1
    }
}

/// What a rate counts: OpenAI's clients find it in the error's `type`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Counted {
    /// Requests, per minute or at the same time.
    #[default]
    Requests,
    /// Tokens.
    Tokens,
}

/// A refusal by sidekey.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Why.
    pub kind: RefusalKind,
    /// For people: names the limit, its value, what is used, and when it frees. Never a key.
    pub message: String,
    /// Milliseconds until trying again makes sense; used only where the kind allows it.
    pub retry_after_ms: Option<u64>,
    /// The field of the request that is at fault.
    pub param: Option<String>,
    /// For [`RefusalKind::RateLimited`]: what was counted.
    pub counted: Counted,
    /// Shown in the body by dialects that have a place for it.
    pub request_id: Option<RequestId>,
}

impl Refusal {
    /// A refusal without details.
    #[must_use]
    pub fn new(kind: RefusalKind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
            retry_after_ms: None,
            param: None,
            counted: Counted::default(),
            request_id: None,
        }
    }

    /// Says when trying again makes sense.
    #[must_use]
    pub fn after_ms(self, retry_after_ms: Option<u64>) -> Self {
        Self { retry_after_ms, ..self }
    }

    /// Names the field at fault.
    #[must_use]
    pub fn about(self, param: impl Into<String>) -> Self {
        Self { param: Some(param.into()), ..self }
    }

    /// Says what the rate counts.
    #[must_use]
    pub fn counting(self, counted: Counted) -> Self {
        Self { counted, ..self }
    }

    /// Names the request.
    #[must_use]
    pub fn of_request(self, request_id: RequestId) -> Self {
        Self { request_id: Some(request_id), ..self }
    }

    /// Milliseconds for `retry-after`, where the kind allows it.
    #[must_use]
    pub fn retry_ms(&self) -> Option<u64> {
        match self.kind.row().2 {
            Retry::IfTimed | Retry::Later => self.retry_after_ms,
            Retry::Default | Retry::Never => None,
        }
    }

    /// What `x-should-retry` says; `None` leaves it to the SDK.
    #[must_use]
    pub fn should_retry(&self) -> Option<bool> {
        match self.kind.row().2 {
            Retry::Default => None,
            Retry::IfTimed => Some(self.retry_after_ms.is_some()),
            Retry::Later => Some(true),
            Retry::Never => Some(false),
        }
    }

    /// The whole answer, as a client of `dialect` understands it. The caller adds `x-sidekey-*`.
    #[must_use]
    pub fn response(&self, dialect: &dyn Dialect) -> Response<Bytes> {
        let mut response = Response::new(dialect.refusal_body(self));
        *response.status_mut() = dialect.refusal_status(self.kind);
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        self.put_retry(headers);
        if let Some((name, value)) = dialect.refusal_header(self.kind) {
            headers.insert(name, HeaderValue::from_static(value));
        }
        response
    }

    fn put_retry(&self, headers: &mut HeaderMap) {
        if let Some(retry) = self.should_retry() {
            headers.insert(SHOULD_RETRY, HeaderValue::from_static(if retry { "true" } else { "false" }));
        }
        if let Some(ms) = self.retry_ms() {
            headers.insert(RETRY_AFTER, HeaderValue::from(ms.div_ceil(1000).max(1)));
            headers.insert(RETRY_AFTER_MS, HeaderValue::from(ms));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::dialects;
    use super::*;

    fn header<'a>(response: &'a Response<Bytes>, name: &str) -> Option<&'a str> {
        response.headers().get(name).map(|value| value.to_str().unwrap())
    }

    #[test]
    fn every_dialect_answers_every_kind_with_its_message_in_json() {
        for dialect in dialects() {
            for kind in RefusalKind::ALL {
                let refusal = Refusal::new(kind, "a \"quoted\" reason").after_ms(Some(1500));
                let response = refusal.response(dialect);
                let name = format!("{} {kind:?}", dialect.name());
                let body: serde_json::Value = serde_json::from_slice(response.body()).expect(&name);
                assert!(body.to_string().contains("a \\\"quoted\\\" reason"), "{name}");
                assert!(response.status().is_client_error() || response.status().is_server_error(), "{name}");
                let waits =
                    matches!(kind, RefusalKind::RateLimited | RefusalKind::NoProviderKey | RefusalKind::Overloaded);
                assert_eq!(header(&response, "retry-after"), waits.then_some("2"), "{name}");
                assert_eq!(header(&response, "retry-after-ms"), waits.then_some("1500"), "{name}");
            }
        }
    }

    #[test]
    fn the_table() {
        for (kind, status, code, retry) in [
            (RefusalKind::MissingKey, 401, "invalid_api_key", Some("false")),
            (RefusalKind::InvalidKey, 401, "invalid_api_key", Some("false")),
            (RefusalKind::PermissionDenied, 403, "permission_denied", Some("false")),
            (RefusalKind::ModelNotAllowed, 403, "model_not_allowed", Some("false")),
            (RefusalKind::RateLimited, 429, "rate_limit_exceeded", Some("false")),
            (RefusalKind::InsufficientQuota, 429, "insufficient_quota", Some("false")),
            (RefusalKind::NoProviderKey, 503, "no_provider_key", Some("false")),
            (RefusalKind::ProviderKeyRejected, 502, "provider_key_rejected", Some("false")),
            (RefusalKind::UpstreamUnreachable, 502, "upstream_unreachable", None),
            (RefusalKind::UpstreamTimeout, 504, "upstream_timeout", None),
            (RefusalKind::BodyTooLarge, 413, "request_too_large", Some("false")),
            (RefusalKind::BadRequest, 400, "invalid_request", Some("false")),
            (RefusalKind::NotFound, 404, "not_found", Some("false")),
            (RefusalKind::Internal, 500, "internal_error", None),
            (RefusalKind::Overloaded, 503, "overloaded", Some("true")),
        ] {
            let response = Refusal::new(kind, "m").response(super::super::default_dialect());
            let body: serde_json::Value = serde_json::from_slice(response.body()).unwrap();
            assert_eq!((response.status().as_u16(), kind.code()), (status, code));
            assert_eq!(body["error"]["code"], code);
            assert_eq!(header(&response, "x-should-retry"), retry, "{code}");
        }
        let cooling = Refusal::new(RefusalKind::NoProviderKey, "m").after_ms(Some(1));
        assert_eq!((cooling.should_retry(), cooling.retry_ms()), (Some(true), Some(1)));
    }

    #[test]
    fn retry_after_is_rounded_up() {
        for (ms, want) in [(0, "1"), (1, "1"), (1000, "1"), (1001, "2")] {
            let response = Refusal::new(RefusalKind::RateLimited, "m")
                .after_ms(Some(ms))
                .response(super::super::default_dialect());
            assert_eq!(header(&response, "retry-after"), Some(want));
        }
    }
}
