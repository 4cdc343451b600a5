//! The daemon's socket file: made with its final mode from the first instant, taken over from a dead daemon, removed at
//! the end if it is still ours.

use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{Gid, Mode, fchmod};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use tokio::net::UnixListener;

/// Longest path of a Unix socket in bytes: `sun_path` without its final zero (unix(7)).
pub const MAX_SOCKET_PATH: usize = 107;

/// Connections that wait to be accepted.
const BACKLOG: i32 = 128;

/// Why a socket cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// The path does not fit the kernel's structure.
    #[error("use {path:?} as a socket: the path has {length} bytes, and Linux allows {MAX_SOCKET_PATH}")]
    PathTooLong {
        /// The path.
        path: PathBuf,
        /// Its length.
        length: usize,
    },
    /// Something else has the name.
    #[error("use {path:?} as a socket: it exists and is not a socket")]
    NotASocket {
        /// The path.
        path: PathBuf,
    },
    /// Somebody serves there.
    #[error("use {path:?} as a socket: another process serves it")]
    Served {
        /// The path.
        path: PathBuf,
    },
    /// The system refused.
    #[error("{action} {path:?}")]
    Io {
        /// What was tried, with a preposition at its end.
        action: &'static str,
        /// The path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// A listening socket and the file it is reached by.
#[derive(Debug)]
pub struct BoundSocket {
    path: PathBuf,
    /// Device and inode, so that nobody else's socket of the same name is removed.
    identity: (u64, u64),
}

impl BoundSocket {
    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for BoundSocket {
    fn drop(&mut self) {
        let ours = std::fs::symlink_metadata(&self.path).is_ok_and(|m| (m.dev(), m.ino()) == self.identity);
        if ours && let Err(error) = std::fs::remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "cannot remove the socket");
        }
    }
}

/// Listens at `path`: mode 0600, or 0660 and `group`. A socket that nobody serves is replaced.
///
/// The caller holds the daemon's lock; without it two daemons could replace each other's sockets. The file is removed
/// when the [`BoundSocket`] is dropped, which belongs after the listener's end.
///
/// # Errors
/// See [`BindError`]. A refused path is left as it was.
pub fn bind(path: &Path, group: Option<u32>) -> Result<(UnixListener, BoundSocket), BindError> {
    check_length(path)?;
    let fail = |action| {
        move |source: io::Error| BindError::Io {
            action,
            path: path.to_owned(),
            source,
        }
    };
    clear_stale(path)?;

    let socket = rustix::net::socket_with(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
        None,
    )
    .map_err(|e| fail("make a socket for")(e.into()))?;
    // Linux gives the file the mode of the socket's own inode, less the umask (net/unix/af_unix.c, unix_bind_bsd), so it
    // never exists with a wider one. The listen below comes after group and mode: until then nobody can connect.
    fchmod(socket.as_fd(), Mode::RUSR | Mode::WUSR).map_err(|e| fail("set the mode of")(e.into()))?;
    let address = SocketAddrUnix::new(path).map_err(|e| fail("make a socket at")(e.into()))?;
    rustix::net::bind(&socket, &address).map_err(|e| fail("make a socket at")(e.into()))?;
    let made = std::fs::symlink_metadata(path).map_err(fail("look at"))?;
    let bound = BoundSocket {
        path: path.to_owned(),
        identity: (made.dev(), made.ino()),
    };
    if let Some(group) = group {
        rustix::fs::chown(path, None, Some(Gid::from_raw(group)))
            .map_err(|e| fail("give the group of")(e.into()))?;
        rustix::fs::chmod(path, Mode::RUSR | Mode::WUSR | Mode::RGRP | Mode::WGRP)
            .map_err(|e| fail("set the mode of")(e.into()))?;
    }
    rustix::net::listen(&socket, BACKLOG).map_err(|e| fail("listen at")(e.into()))?;
    let listener =
        UnixListener::from_std(std::os::unix::net::UnixListener::from(socket)).map_err(fail("listen at"))?;
    Ok((listener, bound))
}

/// Refuses a path that does not fit `sun_path`.
///
/// # Errors
/// [`BindError::PathTooLong`].
fn check_length(path: &Path) -> Result<(), BindError> {
    let length = path.as_os_str().len();
    if length > MAX_SOCKET_PATH {
        return Err(BindError::PathTooLong {
            path: path.to_owned(),
            length,
        });
    }
    Ok(())
}

/// Removes a socket that nobody serves any more.
fn clear_stale(path: &Path) -> Result<(), BindError> {
    let fail = |action| {
        move |source: io::Error| BindError::Io {
            action,
            path: path.to_owned(),
            source,
        }
    };
    match std::fs::symlink_metadata(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(fail("look at")(e)),
        Ok(found) if !found.file_type().is_socket() => {
            return Err(BindError::NotASocket {
                path: path.to_owned(),
            });
        }
        Ok(_) => {}
    }
    match std::os::unix::net::UnixStream::connect(path) {
        // Refused: the file is there, its socket is not. Anything else means that somebody is.
        Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => {
            tracing::info!(path = %path.display(), "removing the socket of a daemon that has died");
            std::fs::remove_file(path).map_err(fail("remove the stale socket"))
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Ok(_) => Err(BindError::Served {
            path: path.to_owned(),
        }),
        Err(e) => Err(fail("try the socket that is already at")(e)),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn mode(path: &Path) -> u32 {
        std::fs::symlink_metadata(path).unwrap().permissions().mode() & 0o7777
    }

    #[tokio::test]
    async fn the_file_has_its_mode_and_goes_at_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let (listener, bound) = bind(&path, None).unwrap();
        assert_eq!(mode(&path), 0o600);
        assert!(matches!(bind(&path, None), Err(BindError::Served { .. })));
        drop(listener);
        drop(bound);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn a_group_gets_in() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let gid = rustix::process::getegid().as_raw();
        let (_listener, _bound) = bind(&path, Some(gid)).unwrap();
        assert_eq!(mode(&path), 0o660);
        assert_eq!(std::fs::symlink_metadata(&path).unwrap().gid(), gid);
    }

    #[tokio::test]
    async fn a_stale_socket_is_replaced_and_nothing_else_is() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let (_listener, bound) = bind(&path, None).unwrap();

        // A socket of somebody else that took the name stays.
        std::fs::remove_file(&path).unwrap();
        let other = std::os::unix::net::UnixListener::bind(&path).unwrap();
        drop(bound);
        assert!(path.exists());
        drop(other);

        let file = dir.path().join("file");
        std::fs::write(&file, "precious").unwrap();
        assert!(matches!(bind(&file, None), Err(BindError::NotASocket { .. })));
        assert_eq!(std::fs::read(&file).unwrap(), b"precious");
    }

    #[tokio::test]
    async fn long_paths_are_refused_with_their_length() {
        let path = Path::new("/").join("x".repeat(107));
        let error = bind(&path, None).unwrap_err();
        assert!(matches!(error, BindError::PathTooLong { length: 108, .. }));
        assert!(error.to_string().contains("108"));
    }
}
