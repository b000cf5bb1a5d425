//! The TCP address of the admin API: connections, TLS where it is set up, and requests to the door.
//!
//! Owns the listener's side; leaves sockets to `net::listener`, and who gets in to `door`.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::response::IntoResponse;
use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::BodyExt;
use http_body_util::combinators::UnsyncBoxBody;
use hyper::body::Incoming;
use rustls::ServerConfig;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tower::ServiceExt;

use crate::control::Api;
use crate::control::door::Peer;
use crate::control::problem::Problem;
use crate::net::ahead::Ahead;
use crate::net::body::BoxError;
use crate::net::drain::{Drain, Watch};
use crate::net::listener::{self, Answering, Handler, Patience};

/// For a client to send a request's head, and to agree on TLS.
const PATIENCE: Patience = Patience { header_timeout: Duration::from_secs(30) };
const HELLO_TIMEOUT: Duration = Duration::from_secs(10);

/// What it listens on, and how.
#[derive(Debug)]
pub struct AdminTcp {
    /// The socket.
    pub listener: std::net::TcpListener,
    /// Hosts by which it may be called, beside the loopback address's.
    pub hosts: Vec<String>,
    /// TLS that asks clients for certificates; `None` is plain HTTP.
    pub tls: Option<Arc<ServerConfig>>,
}

impl AdminTcp {
    /// Serves `api` until `shutdown` ends, then lets open requests finish.
    ///
    /// # Errors
    /// When the socket cannot be used.
    pub async fn serve(self, api: &Api, shutdown: impl Future<Output = ()>) -> std::io::Result<()> {
        let listener = TcpListener::from_std(self.listener)?;
        let mut hosts: Vec<String> = self.hosts.iter().map(|host| host.to_ascii_lowercase()).collect();
        let own = listener.local_addr()?;
        if !own.ip().is_unspecified() {
            hosts.push(own.to_string());
        }
        let inside = Arc::new(Inside(api.of_tcp(hosts, self.tls.is_some())));
        let drain = Drain::default();
        let accepting = async {
            match self.tls {
                None => listener::accept(listener, inside, &drain).await,
                Some(tls) => {
                    let outside = Arc::new(Outside { inside, tls: TlsAcceptor::from(tls) });
                    listener::accept(listener, outside, &drain).await;
                }
            }
        };
        tokio::select! {
            () = accepting => {}
            () = shutdown => {}
        }
        drain.signal();
        drain.finished().await;
        Ok(())
    }
}

type AnswerBody = UnsyncBoxBody<Bytes, BoxError>;

/// Answers requests.
struct Inside(Router);

impl Handler for Inside {
    type Body = AnswerBody;

    fn handle(self: &Arc<Self>, mut request: Request<Incoming>, peer: SocketAddr) -> Answering<AnswerBody> {
        request.extensions_mut().insert(Peer(peer));
        let router = self.0.clone();
        Box::pin(async move {
            match router.oneshot(request).await {
                Ok(response) => boxed(response),
                Err(never) => match never {},
            }
        })
    }

    fn patience(&self) -> Patience {
        PATIENCE
    }
}

/// Opens TLS first.
struct Outside {
    inside: Arc<Inside>,
    tls: TlsAcceptor,
}

impl Handler for Outside {
    type Body = AnswerBody;

    fn handle(self: &Arc<Self>, _request: Request<Incoming>, _peer: SocketAddr) -> Answering<AnswerBody> {
        let problem = Problem::new(StatusCode::BAD_REQUEST, "tls_needed", "this address speaks TLS only");
        Box::pin(std::future::ready(boxed(problem.fix("use https, and a client certificate").into_response())))
    }

    fn patience(&self) -> Patience {
        PATIENCE
    }

    async fn greet(self: Arc<Self>, io: Ahead<TcpStream>, peer: SocketAddr, drain: Watch) {
        let tls = match tokio::time::timeout(HELLO_TIMEOUT, self.tls.accept(io)).await {
            Ok(Ok(tls)) => tls,
            Ok(Err(error)) => {
                tracing::info!(%peer, %error, "no TLS was agreed on with a client of the admin API");
                return;
            }
            Err(_) => return,
        };
        let http2 = tls.get_ref().1.alpn_protocol() == Some(b"h2");
        listener::serve(tls, http2, peer, Arc::clone(&self.inside), drain).await;
    }
}

fn boxed(response: axum::response::Response) -> Response<AnswerBody> {
    response.map(|body| body.map_err(BoxError::from).boxed_unsync())
}
