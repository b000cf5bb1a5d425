//! Headers that end at a proxy, and headers it adds.
//!
//! Owns hop-by-hop names (RFC 9110 §7.6.1) and the `x-sidekey-*` and `X-RateLimit-*` names; leaves credentials to
//! `credentials`.

use http::header::{CONNECTION, CONTENT_LENGTH, TRANSFER_ENCODING};
use http::{HeaderMap, HeaderName, HeaderValue};

use crate::id::{KeySource, RequestId};
use crate::limit::RateHeaders;

/// Ties the calls of one job together.
pub(super) const GROUP: HeaderName = HeaderName::from_static("x-sidekey-group");
/// The id of the ledger entry.
pub(super) const REQUEST_ID: HeaderName = HeaderName::from_static("x-sidekey-request-id");
/// The tier that paid.
pub(super) const KEY_SOURCE: HeaderName = HeaderName::from_static("x-sidekey-key-source");
const LIMIT_RPM: HeaderName = HeaderName::from_static("x-ratelimit-limit-rpm");
const REMAINING_RPM: HeaderName = HeaderName::from_static("x-ratelimit-remaining-rpm");
const LIMIT_TPM: HeaderName = HeaderName::from_static("x-ratelimit-limit-tpm");
const REMAINING_TPM: HeaderName = HeaderName::from_static("x-ratelimit-remaining-tpm");

/// Removes what concerns one connection only: the names `Connection` lists, then the fixed ones.
pub fn strip_hop_by_hop(headers: &mut HeaderMap) {
    strip(headers, is_hop_by_hop);
}

/// One look at each name that is there: nearly every header goes on, and a name that is not there costs nothing.
fn strip(headers: &mut HeaderMap, ends_here: fn(&str) -> bool) {
    let ending: Vec<HeaderName> = headers.keys().filter(|name| ends_here(name.as_str())).cloned().collect();
    for name in ending {
        if name == TRANSFER_ENCODING {
            // A length beside it says nothing of the body (RFC 9112 §6.3).
            headers.remove(CONTENT_LENGTH);
        } else if name == CONNECTION {
            strip_listed(headers);
        }
        headers.remove(name);
    }
}

fn is_hop_by_hop(name: &str) -> bool {
    matches!(
        name,
        "connection"
            | "keep-alive"
            | "proxy-authenticate"
            | "proxy-authorization"
            | "proxy-connection"
            | "te"
            | "trailer"
            | "transfer-encoding"
            | "upgrade"
    )
}

fn is_of_this_hop(name: &str) -> bool {
    is_hop_by_hop(name) || matches!(name, "content-length" | "expect" | "host") || name == GROUP.as_str()
}

/// A client that lists an end-to-end name here would have it removed: the credential is put in afterwards, and the
/// framing is ours anyway.
fn strip_listed(headers: &mut HeaderMap) {
    // Nearly always one of two words that name nothing further.
    let mut values = headers.get_all(CONNECTION).iter();
    if values.next().is_some_and(|listed| listed == "keep-alive" || listed == "close") && values.next().is_none() {
        return;
    }
    let names: Vec<HeaderName> = headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
    for name in names {
        headers.remove(name);
    }
}

/// Removes what is about this hop of a request: framing is generated anew, `Expect` was answered here, and the
/// authority is the upstream's.
pub(super) fn strip_request(headers: &mut HeaderMap) {
    strip(headers, is_of_this_hop);
}

/// Removes the client's trace context: ids of its own systems, and whatever it keeps in `baggage`.
pub(super) fn strip_trace(headers: &mut HeaderMap) {
    strip(headers, |name| matches!(name, "baggage" | "traceparent" | "tracestate"));
}

/// Adds what sidekey says of a request it let through.
pub(super) fn add_ours(headers: &mut HeaderMap, id: RequestId, source: Option<KeySource>, rates: &RateHeaders) {
    if let Ok(value) = HeaderValue::try_from(id.to_string()) {
        headers.insert(REQUEST_ID, value);
    }
    if let Some(source) = source {
        headers.insert(KEY_SOURCE, HeaderValue::from_static(source.as_str()));
    }
    add_rates(headers, rates);
}

/// Adds the limits that exist.
pub(super) fn add_rates(headers: &mut HeaderMap, rates: &RateHeaders) {
    for (name, value) in [
        (LIMIT_RPM, rates.limit_rpm),
        (REMAINING_RPM, rates.remaining_rpm),
        (LIMIT_TPM, rates.limit_tpm),
        (REMAINING_TPM, rates.remaining_tpm),
    ] {
        if let Some(value) = value {
            headers.insert(name, HeaderValue::from(value));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let pair = |(name, value): &(&'static str, &'static str)| {
            (HeaderName::from_static(name), HeaderValue::from_static(value))
        };
        pairs.iter().map(pair).collect()
    }

    #[test]
    fn hop_by_hop() {
        for (name, given, want) in [
            ("nothing", map(&[("accept", "a")]), vec!["accept"]),
            ("common", map(&[("connection", "keep-alive"), ("accept", "a")]), vec!["accept"]),
            ("listed", map(&[("connection", "close, X-Mine"), ("x-mine", "1"), ("accept", "a")]), vec!["accept"]),
            ("listed in two", map(&[("connection", "close"), ("connection", "x-mine"), ("x-mine", "1")]), vec![]),
            ("fixed", map(&[("te", "trailers"), ("transfer-encoding", "chunked"), ("upgrade", "h2c")]), vec![]),
            ("nonsense listed", map(&[("connection", "@, ,"), ("accept", "a")]), vec!["accept"]),
        ] {
            let mut headers = given;
            strip_hop_by_hop(&mut headers);
            assert_eq!(headers.keys().map(HeaderName::as_str).collect::<Vec<_>>(), want, "{name}");
        }
    }

    #[test]
    fn only_limits_that_exist() {
        let mut headers = HeaderMap::new();
        let rates = RateHeaders { limit_rpm: Some(60), remaining_rpm: Some(0), ..RateHeaders::default() };
        add_ours(&mut headers, RequestId::new(1), Some(KeySource::User), &rates);
        assert_eq!(headers.len(), 4);
        assert_eq!(headers["x-ratelimit-remaining-rpm"], "0");
        assert_eq!(headers["x-sidekey-key-source"], "user");
    }
}
