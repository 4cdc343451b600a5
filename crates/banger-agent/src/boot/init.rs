//! Which init an image has, and becoming it.

use super::cmdline::InitChoice;
use super::{BootError, InitMode};
use std::ffi::{CStr, CString};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::{io, ptr};

/// Where a distribution puts its init.
const STANDARD: &str = "/sbin/init";

/// Decides who becomes process 1. To be called when `/` is the image's root.
pub(super) fn choose(choice: &InitChoice) -> (InitMode, Option<PathBuf>) {
    let path = match choice {
        InitChoice::Agent => return (InitMode::Agent, None),
        InitChoice::Path(path) => path.clone(),
        InitChoice::Auto => PathBuf::from(STANDARD),
    };
    let kind = path.canonicalize().ok().and_then(|real| kind(&real));
    match (kind, choice) {
        (Some(Kind::Systemd), _) => (InitMode::Systemd, Some(path)),
        (Some(Kind::Other), _) => (InitMode::Other, Some(path)),
        // BusyBox is whatever it is called as; as init it does what its table says.
        (Some(Kind::Busybox), InitChoice::Auto) if !Path::new("/etc/inittab").exists() => {
            (InitMode::Agent, None)
        }
        (Some(Kind::Busybox), _) => (InitMode::Other, Some(path)),
        (None, InitChoice::Auto | InitChoice::Agent) => (InitMode::Agent, None),
        // Asked for by name: let execve say what is wrong with it.
        (None, InitChoice::Path(_)) => (InitMode::Other, Some(path)),
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Systemd,
    Busybox,
    Other,
}

/// What a program without links in its path is, by its name; `None` when it cannot be executed.
fn kind(real: &Path) -> Option<Kind> {
    let metadata = real.metadata().ok()?;
    if !metadata.is_file() || metadata.permissions().mode() & 0o111 == 0 {
        return None;
    }
    Some(match real.file_name()?.to_str() {
        Some("systemd") => Kind::Systemd,
        Some("busybox") => Kind::Busybox,
        Some(_) | None => Kind::Other,
    })
}

/// Replaces this process by the image's init. Only returns when that failed.
///
/// Init gets its plain path as argv[0] and no arguments. Its environment is the kernel's, as if the kernel had started it.
pub(super) fn become_init(path: &Path) -> BootError {
    let error = |source| BootError::Io {
        doing: "run the image's init",
        path: path.to_owned(),
        source,
    };
    let Ok(program) = CString::new(path.as_os_str().as_bytes()) else {
        return error(io::ErrorKind::InvalidFilename.into());
    };
    let argv: [*const libc::c_char; 2] = [program.as_ptr(), ptr::null()];
    // Rust ignores SIGPIPE from its start; init and all its children would inherit that.
    // SAFETY: a default action; then valid, null-terminated arrays, and an environment which nobody changes meanwhile.
    unsafe {
        libc::signal(libc::SIGPIPE, libc::SIG_DFL);
        libc::execve(program.as_ptr(), argv.as_ptr(), libc_environ());
    }
    error(io::Error::last_os_error())
}

/// The environment this process was started with.
fn libc_environ() -> *const *const libc::c_char {
    unsafe extern "C" {
        static environ: *const *const libc::c_char;
    }
    // SAFETY: libc sets it up before main; this process has one thread and changes no variable.
    unsafe { environ }
}

/// A console as standard input, output and error: the initramfs may have had none for the kernel to open.
pub(super) fn open_console() {
    const CONSOLE: &CStr = c"/dev/console";
    // SAFETY: system calls with a static string and plain numbers.
    unsafe {
        if libc::fcntl(0, libc::F_GETFD) >= 0 && libc::fcntl(2, libc::F_GETFD) >= 0 && is_console(2) {
            return;
        }
        let fd = libc::open(CONSOLE.as_ptr(), libc::O_RDWR | libc::O_NOCTTY);
        if fd < 0 {
            return;
        }
        for standard in 0..3 {
            libc::dup2(fd, standard);
        }
        if fd > 2 {
            libc::close(fd);
        }
    }
}

/// Rust opens `/dev/null` for standard streams which are closed at its start.
fn is_console(fd: libc::c_int) -> bool {
    // SAFETY: a question about a descriptor.
    unsafe { libc::isatty(fd) == 1 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    #[test]
    fn an_init_is_known_by_what_its_links_lead_to() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let at = |name: &str| dir.path().join(name);
        for (name, mode) in [
            ("systemd", 0o755),
            ("busybox", 0o755),
            ("openrc-init", 0o755),
            ("data", 0o644),
        ] {
            fs::write(at(name), "").expect("file");
            fs::set_permissions(at(name), fs::Permissions::from_mode(mode)).expect("mode");
        }
        for (target, expected) in [
            ("systemd", Some(Kind::Systemd)),
            ("busybox", Some(Kind::Busybox)),
            ("openrc-init", Some(Kind::Other)),
            ("data", None),
        ] {
            let link = at("init");
            let _none_before = fs::remove_file(&link);
            symlink(at(target), &link).expect("link");
            assert_eq!(kind(&link.canonicalize().expect("exists")), expected, "{target}");
        }
        assert_eq!(kind(dir.path()), None);
    }
}
