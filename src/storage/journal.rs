//! The journal: where an entry is safe first, with one write a commit.
//!
//! Owns the file `journal` and its frames. Leaves moving entries on into packed blocks to `storage::tail`.
//!
//! # Why
//! A flush of sled costs some 250 us of processor time over its eight threads, whatever it writes: at a commit every
//! 10 ms more than the requests themselves. One appended write costs a few, and survives the end of this process as
//! well. So entries are committed here, gather until they are worth a packed block, and go to sled then. The journal
//! starts anew once sled has reached the disk, so at any time it holds all that sled could still lose.
//!
//! # Form
//! Frames: `payload length u32 | first sequence number u64 | form u8 | entries u24 | checksum 8 | payload`, big-endian, the
//! payload being entries in postcard. Form 0 is what was written before there were two: the first. A frame that is cut or whose checksum is wrong ends the journal: it was being
//! written when the process ended.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::block::{Entries, Form, Packed};

const HEAD_LEN: usize = 24;
/// Longer than any batch: a damaged length is not believed.
const FRAME_MAX: usize = 64 << 20;

/// Entries read back, `first_seq` and on.
#[derive(Debug)]
pub(super) struct Frame {
    pub(super) first_seq: u64,
    pub(super) entries: u32,
    form: Form,
    payload: Vec<u8>,
}

impl Frame {
    pub(super) fn iter(&self) -> Entries<'_> {
        Entries::new(&self.payload, self.entries, self.form)
    }
}

/// The open journal.
#[derive(Debug)]
pub(super) struct Journal {
    path: PathBuf,
    file: File,
    len: u64,
    /// Written since the last [`Journal::sync`].
    dirty: bool,
    buffer: Vec<u8>,
}

impl Journal {
    /// Opens or makes the journal; what follows its last whole frame is cut off.
    pub(super) fn open(path: &Path) -> io::Result<(Self, Vec<Frame>)> {
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)?;
        let mut journal = Self { path: path.to_owned(), file, len: 0, dirty: false, buffer: Vec::new() };
        let frames = journal.read()?;
        journal.file.set_len(journal.len)?;
        Ok((journal, frames))
    }

    /// Every whole frame, from the beginning.
    pub(super) fn read(&mut self) -> io::Result<Vec<Frame>> {
        let bytes = fs::read(&self.path)?;
        let mut frames = Vec::new();
        let mut rest = &bytes[..];
        while let Some((frame, after)) = read_frame(rest) {
            frames.push(frame);
            rest = after;
        }
        self.len = (bytes.len() - rest.len()) as u64;
        Ok(frames)
    }

    /// Appends entries as one frame: all of it, or none. It survives the end of this process, not yet a power cut.
    pub(super) fn append(&mut self, first_seq: u64, entries: &Packed) -> io::Result<()> {
        self.buffer.clear();
        put_frame(&mut self.buffer, first_seq, entries);
        if let Err(error) = self.file.write_all_at(&self.buffer, self.len) {
            // What was written of it would be overwritten by the next frame, but a longer one must not follow it.
            let _still_full = self.file.set_len(self.len);
            return Err(error);
        }
        self.len += self.buffer.len() as u64;
        self.dirty = true;
        if self.buffer.capacity() > 1 << 20 {
            self.buffer = Vec::new();
        }
        Ok(())
    }

    /// Makes everything appended survive a power cut.
    pub(super) fn sync(&mut self) -> io::Result<()> {
        if self.dirty {
            self.file.sync_data()?;
            self.dirty = false;
        }
        Ok(())
    }

    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// Starts anew with only these entries. For when everything before them has reached the disk elsewhere.
    pub(super) fn restart(&mut self, first_seq: u64, entries: &Packed) -> io::Result<()> {
        let next = self.path.with_extension("next");
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).mode(0o600).open(&next)?;
        self.buffer.clear();
        if entries.entries() > 0 {
            put_frame(&mut self.buffer, first_seq, entries);
        }
        file.write_all_at(&self.buffer, 0)?;
        file.sync_all()?;
        fs::rename(&next, &self.path)?;
        self.len = self.buffer.len() as u64;
        self.file = file;
        self.dirty = false;
        match self.path.parent() {
            Some(dir) => File::open(dir)?.sync_all(),
            None => Ok(()),
        }
    }
}

