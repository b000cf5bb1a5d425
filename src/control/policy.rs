//! Limits, budgets and quotas in the admin API: what may be said of them, and how they stand.
//!
//! Owns the shapes, which keys, plans, users, teams and provider keys share; leaves what they mean to `policy`.

use http::HeaderMap;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Map;

use crate::clock::rfc3339;
use crate::control::body::{self, Tell};
use crate::control::problem::Problem;
use crate::id::ScopeId;
use crate::limit::{Kind, Report};
use crate::policy::{Budget, Counts, Limits, Otherwise, Policy, Quota, Shadow};
use crate::unit::usd;

/// Tells null from absent.
#[expect(clippy::option_option, reason = "absent, null and a value are three things")]
pub(super) fn said<'de, T, D>(deserializer: D) -> Result<Option<Option<T>>, D::Error>
where
    T: Deserialize<'de>,
    D: Deserializer<'de>,
{
    Option::deserialize(deserializer).map(Some)
}

/// Takes over what was said: null takes the value away, absence leaves it.
pub(super) fn set<T: Clone>(field: &mut Option<T>, said: &Option<Option<T>>) {
    if let Some(value) = said {
        field.clone_from(value);
    }
}

/// What was said of a list of models: null, or `*` alone, is everything, which is recorded as the empty list.
///
/// # Errors
/// When a glob is empty: it would match nothing.
pub(super) fn globs(said: &Option<Option<Vec<String>>>) -> Result<Option<Vec<String>>, Problem> {
    let Some(models) = allowed(said) else { return Ok(None) };
    if models.iter().any(|glob| glob.trim().is_empty()) {
        return Err(Problem::invalid("models", "an empty glob matches nothing").fix("leave it out"));
    }
    Ok(Some(models.iter().map(|glob| glob.trim().to_owned()).collect()))
}

/// What was said of a list: null, or `*` alone, is everything, which is recorded as the empty list.
pub(super) fn allowed(said: &Option<Option<Vec<String>>>) -> Option<&[String]> {
    let said = said.as_ref()?.as_deref().unwrap_or_default();
    Some(if matches!(said, [all] if all == "*") { &[] } else { said })
}

/// What is said of a policy: an absent field keeps its value, null takes it away.
#[derive(Debug, Default, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub(super) struct PolicyWish {
    #[serde(deserialize_with = "said")]
    limits: Option<Option<WishedLimits>>,
    #[serde(deserialize_with = "said")]
    budgets: Option<Option<Vec<Budget>>>,
    #[serde(deserialize_with = "said")]
    quotas: Option<Option<Vec<Quota>>>,
    #[serde(deserialize_with = "said")]
    shadow: Option<Option<Vec<Shadow>>>,
    #[serde(deserialize_with = "said")]
    unpriced: Option<Option<Otherwise>>,
    #[serde(deserialize_with = "said")]
    unrecorded: Option<Option<Otherwise>>,
    #[serde(deserialize_with = "said")]
    hard_stop: Option<Option<bool>>,
}

#[derive(Debug, Default, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema), schemars(rename = "LimitsWish"))]
#[serde(default, deny_unknown_fields)]
pub(super) struct WishedLimits {
    #[serde(deserialize_with = "said")]
    rpm: Option<Option<u64>>,
    #[serde(deserialize_with = "said")]
    tpm: Option<Option<u64>>,
    #[serde(deserialize_with = "said")]
    max_in_flight: Option<Option<u64>>,
    #[serde(deserialize_with = "said")]
    tpm_counts: Option<Option<Counts>>,
}

