//! Reading a request's body: held as far as it may be replayed, looked into on the way, streamed beyond that.
//!
//! Owns the bytes and their bounds; leaves what stands in them to `provider::request`.

use std::future::poll_fn;
use std::hash::{DefaultHasher, Hasher};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE};
use http::{HeaderMap, HeaderName};
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use hyper::body::Incoming;

use crate::clock::{Clock, Nanos};
use crate::net::body::{BoxError, Chunks, Outgoing};
use crate::provider::request::{Sniffer, is_multipart, sniff};
use crate::provider::{Asked, BadRequest, Call};
use crate::proxy::error::Error;
use crate::scan::decode::{Coding, Decoder, codings};
use crate::tokens::estimate_input;

/// A request's body, read as far as needed.
#[derive(Debug)]
pub(super) enum Taken {
    /// All of it: can be sent more than once.
    Held(Chunks),
    /// The first part of a large one, and the rest as it comes.
    Partial(Box<Rest>),
}

/// A body of which the beginning was read already.
#[derive(Debug)]
pub(super) struct Rest {
    head: Chunks,
    tail: Incoming,
    /// Sees the rest too: a field given twice is refused, wherever the second stands.
    sniffer: Option<Sniffer>,
    left: u64,
    max: usize,
}

/// The bounds of a body.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    /// Bytes held.
    pub(super) replay: usize,
    /// Bytes taken at all.
    pub(super) max: usize,
    /// How long the client may take for the next piece.
    pub(super) patience: Duration,
}

/// What is wrong with the rest of a body; ends the request to the provider.
#[derive(Debug, thiserror::Error)]
pub(super) enum BodyFault {
    #[error(transparent)]
    Bad(BadRequest),
    #[error("the client broke off its request")]
    Client,
    #[error("the request body is longer than {0} bytes")]
    TooLarge(usize),
}

/// What was learned of a request.
#[derive(Debug)]
pub(super) struct Read {
    pub(super) taken: Taken,
    pub(super) asked: Asked,
    /// Tokens it holds, roughly.
    pub(super) input_estimate: u64,
    /// True when the held bytes are the JSON that was read, so that a field can be put in.
    pub(super) plain: bool,
    /// How long the client took to send it.
    pub(super) waited: Nanos,
}

/// Reads `body`, and what `call` wants to know of it. What is left of it after a failure stays where it was.
pub(super) async fn take(
    call: &Call<'_>,
    headers: &HeaderMap,
    body: &mut Option<Incoming>,
    bounds: Bounds,
    clock: &Clock,
) -> Result<Read, Error> {
    let too_large = || Error::BodyTooLarge { limit: bounds.max };
    if announced(headers).is_some_and(|len| len > bounds.max as u64) {
        return Err(too_large());
    }
    let form = form(call, headers);
    // What can only be read in one piece is held in one piece.
    let hold = if matches!(form, Form::Json) { bounds.replay } else { bounds.max };
    let mut held = Chunks::default();
    let mut waited = 0;
    while let Some(coming) = body.as_mut().filter(|body| !body.is_end_stream()) {
        let before = clock.now();
        let frame = next(coming, bounds.patience).await?;
        let Some(frame) = frame else { break };
        waited += clock.now().saturating_sub(before);
        let Ok(data) = frame.map_err(|_| Error::ClientBody)?.into_data() else { continue };
        held.push(data);
        if held.len() > bounds.max as u64 {
            return Err(too_large());
        }
        if held.len() > hold as u64
            && let Some(tail) = body.take()
        {
            return Ok(Read { waited, ..partial(call, headers, held, tail, bounds)? });
        }
    }
    Ok(Read { waited, ..whole(call, headers, &form, held, bounds)? })
}

/// The next frame. Nearly always it is here already, and no timer is needed.
async fn next(body: &mut Incoming, patience: Duration) -> Result<Option<Result<Frame<Bytes>, hyper::Error>>, Error> {
    let mut frame = body.frame();
    match poll_fn(|cx| Poll::Ready(Pin::new(&mut frame).poll(cx))).await {
        Poll::Ready(frame) => Ok(frame),
        Poll::Pending => Box::pin(tokio::time::timeout(patience, frame)).await.map_err(|_| Error::ClientSlow),
    }
}

