//! Routes as the providers allow them: which leads a request where, and what the request looks like there.
//!
//! Owns the rule when a route applies, the path and the model's name at another provider of the same dialect, and what
//! of a route can never work. Leaves the order of targets to `route`, splicing bodies and sending to `proxy`.
//!
//! A request that is moved is read again as its new provider reads it: where that is another call, it is not moved.

use std::borrow::Cow;
use std::ops::Range;
use std::sync::Arc;

use http::Method;

use super::path::{Segments, check_path, decode, encoded, without_query};
use super::{Asked, Call, Dialect, Endpoint, GEMINI, ModelRule, OPENAI, Registry, Upstream};
use crate::route::{Fault, Route, Routes};

/// A request as it was asked.
#[derive(Clone, Copy, Debug)]
pub struct Ask<'a> {
    /// Its method.
    pub method: &'a Method,
    /// Path and query, as the provider it names has them.
    pub path: &'a str,
    /// What it means there.
    pub call: &'a Call<'a>,
    /// What its body says.
    pub asked: &'a Asked,
    /// The provider it names; `None` of a bare path.
    pub named: Named<'a>,
}

/// The provider a request names, if any.
pub type Named<'a> = Option<&'a Arc<Upstream>>;

/// The same request at a target.
#[derive(Clone, Debug)]
pub struct Moved {
    /// Path and query, without the provider's base path.
    pub path: String,
    /// What it means there.
    pub call: Call<'static>,
    /// The model that is called, as allow-lists write it.
    pub model: String,
    /// The model's name to be written into the body.
    pub in_body: Option<String>,
}

impl Registry {
    /// The route in `routes` that leads this call, if one does: by the model it names. A route for a very name is what
    /// that name means, wherever it is asked for; one for a glob leaves requests alone that name a provider which is
    /// none of its targets.
    #[must_use]
    pub fn route<'r>(
        &self,
        routes: &'r Routes,
        named: Named<'_>,
        call: &Call<'_>,
        model: Option<&str>,
    ) -> Option<&'r Arc<Route>> {
        if routes.is_empty() || call.endpoint.model_rule() != ModelRule::Named {
            return None;
        }
        let route = routes.find(model?)?;
        let spoken = call.speaks.name();
        let known = route.targets.iter().find_map(|target| self.known(&target.provider));
        if known.is_some_and(|upstream| upstream.dialect.name() != spoken) {
            return None;
        }
        let Some(named) = named else { return Some(route) };
        let is_target = || route.targets.iter().filter_map(|target| self.known(&target.provider));
        let leads = route.is_exact() || is_target().any(|upstream| upstream.id == named.id);
        (leads && named.dialect.name() == spoken).then_some(route)
    }

    /// What can never work in these routes.
    #[must_use]
    pub fn route_faults(&self, routes: &Routes) -> Vec<Fault> {
        let mut faults = routes.faults();
        for route in routes.iter() {
            let what = self.misled(route);
            faults.extend(what.map(|what| Fault { pattern: route.pattern.to_string(), what }));
        }
        faults
    }

    fn misled(&self, route: &Route) -> Option<String> {
        let mut first: Option<&Arc<Upstream>> = None;
        for (place, target) in route.targets.iter().enumerate() {
            let Some(upstream) = self.known(&target.provider) else {
                let why = self.lookup(&target.provider).err()?;
                return Some(format!("targets[{place}].provider: {why}"));
            };
            let before = *first.get_or_insert(upstream);
            if before.id == upstream.id {
                continue;
            }
            let (id, dialect) = (&upstream.id, upstream.dialect.name());
            let problem = if dialect != before.dialect.name() {
                let other = before.dialect.name();
                format!("{id} speaks the dialect {dialect} and {} {other}; name providers of one dialect", before.id)
            } else if dialect == GEMINI.name() && is_vertex(upstream) != is_vertex(before) {
                format!("{id} and {} have other paths; name providers of one of them", before.id)
            } else if dialect == OPENAI.name()
                && let Some(without) = [before, upstream].into_iter().find(|upstream| upstream.v1.is_none())
            {
                format!("nothing is known of {0}'s /v1; write v1 in [providers.{0}]", without.id)
            } else {
                continue;
            };
            return Some(format!("targets[{place}].provider: {problem}"));
        }
        None
    }
}

