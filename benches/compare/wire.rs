//! Just enough HTTP/1.1 for both ends of the load, so that they cost less than what stands between them.

use anyhow::{Context, Result, bail};
use memchr::memmem;
use tokio::io::{AsyncRead, AsyncReadExt};

use crate::plan::{EVENT_DIGITS, EVENT_MARK};

/// Where the head ends, its blank line included.
pub(crate) fn head_end(buffer: &[u8]) -> Option<usize> {
    memmem::find(buffer, b"\r\n\r\n").map(|at| at + 4)
}

/// The value of a header.
pub(crate) fn header<'a>(head: &'a [u8], name: &str) -> Option<&'a str> {
    head.split(|byte| *byte == b'\n').skip(1).find_map(|line| {
        let line = std::str::from_utf8(line).ok()?;
        let (key, value) = line.split_once(':')?;
        key.eq_ignore_ascii_case(name).then(|| value.trim())
    })
}

/// The status of an answer's head.
pub(crate) fn status(head: &[u8]) -> Option<u16> {
    std::str::from_utf8(head.get(9..12)?).ok()?.parse().ok()
}

/// How a body ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Framing {
    Length(usize),
    Chunked,
}

pub(crate) fn framing(head: &[u8]) -> Result<Framing> {
    if let Some(length) = header(head, "content-length") {
        return Ok(Framing::Length(length.parse().context("content-length")?));
    }
    Ok(if header(head, "transfer-encoding").is_some() { Framing::Chunked } else { Framing::Length(0) })
}

/// Reads one message with a body of known length or in chunks, whole, into `buffer`, replacing what was there.
/// Gives the length of its head; `None` at the end of the connection.
pub(crate) async fn read_message<R: AsyncRead + Unpin>(io: &mut R, buffer: &mut Vec<u8>) -> Result<Option<usize>> {
    buffer.clear();
    let head = loop {
        if let Some(end) = head_end(buffer) {
            break end;
        }
        if io.read_buf(buffer).await? == 0 {
            return if buffer.is_empty() { Ok(None) } else { bail!("the connection ended inside a head") };
        }
    };
    let framing = framing(&buffer[..head])?;
    let mut chunks = Chunks::default();
    let mut seen = head;
    loop {
        let whole = match framing {
            Framing::Length(length) => buffer.len() >= head + length,
            Framing::Chunked => {
                let done = chunks.decode(&buffer[seen..], &mut Vec::new())?;
                seen = buffer.len();
                done
            }
        };
        if whole {
            return Ok(Some(head));
        }
        if io.read_buf(buffer).await? == 0 {
            bail!("the connection ended inside a body");
        }
    }
}

/// A decoder of the chunked transfer coding.
#[derive(Debug, Default)]
pub(crate) struct Chunks {
    state: State,
}

#[derive(Debug)]
enum State {
    /// The size so far; `None` before its first digit, where the line break after a chunk's data is skipped.
    Size(Option<usize>),
    Data(usize),
    /// Length of the trailer line so far.
    Trailer(usize),
}

impl Default for State {
    fn default() -> Self {
        Self::Size(None)
    }
}

impl Chunks {
    /// Appends the data in `input` to `out`; true when the last chunk has ended.
    pub(crate) fn decode(&mut self, mut input: &[u8], out: &mut Vec<u8>) -> Result<bool> {
        while let Some((&byte, rest)) = input.split_first() {
            match &mut self.state {
                State::Data(left) => {
                    let take = (*left).min(input.len());
                    out.extend_from_slice(&input[..take]);
                    input = &input[take..];
                    *left -= take;
                    if *left == 0 {
                        self.state = State::Size(None);
                    }
                    continue;
                }
                State::Size(size) => match (byte, *size) {
                    (b'\n', Some(0)) => self.state = State::Trailer(0),
                    (b'\n', Some(size)) => self.state = State::Data(size),
                    (b'\r' | b'\n', _) => {}
                    (digit, _) => {
                        let digit = char::from(digit).to_digit(16).context("a chunk's size")?;
                        *size = Some(size.unwrap_or(0) * 16 + digit as usize);
                    }
                },
                State::Trailer(0) if byte == b'\n' => return Ok(true),
                State::Trailer(length) => match byte {
                    b'\n' => *length = 0,
                    b'\r' => {}
                    _ => *length += 1,
                },
            }
            input = rest;
        }
        Ok(false)
    }
}

/// Takes the times of sending out of the events in `body` and drops what has been looked at.
pub(crate) fn take_event_times(body: &mut Vec<u8>, mut each: impl FnMut(u64)) {
    let mut from = 0;
    while let Some(at) = memmem::find(&body[from..], EVENT_MARK).map(|at| from + at + EVENT_MARK.len()) {
        let Some(digits) = body.get(at..at + EVENT_DIGITS) else {
            body.drain(..at - EVENT_MARK.len());
            return;
        };
        if let Some(time) = std::str::from_utf8(digits).ok().and_then(|digits| digits.parse().ok()) {
            each(time);
        }
        from = at;
    }
    let keep = body.len().saturating_sub(EVENT_MARK.len() - 1).max(from);
    body.drain(..keep);
}
