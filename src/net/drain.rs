//! Draining: who says stop, and when the last connection has gone.
//!
//! Owns the signal and the count; leaves deadlines to `app`.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Poll, Waker};

use tokio::sync::watch;

/// How far the end has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Phase {
    /// Nothing was said.
    Open,
    /// Whoever comes is served, and told to come no more.
    Leaving,
    /// What is idle goes; the rest ends with what it does.
    Closing,
}

/// Says stop, and waits for those who listen. Not `Clone`: a second one could believe all had gone while the first
/// still handed out watches.
#[derive(Debug)]
pub struct Drain {
    phase: watch::Sender<Phase>,
    leaving: Leaving,
}

/// Held by each connection for as long as it is open.
#[derive(Clone, Debug)]
pub struct Watch {
    phase: watch::Receiver<Phase>,
    leaving: Leaving,
}

/// Whether the end has begun, for those who only look now and then: looking costs next to nothing.
#[derive(Clone, Debug, Default)]
pub struct Leaving(Arc<AtomicBool>);

impl Default for Drain {
    fn default() -> Self {
        Self { phase: watch::Sender::new(Phase::Open), leaving: Leaving::default() }
    }
}

impl Drain {
    /// A watch for one more connection.
    #[must_use]
    pub fn watch(&self) -> Watch {
        Watch { phase: self.phase.subscribe(), leaving: self.leaving.clone() }
    }

    /// Tells every watch that the end has begun: each answer is to say that it is its connection's last.
    pub fn leave(&self) {
        self.advance(Phase::Leaving);
    }

    /// Tells every watch to finish what it does and take nothing new.
    pub fn signal(&self) {
        self.advance(Phase::Closing);
    }

    fn advance(&self, to: Phase) {
        self.leaving.0.store(true, Ordering::Relaxed);
        self.phase.send_if_modified(|phase| {
            let further = *phase < to;
            *phase = to.max(*phase);
            further
        });
    }

    /// Resolves when there is no watch, be it for this moment only. Cancel safe.
    pub async fn finished(&self) {
        self.phase.closed().await;
    }

    /// Connections open now.
    #[must_use]
    pub fn open(&self) -> usize {
        self.phase.receiver_count()
    }
}

impl Drop for Drain {
    fn drop(&mut self) {
        // Nobody can tell any more: for whoever looks, that is the end too.
        self.leaving.0.store(true, Ordering::Relaxed);
    }
}

impl Watch {
    /// Resolves when the end has begun, or when nobody can tell any more. Cancel safe.
    pub async fn leaving(&mut self) {
        let _ = self.phase.wait_for(|phase| *phase >= Phase::Leaving).await;
    }

    /// Resolves when told to stop, or when nobody can tell any more. Cancel safe.
    pub async fn signalled(&mut self) {
        let leaving = self.leaving.clone();
        let mut told = pin!(self.phase.wait_for(|phase| *phase == Phase::Closing));
        // Polled with each step of a connection: until the end begins, one look at who is to be woken is enough.
        let mut waiting: Option<Waker> = None;
        poll_fn(|cx| {
            let waits = waiting.as_ref().is_some_and(|waker| waker.will_wake(cx.waker()));
            if waits && !leaving.has_begun() {
                return Poll::Pending;
            }
            waiting = Some(cx.waker().clone());
            told.as_mut().poll(cx).map(drop)
        })
        .await;
    }

    /// For looking at it without holding up the end.
    #[must_use]
    pub fn glance(&self) -> Leaving {
        self.leaving.clone()
    }
}

impl Leaving {
    /// True once the end has begun.
    #[must_use]
    pub fn has_begun(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use futures_util::StreamExt;
    use futures_util::stream::FuturesUnordered;

    use super::*;

    #[tokio::test]
    async fn finishes_when_the_last_watch_goes() {
        let drain = Drain::default();
        let mut watch = drain.watch();
        assert_eq!(drain.open(), 1);
        drain.signal();
        watch.signalled().await;
        drop(watch);
        drain.finished().await;
        assert_eq!(drain.open(), 0);
    }

    #[tokio::test]
    async fn leaving_comes_before_closing_and_is_not_taken_back() {
        let drain = Drain::default();
        let (mut early, glance) = (drain.watch(), drain.watch().glance());
        assert!(!glance.has_begun());
        drain.leave();
        early.leaving().await;
        assert!(glance.has_begun());
        tokio::select! {
            biased;
            () = early.signalled() => unreachable!("nothing is closing yet"),
            () = std::future::ready(()) => {}
        }
        drain.signal();
        drain.leave();
        early.signalled().await;
        // Whoever comes late hears of both.
        let mut late = drain.watch();
        late.leaving().await;
        late.signalled().await;
    }

    #[tokio::test]
    async fn who_waits_is_told_wherever_it_is_polled() {
        for last_word in [Drain::signal as fn(&Drain), |_| {}] {
            let drain = Drain::default();
            let mut watch = drain.watch();
            let mut waiting = Box::pin(async move { watch.signalled().await });
            for _ in 0..3 {
                tokio::select! {
                    biased;
                    () = &mut waiting => unreachable!("nothing was said"),
                    () = std::future::ready(()) => {}
                }
            }
            // Another one wakes it from here on.
            let mut elsewhere = FuturesUnordered::from_iter([waiting]);
            tokio::select! {
                biased;
                _ = elsewhere.next() => unreachable!("nothing was said"),
                () = std::future::ready(()) => {}
            }
            last_word(&drain);
            drop(drain);
            tokio::time::timeout(std::time::Duration::from_secs(5), elsewhere.next()).await.unwrap().unwrap();
        }
    }
}
