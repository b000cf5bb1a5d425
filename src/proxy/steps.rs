//! The steps of one request, in order, and what each hands to the next.
//!
//! Owns that order and the values in between; leaves what each step decides to the module of its name.

use std::borrow::Cow;
use std::sync::Arc;

use http::request::Parts;
use http::{HeaderMap, HeaderName, Response, StatusCode, Uri, Version};
use hyper::upgrade::OnUpgrade;

use crate::clock::Nanos;
use crate::entry::{Entry, Outcome};
use crate::id::{KeySource, ScopeId, is_name};
use crate::limit::{Consumption, Moment, RateHeaders};
use crate::provider::{Asked, Call, Upstream, check_path};
use crate::proxy::admit::{self, Asks};
use crate::proxy::authenticate::{Caller, Door, authenticate};
use crate::proxy::error::Error;
use crate::proxy::forward::{Outbound, Way, forward};
use crate::proxy::hard_stop::HardStop;
use crate::proxy::observe::{AnswerBody, InFlight};
use crate::proxy::request::{self, Bounds, Original, Taken};
use crate::proxy::route::{self, Onward, Start};
use crate::proxy::select::{self, Choice};
use crate::proxy::settle::{Account, Open};
use crate::proxy::{Arrival, Destination, Inbound, Lane, Proxy, Trail, UnknownKeys, credentials, headers, upgrade};
use crate::secret::Secret;
use crate::span::TraceParent;
use crate::tally::{Observer, Wire};
use crate::unit::{TokensSource, Usage};
use crate::virtual_key::StreamUsage;

// The larger ones travel boxed: an async step has room for its argument and for what it makes of it, each moved once
// more by the step around it.

/// Step 1: what is asked, as far as its line tells.
struct Identified {
    inbound: Box<Inbound>,
    call: Call<'static>,
}

/// Step 2: who asks, and nothing of their credential left in the request.
struct Authenticated {
    parts: Parts,
    destination: Destination,
    path: String,
    call: Call<'static>,
    caller: Caller,
    group: Option<Arc<str>>,
}

/// Step 3: of whom it is asked, and whose keys pay.
struct Selected {
    parts: Parts,
    lane: Arc<Lane>,
    call: Call<'static>,
    target: Uri,
    taken: Taken,
    asked: Asked,
    caller: Caller,
    input_estimate: u64,
    /// Time spent on the client's body, not on the request.
    waited: Nanos,
    upgrade: Option<OnUpgrade>,
    /// Where a route leads, of which this is the first target.
    route: Option<Box<Led>>,
}

/// A request that a route leads.
struct Led {
    onward: Onward,
    /// The model that is called first.
    model: Arc<str>,
    /// True when the body's compression is gone.
    decoded: bool,
}

impl Selected {
    /// The model that is really called.
    fn model(&self) -> Option<&str> {
        self.route.as_ref().map(|led| &*led.model).or_else(|| self.call.model(&self.asked))
    }
}

/// Step 4: there is room for it; the trail's account holds its permit.
struct Admitted {
    selected: Box<Selected>,
    /// What it is thought to need.
    need: Consumption,
}

impl Proxy {
    /// All of them. `trail` learns what a refusal needs.
    pub(super) async fn steps(
        &self,
        arrival: &Arrival,
        inbound: Box<Inbound>,
        trail: &mut Trail,
    ) -> Result<Response<AnswerBody>, Error> {
        let identified = identify(inbound)?;
        trail.dialect = identified.call.speaks;
        let authenticated = self.authenticate(arrival, identified)?;
        let selected = self.select(arrival, authenticated, trail).await?;
        // By the time the body is here, not the head: limits count what goes out.
        let at = Moment { now: self.parts.clock.now(), wall_ms: arrival.wall_ms };
        let admitted = self.admit(at, selected, trail)?;
        self.forward(arrival, admitted, trail).await
    }

    /// Accepts the key and takes every credential out of the request.
    fn authenticate(&self, arrival: &Arrival, identified: Identified) -> Result<Box<Authenticated>, Error> {
        let Identified { inbound, call } = identified;
        let Inbound { mut parts, destination, mut path, .. } = *inbound;
        let door = Door {
            prefix: &self.parts.prefix,
            pass_unknown: self.parts.section.unknown_keys == UnknownKeys::Pass,
            wall_ms: arrival.wall_ms,
            peer: arrival.peer.ip(),
            canaries: &self.books.canaries,
        };
        let query = path.split_once('?').map(|(_, query)| query);
        let (caller, presented) = authenticate(door, &self.parts.store.snapshot(), &parts.headers, query)?;
        let presented = presented.map(|text| Secret::new(text.to_owned()));
        if caller.key().is_some() {
            let presented = presented.as_ref().map(Secret::expose);
            credentials::strip(&mut parts.headers, presented);
            credentials::strip_path(&mut path, presented);
        }
        let group = parts.headers.get(headers::GROUP).and_then(|value| value.to_str().ok());
        let group = group.filter(|name| is_name(name)).map(Arc::from);
        Ok(Box::new(Authenticated { parts, destination, path, call, caller, group }))
    }

