//! A [`Problem`]: an error of the admin API as RFC 9457 `application/problem+json`, naming the field and the fix.
//!
//! Owns the shape and the reading of JSON bodies. A message never holds a key.

use axum::extract::{FromRequestParts, Query};
use axum::response::{IntoResponse, Response};
use http::request::Parts;
use http::{HeaderMap, StatusCode, header};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::id::is_name;

/// Why a request of the admin API failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Problem {
    /// The HTTP status.
    pub status: u16,
    /// A word to match on.
    pub code: &'static str,
    /// What is wrong, for people.
    pub detail: String,
    /// The field it is wrong with.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub field: Option<String>,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fix: Option<String>,
    /// Seconds after which trying again may help; a header of the answer.
    #[serde(skip)]
    pub retry_after: Option<u64>,
}

impl Problem {
    /// A problem with a status and a word.
    pub fn new(status: StatusCode, code: &'static str, detail: impl Into<String>) -> Self {
        Self { status: status.as_u16(), code, detail: detail.into(), field: None, fix: None, retry_after: None }
    }

    /// 404.
    #[must_use]
    pub fn not_found(what: &str) -> Self {
        Self::new(StatusCode::NOT_FOUND, "not_found", format!("there is no {what}"))
    }

    /// 422: a field's value cannot be.
    pub fn invalid(field: &str, detail: impl Into<String>) -> Self {
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid", detail).field(field)
    }

    /// 500: our own fault.
    pub fn internal(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", detail)
    }

    /// Names the field.
    #[must_use]
    pub fn field(mut self, field: &str) -> Self {
        self.field = Some(field.to_owned());
        self
    }

    /// Says that the field is one of another field's.
    #[must_use]
    pub fn within(mut self, outer: &str) -> Self {
        self.field = Some(self.field.map_or_else(|| outer.to_owned(), |inner| format!("{outer}.{inner}")));
        self
    }

    /// Names the fix.
    #[must_use]
    pub fn fix(mut self, fix: impl Into<String>) -> Self {
        self.fix = Some(fix.into());
        self
    }

    /// Says when trying again may help.
    #[must_use]
    pub fn retry_after(mut self, seconds: u64) -> Self {
        self.retry_after = Some(seconds);
        self
    }
}

/// The word of a problem, on the answer it became.
#[derive(Clone, Copy, Debug)]
pub(super) struct Code(pub(super) &'static str);

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        // A struct of strings and a number: it always serializes.
        let body = serde_json::to_vec(&self).unwrap_or_default();
        let mut response = (status, [(header::CONTENT_TYPE, "application/problem+json")], body).into_response();
        response.extensions_mut().insert(Code(self.code));
        if let Some(seconds) = self.retry_after {
            response.headers_mut().insert(header::RETRY_AFTER, seconds.into());
        }
        response
    }
}

/// The name that a field has, or must have.
///
/// # Errors
/// 422 when it cannot be a name.
pub(super) fn check_name(field: &str, name: &str) -> Result<(), Problem> {
    match is_name(name) {
        // No path could have it as a part.
        true if matches!(name, "." | "..") => Err(Problem::invalid(field, "a name is more than dots")),
        true => Ok(()),
        false => Err(Problem::invalid(field, "must be 1 to 128 printable characters without spaces around")),
    }
}

/// A query string; one that does not fit is a [`Problem`] too.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asked<T>(pub(super) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Asked<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        match Query::from_request_parts(parts, state).await {
            Ok(Query(asked)) => Ok(Self(asked)),
            Err(rejection) => Err(Problem::new(StatusCode::BAD_REQUEST, "bad_request", rejection.body_text())),
        }
    }
}

/// How much of serde's complaint is told: it quotes values, and a value can be a key put in the wrong field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tell {
    /// All of it.
    All,
    /// Names of fields only.
    Names,
}

/// Reads a JSON body; an empty one is `{}`.
pub(super) fn parse<T: DeserializeOwned>(headers: &HeaderMap, body: &[u8], tell: Tell) -> Result<T, Problem> {
    if body.is_empty() {
        return serde_json::from_str("{}").map_err(|error| unreadable(&error, tell));
    }
    let kind = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or("");
    if kind.split(';').next().map(str::trim) != Some("application/json") {
        let detail = "the body's content-type must be application/json";
        return Err(Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type", detail));
    }
    serde_json::from_slice(body).map_err(|error| unreadable(&error, tell))
}

fn unreadable(error: &serde_json::Error, tell: Tell) -> Problem {
    let text = error.to_string();
    let names_only = text.starts_with("unknown field") || text.starts_with("missing field");
    let detail = if tell == Tell::All || names_only {
        text.clone()
    } else {
        format!("a value is of the wrong kind, or not JSON, at line {} column {}", error.line(), error.column())
    };
    let problem = Problem::new(StatusCode::BAD_REQUEST, "bad_request", detail);
    match text.split('`').nth(1) {
        Some(field) if names_only => problem.field(field),
        _ => problem,
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;
    use serde_json::Value;

    use super::*;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Named {
        #[expect(dead_code, reason = "only its reading is tested")]
        name: String,
    }

    #[test]
    fn what_is_told() {
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_TYPE, "application/json; charset=utf-8".parse().unwrap());
        for (name, body, tell, status, want) in [
            ("missing", "", Tell::Names, 400, "missing field `name` at line 1 column 2"),
            ("unknown", r#"{"nam":1}"#, Tell::Names, 400, "unknown field `nam`, expected `name` at line 1 column 6"),
            (
                "told",
                r#"{"name":["sk-real"]}"#,
                Tell::All,
                400,
                "invalid type: sequence, expected a string at line 1 column 8",
            ),
            (
                "not told",
                r#"{"name":12345}"#,
                Tell::Names,
                400,
                "a value is of the wrong kind, or not JSON, at line 1 column 13",
            ),
        ] {
            let problem = parse::<Named>(&headers, body.as_bytes(), tell).expect_err(name);
            assert_eq!((problem.status, problem.detail.as_str()), (status, want), "{name}");
        }
        let problem = parse::<Value>(&HeaderMap::new(), b"{}", Tell::All).expect_err("no content type");
        assert_eq!(problem.status, 415);
    }
}
