//! The writer's part in the audit log: what changes are recorded, how often provider keys are used, what is too old.
//!
//! Owns when; leaves records and files to `storage::audit`.

use serde_json::json;

use crate::audit::{Act, Actor, Note, Outcome};
use crate::clock::Nanos;
use crate::storage::StoreError;
use crate::storage::audit::{Log, Target, note_of};
use crate::storage::named::Kind;
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

    /// One record for each provider key that was used; it counts requests, by the key that answered them last.
    pub(super) fn record_uses_if_due(&mut self, now: Nanos, closing: bool) {
        if !closing && now < self.due.uses {
            return;
        }
        self.due.uses = now.saturating_add(USES_EVERY);
        let mut uses: Vec<_> = self.uses.iter().map(|(id, count)| (*id, *count)).collect();
        uses.sort_unstable();
        let note = |(id, count)| {
            let note = Note::new(Actor::sidekey(), "provider_key.use", format!("provider_key {id}"));
            Note { count: Some(count), ..note }
        };
        if self.append_notes(uses.into_iter().map(note).collect()).is_ok() {
            self.uses.clear();
        }
        if !closing {
            self.prune_audit();
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
