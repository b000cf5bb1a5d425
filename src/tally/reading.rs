//! A [`Reading`]: what the JSON documents of one response have said so far.
//!
//! Owns what a tag means and how documents merge; leaves which paths carry which tag to the dialects' tables, and
//! framing to the observer.

use super::figures::{Figure, Figures, count};
use super::{StreamError, Tally};
use crate::scan::json::{Event, Head, Kind, Paths, Sink, Tag};
use crate::tokens::OutputText;
use crate::unit::{ServiceTier, Usage};

/// The document itself.
pub(super) const ROOT: Tag = 0;
/// The model's name.
pub(super) const MODEL: Tag = 1;
/// Output: a string.
pub(super) const TEXT: Tag = 2;
/// Output: JSON that is not in a string, such as a tool's input.
pub(super) const OBJECT: Tag = 3;
/// Output: the name of a tool called.
pub(super) const CALL: Tag = 4;
/// Output: reasoning, under two names that some providers fill both.
pub(super) const REASONING: Tag = 5;
/// The other name.
pub(super) const REASONING_ALIAS: Tag = 6;
/// An error, when it is an object or a string.
pub(super) const ERROR: Tag = 7;
/// Its code.
pub(super) const ERROR_CODE: Tag = 8;
/// Its type or status word.
pub(super) const ERROR_KIND: Tag = 9;
/// The event's type.
pub(super) const TYPE: Tag = 10;
/// True when this is the last document.
pub(super) const DONE: Tag = 11;
/// Why the answer ended; null until it has.
pub(super) const FINISH: Tag = 12;
/// In which unit usage is given.
pub(super) const UNIT: Tag = 13;
/// The class of service.
pub(super) const TIER: Tag = 14;
/// What the call cost.
pub(super) const COST: Tag = 15;
/// One image made.
pub(super) const IMAGE: Tag = 16;
/// How long audio was, seconds with decimals.
pub(super) const SECONDS: Tag = 17;
/// Of which kind the tokens of a detail are.
pub(super) const MODALITY: Tag = 18;
/// How many they are.
pub(super) const MODAL_TOKENS: Tag = 19;
/// A detail of the prompt, of what of it was cached, or of the answer has ended.
pub(super) const OF_PROMPT: Tag = 20;
pub(super) const OF_CACHE: Tag = 21;
pub(super) const OF_ANSWER: Tag = 22;
/// Figures follow.
pub(super) const FIGURES: Tag = 32;
/// Figures of another report, which goes before the first.
pub(super) const METRICS: Tag = 64;
/// Figures that are given item by item and add up.
pub(super) const ITEMS: Tag = 96;
/// Set on paths that count only in an answer that is not streamed.
pub(super) const WHOLE: Tag = 0x100;

const MAX_MODEL: usize = 256;
const MAX_CODE: usize = 128;

/// How a report follows another of the same response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Merge {
    /// Field by field, the last one given.
    Overlay,
    /// As a whole: figures are running totals.
    Replace,
    /// They add up: each is a call of its own.
    Sum,
}

/// How one wire is read.
pub(super) struct Rules {
    pub(super) paths: &'static Paths,
    pub(super) merge: Merge,
    /// Event types after which nothing more is due.
    pub(super) terminal: &'static [&'static str],
    pub(super) settle: fn(&Reports) -> Usage,
}

/// The reports of a response, merged.
#[derive(Debug, Default)]
pub(super) struct Reports {
    pub(super) body: Figures,
    /// Bedrock's own count, and the one in its headers.
    pub(super) extra: Option<Box<Extra>>,
}

#[derive(Debug, Default)]
pub(super) struct Extra {
    pub(super) metrics: Figures,
    pub(super) headers: Figures,
}

/// Kinds of tokens that have prices of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Modality {
    Audio,
    Image,
}

/// What is known of the present document.
#[derive(Debug, Default)]
struct Document {
    figures: Figures,
    /// Usage is given in seconds, not in tokens.
    other_unit: bool,
    /// Of the detail being read.
    modality: Option<Modality>,
    modal_tokens: Option<u64>,
    /// Its strings are not output: audio, or a repetition.
    muted: bool,
    error: bool,
    code: Option<Box<str>>,
    kind: Option<Box<str>>,
}

