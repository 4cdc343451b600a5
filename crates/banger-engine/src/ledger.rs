//! The ledger of host objects: entered before they are made, struck after they are gone.
//!
//! Whatever breaks off on the way (an error, a cancelled operation, the daemon's death) leaves its rows, and teardown
//! reads them, never an operation's locals. Each object's removal is idempotent, so a teardown that is itself broken
//! off is simply run again.
//!
//! An owner is a machine for life ([`Owner::Machine`]: its directory) or one run of it ([`Owner::Run`]: processes and
//! sockets), so that stopping is collecting the one and removing is collecting both. What all machines share belongs to
//! the host's network ([`Owner::Host`]).

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use banger_store::ledger::LedgerRow;
use banger_store::{Store, StoreError};
use banger_vmm::{ProcessRecord, ProcessRole};
use hostkit::process::{CommandLine, Process, ProcessError, ProcessId, Signal};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::crash::{self, Kind, Point, Step};
use crate::error::Error;
use crate::net::hands::Hands;
use crate::vm::capability::system_disk::devices::{self, Device};

/// How long a killed process has to be gone. Longer only when it waits for a broken disk.
const DEATH: Duration = Duration::from_secs(10);

/// Whose an object is.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Owner {
    /// A machine, until it is removed.
    Machine(String),
    /// A run of a machine, until it ends.
    Run(String),
    /// The network of all machines, until the daemon ends in order with none of them running.
    Host,
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Machine(id) => write!(f, "machine:{id}"),
            Self::Run(id) => write!(f, "run:{id}"),
            Self::Host => f.write_str("host:network"),
        }
    }
}

impl Owner {
    fn parse(text: &str) -> Option<Self> {
        match text.split_once(':')? {
            ("machine", id) => Some(Self::Machine(id.to_owned())),
            ("run", id) => Some(Self::Run(id.to_owned())),
            ("host", "network") => Some(Self::Host),
            _ => None,
        }
    }

    /// The machine's id, where it is one's.
    pub(crate) fn vm(&self) -> Option<&str> {
        match self {
            Self::Machine(id) | Self::Run(id) => Some(id),
            Self::Host => None,
        }
    }
}

/// A host object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub(crate) enum Object {
    /// A directory with all that is in it.
    Directory {
        /// Ends in a `bgr` name.
        path: PathBuf,
    },
    /// Processes that are about to be started; each has the machine's token and a path in one of these directories in
    /// its arguments. Catches the one that was started but not yet recorded.
    Processes {
        /// The run's runtime directory.
        runtime: PathBuf,
        /// The machine's state directory.
        state: PathBuf,
    },
    /// A process that was started.
    Process {
        /// `vmm`, `vsock-device` or `passt`.
        role: String,
        /// Process id.
        pid: u32,
        /// Clock ticks since boot, field 22 of proc_pid_stat(5).
        start_time: u64,
    },
    /// A block device of the run's.
    Device {
        /// By its name.
        device: Device,
    },
    /// The bridge of machines.
    Bridge {
        /// Its name.
        name: String,
    },
    /// A table of nftables.
    Table {
        /// `inet`, `bridge`.
        family: String,
        /// Its name.
        name: String,
    },
    /// A setting of the host's kernel.
    Sysctl {
        /// Below `/proc/sys`.
        key: String,
        /// What it was.
        before: String,
        /// In this boot of the host: after another one it is whatever the host has made of it since.
        #[serde(default)]
        boot: String,
        /// Who else might have needed it then, see [`Hands::forwarders`].
        #[serde(default)]
        others: Vec<String>,
    },
    /// A tap: of the host, that it exists; of a run, that it uses it.
    Tap {
        /// Its name.
        name: String,
    },
}

