//! What a machine's settings become by `vm.set`, and which of them its run does not have yet. Plain functions over rows:
//! the machine's task keeps the row and takes disks' growth into the guest.

use std::collections::BTreeMap;

use banger_store::vms::VmRow;
use banger_vmm::VmmKind;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::limits::{self, bytes};
use crate::name;
use crate::net::allow::Allow;
use crate::vm::clock;
use crate::vm::restart::Restart;
use crate::vm::state::Running;

/// What shall change; what is absent stays.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SetVm {
    /// Virtual processors.
    pub vcpus: Option<u32>,
    /// Bytes, a multiple of 1 MiB.
    pub memory: Option<u64>,
    /// Bytes; not less than it is.
    pub disk: Option<u64>,
    /// Bytes; not less than it is. A machine without one gets one.
    pub work_disk: Option<u64>,
    /// Kernel's name.
    pub kernel: Option<String>,
    /// VMM; `Some(None)`: whichever fits at each start.
    pub vmm: Option<Option<VmmKind>>,
    /// Labels to set; without a value, to take off.
    pub labels: BTreeMap<String, Option<String>>,
    /// The guest may reach what its host reaches.
    pub nat: Option<bool>,
    /// All that its guest may reach.
    pub allow: Option<Allow>,
    /// Started when the host has booted.
    pub autostart: Option<bool>,
    /// When it is started again after it ended by itself.
    pub restart: Option<Restart>,
    /// When it is removed; `Some(None)`: never.
    pub expires: Option<Option<Timestamp>>,
}

/// When a change takes effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Applies {
    /// It has.
    Now,
    /// When the machine is started next.
    NextStart,
}

/// One setting that changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// Its name; of a label, `label KEY`.
    pub setting: String,
    /// Before, for people.
    pub from: String,
    /// Since, for people.
    pub to: String,
    /// When it takes effect.
    pub applies: Applies,
    /// Why not now, where it does not.
    pub reason: Option<String>,
}

/// What the host allows.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    /// The host's memory in bytes.
    pub(crate) memory: u64,
    /// Memory that the machine's kernel, as it shall be, needs to come up, in bytes.
    pub(crate) boot_memory: u64,
    /// Now.
    pub(crate) now: Timestamp,
}

