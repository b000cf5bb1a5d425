//! The request path: authenticate, select, admit, forward, observe, settle.
//!
//! Owns the order of the steps (`steps`): each takes the value of the one before by move, so none is left out or done
//! twice. Leaves how the client came in to `ingress`, connections to `net`, and records to `storage`. Nothing here waits
//! for the disk: keys come from an immutable snapshot, entries go to a bounded queue.

mod admit;
mod attempt;
mod authenticate;
#[cfg(test)]
mod byok;
mod canary;
mod credentials;
mod error;
mod explain;
mod forward;
mod hard_stop;
mod headers;
mod lease;
mod metrics;
mod observe;
mod request;
mod route;
pub mod section;
mod select;
mod settle;
mod steps;
mod unpriced;
mod upgrade;

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
use http::Response;
use http::header::{AUTHORIZATION, EXPECT, HeaderMap, HeaderValue};
use http::request::Parts;
use http_body::Body;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use rustc_hash::FxHashMap;

use crate::clock::{Clock, Nanos};
use crate::entry::Outcome;
use crate::id::RequestId;
use crate::limit::RateHeaders;
use crate::metrics::Metrics;
use crate::net::dial::{Dialer, Origin, Reach};
use crate::net::drain::Drain;
use crate::net::upstream::Pool;
use crate::provider::{Dialect, Registry, Scheme, Upstream};
use crate::span::Spans;
use crate::storage::Store;

use authenticate::{Door, authenticate};
use error::Error;
use metrics::{Families, ProviderMetrics};
use settle::{Account, Books};

pub use explain::explain;
pub use forward::error_text;
pub use headers::strip_hop_by_hop as strip_hop;
pub use lease::lease;
pub use observe::{AnswerBody, Relayed};
pub use section::{ProxySection, UnknownKeys};

/// A request as an ingress understood it.
#[derive(Debug)]
pub struct Inbound {
    /// Its head.
    pub parts: Parts,
    /// Its body, until the proxy takes it up.
    pub body: Option<Incoming>,
    /// The client's address.
    pub peer: SocketAddr,
    /// Where it goes.
    pub destination: Destination,
    /// Path and query as the destination reads them.
    pub path: String,
}

/// Where a request goes.
#[derive(Clone, Debug)]
pub enum Destination {
    /// To this provider.
    Provider(Arc<Upstream>),
    /// A bare `/v1…` path: the dialect is known, the provider depends on the model.
    ByModel(&'static dyn Dialect),
    /// Nowhere.
    Nowhere,
}

impl Destination {
    /// The provider that is named.
    fn named(&self) -> Option<&Arc<Upstream>> {
        match self {
            Self::Provider(upstream) => Some(upstream),
            Self::ByModel(_) | Self::Nowhere => None,
        }
    }

    /// The dialect of refusals, until the path tells more.
    fn dialect(&self) -> &'static dyn Dialect {
        match self {
            Self::ByModel(dialect) => *dialect,
            Self::Nowhere => crate::provider::default_dialect(),
            Self::Provider(upstream) => upstream.dialect,
        }
    }
}

/// Hosts besides the configured ones whose connections are kept.
const FURTHER_HOSTS: usize = 64;

/// The request path of one worker.
#[derive(Debug)]
pub struct Proxy {
    parts: ProxyParts,
    lanes: FxHashMap<Arc<str>, Arc<Lane>>,
    /// Lanes to further hosts of vendors that have several, by host, as clients ask for them.
    further: Mutex<HashMap<Box<str>, Arc<Lane>>>,
    books: Arc<Books>,
    drain: Arc<Drain>,
}

/// One provider as the proxy uses it.
#[derive(Debug)]
struct Lane {
    upstream: Arc<Upstream>,
    pool: Arc<Pool>,
    metrics: Arc<ProviderMetrics>,
}

/// What a [`Proxy`] is made of.
#[derive(Clone, Debug)]
pub struct ProxyParts {
    /// Keys and ledger.
    pub store: Store,
    /// Providers.
    pub registry: Arc<Registry>,
    /// Dials providers.
    pub dialer: Dialer,
    /// Time.
    pub clock: Clock,
    /// Bounds.
    pub section: ProxySection,
    /// What virtual keys begin with.
    pub prefix: String,
    /// True to log one line for each request.
    pub access_log: bool,
    /// Where ended requests are traced, if they are.
    pub spans: Option<Spans>,
    /// Whether the client's trace context goes on to providers. It holds what is none of theirs, and ends here unless
    /// the operator says otherwise.
    pub keeps_trace: bool,
}

