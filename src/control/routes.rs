//! Every route of the admin API, and the least role that may use it: one table, of which the router is made.
//!
//! Owns who may do what; leaves who asks to [`super::caller`], and what is done to the modules of each list.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::handler::Handler;
use axum::routing::{MethodFilter, MethodRouter, on};
use http::{Method, StatusCode};

use crate::access::Role;
use crate::control::problem::Problem;
use crate::control::{
    ControlState, activity, alerts, audit, ca, config, explain, keys, leases, named, owners, pages, plans, pools,
    prices, provider_keys, session, status, tokens, usage,
};
use crate::id::ScopeId;
use crate::plan::Plan;
use crate::pool::Pool;

/// The least that a caller must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Least {
    rank: Rank,
    /// Also for `user:<id>`, over what is theirs.
    own: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Rank {
    Anyone,
    /// The handler asks for a virtual key, and that decides.
    VirtualKey,
    Reader,
    Operator,
    Admin,
}

const ANYONE: Least = Least { rank: Rank::Anyone, own: true };
/// Who holds a virtual key, which the handler looks at.
const VIRTUAL_KEY: Least = Least { rank: Rank::VirtualKey, own: true };
const READER: Least = Least { rank: Rank::Reader, own: false };
const OPERATOR: Least = Least { rank: Rank::Operator, own: false };
const ADMIN: Least = Least { rank: Rank::Admin, own: false };
/// Readers, and users over what is theirs.
const READER_OWN: Least = Least { rank: Rank::Reader, own: true };
/// Operators, and users over what is theirs.
const OPERATOR_OWN: Least = Least { rank: Rank::Operator, own: true };

impl Least {
    /// True when somebody of this role may.
    #[must_use]
    pub fn allows(self, role: Option<&Role>) -> bool {
        match role {
            None => self.rank <= Rank::VirtualKey,
            Some(Role::User(_)) => self.own,
            Some(Role::Reader) => self.rank <= Rank::Reader,
            Some(Role::Operator) => self.rank <= Rank::Operator,
            Some(Role::Admin) => true,
        }
    }

    /// True when no token has to be shown.
    #[must_use]
    pub fn is_anyone(self) -> bool {
        self.rank <= Rank::VirtualKey
    }

    /// True when users may, over what is theirs.
    #[must_use]
    pub fn is_for_users(self) -> bool {
        self.own
    }
}

impl fmt::Display for Least {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.rank {
            Rank::Anyone => "anyone",
            Rank::VirtualKey => "virtual key",
            Rank::Reader => "reader",
            Rank::Operator => "operator",
            Rank::Admin => "admin",
        })
    }
}

/// One route of one method.
pub(super) struct Route {
    pub(super) method: Method,
    /// As the router writes it: `/api/keys/{id}`.
    pub(super) path: Cow<'static, str>,
    pub(super) least: Least,
    handler: MethodRouter<Arc<ControlState>>,
}

/// The routes, in the order of the documents.
#[derive(Default)]
pub(super) struct Table(pub(super) Vec<Route>);

