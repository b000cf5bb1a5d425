//! Following a route: its targets one after the other, each with a request of its own, while none has answered.
//!
//! Owns what is checked of each target before it is called, and the move from one to the next; leaves when a route
//! applies and what a request looks like elsewhere to `provider`, order and shares to [`crate::route`], trying a
//! target's keys to `forward`.
//!
//! What is really called is what is checked: the provider, the endpoint and the model's name there, for each target anew.
//! One that is not allowed, has no price where there must be one, or costs more than is left, is passed over.

use std::sync::Arc;

use http::request::Parts;
use http::{HeaderMap, Method, Response, Uri};

use crate::clock::Nanos;
use crate::limit::{Consumption, Moment};
use crate::net::upstream::Received;
use crate::pricing::PriceTable;
use crate::provider::{Ask, Asked, Call, Named, NoProvider, Registry, Upstream};
use crate::proxy::admit::{self, Asks};
use crate::proxy::authenticate::Caller;
use crate::proxy::error::Error;
use crate::proxy::forward::{Kept, Outbound, Way, tries};
use crate::proxy::request::{Change, Original, Taken};
use crate::proxy::select::{self, Choice, Tried};
use crate::proxy::settle::{Account, Books};
use crate::proxy::{Arrival, Lane, Proxy};
use crate::route::{Route, Target};
use crate::storage::KeyState;
use crate::virtual_key::StreamUsage;

/// The route that leads a call of this key, and true when it is its plan's: that goes before the configuration's.
pub(super) fn find<'a>(
    registry: &'a Registry,
    key: &'a KeyState,
    named: Named<'_>,
    call: &Call<'_>,
    model: Option<&str>,
) -> Option<(&'a Arc<Route>, bool)> {
    let of_plan = key.plan.as_ref().and_then(|plan| registry.route(&plan.routes, named, call, model));
    let of_plan = of_plan.map(|route| (route, true));
    of_plan.or_else(|| registry.route(registry.routes(), named, call, model).map(|route| (route, false)))
}

/// Whom a target means: where the request names the same provider, the very host it asked for.
pub(super) fn upstream(registry: &Registry, target: &Target, named: Named<'_>) -> Result<Arc<Upstream>, NoProvider> {
    let upstream = registry.lookup(&target.provider)?;
    Ok(Arc::clone(named.filter(|named| named.id == upstream.id).unwrap_or(upstream)))
}

