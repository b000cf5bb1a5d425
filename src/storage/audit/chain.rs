//! One record of the audit log, and what it is chained by.
//!
//! Owns a line's form and its checks, and the head's; leaves files to `audit::log`.
//!
//! # Form
//! A line is a JSON object that ends in `,"hash":"<64 hex>","mac":"<64 hex>"}`. The hash is blake3 of all that stands before
//! those two fields, and among that is `prev`, the hash of the record before: anybody can follow the chain with `b3sum`.
//! The mac is the keyed hash of the hash: who has the files but not the master key can make no record.
//!
//! The head says where the log has come to and where it begins, with a mac of its own: without it the last records could be
//! cut off, or the first. It is kept twice, each place written in turn, so that one is whole whatever happens.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use zeroize::Zeroizing;

use crate::audit::{Actor, Note, Outcome};
use crate::clock::rfc3339;
use crate::virtual_key::DigestKey;

const HASH: &str = ",\"hash\":\"";
const MAC: &str = "\",\"mac\":\"";
const END: &str = "\"}";
const HEX: usize = 64;
const TRAILER: usize = HASH.len() + HEX + MAC.len() + HEX + END.len();

/// The key of macs: made of one that is sealed in the store, so that a new master key does not change it.
pub(super) struct Key(Zeroizing<[u8; 32]>);

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Key([redacted])")
    }
}

impl Key {
    pub(super) fn new(secret: &DigestKey) -> Self {
        Self(Zeroizing::new(blake3::derive_key("sidekey v1 audit log", secret.expose())))
    }

    fn mac(&self, bytes: &[u8]) -> blake3::Hash {
        blake3::keyed_hash(&self.0, bytes)
    }
}

/// A place in the chain: so many records, the last of this hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::storage) struct Link {
    pub(in crate::storage) seq: u64,
    pub(in crate::storage) hash: [u8; 32],
}

impl Link {
    /// Before the first record.
    pub(super) const START: Self = Self { seq: 0, hash: [0; 32] };

    pub(super) fn hex(&self) -> String {
        blake3::Hash::from(self.hash).to_hex().to_string()
    }
}

/// A record. Its JSON is, byte for byte, its line in the file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct AuditRecord {
    /// Counts records from 1.
    pub seq: u64,
    /// When; RFC 3339.
    #[cfg_attr(test, schemars(extend("format" = "date-time")))]
    pub time: String,
    /// Who.
    #[serde(flatten)]
    pub by: Actor,
    /// What was done.
    pub action: String,
    /// To what.
    pub object: String,
    /// How it went.
    pub result: Outcome,
    /// How many times, where one record stands for several.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub count: Option<u64>,
    /// The record before, without what is secret.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before: Option<Value>,
    /// The record after, without what is secret.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<Value>,
    /// The hash of the record before.
    pub prev: String,
    /// The hash of all of the above, as it stands in the file.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub hash: String,
    /// The hash of that with the store's key.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub mac: String,
}

/// Appends the line of a record after `last`; gives the new end.
pub(super) fn put(out: &mut Vec<u8>, key: &Key, last: Link, wall_ms: u64, note: Note) -> serde_json::Result<Link> {
    let Note { by, action, object, before, after, result, count } = note;
    let seq = last.seq + 1;
    let (time, prev) = (rfc3339(wall_ms), last.hex());
    let (hash, mac) = (String::new(), String::new());
    let record = AuditRecord { seq, time, by, action, object, result, count, before, after, prev, hash, mac };
    let start = out.len();
    serde_json::to_writer(&mut *out, &record)?;
    // The trailer closes the object.
    out.pop();
    let hash = blake3::hash(&out[start..]);
    out.extend_from_slice(trailer(&hash, key).as_bytes());
    out.push(b'\n');
    Ok(Link { seq, hash: hash.into() })
}

/// Why a line is not the record it should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BadLine {
    /// It has not the form of a record.
    Form,
    /// Its hash is not that of what stands before it.
    Hash,
    /// It was not written with this store's key.
    Mac,
}

impl BadLine {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Form => "is not a record",
            Self::Hash => "was changed",
            Self::Mac => "was not written by this sidekey",
        }
    }
}

/// Reads a line, without its end, and checks it in itself.
pub(super) fn read(line: &[u8], key: &Key) -> Result<(AuditRecord, Link), BadLine> {
    let (body, said) = line.split_at_checked(line.len().wrapping_sub(TRAILER)).ok_or(BadLine::Form)?;
    let hash = blake3::hash(body);
    let ours = trailer(&hash, key);
    // As bytes: a number may be written in more than one way.
    if said != ours.as_bytes() {
        let same_hash = said.starts_with(&ours.as_bytes()[..HASH.len() + HEX]);
        return Err(match said.starts_with(HASH.as_bytes()) && said.ends_with(END.as_bytes()) {
            true if same_hash => BadLine::Mac,
            true => BadLine::Hash,
            false => BadLine::Form,
        });
    }
    let record: AuditRecord = serde_json::from_slice(line).map_err(|_| BadLine::Form)?;
    let link = Link { seq: record.seq, hash: hash.into() };
    Ok((record, link))
}

fn trailer(hash: &blake3::Hash, key: &Key) -> String {
    [HASH, &hash.to_hex(), MAC, &key.mac(hash.as_bytes()).to_hex(), END].concat()
}

/// Where the log begins and ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Head {
    /// The last record.
    pub(super) last: Link,
    /// The last record that was removed for its age.
    pub(super) cut: Link,
}

const SLOT_LEN: usize = 2 * (8 + 32) + 32;
/// Far enough apart that no write to one touches the other.
pub(super) const SLOT_STEP: u64 = 4096;

impl Head {
    pub(super) const EMPTY: Self = Self { last: Link::START, cut: Link::START };

    /// Its bytes, and where in the file they belong.
    pub(super) fn slot(&self, key: &Key) -> (u64, Vec<u8>) {
        let mut out = Vec::with_capacity(SLOT_LEN);
        for link in [self.last, self.cut] {
            out.extend_from_slice(&link.seq.to_be_bytes());
            out.extend_from_slice(&link.hash);
        }
        let mac = key.mac(&[b"head", &out[..]].concat());
        out.extend_from_slice(mac.as_bytes());
        ((self.last.seq % 2) * SLOT_STEP, out)
    }

    /// The later of the two that are whole.
    pub(super) fn read(file: &[u8], key: &Key) -> Option<Self> {
        let slots = [0, SLOT_STEP as usize].into_iter();
        let whole = slots.filter_map(|at| Self::read_slot(file.get(at..at + SLOT_LEN)?, key));
        whole.max_by_key(|head| head.last.seq)
    }

    fn read_slot(slot: &[u8], key: &Key) -> Option<Self> {
        let (body, mac) = slot.split_last_chunk::<32>()?;
        if key.mac(&[b"head", body].concat()) != *mac {
            return None;
        }
        let link = |at: usize| {
            let (seq, hash) = body[at..at + 40].split_first_chunk::<8>()?;
            Some(Link { seq: u64::from_be_bytes(*seq), hash: hash.try_into().ok()? })
        };
        Some(Self { last: link(0)?, cut: link(40)? })
    }
}
