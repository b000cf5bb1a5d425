//! The documents: every command they show runs or parses, and every table in them is the program's own.
//!
//! A block of shell is run here, in the order of its document, against a scripted provider; one that cannot be has
//! `<!-- not run: why -->` in the line above. In blocks that run, `sidekey run` takes free ports, and `curl` finds them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;
use sidekey::provider::{PROVIDERS, RefusalKind};
use tempfile::TempDir;

use crate::support::client::Request;
use crate::support::provider::{Provider, Seen};
use crate::support::script::{Message, Reply};
use crate::support::sidekey::{Options, REAL_KEY, Sidekey};

const DOCUMENTS: [&str; 5] = ["README.md", "CHANGELOG.md", "CONTRIBUTING.md", "deploy/README.md", "examples/README.md"];
/// The line above the block that `.ci/run` reads; the tests are that block's run.
const TEST_MARK: &str = "<!-- test:begin -->";

/// What stands between the documents' commands and the program.
const PRELUDE: &str = r#"
set -euo pipefail
trap 'code=$?; kill $(jobs -p) 2>/dev/null || true; wait; exit $code' EXIT
bound() {
  for _ in $(seq 200); do [ -s "$SIDEKEY_DATA_DIR/run.json" ] && break; sleep 0.1; done
  sed -E "s/.*\"$1\":\"([^\"]*)\".*/\1/" "$SIDEKEY_DATA_DIR/run.json"
}
sidekey() {
  if [ "${1-}" = run ]; then shift; exec "$BINARY" run --proxy 127.0.0.1:0 --admin 127.0.0.1:0 --telemetry 127.0.0.1:0 "$@"; fi
  "$BINARY" "$@"
}
curl() {
  local word words=()
  for word in "$@"; do
    word=${word//127.0.0.1:4141/$(bound proxy)}
    word=${word//127.0.0.1:4142/$(bound admin)}
    words+=("${word//127.0.0.1:4143/$(bound telemetry)}")
  done
  command curl --max-time 30 "${words[@]}"
}
export -f bound sidekey curl
"#;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn text(file: &str) -> String {
    std::fs::read_to_string(root().join(file)).unwrap_or_else(|error| panic!("{file}: {error}"))
}

fn binary() -> PathBuf {
    std::env::var_os("SIDEKEY_TEST_BIN").map_or_else(|| env!("CARGO_BIN_EXE_sidekey").into(), PathBuf::from)
}

/// A command in `folder` with a clean environment.
fn command(program: impl AsRef<std::ffi::OsStr>, folder: &Path) -> Command {
    let mut command = Command::new(program);
    command.current_dir(folder).env_clear().env("HOME", folder).env("TMPDIR", folder).env("BINARY", binary());
    for name in ["PATH", "LLVM_PROFILE_FILE", "RUST_BACKTRACE"] {
        command.envs(std::env::var_os(name).map(|value| (name, value)));
    }
    command
}

fn sidekey(folder: &Path) -> Command {
    command(binary(), folder)
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&[&output.stdout[..], &output.stderr].concat()).into_owned()
}

