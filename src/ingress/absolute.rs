//! `GET http://host/…`: what clients send to a proxy for plain HTTP.
//!
//! Owns telling whom it is for: a provider's host goes its way like any request (over TLS, if the provider has it), one
//! of sidekey's own addresses is meant as a path, and anything else is passed on as it is or refused.

use std::net::SocketAddr;
use std::sync::Arc;

use http::header::{HOST, HeaderValue, PROXY_AUTHORIZATION};
use http::uri::{Authority, PathAndQuery};
use http::{Request, Response, Uri};
use http_body::Body;
use http_body_util::BodyExt;
use hyper::body::Incoming;

use crate::ingress::connect::{Target, identity};
use crate::ingress::metrics::Became;
use crate::ingress::refused::Refused;
use crate::ingress::{Front, FrontBody, Guest, reverse};
use crate::net::body::Outgoing;
use crate::net::dial::Origin;
use crate::net::upstream::Pool;
use crate::proxy::{Destination, Inbound, strip_hop};

impl Front {
    pub(super) async fn absolute(
        self: Arc<Self>,
        mut request: Request<Incoming>,
        peer: SocketAddr,
    ) -> Response<FrontBody> {
        let tls = request.uri().scheme_str() == Some("https");
        let authority = request.uri().authority().cloned();
        let target = authority.as_ref().and_then(|one| Target::new(one, Some(if tls { 443 } else { 80 })));
        let (Some(target), Some(authority)) = (target, authority) else {
            return self.refuse(&Refused::Malformed("the target names no host"), peer);
        };
        let shown = identity(request.headers());
        if self.is_own(&target) {
            let inbound = reverse::inbound(self.proxy.registry(), request, peer);
            return self.proxy.answer(inbound).await.map(FrontBody::Answer);
        }
        if let Some(upstream) = self.proxy.registry().by_host(&target.host) {
            if !matches!(target.port, 80 | 443) && target.port != upstream.port() {
                let hint = "a provider is reached at port 443";
                return self.refuse(&Refused::Port { host: target.host.into(), port: target.port, hint }, peer);
            }
            self.families.count(Became::Intercepted);
            match shown.clone() {
                Some(identity) => request.headers_mut().insert(PROXY_AUTHORIZATION, identity),
                None => request.headers_mut().remove(PROXY_AUTHORIZATION),
            };
            let guest = Guest { host: target.host, port: target.port, upstream, identity: shown, peer };
            let (parts, body) = request.into_parts();
            let path = guest.path(&parts);
            let destination = Destination::Provider(guest.upstream);
            let inbound = Box::new(Inbound { parts, body: Some(body), peer, destination, path });
            return self.proxy.answer(inbound).await.map(FrontBody::Answer);
        }
        let allowed = match tls {
            // There is nobody to open TLS for: a client that wants it sends CONNECT.
            true => Err(Refused::Malformed("https:// needs CONNECT")),
            false => self.may_go_elsewhere(&target, shown.as_ref(), peer),
        };
        let passed = match allowed {
            Ok(()) => self.pass(&target, &authority, request).await,
            Err(refused) => Err(refused),
        };
        passed.unwrap_or_else(|refused| self.refuse(&refused, peer))
    }

    /// Sends it on, on a connection of its own.
    async fn pass(
        &self,
        target: &Target,
        authority: &Authority,
        request: Request<Incoming>,
    ) -> Result<Response<FrontBody>, Refused> {
        let origin =
            Origin { host: (&*target.host).into(), port: target.port, tls: false, http2: false, reach: self.reach() };
        let (mut parts, body) = request.into_parts();
        let path = parts.uri.path_and_query().map_or("/", PathAndQuery::as_str);
        parts.uri = Uri::try_from(path).map_err(|_| Refused::Malformed("the path is no valid target"))?;
        strip_hop(&mut parts.headers);
        let host = HeaderValue::try_from(authority.as_str());
        parts.headers.insert(HOST, host.map_err(|_| Refused::Malformed("the target names no host"))?);
        let body = match body.is_end_stream() {
            true => Outgoing::Empty,
            false => Outgoing::Streamed(Box::pin(body.map_err(Into::into))),
        };
        let pool = Pool::new(origin, self.parts.dialer.clone(), self.parts.connect_timeout, self.parts.clock.clone());
        let mut response = Arc::new(pool).send(Box::new(Request::from_parts(parts, body))).await?;
        self.families.count(Became::Tunnelled);
        strip_hop(response.headers_mut());
        Ok(response.map(FrontBody::Elsewhere))
    }
}
