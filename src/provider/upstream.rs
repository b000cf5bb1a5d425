//! [`Upstream`]: a provider as configured: where it is, how its key is presented, what is asked of its answers.
//!
//! Owns the merge of a built-in row with the operator's section, and the key's header for a call. Leaves looking one up
//! to [`super::Registry`] and dialling to `net`.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use http::header::{HeaderMap, HeaderValue};
use wildmatch::WildMatch;

use super::place::{Place, Scheme, vendor};
use super::section::{AcceptEncoding, ConfigFault, ProviderSection, Timeout};
use super::{Auth, BadKey, Call, Dialect, PROVIDERS, Provider, dialects, nearest};
use crate::provider_key::OriginTag;
use crate::secret::Secret;
use crate::virtual_key::StreamUsage;

/// A provider that requests can be sent to. Cloning is cheap enough for once a connection.
#[derive(Clone)]
pub struct Upstream {
    /// Its name in paths and ledger.
    pub id: Arc<str>,
    /// The built-in row it is made of.
    pub row: Option<&'static Provider>,
    /// Its dialect.
    pub dialect: &'static dyn Dialect,
    /// How its key is presented on its own dialect's paths; see [`Upstream::auth_for`].
    pub auth: Auth,
    /// What stands here for `/v1` of a bare request.
    pub v1: Option<Arc<str>>,
    /// Environment variables that may hold a system key, best first.
    pub env: Arc<[String]>,
    /// True where a key is optional.
    pub keyless: bool,
    /// Path of a GET that costs nothing and needs a good key.
    pub test: Option<Arc<str>>,
    /// How the usage of a stream is learned, unless the virtual key says otherwise.
    pub stream_usage: StreamUsage,
    /// What replaces the client's `accept-encoding`.
    pub accept_encoding: Option<AcceptEncoding>,
    /// How long a connection may take.
    pub connect_timeout: Option<Duration>,
    /// How long the head of an answer may take.
    pub head_timeout: Option<Duration>,
    /// True where a stream may be answered with 200 and an error as its first event.
    pub late_errors: bool,
    /// Whether HTTP/2 is offered.
    pub http2: bool,
    /// Switched on or not.
    pub enabled: bool,
    /// True when the operator gave the auth, which then holds on every path.
    fixed_auth: bool,
    /// True when the operator gave the base URL.
    pub(super) own_place: bool,
    /// True when the operator gave the models.
    pub(super) own_models: bool,
    pub(super) models: Arc<[WildMatch]>,
    pub(super) own_hosts: Arc<[String]>,
    allow_private: bool,
    place: Place,
    origin: Arc<str>,
    origin_tag: OriginTag,
}

impl fmt::Debug for Upstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut debug = f.debug_struct("Upstream");
        debug.field("id", &self.id).field("origin", &self.origin).field("dialect", &self.dialect.name());
        debug.field("auth", &self.auth).finish_non_exhaustive()
    }
}

impl Upstream {
    /// The scheme to dial with.
    #[must_use]
    pub fn scheme(&self) -> Scheme {
        self.place.scheme
    }

