//! What the ways in cost beside the reverse one: `cargo bench --bench connect`.
//!
//! The real binary, and this program as client, provider and far end. Read the ratios; the figures are the machine's.
//! Nothing is asserted about time.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a program whose output is its purpose")]
#![expect(clippy::disallowed_methods, reason = "the fences are the program's, not its benches'")]

use std::net::SocketAddr;
use std::path::Path;
use std::process::{ExitCode, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::{Child, Command};

const REQUESTS: usize = 5_000;
const BYTES: u64 = 4 << 30;
const TUNNELS: usize = 5_000;
const STREAMS: usize = 2_000;
const BODY: &str = r#"{"model":"gpt-4o-mini","messages":[{"role":"user","content":"hi"}]}"#;
const HOST: &str = "api.openai.com";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let done = runtime.map_err(Into::into).and_then(|runtime| match args.first().map(String::as_str) {
        Some("bare") => runtime.block_on(bare(args.get(1).context("where to?")?.parse()?)),
        _ if !args.iter().any(|arg| arg == "--bench") => Ok(()),
        _ => runtime.block_on(run()),
    });
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("connect: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The least a tunnel can be: one connection after another, joined with `to`.
async fn bare(to: SocketAddr) -> Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    println!("{}", listener.local_addr()?);
    loop {
        let (mut client, _) = listener.accept().await?;
        tokio::spawn(async move {
            let mut there = TcpStream::connect(to).await?;
            client.set_nodelay(true)?;
            there.set_nodelay(true)?;
            tokio::io::copy_bidirectional(&mut client, &mut there).await
        });
    }
}

async fn run() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let (provider, sink) = (listen(provide).await?, listen(swallow).await?);
    let sidekey = Sidekey::start(folder.path(), provider, sink.port()).await?;
    latency(&sidekey).await?;
    tunnel_cpu(&sidekey, sink).await?;
    held(&sidekey, sink).await
}

/// Serves each connection of a free port with `serve`.
async fn listen<F: Future<Output = std::io::Result<()>> + Send + 'static>(
    serve: fn(TcpStream) -> F,
) -> Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let addr = listener.local_addr()?;
    tokio::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            let _ = tcp.set_nodelay(true);
            tokio::spawn(serve(tcp));
        }
    });
    Ok(addr)
}

/// A provider that answers at once, but for streams, which it begins and never ends.
async fn provide(mut tcp: TcpStream) -> std::io::Result<()> {
    let answer =
        r#"{"model":"gpt-4o-mini","choices":[],"usage":{"prompt_tokens":1,"completion_tokens":2,"total_tokens":3}}"#;
    let whole = format!(
        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{answer}",
        answer.len()
    );
    let begun =
        "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n8\r\ndata: 1\n\r\n";
    let mut got = Vec::new();
    loop {
        if tcp.read_buf(&mut got).await? == 0 {
            return Ok(());
        }
        if got.ends_with(b"}") {
            let stream = memchr::memmem::find(&got, b"\"stream\":true").is_some();
            tcp.write_all(if stream { begun } else { &whole }.as_bytes()).await?;
            got.clear();
        }
    }
}

async fn swallow(mut tcp: TcpStream) -> std::io::Result<()> {
    let mut buffer = vec![0; 256 * 1024];
    while tcp.read(&mut buffer).await? > 0 {}
    tcp.shutdown().await
}

struct Sidekey {
    child: Child,
    proxy: SocketAddr,
    key: String,
    tls: tokio_rustls::TlsConnector,
}

