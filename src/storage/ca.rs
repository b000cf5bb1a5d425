//! A generation of the local CA at rest: a named record like any, whose contents only `net::ca` reads.
//!
//! Owns the record; leaves certificates to `net::ca`, and which generations are in use to `app`.

use std::borrow::Cow;
use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use zeroize::{Zeroize, Zeroizing};

use super::named::{Kind, Named};

/// A generation of the local CA, its key with it: sealed with the row it is kept in, wiped when dropped.
#[derive(Serialize, Deserialize)]
pub struct CaRecord {
    /// Tells generations apart.
    pub id: String,
    /// Wall time of its making, milliseconds.
    pub created_ms: u64,
    /// As `net::ca` wrote it, in base64.
    generation: String,
}

impl CaRecord {
    /// Of a generation's bytes.
    #[must_use]
    pub fn new(id: &str, created_ms: u64, generation: &[u8]) -> Self {
        Self { id: id.to_owned(), created_ms, generation: STANDARD.encode(generation) }
    }

    /// The generation's bytes; `None` when they are none.
    #[must_use]
    pub fn generation(&self) -> Option<Zeroizing<Vec<u8>>> {
        STANDARD.decode(&self.generation).ok().map(Zeroizing::new)
    }
}

impl Named for CaRecord {
    const KIND: Kind = Kind::Ca;

    fn name(&self) -> Cow<'_, str> {
        Cow::Borrowed(&self.id)
    }
}

impl Drop for CaRecord {
    fn drop(&mut self) {
        self.generation.zeroize();
    }
}

impl fmt::Debug for CaRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CaRecord").field("id", &self.id).finish_non_exhaustive()
    }
}
