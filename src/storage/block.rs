//! Ledger entries packed into blocks small enough for one row.
//!
//! Owns the stored form of an entry and of a block. Leaves when entries become blocks to `storage::tail` and reading them in
//! order to `storage::query`.
//!
//! # Form
//! Key: `epoch ms u64 | first sequence number u64`, big-endian. Every entry of a block arrived at or before its epoch,
//! and epochs never step back. Value: `form u8 | codec u8 | entries u16 | earliest ms u64 | latest ms u64 | unpacked
//! length u32`, then the entries in postcard, one after the other, plain or as one zstd frame.

use serde::{Deserialize, Serialize};

use crate::entry::{Entry, Outcome};
use crate::id::{KeyId, KeySource, RequestId, ScopeId};
use crate::unit::{ServiceTier, TokensSource, Usage};

use super::engine::MAX_VALUE;

pub(super) const HEAD_LEN: usize = 24;
const LEVEL: i32 = 1;
/// What an unpacked block may be at most: a guard against a damaged length.
const MAX_UNPACKED: usize = 1 << 20;
pub(super) const KEY_LEN: usize = 16;

/// A block's key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct BlockKey {
    pub(super) epoch_ms: u64,
    pub(super) first_seq: u64,
}

impl BlockKey {
    pub(super) fn to_bytes(self) -> [u8; KEY_LEN] {
        (u128::from(self.epoch_ms) << 64 | u128::from(self.first_seq)).to_be_bytes()
    }

    pub(super) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let both = u128::from_be_bytes(bytes.try_into().ok()?);
        Some(Self { epoch_ms: (both >> 64) as u64, first_seq: both as u64 })
    }
}

/// How a block's entries are packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Codec {
    Plain = 0,
    Zstd = 1,
}

/// How an entry is written. All are read, the last is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// Six figures of usage, no price version.
    V1 = 1,
    V2 = 2,
}

impl Form {
    pub(super) const LAST: Self = Self::V2;

    pub(super) fn from_byte(byte: u8) -> Option<Self> {
        [Self::V1, Self::V2].into_iter().find(|form| *form as u8 == byte)
    }
}

/// What a block says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Head {
    form: Form,
    pub(super) codec: Codec,
    pub(super) entries: u16,
    pub(super) earliest_ms: u64,
    pub(super) latest_ms: u64,
    unpacked: u32,
}

impl Head {
    /// A block without entries, of this time.
    pub(super) fn empty(time_ms: u64) -> [u8; HEAD_LEN] {
        let mut out = [0; HEAD_LEN];
        out[0] = Form::LAST as u8;
        out[4..12].copy_from_slice(&time_ms.to_be_bytes());
        out[12..20].copy_from_slice(&time_ms.to_be_bytes());
        out
    }

    /// `None` when `value` is not a block, or one of a later version.
    pub(super) fn read(value: &[u8]) -> Option<Self> {
        let head = value.first_chunk::<HEAD_LEN>()?;
        let u64_at = |at: usize| head[at..at + 8].try_into().ok().map(u64::from_be_bytes);
        let form = Form::from_byte(head[0])?;
        let codec = match head[1] {
            0 => Codec::Plain,
            1 => Codec::Zstd,
            _ => return None,
        };
        let unpacked = u32::from_be_bytes(head[20..24].try_into().ok()?);
        let entries = u16::from_be_bytes([head[2], head[3]]);
        Some(Self { form, codec, entries, earliest_ms: u64_at(4)?, latest_ms: u64_at(12)?, unpacked })
    }
}

/// An entry as stored, borrowing its texts. Field order is the form: a new field needs a new [`Form`].
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct StoredEntry<'a> {
    request_id: [u8; 16],
    pub(super) time_ms: u64,
    pub(super) virtual_key: Option<[u8; 8]>,
    pub(super) user: Option<&'a str>,
    pub(super) team: Option<&'a str>,
    pub(super) group: Option<&'a str>,
    pub(super) provider: &'a str,
    pub(super) provider_key: Option<[u8; 8]>,
    pub(super) key_source: Option<KeySource>,
    dialect: &'a str,
    pub(super) endpoint: &'a str,
    pub(super) model_requested: Option<&'a str>,
    pub(super) model_reported: Option<&'a str>,
    stream: bool,
    pub(super) tokens: Usage,
    pub(super) tokens_source: TokensSource,
    pub(super) cost_nano_usd: Option<u64>,
    status: u16,
    pub(super) outcome: Outcome,
    error_code: Option<&'a str>,
    latency_us: u64,
    ttfb_us: u64,
    overhead_ns: u64,
    attempts: u32,
    upstream_request_id: Option<&'a str>,
    pub(super) price_version: Option<&'a str>,
    pub(super) service_tier: Option<ServiceTier>,
    pub(super) plan: Option<&'a str>,
    pub(super) pool: Option<&'a str>,
}

