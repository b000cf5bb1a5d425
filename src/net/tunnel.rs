//! Two upgraded connections joined: bytes pass both ways, and a copy of what the upstream says can be looked at.
//!
//! Owns the copying; leaves what the bytes mean to the observer it is given.

use std::io;
use std::time::Duration;

use bytes::Bytes;
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::net::ahead::Ahead;
use crate::net::drain::Watch;

/// One read's worth; a message of a realtime session rarely exceeds it.
const BUFFER: usize = 8 * 1024;
/// What the other side has to say after one side has closed is waited for this long.
const LINGER: Duration = Duration::from_secs(10);

/// Looks at a copy of what passes. Dropped when the tunnel has ended, however it ended.
pub trait Observe: Send + 'static {
    /// Bytes from the upstream, before the client gets them. With `Some`, the tunnel ends behind them, the client's side
    /// with these last ones.
    fn upstream_said(&mut self, bytes: &[u8]) -> Option<Bytes>;
    /// Both sides have ended.
    fn ended(&mut self);
}

/// Joins the two sides once both upgrades are done, in a task of its own that ends when both sides have. It holds
/// `drain` for as long: a session is an open request.
pub fn join(client: OnUpgrade, upstream: OnUpgrade, mut observer: impl Observe, drain: Watch) {
    spawn(async move {
        let _open = drain;
        let (Ok(client), Ok(upstream)) = tokio::join!(client, upstream) else { return };
        copy_both(client, upstream, &mut observer).await;
        observer.ended();
    });
}

/// Gives `then` the connection of a client whose request made it a tunnel, in a task of its own. Nothing is given when
/// the client has gone, or the connection is none of HTTP/1.1 at a listener.
pub fn take_over<F, T>(upgrade: OnUpgrade, then: F)
where
    F: FnOnce(Ahead<TcpStream>) -> T + Send + 'static,
    T: Future<Output = ()> + Send,
{
    spawn(async move {
        let Ok(upgraded) = upgrade.await else { return };
        let Ok(parts) = upgraded.downcast::<TokioIo<Ahead<TcpStream>>>() else { return };
        let (rest, tcp) = parts.io.into_inner().into_parts();
        // What came with the request, then what was read ahead of it.
        let held = [&parts.read_buf[..], &rest].concat();
        then(Ahead::new(held, tcp)).await;
    });
}

async fn copy_both(client: Upgraded, upstream: Upgraded, observer: &mut impl Observe) {
    let (mut client_read, mut client_write) = tokio::io::split(TokioIo::new(client));
    let (mut upstream_read, mut upstream_write) = tokio::io::split(TokioIo::new(upstream));
    let mut there = std::pin::pin!(copy(&mut client_read, &mut upstream_write, |_| None));
    let mut back = std::pin::pin!(copy(&mut upstream_read, &mut client_write, |bytes| observer.upstream_said(bytes)));
    tokio::select! {
        _ = &mut there => {
            let _ = tokio::time::timeout(LINGER, back).await;
        }
        copied = &mut back => {
            if matches!(copied, Ok(Copied::Whole) | Err(_)) {
                let _ = tokio::time::timeout(LINGER, there).await;
            }
        }
    }
}

/// How far a side was copied.
enum Copied {
    /// To its end.
    Whole,
    /// To where it was to end.
    Ended,
}

async fn copy<R, W>(from: &mut R, to: &mut W, mut look: impl FnMut(&[u8]) -> Option<Bytes>) -> io::Result<Copied>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let mut buffer = vec![0; BUFFER];
    loop {
        let len = from.read(&mut buffer).await?;
        if len == 0 {
            to.shutdown().await?;
            return Ok(Copied::Whole);
        }
        let last = look(&buffer[..len]);
        to.write_all(&buffer[..len]).await?;
        if let Some(last) = last {
            to.write_all(&last).await?;
            to.shutdown().await?;
            return Ok(Copied::Ended);
        }
        to.flush().await?;
    }
}

#[expect(clippy::disallowed_methods, reason = "net owns the tasks of its connections; drain waits for them")]
fn spawn(task: impl Future<Output = ()> + Send + 'static) {
    tokio::spawn(task);
}
