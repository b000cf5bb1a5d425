//! Dialling an upstream: resolve, refuse addresses a public name must not have, connect, TLS; or ask a proxy for the way.
//!
//! Owns [`Origin`], [`Dialer`] and [`Stream`]; leaves HTTP and pooling to `upstream`, and which proxy to `via`.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::net::own::Own;
use crate::net::socks;
use crate::net::splice::Side;
use crate::net::tls::TlsClient;
use crate::net::via::{Hop, Via};

/// Where to connect, and how.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Origin {
    /// Name or address, without brackets.
    pub host: Arc<str>,
    /// TCP port.
    pub port: u16,
    /// TLS, verified against `host`.
    pub tls: bool,
    /// Prefer HTTP/2; over plain TCP, use it by prior knowledge (RFC 9113 §3.3).
    pub http2: bool,
    /// Which addresses its name may have.
    pub reach: Reach,
}

/// Which addresses may be dialled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reach {
    /// Any: the operator has named the host.
    Any,
    /// Those of private networks and of this machine too, but none that is link-local: there clouds keep credentials.
    Private,
    /// Public ones: an address of a private network behind a public name is an attack.
    Public,
}

impl Reach {
    fn allows(self, ip: IpAddr) -> bool {
        match self {
            Self::Any => true,
            Self::Private => !is_special(ip),
            Self::Public => !is_private(ip),
        }
    }
}

/// Why an upstream could not be reached. Says nothing of keys.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// TCP failed for every address.
    #[error("cannot connect to {host}:{port}: {source}")]
    Connect {
        /// The name dialled.
        host: Arc<str>,
        /// The port dialled.
        port: u16,
        /// The last failure.
        source: io::Error,
    },
    /// Resolved to nothing but addresses that are not for public names.
    #[error("{host} resolves to {address}, an address that is not for public names; {hint}")]
    Forbidden {
        /// The name dialled.
        host: Arc<str>,
        /// What it resolved to.
        address: IpAddr,
        /// What to do if that is meant.
        hint: &'static str,
    },
    /// The other end would be this very process.
    #[error("{host}:{port} is this sidekey itself")]
    Ourselves {
        /// The name dialled.
        host: Arc<str>,
        /// The port dialled.
        port: u16,
    },
    /// The proxy on the way does not let it through.
    #[error("the proxy {proxy}:{port} on the way: {source}")]
    Proxy {
        /// The proxy.
        proxy: Arc<str>,
        /// Its port.
        port: u16,
        /// Why.
        source: io::Error,
    },
    /// The name has no address.
    #[error("cannot resolve {host}: {source}")]
    Resolve {
        /// The name dialled.
        host: Arc<str>,
        /// Why.
        source: io::Error,
    },
    /// Connecting took too long.
    #[error("cannot connect to {host}:{port} within {} ms", .limit.as_millis())]
    Timeout {
        /// The name dialled.
        host: Arc<str>,
        /// The port dialled.
        port: u16,
        /// The time allowed.
        limit: Duration,
    },
    /// The handshake failed, or the certificate is not for this name.
    #[error("tls with {host} failed: {source}")]
    Tls {
        /// The name dialled.
        host: Arc<str>,
        /// Why.
        source: io::Error,
    },
}

/// A connection to an upstream, and whether HTTP/2 was agreed on.
#[derive(Debug)]
pub struct Dialled {
    /// The bytes.
    pub stream: Stream,
    /// HTTP/2 rather than HTTP/1.1.
    pub http2: bool,
}

/// Plain TCP, or TLS over it.
#[derive(Debug)]
pub enum Stream {
    /// `https://` through a proxy that has TLS itself.
    Nested(Box<TlsStream<TlsStream<Own>>>),
    /// `http://`
    Plain(Own),
    /// `https://`
    Tls(Box<TlsStream<Own>>),
}

/// Dials: whom it trusts, which proxies it goes through, and where it never goes.
#[derive(Clone, Debug)]
pub struct Dialer {
    tls: TlsClient,
    via: Via,
    /// Ports of this machine at which sidekey itself listens.
    own_ports: Arc<[u16]>,
}

impl From<TlsClient> for Dialer {
    /// One that goes straight.
    fn from(tls: TlsClient) -> Self {
        Self { tls, via: Via::none(), own_ports: Arc::default() }
    }
}

impl Dialer {
    /// One that goes through the proxies of `via`, and nowhere to `own_ports` of this machine.
    #[must_use]
    pub fn new(tls: TlsClient, via: Via, own_ports: Arc<[u16]>) -> Self {
        Self { tls, via, own_ports }
    }

