//! The admin API over TCP: who gets in, what each role may do, and what is turned away at the door.

use std::path::Path;
use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use serde_json::{Value, json};
use tokio::net::TcpStream;

use crate::support::client::{Client, Request};
use crate::support::sidekey::{Options, Sidekey};

/// The answer to a request at the TCP address: its status, and its body as JSON.
async fn ask(sidekey: &Sidekey, request: &Request) -> (u16, Value) {
    let mut client = Client::connect(sidekey.admin).await.expect("it listens");
    let request = request.clone().header("host", sidekey.admin.to_string());
    let answer = client.send(&request).await.expect("it answers");
    (answer.status, serde_json::from_slice(&answer.body).unwrap_or_default())
}

/// Makes a token; the token itself.
async fn token(sidekey: &Sidekey, name: &str, role: &str) -> String {
    let made = sidekey.ok(&["token", "create", "--name", name, "--role", role]).await;
    made.trim().to_owned()
}

fn get(path: &str, token: &str) -> Request {
    Request::get(path).bearer(token)
}

fn post(path: &str, token: &str, body: &Value) -> Request {
    Request::post(path, body.to_string()).bearer(token)
}

#[tokio::test]
async fn tokens_open_the_tcp_address() {
    let sidekey = Sidekey::start(&Options::new()).await;
    assert_eq!(ask(&sidekey, &Request::get("/api/status")).await.0, 401);
    let reader = token(&sidekey, "r", "reader").await;
    let (status, body) = ask(&sidekey, &get("/api/status", &reader)).await;
    assert_eq!((status, &body["listen"]["admin"]), (200, &json!(sidekey.admin)));
    assert_eq!(ask(&sidekey, &post("/api/keys", &reader, &json!({"name": "a"}))).await.0, 403);
    sidekey.ok(&["token", "revoke", "r"]).await;
    assert_eq!(ask(&sidekey, &get("/api/status", &reader)).await.0, 401);
}

#[tokio::test]
async fn a_code_logs_a_browser_in_once() {
    let sidekey = Sidekey::start(&Options::new()).await;
    let url = sidekey.ok(&["ui", "--no-open"]).await;
    let (address, code) = url.trim().split_once("/#code=").expect("a code");
    assert_eq!(address, format!("http://{}", sidekey.admin));
    let login = Request::post("/api/session", json!({"code": code}).to_string()).header("origin", address);
    let (status, made) = ask(&sidekey, &login).await;
    assert_eq!(status, 201, "{made}");
    let session = made["token"].as_str().expect("a token").to_owned();
    assert_eq!(ask(&sidekey, &login).await.0, 401, "a second time");
    let (status, who) = ask(&sidekey, &get("/api/session", &session)).await;
    assert_eq!((status, &who["role"], &who["token_data"]["session"]), (200, &json!("admin"), &json!(true)));
    let end = Request::new("DELETE", "/api/session").bearer(&session);
    assert_eq!(ask(&sidekey, &end).await.0, 204);
    assert_eq!(ask(&sidekey, &get("/api/session", &session)).await.0, 401);
}

#[tokio::test]
async fn the_console_is_served_to_be_kept_and_asked_for_again() {
    let sidekey = Sidekey::start(&Options::new()).await;
    let mut client = Client::connect(sidekey.admin).await.expect("it listens");
    for (path, kind) in [
        ("/", "text/html; charset=utf-8"),
        ("/ui/app.css", "text/css; charset=utf-8"),
        ("/ui/app.js", "text/javascript; charset=utf-8"),
        ("/ui/pages/usage.js", "text/javascript; charset=utf-8"),
        ("/ui/icon.svg", "image/svg+xml"),
    ] {
        let request = Request::get(path).header("host", sidekey.admin.to_string());
        let answer = client.send(&request).await.expect("it answers");
        assert_eq!((answer.status, answer.headers.get("content-type")), (200, Some(kind)), "{path}");
        for (name, want) in [
            ("cache-control", "no-cache"),
            ("x-content-type-options", "nosniff"),
            ("referrer-policy", "no-referrer"),
            ("cross-origin-opener-policy", "same-origin"),
            ("cross-origin-resource-policy", "same-origin"),
        ] {
            assert_eq!(answer.headers.get(name), Some(want), "{path}: {name}");
        }
        let policy = answer.headers.get("content-security-policy").expect("a policy").to_owned();
        assert!(policy.starts_with("default-src 'none'; script-src 'self';"), "{path}: {policy}");
        assert!(policy.ends_with("require-trusted-types-for 'script'; trusted-types 'none'"), "{path}: {policy}");
        let tag = answer.headers.get("etag").expect("a tag").to_owned();
        let again = client.send(&request.clone().header("if-none-match", &tag)).await.expect("it answers");
        assert_eq!((again.status, again.body.len(), again.headers.get("etag")), (304, 0, Some(&*tag)), "{path}");
        assert_eq!(again.headers.get("content-security-policy"), Some(&*policy), "{path}");
        let other = client.send(&request.header("if-none-match", "\"other\"")).await.expect("it answers");
        assert_eq!((other.status, other.body), (200, answer.body), "{path}");
    }
    let none = Request::get("/ui/none.js").header("host", sidekey.admin.to_string());
    assert_eq!(client.send(&none).await.expect("it answers").status, 404);
}

