//! The proxies that sidekey itself has to go through: `HTTPS_PROXY` and its like, as every client reads them.
//!
//! Owns which connection goes through which proxy, and asking it (RFC 9110 §9.3.6); leaves dialling to `dial`, and SOCKS5 to
//! `socks`. Credentials are sent to the proxy they were given for, and shown nowhere.

use std::fmt;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;

use http::Uri;
use http::header::HeaderValue;
use hyper_util::client::proxy::matcher::Matcher;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::net::socks::{self, Login};
use crate::secret::Secret;

/// What a proxy may say before it lets one through.
const MAX_HEAD: usize = 16 * 1024;

/// What was said of proxies, by the variables' names.
#[derive(Clone, Copy, Default)]
pub struct Said<'a> {
    /// `HTTPS_PROXY`: towards `https://`.
    pub https: Option<&'a str>,
    /// `HTTP_PROXY`: towards `http://`.
    pub http: Option<&'a str>,
    /// `ALL_PROXY`: towards either, where nothing else is said.
    pub all: Option<&'a str>,
    /// `NO_PROXY`: names, with all below them, addresses and networks that are reached without.
    pub no: Option<&'a str>,
}

/// Shows which were said: values can hold passwords.
impl fmt::Debug for Said<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let said = [("https", self.https), ("http", self.http), ("all", self.all), ("no", self.no)];
        f.debug_set().entries(said.into_iter().filter_map(|(name, value)| value.map(|_| name))).finish()
    }
}

/// Which connections go through which proxy. Names and addresses of this machine are always reached without.
#[derive(Clone, Default)]
pub struct Via(Option<Arc<Matcher>>);

impl fmt::Debug for Via {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Via").field(&self.0.is_some()).finish()
    }
}

/// A proxy's variable that cannot be obeyed. The value is not shown: it may hold a password.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{name}: {problem}; write http://[user:password@]host:port, or socks5h:// of that form, or unset it")]
pub struct BadProxy {
    /// The variable.
    pub name: &'static str,
    problem: &'static str,
}

/// A proxy on the way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hop {
    /// Name or address, without brackets.
    pub host: Arc<str>,
    /// TCP port.
    pub port: u16,
    /// What is spoken with it.
    pub speaks: Speaks,
}

/// How a proxy is asked, and with which credentials.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Speaks {
    /// `CONNECT`.
    Http {
        /// TLS to the proxy itself.
        tls: bool,
        /// For `Proxy-Authorization`.
        authorization: Option<HeaderValue>,
    },
    /// SOCKS5.
    Socks {
        /// Names are the proxy's to resolve (`socks5h://`), and not ours (`socks5://`).
        names: bool,
        /// Name and password.
        login: Option<Login>,
    },
}

impl Via {
    /// No proxy at all.
    #[must_use]
    pub fn none() -> Self {
        Self::default()
    }

    /// As said; `own_ports` are sidekey's, on this machine: a proxy there would be asked by itself, for ever.
    ///
    /// # Errors
    /// When a variable names no proxy that can be used, or sidekey itself.
    pub fn new(said: Said<'_>, own_ports: &[u16]) -> Result<Self, BadProxy> {
        // Where both others are said, it is never used, and may be what it likes.
        let all = said.all.filter(|_| said.https.is_none() || said.http.is_none());
        let named = [("HTTPS_PROXY", said.https), ("HTTP_PROXY", said.http), ("ALL_PROXY", all)];
        for (name, value) in named.into_iter().filter_map(|(name, value)| Some((name, value?))) {
            let hop = read(value).map_err(|problem| BadProxy { name, problem })?;
            if is_here(&hop.host) && own_ports.contains(&hop.port) {
                return Err(BadProxy { name, problem: "is this sidekey itself" });
            }
        }
        if said.https.is_none() && said.http.is_none() && said.all.is_none() {
            return Ok(Self::none());
        }
        let text = |value: Option<&str>| value.unwrap_or_default().to_owned();
        let matcher = Matcher::builder().https(text(said.https)).http(text(said.http)).all(text(said.all));
        Ok(Self(Some(Arc::new(matcher.no(text(said.no)).build()))))
    }

    /// The proxy on the way to `host`, if there is one.
    #[must_use]
    pub fn hop(&self, host: &str, port: u16, tls: bool) -> Option<Hop> {
        let matcher = self.0.as_ref()?;
        if is_here(host) {
            return None;
        }
        let scheme = if tls { "https" } else { "http" };
        let to = Uri::try_from(format!("{scheme}://{}/", authority(host, port))).ok()?;
        let found = matcher.intercept(&to)?;
        let login = found.raw_auth().map(|(user, password)| Login {
            user: Secret::new(user.to_owned()),
            password: Secret::new(password.to_owned()),
        });
        hop_of(found.uri(), found.basic_auth().cloned(), login)
    }
}

