//! Garbage: what is on the host and nothing speaks for any more. Found and removed at the daemon's start, before anything
//! is taken up, and on request (`gc.run`), while everything else goes on.
//!
//! What somebody is about to make is never taken. Everything has a row, or is held ([`held::hold`]), before it exists; so
//! [`find`] first lists what exists and then reads who speaks for it, and what is missing from the second list was not
//! being made when the first was taken. Where a machine's own task makes things under a row that is there already (the
//! next disk of a reset, the sockets of a start), only the start of the daemon looks, when no task is at work yet.
//!
//! The same for what loses its row before it is removed (a former system disk, an image that was replaced): its owner holds
//! it until it is gone. Removing is idempotent.

mod blobs;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::path::{Path, PathBuf};

use banger_oci::Listing;
use hostkit::digest::Digest;
use hostkit::process::{CommandLine, ProcessId};
use jiff::Timestamp;

use crate::crash::Write;
use crate::error::{Error, chain, io};
use crate::held;
use crate::host::Host;
use crate::id;
use crate::image::build::cache;
use crate::image::work;
use crate::image::{places, registry, seed};
use crate::ledger::{self, Owner};
use crate::net::strays::{self, Present, Stray};
use crate::operation;
use crate::runtime;
use crate::vm::capability::system_disk;
use crate::vm::capability::system_disk::devices::{self, Device};
use crate::vm::machines::phase_of;
use crate::vm::state::{Paths, Phase, machines_dir};

/// How often processes may be replaced by their children while they are being ended.
const GENERATIONS: usize = 100;

/// When the daemon looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum When {
    /// Before the first machine is taken up.
    Starting,
    /// While machines' tasks are at work.
    Running,
}

/// Something that nothing needs any more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Garbage {
    /// What it is.
    pub kind: GarbageKind,
    /// A path, a process id, an owner in the ledger.
    pub what: String,
    /// Why nothing needs it.
    pub why: String,
    /// Bytes it takes on the host's file systems.
    pub size: u64,
    thing: Thing,
}

/// Kinds of garbage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GarbageKind {
    /// A machine's directory, or a disk in it.
    Directory,
    /// A process of a machine.
    Process,
    /// A device-mapper device of a machine.
    Device,
    /// A loop device under one.
    Loop,
    /// A bridge or a tap.
    Link,
    /// A table of rules.
    Table,
    /// Rows of the ledger, with the objects that they speak of.
    Ledger,
    /// An image's directory, or an image without a name.
    Image,
    /// What an image came as.
    Blob,
    /// A kernel's directory.
    Kernel,
    /// What installing or removing a runtime has left.
    Runtime,
    /// An initramfs.
    Initramfs,
    /// What new work disks are made of.
    Seed,
    /// Records of operations.
    Operation,
}

impl GarbageKind {
    /// Its word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Directory => "directory",
            Self::Process => "process",
            Self::Device => "device",
            Self::Loop => "loop",
            Self::Link => "link",
            Self::Table => "table",
            Self::Ledger => "ledger",
            Self::Image => "image",
            Self::Blob => "blob",
            Self::Kernel => "kernel",
            Self::Runtime => "runtime",
            Self::Initramfs => "initramfs",
            Self::Seed => "seed",
            Self::Operation => "operation",
        }
    }
}

/// How a piece of garbage is removed.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Thing {
    Owner(Owner),
    Process(ProcessId),
    Device(Device),
    Stray(Stray),
    MachineDirectory(PathBuf),
    Disk(PathBuf),
    Tree(PathBuf),
    /// An image that has no name and no machine.
    Nameless(String),
    Blob(Digest),
    Operations(Timestamp),
}

/// What exists, as listed before anybody was asked who needs it.
struct Found {
    owners: Vec<Owner>,
    processes: Vec<(String, CommandLine)>,
    /// What is above before what is below.
    devices: Vec<Device>,
    network: Present,
    /// Directories with a machine's name: of sockets, of disks.
    directories: Vec<(PathBuf, String)>,
    images: Vec<(PathBuf, String)>,
    kernels: Vec<(PathBuf, String)>,
    runtimes: Vec<(PathBuf, String)>,
    initramfs: Vec<(PathBuf, String)>,
    builds: Vec<(PathBuf, String)>,
    /// Of images, by id.
    seeds: Vec<(PathBuf, String)>,
    blobs: Listing,
}

