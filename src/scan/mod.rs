//! Push parsers over borrowed chunks: they are fed the bytes as they pass, in any pieces, and hold next to nothing.
//!
//! Owns framings and JSON paths; leaves what a path means to `tally` (responses) and `provider` (requests).
//! Every parser is bounded in memory, never recurses, and never fails the stream it watches: the bytes are a copy.

pub mod decode;
pub mod eventstream;
pub mod json;
pub mod lines;
pub mod sse;
pub mod websocket;