    /// Reads the request as far as needed, decides the provider, checks what the key may do, and orders who pays.
    async fn select(
        &self,
        arrival: &Arrival,
        before: Box<Authenticated>,
        trail: &mut Trail,
    ) -> Result<Box<Selected>, Error> {
        let section = &self.parts.section;
        let bounds = Bounds { replay: section.replay_limit, max: section.max_body, patience: section.header_timeout };
        let read =
            request::take(&before.call, &before.parts.headers, &mut trail.body, bounds, &self.parts.clock).await?;
        let Authenticated { mut parts, destination, path, mut call, caller, group } = *before;
        // The body may have been long in coming, and the key revoked meanwhile.
        let snapshot = Arc::clone(&self.parts.store.snapshot());
        let request::Read { mut taken, asked, input_estimate, plain, waited } = read;
        let caller = caller.again(&snapshot, arrival.wall_ms + waited / 1_000_000, arrival.peer.ip())?;
        let model = call.model(&asked);
        let route = caller.key().and_then(|key| route::find(self.registry(), key, destination.named(), &call, model));
        let led = route.map(|(route, _)| {
            let body = Original::new(taken.take(), &parts.headers, section.replay_limit);
            let came = (&parts, &*path, destination.named());
            let held = (body, plain, input_estimate);
            let mut onward = Onward::new(route, &caller, came, (&call, &asked), held, snapshot.prices());
            let leg = onward.next(self, None);
            (onward, leg)
        });
        let (lane, mut target) = match &led {
            Some((_, Some(leg))) => (Arc::clone(&leg.lane), Uri::default()),
            Some((onward, None)) => (onward.any_lane(self)?, Uri::default()),
            None => {
                let (upstream, target) = self.resolve(&destination, &path, model)?;
                (self.lane(&upstream).ok_or(Error::Internal("the provider is not built"))?, target)
            }
        };
        trail.account = Account::new(Open {
            books: Arc::clone(&self.books),
            entry: entry(arrival, &caller, group, &lane, &call, &asked),
            started: arrival.started,
            permit: None,
            place: self.books.ledger.place(),
            key: caller.key().cloned(),
            attempt: None,
            metrics: Arc::clone(&lane.metrics),
            prices: Arc::clone(snapshot.prices()),
            parent: self.parts.spans.as_ref().and_then(|_| TraceParent::of(&parts.headers)),
            input_estimate,
            consumes: call.wire.has_output() || matches!(call.wire, Wire::GeminiEmbed | Wire::OpenAiEmbeddings),
            by_reservation: matches!(call.wire, Wire::OpenAiAudio | Wire::OpenAiImages),
            called: None,
            moved: false,
        });
        let mut route = None;
        if let Some((mut onward, leg)) = led {
            let leg = leg.ok_or_else(|| onward.why())?;
            if let Some(open) = trail.account.open() {
                open.called = Some(Arc::clone(&leg.model));
            }
            (target, taken, call) = (leg.target, leg.taken, leg.call);
            route = Some(Box::new(Led { onward, model: leg.model, decoded: leg.decoded }));
        } else if let Some(key) = caller.key() {
            select::permit(key, &lane.upstream.id, &call, model)?;
            let wished = key.record.stream_usage.unwrap_or(lane.upstream.stream_usage);
            if plain && wished == StreamUsage::Request {
                taken.ask_for_usage(&asked);
            }
        }
        let upgrade = upgrade::take(&mut parts);
        headers::strip_request(&mut parts.headers);
        if !self.parts.keeps_trace {
            headers::strip_trace(&mut parts.headers);
        }
        Ok(Box::new(Selected {
            parts,
            lane,
            call,
            target,
            taken,
            asked,
            caller,
            input_estimate,
            waited,
            upgrade,
            route,
        }))
    }

