//! What Banger gives to the host's ssh: a directory of its own with a configuration, the daemon's key for clients and
//! the machines' host keys. `banger ssh` points ssh there; `banger ssh-config install` makes the user's own
//! configuration include it ([`include`]).
//!
//! ```text
//! ssh dev.vm ─ reads ~/.ssh/config ─ Include ─► DIRECTORY/config
//!                Match … exec  ──► banger ssh-config refresh     keys as the daemon has them now
//!                ProxyCommand  ──► banger ssh-proxy dev.vm       bytes to the guest's sshd, over vsock
//! ```
//!
//! The directory is the daemon's whose socket is in use, so that daemons side by side do not take turns in one file. All
//! files can be made anew at any time; they change by rename, and not at all where they are right already.

pub(crate) mod config;
pub(crate) mod home;
pub(crate) mod include;
pub(crate) mod replace;

use std::fs::{DirBuilder, File, Permissions};
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use banger_api::client::Client;
use banger_api::types::{SshHost, SshIdentity, SshIdentityOf};
use rustix::fs::{FlockOperation, flock};

use crate::context::Context;
use crate::error::{CliError, Kind};
use config::Commands;

/// What follows a machine's name in ssh's eyes.
pub(crate) const SUFFIX: &str = ".vm";

/// Files of the directory.
const CONFIG: &str = "config";
const IDENTITY: &str = "id_ed25519";
const KNOWN_HOSTS: &str = "known_hosts";
/// Held while keys are asked for and written, so that what was asked for first is not written last.
const LOCK: &str = "lock";

/// Variables with which a daemon elsewhere is meant.
const ELSEWHERE: [&str; 3] = ["BANGER_STATE_DIR", "BANGER_RUNTIME_DIR", "BANGER_CONFIG"];

/// A machine's name without what makes it a host's.
pub(crate) fn machine(host: &str) -> &str {
    host.strip_suffix(SUFFIX).unwrap_or(host)
}

/// The directory of one daemon's files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Directory {
    path: PathBuf,
    commands: Commands,
}

impl Directory {
    /// The one that goes with the daemon in use.
    pub(crate) fn of(context: &Context) -> Result<Self, CliError> {
        let variable = |name: &str| {
            std::env::var_os(name)
                .filter(|value| !value.is_empty())
                .map(PathBuf::from)
        };
        let base = variable("XDG_CONFIG_HOME")
            .or_else(|| variable("HOME").map(|home| home.join(".config")))
            .or_else(|| home::of_this_user().map(|home| home.join(".config")))
            .ok_or_else(|| {
                CliError::new(
                    Kind::Prerequisite,
                    "failed to find a place for ssh's files: HOME is not set",
                )
                .hint("set HOME or XDG_CONFIG_HOME")
            })?;
        let is_default =
            context.paths().socket_is_default && ELSEWHERE.iter().all(|name| variable(name).is_none());
        let socket = (!is_default).then(|| absolute(context.socket()));
        let name = match &socket {
            None => "ssh".to_owned(),
            Some(socket) => format!("ssh-{:016x}", hash(socket.as_os_str().as_bytes())),
        };
        Ok(Self {
            path: absolute(&base.join("banger").join(name)),
            commands: Commands {
                banger: this_program(),
                socket,
            },
        })
    }

    /// A directory as the configuration in it names it; to be kept current only.
    pub(crate) fn at(path: PathBuf, context: &Context) -> Self {
        Self {
            path,
            commands: Commands {
                banger: this_program(),
                socket: Some(absolute(context.socket())),
            },
        }
    }

    /// Its path.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The configuration, for `ssh -F` and `Include`.
    pub(crate) fn config(&self) -> PathBuf {
        self.path.join(CONFIG)
    }

    /// The configuration's text.
    pub(crate) fn render(&self) -> Result<String, CliError> {
        config::render(
            &self.commands,
            &self.path,
            &self.path.join(IDENTITY),
            &self.path.join(KNOWN_HOSTS),
        )
    }

    /// Writes everything as it should be now. `vm` is a machine that will be connected to.
    pub(crate) async fn write(&self, client: &Client, vm: Option<String>) -> Result<(), CliError> {
        let config = self.render()?;
        self.write_keys(client, vm).await?;
        self.put(CONFIG, &config)
    }

