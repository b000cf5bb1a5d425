//! Requests that are under way, on disk: what a start settles of those that the last process did not live to settle.
//!
//! Owns the file `reservations`. Leaves when a request is noted to `proxy`, and its end to `storage::writer`.
//!
//! # Why
//! A provider charges for what it was asked, whether or not the one who asked lives to see the answer. So before a
//! request goes upstream, the entry it would have if nobody heard of it again, its estimate as what it consumed, is
//! written here. That write goes to the page cache: it takes a microsecond, survives the end of this process however that
//! comes, and reaches the disk together with the journal. The place is free when the journal has the request's true
//! entry: the next request writes over it, and what is not written over is cleared about each second. What is found here at
//! a start, and is not in the ledger, is recorded as it stands.
//!
//! # Form
//! Places of 2 KB, which never cross a page: `length u16 | form u8 | checksum 8 | entry in postcard`, big-endian. Length 0 is
//! a free one. One whose checksum is wrong was being written when the process ended: its request had not been sent.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::entry::{Entry, Outcome};
use crate::unit::TokensSource;

use super::block::{Entries, Form, StoredEntry, cut_at, encode};
use super::journal::checksum;

const PLACE: usize = 2048;
const HEAD: usize = 11;
/// Places at most: 256 MB of a file that is as long as the most requests that were ever open at once.
const MAX: u32 = 1 << 17;

/// A place in the file. It is given back by hand, to [`Reservations::clear`], since only who has it knows whether the
/// entry is safe elsewhere.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Slot(u32);

/// The file of open requests.
#[derive(Debug)]
pub(super) struct Reservations {
    file: File,
    free: Mutex<Free>,
    dirty: AtomicBool,
}

#[derive(Debug, Default)]
struct Free {
    slots: Vec<u32>,
    /// Free too, with an entry in them that the journal has. Used before the others: each is a write less.
    stale: Vec<u32>,
    /// From here on none was ever used.
    next: u32,
}

impl Reservations {
    /// Opens or makes the file. Returns what it holds: requests whose end is not known to have been recorded, each in
    /// the place it keeps until it is.
    pub(super) fn open(path: &Path) -> io::Result<(Self, Vec<(Slot, Entry)>)> {
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)?;
        let mut held = Vec::new();
        let mut free = Free::default();
        let mut place = [0; PLACE];
        // The last place ends where its entry does.
        let places = u32::try_from(file.metadata()?.len().div_ceil(PLACE as u64)).unwrap_or(MAX).min(MAX);
        file.set_len(offset(places))?;
        for slot in 0..places {
            file.read_exact_at(&mut place, offset(slot))?;
            match read_place(&place) {
                Some(entry) => held.push((Slot(slot), entry)),
                None => free.slots.push(slot),
            }
        }
        // What ends the file need not be kept; the rest is filled from the beginning.
        let used = held.last().map_or(0, |(slot, _)| slot.0 + 1);
        file.set_len(offset(used))?;
        free.slots.retain(|slot| *slot < used);
        free.slots.reverse();
        free.next = used;
        Ok((Self { file, free: Mutex::new(free), dirty: AtomicBool::new(false) }, held))
    }

    /// A free place; `None` when there are too many open requests.
    pub(super) fn take(&self) -> Option<Slot> {
        let mut free = self.free();
        let slot = free.stale.pop().or_else(|| free.slots.pop());
        if let Some(slot) = slot {
            return Some(Slot(slot));
        }
        let slot = free.next;
        free.next = slot.checked_add(1).filter(|next| *next <= MAX)?;
        Some(Slot(slot))
    }

    /// Writes the entry that a request shall have if this process ends before it does. Written again, the last counts.
    pub(super) fn note(&self, slot: &Slot, mut entry: StoredEntry<'_>) -> io::Result<()> {
        let mut place = [0; PLACE];
        let mut written = encode(&entry, &mut place[HEAD..]);
        if written.is_none() {
            // Long names: those that are counted by fit without those that are not.
            (entry.group, entry.pool, entry.model_requested) =
                (None, None, entry.model_requested.map(|name| cut_at(name, 64)));
            written = encode(&entry, &mut place[HEAD..]);
        }
        let len = written.ok_or(io::ErrorKind::InvalidInput)?;
        place[..2].copy_from_slice(&(len as u16).to_be_bytes());
        place[2] = Form::LAST as u8;
        let checksum = checksum(&place[..3], &place[HEAD..HEAD + len]);
        place[3..HEAD].copy_from_slice(&checksum);
        self.file.write_all_at(&place[..HEAD + len], offset(slot.0))?;
        self.dirty.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// Makes the place free, since the journal has its request's entry. [`Reservations::tidy`] clears it, if no other
    /// request has it by then.
    pub(super) fn release(&self, Slot(slot): Slot) {
        self.free().stale.push(slot);
    }

    /// Makes the place free and forgets what is in it, now.
    pub(super) fn clear(&self, Slot(slot): Slot) {
        if let Err(error) = self.file.write_all_at(&[0; 2], offset(slot)) {
            // It stays taken, and the entry is found in the ledger by the next start.
            return tracing::warn!(%error, "a place for an open request cannot be cleared");
        }
        self.free().slots.push(slot);
    }

    /// Clears what was released and is not in use again. A start looks in the ledger for each entry it finds here; it must
    /// find it there before the ledger is pruned.
    pub(super) fn tidy(&self) {
        let stale = std::mem::take(&mut self.free().stale);
        stale.into_iter().rev().for_each(|slot| self.clear(Slot(slot)));
    }

    fn free(&self) -> MutexGuard<'_, Free> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes everything noted survive a power cut.
    pub(super) fn sync(&self) -> io::Result<()> {
        if self.dirty.swap(false, Ordering::Relaxed) { self.file.sync_data() } else { Ok(()) }
    }
}

