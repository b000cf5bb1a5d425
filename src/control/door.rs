//! The door of the TCP address: requests that web pages, strange names or strangers send are turned away before any
//! route is looked for.
//!
//! Owns the checks of hosts, origins, paths and tokens; leaves roles to [`super::gate`].
//!
//! A browser sends what any page asks it to, also to the loopback address, and a name of the page's own can be made to
//! lead here. So nothing counts but a token in a header that pages cannot set for another origin, the host must be one
//! of ours, and what a browser says of the page that asks must agree. There are no cookies, and no CORS headers.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http::header::{self, HeaderName};
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method, StatusCode, Uri};

use crate::audit::{Note, Outcome};
use crate::control::ControlState;
use crate::control::caller::{By, Caller};
use crate::control::gate::unauthorized;
use crate::control::problem::Problem;
use crate::control::tokens;

/// Names that lead to this machine, and to nothing else.
const LOOPBACK: [&str; 3] = ["localhost", "127.0.0.1", "[::1]"];

/// Where the request came from; set by the listener.
#[derive(Clone, Copy, Debug)]
pub(super) struct Peer(pub(super) SocketAddr);

/// Decides who gets in.
pub(super) struct Door {
    pub(super) state: Arc<ControlState>,
    /// Hosts beside the loopback address's, in lower case; one without a port is good with any.
    pub(super) hosts: Vec<String>,
    /// True when clients speak TLS.
    pub(super) tls: bool,
}

/// Lets a request in with its [`Caller`], or answers it.
pub(super) async fn enter(State(door): State<Arc<Door>>, request: Request, next: Next) -> Response {
    let (mut parts, body) = request.into_parts();
    match door.admit(&parts).await {
        Ok(caller) => {
            parts.extensions.insert(caller);
            next.run(Request::from_parts(parts, body)).await
        }
        Err(refusal) => refusal.into_response(),
    }
}

impl Door {
    async fn admit(&self, request: &Parts) -> Result<Caller, Problem> {
        let Some(Peer(address)) = request.extensions.get::<Peer>().copied() else {
            return Err(Problem::internal("nobody says where this comes from"));
        };
        check_path(&request.uri)?;
        check_headers(&request.headers)?;
        let host = self.check_host(&request.uri, &request.headers)?;
        self.check_origin(request, &host)?;
        self.authenticate(address, &request.headers).await
    }

    /// The host that is asked for, which must be one of ours wherever it is named.
    fn check_host(&self, uri: &Uri, headers: &HeaderMap) -> Result<String, Problem> {
        let said = headers.get(header::HOST).map(|value| value.to_str().unwrap_or_default().to_ascii_lowercase());
        let authority = uri.authority().map(|authority| authority.as_str().to_ascii_lowercase());
        let host = match (said, authority) {
            (Some(said), Some(authority)) if said != authority => {
                return Err(bad("two hosts are named").field("host"));
            }
            (Some(host), _) | (None, Some(host)) => host,
            (None, None) => return Err(bad("no host is named").field("host")),
        };
        if self.is_ours(&host) {
            return Ok(host);
        }
        let detail = "this host is not served here";
        Err(Problem::new(StatusCode::MISDIRECTED_REQUEST, "wrong_host", detail)
            .field("host")
            .fix("use 127.0.0.1 or localhost, or name the host in admin.hosts"))
    }

    fn is_ours(&self, host: &str) -> bool {
        let name = match host.rsplit_once(':') {
            Some((name, port)) if !port.is_empty() && port.bytes().all(|c| c.is_ascii_digit()) => name,
            _ => host,
        };
        LOOPBACK.contains(&name) || self.hosts.iter().any(|ours| ours == name || ours == host)
    }

    /// What a browser says of the page that asks: it must be one of ours, or none. A link may lead to a page here.
    fn check_origin(&self, request: &Parts, host: &str) -> Result<(), Problem> {
        let headers = &request.headers;
        let refused = |field: &str| {
            let detail = "a page of another origin asks for this";
            Err(Problem::new(StatusCode::FORBIDDEN, "cross_origin", detail)
                .field(field)
                .fix("ask from the console's own page, or without a browser"))
        };
        if let Some(origin) = headers.get(header::ORIGIN) {
            let ours = format!("{}://{host}", if self.tls { "https" } else { "http" });
            if !origin.as_bytes().eq_ignore_ascii_case(ours.as_bytes()) {
                return refused("origin");
            }
        }
        let fetch = |name: &'static str| headers.get(HeaderName::from_static(name)).map(HeaderValue::as_bytes);
        let follows_link = request.method == Method::GET
            && !request.uri.path().starts_with("/api/")
            && fetch("sec-fetch-mode") == Some(b"navigate")
            && fetch("sec-fetch-dest") == Some(b"document");
        match fetch("sec-fetch-site") {
            None | Some(b"same-origin" | b"none") => Ok(()),
            Some(_) if follows_link => Ok(()),
            Some(_) => refused("sec-fetch-site"),
        }
    }

