//! Accepting clients: one task a connection, TLS, HTTP/1.1 or HTTP/2 by the first bytes.
//!
//! Owns sockets until they close; leaves what a request means, and whose TLS is opened, to the handler it is given.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::header::{CONNECTION, HeaderValue};
use http::{Request, Response, StatusCode, Version};
use http_body::Body;
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::Service;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};

use crate::net::ahead::Ahead;
use crate::net::body::BoxError;
use crate::net::drain::{Drain, Leaving, Watch};
use crate::net::sni::HANDSHAKE;

/// An answer to come. Boxed, so that an open stream does not keep the room its request's steps needed; what is moved into
/// the box is moved with all that room, so it should be little.
pub type Answering<B> = Pin<Box<dyn Future<Output = Response<B>> + Send>>;

/// Answers one request of one client.
pub trait Handler: Send + Sync + 'static {
    /// The body of its answers.
    type Body: Body<Data = bytes::Bytes, Error = BoxError> + Send + 'static;

    /// The answer to `request` from `peer`. Dropped when the client leaves before it is ready. What it needs of `self`
    /// it takes along, so that a handler can give each request to whoever is in charge then.
    fn handle(self: &Arc<Self>, request: Request<Incoming>, peer: SocketAddr) -> Answering<Self::Body>;

    /// How patient it is with a connection that is new.
    fn patience(&self) -> Patience;

    /// Takes over a connection that begins with TLS; unless said otherwise it is closed.
    fn greet(self: Arc<Self>, io: Ahead<TcpStream>, peer: SocketAddr, drain: Watch) -> impl Future<Output = ()> + Send {
        drop((io, peer, drain));
        std::future::ready(())
    }
}

/// How patient a listener is.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// For a request's head, from the end of the one before: also how long a kept connection may be idle.
    pub header_timeout: Duration,
}

/// Connections that may wait to be accepted: a burst is not to be turned away while a request is served.
const BACKLOG: i32 = 1024;

/// Opens a listening socket, non-blocking; port 0 lets the system choose.
///
/// # Errors
/// When the address is taken or not ours.
pub fn bind(address: SocketAddr) -> io::Result<std::net::TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    // A restart finds the port still in TIME_WAIT.
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Accepts until dropped. Each connection runs in a task of its own, which holds a watch of `drain` until it ends.
pub async fn accept<H: Handler>(listener: TcpListener, handler: Arc<H>, drain: &Drain) {
    accept_each(listener, drain, |tcp, peer, drain| connection(tcp, peer, Arc::clone(&handler), drain)).await;
}

