//! A scanner of AWS event streams (`application/vnd.amazon.eventstream`) over borrowed chunks.
//!
//! Owns messages: the prelude and its checksum, the headers that name the message, the checksum of the whole. Leaves
//! payloads, which are passed on as slices, to others. Messages cannot be found again once a length is wrong, so after
//! the first fault nothing more is told.
//!
//! Memory: one message's headers, up to [`MAX_HEADERS`] bytes.

use flate2::Crc;

/// The most a message's headers may take; AWS allows 128 KiB, and sends some 100 bytes.
pub const MAX_HEADERS: usize = 128 * 1024;

const PRELUDE: usize = 12;
const CHECKSUM: usize = 4;

/// A piece of the stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part<'a> {
    /// A message begins.
    Start(Names<'a>),
    /// Bytes of its payload; never empty.
    Data(&'a [u8]),
    /// The message has ended, and its checksum was right.
    End,
}

/// How a message names itself; empty where it does not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Names<'a> {
    /// `:message-type`: `event`, `exception` or `error`.
    pub message_type: &'a str,
    /// `:event-type`.
    pub event_type: &'a str,
    /// `:exception-type`, or `:error-code`.
    pub exception_type: &'a str,
}

/// Why scanning stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The prelude's or the message's checksum is wrong.
    #[error("event stream message fails its checksum")]
    Checksum,
    /// The lengths in the prelude contradict each other or exceed the bounds.
    #[error("event stream message has impossible lengths")]
    Length,
}

#[derive(Debug)]
enum State {
    /// Collecting prelude and headers in `head`, `wanted` bytes of it.
    Head {
        wanted: usize,
    },
    Payload {
        left: usize,
    },
    Checksum {
        bytes: [u8; CHECKSUM],
        have: usize,
    },
    Failed(Error),
}

/// The scanner of one stream.
#[derive(Debug)]
pub struct Scanner {
    state: State,
    head: Vec<u8>,
    crc: Crc,
    payload: usize,
}

impl Default for Scanner {
    fn default() -> Self {
        Self::new()
    }
}

impl Scanner {
    /// A scanner at the start of a stream.
    #[must_use]
    pub fn new() -> Self {
        Self { state: State::Head { wanted: PRELUDE }, head: Vec::new(), crc: Crc::new(), payload: 0 }
    }

    /// True between messages.
    #[must_use]
    pub fn is_at_boundary(&self) -> bool {
        matches!(self.state, State::Head { .. }) && self.head.is_empty()
    }

