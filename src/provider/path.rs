//! Paths as a provider will read them: which spellings are refused, and the decoded segments of the rest.
//!
//! Owns the rule that what is classified here is what the provider reads; leaves the meaning of segments to dialects.
//!
//! Why: a path is forwarded as it came, so a spelling that two readers take differently would let a request pass as
//! something harmless. Such spellings are refused before anything is classified ([`check_path`]); what remains is
//! compared decoded and without regard to case, with empty segments left out, which is the most lenient reading a
//! provider could have.

use std::borrow::Cow;

/// Why a path is refused with 400.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadPath {
    /// `%` without two hex digits, or an encoded `%` (decoded twice by some).
    #[error("the path holds a malformed or doubled percent-encoding; send it encoded once")]
    Encoding,
    /// A segment `.` or `..`, encoded or not.
    #[error("the path holds a `.` or `..` segment; send it resolved")]
    DotSegment,
    /// An encoded slash outside the id of a model.
    #[error("the path holds an encoded slash; only the id of a model may")]
    EncodedSlash,
    /// A backslash, semicolon, control character, or a byte that is not ASCII.
    #[error("the path holds a backslash, semicolon, control or non-ASCII character; encode or drop it")]
    Character,
}

/// Refuses paths that two readers could take differently. `path` may end in a query, which is not looked at.
///
/// # Errors
/// The first rule it breaks.
pub fn check_path(path: &str) -> Result<(), BadPath> {
    let path = without_query(path);
    if is_plain(path) { Ok(()) } else { check_segments(path) }
}

fn check_segments(path: &str) -> Result<(), BadPath> {
    let mut before = "";
    for raw in path.split('/') {
        let segment = decode(raw).ok_or(BadPath::Encoding)?;
        if raw.bytes().any(|byte| !byte.is_ascii_graphic()) {
            return Err(BadPath::Character);
        }
        if segment.chars().any(|c| matches!(c, '\\' | ';' | '#' | '?') || c.is_control()) {
            return Err(BadPath::Character);
        }
        if segment.contains('%') {
            return Err(BadPath::Encoding);
        }
        if segment.split('/').any(|part| matches!(part, "." | "..")) {
            return Err(BadPath::DotSegment);
        }
        // `arn:…:inference-profile/x` at Bedrock, `org/model` in the SDKs' `models.retrieve`.
        if segment.contains('/') && !matches!(before, "model" | "models") {
            return Err(BadPath::EncodedSlash);
        }
        if !raw.is_empty() {
            before = raw;
        }
    }
    Ok(())
}

/// True of what nobody reads in two ways, which nearly every path is: nothing that is encoded or set apart, and no segment
/// that begins with a dot.
fn is_plain(path: &str) -> bool {
    let mut before = b'/';
    path.bytes().all(|byte| {
        let dotted = byte == b'.' && before == b'/';
        before = byte;
        !dotted && byte.is_ascii_graphic() && !matches!(byte, b'%' | b'\\' | b';' | b'#')
    })
}

/// The path without its query.
pub(super) fn without_query(path: &str) -> &str {
    path.split_once('?').map_or(path, |(path, _)| path)
}

/// The value of the one query parameter of this name, decoded; `None` when it is absent or given twice.
pub(super) fn query<'a>(path: &'a str, name: &str) -> Option<Cow<'a, str>> {
    let (_, query) = path.split_once('?')?;
    let mut values = query.split('&').filter_map(|pair| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        (decode(key)? == name).then_some(value)
    });
    let value = values.next()?;
    if values.next().is_some() { None } else { decode(value) }
}

/// Percent-decodes; `None` where the encoding is malformed or the result is not UTF-8.
pub(super) fn decode(text: &str) -> Option<Cow<'_, str>> {
    let Some(first) = text.find('%') else { return Some(Cow::Borrowed(text)) };
    let mut bytes = text.as_bytes()[..first].to_vec();
    let mut rest = text.as_bytes()[first..].iter();
    while let Some(&byte) = rest.next() {
        bytes.push(if byte == b'%' { hex(*rest.next()?)? << 4 | hex(*rest.next()?)? } else { byte });
    }
    String::from_utf8(bytes).ok().map(Cow::Owned)
}

/// Percent-encodes a part of a path or a query: all but unreserved characters (RFC 3986 §2.3).
#[must_use]
pub fn encoded(text: &str) -> String {
    let mut out = String::new();
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).and_then(|digit| u8::try_from(digit).ok())
}

/// The decoded segments of a path, empty ones left out; no more than [`Segments::MOST`] are kept.
#[derive(Debug)]
pub(super) struct Segments<'a>(Vec<Cow<'a, str>>);

