//! Real keys never show: not to clients, not in logs, metrics or the ledger, not in the store's files.

use std::path::Path;

use crate::support::client::{Answer, Request};
use crate::support::provider::Provider;
use crate::support::script::{End, Message, Reply};
use crate::support::sidekey::{Options, Sidekey};

const CHAT: &str = "/openai/v1/chat/completions";
const BODY: &str = r#"{"model":"gpt-4o-mini","messages":[]}"#;

/// Keys made up for this test, with a middle that nothing else contains.
const CANARIES: [(&str, &str); 4] = [
    ("openai", "sk-proj-CANARYopenaiQ7x2mZ9cV4bN8sK1pL6wR3tY5uJ0"),
    ("anthropic", "sk-ant-api03-CANARYanthropicH5gD2kS9fA7jL4qW1eR8tZ"),
    ("gemini", "AIzaSyCANARYgeminiM3nB6vC9xZ2aS5dF8gH1jK4l"),
    ("azure-openai", "CANARYazure0123456789abcdef0123456789abcdef"),
];

fn middle(secret: &str) -> &str {
    // A masked form shows the first and last few characters: the middle may be nowhere.
    &secret[secret.len() / 2 - 8..secret.len() / 2 + 8]
}

fn spellings(secret: &str) -> Vec<Vec<u8>> {
    use base64::Engine as _;
    let middle = middle(secret);
    let hex = middle.bytes().map(|byte| format!("{byte:02x}")).collect::<String>();
    let utf16 = middle.encode_utf16().flat_map(u16::to_le_bytes).collect();
    // Base64 of the middle at each of its three phases, without the ends that depend on neighbours.
    let base64 = (0..3).map(|phase| {
        let start = secret.len() / 2 - 8 + phase;
        base64::engine::general_purpose::STANDARD_NO_PAD.encode(&secret.as_bytes()[start..start + 12]).into_bytes()
    });
    [middle.as_bytes().to_vec(), hex.into_bytes(), utf16].into_iter().chain(base64).collect()
}

fn assert_absent(what: &str, bytes: &[u8]) {
    for (provider, secret) in CANARIES {
        for spelling in spellings(secret) {
            let found = memchr::memmem::find(bytes, &spelling);
            assert!(found.is_none(), "{what} contains the {provider} key ({} bytes in)", found.unwrap_or(0));
        }
    }
}

fn assert_answer_clean(what: &str, answer: &Answer) {
    let mut bytes = answer.body.clone();
    answer.headers.write(&mut bytes);
    assert_absent(what, &bytes);
}

fn files(folder: &Path, found: &mut Vec<std::path::PathBuf>) {
    for entry in std::fs::read_dir(folder).expect("a readable folder").flatten() {
        let path = entry.path();
        if path.is_dir() {
            files(&path, found);
        } else if path.is_file() {
            found.push(path);
        }
    }
}

