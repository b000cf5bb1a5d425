//! The scanner: its state, and the structure of documents.
//!
//! Leaves strings and keys to `strings`, values and what is told of them to `values`.

use super::lexis::Num;
use super::paths::{NONE, Paths, ROOT};
use super::{Error, Head, Kind, MAX_DEPTH, Sink};

/// Kept to one byte, for it is looked at for every token; what a state needs besides stands in the scanner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// Nothing but white space, or part of a byte order mark, seen.
    Begin,
    Value,
    /// After `[`.
    ValueOrEnd,
    /// After a comma in an object.
    Key,
    /// After `{`.
    KeyOrEnd,
    Colon,
    /// After a value inside a container.
    Next,
    Str,
    StrEscape,
    StrHex,
    Number,
    Literal,
    /// The document has ended.
    Done,
    Failed,
}

/// What the string being read is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// A key of an object where a child may match.
    Key,
    /// A key nobody wants.
    IdleKey,
    /// A value told in fragments.
    Text,
    /// Any other value.
    Value,
}

/// A key seen in pieces: decoded as far as any wanted key is long.
#[derive(Debug, Default)]
pub(super) struct KeyBuffer {
    pub(super) bytes: Vec<u8>,
    pub(super) used: bool,
}

/// A wanted container that has not ended.
#[derive(Clone, Copy, Debug)]
pub(super) struct Open {
    pub(super) depth: u16,
    pub(super) head: Head,
}

/// The capture of one [`Raw`](super::Want::Raw) value.
#[derive(Debug, Default)]
pub(super) struct Capture {
    pub(super) on: bool,
    pub(super) over: bool,
    /// Where in the current chunk the uncopied part begins.
    pub(super) from: usize,
    pub(super) bytes: Vec<u8>,
}

impl Capture {
    /// Copies what the chunk holds, up to the cap.
    pub(super) fn spill(&mut self, piece: &[u8], cap: usize) {
        if self.over || self.bytes.len() + piece.len() > cap {
            self.over = true;
            self.bytes = Vec::new();
        } else {
            self.bytes.extend_from_slice(piece);
        }
    }
}

/// The scanner of one document. Feed it, then [`finish`](Self::finish); [`reset`](Self::reset) makes it new.
#[derive(Debug)]
pub struct Scanner {
    pub(super) paths: &'static Paths,
    pub(super) raw_cap: usize,
    pub(super) state: State,
    pub(super) role: Role,
    /// Bytes of a byte order mark seen.
    pub(super) bom: u8,
    /// Of a `\u` escape: digits still to come, and its value so far.
    pub(super) hex_left: u8,
    pub(super) hex_code: u16,
    pub(super) num: Num,
    /// The literal being read, and how much of it was.
    pub(super) word: &'static [u8],
    pub(super) word_at: u8,
    pub(super) error: Option<Error>,
    /// Offset of the current chunk's first byte.
    pub(super) base: u64,
    pub(super) depth: u16,
    /// Bit n: the container at depth n + 1 is an object.
    pub(super) kinds: [u64; MAX_DEPTH / 64],
    /// Node of the innermost container, or `NONE` where nothing below can be wanted.
    pub(super) node: u16,
    /// With `node == NONE`: the depth above which, and the node with which, matching resumes.
    pub(super) resume: (u16, u16),
    /// Node of the value that follows the key just read.
    pub(super) next_node: u16,
    /// Nodes whose key was seen in their present object.
    pub(super) seen: u64,
    pub(super) duplicate: bool,
    /// The wanted scalar being read.
    pub(super) scalar: Option<Head>,
    pub(super) text_from: usize,
    pub(super) key_from: usize,
    pub(super) key: KeyBuffer,
    pub(super) capture: Capture,
    pub(super) open: Vec<Open>,
}

impl Scanner {
    /// A scanner for `paths`; a [`Raw`](super::Want::Raw) value longer than `raw_cap` bytes is reported without its bytes.
    #[must_use]
    pub fn new(paths: &'static Paths, raw_cap: usize) -> Self {
        Self {
            paths,
            raw_cap,
            state: State::Begin,
            role: Role::Value,
            bom: 0,
            hex_left: 0,
            hex_code: 0,
            num: Num::Zero,
            word: b"",
            word_at: 0,
            error: None,
            base: 0,
            depth: 0,
            kinds: [0; MAX_DEPTH / 64],
            node: ROOT,
            resume: (0, ROOT),
            next_node: ROOT,
            seen: 0,
            duplicate: false,
            scalar: None,
            text_from: 0,
            key_from: 0,
            key: KeyBuffer::default(),
            capture: Capture::default(),
            open: Vec::new(),
        }
    }

