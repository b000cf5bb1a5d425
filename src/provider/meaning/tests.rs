//! The rules, over recorded errors of every dialect (`tests/fixtures/refusals/`), and over every recorded exchange.

use std::collections::BTreeMap;

use http::{HeaderName, HeaderValue};
use serde_json::Value;

use super::super::{Registry, dialects};
use super::*;

/// 2023-11-15, noon UTC: midnight in California is 20 hours away.
const NOON: u64 = 1_700_049_600_000;
const MIDNIGHT: Duration = Duration::from_secs(20 * 3600);

fn registry() -> Registry {
    let text = "[azure-openai]\nbase_url = \"https://r.openai.azure.com\"";
    Registry::build(&toml::from_str(text).unwrap(), None).unwrap()
}

fn cases(dialect: &str) -> Vec<Value> {
    let file = format!("{}/tests/fixtures/refusals/{dialect}.json", env!("CARGO_MANIFEST_DIR"));
    serde_json::from_slice(&std::fs::read(&file).expect(&file)).expect(&file)
}

fn headers(pairs: &Value) -> HeaderMap {
    let pair = |pair: &Value| {
        let name: HeaderName = pair[0].as_str()?.parse().ok()?;
        Some((name, HeaderValue::from_str(pair[1].as_str()?).ok()?))
    };
    pairs.as_array().into_iter().flatten().filter_map(pair).collect()
}

fn text(body: &Value) -> String {
    body.as_str().map_or_else(|| body.to_string(), str::to_owned)
}

#[test]
fn every_dialects_refusals() {
    let registry = registry();
    let mut seen: BTreeMap<&str, usize> = BTreeMap::new();
    for dialect in dialects() {
        for case in cases(dialect.name()) {
            let name = format!("{}: {}", dialect.name(), case["name"]);
            let provider = case["provider"].as_str().unwrap_or_else(|| dialect.name());
            let upstream = registry.by_id(provider).expect(&name);
            let status = StatusCode::from_u16(u16::try_from(case["status"].as_u64().unwrap()).unwrap()).unwrap();
            let text = if wants_text(dialect, status) { text(&case["body"]) } else { String::new() };
            let meaning = judge(upstream, status, &headers(&case["headers"]), text.as_bytes(), NOON);
            let wait = match case["wait"].as_str() {
                Some(_) => Some(MIDNIGHT),
                None => case["wait_ms"].as_u64().map(Duration::from_millis),
            };
            assert_eq!(meaning.action.as_str(), case["action"].as_str().unwrap(), "{name}");
            assert_eq!(meaning.wait, wait, "{name}");
            if let Some(reason) = case["reason"].as_str() {
                assert_eq!(meaning.reason, reason, "{name}");
            }
            *seen.entry(meaning.action.as_str()).or_default() += 1;
        }
    }
    assert_eq!(seen.len(), Action::ALL.len(), "every action is met: {seen:?}");
}

#[test]
fn a_reset_in_words() {
    let registry = registry();
    let text = br#"{"type":"error","error":{"type":"invalid_request_error","message":"You have reached your specified API usage limits. You will regain access on 2023-11-16 at 00:00 UTC."}}"#;
    let anthropic = registry.by_id("anthropic").unwrap();
    let meaning = judge(anthropic, StatusCode::BAD_REQUEST, &HeaderMap::new(), text, NOON);
    assert_eq!((meaning.action, meaning.wait), (Action::Exhausted, Some(Duration::from_secs(12 * 3600))));
}