impl Table {
    fn add<H, T>(&mut self, method: Method, path: impl Into<Cow<'static, str>>, least: Least, handler: H)
    where
        H: Handler<T, Arc<ControlState>>,
        T: 'static,
    {
        // Only the five methods below come here, and each is a filter.
        let filter = MethodFilter::try_from(method.clone()).unwrap_or(MethodFilter::GET);
        self.0.push(Route { method, path: path.into(), least, handler: on(filter, handler) });
    }

    pub(super) fn get<H, T>(mut self, path: impl Into<Cow<'static, str>>, least: Least, handler: H) -> Self
    where
        H: Handler<T, Arc<ControlState>>,
        T: 'static,
    {
        self.add(Method::GET, path, least, handler);
        self
    }

    pub(super) fn post<H, T>(mut self, path: impl Into<Cow<'static, str>>, least: Least, handler: H) -> Self
    where
        H: Handler<T, Arc<ControlState>>,
        T: 'static,
    {
        self.add(Method::POST, path, least, handler);
        self
    }

    pub(super) fn put<H, T>(mut self, path: impl Into<Cow<'static, str>>, least: Least, handler: H) -> Self
    where
        H: Handler<T, Arc<ControlState>>,
        T: 'static,
    {
        self.add(Method::PUT, path, least, handler);
        self
    }

    pub(super) fn patch<H, T>(mut self, path: impl Into<Cow<'static, str>>, least: Least, handler: H) -> Self
    where
        H: Handler<T, Arc<ControlState>>,
        T: 'static,
    {
        self.add(Method::PATCH, path, least, handler);
        self
    }

    pub(super) fn delete<H, T>(mut self, path: impl Into<Cow<'static, str>>, least: Least, handler: H) -> Self
    where
        H: Handler<T, Arc<ControlState>>,
        T: 'static,
    {
        self.add(Method::DELETE, path, least, handler);
        self
    }

    /// The router; roles are not its business.
    pub(super) fn into_router(self, state: Arc<ControlState>) -> Router {
        let routed = self.0.into_iter().fold(Router::new(), |router, route| router.route(&route.path, route.handler));
        routed
            .fallback(|| async { Problem::not_found("such route") })
            .method_not_allowed_fallback(|| async {
                Problem::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", "this route has other methods")
            })
            // The gate has read the body already, and knows how long it may be.
            .layer(DefaultBodyLimit::disable())
            .with_state(state)
    }
}

/// The table.
pub(super) fn table() -> Table {
    let table = Table::default()
        .get("/", ANYONE, pages::index)
        .get("/ui/{*path}", ANYONE, pages::asset)
        .get("/openapi.json", ANYONE, pages::openapi)
        .get("/api/session", READER_OWN, session::show)
        .post("/api/session", ANYONE, session::begin)
        .delete("/api/session", READER_OWN, session::end)
        .post("/api/session/code", ADMIN, session::code)
        .get("/api/tokens", ADMIN, tokens::list)
        .post("/api/tokens", ADMIN, tokens::create)
        .get("/api/tokens/{id}", ADMIN, tokens::show)
        .delete("/api/tokens/{id}", ADMIN, tokens::delete)
        .get("/api/keys", READER_OWN, keys::list)
        .post("/api/keys", OPERATOR_OWN, keys::create)
        .post("/api/keys/validate", OPERATOR, keys::validate)
        .get("/api/keys/{id}", READER_OWN, keys::show)
        .patch("/api/keys/{id}", OPERATOR_OWN, keys::update)
        .delete("/api/keys/{id}", OPERATOR_OWN, keys::delete)
        .post("/api/keys/{id}/rotate", OPERATOR_OWN, keys::rotate)
        .post("/api/keys/{id}/enable", OPERATOR, keys::enable)
        .post("/api/keys/{id}/disable", OPERATOR_OWN, keys::disable)
        .post("/api/keys/{id}/revoke", OPERATOR_OWN, keys::revoke)
        .get("/api/keys/{id}/usage", READER_OWN, usage::of_key)
        .get("/api/plans", READER, plans::list)
        .post("/api/plans", OPERATOR, plans::create)
        .get("/api/plans/{name}", READER, plans::show)
        .patch("/api/plans/{name}", OPERATOR, plans::update)
        .delete("/api/plans/{name}", OPERATOR, named::delete::<Plan>)
        .get("/api/pools", READER, pools::list)
        .post("/api/pools", OPERATOR, pools::create)
        .get("/api/pools/{name}", READER, pools::show)
        .patch("/api/pools/{name}", OPERATOR, pools::update)
        .delete("/api/pools/{name}", OPERATOR, named::delete::<Pool>)
        .post("/api/pools/{name}/lease", VIRTUAL_KEY, leases::grant)
        .post("/api/pools/{name}/usage", VIRTUAL_KEY, leases::report);
    let table = owners::routes(table, "/api/users", ScopeId::User, READER_OWN, OPERATOR);
    let table = owners::routes(table, "/api/teams", ScopeId::Team, READER, OPERATOR);
    table
        .get("/api/prices", READER_OWN, prices::list)
        .post("/api/prices", OPERATOR, prices::import)
        .get("/api/prices/explain", READER_OWN, prices::explain)
        .get("/api/prices/{*name}", READER_OWN, prices::show)
        .put("/api/prices/{*name}", OPERATOR, prices::put)
        .delete("/api/prices/{*name}", OPERATOR, prices::delete)
        .get("/api/providers", READER_OWN, status::providers)
        .get("/api/providers/{id}", READER_OWN, status::provider)
        .get("/api/provider-keys", READER_OWN, provider_keys::list)
        .post("/api/provider-keys", OPERATOR_OWN, provider_keys::add)
        .get("/api/provider-keys/{id}", READER_OWN, provider_keys::show)
        .patch("/api/provider-keys/{id}", OPERATOR_OWN, provider_keys::update)
        .delete("/api/provider-keys/{id}", OPERATOR_OWN, provider_keys::delete)
        .post("/api/provider-keys/{id}/rotate", OPERATOR_OWN, provider_keys::rotate)
        .post("/api/provider-keys/{id}/enable", OPERATOR_OWN, provider_keys::enable)
        .post("/api/provider-keys/{id}/disable", OPERATOR_OWN, provider_keys::disable)
        .post("/api/provider-keys/{id}/test", OPERATOR_OWN, provider_keys::test)
        .get("/api/provider-keys/{id}/usage", READER_OWN, usage::of_provider_key)
        .get("/api/usage", READER_OWN, usage::report)
        .post("/api/usage", OPERATOR_OWN, usage::repriced)
        .get("/api/usage/groups/{id}", READER_OWN, usage::of_group)
        .get("/api/ledger", READER_OWN, usage::ledger)
        .get("/api/activity", READER, activity::show)
        .get("/api/alerts", READER, alerts::list)
        .post("/api/alerts/test", OPERATOR, alerts::test)
        .get("/api/audit", READER, audit::list)
        .get("/api/audit/verify", READER, audit::verify)
        .get("/api/ca", READER, ca::show)
        .post("/api/ca/rotate", ADMIN, ca::rotate)
        .get("/api/config", READER, config::show)
        .get("/api/explain", READER, explain::explain)
        .get("/api/status", READER, status::status)
        .post("/api/backup", ADMIN, status::backup)
}

/// Method, path, least role and whether users may too, of every route: for the documents.
#[must_use]
pub fn listed() -> Vec<(String, String, String, bool)> {
    let row = |route: &Route| {
        (route.method.to_string(), route.path.to_string(), route.least.to_string(), route.least.is_for_users())
    };
    table().0.iter().map(row).collect()
}

/// Finds the least role by path and method, as the router would find the handler.
pub(super) struct Leasts(matchit::Router<Vec<(Method, Least)>>);

impl Leasts {
    /// Of a table.
    pub(super) fn of(table: &Table) -> Self {
        let mut by_path: Vec<(&str, Vec<(Method, Least)>)> = Vec::new();
        for route in &table.0 {
            match by_path.iter_mut().find(|(path, _)| *path == route.path) {
                Some((_, found)) => found.push((route.method.clone(), route.least)),
                None => by_path.push((&route.path, vec![(route.method.clone(), route.least)])),
            }
        }
        let mut router = matchit::Router::new();
        for (path, leasts) in by_path {
            // The router refuses the same paths, and is built of them first.
            if let Err(error) = router.insert(path, leasts) {
                tracing::error!(path, %error, "a route is lost");
            }
        }
        Self(router)
    }

    /// Of a request; `None` when there is no such route.
    pub(super) fn find(&self, method: &Method, path: &str) -> Option<Least> {
        // A HEAD is answered by the handler of GET.
        let method = if *method == Method::HEAD { &Method::GET } else { method };
        let found = self.0.at(path).ok()?;
        found.value.iter().find(|(of, _)| of == method).map(|(_, least)| *least)
    }

    /// True when anyone may use this path, by one method or another.
    pub(super) fn is_open(&self, path: &str) -> bool {
        self.0.at(path).is_ok_and(|found| found.value.iter().any(|(_, least)| least.is_anyone()))
    }
}

impl fmt::Debug for Leasts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Leasts").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a role may do, as one letter each: Admin, Operator, Reader, User, Nobody.
    fn letters(least: Least) -> String {
        let roles = [
            ('A', Some(Role::Admin)),
            ('O', Some(Role::Operator)),
            ('R', Some(Role::Reader)),
            ('U', Some(Role::User("a".into()))),
            ('N', None),
        ];
        roles.iter().filter(|(_, role)| least.allows(role.as_ref())).map(|(letter, _)| letter).collect()
    }

    #[test]
    fn who_may_do_what() {
        for (least, want) in [
            (ANYONE, "AORUN"),
            (VIRTUAL_KEY, "AORUN"),
            (READER, "AOR"),
            (OPERATOR, "AO"),
            (ADMIN, "A"),
            (READER_OWN, "AORU"),
            (OPERATOR_OWN, "AOU"),
        ] {
            assert_eq!(letters(least), want, "{least:?}");
        }
    }

    #[test]
    fn every_route_has_one_row_that_is_found() {
        let table = table();
        let leasts = Leasts::of(&table);
        for (at, route) in table.0.iter().enumerate() {
            let twin = |other: &Route| other.path == route.path && other.method == route.method;
            assert_eq!(table.0.iter().position(twin), Some(at), "{} {} twice", route.method, route.path);
            let path = route.path.replace("{id}", "x").replace("{name}", "x").replace("{*name}", "a/b");
            let path = path.replace("{*path}", "a/b.js");
            assert_eq!(leasts.find(&route.method, &path), Some(route.least), "{} {path}", route.method);
        }
        assert_eq!(leasts.find(&Method::GET, "/api/none"), None);
        assert_eq!(leasts.find(&Method::HEAD, "/api/keys"), Some(READER_OWN));
    }

    #[test]
    fn readers_read_and_what_trust_rests_on_is_for_admins() {
        for route in table().0 {
            let at = format!("{} {}", route.method, route.path);
            let of_session = route.path.starts_with("/api/session");
            if !of_session && route.least != VIRTUAL_KEY && route.method != Method::GET {
                assert!(!route.least.allows(Some(&Role::Reader)), "{at}");
            }
            if route.path.starts_with("/api/tokens") || ["/api/backup", "/api/ca/rotate"].contains(&&*route.path) {
                assert_eq!(letters(route.least), "A", "{at}");
            }
            let open = !route.path.starts_with("/api/") || at == "POST /api/session" || route.least == VIRTUAL_KEY;
            assert_eq!(letters(route.least).contains('N'), open, "{at}");
        }
    }
}