/// What the documents have said so far.
pub(super) struct Reading {
    rules: &'static Rules,
    reports: Reports,
    document: Document,
    pub(super) streamed: bool,
    ended: bool,
    reasoning: Option<Tag>,
    model: Option<Box<str>>,
    tier: Option<ServiceTier>,
    cost_nano: Option<u64>,
    error: Option<Box<StreamError>>,
    text: OutputText,
}

impl std::fmt::Debug for Reading {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reading").field("reports", &self.reports).field("ended", &self.ended).finish_non_exhaustive()
    }
}

impl Reading {
    pub(super) fn new(rules: &'static Rules) -> Self {
        Self {
            rules,
            reports: Reports::default(),
            document: Document::default(),
            streamed: false,
            ended: false,
            reasoning: None,
            model: None,
            tier: None,
            cost_nano: None,
            error: None,
            text: OutputText::default(),
        }
    }

    pub(super) fn paths(&self) -> &'static Paths {
        self.rules.paths
    }

    /// Figures that the response's head gives.
    pub(super) fn headers(&mut self, figures: Figures) {
        self.reports.extra.get_or_insert_default().headers = figures;
    }

    /// The stream says by other means than JSON that it is over.
    pub(super) fn end(&mut self) {
        self.ended = true;
    }

    /// The framing carries an error's name.
    pub(super) fn fail(&mut self, kind: &str) {
        self.document.error = true;
        self.document.kind = Some(bounded(kind, MAX_CODE));
        self.commit();
    }

    /// The document broke off. Its report counts if it had come to more than one figure.
    pub(super) fn abandon(&mut self) {
        use super::figures::first;
        let figures = &self.document.figures;
        let input = first(figures, &[Figure::Input, Figure::Prompt]);
        if input.is_none() || first(figures, &[Figure::Output, Figure::Total]).is_none() {
            self.document.figures = Figures::default();
        }
        self.commit();
    }

    pub(super) fn usage_so_far(&self) -> Usage {
        (self.rules.settle)(&self.reports)
    }

    pub(super) fn output_so_far(&self) -> u64 {
        let reported = self.usage_so_far().output.unwrap_or(0);
        reported.max(self.text.bytes() / 4)
    }

    pub(super) fn finish(&mut self) -> Tally {
        Tally {
            usage: self.usage_so_far(),
            service_tier: self.tier,
            cost_nano: self.cost_nano,
            model_reported: self.model.take(),
            text: std::mem::take(&mut self.text),
            error: self.error.take().map(|error| *error),
            ended: self.ended,
            gave_up: None,
        }
    }

    /// The document, or an item of one that is an array, has ended.
    fn commit(&mut self) {
        let Document { mut figures, other_unit, error, code, kind, .. } = std::mem::take(&mut self.document);
        if other_unit {
            let heard = figures.get(Figure::AudioMs);
            figures = Figures::default();
            heard.into_iter().for_each(|ms| figures.set(Figure::AudioMs, ms));
        }
        if !figures.is_empty() {
            match self.rules.merge {
                Merge::Overlay => self.reports.body.overlay(&figures),
                Merge::Replace => self.reports.body = figures,
                Merge::Sum => self.reports.body.sum(&figures),
            }
        }
        if error && self.error.is_none() {
            self.error = Some(Box::new(StreamError { code, kind }));
        }
    }

    fn scalar(&mut self, tag: Tag, head: Head, raw: &[u8]) {
        match tag {
            MODEL if self.model.is_none() => {
                self.model = string(raw, MAX_MODEL).filter(|name| !name.is_empty());
            }
            TYPE => self.event_type(raw),
            FINISH if head.kind == Kind::String => self.ended = true,
            DONE if head.kind == Kind::True => self.ended = true,
            UNIT => self.document.other_unit = raw == b"\"duration\"",
            ERROR_CODE => self.document.code = string(raw, MAX_CODE),
            ERROR_KIND => self.document.kind = string(raw, MAX_CODE),
            OBJECT if !self.document.muted => self.text.push(raw),
            // A stream says first what was asked for, and last what was given.
            TIER => self.tier = tier(raw),
            COST => self.cost_nano = billionths(raw).or(self.cost_nano),
            SECONDS => {
                if let Some(nano) = billionths(raw) {
                    self.document.figures.set(Figure::AudioMs, nano.div_ceil(1_000_000));
                }
            }
            MODALITY => {
                self.document.modality = match raw {
                    b"\"AUDIO\"" => Some(Modality::Audio),
                    b"\"IMAGE\"" => Some(Modality::Image),
                    _ => None,
                }
            }
            MODAL_TOKENS => self.document.modal_tokens = count(raw),
            _ => {}
        }
        let Some(value) = (tag >= FIGURES).then(|| count(raw)).flatten() else { return };
        let index = usize::from(tag % 32);
        match tag - tag % 32 {
            FIGURES => self.document.figures.set_at(index, value),
            METRICS => self.reports.extra.get_or_insert_default().metrics.set_at(index, value),
            ITEMS => self.document.figures.add_at(index, value),
            _ => {}
        }
    }

    /// A detail has ended: its tokens are part of a figure, if they are of a kind that has one.
    fn detail(&mut self, of: Tag) {
        let Document { modality, modal_tokens, figures, .. } = &mut self.document;
        let figure = match (of, modality.take()) {
            (OF_PROMPT, Some(Modality::Audio)) => Some(Figure::AudioInput),
            (OF_PROMPT, Some(Modality::Image)) => Some(Figure::ImageInput),
            (OF_CACHE, Some(Modality::Audio)) => Some(Figure::CachedAudioInput),
            (OF_CACHE, Some(Modality::Image)) => Some(Figure::CachedImageInput),
            (OF_ANSWER, Some(Modality::Audio)) => Some(Figure::AudioOutput),
            (OF_ANSWER, Some(Modality::Image)) => Some(Figure::ImageOutput),
            _ => None,
        };
        if let (Some(figure), Some(tokens)) = (figure, modal_tokens.take()) {
            figures.add_at(figure as usize, tokens);
        }
    }

    fn event_type(&mut self, raw: &[u8]) {
        let name = raw.strip_prefix(b"\"").and_then(|raw| raw.strip_suffix(b"\"")).unwrap_or_default();
        if self.rules.terminal.iter().any(|last| last.as_bytes() == name) {
            self.ended = true;
        }
        self.document.error |= name == b"error";
        // Deltas of audio are base64, those of `conversation.…` are what the user said, and what is told as done was
        // told in deltas before.
        self.document.muted = name.ends_with(b"audio.delta")
            || name.starts_with(b"conversation.")
            || (self.streamed && name.ends_with(b".done"));
    }

    fn text(&mut self, tag: Tag, fragment: &[u8]) {
        let reasoning = matches!(tag, REASONING | REASONING_ALIAS);
        if self.document.muted || (reasoning && *self.reasoning.get_or_insert(tag) != tag) {
            return;
        }
        self.text.push(fragment);
    }

    fn ended_value(&mut self, tag: Tag, head: Head, end: u64, raw: Option<&[u8]>) {
        match (tag, raw) {
            (ROOT, _) => self.commit(),
            (ERROR, _) => self.document.error |= matches!(head.kind, Kind::Object | Kind::String),
            (CALL, _) if head.kind == Kind::String && end > head.start + 2 && !self.document.muted => {
                self.text.add_call();
            }
            (OF_PROMPT | OF_CACHE | OF_ANSWER, _) => self.detail(tag),
            (IMAGE, _) if head.kind == Kind::String => self.document.figures.add_at(Figure::Images as usize, 1),
            (OBJECT, None) if !self.document.muted => self.text.skip(end - head.start),
            (_, Some(raw)) => self.scalar(tag, head, raw),
            _ => {}
        }
    }

    /// The tag without its condition, if the condition holds.
    fn applies(&self, tag: Tag) -> Option<Tag> {
        (tag & WHOLE == 0 || !self.streamed).then_some(tag & !WHOLE)
    }
}

