//! [`Registry`]: every upstream, found by id or alias, by host, or by what a bare path asks for.
//!
//! Owns look-ups and their precedence; leaves one provider's settings to [`Upstream`]. It is immutable: a changed config
//! makes a new one.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use http::Method;
use rustc_hash::FxHashMap;

use super::path::Segments;
use super::place::{Scheme, host_matches};
use super::section::{ConfigFault, ProviderSection};
use super::upstream::Upstream;
use super::{ANTHROPIC, BEDROCK, COHERE, Dialect, Endpoint, GEMINI, OLLAMA, OPENAI, PROVIDERS, nearest, provider};
use crate::route::Routes;

/// First segments of bare paths, which no provider may be named after.
const RESERVED: &[&str] = &["v1", "v1alpha", "v1beta", "v1beta1", "v2", "api", "model", "upload", "ws"];

/// All providers of this process.
#[derive(Debug)]
pub struct Registry {
    /// Operators' own first, then the built-in ones in the table's order.
    all: Vec<Arc<Upstream>>,
    names: FxHashMap<Arc<str>, Arc<Upstream>>,
    hosts: HashMap<String, Arc<Upstream>>,
    patterns: Vec<(String, Pattern)>,
    default: Option<Arc<Upstream>>,
    routes: Routes,
}

/// Whom a pattern of hosts leads to.
#[derive(Debug)]
enum Pattern {
    /// The operator's: the configured place.
    Own(Arc<Upstream>),
    /// The vendor's: the very host that was asked for.
    Vendor(Arc<Upstream>),
}

/// Where a bare path leads.
#[derive(Clone, Debug)]
pub struct Bare {
    /// The provider.
    pub upstream: Arc<Upstream>,
    /// The path and query as this provider calls it, without its base path.
    pub path: String,
}

/// Why a name leads to no provider.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoProvider {
    /// Switched off.
    #[error("provider {0:?} is disabled; set enabled = true in [providers.{0}]")]
    Disabled(String),
    /// It has a host per customer, and none was given.
    #[error("provider {id:?} has a host per customer; write base_url = \"{example}\" in [providers.{id}]")]
    NeedsBaseUrl {
        /// Its id.
        id: &'static str,
        /// What one looks like.
        example: &'static str,
    },
    /// No such name.
    #[error("there is no provider {name:?}{hint}")]
    Unknown {
        /// What was asked for.
        name: String,
        /// The nearest spelling, as a phrase, or nothing.
        hint: String,
    },
}

impl Registry {
    /// Merges the built-in table with the operator's sections. `default` is the provider of bare paths whose model tells
    /// none; without it, `openai`.
    ///
    /// # Errors
    /// Every fault there is, each naming section, field and fix.
    pub fn build(
        sections: &BTreeMap<String, ProviderSection>,
        default: Option<&str>,
    ) -> Result<Self, Vec<ConfigFault>> {
        let mut faults = Vec::new();
        let mut all = Vec::new();
        let mut given: HashMap<&'static str, &ProviderSection> = HashMap::new();
        for (name, section) in sections {
            match provider(name) {
                Some(row) if given.insert(row.id, section).is_some() => {
                    let problem = format!("is another name of {:?}, which has a section too; keep one", row.id);
                    faults.push(ConfigFault { provider: name.clone(), field: "", problem });
                }
                Some(_) => {}
                None => {
                    faults.extend(bad_id(name));
                    all.extend(Upstream::build(name, None, section, &mut faults).map(Arc::new));
                }
            }
        }
        let nothing = ProviderSection::default();
        for row in PROVIDERS {
            let section = given.get(row.id).copied();
            // Without a base URL it is no fault: it is merely not there.
            if section.is_some_and(|section| section.base_url.is_some() || section.enabled) || row.base_url.is_some() {
                let built = Upstream::build(row.id, Some(row), section.unwrap_or(&nothing), &mut faults);
                all.extend(built.map(Arc::new));
            }
        }
        let registry = Self::index(all, default, &mut faults);
        if faults.is_empty() { Ok(registry) } else { Err(faults) }
    }

