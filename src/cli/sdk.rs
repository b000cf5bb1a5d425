//! What each vendor's SDK reads from the environment: the variable of its base URL and that of its key.
//!
//! Owns the table, as the SDKs' own sources have it; leaves setting variables to `exec` and printing them to `env`.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use serde::Deserialize;
use serde_json::Value;

use crate::cli::failure::{Exit, Failure};
use crate::config::nearest;
use crate::provider::{Dialect, OPENAI, PROVIDERS, provider};

/// One SDK.
#[derive(Clone, Copy, Debug)]
pub struct Sdk {
    /// The provider's id, which is also the first part of the path.
    pub provider: &'static str,
    /// Variables for the base URL, and what follows the provider in the path there.
    pub base: &'static [(&'static str, &'static str)],
    /// The variable for the key; `None` where a virtual key must not stand, as with tokens that serve more than inference.
    pub key: Option<&'static str>,
}

const fn sdk(provider: &'static str, base: &'static [(&'static str, &'static str)], key: Option<&'static str>) -> Sdk {
    Sdk { provider, base, key }
}

/// All that are known.
pub static SDKS: &[Sdk] = &[
    // OPENAI_API_BASE: LiteLLM, LangChain and the SDK before 1.0.
    sdk("openai", &[("OPENAI_BASE_URL", "/v1"), ("OPENAI_API_BASE", "/v1")], Some("OPENAI_API_KEY")),
    sdk("azure-openai", &[("AZURE_OPENAI_ENDPOINT", "")], Some("AZURE_OPENAI_API_KEY")),
    sdk("anthropic", &[("ANTHROPIC_BASE_URL", "")], Some("ANTHROPIC_API_KEY")),
    sdk("gemini", &[("GOOGLE_GEMINI_BASE_URL", "")], Some("GEMINI_API_KEY")),
    sdk("vertex", &[("GOOGLE_VERTEX_BASE_URL", "")], None),
    sdk("mistral", &[("MISTRAL_BASE_URL", "/v1")], Some("MISTRAL_API_KEY")),
    sdk("cohere", &[("CO_API_URL", "")], Some("CO_API_KEY")),
    sdk("groq", &[("GROQ_BASE_URL", "")], Some("GROQ_API_KEY")),
    sdk("together", &[("TOGETHER_BASE_URL", "/v1")], Some("TOGETHER_API_KEY")),
    sdk("deepseek", &[("DEEPSEEK_API_BASE", "/v1")], Some("DEEPSEEK_API_KEY")),
    sdk("xai", &[("XAI_API_BASE", "/v1")], Some("XAI_API_KEY")),
    sdk("openrouter", &[("OPENROUTER_API_BASE", "/api/v1")], Some("OPENROUTER_API_KEY")),
    sdk("perplexity", &[("PERPLEXITY_BASE_URL", "")], Some("PERPLEXITY_API_KEY")),
    sdk("fireworks", &[("FIREWORKS_API_BASE", "/inference/v1")], Some("FIREWORKS_API_KEY")),
    sdk("bedrock", &[("AWS_ENDPOINT_URL_BEDROCK_RUNTIME", "")], Some("AWS_BEARER_TOKEN_BEDROCK")),
    sdk("ollama", &[("OLLAMA_HOST", "")], Some("OLLAMA_API_KEY")),
];

/// Credentials of a cloud's account, which can pay for a provider's requests past sidekey, and serve for more.
struct Account {
    /// An id, or a dialect of no other cloud.
    provider: &'static str,
    keys: &'static [&'static str],
    /// Variables that name files.
    files: &'static [&'static str],
}

static ACCOUNTS: &[Account] = &[
    Account {
        provider: "bedrock",
        keys: &["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"],
        files: &[],
    },
    Account { provider: "vertex", keys: &[], files: &["GOOGLE_APPLICATION_CREDENTIALS"] },
];

