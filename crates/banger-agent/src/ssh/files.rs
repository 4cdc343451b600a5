//! What one connection's sshd reads: its configuration and keys, in a directory of its own below `/run`.
//!
//! Each call has its own directory, so that calls neither wait for nor overwrite each other: after the daemon's key was
//! changed, an older call cannot bring the old one back. `/run` is memory, and a host key never reaches a disk.
//!
//! The directory may be searched by all and the authorized keys read by all, because sshd reads them as the user who
//! logs in; both are public. The host key is root's alone.

use super::config::{self, Surroundings};
use banger_agent_api::proto::SshStart;
use banger_agent_api::{Failure, FailureKind};
use rustix::fs::statfs;
use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Once;
use std::sync::atomic::{AtomicU64, Ordering};

/// Bytes of a private key. An ed25519 key has 400.
const MAX_HOST_KEY: usize = 16 * 1024;

/// Keys that may log in, and bytes of each.
const MAX_AUTHORIZED: usize = 16;
const MAX_LINE: usize = 8 * 1024;

/// File systems in memory: tmpfs and ramfs (statfs(2), `TMPFS_MAGIC` and `RAMFS_MAGIC`).
const MEMORY: [u64; 2] = [0x0102_1994, 0x8584_58f6];

/// A connection's files. Removed when dropped.
#[derive(Debug)]
pub(super) struct Files {
    directory: PathBuf,
}

impl Files {
    /// Writes them below `base`. Blocks.
    ///
    /// # Errors
    ///
    /// A request out of bounds, a `base` on a disk where `in_memory` is wanted, or what the kernel refused.
    pub(super) fn write(
        base: &Path,
        start: &SshStart,
        surroundings: &Surroundings,
        in_memory: bool,
    ) -> Result<Self, Failure> {
        check(start)?;
        let failed = |error: &io::Error| {
            let message = format!(
                "write sshd's files below {} in the guest: {error}",
                base.display()
            );
            Failure::new(FailureKind::System, "ssh", message)
        };
        make(base).map_err(|error| failed(&error))?;
        if in_memory {
            let on = statfs(base).map_err(|errno| failed(&errno.into()))?.f_type;
            if !u64::try_from(on).is_ok_and(|kind| MEMORY.contains(&kind)) {
                let message = format!(
                    "write sshd's files: {} is not in memory in this guest",
                    base.display()
                );
                return Err(Failure::new(FailureKind::System, "ssh", message));
            }
        }
        forget_former(base);
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let directory = base.join(NEXT.fetch_add(1, Ordering::Relaxed).to_string());
        let made = DirBuilder::new().mode(0o711).create(&directory);
        made.map_err(|error| failed(&error))?;
        // From here on it is removed on every way out.
        let files = Self { directory };
        files.fill(start, surroundings).map_err(|error| failed(&error))?;
        Ok(files)
    }

    fn fill(&self, start: &SshStart, surroundings: &Surroundings) -> io::Result<()> {
        // Whatever the umask was.
        fs::set_permissions(&self.directory, fs::Permissions::from_mode(0o711))?;
        let mut authorized = start.authorized_keys.join("\n");
        authorized.push('\n');
        let mut host_key = start.host_key.trim_end().to_owned();
        host_key.push('\n');
        self.put(config::HOST_KEY, 0o600, &host_key)?;
        self.put(config::AUTHORIZED, 0o644, &authorized)?;
        self.put(
            config::CONFIG,
            0o600,
            &config::render(&self.directory, surroundings),
        )
    }

    fn put(&self, name: &str, mode: u32, text: &str) -> io::Result<()> {
        let path = self.directory.join(name);
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(mode)
            .open(&path)?;
        file.write_all(text.as_bytes())?;
        file.set_permissions(fs::Permissions::from_mode(mode))
    }

    /// The configuration's path.
    pub(super) fn config(&self) -> PathBuf {
        self.directory.join(config::CONFIG)
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.directory) {
            crate::log::line(format_args!(
                "failed to remove {}: {error}",
                self.directory.display()
            ));
        }
    }
}