impl<'a> StoredEntry<'a> {
    pub(super) fn of(entry: &'a Entry) -> Self {
        Self {
            request_id: *entry.request_id.as_bytes(),
            time_ms: entry.time_ms,
            virtual_key: entry.virtual_key.map(|id| *id.as_bytes()),
            user: entry.user.as_deref(),
            team: entry.team.as_deref(),
            group: entry.group.as_deref(),
            provider: &entry.provider,
            provider_key: entry.provider_key.map(|id| *id.as_bytes()),
            key_source: entry.key_source,
            dialect: &entry.dialect,
            endpoint: &entry.endpoint,
            model_requested: entry.model_requested.as_deref(),
            model_reported: entry.model_reported.as_deref(),
            stream: entry.stream,
            tokens: entry.tokens,
            tokens_source: entry.tokens_source,
            cost_nano_usd: entry.cost_nano_usd,
            status: entry.status,
            outcome: entry.outcome,
            error_code: entry.error_code.as_deref(),
            latency_us: entry.latency_us,
            ttfb_us: entry.ttfb_us,
            overhead_ns: entry.overhead_ns,
            attempts: entry.attempts,
            upstream_request_id: entry.upstream_request_id.as_deref(),
            price_version: entry.price_version.as_deref(),
            service_tier: entry.service_tier,
            plan: entry.plan.as_deref(),
            pool: entry.pool.as_deref(),
        }
    }

    pub(super) fn to_entry(&self) -> Entry {
        Entry {
            request_id: RequestId::from_bytes(self.request_id),
            time_ms: self.time_ms,
            virtual_key: self.virtual_key.map(KeyId::from_bytes),
            user: self.user.map(Into::into),
            team: self.team.map(Into::into),
            group: self.group.map(Into::into),
            provider: self.provider.into(),
            provider_key: self.provider_key.map(KeyId::from_bytes),
            key_source: self.key_source,
            dialect: self.dialect.to_owned().into(),
            endpoint: self.endpoint.to_owned().into(),
            model_requested: self.model_requested.map(Into::into),
            model_reported: self.model_reported.map(Into::into),
            stream: self.stream,
            tokens: self.tokens,
            tokens_source: self.tokens_source,
            cost_nano_usd: self.cost_nano_usd,
            status: self.status,
            outcome: self.outcome,
            error_code: self.error_code.map(Into::into),
            latency_us: self.latency_us,
            ttfb_us: self.ttfb_us,
            overhead_ns: self.overhead_ns,
            attempts: self.attempts,
            upstream_request_id: self.upstream_request_id.map(Into::into),
            price_version: self.price_version.map(Into::into),
            service_tier: self.service_tier,
            plan: self.plan.map(Into::into),
            pool: self.pool.map(Into::into),
        }
    }

    pub(super) fn request_id(&self) -> RequestId {
        RequestId::from_bytes(self.request_id)
    }

    /// True when it counts for this scope.
    pub(super) fn counts_for(&self, id: &ScopeId) -> bool {
        match id {
            ScopeId::Key(id) => self.virtual_key.as_ref() == Some(id.as_bytes()),
            ScopeId::Plan(name) => self.plan == Some(&**name),
            ScopeId::ProviderKey(id) => self.provider_key.as_ref() == Some(id.as_bytes()),
            ScopeId::Team(id) => self.team == Some(&**id),
            ScopeId::User(id) => self.user == Some(&**id),
        }
    }
}

/// An entry in [`Form::V1`].
#[derive(Deserialize)]
struct FirstForm<'a> {
    request_id: [u8; 16],
    time_ms: u64,
    virtual_key: Option<[u8; 8]>,
    user: Option<&'a str>,
    team: Option<&'a str>,
    group: Option<&'a str>,
    provider: &'a str,
    provider_key: Option<[u8; 8]>,
    key_source: Option<KeySource>,
    dialect: &'a str,
    endpoint: &'a str,
    model_requested: Option<&'a str>,
    model_reported: Option<&'a str>,
    stream: bool,
    /// Input, cached input, cache write, output, reasoning, total.
    tokens: [Option<u64>; 6],
    tokens_source: TokensSource,
    cost_nano_usd: Option<u64>,
    status: u16,
    outcome: Outcome,
    error_code: Option<&'a str>,
    latency_us: u64,
    ttfb_us: u64,
    overhead_ns: u64,
    attempts: u32,
    upstream_request_id: Option<&'a str>,
}

