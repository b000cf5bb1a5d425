//! `sidekey exec` by proxy and in a sandbox: programs that are told nothing of base URLs, and one that is told nothing at
//! all.

use std::net::TcpListener;
use std::os::unix::fs::chown;
use std::process::{Command, Output, Stdio};

use crate::support::netns::{is_there, said, text};
use crate::support::provider::Provider;
use crate::support::script::Message;
use crate::support::sidekey::{Options, REAL_KEY, Sidekey, binary};

const ANSWER: &str =
    r#"{"model":"gpt-4o-mini","choices":[],"usage":{"prompt_tokens":1,"completion_tokens":2,"total_tokens":3}}"#;
const CALL: &str = r#"curl -sS -f --max-time 30 https://api.openai.com/v1/chat/completions \
    -H "Authorization: Bearer $OPENAI_API_KEY" -d '{"model":"gpt-4o-mini","messages":[]}'"#;
/// An ordinary user.
const USER: u32 = 1000;

fn has_curl(what: &str) -> bool {
    let there = is_there("curl");
    assert!(there || std::env::var_os("CI").is_none(), "curl is missing");
    if !there {
        eprintln!("SKIPPED: curl is missing; not tried: {what}");
    }
    there
}

async fn provider() -> Provider {
    Provider::always(Message::json(200, ANSWER)).await
}

