//! Clients that know sidekey as their proxy: what is opened, what passes unread, and what is refused.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

use crate::support::client::{self, Client, Request};
use crate::support::provider::Provider;
use crate::support::script::{Gate, Message, Reply, Socket};
use crate::support::sidekey::{Options, REAL_KEY, Sidekey};
use crate::support::tunnel::{self, Speaker, Trickle};

const HOST: &str = "api.openai.com";
const TARGET: &str = "api.openai.com:443";
const CHAT: &str = "/v1/chat/completions";
const BODY: &str = r#"{"model":"gpt-4o-mini","messages":[{"role":"user","content":"hi"}]}"#;
const ANSWER: &str =
    r#"{"model":"gpt-4o-mini","choices":[],"usage":{"prompt_tokens":1,"completion_tokens":2,"total_tokens":3}}"#;
const H1: &[&str] = &["http/1.1"];

fn chat(key: &str) -> Request {
    Request::post(CHAT, BODY).header("host", HOST).bearer(key)
}

/// One with OpenAI at `provider`, a provider key for it, and these lines.
async fn start(provider: &Provider, config: &str) -> Sidekey {
    let sidekey = Sidekey::start(&Options::new().config(config).provider("openai", &provider.url())).await;
    sidekey.add_provider_key("openai", REAL_KEY).await;
    sidekey
}

async fn with(provider: &Provider) -> Sidekey {
    start(provider, "").await
}

fn ok() -> Message {
    Message::json(200, ANSWER)
}

/// TLS to the provider as the client believes, over HTTP/1.1.
async fn inside(sidekey: &Sidekey) -> Client<tokio_rustls::client::TlsStream<TcpStream>> {
    let tcp = tunnel::open(sidekey.proxy, TARGET).await;
    Client::over(Speaker::new(&sidekey.root_pem(), H1).open(HOST, tcp).await.expect("it trusts the root"))
}

