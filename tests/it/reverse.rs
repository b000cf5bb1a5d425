//! The reverse proxy: what passes, what is changed on the way, and what is not.

use std::time::Duration;

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use tokio::time::timeout;

use crate::support::client::{self, Client, Request};
use crate::support::http1::Headers;
use crate::support::provider::Provider;
use crate::support::script::{End, Framing, Gate, Message, Reply, Socket};
use crate::support::sidekey::{Options, REAL_KEY, Sidekey};
use crate::support::tls::Certificate;

const CHAT: &str = "/openai/v1/chat/completions";
const BODY: &str = r#"{"model":"gpt-4o-mini","messages":[{"role":"user","content":"hi"}]}"#;
const ANSWER: &str =
    r#"{"model":"gpt-4o-mini","choices":[],"usage":{"prompt_tokens":1,"completion_tokens":2,"total_tokens":3}}"#;

fn ok() -> Message {
    Message::json(200, ANSWER)
}

#[tokio::test]
async fn the_providers_own_path_follows_its_name() {
    let provider = Provider::always(ok()).await;
    let names = ["openai", "anthropic", "gemini", "azure-openai", "groq"];
    let options = names.iter().fold(Options::new(), |options, name| options.provider(name, &provider.url()));
    let sidekey = Sidekey::start(&options).await;
    for name in names {
        sidekey.add_provider_key(name, REAL_KEY).await;
    }
    let key = sidekey.create_key(&[]).await.key;
    for (path, want) in [
        ("/openai/v1/chat/completions", "/v1/chat/completions"),
        ("/openai/v1/chat/completions?a=1&b=%20x&&c", "/v1/chat/completions?a=1&b=%20x&&c"),
        ("/openai/v1/models/meta-llama%2FLlama-3", "/v1/models/meta-llama%2FLlama-3"),
        ("/anthropic/v1/messages", "/v1/messages"),
        ("/gemini/v1beta/models/gemini-2.0-flash:generateContent", "/v1beta/models/gemini-2.0-flash:generateContent"),
        (
            "/azure-openai//openai/deployments/d/chat/completions?api-version=1",
            "//openai/deployments/d/chat/completions?api-version=1",
        ),
        ("/groq/openai/v1/chat/completions", "/openai/v1/chat/completions"),
    ] {
        let answer = sidekey.send(&Request::post(path, BODY).bearer(&key)).await;
        assert_eq!(answer.status, 200, "{path}: {}", answer.text());
        let seen = provider.last();
        assert_eq!(seen.target, want);
        assert_eq!(seen.body(), BODY);
    }
    let count = provider.count();
    for path in ["/", "/nowhere/v1/chat/completions", "/openai/v1/../../anthropic/v1/messages", "/openai/%2e%2e/x"] {
        let answer = sidekey.send(&Request::post(path, BODY).bearer(&key)).await;
        assert!((400..500).contains(&answer.status), "{path}: {}", answer.status);
    }
    assert_eq!(provider.count(), count, "a path that is nobody's went upstream");
}

