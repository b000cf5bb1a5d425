//! Cut patterns: where a body is broken into pieces.

use bytes::Bytes;

/// How to break a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cut {
    /// In one piece.
    Whole,
    /// One byte at a time. Of a body above 12 KiB only the first 4 and the last 8 KiB, where heads and usage
    /// stand; the middle is cut by chance, so that the run stays short.
    OneByte,
    /// By chance, from this seed: many small pieces, some large.
    Random(u64),
}

const EDGE_HEAD: usize = 4 * 1024;
const EDGE_TAIL: usize = 8 * 1024;

impl Cut {
    /// The pieces of `body`, in order; none is empty.
    pub(crate) fn apply(self, body: &Bytes) -> Vec<Bytes> {
        match self {
            Self::Whole if body.is_empty() => vec![],
            Self::Whole => vec![body.clone()],
            Self::OneByte if body.len() <= EDGE_HEAD + EDGE_TAIL => bytewise(body),
            Self::OneByte => {
                let tail = body.len() - EDGE_TAIL;
                let mut pieces = bytewise(&body.slice(..EDGE_HEAD));
                pieces.extend(random(&body.slice(EDGE_HEAD..tail), body.len() as u64));
                pieces.extend(bytewise(&body.slice(tail..)));
                pieces
            }
            Self::Random(seed) => random(body, seed),
        }
    }
}

fn bytewise(body: &Bytes) -> Vec<Bytes> {
    (0..body.len()).map(|at| body.slice(at..=at)).collect()
}

fn random(body: &Bytes, seed: u64) -> Vec<Bytes> {
    let mut dice = Dice(seed);
    let mut rest = body.clone();
    let mut pieces = vec![];
    while !rest.is_empty() {
        // Half of the pieces are shorter than 16 bytes: those split names, numbers and line ends.
        let most = if dice.next().is_multiple_of(2) { 16 } else { 2048 };
        let size = 1 + usize::try_from(dice.next() % most).unwrap_or(0);
        pieces.push(rest.split_to(size.min(rest.len())));
    }
    pieces
}

/// SplitMix64: small, seeded, good enough to choose where to cut.
#[derive(Debug)]
pub(crate) struct Dice(pub(crate) u64);

impl Dice {
    /// The next number.
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

#[test]
fn pieces_add_up() {
    let body = Bytes::from((0..40_000_u32).map(|n| n.to_le_bytes()[0]).collect::<Vec<_>>());
    for cut in [Cut::Whole, Cut::OneByte, Cut::Random(1), Cut::Random(2)] {
        for body in [body.clone(), body.slice(..0), body.slice(..1), body.slice(..9_000)] {
            let pieces = cut.apply(&body);
            assert!(pieces.iter().all(|piece| !piece.is_empty()));
            assert_eq!(pieces.concat(), body, "{cut:?}");
        }
    }
}