impl<'a> From<FirstForm<'a>> for StoredEntry<'a> {
    fn from(first: FirstForm<'a>) -> Self {
        let [input, cached_input, cache_write, output, reasoning, total] = first.tokens;
        Self {
            request_id: first.request_id,
            time_ms: first.time_ms,
            virtual_key: first.virtual_key,
            user: first.user,
            team: first.team,
            group: first.group,
            provider: first.provider,
            provider_key: first.provider_key,
            key_source: first.key_source,
            dialect: first.dialect,
            endpoint: first.endpoint,
            model_requested: first.model_requested,
            model_reported: first.model_reported,
            stream: first.stream,
            tokens: Usage { input, cached_input, cache_write, output, reasoning, total, ..Usage::default() },
            tokens_source: first.tokens_source,
            cost_nano_usd: first.cost_nano_usd,
            status: first.status,
            outcome: first.outcome,
            error_code: first.error_code,
            latency_us: first.latency_us,
            ttfb_us: first.ttfb_us,
            overhead_ns: first.overhead_ns,
            attempts: first.attempts,
            upstream_request_id: first.upstream_request_id,
            price_version: None,
            service_tier: None,
            plan: None,
            pool: None,
        }
    }
}

/// Entries in postcard, one after the other, not yet in blocks.
#[derive(Clone, Debug, Default)]
pub(super) struct Packed {
    bytes: Vec<u8>,
    /// Where each entry ends in `bytes`, and when it arrived.
    ends: Vec<(u32, u64)>,
}

impl Packed {
    pub(super) fn push(&mut self, entry: &Entry) {
        let start = self.bytes.len();
        if let Err(error) = postcard::serialize_with_flavor(&StoredEntry::of(entry), Appending(&mut self.bytes)) {
            // Writing plain values to memory cannot fail.
            tracing::error!(%error, "a ledger entry is not encodable and is lost");
            return self.bytes.truncate(start);
        }
        if self.bytes.len() - start > MAX_VALUE - HEAD_LEN {
            // Texts of a hostile client; what is counted must stay, the texts need not.
            self.bytes.truncate(start);
            return self.push(&shortened(entry));
        }
        self.ends.push((self.bytes.len() as u32, entry.time_ms));
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    pub(super) fn iter(&self) -> Entries<'_> {
        Entries::new(&self.bytes, self.ends.len() as u32, Form::LAST)
    }

    pub(super) fn append(&mut self, other: &Self) {
        let base = self.bytes.len() as u32;
        self.bytes.extend_from_slice(&other.bytes);
        self.ends.extend(other.ends.iter().map(|(end, time)| (base + end, *time)));
    }

    pub(super) fn entries(&self) -> usize {
        self.ends.len()
    }

    pub(super) fn len(&self) -> usize {
        self.bytes.len()
    }

    pub(super) fn latest_ms(&self) -> u64 {
        self.ends.iter().map(|(_, time)| *time).max().unwrap_or(0)
    }

    /// Forgets everything; a buffer that an outage made large is given back.
    pub(super) fn clear(&mut self) {
        if self.bytes.capacity() > 1 << 20 {
            *self = Self::default();
        }
        self.bytes.clear();
        self.ends.clear();
    }

    /// The entries from `first` on that fit `bytes`, at least one; where they stop.
    pub(super) fn fitting(&self, first: usize, bytes: usize) -> usize {
        let start = self.start(first);
        let fits = self.ends[first..].iter().take_while(|(end, _)| *end as usize - start <= bytes).count();
        first + fits.max(1)
    }

    /// How long the entries `first..end` are.
    pub(super) fn len_between(&self, first: usize, end: usize) -> usize {
        self.start(end) - self.start(first)
    }

    fn start(&self, entry: usize) -> usize {
        if entry == 0 { 0 } else { self.ends[entry - 1].0 as usize }
    }

