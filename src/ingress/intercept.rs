//! Connections to providers' hosts, opened: TLS ends here, and what comes out of it is a request like any other.
//!
//! Owns agreement of names: of `CONNECT`, of TLS and of each request, since a virtual key for one host must not be led
//! to another. Leaves certificates to `net::ca`, and the request to `proxy`.

use std::net::SocketAddr;
use std::sync::Arc;

use http::header::{HOST, HeaderValue, PROXY_AUTHORIZATION};
use http::request::Parts;
use http::uri::{Authority, PathAndQuery};
use http::{Method, Request, Response};
use hyper::body::Incoming;
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;

use crate::ingress::connect::Target;
use crate::ingress::metrics::Became;
use crate::ingress::refused::Refused;
use crate::ingress::{Front, FrontBody};
use crate::net::ahead::Ahead;
use crate::net::drain::Watch;
use crate::net::listener::{self, Answering, Handler, Patience};
use crate::net::sni::{self, Greeting, HANDSHAKE, HELLO_TIMEOUT};
use crate::provider::Upstream;
use crate::proxy::{Destination, Inbound};

/// A connection to a provider's host.
#[derive(Clone, Debug)]
pub struct Guest {
    /// The host that was asked for: lower case, without a dot at its end.
    pub host: Box<str>,
    /// The port that was asked for.
    pub port: u16,
    /// Whose it is.
    pub upstream: Arc<Upstream>,
    /// The virtual key shown to the proxy, as the value of `Authorization`.
    pub identity: Option<HeaderValue>,
    /// The client.
    pub peer: SocketAddr,
}

impl Front {
    /// Serves `guest` until its connection ends. TLS or not is told by the first byte.
    pub async fn intercept(self: Arc<Self>, mut io: Ahead<TcpStream>, guest: Guest, drain: Watch) {
        let first = tokio::time::timeout(HELLO_TIMEOUT, io.peek(1, b"")).await;
        match first {
            Ok(Ok([HANDSHAKE, ..])) => {
                let (held, mut tcp) = io.into_parts();
                let greeting = sni::greet(&mut tcp, &held).await;
                self.open_tls(tcp, greeting, guest, drain).await;
            }
            Ok(Ok([first, ..])) if first.is_ascii_uppercase() => {
                let peer = guest.peer;
                self.families.count(Became::Intercepted);
                listener::serve(io, false, peer, Arc::new(Inside { front: self, guest }), drain).await;
            }
            _ => self.families.count(Became::Refused),
        }
    }

    /// TLS straight to the proxy port: a name that resolves to it is served if it is a provider's.
    pub(super) async fn open_named(self: Arc<Self>, io: Ahead<TcpStream>, peer: SocketAddr, drain: Watch) {
        let (held, mut tcp) = io.into_parts();
        let greeting = sni::greet(&mut tcp, &held).await;
        let host = greeting.hello.as_ref().ok().and_then(|hello| hello.server_name.clone());
        let upstream = host.as_deref().and_then(|host| self.proxy.registry().by_host(host));
        match (host, upstream) {
            (Some(host), Some(upstream)) => {
                let guest = Guest { host, port: 443, upstream, identity: None, peer };
                self.open_tls(tcp, greeting, guest, drain).await;
            }
            _ => self.families.count(Became::Refused),
        }
    }

    /// Opens TLS after its first message, which must name the host that was asked for, or none.
    pub async fn open_tls(self: Arc<Self>, tcp: TcpStream, greeting: Greeting, guest: Guest, drain: Watch) {
        let families = &self.families;
        match &greeting.hello {
            Ok(hello) if hello.server_name.as_ref().is_none_or(|name| *name == guest.host) => {}
            Ok(hello) => {
                let (host, name) = (&guest.host, hello.server_name.as_deref());
                tracing::debug!(%host, name, "TLS names another host than was asked for");
                return families.count(Became::Mismatched);
            }
            Err(error) => {
                tracing::debug!(host = %guest.host, %error, "no TLS");
                return families.count(Became::Refused);
            }
        }
        let config = match self.parts.ca.server_config(&guest.host) {
            Ok(config) => config,
            Err(error) => {
                tracing::warn!(host = %guest.host, %error, "cannot open TLS");
                return families.count(Became::Refused);
            }
        };
        let accepting = TlsAcceptor::from(config).accept(Ahead::new(greeting.bytes, tcp));
        let tls = match tokio::time::timeout(HELLO_TIMEOUT, accepting).await {
            Ok(Ok(tls)) => tls,
            Ok(Err(error)) => {
                tracing::info!(host = %guest.host, %error, "TLS was not agreed on; does the client trust the local CA?");
                return families.count(Became::Untrusted);
            }
            Err(_) => return families.count(Became::Untrusted),
        };
        families.count(Became::Intercepted);
        let http2 = tls.get_ref().1.alpn_protocol() == Some(b"h2");
        let peer = guest.peer;
        listener::serve(tls, http2, peer, Arc::new(Inside { front: self, guest }), drain).await;
    }
}

/// Answers what comes out of a connection to one host.
#[derive(Debug)]
struct Inside {
    /// Who has opened it.
    front: Arc<Front>,
    guest: Guest,
}

impl Handler for Inside {
    type Body = FrontBody;

    fn handle(self: &Arc<Self>, request: Request<Incoming>, peer: SocketAddr) -> Answering<FrontBody> {
        let front = self.front.successor();
        match self.inbound(&front, request, peer) {
            Ok(inbound) => Box::pin(async move { front.proxy.answer(inbound).await.map(FrontBody::Answer) }),
            Err(refusal) => Box::pin(std::future::ready(*refusal)),
        }
    }

