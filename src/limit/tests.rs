//! What a key's limits promise together: all or nothing, settled once, nothing leaked, remembered.

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use proptest::prelude::*;

use super::*;

const NOW: Nanos = 1_000;
const MINUTE: u64 = 60_000_000_000;
const WALL: u64 = 1_700_000_000_000;

fn limits(rpm: Option<u64>, tpm: Option<u64>, max_in_flight: Option<u64>) -> Limits {
    Limits { rpm, tpm, max_in_flight }
}

fn key(rpm: Option<u64>, tpm: Option<u64>, max_in_flight: Option<u64>) -> Arc<KeyLimits> {
    Arc::new(KeyLimits::new(&limits(rpm, tpm, max_in_flight)))
}

#[test]
fn without_limits_everything_passes_and_nothing_is_said() {
    let key = key(None, None, None);
    let permits: Vec<_> = (0..1_000).map(|_| key.reserve(NOW, u64::MAX / 2_000).unwrap()).collect();
    assert_eq!((key.in_flight(), key.remaining(NOW), key.share_used(NOW)), (1_000, RateHeaders::default(), 0.0));
    drop(permits);
    assert_eq!((key.in_flight(), key.export(NOW, WALL)), (0, SavedLimits::default()));
}

#[test]
fn each_limit_refuses_in_its_own_words() {
    let second = Some(Duration::from_secs(1));
    let cases = [
        ("rpm", limits(Some(2), None, None), 2, 1, (Kind::Rpm, 2, 2, 2, 1, Some(Duration::from_secs(30)))),
        ("tpm", limits(None, Some(60), None), 1, 40, (Kind::Tpm, 60, 40, 40, 40, Some(Duration::from_secs(20)))),
        ("too much", limits(None, Some(60), None), 0, 61, (Kind::Tpm, 60, 0, 0, 61, None)),
        ("in flight", limits(None, None, Some(3)), 3, 1, (Kind::InFlight, 3, 3, 3, 1, second)),
        ("closed", limits(Some(0), None, None), 0, 1, (Kind::Rpm, 0, 0, 0, 1, None)),
        ("none at a time", limits(None, None, Some(0)), 0, 1, (Kind::InFlight, 0, 0, 0, 1, None)),
        ("longest wait", limits(Some(1), None, Some(1)), 1, 1, (Kind::Rpm, 1, 1, 1, 1, Some(Duration::from_secs(60)))),
    ];
    for (name, limits, before, tokens, (limit, value, used, reserved, needed, retry_after)) in cases {
        let key = Arc::new(KeyLimits::new(&limits));
        let _open: Vec<_> = (0..before).map(|_| key.reserve(NOW, tokens).unwrap()).collect();
        let refused = key.reserve(NOW, tokens).unwrap_err();
        assert_eq!(refused, Refused { limit, value, used, reserved, needed, retry_after }, "{name}");
    }
}

#[test]
fn what_can_never_pass_is_said_first() {
    let key = key(Some(1), Some(5), Some(1));
    let _open = key.reserve(NOW, 5).unwrap();
    let refused = key.reserve(NOW, 6).unwrap_err();
    assert_eq!((refused.limit, refused.needed, refused.retry_after), (Kind::Tpm, 6, None));
}

#[test]
fn a_refusal_gives_back_what_it_took() {
    let key = key(Some(10), Some(100), Some(10));
    let _half = key.reserve(NOW, 60).unwrap();
    let before = (key.in_flight(), key.remaining(NOW));
    for _ in 0..100 {
        assert_eq!(key.reserve(NOW, 60).unwrap_err().limit, Kind::Tpm);
    }
    assert_eq!((key.in_flight(), key.remaining(NOW)), before);
}

#[test]
fn headers_count_down_and_come_back() {
    let key = key(Some(60), Some(6_000), None);
    let permit = key.reserve(NOW, 1_000).unwrap();
    let want = |rpm, tpm| RateHeaders {
        limit_rpm: Some(60),
        remaining_rpm: Some(rpm),
        limit_tpm: Some(6_000),
        remaining_tpm: Some(tpm),
    };
    assert_eq!(key.remaining(NOW), want(59, 5_000));
    permit.settle(NOW, 100);
    assert_eq!(key.remaining(NOW), want(59, 5_900));
    key.reserve(NOW, 1_000).unwrap().refund();
    assert_eq!(key.remaining(NOW), want(59, 5_900));
    key.reserve(NOW, 1_000).unwrap().settle(NOW, 9_000);
    assert_eq!(key.remaining(NOW), want(58, 0));
    assert_eq!(key.remaining(NOW + MINUTE), want(60, 2_900));
    assert!(key.share_used(NOW) > 1.5);
}

#[test]
fn tokenless_requests_pass_a_debt() {
    let key = key(None, Some(10), None);
    key.reserve(NOW, 10).unwrap().settle(NOW, 50);
    assert!(key.reserve(NOW, 1).is_err());
    assert!(key.reserve(NOW, 0).is_ok());
}

