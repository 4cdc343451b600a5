//! Every step at which the daemon may die, by name, so that a test can make it die there.
//!
//! The points are where something outside the process changes: a row of the state file, an object of the host, a word
//! from the guest. Most are put by structure, so that a new step cannot be without one: every durable write names its
//! [`Write`] ([`Rows`](crate::rows::Rows)), every host object its [`Kind`] ([`ledger`](crate::ledger)), every stage of an
//! operation is a [`Stage`]. What is left is a [`Moment`] at the place itself.
//!
//! Without the crate's feature `crash-points`, which no release has, [`point`] is nothing. With it, [`arm`] chooses the
//! point at which the process kills itself, and the file in which it records those that it passes. The suite
//! `crash_points` of the end-to-end tests walks all of them and then dies at each.

use crate::operation::Stage;

/// An enum whose variants have names, and the list of all.
macro_rules! named {
    ($(#[$about:meta])* $visibility:vis enum $name:ident {
        $($(#[$doc:meta])* $variant:ident = $text:literal,)+
    }) => {
        $(#[$about])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        $visibility enum $name { $($(#[$doc])* $variant,)+ }

        impl $name {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// Its name: lowercase words joined by hyphens.
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $text,)+ }
            }
        }
    };
}
pub(crate) use named;

named! {
    /// Kinds of host objects, as their steps differ.
    pub enum Kind {
        /// A machine's directory of disks and logs.
        StateDirectory = "state-directory",
        /// A run's directory of sockets.
        RuntimeDirectory = "runtime-directory",
        /// Processes that are about to be started.
        Processes = "processes",
        /// The VMM.
        Vmm = "vmm",
        /// The vsock device beside a VMM that has none.
        VsockDevice = "vsock-device",
        /// What carries the packets of a user-mode network.
        Passt = "passt",
        /// A loop device under a system disk of kind dm.
        LoopDevice = "loop-device",
        /// A device-mapper device of one.
        MappedDevice = "mapped-device",
        /// The bridge of machines.
        Bridge = "bridge",
        /// A table of rules.
        Table = "table",
        /// A setting of the kernel.
        Sysctl = "sysctl",
        /// A tap.
        Tap = "tap",
        /// A tap in use by a run.
        TapUse = "tap-use",
    }
}

named! {
    /// Steps in the life of a host object.
    pub enum Step {
        /// It has no row yet. A process is there already: its row needs its number.
        Entering = "entering",
        /// It has a row.
        Entered = "entered",
        /// It is there.
        Made = "made",
        /// It is about to be removed.
        Removing = "removing",
        /// It is gone, its row is not.
        Removed = "removed",
        /// Its row is gone.
        Struck = "struck",
    }
}

impl Kind {
    /// The steps that this kind goes through.
    fn steps(self) -> &'static [Step] {
        match self {
            Self::StateDirectory
            | Self::RuntimeDirectory
            | Self::LoopDevice
            | Self::MappedDevice
            | Self::Bridge
            | Self::Table
            | Self::Sysctl
            | Self::Tap
            | Self::TapUse => Step::ALL,
            // Nothing is made between these rows and the processes: they are what comes next.
            Self::Processes | Self::Vmm | Self::VsockDevice | Self::Passt => &[
                Step::Entering,
                Step::Entered,
                Step::Removing,
                Step::Removed,
                Step::Struck,
            ],
        }
    }
}

