//! The official SDKs, pinned, through sidekey: they work, and a refusal raises their own exception.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::process::Command;
use tokio::time::timeout;

use crate::support::provider::{Provider, Seen};
use crate::support::script::{Message, Reply};
use crate::support::sidekey::{Options, REAL_KEY, Sidekey};

pub(crate) const HELLO: &str = "Hello from the provider";

fn source(language: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/sdk").join(language)
}

/// A folder below `target`, kept between runs.
fn cache(name: &str) -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join("sdk").join(name)
}

/// True when `program` runs. When it does not, says so loudly; on a build server that is a failure.
pub(crate) async fn present(program: &str) -> bool {
    let version = if program == "go" { "version" } else { "--version" };
    let ran = Command::new(program).arg(version).stdout(Stdio::null()).stderr(Stdio::null()).status().await;
    if ran.is_ok_and(|status| status.success()) {
        return true;
    }
    let ci = std::env::var_os("CI").is_some_and(|value| value == "true");
    assert!(!ci, "{program} is missing");
    eprintln!("SKIPPED: {program} is missing; the SDKs that need it were not tried");
    false
}

async fn run(what: &str, command: &mut Command) -> String {
    let output = timeout(Duration::from_secs(900), command.kill_on_drop(true).stdin(Stdio::null()).output()).await;
    let output = output.unwrap_or_else(|_| panic!("{what} does not end")).unwrap_or_else(|e| panic!("{what}: {e}"));
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text).into_owned();
    assert!(output.status.success(), "{what}: {}\n{text}", output.status);
    text
}

/// Prepares a folder once for each state of `pins`: the mark is written last.
async fn prepare<F: Future<Output = ()>>(folder: &Path, pins: &Path, install: impl FnOnce() -> F) {
    let wanted = std::fs::read(pins).expect("the pinned versions");
    let mark = folder.join(".installed");
    if std::fs::read(&mark).is_ok_and(|installed| installed == wanted) {
        return;
    }
    if folder.exists() {
        std::fs::remove_dir_all(folder).expect("a folder of ours");
    }
    std::fs::create_dir_all(folder).expect("a writable target");
    install().await;
    std::fs::write(&mark, wanted).expect("a writable target");
}

/// The folder of runtimes that come from npm's registry; `None`, said loudly, where it has none for this machine.
pub(crate) async fn runtimes() -> Option<PathBuf> {
    if !cfg!(all(target_os = "linux", target_arch = "x86_64", target_env = "gnu")) {
        eprintln!("SKIPPED: Node 24, Deno and Bun are pinned for x86-64 Linux alone; their clients were not tried");
        return None;
    }
    let folder = modules("runtimes", &source("runtimes")).await?;
    Some(folder.join("node_modules"))
}

/// The folder of the client in Go; `None`, said loudly, when there is no Go.
pub(crate) async fn go() -> Option<PathBuf> {
    static PREPARING: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());
    if !present("go").await {
        return None;
    }
    let (folder, program) = (cache("go"), source("go").join("get.go"));
    let _one = PREPARING.lock().await;
    prepare(&folder, &program, || async {
        let mut build = Command::new("go");
        build.args(["build", "-o", "get"]).arg(&program).current_dir(&folder);
        run("go build", build.env("GOCACHE", folder.join("cache")).env("CGO_ENABLED", "0").env("GOFLAGS", "")).await;
    })
    .await;
    Some(folder)
}

/// The folder of what the lock in `pinned` pins; `None`, said loudly, when there is no npm.
pub(crate) async fn modules(name: &str, pinned: &Path) -> Option<PathBuf> {
    static PREPARING: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());
    if !present("npm").await {
        return None;
    }
    let folder = cache(name);
    let _one = PREPARING.lock().await;
    prepare(&folder, &pinned.join("package-lock.json"), || npm_ci(pinned, &folder)).await;
    Some(folder)
}

/// Installs what the lock in `pinned` pins; nothing of it runs.
async fn npm_ci(pinned: &Path, folder: &Path) {
    for file in ["package.json", "package-lock.json"] {
        std::fs::copy(pinned.join(file), folder.join(file)).expect("a writable target");
    }
    let install = ["ci", "--ignore-scripts", "--no-audit", "--no-fund"];
    run("npm ci", Command::new("npm").args(install).current_dir(folder)).await;
}

/// A Python that has the SDKs; `None`, said loudly, when there is none.
pub(crate) async fn python() -> Option<PathBuf> {
    venv("python", &source("python").join("requirements.txt")).await
}

