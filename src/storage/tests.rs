//! The store as a whole: what it promises over restarts, kills, damage and a full disk.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io::{BufRead, BufReader, ErrorKind};
use std::process::{Command as Process, Stdio};
use std::sync::atomic::Ordering;
use std::time::Duration;

use tempfile::TempDir;

use super::block::tests::entry;
use super::*;
use crate::entry::{Entry, Outcome};
use crate::id::{KeySource, Owner};
use crate::limit::{Consumption, Permit};
use crate::plan::Plan;
use crate::policy::{Limits, Policy, Quota};
use crate::pricing::{Layer, Overlay, Price, PriceRecord};
use crate::provider_key::{Change, Origin, Standing, Status};
use crate::unit::{TokensSource, Usage};
use crate::virtual_key::DigestKey;

const CANARY: &str = "sk-canary-0123456789abcdefghijklmnop";
const START_MS: u64 = 1_700_000_000_000;

fn options(dir: &Path) -> StoreOptions {
    StoreOptions {
        dir: dir.to_owned(),
        create: true,
        master: MasterKeyInputs::default(),
        environment_keys: Vec::new(),
        prices: Arc::default(),
        section: StoreSection { commit_interval_ms: 1, retention_days: 0, rollup_days: 0, ..StoreSection::default() },
        unusual: Unusual::default(),
        clock: Clock::system(),
        metrics: Metrics::default(),
    }
}

fn open(dir: &TempDir) -> Store {
    Store::open(options(dir.path())).unwrap()
}

fn id(n: u64) -> KeyId {
    KeyId::from_bytes(n.to_be_bytes())
}

fn virtual_key(n: u64) -> VirtualKey {
    VirtualKey {
        id: id(n),
        name: format!("app {n}"),
        digest: DigestKey::from_bytes([1; 32]).digest("key"),
        previous: None,
        prefix: "sk-side".into(),
        user: Some("alice".into()),
        team: None,
        status: crate::virtual_key::Status::Active,
        created_ms: START_MS,
        expires_ms: None,
        models: vec!["gpt-*".into()],
        providers: vec![],
        endpoints: vec![],
        sources: vec![],
        plan: None,
        policy: Policy { limits: Limits { rpm: Some(60), tpm: Some(1000), ..Limits::default() }, ..Policy::default() },
        pool: None,
        fallback: crate::virtual_key::Fallback::System,
        stream_usage: None,
        lease: false,
        ephemeral: false,
        canary: false,
        metadata: BTreeMap::new(),
        version: 0,
    }
}

fn fail_with(store: &Store, kind: Option<ErrorKind>) {
    *store.shared.fault.lock().unwrap() = kind;
}

fn use_up(key: &KeyState, clock: &Clock, tokens: u64) {
    let used = Consumption::tokens(tokens, 0);
    Permit::reserve(Arc::clone(&key.scopes), Moment::of(clock), used).unwrap().settle(clock.now(), used);
}

fn provider_key(n: u64, origin: Origin) -> ProviderKey {
    ProviderKey {
        id: id(n),
        provider: "openai".into(),
        name: format!("main {n}"),
        owner: Owner::System,
        standing: Standing::default(),
        origin,
        masked: String::new(),
        bound_to: "https://api.openai.com:443".into(),
        models: vec![],
        priority: 0,
        policy: Policy::default(),
        weight: 1,
        replaced: None,
        created_ms: START_MS,
        version: 0,
    }
}

fn secret_of(store: &Store, n: u64) -> Option<String> {
    store.snapshot().provider_key(id(n))?.secret.load().as_deref().map(|secret| secret.expose().to_owned())
}

async fn all(store: &Store) -> Vec<Entry> {
    store.ledger().query(LedgerFilter::default()).await.unwrap().entries
}

#[tokio::test]
async fn records_survive_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir);
    let made = store.create_virtual_key(virtual_key(1)).await.unwrap();
    assert_eq!(made.record.version, 1);
    let sealed = store.create_provider_key(provider_key(2, Origin::Sealed), Some(Secret::new(CANARY.into()))).await;
    assert_eq!(sealed.unwrap().record.masked, "sk-…mnop");
    store.create_provider_key(provider_key(3, Origin::Env { name: "X".into() }), None).await.unwrap();
    let renamed = VirtualKey { name: "other".into(), ..made.record.clone() };
    store.update_virtual_key(renamed, 1).await.unwrap();
    let refused = Standing { status: Status::Error, last_error: Some("401".into()), ..Standing::default() };
    let key = store.snapshot().provider_key(id(2)).cloned().unwrap();
    let change = Change { standing: refused.clone(), before: Status::Active, fresh: true, kept: true };
    store.note_provider_key(&key, change);
    store.delete_provider_key(id(3), Some(1)).await.unwrap();
    let (digest_key, generation) = (*store.snapshot().digest_key().expose(), store.snapshot().generation());
    drop(store);

    let store = open(&dir);
    let snapshot = store.snapshot();
    assert_eq!(snapshot.digest_key().expose(), &digest_key);
    assert_eq!(snapshot.generation(), generation);
    let key = &snapshot.virtual_key(id(1)).unwrap().record;
    assert_eq!((key.name.as_str(), key.version), ("other", 2));
    let keys = snapshot.provider_keys("openai");
    assert_eq!(keys.len(), 1);
    assert_eq!(
        (&keys[0].record.standing, keys[0].record.version),
        (&refused, 1),
        "noted, and no change of an operator's"
    );
    assert!(!keys[0].stats.health.is_usable(u64::MAX - 1), "in force from the start");
    assert_eq!(secret_of(&store, 2).as_deref(), Some(CANARY), "sealed anew under each version");
    assert_eq!(store.health().recovered, None);
}

#[tokio::test]
async fn changes_are_refused_with_their_reason() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir);
    let key = store.create_virtual_key(virtual_key(1)).await.unwrap().record.clone();
    store.create_provider_key(provider_key(2, Origin::Sealed), Some(Secret::new(CANARY.into()))).await.unwrap();
    assert!(matches!(store.create_virtual_key(virtual_key(1)).await, Err(StoreError::Exists { .. })));
    let stale = store.update_virtual_key(key.clone(), 7).await;
    assert!(matches!(stale, Err(StoreError::Conflict { current: 1, .. })));
    assert!(matches!(store.delete_virtual_key(id(9), None).await, Err(StoreError::NotFound { .. })));
    assert!(matches!(store.delete_virtual_key(id(1), Some(2)).await, Err(StoreError::Conflict { .. })));
    let bare = store.create_provider_key(provider_key(5, Origin::Sealed), None).await;
    assert!(matches!(bare, Err(StoreError::NoSecret { .. })));
    let long = VirtualKey { models: vec!["m".repeat(50); 100], ..key };
    match store.update_virtual_key(long, 1).await {
        Err(StoreError::TooLarge { bytes, max, .. }) => assert!(bytes > max),
        other => panic!("{other:?}"),
    }
    // Nothing of the refused ones stayed, and the store is whole.
    drop(store);
    let store = open(&dir);
    assert_eq!(store.snapshot().virtual_key(id(1)).unwrap().record.version, 1);
    assert_eq!(store.snapshot().all_provider_keys().count(), 1);
}

