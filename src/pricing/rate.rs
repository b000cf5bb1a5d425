//! Rates: what one unit costs, exactly, and the set of them that one price has.
//!
//! Owns decimals and their scales; leaves which rate counts for which figure to `super::cost`.

use std::fmt;
use std::ops::{Index, IndexMut};

use serde::de::{self, Visitor};
use serde::{Deserialize, Deserializer};

/// What a rate is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Item {
    /// Tokens read.
    Input,
    /// Tokens read from a prompt cache.
    CachedInput,
    /// Tokens written to a prompt cache.
    CacheWrite,
    /// Tokens written to a prompt cache that is kept for an hour.
    CacheWrite1h,
    /// Tokens generated.
    Output,
    /// Tokens spent on reasoning.
    Reasoning,
    /// Tokens of audio read.
    AudioInput,
    /// Tokens of audio generated.
    AudioOutput,
    /// Tokens of images read.
    ImageInput,
    /// Tokens of images generated.
    ImageOutput,
    /// Tokens of audio read from a prompt cache.
    CachedAudioInput,
    /// Tokens of images read from a prompt cache.
    CachedImageInput,
    /// One call.
    PerRequest,
    /// One search that the provider ran.
    PerSearch,
    /// One image generated, where no tokens are counted.
    PerImage,
    /// One second of audio heard, where no tokens are counted.
    PerSecond,
}

/// Name, and letter in the packed table.
const ITEMS: [(Item, &str, char); Item::COUNT] = [
    (Item::Input, "input", 'i'),
    (Item::CachedInput, "cached_input", 'c'),
    (Item::CacheWrite, "cache_write", 'w'),
    (Item::CacheWrite1h, "cache_write_1h", 'h'),
    (Item::Output, "output", 'o'),
    (Item::Reasoning, "reasoning", 'r'),
    (Item::AudioInput, "audio_input", 'a'),
    (Item::AudioOutput, "audio_output", 'A'),
    (Item::ImageInput, "image_input", 'm'),
    (Item::ImageOutput, "image_output", 'M'),
    (Item::CachedAudioInput, "cached_audio_input", 'b'),
    (Item::CachedImageInput, "cached_image_input", 'n'),
    (Item::PerRequest, "per_request", 'q'),
    (Item::PerSearch, "per_search", 's'),
    (Item::PerImage, "per_image", 'p'),
    (Item::PerSecond, "per_second", 't'),
];

impl Item {
    /// How many there are.
    pub const COUNT: usize = 16;
    /// All of them, in the order they are shown in.
    pub const ALL: [Self; Self::COUNT] = {
        let mut all = [Self::Input; Self::COUNT];
        let mut n = 0;
        while n < all.len() {
            all[n] = ITEMS[n].0;
            n += 1;
        }
        all
    };

    /// Its name in files, answers and flags.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        ITEMS[self as usize].1
    }

    pub(super) fn letter(self) -> char {
        ITEMS[self as usize].2
    }

    pub(super) fn of_letter(letter: char) -> Option<Self> {
        ITEMS.iter().find(|(.., own)| *own == letter).map(|(item, ..)| *item)
    }

    /// The item of that name.
    #[must_use]
    pub fn of_name(name: &str) -> Option<Self> {
        ITEMS.iter().find(|(_, own, _)| *own == name).map(|(item, ..)| *item)
    }

    /// True for tokens, whose rates are said per million.
    #[must_use]
    pub fn is_tokens(self) -> bool {
        (self as usize) < Self::PerRequest as usize
    }

    /// In what its rate is said.
    #[must_use]
    pub fn unit(self) -> &'static str {
        match self {
            Self::PerRequest => "USD per request",
            Self::PerSearch => "USD per search",
            Self::PerImage => "USD per image",
            Self::PerSecond => "USD per second",
            _ => "USD per million tokens",
        }
    }

    /// Decimals that are kept of its rate.
    fn places(self) -> usize {
        match self {
            // Prices per minute or hour, said per second, have no end.
            Self::PerSecond => 18,
            Self::PerRequest | Self::PerSearch | Self::PerImage => 15,
            _ => 9,
        }
    }
}

/// What one token, request, search or image costs, in femto-USD (10^-15 USD), or one second, in atto-USD (10^-18 USD).
///
/// That is exact for every decimal of up to nine places in USD per million tokens, of up to fifteen in USD per request,
/// search or image, and of up to eighteen in USD per second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Rate(u64);

/// Why a text is no rate.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadRate {
    /// Not a decimal.
    #[error("{0:?} is not a price: write dollars as a decimal, as in \"0.15\"")]
    NotDecimal(String),
    /// Finer than can be kept.
    #[error("{text:?} has more than {places} decimals")]
    TooFine {
        /// What was said.
        text: String,
        /// What is kept.
        places: usize,
    },
    /// More than can be kept.
    #[error("{0:?} is more than a price can be")]
    TooLarge(String),
}

impl Rate {
    /// A rate of so many femto-USD, for seconds atto-USD.
    #[must_use]
    pub const fn new(rate: u64) -> Self {
        Self(rate)
    }

