//! Requests at a steady rate, each timed by itself. Threads that sleep to the nanosecond and block, since a runtime's
//! timer ticks in milliseconds and would send in clumps.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::plan::{self, Outcome, Script, Target};
use crate::wire::Framing;
use crate::{probe, wire};

/// Few enough that their wake-ups do not disturb what they measure.
const THREADS: u64 = 4;

pub(crate) fn run(target: &Target, rate: u64, time: Duration) -> Result<Outcome> {
    let interval = Duration::from_nanos(1_000_000_000 * THREADS / rate);
    let count = rate * u64::try_from(time.as_millis())? / 1_000 / THREADS;
    let start = probe::monotonic_ns() + 50_000_000;
    let mut times = thread::scope(|scope| -> Result<Vec<u64>> {
        let work = |thread: u64| {
            let offset = interval * u32::try_from(thread)? / u32::try_from(THREADS)?;
            paced(target, start + u64::try_from(offset.as_nanos())?, interval, count)
        };
        let threads: Vec<_> = (0..THREADS).map(|thread| scope.spawn(move || work(thread))).collect();
        let mut times = Vec::new();
        for thread in threads {
            times.extend(thread.join().ok().context("a thread of the load died")??);
        }
        Ok(times)
    })?;
    Ok(Outcome::from([
        ("requests".to_owned(), times.len() as f64),
        ("p50_us".to_owned(), probe::percentile_us(&mut times, 50)),
        ("p99_us".to_owned(), probe::percentile_us(&mut times, 99)),
    ]))
}

fn paced(target: &Target, start: u64, interval: Duration, count: u64) -> Result<Vec<u64>> {
    let request = plan::request(target, Script::Json, 1_024);
    let mut stream = TcpStream::connect(target.addr)?;
    stream.set_nodelay(true)?;
    let step = u64::try_from(interval.as_nanos())?;
    let mut times = Vec::new();
    let mut buffer = vec![0; 16 * 1024];
    // The first opens connections on the way: not counted.
    exchange(&mut stream, &request, &mut buffer)?;
    for index in 0..count {
        let due = start + index * step;
        thread::sleep(Duration::from_nanos(due.saturating_sub(probe::monotonic_ns())));
        let sent = probe::monotonic_ns();
        exchange(&mut stream, &request, &mut buffer)?;
        times.push(probe::monotonic_ns() - sent);
    }
    Ok(times)
}

fn exchange(stream: &mut TcpStream, request: &[u8], buffer: &mut [u8]) -> Result<()> {
    stream.write_all(request)?;
    let mut filled = 0;
    loop {
        let read = stream.read(&mut buffer[filled..])?;
        ensure!(read > 0, "the connection ended, or the answer is larger than expected");
        filled += read;
        let Some(head) = wire::head_end(&buffer[..filled]) else { continue };
        ensure!(wire::status(buffer) == Some(200), "answer: {}", String::from_utf8_lossy(&buffer[..filled]));
        let Framing::Length(length) = wire::framing(&buffer[..head])? else {
            anyhow::bail!("an answer of known length lost it on the way");
        };
        if filled >= head + length {
            return Ok(());
        }
    }
}