#[tokio::test]
async fn named_records_have_names_and_versions() {
    let plan = |name: &str, rpm| Plan {
        name: name.into(),
        policy: Policy { limits: Limits { rpm: Some(rpm), ..Limits::default() }, ..Policy::default() },
        ..Plan::default()
    };
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir);
    assert_eq!(store.put_named(plan("free", 1), Some(0)).await.unwrap().1, 1);
    assert!(matches!(store.put_named(plan("free", 2), Some(0)).await, Err(StoreError::Exists { .. })));
    assert!(matches!(store.put_named(plan("free", 2), Some(7)).await, Err(StoreError::Conflict { current: 1, .. })));
    assert!(matches!(store.put_named(plan("none", 2), Some(7)).await, Err(StoreError::NotFound { .. })));
    assert_eq!(store.put_named(plan("free", 3), Some(1)).await.unwrap().1, 2);
    assert_eq!(store.put_named(plan("team", 4), None).await.unwrap().1, 1);
    store.put_named(plan("gone", 5), None).await.unwrap();
    assert!(matches!(store.delete_named::<Plan>("gone", Some(2)).await, Err(StoreError::Conflict { .. })));
    store.delete_named::<Plan>("gone", Some(1)).await.unwrap();
    let missing = store.delete_named::<Plan>("gone", None).await.unwrap_err();
    assert_eq!(missing.to_string(), "plan \"gone\" does not exist");
    let long = Plan { models: vec!["m".repeat(50); 100], ..plan("free", 1) };
    assert!(matches!(store.put_named(long, None).await, Err(StoreError::TooLarge { .. })));
    drop(store);

    let store = open(&dir);
    let kept: Vec<_> =
        store.snapshot().all_named::<Plan>().map(|(plan, version)| (plan.policy.limits.rpm, version)).collect();
    assert_eq!(kept, [(Some(3), 2), (Some(4), 1)]);
    assert_eq!(*store.snapshot().named::<Plan>("free").unwrap().0, plan("free", 3));
    assert_eq!(store.health().recovered, None);
}

#[tokio::test]
async fn prices_set_here_lie_over_the_others() {
    let dir = tempfile::tempdir().unwrap();
    let price = |json: &str| serde_json::from_str::<Price>(json).unwrap();
    let record = |name: &str, json| PriceRecord { name: name.parse().unwrap(), price: price(json), set_ms: START_MS };
    let config = [("openai/a", r#"{"input":"1"}"#), ("openai/b", r#"{"input":"2"}"#)];
    let config = config.map(|(name, json)| (name.parse().unwrap(), price(json)));
    let prices = Arc::new(PriceTable::new(Overlay::hashed("config", config.into()), []));
    let options = || StoreOptions { prices: prices.clone(), ..options(dir.path()) };
    let resolve = |store: &Store, model: &str| {
        let found = store.snapshot().prices().resolve("openai", model)?;
        Some((found.layer, found.price.cost(&Usage { input: Some(1), ..Usage::default() }, None)?))
    };
    let store = Store::open(options()).unwrap();
    assert_eq!(resolve(&store, "a"), Some((Layer::Config, 1_000)));
    // Many at once are one commit, and one new table.
    let many = (0..1500).map(|n| record(&format!("openai/many-{n}"), r#"{"input":"5"}"#)).collect();
    store.put_all_named::<PriceRecord>(many).await.unwrap();
    store.put_named(record("openai/a", r#"{"input":"3"}"#), None).await.unwrap();
    let seen = |store: &Store| [resolve(store, "a"), resolve(store, "b"), resolve(store, "many-1499")];
    let want = [Some((Layer::Store, 3_000)), Some((Layer::Config, 2_000)), Some((Layer::Store, 5_000))];
    assert_eq!(seen(&store), want);
    drop(store);
    let store = Store::open(options()).unwrap();
    assert_eq!(seen(&store), want);
    store.delete_named::<PriceRecord>("openai/a", None).await.unwrap();
    assert_eq!(resolve(&store, "a"), Some((Layer::Config, 1_000)));
}

#[tokio::test]
async fn run_time_state_outlives_a_change() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir);
    let before = store.create_virtual_key(virtual_key(1)).await.unwrap();
    use_up(&before, &store.shared.clock, 1);
    let limits = Limits { rpm: Some(2), ..before.record.policy.limits };
    let policy = Policy { limits, ..Policy::default() };
    let after = store.update_virtual_key(VirtualKey { policy, ..before.record.clone() }, 1).await.unwrap();
    assert!(Arc::ptr_eq(&before.scope, &after.scope) && Arc::ptr_eq(&before.stats, &after.stats));
    assert_eq!(after.scope.limits().rpm, Some(2));
}

#[tokio::test]
async fn one_owner_at_a_time() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir);
    match Store::open(options(dir.path())) {
        Err(error @ StoreError::Locked { .. }) => {
            assert!(error.is_unusable());
            assert!(error.to_string().contains(&std::process::id().to_string()), "{error}");
        }
        other => panic!("{other:?}"),
    }
    store.close();
    assert!(matches!(store.create_virtual_key(virtual_key(1)).await, Err(StoreError::Closed)));
    assert_eq!(store.ledger().record(entry(1)), Err(QueueFull));
    open(&dir);
}

#[tokio::test]
async fn the_wrong_master_key_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    assert!(matches!(
        Store::open(StoreOptions { create: false, ..options(&dir.path().join("none")) }),
        Err(StoreError::Missing { .. })
    ));
    let store = open(&dir);
    store.create_virtual_key(virtual_key(1)).await.unwrap();
    drop(store);
    let master_key = dir.path().join("master.key");
    let kept = fs::read(&master_key).unwrap();
    fs::remove_file(&master_key).unwrap();
    assert!(matches!(Store::open(options(dir.path())), Err(StoreError::NoMaster { .. })));
    assert!(!master_key.exists(), "none is made for a store that has one");
    let value = Some(Secret::new("11".repeat(32)));
    let master = MasterKeyInputs { value, ..MasterKeyInputs::default() };
    let wrong = Store::open(StoreOptions { master, ..options(dir.path()) });
    assert!(matches!(wrong, Err(StoreError::WrongMaster { .. })));
    fs::write(dir.path().join("format"), "3\n").unwrap();
    fs::write(&master_key, kept).unwrap();
    fs::set_permissions(&master_key, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    assert!(matches!(Store::open(options(dir.path())), Err(StoreError::TooNew { found: 3, known: 2, .. })));
    fs::write(dir.path().join("format"), "1\n").unwrap();
    assert!(open(&dir).snapshot().virtual_key(id(1)).is_some());
}

#[tokio::test]
async fn no_file_shows_a_secret() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir);
    let key = provider_key(2, Origin::Sealed);
    let made = store.create_provider_key(key, Some(Secret::new(CANARY.into()))).await.unwrap();
    store.create_virtual_key(virtual_key(1)).await.unwrap();
    store.update_provider_key(made.record.clone(), 1, None).await.unwrap();
    store.backup(dir.path().join("backup")).await.unwrap();
    let digest_key = *store.snapshot().digest_key().expose();
    assert!(!format!("{store:?} {:?}", *store.snapshot()).contains(&CANARY[3..]));
    drop(store);
    let mut files = vec![dir.path().to_owned()];
    let mut seen = 0;
    while let Some(path) = files.pop() {
        let meta = fs::metadata(&path).unwrap();
        assert_eq!(std::os::unix::fs::PermissionsExt::mode(&meta.permissions()) & 0o077, 0, "{}", path.display());
        if meta.is_dir() {
            files.extend(fs::read_dir(&path).unwrap().map(|item| item.unwrap().path()));
            continue;
        }
        let bytes = fs::read(&path).unwrap();
        seen += 1;
        for needle in [&CANARY.as_bytes()[3..], &digest_key] {
            assert!(!bytes.windows(needle.len()).any(|window| window == needle), "{}", path.display());
        }
    }
    assert!(seen > 4);
}

