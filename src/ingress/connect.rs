//! The connect ingress: `CONNECT host:port`, opened where the host is a provider's, else joined blind or refused.
//!
//! Owns [`Target`], the policy of hosts, ports and addresses, and who may tunnel. Leaves opening TLS to `intercept` and
//! copying to `net::splice`. Ports and addresses are checked before the client is told 200, so that a refusal is an
//! answer and not a dead tunnel.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::header::{HeaderMap, HeaderValue, PROXY_AUTHORIZATION};
use http::uri::Authority;
use http::{Request, Response, Version};
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::ingress::metrics::Became;
use crate::ingress::refused::Refused;
use crate::ingress::section::OtherHosts;
use crate::ingress::{Front, FrontBody, Guest};
use crate::net::ahead::Ahead;
use crate::net::dial::{Origin, Reach, Stream};
use crate::net::drain::Watch;
use crate::net::splice::Side;
use crate::net::{splice, tunnel};
use crate::virtual_key::parse_id;

/// Where a client wants to go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Target {
    /// Name or address: lower case, without brackets and without a dot at its end.
    pub(super) host: Box<str>,
    pub(super) port: u16,
}

impl Target {
    /// `None` when there is no port and no `default`, or no host, or a user.
    pub(super) fn new(authority: &Authority, default: Option<u16>) -> Option<Self> {
        let text = authority.as_str();
        let host = authority.host();
        let port = match text.strip_prefix(host)? {
            "" => default?,
            rest => rest.strip_prefix(':')?.parse().ok()?,
        };
        let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        let bare = bare.strip_suffix('.').unwrap_or(bare);
        (!bare.is_empty() && port != 0).then(|| Self { host: bare.to_ascii_lowercase().into(), port })
    }

    fn ip(&self) -> Option<IpAddr> {
        self.host.parse::<IpAddr>().ok().map(|ip| ip.to_canonical())
    }
}

/// What is behind an accepted `CONNECT`.
enum Behind {
    Provider(Guest),
    Elsewhere(Stream),
}

impl Front {
    /// Answers a `CONNECT`; what follows runs in a task of its own.
    pub(super) async fn connect(
        self: Arc<Self>,
        mut request: Request<Incoming>,
        peer: SocketAddr,
    ) -> Response<FrontBody> {
        let opened = self.open(&request, peer).await;
        let behind = match opened {
            Ok(behind) => behind,
            Err(refused) => return self.refuse(&refused, peer),
        };
        let upgrade: Option<OnUpgrade> = request.extensions_mut().remove();
        let Some(upgrade) = upgrade else {
            return self.refuse(&Refused::Malformed("this connection cannot become a tunnel"), peer);
        };
        let drain = self.parts.drain.watch();
        tunnel::take_over(upgrade, move |io| async move {
            match behind {
                Behind::Provider(guest) => self.intercept(io, guest, drain).await,
                Behind::Elsewhere(upstream) => self.join(io, upstream, drain).await,
            }
        });
        Response::new(FrontBody::empty())
    }

    async fn open(&self, request: &Request<Incoming>, peer: SocketAddr) -> Result<Behind, Refused> {
        if request.version() >= Version::HTTP_2 {
            return Err(Refused::Version);
        }
        let target = request.uri().authority().and_then(|authority| Target::new(authority, None));
        let target = target.ok_or(Refused::Malformed("CONNECT takes host:port"))?;
        let identity = identity(request.headers());
        if let Some(upstream) = self.proxy.registry().by_host(&target.host) {
            // TLS is opened where clients of this provider connect to, and nowhere else at its host.
            if target.port != 443 && !(*upstream.host() == *target.host && upstream.port() == target.port) {
                let hint = "a provider is reached at port 443";
                return Err(Refused::Port { host: target.host.into(), port: target.port, hint });
            }
            // Found out now, it can be said.
            self.parts.ca.server_config(&target.host)?;
            return Ok(Behind::Provider(Guest { host: target.host, port: target.port, upstream, identity, peer }));
        }
        self.may_go_elsewhere(&target, identity.as_ref(), peer)?;
        Ok(Behind::Elsewhere(self.dial(&target).await?))
    }

    /// The policy of hosts that are no provider's, as far as it needs no address.
    pub(super) fn may_go_elsewhere(
        &self,
        target: &Target,
        identity: Option<&HeaderValue>,
        peer: SocketAddr,
    ) -> Result<(), Refused> {
        let section = &self.parts.section;
        if section.other_hosts == OtherHosts::Deny {
            return Err(Refused::Denied { host: target.host.to_string() });
        }
        // Whoever is on this machine can go there without sidekey; others could not.
        let here = peer.ip().to_canonical().is_loopback();
        if !here && !identity.is_some_and(|identity| self.proxy.knows(identity, peer.ip())) {
            return Err(Refused::Nobody);
        }
        if self.is_own(target) {
            return Err(Refused::Ourselves { host: target.host.to_string(), port: target.port });
        }
        if !section.ports.contains(&target.port) {
            let hint = "connect.ports lists those that are";
            return Err(Refused::Port { host: target.host.to_string(), port: target.port, hint });
        }
        Ok(())
    }

