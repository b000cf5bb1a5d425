//! One receiver of events: what it wants, and how a message is signed and sent to it.
//!
//! Owns the signature, which is that of Standard Webhooks 1.0, and what an answer means; leaves queues and repeats to
//! `alerts::deliver`, and connections to `net`.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::hmac;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::header::{CONTENT_TYPE, HOST, HeaderName, HeaderValue, USER_AGENT};
use http::{Method, Request, Uri};

use crate::clock::Clock;
use crate::event::{Kind, Severity};
use crate::net::body::{Chunks, Outgoing};
use crate::net::dial::Dialer;
use crate::net::upstream::Pool;
use crate::secret::Secret;

use super::section::{Pattern, Source, WebhookSection};

const ID: HeaderName = HeaderName::from_static("webhook-id");
const TIMESTAMP: HeaderName = HeaderName::from_static("webhook-timestamp");
const SIGNATURE: HeaderName = HeaderName::from_static("webhook-signature");
/// Secrets that begin so are base64 behind it; others are taken as they are.
const ENCODED: &str = "whsec_";

/// What is sent: the same id and body at every attempt.
#[derive(Debug)]
pub(super) struct Message {
    pub(super) id: String,
    pub(super) body: Bytes,
    /// When it was to be sent first, monotonic.
    pub(super) since: u64,
}

/// Why a message did not arrive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Unsent {
    /// What the receiver answered, when it did.
    pub(super) status: Option<u16>,
    /// For people; nothing of the receiver's text.
    pub(super) detail: String,
    /// True when it may arrive later.
    pub(super) again: bool,
}

/// One receiver.
pub(super) struct Hook {
    pub(super) name: String,
    pool: Arc<Pool>,
    path: Uri,
    authority: HeaderValue,
    source: Source,
    /// As it was read last.
    secret: Secret,
    patterns: Vec<Pattern>,
    min_severity: Severity,
    timeout: Duration,
    clock: Clock,
}

impl fmt::Debug for Hook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hook").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Hook {
    /// Of a section.
    ///
    /// # Errors
    /// What is wrong with it, by field.
    pub(super) fn new(
        name: &str,
        section: &WebhookSection,
        env: &dyn Fn(&str) -> Option<String>,
        dialer: &Dialer,
        clock: &Clock,
    ) -> Result<Self, String> {
        let at = |field: &'static str| move |what: String| format!("alerts.webhooks.{name}.{field}: {what}");
        let target = section.target().map_err(at("url"))?;
        let source = section.source().map_err(at("secret"))?;
        let secret = source.read(env).map_err(at("secret"))?;
        key(&secret).map_err(at("secret"))?;
        Ok(Self {
            name: name.to_owned(),
            pool: Arc::new(Pool::new(target.origin, dialer.clone(), section.timeout, clock.clone())),
            path: Uri::try_from(target.path).map_err(|_| at("url")("is not a URL".to_owned()))?,
            authority: target.authority,
            source,
            secret,
            patterns: section.patterns().map_err(at("kinds"))?,
            min_severity: section.min_severity,
            timeout: section.timeout,
            clock: clock.clone(),
        })
    }

    /// True when it is to be told of such an event.
    pub(super) fn wants(&self, kind: Kind, severity: Severity) -> bool {
        severity >= self.min_severity
            && (self.patterns.is_empty() || self.patterns.iter().any(|pattern| pattern.matches(kind)))
    }

    /// One attempt; gives the status of an answer that says it has arrived.
    pub(super) async fn send(&self, message: &Message) -> Result<u16, Unsent> {
        let failed = |detail: String| Unsent { status: None, detail, again: true };
        let request = self.request(message).map_err(|detail| Unsent { again: false, ..failed(detail) })?;
        let sent = tokio::time::timeout(self.timeout, self.pool.send(Box::new(request))).await;
        let answer = match sent {
            Err(_) => return Err(failed(format!("no answer within {} ms", self.timeout.as_millis()))),
            Ok(Err(error)) => return Err(failed(error.to_string())),
            // Nobody reads the text, so its connection ends here.
            Ok(Ok(answer)) => answer.status().as_u16(),
        };
        match answer {
            200..300 => Ok(answer),
            // Anything else is not cured by saying it again.
            _ => {
                let again = matches!(answer, 408 | 425 | 429 | 500..);
                Err(Unsent { status: Some(answer), detail: format!("it answers {answer}"), again })
            }
        }
    }

    fn request(&self, message: &Message) -> Result<Request<Outgoing>, String> {
        // A file may hold another secret by now; while it cannot be read, the one before is good.
        let fresh = match &self.source {
            Source::File(_) => self.source.read(&|_| None).ok(),
            Source::Env(_) => None,
        };
        let key = key(fresh.as_ref().unwrap_or(&self.secret))?;
        let time = self.clock.wall_ms() / 1000;
        let signature = sign(&key, &message.id, time, &message.body);
        let text = |text: String| HeaderValue::try_from(text).map_err(|error| error.to_string());
        let mut request = Request::new(Outgoing::Held(Chunks::from(message.body.clone())));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = self.path.clone();
        let headers = request.headers_mut();
        headers.insert(HOST, self.authority.clone());
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(USER_AGENT, HeaderValue::from_static(concat!("sidekey/", env!("CARGO_PKG_VERSION"))));
        headers.insert(ID, text(message.id.clone())?);
        headers.insert(TIMESTAMP, time.into());
        headers.insert(SIGNATURE, text(signature)?);
        Ok(request)
    }
}

fn key(secret: &Secret) -> Result<hmac::Key, String> {
    let text = secret.expose();
    match text.strip_prefix(ENCODED) {
        None => Ok(hmac::Key::new(hmac::HMAC_SHA256, text.as_bytes())),
        Some(encoded) => {
            let bytes = STANDARD.decode(encoded).map(zeroize::Zeroizing::new);
            let bytes = bytes.map_err(|_| format!("what follows {ENCODED} is not base64"))?;
            Ok(hmac::Key::new(hmac::HMAC_SHA256, &bytes))
        }
    }
}

fn sign(key: &hmac::Key, id: &str, time: u64, body: &[u8]) -> String {
    let mut context = hmac::Context::with_key(key);
    context.update(format!("{id}.{time}.").as_bytes());
    context.update(body);
    format!("v1,{}", STANDARD.encode(context.sign()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of the Standard Webhooks specification's own libraries.
    #[test]
    fn the_signature_is_the_standards() {
        let key = key(&Secret::new("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw".to_owned())).unwrap();
        let signed = sign(&key, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1_614_265_330, br#"{"test": 2432232314}"#);
        assert_eq!(signed, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
        assert!(super::key(&Secret::new("whsec_???".to_owned())).is_err());
    }
}
