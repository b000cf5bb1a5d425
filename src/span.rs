//! Ended requests on their way to whoever traces them: [`Spans`] is the request path's end of a bounded queue.
//!
//! Owns the queue and reading `traceparent`; leaves what becomes of a request to `app`, which sends it on.

use http::HeaderMap;
use prometheus::IntCounter;
use tokio::sync::mpsc::{Receiver, Sender, channel};

use crate::entry::Entry;

/// Ended requests that wait to be sent at most; what comes beyond is counted and not traced.
const WAITING: usize = 4096;

/// The span a client's request is part of (W3C Trace Context §3.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceParent {
    /// The trace's id.
    pub trace: u128,
    /// The client's span.
    pub span: u64,
    /// Whether the client records it.
    pub sampled: bool,
}

impl TraceParent {
    /// What the client said; `None` when it said nothing, or nothing valid.
    #[must_use]
    pub fn of(headers: &HeaderMap) -> Option<Self> {
        let mut said = headers.get_all("traceparent").iter();
        let (first, None) = (said.next()?, said.next()) else { return None };
        Self::parse(first.to_str().ok()?)
    }

    fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split('-');
        let (version, trace, span, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
        let is_hex =
            |text: &str, len| text.len() == len && text.bytes().all(|c| matches!(c, b'0'..=b'9' | b'a'..=b'f'));
        // Later versions may say more; 00 says nothing further, and ff is none.
        let formed = is_hex(version, 2) && is_hex(trace, 32) && is_hex(span, 16) && is_hex(flags, 2);
        if !formed || version == "ff" || (version == "00" && parts.next().is_some()) {
            return None;
        }
        let (trace, span) = (u128::from_str_radix(trace, 16).ok()?, u64::from_str_radix(span, 16).ok()?);
        let sampled = u8::from_str_radix(flags, 16).ok()? & 1 == 1;
        (trace != 0 && span != 0).then_some(Self { trace, span, sampled })
    }
}

/// A request that has ended.
#[derive(Clone, Debug)]
pub struct Ended {
    /// Its entry.
    pub entry: Entry,
    /// The client's span.
    pub parent: Option<TraceParent>,
}

/// Where ended requests are handed in. Cloning shares it.
#[derive(Clone, Debug)]
pub struct Spans {
    queue: Sender<Box<Ended>>,
    dropped: IntCounter,
}

impl Spans {
    /// An empty queue; `dropped` counts what finds it full.
    #[must_use]
    pub fn new(dropped: IntCounter) -> (Self, Receiver<Box<Ended>>) {
        let (queue, waiting) = channel(WAITING);
        (Self { queue, dropped }, waiting)
    }

    /// Hands one in; never waits.
    pub fn offer(&self, entry: &Entry, parent: Option<TraceParent>) {
        match self.queue.try_reserve() {
            Ok(place) => place.send(Box::new(Ended { entry: entry.clone(), parent })),
            Err(_) => self.dropped.inc(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parents() {
        let parent = |sampled| {
            Some(TraceParent { trace: 0x0af7_6519_16cd_43dd_8448_eb21_1c80_319c, span: 0x00f0_67aa_0ba9_02b7, sampled })
        };
        for (text, want) in [
            ("00-0af7651916cd43dd8448eb211c80319c-00f067aa0ba902b7-01", parent(true)),
            ("00-0af7651916cd43dd8448eb211c80319c-00f067aa0ba902b7-00", parent(false)),
            ("01-0af7651916cd43dd8448eb211c80319c-00f067aa0ba902b7-03-more", parent(true)),
            ("00-0af7651916cd43dd8448eb211c80319c-00f067aa0ba902b7-01-more", None),
            ("ff-0af7651916cd43dd8448eb211c80319c-00f067aa0ba902b7-01", None),
            ("00-00000000000000000000000000000000-00f067aa0ba902b7-01", None),
            ("00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01", None),
            ("00-0AF7651916cd43dd8448eb211c80319c-00f067aa0ba902b7-01", None),
            ("00-0af7651916cd43dd8448eb211c80319c-00f067aa0ba902b7", None),
            ("", None),
        ] {
            assert_eq!(TraceParent::parse(text), want, "{text}");
        }
    }
}