#[tokio::test]
async fn counters_are_the_sum_of_the_ledger() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(&dir);
    for n in 0..3 {
        store.create_virtual_key(virtual_key(n)).await.unwrap();
    }
    for n in [100, 101] {
        store.create_provider_key(provider_key(n, Origin::Sealed), Some(Secret::new(CANARY.into()))).await.unwrap();
    }
    for round in 0..4 {
        for n in round * 100..round * 100 + 100 {
            store.ledger().record(entry(n)).unwrap();
        }
        let entries = all(&store).await;
        assert_eq!(entries.len() as u64, (round + 1) * 100, "what was recorded is seen at once");
        let report = store.ledger().usage(LedgerFilter::default(), Dimension::Key).await.unwrap();
        for group in &report.groups {
            let key: KeyId = group.value.as_ref().unwrap().parse().unwrap();
            let state = store.snapshot().virtual_key(key).unwrap().clone();
            let stats = &state.stats;
            assert_eq!(stats.total_requests.load(Ordering::Relaxed), group.totals.requests);
            assert_eq!(stats.total_tokens.load(Ordering::Relaxed), group.totals.tokens.billable());
            assert_eq!(Some(stats.spent_nano_usd.load(Ordering::Relaxed)), group.totals.cost_nano_usd);
        }
        let provider = store.snapshot().provider_key(id(100)).unwrap().clone();
        assert_eq!(provider.stats.used.total_requests.load(Ordering::Relaxed), (round + 1) * 50);
        drop(store);
        store = open(&dir);
    }
    store.delete_virtual_key(id(1), None).await.unwrap();
    drop(store);
    let store = open(&dir);
    assert_eq!(store.health().recovered, None);
    assert_eq!(all(&store).await.len(), 400, "entries outlive their key");
}

#[tokio::test]
async fn questions() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir);
    let ledger = store.ledger();
    let entries: Vec<Entry> = (0..500).map(entry).collect();
    for (n, entry) in entries.iter().enumerate() {
        ledger.record(entry.clone()).unwrap();
        if n % 37 == 0 {
            ledger.flush().await.unwrap();
        }
    }
    let filter = LedgerFilter::default;
    let some = |text: &str| Some(text.to_owned());
    type Keep = fn(&Entry) -> bool;
    let cases: [(&str, LedgerFilter, Keep); 9] = [
        ("from", LedgerFilter { from_ms: Some(START_MS + 100), ..filter() }, |e| e.time_ms >= START_MS + 100),
        ("to", LedgerFilter { to_ms: Some(START_MS + 100), ..filter() }, |e| e.time_ms < START_MS + 100),
        ("key", LedgerFilter { key: Some(id(1)), ..filter() }, |e| e.virtual_key == Some(id(1))),
        ("user", LedgerFilter { user: some("bob"), ..filter() }, |e| e.user.as_deref() == Some("bob")),
        ("team", LedgerFilter { team: some("t1"), ..filter() }, |e| e.team.is_some()),
        ("provider", LedgerFilter { provider: some("openai"), ..filter() }, |e| &*e.provider == "openai"),
        ("paid", LedgerFilter { provider_key: Some(id(101)), ..filter() }, |e| e.provider_key == Some(id(101))),
        ("group", LedgerFilter { group: some("job-1"), ..filter() }, |e| e.group.is_some()),
        ("model", LedgerFilter { model: some("gpt-4o-mini-2024-07-18"), ..filter() }, |_| true),
    ];
    for (name, filter, keep) in cases {
        let want: Vec<&Entry> = entries.iter().filter(|entry| keep(entry)).collect();
        assert!(!want.is_empty(), "{name}");
        let page = ledger.query(filter.clone()).await.unwrap();
        assert_eq!(page.entries.iter().collect::<Vec<_>>(), want, "{name}");
        let page = ledger.query(LedgerFilter { newest_first: true, ..filter.clone() }).await.unwrap();
        assert_eq!(page.entries.iter().rev().collect::<Vec<_>>(), want, "{name}, newest first");
        let report = ledger.usage(filter, Dimension::None).await.unwrap();
        assert_eq!((report.totals.requests, report.groups.len()), (want.len() as u64, 0), "{name}");
    }
    let source = LedgerFilter { key_source: Some(KeySource::Team), ..filter() };
    assert_eq!(ledger.query(source).await.unwrap().entries.len(), 167);

    for newest_first in [false, true] {
        let mut paged = Vec::new();
        let mut next = LedgerFilter { limit: Some(33), newest_first, ..filter() };
        loop {
            let page = ledger.query(next.clone()).await.unwrap();
            paged.extend(page.entries);
            let Some(cursor) = page.next else { break };
            assert_eq!(cursor.to_string().parse(), Ok(cursor));
            next.after = Some(cursor);
        }
        if newest_first {
            paged.reverse();
        }
        assert_eq!(paged, entries, "newest first: {newest_first}");
    }

    for (by, values) in [
        (Dimension::Day, vec![Some("2023-11-14")]),
        (Dimension::Key, vec![Some("0000000000000001"), Some("0000000000000000"), Some("0000000000000002")]),
        (Dimension::User, vec![Some("bob"), Some("alice")]),
        (Dimension::Team, vec![Some("t1"), None]),
        (Dimension::Provider, vec![Some("anthropic"), Some("openai")]),
        (Dimension::ProviderKey, vec![Some("0000000000000065"), Some("0000000000000064")]),
        (Dimension::Model, vec![Some("gpt-4o-mini")]),
        (Dimension::Source, vec![Some("team"), Some("user"), Some("system")]),
        (Dimension::Group, vec![None, Some("job-1")]),
        (Dimension::Endpoint, vec![Some("chat")]),
    ] {
        let report = ledger.usage(filter(), by).await.unwrap();
        let found: Vec<_> = report.groups.iter().map(|group| group.value.as_deref()).collect();
        assert_eq!(found, values, "{}", by.as_str());
        let requests: u64 = report.groups.iter().map(|group| group.totals.requests).sum();
        assert_eq!((requests, report.totals.requests), (500, 500), "{}", by.as_str());
        assert_eq!(by.as_str().parse(), Ok(by));
    }
    let report = ledger.usage(LedgerFilter { limit: Some(1), ..filter() }, Dimension::Model).await.unwrap();
    let json = serde_json::to_value(&report).unwrap();
    assert_eq!(json["groups"][0]["model"], "gpt-4o-mini");
    assert_eq!(json["groups"][0]["requests"], 500);
    assert_eq!(json["totals"]["cost_usd"], "0.12475");
    assert_eq!(json["totals"]["tokens"]["input"], (0..500).map(|n| 100 + n).sum::<u64>());
    assert!(json["totals"]["tokens"]["reasoning"].is_null());
}

#[tokio::test]
async fn sync_waits_for_the_disk_and_a_full_queue_refuses() {
    let dir = tempfile::tempdir().unwrap();
    let section = StoreSection { queue_capacity: 3, commit_interval_ms: 60_000, ..options(dir.path()).section };
    let store = Store::open(StoreOptions { section, ..options(dir.path()) }).unwrap();
    let ledger = store.ledger();
    ledger.record_sync(entry(1)).unwrap().await.unwrap();
    assert_eq!(all(&store).await.len(), 1);
    fail_with(&store, Some(ErrorKind::StorageFull));
    let refused = (0..10).filter(|n| ledger.record(entry(*n)).is_err()).count();
    assert!(refused >= 7, "{refused}");
    assert_eq!(store.health().dropped, refused as u64);
    assert!(told(&store, "ledger.dropped").await);
}

/// Whether operators were told, once the writer had its turn.
async fn told(store: &Store, kind: &str) -> bool {
    for _ in 0..2 {
        // The answer comes in the middle of a turn, and may be that nothing can be written.
        drop(store.ledger().flush().await);
    }
    store.events().recent().iter().any(|event| event.kind.as_str() == kind)
}

#[tokio::test]
async fn a_disk_that_fails_loses_nothing_and_doubles_nothing() {
    // Full, read-only, and broken (EIO has no kind of its own).
    for fault in [ErrorKind::StorageFull, ErrorKind::ReadOnlyFilesystem, ErrorKind::Other] {
        a_disk_that_fails_with(fault).await;
    }
}

