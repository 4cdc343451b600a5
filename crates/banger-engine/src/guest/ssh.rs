//! Keys of ssh: the client's, one for all machines, and a host key for each machine.
//!
//! ```text
//! $STATE/ssh/client_ed25519_key              made at first use, made anew by `ssh.rotate`
//! $STATE/ssh/new, new.pub                    a key that is being made
//! $STATE/vms/bgrID/ssh_host_ed25519_key      made at first use; outlives names and resets, goes with the machine
//! ```
//!
//! Nothing of them is kept in a guest: each connection brings the machine's host key and the client's public key along
//! (`Ssh` of the guest protocol), so a new client key is the only one from the next connection on, and a machine that
//! takes another's name brings its own host key with it.
//!
//! `ssh-keygen` makes them. Whoever uses ssh has it, it is the format's definition, and the libraries that could do it
//! bring a second generation of the hash and random number crates along. Only the public half is taken out of the file
//! here, which also shows that the file is whole.

use std::fs::DirBuilder;
use std::io::ErrorKind;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use banger_agent_api::{AgentClient, proto};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hostkit::exec::Tool;
use tokio::sync::Mutex;

use crate::crash::{self, Moment, Point};
use crate::doctor::Check;
use crate::error::{Error, chain, io};
use crate::guest;
use crate::host::Host;
use crate::settings::Settings;
use crate::vm::machines::Machines;
use crate::vm::policy::State;
use crate::vm::state::Paths;
use crate::vm::task::Handle;

/// Below the state directory.
const DIRECTORY: &str = "ssh";
/// The client's key in it.
const CLIENT: &str = "client_ed25519_key";
/// A machine's in its directory.
const HOST: &str = "ssh_host_ed25519_key";

const KEYGEN: &str = "ssh-keygen";
/// A key takes milliseconds.
const KEYGEN_TIME: Duration = Duration::from_secs(30);

/// The one kind of key that is made.
const KIND: &str = "ssh-ed25519";

/// Bytes of a key's file that are read.
const MAX_KEY: u64 = 16 * 1024;

/// A key pair.
#[derive(Clone, PartialEq, Eq)]
pub struct Key {
    /// OpenSSH's format, without a passphrase.
    pub private: String,
    /// `ssh-ed25519 AAAA…`
    pub public: String,
}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Key")
            .field("public", &self.public)
            .finish_non_exhaustive()
    }
}

/// What a client needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SshIdentity {
    /// With which it logs in anywhere.
    pub client: Key,
    /// Names of machines with their public host keys, by name; of those that have one.
    pub hosts: Vec<(String, String)>,
}

/// The keys. Its lock is a leaf, held while `ssh-keygen` runs.
#[derive(Debug)]
pub(crate) struct Keys {
    directory: PathBuf,
    tools: Vec<PathBuf>,
    making: Mutex<()>,
}

impl Keys {
    /// Those of a state directory, where what an interrupted making left is removed.
    pub(crate) fn open(settings: &Settings) -> Self {
        let keys = Self {
            directory: settings.state_dir.join(DIRECTORY),
            tools: settings.tool_dirs(),
            making: Mutex::default(),
        };
        if let Err(e) = keys.clear() {
            // The next making will say it again.
            tracing::warn!(error = chain(&e), "an unfinished ssh key not removed");
        }
        keys
    }

    /// The client's key, which is made where there is none.
    pub(crate) async fn client(&self) -> Result<Key, Error> {
        self.obtain(&self.directory.join(CLIENT), "banger").await
    }

    /// Makes the client's key anew. The former is of no use from the next connection on.
    async fn rotate(&self) -> Result<Key, Error> {
        let _making = self.making.lock().await;
        self.make(&self.directory.join(CLIENT), "banger").await
    }

    async fn obtain(&self, path: &Path, comment: &str) -> Result<Key, Error> {
        if let Some(key) = read(path).await? {
            return Ok(key);
        }
        let _making = self.making.lock().await;
        // Somebody may have made it while we waited.
        match read(path).await? {
            Some(key) => Ok(key),
            None => self.make(path, comment).await,
        }
    }

    /// Where keys are until they are whole, one at a time: the private and the public half.
    fn unfinished(&self) -> [PathBuf; 2] {
        [self.directory.join("new"), self.directory.join("new.pub")]
    }

    fn clear(&self) -> Result<(), Error> {
        for left in self.unfinished() {
            match std::fs::remove_file(&left) {
                Err(e) if e.kind() != ErrorKind::NotFound => return Err(io("remove", left)(e)),
                Ok(()) | Err(_) => {}
            }
        }
        Ok(())
    }

