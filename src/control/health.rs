//! Telemetry: `/livez`, `/readyz`, `/healthz`, `/metrics`; GET only, on an address of its own.
//!
//! Owns what readiness means; leaves the metrics themselves to the modules that count. Probes never depend on a
//! provider: an outage there must not restart the app's pod.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use axum::Router;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use http::{StatusCode, header};

use crate::metrics::Metrics;

/// A check by name: `Err` says what is wrong. Called on every probe, so it must not wait.
pub type Check = (&'static str, Arc<dyn Fn() -> Result<(), String> + Send + Sync>);

/// Whether requests should come here. Cloning shares it.
#[derive(Clone, Default)]
pub struct Readiness(Arc<Flags>);

#[derive(Default)]
struct Flags {
    started: AtomicBool,
    draining: AtomicBool,
    checks: Vec<Check>,
}

impl fmt::Debug for Readiness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Readiness").field(&self.failures()).finish()
    }
}

impl Readiness {
    /// One that is not started yet.
    #[must_use]
    pub fn new(checks: Vec<Check>) -> Self {
        Self(Arc::new(Flags { checks, ..Flags::default() }))
    }

    /// Every listener is bound.
    pub fn set_started(&self) {
        self.0.started.store(true, Ordering::Release);
    }

    /// No more requests, please.
    pub fn set_draining(&self) {
        self.0.draining.store(true, Ordering::Release);
    }

    /// True between start and drain.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        self.0.draining.load(Ordering::Acquire)
    }

    /// The checks that fail, as `name: why`; none means ready.
    #[must_use]
    pub fn failures(&self) -> Vec<String> {
        let mut failures = Vec::new();
        if !self.0.started.load(Ordering::Acquire) {
            failures.push("started: not yet".to_owned());
        }
        if self.is_draining() {
            failures.push("draining: shutting down".to_owned());
        }
        let failed = self.0.checks.iter().filter_map(|(name, check)| Some(format!("{name}: {}", check().err()?)));
        failures.extend(failed);
        failures
    }
}

/// The telemetry service.
pub fn router(metrics: Metrics, readiness: Readiness) -> Router {
    Router::new()
        .route("/livez", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .route("/healthz", get(ready))
        .with_state(readiness)
        .merge(Router::new().route("/metrics", get(expose)).with_state(metrics))
}

async fn ready(State(readiness): State<Readiness>) -> Response {
    let failures = readiness.failures();
    if failures.is_empty() {
        return "ok\n".into_response();
    }
    (StatusCode::SERVICE_UNAVAILABLE, format!("{}\n", failures.join("\n"))).into_response()
}

async fn expose(State(metrics): State<Metrics>) -> Response {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], metrics.expose()).into_response()
}

#[cfg(test)]
mod tests {
    use axum::body::Body;
    use http::{Method, Request};
    use http_body_util::BodyExt;
    use tower::ServiceExt;

    use super::*;

    async fn ask(router: &Router, method: Method, path: &str) -> (u16, String) {
        let request = Request::builder().method(method).uri(path).body(Body::empty()).unwrap();
        let response = router.clone().oneshot(request).await.unwrap();
        let status = response.status().as_u16();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (status, String::from_utf8(body.to_vec()).unwrap())
    }

    #[tokio::test]
    async fn probes() {
        let broken = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&broken);
        let check: Check = (
            "ledger",
            Arc::new(move || if seen.load(Ordering::Relaxed) { Err("disk full".to_owned()) } else { Ok(()) }),
        );
        let readiness = Readiness::new(vec![check]);
        let router = router(Metrics::default(), readiness.clone());
        assert_eq!(ask(&router, Method::GET, "/livez").await.0, 200);
        assert_eq!(ask(&router, Method::GET, "/readyz").await, (503, "started: not yet\n".to_owned()));
        readiness.set_started();
        assert_eq!(ask(&router, Method::GET, "/readyz").await.0, 200);
        broken.store(true, Ordering::Relaxed);
        assert_eq!(ask(&router, Method::GET, "/healthz").await, (503, "ledger: disk full\n".to_owned()));
        broken.store(false, Ordering::Relaxed);
        readiness.set_draining();
        assert_eq!(ask(&router, Method::GET, "/readyz").await, (503, "draining: shutting down\n".to_owned()));
        assert_eq!(ask(&router, Method::GET, "/metrics").await.0, 200);
        assert_eq!(ask(&router, Method::POST, "/livez").await.0, 405);
        assert_eq!(ask(&router, Method::GET, "/else").await.0, 404);
    }
}
