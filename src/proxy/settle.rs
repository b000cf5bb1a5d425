//! The last step: [`Account`] corrects the limits, counts the keys' use and writes the entry, exactly once.
//!
//! Owns what becomes of a request once its answer has ended, however it ended; leaves the arithmetic of limits to
//! `limit` and the disk to `storage::ledger`. Counting tokens the provider did not report takes milliseconds, so it
//! happens on a thread of its own, never on the way of a response.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::clock::{Clock, Nanos};
use crate::entry::{Entry, Outcome};
use crate::limit::{Consumption, Permit};
use crate::pricing::{self, Layer, PriceTable};
use crate::provider::RefusalKind;
use crate::proxy::ProxyParts;
use crate::proxy::attempt::Attempt;
use crate::proxy::canary::Canaries;
use crate::proxy::error::Error;
use crate::proxy::metrics::{Families, ProviderMetrics};
use crate::proxy::unpriced::Unpriced;
use crate::span::{Spans, TraceParent};
use crate::storage::{Commit, Durability, EntryPlace, KeyState, Ledger, Store};
use crate::tally::Tally;
use crate::tokens;
use crate::unit::{TokensSource, Usage};

/// Answers waiting for their tokens to be counted; beyond it the quick estimate is taken at once.
const WAITING: usize = 1024;
/// What the ledger shows when the client left before an answer's head; nginx's word for it.
const CLIENT_CLOSED: u16 = 499;
/// A vocabulary takes 40 MB: it is dropped when nothing was counted for this long.
const UNLOAD_AFTER: Duration = Duration::from_secs(30);

/// What settling needs of the program.
#[derive(Debug)]
pub(super) struct Books {
    pub(super) clock: Clock,
    pub(super) store: Store,
    pub(super) ledger: Ledger,
    pub(super) families: Families,
    unpriced: Unpriced,
    pub(super) canaries: Canaries,
    counting: SyncSender<Box<Closed>>,
    access_log: AtomicBool,
    spans: Option<Spans>,
    cut: AtomicBool,
}

/// How an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// To its last byte.
    Complete,
    /// The client left.
    ClientLeft,
    /// Our own shutdown.
    Drained,
    /// Us, because what was reserved for it was used up.
    Stopped,
    /// The upstream broke off.
    UpstreamBroke,
}

/// One request's open account. Settled when told to, else when dropped: as left by the client.
#[derive(Debug, Default)]
pub(super) struct Account {
    inner: Option<Box<Open>>,
}

/// What an account holds while it is open.
#[derive(Debug)]
pub(super) struct Open {
    pub(super) books: Arc<Books>,
    pub(super) entry: Entry,
    pub(super) started: Nanos,
    pub(super) permit: Option<Permit>,
    /// Where its entry goes.
    pub(super) place: EntryPlace,
    pub(super) key: Option<Arc<KeyState>>,
    /// The try that is on its way, or was answered.
    pub(super) attempt: Option<Attempt>,
    pub(super) metrics: Arc<ProviderMetrics>,
    /// The prices of when it came in.
    pub(super) prices: Arc<PriceTable>,
    /// The client's span, where requests are traced.
    pub(super) parent: Option<TraceParent>,
    /// Tokens the request is thought to hold.
    pub(super) input_estimate: u64,
    /// The call consumes tokens, if it succeeds.
    pub(super) consumes: bool,
    /// Its answer may hold no figure at all, as one of sound does; then it cost what was reserved.
    pub(super) by_reservation: bool,
    /// The model that a route has in fact called.
    pub(super) called: Option<Arc<str>>,
    /// True when a route has led it on since it was sent.
    pub(super) moved: bool,
}

/// An account whose answer has ended, to be counted and written.
#[derive(Debug)]
struct Closed {
    open: Box<Open>,
    tally: Tally,
    end: End,
}

/// How long the answer was, for the next estimate.
fn note_output(key: &KeyState, entry: &Entry, called: Option<&Arc<str>>) {
    if let (Some(model), Some(output)) = (called.or(entry.model_requested.as_ref()), entry.tokens.output) {
        key.outputs.note(model, output);
    }
}