#[tokio::test]
async fn a_provider_is_opened_in_both_versions_of_http() {
    let provider = Provider::always(ok()).await;
    let sidekey = with(&provider).await;
    let key = sidekey.create_key(&[]).await.key;
    let mut client = inside(&sidekey).await;
    for _ in 0..2 {
        let answer = client.send(&chat(&key)).await.unwrap();
        assert_eq!((answer.status, answer.text().as_str()), (200, ANSWER));
        let entry = sidekey.entry(&answer.request_id()).await;
        assert_eq!((&entry["provider"], &entry["tokens"]["total"]), (&"openai".into(), &3.into()));
    }
    let tcp = tunnel::open(sidekey.proxy, TARGET).await;
    let tls = Speaker::new(&sidekey.root_pem(), &["h2", "http/1.1"]).open(HOST, tcp).await.unwrap();
    assert_eq!(tls.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    let request = Request::post(CHAT, BODY).bearer(&key);
    let answer = client::send_h2_over(tls, "https://api.openai.com", &request).await;
    assert_eq!((answer.status, answer.text().as_str()), (200, ANSWER));
    assert_eq!(provider.count(), 3);
    for seen in provider.seen() {
        assert_eq!((seen.target.as_str(), seen.body().as_ref()), (CHAT, BODY.as_bytes()));
        assert_eq!(seen.header("authorization"), Some(&*format!("Bearer {REAL_KEY}")));
        assert!(!seen.contains(&key), "the virtual key went upstream");
    }
    let metrics = sidekey.metrics().await;
    assert!(metrics.contains("sidekey_connections_total{outcome=\"intercepted\"} 2"), "{metrics}");
}

#[tokio::test]
async fn a_stranger_inside_is_refused_like_any() {
    let provider = Provider::always(ok()).await;
    let sidekey = with(&provider).await;
    let mut client = inside(&sidekey).await;
    for (request, want) in [
        (Request::post(CHAT, BODY).header("host", HOST), 401),
        (chat("sk-proj-somebodys-own"), 401),
        (Request::get("/v1/models").header("host", "api.anthropic.com"), 421),
        (Request::get("/v1/models").header("host", "api.openai.com:444"), 421),
        (Request::get("https://evil.example/v1/models").header("host", HOST), 421),
    ] {
        let answer = client.send(&request).await.unwrap();
        assert_eq!(answer.status, want, "{request:?}: {}", answer.text());
    }
    let answer = client.send(&Request::new("CONNECT", "api.anthropic.com:443").header("host", HOST)).await.unwrap();
    assert_eq!(answer.status, 405);
    // In HTTP/2 it is `:authority` that must agree.
    let tcp = tunnel::open(sidekey.proxy, TARGET).await;
    let tls = Speaker::new(&sidekey.root_pem(), &["h2"]).open(HOST, tcp).await.unwrap();
    let answer = client::send_h2_over(tls, "https://api.anthropic.com", &Request::get("/v1/models")).await;
    assert_eq!(answer.status, 421);
    assert_eq!(provider.count(), 0);
}

#[tokio::test]
async fn a_stream_passes_as_it_comes() {
    let gate = Gate::new();
    let (first, second) = ("data: {\"a\":1}\n\n", "data: [DONE]\n\n");
    let reply = Message::new(200).header("content-type", "text/event-stream").chunk(first).gate(&gate).chunk(second);
    let provider = Provider::always(reply).await;
    let sidekey = with(&provider).await;
    let key = sidekey.create_key(&[]).await.key;
    let mut client = inside(&sidekey).await;
    let mut answer = client.start(&chat(&key)).await.unwrap();
    let mut got = answer.until(first).await;
    gate.open();
    got.extend(answer.collect().await.body);
    assert_eq!(got, format!("{first}{second}").into_bytes());
}

#[tokio::test]
async fn websockets_pass_inside() {
    let provider = Provider::always(Reply::WebSocket(Socket::Echo)).await;
    let sidekey = with(&provider).await;
    let key = sidekey.create_key(&[]).await.key;
    let request = Request::get("/v1/realtime?model=gpt-4o-realtime-preview").header("host", HOST).bearer(&key);
    let (_, mut socket) = inside(&sidekey).await.websocket(request).await.expect("101");
    socket.send("echo".into()).await.unwrap();
    let message = timeout(client::PATIENCE, socket.next()).await.expect("in time").expect("a message").unwrap();
    assert_eq!(message.into_text().unwrap().as_str(), "echo");
    assert_eq!(provider.last().header("authorization"), Some(&*format!("Bearer {REAL_KEY}")));
}

#[tokio::test]
async fn a_client_hello_may_come_in_any_cut() {
    let provider = Provider::always(ok()).await;
    let sidekey = with(&provider).await;
    let key = sidekey.create_key(&[]).await.key;
    let speaker = Speaker::new(&sidekey.root_pem(), H1);
    for (name, at_once, target, speaker) in [
        ("byte by byte", 1, TARGET, speaker.clone()),
        ("in pieces", 100, TARGET, speaker.clone()),
        ("upper case and a dot", 9_999, "API.OpenAI.com.:443", speaker.clone()),
        ("without a name", 9_999, TARGET, speaker.clone().nameless()),
    ] {
        let tcp = tunnel::open(sidekey.proxy, target).await;
        let tls = speaker.open(HOST, Trickle { tcp, at_once, before: Vec::new() }).await.expect(name);
        assert_eq!(Client::over(tls).send(&chat(&key)).await.expect(name).status, 200, "{name}");
    }
}

#[tokio::test]
async fn a_client_hello_may_come_with_the_connect() {
    let provider = Provider::always(ok()).await;
    let sidekey = with(&provider).await;
    let key = sidekey.create_key(&[]).await.key;
    // A hello made beforehand, so that both are in one segment.
    let (mut early, late) = tokio::io::duplex(64 * 1024);
    let speaker = Speaker::new(&sidekey.root_pem(), H1);
    let talk = async {
        let tls = speaker.open(HOST, late).await.expect("it trusts the root");
        Client::over(tls).send(&chat(&key)).await.unwrap().status
    };
    let carry = async {
        let mut hello = vec![0; 16 * 1024];
        let len = early.read(&mut hello).await.unwrap();
        let mut tcp = TcpStream::connect(sidekey.proxy).await.unwrap();
        let head = format!("CONNECT {TARGET} HTTP/1.1\r\nhost: {TARGET}\r\n\r\n");
        tcp.write_all(&[head.as_bytes(), &hello[..len]].concat()).await.unwrap();
        assert!(tunnel::head_of(&mut tcp).await.starts_with("HTTP/1.1 200"));
        // Ends when the client has its answer and closes.
        drop(tokio::io::copy_bidirectional(&mut early, &mut tcp).await);
    };
    let (status, ()) = timeout(client::PATIENCE, async { tokio::join!(talk, carry) }).await.expect("in time");
    assert_eq!(status, 200);
}

#[tokio::test]
async fn names_in_tls_must_be_those_asked_for() {
    let provider = Provider::always(ok()).await;
    let sidekey = with(&provider).await;
    let speaker = Speaker::new(&sidekey.root_pem(), H1);
    for name in ["api.anthropic.com", "evil.example", "eu.api.openai.com"] {
        let tcp = tunnel::open(sidekey.proxy, TARGET).await;
        assert!(speaker.open(name, tcp).await.is_err(), "{name} was opened");
    }
    let metrics = sidekey.metrics().await;
    assert!(metrics.contains("sidekey_connections_total{outcome=\"mismatched\"} 3"), "{metrics}");
    // Another root is not trusted, and that is counted.
    let other = Sidekey::start(&Options::new().provider("openai", &provider.url())).await;
    let tcp = tunnel::open(other.proxy, TARGET).await;
    assert!(speaker.open(HOST, tcp).await.is_err());
}

#[tokio::test]
async fn tls_straight_to_the_port_is_opened_for_providers_alone() {
    let provider = Provider::always(ok()).await;
    let sidekey = with(&provider).await;
    let key = sidekey.create_key(&[]).await.key;
    let speaker = Speaker::new(&sidekey.root_pem(), H1);
    let tcp = TcpStream::connect(sidekey.proxy).await.unwrap();
    let tls = speaker.open(HOST, tcp).await.expect("it trusts the root");
    assert_eq!(Client::over(tls).send(&chat(&key)).await.unwrap().status, 200);
    let tcp = TcpStream::connect(sidekey.proxy).await.unwrap();
    assert!(speaker.open("evil.example", tcp).await.is_err());
    for (what, first) in [
        ("SOCKS5", &b"\x05\x01\x00"[..]),
        ("SOCKS4", b"\x04\x01\x01\xbb\x01\x02\x03\x04\x00"),
        ("nothing known", b"\x00"),
    ] {
        assert!(client::raw(sidekey.proxy, first).await.is_empty(), "{what} is not spoken");
    }
}

#[tokio::test]
async fn plain_http_reaches_a_provider_too() {
    let provider = Provider::always(ok()).await;
    let sidekey = with(&provider).await;
    let key = sidekey.create_key(&[]).await.key;
    let absolute = Request::post(&format!("http://{HOST}{CHAT}"), BODY).header("host", HOST).bearer(&key);
    let answer = sidekey.send(&absolute).await;
    assert_eq!((answer.status, answer.text().as_str()), (200, ANSWER));
    let own = format!("http://{}/openai{CHAT}", sidekey.proxy);
    assert_eq!(sidekey.send(&Request::post(&own, BODY).bearer(&key)).await.status, 200, "its own address is a path");
    let mut plain = Client::over(tunnel::open(sidekey.proxy, TARGET).await);
    assert_eq!(plain.send(&chat(&key)).await.unwrap().status, 200, "inside CONNECT");
    assert_eq!(
        client::send_h2(sidekey.proxy, &Request::post("/openai/v1/chat/completions", BODY).bearer(&key)).await.status,
        200
    );
    for seen in provider.seen() {
        assert_eq!((seen.target.as_str(), seen.header("authorization")), (CHAT, Some(&*format!("Bearer {REAL_KEY}"))));
    }
}

#[tokio::test]
async fn ports_and_addresses_are_checked_before_anything_is_dialled() {
    let provider = Provider::always(ok()).await;
    let sidekey = with(&provider).await;
    for (target, want) in [
        ("api.openai.com:22", 403),
        ("example.com:22", 403),
        ("169.254.169.254:80", 403),
        ("[::ffff:169.254.169.254]:80", 403),
        ("[64:ff9b::a9fe:a9fe]:80", 403),
        ("[::1]:443", 403),
        ("127.0.0.1:443", 403),
        ("10.0.0.1:443", 403),
        ("localhost:443", 403),
        ("0.0.0.0:443", 403),
        ("no-such-host.invalid:443", 502),
        ("example.com", 400),
        ("example.com:0", 400),
    ] {
        let (head, _tcp) = tunnel::connect(sidekey.proxy, target, "").await;
        assert!(head.starts_with(&format!("HTTP/1.1 {want} ")), "{target}: {head}");
    }
    let absolute = Request::get("http://169.254.169.254/latest/meta-data/");
    assert_eq!(sidekey.send(&absolute).await.status, 403);
    assert_eq!(provider.count(), 0);
}

#[tokio::test]
async fn its_own_ports_are_never_reached_through_it() {
    let provider = Provider::always(ok()).await;
    let config = "[connect]\nallow_private = true\nports = [1]\n";
    let mut sidekey = start(&provider, config).await;
    // The ports are known only now; they are said as a flag of the next start would say them.
    sidekey.stop().await;
    let path = sidekey.folder().join("sidekey.toml");
    let all: Vec<String> = (1024..=65535).map(|port: u16| port.to_string()).collect();
    let text = std::fs::read_to_string(&path).unwrap().replace("[1]", &format!("[{}]", all.join(",")));
    std::fs::write(&path, text).unwrap();
    sidekey.restart().await;
    for port in [sidekey.proxy.port(), sidekey.telemetry.port()] {
        for host in ["127.0.0.1", "localhost", "[::ffff:127.0.0.1]", "127.0.0.2", "0.0.0.0"] {
            let (head, _tcp) = tunnel::connect(sidekey.proxy, &format!("{host}:{port}"), "").await;
            assert!(!head.starts_with("HTTP/1.1 200"), "{host}:{port}: {head}");
        }
    }
}

#[tokio::test]
async fn other_hosts_pass_unread_with_half_closes() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let there = listener.local_addr().unwrap();
    let provider = Provider::always(ok()).await;
    let config = format!("[connect]\nallow_private = true\nports = [{}]\n", there.port());
    let sidekey = start(&provider, &config).await;
    let mut tcp = tunnel::open(sidekey.proxy, &format!("localhost:{}", there.port())).await;
    let (mut other, _) = timeout(client::PATIENCE, listener.accept()).await.unwrap().unwrap();
    // The server speaks first, as in SMTP.
    other.write_all(b"220 ready\r\n").await.unwrap();
    let mut greeting = [0; 11];
    timeout(client::PATIENCE, tcp.read_exact(&mut greeting)).await.unwrap().unwrap();
    assert_eq!(&greeting, b"220 ready\r\n");
    let sent: Vec<u8> = (0..300_000_u32).flat_map(u32::to_le_bytes).collect();
    let (copy, mut received) = (sent.clone(), Vec::new());
    let (mut read, mut write) = tcp.split();
    let talk = async {
        tokio::join!(
            async {
                write.write_all(&copy).await.unwrap();
                write.shutdown().await.unwrap();
            },
            other.read_to_end(&mut received)
        )
    };
    timeout(client::PATIENCE, talk).await.unwrap().1.unwrap();
    assert!(received == sent, "{} bytes of {}", received.len(), sent.len());
    other.write_all(b"bye").await.unwrap();
    other.shutdown().await.unwrap();
    let mut last = String::new();
    timeout(client::PATIENCE, read.read_to_string(&mut last)).await.unwrap().unwrap();
    assert_eq!(last, "bye");
    let metrics = sidekey.metrics().await;
    assert!(metrics.contains(&format!("sidekey_tunnel_bytes_total{{direction=\"sent\"}} {}", sent.len())), "{metrics}");
}

