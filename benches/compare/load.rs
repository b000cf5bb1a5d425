//! The load generator: one thread, many connections, prints its outcome as one line of JSON.

use std::cell::{Cell, RefCell};
use std::io::Read;
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::{JoinSet, LocalSet};

use crate::plan::{self, Outcome, Plan, Script, Target, Work};
use crate::wire::{self, Chunks};
use crate::{paced, probe};

/// Not counted: pools fill and branches are learned.
const WARM_UP: Duration = Duration::from_millis(300);
/// How many connections are opened at the same time, so that no accept queue overflows.
const OPENING: usize = 64;

pub(crate) fn run(plan: &Plan) -> Result<()> {
    let outcome = match plan.work {
        Work::Paced { rate, ms } => paced::run(&plan.target, rate, Duration::from_millis(ms))?,
        _ => {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            LocalSet::new().block_on(&runtime, work(plan))?
        }
    };
    // Idle streams have printed theirs while they were open.
    if !matches!(plan.work, Work::Idle { .. }) {
        println!("{}", serde_json::to_string(&outcome)?);
    }
    Ok(())
}

async fn work(plan: &Plan) -> Result<Outcome> {
    match plan.work {
        Work::Throughput { connections, body, ms } => {
            throughput(&plan.target, connections, body, Duration::from_millis(ms)).await
        }
        Work::Streams { streams, events, every_ms } => paced_streams(&plan.target, streams, events, every_ms).await,
        Work::Burst { streams, events } => bursts(&plan.target, streams, events).await,
        Work::Idle { streams } => idle(&plan.target, streams).await,
        Work::Paced { .. } => bail!("paced requests run on threads"),
    }
}

