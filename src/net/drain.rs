//! Draining: who says stop, and when the last connection has gone.
//!
//! Owns the signal and the count; leaves deadlines to `app`.

use tokio::sync::watch;

/// Says stop, and waits for those who listen. Not `Clone`: a second one could believe all had gone while the first
/// still handed out watches.
#[derive(Debug)]
pub struct Drain(watch::Sender<bool>);

/// Held by each connection for as long as it is open.
#[derive(Clone, Debug)]
pub struct Watch(watch::Receiver<bool>);

impl Default for Drain {
    fn default() -> Self {
        Self(watch::Sender::new(false))
    }
}

impl Drain {
    /// A watch for one more connection.
    #[must_use]
    pub fn watch(&self) -> Watch {
        Watch(self.0.subscribe())
    }

    /// Tells every watch to finish what it does and take nothing new.
    pub fn signal(&self) {
        self.0.send_replace(true);
    }

    /// Resolves when the last watch has been dropped. Cancel safe.
    pub async fn finished(&self) {
        self.0.closed().await;
    }

    /// Connections open now.
    #[must_use]
    pub fn open(&self) -> usize {
        self.0.receiver_count()
    }
}

impl Watch {
    /// Resolves when told to stop, or when nobody can tell any more. Cancel safe.
    pub async fn signalled(&mut self) {
        let _ = self.0.wait_for(|stop| *stop).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn finishes_when_the_last_watch_goes() {
        let drain = Drain::default();
        let mut watch = drain.watch();
        assert_eq!(drain.open(), 1);
        drain.signal();
        watch.signalled().await;
        drop(watch);
        drain.finished().await;
        assert_eq!(drain.open(), 0);
    }
}