    /// The entries `first..end` as one block in `codec`; `None` when it is over [`MAX_VALUE`].
    pub(super) fn block(&self, first: usize, end: usize, codec: Codec, packer: &mut Packer) -> Option<Vec<u8>> {
        let body = &self.bytes[self.start(first)..self.start(end)];
        let times = self.ends[first..end].iter().map(|(_, time)| *time);
        let entries = u16::try_from(end - first).ok()?;
        let mut out = Vec::with_capacity(MAX_VALUE);
        out.extend_from_slice(&[Form::LAST as u8, codec as u8]);
        out.extend_from_slice(&entries.to_be_bytes());
        out.extend_from_slice(&times.clone().min()?.to_be_bytes());
        out.extend_from_slice(&times.max()?.to_be_bytes());
        out.extend_from_slice(&u32::try_from(body.len()).ok()?.to_be_bytes());
        match codec {
            Codec::Plain => out.extend_from_slice(body),
            Codec::Zstd => out.extend_from_slice(packer.compress(body)?),
        }
        (out.len() <= MAX_VALUE).then_some(out)
    }
}

/// Lets postcard write to the end of a buffer.
struct Appending<'a>(&'a mut Vec<u8>);

impl postcard::ser_flavors::Flavor for Appending<'_> {
    type Output = ();

    fn try_push(&mut self, byte: u8) -> postcard::Result<()> {
        self.0.push(byte);
        Ok(())
    }

    fn try_extend(&mut self, bytes: &[u8]) -> postcard::Result<()> {
        self.0.extend_from_slice(bytes);
        Ok(())
    }

    fn finalize(self) -> postcard::Result<()> {
        Ok(())
    }
}

/// Writes one entry in [`Form::LAST`] to the front of `out`; `None` when there is no room.
pub(super) fn encode(entry: &StoredEntry<'_>, out: &mut [u8]) -> Option<usize> {
    postcard::to_slice(entry, out).ok().map(|written| written.len())
}

/// The same request with its free texts cut: nothing that is counted or grouped by key changes.
fn shortened(entry: &Entry) -> Entry {
    let cut = |text: &Option<std::sync::Arc<str>>| text.as_deref().map(|text| cut_at(text, 128).into());
    Entry {
        user: cut(&entry.user),
        team: cut(&entry.team),
        group: cut(&entry.group),
        provider: cut_at(&entry.provider, 128).into(),
        dialect: cut_at(&entry.dialect, 128).to_owned().into(),
        endpoint: cut_at(&entry.endpoint, 128).to_owned().into(),
        model_requested: cut(&entry.model_requested),
        model_reported: cut(&entry.model_reported),
        error_code: cut(&entry.error_code),
        upstream_request_id: cut(&entry.upstream_request_id),
        price_version: cut(&entry.price_version),
        plan: cut(&entry.plan),
        pool: cut(&entry.pool),
        ..entry.clone()
    }
}

pub(super) fn cut_at(text: &str, bytes: usize) -> &str {
    &text[..text.floor_char_boundary(bytes)]
}

/// A compressor and its buffer, kept between blocks.
pub(super) struct Packer {
    zstd: Option<zstd::bulk::Compressor<'static>>,
    out: Vec<u8>,
}

impl std::fmt::Debug for Packer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Packer").finish_non_exhaustive()
    }
}

impl Packer {
    pub(super) fn new() -> Self {
        Self { zstd: None, out: Vec::new() }
    }

    fn compress(&mut self, body: &[u8]) -> Option<&[u8]> {
        if self.zstd.is_none() {
            self.zstd = zstd::bulk::Compressor::new(LEVEL).ok();
        }
        self.out.resize(zstd::zstd_safe::compress_bound(body.len()), 0);
        let len = self.zstd.as_mut()?.compress_to_buffer(body, &mut self.out[..]).ok()?;
        Some(&self.out[..len])
    }
}

/// A decompressor and its buffer, kept between blocks.
pub(super) struct Unpacker {
    zstd: Option<zstd::bulk::Decompressor<'static>>,
    out: Vec<u8>,
}

impl Unpacker {
    pub(super) fn new() -> Self {
        Self { zstd: None, out: Vec::new() }
    }