/// The row as it shall be, and what is different about it. Refuses the whole where a part of it cannot be. Of the disks
/// of a machine that runs it says that they grow at its next start; the task knows better once it has tried.
pub(crate) fn apply(
    row: &VmRow,
    set: &SetVm,
    run: Option<&Running>,
    bounds: Bounds,
) -> Result<(VmRow, Vec<Change>), Error> {
    let mut changed = Changes {
        list: Vec::new(),
        runs: run.is_some(),
    };
    let mut new = row.clone();
    if let Some(vcpus) = set.vcpus {
        limits::vcpus(vcpus)?;
        changed.later(
            "vcpus",
            &row.vcpus,
            &vcpus,
            "a guest keeps its processors while it runs",
        );
        new.vcpus = vcpus;
    }
    if let Some(memory) = set.memory {
        let mib = limits::memory(memory, bounds.memory)?;
        let shown = |mib: u32| bytes(&(u64::from(mib) << 20));
        let reason = "a guest keeps its memory while it runs";
        changed.later("memory", &shown(row.memory_mib), &shown(mib), reason);
        new.memory_mib = mib;
    }
    if let Some(disk) = set.disk {
        let disk = grown("disk", row.disk, limits::disk("disk", disk)?)?;
        changed.later("disk", &bytes(&row.disk), &bytes(&disk), "");
        new.disk = disk;
    }
    if let Some(work_disk) = set.work_disk {
        let wanted = limits::work_disk(work_disk)?;
        let work_disk = grown("work_disk", row.work_disk, wanted)?;
        let reason = if row.work_disk == 0 {
            "a guest finds its disks when it boots"
        } else {
            ""
        };
        changed.later("work_disk", &bytes(&row.work_disk), &bytes(&work_disk), reason);
        new.work_disk = work_disk;
    }
    if let Some(kernel) = &set.kernel {
        changed.later("kernel", &row.kernel, kernel, "a guest boots its kernel");
        new.kernel.clone_from(kernel);
    }
    // One that has too little already is not kept from other changes.
    if set.memory.is_some() || set.kernel.is_some() {
        limits::boots(u64::from(new.memory_mib) << 20, &new.kernel, bounds.boot_memory)?;
    }
    if let Some(vmm) = set.vmm {
        let vmm = vmm.map(|kind| kind.as_str().to_owned());
        let shown = |pin: &Option<String>| pin.clone().unwrap_or_else(|| "auto".to_owned());
        let reason = "a guest cannot move to another VMM while it runs";
        changed.later("vmm", &shown(&row.vmm), &shown(&vmm), reason);
        new.vmm = vmm;
    }
    for (key, value) in &set.labels {
        name::label(key, value.as_deref().unwrap_or_default())?;
        let before = row.labels.get(key);
        let shown = |value: Option<&String>| value.map_or_else(|| "absent".to_owned(), |v| format!("{v:?}"));
        changed.now(&format!("label {key}"), &shown(before), &shown(value.as_ref()));
        match value {
            Some(value) => drop(new.labels.insert(key.clone(), value.clone())),
            None => drop(new.labels.remove(key)),
        }
    }
    limits::labels(&new.labels)?;
    let yes = |is: bool| if is { "yes" } else { "no" };
    if let Some(nat) = set.nat {
        // On the bridge it is a matter of rules; a card of the VMM's own network is there from the start or not at all.
        if run.is_some_and(|run| !run.on_bridge()) {
            let reason = "a guest's network is set up when it starts";
            changed.later("nat", &yes(row.nat), &yes(nat), reason);
        } else {
            changed.now("nat", yes(row.nat), yes(nat));
        }
        new.nat = nat;
    }
    if let Some(allow) = set.allow {
        let before = Allow::of(&row.allow);
        // What carries a user-mode network's packets knows no such rules.
        if run.is_some_and(|run| !run.on_bridge()) {
            let reason = "it is a matter of the host's bridge, which this run is not on";
            changed.later("allow", &before, &allow, reason);
        } else {
            changed.now("allow", &before.to_string(), &allow.to_string());
        }
        new.allow = allow.as_row();
    }
    if let Some(autostart) = set.autostart {
        changed.now("autostart", yes(row.autostart), yes(autostart));
        new.autostart = autostart;
    }
    if let Some(restart) = set.restart {
        changed.now("restart", &row.restart, restart.as_str());
        restart.as_str().clone_into(&mut new.restart);
    }
    if let Some(expires) = set.expires {
        // One that is past already may be said again, as long as it says nothing new.
        if expires != row.expires {
            expiry(expires, bounds.now)?;
        }
        let shown = |time: Option<Timestamp>| time.map_or_else(|| "never".to_owned(), |t| t.to_string());
        changed.now("expires", &shown(row.expires), &shown(expires));
        new.expires = expires;
    }
    lasting(&new)?;
    Ok((new, changed.list))
}

/// A machine that is removed when it stops is not started again: one of the two would be a lie.
pub(crate) fn lasting(row: &VmRow) -> Result<(), Error> {
    let restarts = Restart::of(&row.restart) != Restart::No;
    let other = match (row.ephemeral, restarts, row.autostart) {
        (true, true, _) => "restart",
        (true, false, true) => "autostart",
        (true, false, false) | (false, _, _) => return Ok(()),
    };
    Err(Error::Contradiction {
        problem: format!("a machine that is removed when it stops cannot have `{other}`"),
        hint: "leave out one of the two".to_owned(),
    })
}

/// An expiry that has not passed.
pub(crate) fn expiry(expires: Option<Timestamp>, now: Timestamp) -> Result<(), Error> {
    match expires {
        Some(time) if clock::until(now, time).is_none() => Err(Error::Contradiction {
            problem: format!("the expiry {time} is in the past: it is {now}"),
            hint: "give a time to come; `banger vm rm` removes a machine now".to_owned(),
        }),
        Some(_) | None => Ok(()),
    }
}

fn grown(field: &'static str, from: u64, to: u64) -> Result<u64, Error> {
    if to >= from {
        return Ok(to);
    }
    Err(Error::Shrink {
        field,
        from: bytes(&from),
        to: bytes(&to),
    })
}