impl Sidekey {
    async fn start(folder: &Path, provider: SocketAddr, port: u16) -> Result<Self> {
        let config = format!(
            "[listen]\nproxy = \"127.0.0.1:0\"\nadmin = \"off\"\ntelemetry = \"127.0.0.1:0\"\n[connect]\nallow_private = true\nports = [{port}]\n\
             [providers.openai]\nbase_url = \"http://{provider}\"\n"
        );
        std::fs::write(folder.join("sidekey.toml"), config)?;
        let command = |words: &[&str]| {
            let mut command = Command::new(env!("CARGO_BIN_EXE_sidekey"));
            command.args(words).env_clear().env("HOME", folder).env("SIDEKEY_DATA_DIR", folder.join("data"));
            command.env("SIDEKEY_CONFIG", folder.join("sidekey.toml")).env("OPENAI_API_KEY", "sk-real-for-the-bench");
            command.stdin(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
            command
        };
        ensure!(command(&["init"]).output().await?.status.success(), "init");
        let made = command(&["key", "create", "--name", "bench", "-o", "json"]).output().await?;
        let made: serde_json::Value = serde_json::from_slice(&made.stdout).context("no key")?;
        let child = command(&["run"]).stdout(Stdio::null()).spawn()?;
        let mut proxy = None;
        for _ in 0..200 {
            tokio::time::sleep(Duration::from_millis(50)).await;
            let Ok(text) = std::fs::read(folder.join("data/run.json")) else { continue };
            let run: serde_json::Value = serde_json::from_slice(&text)?;
            proxy = run["proxy"].as_str().and_then(|proxy| proxy.parse().ok());
            break;
        }
        let mut roots = rustls::RootCertStore::empty();
        for root in CertificateDer::pem_file_iter(folder.join("data/ca/root.pem"))? {
            roots.add(root?)?;
        }
        let crypto = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(crypto).with_safe_default_protocol_versions()?;
        let tls = Arc::new(config.with_root_certificates(roots).with_no_client_auth()).into();
        let key = made["key"].as_str().context("no key")?.to_owned();
        Ok(Self { child, proxy: proxy.context("sidekey is not ready")?, key, tls })
    }

    async fn tunnel(&self, target: &str) -> Result<TcpStream> {
        let mut tcp = TcpStream::connect(self.proxy).await?;
        tcp.set_nodelay(true)?;
        tcp.write_all(format!("CONNECT {target} HTTP/1.1\r\nhost: {target}\r\n\r\n").as_bytes()).await?;
        let head = read_head(&mut tcp).await?;
        ensure!(head.starts_with(b"HTTP/1.1 200"), "{target}: {}", String::from_utf8_lossy(&head));
        Ok(tcp)
    }

    async fn inside(&self) -> Result<tokio_rustls::client::TlsStream<TcpStream>> {
        let tcp = self.tunnel(&format!("{HOST}:443")).await?;
        Ok(self.tls.connect(ServerName::try_from(HOST)?, tcp).await?)
    }

    fn request(&self, path: &str, body: &str) -> Vec<u8> {
        let head = format!("POST {path} HTTP/1.1\r\nhost: {HOST}\r\nauthorization: Bearer {}\r\n", self.key);
        format!("{head}content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}", body.len()).into_bytes()
    }

    fn pid(&self) -> Result<u32> {
        self.child.id().context("sidekey has ended")
    }
}

async fn read_head(io: &mut (impl AsyncRead + Unpin)) -> Result<Vec<u8>> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(io.read_u8().await?);
    }
    Ok(head)
}

/// Requests one after the other on a kept connection; microseconds of each.
async fn ask(io: &mut (impl AsyncRead + AsyncWrite + Unpin), request: &[u8]) -> Result<Vec<f64>> {
    let mut took = Vec::with_capacity(REQUESTS);
    let mut got = Vec::with_capacity(4096);
    for _ in 0..REQUESTS {
        let began = Instant::now();
        io.write_all(request).await?;
        io.flush().await?;
        got.clear();
        while !got.ends_with(b"}}") {
            ensure!(io.read_buf(&mut got).await? > 0, "the connection ended");
        }
        took.push(began.elapsed().as_secs_f64() * 1e6);
    }
    ensure!(got.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&got));
    took.sort_by(f64::total_cmp);
    Ok(took)
}

/// Rounds in turns, so that both meet the same machine.
async fn latency(sidekey: &Sidekey) -> Result<()> {
    let mut reverse = TcpStream::connect(sidekey.proxy).await?;
    reverse.set_nodelay(true)?;
    let mut inside = sidekey.inside().await?;
    let (bare, own) =
        (sidekey.request("/openai/v1/chat/completions", BODY), sidekey.request("/v1/chat/completions", BODY));
    let mut rows = Vec::new();
    for _ in 0..3 {
        let (there, here) = (ask(&mut reverse, &bare).await?, ask(&mut inside, &own).await?);
        let at = |took: &[f64], part: usize| took[took.len() * part / 100];
        rows.push((at(&there, 50), at(&here, 50), at(&there, 99), at(&here, 99)));
    }
    rows.sort_by(|a, b| (a.1 - a.0).total_cmp(&(b.1 - b.0)));
    let (reverse_50, inside_50, reverse_99, inside_99) = rows[1];
    println!("kept connection, one request at a time, of {REQUESTS}: median of 3 rounds");
    println!("  p50 reverse {reverse_50:.0} us, intercepted {inside_50:.0} us: {:+.0} us", inside_50 - reverse_50);
    println!("  p99 reverse {reverse_99:.0} us, intercepted {inside_99:.0} us");
    let began = Instant::now();
    for _ in 0..200 {
        drop(sidekey.inside().await?);
    }
    println!("  a new intercepted connection, TLS resumed: {:.0} us", began.elapsed().as_secs_f64() * 1e6 / 200.0);
    Ok(())
}

