//! What may be used: rates, budgets and quotas, as they are written down on virtual keys, plans, users and teams.
//!
//! Owns the records; leaves how people write them (`100/month`) to `text`, and counting against them to `limit`.

mod text;

use std::str::FromStr;

use jiff::tz::TimeZone;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::unit::{parse_usd, usd};

pub use text::written;

/// Rates and concurrency; `None` is no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Requests per minute.
    pub rpm: Option<u64>,
    /// Tokens per minute.
    pub tpm: Option<u64>,
    /// Requests at the same time.
    pub max_in_flight: Option<u64>,
    /// Which tokens TPM counts.
    #[serde(skip_serializing_if = "is_default")]
    pub tpm_counts: Counts,
}

impl Limits {
    /// These, and where they say nothing what `other` says.
    #[must_use]
    pub fn or(self, other: &Self) -> Self {
        Self {
            rpm: self.rpm.or(other.rpm),
            tpm: self.tpm.or(other.tpm),
            max_in_flight: self.max_in_flight.or(other.max_in_flight),
            tpm_counts: if self.tpm.is_some() { self.tpm_counts } else { other.tpm_counts },
        }
    }
}

/// Which tokens are counted. Providers differ in whether tokens read from a prompt cache count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Counts {
    /// Input and output.
    #[default]
    Total,
    /// Input.
    Input,
    /// Output.
    Output,
    /// Input and output, without input read from a prompt cache.
    Uncached,
    /// Input, without that read from a prompt cache.
    UncachedInput,
}

impl Counts {
    /// Every one.
    pub const ALL: [Self; 5] = [Self::Total, Self::Input, Self::Output, Self::Uncached, Self::UncachedInput];

    /// The word for it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Input => "input",
            Self::Output => "output",
            Self::Total => "total",
            Self::Uncached => "uncached",
            Self::UncachedInput => "uncached_input",
        }
    }
}

impl FromStr for Counts {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wanted = text.replace('-', "_");
        Self::ALL.into_iter().find(|each| each.as_str() == wanted).ok_or_else(|| {
            let words = Self::ALL.map(Self::as_str).join(", ");
            format!("{text:?} is not what tokens are counted by: write one of {words}")
        })
    }
}

/// How long a budget or quota lasts before it starts anew.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum Per {
    /// From midnight to midnight.
    Day,
    /// From Monday to Monday (ISO 8601).
    Week,
    /// From the first of a month to the first of the next.
    Month,
    /// For ever.
    #[default]
    Total,
}

impl Per {
    /// Every one.
    pub const ALL: [Self; 4] = [Self::Day, Self::Week, Self::Month, Self::Total];

    /// The word for it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Day => "day",
            Self::Month => "month",
            Self::Total => "total",
            Self::Week => "week",
        }
    }
}

/// Percentages at which an event is told.
const ALERT_AT: [u8; 2] = [80, 100];

/// Money in a window.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Budget {
    /// How much, in billionths of a US dollar; in JSON a decimal string of dollars.
    #[serde(rename = "usd", serialize_with = "write_usd", deserialize_with = "read_usd")]
    #[cfg_attr(test, schemars(schema_with = "usd_schema"))]
    pub nano_usd: u64,
    /// Until when it has to last.
    #[serde(default)]
    pub per: Per,
    /// Where its days begin: an IANA name; `None` is UTC.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub time_zone: Option<String>,
    /// Percentages of it at which an event is told.
    #[serde(default = "alert_at")]
    pub alert_at: Vec<u8>,
    /// True to count what would be refused, and refuse nothing.
    #[serde(default)]
    pub shadow: bool,
}

/// Tokens in a window.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Quota {
    /// How many.
    pub tokens: u64,
    /// Until when they have to last.
    #[serde(default = "per_day")]
    pub per: Per,
    /// Which tokens count.
    #[serde(default)]
    pub counts: Counts,
    /// Where its days begin: an IANA name; `None` is UTC.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub time_zone: Option<String>,
    /// Percentages of it at which an event is told.
    #[serde(default = "alert_at")]
    pub alert_at: Vec<u8>,
    /// True to count what would be refused, and refuse nothing.
    #[serde(default)]
    pub shadow: bool,
}

/// A limit that only counts, beside budgets and quotas, which say it of themselves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Shadow {
    /// Requests at the same time.
    MaxInFlight,
    /// Requests per minute.
    Rpm,
    /// Tokens per minute.
    Tpm,
}

impl FromStr for Shadow {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.replace('-', "_").as_str() {
            "max_in_flight" => Ok(Self::MaxInFlight),
            "rpm" => Ok(Self::Rpm),
            "tpm" => Ok(Self::Tpm),
            _ => Err(format!("{text:?} is no rate: write rpm, tpm or max_in_flight; a budget or quota says it itself")),
        }
    }
}

/// What becomes of a request whose cost, or whose record, cannot be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum Otherwise {
    /// It passes.
    Allow,
    /// It is refused.
    Deny,
}

