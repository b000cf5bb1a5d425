//! [`Health`]: what a provider key goes through while it is used: the status machine, the circuit breaker, its turns.
//!
//! Owns when a key may be used again; leaves what an answer means to `provider`, choosing to `pool`, and keeping the
//! status over a restart to `storage`.
//!
//! | state | ends |
//! |---|---|
//! | active | |
//! | cooling (too many requests, or the breaker is open) | at its time |
//! | exhausted (money or the day's tokens gone) | at its reset, where one is known, else by hand |
//! | error (not accepted) | by a test, or by hand |
//!
//! `disabled` is not in here: it is the operator's, and stands in the record.
//!
//! # The circuit breaker
//! [`OPENS_AFTER`] faults in a row open it: the key rests, for twice as long each time. Then one request alone may try
//! it, the probe; the others come back once that has succeeded. It is the key's own: with another key, or at another
//! provider, the same fault may not be there.
//!
//! # What is read when
//! Choosing reads atomics only, and in one place. What is shown, and what decides a change, lies behind a lock that a
//! request takes only when something went wrong, or has come right again.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{ProviderKey, Status};
use crate::clock::Nanos;
use crate::provider_key::learned::Learned;

/// Faults in a row that open the breaker.
pub const OPENS_AFTER: u32 = 5;
/// Refusals in a row after which a key that may not do what it is used for is not accepted.
pub const FORBIDDEN_MAX: u32 = 3;
/// The first rest of an open breaker.
const OPEN_FIRST: Duration = Duration::from_secs(5);
const OPEN_MAX: Duration = Duration::from_secs(120);
/// The first rest after a 429 that does not say for how long.
const COOL_FIRST: Duration = Duration::from_secs(1);
const COOL_MAX: Duration = Duration::from_secs(60);
/// The least rest: a wait of nothing would have every request try again at once.
const COOL_MIN: Duration = Duration::from_millis(100);
/// A probe that is out for longer is given up, and another may go.
const PROBE_PATIENCE: Duration = Duration::from_secs(30);
/// For how long a fault weighs when keys are compared.
const SUSPECT: Duration = Duration::from_secs(30);
/// A rest that is shorter is not worth a write: it is over before the program could be back.
const KEPT_FROM: Duration = Duration::from_secs(10);

const FOR_GOOD: Nanos = Nanos::MAX;
/// The breaker is closed: no probe is needed.
const CLOSED: u64 = 0;
/// It is open, or half open: the next one to try is the probe. Above it stands when the present probe went out.
const PROBE_WANTED: u64 = 1;

/// What happened to a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blow {
    /// Too many requests.
    Cool,
    /// Money or tokens gone.
    Exhausted,
    /// A fault of the provider, or of the way to it.
    Fault,
    /// It may not do this.
    Forbidden,
    /// It is not accepted.
    Refused,
}

/// A change of a key's state, to be told and kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// What it is now.
    pub standing: Standing,
    /// What it was.
    pub before: Status,
    /// False when a rest was only made longer.
    pub fresh: bool,
    /// True when a restart must not forget it.
    pub kept: bool,
}

/// A key's state as it is shown and kept.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Standing {
    /// The state.
    pub status: Status,
    /// Wall time, milliseconds, at which it ends by itself.
    pub until_ms: Option<u64>,
    /// Wall time, milliseconds, at which it began.
    pub since_ms: Option<u64>,
    /// What the last blow was; a status and a code, never a provider's text.
    pub last_error: Option<String>,
    /// Blows since the last success.
    pub failures: u32,
}

/// What cannot be told from the atomics.
#[derive(Debug, Default)]
struct Cold {
    standing: Standing,
    /// In a row: blows of one kind each.
    faults: u32,
    forbidden: u32,
    /// Rests after a 429 since the last success; each is twice as long.
    cools: u32,
    /// Times the breaker opened since the last success.
    opens: u32,
}

/// See the module. What choosing reads stands first, in one line of the processor's cache.
#[derive(Debug, Default)]
#[repr(C, align(64))]
pub struct Health {
    rests_until: AtomicU64,
    probe: AtomicU64,
    suspect_until: AtomicU64,
    /// When it was chosen last: the higher the later.
    turn: AtomicU64,
    /// How far its weight has moved it.
    pass: AtomicU64,
    failures: AtomicU32,
    in_flight: AtomicU32,
    /// Something is to be cleared by the next success.
    troubled: AtomicBool,
    /// What the provider said is left.
    pub learned: Learned,
    cold: Mutex<Cold>,
}

