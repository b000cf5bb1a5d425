//! The proxies sidekey itself goes through.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::support::client::Request;
use crate::support::provider::Provider;
use crate::support::script::Message;
use crate::support::sidekey::{Options, REAL_KEY, Sidekey};
use crate::support::tls::Certificate;
use crate::support::tunnel;

const CHAT: &str = "/openai/v1/chat/completions";
const BODY: &str = r#"{"model":"gpt-4o-mini","messages":[{"role":"user","content":"hi"}]}"#;

/// A proxy that leads every CONNECT to `to`, and remembers the heads.
pub(crate) struct Corporate {
    pub(crate) addr: SocketAddr,
    heads: Arc<Mutex<Vec<String>>>,
}

impl Corporate {
    pub(crate) async fn start(to: SocketAddr, status: &'static str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let addr = listener.local_addr().expect("a bound address");
        let heads: Arc<Mutex<Vec<String>>> = Arc::default();
        let seen = Arc::clone(&heads);
        tokio::spawn(async move {
            while let Ok((mut client, _)) = listener.accept().await {
                let seen = Arc::clone(&seen);
                tokio::spawn(async move {
                    let head = tunnel::head_of(&mut client).await;
                    seen.lock().expect("no holder panics").push(head);
                    client.write_all(format!("HTTP/1.1 {status}\r\n\r\n").as_bytes()).await.expect("it is open");
                    if status.starts_with("200") {
                        let mut there = TcpStream::connect(to).await.expect("the provider listens");
                        drop(tokio::io::copy_bidirectional(&mut client, &mut there).await);
                    }
                });
            }
        });
        Self { addr, heads }
    }

    fn heads(&self) -> Vec<String> {
        self.heads.lock().expect("no holder panics").clone()
    }
}

fn address_of(provider: &Provider) -> SocketAddr {
    let url = provider.url();
    let port = url.rsplit(':').next().expect("a port").parse().expect("a number");
    SocketAddr::from(([127, 0, 0, 1], port))
}

