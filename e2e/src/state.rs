//! Prepared state: the bootstrap images and kernels, made once for a build of the product by the product itself.
//!
//! A test's daemon gets a copy. Its large files are hard links to the prepared ones, which nothing in the product may
//! write to once they are there; the database is a copy of its own.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::daemon::{Daemon, Settings};
use crate::guest::Guest;
use crate::testbed::Testbed;

/// Bootstrapping Debian downloads packages.
const BOOTSTRAP: Duration = Duration::from_secs(900);

/// The name under which the kernel for Firecracker is known.
pub const TESTBED_KERNEL: &str = "testbed";
/// The busybox image that boots with it.
pub const TESTBED_IMAGE: &str = "busybox-testbed";

/// The prepared state for this build; the first to ask makes it, others wait.
pub(crate) fn prepared(bed: &Testbed) -> PathBuf {
    let prepared = bed.directory.join(format!("state-{:016x}", key(bed)));
    let lock = std::fs::File::create(bed.directory.join("state.lock")).expect("open the lock");
    lock.lock().expect("wait for the lock");
    if !prepared.exists() {
        make(bed, &prepared);
        remove_older(bed, &prepared);
    }
    prepared
}

/// Names a build: programs that were not replaced keep their inode's times (`cargo xtask stage` sees to that).
/// `BANGER_TEST_KEEP_STATE` makes all builds one, for who works on something that the images do not depend on.
fn key(bed: &Testbed) -> u64 {
    let mut hasher = DefaultHasher::new();
    if std::env::var_os("BANGER_TEST_KEEP_STATE").is_none() {
        for program in ["bin/bangerd", "libexec/banger/banger-agent"] {
            let metadata = bed.stage.join(program).metadata().expect("look at the stage");
            (metadata.len(), metadata.mtime(), metadata.mtime_nsec()).hash(&mut hasher);
        }
    }
    bed.firecracker_kernel.is_some().hash(&mut hasher);
    hasher.finish()
}

fn remove_older(bed: &Testbed, newest: &Path) {
    for entry in std::fs::read_dir(&bed.directory)
        .expect("list the test bed")
        .flatten()
    {
        if entry.file_name().to_string_lossy().starts_with("state-") && entry.path() != newest {
            std::fs::remove_dir_all(entry.path()).expect("remove the state of an older build");
        }
    }
}

fn make(bed: &Testbed, prepared: &Path) {
    let began = Instant::now();
    println!("preparing images and kernels for all tests");
    let mut daemon = Daemon::start(bed, Settings::empty());
    for image in ["busybox", "debian"] {
        daemon
            .banger(["image", "bootstrap", image])
            .deadline(BOOTSTRAP)
            .ok();
    }
    if let Some(kernel) = &bed.firecracker_kernel {
        daemon
            .banger(["kernel", "add", TESTBED_KERNEL, "--file"])
            .args([kernel])
            .ok();
        daemon
            .banger(["image", "bootstrap", "busybox"])
            .args(["--name", TESTBED_IMAGE, "--kernel", TESTBED_KERNEL])
            .ok();
    }
    // One start makes the initramfs, which is kept for each kernel.
    let guest = Guest::start(&daemon, "first", "busybox");
    guest.banger("rm").args(["--force"]).ok();
    daemon.terminate();
    // Under its final name all at once. The database is at rest: its daemon has ended in order.
    let new = prepared.with_extension("new");
    drop(std::fs::remove_dir_all(&new)); // of a preparation that was interrupted
    link(&daemon.state(), &new);
    std::fs::rename(&new, prepared).expect("move the prepared state to its place");
    println!("prepared in {} seconds", began.elapsed().as_secs());
}

/// Copies a state directory at rest: hard links for images, kernels and initramfs, copies for the rest.
pub(crate) fn link(from: &Path, to: &Path) {
    copy(from, to, &|relative| {
        ["images", "kernels", "initramfs"]
            .iter()
            .any(|directory| relative.starts_with(directory))
    });
}

fn copy(from: &Path, to: &Path, linked: &dyn Fn(&Path) -> bool) {
    let mut stack = vec![PathBuf::new()];
    while let Some(relative) = stack.pop() {
        let target = to.join(&relative);
        std::fs::create_dir_all(&target).expect("make a directory");
        let permissions = from
            .join(&relative)
            .metadata()
            .expect("look at a directory")
            .permissions();
        std::fs::set_permissions(&target, permissions).expect("set a directory's mode");
        for entry in std::fs::read_dir(from.join(&relative))
            .expect("list a directory")
            .flatten()
        {
            let relative = relative.join(entry.file_name());
            if entry.file_type().expect("look at a file").is_dir() {
                stack.push(relative);
            } else if linked(&relative) {
                std::fs::hard_link(entry.path(), to.join(&relative)).expect("link a file");
            } else {
                std::fs::copy(entry.path(), to.join(&relative)).expect("copy a file");
            }
        }
    }
}
