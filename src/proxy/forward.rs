//! Sending the request, with the next candidate while the last one was refused and nothing has reached the client.
//!
//! Owns the attempts and obeying what a refusal means; leaves the meaning to `provider`, order to `select`, connections
//! to `net`.

use std::sync::Arc;
use std::time::Duration;

use http::header::{ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, HOST};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri};

use crate::clock::Nanos;
use crate::id::{KeyId, KeySource};
use crate::limit::{Consumption, Moment};
use crate::net::body::Outgoing;
use crate::net::upstream::{Pool, Received, SendError};
use crate::provider::{
    AcceptEncoding, Action, Call, FirstEvent, Meaning, TEXT_MAX, Upstream, first_event, judge, room, wants_text,
};
use crate::proxy::error::Error;
use crate::proxy::metrics::ProviderMetrics;
use crate::proxy::request::{BodyFault, Taken};
use crate::proxy::select::{Candidate, Choice};
use crate::proxy::settle::{Account, Books, Open};
use crate::proxy::{Lane, credentials};
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

/// An answer, or a failure, that is told unless a later try does better; and of an answer, by whom it was given.
#[derive(Debug)]
pub(super) struct Kept {
    told: Result<Response<Received>, Error>,
    by: Option<Server>,
}

/// What an entry says of who answered.
#[derive(Debug)]
struct Server {
    provider: Arc<str>,
    provider_key: Option<KeyId>,
    key_source: Option<KeySource>,
    metrics: Arc<ProviderMetrics>,
}

/// Tries one candidate after the other. `ready` is when the request was complete, for the entry's overhead.
pub(super) async fn forward(
    way: Way<'_>,
    mut outbound: Box<Outbound>,
    mut choice: Box<Choice>,
    books: &Books,
    account: &mut Account,
    ready: Nanos,
) -> Result<Response<Received>, Error> {
    let mut kept = None;
    if let Some(answer) = tries(way, &mut outbound, &mut choice, books, account, ready, &mut kept).await {
        return answer;
    }
    kept.map_or_else(|| Err(choice.nothing(&books.store, books.clock.now())), |kept| account.answered_by(*kept))
}

/// The same; gives what the client gets whatever else could be tried. Of what failed, `kept` holds what is worth most.
pub(super) async fn tries(
    way: Way<'_>,
    outbound: &mut Outbound,
    choice: &mut Choice,
    books: &Books,
    account: &mut Account,
    ready: Nanos,
    kept: &mut Option<Box<Kept>>,
) -> Option<Result<Response<Received>, Error>> {
    loop {
        let Try { request, last, own } = match begin(way, outbound, choice, books, account, ready) {
            Begun::Try(next) => next,
            Begun::Unfit(error) => {
                kept.get_or_insert_with(|| Box::new(Kept { told: Err(error), by: None }));
                continue;
            }
            Begun::End(error) => return error.map(Err),
        };
        let mut sent = send(way, request).await;
        let meaning = match &mut sent {
            // Nothing of ours went with it.
            Ok(_) if own => relayed(),
            Ok(response) => {
                account.learn(way.upstream, response.headers());
                meaning_of(way.upstream, response, books).await
            }
            Err(error) => error.meaning(),
        };
        account.judged(&meaning);
        if meaning.action == Action::Relay {
            return Some(sent);
        }
        let learned = match sent {
            // The provider's text may hold part of the key.
            Ok(response) if meaning.action.is_about_the_key() => {
                let status = response.status().as_u16();
                Err(Error::ProviderKeyRejected { provider: way.upstream.id.to_string(), status })
            }
            sent => sent,
        };
        // An earlier try's "come back later" tells the client more than a later one's failure.
        if learned.is_ok() || kept.as_ref().is_none_or(|kept| kept.told.is_err()) {
            *kept = Some(Box::new(account.keep(learned)));
        }
        // A request of which part was sent may have been served: only a body still held is sent again, and only because
        // no byte of an answer has come.
        if last {
            return None;
        }
    }
}

