//! Whose key may pay for whom. Over any users, teams, pools, models, states and fallbacks: no choice leads to a key that
//! its caller may not use, none is made twice, and none of those that may be used is left out.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures_util::future::join_all;
use proptest::prelude::*;
use proptest::test_runner::TestRunner;

use crate::clock::Clock;
use crate::id::{KeyId, Owner};
use crate::limit::{Consumption, Moment};
use crate::metrics::Metrics;
use crate::policy::Policy;
use crate::pool::{Pool, PoolPolicy};
use crate::provider::Registry;
use crate::provider_key::{Blow, Origin, ProviderKey, Standing, Status};
use crate::proxy::authenticate::Caller;
use crate::proxy::select::{Candidate, Choice};
use crate::secret::Secret;
use crate::storage::{MasterKeyInputs, Store, StoreOptions, StoreSection};
use crate::virtual_key::{DigestKey, Fallback, VirtualKey};

const PROVIDERS: [&str; 2] = ["openai", "anthropic"];
const MODELS: [&str; 3] = ["m1", "m2-x", "m3"];
/// Lists of models, and which of [`MODELS`] each allows.
const LISTS: [(&[&str], [bool; 3]); 4] = [
    (&[], [true, true, true]),
    (&["m1"], [true, false, false]),
    (&["m2-*"], [false, true, false]),
    (&["m1", "m?"], [true, false, true]),
];
const OWNERS: [&str; 6] = ["system", "user:ann", "user:bob", "team:ann", "team:red", "team:blue"];

#[derive(Clone, Debug)]
struct Given {
    provider: usize,
    owner: usize,
    list: usize,
    priority: u32,
    is_disabled: bool,
    is_refused: bool,
    is_bound_elsewhere: bool,
    pools: [bool; 2],
}

#[derive(Clone, Debug)]
struct Asking {
    user: Option<&'static str>,
    team: Option<&'static str>,
    pool: Option<usize>,
    fallback: Fallback,
}

fn given() -> impl Strategy<Value = Given> {
    let seldom = || proptest::bool::weighted(0.15);
    (0..2_usize, 0..OWNERS.len(), 0..LISTS.len(), 0..3_u32, seldom(), seldom(), seldom(), any::<[bool; 2]>()).prop_map(
        |(provider, owner, list, priority, is_disabled, is_refused, is_bound_elsewhere, pools)| Given {
            provider,
            owner,
            list,
            priority,
            is_disabled,
            is_refused,
            is_bound_elsewhere,
            pools,
        },
    )
}

fn asking() -> impl Strategy<Value = Asking> {
    let user = prop_oneof![Just(None), Just(Some("ann")), Just(Some("bob")), Just(Some("red"))];
    let team = prop_oneof![Just(None), Just(Some("ann")), Just(Some("red")), Just(Some("blue"))];
    let pool = prop_oneof![2 => Just(None), 1 => Just(Some(0)), 1 => Just(Some(1))];
    let fallback = prop_oneof![Just(Fallback::System), Just(Fallback::None)];
    (user, team, pool, fallback).prop_map(|(user, team, pool, fallback)| Asking { user, team, pool, fallback })
}

/// The tier in which a key serves a caller; `None` when it does not. Said once more, and otherwise than in `select`.
fn tier(key: &Given, caller: &Asking) -> Option<u8> {
    let own = [caller.user.map(|user| format!("user:{user}")), caller.team.map(|team| format!("team:{team}"))];
    let owner = OWNERS[key.owner];
    let tier = match own.iter().position(|own| own.as_deref() == Some(owner)) {
        Some(0) => 0,
        Some(_) => 1,
        None if owner == "system" => 2,
        None => return None,
    };
    let first = if caller.user.is_some() { 0 } else { 2 - u8::from(caller.team.is_some()) };
    let allowed = caller.fallback == Fallback::System || tier == first;
    (allowed && caller.pool.is_none_or(|pool| key.pools[pool])).then_some(tier)
}

fn id(n: usize) -> KeyId {
    KeyId::from_bytes((n as u64 + 1).to_be_bytes())
}

fn record(n: usize, key: &Given, registry: &Registry) -> ProviderKey {
    let upstream = registry.lookup(PROVIDERS[key.provider]).unwrap();
    let status = if key.is_disabled { Status::Disabled } else { Status::Active };
    let bound_to = if key.is_bound_elsewhere { "https://other.example:443" } else { upstream.origin() };
    ProviderKey {
        id: id(n),
        provider: upstream.id.to_string(),
        name: format!("k{n}"),
        owner: OWNERS[key.owner].parse::<Owner>().unwrap(),
        standing: Standing { status, ..Standing::default() },
        origin: Origin::Sealed,
        masked: String::new(),
        bound_to: bound_to.to_owned(),
        models: LISTS[key.list].0.iter().map(|glob| (*glob).to_owned()).collect(),
        priority: key.priority,
        weight: 1,
        policy: Policy::default(),
        replaced: None,
        created_ms: 0,
        version: 0,
    }
}

fn virtual_key(n: usize, caller: &Asking) -> VirtualKey {
    let text = json_of(n, caller);
    serde_json::from_value(text).unwrap()
}

