//! What the tests share: a scripted provider on one side of sidekey, a client on the other, and sidekey itself.

pub(crate) mod client;
pub(crate) mod cut;
pub(crate) mod encoding;
pub(crate) mod eventstream;
pub(crate) mod http1;
pub(crate) mod netns;
pub(crate) mod provider;
mod provider_h2;
pub(crate) mod replay;
pub(crate) mod script;
pub(crate) mod sidekey;
mod tests;
pub(crate) mod tls;
pub(crate) mod tunnel;