/// The same, for connections that `serve` makes something of.
///
/// # Cancel safety
/// No connection that was accepted is lost.
pub async fn accept_each<F>(listener: TcpListener, drain: &Drain, serve: impl Fn(TcpStream, SocketAddr, Watch) -> F)
where
    F: Future<Output = ()> + Send + 'static,
{
    loop {
        match listener.accept().await {
            Ok((tcp, peer)) => {
                let _ = tcp.set_nodelay(true);
                spawn(serve(tcp, peer, drain.watch()));
            }
            // Out of descriptors: trying again at once would spin. Anything else concerns one client only.
            Err(error) if is_shortage(&error) => {
                tracing::warn!(%error, "cannot accept; waiting");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            Err(_) => {}
        }
    }
}

fn is_shortage(error: &io::Error) -> bool {
    use rustix::io::Errno;
    [Errno::MFILE, Errno::NFILE, Errno::NOMEM, Errno::NOBUFS]
        .iter()
        .any(|shortage| error.raw_os_error() == Some(shortage.raw_os_error()))
}

#[expect(clippy::disallowed_methods, reason = "net owns the tasks of its connections; drain waits for them")]
fn spawn(task: impl Future<Output = ()> + Send + 'static) {
    tokio::spawn(task);
}

async fn connection<H: Handler>(tcp: TcpStream, peer: SocketAddr, handler: Arc<H>, mut drain: Watch) {
    let patience = handler.patience();
    let mut io = Ahead::new(Vec::new(), tcp);
    let sniffed = tokio::select! {
        sniffed = tokio::time::timeout(patience.header_timeout, sniff(&mut io)) => sniffed,
        // Nothing has been asked yet.
        () = has_closed(&mut drain) => return,
    };
    let service = |handler| PerConnection { handler, peer, leaving: drain.glance() };
    match sniffed {
        Ok(Some(Spoken::Tls)) => Box::pin(handler.greet(io, peer, drain)).await,
        Ok(Some(Spoken::Http1)) => serve_http1(io, service(handler), patience, drain).await,
        Ok(Some(Spoken::Http2)) => Box::pin(serve_http2(io, service(handler), drain)).await,
        Ok(None) | Err(_) => {}
    }
}

/// What is accepted while all is closing has this long to say what it wants.
const FIRST_WORDS: Duration = Duration::from_millis(500);

async fn has_closed(drain: &mut Watch) {
    drain.signalled().await;
    tokio::time::sleep(FIRST_WORDS).await;
}

/// Serves a connection that is open already: HTTP/2 where that was agreed on, else what its first bytes say, which is
/// HTTP and nothing else. Resolves when it has ended.
pub async fn serve<S, H>(io: S, http2: bool, peer: SocketAddr, handler: Arc<H>, drain: Watch)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    H: Handler,
{
    let mut io = Ahead::new(Vec::new(), io);
    let patience = handler.patience();
    let service = PerConnection { handler, peer, leaving: drain.glance() };
    if http2 {
        return Box::pin(serve_http2(io, service, drain)).await;
    }
    match tokio::time::timeout(patience.header_timeout, sniff(&mut io)).await {
        Ok(Some(Spoken::Http1)) => serve_http1(io, service, patience, drain).await,
        Ok(Some(Spoken::Http2)) => Box::pin(serve_http2(io, service, drain)).await,
        Ok(Some(Spoken::Tls) | None) | Err(_) => {}
    }
}

async fn serve_http1<S, H>(io: Ahead<S>, service: PerConnection<H>, patience: Patience, mut drain: Watch)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    H: Handler,
{
    let mut builder = http1::Builder::new();
    // A provider's answer without `date` is to reach the client without one.
    builder.timer(TokioTimer::new()).header_read_timeout(patience.header_timeout).auto_date_header(false);
    let mut conn = std::pin::pin!(builder.serve_connection(TokioIo::new(io), service).with_upgrades());
    // One that comes when the end has begun is served once: its answer says so. hyper would close it unheard.
    if !drain.glance().has_begun() {
        tokio::select! {
            _ = conn.as_mut() => return,
            () = drain.signalled() => conn.as_mut().graceful_shutdown(),
        }
    }
    let _ = conn.await;
}

async fn serve_http2<S, H>(io: Ahead<S>, service: PerConnection<H>, mut drain: Watch)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    H: Handler,
{
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder.timer(TokioTimer::new()).keep_alive_interval(Some(Duration::from_secs(30)));
    builder.max_concurrent_streams(1_000).auto_date_header(false);
    let mut conn = std::pin::pin!(builder.serve_connection(TokioIo::new(io), service));
    let late = drain.glance().has_begun();
    // GOAWAY loses nothing (RFC 9113 §6.8), so it is sent as soon as the end has begun; but not before the first words.
    let leaving = async {
        drain.leaving().await;
        if late {
            tokio::time::sleep(FIRST_WORDS).await;
        }
    };
    tokio::select! {
        _ = conn.as_mut() => return,
        () = leaving => conn.as_mut().graceful_shutdown(),
    }
    let _ = conn.await;
}

/// The handler, knowing the peer.
struct PerConnection<H> {
    handler: Arc<H>,
    peer: SocketAddr,
    leaving: Leaving,
}

impl<H: Handler> Service<Request<Incoming>> for PerConnection<H> {
    type Response = Response<H::Body>;
    type Error = std::convert::Infallible;
    type Future = Reply<H::Body>;

    fn call(&self, request: Request<Incoming>) -> Reply<H::Body> {
        let is_last = self.leaving.has_begun() && request.version() < Version::HTTP_2;
        Reply { answering: self.handler.handle(request, self.peer), is_last }
    }
}

/// A handler's answer, with what the connection adds to it.
struct Reply<B> {
    answering: Answering<B>,
    is_last: bool,
}

impl<B> Future for Reply<B> {
    type Output = Result<Response<B>, std::convert::Infallible>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let answer = std::task::ready!(self.answering.as_mut().poll(cx));
        Poll::Ready(Ok(if self.is_last { last(answer) } else { answer }))
    }
}

/// Says that a connection's answer is its last, unless the connection becomes something else with it.
fn last<B>(mut response: Response<B>) -> Response<B> {
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

/// What a client speaks.
enum Spoken {
    Http1,
    Http2,
    Tls,
}

/// What tells the HTTP/2 preface (RFC 9113 §3.4) from any HTTP/1.1 request.
const PREFACE: &[u8; 4] = b"PRI ";

/// `None` when it says nothing, or nothing that is known here.
async fn sniff<S: AsyncRead + Unpin>(io: &mut Ahead<S>) -> Option<Spoken> {
    match io.peek(PREFACE.len(), PREFACE).await.ok()? {
        b"PRI " => Some(Spoken::Http2),
        [HANDSHAKE, ..] => Some(Spoken::Tls),
        // A method's letter (RFC 9110 §5.6.2), or an empty line before it, which servers pass over (RFC 9112 §2.2).
        [first, ..] if first.is_ascii_graphic() || b"\r\n".contains(first) => Some(Spoken::Http1),
        _ => None,
    }
}
