//! What the writer sees that an operator wants to be told: pools without a usable key, virtual keys that are used far more
//! than they ever were, and what could not be recorded.
//!
//! Owns the past of each key and when it is told; leaves telling to `event`. It sees entries as they are committed, so that no
//! request waits for it. The past is in memory: it begins anew with each start.

use std::collections::HashMap;

use crate::clock::Nanos;
use crate::entry::Entry;
use crate::event::{Events, Kind, Severity};
use crate::id::KeyId;
use crate::storage::Unusual;
use crate::storage::snapshot::Snapshot;

const MINUTE_MS: u64 = 60_000;
/// How much of the mean a minute is: what was an hour ago counts a third.
const WEIGHT: f64 = 1.0 / 60.0;
/// A key's past is judged by once it is this long, minutes.
const WARM: u64 = 30;
/// The same is told no sooner than after so many minutes.
const AGAIN: u64 = 60;
/// What is lost is told no sooner than after so long.
const LOST_AGAIN: Nanos = 60_000_000_000;
/// Names remembered at most.
const POOLS_MAX: usize = 256;
/// What requests are refused with when no provider key is usable.
const NO_KEY: &str = "no_provider_key";

/// See the module.
#[derive(Debug)]
pub(in crate::storage) struct Vigil {
    events: Events,
    unusual: Unusual,
    keys: HashMap<KeyId, Past>,
    /// The minute in which each was told to be empty.
    empty: HashMap<String, u64>,
    dropped: Lost,
    unaudited: Lost,
}

/// How much was lost, as far as it was told.
#[derive(Debug, Default)]
struct Lost {
    told: u64,
    again: Nanos,
}

impl Lost {
    /// What is to be told of a count that only grows: at once, and then once in a while.
    fn news(&mut self, count: u64, now: Nanos) -> Option<u64> {
        if count <= self.told || now < self.again {
            return None;
        }
        self.again = now.saturating_add(LOST_AGAIN);
        Some(count - std::mem::replace(&mut self.told, count))
    }
}

/// How a key was used so far.
#[derive(Debug)]
struct Past {
    since: u64,
    minute: u64,
    count: u64,
    /// Requests a minute, of the minutes before.
    mean: f64,
    told: Option<u64>,
}

impl Past {
    fn new(minute: u64) -> Self {
        Self { since: minute, minute, count: 0, mean: 0.0, told: None }
    }

    /// Counts a request of this minute. What comes late counts as of the present one.
    fn add(&mut self, minute: u64) {
        if minute > self.minute {
            // The first minutes weigh more, or the mean would long remember that it began with nothing.
            let weight = WEIGHT.max(1.0 / (self.minute - self.since + 1) as f64);
            self.mean += (self.count as f64 - self.mean) * weight;
            let idle = i32::try_from(minute - self.minute - 1).unwrap_or(i32::MAX);
            self.mean *= (1.0 - WEIGHT).powi(idle);
            (self.minute, self.count) = (minute, 0);
        }
        self.count += 1;
    }

    /// True when it is to be told, which it then was.
    fn is_unusual(&mut self, by: Unusual) -> bool {
        let most = (self.mean * f64::from(by.factor)).max(f64::from(by.floor));
        let warm = self.minute - self.since >= WARM;
        let told = self.told.is_some_and(|told| self.minute - told < AGAIN);
        if !warm || told || self.count as f64 <= most {
            return false;
        }
        self.told = Some(self.minute);
        true
    }
}

impl Vigil {
    pub(in crate::storage) fn new(events: Events, unusual: Unusual) -> Self {
        let (dropped, unaudited) = (Lost::default(), Lost::default());
        Self { events, unusual, keys: HashMap::new(), empty: HashMap::new(), dropped, unaudited }
    }

    /// Looks at how many entries were dropped, and how often the audit log could not be written, since the start.
    pub(super) fn look(&mut self, now: Nanos, dropped: u64, unaudited: u64) {
        if let Some(count) = self.dropped.news(dropped, now) {
            let text = format!("{count} requests were served and not recorded: the queue was full");
            self.events.emit(Kind::LedgerDropped, Severity::Error, "ledger", text);
        }
        if let Some(count) = self.unaudited.news(unaudited, now) {
            let text = format!("it could not be written, {count} times: what belongs in it is refused");
            self.events.emit(Kind::AuditFailed, Severity::Error, "audit log", text);
        }
    }