async fn a_disk_that_fails_with(fault: ErrorKind) {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir);
    let key = store.create_virtual_key(virtual_key(1)).await.unwrap();
    for n in 0..50 {
        store.ledger().record(entry(n)).unwrap();
    }
    store.ledger().flush().await.unwrap();
    fail_with(&store, Some(fault));
    let estimate = Usage { input: Some(1), ..Usage::default() };
    assert!(store.ledger().place().note(&entry(1), estimate, None).is_err(), "what cannot be noted says so");
    for n in 50..150 {
        store.ledger().record(entry(n)).unwrap();
    }
    assert!(matches!(store.ledger().flush().await, Err(StoreError::Unavailable(_))));
    assert!(matches!(store.create_virtual_key(virtual_key(2)).await, Err(StoreError::Unavailable(_))));
    assert!(!store.health().up && store.health().last_error.is_some());
    assert!(store.snapshot().virtual_key(id(1)).is_some(), "requests go on");
    fail_with(&store, None);
    while store.ledger().flush().await.is_err() || !store.health().up {
        tokio::task::yield_now().await;
    }
    let times: Vec<u64> = all(&store).await.iter().map(|entry| entry.time_ms - START_MS).collect();
    assert_eq!(times, (0..150).collect::<Vec<_>>());
    let after = store.snapshot().virtual_key(id(1)).unwrap().clone();
    assert!(Arc::ptr_eq(&key.stats, &after.stats));
    assert_eq!(after.stats.total_requests.load(Ordering::Relaxed), 50);
    store.create_virtual_key(virtual_key(2)).await.unwrap();
    drop(store);
    let store = open(&dir);
    assert_eq!(store.snapshot().virtual_key(id(1)).unwrap().stats.total_requests.load(Ordering::Relaxed), 50);
    assert_eq!(store.health().recovered, None);
}

#[tokio::test]
async fn limits_survive_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let clock = Clock::manual(START_MS);
    let options = || StoreOptions { clock: clock.clone(), ..options(dir.path()) };
    let store = Store::open(options()).unwrap();
    let key = store.create_virtual_key(virtual_key(1)).await.unwrap();
    for _ in 0..20 {
        use_up(&key, &clock, 10);
    }
    let before = key.remaining(clock.now());
    drop(store);
    let store = Store::open(options()).unwrap();
    let key = store.snapshot().virtual_key(id(1)).unwrap().clone();
    assert_eq!(key.remaining(clock.now()), before);
    clock.advance_ms(120_000);
    drop(store);
    let store = Store::open(options()).unwrap();
    let key = store.snapshot().virtual_key(id(1)).unwrap().clone();
    assert_eq!(key.remaining(clock.now()).remaining_rpm, Some(60));
}

#[tokio::test]
async fn a_request_whose_end_nobody_lived_to_see_is_settled_once() {
    let dir = tempfile::tempdir().unwrap();
    let quota: Quota = "1000000/day".parse().unwrap();
    let clock = Clock::manual(START_MS);
    let options = || StoreOptions { clock: clock.clone(), ..options(dir.path()) };
    let store = Store::open(options()).unwrap();
    let policy = Policy { quotas: vec![quota], ..Policy::default() };
    store.create_virtual_key(VirtualKey { policy, ..virtual_key(0) }).await.unwrap();
    let estimate = Usage { input: Some(30), output: Some(12), total: Some(42), ..Usage::default() };
    let ledger = store.ledger();
    let noted = |n: u64| {
        let mut place = ledger.place();
        // Of the first virtual key, as `entry` has it.
        place.note(&entry(n * 3), estimate, Some(5)).unwrap();
        place
    };
    // Settled, never sent, and neither.
    noted(1).record(entry(3)).unwrap();
    drop(noted(2));
    std::mem::forget(noted(3));
    ledger.flush().await.unwrap();
    drop(store);
    for round in 0..2 {
        let store = Store::open(options()).unwrap();
        let entries = all(&store).await;
        let outcomes: Vec<_> = entries.iter().map(|entry| (entry.time_ms - START_MS, entry.outcome)).collect();
        assert_eq!(outcomes, [(3, entry(3).outcome), (9, Outcome::AbortedByCrash)], "round {round}");
        assert_eq!((entries[1].tokens, entries[1].cost_nano_usd), (estimate, Some(5)));
        assert_eq!(entries[1].tokens_source, TokensSource::Estimated);
        let key = store.snapshot().virtual_key(id(0)).unwrap().clone();
        let used = entries.iter().map(|entry| entry.tokens.billable()).sum();
        let report = key.scope.report(Moment::of(&clock), &Consumption::default());
        assert_eq!((report.last().unwrap().used, report.last().unwrap().reserved), (used, 0), "round {round}");
        assert_eq!(key.stats.total_tokens.load(Ordering::Relaxed), used, "round {round}");
    }
}

#[tokio::test]
async fn room_that_was_promised_is_there() {
    let dir = tempfile::tempdir().unwrap();
    let section = StoreSection { queue_capacity: 3, commit_interval_ms: 60_000, ..options(dir.path()).section };
    let store = Store::open(StoreOptions { section, ..options(dir.path()) }).unwrap();
    let ledger = store.ledger();
    fail_with(&store, Some(ErrorKind::StorageFull));
    let places: Vec<EntryPlace> = (0..2).map(|_| ledger.promise().unwrap()).collect();
    while ledger.record(entry(9)).is_ok() {}
    assert!(ledger.promise().is_err());
    drop(ledger.place());
    for place in places {
        assert!(place.is_promised());
        place.record(entry(1)).unwrap();
    }
    fail_with(&store, None);
    while ledger.flush().await.is_err() {
        tokio::task::yield_now().await;
    }
    drop(ledger.promise().unwrap());
    assert_eq!((0..3).filter(|_| ledger.promise().is_ok()).count(), 3, "given back when it is not used");
}

#[tokio::test]
async fn old_blocks_go_counters_stay() {
    let dir = tempfile::tempdir().unwrap();
    let day = 86_400_000;
    let clock = Clock::manual(START_MS + day);
    let section = StoreSection { retention_days: 2, ..options(dir.path()).section };
    let options = || StoreOptions { clock: clock.clone(), section: section.clone(), ..options(dir.path()) };
    let store = Store::open(options()).unwrap();
    store.create_virtual_key(virtual_key(0)).await.unwrap();
    for n in 0..300 {
        store.ledger().record(entry(n)).unwrap();
    }
    store.ledger().flush().await.unwrap();
    store.ledger().record(Entry { time_ms: START_MS + day, ..entry(300) }).unwrap();
    store.ledger().flush().await.unwrap();
    drop(store);
    clock.advance_ms(3 * day / 2);
    let store = Store::open(options()).unwrap();
    store.ledger().flush().await.unwrap();
    store.ledger().flush().await.unwrap();
    let left = all(&store).await;
    assert!(!left.is_empty() && left.len() < 200, "{}", left.len());
    assert_eq!(left.last().unwrap().time_ms, START_MS + day);
    let stats = store.snapshot().virtual_key(id(0)).unwrap().stats.clone();
    assert_eq!(stats.total_requests.load(Ordering::Relaxed), 101);
}

