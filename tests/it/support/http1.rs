//! HTTP/1.1 as bytes: what both the scripted provider and the test client read and write.
//!
//! hyper hides spelling, order and chunk borders of what it reads; the tests must see them. Owns framing; leaves
//! scripts to `provider` and connections to `client`.

use std::io;

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt};

/// Header lines in order, spelled as received. Values are Latin-1, so that every byte survives.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Headers(pub(crate) Vec<(String, String)>);

impl Headers {
    /// The first value of `name`, in any spelling.
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v.as_str())
    }

    /// Every value of `name`, in order.
    pub(crate) fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v.as_str())
    }

    /// True when some value of `name` holds `token` in its comma-separated list.
    pub(crate) fn lists(&self, name: &str, token: &str) -> bool {
        self.all(name).flat_map(|value| value.split(',')).any(|part| part.trim().eq_ignore_ascii_case(token))
    }

    /// Appends a line.
    pub(crate) fn push(&mut self, name: impl Into<String>, value: impl Into<String>) {
        self.0.push((name.into(), value.into()));
    }

    /// The lines with lower-case names, sorted by name; several of one name keep their order.
    pub(crate) fn normal(&self) -> Vec<(String, String)> {
        let mut lines: Vec<_> = self.0.iter().map(|(n, v)| (n.to_ascii_lowercase(), v.clone())).collect();
        lines.sort_by(|a, b| a.0.cmp(&b.0));
        lines
    }

    /// Writes the lines, each with its line end.
    pub(crate) fn write(&self, out: &mut Vec<u8>) {
        for (name, value) in &self.0 {
            out.extend(latin1(name));
            out.extend_from_slice(b": ");
            out.extend(latin1(value));
            out.extend_from_slice(b"\r\n");
        }
    }
}

impl From<&http::HeaderMap> for Headers {
    fn from(map: &http::HeaderMap) -> Self {
        Self(map.iter().map(|(n, v)| (n.to_string(), text(v.as_bytes()))).collect())
    }
}

/// Bytes as Latin-1 text.
pub(crate) fn text(bytes: &[u8]) -> String {
    bytes.iter().copied().map(char::from).collect()
}

/// Latin-1 text as bytes.
pub(crate) fn latin1(text: &str) -> impl Iterator<Item = u8> {
    text.chars().map(|c| u8::try_from(u32::from(c)).unwrap_or(b'?'))
}

/// Names that belong to one connection and never cross a proxy.
pub(crate) fn is_hop_by_hop(name: &str) -> bool {
    const NAMES: [&str; 9] = [
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    ];
    NAMES.iter().any(|hop| hop.eq_ignore_ascii_case(name))
}

/// The head of a message.
#[derive(Clone, Debug)]
pub(crate) struct Head {
    /// The three parts of the start line.
    pub(crate) start: [String; 3],
    /// Its header lines.
    pub(crate) headers: Headers,
    /// As received, up to and with the empty line.
    pub(crate) raw: Bytes,
}

/// How the end of a body is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Length {
    /// After so many more bytes.
    Exact(usize),
    /// By the chunk of size 0.
    Chunked,
    /// By the end of the connection.
    UntilClose,
    /// It has ended.
    Over,
}

impl Length {
    /// Of a request.
    pub(crate) fn of_request(headers: &Headers) -> Self {
        if headers.lists("transfer-encoding", "chunked") {
            return Self::Chunked;
        }
        headers.get("content-length").and_then(|n| n.parse().ok()).map_or(Self::Over, Self::Exact)
    }

    /// Of the response to `method`.
    pub(crate) fn of_response(method: &str, status: u16, headers: &Headers) -> Self {
        if method == "HEAD" || status < 200 || status == 204 || status == 304 {
            return Self::Over;
        }
        if headers.lists("transfer-encoding", "chunked") {
            return Self::Chunked;
        }
        headers.get("content-length").and_then(|n| n.parse().ok()).map_or(Self::UntilClose, Self::Exact)
    }
}

/// Reads messages from one side of a connection.
#[derive(Debug)]
pub(crate) struct Reader<R> {
    io: R,
    buffer: BytesMut,
}

