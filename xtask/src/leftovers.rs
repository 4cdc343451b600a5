//! What a run of the tests must not leave on the machine: processes, temporary files, `bgr` interfaces, network
//! namespaces, loop devices, mounts. The product promises to leave nothing behind, so its tests are held to the same.
//!
//! Processes and files are known by the run's own temporary directory, which is in the environment of everything that
//! the tests start and in the arguments of what they start without one. The rest is compared with what was there before.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::sh::{self, Result};

/// One run of the tests.
pub(crate) struct Run {
    /// Its temporary directory; short, because sockets are in it (unix(7)).
    pub(crate) directory: PathBuf,
    before: BTreeSet<String>,
}

impl Run {
    /// Makes the temporary directory and looks at the machine.
    pub(crate) fn begin() -> Result<Self> {
        let directory = PathBuf::from(format!("/tmp/bgt-{}", std::process::id()));
        fs::create_dir(&directory).map_err(|e| format!("failed to make {}: {e}", directory.display()))?;
        Ok(Self {
            directory,
            before: host_objects(),
        })
    }

    /// Removes the directory; returns what else is left, a line each.
    pub(crate) fn end(self) -> Vec<String> {
        let mut left: Vec<_> = processes(&self.directory).collect();
        let files = fs::read_dir(&self.directory).into_iter().flatten().flatten();
        left.extend(files.map(|file| format!("file {}", file.path().display())));
        left.extend(host_objects().difference(&self.before).cloned());
        // Said above, if there was anything in it.
        drop(fs::remove_dir_all(&self.directory));
        left
    }
}

/// Objects of the kernel that have names.
fn host_objects() -> BTreeSet<String> {
    let names = |directory: &str| {
        let entries = fs::read_dir(directory).into_iter().flatten().flatten();
        entries.map(|entry| entry.file_name().to_string_lossy().into_owned())
    };
    let mut found = BTreeSet::new();
    let links = names("/sys/class/net").filter(|name| name.starts_with("bgr"));
    found.extend(links.map(|name| format!("interface {name}")));
    found.extend(names("/run/netns").map(|name| format!("network namespace {name}")));
    // losetup belongs to util-linux, which is essential; where it fails there is no loop device to see either.
    let mut losetup = Command::new("losetup");
    let loops = sh::read(losetup.args(["--noheadings", "--output", "NAME,BACK-FILE"])).unwrap_or_default();
    found.extend(loops.lines().map(|line| format!("loop device {}", line.trim())));
    // proc_pid_mountinfo(5): the fifth field is the mount point.
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let points = mounts.lines().filter_map(|line| line.split(' ').nth(4));
    let ours = points.filter(|point| ["banger", "bgr", "bgt-"].iter().any(|part| point.contains(part)));
    found.extend(ours.map(|point| format!("mount {point}")));
    found
}

/// Processes that carry the directory in their arguments or their environment.
fn processes(directory: &Path) -> impl Iterator<Item = String> {
    let marker = directory.as_os_str().as_encoded_bytes().to_owned();
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(move |entry| {
        let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
        // A zombie has neither: both are gone with its memory.
        let carries = |file: &str| {
            let text = fs::read(entry.path().join(file)).unwrap_or_default();
            text.windows(marker.len()).any(|part| part == marker)
        };
        (carries("cmdline") || carries("environ"))
            .then(|| format!("process {pid} {}", command_line(&entry.path())))
    })
}

fn command_line(process: &Path) -> String {
    let line = fs::read(process.join("cmdline")).unwrap_or_default();
    let line = String::from_utf8_lossy(&line).replace('\0', " ");
    line.chars().take(160).collect()
}
