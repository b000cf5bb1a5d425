//! `sidekey doctor` on programs: whether they come by the proxy, go past it, or refuse the certificate.

use serde_json::Value;

use crate::support::netns::is_there;
use crate::support::provider::Provider;
use crate::support::script::Message;
use crate::support::sidekey::{Options, REAL_KEY, Sidekey};

/// What it says of a command.
async fn of_command(sidekey: &Sidekey, script: &str) -> (Option<i32>, Value) {
    let output = sidekey.cli(&["doctor", "-o", "json", "--", "sh", "-c", script]).await;
    let said = String::from_utf8_lossy(&output.stderr);
    let told = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{script}: {error}: {said}"));
    (output.status.code(), told)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_is_told_how_it_comes() {
    if !crate::sdk::present("curl").await {
        return;
    }
    let provider = Provider::always(Message::json(200, "{}")).await;
    let other = Provider::always(Message::json(200, "\"other\"")).await;
    let options = Options::new().provider("openai", &provider.url()).env("OPENAI_API_KEY", REAL_KEY);
    let sidekey = Sidekey::start(&options).await;
    let port = other.addr.port();
    let url = "https://api.openai.com/v1/models";
    let system = "CURL_CA_BUNDLE=$NODE_EXTRA_CA_CERTS; unset CURL_CA_BUNDLE SSL_CERT_FILE";
    for (name, script, code, finding, status, seen) in [
        (
            "with the key of its environment",
            format!("curl -sS {url} -H \"authorization: Bearer $OPENAI_API_KEY\""),
            0,
            "proxied",
            "ok",
            "intercepted, with the virtual key",
        ),
        (
            "with a key of its own",
            format!("curl -sS {url} -H 'x-api-key: mine'"),
            0,
            "proxied",
            "warn",
            "intercepted, without the virtual key",
        ),
        ("without the root", format!("{system}; curl -sS {url}"), 1, "untrusted", "fail", "UnknownCA"),
        ("without the proxy", format!("curl -sS -m 2 --noproxy '*' {url}"), 1, "direct", "fail", ""),
        ("without a word", "true".to_owned(), 1, "direct", "fail", ""),
        ("another host", format!("curl -sS -g http://[::ffff:127.0.0.1]:{port}/"), 0, "unclear", "warn", "tunnelled"),
        ("a tunnel", format!("curl -sS -g -p http://[::ffff:127.0.0.1]:{port}/"), 0, "unclear", "warn", "tunnelled"),
        (
            "nobody",
            "curl -sS https://nobody.invalid/".to_owned(),
            0,
            "unclear",
            "warn",
            "cannot resolve nobody.invalid",
        ),
        ("no such program", "nonesuch-of-ours".to_owned(), 1, "unclear", "fail", ""),
    ] {
        let (got, told) = of_command(&sidekey, &script).await;
        let line = &told["checks"][0];
        assert_eq!(
            (line["finding"].as_str(), line["status"].as_str()),
            (Some(finding), Some(status)),
            "{name}: {told}"
        );
        assert_eq!((got, told["healthy"].as_bool()), (Some(code), Some(code == 0)), "{name}: {told}");
        assert_eq!(line["fix"].is_null(), status == "ok", "{name}: {told}");
        assert!(told["checks"].to_string().contains(seen), "{name}: {told}");
    }
    assert_eq!((provider.count(), other.count()), (0, 2), "no provider is asked, others are reached");
    // The real key is nobody's business, and the command's own code is told.
    let (_, told) = of_command(&sidekey, &format!("test \"$OPENAI_API_KEY\" = {REAL_KEY} || exit 9")).await;
    assert_eq!(told["exit_code"], 9, "{told}");
    let table = sidekey.cli(&["doctor", "--", "sh", "-c", &format!("curl -sS {url}")]).await;
    let (table, code) = (String::from_utf8_lossy(&table.stdout).into_owned(), table.status.code());
    assert!(code == Some(0) && table.contains("sh") && table.contains("api.openai.com:443"), "{table}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn runtimes_are_told_how_they_come() {
    let provider = Provider::always(Message::json(200, "{}")).await;
    let sidekey = Sidekey::start(&Options::new().provider("openai", &provider.url())).await;
    let output = sidekey.cli(&["doctor", "-o", "json"]).await;
    let told: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(output.status.code(), Some(0), "what concerns programs alone is no fault: {told}");
    let lines = told["checks"].as_array().expect("a list");
    // Node goes by its version.
    for (name, program, want) in [
        ("curl", "curl", "proxied"),
        ("wget", "wget", "untrusted"),
        ("git", "git", "proxied"),
        ("python", "python3", "proxied"),
        ("ruby", "ruby", "proxied"),
        ("java", "java", "proxied"),
        ("go", "go", "proxied"),
    ] {
        let line = lines.iter().find(|line| line["check"] == format!("client {name}"));
        assert_eq!(line.is_some(), is_there(program), "{name}: {told}");
        let finding = line.map(|line| line["finding"].as_str().unwrap_or_default());
        assert!(finding.is_none_or(|finding| finding == want), "{name}: {line:?}");
    }
    assert!(!is_there("node") || lines.iter().any(|line| line["check"] == "client node"), "{told}");
    assert_eq!(provider.count(), 0);
}
