//! The ledger's open end: entries that are in the journal and not yet in a block, and the blocks they become.
//!
//! Owns numbering entries and packing them, about 3 KB a block, whatever the traffic. Leaves writing journal and blocks
//! to `storage::writer`.

use super::block::{BlockKey, Codec, HEAD_LEN, Head, Packed, Packer};
use super::engine::{Engine, EngineError, MAX_VALUE, Tree, guarded};
use super::journal::Frame;

/// A packed block's intended size; the rest of the row's 4 KB is for batches that compress worse than the last.
const BLOCK_BYTES: f64 = 3000.0;
/// Bounds of how much unpacked text makes a block.
const TARGET_MIN: usize = 3 << 10;
const TARGET_MAX: usize = 24 << 10;

/// Rows to write and to remove, in one atomic batch.
pub(super) type Rows = Vec<(Vec<u8>, Option<Vec<u8>>)>;

/// Where the blocks on disk end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct BlocksEnd {
    pub(super) next_seq: u64,
    pub(super) epoch_ms: u64,
}

impl BlocksEnd {
    pub(super) fn find(engine: &Engine) -> Result<Self, EngineError> {
        guarded(|| {
            for row in engine.tree(Tree::Ledger).iter().rev() {
                let (key, value) = row?;
                if let (Some(at), Some(head)) = (BlockKey::from_bytes(&key), Head::read(&value)) {
                    let next_seq = at.first_seq + u64::from(head.entries);
                    return Ok(Self { next_seq, epoch_ms: at.epoch_ms });
                }
            }
            Ok(Self::default())
        })
    }
}

/// Where the ledger ends.
#[derive(Debug)]
pub(super) struct Tail {
    next_seq: u64,
    epoch_ms: u64,
    pending: Packed,
    /// Packed size by unpacked size, of late.
    ratio: f64,
    packer: Packer,
}

impl Tail {
    /// Goes on after the blocks on disk with what the journal has beyond them. `floor` is a sequence number known to be
    /// used already.
    pub(super) fn resume(blocks: BlocksEnd, journal: &[Frame], floor: u64) -> Self {
        let mut pending = Packed::default();
        let mut next_seq = blocks.next_seq;
        for frame in journal {
            if frame.first_seq > next_seq {
                // Entries are missing before this frame. Those before the gap are pending no longer: they were counted
                // as lost when the store was opened, and blocks are numbered from their first entry on.
                pending.clear();
                next_seq = frame.first_seq;
            }
            let known = (next_seq - frame.first_seq) as usize;
            for entry in frame.iter().skip(known) {
                pending.push(&entry.to_entry());
                next_seq += 1;
            }
        }
        if floor > next_seq {
            pending.clear();
            next_seq = floor;
        }
        Self { next_seq, epoch_ms: blocks.epoch_ms, pending, ratio: 0.4, packer: Packer::new() }
    }

    /// The number of the next entry.
    pub(super) fn next_seq(&self) -> u64 {
        self.next_seq
    }

    /// The number of the first entry that is in no block.
    pub(super) fn pending_seq(&self) -> u64 {
        self.next_seq - self.pending.entries() as u64
    }

    /// Entries that are in no block.
    pub(super) fn pending(&self) -> &Packed {
        &self.pending
    }

    /// Takes up entries that are in the journal now.
    pub(super) fn add(&mut self, batch: &Packed) {
        self.next_seq += batch.entries() as u64;
        self.pending.append(batch);
    }

    /// The pending entries as blocks, when there are enough; [`Tail::stored`] once they are written. Equal in size near
    /// the target, so that none is left over to be packed later.
    pub(super) fn blocks(&mut self, now_ms: u64) -> Option<(BlocksEnd, Rows)> {
        let target = ((BLOCK_BYTES / self.ratio) as usize).clamp(TARGET_MIN, TARGET_MAX);
        if self.pending.len() < target {
            return None;
        }
        let epoch_ms = self.next_epoch(now_ms);
        let share = self.pending.len().div_ceil(self.pending.len().div_ceil(target + target / 5));
        let at = BlockKey { epoch_ms, first_seq: self.pending_seq() };
        let rows = pack(&self.pending, at, share, |all, done, end| {
            let value = all.block(done, end, Codec::Zstd, &mut self.packer)?;
            let ratio = value.len() as f64 / all.len_between(done, end) as f64;
            self.ratio = (0.75 * self.ratio + 0.25 * ratio).max(0.05);
            Some(value)
        });
        Some((BlocksEnd { next_seq: self.next_seq, epoch_ms }, rows))
    }

    /// Notes that the blocks up to `end` are written.
    pub(super) fn stored(&mut self, end: BlocksEnd) {
        self.epoch_ms = end.epoch_ms;
        if end.next_seq == self.next_seq {
            self.pending.clear();
        }
    }

    /// The pending entries as plain blocks, for a store that has no journal of them.
    pub(super) fn plain_blocks(&self, now_ms: u64) -> Rows {
        let at = BlockKey { epoch_ms: self.next_epoch(now_ms), first_seq: self.pending_seq() };
        pack(&self.pending, at, MAX_VALUE - HEAD_LEN, |_, _, _| None)
    }

