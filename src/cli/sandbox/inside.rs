//! The inside of a sandbox: a process that shuts itself in, hands its sockets out, and becomes the command.
//!
//! Owns the namespaces and what is mounted in them. It has a single thread, as user_namespaces(7) wants of a process
//! that makes one, and so is started anew from this program's own file.

use std::ffi::OsString;
use std::fs;
use std::io::{self, BufRead, BufReader, IoSlice, Read};
use std::mem::MaybeUninit;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use rustix::io::Errno;
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_bind, mount_change};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use rustix::process::{getegid, geteuid};
use rustix::thread::UnshareFlags;
use serde::{Deserialize, Serialize};
use socket2::{Domain, Protocol, Socket, Type};

use crate::cli::failure::Exit;
use crate::cli::sandbox::{ONE_THREAD, netlink};
use crate::cli::{exec, out};

/// Sockets handed out at most.
pub(super) const MOST_SOCKETS: usize = 64;
const BACKLOG: i32 = 1024;

/// What is to be there.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Plan {
    /// TCP listeners.
    pub(super) tcp: Vec<SocketAddr>,
    /// UDP sockets.
    pub(super) udp: Vec<SocketAddr>,
    /// Files that stand in for others: the first in place of the second.
    pub(super) instead: Vec<(PathBuf, PathBuf)>,
    /// Directories that are empty.
    pub(super) emptied: Vec<PathBuf>,
    /// Sockets in the file system that lead nowhere, and files that are empty.
    pub(super) closed: Vec<PathBuf>,
}

/// What came of a [`Plan`]; the sockets come with it, TCP before UDP.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Made {
    pub(super) tcp: Vec<SocketAddr>,
    pub(super) udp: Vec<SocketAddr>,
    /// Why there is none.
    pub(super) failed: Option<String>,
}

/// Runs: a socket's path, the command, its arguments.
pub(super) fn main(words: &[OsString]) -> ExitCode {
    let [socket, program, args @ ..] = words else { return ExitCode::from(Exit::Usage as u8) };
    let Ok(socket) = UnixStream::connect(socket) else { return ExitCode::from(Exit::Failure as u8) };
    let mut reader = BufReader::new(&socket);
    let entered = read_plan(&mut reader).and_then(|plan| enter(&plan));
    let (made, sockets) = match entered {
        Ok(entered) => entered,
        Err(why) => (Made { failed: Some(why), ..Made::default() }, Vec::new()),
    };
    let failed = made.failed.is_some();
    // Whoever started us has gone, or says why this did not work.
    if hand_out(&socket, &made, &sockets).is_err() || failed || reader.read_exact(&mut [0]).is_err() {
        return ExitCode::from(Exit::Failure as u8);
    }
    drop(sockets);
    let error = Command::new(program).args(args).env_remove(ONE_THREAD.0).exec();
    out::say(&format!("error: {}: {error}", program.to_string_lossy()));
    ExitCode::from(exec::code_of_failed_start(&error))
}

fn read_plan(reader: &mut impl BufRead) -> Result<Plan, String> {
    let mut line = String::new();
    reader.read_line(&mut line).map_err(|error| error.to_string())?;
    serde_json::from_str(&line).map_err(|error| error.to_string())
}

/// Shuts this process in.
fn enter(plan: &Plan) -> Result<(Made, Vec<OwnedFd>), String> {
    unshare(UnshareFlags::NEWUSER | UnshareFlags::NEWNET | UnshareFlags::NEWNS)?;
    let v6 = netlink::set_up().map_err(told("the loopback interface"))?;
    let (made, sockets) = listen(plan, v6)?;
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).map_err(told("mounts"))?;
    for (stand_in, file) in &plan.instead {
        mount_bind(stand_in, file).map_err(at(file))?;
    }
    for path in &plan.closed {
        match mount_bind("/dev/null", path) {
            // What has gone, or cannot be reached from here, cannot be reached by the command.
            Ok(()) | Err(Errno::NOENT | Errno::ACCESS | Errno::NOTDIR) => {}
            Err(error) => return Err(at(path)(error)),
        }
    }
    for dir in &plan.emptied {
        mount("tmpfs", dir, "tmpfs", MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV, c"mode=0755")
            .map_err(at(dir))?;
    }
    // Once more: the command is not to own the namespaces above, and could then undo none of it, root or not.
    unshare(UnshareFlags::NEWUSER)?;
    Ok((made, sockets))
}

/// Leaves this process's namespaces for new ones, as the same user.
fn unshare(flags: UnshareFlags) -> Result<(), String> {
    let (uid, gid) = (geteuid().as_raw(), getegid().as_raw());
    #[expect(deprecated, reason = "its callers are to take care of FILES, which is not among these flags")]
    rustix::thread::unshare(flags).map_err(told("namespaces"))?;
    let write = |name: &str, text: String| {
        let path = format!("/proc/self/{name}");
        fs::write(&path, text).map_err(|error| format!("{path}: {error}"))
    };
    // Without that no group may be mapped (user_namespaces(7)).
    write("setgroups", "deny".to_owned())?;
    write("uid_map", format!("{uid} {uid} 1"))?;
    write("gid_map", format!("{gid} {gid} 1"))
}

fn listen(plan: &Plan, v6: bool) -> Result<(Made, Vec<OwnedFd>), String> {
    let wanted = |addresses: &[SocketAddr]| -> Vec<SocketAddr> {
        addresses.iter().copied().filter(|address| v6 || address.is_ipv4()).collect()
    };
    let made = Made { tcp: wanted(&plan.tcp), udp: wanted(&plan.udp), failed: None };
    let mut sockets: Vec<OwnedFd> = Vec::new();
    let failed = |address: &SocketAddr| {
        let address = *address;
        move |error: io::Error| format!("{address}: {error}")
    };
    for address in &made.tcp {
        sockets.push(bind(*address).map_err(failed(address))?.into());
    }
    for address in &made.udp {
        let socket = UdpSocket::bind(address).and_then(|socket| socket.set_nonblocking(true).map(|()| socket));
        sockets.push(socket.map_err(failed(address))?.into());
    }
    Ok((made, sockets))
}

/// One family each: the other has a listener of its own.
fn bind(address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket)
}

fn hand_out(to: &UnixStream, made: &Made, sockets: &[OwnedFd]) -> io::Result<()> {
    let text = serde_json::to_vec(made)?;
    let fds: Vec<BorrowedFd<'_>> = sockets.iter().map(AsFd::as_fd).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_SOCKETS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(&fds)) {
        return Err(io::Error::other("more sockets than can be handed out"));
    }
    sendmsg(to, &[IoSlice::new(&text)], &mut control, SendFlags::empty())?;
    Ok(())
}

fn told(what: &'static str) -> impl Fn(Errno) -> String {
    move |error| format!("{what}: {}", io::Error::from(error))
}

fn at(path: &Path) -> impl Fn(Errno) -> String {
    move |error| format!("{}: {}", path.display(), io::Error::from(error))
}