    /// Connects to a host that is no provider's, at an address that is allowed.
    async fn dial(&self, target: &Target) -> Result<Stream, Refused> {
        let (host, port) = ((&*target.host).into(), target.port);
        // TLS, if any, is between the two; it only tells which proxy is on the way.
        let origin = Origin { host, port, tls: false, http2: false, reach: self.reach() };
        Ok(self.parts.dialer.tunnel(&origin, self.parts.connect_timeout).await?)
    }

    pub(super) fn reach(&self) -> Reach {
        if self.parts.section.allow_private { Reach::Private } else { Reach::Public }
    }

    /// True for what is plainly this sidekey.
    pub(super) fn is_own(&self, target: &Target) -> bool {
        let here = match target.ip() {
            Some(ip) => ip.is_loopback() || ip.is_unspecified(),
            None => &*target.host == "localhost",
        };
        here && self.parts.own_ports.contains(&target.port)
    }

    pub(super) fn refuse(&self, refused: &Refused, peer: SocketAddr) -> Response<FrontBody> {
        tracing::debug!(peer = %peer.ip(), "{refused}");
        self.families.count(refused.became());
        refused.response()
    }

    /// Joins the two blind, what was read already first.
    pub(super) async fn join(&self, io: Ahead<TcpStream>, mut upstream: impl Side, drain: Watch) {
        let (held, client) = io.into_parts();
        let families = &self.families;
        families.count(Became::Tunnelled);
        splice::keep_alive(&client);
        if upstream.write_all(&held).await.is_err() {
            return;
        }
        let _open = Open::new(&families.tunnels);
        let (passed, ended) = splice::splice(client, upstream, families, drain).await;
        tracing::debug!(sent = passed.sent, received = passed.received, ok = ended.is_ok(), "a tunnel has ended");
    }
}

/// Counts a tunnel while it is open.
struct Open<'a>(&'a prometheus::IntGauge);

impl<'a> Open<'a> {
    fn new(gauge: &'a prometheus::IntGauge) -> Self {
        gauge.inc();
        Self(gauge)
    }
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// The virtual key a client shows to the proxy, as `Bearer`: from a URL it comes as `Basic`, as the name or as the
/// password (RFC 7617).
pub(super) fn identity(headers: &HeaderMap) -> Option<HeaderValue> {
    let value = headers.get(PROXY_AUTHORIZATION)?;
    let (scheme, rest) = value.to_str().ok()?.split_once(' ')?;
    if scheme.eq_ignore_ascii_case("bearer") {
        return Some(value.clone());
    }
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let decoded = String::from_utf8(STANDARD.decode(rest.trim()).ok()?).ok()?;
    let (user, password) = decoded.split_once(':').unwrap_or((&decoded, ""));
    let key = [password, user].into_iter().find(|text| parse_id(text).is_some())?;
    let mut bearer = HeaderValue::try_from(format!("Bearer {key}")).ok()?;
    bearer.set_sensitive(true);
    Some(bearer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets() {
        let target = |host: &str, port| Some(Target { host: host.into(), port });
        for (text, default, want) in [
            ("api.openai.com:443", None, target("api.openai.com", 443)),
            ("API.OpenAI.com.:443", None, target("api.openai.com", 443)),
            ("api.openai.com", None, None),
            ("api.openai.com", Some(80), target("api.openai.com", 80)),
            ("[::1]:443", None, target("::1", 443)),
            ("127.0.0.1:1", None, target("127.0.0.1", 1)),
            ("host:0", None, None),
            ("host:x", None, None),
            ("user@host:443", None, None),
        ] {
            let got = text.parse::<Authority>().ok().and_then(|authority| Target::new(&authority, default));
            assert_eq!(got, want, "{text}");
        }
    }

    #[test]
    fn identities() {
        let key = format!("sk-side-a1b2c3d4e5f67890-{}", "x".repeat(43));
        let basic = |text: &str| format!("Basic {}", STANDARD.encode(text));
        for (said, known) in [
            (format!("Bearer {key}"), true),
            (basic(&format!("key:{key}")), true),
            (basic(&format!("{key}:")), true),
            (basic(&key), true),
            (basic("me:secret"), false),
            ("Basic !".to_owned(), false),
            ("Digest x".to_owned(), false),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(PROXY_AUTHORIZATION, HeaderValue::try_from(said.as_str()).unwrap());
            let want = known.then(|| format!("Bearer {key}"));
            assert_eq!(identity(&headers).map(|value| value.to_str().unwrap().to_owned()), want, "{said}");
        }
        assert_eq!(identity(&HeaderMap::new()), None);
    }
}
