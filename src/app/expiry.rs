//! Certificates that end soon: operators are told while there is time.
//!
//! Owns when it looks and what is soon; leaves certificates to `net::ca`.

use std::time::Duration;

use crate::clock::{Clock, rfc3339};
use crate::control::generations;
use crate::event::{Events, Kind, Severity};
use crate::net::ca::Generation;
use crate::storage::Store;

/// What ends within this is told, milliseconds.
const SOON_MS: u64 = 30 * 86_400_000;
const EVERY: Duration = Duration::from_secs(12 * 3600);

/// Looks now and again, until dropped.
pub(super) async fn watch(store: &Store, clock: &Clock) {
    loop {
        // A new root is trusted by few at first, so each that is still in use counts.
        tell(&generations(store), store.events(), clock.wall_ms());
        tokio::time::sleep(EVERY).await;
    }
}

fn tell(generations: &[Generation], events: &Events, now_ms: u64) {
    for one in generations.iter().filter(|one| one.expires_ms <= now_ms.saturating_add(SOON_MS)) {
        let (severity, ends) = match one.expires_ms <= now_ms {
            true => (Severity::Error, "ended"),
            false => (Severity::Warning, "ends"),
        };
        let until = rfc3339(one.expires_ms);
        let message = format!(
            "the local CA's root {ends} at {until}; make another, and have clients trust it: sidekey ca rotate"
        );
        events.emit(Kind::CertificateExpiring, severity, format!("ca {}", one.id), message);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Metrics;

    #[test]
    fn what_ends_soon_is_told() {
        const DAY: u64 = 86_400_000;
        let made_ms = 1_700_000_000_000;
        let clock = Clock::manual(made_ms);
        let one = Generation::create(&["api.example".to_owned()], made_ms, Duration::from_secs(90 * 86_400)).unwrap();
        for (days, want) in [(0, None), (59, None), (61, Some(Severity::Warning)), (91, Some(Severity::Error))] {
            let events = Events::new(clock.clone(), &Metrics::default());
            tell(std::slice::from_ref(&one), &events, made_ms + days * DAY);
            assert_eq!(events.recent().first().map(|event| event.severity), want, "{days} days");
        }
    }
}
