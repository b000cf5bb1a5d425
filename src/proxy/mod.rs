//! The request path: authenticate, select, admit, forward, observe, settle.
//!
//! Owns the order of the steps: each takes the value of the one before by move, so none is left out or done twice.
//! Leaves how the client came in to `ingress`, connections to `net`, and records to `storage`. Nothing here waits for
//! the disk: keys come from an immutable snapshot, entries go to a bounded queue.

mod admit;
mod authenticate;
mod credentials;
mod error;
mod forward;
mod headers;
mod metrics;
mod observe;
mod request;
pub mod section;
mod select;
mod settle;
mod upgrade;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use http::request::Parts;
use http::{Response, Uri};
use hyper::body::Incoming;

use crate::clock::{Clock, Nanos};
use crate::entry::{Entry, Outcome};
use crate::id::{RequestId, is_name};
use crate::metrics::Metrics;
use crate::net::dial::Origin;
use crate::net::drain::Watch;
use crate::net::tls::TlsClient;
use crate::net::upstream::Pool;
use crate::provider::{Asked, Call, Dialect, Registry, Upstream, check_path};
use crate::secret::Secret;
use crate::storage::{Snapshot, Store};
use crate::tally::Observer;
use crate::virtual_key::StreamUsage;

use authenticate::{Caller, Door, authenticate};
use error::Error;
use forward::{Outbound, Way, forward};
use metrics::{Families, ProviderMetrics};
use observe::InFlight;
use request::{Bounds, Taken};
use select::Candidate;
use settle::{Account, Books, End, Open};

pub use observe::{AnswerBody, Relayed};
pub use section::{ProxySection, UnknownKeys};

/// A request as an ingress understood it.
#[derive(Debug)]
pub struct Inbound {
    /// Its head.
    pub parts: Parts,
    /// Its body.
    pub body: Incoming,
    /// The client's address.
    pub peer: SocketAddr,
    /// Where it goes.
    pub destination: Destination,
}

/// Where a request goes.
#[derive(Clone, Debug)]
pub enum Destination {
    /// To this provider, with the provider's own path and query.
    Provider(Arc<Upstream>, String),
    /// A bare `/v1…` path: the dialect is known, the provider depends on the model.
    ByModel(&'static dyn Dialect),
    /// Nowhere.
    Nowhere,
}

/// The parts that requests share.
#[derive(Debug)]
pub struct Proxy {
    store: Store,
    registry: Arc<Registry>,
    lanes: HashMap<Arc<str>, Arc<Lane>>,
    books: Arc<Books>,
    clock: Clock,
    section: ProxySection,
    prefix: String,
    drain: Watch,
}

/// One provider as the proxy uses it.
#[derive(Debug)]
struct Lane {
    upstream: Arc<Upstream>,
    pool: Arc<Pool>,
    metrics: ProviderMetrics,
}

/// What a [`Proxy`] is made of.
#[derive(Debug)]
pub struct ProxyParts {
    /// Keys and ledger.
    pub store: Store,
    /// Providers.
    pub registry: Arc<Registry>,
    /// Trust towards providers.
    pub tls: TlsClient,
    /// Time.
    pub clock: Clock,
    /// Families are added here.
    pub metrics: Metrics,
    /// Bounds.
    pub section: ProxySection,
    /// What virtual keys begin with.
    pub prefix: String,
}

/// What every worker's [`Proxy`] shares: metrics and the counting thread. Made once.
#[derive(Clone, Debug)]
pub struct Shared {
    books: Arc<Books>,
}

/// What is known of a request before anything is decided.
#[derive(Clone, Copy, Debug)]
struct Arrival {
    id: RequestId,
    started: Nanos,
    wall_ms: u64,
    peer: SocketAddr,
}

/// Step 1: who asks, and nothing of their credential left in the request.
struct Authenticated {
    parts: Parts,
    body: Incoming,
    snapshot: Arc<Snapshot>,
    caller: Caller,
    group: Option<Arc<str>>,
    destination: Destination,
}

/// Step 2: what is asked, of whom, and whose keys pay.
struct Selected {
    parts: Parts,
    caller: Caller,
    group: Option<Arc<str>>,
    lane: Arc<Lane>,
    target: Uri,
    taken: Taken,
    asked: Asked,
    candidates: Vec<Candidate>,
    ready: Nanos,
}

/// A request that ends here.
#[derive(Debug)]
struct Refused {
    error: Error,
    dialect: &'static dyn Dialect,
    account: Option<Account>,
}

impl Refused {
    fn new(error: impl Into<Error>, dialect: &'static dyn Dialect) -> Box<Self> {
        Box::new(Self { error: error.into(), dialect, account: None })
    }
}

impl Shared {
    /// Declares the families and starts the counting thread.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn new(parts: &ProxyParts) -> std::io::Result<Self> {
        let families = Families::new(&parts.metrics);
        let books = Books::new(parts.clock.clone(), parts.store.ledger().clone(), families)?;
        Ok(Self { books: Arc::new(books) })
    }
}

