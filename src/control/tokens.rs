//! `/api/tokens`: what programs and people show at the TCP address of the admin API.
//!
//! Owns making and showing them, and finding the one that is presented; leaves what each may do to
//! [`super::routes`].

use std::sync::Arc;

use axum::Json;
use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use http::{HeaderMap, StatusCode, header};
use serde::{Deserialize, Serialize};

use crate::access::{AccessToken, Role, TOKEN_PREFIX};
use crate::clock::rfc3339;
use crate::control::body::{Tell, parse};
use crate::control::named::ListQuery;
use crate::control::policy::said;
use crate::control::problem::{Asked, Problem, check_name};
use crate::control::{ControlState, Page, etag, expected_version, page};
use crate::id::KeyId;
use crate::secret::Secret;
use crate::storage::Store;
use crate::virtual_key::{generate, has_prefix, parse_id};

const DAY_MS: u64 = 86_400_000;
/// Days until a token expires of which nothing was said.
const DEFAULT_DAYS: u32 = 90;
/// A last use is written down when the one that stands there is older.
const USE_MS: u64 = 60_000;

#[derive(Debug, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema), schemars(rename = "TokenWish"))]
#[serde(deny_unknown_fields)]
pub(super) struct Wish {
    #[cfg_attr(test, schemars(length(min = 1, max = 128)))]
    name: String,
    role: Role,
    /// Null is never.
    #[cfg_attr(test, schemars(range(min = 1)))]
    #[serde(default, deserialize_with = "said")]
    expires_days: Option<Option<u32>>,
}

/// A token as it is shown.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema), schemars(rename = "Token"))]
pub(super) struct TokenView {
    id: KeyId,
    name: String,
    role: Role,
    /// `active` or `expired`.
    #[cfg_attr(test, schemars(extend("enum" = ["active", "expired"])))]
    status: &'static str,
    /// True for one that a login with a code made.
    session: bool,
    #[cfg_attr(test, schemars(extend("format" = "date-time")))]
    created: String,
    #[cfg_attr(test, schemars(extend("format" = "date-time")))]
    expires: Option<String>,
    /// To within a minute.
    #[cfg_attr(test, schemars(extend("format" = "date-time")))]
    last_used: Option<String>,
}

impl TokenView {
    pub(super) fn new(token: &AccessToken, now: u64) -> Self {
        Self {
            id: token.id,
            name: token.name.clone(),
            role: token.role.clone(),
            status: if token.is_expired(now) { "expired" } else { "active" },
            session: token.session,
            created: rfc3339(token.created_ms),
            expires: token.expires_ms.map(rfc3339),
            last_used: token.last_used_ms.map(rfc3339),
        }
    }
}

/// One page of tokens, the oldest first.
#[derive(Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(super) struct TokenList {
    tokens: Vec<TokenView>,
    next_cursor: Option<String>,
}

/// A token as it is made: itself, which is shown this once, and what is kept of it.
#[derive(Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(super) struct TokenMade<'a> {
    token: &'a str,
    token_data: TokenView,
}

pub(super) async fn list(
    State(state): State<Arc<ControlState>>,
    Asked(query): Asked<ListQuery>,
) -> Result<Json<TokenList>, Problem> {
    let mut tokens: Vec<Arc<AccessToken>> = all(&state.store);
    tokens.sort_by_key(|token| (token.created_ms, token.id));
    let Page { items, next } = page(tokens, |token| token.id.to_string(), query.cursor, query.limit)?;
    let now = state.clock.wall_ms();
    let tokens = items.iter().map(|token| TokenView::new(token, now)).collect();
    Ok(Json(TokenList { tokens, next_cursor: next }))
}