struct Changes {
    list: Vec<Change>,
    runs: bool,
}

impl Changes {
    fn now(&mut self, setting: &str, from: &str, to: &str) {
        self.add(setting, from, to, Applies::Now, None);
    }

    /// Takes effect now, unless it runs.
    fn later(&mut self, setting: &str, from: &impl ToString, to: &impl ToString, reason: &str) {
        let (from, to) = (from.to_string(), to.to_string());
        if self.runs {
            let reason = Some(reason.to_owned()).filter(|reason| !reason.is_empty());
            self.add(setting, &from, &to, Applies::NextStart, reason);
        } else {
            self.add(setting, &from, &to, Applies::Now, None);
        }
    }

    fn add(&mut self, setting: &str, from: &str, to: &str, applies: Applies, reason: Option<String>) {
        if from != to {
            self.list.push(Change {
                setting: setting.to_owned(),
                from: from.to_owned(),
                to: to.to_owned(),
                applies,
                reason,
            });
        }
    }
}

/// The settings that a run was started with, or has been given since.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RanWith {
    /// The machine's name, which is the guest's host name.
    pub name: String,
    /// Kernel's name.
    pub kernel: String,
    /// Virtual processors.
    pub vcpus: u32,
    /// Memory in MiB.
    pub memory_mib: u32,
    /// Size of the system disk in bytes.
    pub disk: u64,
    /// Size of the work disk in bytes.
    pub work_disk: u64,
    /// The guest may reach what its host reaches.
    pub nat: bool,
    /// It is on the bridge, where that is a matter of rules.
    #[serde(default)]
    pub bridged: bool,
}

impl RanWith {
    /// Of a run that starts now.
    pub(crate) fn of(row: &VmRow) -> Self {
        Self {
            name: row.name.clone(),
            kernel: row.kernel.clone(),
            vcpus: row.vcpus,
            memory_mib: row.memory_mib,
            disk: row.disk,
            work_disk: row.work_disk,
            nat: row.nat,
            bridged: false,
        }
    }

    /// The row as it was when the run started, for taking up a run.
    pub(crate) fn on(self, row: &VmRow) -> VmRow {
        let Self {
            name,
            kernel,
            vcpus,
            memory_mib,
            disk,
            work_disk,
            nat,
            bridged: _,
        } = self;
        VmRow {
            name,
            kernel,
            vcpus,
            memory_mib,
            disk,
            work_disk,
            nat,
            ..row.clone()
        }
    }
}

