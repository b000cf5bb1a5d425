//! The first event of a stream that was answered with 200, where it can be an error: Azure accepts a request before it
//! knows whether there is room for it.
//!
//! Owns telling such an event from an answer's first; leaves how long it is waited for to `proxy::forward`.

use http::{HeaderMap, StatusCode};
use serde_json::Value;

use super::said::Said;
use super::{Meaning, judge_as};
use crate::provider::Upstream;
use crate::scan::sse::{Part, Scanner};

/// What the bytes of a stream show so far.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FirstEvent {
    /// An answer, or nothing that could be told from one.
    Answer,
    /// An error in place of an answer.
    Error(Meaning),
    /// Too little to say.
    Unknown,
}

/// Looks at the beginning of an event stream, decoded. `ended` says that no more will come.
#[must_use]
pub fn first_event(upstream: &Upstream, headers: &HeaderMap, seen: &[u8], ended: bool, wall_ms: u64) -> FirstEvent {
    for data in events(seen, ended) {
        let Ok(value) = serde_json::from_slice::<Value>(&data) else { return FirstEvent::Answer };
        let error = [&value["error"], &value["response"]["error"]].into_iter().find(|error| !error.is_null());
        let Some(error) = error else {
            // Responses say that they failed in one event, and why in the next.
            if value["type"] == "response.failed" && !ended {
                continue;
            }
            return FirstEvent::Answer;
        };
        let mut said = Said::read(StatusCode::OK, headers, b"", wall_ms);
        said.read_value(error);
        return match status_of(&said) {
            Some(status) => FirstEvent::Error(judge_as(&upstream.id, upstream.dialect, status, &said)),
            None => FirstEvent::Answer,
        };
    }
    if ended { FirstEvent::Answer } else { FirstEvent::Unknown }
}

/// The data of each whole event.
fn events(seen: &[u8], ended: bool) -> Vec<Vec<u8>> {
    let (mut whole, mut open) = (Vec::new(), Vec::new());
    let mut sink = |_: &Scanner, part: Part<'_>| match part {
        Part::Data(data) => open.extend_from_slice(data),
        Part::Join => open.push(b'\n'),
        Part::End => whole.push(std::mem::take(&mut open)),
        // A bare error is none of an event stream's.
        Part::Stray(_) => {}
    };
    let mut scanner = Scanner::new();
    scanner.feed(seen, &mut sink);
    if ended {
        scanner.finish(&mut sink);
    }
    whole
}

/// The status such an error would have had: a number among its codes, else what its words say.
fn status_of(said: &Said) -> Option<StatusCode> {
    let number = said.codes.iter().find_map(|code| code.parse().ok()).filter(|code| (400..600).contains(code));
    let word = || {
        said.codes.iter().find_map(|code| match code.as_str() {
            "insufficient_quota" | "rate_limit_exceeded" | "too_many_requests" => Some(429),
            "internal_error" | "internal_server_error" | "server_error" => Some(500),
            "service_unavailable" => Some(503),
            "invalid_api_key" | "unauthorized" => Some(401),
            _ => None,
        })
    };
    StatusCode::from_u16(number.or_else(word)?).ok()
}
