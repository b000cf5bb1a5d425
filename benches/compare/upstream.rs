//! The scripted upstream: one thread, answers prepared in advance, does what the request's script says.

use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use anyhow::Result;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{LocalSet, spawn_local};
use tokio::time::MissedTickBehavior;

use crate::plan::{self, REAL_KEY, SCRIPT, Script};
use crate::{probe, wire};

pub(crate) fn run(listen: &SocketAddr) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    LocalSet::new().block_on(&runtime, serve(*listen))
}

struct Answers {
    json: Vec<u8>,
    unauthorised: Vec<u8>,
    authorization: String,
}

async fn serve(listen: SocketAddr) -> Result<()> {
    let listener = TcpListener::bind(listen).await?;
    let answers = Rc::new(Answers {
        json: plan::json_answer(),
        unauthorised: plan::answer("401 Unauthorized", r#"{"error":{"code":"invalid_api_key"}}"#),
        authorization: format!("Bearer {REAL_KEY}"),
    });
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let answers = Rc::clone(&answers);
        // A peer that goes away is part of the load.
        spawn_local(async move { drop(connection(stream, &answers).await) });
    }
}

async fn connection(mut stream: TcpStream, answers: &Answers) -> Result<()> {
    let mut buffer = Vec::with_capacity(16 * 1024);
    while let Some(head) = wire::read_message(&mut stream, &mut buffer).await? {
        let head = &buffer[..head];
        if wire::header(head, "authorization") != Some(&answers.authorization) {
            stream.write_all(&answers.unauthorised).await?;
            continue;
        }
        match wire::header(head, SCRIPT).and_then(Script::parse).unwrap_or(Script::Json) {
            Script::Json => stream.write_all(&answers.json).await?,
            Script::Burst { events } => burst(&mut stream, events).await?,
            Script::Paced { events, every_ms } => paced(&mut stream, events, every_ms).await?,
            Script::Idle => return idle(&mut stream).await,
        }
    }
    Ok(())
}

async fn burst(stream: &mut TcpStream, events: usize) -> Result<()> {
    let mut out = plan::STREAM_HEAD.to_vec();
    let now = probe::monotonic_ns();
    (0..events).for_each(|_| plan::event(now, &mut out));
    plan::stream_end(&mut out);
    Ok(stream.write_all(&out).await?)
}

async fn paced(stream: &mut TcpStream, events: usize, every_ms: u64) -> Result<()> {
    stream.write_all(plan::STREAM_HEAD).await?;
    let mut ticks = tokio::time::interval(Duration::from_millis(every_ms));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut out = Vec::new();
    for _ in 0..events {
        ticks.tick().await;
        out.clear();
        plan::event(probe::monotonic_ns(), &mut out);
        stream.write_all(&out).await?;
    }
    out.clear();
    plan::stream_end(&mut out);
    Ok(stream.write_all(&out).await?)
}

async fn idle(stream: &mut TcpStream) -> Result<()> {
    let mut out = plan::STREAM_HEAD.to_vec();
    plan::event(probe::monotonic_ns(), &mut out);
    stream.write_all(&out).await?;
    while stream.read(&mut [0; 64]).await? > 0 {}
    Ok(())
}
