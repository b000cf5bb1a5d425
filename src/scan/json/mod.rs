//! An incremental JSON scanner: wanted paths are reported as the bytes go by; no tree is ever built.
//!
//! Owns the grammar (strict in structure, literals, numbers and escapes; control characters and invalid UTF-8 inside
//! strings pass, since they cannot move a boundary) and the match of key paths. Leaves decoding of values to the sink.
//!
//! Arrays are transparent: an item stands at its array's own path, so `choices.delta.content` reads every choice, and a
//! document that is an array of objects reads like each of them. A key is compared after its escapes are decoded, so
//! `mod\u0065l` is `model`; only ASCII keys can be wanted. One leading byte order mark is tolerated.
//!
//! Memory: one captured value, up to the cap; an entry for each open container that is itself wanted; nothing else.

mod lexis;
mod paths;
mod scanner;
mod strings;
mod values;

pub use self::paths::Paths;
pub use self::scanner::Scanner;

/// Containers may nest this deep; serde_json's own default is 128.
pub const MAX_DEPTH: usize = 512;

/// The number under which the owner of a [`Paths`] knows a path.
pub type Tag = u16;

/// What is wanted of the value at a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Want {
    /// That it was there: its kind and where it stands. Paths below it can be wanted too.
    Mark,
    /// Its bytes as they stand, quotes and all, in one piece; none when longer than the scanner's cap.
    /// Nothing below it is matched.
    Raw,
    /// A string's content in fragments, escapes not decoded. Paths below it can be wanted too.
    Text,
}

/// The kind of a JSON value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `[…]`
    Array,
    /// `false`
    False,
    /// `null`
    Null,
    /// A number of any form.
    Number,
    /// `{…}`
    Object,
    /// `"…"`
    String,
    /// `true`
    True,
}

/// A wanted value, as far as it is known when it begins. Offsets count from the first byte fed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// The path's tag.
    pub tag: Tag,
    /// What kind of value it is.
    pub kind: Kind,
    /// Offset of its first byte (of a string: the opening quote).
    pub start: u64,
    /// True when its key stood in the same object before. Parsers disagree on which of the two counts.
    pub duplicate: bool,
    /// True when it is an item of an array that stands at this path.
    pub item: bool,
}

/// What the scanner tells its sink, in document order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event<'a> {
    /// A wanted value begins.
    Start(Head),
    /// A piece of a [`Want::Text`] string; pieces may cut an escape or a character in two.
    Text {
        /// The path's tag.
        tag: Tag,
        /// Content between the quotes, escapes not decoded; never empty.
        fragment: &'a [u8],
    },
    /// A wanted value has ended.
    End {
        /// As it was told at the start.
        head: Head,
        /// Offset after its last byte.
        end: u64,
        /// The bytes of a [`Want::Raw`] value; `None` for other wants, and for one longer than the cap.
        raw: Option<&'a [u8]>,
    },
}