impl FromStr for Otherwise {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "allow" => Ok(Self::Allow),
            "deny" => Ok(Self::Deny),
            _ => Err("write allow or deny".to_owned()),
        }
    }
}

/// All of it together, for one scope.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default)]
pub struct Policy {
    /// Rates and concurrency.
    pub limits: Limits,
    /// Money.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub budgets: Vec<Budget>,
    /// Tokens.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub quotas: Vec<Quota>,
    /// Rates that only count.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub shadow: Vec<Shadow>,
    /// Whether a model without a price may be called where there is a budget; `None` leaves it to the next scope, and
    /// last to `deny`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unpriced: Option<Otherwise>,
    /// Whether a request may be served that cannot be recorded; `None` leaves it to the next scope, and last to `deny`
    /// where there is a budget or quota, else to `allow`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unrecorded: Option<Otherwise>,
    /// True to end a stream when what has gone by has used up its reservation and no more is to be had.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hard_stop: Option<bool>,
}

impl Policy {
    /// True when there is anything to hold to.
    #[must_use]
    pub fn limits_anything(&self) -> bool {
        let Limits { rpm, tpm, max_in_flight, tpm_counts: _ } = self.limits;
        rpm.or(tpm).or(max_in_flight).is_some() || !self.budgets.is_empty() || !self.quotas.is_empty()
    }

    /// True when there is a budget, and not only in shadow.
    #[must_use]
    pub fn holds_money(&self) -> bool {
        self.budgets.iter().any(|budget| !budget.shadow)
    }

    /// True when there is a budget or a quota, and not only in shadow.
    #[must_use]
    pub fn holds_amounts(&self) -> bool {
        self.holds_money() || self.quotas.iter().any(|quota| !quota.shadow)
    }

    /// This one, and where it says nothing what `other` says: a key's own goes before its plan's. Budgets of the same
    /// window are one thing, as are quotas of the same window and tokens.
    #[must_use]
    pub fn or(&self, other: &Self) -> Self {
        let mut both = self.clone();
        both.limits = self.limits.or(&other.limits);
        let of_plan = other.budgets.iter().filter(|theirs| !self.budgets.iter().any(|ours| ours.per == theirs.per));
        both.budgets.extend(of_plan.cloned());
        let same = |ours: &Quota, theirs: &Quota| ours.per == theirs.per && ours.counts == theirs.counts;
        let of_plan = other.quotas.iter().filter(|theirs| !self.quotas.iter().any(|ours| same(ours, theirs)));
        both.quotas.extend(of_plan.cloned());
        let rate_is_theirs = |shadow: &&Shadow| match shadow {
            Shadow::MaxInFlight => self.limits.max_in_flight.is_none(),
            Shadow::Rpm => self.limits.rpm.is_none(),
            Shadow::Tpm => self.limits.tpm.is_none(),
        };
        both.shadow.extend(other.shadow.iter().filter(rate_is_theirs));
        both.unpriced = self.unpriced.or(other.unpriced);
        both.unrecorded = self.unrecorded.or(other.unrecorded);
        both.hard_stop = self.hard_stop.or(other.hard_stop);
        both
    }

    /// Checks what serde cannot.
    ///
    /// # Errors
    /// The field that is at fault, and why.
    pub fn check(&self) -> Result<(), (&'static str, String)> {
        let zero = "0 would refuse everything: leave the limit out, or disable the key";
        let limits = &self.limits;
        for (field, value) in
            [("limits.rpm", limits.rpm), ("limits.tpm", limits.tpm), ("limits.max_in_flight", limits.max_in_flight)]
        {
            if value == Some(0) {
                return Err((field, zero.to_owned()));
            }
        }
        for (index, budget) in self.budgets.iter().enumerate() {
            check_window("budgets", budget.time_zone.as_deref(), &budget.alert_at)?;
            if self.budgets[..index].iter().any(|other| other.per == budget.per) {
                return Err(("budgets", format!("two budgets per {}: keep one", budget.per.as_str())));
            }
        }
        for (index, quota) in self.quotas.iter().enumerate() {
            check_window("quotas", quota.time_zone.as_deref(), &quota.alert_at)?;
            if self.quotas[..index].iter().any(|other| other.per == quota.per && other.counts == quota.counts) {
                let (counts, per) = (quota.counts.as_str(), quota.per.as_str());
                return Err(("quotas", format!("two quotas of {counts} tokens per {per}: keep one")));
            }
        }
        Ok(())
    }
}

fn check_window(field: &'static str, zone: Option<&str>, alert_at: &[u8]) -> Result<(), (&'static str, String)> {
    if let Some(zone) = zone {
        zone_named(zone).map_err(|error| (field, error))?;
    }
    match alert_at {
        [.., last] if alert_at.len() > 8 || *last > 100 || !alert_at.is_sorted() || alert_at.contains(&0) => {
            Err((field, "alert_at takes up to 8 percentages from 1 to 100, in rising order".to_owned()))
        }
        _ => Ok(()),
    }
}