impl Object {
    /// Which of the daemon's crash points are this object's.
    fn kind(&self, owner: &Owner) -> Kind {
        match (self, owner) {
            (Self::Directory { .. }, Owner::Machine(_)) => Kind::StateDirectory,
            (Self::Directory { .. }, Owner::Run(_) | Owner::Host) => Kind::RuntimeDirectory,
            (Self::Processes { .. }, _) => Kind::Processes,
            (Self::Process { role, .. }, _) => match role.parse::<ProcessRole>() {
                Ok(ProcessRole::VsockDevice) => Kind::VsockDevice,
                Ok(ProcessRole::Passt) => Kind::Passt,
                Ok(ProcessRole::Vmm) | Err(_) => Kind::Vmm,
            },
            (Self::Device { device }, _) => match device {
                Device::Mapped { .. } => Kind::MappedDevice,
                Device::Loop { .. } => Kind::LoopDevice,
            },
            (Self::Bridge { .. }, _) => Kind::Bridge,
            (Self::Table { .. }, _) => Kind::Table,
            (Self::Sysctl { .. }, _) => Kind::Sysctl,
            (Self::Tap { .. }, Owner::Host) => Kind::Tap,
            (Self::Tap { .. }, Owner::Machine(_) | Owner::Run(_)) => Kind::TapUse,
        }
    }
}

/// An object that has its row. Whoever makes it says when it is there.
#[derive(Debug)]
#[must_use = "say `made` once the object is there"]
pub(crate) struct Entered(Kind);

impl Entered {
    /// The object is there.
    pub(crate) fn made(self) {
        crash::point(Point::Object(self.0, Step::Made));
    }

    /// Nothing is made now: the row speaks of what is there already, or of what comes later by another way.
    pub(crate) fn nothing_to_make(self) {}
}

/// The fact that says in which boot of the host the rows of its network were made.
const NETWORK_BOOT: &str = "network_boot_id";

/// The ledger.
#[derive(Clone)]
pub(crate) struct Ledger {
    store: Store,
    network: Hands,
}

impl Ledger {
    /// Over the store's table.
    pub(crate) fn new(store: Store, network: Hands) -> Self {
        Self { store, network }
    }

    /// Enters an object. Call before making it, and say when it is there.
    pub(crate) async fn enter(&self, owner: &Owner, object: &Object) -> Result<Entered, Error> {
        let kind = object.kind(owner);
        crash::point(Point::Object(kind, Step::Entering));
        let (owner, object) = (owner.to_string(), encode(object)?);
        self.store
            .note(move |tx| banger_store::ledger::insert(tx, &owner, &object, Timestamp::now()))
            .await?;
        crash::point(Point::Object(kind, Step::Entered));
        Ok(Entered(kind))
    }

    /// The recorded processes of a run.
    pub(crate) async fn processes(&self, owner: &Owner) -> Result<Vec<ProcessRecord>, Error> {
        let rows = self.rows_of(owner).await?;
        Ok(rows
            .iter()
            .rev()
            .filter_map(|row| decode(row).ok())
            .filter_map(|o| record(&o))
            .collect())
    }

    /// Removes all of an owner's objects, newest first, and their rows. What cannot be removed keeps its row, and the
    /// first such failure is the error; the others are removed all the same.
    pub(crate) async fn collect(&self, owner: &Owner) -> Result<(), Error> {
        let mut first = None;
        for row in self.rows_of(owner).await? {
            if let Err(e) = self.strike(owner, &row).await {
                tracing::error!(%owner, object = row.object, error = crate::error::chain(&e), "object not removed");
                first.get_or_insert(e);
            }
        }
        match first {
            None => Ok(()),
            Some(e) => Err(e),
        }
    }

    /// Removes one of an owner's objects, and its row; one that is not there is fine.
    pub(crate) async fn discard(&self, owner: &Owner, object: &Object) -> Result<(), Error> {
        for row in self.rows_of(owner).await? {
            if decode(&row).is_ok_and(|found| found == *object) {
                self.strike(owner, &row).await?;
            }
        }
        Ok(())
    }

    /// Strikes the row of one of an owner's objects, and leaves what is there: it is somebody else's.
    pub(crate) async fn forget(&self, owner: &Owner, object: &Object) -> Result<(), Error> {
        for row in self.rows_of(owner).await? {
            if decode(&row).is_ok_and(|found| found == *object) {
                let id = row.id;
                self.store
                    .note(move |tx| banger_store::ledger::remove(tx, id))
                    .await?;
            }
        }
        Ok(())
    }