/// A request on its way to be sent.
struct Try {
    request: Box<Request<Outgoing>>,
    /// There is no other after it.
    last: bool,
    /// Nothing of ours goes with it.
    own: bool,
}

/// What became of looking for the next candidate.
enum Begun {
    Try(Try),
    /// The candidate cannot be used; another may.
    Unfit(Error),
    /// There is none, or none may be used any more.
    End(Option<Error>),
}

/// Makes the next request. No step of the future that sends it: what is only needed here would take room in all of it.
fn begin(
    way: Way<'_>,
    outbound: &mut Outbound,
    choice: &mut Choice,
    books: &Books,
    account: &mut Account,
    ready: Nanos,
) -> Begun {
    let Some((candidate, last)) = choice.next(&books.store, books.clock.now()) else { return Begun::End(None) };
    let last = last || !outbound.body.is_held();
    let own = matches!(candidate, Candidate::Own);
    let request = match outbound.attempt(way, &candidate, last) {
        Ok(Some(request)) => request,
        Ok(None) => return Begun::End(None),
        Err(error) => return Begun::Unfit(error),
    };
    match account.attempt(candidate, ready) {
        Ok(()) => Begun::Try(Try { request, last, own }),
        Err(error) => Begun::End(Some(error)),
    }
}

fn relayed() -> Meaning {
    Meaning { action: Action::Relay, wait: None, reason: String::new() }
}

/// What has not come by then is not worth holding the answer back for.
const PEEK_TIME: Duration = Duration::from_secs(5);

/// Judges an answer, reading ahead only where its head does not tell.
async fn meaning_of(upstream: &Upstream, response: &mut Response<Received>, books: &Books) -> Meaning {
    let status = response.status();
    if status.as_u16() >= 400 {
        let text = if wants_text(upstream.dialect, status) {
            Box::pin(error_text(response, PEEK_TIME)).await
        } else {
            Vec::new()
        };
        return judge(upstream, status, response.headers(), &text, books.clock.wall_ms());
    }
    let kind = response.headers().get(CONTENT_TYPE).map(HeaderValue::as_bytes).unwrap_or_default();
    if upstream.late_errors && status == StatusCode::OK && kind.starts_with(b"text/event-stream") {
        return Box::pin(late_error(upstream, response, books)).await.unwrap_or_else(relayed);
    }
    relayed()
}

/// The beginning of an error's text, decoded. Reads ahead; what has not come within `patience` is left out.
pub async fn error_text(response: &mut Response<Received>, patience: Duration) -> Vec<u8> {
    let mut clear = Clear::of(response.headers());
    let mut seen = Vec::new();
    let read = response.body_mut().peek(&mut seen, TEXT_MAX, |seen| !clear.grow(seen));
    let _ = tokio::time::timeout(patience, read).await;
    clear.text
}

/// The error a stream begins with, where it does. Its first event is waited for as the client waits for it; nothing is
/// held back beyond it.
async fn late_error(upstream: &Upstream, response: &mut Response<Received>, books: &Books) -> Option<Meaning> {
    let headers = response.headers().clone();
    let mut clear = Clear::of(&headers);
    let mut seen = Vec::new();
    let mut found = FirstEvent::Unknown;
    let body = response.body_mut();
    body.peek(&mut seen, TEXT_MAX, |seen| {
        let readable = clear.grow(seen);
        found = first_event(upstream, &headers, &clear.text, false, books.clock.wall_ms());
        !readable || found != FirstEvent::Unknown
    })
    .await;
    if found == FirstEvent::Unknown {
        found = first_event(upstream, &headers, &clear.text, true, books.clock.wall_ms());
    }
    match found {
        FirstEvent::Error(meaning) => Some(meaning),
        FirstEvent::Answer | FirstEvent::Unknown => None,
    }
}

/// What was read ahead, without its content coding.
struct Clear {
    /// `None` when nobody here knows the coding.
    decoder: Option<Decoder>,
    taken: usize,
    text: Vec<u8>,
}