impl<'a> Segments<'a> {
    /// Splits `path`. A segment that cannot be decoded stays as it is: [`check_path`] has refused it before.
    pub(super) fn of(path: &'a str) -> Self {
        let path = without_query(path);
        let raw = path.split('/').filter(|raw| !raw.is_empty());
        if !path.contains('%') {
            return Self(raw.map(Cow::Borrowed).collect());
        }
        Self(raw.map(|raw| decode(raw).unwrap_or(Cow::Borrowed(raw))).collect())
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn get(&self, index: usize) -> Option<&str> {
        self.0.get(index).map(|segment| &**segment)
    }

    /// Where the first segment equal to `word` stands, case aside.
    pub(super) fn position(&self, word: &str) -> Option<usize> {
        self.0.iter().position(|segment| segment.eq_ignore_ascii_case(word))
    }

    /// True when the last segments are `words`, case aside.
    pub(super) fn end_with(&self, words: &[&str]) -> bool {
        let Some(from) = self.0.len().checked_sub(words.len()) else { return false };
        self.0[from..].iter().zip(words).all(|(segment, word)| segment.eq_ignore_ascii_case(word))
    }

    /// True when the first segments are `words`, case aside.
    pub(super) fn start_with(&self, words: &[&str]) -> bool {
        self.0.len() >= words.len()
            && self.0.iter().zip(words).all(|(segment, word)| segment.eq_ignore_ascii_case(word))
    }

    /// True when a segment is `word`, case aside.
    pub(super) fn contain(&self, word: &str) -> bool {
        self.position(word).is_some()
    }

    /// Segments `from..to` joined by slashes: the id of a model that has some; `None` when there are none.
    pub(super) fn join(mut self, from: usize, to: usize) -> Option<Cow<'a, str>> {
        match to.checked_sub(from)? {
            0 => None,
            1 => Some(self.0.swap_remove(from)),
            _ => Some(Cow::Owned(self.0.get(from..to)?.join("/"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ambiguous_spellings_are_refused() {
        for (path, want) in [
            ("/v1/chat/completions", Ok(())),
            ("//openai/deployments/x/chat/completions/?api-version=1", Ok(())),
            ("/v1/chat/completions?x=%2e%2e/..;\\", Ok(())),
            ("/v1/%63hat/completions", Ok(())),
            ("/v1beta/models/gemini%3AgenerateContent", Ok(())),
            ("/model/arn%3Aaws%3Abedrock%3Aus%2Fx/converse", Ok(())),
            ("/v1/models/meta-llama%2FLlama-3", Ok(())),
            ("/v1/files/a%20b", Ok(())),
            ("/model/..%2Fx/converse", Err(BadPath::DotSegment)),
            ("/v1/models%2f..%2fchat", Err(BadPath::DotSegment)),
            ("/v1/./models", Err(BadPath::DotSegment)),
            ("/v1/models/../chat/completions", Err(BadPath::DotSegment)),
            ("/v1/%2e%2E/chat", Err(BadPath::DotSegment)),
            ("/v1/.%2e/chat", Err(BadPath::DotSegment)),
            ("/v1%2fchat/completions", Err(BadPath::EncodedSlash)),
            ("/v1/files/a%2Fb", Err(BadPath::EncodedSlash)),
            ("/v1/%252e%252e/chat", Err(BadPath::Encoding)),
            ("/v1/%zz", Err(BadPath::Encoding)),
            ("/v1/%+1", Err(BadPath::Encoding)),
            ("/v1/%f", Err(BadPath::Encoding)),
            ("/v1/%ff", Err(BadPath::Encoding)),
            ("/v1/chat/completions;x=1", Err(BadPath::Character)),
            ("/v1/chat%3bx/completions", Err(BadPath::Character)),
            ("/v1\\chat", Err(BadPath::Character)),
            ("/v1%5cchat", Err(BadPath::Character)),
            ("/v1/%00", Err(BadPath::Character)),
            ("/v1/a%3Fb", Err(BadPath::Character)),
            ("/v1/\u{e9}", Err(BadPath::Character)),
        ] {
            assert_eq!(check_path(path), want, "{path}");
        }
    }

    #[test]
    fn segments_are_decoded() {
        let segments = Segments::of("//V1/%63hat//completions/?x=/y");
        assert!(segments.end_with(&["chat", "completions"]) && segments.start_with(&["v1"]) && segments.len() == 3);
        assert_eq!(Segments::of("/model/a/b/converse").join(1, 3).as_deref(), Some("a/b"));
        assert_eq!(Segments::of("/a").join(1, 1), None);
        assert!(!Segments::of("/").contain("x"));
    }

    #[test]
    fn a_parameter_given_twice_has_no_value() {
        for (path, want) in [
            ("/r?model=a", Some("a")),
            ("/r?x=1&model=a%2Fb", Some("a/b")),
            ("/r?model=a&model=b", None),
            ("/r?model=a&mod%65l=b", None),
            ("/r", None),
        ] {
            assert_eq!(query(path, "model").as_deref(), want, "{path}");
        }
    }

    proptest::proptest! {
        /// What is let through at a glance would be let through when looked at.
        #[test]
        fn plain_paths_break_no_rule(path in "(/|\\.|[a-z%;#?\\\\]|\\PC|[\u{0}-\u{7f}]){0,12}") {
            let path = without_query(&path);
            proptest::prop_assert!(!is_plain(path) || check_segments(path) == Ok(()), "{}", path);
        }
    }
}
