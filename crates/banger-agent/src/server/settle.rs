//! The Settle and Thaw calls: a guest at rest, so that the host can copy its system disk.
//!
//! A frozen ext4 is a clean one: its journal is written back and marked so (ext4_freeze). Blocks that no file has are
//! discarded first, so that the copy does not hold what was deleted. The agent itself is memory of the initramfs and writes
//! nothing to the disk; commands that are begun while it is frozen wait at their first write.

use super::disks::mount_nowhere;
use super::power;
use super::service::{Context, Role};
use crate::boot::etc;
use crate::log;
use banger_agent_api::{Failure, FailureKind};
use rustix::fd::{AsRawFd, OwnedFd};
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

/// `FIFREEZE`, `FITHAW` and `FITRIM` of linux/fs.h: `_IOWR('X', 119, int)`, `_IOWR('X', 120, int)`, `_IOWR('X', 121, struct
/// fstrim_range)`.
const FIFREEZE: u64 = 0xC004_5877;
const FITHAW: u64 = 0xC004_5878;
const FITRIM: u64 = 0xC018_5879;

/// Where the request names none, and the longest it can name.
const DEFAULT_LIMIT: Duration = Duration::from_secs(60);
const MAX_LIMIT: Duration = Duration::from_secs(3600);

/// For processes to go after SIGKILL.
const KILL_TIME: Duration = Duration::from_secs(10);

/// The file system that is frozen.
#[derive(Debug, Default)]
pub(super) struct Settled(Arc<Mutex<Frozen>>);

#[derive(Debug, Default)]
struct Frozen {
    root: Option<OwnedFd>,
    /// Which time this is, so that the limit of an earlier one thaws nothing.
    time: u64,
}

impl Settled {
    /// Ends everything, freezes, and sees to it that it ends by itself.
    pub(super) async fn settle(&self, context: &Context, limit_ms: u32) -> Result<(), Failure> {
        let (Role::Init { .. }, Some(disks)) = (&context.role, &context.disks) else {
            let message = "freeze the system disk: the agent is not the init of this guest";
            return Err(Failure::new(FailureKind::InvalidRequest, "settle", message));
        };
        let limit = match limit_ms {
            0 => DEFAULT_LIMIT,
            ms => Duration::from_millis(ms.into()).min(MAX_LIMIT),
        };
        power::end_everybody(Instant::now() + KILL_TIME).await;
        let (frozen, device) = (Arc::clone(&self.0), disks.system.clone());
        let froze = tokio::task::spawn_blocking(move || {
            let mut frozen = frozen.lock().unwrap_or_else(PoisonError::into_inner);
            if frozen.root.is_none() {
                etc::hide();
                let root = mount_nowhere(&device)?;
                rustix::fs::sync();
                trim(&root);
                freeze(&root, FIFREEZE)?;
                frozen.root = Some(root);
            }
            frozen.time += 1;
            Ok(frozen.time)
        });
        let time = froze
            .await
            .map_err(|lost| system(format!("freeze the system disk: {lost}")))?
            .map_err(|error: io::Error| system(format!("freeze the system disk: {error}")))?;
        let frozen = Arc::clone(&self.0);
        tokio::spawn(async move {
            tokio::time::sleep(limit).await;
            if let Err(failure) = thaw(frozen, Some(time)).await {
                log::line(format_args!("failed to {failure}"));
            }
        });
        Ok(())
    }

    /// Lets the guest write again.
    pub(super) async fn thaw(&self) -> Result<(), Failure> {
        thaw(Arc::clone(&self.0), None).await
    }
}

/// Thaws what is frozen, or only if it is still that time's.
async fn thaw(frozen: Arc<Mutex<Frozen>>, only: Option<u64>) -> Result<(), Failure> {
    let thawed = tokio::task::spawn_blocking(move || {
        let mut frozen = frozen.lock().unwrap_or_else(PoisonError::into_inner);
        if only.is_some_and(|time| time != frozen.time) {
            return Ok(());
        }
        let Some(root) = frozen.root.take() else {
            return Ok(());
        };
        if let Err(error) = freeze(&root, FITHAW) {
            frozen.root = Some(root);
            return Err(error);
        }
        if only.is_some() {
            log::line(format_args!("the system disk is thawed: its time was over"));
        }
        etc::show();
        Ok(())
    });
    thawed
        .await
        .map_err(|lost| system(format!("thaw the system disk: {lost}")))?
        .map_err(|error: io::Error| system(format!("thaw the system disk: {error}")))
}

fn freeze(root: &OwnedFd, request: u64) -> io::Result<()> {
    // SAFETY: both take an int that the kernel does not look at.
    match unsafe { libc::ioctl(root.as_raw_fd(), request as _, 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Discards what is free; a disk that cannot is as good.
fn trim(root: &OwnedFd) {
    /// `struct fstrim_range`.
    #[repr(C)]
    struct Range {
        start: u64,
        len: u64,
        minlen: u64,
    }
    let mut all = Range {
        start: 0,
        len: u64::MAX,
        minlen: 0,
    };
    // SAFETY: the structure outlives the call and is as linux/fs.h has it.
    let done = unsafe { libc::ioctl(root.as_raw_fd(), FITRIM as _, &raw mut all) };
    if done != 0 {
        let error = io::Error::last_os_error();
        if error.raw_os_error() != Some(libc::EOPNOTSUPP) {
            log::line(format_args!(
                "failed to discard what is free on the system disk: {error}"
            ));
        }
    }
}

fn system(message: String) -> Failure {
    Failure::new(FailureKind::System, "settle", message)
}
