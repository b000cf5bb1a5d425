//! Handing out a real key instead of using it: the choice and the admission are those of a request.
//!
//! Owns that order; leaves who may ask, and what becomes of the lease, to `control`.

use std::sync::Arc;

use crate::id::RequestId;
use crate::lease::{LeaseHold, LeaseWish, Leased};
use crate::limit::Permit;
use crate::provider::Refusal;
use crate::proxy::authenticate::Caller;
use crate::proxy::error::{Error, list};
use crate::proxy::select::{Candidate, Choice};
use crate::storage::Store;

/// A key of the caller's pool for the wish, as a request for it would get it.
///
/// # Errors
/// What such a request would be refused with.
pub fn lease(store: &Store, wish: &LeaseWish) -> Result<Leased, Refusal> {
    given(store, wish).map_err(|error| error.refusal())
}

fn given(store: &Store, wish: &LeaseWish) -> Result<Leased, Error> {
    permit(wish)?;
    let caller = Caller::Known(Arc::clone(&wish.key), wish.key.record.digest);
    let permit = Permit::reserve(Arc::clone(&wish.key.scopes), wish.at, wish.need)?;
    let seed = RequestId::new(wish.at.wall_ms).random_bits();
    let upstream = Arc::clone(&wish.upstream);
    let mut choice = Choice::new(upstream, &caller, wish.model.as_deref(), (wish.need, wish.at.wall_ms), seed);
    match choice.next(store, wish.at.now) {
        Some((Candidate::Key(attempt), _)) => {
            let (key, secret, source, own) = attempt.leased();
            Ok(Leased { key, secret, source, hold: LeaseHold { permit, own } })
        }
        Some((Candidate::Keyless | Candidate::Own, _)) | None => {
            permit.refund();
            Err(choice.nothing(store, wish.at.now))
        }
    }
}

/// What can be checked before a key is out. Afterwards nothing can.
fn permit(wish: &LeaseWish) -> Result<(), Error> {
    let (key, provider) = (&wish.key, &wish.upstream.id);
    if !key.record.allows_provider(provider) {
        let allowed = list(&key.record.providers);
        return Err(Error::ProviderNotAllowed { provider: provider.to_string(), allowed });
    }
    match &wish.model {
        _ if key.allows_every_model() => Ok(()),
        Some(model) if key.allows_model(model) => Ok(()),
        Some(model) => Err(Error::ModelNotAllowed { model: model.clone(), allowed: key.models_shown() }),
        None => Err(Error::ModelUnknown { endpoint: "lease", allowed: key.models_shown() }),
    }
}
