//! The system disk: a view of the image's root file system that the machine may write to, made in the same time for any
//! image. Three ways behind one interface, chosen when the machine is created and kept in its row:
//!
//! ```text
//!   overlay   overlay.img, overlay-N.img   an empty ext4; the guest stacks it over the image      needs nothing
//!   reflink   root-N.img                   a file that shares the image's blocks (FICLONE)         XFS, btrfs
//!   dm        cow-N.img                    what differs from the image, under a device-mapper snapshot      root
//! ```
//!
//! N is the row's generation: a renewal makes the next file, switches over by changing the row, and removes the old file
//! after that. So a crash leaves at worst a file that the row does not name, which [`sweep`] removes.
//!
//! Place: the machine's task calls [`create`] and [`grow`] and renews through [`create_generation`] and
//! [`remove_generation`]; a start goes through the capability. What is in a disk is the guest's affair.

pub(crate) mod devices;
mod dm;
mod overlay;
mod reflink;

use std::fmt;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use banger_store::images::ImageRow;
use banger_store::vms::VmRow;
use banger_vmm::MachineSpec;
use hostkit::dm::Snapshot;

pub(crate) use super::disk::remove_file;
use super::disk::{self, Mend, Which, extend};
use super::{Capability, Start, work_disk};
use crate::crash::{self, Moment, Point};
use crate::doctor::Check;
use crate::error::{Error, io};
use crate::host::Host;
use crate::image::{build, registered};
use crate::ledger::{Object, Owner};
use crate::limits::bytes;
use crate::space;
use crate::vm::lifecycle::taken;
use crate::vm::state::Paths;

/// How a system disk is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SystemDiskKind {
    /// The guest stacks a disk of its own over the shared image (overlayfs).
    Overlay,
    /// A file that shares the image's blocks.
    Reflink,
    /// A device-mapper snapshot of the image.
    Dm,
}

impl SystemDiskKind {
    /// All, the best first.
    pub const ALL: [Self; 3] = [Self::Reflink, Self::Dm, Self::Overlay];

    /// Its word, in rows and for people.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Overlay => "overlay",
            Self::Reflink => "reflink",
            Self::Dm => "dm",
        }
    }

    /// The kind of that word.
    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == word)
    }

    fn file_name(self, generation: u32) -> String {
        match (self, generation) {
            // As it was called before there were others.
            (Self::Overlay, 0) => "overlay.img".to_owned(),
            (Self::Overlay, n) => format!("overlay-{n}.img"),
            (Self::Reflink, n) => format!("root-{n}.img"),
            (Self::Dm, n) => format!("cow-{n}.img"),
        }
    }
}

impl fmt::Display for SystemDiskKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Whether new machines can have a kind of system disk here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Availability {
    /// Which.
    pub kind: SystemDiskKind,
    /// Why not, and what would help; `None`: it can be had.
    pub obstacle: Option<Obstacle>,
}

/// Why something cannot be had.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Obstacle {
    /// One line.
    pub reason: String,
    /// What would help.
    pub fix: String,
}

async fn obstacle(host: &Host, kind: SystemDiskKind) -> Option<Obstacle> {
    match kind {
        SystemDiskKind::Overlay => None,
        SystemDiskKind::Reflink => reflink::obstacle(host).await,
        SystemDiskKind::Dm => dm::obstacle().await,
    }
}

/// Each kind, the best first, with what stands in its way on this host.
pub(crate) async fn available(host: &Host) -> Vec<Availability> {
    let mut all = Vec::new();
    for kind in SystemDiskKind::ALL {
        let obstacle = obstacle(host, kind).await;
        all.push(Availability { kind, obstacle });
    }
    all
}

/// The kind for a new machine: the one that is wanted, if it can be had here; else the best that holds the image.
pub(crate) async fn choose(
    host: &Host,
    wanted: Option<SystemDiskKind>,
    image: &ImageRow,
    disk: u64,
) -> Result<SystemDiskKind, Error> {
    if let Some(kind) = wanted {
        if let Some(obstacle) = obstacle(host, kind).await {
            return Err(unavailable(kind, obstacle));
        }
        holds(host, kind, &image.id, disk)?;
        shares(host, kind, image).await?;
        return Ok(kind);
    }
    for kind in SystemDiskKind::ALL {
        if holds(host, kind, &image.id, disk).is_ok()
            && obstacle(host, kind).await.is_none()
            && shares(host, kind, image).await.is_ok()
        {
            return Ok(kind);
        }
    }
    Ok(SystemDiskKind::Overlay)
}

