//! Ending a stream that has used up what was reserved for it, when no more is to be had.
//!
//! Owns when, where in the stream, and what the client is told last; leaves whether there is more to `limit`.
//!
//! Everything up to the end passes untouched; the cut lies between two events, so that the client's parser is left with
//! none half read, and an error event in its dialect follows. A stream that events cannot be added to, since it is
//! compressed, framed in binary or of a known length, is broken off instead: a truncated answer must look like one.

use bytes::Bytes;
use http::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE};
use http::response::Parts;

use crate::limit::{Consumption, Moment, Refused};
use crate::provider::{Dialect, Refusal};
use crate::proxy::error::Error;
use crate::proxy::settle::Account;
use crate::tally::{Observer, Wire};

/// The least that is asked for at once when a reservation is used up, tokens.
const LEAST: u64 = 64;

/// Watches one stream.
#[derive(Debug)]
pub(super) struct HardStop {
    wire: Wire,
    dialect: &'static dyn Dialect,
    /// True when an event can be added to the stream.
    open: bool,
    /// Output tokens that are reserved.
    reserved: u64,
    /// Money of one output token, billionths of a US dollar.
    token_nano_usd: u64,
    wall_ms: u64,
    /// Set when there is no more: the end comes at the next boundary.
    refused: Option<Box<Refused>>,
    boundary: Boundary,
}

/// What becomes of a frame.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It passes.
    Pass,
    /// This much of it passes, then the event, then the stream ends.
    Stop(usize, Bytes),
    /// The stream breaks off before it.
    Break,
}

impl HardStop {
    /// For the stream that `head` begins; `None` where there is nothing to count.
    pub(super) fn new(
        wire: Wire,
        dialect: &'static dyn Dialect,
        head: &Parts,
        reserved: Consumption,
        wall_ms: u64,
    ) -> Option<Self> {
        if !wire.has_output() || head.status.as_u16() >= 400 {
            return None;
        }
        let kind = head.headers.get(CONTENT_TYPE).map(|value| value.as_bytes()).unwrap_or_default();
        let fixed = head.headers.contains_key(CONTENT_ENCODING) || head.headers.contains_key(CONTENT_LENGTH);
        let open = kind.starts_with(b"text/event-stream") && !fixed;
        // By its own estimate: what a token of output costs shows in what all of them were thought to.
        let token_nano_usd = reserved.nano_usd.checked_div(reserved.output).unwrap_or(0);
        let boundary = Boundary::default();
        Some(Self { wire, dialect, open, reserved: reserved.output, token_nano_usd, wall_ms, refused: None, boundary })
    }

    /// Judges the next frame, which the observer has seen.
    pub(super) fn judge(&mut self, data: &[u8], observer: &Observer, account: &mut Account) -> Verdict {
        if self.refused.is_none() {
            let seen = observer.output_so_far();
            if seen > self.reserved {
                self.refused = self.grow(seen, account).err();
            }
        }
        let at = self.boundary.feed(data);
        match (&self.refused, at) {
            (None, _) => Verdict::Pass,
            (Some(_), _) if !self.open => Verdict::Break,
            (Some(_), None) => Verdict::Pass,
            (Some(refused), Some(at)) => Verdict::Stop(at, self.event(refused)),
        }
    }

    /// Reserves for what went by beyond the reservation, and some more.
    fn grow(&mut self, seen: u64, account: &mut Account) -> Result<(), Box<Refused>> {
        let Some(open) = account.open() else { return Ok(()) };
        let at = Moment { now: open.books.clock.now(), wall_ms: self.wall_ms };
        let Some(permit) = &mut open.permit else { return Ok(()) };
        let tokens = (seen - self.reserved).saturating_add((self.reserved / 4).max(LEAST));
        let nano_usd = tokens.saturating_mul(self.token_nano_usd);
        permit.grow(at, Consumption { nano_usd, ..Consumption::tokens(0, tokens) })?;
        self.reserved = self.reserved.saturating_add(tokens);
        Ok(())
    }

    fn event(&self, refused: &Refused) -> Bytes {
        let error = Error::Limited(Box::new(refused.clone()));
        let refusal = Refusal::new(error.kind(), format!("the stream was ended: {refused}"));
        self.dialect.refusal_event(self.wire, &refusal)
    }
}

/// Finds where events end, over any cut into frames.
#[derive(Debug, Default)]
struct Boundary {
    /// Line ends just seen, with nothing between them.
    ends: u8,
    /// The last byte was a carriage return: a line feed after it is part of the same end.
    returned: bool,
}

impl Boundary {
    /// Takes the next bytes; where in them the first event ends. At 0 one has ended with the bytes before.
    fn feed(&mut self, data: &[u8]) -> Option<usize> {
        let mut first = (self.ends >= 2 && data.first() != Some(&b'\n')).then_some(0);
        for (at, byte) in data.iter().enumerate() {
            match byte {
                b'\n' if self.returned => self.returned = false,
                b'\n' | b'\r' => {
                    self.ends = self.ends.saturating_add(1);
                    self.returned = *byte == b'\r';
                }
                _ => (self.ends, self.returned) = (0, false),
            }
            // With `\r\n` the event ends behind the line feed, which may be the next byte.
            let whole = self.ends >= 2 && !(self.returned && data.get(at + 1) == Some(&b'\n'));
            if whole && first.is_none() {
                first = Some(at + 1);
            }
        }
        first
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn events_end_at_empty_lines() {
        for (name, pieces, want) in [
            ("one", &["data: 1\n\ndata: 2"][..], &[Some(9)][..]),
            ("none", &["data: 1\n", "data: 2\n"], &[None, None]),
            ("over two", &["data: 1\n", "\ndata: 2"], &[None, Some(1)]),
            ("at the seam", &["data: 1\n\n", "data: 2"], &[Some(9), Some(0)]),
            ("crlf", &["data: 1\r\n\r\ndata"], &[Some(11)]),
            ("crlf, cut inside", &["data: 1\r\n\r", "\ndata"], &[Some(10), Some(1)]),
            ("cr", &["data: 1\r\rdata"], &[Some(9)]),
            ("empty", &["", "x"], &[None, None]),
        ] {
            let mut boundary = Boundary::default();
            let got: Vec<_> = pieces.iter().map(|piece| boundary.feed(piece.as_bytes())).collect();
            assert_eq!(got, want, "{name}");
        }
    }

    proptest! {
        /// Wherever the frames are cut, what is found is an end of an event.
        #[test]
        fn what_is_found_is_an_end(cuts in proptest::collection::vec(1..7_usize, 0..40), crlf in any::<bool>()) {
            let end = if crlf { "\r\n" } else { "\n" };
            let text: String = (0..9).map(|n| format!("id: {n}{end}data: x{end}{end}")).collect();
            let ends: Vec<usize> = text.match_indices(&format!("x{end}{end}")).map(|(at, found)| at + found.len()).collect();
            let (mut boundary, mut start) = (Boundary::default(), 0);
            for cut in cuts {
                let stop = (start + cut).min(text.len());
                if let Some(at) = boundary.feed(&text.as_bytes()[start..stop]) {
                    let at = start + at;
                    // A carriage return at a frame's end leaves open whether a line feed follows: both are ends.
                    prop_assert!(ends.contains(&at) || (crlf && ends.contains(&(at + 1))), "{at} in {ends:?}");
                }
                start = stop;
            }
        }
    }
}
