//! Names of models: how a price is named, and under which names the price of a call is looked for.
//!
//! Owns the spellings providers use for one model. Leaves the look-up to `super`.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Stands for every provider in a [`PriceName`].
pub const ANY: &str = "*";

/// What a price is filed under: `provider/model`, or `*/model` for a model at any provider.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PriceName {
    /// The provider's id, or [`ANY`].
    pub provider: Box<str>,
    /// The model, as the provider names it. May hold slashes.
    pub model: Box<str>,
}

/// The longest name of a model.
const MODEL_MAX: usize = 256;

/// A text that names no price.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} names no model: write provider/model, as in \"openai/gpt-4o\", or \"*/model\" for every provider")]
pub struct BadName(String);

impl FromStr for PriceName {
    type Err = BadName;

    fn from_str(text: &str) -> Result<Self, BadName> {
        let bad = || BadName(text.chars().take(MODEL_MAX).collect());
        let (provider, model) = text.split_once('/').ok_or_else(bad)?;
        let odd = |c: char| c.is_control() || c.is_whitespace();
        if provider.is_empty() || model.is_empty() || model.len() > MODEL_MAX || text.contains(odd) {
            return Err(bad());
        }
        Ok(Self { provider: provider.into(), model: model.into() })
    }
}

impl TryFrom<String> for PriceName {
    type Error = BadName;

    fn try_from(text: String) -> Result<Self, BadName> {
        text.parse()
    }
}

impl From<PriceName> for String {
    fn from(name: PriceName) -> Self {
        name.to_string()
    }
}

impl fmt::Display for PriceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.provider, self.model)
    }
}

/// How a name came from the one that was said.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Spelling {
    /// As it was said.
    Exact,
    /// In the region the provider is called in.
    InRegion,
    /// Without the path it stands in: `models/`, `publishers/google/models/`, an ARN.
    WithoutPath,
    /// Without the provider's name before it.
    WithoutProvider,
    /// Without the region before it.
    WithoutRegion,
    /// The model that was tuned.
    Base,
    /// Without a version after a colon or `@`.
    WithoutVersion,
    /// Without a date or `latest` after it.
    WithoutDate,
    /// The newest of its dated versions.
    NewestDated,
}

impl Spelling {
    /// In words.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Base => "the model that was tuned",
            Self::Exact => "as said",
            Self::InRegion => "in the provider's region",
            Self::NewestDated => "the newest dated version",
            Self::WithoutDate => "without date",
            Self::WithoutPath => "without path",
            Self::WithoutProvider => "without provider",
            Self::WithoutRegion => "without region",
            Self::WithoutVersion => "without version",
        }
    }
}

/// Where a model is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place<'a> {
    /// The provider's id, as requests name it.
    pub(super) provider: &'a str,
    /// The id of the provider in the built-in table.
    pub(super) listed_as: &'a str,
    /// The region it is called in, where prices differ by it.
    pub(super) region: Option<&'a str>,
}

