//! Where client and daemon meet when nobody says: the one rule that both must know.

use std::path::PathBuf;

/// The login session's directory for sockets: `XDG_RUNTIME_DIR` (XDG base directory specification), or where
/// `pam_systemd(8)` makes it if it is there although the variable is not, as after `su` or in a cron job.
///
/// `None` without a session; then the sockets are in the directory `run` of the state directory.
#[must_use]
pub fn session_directory(xdg_runtime_dir: Option<PathBuf>, uid: u32) -> Option<PathBuf> {
    xdg_runtime_dir
        .or_else(|| Some(PathBuf::from(format!("/run/user/{uid}"))).filter(|directory| directory.is_dir()))
}

/// Name of a file in the directory for sockets: what the command line has told its user, for the daemon to know as ours.
pub const TOLD: &str = "told";

/// Name of the directory for sockets within the state directory, for users without a session.
pub const RUNTIME_WITHOUT_SESSION: &str = "run";
