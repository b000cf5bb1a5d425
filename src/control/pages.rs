//! `/`, `/ui/…` and `/openapi.json`: pages, and the document of the API, served to anyone from bytes in the program.
//!
//! Owns their headers; leaves which pages there are to the [`Pages`] it is given.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use http::{HeaderMap, StatusCode, header};

use crate::control::ControlState;
use crate::control::problem::Problem;

/// A page, or what belongs to one.
#[derive(Clone, Copy, Debug)]
pub struct Asset {
    /// Its bytes.
    pub bytes: &'static [u8],
    /// Its `content-type`.
    pub content_type: &'static str,
    /// Its `content-encoding`, when the bytes are encoded.
    pub encoding: Option<&'static str>,
}

/// Finds an asset by its path below `/ui/`; `index.html` is the page at `/`.
pub type Pages = fn(&str) -> Option<Asset>;

/// The pages of a sidekey without a console: one that says where to go.
#[must_use]
pub fn plain(path: &str) -> Option<Asset> {
    const INDEX: &[u8] = b"<!doctype html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n<title>sidekey</title>\n\
        <p>This is the admin API of sidekey. It takes a token, which <code>sidekey token create</code> makes; what it can \
        do stands in the README, under &ldquo;Admin API&rdquo;.\n";
    (path == "index.html").then_some(Asset { bytes: INDEX, content_type: "text/html; charset=utf-8", encoding: None })
}

/// What a page may load and do: only what comes from here, and nothing written into the page itself.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; \
    font-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; \
    require-trusted-types-for 'script'; trusted-types 'none'";

pub(super) async fn index(State(state): State<Arc<ControlState>>, headers: HeaderMap) -> Result<Response, Problem> {
    page(&state, "index.html", &headers)
}

pub(super) async fn asset(
    State(state): State<Arc<ControlState>>,
    Path(path): Path<String>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    page(&state, &path, &headers)
}

/// The document of the API. That it is what the code says is seen to in tests.
pub(super) async fn openapi() -> Response {
    const DOCUMENT: &[u8] = include_bytes!("openapi.json");
    ([(header::CONTENT_TYPE, "application/json")], DOCUMENT).into_response()
}

fn page(state: &ControlState, path: &str, asked: &HeaderMap) -> Result<Response, Problem> {
    let asset = (state.console.pages)(path).ok_or_else(|| Problem::not_found("such page"))?;
    let tag = format!("\"{}\"", blake3::hash(asset.bytes).to_hex());
    // A browser keeps what it has and asks whether it still is so: a new program is seen at once.
    let headers = [
        (header::CACHE_CONTROL, "no-cache"),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::CONTENT_TYPE, asset.content_type),
        (header::ETAG, &tag),
    ];
    if knows(asked, &tag) {
        return Ok((StatusCode::NOT_MODIFIED, headers).into_response());
    }
    let mut response = (headers, asset.bytes).into_response();
    if let Some(encoding) = asset.encoding {
        response.headers_mut().insert(header::CONTENT_ENCODING, http::HeaderValue::from_static(encoding));
    }
    Ok(response)
}

/// True when the asker has the file of this tag.
fn knows(asked: &HeaderMap, tag: &str) -> bool {
    let said = asked.get(header::IF_NONE_MATCH).and_then(|value| value.to_str().ok()).unwrap_or_default();
    said.split(',').map(str::trim).any(|one| one == "*" || one.strip_prefix("W/").unwrap_or(one) == tag)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_asker_has() {
        for (said, want) in [
            (r#""a""#, true),
            (r#"W/"a""#, true),
            (r#""b", "a""#, true),
            ("*", true),
            (r#""b""#, false),
            ("a", false),
            ("", false),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(header::IF_NONE_MATCH, said.parse().unwrap());
            assert_eq!(knows(&headers, "\"a\""), want, "{said}");
        }
        assert!(!knows(&HeaderMap::new(), "\"a\""));
    }
}
