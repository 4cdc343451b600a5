//! What a run of the tests must not leave on the machine: processes of ours, `bgr` interfaces, network namespaces, loop
//! devices, mounts. The product promises to leave nothing behind, so its tests are held to the same.
//!
//! Taken before and after: what was there before belongs to somebody else, a demo's machine for one.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

use crate::sh;

/// Names of processes that only we start. The kernel keeps 15 characters of a name (proc_pid_comm(5)).
const PROCESSES: [&str; 4] = ["bangerd", "banger-agent", "firecracker", "vhost-device-vs"];

/// Everything of that kind on the machine now, a line each.
pub(crate) fn list() -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    found.extend(processes());
    let links = fs::read_dir("/sys/class/net")
        .into_iter()
        .flatten()
        .filter_map(Result::ok);
    found.extend(
        links
            .map(|link| link.file_name().to_string_lossy().into_owned())
            .filter(|name| name.starts_with("bgr"))
            .map(|name| format!("interface {name}")),
    );
    let namespaces = fs::read_dir("/run/netns")
        .into_iter()
        .flatten()
        .filter_map(Result::ok);
    found
        .extend(namespaces.map(|entry| format!("network namespace {}", entry.file_name().to_string_lossy())));
    // losetup belongs to util-linux, which is essential; where it fails there is no loop device to see either.
    let loops = sh::read(Command::new("losetup").args(["--noheadings", "--output", "NAME,BACK-FILE"]))
        .unwrap_or_default();
    found.extend(loops.lines().map(|line| format!("loop device {}", line.trim())));
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    found.extend(
        mounts
            .lines()
            .filter_map(|line| line.split(' ').nth(4))
            .filter(|point| point.contains("banger") || point.contains("bgr"))
            .map(|point| format!("mount {point}")),
    );
    found
}

fn processes() -> impl Iterator<Item = String> {
    let entries = fs::read_dir("/proc").into_iter().flatten().filter_map(Result::ok);
    entries.filter_map(|entry| {
        let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
        let name = fs::read_to_string(entry.path().join("comm")).ok()?;
        let name = name.trim_end();
        let ours = PROCESSES.contains(&name) || name.starts_with("qemu-system");
        // A zombie is its parent's to collect; it holds nothing.
        (ours && !is_zombie(&entry.path()))
            .then(|| format!("process {pid} {name}: {}", command_line(&entry.path())))
    })
}

fn is_zombie(process: &Path) -> bool {
    // proc_pid_stat(5): the state follows the name, which is in parentheses and may itself contain any character.
    fs::read_to_string(process.join("stat"))
        .ok()
        .and_then(|stat| stat.rsplit_once(") ").map(|(_, rest)| rest.starts_with('Z')))
        .unwrap_or(true)
}

fn command_line(process: &Path) -> String {
    let line = fs::read(process.join("cmdline")).unwrap_or_default();
    let line: Vec<_> = line.split(|&b| b == 0).map(String::from_utf8_lossy).collect();
    let line = line.join(" ");
    line.chars().take(160).collect()
}
