//! The admin API over TCP: who gets in, what each role may do, and what is turned away at the door.

use serde_json::{Value, json};

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
        assert!(policy.ends_with("require-trusted-types-for 'script'"), "{path}: {policy}");
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