/// What the [`Proxy`] of every worker shares: metrics, the ledger and the counting thread. Made once.
#[derive(Debug)]
pub struct Shared {
    books: Arc<Books>,
    counting: JoinHandle<()>,
}

impl Shared {
    /// Declares the families in `metrics` and starts the counting thread.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn new(parts: &ProxyParts, metrics: &Metrics) -> std::io::Result<Self> {
        let (books, counting) = Books::new(parts, Families::new(metrics))?;
        Ok(Self { books: Arc::new(books), counting })
    }

    /// Reads what was counted up to now.
    #[must_use]
    pub fn counts(&self) -> crate::activity::Reader {
        let families = self.books.families.clone();
        Box::new(move || families.counts())
    }

    /// From now on a request that is dropped was cut by us and did not lose its client.
    pub fn cut(&self) {
        self.books.cut();
    }

    /// Waits until everything settled is on its way to the ledger. The proxies must have gone before.
    pub fn close(self) {
        drop(self.books);
        // A panic is in the log already, by the hook.
        let _ = self.counting.join();
    }
}

/// What is known of a request before anything is decided.
#[derive(Clone, Copy, Debug)]
struct Arrival {
    id: RequestId,
    started: Nanos,
    wall_ms: u64,
    peer: SocketAddr,
}

/// What a refusal has to know of the steps before it. Dropped with the request, it settles the account.
#[derive(Debug)]
struct Trail {
    dialect: &'static dyn Dialect,
    account: Account,
    /// What the client has still to send.
    body: Option<Incoming>,
}

impl Proxy {
    /// A proxy with connections of its own: one for each worker, since a connection lives on one runtime.
    #[must_use]
    pub fn new(parts: ProxyParts, shared: &Shared, drain: Arc<Drain>) -> Self {
        Self::of_books(parts, Arc::clone(&shared.books), drain)
    }

    fn of_books(parts: ProxyParts, books: Arc<Books>, drain: Arc<Drain>) -> Self {
        let lane = |upstream: &Arc<Upstream>| {
            let lane = Lane {
                upstream: Arc::clone(upstream),
                pool: pool(upstream, &parts),
                metrics: Arc::new(books.families.provider(&upstream.id)),
            };
            (Arc::clone(&upstream.id), Arc::new(lane))
        };
        let lanes = parts.registry.iter().map(lane).collect();
        Self { parts, lanes, further: Mutex::default(), books, drain }
    }

    /// Another one of a changed configuration, which counts and records in the same places.
    #[must_use]
    pub fn again(&self, change: impl FnOnce(&mut ProxyParts)) -> Self {
        let mut parts = self.parts.clone();
        change(&mut parts);
        self.books.set_access_log(parts.access_log);
        Self::of_books(parts, Arc::clone(&self.books), Arc::clone(&self.drain))
    }

    /// The lane to `upstream`, which may be at another host than its provider's configured one.
    fn lane(&self, upstream: &Arc<Upstream>) -> Option<Arc<Lane>> {
        let known = self.lanes.get(&upstream.id)?;
        if known.upstream.host() == upstream.host() {
            return Some(Arc::clone(known));
        }
        let mut further = self.further.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(lane) = further.get(upstream.host()).filter(|lane| lane.upstream.id == upstream.id) {
            return Some(Arc::clone(lane));
        }
        let lane = Arc::new(Lane {
            upstream: Arc::clone(upstream),
            pool: pool(upstream, &self.parts),
            metrics: Arc::clone(&known.metrics),
        });
        // Beyond so many a connection is made for each request; an app has few.
        if further.len() < FURTHER_HOSTS {
            further.insert(upstream.host().into(), Arc::clone(&lane));
        }
        Some(lane)
    }

    /// True when `authorization` is a virtual key that may be used now from `peer`.
    #[must_use]
    pub fn knows(&self, authorization: &HeaderValue, peer: IpAddr) -> bool {
        let door = Door {
            prefix: &self.parts.prefix,
            pass_unknown: false,
            wall_ms: self.parts.clock.wall_ms(),
            peer,
            canaries: &self.books.canaries,
        };
        let mut headers = HeaderMap::with_capacity(1);
        headers.insert(AUTHORIZATION, authorization.clone());
        authenticate(door, &self.parts.store.snapshot(), &headers, None).is_ok()
    }

