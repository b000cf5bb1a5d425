//! [`Refused`]: which limit stood in the way, and all that a good message says of it.
//!
//! Owns the facts and their wording; leaves status and headers to `proxy`.

use std::fmt;
use std::time::Duration;

use crate::clock::rfc3339;
use crate::id::ScopeId;
use crate::policy::{Counts, Per};

use super::consumption::Measure;

/// A kind of limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Money in a window.
    Budget(Per),
    /// Requests at the same time.
    InFlight,
    /// Tokens in a window.
    Quota(Per, Counts),
    /// Requests per minute.
    Rpm,
    /// Tokens per minute.
    Tpm,
}

impl Kind {
    /// Every [`Kind::as_str`].
    pub const NAMES: [&'static str; 5] = ["budget", "max_in_flight", "quota", "rpm", "tpm"];

    /// The name of its field in [`crate::policy`]; also the label in metrics.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Budget(_) => "budget",
            Self::InFlight => "max_in_flight",
            Self::Quota(..) => "quota",
            Self::Rpm => "rpm",
            Self::Tpm => "tpm",
        }
    }

    /// True when waiting a little frees it.
    #[must_use]
    pub fn is_rate(self) -> bool {
        match self {
            Self::InFlight | Self::Rpm | Self::Tpm => true,
            Self::Budget(_) | Self::Quota(..) => false,
        }
    }

    fn unit(self) -> &'static str {
        match self {
            Self::InFlight => "requests at a time",
            Self::Rpm => "requests per minute",
            Self::Tpm => "tokens per minute",
            Self::Budget(_) | Self::Quota(..) => "",
        }
    }
}

/// A request that a limit did not admit. Nothing of it is reserved anywhere.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", Message(self))]
pub struct Refused {
    /// Whose limit.
    pub scope: ScopeId,
    /// The limit; of several, the one that takes longest to free.
    pub limit: Kind,
    /// What it is set to: requests, tokens, or billionths of a US dollar.
    pub value: u64,
    /// What is used. Of a rate: and not yet refilled, `reserved` included; more than `value` when in debt.
    pub used: u64,
    /// What requests still open hold: of a rate the part of `used`, of a budget or quota beside it.
    pub reserved: u64,
    /// What this request asked for.
    pub needed: u64,
    /// When it would pass if nobody else came first; `None` when waiting a little does not help. For requests at the
    /// same time it is a guess: nobody knows when one ends.
    pub retry_after: Option<Duration>,
    /// When the window of a budget or quota ends, wall time, milliseconds.
    pub resets_ms: Option<u64>,
}

impl Refused {
    /// How much it stands in the way: for ever, until a window ends, or for a while.
    pub(super) fn weight(&self) -> (u8, Duration) {
        match self.retry_after {
            Some(wait) => (0, wait),
            None if !self.limit.is_rate() && self.needed <= self.value => (1, Duration::ZERO),
            None => (2, Duration::ZERO),
        }
    }
}

struct Message<'a>(&'a Refused);

impl fmt::Display for Message<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.limit {
            Kind::Budget(per) => self.amount(f, "budget", Measure::Money, per),
            Kind::Quota(per, counts) => self.amount(f, "quota", Measure::Tokens(counts), per),
            Kind::InFlight | Kind::Rpm | Kind::Tpm => self.rate(f),
        }
    }
}

