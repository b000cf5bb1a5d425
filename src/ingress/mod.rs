//! How a client came in, and what that says of where its request goes.
//!
//! Owns the reading of the request's target and [`Front`], who stands at the proxy [`Port`] and tells the ways in apart;
//! leaves everything after to [`proxy`](crate::proxy).
//!
//! | first words | way | module |
//! |---|---|---|
//! | `GET /openai/…` | reverse | `reverse` |
//! | `CONNECT api.openai.com:443` | connect: opened for providers, else a blind tunnel | `connect`, `intercept` |
//! | `GET http://…` | connect, without TLS on the client's side | `absolute` |
//! | a ClientHello | TLS straight to this port, for names that resolve to it | `intercept` |
//!
//! What the kernel redirects comes to a port of its own, and from there as `transparent`.

mod absolute;
mod connect;
mod intercept;
mod metrics;
mod refused;
mod reverse;
pub mod section;
mod transparent;

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll};
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use http::{Method, Request, Version};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::net::TcpStream;

use crate::clock::Clock;
use crate::metrics::Metrics;
use crate::net::ahead::Ahead;
use crate::net::body::BoxError;
use crate::net::ca::Ca;
use crate::net::dial::Dialer;
use crate::net::drain::{Drain, Watch};
use crate::net::listener::{Answering, Handler, Patience};
use crate::net::upstream::Received;
use crate::proxy::{AnswerBody, Proxy};

pub use self::intercept::Guest;
use self::metrics::Families;
use self::section::ConnectSection;
pub use self::transparent::Loops;

/// The proxy port: each request is answered by the [`Front`] that stands there when it comes. A changed configuration
/// puts another one there; requests that are open end with the one they began with.
#[derive(Debug)]
pub struct Port(ArcSwap<Front>);

/// Who stands at the proxy port.
#[derive(Debug)]
pub struct Front {
    proxy: Proxy,
    parts: FrontParts,
    families: Families,
    port: Weak<Port>,
}

/// What a [`Front`] is made of, besides the [`Proxy`] behind it.
#[derive(Clone, Debug)]
pub struct FrontParts {
    /// Opens TLS of providers' hosts.
    pub ca: Arc<Ca>,
    /// What is done for clients that use sidekey as a proxy.
    pub section: ConnectSection,
    /// The ports sidekey listens on: nobody is led back to them.
    pub own_ports: Arc<[u16]>,
    /// Where its families go.
    pub metrics: Metrics,
    /// How patient it is with clients.
    pub patience: Patience,
    /// How long connecting to another host may take.
    pub connect_timeout: Duration,
    /// Dials other hosts.
    pub dialer: Dialer,
    /// Time.
    pub clock: Clock,
    /// Held by tunnels.
    pub drain: Arc<Drain>,
}

impl Port {
    /// With a front before `proxy`.
    #[must_use]
    pub fn new(proxy: Proxy, parts: FrontParts) -> Arc<Self> {
        let families = Families::new(&parts.metrics);
        Arc::new_cyclic(|port| Self(ArcSwap::from_pointee(Front { proxy, parts, families, port: port.clone() })))
    }

    /// Puts another front there, made from the one that stands there now.
    pub fn replace(&self, change: impl FnOnce(&Proxy, FrontParts) -> (Proxy, FrontParts)) {
        let before = self.front();
        let (proxy, parts) = change(&before.proxy, before.parts.clone());
        let (families, port) = (before.families.clone(), before.port.clone());
        self.0.store(Arc::new(Front { proxy, parts, families, port }));
    }

    /// Who stands there.
    #[must_use]
    pub fn front(&self) -> Arc<Front> {
        self.0.load_full()
    }

    /// Closes connections nobody uses; called now and then by the worker that owns them.
    pub fn sweep(&self) {
        self.front().proxy.sweep();
    }
}

impl Handler for Port {
    type Body = FrontBody;

    fn handle(self: &Arc<Self>, request: Request<Incoming>, peer: SocketAddr) -> Answering<FrontBody> {
        self.front().answer(request, peer)
    }

    fn patience(&self) -> Patience {
        self.0.load().parts.patience
    }

    async fn greet(self: Arc<Self>, io: Ahead<TcpStream>, peer: SocketAddr, drain: Watch) {
        self.front().open_named(io, peer, drain).await;
    }
}

impl Front {
    /// Who stands at the port now.
    fn successor(self: &Arc<Self>) -> Arc<Self> {
        self.port.upgrade().map_or_else(|| Arc::clone(self), |port| port.front())
    }

    fn answer(self: Arc<Self>, request: Request<Incoming>, peer: SocketAddr) -> Answering<FrontBody> {
        if request.method() == Method::CONNECT {
            return Box::pin(self.connect(request, peer));
        }
        // Over HTTP/2 every target has a scheme.
        if request.uri().scheme().is_some() && request.version() < Version::HTTP_2 {
            return Box::pin(self.absolute(request, peer));
        }
        let inbound = reverse::inbound(self.proxy.registry(), request, peer);
        Box::pin(async move { self.proxy.answer(inbound).await.map(FrontBody::Answer) })
    }
}

/// The body of any answer at the proxy port.
#[derive(Debug)]
pub enum FrontBody {
    /// The proxy's.
    Answer(AnswerBody),
    /// Of a host that is no provider's.
    Elsewhere(Received),
}

impl FrontBody {
    fn own(body: Bytes) -> Self {
        Self::Answer(AnswerBody::Own(Some(body)))
    }

    fn empty() -> Self {
        Self::Answer(AnswerBody::Own(None))
    }
}

impl Body for FrontBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match self.get_mut() {
            Self::Answer(body) => Pin::new(body).poll_frame(cx),
            Self::Elsewhere(body) => Pin::new(body).poll_frame(cx).map_err(Into::into),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Answer(body) => body.is_end_stream(),
            Self::Elsewhere(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Answer(body) => body.size_hint(),
            Self::Elsewhere(body) => body.size_hint(),
        }
    }
}
