//! What the tests of all crates share: finding the parts they need from outside (programs, kernels), and saying aloud
//! when a part is missing and a test therefore does nothing.
//!
//! Runners hide what a passing test prints, so a skip is also a line in the file that `BANGER_TEST_SKIPS` names;
//! `make test` prints these lines at its end. With `BANGER_TEST_REQUIRE` set, as `make test` does, a part that set-up
//! installs must be there: its absence fails the test. Only tests depend on this crate.

mod card;
mod namespace;
mod registry;
mod resolver;

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

pub use card::Card;
pub use namespace::{in_network_namespace, in_network_namespace_async};
pub use registry::docker_registry;
pub use resolver::Resolver;

/// Says that the running test does nothing, and why. Returns `None` for the caller to pass on.
///
/// # Panics
///
/// When the skip cannot be noted, since a silent skip is worse than a failed test.
pub fn skip<T>(why: &str) -> Option<T> {
    let thread = std::thread::current();
    let test = thread
        .name()
        .filter(|name| *name != "main")
        .unwrap_or("a test")
        .to_owned();
    println!("SKIPPED {test}: {why}");
    if let Some(path) = std::env::var_os("BANGER_TEST_SKIPS") {
        // One write of one line to a file opened for appending: lines of parallel tests do not mix.
        let file = File::options().create(true).append(true).open(path);
        let written = file.and_then(|mut file| file.write_all(format!("{test}: {why}\n").as_bytes()));
        assert!(written.is_ok(), "failed to note the skipped test: {written:?}");
    }
    None
}

/// A part that set-up installs is missing: a failure in a full run, else a reason to skip.
///
/// # Panics
///
/// In a full run.
pub fn missing<T>(what: &str) -> Option<T> {
    assert!(std::env::var_os("BANGER_TEST_REQUIRE").is_none(), "{what}");
    skip(what)
}

/// A file that the environment names. The test bed may be without it, so its absence is a skip.
#[must_use]
pub fn file(variable: &str) -> Option<PathBuf> {
    match std::env::var_os(variable).map(PathBuf::from) {
        Some(path) if path.is_file() => Some(path),
        Some(path) => skip(&format!("{variable} names {}, which is no file", path.display())),
        None => skip(&format!("{variable} is not set")),
    }
}

/// A program: the one that the environment names, else the first of that name in `PATH` or the directories for system
/// programs.
#[must_use]
pub fn program(variable: &str, name: &str) -> Option<PathBuf> {
    if std::env::var_os(variable).is_some() {
        return file(variable);
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|directory| directory.join(name))
        .find(|candidate| candidate.is_file())
        .or_else(|| missing(&format!("{name} is not installed (or name it with {variable})")))
}

/// Whether we are root; says so when not.
#[must_use]
pub fn is_root() -> bool {
    // The owner of a process's directory is its effective user (proc_pid(5)).
    let root = std::fs::metadata("/proc/self").is_ok_and(|metadata| metadata.uid() == 0);
    root || skip::<()>("needs root").is_some()
}
