//! The admin API as a client sees it, over a store of its own.

use std::collections::BTreeMap;
use std::sync::Mutex;

use axum::body::Body;
use http::{Method, Request};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tower::ServiceExt;

use super::*;
use crate::entry::{Entry, Outcome};
use crate::event::{Kind, Severity};
use crate::id::{KeySource, RequestId};
use crate::limit::{Consumption, Moment};
use crate::metrics::Metrics;
use crate::provider::{Refusal, RefusalKind};
use crate::secret::Secret;
use crate::storage::{MasterKeyInputs, StoreOptions, StoreSection};
use crate::unit::{TokensSource, Usage};

const NOW: u64 = 1_700_000_000_000;
const REAL: &str = "sk-proj-very-real-0123456789abcd";

pub(super) struct Api {
    router: Router,
    store: Store,
    clock: Clock,
    /// What a test says; with `None` it never ends.
    verdict: Arc<Mutex<Option<Verdict>>>,
    _directory: tempfile::TempDir,
}

pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) etag: Option<String>,
    pub(super) body: Value,
    pub(super) text: String,
}

impl Api {
    pub(super) fn new(keys: KeysSection) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let clock = Clock::manual(NOW);
        let store = Store::open(StoreOptions {
            dir: directory.path().join("data"),
            create: true,
            master: MasterKeyInputs::default(),
            prices: Arc::default(),
            environment_keys: vec![crate::storage::EnvironmentKey {
                provider: "mistral".to_owned(),
                variable: "MISTRAL_API_KEY".to_owned(),
                secret: Secret::new("mistral-environment-0123456789".to_owned()),
            }],
            section: StoreSection::default(),
            unusual: Default::default(),
            clock: clock.clone(),
            metrics: Metrics::default(),
        })
        .unwrap();
        let verdict = Arc::new(Mutex::new(Some(Verdict::Accepted)));
        let said = Arc::clone(&verdict);
        let tester: KeyTester = Arc::new(move |_| {
            let verdict = *said.lock().unwrap();
            Box::pin(async move {
                let verdict = match verdict {
                    Some(verdict) => verdict,
                    None => std::future::pending().await,
                };
                TestResult { verdict, status: Some(200), detail: "said so".to_owned(), latency_ms: 1 }
            })
        });
        let router = router(ControlState {
            console: Console::default(),
            roots: None,
            store: store.clone(),
            registry: Live::new(Registry::build(&BTreeMap::new(), None).unwrap()),
            clock: clock.clone(),
            keys: Live::new(keys),
            facts: Facts { started_ms: NOW, ..Facts::default() },
            readiness: Readiness::default(),
            tester,
            alerts: Alerts::default(),
            explainer: Arc::new(explained),
            leases: None,
            activity: None,
        })
        .own();
        Self { router, store, clock, verdict, _directory: directory }
    }

    pub(super) async fn ask(&self, method: Method, path: &str, body: Option<Value>, etag: Option<&str>) -> Answer {
        let mut request = Request::builder().method(method).uri(path);
        if let Some(etag) = etag {
            request = request.header("if-match", etag);
        }
        if body.is_some() {
            request = request.header("content-type", "application/json");
        }
        let bytes = body.map(|body| serde_json::to_vec(&body).unwrap()).unwrap_or_default();
        let response = self.router.clone().oneshot(request.body(Body::from(bytes)).unwrap()).await.unwrap();
        let status = response.status().as_u16();
        let etag = response.headers().get("etag").map(|value| value.to_str().unwrap().to_owned());
        let bytes = response.into_body().collect().await.unwrap().to_bytes();
        let text = String::from_utf8(bytes.to_vec()).unwrap();
        assert!(!text.contains(REAL), "{path} shows a provider key");
        Answer { status, etag, body: serde_json::from_str(&text).unwrap_or_default(), text }
    }

    pub(super) async fn get(&self, path: &str) -> Answer {
        self.ask(Method::GET, path, None, None).await
    }

    pub(super) async fn post(&self, path: &str, body: Value) -> Answer {
        self.ask(Method::POST, path, Some(body), None).await
    }

    pub(super) async fn patch(&self, path: &str, body: Value, etag: Option<&str>) -> Answer {
        self.ask(Method::PATCH, path, Some(body), etag).await
    }
}

/// A request path that finds every budget of the key used up.
fn explained(question: &Question) -> Explanation {
    let need = Consumption { nano_usd: 250_000_000, ..Consumption::tokens(question.input_tokens, 5) };
    let at = Moment { now: 0, wall_ms: NOW };
    let limits: Vec<_> = question.key.scopes.iter().flat_map(|scope| scope.report(at, &need)).collect();
    let refusal = limits.iter().find_map(|report| report.refusal.as_ref()).map(|refused| {
        (StatusCode::PAYMENT_REQUIRED, Refusal::new(RefusalKind::InsufficientQuota, refused.to_string()))
    });
    Explanation {
        rejection: None,
        route: None,
        upstream: None,
        endpoint: question.endpoint,
        model: question.model.clone(),
        provider_keys: Vec::new(),
        need,
        priced: true,
        limits,
        refusal,
    }
}

