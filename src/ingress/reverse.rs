//! The reverse ingress: `/<provider>/<its own path>`, and bare `/v1/…` paths by their dialect.
//!
//! Owns splitting the path. Scheme, host and port of the upstream never come from the client: not from `Host`, not from
//! an absolute target.

use std::net::SocketAddr;
use std::sync::Arc;

use http::Request;
use hyper::body::Incoming;

use crate::provider::Registry;
use crate::proxy::{Destination, Inbound};

/// A request whose path says where it goes.
pub(super) fn inbound(registry: &Registry, request: Request<Incoming>, peer: SocketAddr) -> Box<Inbound> {
    let (parts, body) = request.into_parts();
    let target = parts.uri.path_and_query().map_or("/", http::uri::PathAndQuery::as_str);
    let (destination, path) = destination(registry, target);
    Box::new(Inbound { parts, body: Some(body), peer, destination, path })
}

/// Where `target` leads, and what it is called there.
fn destination(registry: &Registry, target: &str) -> (Destination, String) {
    if let Some((upstream, own)) = registry.split(target) {
        return (Destination::Provider(Arc::clone(upstream)), own.into_owned());
    }
    match registry.bare_dialect(target) {
        Some(dialect) => (Destination::ByModel(dialect), target.to_owned()),
        None => (Destination::Nowhere, target.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn destinations() {
        let registry = Registry::build(&BTreeMap::new(), None).unwrap();
        for (target, want, path) in [
            ("/openai/v1/models", "openai", "/v1/models"),
            ("/anthropic/v1/messages?beta=true", "anthropic", "/v1/messages?beta=true"),
            ("/openai", "openai", "/"),
            ("/v1/chat/completions", "by openai", "/v1/chat/completions"),
            ("/v1/messages", "by anthropic", "/v1/messages"),
            (
                "/v1beta/models/gemini-2.5-pro:generateContent",
                "by gemini",
                "/v1beta/models/gemini-2.5-pro:generateContent",
            ),
            ("/", "nowhere", "/"),
            ("/opneai/v1/models", "nowhere", "/opneai/v1/models"),
        ] {
            let (destination, own) = destination(&registry, target);
            let got = match destination {
                Destination::Provider(upstream) => upstream.id.to_string(),
                Destination::ByModel(dialect) => format!("by {}", dialect.name()),
                Destination::Nowhere => "nowhere".to_owned(),
            };
            assert_eq!((got.as_str(), own.as_str()), (want, path), "{target}");
        }
    }
}