    /// Looks at an entry that was committed.
    pub(super) fn note(&mut self, entry: &Entry, snapshot: &Snapshot) {
        let minute = entry.time_ms / MINUTE_MS;
        if entry.error_code.as_deref() == Some(NO_KEY) {
            self.tell_empty(entry, snapshot, minute);
        }
        let Some(id) = entry.virtual_key.filter(|_| self.unusual.factor > 0) else { return };
        if self.keys.len() > 2 * snapshot.virtual_keys().len() + 64 {
            self.keys.retain(|id, _| snapshot.virtual_key(*id).is_some());
        }
        let past = self.keys.entry(id).or_insert_with(|| Past::new(minute));
        past.add(minute);
        if past.is_unusual(self.unusual) {
            let mean = past.mean;
            let message = format!("{} requests in this minute, and {mean:.1} a minute before", past.count);
            self.events.emit(Kind::KeyUnusual, Severity::Warning, format!("key {id}"), message);
        }
    }

    fn tell_empty(&mut self, entry: &Entry, snapshot: &Snapshot, minute: u64) {
        let bound = entry.virtual_key.and_then(|id| snapshot.virtual_key(id)?.record.pool.as_deref());
        let subject = match bound {
            Some(pool) => format!("pool {pool}"),
            None => format!("provider {}", entry.provider),
        };
        let told = self.empty.get(&subject).is_some_and(|told| minute.saturating_sub(*told) < AGAIN);
        if told || self.empty.len() >= POOLS_MAX && !self.empty.contains_key(&subject) {
            return;
        }
        self.empty.insert(subject.clone(), minute);
        let message = format!("no provider key of {} is usable: requests are refused", entry.provider);
        self.events.emit(Kind::PoolEmpty, Severity::Error, subject, message);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BY: Unusual = Unusual { factor: 10, floor: 60 };

    /// Adds `count` requests in each of `minutes`; says in which of them it was told.
    fn told(past: &mut Past, minutes: std::ops::Range<u64>, count: impl Fn(u64) -> u64) -> Vec<u64> {
        let mut told = Vec::new();
        for minute in minutes {
            for _ in 0..count(minute) {
                past.add(minute);
                if past.is_unusual(BY) {
                    told.push(minute);
                }
            }
        }
        told
    }

    #[test]
    fn only_what_is_unlike_its_own_past_is_told() {
        type Case = (&'static str, fn(u64) -> u64, &'static [u64]);
        let cases: [Case; 6] = [
            ("steady", |_| 100, &[]),
            ("a burst, and again while it goes on", |minute| if minute < 60 { 20 } else { 500 }, &[60]),
            ("below the floor", |minute| if minute == 60 { 60 } else { 1 }, &[]),
            ("over the floor, from almost nothing", |minute| if minute == 60 { 61 } else { 1 }, &[60]),
            ("slow growth", |minute| 10 + minute * 2, &[]),
            ("before there is a past", |minute| if minute == 20 { 500 } else { 1 }, &[]),
        ];
        for (name, count, want) in cases {
            let mut past = Past::new(0);
            assert_eq!(told(&mut past, 0..110, count), want, "{name}");
        }
    }

    #[test]
    fn what_is_lost_is_told_at_once_and_then_now_and_again() {
        let mut lost = Lost::default();
        for (second, count, want) in [
            (1, 0, None),
            (2, 3, Some(3)),
            (3, 9, None),
            (61, 9, None),
            (62, 9, Some(6)),
            (200, 9, None),
            (201, 10, Some(1)),
        ] {
            assert_eq!(lost.news(count, second * 1_000_000_000), want, "after {second} s");
        }
    }

    #[test]
    fn silence_is_part_of_the_past() {
        let mut past = Past::new(0);
        told(&mut past, 0..60, |_| 50);
        let before = past.mean;
        assert!((45.0..=50.0).contains(&before), "{before}");
        past.add(60 + 600);
        assert!(past.mean < 0.01, "{}", past.mean);
    }
}
