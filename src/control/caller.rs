//! Who asks: a [`Caller`], which every request of the admin API carries as an extension.
//!
//! Owns how one proved who they are, and whose records they may see; leaves what each role may do to `routes`.

use std::net::SocketAddr;

use axum::extract::FromRequestParts;
use http::StatusCode;
use http::request::Parts;

use crate::access::Role;
use crate::audit::Actor;
use crate::control::problem::Problem;
use crate::id::{KeyId, Owner};

/// Who asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// What they may do; `None` for one who showed nothing, and may see what is open to anyone.
    pub role: Option<Role>,
    /// How they proved it.
    pub by: By,
    /// Where from; `None` over the socket and in the same process.
    pub address: Option<SocketAddr>,
    /// True when an admin acts as the user in `role`.
    pub acts_as_user: bool,
}

/// How a caller proved who they are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum By {
    /// Not at all.
    Nothing,
    /// By running this process: a command without a daemon.
    Process,
    /// By the kernel's word on the Unix socket's peer.
    Socket {
        /// The peer's user.
        uid: u32,
    },
    /// By an admin token.
    Token {
        /// The token's id.
        id: KeyId,
        /// What it is called.
        name: String,
        /// True for one that a login with a code made.
        session: bool,
    },
}

impl Caller {
    /// Whoever runs this process.
    #[must_use]
    pub fn process() -> Self {
        Self { role: Some(Role::Admin), by: By::Process, address: None, acts_as_user: false }
    }

    /// The peer of the Unix socket.
    #[must_use]
    pub fn socket(uid: u32) -> Self {
        Self { role: Some(Role::Admin), by: By::Socket { uid }, address: None, acts_as_user: false }
    }

    /// Somebody at this address who has shown nothing.
    #[must_use]
    pub fn stranger(address: SocketAddr) -> Self {
        Self { role: None, by: By::Nothing, address: Some(address), acts_as_user: false }
    }

    /// The user, when nobody else's records are theirs to see.
    #[must_use]
    pub fn user(&self) -> Option<&str> {
        match &self.role {
            Some(Role::User(id)) => Some(id),
            _ => None,
        }
    }

    /// True when a record of this user's is theirs to see.
    #[must_use]
    pub fn sees_user(&self, user: Option<&str>) -> bool {
        self.user().is_none_or(|own| user == Some(own))
    }

    /// True when a record of this owner's is theirs to see.
    #[must_use]
    pub fn sees_owner(&self, owner: &Owner) -> bool {
        self.user().is_none_or(|own| matches!(owner, Owner::User(id) if id == own))
    }

    /// True for one who may do everything.
    #[must_use]
    pub fn is_admin(&self) -> bool {
        self.role == Some(Role::Admin)
    }
}

impl Caller {
    /// The name in the audit log; `own` is the user of this process.
    pub(super) fn actor(&self, own: u32) -> Actor {
        let from = self.address.map_or_else(|| "nowhere".to_owned(), |address| address.ip().to_string());
        match &self.by {
            By::Nothing => Actor { actor: "stranger".to_owned(), role: None, from },
            By::Process => Actor::user(own, "command"),
            By::Socket { uid } => Actor::user(*uid, "socket"),
            By::Token { id, .. } => {
                Actor { actor: format!("token:{id}"), role: self.role.as_ref().map(Role::to_string), from }
            }
        }
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Caller {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, Problem> {
        let caller = parts.extensions.get::<Self>().cloned();
        caller.ok_or_else(|| Problem::new(StatusCode::UNAUTHORIZED, "unauthorized", "nobody says who asks"))
    }
}

/// What a user may not say of their own records.
pub(super) fn not_yours(field: &str, fix: &str) -> Problem {
    let detail = "is not for users to say";
    Problem::new(StatusCode::FORBIDDEN, "forbidden", detail).field(field).fix(fix)
}
