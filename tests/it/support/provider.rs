//! The scripted provider: answers what a test says and remembers exactly what it received.
//!
//! HTTP/1.1 is written by hand, for control of every byte; HTTP/2 is hyper's. Both are told apart by the preface.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::{SinkExt, StreamExt};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::timeout;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::Role;

use super::client::PATIENCE;
use super::http1::{Head, Headers, Length, Reader, latin1};
use super::script::{End, Framing, Message, Reply, Socket, Step};

/// A request as it reached the provider.
#[derive(Debug)]
pub(crate) struct Seen {
    pub(crate) method: String,
    /// Path and query, as received.
    pub(crate) target: String,
    pub(crate) headers: Headers,
    /// The bytes of the head; for HTTP/2 its parts written one after the other.
    pub(crate) raw_head: Bytes,
    /// Number of the connection it came on, from 0.
    pub(crate) connection: usize,
    body: Mutex<BytesMut>,
    progress: watch::Sender<Progress>,
}

/// How far one request has come.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Progress {
    /// Bytes of its body received.
    pub(crate) body: usize,
    /// The body has ended.
    pub(crate) whole: bool,
    /// The other side went away before the reply was over.
    pub(crate) cancelled: bool,
    /// The reply was sent to its end.
    pub(crate) replied: bool,
}

impl Seen {
    fn new(connection: usize, head: Head) -> Self {
        let [method, target, _] = head.start;
        Self {
            method,
            target,
            headers: head.headers,
            raw_head: head.raw,
            connection,
            body: Mutex::default(),
            progress: watch::Sender::default(),
        }
    }

    /// The body so far.
    pub(crate) fn body(&self) -> Bytes {
        Bytes::copy_from_slice(&self.body.lock().expect("no holder panics"))
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)
    }

    /// True when `needle` stands anywhere in what was received.
    pub(crate) fn contains(&self, needle: &str) -> bool {
        let find = |bytes: &[u8]| memchr::memmem::find(bytes, needle.as_bytes()).is_some();
        find(&self.raw_head) || find(&self.body.lock().expect("no holder panics"))
    }

    /// Waits until `done` holds of its progress; panics, naming `what`, when it does not in `limit`.
    pub(crate) async fn wait(&self, limit: Duration, what: &str, done: impl Fn(&Progress) -> bool) {
        let mut receiver = self.progress.subscribe();
        let waited = timeout(limit, receiver.wait_for(|progress| done(progress))).await;
        assert!(waited.is_ok(), "{} {}: not {what} in {limit:?}", self.method, self.target);
    }

    /// Waits until the other side gave this request up.
    pub(crate) async fn wait_for_cancel(&self, limit: Duration) {
        self.wait(limit, "cancelled", |progress| progress.cancelled).await;
    }

    fn grow(&self, piece: &[u8]) {
        self.body.lock().expect("no holder panics").extend_from_slice(piece);
        self.progress.send_modify(|progress| progress.body += piece.len());
    }

    fn set(&self, change: impl FnOnce(&mut Progress)) {
        self.progress.send_modify(change);
    }
}

type Handler = Box<dyn Fn(&Seen) -> Reply + Send + Sync>;

struct Shared {
    seen: watch::Sender<Vec<Arc<Seen>>>,
    queue: Mutex<VecDeque<Reply>>,
    handler: Handler,
    connections: Mutex<usize>,
}

impl Shared {
    fn record(&self, seen: &Arc<Seen>) {
        self.seen.send_modify(|list| list.push(Arc::clone(seen)));
    }

    fn reply(&self, seen: &Seen) -> Reply {
        let queued = self.queue.lock().expect("no holder panics").pop_front();
        queued.unwrap_or_else(|| (self.handler)(seen))
    }
}

/// A provider on a port of its own; it ends when dropped.
pub(crate) struct Provider {
    pub(crate) addr: SocketAddr,
    scheme: &'static str,
    shared: Arc<Shared>,
    listener: AbortHandle,
}

impl Drop for Provider {
    fn drop(&mut self) {
        self.listener.abort();
    }
}