fn id_of(value: &Value) -> String {
    value["id"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn a_key_is_made_shown_changed_and_removed() {
    let api = Api::new(KeysSection { default_tpm: Some(1000), ..KeysSection::default() });
    let made = api
        .post(
            "/api/keys",
            json!({"name": "app", "user": "alice", "models": ["gpt-4o*", "claude-*"], "limits": {"rpm": 60}}),
        )
        .await;
    assert_eq!((made.status, made.etag.as_deref()), (201, Some("\"1\"")));
    let id = id_of(&made.body["key_data"]);
    let key = made.body["key"].as_str().unwrap().to_owned();
    assert!(key.starts_with(&format!("sk-side-{id}-")));
    let want = json!({
        "id": id, "name": "app", "status": "active", "prefix": "sk-side", "user": "alice", "team": null,
        "created": "2023-11-14T22:13:20.000Z", "expires": "2024-11-13T22:13:20.000Z",
        "models": ["gpt-4o*", "claude-*"], "providers": [], "endpoints": [], "sources": [],
        "plan": null, "limits": {"rpm": 60, "tpm": 1000, "max_in_flight": null},
        "in_force": [
            {"scope": "key", "scope_id": id, "limit": "rpm", "value": 60, "used": 0, "reserved": 0, "remaining": 60,
             "resets": null, "shadow": false},
            {"scope": "key", "scope_id": id, "limit": "tpm", "value": 1000, "used": 0, "reserved": 0,
             "remaining": 1000, "resets": null, "shadow": false},
        ],
        "max_budget": null, "budget_remaining": null, "pool": null, "lease": false, "fallback": "system",
        "stream_usage": null, "ephemeral": false, "canary": false, "metadata": {}, "rotation_grace_until": null,
        "last_used": null, "total_requests": 0, "total_tokens": 0, "spent": "0", "version": 1,
    });
    assert_eq!(made.body["key_data"], want);

    let path = format!("/api/keys/{id}");
    let shown = api.get(&path).await;
    assert_eq!(shown.body, want);
    assert!(!shown.text.contains(&key));

    let changed =
        api.patch(&path, json!({"limits": {"tpm": null}, "team": "t1", "expires_days": null}), Some("\"1\"")).await;
    assert_eq!((changed.status, changed.etag.as_deref()), (200, Some("\"2\"")));
    assert_eq!(changed.body["limits"], json!({"rpm": 60, "tpm": null, "max_in_flight": null}));
    assert_eq!((&changed.body["team"], &changed.body["expires"]), (&json!("t1"), &Value::Null));

    let stale = api.patch(&path, json!({"team": null}), Some("\"1\"")).await;
    assert_eq!((stale.status, &stale.body["code"]), (412, &json!("conflict")));

    assert_eq!(api.ask(Method::DELETE, &path, None, None).await.status, 204);
    assert_eq!(api.get(&path).await.status, 404);
}

#[tokio::test]
async fn what_was_given_can_be_taken_back() {
    let api = Api::new(KeysSection::default());
    let narrow = json!({
        "name": "a", "user": "alice", "team": "t1", "models": ["gpt-*"], "providers": ["openai"],
        "endpoints": ["chat"], "sources": ["10.0.0.0/8"], "metadata": {"a": "1", "b": "2"},
    });
    let made = api.post("/api/keys", narrow.clone()).await;
    let path = format!("/api/keys/{}", id_of(&made.body["key_data"]));
    for (field, said, want) in [
        ("models", json!(null), json!([])),
        ("models", json!(["*"]), json!([])),
        ("models", json!([]), json!([])),
        ("models", json!(["*", "gpt-*"]), json!(["*", "gpt-*"])),
        ("providers", json!(null), json!([])),
        ("providers", json!(["*"]), json!([])),
        ("endpoints", json!(null), json!([])),
        ("endpoints", json!(["*"]), json!([])),
        ("sources", json!(null), json!([])),
        ("sources", json!(["*"]), json!([])),
        ("sources", json!(["::1/128"]), json!(["::1/128"])),
        ("user", json!(null), json!(null)),
        ("team", json!(null), json!(null)),
        ("expires", json!(null), json!(null)),
        ("metadata", json!({"b": "3"}), json!({"a": "1", "b": "3"})),
        ("metadata", json!({"a": null, "c": ""}), json!({"b": "3", "c": ""})),
        ("metadata", json!({"nothing": null}), json!({"b": "3", "c": ""})),
        ("metadata", json!(null), json!({})),
    ] {
        let changed = api.patch(&path, json!({field: said}), None).await;
        assert_eq!((changed.status, &changed.body[field]), (200, &want), "{field} {said}: {}", changed.text);
    }
    for field in ["providers", "endpoints", "sources"] {
        let refused = api.patch(&path, json!({field: ["*", ""]}), None).await;
        assert_eq!((refused.status, refused.body["field"].as_str()), (422, Some(field)), "{}", refused.text);
    }
    let untouched = api.patch(&path, json!({"name": "b"}), None).await;
    assert_eq!(untouched.body["sources"], json!(["::1/128"]));
}

#[tokio::test]
async fn what_a_key_may_not_be() {
    let api = Api::new(KeysSection { max_expires_days: Some(400), ..KeysSection::default() });
    for (body, field) in [
        (json!({}), "name"),
        (json!({"name": ""}), "name"),
        (json!({"name": "a", "user": " x"}), "user"),
        (json!({"name": "a", "prefix": "has space"}), "prefix"),
        (json!({"name": "a", "providers": ["opneai"]}), "providers"),
        (json!({"name": "a", "endpoints": ["chats"]}), "endpoints"),
        (json!({"name": "a", "models": [""]}), "models"),
        (json!({"name": "a", "sources": ["here"]}), "sources"),
        (json!({"name": "a", "limits": {"rpm": 0}}), "limits.rpm"),
        (json!({"name": "a", "expires_days": 401}), "expires_days"),
        (json!({"name": "a", "expires_days": null}), "expires_days"),
        (json!({"name": "a", "expires_days": 0}), "expires_days"),
        (json!({"name": "a", "expires": "2020-01-01T00:00:00Z"}), "expires"),
        (json!({"name": "a", "expires": "soon"}), "expires"),
    ] {
        let refused = api.post("/api/keys", body.clone()).await;
        assert_eq!((refused.status, refused.body["field"].as_str()), (422, Some(field)), "{body} {}", refused.text);
    }
    let unknown = api.post("/api/keys", json!({"name": "a", "budget": 5})).await;
    assert_eq!((unknown.status, unknown.body["field"].as_str()), (400, Some("budget")));
    assert_eq!(api.get("/api/keys").await.body["keys"], json!([]));
    let aliased = api.post("/api/keys", json!({"name": "a", "providers": ["google", "azure", "openai"]})).await;
    assert_eq!(aliased.body["key_data"]["providers"], json!(["gemini", "azure-openai", "openai"]));
}

#[tokio::test]
async fn status_and_rotation_decide_what_validates() {
    let api = Api::new(KeysSection::default());
    let made = api.post("/api/keys", json!({"name": "app", "sources": ["10.0.0.0/8"]})).await;
    let (id, first) = (id_of(&made.body["key_data"]), made.body["key"].clone());
    let validate = async |key: &Value| api.post("/api/keys/validate", json!({"key": key})).await.body["reason"].clone();
    assert_eq!(validate(&first).await, Value::Null);

    let rotated = api.post(&format!("/api/keys/{id}/rotate"), json!({"grace": "1h"})).await;
    let second = rotated.body["key"].clone();
    assert_ne!(first, second);
    assert_eq!(rotated.body["key_data"]["rotation_grace_until"], "2023-11-14T23:13:20.000Z");
    assert_eq!((validate(&first).await, validate(&second).await), (Value::Null, Value::Null));
    api.clock.advance_ms(3_600_000);
    assert_eq!((validate(&first).await, validate(&second).await), (json!("wrong_secret"), Value::Null));

    for (verb, reason, status) in [
        ("disable", json!("disabled"), 200),
        ("enable", Value::Null, 200),
        ("revoke", json!("revoked"), 200),
        ("enable", json!("revoked"), 409),
    ] {
        assert_eq!(api.post(&format!("/api/keys/{id}/{verb}"), json!({})).await.status, status, "{verb}");
        assert_eq!(validate(&second).await, reason, "{verb}");
    }
    assert_eq!(api.post(&format!("/api/keys/{id}/rotate"), json!({})).await.status, 409);
    assert_eq!(validate(&json!("nonsense")).await, json!("malformed"));
    let unknown = second.as_str().unwrap().replace(&id, "0123456789abcdef");
    assert_eq!(validate(&json!(unknown)).await, json!("unknown"));
}

#[tokio::test]
async fn lists_come_in_pages() {
    let api = Api::new(KeysSection::default());
    for n in 0..5 {
        api.clock.advance_ms(1);
        api.post("/api/keys", json!({"name": format!("k{n}"), "user": if n % 2 == 0 { "even" } else { "odd" }})).await;
    }
    let (mut names, mut path) = (Vec::new(), "/api/keys?limit=2".to_owned());
    loop {
        let page = api.get(&path).await.body;
        names.extend(page["keys"].as_array().unwrap().iter().map(|key| key["name"].as_str().unwrap().to_owned()));
        let Some(next) = page["next_cursor"].as_str() else { break };
        path = format!("/api/keys?limit=2&cursor={next}");
    }
    assert_eq!(names, ["k0", "k1", "k2", "k3", "k4"]);
    assert_eq!(api.get("/api/keys?user=odd").await.body["keys"].as_array().unwrap().len(), 2);
    assert_eq!(api.get("/api/keys?cursor=0123456789abcdef").await.status, 422);
    let asked = api.get("/api/keys?colour=red").await;
    assert_eq!((asked.status, &asked.body["code"]), (400, &json!("bad_request")));
    assert_eq!(api.ask(Method::PUT, "/api/keys", None, None).await.body["code"], "method_not_allowed");
}

#[tokio::test]
async fn provider_keys_go_in_and_stay_in() {
    let api = Api::new(KeysSection::default());
    let made = api
        .post(
            "/api/provider-keys",
            json!({"provider": "openai", "name": "main", "owner": "user:alice", "secret": REAL}),
        )
        .await;
    assert_eq!(made.status, 201, "{}", made.text);
    assert_eq!(made.body["masked"], "sk-…abcd");
    assert_eq!((&made.body["origin"], &made.body["resolved"]), (&json!("sealed"), &json!(true)));
    assert_eq!(made.body["bound_to"], "https://api.openai.com:443");
    let path = format!("/api/provider-keys/{}", id_of(&made.body));

    for (body, status, field) in [
        (json!({"provider": "opneai", "name": "x", "secret": REAL}), 422, Some("provider")),
        (json!({"provider": "openai", "name": "main", "secret": REAL}), 409, Some("name")),
        (json!({"provider": "openai", "name": "x"}), 422, Some("secret")),
        (json!({"provider": "openai", "name": "x", "reference": REAL}), 422, Some("reference")),
        (json!({"provider": "openai", "name": "x", "secret": [REAL]}), 400, Some("secret")),
        (json!({"provider": "openai", "name": "x", "owner": REAL, "secret": "y"}), 400, Some("owner")),
        (json!({"provider": "openai", "name": "x", "secret": format!("{REAL}\nmore")}), 422, Some("secret")),
    ] {
        let refused = api.post("/api/provider-keys", body).await;
        assert_eq!((refused.status, refused.body["field"].as_str()), (status, field), "{}", refused.text);
    }

    for (verdict, status, error) in [
        (Verdict::Rejected, "error", json!("said so")),
        (Verdict::Unreachable, "error", json!("said so")),
        (Verdict::Accepted, "active", Value::Null),
    ] {
        *api.verdict.lock().unwrap() = Some(verdict);
        let tested = api.post(&format!("{path}/test"), json!({})).await.body;
        assert_eq!((&tested["key"]["status"], &tested["key"]["last_error"]), (&json!(status), &error), "{verdict:?}");
    }

    let changed = api.patch(&path, json!({"priority": 3, "owner": "system"}), None).await.body;
    assert_eq!(
        (&changed["priority"], &changed["owner"], &changed["masked"]),
        (&json!(3), &json!("system"), &json!("sk-…abcd"))
    );
    let rotated = api.post(&format!("{path}/rotate"), json!({"secret": "sk-proj-another-0123456789wxyz"})).await.body;
    assert_eq!(rotated["masked"], "sk-…wxyz");
    for (verdict, status, masked) in [
        (Verdict::Rejected, 422, "sk-…wxyz"),
        (Verdict::Unreadable, 422, "sk-…wxyz"),
        (Verdict::Unreachable, 200, "sk-…4567"),
        (Verdict::Untestable, 200, "sk-…4567"),
        (Verdict::Accepted, 200, "sk-…4567"),
    ] {
        *api.verdict.lock().unwrap() = Some(verdict);
        let body = json!({"secret": "sk-proj-tested-first-01234567", "test": true});
        let rotated = api.post(&format!("{path}/rotate"), body).await;
        assert_eq!(rotated.status, status, "{verdict:?}: {}", rotated.text);
        let tested = if status == 200 { json!(verdict) } else { Value::Null };
        assert_eq!(rotated.body["test"]["verdict"], tested, "{verdict:?}");
        let kept = api.get(&path).await.body;
        assert_eq!((&kept["masked"], &kept["status"]), (&json!(masked), &json!("active")), "{verdict:?}");
        let left = api.get("/api/provider-keys?provider=openai").await.body;
        assert_eq!(left["provider_keys"].as_array().unwrap().len(), 1, "{verdict:?}: the candidate is gone");
    }
    // Whoever hangs up in the middle of a test leaves no candidate behind.
    *api.verdict.lock().unwrap() = None;
    let (hangs, body) = (format!("{path}/rotate"), json!({"secret": "sk-proj-given-up-0123456789", "test": true}));
    let count = || api.store.snapshot().provider_keys("openai").len();
    tokio::select! {
        _ = api.post(&hangs, body) => unreachable!("the test does not end"),
        () = async { while count() < 2 { tokio::task::yield_now().await } } => {}
    }
    while count() > 1 {
        tokio::task::yield_now().await;
    }
    *api.verdict.lock().unwrap() = Some(Verdict::Accepted);
    let stale = json!({"secret": "sk-proj-tested-first-01234567", "test": true});
    assert_eq!(api.ask(Method::POST, &format!("{path}/rotate"), Some(stale), Some("\"1\"")).await.status, 412);
    let referred = api.post(&format!("{path}/rotate"), json!({"reference": "env:THE_KEY"})).await.body;
    assert_eq!((&referred["origin"], &referred["masked"]), (&json!("env:THE_KEY"), &json!("")));
    assert_eq!(api.ask(Method::DELETE, &path, None, None).await.status, 204);
}

#[tokio::test]
async fn keys_of_the_environment_are_shown_and_not_changed() {
    let api = Api::new(KeysSection::default());
    let listed = api.get("/api/provider-keys?provider=mistral").await.body;
    let key = &listed["provider_keys"][0];
    assert_eq!((&key["name"], &key["environment"]), (&json!("MISTRAL_API_KEY"), &json!(true)));
    let path = format!("/api/provider-keys/{}", id_of(key));
    assert_eq!(api.patch(&path, json!({"priority": 1}), None).await.status, 409);
    assert_eq!(api.ask(Method::DELETE, &path, None, None).await.status, 409);
    assert_eq!(api.post(&format!("{path}/test"), json!({})).await.status, 200);
}

fn entry(virtual_key: KeyId, source: KeySource, model: &str) -> Entry {
    Entry {
        request_id: RequestId::new(NOW),
        time_ms: NOW,
        virtual_key: Some(virtual_key),
        user: Some("alice".into()),
        team: None,
        group: Some("job 1".into()),
        provider: "openai".into(),
        provider_key: None,
        key_source: Some(source),
        dialect: "openai".into(),
        endpoint: "chat".into(),
        model_requested: Some(model.into()),
        model_reported: None,
        stream: false,
        tokens: Usage { input: Some(10), output: Some(5), total: Some(15), ..Usage::default() },
        tokens_source: TokensSource::Reported,
        cost_nano_usd: None,
        status: 200,
        outcome: Outcome::Ok,
        error_code: None,
        latency_us: 1500,
        ttfb_us: 1000,
        overhead_ns: 2000,
        attempts: 1,
        upstream_request_id: None,
        price_version: None,
        service_tier: None,
        plan: None,
        pool: None,
    }
}

#[tokio::test]
async fn usage_ledger_and_groups() {
    let api = Api::new(KeysSection::default());
    let made = api.post("/api/keys", json!({"name": "app"})).await.body;
    let id = id_of(&made["key_data"]);
    let key: KeyId = id.parse().unwrap();
    for (source, model) in [(KeySource::User, "a"), (KeySource::System, "b"), (KeySource::System, "b")] {
        api.store.ledger().record(entry(key, source, model)).unwrap();
    }

    let report = api.get("/api/usage?days=30&by=model").await.body;
    assert_eq!(
        (&report["from"], &report["to"]),
        (&json!("2023-10-16T00:00:00.000Z"), &json!("2023-11-15T00:00:00.000Z"))
    );
    assert_eq!(report["totals"]["requests"], 3);
    let tokens =
        json!({"input": 20, "cached_input": null, "cache_write": null, "output": 10, "reasoning": null, "total": 30});
    let group = &report["groups"][0];
    assert_eq!(
        (&group["model"], &group["requests"], &group["tokens"], &group["cost_usd"]),
        (&json!("b"), &json!(2), &tokens, &Value::Null)
    );
    assert_eq!(report["key_sources"]["system"], json!({"requests": 2, "tokens": 30, "cost_usd": null}));
    for (query, requests) in [
        ("from=2023-11-14", 3),
        ("from=2023-11-14T22:13:20Z&to=2023-11-15", 3),
        ("to=2023-11-14", 0),
        ("from=2023-11-15&by=day", 0),
        ("source=user", 1),
        ("model=b&by=source", 2),
        ("plan=free", 0),
    ] {
        let report = api.get(&format!("/api/usage?{query}")).await;
        assert_eq!((report.status, &report.body["totals"]["requests"]), (200, &json!(requests)), "{query}");
    }
    for (query, field) in
        [("from=yesterday", "from"), ("from=2023-11-15&to=2023-11-14", "to"), ("days=3&to=2023-11-14", "days")]
    {
        let refused = api.get(&format!("/api/usage?{query}")).await;
        assert_eq!((refused.status, &refused.body["field"]), (422, &json!(field)), "{query}");
    }
    let refused = api.get("/api/usage?by=colour").await.body;
    assert_eq!(refused["field"], "by");
    assert_eq!(refused["detail"], format!("usage is summed by {}, not \"colour\"", crate::storage::Dimension::words()));
    assert_eq!(api.get(&format!("/api/keys/{id}/usage?days=1")).await.body["groups"][0]["day"], "2023-11-14");

    let first = api.get(&format!("/api/ledger?key={id}&limit=2")).await.body;
    assert_eq!(first["entries"].as_array().unwrap().len(), 2);
    assert_eq!(
        (&first["entries"][0]["model_requested"], &first["entries"][0]["latency_ms"]),
        (&json!("b"), &json!(1.5))
    );
    let rest = api.get(&format!("/api/ledger?limit=2&cursor={}", first["next_cursor"].as_str().unwrap())).await.body;
    assert_eq!((rest["entries"].as_array().unwrap().len(), &rest["entries"][0]["model_requested"]), (1, &json!("a")));

    let group = api.get("/api/usage/groups/job%201").await.body;
    assert_eq!(group["apiKeyUsageSummary"], json!({"user": 1, "team": 0, "system": 2}));
    let sources: Vec<&Value> =
        group["apiKeyUsageLog"].as_array().unwrap().iter().map(|call| &call["key_source"]).collect();
    assert_eq!(sources, ["user", "system", "system"]);
    assert_eq!(api.get(&format!("/api/keys/{id}")).await.body["total_requests"], 3);
}

#[tokio::test]
async fn status_providers_and_backup() {
    let api = Api::new(KeysSection::default());
    let status = api.get("/api/status").await.body;
    assert_eq!((&status["ready"], &status["listen"]), (&json!(false), &Value::Null));
    assert_eq!(
        status["provider_keys"],
        json!({"total": 1, "active": 1, "cooling": 0, "disabled": 0, "error": 0, "exhausted": 0})
    );
    let mistral = api.get("/api/providers/mistralai").await.body;
    assert_eq!((&mistral["id"], &mistral["keys"], &mistral["active_keys"]), (&json!("mistral"), &json!(1), &json!(1)));
    assert_eq!(mistral["base_url"], "https://api.mistral.ai");
    assert_eq!(api.get("/api/providers/azure").await.status, 404);
    assert_eq!(api.get("/api/nothing").await.body["code"], "not_found");

    let file = api._directory.path().join("backup");
    assert_eq!(api.post("/api/backup", json!({"path": file})).await.status, 200);
    assert!(file.exists());
    assert_eq!(api.post("/api/backup", json!({"path": file})).await.status, 409);
    assert_eq!(api.post("/api/backup", json!({"path": "relative"})).await.body["field"], "path");
}

#[tokio::test]
async fn a_plan_is_made_shown_changed_and_removed() {
    let api = Api::new(KeysSection::default());
    let made = api
        .post(
            "/api/plans",
            json!({
                "name": "free / trial", "models": ["gpt-4o*"], "limits": {"rpm": 5}, "description": "for a week",
                "routes": {"smart": {"targets": [{"provider": "openai", "model": "gpt-4o"}]}},
                "shared": {"budgets": [{"usd": "20", "per": "month"}]},
            }),
        )
        .await;
    assert_eq!((made.status, made.etag.as_deref()), (201, Some("\"1\"")), "{}", made.text);
    let path = "/api/plans/free%20%2F%20trial";
    let want = json!({
        "name": "free / trial", "models": ["gpt-4o*"], "limits": {"rpm": 5, "tpm": null, "max_in_flight": null},
        "routes": {"smart": {"targets": [{"provider": "openai", "model": "gpt-4o"}]}},
        "shared": {
            "limits": {"rpm": null, "tpm": null, "max_in_flight": null},
            "budgets": [{"usd": "20", "per": "month", "alert_at": [80, 100], "shadow": false}],
        },
        "description": "for a week", "keys": 0,
        "in_force": [
            {"scope": "plan", "scope_id": "free / trial", "limit": "budget", "per": "month", "value": "20", "used": "0",
             "reserved": "0", "remaining": "20", "resets": "2023-12-01T00:00:00.000Z", "shadow": false},
        ],
        "last_used": null, "total_requests": 0, "total_tokens": 0, "spent": "0", "version": 1,
    });
    assert_eq!(made.body, want);
    assert_eq!(api.get(path).await.body, want);
    assert_eq!(api.post("/api/plans", json!({"name": "free / trial"})).await.status, 409);

    // A key on it is held to it, at once and after each change.
    api.post("/api/keys", json!({"name": "free of it"})).await;
    let key = api.post("/api/keys", json!({"name": "app", "plan": "free / trial"})).await.body["key_data"].clone();
    let rpm = |key: &Value| key["in_force"].as_array().unwrap().iter().find(|limit| limit["limit"] == "rpm").cloned();
    assert_eq!(rpm(&key).unwrap()["value"], 5);
    let on_it = api.get("/api/keys?plan=free%20%2F%20trial").await.body["keys"].clone();
    assert_eq!(on_it, json!([key]));
    let key = format!("/api/keys/{}", id_of(&key));
    let changed = api
        .patch(path, json!({"limits": {"rpm": 7}, "models": null, "routes": null, "shared": null}), Some("\"1\""))
        .await;
    assert_eq!((changed.status, changed.etag.as_deref()), (200, Some("\"2\"")), "{}", changed.text);
    assert_eq!((&changed.body["keys"], &changed.body["models"]), (&json!(1), &json!([])));
    assert_eq!(changed.body["routes"], json!({}));
    assert_eq!((&changed.body["in_force"], &changed.body["description"]), (&json!([]), &json!("for a week")));
    assert_eq!(rpm(&api.get(&key).await.body).unwrap()["value"], 7);
    assert_eq!(api.patch(path, json!({"limits": {"rpm": 8}}), Some("\"1\"")).await.status, 412);

    let refused = api.ask(Method::DELETE, path, None, None).await;
    assert_eq!((refused.status, &refused.body["code"]), (409, &json!("in_use")), "{}", refused.text);
    api.patch(&key, json!({"plan": null}), None).await;
    assert_eq!(rpm(&api.get(&key).await.body), None);
    assert_eq!(api.ask(Method::DELETE, path, None, Some("\"1\"")).await.status, 412);
    assert_eq!(api.ask(Method::DELETE, path, None, Some("\"2\"")).await.status, 204);
    for method in [Method::GET, Method::DELETE] {
        assert_eq!(api.ask(method, path, None, None).await.status, 404);
    }
}

#[tokio::test]
async fn what_a_plan_cannot_be() {
    let api = Api::new(KeysSection::default());
    for (body, status, field) in [
        (json!({}), 422, "name"),
        (json!({"name": " free"}), 422, "name"),
        (json!({"name": "free", "limits": {"rpm": 0}}), 422, "limits.rpm"),
        (json!({"name": "free", "shared": {"limits": {"rpm": 0}}}), 422, "shared.limits.rpm"),
        (json!({"name": "free", "shared": {"quotas": [{"tokens": 1, "time_zone": "Mars"}]}}), 422, "shared.quotas"),
        (json!({"name": "free", "models": [""]}), 422, "models"),
        (json!({"name": "free", "routes": {"a": {"targets": [{"provider": "opnai"}]}}}), 422, "routes"),
        (json!({"name": "free", "providers": []}), 400, "providers"),
    ] {
        let refused = api.post("/api/plans", body.clone()).await;
        assert_eq!((refused.status, &refused.body["field"]), (status, &json!(field)), "{body}: {}", refused.text);
    }
    let unknown = api.post("/api/keys", json!({"name": "app", "plan": "free"})).await;
    assert_eq!((unknown.status, &unknown.body["field"]), (422, &json!("plan")), "{}", unknown.text);
    api.post("/api/plans", json!({"name": "free"})).await;
    assert_eq!(api.patch("/api/plans/free", json!({"name": "paid"}), None).await.body["field"], "name");
    assert_eq!(api.patch("/api/plans/free", json!({"name": "free"}), None).await.status, 200);
}

#[tokio::test]
async fn users_and_teams_are_there_once_they_are_named() {
    let api = Api::new(KeysSection::default());
    assert_eq!(api.get("/api/users").await.body, json!({"users": [], "next_cursor": null}));
    assert_eq!(api.get("/api/users/alice").await.status, 404);

    // By a key.
    let key =
        api.post("/api/keys", json!({"name": "app", "user": "alice", "team": "a/b ü"})).await.body["key_data"].clone();
    let alice = api.get("/api/users/alice").await;
    let want = json!({
        "id": "alice", "models": [], "limits": {"rpm": null, "tpm": null, "max_in_flight": null}, "description": "",
        "keys": 1, "in_force": [], "last_used": null, "total_requests": 0, "total_tokens": 0, "spent": "0", "version": 0,
    });
    assert_eq!((alice.etag.as_deref(), &alice.body), (Some("\"0\""), &want));

    // By a policy; one made in between is not written over.
    let set =
        json!({"limits": {"tpm": 1000}, "quotas": [{"tokens": 500}], "models": ["gpt-*"], "description": "our A"});
    let changed = api.patch("/api/users/alice", set.clone(), Some("\"0\"")).await;
    assert_eq!((changed.status, changed.etag.as_deref()), (200, Some("\"1\"")), "{}", changed.text);
    assert_eq!(api.patch("/api/users/alice", set, Some("\"0\"")).await.status, 412);
    let limits: Vec<(&str, &str)> = changed.body["in_force"]
        .as_array()
        .unwrap()
        .iter()
        .map(|limit| (limit["scope_id"].as_str().unwrap(), limit["limit"].as_str().unwrap()))
        .collect();
    assert_eq!(limits, [("alice", "tpm"), ("alice", "quota")]);
    let held = api.get(&format!("/api/keys/{}", id_of(&key))).await.body["in_force"].clone();
    assert_eq!(held.as_array().unwrap().len(), 2, "{held}");

    // Pages, and names that a path cannot hold as they are.
    for id in ["zoe", "bob", "?&#%"] {
        let path = format!("/api/users/{}", encoded(id));
        assert_eq!(api.patch(&path, json!({"description": id}), None).await.body["id"], id);
    }
    let ids = |page: &Value| {
        let items = page["users"].as_array().unwrap().iter();
        items.map(|user| user["id"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let first = api.get("/api/users?limit=3").await.body;
    assert_eq!(
        (ids(&first), &first["next_cursor"]),
        (vec!["?&#%".into(), "alice".into(), "bob".into()], &json!("bob"))
    );
    let rest = api.get("/api/users?limit=3&cursor=bob").await.body;
    assert_eq!((ids(&rest), &rest["next_cursor"]), (vec!["zoe".to_owned()], &Value::Null));
    let after = api.get("/api/users?limit=1&cursor=%3F%26%23%25").await.body;
    assert_eq!(ids(&after), ["alice"]);

    let teams = api.get("/api/teams").await.body;
    assert_eq!((&teams["teams"][0]["id"], teams["teams"].as_array().unwrap().len()), (&json!("a/b ü"), 1));
    let team = format!("/api/teams/{}", encoded("a/b ü"));
    assert_eq!(api.get(&team).await.body["keys"], 1);
    assert_eq!(api.patch(&team, json!({"budgets": [{"usd": "1", "per": "eon"}]}), None).await.status, 400);
    assert_eq!(api.ask(Method::DELETE, &team, None, None).await.status, 404, "it has no policy");

    // The policy goes; who it was for stays while a key names them.
    assert_eq!(api.ask(Method::DELETE, "/api/users/alice", None, None).await.status, 204);
    assert_eq!(api.get("/api/users/alice").await.body, want);
    assert_eq!(api.ask(Method::DELETE, "/api/users/zoe", None, None).await.status, 204);
    assert_eq!(api.get("/api/users/zoe").await.status, 404);
}

#[tokio::test]
async fn alerts_are_the_newest_events() {
    let api = Api::new(KeysSection::default());
    assert_eq!(api.get("/api/alerts").await.body, json!({"alerts": [], "next_cursor": null}));
    for n in 1..=3 {
        api.store.events().emit(Kind::BudgetThreshold, Severity::Warning, "team t1", format!("{n}"));
    }
    let alerts = api.get("/api/alerts?limit=2").await.body;
    let want = json!({
        "id": alerts["alerts"][0]["id"], "time": "2023-11-14T22:13:20.000Z", "kind": "budget.threshold", "severity": "warning", "subject": "team t1",
        "message": "3",
    });
    assert_eq!((&alerts["alerts"][0], &alerts["alerts"][1]["message"]), (&want, &json!("2")));
    assert_eq!(alerts["alerts"].as_array().unwrap().len(), 2);
    let next = alerts["next_cursor"].as_str().unwrap();
    let page = api.get(&format!("/api/alerts?cursor={next}")).await.body;
    assert_eq!((&page["alerts"][0]["message"], &page["next_cursor"]), (&json!("1"), &Value::Null));
    for (query, want) in [
        ("kind=budget.threshold", 3),
        ("kind=budget", 3),
        ("kind=price.*", 0),
        ("min_severity=warning", 3),
        ("min_severity=error", 0),
        ("since=2999-01-01T00:00:00Z", 0),
    ] {
        let found = api.get(&format!("/api/alerts?{query}")).await.body;
        assert_eq!(found["alerts"].as_array().unwrap().len(), want, "{query}");
    }
    assert_eq!(api.get("/api/alerts?severity=x").await.status, 400);
    let none = api.post("/api/alerts/test", json!({})).await;
    assert_eq!((none.status, &none.body["code"]), (409, &json!("no_webhooks")));
}

#[tokio::test]
async fn what_would_become_of_a_request() {
    let api = Api::new(KeysSection::default());
    let user = json!({"budgets": [{"usd": "0.2", "per": "day"}], "models": ["gpt-*"]});
    api.patch("/api/users/alice", user, None).await;
    let key = json!({"name": "app", "user": "alice", "endpoints": ["chat"], "limits": {"rpm": 5}, "shadow": ["rpm"]});
    let id = id_of(&api.post("/api/keys", key).await.body["key_data"]);
    let got = api.get(&format!("/api/explain?key={id}&model=o3&endpoint=embeddings&input_tokens=7")).await.body;
    let message = "the request may take $0.25, more than the whole budget of user alice of $0.2 per day: shorten it, ask \
                   for fewer output tokens, or raise the budget";
    let limit =
        |scope: &str, scope_id: &str, limit: &str| json!({"scope": scope, "scope_id": scope_id, "limit": limit});
    let with = |base: Value, more: Value| {
        let mut all = base.as_object().unwrap().clone();
        all.extend(more.as_object().unwrap().clone());
        Value::Object(all)
    };
    let want = json!({
        "would_be": "refused",
        "refusal": {"status": 402, "code": "insufficient_quota", "message": message},
        "key": {"id": id, "name": "app", "status": "active", "user": "alice", "team": null, "plan": null, "rejection": null},
        "route": null, "provider": null, "endpoint": "embeddings", "model": "o3",
        "lists": [
            {"of": "endpoint", "scope": "key", "scope_id": id, "allows": false, "list": ["chat"]},
            {"of": "model", "scope": "user", "scope_id": "alice", "allows": false, "list": ["gpt-*"]},
        ],
        "provider_keys": [],
        "estimate": {"input": 7, "output": 5, "cost_usd": "0.25"},
        "limits": [
            with(limit("key", &id, "rpm"), json!({
                "value": 5, "used": 0, "reserved": 0, "remaining": 5, "resets": null, "shadow": true, "needed": 1,
                "would_refuse": false, "frees_at": null, "reason": null,
            })),
            with(limit("user", "alice", "budget"), json!({
                "per": "day", "value": "0.2", "used": "0", "reserved": "0", "remaining": "0.2",
                "resets": "2023-11-15T00:00:00.000Z", "shadow": false, "needed": "0.25", "would_refuse": true,
                "frees_at": null, "reason": message,
            })),
        ],
    });
    assert_eq!(got, want);
    for (query, status, field) in [
        ("", 422, Some("key")),
        ("?key=0123456789abcdef", 404, None),
        (&*format!("?key={id}&endpoint=chatter"), 422, Some("endpoint")),
        (&*format!("?key={id}&input_tokens=-1"), 400, Some("input_tokens")),
    ] {
        let refused = api.get(&format!("/api/explain{query}")).await;
        assert_eq!((refused.status, refused.body["field"].as_str()), (status, field), "{query}: {}", refused.text);
    }
}

#[tokio::test]
async fn prices_are_set_asked_for_and_taken_back() {
    let api = Api::new(KeysSection::default());
    let put = async |path: &str, body: Value, etag: Option<&str>| api.ask(Method::PUT, path, Some(body), etag).await;
    let path = "/api/prices/openai/gpt-4o";
    let listed = api.get(path).await;
    assert_eq!((listed.status, listed.etag.as_deref()), (200, Some("\"0\"")), "{}", listed.text);
    assert_eq!((&listed.body["layer"], &listed.body["price"]["input"]), (&json!("built-in"), &json!("2.5")));

    let made = put(path, json!({"input": "2", "output": "8.50"}), None).await;
    assert_eq!((made.status, made.etag.as_deref()), (201, Some("\"1\"")), "{}", made.text);
    let want = json!({
        "name": "openai/gpt-4o", "layer": "store", "price_version": "store 2023-11-14T22:13:20.000Z",
        "price": {"input": "2", "output": "8.5"},
    });
    assert_eq!(made.body, want);
    assert_eq!(api.get(path).await.body, want);
    assert_eq!(put(path, json!({"input": "3"}), Some("\"7\"")).await.status, 412);
    assert_eq!(put(path, json!({"input": "3"}), Some("\"1\"")).await.status, 200);

    let told = api.get("/api/prices/explain?model=openai/gpt-4o-2024-08-06&input_tokens=1000").await.body;
    assert_eq!((&told["found"]["name"], &told["found"]["spelling"]), (&json!("openai/gpt-4o"), &json!("without_date")));
    assert_eq!((&told["cost_usd"], &told["found"]["price_version"]), (&json!("0.003"), &want["price_version"]));
    assert_eq!(told["tried"][0], json!({"model": "gpt-4o-2024-08-06", "spelling": "exact", "layers": ["built-in"]}));
    let told = api.get("/api/prices/explain?model=gpt-4o").await.body;
    assert_eq!(
        (&told["provider"], &told["found"]["layer"], &told["cost_usd"]),
        (&json!("openai"), &json!("store"), &Value::Null)
    );

    let imported = json!({"prices": {"azure/house": {"same_as": "openai/gpt-4o"}, "nobody/here": {"input": "1"}}});
    let done = api.post("/api/prices", imported).await;
    assert_eq!((done.status, &done.body), (200, &json!({"imported": 2})));
    let own = api.get("/api/prices?layer=store").await.body;
    let names: Vec<&str> = own["prices"].as_array().unwrap().iter().map(|one| one["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["azure-openai/house", "nobody/here", "openai/gpt-4o"]);
    let some = api.get("/api/prices?provider=openai&model=gpt-4o-20*&limit=2").await.body;
    let names: Vec<&str> = some["prices"].as_array().unwrap().iter().map(|one| one["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["openai/gpt-4o-2024-05-13", "openai/gpt-4o-2024-08-06"]);
    assert_eq!(some["next_cursor"], "openai/gpt-4o-2024-08-06");

    assert_eq!(api.ask(Method::DELETE, path, None, None).await.status, 204);
    assert_eq!(api.get(path).await.body, listed.body);
    for (method, path, body, status, want) in [
        (Method::DELETE, path, None, 404, "the price of openai/gpt-4o is from the built-in table, and is not set here"),
        (Method::GET, "/api/prices/openai/none", None, 404, "there is no price of openai/none"),
        (
            Method::GET,
            "/api/prices/opnai/gpt-4o",
            None,
            422,
            "there is no provider \"opnai\"; did you mean \"openai\"?",
        ),
        (Method::GET, "/api/prices/gpt-4o", None, 422, "\"gpt-4o\" names no model"),
        (Method::PUT, path, Some(json!({"input": 0.1})), 400, "a price is exact: write it as text, \"0.1\""),
        (Method::PUT, path, Some(json!({})), 400, "says no rate"),
        (
            Method::PUT,
            path,
            Some(json!({"same_as": "openai/none"})),
            422,
            "openai/gpt-4o: there is no price of openai/none",
        ),
        (
            Method::PUT,
            path,
            Some(json!({"same_as": "openai/gpt-4o"})),
            422,
            "openai/gpt-4o: there is no price of openai/gpt-4o",
        ),
        (Method::GET, "/api/prices/explain?model=made-up", None, 422, "is missing: \"made-up\" alone does not tell it"),
        (Method::POST, "/api/prices", Some(json!({"prices": {"x": {"input": "1"}}})), 400, "\"x\" names no model"),
    ] {
        let answer = api.ask(method, path, body, None).await;
        let detail = answer.body["detail"].as_str().unwrap_or_default();
        assert!(answer.status == status && detail.starts_with(want), "{path}: {} {detail}", answer.status);
    }
}

#[tokio::test]
async fn defaults_of_new_keys_are_for_what_their_plan_does_not_say() {
    let api = Api::new(KeysSection {
        default_rpm: Some(60),
        default_tpm: Some(1000),
        default_budget: Some("5/month".parse().unwrap()),
        ..KeysSection::default()
    });
    let plan = json!({"name": "small", "limits": {"rpm": 2}, "budgets": [{"usd": "1", "per": "day"}]});
    api.post("/api/plans", plan).await;
    api.post("/api/plans", json!({"name": "poor", "budgets": [{"usd": "1", "per": "month"}]})).await;
    for (key, rpm, tpm, budgets) in [
        (json!({"name": "a"}), 60, 1000, &["5"][..]),
        (json!({"name": "b", "plan": "small"}), 2, 1000, &["5", "1"]),
        (json!({"name": "c", "plan": "poor"}), 60, 1000, &["1"]),
        (json!({"name": "d", "plan": "small", "limits": {"rpm": 9, "tpm": 7}}), 9, 7, &["5", "1"]),
    ] {
        let made = api.post("/api/keys", key.clone()).await.body["key_data"]["in_force"].clone();
        let values = |limit: &str| {
            let limits = made.as_array().unwrap().iter().filter(|found| found["limit"] == limit);
            limits.map(|found| found["value"].clone()).collect::<Vec<_>>()
        };
        assert_eq!((values("rpm"), values("tpm")), (vec![json!(rpm)], vec![json!(tpm)]), "{key}");
        assert_eq!(values("budget"), budgets, "{key}");
    }
}

#[tokio::test]
async fn what_is_asked_is_in_the_audit_log() {
    let api = Api::new(KeysSection::default());
    let id = api.post("/api/keys", json!({"name": "app"})).await.body["key_data"]["id"].as_str().unwrap().to_owned();
    api.post(&format!("/api/keys/{id}/disable"), json!({})).await;
    api.post("/api/keys", json!({"name": ""})).await;
    api.post("/api/keys/validate", json!({"key": "sk-side-x"})).await;
    let added = json!({"provider": "openai", "name": "main", "secret": REAL});
    let real = api.post("/api/provider-keys", added).await.body["id"].as_str().unwrap().to_owned();
    api.post(&format!("/api/provider-keys/{real}/test"), json!({})).await;
    api.get("/api/keys").await;
    let found = api.get("/api/audit?order=oldest").await.body;
    let records = found["records"].as_array().unwrap();
    let shown: Vec<String> = records
        .iter()
        .map(|record| format!("{} {} {}", record["action"], record["object"], record["result"]).replace('"', ""))
        .collect();
    assert_eq!(
        shown,
        [
            format!("key.create key {id} ok"),
            format!("key.disable key {id} ok"),
            "key.create key {refused:invalid}".to_owned(),
            format!("provider_key.create provider_key {real} ok"),
            format!("provider_key.test provider_key {real} started"),
            format!("provider_key.test provider_key {real} ok"),
        ]
    );
    assert!(records.iter().all(|record| record["actor"].as_str().unwrap().starts_with("uid:")));
    let changed = &records[1];
    assert_eq!((&changed["before"]["status"], &changed["after"]["status"]), (&json!("active"), &json!("disabled")));
    for (query, want) in [
        ("action=key", 3),
        ("action=key.disable", 1),
        (&*format!("object={id}"), 2),
        ("actor=sidekey", 0),
        ("since=2999-01-01T00:00:00Z", 0),
        ("limit=2", 2),
    ] {
        let found = api.get(&format!("/api/audit?{query}")).await.body;
        assert_eq!(found["records"].as_array().unwrap().len(), want, "{query}");
    }
    let verdict = api.get("/api/audit/verify").await.body;
    assert_eq!((&verdict["whole"], &verdict["records"]), (&json!(true), &json!(6)));
    let head = format!("6:{}", verdict["head"].as_str().unwrap());
    assert_eq!(api.get(&format!("/api/audit/verify?head={head}")).await.body["whole"], true);
    let other = format!("6:{}", "0".repeat(64));
    assert_eq!(api.get(&format!("/api/audit/verify?head={other}")).await.body["bad"]["seq"], 6);
    for (path, field) in [("/api/audit?since=monday", "since"), ("/api/audit/verify?head=7", "head")] {
        let answer = api.get(path).await;
        assert_eq!((answer.status, &answer.body["field"]), (422, &json!(field)), "{path}");
    }
}
