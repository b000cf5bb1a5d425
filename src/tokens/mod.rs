//! Tokens nobody reported: an estimate of a request's input, and of the output that was seen going by.
//!
//! Owns the byte estimator (always there, a tenth of a nanosecond a byte) and the tokenizer behind the `tokenizer` feature
//! (loaded when first needed, given back by [`unload`]). Leaves deciding when to estimate, and on which thread, to others:
//! loading a vocabulary takes 0.1 s and counting 16 KB up to some milliseconds, so neither belongs on the delivery path.

#[cfg(feature = "tokenizer")]
mod vocabulary;

#[cfg(feature = "tokenizer")]
use vocabulary::Vocabulary;

/// Bytes of output kept for counting; what exceeds them is extrapolated.
pub const MAX_TEXT: usize = 16 * 1024;

/// Output as it was seen in the response: the content of JSON strings, escapes not decoded, up to [`MAX_TEXT`] bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OutputText {
    kept: Vec<u8>,
    bytes: u64,
    calls: u32,
}

impl OutputText {
    /// Appends a fragment.
    pub fn push(&mut self, fragment: &[u8]) {
        self.bytes += fragment.len() as u64;
        let room = MAX_TEXT - self.kept.len();
        self.kept.extend_from_slice(&fragment[..fragment.len().min(room)]);
    }

    /// Counts `bytes` of output that could not be kept.
    pub fn skip(&mut self, bytes: u64) {
        self.bytes += bytes;
    }

    /// Counts a tool call; its name and arguments are pushed like other text.
    pub fn add_call(&mut self) {
        self.calls = self.calls.saturating_add(1);
    }

    /// All bytes seen, kept or not.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Tool calls seen.
    #[must_use]
    pub fn calls(&self) -> u32 {
        self.calls
    }

    /// True when no output was seen.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.bytes == 0 && self.calls == 0
    }

    /// What was kept, escapes decoded; broken ones and broken UTF-8 become replacement characters.
    #[must_use]
    pub fn decoded(&self) -> String {
        unescape(&self.kept)
    }
}

/// Estimates the tokens of a request from its bytes: a quarter token for an ASCII byte, one for any other character.
/// Within 5 % of a tokenizer on mixed text; far over on base64, which is therefore better left out by the caller.
#[must_use]
pub fn estimate_input(bytes: &[u8]) -> u64 {
    let (ascii, wide) = census(bytes);
    ascii.div_ceil(4) + wide
}

/// ASCII bytes, and first bytes of other characters. Counted in bytes first, so that sixteen go into one instruction.
fn census(bytes: &[u8]) -> (u64, u64) {
    bytes.chunks(usize::from(u8::MAX)).fold((0, 0), |(ascii, wide), chunk| {
        let (few_ascii, few_wide) = chunk
            .iter()
            .fold((0_u8, 0_u8), |(ascii, wide), &byte| (ascii + u8::from(byte < 0x80), wide + u8::from(byte >= 0xc0)));
        (ascii + u64::from(few_ascii), wide + u64::from(few_wide))
    })
}

/// Estimates the output tokens of an answer from what was seen of it. 0 when nothing was.
///
/// `model` chooses the vocabulary; unknown ones are counted with OpenAI's newest. Blocks for the time the vocabulary
/// takes to load, once.
#[must_use]
pub fn estimate_output(model: Option<&str>, output: &OutputText) -> u64 {
    if output.is_empty() {
        return 0;
    }
    let text = output.decoded();
    let family = Family::of(model.unwrap_or_default());
    let extra = family.extra();
    let counted = count(family, &text);
    let kept = output.kept.len() as u64;
    let whole = counted.saturating_mul(output.bytes).checked_div(kept).unwrap_or(output.bytes / 4);
    let calls = i64::from(output.calls);
    let scaled = (whole.saturating_mul(extra.percent) / 100).cast_signed();
    scaled.saturating_add(extra.answer + calls * extra.call).max(1).cast_unsigned()
}

/// Which vocabulary, and which habits of counting, come nearest to a model's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Family {
    Claude,
    Command,
    Gemini,
    /// GPT-3.5, GPT-4 before 4o, and older.
    Gpt4,
    /// GPT-4o and 4.1, and whatever is not known.
    Gpt4o,
    /// GPT-5 and the o series.
    Gpt5,
    Llama,
    Mistral,
}

/// What providers count beyond the text that can be seen, as found in recorded answers.
struct Extra {
    /// The model's own vocabulary against the one used here, for text.
    percent: u64,
    /// Tokens around an answer.
    answer: i64,
    /// Tokens around a tool call; negative where the JSON's punctuation is not counted.
    call: i64,
}

impl Family {
    fn of(model: &str) -> Self {
        const WORDS: &[(&str, Family)] = &[
            ("claude", Family::Claude),
            ("command", Family::Command),
            ("gemini", Family::Gemini),
            ("gemma", Family::Gemini),
            ("gpt-5", Family::Gpt5),
            ("gpt-4o", Family::Gpt4o),
            ("gpt-4.1", Family::Gpt4o),
            ("gpt-4.5", Family::Gpt4o),
            ("gpt-4", Family::Gpt4),
            ("gpt-3.5", Family::Gpt4),
            ("gpt-35", Family::Gpt4),
            ("davinci", Family::Gpt4),
            ("babbage", Family::Gpt4),
            ("llama", Family::Llama),
            ("mistral", Family::Mistral),
            ("mixtral", Family::Mistral),
            ("ministral", Family::Mistral),
            ("magistral", Family::Mistral),
            ("codestral", Family::Mistral),
            ("devstral", Family::Mistral),
        ];
        let model = model.to_ascii_lowercase();
        let bare = model.rsplit('/').next().unwrap_or_default();
        if ["o1", "o3", "o4"].iter().any(|series| bare.starts_with(series)) {
            return Self::Gpt5;
        }
        WORDS.iter().find(|(word, _)| model.contains(word)).map_or(Self::Gpt4o, |&(_, family)| family)
    }

