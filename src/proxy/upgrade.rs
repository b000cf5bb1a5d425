//! WebSocket sessions: the same steps as any request, then two sockets joined and a copy of the upstream's messages
//! tallied.
//!
//! Owns the upgrade of HTTP/1.1 (RFC 6455 §4) and [`Session`]; leaves copying to `net::tunnel`.

use http::header::{CONNECTION, SEC_WEBSOCKET_KEY, UPGRADE};
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method};
use hyper::upgrade::OnUpgrade;

use crate::net::tunnel;
use crate::proxy::observe::InFlight;
use crate::proxy::settle::{Account, End};
use crate::tally::Observer;

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

/// A session's tally: the upstream's messages, read from a copy.
#[derive(Debug)]
pub(super) struct Session {
    observer: Observer,
    account: Account,
    _in_flight: InFlight,
}

impl Session {
    pub(super) fn new(observer: Observer, account: Account, in_flight: InFlight) -> Self {
        Self { observer, account, _in_flight: in_flight }
    }
}

impl tunnel::Observe for Session {
    fn upstream_said(&mut self, bytes: &[u8]) {
        self.observer.feed(bytes);
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
    fn the_upgrade_is_asked_for_anew() {
        let mut headers = HeaderMap::new();
        headers.insert(CONNECTION, HeaderValue::from_static("keep-alive, Upgrade, x-mine"));
        ask(&mut headers);
        assert_eq!(headers[CONNECTION], "Upgrade");
        assert_eq!(headers[UPGRADE], "websocket");
    }
}
