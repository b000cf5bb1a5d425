//! `[alerts]` of the config: who is told of events, and what counts as unusual.
//!
//! Owns the section and what cannot be said in it; leaves telling to `alerts::deliver`.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use http::Uri;
use http::header::HeaderValue;
use serde::{Deserialize, Serialize};

use crate::event::{Kind, Severity};
use crate::net::dial::{Origin, Reach};
use crate::secret::Secret;
use crate::storage::Unusual;
use crate::unit::duration;

/// `[alerts]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AlertsSection {
    /// What this installation calls itself to receivers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub instance: Option<String>,
    /// How long the same is told once only, with a count at the end.
    #[serde(with = "duration")]
    pub repeat_after: Duration,
    /// A virtual key's rate is told when it is so many times what it was; 0 is never.
    pub unusual_factor: u32,
    /// And more than so many requests in a minute.
    pub unusual_floor: u32,
    /// Receivers, by name.
    pub webhooks: BTreeMap<String, WebhookSection>,
}

impl Default for AlertsSection {
    fn default() -> Self {
        let Unusual { factor, floor } = Unusual::default();
        Self {
            instance: None,
            repeat_after: Duration::from_secs(600),
            unusual_factor: factor,
            unusual_floor: floor,
            webhooks: BTreeMap::new(),
        }
    }
}

/// One receiver.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct WebhookSection {
    /// Where to.
    pub url: String,
    /// Where the key of signatures is: `env:NAME` or `file:/path`.
    pub secret: String,
    /// Kinds of events, `provider_key.*` being all of those; empty is every kind.
    pub kinds: Vec<String>,
    /// The least that is told.
    pub min_severity: Severity,
    /// How long one attempt may take.
    #[serde(with = "duration")]
    pub timeout: Duration,
    /// Whether it may be at a private or loopback address.
    pub allow_private: bool,
}

impl Default for WebhookSection {
    fn default() -> Self {
        Self {
            url: String::new(),
            secret: String::new(),
            kinds: Vec::new(),
            min_severity: Severity::Warning,
            timeout: Duration::from_secs(10),
            allow_private: false,
        }
    }
}

impl AlertsSection {
    /// What counts as unusual.
    #[must_use]
    pub fn unusual(&self) -> Unusual {
        Unusual { factor: self.unusual_factor, floor: self.unusual_floor }
    }

    /// What is wrong, by field.
    #[must_use]
    pub fn faults(&self) -> Vec<(String, String)> {
        let of_hook = |(name, hook): (&String, &WebhookSection)| {
            let at = |(field, what): (&str, String)| (format!("webhooks.{name}.{field}"), what);
            hook.faults().into_iter().map(at).collect::<Vec<_>>()
        };
        self.webhooks.iter().flat_map(of_hook).collect()
    }
}

impl WebhookSection {
    fn faults(&self) -> Vec<(&'static str, String)> {
        let mut faults = Vec::new();
        faults.extend(self.target().err().map(|what| ("url", what)));
        faults.extend(self.source().err().map(|what| ("secret", what)));
        faults.extend(self.patterns().err().map(|what| ("kinds", what)));
        if self.timeout.is_zero() {
            faults.push(("timeout", "must be above zero".to_owned()));
        }
        faults
    }

    /// Where its URL leads.
    pub(super) fn target(&self) -> Result<Target, String> {
        let shape = "write https://host[:port]/path";
        if self.url.is_empty() {
            return Err(format!("is missing; {shape}"));
        }
        // What is wrong is not repeated: a URL of a receiver often holds a secret of its own.
        let uri: Uri = self.url.parse().map_err(|_| format!("is not a URL; {shape}"))?;
        let (Some(scheme), Some(authority)) = (uri.scheme_str(), uri.authority()) else {
            return Err(format!("is not a whole URL; {shape}"));
        };
        let tls = match scheme {
            "https" => true,
            "http" if self.allow_private => false,
            "http" => {
                return Err(format!("is sent in clear text; {shape}, or allow_private = true for a receiver near by"));
            }
            _ => return Err(format!("is neither https:// nor http://; {shape}")),
        };
        if authority.as_str().contains('@') || authority.host().is_empty() {
            return Err(format!("holds credentials, or no host; {shape}"));
        }
        let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_ascii_lowercase();
        let port = authority.port_u16().unwrap_or(if tls { 443 } else { 80 });
        let reach = if self.allow_private { Reach::Private } else { Reach::Public };
        let origin = Origin { host: host.into(), port, tls, http2: false, reach };
        let header = HeaderValue::try_from(authority.as_str()).map_err(|_| format!("is not a URL; {shape}"))?;
        let path = uri.path_and_query().map_or("/", |path| path.as_str()).to_owned();
        Ok(Target { origin, authority: header, path })
    }

