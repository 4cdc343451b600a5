//! The work disk: an ext4 of the machine's own that is mounted at the user's home and survives whatever happens to the
//! system disk. Made of the image's seed ([`seed`]); the guest's agent makes the home of it and of the image's own when it
//! mounts it first.
//!
//! The row's size is what is wanted, the file's length what there is: a disk that is missing is made, one that is shorter
//! is lengthened, at once where a machine is changed and again before each start. So a change that was broken off is
//! simply gone on with.

use std::fs::File;
use std::path::{Path, PathBuf};

use banger_store::vms::VmRow;
use banger_vmm::{Disk, MachineSpec};

use super::disk::{self, Mend, Which, remove_file};
use super::{Capability, Start};
use crate::crash::{self, Moment, Point};
use crate::doctor::Check;
use crate::error::{Error, io};
use crate::host::Host;
use crate::image::{seed, work};
use crate::vm::lifecycle::taken;
use crate::vm::state::Paths;

/// The home that it holds: of root, who the commands in a guest run as.
const HOME: &str = "/root";

const WHICH: Which = Which {
    group: "work-disk",
    called: "the work disk",
    way_out: "repair its file with `e2fsck -f`, or save what is in it and remove the machine",
};

/// Its id in the machine, by which a VMM is told that it has grown.
pub(crate) const ID: &str = "work";

pub(crate) struct WorkDisk;

/// Where it is.
pub(crate) fn file(paths: &Paths) -> PathBuf {
    paths.state.join("work.img")
}

/// Makes it where the row wants one and there is none, and lengthens it to the row's size.
pub(crate) async fn ensure(host: &Host, row: &VmRow, paths: &Paths) -> Result<(), Error> {
    if row.work_disk == 0 {
        return Ok(());
    }
    let path = file(paths);
    if path.exists() {
        return disk::extend(&path, row.work_disk);
    }
    // Under its name all at once: half a disk must never be taken for one with something in it.
    let new = paths.state.join("work.img.new");
    remove_file(&new)?;
    seed::lay(host, &row.image, &new, row.work_disk).await?;
    let made = File::open(&new).map_err(io("open", &new))?;
    publish(made, &new, &path).await
}

/// On the disk before it has its name, and the name before anybody hears of it: a name without what belongs under it would
/// be refused by every start.
async fn publish(made: File, new: &Path, path: &Path) -> Result<(), Error> {
    let (new, path) = (new.to_owned(), path.to_owned());
    work::blocking(move |_| {
        made.sync_all().map_err(io("sync", &new))?;
        crash::point(Point::Moment(Moment::WorkDiskMade));
        std::fs::rename(&new, &path).map_err(io("name", &path))?;
        let directory = path.parent().unwrap_or(&path);
        let synced = File::open(directory).and_then(|directory| directory.sync_all());
        synced.map_err(io("sync", directory))?;
        crash::point(Point::Moment(Moment::WorkDiskPublished));
        Ok(())
    })
    .await
}

/// Bytes it takes on the host; 0 where there is none.
pub(crate) fn usage(paths: &Paths) -> u64 {
    taken(&file(paths))
}

#[async_trait::async_trait]
impl Capability for WorkDisk {
    fn name(&self) -> &'static str {
        WHICH.group
    }

    async fn check(&self, start: &Start<'_>) -> Vec<Check> {
        let path = file(start.paths);
        if start.row.work_disk == 0 {
            return Vec::new();
        }
        vec![if path.exists() {
            disk::check(WHICH, &path)
        } else {
            Check::fine(WHICH.group, "disk", "made by the start")
        }]
    }

    async fn prepare(&self, start: &Start<'_>) -> Result<(), Error> {
        if start.row.work_disk == 0 {
            return Ok(());
        }
        ensure(start.host, start.row, start.paths).await?;
        disk::make_whole(start, WHICH, &file(start.paths), Mend::Everything).await
    }

    fn contribute(&self, start: &Start<'_>, spec: &mut MachineSpec) {
        if start.row.work_disk == 0 {
            return;
        }
        // Disks are in the order of the guest's letters; there are never more than a few.
        let letter = u8::try_from(spec.disks.len()).map_or('z', |n| char::from(b'a'.saturating_add(n)));
        spec.disks.push(Disk {
            id: ID.to_owned(),
            path: file(start.paths),
            read_only: false,
        });
        spec.boot.args.push(format!("banger.work=/dev/vd{letter}:{HOME}"));
    }

    fn makes(&self, start: &Start<'_>, disk: &Path) -> bool {
        start.row.work_disk != 0 && disk == file(start.paths)
    }
}