/// True for names and addresses that are this machine's by definition.
fn is_here(host: &str) -> bool {
    match host.parse::<IpAddr>() {
        Ok(ip) => ip.to_canonical().is_loopback() || ip.is_unspecified(),
        Err(_) => host == "localhost" || host.ends_with(".localhost"),
    }
}

fn read(value: &str) -> Result<Hop, &'static str> {
    let uri: Uri = value.parse().map_err(|_| "is not a URL")?;
    match uri.scheme_str() {
        None | Some("http" | "https" | "socks5" | "socks5h") => {}
        Some(scheme) if scheme.starts_with("socks") => return Err("is a SOCKS proxy of a version that is not spoken"),
        Some(_) => return Err("is no proxy of a known kind"),
    }
    hop_of(&uri, None, None).ok_or("names no host")
}

fn hop_of(uri: &Uri, authorization: Option<HeaderValue>, login: Option<Login>) -> Option<Hop> {
    let (speaks, default) = match uri.scheme_str() {
        Some("socks5") => (Speaks::Socks { names: false, login }, 1080),
        Some("socks5h") => (Speaks::Socks { names: true, login }, 1080),
        Some("https") => (Speaks::Http { tls: true, authorization }, 443),
        _ => (Speaks::Http { tls: false, authorization }, 80),
    };
    let host = uri.host()?.trim_start_matches('[').trim_end_matches(']').to_ascii_lowercase();
    let port = uri.port_u16().unwrap_or(default);
    (!host.is_empty()).then(|| Hop { host: host.into(), port, speaks })
}

fn authority(host: &str, port: u16) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

impl Hop {
    /// True when the proxy itself has TLS.
    #[must_use]
    pub fn has_tls(&self) -> bool {
        matches!(self.speaks, Speaks::Http { tls: true, .. })
    }

    /// True when the proxy wants addresses, and no names.
    #[must_use]
    pub fn wants_address(&self) -> bool {
        matches!(self.speaks, Speaks::Socks { names: false, .. })
    }

