//! The scripted provider and the client, tried on each other: what the other tests take for granted.

use std::sync::Arc;
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::client::{self, Client, PATIENCE, Request};
use super::provider::Provider;
use super::script::{End, Framing, Gate, Message, Reply, Socket};
use super::tls::Certificate;

#[tokio::test]
async fn http2_with_prior_knowledge() {
    let provider = Provider::always(Message::sse(["a", "b"]).header("X-Kept", "yes")).await;
    let answer = client::send_h2(provider.addr, &Request::post("/p?q=1", "body").header("x-sent", "1")).await;
    assert_eq!((answer.status, &*answer.text(), answer.header("x-kept")), (200, "ab", Some("yes")));
    let seen = provider.last();
    assert_eq!((&*seen.target, &seen.body()[..], seen.header("x-sent")), ("/p?q=1", &b"body"[..], Some("1")));
}

#[tokio::test]
async fn websockets() {
    let provider = Provider::always(Reply::WebSocket(Socket::Echo)).await;
    let request = Request::get("/ws").header("sec-websocket-protocol", "one, two");
    let client = Client::connect(provider.addr).await.unwrap();
    let (head, mut socket) = client.websocket(request).await.expect("101");
    assert_eq!(head.headers.get("sec-websocket-protocol"), Some("one"));
    socket.send("echo".into()).await.unwrap();
    let message = timeout(PATIENCE, socket.next()).await.expect("in time").expect("a message").unwrap();
    assert_eq!(message.into_text().unwrap().as_str(), "echo");
}

#[tokio::test]
async fn ends_are_told_apart() {
    let provider = Provider::always(Message::new(200)).await;
    for framing in [Framing::Chunked, Framing::Length] {
        for (end, complete) in [(End::Clean, true), (End::Truncate, false), (End::Reset, false)] {
            let gate = Gate::new();
            provider.push(Message::new(200).framed(framing).chunk("first").gate(&gate).ending(end));
            let mut client = Client::connect(provider.addr).await.unwrap();
            let mut answer = client.start(&Request::post("/", "x")).await.unwrap();
            assert_eq!(answer.until("first").await, b"first");
            gate.open();
            assert_eq!(answer.collect().await.complete, complete, "{framing:?} {end:?}");
        }
    }
}

#[tokio::test]
async fn leaving_is_seen() {
    for reply in
        [Reply::Never, Message::sse(["a"]).gate(&Gate::new()).into(), Message::new(200).held_by(&Gate::new()).into()]
    {
        let provider = Provider::always(reply).await;
        let mut client = Client::connect(provider.addr).await.unwrap();
        client.write(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
        let seen = provider.wait_for_request(0).await;
        drop(client);
        seen.wait_for_cancel(Duration::from_secs(1)).await;
    }
}

#[tokio::test]
async fn tls_with_a_certificate_of_its_own() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let certificate = Certificate::new(folder.path(), &["http/1.1"]);
    let provider = Provider::start_tls(certificate.server, |_| Message::json(200, "{}").into()).await;
    use rustls::pki_types::pem::PemObject as _;
    let mut roots = rustls::RootCertStore::empty();
    roots.add(rustls::pki_types::CertificateDer::from_pem_file(&certificate.pem).expect("PEM")).expect("a root");
    let crypto = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(crypto).with_safe_default_protocol_versions().unwrap();
    let config = config.with_root_certificates(roots).with_no_client_auth();
    let stream = TcpStream::connect(provider.addr).await.unwrap();
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    let mut stream = connector.connect("localhost".try_into().unwrap(), stream).await.expect("a trusted certificate");
    stream.write_all(b"GET /tls HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    let mut head = [0; 15];
    stream.read_exact(&mut head).await.unwrap();
    assert_eq!(&head, b"HTTP/1.1 200 OK");
    assert_eq!(provider.last().target, "/tls");
}
