//! Where things are in the checkout: the stage, the test bed, the tools.

use std::path::{Path, PathBuf};

/// The checkout.
pub(crate) fn root() -> PathBuf {
    // xtask/ is one below it; a path fixed when this was compiled, which is right for a tool that runs from the checkout.
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .unwrap_or(Path::new("/"))
        .to_path_buf()
}

/// Build output.
pub(crate) fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}

/// The release as a user gets it: `bin/`, `libexec/banger/`, `share/banger/`.
pub(crate) fn stage() -> PathBuf {
    target().join("stage")
}

/// What only the tests need.
pub(crate) fn testbed() -> PathBuf {
    target().join("testbed")
}

/// The daemon with crash points, which only the tests need.
pub(crate) fn crash_daemon() -> PathBuf {
    testbed().join("crash-points/bangerd")
}

/// A binary of the stage.
pub(crate) fn staged(name: &str) -> PathBuf {
    stage().join("bin").join(name)
}

/// Whether we are root: the owner of our own process (proc(5)).
pub(crate) fn is_root() -> bool {
    std::fs::metadata("/proc/self").is_ok_and(|m| std::os::unix::fs::MetadataExt::uid(&m) == 0)
}
