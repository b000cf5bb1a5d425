//! Budgets and quotas as people write them: `20/month,zone=Europe/Berlin,shadow,alert=50:80`.
//!
//! Owns the text, both ways; leaves what it means to its parent.

use std::fmt;
use std::str::FromStr;

use crate::unit::{parse_usd, usd};

use super::{ALERT_AT, Budget, Counts, Per, Quota, alert_at, zone_named};

/// What is written behind the amount: `/month,zone=Europe/Berlin,shadow,alert=50:80`.
struct Options<'a> {
    amount: &'a str,
    per: Option<Per>,
    time_zone: Option<String>,
    alert_at: Vec<u8>,
    shadow: bool,
    counts: Option<Counts>,
}

fn options(text: &str) -> Result<Options<'_>, String> {
    let mut parts = text.split(',').map(str::trim);
    let first = parts.next().unwrap_or_default();
    let (amount, per) = match first.split_once('/') {
        None => (first, None),
        Some((amount, per)) => (amount, Some(per)),
    };
    let known = |word: &str| Per::ALL.into_iter().find(|each| each.as_str() == word);
    let per =
        per.map(|word| known(word).ok_or_else(|| format!("{word:?} is no window: write day, week, month or total")));
    let mut found =
        Options { amount, per: per.transpose()?, time_zone: None, alert_at: alert_at(), shadow: false, counts: None };
    for part in parts {
        match part.split_once('=') {
            None if part == "shadow" => found.shadow = true,
            Some(("zone", zone)) => {
                zone_named(zone)?;
                found.time_zone = Some(zone.to_owned());
            }
            Some(("alert", list)) => {
                let percent = |text: &str| text.parse().map_err(|_| format!("{text:?} is no percentage"));
                found.alert_at =
                    list.split(':').filter(|text| !text.is_empty()).map(percent).collect::<Result<_, _>>()?;
            }
            Some(("counts", counts)) => found.counts = Some(counts.parse()?),
            _ => {
                return Err(format!(
                    "{part:?} is not known here: write shadow, zone=NAME, alert=80:100 or counts=WHAT"
                ));
            }
        }
    }
    Ok(found)
}

/// `100`, `100/month`, `20/day,zone=Europe/Berlin,shadow,alert=50:90`.
impl FromStr for Budget {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let Options { amount, per, time_zone, alert_at, shadow, counts } = options(text)?;
        if counts.is_some() {
            return Err("a budget counts dollars, not tokens: write counts= on a quota".to_owned());
        }
        Ok(Self { nano_usd: parse_usd(amount)?, per: per.unwrap_or_default(), time_zone, alert_at, shadow })
    }
}

/// `1000000`, `1000000/week`, `500000,counts=uncached,shadow`.
impl FromStr for Quota {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let Options { amount, per, time_zone, alert_at, shadow, counts } = options(text)?;
        let tokens = amount.parse().map_err(|_| format!("{amount:?} is no number of tokens"))?;
        let (per, counts) = (per.unwrap_or(Per::Day), counts.unwrap_or_default());
        Ok(Self { tokens, per, counts, time_zone, alert_at, shadow })
    }
}

impl fmt::Display for Budget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { nano_usd, per, time_zone, alert_at, shadow } = self;
        write!(f, "{}/{}", usd(*nano_usd), per.as_str())?;
        write_options(f, time_zone.as_deref(), alert_at, *shadow)
    }
}

impl fmt::Display for Quota {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { tokens, per, counts, time_zone, alert_at, shadow } = self;
        write!(f, "{tokens}/{}", per.as_str())?;
        if *counts != Counts::Total {
            write!(f, ",counts={}", counts.as_str())?;
        }
        write_options(f, time_zone.as_deref(), alert_at, *shadow)
    }
}

fn write_options(f: &mut fmt::Formatter<'_>, zone: Option<&str>, alerts: &[u8], shadow: bool) -> fmt::Result {
    if let Some(zone) = zone {
        write!(f, ",zone={zone}")?;
    }
    if alerts != ALERT_AT {
        let alerts: Vec<String> = alerts.iter().map(u8::to_string).collect();
        write!(f, ",alert={}", alerts.join(":"))?;
    }
    if shadow { f.write_str(",shadow") } else { Ok(()) }
}

/// A budget as people write it, where there may be one. For `#[serde(with = "policy::written")]`.
pub mod written {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use super::super::Budget;

    #[expect(missing_docs, clippy::missing_errors_doc, reason = "serde's own shape")]
    pub fn serialize<S: Serializer>(value: &Option<Budget>, serializer: S) -> Result<S::Ok, S::Error> {
        value.as_ref().map(ToString::to_string).serialize(serializer)
    }

    #[expect(missing_docs, clippy::missing_errors_doc, reason = "serde's own shape")]
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Budget>, D::Error> {
        let text = Option::<String>::deserialize(deserializer)?;
        text.map(|text| text.parse()).transpose().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn budgets_as_people_write_them() {
        let budget = |nano_usd, per| Budget { nano_usd, per, time_zone: None, alert_at: alert_at(), shadow: false };
        for (text, want) in [
            ("100", budget(100_000_000_000, Per::Total)),
            ("0.5/day", budget(500_000_000, Per::Day)),
            ("20/week, shadow", Budget { shadow: true, ..budget(20_000_000_000, Per::Week) }),
            (
                "3/month,zone=Europe/Berlin,alert=50:99",
                Budget {
                    time_zone: Some("Europe/Berlin".into()),
                    alert_at: vec![50, 99],
                    ..budget(3_000_000_000, Per::Month)
                },
            ),
        ] {
            assert_eq!(text.parse(), Ok(want), "{text}");
        }
        for (text, want) in [
            ("", "is no amount"),
            ("-1", "is no amount"),
            ("1/hour", "is no window"),
            ("1,zone=Mars/Base", "no time zone"),
            ("1,counts=input", "counts dollars"),
            ("1,alert=x", "is no percentage"),
            ("1,often", "is not known here"),
        ] {
            let error = text.parse::<Budget>().unwrap_err();
            assert!(error.contains(want), "{text}: {error}");
        }
    }

    #[test]
    fn quotas_as_people_write_them() {
        for (text, want) in [("1000", "1000/day"), ("5/week,counts=uncached-input", "5/week,counts=uncached_input")] {
            assert_eq!(text.parse::<Quota>().unwrap().to_string(), want);
        }
        for text in ["many", "1.5", "1,counts=words"] {
            assert!(text.parse::<Quota>().is_err(), "{text}");
        }
    }
}