    /// Asks the proxy at the other end of `stream` for a tunnel. What follows is the other side's.
    ///
    /// # Errors
    /// When the proxy refuses, with its status, or says nothing that can be read.
    pub async fn ask<S>(&self, stream: &mut S, host: &str, port: u16) -> io::Result<()>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let authorization = match &self.speaks {
            Speaks::Http { authorization, .. } => authorization.as_ref(),
            Speaks::Socks { login, .. } => return socks::ask(stream, host, port, login.as_ref()).await,
        };
        let to = authority(host, port);
        let mut head = format!("CONNECT {to} HTTP/1.1\r\nHost: {to}\r\n").into_bytes();
        if let Some(authorization) = authorization {
            head.extend_from_slice(b"Proxy-Authorization: ");
            head.extend_from_slice(authorization.as_bytes());
            head.extend_from_slice(b"\r\n");
        }
        head.extend_from_slice(b"\r\n");
        stream.write_all(&head).await?;
        stream.flush().await?;
        let mut answer = Vec::with_capacity(256);
        // One by one: what comes after the head is for whoever asked.
        while !answer.ends_with(b"\r\n\r\n") {
            if answer.len() == MAX_HEAD {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "its answer has no end"));
            }
            answer.push(stream.read_u8().await?);
        }
        let line = answer.split(|byte| *byte == b'\r').next().unwrap_or_default();
        let line = String::from_utf8_lossy(line);
        let status =
            line.strip_prefix("HTTP/1.").and_then(|rest| rest.split(' ').nth(1)).and_then(|code| code.parse().ok());
        match status {
            Some(200..=299_u16) => Ok(()),
            Some(407) => Err(io::Error::new(io::ErrorKind::PermissionDenied, "it wants other credentials (407)")),
            Some(status) => Err(io::Error::other(format!("it refuses with status {status}"))),
            None => Err(io::Error::new(io::ErrorKind::InvalidData, "it does not answer in HTTP")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said<'a>(https: &'a str, http: &'a str, no: &'a str) -> Said<'a> {
        let some = |text: &'a str| (!text.is_empty()).then_some(text);
        Said { https: some(https), http: some(http), all: None, no: some(no) }
    }

    #[test]
    fn hops() {
        let said = said("http://me:p%40ss@proxy.example:3128", "", "internal.example,10.0.0.0/8,.corp");
        let via = Via::new(said, &[4141]).unwrap();
        for (host, tls, through) in [
            ("api.openai.com", true, true),
            ("api.openai.com", false, false),
            ("internal.example", true, false),
            ("llm.internal.example", true, false),
            ("a.corp", true, false),
            ("10.1.2.3", true, false),
            ("11.1.2.3", true, true),
            ("2001:db8::1", true, true),
            ("127.0.0.1", true, false),
            ("::1", true, false),
            ("localhost", true, false),
        ] {
            let hop = via.hop(host, 443, tls);
            assert_eq!(hop.is_some(), through, "{host}");
            let Some(hop) = hop else { continue };
            assert_eq!((&*hop.host, hop.port), ("proxy.example", 3128));
            let authorization = Some(HeaderValue::from_static("Basic bWU6cEBzcw=="));
            assert_eq!(hop.speaks, Speaks::Http { tls: false, authorization });
        }
        assert!(!format!("{via:?}").contains("ss"), "no password is shown");
        assert!(Via::none().hop("api.openai.com", 443, true).is_none());
    }

    #[test]
    fn socks() {
        let text = |text: &str| Secret::new(text.to_owned());
        let login = |user, password| Some(Login { user: text(user), password: text(password) });
        for (value, want, names, who) in [
            ("socks5://h", ("h", 1080), false, None),
            ("socks5h://h:1081", ("h", 1081), true, None),
            ("socks5h://me:p%40ss@[::1]:1", ("::1", 1), true, login("me", "p@ss")),
            ("socks5://me@h", ("h", 1080), false, login("me", "")),
        ] {
            let via = Via::new(Said { all: Some(value), ..Said::default() }, &[]).unwrap();
            let hop = via.hop("api.openai.com", 443, true).unwrap();
            assert_eq!((&*hop.host, hop.port), want, "{value}");
            assert!(!format!("{hop:?}").contains("p@ss"), "no password is shown");
            assert_eq!(hop.speaks, Speaks::Socks { names, login: who }, "{value}");
            assert!(via.hop("localhost", 443, true).is_none());
        }
        // Whatever is never used is not looked at.
        let unused = Said { all: Some("socks4://h"), ..said("http://h", "http://h", "") };
        assert!(Via::new(unused, &[]).is_ok());
        let used = Said { all: Some("socks4://h"), ..said("http://h", "", "") };
        assert_eq!(Via::new(used, &[]).unwrap_err().name, "ALL_PROXY");
    }

    #[test]
    fn bad_ones_are_named_and_not_shown() {
        for (value, want) in [
            ("socks4a://user:secret@h:1080", "HTTPS_PROXY: is a SOCKS proxy of a version"),
            ("socks5://user:secret@[::1]:4141", "HTTPS_PROXY: is this sidekey itself"),
            ("ftp://secret", "HTTPS_PROXY: is no proxy of a known kind"),
            ("http://", "HTTPS_PROXY: is not a URL"),
            ("http://localhost:4141", "HTTPS_PROXY: is this sidekey itself"),
            ("http://[::1]:4141", "HTTPS_PROXY: is this sidekey itself"),
            ("127.0.0.1:4141", "HTTPS_PROXY: is this sidekey itself"),
        ] {
            let error = Via::new(said(value, "", ""), &[4141]).unwrap_err().to_string();
            assert!(error.starts_with(want) && !error.contains("secret"), "{value}: {error}");
        }
        assert!(Via::new(said("http://localhost:3128", "", ""), &[4141]).is_ok());
    }

    #[tokio::test]
    async fn a_proxy_is_asked() {
        for (answer, want) in [
            ("HTTP/1.1 200 Connection established\r\nvia: x\r\n\r\nhello", Ok(())),
            ("HTTP/1.0 200 OK\r\n\r\nhello", Ok(())),
            ("HTTP/1.1 407 Proxy Authentication Required\r\n\r\n", Err("407")),
            ("HTTP/1.1 403 Forbidden\r\n\r\n", Err("403")),
            ("SSH-2.0-x\r\n\r\n", Err("HTTP")),
            ("HTTP/1.1 200", Err("unexpected end")),
        ] {
            let via = Via::new(said("http://a:b@proxy.example", "", ""), &[]).unwrap();
            let hop = via.hop("2001:db8::1", 443, true).unwrap();
            let (mut ours, mut theirs) = tokio::io::duplex(1024);
            theirs.write_all(answer.as_bytes()).await.unwrap();
            theirs.shutdown().await.unwrap();
            let asked = hop.ask(&mut ours, "2001:db8::1", 443).await;
            match (&asked, want) {
                (Ok(()), Ok(())) => {
                    let mut rest = String::new();
                    ours.read_to_string(&mut rest).await.unwrap();
                    assert_eq!(rest, "hello");
                }
                (Err(error), Err(want)) => assert!(error.to_string().contains(want), "{answer}: {error}"),
                other => panic!("{answer}: {other:?}"),
            }
            drop(ours);
            let mut head = String::new();
            theirs.read_to_string(&mut head).await.unwrap();
            let want = "CONNECT [2001:db8::1]:443 HTTP/1.1\r\nHost: [2001:db8::1]:443\r\nProxy-Authorization: Basic YTpi\r\n\r\n";
            assert_eq!(head, want);
        }
    }
}
