//! The writer's part in the audit log: what changes are recorded, how often provider keys are used, what is too old.
//!
//! Owns when; leaves records and files to `storage::audit`.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use serde_json::json;

use crate::audit::{Act, Actor, Note, Outcome};
use crate::clock::Nanos;
use crate::id::KeyId;
use crate::storage::StoreError;
use crate::storage::audit::{Log, Target, note_of};
use crate::storage::named::Kind;
use crate::storage::provider_keys::ProviderKeyState;
use crate::storage::records::Request;
use crate::storage::shared::{Shared, answer};
use crate::storage::snapshot::Snapshot;

use super::Writer;

/// How often the uses of each provider key are recorded.
pub(super) const USES_EVERY: Nanos = 3_600_000_000_000;
const DAY_MS: u64 = 86_400_000;

type Reply = tokio::sync::oneshot::Sender<Result<(), StoreError>>;

/// What a change is about, when it is to be recorded. What requests learn of a key is not: events tell of it. Nor is that a
/// token was used.
pub(super) fn target(request: &Request, act: Option<&Act>, snapshot: &Snapshot) -> Option<Target> {
    let learned = match request {
        Request::MarkProviderKey(..) => true,
        Request::PutNamed(record, _) => record.kind == Kind::Token,
        _ => false,
    };
    (!learned || act.is_some()).then(|| Target::of(request, snapshot))
}

/// The record of a change that was applied to `snapshot`.
pub(super) fn note(act: Option<&Act>, target: Target, snapshot: &Snapshot) -> Note {
    let after = target.found(snapshot);
    if let Some(act) = act {
        act.set_noted();
    }
    note_of(act, target, after)
}

pub(super) fn append(log: &mut Log, shared: &Shared, notes: Vec<Note>) -> std::io::Result<()> {
    if notes.is_empty() {
        return Ok(());
    }
    let count = notes.len() as u64;
    let appended = shared.check_audit_fault().and_then(|()| log.append(shared.clock.wall_ms(), notes));
    match &appended {
        Ok(_) => {
            shared.metrics.audited.inc_by(count);
            shared.audit.follow(log);
        }
        Err(error) => {
            shared.metrics.unaudited.inc();
            tracing::error!(%error, "the audit log cannot be written; changes are refused");
        }
    }
    appended.map(drop)
}

impl Writer {
    fn append_notes(&mut self, notes: Vec<Note>) -> std::io::Result<()> {
        append(&mut self.audit, &self.shared, notes)
    }

    /// Records what was asked to be.
    pub(super) fn record(&mut self, notes: Vec<(Note, Reply)>) {
        let (notes, replies): (Vec<Note>, Vec<Reply>) = notes.into_iter().unzip();
        let recorded = self.append_notes(notes).map_err(|error| error.to_string());
        for reply in replies {
            answer(reply, recorded.clone().map_err(StoreError::Audit));
        }
    }

    /// Says that what these records tell of has not come to be.
    pub(super) fn take_back(&mut self, notes: Vec<Note>) {
        let undone = notes.into_iter().map(|note| Note { before: None, after: None, ..note.with(Outcome::Undone) });
        // The log says so already when it cannot be written.
        let _logged = self.append_notes(undone.collect());
    }

    pub(super) fn note_damage(&mut self, damage: Option<String>) {
        let Some(reason) = damage else { return };
        let note =
            Note { after: Some(json!({"reason": reason})), ..Note::new(Actor::sidekey(), "audit.damaged", "audit") };
        let _logged = self.append_notes(vec![note]);
    }

    /// One record for each provider key that was used, those of the environment too: how many requests were sent with it,
    /// whether it answered them or another key did in the end.
    pub(super) fn record_uses_if_due(&mut self, now: Nanos, closing: bool) {
        if !closing && now < self.due.uses {
            return;
        }
        self.due.uses = now.saturating_add(USES_EVERY);
        let snapshot = self.shared.snapshot.load_full();
        self.record_uses(snapshot.all_provider_keys());
        if !closing {
            self.prune_audit();
        }
    }

    /// Of keys that are about to go: nobody could be asked later.
    pub(super) fn record_last_uses(&mut self, gone: &[KeyId]) {
        let snapshot = self.shared.snapshot.load_full();
        self.record_uses(gone.iter().filter_map(|id| snapshot.provider_key(*id)));
    }

    pub(super) fn record_uses<'a>(&mut self, keys: impl Iterator<Item = &'a Arc<ProviderKeyState>>) {
        let taken = keys.map(|key| (key, key.stats.uses.swap(0, Ordering::Relaxed)));
        let mut used: Vec<_> = taken.filter(|(_, count)| *count > 0).collect();
        used.sort_unstable_by_key(|(key, _)| key.record.id);
        let note = |(key, count): &(&Arc<ProviderKeyState>, u64)| {
            let note = Note::new(Actor::sidekey(), "provider_key.use", format!("provider_key {}", key.record.id));
            Note { count: Some(*count), ..note }
        };
        if self.append_notes(used.iter().map(note).collect()).is_err() {
            // They are still to be recorded.
            for (key, count) in used {
                key.stats.uses.fetch_add(count, Ordering::Relaxed);
            }
        }
    }

    fn prune_audit(&mut self) {
        let days = u64::from(self.section.audit_retention_days);
        if days == 0 {
            return;
        }
        let oldest = self.shared.clock.wall_ms().saturating_sub(days * DAY_MS);
        let pruned = self.audit.too_old(oldest).and_then(|through| {
            let Some(through) = through else { return Ok(()) };
            let note = Note::new(Actor::sidekey(), "audit.prune", format!("audit 1-{through}"));
            // Said first: a log that begins late without a word would look cut.
            append(&mut self.audit, &self.shared, vec![note])?;
            self.audit.cut(through)
        });
        if let Err(error) = pruned {
            tracing::error!(%error, "old records of the audit log are kept");
        }
        self.shared.audit.follow(&self.audit);
    }
}
