//! Telling receivers of events: in order, once for what repeats, and again for what did not arrive.
//!
//! Owns queues, repeats and retries; leaves one attempt to `alerts::hook`. Everything runs on the control plane's thread; who
//! emits an event never waits.
//!
//! Each receiver has a queue of its own, so one that is away delays nobody else. What the same kind says of the same subject,
//! as severely, within `alerts.repeat_after` is told once at once, and once more at the end of that time, with how often it was said and
//! the last of it.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use prometheus::{IntCounterVec, IntGauge, Opts};
use serde::Serialize;
use serde_json::json;
use tokio::sync::{Notify, broadcast::error::RecvError, watch};
use tokio::task::JoinSet;

use crate::clock::{Clock, Nanos, rfc3339};
use crate::event::{Event, Events, Kind, Severity};
use crate::id::RequestId;
use crate::metrics::Metrics;
use crate::net::dial::Dialer;
use crate::net::drain::Watch;

use super::hook::{Hook, Message, Unsent};
use super::section::{AlertsSection, WebhookSection};

/// Messages that wait for one receiver at most; of more, the oldest go.
const QUEUE_MAX: usize = 256;
/// Subjects whose repeats are counted at most; beyond, each is told.
const REPEATS_MAX: usize = 4096;
/// How long a message is tried.
const TRIED_FOR: Nanos = 3_600_000_000_000;
const BACKOFF_MIN: Duration = Duration::from_secs(1);
const BACKOFF_MAX: Duration = Duration::from_secs(60);

/// Those who are told of events. Cloning shares it.
#[derive(Clone, Default)]
pub struct Alerts(Option<Arc<Inner>>);

struct Inner {
    lanes: Vec<Lane>,
    instance: Option<String>,
    repeat_after: Nanos,
    events: Events,
    clock: Clock,
    families: Families,
}

/// One receiver, and what waits for it.
struct Lane {
    hook: Hook,
    queue: Mutex<Queue>,
    wake: Notify,
}

#[derive(Default)]
struct Queue {
    waiting: VecDeque<Arc<Message>>,
    repeats: HashMap<(Kind, Severity, String), Repeat>,
}

/// What was said again since it was told.
struct Repeat {
    /// When it is told next, if it was.
    ends: Nanos,
    count: u64,
    first_ms: u64,
    last: Option<Arc<Event>>,
}

struct Families {
    outcomes: IntCounterVec,
    queue: IntGauge,
}

/// How a test went.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema), schemars(rename = "AlertTested"))]
pub struct Tested {
    /// The receiver.
    pub webhook: String,
    /// True when it has arrived.
    pub ok: bool,
    /// What the receiver answered, when it did.
    pub status: Option<u16>,
    /// For people.
    pub detail: String,
    /// Milliseconds.
    pub latency_ms: u64,
}

impl fmt::Debug for Alerts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hooks = self.0.iter().flat_map(|inner| &inner.lanes).map(|lane| &lane.hook);
        f.debug_list().entries(hooks).finish()
    }
}

impl Families {
    fn register(metrics: &Metrics) -> Self {
        let opts = Opts::new("sidekey_alerts_total", "Messages to receivers of events, by what became of them.");
        let outcomes = IntCounterVec::new(opts, &["outcome"]).expect("the name and the label are valid");
        let queue = IntGauge::new("sidekey_alerts_queue", "Messages that wait for their receivers.");
        let families = Self {
            outcomes: metrics.register(outcomes),
            queue: metrics.register(queue.expect("the name is valid and there is no label")),
        };
        for outcome in ["sent", "failed", "dropped"] {
            families.outcomes.with_label_values(&[outcome]);
        }
        families
    }

    fn count(&self, outcome: &str) {
        self.outcomes.with_label_values(&[outcome]).inc();
    }
}

impl Alerts {
    /// The receivers of `section`; `env` are the variables.
    ///
    /// # Errors
    /// What is wrong with the first receiver that cannot be.
    pub fn new(
        section: &AlertsSection,
        env: &dyn Fn(&str) -> Option<String>,
        dialer: &Dialer,
        events: &Events,
        clock: &Clock,
        metrics: &Metrics,
    ) -> Result<Self, String> {
        let lane = |(name, section): (&String, &WebhookSection)| {
            let hook = Hook::new(name, section, env, dialer, clock)?;
            Ok(Lane { hook, queue: Mutex::default(), wake: Notify::new() })
        };
        let lanes = section.webhooks.iter().map(lane).collect::<Result<_, String>>()?;
        Ok(Self(Some(Arc::new(Inner {
            lanes,
            instance: section.instance.clone(),
            repeat_after: u64::try_from(section.repeat_after.as_nanos()).unwrap_or(Nanos::MAX),
            events: events.clone(),
            clock: clock.clone(),
            families: Families::register(metrics),
        }))))
    }