    /// The name or address to dial, lower case, without brackets.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.place.host
    }

    /// The port to dial.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.place.port
    }

    /// The `host` header, or `:authority`.
    #[must_use]
    pub fn authority(&self) -> &HeaderValue {
        &self.place.authority
    }

    /// What stands before every path; empty, or with a leading and no trailing slash.
    #[must_use]
    pub fn base_path(&self) -> &str {
        &self.place.base_path
    }

    /// `scheme://host:port` as configured: what provider keys are bound to. The same for all of a vendor's hosts.
    #[must_use]
    pub fn origin(&self) -> &str {
        &self.origin
    }

    /// The same at a glance.
    #[must_use]
    pub fn origin_tag(&self) -> OriginTag {
        self.origin_tag
    }

    /// The id of the vendor whose models these are: its own row's, or the one whose host the operator gave.
    #[must_use]
    pub fn vendor(&self) -> Option<&'static str> {
        self.row.or_else(|| vendor(&self.place.host)).map(|row| row.id)
    }

    /// The region of AWS it is in, by its host.
    #[must_use]
    pub fn region(&self) -> Option<&str> {
        let mut labels = self.place.host.strip_suffix(".amazonaws.com")?.split('.');
        labels.next()?.starts_with("bedrock").then(|| labels.next()).flatten()
    }

    /// More hosts that mean it, from the configuration: names, and patterns with `*`.
    #[must_use]
    pub fn further_hosts(&self) -> &[String] {
        &self.own_hosts
    }

    /// True when only public addresses may be dialled: check what the name resolves to.
    #[must_use]
    pub fn is_public(&self) -> bool {
        !self.allow_private
    }

    /// True when a glob of this provider's models matches.
    #[must_use]
    pub fn serves(&self, model: &str) -> bool {
        self.models.iter().any(|glob| glob.matches(model))
    }

    /// How this key is presented for this call: on another dialect's path, as that dialect's SDKs do.
    #[must_use]
    pub fn auth_for(&self, call: &Call<'_>, key: &Secret) -> Auth {
        let own = call.speaks.name() == self.dialect.name();
        let auth = if self.fixed_auth || own || self.auth == Auth::None { self.auth } else { call.speaks.auth() };
        // Vertex: Anthropic's models take the same token as Google's; API keys (express mode) have a header of their own.
        if self.dialect.name() == "gemini" && self.auth == Auth::Bearer && !self.fixed_auth {
            let api_key = ["AIza", "AQ."].iter().any(|prefix| key.expose().starts_with(prefix));
            return if api_key && own { Auth::XGoogApiKey } else { Auth::Bearer };
        }
        // Azure takes its keys for OpenAI's SDKs in its own header.
        if self.auth == Auth::ApiKey && call.speaks.auth() == Auth::Bearer { self.auth } else { auth }
    }

    /// Puts the key where this provider wants it for this call. The client's own credentials must be gone before.
    ///
    /// # Errors
    /// When no header can carry the key.
    pub fn authenticate(&self, call: &Call<'_>, headers: &mut HeaderMap, key: &Secret) -> Result<(), BadKey> {
        let auth = self.auth_for(call, key);
        auth.apply(headers, key)?;
        // Azure reads one or the other, by the age of the resource.
        if self.auth == Auth::ApiKey && auth == Auth::XApiKey {
            Auth::ApiKey.apply(headers, key)?;
        }
        Ok(())
    }

    /// The path and query to send: the prefix, then the client's bytes.
    #[must_use]
    pub fn path(&self, rest: &str) -> String {
        format!("{}{rest}", self.base_path())
    }

    /// The same provider at another of its vendor's hosts; keys stay bound to the configured origin.
    pub(super) fn at(&self, host: &str) -> Option<Self> {
        let place = Place::new(self.place.scheme, host, self.place.port, &self.place.base_path)?;
        Some(Self { place, ..self.clone() })
    }

    /// Merges a row and a section.
    pub(super) fn build(
        id: &str,
        row: Option<&'static Provider>,
        section: &ProviderSection,
        faults: &mut Vec<ConfigFault>,
    ) -> Option<Self> {
        let before = faults.len();
        let mut fault = |field, problem| faults.push(ConfigFault { provider: id.to_owned(), field, problem });
        let own = section.base_url.as_deref().map(Place::parse);
        let place = match own {
            Some(Ok(place)) => Some(place),
            Some(Err(problem)) => {
                fault("base_url", problem);
                None
            }
            None => row.and_then(|row| row.base_url).and_then(|url| Place::parse(url).ok()),
        };
        // A known vendor's host tells the dialect and the header of a provider of the operator's own.
        let like = row.or_else(|| vendor(&place.as_ref()?.host));
        let dialect = match &section.dialect {
            Some(name) => super::dialect(name).or_else(|| {
                fault("dialect", unknown_dialect(name));
                None
            }),
            None if like.is_none() && place.is_some() => {
                fault("dialect", format!("is missing; use one of {}", dialect_names()));
                None
            }
            None => like.map(|row| row.dialect),
        };
        let auth = section.auth.as_deref().and_then(|word| match word.parse::<Auth>() {
            Ok(auth) => Some(auth),
            Err(error) => {
                fault("auth", error.to_string());
                None
            }
        });
        check_lists(section, &mut fault);
        if let Some(problem) = place.as_ref().and_then(|place| misplaced(section, like, place)) {
            fault("base_url", problem);
        }
        if place.is_none() && section.base_url.is_none() {
            let example = row.map_or("https://llm.example.com", |row| row.base_example);
            fault("base_url", format!("is missing; write base_url = \"{example}\""));
        }
        if faults.len() > before {
            return None;
        }
        let (place, dialect) = (place?, dialect?);
        let origin: Arc<str> = place.origin().into();
        let vendors = vendor(&place.host).is_some();
        let own_place = section.base_url.is_some();
        let local_row = row.is_some_and(|row| row.keyless) && !own_place;
        let allow_private = section.allow_private.unwrap_or(local_row || own_place && !vendors);
        Some(Self {
            id: id.into(),
            row,
            dialect,
            auth: auth.or_else(|| like.map(|row| row.auth)).unwrap_or_else(|| dialect.auth()),
            v1: v1(section, like, dialect),
            env: section.env.clone().unwrap_or_else(|| row.map(env_of).unwrap_or_default()).into(),
            keyless: section.keyless.unwrap_or_else(|| row.is_some_and(|row| row.keyless) || auth == Some(Auth::None)),
            test: section.test.as_deref().or_else(|| like.and_then(|row| row.test)).map(Into::into),
            stream_usage: section.stream_usage.unwrap_or_default(),
            accept_encoding: section.accept_encoding,
            connect_timeout: section.connect_timeout.map(Timeout::duration),
            head_timeout: section.head_timeout.map(Timeout::duration),
            late_errors: like.is_some_and(|row| row.late_errors),
            http2: section.http2,
            enabled: section.enabled,
            fixed_auth: auth.is_some(),
            own_place,
            own_models: !section.models.is_empty(),
            models: globs(section, row),
            own_hosts: section.hosts.iter().map(|host| host.to_ascii_lowercase()).collect(),
            allow_private,
            place,
            origin_tag: OriginTag::of(&origin),
            origin,
        })
    }

    /// True when the place is plainly this machine or a private network, which nobody can be said to connect to by name.
    pub(super) fn is_local(&self) -> bool {
        self.place.is_local()
    }
}

