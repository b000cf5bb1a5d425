//! [`Ahead`]: a connection of which some bytes were read before it was known what they are.
//!
//! Owns reading them again; leaves what they mean to `listener` and `sni`.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};

/// `S`, with bytes to be read before its own.
#[derive(Debug)]
pub struct Ahead<S> {
    bytes: Vec<u8>,
    /// How many of `bytes` were read again.
    read: usize,
    inner: S,
}

impl<S> Ahead<S> {
    /// `bytes`, then what `inner` gives.
    pub fn new(bytes: Vec<u8>, inner: S) -> Self {
        Self { bytes, read: 0, inner }
    }

    /// What is still to be read again, and the connection.
    pub fn into_parts(mut self) -> (Vec<u8>, S) {
        self.bytes.drain(..self.read);
        (self.bytes, self.inner)
    }

    /// The connection.
    pub fn get_ref(&self) -> &S {
        &self.inner
    }
}

impl<S: AsyncRead + Unpin> Ahead<S> {
    /// The first `want` bytes at most, which stay to be read; fewer only when they differ from `like` before, or the
    /// connection ends. Not cancel safe.
    ///
    /// # Errors
    /// When it cannot be read.
    pub async fn peek(&mut self, want: usize, like: &[u8]) -> io::Result<&[u8]> {
        while self.bytes.len() < want && like.starts_with(&self.bytes) {
            let mut piece = [0; 8];
            let room = piece.len().min(want - self.bytes.len());
            match self.inner.read(&mut piece[..room]).await? {
                0 => break,
                len => self.bytes.extend_from_slice(&piece[..len]),
            }
        }
        Ok(&self.bytes[self.read..])
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Ahead<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.bytes.is_empty() {
            return Pin::new(&mut this.inner).poll_read(cx, buf);
        }
        let rest = &this.bytes[this.read..];
        let len = rest.len().min(buf.remaining());
        buf.put_slice(&rest[..len]);
        this.read += len;
        if this.read == this.bytes.len() {
            // Gives the room back: connections live long.
            (this.bytes, this.read) = (Vec::new(), 0);
            // What follows is likely here already; one read of the head instead of two.
            let _ = Pin::new(&mut this.inner).poll_read(cx, buf)?;
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Ahead<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;

    use super::*;

    #[tokio::test]
    async fn what_was_looked_at_is_read_again() {
        for (sent, want, like, seen) in
            [("PRI * HTTP", 4, "PRI ", "PRI "), ("POST", 4, "PRI ", "P"), ("PUT", 4, "PRI ", "P"), ("x", 4, "x", "x")]
        {
            let (mut theirs, ours) = tokio::io::duplex(64);
            for byte in sent.bytes() {
                theirs.write_u8(byte).await.unwrap();
            }
            drop(theirs);
            let mut ours = Ahead::new(Vec::new(), ours);
            assert!(ours.peek(want, like.as_bytes()).await.unwrap().starts_with(seen.as_bytes()), "{sent}");
            let mut all = String::new();
            ours.read_to_string(&mut all).await.unwrap();
            assert_eq!(all, sent);
        }
    }
}