    /// The entries of a block, in the order they were recorded; `None` when the block is damaged.
    pub(super) fn unpack<'a>(&'a mut self, value: &'a [u8]) -> Option<Entries<'a>> {
        let head = Head::read(value)?;
        let body = &value[HEAD_LEN..];
        let unpacked = head.unpacked as usize;
        let body = match head.codec {
            Codec::Plain => body,
            Codec::Zstd if unpacked > MAX_UNPACKED => return None,
            Codec::Zstd => {
                if self.zstd.is_none() {
                    self.zstd = zstd::bulk::Decompressor::new().ok();
                }
                self.out.resize(unpacked, 0);
                let len = self.zstd.as_mut()?.decompress_to_buffer(body, &mut self.out[..]).ok()?;
                &self.out[..len]
            }
        };
        (body.len() == unpacked).then(|| Entries::new(body, head.entries.into(), head.form))
    }
}

/// Iterates over a block.
#[derive(Debug)]
pub(super) struct Entries<'a> {
    rest: &'a [u8],
    left: u32,
    form: Form,
}

impl<'a> Entries<'a> {
    /// The first `left` of the entries in `bytes`, plain and one after the other.
    pub(super) fn new(bytes: &'a [u8], left: u32, form: Form) -> Self {
        Self { rest: bytes, left, form }
    }
}

impl<'a> Iterator for Entries<'a> {
    type Item = StoredEntry<'a>;

    fn next(&mut self) -> Option<StoredEntry<'a>> {
        self.left = self.left.checked_sub(1)?;
        let (entry, rest) = match self.form {
            Form::V1 => {
                postcard::take_from_bytes(self.rest).map(|(first, rest)| (FirstForm::into(first), rest)).ok()?
            }
            Form::V2 => postcard::take_from_bytes(self.rest).ok()?,
        };
        self.rest = rest;
        Some(entry)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// An entry like those of real traffic.
    pub(in crate::storage) fn entry(n: u64) -> Entry {
        let key = |n: u64| KeyId::from_bytes(n.to_be_bytes());
        Entry {
            request_id: RequestId::new(1_700_000_000_000 + n),
            time_ms: 1_700_000_000_000 + n,
            virtual_key: Some(key(n % 3)),
            user: Some(["alice", "bob"][n as usize % 2].into()),
            team: (!n.is_multiple_of(5)).then(|| "t1".into()),
            group: n.is_multiple_of(7).then(|| "job-1".into()),
            provider: ["openai", "anthropic"][n as usize % 2].into(),
            provider_key: Some(key(100 + n % 2)),
            key_source: Some([KeySource::User, KeySource::Team, KeySource::System][n as usize % 3]),
            dialect: "openai".into(),
            endpoint: "chat".into(),
            model_requested: Some("gpt-4o-mini".into()),
            model_reported: Some("gpt-4o-mini-2024-07-18".into()),
            stream: n.is_multiple_of(2),
            tokens: Usage { input: Some(100 + n), output: Some(n), total: Some(100 + 2 * n), ..Usage::default() },
            tokens_source: TokensSource::Reported,
            cost_nano_usd: Some(1000 * n),
            status: 200,
            outcome: Outcome::Ok,
            error_code: None,
            latency_us: 700_000 + n * 13,
            ttfb_us: 200_000 + n * 7,
            overhead_ns: 12_000 + n,
            attempts: 1,
            upstream_request_id: Some(format!("req_{:024x}", n.wrapping_mul(0x9e37_79b9_7f4a_7c15)).into()),
            price_version: Some("built-in 2025-11-24".into()),
            service_tier: n.is_multiple_of(11).then_some(ServiceTier::Flex),
            plan: None,
            pool: n.is_multiple_of(13).then(|| "main".into()),
        }
    }

    #[test]
    fn keys_sort_by_time_then_sequence() {
        let keys = [(1, 9), (2, 0), (2, 1), (256, 0)].map(|(epoch_ms, first_seq)| BlockKey { epoch_ms, first_seq });
        for pair in keys.windows(2) {
            assert!(pair[0].to_bytes() < pair[1].to_bytes());
            assert_eq!(BlockKey::from_bytes(&pair[0].to_bytes()), Some(pair[0]));
        }
        assert_eq!(BlockKey::from_bytes(b"short"), None);
    }

