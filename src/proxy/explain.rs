//! What would become of a request that nobody sent.
//!
//! Owns asking each step's own code in the steps' order, and going on behind the first refusal, so that all of it is
//! told. Decides nothing itself.

use std::borrow::Cow;
use std::sync::Arc;

use http::Method;

use crate::clock::Clock;
use crate::explain::{Explanation, Question, RouteTaken, TargetTaken};
use crate::limit::{Consumption, Kind, Moment, Permit};
use crate::provider::{Asked, Call, Endpoint, Registry, Upstream, default_dialect};
use crate::proxy::admit::{self, Asks};
use crate::proxy::authenticate::Caller;
use crate::proxy::error::Error;
use crate::proxy::route;
use crate::proxy::select::{self, Choice};
use crate::route::{Route, Target};
use crate::storage::Store;
use crate::virtual_key::VirtualKey;

/// Requests of each dialect, those first that its clients send most. What consumes something is here; of the rest the
/// endpoint says enough.
const SAMPLES: [(Method, &str); 19] = [
    (Method::POST, "/v1/chat/completions"),
    (Method::POST, "/v1/messages"),
    (Method::POST, "/v1beta/models/m:generateContent"),
    (Method::POST, "/model/m/converse"),
    (Method::POST, "/v2/chat"),
    (Method::POST, "/api/chat"),
    (Method::POST, "/v1/responses"),
    (Method::POST, "/v1/completions"),
    (Method::POST, "/v1/embeddings"),
    (Method::POST, "/v1beta/models/m:embedContent"),
    (Method::POST, "/v2/embed"),
    (Method::POST, "/api/embed"),
    (Method::POST, "/api/generate"),
    (Method::POST, "/v1/rerank"),
    (Method::POST, "/v2/rerank"),
    (Method::POST, "/v1/images/generations"),
    (Method::POST, "/v1/audio/transcriptions"),
    (Method::POST, "/v1/audio/speech"),
    (Method::GET, "/v1/realtime"),
];

/// Says what would become of the request now, and why. Charges nothing and tells nobody.
#[must_use]
pub fn explain(store: &Store, registry: &Registry, clock: &Clock, question: &Question) -> Explanation {
    let at = Moment::of(clock);
    let snapshot = store.snapshot();
    let record = &question.key.record;
    // Where it would come from is not known: that is not judged here.
    let anywhere = VirtualKey { sources: Vec::new(), ..record.clone() };
    let rejection = anywhere.check(record.digest, at.wall_ms, None).err();
    let mut why = Why(rejection.map(Error::KeyNotAccepted));
    let caller = Caller::Known(Arc::clone(&question.key), record.digest);
    let mut explanation = Explanation {
        rejection,
        route: None,
        upstream: None,
        endpoint: question.endpoint,
        model: question.model.clone(),
        provider_keys: Vec::new(),
        need: Consumption::default(),
        priced: false,
        limits: Vec::new(),
        refusal: None,
    };
    let mut speaks = default_dialect();
    if let Some(upstream) = why.note(upstream(registry, question)) {
        let asked = asked(question);
        let mut first = First { call: call(&upstream, question), upstream, model: None };
        speaks = first.call.speaks;
        let named = question.provider.is_some().then(|| Arc::clone(&first.upstream));
        let said = first.call.model(&asked);
        let route = route::find(registry, &question.key, named.as_ref(), &first.call, said);
        let route = route.map(|(route, of_plan)| (Arc::clone(route), of_plan));
        match route {
            Some((route, of_plan)) => {
                let way = Along { store, registry, caller: &caller, asked: &asked, named, question, at };
                let (targets, chosen) = way.targets(&route, &first);
                explanation.route = Some(RouteTaken { pattern: route.pattern.to_string(), of_plan, targets });
                if let Some(chosen) = why.note(chosen) {
                    first = chosen;
                }
            }
            None => {
                why.note(select::permit(&question.key, &first.upstream.id, &first.call, said));
            }
        }
        let First { upstream, call, model } = first;
        let model = model.as_deref().or_else(|| call.model(&asked));
        let asks = Asks { method: &Method::POST, call: &call, asked: &asked, input: question.input_tokens };
        let need = asks.planned(&caller, model);
        let choice = Choice::new(Arc::clone(&upstream), &caller, model, (need, at.wall_ms), 0);
        let keys = why.note(choice.preview(store, at.now)).unwrap_or_default();
        explanation.provider_keys = keys.into_iter().map(|key| (Arc::clone(&key), key.record.owner.source())).collect();
        why.note(admit::place(&caller, &store.ledger()).map(drop));
        let price = admit::price(need, asks, &caller, (&upstream.id, model), snapshot.prices());
        explanation.need = why.note(price).map_or(need, |(need, _)| need);
        explanation.priced = model.is_some_and(|model| snapshot.prices().resolve(&upstream.id, model).is_some());
        explanation.endpoint = Some(call.endpoint);
        explanation.model = model.map(str::to_owned);
        explanation.upstream = Some(upstream);
    }
    let need = explanation.need;
    explanation.limits = question.key.scopes.iter().flat_map(|scope| scope.report(at, &need)).collect();
    if let Some(refused) = Permit::refusal(&question.key.scopes, at, need) {
        why.note(Err::<(), _>(Box::new(refused).into()));
    }
    explanation.refusal = why.0.map(|error| {
        let refusal = error.refusal();
        (speaks.refusal_status(refusal.kind), refusal)
    });
    explanation
}