impl Sink for Reading {
    fn event(&mut self, event: Event<'_>) {
        match event {
            Event::Text { tag, fragment } => {
                if let Some(tag) = self.applies(tag) {
                    self.text(tag, fragment);
                }
            }
            Event::End { head, end, raw } => {
                if let Some(tag) = self.applies(head.tag) {
                    self.ended_value(tag, head, end, raw);
                }
            }
            Event::Start(_) => {}
        }
    }
}

/// The class of service by the words that providers have for it; none for the standard one.
fn tier(raw: &[u8]) -> Option<ServiceTier> {
    let word = raw.strip_prefix(b"\"")?.strip_suffix(b"\"")?;
    ServiceTier::ALL.into_iter().find(|tier| tier.as_str().as_bytes() == word)
}

/// A number as JSON has them, in billionths, rounded half up; exactly, as no float could.
fn billionths(raw: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(raw).ok()?;
    let (mantissa, exponent) = text.split_once(['e', 'E']).unwrap_or((text, "0"));
    let exponent: i32 = exponent.parse().ok()?;
    let (whole, places) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let digits: u128 = format!("{whole}{places}").parse().ok()?;
    let shift = exponent.checked_add(9)?.checked_sub(i32::try_from(places.len()).ok()?)?;
    let power = 10_u128.checked_pow(shift.unsigned_abs());
    let nano = match (shift >= 0, power) {
        (true, power) => digits.checked_mul(power?)?,
        (false, Some(power)) => digits.checked_add(power / 2)? / power,
        (false, None) => 0,
    };
    u64::try_from(nano).ok()
}

