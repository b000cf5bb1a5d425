//! A line scanner over borrowed chunks, for newline-delimited JSON.
//!
//! Owns where lines end (LF, CRLF, CR); leaves what they say to others. Holds nothing of a line.

use memchr::memchr2;

/// A piece of the stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part<'a> {
    /// Bytes of the present line; never empty.
    Data(&'a [u8]),
    /// The line has ended. Empty lines are not told.
    End,
}

/// The scanner of one stream.
#[derive(Debug, Default)]
pub struct Scanner {
    has_data: bool,
}

impl Scanner {
    /// Takes the next bytes and tells `sink` its parts in order.
    pub fn feed(&mut self, chunk: &[u8], mut sink: impl FnMut(Part<'_>)) {
        let mut rest = chunk;
        while !rest.is_empty() {
            let end = memchr2(b'\n', b'\r', rest);
            let line = &rest[..end.unwrap_or(rest.len())];
            if !line.is_empty() {
                self.has_data = true;
                sink(Part::Data(line));
            }
            let Some(end) = end else { return };
            if std::mem::take(&mut self.has_data) {
                sink(Part::End);
            }
            rest = &rest[end + 1..];
        }
    }

    /// The stream has ended, and with it its last line.
    pub fn finish(&mut self, mut sink: impl FnMut(Part<'_>)) {
        if std::mem::take(&mut self.has_data) {
            sink(Part::End);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn lines(chunks: &[&[u8]]) -> Vec<String> {
        let mut found = Vec::new();
        let mut line = Vec::new();
        let mut scanner = Scanner::default();
        let mut sink = |part: Part<'_>| match part {
            Part::Data(piece) => line.extend_from_slice(piece),
            Part::End => found.push(String::from_utf8_lossy(&std::mem::take(&mut line)).into_owned()),
        };
        for chunk in chunks {
            scanner.feed(chunk, &mut sink);
        }
        scanner.finish(&mut sink);
        found
    }

    #[test]
    fn lines_are_told_apart() {
        for (name, input, want) in
            [("plain", "a\nb\n", &["a", "b"][..]), ("crlf and blank", "a\r\n\r\n\nb", &["a", "b"]), ("empty", "", &[])]
        {
            assert_eq!(lines(&[input.as_bytes()]), want, "{name}");
        }
    }

    proptest! {
        #[test]
        fn chunking_changes_nothing(text in "[a-c\r\n]{0,60}", size in 1usize..9) {
            let chunks: Vec<_> = text.as_bytes().chunks(size).collect();
            prop_assert_eq!(lines(&chunks), lines(&[text.as_bytes()]));
        }
    }
}
