//! [`Meaning`]: what a provider's answer says of the key it was got with, and what is to be done about it.
//!
//! Owns classification: a table of rules for each dialect ([`rules`]), read by status, error code and, where vendors
//! give nothing better, a phrase of the message. Leaves obeying it to `proxy::forward` and `provider_key`.
//!
//! An answer is judged by its head and a bounded part of its error's text; most by their status alone.

mod event;
mod rules;
mod said;

use std::time::Duration;

use http::{HeaderMap, StatusCode};

use super::{Dialect, Upstream};
use rules::Rule;
use said::Said;

pub use event::{FirstEvent, first_event};

/// Bytes of an error that are looked at.
pub const TEXT_MAX: usize = 16 * 1024;
/// No provider's word keeps a key at rest for longer: clocks and headers are wrong now and then.
const WAIT_MAX: Duration = Duration::from_secs(31 * 24 * 3600);

/// What is to be done about an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// Too many requests: the key rests for a while, the next one is tried.
    Cool,
    /// This key cannot serve this request, and there is nothing wrong with it: the next one is tried.
    Elsewhere,
    /// The key's money, or its tokens of the day, are gone: it rests until its reset, or until it is enabled by hand.
    Exhausted,
    /// The key may not do this. The next one is tried; three in a row count as [`Action::Refused`].
    Forbidden,
    /// The day's share of the key for this model is gone: it rests for this model.
    ModelExhausted,
    /// The provider's fault, or nobody's: the next key or provider is tried, and the circuit breaker counts.
    Overloaded,
    /// The key is not accepted: it is in `error`, the next one is tried.
    Refused,
    /// For the client, whatever it is; the key works.
    Relay,
}

impl Action {
    /// Every one, for metrics and tests.
    pub const ALL: [Self; 8] = [
        Self::Cool,
        Self::Elsewhere,
        Self::Exhausted,
        Self::Forbidden,
        Self::ModelExhausted,
        Self::Overloaded,
        Self::Refused,
        Self::Relay,
    ];

    /// The word, also a metric's label.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Cool => "cool",
            Self::Elsewhere => "elsewhere",
            Self::Exhausted => "exhausted",
            Self::Forbidden => "forbidden",
            Self::ModelExhausted => "model_exhausted",
            Self::Overloaded => "overloaded",
            Self::Refused => "refused",
            Self::Relay => "relay",
        }
    }

    /// True when the provider's text is about our key, and can hold part of it: the client must not see it.
    #[must_use]
    pub const fn is_about_the_key(self) -> bool {
        matches!(self, Self::Elsewhere | Self::Forbidden | Self::Refused)
    }
}

/// What an answer says of its key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Meaning {
    /// What is to be done.
    pub action: Action,
    /// How long the provider asks to wait; `None` when it does not say.
    pub wait: Option<Duration>,
    /// For operators: the status and a known code, nothing else of the provider's text.
    pub reason: String,
}

impl Meaning {
    /// Of an answer that never came.
    #[must_use]
    pub fn unreachable(reason: &str) -> Self {
        Self { action: Action::Overloaded, wait: None, reason: reason.to_owned() }
    }
}

/// True when the status alone does not tell what an answer means: read [`TEXT_MAX`] of its text first.
#[must_use]
pub fn wants_text(dialect: &dyn Dialect, status: StatusCode) -> bool {
    rules::of(dialect).iter().any(|rule| rule.status == status.as_u16())
}

/// Judges an answer. `text` is the beginning of its body, decoded; `wall_ms` the time it came, milliseconds since the
/// epoch.
#[must_use]
pub fn judge(upstream: &Upstream, status: StatusCode, headers: &HeaderMap, text: &[u8], wall_ms: u64) -> Meaning {
    judge_as(&upstream.id, upstream.dialect, status, &Said::read(status, headers, text, wall_ms))
}

fn judge_as(provider: &str, dialect: &dyn Dialect, status: StatusCode, said: &Said) -> Meaning {
    let rule = rules::of(dialect).iter().find(|rule| rule.matches(provider, status.as_u16(), said));
    let action = rule.map_or_else(|| rules::by_status(status.as_u16()), |rule| rule.action);
    let wait = match action {
        Action::Cool | Action::Overloaded => said.wait,
        Action::Exhausted => said.until.or(said.wait),
        Action::ModelExhausted => said.until.or(Some(said.until_pacific_midnight)),
        Action::Elsewhere | Action::Forbidden | Action::Refused | Action::Relay => None,
    };
    // Google's quotas of a day end at midnight where Google is, whatever RetryInfo says.
    let wait = match rule.filter(|rule| rule.daily) {
        Some(_) => Some(said.until_pacific_midnight),
        None => wait,
    };
    Meaning { action, wait: wait.map(|wait| wait.min(WAIT_MAX)), reason: reason(status, rule, said) }
}

/// The status, and a code when it can be nothing but a word.
fn reason(status: StatusCode, rule: Option<&Rule>, said: &Said) -> String {
    let known = rule.map(|rule| rule.code).filter(|code| !code.is_empty() && !code.contains('*'));
    let code = known.or_else(|| said.codes.iter().map(String::as_str).find(|code| is_word(code)));
    match code {
        Some(code) => format!("{} {code}", status.as_u16()),
        None => status.as_u16().to_string(),
    }
}

/// A key has digits among its letters; a code has words.
fn is_word(code: &str) -> bool {
    let letters = code.bytes().all(|c| c.is_ascii_alphabetic() || c == b'_' || c == b'.');
    (3..=48).contains(&code.len()) && letters
}

#[cfg(test)]
mod tests;