#[tokio::test]
async fn bare_paths_go_by_dialect_and_model() {
    let openai = Provider::always(ok()).await;
    let anthropic = Provider::always(ok()).await;
    let mistral = Provider::always(ok()).await;
    let options = Options::new()
        .provider("openai", &openai.url())
        .provider("anthropic", &anthropic.url())
        .provider("mistral", &mistral.url());
    let sidekey = Sidekey::start(&options).await;
    for name in ["openai", "anthropic", "mistral"] {
        sidekey.add_provider_key(name, REAL_KEY).await;
    }
    let key = sidekey.create_key(&[]).await.key;
    for (name, path, model, provider) in [
        ("messages", "/v1/messages", "claude-sonnet-4-20250514", &anthropic),
        ("chat", "/v1/chat/completions", "gpt-4o-mini", &openai),
        ("responses", "/v1/responses", "gpt-4o-mini", &openai),
        ("embeddings", "/v1/embeddings", "text-embedding-3-small", &openai),
        ("by model", "/v1/chat/completions", "mistral-small-latest", &mistral),
        ("default", "/v1/chat/completions", "a-model-of-nobody", &openai),
    ] {
        let before = provider.count();
        let body = format!(r#"{{"model":"{model}","input":"x"}}"#);
        let answer = sidekey.send(&Request::post(path, body).bearer(&key)).await;
        assert_eq!(answer.status, 200, "{name}: {}", answer.text());
        assert_eq!(provider.count(), before + 1, "{name}");
        assert_eq!(provider.last().target, path, "{name}");
    }
}

/// Every place where an SDK puts its key.
fn places(key: &str) -> Vec<(&'static str, Request)> {
    let post = |path: &str| Request::post(path, BODY);
    vec![
        ("Authorization", post(CHAT).header("Authorization", format!("Bearer {key}"))),
        ("authorization, lower case scheme", post(CHAT).header("authorization", format!("bearer {key}"))),
        ("x-api-key", post(CHAT).header("X-Api-Key", key)),
        ("x-goog-api-key", post(CHAT).header("x-goog-api-key", key)),
        ("api-key", post(CHAT).header("api-key", key)),
        ("query, alone", post(&format!("{CHAT}?key={key}"))),
        ("query, first", post(&format!("{CHAT}?key={key}&alt=sse"))),
        ("query, last", post(&format!("{CHAT}?alt=sse&key={key}"))),
        ("twice the same", post(CHAT).bearer(key).header("x-api-key", key)),
    ]
}

#[tokio::test]
async fn a_virtual_key_is_taken_from_every_place_and_swapped() {
    let provider = Provider::always(ok()).await;
    let sidekey = Sidekey::with("openai", &provider.url()).await;
    let key = sidekey.create_key(&[]).await.key;
    for (name, request) in places(&key) {
        let answer = sidekey.send(&request).await;
        assert_eq!(answer.status, 200, "{name}: {}", answer.text());
        let seen = provider.last();
        assert!(!seen.contains(&key), "{name}: the virtual key went upstream: {:?}", seen.headers);
        assert_eq!(seen.headers.all("authorization").collect::<Vec<_>>(), [format!("Bearer {REAL_KEY}")], "{name}");
        let query = if name.starts_with("query, ") && name != "query, alone" { "?alt=sse" } else { "" };
        assert_eq!(seen.target, format!("/v1/chat/completions{query}"), "{name}");
    }
}

#[tokio::test]
async fn other_credentials_are_stripped() {
    let provider = Provider::always(ok()).await;
    let sidekey = Sidekey::with("openai", &provider.url()).await;
    let key = sidekey.create_key(&[]).await.key;
    let stray = "stray-credential-0123456789";
    let request = Request::post(&format!("{CHAT}?key={stray}&x=1"), BODY)
        .bearer(&key)
        .header("x-api-key", stray)
        .header("api-key", stray)
        .header("x-goog-api-key", stray)
        .header("cookie", format!("session={stray}"))
        .header("proxy-authorization", format!("Basic {stray}"))
        .header("x-harmless", "stays");
    let answer = sidekey.send(&request).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    let seen = provider.last();
    assert!(!seen.contains(stray), "{:?}", seen.headers);
    assert_eq!(seen.target, "/v1/chat/completions?x=1");
    assert_eq!(seen.header("x-harmless"), Some("stays"));
}

#[tokio::test]
async fn two_different_virtual_keys_are_refused() {
    let provider = Provider::always(ok()).await;
    let sidekey = Sidekey::with("openai", &provider.url()).await;
    let (one, two) = (sidekey.create_key(&[]).await.key, sidekey.create_key(&["--name", "other"]).await.key);
    let answer = sidekey.send(&Request::post(CHAT, BODY).bearer(&one).header("x-api-key", two)).await;
    assert_eq!(answer.status, 400, "{}", answer.text());
    assert_eq!(provider.count(), 0);
}

#[tokio::test]
async fn what_belongs_to_a_connection_stays_there() {
    let reply =
        ok().header("Connection", "X-Response-Hop").header("X-Response-Hop", "1").header("Keep-Alive", "timeout=5");
    let provider = Provider::always(reply.header("X-Kept", "yes").header("X-Kept", "twice")).await;
    let sidekey = Sidekey::with("openai", &provider.url()).await;
    let key = sidekey.create_key(&[]).await.key;
    let request = Request::post(CHAT, BODY)
        .bearer(&key)
        .header("Connection", "keep-alive, X-Request-Hop")
        .header("X-Request-Hop", "1")
        .header("Keep-Alive", "timeout=5")
        .header("TE", "trailers")
        .header("Accept-Encoding", "gzip, br")
        .header("X-Many", "a")
        .header("X-Many", "b");
    let answer = sidekey.send(&request).await;
    assert_eq!(answer.status, 200);
    let seen = provider.last();
    for name in ["x-request-hop", "keep-alive", "te", "x-forwarded-for", "via", "forwarded"] {
        assert_eq!(seen.header(name), None, "{name}");
    }
    assert_eq!(seen.headers.all("x-many").collect::<Vec<_>>(), ["a", "b"]);
    assert_eq!(seen.header("accept-encoding"), Some("gzip, br"));
    for name in ["x-response-hop", "keep-alive"] {
        assert_eq!(answer.header(name), None, "{name}");
    }
    assert_eq!(answer.headers.all("x-kept").collect::<Vec<_>>(), ["yes", "twice"]);
    assert!(!answer.request_id().is_empty());
    assert_eq!(answer.header("x-sidekey-key-source"), Some("system"));
}

#[tokio::test]
async fn the_clients_host_is_not_believed() {
    let provider = Provider::always(ok()).await;
    let elsewhere = Provider::always(ok()).await;
    let sidekey = Sidekey::with("openai", &provider.url()).await;
    let key = sidekey.create_key(&[]).await.key;
    for host in [elsewhere.addr.to_string(), "api.anthropic.com".into(), "169.254.169.254".into()] {
        let request = Request::post(CHAT, BODY).bearer(&key).header("Host", &*host);
        let answer = sidekey.send(&request.header("X-Forwarded-Host", &*host)).await;
        assert_eq!(answer.status, 200, "{host}: {}", answer.text());
        assert_eq!(provider.last().header("host"), Some(&*provider.addr.to_string()));
    }
    assert_eq!((provider.count(), elsewhere.count()), (3, 0));
}

#[tokio::test]
async fn redirects_are_passed_on_and_not_followed() {
    let elsewhere = Provider::always(ok()).await;
    let target = format!("{}/v1/stolen", elsewhere.url());
    let provider = Provider::always(Message::new(307).header("Location", &*target)).await;
    let sidekey = Sidekey::with("openai", &provider.url()).await;
    let key = sidekey.create_key(&[]).await.key;
    for status in [301, 302, 303, 307, 308] {
        provider.push(Message::new(status).header("Location", &*target));
        let answer = sidekey.send(&Request::post(CHAT, BODY).bearer(&key)).await;
        assert_eq!((answer.status, answer.header("location")), (status, Some(&*target)));
    }
    assert_eq!((provider.count(), elsewhere.count()), (5, 0));
}

#[tokio::test]
async fn http2_clients_are_served() {
    let provider = Provider::always(Message::sse(["data: 1\n\n", "data: 2\n\n"]).header("x-kept", "yes")).await;
    let sidekey = Sidekey::with("openai", &provider.url()).await;
    let key = sidekey.create_key(&[]).await.key;
    let answer = client::send_h2(sidekey.proxy, &Request::post(CHAT, BODY).bearer(&key)).await;
    assert_eq!((answer.status, answer.complete), (200, true));
    assert_eq!(answer.text(), "data: 1\n\ndata: 2\n\n");
    assert_eq!(answer.header("x-kept"), Some("yes"));
    assert_eq!(provider.last().body(), BODY);
}

/// A certificate that a sidekey can be told to trust, and where it stands.
fn certificate(protocols: &[&str]) -> (tempfile::TempDir, Certificate) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let certificate = Certificate::new(folder.path(), protocols);
    (folder, certificate)
}