/// What becomes of an entry whose request was under way when the process ended.
pub(super) fn as_aborted(mut entry: Entry) -> Entry {
    entry.outcome = Outcome::AbortedByCrash;
    entry.attempts = entry.attempts.max(1);
    if !entry.tokens.is_empty() {
        entry.tokens_source = TokensSource::Estimated;
    }
    entry
}

fn offset(slot: u32) -> u64 {
    u64::from(slot) * PLACE as u64
}

fn read_place(place: &[u8; PLACE]) -> Option<Entry> {
    let len = usize::from(u16::from_be_bytes([place[0], place[1]]));
    let form = Form::from_byte(place[2])?;
    let payload = place.get(HEAD..HEAD + len).filter(|_| len > 0)?;
    if checksum(&place[..3], payload) != place[3..HEAD] {
        return None;
    }
    Entries::new(payload, 1, form).next().map(|entry| entry.to_entry())
}

#[cfg(test)]
mod tests {
    use super::super::block::tests::entry;
    use super::*;

    fn open(dir: &tempfile::TempDir) -> (Reservations, Vec<(Slot, Entry)>) {
        Reservations::open(&dir.path().join("reservations")).unwrap()
    }

    #[test]
    fn what_was_not_cleared_is_found_again() {
        let dir = tempfile::tempdir().unwrap();
        let (file, held) = open(&dir);
        assert!(held.is_empty());
        let slots: Vec<Slot> = (0..5).map(|_| file.take().unwrap()).collect();
        for (n, slot) in slots.iter().enumerate() {
            file.note(slot, StoredEntry::of(&entry(n as u64))).unwrap();
        }
        // Written again, the last counts.
        file.note(&slots[1], StoredEntry::of(&entry(7))).unwrap();
        for (n, slot) in slots.into_iter().enumerate() {
            if n % 2 == 0 {
                file.clear(slot);
            }
        }
        file.sync().unwrap();
        drop(file);
        let (file, held) = open(&dir);
        let found: Vec<_> = held.iter().map(|(_, entry)| (entry.time_ms, entry.tokens)).collect();
        assert_eq!(found, [7, 3].map(|n| (entry(n).time_ms, entry(n).tokens)));
        // Free places are used before new ones.
        let next: Vec<u32> = (0..3).map(|_| file.take().unwrap().0).collect();
        assert_eq!(next, [0, 2, 4]);
    }

    #[test]
    fn what_is_released_is_written_over_or_cleared() {
        let dir = tempfile::tempdir().unwrap();
        let (file, _) = open(&dir);
        let slots: Vec<Slot> = (0..3).map(|_| file.take().unwrap()).collect();
        for (n, slot) in slots.iter().enumerate() {
            file.note(slot, StoredEntry::of(&entry(n as u64))).unwrap();
        }
        slots.into_iter().for_each(|slot| file.release(slot));
        // The last is taken again, and its new entry stands in for the old.
        let again = file.take().unwrap();
        assert_eq!(again, Slot(2));
        file.note(&again, StoredEntry::of(&entry(9))).unwrap();
        let found = || open(&dir).1.iter().map(|(_, entry)| entry.time_ms).collect::<Vec<_>>();
        assert_eq!(found(), [0, 1, 9].map(|n| entry(n).time_ms));
        file.tidy();
        assert_eq!(found(), [entry(9).time_ms]);
        // Cleared ones are free still.
        assert_eq!(file.take(), Some(Slot(0)));
    }

    #[test]
    fn a_place_half_written_holds_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("reservations");
        let (file, _) = open(&dir);
        let slot = file.take().unwrap();
        file.note(&slot, StoredEntry::of(&entry(1))).unwrap();
        let good = std::fs::read(&path).unwrap();
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 0x41;
            bad.resize(PLACE, 0);
            std::fs::write(&path, &bad).unwrap();
            assert_eq!(open(&dir).1.len(), 0, "at {at}");
        }
    }

    #[test]
    fn long_names_keep_what_is_counted_by() {
        let dir = tempfile::tempdir().unwrap();
        let (file, _) = open(&dir);
        let long: std::sync::Arc<str> = "\u{1F511}".repeat(128).into();
        let text = || Some(long.clone());
        let entry = Entry { user: text(), team: text(), plan: text(), group: text(), pool: text(), ..entry(1) };
        file.note(&file.take().unwrap(), StoredEntry::of(&entry)).unwrap();
        let (_, held) = open(&dir);
        let found = &held[0].1;
        assert_eq!((&found.user, &found.team, &found.plan, &found.group), (&text(), &text(), &text(), &None));
        assert_eq!(found.tokens, entry.tokens);
    }

    #[test]
    fn there_is_an_end() {
        let dir = tempfile::tempdir().unwrap();
        let (file, _) = open(&dir);
        assert!((0..MAX).all(|_| file.take().is_some()));
        assert_eq!(file.take(), None);
    }
}
