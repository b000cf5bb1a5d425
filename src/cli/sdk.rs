//! What each vendor's SDK reads from the environment: the variable of its base URL and that of its key.
//!
//! Owns the table, as the SDKs' own sources have it; leaves setting variables to `exec` and printing them to `env`.

use std::net::SocketAddr;

use crate::provider::{PROVIDERS, provider};

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

/// Names and values that point SDKs at `proxy`; keys only where there is a virtual key. An empty `only` is all.
#[must_use]
pub fn variables(proxy: SocketAddr, key: Option<&str>, only: &[String]) -> Vec<(&'static str, String)> {
    let named = |sdk: &&Sdk| only.iter().any(|name| provider(name).is_some_and(|row| row.id == sdk.provider));
    let chosen = SDKS.iter().filter(|sdk| only.is_empty() || named(sdk));
    let mut out = Vec::new();
    for sdk in chosen {
        let base =
            sdk.base.iter().map(|(name, tail)| (*name, format!("http://{}/{}{tail}", reachable(proxy), sdk.provider)));
        out.extend(base);
        out.extend(sdk.key.zip(key).map(|(name, key)| (name, key.to_owned())));
    }
    out
}

/// Variables that hold real provider keys: a child must not see them. The SDKs' own are set anew afterwards.
#[must_use]
pub fn real_key_variables() -> Vec<&'static str> {
    let known = PROVIDERS.iter().flat_map(|provider| provider.env.iter().copied());
    known.chain(SDKS.iter().filter_map(|sdk| sdk.key)).collect()
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
            let got = variables(address.parse().unwrap(), key, &only);
            let got: Vec<(&str, &str)> = got.iter().map(|(name, value)| (*name, value.as_str())).collect();
            assert_eq!(got, want, "{address}");
        }
    }

    #[test]
    fn every_sdk_is_of_a_built_in_provider() {
        for sdk in SDKS {
            assert!(PROVIDERS.iter().any(|provider| provider.id == sdk.provider), "{}", sdk.provider);
        }
        assert!(real_key_variables().contains(&"GOOGLE_API_KEY"));
    }
}
