//! The rules, as data: status, error code, phrase -> action; the first that fits decides, else the status.
//!
//! A phrase is used only where a vendor tells two things apart by nothing else. Sources: the vendors' pages on errors,
//! and answers recorded from them.

use wildmatch::WildMatch;

use super::super::{ANTHROPIC, BEDROCK, COHERE, Dialect, GEMINI, OPENAI};
use super::Action;
use super::said::Said;

/// One rule.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rule {
    pub(super) status: u16,
    /// A code the error must have, maybe with `*`; empty is any.
    pub(super) code: &'static str,
    /// What its message must say; empty is anything.
    phrase: &'static str,
    /// The only provider it is about; empty is every one of the dialect.
    provider: &'static str,
    pub(super) action: Action,
    /// Ends with the vendor's day, not when the answer says.
    pub(super) daily: bool,
}

impl Rule {
    const fn new(status: u16, code: &'static str, action: Action) -> Self {
        Self { status, code, phrase: "", provider: "", action, daily: false }
    }

    const fn saying(self, phrase: &'static str) -> Self {
        Self { phrase, ..self }
    }

    const fn of(self, provider: &'static str) -> Self {
        Self { provider, ..self }
    }

    const fn daily(self) -> Self {
        Self { daily: true, ..self }
    }

    pub(super) fn matches(&self, provider: &str, status: u16, said: &Said) -> bool {
        let coded = |code: &String| WildMatch::new(self.code).matches(code);
        self.status == status
            && (self.provider.is_empty() || self.provider == provider)
            && (self.code.is_empty() || said.codes.iter().any(coded))
            && (self.phrase.is_empty() || said.message.contains(self.phrase))
    }
}

use Action::{Cool, Elsewhere, Exhausted, Forbidden, ModelExhausted, Overloaded, Refused, Relay};

/// What a status means when no rule says otherwise.
pub(super) fn by_status(status: u16) -> Action {
    match status {
        401 => Refused,
        402 => Exhausted,
        403 => Forbidden,
        429 => Cool,
        500 | 502 | 503 | 504 | 529 => Overloaded,
        _ => Relay,
    }
}

/// OpenAI and its relatives (<https://platform.openai.com/docs/guides/error-codes>).
static OPENAI_RULES: &[Rule] = &[
    Rule::new(400, "billing_hard_limit_reached", Exhausted),
    // Perplexity answers so when its credits are gone.
    Rule::new(401, "insufficient_quota", Exhausted),
    // A restricted key: it works, only not for this.
    Rule::new(401, "missing_scope", Elsewhere),
    Rule::new(401, "", Elsewhere).saying("Missing scopes"),
    Rule::new(401, "", Refused),
    Rule::new(403, "insufficient_quota", Exhausted),
    Rule::new(403, "missing_scope", Elsewhere),
    Rule::new(403, "", Elsewhere).saying("Missing scopes"),
    // About where sidekey is: no other key would help, and the client should read why.
    Rule::new(403, "unsupported_country_region_territory", Relay),
    // About the input: OpenRouter's moderation.
    Rule::new(403, "", Relay).saying("flagged").of("openrouter"),
    Rule::new(403, "", Forbidden),
    Rule::new(429, "insufficient_quota", Exhausted),
    Rule::new(429, "billing_hard_limit_reached", Exhausted),
    Rule::new(429, "billing_not_active", Exhausted),
    Rule::new(429, "credit_balance_exhausted", Exhausted),
    Rule::new(429, "*_spend_limit_reached", Exhausted),
    Rule::new(429, "", Cool),
];

/// Anthropic (<https://docs.anthropic.com/en/api/errors>).
static ANTHROPIC_RULES: &[Rule] = &[
    Rule::new(400, "organization_on_hold", Refused),
    Rule::new(400, "", Exhausted).saying("credit balance is too low"),
    Rule::new(400, "", Exhausted).saying("reached your specified API usage limits"),
    Rule::new(401, "", Refused),
    Rule::new(402, "", Exhausted),
    Rule::new(403, "organization_on_hold", Refused),
    Rule::new(403, "", Forbidden),
    Rule::new(429, "*_spend_limit_reached", Exhausted),
    Rule::new(429, "", Exhausted).saying("monthly spend limit"),
    Rule::new(429, "", Cool),
];

/// Google AI and Vertex (<https://ai.google.dev/gemini-api/docs/troubleshooting>).
static GEMINI_RULES: &[Rule] = &[
    Rule::new(400, "API_KEY_INVALID", Refused),
    Rule::new(400, "API_KEY_EXPIRED", Refused),
    Rule::new(401, "", Refused),
    Rule::new(403, "", Refused).saying("reported as leaked"),
    Rule::new(403, "", Forbidden),
    Rule::new(429, "*PerDay*PerModel*", ModelExhausted).daily(),
    Rule::new(429, "*PerModel*PerDay*", ModelExhausted).daily(),
    Rule::new(429, "*PerDay*", Exhausted).daily(),
    Rule::new(429, "", Cool),
];

/// Bedrock (<https://docs.aws.amazon.com/bedrock/latest/APIReference/CommonErrors.html>).
static BEDROCK_RULES: &[Rule] = &[
    Rule::new(400, "ServiceQuotaExceededException", Cool),
    Rule::new(403, "ExpiredTokenException", Refused),
    Rule::new(403, "IncompleteSignature*", Refused),
    Rule::new(403, "InvalidClientTokenId*", Refused),
    Rule::new(403, "InvalidSignature*", Refused),
    Rule::new(403, "MissingAuthenticationToken*", Refused),
    Rule::new(403, "UnrecognizedClientException", Refused),
    // About the model, not the key.
    Rule::new(403, "AccessDeniedException", Elsewhere).saying("access to the model"),
    Rule::new(403, "", Forbidden),
    Rule::new(429, "ModelNotReadyException", Overloaded),
    Rule::new(429, "", Cool),
];

/// Cohere (<https://docs.cohere.com/reference/errors>).
static COHERE_RULES: &[Rule] = &[
    Rule::new(401, "", Refused),
    Rule::new(402, "", Exhausted),
    Rule::new(403, "", Forbidden),
    Rule::new(429, "", Exhausted).saying("calls / month"),
    Rule::new(429, "", Cool),
];

/// The rules of a dialect; none where the status says it all.
pub(super) fn of(dialect: &dyn Dialect) -> &'static [Rule] {
    let tables: [(&dyn Dialect, &'static [Rule]); 5] = [
        (&ANTHROPIC, ANTHROPIC_RULES),
        (&BEDROCK, BEDROCK_RULES),
        (&COHERE, COHERE_RULES),
        (&GEMINI, GEMINI_RULES),
        (&OPENAI, OPENAI_RULES),
    ];
    tables.into_iter().find(|(of, _)| of.name() == dialect.name()).map_or(&[], |(_, rules)| rules)
}
