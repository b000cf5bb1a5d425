//! What sidekey's own steps cost on the request path, one at a time: `cargo bench --bench micro`.
//!
//! Owns the small pieces; the whole process, beside others, is measured by `compare`.

use std::hint::black_box;
use std::sync::Arc;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderValue, Method};
use sidekey::clock::Clock;
use sidekey::id::{KeyId, ScopeId};
use sidekey::limit::{Consumption, Moment, Permit, Scope, Watch};
use sidekey::metrics::Metrics;
use sidekey::policy::{Limits, Policy};
use sidekey::pool::{PoolPolicy, Wish, choose};
use sidekey::provider::{self, request};
use sidekey::provider_key::{Left, ModelTag, Origin, OriginTag, ProviderKey, Room, Standing};
use sidekey::secret::Secret;
use sidekey::storage::{MasterKeyInputs, ProviderKeyState, Store, StoreOptions, StoreSection};
use sidekey::tally::{Observer, Wire};
use sidekey::tokens;
use sidekey::virtual_key::{self, DEFAULT_PREFIX, DigestKey};

fn key_check(c: &mut Criterion) {
    let digests = DigestKey::from_bytes([7; 32]);
    let key = virtual_key::generate(DEFAULT_PREFIX, KeyId::from_bytes([9; 8])).expect("randomness");
    let stored = digests.digest(key.expose());
    let mut group = c.benchmark_group("key");
    group.bench_function("parse_id", |b| b.iter(|| virtual_key::parse_id(black_box(key.expose()))));
    group.bench_function("check", |b| {
        b.iter(|| {
            let id = virtual_key::parse_id(black_box(key.expose()));
            (id, digests.digest(key.expose()) == stored)
        });
    });
    group.finish();
}

fn limits(c: &mut Criterion) {
    let clock = Clock::system();
    let scope =
        |name: &str, policy: &Policy| Arc::new(Scope::new(ScopeId::User(name.into()), policy, Watch::default()));
    let set = |rpm, tpm, max_in_flight| -> Arc<[Arc<Scope>]> {
        let limits = Limits { rpm, tpm, max_in_flight, ..Limits::default() };
        Arc::from([scope("a", &Policy { limits, ..Policy::default() })])
    };
    let need = Consumption { nano_usd: 2_000, ..Consumption::tokens(12, 8) };
    let used = Consumption { nano_usd: 200, ..Consumption::tokens(1, 1) };
    let reserve_settle = |scopes: &Arc<[Arc<Scope>]>| {
        let at = Moment::of(&clock);
        Permit::reserve(Arc::clone(scopes), at, black_box(need)).expect("room").settle(at.now, black_box(used));
    };
    let mut group = c.benchmark_group("limit");
    group.bench_function("clock", |b| b.iter(|| clock.now()));
    for (name, scopes) in [
        ("reserve_settle/none", set(None, None, None)),
        ("reserve_settle/rpm", set(Some(4_000_000_000), None, None)),
        ("reserve_settle/all", set(Some(4_000_000_000), Some(4_000_000_000), Some(1_000))),
    ] {
        group.bench_function(name, |b| b.iter(|| reserve_settle(&scopes)));
    }
    // A key, its plan, user and team, and the provider key, each with rates, two budgets and a quota.
    let limits = Limits { rpm: Some(4_000_000_000), tpm: Some(4_000_000_000), ..Limits::default() };
    let budget = |text: &str| text.parse().expect("a budget");
    let budgets = vec![budget("1000000000/month,zone=Europe/Berlin"), budget("1000000000/day")];
    let quotas = vec!["1000000000000/day".parse().expect("a quota")];
    let full = Policy { limits, budgets, quotas, ..Policy::default() };
    let five: Arc<[Arc<Scope>]> = ["key", "plan", "user", "team", "paid"].map(|name| scope(name, &full)).into();
    group.bench_function("reserve_settle/five_scopes", |b| b.iter(|| reserve_settle(&five)));
    group.bench_function("reserve_settle/five_scopes/two_threads", |b| {
        b.iter_custom(|times| {
            let start = clock.now();
            std::thread::scope(|threads| {
                for _ in 0..2 {
                    threads.spawn(|| (0..times).for_each(|_| reserve_settle(&five)));
                }
            });
            // Each thread did `times` of them.
            std::time::Duration::from_nanos(clock.now() - start)
        });
    });
    let full = set(Some(1), Some(1_000), None);
    reserve_settle(&full);
    group.bench_function("refuse", |b| {
        b.iter(|| Permit::reserve(Arc::clone(&full), Moment::of(&clock), black_box(need)).is_err())
    });
    let one = &set(Some(60), Some(1_000), None)[0];
    group.bench_function("remaining", |b| b.iter(|| one.remaining(clock.now())));
    group.finish();
}

