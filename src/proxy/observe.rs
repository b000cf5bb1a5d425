//! The answer on its way to the client: the same bytes, frame by frame, and a tally of a copy.
//!
//! Owns [`AnswerBody`] and the moment an answer ends; leaves reading usage to `tally` and what follows to `settle`.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use prometheus::IntGauge;

use crate::net::body::BoxError;
use crate::net::upstream::Received;
use crate::proxy::hard_stop::{HardStop, Verdict};
use crate::proxy::settle::{Account, End};
use crate::storage::Commit;
use crate::tally::Observer;

/// The body of any answer of the proxy.
#[derive(Debug)]
pub enum AnswerBody {
    /// sidekey's own.
    Own(Option<Bytes>),
    /// An upstream's, observed.
    Relayed(Box<Relayed>),
}

/// An upstream's body passing by. Dropped early, it means that the client has left: the upstream is cancelled with it.
#[derive(Debug)]
pub struct Relayed {
    received: Received,
    observer: Observer,
    account: Account,
    _in_flight: InFlight,
    stop: Option<Box<HardStop>>,
    /// With `store.durability = "sync"`: the entry's way to the disk, which the end of the answer waits for.
    commit: Option<Commit>,
    /// The last frame, or how the answer breaks off.
    last: Option<Result<Frame<Bytes>, BoxError>>,
    /// True when nothing is read any more: the answer was ended here.
    stopped: bool,
}

/// Counts a relayed answer while it is open.
#[derive(Debug)]
pub(super) struct InFlight(IntGauge);

impl InFlight {
    pub(super) fn new(gauge: &IntGauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.dec();
    }
}

impl AnswerBody {
    /// `stop` is what may end it early.
    pub(super) fn relayed(
        received: Received,
        observer: Observer,
        account: Account,
        in_flight: InFlight,
        stop: Option<Box<HardStop>>,
    ) -> Self {
        Self::Relayed(Box::new(Relayed {
            received,
            observer,
            account,
            _in_flight: in_flight,
            stop,
            commit: None,
            last: None,
            stopped: false,
        }))
    }
}

impl Relayed {
    fn settle(&mut self, end: End) {
        self.commit = self.account.settle(self.observer.finish(), end);
    }

    /// Ends the answer where its reservation does.
    fn is_stopped(&mut self, frame: &Frame<Bytes>) -> bool {
        let (Some(stop), Some(data)) = (&mut self.stop, frame.data_ref()) else { return false };
        self.last = match stop.judge(data, &self.observer, &mut self.account) {
            Verdict::Pass => return false,
            Verdict::Stop(at, event) => {
                let last = [&data[..at], &event].concat();
                Some(Ok(Frame::data(last.into())))
            }
            Verdict::Break => Some(Err("the answer used up what was reserved for it".into())),
        };
        self.stopped = true;
        self.settle(End::Stopped);
        true
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        loop {
            if let Some(commit) = &mut self.commit {
                // A failure is in the log and in the store's health; the answer is not ours to break for it.
                let _ = std::task::ready!(Pin::new(commit).poll(cx));
                self.commit = None;
            }
            if let Some(last) = self.last.take() {
                return Poll::Ready(Some(last));
            }
            if self.stopped {
                return Poll::Ready(None);
            }
            match std::task::ready!(Pin::new(&mut self.received).poll_frame(cx)) {
                Some(Ok(frame)) => {
                    if let Some(data) = frame.data_ref() {
                        self.observer.feed(data);
                    }
                    if self.stop.is_some() && self.is_stopped(&frame) {
                        if matches!(self.last, Some(Err(_))) {
                            return break_off(cx);
                        }
                        continue;
                    }
                    if !self.received.is_end_stream() {
                        return Poll::Ready(Some(Ok(frame)));
                    }
                    // With a known length nobody asks again after the last byte.
                    self.settle(End::Complete);
                    self.last = Some(Ok(frame));
                }
                Some(Err(error)) => {
                    self.settle(End::UpstreamBroke);
                    self.last = Some(Err(error.into()));
                    return break_off(cx);
                }
                None => {
                    self.settle(End::Complete);
                    if self.commit.is_none() {
                        return Poll::Ready(None);
                    }
                }
            }
        }
    }
}

/// An error makes the server cut the connection: a truncated answer must look like one. It comes one poll later, so that
/// the server can send what came before.
fn break_off<T>(cx: &Context<'_>) -> Poll<T> {
    cx.waker().wake_by_ref();
    Poll::Pending
}

impl Body for AnswerBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match self.get_mut() {
            Self::Own(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Self::Relayed(relayed) => relayed.poll(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Own(bytes) => bytes.is_none(),
            Self::Relayed(relayed) => {
                let ended = relayed.stopped || relayed.received.is_end_stream();
                relayed.last.is_none() && relayed.commit.is_none() && ended
            }
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Own(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64)),
            Self::Relayed(relayed) => relayed.received.size_hint(),
        }
    }
}

impl Drop for Relayed {
    fn drop(&mut self) {
        // An answer with no body is never polled: it ended when its head was sent.
        let end = if self.received.is_end_stream() { End::Complete } else { End::ClientLeft };
        self.settle(end);
    }
}