    /// Makes a key, which appears whole, in place of one that was there.
    async fn make(&self, path: &Path, comment: &str) -> Result<Key, Error> {
        let tool = Tool::find(KEYGEN, &self.tools).map_err(|e| Error::Unavailable {
            what: "an ssh key".to_owned(),
            reason: chain(&e),
            fix: "install the OpenSSH client: apt-get install openssh-client".to_owned(),
        })?;
        let made = DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.directory);
        made.map_err(io("create", &self.directory))?;
        self.clear()?;
        let [unfinished, _] = self.unfinished();
        tool.command()
            .args(["-q", "-t", "ed25519", "-N", "", "-C", comment, "-f"])
            .arg(&unfinished)
            .timeout(KEYGEN_TIME)
            .run()
            .await
            .map_err(|e| Error::Host {
                action: "make an ssh key",
                source: Box::new(e),
            })?;
        let key = read(&unfinished).await?.ok_or_else(|| Error::Host {
            action: "make an ssh key",
            source: format!("{KEYGEN} has made none that can be read").into(),
        })?;
        sync(&unfinished).await?;
        crash::point(Point::Moment(Moment::KeyMade));
        tokio::fs::rename(&unfinished, path)
            .await
            .map_err(io("rename", &unfinished))?;
        if let Some(directory) = path.parent() {
            sync(directory).await?;
        }
        crash::point(Point::Moment(Moment::KeyPublished));
        self.clear()?;
        Ok(key)
    }
}

async fn sync(path: &Path) -> Result<(), Error> {
    let file = tokio::fs::File::open(path).await.map_err(io("open", path))?;
    file.sync_all().await.map_err(io("sync", path))
}

/// A key's file; nothing where there is none, or none that can be used any more.
async fn read(path: &Path) -> Result<Option<Key>, Error> {
    let length = match tokio::fs::metadata(path).await {
        Ok(found) => found.len(),
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(io("read", path)(e)),
    };
    let text = match length {
        0..=MAX_KEY => tokio::fs::read(path).await.map_err(io("read", path))?,
        _ => Vec::new(),
    };
    let key = String::from_utf8(text).ok().and_then(|private| {
        let public = public_half(&private)?;
        Some(Key { private, public })
    });
    if key.is_none() {
        tracing::warn!(path = %path.display(), "an ssh key is damaged; it is made anew");
    }
    Ok(key)
}

/// The public half of an unencrypted ed25519 key, as a line of authorized_keys. The format is OpenSSH's PROTOCOL.key:
/// magic, cipher, key derivation and its options, number of keys, public key, private section.
fn public_half(private: &str) -> Option<String> {
    let body: String = private
        .trim()
        .strip_prefix("-----BEGIN OPENSSH PRIVATE KEY-----")?
        .strip_suffix("-----END OPENSSH PRIVATE KEY-----")?
        .split_ascii_whitespace()
        .collect();
    let bytes = STANDARD.decode(body).ok()?;
    let rest = &mut bytes.strip_prefix(b"openssh-key-v1\0")?;
    if string(rest)? != b"none" || string(rest)? != b"none" || !string(rest)?.is_empty() || number(rest)? != 1
    {
        return None;
    }
    let public = string(rest)?;
    let fields = &mut &*public;
    let is_key = string(fields)? == KIND.as_bytes() && string(fields)?.len() == 32 && fields.is_empty();
    // Two equal numbers stand before the private key, to tell a wrong passphrase by.
    let secret = &mut string(rest)?;
    let is_whole = rest.is_empty() && number(secret)? == number(secret)?;
    (is_key && is_whole).then(|| format!("{KIND} {}", STANDARD.encode(public)))
}

fn number(rest: &mut &[u8]) -> Option<u32> {
    let (number, after) = rest.split_first_chunk()?;
    *rest = after;
    Some(u32::from_be_bytes(*number))
}

fn string<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let length = usize::try_from(number(rest)?).ok()?;
    let (string, after) = rest.split_at_checked(length)?;
    *rest = after;
    Some(string)
}

/// Where a machine's host key is.
fn host_key(host: &Host, handle: &Handle) -> PathBuf {
    let settings = &host.settings;
    Paths::new(&settings.state_dir, &settings.runtime_dir, &handle.id)
        .state
        .join(HOST)
}

/// What a client needs for all machines that have a host key, and for `vm`, which gets one.
pub(crate) async fn identity(
    host: &Host,
    machines: &Machines,
    vm: Option<&str>,
) -> Result<SshIdentity, Error> {
    if let Some(reference) = vm {
        let handle = machines.find(reference)?;
        let state = handle.view.borrow().phase.state();
        // A directory that is not there yet, or goes, gets none.
        if !matches!(state, State::Creating | State::Removing) {
            host.keys.obtain(&host_key(host, &handle), &handle.id).await?;
        }
    }
    hosts_of(host, machines, host.keys.client().await?).await
}

/// Makes the client's key anew.
pub(crate) async fn rotate(host: &Host, machines: &Machines) -> Result<SshIdentity, Error> {
    hosts_of(host, machines, host.keys.rotate().await?).await
}