    /// Reserves what the request is thought to need, and room for its entry.
    fn admit(&self, at: Moment, selected: Box<Selected>, trail: &mut Trail) -> Result<Admitted, Error> {
        let Selected { parts, call, asked, input_estimate, .. } = &*selected;
        let asks = Asks { method: &parts.method, call, asked, input: *input_estimate };
        let estimate = match selected.upgrade {
            Some(_) => admit::session(),
            None => asks.estimate(&selected.caller, selected.model()),
        };
        let place = admit::place(&selected.caller, &self.books.ledger)?;
        let (estimate, found) = match trail.account.open() {
            Some(open) => {
                let model = open.called.as_deref().or(open.entry.model_requested.as_deref());
                let asked = (&*open.entry.provider, model);
                admit::price(estimate, asks, &selected.caller, asked, &open.prices)?
            }
            None => (estimate, None),
        };
        let permit = admit::admit(&selected.caller, estimate, at)?;
        if let (Some(open), true) = (trail.account.open(), permit.is_some() && estimate.nano_usd > 0) {
            open.entry.price_version = found.map(|found| Arc::clone(&found.version));
        }
        trail.account.hold(permit, place);
        Ok(Admitted { selected, need: estimate })
    }

    /// The upstream and the target of a request.
    fn resolve(&self, to: &Destination, path: &str, model: Option<&str>) -> Result<(Arc<Upstream>, Uri), Error> {
        let (upstream, path) = match to {
            Destination::Provider(upstream) => (Arc::clone(upstream), Cow::Borrowed(path)),
            Destination::ByModel(_) => {
                let bare = self.registry().bare(path, model).ok_or_else(|| self.nowhere(path))?;
                (bare.upstream, Cow::Owned(bare.path))
            }
            Destination::Nowhere => return Err(self.nowhere(path)),
        };
        let target = match upstream.base_path().is_empty() {
            true => Uri::try_from(&*path),
            false => Uri::try_from(upstream.path(&path)),
        };
        Ok((upstream, target.map_err(|_| Error::Internal("the path is no valid target"))?))
    }

    fn nowhere(&self, path: &str) -> Error {
        let path = path.split('?').next().unwrap_or_default();
        let first = path.trim_start_matches('/').split('/').next().unwrap_or_default();
        let detail = match self.registry().lookup(first) {
            Err(why) if !first.is_empty() && path.matches('/').count() > 1 => why.to_string(),
            _ => format!("no provider at {:?}", path.chars().take(200).collect::<String>()),
        };
        let known: Vec<&str> = self.registry().iter().filter(|one| one.enabled).map(|one| &*one.id).collect();
        Error::NoSuchProvider { detail, known: known.join(", ") }
    }

    /// Sends it and makes the answer the client's.
    async fn forward(
        &self,
        arrival: &Arrival,
        admitted: Admitted,
        trail: &mut Trail,
    ) -> Result<Response<AnswerBody>, Error> {
        let Admitted { selected, need } = admitted;
        let is_stream = selected.call.is_stream(&selected.asked);
        let mut choice = Box::new(Choice::new(
            Arc::clone(&selected.lane.upstream),
            &selected.caller,
            selected.model(),
            (need, arrival.wall_ms),
            arrival.id.random_bits(),
        ));
        // Taken apart here: parts of which some are gone would keep their room while the answer is waited for.
        let Selected {
            parts: Parts { method, mut headers, .. },
            lane,
            call,
            target,
            taken,
            waited,
            upgrade,
            route,
            ..
        } = *selected;
        choice.begins_with(&taken);
        if upgrade.is_some() {
            upgrade::ask(&mut headers);
        }
        let ready = arrival.started.saturating_add(waited);
        let response = if let Some(led) = route {
            let Led { onward, decoded, .. } = *led;
            let head = (method, headers.clone());
            let outbound = Box::new(Outbound::new(head, target, &lane.upstream, taken, decoded));
            let (lane, call, upgrade) = (&lane, &call, upgrade.is_some());
            let start = Start { lane, call, outbound, choice, upgrade, headers };
            Box::pin(route::follow(self, onward, start, (*arrival, ready), &mut trail.account)).await?
        } else {
            let head = (method, headers);
            let outbound = Box::new(Outbound::new(head, target, &lane.upstream, taken, false));
            let way = Way { upstream: &lane.upstream, pool: &lane.pool, call: &call, upgrade: upgrade.is_some() };
            forward(way, outbound, choice, &self.books, &mut trail.account, ready).await?
        };
        let (mut head, received) = response.into_parts();
        let observer = Observer::new(call.wire, is_stream, head.status.as_u16(), &head.headers);
        self.answered(arrival, &mut trail.account, &mut head);
        let stop = hard_stop(arrival, &call, &mut trail.account, &head);
        let account = std::mem::take(&mut trail.account);
        let in_flight = InFlight::new(&self.books.families.in_flight);
        if head.status != StatusCode::SWITCHING_PROTOCOLS {
            return Ok(Response::from_parts(head, AnswerBody::relayed(received, observer, account, in_flight, stop)));
        }
        let (Some(client), Some(upstream)) = (upgrade, upgrade::of(&mut head)) else {
            trail.account = account;
            return Err(Error::Internal("the provider switched protocols unasked"));
        };
        upgrade::join(client, upstream, upgrade::Session::new(observer, account, in_flight), self.drain.watch());
        Ok(Response::from_parts(head, AnswerBody::Own(None)))
    }