#[tokio::test]
async fn a_backup_is_the_store() {
    let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let store = open(&dir);
    store.create_provider_key(provider_key(2, Origin::Sealed), Some(Secret::new(CANARY.into()))).await.unwrap();
    store.create_virtual_key(virtual_key(0)).await.unwrap();
    for n in 0..200 {
        store.ledger().record(entry(n)).unwrap();
    }
    let file = dir.path().join("backup");
    store.backup(file.clone()).await.unwrap();
    store.delete_virtual_key(id(0), None).await.unwrap();
    store.ledger().record(entry(200)).unwrap();
    drop(store);

    let (none, clock) = (MasterKeyInputs::default(), Clock::system());
    let target = other.path();
    assert!(matches!(restore(target, &none, &file, false, &clock), Err(StoreError::NoMaster { .. })));
    fs::copy(dir.path().join("master.key"), target.join("master.key")).unwrap();
    assert_eq!(restore(target, &none, &file, false, &clock).unwrap(), None);
    assert!(matches!(restore(target, &none, &file, false, &clock), Err(StoreError::NotEmpty { .. })));
    let aside = restore(dir.path(), &none, &file, true, &clock).unwrap().unwrap();
    assert!(aside.join("db").exists());
    for dir in [&dir, &other] {
        let store = open(dir);
        assert_eq!(store.health().recovered, None);
        assert_eq!(secret_of(&store, 2).as_deref(), Some(CANARY));
        assert_eq!(all(&store).await.len(), 200);
        let stats = store.snapshot().virtual_key(id(0)).unwrap().stats.clone();
        assert_eq!(stats.total_requests.load(Ordering::Relaxed), 67);
    }
    let wrong = MasterKeyInputs { value: Some(Secret::new("11".repeat(32))), ..MasterKeyInputs::default() };
    assert!(matches!(restore(target, &wrong, &file, true, &clock), Err(StoreError::WrongMaster { .. })));
    fs::write(&file, "SIDEKEY").unwrap();
    assert!(matches!(restore(target, &none, &file, true, &clock), Err(StoreError::BadBackup { .. })));
    assert!(open(&other).snapshot().virtual_key(id(0)).is_some(), "a bad file touches nothing");
}

/// A store with two keys and some entries, closed.
async fn filled(dir: &TempDir) {
    let store = open(dir);
    store.create_virtual_key(virtual_key(0)).await.unwrap();
    store.create_provider_key(provider_key(2, Origin::Sealed), Some(Secret::new(CANARY.into()))).await.unwrap();
    for n in 0..300 {
        store.ledger().record(entry(n)).unwrap();
    }
    store.close();
}

#[tokio::test]
async fn damage_is_repaired_or_said() {
    let origin = tempfile::tempdir().unwrap();
    filled(&origin).await;
    let db = fs::read(origin.path().join("store/db")).unwrap();
    let written = db.iter().rposition(|byte| *byte != 0).unwrap();
    let mut recovered = 0;
    for case in 0..24 {
        let dir = tempfile::tempdir().unwrap();
        copy_dir(origin.path(), dir.path());
        let mut bad = db.clone();
        let at = written * case / 24;
        match case % 3 {
            0 => bad[at] ^= 0x20,
            1 => bad.truncate(at),
            _ => bad[at..(at + 512).min(db.len())].fill(0xa5),
        }
        fs::write(dir.path().join("store/db"), &bad).unwrap();
        let store = Store::open(options(dir.path())).unwrap();
        assert!(store.snapshot().virtual_key(id(0)).is_some(), "case {case}");
        assert_eq!(secret_of(&store, 2).as_deref(), Some(CANARY), "case {case}");
        let said = store.health().recovered.is_some();
        recovered += usize::from(said);
        let stats = store.snapshot().virtual_key(id(0)).unwrap().stats.clone();
        assert_eq!(stats.total_requests.load(Ordering::Relaxed), 100, "case {case}");
        let left = all(&store).await.len();
        assert!(left == 300 || said, "case {case}: {left} entries are left and nobody says so");
        store.create_virtual_key(virtual_key(7)).await.unwrap();
        store.ledger().record(entry(301)).unwrap();
        assert_eq!(all(&store).await.len(), left + 1, "case {case}");
        drop(store);
        // What was repaired stays so.
        assert_eq!(open(&dir).health().recovered, None, "case {case}");
    }
    assert!(recovered > 5, "{recovered}");
}

#[tokio::test]
async fn damage_without_a_recovery_file_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    filled(&dir).await;
    fs::remove_file(dir.path().join("recovery")).unwrap();
    let db = dir.path().join("store/db");
    let mut bytes = fs::read(&db).unwrap();
    let written = bytes.iter().rposition(|byte| *byte != 0).unwrap();
    bytes[64..written].fill(0xa5);
    fs::write(&db, &bytes).unwrap();
    match Store::open(options(dir.path())) {
        Err(error @ StoreError::Damaged { .. }) => assert!(error.is_unusable()),
        Err(other) => panic!("{other}"),
        Ok(store) => panic!("{:?}", store.health()),
    }
    assert!(db.exists(), "nothing is moved when there is nothing to put in its place");
}

#[tokio::test]
async fn an_older_store_put_back_is_noticed() {
    let (dir, old) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    filled(&dir).await;
    copy_dir(&dir.path().join("store"), old.path());
    let store = open(&dir);
    store.create_virtual_key(virtual_key(8)).await.unwrap();
    drop(store);
    fs::remove_dir_all(dir.path().join("store")).unwrap();
    copy_dir(old.path(), &dir.path().join("store"));
    let store = open(&dir);
    assert!(store.health().recovered.is_some());
    assert!(store.snapshot().virtual_key(id(8)).is_some());
    assert_eq!(all(&store).await.len(), 300, "the ledger is carried over");
    let stats = store.snapshot().virtual_key(id(0)).unwrap().stats.clone();
    assert_eq!(stats.total_requests.load(Ordering::Relaxed), 100);
}

fn copy_dir(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for item in fs::read_dir(from).unwrap() {
        let item = item.unwrap();
        let target = to.join(item.file_name());
        if item.file_type().unwrap().is_dir() {
            copy_dir(&item.path(), &target);
        } else {
            fs::copy(item.path(), target).unwrap();
        }
    }
}

#[tokio::test]
async fn keys_of_the_environment_come_last_and_are_not_stored() {
    let dir = tempfile::tempdir().unwrap();
    let environment_keys = vec![EnvironmentKey {
        provider: "openai".into(),
        variable: "OPENAI_API_KEY".into(),
        secret: Secret::new(CANARY.into()),
    }];
    let with = || StoreOptions { environment_keys: environment_keys.clone(), ..options(dir.path()) };
    let store = Store::open(with()).unwrap();
    store.create_provider_key(provider_key(2, Origin::Sealed), Some(Secret::new("sk-1".into()))).await.unwrap();
    let keys = store.snapshot().provider_keys("openai").to_vec();
    assert_eq!(keys.iter().map(|key| key.stored_id()).collect::<Vec<_>>(), [Some(id(2)), None]);
    let environment = keys[1].record.id;
    assert!(matches!(store.delete_provider_key(environment, None).await, Err(StoreError::NotFound { .. })));
    drop(store);
    assert!(open(&dir).snapshot().provider_key(environment).is_none());
    assert!(Store::open(with()).unwrap().snapshot().provider_key(environment).is_some(), "the same id each time");
}

#[tokio::test]
async fn references_are_resolved_and_keep_their_last_good_value() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir);
    let file = dir.path().join("token");
    fs::write(&file, "tok-1\n").unwrap();
    let path = file.to_str().unwrap().to_owned();
    store.create_provider_key(provider_key(1, Origin::File { path }), None).await.unwrap();
    store.create_provider_key(provider_key(2, Origin::Env { name: "A".into() }), None).await.unwrap();
    store.create_provider_key(provider_key(3, Origin::Env { name: "B".into() }), None).await.unwrap();
    let command = format!("cat {}", file.display());
    store.create_provider_key(provider_key(4, Origin::Exec { command, refresh_secs: 60 }), None).await.unwrap();
    let references = store.references(HashMap::from([("A".to_owned(), Secret::new("env-a".into()))]));
    let failed = references.refresh_now().await;
    assert_eq!(failed, [(id(3), ReferenceError::Unset("B".into()))]);
    let seen = |n| secret_of(&store, n);
    assert_eq!([seen(1), seen(2), seen(3), seen(4)].map(Option::unwrap_or_default), ["tok-1", "env-a", "", "tok-1"]);
    fs::remove_file(&file).unwrap();
    assert_eq!(references.refresh_now().await.len(), 3);
    assert_eq!(seen(1).as_deref(), Some("tok-1"), "unreadable keeps the last good value");
    fs::write(&file, "tok-2\n").unwrap();
    tokio::select! {
        () = references.watch() => {}
        () = async { while seen(1).as_deref() != Some("tok-2") { tokio::task::yield_now().await } } => {}
    }
    // A change of the record keeps the value; a change of the origin does not.
    let record = store.snapshot().provider_key(id(1)).unwrap().record.clone();
    let record = store.update_provider_key(record, 1, None).await.unwrap().record.clone();
    assert_eq!(seen(1).as_deref(), Some("tok-2"));
    let moved = ProviderKey { origin: Origin::Env { name: "C".into() }, ..record.clone() };
    let moved = store.update_provider_key(moved, 2, None).await.unwrap().record.clone();
    assert_eq!(seen(1), None);
    let sealed = store.update_provider_key(ProviderKey { origin: Origin::Sealed, ..moved }, 3, None).await;
    assert!(matches!(sealed, Err(StoreError::NoSecret { .. })), "a resolved value is not kept as a secret");
}

