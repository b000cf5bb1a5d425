//! Clients that know nothing of sidekey, in a network namespace where the kernel redirects what they connect to.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use futures_util::{SinkExt, StreamExt};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;
use tokio::net::TcpStream;

use crate::clients::{self, CLIENTS, Roots};
use crate::sdk;
use crate::support::client::{self, Client, Request};
use crate::support::netns::{Namespace, possible, said, text};
use crate::support::provider::Provider;
use crate::support::script::{Message, Reply, Socket};
use crate::support::sidekey::{REAL_KEY, binary};
use crate::support::tls::Certificate;
use crate::support::tunnel::{Speaker, Trickle};

/// sidekey's user.
const OWN: u32 = 1337;
/// The app's.
const APP: u32 = 1000;
const PROVIDER: &str = "203.0.113.2";
/// Somebody else, by both families.
const STRANGERS: [&str; 2] = ["203.0.113.3", "2001:db8:1::3"];
const HOST: &str = "api.openai.com";
/// Hosts of providers, all at the one address.
const VENDORS: [&str; 3] = [HOST, "api.anthropic.com", "generativelanguage.googleapis.com"];
const STRANGER: &str = "stranger.example";
const H1: &[&str] = &["http/1.1"];
const CHAT: &str = "/v1/chat/completions";
const BODY: &str = r#"{"model":"gpt-4o-mini","messages":[]}"#;
const ANSWER: &str =
    r#"{"model":"gpt-4o-mini","choices":[],"usage":{"prompt_tokens":1,"completion_tokens":2,"total_tokens":3}}"#;

/// An app's namespace with sidekey in it, and beyond it a provider and a stranger.
struct Scene {
    app: Namespace,
    far: Namespace,
    provider: Provider,
    strangers: Vec<Provider>,
    folder: TempDir,
    child: Option<Child>,
    key: String,
}

impl Drop for Scene {
    fn drop(&mut self) {
        self.kill();
    }
}

fn at(host: &str, port: u16) -> SocketAddr {
    SocketAddr::new(host.parse().expect("an address"), port)
}

impl Scene {
    /// All of it, sidekey running and the rules in force; `exempt` is the user that passes.
    fn new(backend: &str, exempt: u32) -> Self {
        let folder = tempfile::Builder::new().prefix("sidekey-led-").tempdir().expect("a temporary folder");
        let path = folder.path().to_owned();
        let readable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(&path, readable).expect("our folder");
        let (app, far) = Namespace::pair();
        let certificate = Certificate::of(&VENDORS, &path.join("provider.pem"), &["h2", "http/1.1"]);
        let listener = far.run(|| TcpListener::bind(at(PROVIDER, 443))).expect("a free port");
        let provider = Provider::start_tls_at(listener, certificate.server, |seen| match seen.header("user-agent") {
            // What an SDK says of itself, in any of them.
            Some(agent) if agent.contains("Python ") || agent.contains("genai") => sdk::answer(seen),
            _ if seen.method == "GET" => clients::answer(seen),
            _ => Message::json(200, ANSWER).into(),
        });
        let certificate = Certificate::of(&[STRANGER], &path.join("stranger.pem"), H1);
        let stranger = |host: &str| {
            let listener = far.run(|| TcpListener::bind(at(host, 443))).expect("a free port");
            Provider::start_tls_at(listener, certificate.server.clone(), |_| Message::json(200, "\"stranger\"").into())
        };
        let strangers = STRANGERS.map(stranger).into();
        std::fs::write(path.join("hosts"), format!("127.0.0.1 localhost\n{PROVIDER} {}\n", VENDORS.join(" ")))
            .expect("our folder");
        app.sh(&format!("mount --bind {} /etc/hosts", path.join("hosts").display()));
        let home = path.join("home");
        std::fs::create_dir_all(home.join("ca")).expect("our folder");
        let config = format!(
            "[listen]\ntransparent = \"127.0.0.1:15001\"\n[connect]\nca_dir = {:?}\n\
             [providers]\nopenai.allow_private = true\nanthropic.allow_private = true\ngemini.allow_private = true\n",
            path.join("home/ca")
        );
        std::fs::write(home.join("sidekey.toml"), config).expect("our folder");
        for owned in [home.clone(), home.join("ca"), home.join("sidekey.toml")] {
            std::os::unix::fs::chown(owned, Some(OWN), Some(OWN)).expect("root");
        }
        let mut scene = Self { app, far, provider, strangers, folder, child: None, key: String::new() };
        scene.ok(&["init"], "");
        for provider in ["openai", "anthropic", "gemini"] {
            scene.ok(&["provider-key", "add", provider, "--name", "main", "--stdin", "--no-test"], REAL_KEY);
        }
        let made: Value =
            serde_json::from_str(&scene.ok(&["key", "create", "--name", "t", "-o", "json"], "")).expect("JSON");
        scene.key = made["key"].as_str().expect("a key").to_owned();
        let exempt = exempt.to_string();
        let rules = ["redirect", "install", "--ports", "443,8443", "--uid", &exempt, "--backend", backend];
        let rules = scene.command(0, &rules).output();
        let rules = rules.expect("nsenter runs");
        assert!(rules.status.success(), "{}", said(&rules));
        scene.run();
        scene
    }