/// What clients show, and whom they trust.
struct Papers {
    roots: rustls::RootCertStore,
    own: Option<(CertificateDer<'static>, KeyPair)>,
}

impl Papers {
    /// One request over TLS, as far as it comes.
    async fn ask(&self, sidekey: &Sidekey, request: &Request) -> std::io::Result<u16> {
        let crypto = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = rustls::ClientConfig::builder_with_provider(crypto)
            .with_safe_default_protocol_versions()
            .expect("the defaults fit the provider")
            .with_root_certificates(self.roots.clone());
        let config = match &self.own {
            None => builder.with_no_client_auth(),
            Some((certificate, key)) => {
                let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
                builder.with_client_auth_cert(vec![certificate.clone()], key).expect("they fit")
            }
        };
        let tcp = TcpStream::connect(sidekey.admin).await?;
        let name = ServerName::try_from("localhost").expect("a name");
        let tls = tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, tcp).await?;
        let request = request.clone().header("host", sidekey.admin.to_string());
        Ok(Client::over(tls).send(&request).await?.status)
    }
}

/// Writes the admin API's files into `folder`, of a certificate that ends in ten days; a client's with a certificate of
/// its CA, one of another CA's, and one with none.
fn papers(folder: &Path) -> [Papers; 3] {
    let issuer = |name: &str| {
        let mut params = CertificateParams::new(Vec::<String>::new()).expect("no names");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        CertifiedIssuer::self_signed(params, KeyPair::generate().expect("a key")).expect("a root")
    };
    let (ca, other) = (issuer("clients"), issuer("others"));
    let client = |ca: &CertifiedIssuer<'_, KeyPair>| {
        let key = KeyPair::generate().expect("a key");
        let params = CertificateParams::new(vec!["client".to_owned()]).expect("a name");
        (params.signed_by(&key, ca).expect("a certificate").der().clone(), key)
    };
    let mut params = CertificateParams::new(vec!["localhost".to_owned()]).expect("a name");
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970");
    params.not_after = rcgen::date_time_ymd(1970, 1, 1) + now + std::time::Duration::from_secs(10 * 86_400);
    let key = KeyPair::generate().expect("a key");
    let server = params.self_signed(&key).expect("a certificate");
    for (file, text) in [("cert.pem", server.pem()), ("key.pem", key.serialize_pem()), ("ca.pem", ca.pem())] {
        std::fs::write(folder.join(file), text).expect("a writable folder");
    }
    let mut roots = rustls::RootCertStore::empty();
    roots.add(server.der().clone()).expect("a root");
    [Some(client(&ca)), Some(client(&other)), None].map(|own| Papers { roots: roots.clone(), own })
}

#[tokio::test]
async fn with_tls_both_sides_show_certificates() {
    let folder = tempfile::tempdir().expect("a folder");
    let [good, other, none] = papers(folder.path());
    let file = |name: &str| folder.path().join(name).display().to_string();
    let tls = format!(
        "[admin.tls]\ncert = {:?}\nkey = {:?}\nclient_ca = {:?}\n",
        file("cert.pem"),
        file("key.pem"),
        file("ca.pem")
    );
    let sidekey = Sidekey::start(&Options::new().config(&tls)).await;
    let admin = token(&sidekey, "a", "admin").await;
    let request = get("/api/status", &admin);
    assert_eq!(good.ask(&sidekey, &request).await.expect("an answer"), 200);
    // A certificate opens the door, and no more.
    assert_eq!(good.ask(&sidekey, &Request::get("/api/status")).await.expect("an answer"), 401);
    assert!(other.ask(&sidekey, &request).await.is_err(), "a certificate of another CA");
    assert!(none.ask(&sidekey, &request).await.is_err(), "no certificate");
    let mut plain = Client::connect(sidekey.admin).await.expect("it listens");
    let plain = plain.send(&request.header("host", sidekey.admin.to_string())).await.expect("an answer");
    assert_eq!((plain.status, &plain.json()["code"]), (400, &json!("tls_needed")));
    let alerts: Value =
        serde_json::from_str(&sidekey.ok(&["alerts", "--kind", "certificate", "-o", "json"]).await).expect("JSON");
    let told = &alerts["alerts"][0];
    assert_eq!(
        (&told["severity"], &told["subject"]),
        (&json!("warning"), &json!(format!("certificate {}", file("cert.pem"))))
    );
}
