//! Programs as they are, told of sidekey by their environment alone: they are served, and none of them believes a leaf
//! for a host that is no provider's, whoever holds the CA's key.

use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::sync::Arc;
use std::time::Duration;

use sidekey::clock::Clock;
use sidekey::net::ca::{Ca, Generation, pem};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;
use tokio::process::Command;
use tokio::time::timeout;

use crate::sdk;
use crate::support::provider::Provider;
use crate::support::script::Message;
use crate::support::sidekey::{Options, REAL_KEY, Sidekey};
use crate::support::tunnel;
use crate::upstream_proxy::Corporate;

const MODELS: &str = r#"{"object":"list","data":[]}"#;

/// A client: the program it needs, its words, and the variables by which it is told. `URL`, `KEY`, `HOST`, `PORT`, `ROOT`
/// and `P12` stand for what is known later.
struct Client {
    name: &'static str,
    words: &'static [&'static str],
    env: &'static [(&'static str, &'static str)],
}

const URLLIB: &str = "import sys,urllib.request as u;print(u.urlopen(u.Request(sys.argv[1],headers={'Authorization':'Bearer '+sys.argv[2]}),timeout=60).read().decode())";
const NODE: &str = "const [url,key]=process.argv.slice(1),u=new URL(url),p=new URL(process.env.HTTPS_PROXY);\
    require('http').request({host:p.hostname,port:p.port,method:'CONNECT',path:u.hostname+':443'}).on('connect',(r,socket)=>\
    require('https').get({host:u.hostname,path:u.pathname,socket,agent:false,servername:u.hostname,\
    headers:{authorization:'Bearer '+key}},a=>a.pipe(process.stdout))).end()";

const PROXY: (&str, &str) = ("HTTPS_PROXY", "http://127.0.0.1:PORT");

const CLIENTS: &[Client] = &[
    Client {
        name: "curl, HTTP/2",
        words: &["curl", "-sS", "-f", "--http2", "-H", "Authorization: Bearer KEY", "URL"],
        env: &[PROXY, ("CURL_CA_BUNDLE", "ROOT")],
    },
    Client {
        name: "curl, HTTP/1.1",
        words: &["curl", "-sS", "-f", "--http1.1", "-H", "Authorization: Bearer KEY", "URL"],
        env: &[PROXY, ("SSL_CERT_FILE", "ROOT")],
    },
    Client {
        name: "wget",
        words: &["wget", "-q", "-O-", "--ca-certificate=ROOT", "--header=Authorization: Bearer KEY", "URL"],
        env: &[("https_proxy", "http://127.0.0.1:PORT")],
    },
    Client {
        name: "python, urllib",
        words: &["python3", "-c", URLLIB, "URL", "KEY"],
        env: &[PROXY, ("SSL_CERT_FILE", "ROOT")],
    },
    Client {
        name: "node, https",
        words: &["node", "-e", NODE, "URL", "KEY"],
        env: &[PROXY, ("NODE_EXTRA_CA_CERTS", "ROOT")],
    },
    Client {
        name: "java, HttpClient",
        words: &[
            "java",
            "-Dhttps.proxyHost=127.0.0.1",
            "-Dhttps.proxyPort=PORT",
            "-Djavax.net.ssl.trustStore=P12",
            "-Djavax.net.ssl.trustStorePassword=changeit",
            "tests/sdk/java/Get.java",
            "URL",
            "KEY",
        ],
        env: &[],
    },
];

impl Client {
    async fn is_there(&self) -> bool {
        let program = self.words[0];
        let found = Command::new("sh").args(["-c", &format!("command -v {program}")]).output().await;
        let found = found.is_ok_and(|output| output.status.success());
        if !found {
            eprintln!("SKIPPED: {program} is missing; not tried: {}", self.name);
        }
        found
    }