impl Health {
    /// True when a request may be sent with the key now.
    #[must_use]
    pub fn is_usable(&self, now: Nanos) -> bool {
        if self.rests_until.load(Ordering::Relaxed) > now {
            return false;
        }
        match self.probe.load(Ordering::Relaxed) {
            CLOSED | PROBE_WANTED => true,
            out_since => now.saturating_sub(out_since) > nanos(PROBE_PATIENCE),
        }
    }

    /// When it may be used again, if that comes by itself.
    #[must_use]
    pub fn rests_until(&self, now: Nanos) -> Option<Nanos> {
        match self.rests_until.load(Ordering::Relaxed) {
            FOR_GOOD => None,
            // A probe is out: nobody knows for how long.
            until => Some(until.max(now)),
        }
    }

    /// Faults that still weigh against it.
    #[must_use]
    pub fn failures(&self, now: Nanos) -> u32 {
        if self.suspect_until.load(Ordering::Relaxed) > now { self.failures.load(Ordering::Relaxed) } else { 0 }
    }

    /// Requests open with it.
    #[must_use]
    pub fn in_flight(&self) -> u32 {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// Counts a request in. With `Some(true)` it is the probe; `None` when another is out, and the key is not to be
    /// used after all. [`Health::leave`] ends it.
    #[must_use]
    pub fn enter(&self, now: Nanos) -> Option<bool> {
        let probe = match self.probe.load(Ordering::Relaxed) {
            CLOSED => false,
            seen => {
                let free = seen == PROBE_WANTED || now.saturating_sub(seen) > nanos(PROBE_PATIENCE);
                let mine =
                    free && self.probe.compare_exchange(seen, now.max(2), Ordering::Relaxed, Ordering::Relaxed).is_ok();
                if !mine {
                    return None;
                }
                true
            }
        };
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        Some(probe)
    }

    /// Counts a request out; a probe that learned nothing makes room for the next one.
    pub fn leave(&self, probe: bool) {
        self.in_flight.fetch_sub(1, Ordering::Relaxed);
        if probe && self.probe.load(Ordering::Relaxed) > PROBE_WANTED {
            self.probe.store(PROBE_WANTED, Ordering::Relaxed);
        }
    }

    /// Where it stands among others: when it was chosen last, and how far its weight has moved it.
    pub(crate) fn turns(&self) -> (u64, u64) {
        (self.turn.load(Ordering::Relaxed), self.pass.load(Ordering::Relaxed))
    }

    pub(crate) fn take_turn(&self, turn: u64, pass: u64) {
        self.turn.store(turn, Ordering::Relaxed);
        self.pass.store(pass, Ordering::Relaxed);
    }

    /// The provider took the key. A key that rests goes on resting: the answer is of a request from before.
    pub fn succeeded(&self, now: Nanos, wall_ms: u64) -> Option<Change> {
        if !self.troubled.load(Ordering::Relaxed) || self.rests_until.load(Ordering::Relaxed) > now {
            return None;
        }
        let mut cold = self.cold();
        self.troubled.store(false, Ordering::Relaxed);
        self.probe.store(CLOSED, Ordering::Relaxed);
        self.failures.store(0, Ordering::Relaxed);
        self.suspect_until.store(0, Ordering::Relaxed);
        (cold.faults, cold.forbidden, cold.cools, cold.opens) = (0, 0, 0, 0);
        let before = cold.standing.status;
        if before == Status::Active {
            return None;
        }
        // What was too short to be kept needs no taking back.
        let rested = cold.standing.until_ms.unwrap_or(0).saturating_sub(cold.standing.since_ms.unwrap_or(0));
        let kept = before != Status::Cooling || rested >= ms(KEPT_FROM);
        cold.standing = Standing { since_ms: Some(wall_ms), ..Standing::default() };
        Some(Change { standing: cold.standing.clone(), before, fresh: true, kept })
    }

    /// Something went wrong. `wait` is what the provider asks for, `reason` what is shown: never its text.
    pub fn struck(&self, blow: Blow, wait: Option<Duration>, reason: &str, now: Nanos, wall_ms: u64) -> Option<Change> {
        let mut cold = self.cold();
        self.troubled.store(true, Ordering::Relaxed);
        let failures = self.failures.load(Ordering::Relaxed).saturating_add(1);
        self.failures.store(failures, Ordering::Relaxed);
        self.suspect_until.store(now.saturating_add(nanos(SUSPECT)), Ordering::Relaxed);
        cold.standing.failures = failures;
        let resting = self.rests_until.load(Ordering::Relaxed);
        if resting == FOR_GOOD {
            return None;
        }
        cold.standing.last_error = Some(reason.to_owned());
        match blow {
            Blow::Refused => self.rest(&mut cold, Status::Error, None, now, wall_ms),
            Blow::Forbidden => {
                cold.forbidden += 1;
                let often = cold.forbidden >= FORBIDDEN_MAX;
                if often { self.rest(&mut cold, Status::Error, None, now, wall_ms) } else { None }
            }
            Blow::Exhausted => self.rest(&mut cold, Status::Exhausted, wait, now, wall_ms),
            Blow::Cool => {
                // Of several answers that were on their way together, the first counts.
                cold.cools += u32::from(resting <= now);
                let wait = wait.map_or_else(|| doubled(COOL_FIRST, cold.cools, COOL_MAX), |wait| wait.max(COOL_MIN));
                self.rest(&mut cold, Status::Cooling, Some(wait), now, wall_ms)
            }
            Blow::Fault => {
                cold.faults += 1;
                let probing = self.probe.load(Ordering::Relaxed) != CLOSED;
                if resting <= now && (probing || cold.faults >= OPENS_AFTER) {
                    cold.opens += 1;
                    self.probe.store(PROBE_WANTED, Ordering::Relaxed);
                    let pause = doubled(OPEN_FIRST, cold.opens, OPEN_MAX).max(wait.unwrap_or_default());
                    return self.rest(&mut cold, Status::Cooling, Some(pause), now, wall_ms);
                }
                let wait = wait.filter(|wait| !wait.is_zero())?;
                self.rest(&mut cold, Status::Cooling, Some(wait), now, wall_ms)
            }
        }
    }

    /// Puts the key to rest, unless it rests for longer already.
    fn rest(
        &self,
        cold: &mut Cold,
        status: Status,
        wait: Option<Duration>,
        now: Nanos,
        wall_ms: u64,
    ) -> Option<Change> {
        let until = wait.map_or(FOR_GOOD, |wait| now.saturating_add(nanos(wait)).min(FOR_GOOD - 1));
        let resting = self.rests_until.load(Ordering::Relaxed);
        if until <= resting {
            return None;
        }
        self.rests_until.store(until, Ordering::Relaxed);
        let before = cold.standing.status;
        let goes_on = before == status && resting > now;
        let standing = &mut cold.standing;
        standing.status = status;
        standing.until_ms = wait.map(|wait| wall_ms.saturating_add(ms(wait)));
        if !goes_on {
            standing.since_ms = Some(wall_ms);
        }
        let kept = wait.is_none_or(|wait| wait >= KEPT_FROM);
        let fresh = !goes_on;
        (fresh || kept).then(|| Change { standing: standing.clone(), before, fresh, kept })
    }

    /// Forgets everything bad: the key was switched on, tested, or is another one now.
    pub fn clear(&self) {
        let mut cold = self.cold();
        *cold = Cold::default();
        self.rests_until.store(0, Ordering::Relaxed);
        self.probe.store(CLOSED, Ordering::Relaxed);
        self.failures.store(0, Ordering::Relaxed);
        self.suspect_until.store(0, Ordering::Relaxed);
        self.troubled.store(false, Ordering::Relaxed);
        self.learned.clear();
    }

    /// Takes up what a record says, as the program starts.
    pub fn resume(&self, record: &ProviderKey, now: Nanos, wall_ms: u64) {
        let standing = &record.standing;
        let left = standing.until_ms.map(|until| until.saturating_sub(wall_ms));
        let rests = match (standing.status, left) {
            (Status::Active | Status::Disabled, _) | (_, Some(0)) => return,
            (Status::Cooling, None) => return,
            (Status::Cooling | Status::Error | Status::Exhausted, Some(left)) => {
                now.saturating_add(left.saturating_mul(1_000_000))
            }
            (Status::Error | Status::Exhausted, None) => FOR_GOOD,
        };
        self.cold().standing = standing.clone();
        self.failures.store(standing.failures, Ordering::Relaxed);
        self.troubled.store(true, Ordering::Relaxed);
        self.rests_until.store(rests, Ordering::Relaxed);
    }

    /// The state as it is at `now`: a rest that is over is none.
    #[must_use]
    pub fn standing(&self, now: Nanos) -> Standing {
        let cold = self.cold();
        let mut standing = cold.standing.clone();
        standing.failures = self.failures.load(Ordering::Relaxed);
        if self.rests_until.load(Ordering::Relaxed) <= now {
            (standing.status, standing.until_ms) = (Status::Active, None);
        }
        standing
    }

    fn cold(&self) -> std::sync::MutexGuard<'_, Cold> {
        // Nothing panics while it is held, so a poisoned one is as good as any.
        self.cold.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The `n`th of rests that double, from the first on.
fn doubled(first: Duration, n: u32, most: Duration) -> Duration {
    first.saturating_mul(1_u32.checked_shl(n.saturating_sub(1)).unwrap_or(u32::MAX)).min(most)
}

fn nanos(time: Duration) -> Nanos {
    Nanos::try_from(time.as_nanos()).unwrap_or(Nanos::MAX)
}

fn ms(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Nanos = 1_000_000_000;
    const WALL: u64 = 1_700_000_000_000;
    const SECOND: Nanos = 1_000_000_000;

    fn status(health: &Health, after_s: u64) -> Status {
        health.standing(NOW + after_s * SECOND).status
    }

    #[test]
    fn what_each_blow_does() {
        let seconds = Duration::from_secs;
        for (name, blows, want, usable_after) in [
            ("refused", &[(Blow::Refused, None)][..], Status::Error, None),
            ("forbidden once", &[(Blow::Forbidden, None)], Status::Active, Some(0)),
            ("forbidden three times", &[(Blow::Forbidden, None); 3], Status::Error, None),
            ("money gone", &[(Blow::Exhausted, None)], Status::Exhausted, None),
            ("until its reset", &[(Blow::Exhausted, Some(seconds(3600)))], Status::Exhausted, Some(3600)),
            ("too many", &[(Blow::Cool, Some(seconds(20)))], Status::Cooling, Some(20)),
            ("too many, unsaid", &[(Blow::Cool, None)], Status::Cooling, Some(1)),
            ("a fault", &[(Blow::Fault, None)], Status::Active, Some(0)),
            ("a fault with its end", &[(Blow::Fault, Some(seconds(7)))], Status::Cooling, Some(7)),
            ("faults in a row", &[(Blow::Fault, None); 5], Status::Cooling, Some(5)),
            (
                "a rest is never made shorter",
                &[(Blow::Cool, Some(seconds(20))), (Blow::Cool, None)],
                Status::Cooling,
                Some(20),
            ),
            ("refused while it cools", &[(Blow::Cool, Some(seconds(20))), (Blow::Refused, None)], Status::Error, None),
            ("cool when money is gone", &[(Blow::Exhausted, None), (Blow::Cool, None)], Status::Exhausted, None),
        ] {
            let health = Health::default();
            for (blow, wait) in blows {
                let _ = health.struck(*blow, *wait, "said so", NOW, WALL);
            }
            assert_eq!(status(&health, 0), want, "{name}");
            assert_eq!(health.is_usable(NOW + 86_400 * SECOND), usable_after.is_some(), "{name}");
            if let Some(after) = usable_after {
                assert!(health.is_usable(NOW + after * SECOND), "{name}");
                assert_eq!(after == 0, health.is_usable(NOW), "{name}");
                assert_eq!(status(&health, after), Status::Active, "{name}");
            }
        }
    }

    #[test]
    fn rests_grow_until_it_succeeds() {
        let health = Health::default();
        let mut now = NOW;
        for want in [1, 2, 4, 8, 16, 32, 60, 60] {
            let change = health.struck(Blow::Cool, None, "429", now, WALL).expect("a change");
            assert_eq!(change.standing.until_ms, Some(WALL + want * 1_000));
            assert_eq!(change.kept, want >= 10);
            now += want * SECOND;
        }
        // Answers that were on their way together count once.
        let _ = health.struck(Blow::Cool, None, "429", now, WALL);
        assert_eq!(health.struck(Blow::Cool, None, "429", now, WALL), None);
        assert_eq!(health.succeeded(now, WALL), None, "an answer from before its rest");
        now += 60 * SECOND;
        assert_eq!(health.succeeded(now, WALL).map(|change| change.standing.status), Some(Status::Active));
        assert_eq!(health.succeeded(now, WALL), None);
        let change = health.struck(Blow::Cool, None, "429", now, WALL).expect("a change");
        assert_eq!(change.standing.until_ms, Some(WALL + 1_000));
    }

    #[test]
    fn one_probe_at_a_time() {
        let health = Health::default();
        for _ in 0..OPENS_AFTER {
            assert_eq!(health.enter(NOW), Some(false));
            let _ = health.struck(Blow::Fault, None, "500", NOW, WALL);
            health.leave(false);
        }
        assert!(!health.is_usable(NOW));
        let later = NOW + 5 * SECOND;
        assert!(health.is_usable(later));
        assert_eq!(health.enter(later), Some(true));
        assert!(!health.is_usable(later), "the probe is out");
        assert_eq!(health.enter(later), None);
        // One that learns nothing makes room for the next.
        health.leave(true);
        assert_eq!(health.enter(later), Some(true));
        // One that fails doubles the rest.
        let _ = health.struck(Blow::Fault, None, "500", later, WALL);
        health.leave(true);
        assert!(!health.is_usable(later + 9 * SECOND) && health.is_usable(later + 10 * SECOND));
        let last = later + 10 * SECOND;
        assert_eq!(health.enter(last), Some(true));
        assert!(health.succeeded(last, WALL).is_some());
        assert_eq!((health.enter(last), health.enter(last)), (Some(false), Some(false)), "closed again");
        health.leave(true);
        assert_eq!((health.in_flight(), health.is_usable(last)), (2, true));
    }

    #[test]
    fn a_probe_that_never_comes_back_is_given_up() {
        let health = Health::default();
        (0..OPENS_AFTER).for_each(|_| drop(health.struck(Blow::Fault, None, "500", NOW, WALL)));
        let later = NOW + 5 * SECOND;
        assert_eq!(health.enter(later), Some(true));
        assert!(!health.is_usable(later + 29 * SECOND) && health.is_usable(later + 31 * SECOND));
        assert_eq!(health.enter(later + 31 * SECOND), Some(true));
    }

    #[test]
    fn it_is_taken_up_as_it_was_left() {
        let mut record = ProviderKey {
            id: crate::id::KeyId::from_bytes([1; 8]),
            provider: "openai".to_owned(),
            name: "main".to_owned(),
            owner: crate::id::Owner::System,
            origin: crate::provider_key::Origin::Sealed,
            standing: Standing::default(),
            masked: String::new(),
            bound_to: String::new(),
            models: Vec::new(),
            priority: 0,
            weight: 1,
            policy: Default::default(),
            replaced: None,
            created_ms: 0,
            version: 1,
        };
        for (status, until, usable, after) in [
            (Status::Active, None, true, true),
            (Status::Disabled, None, true, true),
            (Status::Error, None, false, false),
            (Status::Exhausted, None, false, false),
            (Status::Exhausted, Some(WALL + 5_000), false, true),
            (Status::Cooling, Some(WALL + 5_000), false, true),
            (Status::Cooling, Some(WALL - 1), true, true),
        ] {
            record.standing = Standing { status, until_ms: until, failures: 3, ..Standing::default() };
            let health = Health::default();
            health.resume(&record, NOW, WALL);
            let got = (health.is_usable(NOW), health.is_usable(NOW + 5 * SECOND));
            assert_eq!(got, (usable, after), "{status:?} {until:?}");
            if !usable {
                assert_eq!((health.standing(NOW).status, health.standing(NOW).failures), (status, 3));
                health.clear();
                assert!(health.is_usable(NOW));
            }
        }
    }
}
