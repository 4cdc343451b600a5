//! What the tests find on this machine, and the one way to skip.

use std::path::{Path, PathBuf};

/// The machine's parts, from the variables that `cargo xtask test` sets.
#[derive(Debug, Clone)]
pub struct Testbed {
    /// Release as installed: `bin/`, `libexec/banger/`.
    pub stage: PathBuf,
    /// Directory for prepared state and for the tests' own state directories; on one file system.
    pub directory: PathBuf,
    /// The Firecracker binary.
    pub firecracker: Option<PathBuf>,
    /// A kernel for it that needs no hardware virtualization.
    pub firecracker_kernel: Option<PathBuf>,
    /// A daemon that can be made to die at named points (feature `crash-points`), of the stage's sources.
    pub crash_daemon: Option<PathBuf>,
}

impl Testbed {
    /// The test bed; `None` after having said what is missing. Whether a missing part skips or fails the test is the
    /// runner's choice (`BANGER_TEST_REQUIRE`).
    #[must_use]
    pub fn find() -> Option<Self> {
        let path = |name: &str| std::env::var_os(name).map(PathBuf::from);
        // Without the variables (a plain `cargo nextest run -p e2e`) the checkout's own places are tried.
        let target = Path::new(env!("CARGO_MANIFEST_DIR")).parent()?.join("target");
        let directory = path("BANGER_TEST_BED").unwrap_or_else(|| target.join("testbed"));
        let part = |name: &str, default: &str| {
            path(name)
                .or_else(|| Some(directory.join(default)))
                .filter(|path| path.is_file())
        };
        let bed = Self {
            stage: path("BANGER_TEST_STAGE").unwrap_or_else(|| target.join("stage")),
            firecracker: part("BANGER_TEST_FIRECRACKER", "bin/firecracker"),
            crash_daemon: part("BANGER_TEST_CRASH_DAEMON", "crash-points/bangerd"),
            firecracker_kernel: part("BANGER_TEST_FIRECRACKER_KERNEL", "firecracker-kernel/vmlinux"),
            directory,
        };
        for program in [
            "bin/banger",
            "bin/bangerd",
            "libexec/banger/banger-agent",
            "libexec/banger/vhost-device-vsock",
        ] {
            if !bed.stage.join(program).is_file() {
                require(&format!(
                    "{} is missing: make build",
                    bed.stage.join(program).display()
                ));
                return None;
            }
        }
        for program in ["qemu-system-x86_64", "mmdebstrap", "busybox", "mke2fs"] {
            if find_program(program).is_none() {
                require(&format!("{program} is missing: make setup"));
                return None;
            }
        }
        std::fs::create_dir_all(&bed.directory).expect("make the test bed's directory");
        Some(bed)
    }

    /// Firecracker and its kernel, where both are there and `/dev/kvm` opens; else says why not.
    #[must_use]
    pub fn firecracker(&self) -> Option<(&Path, &Path)> {
        let (Some(firecracker), Some(kernel)) = (&self.firecracker, &self.firecracker_kernel) else {
            skip("the test bed has no Firecracker or no kernel for it");
            return None;
        };
        if let Err(error) = std::fs::File::options().read(true).write(true).open("/dev/kvm") {
            skip(&format!("/dev/kvm does not open: {error}"));
            return None;
        }
        Some((firecracker, kernel))
    }

    /// Whether there is a daemon with crash points; else says what is missing.
    #[must_use]
    pub fn has_crash_daemon(&self) -> bool {
        if self.crash_daemon.is_none() {
            require("no daemon with crash points: cargo xtask test builds it");
        }
        self.crash_daemon.is_some()
    }

    /// A program of the stage.
    #[must_use]
    pub fn program(&self, name: &str) -> PathBuf {
        self.stage.join("bin").join(name)
    }
}

/// The first executable of that name in `PATH` or the directories for system programs.
#[must_use]
pub fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|directory| directory.join(name))
        .find(|candidate| candidate.is_file())
}

/// A file system of that kind can be made and mounted here, as [`Settings::file_system`] does; else says what is missing.
///
/// [`Settings::file_system`]: crate::Settings::file_system
#[must_use]
pub fn mounts(kind: &str) -> bool {
    if !is_root() {
        return false;
    }
    let mkfs = format!("mkfs.{kind}");
    if find_program(&mkfs).is_none() {
        skip(&format!("{mkfs} is missing: make setup"));
        return false;
    }
    let kinds = std::fs::read_to_string("/proc/filesystems").unwrap_or_default();
    let known = kinds.split_whitespace().any(|known| known == kind);
    if !known {
        skip(&format!("this kernel does not mount {kind}"));
    }
    known
}

/// We are root, which mount namespaces and full file systems need; else says so.
pub use testkit::is_root;
/// Says aloud that the running test does nothing, and why.
pub fn skip(why: &str) {
    testkit::skip::<()>(why);
}

/// A part that set-up installs is missing: a failure in a full run, else a reason to skip.
pub fn require(what: &str) {
    testkit::missing::<()>(what);
}