    /// Tells of events from now on, until `stop` is signalled; then of what waits, once more each.
    ///
    /// # Cancel safety
    /// Dropping it leaves untold what waits.
    pub async fn run(&self, mut stop: Watch) {
        let Some(inner) = self.0.as_ref().filter(|inner| !inner.lanes.is_empty()) else {
            return stop.signalled().await;
        };
        let mut live = inner.events.subscribe();
        let (close, closing) = watch::channel(false);
        let mut tasks = JoinSet::new();
        for at in 0..inner.lanes.len() {
            let (inner, closing) = (Arc::clone(inner), closing.clone());
            tasks.spawn(async move { inner.lanes[at].deliver(&inner, closing).await });
        }
        loop {
            tokio::select! {
                event = live.recv() => match event {
                    Ok(event) => inner.offer(&event),
                    Err(RecvError::Lagged(missed)) => {
                        tracing::error!(missed, "events came faster than they could be told");
                        inner.families.outcomes.with_label_values(&["dropped"]).inc_by(missed);
                    }
                    Err(RecvError::Closed) => break,
                },
                () = tokio::time::sleep(inner.until_next()) => inner.tell_repeats(false),
                () = stop.signalled() => break,
            }
        }
        while let Ok(event) = live.try_recv() {
            inner.offer(&event);
        }
        inner.tell_repeats(true);
        let _no_lane_left = close.send(true);
        while tasks.join_next().await.is_some() {}
    }

    /// Sends a message of no event to all receivers, or to the one of this name; `None` when there is none.
    pub async fn test(&self, name: Option<&str>) -> Option<Vec<Tested>> {
        let inner = self.0.as_ref()?;
        let mut results = Vec::new();
        for lane in inner.lanes.iter().filter(|lane| name.is_none_or(|name| lane.hook.name == name)) {
            let at = inner.clock.now();
            let wall_ms = inner.clock.wall_ms();
            let data = json!({
                "id": RequestId::new(wall_ms), "kind": "alert.test", "severity": "info", "subject": "sidekey",
                "message": "this is a test", "count": 1, "first": rfc3339(wall_ms), "last": rfc3339(wall_ms),
            });
            let sent = lane.hook.send(&inner.message(RequestId::new(wall_ms), "alert.test", wall_ms, data)).await;
            let latency_ms = inner.clock.now().saturating_sub(at) / 1_000_000;
            let (ok, status, detail) = match sent {
                Ok(status) => (true, Some(status), "it has arrived".to_owned()),
                Err(Unsent { status, detail, .. }) => (false, status, detail),
            };
            results.push(Tested { webhook: lane.hook.name.clone(), ok, status, detail, latency_ms });
        }
        (!results.is_empty()).then_some(results)
    }
}

impl Inner {
    fn offer(&self, event: &Arc<Event>) {
        for lane in self.lanes.iter().filter(|lane| lane.hook.wants(event.kind, event.severity)) {
            let now = self.clock.now();
            let mut queue = lane.lock();
            let subject = (event.kind, event.severity, event.subject.clone());
            if let Some(repeat) = queue.repeats.get_mut(&subject).filter(|repeat| now < repeat.ends) {
                if repeat.count == 0 {
                    repeat.first_ms = event.time;
                }
                repeat.count += 1;
                repeat.last = Some(Arc::clone(event));
                continue;
            }
            if queue.repeats.len() < REPEATS_MAX {
                queue.repeats.insert(subject, self.repeat(now));
            }
            self.push(lane, &mut queue, event, 1, event.time);
        }
    }

    fn repeat(&self, now: Nanos) -> Repeat {
        Repeat { ends: now.saturating_add(self.repeat_after), count: 0, first_ms: 0, last: None }
    }

    /// Tells what was said again, where its time is over; with `all`, whatever the time.
    fn tell_repeats(&self, all: bool) {
        let now = self.clock.now();
        for lane in &self.lanes {
            let mut queue = lane.lock();
            let over: Vec<_> = queue
                .repeats
                .iter()
                .filter(|(_, repeat)| all || repeat.ends <= now)
                .map(|(subject, _)| subject.clone())
                .collect();
            for subject in over {
                let Some(Repeat { count, first_ms, last: Some(event), .. }) = queue.repeats.remove(&subject) else {
                    continue;
                };
                queue.repeats.insert(subject, self.repeat(now));
                self.push(lane, &mut queue, &event, count, first_ms);
            }
        }
    }