    /// Who shows a good token; who shows none is a stranger.
    async fn authenticate(&self, address: SocketAddr, headers: &HeaderMap) -> Result<Caller, Problem> {
        let Some(shown) = headers.get(header::AUTHORIZATION) else { return Ok(Caller::stranger(address)) };
        let text = shown.to_str().ok().and_then(|text| text.split_once(' '));
        let token = match text {
            Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") => {
                tokens::accept(&self.state, token.trim()).await
            }
            _ => None,
        };
        // A good token is good whatever others at its address do.
        if let Some(token) = token {
            let by = By::Token { id: token.id, name: token.name.clone(), session: token.session };
            return Ok(Caller { role: Some(token.role.clone()), by, address: Some(address), acts_as_user: false });
        }
        self.state.console.failures.count(address.ip(), self.state.clock.now())?;
        let by = Caller::stranger(address).actor(0);
        let note = Note::new(by, "token.use", "token").with(Outcome::Refused("unauthorized".to_owned()));
        self.state.store.audit().refused(note).await;
        Err(unauthorized("the token is not good: unknown, revoked or expired"))
    }
}

/// One path leads to one route: what another reader could take for another path is refused.
fn check_path(uri: &Uri) -> Result<(), Problem> {
    let path = uri.path();
    let dots = |segment: &str| {
        let plain = segment.to_ascii_lowercase().replace("%2e", ".");
        plain == "." || plain == ".."
    };
    let lower = path.to_ascii_lowercase();
    let odd = !path.starts_with('/')
        || path.contains("//")
        || path.contains(['\\', ';'])
        || path.split('/').any(dots)
        || ["%00", "%5c", "%0d", "%0a"].iter().any(|odd| lower.contains(odd));
    if odd { Err(bad("the path is not in its plain form")) } else { Ok(()) }
}

/// Headers of which only one can count, and some that must not be.
fn check_headers(headers: &HeaderMap) -> Result<(), Problem> {
    const ONCE: [HeaderName; 7] = [
        header::AUTHORIZATION,
        header::CONTENT_LENGTH,
        header::CONTENT_TYPE,
        header::HOST,
        header::IF_MATCH,
        header::ORIGIN,
        HeaderName::from_static("x-user-id"),
    ];
    const NEVER: [&str; 6] = [
        "x-http-method",
        "x-http-method-override",
        "x-method-override",
        "x-original-url",
        "x-rewrite-url",
        "sec-websocket-key",
    ];
    if let Some(name) = ONCE.iter().find(|name| headers.get_all(*name).iter().count() > 1) {
        return Err(bad("the header is there twice").field(name.as_str()));
    }
    if headers.contains_key(header::TRANSFER_ENCODING) && headers.contains_key(header::CONTENT_LENGTH) {
        return Err(bad("the body has two lengths").field("content-length"));
    }
    match NEVER.iter().find(|name| headers.contains_key(**name)) {
        Some(name) => Err(bad("the header is not obeyed here").field(name)),
        None => Ok(()),
    }
}

fn bad(detail: &str) -> Problem {
    Problem::new(StatusCode::BAD_REQUEST, "bad_request", detail)
        .fix("send each header once, and the path in its plain form")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths() {
        for (path, good) in [
            ("/", true),
            ("/api/keys/a1?x=//", true),
            ("/api/plans/a%2Fb", true),
            ("/api/plans/.hidden", true),
            ("/ui/app.js", true),
            ("//api/keys", false),
            ("/api//keys", false),
            ("/api/../api/keys", false),
            ("/api/%2e%2E/keys", false),
            ("/api/./keys", false),
            ("/api/.%2e/keys", false),
            ("/api/keys;a=b", false),
            ("/api%5ckeys", false),
            ("/api/keys%00", false),
        ] {
            assert_eq!(check_path(&path.parse().unwrap()).is_ok(), good, "{path}");
        }
    }
}
