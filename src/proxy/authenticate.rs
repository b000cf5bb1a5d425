//! Who asks: a virtual key, or with `unknown_keys = "pass"` a stranger with a credential of the provider's.
//!
//! Owns acceptance of the key; leaves where it stands to `credentials`, and what it may do to `select`.

use std::net::IpAddr;
use std::sync::Arc;

use http::HeaderMap;

use crate::proxy::canary::Canaries;
use crate::proxy::credentials::{self, Presented};
use crate::proxy::error::Error;
use crate::storage::{KeyState, Snapshot};
use crate::virtual_key::{Digest, Rejection, parse_id};

/// Who asks.
#[derive(Clone, Debug)]
pub(super) enum Caller {
    /// The holder of a virtual key, and the digest of what was presented.
    Known(Arc<KeyState>, Digest),
    /// Somebody with a real key of their own: it goes upstream as it came, and nothing of ours does.
    Stranger,
}

impl Caller {
    /// The key's state.
    pub(super) fn key(&self) -> Option<&Arc<KeyState>> {
        match self {
            Self::Known(key, _) => Some(key),
            Self::Stranger => None,
        }
    }

    /// The same caller by a later snapshot: the key as it is now, or why it is accepted no longer.
    pub(super) fn again(self, snapshot: &Snapshot, wall_ms: u64, peer: IpAddr) -> Result<Self, Error> {
        let Self::Known(before, digest) = self else { return Ok(self) };
        let key = snapshot.virtual_key(before.record.id).ok_or(Error::KeyNotAccepted(Rejection::Unknown))?;
        key.record.check(digest, wall_ms, Some(peer)).map_err(Error::KeyNotAccepted)?;
        Ok(Self::Known(Arc::clone(key), digest))
    }
}

/// What accepting a key depends on.
#[derive(Clone, Copy, Debug)]
pub(super) struct Door<'a> {
    pub(super) prefix: &'a str,
    pub(super) pass_unknown: bool,
    pub(super) wall_ms: u64,
    pub(super) peer: IpAddr,
    pub(super) canaries: &'a Canaries,
}

/// Accepts the request's key, or says why not. `presented` is the text that [`credentials::strip`] must not leave behind.
pub(super) fn authenticate<'a>(
    door: Door<'_>,
    snapshot: &Snapshot,
    headers: &'a HeaderMap,
    query: Option<&'a str>,
) -> Result<(Caller, Option<&'a str>), Error> {
    let text = match credentials::find(door.prefix, headers, query) {
        Presented::Virtual(text) => text,
        Presented::Foreign if door.pass_unknown => return Ok((Caller::Stranger, None)),
        Presented::Foreign => return Err(Error::KeyNotAccepted(Rejection::Malformed)),
        Presented::Nothing => return Err(Error::KeyNotAccepted(Rejection::Missing)),
        Presented::Several => return Err(Error::SeveralKeys),
    };
    // An unknown id costs the same work as a wrong secret: the digest is made before the look-up.
    let digest = snapshot.digest_key().digest(text);
    let id = parse_id(text).ok_or(Error::KeyNotAccepted(Rejection::Malformed))?;
    let key = snapshot.virtual_key(id).ok_or(Error::KeyNotAccepted(Rejection::Unknown))?;
    if let Err(why) = key.record.check(digest, door.wall_ms, Some(door.peer)) {
        if why == Rejection::Canary {
            door.canaries.used(&key.record, door.peer);
        }
        return Err(Error::KeyNotAccepted(why));
    }
    Ok((Caller::Known(Arc::clone(key), digest), Some(text)))
}
