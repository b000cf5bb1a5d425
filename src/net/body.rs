//! Bodies: what goes to an upstream, and what comes from one.
//!
//! Owns [`Outgoing`]; leaves reading responses to `upstream` and looking at them to `proxy::observe`.

use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};

/// Any error a body may end with.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

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
    /// Adds `chunk` behind the others.
    pub fn push(&mut self, chunk: Bytes) {
        self.len += chunk.len() as u64;
        if !chunk.is_empty() {
            self.chunks.push_back(chunk);
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

    /// One piece: the only chunk as it is, else the chunks joined.
    #[must_use]
    pub fn joined(&self) -> Bytes {
        match self.chunks.len() {
            0 => Bytes::new(),
            1 => self.chunks[0].clone(),
            _ => self.chunks.iter().flat_map(|chunk| chunk.iter().copied()).collect(),
        }
    }

    /// The same bytes with `insert` put in at `offset`.
    #[must_use]
    pub fn spliced(&self, offset: u64, insert: Bytes) -> Self {
        let mut out = Self::default();
        let (mut at, mut insert) = (0, Some(insert));
        for chunk in &self.chunks {
            let end = at + chunk.len() as u64;
            let cut = usize::try_from(offset.saturating_sub(at)).unwrap_or(usize::MAX);
            if offset <= end && insert.is_some() {
                out.push(chunk.slice(..cut));
                out.push(insert.take().unwrap_or_default());
                out.push(chunk.slice(cut..));
            } else {
                out.push(chunk.clone());
            }
            at = end;
        }
        out.push(insert.unwrap_or_default());
        out
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
    fn splices_at_every_offset_of_every_cut() {
        let text = b"0123456789";
        for cut in 0..=text.len() {
            let mut chunks = Chunks::default();
            chunks.push(Bytes::copy_from_slice(&text[..cut]));
            chunks.push(Bytes::copy_from_slice(&text[cut..]));
            for offset in 0..=text.len() {
                let got = chunks.spliced(offset as u64, Bytes::from_static(b"ab"));
                let mut want = text.to_vec();
                want.splice(offset..offset, *b"ab");
                assert_eq!(got.joined(), want, "cut {cut}, offset {offset}");
                assert_eq!(got.len(), 12);
            }
        }
    }
}