#[test]
fn what_is_no_word_is_not_repeated() {
    let registry = registry();
    let openai = registry.by_id("openai").unwrap();
    for code in ["sk-proj-abcdefgh", "AIzaSyA0123456789", "x", &"a".repeat(60)] {
        let text = format!(r#"{{"error":{{"code":"{code}","message":"{code}"}}}}"#);
        let meaning = judge(openai, StatusCode::UNAUTHORIZED, &HeaderMap::new(), text.as_bytes(), NOON);
        assert_eq!((meaning.action, &*meaning.reason), (Action::Refused, "401"), "{code}");
    }
    // A wait beyond all reason is cut.
    let headers = HeaderMap::from_iter([(http::header::RETRY_AFTER, HeaderValue::from_static("999999999999"))]);
    assert_eq!(judge(openai, StatusCode::TOO_MANY_REQUESTS, &headers, b"", NOON).wait, Some(WAIT_MAX));
}

#[test]
fn the_first_event() {
    let registry = registry();
    let azure = registry.by_id("azure").unwrap();
    assert!(azure.late_errors && !registry.by_id("openai").unwrap().late_errors);
    let headers = HeaderMap::from_iter([(http::header::RETRY_AFTER, HeaderValue::from_static("3"))]);
    let quota = "data: {\"error\":{\"code\":\"429\",\"message\":\"exceeded\"}}\n\n";
    let failed = "event: response.failed\ndata: {\"type\":\"response.failed\",\"response\":{\"error\":null}}\n\n";
    let why = "event: error\ndata: {\"type\":\"error\",\"error\":{\"type\":\"too_many_requests\",\"code\":\"rate_limit_exceeded\"}}\n\n";
    let cool = Some((Action::Cool, Some(3_000)));
    for (name, seen, ended, want) in [
        ("nothing yet", "", false, Ok(false)),
        ("half an event", &quota[..20], false, Ok(false)),
        ("a comment", ": ping\n\n", false, Ok(false)),
        ("an answer", "data: {\"choices\":[]}\n\n", false, Ok(true)),
        ("an answer whose error is null", "data: {\"error\":null,\"choices\":[]}\n\n", false, Ok(true)),
        ("no JSON", "data: [DONE]\n\n", false, Ok(true)),
        ("an error", quota, false, Err(cool)),
        ("an error that nobody ended", quota.trim_end(), true, Err(cool)),
        ("failed, and why is still to come", failed, false, Ok(false)),
        ("failed, and why", &format!("{failed}{why}"), false, Err(cool)),
        ("failed, and nothing more", failed, true, Ok(true)),
        (
            "failed at once, with why",
            "data: {\"type\":\"response.failed\",\"response\":{\"error\":{\"code\":\"server_error\"}}}\n\n",
            false,
            Err(Some((Action::Overloaded, Some(3_000)))),
        ),
        (
            "an error that is the client's",
            "data: {\"error\":{\"code\":\"content_filter\",\"message\":\"filtered\"}}\n\n",
            false,
            Ok(true),
        ),
        ("the end of nothing", "", true, Ok(true)),
    ] {
        let got = match first_event(azure, &headers, seen.as_bytes(), ended, NOON) {
            FirstEvent::Unknown => Ok(false),
            FirstEvent::Answer => Ok(true),
            FirstEvent::Error(meaning) => {
                Err(Some((meaning.action, meaning.wait.map(|wait| u64::try_from(wait.as_millis()).unwrap()))))
            }
        };
        assert_eq!(got, want, "{name}");
    }
}

/// What is recorded of the world: no answer below 400 means anything, and no error is taken for another.
#[test]
fn recorded_exchanges() {
    let Some(folder) = super::super::transcripts::folder() else { return };
    let registry = registry();
    let index = std::fs::read_to_string(folder.join("index.jsonl")).unwrap();
    let mut counted: BTreeMap<(u16, &str), usize> = BTreeMap::new();
    for line in index.lines() {
        let row: Value = serde_json::from_str(line).unwrap();
        let Some(upstream) = registry.by_host(row["host"].as_str().unwrap()) else { continue };
        let status = StatusCode::from_u16(u16::try_from(row["status"].as_u64().unwrap()).unwrap()).unwrap();
        let body = row["response_body_file"].as_str().map(|file| std::fs::read(folder.join(file)).unwrap());
        if status.as_u16() < 400 || !row["content_encoding"].is_null() {
            continue;
        }
        let headers = headers(&row["response_headers"]);
        let meaning = judge(&upstream, status, &headers, &body.unwrap_or_default(), NOON);
        let want = match status.as_u16() {
            401 => Action::Refused,
            403 if meaning.reason.contains("ExpiredToken") => Action::Refused,
            403 if meaning.reason.contains("AccessDenied") => Action::Elsewhere,
            403 => Action::Forbidden,
            429 => Action::Cool,
            500 => Action::Overloaded,
            _ => Action::Relay,
        };
        assert_eq!(meaning.action, want, "{}", row["id"]);
        *counted.entry((status.as_u16(), meaning.action.as_str())).or_default() += 1;
    }
    eprintln!("recorded errors: {counted:?}");
    assert!(counted.len() >= 5, "{counted:?}");
}
