//! A file's new contents, whole or not at all: written beside it and renamed over it.

use std::fs::{File, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _, fchown};
use std::path::{Path, PathBuf};

/// Whose a file is to be, and who may use it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Access {
    pub(crate) mode: u32,
    /// User and group, where they are not those of this process.
    pub(crate) owner: Option<(u32, u32)>,
}

/// This user's alone.
pub(crate) const PRIVATE: Access = Access {
    mode: 0o600,
    owner: None,
};

/// Replaces the contents of `path`, or makes it.
pub(crate) fn replace(path: &Path, contents: &[u8], access: Access) -> io::Result<()> {
    let new = beside(path)?;
    let written = write(&new, contents, access).and_then(|()| std::fs::rename(&new, path));
    if written.is_err() {
        std::fs::remove_file(&new).ok();
    }
    written
}

/// A name of this process's own in the same directory.
fn beside(path: &Path) -> io::Result<PathBuf> {
    let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
    let mut new = std::ffi::OsString::from(".");
    new.push(name);
    new.push(format!(".banger-{}", std::process::id()));
    Ok(path.with_file_name(new))
}

fn write(path: &Path, contents: &[u8], access: Access) -> io::Result<()> {
    // Left by a process of the same number that was killed.
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let mut file = File::options()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)?;
    file.write_all(contents)?;
    if let Some((user, group)) = access.owner {
        fchown(&file, Some(user), Some(group))?;
    }
    file.set_permissions(Permissions::from_mode(access.mode))?;
    file.sync_all()
}
