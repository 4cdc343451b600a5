//! Creating, resetting and deleting machines on a small image and on a large one, for each way a system disk is made:
//! against what cannot be done without, and the large against the small, because none of it may depend on the image's
//! size.
//!
//! Device-mapper needs a kernel that has it, and a test's own host: see [`DM`].

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use e2e::{Banger, Daemon, Settings, Testbed, testbed};

use crate::report::{Budget, Report};
use crate::rows::time;

const ROUNDS: usize = 20;
/// Images, the sizes of their file systems, and how the rows call them.
const IMAGES: [(&str, &str, &str); 2] = [("small", "300M", "300 MiB"), ("large", "4G", "4 GiB")];

/// Where the figures of the kind `dm` come from.
pub(crate) const DM: &str = "  (dm: taken and held to a ratio by the suite `host`, in a host that has device-mapper: \
     cargo xtask test -E 'binary(host)', step \"machines of both on device-mapper\")";

/// How a kind's system disk is made at the least.
#[derive(Clone, Copy)]
enum Raw {
    /// A sparse file with an empty file system.
    Mke2fs,
    /// A copy of the image that shares its blocks (`FICLONE`, ioctl_ficlone(2)).
    Reflink,
}

/// Milliseconds of each verb, and of what is below it: a reset's is a creation's.
#[derive(Default)]
struct Samples {
    create: Vec<f64>,
    reset: Vec<f64>,
    delete: Vec<f64>,
    raw_make: Vec<f64>,
    raw_remove: Vec<f64>,
}

pub(crate) fn overlay(report: &mut Report, daemon: &Daemon) {
    kind(report, daemon, "overlay", Raw::Mke2fs);
}

/// With the state directory on an XFS in a file.
pub(crate) fn reflink(report: &mut Report, bed: &Testbed) {
    if !testbed::mounts("xfs") {
        report.left_out("disks that share blocks", "no XFS can be mounted here, see above");
        return;
    }
    let settings = Settings::prepared().file_system("xfs");
    let daemon = Daemon::start(bed, settings);
    kind(report, &daemon, "reflink", Raw::Reflink);
    daemon.finish();
}

fn kind(report: &mut Report, daemon: &Daemon, kind: &str, raw: Raw) {
    let files = IMAGES.map(|(name, size, _)| register(daemon, name, size));
    let mut samples = [Samples::default(), Samples::default()];
    for _ in 0..ROUNDS {
        for (((name, ..), image), samples) in IMAGES.iter().zip(&files).zip(&mut samples) {
            round(daemon, kind, name, samples);
            let disk = daemon.state().join("raw.img");
            samples.raw_make.push(time(raw.make(image, &disk)));
            samples.raw_remove.push(time(Banger::new("rm").args([&disk])));
        }
    }
    for (name, ..) in IMAGES {
        daemon.banger(["image", "rm", name]).ok();
    }
    for ((.., size), samples) in IMAGES.iter().zip(&samples) {
        let Samples {
            create,
            reset,
            delete,
            raw_make,
            raw_remove,
        } = samples;
        for (verb, ours, raw, what) in [
            ("create", create, raw_make, raw.name()),
            ("reset", reset, raw_make, raw.name()),
            ("delete", delete, raw_remove, "rm"),
        ] {
            let name = format!("{verb}, {kind}, {size} (raw: {what})");
            report.add(&name, "ms", ours.clone(), raw.clone(), Budget::None);
        }
    }
    let [small, large] = samples;
    for (verb, large, small) in [
        ("create", large.create, small.create),
        ("reset", large.reset, small.reset),
        ("delete", large.delete, small.delete),
    ] {
        let name = format!("{verb}, {kind}, 4 GiB (raw: 300 MiB)");
        report.add(&name, "ms", large, small, Budget::Ratio(1.10));
    }
}

/// One life of a machine that is never started.
fn round(daemon: &Daemon, kind: &str, image: &str, samples: &mut Samples) {
    let create = [
        "vm",
        "create",
        "made",
        "--quiet",
        "--system-disk",
        kind,
        "--image",
        image,
    ];
    samples.create.push(time(daemon.banger(create)));
    let reset = ["vm", "reset", "made", "--quiet", "--yes"];
    samples.reset.push(time(daemon.banger(reset)));
    samples
        .delete
        .push(time(daemon.banger(["vm", "rm", "made", "--quiet"])));
}

impl Raw {
    fn name(self) -> &'static str {
        match self {
            Self::Mke2fs => "mke2fs",
            Self::Reflink => "cp --reflink",
        }
    }

    fn make(self, image: &Path, disk: &Path) -> Banger {
        match self {
            Self::Mke2fs => Banger::new(program("mke2fs"))
                .args(["-q", "-t", "ext4"])
                .args([disk])
                .args(["10G"]),
            Self::Reflink => Banger::new("cp").args(["--reflink=always"]).args([image, disk]),
        }
    }
}

/// Makes an image with an empty file system of that size; gives the image's file.
fn register(daemon: &Daemon, name: &str, size: &str) -> PathBuf {
    let file = daemon.state().join(format!("{name}.ext4"));
    let made = Command::new(program("mke2fs"))
        .args(["-q", "-t", "ext4"])
        .arg(&file)
        .arg(size)
        .stdout(Stdio::null())
        .status();
    assert!(made.expect("run mke2fs").success());
    daemon
        .banger(["image", "register", name])
        .args([&file])
        .deadline(Duration::from_secs(600))
        .ok();
    // Until then it is ours.
    let promote = daemon.banger(["image", "promote", name]);
    promote.deadline(Duration::from_secs(600)).ok();
    std::fs::remove_file(file).expect("remove a file");
    let shown = daemon.banger(["image", "show", name, "--output", "json"]).json();
    let id = shown["id"].as_str().expect("an id");
    daemon.state().join("images").join(id).join("rootfs.ext4")
}

fn program(name: &str) -> PathBuf {
    testbed::find_program(name).unwrap_or_else(|| panic!("{name} is missing"))
}
