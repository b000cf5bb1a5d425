//! Why the proxy port refuses what is not a request to a provider, and how it says so.
//!
//! Owns the wording and the status; leaves refusals of requests to `proxy`.

use bytes::Bytes;
use http::header::{ALLOW, HeaderValue, PROXY_AUTHENTICATE};
use http::{HeaderName, Response, StatusCode};

use crate::ingress::FrontBody;
use crate::ingress::metrics::Became;
use crate::net::ca::CaError;
use crate::net::dial::DialError;
use crate::net::upstream::SendError;
use crate::provider::{Refusal, RefusalKind, default_dialect};

/// Why not.
#[derive(Debug, thiserror::Error)]
pub(super) enum Refused {
    #[error("the local CA: {0}")]
    Ca(#[from] CaError),
    #[error("{host} is no provider's host, and connect.other_hosts is \"deny\"")]
    Denied { host: String },
    #[error("{0}")]
    Dial(DialError),
    #[error("CONNECT inside a tunnel; connect to the proxy itself")]
    Inside,
    #[error("{0}")]
    Malformed(&'static str),
    #[error("this connection is for {host}, and the request names {named:?}; open another for it")]
    Misdirected { host: String, named: String },
    #[error(
        "a client from elsewhere must show a virtual key to use this proxy: write it into the proxy's URL, \
         http://key:<virtual key>@host:port"
    )]
    Nobody,
    #[error("{host}:{port} is this sidekey itself")]
    Ourselves { host: String, port: u16 },
    #[error("port {port} of {host} is not open to this proxy; {hint}")]
    Port { host: String, port: u16, hint: &'static str },
    #[error("{0}")]
    Send(SendError),
    #[error("CONNECT over HTTP/2; use HTTP/1.1 towards the proxy")]
    Version,
}

impl From<DialError> for Refused {
    fn from(error: DialError) -> Self {
        Self::Dial(error)
    }
}

impl From<SendError> for Refused {
    fn from(error: SendError) -> Self {
        match error {
            SendError::Dial(error) => Self::Dial(error),
            error @ SendError::Http(_) => Self::Send(error),
        }
    }
}

/// Marks what is sidekey's own answer and not the other side's.
const REFUSED: HeaderName = HeaderName::from_static("x-sidekey-refused");

impl Refused {
    pub(super) fn became(&self) -> Became {
        match self {
            Self::Misdirected { .. } => Became::Mismatched,
            Self::Dial(DialError::Forbidden { .. } | DialError::Ourselves { .. }) => Became::Refused,
            Self::Dial(_) | Self::Send(_) => Became::Unreached,
            _ => Became::Refused,
        }
    }

    fn status(&self) -> StatusCode {
        match self {
            Self::Ca(_) | Self::Send(_) => StatusCode::BAD_GATEWAY,
            Self::Denied { .. } | Self::Ourselves { .. } | Self::Port { .. } => StatusCode::FORBIDDEN,
            Self::Dial(DialError::Forbidden { .. } | DialError::Ourselves { .. }) => StatusCode::FORBIDDEN,
            Self::Dial(DialError::Timeout { .. }) => StatusCode::GATEWAY_TIMEOUT,
            Self::Dial(_) => StatusCode::BAD_GATEWAY,
            Self::Inside | Self::Version => StatusCode::METHOD_NOT_ALLOWED,
            Self::Malformed(_) => StatusCode::BAD_REQUEST,
            Self::Misdirected { .. } => StatusCode::MISDIRECTED_REQUEST,
            Self::Nobody => StatusCode::PROXY_AUTHENTICATION_REQUIRED,
        }
    }

    fn kind(&self) -> RefusalKind {
        match self.status() {
            StatusCode::BAD_GATEWAY => RefusalKind::UpstreamUnreachable,
            StatusCode::GATEWAY_TIMEOUT => RefusalKind::UpstreamTimeout,
            StatusCode::FORBIDDEN => RefusalKind::PermissionDenied,
            StatusCode::PROXY_AUTHENTICATION_REQUIRED => RefusalKind::MissingKey,
            _ => RefusalKind::BadRequest,
        }
    }

    /// The answer.
    pub(super) fn response(&self) -> Response<FrontBody> {
        let refusal = Refusal::new(self.kind(), self.to_string());
        let mut response = refusal.response(default_dialect()).map(|body: Bytes| FrontBody::own(body));
        *response.status_mut() = self.status();
        let headers = response.headers_mut();
        headers.insert(REFUSED, HeaderValue::from_static(self.kind().code()));
        match self.status() {
            StatusCode::PROXY_AUTHENTICATION_REQUIRED => {
                headers.insert(PROXY_AUTHENTICATE, HeaderValue::from_static("Basic realm=\"sidekey\""));
            }
            StatusCode::METHOD_NOT_ALLOWED => {
                headers.insert(ALLOW, HeaderValue::from_static("GET, POST, PUT, PATCH, DELETE, HEAD, OPTIONS"));
            }
            _ => {}
        }
        response
    }
}
