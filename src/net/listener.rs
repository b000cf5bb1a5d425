//! Accepting clients: one task a connection, HTTP/1.1 or HTTP/2 by the first bytes.
//!
//! Owns sockets until they close; leaves what a request means to the handler it is given.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::{Request, Response};
use http_body::Body;
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::Service;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};

use crate::net::body::BoxError;
use crate::net::drain::Watch;

/// Answers one request of one client.
pub trait Handler: Send + Sync + 'static {
    /// The body of its answers.
    type Body: Body<Data = bytes::Bytes, Error = BoxError> + Send + 'static;

    /// The answer to `request` from `peer`. Dropped when the client leaves before it is ready.
    fn handle(
        self: Arc<Self>,
        request: Request<Incoming>,
        peer: SocketAddr,
    ) -> impl Future<Output = Response<Self::Body>> + Send;
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

/// Accepts until `drain` is signalled. Each connection runs in a task of its own, which holds a watch until it ends.
pub async fn accept<H: Handler>(listener: TcpListener, handler: Arc<H>, patience: Patience, mut drain: Watch) {
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = drain.signalled() => return,
        };
        match accepted {
            Ok((tcp, peer)) => {
                let _ = tcp.set_nodelay(true);
                spawn(connection(tcp, peer, Arc::clone(&handler), patience, drain.clone()));
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

async fn connection<H: Handler>(
    tcp: TcpStream,
    peer: SocketAddr,
    handler: Arc<H>,
    patience: Patience,
    mut drain: Watch,
) {
    let sniffed = tokio::select! {
        sniffed = tokio::time::timeout(patience.header_timeout, sniff_version(tcp)) => sniffed,
        // Nothing has been asked yet.
        () = drain.signalled() => return,
    };
    let Ok(Some(io)) = sniffed else { return };
    let service = PerConnection { handler, peer };
    match io {
        Sniffed::Http1(io) => serve_http1(TokioIo::new(io), service, patience, drain).await,
        Sniffed::Http2(io) => Box::pin(serve_http2(TokioIo::new(io), service, drain)).await,
    }
}

async fn serve_http1<H: Handler>(
    io: TokioIo<Rewound>,
    service: PerConnection<H>,
    patience: Patience,
    mut drain: Watch,
) {
    let mut builder = http1::Builder::new();
    // A provider's answer without `date` is to reach the client without one.
    builder.timer(TokioTimer::new()).header_read_timeout(patience.header_timeout).auto_date_header(false);
    let mut conn = std::pin::pin!(builder.serve_connection(io, service).with_upgrades());
    tokio::select! {
        _ = conn.as_mut() => return,
        () = drain.signalled() => conn.as_mut().graceful_shutdown(),
    }
    let _ = conn.await;
}

async fn serve_http2<H: Handler>(io: TokioIo<Rewound>, service: PerConnection<H>, mut drain: Watch) {
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder.timer(TokioTimer::new()).keep_alive_interval(Some(Duration::from_secs(30)));
    builder.max_concurrent_streams(1_000).auto_date_header(false);
    let mut conn = std::pin::pin!(builder.serve_connection(io, service));
    tokio::select! {
        _ = conn.as_mut() => return,
        () = drain.signalled() => conn.as_mut().graceful_shutdown(),
    }
    let _ = conn.await;
}

/// The handler, knowing the peer.
struct PerConnection<H> {
    handler: Arc<H>,
    peer: SocketAddr,
}

impl<H: Handler> Service<Request<Incoming>> for PerConnection<H> {
    type Response = Response<H::Body>;
    type Error = std::convert::Infallible;
    // Boxed, so that an open stream does not keep the room its request's steps needed.
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        let handler = Arc::clone(&self.handler);
        let peer = self.peer;
        Box::pin(async move { Ok(handler.handle(request, peer).await) })
    }
}

enum Sniffed {
    Http1(Rewound),
    Http2(Rewound),
}

/// What tells the HTTP/2 preface (RFC 9113 §3.4) from any HTTP/1.1 request.
const PREFACE: &[u8; 4] = b"PRI ";

async fn sniff_version(mut tcp: TcpStream) -> Option<Sniffed> {
    let mut first = [0; PREFACE.len()];
    let mut len = 0;
    while len < first.len() {
        match tcp.read(&mut first[len..]).await {
            Ok(0) | Err(_) => return None,
            Ok(n) => len += n,
        }
        if first[..len] != PREFACE[..len] {
            break;
        }
    }
    let io = Rewound { first, start: 0, end: u8::try_from(len).unwrap_or(0), tcp };
    Some(if len == PREFACE.len() && first == *PREFACE { Sniffed::Http2(io) } else { Sniffed::Http1(io) })
}

/// A socket whose first bytes were looked at, to be read again.
#[derive(Debug)]
struct Rewound {
    first: [u8; PREFACE.len()],
    start: u8,
    end: u8,
    tcp: TcpStream,
}

impl AsyncRead for Rewound {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.start < self.end {
            let len = usize::from(self.end - self.start).min(buf.remaining());
            let start = usize::from(self.start);
            buf.put_slice(&self.first[start..start + len]);
            self.start += u8::try_from(len).unwrap_or(u8::MAX);
            // What follows is likely here already; one read of the head instead of two.
            let _ = Pin::new(&mut self.tcp).poll_read(cx, buf)?;
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.tcp).poll_read(cx, buf)
    }
}

impl AsyncWrite for Rewound {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tcp).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tcp).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.tcp.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_shutdown(cx)
    }
}
