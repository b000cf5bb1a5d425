//! A scanner of WebSocket frames (RFC 6455) on a copy of one direction of a connection, after the handshake.
//!
//! Owns frames, masks, fragments, control frames between them, and permessage-deflate (RFC 7692) with or without context
//! takeover. Leaves what messages say to others, and closing, pinging and everything else to the two ends.
//!
//! Payload bytes are passed on in pieces as they come. Memory: nothing of a message; with compression, an inflater.

use flate2::{Decompress, FlushDecompress, Status};

use super::decode::{FREE_OUTPUT, MAX_OUTPUT, MAX_RATIO};

const BUFFER: usize = 4 * 1024;
const MAX_HEAD: usize = 14;
/// What a sender cuts off each compressed message.
const TAIL: [u8; 4] = [0, 0, 0xff, 0xff];

/// A piece of the direction watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part<'a> {
    /// A message begins.
    Start {
        /// True for a binary message, false for text.
        binary: bool,
    },
    /// Bytes of the message, unmasked and inflated; never empty.
    Data(&'a [u8]),
    /// The message has ended.
    End,
    /// The sender closes; its code, 1005 when it gave none.
    Close(u16),
}

/// Why scanning stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Not frames, or not in an order that RFC 6455 allows.
    #[error("websocket stream breaks the framing rules")]
    Framing,
    /// A compressed message does not inflate, or inflates beyond the caps.
    #[error("websocket message cannot be inflated")]
    Inflate,
}

/// permessage-deflate, as agreed in the handshake, for the direction watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deflate {
    /// Each message is compressed on its own.
    pub no_context_takeover: bool,
}

impl Deflate {
    /// Reads the `Sec-WebSocket-Extensions` of a 101 response, for messages from the server. `None`: not compressed.
    #[must_use]
    pub fn of_server(extensions: &str) -> Option<Self> {
        let agreed = extensions.split(',').map(|one| one.split(';').map(str::trim));
        for mut params in agreed {
            if params.next().is_some_and(|name| name.eq_ignore_ascii_case("permessage-deflate")) {
                let no_context_takeover = params.any(|name| name.eq_ignore_ascii_case("server_no_context_takeover"));
                return Some(Self { no_context_takeover });
            }
        }
        None
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Head,
    Payload,
    Failed(Error),
}

/// The message being read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Message {
    compressed: bool,
}

/// The scanner of one direction.
#[derive(Debug)]
pub struct Scanner {
    state: State,
    head: [u8; MAX_HEAD],
    have: u8,
    /// The present frame.
    opcode: u8,
    last: bool,
    mask: Option<[u8; 4]>,
    phase: u8,
    left: u64,
    message: Option<Message>,
    close: [u8; 2],
    close_have: u8,
    deflate: Option<Deflate>,
    inflate: Option<Box<Decompress>>,
    packed: u64,
    plain: u64,
}

impl Scanner {
    /// A scanner at the first byte after the handshake.
    #[must_use]
    pub fn new(deflate: Option<Deflate>) -> Self {
        Self {
            state: State::Head,
            head: [0; MAX_HEAD],
            have: 0,
            opcode: 0,
            last: false,
            mask: None,
            phase: 0,
            left: 0,
            message: None,
            close: [0; 2],
            close_have: 0,
            deflate,
            inflate: None,
            packed: 0,
            plain: 0,
        }
    }

