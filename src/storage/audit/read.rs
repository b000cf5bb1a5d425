//! Reading the audit log: what was done, newest first, and whether the chain is whole.
//!
//! Owns questions; leaves lines to `audit::chain`. The files are read while others append to them: what is behind the head
//! that a question began with is not looked at.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::chain::{AuditRecord, Head, Key, Link, read};
use super::log::segments;

/// Which records are asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AuditFilter {
    /// Of this actor.
    pub actor: Option<String>,
    /// On this object; its name without its kind will do.
    pub object: Option<String>,
    /// Of this action, or with `key.` or `key` those on such records.
    pub action: Option<String>,
    /// Not before this wall time, milliseconds.
    pub since_ms: Option<u64>,
    /// Oldest first, rather than newest first.
    pub oldest_first: bool,
    /// Beyond the record of this number: where the last page ended.
    pub cursor: Option<u64>,
    /// At most so many.
    pub limit: usize,
}

impl AuditFilter {
    fn wants(&self, record: &AuditRecord) -> bool {
        let object = |said: &String| {
            record.object == *said || record.object.split_once(' ').is_some_and(|(_, name)| name == said)
        };
        let action = |said: &String| {
            let about = said.strip_suffix('.').unwrap_or(said);
            record.action == *said || record.action.split_once('.').is_some_and(|(kind, _)| kind == about)
        };
        self.actor.as_ref().is_none_or(|said| record.by.actor == *said)
            && self.object.as_ref().is_none_or(object)
            && self.action.as_ref().is_none_or(action)
    }

    fn is_too_old(&self, record: &AuditRecord) -> bool {
        let time = crate::clock::parse_rfc3339(&record.time).unwrap_or(u64::MAX);
        self.since_ms.is_some_and(|since| time < since)
    }
}

/// A page of records.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct AuditPage {
    /// The records.
    pub records: Vec<AuditRecord>,
    /// What asks for the next page, when more may follow.
    pub next: Option<u64>,
}

/// What was found when the chain was followed from its beginning to its end.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct AuditVerdict {
    /// True when every record that was ever written is there as it was written, but for those removed for their age.
    pub whole: bool,
    /// Records found good, up to the first that is not.
    pub records: u64,
    /// The first record kept.
    pub first: u64,
    /// The last record there should be.
    pub last: u64,
    /// Its hash: noted elsewhere, it proves later that the log was not put back to an earlier state.
    pub head: String,
    /// The first record that is not as it should be.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bad: Option<BadRecord>,
}

/// A record that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct BadRecord {
    /// Its number, or what it should be.
    pub seq: u64,
    /// Where it stands, or should.
    pub file: PathBuf,
    /// Which line of that.
    pub line: u64,
    /// What is wrong.
    pub reason: String,
}

/// The records a filter means, up to `head`.
pub(super) fn records(dir: &Path, key: &Key, head: Head, filter: &AuditFilter) -> io::Result<AuditPage> {
    let mut page = AuditPage::default();
    let (mut from, mut end) = (0, head.last.seq.saturating_add(1));
    match filter.cursor {
        Some(cursor) if filter.oldest_first => from = cursor.saturating_add(1),
        Some(cursor) => end = end.min(cursor),
        None => {}
    }
    let mut files = segments(dir)?;
    // Where the next file begins, this one ends.
    let starts: Vec<u64> = files.iter().map(|(first, _)| *first).skip(1).chain([u64::MAX]).collect();
    let mut files: Vec<(u64, u64, PathBuf)> =
        files.drain(..).zip(starts).map(|((first, path), next)| (first, next, path)).collect();
    files.retain(|(first, next, _)| *first < end && *next > from);
    if !filter.oldest_first {
        files.reverse();
    }
    for (_, _, path) in files {
        let bytes = fs::read(&path)?;
        let mut lines: Vec<&[u8]> = bytes.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).collect();
        if !filter.oldest_first {
            lines.reverse();
        }
        for line in lines {
            // What cannot be read is for `verify` to tell.
            let Ok((record, _)) = read(line, key) else { continue };
            if !(from..end).contains(&record.seq) {
                continue;
            }
            match filter.is_too_old(&record) {
                true if filter.oldest_first => continue,
                true => return Ok(page),
                false if !filter.wants(&record) => continue,
                false => {}
            }
            if page.records.len() == filter.limit {
                page.next = page.records.last().map(|last| last.seq);
                return Ok(page);
            }
            page.records.push(record);
        }
    }
    Ok(page)
}

