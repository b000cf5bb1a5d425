//! What the proxy port counts of connections that are not requests.

use prometheus::{IntCounter, IntCounterVec, IntGauge, Opts};

use crate::metrics::Metrics;
use crate::net::splice::{Meter, Way};

/// Families of connect and transparent.
#[derive(Clone, Debug)]
pub(super) struct Families {
    connections: IntCounterVec,
    sent: IntCounter,
    received: IntCounter,
    /// Tunnels open now.
    pub(super) tunnels: IntGauge,
}

/// What became of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Became {
    /// A provider's, opened here.
    Intercepted,
    /// Refused by policy: port, address, host, or nobody known.
    Refused,
    /// The name in TLS is another than the one that was asked for.
    Mismatched,
    /// Opened by sidekey itself, and led back to it.
    Looped,
    /// The other side was not reached.
    Unreached,
    /// Joined blind.
    Tunnelled,
    /// TLS was not agreed on; mostly the client does not trust the local CA.
    Untrusted,
}

impl Became {
    const ALL: [Self; 7] = [
        Self::Intercepted,
        Self::Looped,
        Self::Mismatched,
        Self::Refused,
        Self::Tunnelled,
        Self::Unreached,
        Self::Untrusted,
    ];

    fn as_str(self) -> &'static str {
        match self {
            Self::Intercepted => "intercepted",
            Self::Looped => "looped",
            Self::Mismatched => "mismatched",
            Self::Refused => "refused",
            Self::Tunnelled => "tunnelled",
            Self::Unreached => "unreached",
            Self::Untrusted => "untrusted",
        }
    }
}

impl Families {
    /// Declares them.
    pub(super) fn new(metrics: &Metrics) -> Self {
        let counters = |name: &str, help: &str, label: &str| {
            // Names and labels are constants of this file.
            metrics.register(IntCounterVec::new(Opts::new(name, help), &[label]).expect("a valid family"))
        };
        let connections =
            counters("sidekey_connections_total", "Connections through the proxy, by what became of them.", "outcome");
        for became in Became::ALL {
            connections.with_label_values(&[became.as_str()]);
        }
        let bytes = counters("sidekey_tunnel_bytes_total", "Bytes that passed unread.", "direction");
        let tunnels = IntGauge::new("sidekey_tunnels_open", "Connections joined blind, now.").expect("a valid gauge");
        Self {
            connections,
            sent: bytes.with_label_values(&["sent"]),
            received: bytes.with_label_values(&["received"]),
            tunnels: metrics.register(tunnels),
        }
    }

    pub(super) fn count(&self, became: Became) {
        self.connections.with_label_values(&[became.as_str()]).inc();
    }
}

impl Meter for Families {
    fn passed(&self, way: Way, bytes: usize) {
        match way {
            Way::Sent => self.sent.inc_by(bytes as u64),
            Way::Received => self.received.inc_by(bytes as u64),
        }
    }
}