/// The hosts by which a client may mean a provider: the vendors' own, and those that `/api/providers` shows. Some are patterns
/// with `*`.
#[must_use]
pub fn hosts(providers: &Value) -> Vec<String> {
    let host = |url: &str| Some(url.parse::<http::Uri>().ok()?.host()?.to_owned());
    let vendors = PROVIDERS.iter().flat_map(|row| row.hosts).map(|host| (*host).to_owned());
    let configured = providers["providers"].as_array().into_iter().flatten().flat_map(|provider| {
        let more = provider["hosts"].as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned);
        provider["base_url"].as_str().and_then(host).into_iter().chain(more).collect::<Vec<_>>()
    });
    vendors.chain(configured).collect()
}

/// A provider as the admin API shows it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
struct Known {
    id: String,
    #[serde(default)]
    aliases: Vec<String>,
    dialect: String,
    /// What stands there for `/v1` of OpenAI's paths.
    #[serde(default)]
    v1: Option<String>,
    /// Variables that may hold a real key of it.
    #[serde(default)]
    env: Vec<String>,
    #[serde(default)]
    enabled: bool,
    /// How many provider keys there are.
    #[serde(default)]
    keys: usize,
}

/// The variables of real provider keys, of every provider: a child must not see them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Real {
    /// Those that hold one.
    pub keys: BTreeSet<String>,
    /// Those that name a file that does.
    pub files: BTreeSet<String>,
}

/// The variables of one SDK, and the provider they lead to.
#[derive(Clone, Debug)]
struct Target {
    sdk: &'static Sdk,
    provider: String,
    /// In place of the SDK's own.
    tail: Option<String>,
}

/// Which SDKs are pointed at which providers.
#[derive(Debug)]
pub struct Targets {
    proxy: SocketAddr,
    all: Vec<Target>,
    /// What a child must not see. The SDKs' own are set anew afterwards.
    pub real: Real,
    /// Providers that were asked for and that no variable leads to: why, and what to do instead.
    pub by_hand: Vec<Failure>,
}

impl Targets {
    /// Those of the providers `only` names, or of all that have variables when it is empty. `providers` is what
    /// `/api/providers` says.
    ///
    /// A provider without variables of its own has those of its dialect, when it is the only one: two cannot share them.
    ///
    /// # Errors
    /// When one of `only` is no provider.
    pub fn of(proxy: SocketAddr, only: &[String], providers: &Value) -> Result<Self, Failure> {
        let proxy = reachable(proxy);
        let target = |sdk| Target { sdk, provider: sdk.provider.to_owned(), tail: None };
        let known = providers["providers"].as_array().into_iter().flatten();
        let known: Vec<Known> = known.filter_map(|provider| Known::deserialize(provider).ok()).collect();
        if only.is_empty() {
            let real = Real::of(&known, &[]);
            return Ok(Self { proxy, all: SDKS.iter().map(target).collect(), real, by_hand: Vec::new() });
        }
        let mut asked: Vec<Known> = Vec::new();
        for name in only {
            let found = find(name, &known)?;
            if !asked.contains(&found) {
                asked.push(found);
            }
        }
        let real = Real::of(&known, &asked);
        let alone = asked.len() == 1;
        let (mut all, mut by_hand) = (Vec::new(), Vec::new());
        for provider in asked {
            match SDKS.iter().find(|sdk| sdk.provider == provider.id) {
                Some(sdk) => all.push(target(sdk)),
                None => match provider.of_its_dialect().filter(|_| alone) {
                    Some(target) => all.push(target),
                    None => by_hand.push(provider.by_hand(proxy, alone)),
                },
            }
        }
        Ok(Self { proxy, all, real, by_hand })
    }

    /// True when no variable would be set.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// Where sidekey's proxy is reached.
    #[must_use]
    pub fn proxy(&self) -> SocketAddr {
        self.proxy
    }

    /// Names and values of the variables of keys alone.
    #[must_use]
    pub fn keys(&self, key: &str) -> Vec<(&'static str, String)> {
        self.all.iter().filter_map(|target| Some((target.sdk.key?, key.to_owned()))).collect()
    }

