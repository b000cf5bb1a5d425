//! Whether a connection of this user's is led to sidekey, tried from the user's side.
//!
//! Owns the trial. It goes to an address of documentation (RFC 5737, RFC 3849) with a hop limit of 1, so that nobody
//! but this machine can answer it.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};

use crate::cli::checks::{Line, fail, ok, warn};
use crate::cli::redirect::Rules;

const NOBODY: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)), IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1))];
const PATIENCE: Duration = Duration::from_secs(1);

/// What became of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Found {
    /// Somebody on this machine took it.
    Taken,
    /// Led here, and nobody listens.
    Refused,
    /// It went its way.
    Passed,
    /// This family leads nowhere.
    NoRoute,
}

/// A line for each family.
pub(super) fn lines(rules: &Rules) -> Vec<Line> {
    let uid = rustix::process::geteuid().as_raw();
    let exempt = rules.uids.contains(&uid);
    let port = rules.ports.first().copied().unwrap_or(443);
    let line = |ip: IpAddr| line(ip.is_ipv6(), uid, exempt, connect(SocketAddr::new(ip, port)));
    NOBODY.into_iter().map(line).collect()
}

fn line(v6: bool, uid: u32, exempt: bool, found: Found) -> Line {
    let check = format!("IPv{} of user {uid}", if v6 { 6 } else { 4 });
    match (found, exempt) {
        (Found::NoRoute, _) => ok(&check, "has no way out"),
        (Found::Passed, true) => ok(&check, "passes, as sidekey's own must"),
        (Found::Passed, false) => fail(&check, "passes by sidekey", "`sidekey redirect install`"),
        (Found::Taken | Found::Refused, true) => {
            fail(&check, "is redirected: sidekey would meet itself", "`sidekey redirect install --uid` with this user")
        }
        (Found::Taken, false) => ok(&check, "is redirected to sidekey"),
        (Found::Refused, false) => warn(&check, "is redirected, and nobody listens", "`sidekey run`"),
    }
}

fn connect(to: SocketAddr) -> Found {
    let tried = || -> io::Result<()> {
        let socket = Socket::new(Domain::for_address(to), Type::STREAM, Some(Protocol::TCP))?;
        if to.is_ipv4() {
            socket.set_ttl_v4(1)?
        } else {
            socket.set_unicast_hops_v6(1)?
        }
        socket.connect_timeout(&to.into(), PATIENCE)
    };
    match tried() {
        Ok(()) => Found::Taken,
        Err(error) => match error.kind() {
            io::ErrorKind::ConnectionRefused => Found::Refused,
            io::ErrorKind::NetworkUnreachable | io::ErrorKind::AddrNotAvailable | io::ErrorKind::Unsupported => {
                Found::NoRoute
            }
            _ => Found::Passed,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::checks::Mark;

    #[test]
    fn verdicts() {
        for (found, exempt, want) in [
            (Found::Taken, false, Mark::Ok),
            (Found::Taken, true, Mark::Fail),
            (Found::Refused, false, Mark::Warn),
            (Found::Refused, true, Mark::Fail),
            (Found::Passed, false, Mark::Fail),
            (Found::Passed, true, Mark::Ok),
            (Found::NoRoute, false, Mark::Ok),
        ] {
            assert_eq!(line(true, 7, exempt, found).status, want, "{found:?}, exempt {exempt}");
        }
    }
}