#[tokio::test]
async fn plain_http_to_other_hosts_is_passed_on_as_it_is() {
    let other = Provider::always(Message::new(418).header("x-theirs", "1").chunk("tea")).await;
    let provider = Provider::always(ok()).await;
    let port = other.url().rsplit(':').next().unwrap().to_owned();
    let config = format!("[connect]\nallow_private = true\nports = [{port}]\n");
    let sidekey = start(&provider, &config).await;
    let request = Request::post(&format!("http://localhost:{port}/a?b=c"), "body")
        .header("host", format!("localhost:{port}"))
        .header("proxy-authorization", "Basic bWU6c2VjcmV0")
        .header("authorization", "Bearer theirs");
    let answer = sidekey.send(&request).await;
    assert_eq!((answer.status, answer.text().as_str(), answer.header("x-theirs")), (418, "tea", Some("1")));
    let seen = other.last();
    assert_eq!((seen.target.as_str(), seen.body().as_ref()), ("/a?b=c", &b"body"[..]));
    assert_eq!(seen.header("host"), Some(&*format!("localhost:{port}")));
    assert_eq!((seen.header("authorization"), seen.header("proxy-authorization")), (Some("Bearer theirs"), None));
}

#[tokio::test]
async fn other_hosts_may_be_denied() {
    let provider = Provider::always(ok()).await;
    let sidekey = start(&provider, "[connect]\nother_hosts = \"deny\"\n").await;
    let (head, mut tcp) = tunnel::connect(sidekey.proxy, "example.com:443", "").await;
    assert!(head.starts_with("HTTP/1.1 403 "), "{head}");
    assert!(head.contains("x-sidekey-refused: permission_denied"), "{head}");
    let mut said = vec![0; 1024];
    let len = timeout(client::PATIENCE, tcp.read(&mut said)).await.unwrap().unwrap();
    let said = String::from_utf8_lossy(&said[..len]).into_owned();
    assert!(said.contains("example.com") && said.contains("connect.other_hosts"), "{said}");
    assert_eq!(sidekey.send(&Request::get("http://example.com/")).await.status, 403);
    let key = sidekey.create_key(&[]).await.key;
    assert_eq!(inside(&sidekey).await.send(&chat(&key)).await.unwrap().status, 200, "providers are opened");
}