fn bad(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.to_owned())
}

/// The end of the connection inside a message: a truncation.
pub(crate) fn truncated() -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, "the connection ended inside a message")
}

impl<R: AsyncRead + Unpin> Reader<R> {
    pub(crate) fn new(io: R) -> Self {
        Self { io, buffer: BytesMut::with_capacity(64 * 1024) }
    }

    /// The reading half, and what was read and not used.
    pub(crate) fn into_parts(self) -> (R, Bytes) {
        (self.io, self.buffer.freeze())
    }

    /// Reads once; false at the end of the connection. Cancel safe.
    pub(crate) async fn fill(&mut self) -> io::Result<bool> {
        Ok(self.io.read_buf(&mut self.buffer).await? > 0)
    }

    /// The next head; `None` when the connection ends before one begins.
    pub(crate) async fn head(&mut self) -> io::Result<Option<Head>> {
        let end = loop {
            if let Some(at) = memchr::memmem::find(&self.buffer, b"\r\n\r\n") {
                break at + 4;
            }
            if !self.fill().await? {
                return if self.buffer.is_empty() { Ok(None) } else { Err(truncated()) };
            }
        };
        let raw = self.buffer.split_to(end).freeze();
        let all = text(&raw[..end - 4]);
        let mut lines = all.split("\r\n");
        let mut parts = lines.next().unwrap_or_default().splitn(3, ' ').map(str::to_owned);
        let start = [(); 3].map(|()| parts.next().unwrap_or_default());
        let mut headers = Headers::default();
        for line in lines {
            let (name, value) = line.split_once(':').ok_or_else(|| bad("a header line without a colon"))?;
            headers.push(name, value.trim());
        }
        Ok(Some(Head { start, headers, raw }))
    }

    /// The next piece of a body of `length`: a whole chunk where it is chunked, else what has arrived. `None` at
    /// its end; an error when the connection ends first. Cancel safe.
    pub(crate) async fn piece(&mut self, length: &mut Length) -> io::Result<Option<Bytes>> {
        match *length {
            Length::Over => Ok(None),
            Length::Chunked => self.chunk(length).await,
            Length::Exact(0) => {
                *length = Length::Over;
                Ok(None)
            }
            Length::Exact(left) => {
                if self.buffer.is_empty() && !self.fill().await? {
                    return Err(truncated());
                }
                let piece = self.buffer.split_to(left.min(self.buffer.len())).freeze();
                *length = Length::Exact(left - piece.len());
                Ok(Some(piece))
            }
            Length::UntilClose => {
                if self.buffer.is_empty() && !self.fill().await? {
                    *length = Length::Over;
                    return Ok(None);
                }
                Ok(Some(self.buffer.split().freeze()))
            }
        }
    }

    async fn chunk(&mut self, length: &mut Length) -> io::Result<Option<Bytes>> {
        loop {
            if let Some(line) = memchr::memmem::find(&self.buffer, b"\r\n") {
                let digits = text(&self.buffer[..line]);
                let digits = digits.split(';').next().unwrap_or_default().trim();
                let size = usize::from_str_radix(digits, 16).map_err(|_| bad("not a chunk size"))?;
                if size == 0 {
                    return self.trailers(line + 2, length).await;
                }
                if self.buffer.len() >= line + 2 + size + 2 {
                    self.buffer.advance(line + 2);
                    let data = self.buffer.split_to(size).freeze();
                    if self.buffer[..2] != b"\r\n"[..] {
                        return Err(bad("a chunk longer than its size"));
                    }
                    self.buffer.advance(2);
                    return Ok(Some(data));
                }
            }
            if !self.fill().await? {
                return Err(truncated());
            }
        }
    }

    async fn trailers(&mut self, start: usize, length: &mut Length) -> io::Result<Option<Bytes>> {
        let mut at = start;
        loop {
            match memchr::memmem::find(&self.buffer[at..], b"\r\n") {
                Some(0) => {
                    self.buffer.advance(at + 2);
                    *length = Length::Over;
                    return Ok(None);
                }
                Some(n) => at += n + 2,
                None if self.fill().await? => {}
                None => return Err(truncated()),
            }
        }
    }
}