/// CPU seconds of a process so far.
fn cpu(pid: u32) -> Result<f64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let fields: Vec<&str> = text.rsplit_once(')').context("stat")?.1.split_whitespace().collect();
    let ticks = fields[11].parse::<u64>()? + fields[12].parse::<u64>()?;
    Ok(Duration::from_millis(ticks * 10).as_secs_f64())
}

async fn pour(mut tcp: TcpStream) -> Result<()> {
    let piece = vec![7; 256 * 1024];
    let mut left = BYTES;
    while left > 0 {
        tcp.write_all(&piece).await?;
        left = left.saturating_sub(piece.len() as u64);
    }
    tcp.shutdown().await?;
    ensure!(tcp.read(&mut [0]).await? == 0, "the far end says nothing");
    Ok(())
}

async fn tunnel_cpu(sidekey: &Sidekey, sink: SocketAddr) -> Result<()> {
    let mut bare = Command::new(std::env::current_exe()?)
        .args(["bare", &sink.to_string()])
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let mut line = Vec::new();
    let mut out = bare.stdout.take().context("no output")?;
    while !line.ends_with(b"\n") {
        line.push(out.read_u8().await?);
    }
    let addr: SocketAddr = String::from_utf8(line)?.trim().parse()?;
    let (bare_pid, pid) = (bare.id().context("it has ended")?, sidekey.pid()?);
    let mut ratios = Vec::new();
    for _ in 0..3 {
        let before = cpu(bare_pid)?;
        pour(TcpStream::connect(addr).await?).await?;
        let least = cpu(bare_pid)? - before;
        let before = cpu(pid)?;
        pour(sidekey.tunnel(&sink.to_string()).await?).await?;
        let ours = cpu(pid)? - before;
        ratios.push((ours / least, least, ours));
    }
    ratios.sort_by(|a, b| a.0.total_cmp(&b.0));
    let (ratio, least, ours) = ratios[1];
    println!("a tunnel of {} MB: median of 3 rounds", BYTES >> 20);
    println!("  CPU copy_bidirectional {least:.2} s, sidekey {ours:.2} s: {ratio:.2}");
    Ok(())
}

/// Resident bytes and open files of a process.
fn footprint(pid: u32) -> Result<(u64, usize)> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    let kib: u64 = line.trim().trim_end_matches(" kB").trim().parse()?;
    Ok((kib * 1024, std::fs::read_dir(format!("/proc/{pid}/fd"))?.count()))
}

async fn held(sidekey: &Sidekey, sink: SocketAddr) -> Result<()> {
    let pid = sidekey.pid()?;
    let report = |what: &str, count: usize, before: (u64, usize)| -> Result<()> {
        let (bytes, files) = footprint(pid)?;
        let each = bytes.saturating_sub(before.0) as f64 / count as f64 / 1024.0;
        println!("{count} {what}: {each:.1} KB each, {} files", files - before.1);
        Ok(())
    };
    let before = footprint(pid)?;
    let mut tunnels = Vec::with_capacity(TUNNELS);
    for _ in 0..TUNNELS {
        tunnels.push(sidekey.tunnel(&sink.to_string()).await?);
    }
    report("idle tunnels", TUNNELS, before)?;
    drop(tunnels);
    tokio::time::sleep(Duration::from_secs(2)).await;
    let between = footprint(pid)?;
    println!("  before: {} files, afterwards {}", before.1, between.1);
    let request = sidekey.request("/v1/chat/completions", &BODY.replace("{\"model\"", "{\"stream\":true,\"model\""));
    let mut streams = Vec::with_capacity(STREAMS);
    for _ in 0..STREAMS {
        let mut tls = sidekey.inside().await?;
        tls.write_all(&request).await?;
        tls.flush().await?;
        let head = read_head(&mut tls).await?;
        ensure!(head.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&head));
        streams.push(tls);
    }
    report("intercepted streams held", STREAMS, between)?;
    drop(streams);
    tokio::time::sleep(Duration::from_secs(2)).await;
    let (bytes, files) = footprint(pid)?;
    println!("  before: {} files, afterwards {files}; {:.1} MB resident", before.1, bytes as f64 / 1e6);
    Ok(())
}
