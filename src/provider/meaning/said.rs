//! What an error says: its codes, its message, and when to come back.
//!
//! Owns reading them, wherever a vendor puts them; leaves what follows to the rules. The text is a bounded copy, so it
//! may be parsed whole; one that was cut, or is no JSON, says nothing.

use std::time::Duration;

use http::header::{HeaderMap, HeaderName, RETRY_AFTER};
use http::{HeaderValue, StatusCode};
use jiff::Timestamp;
use jiff::civil::{Date, Time};
use serde_json::Value;

use super::super::RETRY_AFTER_MS;

const AMZN_ERROR: HeaderName = HeaderName::from_static("x-amzn-errortype");
/// Midnight in California, in winter; an hour late in summer, which costs an hour and no refusals. Google's days end
/// there (<https://ai.google.dev/gemini-api/docs/rate-limits>).
const PACIFIC_MIDNIGHT_MS: u64 = 8 * 3_600_000;
const DAY_MS: u64 = 86_400_000;

/// An error, read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Said {
    /// Every code, type, reason and quota it names.
    pub(super) codes: Vec<String>,
    pub(super) message: String,
    /// How long to wait, by the head or by the text.
    pub(super) wait: Option<Duration>,
    /// The same, of a date in the message.
    pub(super) until: Option<Duration>,
    /// Until the vendor's day ends.
    pub(super) until_pacific_midnight: Duration,
}

impl Said {
    pub(super) fn read(status: StatusCode, headers: &HeaderMap, text: &[u8], wall_ms: u64) -> Self {
        let mut said = Self { until_pacific_midnight: until_pacific_midnight(wall_ms), ..Self::default() };
        if let Some(kind) = headers.get(AMZN_ERROR).and_then(|value| value.to_str().ok()) {
            said.codes.extend(kind.split(':').next().map(str::to_owned));
        }
        if let Ok(value) = serde_json::from_slice::<Value>(text) {
            said.read_value(&value);
        }
        let own_status = status.as_str();
        said.codes.retain(|code| !code.is_empty() && code != own_status);
        said.wait = wait_of(headers, wall_ms).or(said.wait);
        said.until = access_date(&said.message).map(|ms| Duration::from_millis(ms.saturating_sub(wall_ms)));
        said
    }

    /// An error object, or what holds one: Google wraps it in an array now and then.
    pub(super) fn read_value(&mut self, value: &Value) {
        let root = value.get(0).unwrap_or(value);
        let error = root.get("error").filter(|error| !error.is_null()).unwrap_or(root);
        for object in [error, root] {
            for field in ["code", "type", "status", "__type"] {
                self.code(object.get(field));
            }
            let message = ["message", "detail"].iter().find_map(|field| object.get(field)?.as_str());
            if let Some(message) = message.or_else(|| object.as_str()).filter(|_| self.message.is_empty()) {
                self.message = message.to_owned();
            }
        }
        self.code(root.pointer("/fault/detail/errorcode"));
        match error.get("details") {
            Some(Value::Array(details)) => details.iter().for_each(|detail| self.detail(detail)),
            Some(detail) => self.code(detail.get("error_code")),
            None => {}
        }
    }

    /// One of Google's (<https://cloud.google.com/apis/design/errors#error_details>).
    fn detail(&mut self, detail: &Value) {
        self.code(detail.get("reason"));
        let violations = detail.get("violations").and_then(Value::as_array);
        for violation in violations.into_iter().flatten() {
            self.code(violation.get("quotaId"));
        }
        let delay = detail.get("retryDelay").and_then(Value::as_str);
        self.wait = delay.and_then(|delay| seconds(delay.strip_suffix('s')?)).or(self.wait);
    }

    fn code(&mut self, value: Option<&Value>) {
        match value {
            // Shapes of AWS: `namespace#Name`.
            Some(Value::String(code)) => self.codes.extend(code.rsplit('#').next().map(str::to_owned)),
            Some(Value::Number(code)) => self.codes.push(code.to_string()),
            _ => {}
        }
    }
}

