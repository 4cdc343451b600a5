//! What a build says: a file in `builds/`, one of each operation, read back while it grows.
//!
//! The operation's figures say how long the file is by now, so whoever follows it waits for the operation to change.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use tokio::sync::{mpsc, watch};

use crate::error::{Error, io};
use crate::operation::{Operation, Progress};

/// Bytes that are kept of what one build says.
const LIMIT: u64 = 64 << 20;
/// Logs that are kept.
const KEPT: usize = 64;
/// Bytes handed on at once.
const CHUNK: usize = 64 << 10;

/// Where logs of builds are.
pub(crate) fn directory(state: &Path) -> PathBuf {
    state.join("builds")
}

fn path(state: &Path, operation: &str) -> PathBuf {
    directory(state).join(format!("{operation}.log"))
}

/// A log being written.
pub(super) struct Log {
    file: File,
    written: u64,
    progress: Progress,
    /// The last byte was no end of a line.
    open_line: bool,
}

impl Log {
    pub(super) fn create(state: &Path, progress: &Progress) -> Result<Self, Error> {
        let path = path(state, &progress.id());
        let file = File::options()
            .append(true)
            .create_new(true)
            .mode(0o600)
            .open(&path);
        Ok(Self {
            file: file.map_err(io("create", &path))?,
            written: 0,
            progress: progress.clone(),
            open_line: false,
        })
    }

    /// A line of ours.
    pub(super) fn line(&mut self, text: &str) {
        let end = if self.open_line { "\n" } else { "" };
        self.bytes(format!("{end}{text}\n").as_bytes());
    }

    /// What a command says. Beyond the limit it is dropped, which is said once.
    pub(super) fn bytes(&mut self, bytes: &[u8]) {
        if bytes.is_empty() || self.written >= LIMIT {
            return;
        }
        let room = usize::try_from(LIMIT - self.written).unwrap_or(usize::MAX);
        let fits = bytes.get(..bytes.len().min(room)).unwrap_or_default();
        let mut wrote = self.file.write_all(fits);
        if fits.len() < bytes.len() {
            wrote = wrote.and_then(|()| self.file.write_all(b"\n(the rest is not kept)\n"));
        }
        if let Err(error) = wrote {
            tracing::warn!(%error, "log of a build not written");
        }
        self.written += bytes.len() as u64;
        self.open_line = !bytes.ends_with(b"\n");
        self.progress.units(self.written, None);
    }
}

/// Removes the oldest logs.
pub(super) fn forget_old(state: &Path) {
    let entries = std::fs::read_dir(directory(state))
        .into_iter()
        .flatten()
        .flatten();
    let mut logs: Vec<_> = entries
        .filter_map(|entry| Some((entry.metadata().ok()?.modified().ok()?, entry.path())))
        .collect();
    logs.sort();
    let old = logs.len().saturating_sub(KEPT);
    for (_, path) in logs.into_iter().take(old) {
        if let Err(error) = std::fs::remove_file(&path) {
            tracing::warn!(path = %path.display(), %error, "old log of a build not removed");
        }
    }
}

/// A build's log: chunks until its end, or, when following, until the operation has ended.
pub(crate) fn read(
    state: &Path,
    operation: &str,
    follow: bool,
    mut watch: watch::Receiver<Operation>,
) -> Result<mpsc::Receiver<Vec<u8>>, Error> {
    let path = path(state, operation);
    let (out, chunks) = mpsc::channel(4);
    // A build that has just begun has none yet.
    let mut file = open(&path)?;
    if file.is_none() && !follow {
        return Err(Error::Missing {
            what: "log of a build",
            name: operation.to_owned(),
            near: None,
        });
    }
    tokio::spawn(async move {
        loop {
            // Before the file is read: what is written until the end is there by then.
            let ended = !follow || watch.borrow_and_update().state.ended();
            if file.is_none() {
                file = open(&path).unwrap_or_default();
            }
            if let Some(file) = &mut file {
                loop {
                    match chunk(file) {
                        Ok(bytes) if bytes.is_empty() => break,
                        Ok(bytes) => {
                            if out.send(bytes).await.is_err() {
                                return;
                            }
                        }
                        Err(error) => {
                            tracing::warn!(%error, "log of a build not read");
                            return;
                        }
                    }
                }
            }
            if ended {
                return;
            }
            let changed = tokio::select! {
                changed = watch.changed() => changed,
                () = out.closed() => return,
            };
            if changed.is_err() {
                return;
            }
        }
    });
    Ok(chunks)
}

fn open(path: &Path) -> Result<Option<File>, Error> {
    match File::open(path) {
        Ok(file) => Ok(Some(file)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(io("open", path)(e)),
    }
}

fn chunk(file: &mut File) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; CHUNK];
    let read = file.read(&mut bytes)?;
    bytes.truncate(read);
    Ok(bytes)
}
