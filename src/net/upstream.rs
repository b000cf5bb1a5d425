//! Pooled connections to one upstream: HTTP/1.1 driven from inside the response body, HTTP/2 shared.
//!
//! Owns connections, their reuse and their end; leaves credentials, retries over keys and counting to `proxy`.
//!
//! Why the connection is driven by whoever reads the body: hyper hands body chunks over one at a time, so with a task
//! of its own for the connection each event of a stream would cost a wake-up and a write of its own. Driven inline,
//! events that arrived together leave together, and a client that goes takes the upstream connection with it.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use http::header::HOST;
use http::uri::{Authority, Scheme};
use http::{Request, Response, Uri};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};

use crate::clock::{Clock, Nanos};
use crate::net::body::Outgoing;
use crate::net::dial::{DialError, Dialer, Dialled, Origin, Stream};
use crate::net::patient::Patient;

/// Idle HTTP/1.1 connections kept per upstream; more than this were needed only in a burst.
const MAX_IDLE: usize = 256;
/// Idle this long, a connection is closed: below the 60 s after which common load balancers do so.
const IDLE_LIMIT: Duration = Duration::from_secs(50);
/// Streams on one HTTP/2 connection before another is opened: the least that RFC 9113 §6.5.2 recommends peers allow.
const MAX_STREAMS: usize = 100;

