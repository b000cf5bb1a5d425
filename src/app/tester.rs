//! Testing a provider key: one request that costs nothing.
//!
//! Owns the request and the verdict; leaves which path is asked to the provider's row, and fetching what a reference
//! leads to, which comes first, to `storage::reference`.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http::header::{HOST, USER_AGENT};
use http::{HeaderValue, Method, Request, Response, Uri};

use crate::clock::Clock;
use crate::config::Environment;
use crate::control::{KeyTester, TestResult, Verdict};
use crate::id::KeyId;
use crate::live::Live;
use crate::net::body::Outgoing;
use crate::net::dial::Dialer;
use crate::net::upstream::{Pool, Received};
use crate::provider::{Action, Registry, Upstream, wants_text};
use crate::proxy::{error_text, origin};
use crate::secret::Secret;
use crate::storage::{ProviderKeyState, References, Store};

/// How long connecting may take, and how long the answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// Tests keys of `store`. Where `SSL_CERT_FILE` or a proxy of the environment cannot be used, every test says so.
pub fn tester(store: &Store, registry: &Live<Registry>, environment: &Environment) -> KeyTester {
    match super::dialer(environment, &[]) {
        Ok(dialer) => with(store, registry, environment, dialer, Clock::system()),
        Err(error) => {
            let detail = error.to_string();
            Arc::new(move |_| {
                let result = untested(Verdict::Untestable, &detail);
                Box::pin(async move { result })
            })
        }
    }
}

pub(super) fn with(
    store: &Store,
    registry: &Live<Registry>,
    environment: &Environment,
    dialer: Dialer,
    clock: Clock,
) -> KeyTester {
    let references = store.references(environment.secrets());
    let (store, registry) = (store.clone(), registry.clone());
    let turns = Turns::default();
    Arc::new(move |id| {
        let (store, registry, references) = (store.clone(), registry.get(), references.clone());
        let (dialer, clock, turns) = (dialer.clone(), clock.clone(), turns.clone());
        Box::pin(async move {
            let turn = turns.of(id);
            let _mine = turn.lock().await;
            let key = store.snapshot().provider_key(id).cloned();
            test(key, &registry, &references, dialer, clock, id).await
        })
    })
}

/// Whose test is under way: a key is not tested twice at once, whoever asks.
#[derive(Clone, Debug, Default)]
struct Turns(Arc<Mutex<HashMap<KeyId, Arc<tokio::sync::Mutex<()>>>>>);

impl Turns {
    fn of(&self, id: KeyId) -> Arc<tokio::sync::Mutex<()>> {
        let mut turns = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // Those that nobody waits for any more.
        turns.retain(|_, turn| Arc::strong_count(turn) > 1);
        Arc::clone(turns.entry(id).or_default())
    }
}

fn untested(verdict: Verdict, detail: &str) -> TestResult {
    TestResult { verdict, status: None, detail: detail.to_owned(), latency_ms: 0 }
}

async fn test(
    key: Option<Arc<ProviderKeyState>>,
    registry: &Registry,
    references: &References,
    dialer: Dialer,
    clock: Clock,
    id: KeyId,
) -> TestResult {
    let cannot = |detail: &str| untested(Verdict::Untestable, detail);
    let Some(key) = key else { return cannot(&format!("there is no provider key {id}")) };
    let upstream = match registry.lookup(&key.record.provider) {
        Ok(upstream) => upstream,
        Err(why) => return cannot(&why.to_string()),
    };
    if !key.environment && key.record.bound_to != upstream.origin() {
        return cannot("the provider's base_url has changed since this key was entered; enter it again");
    }
    if let Err(error) = references.fetch(&key).await {
        return untested(Verdict::Unreadable, &error.to_string());
    }
    let Some(secret) = key.secret.load_full() else { return cannot("the secret it refers to cannot be read") };
    let Some(path) = &upstream.test else { return cannot("this provider has no request that costs nothing") };
    let request = match request(upstream, path, &secret) {
        Ok(request) => request,
        Err(detail) => return cannot(&detail),
    };
    let started = clock.now();
    let pool = Arc::new(Pool::new(origin(upstream), dialer, PATIENCE, clock.clone()));
    let sent = tokio::time::timeout(PATIENCE, pool.send(Box::new(request))).await;
    let latency_ms = clock.now().saturating_sub(started) / 1_000_000;
    let result = match sent {
        Err(_) => untested(Verdict::Unreachable, &format!("no answer within {} s", PATIENCE.as_secs())),
        Ok(Err(error)) => untested(Verdict::Unreachable, &error.to_string()),
        Ok(Ok(response)) => judge(upstream, response, &clock).await,
    };
    TestResult { latency_ms, ..result }
}

fn request(upstream: &Upstream, path: &str, secret: &Secret) -> Result<Request<Outgoing>, String> {
    let mut request = Request::new(Outgoing::Empty);
    *request.uri_mut() = Uri::try_from(upstream.path(path)).map_err(|error| format!("{path}: {error}"))?;
    let call = upstream.dialect.classify(&Method::GET, path);
    let headers = request.headers_mut();
    headers.insert(HOST, upstream.authority().clone());
    headers.insert(USER_AGENT, HeaderValue::from_static(concat!("sidekey/", env!("CARGO_PKG_VERSION"))));
    upstream.authenticate(&call, headers, secret).map_err(|error| error.to_string())?;
    Ok(request)
}

/// By the same rules as any answer. Nothing of the text is repeated: it can echo the key.
async fn judge(upstream: &Upstream, mut response: Response<Received>, clock: &Clock) -> TestResult {
    let status = response.status();
    let text = match wants_text(upstream.dialect, status) {
        true => error_text(&mut response, PATIENCE).await,
        false => Vec::new(),
    };
    let meaning = crate::provider::judge(upstream, status, response.headers(), &text, clock.wall_ms());
    let reason = meaning.reason;
    let (verdict, detail) = match meaning.action {
        Action::Refused | Action::Forbidden => (Verdict::Rejected, format!("the provider refuses the key: {reason}")),
        Action::Relay if status.as_u16() < 400 => (Verdict::Accepted, "the provider takes the key".to_owned()),
        Action::Cool | Action::Elsewhere | Action::Exhausted | Action::ModelExhausted => {
            (Verdict::Accepted, format!("the provider knows the key, and answers {reason} for now"))
        }
        Action::Overloaded | Action::Relay => {
            (Verdict::Unreachable, format!("the provider answers {}, not about the key", status.as_u16()))
        }
    };
    TestResult { verdict, status: Some(status.as_u16()), detail, latency_ms: 0 }
}