#[test]
fn a_permit_that_is_lost_keeps_its_charge() {
    for (name, end, want) in [
        ("kept", (|_| ()) as fn(&mut Permit), 40),
        ("charged", |permit| permit.charge(NOW, 25), 75),
        ("the last charge counts", |permit| [90, 10].into_iter().for_each(|n| permit.charge(NOW, n)), 90),
        ("more than reserved", |permit| permit.charge(NOW, 70), 30),
    ] {
        let key = key(None, Some(100), Some(1));
        let mut permit = key.reserve(NOW, 60).unwrap();
        assert_eq!((permit.reserved(), permit.limits().in_flight()), (60, 1));
        end(&mut permit);
        drop(permit);
        assert_eq!((key.remaining(NOW).remaining_tpm, key.in_flight()), (Some(want), 0), "{name}");
    }
}

#[test]
fn a_panic_in_a_request_leaks_nothing() {
    let key = key(None, None, Some(1));
    let shared = Arc::clone(&key);
    let died = thread::spawn(move || {
        let _permit = shared.reserve(NOW, 1);
        panic!("a bug somewhere");
    });
    assert!(died.join().is_err());
    assert_eq!(key.in_flight(), 0);
}

#[test]
fn a_new_limit_keeps_what_is_used() {
    let key = key(Some(60), Some(1_000), None);
    let permit = key.reserve(NOW, 500).unwrap();
    key.configure(&limits(Some(120), Some(2_000), Some(1)));
    assert_eq!(key.remaining(NOW).remaining_tpm, Some(1_000));
    assert_eq!(key.reserve(NOW, 1).unwrap_err().limit, Kind::InFlight);
    permit.settle(NOW, 500);
    assert_eq!(key.remaining(NOW).remaining_tpm, Some(1_500));

    let permit = key.reserve(NOW, 500).unwrap();
    key.configure(&limits(None, None, None));
    permit.settle(NOW, 700);
    key.configure(&limits(None, Some(2_000), None));
    assert_eq!(key.remaining(NOW).remaining_tpm, Some(1_500));

    key.configure(&limits(None, None, None));
    let permit = key.reserve(NOW, 500).unwrap();
    key.configure(&limits(None, Some(2_000), None));
    permit.settle(NOW, 300);
    assert_eq!(key.remaining(NOW).remaining_tpm, Some(1_200));
}

#[test]
fn scopes_admit_together_or_not_at_all() {
    let (own, team) = (key(Some(10), None, None), key(Some(2), None, Some(9)));
    let _first = reserve_all([&own, &team], NOW, 5).unwrap();
    let second = reserve_all([&own, &team], NOW, 5).unwrap();
    let (index, refused) = reserve_all([&own, &team], NOW, 5).unwrap_err();
    assert_eq!((index, refused.limit, own.in_flight(), team.in_flight()), (1, Kind::Rpm, 2, 2));
    assert_eq!(own.remaining(NOW).remaining_rpm, Some(8));
    second.into_iter().for_each(Permit::refund);
    assert_eq!((own.remaining(NOW).remaining_rpm, team.in_flight()), (Some(9), 1));
}

#[test]
fn threads_admit_exactly_the_limit() {
    const EACH: usize = 5_000;
    for (name, key, want) in [
        ("rpm", key(Some(7_000), None, None), 7_000),
        ("tpm", key(None, Some(9_000), None), 3_000),
        ("both", key(Some(5_000), Some(12_000), None), 4_000),
        ("in flight", key(None, None, Some(1_234)), 1_234),
    ] {
        let work = || (0..EACH).filter_map(|_| key.reserve(NOW, 3).ok()).collect::<Vec<_>>();
        let permits: Vec<Permit> = thread::scope(|scope| {
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(work)).collect();
            threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
        });
        // Two limits at once: a request refused by the second holds the first for a moment, so that another may be
        // refused needlessly; never the other way round.
        assert!(permits.len() <= want && (name == "both" || permits.len() == want), "{name}: {}", permits.len());
        let admitted = permits.len() as u64;
        assert_eq!(key.in_flight(), admitted, "{name}");
        thread::scope(|scope| {
            let mut hands: [Vec<Permit>; 4] = Default::default();
            permits.into_iter().enumerate().for_each(|(i, permit)| hands[i % 4].push(permit));
            for hand in hands {
                scope.spawn(|| hand.into_iter().for_each(|permit| permit.settle(NOW, 1)));
            }
        });
        let RateHeaders { limit_rpm, remaining_rpm, limit_tpm, remaining_tpm } = key.remaining(NOW);
        assert_eq!((key.in_flight(), remaining_rpm), (0, limit_rpm.map(|limit| limit - admitted)), "{name}");
        assert_eq!(remaining_tpm, limit_tpm.map(|limit| limit - admitted), "{name}: settlements conserve");
    }
}