    /// Strikes the rows of links and rules of before the host's last boot, which they did not outlive: what has such a name
    /// now may be anybody's. Nothing on the host is touched.
    pub(crate) async fn forget_before_boot(&self) -> Result<(), Error> {
        let boot = crate::reconcile::boot_id()?;
        let owner = Owner::Host.to_string();
        let forget = move |tx: &banger_store::Transaction<'_>| {
            if banger_store::facts::find(tx, NETWORK_BOOT)?.as_ref() == Some(&boot) {
                return Ok(());
            }
            for row in banger_store::ledger::of_owner(tx, &owner)? {
                let object = serde_json::from_str::<Object>(&row.object);
                if let Ok(Object::Bridge { .. } | Object::Tap { .. } | Object::Table { .. }) = object {
                    banger_store::ledger::remove(tx, row.id)?;
                }
            }
            banger_store::facts::replace(tx, NETWORK_BOOT, &boot).map(drop)
        };
        Ok(self.store.note(forget).await?)
    }

    async fn strike(&self, owner: &Owner, row: &LedgerRow) -> Result<(), Error> {
        let object = decode(row)?;
        let (kind, id) = (object.kind(owner), row.id);
        crash::point(Point::Object(kind, Step::Removing));
        self.remove(&object, owner).await?;
        crash::point(Point::Object(kind, Step::Removed));
        self.store
            .note(move |tx| banger_store::ledger::remove(tx, id))
            .await?;
        crash::point(Point::Object(kind, Step::Struck));
        Ok(())
    }

    /// An owner's objects, the newest first. What cannot be read is left out: collecting it says so.
    pub(crate) async fn objects(&self, owner: &Owner) -> Result<Vec<Object>, Error> {
        let rows = self.rows_of(owner).await?;
        Ok(rows.iter().filter_map(|row| decode(row).ok()).collect())
    }

    async fn remove(&self, object: &Object, owner: &Owner) -> Result<(), Error> {
        let token = owner.vm().map(crate::id::token).unwrap_or_default();
        match (object, owner) {
            (Object::Bridge { name }, _) => self.network.delete_link(name, Some("bridge")).await,
            (Object::Tap { name }, Owner::Host) => self.network.delete_link(name, Some("tun")).await,
            (Object::Tap { name }, Owner::Machine(id) | Owner::Run(id)) => {
                self.network.pool.give_back(id, name);
                Ok(())
            }
            (Object::Table { family, name }, _) => self.network.remove_table(family, name).await,
            (
                Object::Sysctl {
                    key,
                    before,
                    boot,
                    others,
                },
                _,
            ) => match *boot == crate::reconcile::boot_id()? {
                true => self.network.restore(key, before, others).await,
                false => Ok(()),
            },
            (
                Object::Directory { .. }
                | Object::Processes { .. }
                | Object::Process { .. }
                | Object::Device { .. },
                _,
            ) => remove(object, &token).await,
        }
    }

    /// Every owner that has rows.
    pub(crate) async fn owners(&self) -> Result<Vec<Owner>, Error> {
        let rows = self.store.read(banger_store::ledger::list).await?;
        let mut owners: Vec<Owner> = Vec::new();
        for row in rows {
            match Owner::parse(&row.owner) {
                Some(owner) if !owners.contains(&owner) => owners.push(owner),
                Some(_) => {}
                None => tracing::warn!(owner = row.owner, "ledger row of an unknown owner"),
            }
        }
        Ok(owners)
    }

    async fn rows_of(&self, owner: &Owner) -> Result<Vec<LedgerRow>, Error> {
        let owner = owner.to_string();
        Ok(self
            .store
            .read(move |tx| banger_store::ledger::of_owner(tx, &owner))
            .await?)
    }
}

/// Reports a launch's processes to the ledger as they are spawned.
pub(crate) struct RunLog<'a> {
    /// The ledger.
    pub(crate) ledger: &'a Ledger,
    /// The run.
    pub(crate) owner: Owner,
}