fn ok() -> Message {
    Message::json(200, r#"{"usage":{"prompt_tokens":1,"completion_tokens":2,"total_tokens":3}}"#)
}

async fn start(base_url: &str, options: Options) -> Sidekey {
    let sidekey = Sidekey::start(&options.provider("openai", base_url)).await;
    sidekey.add_provider_key("openai", REAL_KEY).await;
    sidekey
}

#[tokio::test]
async fn providers_are_reached_through_it_with_credentials() {
    let provider = Provider::always(ok()).await;
    let corporate = Corporate::start(address_of(&provider), "200 Connection established").await;
    let options = Options::new().env("HTTP_PROXY", format!("http://me:p%40ss@{}", corporate.addr));
    let sidekey = start("http://llm.corp.test:8080", options).await;
    let key = sidekey.create_key(&[]).await.key;
    for _ in 0..2 {
        let answer = sidekey.send(&Request::post(CHAT, BODY).bearer(&key)).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
    }
    let heads = corporate.heads();
    assert_eq!(heads.len(), 1, "the connection is kept");
    assert!(heads[0].starts_with("CONNECT llm.corp.test:8080 HTTP/1.1\r\n"), "{heads:?}");
    assert!(heads[0].contains("Proxy-Authorization: Basic bWU6cEBzcw==\r\n"), "{heads:?}");
    let seen = provider.last();
    assert_eq!(seen.header("host"), Some("llm.corp.test:8080"));
    assert_eq!(seen.header("proxy-authorization"), None);
    assert!(!sidekey.stderr().contains("p%40ss") && !sidekey.stderr().contains("p@ss"));
}

#[tokio::test]
async fn tls_is_verified_behind_it() {
    let folder = tempfile::tempdir().unwrap();
    let certificate = Certificate::new(folder.path(), &["http/1.1"]);
    let provider = Provider::start_tls(Arc::clone(&certificate.server), |_| ok().into()).await;
    let corporate = Corporate::start(address_of(&provider), "200 OK").await;
    // The certificate is for another name than the one that is asked for.
    let options = Options::new()
        .env("https_proxy", format!("http://{}", corporate.addr))
        .env("SSL_CERT_FILE", certificate.pem.display().to_string());
    let sidekey = start("https://llm.corp.test", options).await;
    let key = sidekey.create_key(&[]).await.key;
    let answer = sidekey.send(&Request::post(CHAT, BODY).bearer(&key)).await;
    assert_eq!((answer.status, answer.code().as_str()), (502, "upstream_unreachable"));
    assert!(corporate.heads()[0].starts_with("CONNECT llm.corp.test:443 "), "{:?}", corporate.heads());
    assert_eq!(provider.count(), 0);
}

#[tokio::test]
async fn what_no_proxy_lists_is_reached_straight() {
    let provider = Provider::always(ok()).await;
    let corporate = Corporate::start(address_of(&provider), "200 OK").await;
    let options = Options::new()
        .env("HTTP_PROXY", format!("http://{}", corporate.addr))
        .env("NO_PROXY", "no-such-host.test")
        .provider("groq", "http://no-such-host.test:1");
    let sidekey = start(&provider.url(), options).await;
    sidekey.add_provider_key("groq", REAL_KEY).await;
    let key = sidekey.create_key(&[]).await.key;
    // This machine is never behind a proxy.
    assert_eq!(sidekey.send(&Request::post(CHAT, BODY).bearer(&key)).await.status, 200);
    let answer = sidekey.send(&Request::post("/groq/openai/v1/chat/completions", BODY).bearer(&key)).await;
    assert_eq!(answer.status, 502, "{}", answer.text());
    assert!(corporate.heads().is_empty());
}

#[tokio::test]
async fn a_refusal_of_the_proxy_is_told() {
    let provider = Provider::always(ok()).await;
    let corporate = Corporate::start(address_of(&provider), "407 Proxy Authentication Required").await;
    let options = Options::new().env("ALL_PROXY", format!("http://me:wrong@{}", corporate.addr));
    let sidekey = start("http://llm.corp.test", options).await;
    let key = sidekey.create_key(&[]).await.key;
    let answer = sidekey.send(&Request::post(CHAT, BODY).bearer(&key)).await;
    assert_eq!(answer.status, 502);
    let text = answer.text();
    assert!(text.contains("127.0.0.1") && text.contains("407") && !text.contains("wrong"), "{text}");
}

#[tokio::test]
async fn blind_tunnels_go_through_it_too() {
    let other = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let provider = Provider::always(ok()).await;
    let corporate = Corporate::start(other.local_addr().unwrap(), "200 OK").await;
    let options = Options::new().env("HTTPS_PROXY", format!("http://{}", corporate.addr));
    let sidekey = start(&provider.url(), options).await;
    let tcp = tunnel::open(sidekey.proxy, "files.corp.test:443").await;
    assert!(corporate.heads()[0].starts_with("CONNECT files.corp.test:443 "), "{:?}", corporate.heads());
    drop(tcp);
    // An address that is written out is checked here all the same.
    let (head, _tcp) = tunnel::connect(sidekey.proxy, "169.254.169.254:443", "").await;
    assert!(head.starts_with("HTTP/1.1 403 "), "{head}");
}

#[tokio::test]
async fn sidekey_does_not_start_as_its_own_proxy() {
    let provider = Provider::always(ok()).await;
    let mut sidekey = start(&provider.url(), Options::new()).await;
    sidekey.stop().await;
    let free = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    for (name, value, want) in [
        ("HTTPS_PROXY", format!("http://{free}"), "HTTPS_PROXY: is this sidekey itself"),
        ("https_proxy", format!("http://localhost:{}", free.port()), "HTTPS_PROXY: is this sidekey itself"),
        ("ALL_PROXY", format!("socks5h://me:secret@{free}"), "ALL_PROXY: is this sidekey itself"),
        ("ALL_PROXY", "socks4://me:secret@h:1080".to_owned(), "ALL_PROXY: is a SOCKS proxy of a version"),
    ] {
        let output = sidekey.cli_env(&["run", "--proxy", &free.to_string()], &[(name, &value)]).await;
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(3), "{name}={value}: {stderr}");
        assert!(stderr.contains(want) && !stderr.contains("secret"), "{stderr}");
    }
}