#[tokio::test]
async fn upstreams_over_tls() {
    for (protocols, http2) in [(&["http/1.1"][..], false), (&["h2", "http/1.1"], true)] {
        let (_folder, certificate) = certificate(protocols);
        let provider =
            Provider::start_tls(certificate.server, |_| Message::sse(["data: 1\n\n", "data: 2\n\n"]).into()).await;
        let options = Options::new()
            .provider_with("openai", &provider.url(), &format!("http2 = {http2}"))
            .env("SSL_CERT_FILE", certificate.pem.to_string_lossy());
        let sidekey = Sidekey::start(&options).await;
        sidekey.add_provider_key("openai", REAL_KEY).await;
        let key = sidekey.create_key(&[]).await.key;
        for _ in 0..3 {
            let answer = sidekey.send(&Request::post(CHAT, BODY).bearer(&key)).await;
            assert_eq!(answer.status, 200, "{}", answer.text());
            assert_eq!(answer.text(), "data: 1\n\ndata: 2\n\n");
        }
        let seen = provider.last();
        assert_eq!(seen.body(), BODY);
        let authority = if http2 { seen.header(":authority") } else { seen.header("host") };
        assert_eq!(authority, Some(&*format!("localhost:{}", provider.addr.port())));
        assert_eq!(seen.headers.all("authorization").collect::<Vec<_>>(), [format!("Bearer {REAL_KEY}")]);
        assert_eq!(seen.connection, provider.seen()[0].connection, "connections are reused");
    }
}

