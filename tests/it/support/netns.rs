//! Network namespaces of a test's own: links, addresses and the kernel's rules that nobody else sees.
//!
//! They need root. Where they cannot be had the tests say so, with their number, and CI has them.

use std::fs::File;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rustix::fd::AsFd;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// Tests that were left out so far.
static SKIPPED: AtomicUsize = AtomicUsize::new(0);

/// True when there can be namespaces, and all of `tools`; else says that this test is left out.
pub(crate) fn possible(what: &str, tools: &[&str]) -> bool {
    let why = if !rustix::process::geteuid().is_root() {
        "they need root".to_owned()
    } else if !works(Command::new("unshare").args(["-n", "-m", "true"])) {
        "the system does not allow them".to_owned()
    } else {
        match ["ip", "nsenter", "setpriv"].iter().chain(tools).find(|tool| !is_there(tool)) {
            Some(tool) if std::env::var_os("CI").is_some() => panic!("{tool} is missing"),
            Some(tool) => format!("{tool} is missing"),
            None => return true,
        }
    };
    let count = SKIPPED.fetch_add(1, Ordering::Relaxed) + 1;
    eprintln!("SKIPPED ({count} so far): no network namespaces: {why}; not tried: {what}");
    false
}

fn works(command: &mut Command) -> bool {
    command.stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|status| status.success())
}

pub(crate) fn is_there(tool: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| dir.join(tool).is_file())
}

/// A network namespace, with mounts of its own; gone when dropped.
#[derive(Debug)]
pub(crate) struct Namespace {
    /// Whoever holds it open.
    holder: Child,
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

impl Namespace {
    /// One with nothing in it but a loopback interface that is up.
    pub(crate) fn new() -> Self {
        let mut unshare = Command::new("unshare");
        let holder = unshare.args(["-n", "-m", "sleep", "3600"]).stdin(Stdio::null()).spawn().expect("unshare runs");
        let namespace = Self { holder };
        let name = |path: String| std::fs::read_link(path).ok();
        let deadline = Instant::now() + Duration::from_secs(20);
        let (ours, theirs) = ("/proc/self/ns/mnt".to_owned(), format!("/proc/{}/ns/mnt", namespace.pid()));
        while name(theirs.clone()).is_none_or(|found| Some(found) == name(ours.clone())) {
            assert!(Instant::now() < deadline, "unshare does not begin");
            std::thread::sleep(Duration::from_millis(5));
        }
        namespace.sh("ip link set lo up");
        namespace
    }

    /// Two, joined: addresses of documentation, IPv4 and IPv6. The first has `.1`, and all that is elsewhere goes to the
    /// second, which has `.2` and `.3`.
    pub(crate) fn pair() -> (Self, Self) {
        let (near, far) = (Self::new(), Self::new());
        let pid = far.pid();
        near.sh(&format!("ip link add v0 type veth peer name v1 netns {pid} && ip link set v0 up"));
        let address = |last: u8, dev: &str| {
            format!("ip addr add 203.0.113.{last}/24 dev {dev}; ip addr add 2001:db8:1::{last}/64 dev {dev} nodad\n")
        };
        far.sh(&format!("set -e\nip link set v1 up\n{}{}", address(2, "v1"), address(3, "v1")));
        near.sh(&format!("set -e\n{}", address(1, "v0")));
        near.sh("ip route add default via 203.0.113.2 && ip -6 route add default via 2001:db8:1::2");
        (near, far)
    }

    /// The process that holds it.
    pub(crate) fn pid(&self) -> u32 {
        self.holder.id()
    }

    /// A command in it, as this user.
    pub(crate) fn command(&self, uid: u32, program: impl AsRef<Path>) -> Command {
        let mut command = Command::new("nsenter");
        let (pid, uid) = (self.pid().to_string(), uid.to_string());
        command.args(["-t", &pid, "-n", "-m", "--", "setpriv", "--clear-groups", "--reuid", &uid, "--regid", &uid]);
        command.arg(program.as_ref());
        command
    }

    /// Runs a script in it, as root; it must succeed.
    pub(crate) fn sh(&self, script: &str) -> String {
        let output = self.command(0, "sh").args(["-c", script]).output().expect("nsenter runs");
        let (out, error) = (text(&output.stdout), text(&output.stderr));
        assert!(output.status.success(), "{script}: {}\n{out}{error}", output.status);
        out
    }

    /// Calls `f` on a thread that is in it: sockets made there belong there, for good.
    pub(crate) fn run<T: Send>(&self, f: impl FnOnce() -> T + Send) -> T {
        let file = File::open(format!("/proc/{}/ns/net", self.pid())).expect("the holder lives");
        let enter = || {
            move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network)).expect("root may enter");
            f()
        };
        std::thread::scope(|scope| scope.spawn(enter).join().expect("no panic"))
    }
}

/// Bytes as text.
pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// All that a process wrote.
pub(crate) fn said(output: &Output) -> String {
    text(&output.stdout) + &text(&output.stderr)
}