    /// Connects to `origin`, TLS included, within `limit`.
    ///
    /// Through a proxy the address of the host is not seen here and cannot be checked; only a host that is written as an
    /// address can.
    ///
    /// # Errors
    /// See [`DialError`].
    ///
    /// # Cancel safety
    /// Dropping the future closes what was opened.
    pub async fn dial(&self, origin: &Origin, limit: Duration) -> Result<Dialled, DialError> {
        let timeout = || DialError::Timeout { host: Arc::clone(&origin.host), port: origin.port, limit };
        tokio::time::timeout(limit, self.connect(origin)).await.map_err(|_| timeout())?
    }

    /// As [`Dialer::dial`], for bytes that others exchange: no TLS is spoken here, and a proxy is the one for `https://`.
    ///
    /// # Errors
    /// See [`DialError`].
    ///
    /// # Cancel safety
    /// Dropping the future closes what was opened.
    pub async fn tunnel(&self, origin: &Origin, limit: Duration) -> Result<Stream, DialError> {
        let timeout = || DialError::Timeout { host: Arc::clone(&origin.host), port: origin.port, limit };
        let plain = Origin { tls: false, http2: false, ..origin.clone() };
        let opening = async {
            match self.via.hop(&origin.host, origin.port, true) {
                Some(hop) => Box::pin(self.through(&hop, &plain)).await.map(|dialled| dialled.stream),
                None => self.try_each(&origin.host, origin.port, origin.reach).await.map(Stream::Plain),
            }
        };
        tokio::time::timeout(limit, opening).await.map_err(|_| timeout())?
    }

    async fn connect(&self, origin: &Origin) -> Result<Dialled, DialError> {
        let Some(hop) = self.via.hop(&origin.host, origin.port, origin.tls) else {
            let tcp = self.try_each(&origin.host, origin.port, origin.reach).await?;
            return self.secure(origin, tcp, Stream::Plain, |tls| Stream::Tls(Box::new(tls))).await;
        };
        // Rare, and large.
        Box::pin(self.through(&hop, origin)).await
    }

    /// Asks a proxy for the way.
    async fn through(&self, hop: &Hop, origin: &Origin) -> Result<Dialled, DialError> {
        if let Ok(ip) = origin.host.parse::<IpAddr>()
            && !origin.reach.allows(ip)
        {
            return Err(forbidden(&origin.host, ip));
        }
        let fault = |source| DialError::Proxy { proxy: Arc::clone(&hop.host), port: hop.port, source };
        if !hop.has_tls() {
            let tcp = self.ask(hop, origin).await?;
            return self.secure(origin, tcp, Stream::Plain, |tls| Stream::Tls(Box::new(tls))).await;
        }
        let tcp = self.try_each(&hop.host, hop.port, Reach::Any).await?;
        let mut outer = self.handshake(&hop.host, tcp, false).await?;
        hop.ask(&mut outer, &origin.host, origin.port).await.map_err(fault)?;
        self.secure(origin, outer, |tls| Stream::Tls(Box::new(tls)), |tls| Stream::Nested(Box::new(tls))).await
    }

    /// A connection through a proxy that has no TLS; one that wants addresses is asked for each in turn.
    async fn ask(&self, hop: &Hop, origin: &Origin) -> Result<Own, DialError> {
        let names = match hop.wants_address() {
            true => {
                resolve(&origin.host, origin.port, origin.reach).await?.iter().map(|to| to.ip().to_string()).collect()
            }
            false => vec![origin.host.to_string()],
        };
        let mut last = io::Error::new(io::ErrorKind::AddrNotAvailable, "no address");
        for name in names {
            let mut tcp = self.try_each(&hop.host, hop.port, Reach::Any).await?;
            match hop.ask(&mut tcp, &name, origin.port).await {
                Ok(()) => return Ok(tcp),
                Err(error) => last = error,
            }
            if !socks::may_be_its_address(&last) {
                break;
            }
        }
        Err(DialError::Proxy { proxy: Arc::clone(&hop.host), port: hop.port, source: last })
    }

    /// TLS with `origin` over a connection to it, where it has TLS.
    async fn secure<S: AsyncRead + AsyncWrite + Unpin>(
        &self,
        origin: &Origin,
        io: S,
        plain: impl FnOnce(S) -> Stream,
        secure: impl FnOnce(TlsStream<S>) -> Stream,
    ) -> Result<Dialled, DialError> {
        if !origin.tls {
            return Ok(Dialled { stream: plain(io), http2: origin.http2 });
        }
        let stream = self.handshake(&origin.host, io, origin.http2).await?;
        let http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
        Ok(Dialled { stream: secure(stream), http2 })
    }

    async fn handshake<S: AsyncRead + AsyncWrite + Unpin>(
        &self,
        host: &Arc<str>,
        io: S,
        http2: bool,
    ) -> Result<TlsStream<S>, DialError> {
        let fault = |source: io::Error| DialError::Tls { host: Arc::clone(host), source };
        let name = ServerName::try_from(host.to_string())
            .map_err(|error| fault(io::Error::new(io::ErrorKind::InvalidInput, error)))?;
        TlsConnector::from(self.tls.config(http2)).connect(name, io).await.map_err(fault)
    }