pub(super) async fn create(
    State(state): State<Arc<ControlState>>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, Problem> {
    let wish: Wish = parse(&headers, &body, Tell::All)?;
    check_name("name", &wish.name)?;
    if all(&state.store).iter().any(|token| token.name == wish.name) {
        let detail = format!("there is a token {:?} already", wish.name);
        return Err(Problem::new(StatusCode::CONFLICT, "exists", detail)
            .field("name")
            .fix("choose another name, or revoke that one"));
    }
    let now = state.clock.wall_ms();
    let days = wish.expires_days.unwrap_or(Some(DEFAULT_DAYS));
    if days == Some(0) {
        return Err(Problem::invalid("expires_days", "must be 1 at least").fix("null is never"));
    }
    let expires_ms = days.map(|days| now.saturating_add(u64::from(days) * DAY_MS));
    let (text, token) = make(&state, wish.name, wish.role, expires_ms, false).await?;
    let location = format!("/api/tokens/{}", token.id);
    let body = TokenMade { token: text.expose(), token_data: TokenView::new(&token, now) };
    // What was just made has its first version.
    let headers = [(header::LOCATION, location), (header::ETAG, etag(1))];
    Ok((StatusCode::CREATED, headers, Json(body)).into_response())
}

pub(super) async fn show(State(state): State<Arc<ControlState>>, Path(id): Path<String>) -> Result<Response, Problem> {
    let (token, version) = find(&state, &id)?;
    let view = TokenView::new(&token, state.clock.wall_ms());
    Ok(([(header::ETAG, etag(version))], Json(view)).into_response())
}

/// Revokes one: it is accepted no longer, from the next request on.
pub(super) async fn delete(
    State(state): State<Arc<ControlState>>,
    Path(id): Path<String>,
    headers: HeaderMap,
) -> Result<StatusCode, Problem> {
    let expected = expected_version(&headers)?;
    let (token, _) = find(&state, &id)?;
    revoke(&state.store, token.id, expected).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Takes one back, if a version is given only at this one.
pub(super) async fn revoke(store: &Store, id: KeyId, expected: Option<u64>) -> Result<(), Problem> {
    Ok(store.delete_named::<AccessToken>(&id.to_string(), expected).await?)
}

/// Makes one and stores what is kept of it.
pub(super) async fn make(
    state: &ControlState,
    name: String,
    role: Role,
    expires_ms: Option<u64>,
    session: bool,
) -> Result<(Secret, Arc<AccessToken>), Problem> {
    let random = |error: crate::id::NoRandomness| Problem::internal(error.to_string());
    let id = KeyId::random().map_err(random)?;
    let text = generate(TOKEN_PREFIX, id).map_err(random)?;
    let digest = state.store.snapshot().digest_key().digest(text.expose());
    let created_ms = state.clock.wall_ms();
    let token = AccessToken { id, name, role, digest, created_ms, expires_ms, last_used_ms: None, session };
    let (token, _) = state.store.put_named(token, Some(0)).await?;
    Ok((text, token))
}

/// All of them.
pub(super) fn all(store: &Store) -> Vec<Arc<AccessToken>> {
    store.snapshot().all_named::<AccessToken>().map(|(token, _)| token).collect()
}

fn find(state: &ControlState, id: &str) -> Result<(Arc<AccessToken>, u64), Problem> {
    let found = state.store.snapshot().named::<AccessToken>(id);
    found.ok_or_else(|| Problem::not_found(&format!("token {id:?}")))
}

/// The token that is presented, when it is one and good; its use is noted.
pub(super) async fn accept(state: &ControlState, presented: &str) -> Option<Arc<AccessToken>> {
    let now = state.clock.wall_ms();
    let (digest, found) = {
        let snapshot = state.store.snapshot();
        // An unknown id costs the same work as a wrong secret: the digest is made before the look-up.
        let digest = snapshot.digest_key().digest(presented);
        let id = parse_id(presented).filter(|_| has_prefix(TOKEN_PREFIX, presented))?;
        (digest, snapshot.named::<AccessToken>(&id.to_string()))
    };
    let (token, version) = found.filter(|(token, _)| token.accepts(digest, now))?;
    if token.last_used_ms.is_none_or(|at| at.saturating_add(USE_MS) <= now) {
        let used = AccessToken { last_used_ms: Some(now), ..(*token).clone() };
        // Another request may have noted it first, and one that is revoked meanwhile must not come back.
        if let Err(error) = state.store.put_named(used, Some(version)).await {
            tracing::debug!(id = %token.id, %error, "the use of a token is not noted");
        }
    }
    Some(token)
}
