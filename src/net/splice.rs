//! Two connections joined blind: every byte passes, both ways, until both sides have ended.
//!
//! Owns copying and the half-close; leaves dialling to `dial`, and what is counted to the meter it is given. A tunnel
//! that is idle holds no buffer: bytes are read into one that all tunnels of a thread share, and only what the other
//! side does not take at once is kept, until it does.

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::net::drain::Watch;

/// One read's worth, and what a direction holds at most.
const BUFFER: usize = 32 * 1024;
/// Once sidekey is asked to stop, a tunnel over which nothing passes for so long has nothing to finish.
const QUIET: Duration = Duration::from_millis(if cfg!(test) { 200 } else { 2_000 });

/// A silent connection is asked this often whether it lives.
const KEEP_ALIVE: Duration = Duration::from_secs(60);

thread_local! {
    static SCRATCH: RefCell<Box<[u8]>> = RefCell::new(vec![0; BUFFER].into_boxed_slice());
}

/// Which way bytes went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// From the client.
    Sent,
    /// To the client.
    Received,
}

/// Counts what passes, as it passes.
pub trait Meter: Send + Sync {
    /// So many bytes were taken from one side.
    fn passed(&self, way: Way, bytes: usize);
}

/// Has the system find out that the other side of a silent connection is gone.
pub fn keep_alive(tcp: &tokio::net::TcpStream) {
    let every = socket2::TcpKeepalive::new().with_time(KEEP_ALIVE).with_interval(KEEP_ALIVE);
    // Without it, the connection merely lives longer.
    let _ = socket2::SockRef::from(tcp).set_tcp_keepalive(&every);
}

/// Bytes that passed in all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Passed {
    /// From the client.
    pub sent: u64,
    /// To the client.
    pub received: u64,
}

/// A side that can be told apart from one that ends well.
pub trait Side: AsyncRead + AsyncWrite + Unpin + Send {
    /// Makes dropping it a reset where that is possible: what was broken off must not look whole.
    fn abort(&self);
}

impl Side for tokio::net::TcpStream {
    fn abort(&self) {
        // With no time to linger, closing sends a RST. A socket that is gone needs none.
        let _ = self.set_zero_linger();
    }
}

/// Joins the two until both have ended, either has failed, or `drain` is signalled and nothing has passed for a while.
/// One side's end is passed on while the other still speaks.
///
/// # Errors
/// When a side fails; both are then reset.
///
/// # Cancel safety
/// Dropped, it closes both.
pub async fn splice<C: Side, U: Side>(
    mut client: C,
    mut upstream: U,
    meter: &impl Meter,
    mut drain: Watch,
) -> (Passed, io::Result<()>) {
    let total = Total { meter, sent: AtomicU64::new(0), received: AtomicU64::new(0) };
    let ended = {
        let (mut there, mut back) = (OneWay::new(Way::Sent), OneWay::new(Way::Received));
        let copying = std::future::poll_fn(|cx| {
            let there = there.poll(&mut client, &mut upstream, &total, cx)?;
            let back = back.poll(&mut upstream, &mut client, &total, cx)?;
            if there.is_ready() && back.is_ready() { Poll::Ready(Ok(())) } else { Poll::Pending }
        });
        tokio::select! {
            ended = copying => ended,
            () = quiet(&total, &mut drain) => Ok(()),
        }
    };
    if ended.is_err() {
        client.abort();
        upstream.abort();
    }
    (total.passed(), ended)
}

/// Resolves when `drain` was signalled and nothing passes any more.
async fn quiet<M: Meter>(total: &Total<'_, M>, drain: &mut Watch) {
    drain.signalled().await;
    let mut before = None;
    while before != Some(total.passed()) {
        before = Some(total.passed());
        tokio::time::sleep(QUIET).await;
    }
}

/// What has passed so far.
struct Total<'a, M> {
    meter: &'a M,
    sent: AtomicU64,
    received: AtomicU64,
}

impl<M: Meter> Total<'_, M> {
    fn add(&self, way: Way, bytes: usize) {
        let sum = match way {
            Way::Sent => &self.sent,
            Way::Received => &self.received,
        };
        sum.fetch_add(bytes as u64, Ordering::Relaxed);
        self.meter.passed(way, bytes);
    }

    fn passed(&self) -> Passed {
        Passed { sent: self.sent.load(Ordering::Relaxed), received: self.received.load(Ordering::Relaxed) }
    }
}

/// One direction.
struct OneWay {
    way: Way,
    /// Read, and not yet taken by the other side.
    held: Vec<u8>,
    /// How much of `held` was taken.
    taken: usize,
    stage: Stage,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// Bytes may come; true when some were written and not yet flushed.
    Open(bool),
    /// The one side has ended, the other is to be told.
    Ending,
    Ended,
}

impl OneWay {
    fn new(way: Way) -> Self {
        Self { way, held: Vec::new(), taken: 0, stage: Stage::Open(false) }
    }

