//! The built-in table: list prices of providers, packed into the program.
//!
//! Owns the packed form and the look-up in it. A row becomes a [`Price`] only when it is asked for: the table takes the
//! room of its text, and none until the first look-up.
//!
//! # Form
//! Lines of text, compressed with zstd. The first has the form's name, the date and where the prices are from, with tabs
//! between. `@provider` begins a provider, in order; below it stand its models, in order: the name, a tab, and the rates as
//! `i2.5 o10`, a letter for each [`Item`]. More rates follow after tabs: `>200000 i5` for prompts longer than that,
//! `batch i1.25` for a class of service.

use std::fmt::Write;
use std::ops::Range;
use std::sync::LazyLock;

use super::name::date;
use super::rate::{Item, Rate, Rates};
use super::{Above, Price, PriceName};
use crate::unit::ServiceTier;

const PACKED: &[u8] = include_bytes!("built_in.zst");
const FORM: &str = "sidekey prices 1";

/// The packed table, unpacked but not read.
#[derive(Debug)]
pub(super) struct BuiltIn {
    text: Box<str>,
    /// `built-in` and its date.
    pub(super) version: Box<str>,
    /// Where each line of a model begins.
    lines: Box<[u32]>,
    /// Which of the lines are a provider's, by its name.
    providers: Box<[(Box<str>, Range<usize>)]>,
}

static TABLE: LazyLock<BuiltIn> = LazyLock::new(|| {
    let text = zstd::decode_all(PACKED).expect("the packed table is whole: a test reads it");
    BuiltIn::read(String::from_utf8(text).expect("the packed table is text: a test reads it"))
});

/// The table of this program.
pub(super) fn built_in() -> &'static BuiltIn {
    &TABLE
}

impl BuiltIn {
    /// Notes where lines begin; what they say is read when asked for.
    fn read(text: String) -> Self {
        let mut lines = Vec::new();
        let mut providers: Vec<(Box<str>, Range<usize>)> = Vec::new();
        let mut at = 0;
        let mut date = "";
        for line in text.split_inclusive('\n') {
            if let Some(provider) = line.trim_end().strip_prefix('@') {
                providers.push((provider.into(), lines.len()..lines.len()));
            } else if let Some((_, models)) = providers.last_mut() {
                lines.push(at);
                models.end = lines.len();
            } else {
                date = line.split('\t').nth(1).unwrap_or_default();
            }
            at += line.len() as u32;
        }
        let version = format!("built-in {date}").into();
        Self { version, lines: lines.into(), providers: providers.into(), text: text.into() }
    }

    fn line(&self, n: usize) -> (&str, &str) {
        let line = &self.text[self.lines[n] as usize..];
        let line = &line[..line.find('\n').unwrap_or(line.len())];
        line.split_once('\t').unwrap_or((line, ""))
    }

    fn models(&self, provider: &str) -> Range<usize> {
        let found = self.providers.binary_search_by(|(name, _)| (**name).cmp(provider));
        found.map_or(0..0, |n| self.providers[n].1.clone())
    }

    /// The first of a provider's lines whose model is not before `model`.
    fn search(&self, models: &Range<usize>, model: &str) -> usize {
        let (mut low, mut high) = (models.start, models.end);
        while low < high {
            let middle = usize::midpoint(low, high);
            if self.line(middle).0 < model { low = middle + 1 } else { high = middle }
        }
        low
    }

    /// The price of a model under exactly this name.
    pub(super) fn get(&self, provider: &str, model: &str) -> Option<Price> {
        let models = self.models(provider);
        let at = self.search(&models, model);
        let (name, price) = models.contains(&at).then(|| self.line(at))?;
        if name == model { unpack(price) } else { None }
    }

    /// The latest of the names that are `model` and a date.
    pub(super) fn newest_dated(&self, provider: &str, model: &str) -> Option<&str> {
        let models = self.models(provider);
        let from = self.search(&models, model);
        let names = (from..models.end).map(|n| self.line(n).0).take_while(|name| name.starts_with(model));
        names.filter_map(|name| Some((date(&name[model.len()..])?, name))).max().map(|(_, name)| name)
    }

    /// All of it, by provider and model.
    pub(super) fn iter(&self) -> impl Iterator<Item = (PriceName, Price)> {
        self.providers.iter().flat_map(move |(provider, models)| {
            models.clone().filter_map(move |n| {
                let (model, price) = self.line(n);
                Some((PriceName { provider: provider.clone(), model: model.into() }, unpack(price)?))
            })
        })
    }
}

