//! What the caller may call, and whose provider keys pay, in order: the user's, the team's, the system's.
//!
//! Owns permission, visibility and the order of tiers; leaves the choice among equals to `pool`, and trying keys to
//! `forward`.
//!
//! A key is chosen at the moment it is to be sent, from the records as they are then: what was added, disabled or
//! refused a moment ago counts already.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::clock::Nanos;
use crate::id::KeyId;
use crate::limit::{Consumption, Moment, Refused};
use crate::pool::{PoolPolicy, Wish, choose};
use crate::provider::{Call, Endpoint, ModelRule, Upstream};
use crate::provider_key::{ModelTag, Status};
use crate::proxy::attempt::{Attempt, Passed};
use crate::proxy::authenticate::Caller;
use crate::proxy::error::{Error, list};
use crate::proxy::request::Taken;
use crate::storage::{KeyState, ProviderKeyState, Snapshot, Store, Tiers};
use crate::virtual_key::{Fallback, VirtualKey};

/// One way to present the request to the provider.
#[derive(Debug)]
pub(super) enum Candidate {
    /// With this provider key.
    Key(Attempt),
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

/// Bytes of a body by which it is known that requests begin alike: less than the least that providers cache.
const BEGINNING: usize = 1_024;

/// A key, and how many of its rotations had been taken back: with its former secret, a key is another one.
pub(super) type Tried = (KeyId, u32);

/// Whose keys may pay for a request, and which of them were tried.
#[derive(Debug)]
pub(super) struct Choice {
    upstream: Arc<Upstream>,
    caller: Option<Arc<KeyState>>,
    model: Option<String>,
    wish: Wish,
    need: Consumption,
    /// What requests of this virtual key that begin alike have in common.
    beginning: Option<u64>,
    /// Wall time of the request's arrival, milliseconds.
    wall_ms: u64,
    tried: Vec<Tried>,
    /// Of the keys without room by their own limits, what stands least in the way.
    limited: Option<Box<Refused>>,
    /// The one try without a key of ours is over.
    spent: bool,
}

impl Choice {
    /// For a request that is thought to need so much and arrived at that wall time; `seed` is any number, another for each request.
    pub(super) fn new(
        upstream: Arc<Upstream>,
        caller: &Caller,
        model: Option<&str>,
        (need, wall_ms): (Consumption, u64),
        seed: u64,
    ) -> Self {
        let wish = Wish { now: 0, tag: ModelTag::of(model), tokens: need.total, stick: None, seed };
        let (caller, model) = (caller.key().cloned(), model.map(str::to_owned));
        Self {
            upstream,
            caller,
            model,
            wish,
            need,
            beginning: None,
            wall_ms,
            tried: Vec::new(),
            limited: None,
            spent: false,
        }
    }

    /// Leaves out keys that were tried for this request before.
    pub(super) fn leave_out(&mut self, keys: impl Iterator<Item = Tried>) {
        self.tried.extend(keys);
    }

    /// The keys that were tried.
    pub(super) fn tried(&self) -> &[Tried] {
        &self.tried
    }

    /// Where the caller's pool is sticky, has requests whose bodies begin alike go to one key.
    pub(super) fn begins_with(&mut self, body: &Taken) {
        if let Some(key) = self.caller.as_ref().filter(|key| key.record.pool.is_some()) {
            let id = u64::from_be_bytes(*key.record.id.as_bytes());
            self.beginning = body.beginning(BEGINNING).map(|hash| hash ^ id);
        }
    }

    /// The next candidate, with whether it is certainly the last; `None` when there is none, or none any more.
    pub(super) fn next(&mut self, store: &Store, now: Nanos) -> Option<(Candidate, bool)> {
        self.wish.now = now;
        let Some(caller) = self.caller.clone() else {
            return (!std::mem::replace(&mut self.spent, true)).then_some((Candidate::Own, true));
        };
        let snapshot = store.snapshot();
        let upstream = Arc::clone(&self.upstream);
        let found = tiers(&snapshot, &caller.record, &upstream);
        let Some((tiers, policy, sticky)) = found else { return self.keyless(&upstream) };
        self.wish.stick = self.beginning.filter(|_| sticky);
        let lists = paying(tiers, &caller.record);
        for list in &lists {
            for equals in list.chunk_by(|a, b| a.priority() == b.priority()) {
                if let Some(attempt) = self.pick(equals, policy, &upstream) {
                    // The former secret of a key may take its place while the request is under way.
                    let last =
                        attempt.key.replaced.is_none() && self.tried.len() >= lists.iter().map(|list| list.len()).sum();
                    return Some((Candidate::Key(attempt), last));
                }
            }
        }
        self.keyless(&upstream)
    }

