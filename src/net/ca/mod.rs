//! The local CA: what opens TLS of a provider's host to a client that trusts it.
//!
//! Owns the [`Generation`]s and the leaves signed by them; leaves which hosts are providers' to `provider`, and keeping a
//! generation sealed to `storage`.
//!
//! ```text
//! root (trusted by clients; its key is destroyed) ── intermediate (constrained to names) ── leaf (one name, 2 days)
//! ```
//!
//! Whoever steals the intermediate's key can pretend to be a provider, and nobody else: not every verifier obeys name
//! constraints in a trusted root (Java does not), but all obey them below one (RFC 5280 §6.1.4).

mod generation;

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use moka::sync::Cache;
use rustls::ServerConfig;
use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs as crypto;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert};
use rustls::sign::CertifiedKey;

use crate::clock::Clock;
use crate::id::NoRandomness;

use self::generation::Issuing;
pub use self::generation::{BadGeneration, COMMON_NAME, Generation, LIFETIME};

/// Hosts whose leaves are kept: more than all providers have.
const LEAVES: u64 = 1024;
/// A leaf is good for two days and for one hour before it was made: clocks differ.
const LEAF_LIFETIME: Duration = Duration::from_secs(48 * 3600);
const BACKDATE: Duration = Duration::from_secs(3600);
/// In place of a leaf older than this comes a new one.
const LEAF_RENEWAL: Duration = Duration::from_secs(24 * 3600);

/// What cannot be done about certificates.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    /// No generation may sign for this host.
    #[error("the local CA may not sign for {0}: add it to the hosts of its provider and restart")]
    NotPermitted(String),
    /// The operating system gives no randomness.
    #[error(transparent)]
    Randomness(#[from] NoRandomness),
    /// Making a key or a certificate failed.
    #[error("certificate: {0}")]
    Signing(#[from] rcgen::Error),
    /// rustls refuses the key or the configuration.
    #[error("tls: {0}")]
    Tls(#[from] rustls::Error),
}

/// The local CA as it works: generations, oldest first, and the leaves made so far.
pub struct Ca {
    generations: Vec<Issuing>,
    /// Made when the first host is asked for: the process's first randomness takes 30 ms, which a start need not wait for
    /// where nobody is intercepted.
    common: OnceLock<Common>,
    leaves: Cache<Box<str>, Leaf>,
    clock: Clock,
}

/// What all leaves have in common.
struct Common {
    /// One key for all, of this process alone: not the CA's, which would give both the same identifier and confuse some
    /// verifiers.
    leaf_key: rcgen::KeyPair,
    signing_key: Arc<dyn rustls::sign::SigningKey>,
    base: ServerConfig,
}

impl Common {
    fn new() -> Result<Self, CaError> {
        let leaf_key = rcgen::KeyPair::generate()?;
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(leaf_key.serialized_der()));
        let signing_key = crypto::sign::any_supported_type(&key)?;
        Ok(Self { leaf_key, signing_key, base: base_config(Arc::new(crypto::default_provider()))? })
    }
}

#[derive(Clone)]
struct Leaf {
    config: Arc<ServerConfig>,
    renew_ms: u64,
}

impl std::fmt::Debug for Ca {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ca").field("generations", &self.generations).finish_non_exhaustive()
    }
}

impl Ca {
    /// A CA of these generations, oldest first.
    ///
    /// # Errors
    /// When a generation's key is none.
    pub fn new(generations: Vec<Generation>, clock: Clock) -> Result<Self, CaError> {
        let generations = generations.into_iter().map(Issuing::new).collect::<Result<_, _>>()?;
        Ok(Self { generations, common: OnceLock::new(), leaves: Cache::new(LEAVES), clock })
    }

    /// How to speak TLS as `host` (lower case, without a dot at its end).
    ///
    /// A host keeps the oldest generation that may sign for it: clients that were started before a new one trust that
    /// one only.
    ///
    /// # Errors
    /// When no generation may sign for it, or there is no randomness.
    pub fn server_config(&self, host: &str) -> Result<Arc<ServerConfig>, CaError> {
        let now_ms = self.clock.wall_ms();
        if let Some(leaf) = self.leaves.get(host).filter(|leaf| now_ms < leaf.renew_ms) {
            return Ok(leaf.config);
        }
        let leaf = self.mint(host, now_ms)?;
        self.leaves.insert(host.into(), leaf.clone());
        Ok(leaf.config)
    }

    /// True when some generation may sign for `host`.
    #[must_use]
    pub fn permits(&self, host: &str) -> bool {
        self.generations.iter().any(|generation| generation.of.permits(host))
    }

    /// The generations, oldest first.
    pub fn generations(&self) -> impl Iterator<Item = &Generation> {
        self.generations.iter().map(|issuing| &issuing.of)
    }

    fn common(&self) -> Result<&Common, CaError> {
        if let Some(common) = self.common.get() {
            return Ok(common);
        }
        // Of two that are made at once the first counts.
        let made = Common::new()?;
        Ok(self.common.get_or_init(|| made))
    }

    fn mint(&self, host: &str, now_ms: u64) -> Result<Leaf, CaError> {
        let usable = |issuing: &&Issuing| issuing.of.permits(host) && now_ms < issuing.of.expires_ms;
        let issuing = self.generations.iter().find(usable).ok_or_else(|| CaError::NotPermitted(host.to_owned()))?;
        let lifetime = millis(LEAF_LIFETIME).min(issuing.of.expires_ms - now_ms);
        let Common { leaf_key, signing_key, base } = self.common()?;
        let leaf = issuing.sign_leaf(host, leaf_key, now_ms.saturating_sub(millis(BACKDATE)), now_ms + lifetime)?;
        let chain = vec![leaf, issuing.of.intermediate.clone()];
        let mut config = base.clone();
        config.cert_resolver = Arc::new(Only(Arc::new(CertifiedKey::new(chain, Arc::clone(signing_key)))));
        let renew_ms = now_ms + lifetime.min(millis(LEAF_RENEWAL));
        Ok(Leaf { config: Arc::new(config), renew_ms })
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// What the configurations of all hosts have in common; cloned, they share their tickets' key.
fn base_config(provider: Arc<CryptoProvider>) -> Result<ServerConfig, CaError> {
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(Nobody));
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    // Tickets are kept by the client: nothing of a connection that has ended stays here.
    config.ticketer = crypto::Ticketer::new()?;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    Ok(config)
}

/// The certificate of one host, whatever name the client gives: that was compared before.
#[derive(Debug)]
struct Only(Arc<CertifiedKey>);

impl ResolvesServerCert for Only {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0))
    }
}

/// In the common configuration, which nobody is served with.
#[derive(Debug)]
struct Nobody;

impl ResolvesServerCert for Nobody {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        None
    }
}

/// A certificate as PEM.
#[must_use]
pub fn pem(certificate: &CertificateDer<'_>) -> String {
    use base64::Engine;
    let text = base64::engine::general_purpose::STANDARD.encode(certificate);
    let mut out = String::from("-----BEGIN CERTIFICATE-----\n");
    for line in text.as_bytes().chunks(64) {
        out.extend(line.iter().map(|byte| char::from(*byte)));
        out.push('\n');
    }
    out + "-----END CERTIFICATE-----\n"
}

#[cfg(test)]
mod tests;