    /// Closes connections nobody uses; called now and then by the worker that owns them.
    pub fn sweep(&self) {
        for lane in self.lanes.values() {
            lane.pool.sweep();
        }
        let mut further = self.further.lock().unwrap_or_else(PoisonError::into_inner);
        further.retain(|_, lane| {
            lane.pool.sweep();
            Arc::strong_count(lane) > 1 || !lane.pool.is_empty()
        });
    }

    /// The providers it knows.
    #[must_use]
    pub fn registry(&self) -> &Registry {
        &self.parts.registry
    }

    /// Answers one request: the provider's answer, or a refusal in the client's dialect.
    ///
    /// # Cancel safety
    /// Dropped when the client leaves: what was sent upstream is cancelled, and the request is settled.
    pub async fn answer(&self, mut inbound: Box<Inbound>) -> Response<AnswerBody> {
        let wall_ms = self.parts.clock.wall_ms();
        let id = RequestId::new(wall_ms);
        let arrival = Arrival { id, started: self.parts.clock.now(), wall_ms, peer: inbound.peer };
        let expects = inbound.parts.headers.contains_key(EXPECT);
        let body = inbound.body.take();
        let mut trail = Trail { dialect: inbound.destination.dialect(), account: Account::default(), body };
        let error = match self.steps(&arrival, inbound, &mut trail).await {
            Ok(response) => return response,
            Err(error) => error,
        };
        if let Some(body) = trail.body.take().filter(|body| !expects && !body.is_end_stream()) {
            // A client that waits for leave to send its body is not to be given it now.
            let _ = Box::pin(tokio::time::timeout(DRAIN_TIME, drain(body))).await;
        }
        self.refuse(arrival, trail, &error)
    }

    /// The answer of a request that ends here.
    fn refuse(&self, arrival: Arrival, mut trail: Trail, error: &Error) -> Response<AnswerBody> {
        match error {
            Error::KeyNotAccepted(reason) => self.books.families.rejected(*reason),
            Error::Limited(refused) => self.books.families.limited(refused),
            _ => {}
        }
        let refusal = error.refusal().of_request(arrival.id);
        self.books.families.refused(refusal.kind.code());
        let mut response = refusal.response(trail.dialect).map(|body: Bytes| AnswerBody::Own(Some(body)));
        let mut rates = RateHeaders::default();
        let mut source = None;
        if let Some(open) = trail.account.open() {
            source = open.entry.key_source;
            rates = open.key.as_ref().map(|key| key.remaining(self.parts.clock.now())).unwrap_or_default();
        } else {
            self.books.families.strangers.inc();
        }
        let outcome = if error.is_upstreams() { Outcome::UpstreamError } else { Outcome::Refused };
        trail.account.refuse(response.status().as_u16(), refusal.kind.code(), outcome);
        tracing::debug!(request_id = %arrival.id, peer = %arrival.peer.ip(), code = refusal.kind.code(), "refused");
        headers::add_ours(response.headers_mut(), arrival.id, source, &rates);
        response
    }
}

/// Of a refused request this much is still read, for this long: a connection closed on a client that is sending is
/// reset, and the client sees that instead of the answer (RFC 9112 §9.6).
const DRAIN_BYTES: usize = 8 << 20;
const DRAIN_TIME: Duration = Duration::from_secs(2);

async fn drain(mut body: Incoming) {
    let mut left = DRAIN_BYTES;
    while let Some(Ok(frame)) = body.frame().await {
        let Some(rest) = left.checked_sub(frame.data_ref().map_or(0, Bytes::len)) else { return };
        left = rest;
    }
}

/// Where connections to `upstream` go.
#[must_use]
pub fn origin(upstream: &Upstream) -> Origin {
    Origin {
        host: upstream.host().into(),
        port: upstream.port(),
        tls: upstream.scheme() == Scheme::Https,
        http2: upstream.http2,
        reach: if upstream.is_public() { Reach::Public } else { Reach::Any },
    }
}

fn pool(upstream: &Upstream, parts: &ProxyParts) -> Arc<Pool> {
    let timeout = upstream.connect_timeout.unwrap_or(parts.section.connect_timeout);
    Arc::new(Pool::new(origin(upstream), parts.dialer.clone(), timeout, parts.clock.clone()))
}