#[tokio::test]
async fn the_proxys_url_may_carry_the_key() {
    let provider = Provider::always(ok()).await;
    let sidekey = with(&provider).await;
    let (key, other) = (sidekey.create_key(&[]).await, sidekey.create_key(&["--name", "other"]).await);
    let basic = {
        use base64::Engine;
        base64::engine::general_purpose::STANDARD.encode(format!("key:{}", key.key))
    };
    let header = format!("proxy-authorization: Basic {basic}\r\n");
    let (head, tcp) = tunnel::connect(sidekey.proxy, TARGET, &header).await;
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    let tls = Speaker::new(&sidekey.root_pem(), H1).open(HOST, tcp).await.unwrap();
    let mut client = Client::over(tls);
    // An app whose own key cannot be changed: it is taken out.
    let answer = client.send(&chat("sk-proj-built-in")).await.unwrap();
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(sidekey.entry(&answer.request_id()).await["virtual_key_id"], key.id.as_str());
    assert!(!provider.last().contains("sk-proj-built-in") && !provider.last().contains(&basic));
    assert_eq!(client.send(&chat(&other.key)).await.unwrap().status, 400, "two keys");
    let absolute = Request::post(&format!("http://{HOST}{CHAT}"), BODY)
        .header("host", HOST)
        .header("proxy-authorization", format!("Basic {basic}"));
    assert_eq!(sidekey.send(&absolute).await.status, 200);
}

