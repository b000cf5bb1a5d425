//! Providers: whom we can send to, what their paths and bodies mean, and what sidekey's own refusals look like to their
//! clients.
//!
//! Owns the [table](PROVIDERS) of built-in providers, the [`Dialect`]s, the operator's own providers ([`Registry`]) and
//! the reading of requests ([`request`]). Leaves reading responses to `tally`, sending to `proxy`, keys to `storage`.
//!
//! | dialect | endpoints told from the path | model |
//! |---|---|---|
//! | `openai` | by the path's tail, under any prefix | body; path for deployments; query for sockets |
//! | `anthropic` | `/v1/messages` and beside it | body |
//! | `gemini` | `models/<model>:<method>`, also Vertex | path |
//! | `bedrock` | `/model/<id>/converse`, `/invoke` | path |
//! | `cohere` | `/v1/chat`, `/v2/chat`, `embed`, `rerank` | body |
//! | `ollama` | `/api/chat`, `/api/generate`, `/api/embed` | body |
//!
//! A path that another dialect's clients use (`/v1beta/openai/…`, `/anthropic/v1/messages`) is read by that dialect,
//! and [`Call::speaks`] says so: refusals and the key's header follow it.

mod anthropic;
mod auth;
mod bedrock;
mod cohere;
mod endpoint;
mod gemini;
mod meaning;
mod moved;
mod ollama;
mod openai;
mod path;
mod place;
mod refusal;
mod registry;
pub mod request;
mod room;
mod section;
mod table;
mod upstream;

use std::borrow::Cow;
use std::fmt;

use bytes::Bytes;
use http::{HeaderName, Method, StatusCode};

pub use self::anthropic::{ANTHROPIC, Anthropic};
pub use self::auth::{Auth, BadKey, UnknownAuth};
pub use self::bedrock::{BEDROCK, Bedrock};
pub use self::cohere::{COHERE, Cohere};
pub use self::endpoint::{Endpoint, ModelRule, UnknownEndpoint};
pub use self::gemini::{GEMINI, Gemini};
pub use self::meaning::{Action, FirstEvent, Meaning, TEXT_MAX, first_event, judge, wants_text};
pub use self::moved::{Ask, Moved, Named};
pub use self::ollama::{OLLAMA, Ollama};
pub use self::openai::{OPENAI, OpenAi};
pub use self::path::{BadPath, check_path, encoded};
pub use self::place::Scheme;
pub use self::refusal::{Counted, RETRY_AFTER_MS, Refusal, RefusalKind, SHOULD_RETRY};
pub use self::registry::{Bare, NoProvider, Registry};
pub use self::request::{Asked, BadRequest};
pub use self::room::room;
pub use self::section::{AcceptEncoding, ConfigFault, ProviderSection, Timeout};
pub use self::table::PROVIDERS;
pub use self::upstream::Upstream;
use crate::tally::Wire;

/// A built-in provider: one row of the table.
#[derive(Clone, Copy, Debug)]
pub struct Provider {
    /// Its name in paths, config and ledger.
    pub id: &'static str,
    /// Other names it answers to.
    pub aliases: &'static [&'static str],
    /// Its hosts: exact names, and patterns in which `*` stands for a label or a part of one. With a `base_url` all of them are
    /// the vendor's own, and may be sent its keys; without one anybody can have such a host, and only the configured one
    /// is dialled.
    pub hosts: &'static [&'static str],
    /// `scheme://host[:port]`; `None` where every customer has a host of their own.
    pub base_url: Option<&'static str>,
    /// What a base URL looks like, for the message that asks for one.
    pub base_example: &'static str,
    /// How its key is presented.
    pub auth: Auth,
    /// Its dialect.
    pub dialect: &'static dyn Dialect,
    /// Environment variables that may hold a system key, best first.
    pub env: &'static [&'static str],
    /// What stands here for `/v1` of OpenAI's paths; `None` where that differs by customer, or there is none.
    pub v1: Option<&'static str>,
    /// Globs of models by which a bare `/v1/…` request finds it.
    pub models: &'static [&'static str],
    /// True where a key is optional.
    pub keyless: bool,
    /// Path of a GET that costs nothing and needs a good key; `None` where there is none.
    pub test: Option<&'static str>,
    /// True where a stream may be answered with 200 and an error as its first event.
    pub late_errors: bool,
}

/// A wire format that several providers share.
pub trait Dialect: fmt::Debug + Sync {
    /// Its word in config and ledger.
    fn name(&self) -> &'static str;

    /// Where its own SDKs put the key.
    fn auth(&self) -> Auth;