    fn patience(&self) -> Patience {
        self.front.parts.patience
    }
}

impl Inside {
    /// The request as `front`, who is in charge now, is to answer it; or the refusal.
    fn inbound(
        &self,
        front: &Arc<Front>,
        request: Request<Incoming>,
        peer: SocketAddr,
    ) -> Result<Box<Inbound>, Box<Response<FrontBody>>> {
        if request.method() == Method::CONNECT {
            return Err(Box::new(front.refuse(&Refused::Inside, peer)));
        }
        let (mut parts, body) = request.into_parts();
        if let Err(refused) = self.guest.check_names(&parts) {
            return Err(Box::new(front.refuse(&refused, peer)));
        }
        // The host may be another provider's by now, or nobody's.
        let upstream = match Arc::ptr_eq(front, &self.front) {
            true => Some(Arc::clone(&self.guest.upstream)),
            false => front.proxy.registry().by_host(&self.guest.host),
        };
        let Some(upstream) = upstream else {
            let refused = Refused::Denied { host: self.guest.host.to_string() };
            return Err(Box::new(front.refuse(&refused, peer)));
        };
        if let Some(identity) = &self.guest.identity {
            parts.headers.insert(PROXY_AUTHORIZATION, identity.clone());
        }
        let path = self.guest.path(&parts);
        let destination = Destination::Provider(upstream);
        Ok(Box::new(Inbound { parts, body: Some(body), peer, destination, path }))
    }
}

impl Guest {
    /// Every name in the request must be that of the connection, and one must be there.
    fn check_names(&self, parts: &Parts) -> Result<(), Refused> {
        let said =
            parts.headers.get_all(HOST).iter().map(|value| value.to_str().ok().and_then(|text| text.parse().ok()));
        let said: Vec<Option<Authority>> = parts.uri.authority().cloned().map(Some).into_iter().chain(said).collect();
        let fits = |authority: &Authority| {
            // A port that is not named is that of the connection.
            Target::new(authority, Some(self.port))
                .is_some_and(|target| target.host == self.host && target.port == self.port)
        };
        let strange = said.iter().find(|authority| !authority.as_ref().is_some_and(fits));
        match strange {
            None if !said.is_empty() => Ok(()),
            other => {
                let named = other.and_then(|name| name.as_ref()).map_or_else(String::new, ToString::to_string);
                Err(Refused::Misdirected { host: self.host.to_string(), named })
            }
        }
    }

    /// Path and query as the provider's own. Where its base URL has a prefix and this is its very host, the client has
    /// said the prefix already.
    pub(super) fn path(&self, parts: &Parts) -> String {
        let path = parts.uri.path_and_query().map_or("/", PathAndQuery::as_str);
        if *self.host != *self.upstream.host() {
            return path.to_owned();
        }
        match path.strip_prefix(self.upstream.base_path()) {
            Some(rest) if rest.starts_with('/') => rest.to_owned(),
            Some(rest) if rest.is_empty() || rest.starts_with('?') => format!("/{rest}"),
            _ => path.to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::provider::Registry;

    fn guest(host: &str, sections: &str) -> Guest {
        let sections: BTreeMap<_, _> = toml::from_str(sections).unwrap();
        let upstream = Registry::build(&sections, None).unwrap().by_host(host).unwrap();
        let peer = SocketAddr::from(([127, 0, 0, 1], 1));
        Guest { host: host.into(), port: 443, upstream, identity: None, peer }
    }

    fn parts(target: &str, hosts: &[&str]) -> Parts {
        let mut builder = Request::get(target);
        for host in hosts {
            builder = builder.header(HOST, *host);
        }
        builder.body(()).unwrap().into_parts().0
    }

    #[test]
    fn names_must_agree() {
        let guest = guest("api.openai.com", "");
        for (target, hosts, want) in [
            ("/v1/models", &["api.openai.com"][..], true),
            ("/v1/models", &["API.openai.com.:443"], true),
            ("https://api.openai.com/v1/models", &[], true),
            ("https://api.openai.com/v1/models", &["api.openai.com"], true),
            ("/v1/models", &["api.anthropic.com"], false),
            ("/v1/models", &["api.openai.com:80"], false),
            ("/v1/models", &["api.openai.com", "evil.example"], false),
            ("https://evil.example/v1/models", &["api.openai.com"], false),
            ("/v1/models", &["@"], false),
            ("/v1/models", &[], false),
        ] {
            assert_eq!(guest.check_names(&parts(target, hosts)).is_ok(), want, "{target} {hosts:?}");
        }
    }

    #[test]
    fn a_prefix_is_not_said_twice() {
        let own = "[gw]\ndialect = \"openai\"\nbase_url = \"https://llm.example/gw\"\nhosts = [\"other.example\"]";
        for (host, target, want) in [
            ("llm.example", "/gw/v1/models?a=b", "/v1/models?a=b"),
            ("llm.example", "/gw", "/"),
            ("llm.example", "/gw?a", "/?a"),
            ("llm.example", "/gwx", "/gwx"),
            ("other.example", "/gw/v1", "/gw/v1"),
        ] {
            assert_eq!(guest(host, own).path(&parts(target, &[host])), want, "{host}{target}");
        }
        assert_eq!(guest("api.openai.com", "").path(&parts("/v1/models", &[])), "/v1/models");
    }
}
