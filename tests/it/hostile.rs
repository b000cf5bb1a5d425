//! Requests to the admin API that mean harm: each is turned away, and nothing is changed by any of them.

use serde_json::{Value, json};

use crate::support::client::{Client, Request, raw};
use crate::support::provider::Provider;
use crate::support::script::Message;
use crate::support::sidekey::{Options, REAL_KEY, Sidekey};

/// What stands for what is known later: `ADDR`, tokens, and ids of others.
struct Names(Vec<(&'static str, String)>);

impl Names {
    fn fill(&self, text: &str) -> String {
        self.0.iter().fold(text.to_owned(), |text, (name, value)| text.replace(name, value))
    }
}

const MAKE: &str = r#"{"name":"theirs"}"#;

/// A request's name, its words, and the status it is turned away with. `HOST` is a good host line, and a body is as long as
/// it says.
const CASES: &[(&str, &str, &str, u16)] = &[
    // Pages of other origins.
    ("no token", "POST /api/keys\nHOST\ncontent-type: application/json", MAKE, 401),
    (
        "a form of another page",
        "POST /api/keys\nHOST\nADMIN\norigin: https://evil.example\ncontent-type: application/x-www-form-urlencoded",
        "name=theirs",
        403,
    ),
    (
        "a form without an origin",
        "POST /api/keys\nHOST\nADMIN\ncontent-type: application/x-www-form-urlencoded",
        "name=theirs",
        415,
    ),
    ("text that is JSON", "POST /api/keys\nHOST\nADMIN\ncontent-type: text/plain", MAKE, 415),
    ("a body of no type", "POST /api/keys\nHOST\nADMIN", MAKE, 415),
    (
        "JSON of another origin",
        "POST /api/keys\nHOST\nADMIN\norigin: https://evil.example\ncontent-type: application/json",
        MAKE,
        403,
    ),
    ("the origin null", "POST /api/keys\nHOST\nADMIN\norigin: null\ncontent-type: application/json", MAKE, 403),
    (
        "an origin of another port",
        "POST /api/keys\nHOST\nADMIN\norigin: http://127.0.0.1:1\ncontent-type: application/json",
        MAKE,
        403,
    ),
    (
        "an origin of another scheme",
        "POST /api/keys\nHOST\nADMIN\norigin: https://ADDR\ncontent-type: application/json",
        MAKE,
        403,
    ),
    (
        "an origin that begins like ours",
        "POST /api/keys\nHOST\nADMIN\norigin: http://ADDR.evil.example\ncontent-type: application/json",
        MAKE,
        403,
    ),
    (
        "two origins",
        "POST /api/keys\nHOST\nADMIN\norigin: http://ADDR\norigin: https://evil.example\ncontent-type: application/json",
        MAKE,
        400,
    ),
    ("fetched by another site", "GET /api/keys\nHOST\nADMIN\nsec-fetch-site: cross-site", "", 403),
    ("fetched by a site beside it", "GET /api/keys\nHOST\nADMIN\nsec-fetch-site: same-site", "", 403),
    (
        "a link of another page to the API",
        "GET /api/keys\nHOST\nADMIN\nsec-fetch-site: cross-site\nsec-fetch-mode: navigate\nsec-fetch-dest: document",
        "",
        403,
    ),
    (
        "a frame of another page",
        "GET /\nHOST\nsec-fetch-site: cross-site\nsec-fetch-mode: navigate\nsec-fetch-dest: iframe",
        "",
        403,
    ),
    (
        "asking before",
        "OPTIONS /api/keys\nHOST\norigin: https://evil.example\naccess-control-request-method: POST",
        "",
        403,
    ),
    // Names that were made to lead here.
    ("a rebound name", "GET /api/keys\nhost: evil.example\nADMIN", "", 421),
    ("a rebound name with our port", "GET /api/keys\nhost: localhost.evil.example:4142\nADMIN", "", 421),
    ("a name that begins like ours", "GET /api/keys\nhost: 127.0.0.1.nip.io\nADMIN", "", 421),
    ("any address", "GET /api/keys\nhost: 0.0.0.0\nADMIN", "", 421),
    ("an empty host", "GET /api/keys\nhost:\nADMIN", "", 421),
    ("two hosts", "GET /api/keys\nHOST\nhost: evil.example\nADMIN", "", 400),
    ("a target of another host", "GET http://evil.example/api/keys\nHOST\nADMIN", "", 400),
    (
        "a rebound name that is forwarded",
        "GET /api/keys\nhost: evil.example\nx-forwarded-host: localhost\nADMIN",
        "",
        421,
    ),
    // Tokens.
    ("a made up token", "GET /api/keys\nHOST\nauthorization: Bearer sidekey-admin-0011223344556677-abc", "", 401),
    ("a good token's id with another secret", "GET /api/keys\nHOST\nauthorization: Bearer FORGED", "", 401),
    ("a revoked token", "GET /api/keys\nHOST\nREVOKED", "", 401),
    ("a virtual key", "GET /api/keys\nHOST\nauthorization: Bearer VIRTUAL", "", 401),
    ("a token as a password", "GET /api/keys\nHOST\nauthorization: Basic BARE", "", 401),
    ("a token in the query", "GET /api/keys?token=BARE&access_token=BARE\nHOST", "", 401),
    ("a token as a cookie", "GET /api/keys\nHOST\ncookie: token=BARE", "", 401),
    ("two tokens", "GET /api/keys\nHOST\nADMIN\nREADER", "", 400),
    ("a code twice", "POST /api/session\nHOST\ncontent-type: application/json", r#"{"code":"CODE"}"#, 401),
    // Roles.
    ("a reader makes a key", "POST /api/keys\nHOST\nREADER\ncontent-type: application/json", MAKE, 403),
    (
        "a reader makes a backup",
        "POST /api/backup\nHOST\nREADER\ncontent-type: application/json",
        r#"{"path":"/tmp/x"}"#,
        403,
    ),
    (
        "an operator makes a token",
        "POST /api/tokens\nHOST\nOPERATOR\ncontent-type: application/json",
        r#"{"name":"x","role":"admin"}"#,
        403,
    ),
    ("an operator makes a code", "POST /api/session/code\nHOST\nOPERATOR", "", 403),
    ("an operator changes the CA", "POST /api/ca/rotate\nHOST\nOPERATOR", "", 403),
    ("an operator acts as a user", "GET /api/keys\nHOST\nOPERATOR\nx-user-id: alice", "", 403),
    ("a user acts as another", "GET /api/keys\nHOST\nALICE\nx-user-id: bob", "", 403),
    ("an admin acts as two", "GET /api/keys\nHOST\nADMIN\nx-user-id: alice\nx-user-id: bob", "", 400),
    ("a user reads plans", "GET /api/plans\nHOST\nALICE", "", 403),
    ("a user reads the audit log", "GET /api/audit\nHOST\nALICE", "", 403),
    ("a user reads the settings", "GET /api/config\nHOST\nALICE", "", 403),
    ("a user reads what all do", "GET /api/activity\nHOST\nALICE", "", 403),
    // What belongs to others.
    ("another's key", "GET /api/keys/BOBS\nHOST\nALICE", "", 404),
    (
        "another's key changed",
        "PATCH /api/keys/BOBS\nHOST\nALICE\ncontent-type: application/json",
        r#"{"name":"mine"}"#,
        404,
    ),
    ("another's key revoked", "POST /api/keys/BOBS/revoke\nHOST\nALICE", "", 404),
    ("another's usage", "GET /api/keys/BOBS/usage\nHOST\nALICE", "", 404),
    ("another's provider key", "GET /api/provider-keys/PAID\nHOST\nALICE", "", 404),
    ("another's provider key tested", "POST /api/provider-keys/PAID/test\nHOST\nALICE", "", 404),
    ("another's provider key deleted", "DELETE /api/provider-keys/PAID\nHOST\nALICE", "", 404),
    ("another's policy", "GET /api/users/bob\nHOST\nALICE", "", 404),
    (
        "a key for another",
        "POST /api/keys\nHOST\nALICE\ncontent-type: application/json",
        r#"{"name":"x","user":"bob"}"#,
        403,
    ),
    (
        "a limit raised",
        "PATCH /api/keys/HERS\nHOST\nALICE\ncontent-type: application/json",
        r#"{"limits":{"rpm":1000000}}"#,
        403,
    ),
    // Paths and framing that two readers take differently.
    ("a doubled slash", "GET //api/keys\nHOST\nADMIN", "", 400),
    ("dots", "GET /ui/../api/keys\nHOST\nADMIN", "", 400),
    ("encoded dots", "GET /ui/%2e%2e/api/keys\nHOST\nADMIN", "", 400),
    ("a backslash", "GET /ui/%5c..%5capi/keys\nHOST\nADMIN", "", 400),
    ("a method in a header", "POST /api/keys/BOBS\nHOST\nREADER\nx-http-method-override: DELETE", "", 400),
    ("a path in a header", "GET /\nHOST\nx-original-url: /api/keys", "", 400),
    ("a method that is none", "TRACE /api/keys\nHOST\nADMIN", "", 405),
    (
        "a body beyond all bounds",
        "POST /api/keys\nHOST\nADMIN\ncontent-type: application/json\ncontent-length: 99999999999",
        "",
        413,
    ),
    (
        "a stranger's long body",
        "POST /api/session\nHOST\ncontent-type: application/json\ncontent-length: 20000",
        "",
        413,
    ),
];

/// The whole request. A line of `TOKEN` alone is that token's header.
fn written(names: &Names, words: &str, body: &str) -> String {
    let (line, headers) = words.split_once('\n').expect("headers");
    let headers = headers.split('\n').map(|header| match header {
        "HOST" => names.fill("host: ADDR"),
        token if token.bytes().all(|c| c.is_ascii_uppercase()) => names.fill(&format!("authorization: Bearer {token}")),
        other => names.fill(other),
    });
    let body = names.fill(body);
    let length = if body.is_empty() { String::new() } else { format!("content-length: {}\r\n", body.len()) };
    let headers: String = headers.map(|header| format!("{header}\r\n")).collect();
    format!("{} HTTP/1.1\r\n{headers}{length}connection: close\r\n\r\n{body}", names.fill(line))
}

async fn made(sidekey: &Sidekey, path: &str, body: &Value) -> Value {
    sidekey.admin("POST", path, body).await
}

async fn token(sidekey: &Sidekey, name: &str, role: &str) -> String {
    sidekey.ok(&["token", "create", "--name", name, "--role", role]).await.trim().to_owned()
}

/// All that could have been changed.
async fn state(sidekey: &Sidekey) -> Vec<Value> {
    let mut all = Vec::new();
    for path in ["/api/keys", "/api/provider-keys", "/api/plans", "/api/users", "/api/ca"] {
        all.push(sidekey.admin("GET", path, &Value::Null).await);
    }
    let tokens = sidekey.admin("GET", "/api/tokens", &Value::Null).await;
    all.push(json!(
        tokens["tokens"].as_array().expect("tokens").iter().map(|token| &token["name"]).collect::<Vec<_>>()
    ));
    all
}

#[tokio::test]
async fn what_means_harm_is_turned_away() {
    let provider = Provider::always(Message::json(200, "{}")).await;
    let sidekey = Sidekey::start(&Options::new().provider("openai", &provider.url())).await;
    sidekey.add_provider_key_as("openai", REAL_KEY, &["--name", "bobs", "--owner", "user:bob"]).await;
    sidekey.ok(&["user", "set", "alice", "--budget", "5/day"]).await;
    let bobs = sidekey.create_key(&["--name", "bobs", "--user", "bob"]).await;
    let hers = sidekey.create_key(&["--name", "hers", "--user", "alice", "--rpm", "5"]).await;
    let [admin, reader, operator, alice, revoked] = [
        token(&sidekey, "a", "admin").await,
        token(&sidekey, "r", "reader").await,
        token(&sidekey, "o", "operator").await,
        token(&sidekey, "alice", "user:alice").await,
        token(&sidekey, "gone", "admin").await,
    ];
    sidekey.ok(&["token", "revoke", "gone"]).await;
    let code = made(&sidekey, "/api/session/code", &Value::Null).await["code"].as_str().expect("a code").to_owned();
    let login = Request::post("/api/session", json!({"code": code}).to_string());
    let login = login.header("host", sidekey.admin.to_string());
    let mut client = Client::connect(sidekey.admin).await.expect("it listens");
    assert_eq!(client.send(&login).await.expect("an answer").status, 201);
    let forged =
        admin.rsplit_once('-').map(|(id, secret)| format!("{id}-{}", secret.chars().rev().collect::<String>()));
    let names = Names(vec![
        ("ADDR", sidekey.admin.to_string()),
        ("FORGED", forged.expect("a secret")),
        ("REVOKED", revoked),
        ("VIRTUAL", bobs.key.clone()),
        ("ADMIN", admin.clone()),
        ("BARE", admin),
        ("READER", reader),
        ("OPERATOR", operator),
        ("ALICE", alice),
        ("CODE", code),
        ("BOBS", bobs.id.clone()),
        ("HERS", hers.id.clone()),
        ("PAID", sidekey.provider_key("bobs").await["id"].as_str().expect("an id").to_owned()),
    ]);
    let before = state(&sidekey).await;
    let mut wrong = Vec::new();
    for (name, words, body, want) in CASES {
        let answer = raw(sidekey.admin, written(&names, words, body).as_bytes()).await;
        let answer = String::from_utf8_lossy(&answer);
        let status = answer.split(' ').nth(1).unwrap_or("none");
        let quiet = !answer.contains(REAL_KEY) && !answer.to_ascii_lowercase().contains("access-control-");
        if status != want.to_string() || !quiet {
            wrong.push(format!("{name}: {status}, not {want}: {answer}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_eq!(state(&sidekey).await, before, "something was changed");
    assert!(provider.seen().is_empty(), "a provider was asked");
}

#[tokio::test]
async fn guessing_is_slowed_and_locks_nobody_out() {
    let sidekey = Sidekey::start(&Options::new()).await;
    let good = token(&sidekey, "a", "admin").await;
    let guess = |n: usize| {
        format!(
            "GET /api/keys HTTP/1.1\r\nhost: {}\r\nauthorization: Bearer sidekey-admin-{n:016x}-x\r\nconnection: close\r\n\r\n",
            sidekey.admin
        )
    };
    let mut statuses = Vec::new();
    for n in 0..30 {
        let answer = raw(sidekey.admin, guess(n).as_bytes()).await;
        statuses.push(String::from_utf8_lossy(&answer).split(' ').nth(1).unwrap_or("none").to_owned());
    }
    assert_eq!((&*statuses[0], &*statuses[29]), ("401", "429"), "{statuses:?}");
    let mut client = Client::connect(sidekey.admin).await.expect("it listens");
    let request = Request::get("/api/keys").bearer(&good).header("host", sidekey.admin.to_string());
    assert_eq!(client.send(&request).await.expect("an answer").status, 200);
}
