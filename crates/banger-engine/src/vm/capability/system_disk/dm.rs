//! The dm kind: a device-mapper snapshot of the image, with what differs from it in a file of the machine's own. Made for
//! each run and taken down with it; the file is all that stays.
//!
//! ```text
//!   bgrID        snapshot, chunks of 4 KiB, persistent      the guest's first disk
//!    |-- loop device on cow-N.img                           written past the page cache
//!    '-- bgrID-base   linear over a loop device on the image, read-only, then zeros up to the disk's size
//! ```
//!
//! The file is sparse and as long as a snapshot can become that differs in every chunk, so that it never runs full by
//! itself. The file system that it lies on may, and then the kernel gives the snapshot up for good: see `space`.

use std::fs::File;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use banger_store::vms::VmRow;
use banger_vmm::{Disk, MachineSpec};
use hostkit::dm::{self, Dm, DmError, Snapshot, Target};
use hostkit::loopdev;

use super::devices::{Device, Names, alone};
use super::{Obstacle, ROOT, WHICH, file};
use crate::doctor::Check;
use crate::error::{Error, chain, io};
use crate::ledger::{Object, Owner};
use crate::vm::capability::Start;
use crate::vm::capability::disk::{self, Mend};
use crate::vm::state::Paths;

/// A chunk's bytes, 8 sectors: ext4's block.
const CHUNK: u64 = 4096;
/// Records of changed chunks in a chunk of records: 16 bytes each.
const RECORDS: u64 = CHUNK / 16;
const SECTOR: u64 = 512;

/// What keeps it from being had.
pub(super) async fn obstacle() -> Option<Obstacle> {
    let obstacle = |reason: String, fix: &str| {
        Some(Obstacle {
            reason,
            fix: fix.to_owned(),
        })
    };
    if !rustix::process::geteuid().is_root() {
        return obstacle(
            "only root may make block devices".to_owned(),
            "run the daemon as root",
        );
    }
    let asked = tokio::task::spawn_blocking(|| -> Result<Option<&str>, DmError> {
        let dm = Dm::open()?;
        for target in ["linear", "zero", "snapshot"] {
            if !dm.has_target(target)? {
                return Ok(Some(target));
            }
        }
        Ok(None)
    });
    let load = "load the kernel's modules: modprobe -a loop dm-mod dm-snapshot";
    match asked.await {
        Ok(Ok(None)) if Path::new("/dev/loop-control").exists() => None,
        Ok(Ok(None)) => obstacle("the kernel has no loop devices".to_owned(), load),
        Ok(Ok(Some(target))) => obstacle(format!("the device mapper has no target {target:?}"), load),
        Ok(Err(e)) => obstacle(chain(&e), load),
        Err(e) => obstacle(chain(&e), load),
    }
}

/// Makes the file for what will differ. Its first chunk of zeros is how the kernel knows a new one.
pub(super) fn make(row: &VmRow, path: &Path) -> Result<(), Error> {
    let file = File::options()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .map_err(io("create", path))?;
    file.set_len(cow_size(row.disk)).map_err(io("extend", path))
}

/// Bytes of a snapshot's file that can hold every chunk of a disk: a header, and for each 256 chunks another with their
/// records (`drivers/md/dm-snap-persistent.c`).
pub(super) fn cow_size(disk: u64) -> u64 {
    let chunks = disk.div_ceil(CHUNK);
    let areas = chunks.div_ceil(RECORDS) + 1;
    (1 + areas * (1 + RECORDS)) * CHUNK
}

pub(super) async fn check(start: &Start<'_>) -> Vec<Check> {
    let group = WHICH.group;
    let host = match obstacle().await {
        None => Check::fine(group, "device-mapper", "has snapshots"),
        Some(Obstacle { reason, fix }) => Check::failure(group, "device-mapper", reason, fix),
    };
    let image = super::overlay::image(start);
    let path = file(start.row, start.paths).unwrap_or_default();
    let own = match std::fs::metadata(&path) {
        Ok(found) if found.is_file() => Check::fine(group, "disk", path.display().to_string()),
        Ok(_) => Check::failure(
            group,
            "disk",
            format!("{} is no file", path.display()),
            WHICH.way_out,
        ),
        Err(e) => Check::failure(group, "disk", format!("{}: {e}", path.display()), WHICH.way_out),
    };
    vec![host, image, own]
}

