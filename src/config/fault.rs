//! A [`Fault`]: what is wrong in the configuration, where, and the nearest right spelling.
//!
//! Owns how a fault reads and how a place in the file is found.

use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};

use toml::de::{DeTable, DeValue};

/// Where a value was said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Nowhere: built in.
    Default,
    /// An environment variable.
    Environment(String),
    /// A place in the file; lines and columns count from 1.
    File {
        /// The file.
        path: PathBuf,
        /// Its line.
        line: usize,
        /// Its column, in characters.
        column: usize,
    },
    /// `--set` or another flag.
    Flag(String),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::Environment(name) => f.write_str(name),
            Self::File { path, line, column } => write!(f, "{}:{line}:{column}", path.display()),
            Self::Flag(flag) => f.write_str(flag),
        }
    }
}

/// One fault of the configuration. Shown as `<where>: <what>`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{origin}: {what}")]
pub struct Fault {
    /// Where it was said.
    pub origin: Origin,
    /// What is wrong and how to put it right.
    pub what: String,
}

impl Fault {
    /// A fault at a place.
    #[must_use]
    pub fn new(origin: Origin, what: impl Into<String>) -> Self {
        Self { origin, what: what.into() }
    }

    /// What the TOML reader said of `text`, with its place and the nearest spelling.
    pub(super) fn of_file(path: &Path, text: &str, error: &toml::de::Error) -> Self {
        let at = error.span().unwrap_or(0..0);
        Self::new(place(path, text, &at), explain(error.message()))
    }
}

/// The place of a byte range of the file.
pub(super) fn place(path: &Path, text: &str, at: &Range<usize>) -> Origin {
    let before = text.get(..at.start).unwrap_or(text);
    let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
    Origin::File {
        path: path.to_path_buf(),
        line: before.matches('\n').count() + 1,
        column: before[line_start..].chars().count() + 1,
    }
}

/// The place of a key such as `providers.openai.base_url`; `None` when the file does not say it.
pub(super) fn locate(path: &Path, text: &str, key: &[String]) -> Option<Origin> {
    let document = DeTable::parse(text).ok()?;
    let mut table = document.get_ref();
    let (last, parents) = key.split_last()?;
    for name in parents {
        match table.get(name.as_str())?.get_ref() {
            DeValue::Table(inner) => table = inner,
            _ => return None,
        }
    }
    let (found, _) = table.get_key_value(last.as_str())?;
    Some(place(path, text, &found.span()))
}

/// serde's message, with the nearest spelling in place of a long list.
pub(super) fn explain(message: &str) -> String {
    let Some((field, known)) = unknown_field(message) else { return message.to_owned() };
    match nearest(field, known.iter().copied()) {
        Some(right) => format!("unknown field `{field}`; did you mean `{right}`?"),
        None if known.is_empty() => format!("unknown field `{field}`"),
        None => format!("unknown field `{field}`; known here: {}", known.join(", ")),
    }
}

/// The field and its known neighbours, when `message` is serde's complaint about an unknown field or variant.
pub(super) fn unknown_field(message: &str) -> Option<(&str, Vec<&str>)> {
    if !message.starts_with("unknown field") {
        return None;
    }
    let mut quoted = message.split('`').skip(1).step_by(2);
    let field = quoted.next()?;
    Some((field, quoted.collect()))
}

/// The candidate closest to `word`, when it is close enough to be a slip.
pub fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let scored = candidates.into_iter().map(|candidate| (strsim::damerau_levenshtein(word, candidate), candidate));
    let (distance, best) = scored.min_by_key(|(distance, _)| *distance)?;
    (distance <= (word.chars().count() / 3).max(2)).then_some(best)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nearest_spelling() {
        for (word, want) in
            [("prxy", Some("proxy")), ("tranparent", Some("transparent")), ("admni", Some("admin")), ("zzzzzz", None)]
        {
            assert_eq!(nearest(word, ["proxy", "admin", "telemetry", "transparent"]), want, "{word}");
        }
    }

    #[test]
    fn columns_count_characters() {
        let text = "a = 1\n\"ü\" = 2\nb = 3\n";
        let path = Path::new("f.toml");
        for (key, line, column) in [("a", 1, 1), ("ü", 2, 1), ("b", 3, 1)] {
            let want = Some(Origin::File { path: path.into(), line, column });
            assert_eq!(locate(path, text, &[key.to_owned()]), want, "{key}");
        }
        assert_eq!(locate(path, text, &["c".to_owned()]), None);
        assert_eq!(locate(path, text, &["a".to_owned(), "b".to_owned()]), None);
    }
}