/// How the bytes of a body are to be read.
enum Form {
    Json,
    /// Multipart, or JSON whose keys need a second look: read in one piece.
    Whole,
    /// Compressed.
    Coded(Vec<Coding>),
    /// In a coding nobody here knows.
    Opaque,
}

/// The codings of a body; `None` when one of them is not known here.
fn coded(headers: &HeaderMap) -> Option<Vec<Coding>> {
    codings(headers.get_all(CONTENT_ENCODING).iter().filter_map(|value| value.to_str().ok()))
}

fn form(call: &Call<'_>, headers: &HeaderMap) -> Form {
    match coded(headers) {
        None => Form::Opaque,
        Some(coded) if !coded.is_empty() => Form::Coded(coded),
        Some(_) if call.any_case || text(headers, CONTENT_TYPE).is_some_and(is_multipart) => Form::Whole,
        Some(_) => Form::Json,
    }
}

fn whole(call: &Call<'_>, headers: &HeaderMap, form: &Form, held: Chunks, bounds: Bounds) -> Result<Read, Error> {
    let (mut plain, mut input_estimate) = (false, held.iter().map(|chunk| estimate_input(chunk)).sum());
    let asked = match form {
        Form::Json => {
            plain = true;
            let mut sniffer = Sniffer::new(call);
            for chunk in held.iter() {
                sniffer.feed(chunk)?;
            }
            sniffer.finish()?
        }
        Form::Whole => sniff(call, text(headers, CONTENT_TYPE), &held.joined())?,
        Form::Coded(coded) => {
            let clear = decode(coded, &held, bounds.replay).ok_or_else(undecodable)?;
            input_estimate = estimate_input(&clear);
            sniff(call, text(headers, CONTENT_TYPE), &clear)?
        }
        Form::Opaque if call.body_model => return Err(undecodable().into()),
        Form::Opaque => Asked::default(),
    };
    Ok(Read { taken: Taken::Held(held), asked, input_estimate, plain, waited: 0 })
}

fn partial(call: &Call<'_>, headers: &HeaderMap, head: Chunks, tail: Incoming, bounds: Bounds) -> Result<Read, Error> {
    let mut sniffer = Sniffer::new(call);
    for chunk in head.iter() {
        sniffer.feed(chunk)?;
    }
    let asked = sniffer.so_far();
    let seen: u64 = head.iter().map(|chunk| estimate_input(chunk)).sum();
    // What is still to come is unlikely to be denser than what was seen.
    let announced = announced(headers).unwrap_or(head.len());
    let input_estimate = seen.saturating_mul(announced) / head.len().max(1);
    let left = bounds.max as u64 - head.len();
    let rest = Rest { head, tail, sniffer: Some(sniffer), left, max: bounds.max };
    Ok(Read { taken: Taken::Partial(Box::new(rest)), asked, input_estimate, plain: false, waited: 0 })
}

/// A bounded copy without its compression; `None` when it is damaged or grows beyond bounds.
fn decode(coded: &[Coding], held: &Chunks, limit: usize) -> Option<Vec<u8>> {
    /// So little that what it may decode to, a thousand times as much, is soon done.
    const STEP: usize = 4 * 1024;
    let mut decoder = Decoder::new(coded);
    let mut clear = Vec::new();
    for piece in held.iter().flat_map(|chunk| chunk.chunks(STEP)) {
        decoder.feed(piece, &mut |plain| clear.extend_from_slice(plain));
        if clear.len() > limit || decoder.failed().is_some() {
            return None;
        }
    }
    Some(clear)
}

fn undecodable() -> BadRequest {
    BadRequest {
        param: None,
        message: "the compressed request cannot be read, or is longer than limits.replay_limit without compression; \
                  send gzip, deflate, br, zstd or none"
            .to_owned(),
    }
}

