//! What the kernel says of a process, the clock that all processes share, and which core runs what.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use rustix::process::{getpid, setpriority_process};
use rustix::thread::{CpuSet, sched_setaffinity};
use rustix::time::{ClockId, clock_gettime};

/// The core of the proxy, and the one of upstream and load.
pub(crate) const PROXY_CORE: usize = 0;
pub(crate) const LOAD_CORE: usize = 1;

/// The machine's monotonic clock: the same in every process, unlike an `Instant`.
pub(crate) fn monotonic_ns() -> u64 {
    let time = clock_gettime(ClockId::Monotonic);
    // Never negative, and below 2^64 for 584 years.
    u64::try_from(time.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(time.tv_nsec).unwrap_or(0)
}

/// Lets this process, and those it starts from here on, run on `core` only. False where there is but one.
pub(crate) fn pin(core: usize) -> bool {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let mut set = CpuSet::new();
    set.set(core);
    core < cores && sched_setaffinity(Some(getpid()), &set).is_ok()
}

/// Lets them run everywhere again.
pub(crate) fn unpin() {
    let mut set = CpuSet::new();
    (0..CpuSet::MAX_CPU).for_each(|core| set.set(core));
    // It may not be allowed what it had; then it stays pinned, and only its own waiting suffers.
    let _ = sched_setaffinity(Some(getpid()), &set);
}

/// Sets the priority of this process and of those it starts from here on: below 0, neighbours disturb less.
pub(crate) fn set_nice(nice: i32) -> Result<()> {
    setpriority_process(None, nice).with_context(|| format!("priority {nice}: is that allowed here?"))
}

/// Nanoseconds on a processor so far, of all living threads.
pub(crate) fn cpu_ns(pid: u32) -> Result<u64> {
    let mut sum = 0;
    for task in fs::read_dir(format!("/proc/{pid}/task")).context("process gone")? {
        // A thread may end in between.
        let text = fs::read_to_string(task?.path().join("schedstat")).unwrap_or_default();
        sum += text.split(' ').next().and_then(|ns| ns.parse::<u64>().ok()).unwrap_or(0);
    }
    Ok(sum)
}

/// The part of it in user space, by the kernel's ticks of 10 ms.
pub(crate) fn user_ns(pid: u32) -> Result<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let fields = stat.rsplit_once(')').context("/proc/<pid>/stat")?.1;
    let ticks: u64 = fields.split_whitespace().nth(11).context("/proc/<pid>/stat has no utime")?.parse()?;
    Ok(ticks * 10_000_000)
}

/// Resident memory, KB.
pub(crate) fn rss_kb(pid: u32) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}

/// Bytes of a program without its symbols; of the file as it is where there is no `strip`.
pub(crate) fn stripped_bytes(program: &Path, scratch: &Path) -> Result<u64> {
    let copy = scratch.join("stripped");
    let done = std::process::Command::new("strip").arg("-o").arg(&copy).arg(program).status();
    let path = if done.is_ok_and(|status| status.success()) { copy.as_path() } else { program };
    Ok(fs::metadata(path)?.len())
}

/// The given percentile in microseconds; 0 of nothing.
pub(crate) fn percentile_us(times_ns: &mut [u64], percent: usize) -> f64 {
    times_ns.sort_unstable();
    let index = (times_ns.len() * percent / 100).min(times_ns.len().saturating_sub(1));
    times_ns.get(index).map_or(0.0, |ns| *ns as f64 / 1_000.0)
}

/// The middle one; the mean of the middle two.
pub(crate) fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_unstable_by(f64::total_cmp);
    let half = values.len() / 2;
    let upper = *values.get(half)?;
    Some(if values.len() % 2 == 1 { upper } else { (values[half - 1] + upper) / 2.0 })
}
