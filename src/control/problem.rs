//! A [`Problem`]: an error of the admin API as RFC 9457 `application/problem+json`, naming the field and the fix.
//!
//! Owns the shape and the reading of query strings; leaves bodies to `body`. A message never holds a key.

use axum::extract::{FromRequestParts, Query};
use axum::response::{IntoResponse, Response};
use http::request::Parts;
use http::{StatusCode, header};
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
        true if matches!(name, "." | "..") => {
            Err(Problem::invalid(field, "a name is more than dots").fix("choose another"))
        }
        true => Ok(()),
        false => Err(Problem::invalid(field, "must be 1 to 128 printable characters without spaces around")
            .fix("choose another")),
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
            Err(rejection) => Err(unreadable(&rejection.body_text())),
        }
    }
}

/// What is wrong with a query string, and with which of its parameters.
fn unreadable(text: &str) -> Problem {
    let text = text.strip_prefix("Failed to deserialize query string: ").unwrap_or(text);
    // `unknown field `x`, expected …`, or `x: what is wrong`.
    let (field, fix) = match text.split_once(": ") {
        Some((field, _)) if !field.contains(' ') => (Some(field), "send a value of its kind: /openapi.json has it"),
        _ => (text.split('`').nth(1), "leave it out, or write it as it is called, and once"),
    };
    let problem = Problem::new(StatusCode::BAD_REQUEST, "bad_request", text).fix(fix);
    match field {
        Some(field) => problem.field(field),
        None => problem,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn query_strings_are_faulted_by_parameter() {
        for (text, field) in [
            ("limit: invalid digit found in string", Some("limit")),
            ("unknown field `limt`, expected `limit` or `cursor`", Some("limt")),
            ("duplicate field `limit`", Some("limit")),
            ("something else", None),
        ] {
            let problem = unreadable(&format!("Failed to deserialize query string: {text}"));
            assert_eq!((problem.field.as_deref(), problem.detail.as_str()), (field, text));
        }
    }
}