/// Runs it; it must succeed.
fn ok(command: &mut Command) -> String {
    let output = command.output().expect("the program runs");
    assert!(output.status.success(), "{command:?}: {}\n{}", output.status, said(&output));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn folder() -> TempDir {
    let folder = tempfile::Builder::new().prefix("sidekey-docs-").tempdir().expect("a temporary folder");
    for name in ["examples", "deploy"] {
        std::os::unix::fs::symlink(root().join(name), folder.path().join(name)).expect("a writable folder");
    }
    folder
}

/// A block of shell.
struct Block {
    /// Document and line.
    at: String,
    script: String,
    /// The line above it, when it is not to be run.
    skipped: bool,
}

fn blocks(document: &str) -> Vec<Block> {
    let (mut found, mut open, mut above) = (vec![], None::<Block>, "");
    let text = text(document);
    for (number, line) in text.lines().enumerate() {
        match (open.as_mut(), line.strip_prefix("```")) {
            (Some(_), Some("")) => found.extend(open.take()),
            (Some(block), _) => block.script += &format!("{line}\n"),
            (None, Some(language)) => {
                let known = ["sh", "toml", "json", "python", "js", "text"].contains(&language);
                assert!(known, "{document}:{}: a fence of {language:?}: shell is `sh`", number + 1);
                let reason = above.strip_prefix("<!-- not run: ").and_then(|rest| rest.strip_suffix(" -->"));
                let skipped = reason.is_some_and(|reason| !reason.is_empty()) || above == TEST_MARK;
                let at = format!("{language} {document}:{}", number + 1);
                open = Some(Block { at, script: String::new(), skipped });
            }
            (None, None) => above = line,
        }
    }
    assert!(open.is_none(), "{document}: a fence is not closed");
    found.retain(|block| block.at.starts_with("sh "));
    found
}

/// What a provider of OpenAI's dialect answers to the documents' requests.
fn answer(seen: &Seen) -> Reply {
    if seen.method == "GET" {
        return Message::json(200, r#"{"object":"list","data":[]}"#).into();
    }
    Reply::FromBody(std::sync::Arc::new(|body| {
        let usage = r#""usage":{"prompt_tokens":7,"completion_tokens":5,"total_tokens":12}"#;
        match memchr::memmem::find(body, br#""stream": true"#) {
            Some(_) => Message::sse([&*format!("data: {{\"choices\":[],{usage}}}\n\n"), "data: [DONE]\n\n"]),
            None => Message::json(200, format!(r#"{{"model":"gpt-4o-mini","choices":[],{usage}}}"#)),
        }
    }))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_commands_shown_work() {
    if Command::new("curl").arg("--version").output().is_err() {
        assert!(std::env::var_os("CI").is_none(), "curl is missing");
        eprintln!("SKIPPED: curl is missing; the commands of the documents were not tried");
        return;
    }
    let provider = Provider::start(answer).await;
    for document in DOCUMENTS {
        let blocks = blocks(document);
        let run: Vec<_> = blocks.iter().filter(|block| !block.skipped).collect();
        if run.is_empty() {
            continue;
        }
        let folder = folder();
        let step = |block: &&Block| format!("echo '== {}' >&2\n{}", block.at, block.script);
        let script = PRELUDE.to_owned() + &run.iter().map(step).collect::<String>();
        let mut bash = command("bash", folder.path());
        bash.arg("-c").arg(&script).env("REAL", REAL_KEY).env("SIDEKEY_PROVIDERS__OPENAI__BASE_URL", provider.url());
        let output = tokio::task::spawn_blocking(move || bash.output()).await.expect("no panic").expect("bash runs");
        assert!(output.status.success(), "{document}: {}\n{}", output.status, said(&output));
        let last = &run.last().expect("not empty").at;
        assert!(said(&output).contains(&format!("== {last}")), "{document} ended before {last}");
    }
    assert!(provider.count() > 5, "nothing reached the provider");
    let leaked = provider.seen().iter().any(|seen| seen.contains("sk-side-"));
    assert!(!leaked, "a virtual key went upstream");
}

#[test]
fn the_story_of_the_demo_ends() {
    let folder = folder();
    assert!(ok(sidekey(folder.path()).args(["demo", "--once"])).contains("identical to what was sent"));
    let test: Vec<_> = blocks("README.md").into_iter().filter(|block| block.script == "cargo test\n").collect();
    assert!(matches!(&test[..], [block] if block.skipped), "the command that .ci/run looks for");
}

/// The words after each `sidekey` of a script that stands where a command begins.
fn command_lines(script: &str) -> Vec<Vec<String>> {
    let script = script.replace("\\\n", " ").replace("\"$(", " ; ").replace(")\"", " ; ").replace("$(", " ; ");
    let mut found: Vec<Vec<String>> = vec![];
    for line in script.lines() {
        let (mut open, mut begins) = (false, true);
        for word in words(line) {
            if word.starts_with('#') {
                break;
            }
            let ends = [";", "|", "||", "&", "&&", "(", "--"].contains(&&*word)
                || word.starts_with(['>', '<'])
                || word.starts_with("2>");
            if begins && word == "sidekey" {
                found.push(vec![]);
                open = true;
                continue;
            }
            begins = ends || word == "if" || word == "else" || word == "sidekey";
            open &= !ends;
            if open {
                found.last_mut().expect("open").push(word);
            }
        }
    }
    found
}

/// Words of a line of shell, quotes taken off.
fn words(line: &str) -> Vec<String> {
    let (mut out, mut word, mut quote) = (vec![], None::<String>, None);
    for c in line.chars() {
        match quote {
            Some(mark) if c == mark => quote = None,
            None if c == '\'' || c == '"' => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            None if c.is_whitespace() => out.extend(word.take()),
            None if c == ';' || c == ')' => {
                out.extend(word.take());
                out.push(";".to_owned());
            }
            _ => word.get_or_insert_default().push(c),
        }
    }
    out.extend(word);
    out
}

#[test]
fn the_command_lines_parse() {
    let mut lines: Vec<(String, Vec<String>)> = vec![];
    for document in DOCUMENTS {
        let shown = blocks(document).into_iter().map(|block| (block.at, block.script));
        let inline = text(document);
        let inline = inline.split('`').skip(1).step_by(2).filter(|span| span.starts_with("sidekey "));
        let inline = inline.map(|span| (format!("inline {document}"), span.to_owned()));
        for (at, script) in shown.chain(inline) {
            lines.extend(command_lines(&script).into_iter().map(|words| (at.clone(), words)));
        }
    }
    for file in [
        "examples/session.sh",
        "examples/budgets.sh",
        "deploy/kubernetes/sidecar.yaml",
        "deploy/kubernetes/redirected.yaml",
        "deploy/systemd/sidekey.service",
    ] {
        let script = text(file).replace("=/usr/local/bin/sidekey ", " ; sidekey ");
        lines.extend(command_lines(&script).into_iter().map(|words| (file.to_owned(), words)));
    }
    for file in ["deploy/kubernetes/sidecar.yaml", "deploy/kubernetes/redirected.yaml", "deploy/Dockerfile"] {
        assert!(text(file).contains(r#"["run"]"#), "{file} runs the daemon");
    }
    let folder = folder();
    assert!(lines.len() > 60, "only {} command lines were found", lines.len());
    for (at, words) in lines {
        // Help is given only once everything before it has parsed.
        let output = sidekey(folder.path()).args(&words).arg("--help").output().expect("the binary runs");
        assert!(output.status.success(), "{at}: sidekey {}\n{}", words.join(" "), said(&output));
    }
}

/// The rows of the table whose head begins so; cells without their backticks.
fn table(head: &str) -> Vec<Vec<String>> {
    let readme = text("README.md");
    let mut lines = readme.lines().skip_while(|line| !line.starts_with(head)).peekable();
    assert!(lines.peek().is_some(), "README.md has no table {head:?}");
    let cells = |line: &str| line.split('|').map(|cell| cell.trim().replace('`', "")).collect::<Vec<_>>();
    lines.skip(2).take_while(|line| line.starts_with('|')).map(|line| cells(line.trim_matches('|'))).collect()
}

fn leaves(schema: &Value, path: &str, found: &mut BTreeMap<String, String>) {
    // Only what a key holds has a description.
    if schema["description"].is_string() {
        let default = schema.get("default").map(Value::to_string).unwrap_or_default();
        found.insert(path.trim_start_matches('.').to_owned(), default);
        return;
    }
    for (name, inner) in schema["properties"].as_object().into_iter().flatten() {
        leaves(inner, &format!("{path}.{name}"), found);
    }
    if schema["additionalProperties"].is_object() {
        leaves(&schema["additionalProperties"], &format!("{path}.*"), found);
    }
}

#[test]
fn the_tables_are_the_programs() {
    let folder = folder();
    let schema = ok(sidekey(folder.path()).args(["config", "schema"]));
    let mut keys = BTreeMap::new();
    leaves(&serde_json::from_str(&schema).expect("JSON"), "", &mut keys);
    let shown = table("| key | default |").into_iter().map(|row| (row[0].clone(), row[1].clone()));
    assert_eq!(shown.collect::<BTreeMap<_, _>>(), keys, "the table of the configuration");

    let rows: Vec<Vec<String>> = PROVIDERS
        .iter()
        .map(|row| {
            let base = row.base_url.unwrap_or("yours");
            let cells = [row.id, &row.aliases.join(", "), row.dialect.name(), base, &row.env.join(", ")];
            cells.map(str::to_owned).to_vec()
        })
        .collect();
    assert_eq!(table("| id | also |"), rows, "the table of the providers");

    let kinds: BTreeSet<_> =
        RefusalKind::ALL.iter().map(|kind| (kind.status().as_u16().to_string(), kind.code().to_owned())).collect();
    let shown = table("| why | status | code |").into_iter().map(|row| (row[1].clone(), row[2].clone()));
    assert_eq!(shown.collect::<BTreeSet<_>>(), kinds, "the table of refusals");

    let kinds = sidekey::event::Kind::ALL.map(|kind| kind.as_str().to_owned());
    let shown: Vec<String> = table("| kind | severity |").into_iter().map(|row| row[0].clone()).collect();
    assert_eq!(shown, kinds, "the table of events");
    let mut routes: Vec<(String, Vec<String>, Vec<String>)> = vec![];
    for (method, path, least, own) in sidekey::control::listed() {
        if routes.last().is_none_or(|(last, ..)| *last != path) {
            routes.push((path, vec![], vec![]));
        }
        let (_, roles, users) = routes.last_mut().expect("just pushed");
        users.extend(own.then(|| method.clone()));
        roles.push(format!("{method} {least}"));
    }
    let rows: Vec<Vec<String>> =
        routes.into_iter().map(|(path, roles, users)| vec![path, roles.join(", "), users.join(", ")]).collect();
    assert_eq!(table("| route | least role |"), rows, "the table of routes");

    let mut env = command("bash", folder.path());
    env.args(["-c", "printf key | \"$BINARY\" env --key-stdin --shell json"]);
    let set: BTreeMap<String, Value> = serde_json::from_str(&ok(&mut env)).expect("JSON");
    let shown = table("| provider | base URL in |").into_iter().flat_map(|row| [row[1].clone(), row[2].clone()]);
    let shown: Vec<_> = shown.flat_map(|cell| cell.split(", ").map(str::to_owned).collect::<Vec<_>>()).collect();
    let shown: BTreeSet<_> = shown.into_iter().filter(|name| !name.is_empty()).collect();
    assert_eq!(shown, set.into_keys().collect(), "the table of variables");
}

#[tokio::test]
async fn the_metrics_are_the_programs() {
    let sidekey = Sidekey::start(&Options::new()).await;
    sidekey.send(&Request::get("/openai/v1/models")).await;
    // Families with nothing in them are not shown.
    sidekey.add_provider_key("openai", REAL_KEY).await;
    let page = sidekey.metrics().await;
    let told = page.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next());
    let shown = table("| metric |").into_iter().map(|row| row[0].clone());
    assert_eq!(shown.collect::<BTreeSet<_>>(), told.map(str::to_owned).collect(), "the table of metrics");
}

/// The lines below `key`, as far as they are indented more.
fn literal(text: &str, key: &str) -> String {
    let indent = |line: &str| line.len() - line.trim_start().len();
    let mut lines = text.lines().skip_while(|line| line.trim() != key);
    let outer = indent(lines.next().unwrap_or_else(|| panic!("no {key:?}")));
    let inside: Vec<_> = lines.take_while(|line| line.is_empty() || indent(line) > outer).collect();
    let inner = inside.first().map_or(0, |line| indent(line));
    inside.iter().map(|line| format!("{}\n", line.get(inner..).unwrap_or_default())).collect()
}

#[test]
fn the_examples_and_manifests_are_known_to_the_program() {
    let folder = folder();
    let at = folder.path();
    ok(sidekey(at).args(["--config", "examples/sidekey.toml", "config", "check"]));
    let manifests = [
        "deploy/kubernetes/sidecar.yaml",
        "deploy/kubernetes/redirected.yaml",
        "deploy/systemd/sidekey.service",
        "deploy/Dockerfile",
    ];
    let mut names = BTreeSet::new();
    for file in DOCUMENTS.into_iter().chain(manifests) {
        let text = text(file);
        let words = text.split(|c: char| !c.is_ascii_uppercase() && !c.is_ascii_digit() && c != '_');
        names.extend(words.filter(|word| word.starts_with("SIDEKEY_") && word.len() > 8).map(str::to_owned));
    }
    for name in names {
        let output = sidekey(at).args(["config", "check"]).env(&name, "x").output().expect("the binary runs");
        assert!(!said(&output).contains("is not a variable"), "{}", said(&output));
    }

    let unit = text("deploy/systemd/sidekey.service");
    let credential = unit.lines().find_map(|line| line.strip_prefix("LoadCredential=")?.split(':').next());
    std::fs::write(at.join(credential.expect("a credential")), "A".repeat(43) + "=").expect("writable");
    let mut init = sidekey(at);
    init.args(["init", "-o", "json"]).env("CREDENTIALS_DIRECTORY", at).env("STATE_DIRECTORY", at.join("state"));
    assert!(ok(&mut init).contains("systemd credential"), "the unit's credential is not looked for");
}

/// The init container's script, twice on the same volumes, and once more when only the app's volume is new.
#[test]
fn the_pods_first_step_can_be_repeated() {
    let folder = folder();
    let (at, pod) = (folder.path(), text("deploy/kubernetes/sidecar.yaml"));
    let config = literal(&pod, "sidekey.toml: |");
    assert!(config.contains(":4143\"") && pod.contains("containerPort: 4143"), "the probes' port");
    let mut script = literal(&pod, "- |");
    for place in ["/run/secrets/sidekey", "/run/sidekey"] {
        script = script.replace(place, &format!("{}{place}", at.display()));
        std::fs::create_dir_all(at.join(place.trim_start_matches('/'))).expect("writable");
    }
    std::fs::create_dir(at.join("bin")).expect("writable");
    std::os::unix::fs::symlink(binary(), at.join("bin/sidekey")).expect("writable");
    std::fs::write(at.join("sidekey.toml"), config).expect("writable");
    std::fs::write(at.join("run/secrets/sidekey/openai"), REAL_KEY).expect("writable");
    let path = std::env::var("PATH").unwrap_or_default();
    let file = at.join("run/sidekey/virtual-key");
    let run = || {
        let mut sh = command("sh", at);
        sh.args(["-euc", &script]).env("PATH", format!("{}:{path}", at.join("bin").display()));
        sh.env("SIDEKEY_CONFIG", at.join("sidekey.toml")).env("SIDEKEY_DATA_DIR", at.join("data"));
        ok(sh.env("SIDEKEY_MASTER_KEY", "A".repeat(43) + "="));
        std::fs::read_to_string(&file).expect("the app's key")
    };
    let first = run();
    assert!(first.starts_with("sk-side-"), "{first:?}");
    assert_eq!(run(), first);
    std::fs::remove_file(&file).expect("there");
    let third = run();
    assert!(third.starts_with(&first[..first.rfind('-').expect("a key")]) && third != first, "a rotated key");
}

/// The pod for redirected apps: its configuration is one, its rules are those its sidecar needs.
#[test]
fn the_redirected_pod_fits_together() {
    let folder = folder();
    let at = folder.path();
    let pod = text("deploy/kubernetes/redirected.yaml");
    std::fs::write(at.join("pod.toml"), literal(&pod, "sidekey.toml: |")).expect("writable");
    ok(sidekey(at).args(["--config", "pod.toml", "config", "check"]));
    let words = pod.lines().find_map(|line| line.trim().strip_prefix("args: [\"redirect\", "));
    let words = words.and_then(|line| line.strip_suffix(']')).expect("the first step");
    let words: Vec<&str> = words.split(", ").map(|word| word.trim_matches('"')).collect();
    let mut install = sidekey(at);
    install.args(["--config", "pod.toml", "redirect"]).args(&words).arg("--dry-run");
    let shown = ok(&mut install);
    let user = pod.lines().find_map(|line| line.trim().strip_prefix("runAsUser: ")).expect("a user");
    for rule in [format!("meta skuid {user} return"), "tcp dport 443 redirect to :15001".to_owned()] {
        assert!(shown.contains(&rule), "no {rule:?} in {shown}");
    }
}