impl Open {
    /// Notes that the request goes out now, for the case that nobody lives to settle it.
    ///
    /// # Errors
    /// When that cannot be noted and the request must not go out without.
    pub(super) fn note(&mut self) -> Result<(), Error> {
        let reserved = self.permit.as_ref().map(Permit::reserved).unwrap_or_default();
        let figure = |tokens: u64| (tokens > 0).then_some(tokens);
        let estimate = Usage {
            input: figure(reserved.input),
            output: figure(reserved.output),
            total: figure(reserved.total),
            ..Usage::default()
        };
        let noted = self.place.note(&self.entry, estimate, figure(reserved.nano_usd));
        // Where room is kept for the entry, the request depends on being recorded.
        noted.or_else(|error| if self.place.is_promised() { Err(Error::Unrecorded(error.to_string())) } else { Ok(()) })
    }
}

impl Books {
    /// Starts the counting thread, which ends when the last `Books` has gone.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub(super) fn new(parts: &ProxyParts, families: Families) -> std::io::Result<(Self, JoinHandle<()>)> {
        let (counting, waiting) = sync_channel(WAITING);
        let thread = std::thread::Builder::new().name("sidekey-count".to_owned()).spawn(move || count(&waiting))?;
        let books = Self {
            clock: parts.clock.clone(),
            store: parts.store.clone(),
            ledger: parts.store.ledger(),
            families,
            unpriced: Unpriced::new(parts.store.events().clone()),
            canaries: Canaries::new(parts.store.events().clone(), parts.clock.clone()),
            counting,
            access_log: AtomicBool::new(parts.access_log),
            spans: parts.spans.clone(),
            cut: AtomicBool::new(false),
        };
        Ok((books, thread))
    }

    pub(super) fn set_access_log(&self, on: bool) {
        self.access_log.store(on, Ordering::Relaxed);
    }

    /// See [`Shared::cut`](super::Shared::cut).
    pub(super) fn cut(&self) {
        self.cut.store(true, Ordering::Relaxed);
    }
}