/// Names of the settings that a run does not have yet.
pub(crate) fn pending(row: &VmRow, run: &Running) -> Vec<String> {
    // A run of a release that kept nothing of this: it is noted when such a run is taken up.
    let Some(with) = &run.with else {
        return Vec::new();
    };
    let differing = [
        ("name", with.name != row.name),
        ("kernel", with.kernel != row.kernel),
        ("vcpus", with.vcpus != row.vcpus),
        ("memory", with.memory_mib != row.memory_mib),
        ("disk", with.disk != row.disk),
        ("work_disk", with.work_disk != row.work_disk),
        ("nat", with.nat != row.nat && !with.bridged),
        ("vmm", row.vmm.as_ref().is_some_and(|vmm| *vmm != run.vmm)),
    ];
    differing
        .into_iter()
        .filter(|(_, differs)| *differs)
        .map(|(name, _)| name.to_owned())
        .collect()
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::error::Kind;

    const NOW: i64 = 1_000_000;

    fn bounds() -> Bounds {
        Bounds {
            memory: 8 << 30,
            boot_memory: 82 << 20,
            now: Timestamp::from_second(NOW).unwrap(),
        }
    }

    pub(crate) fn row() -> VmRow {
        VmRow {
            id: "abcdefghij".into(),
            name: "dev".into(),
            image: "image".into(),
            image_name: "debian".into(),
            kernel: "debian".into(),
            vcpus: 2,
            memory_mib: 1024,
            disk: 10 << 30,
            vmm: None,
            labels: [("team".to_owned(), "a".to_owned())].into(),
            ephemeral: false,
            phase: String::new(),
            created: Timestamp::UNIX_EPOCH,
            system_disk: "overlay".into(),
            generation: 0,
            work_disk: 0,
            nat: true,
            autostart: false,
            restart: "no".into(),
            expires: None,
            allow: String::new(),
        }
    }

    pub(crate) fn run() -> Running {
        Running {
            vmm: "qemu".into(),
            acceleration: "tcg".into(),
            pid: 1,
            since: Timestamp::UNIX_EPOCH,
            start_milliseconds: 1,
            agent_version: String::new(),
            kernel_release: String::new(),
            with: Some(RanWith::of(&row())),
            restarts: 0,
            streak: 0,
            user_network: None,
        }
    }

    fn all() -> SetVm {
        SetVm {
            vcpus: Some(4),
            memory: Some(2 << 30),
            disk: Some(20 << 30),
            work_disk: Some(1 << 30),
            kernel: Some("other".into()),
            vmm: Some(Some(VmmKind::Firecracker)),
            labels: [
                ("team".to_owned(), None),
                ("new".to_owned(), Some("x".to_owned())),
            ]
            .into(),
            nat: Some(false),
            allow: Some("guests,lan".parse().unwrap()),
            autostart: Some(true),
            restart: Some(Restart::Always),
            expires: Some(Some(Timestamp::from_second(NOW + 1).unwrap())),
        }
    }

    fn lines(changes: &[Change]) -> Vec<String> {
        changes
            .iter()
            .map(|c| format!("{}: {} -> {} {:?}", c.setting, c.from, c.to, c.applies))
            .collect()
    }

    #[test]
    fn a_pin_is_taken_away_again() {
        let pinned = VmRow {
            vmm: Some("firecracker".into()),
            ..row()
        };
        let auto = SetVm {
            vmm: Some(None),
            ..SetVm::default()
        };
        let (new, changes) = apply(&pinned, &auto, None, bounds()).unwrap();
        assert_eq!(new.vmm, None);
        assert_eq!(lines(&changes), ["vmm: firecracker -> auto Now"]);
        let (_, changes) = apply(&new, &auto, None, bounds()).unwrap();
        assert_eq!(changes, []);
    }

    #[test]
    fn every_setting_changes_and_says_when_it_counts() {
        let (new, changes) = apply(&row(), &all(), Some(&run()), bounds()).unwrap();
        assert_eq!(
            lines(&changes),
            [
                "vcpus: 2 -> 4 NextStart",
                "memory: 1GiB -> 2GiB NextStart",
                "disk: 10GiB -> 20GiB NextStart",
                "work_disk: 0B -> 1GiB NextStart",
                "kernel: debian -> other NextStart",
                "vmm: auto -> firecracker NextStart",
                "label new: absent -> \"x\" Now",
                "label team: \"a\" -> absent Now",
                "nat: yes -> no NextStart",
                "allow: none -> guests,lan NextStart",
                "autostart: no -> yes Now",
                "restart: no -> always Now",
                "expires: never -> 1970-01-12T13:46:41Z Now",
            ]
        );
        // What the run does not have is exactly what was said to come with the next start.
        let promised: Vec<&str> = changes
            .iter()
            .filter(|c| c.applies == Applies::NextStart)
            .map(|c| c.setting.as_str())
            .collect();
        let mut pending = pending(&new, &run());
        pending.sort();
        let mut expected = promised;
        expected.sort();
        // Off the bridge nothing heeds it, in this run or the next.
        expected.retain(|setting| *setting != "allow");
        assert_eq!(pending, expected);
        // Of one that rests, all of it counts.
        let (_, changes) = apply(&row(), &all(), None, bounds()).unwrap();
        assert!(
            changes
                .iter()
                .all(|c| c.applies == Applies::Now && c.reason.is_none())
        );
    }

    #[test]
    fn the_same_again_is_no_change() {
        let (new, _) = apply(&row(), &all(), Some(&run()), bounds()).unwrap();
        for set in [all(), SetVm::default()] {
            let (same, changes) = apply(&new, &set, Some(&run()), bounds()).unwrap();
            assert_eq!((same, changes), (new.clone(), Vec::new()));
        }
        // A label that is not there needs no taking off.
        let off = SetVm {
            labels: [("gone".to_owned(), None)].into(),
            ..SetVm::default()
        };
        assert!(apply(&row(), &off, Some(&run()), bounds()).unwrap().1.is_empty());
    }

    #[test]
    fn what_cannot_be_is_refused_whole_and_names_the_way_out() {
        let refused = |set: SetVm| {
            let error = apply(&row(), &set, Some(&run()), bounds()).unwrap_err();
            assert_eq!(error.kind(), Kind::InvalidArgument, "{error}");
            let report = error.report();
            format!("{} ({})", report.message, report.hint.unwrap_or_default())
        };
        let base = SetVm::default;
        let label = |key: &str, value: Option<&str>| SetVm {
            labels: [(key.to_owned(), value.map(ToOwned::to_owned))].into(),
            ..base()
        };
        let past = Timestamp::from_second(NOW - 1).unwrap();
        let said: Vec<String> = [
            SetVm {
                vcpus: Some(0),
                ..base()
            },
            SetVm {
                vcpus: Some(33),
                ..base()
            },
            SetVm {
                memory: Some(1 << 20),
                ..base()
            },
            SetVm {
                memory: Some(4 << 40),
                ..base()
            },
            SetVm {
                disk: Some(5 << 30),
                ..base()
            },
            SetVm {
                disk: Some(17 << 40),
                ..base()
            },
            SetVm {
                work_disk: Some(1),
                ..base()
            },
            SetVm {
                expires: Some(Some(past)),
                ..base()
            },
            label("No", Some("x")),
            label("a b", None),
            label("a", Some("\u{7}")),
        ]
        .into_iter()
        .map(refused)
        .collect();
        for (said, expected) in said.iter().zip([
            "vcpus of 0",
            "vcpus of 33",
            "memory of 1MiB",
            "memory of 4TiB",
            "from 10GiB to 5GiB",
            "disk of 17TiB",
            "work_disk of 1B",
            "in the past",
            "\"No\"",
            "\"a b\"",
            "control characters",
        ]) {
            assert!(said.contains(expected), "{said:?} says nothing of {expected:?}");
        }
        assert!(said[4].contains("smaller"), "{}", said[4]);
    }

    #[test]
    fn memory_and_kernel_go_together() {
        let little = VmRow {
            memory_mib: 70,
            ..row()
        };
        let set = |memory: Option<u64>, kernel: Option<&str>, vcpus| SetVm {
            memory,
            kernel: kernel.map(Into::into),
            vcpus,
            ..SetVm::default()
        };
        let tried = |row: &VmRow, set: &SetVm| apply(row, set, None, bounds()).map(drop);
        assert!(tried(&row(), &set(Some(81 << 20), None, None)).is_err());
        assert!(tried(&row(), &set(Some(82 << 20), None, None)).is_ok());
        assert!(tried(&little, &set(None, Some("larger"), None)).is_err());
        assert!(tried(&little, &set(Some(82 << 20), Some("larger"), None)).is_ok());
        // One of an older release may have less.
        assert!(tried(&little, &set(None, None, Some(3))).is_ok());
    }

    #[test]
    fn one_that_goes_when_it_stops_is_not_started_again() {
        let ephemeral = VmRow {
            ephemeral: true,
            ..row()
        };
        for set in [
            SetVm {
                restart: Some(Restart::OnFailure),
                ..SetVm::default()
            },
            SetVm {
                autostart: Some(true),
                ..SetVm::default()
            },
        ] {
            assert!(apply(&ephemeral, &set, None, bounds()).is_err());
        }
    }

    #[test]
    fn a_run_is_taken_up_with_what_it_was_started_with() {
        let (new, _) = apply(&row(), &all(), Some(&run()), bounds()).unwrap();
        let taken_up = RanWith::of(&row()).on(&new);
        assert_eq!(RanWith::of(&taken_up), RanWith::of(&row()));
        assert_eq!(taken_up.restart, new.restart);
    }

    proptest! {
        #[test]
        fn a_disk_never_shrinks(from in 16_u64 << 20..1 << 40, to in 0_u64..1 << 41) {
            let before = VmRow { disk: from & !4095, ..row() };
            let set = SetVm { disk: Some(to), ..SetVm::default() };
            if let Ok((after, _)) = apply(&before, &set, Some(&run()), bounds()) {
                prop_assert!(after.disk >= before.disk);
            }
        }
    }
}
