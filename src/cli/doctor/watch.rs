//! A proxy of doctor's own, with a CA of its own: it sees how programs come, and lets no request get to a provider.
//!
//! Owns what becomes of each connection. Hosts of providers are opened as sidekey opens them, and answered here; all
//! others are joined or passed on, so that a program gets as far as it would.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HOST, HeaderValue};
use http::uri::{Authority, PathAndQuery};
use http::{Method, Request, Response, StatusCode, Uri};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;

use crate::cli::failure::{Exit, Failure};
use crate::clock::Clock;
use crate::net::ahead::Ahead;
use crate::net::body::{BoxError, Outgoing};
use crate::net::ca::{Ca, Generation};
use crate::net::dial::{Dialer, Origin, Reach, Stream};
use crate::net::drain::{Drain, Watch};
use crate::net::listener::{self, Answering, Handler, Patience};
use crate::net::sni::{HANDSHAKE, HELLO_TIMEOUT};
use crate::net::tunnel;
use crate::net::upstream::Pool;
use crate::provider::Registry;
use crate::proxy::strip_hop;

/// Below it lie the hosts that probes ask for; nobody can have it (RFC 2606 §2), so that a program that goes its own way
/// gets nowhere.
pub(super) const NOBODY: &str = "sidekey-doctor.invalid";
/// What programs are given as virtual key.
pub(super) const KEY: &str = "sk-side-d0c70ad0c70ad0c7-SidekeyDoctorSidekeyDoctorSidekeyDoctor0000";
const PATIENCE: Patience = Patience { header_timeout: Duration::from_secs(60) };
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const CA_LIFETIME: Duration = Duration::from_secs(24 * 3600);

/// What became of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Became {
    /// A provider's; nothing was heard yet.
    Granted,
    /// A provider's, with a request; `keyed` when it showed the key of its environment.
    Asked { keyed: bool },
    /// A provider's, and TLS was not agreed on.
    Untrusted(String),
    /// Somebody else's, joined or passed on unread.
    Joined,
    /// Somebody else's, and not reached.
    Unreached(String),
}

/// A connection, or a request of plain HTTP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) host: String,
    pub(super) port: u16,
    pub(super) became: Became,
}

/// The proxy.
#[derive(Debug)]
pub(super) struct Watched {
    registry: Registry,
    ca: Ca,
    dialer: Dialer,
    clock: Clock,
    drain: Drain,
    seen: Mutex<Vec<Seen>>,
}

impl Watched {
    /// One that knows these providers and dials others by `dialer`; and its root, for programs to trust.
    ///
    /// # Errors
    /// When there is no randomness.
    pub(super) fn new(registry: Registry, dialer: Dialer) -> Result<(Arc<Self>, Generation), Failure> {
        let clock = Clock::system();
        let mut names = registry.host_names();
        names.push(NOBODY.to_owned());
        let fault = |error: crate::net::ca::CaError| Failure::new(Exit::Failure, error.to_string());
        let generation = Generation::create(&names, clock.wall_ms(), CA_LIFETIME).map_err(fault)?;
        let ca = Ca::new(vec![generation.clone()], clock.clone()).map_err(fault)?;
        let (drain, seen) = (Drain::default(), Mutex::default());
        Ok((Arc::new(Self { registry, ca, dialer, clock, drain, seen }), generation))
    }

    /// Serves for as long as `work` goes on.
    pub(super) async fn during<T>(
        self: &Arc<Self>,
        listener: tokio::net::TcpListener,
        work: impl Future<Output = T>,
    ) -> T {
        let serving = listener::accept(listener, Arc::clone(self), &self.drain);
        let serving = async {
            serving.await;
            std::future::pending().await
        };
        let done = tokio::select! {
            done = work => done,
            done = serving => done,
        };
        self.drain.signal();
        done
    }

    /// All that were seen so far.
    pub(super) fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn note(&self, host: &str, port: u16) -> usize {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.push(Seen { host: host.to_owned(), port, became: Became::Granted });
        seen.len() - 1
    }

