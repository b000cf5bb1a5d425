//! An event-stream (SSE) scanner over borrowed chunks.
//!
//! Owns lines and fields: LF, CRLF and CR ends, cut anywhere; one byte order mark; comments; `data:` with and without
//! its space; several data lines in one event; a last event nobody terminated. Leaves what the data says to others.
//!
//! Data is passed on as slices of the chunk, so that a line of 100 MB costs no memory. Memory: the event's name, up to
//! [`MAX_NAME`] bytes.

use memchr::memchr2;

/// Longer event names are cut.
pub const MAX_NAME: usize = 64;

/// A piece of the stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part<'a> {
    /// Bytes of a data line; never empty.
    Data(&'a [u8]),
    /// Another data line of the same event begins: by the book, a line feed in the data.
    Join,
    /// The event has ended: a blank line after at least one data line.
    End,
    /// Bytes of a line that cannot be a field, its end as `\n`. Some servers break off with a bare JSON error.
    Stray(&'a [u8]),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Field {
    Data,
    Event,
    Other,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// The stream's first bytes; `n` bytes of a byte order mark seen.
    Begin(u8),
    Line,
    /// In a field's name.
    Name {
        bytes: [u8; 5],
        len: u8,
    },
    /// After the colon: one space belongs to the syntax.
    Colon(Field),
    Value(Field),
    Stray,
}

/// The scanner of one stream.
#[derive(Debug)]
pub struct Scanner {
    state: State,
    /// The last byte was a CR: a LF now belongs to it.
    after_cr: bool,
    has_data: bool,
    name: Vec<u8>,
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
        Self { state: State::Begin(0), after_cr: false, has_data: false, name: Vec::new() }
    }

    /// The present event's name, as far as its `event:` line has been read; empty for none.
    #[must_use]
    pub fn name(&self) -> &[u8] {
        &self.name
    }

    /// Takes the next bytes and tells `sink` its parts in order.
    pub fn feed(&mut self, chunk: &[u8], mut sink: impl FnMut(&Self, Part<'_>)) {
        let mut at = 0;
        while at < chunk.len() {
            at = match self.state {
                State::Line => self.line(chunk, at, &mut sink),
                State::Value(field) => self.value(field, chunk, at, &mut sink),
                State::Colon(field) => {
                    self.state = State::Value(field);
                    if chunk[at] == b' ' { at + 1 } else { at }
                }
                State::Name { bytes, len } => self.field_name(bytes, len, chunk, at, &mut sink),
                State::Stray => self.stray(chunk, at, &mut sink),
                State::Begin(seen) => self.begin(seen, chunk[at], at),
            };
        }
    }

    /// The stream has ended: an event that has data but no blank line ends here.
    pub fn finish(&mut self, mut sink: impl FnMut(&Self, Part<'_>)) {
        if let State::Name { bytes, len } = self.state
            && &bytes[..usize::from(len.min(5))] == b"data"
        {
            self.begin_data(&mut sink);
        }
        if self.has_data {
            sink(self, Part::End);
        }
        *self = Self::new();
    }

    fn begin(&mut self, seen: u8, byte: u8, at: usize) -> usize {
        const MARK: [u8; 3] = [0xef, 0xbb, 0xbf];
        if seen < 3 && byte == MARK[usize::from(seen)] {
            self.state = State::Begin(seen + 1);
            return at + 1;
        }
        self.state = State::Line;
        at
    }

    #[inline]
    fn line(&mut self, chunk: &[u8], at: usize, sink: &mut impl FnMut(&Self, Part<'_>)) -> usize {
        let byte = chunk[at];
        if byte == b'\n' && std::mem::take(&mut self.after_cr) {
            return at + 1;
        }
        self.after_cr = false;
        if chunk[at..].starts_with(b"data:") {
            self.begin_data(sink);
            self.state = State::Colon(Field::Data);
            return at + 5;
        }
        match byte {
            b'\n' | b'\r' => {
                if std::mem::take(&mut self.has_data) {
                    sink(self, Part::End);
                }
                self.name.clear();
                self.after_cr = byte == b'\r';
                at + 1
            }
            b':' => {
                self.state = State::Value(Field::Other);
                at + 1
            }
            b'a'..=b'z' | b'A'..=b'Z' | b'_' => {
                self.state = State::Name { bytes: [byte, 0, 0, 0, 0], len: 1 };
                at + 1
            }
            _ => {
                self.state = State::Stray;
                at
            }
        }
    }

    fn field_name(
        &mut self,
        mut bytes: [u8; 5],
        len: u8,
        chunk: &[u8],
        at: usize,
        sink: &mut impl FnMut(&Self, Part<'_>),
    ) -> usize {
        let byte = chunk[at];
        if !matches!(byte, b':' | b'\n' | b'\r') {
            if let Some(slot) = bytes.get_mut(usize::from(len)) {
                *slot = byte;
            }
            self.state = State::Name { bytes, len: len.saturating_add(1).min(6) };
            return at + 1;
        }
        let field = match bytes.get(..usize::from(len)) {
            Some(b"data") => {
                self.begin_data(sink);
                Field::Data
            }
            Some(b"event") => {
                self.name.clear();
                Field::Event
            }
            _ => Field::Other,
        };
        if byte == b':' {
            self.state = State::Colon(field);
        } else {
            self.end_line(byte);
        }
        at + 1
    }

    #[inline]
    fn begin_data(&mut self, sink: &mut impl FnMut(&Self, Part<'_>)) {
        if std::mem::replace(&mut self.has_data, true) {
            sink(self, Part::Join);
        }
    }

    #[inline]
    fn end_line(&mut self, byte: u8) {
        self.after_cr = byte == b'\r';
        self.state = State::Line;
    }

    #[inline]
    fn value(&mut self, field: Field, chunk: &[u8], at: usize, sink: &mut impl FnMut(&Self, Part<'_>)) -> usize {
        let end = memchr2(b'\n', b'\r', &chunk[at..]).map_or(chunk.len(), |length| at + length);
        let piece = &chunk[at..end];
        match field {
            Field::Data if !piece.is_empty() => sink(self, Part::Data(piece)),
            Field::Event => {
                let room = MAX_NAME - self.name.len();
                self.name.extend_from_slice(&piece[..piece.len().min(room)]);
            }
            Field::Data | Field::Other => {}
        }
        if end < chunk.len() {
            self.end_line(chunk[end]);
            return end + 1;
        }
        end
    }

    fn stray(&mut self, chunk: &[u8], at: usize, sink: &mut impl FnMut(&Self, Part<'_>)) -> usize {
        let end = memchr2(b'\n', b'\r', &chunk[at..]).map_or(chunk.len(), |length| at + length);
        if end > at {
            sink(self, Part::Stray(&chunk[at..end]));
        }
        if end < chunk.len() {
            sink(self, Part::Stray(b"\n"));
            self.end_line(chunk[end]);
            return end + 1;
        }
        end
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Events as `(name, data)`, stray lines as `("stray", text)`.
    fn events(chunks: &[&[u8]]) -> Vec<(String, String)> {
        let mut found = Vec::new();
        let mut data = Vec::new();
        let mut stray = Vec::new();
        let mut scanner = Scanner::new();
        let mut sink = |scanner: &Scanner, part: Part<'_>| match part {
            Part::Data(piece) => {
                assert!(!piece.is_empty());
                data.extend_from_slice(piece);
            }
            Part::Join => data.push(b'\n'),
            Part::End => found.push((
                String::from_utf8_lossy(scanner.name()).into_owned(),
                String::from_utf8_lossy(&std::mem::take(&mut data)).into_owned(),
            )),
            Part::Stray(b"\n") => {
                found.push(("stray".to_owned(), String::from_utf8_lossy(&std::mem::take(&mut stray)).into_owned()))
            }
            Part::Stray(piece) => stray.extend_from_slice(piece),
        };
        for chunk in chunks {
            scanner.feed(chunk, &mut sink);
        }
        scanner.finish(&mut sink);
        found
    }

    #[test]
    fn streams_are_read_by_the_book() {
        for (name, input, want) in [
            ("plain", "data: a\n\ndata:b\n\n", &[("", "a"), ("", "b")][..]),
            ("crlf", "data: a\r\n\r\ndata: b\r\n\r\n", &[("", "a"), ("", "b")]),
            ("cr", "data: a\r\rdata: b\r\r", &[("", "a"), ("", "b")]),
            ("mark", "\u{feff}data: a\n\n", &[("", "a")]),
            ("name", "event: x\ndata: a\n\ndata: b\n\n", &[("x", "a"), ("", "b")]),
            ("name after", "data: a\nevent: x\n\n", &[("x", "a")]),
            ("comment", ": ping\n\n:\ndata: a\n: b\n\n", &[("", "a")]),
            ("multi-line", "data: a\ndata: b\ndata\ndata:\n\n", &[("", "a\nb\n\n")]),
            ("two spaces", "data:  a \n\n", &[("", " a ")]),
            ("other fields", "id: 1\nretry: 5\ndatas: x\ndat: y\ndata: a\n\n", &[("", "a")]),
            ("no data", "event: x\n\nevent: y\nid: 1\n\n", &[]),
            ("empty data", "data:\n\n", &[("", "")]),
            ("unterminated", "data: a\n\ndata: b", &[("", "a"), ("", "b")]),
            ("unterminated name", "data: a\n\ndata", &[("", "a"), ("", "")]),
            (
                "bare json",
                "data: a\n\n{\n  \"error\": 1\n}\n",
                &[("", "a"), ("stray", "{"), ("stray", "  \"error\": 1"), ("stray", "}")],
            ),
        ] {
            let want: Vec<_> = want.iter().map(|&(a, b)| (a.to_owned(), b.to_owned())).collect();
            assert_eq!(events(&[input.as_bytes()]), want, "{name}");
            let bytes: Vec<_> = input.as_bytes().chunks(1).collect();
            assert_eq!(events(&bytes), want, "{name}, byte by byte");
        }
    }

    proptest! {
        #[test]
        fn chunking_changes_nothing(
            lines in proptest::collection::vec("(data: ?|event: ?|id: |: |dat|\\{|)[a-z \u{e9}]{0,6}(\n|\r\n|\r|\n\n|\r\n\r\n)", 0..20),
            cuts in proptest::collection::vec(0usize..7, 0..60),
        ) {
            let text = lines.concat();
            let mut rest = text.as_bytes();
            let mut chunks = Vec::new();
            for size in cuts {
                let (chunk, left) = rest.split_at(size.min(rest.len()));
                chunks.push(chunk);
                rest = left;
            }
            chunks.push(rest);
            prop_assert_eq!(events(&chunks), events(&[text.as_bytes()]));
        }
    }
}