fn is_vertex(upstream: &Upstream) -> bool {
    upstream.vendor() == Some("vertex")
}

impl Ask<'_> {
    /// The request at this provider, under this model's name; unless given, under the one that was asked for.
    ///
    /// # Errors
    /// Why it cannot be asked there.
    pub fn moved(&self, to: &Upstream, model: Option<&str>) -> Result<Moved, String> {
        let dialect = to.dialect;
        if dialect.name() != self.call.speaks.name() {
            return Err(format!("{} speaks the dialect {}", to.id, dialect.name()));
        }
        let asked = self.call.model(self.asked).unwrap_or_default();
        let Some(model) = model.filter(|model| dialect.plain_model(model) != asked) else {
            let path = self.path_at(to)?.into_owned();
            return self.read(to, path, asked.to_owned(), None);
        };
        let path = self.path_at(to)?;
        let model = dialect.plain_model(model);
        if self.call.model.is_none() {
            return self.read(to, path.into_owned(), model.to_owned(), Some(model.to_owned()));
        }
        let named = with_model(dialect, &path, model).ok_or("its path has no place for another model")?;
        let in_body = self.beside_path(model)?;
        self.read(to, named, model.to_owned(), in_body)
    }

    /// Gemini's requests for vectors name the model in their bodies too, and the two must agree.
    fn beside_path(&self, model: &str) -> Result<Option<String>, String> {
        if self.call.speaks.name() != GEMINI.name() || self.call.endpoint != Endpoint::Embeddings {
            return Ok(None);
        }
        if without_query(self.path).to_ascii_lowercase().contains("batchembed") {
            return Err("each part of a batch of vectors names its model; ask for them one by one".to_owned());
        }
        let prefix = |said: &String| if said.starts_with("models/") { "models/" } else { "" };
        Ok(self.asked.model.as_ref().map(|said| format!("{}{model}", prefix(said))))
    }

    /// The path as this provider has it.
    fn path_at(&self, to: &Upstream) -> Result<Cow<'_, str>, String> {
        let Self { path, named, .. } = *self;
        if named.is_some_and(|named| named.id == to.id) {
            return Ok(Cow::Borrowed(path));
        }
        if to.dialect.name() == GEMINI.name() {
            let segments = Segments::of(path);
            let vertex = segments.contain("projects") || segments.contain("publishers");
            let fits = vertex == is_vertex(to);
            return if fits { Ok(Cow::Borrowed(path)) } else { Err(format!("{} has other paths", to.id)) };
        }
        if to.dialect.name() != OPENAI.name() {
            return Ok(Cow::Borrowed(path));
        }
        let same =
            |named: &Arc<Upstream>| named.vendor().is_some() && named.vendor() == to.vendor() && named.v1 == to.v1;
        if named.is_some_and(same) {
            return Ok(Cow::Borrowed(path));
        }
        let v1 = named.map_or(Some("/v1"), |named| named.v1.as_deref());
        let leading = path.bytes().take_while(|byte| *byte == b'/').count();
        let path = if named.is_none() { &path[leading.saturating_sub(1)..] } else { path };
        let rest = v1.and_then(|v1| path.strip_prefix(v1)).filter(|rest| rest.starts_with('/'));
        let rest = rest.ok_or_else(|| format!("its path is not below {}", v1.unwrap_or("any /v1")))?;
        let there = to.v1.as_deref().ok_or_else(|| format!("nothing is known of the /v1 of {}", to.id))?;
        Ok(Cow::Owned(format!("{there}{rest}")))
    }

    /// Reads the request as its new provider does.
    fn read(&self, to: &Upstream, path: String, model: String, in_body: Option<String>) -> Result<Moved, String> {
        check_path(&path).map_err(|why| format!("{model:?} cannot stand in its path: {why}"))?;
        let there = to.dialect.classify(self.method, &path).into_owned();
        let here = self.call;
        let same = (there.endpoint, there.wire, there.body_model) == (here.endpoint, here.wire, here.body_model)
            && there.speaks.name() == here.speaks.name()
            && there.streams == here.streams
            && there.model.as_deref().is_none_or(|named| there.speaks.plain_model(named) == model)
            && there.model.is_some() == here.model.is_some();
        if !same {
            return Err(format!("it would ask for something else at {}", to.id));
        }
        Ok(Moved { path, call: there, model, in_body })
    }
}