    /// Until something that was said again may be told.
    fn until_next(&self) -> Duration {
        let ends =
            self.lanes.iter().filter_map(|lane| lane.lock().repeats.values().map(|repeat| repeat.ends).min()).min();
        let idle = Duration::from_secs(3600);
        ends.map_or(idle, |ends| Duration::from_nanos(ends.saturating_sub(self.clock.now()).max(1_000_000)).min(idle))
    }

    fn push(&self, lane: &Lane, queue: &mut Queue, event: &Event, count: u64, first_ms: u64) {
        let (first, last) = (rfc3339(first_ms), rfc3339(event.time));
        let mut data = json!(event);
        if let Some(data) = data.as_object_mut() {
            data.remove("time");
            data.extend([
                ("count".to_owned(), json!(count)),
                ("first".to_owned(), json!(first)),
                ("last".to_owned(), json!(last)),
            ]);
        }
        // What is told of one event once more is another message.
        let id = if count == 1 { event.id } else { RequestId::new(self.clock.wall_ms()) };
        queue.waiting.push_back(Arc::new(self.message(id, event.kind.as_str(), event.time, data)));
        self.families.queue.inc();
        if queue.waiting.len() > QUEUE_MAX {
            queue.waiting.pop_front();
            self.families.queue.dec();
            self.families.count("dropped");
            tracing::error!(webhook = lane.hook.name, "too many alerts wait for a receiver: the oldest is not sent");
        }
        lane.wake.notify_one();
    }

    fn message(&self, id: RequestId, kind: &str, wall_ms: u64, mut data: serde_json::Value) -> Message {
        if let Some(instance) = &self.instance {
            data["instance"] = json!(instance);
        }
        let body = json!({"type": kind, "timestamp": rfc3339(wall_ms), "data": data});
        Message { id: format!("msg_{id}"), body: Bytes::from(body.to_string()), since: self.clock.now() }
    }
}

impl Lane {
    /// No code panics while it holds this lock, so a poisoned one is as good as any.
    fn lock(&self) -> std::sync::MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends what waits, in order, until it is told to close; then once more each, up to the first that fails.
    async fn deliver(&self, inner: &Inner, mut closing: watch::Receiver<bool>) {
        let mut pause = BACKOFF_MIN;
        loop {
            let first = self.lock().waiting.front().cloned();
            let Some(message) = first else {
                if *closing.borrow() {
                    return;
                }
                tokio::select! {
                    () = self.wake.notified() => {}
                    _ = closing.changed() => {}
                }
                continue;
            };
            let is_last = *closing.borrow();
            match self.hook.send(&message).await {
                Ok(_) => {
                    pause = BACKOFF_MIN;
                    self.done(inner, &message, "sent");
                }
                Err(unsent) if is_last => {
                    let left = self.lock().waiting.len();
                    tracing::error!(webhook = self.hook.name, left, reason = unsent.detail, "alerts are not delivered");
                    inner.families.outcomes.with_label_values(&["failed"]).inc_by(left as u64);
                    return;
                }
                Err(Unsent { again: true, detail, .. })
                    if inner.clock.now().saturating_sub(message.since) < TRIED_FOR =>
                {
                    tracing::warn!(webhook = self.hook.name, reason = detail, "an alert is not delivered yet");
                    // Closing gives everything that waits its one attempt at once.
                    tokio::select! {
                        () = tokio::time::sleep(jittered(pause)) => {}
                        _ = closing.changed() => {}
                    }
                    pause = (pause * 2).min(BACKOFF_MAX);
                }
                Err(Unsent { detail, .. }) => {
                    tracing::error!(webhook = self.hook.name, reason = detail, "an alert is not delivered");
                    self.done(inner, &message, "failed");
                }
            }
        }
    }

    fn done(&self, inner: &Inner, message: &Arc<Message>, outcome: &str) {
        let mut queue = self.lock();
        // It may have been given up meanwhile, for want of room.
        if queue.waiting.front().is_some_and(|first| Arc::ptr_eq(first, message)) {
            queue.waiting.pop_front();
            inner.families.queue.dec();
            inner.families.count(outcome);
        }
    }
}