#[tokio::test]
async fn the_root_outlives_a_restart_unless_it_is_ephemeral() {
    let provider = Provider::always(ok()).await;
    for (config, dir, kept) in [("", "ca", true), ("[connect]\nca = \"ephemeral\"\n", "ca-ephemeral", false)] {
        let mut sidekey = start(&provider, config).await;
        let file = sidekey.data_dir().join(dir).join("root.pem");
        let before = std::fs::read(&file).unwrap();
        assert!(!before.is_empty() && !before.windows(11).any(|text| text == b"PRIVATE KEY"));
        sidekey.stop().await;
        sidekey.restart().await;
        assert_eq!(std::fs::read(&file).unwrap() == before, kept, "{config}");
        let key = sidekey.create_key(&[]).await.key;
        let tls = Speaker::new(&file, H1).open(HOST, tunnel::open(sidekey.proxy, TARGET).await).await.unwrap();
        assert_eq!(Client::over(tls).send(&chat(&key)).await.unwrap().status, 200);
    }
}

#[tokio::test]
async fn an_own_provider_is_opened_by_its_hosts() {
    let provider = Provider::always(ok()).await;
    let options = Options::new().own_provider("mine", "openai", &provider.url());
    let mut sidekey = Sidekey::start(&options).await;
    let path = sidekey.folder().join("sidekey.toml");
    let first = std::fs::read_to_string(sidekey.root_pem()).unwrap();
    let text = std::fs::read_to_string(&path).unwrap();
    sidekey.stop().await;
    std::fs::write(&path, text.replace("[providers.mine]", "[providers.mine]\nhosts = [\"llm.example\"]")).unwrap();
    sidekey.restart().await;
    let both = std::fs::read_to_string(sidekey.root_pem()).unwrap();
    assert!(both.starts_with(&first) && both.len() > first.len(), "a new host takes one more root");
    sidekey.add_provider_key("mine", REAL_KEY).await;
    let key = sidekey.create_key(&[]).await.key;
    let tcp = tunnel::open(sidekey.proxy, "llm.example:443").await;
    let tls = Speaker::new(&sidekey.root_pem(), H1).open("llm.example", tcp).await.unwrap();
    let request = Request::post(CHAT, BODY).header("host", "llm.example").bearer(&key);
    assert_eq!(Client::over(tls).send(&request).await.unwrap().status, 200);
    // Whoever trusts only the old root is served as before.
    let old = sidekey.folder().join("old.pem");
    std::fs::write(&old, first).unwrap();
    let tcp = tunnel::open(sidekey.proxy, TARGET).await;
    Speaker::new(&old, H1).open(HOST, tcp).await.expect("a host keeps its root");
}

