//! How far a command has come, on a terminal: one line on standard error, drawn over itself.
//!
//! Owns the line. By hand, since it is all there is: a crate for bars would be larger than the whole of `cli::out`.

use std::io::{self, IsTerminal, Write};

use crate::cli::args::Format;

/// Characters of the bar.
const WIDTH: usize = 20;
/// Of what is under way, no more is shown: the line must not break.
const LABEL_MAX: usize = 40;

/// A bar; it clears its line when dropped.
#[derive(Debug)]
pub(super) struct Progress {
    total: usize,
    done: usize,
    shown: bool,
}

impl Progress {
    /// Of so many steps. Shown only to a person who is answered by a table: never in a pipe, nor beside JSON.
    pub(super) fn new(total: usize, format: Format) -> Self {
        Self { total, done: 0, shown: format == Format::Table && total > 1 && io::stderr().is_terminal() }
    }

    /// A step begins.
    pub(super) fn begin(&mut self, label: &str) {
        self.draw(&line(self.done, self.total, label));
    }

    /// The step has ended, with a line to stay above the bar.
    pub(super) fn end(&mut self, result: &str) {
        self.done += 1;
        self.draw(&format!("{result}\n"));
    }

    fn draw(&self, text: &str) {
        if self.shown {
            let mut stderr = io::stderr().lock();
            // A terminal that is gone shows nothing.
            let _ = write!(stderr, "\r\x1b[2K{text}").and_then(|()| stderr.flush());
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.draw("");
    }
}

fn line(done: usize, total: usize, label: &str) -> String {
    let full = done * WIDTH / total.max(1);
    let label: String = label.chars().filter(|c| !c.is_control()).take(LABEL_MAX).collect();
    format!("[{}{}] {done}/{total} {label}", "#".repeat(full), "-".repeat(WIDTH - full))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines() {
        for (done, total, label, want) in [
            (0, 4, "openai/main", "[--------------------] 0/4 openai/main"),
            (1, 3, "a", "[######--------------] 1/3 a"),
            (3, 3, "\x1b[31mred\r\n", "[####################] 3/3 [31mred"),
            (0, 0, "", "[--------------------] 0/0 "),
        ] {
            assert_eq!(line(done, total, label), want);
        }
        assert!(line(0, 2, &"x".repeat(100)).len() < 80);
    }
}
