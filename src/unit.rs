//! Units: tokens and money, each with its unit in the name, and [`Usage`], what a provider says a call consumed;
//! how durations (`30s`) and byte sizes (`8MiB`) are written.
//!
//! Owns the counting convention; leaves reading a provider's figures to `provider` and prices to the price table.

use serde::{Deserialize, Serialize};

/// Tokens of one call, as the provider reported them or as sidekey estimated them.
///
/// `input` includes tokens read from or written to a prompt cache; `output` includes reasoning tokens.
/// A figure nobody reported is `None`, never 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Every token the model read.
    pub input: Option<u64>,
    /// The part of `input` read from a prompt cache.
    pub cached_input: Option<u64>,
    /// The part of `input` written to a prompt cache.
    pub cache_write: Option<u64>,
    /// Every token the model generated.
    pub output: Option<u64>,
    /// The part of `output` spent on reasoning.
    pub reasoning: Option<u64>,
    /// The provider's own total where it gives one, else `input + output`.
    pub total: Option<u64>,
}

impl Usage {
    /// True when no figure is known.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// What a token limit is charged: the total, else what is known of input and output.
    #[must_use]
    pub fn billable(&self) -> u64 {
        self.total.unwrap_or_else(|| self.input.unwrap_or(0).saturating_add(self.output.unwrap_or(0)))
    }

    /// Adds `other` figure by figure; a figure unknown on both sides stays unknown.
    pub fn add(&mut self, other: &Self) {
        fn sum(a: &mut Option<u64>, b: Option<u64>) {
            if let Some(b) = b {
                *a = Some(a.unwrap_or(0).saturating_add(b));
            }
        }
        sum(&mut self.input, other.input);
        sum(&mut self.cached_input, other.cached_input);
        sum(&mut self.cache_write, other.cache_write);
        sum(&mut self.output, other.output);
        sum(&mut self.reasoning, other.reasoning);
        sum(&mut self.total, other.total);
    }
}

/// Where the figures of a [`Usage`] come from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TokensSource {
    /// The provider said so.
    Reported,
    /// sidekey counted, because the provider did not say.
    Estimated,
    /// The call consumes no tokens, or failed before it did.
    #[default]
    None,
}

impl TokensSource {
    /// The word used in the ledger.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Estimated => "estimated",
            Self::None => "none",
            Self::Reported => "reported",
        }
    }
}

/// Durations as people write them: `500ms`, `30s`, `5m`, `24h`, `7d`. For `#[serde(with = "unit::duration")]`.
pub mod duration {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serializer};

    const UNITS: [(&str, u64); 5] = [("ms", 1), ("s", 1_000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000)];

    /// Reads one: a whole number and a unit, no space.
    ///
    /// # Errors
    /// What is wrong with `text`.
    pub fn parse(text: &str) -> Result<Duration, String> {
        let bad = || format!("{text:?} is not a duration: write a whole number and ms, s, m, h or d, as in \"30s\"");
        let digits = text.bytes().take_while(u8::is_ascii_digit).count();
        let number: u64 = text[..digits].parse().map_err(|_| bad())?;
        let (_, ms) = UNITS.iter().find(|(unit, _)| *unit == &text[digits..]).ok_or_else(bad)?;
        number.checked_mul(*ms).map(Duration::from_millis).ok_or_else(bad)
    }

    /// Writes one in the largest unit that holds it exactly; below a millisecond is dropped.
    #[must_use]
    pub fn format(value: Duration) -> String {
        let total = u64::try_from(value.as_millis()).unwrap_or(u64::MAX);
        let exact = UNITS.iter().rev().find(|(unit, ms)| total != 0 && *unit != "d" && total.is_multiple_of(*ms));
        match exact {
            Some((unit, ms)) => format!("{}{unit}", total / ms),
            None => "0s".to_owned(),
        }
    }

    #[expect(missing_docs, clippy::missing_errors_doc, reason = "serde's own shape")]
    pub fn serialize<S: Serializer>(value: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&format(*value))
    }

    #[expect(missing_docs, clippy::missing_errors_doc, reason = "serde's own shape")]
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        parse(&text).map_err(serde::de::Error::custom)
    }
}

/// Sizes in bytes as people write them: `65536`, `64KiB`, `8MiB`, `1GiB`. For `#[serde(with = "unit::byte_size")]`.
pub mod byte_size {
    use serde::de::{Deserializer, Error, Visitor};
    use serde::ser::Serializer;

