//! The way through `HTTPS_PROXY`: CONNECT, then TLS to whom the client believes it talks to.

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::client::TlsStream;

use super::client::PATIENCE;

/// A connection that writes at most so many bytes at a time.
#[derive(Debug)]
pub(crate) struct Trickle {
    pub(crate) tcp: TcpStream,
    pub(crate) at_once: usize,
    /// Goes out before the first byte, in the same write.
    pub(crate) before: Vec<u8>,
}

impl AsyncRead for Trickle {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_read(cx, buf)
    }
}

impl AsyncWrite for Trickle {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if self.before.is_empty() {
            let at_once = self.at_once.min(buf.len());
            return Pin::new(&mut self.tcp).poll_write(cx, &buf[..at_once]);
        }
        let both = [&self.before[..], buf].concat();
        let written = std::task::ready!(Pin::new(&mut self.tcp).poll_write(cx, &both))?;
        assert_eq!(written, both.len(), "a socket takes a first write");
        self.before.clear();
        Poll::Ready(Ok(buf.len()))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_shutdown(cx)
    }
}

/// Sends `CONNECT target` with `headers`; the head of the answer, and the connection.
pub(crate) async fn connect(proxy: SocketAddr, target: &str, headers: &str) -> (String, TcpStream) {
    let mut tcp = TcpStream::connect(proxy).await.expect("the port is open");
    tcp.set_nodelay(true).expect("a socket");
    let head = format!("CONNECT {target} HTTP/1.1\r\nhost: {target}\r\n{headers}\r\n");
    tcp.write_all(head.as_bytes()).await.expect("the connection is open");
    let answer = head_of(&mut tcp).await;
    (answer, tcp)
}

/// Reads a head, and no byte more.
pub(crate) async fn head_of(tcp: &mut (impl AsyncRead + Unpin)) -> String {
    let mut head = vec![];
    while !head.ends_with(b"\r\n\r\n") {
        match timeout(PATIENCE, tcp.read_u8()).await.expect("a head in time") {
            Ok(byte) => head.push(byte),
            Err(_) => break,
        }
    }
    String::from_utf8(head).expect("ASCII")
}

/// A tunnel that must be granted.
pub(crate) async fn open(proxy: SocketAddr, target: &str) -> TcpStream {
    let (head, tcp) = connect(proxy, target, "").await;
    assert!(head.starts_with("HTTP/1.1 200"), "{target}: {head}");
    tcp
}

/// How a client speaks TLS.
#[derive(Clone, Debug)]
pub(crate) struct Speaker(rustls::ClientConfig);

impl Speaker {
    /// One that trusts the certificates of `roots`, and offers these protocols.
    pub(crate) fn new(roots: &Path, protocols: &[&str]) -> Self {
        let mut store = rustls::RootCertStore::empty();
        for root in CertificateDer::pem_file_iter(roots).expect("a file of roots") {
            store.add(root.expect("a certificate")).expect("a root");
        }
        let crypto = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = rustls::ClientConfig::builder_with_provider(crypto)
            .with_safe_default_protocol_versions()
            .expect("the defaults fit the provider")
            .with_root_certificates(store)
            .with_no_client_auth();
        config.alpn_protocols = protocols.iter().map(|name| name.as_bytes().to_vec()).collect();
        Self(config)
    }

    /// One that names no server.
    pub(crate) fn nameless(mut self) -> Self {
        self.0.enable_sni = false;
        self
    }

    /// TLS to `name`.
    pub(crate) async fn open<S>(&self, name: &str, stream: S) -> io::Result<TlsStream<S>>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let name = ServerName::try_from(name.to_owned()).expect("a name");
        let connector = tokio_rustls::TlsConnector::from(Arc::new(self.0.clone()));
        timeout(PATIENCE, connector.connect(name, stream)).await.expect("a handshake in time")
    }
}