    /// One of keys that are equal in tier and priority.
    fn pick(&mut self, equals: &[Arc<ProviderKeyState>], policy: PoolPolicy, upstream: &Upstream) -> Option<Attempt> {
        let at = Moment { now: self.wish.now, wall_ms: self.wall_ms };
        loop {
            let usable = |key: &ProviderKeyState| {
                key.is_for(upstream.origin_tag(), self.model.as_deref())
                    && (self.tried.is_empty() || !self.tried.contains(&tried(key)))
            };
            let contenders = equals.iter().enumerate().filter(|(_, key)| usable(key));
            let found = choose(policy, &self.wish, contenders.map(|(index, key)| (index, key.contender(at))));
            let key = &equals[found?];
            self.tried.push(tried(key));
            if !key.is_bound_to(upstream.origin()) {
                continue;
            }
            let Some(secret) = key.secret.load_full() else { continue };
            match Attempt::begin(key, secret, at, self.wish.tag, self.need) {
                Ok(attempt) => return Some(attempt),
                Err(Passed::Limited(refused)) => self.note_limited(refused),
                Err(Passed::Probed) => {}
            }
        }
    }

    fn note_limited(&mut self, refused: Box<Refused>) {
        // A wait that is not known is longer than any.
        let wait = |refused: &Refused| (refused.retry_after.is_none(), refused.retry_after);
        if self.limited.as_ref().is_none_or(|before| wait(&refused) < wait(before)) {
            self.limited = Some(refused);
        }
    }

    /// Where a key is optional, going without one when there is none.
    fn keyless(&mut self, upstream: &Upstream) -> Option<(Candidate, bool)> {
        let first = self.tried.is_empty() && !std::mem::replace(&mut self.spent, true);
        (first && upstream.keyless).then_some((Candidate::Keyless, true))
    }

    /// The keys that may pay now, tier by tier, without trying one.
    ///
    /// # Errors
    /// Why there are none, where the provider wants one.
    pub(super) fn preview(&self, store: &Store, now: Nanos) -> Result<Vec<Arc<ProviderKeyState>>, Error> {
        let Some(caller) = &self.caller else { return Ok(Vec::new()) };
        let snapshot = store.snapshot();
        let found = tiers(&snapshot, &caller.record, &self.upstream);
        let lists = found.map(|(tiers, ..)| paying(tiers, &caller.record)).unwrap_or_default();
        let rests = |key: &ProviderKeyState| {
            let health = &key.stats.health;
            !health.is_usable(now) || health.learned.rests_until(self.wish.tag) > now
        };
        let keys = lists.into_iter().flatten().filter(|key| self.might(key) && !rests(key));
        let keys: Vec<_> = keys.cloned().collect();
        if keys.is_empty() && !self.upstream.keyless { Err(self.nothing(store, now)) } else { Ok(keys) }
    }