named! {
    /// Durable writes: each is a point before and a point after its commit. Those of the ledger are [`Step`]s.
    pub enum Write {
        /// A machine's row appears: its name is reserved, its image pinned.
        VmInsert = "vm-insert",
        /// A machine that has none gets an address.
        LeaseTake = "lease-take",
        /// A machine's settings change.
        VmUpdate = "vm-update",
        /// A machine's row goes.
        VmRemove = "vm-remove",
        /// A machine rests.
        PhaseStopped = "phase-stopped",
        /// A machine is being started.
        PhaseStarting = "phase-starting",
        /// A machine runs.
        PhaseRunning = "phase-running",
        /// A machine is being stopped.
        PhaseStopping = "phase-stopping",
        /// A machine's system disk is being renewed.
        PhaseResetting = "phase-resetting",
        /// A machine has another system disk, and with it perhaps another image.
        VmReset = "vm-reset",
        /// A machine is to be started by the daemon itself.
        PhaseDue = "phase-due",
        /// The host's boot is known.
        Booted = "booted",
        /// A machine has failed.
        PhaseFailed = "phase-failed",
        /// A machine is being removed.
        PhaseRemoving = "phase-removing",
        /// Ports of a machine are published.
        Publish = "publish",
        /// Ports of a machine are published no longer.
        Unpublish = "unpublish",
        /// A session is about to be started.
        SessionInsert = "session-insert",
        /// A session has ended.
        SessionEnd = "session-end",
        /// A session is forgotten.
        SessionRemove = "session-remove",
        /// An image is entered.
        ImageInsert = "image-insert",
        /// An image gets a name, which another one may lose.
        ImageName = "image-name",
        /// An image loses a name, with the last one its row.
        ImageRemove = "image-remove",
        /// A registered file was read and is known again.
        ImageRecognised = "image-recognised",
        /// A registered image is Banger's own.
        ImagePromote = "image-promote",
        /// A kernel is entered.
        KernelInsert = "kernel-insert",
        /// A kernel is struck.
        KernelRemove = "kernel-remove",
        /// Another kernel is the default.
        KernelDefault = "kernel-default",
        /// An operation begins or says where it stands.
        OperationRunning = "operation-running",
        /// An operation was done.
        OperationSucceeded = "operation-succeeded",
        /// An operation failed.
        OperationFailed = "operation-failed",
        /// An operation was cancelled.
        OperationCancelled = "operation-cancelled",
        /// Operations past their day are forgotten.
        OperationsForget = "operations-forget",
        /// Doctor tries whether the state file can be written.
        Probe = "probe",
    }
}

named! {
    /// Steps that are neither a row nor an object of the ledger's.
    pub enum Moment {
        /// A directory for unfinished image work is there.
        WorkBegun = "work-begun",
        /// Finished image work is on the disk, under its unfinished name.
        WorkSynced = "work-synced",
        /// It has its final name.
        WorkPublished = "work-published",
        /// An image or a kernel without a row is about to be removed.
        TreeRemoving = "tree-removing",
        /// It is gone.
        TreeRemoved = "tree-removed",
        /// A copy of a registered file is on the disk, under its unfinished name.
        CopySynced = "copy-synced",
        /// It has taken the place of the link.
        CopyPublished = "copy-published",
        /// All blobs of an image are there, the image is not.
        BlobsThere = "blobs-there",
        /// Blobs that no image refers to any more are about to be removed.
        BlobsRemoving = "blobs-removing",
        /// They are gone.
        BlobsRemoved = "blobs-removed",
        /// A machine's system disk is there.
        DiskMade = "disk-made",
        /// A machine's work disk is on the disk, under its unfinished name.
        WorkDiskMade = "work-disk-made",
        /// It has its final name.
        WorkDiskPublished = "work-disk-published",
        /// A work seed has taken the place of another, which is gone.
        SeedReplaced = "seed-replaced",
        /// A disk's file has grown; whoever runs on it does not know.
        DiskExtended = "disk-extended",
        /// A disk that a reset has replaced is gone.
        DiskRemoved = "disk-removed",
        /// The guest has connected and said hello.
        HelloHeard = "hello-heard",
        /// The guest's agent has answered.
        GuestAnswered = "guest-answered",
        /// The guest has been asked to shut down, and has agreed.
        ShutdownAgreed = "shutdown-agreed",
        /// A key of ssh is on the disk, under its unfinished name.
        KeyMade = "key-made",
        /// It has its final name.
        KeyPublished = "key-published",
    }
}

/// A point at which the daemon may die.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Point {
    /// A host object stands so.
    Object(Kind, Step),
    /// A write is about to be made.
    Before(Write),
    /// A write has been made.
    After(Write),
    /// An operation has kept that it is at this stage.
    Stage(Stage),
    /// Something else happened.
    Moment(Moment),
}

impl Point {
    /// All points.
    pub fn all() -> impl Iterator<Item = Self> {
        let objects = Kind::ALL
            .iter()
            .flat_map(|kind| kind.steps().iter().map(|step| Self::Object(*kind, *step)));
        let writes = Write::ALL
            .iter()
            .flat_map(|write| [Self::Before(*write), Self::After(*write)]);
        let stages = Stage::ALL.iter().map(|stage| Self::Stage(*stage));
        let moments = Moment::ALL.iter().map(|moment| Self::Moment(*moment));
        objects.chain(writes).chain(stages).chain(moments)
    }