fn env_of(row: &'static Provider) -> Vec<String> {
    row.env.iter().map(|name| (*name).to_owned()).collect()
}

fn globs(section: &ProviderSection, row: Option<&'static Provider>) -> Arc<[WildMatch]> {
    let built_in = row.map_or(&[][..], |row| row.models).iter().copied();
    section.models.iter().map(String::as_str).chain(built_in).map(WildMatch::new).collect()
}

/// An operator's own provider of the OpenAI dialect has its `/v1` at `/v1`.
fn v1(section: &ProviderSection, like: Option<&'static Provider>, dialect: &'static dyn Dialect) -> Option<Arc<str>> {
    let default = match like {
        Some(row) => row.v1,
        None => provider_v1(dialect),
    };
    section.v1.as_deref().or(default).map(|v1| v1.trim_end_matches('/').into())
}

fn provider_v1(dialect: &'static dyn Dialect) -> Option<&'static str> {
    PROVIDERS.iter().find(|row| row.dialect.name() == dialect.name()).and_then(|row| row.v1)
}

fn dialect_names() -> String {
    dialects().map(Dialect::name).join(", ")
}

fn unknown_dialect(name: &str) -> String {
    let hint = nearest(name, dialects().into_iter().map(Dialect::name))
        .map_or_else(String::new, |nearest| format!("did you mean {nearest:?}? "));
    format!("{name:?} is not a dialect; {hint}use one of {}", dialect_names())
}

fn check_lists(section: &ProviderSection, fault: &mut impl FnMut(&'static str, String)) {
    for host in &section.hosts {
        let good = !host.is_empty() && host.bytes().all(|c| c.is_ascii_alphanumeric() || b"-._*".contains(&c));
        if !good || !host.bytes().any(|c| c.is_ascii_alphanumeric()) {
            fault("hosts", format!("{host:?} is not a host name; write names, or patterns such as *.example.com"));
        }
    }
    for (field, path) in [("v1", &section.v1), ("test", &section.test)] {
        if path.as_deref().is_some_and(|path| !(path.starts_with('/') || path.is_empty() && field == "v1")) {
            fault(
                field,
                format!("{:?} does not begin with a slash; write a path such as /v1", path.as_deref().unwrap_or("")),
            );
        }
    }
    if section.models.iter().any(String::is_empty) {
        fault("models", "holds an empty text; write globs such as gpt-*".to_owned());
    }
    for name in section.env.iter().flatten() {
        if name.is_empty() || name.bytes().any(|c| c == b'=' || c == 0) {
            fault("env", format!("{name:?} is not the name of an environment variable"));
        }
    }
}

/// Mistakes that send a request, or a key, somewhere it does not belong.
fn misplaced(section: &ProviderSection, like: Option<&'static Provider>, place: &Place) -> Option<String> {
    section.base_url.as_ref()?;
    if place.scheme == Scheme::Http && vendor(&place.host).is_some() {
        return Some(format!("http:// would send keys to {} in clear text; write https://{}", place.host, place.host));
    }
    let v1 = like.and_then(|row| row.v1).filter(|v1| !v1.is_empty())?;
    let doubled = place.base_path.ends_with(v1) || &*place.base_path == "/v1";
    (doubled && vendor(&place.host).is_some())
        .then(|| format!("ends in {}, which the client's own path repeats; write {}", place.base_path, place.origin()))
}

#[cfg(test)]
mod tests {
    use super::super::{ANTHROPIC, GEMINI, OPENAI};
    use super::*;
    use http::Method;

    fn upstream(id: &str, section: &ProviderSection) -> Result<Upstream, Vec<String>> {
        let mut faults = Vec::new();
        let built = Upstream::build(id, super::super::provider(id), section, &mut faults);
        built.ok_or_else(|| faults.iter().map(ToString::to_string).collect())
    }

    fn at(base_url: &str) -> ProviderSection {
        ProviderSection { base_url: Some(base_url.to_owned()), ..ProviderSection::default() }
    }

    #[test]
    fn keys_follow_the_path_that_is_called() {
        let azure = at("https://r.openai.azure.com");
        for (id, section, path, key, want) in [
            ("openai", &ProviderSection::default(), "/v1/chat/completions", "k", &["authorization"][..]),
            ("deepseek", &ProviderSection::default(), "/anthropic/v1/messages", "k", &["x-api-key"]),
            ("anthropic", &ProviderSection::default(), "/v1/messages", "k", &["x-api-key"]),
            ("anthropic", &ProviderSection::default(), "/v1/messages", "sk-ant-oat01-x", &["authorization"]),
            ("anthropic", &ProviderSection::default(), "/v1/chat/completions", "k", &["authorization"]),
            ("gemini", &ProviderSection::default(), "/v1beta/models/g:generateContent", "k", &["x-goog-api-key"]),
            ("gemini", &ProviderSection::default(), "/v1beta/openai/chat/completions", "AIzaX", &["authorization"]),
            (
                "vertex",
                &ProviderSection::default(),
                "/v1/publishers/google/models/g:generateContent",
                "AQ.x",
                &["x-goog-api-key"],
            ),
            (
                "vertex",
                &ProviderSection::default(),
                "/v1/projects/p/locations/l/publishers/anthropic/models/c:rawPredict",
                "k",
                &["authorization"],
            ),
            ("azure-openai", &azure, "/openai/deployments/d/chat/completions", "k", &["api-key"]),
            ("azure-openai", &azure, "/anthropic/v1/messages", "k", &["api-key", "x-api-key"]),
        ] {
            let upstream = upstream(id, section).unwrap();
            let call = upstream.dialect.classify(&Method::POST, path);
            let mut headers = HeaderMap::new();
            upstream.authenticate(&call, &mut headers, &Secret::new(key.to_owned())).unwrap();
            headers.remove("anthropic-beta");
            let mut names: Vec<&str> = headers.keys().map(http::HeaderName::as_str).collect();
            names.sort_unstable();
            assert_eq!(names, want, "{id} {path}");
        }
    }

    #[test]
    fn an_operators_own_auth_holds_everywhere() {
        let section = ProviderSection { auth: Some("api-key".into()), ..at("https://gw.example") };
        let upstream = upstream("anthropic", &section).unwrap();
        let call = upstream.dialect.classify(&Method::POST, "/v1/chat/completions");
        assert_eq!(upstream.auth_for(&call, &Secret::new("k".into())), Auth::ApiKey);
    }

    #[test]
    fn private_addresses_are_for_the_operators_own() {
        for (id, section, public) in [
            ("openai", ProviderSection::default(), true),
            ("openai", at("http://127.0.0.1:1"), false),
            ("openai", at("https://llm.internal.example"), false),
            ("openai", at("https://eu.api.openai.com"), true),
            ("openai", ProviderSection { allow_private: Some(false), ..at("https://x.example") }, true),
            ("azure-openai", at("https://r.openai.azure.com"), true),
            ("ollama", ProviderSection::default(), false),
        ] {
            assert_eq!(upstream(id, &section).unwrap().is_public(), public, "{id} {section:?}");
        }
    }

    #[test]
    fn a_vendors_host_tells_the_dialect() {
        for (url, dialect, auth) in [
            ("https://r2.openai.azure.com", &OPENAI as &dyn Dialect, Auth::ApiKey),
            ("https://api.anthropic.com", &ANTHROPIC, Auth::XApiKey),
            ("https://europe-west1-aiplatform.googleapis.com", &GEMINI, Auth::Bearer),
        ] {
            let upstream = upstream("mine", &at(url)).unwrap();
            assert_eq!((upstream.dialect.name(), upstream.auth), (dialect.name(), auth), "{url}");
        }
    }

    #[test]
    fn faults_name_field_and_fix() {
        for (id, section, want) in [
            (
                "azure-openai",
                ProviderSection::default(),
                "[providers.azure-openai] base_url: is missing; write base_url = \"https://<resource>.openai.azure.com\"",
            ),
            (
                "mine",
                at("https://x.example"),
                "[providers.mine] dialect: is missing; use one of anthropic, bedrock, cohere, gemini, ollama, openai",
            ),
            (
                "mine",
                ProviderSection { dialect: Some("opnai".into()), ..at("https://x.example") },
                "[providers.mine] dialect: \"opnai\" is not a dialect; did you mean \"openai\"? use one of anthropic, bedrock, cohere, gemini, ollama, openai",
            ),
            (
                "openai",
                ProviderSection { auth: Some("basic".into()), ..Default::default() },
                "[providers.openai] auth: \"basic\" is not a way to present a key; use bearer, api-key, x-api-key, x-goog-api-key or none",
            ),
            (
                "openai",
                at("https://api.openai.com/v1"),
                "[providers.openai] base_url: ends in /v1, which the client's own path repeats; write https://api.openai.com:443",
            ),
            (
                "openai",
                at("http://api.openai.com"),
                "[providers.openai] base_url: http:// would send keys to api.openai.com in clear text; write https://api.openai.com",
            ),
            (
                "openai",
                ProviderSection { hosts: vec!["a b".into()], ..Default::default() },
                "[providers.openai] hosts: \"a b\" is not a host name; write names, or patterns such as *.example.com",
            ),
            (
                "openai",
                ProviderSection { v1: Some("v1".into()), ..Default::default() },
                "[providers.openai] v1: \"v1\" does not begin with a slash; write a path such as /v1",
            ),
        ] {
            assert_eq!(upstream(id, &section).unwrap_err(), [want]);
        }
        let many = ProviderSection { auth: Some("x".into()), dialect: Some("y".into()), ..at("nonsense") };
        assert_eq!(upstream("mine", &many).unwrap_err().len(), 3);
    }
}
