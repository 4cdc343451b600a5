//! What the daemon sets about its own process: memory arenas, open files, the group that may use it.

use std::ffi::CString;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Open files wanted: 512 connections, and a handful for every machine.
const OPEN_FILES: u64 = 65536;

/// Keeps glibc's malloc to two arenas. By default it makes up to eight a core, and freed memory stays in each.
pub(crate) fn limit_arenas() {
    #[cfg(target_env = "gnu")]
    {
        // SAFETY: mallopt takes two integers, touches only the allocator's own settings, and may be called at any time.
        let set = unsafe { libc::mallopt(libc::M_ARENA_MAX, 2) };
        if set != 1 {
            tracing::debug!("malloc does not take a number of arenas");
        }
    }
}

/// Raises the limit of open files as far as this process may.
pub(crate) fn raise_open_files() {
    let limit = getrlimit(Resource::Nofile);
    let wanted = limit
        .maximum
        .map_or(OPEN_FILES, |maximum| maximum.min(OPEN_FILES));
    if limit.current.is_none_or(|current| current >= wanted) {
        return;
    }
    let raised = Rlimit {
        current: Some(wanted),
        maximum: limit.maximum,
    };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::warn!(%error, wanted, "cannot raise the limit of open files");
    }
}

/// This process's resident memory in bytes (`VmRSS`, proc_pid_status(5)); 0 where the kernel does not say.
pub(crate) fn resident_memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|rest| rest.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok());
    kib.unwrap_or(0) << 10
}

/// Why a group cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum GroupError {
    /// The system does not know it.
    #[error("find the group {name:?} of the configuration: there is none of that name")]
    Unknown { name: String },
    /// The system could not look.
    #[error("find the group {name:?} of the configuration")]
    Io { name: String, source: std::io::Error },
}

/// Longest entry of the group database that is read, in bytes.
const MAX_ENTRY: usize = 1 << 20;

/// The id of a group named by number or by name (getgrnam(3), which asks every configured source).
pub(crate) fn group_id(name: &str) -> Result<u32, GroupError> {
    if let Ok(id) = name.parse() {
        return Ok(id);
    }
    let unknown = || GroupError::Unknown {
        name: name.to_owned(),
    };
    let c_name = CString::new(name).map_err(|_| unknown())?;
    let mut buffer = vec![0 as libc::c_char; 4096];
    loop {
        let mut entry = std::mem::MaybeUninit::<libc::group>::uninit();
        let mut found = std::ptr::null_mut();
        // SAFETY: all pointers are to live memory of the stated lengths; the entry's strings point into `buffer`, and
        // neither is used after this turn of the loop.
        let error = unsafe {
            libc::getgrnam_r(
                c_name.as_ptr(),
                entry.as_mut_ptr(),
                buffer.as_mut_ptr(),
                buffer.len(),
                &raw mut found,
            )
        };
        match error {
            // SAFETY: a non-null result points to `entry`, which getgrnam_r has filled.
            0 if !found.is_null() => return Ok(unsafe { (*found).gr_gid }),
            0 => return Err(unknown()),
            libc::ERANGE if buffer.len() < MAX_ENTRY => buffer.resize(buffer.len() * 2, 0),
            error => {
                let source = std::io::Error::from_raw_os_error(error);
                return Err(GroupError::Io {
                    name: name.to_owned(),
                    source,
                });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_told() {
        assert!((1 << 20..1 << 32).contains(&resident_memory()));
    }

    #[test]
    fn groups() {
        assert_eq!(group_id("0").unwrap(), 0);
        assert_eq!(group_id("root").unwrap(), 0);
        for name in ["no-such-group-here", "", "a\0b"] {
            assert!(
                matches!(group_id(name), Err(GroupError::Unknown { .. })),
                "{name:?}"
            );
        }
    }
}