/// Makes the devices of this run, after what an earlier one may have left of them.
pub(super) async fn prepare(start: &Start<'_>) -> Result<(), Error> {
    let names = Names::new(start.host, &start.row.id)?;
    for device in names.devices() {
        super::devices::remove(&device).await?;
    }
    let cow = file(start.row, start.paths)?;
    let base_loop = attach(start, &names.base_loop, &start.rootfs, loopdev::Access::ReadOnly).await?;
    let cow_loop = attach(start, &names.cow_loop, &cow, loopdev::Access::Direct).await?;

    let sectors = start.row.disk / SECTOR;
    let image = std::fs::metadata(&start.rootfs)
        .map_err(io("look at", &start.rootfs))?
        .len()
        / SECTOR;
    let base = Table {
        name: names.base.clone(),
        uuid: names.uuid(&names.base),
        read_only: true,
        lines: [
            (
                0,
                image.min(sectors),
                "linear",
                format!("{} 0", base_loop.path().display()),
            ),
            (
                image.min(sectors),
                sectors.saturating_sub(image),
                "zero",
                String::new(),
            ),
        ]
        .into_iter()
        .filter(|(_, length, ..)| *length > 0)
        .collect(),
    };
    let origin = map(start, base).await?;
    let snapshot = Table {
        name: names.snapshot.clone(),
        uuid: names.uuid(&names.snapshot),
        read_only: false,
        lines: vec![(
            0,
            sectors,
            "snapshot",
            format!(
                "{}:{} {} P {}",
                origin.number.0,
                origin.number.1,
                cow_loop.path().display(),
                CHUNK / SECTOR
            ),
        )],
    };
    map(start, snapshot).await?;
    match usage(start.row).await? {
        Some(Snapshot::Valid { .. }) | None => {}
        Some(Snapshot::Invalid | Snapshot::Overflow) => {
            return Err(Error::Preflight {
                vm: start.row.name.clone(),
                problems: vec![crate::error::Problem {
                    message: "the system disk's snapshot was given up by the kernel: the host's file system ran full or failed while \
                              the machine wrote to it"
                        .to_owned(),
                    fix: Some(WHICH.way_out.to_owned()),
                }],
            });
        }
    }
    disk::make_whole(start, WHICH, &dm::node(&names.snapshot), Mend::WhatTheGuestCannot).await
}

async fn attach(
    start: &Start<'_>,
    mark: &str,
    file: &Path,
    access: loopdev::Access,
) -> Result<loopdev::Attached, Error> {
    let object = Object::Device {
        device: Device::Loop {
            mark: mark.to_owned(),
        },
    };
    let owner = Owner::Run(start.row.id.clone());
    let entered = start.host.ledger.enter(&owner, &object).await?;
    let (mark, file) = (mark.to_owned(), file.to_owned());
    let attached = alone(&start.row.id, "attach a loop device", move || {
        Ok(loopdev::attach(&file, &mark, access)?)
    })
    .await?;
    entered.made();
    Ok(attached)
}

/// A device that is to be, with its table.
struct Table {
    name: String,
    uuid: String,
    read_only: bool,
    /// First sector, sectors, kind, parameters.
    lines: Vec<(u64, u64, &'static str, String)>,
}

async fn map(start: &Start<'_>, table: Table) -> Result<dm::Device, Error> {
    let object = Object::Device {
        device: Device::Mapped {
            name: table.name.clone(),
        },
    };
    let owner = Owner::Run(start.row.id.clone());
    let entered = start.host.ledger.enter(&owner, &object).await?;
    let device = alone(&start.row.id, "make a device-mapper device", move || {
        let lines: Vec<Target<'_>> = table
            .lines
            .iter()
            .map(|(start, length, kind, parameters)| Target {
                start: *start,
                length: *length,
                kind,
                parameters,
            })
            .collect();
        let dm = Dm::open()?;
        dm.create(&table.name, &table.uuid, table.read_only)?;
        dm.load(&table.name, &lines, table.read_only)?;
        Ok(dm.resume(&table.name)?)
    })
    .await?;
    entered.made();
    Ok(device)
}

/// How full the machine's snapshot is; `None` while it has none.
pub(super) async fn usage(row: &VmRow) -> Result<Option<Snapshot>, Error> {
    let name = crate::id::token(&row.id);
    alone(&row.id, "look at the system disk's snapshot", move || {
        let status = Dm::open()?.status(&name)?;
        let line = status.and_then(|lines| lines.into_iter().next());
        Ok(line.and_then(|line| Snapshot::parse(&line.text)))
    })
    .await
}

pub(super) fn contribute(start: &Start<'_>, spec: &mut MachineSpec) {
    spec.disks.push(Disk {
        id: ROOT.to_owned(),
        path: dm::node(&start.paths.token),
        read_only: false,
    });
    spec.boot.args.push("banger.root=/dev/vda".to_owned());
}

/// Whether it is the device that a start makes.
pub(super) fn makes(paths: &Paths, disk: &Path) -> bool {
    disk == dm::node(&paths.token)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshots_file_holds_every_chunk_and_its_record() {
        for disk in [CHUNK, 16 << 20, 10 << 30, 16 << 40] {
            let chunks = disk / CHUNK;
            let records = chunks.div_ceil(RECORDS);
            let least = (1 + records + chunks) * CHUNK;
            let size = cow_size(disk);
            // No more than an area beyond, and some space for records: less than half a percent in all.
            assert!(
                size >= least && size <= least + 2 * (RECORDS + 1) * CHUNK,
                "{disk}: {size}"
            );
        }
    }
}