    const UNITS: [(&str, u64); 4] = [("", 1), ("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30)];

    struct Size;

    impl Visitor<'_> for Size {
        type Value = u64;

        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("a size such as \"8MiB\", or a number of bytes")
        }

        fn visit_u64<E: Error>(self, bytes: u64) -> Result<u64, E> {
            Ok(bytes)
        }

        fn visit_i64<E: Error>(self, bytes: i64) -> Result<u64, E> {
            u64::try_from(bytes).map_err(|_| E::custom("a size is not negative"))
        }

        fn visit_str<E: Error>(self, text: &str) -> Result<u64, E> {
            parse(text).map_err(E::custom)
        }
    }

    /// Reads one: a whole number and KiB, MiB, GiB or nothing.
    ///
    /// # Errors
    /// What is wrong with `text`.
    pub fn parse(text: &str) -> Result<u64, String> {
        let bad = || format!("{text:?} is not a size: write a whole number and KiB, MiB or GiB, as in \"8MiB\"");
        let digits = text.bytes().take_while(u8::is_ascii_digit).count();
        let number: u64 = text[..digits].parse().map_err(|_| bad())?;
        let (_, factor) = UNITS.iter().find(|(unit, _)| *unit == text[digits..].trim_start()).ok_or_else(bad)?;
        number.checked_mul(*factor).ok_or_else(bad)
    }

    /// Writes one in the largest unit that holds it exactly.
    #[must_use]
    pub fn format(bytes: u64) -> String {
        let exact = UNITS.iter().rev().find(|(_, factor)| bytes != 0 && bytes.is_multiple_of(*factor));
        exact.map_or_else(|| bytes.to_string(), |(unit, factor)| format!("{}{unit}", bytes / factor))
    }

    #[expect(missing_docs, clippy::missing_errors_doc, reason = "serde's own shape")]
    pub fn serialize<S: Serializer>(value: &usize, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&format(u64::try_from(*value).unwrap_or(u64::MAX)))
    }

    #[expect(missing_docs, clippy::missing_errors_doc, reason = "serde's own shape")]
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<usize, D::Error> {
        let bytes = deserializer.deserialize_any(Size)?;
        usize::try_from(bytes).map_err(Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn durations() {
        for (text, ms, shown) in [
            ("0s", 0, "0s"),
            ("500ms", 500, "500ms"),
            ("90s", 90_000, "90s"),
            ("24h", 86_400_000, "24h"),
            ("7d", 604_800_000, "168h"),
        ] {
            assert_eq!(duration::parse(text), Ok(Duration::from_millis(ms)), "{text}");
            assert_eq!(duration::format(Duration::from_millis(ms)), shown);
        }
        for bad in ["", "s", "30", "-1s", "1.5s", "1 s", "30sec", "99999999999999999999s", "99999999999999d"] {
            assert!(duration::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn sizes() {
        for (text, bytes, shown) in [
            ("0", 0, "0"),
            ("100", 100, "100"),
            ("64KiB", 65_536, "64KiB"),
            ("8 MiB", 8 << 20, "8MiB"),
            ("1024MiB", 1 << 30, "1GiB"),
        ] {
            assert_eq!(byte_size::parse(text), Ok(bytes), "{text}");
            assert_eq!(byte_size::format(bytes), shown);
        }
        for bad in ["", "MiB", "8MB", "-1", "8 M", "99999999999GiB"] {
            assert!(byte_size::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn unknown_figures_stay_unknown_when_added() {
        let mut sum = Usage { input: Some(1), ..Usage::default() };
        sum.add(&Usage { input: Some(2), output: Some(0), ..Usage::default() });
        assert_eq!(sum, Usage { input: Some(3), output: Some(0), ..Usage::default() });
    }

    #[test]
    fn billable_prefers_the_providers_total() {
        for (name, usage, want) in [
            ("total", Usage { input: Some(1), output: Some(2), total: Some(9), ..Usage::default() }, 9),
            ("sum", Usage { input: Some(1), output: Some(2), ..Usage::default() }, 3),
            ("half", Usage { output: Some(2), ..Usage::default() }, 2),
            ("nothing", Usage::default(), 0),
        ] {
            assert_eq!(usage.billable(), want, "{name}");
        }
    }
}