    /// Writes the keys as the daemon has them now.
    pub(crate) async fn write_keys(&self, client: &Client, vm: Option<String>) -> Result<(), CliError> {
        let _lock = self.lock()?;
        let identity = client.ssh_identity(SshIdentityOf { vm }).await?;
        self.put_keys(&identity)
    }

    /// Has the daemon make its key anew.
    pub(crate) async fn rotate(&self, client: &Client) -> Result<(), CliError> {
        let config = self.render()?;
        let _lock = self.lock()?;
        let identity = client.ssh_rotate(banger_api::types::Empty {}).await?;
        self.put_keys(&identity)?;
        self.put(CONFIG, &config)
    }

    fn put_keys(&self, identity: &SshIdentity) -> Result<(), CliError> {
        self.put(IDENTITY, &identity.private_key)?;
        self.put(KNOWN_HOSTS, &known_hosts(&identity.hosts))
    }

    /// Removes it and what Banger has put there.
    pub(crate) fn remove(&self) -> Result<(), CliError> {
        for name in [CONFIG, IDENTITY, KNOWN_HOSTS, LOCK] {
            let path = self.path.join(name);
            match std::fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(failed("remove", &path, &error));
                }
                Ok(()) | Err(_) => {}
            }
        }
        // Not empty: somebody else's file is in it.
        std::fs::remove_dir(&self.path).ok();
        Ok(())
    }

    /// Makes the directory and takes its lock, which ends with the file.
    fn lock(&self) -> Result<File, CliError> {
        let made = DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.path)
            .and_then(|()| std::fs::set_permissions(&self.path, Permissions::from_mode(0o700)));
        made.map_err(|error| failed("make", &self.path, &error))?;
        let path = self.path.join(LOCK);
        let mut options = File::options();
        let file = options.create(true).append(true).mode(0o600).open(&path);
        let file = file.map_err(|error| failed("open", &path, &error))?;
        loop {
            match flock(&file, FlockOperation::LockExclusive) {
                Ok(()) => return Ok(file),
                Err(rustix::io::Errno::INTR) => {}
                Err(errno) => return Err(failed("lock", &path, &errno.into())),
            }
        }
    }

    fn put(&self, name: &str, text: &str) -> Result<(), CliError> {
        let path = self.path.join(name);
        if std::fs::read(&path).is_ok_and(|has| has == text.as_bytes()) {
            return Ok(());
        }
        replace::replace(&path, text.as_bytes(), replace::PRIVATE)
            .map_err(|error| failed("write", &path, &error))
    }
}

/// As known_hosts has it (sshd(8)).
fn known_hosts(hosts: &[SshHost]) -> String {
    hosts
        .iter()
        .map(|SshHost { vm, host_key }| format!("{vm}{SUFFIX} {host_key}\n"))
        .collect()
}

pub(crate) fn failed(doing: &str, path: &Path, error: &io::Error) -> CliError {
    CliError::new(
        Kind::of_io(error),
        format!("failed to {doing} {}: {error}", path.display()),
    )
}

fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

/// The command line's own path. One that was replaced while it runs is looked for by name.
fn this_program() -> PathBuf {
    std::env::current_exe()
        .ok()
        .filter(|path| path.exists())
        .unwrap_or_else(|| "banger".into())
}

/// FNV-1a, 64 bits: tells sockets apart, and stays the same from release to release.
fn hash(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_with_and_without_suffix() {
        assert_eq!(
            (machine("dev.vm"), machine("dev"), machine("a.vm.vm")),
            ("dev", "dev", "a.vm")
        );
    }

    #[test]
    fn one_line_a_machine() {
        let host = |vm: &str| SshHost {
            vm: vm.to_owned(),
            host_key: "ssh-ed25519 AAAA".to_owned(),
        };
        assert_eq!(
            known_hosts(&[host("a"), host("b")]),
            "a.vm ssh-ed25519 AAAA\nb.vm ssh-ed25519 AAAA\n"
        );
    }

    #[test]
    fn the_hash_is_the_published_one() {
        assert_eq!(hash(b""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(hash(b"a"), 0xaf63_dc4c_8601_ec8c);
    }
}
