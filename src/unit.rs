//! Units: [`Usage`], what a provider says a call consumed, each figure with its unit in the name, and [`ServiceTier`];
//! how money, durations (`30s`) and byte sizes (`8MiB`) are written.
//!
//! Owns the counting convention; leaves reading a provider's figures to `tally` and prices to `pricing`.

use std::borrow::Cow;

use serde::de::{self, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::ser::{SerializeMap, SerializeTuple, Serializer};
use serde::{Deserialize, Serialize};

/// What one call consumed, as the provider reported it or as sidekey estimated it.
///
/// `input` includes tokens read from or written to a prompt cache; `output` includes reasoning tokens.
/// A figure nobody reported is `None`, never 0.
///
/// # Forms
/// JSON has the first six always, null where unknown, and the others only when known. Binary forms have a mask of what is
/// known, then those figures in the order of the fields: a new field goes to the end, and what was stored stays readable.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
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
    /// The part of `cache_write` that is kept for an hour.
    pub cache_write_1h: Option<u64>,
    /// The part of `input` that was audio.
    pub audio_input: Option<u64>,
    /// The part of `output` that is audio.
    pub audio_output: Option<u64>,
    /// The part of `input` that was images.
    pub image_input: Option<u64>,
    /// The part of `output` that is images.
    pub image_output: Option<u64>,
    /// The part of `cached_input` and of `audio_input` that is in both.
    pub cached_audio_input: Option<u64>,
    /// The part of `cached_input` and of `image_input` that is in both.
    pub cached_image_input: Option<u64>,
    /// Searches that the provider ran and charges: of the web, or search units of a reranking.
    pub searches: Option<u64>,
    /// Images made.
    pub images: Option<u64>,
    /// Audio heard, milliseconds, where that is what the provider charges.
    pub audio_input_ms: Option<u64>,
}

/// Up to here the figures are tokens.
const TOKENS: usize = 13;

impl Usage {
    /// How many of the fields are in every JSON.
    pub const ALWAYS: usize = 6;

    /// The names of the fields, in their order.
    pub const NAMES: [&str; 16] = [
        "input",
        "cached_input",
        "cache_write",
        "output",
        "reasoning",
        "total",
        "cache_write_1h",
        "audio_input",
        "audio_output",
        "image_input",
        "image_output",
        "cached_audio_input",
        "cached_image_input",
        "searches",
        "images",
        "audio_input_ms",
    ];

    /// The figures, in the order of the fields.
    #[must_use]
    pub fn figures(&self) -> [Option<u64>; 16] {
        [
            self.input,
            self.cached_input,
            self.cache_write,
            self.output,
            self.reasoning,
            self.total,
            self.cache_write_1h,
            self.audio_input,
            self.audio_output,
            self.image_input,
            self.image_output,
            self.cached_audio_input,
            self.cached_image_input,
            self.searches,
            self.images,
            self.audio_input_ms,
        ]
    }

    /// The usage of these figures, given in the order of the fields.
    #[must_use]
    pub fn from_figures(figures: [Option<u64>; 16]) -> Self {
        let [input, cached_input, cache_write, output, reasoning, total, cache_write_1h, rest @ ..] = figures;
        let [audio_input, audio_output, image_input, image_output, cached_audio_input, cached_image_input, rest @ ..] =
            rest;
        let [searches, images, audio_input_ms] = rest;
        Self {
            input,
            cached_input,
            cache_write,
            output,
            reasoning,
            total,
            cache_write_1h,
            audio_input,
            audio_output,
            image_input,
            image_output,
            cached_audio_input,
            cached_image_input,
            searches,
            images,
            audio_input_ms,
        }
    }

    /// True when no tokens are known.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.figures()[..TOKENS].iter().all(Option::is_none)
    }

    /// What a token limit is charged: the total, else what is known of input and output.
    #[must_use]
    pub fn billable(&self) -> u64 {
        self.total.unwrap_or_else(|| self.input.unwrap_or(0).saturating_add(self.output.unwrap_or(0)))
    }

    /// Adds `other` figure by figure; a figure unknown on both sides stays unknown.
    pub fn add(&mut self, other: &Self) {
        let mut sums = self.figures();
        for (sum, more) in sums.iter_mut().zip(other.figures()) {
            if let Some(more) = more {
                *sum = Some(sum.unwrap_or(0).saturating_add(more));
            }
        }
        *self = Self::from_figures(sums);
    }
}

impl Serialize for Usage {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let figures = self.figures();
        if serializer.is_human_readable() {
            let mut map = serializer.serialize_map(None)?;
            for (n, (name, figure)) in Self::NAMES.iter().zip(figures).enumerate() {
                if n < Self::ALWAYS || figure.is_some() {
                    map.serialize_entry(name, &figure)?;
                }
            }
            return map.end();
        }
        let mask = figures.iter().rev().fold(0_u32, |mask, figure| mask << 1 | u32::from(figure.is_some()));
        let mut tuple = serializer.serialize_tuple(1 + mask.count_ones() as usize)?;
        tuple.serialize_element(&mask)?;
        for figure in figures.iter().flatten() {
            tuple.serialize_element(figure)?;
        }
        tuple.end()
    }
}

impl<'de> Deserialize<'de> for Usage {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match deserializer.is_human_readable() {
            true => deserializer.deserialize_map(UsageVisitor),
            false => deserializer.deserialize_tuple(1 + Self::NAMES.len(), UsageVisitor),
        }
    }
}

