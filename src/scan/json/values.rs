//! Values: how they begin and end, and what the sink is told of them.

use super::lexis::Num;
use super::paths::{NONE, ROOT};
use super::scanner::{Role, Scanner, State};
use super::{Event, Head, Kind, Sink, Want};

impl Scanner {
    pub(super) fn value<S: Sink + ?Sized>(&mut self, chunk: &[u8], at: usize, sink: &mut S) -> usize {
        let byte = chunk[at];
        let kind = match byte {
            b'"' => Kind::String,
            b'{' => Kind::Object,
            b'[' => Kind::Array,
            b'-' | b'0'..=b'9' => Kind::Number,
            b't' => Kind::True,
            b'f' => Kind::False,
            b'n' => Kind::Null,
            b']' if self.state == State::ValueOrEnd => return self.close(chunk, at, sink),
            _ => return self.space(chunk, at),
        };
        let item = self.depth > 0 && !self.in_object();
        let node = if self.depth == 0 {
            ROOT
        } else if item {
            self.node
        } else {
            self.next_node
        };
        let want = if node == NONE { None } else { self.paths.nodes[usize::from(node)].want };
        let mut head = None;
        if let Some((tag, want)) = want {
            let told = Head { tag, kind, start: self.base + at as u64, duplicate: self.duplicate && !item, item };
            head = Some(told);
            if want == Want::Raw {
                self.capture.on = true;
                self.capture.over = false;
                self.capture.from = at;
                self.capture.bytes.clear();
            }
            sink.event(Event::Start(told));
        }
        match kind {
            Kind::Object | Kind::Array => {
                let raw = matches!(want, Some((_, Want::Raw)));
                return self.enter(kind, if raw { NONE } else { node }, head, chunk, at);
            }
            Kind::String => {
                self.role = if matches!(want, Some((_, Want::Text))) { Role::Text } else { Role::Value };
                self.scalar = head;
                self.state = State::Str;
                self.text_from = at + 1;
                return self.string(chunk, at + 1, sink);
            }
            Kind::Number => {
                self.state = State::Number;
                self.num = match byte {
                    b'-' => Num::Minus,
                    b'0' => Num::Zero,
                    _ => Num::Int,
                };
            }
            Kind::True => self.begin_literal(b"true"),
            Kind::False => self.begin_literal(b"false"),
            Kind::Null => self.begin_literal(b"null"),
        }
        self.scalar = head;
        at + 1
    }

    pub(super) fn begin_literal(&mut self, word: &'static [u8]) {
        self.state = State::Literal;
        self.word = word;
        self.word_at = 1;
    }

    pub(super) fn number<S: Sink + ?Sized>(&mut self, chunk: &[u8], at: usize, sink: &mut S) -> usize {
        let mut num = self.num;
        for (index, &byte) in chunk.iter().enumerate().skip(at) {
            match num.next(byte) {
                Some(next) => num = next,
                None if num.may_end() => {
                    self.end_scalar(chunk, index, sink);
                    return index;
                }
                None => return self.unexpected(chunk, index),
            }
        }
        self.num = num;
        chunk.len()
    }

    pub(super) fn literal<S: Sink + ?Sized>(&mut self, chunk: &[u8], at: usize, sink: &mut S) -> usize {
        let rest = &self.word[usize::from(self.word_at)..];
        for (index, &want) in rest.iter().enumerate() {
            match chunk.get(at + index) {
                Some(&byte) if byte == want => {}
                Some(_) => return self.unexpected(chunk, at + index),
                None => {
                    // Below 5, the length of the longest word.
                    self.word_at += index as u8;
                    return chunk.len();
                }
            }
        }
        let end = at + rest.len();
        self.end_scalar(chunk, end, sink);
        end
    }

    #[inline]
    pub(super) fn end_scalar<S: Sink + ?Sized>(&mut self, chunk: &[u8], end: usize, sink: &mut S) {
        self.state = if self.depth == 0 { State::Done } else { State::Next };
        if let Some(head) = self.scalar.take() {
            self.tell_end(head, chunk, end, sink);
        }
    }

    pub(super) fn tell_text<S: Sink + ?Sized>(&mut self, chunk: &[u8], end: usize, sink: &mut S) {
        if let Some(head) = self.scalar
            && end > self.text_from
        {
            sink.event(Event::Text { tag: head.tag, fragment: &chunk[self.text_from..end] });
        }
    }

    pub(super) fn tell_end<S: Sink + ?Sized>(&mut self, head: Head, chunk: &[u8], end: usize, sink: &mut S) {
        let at = self.base + end as u64;
        // Inside a captured value nothing else is wanted, so whatever ends during a capture is its value.
        if !self.capture.on {
            sink.event(Event::End { head, end: at, raw: None });
            return;
        }
        self.capture.on = false;
        let piece = &chunk[self.capture.from..end];
        if self.capture.over {
            sink.event(Event::End { head, end: at, raw: None });
        } else if self.capture.bytes.is_empty() {
            let raw = (piece.len() <= self.raw_cap).then_some(piece);
            sink.event(Event::End { head, end: at, raw });
        } else {
            self.capture.spill(piece, self.raw_cap);
            let raw = (!self.capture.over).then_some(&*self.capture.bytes);
            sink.event(Event::End { head, end: at, raw });
            self.capture.bytes.clear();
        }
    }
}