impl Provider {
    /// Answers each request by `handler`, unless a reply was pushed.
    pub(crate) async fn start(handler: impl Fn(&Seen) -> Reply + Send + Sync + 'static) -> Self {
        Self::listen(Self::local().await, handler, None)
    }

    /// Answers every request with `reply`, unless another was pushed.
    pub(crate) async fn always(reply: impl Into<Reply>) -> Self {
        let reply = reply.into();
        Self::start(move |_| reply.clone()).await
    }

    /// Over TLS, with the certificate and the protocols of `tls`.
    pub(crate) async fn start_tls(
        tls: Arc<rustls::ServerConfig>,
        handler: impl Fn(&Seen) -> Reply + Send + Sync + 'static,
    ) -> Self {
        Self::listen(Self::local().await, handler, Some(tokio_rustls::TlsAcceptor::from(tls)))
    }

    /// The same, at a listener of the caller's.
    pub(crate) fn start_tls_at(
        listener: std::net::TcpListener,
        tls: Arc<rustls::ServerConfig>,
        handler: impl Fn(&Seen) -> Reply + Send + Sync + 'static,
    ) -> Self {
        listener.set_nonblocking(true).expect("a socket");
        let listener = TcpListener::from_std(listener).expect("a listener");
        Self::listen(listener, handler, Some(tokio_rustls::TlsAcceptor::from(tls)))
    }

    async fn local() -> TcpListener {
        TcpListener::bind("127.0.0.1:0").await.expect("a free port")
    }

    fn listen(
        listener: TcpListener,
        handler: impl Fn(&Seen) -> Reply + Send + Sync + 'static,
        tls: Option<tokio_rustls::TlsAcceptor>,
    ) -> Self {
        let addr = listener.local_addr().expect("a bound address");
        let shared = Arc::new(Shared {
            seen: watch::Sender::default(),
            queue: Mutex::default(),
            handler: Box::new(handler),
            connections: Mutex::default(),
        });
        let scheme = if tls.is_some() { "https" } else { "http" };
        let task = tokio::spawn(accept(listener, tls, Arc::clone(&shared)));
        Self { addr, scheme, shared, listener: task.abort_handle() }
    }

    /// Its base URL, without a path.
    pub(crate) fn url(&self) -> String {
        // A name, so that the certificate's check is the usual one; it resolves to the loopback everywhere.
        let host = if self.scheme == "https" { "localhost" } else { "127.0.0.1" };
        format!("{}://{host}:{}", self.scheme, self.addr.port())
    }

    /// The next request not yet answered for gets `reply`.
    pub(crate) fn push(&self, reply: impl Into<Reply>) {
        self.shared.queue.lock().expect("no holder panics").push_back(reply.into());
    }

    /// All requests so far.
    pub(crate) fn seen(&self) -> Vec<Arc<Seen>> {
        self.shared.seen.borrow().clone()
    }

    /// How many connections so far.
    pub(crate) fn connections(&self) -> usize {
        *self.shared.connections.lock().expect("no holder panics")
    }

    /// How many requests so far.
    pub(crate) fn count(&self) -> usize {
        self.shared.seen.borrow().len()
    }

    /// The request of this number, from 0, as soon as its head is there.
    pub(crate) async fn wait_for_request(&self, number: usize) -> Arc<Seen> {
        let mut receiver = self.shared.seen.subscribe();
        let waited = timeout(PATIENCE, receiver.wait_for(|list| list.len() > number)).await;
        let list = waited.unwrap_or_else(|_| panic!("request {number} never came")).expect("the sender lives");
        Arc::clone(&list[number])
    }

    /// The last request, with its whole body.
    pub(crate) fn last(&self) -> Arc<Seen> {
        self.shared.seen.borrow().last().cloned().expect("a request")
    }
}

trait Io: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Io for T {}
type Half = ReadHalf<Box<dyn Io>>;

