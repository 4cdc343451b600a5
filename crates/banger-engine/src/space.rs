//! Room on the state directory's file system: a floor that what is made deliberately does not go below, and a word in time
//! when running machines fill it up.
//!
//! Disks are sparse: what machines write is not known when they are made, and no floor can promise them anything. It is
//! there so that creating never takes what those that exist will want next, and so that the state file can always be
//! written. A disk of kind dm that cannot be written to is lost, the other kinds give the guest an error.

use hostkit::space::{self, Space};

use crate::doctor::Check;
use crate::error::{Error, io};
use crate::host::Host;
use crate::limits::bytes;

const FIX: &str = "remove machines or images, make the file system larger, or move `state_dir` under `[daemon]` in the configuration to \
                   another";

/// What an empty file system takes at once: its superblocks, and for each GiB the descriptors of its groups
/// (see `hostkit::ext4::make_empty`).
pub(crate) fn of_empty_disk(size: u64) -> u64 {
    (512 << 10) + (size >> 30) * (50 << 10)
}

/// Refuses to write so many bytes at once where less than the floor would be left.
pub(crate) fn demand(host: &Host, writes: u64) -> Result<(), Error> {
    let floor = host.settings.space_floor;
    let free = free(host)?.free;
    if free.saturating_sub(writes) >= floor {
        return Ok(());
    }
    Err(Error::NoRoom { free, writes, floor })
}

/// How things stand, for health, doctor, and before a start: a warning below twice the floor, a failure below it.
pub(crate) fn pressure(host: &Host) -> Check {
    let (group, name) = ("state", "space");
    let floor = host.settings.space_floor;
    match free(host) {
        Ok(Space { free, total }) => {
            let place = host.settings.state_dir.display();
            let found = format!("{} of {} free for {place}", bytes(&free), bytes(&total));
            if free < floor {
                let reason = format!(
                    "{found}, below the floor of {}: nothing new can be made",
                    bytes(&floor)
                );
                Check::failure(group, name, reason, FIX)
            } else if free < floor.saturating_mul(2) {
                let reason = format!("{found}, near the floor of {}", bytes(&floor));
                Check::warning(group, name, reason, FIX)
            } else {
                Check::fine(group, name, found)
            }
        }
        Err(e) => Check::failure(
            group,
            name,
            crate::error::chain(&e),
            "make the state directory reachable",
        ),
    }
}

fn free(host: &Host) -> Result<Space, Error> {
    let state = &host.settings.state_dir;
    space::of(state).map_err(io("look for room in", state))
}
