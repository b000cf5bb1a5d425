//! `sidekey demo`: a pretend provider, a sidekey and an app, all in this process, on a store that is thrown away.
//!
//! Owns the story that is told; everything in it is the program's own doing: the same proxy, store and admin API.

mod pretend;

use std::collections::BTreeMap;
use std::io::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE, HOST};
use http::{HeaderValue, Method, Request};
use http_body_util::BodyExt;
use serde_json::{Value, json};

use crate::app::{Listen, Running};
use crate::cli::client::AdminClient;
use crate::cli::failure::{Exit, Failure};
use crate::cli::out::Out;
use crate::clock::Clock;
use crate::config::{Config, Environment, Loaded};
use crate::id::KeyId;
use crate::net::body::{Chunks, Outgoing};
use crate::net::dial::{Origin, Reach};
use crate::net::tls::TlsClient;
use crate::net::upstream::Pool;
use crate::provider::ProviderSection;
use crate::secret::Secret;
use pretend::Pretend;

const PATH: &str = "/openai/v1/chat/completions";
const MODEL: &str = "gpt-4o-mini";

/// Runs it; without `once` it stays up until interrupted.
///
/// # Errors
/// When a part of it does not start, or the story does not go as told.
pub(super) fn run(loaded: Loaded, once: bool, out: Out) -> Result<(), Failure> {
    let folder = Folder::new()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let pretend = runtime.block_on(Pretend::start())?;
    let loaded = throwaway(loaded, &folder.0, pretend.address);
    prepare(&loaded)?;
    let free = SocketAddr::from((std::net::Ipv4Addr::LOCALHOST, 0));
    let listen = Listen { proxy: free, telemetry: None, transparent: None, admin: None, admin_socket: None };
    // Its environment is empty: no real key of this machine takes part.
    let running = Running::start(&loaded, &Environment::from_pairs([]), &listen)?;
    let told = runtime.block_on(async {
        let stage = Stage { running: &running, pretend: &pretend, out };
        let key = stage.tell().await?;
        if !once {
            stage.stay(&key).await?;
        }
        Ok(())
    });
    running.stop();
    told
}

/// A configuration of its own: only the pretend provider.
fn throwaway(loaded: Loaded, folder: &Path, provider: SocketAddr) -> Loaded {
    let mut loaded = loaded;
    let section = ProviderSection { base_url: Some(format!("http://{provider}")), ..ProviderSection::default() };
    loaded.config = Config { providers: BTreeMap::from([("openai".to_owned(), section)]), ..Config::default() };
    loaded.places.data_dir = folder.join("data");
    loaded
}

/// Makes the store, as `init` does.
fn prepare(loaded: &Loaded) -> Result<(), Failure> {
    let registry = loaded.config.registry().map_err(crate::app::StartError::from)?;
    let metrics = crate::metrics::Metrics::default();
    let mut options = loaded.store_options(&Environment::from_pairs([]), &registry, Clock::system(), metrics);
    options.create = true;
    crate::storage::Store::open(options)?.close();
    Ok(())
}

/// A directory for the store, removed at the end.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Result<Self, Failure> {
        use std::os::unix::fs::DirBuilderExt;
        let name = KeyId::random().map_err(|error| Failure::new(Exit::Failure, error.to_string()))?;
        let path = std::env::temp_dir().join(format!("sidekey-demo-{name}"));
        std::fs::DirBuilder::new().mode(0o700).create(&path)?;
        Ok(Self(path))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // Left behind, it holds nothing of anybody's.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Everybody in the story.
struct Stage<'a> {
    running: &'a Running,
    pretend: &'a Pretend,
    out: Out,
}

