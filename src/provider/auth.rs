//! [`Auth`]: how a provider wants its key presented.
//!
//! Owns the credential headers of a request that goes upstream; leaves removing the client's own credential to
//! `proxy::headers`, and where a key comes from to `storage`.

use std::fmt;
use std::str::FromStr;

use bytes::BytesMut;
use http::header::{AUTHORIZATION, HeaderMap, HeaderName, HeaderValue};

use crate::secret::Secret;

const ANTHROPIC_BETA: HeaderName = HeaderName::from_static("anthropic-beta");
/// What Anthropic wants said beside a key of a subscription.
const OAUTH_BETA: &str = "oauth-2025-04-20";

/// Where the key goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Auth {
    /// `Authorization: Bearer`.
    Bearer,
    /// `api-key`.
    ApiKey,
    /// `x-api-key`.
    XApiKey,
    /// `x-goog-api-key`.
    XGoogApiKey,
    /// The provider takes no key.
    None,
}

/// A key that no header can carry. It says nothing of the key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the provider key is empty or holds characters that no header can carry; enter it again without line breaks")]
pub struct BadKey;

impl Auth {
    /// Every way, for messages.
    pub const ALL: [Self; 5] = [Self::Bearer, Self::ApiKey, Self::XApiKey, Self::XGoogApiKey, Self::None];

    /// The word in the config.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::ApiKey => "api-key",
            Self::Bearer => "bearer",
            Self::None => "none",
            Self::XApiKey => "x-api-key",
            Self::XGoogApiKey => "x-goog-api-key",
        }
    }

    /// The header it uses.
    #[must_use]
    pub fn header(self) -> Option<HeaderName> {
        match self {
            Self::Bearer => Some(AUTHORIZATION),
            Self::ApiKey | Self::XApiKey | Self::XGoogApiKey => Some(HeaderName::from_static(self.as_str())),
            Self::None => None,
        }
    }

    /// The way this key is really presented: subscription keys of Anthropic and access tokens of Google, told by their
    /// prefix, are bearer tokens.
    #[must_use]
    pub fn for_key(self, key: &Secret) -> Self {
        let key = key.expose();
        let starts = |prefixes: &[&str]| prefixes.iter().any(|prefix| key.starts_with(prefix));
        match self {
            Self::XApiKey if starts(&["sk-ant-oat"]) => Self::Bearer,
            Self::XGoogApiKey if starts(&["ya29."]) => Self::Bearer,
            Self::ApiKey | Self::Bearer | Self::None | Self::XApiKey | Self::XGoogApiKey => self,
        }
    }

    /// The header's value, marked sensitive, so that neither `Debug` nor HTTP/2's tables keep it.
    ///
    /// # Errors
    /// When the key has bytes no header may have, or is empty.
    pub fn value(self, key: &Secret) -> Result<HeaderValue, BadKey> {
        let key = key.expose();
        if key.is_empty() {
            return Err(BadKey);
        }
        let scheme = if self == Self::Bearer { "Bearer " } else { "" };
        let mut text = BytesMut::with_capacity(scheme.len() + key.len());
        text.extend_from_slice(scheme.as_bytes());
        text.extend_from_slice(key.as_bytes());
        // The header keeps these very bytes: no copy of the key is left elsewhere.
        let value = HeaderValue::from_maybe_shared(text.freeze());
        let mut value = value.map_err(|_| BadKey)?;
        value.set_sensitive(true);
        Ok(value)
    }

    /// Puts the key where it belongs, in place of what stood there. Other credentials of the client stay: remove them
    /// first.
    ///
    /// # Errors
    /// As [`Auth::value`].
    pub fn apply(self, headers: &mut HeaderMap, key: &Secret) -> Result<(), BadKey> {
        let auth = self.for_key(key);
        if let Some(name) = auth.header() {
            headers.insert(name, auth.value(key)?);
        }
        if self == Self::XApiKey && auth == Self::Bearer {
            add_beta(headers);
        }
        Ok(())
    }
}

/// Adds the flag that subscription keys need to those the client asked for.
fn add_beta(headers: &mut HeaderMap) {
    let said = headers.get_all(ANTHROPIC_BETA).iter().filter_map(|value| value.to_str().ok());
    if !said.flat_map(|value| value.split(',')).any(|flag| flag.trim() == OAUTH_BETA) {
        headers.append(ANTHROPIC_BETA, HeaderValue::from_static(OAUTH_BETA));
    }
}

impl fmt::Display for Auth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A word that names no way to present a key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{given:?} is not a way to present a key; use bearer, api-key, x-api-key, x-goog-api-key or none")]
pub struct UnknownAuth {
    given: String,
}

impl FromStr for Auth {
    type Err = UnknownAuth;

    fn from_str(text: &str) -> Result<Self, UnknownAuth> {
        Self::ALL.into_iter().find(|auth| auth.as_str() == text).ok_or_else(|| UnknownAuth { given: text.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_go_where_they_belong() {
        for (auth, key, name, want) in [
            (Auth::Bearer, "sk-1", "authorization", "Bearer sk-1"),
            (Auth::ApiKey, "k", "api-key", "k"),
            (Auth::XApiKey, "sk-ant-api03-x", "x-api-key", "sk-ant-api03-x"),
            (Auth::XApiKey, "sk-ant-oat01-x", "authorization", "Bearer sk-ant-oat01-x"),
            (Auth::XGoogApiKey, "AIzaX", "x-goog-api-key", "AIzaX"),
            (Auth::XGoogApiKey, "ya29.x", "authorization", "Bearer ya29.x"),
            (Auth::Bearer, "ya29.x", "authorization", "Bearer ya29.x"),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(HeaderName::try_from(name).unwrap(), HeaderValue::from_static("the client's"));
            auth.apply(&mut headers, &Secret::new(key.to_owned())).unwrap();
            assert_eq!(headers.get(name).unwrap(), want);
            assert_eq!(headers.get_all(name).iter().count(), 1);
            assert!(headers.get(name).unwrap().is_sensitive());
            assert_eq!(headers.contains_key("anthropic-beta"), key.contains("oat"), "{key}");
        }
    }

    #[test]
    fn the_flag_of_subscriptions_is_added_once() {
        let mut headers = HeaderMap::new();
        headers.insert("anthropic-beta", HeaderValue::from_static("files-api-2025-04-14, oauth-2025-04-20"));
        Auth::XApiKey.apply(&mut headers, &Secret::new("sk-ant-oat01-x".to_owned())).unwrap();
        assert_eq!(headers.get_all("anthropic-beta").iter().count(), 1);
    }

    #[test]
    fn keys_that_break_headers_are_refused() {
        for key in ["", "a\nb", "a\r\nx: y", "\u{0}"] {
            for auth in [Auth::Bearer, Auth::XApiKey] {
                assert_eq!(auth.apply(&mut HeaderMap::new(), &Secret::new(key.to_owned())), Err(BadKey), "{key:?}");
            }
        }
        assert_eq!(Auth::None.apply(&mut HeaderMap::new(), &Secret::default()), Ok(()));
    }

    #[test]
    fn words() {
        for auth in Auth::ALL {
            assert_eq!(auth.as_str().parse(), Ok(auth));
        }
        assert!("Bearer".parse::<Auth>().is_err());
    }
}
