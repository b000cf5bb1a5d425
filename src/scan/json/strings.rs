//! Strings and keys: where they end, their escapes, and the match of a key.

use super::Sink;
use super::lexis::quote_or_escape;
use super::paths::{NONE, bit};
use super::scanner::{Role, Scanner, State};

/// Bytes of the escape behind a backslash, if it is whole and valid.
#[inline]
fn escape_len(rest: &[u8]) -> Option<usize> {
    match rest {
        [b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't', ..] => Some(1),
        [b'u', a, b, c, d, ..] => [a, b, c, d].into_iter().all(u8::is_ascii_hexdigit).then_some(5),
        _ => None,
    }
}

impl Scanner {
    /// Reads a string's content from `at`, which may be the end of the chunk.
    #[inline]
    pub(super) fn string<S: Sink + ?Sized>(&mut self, chunk: &[u8], at: usize, sink: &mut S) -> usize {
        let mut found = quote_or_escape(chunk, at);
        // Only keys are decoded: elsewhere an escape that is all here is stepped over at once.
        while let Some(backslash) = found.filter(|&at| chunk[at] == b'\\' && self.role != Role::Key) {
            let Some(len) = escape_len(&chunk[backslash + 1..]) else { break };
            found = quote_or_escape(chunk, backslash + 1 + len);
        }
        match found {
            None => chunk.len(),
            Some(end) if chunk[end] == b'"' => {
                match self.role {
                    Role::Key => {
                        self.match_key(chunk, end);
                        return self.after_key(chunk, end + 1);
                    }
                    Role::IdleKey => {
                        self.next_node = NONE;
                        return self.after_key(chunk, end + 1);
                    }
                    Role::Text => {
                        self.tell_text(chunk, end, sink);
                        self.end_scalar(chunk, end + 1, sink);
                    }
                    Role::Value => self.end_scalar(chunk, end + 1, sink),
                }
                end + 1
            }
            Some(backslash) => {
                if self.role == Role::Key {
                    let from = self.key_from;
                    self.keep_key(&chunk[from..backslash]);
                }
                self.state = State::StrEscape;
                backslash + 1
            }
        }
    }

    /// Takes the colon along if it comes at once, as it does in all but pretty-printed JSON.
    #[inline]
    pub(super) fn after_key(&mut self, chunk: &[u8], at: usize) -> usize {
        if chunk.get(at) == Some(&b':') {
            self.state = State::Value;
            at + 1
        } else {
            self.state = State::Colon;
            at
        }
    }

    pub(super) fn escape(&mut self, chunk: &[u8], at: usize) -> usize {
        let plain = match chunk[at] {
            byte @ (b'"' | b'\\' | b'/') => byte,
            b'b' => 0x08,
            b'f' => 0x0c,
            b'n' => b'\n',
            b'r' => b'\r',
            b't' => b'\t',
            b'u' => {
                self.state = State::StrHex;
                self.hex_left = 4;
                self.hex_code = 0;
                return at + 1;
            }
            _ => return self.unexpected(chunk, at),
        };
        self.unescaped(plain, at);
        at + 1
    }

    pub(super) fn hex(&mut self, chunk: &[u8], at: usize) -> usize {
        let digit = match chunk[at] {
            byte @ b'0'..=b'9' => byte - b'0',
            byte @ b'a'..=b'f' => byte - b'a' + 10,
            byte @ b'A'..=b'F' => byte - b'A' + 10,
            _ => return self.unexpected(chunk, at),
        };
        self.hex_code = self.hex_code << 4 | u16::from(digit);
        self.hex_left -= 1;
        if self.hex_left == 0 {
            // No wanted key has a byte above 0x7f, so one such byte stands for every other character.
            self.unescaped(u8::try_from(self.hex_code).ok().filter(u8::is_ascii).unwrap_or(0xff), at);
        }
        at + 1
    }

    pub(super) fn unescaped(&mut self, byte: u8, at: usize) {
        if self.role == Role::Key {
            self.keep_key(&[byte]);
            self.key_from = at + 1;
        }
        self.state = State::Str;
    }

    pub(super) fn keep_key(&mut self, piece: &[u8]) {
        if !self.key.used {
            self.key.used = true;
            self.key.bytes.clear();
        }
        // One byte more than the longest wanted key is enough to tell that none can match.
        let room = (self.paths.longest + 1).saturating_sub(self.key.bytes.len());
        self.key.bytes.extend_from_slice(&piece[..piece.len().min(room)]);
    }

    pub(super) fn match_key(&mut self, chunk: &[u8], end: usize) {
        let from = self.key_from;
        let child = if self.key.used {
            self.keep_key(&chunk[from..end]);
            self.paths.child(self.node, &self.key.bytes)
        } else {
            self.paths.child(self.node, &chunk[from..end])
        };
        self.next_node = NONE;
        if let Some(child) = child {
            self.next_node = child;
            self.duplicate = self.seen & bit(child) != 0;
            self.seen |= bit(child);
        }
    }
}