    /// Makes it ready for another document; offsets begin at 0 again.
    pub fn reset(&mut self) {
        self.state = State::Begin;
        self.bom = 0;
        self.error = None;
        self.base = 0;
        self.depth = 0;
        self.node = ROOT;
        self.next_node = ROOT;
        self.seen = 0;
        self.duplicate = false;
        self.scalar = None;
        self.key.used = false;
        self.capture.on = false;
        self.open.clear();
    }

    /// True once the document has ended. A bare number ends only with a byte after it, or with [`finish`](Self::finish).
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.state == State::Done
    }

    /// True while nothing but white space or a byte order mark has been seen.
    #[must_use]
    pub fn is_untouched(&self) -> bool {
        self.state == State::Begin
    }

    /// Takes the next bytes.
    ///
    /// # Errors
    /// Says where the input stopped being JSON. Later calls repeat the error and read nothing.
    pub fn feed<S: Sink + ?Sized>(&mut self, chunk: &[u8], sink: &mut S) -> Result<(), Error> {
        self.read(chunk, sink, false).map(drop)
    }

    /// Takes the next bytes up to the end of the document and says how many those were; less than all of them only
    /// when the document [is done](Self::is_done). For documents that follow one another.
    ///
    /// # Errors
    /// As [`feed`](Self::feed).
    pub fn feed_one<S: Sink + ?Sized>(&mut self, chunk: &[u8], sink: &mut S) -> Result<usize, Error> {
        self.read(chunk, sink, true)
    }

    pub(super) fn read<S: Sink + ?Sized>(&mut self, chunk: &[u8], sink: &mut S, one: bool) -> Result<usize, Error> {
        self.capture.from = 0;
        self.text_from = 0;
        self.key_from = 0;
        let mut at = 0;
        while at < chunk.len() && !(one && self.state == State::Done) {
            at = self.step(chunk, at, sink);
        }
        if let Some(error) = self.error {
            return Err(error);
        }
        self.end_chunk(&chunk[..at], sink);
        Ok(at)
    }

    /// Says whether the document was whole. Tells the sink of a bare number, whose end only this can show.
    ///
    /// # Errors
    /// [`Error::Incomplete`] when it was not, or the error that stopped [`feed`](Self::feed).
    pub fn finish<S: Sink + ?Sized>(&mut self, sink: &mut S) -> Result<(), Error> {
        if self.state == State::Number && self.depth == 0 && self.num.may_end() {
            self.end_scalar(&[], 0, sink);
        }
        match self.error {
            Some(error) => Err(error),
            None if self.state == State::Done => Ok(()),
            None => Err(Error::Incomplete { at: self.base }),
        }
    }

    /// Hands over, or copies, what belongs to a value that goes on in the next chunk.
    pub(super) fn end_chunk<S: Sink + ?Sized>(&mut self, chunk: &[u8], sink: &mut S) {
        if matches!(self.state, State::Str | State::StrEscape | State::StrHex) {
            match self.role {
                Role::Key if self.state == State::Str => self.keep_key(&chunk[self.key_from..]),
                Role::Text => self.tell_text(chunk, chunk.len(), sink),
                Role::Key | Role::IdleKey | Role::Value => {}
            }
        }
        if self.capture.on {
            let from = self.capture.from;
            self.capture.spill(&chunk[from..], self.raw_cap);
        }
        self.base += chunk.len() as u64;
    }

    /// Reads on from `at`, by at least one byte or into another state; returns where to go on. On a fault that is the
    /// chunk's end, and `error` is set.
    #[inline]
    pub(super) fn step<S: Sink + ?Sized>(&mut self, chunk: &[u8], at: usize, sink: &mut S) -> usize {
        let byte = chunk[at];
        match self.state {
            State::Str => self.string(chunk, at, sink),
            State::Next => match byte {
                b',' if !self.in_object() => {
                    self.state = State::Value;
                    at + 1
                }
                b',' if chunk.get(at + 1) == Some(&b'"') => self.begin_key(chunk, at + 1, sink),
                b',' => {
                    self.state = State::Key;
                    at + 1
                }
                b'}' | b']' => self.close(chunk, at, sink),
                _ => self.space(chunk, at),
            },
            State::Key | State::KeyOrEnd => match byte {
                b'"' => self.begin_key(chunk, at, sink),
                b'}' if self.state == State::KeyOrEnd => self.close(chunk, at, sink),
                _ => self.space(chunk, at),
            },
            State::Colon if byte == b':' => {
                self.state = State::Value;
                at + 1
            }
            State::Value | State::ValueOrEnd => self.value(chunk, at, sink),
            State::Number => self.number(chunk, at, sink),
            State::Literal => self.literal(chunk, at, sink),
            State::StrEscape => self.escape(chunk, at),
            State::StrHex => self.hex(chunk, at),
            State::Begin => self.begin(chunk, at),
            State::Colon | State::Done => self.space(chunk, at),
            State::Failed => chunk.len(),
        }
    }

    #[inline]
    pub(super) fn begin_key<S: Sink + ?Sized>(&mut self, chunk: &[u8], at: usize, sink: &mut S) -> usize {
        let matched = self.node != NONE && self.paths.nodes[usize::from(self.node)].sieve != 0;
        self.role = if matched { Role::Key } else { Role::IdleKey };
        self.key_from = at + 1;
        self.key.used = false;
        self.state = State::Str;
        self.string(chunk, at + 1, sink)
    }

    #[inline]
    pub(super) fn space(&mut self, chunk: &[u8], at: usize) -> usize {
        if matches!(chunk[at], b' ' | b'\n' | b'\r' | b'\t') { at + 1 } else { self.unexpected(chunk, at) }
    }

    #[cold]
    pub(super) fn unexpected(&mut self, chunk: &[u8], at: usize) -> usize {
        self.fail(Error::Unexpected { byte: chunk[at], at: self.base + at as u64 }, chunk)
    }

    #[cold]
    pub(super) fn fail(&mut self, error: Error, chunk: &[u8]) -> usize {
        self.state = State::Failed;
        self.error = Some(error);
        chunk.len()
    }

    pub(super) fn begin(&mut self, chunk: &[u8], at: usize) -> usize {
        const MARK: [u8; 3] = [0xef, 0xbb, 0xbf];
        let (bom, byte) = (self.bom, chunk[at]);
        if bom < 3 && byte == MARK[usize::from(bom)] && (bom > 0 || self.base + at as u64 == 0) {
            self.bom += 1;
            return at + 1;
        }
        if bom == 1 || bom == 2 {
            return self.unexpected(chunk, at);
        }
        if matches!(byte, b' ' | b'\n' | b'\r' | b'\t') {
            return at + 1;
        }
        self.state = State::Value;
        at
    }

    #[inline]
    pub(super) fn in_object(&self) -> bool {
        let top = usize::from(self.depth) - 1;
        (self.kinds[top / 64] >> (top % 64)) & 1 == 1
    }

    pub(super) fn enter(&mut self, kind: Kind, node: u16, head: Option<Head>, chunk: &[u8], at: usize) -> usize {
        let depth = usize::from(self.depth);
        if depth == MAX_DEPTH {
            return self.fail(Error::TooDeep { at: self.base + at as u64 }, chunk);
        }
        if let Some(head) = head {
            self.open.push(Open { depth: self.depth, head });
        }
        let (word, mask) = (depth / 64, 1u64 << (depth % 64));
        if kind == Kind::Object {
            self.kinds[word] |= mask;
            self.state = State::KeyOrEnd;
        } else {
            self.kinds[word] &= !mask;
            self.state = State::ValueOrEnd;
        }
        if node == NONE {
            if self.node != NONE {
                self.resume = (self.depth, self.node);
                self.node = NONE;
            }
        } else {
            self.node = node;
            if kind == Kind::Object {
                self.seen &= !self.paths.nodes[usize::from(node)].child_bits;
            }
        }
        self.depth += 1;
        at + 1
    }

    pub(super) fn close<S: Sink + ?Sized>(&mut self, chunk: &[u8], at: usize, sink: &mut S) -> usize {
        if (chunk[at] == b'}') != self.in_object() {
            return self.unexpected(chunk, at);
        }
        self.depth -= 1;
        if self.depth == 0 {
            self.node = ROOT;
            self.state = State::Done;
        } else {
            if self.node == NONE {
                if self.resume.0 == self.depth {
                    self.node = self.resume.1;
                }
            } else if self.in_object() {
                self.node = self.paths.nodes[usize::from(self.node)].parent;
            }
            self.state = State::Next;
        }
        if let Some(open) = self.open.last()
            && open.depth == self.depth
        {
            let head = open.head;
            self.open.pop();
            self.tell_end(head, chunk, at + 1, sink);
        }
        at + 1
    }
}