    /// Moves what can be moved; ready when this direction has ended.
    fn poll<M: Meter>(
        &mut self,
        from: &mut (impl AsyncRead + Unpin),
        to: &mut (impl AsyncWrite + Unpin),
        total: &Total<'_, M>,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            match self.stage {
                Stage::Ended => return Poll::Ready(Ok(())),
                Stage::Ending => {
                    ready!(Pin::new(&mut *to).poll_shutdown(cx))?;
                    self.stage = Stage::Ended;
                }
                Stage::Open(unflushed) => {
                    ready!(self.poll_held(to, cx))?;
                    match SCRATCH.with_borrow_mut(|scratch| self.poll_through(scratch, from, to, total, cx)) {
                        Poll::Ready(moved) => moved?,
                        Poll::Pending => {
                            if unflushed {
                                ready!(Pin::new(&mut *to).poll_flush(cx))?;
                                self.stage = Stage::Open(false);
                            }
                            return Poll::Pending;
                        }
                    }
                }
            }
        }
    }

    /// Ready when the other side has taken what was held.
    fn poll_held(&mut self, to: &mut (impl AsyncWrite + Unpin), cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.taken < self.held.len() {
            self.taken += written(ready!(Pin::new(&mut *to).poll_write(cx, &self.held[self.taken..])))?;
        }
        // Gives the room back: the next time may be far.
        (self.held, self.taken) = (Vec::new(), 0);
        Poll::Ready(Ok(()))
    }

    /// One read, and as much of it written as the other side takes.
    fn poll_through<M: Meter>(
        &mut self,
        scratch: &mut [u8],
        from: &mut (impl AsyncRead + Unpin),
        to: &mut (impl AsyncWrite + Unpin),
        total: &Total<'_, M>,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        let mut buf = ReadBuf::new(scratch);
        ready!(Pin::new(from).poll_read(cx, &mut buf))?;
        let read = buf.filled();
        if read.is_empty() {
            self.stage = Stage::Ending;
            return Poll::Ready(Ok(()));
        }
        total.add(self.way, read.len());
        self.stage = Stage::Open(true);
        let mut done = 0;
        while done < read.len() {
            match Pin::new(&mut *to).poll_write(cx, &read[done..]) {
                Poll::Ready(outcome) => done += written(outcome)?,
                Poll::Pending => {
                    self.held = read[done..].to_vec();
                    break;
                }
            }
        }
        Poll::Ready(Ok(()))
    }
}

fn written(outcome: io::Result<usize>) -> io::Result<usize> {
    match outcome {
        Ok(0) => Err(io::ErrorKind::WriteZero.into()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

    use super::*;
    use crate::net::drain::Drain;

    impl Side for DuplexStream {
        fn abort(&self) {}
    }

    struct Uncounted;

    impl Meter for Uncounted {
        fn passed(&self, _: Way, _: usize) {}
    }

    fn run<T>(work: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(work)
    }

    async fn write_in_pieces(mut to: impl AsyncWrite + Unpin, bytes: &[u8], piece: usize) {
        for piece in bytes.chunks(piece) {
            to.write_all(piece).await.unwrap();
        }
        to.shutdown().await.unwrap();
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn every_byte_passes(
            (there, back) in (0_usize..100_000, 0_usize..100_000),
            (room, piece) in (1_usize..9_000, 1_usize..9_000),
        ) {
            let bytes = |len: usize, salt: usize| (0..len).map(|n| (n * 7 + salt).to_le_bytes()[0]).collect::<Vec<_>>();
            let (there, back) = (bytes(there, 1), bytes(back, 2));
            let (passed, at_upstream, at_client) = run(async {
                let (client, near) = tokio::io::duplex(room.max(64));
                let (far, upstream) = tokio::io::duplex(room.max(64));
                let drain = Drain::default();
                let (mut client_read, client_write) = tokio::io::split(client);
                let (mut upstream_read, upstream_write) = tokio::io::split(upstream);
                let (mut at_upstream, mut at_client) = (Vec::new(), Vec::new());
                let ((passed, ended), ..) = tokio::join!(
                    splice(near, far, &Uncounted, drain.watch()),
                    write_in_pieces(client_write, &there, piece.max(16)),
                    write_in_pieces(upstream_write, &back, piece.max(16)),
                    async { upstream_read.read_to_end(&mut at_upstream).await.unwrap() },
                    async { client_read.read_to_end(&mut at_client).await.unwrap() },
                );
                ended.unwrap();
                (passed, at_upstream, at_client)
            });
            prop_assert_eq!(passed, Passed { sent: there.len() as u64, received: back.len() as u64 });
            prop_assert!(at_upstream == there && at_client == back);
        }
    }

    #[tokio::test]
    async fn one_side_may_end_long_before_the_other() {
        let (mut client, near) = tokio::io::duplex(64);
        let (far, mut upstream) = tokio::io::duplex(64);
        let drain = Drain::default();
        let tunnel = splice(near, far, &Uncounted, drain.watch());
        let talk = async {
            client.write_all(b"ask").await.unwrap();
            client.shutdown().await.unwrap();
            let mut asked = String::new();
            upstream.read_to_string(&mut asked).await.unwrap();
            assert_eq!(asked, "ask");
            upstream.write_all(b"answer").await.unwrap();
            upstream.shutdown().await.unwrap();
            let mut answer = String::new();
            client.read_to_string(&mut answer).await.unwrap();
            assert_eq!(answer, "answer");
        };
        let ((passed, ended), ()) = tokio::join!(tunnel, talk);
        assert!(ended.is_ok());
        assert_eq!(passed, Passed { sent: 3, received: 6 });
    }

    #[tokio::test]
    async fn a_drain_ends_what_is_quiet() {
        let (mut client, near) = tokio::io::duplex(64);
        let (far, mut upstream) = tokio::io::duplex(64);
        let drain = Drain::default();
        let tunnel = splice(near, far, &Uncounted, drain.watch());
        drain.signal();
        let talk = async {
            for _ in 0..5 {
                tokio::time::sleep(QUIET / 10).await;
                client.write_all(b"x").await.unwrap();
                upstream.read_u8().await.unwrap();
            }
        };
        let ((passed, ended), ()) = tokio::join!(tunnel, talk);
        assert!(ended.is_ok());
        assert_eq!(passed.sent, 5);
    }
}