/// The path with another model where it names one.
fn with_model(dialect: &dyn Dialect, path: &str, model: &str) -> Option<String> {
    let segments = spans(path);
    let position = |words: &[&str]| {
        let is = |text: &Cow<'_, str>| words.iter().any(|word| text.eq_ignore_ascii_case(word));
        segments.iter().position(|(_, text)| is(text))
    };
    let (at, text): (Range<usize>, String) = match dialect.name() {
        "bedrock" => {
            let (first, last) = (segments.get(1)?, segments.get(segments.len().checked_sub(2)?)?);
            (first.0.start..last.0.end, encoded(model))
        }
        "gemini" => {
            let (first, last) = (segments.get(position(&["models", "tunedModels"])? + 1)?, segments.last()?);
            let (_, method) = last.1.rsplit_once(':')?;
            (first.0.start..last.0.end, format!("{}:{}", encoded(model), encoded(method)))
        }
        _ => match position(&["deployments"]).or_else(|| position(&["engines"])) {
            Some(place) => (segments.get(place + 1)?.0.clone(), encoded(model)),
            None => (parameter(path, &["model", "deployment"])?, encoded(model)),
        },
    };
    Some(format!("{}{text}{}", path.get(..at.start)?, path.get(at.end..)?))
}

/// The segments that are not empty: where they stand, and decoded.
fn spans(path: &str) -> Vec<(Range<usize>, Cow<'_, str>)> {
    let mut at = 0;
    let mut found = Vec::new();
    for raw in without_query(path).split('/') {
        if !raw.is_empty() {
            found.push((at..at + raw.len(), decode(raw).unwrap_or(Cow::Borrowed(raw))));
        }
        at += raw.len() + 1;
    }
    found
}

