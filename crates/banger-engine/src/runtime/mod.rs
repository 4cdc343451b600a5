//! Runtimes: VMMs that are installed here, by version, and not found on the host. Today that is Firecracker, which no
//! distribution packages.
//!
//! ```text
//! file or pinned download ─► program (archive) ─► asked for its version ─► rename ─► runtimes/firecracker/VERSION/
//!                                                                                      firecracker, origin.json
//! ```
//!
//! Place: the engine's façade begins installing and removing; [`vmms`](crate::vmms) asks for the one in use: after a
//! configured path, before `PATH`. Of several versions that is the one that was installed last. There are no rows: a
//! directory is there whole or not at all, and what a crash left is called so ([`PREFIX`]) and collected.
//!
//! A machine that runs keeps its program: installing touches no other version, and one that a machine was started with is
//! not removed. This release pins no version of its own: where a program comes from, and its checksum, is the caller's word.

mod archive;
mod install;

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::sync::Mutex;

use crate::error::{Error, io as io_error};
use crate::host::Host;
use crate::id;
use crate::image::work::{PREFIX, WorkDir};
use crate::ledger;
use banger_store::StoreError;

pub use install::Source;
pub(crate) use install::begin;

/// The one runtime that there is.
pub const FIRECRACKER: &str = "firecracker";
/// What is known of a version.
const ORIGIN: &str = "origin.json";
/// A record is some hundred bytes.
const ORIGIN_LIMIT: u64 = 64 << 10;

/// What is installed is installed and removed by one at a time.
static CHANGING: Mutex<()> = Mutex::const_new(());

/// Where a program came from; the file beside it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// A URL, or a file's path.
    pub source: String,
    /// SHA-256 of what came from there, hexadecimal: an archive's, or the program's own.
    pub source_sha256: String,
    /// Of the program, hexadecimal.
    pub sha256: String,
    /// When it was installed, the last time.
    pub installed: Timestamp,
}

/// An installed version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Installed {
    /// As the program says itself.
    pub version: String,
    /// The program.
    pub path: PathBuf,
    /// Its size in bytes.
    pub size: u64,
    /// Where it came from.
    pub origin: Origin,
}

/// A version and who uses it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Runtime {
    /// The version.
    pub installed: Installed,
    /// What new runs get, unless the configuration names another program.
    pub current: bool,
    /// Machines that run on it.
    pub used_by: Vec<String>,
}

/// Where the versions of Firecracker are.
pub(crate) fn directory(state: &Path) -> PathBuf {
    state.join("runtimes").join(FIRECRACKER)
}

/// All versions, the one in use first.
pub(crate) fn installed(state: &Path) -> Result<Vec<Installed>, Error> {
    let dir = directory(state);
    let entries = match fs::read_dir(&dir) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(io_error("list", &dir))?,
    };
    let mut all = Vec::new();
    for entry in entries {
        let entry = entry.map_err(io_error("list", &dir))?;
        let Some(version) = entry.file_name().to_str().map(str::to_owned) else {
            continue;
        };
        if version.starts_with(PREFIX) {
            continue;
        }
        match look(&entry.path(), version) {
            Ok(found) => all.push(found),
            // Removed at this moment, or put there by somebody: nothing that could be run.
            Err(error) => {
                tracing::debug!(path = %entry.path().display(), %error, "no installed runtime");
            }
        }
    }
    all.sort_by(|a, b| (b.origin.installed, &b.version).cmp(&(a.origin.installed, &a.version)));
    Ok(all)
}

/// The version that new runs get.
pub(crate) fn current(state: &Path) -> Option<Installed> {
    match installed(state) {
        Ok(all) => all.into_iter().next(),
        Err(error) => {
            tracing::warn!(
                error = crate::error::chain(&error),
                "installed runtimes not looked for"
            );
            None
        }
    }
}

