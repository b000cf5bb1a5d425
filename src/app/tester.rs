//! Testing a provider key: one request that costs nothing.
//!
//! Owns the request and the verdict; leaves which path is asked to the provider's row, and fetching what a reference
//! leads to, which comes first, to `storage::reference`.

use std::sync::Arc;
use std::time::Duration;

use http::header::{HOST, USER_AGENT};
use http::{HeaderValue, Method, Request, Response, Uri};

use crate::clock::Clock;
use crate::config::Environment;
use crate::control::{KeyTester, TestResult, Verdict};
use crate::id::KeyId;
use crate::net::body::Outgoing;
use crate::net::dial::Dialer;
use crate::net::upstream::{Pool, Received};
use crate::provider::{Registry, Upstream};
use crate::proxy::{may_be_googles, names_bad_key, origin};
use crate::secret::Secret;
use crate::storage::{ProviderKeyState, References, Store};

/// How long connecting may take, and how long the answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// Tests keys of `store`. Where `SSL_CERT_FILE` or a proxy of the environment cannot be used, every test says so.
pub fn tester(store: &Store, registry: &Arc<Registry>, environment: &Environment) -> KeyTester {
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
    registry: &Arc<Registry>,
    environment: &Environment,
    dialer: Dialer,
    clock: Clock,
) -> KeyTester {
    let references = store.references(environment.secrets());
    let (store, registry) = (store.clone(), Arc::clone(registry));
    Arc::new(move |id| {
        let key = store.snapshot().provider_key(id).cloned();
        let (registry, references) = (Arc::clone(&registry), references.clone());
        let (dialer, clock) = (dialer.clone(), clock.clone());
        Box::pin(async move { test(key, &registry, &references, dialer, clock, id).await })
    })
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
    let sent = tokio::time::timeout(PATIENCE, pool.send(request)).await;
    let latency_ms = clock.now().saturating_sub(started) / 1_000_000;
    let result = match sent {
        Err(_) => untested(Verdict::Unreachable, &format!("no answer within {} s", PATIENCE.as_secs())),
        Ok(Err(error)) => untested(Verdict::Unreachable, &error.to_string()),
        Ok(Ok(response)) => judge(upstream, response).await,
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

/// By the status alone, but for Google, which says 400 of a bad key. Nothing of the text is repeated: it can echo the
/// key.
async fn judge(upstream: &Upstream, mut response: Response<Received>) -> TestResult {
    let status = response.status().as_u16();
    let invalid = may_be_googles(upstream, &response) && names_bad_key(&mut response, PATIENCE).await;
    let (verdict, detail) = match status {
        200..=399 => (Verdict::Accepted, "the provider takes the key".to_owned()),
        401 | 403 => (Verdict::Rejected, format!("the provider refuses the key: {status}")),
        400 if invalid => (Verdict::Rejected, "the provider refuses the key: 400 API_KEY_INVALID".to_owned()),
        402 | 429 => (Verdict::Accepted, format!("the provider knows the key, and answers {status} for now")),
        _ => (Verdict::Unreachable, format!("the provider answers {status}, not about the key")),
    };
    TestResult { verdict, status: Some(status), detail, latency_ms: 0 }
}
