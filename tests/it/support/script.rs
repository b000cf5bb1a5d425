//! What a scripted provider answers: a [`Reply`], exact to the byte and to the chunk.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::Semaphore;

use super::http1::Headers;

/// Holds a reply back until a test opens it.
#[derive(Clone, Debug)]
pub(crate) struct Gate(Arc<Semaphore>);

impl Gate {
    /// A closed one.
    pub(crate) fn new() -> Self {
        Self(Arc::new(Semaphore::new(0)))
    }

    /// Lets everyone pass, now and later.
    pub(crate) fn open(&self) {
        self.0.add_permits(Semaphore::MAX_PERMITS / 2);
    }

    /// Waits until it is open.
    pub(crate) async fn pass(&self) {
        drop(self.0.acquire().await);
    }
}

/// One thing done while a body is sent.
#[derive(Clone, Debug)]
pub(crate) enum Step {
    /// Sends these bytes as one chunk.
    Chunk(Bytes),
    /// Waits; the client is watched meanwhile.
    Gate(Gate),
}

/// How the length of a body is told (HTTP/1.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Framing {
    /// `transfer-encoding: chunked`, a chunk a step.
    Chunked,
    /// `content-length`.
    Length,
    /// Neither: the connection's end is the body's.
    Close,
    /// Neither, and no body: 204, 304, answers to HEAD. Headers are sent as given.
    Bodiless,
}

/// How a reply ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// As its framing asks.
    Clean,
    /// The connection ends where a clean reply would go on.
    Truncate,
    /// The connection is reset there.
    Reset,
}

/// What to do with a WebSocket.
#[derive(Clone, Debug)]
pub(crate) enum Socket {
    /// Sends back what comes.
    Echo,
    /// Answers the first message with these texts, then closes.
    Say(Vec<String>),
    /// Answers each message with this text.
    Answer(String),
}

/// Makes a message of a request's body.
pub(crate) type FromBody = Arc<dyn Fn(&[u8]) -> Message + Send + Sync>;

/// One answer.
#[derive(Clone)]
pub(crate) enum Reply {
    /// A message chosen when the request's body is known.
    FromBody(FromBody),
    /// A message.
    Http(Message),
    /// These bytes on the wire, then the end of the connection.
    Raw(Bytes),
    /// 101, then messages; the subprotocol is the first one asked for.
    WebSocket(Socket),
    /// No answer: the connection stays open until the other side ends it.
    Never,
}

/// A message to send.
#[derive(Clone, Debug)]
pub(crate) struct Message {
    pub(crate) status: u16,
    pub(crate) headers: Headers,
    pub(crate) steps: Vec<Step>,
    pub(crate) framing: Framing,
    pub(crate) end: End,
    /// Waited for before the head is sent.
    pub(crate) before: Option<Gate>,
    /// False answers before the request's body was read.
    pub(crate) reads_body: bool,
}

impl Message {
    pub(crate) fn new(status: u16) -> Self {
        Self {
            status,
            headers: Headers::default(),
            steps: vec![],
            framing: Framing::Length,
            end: End::Clean,
            before: None,
            reads_body: true,
        }
    }

    /// A JSON answer of known length.
    pub(crate) fn json(status: u16, body: impl Into<Bytes>) -> Self {
        Self::new(status).header("Content-Type", "application/json").chunk(body)
    }

    /// An event stream, one chunk an event.
    pub(crate) fn sse<'a>(events: impl IntoIterator<Item = &'a str>) -> Self {
        let start = Self::new(200).header("Content-Type", "text/event-stream").framed(Framing::Chunked);
        events.into_iter().fold(start, |reply, event| reply.chunk(event.to_owned()))
    }

    pub(crate) fn header(mut self, name: &str, value: impl Into<String>) -> Self {
        self.headers.push(name, value);
        self
    }

    pub(crate) fn chunk(mut self, bytes: impl Into<Bytes>) -> Self {
        self.steps.push(Step::Chunk(bytes.into()));
        self
    }

    pub(crate) fn chunks(mut self, pieces: impl IntoIterator<Item = Bytes>) -> Self {
        self.steps.extend(pieces.into_iter().map(Step::Chunk));
        self
    }

    pub(crate) fn gate(mut self, gate: &Gate) -> Self {
        self.steps.push(Step::Gate(gate.clone()));
        self
    }

    pub(crate) fn held_by(mut self, gate: &Gate) -> Self {
        self.before = Some(gate.clone());
        self
    }

    pub(crate) fn framed(mut self, framing: Framing) -> Self {
        self.framing = framing;
        self
    }

    pub(crate) fn ending(mut self, end: End) -> Self {
        self.end = end;
        self
    }

    /// Answers without reading the request's body.
    pub(crate) fn hasty(mut self) -> Self {
        self.reads_body = false;
        self
    }

    /// All bytes of the body.
    pub(crate) fn body_len(&self) -> usize {
        self.steps.iter().map(|step| if let Step::Chunk(bytes) = step { bytes.len() } else { 0 }).sum()
    }
}

impl From<Message> for Reply {
    fn from(message: Message) -> Self {
        Self::Http(message)
    }
}