/// Packs a table; what the one in the program was made with. `source` says where the prices are from, `date` as of when.
///
/// # Errors
/// When it cannot be compressed.
pub fn pack(
    prices: impl IntoIterator<Item = (PriceName, Price)>,
    date: &str,
    source: &str,
) -> std::io::Result<Vec<u8>> {
    let mut prices: Vec<(PriceName, Price)> = prices.into_iter().collect();
    prices.sort_by(|a, b| a.0.cmp(&b.0));
    let mut text = format!("{FORM}\t{date}\t{source}\n");
    let mut provider = None;
    for (name, price) in &prices {
        if provider.replace(&name.provider) != Some(&name.provider) {
            let _ = writeln!(text, "@{}", name.provider);
        }
        let _ = write!(text, "{}\t{}", name.model, letters(&price.rates));
        for above in &price.above {
            let _ = write!(text, "\t>{} {}", above.over_input_tokens, letters(&above.rates));
        }
        for (tier, rates) in &price.tiers {
            let _ = write!(text, "\t{} {}", tier.as_str(), letters(rates));
        }
        text.push('\n');
    }
    zstd::encode_all(text.as_bytes(), 19)
}

fn letters(rates: &Rates) -> String {
    let rates: Vec<String> =
        rates.iter().map(|(item, rate)| format!("{}{}", item.letter(), rate.format(item))).collect();
    rates.join(" ")
}

/// The price after a model's name; `None` where the table is not of this form.
fn unpack(text: &str) -> Option<Price> {
    let mut parts = text.split('\t');
    let mut price = Price { rates: of_letters(parts.next()?)?, ..Price::default() };
    for part in parts {
        let (when, rates) = part.split_once(' ')?;
        let rates = of_letters(rates)?;
        match when.strip_prefix('>') {
            Some(over) => price.above.push(Above { over_input_tokens: over.parse().ok()?, rates }),
            None => {
                let tier = ServiceTier::ALL.into_iter().find(|tier| tier.as_str() == when)?;
                price.tiers.insert(tier, rates);
            }
        }
    }
    Some(price)
}

fn of_letters(text: &str) -> Option<Rates> {
    let mut rates = Rates::default();
    for rate in text.split(' ') {
        let mut letters = rate.chars();
        let item = Item::of_letter(letters.next()?)?;
        rates[item] = Some(Rate::parse(item, letters.as_str()).ok()?);
    }
    Some(rates)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packed_and_unpacked() {
        let price = |json: &str| serde_json::from_str::<Price>(json).unwrap();
        let mut prices = vec![
            ("b/x-20240101", price(r#"{"input":"1"}"#)),
            ("b/x", price(r#"{"input":"2.5","output":"10","per_second":"0.0000833333333333"}"#)),
            (
                "a/y/z",
                price(r#"{"input":"1","above":[{"over_input_tokens":9,"input":"2"}],"tiers":{"flex":{"input":"0"}}}"#),
            ),
            ("b/x-2025-02-03", price(r#"{"input":"3"}"#)),
            ("b/x-2025-02-03-high", price(r#"{"input":"4"}"#)),
        ];
        let named = prices.iter().map(|(name, price)| (name.parse().unwrap(), price.clone()));
        let packed = pack(named, "2026-01-02", "a list").unwrap();
        let table = BuiltIn::read(String::from_utf8(zstd::decode_all(&packed[..]).unwrap()).unwrap());
        assert_eq!(&*table.version, "built-in 2026-01-02");
        prices.sort_by_key(|(name, _)| *name);
        let back: Vec<(String, Price)> = table.iter().map(|(name, price)| (name.to_string(), price)).collect();
        assert_eq!(back, prices.iter().map(|(name, price)| ((*name).to_owned(), price.clone())).collect::<Vec<_>>());
        for (name, price) in &prices {
            let name: PriceName = name.parse().unwrap();
            assert_eq!(table.get(&name.provider, &name.model).as_ref(), Some(price), "{name}");
        }
        for (provider, model) in [("a", "x"), ("b", "y/z"), ("b", "w"), ("b", "x-"), ("c", "x"), ("", ""), ("b", "zz")]
        {
            assert_eq!(table.get(provider, model), None, "{provider}/{model}");
        }
        assert_eq!(table.newest_dated("b", "x"), Some("x-2025-02-03"));
        assert_eq!(table.newest_dated("b", "x-2025-02-03"), None);
        assert_eq!(table.newest_dated("c", "x"), None);
    }

    #[test]
    fn the_table_of_this_program_is_whole() {
        let table = built_in();
        assert_eq!(table.iter().count(), table.lines.len(), "every line is a price");
        assert!(table.lines.len() > 2_000);
        for (provider, models) in &table.providers {
            let names: Vec<&str> = models.clone().map(|n| table.line(n).0).collect();
            assert!(names.is_sorted() && !names.is_empty(), "{provider}");
        }
        assert!(table.iter().all(|(_, price)| price.check().is_ok()));
        assert!(PACKED.len() < 64 << 10, "{} bytes", PACKED.len());
    }
}