/// A provider that echoes the credential it was given, as real ones do in their refusals.
fn tattler(status: u16) -> impl Fn(&crate::support::provider::Seen) -> Reply + Send + Sync {
    move |seen| {
        let told: Vec<_> = ["authorization", "x-api-key", "x-goog-api-key", "api-key"]
            .iter()
            .filter_map(|name| seen.header(name))
            .collect();
        let message = format!("Incorrect API key provided: {}", told.join(" "));
        Message::json(status, format!(r#"{{"error":{{"message":"{message}","code":"invalid_api_key"}}}}"#)).into()
    }
}

#[tokio::test]
async fn a_providers_refusal_does_not_carry_the_key_to_the_client() {
    for status in [401, 403] {
        let provider = Provider::start(tattler(status)).await;
        let names = CANARIES.map(|(name, _)| name);
        let options = names.iter().fold(Options::new(), |options, name| options.provider(name, &provider.url()));
        let sidekey = Sidekey::start(&options).await;
        for (name, secret) in CANARIES {
            sidekey.add_provider_key(name, secret).await;
        }
        let key = sidekey.create_key(&[]).await.key;
        for (name, _) in CANARIES {
            let path = match name {
                "anthropic" => "/anthropic/v1/messages".to_owned(),
                "gemini" => "/gemini/v1beta/models/gemini-2.0-flash:generateContent".to_owned(),
                "azure-openai" => "/azure-openai/openai/deployments/d/chat/completions".to_owned(),
                other => format!("/{other}/v1/chat/completions"),
            };
            let answer = sidekey.send(&Request::post(&path, BODY).bearer(&key)).await;
            assert_eq!(answer.status, 502, "{name} {status}: {}", answer.text());
            assert_answer_clean(&format!("the answer of {name} to {status}"), &answer);
        }
        assert_absent("stderr", sidekey.stderr().as_bytes());
    }
}

#[tokio::test]
async fn keys_are_in_no_output_and_no_file() {
    let usage = r#"{"model":"m","usage":{"prompt_tokens":1,"completion_tokens":2,"total_tokens":3}}"#;
    let provider = Provider::always(Message::json(200, usage)).await;
    let options = CANARIES.iter().fold(Options::new(), |options, (name, _)| options.provider(name, &provider.url()));
    let options = options.config("[log]\nlevel = \"trace\"\naccess = true").env("RUST_LOG", "trace");
    let mut sidekey = Sidekey::start(&options).await;
    for (name, secret) in CANARIES {
        sidekey.add_provider_key(name, secret).await;
    }
    let key = sidekey.create_key(&[]).await.key;

    // Good, bad and broken requests, so that every kind of line is logged.
    provider.push(Message::json(200, usage));
    provider.push(Message::sse(["data: 1\n\n"]).ending(End::Truncate));
    provider.push(Message::json(500, r#"{"error":{"message":"down"}}"#));
    provider.push(Message::json(429, r#"{"error":{"message":"slow"}}"#));
    provider.push(Reply::Raw("nonsense\r\n\r\n".into()));
    let mut answers = vec![];
    for _ in 0..6 {
        let mut client = crate::support::client::Client::connect(sidekey.proxy).await.unwrap();
        if let Ok(answer) = client.send(&Request::post(CHAT, BODY).bearer(&key)).await {
            answers.push(answer);
        }
    }
    for path in ["/anthropic/v1/messages", "/gemini/v1beta/models/g:generateContent", "/azure-openai/openai/x"] {
        answers.push(sidekey.send(&Request::post(path, BODY).bearer(&key)).await);
    }
    // A client that sends the real key itself is refused without an echo.
    answers.push(sidekey.send(&Request::post(CHAT, BODY).bearer(CANARIES[0].1)).await);
    for answer in &answers {
        assert_answer_clean("an answer", answer);
    }

    for args in [
        &["provider-key", "list"][..],
        &["provider-key", "list", "-o", "json"],
        &["provider-key", "show", "main", "-o", "json"],
        &["provider", "list", "-o", "json"],
        &["key", "list", "-o", "json"],
        &["ledger", "--limit", "1000", "-o", "jsonl"],
        &["usage", "--days", "1", "-o", "json"],
        &["status", "-o", "json"],
        &["doctor", "-o", "json"],
        &["config", "show"],
        &["audit", "-o", "json"],
    ] {
        // Whether a command exists is another test's question; what it prints is this one's.
        let output = sidekey.cli(args).await;
        assert_absent(&args.join(" "), &[output.stdout, output.stderr].concat());
    }
    let metrics = sidekey.metrics().await;
    assert!(metrics.contains("sidekey"), "no metrics: {metrics}");
    assert_absent("/metrics", metrics.as_bytes());
    assert!(!metrics.contains(&key), "/metrics contains a virtual key");

    sidekey.stop().await;
    let secret_part = key.rsplit('-').next().expect("a key has parts");
    let mut found = vec![];
    files(sidekey.folder(), &mut found);
    assert!(found.len() > 2, "no files in {}", sidekey.folder().display());
    for file in found {
        let bytes = std::fs::read(&file).expect("a readable file");
        assert_absent(&file.display().to_string(), &bytes);
        assert!(memchr::memmem::find(&bytes, secret_part.as_bytes()).is_none(), "a virtual key in {}", file.display());
    }
}

#[tokio::test]
async fn a_crash_leaves_no_key_in_the_store() {
    let provider = Provider::always(Message::json(200, "{}")).await;
    let mut sidekey = Sidekey::start(&Options::new().provider("openai", &provider.url())).await;
    sidekey.add_provider_key("openai", CANARIES[0].1).await;
    let key = sidekey.create_key(&[]).await.key;
    sidekey.send(&Request::post(CHAT, BODY).bearer(&key)).await;
    sidekey.kill().await;
    let mut found = vec![];
    files(&sidekey.data_dir(), &mut found);
    for file in found {
        assert_absent(&file.display().to_string(), &std::fs::read(&file).expect("a readable file"));
    }
}

#[tokio::test]
async fn keys_of_the_environment_are_as_quiet() {
    let provider = Provider::start(tattler(401)).await;
    let options = Options::new().provider("openai", &provider.url()).env("OPENAI_API_KEY", CANARIES[0].1);
    let sidekey = Sidekey::start(&options).await;
    let key = sidekey.create_key(&[]).await.key;
    let answer = sidekey.send(&Request::post(CHAT, BODY).bearer(&key)).await;
    assert_eq!(provider.last().header("authorization"), Some(&*format!("Bearer {}", CANARIES[0].1)));
    assert_answer_clean("the answer", &answer);
    for args in [&["provider-key", "list", "-o", "json"][..], &["doctor", "-o", "json"], &["config", "show"]] {
        let output = sidekey.cli(args).await;
        assert_absent(&args.join(" "), &[output.stdout, output.stderr].concat());
    }
    assert_absent("stderr", sidekey.stderr().as_bytes());
}

#[tokio::test]
#[cfg(unix)]
async fn the_store_is_closed_to_others() {
    use std::os::unix::fs::PermissionsExt as _;
    let provider = Provider::always(Message::json(200, "{}")).await;
    let sidekey = Sidekey::with("openai", &provider.url()).await;
    let mode = |path: &Path| std::fs::metadata(path).expect("it exists").permissions().mode() & 0o777;
    assert_eq!(mode(&sidekey.data_dir()) & 0o077, 0, "the data directory is open to others");
    let mut found = vec![];
    files(&sidekey.data_dir(), &mut found);
    for file in found.iter().filter(|file| file.file_name().is_some_and(|name| name == "master.key")) {
        assert_eq!(mode(file), 0o600, "{}", file.display());
    }
}
