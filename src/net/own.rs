//! The connections this process has opened: how one that the kernel leads back to it is known.
//!
//! Owns the register, of which there is one, as there is one process; [`Own`] is on it from before its first byte until
//! it is closed. A connection is known by both its ends: another program's may share one of them.

use std::collections::HashSet;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::{LazyLock, Mutex, PoisonError};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use crate::net::splice::{Side, keep_alive};

/// An address without what differs between two readings of it: scope, flow, and IPv4 inside IPv6.
type End = (IpAddr, u16);

static OPEN: LazyLock<Mutex<HashSet<(End, End)>>> = LazyLock::new(Mutex::default);

fn end(address: SocketAddr) -> End {
    (address.ip().to_canonical(), address.port())
}

/// True when this process opened the connection from `local` to `remote`.
#[must_use]
pub fn is_own(local: SocketAddr, remote: SocketAddr) -> bool {
    OPEN.lock().unwrap_or_else(PoisonError::into_inner).contains(&(end(local), end(remote)))
}

/// A connection this process opened.
#[derive(Debug)]
pub struct Own {
    tcp: TcpStream,
    ends: (End, End),
}

impl Own {
    /// Connects.
    ///
    /// # Errors
    /// As of connecting.
    pub async fn connect(to: SocketAddr) -> io::Result<Self> {
        Self::new(TcpStream::connect(to).await?)
    }

    /// Takes one that nothing was written to.
    ///
    /// # Errors
    /// When it has been closed already.
    pub fn new(tcp: TcpStream) -> io::Result<Self> {
        keep_alive(&tcp);
        let ends = (end(tcp.local_addr()?), end(tcp.peer_addr()?));
        OPEN.lock().unwrap_or_else(PoisonError::into_inner).insert(ends);
        Ok(Self { tcp, ends })
    }

    /// The connection itself, for its settings.
    #[must_use]
    pub fn tcp(&self) -> &TcpStream {
        &self.tcp
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        OPEN.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.ends);
    }
}

impl Side for Own {
    fn abort(&self) {
        self.tcp.abort();
    }
}

impl AsyncRead for Own {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_read(cx, buf)
    }
}

impl AsyncWrite for Own {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tcp).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tcp).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.tcp.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn known_from_both_ends_until_closed() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let to = listener.local_addr().unwrap();
        let own = Own::connect(to).await.unwrap();
        let (accepted, peer) = listener.accept().await.unwrap();
        let inside_v6 = |address: SocketAddr| match address.ip() {
            IpAddr::V4(v4) => SocketAddr::new(v4.to_ipv6_mapped().into(), address.port()),
            IpAddr::V6(_) => address,
        };
        assert!(is_own(peer, to) && is_own(inside_v6(peer), inside_v6(to)));
        assert!(!is_own(peer, peer) && !is_own(to, peer));
        drop(own);
        assert!(!is_own(peer, to));
        drop(accepted);
        let stranger = TcpStream::connect(to).await.unwrap();
        assert!(!is_own(stranger.local_addr().unwrap(), to));
    }
}