/// Where the value of the one parameter of these names stands.
fn parameter(path: &str, names: &[&str]) -> Option<Range<usize>> {
    let mut at = without_query(path).len() + 1;
    for pair in path.get(at..)?.split('&') {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        if decode(name).is_some_and(|name| names.contains(&&*name)) && pair.len() > name.len() {
            let start = at + name.len() + 1;
            return Some(start..start + value.len());
        }
        at += pair.len() + 1;
    }
    None
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::super::ProviderSection;
    use super::*;

    fn registry() -> Registry {
        let at = |dialect: Option<&str>, v1: Option<&str>| ProviderSection {
            base_url: Some("http://127.0.0.1:1".to_owned()),
            dialect: dialect.map(str::to_owned),
            v1: v1.map(str::to_owned),
            ..ProviderSection::default()
        };
        let azure = |host: &str| ProviderSection { base_url: Some(format!("https://{host}")), ..Default::default() };
        let sections = BTreeMap::from([
            ("azure-openai".to_owned(), azure("r.openai.azure.com")),
            ("azure-2".to_owned(), azure("r2.openai.azure.com")),
            ("mine".to_owned(), at(Some("openai"), Some("/llm/v1"))),
            ("gateway".to_owned(), at(Some("anthropic"), None)),
            ("bed".to_owned(), at(Some("bedrock"), None)),
            ("gem".to_owned(), at(Some("gemini"), None)),
            ("off".to_owned(), ProviderSection { enabled: false, ..at(Some("openai"), None) }),
        ]);
        Registry::build(&sections, None).unwrap()
    }

    fn moved(named: &str, path: &str, body: &str, to: &str, model: Option<&str>) -> Result<Moved, String> {
        let registry = registry();
        let named = registry.by_id(named);
        let dialect = named.map_or_else(|| registry.bare_dialect(path).unwrap(), |named| named.dialect);
        let call = dialect.classify(&Method::POST, path);
        let asked = super::super::request::sniff(&call, None, body.as_bytes()).unwrap();
        let ask = Ask { method: &Method::POST, path, call: &call, asked: &asked, named };
        ask.moved(registry.by_id(to).unwrap(), model)
    }

    const BODY: &str = r#"{"model":"smart"}"#;

    #[test]
    fn paths_and_models_at_other_providers() {
        let gemini = "/v1beta/models/smart:streamGenerateContent?alt=sse";
        for (named, path, body, to, model, want, in_body) in [
            ("", "/v1/chat/completions?a=b", BODY, "groq", Some("l/3"), "/openai/v1/chat/completions?a=b", Some("l/3")),
            ("", "//v1/embeddings", BODY, "openai", None, "/v1/embeddings", None),
            ("openai", "/v1/responses", BODY, "mine", Some("m"), "/llm/v1/responses", Some("m")),
            ("groq", "/openai/v1/chat/completions", BODY, "perplexity", Some("m"), "/chat/completions", Some("m")),
            ("perplexity", "/chat/completions", BODY, "groq", Some("m"), "/openai/v1/chat/completions", Some("m")),
            ("groq", "/openai/v1/chat/completions", BODY, "groq", Some("smart"), "/openai/v1/chat/completions", None),
            (
                "azure-openai",
                "/openai/deployments/smart/chat/completions?api-version=1",
                "{}",
                "azure-2",
                Some("gpt 4o"),
                "/openai/deployments/gpt%204o/chat/completions?api-version=1",
                None,
            ),
            (
                "openai",
                "/v1/realtime?x=1&model=smart&y",
                "",
                "openai",
                Some("a/b"),
                "/v1/realtime?x=1&model=a%2Fb&y",
                None,
            ),
            ("", "/v1/messages", BODY, "gateway", Some("claude"), "/v1/messages", Some("claude")),
            ("", gemini, "{}", "gem", Some("models/g:2"), "/v1beta/models/g%3A2:streamGenerateContent?alt=sse", None),
            (
                "vertex",
                "/v1/projects/p/locations/l/publishers/google/models/smart:generateContent",
                "{}",
                "vertex",
                Some("g-2"),
                "/v1/projects/p/locations/l/publishers/google/models/g-2:generateContent",
                None,
            ),
            (
                "gemini",
                "/v1beta/models/smart:embedContent",
                r#"{"model":"models/smart"}"#,
                "gem",
                Some("e"),
                "/v1beta/models/e:embedContent",
                Some("models/e"),
            ),
            (
                "bedrock",
                "/model/arn%3Aaws%2Fsmart/converse-stream",
                "{}",
                "bed",
                Some("amazon.nova-lite-v1:0"),
                "/model/amazon.nova-lite-v1%3A0/converse-stream",
                None,
            ),
            ("bedrock", "/model/smart/x/invoke", "{}", "bed", Some("a/b"), "/model/a%2Fb/invoke", None),
        ] {
            let got = moved(named, path, body, to, model).unwrap_or_else(|why| panic!("{path} at {to}: {why}"));
            assert_eq!((&*got.path, got.in_body.as_deref()), (want, in_body), "{path} at {to}");
            let plain = model.map_or("smart", |model| model.trim_start_matches("models/"));
            assert_eq!(got.model, plain, "{path} at {to}");
        }
    }

    #[test]
    fn what_would_be_another_request_is_not_moved() {
        for (named, path, to, model, want) in [
            ("openai", "/v1/chat/completions", "gateway", "m", "gateway speaks the dialect anthropic"),
            (
                "azure-openai",
                "/openai/deployments/smart/chat/completions",
                "openai",
                "m",
                "its path is not below /openai/v1",
            ),
            (
                "azure-openai",
                "/openai/deployments/smart/chat/completions",
                "azure-2",
                "a/b",
                "cannot stand in its path",
            ),
            ("gemini", "/v1beta/models/smart:generateContent", "vertex", "m", "vertex has other paths"),
            ("", "/v1/projects/p/models/smart:generateContent", "gem", "m", "gem has other paths"),
            ("gemini", "/v1beta/models/smart:batchEmbedContents", "gem", "m", "each part of a batch"),
            ("bedrock", "/model/smart/converse", "bed", "..", "cannot stand in its path"),
        ] {
            let body = if path.contains("/v1/chat") { BODY } else { "{}" };
            let why = moved(named, path, body, to, Some(model)).unwrap_err();
            assert!(why.contains(want), "{path} at {to}: {why}");
        }
    }

    #[test]
    fn when_a_route_leads() {
        let registry = registry();
        let routes: Routes =
            ["smart=groq/l,mine/m", "gpt-*=openai,azure"].iter().map(|text| text.parse::<Route>().unwrap()).collect();
        for (named, path, model, want) in [
            ("", "/v1/chat/completions", "smart", Some("smart")),
            ("openai", "/v1/chat/completions", "smart", Some("smart")),
            ("openai", "/v1/chat/completions", "gpt-4o", Some("gpt-*")),
            ("azure-openai", "/openai/v1/chat/completions", "gpt-4o", Some("gpt-*")),
            ("groq", "/openai/v1/chat/completions", "gpt-oss", None),
            ("", "/v1/chat/completions", "gpt-oss", Some("gpt-*")),
            ("", "/v1/messages", "smart", None),
            ("deepseek", "/anthropic/v1/messages", "smart", None),
            ("gemini", "/v1beta/openai/chat/completions", "smart", None),
            ("openai", "/v1/batches", "smart", None),
            ("openai", "/v1/models", "smart", None),
            ("", "/v1/chat/completions", "other", None),
        ] {
            let upstream = registry.by_id(named);
            let dialect = upstream.map_or_else(|| registry.bare_dialect(path).unwrap(), |named| named.dialect);
            let call = dialect.classify(&Method::POST, path);
            let got = registry.route(&routes, upstream, &call, Some(model));
            assert_eq!(got.map(|route| &*route.pattern), want, "{named} {path} {model}");
            assert!(registry.route(&routes, upstream, &call, None).is_none());
        }
    }

    #[test]
    fn faults_name_field_and_fix() {
        let registry = registry();
        for (text, want) in [
            ("m=openai/a,azure/b,groq", None),
            ("m=openai,off", None),
            ("m=cloudflare/a,cloudflare/b", None),
            (
                "m=openai,cloudflare",
                Some("targets[1].provider: nothing is known of cloudflare's /v1; write v1 in [providers.cloudflare]"),
            ),
            ("m=openai,opnai", Some("targets[1].provider: there is no provider \"opnai\"; did you mean \"openai\"?")),
            (
                "m=databricks",
                Some("targets[0].provider: provider \"databricks\" has a host per customer; write base_url"),
            ),
            (
                "m=openai,anthropic",
                Some(
                    "targets[1].provider: anthropic speaks the dialect anthropic and openai openai; name providers of one dialect",
                ),
            ),
            ("m=gemini,vertex", Some("targets[1].provider: vertex and gemini have other paths")),
        ] {
            let routes: Routes = [text.parse::<Route>().unwrap()].into_iter().collect();
            let faults = registry.route_faults(&routes);
            let got = faults.first().map(|fault| &*fault.what);
            match want {
                Some(want) => assert!(got.is_some_and(|got| got.starts_with(want)), "{text}: {got:?}"),
                None => assert_eq!(faults, [], "{text}"),
            }
        }
    }
}