async fn accept(listener: TcpListener, tls: Option<tokio_rustls::TlsAcceptor>, shared: Arc<Shared>) {
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        let (tls, shared) = (tls.clone(), Arc::clone(&shared));
        connections.spawn(async move {
            let number = {
                let mut count = shared.connections.lock().expect("no holder panics");
                *count += 1;
                *count - 1
            };
            // The errors are the other side's business: a test sees what was received and what came back.
            drop(connection(stream, tls, number, shared).await);
        });
        while connections.try_join_next().is_some() {}
    }
}

async fn connection(
    stream: TcpStream,
    tls: Option<tokio_rustls::TlsAcceptor>,
    number: usize,
    shared: Arc<Shared>,
) -> io::Result<()> {
    stream.set_nodelay(true)?;
    // A second handle of the same socket, for what a boxed or encrypted stream cannot say.
    let control = socket2::Socket::from(stream.as_fd().try_clone_to_owned()?);
    let Some(tls) = tls else {
        let mut preface = [0; 14];
        let read = stream.peek(&mut preface).await?;
        if preface[..read] == b"PRI * HTTP/2.0"[..] {
            return super::provider_h2::serve(Box::new(stream), number, H2(shared)).await;
        }
        return serve(Box::new(stream), &control, number, &shared).await;
    };
    let stream = tls.accept(stream).await?;
    if stream.get_ref().1.alpn_protocol() == Some(b"h2") {
        return super::provider_h2::serve(Box::new(stream), number, H2(shared)).await;
    }
    serve(Box::new(stream), &control, number, &shared).await
}

/// What the HTTP/2 side needs of the provider.
#[derive(Clone)]
pub(super) struct H2(Arc<Shared>);

impl H2 {
    pub(super) fn arrive(&self, connection: usize, head: Head) -> Arc<Seen> {
        let seen = Arc::new(Seen::new(connection, head));
        self.0.record(&seen);
        seen
    }

    pub(super) fn grow(seen: &Seen, piece: Option<&[u8]>) {
        match piece {
            Some(piece) => seen.grow(piece),
            None => seen.set(|progress| progress.whole = true),
        }
    }

    pub(super) fn end(seen: &Seen, replied: bool) {
        seen.set(|progress| if replied { progress.replied = true } else { progress.cancelled = true });
    }

    pub(super) fn reply(&self, seen: &Seen) -> Reply {
        self.0.reply(seen)
    }
}

async fn serve(io: Box<dyn Io>, control: &socket2::Socket, number: usize, shared: &Shared) -> io::Result<()> {
    let (reader, mut writer) = tokio::io::split(io);
    let mut reader = Reader::new(reader);
    while let Some(head) = reader.head().await? {
        let mut length = Length::of_request(&head.headers);
        let expects = head.headers.lists("expect", "100-continue");
        let seen = Arc::new(Seen::new(number, head));
        let reply = shared.reply(&seen);
        shared.record(&seen);
        let hasty = matches!(&reply, Reply::Http(message) if !message.reads_body);
        if !hasty {
            if expects {
                writer.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await?;
            }
            while let Some(piece) = reader.piece(&mut length).await.inspect_err(|_| seen.set(|p| p.cancelled = true))? {
                seen.grow(&piece);
            }
            seen.set(|progress| progress.whole = true);
        }
        let message = match reply {
            Reply::Http(message) => message,
            Reply::FromBody(make) => make(&seen.body()),
            Reply::Raw(bytes) => {
                writer.write_all(&bytes).await?;
                seen.set(|progress| progress.replied = true);
                return writer.shutdown().await;
            }
            Reply::WebSocket(script) => return websocket(&seen, reader, writer, script).await,
            Reply::Never => {
                while reader.fill().await.unwrap_or(false) {}
                seen.set(|progress| progress.cancelled = true);
                return Ok(());
            }
        };
        let close = message.framing == Framing::Close || message.end != End::Clean || hasty;
        let sent = tokio::select! {
            sent = write(&mut writer, &message) => sent,
            // The other side sends nothing before it has the reply: an end of the connection is a cancellation.
            () = gone(&mut reader) => Err(io::ErrorKind::ConnectionAborted.into()),
        };
        match sent {
            Ok(()) => seen.set(|progress| progress.replied = true),
            Err(error) => {
                seen.set(|progress| progress.cancelled = true);
                return Err(error);
            }
        }
        if message.end == End::Reset {
            // With no time to linger, closing sends a RST; what was sent may be lost on the way.
            return control.set_linger(Some(Duration::ZERO));
        }
        if close {
            return writer.shutdown().await;
        }
    }
    Ok(())
}