const CHILD_DIR: &str = "SIDEKEY_TEST_STORE_DIR";

/// Not a test of its own: the child of [`kill_loses_nothing_acknowledged`].
#[tokio::test]
#[ignore = "run by kill_loses_nothing_acknowledged"]
#[expect(clippy::disallowed_methods, reason = "a test's way to hand a directory to its child")]
async fn crash_child() {
    let Some(dir) = std::env::var_os(CHILD_DIR) else { return };
    let store = Store::open(options(Path::new(&dir))).unwrap();
    let start = all(&store).await.len() as u64;
    for n in start.. {
        if n % 40 == 0 {
            let _known = store.create_virtual_key(virtual_key(n % 3)).await;
        }
        store.ledger().record(entry(n)).unwrap();
        if n % 10 == 9 {
            store.ledger().flush().await.unwrap();
            println!("acknowledged {}", n + 1);
        }
    }
}

#[tokio::test]
async fn kill_loses_nothing_acknowledged() {
    let dir = tempfile::tempdir().unwrap();
    for round in 0..6 {
        let mut child = Process::new(std::env::current_exe().unwrap())
            .args(["--exact", "storage::tests::crash_child", "--ignored", "--nocapture"])
            .env(CHILD_DIR, dir.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut acknowledged = 0;
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let counts = lines.map_while(Result::ok).filter_map(|line| line.split_once("acknowledged ")?.1.parse().ok());
        for (seen, count) in counts.enumerate() {
            acknowledged = count;
            if seen == 5 + round * 7 {
                child.kill().unwrap();
            }
        }
        child.wait().unwrap();
        assert!(acknowledged > 0, "the child ran");
        let store = open(&dir);
        assert_eq!(store.health().recovered, None, "round {round}");
        let entries = all(&store).await;
        assert!(entries.len() as u64 >= acknowledged, "{} of {acknowledged}", entries.len());
        for (n, found) in entries.iter().enumerate() {
            assert_eq!(found.time_ms, START_MS + n as u64, "no hole, nothing twice");
        }
        let report = store.ledger().usage(LedgerFilter::default(), Dimension::Key).await.unwrap();
        for group in &report.groups {
            let key = group.value.as_ref().unwrap().parse().unwrap();
            let Some(state) = store.snapshot().virtual_key(key).cloned() else { continue };
            let counted = state.stats.total_requests.load(Ordering::Relaxed);
            // Entries from before the key was made are not its own: the first rounds make them.
            assert!(counted <= group.totals.requests && counted + 40 >= group.totals.requests, "round {round}");
        }
    }
}

/// The sums of these entries, made one by one.
fn summed(entries: &[Entry], filter: &LedgerFilter, by: Dimension) -> BTreeMap<Option<String>, (u64, u64, u64, u64)> {
    let mut sums = BTreeMap::new();
    let same = |want: &Option<String>, is: Option<&str>| want.is_none() || want.as_deref() == is;
    let text = |text: &Option<Arc<str>>| text.as_deref().map(str::to_owned);
    for entry in entries {
        let model = entry.model_requested.as_deref();
        let fits = filter.from_ms.is_none_or(|from| entry.time_ms >= from)
            && filter.to_ms.is_none_or(|to| entry.time_ms < to)
            && (filter.key.is_none() || filter.key == entry.virtual_key)
            && (filter.key_source.is_none() || filter.key_source == entry.key_source)
            && same(&filter.user, entry.user.as_deref())
            && same(&filter.group, entry.group.as_deref())
            && (same(&filter.model, model) || same(&filter.model, entry.model_reported.as_deref()));
        if !fits {
            continue;
        }
        let value = match by {
            Dimension::Day => Some(rfc3339(entry.time_ms)[..10].to_owned()),
            Dimension::Endpoint => Some(entry.endpoint.to_string()),
            Dimension::Group => text(&entry.group),
            Dimension::Key => entry.virtual_key.map(|id| id.to_string()),
            Dimension::Model => text(&entry.model_requested).or_else(|| text(&entry.model_reported)),
            Dimension::None => None,
            Dimension::Plan => text(&entry.plan),
            Dimension::Provider => Some(entry.provider.to_string()),
            Dimension::ProviderKey => entry.provider_key.map(|id| id.to_string()),
            Dimension::Source => entry.key_source.map(|source| source.as_str().to_owned()),
            Dimension::Team => text(&entry.team),
            Dimension::User => text(&entry.user),
        };
        let sum: &mut (u64, u64, u64, u64) = sums.entry(value).or_default();
        sum.0 += 1;
        sum.1 += u64::from(entry.outcome != Outcome::Ok);
        sum.2 += entry.tokens.billable();
        sum.3 += entry.cost_nano_usd.unwrap_or(0);
    }
    sums
}

mod rolled_up {
    use proptest::prelude::*;

    use super::*;

    const DAY: u64 = 86_400_000;

    fn filters() -> impl Strategy<Value = (LedgerFilter, Dimension)> {
        let time = || proptest::option::of(prop_oneof![Just(0), Just(DAY), Just(3 * DAY), 0..6 * DAY]);
        let maybe = |values: &'static [&'static str]| proptest::option::of(proptest::sample::select(values));
        let start = START_MS / DAY * DAY;
        (
            (time(), time()),
            proptest::option::of(0..3_u64),
            maybe(&["alice", "bob"]),
            maybe(&["gpt-4o-mini", "gpt-4o-mini-2024-07-18", "other"]),
            proptest::option::weighted(0.1, Just("job-1")),
            proptest::sample::select(&Dimension::ALL[..]),
        )
            .prop_map(move |((from, to), key, user, model, group, by)| {
                let text = |text: Option<&str>| text.map(str::to_owned);
                let filter = LedgerFilter {
                    from_ms: from.map(|from| start + from),
                    to_ms: to.map(|to| start + to),
                    key: key.map(id),
                    user: text(user),
                    model: text(model),
                    group: text(group),
                    ..LedgerFilter::default()
                };
                (filter, by)
            })
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

        /// Roll-ups, blocks and what is in neither yet give together what the entries do, whenever they are asked.
        #[test]
        fn usage_is_the_sum_of_the_entries(
            steps in proptest::collection::vec((0..40_u64, 0..20 * 3_600_000_u64, 0..4_u8), 1..25),
            questions in proptest::collection::vec(filters(), 6),
        ) {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let dir = tempfile::tempdir().unwrap();
            let clock = Clock::manual(START_MS);
            let options = || StoreOptions { clock: clock.clone(), ..options(dir.path()) };
            let mut store = Store::open(options()).unwrap();
            let mut entries = Vec::new();
            for (count, pass, then) in steps {
                clock.advance_ms(pass);
                for n in 0..count {
                    // Some arrived the day before and were long in coming.
                    let late = if n % 7 == 0 { 5 * 3_600_000 } else { 0 };
                    let entry = Entry { time_ms: clock.wall_ms().saturating_sub(late), ..entry(n) };
                    store.ledger().record(entry.clone()).unwrap();
                    entries.push(entry);
                }
                match then {
                    0 => {
                        store.close();
                        drop(store);
                        store = Store::open(options()).unwrap();
                    }
                    1 => runtime.block_on(store.ledger().flush()).unwrap(),
                    // Enough for the sums to be saved.
                    2 => clock.advance_ms(1_500),
                    _ => {}
                }
            }
            for (filter, by) in questions {
                let report = runtime.block_on(store.ledger().usage(filter.clone(), by)).unwrap();
                let want = summed(&entries, &filter, by);
                let sum = |totals: &UsageTotals| {
                    (totals.requests, totals.failed, totals.tokens.billable(), totals.cost_nano_usd.unwrap_or(0))
                };
                let all = want.values().fold((0, 0, 0, 0), |a, b| (a.0 + b.0, a.1 + b.1, a.2 + b.2, a.3 + b.3));
                prop_assert_eq!(sum(&report.totals), all, "{:?}", filter);
                if by != Dimension::None {
                    let groups = report.groups.iter().map(|group| (group.value.clone(), sum(&group.totals)));
                    prop_assert_eq!(groups.collect::<BTreeMap<_, _>>(), want, "{:?} by {}", filter, by.as_str());
                }
            }
        }
    }
}

