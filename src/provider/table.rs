//! The built-in providers: hosts, key header, dialect, and the names of things; one row each.
//!
//! Owns facts about vendors; leaves how a dialect is read to its file. A new provider of a known dialect is one row here.

use super::{ANTHROPIC, Auth, BEDROCK, COHERE, GEMINI, OLLAMA, OPENAI, Provider};

/// What most providers have in common.
const OPENAI_LIKE: Provider = Provider {
    id: "",
    aliases: &[],
    hosts: &[],
    base_url: None,
    base_example: "https://llm.example.com",
    auth: Auth::Bearer,
    dialect: &OPENAI,
    env: &[],
    v1: Some("/v1"),
    models: &[],
    keyless: false,
    test: Some("/v1/models"),
    late_errors: false,
};

/// Every built-in provider. Where globs of models overlap, the earlier row is preferred.
pub static PROVIDERS: &[Provider] = &[
    Provider {
        id: "openai",
        hosts: &[
            "api.openai.com",
            "us.api.openai.com",
            "eu.api.openai.com",
            "ae.api.openai.com",
            "au.api.openai.com",
            "in.api.openai.com",
            "jp.api.openai.com",
        ],
        base_url: Some("https://api.openai.com"),
        env: &["OPENAI_API_KEY"],
        models: &[
            "gpt-*",
            "chatgpt-*",
            "o1*",
            "o3*",
            "o4*",
            "ft:*",
            "text-embedding-3-*",
            "text-embedding-ada-*",
            "dall-e-*",
            "whisper-*",
            "tts-*",
            "sora-*",
            "omni-moderation-*",
            "text-moderation-*",
            "davinci-*",
            "babbage-*",
            "codex-*",
            "computer-use-*",
        ],
        ..OPENAI_LIKE
    },
    Provider {
        id: "azure-openai",
        aliases: &["azure"],
        hosts: &["*.openai.azure.com", "*.services.ai.azure.com", "*.cognitiveservices.azure.com"],
        base_example: "https://<resource>.openai.azure.com",
        auth: Auth::ApiKey,
        env: &["AZURE_OPENAI_API_KEY", "AZURE_API_KEY"],
        v1: Some("/openai/v1"),
        test: Some("/openai/v1/models"),
        late_errors: true,
        ..OPENAI_LIKE
    },
    Provider {
        id: "anthropic",
        aliases: &["claude"],
        hosts: &["api.anthropic.com"],
        base_url: Some("https://api.anthropic.com"),
        auth: Auth::XApiKey,
        dialect: &ANTHROPIC,
        env: &["ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN"],
        models: &["claude-*"],
        ..OPENAI_LIKE
    },
    Provider {
        id: "gemini",
        aliases: &["google", "google-ai"],
        hosts: &["generativelanguage.googleapis.com"],
        base_url: Some("https://generativelanguage.googleapis.com"),
        auth: Auth::XGoogApiKey,
        dialect: &GEMINI,
        env: &["GEMINI_API_KEY", "GOOGLE_API_KEY", "GOOGLE_GENERATIVE_AI_API_KEY"],
        v1: Some("/v1beta/openai"),
        models: &["gemini-*", "models/gemini-*", "gemma-*", "text-embedding-004", "imagen-*", "veo-*"],
        test: Some("/v1beta/models"),
        ..OPENAI_LIKE
    },
    Provider {
        id: "vertex",
        aliases: &["vertex-ai", "vertexai"],
        hosts: &["aiplatform.googleapis.com", "*-aiplatform.googleapis.com", "aiplatform.*.rep.googleapis.com"],
        base_url: Some("https://aiplatform.googleapis.com"),
        dialect: &GEMINI,
        env: &["GOOGLE_VERTEX_ACCESS_TOKEN", "VERTEX_API_KEY"],
        // Project and location stand in the path.
        v1: None,
        test: None,
        ..OPENAI_LIKE
    },
    Provider {
        id: "mistral",
        aliases: &["mistralai"],
        hosts: &["api.mistral.ai", "api.eu.mistral.ai", "api.us.mistral.ai", "codestral.mistral.ai"],
        base_url: Some("https://api.mistral.ai"),
        env: &["MISTRAL_API_KEY"],
        models: &[
            "mistral-*",
            "codestral-*",
            "ministral-*",
            "magistral-*",
            "devstral-*",
            "pixtral-*",
            "voxtral-*",
            "open-mistral-*",
            "open-mixtral-*",
        ],
        ..OPENAI_LIKE
    },
    Provider {
        id: "cohere",
        hosts: &["api.cohere.com", "api.cohere.ai"],
        base_url: Some("https://api.cohere.com"),
        dialect: &COHERE,
        env: &["CO_API_KEY", "COHERE_API_KEY"],
        v1: Some("/compatibility/v1"),
        models: &["command*", "c4ai-*", "embed-english-*", "embed-multilingual-*", "embed-v4*", "rerank-*"],
        ..OPENAI_LIKE
    },
    Provider {
        id: "groq",
        hosts: &["api.groq.com"],
        base_url: Some("https://api.groq.com"),
        env: &["GROQ_API_KEY"],
        v1: Some("/openai/v1"),
        test: Some("/openai/v1/models"),
        ..OPENAI_LIKE
    },
    Provider {
        id: "together",
        aliases: &["together-ai", "togetherai"],
        hosts: &["api.together.ai", "api.together.xyz"],
        base_url: Some("https://api.together.ai"),
        env: &["TOGETHER_API_KEY", "TOGETHERAI_API_KEY"],
        ..OPENAI_LIKE
    },
    Provider {
        id: "huggingface",
        aliases: &["hf", "hugging-face"],
        hosts: &["router.huggingface.co"],
        base_url: Some("https://router.huggingface.co"),
        env: &["HF_TOKEN", "HUGGINGFACE_API_KEY", "HUGGING_FACE_HUB_TOKEN"],
        // Its list of models is public, and who a key belongs to is told by another host.
        test: None,
        ..OPENAI_LIKE
    },
    Provider {
        id: "deepseek",
        hosts: &["api.deepseek.com"],
        base_url: Some("https://api.deepseek.com"),
        env: &["DEEPSEEK_API_KEY"],
        models: &["deepseek-*"],
        test: Some("/models"),
        ..OPENAI_LIKE
    },
    Provider {
        id: "xai",
        aliases: &["x-ai", "grok"],
        hosts: &["api.x.ai", "us-east-1.api.x.ai", "eu-west-1.api.x.ai"],
        base_url: Some("https://api.x.ai"),
        env: &["XAI_API_KEY"],
        models: &["grok-*"],
        ..OPENAI_LIKE
    },
    Provider {
        id: "openrouter",
        hosts: &["openrouter.ai"],
        base_url: Some("https://openrouter.ai"),
        env: &["OPENROUTER_API_KEY"],
        v1: Some("/api/v1"),
        models: &["openrouter/*"],
        // Its list of models is public: only this tells a good key.
        test: Some("/api/v1/key"),
        ..OPENAI_LIKE
    },
    Provider {
        id: "perplexity",
        aliases: &["pplx"],
        hosts: &["api.perplexity.ai"],
        base_url: Some("https://api.perplexity.ai"),
        env: &["PERPLEXITY_API_KEY", "PPLX_API_KEY"],
        v1: Some(""),
        models: &["sonar*", "r1-1776"],
        test: Some("/async/chat/completions"),
        ..OPENAI_LIKE
    },
    Provider {
        id: "fireworks",
        aliases: &["fireworks-ai"],
        hosts: &["api.fireworks.ai"],
        base_url: Some("https://api.fireworks.ai"),
        env: &["FIREWORKS_API_KEY"],
        v1: Some("/inference/v1"),
        models: &["accounts/fireworks/*"],
        test: Some("/inference/v1/models"),
        ..OPENAI_LIKE
    },
    Provider {
        id: "bedrock",
        aliases: &["aws", "aws-bedrock"],
        hosts: &["bedrock-runtime.*.amazonaws.com", "bedrock-runtime-fips.*.amazonaws.com", "bedrock-mantle.*.api.aws"],
        base_url: Some("https://bedrock-runtime.us-east-1.amazonaws.com"),
        dialect: &BEDROCK,
        env: &["AWS_BEARER_TOKEN_BEDROCK"],
        v1: Some("/openai/v1"),
        models: &["anthropic.*", "amazon.*", "meta.*", "us.*", "eu.*", "apac.*", "global.*"],
        test: None,
        ..OPENAI_LIKE
    },
    Provider {
        id: "cloudflare",
        aliases: &["workers-ai"],
        hosts: &["api.cloudflare.com"],
        base_url: Some("https://api.cloudflare.com"),
        env: &["CLOUDFLARE_API_TOKEN", "CLOUDFLARE_API_KEY"],
        // The account's id stands in the path.
        v1: None,
        test: Some("/client/v4/user/tokens/verify"),
        ..OPENAI_LIKE
    },
    Provider {
        id: "zai",
        aliases: &["z-ai", "zhipu"],
        hosts: &["api.z.ai"],
        base_url: Some("https://api.z.ai"),
        env: &["ZAI_API_KEY", "ZHIPUAI_API_KEY"],
        v1: Some("/api/paas/v4"),
        models: &["glm-*"],
        test: Some("/api/paas/v4/models"),
        ..OPENAI_LIKE
    },
    Provider {
        id: "voyage",
        aliases: &["voyageai"],
        hosts: &["api.voyageai.com"],
        base_url: Some("https://api.voyageai.com"),
        env: &["VOYAGE_API_KEY"],
        models: &["voyage-*"],
        test: None,
        ..OPENAI_LIKE
    },
    Provider {
        id: "portkey",
        hosts: &["api.portkey.ai"],
        base_url: Some("https://api.portkey.ai"),
        env: &["PORTKEY_API_KEY"],
        ..OPENAI_LIKE
    },
    Provider {
        id: "writer",
        hosts: &["api.writer.com"],
        base_url: Some("https://api.writer.com"),
        env: &["WRITER_API_KEY"],
        models: &["palmyra-*"],
        ..OPENAI_LIKE
    },
    Provider {
        id: "databricks",
        hosts: &["*.azuredatabricks.net", "*.cloud.databricks.com", "*.gcp.databricks.com"],
        base_example: "https://<workspace>.cloud.databricks.com",
        env: &["DATABRICKS_TOKEN"],
        v1: Some("/serving-endpoints"),
        models: &["databricks-*"],
        test: Some("/api/2.0/serving-endpoints"),
        ..OPENAI_LIKE
    },
    Provider {
        id: "ollama",
        base_url: Some("http://localhost:11434"),
        dialect: &OLLAMA,
        env: &["OLLAMA_API_KEY"],
        keyless: true,
        test: Some("/api/tags"),
        ..OPENAI_LIKE
    },
    Provider {
        id: "vllm",
        base_url: Some("http://localhost:8000"),
        env: &["VLLM_API_KEY"],
        keyless: true,
        ..OPENAI_LIKE
    },
];

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn names_hosts_and_globs_are_said_once() {
        let mut seen = HashSet::new();
        for row in PROVIDERS {
            let names = std::iter::once(row.id).chain(row.aliases.iter().copied());
            for word in names.chain(row.hosts.iter().copied()).chain(row.models.iter().copied()) {
                assert!(seen.insert(word), "{}: {word}", row.id);
            }
        }
    }

    #[test]
    fn rows_are_whole() {
        for row in PROVIDERS {
            assert!(!row.env.is_empty(), "{}", row.id);
            assert!(row.v1.is_none_or(|v1| v1.is_empty() || v1.starts_with('/') && !v1.ends_with('/')), "{}", row.id);
            assert!(row.test.is_none_or(|path| path.starts_with('/')), "{}", row.id);
            let plain = row.base_url.is_some_and(|url| url.starts_with("http://"));
            assert_eq!(plain, row.keyless, "{}: only a local provider goes without TLS and key", row.id);
        }
    }
}