    /// Tries each address in turn; the addresses checked are the ones dialled, so a second look-up cannot differ.
    async fn try_each(&self, host: &Arc<str>, port: u16, reach: Reach) -> Result<Own, DialError> {
        let addresses = resolve(host, port, reach).await?;
        let mut last = io::Error::new(io::ErrorKind::AddrNotAvailable, "no address");
        // A dead address must not use up the time of the next one.
        let share = Duration::from_secs(if addresses.len() > 1 { 3 } else { 3600 });
        for address in addresses {
            match tokio::time::timeout(share, Own::connect(address)).await {
                Ok(Ok(own)) if self.is_ours(own.tcp()) => {
                    return Err(DialError::Ourselves { host: Arc::clone(host), port });
                }
                Ok(Ok(own)) => {
                    // Each event of a stream is to leave at once, not to wait for an acknowledgement (Nagle).
                    let _ = own.tcp().set_nodelay(true);
                    return Ok(own);
                }
                Ok(Err(error)) => last = error,
                Err(_) => last = io::Error::new(io::ErrorKind::TimedOut, format!("no answer from {address}")),
            }
        }
        Err(DialError::Connect { host: Arc::clone(host), port, source: last })
    }

    /// True when the other end is this sidekey, whatever it is called: both ends at one address are one machine.
    fn is_ours(&self, tcp: &TcpStream) -> bool {
        let (Ok(local), Ok(there)) = (tcp.local_addr(), tcp.peer_addr()) else { return false };
        local.ip() == there.ip() && self.own_ports.contains(&there.port())
    }
}

async fn resolve(host: &Arc<str>, port: u16, reach: Reach) -> Result<Vec<SocketAddr>, DialError> {
    let found = match host.parse::<IpAddr>() {
        Ok(ip) => vec![SocketAddr::new(ip, port)],
        Err(_) => tokio::net::lookup_host((&**host, port))
            .await
            .map_err(|source| DialError::Resolve { host: Arc::clone(host), source })?
            .collect(),
    };
    let (good, bad): (Vec<_>, Vec<_>) = found.into_iter().partition(|address| reach.allows(address.ip()));
    match (good.is_empty(), bad.first()) {
        (false, _) => Ok(good),
        (true, Some(address)) => Err(forbidden(host, address.ip())),
        (true, None) => {
            let source = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
            Err(DialError::Resolve { host: Arc::clone(host), source })
        }
    }
}

fn forbidden(host: &Arc<str>, address: IpAddr) -> DialError {
    let hint = match is_special(address) {
        true => "addresses of this kind are always refused",
        false => "set base_url of a provider, or connect.allow_private, if that is meant",
    };
    DialError::Forbidden { host: Arc::clone(host), address, hint }
}

/// Loopback, private, link-local (the metadata services), shared, unspecified, multicast and documentation
/// networks (RFC 6890), also when written as IPv4 inside IPv6.
#[must_use]
pub fn is_private(ip: IpAddr) -> bool {
    match ip.to_canonical() {
        IpAddr::V4(v4) => {
            let [a, b, ..] = v4.octets();
            v4.is_loopback()
                || v4.is_private()
                || v4.is_link_local()
                || v4.is_multicast()
                || v4.is_documentation()
                || a == 0
                || a >= 240
                || (a == 100 && (64..128).contains(&b))
                || (a == 198 && (18..20).contains(&b))
                || (a, b) == (192, 0) && v4.octets()[2] == 0
        }
        IpAddr::V6(v6) => {
            let [first, second, ..] = v6.segments();
            v6.is_loopback()
                || v6.is_unspecified()
                || v6.is_multicast()
                || v6.is_unique_local()
                || v6.is_unicast_link_local()
                || (first == 0x2001 && second == 0x0db8)
                || embedded(v6).is_some_and(is_private)
        }
    }
}

/// Link-local (where the metadata services are), unspecified and multicast addresses, and the metadata service of AWS for
/// IPv6: nothing a client would be led to in good faith.
#[must_use]
pub fn is_special(ip: IpAddr) -> bool {
    match ip.to_canonical() {
        IpAddr::V4(v4) => v4.is_link_local() || v4.is_multicast() || v4.octets()[0] == 0 || v4.octets()[0] >= 240,
        IpAddr::V6(v6) => {
            v6.is_unspecified()
                || v6.is_multicast()
                || v6.is_unicast_link_local()
                || v6.segments()[..2] == [0xfd00, 0x0ec2]
                || embedded(v6).is_some_and(is_special)
        }
    }
}