fn unavailable(kind: SystemDiskKind, Obstacle { reason, fix }: Obstacle) -> Error {
    Error::Unavailable {
        what: format!("a system disk of kind {:?}", kind.as_str()),
        reason,
        fix,
    }
}

/// Refuses a disk that shares blocks with a user's file that is on another file system.
async fn shares(host: &Host, kind: SystemDiskKind, image: &ImageRow) -> Result<(), Error> {
    match (kind, &image.registered) {
        (SystemDiskKind::Reflink, Some(_)) if !reflink::reaches(host, &image.id).await? => {
            let fix = format!(
                "make the image Banger's own with `banger image promote {}`, or give --system-disk overlay",
                image.name()
            );
            let reason =
                "no blocks can be shared between the state directory and the image's file".to_owned();
            Err(unavailable(kind, Obstacle { reason, fix }))
        }
        (SystemDiskKind::Reflink | SystemDiskKind::Dm | SystemDiskKind::Overlay, _) => Ok(()),
    }
}

/// The kind for a machine that builds an image: a file by itself, which holds all that the guest sees.
pub(crate) fn choose_plain(host: &Host, image: &str, disk: u64) -> Result<SystemDiskKind, Error> {
    holds(host, SystemDiskKind::Reflink, image, disk)?;
    Ok(SystemDiskKind::Reflink)
}

/// The row's kind.
pub(crate) fn kind_of(row: &VmRow) -> Result<SystemDiskKind, Error> {
    SystemDiskKind::parse(&row.system_disk).ok_or_else(|| Error::Host {
        action: "find the system disk",
        source: format!("this release knows no system disk of kind {:?}", row.system_disk).into(),
    })
}

/// The file of the row's generation.
pub(crate) fn file(row: &VmRow, paths: &Paths) -> Result<PathBuf, Error> {
    Ok(paths.state.join(kind_of(row)?.file_name(row.generation)))
}

/// Makes the machine's directory and its disks. At creation; a start finds them.
pub(crate) async fn create(host: &Host, row: &VmRow, paths: &Paths) -> Result<(), Error> {
    let owner = Owner::Machine(row.id.clone());
    let directory = Object::Directory {
        path: paths.state.clone(),
    };
    let entered = host.ledger.enter(&owner, &directory).await?;
    std::fs::DirBuilder::new()
        .mode(0o700)
        .create(&paths.state)
        .map_err(io("create", &paths.state))?;
    entered.made();
    create_generation(host, row, paths).await?;
    work_disk::ensure(host, row, paths).await
}

/// Makes the disk of the row's generation: in the same time for any image. What an interrupted attempt left under its
/// name is replaced.
pub(crate) async fn create_generation(host: &Host, row: &VmRow, paths: &Paths) -> Result<(), Error> {
    let (path, kind) = (file(row, paths)?, kind_of(row)?);
    let id = row.image.clone();
    let image = host
        .store
        .read(move |tx| banger_store::images::get(tx, &id))
        .await?;
    if let Some(image) = &image {
        registered::usable(host, image).await?;
        if !row.labels.contains_key(build::LABEL) {
            shares(host, kind, image).await?;
        }
    }
    holds(host, kind, &row.image, row.disk)?;
    space::demand(
        host,
        match kind {
            SystemDiskKind::Overlay => space::of_empty_disk(row.disk),
            SystemDiskKind::Reflink | SystemDiskKind::Dm => 0,
        },
    )?;
    remove_file(&path)?;
    match kind {
        SystemDiskKind::Overlay => overlay::make(host, row, &path).await?,
        SystemDiskKind::Reflink => reflink::make(host, row, &path).await?,
        SystemDiskKind::Dm => dm::make(row, &path)?,
    }
    crash::point(Point::Moment(Moment::DiskMade));
    Ok(())
}

