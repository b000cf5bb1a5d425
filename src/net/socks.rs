//! SOCKS5 (RFC 1928, RFC 1929): asking such a proxy for the way.
//!
//! Owns the exchange and what its answers mean; leaves to `via` who is asked, and to `dial` which address of a name. Own
//! code, since hyper-util's reads past the last answer and drops what a server that speaks first has said, and offers
//! a proxy nothing but the password when there is one.

use std::fmt;
use std::io;
use std::net::IpAddr;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::secret::Secret;

const VERSION: u8 = 5;
const NO_AUTHENTICATION: u8 = 0;
const PASSWORD: u8 = 2;
const NONE_ACCEPTED: u8 = 0xff;
/// Names, passwords and hosts have one byte for their length.
const LONGEST: usize = 255;

/// Name and password for the proxy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Login {
    /// Up to 255 bytes.
    pub user: Secret,
    /// Up to 255 bytes.
    pub password: Secret,
}

/// Why the proxy did not open the way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reply {
    Failure,
    NotAllowed,
    NetworkUnreachable,
    HostUnreachable,
    Refused,
    Expired,
    Command,
    AddressType,
    Unknown(u8),
}

impl Reply {
    /// `None`: it is open.
    fn new(code: u8) -> Option<Self> {
        Some(match code {
            0 => return None,
            1 => Self::Failure,
            2 => Self::NotAllowed,
            3 => Self::NetworkUnreachable,
            4 => Self::HostUnreachable,
            5 => Self::Refused,
            6 => Self::Expired,
            7 => Self::Command,
            8 => Self::AddressType,
            other => Self::Unknown(other),
        })
    }

    fn kind(self) -> io::ErrorKind {
        match self {
            Self::NotAllowed => io::ErrorKind::PermissionDenied,
            Self::NetworkUnreachable | Self::AddressType => io::ErrorKind::NetworkUnreachable,
            Self::HostUnreachable | Self::Expired => io::ErrorKind::HostUnreachable,
            Self::Refused => io::ErrorKind::ConnectionRefused,
            Self::Failure | Self::Command | Self::Unknown(_) => io::ErrorKind::Other,
        }
    }
}

impl fmt::Display for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let said = match self {
            Self::Failure => "it fails, and says no more",
            Self::NotAllowed => "its rules do not allow it",
            Self::NetworkUnreachable => "the network is unreachable from there",
            Self::HostUnreachable => "the host is unreachable from there",
            Self::Refused => "the host refuses the connection",
            Self::Expired => "the way is too long",
            Self::Command => "it opens no connections",
            Self::AddressType => "it does not know addresses of this kind",
            Self::Unknown(code) => return write!(f, "it refuses with code {code}"),
        };
        f.write_str(said)
    }
}

/// True when another address of the same name may be reached where this one was not.
pub(super) fn may_be_its_address(error: &io::Error) -> bool {
    use io::ErrorKind as Kind;
    matches!(error.kind(), Kind::NetworkUnreachable | Kind::HostUnreachable | Kind::ConnectionRefused)
}

/// Asks the proxy at the other end of `stream` for a connection to `host`, a name or an address. What follows is the other
/// side's.
///
/// # Errors
/// When the proxy refuses, or does not speak SOCKS5.
pub(super) async fn ask<S>(stream: &mut S, host: &str, port: u16, login: Option<&Login>) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let offer: &[u8] = match login {
        // A proxy that wants none of it may say so.
        Some(_) => &[VERSION, 2, NO_AUTHENTICATION, PASSWORD],
        None => &[VERSION, 1, NO_AUTHENTICATION],
    };
    send(stream, offer).await?;
    let [version, method] = receive(stream).await?;
    speaks(version, VERSION)?;
    match (method, login) {
        (NO_AUTHENTICATION, _) => {}
        (PASSWORD, Some(login)) => log_in(stream, login).await?,
        (PASSWORD | NONE_ACCEPTED, None) => return Err(denied("it wants credentials: socks5://user:password@host")),
        _ => return Err(denied("it wants credentials of another kind")),
    }
    send(stream, &request(host, port)?).await?;
    let [version, code, _, kind] = receive(stream).await?;
    speaks(version, VERSION)?;
    if let Some(reply) = Reply::new(code) {
        return Err(io::Error::new(reply.kind(), reply.to_string()));
    }
    // Where it goes out from is of no use here, but has to be read to its last byte, and no byte more.
    let length = match kind {
        1 => 4,
        4 => 16,
        3 => usize::from(stream.read_u8().await?),
        _ => return Err(garbled()),
    };
    let mut bound = [0; LONGEST + 2];
    stream.read_exact(&mut bound[..length + 2]).await.map(drop)
}

async fn log_in<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut S, login: &Login) -> io::Result<()> {
    let (user, password) = (login.user.expose().as_bytes(), login.password.expose().as_bytes());
    let mut message = zeroize::Zeroizing::new(Vec::with_capacity(3 + user.len() + password.len()));
    message.push(1);
    for part in [user, password] {
        message.push(u8::try_from(part.len()).map_err(|_| denied("its credentials have 255 bytes at most"))?);
        message.extend_from_slice(part);
    }
    send(stream, &message).await?;
    let [version, status] = receive(stream).await?;
    speaks(version, 1)?;
    if status == 0 { Ok(()) } else { Err(denied("it does not accept these credentials")) }
}