    /// Its name: `vmm.entered`, `before.vm-insert`, `stage.booting`, `moment.hello-heard`.
    pub fn name(self) -> String {
        match self {
            Self::Object(kind, step) => format!("{}.{}", kind.name(), step.name()),
            Self::Before(write) => format!("before.{}", write.name()),
            Self::After(write) => format!("after.{}", write.name()),
            Self::Stage(stage) => format!("stage.{}", stage.name()),
            Self::Moment(moment) => format!("moment.{}", moment.name()),
        }
    }
}

/// The daemon may die here.
#[cfg(not(feature = "crash-points"))]
#[inline(always)]
pub(crate) const fn point(_: Point) {}

#[cfg(feature = "crash-points")]
pub(crate) use armed::point;
#[cfg(feature = "crash-points")]
pub use armed::{ArmError, arm};

#[cfg(feature = "crash-points")]
mod armed {
    use std::collections::HashMap;
    use std::fs::File;
    use std::io::Write as _;
    use std::path::{Path, PathBuf};
    use std::sync::{Mutex, OnceLock, PoisonError};

    use super::Point;

    /// Why nothing was armed.
    #[derive(Debug, thiserror::Error)]
    pub enum ArmError {
        /// No point has that name.
        #[error("no crash point {0:?}; `bangerd crash-points` lists them")]
        Unknown(String),
        /// The record cannot be written.
        #[error("failed to open the record {}", path.display())]
        Record {
            /// The file.
            path: PathBuf,
            /// The kernel's word.
            source: std::io::Error,
        },
        /// Once is all.
        #[error("crash points were armed before")]
        Twice,
    }

    struct Armed {
        /// The point to die at, and how many passes before that are survived.
        at: Option<(String, u32)>,
        record: Option<File>,
        /// Points count once this is there.
        from: Option<PathBuf>,
        passed: Mutex<HashMap<String, u32>>,
    }

    static ARMED: OnceLock<Armed> = OnceLock::new();

    /// Arms the points of this process: `at` is a name, or `name#N` for the Nth time it is reached (from 1); each point
    /// that is reached is appended to `record`, a name a line. With `from`, what is reached before that file exists does
    /// not count.
    pub fn arm(at: Option<&str>, record: Option<&Path>, from: Option<&Path>) -> Result<(), ArmError> {
        let at = at
            .map(|at| {
                let unknown = || ArmError::Unknown(at.to_owned());
                let (name, count) = match at.split_once('#') {
                    Some((name, count)) => (name, count.parse().map_err(|_| unknown())?),
                    None => (at, 1),
                };
                let known = count > 0 && Point::all().any(|point| point.name() == name);
                known.then(|| (name.to_owned(), count)).ok_or_else(unknown)
            })
            .transpose()?;
        let record = record
            .map(|path| {
                let mut options = File::options();
                let opened = options.create(true).append(true).open(path);
                opened.map_err(|source| ArmError::Record {
                    path: path.to_owned(),
                    source,
                })
            })
            .transpose()?;
        let armed = Armed {
            at,
            record,
            from: from.map(Path::to_owned),
            passed: Mutex::default(),
        };
        ARMED.set(armed).map_err(|_| ArmError::Twice)
    }

    /// The daemon may die here.
    pub(crate) fn point(point: Point) {
        let Some(armed) = ARMED.get() else { return };
        if armed.from.as_ref().is_some_and(|from| !from.exists()) {
            return;
        }
        let name = point.name();
        let mut passed = armed.passed.lock().unwrap_or_else(PoisonError::into_inner);
        let count = passed.entry(name.clone()).or_default();
        *count += 1;
        if let Some(mut record) = armed.record.as_ref()
            && let Err(error) = writeln!(record, "{name}")
        {
            tracing::error!(%error, "crash point not recorded");
        }
        if armed.at.as_ref() == Some(&(name, *count)) {
            // As the kernel would do it when memory runs out: no destructor runs, no file is flushed. Under the lock, so
            // that no other thread passes a point after this one.
            let _died =
                rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
            loop {
                std::thread::park();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_distinct() {
        let mut names: Vec<_> = Point::all().map(Point::name).collect();
        let all = names.len();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), all);
        assert!(names.iter().all(|name| {
            let allowed = |c: char| c.is_ascii_lowercase() || c == '-' || c == '.';
            name.chars().all(allowed)
        }));
    }
}