/// Follows the chain up to `head`; `noted` is a place in it that was written down elsewhere.
pub(super) fn verify(dir: &Path, key: &Key, head: Head, noted: Option<(u64, &str)>) -> io::Result<AuditVerdict> {
    let first = head.cut.seq + 1;
    let mut verdict = AuditVerdict { first, last: head.last.seq, head: head.last.hex(), ..AuditVerdict::default() };
    let mut walk = Walk {
        key,
        end: head.last.seq,
        last: head.cut,
        noted,
        seen: None,
        at_end: (head.last == head.cut).then_some(head.last),
    };
    let mut place = (dir.join(format!("{first:016}.jsonl")), 0);
    let mut wrong = None;
    'files: for (_, path) in segments(dir)? {
        let bytes = fs::read(&path)?;
        place = (path, 0);
        for line in bytes.split_inclusive(|byte| *byte == b'\n') {
            place.1 += 1;
            let whole = line.strip_suffix(b"\n");
            if whole.is_none() && walk.last.seq >= walk.end {
                // It is being written.
                break;
            }
            // What is behind the end has been written since, and follows too.
            wrong = walk.step(whole.unwrap_or(line)).err();
            if wrong.is_some() {
                break 'files;
            }
        }
    }
    verdict.records = walk.last.seq.min(walk.end) - head.cut.seq;
    let wrong = wrong.or_else(|| walk.finish(head).err());
    verdict.bad = wrong.map(|(seq, reason)| BadRecord { seq, file: place.0, line: place.1, reason });
    verdict.whole = verdict.bad.is_none();
    Ok(verdict)
}

struct Walk<'a> {
    key: &'a Key,
    end: u64,
    last: Link,
    noted: Option<(u64, &'a str)>,
    /// The hash at the noted place.
    seen: Option<String>,
    /// The hash at the end.
    at_end: Option<Link>,
}

type Wrong = (u64, String);

impl Walk<'_> {
    fn step(&mut self, line: &[u8]) -> Result<(), Wrong> {
        let want = self.last.seq + 1;
        let (record, link) = read(line, self.key).map_err(|bad| (want, bad.as_str().to_owned()))?;
        if record.seq > want {
            return Err((want, format!("is missing: record {} stands in its place", record.seq)));
        }
        if record.seq < want {
            return Err((want, format!("is not here: record {} is repeated or out of order", record.seq)));
        }
        if record.prev != self.last.hex() {
            return Err((want, "does not follow from the record before".to_owned()));
        }
        self.last = link;
        if link.seq == self.end {
            self.at_end = Some(link);
        }
        if self.noted.is_some_and(|(seq, _)| seq == link.seq) {
            self.seen = Some(link.hex());
        }
        Ok(())
    }

    fn finish(&self, head: Head) -> Result<(), Wrong> {
        if self.last.seq < self.end {
            return Err((self.last.seq + 1, format!("is missing, and all up to {}", self.end)));
        }
        if self.at_end != Some(head.last) {
            return Err((self.end, "is not the record that the head names".to_owned()));
        }
        match self.noted {
            Some((seq, _)) if seq > self.end => Err((
                seq,
                format!("was noted, and the log has come to {} only: an earlier state was put back", self.end),
            )),
            // One that was removed for its age proves nothing.
            Some((seq, hash)) if seq > head.cut.seq && self.seen.as_deref() != Some(hash) => {
                Err((seq, "is not the one that was noted".to_owned()))
            }
            _ => Ok(()),
        }
    }
}