    fn index(all: Vec<Arc<Upstream>>, default: Option<&str>, faults: &mut Vec<ConfigFault>) -> Self {
        let mut names = FxHashMap::default();
        for upstream in &all {
            names.insert(upstream.id.clone(), upstream.clone());
            for alias in upstream.row.map_or(&[][..], |row| row.aliases) {
                names.insert((*alias).into(), upstream.clone());
            }
        }
        let mut registry =
            Self { all, names, hosts: HashMap::new(), patterns: Vec::new(), default: None, routes: Routes::default() };
        registry.index_hosts(faults);
        let wanted = default.unwrap_or("openai");
        match registry.lookup(wanted) {
            Ok(upstream) if upstream.v1.is_some() => registry.default = Some(upstream.clone()),
            // The built-in default may be switched off; one that was asked for must be there.
            Err(_) if default.is_none() => {}
            Ok(_) => faults.push(ConfigFault {
                provider: wanted.to_owned(),
                field: "v1",
                problem: "is missing, so it cannot be the default of bare paths; write what it calls /v1".to_owned(),
            }),
            Err(error) => {
                let problem = format!("cannot be the default of bare paths: {error}");
                faults.push(ConfigFault { provider: wanted.to_owned(), field: "", problem });
            }
        }
        registry
    }

    /// Said hosts first, then base URLs of the operator's own, then the table's.
    fn index_hosts(&mut self, faults: &mut Vec<ConfigFault>) {
        let enabled: Vec<Arc<Upstream>> = self.all.iter().filter(|upstream| upstream.enabled).cloned().collect();
        for upstream in &enabled {
            for host in upstream.own_hosts.iter() {
                if host.contains('*') {
                    self.patterns.push((host.clone(), Pattern::Own(upstream.clone())));
                } else if let Some(other) = self.hosts.insert(host.clone(), upstream.clone()) {
                    let problem = format!("{host:?} is also a host of [providers.{}]; keep one", other.id);
                    faults.push(ConfigFault { provider: upstream.id.to_string(), field: "hosts", problem });
                }
            }
        }
        for upstream in enabled.iter().filter(|upstream| upstream.own_place) {
            if upstream.scheme() == Scheme::Https && !upstream.is_local() {
                self.hosts.entry(upstream.host().to_owned()).or_insert_with(|| upstream.clone());
            }
        }
        for upstream in &enabled {
            let Some(row) = upstream.row.filter(|row| row.base_url.is_some()) else { continue };
            for host in row.hosts {
                if host.contains('*') {
                    let lead = if upstream.own_place { Pattern::Own } else { Pattern::Vendor };
                    self.patterns.push(((*host).to_owned(), lead(upstream.clone())));
                    continue;
                }
                let at = if upstream.own_place || *host == upstream.host() { None } else { upstream.at(host) };
                let upstream = at.map_or_else(|| upstream.clone(), Arc::new);
                self.hosts.entry((*host).to_owned()).or_insert(upstream);
            }
        }
    }

