//! What requests consume, and what of it a limit counts.
//!
//! Owns [`Consumption`] and [`Measure`]; leaves who counts it to `amount` and `rate`.

use serde::{Deserialize, Serialize};

use crate::policy::Counts;
use crate::unit::{Usage, usd};

/// What a request needs, or has consumed, in every unit that something is limited in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Consumption {
    /// Tokens of the request.
    pub input: u64,
    /// Those of them that come from a prompt cache.
    pub cached_input: u64,
    /// Tokens of the answer.
    pub output: u64,
    /// What the provider says it is in all, which may be more than input and output.
    pub total: u64,
    /// Billionths of a US dollar.
    pub nano_usd: u64,
}

impl Consumption {
    /// Of so many tokens in and out.
    #[must_use]
    pub fn tokens(input: u64, output: u64) -> Self {
        Self { input, output, total: input.saturating_add(output), ..Self::default() }
    }

    /// Of what a provider reported, or sidekey counted; a cost that is not known is none.
    #[must_use]
    pub fn of(usage: &Usage, nano_usd: Option<u64>) -> Self {
        Self {
            input: usage.input.unwrap_or(0),
            cached_input: usage.cached_input.unwrap_or(0),
            output: usage.output.unwrap_or(0),
            total: usage.billable(),
            nano_usd: nano_usd.unwrap_or(0),
        }
    }

    /// Both together.
    #[must_use]
    pub fn plus(&self, more: &Self) -> Self {
        Self {
            input: self.input.saturating_add(more.input),
            cached_input: self.cached_input.saturating_add(more.cached_input),
            output: self.output.saturating_add(more.output),
            total: self.total.saturating_add(more.total),
            nano_usd: self.nano_usd.saturating_add(more.nano_usd),
        }
    }

    /// What of it goes beyond `covered`.
    #[must_use]
    pub fn beyond(&self, covered: &Self) -> Self {
        Self {
            input: self.input.saturating_sub(covered.input),
            cached_input: self.cached_input.saturating_sub(covered.cached_input),
            output: self.output.saturating_sub(covered.output),
            total: self.total.saturating_sub(covered.total),
            nano_usd: self.nano_usd.saturating_sub(covered.nano_usd),
        }
    }

    /// The tokens that count.
    #[must_use]
    pub fn counted(&self, counts: Counts) -> u64 {
        match counts {
            Counts::Input => self.input,
            Counts::Output => self.output,
            Counts::Total => self.total,
            Counts::Uncached => self.total.saturating_sub(self.cached_input),
            Counts::UncachedInput => self.input.saturating_sub(self.cached_input),
        }
    }
}

/// What an amount is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Measure {
    /// Billionths of a US dollar.
    Money,
    /// Tokens, of those that count.
    Tokens(Counts),
}

impl Measure {
    /// How much of it something is.
    #[must_use]
    pub fn of(self, consumption: &Consumption) -> u64 {
        match self {
            Self::Money => consumption.nano_usd,
            Self::Tokens(counts) => consumption.counted(counts),
        }
    }

    /// What an amount of it is called.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Money => "budget",
            Self::Tokens(_) => "quota",
        }
    }

    /// An amount of it, for people.
    pub(super) fn show(self, amount: u64) -> String {
        match self {
            Self::Money => format!("${}", usd(amount)),
            Self::Tokens(Counts::Total) => format!("{amount} tokens"),
            Self::Tokens(counts) => format!("{amount} {} tokens", counts.as_str().replace('_', " ")),
        }
    }
}