/// Removes the disk of the row's generation. The machine must not run; one that is gone already is fine.
pub(crate) fn remove_generation(row: &VmRow, paths: &Paths) -> Result<(), Error> {
    remove_file(&file(row, paths)?)
}

/// Removes the system disks in the machine's directory that are not the row's: of a renewal that was broken off before
/// the row was switched over, or after it. Returns how many there were.
pub(crate) fn sweep(row: &VmRow, paths: &Paths) -> Result<u32, Error> {
    let mut removed = 0;
    for (path, _) in others(row, paths) {
        remove_file(&path)?;
        removed += 1;
    }
    Ok(removed)
}

/// The system disks in the machine's directory that are not the row's, each with its generation. None where the row's kind
/// is not known or the directory cannot be listed: then nothing can be said of what is in it.
pub(crate) fn others(row: &VmRow, paths: &Paths) -> Vec<(PathBuf, u32)> {
    let Ok(kind) = kind_of(row) else {
        return Vec::new();
    };
    let kept = kind.file_name(row.generation);
    let entries = std::fs::read_dir(&paths.state).into_iter().flatten().flatten();
    let others = entries.filter_map(|entry| {
        let name = entry.file_name();
        let name = name.to_str().filter(|name| *name != kept)?;
        Some((entry.path(), generation_of(name)?))
    });
    others.collect()
}

/// The generation of a file in a machine's directory, if it is one of its system disks.
fn generation_of(name: &str) -> Option<u32> {
    let stem = name.strip_suffix(".img")?;
    if stem == "overlay" {
        return Some(0);
    }
    let number = |n: &str| n.parse().ok();
    ["overlay-", "root-", "cow-"]
        .iter()
        .find_map(|prefix| stem.strip_prefix(prefix).and_then(number))
}

/// Extends the disk's file to the row's size. One that has it is fine, so a growth that was broken off is simply gone on
/// with. The file system in it grows when the guest's agent says so.
pub(crate) fn grow(row: &VmRow, paths: &Paths) -> Result<(), Error> {
    let size = match kind_of(row)? {
        SystemDiskKind::Overlay | SystemDiskKind::Reflink => row.disk,
        SystemDiskKind::Dm => dm::cow_size(row.disk),
    };
    extend(&file(row, paths)?, size)
}

/// Bytes the disk takes on the host, without those that it shares with its image.
pub(crate) fn usage(row: &VmRow, paths: &Paths) -> u64 {
    let (Ok(path), Ok(kind)) = (file(row, paths), kind_of(row)) else {
        return 0;
    };
    match kind {
        SystemDiskKind::Overlay | SystemDiskKind::Dm => taken(&path),
        SystemDiskKind::Reflink => reflink::own_bytes(&path).unwrap_or_else(|| taken(&path)),
    }
}

/// How full the snapshot of a running machine is; `None` for other kinds, and while it does not run.
pub(crate) async fn snapshot_usage(row: &VmRow) -> Result<Option<Snapshot>, Error> {
    match kind_of(row)? {
        SystemDiskKind::Dm => dm::usage(row).await,
        SystemDiskKind::Overlay | SystemDiskKind::Reflink => Ok(None),
    }
}

/// Whether a disk of this kind that grew can be told to a VMM that has it open. A device-mapper device is made anew at
/// each start.
pub(crate) fn grows_online(row: &VmRow) -> Result<bool, Error> {
    match kind_of(row)? {
        SystemDiskKind::Overlay | SystemDiskKind::Reflink => Ok(true),
        SystemDiskKind::Dm => Ok(false),
    }
}

/// The disk's id in the machine, by which a VMM is told that it has grown.
pub(crate) fn id(row: &VmRow) -> Result<&'static str, Error> {
    match kind_of(row)? {
        SystemDiskKind::Overlay => Ok(overlay::ID),
        SystemDiskKind::Reflink | SystemDiskKind::Dm => Ok(ROOT),
    }
}

/// Refuses a disk that does not hold its image. The overlay's does not have to.
pub(super) fn holds(host: &Host, kind: SystemDiskKind, image: &str, disk: u64) -> Result<(), Error> {
    match kind {
        SystemDiskKind::Overlay => return Ok(()),
        SystemDiskKind::Reflink | SystemDiskKind::Dm => {}
    }
    let image = crate::image::rootfs_path(&host.settings.state_dir, image);
    let length = std::fs::metadata(&image).map_err(io("look at", image))?.len();
    if length <= disk {
        return Ok(());
    }
    Err(Error::OutOfRange {
        field: "disk",
        value: bytes(&disk),
        problem: format!("below the image's {}", bytes(&length)),
    })
}