#[tokio::test]
async fn an_untrusted_certificate_ends_in_our_own_502() {
    let (_folder, certificate) = certificate(&["http/1.1"]);
    let provider = Provider::start_tls(certificate.server, |_| ok().into()).await;
    let sidekey = Sidekey::with("openai", &provider.url()).await;
    let key = sidekey.create_key(&[]).await.key;
    let answer = sidekey.send(&Request::post(CHAT, BODY).bearer(&key)).await;
    assert_eq!((answer.status, &*answer.code()), (502, "upstream_unreachable"));
    assert_eq!(provider.count(), 0);
}

#[tokio::test]
async fn a_truncation_stays_one() {
    let provider = Provider::always(ok()).await;
    let sidekey = Sidekey::with("openai", &provider.url()).await;
    let key = sidekey.create_key(&[]).await.key;
    for framing in [Framing::Chunked, Framing::Length] {
        for end in [End::Truncate, End::Reset] {
            let gate = Gate::new();
            let reply = Message::new(200).header("Content-Type", "text/event-stream").framed(framing);
            let reply =
                if end == End::Reset { reply.chunk("data: 1\n\n").gate(&gate) } else { reply.chunk("data: 1\n\n") };
            provider.push(reply.ending(end));
            let mut client = Client::connect(sidekey.proxy).await.unwrap();
            let mut streaming = client.start(&Request::post(CHAT, BODY).bearer(&key)).await.unwrap();
            assert_eq!(streaming.status, 200);
            assert_eq!(streaming.until("\n\n").await, b"data: 1\n\n", "{framing:?} {end:?}");
            // A reset overtakes what was sent before it: it comes once the first event is through.
            gate.open();
            let rest = streaming.collect().await;
            assert!(!rest.complete, "{framing:?} {end:?}: a clean end was made of a truncation");
            assert_eq!(rest.body, b"", "{framing:?} {end:?}");
        }
    }
    let entry = sidekey.entry_where("a truncated stream", |entry| entry["outcome"] == "upstream_error").await;
    assert_eq!(entry["status"], 200);
}

#[tokio::test]
async fn a_body_that_ends_with_its_connection_is_whole() {
    let body = "data: 1\n\ndata: 2\n\n";
    let provider = Provider::always(Message::new(200).chunk(body).framed(Framing::Close)).await;
    let sidekey = Sidekey::with("openai", &provider.url()).await;
    let key = sidekey.create_key(&[]).await.key;
    let answer = sidekey.send(&Request::post(CHAT, BODY).bearer(&key)).await;
    assert_eq!((answer.status, answer.complete, &*answer.text()), (200, true, body));
}

