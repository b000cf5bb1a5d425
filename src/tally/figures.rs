//! Figures: the numbers of one report, under the names that the rules of [`super`] give them.

use crate::scan::json::Tag;

/// One number of a provider's report. What providers call it stands in the path tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Figure {
    /// Tokens read; the dialect knows whether that includes the cache.
    Input,
    /// Tokens read, the cache included, where a dialect knows both kinds.
    Prompt,
    Output,
    Total,
    Cached,
    /// Another place for the cached part; counts only if the first is absent.
    CachedAlias,
    CacheWrite,
    Reasoning,
    ReasoningAlias,
    /// Prompt tokens of tools that the provider ran itself.
    ToolInput,
    AudioInput,
    AudioOutput,
    AudioSeconds,
    BilledInput,
    BilledOutput,
    /// The part of what was written to a cache that is kept there for an hour.
    CacheWrite1h,
    CachedAudioInput,
    ImageInput,
    CachedImageInput,
    ImageOutput,
    Searches,
    Images,
    /// Audio heard, milliseconds.
    AudioMs,
}

impl Figure {
    pub(super) const COUNT: usize = 23;

    /// Its tag in a path table.
    pub(super) const fn tag(self) -> Tag {
        super::reading::FIGURES + self as Tag
    }
}

/// The figures of one report; those not given are absent, never 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Figures {
    values: [u64; Figure::COUNT],
    present: u32,
}

impl Figures {
    pub(super) fn get(&self, figure: Figure) -> Option<u64> {
        self.at(figure as usize)
    }

    fn at(&self, index: usize) -> Option<u64> {
        (self.present >> index & 1 == 1).then(|| self.values[index])
    }

    pub(super) fn set(&mut self, figure: Figure, value: u64) {
        self.set_at(figure as usize, value);
    }

    /// Sets the figure of a number below [`Figure::COUNT`]; others are ignored.
    pub(super) fn set_at(&mut self, index: usize, value: u64) {
        if let Some(slot) = self.values.get_mut(index) {
            *slot = value;
            self.present |= 1 << index;
        }
    }

    /// Adds to the figure of that number, for reports that give it item by item.
    pub(super) fn add_at(&mut self, index: usize, value: u64) {
        self.set_at(index, self.at(index).unwrap_or(0).saturating_add(value));
    }

    pub(super) fn is_empty(&self) -> bool {
        self.present == 0
    }

    /// Takes over what `newer` gives and keeps the rest.
    pub(super) fn overlay(&mut self, newer: &Self) {
        for index in 0..Figure::COUNT {
            if let Some(value) = newer.at(index) {
                self.set_at(index, value);
            }
        }
    }

    /// Adds what `other` gives.
    pub(super) fn sum(&mut self, other: &Self) {
        for index in 0..Figure::COUNT {
            if let Some(value) = other.at(index) {
                self.add_at(index, value);
            }
        }
    }
}

/// The first of several figures that is given.
pub(super) fn first(figures: &Figures, names: &[Figure]) -> Option<u64> {
    names.iter().find_map(|&name| figures.get(name))
}

/// The sum of those given; `None` when none is.
pub(super) fn sum(parts: &[Option<u64>]) -> Option<u64> {
    parts.iter().flatten().copied().reduce(u64::saturating_add)
}

/// Reads a token count as providers write it: `12`, `12.0`, `"12"`. Anything else is not a count.
pub(super) fn count(raw: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(raw).ok()?.trim_matches('"');
    if let Ok(whole) = text.parse() {
        return Some(whole);
    }
    let number: f64 = text.parse().ok()?;
    let whole = number.is_finite() && number >= 0.0 && number.fract() == 0.0 && number < 9.0e15;
    whole.then_some(number as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_whole_numbers() {
        for (raw, want) in [
            ("12", Some(12)),
            ("0", Some(0)),
            ("6.0", Some(6)),
            ("1e3", Some(1000)),
            ("\"7\"", Some(7)),
            ("18446744073709551615", Some(u64::MAX)),
            ("-1", None),
            ("1.5", None),
            ("null", None),
            ("true", None),
            ("\"\"", None),
            ("\"inf\"", None),
            ("{}", None),
            ("1e300", None),
        ] {
            assert_eq!(count(raw.as_bytes()), want, "{raw}");
        }
    }

    #[test]
    fn absent_figures_stay_absent() {
        let mut base = Figures::default();
        base.set(Figure::Input, 5);
        let mut newer = Figures::default();
        newer.set(Figure::Output, 0);
        base.overlay(&newer);
        assert_eq!(
            (base.get(Figure::Input), base.get(Figure::Output), base.get(Figure::Total)),
            (Some(5), Some(0), None)
        );
        base.sum(&newer);
        assert_eq!(base.get(Figure::Output), Some(0));
    }
}
