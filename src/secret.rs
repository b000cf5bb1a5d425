//! [`Secret`]: text that must not be seen: redacted when printed, wiped when dropped, compared in constant time.
//!
//! Owns the type; leaves sealing at rest to `storage::vault`. Wiping cannot reach copies that hyper's buffers hold
//! while a request is being written.

use std::borrow::Cow;
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

/// What keys begin with: those of sidekey and of the vendors whose keys have a mark.
const MARKS: [&[u8]; 14] = [
    b"sk-", b"AIza", b"gsk_", b"xai-", b"hf_", b"r8_", b"pplx-", b"nvapi-", b"fw_", b"csk-", b"AKIA", b"ASIA",
    b"ya29.", b"dapi",
];
/// A mark and fewer letters than this after it is a word, or a masked key.
const KEY_MIN: usize = 12;

/// `line` with whatever looks like a key blotted out behind its mark. A last resort: no line is meant to hold one.
#[must_use]
pub fn blot(line: &[u8]) -> Cow<'_, [u8]> {
    let is_key = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_.".contains(byte);
    let (mut out, mut at, mut kept) = (Vec::new(), 0, 0);
    while at < line.len() {
        let begins = at == 0 || !is_key(&line[at - 1]) || line[..at].ends_with(b"\\n");
        let mark = MARKS.iter().find(|mark| begins && line[at..].starts_with(mark));
        let Some(mark) = mark else {
            at += 1;
            continue;
        };
        let rest = &line[at + mark.len()..];
        let len = rest.iter().position(|byte| !is_key(byte)).unwrap_or(rest.len());
        let end = at + mark.len() + len;
        // A virtual key's id is public, its secret is not.
        let looks_secret = len >= KEY_MIN && rest[..len].iter().any(u8::is_ascii_digit);
        if looks_secret {
            out.extend_from_slice(&line[kept..at + mark.len()]);
            out.extend_from_slice("[redacted]".as_bytes());
            kept = end;
        }
        at = end;
    }
    if kept == 0 {
        return Cow::Borrowed(line);
    }
    out.extend_from_slice(&line[kept..]);
    Cow::Owned(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_looks_like_a_key_is_blotted_out() {
        for (line, want) in [
            ("nothing to see", "nothing to see"),
            ("key sk-proj-abcDEF123456_7890-x.", "key sk-[redacted]"),
            (r#"{"a":"Bearer sk-side-a1b2c3d4e5f67890-abcdefgh","b":1}"#, r#"{"a":"Bearer sk-[redacted]","b":1}"#),
            ("AIzaSyA1234567890abcdef and gsk_0123456789abcdef", "AIza[redacted] and gsk_[redacted]"),
            ("sk-\u{2026}last4 and sk-short1", "sk-\u{2026}last4 and sk-short1"),
            ("task-0123456789abcdefgh", "task-0123456789abcdefgh"),
            ("sk-a-name-without-figures", "sk-a-name-without-figures"),
        ] {
            assert_eq!(String::from_utf8_lossy(&blot(line.as_bytes())), want, "{line}");
        }
    }

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