/// The id of a disk that is all of the root file system.
const ROOT: &str = "root";

const WHICH: Which = Which {
    group: "system-disk",
    called: "the system disk",
    way_out: "renew it with `banger vm reset`, which loses what is on it but not the work disk",
};

pub(crate) struct SystemDisk;

#[async_trait::async_trait]
impl Capability for SystemDisk {
    fn name(&self) -> &'static str {
        "system-disk"
    }

    async fn check(&self, start: &Start<'_>) -> Vec<Check> {
        match kind_of(start.row) {
            Ok(SystemDiskKind::Overlay) => overlay::check(start),
            Ok(SystemDiskKind::Reflink) => reflink::check(start),
            Ok(SystemDiskKind::Dm) => dm::check(start).await,
            Err(e) => {
                let fix = "use the release that made this machine, or remove the machine";
                vec![Check::failure(self.name(), "kind", e.report().message, fix)]
            }
        }
    }

    async fn prepare(&self, start: &Start<'_>) -> Result<(), Error> {
        grow(start.row, start.paths)?;
        match kind_of(start.row)? {
            SystemDiskKind::Overlay | SystemDiskKind::Reflink => {
                let path = file(start.row, start.paths)?;
                disk::make_whole(start, WHICH, &path, Mend::WhatTheGuestCannot).await
            }
            SystemDiskKind::Dm => dm::prepare(start).await,
        }
    }

    fn contribute(&self, start: &Start<'_>, spec: &mut MachineSpec) {
        match kind_of(start.row) {
            Ok(SystemDiskKind::Overlay) => overlay::contribute(start, spec),
            Ok(SystemDiskKind::Reflink) => reflink::contribute(start, spec),
            Ok(SystemDiskKind::Dm) => dm::contribute(start, spec),
            // Said by the check; such a machine is never launched.
            Err(_) => {}
        }
    }

    fn makes(&self, start: &Start<'_>, disk: &Path) -> bool {
        match kind_of(start.row) {
            Ok(SystemDiskKind::Dm) => dm::makes(start.paths, disk),
            Ok(SystemDiskKind::Overlay | SystemDiskKind::Reflink) | Err(_) => false,
        }
    }

    async fn started(&self, start: &Start<'_>) {
        match sweep(start.row, start.paths) {
            Ok(0) => {}
            Ok(disks) => tracing::info!(vm = start.row.name, disks, "removed former system disks"),
            Err(e) => tracing::warn!(
                vm = start.row.name,
                error = crate::error::chain(&e),
                "former system disks not removed"
            ),
        }
    }

    async fn doctor(&self, host: &Arc<Host>) -> Vec<Check> {
        let all = available(host).await;
        let best = all.iter().find(|a| a.obstacle.is_none()).map(|a| a.kind);
        all.into_iter()
            .map(|Availability { kind, obstacle }| {
                let name = kind.as_str();
                match obstacle {
                    None if best == Some(kind) => Check::fine("disks", name, "usable, and the best of them"),
                    None => Check::fine("disks", name, "usable"),
                    // Not a warning: there is another way always.
                    Some(Obstacle { reason, fix }) => Check {
                        fix: Some(fix),
                        ..Check::fine("disks", name, format!("not to be had here: {reason}"))
                    },
                }
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kinds_files_are_known_as_system_disks_and_nothing_else_is() {
        for kind in SystemDiskKind::ALL {
            assert_eq!(SystemDiskKind::parse(kind.as_str()), Some(kind));
            for generation in [0, 1, 77, u32::MAX] {
                assert_eq!(generation_of(&kind.file_name(generation)), Some(generation));
            }
        }
        for other in [
            "work.img",
            "console.log",
            "overlay-.img",
            "overlay-1.img.new",
            "root.img",
            "root-x.img",
            "root-99999999999.img",
            "",
        ] {
            assert_eq!(generation_of(other), None, "{other}");
        }
    }
}