    fn home(&self) -> PathBuf {
        self.folder.path().join("home")
    }

    fn root_pem(&self) -> PathBuf {
        self.home().join("ca/root.pem")
    }

    fn command(&self, uid: u32, args: &[&str]) -> Command {
        let mut command = self.app.command(uid, binary());
        let home = self.home();
        command.args(args).env_clear().current_dir("/").env("PATH", std::env::var_os("PATH").unwrap_or_default());
        command.env("HOME", &home).env("SIDEKEY_CONFIG", home.join("sidekey.toml"));
        command
            .env("SIDEKEY_DATA_DIR", home.join("data"))
            .env("SSL_CERT_FILE", self.folder.path().join("provider.pem"));
        command
    }

    fn cli(&self, args: &[&str], input: &str) -> Output {
        let mut command = self.command(OWN, args);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("nsenter runs");
        // A command that does not read its stdin may be gone before this is written.
        drop(child.stdin.take().expect("piped").write_all(input.as_bytes()));
        child.wait_with_output().expect("our own child")
    }

    fn ok(&self, args: &[&str], input: &str) -> String {
        let output = self.cli(args, input);
        assert!(output.status.success(), "sidekey {args:?}: {}\n{}", output.status, said(&output));
        text(&output.stdout)
    }

    fn run(&mut self) {
        let log = std::fs::File::create(self.folder.path().join("log")).expect("our folder");
        let mut command = self.command(OWN, &["run"]);
        self.child =
            Some(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().expect("nsenter runs"));
    }

    fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// What `status` says, as soon as `fits` holds of it.
    fn status(&self, what: &str, fits: impl Fn(&Value) -> bool) -> Value {
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            let output = self.cli(&["status", "-o", "json"], "");
            let status: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
            if fits(&status) {
                return status;
            }
            let log = std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default();
            assert!(Instant::now() < deadline, "not {what}: {}\n{log}", said(&output));
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Has the rules leave alone, or not, what sidekey tries its own connections with.
    fn let_tests_pass(&self, backend: &str, pass: bool) {
        self.app.sh(&match (backend, pass) {
            ("nft", true) => ["ip daddr 192.0.2.1", "ip6 daddr 2001:db8::1"]
                .map(|to| format!("nft insert rule inet sidekey output_nat {to} return\n"))
                .concat(),
            ("nft", false) => "nft -a list chain inet sidekey output_nat | sed -n 's/.* daddr .* handle //p' |\n\
                               while read -r n; do nft delete rule inet sidekey output_nat handle \"$n\"; done"
                .to_owned(),
            (_, pass) => [("iptables", "192.0.2.1"), ("ip6tables", "2001:db8::1")]
                .map(|(tool, to)| {
                    format!("{tool} -w 5 -t nat {} OUTPUT -d {to} -j ACCEPT\n", if pass { "-I" } else { "-D" })
                })
                .concat(),
        });
    }

    fn wait_until_ready(&self) {
        self.status("ready", |status| status["ready"] == true);
    }

    /// How many connections ended so, by the metrics.
    async fn count(&self, outcome: &str) -> u64 {
        let mut client = Client::over(self.dial(at("127.0.0.1", 4143)));
        let page = client.send(&Request::get("/metrics")).await.expect("an answer").text();
        let name = format!("sidekey_connections_total{{outcome=\"{outcome}\"}} ");
        let line = page.lines().find_map(|line| line.strip_prefix(&*name)).expect("a line");
        line.parse().expect("a number")
    }

    /// A connection of an app's.
    fn dial(&self, to: SocketAddr) -> TcpStream {
        let stream = self.app.run(|| std::net::TcpStream::connect(to)).unwrap_or_else(|error| panic!("{to}: {error}"));
        stream.set_nonblocking(true).expect("a socket");
        stream.set_nodelay(true).expect("a socket");
        TcpStream::from_std(stream).expect("a socket")
    }

    /// The same, for blocking use.
    fn dial_blocking(&self, to: SocketAddr) -> std::net::TcpStream {
        let stream = self.app.run(|| std::net::TcpStream::connect(to)).unwrap_or_else(|error| panic!("{to}: {error}"));
        stream.set_read_timeout(Some(Duration::from_secs(30))).expect("a socket");
        stream
    }

    fn chat(&self) -> Request {
        Request::post(CHAT, BODY).header("host", HOST).bearer(&self.key)
    }

    fn speaker(&self, protocols: &[&str]) -> Speaker {
        Speaker::new(&self.root_pem(), protocols)
    }

    fn strange(&self) -> Speaker {
        Speaker::new(&self.folder.path().join("stranger.pem"), H1)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_redirected_is_served_or_led_on() {
    let mut tried = false;
    for backend in ["nft", "iptables"] {
        if !possible(&format!("redirected connections, by {backend}"), &[backend]) {
            continue;
        }
        let mut scene = Scene::new(backend, OWN);
        scene.wait_until_ready();
        for to in STRANGERS {
            providers_are_opened(&scene, to).await;
            strangers_are_reached(&scene, to).await;
        }
        nobody_comes_by_another_way(&scene).await;
        // What the kernel does is seen above; what these do is the same by any rules.
        if !std::mem::replace(&mut tried, true) {
            real_clients_know_nothing(&scene).await;
            sdks_know_nothing(&scene).await;
        }

        // Without sidekey nothing passes, and nothing leaves.
        scene.kill();
        let before = (scene.provider.connections(), scene.strangers.iter().map(Provider::connections).sum::<usize>());
        for to in STRANGERS.iter().chain(&[PROVIDER]) {
            let error = scene.app.run(|| std::net::TcpStream::connect(at(to, 443))).expect_err("nobody is there");
            assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused, "{backend} {to}");
        }
        let after = (scene.provider.connections(), scene.strangers.iter().map(Provider::connections).sum::<usize>());
        assert_eq!(before, after, "{backend}");
    }
}

/// `to` is not the provider's: only the name in TLS is.
async fn providers_are_opened(scene: &Scene, to: &str) {
    let before: usize = scene.strangers.iter().map(Provider::connections).sum();
    // As it comes, and in pieces.
    for at_once in [usize::MAX, 100, 1] {
        let io = Trickle { tcp: scene.dial(at(to, 443)), at_once, before: Vec::new() };
        let tls = scene.speaker(H1).open(HOST, io).await.unwrap_or_else(|error| panic!("{to} {at_once}: {error}"));
        let mut client = Client::over(tls);
        for _ in 0..2 {
            let answer = client.send(&scene.chat()).await.expect("an answer");
            assert_eq!((answer.status, answer.text().as_str()), (200, ANSWER), "{to} {at_once}");
        }
    }
    let tls = scene.speaker(&["h2", "http/1.1"]).open(HOST, scene.dial(at(to, 443))).await.expect("it trusts the root");
    let answer =
        client::send_h2_over(tls, "https://api.openai.com", &Request::post(CHAT, BODY).bearer(&scene.key)).await;
    assert_eq!((answer.status, answer.text().as_str()), (200, ANSWER), "{to}");
    for seen in scene.provider.seen() {
        assert_eq!(seen.header("authorization"), Some(&*format!("Bearer {REAL_KEY}")));
        assert!(!seen.contains(&scene.key), "the virtual key went upstream");
    }

    let open =
        async || Client::over(scene.speaker(H1).open(HOST, scene.dial(at(to, 443))).await.expect("it trusts the root"));
    let seen = scene.provider.count();
    let answer = open().await.send(&Request::post(CHAT, BODY).header("host", HOST)).await.expect("an answer");
    assert_eq!(answer.status, 401, "{to}: no key is put in for a stranger");
    let other = Request::post(CHAT, BODY).header("host", "api.anthropic.com").bearer(&scene.key);
    assert_eq!(open().await.send(&other).await.expect("an answer").status, 421, "{to}");
    assert_eq!(scene.provider.count(), seen, "{to}: refused, and yet sent");

    scene.provider.push(Message::sse(["data: {\"choices\":[]}\n\n", "data: [DONE]\n\n"]));
    let answer = open().await.send(&scene.chat()).await.expect("an answer");
    assert_eq!(answer.text(), "data: {\"choices\":[]}\n\ndata: [DONE]\n\n", "{to}");
    scene.provider.push(Reply::WebSocket(Socket::Echo));
    let (_, mut socket) = open()
        .await
        .websocket(Request::get("/v1/realtime?model=gpt-4o-mini").header("host", HOST).bearer(&scene.key))
        .await
        .unwrap_or_else(|answer| panic!("{to}: {}", answer.text()));
    socket.send("hi".into()).await.expect("open");
    assert_eq!(socket.next().await.expect("an echo").expect("a frame").into_data().as_ref(), b"hi", "{to}");

    let after: usize = scene.strangers.iter().map(Provider::connections).sum();
    assert_eq!(before, after, "{to}: a provider was dialled where the client said, not by its name");
}

/// Whoever is no provider is reached where the client meant, unread.
async fn strangers_are_reached(scene: &Scene, to: &str) {
    for (what, speaker) in [("an unknown name", scene.strange()), ("no name", scene.strange().nameless())] {
        for at_once in [usize::MAX, 1] {
            let io = Trickle { tcp: scene.dial(at(to, 443)), at_once, before: Vec::new() };
            let tls = speaker.open(STRANGER, io).await.unwrap_or_else(|error| panic!("{to}, {what}: {error}"));
            let answer = Client::over(tls).send(&Request::get("/").header("host", STRANGER)).await.expect("an answer");
            assert_eq!(answer.text(), "\"stranger\"", "{to}, {what}");
        }
    }
    // Not TLS at all, with a half-close; to a port of its own where such a one listens.
    let listener = scene.far.run(|| TcpListener::bind(at(to, 8443))).expect("a free port");
    let answering = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a connection");
        let mut asked = String::new();
        stream.read_to_string(&mut asked).expect("an end");
        stream.write_all(format!("heard {asked}").as_bytes()).expect("still open");
    });
    let mut stream = scene.dial_blocking(at(to, 8443));
    stream.write_all(b"hello").expect("open");
    stream.shutdown(Shutdown::Write).expect("open");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    assert_eq!(answer, "heard hello", "{to}");
    answering.join().expect("no panic");
}

