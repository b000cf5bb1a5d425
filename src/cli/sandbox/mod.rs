//! `sidekey exec --sandbox`: a command whose only way out is sidekey. Linux, without root and without other programs.
//!
//! The command gets a network namespace with nothing in it but a loopback interface, on which every address there is
//! counts as local. Whatever it connects to on port 443 is taken by a listener in there, whose socket is held out here:
//! the ClientHello says which host was meant, and the proxy is asked for a tunnel to it, where the rules of `connect`
//! apply. Names resolve to addresses that are nobody's. Every other port is refused by the kernel, IPv6 and UDP too.
//!
//! Beside that the command does not see sidekey's data directory, nor what is in the files of real keys that variables
//! named, and does not reach Unix sockets of programs outside that it could ask to connect for it: those that listen when
//! it starts, and all in `XDG_RUNTIME_DIR`.
//!
//! Owns the outside; `inside` is the process that shuts itself in, with `netlink`; `dns` has the names, `relay` the way
//! out.

mod dns;
mod inside;
mod netlink;
mod relay;

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use tempfile::TempDir;
use tokio::io::{AsyncWriteExt, Interest};
use tokio::net::{TcpListener, TcpStream, UdpSocket, UnixListener, UnixStream};
use tokio::process::{Child, Command};
use tokio::task::JoinSet;

use crate::cli::args::Allowed;
use crate::cli::failure::{Exit, Failure};
use crate::cli::out;
use crate::cli::sandbox::inside::{MOST_SOCKETS, Made, Plan};

/// The name under which this program is started to shut itself in.
const INSIDE: &str = "sidekey-sandbox";
const PORT: u16 = 443;
const DNS: u16 = 53;
const PATIENCE: Duration = Duration::from_secs(20);
/// jemalloc reads this beside what it is built to do: its thread in the background would be one too many for a process
/// that makes itself a user namespace.
const ONE_THREAD: (&str, &str) = ("_RJEM_MALLOC_CONF", "background_thread:false");
const FIX: &str = "allow user namespaces to ordinary users (sysctl user.max_user_namespaces; on Ubuntu \
                   kernel.apparmor_restrict_unprivileged_userns=0; in a container its seccomp profile), or leave \
                   --sandbox out";

/// What a sandbox needs to know.
#[derive(Clone, Debug)]
pub(super) struct Setup {
    /// Where sidekey's proxy listens, out here. It can be reached under this address in there too.
    pub(super) proxy: SocketAddr,
    /// Files that stand in for others: the first in place of the second.
    pub(super) instead: Vec<(PathBuf, PathBuf)>,
    /// Directories the command is to find empty.
    pub(super) hidden: Vec<PathBuf>,
    /// Files it is to find empty.
    pub(super) emptied: Vec<PathBuf>,
    /// What it may reach all the same.
    pub(super) allow: Vec<Allowed>,
    /// Says nothing of connections that have no way out.
    pub(super) quiet: bool,
}

/// A sandbox to be: the command is started, and waits.
#[derive(Debug)]
pub(super) struct Sandbox {
    setup: Setup,
    dir: TempDir,
    listener: UnixListener,
}

/// Its sockets.
#[derive(Debug)]
pub(super) struct Serving {
    tcp: Vec<(TcpListener, Role)>,
    udp: Vec<UdpSocket>,
    quiet: bool,
}

/// Where connections of a listener go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    /// Where their ClientHello says, through the proxy.
    Anywhere(SocketAddr),
    /// To one place.
    To(SocketAddr),
}

/// Runs the inside, when this process was started for that.
pub(super) fn main(words: &[OsString]) -> Option<ExitCode> {
    let (name, rest) = words.split_first()?;
    (name == INSIDE).then(|| inside::main(rest))
}

impl Sandbox {
    /// Prepares one.
    ///
    /// # Errors
    /// When there is no room for its socket.
    pub(super) fn new(setup: Setup) -> Result<Self, Failure> {
        let dir = tempfile::Builder::new().prefix("sidekey-sandbox-").tempdir()?;
        let listener = UnixListener::bind(dir.path().join("s"))?;
        Ok(Self { setup, dir, listener })
    }

    /// The command that shuts itself in and becomes `program`; for its environment and the rest to be set.
    pub(super) fn command(&self, program: &OsStr, words: &[OsString]) -> Command {
        let mut command = Command::new("/proc/self/exe");
        command.env(ONE_THREAD.0, ONE_THREAD.1);
        command.arg0(INSIDE).arg(self.dir.path().join("s")).arg(program).args(words);
        command
    }

