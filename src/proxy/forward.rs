//! Sending the request, with the next candidate while the last one was refused and nothing has reached the client.
//!
//! Owns the attempts and what a refusal of the provider means; leaves order to `select`, connections to `net`.

use std::sync::Arc;
use std::time::Duration;

use http::header::{ACCEPT_ENCODING, HOST};
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri};

use crate::net::body::Outgoing;
use crate::net::upstream::{Pool, Received};
use crate::provider::{AcceptEncoding, Call, Upstream};
use crate::proxy::credentials;
use crate::proxy::error::Error;
use crate::proxy::request::Taken;
use crate::proxy::select::Candidate;

/// A request ready to be sent, but for the credential.
#[derive(Debug)]
pub(super) struct Outbound {
    pub(super) method: Method,
    pub(super) target: Uri,
    pub(super) headers: HeaderMap,
    pub(super) body: Taken,
}

/// The answer of the provider, and with what it was got.
#[derive(Debug)]
pub(super) struct Answered {
    pub(super) response: Response<Received>,
    pub(super) candidate: Candidate,
    pub(super) attempts: u32,
}

/// Where a request goes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Way<'a> {
    pub(super) upstream: &'a Upstream,
    pub(super) pool: &'a Arc<Pool>,
    pub(super) call: &'a Call<'static>,
}

/// Tries the candidates in order; `attempt` is told before each.
pub(super) async fn forward(
    way: Way<'_>,
    mut outbound: Outbound,
    candidates: Vec<Candidate>,
    mut attempt: impl FnMut(&Candidate, u32) + Send,
) -> Result<Answered, Error> {
    let count = candidates.len();
    let mut outcome = Err(Error::Internal("no candidate"));
    for (index, candidate) in candidates.into_iter().enumerate() {
        let last = index + 1 == count || !outbound.body.is_held();
        let Some(request) = outbound.attempt(way, &candidate, last)? else { break };
        let attempts = u32::try_from(index + 1).unwrap_or(u32::MAX);
        attempt(&candidate, attempts);
        outcome = send(way, request).await.map(|response| Answered { response, candidate, attempts });
        // A request of which part was sent may have been served: only a body still held is sent again, and only because
        // no byte of an answer has come.
        let is_final = outcome.as_ref().is_ok_and(|answered| meaning(answered.response.status()) == Meaning::Answer);
        if is_final || last {
            break;
        }
    }
    let answered = outcome?;
    let own = matches!(answered.candidate, Candidate::Own);
    if meaning(answered.response.status()) == Meaning::KeyRefused && !own {
        // The provider's text may hold part of the key.
        return Err(Error::ProviderKeyRejected { provider: way.upstream.id.to_string() });
    }
    Ok(answered)
}

/// What a status says of the key it was sent with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Meaning {
    /// For the client, whatever it is.
    Answer,
    /// Another key may fare better: overload, rate, spent money.
    Busy,
    /// The key may not do this; another may.
    Forbidden,
    /// The key is not accepted.
    KeyRefused,
}

fn meaning(status: StatusCode) -> Meaning {
    match status.as_u16() {
        401 => Meaning::KeyRefused,
        403 => Meaning::Forbidden,
        402 | 429 | 500 | 502 | 503 | 504 | 529 => Meaning::Busy,
        _ => Meaning::Answer,
    }
}

async fn send(way: Way<'_>, request: Request<Outgoing>) -> Result<Response<Received>, Error> {
    let provider = || way.upstream.id.to_string();
    let sent = way.pool.send(request);
    let response = match way.upstream.head_timeout {
        None => sent.await,
        Some(limit) => timed(sent, limit).await.map_err(|seconds| Error::UpstreamTimeout { provider: provider(), seconds })?,
    };
    response.map_err(|source| Error::Unreachable { provider: provider(), source })
}

async fn timed<T>(future: impl Future<Output = T>, limit: Duration) -> Result<T, u64> {
    tokio::time::timeout(limit, future).await.map_err(|_| limit.as_secs())
}

impl Outbound {
    /// `parts` of the client's request, credentials and hop-by-hop headers already gone.
    pub(super) fn new(parts: Parts, target: Uri, upstream: &Upstream, body: Taken) -> Self {
        let mut headers = parts.headers;
        headers.insert(HOST, upstream.authority().clone());
        if upstream.accept_encoding == Some(AcceptEncoding::Identity) {
            headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        }
        Self { method: parts.method, target, headers, body }
    }

    /// The request of one attempt. The last one takes what it needs, so that a single candidate costs no copy.
    fn attempt(&mut self, way: Way<'_>, candidate: &Candidate, last: bool) -> Result<Option<Request<Outgoing>>, Error> {
        let Some(body) = self.body.attempt(last) else { return Ok(None) };
        let mut request = Request::new(body);
        *request.method_mut() = self.method.clone();
        *request.uri_mut() = self.target.clone();
        *request.headers_mut() = if last { std::mem::take(&mut self.headers) } else { self.headers.clone() };
        if let Candidate::Key { secret, .. } = candidate {
            let headers = request.headers_mut();
            if credentials::swap_subprotocol(headers, secret.expose()) {
                return Ok(Some(request));
            }
            let applied = way.upstream.authenticate(way.call, headers, secret);
            applied.map_err(|_| Error::Internal("the provider key cannot stand in a header; enter it again"))?;
        }
        Ok(Some(request))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn meanings() {
        for (status, want) in [
            (200, Meaning::Answer),
            (400, Meaning::Answer),
            (401, Meaning::KeyRefused),
            (402, Meaning::Busy),
            (403, Meaning::Forbidden),
            (404, Meaning::Answer),
            (408, Meaning::Answer),
            (429, Meaning::Busy),
            (500, Meaning::Busy),
            (501, Meaning::Answer),
            (529, Meaning::Busy),
        ] {
            assert_eq!(meaning(StatusCode::from_u16(status).unwrap()), want, "{status}");
        }
    }
}