async fn nobody_comes_by_another_way(scene: &Scene) {
    let refused = scene.count("refused").await;
    // Straight to the port, and to where clouds keep credentials.
    for to in ["127.0.0.1", "::1"] {
        let mut stream = scene.dial_blocking(at(to, 15001));
        let _ = stream.write_all(b"GET / HTTP/1.1\r\n\r\n");
        assert!(matches!(stream.read(&mut [0; 64]), Ok(0) | Err(_)), "{to}");
    }
    for to in ["169.254.169.254", "fd00:ec2::254"] {
        let mut stream = scene.dial_blocking(at(to, 443));
        let _ = stream.write_all(b"GET / HTTP/1.1\r\n\r\n");
        assert!(matches!(stream.read(&mut [0; 64]), Ok(0) | Err(_)), "{to}");
    }
    assert_eq!(scene.count("refused").await, refused + 4);
}

/// Programs that are told of a root and of nothing else.
async fn real_clients_know_nothing(scene: &Scene) {
    let folder = scene.folder.path().join("clients");
    std::fs::create_dir(&folder).expect("our folder");
    let roots = Roots::new(&folder, scene.root_pem()).await;
    for client in CLIENTS.iter().filter(|client| client.goes(true)) {
        let Some(program) = client.program().await else { continue };
        for (path, want) in client.asks() {
            let before = scene.provider.count();
            let (words, env) = client.told(&format!("https://{HOST}{path}"), &scene.key, None, &roots);
            // An interpreter may lie in root's home, and root is redirected too.
            let plain = ["curl", "wget", "git"].iter().any(|name| program == Path::new(name));
            let (user, home) = if plain { (APP, Path::new("/tmp")) } else { (0, &*folder) };
            let mut command = scene.app.command(user, &program);
            command.args(words).env_clear().current_dir("/").stdin(Stdio::null());
            command.env("PATH", std::env::var_os("PATH").unwrap_or_default()).env("HOME", home).envs(env);
            let output = command.output().expect("nsenter runs");
            let got = output.status.success() && text(&output.stdout).contains(&want);
            assert!(got, "{} {path}: {}", client.name, said(&output));
            assert_eq!(scene.provider.count(), before + 1, "{} {path}", client.name);
            let authorization = format!("Bearer {REAL_KEY}");
            assert_eq!(scene.provider.last().header("authorization"), Some(&*authorization), "{} {path}", client.name);
        }
    }
}