/// Who needs what.
struct Known {
    /// Machines by id; those whose row cannot be read need all that has their id.
    machines: HashMap<String, Option<banger_store::vms::VmRow>>,
    /// There is a row that does not even say whose it is: any machine may be there still.
    nameless: bool,
    images: HashSet<String>,
    kernels: Vec<String>,
    /// Digests of blobs.
    blobs: BTreeSet<String>,
    /// Owners that the ledger still has: a machine that was being removed has none any more.
    owners: Vec<Owner>,
    /// Machines with a run in the ledger.
    runs: HashSet<String>,
    /// What is being made or removed at this moment.
    held: HashSet<PathBuf>,
}

/// Everything that nothing needs any more. Touches nothing.
pub(crate) async fn find(host: &Host, when: When) -> Result<Vec<Garbage>, Error> {
    let mut found = list(host).await?;
    let known = who_needs(host).await?;
    let mut garbage = Vec::new();
    orphans(host, &found, &known, when, &mut garbage)?;
    links_and_tables(host, std::mem::take(&mut found.network), &mut garbage).await?;
    disks(host, &known, when, &mut garbage);
    directories(host, &found, &known, when, &mut garbage).await;
    blobs::find(host, &found.blobs, &known.blobs, when, &mut garbage);
    operations(host, &mut garbage).await?;
    Ok(garbage)
}

pub(crate) use blobs::images;

/// Removes a piece of garbage; one that is gone already is fine.
pub(crate) async fn remove(host: &Host, garbage: &Garbage) -> Result<(), Error> {
    match &garbage.thing {
        Thing::Owner(owner) => host.ledger.collect(owner).await,
        Thing::Process(id) => ledger::end(*id).await,
        Thing::Device(device) => devices::remove(device).await,
        Thing::Stray(stray) => stray.remove(host.network.hands()).await,
        Thing::MachineDirectory(path) => ledger::remove_directory(path).await,
        Thing::Disk(path) => system_disk::remove_file(path),
        Thing::Tree(path) => {
            end_all_in(path).await?;
            let removed = if path.is_dir() {
                tokio::fs::remove_dir_all(path).await
            } else {
                tokio::fs::remove_file(path).await
            };
            match removed {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(io("remove", path)(e)),
                Ok(()) | Err(_) => Ok(()),
            }
        }
        Thing::Nameless(id) => registry::remove_nameless(host, id).await,
        Thing::Blob(digest) => blobs::remove(host, digest).await,
        Thing::Operations(before) => {
            let before = *before;
            host.store
                .note(Write::OperationsForget, move |tx| {
                    banger_store::operations::forget_before(tx, before)
                })
                .await?;
            Ok(())
        }
    }
}

/// Ends what a daemon that was killed has left at work in a directory: nobody waits for it any more, and it would go on
/// making files in what is being removed.
async fn end_all_in(directory: &Path) -> Result<(), Error> {
    for _ in 0..GENERATIONS {
        let left = hostkit::inside::processes_inside(directory).map_err(|source| Error::Host {
            action: "look for processes at work in a directory",
            source: Box::new(source),
        })?;
        if left.is_empty() {
            return Ok(());
        }
        for id in left {
            ledger::end(id).await?;
        }
    }
    Err(Error::Host {
        action: "end the processes at work in a directory",
        source: format!("{} still has some", directory.display()).into(),
    })
}

/// Finds and removes at the daemon's start; returns how many pieces there were and how many of them stay. Never fails:
/// what cannot be removed is said, and is there the next time.
pub(crate) async fn sweep(host: &Host) -> (u32, u32) {
    let garbage = match find(host, When::Starting).await {
        Ok(garbage) => garbage,
        Err(e) => {
            tracing::error!(error = chain(&e), "orphans not looked for");
            return (0, 1);
        }
    };
    let (mut all, mut stay) = (0, 0);
    for piece in &garbage {
        all += 1;
        tracing::warn!(
            kind = piece.kind.as_str(),
            what = piece.what,
            why = piece.why,
            "orphan"
        );
        if let Err(e) = remove(host, piece).await {
            stay += 1;
            tracing::error!(what = piece.what, error = chain(&e), "orphan not removed");
        }
    }
    (all, stay)
}