/// A Python of its own, kept below `target`, that has what `pins` name; `None`, said loudly, when there is none.
pub(crate) async fn venv(name: &str, pins: &Path) -> Option<PathBuf> {
    static PREPARING: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());
    if !present("python3").await {
        return None;
    }
    let folder = cache(name);
    let python = folder.join("bin/python");
    let _one = PREPARING.lock().await;
    prepare(&folder, pins, || async {
        run("python3 -m venv", Command::new("python3").args(["-m", "venv"]).arg(&folder)).await;
        let install = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r"];
        run("pip install", Command::new(&python).args(install).arg(pins)).await;
    })
    .await;
    Some(python)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn python_sdks() {
    let Some(python) = python().await else { return };
    let mut command = Command::new(&python);
    command.arg("run.py").current_dir(source("python")).env("PYTHONDONTWRITEBYTECODE", "1");
    check("python", &["py-openai", "py-groq", "py-anthropic"], command).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn node_sdks() {
    if !present("node").await {
        return;
    }
    let Some(folder) = modules("node", &source("node")).await else { return };
    // Modules are found from where the script stands.
    std::fs::copy(source("node").join("run.js"), folder.join("run.js")).expect("a writable target");
    let mut command = Command::new("node");
    command.arg("run.js").current_dir(&folder);
    check("node", &["node-openai", "node-anthropic"], command).await;
}

/// Runs the script against a sidekey of its own; every line must be an "ok".
async fn check(language: &str, refusing: &[&str], mut command: Command) {
    let provider = Provider::start(answer).await;
    let refuser = Provider::always(Message::json(401, r#"{"error":{"message":"no such key"}}"#)).await;
    let names = ["openai", "azure-openai", "anthropic", "gemini", "mistral", "cohere", "groq"];
    let mut options = names.iter().fold(Options::new(), |options, name| options.provider(name, &provider.url()));
    for name in refusing {
        let dialect = if name.ends_with("anthropic") { "anthropic" } else { "openai" };
        options = options.own_provider(&format!("refusing-{name}"), dialect, &refuser.url());
    }
    let sidekey = Sidekey::start(&options).await;
    for name in names {
        sidekey.add_provider_key(name, REAL_KEY).await;
    }
    for name in refusing {
        sidekey.add_provider_key(&format!("refusing-{name}"), REAL_KEY).await;
    }
    let good = sidekey.create_key(&["--name", "good"]).await;
    let disabled = sidekey.create_key(&["--name", "disabled"]).await;
    sidekey.ok(&["key", "disable", &disabled.id]).await;
    let other_models = sidekey.create_key(&["--name", "models", "--models", "nothing-like-it"]).await;
    let limited = sidekey.create_key(&["--name", "limited", "--rpm", "60"]).await;
    let last = if good.key.ends_with('x') { 'y' } else { 'x' };
    let wrong = format!("{}{last}", &good.key[..good.key.len() - 1]);
    command
        .env("SIDEKEY_URL", format!("http://{}", sidekey.proxy))
        .env("SIDEKEY_KEY", &good.key)
        .env("SIDEKEY_KEY_WRONG", wrong)
        .env("SIDEKEY_KEY_DISABLED", &disabled.key)
        .env("SIDEKEY_KEY_OTHER_MODELS", &other_models.key)
        .env("SIDEKEY_KEY_LIMITED", &limited.key);
    for name in ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"] {
        command.env_remove(name);
    }
    let report = run(language, &mut command).await;
    eprint!("{report}");
    assert!(report.lines().any(|line| line.starts_with("ok ")), "no check ran: {report}");
    assert!(!report.lines().any(|line| line.starts_with("FAIL ")), "{report}");
}

/// What each provider's API would answer.
pub(crate) fn answer(seen: &Seen) -> Reply {
    let target = seen.target.clone();
    Reply::FromBody(std::sync::Arc::new(move |body| {
        let body: Value = serde_json::from_slice(body).unwrap_or_default();
        let path = target.split('?').next().unwrap_or_default();
        let (stream, tools) = (body["stream"] == true, body["tools"].is_array());
        match path.rsplit('/').next().unwrap_or_default() {
            "completions" => openai(stream, tools),
            "responses" => responses(stream),
            "embeddings" => embeddings(),
            "messages" => anthropic(stream, tools),
            "chat" => cohere(stream),
            "embed" => json_reply(&json!({"id": "e", "texts": ["x"], "embeddings": {"float": [[0.5, -0.25]]}})),
            method if method.contains(':') => gemini(method, tools),
            _ => Message::json(404, r#"{"error":{"message":"no such path"}}"#),
        }
    }))
}

fn json_reply(value: &Value) -> Message {
    Message::json(200, value.to_string())
}

/// Events with an optional name.
fn events(list: &[Value], named: bool, done: bool) -> Message {
    let text = |event: &Value| {
        let name = event["type"].as_str().filter(|_| named).map(|name| format!("event: {name}\n")).unwrap_or_default();
        format!("{name}data: {event}\n\n")
    };
    let texts: Vec<_> = list.iter().map(text).chain(done.then(|| "data: [DONE]\n\n".to_owned())).collect();
    Message::sse(texts.iter().map(String::as_str))
}

fn openai(stream: bool, tools: bool) -> Message {
    let usage = json!({"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12});
    let head = |object: &str| json!({"id": "c", "object": object, "created": 1, "model": "m"});
    if stream {
        let chunk = |delta: Value, finish: Value| {
            let mut chunk = head("chat.completion.chunk");
            chunk["choices"] = json!([{"index": 0, "delta": delta, "finish_reason": finish}]);
            chunk
        };
        let words = ["Hello ", "from ", "the ", "provider"].map(|word| chunk(json!({"content": word}), Value::Null));
        let mut list = words.to_vec();
        list.push(chunk(json!({}), json!("stop")));
        return events(&list, false, true);
    }
    let call = json!({"id": "t", "type": "function", "function": {"name": "get_weather", "arguments": "{}"}});
    let message = match tools {
        true => json!({"role": "assistant", "content": "", "tool_calls": [call]}),
        false => json!({"role": "assistant", "content": HELLO}),
    };
    let mut answer = head("chat.completion");
    answer["choices"] = json!([{"index": 0, "message": message, "finish_reason": "stop"}]);
    answer["usage"] = usage;
    json_reply(&answer)
}

fn responses(stream: bool) -> Message {
    let content = json!([{"type": "output_text", "text": HELLO, "annotations": []}]);
    let response = json!({
        "id": "r", "object": "response", "created_at": 1, "status": "completed", "model": "m",
        "output": [{"type": "message", "id": "m", "role": "assistant", "status": "completed", "content": content}],
        "parallel_tool_calls": true, "tool_choice": "auto", "tools": [],
        "usage": {"input_tokens": 7, "output_tokens": 5, "total_tokens": 12,
            "input_tokens_details": {"cached_tokens": 0}, "output_tokens_details": {"reasoning_tokens": 0}},
    });
    if stream {
        return events(
            &[json!({"type": "response.completed", "sequence_number": 0, "response": response})],
            true,
            false,
        );
    }
    json_reply(&response)
}

fn embeddings() -> Message {
    json_reply(&json!({
        "id": "e", "object": "list", "model": "m", "data": [{"object": "embedding", "index": 0, "embedding": [0.5, -0.25]}],
        "usage": {"prompt_tokens": 1, "completion_tokens": 0, "total_tokens": 1},
    }))
}

fn anthropic(stream: bool, tools: bool) -> Message {
    let content = match tools {
        true => json!([{"type": "tool_use", "id": "t", "name": "get_weather", "input": {}}]),
        false => json!([{"type": "text", "text": HELLO}]),
    };
    let message = |content: Value, output: u64| {
        json!({
            "id": "m", "type": "message", "role": "assistant", "model": "m", "content": content,
            "stop_reason": null, "stop_sequence": null, "usage": {"input_tokens": 7, "output_tokens": output},
        })
    };
    if !stream {
        return json_reply(&message(content, 5));
    }
    let list = [
        json!({"type": "message_start", "message": message(json!([]), 1)}),
        json!({"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}),
        json!({"type": "ping"}),
        json!({"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "Hello from "}}),
        json!({"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "the provider"}}),
        json!({"type": "content_block_stop", "index": 0}),
        json!({"type": "message_delta", "delta": {"stop_reason": "end_turn", "stop_sequence": null},
            "usage": {"output_tokens": 5}}),
        json!({"type": "message_stop"}),
    ];
    events(&list, true, false)
}

fn cohere(stream: bool) -> Message {
    let usage = json!({"billed_units": {"input_tokens": 7, "output_tokens": 5}, "tokens": {"input_tokens": 7, "output_tokens": 5}});
    if !stream {
        let message = json!({"role": "assistant", "content": [{"type": "text", "text": HELLO}]});
        return json_reply(&json!({"id": "c", "finish_reason": "COMPLETE", "message": message, "usage": usage}));
    }
    let delta =
        |text: &str| json!({"type": "content-delta", "index": 0, "delta": {"message": {"content": {"text": text}}}});
    let list = [
        json!({"type": "message-start", "id": "c", "delta": {"message": {"role": "assistant"}}}),
        delta("Hello from "),
        delta("the provider"),
        json!({"type": "message-end", "delta": {"finish_reason": "COMPLETE", "usage": usage}}),
    ];
    events(&list, true, false)
}

fn gemini(method: &str, tools: bool) -> Message {
    let part = match tools {
        true => json!({"functionCall": {"name": "get_weather", "args": {}}}),
        false => json!({"text": HELLO}),
    };
    let answer = json!({
        "candidates": [{"content": {"role": "model", "parts": [part]}, "finishReason": "STOP", "index": 0}],
        "usageMetadata": {"promptTokenCount": 7, "candidatesTokenCount": 5, "totalTokenCount": 12},
        "modelVersion": "gemini-2.0-flash",
    });
    if method.ends_with(":streamGenerateContent") {
        return events(&[answer], false, false);
    }
    if method.to_ascii_lowercase().contains("embed") {
        let values = json!({"values": [0.5, -0.25]});
        return json_reply(&json!({"embeddings": [values], "embedding": values}));
    }
    json_reply(&answer)
}
