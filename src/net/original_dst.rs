//! Where a redirected connection was meant to go: the kernel remembers.
//!
//! Owns asking it (`SO_ORIGINAL_DST`, `IP6T_SO_ORIGINAL_DST` of Linux' netfilter); leaves the rules that redirect to
//! `cli`.

use std::io;
use std::net::SocketAddr;

use tokio::net::TcpStream;

/// The address the client connected to.
///
/// # Errors
/// When nothing redirected this connection: with it no one could tell where it should go, and it may as well come from
/// somebody who connected here directly.
pub fn original_destination(tcp: &TcpStream) -> io::Result<SocketAddr> {
    let local = tcp.local_addr()?;
    let found = ask(tcp, local)?;
    let bare = |address: SocketAddr| (address.ip().to_canonical(), address.port());
    if bare(found) == bare(local) {
        return Err(io::Error::other("it came here directly"));
    }
    Ok(SocketAddr::new(found.ip().to_canonical(), found.port()))
}

#[cfg(target_os = "linux")]
fn ask(tcp: &TcpStream, local: SocketAddr) -> io::Result<SocketAddr> {
    let socket = socket2::SockRef::from(tcp);
    // A socket for both families has IPv4 connections too, and those are remembered as such.
    let found = if local.ip().to_canonical().is_ipv4() { socket.original_dst_v4() } else { socket.original_dst_v6() };
    found?.as_socket().ok_or_else(|| io::Error::other("no address of the internet"))
}

#[cfg(not(target_os = "linux"))]
fn ask(_: &TcpStream, _: SocketAddr) -> io::Result<SocketAddr> {
    Err(io::ErrorKind::Unsupported.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn who_comes_directly_is_told_apart() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let Ok(listener) = tokio::net::TcpListener::bind(address).await else { continue };
            let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
            let (accepted, _) = listener.accept().await.unwrap();
            assert!(original_destination(&accepted).is_err(), "{address}");
            drop(client);
        }
    }
}