async fn list(host: &Host) -> Result<Found, Error> {
    let state = &host.settings.state_dir;
    let mut directories = entries(&host.settings.runtime_dir)?;
    directories.extend(entries(&machines_dir(state))?);
    directories.retain(|(_, name)| id::of_token(name).is_some());
    Ok(Found {
        owners: host.ledger.owners().await?,
        processes: ledger::machine_processes()?,
        devices: devices::present(state).await.unwrap_or_else(|e| {
            // Everything else can be found all the same.
            tracing::error!(error = chain(&e), "block devices not looked for");
            Vec::new()
        }),
        network: strays::present(host.network.hands()).await.unwrap_or_else(|e| {
            tracing::error!(error = chain(&e), "links and rules not looked for");
            Present::default()
        }),
        directories,
        images: entries(&places::images_dir(state))?,
        kernels: entries(&places::kernels_dir(state))?,
        runtimes: entries(&runtime::directory(state))?,
        initramfs: entries(&places::initramfs_dir(state))?,
        builds: entries(&cache::directory(state))?,
        seeds: entries(&places::seeds_dir(state))?,
        blobs: blobs::list(host).await?,
    })
}

async fn who_needs(host: &Host) -> Result<Known, Error> {
    // Before the rows: what is entered and then no longer held is found there. And after them: what lost its row a moment
    // ago is held until it is gone.
    let mut held = held::all();
    let (rows, unreadable, images, kernels, blobs) = host
        .store
        .read(|tx| {
            let (rows, unreadable) = banger_store::vms::list(tx)?;
            let (images, kernels) = (banger_store::images::list(tx)?, banger_store::kernels::list(tx)?);
            let blobs = banger_store::images::blobs_in_use(tx)?;
            Ok((rows, unreadable, images, kernels, blobs))
        })
        .await?;
    held.extend(held::all());
    let owners = host.ledger.owners().await?;
    let readable = rows.into_iter().map(|row| (row.id.clone(), Some(row)));
    let nameless = unreadable.iter().any(|row| row.id.is_none());
    let unreadable = unreadable.into_iter().filter_map(|row| Some((row.id?, None)));
    Ok(Known {
        machines: readable.chain(unreadable).collect(),
        nameless,
        images: images.into_iter().map(|row| row.id).collect(),
        kernels: kernels.into_iter().map(|row| row.name).collect(),
        blobs,
        runs: owners
            .iter()
            .filter_map(|owner| match owner {
                Owner::Run(id) => Some(id.clone()),
                Owner::Machine(_) | Owner::Host => None,
            })
            .collect(),
        owners,
        held,
    })
}

impl Known {
    /// Whether a machine may have this id.
    fn may_have(&self, id: &str) -> bool {
        self.nameless || self.machines.contains_key(id)
    }
}