/// The names to look for, the most specific first; each differs from those before.
pub(super) fn spellings(place: Place<'_>, said: &str) -> Vec<(Spelling, String)> {
    let mut found: Vec<(Spelling, String)> = Vec::new();
    let mut name = said;
    add(&mut found, place, Spelling::Exact, name);
    for (spelling, cut) in [
        (Spelling::WithoutPath, without_path as fn(&str, Place<'_>) -> Option<usize>),
        (Spelling::WithoutProvider, without_provider),
        (Spelling::WithoutRegion, without_region),
    ] {
        if let Some(start) = cut(name, place) {
            name = &name[start..];
            add(&mut found, place, spelling, name);
        }
    }
    for (spelling, cut) in [
        (Spelling::Base, base as fn(&str, Place<'_>) -> Option<usize>),
        (Spelling::WithoutVersion, without_version),
        (Spelling::WithoutDate, without_date),
    ] {
        if let Some(end) = cut(name, place) {
            name = &name[..end];
            add(&mut found, place, spelling, name);
        }
    }
    found
}

fn add(found: &mut Vec<(Spelling, String)>, place: Place<'_>, spelling: Spelling, name: &str) {
    if name.is_empty() || name.len() > MODEL_MAX {
        return;
    }
    if let Some(region) = place.region {
        found.push((Spelling::InRegion, format!("{region}/{name}")));
    }
    found.push((spelling, name.to_owned()));
}

/// `models/x`, `publishers/google/models/x`, `arn:…:inference-profile/x`.
fn without_path(name: &str, _: Place<'_>) -> Option<usize> {
    if name.starts_with("arn:") {
        return name.find('/').map(|at| at + 1);
    }
    let at = name.rfind("models/")?;
    (at == 0 || name.as_bytes()[at - 1] == b'/').then_some(at + "models/".len())
}

fn without_provider(name: &str, place: Place<'_>) -> Option<usize> {
    let (before, _) = name.split_once('/')?;
    let own = [place.provider, place.listed_as];
    let same = own.iter().any(|own| own.eq_ignore_ascii_case(before)) || place.region == Some(before);
    same.then_some(before.len() + 1)
}

/// Bedrock's inference profiles: `us.anthropic.claude…`.
fn without_region(name: &str, _: Place<'_>) -> Option<usize> {
    const REGIONS: [&str; 9] = ["us", "us-gov", "eu", "apac", "ap", "au", "jp", "ca", "global"];
    let (before, rest) = name.split_once('.')?;
    // A vendor follows, as in `us.meta.llama3`; a model's own dot, as in `gpt-4.1`, comes after no region.
    (REGIONS.contains(&before) && rest.contains('.')).then_some(before.len() + 1)
}

/// `ft:gpt-4o-mini-2024-07-18:org::id` costs what `ft:gpt-4o-mini-2024-07-18` costs.
fn base(name: &str, _: Place<'_>) -> Option<usize> {
    let rest = name.strip_prefix("ft:")?;
    rest.find(':').map(|at| at + "ft:".len())
}

/// `x@20240620`, `x:20230824-v2`. A word after the colon is another price, as in OpenRouter's `x:free`.
fn without_version(name: &str, _: Place<'_>) -> Option<usize> {
    let at = name.rfind(['@', ':']).filter(|at| *at > "ft".len())?;
    let after = &name[at + 1..];
    (name.as_bytes()[at] == b'@' || after.starts_with(|c: char| c.is_ascii_digit())).then_some(at)
}

/// `x-2024-08-06`, `x-20241022`, `x-latest`.
fn without_date(name: &str, _: Place<'_>) -> Option<usize> {
    if let Some(before) = name.strip_suffix("-latest") {
        return Some(before.len());
    }
    [11, 9].into_iter().find_map(|len| {
        let at = name.len().checked_sub(len).filter(|at| *at > 0 && name.is_char_boundary(*at))?;
        date(&name[at..]).map(|_| at)
    })
}

/// The date of `-2024-08-06`, `-20240806` or `@20240806`, as a number that sorts.
pub(super) fn date(suffix: &str) -> Option<u32> {
    // After the mark, so that no cut below is within a character.
    let text = suffix.strip_prefix(['-', '@'])?;
    let bytes = text.as_bytes();
    let digits = match bytes.len() {
        10 if bytes[4] == b'-' && bytes[7] == b'-' => [&text[..4], &text[5..7], &text[8..]].concat(),
        8 => text.to_owned(),
        _ => return None,
    };
    let number: u32 = digits.bytes().all(|byte| byte.is_ascii_digit()).then(|| digits.parse().ok()).flatten()?;
    let (year, month, day) = (number / 10_000, number / 100 % 100, number % 100);
    let real = (2015..2100).contains(&year) && (1..=12).contains(&month) && (1..=31).contains(&day);
    real.then_some(number)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn place(provider: &'static str) -> Place<'static> {
        Place { provider, listed_as: provider, region: None }
    }

    #[test]
    fn the_names_tried() {
        for (provider, said, want) in [
            ("openai", "gpt-4o", &["gpt-4o"][..]),
            ("openai", "gpt-4o-2024-08-06", &["gpt-4o-2024-08-06", "gpt-4o"]),
            ("openai", "openai/gpt-4o-latest", &["openai/gpt-4o-latest", "gpt-4o-latest", "gpt-4o"]),
            ("openai", "gpt-4.1", &["gpt-4.1"]),
            ("openai", "gpt-4-0613", &["gpt-4-0613"]),
            (
                "openai",
                "gpt-3.5-turbo-instruct:20230824-v2",
                &["gpt-3.5-turbo-instruct:20230824-v2", "gpt-3.5-turbo-instruct"],
            ),
            (
                "openai",
                "ft:gpt-4o-mini-2024-07-18:acme::9x",
                &["ft:gpt-4o-mini-2024-07-18:acme::9x", "ft:gpt-4o-mini-2024-07-18", "ft:gpt-4o-mini"],
            ),
            ("anthropic", "claude-3-5-haiku-20241022", &["claude-3-5-haiku-20241022", "claude-3-5-haiku"]),
            ("vertex", "claude-3-5-sonnet@20240620", &["claude-3-5-sonnet@20240620", "claude-3-5-sonnet"]),
            (
                "vertex",
                "publishers/google/models/gemini-2.5-pro",
                &["publishers/google/models/gemini-2.5-pro", "gemini-2.5-pro"],
            ),
            ("gemini", "models/gemini-2.5-pro", &["models/gemini-2.5-pro", "gemini-2.5-pro"]),
            (
                "bedrock",
                "us.anthropic.claude-3-5-haiku-20241022-v1:0",
                &[
                    "us.anthropic.claude-3-5-haiku-20241022-v1:0",
                    "anthropic.claude-3-5-haiku-20241022-v1:0",
                    "anthropic.claude-3-5-haiku-20241022-v1",
                ],
            ),
            (
                "bedrock",
                "arn:aws:bedrock:us-east-1:123456789012:inference-profile/eu.amazon.nova-lite-v1:0",
                &[
                    "arn:aws:bedrock:us-east-1:123456789012:inference-profile/eu.amazon.nova-lite-v1:0",
                    "eu.amazon.nova-lite-v1:0",
                    "amazon.nova-lite-v1:0",
                    "amazon.nova-lite-v1",
                ],
            ),
            ("openrouter", "meta-llama/llama-3:free", &["meta-llama/llama-3:free"]),
            ("together", "meta-llama/Llama-3.3-70B-Instruct-Turbo", &["meta-llama/Llama-3.3-70B-Instruct-Turbo"]),
            ("fireworks", "accounts/acme/models/mine", &["accounts/acme/models/mine", "mine"]),
            ("openai", "-2024-08-06", &["-2024-08-06"]),
            ("openai", "ü-2024-08-0ü", &["ü-2024-08-0ü"]),
            ("openai", "", &[]),
        ] {
            let names: Vec<String> = spellings(place(provider), said).into_iter().map(|(_, name)| name).collect();
            assert_eq!(names, want, "{said}");
        }
    }

    #[test]
    fn a_region_goes_first() {
        let place = Place { provider: "bedrock-eu", listed_as: "bedrock", region: Some("eu-west-1") };
        let names: Vec<String> =
            spellings(place, "bedrock/anthropic.claude-v2").into_iter().map(|(_, name)| name).collect();
        assert_eq!(
            names,
            [
                "eu-west-1/bedrock/anthropic.claude-v2",
                "bedrock/anthropic.claude-v2",
                "eu-west-1/anthropic.claude-v2",
                "anthropic.claude-v2"
            ]
        );
    }

    #[test]
    fn dates() {
        for (suffix, want) in [
            ("-2024-08-06", Some(20_240_806)),
            ("-20240806", Some(20_240_806)),
            ("@20240806", Some(20_240_806)),
            ("-2024-13-06", None),
            ("-12345678", None),
            ("-2024-0806", None),
            ("x20240806", None),
            ("-202408", None),
            ("é024-08-06", None),
            ("-é24-08-06", None),
            ("-2024-é-06", None),
            ("-202408é", None),
        ] {
            assert_eq!(date(suffix), want, "{suffix}");
        }
    }

    #[test]
    fn names_have_a_provider_and_a_model() {
        for text in ["openai/gpt-4o", "*/llama3:8b", "together/meta-llama/Llama-3"] {
            assert_eq!(text.parse::<PriceName>().map(|name| name.to_string()), Ok(text.to_owned()));
        }
        for text in ["", "gpt-4o", "/x", "openai/", "openai/a b", "openai/\n"] {
            assert_eq!(text.parse::<PriceName>(), Err(BadName(text.to_owned())));
        }
    }

    proptest! {
        /// Names come from clients: whatever they are, there are few spellings, none empty, and the first is the name.
        #[test]
        fn any_name_has_spellings(
            name in prop_oneof![
                any::<String>(),
                "(us\\.|models/|openai/|ft:|arn:)?[a-zé.@:/-]{0,12}[-@:é]?[0-9é-]{0,12}(-latest|:0|@20240806)?",
            ],
            region in proptest::option::of(Just("eu-west-1")),
        ) {
            let place = Place { provider: "openai", listed_as: "openai", region };
            let found = spellings(place, &name);
            prop_assert!(found.len() <= 14 && found.iter().all(|(_, name)| !name.is_empty()));
            if let Some((_, first)) = found.iter().find(|(spelling, _)| *spelling == Spelling::Exact) {
                prop_assert_eq!(first, &name);
            }
        }
    }
}
