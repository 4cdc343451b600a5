//! The files and sockets a launch leaves to the processes: opened for appending, tailed, removed, waited for.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;
use std::time::Duration;

use tokio::net::UnixStream;

use crate::error::LogTail;

/// Longest path of a Unix socket in bytes: `sun_path` of unix(7) less the NUL at its end.
pub(crate) const SOCKET_PATH_LIMIT: usize = 107;
/// How many lines of a log an error carries.
const TAIL_LINES: usize = 10;
/// How much of a log's end is read for them.
const TAIL_BYTES: u64 = 16 * 1024;
/// Time between two attempts on a socket that is about to appear. Each costs one system call.
const CONNECT_INTERVAL: Duration = Duration::from_millis(2);

/// Opens a log for appending, made if absent, readable by us only. Appending (rather than writing at an offset) lets
/// the file be truncated while a process holds it.
pub(crate) fn open_append(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .open(path)
}

/// The last lines that were written to a log after `from`, an offset in bytes.
pub(crate) fn tail(path: &Path, from: u64) -> LogTail {
    let read = || -> io::Result<Vec<u8>> {
        let mut file = File::open(path)?;
        let length = file.metadata()?.len();
        // Truncated meanwhile: everything there is new.
        let from = if from > length { 0 } else { from };
        file.seek(SeekFrom::Start(from.max(length.saturating_sub(TAIL_BYTES))))?;
        let mut bytes = Vec::new();
        file.take(TAIL_BYTES).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    // Without a log there is no tail; the error that wanted one is what matters.
    let bytes = read().unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text
        .lines()
        .map(str::trim_end)
        .filter(|line| !line.is_empty())
        .collect();
    let first = lines.len().saturating_sub(TAIL_LINES);
    LogTail(
        lines
            .get(first..)
            .unwrap_or_default()
            .iter()
            .map(|line| (*line).to_owned())
            .collect(),
    )
}

/// Removes the socket that a dead instance left. Anything but a socket stays, and is an error.
pub(crate) fn remove_socket(path: &Path) -> io::Result<()> {
    match std::fs::symlink_metadata(path) {
        Ok(meta) if meta.file_type().is_socket() => match std::fs::remove_file(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        },
        Ok(_) => Err(io::Error::new(
            io::ErrorKind::AlreadyExists,
            "something that is not a socket is there",
        )),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

/// Connects to a socket that another process is about to bind and listen on. Waits without limit: the caller bounds
/// it, and watches the process. Only errors that waiting cannot cure are returned.
///
/// A socket exists from bind(2) on and accepts from listen(2) on, so its appearance alone would not do; an accepted
/// connection is the proof.
pub(crate) async fn connect_when_listening(path: &Path) -> io::Result<UnixStream> {
    loop {
        match UnixStream::connect(path).await {
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
                ) =>
            {
                tokio::time::sleep(CONNECT_INTERVAL).await;
            }
            other => return other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tail_takes_only_what_is_new() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        assert_eq!(tail(&path, 0).to_string(), "it left no message");
        let lines: String = (0..40).map(|n| format!("line {n}\n\n")).collect();
        std::fs::write(&path, &lines).unwrap();
        assert_eq!(tail(&path, 0).0.len(), TAIL_LINES);
        assert_eq!(tail(&path, 0).0.last().unwrap(), "line 39");
        let last_two = lines.find("line 38").unwrap() as u64;
        assert_eq!(tail(&path, last_two).0, ["line 38", "line 39"]);
        assert_eq!(tail(&path, lines.len() as u64).0, Vec::<String>::new());
        assert_eq!(tail(&path, 1 << 40).0.len(), TAIL_LINES, "truncated since");
        std::fs::write(&path, vec![b'x'; 1 << 20]).unwrap();
        assert!(
            tail(&path, 0).0[0].len() <= 1 << 14,
            "bounded even without line breaks"
        );
    }

    #[test]
    fn appended_after_a_truncation() {
        use std::io::Write;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let mut file = open_append(&path).unwrap();
        file.write_all(b"old").unwrap();
        File::options()
            .write(true)
            .open(&path)
            .unwrap()
            .set_len(0)
            .unwrap();
        file.write_all(b"new").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"new");
    }

    #[test]
    fn only_sockets_are_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        remove_socket(&path).unwrap();
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        remove_socket(&path).unwrap();
        assert!(!path.exists());
        std::fs::write(&path, "precious").unwrap();
        assert!(remove_socket(&path).is_err());
        assert!(path.exists());
    }

    #[tokio::test]
    async fn connects_as_soon_as_somebody_listens() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        // Bound and not listening, first: a connection is refused there.
        let socket = rustix::net::socket(
            rustix::net::AddressFamily::UNIX,
            rustix::net::SocketType::STREAM,
            None,
        )
        .unwrap();
        let connecting = connect_when_listening(&path);
        tokio::pin!(connecting);
        assert!(
            tokio::time::timeout(Duration::from_millis(10), &mut connecting)
                .await
                .is_err()
        );
        rustix::net::bind(&socket, &rustix::net::SocketAddrUnix::new(&path).unwrap()).unwrap();
        assert!(
            tokio::time::timeout(Duration::from_millis(10), &mut connecting)
                .await
                .is_err()
        );
        rustix::net::listen(&socket, 1).unwrap();
        connecting.await.unwrap();
    }
}