/// What has a machine's name and no machine: rows, processes, directories.
fn orphans(
    host: &Host,
    found: &Found,
    known: &Known,
    when: When,
    garbage: &mut Vec<Garbage>,
) -> Result<(), Error> {
    for owner in found
        .owners
        .iter()
        .filter(|o| o.vm().is_some_and(|vm| !known.may_have(vm)) && known.owners.contains(o))
    {
        garbage.push(Garbage {
            kind: GarbageKind::Ledger,
            what: owner.to_string(),
            why: "objects of a machine that is no more".to_owned(),
            size: 0,
            thing: Thing::Owner(owner.clone()),
        });
    }
    // A process of ours has a row of its run from before its first instruction to after its last.
    for (token, line) in &found.processes {
        let Some(id) = id::of_token(token) else { continue };
        let paths = Paths::new(&host.settings.state_dir, &host.settings.runtime_dir, id);
        let ours = ledger::mentions(line, &paths.state) || ledger::mentions(line, &paths.runtime);
        let ends = hostkit::process::command_line(line.id).is_none_or(|line| line.args.is_empty());
        if !ours || ends || known.runs.contains(id) || ledger::is_anothers(token, &paths.state)? {
            continue;
        }
        garbage.push(Garbage {
            kind: GarbageKind::Process,
            what: line.id.pid.to_string(),
            why: match known.may_have(id) {
                true => format!("{token} does not run"),
                false => format!("there is no machine {token}"),
            },
            size: 0,
            thing: Thing::Process(line.id),
        });
    }
    // Nor has a device of ours. After the processes, which may have them open.
    for device in &found.devices {
        let Some(id) = device.vm().filter(|id| !known.runs.contains(*id)) else {
            continue;
        };
        // A start may make one of the same name at this moment.
        if when == When::Running && known.may_have(id) {
            continue;
        }
        garbage.push(Garbage {
            kind: match device {
                Device::Mapped { .. } => GarbageKind::Device,
                Device::Loop { .. } => GarbageKind::Loop,
            },
            what: device.shown().to_owned(),
            why: match known.may_have(id) {
                true => format!("{} does not run", id::token(id)),
                false => format!("there is no machine {}", id::token(id)),
            },
            size: 0,
            thing: Thing::Device(device.clone()),
        });
    }
    for (path, token) in &found.directories {
        let Some(id) = id::of_token(token) else { continue };
        let paths = Paths::new(&host.settings.state_dir, &host.settings.runtime_dir, id);
        let why = match (known.machines.get(id), when) {
            (None, _) if known.nameless => continue,
            (None, _) => format!("there is no machine {token}"),
            // Its row was lost with the host's power, say. The next start would find its place taken.
            (Some(Some(row)), When::Starting)
                if *path == paths.runtime && !known.runs.contains(id) && rests(&row.phase) =>
            {
                format!("{token} does not run")
            }
            (Some(_), When::Starting | When::Running) => continue,
        };
        // Its machine was being removed when it was listed.
        if !path.exists() {
            continue;
        }
        if ledger::is_anothers(token, &paths.state)? {
            tracing::warn!(path = %path.display(), "left alone: a machine of a daemon with another state directory");
            continue;
        }
        garbage.push(Garbage {
            kind: GarbageKind::Directory,
            what: path.display().to_string(),
            why,
            size: taken_by(path),
            thing: Thing::MachineDirectory(path.clone()),
        });
    }
    Ok(())
}

fn rests(phase: &str) -> bool {
    match phase_of(phase) {
        Ok(Phase::Stopped | Phase::Failed(_)) => true,
        Ok(
            Phase::Creating
            | Phase::Starting
            | Phase::Running(_)
            | Phase::Stopping(_)
            | Phase::Resetting
            | Phase::Due(_)
            | Phase::Removing,
        )
        | Err(_) => false,
    }
}

/// Bridges, taps and tables of the network that nobody keeps.
async fn links_and_tables(host: &Host, found: Present, garbage: &mut Vec<Garbage>) -> Result<(), Error> {
    for stray in strays::unneeded(found, &host.network, &host.ledger).await? {
        garbage.push(Garbage {
            kind: match stray {
                Stray::Link { .. } => GarbageKind::Link,
                Stray::Table { .. } => GarbageKind::Table,
            },
            what: stray.shown(),
            why: "it is of no network that is kept".to_owned(),
            size: 0,
            thing: Thing::Stray(stray),
        });
    }
    Ok(())
}

/// System disks that their machine's row does not name: of a reset that was broken off.
fn disks(host: &Host, known: &Known, when: When, garbage: &mut Vec<Garbage>) {
    for row in known.machines.values().flatten() {
        let paths = Paths::new(&host.settings.state_dir, &host.settings.runtime_dir, &row.id);
        for (path, generation) in system_disk::others(row, &paths) {
            // A newer one may be in the making, an older one about to be removed by who renewed it.
            let under_way = generation > row.generation || known.held.contains(&path) || !path.exists();
            if when == When::Running && under_way {
                continue;
            }
            garbage.push(Garbage {
                kind: GarbageKind::Directory,
                what: path.display().to_string(),
                why: format!("{} has another system disk by now", row.name),
                size: taken_by(&path),
                thing: Thing::Disk(path),
            });
        }
    }
}

