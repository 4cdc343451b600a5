//! How much room a file system has left (statvfs(3)).

use std::io;
use std::path::Path;

/// Room on a file system, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Space {
    /// Its size.
    pub total: u64,
    /// What can still be written without the reserve that file systems keep for root.
    pub free: u64,
}

/// Room on the file system on which `path` is.
pub fn of(path: &Path) -> io::Result<Space> {
    let stat = rustix::fs::statvfs(path)?;
    let bytes = |blocks: u64| blocks.saturating_mul(stat.f_frsize);
    Ok(Space {
        total: bytes(stat.f_blocks),
        free: bytes(stat.f_bavail),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_system_has_no_more_free_than_it_holds() {
        let space = of(&std::env::temp_dir()).unwrap();
        assert!(space.total > 0 && space.free <= space.total, "{space:?}");
        assert!(of(Path::new("/no/such/place")).is_err());
    }
}
