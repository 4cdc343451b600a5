//! Host paths for the daemon, which has another working directory.

use std::path::Path;

use crate::error::CliError;

/// A path of the host as the contract wants it: absolute, and text.
pub(crate) fn absolute(path: &Path) -> Result<String, CliError> {
    let absolute = std::path::absolute(path)
        .map_err(|error| CliError::usage(format!("{} is not a usable path: {error}", path.display())))?;
    absolute
        .into_os_string()
        .into_string()
        .map_err(|path| CliError::usage(format!("{} is not valid UTF-8", Path::new(&path).display())))
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt as _;

    use super::*;

    #[test]
    fn paths() {
        let here = std::env::current_dir().unwrap();
        assert_eq!(
            absolute(Path::new("a/b")).unwrap(),
            here.join("a/b").to_str().unwrap()
        );
        assert_eq!(absolute(Path::new("/a")).unwrap(), "/a");
        assert!(absolute(Path::new("")).is_err());
        assert!(absolute(Path::new(OsStr::from_bytes(b"/\xff"))).is_err());
    }
}