    pub(super) fn source(&self) -> Result<Source, String> {
        match self.secret.split_once(':') {
            Some(("env", name)) if !name.is_empty() => Ok(Source::Env(name.to_owned())),
            Some(("file", path)) if path.starts_with('/') => Ok(Source::File(path.into())),
            // It may be the secret itself.
            _ => Err("must say where the secret is: env:NAME or file:/path".to_owned()),
        }
    }

    pub(super) fn patterns(&self) -> Result<Vec<Pattern>, String> {
        let known = |said: &String| {
            let pattern = match said.strip_suffix(".*") {
                Some(about) => Pattern::About(about.to_owned()),
                None => Pattern::One(said.to_owned()),
            };
            let words: Vec<&str> = Kind::ALL.iter().map(|kind| kind.as_str()).collect();
            match Kind::ALL.iter().any(|kind| pattern.matches(*kind)) {
                true => Ok(pattern),
                false => Err(format!("{said:?} is no kind of event; there are {}", words.join(", "))),
            }
        };
        self.kinds.iter().map(known).collect()
    }
}

/// Where a receiver is.
#[derive(Clone, Debug)]
pub(super) struct Target {
    pub(super) origin: Origin,
    pub(super) authority: HeaderValue,
    pub(super) path: String,
}

/// Where a secret is.
#[derive(Clone, Debug)]
pub(super) enum Source {
    Env(String),
    File(PathBuf),
}

impl Source {
    /// The secret as it is now; `env` are the variables.
    pub(super) fn read(&self, env: &dyn Fn(&str) -> Option<String>) -> Result<Secret, String> {
        let text = match self {
            Self::Env(name) => env(name).ok_or_else(|| format!("the variable {name} is not set"))?,
            Self::File(path) => {
                std::fs::read_to_string(path).map_err(|error| format!("{} cannot be read: {error}", path.display()))?
            }
        };
        match text.trim() {
            "" => Err("it is empty".to_owned()),
            text => Ok(Secret::new(text.to_owned())),
        }
    }
}

/// Which kinds are told.
#[derive(Clone, Debug)]
pub(super) enum Pattern {
    About(String),
    One(String),
}

impl Pattern {
    pub(super) fn matches(&self, kind: Kind) -> bool {
        match self {
            Self::About(about) => kind.as_str().split('.').next() == Some(about),
            Self::One(word) => kind.as_str() == word,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_said() {
        let good = WebhookSection {
            url: "https://hooks.example.com/x?y=1".to_owned(),
            secret: "env:HOOK".to_owned(),
            kinds: vec!["provider_key.*".to_owned(), "budget.threshold".to_owned()],
            ..WebhookSection::default()
        };
        assert_eq!(good.faults(), []);
        let with = |change: &dyn Fn(&mut WebhookSection)| {
            let mut hook = good.clone();
            change(&mut hook);
            hook.faults()
        };
        for (field, part, faults) in [
            ("url", "is missing", with(&|hook| hook.url.clear())),
            ("url", "clear text", with(&|hook| hook.url = "http://hooks.example.com".to_owned())),
            ("url", "credentials", with(&|hook| hook.url = "https://a:hush@hooks.example.com".to_owned())),
            ("url", "not a whole URL", with(&|hook| hook.url = "/hooks/hush".to_owned())),
            ("url", "neither", with(&|hook| hook.url = "ftp://hooks.example.com".to_owned())),
            ("secret", "env:NAME", with(&|hook| hook.secret = "hush".to_owned())),
            ("secret", "env:NAME", with(&|hook| hook.secret = "file:relative".to_owned())),
            ("kinds", "budget.threshold", with(&|hook| hook.kinds = vec!["budget".to_owned()])),
            ("timeout", "above zero", with(&|hook| hook.timeout = Duration::ZERO)),
        ] {
            assert_eq!(faults.len(), 1, "{field}: {faults:?}");
            assert_eq!(faults[0].0, field);
            assert!(faults[0].1.contains(part) && !faults[0].1.contains("hush"), "{faults:?}");
        }
        let near = with(&|hook| (hook.url, hook.allow_private) = ("http://127.0.0.1:9/x".to_owned(), true));
        assert_eq!(near, []);
    }
}
