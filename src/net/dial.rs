//! Dialling an upstream: resolve, refuse addresses a public name must not have, connect, TLS.
//!
//! Owns [`Origin`] and [`Stream`]; leaves HTTP and pooling to `upstream`.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::net::own::Own;
use crate::net::tls::TlsClient;

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

/// Plain TCP or TLS over it.
#[derive(Debug)]
pub enum Stream {
    /// `http://`
    Plain(Own),
    /// `https://`
    Tls(Box<TlsStream<Own>>),
}

/// Connects to `origin`, TLS included, within `limit`.
///
/// # Errors
/// See [`DialError`].
///
/// # Cancel safety
/// Dropping the future closes what was opened.
pub async fn dial(origin: &Origin, tls: &TlsClient, limit: Duration) -> Result<Dialled, DialError> {
    let timeout = || DialError::Timeout { host: Arc::clone(&origin.host), port: origin.port, limit };
    tokio::time::timeout(limit, connect(origin, tls)).await.map_err(|_| timeout())?
}

async fn connect(origin: &Origin, tls: &TlsClient) -> Result<Dialled, DialError> {
    let tcp = try_each(&origin.host, origin.port, origin.reach).await?;
    // Each event of a stream is to leave at once, not to wait for an acknowledgement (Nagle).
    let _ = tcp.tcp().set_nodelay(true);
    if !origin.tls {
        return Ok(Dialled { stream: Stream::Plain(tcp), http2: origin.http2 });
    }
    let fault = |source: io::Error| DialError::Tls { host: Arc::clone(&origin.host), source };
    let name = ServerName::try_from(origin.host.to_string())
        .map_err(|error| fault(io::Error::new(io::ErrorKind::InvalidInput, error)))?;
    let stream = TlsConnector::from(tls.config(origin.http2)).connect(name, tcp).await.map_err(fault)?;
    let http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
    Ok(Dialled { stream: Stream::Tls(Box::new(stream)), http2 })
}

/// Connects to `host` without TLS within `limit`, at an address that `reach` allows.
///
/// # Errors
/// See [`DialError`].
///
/// # Cancel safety
/// Dropping the future closes what was opened.
pub async fn connect_tcp(host: &str, port: u16, reach: Reach, limit: Duration) -> Result<Own, DialError> {
    let host: Arc<str> = host.into();
    let connecting = try_each(&host, port, reach);
    let tcp = tokio::time::timeout(limit, connecting).await.map_err(|_| DialError::Timeout { host, port, limit })??;
    let _ = tcp.tcp().set_nodelay(true);
    Ok(tcp)
}

/// Tries each address in turn; the addresses checked are the ones dialled, so a second look-up cannot differ.
async fn try_each(host: &Arc<str>, port: u16, reach: Reach) -> Result<Own, DialError> {
    let addresses = resolve(host, port, reach).await?;
    let mut last = io::Error::new(io::ErrorKind::AddrNotAvailable, "no address");
    // A dead address must not use up the time of the next one.
    let share = Duration::from_secs(if addresses.len() > 1 { 3 } else { 3600 });
    for address in addresses {
        match tokio::time::timeout(share, Own::connect(address)).await {
            Ok(Ok(tcp)) => return Ok(tcp),
            Ok(Err(error)) => last = error,
            Err(_) => last = io::Error::new(io::ErrorKind::TimedOut, format!("no answer from {address}")),
        }
    }
    Err(DialError::Connect { host: Arc::clone(host), port, source: last })
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
        (true, Some(address)) => {
            let hint = match is_special(address.ip()) {
                true => "addresses of this kind are always refused",
                false => "set base_url of a provider, or connect.allow_private, if that is meant",
            };
            Err(DialError::Forbidden { host: Arc::clone(host), address: address.ip(), hint })
        }
        (true, None) => {
            let source = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
            Err(DialError::Resolve { host: Arc::clone(host), source })
        }
    }
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

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(tcp) => Pin::new(tcp).poll_read(cx, buf),
            Self::Tls(tls) => Pin::new(tls).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
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
            Self::Plain(tcp) => Pin::new(tcp).poll_write_vectored(cx, bufs),
            Self::Tls(tls) => Pin::new(tls).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Plain(tcp) => tcp.is_write_vectored(),
            Self::Tls(tls) => tls.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(tcp) => Pin::new(tcp).poll_flush(cx),
            Self::Tls(tls) => Pin::new(tls).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
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
        let tls = TlsClient::new(None).unwrap();
        let error = dial(&origin, &tls, Duration::from_secs(5)).await.unwrap_err();
        assert!(matches!(error, DialError::Forbidden { .. }), "{error}");
    }
}
