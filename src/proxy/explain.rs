//! What would become of a request that nobody sent.
//!
//! Owns asking each step's own code in the steps' order, and going on behind the first refusal, so that all of it is
//! told. Decides nothing itself.

use std::borrow::Cow;
use std::sync::Arc;

use http::Method;

use crate::clock::Clock;
use crate::explain::{Explanation, Question};
use crate::id::KeySource;
use crate::limit::{Consumption, Moment, Permit};
use crate::provider::{Asked, Call, Endpoint, Registry, Upstream, default_dialect};
use crate::proxy::admit;
use crate::proxy::authenticate::Caller;
use crate::proxy::error::Error;
use crate::proxy::select::{self, Candidate};
use crate::storage::{ProviderKeyState, Store};
use crate::virtual_key::VirtualKey;

/// Requests of each dialect, those first that its clients send most. What consumes tokens is here; of the rest the
/// endpoint says enough.
const SAMPLES: [&str; 18] = [
    "/v1/chat/completions",
    "/v1/messages",
    "/v1beta/models/m:generateContent",
    "/model/m/converse",
    "/v2/chat",
    "/api/chat",
    "/v1/responses",
    "/v1/completions",
    "/v1/embeddings",
    "/v1beta/models/m:embedContent",
    "/v2/embed",
    "/api/embed",
    "/api/generate",
    "/v1/rerank",
    "/v2/rerank",
    "/v1/images/generations",
    "/v1/audio/transcriptions",
    "/v1/audio/speech",
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
        let call = call(&upstream, question);
        let model = call.model(&asked);
        speaks = call.speaks;
        why.note(select::permit(&question.key, &upstream.id, &call, model));
        let candidates = why.note(select::select(&snapshot, &upstream, &caller, model)).unwrap_or_default();
        explanation.provider_keys = candidates.into_iter().filter_map(paying).collect();
        let need = admit::estimate(call.wire, question.input_tokens, &asked, &caller, model);
        let price = admit::price(need, call.wire, &caller, (&upstream.id, model), snapshot.prices());
        explanation.need = why.note(price).unwrap_or(need);
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
            let fits =
                |path: &&&str| question.endpoint.is_none_or(|endpoint| bare_endpoint(registry, path) == Some(endpoint));
            let path = SAMPLES.iter().find(fits).unwrap_or(&SAMPLES[0]);
            let bare = registry.bare(path, question.model.as_deref());
            bare.map(|bare| bare.upstream).ok_or_else(|| format!("no provider at {path:?}"))
        }
    };
    found.map_err(|detail| {
        let known: Vec<&str> = registry.iter().filter(|one| one.enabled).map(|one| &*one.id).collect();
        Error::NoSuchProvider { detail, known: known.join(", ") }
    })
}

fn bare_endpoint(registry: &Registry, path: &str) -> Option<Endpoint> {
    Some(registry.bare_dialect(path)?.classify(&Method::POST, path).endpoint)
}

/// The request as this provider reads it.
fn call(upstream: &Upstream, question: &Question) -> Call<'static> {
    let dialect = upstream.dialect;
    let read = |path: &&'static str| dialect.classify(&Method::POST, path);
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

fn paying(candidate: Candidate) -> Option<(Arc<ProviderKeyState>, KeySource)> {
    match candidate {
        Candidate::Key { state, source, .. } => Some((state, source)),
        Candidate::Keyless | Candidate::Own => None,
    }
}
