//! What a daemon has on the machine at one moment. Taken before something is made to fail and compared with after:
//! whatever failed must have left everything as it was.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use serde_json::json;

use crate::daemon::Daemon;
use crate::wait_for;
use crate::wire::Wire;

/// Cleaning up may outlast the answer to the caller who went away.
const CLEANED: Duration = Duration::from_secs(60);

/// Processes, files, sockets and rows; in a network namespace of the test's own links, tables and settings too.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot(BTreeSet<String>);

impl Snapshot {
    pub(crate) fn take(daemon: &Daemon) -> Self {
        let mut wire = Wire::connect(daemon);
        // Its answer waits for the VMMs' programs, which a daemon that has just started runs once to learn their versions.
        wire.call("daemon.status", &json!({})).expect("the status");
        let mut all = BTreeSet::new();
        all.extend(
            daemon
                .machine_processes()
                .into_iter()
                // Asked once by a daemon that has just started what networks it has; nothing waits for its answer.
                .filter(|p| !p.command.ends_with("-netdev help"))
                .map(|p| format!("process {} {}", p.pid, p.command)),
        );
        files(&daemon.runtime(), "runtime", &mut all);
        files(&daemon.state(), "state", &mut all);
        for (method, name) in [
            ("vm.list", "name"),
            ("image.list", "name"),
            ("kernel.list", "name"),
        ] {
            let list = wire.call(method, &json!({})).expect("list");
            for row in list.as_array().expect("a list") {
                all.insert(format!("{method} {} {}", row[name], row["state"]));
            }
        }
        let operations = wire.call("op.list", &json!({})).expect("list operations");
        for operation in operations.as_array().expect("a list") {
            if operation["ended"].is_null() {
                all.insert(format!(
                    "operation {} {}",
                    operation["kind"], operation["subject"]
                ));
            }
        }
        all.extend(crate::network::objects().into_iter().flatten());
        Self(all)
    }

    /// Asserts that everything is as it was, and that the next command works.
    #[track_caller]
    pub fn assert_nothing_left(&self, daemon: &Daemon) {
        let same = wait_for(CLEANED, || (Self::take(daemon) == *self).then_some(()));
        if same.is_none() {
            let now = Self::take(daemon);
            let left: Vec<_> = now.0.difference(&self.0).collect();
            let lost: Vec<_> = self.0.difference(&now.0).collect();
            panic!("left behind: {left:#?}\nlost: {lost:#?}");
        }
        daemon.banger(["ls"]).ok();
    }
}

/// Every file below a directory. Not the database's journal, which comes and goes, nor the cache of initramfs.
fn files(directory: &Path, what: &str, all: &mut BTreeSet<String>) {
    let mut stack = vec![directory.to_owned()];
    while let Some(next) = stack.pop() {
        // What vanishes while we look is rightly not found.
        for entry in std::fs::read_dir(&next).into_iter().flatten().flatten() {
            let path = entry.path();
            let relative = path
                .strip_prefix(directory)
                .unwrap_or(&path)
                .display()
                .to_string();
            let transient = ["banger.db", "initramfs"]
                .iter()
                .any(|prefix| relative.starts_with(prefix));
            if what == "state" && transient {
                continue;
            }
            // What builds have said and done is kept.
            if what == "state" && (relative.starts_with("builds/") || relative.ends_with(".delta")) {
                continue;
            }
            // What the command line has told its user once today.
            if what == "runtime" && relative.starts_with("told") {
                continue;
            }
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                stack.push(path);
            }
            all.insert(format!("{what} {relative}"));
        }
    }
}
