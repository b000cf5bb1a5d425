//! Where a client's credential stands, and taking every one of them out of the request.
//!
//! Owns the places an SDK may put a key; leaves deciding about the key to `authenticate`.

use std::borrow::Cow;

use http::header::{COOKIE, SEC_WEBSOCKET_PROTOCOL};
use http::{HeaderMap, HeaderName, HeaderValue};
use memchr::memmem;

use crate::virtual_key::{has_prefix, parse_id, secret_part};

/// What a browser's WebSocket, which can set no header, puts before the key.
const SUBPROTOCOL: &str = "openai-insecure-api-key.";

/// True of every header that may carry a credential.
fn is_credential(name: &HeaderName) -> bool {
    matches!(name.as_str(), "api-key" | "authorization" | "proxy-authorization" | "x-api-key" | "x-goog-api-key")
}

/// What was presented, before anything is believed of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Presented<'a> {
    /// Nothing.
    Nothing,
    /// One text of the form, or at least the prefix, of a virtual key.
    Virtual(&'a str),
    /// Several virtual keys that differ.
    Several,
    /// Only credentials that are not ours.
    Foreign,
}

/// Finds the virtual key in `headers` and `query`, among other credentials.
pub(super) fn find<'a>(prefix: &str, headers: &'a HeaderMap, query: Option<&'a str>) -> Presented<'a> {
    let in_headers = headers
        .iter()
        .filter_map(|(name, value)| value.to_str().ok().filter(|_| is_credential(name)))
        .map(|text| bearer(text).trim());
    let in_subprotocol = subprotocols(headers).filter_map(|item| item.strip_prefix(SUBPROTOCOL));
    let in_query = query.and_then(query_key);
    let mut found = Presented::Nothing;
    for text in in_headers.chain(in_subprotocol).chain(in_query) {
        let ours = has_prefix(prefix, text) || parse_id(text).is_some();
        found = match found {
            _ if text.is_empty() => found,
            Presented::Nothing | Presented::Foreign if ours => Presented::Virtual(text),
            Presented::Nothing => Presented::Foreign,
            Presented::Virtual(first) if ours && first != text => Presented::Several,
            other => other,
        };
    }
    found
}

/// What stands behind `Bearer`, or the whole text.
fn bearer(text: &str) -> &str {
    match text.split_at_checked(7) {
        Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer ") => token,
        _ => text,
    }
}

fn subprotocols(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    let values = headers.get_all(SEC_WEBSOCKET_PROTOCOL).into_iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).map(str::trim)
}

/// The value of the first `key=`. A virtual key needs no percent-encoding, so none is undone.
fn query_key(query: &str) -> Option<&str> {
    query.split('&').find_map(|pair| pair.strip_prefix("key="))
}

/// Takes every credential out of `headers`, and with them every header that repeats the virtual key's secret.
pub(super) fn strip(headers: &mut HeaderMap, presented: Option<&str>) {
    let secret = presented.map(secret_part).filter(|secret| !secret.is_empty());
    let repeats = |value: &HeaderValue| {
        secret.is_some_and(|secret| {
            value.len() >= secret.len() && memmem::find(value.as_bytes(), secret.as_bytes()).is_some()
        })
    };
    // The subprotocol's key is swapped where it stands, by `swap_subprotocol`.
    let leaks = |(name, value): &(&HeaderName, &HeaderValue)| {
        is_credential(name) || *name == COOKIE || (*name != SEC_WEBSOCKET_PROTOCOL && repeats(value))
    };
    let leaking: Vec<HeaderName> = headers.iter().filter(leaks).map(|(name, _)| name.clone()).collect();
    for name in leaking {
        headers.remove(name);
    }
}

/// The query without its credentials: `key=` always, and whatever repeats the virtual key's secret.
pub(super) fn strip_query<'a>(query: &'a str, presented: Option<&str>) -> Cow<'a, str> {
    let secret = presented.map(secret_part).filter(|secret| !secret.is_empty());
    let carries = |pair: &&str| pair.starts_with("key=") || secret.is_some_and(|secret| pair.contains(secret));
    if !query.split('&').any(|pair| carries(&pair)) {
        return Cow::Borrowed(query);
    }
    Cow::Owned(query.split('&').filter(|pair| !carries(pair)).collect::<Vec<_>>().join("&"))
}

/// [`strip_query`], of a path that may have one.
pub(super) fn strip_path(path: &mut String, presented: Option<&str>) {
    let Some((bare, query)) = path.split_once('?') else { return };
    if let Cow::Owned(left) = strip_query(query, presented) {
        *path = if left.is_empty() { bare.to_owned() } else { format!("{bare}?{left}") };
    }
}

/// Puts `key` where the client had put its own in the subprotocol, or with `None` takes it out. True when the key now
/// stands there.
pub(super) fn swap_subprotocol(headers: &mut HeaderMap, key: Option<&str>) -> bool {
    if !subprotocols(headers).any(|item| item.starts_with(SUBPROTOCOL)) {
        return false;
    }
    let items: Vec<Cow<'_, str>> = subprotocols(headers)
        .filter_map(|item| match item.starts_with(SUBPROTOCOL) {
            true => key.map(|key| Cow::Owned(format!("{SUBPROTOCOL}{key}"))),
            false => Some(Cow::Borrowed(item)),
        })
        .collect();
    let swapped = HeaderValue::try_from(items.join(", "));
    headers.remove(SEC_WEBSOCKET_PROTOCOL);
    let Ok(mut value) = swapped else { return false };
    if value.is_empty() {
        return false;
    }
    value.set_sensitive(true);
    headers.insert(SEC_WEBSOCKET_PROTOCOL, value);
    key.is_some()
}