    /// A row without entries: the ledger goes on after it, whatever is missing before.
    pub(super) fn mark(&self, now_ms: u64) -> (Vec<u8>, Option<Vec<u8>>) {
        let epoch_ms = self.next_epoch(now_ms);
        let at = BlockKey { epoch_ms, first_seq: self.next_seq };
        (at.to_bytes().to_vec(), Some(Head::empty(epoch_ms).to_vec()))
    }

    /// Epochs never step back, and no entry is younger than its block.
    fn next_epoch(&self, now_ms: u64) -> u64 {
        now_ms.max(self.epoch_ms).max(self.pending.latest_ms())
    }
}

/// Rows of `all`, each of `share` unpacked bytes or fewer: as many as `packed` gets into a row, else plain.
fn pack(
    all: &Packed,
    at: BlockKey,
    share: usize,
    mut packed: impl FnMut(&Packed, usize, usize) -> Option<Vec<u8>>,
) -> Rows {
    let mut plain = Packer::new();
    let mut rows = Rows::new();
    let mut done = 0;
    while done < all.entries() {
        let mut end = all.fitting(done, share);
        let value = loop {
            let value = packed(all, done, end).or_else(|| all.block(done, end, Codec::Plain, &mut plain));
            match value {
                // One entry, plain, always fits: longer ones were cut when they were pushed.
                None if end - done > 1 => end = done + (end - done) / 2,
                value => break value,
            }
        };
        let Some(value) = value else { break };
        let key = BlockKey { first_seq: at.first_seq + done as u64, ..at };
        rows.push((key.to_bytes().to_vec(), Some(value)));
        done = end;
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::super::block::Unpacker;
    use super::super::block::tests::entry;
    use super::super::journal::Journal;
    use super::*;

    fn times(pending: &Packed) -> Vec<u64> {
        pending.iter().map(|entry| entry.time_ms).collect()
    }

    #[test]
    fn any_batches_make_one_ledger() {
        for (name, sizes) in [
            ("one by one", vec![1; 400]),
            ("hundreds", vec![300; 5]),
            ("mixed", [1, 2, 90, 1, 500, 3, 3].repeat(8)),
            ("huge", vec![20_000]),
        ] {
            let dir = tempfile::tempdir().unwrap();
            let engine = Engine::open(&dir.path().join("store")).unwrap();
            let (mut journal, frames) = Journal::open(&dir.path().join("journal")).unwrap();
            let mut tail = Tail::resume(BlocksEnd::find(&engine).unwrap(), &frames, 0);
            let mut from = 0;
            for (n, size) in sizes.into_iter().enumerate() {
                let mut batch = Packed::default();
                (from..from + size).for_each(|n| batch.push(&entry(n)));
                journal.append(tail.next_seq(), &batch).unwrap();
                tail.add(&batch);
                from += size;
                if let Some((end, rows)) = tail.blocks(1_600_000_000_000 + from) {
                    engine.apply(Tree::Ledger, rows).unwrap();
                    tail.stored(end);
                }
                if n % 50 == 49 {
                    // A restart finds the same end.
                    let found = Tail::resume(BlocksEnd::find(&engine).unwrap(), &journal.read().unwrap(), 0);
                    assert_eq!((found.next_seq(), times(found.pending())), (from, times(tail.pending())), "{name}");
                    tail = found;
                }
            }
            let mut unpacker = Unpacker::new();
            let (mut found, mut bytes) = (Vec::new(), 0);
            for (key, value) in engine.rows(Tree::Ledger).unwrap() {
                let at = BlockKey::from_bytes(&key).unwrap();
                assert_eq!(at.first_seq, found.len() as u64, "{name}: no gap, no overlap");
                assert!(Head::read(&value).unwrap().latest_ms <= at.epoch_ms);
                found.extend(unpacker.unpack(&value).unwrap().map(|entry| entry.time_ms));
                bytes += value.len();
            }
            assert!(bytes / found.len() < 100, "{name}: {} bytes an entry", bytes / found.len());
            found.extend(times(tail.pending()));
            assert_eq!(found, (0..from).map(|n| entry(n).time_ms).collect::<Vec<_>>(), "{name}");
        }
    }

    #[test]
    fn gaps_are_not_closed() {
        let dir = tempfile::tempdir().unwrap();
        let (mut journal, _) = Journal::open(&dir.path().join("journal")).unwrap();
        let mut batch = Packed::default();
        (10..13).for_each(|n| batch.push(&entry(n)));
        journal.append(10, &batch).unwrap();
        let frames = journal.read().unwrap();
        for (name, blocks, floor, want) in [
            ("before", 5, 0, (10, 13)),
            ("inside", 11, 0, (11, 13)),
            ("behind", 40, 0, (40, 40)),
            ("floor", 10, 99, (99, 99)),
        ] {
            let tail = Tail::resume(BlocksEnd { next_seq: blocks, epoch_ms: 0 }, &frames, floor);
            assert_eq!((tail.pending_seq(), tail.next_seq()), want, "{name}");
        }
    }
}