#[test]
fn a_restart_forgets_nothing_and_invents_nothing() {
    let config = limits(Some(60), Some(6_000), None);
    let before = Arc::new(KeyLimits::new(&config));
    before.reserve(NOW, 1_000).unwrap().settle(NOW, 9_000);
    let saved = before.export(NOW, WALL);
    let later = NOW + 20_000_000_000;
    let hour = 3_600_000;
    for (name, wall, used_rpm, used_tpm) in [
        ("at once", WALL, 1, 9_000),
        ("20 s later", WALL + 20_000, 0, 7_000),
        ("ten days later", WALL + 240 * hour, 0, 0),
        ("clock set back an hour", WALL - hour, 60, 66_000),
        ("clock lost", 0, 60, 66_000),
    ] {
        let after = Arc::new(KeyLimits::new(&config));
        // The new process counts from its own start.
        after.restore(&saved, 7, wall);
        let quota = after.quota.load();
        let used = |rate: &Option<Rate>| rate.as_ref().unwrap().used(7);
        assert_eq!((used(&quota.rpm), used(&quota.tpm)), (used_rpm, used_tpm), "{name}");
        after.restore(&SavedLimits::default(), 7, wall);
        let less = SavedLimits { rpm_until_ns: None, tpm_until_ns: Some(wall_ns(wall) + 1) };
        after.restore(&less, 7, wall);
        assert_eq!(used(&quota.tpm), used_tpm.max(1), "{name}: restoring never forgives");
    }
    assert_eq!(before.export(later + MINUTE * 2, WALL), SavedLimits::default());
    let text = serde_json::to_string(&saved).unwrap();
    assert_eq!(serde_json::from_str::<SavedLimits>(&text).unwrap(), saved);
}

#[derive(Clone, Debug)]
enum Op {
    Reserve(u64),
    Settle(usize, u64),
    Charge(usize, u64),
    Refund(usize),
    Drop(usize),
}

fn op() -> impl Strategy<Value = Op> {
    let (which, tokens) = (0..8_usize, 0..300_u64);
    prop_oneof![
        4 => tokens.clone().prop_map(Op::Reserve),
        2 => (which.clone(), tokens.clone()).prop_map(|(i, n)| Op::Settle(i, n)),
        1 => (which.clone(), tokens).prop_map(|(i, n)| Op::Charge(i, n)),
        1 => which.clone().prop_map(Op::Refund),
        1 => which.prop_map(Op::Drop),
    ]
}

/// What an open permit will cost when it ends now: (requests, tokens).
type Cost = (u64, u64);

proptest! {
    /// Standing time, any interleaving: what is used is the sum of what each request said at its end, once each.
    #[test]
    fn each_request_is_settled_once(ops in proptest::collection::vec(op(), 1..120)) {
        let key = key(Some(40), Some(1_000), Some(6));
        let mut open: Vec<(Permit, Cost)> = Vec::new();
        let (mut rpm, mut tpm) = (0, 0);
        for op in ops {
            let index = |i: usize, open: &[_]| (!open.is_empty()).then(|| i % open.len().max(1));
            match op {
                Op::Reserve(n) => {
                    let reserved: u64 = open.iter().map(|(permit, _)| permit.reserved()).sum();
                    let room = open.len() < 6 && rpm + (open.len() as u64) < 40 && (n == 0 || tpm + reserved + n <= 1_000);
                    match key.reserve(NOW, n) {
                        Ok(permit) => {
                            prop_assert!(room);
                            open.push((permit, (1, n)));
                        }
                        Err(refused) => {
                            prop_assert!(!room, "{}", refused);
                            prop_assert_eq!(refused.retry_after.is_none(), n > 1_000);
                        }
                    }
                }
                Op::Settle(i, n) => if let Some(i) = index(i, &open) {
                    open.swap_remove(i).0.settle(NOW, n);
                    (rpm, tpm) = (rpm + 1, tpm + n);
                },
                Op::Charge(i, n) => if let Some(i) = index(i, &open) {
                    open[i].0.charge(NOW, n);
                    open[i].1 = (1, n);
                },
                Op::Refund(i) => if let Some(i) = index(i, &open) {
                    open.swap_remove(i).0.refund();
                },
                Op::Drop(i) => if let Some(i) = index(i, &open) {
                    let (permit, cost) = open.swap_remove(i);
                    drop(permit);
                    (rpm, tpm) = (rpm + cost.0, tpm + cost.1);
                },
            }
            let held: u64 = open.iter().map(|(permit, _)| permit.reserved()).sum();
            let now = key.remaining(NOW);
            prop_assert_eq!(key.in_flight(), open.len() as u64);
            prop_assert_eq!(key.reserved.load(Ordering::Relaxed), held);
            prop_assert_eq!(now.remaining_rpm, Some(40 - rpm - open.len() as u64));
            prop_assert_eq!(now.remaining_tpm, Some(1_000_u64.saturating_sub(tpm + held)));
        }
    }
}
