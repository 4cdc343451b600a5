//! The kernel's settings below `/proc/sys` (proc_sys(5)). Those of the network belong to the network namespace of the
//! thread that reads or writes them.
//!
//! Keys are written with slashes, `net/ipv4/ip_forward`: names of interfaces may have dots in them.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

const ROOT: &str = "/proc/sys";
/// Values longer than a page no setting has.
const LONGEST: u64 = 4096;

/// Why a setting could not be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum SysctlError {
    /// A key that names none.
    #[error("use {key:?} as a kernel setting's name: {why}")]
    Key {
        /// As given.
        key: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// A value that is none.
    #[error("set {key} to {value:?}: a value is one line of at most {LONGEST} bytes")]
    Value {
        /// Of which setting.
        key: String,
        /// As given.
        value: String,
    },
    /// This kernel does not have it, or the interface that it is about is gone.
    #[error("find the kernel setting {key}")]
    None {
        /// Which.
        key: String,
        /// The kernel's word.
        source: io::Error,
    },
    /// We may not.
    #[error("{action} the kernel setting {key}: this takes privileges")]
    Permission {
        /// `read`, `change`.
        action: &'static str,
        /// Which.
        key: String,
        /// The kernel's word.
        source: io::Error,
    },
    /// The kernel refused for another reason.
    #[error("{action} the kernel setting {key}")]
    Refused {
        /// `read`, `change`.
        action: &'static str,
        /// Which.
        key: String,
        /// Its word.
        source: io::Error,
    },
}

/// A setting's value, without white space around it.
pub fn read(key: &str) -> Result<String, SysctlError> {
    let path = path(key)?;
    let mut value = String::new();
    File::open(path)
        .and_then(|file| file.take(LONGEST).read_to_string(&mut value))
        .map_err(|source| sort("read", key, source))?;
    Ok(value.trim().to_owned())
}

/// Changes a setting. One that has this value already is written all the same: some do something when they are.
pub fn write(key: &str, value: &str) -> Result<(), SysctlError> {
    let path = path(key)?;
    let long = u64::try_from(value.len()).is_ok_and(|length| length >= LONGEST);
    if value.is_empty() || long || value.contains(['\n', '\0']) {
        return Err(SysctlError::Value {
            key: key.to_owned(),
            value: value.to_owned(),
        });
    }
    // In one write, as the kernel wants it.
    File::options()
        .write(true)
        .open(path)
        .and_then(|mut file| file.write_all(format!("{value}\n").as_bytes()))
        .map_err(|source| sort("change", key, source))
}

fn path(key: &str) -> Result<PathBuf, SysctlError> {
    let invalid = |why| SysctlError::Key {
        key: key.to_owned(),
        why,
    };
    let plain = |byte: u8| byte.is_ascii_graphic() && byte != b'\\';
    if key.len() > 255 || !key.contains('/') {
        return Err(invalid("a path below /proc/sys, such as net/ipv4/ip_forward"));
    }
    if key.split('/').any(|part| matches!(part, "" | "." | "..")) {
        return Err(invalid("its parts are names"));
    }
    if !key.bytes().all(plain) {
        return Err(invalid("only visible ASCII characters"));
    }
    Ok(Path::new(ROOT).join(key))
}

fn sort(action: &'static str, key: &str, source: io::Error) -> SysctlError {
    let key = key.to_owned();
    match source.raw_os_error() {
        Some(libc::ENOENT | libc::ENOTDIR) => SysctlError::None { key, source },
        Some(libc::EACCES | libc::EPERM | libc::EROFS) => SysctlError::Permission { action, key, source },
        Some(_) | None => SysctlError::Refused { action, key, source },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_stay_below_their_root() {
        for bad in [
            "",
            "net",
            "net.ipv4.ip_forward",
            "/etc/passwd",
            "../net/x",
            "net/../../etc/passwd",
            "net//ipv4",
            "net/ipv4/",
            "net/ip v4",
            "net/\0",
        ] {
            assert!(matches!(read(bad), Err(SysctlError::Key { .. })), "{bad:?}");
        }
        assert!(matches!(read("net/no_such"), Err(SysctlError::None { .. })));
        for bad in ["", "1\n2", &"1".repeat(4096)] {
            let written = write("net/no_such", bad);
            assert!(matches!(written, Err(SysctlError::Value { .. })), "{bad:?}");
        }
    }

    #[test]
    fn a_namespace_has_its_own() {
        let outside = read("net/ipv4/ip_forward").unwrap();
        testkit::in_network_namespace(|| {
            for value in ["1", "0", "1"] {
                write("net/ipv4/ip_forward", value).unwrap();
                assert_eq!(read("net/ipv4/ip_forward").unwrap(), value);
            }
            let refused = write("net/ipv4/conf/lo/rp_filter", "x");
            assert!(matches!(refused, Err(SysctlError::Refused { .. })), "{refused:?}");
        });
        assert_eq!(read("net/ipv4/ip_forward").unwrap(), outside);
    }
}
