//! The way out of a sandbox: a connection's ClientHello says where it wants to go, and sidekey's proxy is asked for a
//! tunnel there.
//!
//! Owns the asking; what may be reached, and what is opened on the way, is decided by the proxy as for any client.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::net::sni::{Greeting, greet};

/// For the proxy to connect to where it was asked to.
const PATIENCE: Duration = Duration::from_secs(60);
/// The head of an answer to CONNECT.
const MAX_HEAD: usize = 16 * 1024;

/// Why a connection ends here.
#[derive(Debug, thiserror::Error)]
pub(super) enum NoWay {
    /// The client did not say.
    #[error("a connection that names no host has no way out")]
    Nameless,
    /// The proxy does not want to.
    #[error("{host}:{port} cannot be reached: {said}")]
    Refused { host: Box<str>, port: u16, said: String },
    /// The proxy is not there.
    #[error("the proxy: {0}")]
    Proxy(#[from] io::Error),
}

/// Leads one connection out.
///
/// # Errors
/// When there is no way, or a side fails.
pub(super) async fn relay(mut client: TcpStream, proxy: SocketAddr) -> Result<(), NoWay> {
    let port = client.local_addr()?.port();
    let Greeting { bytes, hello } = greet(&mut client, &[]).await;
    let Some(host) = hello.ok().and_then(|hello| hello.server_name) else { return Err(NoWay::Nameless) };
    let mut upstream = TcpStream::connect(proxy).await?;
    upstream.set_nodelay(true)?;
    let asked = tokio::time::timeout(PATIENCE, ask(&mut upstream, &host, port)).await;
    match asked.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?? {
        None => {}
        Some(said) => return Err(NoWay::Refused { host, port, said }),
    }
    upstream.write_all(&bytes).await?;
    join(client, upstream).await;
    Ok(())
}

/// Passes one connection on as it is.
///
/// # Errors
/// When nothing listens there.
pub(super) async fn forward(client: TcpStream, to: SocketAddr) -> Result<(), NoWay> {
    let upstream = TcpStream::connect(to).await?;
    upstream.set_nodelay(true)?;
    join(client, upstream).await;
    Ok(())
}

async fn join(mut client: TcpStream, mut upstream: TcpStream) {
    // A side that breaks off is that side's affair.
    let _ = tokio::io::copy_bidirectional(&mut client, &mut upstream).await;
}

/// Asks for a tunnel (RFC 9110 §9.3.6); what the proxy says when there is none.
async fn ask(proxy: &mut TcpStream, host: &str, port: u16) -> io::Result<Option<String>> {
    proxy.write_all(format!("CONNECT {host}:{port} HTTP/1.1\r\nHost: {host}:{port}\r\n\r\n").as_bytes()).await?;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        if head.len() > MAX_HEAD {
            return Err(io::Error::from(io::ErrorKind::InvalidData));
        }
        // Not a byte more than the head: what follows is the server's.
        head.push(proxy.read_u8().await?);
    }
    let head = String::from_utf8_lossy(&head);
    let line = head.lines().next().unwrap_or_default();
    let status = line.split(' ').nth(1).unwrap_or_default();
    Ok(if status.starts_with('2') { None } else { Some(line.to_owned()) })
}