fn announced(headers: &HeaderMap) -> Option<u64> {
    headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

fn text(headers: &HeaderMap, name: HeaderName) -> Option<&str> {
    headers.get(name)?.to_str().ok()
}

/// A body as it came, of which each target of a route gets its own.
#[derive(Debug)]
pub(super) struct Original {
    /// All of it, or its beginning.
    held: Chunks,
    /// What is not held, until it is sent.
    rest: Option<Box<Rest>>,
    coded: Vec<Coding>,
    /// Of a compressed one so many bytes are decoded.
    limit: usize,
}

/// How a target's body differs from the one that came.
#[derive(Clone, Copy, Debug)]
pub(super) struct Change<'a> {
    /// The model's name to be written into it.
    pub(super) model: Option<&'a str>,
    /// True to ask for usage at the end of a stream.
    pub(super) usage: bool,
}

impl Original {
    pub(super) fn new(taken: Taken, headers: &HeaderMap, limit: usize) -> Self {
        let coded = coded(headers).unwrap_or_default();
        match taken {
            Taken::Held(held) => Self { held, rest: None, coded, limit },
            Taken::Partial(rest) => Self { held: rest.head.clone(), rest: Some(rest), coded, limit },
        }
    }

    /// Takes back what was made for a target that was never asked.
    pub(super) fn unsent(&mut self, taken: Taken) {
        if let Taken::Partial(rest) = taken {
            self.rest = Some(rest);
        }
    }

    /// A body with this change, and true when it is no longer compressed: what is compressed is sent plain, since its
    /// model cannot be changed otherwise. `None` when the model cannot be changed.
    pub(super) fn changed(&mut self, asked: &Asked, change: Change<'_>) -> Option<(Taken, bool)> {
        let mut cut = match change.model {
            Some(model) => Some(asked.model_splice(model)?),
            None => None,
        };
        let decoded = cut.is_some() && !self.coded.is_empty();
        let mut body = match decoded {
            true => Chunks::from(Bytes::from(decode(&self.coded, &self.held, self.limit)?)),
            false => self.held.clone(),
        };
        if change.usage
            && let Some(spliced) = asked.with_include_usage(&body.joined())
        {
            // It can be shorter too: `true` in place of `false`.
            let (before, after) = (usize::try_from(body.len()).ok()?, spliced.len());
            cut = cut.map(|(at, text)| match asked.moves_with_usage(at.start) {
                true => (at.start + after - before..at.end + after - before, text),
                false => (at, text),
            });
            body = Chunks::from(spliced);
        }
        if let Some((at, text)) = cut {
            body = body.spliced(at, text)?;
        }
        let taken = match self.rest.take() {
            Some(rest) => Taken::Partial(Box::new(Rest { head: body, ..*rest })),
            None => Taken::Held(body),
        };
        Some((taken, decoded))
    }
}

impl Taken {
    /// The body, which leaves none behind.
    pub(super) fn take(&mut self) -> Self {
        std::mem::replace(self, Self::Held(Chunks::default()))
    }

    /// A hash of the first `most` bytes, the same for this process; `None` of a body that is not held.
    pub(super) fn beginning(&self, most: usize) -> Option<u64> {
        let Self::Held(chunks) = self else { return None };
        let mut hasher = DefaultHasher::new();
        let mut left = most;
        for chunk in chunks.iter() {
            let taken = chunk.len().min(left);
            hasher.write(&chunk[..taken]);
            left -= taken;
            if left == 0 {
                break;
            }
        }
        Some(hasher.finish())
    }

    /// The body for one attempt; `None` when it was sent before and cannot be again.
    pub(super) fn attempt(&mut self, last: bool) -> Option<Outgoing> {
        match self {
            Self::Held(held) if held.is_empty() => Some(Outgoing::Empty),
            Self::Held(held) if last => Some(Outgoing::Held(std::mem::take(held))),
            Self::Held(held) => Some(Outgoing::Held(held.clone())),
            Self::Partial(_) => match std::mem::replace(self, Self::Held(Chunks::default())) {
                Self::Partial(rest) => Some(Outgoing::Streamed(Box::pin(*rest))),
                Self::Held(_) => None,
            },
        }
    }

    /// Puts in the field that asks for usage at the end of a stream.
    pub(super) fn ask_for_usage(&mut self, asked: &Asked) {
        if let Self::Held(held) = self
            && let Some(spliced) = asked.with_include_usage(&held.joined())
        {
            *held = Chunks::from(spliced);
        }
    }

    /// True when a second attempt is possible.
    pub(super) fn is_held(&self) -> bool {
        matches!(self, Self::Held(_))
    }
}

