//! OpenAI's vocabularies: bundled compressed, loaded on demand, dropped on request.
//!
//! Owns their form here: tokens in the order of their ranks, each behind its length in one byte, compressed with
//! zstd. That is a quarter of what the tokenizer's crate would add to the binary with its own copies. Leaves splitting and
//! merging to that crate.

use std::sync::{Arc, Mutex, PoisonError};

use rustc_hash::FxHashMap;
use tiktoken_rs::CoreBPE;

/// A vocabulary.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Vocabulary {
    /// Of `gpt-4` and `gpt-3.5`.
    Cl100k,
    /// Of everything since `gpt-4o`.
    O200k,
}

/// How text is cut before tokens are looked for, as OpenAI publishes it
/// (<https://github.com/openai/tiktoken/blob/main/tiktoken_ext/openai_public.py>).
const CL100K_PATTERN: &str = concat!(
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|",
    r"\s++$|\s*[\r\n]|\s+(?!\S)|\s"
);
const O200K_PATTERN: &str = concat!(
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|",
    r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
);

/// More than either vocabulary takes uncompressed.
const MAX_SIZE: usize = 4 << 20;

static LOADED: Mutex<[Option<Arc<CoreBPE>>; 2]> = Mutex::new([None, None]);

/// The vocabulary, loaded if need be; `None` if the bundled copy cannot be read.
pub(super) fn of(vocabulary: Vocabulary) -> Option<Arc<CoreBPE>> {
    let mut loaded = LOADED.lock().unwrap_or_else(PoisonError::into_inner);
    let slot = &mut loaded[vocabulary as usize];
    if slot.is_none() {
        *slot = load(vocabulary).map(Arc::new);
    }
    slot.clone()
}

/// Drops what is loaded.
pub(super) fn unload() {
    *LOADED.lock().unwrap_or_else(PoisonError::into_inner) = [None, None];
}

fn load(vocabulary: Vocabulary) -> Option<CoreBPE> {
    let (packed, pattern): (&[u8], _) = match vocabulary {
        Vocabulary::Cl100k => (include_bytes!("cl100k_base.zst"), CL100K_PATTERN),
        Vocabulary::O200k => (include_bytes!("o200k_base.zst"), O200K_PATTERN),
    };
    let raw = zstd::bulk::decompress(packed, MAX_SIZE).ok()?;
    let mut ranks = FxHashMap::default();
    let mut rest = raw.as_slice();
    while let Some((&len, after)) = rest.split_first() {
        let (token, after) = after.split_at_checked(usize::from(len))?;
        ranks.insert(token.to_vec(), u32::try_from(ranks.len()).ok()?);
        rest = after;
    }
    // Special tokens are text like any other in an answer.
    CoreBPE::new(ranks, FxHashMap::default(), pattern).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Against the copies of the tokenizer's crate, which only tests link.
    #[test]
    fn they_are_openais() {
        for (vocabulary, theirs, size) in [
            (Vocabulary::Cl100k, tiktoken_rs::cl100k_base().unwrap(), 100_256),
            (Vocabulary::O200k, tiktoken_rs::o200k_base().unwrap(), 199_998),
        ] {
            let ours = of(vocabulary).unwrap();
            for rank in 0..size {
                assert_eq!(ours.decode_bytes(&[rank]).ok(), theirs.decode_bytes(&[rank]).ok(), "{vocabulary:?} {rank}");
            }
            assert!(ours.decode_bytes(&[size]).is_err(), "{vocabulary:?} has more");
            for text in [
                "",
                "Hello, world's END!\r\n\n  fn f(x: u32) -> u32 { x+12345 }",
                "名前は？ naïve\u{301} 🙂🏽 <|endoftext|>",
            ] {
                assert_eq!(ours.encode_ordinary(text), theirs.encode_ordinary(text), "{vocabulary:?} {text:?}");
            }
        }
        unload();
    }
}