/// Why no response came.
#[derive(Debug, thiserror::Error)]
pub enum SendError {
    /// Nothing was sent.
    #[error(transparent)]
    Dial(#[from] DialError),
    /// The connection failed; the upstream may have seen the request.
    #[error("{0}")]
    Http(#[from] hyper::Error),
}

/// The connections to one [`Origin`].
#[derive(Debug)]
pub struct Pool {
    origin: Origin,
    dialer: Dialer,
    connect_timeout: Duration,
    clock: Clock,
    http1: Mutex<Vec<Http1>>,
    http2: Mutex<Vec<Http2>>,
}

type Drive = http1::Connection<TokioIo<Patient<Stream>>, Outgoing>;

/// An HTTP/1.1 connection and the future that moves its bytes.
#[derive(Debug)]
struct Http1 {
    sender: http1::SendRequest<Outgoing>,
    /// `None` once it has ended: kept any longer, it would hold a request that it can no longer send.
    drive: Option<Pin<Box<Drive>>>,
    idle_since: Nanos,
}

/// Moves bytes; true while the connection is open.
fn poll_open(drive: &mut Option<Pin<Box<Drive>>>, cx: &mut Context<'_>) -> bool {
    if drive.as_mut().is_some_and(|drive| drive.as_mut().poll(cx).is_ready()) {
        *drive = None;
    }
    drive.is_some()
}

/// A shared HTTP/2 connection; its task ends when the last sender has gone.
#[derive(Clone, Debug)]
struct Http2 {
    sender: http2::SendRequest<Outgoing>,
    streams: Arc<AtomicUsize>,
}

/// Counts one stream of a connection for as long as it is open.
#[derive(Debug)]
struct StreamCount(Arc<AtomicUsize>);

impl Drop for StreamCount {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Pool {
    /// An empty pool.
    #[must_use]
    pub fn new(origin: Origin, dialer: Dialer, connect_timeout: Duration, clock: Clock) -> Self {
        Self { origin, dialer, connect_timeout, clock, http1: Mutex::default(), http2: Mutex::default() }
    }

    /// Where its connections go.
    #[must_use]
    pub fn origin(&self) -> &Origin {
        &self.origin
    }

    /// Sends `request` (origin-form target, `host` set) and resolves with the response's head.
    ///
    /// A kept connection that turns out to be closed before anything was written to it is passed over; a request of
    /// which anything was written is never sent twice.
    ///
    /// # Errors
    /// See [`SendError`].
    ///
    /// # Cancel safety
    /// Dropping the future, or the body later, closes the connection or resets the stream: the upstream stops.
    pub async fn send(self: &Arc<Self>, mut request: Box<Request<Outgoing>>) -> Result<Response<Received>, SendError> {
        // What is rarely or long waited for is boxed, and the request always is: the future of every request would have
        // room for it otherwise, at each of its steps.
        if let Some(shared) = self.shared() {
            return Box::pin(self.send_http2(shared, request)).await;
        }
        while let Some(kept) = self.checkout() {
            match self.send_http1(kept, request).await {
                Ok(response) => return Ok(response),
                Err((_, Some(unsent))) => request = Box::new(unsent),
                Err((error, None)) => return Err(error.into()),
            }
        }
        Box::pin(self.send_fresh(request)).await
    }

    /// Sends on a new connection.
    async fn send_fresh(self: &Arc<Self>, request: Box<Request<Outgoing>>) -> Result<Response<Received>, SendError> {
        let Dialled { stream, http2 } = self.dialer.dial(&self.origin, self.connect_timeout).await?;
        if http2 {
            let shared = self.open_http2(stream).await?;
            return self.send_http2(shared, request).await;
        }
        let (sender, drive) = http1::Builder::new().handshake(TokioIo::new(Patient::new(stream))).await?;
        let fresh = Http1 { sender, drive: Some(Box::pin(drive)), idle_since: 0 };
        self.send_http1(fresh, request).await.map_err(|(error, _)| error.into())
    }

    /// Sends an upgrade request on a connection of its own; the upgraded stream comes from `hyper::upgrade::on`.
    ///
    /// # Errors
    /// See [`SendError`].
    pub async fn upgrade(&self, request: Box<Request<Outgoing>>) -> Result<Response<Received>, SendError> {
        let plain = Origin { http2: false, ..self.origin.clone() };
        let Dialled { stream, .. } = self.dialer.dial(&plain, self.connect_timeout).await?;
        let (mut sender, drive) = http1::Builder::new().handshake(TokioIo::new(Patient::new(stream))).await?;
        spawn(async move {
            let _ = drive.with_upgrades().await;
        });
        let response = sender.send_request(*request).await?;
        Ok(response.map(|incoming| Received { held: VecDeque::new(), incoming, kind: Kind::Http1(None) }))
    }

    /// Closes connections that are idle too long or that the upstream has closed; called now and then, because an
    /// idle connection that nobody polls does not see its end.
    pub fn sweep(&self) {
        let oldest = self.oldest();
        let mut cx = Context::from_waker(Waker::noop());
        lock(&self.http1).retain_mut(|kept| kept.idle_since >= oldest && poll_open(&mut kept.drive, &mut cx));
        lock(&self.http2).retain(|shared| {
            !shared.sender.is_closed() && (shared.streams.load(Ordering::Relaxed) > 0 || shared.sender.is_ready())
        });
    }

    /// True when it holds no connection.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        lock(&self.http1).is_empty() && lock(&self.http2).is_empty()
    }

    /// The connection used last, so that the others may grow idle and be closed.
    fn checkout(&self) -> Option<Http1> {
        let mut cx = Context::from_waker(Waker::noop());
        let oldest = self.oldest();
        loop {
            let mut kept = lock(&self.http1).pop()?;
            // Sees a close, or bytes nobody asked for, that came while it lay idle.
            if kept.idle_since >= oldest && poll_open(&mut kept.drive, &mut cx) && kept.sender.is_ready() {
                return Some(kept);
            }
        }
    }

    /// What is idle since before this is closed.
    fn oldest(&self) -> Nanos {
        self.clock.now().saturating_sub(u64::try_from(IDLE_LIMIT.as_nanos()).unwrap_or(Nanos::MAX))
    }

    fn checkin(&self, mut conn: Http1) {
        conn.idle_since = self.clock.now();
        let mut idle = lock(&self.http1);
        if idle.len() < MAX_IDLE {
            idle.push(conn);
        }
    }

    async fn send_http1(
        self: &Arc<Self>,
        mut conn: Http1,
        request: Box<Request<Outgoing>>,
    ) -> Result<Response<Received>, (hyper::Error, Option<Request<Outgoing>>)> {
        let mut answer = std::pin::pin!(conn.sender.try_send_request(*request));
        let drive = &mut conn.drive;
        let sent = std::future::poll_fn(|cx| {
            poll_open(drive, cx);
            answer.as_mut().poll(cx)
        })
        .await;
        match sent {
            Ok(response) => {
                let lent = if conn.drive.is_none() { None } else { Some((conn, Arc::clone(self))) };
                Ok(response.map(|incoming| Received { held: VecDeque::new(), incoming, kind: Kind::Http1(lent) }))
            }
            Err(mut failed) => {
                let unsent = failed.take_message();
                Err((failed.into_error(), unsent))
            }
        }
    }

    /// An HTTP/2 connection with room for one more stream.
    fn shared(&self) -> Option<Http2> {
        if !self.origin.http2 {
            return None;
        }
        let mut all = lock(&self.http2);
        all.retain(|shared| !shared.sender.is_closed());
        all.iter().find(|shared| shared.streams.load(Ordering::Relaxed) < MAX_STREAMS).cloned()
    }

    async fn open_http2(&self, stream: Stream) -> Result<Http2, SendError> {
        let (sender, drive) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
        spawn(async move {
            let _ = drive.await;
        });
        let shared = Http2 { sender, streams: Arc::default() };
        lock(&self.http2).push(shared.clone());
        Ok(shared)
    }

    async fn send_http2(
        &self,
        mut shared: Http2,
        mut request: Box<Request<Outgoing>>,
    ) -> Result<Response<Received>, SendError> {
        shared.streams.fetch_add(1, Ordering::Relaxed);
        let count = StreamCount(Arc::clone(&shared.streams));
        // Scheme and authority are pseudo-headers here (RFC 9113 §8.3.1), taken from the target.
        let mut target = std::mem::take(request.uri_mut()).into_parts();
        target.scheme = Some(if self.origin.tls { Scheme::HTTPS } else { Scheme::HTTP });
        target.authority =
            request.headers_mut().remove(HOST).and_then(|host| Authority::try_from(host.as_bytes()).ok());
        *request.uri_mut() = Uri::from_parts(target).unwrap_or_default();
        shared.sender.ready().await?;
        let response = shared.sender.send_request(*request).await?;
        Ok(response.map(|incoming| Received { held: VecDeque::new(), incoming, kind: Kind::Http2(count) }))
    }
}

#[expect(clippy::disallowed_methods, reason = "net owns the tasks of its connections; they end with them")]
fn spawn(task: impl Future<Output = ()> + Send + 'static) {
    tokio::spawn(task);
}

/// No code panics while it holds these locks, so a poisoned one is as good as any.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A response body as it arrives. Dropped before its end, it closes the connection or resets the stream.
#[derive(Debug)]
pub struct Received {
    /// Read ahead by [`Received::peek`].
    held: VecDeque<Result<Frame<Bytes>, hyper::Error>>,
    incoming: Incoming,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    /// The connection lent to this body, until it ends.
    Http1(Option<(Http1, Arc<Pool>)>),
    Http2(#[expect(dead_code, reason = "held to count the stream until the body is dropped")] StreamCount),
}

impl Received {
    /// Reads ahead and adds a copy to `seen`, until `enough` says so, at most about `limit` bytes. The reader gets
    /// everything nevertheless, an error too.
    ///
    /// # Cancel safety
    /// Dropping it loses nothing.
    pub async fn peek(&mut self, seen: &mut Vec<u8>, limit: usize, mut enough: impl FnMut(&[u8]) -> bool) {
        while seen.len() < limit && !self.incoming.is_end_stream() {
            let Some(frame) = std::future::poll_fn(|cx| self.poll_upstream(cx)).await else { break };
            if let Ok(Some(data)) = frame.as_ref().map(Frame::data_ref) {
                seen.extend_from_slice(&data[..data.len().min(limit - seen.len())]);
            }
            let ends = frame.is_err() || enough(seen);
            self.held.push_back(frame);
            if ends {
                break;
            }
        }
    }

    /// The next frame from the connection.
    fn poll_upstream(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let polled = match self.kind {
            Kind::Http1(_) => self.poll_http1(cx),
            Kind::Http2(_) => Pin::new(&mut self.incoming).poll_frame(cx),
        };
        match &polled {
            Poll::Ready(None) => self.give_back(cx),
            // With a known length the reader may not ask again.
            Poll::Ready(Some(Ok(_))) if self.incoming.is_end_stream() => self.give_back(cx),
            Poll::Ready(Some(Err(_))) => self.kind = Kind::Http1(None),
            _ => {}
        }
        polled
    }

    /// Gives a connection whose response has ended back to its pool.
    fn give_back(&mut self, cx: &mut Context<'_>) {
        let Kind::Http1(lent) = &mut self.kind else { return };
        let Some((mut conn, pool)) = lent.take() else { return };
        // The first poll takes in the end of the message, the second finds the connection ready for the next one.
        for _ in 0..2 {
            if !poll_open(&mut conn.drive, cx) {
                return;
            }
            if conn.sender.is_ready() {
                return pool.checkin(conn);
            }
        }
    }

    fn poll_http1(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let first = Pin::new(&mut self.incoming).poll_frame(cx);
        let Kind::Http1(Some((conn, _))) = &mut self.kind else { return first };
        if first.is_ready() {
            return first;
        }
        if !poll_open(&mut conn.drive, cx) {
            self.kind = Kind::Http1(None);
        }
        Pin::new(&mut self.incoming).poll_frame(cx)
    }
}

impl Body for Received {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        match self.held.pop_front() {
            Some(held) => Poll::Ready(Some(held)),
            None => self.poll_upstream(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.held.is_empty() && self.incoming.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let data = |held: &Result<Frame<Bytes>, _>| held.as_ref().ok().and_then(Frame::data_ref).map_or(0, Bytes::len);
        let held = self.held.iter().map(|held| data(held) as u64).sum::<u64>();
        let mut hint = self.incoming.size_hint();
        if let Some(upper) = hint.upper() {
            hint.set_upper(upper + held);
        }
        hint.set_lower(hint.lower() + held);
        hint
    }
}

impl Drop for Received {
    fn drop(&mut self) {
        // A response with no body is never polled; its connection is as good as new.
        if self.incoming.is_end_stream() {
            self.give_back(&mut Context::from_waker(Waker::noop()));
        }
    }
}
