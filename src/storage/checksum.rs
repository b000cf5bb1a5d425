//! Count and checksum of a tree's rows, kept up row by row: sled can lose rows of a damaged file without a word.
//!
//! Owns the sums. Leaves comparing them to `storage::load`.

use serde::{Deserialize, Serialize};

/// How many rows a set has, and the sum of their keyed blake3 digests: equal sets have equal sums, in any order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Checksum {
    rows: u64,
    sum: [u64; 4],
}

impl Checksum {
    /// Of all `rows`.
    pub(super) fn of<'a>(secret: &[u8; 32], rows: impl Iterator<Item = (&'a [u8], &'a [u8])>) -> Self {
        rows.fold(Self::default(), |mut all, (key, value)| {
            all.add(secret, key, value);
            all
        })
    }

    /// Notes that a row has come.
    pub(super) fn add(&mut self, secret: &[u8; 32], key: &[u8], value: &[u8]) {
        self.rows += 1;
        for (sum, part) in self.sum.iter_mut().zip(digest(secret, key, value)) {
            *sum = sum.wrapping_add(part);
        }
    }

    /// Notes that a row has gone.
    pub(super) fn remove(&mut self, secret: &[u8; 32], key: &[u8], value: &[u8]) {
        self.rows = self.rows.wrapping_sub(1);
        for (sum, part) in self.sum.iter_mut().zip(digest(secret, key, value)) {
            *sum = sum.wrapping_sub(part);
        }
    }
}

fn digest(secret: &[u8; 32], key: &[u8], value: &[u8]) -> [u64; 4] {
    let mut hasher = blake3::Hasher::new_keyed(secret);
    hasher.update(&(key.len() as u64).to_be_bytes()).update(key).update(value);
    let bytes = hasher.finalize();
    let mut parts = [0; 4];
    for (part, chunk) in parts.iter_mut().zip(bytes.as_bytes().as_chunks::<8>().0) {
        *part = u64::from_be_bytes(*chunk);
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn follows_rows() {
        let secret = [3; 32];
        let rows: [(&[u8], &[u8]); 3] = [(b"a", b"1"), (b"b", b"2"), (b"", b"c3")];
        let all = Checksum::of(&secret, rows.into_iter());
        assert_eq!(all, Checksum::of(&secret, rows.into_iter().rev()));
        let mut moved = all;
        moved.remove(&secret, b"b", b"2");
        assert_ne!(moved, all);
        assert_eq!(moved, Checksum::of(&secret, [rows[0], rows[2]].into_iter()));
        moved.add(&secret, b"b2", b"");
        assert_ne!(moved, all, "a shifted border is another row");
    }
}