#[async_trait::async_trait]
impl banger_vmm::ProcessLog for RunLog<'_> {
    async fn spawned(&self, record: &ProcessRecord) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        let object = Object::Process {
            role: record.role.as_str().to_owned(),
            pid: record.id.pid,
            start_time: record.id.start_time,
        };
        self.ledger.enter(&self.owner, &object).await?.nothing_to_make();
        Ok(())
    }
}

fn encode(object: &Object) -> Result<String, Error> {
    serde_json::to_string(object).map_err(|source| {
        StoreError::Corrupt {
            table: "ledger",
            column: "object",
            source,
        }
        .into()
    })
}

fn decode(row: &LedgerRow) -> Result<Object, Error> {
    serde_json::from_str(&row.object).map_err(|source| {
        StoreError::Corrupt {
            table: "ledger",
            column: "object",
            source,
        }
        .into()
    })
}

fn record(object: &Object) -> Option<ProcessRecord> {
    match object {
        Object::Process {
            role,
            pid,
            start_time,
        } => {
            let role: ProcessRole = role.parse().ok()?;
            Some(ProcessRecord {
                role,
                id: ProcessId {
                    pid: *pid,
                    start_time: *start_time,
                },
            })
        }
        Object::Directory { .. }
        | Object::Processes { .. }
        | Object::Device { .. }
        | Object::Bridge { .. }
        | Object::Table { .. }
        | Object::Sysctl { .. }
        | Object::Tap { .. } => None,
    }
}

async fn remove(object: &Object, token: &str) -> Result<(), Error> {
    match object {
        Object::Directory { path } => remove_directory(path).await,
        Object::Processes { runtime, state } => kill_left(token, &[runtime, state]).await,
        Object::Process { pid, start_time, .. } => {
            let id = ProcessId {
                pid: *pid,
                start_time: *start_time,
            };
            // Start times count from boot. After a reboot of the host number and time may by chance be those of a
            // stranger, and a stranger does not carry the token.
            let args = hostkit::process::command_line(id)
                .map(|line| line.args)
                .unwrap_or_default();
            let stranger = !args.is_empty() && !args.iter().any(|a| hostkit::process::has_token(a, token));
            if stranger { Ok(()) } else { end(id).await }
        }
        Object::Device { device } => devices::remove(device).await,
        // Of the network's hands.
        Object::Bridge { .. } | Object::Table { .. } | Object::Sysctl { .. } | Object::Tap { .. } => Ok(()),
    }
}

/// Removes a directory of ours. The name is checked once more: a row must never make us remove anything else.
pub(crate) async fn remove_directory(path: &Path) -> Result<(), Error> {
    let ours = path
        .file_name()
        .and_then(|n| n.to_str())
        .is_some_and(|n| n.starts_with('.') || crate::id::of_token(n).is_some());
    if !ours || !path.is_absolute() {
        let source = std::io::Error::new(
            std::io::ErrorKind::InvalidInput,
            "not a directory that banger makes",
        );
        return Err(Error::Io {
            action: "remove",
            path: path.to_owned(),
            source,
        });
    }
    match tokio::fs::remove_dir_all(path).await {
        Ok(()) => Ok(()),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(source) => Err(Error::Io {
            action: "remove",
            path: path.to_owned(),
            source,
        }),
    }
}

/// Our user's processes whose arguments are those of a machine's process, with the machine's token.
pub(crate) fn machine_processes() -> Result<Vec<(String, CommandLine)>, Error> {
    let lines = hostkit::process::command_lines().map_err(|source| Error::Host {
        action: "look for machines' processes",
        source: Box::new(source),
    })?;
    let user = rustix::process::geteuid().as_raw();
    let ours = lines.into_iter().filter(|line| line.uid == user);
    Ok(ours
        .filter_map(|line| banger_vmm::identify(&line).map(|(token, _)| (token, line)))
        .collect())
}