#[tokio::test]
async fn what_is_pruned_gives_its_room_back_and_its_sums_stay() {
    let dir = tempfile::tempdir().unwrap();
    let clock = Clock::manual(START_MS);
    let section = StoreSection { retention_days: 10, ..options(dir.path()).section };
    let options = || StoreOptions { clock: clock.clone(), section: section.clone(), ..options(dir.path()) };
    let store = Store::open(options()).unwrap();
    store.create_virtual_key(virtual_key(1)).await.unwrap();
    let ledger = store.ledger();
    let count = 220_000;
    for n in 0..count {
        ledger.record(Entry { time_ms: clock.wall_ms(), ..entry(n) }).unwrap();
        if n % 2_000 == 0 {
            ledger.flush().await.unwrap();
            clock.advance_ms(2_000);
        }
    }
    ledger.flush().await.unwrap();
    // Not there at the moment when the new one takes its place.
    let size = || fs::metadata(dir.path().join("store/db")).map_or(u64::MAX, |file| file.len());
    let (before, sums) = (size(), ledger.usage(LedgerFilter::default(), Dimension::Key).await.unwrap());
    drop(store);
    clock.advance_ms(20 * 86_400_000);
    let store = Store::open(options()).unwrap();
    for n in 0..10 {
        store.ledger().record(Entry { time_ms: clock.wall_ms(), ..entry(n) }).unwrap();
    }
    let mut rounds = 0;
    while size() > before / 4 {
        rounds += 1;
        assert!(rounds < 3_000, "{before} bytes became {}", size());
        clock.advance_ms(3_700_000);
        store.ledger().flush().await.unwrap();
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    println!("{before} bytes of {count} entries became {}", size());
    let entries = all(&store).await;
    // The last block stays.
    assert!((10..100).contains(&entries.len()), "{} entries", entries.len());
    let after = store.ledger().usage(LedgerFilter::default(), Dimension::Key).await.unwrap();
    assert_eq!(after.totals.requests, sums.totals.requests + 10);
    assert!(store.snapshot().virtual_key(id(1)).is_some());
    drop(store);
    let store = Store::open(options()).unwrap();
    assert_eq!((all(&store).await.len(), store.health().recovered), (entries.len(), None));
}

#[tokio::test]
async fn a_store_without_roll_ups_gets_them() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir);
    (0..300).for_each(|n| store.ledger().record(entry(n)).unwrap());
    store.ledger().flush().await.unwrap();
    let want = store.ledger().usage(LedgerFilter::default(), Dimension::Model).await.unwrap();
    drop(store);
    let engine = engine::Engine::open(&dir.path().join("store")).unwrap();
    let rows = engine.rows(engine::Tree::Rollups).unwrap().into_iter().map(|(key, _)| (key.to_vec(), None));
    engine.commit_one(engine::Tree::Rollups, rows.collect()).unwrap();
    drop(engine);
    for _ in 0..2 {
        let store = open(&dir);
        assert_eq!(store.ledger().usage(LedgerFilter::default(), Dimension::Model).await.unwrap(), want);
    }
}

#[tokio::test]
async fn names_of_one_client_do_not_hide_what_others_used() {
    let dir = tempfile::tempdir().unwrap();
    let clock = Clock::manual(START_MS);
    let store = Store::open(StoreOptions { clock: clock.clone(), ..options(dir.path()) }).unwrap();
    let ledger = store.ledger();
    let save = async || {
        ledger.flush().await.unwrap();
        clock.advance_ms(1_500);
        ledger.flush().await.unwrap();
    };
    let (flood, late) = (9_000_u64, 50_u64);
    for n in 0..flood {
        // A name for each request, then a key for each too.
        let key = if n < 5_000 { id(1) } else { id(10 + n) };
        let name = Some(format!("made-up-{n}").into());
        ledger.record(Entry { virtual_key: Some(key), model_requested: name, ..entry(0) }).unwrap();
        if n % 2_000 == 0 {
            save().await;
        }
    }
    save().await;
    for _ in 0..late {
        let (user, model) = (Some("late".into()), Some("late-model".into()));
        let entry = Entry { virtual_key: Some(id(2)), user, model_requested: model, ..entry(0) };
        ledger.record(entry).unwrap();
    }
    save().await;
    let day = START_MS / 86_400_000;
    let all = LedgerFilter {
        from_ms: Some(day * 86_400_000),
        to_ms: Some((day + 1) * 86_400_000),
        ..LedgerFilter::default()
    };
    for (filter, by, value, want) in [
        (LedgerFilter { key: Some(id(2)), ..all.clone() }, Dimension::User, Some("late".to_owned()), late),
        (
            LedgerFilter { model: Some("late-model".into()), ..all.clone() },
            Dimension::Key,
            Some(id(2).to_string()),
            late,
        ),
        (all.clone(), Dimension::Model, Some("late-model".to_owned()), late),
        (all.clone(), Dimension::Key, Some(id(2).to_string()), late),
        (all.clone(), Dimension::Model, Some("made-up-8999".to_owned()), 1),
        (all.clone(), Dimension::Provider, Some("openai".to_owned()), flood + late),
    ] {
        let report = ledger.usage(filter.clone(), by).await.unwrap();
        let found = report.groups.iter().find(|group| group.value == value);
        assert_eq!(found.map(|group| group.totals.requests), Some(want), "{filter:?} by {}", by.as_str());
    }
}

fn audited(store: &Store) -> impl Future<Output = Vec<AuditRecord>> + use<> {
    let audit = store.audit();
    async move {
        audit.records(AuditFilter { oldest_first: true, limit: 100, ..AuditFilter::default() }).await.unwrap().records
    }
}