#[tokio::test]
async fn answers_without_a_body() {
    let provider = Provider::always(ok()).await;
    let sidekey = Sidekey::with("openai", &provider.url()).await;
    let key = sidekey.create_key(&[]).await.key;
    let mut client = Client::connect(sidekey.proxy).await.unwrap();
    for (method, status) in [("HEAD", 200), ("DELETE", 204), ("GET", 304), ("GET", 200)] {
        let reply = if (method, status) == ("GET", 200) {
            Message::new(200)
        } else if method == "HEAD" {
            Message::new(200).header("Content-Length", "4711").framed(Framing::Bodiless)
        } else {
            Message::new(status).header("ETag", "\"x\"").framed(Framing::Bodiless)
        };
        provider.push(reply);
        // One connection for all: a body that is not there must not be waited for, nor one that is be left.
        let answer = client.send(&Request::new(method, "/openai/v1/models/gpt-4o").bearer(&key)).await.unwrap();
        assert_eq!((answer.status, answer.body.len(), answer.complete), (status, 0, true), "{method} {status}");
        if method == "HEAD" {
            assert_eq!(answer.header("content-length"), Some("4711"));
        }
        assert_eq!(provider.last().method, method);
    }
}

#[tokio::test]
async fn a_client_that_expects_100_gets_it() {
    let provider = Provider::always(ok()).await;
    let sidekey = Sidekey::with("openai", &provider.url()).await;
    let key = sidekey.create_key(&[]).await.key;
    let request = Request::post(CHAT, "")
        .bearer(&key)
        .header("Expect", "100-continue")
        .header("Content-Length", BODY.len().to_string());
    let mut client = Client::connect(sidekey.proxy).await.unwrap();
    client.write_head(&request).await.unwrap();
    assert_eq!(client.read_head().await.unwrap().start[1], "100");
    client.write(BODY.as_bytes()).await.unwrap();
    let answer = client.answer("POST").await.unwrap().collect().await;
    assert_eq!((answer.status, provider.last().body()), (200, Bytes::from(BODY)));
    // A stranger is told before it sends its body.
    let mut client = Client::connect(sidekey.proxy).await.unwrap();
    client.write_head(&Request { headers: Headers(request.headers.0[2..].to_vec()), ..request }).await.unwrap();
    assert_eq!(client.read_head().await.unwrap().start[1], "401");
}

#[tokio::test]
async fn big_bodies_stream_both_ways() {
    // Above what is kept for a second try (8 MiB).
    let size = 12 << 20;
    let provider = Provider::always(ok()).await;
    let sidekey = Sidekey::with("openai", &provider.url()).await;
    let key = sidekey.create_key(&[]).await.key;
    let head = br#"{"model":"gpt-4o-mini","input":""#;
    let filler = Bytes::from(vec![b'x'; 1 << 20]);
    let request = Request::post("/openai/v1/responses", "")
        .bearer(&key)
        .header("Content-Length", (head.len() + size + 2).to_string());
    let answer_body = Bytes::from(vec![b'y'; 3 << 20]);
    provider.push(Message::new(200).chunks(vec![answer_body.clone(); 4]));
    let mut client = Client::connect(sidekey.proxy).await.unwrap();
    client.write_head(&request).await.unwrap();
    client.write(head).await.unwrap();
    for _ in 0..11 {
        client.write(&filler).await.unwrap();
    }
    // The rest is still to be sent, and the provider has most of it already.
    let seen = provider.wait_for_request(0).await;
    seen.wait(client::PATIENCE, "streamed", |progress| progress.body > 8 << 20).await;
    client.write(&filler).await.unwrap();
    client.write(b"\"}").await.unwrap();
    let answer = client.answer("POST").await.unwrap().collect().await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(answer.body.len(), answer_body.len() * 4);
    let body = seen.body();
    assert_eq!(body.len(), head.len() + size + 2);
    assert!(body.starts_with(head) && body.ends_with(b"x\"}"));
}

