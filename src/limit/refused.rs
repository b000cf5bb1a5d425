//! [`Refused`]: which limit stood in the way, and all that a good message says of it.
//!
//! Owns the facts and their wording; leaves status, headers and whose limit it was to `proxy`.

use std::fmt;
use std::time::Duration;

/// A kind of limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Requests per minute.
    Rpm,
    /// Tokens per minute.
    Tpm,
    /// Requests at the same time.
    InFlight,
}

impl Kind {
    /// The name of its field in [`crate::virtual_key::Limits`]; also the label in metrics.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::InFlight => "max_in_flight",
            Self::Rpm => "rpm",
            Self::Tpm => "tpm",
        }
    }

    fn unit(self) -> &'static str {
        match self {
            Self::InFlight => "requests at a time",
            Self::Rpm => "requests per minute",
            Self::Tpm => "tokens per minute",
        }
    }
}

/// A request that a limit did not admit. Nothing of it is reserved anywhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", Message(self))]
pub struct Refused {
    /// The limit; of several, the one that takes longest to free.
    pub limit: Kind,
    /// What it is set to.
    pub value: u64,
    /// What is used and not yet refilled, `reserved` included. More than `value` when in debt.
    pub used: u64,
    /// The part of `used` that requests still open hold.
    pub reserved: u64,
    /// What this request asked for.
    pub needed: u64,
    /// When it would pass if nobody else came first, on every limit of the key; `None` when waiting never helps.
    /// For requests at the same time it is a guess: nobody knows when one ends.
    pub retry_after: Option<Duration>,
}

struct Message<'a>(&'a Refused);

impl fmt::Display for Message<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Refused { limit, value, used, reserved, needed, retry_after } = *self.0;
        let (name, unit) = (limit.as_str(), limit.unit());
        let Some(wait) = retry_after else {
            return match limit {
                _ if value == 0 => write!(f, "{name} is 0: nothing passes until it is raised"),
                Kind::Tpm => write!(
                    f,
                    "the request needs about {needed} tokens, more than the whole limit of {value} {unit}, so waiting \
                     cannot help: shorten it, ask for fewer output tokens, or raise {name}"
                ),
                Kind::InFlight | Kind::Rpm => {
                    write!(f, "the request needs {needed}, more than the whole limit of {value} {unit}: raise {name}")
                }
            };
        };
        let wait = wait.as_secs_f64();
        match limit {
            Kind::InFlight => write!(f, "limit of {value} {unit} reached: {used} in flight; retry when one has ended"),
            Kind::Rpm => write!(
                f,
                "limit of {value} {unit} reached: {used} used, {reserved} of them still open; frees in {wait:.3} s"
            ),
            Kind::Tpm => write!(
                f,
                "limit of {value} {unit} reached: {used} used, {reserved} of them reserved by open requests, about \
                 {needed} needed; frees in {wait:.3} s"
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_name_limit_value_use_and_when_it_frees() {
        let base = Refused { limit: Kind::Rpm, value: 60, used: 60, reserved: 2, needed: 1, retry_after: None };
        let wait = Some(Duration::from_millis(1_500));
        for (name, refused, want) in [
            ("rpm", Refused { retry_after: wait, ..base }, "60 requests per minute reached: 60 used, 2 of them"),
            ("frees", Refused { retry_after: wait, ..base }, "frees in 1.500 s"),
            ("tpm", Refused { limit: Kind::Tpm, retry_after: wait, ..base }, "60 tokens per minute reached: 60 used"),
            ("in flight", Refused { limit: Kind::InFlight, retry_after: wait, ..base }, "60 requests at a time"),
            ("never", Refused { limit: Kind::Tpm, needed: 99, ..base }, "needs about 99 tokens, more than the whole"),
            ("closed", Refused { value: 0, ..base }, "rpm is 0: nothing passes"),
        ] {
            assert!(refused.to_string().contains(want), "{name}: {refused}");
        }
    }
}