/// A scalar as text, bounded: a string's content, or a number as it stands.
fn string(raw: &[u8], most: usize) -> Option<Box<str>> {
    if let Some(rest) = raw.strip_prefix(b"\"") {
        // Nearly always it stands there as it is.
        let plain = |text: &&[u8]| text.iter().all(|byte| *byte >= b' ' && !matches!(byte, b'"' | b'\\'));
        if let Some(text) = rest.strip_suffix(b"\"").filter(plain) {
            return Some(bounded(std::str::from_utf8(text).ok()?, most));
        }
        let text: String = serde_json::from_slice(raw).ok()?;
        return Some(bounded(&text, most));
    }
    let number = raw.first().is_some_and(|byte| byte.is_ascii_digit() || *byte == b'-');
    number.then(|| bounded(&String::from_utf8_lossy(raw), most))
}

/// The first `most` characters.
fn bounded(text: &str, most: usize) -> Box<str> {
    if text.len() <= most { text.into() } else { text.chars().take(most).collect::<String>().into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_read_exactly() {
        for (raw, want) in [
            ("0", Some(0)),
            ("0.00007159", Some(71_590)),
            ("8e-7", Some(800)),
            ("1.6E-7", Some(160)),
            ("12", Some(12_000_000_000)),
            ("1.5e+1", Some(15_000_000_000)),
            ("0.0000000005", Some(1)),
            ("0.00000000049", Some(0)),
            ("1e-99", Some(0)),
            ("18446744073.709551615", Some(u64::MAX)),
            ("18446744073.709551616", None),
            ("1e99", None),
            ("1e2147483647", None),
            ("-1", None),
            ("null", None),
            ("\"1\"", None),
            ("{}", None),
        ] {
            assert_eq!(billionths(raw.as_bytes()), want, "{raw}");
        }
    }

    #[test]
    fn classes_of_service_have_many_words() {
        for (raw, want) in [
            (r#""flex""#, Some(ServiceTier::Flex)),
            (r#""priority""#, Some(ServiceTier::Priority)),
            (r#""batch""#, Some(ServiceTier::Batch)),
            (r#""default""#, None),
            (r#""standard""#, None),
            ("null", None),
        ] {
            assert_eq!(tier(raw.as_bytes()), want, "{raw}");
        }
    }
}
