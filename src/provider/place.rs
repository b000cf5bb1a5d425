//! [`Place`]: scheme, host, port and prefix of an upstream; and which vendor a host belongs to.
//!
//! Owns reading a base URL and matching hosts; leaves what a provider is to [`super::Upstream`], resolving names to `net`.

use std::net::IpAddr;
use std::sync::Arc;

use http::Uri;
use http::header::HeaderValue;
use wildmatch::WildMatch;

use super::{PROVIDERS, Provider};

/// With or without TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Scheme {
    /// Plain.
    Http,
    /// TLS.
    Https,
}

impl Scheme {
    /// As in a URL.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
        }
    }

    const fn default_port(self) -> u16 {
        match self {
            Self::Http => 80,
            Self::Https => 443,
        }
    }
}

/// Where a provider is: taken from the table or the operator, never from a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) scheme: Scheme,
    /// Lower case; of an IPv6 address, without its brackets.
    pub(super) host: Arc<str>,
    pub(super) port: u16,
    pub(super) authority: HeaderValue,
    pub(super) base_path: Arc<str>,
}

impl Place {
    /// Reads a base URL.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let shape = "write scheme://host[:port], as in https://llm.example.com";
        let uri: Uri = text.parse().map_err(|error| format!("{text:?} is not a URL ({error}); {shape}"))?;
        let scheme = match uri.scheme_str() {
            Some("http") => Scheme::Http,
            Some("https") => Scheme::Https,
            _ => return Err(format!("{text:?} has no http:// or https://; {shape}")),
        };
        let authority = uri.authority().ok_or_else(|| format!("{text:?} names no host; {shape}"))?;
        if authority.as_str().contains('@') {
            return Err(format!("a base URL holds no credentials; {shape}, and add the key as a provider key"));
        }
        if uri.query().is_some() || text.contains('#') {
            return Err(format!("{text:?} has a query or fragment; {shape}"));
        }
        super::check_path(uri.path()).map_err(|error| error.to_string())?;
        let port = match authority.port() {
            // What follows the host is then no number of a port.
            None if authority.as_str().len() > authority.host().len() => {
                return Err(format!("{text:?} has a malformed port; {shape}"));
            }
            None => scheme.default_port(),
            Some(port) if port.as_u16() == 0 => return Err(format!("{text:?} has port 0; {shape}")),
            Some(port) => port.as_u16(),
        };
        Self::new(scheme, authority.host(), port, uri.path().trim_end_matches('/'))
            .ok_or_else(|| format!("{text:?} names no host; {shape}"))
    }

    pub(super) fn new(scheme: Scheme, host: &str, port: u16, base_path: &str) -> Option<Self> {
        let host = host.trim_start_matches('[').trim_end_matches(']').trim_end_matches('.').to_ascii_lowercase();
        if host.is_empty() {
            return None;
        }
        let shown = if host.contains(':') { format!("[{host}]") } else { host.clone() };
        let authority = if port == scheme.default_port() { shown } else { format!("{shown}:{port}") };
        let authority = HeaderValue::try_from(authority).ok()?;
        Some(Self { scheme, host: host.into(), port, authority, base_path: base_path.into() })
    }

    /// `scheme://host:port`.
    pub(super) fn origin(&self) -> String {
        let host = if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.to_string() };
        format!("{}://{host}:{}", self.scheme.as_str(), self.port)
    }

    /// True when the name or address is plainly this machine or a private network.
    pub(super) fn is_local(&self) -> bool {
        let ip = self.host.parse::<IpAddr>().map(|ip| ip.to_canonical());
        match ip {
            Ok(IpAddr::V4(ip)) => ip.is_loopback() || ip.is_private() || ip.is_link_local() || ip.is_unspecified(),
            Ok(IpAddr::V6(ip)) => {
                ip.is_loopback() || ip.is_unique_local() || ip.is_unicast_link_local() || ip.is_unspecified()
            }
            Err(_) => &*self.host == "localhost" || self.host.ends_with(".localhost"),
        }
    }
}

/// The vendor a host belongs to.
pub(super) fn vendor(host: &str) -> Option<&'static Provider> {
    PROVIDERS.iter().find(|row| row.hosts.iter().any(|pattern| host_matches(pattern, host)))
}

/// `*` in a pattern stands for a label or a part of one, never for several: `bedrock-runtime.*.amazonaws.com` must not
/// be `bedrock-runtime.x.s3.amazonaws.com`, a bucket of anyone's.
pub(super) fn host_matches(pattern: &str, host: &str) -> bool {
    if !pattern.contains('*') {
        return pattern == host;
    }
    let labels = || pattern.split('.').zip(host.split('.'));
    pattern.split('.').count() == host.split('.').count()
        && labels().all(|(pattern, label)| !label.is_empty() && WildMatch::new(pattern).matches(label))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places() {
        for (url, origin, authority, base_path, host) in [
            ("https://api.openai.com", "https://api.openai.com:443", "api.openai.com", "", "api.openai.com"),
            ("HTTPS://API.OpenAI.com./", "https://api.openai.com:443", "api.openai.com", "", "api.openai.com"),
            ("http://127.0.0.1:9001", "http://127.0.0.1:9001", "127.0.0.1:9001", "", "127.0.0.1"),
            ("http://[::1]:80/gw/", "http://[::1]:80", "[::1]", "/gw", "::1"),
            ("https://h:443", "https://h:443", "h", "", "h"),
        ] {
            let place = Place::parse(url).unwrap();
            assert_eq!((&*place.origin(), &*place.host, &*place.base_path), (origin, host, base_path), "{url}");
            assert_eq!(place.authority, authority);
        }
        for bad in [
            "",
            "api.openai.com",
            "ftp://x",
            "https://",
            "https://u:p@h",
            "https://h?x",
            "https://h/..",
            "https://h:0",
            "/v1",
            "https://h:99999",
        ] {
            assert!(Place::parse(bad).is_err(), "{bad}");
        }
    }
}