    /// A request is the last word on a connection; that it showed the key, the last on requests.
    fn tell(&self, at: usize, became: Became) {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(one) = seen.get_mut(at) else { return };
        let settled = match (&one.became, &became) {
            (Became::Asked { keyed }, Became::Asked { .. }) => *keyed,
            (Became::Asked { .. }, _) => true,
            _ => false,
        };
        if !settled {
            one.became = became;
        }
    }

    pub(super) fn is_providers(&self, host: &str) -> bool {
        let nobodys = host.strip_suffix(NOBODY).is_some_and(|before| before.is_empty() || before.ends_with('.'));
        nobodys || self.registry.by_host(host).is_some()
    }

    /// Opens a connection to a provider's host.
    async fn open(self: Arc<Self>, mut io: Ahead<TcpStream>, host: String, at: usize, peer: SocketAddr, drain: Watch) {
        let inside = Arc::new(Inside { watched: Arc::clone(&self), at });
        match tokio::time::timeout(HELLO_TIMEOUT, io.peek(1, b"")).await {
            Ok(Ok([HANDSHAKE, ..])) => {}
            Ok(Ok([_, ..])) => return listener::serve(io, false, peer, inside, drain).await,
            // A connection made ahead of its use says nothing of trust.
            _ => return,
        }
        let config = match self.ca.server_config(&host) {
            Ok(config) => config,
            Err(error) => return self.tell(at, Became::Untrusted(error.to_string())),
        };
        match TlsAcceptor::from(config).accept(io).await {
            Err(error) => self.tell(at, Became::Untrusted(error.to_string())),
            Ok(tls) => {
                // Some look at the certificate only afterwards, and leave.
                self.tell(at, Became::Untrusted("it left without a request".to_owned()));
                let http2 = tls.get_ref().1.alpn_protocol() == Some(b"h2");
                listener::serve(tls, http2, peer, inside, drain).await;
            }
        }
    }

    /// Joins the two, unread.
    async fn join(self: Arc<Self>, mut io: Ahead<TcpStream>, mut upstream: Stream, mut drain: Watch) {
        tokio::select! {
            _ = tokio::io::copy_bidirectional(&mut io, &mut upstream) => {}
            () = drain.signalled() => {}
        }
    }

    async fn serve(self: Arc<Self>, request: Request<Incoming>, peer: SocketAddr) -> Response<Answer> {
        let connect = request.method() == Method::CONNECT;
        let Some(authority) = request.uri().authority().cloned() else {
            return answer(StatusCode::BAD_REQUEST, "sidekey doctor listens here as a proxy");
        };
        let host = authority.host().trim_start_matches('[').trim_end_matches(']').trim_end_matches('.');
        let (host, port) = (host.to_ascii_lowercase(), authority.port_u16().unwrap_or(if connect { 443 } else { 80 }));
        let to = To { at: self.note(&host, port), host, port };
        if connect {
            return self.connect(request, to, peer).await;
        }
        if self.is_providers(&to.host) {
            let (keyed, answer) = in_its_stead(&request);
            self.tell(to.at, Became::Asked { keyed });
            return answer;
        }
        self.pass(request, &to, &authority).await
    }

    async fn connect(self: Arc<Self>, mut request: Request<Incoming>, to: To, peer: SocketAddr) -> Response<Answer> {
        let To { host, port, at } = to;
        let upstream = match self.is_providers(&host) {
            true => None,
            false => match self.dialer.tunnel(&origin(&host, port), CONNECT_TIMEOUT).await {
                Ok(stream) => Some(stream),
                Err(error) => return self.unreached(at, &error),
            },
        };
        let Some(upgrade) = request.extensions_mut().remove::<OnUpgrade>() else {
            return answer(StatusCode::BAD_REQUEST, "this connection cannot become a tunnel");
        };
        let drain = self.drain.watch();
        tunnel::take_over(upgrade, move |io| async move {
            match upstream {
                None => self.open(io, host, at, peer, drain).await,
                Some(upstream) => {
                    self.tell(at, Became::Joined);
                    self.join(io, upstream, drain).await;
                }
            }
        });
        Response::new(Full::default().map_err(|never| match never {}).boxed_unsync())
    }