/// Refuses what is no key, before anything is written.
fn check(start: &SshStart) -> Result<(), Failure> {
    let refuse = |what: &str| {
        let message = format!("begin an ssh connection: {what}");
        Err(Failure::new(FailureKind::InvalidRequest, "ssh", message))
    };
    let SshStart {
        host_key,
        authorized_keys,
    } = start;
    if host_key.is_empty() || host_key.len() > MAX_HOST_KEY || host_key.contains('\0') {
        return refuse("the host key is none");
    }
    if authorized_keys.is_empty() || authorized_keys.len() > MAX_AUTHORIZED {
        return refuse("1 to 16 keys may be authorized");
    }
    if authorized_keys
        .iter()
        .any(|line| line.is_empty() || line.len() > MAX_LINE || line.chars().any(char::is_control))
    {
        return refuse("an authorized key is none");
    }
    Ok(())
}

/// Makes the directory and its parents, for all to search.
fn make(base: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o711).create(base)?;
    fs::set_permissions(base, fs::Permissions::from_mode(0o711))
}

/// Removes, once, what a server that has died left: its connections have died with it.
fn forget_former(base: &Path) {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        for entry in fs::read_dir(base).into_iter().flatten().flatten() {
            if let Err(error) = fs::remove_dir_all(entry.path()) {
                crate::log::line(format_args!(
                    "failed to remove {}: {error}",
                    entry.path().display()
                ));
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt as _;

    fn start() -> SshStart {
        SshStart {
            host_key: "-----BEGIN OPENSSH PRIVATE KEY-----\n…".to_owned(),
            authorized_keys: vec!["ssh-ed25519 AAAA banger".to_owned()],
        }
    }

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).expect("made").mode() & 0o7777
    }

    #[test]
    fn each_connection_has_files_of_its_own_which_go_with_it() {
        let temporary = tempfile::tempdir().expect("a directory");
        let base = temporary.path().join("a/ssh");
        let write = || Files::write(&base, &start(), &Surroundings::default(), false).expect("written");
        let all: Vec<Files> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..16).map(|_| scope.spawn(write)).collect();
            threads
                .into_iter()
                .map(|thread| thread.join().expect("no panic"))
                .collect()
        });
        assert_eq!(fs::read_dir(&base).expect("there").count(), 16);
        let one = &all[0].directory;
        assert_eq!(mode(one), 0o711);
        assert_eq!(mode(&one.join(config::HOST_KEY)), 0o600);
        assert_eq!(mode(&one.join(config::AUTHORIZED)), 0o644);
        let authorized = fs::read_to_string(one.join(config::AUTHORIZED)).expect("there");
        assert_eq!(authorized, "ssh-ed25519 AAAA banger\n");
        let config = fs::read_to_string(all[0].config()).expect("there");
        assert!(config.contains(&format!("HostKey {}\n", one.join(config::HOST_KEY).display())));
        drop(all);
        assert_eq!(fs::read_dir(&base).expect("there").count(), 0);
    }

    #[test]
    fn a_request_out_of_bounds_writes_nothing() {
        let temporary = tempfile::tempdir().expect("a directory");
        let base = temporary.path().join("ssh");
        let change = |change: &dyn Fn(&mut SshStart)| {
            let mut start = start();
            change(&mut start);
            start
        };
        for bad in [
            change(&|s| s.host_key.clear()),
            change(&|s| s.host_key = "x".repeat(MAX_HOST_KEY + 1)),
            change(&|s| s.authorized_keys.clear()),
            change(&|s| s.authorized_keys = vec!["k".to_owned(); MAX_AUTHORIZED + 1]),
            change(&|s| s.authorized_keys = vec!["a\nb".to_owned()]),
            change(&|s| s.authorized_keys = vec![String::new()]),
        ] {
            let failure = Files::write(&base, &bad, &Surroundings::default(), false).expect_err("refused");
            assert_eq!(failure.kind, FailureKind::InvalidRequest);
        }
        assert!(!base.exists());
    }
}
