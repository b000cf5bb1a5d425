//! The audit log's files: `audit/<number of its first record>.jsonl`, and `audit/head`.
//!
//! Owns appending, what a killed process left, and removing what is too old; leaves the form of a record to
//! `audit::chain`, and reading to `audit::read`.
//!
//! # Order
//! Records are appended and reach the disk before what they tell of is done. Then the head follows. A process that is killed
//! in between leaves records that the head does not know yet; their macs say whose they are, and the next start takes them
//! in. A line without an end was being written when the process ended, and what it tells of was not done: it is cut off.
//! What is wrong beyond that is damage: the log goes on in a new file after the place that the head names, and the gap
//! stays to be found.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::chain::{Head, Key, Link, put, read};
use crate::audit::Note;

const HEAD: &str = "head";
const ENDING: &str = "jsonl";
/// A file is closed at this length, so that what is too old can be removed by the file.
pub(super) const SEGMENT_MAX: u64 = 4 << 20;

/// The open log.
#[derive(Debug)]
pub(in crate::storage) struct Log {
    dir: PathBuf,
    key: Key,
    head: Head,
    head_file: File,
    /// The last file, once something was to be appended, and its length.
    tail: Option<(File, u64)>,
    segment_max: u64,
}

/// What opening found amiss.
pub(super) type Damage = Option<String>;

impl Log {
    /// Opens or makes the log in `dir`. `anchor` is where the store says the log had come to, at least.
    pub(super) fn open(dir: &Path, key: Key, anchor: Option<Link>) -> io::Result<(Self, Damage)> {
        DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        let path = dir.join(HEAD);
        let head_file =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)?;
        let known = Head::read(&fs::read(dir.join(HEAD))?, &key);
        let files = segments(dir)?;
        let lost = known.is_none() && (anchor.is_some() || !files.is_empty());
        let (mut head, mut damage) = (known.unwrap_or(Head::EMPTY), None);
        if let Some(anchor) = anchor.filter(|anchor| anchor.seq > head.last.seq) {
            // Only a head that was put back, or removed, is behind the store.
            damage = Some(format!("its head is older than the store: record {}", anchor.seq));
            head.last = anchor;
        }
        let mut tail = None;
        if lost {
            damage = Some("its head is lost or was changed".to_owned());
            let there = files.last().map_or(Ok(0), |(_, path)| last_seq(path, &key))?;
            // Nobody knows what is missing at the end: the place of one record stays empty, for `verify` to find.
            head.last = Link { seq: head.last.seq.max(there) + 1, hash: [0xff; 32] };
        } else if let Some((_, path)) = files.last() {
            match take_up(path, &key, head.last)? {
                Ok((last, file)) => (head.last, tail) = (last, Some(file)),
                Err(reason) => damage = damage.or(Some(reason)),
            }
        } else if head.last.seq > head.cut.seq {
            damage = damage.or_else(|| Some("its files are gone".to_owned()));
        }
        let log = Self { dir: dir.to_owned(), key, head, head_file, tail, segment_max: SEGMENT_MAX };
        log.put_head()?;
        log.head_file.sync_all()?;
        File::open(dir)?.sync_all()?;
        log.remove_cut()?;
        Ok((log, damage))
    }

    pub(in crate::storage) fn head(&self) -> Link {
        self.head.last
    }

    pub(super) fn whole_head(&self) -> Head {
        self.head
    }

    /// Appends records, all or none; they are on disk once this returns.
    pub(in crate::storage) fn append(&mut self, wall_ms: u64, notes: Vec<Note>) -> io::Result<Link> {
        let mut out = Vec::new();
        let mut last = self.head.last;
        if notes.is_empty() {
            return Ok(last);
        }
        for note in notes {
            last = put(&mut out, &self.key, last, wall_ms, note)?;
        }
        let (file, len) = match self.tail.take() {
            Some((file, len)) if len < self.segment_max => (file, len),
            _ => (self.new_segment()?, 0),
        };
        // What an append that failed has left must not be behind this one.
        let written = file.set_len(len).and_then(|()| file.write_all_at(&out, len)).and_then(|()| file.sync_data());
        if let Err(error) = written {
            let _still_failing = file.set_len(len);
            self.tail = Some((file, len));
            return Err(error);
        }
        self.tail = Some((file, len + out.len() as u64));
        self.head.last = last;
        // The records are safe: a head that is behind is made good at the next append, or the next start.
        if let Err(error) = self.put_head() {
            tracing::warn!(%error, "the head of the audit log cannot be written");
        }
        Ok(last)
    }

    fn new_segment(&self) -> io::Result<File> {
        let path = self.dir.join(format!("{:016}.{ENDING}", self.head.last.seq + 1));
        // One that is there already was given up as damaged, or is what a failed write left.
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).mode(0o600).open(path)?;
        File::open(&self.dir)?.sync_all()?;
        Ok(file)
    }

    fn put_head(&self) -> io::Result<()> {
        let (at, slot) = self.head.slot(&self.key);
        self.head_file.write_all_at(&slot, at)
    }

    /// The last record that may go: that before the first file which holds one younger than `oldest_ms`.
    pub(in crate::storage) fn too_old(&self, oldest_ms: u64) -> io::Result<Option<u64>> {
        let files = segments(&self.dir)?;
        let mut through = None;
        for pair in files.windows(2) {
            // The file after says when this one ended.
            if first_time(&pair[1].1, &self.key)?.is_none_or(|time| time > oldest_ms) {
                break;
            }
            through = Some(pair[1].0 - 1);
        }
        Ok(through.filter(|through| *through > self.head.cut.seq))
    }

    /// Removes the records up to `through`, which [`Log::too_old`] gave, and says so in the head.
    pub(in crate::storage) fn cut(&mut self, through: u64) -> io::Result<()> {
        let files = segments(&self.dir)?;
        let Some((_, next)) = files.iter().find(|(first, _)| *first == through + 1) else { return Ok(()) };
        let bytes = fs::read(next)?;
        let first = bytes.split(|byte| *byte == b'\n').next().unwrap_or_default();
        let Ok((record, _)) = read(first, &self.key) else {
            return Err(io::Error::other(format!("record {} is damaged", through + 1)));
        };
        let hash = blake3::Hash::from_hex(record.prev).map_err(io::Error::other)?;
        self.head.cut = Link { seq: through, hash: hash.into() };
        self.put_head()?;
        self.head_file.sync_data()?;
        self.remove_cut()
    }

    fn remove_cut(&self) -> io::Result<()> {
        let files = segments(&self.dir)?;
        for pair in files.windows(2).filter(|pair| pair[1].0 <= self.head.cut.seq + 1) {
            fs::remove_file(&pair[0].1)?;
        }
        Ok(())
    }

    #[cfg(test)]
    pub(super) fn set_segment_max(&mut self, bytes: u64) {
        self.segment_max = bytes;
    }
}