    /// In femto-USD, for seconds in atto-USD.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }

    /// Reads a rate as it is said for `item`.
    ///
    /// # Errors
    /// When `text` is not a plain decimal, or does not fit.
    pub fn parse(item: Item, text: &str) -> Result<Self, BadRate> {
        let not_decimal = || BadRate::NotDecimal(text.to_owned());
        let (whole, part) = text.split_once('.').map_or((text, None), |(whole, part)| (whole, Some(part)));
        let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        if !digits(whole) || !part.is_none_or(digits) {
            return Err(not_decimal());
        }
        let part = part.unwrap_or_default().trim_end_matches('0');
        let places = item.places();
        if part.len() > places {
            return Err(BadRate::TooFine { text: text.to_owned(), places });
        }
        let rate = format!("{whole}{part:0<places$}").parse();
        rate.map(Self).map_err(|_| BadRate::TooLarge(text.to_owned()))
    }

    /// Writes a rate as it is said for `item`, without trailing zeros.
    #[must_use]
    pub fn format(self, item: Item) -> String {
        let places = item.places();
        let digits = format!("{:0>width$}", self.0, width = places + 1);
        let (whole, part) = digits.split_at(digits.len() - places);
        format!("{whole}.{part}").trim_end_matches('0').trim_end_matches('.').to_owned()
    }
}

/// The rates of one price; what is not known is `None`, never 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rates([Option<Rate>; Item::COUNT]);

impl Index<Item> for Rates {
    type Output = Option<Rate>;

    fn index(&self, item: Item) -> &Option<Rate> {
        &self.0[item as usize]
    }
}

impl IndexMut<Item> for Rates {
    fn index_mut(&mut self, item: Item) -> &mut Option<Rate> {
        &mut self.0[item as usize]
    }
}

impl Rates {
    /// Those that are known.
    pub fn iter(&self) -> impl Iterator<Item = (Item, Rate)> {
        Item::ALL.into_iter().filter_map(|item| Some((item, self[item]?)))
    }

    /// True when none is known.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.iter().next().is_none()
    }

    /// Takes over what `other` says and keeps the rest.
    pub fn overlay(&mut self, other: &Self) {
        for (item, rate) in other.iter() {
            self[item] = Some(rate);
        }
    }
}

/// A rate as files say it: text, or a whole number. Never a float, which could not say 0.1.
#[derive(Clone, Debug)]
pub(super) struct Said(pub(super) String);

impl<'de> Deserialize<'de> for Said {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;
        impl Visitor<'_> for Text {
            type Value = Said;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("dollars as text, as in \"0.15\"")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Said, E> {
                Ok(Said(text.to_owned()))
            }

            fn visit_u64<E: de::Error>(self, whole: u64) -> Result<Said, E> {
                Ok(Said(whole.to_string()))
            }

            fn visit_i64<E: de::Error>(self, whole: i64) -> Result<Said, E> {
                Ok(Said(whole.to_string()))
            }

            fn visit_f64<E: de::Error>(self, number: f64) -> Result<Said, E> {
                Err(E::custom(format!("a price is exact: write it as text, \"{number}\"")))
            }
        }
        deserializer.deserialize_any(Text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decimals_are_exact() {
        for (item, text, rate, shown) in [
            (Item::Input, "0", 0, "0"),
            (Item::Input, "0.15", 150_000_000, "0.15"),
            (Item::Output, "2.50", 2_500_000_000, "2.5"),
            (Item::Output, "10", 10_000_000_000, "10"),
            (Item::CachedInput, "0.000000001", 1, "0.000000001"),
            (Item::PerSearch, "0.01", 10_000_000_000_000, "0.01"),
            (Item::PerSecond, "0.0000833333333333", 83_333_333_333_300, "0.0000833333333333"),
            (Item::PerRequest, "18446", 18_446_000_000_000_000_000, "18446"),
        ] {
            assert_eq!(Rate::parse(item, text), Ok(Rate(rate)), "{text}");
            assert_eq!(Rate(rate).format(item), shown);
        }
    }

    #[test]
    fn what_is_no_decimal_is_refused() {
        for text in ["", ".", "1.", ".5", "-1", "+1", "1e-6", "1,5", "0x1", " 1", "1 ", "NaN", "१"] {
            assert_eq!(Rate::parse(Item::Input, text), Err(BadRate::NotDecimal(text.to_owned())), "{text:?}");
        }
        let fine = Rate::parse(Item::Input, "0.0000000001").unwrap_err().to_string();
        assert_eq!(fine, "\"0.0000000001\" has more than 9 decimals");
        assert!(matches!(Rate::parse(Item::PerRequest, "18447"), Err(BadRate::TooLarge(_))));
    }

    #[test]
    fn items_have_one_name_and_letter_each() {
        for item in Item::ALL {
            assert_eq!(ITEMS[item as usize].0, item);
            assert_eq!(Item::of_name(item.as_str()), Some(item));
            assert_eq!(Item::of_letter(item.letter()), Some(item));
        }
    }
}
