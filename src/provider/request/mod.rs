//! Reading a request's body: the model, whether it streams, how long the answer may get. Nothing is parsed into a tree.
//!
//! Owns which fields count, and the splices that ask for a stream's usage or name another model; leaves the grammar to `scan::json`, and the
//! policy to `proxy`. Fields that policy rests on must stand once: parsers disagree on which of two wins, so a second
//! one is refused. Odd values (a `stream` that is a number, a negative limit) are the provider's to refuse.
//!
//! The body is plain: of a compressed one, pass a decoded copy, and do not splice.

mod form;

use std::borrow::Cow;
use std::ops::Range;
use std::sync::LazyLock;

use bytes::{Bytes, BytesMut};
use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};

use super::refusal::{Refusal, RefusalKind};
use super::{Call, ModelRule};
use crate::scan::json::{Event, Head, Kind, Paths, Scanner, Tag, Want};
use crate::tally::Wire;

pub use form::is_multipart;

/// Longest model's name, and number, that is read.
const VALUE_CAP: usize = 1024;

const ROOT: Tag = 0;
const MODEL: Tag = 1;
const STREAM: Tag = 2;
const STREAM_OPTIONS: Tag = 3;
const INCLUDE_USAGE: Tag = 4;
/// An object that holds limits.
const LIMITS: Tag = 5;
/// How many answers; multiplies the limit.
const COUNT: Tag = 6;
/// The first of the limits.
const LIMIT: Tag = 16;

/// Every name the most tokens of an answer have.
const LIMIT_PATHS: &[&str] = &[
    "max_tokens",
    "max_completion_tokens",
    "max_output_tokens",
    "max_tokens_to_sample",
    "maxTokens",
    "max_gen_len",
    "generationConfig.maxOutputTokens",
    "generationConfig.max_output_tokens",
    "generation_config.maxOutputTokens",
    "generation_config.max_output_tokens",
    "inferenceConfig.maxTokens",
    "inferenceConfig.max_new_tokens",
    "textGenerationConfig.maxTokenCount",
    "options.num_predict",
];

const COUNT_PATHS: &[&str] = &[
    "n",
    "num_generations",
    "generationConfig.candidateCount",
    "generationConfig.candidate_count",
    "generation_config.candidateCount",
    "generation_config.candidate_count",
];

static PATHS: LazyLock<Paths> = LazyLock::new(|| {
    let mut wanted = vec![
        ("", ROOT, Want::Mark),
        ("model", MODEL, Want::Raw),
        ("stream", STREAM, Want::Mark),
        ("stream_options", STREAM_OPTIONS, Want::Mark),
        ("stream_options.include_usage", INCLUDE_USAGE, Want::Mark),
        ("generationConfig", LIMITS, Want::Mark),
        ("generation_config", LIMITS, Want::Mark),
        ("inferenceConfig", LIMITS, Want::Mark),
        ("textGenerationConfig", LIMITS, Want::Mark),
        ("options", LIMITS, Want::Mark),
    ];
    wanted.extend(COUNT_PATHS.iter().map(|path| (*path, COUNT, Want::Raw)));
    wanted.extend((LIMIT..).zip(LIMIT_PATHS).map(|(tag, path)| (*path, tag, Want::Raw)));
    Paths::new(&wanted)
});

/// What a request's body asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Asked {
    /// The model it names, as it stands; see [`Call::model`] for the one that counts.
    pub model: Option<String>,
    /// Whether it asks for a stream; `None` when it does not say.
    pub stream: Option<bool>,
    /// The most tokens it lets the provider generate, over all answers.
    pub max_output: Option<u64>,
    /// How many answers it asks for.
    pub count: Option<u64>,
    /// True when it asks for usage at the end of a stream already.
    pub include_usage: bool,
    splice: Option<Splice>,
    model_at: Option<ModelAt>,
}

/// Where the model's value stands.
#[derive(Clone, Debug, PartialEq, Eq)]
struct ModelAt {
    at: Range<usize>,
    /// True of JSON, where quotes and escapes are part of it.
    quoted: bool,
}