/// A request whose messages, `size` bytes of text or of base64, stand before the model, as SDKs send it.
fn body(size: usize, filling: &str) -> Vec<u8> {
    let mut body = String::from(r#"{"messages":[{"role":"user","content":""#);
    while body.len() < size {
        body.push_str(filling);
    }
    body.push_str(r#""}],"model":"gpt-4o-mini","max_tokens":64,"stream":true}"#);
    body.into_bytes()
}

fn sniff(c: &mut Criterion) {
    let dialect = provider::default_dialect();
    let text = "The quick brown fox jumps over the lazy dog, said \\\"nobody\\\"; ";
    let base64 = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk";
    let mut group = c.benchmark_group("sniff");
    for (name, body) in [
        ("1KB", body(1_024, text)),
        ("100KB", body(100 * 1_024, text)),
        ("5MB_text", body(5 << 20, text)),
        ("5MB_base64", body(5 << 20, base64)),
    ] {
        group.throughput(Throughput::Bytes(body.len() as u64));
        group.bench_function(name, |b| {
            b.iter(|| {
                let call = dialect.classify(&Method::POST, "/v1/chat/completions");
                request::sniff(&call, Some("application/json"), black_box(&body)).expect("a good body")
            });
        });
    }
    let body = body(1_024, text);
    group.throughput(Throughput::Bytes(body.len() as u64));
    group.bench_function("estimate_1KB", |b| b.iter(|| tokens::estimate_input(black_box(&body))));
    group.finish();
}

fn observe(c: &mut Criterion) {
    let event = r#"data: {"id":"chatcmpl-bench","object":"chat.completion.chunk","created":1700000000,"model":"gpt-4o-mini","choices":[{"index":0,"delta":{"content":" word"},"finish_reason":null}],"usage":null}

"#;
    let json = format!(
        r#"{{"id":"chatcmpl-bench","object":"chat.completion","model":"gpt-4o-mini","choices":[{{"index":0,"message":{{"role":"assistant","content":"{}"}},"finish_reason":"stop"}}],"usage":{{"prompt_tokens":251,"completion_tokens":42,"total_tokens":293}}}}"#,
        "Of course. Here is a short answer. ".repeat(20)
    );
    let headers = |kind| HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_static(kind))]);
    let mut group = c.benchmark_group("observe");
    group.bench_function("sse_event", |b| {
        let mut observer = Observer::new(Wire::OpenAiChat, true, 200, &headers("text/event-stream"));
        b.iter(|| observer.feed(black_box(event.as_bytes())));
    });
    let plain = headers("application/json");
    group.bench_function("json_1KB", |b| {
        b.iter(|| {
            let mut observer = Observer::new(Wire::OpenAiChat, false, 200, &plain);
            observer.feed(black_box(json.as_bytes()));
            observer.finish()
        });
    });
    group.finish();
}

/// A store with so many keys of one provider; those with a policy are held to it.
fn provider_keys(dir: &std::path::Path, count: u8, policy: &Policy) -> Store {
    let store = Store::open(StoreOptions {
        dir: dir.to_owned(),
        create: true,
        master: MasterKeyInputs::default(),
        environment_keys: Vec::new(),
        prices: Arc::default(),
        section: StoreSection::default(),
        unusual: Default::default(),
        clock: Clock::system(),
        metrics: Metrics::default(),
    });
    let store = store.expect("an empty folder");
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    for n in 0..count {
        let record = ProviderKey {
            id: KeyId::from_bytes([n + 1; 8]),
            provider: "openai".to_owned(),
            name: format!("k{n}"),
            owner: sidekey::id::Owner::System,
            standing: Standing::default(),
            origin: Origin::Sealed,
            masked: String::new(),
            bound_to: ORIGIN.to_owned(),
            models: Vec::new(),
            priority: 0,
            weight: 1,
            policy: policy.clone(),
            replaced: None,
            created_ms: 0,
            version: 0,
        };
        let made = store.create_provider_key(record, Some(Secret::new(format!("sk-{n}"))));
        runtime.block_on(made).expect("a new key");
    }
    store
}

const ORIGIN: &str = "https://api.openai.com:443";

/// What one choice among the keys of a provider costs, with what a request asks of each of them.
fn choice(c: &mut Criterion) {
    let clock = Clock::system();
    let limits = Limits { rpm: Some(4_000_000_000), tpm: Some(4_000_000_000), ..Limits::default() };
    let limited = Policy { limits, ..Policy::default() };
    let mut group = c.benchmark_group("choice");
    for (name, count, policy, learned) in [
        ("10_keys", 10, &Policy::default(), true),
        ("100_keys", 100, &Policy::default(), true),
        ("100_keys/nothing_learned", 100, &Policy::default(), false),
        ("100_keys/own_limits", 100, &limited, true),
    ] {
        let folder = tempfile::tempdir().expect("a folder");
        let store = provider_keys(folder.path(), count, policy);
        let snapshot = Arc::clone(&store.snapshot());
        let keys = snapshot.tiers("openai").expect("keys").of_system();
        let tag = ModelTag::of(Some("gpt-4o-mini"));
        for key in keys.iter().filter(|_| learned) {
            let left = Left { limit: 10_000_000, remaining: 9_999_000, full_in: std::time::Duration::from_secs(3600) };
            key.stats.health.learned.note(clock.now(), tag, Room { requests: Some(left), tokens: Some(left) });
        }
        let (tried, origin) = (Vec::<KeyId>::new(), OriginTag::of(ORIGIN));
        for policy in [PoolPolicy::LeastUsed, PoolPolicy::RoundRobin, PoolPolicy::Random] {
            group.bench_function(format!("{policy}/{name}"), |b| {
                b.iter(|| {
                    let at = Moment::of(&clock);
                    let wish = Wish { now: at.now, tag, tokens: 100, stick: None, seed: at.now };
                    let usable = |key: &ProviderKeyState| {
                        key.is_for(black_box(origin), Some("gpt-4o-mini"))
                            && (tried.is_empty() || !tried.contains(&key.record.id))
                    };
                    let contenders = keys.iter().enumerate().filter(|(_, key)| usable(key));
                    choose(policy, &wish, contenders.map(|(index, key)| (index, key.contender(at)))).expect("a key")
                });
            });
        }
        drop(snapshot);
        store.close();
    }
    group.finish();
}

criterion_group!(benches, key_check, limits, sniff, observe, choice);
criterion_main!(benches);