    /// A block of [`Form::V1`], byte by byte as its version wrote it.
    #[rustfmt::skip]
    const FIRST: &[u8] = &[
        // Form, codec, entries, earliest, latest, length.
        1, 0, 0, 1, 0, 0, 1, 139, 207, 229, 104, 0, 0, 0, 1, 139, 207, 229, 104, 0, 0, 0, 0, 99,
        // Request id, time 1 700 000 000 000.
        1, 139, 207, 229, 104, 0, 112, 0, 128, 0, 0, 0, 0, 0, 0, 9, 128, 208, 149, 255, 188, 49,
        // Virtual key, user, team, group.
        1, 0, 0, 0, 0, 0, 0, 0, 7, 1, 5, b'a', b'l', b'i', b'c', b'e', 0, 0,
        // Provider, provider key, key source, dialect, endpoint.
        6, b'o', b'p', b'e', b'n', b'a', b'i', 0, 1, 2, 6, b'o', b'p', b'e', b'n', b'a', b'i', 4, b'c', b'h', b'a', b't',
        // Models, stream.
        1, 6, b'g', b'p', b't', b'-', b'4', b'o', 0, 1,
        // Usage: input 300, output 20, total 320; reported; cost 5.
        1, 172, 2, 0, 0, 1, 20, 0, 1, 192, 2, 0, 1, 5,
        // Status 200, ok, no code, latency, first byte, overhead, attempts, upstream request id.
        200, 1, 2, 0, 232, 7, 100, 9, 1, 1, 2, b'r', b'1',
    ];

    #[test]
    fn the_first_form_is_still_read() {
        let head = Head::read(FIRST).unwrap();
        assert_eq!((head.form, head.codec, head.entries), (Form::V1, Codec::Plain, 1));
        let mut unpacker = Unpacker::new();
        let mut entries = unpacker.unpack(FIRST).unwrap();
        let entry = entries.next().unwrap().to_entry();
        assert!(entries.next().is_none());
        let tokens = Usage { input: Some(300), output: Some(20), total: Some(320), ..Usage::default() };
        assert_eq!((entry.time_ms, entry.tokens, entry.cost_nano_usd), (1_700_000_000_000, tokens, Some(5)));
        assert_eq!((entry.tokens_source, entry.outcome, entry.status), (TokensSource::Reported, Outcome::Ok, 200));
        assert_eq!((entry.user.as_deref(), &*entry.provider, &*entry.endpoint), (Some("alice"), "openai", "chat"));
        assert_eq!((entry.key_source, entry.latency_us, entry.attempts), (Some(KeySource::System), 1000, 1));
        assert_eq!((entry.price_version, entry.plan, entry.pool), (None, None, None));
        assert_eq!(entry.upstream_request_id.as_deref(), Some("r1"));
    }

    #[test]
    fn hostile_texts_are_cut_and_counted() {
        let mut packed = Packed::default();
        packed.push(&Entry { model_requested: Some("é".repeat(10_000).into()), ..entry(1) });
        let block = packed.block(0, 1, Codec::Plain, &mut Packer::new()).unwrap();
        let mut unpacker = Unpacker::new();
        let back = unpacker.unpack(&block).unwrap().next().unwrap().to_entry();
        assert_eq!(back.tokens, entry(1).tokens);
        assert_eq!(back.model_requested.unwrap().len(), 128);
    }

    #[test]
    fn damage_is_noticed_not_fatal() {
        let mut packed = Packed::default();
        (0..20).for_each(|n| packed.push(&entry(n)));
        let block = packed.block(0, 20, Codec::Zstd, &mut Packer::new()).unwrap();
        let mut unpacker = Unpacker::new();
        for at in 0..block.len() {
            let mut bad = block.clone();
            bad[at] ^= 0x55;
            if let Some(entries) = unpacker.unpack(&bad) {
                entries.for_each(drop);
            }
            assert!(unpacker.unpack(&block[..at]).is_none_or(|entries| entries.count() < 20), "cut at {at}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn what_is_packed_unpacks(count in 1_usize..60, cut in 0_usize..60, plain in any::<bool>()) {
            let entries: Vec<Entry> = (0..count as u64).map(entry).collect();
            let mut packed = Packed::default();
            entries.iter().for_each(|entry| packed.push(entry));
            let cut = cut % count;
            let codec = if plain { Codec::Plain } else { Codec::Zstd };
            if let Some(block) = packed.block(cut, count, codec, &mut Packer::new()) {
                let mut unpacker = Unpacker::new();
                let back: Vec<Entry> = unpacker.unpack(&block).unwrap().map(|stored| stored.to_entry()).collect();
                prop_assert_eq!(&back[..], &entries[cut..]);
                let head = Head::read(&block).unwrap();
                prop_assert_eq!(head.earliest_ms, entries[cut].time_ms);
                prop_assert_eq!(head.latest_ms, entries[count - 1].time_ms);
            }
        }
    }
}
