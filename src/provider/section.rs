//! `[providers.<id>]` of the config, as the operator wrote it, and what can be wrong with it.
//!
//! Owns the fields; leaves their meaning to [`super::Upstream`] and finding the file's lines to `config`.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::virtual_key::StreamUsage;

/// One `[providers.<id>]`: for a built-in provider only what differs, else a provider of the operator's own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ProviderSection {
    /// The dialect's name; a built-in has its own, and a known vendor's host tells it too.
    pub dialect: Option<String>,
    /// `scheme://host[:port][/prefix]`; the provider's own path follows.
    pub base_url: Option<String>,
    /// How the key is presented: see [`super::Auth`].
    pub auth: Option<String>,
    /// More hosts that mean this provider when a client connects to them: names, or patterns with `*`.
    pub hosts: Vec<String>,
    /// What stands here for `/v1` of a bare request.
    pub v1: Option<String>,
    /// Environment variables that may hold a system key, best first.
    pub env: Option<Vec<String>>,
    /// How the usage of a stream is learned.
    pub stream_usage: Option<StreamUsage>,
    /// `"identity"` asks for uncompressed answers in place of what the client asked for.
    pub accept_encoding: Option<AcceptEncoding>,
    /// Globs of models by which a bare request finds this provider; they come before the built-in ones.
    pub models: Vec<String>,
    /// Switched on or not.
    pub enabled: bool,
    /// How long a connection may take; no limit unless set.
    pub connect_timeout: Option<Timeout>,
    /// How long the head of an answer may take; no limit unless set.
    pub head_timeout: Option<Timeout>,
    /// Whether private and loopback addresses may be dialled. Yes for a `base_url` of the operator's own, no for a
    /// vendor's host.
    pub allow_private: Option<bool>,
    /// Whether to offer HTTP/2.
    pub http2: bool,
    /// True when the provider can do without a key.
    pub keyless: Option<bool>,
    /// Path of a GET that costs nothing and needs a good key.
    pub test: Option<String>,
}

impl Default for ProviderSection {
    fn default() -> Self {
        Self {
            dialect: None,
            base_url: None,
            auth: None,
            hosts: Vec::new(),
            v1: None,
            env: None,
            stream_usage: None,
            accept_encoding: None,
            models: Vec::new(),
            enabled: true,
            connect_timeout: None,
            head_timeout: None,
            allow_private: None,
            http2: false,
            keyless: None,
            test: None,
        }
    }
}

/// What goes upstream in place of the client's `accept-encoding`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AcceptEncoding {
    /// No compression: spares the tally its decoder.
    Identity,
}

/// A duration in the config: `"500ms"`, `"10s"`, `"2m"`, or a number of seconds. Never zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Timeout(Duration);

impl Timeout {
    /// The duration.
    #[must_use]
    pub const fn duration(self) -> Duration {
        self.0
    }

    fn from_ms(ms: u64) -> Option<Self> {
        (ms > 0).then_some(Self(Duration::from_millis(ms)))
    }

    fn parse(text: &str) -> Option<Self> {
        let digits = text.bytes().take_while(u8::is_ascii_digit).count();
        let number: u64 = text[..digits].parse().ok()?;
        let unit = match text[digits..].trim() {
            "ms" => 1,
            "" | "s" => 1_000,
            "m" => 60_000,
            "h" => 3_600_000,
            _ => return None,
        };
        Self::from_ms(number.checked_mul(unit)?)
    }
}

impl Serialize for Timeout {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{}ms", self.0.as_millis()))
    }
}

impl<'de> Deserialize<'de> for Timeout {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl serde::de::Visitor<'_> for Visitor {
            type Value = Timeout;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a duration above zero such as \"500ms\", \"10s\" or \"2m\", or a number of seconds")
            }
            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Timeout, E> {
                Timeout::parse(text).ok_or_else(|| E::invalid_value(serde::de::Unexpected::Str(text), &self))
            }
            fn visit_i64<E: serde::de::Error>(self, secs: i64) -> Result<Timeout, E> {
                let ms = u64::try_from(secs).ok().and_then(|secs| secs.checked_mul(1000));
                ms.and_then(Timeout::from_ms)
                    .ok_or_else(|| E::invalid_value(serde::de::Unexpected::Signed(secs), &self))
            }
            fn visit_u64<E: serde::de::Error>(self, secs: u64) -> Result<Timeout, E> {
                let ms = secs.checked_mul(1000);
                ms.and_then(Timeout::from_ms)
                    .ok_or_else(|| E::invalid_value(serde::de::Unexpected::Unsigned(secs), &self))
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

/// One thing that is wrong with the providers of a config.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("[providers.{provider}]{}{field}: {problem}", if field.is_empty() { "" } else { " " })]
pub struct ConfigFault {
    /// The section.
    pub provider: String,
    /// The field; empty for the section itself.
    pub field: &'static str,
    /// What is wrong, and the fix.
    pub problem: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sections_are_read() {
        let section: ProviderSection = toml::from_str(
            "base_url = \"http://127.0.0.1:9001\"\nstream_usage = \"request\"\naccept_encoding = \"identity\"\n\
             connect_timeout = \"1500ms\"\nhead_timeout = 2\nhttp2 = true",
        )
        .unwrap();
        assert_eq!(section.stream_usage, Some(StreamUsage::Request));
        assert_eq!(section.connect_timeout.map(Timeout::duration), Some(Duration::from_millis(1500)));
        assert_eq!(section.head_timeout.map(Timeout::duration), Some(Duration::from_secs(2)));
        assert!(section.enabled && section.http2);
        assert_eq!(toml::from_str::<ProviderSection>(&toml::to_string(&section).unwrap()).unwrap(), section);
        for bad in ["baseurl = \"x\"", "head_timeout = 0", "head_timeout = \"1 day\"", "accept_encoding = \"gzip\""] {
            assert!(toml::from_str::<ProviderSection>(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn durations() {
        for (text, want) in [
            ("500ms", Some(500)),
            ("10s", Some(10_000)),
            ("10", Some(10_000)),
            ("2 m", Some(120_000)),
            ("1h", Some(3_600_000)),
            ("0s", None),
            ("", None),
            ("-1s", None),
            ("1.5s", None),
            ("99999999999999999999s", None),
            ("9999999999999999999h", None),
        ] {
            assert_eq!(Timeout::parse(text).map(|timeout| timeout.duration().as_millis()), want, "{text}");
        }
    }
}