    /// Shuts `child` in, and lets it go.
    ///
    /// # Errors
    /// When the system does not allow it.
    pub(super) async fn open(self, child: &mut Child) -> Result<Serving, Failure> {
        let opened = tokio::select! {
            opened = tokio::time::timeout(PATIENCE, self.try_open()) => opened,
            _ = child.wait() => Ok(Err("its process has ended".to_owned())),
        };
        let opened = opened.unwrap_or_else(|_| Err("its process does not answer".to_owned()));
        opened.map_err(|why| Failure::new(Exit::Failure, format!("no sandbox: {why}")).fix(FIX))
    }

    async fn try_open(self) -> Result<Serving, String> {
        let plan = self.setup.plan();
        let text = |error: io::Error| error.to_string();
        let (mut stream, _) = self.listener.accept().await.map_err(text)?;
        let mut line = serde_json::to_vec(&plan).map_err(|error| error.to_string())?;
        line.push(b'\n');
        stream.write_all(&line).await.map_err(text)?;
        let (made, sockets) = receive(&stream).await.map_err(text)?;
        if let Some(why) = made.failed {
            return Err(why);
        }
        let serving = self.setup.serving(&made, sockets).map_err(text)?;
        stream.write_all(b"!").await.map_err(text)?;
        Ok(serving)
    }
}

impl Setup {
    fn plan(&self) -> Plan {
        let mut tcp: BTreeSet<SocketAddr> = any(PORT).into();
        tcp.insert(self.proxy);
        let mut closed = listening_sockets(&fs::read_to_string("/proc/net/unix").unwrap_or_default());
        let mut emptied = self.hidden.clone();
        for allowed in &self.allow {
            match allowed {
                Allowed::Port(address) => drop(tcp.insert(*address)),
                Allowed::Socket(path) => {
                    closed.retain(|other| other != path);
                    emptied.retain(|dir| !path.starts_with(dir));
                }
            }
        }
        emptied.retain(|dir| dir.is_dir());
        closed.extend(self.emptied.iter().filter(|file| file.is_file()).cloned());
        let udp = nameservers(&fs::read_to_string("/etc/resolv.conf").unwrap_or_default());
        Plan {
            tcp: tcp.into_iter().collect(),
            udp: udp.into_iter().collect(),
            instead: self.instead.clone(),
            emptied,
            closed,
        }
    }

    fn serving(&self, made: &Made, sockets: Vec<OwnedFd>) -> io::Result<Serving> {
        if sockets.len() != made.tcp.len() + made.udp.len() {
            return Err(io::Error::other("not as many sockets as were announced"));
        }
        let mut sockets = sockets.into_iter();
        let role = |address: SocketAddr| {
            if any(PORT).contains(&address) { Role::Anywhere(self.proxy) } else { Role::To(address) }
        };
        let tcp = made.tcp.iter().zip(sockets.by_ref());
        let tcp: io::Result<_> =
            tcp.map(|(address, fd)| Ok((TcpListener::from_std(fd.into())?, role(*address)))).collect();
        let udp: io::Result<_> = sockets.map(|fd| UdpSocket::from_std(fd.into())).collect();
        Ok(Serving { tcp: tcp?, udp: udp?, quiet: self.quiet })
    }
}

impl Serving {
    /// Serves for as long as it is polled. Cancel safe: dropped, it closes all connections.
    pub(super) async fn run(self) {
        let Self { tcp, udp, quiet } = self;
        let mut tasks = JoinSet::new();
        for (listener, role) in tcp {
            tasks.spawn(accept(listener, role, quiet));
        }
        for socket in udp {
            tasks.spawn(resolve(socket));
        }
        while tasks.join_next().await.is_some() {}
    }
}

async fn accept(listener: TcpListener, role: Role, quiet: bool) {
    let mut connections = JoinSet::new();
    let mut said = BTreeSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(ended) = connections.join_next() => {
                if let Ok(Err(why)) = ended {
                    let why: relay::NoWay = why;
                    let why = why.to_string();
                    if !quiet && said.insert(why.clone()) {
                        out::say(&format!("sidekey: {why}"));
                    }
                }
                continue;
            }
        };
        match accepted {
            Ok((client, _)) => {
                let _ = client.set_nodelay(true);
                connections.spawn(lead(client, role));
            }
            // Out of descriptors: trying again at once would spin.
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}