/// Whom the request would be sent to first, and what it asks there.
struct First {
    upstream: Arc<Upstream>,
    call: Call<'static>,
    /// The model that a route calls.
    model: Option<String>,
}

/// What a route's targets are looked at with.
struct Along<'a> {
    store: &'a Store,
    registry: &'a Registry,
    caller: &'a Caller,
    asked: &'a Asked,
    named: Option<Arc<Upstream>>,
    question: &'a Question,
    at: Moment,
}

impl Along<'_> {
    /// Every target, and the first that would be sent to: of those that may be called the first with a usable key, else
    /// the first.
    fn targets(&self, route: &Route, asks: &First) -> (Vec<TargetTaken>, Result<First, Error>) {
        let (mut targets, mut chosen, mut why) = (Vec::new(), None, None);
        let mut ready = false;
        for (place, order) in route.places() {
            let target = &route.targets[place];
            let (passed, first) = match self.target(target, asks) {
                Ok((first, None, need)) => (self.no_room(need).filter(|_| ready), Some(first)),
                Ok((first, Some(no_key), _)) => (Some(no_key.to_string()), Some(first)),
                Err(error) => {
                    let passed = error.to_string();
                    why.get_or_insert_with(|| route::passed(route, target, error));
                    (Some(passed), None)
                }
            };
            if let Some(first) = first.filter(|_| chosen.is_none() || !ready && passed.is_none()) {
                (chosen, ready) = (Some(first), passed.is_none());
            }
            targets.push(TargetTaken { target: target.clone(), order, share: route.share(place), passed });
        }
        (targets, chosen.ok_or_else(|| why.unwrap_or(Error::Internal("the route leads nowhere"))))
    }

    /// Why a stand-in would be passed over that needs so much: it is not counted as a request of its own.
    fn no_room(&self, need: Consumption) -> Option<String> {
        let refused = Permit::refusal(&self.question.key.scopes, self.at, need)?;
        (!matches!(refused.limit, Kind::InFlight | Kind::Rpm)).then(|| refused.to_string())
    }

    /// The request at a target; with it, why no key of its provider would be tried, and what it needs.
    fn target(&self, target: &Target, asks: &First) -> Result<(First, Option<Error>, Consumption), Error> {
        let upstream = route::upstream(self.registry, target, self.named.as_ref());
        let upstream = upstream.map_err(|why| Error::NoTarget(why.to_string()))?;
        let asked = asks.call.model(self.asked).unwrap_or_default();
        let model = target.model.as_deref().map_or(asked, |model| upstream.dialect.plain_model(model)).to_owned();
        let mut call = asks.call.clone();
        call.model = call.model.map(|_| Cow::Owned(model.clone()));
        let said = (self.question.input_tokens, self.asked);
        let snapshot = self.store.snapshot();
        let (need, _) =
            route::allowed(self.caller, &upstream, (&Method::POST, &call, &model), said, snapshot.prices())?;
        let choice = Choice::new(Arc::clone(&upstream), self.caller, Some(&model), (need, self.at.wall_ms), 0);
        let no_key = choice.preview(self.store, self.at.now).err();
        Ok((First { upstream, call, model: Some(model) }, no_key, need))
    }
}

/// The first reason of several, which is the one a client is told.
struct Why(Option<Error>);