impl Proxy {
    /// A proxy with connections of its own: one for each worker, since a connection lives on one runtime.
    #[must_use]
    pub fn new(parts: ProxyParts, shared: &Shared, drain: Watch) -> Self {
        let lane = |upstream: &Arc<Upstream>| {
            let origin = Origin {
                host: upstream.host.clone(),
                port: upstream.port,
                tls: upstream.tls,
                http2: upstream.settings.http2,
                public: upstream.is_public(),
            };
            let timeout = upstream.settings.connect_timeout.unwrap_or(parts.section.connect_timeout);
            let pool = Arc::new(Pool::new(origin, parts.tls.clone(), timeout, parts.clock.clone()));
            let metrics = shared.books.families.provider(&upstream.id);
            let lane = Lane { upstream: Arc::clone(upstream), pool, metrics };
            (Arc::clone(&upstream.id), Arc::new(lane))
        };
        let lanes = parts.registry.upstreams().map(lane).collect();
        Self {
            store: parts.store,
            registry: parts.registry,
            lanes,
            books: Arc::clone(&shared.books),
            clock: parts.clock,
            section: parts.section,
            prefix: parts.prefix,
            drain,
        }
    }

    /// Closes connections nobody uses; called now and then by the worker that owns them.
    pub fn sweep(&self) {
        for lane in self.lanes.values() {
            lane.pool.sweep();
        }
    }

    /// The providers it knows.
    #[must_use]
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// Answers one request: the provider's answer, or a refusal in the client's dialect.
    ///
    /// # Cancel safety
    /// Dropped when the client leaves: what was sent upstream is cancelled, and the request is settled.
    pub async fn answer(&self, inbound: Inbound) -> Response<AnswerBody> {
        let wall_ms = self.clock.wall_ms();
        let id = RequestId::new(wall_ms);
        let arrival = Arrival { id, started: self.clock.now(), wall_ms, peer: inbound.peer };
        match self.steps(arrival, inbound).await {
            Ok(response) => response,
            Err(refused) => self.refuse(arrival, *refused),
        }
    }

    async fn steps(&self, arrival: Arrival, inbound: Inbound) -> Result<Response<AnswerBody>, Box<Refused>> {
        let authenticated = self.authenticate(arrival, inbound)?;
        if upgrade::is_websocket(&authenticated.parts) {
            return Box::pin(self.upgrade(arrival, authenticated)).await;
        }
        let selected = self.select(authenticated).await?;
        let (mut account, selected) = self.admit(arrival, selected)?;
        let (dialect, wire, streams) = (selected.asked.dialect, selected.asked.wire, selected.asked.stream);
        let lane = Arc::clone(&selected.lane);
        let ready = selected.ready;
        let outbound = Outbound::new(selected.parts, selected.target, &lane.upstream, selected.taken);
        let way = Way { upstream: &lane.upstream, pool: &lane.pool };
        let sent = forward(way, outbound, selected.candidates, |candidate, attempts| {
            self.attempted(&mut account, candidate, attempts, ready);
        });
        let answered = match sent.await {
            Ok(answered) => answered,
            Err(error) => return Err(Box::new(Refused { error, dialect, account: Some(account) })),
        };
        let (mut head, received) = answered.response.into_parts();
        let observer = Observer::new(wire, streams, head.status.as_u16(), &head.headers);
        self.answered(arrival, &mut account, &mut head);
        let in_flight = InFlight::new(&self.books.families.in_flight);
        Ok(Response::from_parts(head, AnswerBody::relayed(received, observer, account, in_flight)))
    }