/// Takes the key out of an upstream's choice of subprotocol: some choose the first that was offered, whatever it is.
pub(super) fn strip_choice(headers: &mut HeaderMap) {
    if subprotocols(headers).any(|item| item.starts_with(SUBPROTOCOL)) {
        headers.remove(SEC_WEBSOCKET_PROTOCOL);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "sk-side-a1b2c3d4e5f67890-0123456789012345678901234567890123456789012";

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs
            .iter()
            .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_str(value).unwrap()))
            .collect()
    }

    #[test]
    fn every_place() {
        let bearer = format!("Bearer {KEY}");
        let lower = format!("bearer {KEY}");
        let protocol = format!("realtime, openai-insecure-api-key.{KEY}, x");
        let query = format!("alt=sse&key={KEY}");
        let other = KEY.replace("a1b2", "ffff");
        for (name, pairs, query, want) in [
            ("nothing", &[][..], None, Presented::Nothing),
            ("bearer", &[("authorization", bearer.as_str())], None, Presented::Virtual(KEY)),
            ("lower-case scheme", &[("authorization", &lower)], None, Presented::Virtual(KEY)),
            ("x-api-key", &[("x-api-key", KEY)], None, Presented::Virtual(KEY)),
            ("api-key", &[("api-key", KEY)], None, Presented::Virtual(KEY)),
            ("x-goog-api-key", &[("x-goog-api-key", KEY)], None, Presented::Virtual(KEY)),
            ("proxy", &[("proxy-authorization", &bearer)], None, Presented::Virtual(KEY)),
            ("subprotocol", &[("sec-websocket-protocol", &protocol)], None, Presented::Virtual(KEY)),
            ("query", &[], Some(query.as_str()), Presented::Virtual(KEY)),
            ("twice the same", &[("x-api-key", KEY), ("authorization", &bearer)], None, Presented::Virtual(KEY)),
            ("two that differ", &[("x-api-key", &other), ("authorization", &bearer)], None, Presented::Several),
            (
                "beside a foreign one",
                &[("authorization", "Bearer sk-real"), ("api-key", KEY)],
                None,
                Presented::Virtual(KEY),
            ),
            ("foreign", &[("authorization", "Bearer sk-real")], None, Presented::Foreign),
            ("malformed of ours", &[("x-api-key", "sk-side-nonsense")], None, Presented::Virtual("sk-side-nonsense")),
            ("empty", &[("authorization", "Bearer ")], None, Presented::Nothing),
        ] {
            assert_eq!(find("sk-side", &headers(pairs), query), want, "{name}");
        }
    }

    #[test]
    fn nothing_of_it_is_left() {
        let bearer = format!("Bearer {KEY}");
        let mut all = headers(&[
            ("authorization", &bearer),
            ("authorization", "Bearer sk-real"),
            ("x-api-key", KEY),
            ("cookie", "session=1"),
            ("x-my-own", &format!("see {KEY}")),
            ("accept", "*/*"),
        ]);
        strip(&mut all, Some(KEY));
        assert_eq!(all.keys().collect::<Vec<_>>(), ["accept"]);
    }

    #[test]
    fn queries() {
        for (query, want) in [
            ("", ""),
            ("alt=sse", "alt=sse"),
            (&format!("key={KEY}"), ""),
            (&format!("a=1&key={KEY}&b=%20"), "a=1&b=%20"),
            (&format!("a=1&token={KEY}"), "a=1"),
            ("monkey=1&key=AIza", "monkey=1"),
        ] {
            assert_eq!(strip_query(query, Some(KEY)), want, "{query}");
            let mut path = format!("/a?{query}");
            strip_path(&mut path, Some(KEY));
            let whole = if want.is_empty() && !query.is_empty() { "/a".to_owned() } else { format!("/a?{want}") };
            assert_eq!(path, whole, "{query}");
        }
    }

    #[test]
    fn the_subprotocol_is_swapped_in_place() {
        let mut map = headers(&[("sec-websocket-protocol", &format!("realtime, openai-insecure-api-key.{KEY}, beta"))]);
        strip(&mut map, Some(KEY));
        assert!(swap_subprotocol(&mut map, Some("sk-real")));
        assert_eq!(map[SEC_WEBSOCKET_PROTOCOL], "realtime, openai-insecure-api-key.sk-real, beta");
        assert!(!swap_subprotocol(&mut headers(&[("sec-websocket-protocol", "realtime")]), Some("sk-real")));
        let mut chosen = headers(&[("sec-websocket-protocol", "openai-insecure-api-key.sk-real")]);
        strip_choice(&mut chosen);
        assert!(chosen.is_empty());
        assert!(!swap_subprotocol(&mut map, None));
        assert_eq!(map[SEC_WEBSOCKET_PROTOCOL], "realtime, beta");
    }
}