async fn hosts_of(host: &Host, machines: &Machines, client: Key) -> Result<SshIdentity, Error> {
    let mut hosts = Vec::new();
    for handle in machines.all() {
        match read(&host_key(host, &handle)).await {
            Ok(Some(key)) => hosts.push((handle.name(), key.public)),
            Ok(None) => {}
            // One machine's trouble is not the others'.
            Err(e) => tracing::warn!(vm = handle.name(), error = chain(&e), "host key not read"),
        }
    }
    Ok(SshIdentity { client, hosts })
}

/// What a connection to a running machine begins with.
pub(crate) async fn start(
    host: &Host,
    machines: &Machines,
    reference: &str,
) -> Result<(AgentClient, proto::SshStart), Error> {
    let handle = machines.find(reference)?;
    let client = guest::client(&handle)?;
    let host_key = host
        .keys
        .obtain(&host_key(host, &handle), &handle.id)
        .await?
        .private;
    let authorized_keys = vec![host.keys.client().await?.public];
    let start = proto::SshStart {
        host_key,
        authorized_keys,
    };
    Ok((client, start))
}

/// Whether there is an ssh client.
pub(crate) fn doctor(host: &Host) -> Check {
    let (group, name) = ("guest", "ssh");
    let tools = host.settings.tool_dirs();
    match Tool::find("ssh", &tools).and_then(|ssh| Tool::find(KEYGEN, &tools).map(|_| ssh)) {
        Ok(ssh) => Check::fine(group, name, ssh.path().display().to_string()),
        Err(e) => Check::warning(
            group,
            name,
            format!("{}; without it `banger ssh` cannot be used", chain(&e)),
            "apt-get install openssh-client",
        ),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use proptest::prelude::*;

    use super::*;

    fn keys(state: &Path) -> Keys {
        Keys {
            directory: state.to_owned(),
            tools: vec!["/usr/bin".into(), "/bin".into()],
            making: Mutex::default(),
        }
    }

    /// Without ssh-keygen there is nothing to test.
    fn has_keygen() -> bool {
        let there = Tool::find(KEYGEN, ["/usr/bin", "/bin"]).is_ok();
        if !there {
            testkit::missing::<()>("no ssh-keygen");
        }
        there
    }

    #[tokio::test]
    async fn a_key_is_made_once_and_is_its_owners_alone() {
        if !has_keygen() {
            return;
        }
        let directory = tempfile::tempdir().unwrap();
        let keys = keys(directory.path());
        // What an interrupted making leaves.
        std::fs::write(directory.path().join("new"), "half").unwrap();
        std::fs::write(directory.path().join("new.pub"), "half").unwrap();
        let (a, b, c) = tokio::join!(keys.client(), keys.client(), keys.client());
        let a = a.unwrap();
        assert_eq!(a, b.unwrap());
        assert_eq!(a, c.unwrap());
        assert!(a.public.starts_with("ssh-ed25519 AAAA"), "{}", a.public);
        assert!(!format!("{a:?}").contains("PRIVATE"), "a private key in a log");
        let mode = std::fs::metadata(keys.directory.join(CLIENT))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1);
        // As ssh-keygen itself has it.
        let tool = Tool::find(KEYGEN, ["/usr/bin", "/bin"]).unwrap();
        let said = tool
            .command()
            .args(["-y", "-f"])
            .arg(keys.directory.join(CLIENT))
            .run()
            .await
            .unwrap()
            .text();
        assert_eq!(said.split(' ').take(2).collect::<Vec<_>>().join(" "), a.public);
    }

    #[tokio::test]
    async fn a_rotated_or_damaged_key_is_another() {
        if !has_keygen() {
            return;
        }
        let directory = tempfile::tempdir().unwrap();
        let keys = keys(directory.path());
        let first = keys.client().await.unwrap();
        let second = keys.rotate().await.unwrap();
        assert_ne!(first, second);
        assert_eq!(keys.client().await.unwrap(), second);
        for damaged in [
            "",
            "-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\n-----END OPENSSH PRIVATE KEY-----\n",
        ] {
            std::fs::write(keys.directory.join(CLIENT), damaged).unwrap();
            let third = keys.client().await.unwrap();
            assert_ne!(third, second);
            assert_eq!(keys.client().await.unwrap(), third);
        }
    }

    #[tokio::test]
    async fn without_ssh_keygen_it_says_what_to_install() {
        let directory = tempfile::tempdir().unwrap();
        let keys = Keys {
            tools: vec![directory.path().to_owned()],
            ..keys(directory.path())
        };
        let report = keys.client().await.unwrap_err().report();
        assert!(report.message.contains("ssh-keygen"), "{}", report.message);
        assert!(report.hint.unwrap().contains("openssh-client"));
    }

    proptest! {
        #[test]
        fn any_file_is_read_without_a_panic(bytes: Vec<u8>) {
            let text = STANDARD.encode([b"openssh-key-v1\0".to_vec(), bytes].concat());
            let _none = public_half(&format!("-----BEGIN OPENSSH PRIVATE KEY-----\n{text}\n-----END OPENSSH PRIVATE KEY-----"));
        }
    }
}
