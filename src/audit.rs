//! Who does what: the words of the audit log, and the act that a change of the store belongs to.
//!
//! Owns [`Actor`], [`Act`] and [`Note`]; leaves keeping records to `storage::audit`, and telling who asks to `control`.
//!
//! An act is carried beside the call, as a task-local value, so that whatever a request of the admin API changes is
//! recorded under it, however deep. A change outside any act is sidekey's own.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Who acts, as far as is known.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Actor {
    /// `uid:1000` for who holds the socket or the store, `token:<id>`, `stranger` without one, or `sidekey` itself.
    pub actor: String,
    /// What a token may do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<String>,
    /// From where: `socket`, an address, or `command` for one that has the store open.
    pub from: String,
}

impl Actor {
    /// sidekey, of its own accord.
    #[must_use]
    pub fn sidekey() -> Self {
        Self { actor: "sidekey".to_owned(), role: None, from: "itself".to_owned() }
    }

    /// A user of this machine, who came by `from`.
    #[must_use]
    pub fn user(uid: u32, from: impl Into<String>) -> Self {
        Self { actor: format!("uid:{uid}"), role: None, from: from.into() }
    }
}

/// How it went.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema), schemars(rename = "AuditOutcome"))]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It began, and how it ends is in a record of its own.
    Started,
    /// It was done.
    Ok,
    /// It was not done, as this code of a problem says.
    Refused(String),
    /// It was to be done, as an earlier record says, and the store failed.
    Undone,
}

/// What is to be recorded of an act.
#[derive(Clone, Debug, PartialEq)]
pub struct Note {
    /// Who.
    pub by: Actor,
    /// What was done, as `key.rotate`.
    pub action: String,
    /// To what, as `key a1b2c3d4e5f67890`; empty for the whole of it.
    pub object: String,
    /// The record before, without what is secret.
    pub before: Option<Value>,
    /// The record after, without what is secret.
    pub after: Option<Value>,
    /// How it went.
    pub result: Outcome,
    /// How many times, where one record stands for several.
    pub count: Option<u64>,
}

impl Note {
    /// Of something done.
    #[must_use]
    pub fn new(by: Actor, action: impl Into<String>, object: impl Into<String>) -> Self {
        let (action, object) = (action.into(), object.into());
        Self { by, action, object, before: None, after: None, result: Outcome::Ok, count: None }
    }

    /// With another end.
    #[must_use]
    pub fn with(self, result: Outcome) -> Self {
        Self { result, ..self }
    }
}

/// One act of somebody, to which all that it changes belongs.
#[derive(Debug)]
pub struct Act {
    /// Who.
    pub by: Actor,
    /// What is done, as `key.rotate`.
    pub action: String,
    /// To what.
    pub object: String,
    noted: AtomicU32,
}

tokio::task_local! {
    static CURRENT: Arc<Act>;
}

impl Act {
    /// Of which nothing is recorded yet.
    #[must_use]
    pub fn new(by: Actor, action: impl Into<String>, object: impl Into<String>) -> Arc<Self> {
        let (action, object) = (action.into(), object.into());
        Arc::new(Self { by, action, object, noted: AtomicU32::new(0) })
    }

    /// The act that this task is about.
    #[must_use]
    pub fn current() -> Option<Arc<Self>> {
        CURRENT.try_with(Arc::clone).ok()
    }

    /// Does `work` as this act.
    pub async fn scope<T>(self: Arc<Self>, work: impl Future<Output = T>) -> T {
        CURRENT.scope(self, work).await
    }

    /// A record of it as a whole.
    #[must_use]
    pub fn note(&self, result: Outcome) -> Note {
        Note::new(self.by.clone(), self.action.clone(), self.object.clone()).with(result)
    }

    /// What a change of one `kind` of record is called: as the act, where that is about such records.
    #[must_use]
    pub fn action_on(&self, kind: &str, verb: &str) -> String {
        match self.action.split_once('.') {
            Some((about, _)) if about == kind => self.action.clone(),
            _ => format!("{kind}.{verb}"),
        }
    }

    /// Notes that a change of it is in the log.
    pub fn set_noted(&self) {
        self.noted.fetch_add(1, Ordering::Relaxed);
    }

    /// True when a change of it is in the log.
    #[must_use]
    pub fn is_noted(&self) -> bool {
        self.noted.load(Ordering::Relaxed) > 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_change_belongs_to_the_act_around_it() {
        assert!(Act::current().is_none());
        let act = Act::new(Actor::user(7, "socket"), "key.rotate", "key x");
        let inside = Arc::clone(&act).scope(async {
            tokio::task::yield_now().await;
            Act::current()
        });
        let inside = inside.await.unwrap();
        inside.set_noted();
        assert!(act.is_noted() && Act::current().is_none());
        for (kind, want) in [("key", "key.rotate"), ("plan", "plan.update")] {
            assert_eq!(act.action_on(kind, "update"), want);
        }
    }
}
