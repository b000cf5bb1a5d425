//! [`Secret`]: text that must not be seen: redacted when printed, wiped when dropped, compared in constant time.
//!
//! Owns the type; leaves sealing at rest to `storage::vault`. Wiping cannot reach copies that hyper's buffers hold
//! while a request is being written.

use std::fmt;

use zeroize::Zeroizing;

/// A provider's real key, a virtual key's secret, a token. It has no `Display` and no serde: call [`Secret::expose`].
#[derive(Clone, Default)]
pub struct Secret(Zeroizing<String>);

impl Secret {
    /// Wraps `text`.
    #[must_use]
    pub fn new(text: String) -> Self {
        Self(Zeroizing::new(text))
    }

    /// The text itself. Each call is a place to look at in a review.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// What may be shown: the vendor's prefix and the last four characters, `sk-…last4`; short secrets show nothing.
    #[must_use]
    pub fn masked(&self) -> String {
        mask(&self.0)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

impl PartialEq for Secret {
    fn eq(&self, other: &Self) -> bool {
        aws_lc_rs::constant_time::verify_slices_are_equal(self.0.as_bytes(), other.0.as_bytes()).is_ok()
    }
}

impl Eq for Secret {}

impl From<String> for Secret {
    fn from(text: String) -> Self {
        Self::new(text)
    }
}

/// See [`Secret::masked`]. Fewer than 16 characters leave too little hidden, so nothing of them is shown.
fn mask(text: &str) -> String {
    let chars: Vec<char> = text.chars().collect();
    if chars.len() < 16 {
        return "…".to_owned();
    }
    let last: String = chars[chars.len() - 4..].iter().collect();
    let prefix: String = match chars.iter().take(6).position(|c| *c == '-' || *c == '_') {
        Some(end) => chars[..=end].iter().collect(),
        None => String::new(),
    };
    format!("{prefix}…{last}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn never_printed() {
        let secret = Secret::new("sk-proj-1234567890abcdef".to_owned());
        assert_eq!(format!("{secret:?}"), "[redacted]");
        assert_eq!(secret.masked(), "sk-…cdef");
    }

    #[test]
    fn masks() {
        for (text, want) in [
            ("", "…"),
            ("short", "…"),
            ("sk-123456789012", "…"),
            ("gsk_abcdefghijklmnop", "gsk_…mnop"),
            ("AIzaSyA-abcdefghijkl", "…ijkl"),
            ("0123456789abcdef0123456789abcdef", "…cdef"),
        ] {
            assert_eq!(mask(text), want, "{text}");
        }
    }

    #[test]
    fn compares() {
        assert_eq!(Secret::new("a".into()), Secret::new("a".into()));
        assert_ne!(Secret::new("a".into()), Secret::new("ab".into()));
    }
}