impl Clear {
    fn of(headers: &HeaderMap) -> Self {
        let values = headers.get_all(CONTENT_ENCODING).iter().filter_map(|value| value.to_str().ok());
        let decoder = codings(values).map(|codings| Decoder::new(&codings));
        Self { decoder, taken: 0, text: Vec::new() }
    }

    /// Takes what is new in `seen`; false when more would be of no use.
    fn grow(&mut self, seen: &[u8]) -> bool {
        let Some(decoder) = &mut self.decoder else { return false };
        let text = &mut self.text;
        decoder.feed(&seen[self.taken..], &mut |piece| {
            let room = TEXT_MAX.saturating_sub(text.len());
            text.extend_from_slice(&piece[..piece.len().min(room)]);
        });
        self.taken = seen.len();
        decoder.failed().is_none() && text.len() < TEXT_MAX
    }
}

impl Account {
    /// Notes with what the request is sent now, and that it was not served by what it was sent with before.
    ///
    /// # Errors
    /// When that must be recorded, and cannot be.
    fn attempt(&mut self, candidate: Candidate, ready: Nanos) -> Result<(), Error> {
        let Some(open) = self.open() else { return Ok(()) };
        open.attempt = None;
        if let Candidate::Key(attempt) = candidate {
            open.entry.key_source = Some(attempt.source);
            open.entry.provider_key = attempt.key.stored_id();
            open.attempt = Some(attempt);
        }
        open.note()?;
        let now = open.books.clock.now();
        if let Some(attempt) = &mut open.attempt {
            attempt.sent(now);
        }
        open.entry.attempts += 1;
        if open.entry.attempts == 1 {
            open.entry.overhead_ns = now.saturating_sub(ready);
        } else if !open.moved {
            open.metrics.failovers.inc();
        }
        open.moved = false;
        Ok(())
    }

    /// What failed, and who it was if it answered.
    fn keep(&mut self, told: Result<Response<Received>, Error>) -> Kept {
        let open = self.open().filter(|_| told.is_ok());
        let by = open.map(|open| Server {
            provider: Arc::clone(&open.entry.provider),
            provider_key: open.entry.provider_key,
            key_source: open.entry.key_source,
            metrics: Arc::clone(&open.metrics),
        });
        Kept { told, by }
    }

    /// Tells the client what was kept; the entry names who said it, though others were tried since.
    ///
    /// # Errors
    /// What was kept, where it is one.
    pub(super) fn answered_by(&mut self, Kept { told, by }: Kept) -> Result<Response<Received>, Error> {
        if let (Some(open), Some(by)) = (self.open(), by) {
            open.metrics = by.metrics;
            open.entry.provider = by.provider;
            open.entry.provider_key = by.provider_key;
            open.entry.key_source = by.key_source;
        }
        told
    }

    /// Notes that the request goes to another provider, or under another name.
    pub(super) fn goes_to(&mut self, lane: &Lane, model: &Arc<str>, price_version: Option<Arc<str>>) {
        let Some(open) = self.open() else { return };
        open.attempt = None;
        open.moved = true;
        open.metrics = Arc::clone(&lane.metrics);
        open.called = Some(Arc::clone(model));
        open.entry.provider = Arc::clone(&lane.upstream.id);
        (open.entry.provider_key, open.entry.key_source) = (None, None);
        open.entry.price_version = price_version;
    }

    /// Reserves what a dearer target needs beyond what is reserved.
    ///
    /// # Errors
    /// When a limit has no room for it.
    pub(super) fn reserve_more(&mut self, need: Consumption, at: Moment) -> Result<(), Error> {
        let Some(permit) = self.open().and_then(|open| open.permit.as_mut()) else { return Ok(()) };
        let more = need.beyond(&permit.reserved());
        if more == Consumption::default() { Ok(()) } else { Ok(permit.grow(at, more)?) }
    }