struct UsageVisitor;

impl<'de> Visitor<'de> for UsageVisitor {
    type Value = Usage;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the figures of a usage")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Usage, A::Error> {
        let mut figures = [None; Usage::NAMES.len()];
        while let Some(name) = map.next_key::<Cow<'de, str>>()? {
            match Usage::NAMES.iter().position(|known| *known == name) {
                Some(n) => figures[n] = map.next_value()?,
                None => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        Ok(Usage::from_figures(figures))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Usage, A::Error> {
        let short = || de::Error::custom("a usage ends before its last figure");
        let mask: u32 = seq.next_element()?.ok_or_else(short)?;
        if mask >> Usage::NAMES.len() != 0 {
            return Err(de::Error::custom("a usage has figures that a later version wrote"));
        }
        let mut figures = [None; Usage::NAMES.len()];
        for (n, figure) in figures.iter_mut().enumerate() {
            if mask >> n & 1 == 1 {
                *figure = Some(seq.next_element()?.ok_or_else(short)?);
            }
        }
        Ok(Usage::from_figures(figures))
    }
}

/// The class of service a call was given, where it is not the provider's standard one and has a price of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum ServiceTier {
    /// Answered within a day, at about half the price.
    Batch,
    /// Slower and cheaper.
    Flex,
    /// Faster and dearer.
    Priority,
}

impl ServiceTier {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Batch, Self::Flex, Self::Priority];

    /// The word used in the ledger.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Batch => "batch",
            Self::Flex => "flex",
            Self::Priority => "priority",
        }
    }
}

/// Where the figures of a [`Usage`] come from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
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

/// Billionths of a dollar as a decimal string, without trailing zeros.
#[must_use]
pub fn usd(nano: u64) -> String {
    let text = format!("{}.{:09}", nano / 1_000_000_000, nano % 1_000_000_000);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// Reads a decimal amount of dollars as billionths of one: exactly, or not at all.
///
/// # Errors
/// When `text` is negative, not a decimal number, finer than a billionth, or above 18 billion dollars.
pub fn parse_usd(text: &str) -> Result<u64, String> {
    let bad =
        || format!("{text:?} is no amount of dollars: write a decimal number such as 100 or 0.25, up to 9 places");
    let (whole, places) = text.split_once('.').unwrap_or((text, "0"));
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|c| c.is_ascii_digit());
    if !digits(whole) || !digits(places) || places.len() > 9 {
        return Err(bad());
    }
    let nano: u64 = format!("{places:0<9}").parse().map_err(|_| bad())?;
    let whole: u64 = whole.parse().map_err(|_| bad())?;
    whole.checked_mul(1_000_000_000).and_then(|whole| whole.checked_add(nano)).ok_or_else(bad)
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
    fn money_is_a_decimal_string() {
        for (nano, want) in [(0, "0"), (1, "0.000000001"), (12_300_000, "0.0123"), (100_000_000_000, "100")] {
            assert_eq!((usd(nano).as_str(), parse_usd(want)), (want, Ok(nano)));
        }
        assert_eq!(parse_usd("0100.50"), Ok(100_500_000_000));
        for bad in ["", ".", "1.", ".5", "-1", "+1", "1e3", "1,5", "0.0000000001", "18446744074", "$1", " 1"] {
            assert!(parse_usd(bad).is_err(), "{bad}");
        }
    }

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
    fn six_figures_are_in_every_json() {
        let none =
            r#"{"input":null,"cached_input":null,"cache_write":null,"output":null,"reasoning":null,"total":null}"#;
        assert_eq!(serde_json::to_string(&Usage::default()).unwrap(), none);
        let usage = Usage { input: Some(7), searches: Some(0), ..Usage::default() };
        let json = serde_json::to_string(&usage).unwrap();
        assert_eq!(json, none.replacen("null", "7", 1).replace('}', r#","searches":0}"#));
        assert_eq!(serde_json::from_str::<Usage>(&json).unwrap(), usage);
        assert_eq!(serde_json::from_str::<Usage>(r#"{"input":7,"searches":0,"later":[1]}"#).unwrap(), usage);
    }

    #[test]
    fn binary_forms_hold_what_is_known() {
        let mut usage = Usage::default();
        for (n, name) in Usage::NAMES.into_iter().enumerate() {
            let mut figures = usage.figures();
            figures[n] = Some(u64::MAX - n as u64);
            usage = Usage::from_figures(figures);
            let bytes = postcard::to_stdvec(&(usage, 5_u8)).unwrap();
            assert_eq!(postcard::from_bytes(&bytes), Ok((usage, 5_u8)), "{name}");
            assert!(postcard::from_bytes::<Usage>(&bytes[..bytes.len() - 2]).is_err(), "{name}");
        }
        let small = Usage { input: Some(100), output: Some(20), total: Some(120), ..Usage::default() };
        assert_eq!(postcard::to_stdvec(&small).unwrap(), [0b10_1001, 100, 20, 120]);
        assert!(postcard::from_bytes::<Usage>(&[0x80, 0x80, 0x04, 1]).is_err(), "a later version's");
    }

    #[test]
    fn searches_are_not_tokens() {
        assert!(Usage { searches: Some(1), images: Some(1), audio_input_ms: Some(1), ..Usage::default() }.is_empty());
        assert!(!Usage { cached_image_input: Some(0), ..Usage::default() }.is_empty());
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
