//! [`room`]: what a provider says is left of a key's limits, in the headers of any answer.
//!
//! Owns the names and their units; leaves remembering it to `provider_key`. Every vendor that says when a limit resets means the
//! moment at which it is full again, and refills steadily until then (OpenAI: "the time until the rate limit resets to
//! its initial state"; Anthropic: "fully replenished"). So a day's limit and a minute's need no telling apart, but where
//! the reset is left out.

use std::time::Duration;

use http::{HeaderMap, HeaderName};

use super::{ANTHROPIC, Dialect, OPENAI, Upstream};
use crate::clock::parse_rfc3339;
use crate::provider_key::{Left, Room};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Counts {
    Requests,
    Tokens,
}

/// The three headers of one limit.
#[derive(Debug)]
struct Row {
    limit: HeaderName,
    remaining: HeaderName,
    reset: HeaderName,
    counts: Counts,
    /// In how long all of it comes back, where `reset` is not sent.
    window: Duration,
}

const MINUTE: Duration = Duration::from_secs(60);
const DAY: Duration = Duration::from_secs(86_400);

macro_rules! row {
    ($limit:literal, $remaining:literal, $reset:literal, $counts:ident, $window:ident) => {
        Row {
            limit: HeaderName::from_static($limit),
            remaining: HeaderName::from_static($remaining),
            reset: HeaderName::from_static($reset),
            counts: Counts::$counts,
            window: $window,
        }
    };
}

#[rustfmt::skip]
static OPENAI_ROWS: [Row; 6] = [
    // OpenAI and most others; at Groq the requests are those of a day, and the reset says so.
    row!("x-ratelimit-limit-requests", "x-ratelimit-remaining-requests", "x-ratelimit-reset-requests", Requests, MINUTE),
    row!("x-ratelimit-limit-tokens", "x-ratelimit-remaining-tokens", "x-ratelimit-reset-tokens", Tokens, MINUTE),
    // Cerebras.
    row!("x-ratelimit-limit-requests-day", "x-ratelimit-remaining-requests-day", "x-ratelimit-reset-requests-day", Requests, DAY),
    row!("x-ratelimit-limit-tokens-minute", "x-ratelimit-remaining-tokens-minute", "x-ratelimit-reset-tokens-minute", Tokens, MINUTE),
    // Mistral.
    row!("x-ratelimit-limit-req-minute", "x-ratelimit-remaining-req-minute", "x-ratelimit-reset-req-minute", Requests, MINUTE),
    row!("ratelimitbysize-limit", "ratelimitbysize-remaining", "ratelimitbysize-reset", Tokens, MINUTE),
];

#[rustfmt::skip]
static ANTHROPIC_ROWS: [Row; 4] = [
    row!("anthropic-ratelimit-requests-limit", "anthropic-ratelimit-requests-remaining", "anthropic-ratelimit-requests-reset", Requests, MINUTE),
    row!("anthropic-ratelimit-tokens-limit", "anthropic-ratelimit-tokens-remaining", "anthropic-ratelimit-tokens-reset", Tokens, MINUTE),
    row!("anthropic-ratelimit-input-tokens-limit", "anthropic-ratelimit-input-tokens-remaining", "anthropic-ratelimit-input-tokens-reset", Tokens, MINUTE),
    row!("anthropic-ratelimit-output-tokens-limit", "anthropic-ratelimit-output-tokens-remaining", "anthropic-ratelimit-output-tokens-reset", Tokens, MINUTE),
];

