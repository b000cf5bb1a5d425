//! The gate before the routes: what a caller's role allows, whom an admin acts for, and what a body may be.
//!
//! Owns these checks, on every way in; leaves who asks to the way in: [`super::socket`], [`super::door`].

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::middleware::{Next, from_fn, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use http::header::{CONTENT_LENGTH, HeaderName, HeaderValue};
use http::{HeaderMap, StatusCode, header};
use http_body_util::{BodyExt, Limited};

use crate::access::Role;
use crate::control::body::{is_json, not_json};
use crate::control::caller::Caller;
use crate::control::problem::Problem;
use crate::control::routes::{Least, Leasts, table};
use crate::control::{ControlState, audited};
use crate::id::is_name;

/// The longest body: a list of prices of every model there is.
const MAX_BODY: usize = 4 << 20;
/// The longest body of one who has shown nothing.
const MAX_BODY_OF_STRANGERS: usize = 16 << 10;
/// How long a body may take to come.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);
/// Whom an admin acts for.
pub(super) const X_USER_ID: HeaderName = HeaderName::from_static("x-user-id");

/// The routes behind their gate. Who asks must be in the request's extensions, as a [`Caller`].
pub(super) fn gated(state: Arc<ControlState>) -> Router {
    let table = table();
    let leasts = Arc::new(Leasts::of(&table));
    // A router around the router: a layer of one alone sees requests only when it has found their route.
    Router::new()
        .fallback_service(table.into_router(Arc::clone(&state)))
        .layer(from_fn_with_state(leasts, pass))
        .layer(from_fn_with_state(state, audited::watch))
        .layer(from_fn(seal))
}

async fn pass(State(leasts): State<Arc<Leasts>>, request: Request, next: Next) -> Response {
    match checked(&leasts, request).await {
        Ok(request) => next.run(request).await,
        Err(problem) => problem.into_response(),
    }
}

async fn checked(leasts: &Leasts, mut request: Request) -> Result<Request, Problem> {
    let caller = request.extensions().get::<Caller>().cloned();
    let caller =
        caller.ok_or_else(|| Problem::new(StatusCode::UNAUTHORIZED, "unauthorized", "nobody says who asks"))?;
    let (method, path) = (request.method(), request.uri().path());
    let least = leasts.find(method, path);
    // Which paths there are is not for strangers to find out, but for those that are open.
    if caller.role.is_none() && !least.map_or_else(|| leasts.is_open(path), Least::is_anyone) {
        return Err(unauthorized("a token is needed"));
    }
    let caller = acting(caller, request.headers())?;
    if let Some(least) = least.filter(|least| !least.allows(caller.role.as_ref())) {
        let role = caller.role.as_ref().map_or_else(|| "nobody".to_owned(), Role::to_string);
        let detail = format!("{method} {path} is not for the role {role}: {least} is the least");
        return Err(Problem::new(StatusCode::FORBIDDEN, "forbidden", detail));
    }
    let most = if caller.role.is_none() { MAX_BODY_OF_STRANGERS } else { MAX_BODY };
    request.extensions_mut().insert(caller);
    read_body(request, most).await
}

/// The caller, or the user an admin acts as.
fn acting(caller: Caller, headers: &HeaderMap) -> Result<Caller, Problem> {
    let Some(said) = headers.get(X_USER_ID) else { return Ok(caller) };
    if !caller.is_admin() {
        let detail = "only an admin may act as a user";
        return Err(Problem::new(StatusCode::FORBIDDEN, "forbidden", detail)
            .field("x-user-id")
            .fix("leave the header out, or show an admin token"));
    }
    let id = said.to_str().ok().filter(|id| is_name(id));
    let id = id.ok_or_else(|| {
        Problem::new(StatusCode::BAD_REQUEST, "bad_request", "is not a user")
            .field("x-user-id")
            .fix("write the id of one")
    })?;
    Ok(Caller { role: Some(Role::User(id.to_owned())), acts_as_user: true, ..caller })
}

/// Reads the body before anything is decided by it.
async fn read_body(request: Request, most: usize) -> Result<Request, Problem> {
    let too_large = || {
        let detail = format!("the body is longer than {most} bytes");
        Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", detail)
    };
    let said = request.headers().get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    if said.is_some_and(|said| said > most as u64) {
        return Err(too_large());
    }
    let (parts, body) = request.into_parts();
    let read = tokio::time::timeout(BODY_TIMEOUT, Limited::new(body, most).collect()).await;
    let read = read.map_err(|_| Problem::new(StatusCode::REQUEST_TIMEOUT, "timeout", "the body does not come"))?;
    let bytes = match read {
        Ok(read) => read.to_bytes(),
        Err(error) if error.is::<http_body_util::LengthLimitError>() => return Err(too_large()),
        Err(_) => return Err(Problem::new(StatusCode::BAD_REQUEST, "bad_request", "the body is cut short")),
    };
    // What a page may send anywhere without being asked is never JSON.
    if !bytes.is_empty() && !is_json(&parts.headers) {
        return Err(not_json());
    }
    Ok(Request::from_parts(parts, Body::from(bytes)))
}

/// 401, with what to do about it.
pub(super) fn unauthorized(detail: &str) -> Problem {
    Problem::new(StatusCode::UNAUTHORIZED, "unauthorized", detail)
        .fix("send `Authorization: Bearer <token>`; `sidekey token create` makes one")
}

const SEALS: [(HeaderName, HeaderValue); 6] = [
    (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
    (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
    (header::REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
    (header::X_FRAME_OPTIONS, HeaderValue::from_static("DENY")),
    (HeaderName::from_static("cross-origin-resource-policy"), HeaderValue::from_static("same-origin")),
    (HeaderName::from_static("cross-origin-opener-policy"), HeaderValue::from_static("same-origin")),
];

/// Tells browsers to do nothing with an answer but what was asked for.
pub(super) async fn seal(request: Request, next: Next) -> Response {
    let mut response = next.run(request).await;
    let unauthorized = response.status() == StatusCode::UNAUTHORIZED;
    let headers = response.headers_mut();
    for (name, value) in SEALS {
        headers.entry(name).or_insert(value);
    }
    let nothing = HeaderValue::from_static("default-src 'none'; frame-ancestors 'none'");
    headers.entry(header::CONTENT_SECURITY_POLICY).or_insert(nothing);
    if unauthorized {
        headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"sidekey\""));
    }
    response
}
