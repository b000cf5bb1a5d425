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
use crate::proxy::settle::{Account, End};
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
    /// The upstream broke off; told to the server one poll later, so that it can send what came before.
    broken: Option<hyper::Error>,
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
    pub(super) fn relayed(received: Received, observer: Observer, account: Account, in_flight: InFlight) -> Self {
        Self::Relayed(Box::new(Relayed { received, observer, account, _in_flight: in_flight, broken: None }))
    }
}

impl Relayed {
    fn settle(&mut self, end: End) {
        self.account.settle(self.observer.finish(), end);
    }
}

impl Body for AnswerBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let relayed = match self.get_mut() {
            Self::Own(bytes) => return Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Self::Relayed(relayed) => &mut **relayed,
        };
        if let Some(error) = relayed.broken.take() {
            // An error here makes the server cut the connection: a truncated answer must look like one.
            return Poll::Ready(Some(Err(error.into())));
        }
        let polled = std::task::ready!(Pin::new(&mut relayed.received).poll_frame(cx));
        match polled {
            Some(Ok(frame)) => {
                if let Some(data) = frame.data_ref() {
                    relayed.observer.feed(data);
                }
                // With a known length nobody asks again after the last byte.
                if relayed.received.is_end_stream() {
                    relayed.settle(End::Complete);
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Some(Err(error)) => {
                relayed.settle(End::UpstreamBroke);
                relayed.broken = Some(error);
                cx.waker().wake_by_ref();
                Poll::Pending
            }
            None => {
                relayed.settle(End::Complete);
                Poll::Ready(None)
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Own(bytes) => bytes.is_none(),
            Self::Relayed(relayed) => relayed.received.is_end_stream(),
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