fn json_of(n: usize, caller: &Asking) -> serde_json::Value {
    let digest = DigestKey::from_bytes([1; 32]).digest("key");
    serde_json::json!({
        "id": id(1_000 + n),
        "name": format!("v{n}"),
        "digest": digest,
        "prefix": "sk-side",
        "user": caller.user,
        "team": caller.team,
        "pool": caller.pool.map(|pool| format!("p{pool}")),
        "fallback": caller.fallback,
        "created_ms": 0,
    })
}

fn open(dir: &std::path::Path, clock: &Clock) -> Store {
    Store::open(StoreOptions {
        dir: dir.to_owned(),
        create: true,
        master: MasterKeyInputs::default(),
        environment_keys: Vec::new(),
        prices: Arc::default(),
        section: StoreSection::default(),
        unusual: Default::default(),
        clock: clock.clone(),
        metrics: Metrics::default(),
    })
    .unwrap()
}

async fn fill(store: &Store, registry: &Registry, keys: &[Given], callers: &[Asking], policy: PoolPolicy) {
    let made = keys.iter().enumerate().map(|(n, key)| {
        store.create_provider_key(record(n, key, registry), Some(Secret::new(format!("sk-secret-of-{n}"))))
    });
    join_all(made).await.into_iter().for_each(|made| drop(made.unwrap()));
    let pools = (0..2).map(|pool| {
        let members = keys.iter().enumerate().filter(|(_, key)| key.pools[pool]).map(|(n, _)| id(n));
        store.put_named(Pool { name: format!("p{pool}"), keys: members.collect(), policy, sticky: false }, None)
    });
    join_all(pools).await.into_iter().for_each(|put| drop(put.unwrap()));
    let made = callers.iter().enumerate().map(|(n, caller)| store.create_virtual_key(virtual_key(n, caller)));
    join_all(made).await.into_iter().for_each(|made| drop(made.unwrap()));
    for (n, _) in keys.iter().enumerate().filter(|(_, key)| key.is_refused) {
        let key = store.snapshot().provider_key(id(n)).cloned().unwrap();
        let _told = key.stats.health.struck(Blow::Refused, None, "401", 0, 0);
    }
}

/// Everything that is tried for a request, in order.
fn tried(store: &Store, registry: &Registry, caller: usize, provider: usize, model: usize, at: Moment) -> Vec<usize> {
    let key = store.snapshot().virtual_key(id(1_000 + caller)).cloned().unwrap();
    let digest = key.record.digest;
    let upstream = Arc::clone(registry.lookup(PROVIDERS[provider]).unwrap());
    let need = (Consumption::tokens(1, 1), at.wall_ms);
    let mut choice = Choice::new(upstream, &Caller::Known(key, digest), Some(MODELS[model]), need, 7);
    let mut tried = Vec::new();
    while let Some((candidate, _)) = choice.next(store, at.now) {
        let Candidate::Key(attempt) = candidate else { panic!("without a key of ours") };
        let n = usize::try_from(u64::from_be_bytes(*attempt.key.record.id.as_bytes()) - 1).unwrap();
        assert_eq!(attempt.secret.expose(), format!("sk-secret-of-{n}"), "another key's secret");
        tried.push(n);
    }
    tried
}

#[test]
fn nobody_pays_with_a_key_of_others() {
    let registry = Registry::build(&BTreeMap::new(), None).unwrap();
    let clock = Clock::manual(1_700_000_000_000);
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let cases = ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() };
    let policies = proptest::sample::select(PoolPolicy::ALL.to_vec());
    let strategy = (proptest::collection::vec(given(), 1..14), proptest::collection::vec(asking(), 1..8), policies);
    let chosen = AtomicUsize::new(0);
    let run = TestRunner::new(cases).run(&strategy, |(keys, callers, policy)| {
        let dir = tempfile::tempdir().unwrap();
        let store = open(dir.path(), &clock);
        runtime.block_on(fill(&store, &registry, &keys, &callers, policy));
        let at = Moment::of(&clock);
        for (c, caller) in callers.iter().enumerate() {
            for (provider, model) in (0..PROVIDERS.len()).flat_map(|p| (0..MODELS.len()).map(move |m| (p, m))) {
                let order = |n: &usize| (tier(&keys[*n], caller), keys[*n].priority);
                let usable = |n: &usize| {
                    let key = &keys[*n];
                    let out = key.is_disabled || key.is_refused || key.is_bound_elsewhere;
                    key.provider == provider && !out && LISTS[key.list].1[model] && tier(key, caller).is_some()
                };
                let got = tried(&store, &registry, c, provider, model, at);
                let others = got.iter().find(|n| !usable(n));
                prop_assert_eq!(others, None, "{:?} of {:?} for {:?}", got, keys, caller);
                prop_assert!(got.is_sorted_by_key(order), "{:?} of {:?} for {:?}", got, keys, caller);
                let mut all = got.clone();
                all.sort_unstable();
                prop_assert_eq!(all, (0..keys.len()).filter(usable).collect::<Vec<_>>(), "each once");
                chosen.fetch_add(got.len(), Ordering::Relaxed);
            }
        }
        store.close();
        Ok(())
    });
    run.unwrap();
    let chosen = chosen.into_inner();
    assert!(chosen > 400, "hardly a key was chosen: {chosen}");
}
