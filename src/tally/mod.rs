//! The tally: what a response says it consumed, read from a copy of its bytes as they go by.
//!
//! Owns, per [`Wire`], where usage, model, output text and errors stand, and how several reports merge. Leaves which wire
//! a request speaks to `provider`, estimates to `tokens`, and what a tally costs to others.
//!
//! Memory: a response is never held. An [`Observer`] at rest is below 1 KiB, and grows by the text it keeps for an
//! estimate (16 KiB at most), by one captured value, and by a decoder's state if the response is compressed.

mod anthropic;
mod bedrock;
mod cohere;
mod documents;
mod figures;
mod gemini;
mod observer;
mod ollama;
mod openai;
#[cfg(test)]
mod priced;
mod reading;
#[cfg(test)]
mod transcripts;

pub use self::observer::Observer;
pub use crate::tokens::OutputText;
use crate::unit::{ServiceTier, Usage};

/// The form in which a response reports. Several dialects and endpoints share one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Wire {
    /// Anthropic `/v1/complete`: reports nothing, has text.
    AnthropicComplete,
    /// Anthropic `/v1/messages`.
    AnthropicMessages,
    /// Bedrock `/model/…/converse` and `converse-stream`.
    BedrockConverse,
    /// Bedrock `/model/…/invoke` and `invoke-with-response-stream`.
    BedrockInvoke,
    /// Cohere chat, generate, embed and rerank, versions 1 and 2.
    Cohere,
    /// Gemini and Vertex `embedContent`, `batchEmbedContents`, `predict`.
    GeminiEmbed,
    /// Gemini and Vertex `generateContent` and `streamGenerateContent`.
    GeminiGenerate,
    /// Carries no consumption: models, files, token counts, stored responses, moderation.
    None,
    /// Ollama `/api/chat`, `/api/generate` and `/api/embed`.
    Ollama,
    /// OpenAI transcription and translation.
    OpenAiAudio,
    /// OpenAI chat completions and all who speak alike.
    OpenAiChat,
    /// OpenAI completions.
    OpenAiCompletions,
    /// OpenAI, Mistral and Voyage embeddings.
    OpenAiEmbeddings,
    /// OpenAI images.
    OpenAiImages,
    /// OpenAI realtime sessions over WebSocket.
    OpenAiRealtime,
    /// OpenAI responses.
    OpenAiResponses,
}

impl Wire {
    /// True when an answer without reported usage still has output that can be estimated.
    #[must_use]
    pub fn has_output(self) -> bool {
        !matches!(
            self,
            Self::None | Self::GeminiEmbed | Self::OpenAiAudio | Self::OpenAiEmbeddings | Self::OpenAiImages
        )
    }

    fn rules(self) -> &'static reading::Rules {
        match self {
            Self::AnthropicComplete | Self::AnthropicMessages => &anthropic::MESSAGES,
            Self::BedrockConverse => &bedrock::CONVERSE_RULES,
            Self::BedrockInvoke => &bedrock::INVOKE_RULES,
            Self::Cohere => &cohere::COHERE,
            Self::GeminiEmbed => &gemini::EMBED,
            Self::GeminiGenerate => &gemini::GENERATE,
            Self::None => &openai::NOTHING,
            Self::Ollama => &ollama::OLLAMA,
            Self::OpenAiAudio | Self::OpenAiImages => &openai::PLAIN,
            Self::OpenAiChat => &openai::CHAT,
            Self::OpenAiCompletions => &openai::COMPLETIONS,
            Self::OpenAiEmbeddings => &openai::EMBEDDINGS,
            Self::OpenAiRealtime => &openai::REALTIME,
            Self::OpenAiResponses => &openai::RESPONSES,
        }
    }
}

/// An error that the response's body reports. Never its message, which may quote the request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StreamError {
    /// The provider's code, up to 128 characters.
    pub code: Option<Box<str>>,
    /// Its type or status word, up to 128 characters.
    pub kind: Option<Box<str>>,
}

/// Why a response could not be read to its end. Its bytes passed all the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GaveUp {
    /// A content coding that sidekey does not know, or too many of them.
    #[error("content coding is not known")]
    Coding,
    /// See the decoder's error.
    #[error(transparent)]
    Decode(#[from] crate::scan::decode::Error),
    /// See the event stream's error.
    #[error(transparent)]
    EventStream(#[from] crate::scan::eventstream::Error),
    /// See the WebSocket scanner's error.
    #[error(transparent)]
    WebSocket(#[from] crate::scan::websocket::Error),
}

/// What was counted while a response went by.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// What the provider reported; empty when it reported nothing.
    pub usage: Usage,
    /// The class of service it says it gave, when that is not its standard one.
    pub service_tier: Option<ServiceTier>,
    /// What it says the call cost, billionths of its unit of money; whether that is dollars, the provider knows.
    pub cost_nano: Option<u64>,
    /// The model it says it used, up to 256 characters.
    pub model_reported: Option<Box<str>>,
    /// Output seen, for an estimate.
    pub text: OutputText,
    /// The first error in the body.
    pub error: Option<StreamError>,
    /// True when the answer came to its own end: a whole document, or a stream's last event.
    pub ended: bool,
    /// Why the rest could not be read, if so.
    pub gave_up: Option<GaveUp>,
}