fn count(waiting: &Receiver<Box<Closed>>) {
    loop {
        match waiting.recv_timeout(UNLOAD_AFTER) {
            Ok(mut closed) => {
                closed.estimate(true);
                closed.write();
            }
            Err(RecvTimeoutError::Timeout) => tokens::unload(),
            Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}

impl Account {
    pub(super) fn new(open: Open) -> Self {
        Self { inner: Some(Box::new(open)) }
    }

    /// Holds the permit, and the place of the entry, until the request is settled.
    pub(super) fn hold(&mut self, permit: Option<Permit>, place: EntryPlace) {
        if let Some(open) = &mut self.inner {
            (open.permit, open.place) = (permit, place);
        }
    }

    /// What is open, to be filled in as the request goes on.
    pub(super) fn open(&mut self) -> Option<&mut Open> {
        self.inner.as_deref_mut()
    }

    /// Settles; a second call does nothing. With `store.durability = "sync"` it gives what the end of the answer is to
    /// wait for.
    pub(super) fn settle(&mut self, tally: Tally, end: End) -> Option<Commit> {
        let open = self.inner.take()?;
        let cut = open.books.cut.load(Ordering::Relaxed) && end == End::ClientLeft;
        let mut closed = Closed { open, tally, end: if cut { End::Drained } else { end } };
        closed.close();
        if !closed.needs_count() {
            return closed.write();
        }
        let books = Arc::clone(&closed.open.books);
        if let Err(error) = books.counting.try_send(Box::new(closed)) {
            let (std::sync::mpsc::TrySendError::Full(mut closed)
            | std::sync::mpsc::TrySendError::Disconnected(mut closed)) = error;
            closed.estimate(false);
            return closed.write();
        }
        None
    }

    /// Settles a request that sidekey refused, or that no upstream answered: nothing was consumed.
    pub(super) fn refuse(&mut self, status: u16, code: &'static str, outcome: Outcome) {
        let Some(mut open) = self.inner.take() else { return };
        open.entry.status = status;
        open.entry.outcome = outcome;
        open.entry.error_code = Some(code.into());
        open.consumes = false;
        let mut closed = Closed { open, tally: Tally::default(), end: End::Complete };
        closed.open.entry.latency_us = closed.elapsed_us();
        closed.write();
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        self.settle(Tally::default(), End::ClientLeft);
    }
}

impl Closed {
    fn elapsed_us(&self) -> u64 {
        self.open.books.clock.now().saturating_sub(self.open.started) / 1_000
    }

    /// Takes over what the tally says.
    fn close(&mut self) {
        let elapsed = self.elapsed_us();
        let entry = &mut self.open.entry;
        entry.latency_us = elapsed;
        entry.tokens = self.tally.usage;
        entry.service_tier = self.tally.service_tier;
        // An answer that names no model was given by the one that was called.
        let called = self.open.called.as_ref().filter(|_| entry.attempts > 0);
        entry.model_reported = self.tally.model_reported.take().map(Arc::from).or_else(|| called.cloned());
        entry.outcome = match self.end {
            End::ClientLeft => Outcome::ClientDisconnected,
            End::Drained => Outcome::AbortedByDrain,
            End::Stopped => Outcome::Refused,
            End::UpstreamBroke => Outcome::UpstreamError,
            End::Complete if entry.status >= 400 || self.tally.error.is_some() => Outcome::UpstreamError,
            End::Complete => Outcome::Ok,
        };
        if let Some(error) = self.tally.error.take() {
            entry.error_code = error.code.or(error.kind).map(Arc::from);
        } else if self.end == End::UpstreamBroke {
            entry.error_code = Some("upstream_truncated".into());
        } else if self.end == End::Stopped {
            entry.error_code = Some(RefusalKind::InsufficientQuota.code().into());
        }
        entry.tokens_source = match entry.tokens.is_empty() {
            true => TokensSource::None,
            false => TokensSource::Reported,
        };
    }

    /// True when the provider's figures are absent, or were cut off before the last of them.
    fn needs_count(&self) -> bool {
        let entry = &self.open.entry;
        let answered = self.open.consumes && entry.status < 400 && entry.attempts > 0;
        answered && (entry.tokens.is_empty() || self.is_cut_off())
    }

    /// Figures of a stream that ended early are those of its beginning.
    fn is_cut_off(&self) -> bool {
        self.end != End::Complete && !self.tally.ended
    }

    /// Fills in what is not reported: exactly with a vocabulary, or quickly by size.
    fn estimate(&mut self, exact: bool) {
        let entry = &mut self.open.entry;
        let model = entry.model_reported.as_deref().or(entry.model_requested.as_deref());
        let output = match exact {
            true => tokens::estimate_output(model, &self.tally.text),
            false => self.tally.text.bytes().div_ceil(4),
        };
        let input = entry.tokens.input.unwrap_or(self.open.input_estimate);
        if entry.tokens.is_empty() && input == 0 && output == 0 {
            return;
        }
        // A running figure is the last word unless more was relayed than it covers.
        if entry.tokens.output.is_some_and(|reported| reported >= output) {
            return;
        }
        entry.tokens = Usage {
            input: Some(input),
            output: Some(output),
            total: Some(input.saturating_add(output)),
            ..entry.tokens
        };
        entry.tokens_source = TokensSource::Estimated;
    }

    /// Says what it cost, if it consumed something that has a price.
    fn price(&mut self) {
        let entry = &mut self.open.entry;
        // What was noted is the price of the reservation.
        entry.price_version = None;
        let answered = entry.status < 400 && entry.attempts > 0;
        let by_reservation = answered && self.open.by_reservation;
        let served = answered && self.open.consumes || by_reservation;
        // A fee for each call is due for one that was served; without that, for nothing.
        if entry.tokens == Usage::default() && !served {
            return;
        }
        let prices = &self.open.prices;
        let called = self.open.called.as_ref().or(entry.model_requested.as_ref());
        let (reported, requested) = (entry.model_reported.as_deref(), called.map(|model| &**model));
        let found = prices.price(&entry.provider, reported, requested);
        let own = found.as_ref().is_some_and(|found| found.layer != Layer::BuiltIn);
        // What a provider charged is nearer to the truth than its list, but not than what an operator says.
        if let Some(cost) = self.tally.cost_nano.filter(|_| !own && prices.reports_cost(&entry.provider)) {
            entry.cost_nano_usd = Some(cost);
            entry.price_version = Some(pricing::REPORTED.into());
        } else if let Some(found) = &found
            && let Some(cost) = found.price.cost(&entry.tokens, entry.service_tier)
        {
            entry.cost_nano_usd = Some(cost);
            entry.price_version = Some(Arc::clone(&found.version));
        } else if let Some(found) = found.filter(|_| by_reservation)
            && let Some(permit) = &self.open.permit
        {
            entry.cost_nano_usd = Some(permit.reserved().nano_usd);
            entry.price_version = Some(Arc::clone(&found.version));
            entry.tokens_source = TokensSource::Estimated;
        } else if entry.tokens.billable() > 0 || by_reservation {
            self.open.books.unpriced.tell(entry);
        }
    }

    fn write(mut self) -> Option<Commit> {
        self.price();
        let mut open = *self.open;
        let now = open.books.clock.now();
        let consumed = Consumption::of(&open.entry.tokens, open.entry.cost_nano_usd);
        match open.permit.take() {
            // Nothing went upstream: the request never was.
            Some(permit) if open.entry.attempts == 0 => permit.refund(),
            Some(permit) => permit.settle(now, consumed),
            None => {}
        }
        if let (Outcome::Ok, Some(key)) = (open.entry.outcome, &open.key) {
            note_output(key, &open.entry, open.called.as_ref());
        }
        if let Some(attempt) = open.attempt.take() {
            attempt.settle(&open.entry, (now, consumed), self.end == End::UpstreamBroke, &open.books);
        }
        if open.entry.status == 0 {
            open.entry.status = CLIENT_CLOSED;
        }
        open.metrics.record(&open.entry);
        if let Some(spans) = &open.books.spans {
            spans.offer(&open.entry, open.parent);
        }
        if open.books.access_log.load(Ordering::Relaxed) {
            access_line(&open.entry);
        }
        // A full queue is counted and logged by the ledger; the answer is not ours to break for it.
        match open.books.ledger.durability() {
            Durability::Group => {
                let _ = open.place.record(open.entry);
                None
            }
            Durability::Sync => open.place.record_sync(open.entry).ok(),
        }
    }
}

/// One line for each request; no text of a request or an answer, and no key.
fn access_line(entry: &Entry) {
    tracing::info!(
        target: "sidekey::access",
        request_id = %entry.request_id,
        virtual_key = entry.virtual_key.map(tracing::field::display),
        provider = &*entry.provider,
        endpoint = &*entry.endpoint,
        model = entry.model_requested.as_deref(),
        status = entry.status,
        outcome = entry.outcome.as_str(),
        code = entry.error_code.as_deref(),
        input_tokens = entry.tokens.input,
        output_tokens = entry.tokens.output,
        latency_ms = entry.latency_us / 1_000,
        "request"
    );
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::sync::Mutex;

    use proptest::prelude::*;
    use proptest::test_runner::TestRunner;

    use super::*;
    use crate::id::RequestId;
    use crate::id::ScopeId;
    use crate::limit::{Moment, Scope, Watch};
    use crate::metrics::Metrics;
    use crate::net::tls::TlsClient;
    use crate::policy::{Limits, Policy};
    use crate::provider::Registry;
    use crate::proxy::ProxySection;
    use crate::storage::{LedgerFilter, MasterKeyInputs, Store, StoreOptions, StoreSection};

    fn parts(dir: &std::path::Path) -> ProxyParts {
        let clock = Clock::system();
        let store = Store::open(StoreOptions {
            dir: dir.to_owned(),
            create: true,
            master: MasterKeyInputs::default(),
            environment_keys: Vec::new(),
            prices: Arc::default(),
            section: StoreSection::default(),
            unusual: Default::default(),
            clock: clock.clone(),
            metrics: Metrics::default(),
        })
        .unwrap();
        ProxyParts {
            store,
            registry: Arc::new(Registry::build(&std::collections::BTreeMap::new(), None).unwrap()),
            dialer: TlsClient::new(None).unwrap().into(),
            clock,
            section: ProxySection::default(),
            prefix: "sk-side".to_owned(),
            access_log: false,
            spans: None,
            keeps_trace: true,
        }
    }

    fn entry(request_id: RequestId, time_ms: u64, attempts: u32) -> Entry {
        Entry {
            request_id,
            time_ms,
            virtual_key: None,
            user: None,
            team: None,
            group: None,
            provider: "openai".into(),
            provider_key: None,
            key_source: None,
            dialect: "openai".into(),
            endpoint: "chat".into(),
            model_requested: None,
            model_reported: None,
            stream: true,
            tokens: Usage::default(),
            tokens_source: TokensSource::None,
            cost_nano_usd: None,
            status: 200,
            outcome: Outcome::ClientDisconnected,
            error_code: None,
            latency_us: 0,
            ttfb_us: 0,
            overhead_ns: 0,
            attempts,
            upstream_request_id: None,
            price_version: None,
            service_tier: None,
            plan: None,
            pool: None,
        }
    }

    /// What may be done to an account before it is dropped.
    fn endings() -> impl Strategy<Value = Vec<Option<End>>> {
        let end = prop_oneof![
            Just(Some(End::Complete)),
            Just(Some(End::ClientLeft)),
            Just(Some(End::UpstreamBroke)),
            // A refusal.
            Just(None),
        ];
        proptest::collection::vec(end, 0..4)
    }

    #[test]
    fn however_it_ends_it_is_settled_once() {
        let dir = tempfile::tempdir().unwrap();
        let parts = parts(dir.path());
        let (books, counting) = Books::new(&parts, Families::new(&Metrics::default())).unwrap();
        let books = Arc::new(books);
        let limits = Limits { tpm: Some(1_000_000), max_in_flight: Some(1), ..Limits::default() };
        let policy = Policy { limits, ..Policy::default() };
        let opened = Mutex::new(Vec::new());
        let mut runner = TestRunner::new(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() });
        let run = runner.run(&(endings(), 0..3_u32, any::<bool>()), |(endings, attempts, consumes)| {
            let limits = Arc::new(Scope::new(ScopeId::User("u".into()), &policy, Watch::default()));
            let now_ms = books.clock.wall_ms();
            let request_id = RequestId::new(now_ms);
            let mut account = Account::new(Open {
                books: Arc::clone(&books),
                entry: entry(request_id, now_ms, attempts),
                started: 0,
                permit: Some(
                    Permit::reserve(
                        std::slice::from_ref(&limits),
                        Moment::of(&books.clock),
                        Consumption::tokens(60, 40),
                    )
                    .unwrap(),
                ),
                place: books.ledger.place(),
                key: None,
                attempt: None,
                metrics: Arc::new(books.families.provider("openai")),
                prices: Arc::default(),
                parent: None,
                input_estimate: 3,
                consumes,
                by_reservation: false,
                called: None,
                moved: false,
            });
            for end in endings {
                match end {
                    Some(end) => drop(account.settle(Tally::default(), end)),
                    None => account.refuse(429, "rate_limit_exceeded", Outcome::Refused),
                }
            }
            drop(account);
            opened.lock().unwrap().push((request_id, limits));
            Ok(())
        });
        run.unwrap();
        drop(books);
        counting.join().unwrap();
        let opened = opened.into_inner().unwrap();
        assert!(opened.iter().all(|(_, limits)| limits.in_flight() == 0), "a permit is held");
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let page = runtime.block_on(parts.store.ledger().query(LedgerFilter::default())).unwrap();
        let recorded: Vec<RequestId> = page.entries.iter().map(|entry| entry.request_id).collect();
        let wanted: BTreeSet<String> = opened.iter().map(|(id, _)| id.to_string()).collect();
        assert_eq!(recorded.len(), opened.len(), "one entry each");
        assert_eq!(recorded.iter().map(ToString::to_string).collect::<BTreeSet<_>>(), wanted);
        parts.store.close();
    }
}
