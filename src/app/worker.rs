//! The thread that moves requests.
//!
//! Owns its runtime. One thread serves some 50,000 requests a second, and one runtime without work stealing keeps a
//! request on the core where it began.

use std::io;
use std::net::TcpListener;
use std::pin::pin;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use crate::ingress::{Front, FrontParts, Loops};
use crate::net::drain::{Drain, Watch};
use crate::net::listener;
use crate::proxy::{Proxy, ProxyParts, Shared};

/// Idle connections to providers are looked through this often.
const SWEEP: Duration = Duration::from_secs(10);

/// What it works with.
pub(super) struct Worker {
    pub(super) listener: TcpListener,
    /// Those of redirected connections.
    pub(super) redirected: Vec<TcpListener>,
    /// Whether own connections come there.
    pub(super) loops: Arc<Loops>,
    pub(super) parts: ProxyParts,
    pub(super) front: FrontParts,
    pub(super) shared: Arc<Shared>,
    pub(super) drain: Arc<Drain>,
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
        let Self { listener, redirected, loops, parts, front, shared, drain } = self;
        let polled = tokio::net::TcpListener::from_std;
        let redirected: io::Result<Vec<_>> = redirected.into_iter().map(polled).collect();
        let (listener, redirected) = match (polled(listener), redirected) {
            (Ok(listener), Ok(redirected)) => (listener, redirected),
            (Err(error), _) | (_, Err(error)) => return tracing::error!(%error, "a listener cannot be polled"),
        };
        let patience = front.patience;
        let drain_timeout = parts.section.drain_timeout;
        let handler = Arc::new(Front::new(Proxy::new(parts, &shared, Arc::clone(&drain)), front));
        let mut sweep = tokio::time::interval(SWEEP);
        {
            let is_led = !redirected.is_empty();
            let mut redirected = redirected.into_iter();
            // One for each family, at most.
            let (first, second) = (redirected.next(), redirected.next());
            let led = async |listener: Option<tokio::net::TcpListener>| {
                let serve = |tcp, peer, drain| Arc::clone(&handler).redirected(tcp, peer, Arc::clone(&loops), drain);
                if let Some(listener) = listener {
                    listener::accept_each(listener, drain.watch(), serve).await;
                }
            };
            let direct = listener::accept(listener, Arc::clone(&handler), patience, drain.watch());
            let mut accepting = pin!(async { tokio::join!(direct, led(first), led(second)) });
            let mut testing = pin!(loops.keep_testing());
            loop {
                tokio::select! {
                    _ = &mut accepting => break,
                    _ = sweep.tick() => handler.sweep(),
                    () = &mut testing, if is_led => {}
                }
            }
        }
        tracing::info!(connections = drain.open(), "draining");
        tokio::select! {
            () = drain.finished() => {}
            () = tokio::time::sleep(drain_timeout) => tracing::warn!(open = drain.open(), "drain_timeout: cutting what is open"),
            () = hurry.signalled() => tracing::warn!(open = drain.open(), "asked again: cutting what is open"),
        }
        shared.cut();
    }
}