    /// Notes the answer's head, and makes it the client's.
    fn answered(&self, arrival: &Arrival, account: &mut Account, head: &mut http::response::Parts) {
        let mut rates = RateHeaders::default();
        let mut source: Option<KeySource> = None;
        if let Some(open) = account.open() {
            let now = self.parts.clock.now();
            open.entry.status = head.status.as_u16();
            open.entry.ttfb_us = now.saturating_sub(arrival.started) / 1_000;
            open.entry.upstream_request_id = upstream_request_id(&head.headers);
            source = open.entry.key_source;
            rates = open.key.as_ref().map(|key| key.remaining(now)).unwrap_or_default();
        }
        match head.status {
            StatusCode::SWITCHING_PROTOCOLS => credentials::strip_choice(&mut head.headers),
            _ => headers::strip_hop_by_hop(&mut head.headers),
        }
        // An upstream's HTTP/1.0 would make the server end unknown lengths by closing, truncations too.
        head.version = Version::HTTP_11;
        headers::add_ours(&mut head.headers, arrival.id, source, &rates);
    }
}

/// What ends the answer's stream, where the key wants it ended when its reservation is used up.
fn hard_stop(
    arrival: &Arrival,
    call: &Call<'_>,
    account: &mut Account,
    head: &http::response::Parts,
) -> Option<Box<HardStop>> {
    let open = account.open()?;
    let reserved = open.permit.as_ref()?.reserved();
    open.key.as_ref().filter(|key| key.hard_stop)?;
    HardStop::new(call.wire, call.speaks, head, reserved, arrival.wall_ms).map(Box::new)
}

/// Reads the request's line.
fn identify(inbound: Box<Inbound>) -> Result<Identified, Error> {
    check_path(&inbound.path)?;
    let call = inbound.destination.dialect().classify(&inbound.parts.method, &inbound.path).into_owned();
    Ok(Identified { inbound, call })
}

/// The entry as far as it is known before the answer.
fn entry(
    arrival: &Arrival,
    caller: &Caller,
    group: Option<Arc<str>>,
    lane: &Lane,
    call: &Call<'_>,
    asked: &Asked,
) -> Entry {
    let [mut user, mut team, mut plan] = [None, None, None];
    for scope in caller.key().into_iter().flat_map(|key| &*key.scopes) {
        match scope.id() {
            ScopeId::Plan(name) => plan = Some(Arc::clone(name)),
            ScopeId::Team(id) => team = Some(Arc::clone(id)),
            ScopeId::User(id) => user = Some(Arc::clone(id)),
            ScopeId::Key(_) | ScopeId::ProviderKey(_) => {}
        }
    }
    Entry {
        request_id: arrival.id,
        time_ms: arrival.wall_ms,
        virtual_key: caller.key().map(|key| key.record.id),
        user,
        team,
        group,
        provider: Arc::clone(&lane.upstream.id),
        provider_key: None,
        key_source: None,
        dialect: Cow::Borrowed(call.speaks.name()),
        endpoint: Cow::Borrowed(call.endpoint.as_str()),
        model_requested: call.model(asked).map(|model| Arc::from(&model[..model.floor_char_boundary(MODEL_MAX)])),
        model_reported: None,
        stream: call.is_stream(asked),
        tokens: Usage::default(),
        tokens_source: TokensSource::None,
        cost_nano_usd: None,
        status: 0,
        outcome: Outcome::ClientDisconnected,
        error_code: None,
        latency_us: 0,
        ttfb_us: 0,
        overhead_ns: 0,
        attempts: 0,
        upstream_request_id: None,
        price_version: None,
        service_tier: None,
        plan,
        pool: caller.key().and_then(|key| key.record.pool.as_deref()).map(Arc::from),
    }
}

/// Bytes kept of a model's name; a deployment's ARN is the longest real one.
const MODEL_MAX: usize = 256;

/// Where providers put the id that their support asks for.
const REQUEST_IDS: [&str; 5] =
    ["x-request-id", "request-id", "x-amzn-requestid", "apim-request-id", "mistral-correlation-id"];

fn upstream_request_id(headers: &HeaderMap) -> Option<Arc<str>> {
    let rank = |name: &HeaderName| REQUEST_IDS.iter().position(|id| *id == name.as_str());
    let found = headers.iter().filter_map(|(name, value)| Some((rank(name)?, value)));
    let value = found.min_by_key(|(rank, _)| *rank)?.1.to_str().ok()?;
    (value.len() <= 128).then(|| Arc::from(value))
}