    /// Every provider, those that are switched off too.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Upstream>> {
        self.all.iter()
    }

    /// The id of a provider by its id or alias, whether or not it can be called.
    ///
    /// # Errors
    /// When there is none.
    pub fn id_of(&self, name: &str) -> Result<Arc<str>, NoProvider> {
        match self.lookup(name) {
            Ok(upstream) => Ok(Arc::clone(&upstream.id)),
            Err(NoProvider::Disabled(id)) => Ok(id.into()),
            Err(NoProvider::NeedsBaseUrl { id, .. }) => Ok(id.into()),
            Err(unknown @ NoProvider::Unknown { .. }) => Err(unknown),
        }
    }

    /// The provider of this id or alias, unless it is switched off.
    #[must_use]
    pub fn by_id(&self, name: &str) -> Option<&Arc<Upstream>> {
        self.names.get(name).filter(|upstream| upstream.enabled)
    }

    /// The provider of this id or alias, whether or not it is switched on.
    pub(super) fn known(&self, name: &str) -> Option<&Arc<Upstream>> {
        self.names.get(name)
    }

    /// The operator's routes.
    #[must_use]
    pub fn routes(&self) -> &Routes {
        &self.routes
    }

    /// The same providers, with these routes to them.
    #[must_use]
    pub fn with_routes(self, routes: Routes) -> Self {
        Self { routes, ..self }
    }

    /// As [`Registry::by_id`], saying why not.
    ///
    /// # Errors
    /// Why the name leads nowhere.
    pub fn lookup(&self, name: &str) -> Result<&Arc<Upstream>, NoProvider> {
        match (self.names.get(name), provider(name)) {
            (Some(upstream), _) if upstream.enabled => Ok(upstream),
            (Some(upstream), _) => Err(NoProvider::Disabled(upstream.id.to_string())),
            (None, Some(row)) => Err(NoProvider::NeedsBaseUrl { id: row.id, example: row.base_example }),
            (None, None) => {
                let hint = nearest(name, self.names.keys().map(|name| &**name));
                let hint = hint.map_or_else(String::new, |nearest| format!("; did you mean {nearest:?}?"));
                Err(NoProvider::Unknown { name: name.to_owned(), hint })
            }
        }
    }

    /// The provider a client means that connects to `host` (a name without port). Of a vendor's several hosts it is the
    /// one asked for that is dialled; with a base URL of the operator's, always that.
    #[must_use]
    pub fn by_host(&self, host: &str) -> Option<Arc<Upstream>> {
        let host = host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
        if let Some(upstream) = self.hosts.get(&host) {
            return Some(upstream.clone());
        }
        let plain = host.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'-' || c == b'.');
        let (_, pattern) = self.patterns.iter().find(|(pattern, _)| plain && host_matches(pattern, &host))?;
        match pattern {
            Pattern::Own(upstream) => Some(upstream.clone()),
            Pattern::Vendor(upstream) => upstream.at(&host).map(Arc::new),
        }
    }

    /// Names that between them cover, with all that lie below them, every host [`Registry::by_host`] knows or would know
    /// if more built-in providers were switched on.
    #[must_use]
    pub fn host_names(&self) -> Vec<String> {
        let built_in = PROVIDERS.iter().flat_map(|row| row.hosts.iter().copied());
        let own =
            self.hosts.keys().map(String::as_str).chain(self.patterns.iter().map(|(pattern, _)| pattern.as_str()));
        let names: BTreeSet<&str> =
            built_in.chain(own).map(below).filter(|name| name.parse::<IpAddr>().is_err()).collect();
        names.into_iter().map(str::to_owned).collect()
    }

    /// Splits `/<provider>/<own path>`. The rest keeps its bytes; an empty one is `/`.
    #[must_use]
    pub fn split<'p>(&self, path: &'p str) -> Option<(&Arc<Upstream>, Cow<'p, str>)> {
        let path = path.strip_prefix('/')?;
        let end = path.find(['/', '?']).unwrap_or(path.len());
        let (name, rest) = path.split_at(end);
        let upstream = self.by_id(name)?;
        let rest = if rest.starts_with('/') { Cow::Borrowed(rest) } else { Cow::Owned(format!("/{rest}")) };
        Some((upstream, rest))
    }

    /// The dialect a bare path is written in: read the request by it, then ask [`Registry::bare`]. `None` when the path
    /// tells nothing.
    #[must_use]
    pub fn bare_dialect(&self, path: &str) -> Option<&'static dyn Dialect> {
        let segments = Segments::of(path);
        let second = segments.get(1).unwrap_or("");
        let dialect: &'static dyn Dialect = match segments.get(0)? {
            "v1" if matches!(second, "messages" | "complete") => &ANTHROPIC,
            "v1" if second == "projects" => &GEMINI,
            "v1" if second == "models" && is_gemini(path) => &GEMINI,
            "v1" if segments.len() == 2 && second == "chat" => &COHERE,
            "v1" => &OPENAI,
            "v1alpha" | "v1beta" | "v1beta1" | "upload" | "ws" => &GEMINI,
            "v2" => &COHERE,
            "model" => &BEDROCK,
            "api" if is_ollama(second) => &OLLAMA,
            _ => return None,
        };
        Some(dialect)
    }

    /// Where a path without a provider leads: by its dialect, or for OpenAI's paths by `model`, else to the default.
    #[must_use]
    pub fn bare(&self, path: &str, model: Option<&str>) -> Option<Bare> {
        let dialect = self.bare_dialect(path)?;
        if dialect.name() != OPENAI.name() {
            let segments = Segments::of(path);
            let vertex = segments.contain("projects");
            let upstream = self.of_dialect(dialect, if vertex { "vertex" } else { dialect.name() })?;
            return Some(Bare { upstream: upstream.clone(), path: path.to_owned() });
        }
        let upstream = model.and_then(|model| self.by_model(model)).or(self.default.as_ref())?;
        let rest = path.trim_start_matches('/').strip_prefix("v1")?;
        let path = format!("{}{rest}", upstream.v1.as_deref()?);
        Some(Bare { upstream: upstream.clone(), path: if path.starts_with('/') { path } else { format!("/{path}") } })
    }

    /// The provider whose globs match this model: globs of the operator's first.
    #[must_use]
    pub fn by_model(&self, model: &str) -> Option<&Arc<Upstream>> {
        let usable = |upstream: &&Arc<Upstream>| upstream.enabled && upstream.v1.is_some() && upstream.serves(model);
        let mut own = self.all.iter().filter(|upstream| upstream.own_models);
        own.find(usable).or_else(|| self.all.iter().find(usable))
    }

    /// The default where it speaks this dialect, else the provider of this id, else any that speaks it.
    fn of_dialect(&self, dialect: &dyn Dialect, id: &str) -> Option<&Arc<Upstream>> {
        let speaks = |upstream: &&Arc<Upstream>| upstream.enabled && upstream.dialect.name() == dialect.name();
        let default = self.default.as_ref().filter(speaks);
        default.or_else(|| self.by_id(id)).or_else(|| self.all.iter().find(speaks))
    }
}