impl Stage<'_> {
    /// The story; gives the virtual key.
    async fn tell(&self) -> Result<Secret, Failure> {
        let client = AdminClient::Local(self.running.admin());
        let proxy = self.running.listening().proxy;
        self.say("A pretend provider, sidekey and an app, all in this process. Nothing leaves this machine.\n\n")?;

        let real = pretend::REAL_KEY;
        let added = json!({"provider": "openai", "name": "main", "secret": real});
        client.post("/api/provider-keys", &added).await?;
        self.say(&format!("1  the real key is sealed in the store       {}\n", Secret::new(real.to_owned()).masked()))?;

        let wish =
            json!({"name": "demo-app", "user": "you", "models": ["gpt-4o*"], "limits": {"rpm": 60, "tpm": 100_000}});
        let made = client.post("/api/keys", &wish).await?.body;
        let key = Secret::new(made["key"].as_str().unwrap_or_default().to_owned());
        self.say(&format!("2  the app gets a virtual key                {}\n", key.expose()))?;
        self.say(
            "                                             models gpt-4o*, 60 requests and 100,000 tokens a minute\n",
        )?;

        self.say(&format!("3  the app asks                              POST http://{proxy}{PATH}\n"))?;
        self.say("   the answer streams                        ")?;
        let streamed = self.stream(proxy, &key).await?;
        let swapped = self.pretend.seen();
        let identical = streamed.bytes == pretend::stream();
        self.say(&format!("\n   the provider got                          authorization: {}\n", masked(&swapped)))?;
        self.say(&format!(
            "   the app got                               {} bytes in {} pieces, {} to what was sent\n",
            streamed.bytes.len(),
            streamed.pieces,
            if identical { "identical" } else { "NOT identical" },
        ))?;
        let entry = self.entry(&client, &streamed.request_id).await?;
        self.say(&ledger_lines(&entry))?;
        let known = swapped == format!("Bearer {real}") && identical;
        if known { Ok(key) } else { Err(Failure::new(Exit::Failure, "the demo did not go as it should")) }
    }

    /// Waits for an interrupt.
    async fn stay(&self, key: &Secret) -> Result<(), Failure> {
        let proxy = self.running.listening().proxy;
        self.say(&format!(
            "\nTry it yourself:\n\n  curl -N http://{proxy}{PATH} \\\n    -H 'Authorization: Bearer {}' -H 'Content-Type: \
             application/json' \\\n    -d '{{\"model\":\"{MODEL}\",\"stream\":true,\"messages\":[{{\"role\":\"user\",\
             \"content\":\"Hello\"}}]}}'\n\nCtrl-C ends it; nothing is kept.\n",
            key.expose()
        ))?;
        tokio::signal::ctrl_c().await?;
        Ok(())
    }

    fn say(&self, text: &str) -> Result<(), Failure> {
        self.out.text(text)?;
        Ok(std::io::stdout().flush()?)
    }

    /// The app's request, its answer printed as it comes.
    async fn stream(&self, proxy: SocketAddr, key: &Secret) -> Result<Streamed, Failure> {
        let origin = Origin {
            host: proxy.ip().to_string().into(),
            port: proxy.port(),
            tls: false,
            http2: false,
            reach: Reach::Any,
        };
        let failed = |error: String| Failure::new(Exit::Failure, error);
        let tls = TlsClient::new(None).map_err(|error| failed(error.to_string()))?;
        let pool = Arc::new(Pool::new(origin, tls.into(), Duration::from_secs(5), Clock::system()));
        let request = request(proxy, key)?;
        let response = pool.send(Box::new(request)).await.map_err(|error| failed(error.to_string()))?;
        let header = response.headers().get("x-sidekey-request-id").and_then(|value| value.to_str().ok());
        let mut streamed = Streamed { request_id: header.unwrap_or_default().to_owned(), bytes: Vec::new(), pieces: 0 };
        let mut body = response.into_body();
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| failed(error.to_string()))?;
            let Ok(data) = frame.into_data() else { continue };
            streamed.pieces += 1;
            self.say(&pretend::text_of(&data))?;
            streamed.bytes.extend_from_slice(&data);
        }
        Ok(streamed)
    }

    /// The request's entry, which is committed a moment after the answer.
    async fn entry(&self, client: &AdminClient, request_id: &str) -> Result<Value, Failure> {
        // Five seconds: a commit takes milliseconds.
        for _ in 0..1_000 {
            let page = client.get("/api/ledger?limit=10").await?.body;
            let found = page["entries"].as_array().into_iter().flatten().find(|one| one["request_id"] == request_id);
            if let Some(entry) = found {
                return Ok(entry.clone());
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Err(Failure::new(Exit::Failure, "the request is not in the ledger"))
    }
}

/// What the app got.
struct Streamed {
    request_id: String,
    bytes: Vec<u8>,
    pieces: usize,
}

fn request(proxy: SocketAddr, key: &Secret) -> Result<Request<Outgoing>, Failure> {
    let body = json!({
        "model": MODEL,
        "stream": true,
        "stream_options": {"include_usage": true},
        "messages": [{"role": "user", "content": "What does sidekey do?"}],
    });
    let bad = |error: http::header::InvalidHeaderValue| Failure::new(Exit::Failure, error.to_string());
    let mut request = Request::new(Outgoing::Held(Chunks::from(Bytes::from(body.to_string()))));
    *request.method_mut() = Method::POST;
    *request.uri_mut() = http::Uri::from_static(PATH);
    let headers = request.headers_mut();
    headers.insert(HOST, HeaderValue::try_from(proxy.to_string()).map_err(bad)?);
    headers.insert(AUTHORIZATION, HeaderValue::try_from(format!("Bearer {}", key.expose())).map_err(bad)?);
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    Ok(request)
}

/// The header the provider got, its key masked.
fn masked(header: &str) -> String {
    match header.strip_prefix("Bearer ") {
        Some(key) => format!("Bearer {}", Secret::new(key.to_owned()).masked()),
        None => "nothing".to_owned(),
    }
}

fn ledger_lines(entry: &Value) -> String {
    let tokens = &entry["tokens"];
    let word = |value: &Value| value.as_str().unwrap_or("-").to_owned();
    format!(
        "4  the ledger                                {} {}, user {}, paid by the {}'s key\n                                             \
         {} input and {} output tokens ({}), status {}, {}\n",
        word(&entry["provider"]),
        word(&entry["model_reported"]),
        word(&entry["user"]),
        word(&entry["key_source"]),
        tokens["input"],
        tokens["output"],
        word(&entry["tokens_source"]),
        entry["status"],
        word(&entry["outcome"]),
    )
}
