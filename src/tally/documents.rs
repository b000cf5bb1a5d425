//! The JSON documents of a body, cut out of its framing one at a time.
//!
//! Owns where a document begins and ends in each framing, and Bedrock's wrapping; leaves what it says to `reading`.

use std::sync::LazyLock;

use base64::Engine;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};

use super::reading::Reading;
use crate::scan::json::{self, Event, Paths, Want};
use crate::scan::{eventstream, lines, sse, websocket};

/// Longer values are not captured: a tool's input is then counted by its length, anything else is not read.
const CAPTURE: usize = 16 * 1024;

/// The body's JSON documents, read one at a time.
#[derive(Debug)]
pub(super) struct Documents {
    scanner: json::Scanner,
    pub(super) reading: Reading,
    /// Documents that were complete.
    pub(super) whole: u64,
    /// The present document is no JSON.
    pub(super) broken: bool,
}

const DONE: &[u8] = b"[DONE]";

impl Documents {
    pub(super) fn new(reading: Reading) -> Self {
        Self { scanner: json::Scanner::new(reading.paths(), CAPTURE), reading, whole: 0, broken: false }
    }

    #[inline]
    pub(super) fn data(&mut self, bytes: &[u8]) {
        self.broken |= self.scanner.feed(bytes, &mut self.reading).is_err();
    }

    /// The present document ends here, complete or not.
    #[inline]
    pub(super) fn end(&mut self) {
        if self.scanner.is_untouched() {
            return;
        }
        if self.scanner.finish(&mut self.reading).is_ok() {
            self.whole += 1;
            self.broken = false;
        } else {
            self.reading.abandon();
            self.broken = true;
        }
        self.scanner.reset();
    }

    pub(super) fn abandon(&mut self) {
        if !self.scanner.is_untouched() {
            self.reading.abandon();
            self.scanner.reset();
        }
    }

    #[inline]
    pub(super) fn sse(&mut self, part: sse::Part<'_>, done: &mut usize, bare: &mut bool) {
        match part {
            sse::Part::Data(bytes) => {
                if std::mem::take(bare) {
                    self.end();
                    self.reading.streamed = true;
                }
                if *done < DONE.len() {
                    self.done_line(bytes, done);
                }
                self.data(bytes);
            }
            // Some servers forget the blank line between two events.
            sse::Part::Join if self.scanner.is_done() || *done == DONE.len() => {
                self.end();
                *done = 0;
            }
            sse::Part::Join => self.data(b"\n"),
            sse::Part::End => {
                self.end();
                *done = 0;
            }
            sse::Part::Stray(bytes) => {
                if !std::mem::replace(bare, true) || self.scanner.is_done() {
                    self.end();
                    self.reading.streamed = false;
                }
                self.data(bytes);
            }
        }
    }

    /// Looks for the line that ends an OpenAI stream, which may come in pieces.
    #[inline]
    pub(super) fn done_line(&mut self, bytes: &[u8], done: &mut usize) {
        for byte in bytes {
            if DONE.get(*done) != Some(byte) {
                *done = DONE.len() + 1;
                return;
            }
            *done += 1;
            if *done == DONE.len() {
                self.reading.end();
                return;
            }
        }
    }

    pub(super) fn line(&mut self, part: lines::Part<'_>) {
        match part {
            lines::Part::Data(bytes) => self.data(bytes),
            lines::Part::End => self.end(),
        }
    }

    pub(super) fn concatenated(&mut self, mut chunk: &[u8]) {
        while !chunk.is_empty() && !self.broken {
            match self.scanner.feed_one(chunk, &mut self.reading) {
                Ok(used) => chunk = &chunk[used..],
                Err(_) => self.broken = true,
            }
            if self.scanner.is_done() {
                self.end();
            }
        }
    }

    pub(super) fn message(&mut self, part: eventstream::Part<'_>, wrapped: Option<&mut Wrapped>) {
        match (part, wrapped) {
            (eventstream::Part::Start(names), _) => {
                if !names.exception_type.is_empty() {
                    self.reading.fail(names.exception_type);
                }
            }
            (eventstream::Part::Data(bytes), None) => self.data(bytes),
            (eventstream::Part::Data(bytes), Some(wrapped)) => wrapped.feed(bytes, self),
            (eventstream::Part::End, None) => self.end(),
            (eventstream::Part::End, Some(wrapped)) => wrapped.end(self),
        }
    }

    pub(super) fn websocket(&mut self, part: websocket::Part<'_>) {
        match part {
            websocket::Part::Start { .. } => {}
            websocket::Part::Data(bytes) => self.data(bytes),
            websocket::Part::End => self.end(),
            websocket::Part::Close(_) => self.reading.end(),
        }
    }
}

static WRAPPED_PATHS: LazyLock<Paths> = LazyLock::new(|| Paths::new(&[("bytes", 0, Want::Text)]));

/// Bedrock's `{"bytes":"<base64 of a document>"}`.
#[derive(Debug)]
pub(super) struct Wrapped {
    scanner: json::Scanner,
    base64: Base64,
}

impl Wrapped {
    pub(super) fn new() -> Self {
        Self { scanner: json::Scanner::new(&WRAPPED_PATHS, 0), base64: Base64::default() }
    }

    pub(super) fn feed(&mut self, bytes: &[u8], documents: &mut Documents) {
        let Self { scanner, base64 } = self;
        // A wrapper that is no JSON leaves its document incomplete, which shows there.
        let _ = scanner.feed(bytes, &mut |event: Event<'_>| {
            if let Event::Text { fragment, .. } = event {
                base64.feed(fragment, &mut |plain| documents.data(plain));
            }
        });
    }

    pub(super) fn end(&mut self, documents: &mut Documents) {
        self.base64.end(&mut |plain| documents.data(plain));
        self.scanner.reset();
        documents.end();
    }
}

const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// Decodes base64 that comes in pieces, its slashes perhaps escaped.
#[derive(Debug, Default)]
struct Base64 {
    /// The last, incomplete group.
    carry: [u8; 4],
    held: usize,
}

impl Base64 {
    pub(super) fn feed(&mut self, fragment: &[u8], sink: &mut dyn FnMut(&[u8])) {
        let mut packed = [0; 1024];
        packed[..self.held].copy_from_slice(&self.carry[..self.held]);
        let mut have = self.held;
        for &byte in fragment.iter().filter(|&&byte| byte != b'\\') {
            packed[have] = byte;
            have += 1;
            if have == packed.len() {
                emit(&packed, sink);
                have = 0;
            }
        }
        let whole = have - have % 4;
        emit(&packed[..whole], sink);
        self.held = have - whole;
        self.carry[..self.held].copy_from_slice(&packed[whole..have]);
    }

    pub(super) fn end(&mut self, sink: &mut dyn FnMut(&[u8])) {
        let held = std::mem::take(&mut self.held);
        emit(&self.carry[..held], sink);
    }
}

fn emit(packed: &[u8], sink: &mut dyn FnMut(&[u8])) {
    let mut plain = [0; 768];
    if let Ok(length) = BASE64.decode_slice(packed, &mut plain)
        && length > 0
    {
        sink(&plain[..length]);
    }
}