    fn extra(self) -> Extra {
        let (percent, answer, call) = match self {
            Self::Claude => (108, 3, 33),
            Self::Command => (108, 0, 25),
            Self::Gemini => (105, 1, -4),
            Self::Gpt4 => (100, 0, 8),
            Self::Gpt4o => (100, 1, 7),
            Self::Gpt5 => (100, 4, 7),
            Self::Llama => (104, 1, 7),
            Self::Mistral => (112, 1, 7),
        };
        Extra { percent, answer, call }
    }
}

#[cfg(feature = "tokenizer")]
fn count(family: Family, text: &str) -> u64 {
    match vocabulary::of(if family == Family::Gpt4 { Vocabulary::Cl100k } else { Vocabulary::O200k }) {
        Some(vocabulary) => vocabulary.count_ordinary(text) as u64,
        None => estimate_input(text.as_bytes()),
    }
}

#[cfg(not(feature = "tokenizer"))]
fn count(_: Family, text: &str) -> u64 {
    estimate_input(text.as_bytes())
}

/// Gives the vocabularies' memory back (some 40 MB each); the next estimate loads what it needs again.
pub fn unload() {
    #[cfg(feature = "tokenizer")]
    vocabulary::unload();
}

/// Decodes the escapes of a JSON string's content, tolerating what is cut or broken.
fn unescape(raw: &[u8]) -> String {
    let mut plain = Vec::with_capacity(raw.len());
    let mut rest = raw;
    while let Some(at) = memchr::memchr(b'\\', rest) {
        plain.extend_from_slice(&rest[..at]);
        let Some((&kind, after)) = rest[at + 1..].split_first() else {
            return String::from_utf8_lossy(&plain).into_owned();
        };
        rest = after;
        match kind {
            b'b' => plain.push(0x08),
            b'f' => plain.push(0x0c),
            b'n' => plain.push(b'\n'),
            b'r' => plain.push(b'\r'),
            b't' => plain.push(b'\t'),
            b'u' => {
                let (character, after) = unicode(rest);
                rest = after;
                plain.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes());
            }
            other => plain.push(other),
        }
    }
    plain.extend_from_slice(rest);
    String::from_utf8_lossy(&plain).into_owned()
}

/// Reads what follows `\u`, and a second escape if the first is half of a pair.
fn unicode(rest: &[u8]) -> (char, &[u8]) {
    let Some((first, after)) = hex4(rest) else { return (char::REPLACEMENT_CHARACTER, rest) };
    if (0xd800..0xdc00).contains(&first)
        && let Some((second, end)) = after.strip_prefix(b"\\u").and_then(hex4)
        && (0xdc00..0xe000).contains(&second)
    {
        let code = 0x10000 + ((first - 0xd800) << 10) + (second - 0xdc00);
        return (char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER), end);
    }
    (char::from_u32(first).unwrap_or(char::REPLACEMENT_CHARACTER), after)
}

fn hex4(rest: &[u8]) -> Option<(u32, &[u8])> {
    let (digits, after) = rest.split_at_checked(4)?;
    let code = digits.iter().try_fold(0, |code, &digit| Some(code << 4 | char::from(digit).to_digit(16)?))?;
    Some((code, after))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn input_is_estimated_from_bytes() {
        for (name, text, want) in
            [("empty", "", 0), ("word", "hello", 2), ("wide", "h\u{e9}llo\u{4e16}\u{754c}", 4), ("line", "a b c d ", 2)]
        {
            assert_eq!(estimate_input(text.as_bytes()), want, "{name}");
        }
    }

    #[test]
    fn output_is_bounded_and_extrapolated() {
        let mut short = OutputText::default();
        short.push("hello world ".repeat(1000).as_bytes());
        let mut long = OutputText::default();
        for _ in 0..100 {
            long.push("hello world ".repeat(1000).as_bytes());
        }
        assert_eq!(long.kept.len(), MAX_TEXT);
        let (short, long) = (estimate_output(None, &short), estimate_output(None, &long));
        assert!(long > short * 95 && long < short * 105, "{short} {long}");
        assert_eq!(estimate_output(Some("gpt-4o"), &OutputText::default()), 0);
        unload();
    }

    #[test]
    fn broken_escapes_are_survived() {
        for (raw, want) in [
            (r"a\nb\u00e9", "a\nb\u{e9}"),
            (r"\ud83d\ude00", "\u{1f600}"),
            (r"\ud83dx", "\u{fffd}x"),
            (r"cut\", "cut"),
            (r"cut\u00", "cut\u{fffd}00"),
            (r#"\"\\\/"#, r#""\/"#),
        ] {
            assert_eq!(unescape(raw.as_bytes()), want, "{raw}");
        }
    }

    proptest! {
        #[test]
        fn unescaping_undoes_json(text in any::<String>()) {
            let quoted = serde_json::to_string(&text).unwrap();
            prop_assert_eq!(unescape(&quoted.as_bytes()[1..quoted.len() - 1]), text);
        }
    }
}
