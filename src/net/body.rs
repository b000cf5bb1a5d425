//! Bodies: what goes to an upstream, and what comes from one.
//!
//! Owns [`Outgoing`]; leaves reading responses to `upstream` and looking at them to `proxy::observe`.

use std::collections::VecDeque;
use std::ops::Range;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Bytes, BytesMut};
use http_body::{Body, Frame, SizeHint};

/// Any error a body may end with.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Chunks below this are put together, until they are [`LARGE`].
const SMALL: usize = 512;
const LARGE: usize = 4 * 1024;

/// A request body on its way to an upstream. No byte is copied: chunks are the ones the client's socket gave.
#[derive(Default)]
pub enum Outgoing {
    /// No body at all.
    #[default]
    Empty,
    /// Held in full, so that it can be sent again.
    Held(Chunks),
    /// Too large to hold: sent once.
    Streamed(Pin<Box<dyn Body<Data = Bytes, Error = BoxError> + Send>>),
}

/// Chunks in order. Cloning counts references.
#[derive(Clone, Debug, Default)]
pub struct Chunks {
    chunks: VecDeque<Bytes>,
    len: u64,
}

impl Chunks {
    /// Adds `chunk` behind the others. Small ones are gathered: each would hold on to a whole read buffer.
    pub fn push(&mut self, chunk: Bytes) {
        self.len += chunk.len() as u64;
        match self.chunks.back_mut() {
            Some(last) if chunk.len() < SMALL && last.len() < LARGE => {
                let mut gathered = std::mem::take(last).try_into_mut().unwrap_or_else(|shared| {
                    let mut own = BytesMut::with_capacity(LARGE + SMALL);
                    own.extend_from_slice(&shared);
                    own
                });
                gathered.extend_from_slice(&chunk);
                *last = gathered.freeze();
            }
            _ if chunk.is_empty() => {}
            _ => self.chunks.push_back(chunk),
        }
    }

    /// Takes the first chunk.
    pub fn pop(&mut self) -> Option<Bytes> {
        let first = self.chunks.pop_front()?;
        self.len -= first.len() as u64;
        Some(first)
    }

    /// Bytes in all.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.len
    }

    /// True when there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The chunks, in order.
    pub fn iter(&self) -> impl Iterator<Item = &Bytes> {
        self.chunks.iter()
    }

    /// The same chunks with `text` in place of these bytes; what stays is not copied, but for small pieces. `None` when
    /// there are not so many.
    #[must_use]
    pub fn spliced(&self, at: Range<usize>, text: Bytes) -> Option<Self> {
        if at.start > at.end || at.end as u64 > self.len {
            return None;
        }
        let mut spliced = Self::default();
        let mut start = 0;
        for chunk in self.iter() {
            let before = at.start.saturating_sub(start).min(chunk.len());
            spliced.push_some(chunk.slice(..before));
            start += chunk.len();
        }
        spliced.push_some(text);
        let mut start = 0;
        for chunk in self.iter() {
            let until = at.end.saturating_sub(start).min(chunk.len());
            spliced.push_some(chunk.slice(until..));
            start += chunk.len();
        }
        Some(spliced)
    }

    fn push_some(&mut self, chunk: Bytes) {
        if !chunk.is_empty() {
            self.push(chunk);
        }
    }

    /// One piece: the only chunk as it is, else the chunks joined.
    #[must_use]
    pub fn joined(&self) -> Bytes {
        match self.chunks.len() {
            0 => Bytes::new(),
            1 => self.chunks[0].clone(),
            _ => {
                let mut joined = BytesMut::with_capacity(usize::try_from(self.len).unwrap_or(0));
                self.chunks.iter().for_each(|chunk| joined.extend_from_slice(chunk));
                joined.freeze()
            }
        }
    }
}

impl From<Bytes> for Chunks {
    fn from(bytes: Bytes) -> Self {
        let mut chunks = Self::default();
        chunks.push(bytes);
        chunks
    }
}

impl std::fmt::Debug for Outgoing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Empty => f.write_str("Empty"),
            Self::Held(chunks) => write!(f, "Held({} bytes)", chunks.len),
            Self::Streamed(_) => f.write_str("Streamed"),
        }
    }
}

impl Body for Outgoing {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match self.get_mut() {
            Self::Empty => Poll::Ready(None),
            Self::Held(held) => Poll::Ready(held.pop().map(|chunk| Ok(Frame::data(chunk)))),
            Self::Streamed(body) => body.as_mut().poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Held(held) => held.is_empty(),
            Self::Streamed(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Held(held) => SizeHint::with_exact(held.len),
            Self::Streamed(body) => body.size_hint(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_chunks_are_gathered() {
        let mut chunks = Chunks::default();
        let text: Vec<u8> = (0..20_000_u32).map(|n| n.to_le_bytes()[0]).collect();
        for byte in &text {
            chunks.push(Bytes::copy_from_slice(std::slice::from_ref(byte)));
        }
        chunks.push(Bytes::from(vec![7; LARGE]));
        assert!(chunks.iter().count() < 30, "{}", chunks.iter().count());
        assert_eq!(chunks.len(), (text.len() + LARGE) as u64);
        assert_eq!(chunks.joined()[..text.len()], text);
    }

    #[test]
    fn a_splice_changes_the_bytes_it_names() {
        let text: Vec<u8> = (0..10_000_u32).map(|n| n.to_le_bytes()[0]).collect();
        let mut chunks = Chunks::default();
        text.chunks(1_999).for_each(|piece| chunks.push(Bytes::copy_from_slice(piece)));
        for at in [0..0, 0..5, 1_990..2_010, 1_999..1_999, 1_000..9_000, 9_999..10_000, 10_000..10_000] {
            for new in ["", "x", "a longer text"] {
                let spliced = chunks.spliced(at.clone(), Bytes::from(new)).expect("within");
                let want = [&text[..at.start], new.as_bytes(), &text[at.end..]].concat();
                assert_eq!((spliced.joined(), spliced.len()), (Bytes::from(want.clone()), want.len() as u64), "{at:?}");
            }
        }
        assert!(chunks.spliced(0..10_001, Bytes::new()).is_none());
        assert_eq!(chunks.joined(), text);
    }
}