/// What `upstream` says is left, `wall_ms` being the time now. `None` when it says nothing.
#[must_use]
pub fn room(upstream: &Upstream, headers: &HeaderMap, wall_ms: u64) -> Option<Room> {
    let dialect = upstream.dialect.name();
    let rows: &[Row] = if dialect == OPENAI.name() {
        &OPENAI_ROWS
    } else if dialect == ANTHROPIC.name() {
        &ANTHROPIC_ROWS
    } else {
        return None;
    };
    // Most providers of one's own say nothing.
    if !headers.keys().any(|name| name.as_str().contains("ratelimit")) {
        return None;
    }
    let mut room = Room::default();
    for row in rows {
        let Some(left) = row.left(headers, &upstream.id, wall_ms) else { continue };
        let slot = match row.counts {
            Counts::Requests => &mut room.requests,
            Counts::Tokens => &mut room.tokens,
        };
        if slot.is_none_or(|other| is_more_used(left, other)) {
            *slot = Some(left);
        }
    }
    (room != Room::default()).then_some(room)
}

/// True when `a` is the tighter of two limits.
fn is_more_used(a: Left, b: Left) -> bool {
    let product = |a: u64, b: u64| u128::from(a) * u128::from(b);
    product(a.remaining, b.limit) < product(b.remaining, a.limit)
}

impl Row {
    fn left(&self, headers: &HeaderMap, provider: &str, wall_ms: u64) -> Option<Left> {
        let text = |name: &HeaderName| headers.get(name)?.to_str().ok().map(str::trim);
        // Azure says -1 or 0 of a limit it does not know.
        let limit: u64 = text(&self.limit)?.parse().ok().filter(|limit| *limit > 0)?;
        let remaining: u64 = text(&self.remaining)?.parse().ok()?;
        let remaining = remaining.min(limit);
        let window = if provider == "groq" && self.counts == Counts::Requests { DAY } else { self.window };
        let full_in = match text(&self.reset) {
            Some(reset) => full_in(reset, window, wall_ms)?,
            None => window.mul_f64(share(limit - remaining, limit)),
        };
        Some(Left { limit, remaining, full_in })
    }
}

#[expect(clippy::cast_precision_loss, reason = "a ratio, not an account")]
fn share(used: u64, limit: u64) -> f64 {
    used as f64 / limit as f64
}

/// `6m0s`, `120ms`, an RFC 3339 time, or a bare number of seconds. Of the last the unit is only a convention, which
/// Azure does not hold to: it is believed up to the window.
fn full_in(text: &str, window: Duration, wall_ms: u64) -> Option<Duration> {
    if let Ok(seconds) = text.parse::<f64>() {
        return Duration::try_from_secs_f64(seconds).ok().map(|given| given.min(window));
    }
    if let Ok(at) = parse_rfc3339(text) {
        return Some(Duration::from_millis(at.saturating_sub(wall_ms)));
    }
    go_duration(text)
}