/// Images and kernels without a row, unfinished work, and archives that no kernel is started with.
async fn directories(host: &Host, found: &Found, known: &Known, when: When, garbage: &mut Vec<Garbage>) {
    let mut push = |kind, path: &Path, why: &str| {
        // What was held until a moment ago may be gone by now.
        if !known.held.contains(path) && path.exists() {
            garbage.push(Garbage {
                kind,
                what: path.display().to_string(),
                why: why.to_owned(),
                size: taken_by(path),
                thing: Thing::Tree(path.to_owned()),
            });
        }
    };
    const UNFINISHED: &str = "left by a daemon that died at work on it";
    for (path, name) in &found.images {
        if name.starts_with(work::PREFIX) {
            push(GarbageKind::Image, path, UNFINISHED);
        } else if !known.images.contains(name) {
            push(GarbageKind::Image, path, "there is no such image");
        }
    }
    for (path, name) in &found.kernels {
        if name.starts_with(work::PREFIX) {
            push(GarbageKind::Kernel, path, UNFINISHED);
        } else if !known.kernels.contains(name) {
            push(GarbageKind::Kernel, path, "there is no such kernel");
        }
    }
    for (path, name) in &found.runtimes {
        if name.starts_with(work::PREFIX) {
            push(GarbageKind::Runtime, path, UNFINISHED);
        }
    }
    for (path, name) in &found.builds {
        if name.starts_with(work::PREFIX) {
            push(GarbageKind::Image, path, UNFINISHED);
        }
    }
    for (path, name) in &found.initramfs {
        if name.starts_with(work::PREFIX) {
            push(GarbageKind::Initramfs, path, UNFINISHED);
        }
    }
    for (path, name) in &found.seeds {
        if name.starts_with(work::PREFIX) {
            push(GarbageKind::Seed, path, UNFINISHED);
        } else if !known.images.contains(name) {
            push(GarbageKind::Seed, path, "there is no such image");
        } else if !known.held.contains(path) {
            for former in seed::superseded(path) {
                push(GarbageKind::Seed, &former, "there is a newer one");
            }
        }
    }
    // Which archives are in use takes reading every module of every kernel: not while somebody waits for the daemon.
    if when == When::Running
        && let Some(used) = used_archives(host, &known.kernels).await
    {
        for (path, name) in &found.initramfs {
            if name.ends_with(".cpio") && !used.contains(path) {
                push(
                    GarbageKind::Initramfs,
                    path,
                    "no kernel is started with it any more",
                );
            }
        }
    }
}

/// The archives that the next start of each kernel uses; `None` where that cannot be told.
async fn used_archives(host: &Host, kernels: &[String]) -> Option<HashSet<PathBuf>> {
    let agent = host.assets.agent().ok()?;
    let state = host.settings.state_dir.clone();
    let kernels = kernels.to_vec();
    let used = tokio::task::spawn_blocking(move || {
        let directory = places::initramfs_dir(&state);
        let archive = |name: &String| {
            let files = places::kernel_files(&state, name);
            crate::image::initramfs::path_of(&directory, &agent, &files).ok()
        };
        kernels.iter().map(archive).collect::<Option<HashSet<_>>>()
    });
    used.await.ok()?
}

async fn operations(host: &Host, garbage: &mut Vec<Garbage>) -> Result<(), Error> {
    let before = operation::oldest_kept();
    let count = host
        .store
        .read(move |tx| banger_store::operations::count_before(tx, before))
        .await?;
    if count > 0 {
        garbage.push(Garbage {
            kind: GarbageKind::Operation,
            what: format!("{count} records"),
            why: "they ended more than a day ago".to_owned(),
            size: 0,
            thing: Thing::Operations(before),
        });
    }
    Ok(())
}

/// What a directory holds, with its names; nothing where there is none.
fn entries(directory: &Path) -> Result<Vec<(PathBuf, String)>, Error> {
    let entries = match std::fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(io("list", directory)(e)),
    };
    let named = entries.flatten().filter_map(|entry| {
        let name = entry.file_name().into_string().ok()?;
        Some((entry.path(), name))
    });
    Ok(named.collect())
}