async fn connect(target: &Target) -> Result<TcpStream> {
    let stream = TcpStream::connect(target.addr).await.context("connecting")?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

async fn throughput(target: &Target, connections: usize, body: usize, time: Duration) -> Result<Outcome> {
    let request: Rc<[u8]> = plan::request(target, Script::Json, body).into();
    let start = probe::monotonic_ns() + u64::try_from(WARM_UP.as_nanos())?;
    let end = start + u64::try_from(time.as_nanos())?;
    let (all, counted) = (Rc::new(Cell::new(0_u32)), Rc::new(Cell::new(0_u32)));
    let mut tasks = JoinSet::new();
    for _ in 0..connections {
        let mut stream = connect(target).await?;
        let (request, all, counted) = (Rc::clone(&request), Rc::clone(&all), Rc::clone(&counted));
        tasks.spawn_local(async move {
            let mut buffer = Vec::with_capacity(16 * 1024);
            loop {
                stream.write_all(&request).await?;
                expect_ok(&mut stream, &mut buffer).await?;
                let now = probe::monotonic_ns();
                all.set(all.get() + 1);
                if now >= end {
                    return Ok(());
                }
                counted.set(counted.get() + u32::from(now >= start));
            }
        });
    }
    finish(tasks).await?;
    let rps = f64::from(counted.get()) / time.as_secs_f64();
    Ok(Outcome::from([("rps".to_owned(), rps), ("requests".to_owned(), f64::from(all.get()))]))
}

async fn finish(mut tasks: JoinSet<Result<()>>) -> Result<()> {
    while let Some(done) = tasks.join_next().await {
        done??;
    }
    Ok(())
}

async fn expect_ok(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> Result<()> {
    let head = wire::read_message(stream, buffer).await?.context("the connection ended")?;
    ensure!(wire::status(buffer) == Some(200), "answer: {}", String::from_utf8_lossy(&buffer[..head]));
    Ok(())
}

/// Sends a request for a stream and reads the head of its answer; gives what came behind it.
async fn open_stream(stream: &mut TcpStream, request: &[u8]) -> Result<Vec<u8>> {
    stream.write_all(request).await?;
    let mut buffer = Vec::with_capacity(4 * 1024);
    loop {
        if let Some(head) = wire::head_end(&buffer) {
            ensure!(wire::status(&buffer) == Some(200), "answer: {}", String::from_utf8_lossy(&buffer));
            return Ok(buffer.split_off(head));
        }
        ensure!(stream.read_buf(&mut buffer).await? > 0, "the connection ended inside a head");
    }
}

/// Reads a stream to its end. Gives each event's delay in nanoseconds to `each`.
async fn read_events(stream: &mut TcpStream, mut raw: Vec<u8>, each: &mut impl FnMut(u64)) -> Result<()> {
    let (mut chunks, mut body) = (Chunks::default(), Vec::new());
    loop {
        let now = probe::monotonic_ns();
        let done = chunks.decode(&raw, &mut body)?;
        wire::take_event_times(&mut body, |sent| each(now.saturating_sub(sent)));
        if done {
            return Ok(());
        }
        raw.clear();
        ensure!(stream.read_buf(&mut raw).await? > 0, "the connection ended inside a stream");
    }
}

async fn paced_streams(target: &Target, streams: usize, events: usize, every_ms: u64) -> Result<Outcome> {
    let request: Rc<[u8]> = plan::request(target, Script::Paced { events, every_ms }, 1_024).into();
    let (delays, firsts) = (Rc::new(RefCell::new(Vec::new())), Rc::new(RefCell::new(Vec::new())));
    let mut tasks = JoinSet::new();
    let gap = Duration::from_micros(every_ms * 1_000 / u64::try_from(streams)?);
    for _ in 0..streams {
        let mut stream = connect(target).await?;
        let (request, delays, firsts) = (Rc::clone(&request), Rc::clone(&delays), Rc::clone(&firsts));
        tasks.spawn_local(async move {
            let sent = probe::monotonic_ns();
            let rest = open_stream(&mut stream, &request).await?;
            firsts.borrow_mut().push(probe::monotonic_ns() - sent);
            read_events(&mut stream, rest, &mut |delay| delays.borrow_mut().push(delay)).await
        });
        tokio::time::sleep(gap).await;
    }
    finish(tasks).await?;
    let (mut delays, mut firsts) = (delays.take(), firsts.take());
    ensure!(delays.len() == streams * events, "{} of {} events arrived", delays.len(), streams * events);
    Ok(Outcome::from([
        ("events".to_owned(), delays.len() as f64),
        ("p50_us".to_owned(), probe::percentile_us(&mut delays, 50)),
        ("p99_us".to_owned(), probe::percentile_us(&mut delays, 99)),
        ("ttfb_us".to_owned(), probe::percentile_us(&mut firsts, 50)),
    ]))
}

async fn bursts(target: &Target, streams: usize, events: usize) -> Result<Outcome> {
    let request = plan::request(target, Script::Burst { events }, 1_024);
    let mut stream = connect(target).await?;
    let mut count = 0_u32;
    for _ in 0..streams {
        let rest = open_stream(&mut stream, &request).await?;
        read_events(&mut stream, rest, &mut |_| count += 1).await?;
    }
    ensure!(usize::try_from(count)? == streams * events, "{count} of {} events arrived", streams * events);
    Ok(Outcome::from([("events".to_owned(), f64::from(count))]))
}

/// Prints the outcome when all are open, for others to measure meanwhile; returns when standard input ends.
async fn idle(target: &Target, streams: usize) -> Result<Outcome> {
    let request: Rc<[u8]> = plan::request(target, Script::Idle, 1_024).into();
    let open = Rc::new(RefCell::new(Vec::with_capacity(streams)));
    let mut tasks = JoinSet::new();
    for index in 0..streams {
        let (target, request, open) = (target.clone(), Rc::clone(&request), Rc::clone(&open));
        tasks.spawn_local(async move {
            let mut stream = connect(&target).await?;
            let mut first = open_stream(&mut stream, &request).await?;
            while first.is_empty() {
                ensure!(stream.read_buf(&mut first).await? > 0, "the connection ended before the first event");
            }
            open.borrow_mut().push(stream);
            Ok(())
        });
        if index % OPENING == OPENING - 1 {
            finish(std::mem::take(&mut tasks)).await?;
        }
    }
    finish(tasks).await?;
    let outcome = Outcome::from([("open".to_owned(), open.borrow().len() as f64)]);
    println!("{}", serde_json::to_string(&outcome)?);
    std::io::stdin().read_to_end(&mut Vec::new())?;
    Ok(outcome)
}