impl PolicyWish {
    const FIELDS: [&'static str; 7] = ["limits", "budgets", "quotas", "shadow", "unpriced", "unrecorded", "hard_stop"];

    /// True when nothing was said.
    pub(super) fn is_empty(&self) -> bool {
        let Self { limits, budgets, quotas, shadow, unpriced, unrecorded, hard_stop } = self;
        let said = [
            limits.is_some(),
            budgets.is_some(),
            quotas.is_some(),
            shadow.is_some(),
            unpriced.is_some(),
            unrecorded.is_some(),
            hard_stop.is_some(),
        ];
        !said.contains(&true)
    }

    /// Writes what was said into `policy`.
    ///
    /// # Errors
    /// What the policy would then be, when that cannot be.
    pub(super) fn apply(&self, policy: &mut Policy) -> Result<(), Problem> {
        match &self.limits {
            None => {}
            Some(None) => policy.limits = Limits::default(),
            Some(Some(limits)) => limits.apply(&mut policy.limits),
        }
        fn list<T: Clone>(field: &mut Vec<T>, said: &Option<Option<Vec<T>>>) {
            if let Some(items) = said {
                *field = items.clone().unwrap_or_default();
            }
        }
        list(&mut policy.budgets, &self.budgets);
        list(&mut policy.quotas, &self.quotas);
        list(&mut policy.shadow, &self.shadow);
        set(&mut policy.unpriced, &self.unpriced);
        set(&mut policy.unrecorded, &self.unrecorded);
        set(&mut policy.hard_stop, &self.hard_stop);
        policy.check().map_err(|(field, detail)| {
            Problem::invalid(field, detail).fix("say another value, or null to take it away")
        })
    }
}

impl WishedLimits {
    fn apply(&self, limits: &mut Limits) {
        let Self { rpm, tpm, max_in_flight, tpm_counts } = self;
        set(&mut limits.rpm, rpm);
        set(&mut limits.tpm, tpm);
        set(&mut limits.max_in_flight, max_in_flight);
        if let Some(counts) = tpm_counts {
            limits.tpm_counts = counts.unwrap_or_default();
        }
    }
}

/// A policy's fields and others in one object; a field that is of neither is an error.
#[derive(Debug, Default)]
pub(super) struct With<T> {
    pub(super) policy: PolicyWish,
    pub(super) rest: T,
}

impl<T: DeserializeOwned> With<T> {
    /// Reads a JSON body.
    pub(super) fn parse(headers: &HeaderMap, body: &[u8], tell: Tell) -> Result<Self, Problem> {
        let all = body::object(headers, body, tell)?;
        let (policy, rest) =
            all.into_iter().partition::<Map<_, _>, _>(|(name, _)| PolicyWish::FIELDS.contains(&name.as_str()));
        Ok(Self { policy: body::read(policy, tell)?, rest: body::read(rest, tell)? })
    }
}

/// A limit as it stands.
#[derive(Clone, Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema), schemars(rename = "LimitState"))]
#[expect(missing_docs, reason = "named like the fields of Report")]
pub struct LimitView {
    /// Whose: `key`, `plan`, `team`, `user` or `provider_key`.
    pub scope: &'static str,
    /// Which of those.
    pub scope_id: String,
    /// `rpm`, `tpm`, `max_in_flight`, `budget` or `quota`.
    pub limit: &'static str,
    /// The window of a budget or quota.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub per: Option<&'static str>,
    /// Which tokens a quota counts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub counts: Option<&'static str>,
    pub value: Figure,
    pub used: Figure,
    pub reserved: Figure,
    pub remaining: Figure,
    /// When the window of a budget or quota ends; null is never.
    #[cfg_attr(test, schemars(extend("format" = "date-time")))]
    pub resets: Option<String>,
    pub shadow: bool,
}

/// A number of requests or tokens, or dollars as a decimal string.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(untagged)]
#[expect(missing_docs, reason = "named by what they are")]
pub enum Figure {
    Count(u64),
    Usd(String),
}

impl Figure {
    /// In the unit of this kind of limit.
    pub(super) fn of(limit: Kind, amount: u64) -> Self {
        match limit {
            Kind::Budget(_) => Self::Usd(usd(amount)),
            Kind::InFlight | Kind::Quota(..) | Kind::Rpm | Kind::Tpm => Self::Count(amount),
        }
    }
}

impl From<&Report> for LimitView {
    fn from(report: &Report) -> Self {
        let figure = |amount| Figure::of(report.limit, amount);
        let (per, counts) = match report.limit {
            Kind::Budget(per) => (Some(per.as_str()), None),
            Kind::Quota(per, counts) => (Some(per.as_str()), Some(counts.as_str())),
            Kind::InFlight | Kind::Rpm | Kind::Tpm => (None, None),
        };
        Self {
            scope: report.scope.kind(),
            scope_id: bare(&report.scope),
            limit: report.limit.as_str(),
            per,
            counts,
            value: figure(report.value),
            used: figure(report.used),
            reserved: figure(report.reserved),
            remaining: figure(report.remaining()),
            resets: report.resets_ms.map(rfc3339),
            shadow: report.shadow,
        }
    }
}

/// The id or the name alone.
pub(super) fn bare(scope: &ScopeId) -> String {
    match scope {
        ScopeId::Key(id) | ScopeId::ProviderKey(id) => id.to_string(),
        ScopeId::Plan(name) | ScopeId::Team(name) | ScopeId::User(name) => name.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[derive(Debug, Default, Deserialize)]
    #[serde(default, deny_unknown_fields)]
    struct Rest {
        name: Option<String>,
    }

    fn read(body: &Value) -> Result<With<Rest>, Problem> {
        let json = [(http::header::CONTENT_TYPE, http::HeaderValue::from_static("application/json"))];
        With::parse(&json.into_iter().collect(), body.to_string().as_bytes(), Tell::All)
    }

    #[test]
    fn absent_keeps_null_takes_away() {
        let before = json!({
            "limits": {"rpm": 1, "tpm": 2, "max_in_flight": null, "tpm_counts": "input"},
            "budgets": [{"usd": "1", "per": "day"}], "quotas": [{"tokens": 3}], "shadow": ["rpm"], "unpriced": "allow",
            "hard_stop": true,
        });
        let with = |name: &str, value: Value| {
            let mut fields = before.as_object().unwrap().clone();
            fields.insert(name.to_owned(), value);
            Value::Object(fields)
        };
        let limits = |rpm: Value, tpm: Value, counts: &str| json!({"rpm": rpm, "tpm": tpm, "tpm_counts": counts});
        for (wish, want) in [
            (json!({}), before.clone()),
            (json!({"name": "x", "limits": {}}), before.clone()),
            (json!({"limits": {"rpm": null}}), with("limits", limits(Value::Null, json!(2), "input"))),
            (json!({"limits": {"tpm_counts": null}}), with("limits", limits(json!(1), json!(2), "total"))),
            (json!({"limits": null}), with("limits", json!({}))),
            (json!({"budgets": null}), with("budgets", json!([]))),
            (json!({"quotas": [{"tokens": 9, "per": "week"}]}), with("quotas", json!([{"tokens": 9, "per": "week"}]))),
            (json!({"shadow": []}), with("shadow", json!([]))),
            (json!({"unpriced": null}), with("unpriced", Value::Null)),
            (json!({"hard_stop": false}), with("hard_stop", json!(false))),
        ] {
            let mut policy: Policy = serde_json::from_value(before.clone()).unwrap();
            let said = read(&wish).unwrap();
            assert_eq!(said.rest.name.is_some(), wish.get("name").is_some());
            said.policy.apply(&mut policy).unwrap();
            assert_eq!(policy, serde_json::from_value::<Policy>(want).unwrap(), "{wish}");
        }
        for bad in [json!({"limits": {"rps": 1}}), json!({"budget": 1}), json!({"budgets": [{"usd": 0.5}]})] {
            assert!(read(&bad).is_err(), "{bad}");
        }
    }
}
