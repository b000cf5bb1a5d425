//! The Unix socket of the admin API: who may speak is decided by the kernel's word on the peer.
//!
//! Owns binding, modes and the check of the peer; leaves the API to [`super::router`].

use std::fs::{self, File, Permissions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};

use axum::Router;
use axum::extract::Request;
use axum::extract::connect_info::{ConnectInfo, Connected};
use axum::middleware::Next;
use axum::response::Response;
use axum::serve::IncomingStream;
use tokio::net::{TcpListener, UnixListener, UnixStream, unix};

use crate::control::caller::Caller;

/// `sun_path` holds 108 bytes on Linux and 104 elsewhere, the closing zero included.
const LONGEST_PATH: usize = 103;

/// The bound socket. Removing the file is left to the next start, which knows a stale one.
#[derive(Debug)]
pub struct AdminSocket {
    listener: UnixListener,
    uid: u32,
}

/// Why the socket was not bound.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Somebody answers on it.
    #[error("{0} is in use: another sidekey runs on this data directory")]
    InUse(PathBuf),
    /// Something else stands there.
    #[error("{0} is not a socket; move it away")]
    NotASocket(PathBuf),
    /// The system refused.
    #[error("cannot bind {path}: {source}", path = path.display())]
    Io {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl AdminSocket {
    /// Binds `path` with mode 0600, in place of a socket that nobody answers on.
    ///
    /// # Errors
    /// When somebody answers on it, or it is not a socket, or the system refuses.
    pub async fn bind(path: &Path) -> Result<Self, SocketError> {
        let failed = |source| SocketError::Io { path: path.to_path_buf(), source };
        let reach = Reach::to(path).map_err(failed)?;
        match fs::symlink_metadata(path) {
            Ok(found) if !found.file_type().is_socket() => return Err(SocketError::NotASocket(path.to_path_buf())),
            Ok(_) if UnixStream::connect(&reach.path).await.is_ok() => {
                return Err(SocketError::InUse(path.to_path_buf()));
            }
            Ok(_) => fs::remove_file(path).map_err(failed)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(failed(error)),
        }
        let listener = UnixListener::bind(&reach.path).map_err(failed)?;
        fs::set_permissions(path, Permissions::from_mode(0o600)).map_err(failed)?;
        Ok(Self { listener, uid: rustix::process::geteuid().as_raw() })
    }

    /// Serves `router`, every request with its [`Caller`], until `shutdown` ends, then lets open requests finish.
    ///
    /// # Errors
    /// Never in practice: accepting retries.
    pub async fn serve(self, router: Router, shutdown: impl Future<Output = ()> + Send + 'static) -> io::Result<()> {
        let router = router.layer(axum::middleware::from_fn(introduce));
        let service = router.into_make_service_with_connect_info::<PeerUid>();
        axum::serve(self, service).with_graceful_shutdown(shutdown).await
    }
}

/// The user at the other end, when the kernel says who.
#[derive(Clone, Copy, Debug)]
pub struct PeerUid(Option<u32>);

impl Connected<IncomingStream<'_, AdminSocket>> for PeerUid {
    fn connect_info(stream: IncomingStream<'_, AdminSocket>) -> Self {
        Self(stream.io().peer_cred().ok().map(|peer| peer.uid()))
    }
}

/// Says who asks. Accepting let in only those whose uid is known.
async fn introduce(mut request: Request, next: Next) -> Response {
    if let Some(ConnectInfo(PeerUid(Some(uid)))) = request.extensions().get().copied() {
        request.extensions_mut().insert(Caller::socket(uid));
    }
    next.run(request).await
}

impl axum::serve::Listener for AdminSocket {
    type Io = UnixStream;
    type Addr = unix::SocketAddr;

    async fn accept(&mut self) -> (UnixStream, unix::SocketAddr) {
        loop {
            let (stream, address) = axum::serve::Listener::accept(&mut self.listener).await;
            match stream.peer_cred() {
                Ok(peer) if peer.uid() == self.uid || peer.uid() == 0 => return (stream, address),
                Ok(peer) => tracing::warn!(uid = peer.uid(), "admin connection of another user closed"),
                Err(error) => tracing::warn!(%error, "admin connection of an unknown user closed"),
            }
        }
    }

    fn local_addr(&self) -> io::Result<unix::SocketAddr> {
        self.listener.local_addr()
    }
}

/// Serves `router` on a TCP listener until `shutdown` ends: the telemetry.
///
/// # Errors
/// Never in practice: accepting retries.
pub async fn serve_tcp(
    listener: TcpListener,
    router: Router,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> io::Result<()> {
    axum::serve(listener, router).with_graceful_shutdown(shutdown).await
}

/// A way to a socket whose path may be longer than an address can hold: then through its open directory.
#[derive(Debug)]
pub struct Reach {
    /// What to bind or connect to, while this lives.
    pub path: PathBuf,
    _directory: Option<File>,
}

impl Reach {
    /// A way to `path`.
    ///
    /// # Errors
    /// When its directory cannot be opened.
    pub fn to(path: &Path) -> io::Result<Self> {
        let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else {
            return Ok(Self { path: path.to_path_buf(), _directory: None });
        };
        if path.as_os_str().len() <= LONGEST_PATH || !cfg!(target_os = "linux") {
            return Ok(Self { path: path.to_path_buf(), _directory: None });
        }
        let directory = File::open(directory)?;
        let path = Path::new("/proc/self/fd").join(directory.as_raw_fd().to_string()).join(name);
        Ok(Self { path, _directory: Some(directory) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn binds_over_what_is_stale_and_nothing_else() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("admin.sock");
        let first = AdminSocket::bind(&path).await.unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(matches!(AdminSocket::bind(&path).await, Err(SocketError::InUse(_))));
        drop(first);
        drop(AdminSocket::bind(&path).await.unwrap());
        fs::remove_file(&path).unwrap();
        fs::write(&path, "precious").unwrap();
        assert!(matches!(AdminSocket::bind(&path).await, Err(SocketError::NotASocket(_))));
    }

    #[tokio::test]
    #[cfg(target_os = "linux")]
    async fn long_paths_are_reached_through_their_directory() {
        let directory = tempfile::tempdir().unwrap();
        let deep = directory.path().join("d".repeat(120));
        fs::create_dir(&deep).unwrap();
        let path = deep.join("admin.sock");
        let _socket = AdminSocket::bind(&path).await.unwrap();
        assert!(UnixStream::connect(Reach::to(&path).unwrap().path).await.is_ok());
    }
}
