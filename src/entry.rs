//! An [`Entry`]: one line of the ledger, one request.
//!
//! Owns its fields and their JSON; leaves making one to `proxy::settle` and keeping them to `storage::ledger`.

use std::borrow::Cow;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::clock::rfc3339;
use crate::id::{KeyId, KeySource, RequestId};
use crate::unit::{ServiceTier, TokensSource, Usage, usd};

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Cut by our own shutdown.
    AbortedByDrain,
    /// The client left before the end.
    ClientDisconnected,
    /// The provider answered below 400, to the end.
    Ok,
    /// sidekey refused it.
    Refused,
    /// The provider answered 400 or above, broke off, or could not be reached.
    UpstreamError,
    // Last, for the stored form counts from the first.
    /// sidekey ended before the request did, and not by its own will: what it consumed is what it was thought to.
    AbortedByCrash,
}

impl Outcome {
    /// The word used in the ledger and as a metric label.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::AbortedByCrash => "aborted_by_crash",
            Self::AbortedByDrain => "aborted_by_drain",
            Self::ClientDisconnected => "client_disconnected",
            Self::Ok => "ok",
            Self::Refused => "refused",
            Self::UpstreamError => "upstream_error",
        }
    }
}

/// One request, as recorded. Field order is the stored form: new fields need a new block version.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// Also what the client got as `x-sidekey-request-id`.
    pub request_id: RequestId,
    /// Wall time of arrival, milliseconds.
    pub time_ms: u64,
    /// Whose virtual key; `None` for a refused stranger.
    pub virtual_key: Option<KeyId>,
    /// The key's user.
    pub user: Option<Arc<str>>,
    /// The key's team.
    pub team: Option<Arc<str>>,
    /// `x-sidekey-group`, as the client sent it.
    pub group: Option<Arc<str>>,
    /// The provider's id.
    pub provider: Arc<str>,
    /// The provider key that paid; `None` when no attempt was made, or for a key of the environment.
    pub provider_key: Option<KeyId>,
    /// The tier that paid.
    pub key_source: Option<KeySource>,
    /// The dialect's name.
    pub dialect: Cow<'static, str>,
    /// The endpoint's name.
    pub endpoint: Cow<'static, str>,
    /// What the request asked for.
    pub model_requested: Option<Arc<str>>,
    /// What the provider says it used.
    pub model_reported: Option<Arc<str>>,
    /// True when the answer was a stream.
    pub stream: bool,
    /// What was consumed.
    pub tokens: Usage,
    /// Who says so.
    pub tokens_source: TokensSource,
    /// Money, in billionths of a US dollar; `None` when no price applies.
    pub cost_nano_usd: Option<u64>,
    /// The status the client got.
    pub status: u16,
    /// How it ended.
    pub outcome: Outcome,
    /// Our code of a refusal, or the provider's.
    pub error_code: Option<Arc<str>>,
    /// From the request's head to the answer's last byte, microseconds.
    pub latency_us: u64,
    /// From the request's head to the answer's head, microseconds.
    pub ttfb_us: u64,
    /// What sidekey itself added before the request went upstream, nanoseconds.
    pub overhead_ns: u64,
    /// Provider keys tried.
    pub attempts: u32,
    /// The provider's own request id.
    pub upstream_request_id: Option<Arc<str>>,
    /// Which table of prices, and of which version, the cost comes from; `None` when there is no cost.
    pub price_version: Option<Arc<str>>,
    /// The class of service the provider gave, when it is not its standard one.
    pub service_tier: Option<ServiceTier>,
    /// The plan whose limits held.
    pub plan: Option<Arc<str>>,
    /// The pool the provider key was taken from.
    pub pool: Option<Arc<str>>,
}

/// The JSON of an entry, as `sidekey ledger -o jsonl` prints it; field names are fixed.
#[derive(Clone, Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema), schemars(rename = "Entry"))]
#[expect(missing_docs, reason = "named like the fields of Entry")]
pub struct EntryView {
    pub id: RequestId,
    pub request_id: RequestId,
    #[cfg_attr(test, schemars(extend("format" = "date-time")))]
    pub time: String,
    pub virtual_key_id: Option<KeyId>,
    pub user: Option<Arc<str>>,
    pub team: Option<Arc<str>>,
    pub group: Option<Arc<str>>,
    pub provider: Arc<str>,
    pub provider_key_id: Option<KeyId>,
    pub key_source: Option<KeySource>,
    pub dialect: Cow<'static, str>,
    pub endpoint: Cow<'static, str>,
    pub model_requested: Option<Arc<str>>,
    pub model_reported: Option<Arc<str>>,
    pub stream: bool,
    pub tokens: Usage,
    pub tokens_source: TokensSource,
    pub cost_usd: Option<String>,
    pub price_version: Option<Arc<str>>,
    pub service_tier: Option<ServiceTier>,
    pub plan: Option<Arc<str>>,
    pub pool: Option<Arc<str>>,
    pub status: u16,
    pub outcome: Outcome,
    pub error_code: Option<Arc<str>>,
    pub latency_ms: f64,
    pub ttfb_ms: f64,
    pub overhead_us: f64,
    pub attempts: u32,
    pub upstream_request_id: Option<Arc<str>>,
    pub client_disconnected: bool,
}

impl From<&Entry> for EntryView {
    #[expect(clippy::cast_precision_loss, reason = "microseconds shown as milliseconds")]
    fn from(entry: &Entry) -> Self {
        Self {
            id: entry.request_id,
            request_id: entry.request_id,
            time: rfc3339(entry.time_ms),
            virtual_key_id: entry.virtual_key,
            user: entry.user.clone(),
            team: entry.team.clone(),
            group: entry.group.clone(),
            provider: entry.provider.clone(),
            provider_key_id: entry.provider_key,
            key_source: entry.key_source,
            dialect: entry.dialect.clone(),
            endpoint: entry.endpoint.clone(),
            model_requested: entry.model_requested.clone(),
            model_reported: entry.model_reported.clone(),
            stream: entry.stream,
            tokens: entry.tokens,
            tokens_source: entry.tokens_source,
            cost_usd: entry.cost_nano_usd.map(usd),
            price_version: entry.price_version.clone(),
            service_tier: entry.service_tier,
            plan: entry.plan.clone(),
            pool: entry.pool.clone(),
            status: entry.status,
            outcome: entry.outcome,
            error_code: entry.error_code.clone(),
            latency_ms: entry.latency_us as f64 / 1e3,
            ttfb_ms: entry.ttfb_us as f64 / 1e3,
            overhead_us: entry.overhead_ns as f64 / 1e3,
            attempts: entry.attempts,
            upstream_request_id: entry.upstream_request_id.clone(),
            client_disconnected: entry.outcome == Outcome::ClientDisconnected,
        }
    }
}
