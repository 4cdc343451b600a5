//! `cargo xtask stage`: puts what `make build` compiled together as it will be installed.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use crate::layout;
use crate::sh::Result;

/// Fills `target/stage`. A file that is already the same is left alone, so a daemon that runs from the stage is not
/// replaced without need.
pub(crate) fn stage() -> Result {
    let target = layout::target();
    let files = [
        ("release/banger", "bin/banger"),
        ("release/bangerd", "bin/bangerd"),
        (
            "x86_64-unknown-linux-gnu/agent/banger-agent",
            "libexec/banger/banger-agent",
        ),
        (
            "tools/bin/vhost-device-vsock",
            "libexec/banger/vhost-device-vsock",
        ),
    ];
    for (from, to) in files {
        if !target.join(from).exists() {
            return Err(format!(
                "{} is not there yet: run `make setup` first",
                target.join(from).display()
            )
            .into());
        }
        put(&target.join(from), &layout::stage().join(to), 0o755)?;
    }
    // Every key with its default: what a configuration is copied from.
    put(
        &layout::root().join("crates/bangerd/config.default.toml"),
        &layout::stage().join("share/banger/config.default.toml"),
        0o644,
    )
}

/// Copies a file by way of a temporary name: a binary that runs cannot be written to, but it can be replaced.
pub(crate) fn put(from: &Path, to: &Path, mode: u32) -> Result {
    let content = fs::read(from).map_err(|e| format!("failed to read {}: {e}", from.display()))?;
    if fs::read(to).is_ok_and(|there| there == content) {
        return Ok(());
    }
    let fail = |e| format!("failed to write {}: {e}", to.display());
    // A name of our own: somebody else may be at the same in another terminal.
    let new = to.with_extension(format!("{}.new", std::process::id()));
    fs::create_dir_all(to.parent().unwrap_or(Path::new("."))).map_err(fail)?;
    fs::write(&new, content).map_err(fail)?;
    fs::set_permissions(&new, fs::Permissions::from_mode(mode)).map_err(fail)?;
    fs::rename(&new, to).map_err(fail)?;
    Ok(())
}