/// A proxy of SOCKS5 that wants `me` and `p@ss`, leads every connection to `to`, and remembers where it was to go.
struct Socks {
    addr: SocketAddr,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Socks {
    async fn start(to: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let addr = listener.local_addr().expect("a bound address");
        let asked: Arc<Mutex<Vec<String>>> = Arc::default();
        let seen = Arc::clone(&asked);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let seen = Arc::clone(&seen);
                tokio::spawn(async move { drop(Self::serve(client, to, &seen).await) });
            }
        });
        Self { addr, asked }
    }

    async fn serve(mut client: TcpStream, to: SocketAddr, asked: &Mutex<Vec<String>>) -> std::io::Result<()> {
        async fn sized(client: &mut TcpStream) -> std::io::Result<Vec<u8>> {
            let mut text = vec![0; usize::from(client.read_u8().await?)];
            client.read_exact(&mut text).await.map(|_| text)
        }
        assert_eq!(client.read_u8().await?, 5);
        let methods = sized(&mut client).await?;
        if !methods.contains(&2) {
            return client.write_all(&[5, 0xff]).await;
        }
        client.write_all(&[5, 2]).await?;
        assert_eq!(client.read_u8().await?, 1);
        let login = (sized(&mut client).await?, sized(&mut client).await?);
        let good = login == (b"me".to_vec(), b"p@ss".to_vec());
        client.write_all(&[1, u8::from(!good)]).await?;
        if !good {
            return Ok(());
        }
        let mut head = [0; 4];
        client.read_exact(&mut head).await?;
        let host = match head[3] {
            1 => std::net::Ipv4Addr::from(client.read_u32().await?).to_string(),
            3 => format!("name {}", String::from_utf8_lossy(&sized(&mut client).await?)),
            kind => panic!("an address of kind {kind}"),
        };
        let port = client.read_u16().await?;
        asked.lock().expect("no holder panics").push(format!("{host} {port}"));
        let mut there = TcpStream::connect(to).await?;
        // What the server says first comes in one write with the answer.
        let mut answer = vec![5, 0, 0, 3, 1, b'x', 0, 0];
        if port == 443 {
            answer.push(there.read_u8().await?);
        }
        client.write_all(&answer).await?;
        tokio::io::copy_bidirectional(&mut client, &mut there).await.map(drop)
    }

    fn asked(&self) -> Vec<String> {
        self.asked.lock().expect("no holder panics").clone()
    }
}

#[tokio::test]
async fn providers_are_reached_through_socks() {
    let provider = Provider::always(ok()).await;
    for (scheme, host, want) in [
        ("socks5h", "llm.corp.test", Some("name llm.corp.test 8080")),
        ("socks5h", "203.0.113.9", Some("203.0.113.9 8080")),
        ("socks5", "203.0.113.9", Some("203.0.113.9 8080")),
        // The name would have to be resolved here.
        ("socks5", "llm.corp.test", None),
    ] {
        let socks = Socks::start(address_of(&provider)).await;
        let options = Options::new().env("ALL_PROXY", format!("{scheme}://me:p%40ss@{}", socks.addr));
        let sidekey = start(&format!("http://{host}:8080"), options).await;
        let key = sidekey.create_key(&[]).await.key;
        let before = provider.count();
        for _ in 0..2 {
            let answer = sidekey.send(&Request::post(CHAT, BODY).bearer(&key)).await;
            assert_eq!(answer.status == 200, want.is_some(), "{scheme} {host}: {}", answer.text());
        }
        assert_eq!(socks.asked(), Vec::from_iter(want), "{scheme} {host}: one connection, which is kept");
        assert_eq!(provider.count() - before, if want.is_some() { 2 } else { 0 }, "{scheme} {host}");
        assert!(!sidekey.stderr().contains("p%40ss") && !sidekey.stderr().contains("p@ss"));
    }
}

#[tokio::test]
async fn a_refusal_of_socks_is_told() {
    let provider = Provider::always(ok()).await;
    let socks = Socks::start(address_of(&provider)).await;
    for (login, want) in [("me:wrong@", "does not accept these credentials"), ("", "wants credentials")] {
        let options = Options::new().env("all_proxy", format!("socks5h://{login}{}", socks.addr));
        let sidekey = start("http://llm.corp.test", options).await;
        let key = sidekey.create_key(&[]).await.key;
        let answer = sidekey.send(&Request::post(CHAT, BODY).bearer(&key)).await;
        let text = answer.text();
        assert!(answer.status == 502 && text.contains(want) && !text.contains("wrong"), "{text}");
    }
    assert_eq!((provider.count(), socks.asked().len()), (0, 0));
}

#[tokio::test]
async fn blind_tunnels_go_through_socks_with_what_is_said_first() {
    let other = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let provider = Provider::always(ok()).await;
    let socks = Socks::start(other.local_addr().unwrap()).await;
    let options = Options::new().env("HTTPS_PROXY", format!("socks5h://me:p%40ss@{}", socks.addr));
    let sidekey = start(&provider.url(), options).await;
    let greeting = async {
        let (mut there, _) = other.accept().await.unwrap();
        there.write_all(b"220 ready").await.unwrap();
    };
    let (mut tcp, ()) = tokio::join!(tunnel::open(sidekey.proxy, "mail.corp.test:443"), greeting);
    let mut said = String::new();
    tcp.read_to_string(&mut said).await.unwrap();
    assert_eq!((said.as_str(), &*socks.asked()), ("220 ready", &["name mail.corp.test 443".to_owned()][..]));
    // An address that is written out is checked here all the same.
    let (head, _tcp) = tunnel::connect(sidekey.proxy, "169.254.169.254:443", "").await;
    assert!(head.starts_with("HTTP/1.1 403 "), "{head}");
}
