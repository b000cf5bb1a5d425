//! TLS towards upstreams: rustls with the Mozilla roots compiled in, and a file of further ones. TLS of the admin API.
//!
//! Owns the two client configurations (with and without HTTP/2 in ALPN) and that of a server which asks clients for
//! certificates; leaves sockets to `dial`. There is no
//! switch that turns verification off.

use std::path::Path;
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};

use crate::net::ca::COMMON_NAME;

/// What cannot be set up about TLS.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The file of further roots is not usable.
    #[error("{path}: {reason}: a PEM file with at least one certificate is needed")]
    Roots {
        /// The file.
        path: String,
        /// Why.
        reason: String,
    },
    /// A file of a server's own TLS is not usable.
    #[error("{path}: {reason}")]
    Server {
        /// The file.
        path: String,
        /// Why.
        reason: String,
    },
    /// rustls refuses the configuration.
    #[error("tls: {0}")]
    Rustls(#[from] rustls::Error),
}

/// Client configurations: one that offers HTTP/1.1 alone, one that prefers HTTP/2 (RFC 7301).
#[derive(Clone, Debug)]
pub struct TlsClient {
    http1: Arc<ClientConfig>,
    http2: Arc<ClientConfig>,
}

impl TlsClient {
    /// Trusts the Mozilla roots, and those of `extra_roots` (PEM) beside them.
    ///
    /// # Errors
    /// When the file cannot be read or holds no certificate.
    pub fn new(extra_roots: Option<&Path>) -> Result<Self, TlsError> {
        let mut roots = RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
        if let Some(path) = extra_roots {
            add_roots(&mut roots, path)?;
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let base = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let with_alpn = |names: &[&[u8]]| {
            let mut config = base.clone();
            config.alpn_protocols = names.iter().map(|name| name.to_vec()).collect();
            Arc::new(config)
        };
        Ok(Self { http1: with_alpn(&[b"http/1.1"]), http2: with_alpn(&[b"h2", b"http/1.1"]) })
    }

    /// The configuration that offers HTTP/2, or HTTP/1.1 alone.
    #[must_use]
    pub fn config(&self, http2: bool) -> Arc<ClientConfig> {
        Arc::clone(if http2 { &self.http2 } else { &self.http1 })
    }
}

/// A server that shows the certificate of `cert` (PEM, with its chain) and lets in only clients that show one of
/// `client_ca`'s.
///
/// # Errors
/// When a file cannot be read, or key and certificate do not fit.
pub fn mutual_server(cert: &Path, key: &Path, client_ca: &Path) -> Result<Arc<ServerConfig>, TlsError> {
    fn fault(path: &Path, reason: impl std::fmt::Display) -> TlsError {
        TlsError::Server { path: path.display().to_string(), reason: reason.to_string() }
    }
    let read = |path: &Path| -> Result<Vec<CertificateDer<'static>>, TlsError> {
        let found = CertificateDer::pem_file_iter(path).and_then(Iterator::collect);
        let found: Vec<_> = found.map_err(|error| fault(path, error))?;
        if found.is_empty() { Err(fault(path, "no certificate in it")) } else { Ok(found) }
    };
    let chain = read(cert)?;
    let mut roots = RootCertStore::empty();
    for root in read(client_ca)? {
        roots.add(root).map_err(|error| fault(client_ca, error))?;
    }
    let key_der = PrivateKeyDer::from_pem_file(key).map_err(|error| fault(key, error))?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let clients = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider));
    let clients = clients.build().map_err(|error| fault(client_ca, error))?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_client_cert_verifier(clients)
        .with_single_cert(chain, key_der)
        .map_err(|error| fault(key, error))?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// Where distributions keep the roots they trust, as one PEM file.
const SYSTEM_BUNDLES: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// The roots this system trusts, as PEM; empty where it has no file of them.
#[must_use]
pub fn system_bundle() -> String {
    let mut found = SYSTEM_BUNDLES.iter().filter_map(|path| std::fs::read_to_string(path).ok());
    let mut text = found.next().unwrap_or_default();
    if !text.is_empty() && !text.ends_with('\n') {
        text.push('\n');
    }
    text
}

fn add_roots(roots: &mut RootCertStore, path: &Path) -> Result<(), TlsError> {
    let fault = |reason: String| TlsError::Roots { path: path.display().to_string(), reason };
    let mut found = false;
    for der in CertificateDer::pem_file_iter(path).map_err(|error| fault(error.to_string()))? {
        let der = der.map_err(|error| fault(error.to_string()))?;
        found = true;
        // In the bundle made for clients, which a shell may hand to sidekey too: whoever is led back here must not be
        // taken for a provider.
        if memchr::memmem::find(&der, COMMON_NAME.as_bytes()).is_none() {
            roots.add(der).map_err(|error| fault(error.to_string()))?;
        }
    }
    if found { Ok(()) } else { Err(fault("no certificate in it".to_owned())) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn its_own_root_is_not_trusted() {
        use crate::net::ca::{Generation, LIFETIME, pem};
        let own = Generation::create(&["api.openai.com".to_owned()], 1_800_000_000_000, LIFETIME).unwrap();
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("bundle.pem");
        for (text, further) in [(pem(&own.root), 0), (made.cert.pem() + &pem(&own.root), 1)] {
            std::fs::write(&path, text).unwrap();
            let mut roots = RootCertStore::empty();
            add_roots(&mut roots, &path).unwrap();
            assert_eq!(roots.len(), further);
        }
    }

    #[test]
    fn extra_roots_must_be_certificates() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("roots.pem");
        assert!(TlsClient::new(Some(&path)).is_err(), "absent");
        std::fs::write(&path, "not pem").unwrap();
        assert!(TlsClient::new(Some(&path)).is_err(), "empty");
        let cert = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
        std::fs::write(&path, cert.cert.pem()).unwrap();
        let client = TlsClient::new(Some(&path)).unwrap();
        assert_eq!(client.config(true).alpn_protocols, [b"h2".to_vec(), b"http/1.1".to_vec()]);
        assert_eq!(client.config(false).alpn_protocols, [b"http/1.1".to_vec()]);
    }
}
