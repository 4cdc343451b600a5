//! What the machine's own disks have in common: looked at before a start, lengthened, and mended where the guest's kernel
//! could not do it by itself.

use std::fs::File;
use std::path::Path;
use std::time::Duration;

use hostkit::ext4::mend::{MendError, add_journal, mend};
use hostkit::ext4::superblock::{self, State};
use hostkit::ext4::{self, E2fsTools};

use super::Start;
use crate::crash::{self, Moment, Point};
use crate::doctor::Check;
use crate::error::{Error, Problem, chain, io};
use crate::host::Host;

/// How long a repair may take. One that replays a journal takes milliseconds; one of a whole disk reads all its inodes.
const REPAIR: Duration = Duration::from_secs(10 * 60);

/// MiB of a journal that is added.
const JOURNAL: u32 = 16;

/// Which disk, for checks and messages.
#[derive(Debug, Clone, Copy)]
pub(super) struct Which {
    /// The capability's name.
    pub(super) group: &'static str,
    /// `the system disk`.
    pub(super) called: &'static str,
    /// The way out when it is damaged beyond repair.
    pub(super) way_out: &'static str,
}

/// When a disk is mended before a start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mend {
    /// Where the guest's kernel does not do it by itself when it mounts: errors, and interruptions without a journal.
    WhatTheGuestCannot,
    /// Whenever it was not unmounted in order.
    Everything,
}

/// A disk of the machine's own that a guest mounts for writing. Only looks.
pub(super) fn check(which: Which, path: &Path) -> Check {
    match superblock::check_writable(path) {
        Ok(found) => {
            let shown = path.display();
            Check::fine(
                which.group,
                "disk",
                match found.state {
                    State::Clean => shown.to_string(),
                    State::InUse => format!("{shown}, in use when its machine ended last"),
                    State::Errors => format!("{shown}, with errors that are repaired before it is used"),
                },
            )
        }
        Err(e) => damaged(which, &chain(&e)),
    }
}

fn damaged(which: Which, why: &str) -> Check {
    Check::failure(
        which.group,
        "disk",
        format!("{}: {why}", which.called),
        which.way_out,
    )
}

/// Mends a disk before it is used, and says so.
pub(super) async fn make_whole(
    start: &Start<'_>,
    which: Which,
    path: &Path,
    when: Mend,
) -> Result<(), Error> {
    let refused = |why: String| Error::Preflight {
        vm: start.row.name.clone(),
        problems: vec![Problem {
            message: format!("{}: {why}", which.called),
            fix: Some(which.way_out.to_owned()),
        }],
    };
    let found = superblock::check_writable(path).map_err(|e| refused(chain(&e)))?;
    let by_the_guest = found.state == State::InUse && found.journal && when == Mend::WhatTheGuestCannot;
    if by_the_guest || (found.state == State::Clean && found.journal) {
        return Ok(());
    }
    let tools = tools(start.host)?;
    if found.state == State::Clean {
        // A copy of an image that was made elsewhere may have none; where there is no room yet, the next start finds some.
        if !found.journal
            && let Err(e) = add_journal(&tools, path, JOURNAL).await
        {
            tracing::warn!(
                vm = start.row.name,
                disk = which.called,
                error = chain(&e),
                "no journal added"
            );
        }
        return Ok(());
    }
    match mend(&tools, path, REPAIR).await {
        Ok(None) => Ok(()),
        Ok(Some(said)) => {
            let said = said.join("; ");
            tracing::info!(
                vm = start.row.name,
                disk = which.called,
                said,
                "checked before the start"
            );
            start.notice(format!(
                "{} was not unmounted in order and was checked: {said}",
                which.called
            ));
            Ok(())
        }
        Err(e @ (MendError::Damaged { .. } | MendError::Superblock(_))) => Err(refused(chain(&e))),
        Err(e @ (MendError::Open { .. } | MendError::Busy { .. } | MendError::Command { .. })) => {
            Err(Error::Host {
                action: "check a disk before the start",
                source: Box::new(e),
            })
        }
    }
}

/// Lengthens a file by a hole; never shortens it.
pub(super) fn extend(path: &Path, size: u64) -> Result<(), Error> {
    let file = File::options().write(true).open(path).map_err(io("open", path))?;
    let length = file.metadata().map_err(io("look at", path))?.len();
    if length < size {
        file.set_len(size).map_err(io("extend", path))?;
        crash::point(Point::Moment(Moment::DiskExtended));
    }
    Ok(())
}

/// Removes a file; one that is gone already is fine.
pub(crate) fn remove_file(path: &Path) -> Result<(), Error> {
    match std::fs::remove_file(path) {
        Ok(()) => {
            crash::point(Point::Moment(Moment::DiskRemoved));
            Ok(())
        }
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(io("remove", path)(e)),
    }
}

/// Makes an empty file system.
pub(super) async fn make_empty(host: &Host, path: &Path, size: u64, label: &str) -> Result<(), Error> {
    ext4::make_empty(&tools(host)?, path, size, label)
        .await
        .map_err(|e| Error::Host {
            action: "make the disk",
            source: Box::new(e),
        })
}

fn tools(host: &Host) -> Result<E2fsTools, Error> {
    E2fsTools::find(&host.settings.tool_dirs()).map_err(|e| Error::Host {
        action: "find the programs for disks",
        source: Box::new(e),
    })
}
