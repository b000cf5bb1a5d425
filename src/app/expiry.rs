//! Certificates that end soon: operators are told while there is time.
//!
//! Owns when it looks and what is soon; leaves certificates to `net::ca`.

use std::path::PathBuf;
use std::time::Duration;

use crate::clock::{Clock, rfc3339};
use crate::control::generations;
use crate::event::{Events, Kind, Severity};
use crate::net::ca::Generation;
use crate::storage::Store;

/// What ends within this is told, milliseconds.
const SOON_MS: u64 = 30 * 86_400_000;
const EVERY: Duration = Duration::from_secs(12 * 3600);

/// The certificate that the admin API shows: the one it was started with, whatever its file holds by now.
#[derive(Clone, Debug)]
pub(super) struct Shown {
    pub(super) file: PathBuf,
    pub(super) ends_ms: u64,
}

/// Looks now and again, until dropped.
pub(super) async fn watch(store: &Store, shown: Option<&Shown>, clock: &Clock) {
    loop {
        if let Some(shown) = shown {
            tell_shown(shown, store.events(), clock.wall_ms());
        }
        // A new root is trusted by few at first, so each that is still in use counts.
        tell(&generations(store), store.events(), clock.wall_ms());
        tokio::time::sleep(EVERY).await;
    }
}

fn tell(generations: &[Generation], events: &Events, now_ms: u64) {
    for one in generations {
        let Some((severity, ends)) = urgency(one.expires_ms, now_ms) else { continue };
        let until = rfc3339(one.expires_ms);
        let message = format!(
            "the local CA's root {ends} at {until}; make another, and have clients trust it: sidekey ca rotate"
        );
        events.emit(Kind::CertificateExpiring, severity, format!("ca {}", one.id), message);
    }
}

fn tell_shown(shown: &Shown, events: &Events, now_ms: u64) {
    let Some((severity, ends)) = urgency(shown.ends_ms, now_ms) else { return };
    let message = format!(
        "the certificate of the admin API {ends} at {}; put another in its place, and restart",
        rfc3339(shown.ends_ms)
    );
    let subject = format!("certificate {}", shown.file.display());
    events.emit(Kind::CertificateExpiring, severity, subject, message);
}

/// How bad it is, and the word for it; `None` while there is time.
fn urgency(ends_ms: u64, now_ms: u64) -> Option<(Severity, &'static str)> {
    match ends_ms {
        ends_ms if ends_ms <= now_ms => Some((Severity::Error, "ended")),
        ends_ms if ends_ms <= now_ms.saturating_add(SOON_MS) => Some((Severity::Warning, "ends")),
        _ => None,
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
            let shown = Shown { file: "/etc/admin.pem".into(), ends_ms: one.expires_ms };
            tell_shown(&shown, &events, made_ms + days * DAY);
            let told = events.recent();
            assert!(told.iter().all(|event| Some(event.severity) == want), "{days} days");
            assert_eq!(told.len(), if want.is_some() { 2 } else { 0 }, "{days} days");
        }
    }
}
