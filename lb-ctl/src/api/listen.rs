use std::fmt;
use std::fs::{self, Permissions};
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener as StdUnixListener, UnixStream as StdUnixStream};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{Context, Result, bail, ensure};
use axum::Router;
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::watch;

use super::stopped;

/// Where the API is served: `unix:/path` or `address:port`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ListenAddress {
    /// Path of a Unix socket.
    Unix(PathBuf),
    /// TCP.
    Tcp(SocketAddr),
}

impl FromStr for ListenAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.strip_prefix("unix:") {
            Some(path) if !path.is_empty() => Ok(Self::Unix(path.into())),
            _ => text.parse().map(Self::Tcp).map_err(|_| {
                "write unix:/run/lb/ctl.sock, 127.0.0.1:9090 or [::1]:9090".to_owned()
            }),
        }
    }
}

impl fmt::Display for ListenAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Tcp(address) => address.fmt(f),
        }
    }
}

/// A bound socket. Dropping it removes the file of a Unix socket.
#[derive(Debug)]
pub struct Listener {
    address: ListenAddress,
    socket: Socket,
    // Dropped after the socket.
    _file: Option<SocketFile>,
}

#[derive(Debug)]
enum Socket {
    Unix(UnixListener),
    Tcp(TcpListener),
}

impl Listener {
    /// Binds. The file of a Unix socket has mode 0660; one that a dead
    /// process left behind is replaced.
    ///
    /// # Errors
    /// When another process listens there, when the TCP address could be
    /// reached from other hosts, or when binding fails.
    pub async fn bind(address: &ListenAddress) -> Result<Self> {
        match address {
            ListenAddress::Unix(path) => {
                let (socket, file) =
                    bind_unix(path).with_context(|| format!("cannot listen on {address}"))?;
                Ok(Self {
                    address: address.clone(),
                    socket: Socket::Unix(socket),
                    _file: Some(file),
                })
            }
            ListenAddress::Tcp(wanted) => {
                ensure!(
                    wanted.ip().is_loopback(),
                    "refusing to listen on {wanted}: the API asks nobody who they are, so other \
                     hosts must not reach it; listen on 127.0.0.1:{port} and reach it by \
                     `ssh -L {port}:127.0.0.1:{port}`, or put a proxy with authentication before it",
                    port = wanted.port(),
                );
                let socket = TcpListener::bind(wanted).await.with_context(|| {
                    format!("cannot listen on {wanted}: see who does with `ss -ltnp`")
                })?;
                Ok(Self {
                    // With port 0 the kernel has chosen one.
                    address: ListenAddress::Tcp(socket.local_addr()?),
                    socket: Socket::Tcp(socket),
                    _file: None,
                })
            }
        }
    }

    /// Where it listens.
    pub const fn address(&self) -> &ListenAddress {
        &self.address
    }

    pub(super) async fn serve(
        self,
        router: Router,
        stop: watch::Receiver<bool>,
    ) -> std::io::Result<()> {
        match self.socket {
            Socket::Unix(socket) => {
                axum::serve(socket, router)
                    .with_graceful_shutdown(stopped(stop))
                    .await
            }
            Socket::Tcp(socket) => {
                axum::serve(socket, router)
                    .with_graceful_shutdown(stopped(stop))
                    .await
            }
        }
    }
}

/// Binds under another name, sets the mode, then renames: nobody can connect
/// before the mode is right, and a stale socket is replaced in one step.
fn bind_unix(path: &Path) -> Result<(UnixListener, SocketFile)> {
    if let Some(directory) = path.parent().filter(|p| !p.as_os_str().is_empty()) {
        fs::create_dir_all(directory)
            .with_context(|| format!("cannot make {}", directory.display()))?;
    }
    match fs::symlink_metadata(path) {
        Ok(found) if !found.file_type().is_socket() => {
            bail!("{} exists and is not a socket: remove it", path.display())
        }
        Ok(_) => match StdUnixStream::connect(path) {
            Ok(_) => bail!(
                "another process listens there: is `lb-ctl up` running already? \
                 See `ss -lxp src {}`",
                path.display()
            ),
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => {}
            Err(error) => return Err(error.into()),
        },
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => return Err(error.into()),
    }
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(format!(".{}", std::process::id()));
    let temporary = PathBuf::from(temporary);
    // A leftover of an earlier process with our id.
    let _ = fs::remove_file(&temporary);
    let socket = StdUnixListener::bind(&temporary)?;
    let ready = || -> std::io::Result<u64> {
        fs::set_permissions(&temporary, Permissions::from_mode(0o660))?;
        socket.set_nonblocking(true)?;
        let inode = fs::symlink_metadata(&temporary)?.ino();
        fs::rename(&temporary, path)?;
        Ok(inode)
    };
    match ready() {
        Ok(inode) => {
            let path = path.to_owned();
            let file = SocketFile { path, inode };
            Ok((UnixListener::from_std(socket)?, file))
        }
        Err(error) => {
            let _ = fs::remove_file(&temporary);
            Err(error.into())
        }
    }
}

/// Removes the file of a Unix socket, unless it is another's by now.
#[derive(Debug)]
struct SocketFile {
    path: PathBuf,
    inode: u64,
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if fs::symlink_metadata(&self.path).is_ok_and(|found| found.ino() == self.inode) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn refusal(address: &ListenAddress) -> String {
        format!("{:#}", Listener::bind(address).await.unwrap_err())
    }

    #[test]
    fn addresses_are_read_as_they_are_shown() {
        for text in ["unix:/run/lb/ctl.sock", "127.0.0.1:9090", "[::1]:9090"] {
            let address: ListenAddress = text.parse().unwrap();
            assert_eq!(address.to_string(), text);
        }
        for text in ["", "unix:", "/run/lb/ctl.sock", "9090", "localhost"] {
            assert!(text.parse::<ListenAddress>().is_err(), "{text}");
        }
    }

    #[tokio::test]
    async fn a_stale_socket_is_replaced_and_a_live_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("new/ctl.sock");
        let address = ListenAddress::Unix(path.clone());
        fs::create_dir(dir.path().join("new")).unwrap();
        drop(StdUnixListener::bind(&path).unwrap());
        let listener = Listener::bind(&address).await.unwrap();
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o660);
        assert!(refusal(&address).await.contains("another process listens"));
        drop(listener);
        assert!(!path.exists());
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 0);
        fs::write(&path, "mine").unwrap();
        assert!(refusal(&address).await.contains("not a socket"));
        assert_eq!(fs::read(&path).unwrap(), b"mine");
    }

    #[tokio::test]
    async fn other_hosts_are_kept_out() {
        for text in ["0.0.0.0:0", "[::]:0", "203.0.113.1:9090"] {
            let refusal = refusal(&text.parse().unwrap()).await;
            assert!(refusal.contains("ssh -L"), "{refusal}");
        }
    }
}