/// What stands behind the last label of a pattern that has a `*`: the names the pattern matches lie below it.
fn below(pattern: &str) -> &str {
    pattern.rsplit_once('*').map_or(pattern, |(_, rest)| rest.split_once('.').map_or("", |(_, name)| name))
}

/// `/v1/models/<model>:<method>` is Gemini's; `/v1/models/ft:…` is not.
fn is_gemini(path: &str) -> bool {
    GEMINI.classify(&Method::POST, path).endpoint != Endpoint::Other
}

fn is_ollama(word: &str) -> bool {
    ["chat", "generate", "embed", "embeddings", "tags", "show", "ps", "version"].contains(&word)
}

/// A provider's id stands in paths, in metrics and in the config.
fn bad_id(name: &str) -> Option<ConfigFault> {
    let formed = name.bytes().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || b"-_.".contains(&c));
    let problem = if name.is_empty() || name.len() > 64 || !formed || name.starts_with('.') {
        "is no name for a provider; use up to 64 of a-z, 0-9, `-`, `_` and `.`"
    } else if RESERVED.contains(&name) {
        "begins the paths of a dialect; choose another name"
    } else {
        return None;
    };
    Some(ConfigFault { provider: name.to_owned(), field: "", problem: problem.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn registry(text: &str) -> Registry {
        Registry::build(&toml::from_str(text).unwrap(), None).unwrap()
    }

    #[test]
    fn host_names_cover_every_host() {
        let registry = registry(
            "[mine]\ndialect = \"openai\"\nbase_url = \"https://llm.example:8443\"\nhosts = [\"*.gw.example\"]",
        );
        let names = registry.host_names();
        let covered = |host: &str| names.iter().any(|name| host == name || host.ends_with(&format!(".{name}")));
        for host in [
            "api.openai.com",
            "r.openai.azure.com",
            "bedrock-runtime.us-east-1.amazonaws.com",
            "europe-west1-aiplatform.googleapis.com",
            "llm.example",
            "a.gw.example",
            "w.cloud.databricks.com",
        ] {
            assert!(covered(host), "{host}: {names:?}");
        }
        assert!(!covered("evil.example") && names.iter().all(|name| name.contains('.')), "{names:?}");
    }

    #[test]
    fn ids_and_aliases() {
        let registry = registry("[azure]\nbase_url = \"https://r.openai.azure.com\"\n[groq]\nenabled = false");
        for (name, want) in [
            ("openai", Some("openai")),
            ("azure", Some("azure-openai")),
            ("azure-openai", Some("azure-openai")),
            ("google", Some("gemini")),
            ("groq", None),
            ("databricks", None),
            ("nobody", None),
        ] {
            assert_eq!(registry.by_id(name).map(|upstream| &*upstream.id), want, "{name}");
        }
        for (name, want) in [
            ("groq", "provider \"groq\" is disabled; set enabled = true in [providers.groq]"),
            (
                "databricks",
                "provider \"databricks\" has a host per customer; write base_url = \"https://<workspace>.cloud.databricks.com\" in [providers.databricks]",
            ),
            ("opneai", "there is no provider \"opneai\"; did you mean \"openai\"?"),
            ("zzzz", "there is no provider \"zzzz\""),
        ] {
            assert_eq!(registry.lookup(name).unwrap_err().to_string(), want);
        }
    }

    #[test]
    fn hosts() {
        let registry = registry(
            "[gemini]\nbase_url = \"http://127.0.0.1:9\"\n[azure]\nbase_url = \"https://mine.openai.azure.com\"\n\
             [mine]\ndialect = \"openai\"\nbase_url = \"https://llm.internal.example\"\nhosts = [\"*.llm.example\"]\n\
             [openai-eu]\nbase_url = \"https://eu.api.openai.com\"",
        );
        for (host, want) in [
            ("api.openai.com", Some(("openai", "api.openai.com"))),
            ("API.OPENAI.COM.", Some(("openai", "api.openai.com"))),
            ("us.api.openai.com", Some(("openai", "us.api.openai.com"))),
            ("eu.api.openai.com", Some(("openai-eu", "eu.api.openai.com"))),
            ("generativelanguage.googleapis.com", Some(("gemini", "127.0.0.1"))),
            ("bedrock-runtime.eu-west-1.amazonaws.com", Some(("bedrock", "bedrock-runtime.eu-west-1.amazonaws.com"))),
            ("us-central1-aiplatform.googleapis.com", Some(("vertex", "us-central1-aiplatform.googleapis.com"))),
            ("mine.openai.azure.com", Some(("azure-openai", "mine.openai.azure.com"))),
            ("evil.openai.azure.com", None),
            ("a.llm.example", Some(("mine", "llm.internal.example"))),
            ("llm.internal.example", Some(("mine", "llm.internal.example"))),
            ("localhost", None),
            ("127.0.0.1", None),
            ("api.openai.com.evil.example", None),
            ("evil-api.openai.com", None),
            ("bedrock-runtime.x/y.amazonaws.com", None),
            ("bedrock-runtime.bucket.s3.amazonaws.com", None),
        ] {
            let found = registry.by_host(host);
            assert_eq!(found.as_deref().map(|upstream| (&*upstream.id, upstream.host())), want, "{host}");
        }
        // A key entered for the provider is good at all of its vendor's hosts.
        assert_eq!(registry.by_host("us.api.openai.com").unwrap().origin(), "https://api.openai.com:443");
    }

    #[test]
    fn paths_are_split() {
        let registry = registry("");
        for (path, want) in [
            ("/openai/v1/chat/completions?x=1", Some(("openai", "/v1/chat/completions?x=1"))),
            ("/openai//v1/x", Some(("openai", "//v1/x"))),
            ("/openai", Some(("openai", "/"))),
            ("/openai/", Some(("openai", "/"))),
            ("/openai?x=1", Some(("openai", "/?x=1"))),
            ("/google/v1beta/models", Some(("gemini", "/v1beta/models"))),
            ("/v1/chat/completions", None),
            ("//openai/v1", None),
            ("openai/v1", None),
            ("/", None),
        ] {
            let found = registry.split(path);
            assert_eq!(found.as_ref().map(|(upstream, rest)| (&*upstream.id, &**rest)), want, "{path}");
        }
    }

    #[test]
    fn bare_paths() {
        let registry =
            registry("[mine]\ndialect = \"openai\"\nbase_url = \"https://x.example\"\nmodels = [\"gpt-oss*\"]");
        for (path, model, want) in [
            ("/v1/chat/completions", Some("gpt-4o"), Some(("openai", "/v1/chat/completions"))),
            ("/v1/chat/completions?a=b", Some("claude-3"), Some(("anthropic", "/v1/chat/completions?a=b"))),
            ("/v1/chat/completions", Some("gemini-2.5"), Some(("gemini", "/v1beta/openai/chat/completions"))),
            ("/v1/chat/completions", Some("gpt-oss-20b"), Some(("mine", "/v1/chat/completions"))),
            ("/v1/chat/completions", Some("sonar-pro"), Some(("perplexity", "/chat/completions"))),
            ("/v1/chat/completions", Some("command-r"), Some(("cohere", "/compatibility/v1/chat/completions"))),
            ("/v1/chat/completions", Some("glm-4.5"), Some(("zai", "/api/paas/v4/chat/completions"))),
            ("/v1/chat/completions", Some("unheard-of"), Some(("openai", "/v1/chat/completions"))),
            ("/v1/embeddings", None, Some(("openai", "/v1/embeddings"))),
            ("/v1/models", None, Some(("openai", "/v1/models"))),
            ("/v1/models/ft:gpt-4o", None, Some(("openai", "/v1/models/ft:gpt-4o"))),
            ("/v1/models/gemini-2.5:generateContent", None, Some(("gemini", "/v1/models/gemini-2.5:generateContent"))),
            ("/v1/messages", Some("anything"), Some(("anthropic", "/v1/messages"))),
            ("/v1beta/models/g:generateContent", None, Some(("gemini", "/v1beta/models/g:generateContent"))),
            ("/v1/projects/p/locations/l/x", None, Some(("vertex", "/v1/projects/p/locations/l/x"))),
            ("/v2/chat", None, Some(("cohere", "/v2/chat"))),
            ("/model/m/converse", None, Some(("bedrock", "/model/m/converse"))),
            ("/api/chat", None, Some(("ollama", "/api/chat"))),
            ("/api/keys", None, None),
            ("/", None, None),
            ("/favicon.ico", None, None),
        ] {
            let found = registry.bare(path, model);
            assert_eq!(found.as_ref().map(|bare| (&*bare.upstream.id, &*bare.path)), want, "{path} {model:?}");
        }
    }

    #[test]
    fn the_default_is_configurable() {
        let sections = BTreeMap::new();
        let registry = Registry::build(&sections, Some("groq")).unwrap();
        let bare = registry.bare("/v1/chat/completions", Some("llama3")).unwrap();
        assert_eq!((&*bare.upstream.id, &*bare.path), ("groq", "/openai/v1/chat/completions"));
        for (default, want) in [
            (
                "grok2",
                "[providers.grok2]: cannot be the default of bare paths: there is no provider \"grok2\"; did you mean \"grok\"?",
            ),
            (
                "vertex",
                "[providers.vertex] v1: is missing, so it cannot be the default of bare paths; write what it calls /v1",
            ),
        ] {
            let faults = Registry::build(&sections, Some(default)).unwrap_err();
            assert_eq!(faults.iter().map(ToString::to_string).collect::<Vec<_>>(), [want]);
        }
    }

    #[test]
    fn all_faults_are_told_at_once() {
        let sections = toml::from_str(
            "[v1]\ndialect = \"openai\"\nbase_url = \"https://a.example\"\n[Bad]\ndialect = \"x\"\n\
             [azure]\n[azure-openai]\n[one]\ndialect = \"openai\"\nbase_url = \"https://o.example\"\nhosts = [\"h.example\"]\n\
             [two]\ndialect = \"openai\"\nbase_url = \"https://t.example\"\nhosts = [\"h.example\"]",
        )
        .unwrap();
        let faults: Vec<String> =
            Registry::build(&sections, None).unwrap_err().iter().map(ToString::to_string).collect();
        for want in [
            "[providers.v1]:",
            "[providers.Bad]:",
            "[providers.Bad] dialect",
            "[providers.Bad] base_url",
            "[providers.azure-openai]:",
            "[providers.azure-openai] base_url",
            "[providers.two] hosts",
        ] {
            assert!(faults.iter().any(|fault| fault.starts_with(want)), "{want} in {faults:#?}");
        }
    }
}