/// Checks what is really called at a target, and says what it is thought to need.
pub(super) fn allowed(
    caller: &Caller,
    upstream: &Upstream,
    (method, call, model): (&Method, &Call<'_>, &str),
    (input, asked): (u64, &Asked),
    prices: &PriceTable,
) -> Result<(Consumption, Option<Arc<str>>), Error> {
    if let Some(key) = caller.key() {
        select::permit(key, &upstream.id, call, Some(model))?;
    }
    let asks = Asks { method, call, asked, input };
    let (need, found) =
        admit::price(asks.planned(caller, Some(model)), asks, caller, (&upstream.id, Some(model)), prices)?;
    Ok((need, found.filter(|_| need.nano_usd > 0).map(|found| Arc::clone(&found.version))))
}

/// A request that a route leads, and the targets it has still before it.
#[derive(Debug)]
pub(super) struct Onward {
    route: Arc<Route>,
    left: std::vec::IntoIter<usize>,
    caller: Caller,
    method: Method,
    path: String,
    named: Option<Arc<Upstream>>,
    call: Call<'static>,
    asked: Asked,
    /// True when usage can be asked for in the body.
    plain: bool,
    body: Original,
    input_estimate: u64,
    prices: Arc<PriceTable>,
    /// Why the first of those passed over was.
    passed: Option<Error>,
    /// Whose keys were tried.
    tried: Vec<(Arc<str>, Tried)>,
}

/// A target that may be called, and the request as it is sent there.
#[derive(Debug)]
pub(super) struct Leg {
    pub(super) lane: Arc<Lane>,
    pub(super) call: Call<'static>,
    pub(super) target: Uri,
    pub(super) taken: Taken,
    /// True when the body that came was compressed, and this one is not.
    pub(super) decoded: bool,
    /// The model that is called.
    pub(super) model: Arc<str>,
    need: Consumption,
    price_version: Option<Arc<str>>,
}

impl Onward {
    /// The request as it came, before the first target.
    pub(super) fn new(
        route: &Arc<Route>,
        caller: &Caller,
        (parts, path, named): (&Parts, &str, Named<'_>),
        (call, asked): (&Call<'static>, &Asked),
        (body, plain, input_estimate): (Original, bool, u64),
        prices: &Arc<PriceTable>,
    ) -> Self {
        Self {
            route: Arc::clone(route),
            left: route.turn().into_iter(),
            caller: caller.clone(),
            method: parts.method.clone(),
            path: path.to_owned(),
            named: named.cloned(),
            call: call.clone(),
            asked: asked.clone(),
            plain,
            body,
            input_estimate,
            prices: Arc::clone(prices),
            passed: None,
            tried: Vec::new(),
        }
    }

    /// The next target that may be called. With `account`, its permit is made large enough for it.
    pub(super) fn next(&mut self, proxy: &Proxy, mut account: Option<(&mut Account, Moment)>) -> Option<Leg> {
        while let Some(place) = self.left.next() {
            let route = Arc::clone(&self.route);
            let target = &route.targets[place];
            match self.leg(proxy, target, &mut account) {
                Ok(leg) => return Some(leg),
                Err(error) => self.note(target, error),
            }
        }
        None
    }

    fn note(&mut self, target: &Target, error: Error) {
        self.passed.get_or_insert_with(|| passed(&self.route, target, error));
    }

    fn leg(
        &mut self,
        proxy: &Proxy,
        target: &Target,
        account: &mut Option<(&mut Account, Moment)>,
    ) -> Result<Leg, Error> {
        let upstream =
            upstream(proxy.registry(), target, self.named.as_ref()).map_err(|why| Error::Misrouted(why.to_string()))?;
        let Self { method, path, call, asked, named, .. } = &*self;
        let ask = Ask { method, path, call, asked, named: named.as_ref() };
        let moved = ask.moved(&upstream, target.model.as_deref()).map_err(Error::Misrouted)?;
        let said = (self.input_estimate, &self.asked);
        let (need, price_version) =
            allowed(&self.caller, &upstream, (&self.method, &moved.call, &moved.model), said, &self.prices)?;
        let lane = proxy.lane(&upstream).ok_or(Error::Internal("the provider is not built"))?;
        let uri = match upstream.base_path().is_empty() {
            true => Uri::try_from(moved.path),
            false => Uri::try_from(upstream.path(&moved.path)),
        };
        let target = uri.map_err(|_| Error::Internal("the path is no valid target"))?;
        if let Some((account, at)) = account {
            account.reserve_more(need, *at)?;
        }
        let wished = self.caller.key().and_then(|key| key.record.stream_usage).unwrap_or(upstream.stream_usage);
        let usage = self.plain && wished == StreamUsage::Request;
        let change = Change { model: moved.in_body.as_deref(), usage };
        let changed = self.body.changed(&self.asked, change);
        let (taken, decoded) =
            changed.ok_or_else(|| Error::Misrouted("the model's name in its body cannot be changed".to_owned()))?;
        Ok(Leg { lane, call: moved.call, target, taken, decoded, model: moved.model.into(), need, price_version })
    }

    /// A lane for the entry of a request that no target may be called for.
    pub(super) fn any_lane(&self, proxy: &Proxy) -> Result<Arc<Lane>, Error> {
        let known = self.route.targets.iter().filter_map(|target| proxy.registry().by_id(&target.provider));
        let named = self.named.iter().chain(known).chain(proxy.registry().iter());
        named.filter_map(|upstream| proxy.lane(upstream)).next().ok_or(Error::Internal("no provider is built"))
    }

    /// Why no target may be called.
    pub(super) fn why(&mut self) -> Error {
        self.passed.take().unwrap_or(Error::Internal("the route leads nowhere"))
    }

    /// The keys of this target's provider; those that were tried for this request are left out.
    fn choice(&self, leg: &Leg, arrival: Arrival) -> Choice {
        let mut choice = Choice::new(
            Arc::clone(&leg.lane.upstream),
            &self.caller,
            Some(&leg.model),
            (leg.need, arrival.wall_ms),
            arrival.id.random_bits(),
        );
        let of_this = self.tried.iter().filter(|(provider, _)| *provider == leg.lane.upstream.id);
        choice.leave_out(of_this.map(|(_, key)| *key));
        choice.begins_with(&leg.taken);
        choice
    }
}

/// Why a target is passed over, as a client is told.
pub(super) fn passed(route: &Route, target: &Target, error: Error) -> Error {
    Error::Route { pattern: route.pattern.to_string(), provider: target.provider.clone(), source: Box::new(error) }
}

/// The request at its first target, about to be sent.
pub(super) struct Start<'a> {
    pub(super) lane: &'a Arc<Lane>,
    pub(super) call: &'a Call<'static>,
    pub(super) outbound: Box<Outbound>,
    pub(super) choice: Box<Choice>,
    pub(super) upgrade: bool,
    /// The headers as they came, but for what every provider is spared.
    pub(super) headers: HeaderMap,
}

/// Tries one target after the other, each with all of its keys.
pub(super) async fn follow(
    proxy: &Proxy,
    mut onward: Onward,
    start: Start<'_>,
    (arrival, ready): (Arrival, Nanos),
    account: &mut Account,
) -> Result<Response<Received>, Error> {
    let Start { lane, call, mut outbound, mut choice, upgrade, headers } = start;
    let (mut lane, mut call) = (Arc::clone(lane), call.clone());
    let books: &Books = &proxy.books;
    let once = !outbound.body.is_held();
    let (mut kept, mut nothing): (Option<Box<Kept>>, Option<Error>) = (None, None);
    loop {
        let way = Way { upstream: &lane.upstream, pool: &lane.pool, call: &call, upgrade };
        if let Some(answer) = tries(way, &mut outbound, &mut choice, books, account, ready, &mut kept).await {
            return answer;
        }
        if kept.is_none() {
            nothing.get_or_insert_with(|| choice.nothing(&books.store, books.clock.now()));
        }
        // What is not held is gone once it was sent.
        if once && outbound.body.is_held() {
            break;
        }
        onward.body.unsent(outbound.body.take());
        let provider = &lane.upstream.id;
        onward.tried.extend(choice.tried().iter().map(|key| (Arc::clone(provider), *key)));
        let at = Moment { now: books.clock.now(), wall_ms: arrival.wall_ms };
        let Some(leg) = onward.next(proxy, Some((account, at))) else { break };
        lane.metrics.moved_on.inc();
        account.goes_to(&leg.lane, &leg.model, leg.price_version.clone());
        *choice = onward.choice(&leg, arrival);
        let Leg { lane: next, call: asks, target, taken, decoded, .. } = leg;
        let head = (onward.method.clone(), headers.clone());
        *outbound = Outbound::new(head, target, &next.upstream, taken, decoded);
        (lane, call) = (next, asks);
    }
    match (kept, nothing) {
        (Some(kept), _) => account.answered_by(*kept),
        (None, nothing) => Err(nothing.unwrap_or_else(|| onward.why())),
    }
}
