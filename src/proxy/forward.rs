//! Sending the request, with the next candidate while the last one was refused and nothing has reached the client.
//!
//! Owns the attempts and what a refusal of the provider means; leaves order to `select`, connections to `net`.

use std::sync::Arc;
use std::time::Duration;

use http::header::{ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_LENGTH, HOST};
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri};

use crate::net::body::Outgoing;
use crate::net::upstream::{Pool, Received, SendError};
use crate::provider::{AcceptEncoding, Call, Dialect, GEMINI, Upstream};
use crate::proxy::credentials;
use crate::proxy::error::Error;
use crate::proxy::request::{BodyFault, Taken};
use crate::proxy::select::Candidate;
use crate::scan::decode::{Decoder, codings};

/// A request ready to be sent, but for the credential.
#[derive(Debug)]
pub(super) struct Outbound {
    pub(super) method: Method,
    pub(super) target: Uri,
    pub(super) headers: HeaderMap,
    pub(super) body: Taken,
}

/// Where a request goes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Way<'a> {
    pub(super) upstream: &'a Upstream,
    pub(super) pool: &'a Arc<Pool>,
    pub(super) call: &'a Call<'static>,
    /// True for a WebSocket.
    pub(super) upgrade: bool,
}

/// Tries the candidates in order; `attempt` is told before each, and may end it.
pub(super) async fn forward(
    way: Way<'_>,
    mut outbound: Box<Outbound>,
    candidates: Vec<Candidate>,
    mut attempt: impl FnMut(&Candidate, u32) -> Result<(), Error> + Send,
) -> Result<Response<Received>, Error> {
    let count = candidates.len();
    let mut outcome = Err(Error::Internal("no candidate"));
    for (index, candidate) in candidates.into_iter().enumerate() {
        let last = index + 1 == count || !outbound.body.is_held();
        let request = match outbound.attempt(way, &candidate, last) {
            Ok(Some(request)) => request,
            Ok(None) => break,
            Err(error) => {
                outcome = outcome.or(Err(error));
                continue;
            }
        };
        attempt(&candidate, u32::try_from(index + 1).unwrap_or(u32::MAX))?;
        let mut sent = send(way, request).await;
        let meaning = match &mut sent {
            Ok(response) if may_be_googles(way.upstream, response) => {
                match Box::pin(names_bad_key(response, PEEK_TIME)).await {
                    true => Meaning::KeyRefused,
                    false => Meaning::Answer,
                }
            }
            Ok(response) => by_status(response.status()),
            Err(error) if error.is_unsent() => Meaning::Busy,
            Err(_) => Meaning::Answer,
        };
        let learned = match (sent, meaning) {
            // The provider's text may hold part of the key.
            (Ok(response), Meaning::KeyRefused) if !matches!(candidate, Candidate::Own) => {
                let status = response.status().as_u16();
                Err(Error::ProviderKeyRejected { provider: way.upstream.id.to_string(), status })
            }
            (sent, _) => sent,
        };
        // An earlier key's "come back later" tells the client more than a later key's failure.
        outcome = match (outcome, learned) {
            (Ok(busy), Err(_)) => Ok(busy),
            (_, learned) => learned,
        };
        // A request of which part was sent may have been served: only a body still held is sent again, and only because
        // no byte of an answer has come.
        if meaning == Meaning::Answer || last {
            break;
        }
    }
    outcome
}

/// What an answer says of the key it was got with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Meaning {
    /// For the client, whatever it is.
    Answer,
    /// Another key may fare better: overload, rate, spent money.
    Busy,
    /// The key is not accepted, or may not do this; another may.
    KeyRefused,
}

fn by_status(status: StatusCode) -> Meaning {
    match status.as_u16() {
        401 | 403 => Meaning::KeyRefused,
        402 | 429 | 500 | 502 | 503 | 504 | 529 => Meaning::Busy,
        _ => Meaning::Answer,
    }
}