    /// Names and values of the variables; keys only where there is a virtual key.
    #[must_use]
    pub fn variables(&self, key: Option<&str>) -> Vec<(&'static str, String)> {
        let mut out = Vec::new();
        for Target { sdk, provider, tail } in &self.all {
            out.extend(sdk.base.iter().map(|(name, own)| {
                (*name, format!("http://{}/{provider}{}", self.proxy, tail.as_deref().unwrap_or(own)))
            }));
            out.extend(sdk.key.zip(key).map(|(name, key)| (name, key.to_owned())));
        }
        out
    }
}

impl Known {
    /// The variables of its dialect's own vendor, when they can lead here.
    fn of_its_dialect(&self) -> Option<Target> {
        let sdk = SDKS.iter().find(|sdk| sdk.provider == self.dialect)?;
        // Only OpenAI's SDK expects a part of the path in its base URL, and others have theirs elsewhere.
        let tail = if self.dialect == OPENAI.name() { Some(self.v1.clone()?) } else { None };
        Some(Target { sdk, provider: self.id.clone(), tail })
    }

    fn by_hand(&self, proxy: SocketAddr, alone: bool) -> Failure {
        let Self { id, v1, .. } = self;
        let url = format!("http://{proxy}/{id}{}", v1.as_deref().unwrap_or_default());
        let (why, more) = if alone {
            ("", ", and what its own base URL has as its path")
        } else {
            (" beside the others", "; or name this provider alone")
        };
        let failure = Failure::new(Exit::Usage, format!("no SDK reads a variable for {id:?}{why}"));
        failure.fix(format!("set the base URL by hand: {url}{more}"))
    }
}

/// The provider of this id or alias; one that still lacks its base URL too.
fn find(name: &str, known: &[Known]) -> Result<Known, Failure> {
    let named = |provider: &&Known| provider.id == name || provider.aliases.iter().any(|alias| alias == name);
    if let Some(found) = known.iter().find(named) {
        return Ok(found.clone());
    }
    if let Some(row) = provider(name) {
        let (dialect, v1) = (row.dialect.name().to_owned(), row.v1.map(str::to_owned));
        return Ok(Known { id: row.id.to_owned(), dialect, v1, ..Known::default() });
    }
    let own = known.iter().map(|provider| provider.id.as_str());
    let rows = PROVIDERS.iter().flat_map(|row| std::iter::once(row.id).chain(row.aliases.iter().copied()));
    let failure = Failure::new(Exit::Usage, format!("there is no provider {name:?}"));
    Err(match nearest(name, own.chain(rows)) {
        Some(right) => failure.fix(format!("did you mean {right:?}?")),
        None => failure.fix("`sidekey provider list` shows them"),
    })
}

impl Real {
    /// Those of the built-in providers, of the operator's own, and of the SDKs. Those of a cloud's account only where one of
    /// its providers has keys here or is `asked` for: elsewhere they are none of ours, and other services want them.
    fn of(known: &[Known], asked: &[Known]) -> Self {
        let built_in = PROVIDERS.iter().flat_map(|provider| provider.env.iter().copied());
        let own = known.iter().flat_map(|provider| provider.env.iter().map(String::as_str));
        let plain = built_in.chain(own).chain(SDKS.iter().filter_map(|sdk| sdk.key));
        let mut keys: BTreeSet<String> = plain.map(str::to_owned).collect();
        // Each may be said as a file too.
        let mut files: BTreeSet<String> = keys.iter().map(|name| format!("{name}_FILE")).collect();
        let served = known.iter().filter(|provider| provider.enabled && provider.keys > 0);
        let served: Vec<&Known> = served.chain(asked).collect();
        for account in ACCOUNTS {
            if served.iter().any(|provider| [&provider.id, &provider.dialect].iter().any(|is| *is == account.provider))
            {
                keys.extend(account.keys.iter().map(|name| (*name).to_owned()));
                files.extend(account.files.iter().map(|name| (*name).to_owned()));
            }
        }
        Self { keys, files }
    }

