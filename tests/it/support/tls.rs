//! Certificates of the TLS variant of the scripted provider.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

/// A server certificate that signs itself.
#[derive(Debug)]
pub(crate) struct Certificate {
    /// Of a provider that speaks the given protocols.
    pub(crate) server: Arc<rustls::ServerConfig>,
    /// Where the certificate stands as PEM, for whom it must be trusted by.
    pub(crate) pem: PathBuf,
}

impl Certificate {
    /// A new one for `localhost`, written into `folder`; `protocols` is what ALPN offers.
    pub(crate) fn new(folder: &Path, protocols: &[&str]) -> Self {
        Self::of(&["localhost"], &folder.join("provider-ca.pem"), protocols)
    }

    /// A new one for `names`, written into `pem`.
    pub(crate) fn of(names: &[&str], pem: &Path, protocols: &[&str]) -> Self {
        let made = rcgen::generate_simple_self_signed(names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>())
            .expect("a certificate");
        let pem = pem.to_owned();
        std::fs::write(&pem, made.cert.pem()).expect("a writable folder");
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()));
        let crypto = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut server = rustls::ServerConfig::builder_with_provider(crypto)
            .with_safe_default_protocol_versions()
            .expect("the defaults fit the provider")
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key)
            .expect("the key is the certificate's");
        server.alpn_protocols = protocols.iter().map(|name| name.as_bytes().to_vec()).collect();
        Self { server: Arc::new(server), pem }
    }
}