/// Half of it and up to as much again, so that many do not come back at once.
fn jittered(pause: Duration) -> Duration {
    let random = RequestId::new(0).random_bits();
    pause / 2 + pause.mul_f64((random >> 32) as f64 / f64::from(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::tls::TlsClient;

    fn alerts(metrics: &Metrics, clock: &Clock, hook: WebhookSection) -> (Arc<Inner>, Events) {
        let events = Events::new(clock.clone(), metrics);
        let section = AlertsSection { webhooks: [("ops".to_owned(), hook)].into(), ..AlertsSection::default() };
        let dialer = Dialer::from(TlsClient::new(None).unwrap());
        let env = |name: &str| (name == "HOOK").then(|| "secret".to_owned());
        let alerts = Alerts::new(&section, &env, &dialer, &events, clock, metrics).unwrap();
        (alerts.0.unwrap(), events)
    }

    fn hook() -> WebhookSection {
        WebhookSection { url: "https://a.example".into(), secret: "env:HOOK".into(), ..WebhookSection::default() }
    }

    fn say(inner: &Inner, events: &Events, kind: Kind, severity: Severity, subject: &str, message: &str) {
        events.emit(kind, severity, subject, message);
        inner.offer(&events.recent()[0]);
    }

    /// What waits: subject, message, count.
    fn waiting(inner: &Inner) -> Vec<(String, String, u64)> {
        let body = |message: &Arc<Message>| serde_json::from_slice::<serde_json::Value>(&message.body).unwrap();
        let told = |body: serde_json::Value| {
            let text = |field: &str| body["data"][field].as_str().unwrap().to_owned();
            (text("subject"), text("message"), body["data"]["count"].as_u64().unwrap())
        };
        inner.lanes[0].lock().waiting.iter().map(|message| told(body(message))).collect()
    }

    #[test]
    fn what_repeats_is_told_once_and_then_counted() {
        let (metrics, clock) = (Metrics::default(), Clock::manual(1_700_000_000_000));
        let (inner, events) = alerts(&metrics, &clock, hook());
        for n in 1..=4 {
            say(&inner, &events, Kind::BudgetThreshold, Severity::Warning, "team t1", &format!("{n}"));
        }
        say(&inner, &events, Kind::BudgetThreshold, Severity::Warning, "team t2", "other");
        say(&inner, &events, Kind::BudgetThreshold, Severity::Error, "team t1", "worse");
        say(&inner, &events, Kind::ProviderKeyCooling, Severity::Info, "provider key x", "too little");
        let row = |subject: &str, message: &str, count| (subject.to_owned(), message.to_owned(), count);
        let at_once = [row("team t1", "1", 1), row("team t2", "other", 1), row("team t1", "worse", 1)];
        assert_eq!(waiting(&inner), at_once);
        inner.tell_repeats(false);
        assert_eq!(waiting(&inner).len(), 3, "not before its time");
        clock.advance_ms(600_000);
        inner.tell_repeats(false);
        assert_eq!(waiting(&inner)[3..], [row("team t1", "4", 3)]);
        say(&inner, &events, Kind::BudgetThreshold, Severity::Warning, "team t1", "5");
        assert_eq!(waiting(&inner).len(), 4, "the time begins anew");
        clock.advance_ms(600_000);
        inner.tell_repeats(false);
        clock.advance_ms(600_000);
        inner.tell_repeats(false);
        assert!(inner.lanes[0].lock().repeats.is_empty(), "what is over is forgotten");
        assert_eq!(waiting(&inner)[4..], [row("team t1", "5", 1)]);
    }

    #[test]
    fn of_too_many_the_oldest_go() {
        let (metrics, clock) = (Metrics::default(), Clock::manual(1_700_000_000_000));
        let kinds = vec!["provider_key.*".to_owned()];
        let (inner, events) = alerts(&metrics, &clock, WebhookSection { kinds, ..hook() });
        for n in 0..QUEUE_MAX + 7 {
            say(&inner, &events, Kind::ProviderKeyError, Severity::Error, &format!("provider key {n}"), "");
            say(&inner, &events, Kind::PriceUnknown, Severity::Error, &format!("model {n}"), "");
        }
        let told = waiting(&inner);
        assert_eq!((told.len(), &*told[0].0), (QUEUE_MAX, "provider key 7"));
        let page = String::from_utf8(metrics.expose()).unwrap();
        assert!(page.contains("sidekey_alerts_total{outcome=\"dropped\"} 7"), "{page}");
        assert!(page.contains("sidekey_alerts_queue 256"), "{page}");
    }

    #[test]
    fn pauses_differ() {
        let pauses: Vec<Duration> = (0..20).map(|_| jittered(BACKOFF_MIN)).collect();
        assert!(pauses.iter().all(|pause| (BACKOFF_MIN / 2..=BACKOFF_MIN * 3 / 2).contains(pause)), "{pauses:?}");
        assert!(pauses.iter().any(|pause| *pause != pauses[0]));
    }
}