async fn lead(client: TcpStream, role: Role) -> Result<(), relay::NoWay> {
    match role {
        Role::Anywhere(proxy) => relay::relay(client, proxy).await,
        Role::To(address) => relay::forward(client, address).await,
    }
}

async fn resolve(socket: UdpSocket) {
    let mut buffer = [0; 1024];
    loop {
        // An error here is of an answer that nobody waited for.
        if let Ok((len, from)) = socket.recv_from(&mut buffer).await
            && let Some(answer) = dns::answer(&buffer[..len])
        {
            let _ = socket.send_to(&answer, from).await;
        }
    }
}

/// The answer of the inside, and the sockets that come with it.
async fn receive(stream: &UnixStream) -> io::Result<(Made, Vec<OwnedFd>)> {
    let mut text = vec![0; 16 * 1024];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_SOCKETS))];
    let mut sockets = Vec::new();
    let len = stream
        .async_io(Interest::READABLE, || {
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let got = recvmsg(stream, &mut [IoSliceMut::new(&mut text)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
            for message in control.drain() {
                if let RecvAncillaryMessage::ScmRights(fds) = message {
                    sockets.extend(fds);
                }
            }
            Ok(got.bytes)
        })
        .await?;
    if len == 0 {
        return Err(io::Error::from(io::ErrorKind::UnexpectedEof));
    }
    Ok((serde_json::from_slice(&text[..len])?, sockets))
}

/// Every address of both families.
fn any(port: u16) -> [SocketAddr; 2] {
    [(Ipv4Addr::UNSPECIFIED, port).into(), (Ipv6Addr::UNSPECIFIED, port).into()]
}

/// Where programs ask for names: what resolv.conf(5) says, and its defaults. Their addresses are local in there.
fn nameservers(resolv_conf: &str) -> BTreeSet<SocketAddr> {
    let said = resolv_conf.lines().filter_map(|line| line.trim().strip_prefix("nameserver")?.trim().parse().ok());
    let usual = [Ipv4Addr::LOCALHOST.into(), Ipv4Addr::new(127, 0, 0, 53).into(), Ipv6Addr::LOCALHOST.into()];
    let all: BTreeSet<IpAddr> = said.chain(usual).filter(|ip: &IpAddr| !ip.is_unspecified()).collect();
    all.into_iter().map(|ip| SocketAddr::new(ip, DNS)).collect()
}

/// The paths of /proc/net/unix at which a stream is listened for.
fn listening_sockets(proc_net_unix: &str) -> Vec<PathBuf> {
    /// `__SO_ACCEPTCON`
    const LISTENS: u32 = 0x1_0000;
    let path = |line: &str| {
        let mut words = line.splitn(8, char::is_whitespace).filter(|word| !word.is_empty());
        let flags = words.nth(3).and_then(|word| u32::from_str_radix(word, 16).ok())?;
        let path = line.find(" /").map(|at| &line[at + 1..])?;
        (flags & LISTENS != 0).then(|| PathBuf::from(path))
    };
    let all: BTreeSet<PathBuf> = proc_net_unix.lines().skip(1).filter_map(path).collect();
    all.into_iter().filter(|path| Path::new(path).is_absolute()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_listened_on() {
        let table = "Num       RefCount Protocol Flags    Type St Inode Path\n\
                     0000000000000001: 00000002 00000000 00010000 0001 01 11111 /run/docker.sock\n\
                     0000000000000002: 00000003 00000000 00000000 0001 03 11112 /run/dbus/connected\n\
                     0000000000000003: 00000002 00000000 00010000 0001 01 11113 @/tmp/abstract\n\
                     0000000000000004: 00000002 00000000 00010000 0005 01 11114 /tmp/with space/s\n\
                     0000000000000005: 00000002 00000000 00010000 0001 01 11115\n";
        assert_eq!(listening_sockets(table), [Path::new("/run/docker.sock"), Path::new("/tmp/with space/s")]);
    }

    #[test]
    fn where_names_are_asked_for() {
        let conf = "# nameserver 9.9.9.9\nnameserver 10.0.0.2\nnameserver\t2001:db8::53\nnameserver fe80::1%eth0\n\
                    nameserver 127.0.0.53\noptions ndots:2\n";
        let got: Vec<String> = nameservers(conf).iter().map(ToString::to_string).collect();
        assert_eq!(got, ["10.0.0.2:53", "127.0.0.1:53", "127.0.0.53:53", "[::1]:53", "[2001:db8::53]:53"]);
    }
}