/// Where bytes are replaced, and by what.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Splice {
    at: Range<usize>,
    text: &'static str,
    /// True when a comma must follow unless the object is empty.
    first: bool,
}

/// Why a body is refused with 400.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct BadRequest {
    /// The field at fault.
    pub param: Option<&'static str>,
    /// What is wrong, and the fix.
    pub message: String,
}

impl BadRequest {
    fn of(param: &'static str, message: impl Into<String>) -> Self {
        Self { param: Some(param), message: message.into() }
    }

    fn twice(param: &'static str) -> Self {
        Self::of(param, format!("`{param}` is given twice; send it once"))
    }
}

impl From<BadRequest> for Refusal {
    fn from(bad: BadRequest) -> Self {
        let refusal = Self::new(RefusalKind::BadRequest, bad.message);
        match bad.param {
            Some(param) => refusal.about(param),
            None => refusal,
        }
    }
}

impl Asked {
    /// True when [`Asked::with_include_usage`] would change the body.
    #[must_use]
    pub fn can_include_usage(&self) -> bool {
        self.stream == Some(true) && !self.include_usage && self.splice.is_some()
    }

    /// Where the body names its model, and the bytes that name this one there; nothing else moves. `None` when it names
    /// none, or stands beyond what was read. Offsets are those of the plain body, before any other change.
    #[must_use]
    pub fn model_splice(&self, model: &str) -> Option<(Range<usize>, Bytes)> {
        let ModelAt { at, quoted } = self.model_at.clone()?;
        let text = if quoted { serde_json::to_vec(model).ok()? } else { model.as_bytes().to_vec() };
        Some((at, text.into()))
    }

    /// What stands behind the field that [`Asked::with_include_usage`] puts in has moved by what it is longer.
    #[must_use]
    pub fn moves_with_usage(&self, at: usize) -> bool {
        self.splice.as_ref().is_some_and(|splice| splice.at.start <= at)
    }

    /// The same body, with `stream_options.include_usage` set to true; nothing else moves. `None` when there is nothing
    /// to change: no stream, asked for already, or a wire that has no such option. `body` is the one that was read.
    #[must_use]
    pub fn with_include_usage(&self, body: &[u8]) -> Option<Bytes> {
        let splice = self.splice.as_ref().filter(|_| self.can_include_usage())?;
        let (before, after) = (body.get(..splice.at.start)?, body.get(splice.at.end..)?);
        let mut spliced = BytesMut::with_capacity(body.len() + splice.text.len() + 1);
        spliced.extend_from_slice(before);
        spliced.extend_from_slice(splice.text.as_bytes());
        if splice.first && after.iter().find(|byte| !byte.is_ascii_whitespace()) != Some(&b'}') {
            spliced.extend_from_slice(b",");
        }
        spliced.extend_from_slice(after);
        Some(spliced.freeze())
    }
}

/// Reads a whole body.
///
/// # Errors
/// When it is ambiguous, or is no JSON although the model stands in it.
pub fn sniff(call: &Call<'_>, content_type: Option<&str>, body: &[u8]) -> Result<Asked, BadRequest> {
    if let Some(boundary) = content_type.map(form::boundary).transpose()?.flatten() {
        return if call.body_model { form::read(&boundary, body) } else { Ok(Asked::default()) };
    }
    let mut sniffer = Sniffer::new(call);
    sniffer.feed(body)?;
    let asked = sniffer.finish()?;
    if call.any_case && call.body_model {
        refuse_other_spellings(body)?;
    }
    Ok(asked)
}

/// Reads a body in pieces. Reading on after an error is of no use.
#[derive(Debug)]
pub struct Sniffer {
    scanner: Scanner,
    fields: Fields,
    /// True when a body that is no JSON is refused.
    needed: bool,
    /// True when not even an empty body will do.
    named: bool,
    splices: bool,
    broken: bool,
}

