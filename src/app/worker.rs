//! The thread that moves requests.
//!
//! Owns its runtime. One thread serves some 50,000 requests a second, and one runtime without work stealing keeps a
//! request on the core where it began.

use std::io;
use std::net::TcpListener;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use crate::ingress::{Loops, Port};
use crate::live::Live;
use crate::net::drain::{Drain, Watch};
use crate::net::listener;
use crate::proxy::Shared;

/// Idle connections to providers are looked through this often.
const SWEEP: Duration = Duration::from_secs(10);

/// What it works with.
pub(super) struct Worker {
    pub(super) listener: TcpListener,
    /// Those of redirected connections.
    pub(super) redirected: Vec<TcpListener>,
    /// Whether own connections come there.
    pub(super) loops: Arc<Loops>,
    pub(super) port: Arc<Port>,
    pub(super) shared: Arc<Shared>,
    pub(super) drain: Arc<Drain>,
    pub(super) ending: Live<Ending>,
}

/// How long the end takes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ending {
    pub(super) min_delay: Duration,
    pub(super) drain_timeout: Duration,
}

impl Worker {
    /// Starts it. It ends once `drain` is signalled and its requests have ended, or `hurry` is signalled, or
    /// `limits.drain_timeout` has passed.
    pub(super) fn start(self, hurry: Watch) -> io::Result<JoinHandle<()>> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        std::thread::Builder::new().name("sidekey-proxy".to_owned()).spawn(move || {
            runtime.block_on(self.work(hurry));
            // With the runtime go the requests that are still open; each settles as it is dropped.
            drop(runtime);
        })
    }

    async fn work(self, mut hurry: Watch) {
        let Self { listener, redirected, loops, port, shared, drain, ending } = self;
        let polled = tokio::net::TcpListener::from_std;
        let redirected: io::Result<Vec<_>> = redirected.into_iter().map(polled).collect();
        let (listener, redirected) = match (polled(listener), redirected) {
            (Ok(listener), Ok(redirected)) => (listener, redirected),
            (Err(error), _) | (_, Err(error)) => return tracing::error!(%error, "a listener cannot be polled"),
        };
        let mut serving = Box::pin(serve(&port, listener, redirected, &loops, &drain));
        let mut stop = drain.watch();
        tokio::select! {
            () = &mut serving => {}
            () = stop.leaving() => {}
        }
        drop(stop);
        let Ending { min_delay, drain_timeout } = *ending.get();
        tracing::info!(connections = drain.open(), "draining");
        let ended = async {
            tokio::select! {
                () = &mut serving => {}
                () = until_nobody_comes(&drain, min_delay, drain_timeout) => {}
            }
            drop(serving);
            drain.finished().await;
        };
        tokio::select! {
            () = ended => {}
            () = tokio::time::sleep(drain_timeout) => tracing::warn!(open = drain.open(), "drain_timeout: cutting what is open"),
            () = hurry.signalled() => tracing::warn!(open = drain.open(), "asked again: cutting what is open"),
        }
        shared.cut();
    }
}

/// Serves all who come, and closes connections to providers that nobody uses. Does not end.
async fn serve(
    port: &Arc<Port>,
    listener: tokio::net::TcpListener,
    redirected: Vec<tokio::net::TcpListener>,
    loops: &Arc<Loops>,
    drain: &Drain,
) {
    let is_led = !redirected.is_empty();
    let mut redirected = redirected.into_iter();
    // One for each family, at most.
    let (first, second) = (redirected.next(), redirected.next());
    let led = async |listener: Option<tokio::net::TcpListener>| {
        let serve = |tcp, peer, drain| port.front().redirected(tcp, peer, Arc::clone(loops), drain);
        if let Some(listener) = listener {
            listener::accept_each(listener, drain, serve).await;
        }
    };
    let direct = listener::accept(listener, Arc::clone(port), drain);
    let accepting = async { tokio::join!(direct, led(first), led(second)) };
    let testing = async {
        if is_led {
            loops.keep_testing().await;
        }
    };
    let sweeping = async {
        let mut sweep = tokio::time::interval(SWEEP);
        loop {
            sweep.tick().await;
            port.sweep();
        }
    };
    tokio::join!(accepting, testing, sweeping);
}

/// Until the minimum delay has passed and no client is left. Whoever still comes late would be cut at the deadline, so
/// the second half of the time belongs to what is open.
async fn until_nobody_comes(drain: &Drain, min_delay: Duration, drain_timeout: Duration) {
    tokio::time::sleep(min_delay).await;
    drain.signal();
    let nobody_left = async {
        loop {
            drain.finished().await;
            // One may be at the door already.
            tokio::task::yield_now().await;
            if drain.open() == 0 {
                return;
            }
        }
    };
    tokio::select! {
        () = nobody_left => {}
        () = tokio::time::sleep((drain_timeout / 2).saturating_sub(min_delay)) => {}
    }
}