    /// What a request asks for, as far as its line tells. `path` may have a query. Never fails: what is not recognised is
    /// [`Endpoint::Other`]. Call [`check_path`] first: the reading of a refused path means nothing.
    fn classify<'a>(&self, method: &Method, path: &'a str) -> Call<'a>;

    /// The body of a refusal; see [`Refusal::response`].
    fn refusal_body(&self, refusal: &Refusal) -> Bytes;

    /// The event that ends a stream with a refusal (HTML Living Standard §9.2): the refusal's body as data.
    fn refusal_event(&self, _wire: Wire, refusal: &Refusal) -> Bytes {
        let body = self.refusal_body(refusal);
        Bytes::from([b"data: ", &body[..], b"\n\n"].concat())
    }

    /// The status of a refusal.
    fn refusal_status(&self, kind: RefusalKind) -> StatusCode {
        kind.status()
    }

    /// A header that this dialect's SDKs tell errors by.
    fn refusal_header(&self, _kind: RefusalKind) -> Option<(HeaderName, &'static str)> {
        None
    }

    /// A model's name as people and allow-lists write it.
    fn plain_model<'a>(&self, model: &'a str) -> &'a str {
        model
    }
}

/// What a request's line says.
#[derive(Clone, Debug)]
pub struct Call<'a> {
    /// What is asked for.
    pub endpoint: Endpoint,
    /// The model, where path or query names it; decoded.
    pub model: Option<Cow<'a, str>>,
    /// How the answer carries its tokens.
    pub wire: Wire,
    /// True when the model is the one the body names.
    pub body_model: bool,
    /// Whether the answer streams, where the path says so.
    pub streams: Option<bool>,
    /// True when the answer streams although the body does not say so.
    pub streams_unless_told: bool,
    /// True when the provider reads the body's keys without regard to case, as servers in Go do.
    pub any_case: bool,
    /// The dialect the client speaks on this path.
    pub speaks: &'static dyn Dialect,
}

impl Call<'_> {
    /// A call of which no more is known.
    pub(crate) fn new(speaks: &'static dyn Dialect, endpoint: Endpoint) -> Self {
        Self {
            endpoint,
            model: None,
            wire: Wire::None,
            body_model: false,
            streams: None,
            streams_unless_told: false,
            any_case: false,
            speaks,
        }
    }

    /// True of work whose cost no answer tells: batches, films, training, runs of assistants, whatever is not recognised.
    #[must_use]
    pub fn costs_unseen(&self, method: &Method) -> bool {
        let reads = matches!(*method, Method::DELETE | Method::GET | Method::HEAD | Method::OPTIONS);
        self.wire == Wire::None && !reads && !self.endpoint.is_free()
    }

    /// The model that the provider will use, as allow-lists write it: the path's, else the body's where that counts.
    #[must_use]
    pub fn model<'b>(&'b self, asked: &'b Asked) -> Option<&'b str> {
        let in_body = if self.body_model { asked.model.as_deref() } else { None };
        self.model.as_deref().or(in_body).map(|model| self.speaks.plain_model(model))
    }

    /// The same call, free of the path it was read from.
    #[must_use]
    pub fn into_owned(self) -> Call<'static> {
        Call { model: self.model.map(|model| Cow::Owned(model.into_owned())), ..self }
    }

    /// Whether the answer will stream.
    #[must_use]
    pub fn is_stream(&self, asked: &Asked) -> bool {
        self.streams.or(asked.stream).unwrap_or(self.streams_unless_told)
    }
}

/// Every dialect.
#[must_use]
pub fn dialects() -> [&'static dyn Dialect; 6] {
    [&ANTHROPIC, &BEDROCK, &COHERE, &GEMINI, &OLLAMA, &OPENAI]
}

/// The dialect of this name.
#[must_use]
pub fn dialect(name: &str) -> Option<&'static dyn Dialect> {
    dialects().into_iter().find(|dialect| dialect.name() == name)
}

/// The dialect to refuse in when the provider is not known.
#[must_use]
pub fn default_dialect() -> &'static dyn Dialect {
    &OPENAI
}

/// The row of this id or alias.
#[must_use]
pub fn provider(name: &str) -> Option<&'static Provider> {
    PROVIDERS.iter().find(|row| row.id == name || row.aliases.contains(&name))
}

/// The candidate spelt most like `text`, if any is close.
pub(crate) fn nearest<'a>(text: &str, candidates: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let scored = candidates.map(|candidate| (strsim::jaro_winkler(text, candidate), candidate));
    scored.filter(|(score, _)| *score > 0.7).max_by(|a, b| a.0.total_cmp(&b.0)).map(|(_, candidate)| candidate)
}

#[cfg(test)]
mod transcripts;