async fn gone(reader: &mut Reader<Half>) {
    while reader.fill().await.unwrap_or(false) {}
}

async fn write(writer: &mut WriteHalf<Box<dyn Io>>, message: &Message) -> io::Result<()> {
    if let Some(gate) = &message.before {
        gate.pass().await;
    }
    let reason = http::StatusCode::from_u16(message.status).ok().and_then(|s| s.canonical_reason()).unwrap_or("");
    let mut out: Vec<u8> = latin1(&format!("HTTP/1.1 {} {reason}\r\n", message.status)).collect();
    message.headers.write(&mut out);
    match message.framing {
        Framing::Chunked => out.extend_from_slice(b"Transfer-Encoding: chunked\r\n"),
        Framing::Length => {
            // A truncated body promises one byte more than it has.
            let length = message.body_len() + usize::from(message.end != End::Clean);
            out.extend(latin1(&format!("Content-Length: {length}\r\n")));
        }
        Framing::Close => out.extend_from_slice(b"Connection: close\r\n"),
        Framing::Bodiless => {}
    }
    out.extend_from_slice(b"\r\n");
    for step in &message.steps {
        match step {
            Step::Gate(gate) => {
                flush(writer, &mut out).await?;
                gate.pass().await;
            }
            Step::Chunk(bytes) if message.framing == Framing::Chunked => {
                out.extend(latin1(&format!("{:x}\r\n", bytes.len())));
                out.extend_from_slice(bytes);
                out.extend_from_slice(b"\r\n");
            }
            Step::Chunk(bytes) => out.extend_from_slice(bytes),
        }
        // Small chunks share a write, as they share a segment on a real network; their borders stay.
        if out.len() >= 4096 {
            flush(writer, &mut out).await?;
        }
    }
    if message.framing == Framing::Chunked && message.end == End::Clean {
        out.extend_from_slice(b"0\r\n\r\n");
    }
    flush(writer, &mut out).await
}

async fn flush(writer: &mut WriteHalf<Box<dyn Io>>, out: &mut Vec<u8>) -> io::Result<()> {
    writer.write_all(out).await?;
    out.clear();
    writer.flush().await
}

async fn websocket(
    seen: &Seen,
    reader: Reader<Half>,
    mut writer: WriteHalf<Box<dyn Io>>,
    script: Socket,
) -> io::Result<()> {
    let key = seen.header("sec-websocket-key").unwrap_or_default();
    let mut head = format!(
        "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: {}\r\n",
        derive_accept_key(key.as_bytes())
    );
    let asked = seen.header("sec-websocket-protocol").and_then(|list| list.split(',').next());
    if let Some(protocol) = asked {
        head += &format!("Sec-WebSocket-Protocol: {}\r\n", protocol.trim());
    }
    writer.write_all(format!("{head}\r\n").as_bytes()).await?;
    writer.flush().await?;
    let (reader, rest) = reader.into_parts();
    let io = reader.unsplit(writer);
    let mut socket = WebSocketStream::from_partially_read(io, rest.to_vec(), Role::Server, None).await;
    while let Some(Ok(message)) = socket.next().await {
        if message.is_close() {
            break;
        }
        if !(message.is_text() || message.is_binary()) {
            continue;
        }
        seen.grow(&message.clone().into_data());
        match &script {
            Socket::Echo => drop(socket.send(message).await),
            Socket::Answer(text) => drop(socket.send(text.clone().into()).await),
            Socket::Say(texts) => {
                for text in texts {
                    drop(socket.send(text.clone().into()).await);
                }
                drop(socket.close(None).await);
            }
        }
    }
    seen.set(|progress| progress.cancelled = true);
    Ok(())
}