    /// Accepts the key and takes every credential out of the request.
    fn authenticate(&self, arrival: Arrival, inbound: Inbound) -> Result<Authenticated, Box<Refused>> {
        let Inbound { mut parts, body, peer, mut destination } = inbound;
        let dialect = destination.dialect();
        let refuse = |error: Error| Refused::new(error, dialect);
        let snapshot = self.store.snapshot();
        let door = Door {
            prefix: &self.prefix,
            pass_unknown: self.section.unknown_keys == UnknownKeys::Pass,
            wall_ms: arrival.wall_ms,
            peer: peer.ip(),
        };
        let found = authenticate(door, &snapshot, &parts.headers, parts.uri.query());
        let (caller, presented) = found.map_err(refuse)?;
        let presented = presented.map(|text| Secret::new(text.to_owned()));
        if let Caller::Known(_) = &caller {
            let presented = presented.as_ref().map(Secret::expose);
            credentials::strip(&mut parts.headers, presented);
            destination.strip_query(presented);
            strip_uri(&mut parts, presented);
        }
        let group = parts.headers.get(headers::GROUP).and_then(|value| value.to_str().ok());
        let group = group.filter(|name| is_name(name)).map(Arc::from);
        Ok(Authenticated { parts, body, snapshot, caller, group, destination })
    }

    /// Reads the request as far as needed, decides the provider, checks what the key may do, and orders who pays.
    async fn select(&self, authenticated: Authenticated) -> Result<Selected, Box<Refused>> {
        let Authenticated { mut parts, body, snapshot, caller, group, destination } = authenticated;
        let dialect = destination.dialect();
        let refuse = |error: Error| Refused::new(error, dialect);
        let bounds = Bounds { replay: self.section.replay_limit, max: self.section.max_body };
        let own_path = destination.path(&parts);
        check_path(&own_path).map_err(|bad| refuse(bad.into()))?;
        let call = dialect.classify(&parts.method, &own_path);
        let (mut taken, asked) = request::take(&call, &parts.headers, body, bounds).await.map_err(refuse)?;
        let ready = self.clock.now();
        let (upstream, target) = self.resolve(&destination, &own_path, asked.model.as_deref()).map_err(refuse)?;
        let lane = self.lanes.get(&upstream.id).cloned().ok_or_else(|| refuse(Error::Internal("provider not built")))?;
        if let Some(key) = caller.key() {
            select::permit(&key.record, &upstream.id, &call, asked.model.as_deref()).map_err(refuse)?;
            if key.record.stream_usage.unwrap_or(upstream.settings.stream_usage) == StreamUsage::Request {
                taken.ask_for_usage(&asked);
            }
        }
        let candidates = select::select(&snapshot, &upstream, &caller, asked.model.as_deref()).map_err(refuse)?;
        headers::strip_request(&mut parts.headers);
        Ok(Selected { parts, caller, group, lane, target, taken, asked, candidates, ready })
    }

    /// The upstream and the target of a request.
    fn resolve(&self, destination: &Destination, path: &str, model: Option<&str>) -> Result<(Arc<Upstream>, Uri), Error> {
        let (upstream, path) = match destination {
            Destination::Provider(upstream, _) => (Arc::clone(upstream), std::borrow::Cow::Borrowed(path)),
            Destination::ByModel(_) => self.registry.bare(path, model).ok_or_else(|| self.nowhere(path))?,
            Destination::Nowhere => return Err(self.nowhere(path)),
        };
        let target = match upstream.base_path.is_empty() {
            true => Uri::try_from(&*path),
            false => Uri::try_from(format!("{}{path}", upstream.base_path)),
        };
        Ok((upstream, target.map_err(|_| Error::Internal("the path is not a valid target"))?))
    }

    fn nowhere(&self, path: &str) -> Error {
        let path = path.split('?').next().unwrap_or_default().chars().take(200).collect();
        let known: Vec<&str> = self.registry.upstreams().map(|upstream| &*upstream.id).collect();
        Error::NoSuchProvider { path, known: known.join(", ") }
    }

