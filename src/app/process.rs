//! What the process itself uses, looked up when somebody asks, under the names Prometheus's own clients use.

use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{Gauge, IntGaugeVec, Opts};
use rustix::process::{Resource, getrlimit};

use crate::clock::Clock;
use crate::metrics::Metrics;

#[derive(Clone)]
struct Process {
    memory: Gauge,
    files: Gauge,
    files_max: Gauge,
    started: Gauge,
}

/// Adds the families.
#[expect(clippy::cast_precision_loss, reason = "milliseconds of this century are below 2^52")]
pub(super) fn register(metrics: &Metrics, clock: &Clock) {
    let opts = Opts::new("sidekey_build_info", "1; the label says which sidekey this is.");
    let build = metrics.register(IntGaugeVec::new(opts, &["version"]).expect("a valid family"));
    build.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
    let gauge = |name: &str, help: &str| Gauge::new(name, help).expect("a valid gauge");
    let process = Process {
        memory: gauge("process_resident_memory_bytes", "Resident memory, bytes."),
        files: gauge("process_open_fds", "Open file descriptors."),
        files_max: gauge("process_max_fds", "Open file descriptors at most."),
        started: gauge("process_start_time_seconds", "When the process began, Unix time."),
    };
    process.started.set(clock.wall_ms() as f64 / 1e3);
    metrics.register(process);
}

impl Collector for Process {
    fn desc(&self) -> Vec<&Desc> {
        [&self.memory, &self.files, &self.files_max, &self.started].into_iter().flat_map(Collector::desc).collect()
    }

    #[expect(clippy::cast_precision_loss, reason = "memory and descriptors are below 2^52")]
    fn collect(&self) -> Vec<MetricFamily> {
        self.memory.set(resident().unwrap_or_default() as f64);
        // The listing itself is one.
        let open = std::fs::read_dir("/proc/self/fd").map_or(0, |files| files.count().saturating_sub(1));
        self.files.set(open as f64);
        self.files_max.set(getrlimit(Resource::Nofile).current.map_or(f64::INFINITY, |most| most as f64));
        [&self.memory, &self.files, &self.files_max, &self.started].into_iter().flat_map(Collector::collect).collect()
    }
}

/// The second figure of `statm` is in pages.
fn resident() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = text.split(' ').nth(1)?.parse().ok()?;
    Some(pages * rustix::param::page_size() as u64)
}