/// Go's form of a duration, which OpenAI writes: `1h2m3.5s`, `12ms`.
fn go_duration(mut text: &str) -> Option<Duration> {
    let mut total = Duration::ZERO;
    while !text.is_empty() {
        let number = text.find(|c: char| !c.is_ascii_digit() && c != '.').filter(|end| *end > 0)?;
        let (value, rest) = text.split_at(number);
        let unit = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
        let (unit, rest) = rest.split_at(unit);
        let seconds = match unit {
            "d" => 86_400.0,
            "h" => 3_600.0,
            "m" => 60.0,
            "s" => 1.0,
            "ms" => 1e-3,
            "us" | "µs" => 1e-6,
            "ns" => 1e-9,
            _ => return None,
        };
        total = total.checked_add(Duration::try_from_secs_f64(value.parse::<f64>().ok()? * seconds).ok()?)?;
        text = rest;
    }
    Some(total)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use http::HeaderValue;

    use super::*;
    use crate::provider::Registry;

    const NOW: u64 = 1_700_000_000_000;

    fn read(provider: &str, pairs: &[(&'static str, &'static str)]) -> Option<Room> {
        let registry = Registry::build(&BTreeMap::new(), None).unwrap();
        let headers =
            pairs.iter().map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)));
        room(registry.by_id(provider).unwrap(), &headers.collect(), NOW)
    }

    fn left(limit: u64, remaining: u64, full_in_ms: u64) -> Option<Left> {
        Some(Left { limit, remaining, full_in: Duration::from_millis(full_in_ms) })
    }

    #[test]
    fn every_vendors_words() {
        for (name, provider, pairs, requests, tokens) in [
            (
                "openai",
                "openai",
                &[
                    ("x-ratelimit-limit-requests", "500"),
                    ("x-ratelimit-remaining-requests", "499"),
                    ("x-ratelimit-reset-requests", "120ms"),
                    ("x-ratelimit-limit-tokens", "200000"),
                    ("x-ratelimit-remaining-tokens", "0"),
                    ("x-ratelimit-reset-tokens", "6m0s"),
                ][..],
                left(500, 499, 120),
                left(200_000, 0, 360_000),
            ),
            (
                "groq: a day's requests",
                "groq",
                &[
                    ("x-ratelimit-limit-requests", "14400"),
                    ("x-ratelimit-remaining-requests", "14398"),
                    ("x-ratelimit-reset-requests", "12s"),
                ],
                left(14_400, 14_398, 12_000),
                None,
            ),
            (
                "groq without a reset",
                "groq",
                &[("x-ratelimit-limit-requests", "1000"), ("x-ratelimit-remaining-requests", "500")],
                left(1000, 500, 43_200_000),
                None,
            ),
            (
                "anthropic: the one most used",
                "anthropic",
                &[
                    ("anthropic-ratelimit-requests-limit", "50"),
                    ("anthropic-ratelimit-requests-remaining", "49"),
                    ("anthropic-ratelimit-requests-reset", "2023-11-14T22:13:21Z"),
                    ("anthropic-ratelimit-input-tokens-limit", "1000"),
                    ("anthropic-ratelimit-input-tokens-remaining", "900"),
                    ("anthropic-ratelimit-input-tokens-reset", "2023-11-14T22:13:26Z"),
                    ("anthropic-ratelimit-output-tokens-limit", "100"),
                    ("anthropic-ratelimit-output-tokens-remaining", "10"),
                    ("anthropic-ratelimit-output-tokens-reset", "2023-11-14T22:14:14Z"),
                ],
                left(50, 49, 1_000),
                left(100, 10, 54_000),
            ),
            (
                "mistral sends no reset",
                "mistral",
                &[("x-ratelimit-limit-req-minute", "60"), ("x-ratelimit-remaining-req-minute", "30")],
                left(60, 30, 30_000),
                None,
            ),
            (
                "cerebras",
                "openai",
                &[
                    ("x-ratelimit-limit-requests-day", "14400"),
                    ("x-ratelimit-remaining-requests-day", "7200"),
                    ("x-ratelimit-reset-requests-day", "43200.5"),
                ],
                left(14_400, 7_200, 43_200_500),
                None,
            ),
            (
                "azure's numbers have no unit",
                "openai",
                &[
                    ("x-ratelimit-limit-requests", "100"),
                    ("x-ratelimit-remaining-requests", "99"),
                    ("x-ratelimit-reset-requests", "500"),
                    ("x-ratelimit-limit-tokens", "-1"),
                    ("x-ratelimit-remaining-tokens", "-1"),
                    ("x-ratelimit-reset-tokens", "0"),
                ],
                left(100, 99, 60_000),
                None,
            ),
        ] {
            assert_eq!(read(provider, pairs), Some(Room { requests, tokens }), "{name}");
        }
        assert_eq!(read("openai", &[("x-ratelimit-limit-requests", "0")]), None);
        assert_eq!(
            read("gemini", &[("x-ratelimit-limit-requests", "1"), ("x-ratelimit-remaining-requests", "1")]),
            None
        );
    }

    #[test]
    fn durations() {
        for (text, want) in [
            ("1h2m3.5s", Some(3_723_500)),
            ("12ms", Some(12)),
            ("0s", Some(0)),
            ("2d", Some(172_800_000)),
            ("s", None),
            ("1x", None),
            ("1", None),
            ("..s", None),
        ] {
            assert_eq!(go_duration(text), want.map(Duration::from_millis), "{text}");
        }
    }
}
