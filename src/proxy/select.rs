//! What the caller may call, and whose provider keys pay, in order: the user's, the team's, the system's.
//!
//! Owns permission and order; leaves trying them to `forward`.

use std::sync::Arc;

use wildmatch::WildMatch;

use crate::id::{KeySource, Owner};
use crate::provider::{Call, Endpoint, ModelRule, Upstream};
use crate::provider_key::{ProviderKey, Status};
use crate::proxy::authenticate::Caller;
use crate::proxy::error::{Error, list};
use crate::secret::Secret;
use crate::storage::{KeyState, ProviderKeyState, Snapshot};
use crate::virtual_key::VirtualKey;

/// One way to present the request to the provider.
#[derive(Clone, Debug)]
pub(super) enum Candidate {
    /// With this provider key.
    Key { state: Arc<ProviderKeyState>, secret: Arc<Secret>, source: KeySource },
    /// With no key: the provider wants none.
    Keyless,
    /// With the credential the client brought.
    Own,
}

/// Checks what the key may do.
pub(super) fn permit(state: &KeyState, provider: &str, call: &Call<'_>, model: Option<&str>) -> Result<(), Error> {
    let (key, endpoint) = (&state.record, call.endpoint);
    if !key.allows_provider(provider) {
        let allowed = list(&key.providers);
        return Err(Error::ProviderNotAllowed { provider: provider.to_owned(), allowed });
    }
    // Credentials for a browser would bypass every limit: only a key that names the endpoint gets them.
    let implied = endpoint != Endpoint::ClientSecrets && key.allows_endpoint(endpoint.as_str());
    if !implied && !key.names_endpoint(endpoint.as_str()) {
        let allowed = if key.endpoints.is_empty() { "all others".to_owned() } else { list(&key.endpoints) };
        return Err(Error::EndpointNotAllowed { endpoint: endpoint.as_str(), allowed });
    }
    if state.allows_every_model() {
        return Ok(());
    }
    match model {
        Some(model) if state.allows_model(model) => Ok(()),
        Some(model) => Err(Error::ModelNotAllowed { model: model.to_owned(), allowed: state.models_shown() }),
        None if endpoint.model_rule() == ModelRule::Irrelevant || key.names_endpoint(endpoint.as_str()) => Ok(()),
        None => Err(Error::ModelUnknown { endpoint: endpoint.as_str(), allowed: state.models_shown() }),
    }
}

/// The ways to present the request, best first; never empty.
pub(super) fn select(
    snapshot: &Snapshot,
    upstream: &Upstream,
    caller: &Caller,
    model: Option<&str>,
) -> Result<Vec<Candidate>, Error> {
    let Some(key) = caller.key() else { return Ok(vec![Candidate::Own]) };
    let keys = snapshot.provider_keys(&upstream.id);
    let mut usable: Vec<(KeySource, u32, Candidate)> =
        keys.iter().filter_map(|state| candidate(state, upstream, key, model)).collect();
    // Stable, so that keys of one tier and priority keep the order in which they were added.
    usable.sort_by_key(|(source, priority, _)| (*source, *priority));
    let candidates: Vec<Candidate> = usable.into_iter().map(|(_, _, candidate)| candidate).collect();
    match candidates.is_empty() {
        false => Ok(candidates),
        true if upstream.keyless => Ok(vec![Candidate::Keyless]),
        true => Err(Error::NoProviderKey { provider: upstream.id.to_string(), detail: why_none(keys, upstream) }),
    }
}

fn candidate(
    state: &Arc<ProviderKeyState>,
    upstream: &Upstream,
    caller: &KeyState,
    model: Option<&str>,
) -> Option<(KeySource, u32, Candidate)> {
    let record = &state.record;
    let usable = record.status == Status::Active
        && is_visible(&record.owner, &caller.record)
        && is_bound(state, upstream)
        && pays_for(record, model);
    if !usable {
        return None;
    }
    let secret = state.secret.load_full()?;
    let source = record.owner.source();
    Some((source, record.priority, Candidate::Key { state: Arc::clone(state), secret, source }))
}

/// A stored key goes only where it was entered for; one of the environment belongs to the provider as configured.
fn is_bound(state: &ProviderKeyState, upstream: &Upstream) -> bool {
    state.environment || state.record.bound_to == upstream.origin()
}

fn is_visible(owner: &Owner, caller: &VirtualKey) -> bool {
    match owner {
        Owner::System => true,
        Owner::Team(id) => caller.team.as_deref() == Some(id),
        Owner::User(id) => caller.user.as_deref() == Some(id),
    }
}

fn pays_for(record: &ProviderKey, model: Option<&str>) -> bool {
    let matches = |model| record.models.iter().any(|glob| WildMatch::new(glob).matches(model));
    record.models.is_empty() || model.is_none_or(matches)
}

/// What a person who knows that there is a key would ask.
fn why_none(keys: &[Arc<ProviderKeyState>], upstream: &Upstream) -> &'static str {
    if keys.is_empty() {
        return "";
    }
    if !keys.iter().any(|state| is_bound(state, upstream)) {
        return " (its base_url has changed since its keys were entered: enter them again)";
    }
    if keys.iter().all(|state| state.record.status != Status::Active) {
        return " (its keys are disabled or in error)";
    }
    if keys.iter().all(|state| state.secret.load().is_none()) {
        return " (the secret its key refers to cannot be read)";
    }
    " (its keys belong to others, or are for other models)"
}
