//! `sidekey exec` by proxy and in a sandbox: programs that are told nothing of base URLs, and one that is told nothing at
//! all.

use std::net::{TcpListener, UdpSocket};
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
/// A real key that a variable names the file of.
const IN_A_FILE: &str = "sk-real-in-a-file-Kq7WmZ3xTn9vRb2c";
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

#[tokio::test]
async fn real_keys_are_taken_from_the_commands_environment() {
    const MARK: &str = "sk-very-real";
    let account = ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"];
    let google = "GOOGLE_APPLICATION_CREDENTIALS";
    let plain = ["GOOGLE_API_KEY", "GROQ_API_KEY_FILE", "MINE_KEY", "MINE_KEY_FILE", "OPENAI_API_KEY_FILE"];
    // In these the virtual key stands.
    let stands = ["AWS_BEARER_TOKEN_BEDROCK", "OPENAI_API_KEY"];
    let never = ["SIDEKEY_MASTER_KEY", "SIDEKEY_MASTER_KEY_FILE"];
    let names = [&account[..], &[google], &plain, &stands, &never].concat();
    let env: Vec<(&str, &str)> = names.iter().map(|name| (*name, MARK)).chain([("S3_BUCKET", MARK)]).collect();

    let provider = provider().await;
    let options = Options::new().provider("openai", &provider.url());
    let own =
        format!("[providers.mine]\nbase_url = {:?}\ndialect = \"openai\"\nenv = [\"MINE_KEY\"]\n", provider.url());
    let sidekey = Sidekey::start(&options.config(&own)).await;
    sidekey.add_provider_key("openai", REAL_KEY).await;
    let left = async |flags: &[&str]| {
        let args = [&["exec"], flags, &["--", "env"]].concat();
        let output = sidekey.cli_env(&args, &env).await;
        assert!(output.status.success(), "{flags:?}: {}", said(&output));
        let out = text(&output.stdout);
        assert!(out.contains("\nOPENAI_API_KEY=sk-side-") || out.starts_with("OPENAI_API_KEY=sk-side-"), "{out}");
        let mut left: Vec<String> =
            out.lines().filter_map(|line| Some(line.strip_suffix(MARK)?.trim_end_matches('=').to_owned())).collect();
        left.sort_unstable();
        left
    };
    let want = |names: &[&[&'static str]]| -> Vec<&'static str> {
        let mut names = [&names.concat()[..], &["S3_BUCKET"]].concat();
        names.sort_unstable();
        names
    };
    assert_eq!(left(&[]).await, want(&[&account, &[google]]), "no account is served here");
    assert_eq!(left(&["--mode", "proxy"]).await, want(&[&account, &[google]]));
    assert_eq!(left(&["--provider", "openai", "--provider", "vertex"]).await, want(&[&account]));
    sidekey.add_provider_key("bedrock", "bedrock-api-key-Kq7WmZ3xTn9vRb2c").await;
    assert_eq!(left(&[]).await, want(&[&[google]]), "Bedrock is served");
    let keep = format!("--keep-keys={}", account[..2].join(","));
    assert_eq!(left(&[&keep]).await, want(&[&account[..2], &[google]]));
    assert_eq!(left(&["--keep-keys"]).await, want(&[&account, &[google], &plain]));
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
        std::fs::write(folder.path().join("groq.key"), IN_A_FILE).expect("our folder");
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
        command.env("SIDEKEY_DATA_DIR", path.join("data")).env("GROQ_API_KEY_FILE", path.join("groq.key"));
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
            assert!(std::env::var_os("CI").is_none(), "no user namespaces for ordinary users: {error}");
            eprintln!("SKIPPED (1): no user namespaces for ordinary users; exec --sandbox was not tried: {error}");
            return None;
        }
        Some(output)
    }
}

/// Services outside a sandbox: TCP and UDP, by IPv4, and by IPv6 where this machine has it.
struct Outside {
    tcp: Vec<TcpListener>,
    udp: Vec<UdpSocket>,
}

impl Outside {
    fn new() -> Self {
        let v6 = TcpListener::bind("[::1]:0").ok();
        if v6.is_none() {
            eprintln!("SKIPPED: no IPv6 here; a sandbox was not tried with it");
        }
        let hosts = if v6.is_some() { &["127.0.0.1", "::1"][..] } else { &["127.0.0.1"] };
        let tcp = std::iter::once(TcpListener::bind("127.0.0.1:0").expect("a free port")).chain(v6).collect();
        let udp = hosts.iter().map(|host| UdpSocket::bind((*host, 0)).expect("a free port")).collect();
        Self { tcp, udp }
    }