impl Body for Rest {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        if let Some(chunk) = self.head.pop() {
            return Poll::Ready(Some(Ok(Frame::data(chunk))));
        }
        let frame = match std::task::ready!(Pin::new(&mut self.tail).poll_frame(cx)) {
            Some(Ok(frame)) => frame,
            Some(Err(_)) => return Poll::Ready(Some(Err(BodyFault::Client.into()))),
            None => {
                let ended = self.sniffer.take().map_or(Ok(()), |sniffer| sniffer.finish().map(|_| ()));
                return Poll::Ready(ended.err().map(|bad| Err(BodyFault::Bad(bad).into())));
            }
        };
        let Some(data) = frame.data_ref() else { return Poll::Ready(Some(Ok(frame))) };
        let Some(left) = self.left.checked_sub(data.len() as u64) else {
            return Poll::Ready(Some(Err(BodyFault::TooLarge(self.max).into())));
        };
        self.left = left;
        if let Some(Err(bad)) = self.sniffer.as_mut().map(|sniffer| sniffer.feed(data)) {
            return Poll::Ready(Some(Err(BodyFault::Bad(bad).into())));
        }
        Poll::Ready(Some(Ok(frame)))
    }

    fn is_end_stream(&self) -> bool {
        // The end of a body of known length is where the sniffer's last word is due.
        self.head.is_empty() && self.sniffer.is_none() && self.tail.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let mut hint = self.tail.size_hint();
        let head = self.head.len();
        if let Some(upper) = hint.upper() {
            hint.set_upper(upper + head);
        }
        hint.set_lower(hint.lower() + head);
        hint
    }
}

#[cfg(test)]
mod tests {
    use http::Method;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;
    use crate::provider::{Dialect, OPENAI};

    proptest! {
        /// A target's body differs by its model, and by the field that asks for usage, wherever they stand and however the
        /// bytes came in; and the next target's is made of the same original.
        #[test]
        fn each_target_gets_its_own_of_the_same_original(
            order in Just(vec!["model", "stream", "stream_options", "x"]).prop_shuffle(),
            options in prop::sample::select(vec!["null", "{}", "{ \"a\":1}", "{\"include_usage\":false}", "{\"include_usage\":true}"]),
            gap in prop::sample::select(vec!["", " ", "\n\t "]),
            usage in any::<bool>(),
            size in 1..40_usize,
        ) {
            let value = |name: &str| match name {
                "model" => "\"sm\\u0061rt\"",
                "stream" => "true",
                "stream_options" => options,
                _ => "[{\"model\":\"smart\"}]",
            };
            let fields: Vec<String> = order.iter().map(|name| format!("{gap}\"{name}\"{gap}:{gap}{}", value(name))).collect();
            let body = format!("{{{}{gap}}}", fields.join(","));
            let call = OPENAI.classify(&Method::POST, "/v1/chat/completions");
            let asked = sniff(&call, None, body.as_bytes()).unwrap();
            let mut held = Chunks::default();
            body.as_bytes().chunks(size * 600).for_each(|piece| held.push(Bytes::copy_from_slice(piece)));
            let mut original = Original::new(Taken::Held(held), &HeaderMap::new(), 1 << 20);
            for model in [Some("first/1"), None, Some("a \"much\" longer name of a model")] {
                let (taken, decoded) = original.changed(&asked, Change { model, usage }).unwrap();
                let Taken::Held(got) = taken else { panic!("it was held") };
                let mut want: Value = serde_json::from_str(&body).unwrap();
                if let Some(model) = model {
                    want["model"] = json!(model);
                }
                if usage {
                    if !want["stream_options"].is_object() { want["stream_options"] = json!({}); }
                    want["stream_options"]["include_usage"] = json!(true);
                }
                prop_assert_eq!(serde_json::from_slice::<Value>(&got.joined()).unwrap(), want);
                prop_assert!(!decoded);
                if !usage {
                    let named = model.map_or_else(|| "\"sm\\u0061rt\"".to_owned(), |model| json!(model).to_string());
                    prop_assert_eq!(got.joined(), body.replace("\"sm\\u0061rt\"", &named));
                }
            }
        }
    }
}