/// Bytes of an error that are looked at.
const PEEK: usize = 16 * 1024;
/// What has not come by then is not worth holding the answer back for.
const PEEK_TIME: Duration = Duration::from_secs(5);

/// True when only the text tells whether the key is refused: Google says 400 of a key it does not know
/// (<https://ai.google.dev/gemini-api/docs/troubleshooting>).
#[must_use]
pub fn may_be_googles(upstream: &Upstream, response: &Response<Received>) -> bool {
    response.status() == StatusCode::BAD_REQUEST && upstream.dialect.name() == GEMINI.name()
}

/// True when the text says that the key is not valid. Reads ahead; what has not come within `patience` does not count.
pub async fn names_bad_key(response: &mut Response<Received>, patience: Duration) -> bool {
    let codings = codings(response.headers().get_all(CONTENT_ENCODING).iter().filter_map(|value| value.to_str().ok()));
    let mut seen = Vec::new();
    let _ = tokio::time::timeout(patience, response.body_mut().peek(&mut seen, PEEK)).await;
    let mut clear = Vec::new();
    if let Some(codings) = codings {
        Decoder::new(&codings).feed(&seen, &mut |piece| clear.extend_from_slice(piece));
    }
    memchr::memmem::find(&clear, b"API_KEY_INVALID").is_some()
}

async fn send(way: Way<'_>, request: Request<Outgoing>) -> Result<Response<Received>, Error> {
    let provider = || way.upstream.id.to_string();
    let sent =
        async { if way.upgrade { Box::pin(way.pool.upgrade(request)).await } else { way.pool.send(request).await } };
    let response = match way.upstream.head_timeout {
        None => sent.await,
        Some(limit) => Box::pin(tokio::time::timeout(limit, sent))
            .await
            .map_err(|_| Error::UpstreamTimeout { provider: provider(), seconds: limit.as_secs() })?,
    };
    response.map_err(|source| match fault_of(&source) {
        Some(BodyFault::Bad(bad)) => Error::BadRequest(bad.clone()),
        Some(BodyFault::Client) => Error::ClientBody,
        Some(BodyFault::TooLarge(limit)) => Error::BodyTooLarge { limit: *limit },
        None => Error::Unreachable { provider: provider(), source },
    })
}

/// The client's fault, where that is what ended the request to the provider.
fn fault_of(error: &SendError) -> Option<&BodyFault> {
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        if let Some(fault) = error.downcast_ref() {
            return Some(fault);
        }
        cause = error.source();
    }
    None
}

impl Outbound {
    /// `parts` of the client's request, credentials and hop-by-hop headers already gone.
    pub(super) fn new(parts: Parts, target: Uri, upstream: &Upstream, body: Taken) -> Self {
        let mut headers = parts.headers;
        headers.insert(HOST, upstream.authority().clone());
        if upstream.accept_encoding == Some(AcceptEncoding::Identity) {
            headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        }
        let empty = matches!(&body, Taken::Held(held) if held.is_empty());
        if empty && matches!(parts.method, Method::PATCH | Method::POST | Method::PUT) {
            // Some servers want it said (RFC 9110 §8.6).
            headers.insert(CONTENT_LENGTH, HeaderValue::from_static("0"));
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
        let headers = request.headers_mut();
        match candidate {
            Candidate::Own => {}
            Candidate::Keyless => drop(credentials::swap_subprotocol(headers, None)),
            Candidate::Key { secret, .. } => {
                let swapped = credentials::swap_subprotocol(headers, way.upgrade.then(|| secret.expose()));
                if !swapped && way.upstream.authenticate(way.call, headers, secret).is_err() {
                    return Err(Error::Internal("the provider key cannot stand in a header; enter it again"));
                }
            }
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
            (403, Meaning::KeyRefused),
            (404, Meaning::Answer),
            (408, Meaning::Answer),
            (429, Meaning::Busy),
            (500, Meaning::Busy),
            (501, Meaning::Answer),
            (529, Meaning::Busy),
        ] {
            assert_eq!(by_status(StatusCode::from_u16(status).unwrap()), want, "{status}");
        }
    }
}
