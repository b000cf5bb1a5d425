//! The client of the tests: HTTP/1.1 on a socket, with every byte in view, and HTTP/2 on hyper.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::Role;

use super::http1::{Head, Headers, Length, Reader, latin1};

/// No answer of a test takes longer.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// A request to send.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub(crate) method: String,
    pub(crate) target: String,
    pub(crate) headers: Headers,
    pub(crate) body: Bytes,
}

impl Request {
    pub(crate) fn new(method: &str, target: &str) -> Self {
        Self { method: method.into(), target: target.into(), headers: Headers::default(), body: Bytes::new() }
    }

    pub(crate) fn get(target: &str) -> Self {
        Self::new("GET", target)
    }

    /// A POST of JSON.
    pub(crate) fn post(target: &str, body: impl Into<Bytes>) -> Self {
        Self::new("POST", target).header("content-type", "application/json").body(body)
    }

    pub(crate) fn header(mut self, name: &str, value: impl Into<String>) -> Self {
        self.headers.push(name, value);
        self
    }

    /// The virtual key where most SDKs put it.
    pub(crate) fn bearer(self, key: &str) -> Self {
        self.header("authorization", format!("Bearer {key}"))
    }

    pub(crate) fn body(mut self, body: impl Into<Bytes>) -> Self {
        self.body = body.into();
        self
    }

    /// The bytes of the head; `content-length` and `host` are added unless given.
    fn head(&self) -> Vec<u8> {
        let mut out: Vec<u8> = latin1(&format!("{} {} HTTP/1.1\r\n", self.method, self.target)).collect();
        let mut headers = self.headers.clone();
        if headers.get("host").is_none() {
            headers.0.insert(0, ("host".into(), "sidekey.test".into()));
        }
        let framed = headers.get("content-length").is_some() || headers.get("transfer-encoding").is_some();
        if !framed && (!self.body.is_empty() || self.method == "POST") {
            headers.push("content-length", self.body.len().to_string());
        }
        headers.write(&mut out);
        out.extend_from_slice(b"\r\n");
        out
    }
}

/// A whole answer.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: Headers,
    pub(crate) body: Vec<u8>,
    /// The body in the pieces it came in.
    pub(crate) pieces: Vec<Bytes>,
    /// False when the connection ended inside the body.
    pub(crate) complete: bool,
}

impl Answer {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)
    }

    /// The body as JSON; panics, showing it, when it is not.
    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|_| panic!("not JSON: {}", self.text()))
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The code of a refusal in the OpenAI dialect.
    pub(crate) fn code(&self) -> String {
        self.json()["error"]["code"].as_str().unwrap_or_default().to_owned()
    }

    /// The id that joins it to the ledger.
    pub(crate) fn request_id(&self) -> String {
        self.header("x-sidekey-request-id").unwrap_or_default().to_owned()
    }
}

/// One connection.
#[derive(Debug)]
pub(crate) struct Client<S = TcpStream> {
    reader: Reader<ReadHalf<S>>,
    writer: WriteHalf<S>,
}

/// The head of an answer whose body is still to be read.
#[derive(Debug)]
pub(crate) struct Streaming<'a, S = TcpStream> {
    pub(crate) status: u16,
    pub(crate) headers: Headers,
    reader: &'a mut Reader<ReadHalf<S>>,
    length: Length,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Streaming<'_, S> {
    /// The next piece of the body; `None` at its end, an error when it is truncated.
    pub(crate) async fn next(&mut self) -> io::Result<Option<Bytes>> {
        timeout(PATIENCE, self.reader.piece(&mut self.length)).await.map_err(|_| io::ErrorKind::TimedOut)?
    }

    /// Reads on until `needle` has come.
    pub(crate) async fn until(&mut self, needle: &str) -> Vec<u8> {
        let mut got = vec![];
        while memchr::memmem::find(&got, needle.as_bytes()).is_none() {
            let piece = self.next().await.unwrap_or_else(|e| panic!("before {needle:?}: {e}"));
            got.extend_from_slice(&piece.unwrap_or_else(|| panic!("the body ended before {needle:?}")));
        }
        got
    }

    /// The rest of the answer.
    pub(crate) async fn collect(mut self) -> Answer {
        let mut pieces = vec![];
        let complete = loop {
            match self.next().await {
                Ok(Some(piece)) => pieces.push(piece),
                Ok(None) => break true,
                Err(error) if error.kind() == io::ErrorKind::TimedOut => panic!("no end of the body"),
                Err(_) => break false,
            }
        };
        Answer { status: self.status, headers: self.headers, body: pieces.concat(), pieces, complete }
    }
}