impl Message<'_> {
    /// Whose, where it is not the key's own.
    fn whose(&self) -> String {
        match &self.0.scope {
            ScopeId::Key(_) => String::new(),
            scope => format!(" of {scope}"),
        }
    }

    fn rate(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Refused { limit, value, used, reserved, needed, retry_after, .. } = *self.0;
        let (name, unit, whose) = (limit.as_str(), limit.unit(), self.whose());
        let Some(wait) = retry_after else {
            return match limit {
                _ if value == 0 => write!(f, "{name}{whose} is 0: nothing passes until it is raised"),
                Kind::Tpm => write!(
                    f,
                    "the request needs about {needed} tokens, more than the whole limit{whose} of {value} {unit}, so \
                     waiting cannot help: shorten it, ask for fewer output tokens, or raise {name}"
                ),
                _ => write!(
                    f,
                    "the request needs {needed}, more than the whole limit{whose} of {value} {unit}: raise {name}"
                ),
            };
        };
        let wait = wait.as_secs_f64();
        match limit {
            Kind::Tpm => write!(
                f,
                "limit of {value} {unit}{whose} reached: {used} used, {reserved} of them reserved by open requests, about \
                 {needed} needed; frees in {wait:.3} s"
            ),
            Kind::Rpm => write!(
                f,
                "limit of {value} {unit}{whose} reached: {used} used, {reserved} of them still open; frees in {wait:.3} s"
            ),
            _ => write!(f, "limit of {value} {unit}{whose} reached: {used} in flight; retry when one has ended"),
        }
    }

    fn amount(&self, f: &mut fmt::Formatter<'_>, name: &str, measure: Measure, per: Per) -> fmt::Result {
        let Refused { value, used, reserved, needed, resets_ms, .. } = *self.0;
        let whose = self.whose();
        let [value_shown, used, reserved, needed_shown] = [value, used, reserved, needed].map(|n| measure.show(n));
        let window = match per {
            Per::Total => " in all".to_owned(),
            per => format!(" per {}", per.as_str()),
        };
        if needed > value {
            return write!(
                f,
                "the request may take {needed_shown}, more than the whole {name}{whose} of {value_shown}{window}: shorten \
                 it, ask for fewer output tokens, or raise the {name}"
            );
        }
        write!(
            f,
            "{name}{whose} of {value_shown}{window} has no room: {used} used, {reserved} reserved by open requests, about \
             {needed_shown} needed; "
        )?;
        match resets_ms {
            Some(time) => write!(f, "it begins anew at {}", rfc3339(time)),
            None => write!(f, "it does not begin anew: raise it"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::KeyId;

    #[test]
    fn messages_name_limit_value_use_and_when_it_frees() {
        let base = Refused {
            scope: ScopeId::Key(KeyId::from_bytes([1; 8])),
            limit: Kind::Rpm,
            value: 60,
            used: 60,
            reserved: 2,
            needed: 1,
            retry_after: None,
            resets_ms: None,
        };
        let wait = Some(Duration::from_millis(1_500));
        let money = Refused {
            limit: Kind::Budget(Per::Month),
            value: 2_000_000_000,
            used: 1_500_000_000,
            reserved: 400_000_000,
            needed: 250_000_000,
            resets_ms: Some(1_796_083_200_000),
            ..base.clone()
        };
        let tokens = Refused { limit: Kind::Quota(Per::Day, Counts::Uncached), value: 100, used: 99, ..base.clone() };
        for (name, refused, want) in [
            (
                "rpm",
                Refused { retry_after: wait, ..base.clone() },
                "limit of 60 requests per minute reached: 60 used, 2 of them still open; frees in 1.500 s",
            ),
            (
                "tpm of a user",
                Refused { limit: Kind::Tpm, scope: ScopeId::User("al".into()), retry_after: wait, ..base.clone() },
                "limit of 60 tokens per minute of user al reached: 60 used, 2 of them reserved by open requests, about 1 \
                 needed; frees in 1.500 s",
            ),
            (
                "in flight",
                Refused { limit: Kind::InFlight, retry_after: wait, ..base.clone() },
                "limit of 60 requests at a time reached: 60 in flight; retry when one has ended",
            ),
            (
                "never",
                Refused { limit: Kind::Tpm, needed: 99, ..base.clone() },
                "the request needs about 99 tokens, more than the whole limit of 60 tokens per minute, so waiting cannot \
                 help: shorten it, ask for fewer output tokens, or raise tpm",
            ),
            (
                "budget",
                money.clone(),
                "budget of $2 per month has no room: $1.5 used, $0.4 reserved by open requests, about $0.25 needed; it \
                 begins anew at 2026-12-01T00:00:00.000Z",
            ),
            (
                "budget for ever",
                Refused { limit: Kind::Budget(Per::Total), resets_ms: None, ..money.clone() },
                "budget of $2 in all has no room: $1.5 used, $0.4 reserved by open requests, about $0.25 needed; it does \
                 not begin anew: raise it",
            ),
            (
                "budget too small",
                Refused { needed: 3_000_000_000, ..money },
                "the request may take $3, more than the whole budget of $2 per month: shorten it, ask for fewer output \
                 tokens, or raise the budget",
            ),
            (
                "quota of a team",
                Refused { scope: ScopeId::Team("t1".into()), ..tokens },
                "quota of team t1 of 100 uncached tokens per day has no room: 99 uncached tokens used, 2 uncached tokens \
                 reserved by open requests, about 1 uncached tokens needed; it does not begin anew: raise it",
            ),
            ("closed", Refused { value: 0, ..base }, "rpm is 0: nothing passes until it is raised"),
        ] {
            assert_eq!(refused.to_string(), want, "{name}");
        }
    }
}