#[tokio::test]
async fn draining_waits_for_tunnels_that_move() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let there: SocketAddr = listener.local_addr().unwrap();
    let provider = Provider::always(ok()).await;
    let config = format!("[connect]\nallow_private = true\nports = [{}]\n", there.port());
    let mut sidekey = start(&provider, &config).await;
    let mut tcp = tunnel::open(sidekey.proxy, &there.to_string()).await;
    let (mut other, _) = timeout(client::PATIENCE, listener.accept()).await.unwrap().unwrap();
    sidekey.signal(rustix::process::Signal::TERM);
    for _ in 0..10 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        tcp.write_all(b"x").await.unwrap();
        assert_eq!(timeout(client::PATIENCE, other.read_u8()).await.unwrap().unwrap(), b'x');
    }
    sidekey.wait_for_exit().await;
}

/// Sends back whatever comes, on every connection.
async fn echo(listener: TcpListener) {
    while let Ok((mut tcp, _)) = listener.accept().await {
        tokio::spawn(async move {
            let (mut read, mut write) = tcp.split();
            drop(tokio::io::copy(&mut read, &mut write).await);
        });
    }
}

/// Waits until so many descriptors are open.
async fn closed_to(sidekey: &Sidekey, want: usize) {
    let deadline = tokio::time::Instant::now() + client::PATIENCE;
    loop {
        let open = sidekey.held().0;
        if open == want {
            return;
        }
        assert!(tokio::time::Instant::now() < deadline, "{open} descriptors are open, {want} were");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_held_open_costs_the_same_however_much_passes() {
    const TUNNELS: usize = 300;
    const STREAMS: usize = 100;
    const ROUNDS: usize = 10;
    /// What memory may differ by without anything being kept.
    const SLACK: u64 = 6 << 20;
    if !cfg!(target_os = "linux") {
        eprintln!("SKIPPED: what a process holds is read from /proc");
        return;
    }
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let there = listener.local_addr().unwrap();
    let echo = tokio::spawn(echo(listener));
    let piece = format!("data: {{\"choices\":[{{\"delta\":{{\"content\":{:?}}}}}]}}\n\n", "x".repeat(8_000));
    let gates: Vec<Gate> = (0..2 * ROUNDS).map(|_| Gate::new()).collect();
    let start_of_stream = Message::sse([&*piece]);
    let reply = gates.iter().fold(start_of_stream, |reply, gate| reply.gate(gate).chunk(piece.clone()));
    let provider = Provider::always(reply.gate(&Gate::new())).await;
    let config = format!("[connect]\nallow_private = true\nports = [{}]\n", there.port());
    let sidekey = start(&provider, &config).await;
    let key = sidekey.create_key(&[]).await.key;
    // What is made once and kept is there after one of each.
    {
        let _tunnel = tunnel::open(sidekey.proxy, &there.to_string()).await;
        let mut client = inside(&sidekey).await;
        client.start(&chat(&key)).await.unwrap().until("xxx").await;
    }
    let mut before = sidekey.held().0;
    for _ in 0..10 {
        tokio::time::sleep(Duration::from_millis(50)).await;
        before = before.min(sidekey.held().0);
    }

    let mut tunnels = Vec::new();
    for _ in 0..TUNNELS {
        tunnels.push(tunnel::open(sidekey.proxy, &there.to_string()).await);
    }
    let mut clients = Vec::new();
    for _ in 0..STREAMS {
        clients.push(inside(&sidekey).await);
    }
    let mut streams = Vec::new();
    for client in &mut clients {
        streams.push(client.start(&chat(&key)).await.unwrap());
    }
    let (sent, mut passed) = (vec![7; 16 << 10], vec![0; STREAMS]);
    let mut samples = Vec::new();
    for half in gates.chunks(ROUNDS) {
        for gate in half {
            let through = tunnels.iter_mut().map(async |tcp| {
                let mut back = vec![0; sent.len()];
                tcp.write_all(&sent).await.unwrap();
                timeout(client::PATIENCE, tcp.read_exact(&mut back)).await.expect("in time").unwrap();
                assert!(back == sent, "another echo");
            });
            futures_util::future::join_all(through).await;
            gate.open();
            for (stream, passed) in streams.iter_mut().zip(&mut passed) {
                let got = stream.next().await.unwrap().expect("the stream goes on");
                *passed += got.len();
            }
        }
        samples.push(sidekey.held());
    }
    println!("{before} descriptors before; held, after each half: {samples:?}; {} bytes of a stream", passed[0]);
    // Two sockets each.
    let open = before + 2 * (TUNNELS + STREAMS);
    assert_eq!((samples[0].0, samples[1].0), (open, open), "descriptors are left open");
    assert!(samples[1].1 < samples[0].1 + SLACK, "memory grows with what passes: {samples:?}");
    let metrics = sidekey.metrics().await;
    assert!(metrics.contains(&format!("\nsidekey_tunnels_open {TUNNELS}\n")), "{metrics}");

    drop(streams);
    drop((tunnels, clients));
    closed_to(&sidekey, before).await;
    let metrics = sidekey.metrics().await;
    assert!(metrics.contains("\nsidekey_tunnels_open 0\n"), "{metrics}");
    echo.abort();
}