/// Who is told. Implemented for closures.
pub trait Sink {
    /// Takes one event.
    fn event(&mut self, event: Event<'_>);
}

impl<F: FnMut(Event<'_>)> Sink for F {
    fn event(&mut self, event: Event<'_>) {
        self(event);
    }
}

/// Why a document is not JSON, or not all of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The input ended inside the document, or was empty.
    #[error("JSON ends early, after {at} bytes")]
    Incomplete {
        /// Bytes seen.
        at: u64,
    },
    /// More than [`MAX_DEPTH`] containers deep.
    #[error("JSON nests deeper than 512 levels, at byte {at}")]
    TooDeep {
        /// Offset of the container that is too much.
        at: u64,
    },
    /// A byte that cannot stand there; also anything but white space after the document.
    #[error("JSON has an unexpected byte {byte:#04x} at offset {at}")]
    Unexpected {
        /// The byte.
        byte: u8,
        /// Its offset.
        at: u64,
    },
}

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;

    use proptest::prelude::*;

    use super::*;

    static PATHS: LazyLock<Paths> = LazyLock::new(|| {
        Paths::new(&[
            ("model", 1, Want::Raw),
            ("usage", 2, Want::Raw),
            ("choices.delta.content", 3, Want::Text),
            ("choices.delta.content.text", 4, Want::Text),
            ("stream", 5, Want::Mark),
            ("response.usage", 6, Want::Raw),
            ("", 7, Want::Mark),
            ("a.a.a", 8, Want::Raw),
        ])
    });

    /// What the sink was told, with text joined, so that it does not depend on the chunking.
    fn told(chunks: &[&[u8]], cap: usize) -> (Vec<String>, Result<(), Error>) {
        let mut scanner = Scanner::new(&PATHS, cap);
        let mut log: Vec<String> = Vec::new();
        let mut text = Vec::new();
        let mut sink = |event: Event<'_>| match event {
            Event::Start(head) => log.push(format!("start {head:?}")),
            Event::Text { fragment, .. } => {
                assert!(!fragment.is_empty());
                text.extend_from_slice(fragment);
            }
            Event::End { head, end, raw } => {
                let raw = raw.map(String::from_utf8_lossy);
                let text = String::from_utf8_lossy(&std::mem::take(&mut text)).into_owned();
                log.push(format!("end {head:?} {end} {raw:?} {text:?}"));
            }
        };
        let mut result = Ok(());
        for chunk in chunks {
            result = result.and_then(|()| scanner.feed(chunk, &mut sink));
        }
        let result = result.and_then(|()| scanner.finish(&mut sink));
        (log, result)
    }

    fn raws(input: &str) -> Vec<(Tag, String, bool)> {
        let mut scanner = Scanner::new(&PATHS, 1000);
        let mut found = Vec::new();
        let mut sink = |event: Event<'_>| match event {
            Event::Text { tag, fragment } => found.push((tag, String::from_utf8_lossy(fragment).into_owned(), false)),
            Event::End { head, raw: Some(raw), .. } => {
                found.push((head.tag, String::from_utf8_lossy(raw).into_owned(), head.duplicate));
            }
            Event::Start(_) | Event::End { .. } => {}
        };
        scanner.feed(input.as_bytes(), &mut sink).unwrap();
        scanner.finish(&mut sink).unwrap();
        found
    }

    #[test]
    fn wanted_values_are_found() {
        for (name, input, want) in [
            ("string", r#"{"x":[{"model":1}],"model":"m"}"#, &[(1, r#""m""#, false)][..]),
            ("escaped key", r#"{"mod\u0065l":"m"}"#, &[(1, r#""m""#, false)]),
            ("not the key", r#"{"mod\u00e9l":"m","model\u0000":1,"mode":2,"models":3}"#, &[]),
            ("twice", r#"{"model":"a","b":{"model":"c"},"model":"d"}"#, &[(1, r#""a""#, false), (1, r#""d""#, true)]),
            ("object", r#"{"usage": {"a":[1,{"b":"}"}]} ,"q":1}"#, &[(2, r#"{"a":[1,{"b":"}"}]}"#, false)]),
            ("null", r#"{"usage":null}"#, &[(2, "null", false)]),
            ("number", r#"{"usage":-1.5e+3}"#, &[(2, "-1.5e+3", false)]),
            (
                "choices",
                r#"{"choices":[{"delta":{"content":"a\"b"}},{"delta":{"content":[{"text":"c"}]}},{"delta":{"content":["d"]}}]}"#,
                &[(3, r#"a\"b"#, false), (4, "c", false), (3, "d", false)],
            ),
            ("root array", r#"[{"usage":1},[{"usage":2}]]"#, &[(2, "1", false), (2, "2", false)]),
            ("nested", r#"{"response":{"usage":{}},"usage":1}"#, &[(6, "{}", false), (2, "1", false)]),
            ("after dead", r#"{"zz":{"a":{"a":{"a":1}}},"a":{"b":[[]],"a":[{"c":{}},{"a":2}]}}"#, &[(8, "2", false)]),
            ("mark of order", "\u{feff} {\"model\":true}\r\n", &[(1, "true", false)]),
        ] {
            let want: Vec<_> =
                want.iter().map(|&(tag, raw, twice): &(Tag, &str, bool)| (tag, raw.to_owned(), twice)).collect();
            assert_eq!(raws(input), want, "{name}");
        }
    }

    #[test]
    fn offsets_allow_splicing() {
        let input = r#" {"n":1, "stream" : [true] , "z":2}"#;
        let mut spans = Vec::new();
        let mut sink = |event: Event<'_>| {
            if let Event::End { head, end, .. } = event
                && !head.item
            {
                spans.push((head.tag, &input[head.start as usize..end as usize]));
            }
        };
        let mut scanner = Scanner::new(&PATHS, 10);
        scanner.feed(input.as_bytes(), &mut sink).unwrap();
        scanner.finish(&mut sink).unwrap();
        assert_eq!(spans, [(5, "[true]"), (7, &input[1..])]);
    }

    #[test]
    fn a_value_over_the_cap_is_told_without_its_bytes() {
        let input = br#"{"usage":"0123456789","model":"m"}"#;
        for size in [1, 5, 100] {
            let chunks: Vec<_> = input.chunks(size).collect();
            let (log, result) = told(&chunks, 8);
            assert_eq!(result, Ok(()));
            assert!(log[2].contains("tag: 2") && log[2].contains("None"), "{size}: {log:?}");
            assert!(log[4].contains("tag: 1") && log[4].contains("Some"), "{size}: {log:?}");
        }
    }

    #[test]
    fn broken_documents_are_refused() {
        let deep = "[".repeat(MAX_DEPTH + 1);
        for (name, input) in [
            ("empty", ""),
            ("open", "{"),
            ("open string", "{\"a"),
            ("mismatch", "{]"),
            ("mismatch 2", "[}"),
            ("trailing comma", "[1,]"),
            ("trailing comma 2", "{\"a\":1,}"),
            ("no colon", "{\"a\" 1}"),
            ("no value", "{\"a\":}"),
            ("number key", "{1:2}"),
            ("trailing", "{} x"),
            ("two", "{}{}"),
            ("leading zero", "[01]"),
            ("bare minus", "[-]"),
            ("dot", "[1.]"),
            ("exponent", "[1e]"),
            ("word", "[nul]"),
            ("word 2", "truex"),
            ("escape", r#"["\q"]"#),
            ("hex", r#"["\u12g4"]"#),
            ("half mark", "\u{feff}\u{feff}{}x"),
            ("done line", "[DONE]"),
            ("deep", &deep),
        ] {
            for size in [1, 3, 1000] {
                let chunks: Vec<_> = input.as_bytes().chunks(size).collect();
                assert!(told(&chunks, 10).1.is_err(), "{name}");
            }
        }
        let deep = format!("{}{}", "[".repeat(MAX_DEPTH), "]".repeat(MAX_DEPTH));
        assert_eq!(told(&[deep.as_bytes()], 10).1, Ok(()));
    }

    #[test]
    fn a_reset_scanner_is_new() {
        let mut scanner = Scanner::new(&PATHS, 10);
        for input in [&b"{\"usage\":\"half"[..], b"[1,,", b"{\"model\":1,\"mod", b"{\"a\":{\"a\":{\"q\":[["] {
            let _ = scanner.feed(input, &mut |_: Event<'_>| ());
            scanner.reset();
            let mut seen = Vec::new();
            let mut sink = |event: Event<'_>| {
                if let Event::End { head, raw: Some(raw), .. } = event {
                    seen.push((head, raw.to_vec()));
                }
            };
            scanner.feed(br#"{"model":"m"}"#, &mut sink).unwrap();
            assert!(scanner.is_done());
            let head = Head { tag: 1, kind: Kind::String, start: 9, duplicate: false, item: false };
            assert_eq!(seen, [(head, b"\"m\"".to_vec())]);
            scanner.reset();
        }
    }

    fn json() -> impl Strategy<Value = String> {
        let key = prop_oneof!["model|usage|choices|delta|content|text|stream|response|a", "[a-z\\\\\"\u{e9}]{0,4}"];
        let leaf = prop_oneof![
            Just("null".to_owned()),
            Just("true".to_owned()),
            Just("false".to_owned()),
            any::<i64>().prop_map(|n| n.to_string()),
            any::<f64>().prop_filter("finite", |n| n.is_finite()).prop_map(|n| serde_json::to_string(&n).unwrap()),
            any::<String>().prop_map(|s| serde_json::to_string(&s).unwrap()),
        ];
        let space = "[ \n\r\t]{0,2}";
        leaf.prop_recursive(6, 60, 6, move |inner| {
            let pair = (key.clone().prop_map(|s| serde_json::to_string(&s).unwrap()), inner.clone(), space, space)
                .prop_map(|(key, value, a, b)| format!("{a}{key}{b}:{a}{value}{b}"));
            prop_oneof![
                proptest::collection::vec(inner, 0..6).prop_map(|items| format!("[{}]", items.join(" , "))),
                proptest::collection::vec(pair, 0..6).prop_map(|pairs| format!("{{{}}}", pairs.join(","))),
            ]
        })
    }

    fn cut<'a>(input: &'a [u8], cuts: &[usize]) -> Vec<&'a [u8]> {
        let mut chunks = Vec::new();
        let mut rest = input;
        for &size in cuts {
            let (chunk, left) = rest.split_at(size.min(rest.len()));
            chunks.push(chunk);
            rest = left;
        }
        chunks.push(rest);
        chunks
    }

    proptest! {
        #[test]
        fn chunking_changes_nothing(input in json(), cuts in proptest::collection::vec(0usize..9, 0..80), cap in 0usize..40) {
            let whole = told(&[input.as_bytes()], cap);
            prop_assert_eq!(&whole.1, &Ok(()));
            prop_assert_eq!(told(&cut(input.as_bytes(), &cuts), cap), whole);
        }

        #[test]
        fn validity_agrees_with_serde_json(input in json(), at in any::<prop::sample::Index>(), with in "[\\[\\]{}:,\"0-9a-z .e-]{0,2}", take in 0usize..3) {
            let mut bytes = input.into_bytes();
            let at = at.index(bytes.len() + 1);
            let end = (at + take).min(bytes.len());
            bytes.splice(at..end, with.into_bytes());
            let theirs = serde_json::from_slice::<serde::de::IgnoredAny>(&bytes).is_ok();
            let ours = told(&[&bytes], 20).1.is_ok();
            // Inside strings we are the more tolerant (control characters, invalid UTF-8, lone surrogates).
            prop_assert!(ours || !theirs, "serde_json takes what we refuse: {:?}", String::from_utf8_lossy(&bytes));
            if ours && !theirs {
                prop_assert!(std::str::from_utf8(&bytes).is_err() || bytes.iter().any(|&b| b < 0x20 || b == b'\\'));
            }
        }

        #[test]
        fn any_bytes_are_survived(input in proptest::collection::vec(any::<u8>(), 0..200), cuts in proptest::collection::vec(0usize..9, 0..40)) {
            prop_assert_eq!(told(&cut(&input, &cuts), 20), told(&[&input], 20));
        }
    }
}