impl Sniffer {
    /// A reader for the body of this call.
    #[must_use]
    pub fn new(call: &Call<'_>) -> Self {
        Self {
            scanner: Scanner::new(&PATHS, VALUE_CAP),
            fields: Fields {
                model_counts: call.body_model,
                strict: call.body_model || call.wire != Wire::None,
                ..Fields::default()
            },
            needed: call.body_model,
            named: call.endpoint.model_rule() == ModelRule::Named,
            splices: matches!(call.wire, Wire::OpenAiChat | Wire::OpenAiCompletions),
            broken: false,
        }
    }

    /// Takes the next bytes.
    ///
    /// # Errors
    /// As [`sniff`], as soon as it is known.
    pub fn feed(&mut self, chunk: &[u8]) -> Result<(), BadRequest> {
        if self.broken {
            return Ok(());
        }
        let fields = &mut self.fields;
        let fed = self.scanner.feed(chunk, &mut |event: Event<'_>| fields.event(event));
        self.check(fed.map_err(|error| error.to_string()))
    }

    /// What the body asked for up to here.
    #[must_use]
    pub fn so_far(&self) -> Asked {
        if self.broken { Asked::default() } else { self.fields.clone().asked(self.splices) }
    }

    /// What the body asks for.
    ///
    /// # Errors
    /// As [`sniff`].
    pub fn finish(mut self) -> Result<Asked, BadRequest> {
        if self.scanner.is_untouched() && !(self.needed && self.named) {
            return Ok(Asked::default());
        }
        if !self.broken {
            let fields = &mut self.fields;
            let ended = self.scanner.finish(&mut |event: Event<'_>| fields.event(event));
            self.check(ended.map_err(|error| error.to_string()))?;
        }
        if self.broken {
            return Ok(Asked::default());
        }
        Ok(self.fields.asked(self.splices))
    }

    fn check(&mut self, json: Result<(), String>) -> Result<(), BadRequest> {
        if let Some(bad) = self.fields.bad.take() {
            return Err(bad);
        }
        let problem = match json {
            Ok(()) if self.fields.root.is_none_or(|root| root.kind == Kind::Object) => return Ok(()),
            Ok(()) => "the body is not a JSON object".to_owned(),
            Err(problem) => format!("the body is not JSON: {problem}"),
        };
        self.broken = true;
        if self.needed { Err(BadRequest { param: None, message: problem }) } else { Ok(()) }
    }
}

/// What was seen so far.
#[derive(Clone, Debug, Default)]
struct Fields {
    /// True when the body's model is the one used.
    model_counts: bool,
    /// False where none of the fields means anything: what stands there is somebody else's.
    strict: bool,
    root: Option<Head>,
    model: Option<String>,
    model_at: Option<Seen>,
    stream: Option<bool>,
    options: Option<Seen>,
    include: Option<Seen>,
    limit: Option<u64>,
    count: Option<u64>,
    bad: Option<BadRequest>,
}

/// A value that may be spliced.
#[derive(Clone, Copy, Debug)]
struct Seen {
    kind: Kind,
    start: u64,
    end: u64,
}

impl Fields {
    fn event(&mut self, event: Event<'_>) {
        match event {
            Event::Start(head) if head.tag == ROOT && !head.item => self.root = Some(head),
            Event::Start(head) if head.duplicate && self.strict && self.bad.is_none() => {
                self.bad = Some(BadRequest::twice(name_of(head.tag)));
            }
            Event::End { head, end, raw } if !head.item => self.value(head, end, raw),
            Event::End { .. } | Event::Start(_) | Event::Text { .. } => {}
        }
    }

    fn value(&mut self, head: Head, end: u64, raw: Option<&[u8]>) {
        let seen = Seen { kind: head.kind, start: head.start, end };
        match head.tag {
            MODEL => self.model(seen, raw),
            STREAM if head.kind != Kind::Null => self.stream = Some(head.kind == Kind::True),
            STREAM_OPTIONS => self.options = Some(seen),
            INCLUDE_USAGE => self.include = Some(seen),
            COUNT => self.count = self.count.max(raw.and_then(number)),
            LIMIT.. => self.limit = self.limit.max(raw.and_then(number)),
            _ => {}
        }
    }

    fn model(&mut self, seen: Seen, raw: Option<&[u8]>) {
        match (seen.kind, raw) {
            (Kind::Null, _) => {}
            (Kind::String, Some(raw)) if let Ok(name) = serde_json::from_slice::<String>(raw) => {
                (self.model, self.model_at) = (Some(name), Some(seen));
            }
            _ if self.bad.is_some() || !self.model_counts => {}
            (Kind::String, None) => {
                self.bad = Some(BadRequest::of("model", format!("`model` is longer than {VALUE_CAP} bytes")));
            }
            _ => self.bad = Some(BadRequest::of("model", "`model` is not a string; send the model's name")),
        }
    }

    fn asked(self, splices: bool) -> Asked {
        let splice = if splices { self.splice() } else { None };
        let model_at = self.model_at.and_then(|seen| Some(ModelAt { at: range(seen.start, seen.end)?, quoted: true }));
        Asked {
            include_usage: self.options.is_some_and(|seen| seen.kind == Kind::Object)
                && self.include.is_some_and(|seen| seen.kind == Kind::True),
            model: self.model,
            stream: self.stream,
            max_output: self.limit.map(|limit| limit.saturating_mul(self.count.unwrap_or(1).max(1))),
            count: self.count,
            splice,
            model_at,
        }
    }

    /// The least change that asks for usage.
    fn splice(&self) -> Option<Splice> {
        match (self.options, self.include) {
            (Some(options), Some(include)) if options.kind == Kind::Object => {
                Some(Splice { at: range(include.start, include.end)?, text: "true", first: false })
            }
            (Some(options), None) if options.kind == Kind::Object => {
                let at = range(options.start + 1, options.start + 1)?;
                Some(Splice { at, text: "\"include_usage\":true", first: true })
            }
            (Some(options), _) if options.kind == Kind::Null => {
                let at = range(options.start, options.end)?;
                Some(Splice { at, text: "{\"include_usage\":true}", first: false })
            }
            // Not an object: the provider's to refuse.
            (Some(_), _) => None,
            (None, _) => {
                let after = self.root?.start + 1;
                let text = "\"stream_options\":{\"include_usage\":true}";
                Some(Splice { at: range(after, after)?, text, first: true })
            }
        }
    }
}

fn range(from: u64, to: u64) -> Option<Range<usize>> {
    Some(usize::try_from(from).ok()?..usize::try_from(to).ok()?)
}

fn name_of(tag: Tag) -> &'static str {
    match tag {
        MODEL => "model",
        STREAM => "stream",
        STREAM_OPTIONS => "stream_options",
        INCLUDE_USAGE => "stream_options.include_usage",
        LIMITS => "an object of limits",
        COUNT => "the number of answers",
        _ => LIMIT_PATHS.get(usize::from(tag.saturating_sub(LIMIT))).copied().unwrap_or("a field"),
    }
}

/// A count, floats rounded up and too large ones capped; `None` for what is not a number above or at zero.
fn number(raw: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(raw).ok()?;
    if let Ok(number) = text.parse::<u64>() {
        return Some(number);
    }
    let number = text.parse::<f64>().ok().filter(|number| *number >= 0.0)?;
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a float's cast saturates, and it is not negative"
    )]
    Some(number.ceil() as u64)
}

/// Servers in Go read `Model` as `model`, the last one winning.
fn refuse_other_spellings(body: &[u8]) -> Result<(), BadRequest> {
    struct Keys;
    impl<'de> Visitor<'de> for Keys {
        type Value = bool;
        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("an object")
        }
        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<bool, A::Error> {
            let mut found = false;
            while let Some(key) = map.next_key::<Cow<'de, str>>()? {
                map.next_value::<IgnoredAny>()?;
                found |= key != "model" && key.eq_ignore_ascii_case("model");
            }
            Ok(found)
        }
    }
    match serde_json::Deserializer::from_slice(body).deserialize_map(Keys) {
        Ok(false) => Ok(()),
        Ok(true) => Err(BadRequest::of("model", "`model` is written with capitals; write it in lower case")),
        Err(error) => Err(BadRequest { param: None, message: format!("the body is not JSON: {error}") }),
    }
}

#[cfg(test)]
mod tests;