fn put_frame(out: &mut Vec<u8>, first_seq: u64, entries: &Packed) {
    let start = out.len();
    let payload = entries.bytes();
    out.extend_from_slice(&(payload.len() as u32).to_be_bytes());
    out.extend_from_slice(&first_seq.to_be_bytes());
    out.extend_from_slice(&(u32::from(Form::LAST as u8) << 24 | entries.entries() as u32).to_be_bytes());
    let checksum = checksum(&out[start..], payload);
    out.extend_from_slice(&checksum);
    out.extend_from_slice(payload);
}

fn read_frame(bytes: &[u8]) -> Option<(Frame, &[u8])> {
    let (head, rest) = bytes.split_first_chunk::<HEAD_LEN>()?;
    let number = |at: usize| u32::from_be_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
    let len = number(0) as usize;
    let (payload, after) = rest.split_at_checked(len).filter(|_| len <= FRAME_MAX)?;
    if checksum(&head[..16], payload) != head[16..] {
        return None;
    }
    let first_seq = u64::from(number(4)) << 32 | u64::from(number(8));
    let form = Form::from_byte(head[12].max(Form::V1 as u8))?;
    Some((Frame { first_seq, entries: number(12) & 0x00ff_ffff, form, payload: payload.to_vec() }, after))
}

/// Eight bytes of blake3 over both: what tells a whole piece of a file from one that was being written. Against damage, not
/// against an enemy.
pub(super) fn checksum(head: &[u8], payload: &[u8]) -> [u8; 8] {
    let hash = blake3::Hasher::new().update(head).update(payload).finalize();
    let mut out = [0; 8];
    out.copy_from_slice(&hash.as_bytes()[..8]);
    out
}

#[cfg(test)]
mod tests {
    use super::super::block::tests::entry;
    use super::*;

    fn packed(range: std::ops::Range<u64>) -> Packed {
        let mut packed = Packed::default();
        range.for_each(|n| packed.push(&entry(n)));
        packed
    }

    fn times(frames: &[Frame]) -> Vec<u64> {
        frames.iter().flat_map(Frame::iter).map(|entry| entry.time_ms - 1_700_000_000_000).collect()
    }

    #[test]
    fn a_cut_or_damaged_end_costs_only_itself() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal");
        let (mut journal, frames) = Journal::open(&path).unwrap();
        assert!(frames.is_empty());
        journal.append(0, &packed(0..3)).unwrap();
        let first = journal.len();
        journal.append(3, &packed(3..5)).unwrap();
        let good = fs::read(&path).unwrap();
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 1;
            for bytes in [&bad[..], &good[..at]] {
                fs::write(&path, bytes).unwrap();
                let (mut journal, frames) = Journal::open(&path).unwrap();
                let want = if (at as u64) < first { 0 } else { 3 };
                assert_eq!(times(&frames), (0..want).collect::<Vec<_>>(), "at {at}");
                journal.append(want, &packed(want..want + 1)).unwrap();
                let (_, frames) = Journal::open(&path).unwrap();
                assert_eq!(times(&frames), (0..=want).collect::<Vec<_>>(), "goes on after {at}");
            }
        }
    }

    #[test]
    fn frames_of_the_first_form_are_still_read() {
        let (seq, mut frame) = (7, Vec::new());
        put_frame(&mut frame, seq, &Packed::default());
        // Before there were two forms, this byte was the first of the number of entries, and always 0.
        frame[12] = 0;
        let checksum = checksum(&frame[..16], &[]);
        frame[16..24].copy_from_slice(&checksum);
        let (read, rest) = read_frame(&frame).unwrap();
        assert_eq!((read.first_seq, read.entries, read.form, rest.len()), (seq, 0, Form::V1, 0));
        frame[12] = 9;
        assert!(read_frame(&frame).is_none(), "a later version's");
    }

    #[test]
    fn starts_anew() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal");
        let (mut journal, _) = Journal::open(&path).unwrap();
        journal.append(0, &packed(0..50)).unwrap();
        journal.sync().unwrap();
        journal.restart(48, &packed(48..50)).unwrap();
        journal.append(50, &packed(50..51)).unwrap();
        let (mut journal, frames) = Journal::open(&path).unwrap();
        assert_eq!((frames[0].first_seq, times(&frames)), (48, vec![48, 49, 50]));
        journal.restart(51, &Packed::default()).unwrap();
        assert_eq!((journal.len(), journal.read().unwrap().len()), (0, 0));
    }
}