    /// All of them.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.keys.iter().chain(&self.files).map(String::as_str)
    }
}

/// A listener on all addresses is reached on the loopback one.
fn reachable(proxy: SocketAddr) -> SocketAddr {
    match proxy {
        SocketAddr::V4(address) if address.ip().is_unspecified() => {
            (std::net::Ipv4Addr::LOCALHOST, address.port()).into()
        }
        SocketAddr::V6(address) if address.ip().is_unspecified() => {
            (std::net::Ipv6Addr::LOCALHOST, address.port()).into()
        }
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn values() {
        let only = ["openai".to_owned(), "claude".to_owned()];
        for (address, key, want) in [
            (
                "0.0.0.0:4141",
                Some("vk"),
                vec![
                    ("OPENAI_BASE_URL", "http://127.0.0.1:4141/openai/v1"),
                    ("OPENAI_API_BASE", "http://127.0.0.1:4141/openai/v1"),
                    ("OPENAI_API_KEY", "vk"),
                    ("ANTHROPIC_BASE_URL", "http://127.0.0.1:4141/anthropic"),
                    ("ANTHROPIC_API_KEY", "vk"),
                ],
            ),
            (
                "[::]:1",
                None,
                vec![
                    ("OPENAI_BASE_URL", "http://[::1]:1/openai/v1"),
                    ("OPENAI_API_BASE", "http://[::1]:1/openai/v1"),
                    ("ANTHROPIC_BASE_URL", "http://[::1]:1/anthropic"),
                ],
            ),
        ] {
            let got = Targets::of(address.parse().unwrap(), &only, &Value::Null).unwrap().variables(key);
            let got: Vec<(&str, &str)> = got.iter().map(|(name, value)| (*name, value.as_str())).collect();
            assert_eq!(got, want, "{address}");
        }
    }

    #[test]
    fn providers_without_variables_of_their_own() {
        let known = json!({"providers": [
            {"id": "mine", "dialect": "openai", "v1": "/v1"},
            {"id": "flat", "dialect": "openai", "v1": ""},
            {"id": "odd", "dialect": "openai", "v1": null},
            {"id": "claude-like", "dialect": "anthropic", "v1": "/v1"},
            {"id": "google-like", "dialect": "gemini", "v1": "/v1beta/openai"},
            {"id": "vllm", "dialect": "openai", "v1": "/v1"},
        ]});
        let (openai, both) = ("OPENAI_API_KEY=vk", "OPENAI_BASE_URL=http://127.0.0.1:1/mine/v1");
        for (only, want) in [
            (&["mine"][..], Ok(vec![both, "OPENAI_API_BASE=http://127.0.0.1:1/mine/v1", openai])),
            (&["mine", "mine"], Ok(vec![both, "OPENAI_API_BASE=http://127.0.0.1:1/mine/v1", openai])),
            (
                &["flat"],
                Ok(vec!["OPENAI_BASE_URL=http://127.0.0.1:1/flat", "OPENAI_API_BASE=http://127.0.0.1:1/flat", openai]),
            ),
            (
                &["vllm"],
                Ok(vec![
                    "OPENAI_BASE_URL=http://127.0.0.1:1/vllm/v1",
                    "OPENAI_API_BASE=http://127.0.0.1:1/vllm/v1",
                    openai,
                ]),
            ),
            // Not in the list while it has no base URL.
            (
                &["databricks"],
                Ok(vec![
                    "OPENAI_BASE_URL=http://127.0.0.1:1/databricks/serving-endpoints",
                    "OPENAI_API_BASE=http://127.0.0.1:1/databricks/serving-endpoints",
                    openai,
                ]),
            ),
            (&["claude-like"], Ok(vec!["ANTHROPIC_BASE_URL=http://127.0.0.1:1/claude-like", "ANTHROPIC_API_KEY=vk"])),
            (&["google-like"], Ok(vec!["GOOGLE_GEMINI_BASE_URL=http://127.0.0.1:1/google-like", "GEMINI_API_KEY=vk"])),
            (&["groq", "mine"], Err("http://127.0.0.1:1/mine/v1; or name this provider alone")),
            (&["odd"], Err("http://127.0.0.1:1/odd, and what its own base URL has as its path")),
            (&["mien"], Err("did you mean \"mine\"?")),
            (&["opneai"], Err("did you mean \"openai\"?")),
            (&["nosuch-thing"], Err("`sidekey provider list`")),
        ] {
            let only: Vec<String> = only.iter().map(|name| (*name).to_owned()).collect();
            let targets = Targets::of("127.0.0.1:1".parse().unwrap(), &only, &known);
            let got = targets.and_then(|mut targets| match targets.by_hand.pop() {
                Some(failure) => Err(failure),
                None => Ok(targets.variables(Some("vk"))),
            });
            match (got, want) {
                (Ok(got), Ok(want)) => {
                    let got: Vec<String> = got.iter().map(|(name, value)| format!("{name}={value}")).collect();
                    assert_eq!(got, want, "{only:?}");
                }
                (Err(failure), Err(want)) => {
                    let said = failure.lines().join(" ");
                    assert!(failure.exit == Exit::Usage && said.contains(want), "{only:?}: {said}");
                }
                (got, _) => unreachable!("{only:?}: {got:?}"),
            }
        }
    }

    #[test]
    fn every_sdk_is_of_a_built_in_provider() {
        for sdk in SDKS {
            assert!(PROVIDERS.iter().any(|provider| provider.id == sdk.provider), "{}", sdk.provider);
        }
        let known = json!({"providers": [
            {"id": "mine", "dialect": "openai", "v1": "/v1", "env": ["MY_KEY"]},
            {"id": "openai", "dialect": "openai", "v1": "/v1", "env": ["OUR_KEY"]},
        ]});
        for only in [&[][..], &["groq".to_owned()]] {
            let real = Targets::of("127.0.0.1:1".parse().unwrap(), only, &known).unwrap().real;
            for name in ["GOOGLE_API_KEY", "OPENAI_API_KEY", "MY_KEY", "OUR_KEY"] {
                assert!(real.keys.contains(name), "{name}");
                assert!(real.files.contains(&format!("{name}_FILE")), "{name}");
            }
        }
    }

    #[test]
    fn an_accounts_credentials_are_real_keys_where_it_is_served() {
        let known = |id: &str, dialect: &str, enabled: bool, keys: usize| json!({"providers": [{"id": id, "dialect": dialect, "enabled": enabled, "keys": keys}]});
        let (aws, google) = ("AWS_SECRET_ACCESS_KEY", "GOOGLE_APPLICATION_CREDENTIALS");
        for (known, only, want) in [
            (known("openai", "openai", true, 1), &[][..], &[][..]),
            (known("bedrock", "bedrock", true, 0), &[], &[]),
            (known("bedrock", "bedrock", false, 1), &[], &[]),
            (known("bedrock", "bedrock", true, 1), &[], &[aws]),
            (known("bedrock", "bedrock", true, 1), &["openai"], &[aws]),
            (known("in-europe", "bedrock", true, 2), &[], &[aws]),
            (known("openai", "openai", true, 1), &["aws"], &[aws]),
            (known("vertex", "gemini", true, 1), &[], &[google]),
            (known("gemini", "gemini", true, 1), &["bedrock", "vertex"], &[aws, google]),
        ] {
            let only: Vec<String> = only.iter().map(|name| (*name).to_owned()).collect();
            let real = Targets::of("127.0.0.1:1".parse().unwrap(), &only, &known).unwrap().real;
            let got: Vec<&str> = real.names().filter(|name| [aws, google].contains(name)).collect();
            assert_eq!(got, want, "{known} {only:?}");
        }
    }
}
