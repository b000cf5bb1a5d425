//! What a change of the store is about, and the record it changes, without what is secret.
//!
//! Owns naming and leaving out; leaves recording to `storage::writer`.

use serde::Serialize;
use serde_json::{Map, Value};

use crate::id::KeyId;
use crate::storage::named::Kind;
use crate::storage::records::Request;
use crate::storage::snapshot::Snapshot;

/// Fields that hold a secret, or what one is known by.
const LEFT_OUT: [&str; 4] = ["digest", "generation", "hash", "secret"];
/// A command line, whose words can hold one too: only its program is told.
const COMMAND: &str = "command";

/// What a change is about.
#[derive(Debug)]
pub(in crate::storage) struct Target {
    /// As in the names of actions.
    pub(super) kind: &'static str,
    /// The record's name, for people.
    pub(super) object: String,
    /// The record as it is.
    pub(super) before: Option<Value>,
    place: Place,
}

#[derive(Debug)]
enum Place {
    Named(Kind, std::sync::Arc<str>),
    ProviderKey(KeyId),
    VirtualKey(KeyId),
}

impl Target {
    /// Of a change that is to be made to what `snapshot` shows.
    pub(in crate::storage) fn of(request: &Request, snapshot: &Snapshot) -> Self {
        let place = match request {
            Request::CreateProviderKey(record, _) | Request::UpdateProviderKey(record, ..) => {
                Place::ProviderKey(record.id)
            }
            Request::DeleteProviderKey(id, _)
            | Request::MarkProviderKey(id, _)
            | Request::RetireReplaced(id, _)
            | Request::TakeBack(id, _) => Place::ProviderKey(*id),
            Request::CreateVirtualKey(record) | Request::UpdateVirtualKey(record, _) => Place::VirtualKey(record.id),
            Request::DeleteVirtualKey(id, _) => Place::VirtualKey(*id),
            Request::DeleteNamed(kind, name, _) => Place::Named(*kind, name.clone()),
            Request::PutNamed(record, _) => Place::Named(record.kind, record.name.clone()),
        };
        let (kind, object) = match &place {
            Place::ProviderKey(id) => ("provider_key", format!("provider_key {id}")),
            Place::VirtualKey(id) => ("key", format!("key {id}")),
            Place::Named(Kind::Owner, name) => match name.split_once(':') {
                Some(("user", id)) => ("user", format!("user {id}")),
                Some((_, id)) => ("team", format!("team {id}")),
                None => ("owner", format!("owner {name}")),
            },
            Place::Named(kind, name) => (kind.as_str(), format!("{} {name}", kind.as_str())),
        };
        let before = found(&place, snapshot);
        Self { kind, object, before, place }
    }

    /// The record as `snapshot` shows it.
    pub(in crate::storage) fn found(&self, snapshot: &Snapshot) -> Option<Value> {
        found(&self.place, snapshot)
    }
}

fn found(place: &Place, snapshot: &Snapshot) -> Option<Value> {
    match place {
        Place::Named(kind, name) => snapshot.named.get(&(*kind, name.clone()))?.to_json(*kind).map(without_secrets),
        Place::ProviderKey(id) => described(&snapshot.provider_key(*id)?.record),
        Place::VirtualKey(id) => described(&snapshot.virtual_key(*id)?.record),
    }
}

/// A record as JSON, without what is secret.
fn described(record: &impl Serialize) -> Option<Value> {
    serde_json::to_value(record).ok().map(without_secrets)
}

fn without_secrets(value: Value) -> Value {
    match value {
        Value::Object(fields) => {
            let kept = fields.into_iter().filter(|(name, _)| !LEFT_OUT.contains(&name.as_str()));
            let told = |(name, value): (String, Value)| match &value {
                Value::String(line) if name == COMMAND => {
                    (name, line.split_whitespace().next().unwrap_or_default().into())
                }
                _ => (name, without_secrets(value)),
            };
            Value::Object(kept.map(told).collect::<Map<_, _>>())
        }
        Value::Array(items) => items.into_iter().map(without_secrets).collect(),
        other => other,
    }
}