    /// Takes the next bytes and tells `sink` its parts in order.
    ///
    /// # Errors
    /// Says what is wrong with the stream; repeated on every later call.
    pub fn feed(&mut self, chunk: &[u8], mut sink: impl FnMut(Part<'_>)) -> Result<(), Error> {
        let mut rest = chunk;
        while !rest.is_empty() {
            match self.step(rest, &mut sink) {
                Ok(used) => rest = &rest[used..],
                Err(error) => {
                    self.state = State::Failed(error);
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    fn step(&mut self, rest: &[u8], sink: &mut impl FnMut(Part<'_>)) -> Result<usize, Error> {
        match &mut self.state {
            State::Head { wanted } => {
                let used = rest.len().min(*wanted - self.head.len());
                self.head.extend_from_slice(&rest[..used]);
                if self.head.len() == *wanted {
                    self.head_done(sink)?;
                }
                Ok(used)
            }
            State::Payload { left } => {
                let used = rest.len().min(*left);
                *left -= used;
                let ended = *left == 0;
                self.crc.update(&rest[..used]);
                sink(Part::Data(&rest[..used]));
                if ended {
                    self.state = State::Checksum { bytes: [0; CHECKSUM], have: 0 };
                }
                Ok(used)
            }
            State::Checksum { bytes, have } => {
                bytes[*have] = rest[0];
                *have += 1;
                if *have == CHECKSUM {
                    if u32::from_be_bytes(*bytes) != self.crc.sum() {
                        return Err(Error::Checksum);
                    }
                    sink(Part::End);
                    self.crc.reset();
                    self.head.clear();
                    self.state = State::Head { wanted: PRELUDE };
                }
                Ok(1)
            }
            State::Failed(error) => Err(*error),
        }
    }

    /// The prelude, or prelude and headers, are complete.
    fn head_done(&mut self, sink: &mut impl FnMut(Part<'_>)) -> Result<(), Error> {
        if self.head.len() == PRELUDE {
            let total = be32(&self.head[0..4]);
            let headers = be32(&self.head[4..8]);
            self.crc.update(&self.head[..8]);
            if u32::try_from(be32(&self.head[8..12])) != Ok(self.crc.sum()) {
                return Err(Error::Checksum);
            }
            self.crc.update(&self.head[8..12]);
            let fixed = PRELUDE + headers + CHECKSUM;
            if headers > MAX_HEADERS || total < fixed {
                return Err(Error::Length);
            }
            self.payload = total - fixed;
            if headers > 0 {
                self.state = State::Head { wanted: PRELUDE + headers };
                return Ok(());
            }
        }
        self.crc.update(&self.head[PRELUDE..]);
        sink(Part::Start(names(&self.head[PRELUDE..])));
        self.state = if self.payload == 0 {
            State::Checksum { bytes: [0; CHECKSUM], have: 0 }
        } else {
            State::Payload { left: self.payload }
        };
        Ok(())
    }
}

fn be32(bytes: &[u8]) -> usize {
    bytes.iter().fold(0, |number, &byte| number << 8 | usize::from(byte))
}

/// Reads the headers that name a message; stops quietly at anything malformed.
fn names(mut headers: &[u8]) -> Names<'_> {
    let mut names = Names::default();
    while let Some((name, value, rest)) = header(headers) {
        match name {
            b":message-type" => names.message_type = value,
            b":event-type" => names.event_type = value,
            b":exception-type" | b":error-code" => names.exception_type = value,
            _ => {}
        }
        headers = rest;
    }
    names
}

/// One header: name, value (empty unless it is a string), and what follows.
fn header(bytes: &[u8]) -> Option<(&[u8], &str, &[u8])> {
    let (&name_length, rest) = bytes.split_first()?;
    let (name, rest) = rest.split_at_checked(usize::from(name_length))?;
    let (&kind, rest) = rest.split_first()?;
    let fixed = match kind {
        0 | 1 => Some(0),
        2 => Some(1),
        3 => Some(2),
        4 => Some(4),
        5 | 8 => Some(8),
        9 => Some(16),
        6 | 7 => None,
        _ => return None,
    };
    if let Some(length) = fixed {
        return Some((name, "", rest.split_at_checked(length)?.1));
    }
    let (length, rest) = rest.split_at_checked(2)?;
    let (value, rest) = rest.split_at_checked(be32(length))?;
    let text = if kind == 7 { std::str::from_utf8(value).unwrap_or_default() } else { "" };
    Some((name, text, rest))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn message(headers: &[(&str, &str)], payload: &[u8]) -> Vec<u8> {
        let mut head = Vec::new();
        for (name, value) in headers {
            head.push(name.len() as u8);
            head.extend_from_slice(name.as_bytes());
            head.push(7);
            head.extend_from_slice(&(value.len() as u16).to_be_bytes());
            head.extend_from_slice(value.as_bytes());
        }
        let mut bytes = Vec::new();
        bytes.extend_from_slice(&((PRELUDE + head.len() + payload.len() + CHECKSUM) as u32).to_be_bytes());
        bytes.extend_from_slice(&(head.len() as u32).to_be_bytes());
        let mut crc = Crc::new();
        crc.update(&bytes);
        bytes.extend_from_slice(&crc.sum().to_be_bytes());
        bytes.extend_from_slice(&head);
        bytes.extend_from_slice(payload);
        let mut crc = Crc::new();
        crc.update(&bytes);
        bytes.extend_from_slice(&crc.sum().to_be_bytes());
        bytes
    }

    fn told(chunks: &[&[u8]]) -> (Vec<String>, Result<(), Error>) {
        let mut log = Vec::new();
        let mut data = Vec::new();
        let mut scanner = Scanner::new();
        let mut result = Ok(());
        for chunk in chunks {
            let fed = scanner.feed(chunk, |part| match part {
                Part::Start(names) => {
                    log.push(format!("{} {} {}", names.message_type, names.event_type, names.exception_type));
                }
                Part::Data(piece) => data.extend_from_slice(piece),
                Part::End => log.push(String::from_utf8_lossy(&std::mem::take(&mut data)).into_owned()),
            });
            result = result.and(fed);
        }
        (log, result)
    }

    #[test]
    fn messages_are_told() {
        let event = message(&[(":event-type", "chunk"), (":content-type", "j"), (":message-type", "event")], b"{}");
        let fault =
            message(&[(":exception-type", "throttlingException"), (":message-type", "exception")], b"{\"m\":1}");
        let empty = message(&[], b"");
        let all = [event, fault, empty].concat();
        let want =
            ["event chunk ", "{}", "exception  throttlingException", "{\"m\":1}", "  ", ""].map(str::to_owned).to_vec();
        for size in [1, 7, 1000] {
            let chunks: Vec<_> = all.chunks(size).collect();
            assert_eq!(told(&chunks), (want.clone(), Ok(())), "{size}");
        }
    }

    #[test]
    fn a_fault_ends_the_telling() {
        let good = message(&[(":event-type", "chunk")], b"payload");
        for (name, at, want) in [("length", 3, Error::Checksum), ("payload", good.len() - 6, Error::Checksum)] {
            let mut bad = good.clone();
            bad[at] ^= 1;
            let all = [bad, good.clone()].concat();
            let (log, result) = told(&[&all]);
            assert_eq!(result, Err(want), "{name}");
            assert!(log.len() < 2, "{name}: {log:?}");
        }
        let mut short = 15u32.to_be_bytes().to_vec();
        short.extend_from_slice(&0u32.to_be_bytes());
        let mut crc = Crc::new();
        crc.update(&short);
        short.extend_from_slice(&crc.sum().to_be_bytes());
        assert_eq!(told(&[&short]).1, Err(Error::Length));
    }

    proptest! {
        #[test]
        fn chunking_changes_nothing(payloads in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..40), 0..5), size in 1usize..30) {
            let all: Vec<u8> = payloads.iter().flat_map(|payload| message(&[(":event-type", "x")], payload)).collect();
            let chunks: Vec<_> = all.chunks(size).collect();
            prop_assert_eq!(told(&chunks), told(&[&all]));
        }

        #[test]
        fn any_bytes_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            let _ = told(&[&bytes]);
            let mut framed = message(&[], &[]);
            framed.truncate(0);
            let mut head = Vec::new();
            head.extend_from_slice(&bytes);
            let _ = names(&head);
        }
    }
}