/// Our user's processes whose arguments are those of a machine's process with this token.
fn left_processes(token: &str) -> Result<Vec<(ProcessRole, CommandLine)>, Error> {
    let found = hostkit::process::find_by_token(token).map_err(|source| Error::Host {
        action: "look for left processes",
        source: Box::new(source),
    })?;
    let user = rustix::process::geteuid().as_raw();
    let ours = found.into_iter().filter(|line| line.uid == user);
    Ok(ours
        .filter_map(|line| match banger_vmm::identify(&line) {
            Some((of, role)) if of == token => Some((role, line)),
            Some(_) | None => None,
        })
        .collect())
}

/// Whether a process was told of a directory or of something in it.
pub(crate) fn mentions(line: &CommandLine, directory: &Path) -> bool {
    let directory = directory.as_os_str().as_encoded_bytes();
    line.args
        .iter()
        .any(|argument| names(argument.as_encoded_bytes(), directory))
}

/// Whether an argument holds a directory as a whole path, or as the beginning of one: by itself, as in `path=…,` or as in
/// `"filename":"…"`. The end of a longer path is another directory: that of a copy of the state, which has the same
/// machines.
fn names(argument: &[u8], directory: &[u8]) -> bool {
    if directory.is_empty() {
        return false;
    }
    let windows = argument.windows(directory.len()).enumerate();
    windows
        .filter(|(_, window)| *window == directory)
        .any(|(start, _)| {
            let before = start.checked_sub(1).and_then(|at| argument.get(at));
            let after = argument.get(start + directory.len());
            matches!(before, None | Some(b'=' | b'"')) && matches!(after, None | Some(b'/' | b'"' | b','))
        })
}

/// Ends a machine's processes that no row names. Recognised by the form of their arguments, the token, and a path in
/// one of these directories: a bystander that merely mentions a socket is none.
pub(crate) async fn kill_left(token: &str, directories: &[&Path]) -> Result<(), Error> {
    for (_, line) in left_processes(token)? {
        if directories.iter().any(|directory| mentions(&line, directory)) {
            end(line.id).await?;
        }
    }
    Ok(())
}

/// Whether a machine of this token runs that another daemon keeps: one with another state directory, which shares our
/// runtime directory by mistake.
pub(crate) fn is_anothers(token: &str, state: &Path) -> Result<bool, Error> {
    let left = left_processes(token)?;
    Ok(left
        .iter()
        .any(|(role, line)| *role == ProcessRole::Vmm && !mentions(line, state)))
}