    fn places(&self) -> [Vec<String>; 2] {
        let tcp = self.tcp.iter().map(|socket| socket.local_addr().expect("bound"));
        let udp = self.udp.iter().map(|socket| socket.local_addr().expect("bound"));
        [
            tcp.map(|at| format!("{}/{}", at.ip(), at.port())).collect(),
            udp.map(|at| format!("{}/{}", at.ip(), at.port())).collect(),
        ]
    }

    /// Tries them all. Where nobody listens the first datagram is lost, and the second refused.
    fn probe(&self) -> String {
        let [tcp, udp] = self.places().map(|places| places.join(" "));
        format!(
            "tcp() {{ if (exec 3<>/dev/tcp/$1) 2>/dev/null; then echo \"open $1\"; else echo closed; fi; }}
             udp() {{ if (exec 3<>/dev/udp/$1 && echo x >&3 && echo x >&3) 2>/dev/null
                      then echo \"open $1\"; else echo closed; fi; }}
             for to in {tcp}; do tcp $to; done; for to in {udp}; do udp $to; done"
        )
    }

    /// What that prints.
    fn answers(&self, open: bool) -> String {
        let line = |place: &String| if open { format!("open {place}\n") } else { "closed\n".to_owned() };
        self.places().concat().iter().map(line).collect()
    }

    /// How many of the sockets got a datagram since this was asked last.
    fn datagrams(&self) -> usize {
        let came = |socket: &&UdpSocket| {
            socket.set_nonblocking(true).expect("a socket");
            std::iter::from_fn(|| socket.recv(&mut [0; 8]).ok()).count() > 0
        };
        self.udp.iter().filter(came).count()
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
    let outside = Outside::new();
    let (port, probe) = (outside.tcp[0].local_addr().expect("bound").port(), outside.probe());
    let own = Command::new("bash").args(["-c", &probe]).output().expect("bash runs");
    let (open, closed) = (outside.answers(true), outside.answers(false));
    assert_eq!((text(&own.stdout), outside.datagrams()), (open, outside.udp.len()), "all is reached without a sandbox");
    let tries = format!(
        "{probe}
         for to in 192.0.2.1/80 192.0.2.1/22 2001:db8::1/8443; do tcp $to; done
         for to in 192.0.2.1/443 192.0.2.1/53 2001:db8::1/443; do udp $to; done
         test -r \"$HOME/data/master.key\" && echo 'the master key is there'
         cat \"$HOME/groq.key\"; echo \"${{GROQ_API_KEY_FILE-taken}}\"; id -u"
    );
    let user = if rustix::process::geteuid().is_root() { USER } else { rustix::process::geteuid().as_raw() };
    let rest = format!("{}taken\n{user}\n", "closed\n".repeat(6));
    let output = home.sandboxed(&[], &tries).expect("it went before");
    assert_eq!(text(&output.stdout), format!("{closed}{rest}"), "{}", said(&output));
    let output = home.sandboxed(&["--allow", &format!("127.0.0.1:{port}")], &tries).expect("it went before");
    let one = closed.replacen("closed", &format!("open 127.0.0.1/{port}"), 1);
    assert_eq!(text(&output.stdout), format!("{one}{rest}"), "{}", said(&output));
    assert_eq!(outside.datagrams(), 0, "a datagram came out");
    // What a variable names is kept from the command by the sandbox alone.
    let output = home.run(&["exec", "--provider", "openai", "--", "sh", "-c", "cat \"$HOME/groq.key\""], "");
    assert_eq!(text(&output.stdout), IN_A_FILE, "{}", said(&output));

    // HTTPS to an address of IPv6 leads to sidekey as well.
    if !outside.tcp[1..].is_empty() {
        let by_v6 = CALL.replace("curl", "curl --resolve api.openai.com:443:[2001:db8::1]");
        let output = home.sandboxed(&[], &by_v6).expect("it went before");
        assert_eq!(text(&output.stdout), ANSWER, "{}", said(&output));
    }

    // Its exit code and its signal are the command's.
    for (script, code) in [("exit 5", 5), ("kill -TERM $$", 143), ("exec /nonexistent/program", 127)] {
        let output = home.sandboxed(&[], script).expect("it went before");
        assert_eq!(output.status.code(), Some(code), "{script}: {}", said(&output));
    }
}
