//! `/api/session`: a login with a code that only a user of the admin socket gets, for the console in a browser.
//!
//! Owns codes: each is good once, for a minute, and is kept as a digest in memory only. Leaves the token that comes of
//! one to `tokens`.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use axum::Json;
use axum::body::Bytes;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::{HeaderMap, StatusCode, header};
use serde::{Deserialize, Serialize};

use crate::access::Role;
use crate::clock::rfc3339;
use crate::control::body::{Tell, parse};
use crate::control::caller::{By, Caller};
use crate::control::failures::Failures;
use crate::control::pages::{self, Pages};
use crate::control::problem::Problem;
use crate::control::tokens::{self, TokenView};
use crate::control::{ControlState, Listening};
use crate::id::KeyId;
use crate::virtual_key::{Digest, generate, secret_part};

/// How long a code is good.
const CODE_MS: u64 = 60_000;
/// How long what it opens is good.
const SESSION_MS: u64 = 12 * 3_600_000;
/// Codes that wait at most; the oldest gives way.
const CODES_MAX: usize = 16;
/// What a session's token is called.
const NAME: &str = "console";

/// What the console needs of the API.
pub struct Console {
    /// Its pages.
    pub pages: Pages,
    /// Failed attempts to get in.
    pub(super) failures: Failures,
    /// Codes that nobody has used yet, each with its end.
    codes: Mutex<Vec<(Digest, u64)>>,
}

impl Console {
    /// Of these pages.
    #[must_use]
    pub fn new(pages: Pages) -> Self {
        Self { pages, failures: Failures::default(), codes: Mutex::default() }
    }

    fn add(&self, code: Digest, now: u64) {
        let mut codes = self.codes.lock().unwrap_or_else(PoisonError::into_inner);
        codes.retain(|(_, until)| now < *until);
        if codes.len() >= CODES_MAX {
            codes.remove(0);
        }
        codes.push((code, now + CODE_MS));
    }

    /// True when the code is good, which it is no longer then.
    fn take(&self, code: Digest, now: u64) -> bool {
        let mut codes = self.codes.lock().unwrap_or_else(PoisonError::into_inner);
        codes.retain(|(_, until)| now < *until);
        let waiting = codes.len();
        codes.retain(|(kept, _)| *kept != code);
        codes.len() < waiting
    }
}

impl Default for Console {
    fn default() -> Self {
        Self::new(pages::plain)
    }
}

impl fmt::Debug for Console {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Console").finish_non_exhaustive()
    }
}

/// A code, and the address that takes it.
#[derive(Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(super) struct LoginCode<'a> {
    code: &'a str,
    /// Opens the console logged in.
    url: String,
    expires_in_s: u64,
}

/// Makes a code.
pub(super) async fn code(State(state): State<Arc<ControlState>>) -> Result<Response, Problem> {
    let listening = state.facts.listening.as_ref();
    let url = listening.and_then(Listening::admin_url).ok_or_else(|| {
        Problem::new(StatusCode::CONFLICT, "no_console", "the admin API has no TCP address")
            .field("listen.admin")
            .fix("set listen.admin, or run the daemon")
    })?;
    let random = |error: crate::id::NoRandomness| Problem::internal(error.to_string());
    let text = generate("code", KeyId::random().map_err(random)?).map_err(random)?;
    let code = secret_part(text.expose());
    state.console.add(state.store.snapshot().digest_key().digest(code), state.clock.wall_ms());
    let made = LoginCode { code, url: format!("{url}/#code={code}"), expires_in_s: CODE_MS / 1000 };
    Ok(Json(made).into_response())
}

#[derive(Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub(super) struct Login {
    code: String,
}

/// What a login gives: a token, which is shown this once.
#[derive(Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(super) struct Session<'a> {
    token: &'a str,
    token_data: TokenView,
    #[cfg_attr(test, schemars(extend("format" = "date-time")))]
    expires: String,
}

/// Takes a code and gives a token.
pub(super) async fn begin(
    State(state): State<Arc<ControlState>>,
    caller: Caller,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, Problem> {
    let login: Login = parse(&headers, &body, Tell::Names)?;
    let now = state.clock.wall_ms();
    let code = state.store.snapshot().digest_key().digest(&login.code);
    if !state.console.take(code, now) {
        if let Some(address) = caller.address {
            state.console.failures.count(address.ip(), state.clock.now())?;
        }
        let detail = "the code is wrong, used already, or older than a minute";
        return Err(Problem::new(StatusCode::UNAUTHORIZED, "bad_code", detail)
            .field("code")
            .fix("ask for another one: sidekey ui"));
    }
    for token in tokens::all(&state.store).iter().filter(|token| token.session && token.is_expired(now)) {
        // Gone already is as good.
        let _ = tokens::revoke(&state.store, token.id, None).await;
    }
    let expires = now + SESSION_MS;
    let (text, token) = tokens::make(&state, NAME.to_owned(), Role::Admin, Some(expires), true).await?;
    let body = Session { token: text.expose(), token_data: TokenView::new(&token, now), expires: rfc3339(expires) };
    Ok((StatusCode::CREATED, [(header::LOCATION, "/api/session")], Json(body)).into_response())
}

/// Who asks.
#[derive(Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(super) struct WhoAsks {
    role: Option<Role>,
    /// How they proved it.
    #[cfg_attr(test, schemars(extend("enum" = ["nothing", "process", "socket", "token"])))]
    by: &'static str,
    /// True when an admin acts as the user in `role`.
    acts_as_user: bool,
    /// The token that was shown.
    token_data: Option<TokenView>,
}

/// Who asks.
pub(super) async fn show(State(state): State<Arc<ControlState>>, caller: Caller) -> Json<WhoAsks> {
    let token = match &caller.by {
        By::Token { id, .. } => state.store.snapshot().named::<crate::access::AccessToken>(&id.to_string()),
        By::Nothing | By::Process | By::Socket { .. } => None,
    };
    let now = state.clock.wall_ms();
    let by = match caller.by {
        By::Nothing => "nothing",
        By::Process => "process",
        By::Socket { .. } => "socket",
        By::Token { .. } => "token",
    };
    let token_data = token.map(|(token, _)| TokenView::new(&token, now));
    Json(WhoAsks { role: caller.role, by, acts_as_user: caller.acts_as_user, token_data })
}

/// Logs out: the token of the session is accepted no longer.
pub(super) async fn end(State(state): State<Arc<ControlState>>, caller: Caller) -> Result<StatusCode, Problem> {
    let By::Token { id, session: true, .. } = caller.by else {
        let detail = "only what a login with a code made can be ended here";
        return Err(
            Problem::new(StatusCode::CONFLICT, "no_session", detail).fix("revoke a token with `sidekey token revoke`")
        );
    };
    tokens::revoke(&state.store, id, None).await?;
    Ok(StatusCode::NO_CONTENT)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::virtual_key::DigestKey;

    #[test]
    fn a_code_is_good_once_for_a_minute() {
        let (console, digests) = (Console::default(), DigestKey::from_bytes([7; 32]));
        let code = |text: &str| digests.digest(text);
        console.add(code("a"), 0);
        console.add(code("b"), 0);
        assert!(!console.take(code("x"), 1));
        assert!(console.take(code("a"), CODE_MS - 1));
        assert!(!console.take(code("a"), CODE_MS - 1), "a second time");
        assert!(!console.take(code("b"), CODE_MS), "too late");
        for n in 0..=CODES_MAX {
            console.add(code(&n.to_string()), 0);
        }
        assert!(!console.take(code("0"), 1) && console.take(code("1"), 1), "only the oldest gave way");
    }
}
