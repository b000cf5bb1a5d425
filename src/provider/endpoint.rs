//! [`Endpoint`]: what a request asks a provider to do, in the words of allow-lists and of the ledger.
//!
//! Owns the words and what they promise about the model; leaves telling one from a path to the dialects.

use std::fmt;
use std::str::FromStr;

/// What a request asks for. The words of [`Endpoint::as_str`] stand in allow-lists and in the ledger.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Endpoint {
    /// Assistants, threads and their runs, conversations, vector stores.
    Assistants,
    /// Transcription and translation of speech.
    Audio,
    /// Requests handed in together, answered later.
    Batches,
    /// Prompt caches kept at the provider.
    Caches,
    /// Chat completions, in the form of any dialect.
    Chat,
    /// Credentials of the provider for a browser: they reach it without sidekey. Never implied by an empty list.
    ClientSecrets,
    /// Text completions.
    Completions,
    /// Counting tokens; consumes none.
    CountTokens,
    /// Vectors.
    Embeddings,
    /// Uploaded files.
    Files,
    /// Training a model.
    FineTuning,
    /// Gemini's `generateContent`, Bedrock's `InvokeModel`, Ollama's and Cohere's `generate`.
    Generate,
    /// Pictures.
    Images,
    /// Anthropic messages.
    Messages,
    /// Listing and describing models.
    Models,
    /// Judging content.
    Moderations,
    /// Whatever is not recognised.
    Other,
    /// Two-way sessions over WebSocket or WebRTC.
    Realtime,
    /// Ordering documents.
    Rerank,
    /// OpenAI responses.
    Responses,
    /// Text to speech.
    Speech,
    /// Reading, cancelling or deleting an answer that was stored before; consumes nothing.
    Stored,
    /// Films.
    Videos,
}

/// What an endpoint lets sidekey know about the model it will use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ModelRule {
    /// No model is used and nothing is consumed: lists of models. Free to every key.
    Irrelevant,
    /// The request names its model. When it does not, the provider's default would be used: a key restricted by model
    /// is refused.
    Named,
    /// The model may stand elsewhere, in an uploaded file or in what was made before. A key restricted by model is
    /// refused, unless the request does name a model (checked then), or the key names the endpoint.
    Unknowable,
}

impl Endpoint {
    /// True when nothing is charged for it, as far as the provider's list of prices goes.
    #[must_use]
    pub fn is_free(self) -> bool {
        matches!(self, Self::CountTokens | Self::Files | Self::Models | Self::Moderations | Self::Stored)
    }

    /// Every endpoint, in the order of the words.
    pub const ALL: [Self; 23] = [
        Self::Assistants,
        Self::Audio,
        Self::Batches,
        Self::Caches,
        Self::Chat,
        Self::ClientSecrets,
        Self::Completions,
        Self::CountTokens,
        Self::Embeddings,
        Self::Files,
        Self::FineTuning,
        Self::Generate,
        Self::Images,
        Self::Messages,
        Self::Models,
        Self::Moderations,
        Self::Other,
        Self::Realtime,
        Self::Rerank,
        Self::Responses,
        Self::Speech,
        Self::Stored,
        Self::Videos,
    ];

    /// Its word.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Assistants => "assistants",
            Self::Audio => "audio",
            Self::Batches => "batches",
            Self::Caches => "caches",
            Self::Chat => "chat",
            Self::ClientSecrets => "client_secrets",
            Self::Completions => "completions",
            Self::CountTokens => "count_tokens",
            Self::Embeddings => "embeddings",
            Self::Files => "files",
            Self::FineTuning => "fine_tuning",
            Self::Generate => "generate",
            Self::Images => "images",
            Self::Messages => "messages",
            Self::Models => "models",
            Self::Moderations => "moderations",
            Self::Other => "other",
            Self::Realtime => "realtime",
            Self::Rerank => "rerank",
            Self::Responses => "responses",
            Self::Speech => "speech",
            Self::Stored => "stored",
            Self::Videos => "videos",
        }
    }

    /// What is known of the model here.
    #[must_use]
    pub const fn model_rule(self) -> ModelRule {
        match self {
            Self::Audio
            | Self::Chat
            | Self::Completions
            | Self::CountTokens
            | Self::Embeddings
            | Self::Generate
            | Self::Images
            | Self::Messages
            | Self::Moderations
            | Self::Realtime
            | Self::Rerank
            | Self::Responses
            | Self::Speech
            | Self::Videos => ModelRule::Named,
            Self::Models => ModelRule::Irrelevant,
            Self::Assistants
            | Self::Batches
            | Self::Caches
            | Self::ClientSecrets
            | Self::Files
            | Self::FineTuning
            | Self::Other
            | Self::Stored => ModelRule::Unknowable,
        }
    }

    /// True where a call consumes tokens or another metered amount at once, so that budgets must be reserved.
    #[must_use]
    pub const fn consumes(self) -> bool {
        !matches!(self, Self::ClientSecrets | Self::CountTokens | Self::Files | Self::Models | Self::Stored)
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A word that names no endpoint.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{given:?} is not an endpoint; did you mean {nearest:?}?")]
pub struct UnknownEndpoint {
    given: String,
    nearest: &'static str,
}

impl FromStr for Endpoint {
    type Err = UnknownEndpoint;

    fn from_str(text: &str) -> Result<Self, UnknownEndpoint> {
        Self::ALL.into_iter().find(|endpoint| endpoint.as_str() == text).ok_or_else(|| UnknownEndpoint {
            given: text.to_owned(),
            nearest: super::nearest(text, Self::ALL.iter().map(|endpoint| endpoint.as_str())).unwrap_or("chat"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_distinct_sorted_and_read_back() {
        let words: Vec<&str> = Endpoint::ALL.iter().map(|endpoint| endpoint.as_str()).collect();
        let mut sorted = words.clone();
        sorted.sort_unstable();
        sorted.dedup();
        assert_eq!(words, sorted);
        for endpoint in Endpoint::ALL {
            assert_eq!(endpoint.as_str().parse(), Ok(endpoint));
        }
        let error = "chats".parse::<Endpoint>().unwrap_err();
        assert_eq!(error.to_string(), "\"chats\" is not an endpoint; did you mean \"chat\"?");
    }
}