#[tokio::test]
async fn every_change_is_in_the_audit_log_without_secrets() {
    let dir = TempDir::new().unwrap();
    let of_environment = |secret: &str| EnvironmentKey {
        provider: "mistral".to_owned(),
        variable: "MISTRAL_API_KEY".to_owned(),
        secret: Secret::new(secret.to_owned()),
    };
    let environment_keys = vec![of_environment(CANARY)];
    let store = Store::open(StoreOptions { environment_keys, ..options(dir.path()) }).unwrap();
    store.create_virtual_key(virtual_key(1)).await.unwrap();
    let act = Act::new(Actor::user(501, "socket"), "provider_key.rotate", "provider_key 2");
    let change = async {
        store.create_provider_key(provider_key(2, Origin::Sealed), Some(Secret::new(CANARY.into()))).await.unwrap();
        let reference = Origin::Exec { command: format!("print-key {CANARY}"), refresh_secs: 60 };
        store.update_provider_key(provider_key(2, reference), 1, None).await.unwrap();
        assert!(store.update_provider_key(provider_key(2, Origin::Sealed), 1, None).await.is_err());
        store.put_named(Plan { name: "free".into(), ..Plan::default() }, None).await.unwrap();
        store.delete_provider_key(id(2), None).await.unwrap();
    };
    Arc::clone(&act).scope(change).await;
    // What requests learn of a key is no act.
    let key =
        store.create_provider_key(provider_key(3, Origin::Sealed), Some(Secret::new(CANARY.into()))).await.unwrap();
    let standing = Standing { status: Status::Error, ..Standing::default() };
    store.note_provider_key(&key, Change { standing, before: Status::Active, fresh: true, kept: true });
    key.stats.uses.fetch_add(3, Ordering::Relaxed);
    // One that is deleted tells before it goes; one of the environment is as good as any.
    let last = store.create_provider_key(provider_key(4, Origin::Sealed), Some(Secret::new(CANARY.into()))).await;
    last.unwrap().stats.uses.fetch_add(2, Ordering::Relaxed);
    store.delete_provider_key(id(4), None).await.unwrap();
    let environment = store.snapshot().all_provider_keys().find(|key| key.environment).cloned();
    let environment = environment.expect("one of the environment");
    environment.stats.uses.fetch_add(5, Ordering::Relaxed);
    store.adopt(vec![of_environment("another")], PriceTable::default()).await.unwrap();
    store.close();
    let store = open(&dir);
    let records = audited(&store).await;
    let shown: Vec<(&str, &str, &str)> =
        records.iter().map(|record| (&*record.by.actor, &*record.action, &*record.object)).collect();
    let one = format!("key {}", id(1));
    let [two, three, four, outside] =
        [id(2), id(3), id(4), environment.record.id].map(|id| format!("provider_key {id}"));
    assert_eq!(
        shown,
        [
            ("sidekey", "key.create", &*one),
            ("uid:501", "provider_key.rotate", &*two),
            ("uid:501", "provider_key.rotate", &*two),
            ("uid:501", "plan.create", "plan free"),
            ("uid:501", "provider_key.rotate", &*two),
            ("sidekey", "provider_key.create", &*three),
            ("sidekey", "provider_key.create", &*four),
            ("sidekey", "provider_key.delete", &*four),
            ("sidekey", "provider_key.use", &*four),
            ("sidekey", "provider_key.use", &*outside),
            ("sidekey", "provider_key.use", &*three),
        ]
    );
    let changed = &records[2];
    assert_eq!(changed.before.as_ref().unwrap()["origin"]["kind"], "sealed");
    assert_eq!(
        changed.after.as_ref().unwrap()["origin"],
        serde_json::json!({"kind": "exec", "command": "print-key", "refresh_secs": 60})
    );
    assert_eq!(records[4].after, None);
    assert_eq!([8, 9, 10].map(|at| records[at].count), [Some(2), Some(5), Some(3)]);
    let all = serde_json::to_string(&records).unwrap();
    assert!(!all.contains(CANARY) && !all.contains("digest"), "{all}");
    let verdict = store.audit().verify(None).await.unwrap();
    assert!(verdict.whole && verdict.records == 11, "{verdict:?}");
}

#[tokio::test]
async fn what_cannot_be_recorded_is_not_done() {
    let dir = TempDir::new().unwrap();
    let store = open(&dir);
    *store.shared.audit_fault.lock().unwrap() = Some(ErrorKind::StorageFull);
    let refused = store.create_virtual_key(virtual_key(1)).await.unwrap_err();
    assert!(matches!(refused, StoreError::Audit(_)), "{refused}");
    assert!(store.snapshot().virtual_key(id(1)).is_none());
    assert!(told(&store, "audit.failed").await);
    // The request path goes on.
    store.ledger().record_sync(entry(1)).unwrap().await.unwrap();
    *store.shared.audit_fault.lock().unwrap() = None;
    store.create_virtual_key(virtual_key(1)).await.unwrap();
    // Recorded, and then not to be done: that is recorded too.
    fail_with(&store, Some(ErrorKind::StorageFull));
    assert!(store.delete_virtual_key(id(1), None).await.is_err());
    fail_with(&store, None);
    let results: Vec<_> = audited(&store).await.into_iter().map(|record| (record.action, record.result)).collect();
    let said = |action: &str, result| (action.to_owned(), result);
    let (ok, undone) = (crate::audit::Outcome::Ok, crate::audit::Outcome::Undone);
    assert_eq!(results, [said("key.create", ok.clone()), said("key.delete", ok), said("key.delete", undone)]);
    assert!(store.snapshot().virtual_key(id(1)).is_some());
}

#[tokio::test]
async fn refusals_are_recorded_up_to_a_bound() {
    let dir = TempDir::new().unwrap();
    let clock = Clock::manual(START_MS);
    let store = Store::open(StoreOptions { clock: clock.clone(), ..options(dir.path()) }).unwrap();
    let note = || {
        let by = Actor::user(501, "socket");
        crate::audit::Note::new(by, "key.create", "key").with(crate::audit::Outcome::Refused("forbidden".into()))
    };
    for _ in 0..100 {
        store.audit().refused(note()).await;
    }
    assert_eq!(audited(&store).await.len(), 60);
    clock.advance_ms(60_000);
    store.audit().refused(note()).await;
    assert_eq!(audited(&store).await.last().unwrap().count, Some(41));
}

#[tokio::test]
async fn damage_of_the_audit_log_is_told_and_does_not_keep_the_store_shut() {
    let dir = TempDir::new().unwrap();
    let store = open(&dir);
    store.create_virtual_key(virtual_key(1)).await.unwrap();
    store.create_virtual_key(virtual_key(2)).await.unwrap();
    store.close();
    fs::remove_dir_all(dir.path().join("audit")).unwrap();
    let store = open(&dir);
    let told = store.events().recent();
    assert_eq!((told.len(), told[0].kind.as_str()), (1, "audit.damaged"));
    store.create_virtual_key(virtual_key(3)).await.unwrap();
    let verdict = store.audit().verify(None).await.unwrap();
    assert_eq!((verdict.whole, verdict.bad.unwrap().seq), (false, 1));
    assert_eq!(audited(&store).await[0].action, "audit.damaged");
}

#[tokio::test]
async fn a_store_that_cannot_be_written_is_told_of_and_so_is_its_end() {
    let dir = TempDir::new().unwrap();
    let store = open(&dir);
    fail_with(&store, Some(ErrorKind::StorageFull));
    assert!(store.create_virtual_key(virtual_key(1)).await.is_err());
    fail_with(&store, None);
    while !store.health().up {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let told: Vec<_> = store.events().recent().iter().map(|event| (event.kind.as_str(), event.severity)).collect();
    assert_eq!(told, [("store.up", Severity::Info), ("store.down", Severity::Error)]);
}

#[tokio::test]
async fn a_pool_without_a_usable_key_is_told_of_once() {
    let dir = TempDir::new().unwrap();
    let store = open(&dir);
    store.create_virtual_key(VirtualKey { pool: Some("fast".into()), ..virtual_key(1) }).await.unwrap();
    store.create_virtual_key(virtual_key(2)).await.unwrap();
    for n in [1, 1, 2, 2] {
        let mut refused = entry(n);
        (refused.virtual_key, refused.error_code) = (Some(id(n)), Some("no_provider_key".into()));
        store.ledger().record_sync(refused).unwrap().await.unwrap();
    }
    let told: Vec<_> = store.events().recent().iter().map(|event| event.subject.clone()).collect();
    assert_eq!(told, ["provider openai", "pool fast"]);
}