/// Kills a process and waits until it is gone. One that is gone already, or whose number is another's now, is fine.
pub(crate) async fn end(id: ProcessId) -> Result<(), Error> {
    let host = |source: ProcessError| Error::Host {
        action: "end a process",
        source: Box::new(source),
    };
    let process = match Process::open(id) {
        Ok(process) => process,
        Err(ProcessError::Gone { .. }) => return Ok(()),
        Err(e) => return Err(host(e)),
    };
    process.kill(Signal::KILL).map_err(host)?;
    match tokio::time::timeout(DEATH, process.exited()).await {
        Ok(_) => Ok(()),
        Err(_) => Err(Error::Host {
            action: "end a process",
            source: format!(
                "process {} is still there {} s after SIGKILL",
                id.pid,
                DEATH.as_secs()
            )
            .into(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_entered_is_collected_newest_first_and_again_without_harm() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("banger.db")).unwrap();
        let ledger = Ledger::new(store, Hands::for_tests());
        let vm = crate::id::new();
        let (machine, run) = (Owner::Machine(vm.clone()), Owner::Run(vm.clone()));
        let state = dir.path().join(crate::id::token(&vm));
        ledger
            .enter(&machine, &Object::Directory { path: state.clone() })
            .await
            .unwrap()
            .nothing_to_make();
        std::fs::create_dir(&state).unwrap();
        std::fs::write(state.join("overlay.img"), "x").unwrap();
        ledger
            .enter(
                &run,
                &Object::Processes {
                    runtime: dir.path().join("run").join(crate::id::token(&vm)),
                    state: state.clone(),
                },
            )
            .await
            .unwrap()
            .nothing_to_make();

        ledger.collect(&run).await.unwrap();
        assert!(state.exists());
        ledger.collect(&machine).await.unwrap();
        assert!(!state.exists());
        assert!(ledger.owners().await.unwrap().is_empty());
        ledger.collect(&machine).await.unwrap();
    }

    #[tokio::test]
    async fn a_recorded_process_and_an_unrecorded_one_are_both_ended() {
        let dir = tempfile::tempdir().unwrap();
        let ledger = Ledger::new(
            Store::open(&dir.path().join("banger.db")).unwrap(),
            Hands::for_tests(),
        );
        let vm = crate::id::new();
        let run = Owner::Run(vm.clone());
        let token = crate::id::token(&vm);
        let (runtime, state) = (dir.path().join("run").join(&token), dir.path().join(&token));
        ledger
            .enter(
                &run,
                &Object::Processes {
                    runtime: runtime.clone(),
                    state: state.clone(),
                },
            )
            .await
            .unwrap()
            .nothing_to_make();

        // Shells that stop themselves for good, with the arguments of a VMM: in the manner of QEMU, which is given its
        // sockets as descriptors and has only paths of the state directory in its arguments.
        let vmm = |state: &Path| {
            let mut shell = hostkit::process::Detached::new("/bin/sh");
            let disk = format!("file={}/overlay.img", state.display());
            shell.args = [
                "-c",
                "kill -STOP $$",
                "sh",
                "-name",
                &token,
                "-qmp",
                "fd=3",
                &disk,
            ]
            .map(Into::into)
            .to_vec();
            hostkit::process::spawn_detached(shell).unwrap()
        };
        let anothers = vmm(&dir.path().join("elsewhere").join(&token));
        assert!(is_anothers(&token, &state).unwrap());
        let recorded = vmm(&state);
        let id = recorded.id();
        let object = Object::Process {
            role: "vmm".into(),
            pid: id.pid,
            start_time: id.start_time,
        };
        ledger.enter(&run, &object).await.unwrap().nothing_to_make();
        // Started, and the daemon died before it wrote the row: only its arguments say whose it is.
        let unrecorded = vmm(&state);

        ledger.collect(&run).await.unwrap();
        assert!(recorded.try_exited().is_some());
        assert!(unrecorded.try_exited().is_some());
        assert!(anothers.try_exited().is_none());
        anothers.kill(Signal::KILL).unwrap();
        anothers.exited().await;
    }

    #[test]
    fn a_path_is_known_as_a_whole_and_not_as_the_end_of_another() {
        let directory = Path::new("/var/lib/banger/vms/bgrabcdefghij");
        let told = |argument: &str| {
            let line = CommandLine {
                id: ProcessId {
                    pid: 1,
                    start_time: 1,
                },
                uid: 0,
                args: vec!["qemu".into(), argument.into()],
            };
            mentions(&line, directory)
        };
        for ours in [
            "/var/lib/banger/vms/bgrabcdefghij",
            "/var/lib/banger/vms/bgrabcdefghij/api.sock",
            "file,id=console,append=on,path=/var/lib/banger/vms/bgrabcdefghij/console.log",
            r#"{"driver":"file","filename":"/var/lib/banger/vms/bgrabcdefghij/work.img"}"#,
        ] {
            assert!(told(ours), "{ours}");
        }
        // The machine of the same id in a copy of the state, and one whose name begins alike.
        for anothers in [
            "/mnt/var/lib/banger/vms/bgrabcdefghij/api.sock",
            "file,id=console,append=on,path=/mnt/var/lib/banger/vms/bgrabcdefghij/console.log",
            r#"{"driver":"file","filename":"/mnt/var/lib/banger/vms/bgrabcdefghij/work.img"}"#,
            "/var/lib/banger/vms/bgrabcdefghijk/api.sock",
            "",
        ] {
            assert!(!told(anothers), "{anothers}");
        }
    }

    #[tokio::test]
    async fn a_row_never_removes_what_is_not_ours() {
        let dir = tempfile::tempdir().unwrap();
        let precious = dir.path().join("precious");
        std::fs::create_dir(&precious).unwrap();
        assert!(remove_directory(&precious).await.is_err());
        assert!(precious.exists());
    }
}