/// The files, and the number of the first record of each, in order.
pub(super) fn segments(dir: &Path) -> io::Result<Vec<(u64, PathBuf)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        let is_ours = path.extension().is_some_and(|ending| ending == ENDING);
        let first = path.file_stem().and_then(|stem| stem.to_str()?.parse().ok()).filter(|_| is_ours);
        found.extend(first.map(|first| (first, path)));
    }
    found.sort_unstable();
    Ok(found)
}

/// The last record, and its file, open at this length.
type End = (Link, (File, u64));

/// Opens the last file at its end, which is at `head` or beyond; what stands behind the last whole line is cut off.
fn take_up(path: &Path, key: &Key, head: Link) -> io::Result<Result<End, String>> {
    let bytes = fs::read(path)?;
    let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
    let last = bytes[..whole].trim_ascii_end();
    let last = &last[last.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1)..];
    let file = OpenOptions::new().read(true).write(true).open(path)?;
    let link = match read(last, key) {
        Ok((_, link)) => link,
        // Made, and nothing in it yet.
        Err(_) if whole == 0 && stem(path) == Some(head.seq + 1) => head,
        Err(bad) => return Ok(Err(format!("its last record {}", bad.as_str()))),
    };
    if link.seq < head.seq || link.seq == head.seq && link != head {
        return Ok(Err(format!("it ends with record {}, but had come to {}", link.seq, head.seq)));
    }
    if whole < bytes.len() {
        file.set_len(whole as u64)?;
    }
    Ok(Ok((link, (file, whole as u64))))
}

/// The number of the last record of a file that can be read.
fn last_seq(path: &Path, key: &Key) -> io::Result<u64> {
    let bytes = fs::read(path)?;
    let mut good = bytes.rsplit(|byte| *byte == b'\n').filter_map(|line| read(line, key).ok());
    Ok(good.next().map_or(0, |(_, link)| link.seq))
}

fn stem(path: &Path) -> Option<u64> {
    path.file_stem()?.to_str()?.parse().ok()
}

/// When the first record of a file was made.
fn first_time(path: &Path, key: &Key) -> io::Result<Option<u64>> {
    let bytes = fs::read(path)?;
    let first = bytes.split(|byte| *byte == b'\n').next().unwrap_or_default();
    let record = read(first, key).ok();
    Ok(record.and_then(|(record, _)| crate::clock::parse_rfc3339(&record.time).ok()))
}