#[tokio::test]
async fn an_answer_before_the_request_has_ended_is_passed_on() {
    let provider = Provider::always(Message::json(413, r#"{"error":{"message":"too much"}}"#).hasty()).await;
    let sidekey = Sidekey::with("openai", &provider.url()).await;
    let key = sidekey.create_key(&[]).await.key;
    // Larger than what is kept, so that it goes upstream while it comes.
    let request = Request::post(CHAT, "").bearer(&key).header("Content-Length", (20 << 20).to_string());
    let mut client = Client::connect(sidekey.proxy).await.unwrap();
    client.write_head(&request).await.unwrap();
    client.write(br#"{"model":"gpt-4o-mini","input":""#).await.unwrap();
    let filler = vec![b'x'; 9 << 20];
    // The other side may stop reading at any moment from here on.
    drop(client.write(&filler).await);
    let answer = client.answer("POST").await.unwrap().collect().await;
    assert_eq!(answer.status, 413, "{}", answer.text());
}

#[tokio::test]
async fn a_chunked_request_arrives_whole() {
    let provider = Provider::always(ok()).await;
    let sidekey = Sidekey::with("openai", &provider.url()).await;
    let key = sidekey.create_key(&[]).await.key;
    let request = Request::post(CHAT, "").bearer(&key).header("Transfer-Encoding", "chunked");
    let mut client = Client::connect(sidekey.proxy).await.unwrap();
    client.write_head(&request).await.unwrap();
    for byte in BODY.as_bytes() {
        client.write(format!("1\r\n{}\r\n", char::from(*byte)).as_bytes()).await.unwrap();
    }
    client.write(b"0\r\n\r\n").await.unwrap();
    let answer = client.answer("POST").await.unwrap().collect().await;
    assert_eq!((answer.status, provider.last().body()), (200, Bytes::from(BODY)));
}

#[tokio::test]
async fn smuggled_and_broken_requests_are_refused() {
    let provider = Provider::always(ok()).await;
    let sidekey = Sidekey::with("openai", &provider.url()).await;
    let key = sidekey.create_key(&[]).await.key;
    let auth = format!("authorization: Bearer {key}\r\nhost: x\r\n");
    for (name, bytes) in [
        (
            "two lengths",
            format!("POST {CHAT} HTTP/1.1\r\n{auth}content-length: 2\r\ncontent-length: 4\r\n\r\n{{}}{{}}"),
        ),
        ("a signed length", format!("POST {CHAT} HTTP/1.1\r\n{auth}content-length: +2\r\n\r\n{{}}")),
        (
            "a bad chunk",
            format!("POST {CHAT} HTTP/1.1\r\n{auth}transfer-encoding: chunked\r\n\r\nzz\r\n{{}}\r\n0\r\n\r\n"),
        ),
        ("a space before the colon", format!("POST {CHAT} HTTP/1.1\r\n{auth}content-length : 2\r\n\r\n{{}}")),
        ("a bare NUL", format!("POST {CHAT} HTTP/1.1\r\n{auth}x: a\0b\r\n\r\n")),
        ("noise", "\u{1}\u{2}\u{3} nothing\r\n\r\n".to_owned()),
    ] {
        let answer = client::raw(sidekey.proxy, bytes.as_bytes()).await;
        let status = String::from_utf8_lossy(&answer).split(' ').nth(1).unwrap_or("closed").to_owned();
        assert!(status.starts_with('4') || status == "closed", "{name}: {status}");
    }
    let body = r#"{"model":"gpt-4o","model":"o3-pro"}"#;
    let answer = sidekey.send(&Request::post(CHAT, body).bearer(&key)).await;
    assert_eq!(answer.status, 400, "a field given twice: {}", answer.text());
    assert!(provider.seen().iter().all(|seen| seen.body().is_empty()), "something went upstream");
}

#[tokio::test]
async fn an_upstream_that_is_not_there() {
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let sidekey = Sidekey::with("openai", &format!("http://{nobody}")).await;
    let key = sidekey.create_key(&[]).await.key;
    let answer = sidekey.send(&Request::post(CHAT, BODY).bearer(&key)).await;
    assert_eq!((answer.status, &*answer.code()), (502, "upstream_unreachable"));
    let entry = sidekey.entry(&answer.request_id()).await;
    assert_eq!((entry["outcome"].as_str(), entry["tokens_source"].as_str()), (Some("upstream_error"), Some("none")));
}

#[tokio::test]
async fn an_upstream_that_talks_nonsense_or_nothing() {
    let provider = Provider::always(Reply::Never).await;
    let options = Options::new().provider_with("openai", &provider.url(), "head_timeout = \"300ms\"");
    let sidekey = Sidekey::start(&options).await;
    let key = sidekey.create_key(&[]).await.key;
    for (reply, status, code) in [
        (Reply::Raw(Bytes::from_static(b"SSH-2.0-OpenSSH_9.2\r\n\r\n")), 502, "upstream_unreachable"),
        (Reply::Raw(Bytes::new()), 502, "upstream_unreachable"),
        (Reply::Never, 504, "upstream_timeout"),
    ] {
        // A key of its own for each: failures close the door for a while.
        let name = format!("k-{}", provider.count());
        sidekey.add_provider_key_as("openai", &format!("{REAL_KEY}-{name}"), &["--name", &name]).await;
        provider.push(reply);
        let answer = sidekey.send(&Request::post(CHAT, BODY).bearer(&key)).await;
        assert_eq!((answer.status, &*answer.code()), (status, code), "{}", answer.text());
        sidekey.ok(&["provider-key", "disable", &name]).await;
    }
    provider.last().wait_for_cancel(Duration::from_secs(5)).await;
}

#[tokio::test]
async fn websockets_pass_and_are_counted() {
    let usage = r#"{"type":"response.done","response":{"usage":{"total_tokens":30,"input_tokens":10,"output_tokens":20,"input_token_details":{"cached_tokens":4}}}}"#;
    let says = vec![r#"{"type":"response.created"}"#.to_owned(), usage.to_owned()];
    let provider = Provider::always(Reply::WebSocket(Socket::Say(says.clone()))).await;
    let sidekey = Sidekey::with("openai", &provider.url()).await;
    let key = sidekey.create_key(&[]).await.key;
    let request = Request::get("/openai/v1/realtime?model=gpt-4o-realtime-preview").bearer(&key);
    let (head, mut socket) = Client::connect(sidekey.proxy).await.unwrap().websocket(request).await.expect("101");
    assert!(head.headers.get("x-sidekey-request-id").is_some());
    socket.send(r#"{"type":"response.create"}"#.into()).await.unwrap();
    for said in &says {
        let message = timeout(client::PATIENCE, socket.next()).await.expect("in time").expect("a message").unwrap();
        assert_eq!(message.into_text().unwrap().as_str(), said);
    }
    drop(socket);
    let seen = provider.last();
    assert_eq!(seen.target, "/v1/realtime?model=gpt-4o-realtime-preview");
    assert_eq!(seen.header("authorization"), Some(&*format!("Bearer {REAL_KEY}")));
    assert!(!seen.contains(&key));
    let entry = sidekey.entry_where("the session", |entry| entry["endpoint"] == "realtime").await;
    let tokens = &entry["tokens"];
    assert_eq!((&tokens["input"], &tokens["output"], &tokens["cached_input"]), (&10.into(), &20.into(), &4.into()));
}

#[tokio::test]
async fn a_browsers_websocket_brings_its_key_in_the_subprotocol() {
    let provider = Provider::always(Reply::WebSocket(Socket::Echo)).await;
    let sidekey = Sidekey::with("openai", &provider.url()).await;
    let key = sidekey.create_key(&[]).await.key;
    let request = Request::get("/openai/v1/realtime?model=gpt-4o-realtime-preview")
        .header("sec-websocket-protocol", format!("realtime, openai-insecure-api-key.{key}, openai-beta.realtime-v1"));
    let (head, mut socket) = Client::connect(sidekey.proxy).await.unwrap().websocket(request).await.expect("101");
    assert_eq!(head.headers.get("sec-websocket-protocol"), Some("realtime"));
    socket.send("echo".into()).await.unwrap();
    let message = timeout(client::PATIENCE, socket.next()).await.expect("in time").expect("a message").unwrap();
    assert_eq!(message.into_text().unwrap().as_str(), "echo");
    let seen = provider.last();
    let want = format!("realtime, openai-insecure-api-key.{REAL_KEY}, openai-beta.realtime-v1");
    assert_eq!(seen.header("sec-websocket-protocol"), Some(&*want));
    assert!(!seen.contains(&key));
    let stranger = Request::get("/openai/v1/realtime?model=gpt-4o-realtime-preview");
    let refused = Client::connect(sidekey.proxy).await.unwrap().websocket(stranger).await.expect_err("a refusal");
    assert_eq!(refused.status, 401);
}