    /// Reserves what the request is thought to need, and opens its account.
    fn admit(&self, arrival: Arrival, selected: Selected) -> Result<(Account, Selected), Box<Refused>> {
        let Selected { asked, caller, lane, group, .. } = &selected;
        let estimate = admit::Estimate::of(asked);
        let mut account = Account::new(Open {
            books: Arc::clone(&self.books),
            entry: entry(arrival, caller, group.clone(), lane, asked),
            started: arrival.started,
            permit: None,
            key: caller.key().cloned(),
            provider_key: None,
            metrics: lane.metrics.clone(),
            input_estimate: estimate.input,
            consumes: asked.wire.consumes(),
        });
        match admit::admit(caller, estimate, arrival.started) {
            Ok(permit) => {
                account.hold(permit);
                Ok((account, selected))
            }
            Err(error) => Err(Box::new(Refused { error, dialect: asked.dialect, account: Some(account) })),
        }
    }

    /// Notes which key the request is sent with now.
    fn attempted(&self, account: &mut Account, candidate: &Candidate, attempts: u32, ready: Nanos) {
        let Some(open) = account.open() else { return };
        open.entry.attempts = attempts;
        if attempts == 1 {
            open.entry.overhead_ns = self.clock.now().saturating_sub(ready);
        } else {
            open.metrics.failovers.inc();
        }
        if let Candidate::Key { state, source, .. } = candidate {
            open.entry.key_source = Some(*source);
            open.entry.provider_key = state.id();
            open.provider_key = Some(Arc::clone(state));
        }
    }

    /// Notes the answer's head, and makes it the client's.
    fn answered(&self, arrival: Arrival, account: &mut Account, head: &mut http::response::Parts) {
        let mut rates = crate::limit::RateHeaders::default();
        let mut source = None;
        if let Some(open) = account.open() {
            let now = self.clock.now();
            open.entry.status = head.status.as_u16();
            open.entry.ttfb_us = now.saturating_sub(arrival.started) / 1_000;
            open.entry.upstream_request_id = upstream_request_id(&head.headers);
            source = open.entry.key_source;
            rates = open.key.as_ref().map(|key| key.limits.headers(now)).unwrap_or_default();
        }
        if head.status != http::StatusCode::SWITCHING_PROTOCOLS {
            headers::strip_hop_by_hop(&mut head.headers);
        }
        headers::add_ours(&mut head.headers, arrival.id, source, &rates);
    }

    /// The answer of a request that ends here.
    fn refuse(&self, arrival: Arrival, refused: Refused) -> Response<AnswerBody> {
        let Refused { error, dialect, mut account } = refused;
        if let Error::KeyNotAccepted(reason) = &error {
            self.books.families.rejected(*reason);
        }
        let refusal = error.refusal().of_request(arrival.id);
        self.books.families.refused(refusal.kind.code());
        let mut response = refusal.response(dialect).map(|body: Bytes| AnswerBody::Own(Some(body)));
        let mut rates = crate::limit::RateHeaders::default();
        if let Some(account) = &mut account {
            if let Some(key) = account.open().and_then(|open| open.key.as_ref()) {
                rates = key.limits.headers(self.clock.now());
            }
            let outcome = match error {
                Error::ProviderKeyRejected { .. } | Error::Unreachable { .. } | Error::UpstreamTimeout { .. } => {
                    Outcome::UpstreamError
                }
                _ => Outcome::Refused,
            };
            account.refuse(response.status().as_u16(), refusal.kind.code(), outcome);
        }
        tracing::debug!(request_id = %arrival.id, peer = %arrival.peer.ip(), code = refusal.kind.code(), "refused");
        headers::add_ours(response.headers_mut(), arrival.id, None, &rates);
        response
    }
}

impl Destination {
    /// The dialect of refusals.
    fn dialect(&self) -> &'static dyn Dialect {
        match self {
            Self::ByModel(dialect) => *dialect,
            Self::Nowhere => crate::provider::default_dialect(),
            Self::Provider(upstream, _) => upstream.dialect,
        }
    }
}