/// The IPv4 address inside one of IPv6 that leads to it: NAT64 (RFC 6052, RFC 8215), 6to4 (RFC 3056), Teredo (RFC 4380)
/// and the compatible ones of old (RFC 4291 §2.5.5.1).
fn embedded(v6: std::net::Ipv6Addr) -> Option<IpAddr> {
    let v4 = |a: u16, b: u16| {
        let ([a, b], [c, d]) = (a.to_be_bytes(), b.to_be_bytes());
        Some(IpAddr::from([a, b, c, d]))
    };
    match v6.segments() {
        [0x0064, 0xff9b, .., a, b] => v4(a, b),
        [0x2002, a, b, ..] => v4(a, b),
        [0x2001, 0, .., a, b] => v4(!a, !b),
        [0, 0, 0, 0, 0, 0, a, b] if a != 0 => v4(a, b),
        _ => None,
    }
}

impl Stream {
    fn own(&self) -> &Own {
        match self {
            Self::Nested(tls) => tls.get_ref().0.get_ref().0,
            Self::Plain(own) => own,
            Self::Tls(tls) => tls.get_ref().0,
        }
    }
}

impl Side for Stream {
    fn abort(&self) {
        self.own().abort();
    }
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Nested(tls) => Pin::new(tls).poll_read(cx, buf),
            Self::Plain(tcp) => Pin::new(tcp).poll_read(cx, buf),
            Self::Tls(tls) => Pin::new(tls).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Nested(tls) => Pin::new(tls).poll_write(cx, buf),
            Self::Plain(tcp) => Pin::new(tcp).poll_write(cx, buf),
            Self::Tls(tls) => Pin::new(tls).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Nested(tls) => Pin::new(tls).poll_write_vectored(cx, bufs),
            Self::Plain(tcp) => Pin::new(tcp).poll_write_vectored(cx, bufs),
            Self::Tls(tls) => Pin::new(tls).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Nested(tls) => tls.is_write_vectored(),
            Self::Plain(tcp) => tcp.is_write_vectored(),
            Self::Tls(tls) => tls.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Nested(tls) => Pin::new(tls).poll_flush(cx),
            Self::Plain(tcp) => Pin::new(tcp).poll_flush(cx),
            Self::Tls(tls) => Pin::new(tls).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Nested(tls) => Pin::new(tls).poll_shutdown(cx),
            Self::Plain(tcp) => Pin::new(tcp).poll_shutdown(cx),
            Self::Tls(tls) => Pin::new(tls).poll_shutdown(cx),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn private_addresses() {
        for (text, want) in [
            ("127.0.0.1", true),
            ("10.1.2.3", true),
            ("172.16.0.1", true),
            ("192.168.0.1", true),
            ("169.254.169.254", true),
            ("100.64.0.1", true),
            ("0.0.0.0", true),
            ("255.255.255.255", true),
            ("::1", true),
            ("::ffff:169.254.169.254", true),
            ("64:ff9b::a9fe:a9fe", true),
            ("fd00:ec2::254", true),
            ("fe80::1", true),
            ("8.8.8.8", false),
            ("100.128.0.1", false),
            ("64:ff9b::808:808", false),
            ("64:ff9b:1::a9fe:a9fe", true),
            ("2002:a9fe:a9fe::1", true),
            ("2002:808:808::1", false),
            ("2001:0:1::5601:5601", true),
            ("::169.254.169.254", true),
            ("2606:4700::1", false),
        ] {
            assert_eq!(is_private(text.parse().unwrap()), want, "{text}");
        }
    }

    #[test]
    fn reaches() {
        for (text, private, public) in [
            ("127.0.0.1", true, false),
            ("10.1.2.3", true, false),
            ("fd12::1", true, false),
            ("8.8.8.8", true, true),
            ("169.254.169.254", false, false),
            ("::ffff:169.254.169.254", false, false),
            ("64:ff9b::a9fe:a9fe", false, false),
            ("fd00:ec2::254", false, false),
            ("0.0.0.0", false, false),
            ("::", false, false),
            ("224.0.0.1", false, false),
            ("fe80::1", false, false),
        ] {
            let ip = text.parse().unwrap();
            assert_eq!((Reach::Private.allows(ip), Reach::Public.allows(ip)), (private, public), "{text}");
            assert!(Reach::Any.allows(ip));
        }
    }

    #[tokio::test]
    async fn a_public_name_must_not_be_local() {
        let origin = Origin { host: "localhost".into(), port: 9, tls: false, http2: false, reach: Reach::Public };
        let dialer = Dialer::from(TlsClient::new(None).unwrap());
        let error = dialer.dial(&origin, Duration::from_secs(5)).await.unwrap_err();
        assert!(matches!(error, DialError::Forbidden { .. }), "{error}");
    }
}