    /// Why there was nothing to try.
    pub(super) fn nothing(&self, store: &Store, now: Nanos) -> Error {
        let upstream = &self.upstream;
        let provider = upstream.id.to_string();
        let snapshot = store.snapshot();
        let Some(caller) = &self.caller else { return Error::Internal("no candidate") };
        let found = tiers(&snapshot, &caller.record, upstream);
        let lists = found.map(|(tiers, ..)| paying(tiers, &caller.record)).unwrap_or_default();
        let keys: Vec<&Arc<ProviderKeyState>> = lists.into_iter().flatten().collect();
        let all = snapshot.provider_keys(&upstream.id);
        let detail = match &self.limited {
            Some(refused) => format!(" with room: of provider key {}, {refused}", refused.scope),
            None => why_none(&keys, all, upstream, self.model.as_deref(), &caller.record, now),
        };
        let rests = keys.iter().filter(|key| self.might(key)).filter_map(|key| {
            let health = &key.stats.health;
            Some(health.rests_until(now)?.max(health.learned.rests_until(self.wish.tag)))
        });
        let free = self.limited.as_ref().and_then(|refused| refused.retry_after);
        let free = free.map(|wait| now.saturating_add(u64::try_from(wait.as_nanos()).unwrap_or(u64::MAX)));
        let rests = rests.filter(|until| self.limited.is_none() || *until > now).chain(free);
        // Everyone who is told the same moment would come back at the same moment.
        let wait = rests.min().map(|until| until.saturating_sub(now).max(1_000_000));
        let spread = wait.map(|wait| wait.saturating_add(wait / 1_000 * (self.wish.seed % 200)));
        Error::NoProviderKey { provider, detail, retry_after: spread.map(Duration::from_nanos) }
    }

    /// True when only a rest keeps a key from paying.
    fn might(&self, key: &ProviderKeyState) -> bool {
        let ready = key.is_enabled() && key.is_bound_to(self.upstream.origin()) && key.secret.load().is_some();
        ready && key.pays_for(self.model.as_deref())
    }
}

fn tried(key: &ProviderKeyState) -> Tried {
    (key.record.id, key.stats.taken_back.load(Ordering::Relaxed))
}

/// The provider's keys as this caller may come to them, and how to choose among them: those of the caller's pool, else
/// all.
fn tiers<'a>(
    snapshot: &'a Snapshot,
    caller: &VirtualKey,
    upstream: &Upstream,
) -> Option<(&'a Tiers, PoolPolicy, bool)> {
    match &caller.pool {
        None => Some((snapshot.tiers(&upstream.id)?, PoolPolicy::default(), false)),
        Some(name) => {
            let pool = snapshot.pool(name)?;
            Some((pool.tiers(&upstream.id)?, pool.record.policy, pool.record.sticky))
        }
    }
}

/// The keys that may pay for this caller, tier by tier. Without a fallback only the caller's first tier pays: the
/// user's, if there is a user, else the team's, else the system's.
fn paying<'a>(tiers: &'a Tiers, caller: &VirtualKey) -> Vec<&'a [Arc<ProviderKeyState>]> {
    let user = caller.user.as_deref().map(|user| tiers.of_user(user));
    let team = caller.team.as_deref().map(|team| tiers.of_team(team));
    let own: Vec<_> = user.into_iter().chain(team).collect();
    match (caller.fallback, own.first()) {
        (Fallback::None, Some(first)) => vec![first],
        _ => own.into_iter().chain([tiers.of_system(), tiers.of_environment()]).collect(),
    }
}

/// What a person who knows that there is a key would ask.
fn why_none(
    keys: &[&Arc<ProviderKeyState>],
    all: &[Arc<ProviderKeyState>],
    upstream: &Upstream,
    model: Option<&str>,
    caller: &VirtualKey,
    now: Nanos,
) -> String {
    if all.is_empty() {
        return String::new();
    }
    if !all.iter().any(|key| key.is_bound_to(upstream.origin())) {
        return " (its base_url has changed since its keys were entered: enter them again)".to_owned();
    }
    if keys.is_empty() {
        return match &caller.pool {
            Some(pool) => format!(" in the pool {pool:?}"),
            None if caller.fallback == Fallback::None => {
                " (its keys belong to others, and there is no fallback)".to_owned()
            }
            None => " (its keys belong to others)".to_owned(),
        };
    }
    if !keys.iter().any(|key| key.pays_for(model)) {
        return " (its keys are for other models)".to_owned();
    }
    if keys.iter().all(|key| key.secret.load().is_none()) {
        return " (the secret its key refers to cannot be read)".to_owned();
    }
    let mut words: Vec<&str> = keys
        .iter()
        .map(|key| match key.standing(now).status {
            Status::Active => "busy",
            Status::Error => "in error",
            status => status.as_str(),
        })
        .collect();
    words.sort_unstable();
    words.dedup();
    format!(" (its keys are {})", words.join(", "))
}