    /// Takes the next bytes and tells `sink` its parts in order.
    ///
    /// # Errors
    /// Says what is wrong with the stream; repeated on every later call. Frames cannot be found again after it.
    pub fn feed(&mut self, chunk: &[u8], mut sink: impl FnMut(Part<'_>)) -> Result<(), Error> {
        let mut rest = chunk;
        while !rest.is_empty() {
            let step = match self.state {
                State::Head => self.head(rest, &mut sink),
                State::Payload => self.payload(rest, &mut sink),
                State::Failed(error) => Err(error),
            };
            match step {
                Ok(used) => rest = &rest[used..],
                Err(error) => {
                    self.state = State::Failed(error);
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// True when the next byte begins a frame: a control frame may stand there (RFC 6455 §5.4).
    #[must_use]
    pub fn is_between_frames(&self) -> bool {
        self.have == 0 && matches!(self.state, State::Head)
    }

    fn head(&mut self, rest: &[u8], sink: &mut impl FnMut(Part<'_>)) -> Result<usize, Error> {
        self.head[usize::from(self.have)] = rest[0];
        self.have += 1;
        if self.have < 2 {
            return Ok(1);
        }
        let [first, second, ..] = self.head;
        let short = second & 0x7f;
        let extended = match short {
            126 => 2,
            127 => 8,
            _ => 0,
        };
        let masked = second & 0x80 != 0;
        if usize::from(self.have) < 2 + extended + if masked { 4 } else { 0 } {
            return Ok(1);
        }
        self.left = if extended == 0 {
            u64::from(short)
        } else {
            self.head[2..2 + extended].iter().fold(0, |number, &byte| number << 8 | u64::from(byte))
        };
        let key = &self.head[2 + extended..2 + extended + 4 * usize::from(masked)];
        self.mask = key.try_into().ok();
        self.have = 0;
        self.phase = 0;
        self.begin_frame(first, sink)?;
        Ok(1)
    }

    fn begin_frame(&mut self, first: u8, sink: &mut impl FnMut(Part<'_>)) -> Result<(), Error> {
        self.opcode = first & 0x0f;
        self.last = first & 0x80 != 0;
        let compressed = first & 0x40 != 0;
        let fits = match self.opcode {
            0 => self.message.is_some() && !compressed,
            1 | 2 => self.message.is_none() && (!compressed || self.deflate.is_some()),
            8..=10 => self.last && self.left <= 125 && !compressed,
            _ => false,
        };
        if !fits || first & 0x30 != 0 || self.left >> 63 != 0 {
            return Err(Error::Framing);
        }
        if self.opcode == 1 || self.opcode == 2 {
            self.message = Some(Message { compressed });
            sink(Part::Start { binary: self.opcode == 2 });
        }
        self.close_have = 0;
        self.state = State::Payload;
        if self.left == 0 { self.end_frame(sink) } else { Ok(()) }
    }

    fn payload(&mut self, rest: &[u8], sink: &mut impl FnMut(Part<'_>)) -> Result<usize, Error> {
        let used = rest.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        if let Some(mask) = self.mask {
            let mut buffer = [0; 512];
            for piece in rest[..used].chunks(buffer.len()) {
                for (slot, &byte) in buffer.iter_mut().zip(piece) {
                    *slot = byte ^ mask[usize::from(self.phase)];
                    self.phase = (self.phase + 1) % 4;
                }
                self.content(&buffer[..piece.len()], sink)?;
            }
        } else {
            self.content(&rest[..used], sink)?;
        }
        self.left -= used as u64;
        if self.left == 0 {
            self.end_frame(sink)?;
        }
        Ok(used)
    }

    fn content(&mut self, piece: &[u8], sink: &mut impl FnMut(Part<'_>)) -> Result<(), Error> {
        match (self.opcode, self.message) {
            (0..=2, Some(Message { compressed: true })) => self.inflate(piece, sink),
            (0..=2, _) => {
                sink(Part::Data(piece));
                Ok(())
            }
            (8, _) => {
                for &byte in piece.iter().take(2 - usize::from(self.close_have.min(2))) {
                    self.close[usize::from(self.close_have)] = byte;
                    self.close_have += 1;
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn end_frame(&mut self, sink: &mut impl FnMut(Part<'_>)) -> Result<(), Error> {
        self.state = State::Head;
        match self.opcode {
            0..=2 if self.last => {
                if self.message.take().is_some_and(|message| message.compressed) {
                    self.inflate(&TAIL, sink)?;
                    if self.deflate.is_some_and(|deflate| deflate.no_context_takeover)
                        && let Some(inflate) = &mut self.inflate
                    {
                        inflate.reset(false);
                    }
                }
                sink(Part::End);
            }
            8 => sink(Part::Close(if self.close_have == 2 { u16::from_be_bytes(self.close) } else { 1005 })),
            _ => {}
        }
        Ok(())
    }

    fn inflate(&mut self, mut piece: &[u8], sink: &mut impl FnMut(Part<'_>)) -> Result<(), Error> {
        self.packed += piece.len() as u64;
        let inflate = self.inflate.get_or_insert_with(|| Box::new(Decompress::new(false)));
        let mut buffer = [0; BUFFER];
        loop {
            let (before_in, before_out) = (inflate.total_in(), inflate.total_out());
            let status = inflate.decompress(piece, &mut buffer, FlushDecompress::Sync).map_err(|_| Error::Inflate)?;
            // Both differences are bounded by the slices' lengths.
            let used = (inflate.total_in() - before_in) as usize;
            let made = (inflate.total_out() - before_out) as usize;
            piece = &piece[used..];
            self.plain += made as u64;
            if self.plain > MAX_OUTPUT || (self.plain > FREE_OUTPUT && self.plain / MAX_RATIO > self.packed) {
                return Err(Error::Inflate);
            }
            if made > 0 {
                sink(Part::Data(&buffer[..made]));
            }
            if status == Status::StreamEnd {
                // A sender may end a message with a final block; the next begins afresh.
                inflate.reset(false);
                return Ok(());
            }
            if (used == 0 && made == 0) || (piece.is_empty() && made < buffer.len()) {
                return Ok(());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use flate2::{Compress, Compression, FlushCompress};
    use proptest::prelude::*;

    use super::*;

    fn frame(first: u8, mask: Option<[u8; 4]>, payload: &[u8]) -> Vec<u8> {
        let mut bytes = vec![first];
        let flag = if mask.is_some() { 0x80 } else { 0 };
        match payload.len() {
            short @ 0..126 => bytes.push(flag | short as u8),
            medium @ 126..65536 => {
                bytes.push(flag | 126);
                bytes.extend_from_slice(&(medium as u16).to_be_bytes());
            }
            long => {
                bytes.push(flag | 127);
                bytes.extend_from_slice(&(long as u64).to_be_bytes());
            }
        }
        let mask = mask.inspect(|key| bytes.extend_from_slice(key)).unwrap_or_default();
        bytes.extend(payload.iter().enumerate().map(|(at, byte)| byte ^ mask[at % 4]));
        bytes
    }

    fn squeeze(compress: &mut Compress, plain: &[u8]) -> Vec<u8> {
        let mut packed = Vec::with_capacity(plain.len() + 100);
        compress.compress_vec(plain, &mut packed, FlushCompress::Sync).unwrap();
        assert!(packed.ends_with(&TAIL));
        packed.truncate(packed.len() - 4);
        packed
    }

    fn told(deflate: Option<Deflate>, chunks: &[&[u8]]) -> (Vec<String>, Result<(), Error>) {
        let mut log = Vec::new();
        let mut data = Vec::new();
        let mut scanner = Scanner::new(deflate);
        let mut result = Ok(());
        for chunk in chunks {
            let fed = scanner.feed(chunk, |part| match part {
                Part::Start { binary } => log.push(if binary { "binary" } else { "text" }.to_owned()),
                Part::Data(piece) => {
                    assert!(!piece.is_empty());
                    data.extend_from_slice(piece);
                }
                Part::End => log.push(String::from_utf8_lossy(&std::mem::take(&mut data)).into_owned()),
                Part::Close(code) => log.push(format!("close {code}")),
            });
            result = result.and(fed);
        }
        (log, result)
    }

    #[test]
    fn messages_are_told() {
        let long = "x".repeat(70_000);
        for (name, frames, want) in [
            ("text", vec![frame(0x81, None, b"a")], vec!["text", "a"]),
            ("masked", vec![frame(0x82, Some([1, 2, 3, 4]), b"hello")], vec!["binary", "hello"]),
            ("empty", vec![frame(0x81, None, b"")], vec!["text", ""]),
            (
                "fragments with a ping between",
                vec![
                    frame(0x01, None, b"a"),
                    frame(0x89, None, b"ping"),
                    frame(0x00, None, b""),
                    frame(0x80, None, b"b"),
                ],
                vec!["text", "ab"],
            ),
            (
                "long",
                vec![frame(0x81, None, &long.as_bytes()[..300]), frame(0x81, None, long.as_bytes())],
                vec!["text", &long[..300], "text", &long],
            ),
            ("close", vec![frame(0x88, None, &[3, 0xe8]), frame(0x88, None, &[])], vec!["close 1000", "close 1005"]),
        ] {
            let all = frames.concat();
            for size in [1, 3, 1 << 20] {
                let chunks: Vec<_> = all.chunks(size).collect();
                assert_eq!(
                    told(None, &chunks),
                    (want.iter().map(|&s| s.to_owned()).collect(), Ok(())),
                    "{name} {size}"
                );
            }
        }
    }

    #[test]
    fn compressed_messages_are_inflated() {
        for no_context_takeover in [false, true] {
            let mut compress = Compress::new(Compression::default(), false);
            let mut all = Vec::new();
            let mut want = Vec::new();
            for n in 0..5 {
                let text = format!("{{\"type\":\"response.text.delta\",\"n\":{n}}}").repeat(n * 40 + 1);
                if no_context_takeover {
                    compress.reset();
                }
                let packed = squeeze(&mut compress, text.as_bytes());
                let half = packed.len() / 2;
                all.extend(frame(0x41, None, &packed[..half]));
                all.extend(frame(0x80, Some([9, 8, 7, 6]), &packed[half..]));
                all.extend(frame(0x81, None, b"plain"));
                want.extend(["text".to_owned(), text, "text".to_owned(), "plain".to_owned()]);
            }
            let deflate = Some(Deflate { no_context_takeover });
            for size in [1, 5, 1 << 20] {
                let chunks: Vec<_> = all.chunks(size).collect();
                assert_eq!(told(deflate, &chunks), (want.clone(), Ok(())), "{no_context_takeover} {size}");
            }
        }
    }

    #[test]
    fn broken_rules_are_noticed() {
        for (name, bytes) in [
            ("reserved bit", frame(0xa1, None, b"a")),
            ("compressed unasked", frame(0xc1, None, b"a")),
            ("continuation of nothing", frame(0x80, None, b"a")),
            ("message in a message", [frame(0x01, None, b"a"), frame(0x81, None, b"b")].concat()),
            ("fragmented ping", frame(0x09, None, b"a")),
            ("unknown opcode", frame(0x83, None, b"a")),
            ("http", b"HTTP/1.1 200 OK\r\n\r\n".to_vec()),
        ] {
            assert_eq!(told(None, &[&bytes]).1, Err(Error::Framing), "{name}");
        }
        let deflate = Some(Deflate { no_context_takeover: false });
        assert_eq!(told(deflate, &[&frame(0xc1, None, &[0xff; 9])]).1, Err(Error::Inflate));
    }

    #[test]
    fn the_handshake_says_how() {
        for (header, want) in [
            ("", None),
            ("x-webkit-deflate-frame", None),
            ("permessage-deflate", Some(false)),
            ("permessage-deflate; server_max_window_bits=12; client_no_context_takeover", Some(false)),
            ("foo, Permessage-Deflate;Server_No_Context_Takeover", Some(true)),
        ] {
            assert_eq!(Deflate::of_server(header).map(|deflate| deflate.no_context_takeover), want, "{header}");
        }
    }

    proptest! {
        #[test]
        fn chunking_changes_nothing(bytes in proptest::collection::vec(prop_oneof![any::<u8>(), Just(0x81), Just(0x01), Just(0x80), 0u8..4], 0..80), size in 1usize..9) {
            let chunks: Vec<_> = bytes.chunks(size).collect();
            let whole = told(None, &[&bytes]);
            let pieces = told(None, &chunks);
            prop_assert_eq!(pieces, whole);
        }
    }
}