fn look(dir: &Path, version: String) -> io::Result<Installed> {
    let path = dir.join(FIRECRACKER);
    let found = fs::symlink_metadata(&path)?;
    if !found.is_file() {
        return Err(io::Error::other("the program is no regular file"));
    }
    let mut text = String::new();
    File::open(dir.join(ORIGIN))?
        .take(ORIGIN_LIMIT)
        .read_to_string(&mut text)?;
    Ok(Installed {
        version,
        path,
        size: found.len(),
        origin: serde_json::from_str(&text)?,
    })
}

/// All versions with who uses them, the one in use first.
pub(crate) async fn list(host: &Host) -> Result<Vec<Runtime>, Error> {
    let all = installed(&host.settings.state_dir)?;
    let users = users(host).await?;
    Ok(all
        .into_iter()
        .enumerate()
        .map(|(at, installed)| Runtime {
            current: at == 0,
            used_by: users
                .iter()
                .filter(|(program, _)| *program == installed.path)
                .map(|(_, name)| name.clone())
                .collect(),
            installed,
        })
        .collect())
}

/// Programs of ours that run, with the machines' names.
async fn users(host: &Host) -> Result<Vec<(PathBuf, String)>, Error> {
    let dir = directory(&host.settings.state_dir);
    // The kernel names a program by the path that links are followed in.
    let Ok(real) = fs::canonicalize(&dir) else {
        return Ok(Vec::new());
    };
    let (rows, _) = host.store.read(banger_store::vms::list).await?;
    let mut users = Vec::new();
    for (token, line) in ledger::machine_processes()? {
        let Ok(program) = fs::read_link(format!("/proc/{}/exe", line.id.pid)) else {
            continue;
        };
        let Ok(inside) = program.strip_prefix(&real) else {
            continue;
        };
        let row = rows
            .iter()
            .find(|row| id::of_token(&token) == Some(row.id.as_str()));
        users.push((dir.join(inside), row.map_or(token, |row| row.name.clone())));
    }
    Ok(users)
}

/// Removes a version that no machine runs on; the only one, where none is named.
pub(crate) async fn remove(host: &Host, version: Option<&str>) -> Result<Runtime, Error> {
    let _changing = CHANGING.lock().await;
    let mut all = list(host).await?;
    let missing = |name: &str| Error::Missing {
        what: "runtime",
        name: name.to_owned(),
        near: None,
    };
    let at = match version {
        Some(version) => {
            let version = version.trim_start_matches('v');
            let found = all
                .iter()
                .position(|runtime| runtime.installed.version == version);
            found.ok_or_else(|| missing(&format!("{FIRECRACKER} {version}")))?
        }
        None if all.len() > 1 => {
            let versions: Vec<_> = all.iter().map(|one| one.installed.version.as_str()).collect();
            return Err(Error::Contradiction {
                problem: format!(
                    "several versions of {FIRECRACKER} are installed: {}",
                    versions.join(", ")
                ),
                hint: "say which: --version".to_owned(),
            });
        }
        None if all.is_empty() => return Err(missing(FIRECRACKER)),
        None => 0,
    };
    let runtime = all.swap_remove(at);
    if !runtime.used_by.is_empty() {
        return Err(StoreError::InUse {
            what: "runtime",
            name: format!("{FIRECRACKER} {}", runtime.installed.version),
            by: runtime.used_by,
        }
        .into());
    }
    let dir = directory(&host.settings.state_dir);
    let from = dir.join(&runtime.installed.version);
    // Gone at once; a crash from here on leaves something that is called garbage.
    let removing = tokio::task::spawn_blocking(move || {
        let grave = WorkDir::new_in(&dir).map_err(io_error("make a directory in", &dir))?;
        fs::rename(&from, grave.path().join("old")).map_err(io_error("remove", &from))
    });
    removing.await.map_err(|source| Error::Host {
        action: "remove a runtime",
        source: Box::new(source),
    })??;
    host.vmms.forget_firecracker().await;
    Ok(runtime)
}