/// The time zone of an IANA name.
///
/// # Errors
/// When there is none of that name.
pub fn zone_named(name: &str) -> Result<TimeZone, String> {
    TimeZone::get(name).map_err(|_| format!("{name:?} is no time zone: write an IANA name such as Europe/Berlin"))
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

fn alert_at() -> Vec<u8> {
    ALERT_AT.to_vec()
}

fn per_day() -> Per {
    Per::Day
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's own shape")]
fn write_usd<S: Serializer>(nano: &u64, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&usd(*nano))
}

fn read_usd<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    /// A decimal string, or a whole number: a float would not be exact.
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Said {
        Text(String),
        Whole(u64),
    }
    let nano = match Said::deserialize(deserializer)? {
        Said::Text(text) => parse_usd(&text),
        Said::Whole(dollars) => parse_usd(&dollars.to_string()),
    };
    nano.map_err(serde::de::Error::custom)
}

/// A decimal string; a whole number will do where it is asked for.
#[cfg(test)]
fn usd_schema(generator: &mut schemars::SchemaGenerator) -> schemars::Schema {
    let pattern = r"^[0-9]{1,10}(\.[0-9]{1,9})?$";
    match generator.contract().is_deserialize() {
        true => schemars::json_schema!({
            "type": ["string", "integer"],
            "pattern": pattern,
            "minimum": 0,
            "maximum": 18_446_744_073_u64,
        }),
        false => schemars::json_schema!({"type": "string"}),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_is_exact_and_short() {
        let text = r#"{"limits":{"rpm":5,"tpm":null,"max_in_flight":null},"budgets":[{"usd":"0.10","per":"day"}]}"#;
        let policy: Policy = serde_json::from_str(text).unwrap();
        assert_eq!(policy.budgets[0].nano_usd, 100_000_000);
        let back = r#"{"limits":{"rpm":5,"tpm":null,"max_in_flight":null},"budgets":[{"usd":"0.1","per":"day","alert_at":[80,100],"shadow":false}]}"#;
        assert_eq!(serde_json::to_string(&policy).unwrap(), back);
        let whole: Budget = serde_json::from_str(r#"{"usd":7}"#).unwrap();
        assert_eq!((whole.nano_usd, whole.per), (7_000_000_000, Per::Total));
        for bad in [r#"{"usd":0.1}"#, r#"{"usd":"1","every":"day"}"#, r#"{"usd":"99999999999999999999"}"#] {
            assert!(serde_json::from_str::<Budget>(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_keys_own_goes_before_its_plans() {
        let policy = |limits, budgets: &[&str], quotas: &[&str]| Policy {
            limits,
            budgets: budgets.iter().map(|text| text.parse().unwrap()).collect(),
            quotas: quotas.iter().map(|text| text.parse().unwrap()).collect(),
            ..Policy::default()
        };
        let rates = |rpm, tpm| Limits { rpm, tpm, ..Limits::default() };
        let mut key = policy(rates(Some(9), None), &["5/day"], &["10,counts=input"]);
        key.shadow = vec![Shadow::Rpm];
        let mut plan = policy(rates(Some(1), Some(2)), &["1/day", "7/month"], &["20", "30,counts=input"]);
        plan.shadow = vec![Shadow::Rpm, Shadow::Tpm];
        plan.unpriced = Some(Otherwise::Allow);
        let both = key.or(&plan);
        let shown = |policy: &Policy| {
            let budgets = policy.budgets.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
            budgets + " | " + &policy.quotas.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
        };
        assert_eq!((both.limits.rpm, both.limits.tpm), (Some(9), Some(2)));
        assert_eq!(shown(&both), "5/day 7/month | 10/day,counts=input 20/day");
        assert_eq!((both.shadow, both.unpriced), (vec![Shadow::Rpm, Shadow::Tpm], Some(Otherwise::Allow)));
    }

    #[test]
    fn what_serde_cannot_check() {
        let with = |budgets: Vec<Budget>| Policy { budgets, ..Policy::default() };
        let budget: Budget = "1/day".parse().unwrap();
        let zoned = Budget { time_zone: Some("Nowhere".into()), ..budget.clone() };
        let alerts = |alert_at: &[u8]| with(vec![Budget { alert_at: alert_at.to_vec(), ..budget.clone() }]);
        for (name, policy, want) in [
            ("good", with(vec![budget.clone(), "1/week".parse().unwrap()]), None),
            ("no alerts", alerts(&[]), None),
            ("twice", with(vec![budget.clone(), budget.clone()]), Some("budgets")),
            ("zone", with(vec![zoned]), Some("budgets")),
            ("over", alerts(&[101]), Some("budgets")),
            ("falling", alerts(&[80, 50]), Some("budgets")),
            (
                "zero",
                Policy { limits: Limits { rpm: Some(0), ..Limits::default() }, ..Policy::default() },
                Some("limits.rpm"),
            ),
        ] {
            assert_eq!(policy.check().err().map(|(field, _)| field), want, "{name}");
        }
    }
}
