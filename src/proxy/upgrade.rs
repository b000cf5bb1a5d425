//! WebSocket sessions: the same steps as any request, then two sockets joined and a copy of the upstream's messages
//! tallied.
//!
//! Owns the upgrade of HTTP/1.1 (RFC 6455 §4) and [`Session`]; leaves copying to `net::tunnel`.

use bytes::Bytes;
use http::header::{CONNECTION, SEC_WEBSOCKET_KEY, UPGRADE};
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method};
use hyper::upgrade::OnUpgrade;

use crate::limit::{Consumption, Moment};
use crate::net::tunnel;
use crate::proxy::error::Error;
use crate::proxy::observe::InFlight;
use crate::proxy::settle::{Account, End};
use crate::tally::Observer;
use crate::unit::Usage;

pub(super) use crate::net::tunnel::join;

/// The client's side of the connection, when it asks for a WebSocket.
pub(super) fn take(parts: &mut Parts) -> Option<OnUpgrade> {
    // Anything else with an `Upgrade` is an ordinary request, with an ordinary estimate (RFC 6455 §4.1).
    let is_handshake = parts.method == Method::GET
        && parts.headers.contains_key(SEC_WEBSOCKET_KEY)
        && parts.headers.get(UPGRADE)?.as_bytes().eq_ignore_ascii_case(b"websocket");
    is_handshake.then(|| parts.extensions.remove()).flatten()
}

/// Asks the upstream for the same; the client's own words were of its own connection.
pub(super) fn ask(headers: &mut HeaderMap) {
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
}

/// The upstream's side, when it agreed.
pub(super) fn of(head: &mut http::response::Parts) -> Option<OnUpgrade> {
    head.extensions.remove()
}

/// A session's tally: the upstream's messages, read from a copy. What they report is reserved as it goes by, so that others
/// find the room gone, and nothing of it is forgotten if this process ends; where there is no more room, the session
/// ends, as the next request would have been refused.
#[derive(Debug)]
pub(super) struct Session {
    observer: Observer,
    account: Account,
    /// What is reserved.
    usage: Usage,
    _in_flight: InFlight,
}

impl Session {
    pub(super) fn new(observer: Observer, account: Account, in_flight: InFlight) -> Self {
        Self { observer, account, usage: Usage::default(), _in_flight: in_flight }
    }

    /// Reserves what was consumed since the last look.
    ///
    /// # Errors
    /// When a limit has no room for it, or it cannot be recorded and must be.
    fn look(&mut self) -> Result<(), Error> {
        let usage = self.observer.usage_so_far();
        if usage == self.usage {
            return Ok(());
        }
        self.usage = usage;
        let Some(open) = self.account.open() else { return Ok(()) };
        let model = open.called.as_deref().or(open.entry.model_requested.as_deref());
        let found = open.prices.price(&open.entry.provider, None, model);
        let consumed = Consumption::of(&usage, found.and_then(|found| found.price.cost(&usage, None)));
        let at = Moment::of(&open.books.clock);
        let grown = match &mut open.permit {
            Some(permit) => permit.grow(at, consumed.beyond(&permit.reserved())),
            None => Ok(()),
        };
        open.note()?;
        Ok(grown?)
    }
}

/// A WebSocket's last frame, unmasked as a server's are: 1008, a policy was not kept (RFC 6455 §5.5.1, §7.4.1).
fn close_frame(why: &str) -> Bytes {
    const POLICY: u16 = 1008;
    // A control frame has room for 125 bytes.
    let why = &why.as_bytes()[..why.floor_char_boundary(123)];
    [&[0x88, (2 + why.len()) as u8], &POLICY.to_be_bytes()[..], why].concat().into()
}

impl tunnel::Observe for Session {
    fn upstream_said(&mut self, bytes: &[u8]) -> Option<Bytes> {
        self.observer.feed(bytes);
        let why = self.look().err()?;
        // Within a frame nothing can be said: the connection ends, and that says it.
        Some(if self.observer.is_between_frames() { close_frame(&why.to_string()) } else { Bytes::new() })
    }

    fn ended(&mut self) {
        // A session has no end of its own: whoever hangs up first, it is complete.
        self.account.settle(self.observer.finish(), End::Complete);
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.account.settle(self.observer.finish(), End::ClientLeft);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_frame_fits_whatever_is_said() {
        for why in ["no room", &"\u{fc}".repeat(100), ""] {
            let frame = close_frame(why);
            assert_eq!((frame[0], usize::from(frame[1]), &frame[2..4]), (0x88, frame.len() - 2, &[3, 0xf0][..]));
            assert!(frame.len() <= 127 && why.starts_with(std::str::from_utf8(&frame[4..]).unwrap()));
        }
    }

    #[test]
    fn the_upgrade_is_asked_for_anew() {
        let mut headers = HeaderMap::new();
        headers.insert(CONNECTION, HeaderValue::from_static("keep-alive, Upgrade, x-mine"));
        ask(&mut headers);
        assert_eq!(headers[CONNECTION], "Upgrade");
        assert_eq!(headers[UPGRADE], "websocket");
    }
}