#[tokio::test]
async fn a_program_that_reads_no_base_url_is_led_by_its_proxy() {
    if !has_curl("exec --mode proxy") {
        return;
    }
    let provider = provider().await;
    let options =
        Options::new().provider("openai", &provider.url()).env("NO_PROXY", "api.openai.com,.corp.example,127.0.0.1");
    let options = options.env("ALL_PROXY", "http://127.0.0.1:1").env("JDK_JAVA_OPTIONS", "-Xmx1g");
    let mut sidekey = Sidekey::start(&options).await;
    sidekey.add_provider_key("openai", REAL_KEY).await;
    let shown = "echo; echo \"$NO_PROXY ${ALL_PROXY-gone} ${OPENAI_BASE_URL-none}\"; echo \"$JDK_JAVA_OPTIONS\"; \
                 head -n 1 \"$NODE_EXTRA_CA_CERTS\"; test \"$https_proxy\" = \"$HTTPS_PROXY\"; exit 7";
    for daemon in [true, false] {
        if !daemon {
            sidekey.stop().await;
        }
        let script = format!("{CALL}\n{shown}");
        let output = sidekey.cli(&["exec", "--mode", "proxy", "--rpm", "5", "--", "sh", "-c", &script]).await;
        let (out, error) = (text(&output.stdout), text(&output.stderr));
        assert_eq!(output.status.code(), Some(7), "daemon {daemon}: {error}");
        let lines: Vec<&str> = out.lines().collect();
        assert_eq!(lines[..2], [ANSWER, "localhost,127.0.0.1,::1,.corp.example gone none"], "daemon {daemon}: {error}");
        let java = ["-Xmx1g -Djavax.net.ssl.trustStore=", "bundle.p12", "-Dhttps.proxyHost=127.0.0.1"];
        assert!(java.iter().all(|part| lines[2].contains(part)), "{}", lines[2]);
        assert_eq!(lines[3], "-----BEGIN CERTIFICATE-----");
        assert!(error.contains("1 requests, 1 input and 2 output tokens"), "daemon {daemon}: {error}");
        assert_eq!(provider.last().header("authorization"), Some(&*format!("Bearer {REAL_KEY}")));
    }
    assert_eq!(provider.count(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shell_is_led_by_its_proxy() {
    if !has_curl("env --mode proxy") {
        return;
    }
    let provider = provider().await;
    let mut sidekey = Sidekey::start(&Options::new().provider("openai", &provider.url())).await;
    sidekey.add_provider_key("openai", REAL_KEY).await;
    let key = sidekey.create_key(&[]).await.key;
    let env = ["env", "--mode", "proxy", "--key-stdin", "--shell", "bash"];
    let first = sidekey.cli_with(&env, &key).await;
    assert!(first.status.success(), "{}", said(&first));
    let set = text(&first.stdout);
    assert!(set.starts_with("unset ALL_PROXY\nunset all_proxy\nexport "), "{set}");
    let output = Command::new("bash").args(["-c", &format!("{set}{CALL}")]).output().expect("bash runs");
    assert_eq!(text(&output.stdout), ANSWER, "{}", said(&output));
    assert_eq!(text(&sidekey.cli_with(&env, &key).await.stdout), set, "a second time changes nothing");
    sidekey.stop().await;
    let without = sidekey.cli_with(&env, &key).await;
    assert!(without.status.code() == Some(1) && said(&without).contains("sidekey run"), "{}", said(&without));
}

/// sidekey without a daemon, as an ordinary user, in a home of its own.
struct Home {
    folder: tempfile::TempDir,
}

impl Home {
    fn new(provider: &Provider) -> Self {
        let folder = tempfile::Builder::new().prefix("sidekey-exec-it-").tempdir().expect("a temporary folder");
        let config = format!("[providers.openai]\nbase_url = {:?}\n", provider.url());
        std::fs::write(folder.path().join("sidekey.toml"), config).expect("our folder");
        if rustix::process::geteuid().is_root() {
            chown(folder.path(), Some(USER), Some(USER)).expect("root");
        }
        let home = Self { folder };
        for (args, input) in [
            (&["init"][..], ""),
            (&["provider-key", "add", "openai", "--name", "main", "--stdin", "--no-test"], REAL_KEY),
        ] {
            let output = home.run(args, input);
            assert!(output.status.success(), "{args:?}: {}", said(&output));
        }
        home
    }

    fn run(&self, args: &[&str], input: &str) -> Output {
        let root = rustix::process::geteuid().is_root();
        let user = USER.to_string();
        let mut command = Command::new(if root { "setpriv".into() } else { binary() });
        if root {
            command.args(["--clear-groups", "--reuid", &user, "--regid", &user]).arg(binary());
        }
        let path = self.folder.path();
        command.args(args).env_clear().current_dir("/").env("PATH", std::env::var_os("PATH").unwrap_or_default());
        command.env("HOME", path).env("SIDEKEY_CONFIG", path.join("sidekey.toml"));
        command.env("SIDEKEY_DATA_DIR", path.join("data"));
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("it runs");
        // A command that does not read its stdin may be gone before this is written.
        drop(std::io::Write::write_all(&mut child.stdin.take().expect("piped"), input.as_bytes()));
        child.wait_with_output().expect("our own child")
    }

    /// A script in a sandbox; `None` where there can be none.
    fn sandboxed(&self, flags: &[&str], script: &str) -> Option<Output> {
        let exec = [&["exec", "--sandbox", "--provider", "openai"], flags, &["--", "bash", "-c", script]].concat();
        let output = self.run(&exec, "");
        let error = text(&output.stderr);
        if error.contains("no sandbox: namespaces") {
            eprintln!("SKIPPED (1): no user namespaces for ordinary users; exec --sandbox was not tried: {error}");
            return None;
        }
        Some(output)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sandbox_leaves_one_way_out() {
    if !cfg!(target_os = "linux") || !has_curl("exec --sandbox") {
        return;
    }
    let provider = provider().await;
    let home = Home::new(&provider);
    // With nothing in its environment but the key.
    let script = format!(
        "exec env -i PATH=\"$PATH\" OPENAI_API_KEY=\"$OPENAI_API_KEY\" bash -c '{}'",
        CALL.replace('\'', r"'\''")
    );
    let Some(output) = home.sandboxed(&[], &script) else { return };
    assert_eq!(text(&output.stdout), ANSWER, "{}", said(&output));
    assert!(text(&output.stderr).contains("1 requests, 1 input and 2 output tokens"), "{}", said(&output));
    assert_eq!(provider.last().header("authorization"), Some(&*format!("Bearer {REAL_KEY}")));

    // Every other port fails closed, whoever it is of; what is allowed is reached.
    let service = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let open = service.local_addr().expect("bound");
    let port = open.port();
    let tries = format!(
        "for to in 127.0.0.1/{port} 192.0.2.1/80 192.0.2.1/22 ::1/{port} 2001:db8::1/8443; do \
           if (exec 3<>/dev/tcp/$to) 2>/dev/null; then echo \"open $to\"; else echo closed; fi; done; \
         test -r \"$HOME/data/master.key\" && echo 'the master key is there'; \
         id -u"
    );
    let user = if rustix::process::geteuid().is_root() { USER } else { rustix::process::geteuid().as_raw() };
    let output = home.sandboxed(&[], &tries).expect("it went before");
    assert_eq!(text(&output.stdout), format!("{}{user}\n", "closed\n".repeat(5)), "{}", said(&output));
    let output = home.sandboxed(&["--allow", &open.to_string()], &tries).expect("it went before");
    let want = format!("open 127.0.0.1/{port}\n{}{user}\n", "closed\n".repeat(4));
    assert_eq!(text(&output.stdout), want, "{}", said(&output));

    // Its exit code and its signal are the command's.
    for (script, code) in [("exit 5", 5), ("kill -TERM $$", 143), ("exec /nonexistent/program", 127)] {
        let output = home.sandboxed(&[], script).expect("it went before");
        assert_eq!(output.status.code(), Some(code), "{script}: {}", said(&output));
    }
}