impl Client {
    pub(crate) async fn connect(addr: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect(addr).await?;
        stream.set_nodelay(true)?;
        Ok(Self::over(stream))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Client<S> {
    /// On a connection that is open already.
    pub(crate) fn over(stream: S) -> Self {
        let (reader, writer) = tokio::io::split(stream);
        Self { reader: Reader::new(reader), writer }
    }

    /// Writes bytes as they are.
    pub(crate) async fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.writer.write_all(bytes).await?;
        self.writer.flush().await
    }

    /// Writes the head of `request` and leaves its body to `write`.
    pub(crate) async fn write_head(&mut self, request: &Request) -> io::Result<()> {
        self.write(&request.head()).await
    }

    /// The next head from the other side.
    pub(crate) async fn read_head(&mut self) -> io::Result<Head> {
        let head = timeout(PATIENCE, self.reader.head()).await.map_err(|_| io::ErrorKind::TimedOut)??;
        head.ok_or_else(super::http1::truncated)
    }

    /// Reads the head of the answer to a `method` already written; 1xx are passed over.
    pub(crate) async fn answer(&mut self, method: &str) -> io::Result<Streaming<'_, S>> {
        loop {
            let head = self.read_head().await?;
            let status = head.start[1].parse().map_err(|_| io::ErrorKind::InvalidData)?;
            if (100..200).contains(&status) && status != 101 {
                continue;
            }
            let length = Length::of_response(method, status, &head.headers);
            return Ok(Streaming { status, headers: head.headers, reader: &mut self.reader, length });
        }
    }

    /// Sends `request` and reads the head of the answer.
    pub(crate) async fn start(&mut self, request: &Request) -> io::Result<Streaming<'_, S>> {
        let mut bytes = request.head();
        bytes.extend_from_slice(&request.body);
        self.write(&bytes).await?;
        self.answer(&request.method).await
    }

    /// Sends `request` and reads the whole answer.
    pub(crate) async fn send(&mut self, request: &Request) -> io::Result<Answer> {
        Ok(self.start(request).await?.collect().await)
    }

    /// Asks for a WebSocket; the refusal comes back as an answer.
    pub(crate) async fn websocket(mut self, request: Request) -> Result<(Head, WebSocketStream<S>), Answer> {
        let request = request
            .header("connection", "Upgrade")
            .header("upgrade", "websocket")
            .header("sec-websocket-version", "13")
            .header("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==");
        self.write_head(&request).await.expect("the connection is open");
        let head = self.read_head().await.expect("a head");
        if head.start[1] != "101" {
            let status = head.start[1].parse().expect("a status");
            let length = Length::of_response("GET", status, &head.headers);
            let streaming = Streaming { status, headers: head.headers, reader: &mut self.reader, length };
            return Err(streaming.collect().await);
        }
        let (reader, rest) = self.reader.into_parts();
        let stream = reader.unsplit(self.writer);
        Ok((head, WebSocketStream::from_partially_read(stream, rest.to_vec(), Role::Client, None).await))
    }
}

/// Sends one request on a connection of its own.
pub(crate) async fn send(addr: SocketAddr, request: &Request) -> Answer {
    let mut client = Client::connect(addr).await.expect("the port is open");
    client.send(request).await.unwrap_or_else(|e| panic!("{} {}: {e}", request.method, request.target))
}

/// Writes `bytes` and reads all that comes back, until the other side ends or nothing more comes.
pub(crate) async fn raw(addr: SocketAddr, bytes: &[u8]) -> Vec<u8> {
    let mut client = Client::connect(addr).await.expect("the port is open");
    client.write(bytes).await.expect("the connection is open");
    let mut got = vec![];
    let mut length = Length::UntilClose;
    while let Ok(Ok(Some(piece))) = timeout(PATIENCE, client.reader.piece(&mut length)).await {
        got.extend_from_slice(&piece);
    }
    got
}

/// Sends one request over HTTP/2 with prior knowledge.
pub(crate) async fn send_h2(addr: SocketAddr, request: &Request) -> Answer {
    let stream = TcpStream::connect(addr).await.expect("the port is open");
    send_h2_over(stream, "http://sidekey.test", request).await
}

/// The same on a connection that is open already, to `origin`.
pub(crate) async fn send_h2_over<S>(stream: S, origin: &str, request: &Request) -> Answer
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.expect("a handshake");
    let driver = tokio::spawn(connection);
    let uri = format!("{origin}{}", request.target);
    let mut builder = http::Request::builder().method(request.method.as_str()).uri(uri);
    for (name, value) in &request.headers.0 {
        builder = builder.header(name, value);
    }
    let message = builder.body(Full::new(request.body.clone())).expect("a request");
    let response =
        timeout(PATIENCE, sender.send_request(message)).await.expect("an answer in time").expect("an answer");
    let (parts, mut body) = response.into_parts();
    let mut pieces = vec![];
    let mut complete = true;
    while let Some(frame) = timeout(PATIENCE, body.frame()).await.expect("an end in time") {
        match frame {
            Ok(frame) => pieces.extend(frame.into_data().ok()),
            Err(_) => complete = false,
        }
    }
    drop(sender);
    driver.abort();
    Answer { status: parts.status.as_u16(), headers: (&parts.headers).into(), body: pieces.concat(), pieces, complete }
}