impl Why {
    fn note<T>(&mut self, result: Result<T, Error>) -> Option<T> {
        result.map_err(|error| self.0.get_or_insert(error)).ok()
    }
}

/// Whom the request leads to: the provider it names, else the one its model leads a bare path to.
fn upstream(registry: &Registry, question: &Question) -> Result<Arc<Upstream>, Error> {
    let found = match &question.provider {
        Some(name) => registry.lookup(name).cloned().map_err(|why| why.to_string()),
        None => {
            let reads = |(method, path): &&(Method, &str)| {
                registry.bare_dialect(path).map(|dialect| dialect.classify(method, path).endpoint)
            };
            let asks = |sample: &&(Method, &str)| question.endpoint.is_none_or(|wanted| reads(sample) == Some(wanted));
            let (_, path) = SAMPLES.iter().find(asks).unwrap_or(&SAMPLES[0]);
            let bare = registry.bare(path, question.model.as_deref());
            bare.map(|bare| bare.upstream).ok_or_else(|| format!("no provider at {path:?}"))
        }
    };
    found.map_err(|detail| {
        let known: Vec<&str> = registry.iter().filter(|one| one.enabled).map(|one| &*one.id).collect();
        Error::NoSuchProvider { detail, known: known.join(", ") }
    })
}

/// The request as this provider reads it.
fn call(upstream: &Upstream, question: &Question) -> Call<'static> {
    let dialect = upstream.dialect;
    let read = |(method, path): &(Method, &'static str)| dialect.classify(method, path);
    let fits = |call: &Call<'_>| match question.endpoint {
        Some(endpoint) => call.endpoint == endpoint,
        None => call.wire.has_output() && call.speaks.name() == dialect.name(),
    };
    let endpoint = question.endpoint.unwrap_or(Endpoint::Other);
    let mut call = SAMPLES.iter().map(read).find(fits).unwrap_or_else(|| Call::new(dialect, endpoint));
    if call.model.is_some() || !call.body_model {
        // It stands in the path, or where else this endpoint has it.
        call.model = question.model.clone().map(Cow::Owned);
    }
    call
}