    /// Passes plain HTTP on, on a connection of its own.
    async fn pass(&self, request: Request<Incoming>, to: &To, authority: &Authority) -> Response<Answer> {
        let (mut parts, body) = request.into_parts();
        let path = parts.uri.path_and_query().map_or("/", PathAndQuery::as_str);
        let (Ok(uri), Ok(host)) = (Uri::try_from(path), HeaderValue::try_from(authority.as_str())) else {
            return answer(StatusCode::BAD_REQUEST, "the target is none");
        };
        parts.uri = uri;
        strip_hop(&mut parts.headers);
        parts.headers.insert(HOST, host);
        let body = match http_body::Body::is_end_stream(&body) {
            true => Outgoing::Empty,
            false => Outgoing::Streamed(Box::pin(body.map_err(Into::into))),
        };
        let pool = Pool::new(origin(&to.host, to.port), self.dialer.clone(), CONNECT_TIMEOUT, self.clock.clone());
        match Arc::new(pool).send(Box::new(Request::from_parts(parts, body))).await {
            Err(error) => self.unreached(to.at, &error),
            Ok(mut response) => {
                self.tell(to.at, Became::Joined);
                strip_hop(response.headers_mut());
                response.map(|body| body.map_err(Into::into).boxed_unsync())
            }
        }
    }

    fn unreached(&self, at: usize, error: &dyn std::error::Error) -> Response<Answer> {
        let why = error.to_string();
        self.tell(at, Became::Unreached(why.clone()));
        answer(StatusCode::BAD_GATEWAY, &why)
    }
}

/// Where a request wants to go, and the number of what was noted of it.
struct To {
    host: String,
    port: u16,
    at: usize,
}

fn origin(host: &str, port: u16) -> Origin {
    // As far as the program would get by itself: it is of the same user, on the same machine.
    Origin { host: host.into(), port, tls: false, http2: false, reach: Reach::Any }
}

type Answer = UnsyncBoxBody<Bytes, BoxError>;

/// In a form that the SDKs read, with a status that none of them tries again.
fn answer(status: StatusCode, why: &str) -> Response<Answer> {
    let error = serde_json::json!({"type": "authentication_error", "code": "sidekey_doctor", "message": why});
    let body = Bytes::from(serde_json::json!({"type": "error", "error": error}).to_string());
    let mut response = Response::new(Full::new(body).map_err(|never| match never {}).boxed_unsync());
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

fn in_its_stead(request: &Request<Incoming>) -> (bool, Response<Answer>) {
    let shown = |text: &[u8]| memchr::memmem::find(text, KEY.as_bytes()).is_some();
    let keyed = request.headers().values().any(|value| shown(value.as_bytes()))
        || request.uri().query().is_some_and(|query| shown(query.as_bytes()));
    (keyed, answer(StatusCode::UNAUTHORIZED, "sidekey doctor answers in the provider's stead; nothing was sent to it"))
}

impl Handler for Watched {
    type Body = Answer;

    fn handle(self: &Arc<Self>, request: Request<Incoming>, peer: SocketAddr) -> Answering<Answer> {
        Box::pin(Arc::clone(self).serve(request, peer))
    }

    fn patience(&self) -> Patience {
        PATIENCE
    }
}

/// Answers what comes out of a connection to a provider.
#[derive(Debug)]
struct Inside {
    watched: Arc<Watched>,
    at: usize,
}

impl Handler for Inside {
    type Body = Answer;

    fn handle(self: &Arc<Self>, request: Request<Incoming>, _: SocketAddr) -> Answering<Answer> {
        let (keyed, answer) = in_its_stead(&request);
        self.watched.tell(self.at, Became::Asked { keyed });
        Box::pin(std::future::ready(answer))
    }

    fn patience(&self) -> Patience {
        PATIENCE
    }
}