    /// Its answer, with nothing in its environment but what it is told.
    async fn get(&self, url: &str, key: &str, port: u16, roots: &Roots) -> Output {
        let fill = |text: &str| {
            text.replace("URL", url)
                .replace("KEY", key)
                .replace("PORT", &port.to_string())
                .replace("ROOT", &roots.pem.display().to_string())
                .replace("P12", &roots.p12.display().to_string())
        };
        // The script of node holds none of these words but in lower case.
        let words: Vec<String> = self
            .words
            .iter()
            .map(|word| if word.contains('\n') || *word == NODE { (*word).to_owned() } else { fill(word) })
            .collect();
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).env_clear().current_dir(env!("CARGO_MANIFEST_DIR")).stdin(Stdio::null());
        for name in ["PATH", "HOME"] {
            command.envs(std::env::var_os(name).map(|value| (name, value)));
        }
        command.envs(self.env.iter().map(|(name, value)| (*name, fill(value)))).kill_on_drop(true);
        let output = timeout(Duration::from_secs(120), command.output()).await;
        output.unwrap_or_else(|_| panic!("{} does not end", self.name)).expect("the program runs")
    }
}

/// One root in the forms that clients read.
struct Roots {
    pem: PathBuf,
    p12: PathBuf,
}

impl Roots {
    /// In `folder`, of this PEM; the keystore needs Java's own tool, and is not there without.
    async fn new(folder: &Path, pem: PathBuf) -> Self {
        let p12 = folder.join("root.p12");
        let words = ["-importcert", "-noprompt", "-alias", "sidekey", "-storetype", "PKCS12", "-storepass", "changeit"];
        let mut keytool = Command::new("keytool");
        keytool.args(words).arg("-file").arg(&pem).arg("-keystore").arg(&p12);
        drop(keytool.output().await);
        Self { pem, p12 }
    }
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&[&output.stdout[..], &output.stderr].concat()).into_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn programs_are_served_as_they_are() {
    let provider = Provider::always(Message::json(200, MODELS)).await;
    let sidekey = Sidekey::with("openai", &provider.url()).await;
    let key = sidekey.create_key(&[]).await.key;
    let roots = Roots::new(sidekey.folder(), sidekey.root_pem()).await;
    for client in CLIENTS {
        if !client.is_there().await {
            continue;
        }
        let before = provider.count();
        let output = client.get("https://api.openai.com/v1/models", &key, sidekey.proxy.port(), &roots).await;
        assert!(output.status.success() && said(&output).contains(MODELS), "{}: {}", client.name, said(&output));
        assert_eq!(provider.count(), before + 1, "{}", client.name);
        let authorization = provider.last().header("authorization").map(str::to_owned);
        assert_eq!(authorization, Some(format!("Bearer {REAL_KEY}")), "{}", client.name);
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
    for client in CLIENTS {
        if !client.is_there().await {
            continue;
        }
        for (host, believed) in [("api.openai.com", true), ("evil.example", false)] {
            let server = serve(&thief, host).await;
            let corporate = Corporate::start(server, "200 OK").await;
            let output = client.get(&format!("https://{host}/"), "none", corporate.addr.port(), &roots).await;
            let got = output.status.success() && said(&output).contains("served by a thief");
            assert_eq!(got, believed, "{}: {host}: {}", client.name, said(&output));
        }
    }
}

/// A server that has a leaf of `ca` for `host`.
async fn serve(ca: &Ca, host: &str) -> std::net::SocketAddr {
    let mut config = Arc::unwrap_or_clone(ca.server_config(host).expect("it signs"));
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let addr = listener.local_addr().expect("a bound address");
    tokio::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let Ok(mut tls) = acceptor.accept(tcp).await else { return };
                tunnel::head_of(&mut tls).await;
                let body = "served by a thief";
                let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", body.len());
                drop(tls.write_all(format!("{head}{body}").as_bytes()).await);
                drop(tls.shutdown().await);
            });
        }
    });
    addr
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