/// `retry-after-ms`, `x-ms-retry-after-ms`, else `retry-after`, in seconds or as a date (RFC 9110 §10.2.3).
pub(super) fn wait_of(headers: &HeaderMap, wall_ms: u64) -> Option<Duration> {
    let text = |name: &HeaderName| headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok()).map(str::trim);
    let ms = |name: &HeaderName| text(name)?.parse::<f64>().ok().and_then(|ms| seconds_of(ms / 1e3));
    let by_ms = ms(&RETRY_AFTER_MS).or_else(|| ms(&HeaderName::from_static("x-ms-retry-after-ms")));
    by_ms.or_else(|| {
        let said = text(&RETRY_AFTER)?;
        seconds(said).or_else(|| {
            let at = jiff::fmt::rfc2822::parse(said).ok()?.timestamp().as_millisecond();
            Some(Duration::from_millis(u64::try_from(at).ok()?.saturating_sub(wall_ms)))
        })
    })
}

/// A decimal number of seconds, not negative.
fn seconds(text: &str) -> Option<Duration> {
    seconds_of(text.trim().parse().ok()?)
}

fn seconds_of(seconds: f64) -> Option<Duration> {
    Duration::try_from_secs_f64(seconds).ok()
}

/// Anthropic's "You will regain access on 2026-08-01 at 00:00 UTC", as milliseconds since the epoch.
fn access_date(message: &str) -> Option<u64> {
    let (_, rest) = message.split_once("regain access on ")?;
    let (date, rest) = rest.split_once(" at ")?;
    let (time, _) = rest.split_once(" UTC")?;
    let date: Date = date.parse().ok()?;
    let time: Time = time.parse().ok()?;
    let at: Timestamp = date.to_datetime(time).to_zoned(jiff::tz::TimeZone::UTC).ok()?.timestamp();
    u64::try_from(at.as_millisecond()).ok()
}

fn until_pacific_midnight(wall_ms: u64) -> Duration {
    let into_day = (wall_ms + DAY_MS - PACIFIC_MIDNIGHT_MS) % DAY_MS;
    Duration::from_millis(DAY_MS - into_day)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOON: u64 = 1_700_049_600_000;

    #[test]
    fn waits() {
        for (name, pairs, want) in [
            ("none", &[][..], None),
            ("seconds", &[("retry-after", "20")], Some(20_000)),
            ("a part of one", &[("retry-after", "0.5")], Some(500)),
            ("milliseconds win", &[("retry-after", "20"), ("retry-after-ms", "1500")], Some(1_500)),
            ("azure's own", &[("x-ms-retry-after-ms", "250")], Some(250)),
            ("a date", &[("retry-after", "Wed, 15 Nov 2023 12:00:30 GMT")], Some(30_000)),
            ("a date gone by", &[("retry-after", "Wed, 15 Nov 2023 11:00:00 GMT")], Some(0)),
            ("negative", &[("retry-after", "-1")], None),
            ("nonsense", &[("retry-after", "soon")], None),
            ("infinite", &[("retry-after", "inf")], None),
        ] {
            let headers: HeaderMap = pairs
                .iter()
                .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)))
                .collect();
            assert_eq!(wait_of(&headers, NOON), want.map(Duration::from_millis), "{name}");
        }
    }

    #[test]
    fn a_vendors_day_ends_in_california() {
        for (at, hours) in [(NOON, 20), (NOON - 4 * 3_600_000, 24), (NOON - 5 * 3_600_000, 1)] {
            assert_eq!(until_pacific_midnight(at), Duration::from_secs(hours * 3600));
        }
    }

    #[test]
    fn dates_in_messages() {
        let date =
            "You have reached your specified API usage limits. You will regain access on 2023-11-16 at 00:00 UTC.";
        assert_eq!(access_date(date), Some(NOON + 12 * 3_600_000));
        assert_eq!(access_date("regain access on Monday at noon UTC"), None);
    }
}