    /// Takes what the provider says is left of the key's limits.
    fn learn(&mut self, upstream: &Upstream, headers: &HeaderMap) {
        let Some(Open { attempt: Some(attempt), books, .. }) = self.open() else { return };
        if let Some(room) = room(upstream, headers, books.clock.wall_ms()) {
            attempt.learn(room, books.clock.now());
        }
    }

    /// Tells the key what the answer means.
    fn judged(&mut self, meaning: &Meaning) {
        let Some(open) = self.open() else { return };
        open.metrics.judged(meaning.action);
        if let Some(attempt) = &open.attempt {
            attempt.judged(meaning, &open.books);
        }
    }
}

async fn send(way: Way<'_>, request: Box<Request<Outgoing>>) -> Result<Response<Received>, Error> {
    let provider = || way.upstream.id.to_string();
    let response = match way.upstream.head_timeout {
        None if way.upgrade => Box::pin(way.pool.upgrade(request)).await,
        None => way.pool.send(request).await,
        Some(limit) => {
            let sent =
                async { if way.upgrade { way.pool.upgrade(request).await } else { way.pool.send(request).await } };
            Box::pin(tokio::time::timeout(limit, sent))
                .await
                .map_err(|_| Error::UpstreamTimeout { provider: provider(), seconds: limit.as_secs() })?
        }
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
    /// Of the client's request, credentials and hop-by-hop headers already gone; `decoded` when its compression is too.
    pub(super) fn new(
        (method, mut headers): (Method, HeaderMap),
        target: Uri,
        upstream: &Upstream,
        body: Taken,
        decoded: bool,
    ) -> Self {
        if decoded {
            headers.remove(CONTENT_ENCODING);
        }
        headers.insert(HOST, upstream.authority().clone());
        if upstream.accept_encoding == Some(AcceptEncoding::Identity) {
            headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        }
        let empty = matches!(&body, Taken::Held(held) if held.is_empty());
        if empty && matches!(method, Method::PATCH | Method::POST | Method::PUT) {
            // Some servers want it said (RFC 9110 §8.6).
            headers.insert(CONTENT_LENGTH, HeaderValue::from_static("0"));
        }
        Self { method, target, headers, body }
    }

    /// The request of one attempt. The last one takes what it needs, so that a single candidate costs no copy.
    fn attempt(
        &mut self,
        way: Way<'_>,
        candidate: &Candidate,
        last: bool,
    ) -> Result<Option<Box<Request<Outgoing>>>, Error> {
        let Some(body) = self.body.attempt(last) else { return Ok(None) };
        let mut request = Box::new(Request::new(body));
        *request.method_mut() = self.method.clone();
        *request.uri_mut() = self.target.clone();
        *request.headers_mut() = if last { std::mem::take(&mut self.headers) } else { self.headers.clone() };
        let headers = request.headers_mut();
        match candidate {
            Candidate::Own => {}
            Candidate::Keyless => drop(credentials::swap_subprotocol(headers, None)),
            Candidate::Key(attempt) => {
                let secret = &attempt.secret;
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
    use flate2::Compression;
    use flate2::write::GzEncoder;
    use std::io::Write;

    use super::*;

    #[test]
    fn what_was_read_ahead_is_decoded_as_it_comes() {
        let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
        gzip.write_all(&vec![b'a'; 100_000]).unwrap();
        let coded = gzip.finish().unwrap();
        let headers = HeaderMap::from_iter([(CONTENT_ENCODING, HeaderValue::from_static("gzip"))]);
        let mut clear = Clear::of(&headers);
        assert!(clear.grow(&coded[..10]));
        assert!(!clear.grow(&coded), "more than is looked at");
        assert_eq!(clear.text.len(), TEXT_MAX);
        let unknown = HeaderMap::from_iter([(CONTENT_ENCODING, HeaderValue::from_static("compress"))]);
        assert!(!Clear::of(&unknown).grow(b"x"));
    }
}
