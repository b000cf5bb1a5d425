//! The rows, what was measured for them, and the table: medians of rounds, and ratios.

use std::collections::BTreeMap;

use comfy_table::{CellAlignment, Table, presets};

use crate::probe;

/// A row.
pub(crate) struct Metric {
    pub(crate) id: &'static str,
    label: &'static str,
    digits: usize,
    /// Shown as what a proxy adds to direct in the same round.
    added: bool,
}

const fn row(id: &'static str, label: &'static str, digits: usize) -> Metric {
    Metric { id, label, digits, added: false }
}

const fn added(id: &'static str, label: &'static str, digits: usize) -> Metric {
    Metric { id, label, digits, added: true }
}

const ROWS: &[Metric] = &[
    row("start_ms", "start to first answer, ms", 1),
    row("rest_mb", "memory at rest, MB", 1),
    row("rps", "requests/s, 1 KB, 64 connections", 0),
    row("cpu_us", "  CPU, us/request", 1),
    row("user_us", "  of it in user space, us", 1),
    row("rps_64k", "requests/s, 64 KB, 64 connections", 0),
    row("cpu_64k_us", "  CPU, us/request", 1),
    row("p50_us", "latency at 2,000/s: p50, us", 0),
    added("p50_us", "  added p50, us", 0),
    row("p99_us", "latency at 2,000/s: p99, us", 0),
    added("p99_us", "  added p99, us", 0),
    row("ttfb_us", "stream: time to first byte, us", 0),
    added("ttfb_us", "  added, us", 0),
    row("delay_p50_us", "stream: event delay p50, us", 0),
    added("delay_p50_us", "  added p50, us", 0),
    row("delay_p99_us", "stream: event delay p99, us", 0),
    added("delay_p99_us", "  added p99, us", 0),
    row("event_cpu_us", "stream: CPU, us/event", 1),
    row("burst_cpu_us", "burst of 200 events: CPU, us/event", 2),
    row("burst_writes", "burst of 200 events: writes to client", 1),
    row("open_mb", "memory with idle streams open, MB", 1),
    row("stream_kb", "memory per idle stream, KB", 1),
    row("closed_mb", "memory 3 s after they closed, MB", 1),
    row("size_mb", "program without symbols, MB", 1),
];

/// All figures: row and system to one value a round (`None` when that round gave none).
#[derive(Default)]
pub(crate) struct Samples(BTreeMap<(&'static str, &'static str), BTreeMap<usize, f64>>);

impl Samples {
    pub(crate) fn record(&mut self, round: usize, system: &'static str, id: &'static str, value: f64) {
        self.0.entry((id, system)).or_default().insert(round, value);
    }

    fn median(&self, metric: &Metric, system: &'static str) -> Option<f64> {
        let values = self.0.get(&(metric.id, system))?;
        if !metric.added {
            return probe::median(values.values().copied().collect());
        }
        let direct = self.0.get(&(metric.id, "direct"))?;
        let difference = |(round, value): (&usize, &f64)| direct.get(round).map(|base| value - base);
        probe::median(values.iter().filter_map(difference).collect()).filter(|_| system != "direct")
    }

    /// The table of everything that was measured.
    pub(crate) fn table(&self) -> String {
        let mut table = Table::new();
        table.load_preset(presets::ASCII_MARKDOWN);
        table.set_header([
            "median of rounds",
            "direct",
            "bare",
            "sidekey",
            "sidekey/bare",
            "sidekey/direct",
            "bare/direct",
        ]);
        table.column_iter_mut().skip(1).for_each(|column| column.set_cell_alignment(CellAlignment::Right));
        for metric in ROWS {
            let [direct, bare, sidekey] = ["direct", "bare", "sidekey"].map(|system| self.median(metric, system));
            if [direct, bare, sidekey].iter().all(Option::is_none) {
                continue;
            }
            let plain = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), |v| format!("{v:.*}", metric.digits));
            table.add_row([
                metric.label.to_owned(),
                plain(direct),
                plain(bare),
                plain(sidekey),
                ratio(sidekey, bare),
                ratio(sidekey, direct),
                ratio(bare, direct),
            ]);
        }
        table.to_string()
    }
}

fn ratio(a: Option<f64>, b: Option<f64>) -> String {
    match (a, b) {
        (Some(a), Some(b)) if b > 0.0 => format!("{:.2}", a / b),
        _ => "-".to_owned(),
    }
}
