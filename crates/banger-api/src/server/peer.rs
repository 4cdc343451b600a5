//! Who is at the other end of a connection, and whether they may use it: unix(7) `SO_PEERCRED`, and `SO_PEERGROUPS` for
//! the peer's supplementary groups (Linux 4.13). Both describe the peer at the time it connected.

use std::io;
use std::os::fd::AsRawFd;

use tokio::net::UnixStream;

use crate::contract::Caller;
use crate::error::{ErrorKind, RpcError};

/// Who may use the socket: its owner, root, and the members of a group where one is set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Access {
    /// The user the daemon runs as.
    pub owner: u32,
    /// Members of this group may use it too.
    pub group: Option<u32>,
}

/// Most supplementary groups Linux allows (`NGROUPS_MAX`).
const MAX_GROUPS: usize = 65536;

impl Access {
    /// The user this process runs as, and perhaps a group.
    #[must_use]
    pub fn of_this_process(group: Option<u32>) -> Self {
        Self {
            owner: rustix::process::geteuid().as_raw(),
            group,
        }
    }

    /// Identifies the peer and lets it in, or says why not.
    pub(super) fn admit(self, stream: &UnixStream) -> Result<Caller, RpcError> {
        let cred = stream.peer_cred().map_err(|e| {
            RpcError::new(
                ErrorKind::PermissionDenied,
                format!("the daemon cannot tell who connected: {e}"),
            )
        })?;
        let pid = cred.pid().and_then(|pid| u32::try_from(pid).ok()).unwrap_or(0);
        let caller = Caller {
            uid: cred.uid(),
            gid: cred.gid(),
            pid,
        };
        if caller.uid == 0 || caller.uid == self.owner || self.group == Some(caller.gid) {
            return Ok(caller);
        }
        if let Some(group) = self.group {
            // Should the kernel not say, the peer counts as a member of no group.
            let groups = peer_groups(stream).unwrap_or_else(|error| {
                tracing::warn!(%error, "cannot read a peer's groups");
                Vec::new()
            });
            if groups.contains(&group) {
                return Ok(caller);
            }
        }
        let error = RpcError::new(
            ErrorKind::PermissionDenied,
            format!(
                "user {} may not use the daemon of user {}",
                caller.uid, self.owner
            ),
        );
        Err(match self.group {
            Some(group) => error.hint(format!("join the group with id {group}, then log in anew")),
            None => error.hint("set `group` in the daemon's configuration to share it"),
        })
    }
}

/// The peer's supplementary groups.
fn peer_groups(stream: &UnixStream) -> io::Result<Vec<libc::gid_t>> {
    let mut groups: Vec<libc::gid_t> = vec![0; 32];
    loop {
        let bytes = groups.len() * size_of::<libc::gid_t>();
        let mut length = libc::socklen_t::try_from(bytes).map_err(io::Error::other)?;
        // SAFETY: the buffer is `length` bytes long and lives through the call; the kernel writes at most that many
        // bytes and puts the number needed into `length`.
        let result = unsafe {
            libc::getsockopt(
                stream.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_PEERGROUPS,
                groups.as_mut_ptr().cast(),
                &raw mut length,
            )
        };
        let count = usize::try_from(length).map_err(io::Error::other)? / size_of::<libc::gid_t>();
        if result == 0 {
            groups.truncate(count);
            return Ok(groups);
        }
        let error = io::Error::last_os_error();
        // ERANGE: `length` now says how much room it takes.
        if error.raw_os_error() != Some(libc::ERANGE) || count <= groups.len() || count > MAX_GROUPS {
            return Err(error);
        }
        groups.resize(count, 0);
    }
}
