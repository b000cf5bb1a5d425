//! The transparent ingress: connections that the kernel has led here, whoever they were for.
//!
//! Owns what becomes of them, and finding out whether sidekey's own are led here too. The name in TLS decides: a
//! provider's is opened as for `connect`, and the provider is dialled by that name, never at the address the client had
//! for it, which could be anybody's. Everything else goes on to that address, unread.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::time::Duration;

use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::Notify;
use tokio::time::timeout;

use crate::ingress::metrics::Became;
use crate::ingress::section::OtherHosts;
use crate::ingress::{Front, Guest};
use crate::net::ahead::Ahead;
use crate::net::dial::is_special;
use crate::net::drain::Watch;
use crate::net::original_dst::original_destination;
use crate::net::own::{self, Own};
use crate::net::sni::{self, Greeting, NoHello};
use crate::net::splice::Side;

/// Where clients of providers connect to.
const HTTPS: u16 = 443;

impl Front {
    /// Serves one redirected connection until it ends.
    pub async fn redirected(
        self: Arc<Self>,
        mut tcp: TcpStream,
        peer: SocketAddr,
        loops: Arc<Loops>,
        mut drain: Watch,
    ) {
        let meant = match original_destination(&tcp) {
            Ok(meant) => meant,
            Err(error) => {
                tracing::debug!(peer = %peer.ip(), %error, "nothing has redirected this connection");
                return self.turn_away(&tcp, Became::Refused);
            }
        };
        let greeting = tokio::select! {
            greeting = sni::greet(&mut tcp, &[]) => greeting,
            // Nothing has been asked yet.
            () = drain.signalled() => return,
        };
        // Asked now, and not before: what this process opens is known to be its own before its first byte.
        if own::is_own(peer, meant) {
            loops.met_one(meant);
            return self.turn_away(&tcp, Became::Looped);
        }
        match self.guest(&greeting, meant, peer) {
            Some(guest) => self.open_tls(tcp, greeting, guest, drain).await,
            None if greeting.bytes.is_empty() && greeting.hello == Err(NoHello::Ended) => {}
            None => self.go_on(tcp, greeting, meant, drain).await,
        }
    }

    /// The provider that is meant, if one is.
    fn guest(&self, greeting: &Greeting, meant: SocketAddr, peer: SocketAddr) -> Option<Guest> {
        let host = greeting.hello.as_ref().ok()?.server_name.clone()?;
        let upstream = self.proxy.registry().by_host(&host)?;
        let port = meant.port();
        // TLS is opened where clients of this provider connect to, and nowhere else at its host.
        let usual = port == HTTPS || (*upstream.host() == *host && upstream.port() == port);
        usual.then_some(Guest { host, port, upstream, identity: None, peer })
    }

    /// Joins the client with whom it meant.
    async fn go_on(&self, client: TcpStream, greeting: Greeting, meant: SocketAddr, drain: Watch) {
        let here = meant.ip().is_loopback() && self.parts.own_ports.contains(&meant.port());
        if here || is_special(meant.ip()) || self.parts.section.other_hosts == OtherHosts::Deny {
            tracing::debug!(%meant, "not led on");
            return self.turn_away(&client, Became::Refused);
        }
        match timeout(self.parts.connect_timeout, Own::connect(meant)).await {
            Ok(Ok(upstream)) => {
                let _ = upstream.tcp().set_nodelay(true);
                self.join(Ahead::new(greeting.bytes, client), upstream, drain).await;
            }
            failed => {
                tracing::debug!(%meant, ?failed, "not reached");
                self.turn_away(&client, Became::Unreached);
            }
        }
    }

    /// Resets the connection: what was refused must not look like an answer that ended.
    fn turn_away(&self, client: &TcpStream, became: Became) {
        client.abort();
        self.families.count(became);
    }
}

/// Zero: it was not tried yet.
const PASSING: u8 = 1;
const LOOPING: u8 = 2;

/// Whether sidekey's own connections come back to it, as when nothing exempts its user from the kernel's rules.
#[derive(Debug, Default)]
pub struct Loops {
    state: AtomicU8,
    /// Own connections that came back.
    met: AtomicU64,
    again: Notify,
}

impl Loops {
    /// Addresses of documentation (RFC 5737, RFC 3849): nobody has them.
    const NOBODY: [IpAddr; 2] =
        [IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)), IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1))];
    const PATIENCE: Duration = Duration::from_secs(1);
    /// While they come back it is tried again this often whether they still do.
    const RETEST: Duration = Duration::from_secs(5);

    /// Whether requests can be served.
    ///
    /// # Errors
    /// When own connections come back, or that is not known yet.
    pub fn check(&self) -> Result<(), String> {
        match self.state.load(Ordering::Relaxed) {
            PASSING => Ok(()),
            LOOPING => {
                let uid = rustix::process::geteuid().as_raw();
                let fix = format!("let its user pass: sidekey redirect install --uid {uid}");
                Err(format!("sidekey's own connections are redirected to itself; {fix}"))
            }
            _ => Err("whether own connections pass is being tried".to_owned()),
        }
    }

    fn met_one(&self, meant: SocketAddr) {
        if self.met.fetch_add(1, Ordering::Relaxed) == 0 {
            tracing::error!(%meant, "an own connection was redirected to sidekey itself; see: sidekey redirect check");
        }
        self.state.store(LOOPING, Ordering::Relaxed);
        self.again.notify_one();
    }

    /// Tries it: at the start, and for as long as they come back. Does not end.
    pub async fn keep_testing(&self) {
        loop {
            let before = self.met.load(Ordering::Relaxed);
            for ip in Self::NOBODY {
                // Somebody else's answer, or none, says that it was not led here.
                let _ = timeout(Self::PATIENCE * 2, Self::try_one(SocketAddr::new(ip, HTTPS))).await;
            }
            if self.met.load(Ordering::Relaxed) == before {
                self.state.store(PASSING, Ordering::Relaxed);
                self.again.notified().await;
            } else {
                tokio::time::sleep(Self::RETEST).await;
            }
        }
    }

    /// Connects, and waits to be reset by this very process.
    async fn try_one(to: SocketAddr) -> std::io::Result<()> {
        let socket = if to.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        // It does not get beyond this machine.
        match to {
            SocketAddr::V4(_) => SockRef::from(&socket).set_ttl_v4(1)?,
            SocketAddr::V6(_) => SockRef::from(&socket).set_unicast_hops_v6(1)?,
        }
        let connecting = timeout(Self::PATIENCE, socket.connect(to)).await;
        let mut own = Own::new(connecting.map_err(|_| std::io::ErrorKind::TimedOut)??)?;
        // Is no TLS, so that nobody waits for more.
        own.write_all(b"\0").await?;
        let _ = timeout(Self::PATIENCE, own.read_u8()).await;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_loop_is_told_until_it_is_over() {
        let loops = Loops::default();
        assert!(loops.check().unwrap_err().contains("being tried"));
        loops.met_one("192.0.2.1:443".parse().unwrap());
        assert!(loops.check().unwrap_err().contains("sidekey redirect install --uid"));
        // Here nothing is redirected.
        tokio::select! {
            () = loops.keep_testing() => unreachable!(),
            () = async {
                while loops.check().is_err() {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            } => {}
        }
    }
}