/// Bytes that a file, or a directory with all in it, takes on its file system. What vanishes meanwhile takes nothing.
fn taken_by(path: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let Ok(metadata) = std::fs::symlink_metadata(path) else {
        return 0;
    };
    // st_blocks counts 512-byte units whatever the file system's block size (stat(2)).
    let own = metadata.blocks() * 512;
    if !metadata.is_dir() {
        return own;
    }
    let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
    own + entries.map(|entry| taken_by(&entry.path())).sum::<u64>()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::tests::host;

    #[tokio::test]
    async fn while_a_row_does_not_say_whose_it_is_no_machines_directory_is_garbage() {
        let directory = tempfile::tempdir().unwrap();
        let host = host(directory.path()).await;
        let id = id::new();
        let disks = machines_dir(directory.path()).join(id::token(&id));
        std::fs::create_dir_all(&disks).unwrap();
        let found = async || find(&host, When::Starting).await.unwrap();
        let shown = disks.display().to_string();
        assert!(found().await.iter().any(|garbage| garbage.what == shown));

        let spoilt = host
            .store
            .read(|tx| Ok(tx.execute_batch("UPDATE vms SET id = CAST(x'ff' AS TEXT)")?));
        spoilt.await.unwrap();
        assert!(found().await.iter().all(|garbage| garbage.what != shown));
    }

    #[test]
    fn what_is_left_of_a_network_is_found_by_what_it_says_of_its_owner() {
        testkit::in_network_namespace_async(async || {
            let Some(_) = testkit::program("BANGER_TEST_NFT", "nft") else {
                return;
            };
            let directory = tempfile::tempdir().unwrap();
            let host = host(directory.path()).await;
            let hands = host.network.hands();
            let (links, nft) = (crate::net::hands::Hands::links().unwrap(), hands.nft().unwrap());
            let ours = hands.alias.to_string();
            for (name, alias) in [("lab0", ours.as_str()), ("lab1", "banger other"), ("lab2", "")] {
                let bridge = links.make_bridge(name, alias).await.unwrap();
                links.set_up(bridge).await.unwrap();
                let tap = format!("{name}t0");
                hostkit::tap::make(&tap, None).unwrap();
                let port = links.get(&tap).await.unwrap().unwrap().index;
                links.set_alias(port, alias).await.unwrap();
                links.enslave(port, bridge, true).await.unwrap();
                links.set_up(port).await.unwrap();
                let comment = format!("table inet banger_{name} {{ comment \"{alias}\"; }}");
                nft.apply(&comment).await.unwrap();
            }
            let found = async || -> Vec<_> {
                let garbage = find(&host, When::Running).await.unwrap();
                let shown = garbage.iter().map(|g| (g.kind.as_str(), g.what.clone()));
                shown
                    .filter(|(kind, _)| ["link", "table"].contains(kind))
                    .collect()
            };
            // While a machine is at its end nothing of it is garbage.
            let card = testkit::Card::open("lab0t0");
            assert_eq!(found().await, []);
            drop(card);
            let expected = [
                ("link", "lab0t0"),
                ("link", "lab0"),
                ("table", "inet banger_lab0"),
            ];
            assert_eq!(
                found().await,
                expected.map(|(kind, what)| (kind, what.to_owned()))
            );
            // What has a row is not, nor is what that is in.
            let row = crate::ledger::Object::Tap {
                name: "lab0t0".to_owned(),
            };
            let entered = host.ledger.enter(&Owner::Host, &row).await.unwrap();
            entered.nothing_to_make();
            assert_eq!(found().await, []);
            host.ledger.discard(&Owner::Host, &row).await.unwrap();
            for piece in find(&host, When::Running).await.unwrap() {
                remove(&host, &piece).await.unwrap();
                remove(&host, &piece).await.unwrap();
            }
            assert_eq!(found().await, []);
            let left = links.list().await.unwrap();
            let left = left.iter().map(|link| link.name.as_str());
            let left: Vec<_> = left.filter(|name| name.starts_with("lab")).collect();
            assert_eq!(left, ["lab1", "lab1t0", "lab2", "lab2t0"]);
            assert_eq!(nft.tables().await.unwrap().len(), 2);
        });
    }
}