fn request(host: &str, port: u16) -> io::Result<Vec<u8>> {
    const CONNECT: u8 = 1;
    let mut message = vec![VERSION, CONNECT, 0];
    match host.parse::<IpAddr>() {
        Ok(IpAddr::V4(ip)) => message.extend([1].into_iter().chain(ip.octets())),
        Ok(IpAddr::V6(ip)) => message.extend([4].into_iter().chain(ip.octets())),
        Err(_) => {
            let fault = || io::Error::new(io::ErrorKind::InvalidInput, "a name has 255 bytes at most");
            message.extend([3, u8::try_from(host.len()).map_err(|_| fault())?]);
            message.extend_from_slice(host.as_bytes());
        }
    }
    message.extend(port.to_be_bytes());
    Ok(message)
}

async fn send<S: AsyncWrite + Unpin>(stream: &mut S, message: &[u8]) -> io::Result<()> {
    stream.write_all(message).await?;
    stream.flush().await
}

async fn receive<const N: usize>(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<[u8; N]> {
    let mut answer = [0; N];
    stream.read_exact(&mut answer).await?;
    Ok(answer)
}

fn speaks(version: u8, wanted: u8) -> io::Result<()> {
    if version == wanted { Ok(()) } else { Err(garbled()) }
}

fn garbled() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "it does not answer in SOCKS5")
}

fn denied(why: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::PermissionDenied, why)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Asks a proxy that gives these answers whatever it is told; what it was told, and what is left of them.
    async fn asked(host: &str, login: Option<&Login>, answers: &[u8]) -> (io::Result<()>, Vec<u8>, Vec<u8>) {
        let (mut ours, mut theirs) = tokio::io::duplex(2048);
        theirs.write_all(answers).await.unwrap();
        theirs.shutdown().await.unwrap();
        let done = ask(&mut ours, host, 443, login).await;
        let (mut told, mut left) = (Vec::new(), Vec::new());
        ours.read_to_end(&mut left).await.unwrap();
        drop(ours);
        theirs.read_to_end(&mut told).await.unwrap();
        (done, told, left)
    }

    fn login(password: &str) -> Login {
        Login { user: Secret::new("me".to_owned()), password: Secret::new(password.to_owned()) }
    }

    #[tokio::test]
    async fn the_way_is_asked_for() {
        let login = login("p@ss");
        let open = [5, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        let named = [&[5, 0, 0, 3, 2][..], b"ab", &[0, 0]].concat();
        let v6 = [&[5, 0, 0, 4][..], &[0; 18]].concat();
        let name = [&[5, 1, 0, 3, 1][..], b"h", &[1, 187]].concat();
        let password = [&[1, 2][..], b"me", &[4], b"p@ss"].concat();
        for (host, login, answers, want) in [
            ("h", None, [&[5, 0][..], &open].concat(), [&[5, 1, 0][..], &name].concat()),
            ("h", Some(&login), [&[5, 0][..], &named].concat(), [&[5, 2, 0, 2][..], &name].concat()),
            ("h", Some(&login), [&[5, 2, 1, 0][..], &open].concat(), [&[5, 2, 0, 2][..], &password, &name].concat()),
            ("1.2.3.4", None, [&[5, 0][..], &v6].concat(), vec![5, 1, 0, 5, 1, 0, 1, 1, 2, 3, 4, 1, 187]),
        ] {
            // A server that speaks first may have spoken already.
            let (done, told, left) = asked(host, login, &[&answers[..], b"220 ready"].concat()).await;
            done.unwrap();
            assert_eq!((told, left), (want, b"220 ready".to_vec()), "{host}");
        }
        let (_, told, _) = asked("2001:db8::1", None, &[5, 0]).await;
        assert_eq!(told[3..], [&[5, 1, 0, 4, 0x20, 1, 0xd, 0xb8][..], &[0; 11], &[1, 1, 187]].concat());
    }

    #[tokio::test]
    async fn a_refusal_says_why() {
        let (good, long) = (login("secret"), login(&"x".repeat(256)));
        for (login, answers, want, again) in [
            (None, &[5, 0xff][..], "wants credentials: ", false),
            (None, &[5, 2], "wants credentials: ", false),
            (Some(&good), &[5, 0xff], "credentials of another kind", false),
            (Some(&good), &[5, 1], "credentials of another kind", false),
            (Some(&good), &[5, 2, 1, 1], "does not accept", false),
            (Some(&long), &[5, 2], "255 bytes", false),
            (None, &[5, 0, 5, 1, 0, 1], "fails", false),
            (None, &[5, 0, 5, 2, 0, 1], "rules", false),
            (None, &[5, 0, 5, 3, 0, 1], "network", true),
            (None, &[5, 0, 5, 4, 0, 1], "host is unreachable", true),
            (None, &[5, 0, 5, 5, 0, 1], "refuses the connection", true),
            (None, &[5, 0, 5, 6, 0, 1], "too long", true),
            (None, &[5, 0, 5, 7, 0, 1], "opens no connections", false),
            (None, &[5, 0, 5, 8, 0, 1], "of this kind", true),
            (None, &[5, 0, 5, 99, 0, 1], "code 99", false),
            (None, &[5, 0, 5, 0, 0, 9], "SOCKS5", false),
            (None, b"HTTP/1.1 400", "SOCKS5", false),
            (None, &[5], "early eof", false),
        ] {
            let error = asked("h", login, answers).await.0.unwrap_err();
            let said = error.to_string();
            assert!(said.contains(want) && !said.contains("secret"), "{answers:?}: {said}");
            assert_eq!(may_be_its_address(&error), again, "{said}");
        }
        let (done, ..) = asked(&"x".repeat(256), None, &[5, 0]).await;
        assert!(done.unwrap_err().to_string().contains("255"));
    }
}