/// The SDKs as their users write them.
async fn sdks_know_nothing(scene: &Scene) {
    let Some(python) = sdk::python().await else { return };
    let before = scene.provider.count();
    let folder = scene.folder.path().join("bytecode");
    let mut command = scene.app.command(0, &python);
    command.args(["-c", clients::SDKS]).env_clear().current_dir("/").stdin(Stdio::null());
    command.env("HOME", folder).env("SSL_CERT_FILE", scene.root_pem());
    command.env("PATH", std::env::var_os("PATH").unwrap_or_default());
    for name in ["OPENAI_API_KEY", "ANTHROPIC_API_KEY", "GEMINI_API_KEY"] {
        command.env(name, &scene.key);
    }
    let output = command.output().expect("nsenter runs");
    for name in ["openai", "anthropic", "google"] {
        assert!(said(&output).contains(&format!("{name} {}", sdk::HELLO)), "{}", said(&output));
    }
    let seen = scene.provider.seen().split_off(before);
    assert!(seen.len() == 3 && seen.iter().all(|seen| seen.contains(REAL_KEY) && !seen.contains(&scene.key)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_its_exemption_it_meets_itself_once_and_says_so() {
    for backend in ["nft", "iptables"] {
        if !possible(&format!("a missing exemption, by {backend}"), &[backend]) {
            continue;
        }
        let scene = Scene::new(backend, 4242);
        let status = scene.status("failing", |status| status["failing"].to_string().contains("redirected to itself"));
        assert!(status["failing"].to_string().contains(&format!("sidekey redirect install --uid {OWN}")), "{status}");
        // Its test of that would count among them, were it not let pass.
        scene.let_tests_pass(backend, true);
        scene.wait_until_ready();
        let (looped, tunnelled) = (scene.count("looped").await, scene.count("tunnelled").await);
        for n in 1..=10 {
            let to = STRANGERS[n % STRANGERS.len()];
            let mut stream = scene.dial_blocking(at(to, 443));
            let _ = stream.write_all(b"\0hello");
            assert!(matches!(stream.read(&mut [0; 64]), Ok(0) | Err(_)), "{backend}: {to}");
            // A connection is ended before it is counted.
            let n = n as u64;
            while scene.count("looped").await < looped + n {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            let (more, led) = (scene.count("looped").await - looped, scene.count("tunnelled").await - tunnelled);
            assert_eq!((led, more), (n, n), "{backend}, {to}: led on, and came back");
        }
        scene.let_tests_pass(backend, false);
        drop(scene.dial_blocking(at(STRANGERS[0], 443)));
        scene.status("failing", |status| status["failing"].to_string().contains("redirected to itself"));
        assert_eq!(scene.strangers.iter().map(Provider::connections).sum::<usize>(), 0, "{backend}");
        let pid = scene.status("there", |status| status["pid"].is_number())["pid"].as_u64().expect("a number");
        let open = std::fs::read_dir(format!("/proc/{pid}/fd")).expect("it runs").count();
        assert!(open < 100, "{backend}: {open} descriptors are open");

        // Said what is to be done, and done.
        let uid = OWN.to_string();
        let rules = scene.command(0, &["redirect", "install", "--uid", &uid, "--backend", backend]).output();
        assert!(rules.expect("nsenter runs").status.success());
        scene.wait_until_ready();
        let pid = Pid::from_raw(i32::try_from(pid).expect("small")).expect("not 0");
        kill_process(pid, Signal::TERM).expect("it runs");
    }
}