fn asked(question: &Question) -> Asked {
    let mut asked = Asked::default();
    asked.model.clone_from(&question.model);
    asked.max_output = question.max_tokens;
    asked
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::id::KeyId;
    use crate::metrics::Metrics;
    use crate::storage::{MasterKeyInputs, StoreOptions, StoreSection};
    use crate::virtual_key::Digest;

    /// A store with one key that may do everything.
    async fn store(dir: &std::path::Path) -> (Store, Question) {
        let options = StoreOptions {
            dir: dir.to_owned(),
            create: true,
            master: MasterKeyInputs::default(),
            environment_keys: Vec::new(),
            section: StoreSection::default(),
            unusual: Default::default(),
            clock: Clock::manual(1_700_000_000_000),
            metrics: Metrics::default(),
            prices: Default::default(),
        };
        let store = Store::open(options).unwrap();
        let digest: Digest = store.snapshot().digest_key().digest("k");
        let record = serde_json::json!({
            "id": KeyId::from_bytes([1; 8]), "name": "app", "digest": digest, "prefix": "sk-side", "created_ms": 0,
            "limits": {"rpm": 2},
        });
        let key = store.create_virtual_key(serde_json::from_value(record).unwrap()).await.unwrap();
        let question =
            Question { key, model: None, provider: None, endpoint: None, input_tokens: 100, max_tokens: Some(20) };
        (store, question)
    }

    #[tokio::test]
    async fn whom_it_leads_to_and_what_it_takes() {
        let directory = tempfile::tempdir().unwrap();
        let (store, question) = store(directory.path()).await;
        let (registry, clock) = (Registry::build(&BTreeMap::new(), None).unwrap(), Clock::manual(1_700_000_000_000));
        for (provider, model, endpoint, to, asks, tokens) in [
            (None, Some("gpt-4o-mini"), None, "openai", Endpoint::Chat, 120),
            (None, Some("claude-3-5-haiku-20241022"), None, "anthropic", Endpoint::Messages, 120),
            (None, Some("gemini-2.0-flash"), None, "gemini", Endpoint::Generate, 120),
            (None, None, None, "openai", Endpoint::Chat, 120),
            (None, Some("text-embedding-3-small"), Some(Endpoint::Embeddings), "openai", Endpoint::Embeddings, 100),
            (None, None, Some(Endpoint::Messages), "anthropic", Endpoint::Messages, 120),
            (Some("aws"), Some("amazon.nova-lite-v1:0"), None, "bedrock", Endpoint::Chat, 120),
            (Some("cohere"), Some("command-r"), None, "cohere", Endpoint::Chat, 120),
            (Some("ollama"), Some("llama3"), Some(Endpoint::Generate), "ollama", Endpoint::Generate, 120),
            (Some("openai"), Some("gpt-realtime"), Some(Endpoint::Realtime), "openai", Endpoint::Realtime, 1),
            (Some("openai"), None, Some(Endpoint::Files), "openai", Endpoint::Files, 0),
            (Some("anthropic"), None, Some(Endpoint::CountTokens), "anthropic", Endpoint::CountTokens, 0),
        ] {
            let question = Question {
                model: model.map(str::to_owned),
                provider: provider.map(str::to_owned),
                endpoint,
                ..question.clone()
            };
            let got = explain(&store, &registry, &clock, &question);
            let upstream = got.upstream.map(|upstream| upstream.id.to_string());
            let name = format!("{provider:?} {model:?} {endpoint:?}");
            assert_eq!((upstream.as_deref(), got.endpoint, got.need.total), (Some(to), Some(asks), tokens), "{name}");
            assert_eq!(got.model.as_deref(), model, "{name}");
            // There is no provider key, and ollama wants none.
            let code = got.refusal.as_ref().map(|(_, refusal)| refusal.kind.code());
            assert_eq!(code, (to != "ollama").then_some("no_provider_key"), "{name}");
        }
        for provider in ["nobody", "databricks"] {
            let question = Question { provider: Some(provider.to_owned()), ..question.clone() };
            let got = explain(&store, &registry, &clock, &question);
            assert_eq!(got.refusal.map(|(_, refusal)| refusal.kind.code()), Some("not_found"), "{provider}");
        }
        store.close();
    }

    #[tokio::test]
    async fn asking_takes_nothing_and_goes_on_behind_the_first_refusal() {
        let directory = tempfile::tempdir().unwrap();
        let (store, question) = store(directory.path()).await;
        let (registry, clock) = (Registry::build(&BTreeMap::new(), None).unwrap(), Clock::manual(1_700_000_000_000));
        let question = Question { provider: Some("ollama".to_owned()), model: Some("m".to_owned()), ..question };
        for _ in 0..5 {
            let got = explain(&store, &registry, &clock, &question);
            assert!(got.refusal.is_none());
            assert_eq!((got.limits.len(), got.limits[0].used, got.limits[0].value), (1, 0, 2));
        }
        let record = VirtualKey {
            status: crate::virtual_key::Status::Disabled,
            models: vec!["other".to_owned()],
            ..question.key.record.clone()
        };
        let key = store.update_virtual_key(record, 1).await.unwrap();
        let at = Moment::of(&clock);
        let full = [(); 2].map(|()| Permit::reserve(Arc::clone(&key.scopes), at, Consumption::default()).unwrap());
        let got = explain(&store, &registry, &clock, &Question { key, ..question });
        let (status, refusal) = got.refusal.unwrap();
        assert_eq!((status.as_u16(), refusal.kind.code()), (403, "permission_denied"), "the first is what is told");
        assert!(got.rejection.is_some() && got.upstream.is_some());
        assert!(got.limits[0].refusal.is_some(), "and the rest is told too");
        drop(full);
        store.close();
    }

    #[tokio::test]
    async fn what_cannot_be_recorded_is_refused_where_that_matters() {
        let directory = tempfile::tempdir().unwrap();
        let (store, question) = store(directory.path()).await;
        let (registry, clock) = (Registry::build(&BTreeMap::new(), None).unwrap(), Clock::manual(1_700_000_000_000));
        let question = Question { provider: Some("ollama".to_owned()), model: Some("m".to_owned()), ..question };
        let mut record = question.key.record.clone();
        record.policy.quotas.push("1000/day".parse().unwrap());
        let key = store.update_virtual_key(record, 1).await.unwrap();
        let question = Question { key, ..question };
        let code = || explain(&store, &registry, &clock, &question).refusal.map(|(_, refusal)| refusal.kind.code());
        assert_eq!(code(), None);
        store.close();
        assert_eq!(code(), Some("overloaded"));
    }
}
