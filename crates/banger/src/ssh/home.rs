//! Where ssh looks for `~/.ssh`: in the home of the user database, whatever `HOME` says (ssh(1), `getpwuid`).

use std::ffi::{CStr, OsStr};
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;

/// Bytes of an entry of the user database.
const ENTRY: usize = 16 * 1024;

/// The home of the user that this process runs as; `None` where the database has no such user.
pub(crate) fn of_this_user() -> Option<PathBuf> {
    let uid = rustix::process::getuid().as_raw();
    let mut buffer = vec![0; ENTRY];
    let mut found = std::ptr::null_mut();
    // SAFETY: plain data, for which zeros are a value.
    let mut entry: libc::passwd = unsafe { std::mem::zeroed() };
    // SAFETY: all pointers are to live memory of the sizes given, which the entry's own pointers will point into.
    let failed = unsafe {
        libc::getpwuid_r(
            uid,
            &raw mut entry,
            buffer.as_mut_ptr(),
            buffer.len(),
            &raw mut found,
        )
    };
    if failed != 0 || found.is_null() || entry.pw_dir.is_null() {
        return None;
    }
    // SAFETY: a string within `buffer`, terminated by the call.
    let home = unsafe { CStr::from_ptr(entry.pw_dir) };
    Some(PathBuf::from(OsStr::from_bytes(home.to_bytes()))).filter(|home| home.is_absolute())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_the_database_has_it() {
        let uid = rustix::process::getuid().as_raw().to_string();
        let database = std::fs::read_to_string("/etc/passwd").unwrap();
        let line = database
            .lines()
            .find(|line| line.split(':').nth(2) == Some(uid.as_str()));
        // A user of some other database has no line there.
        if let Some(line) = line {
            assert_eq!(of_this_user(), line.split(':').nth(5).map(PathBuf::from));
        }
    }
}
