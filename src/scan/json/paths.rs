//! The set of wanted paths, as a tree of keys.
//!
//! Owns the match of a key; leaves reading keys to the scanner.

use super::{Tag, Want};

/// The node of the document itself.
pub(super) const ROOT: u16 = 0;
/// No node: nothing here or below is wanted.
pub(super) const NONE: u16 = u16::MAX;

#[derive(Debug, Default)]
pub(super) struct Node {
    pub(super) parent: u16,
    pub(super) want: Option<(Tag, Want)>,
    /// Its children stand at these places of [`Paths::children`].
    children: (u16, u16),
    /// The [`sieve`] bits of the children's keys. Spares most look-ups.
    pub(super) sieve: u64,
    /// Bit n: node n is a child.
    pub(super) child_bits: u64,
}

#[derive(Debug)]
struct Child {
    /// The key's first bytes, as [`prefix`] gives them.
    prefix: u64,
    key: Box<[u8]>,
    node: u16,
}

/// A set of wanted paths, compiled once and shared (`static PATHS: LazyLock<Paths>`).
#[derive(Debug)]
pub struct Paths {
    pub(super) nodes: Vec<Node>,
    children: Vec<Child>,
    /// Bytes of the longest key.
    pub(super) longest: usize,
}

impl Paths {
    /// Compiles `wanted`: keys joined by dots; `""` is the document itself. Keys are ASCII and hold no dots.
    /// A path named twice keeps its last tag. Duplicate keys are noticed for the first 64 keys of the set.
    #[must_use]
    pub fn new(wanted: &[(&str, Tag, Want)]) -> Self {
        let mut nodes = vec![Node { parent: NONE, ..Node::default() }];
        let mut edges: Vec<(u16, &str, u16)> = Vec::new();
        for &(path, tag, want) in wanted {
            let mut at = ROOT;
            for key in path.split('.').filter(|key| !key.is_empty()) {
                let known = edges.iter().find(|&&(parent, name, _)| parent == at && name == key);
                at = match known {
                    Some(&(_, _, node)) => node,
                    None => add(&mut nodes, &mut edges, at, key),
                };
            }
            nodes[usize::from(at)].want = Some((tag, want));
        }
        edges.sort_by_key(|&(parent, _, _)| parent);
        let mut paths = Self { nodes, children: Vec::with_capacity(edges.len()), longest: 0 };
        for (place, (parent, name, node)) in (0..).zip(edges) {
            let key = name.as_bytes();
            let above = &mut paths.nodes[usize::from(parent)];
            if above.sieve == 0 {
                above.children.0 = place;
            }
            above.children.1 = place + 1;
            above.sieve |= sieve(key);
            above.child_bits |= bit(node);
            paths.longest = paths.longest.max(key.len());
            paths.children.push(Child { prefix: prefix(key), key: key.into(), node });
        }
        paths
    }

    #[inline]
    pub(super) fn child(&self, parent: u16, key: &[u8]) -> Option<u16> {
        let node = &self.nodes[usize::from(parent)];
        if node.sieve & sieve(key) == 0 {
            return None;
        }
        let prefix = prefix(key);
        let (from, to) = node.children;
        self.children[usize::from(from)..usize::from(to)]
            .iter()
            .find(|child| child.prefix == prefix && (key.len() < 8 || *child.key == *key))
            .map(|child| child.node)
    }
}

fn add<'a>(nodes: &mut Vec<Node>, edges: &mut Vec<(u16, &'a str, u16)>, parent: u16, key: &'a str) -> u16 {
    debug_assert!(key.is_ascii(), "wanted keys are ASCII");
    // A set of paths is written by hand and never nears 2^16 keys.
    let node = nodes.len() as u16;
    nodes.push(Node { parent, ..Node::default() });
    edges.push((parent, key, node));
    node
}

/// One bit for a key, by its length and first byte.
#[inline]
fn sieve(key: &[u8]) -> u64 {
    let first = key.first().copied().unwrap_or(0);
    1 << ((usize::from(first) * 5 + key.len()) % 64)
}

/// Tells apart all keys of up to 7 bytes: those bytes and the length. Of longer keys, the first 8.
#[inline]
fn prefix(key: &[u8]) -> u64 {
    if let Some(&eight) = key.first_chunk::<8>() {
        return u64::from_le_bytes(eight);
    }
    // At most 7 bytes, so the last of the eight can hold the length. No text has bytes 0 to 7 there.
    key.iter().rev().fold(key.len() as u64, |word, &byte| word << 8 | u64::from(byte))
}

/// The bit of a node; none for those beyond the 64th.
pub(super) fn bit(index: u16) -> u64 {
    1u64.checked_shl(u32::from(index)).unwrap_or(0)
}
