//! Creating, resetting and deleting, which must not depend on the image's size, for each way a system disk is made.

use std::process::{Command, Stdio};
use std::time::Duration;

use e2e::{Banger, Daemon};

use crate::report::{Budget, Report};
use crate::rows::time;

const ROUNDS: usize = 20;
const SIZES: [(&str, &str); 2] = [("small", "300M"), ("large", "4G")];

/// Milliseconds of each verb.
#[derive(Default)]
struct Samples {
    create: Vec<f64>,
    reset: Vec<f64>,
    delete: Vec<f64>,
}

/// The figures of one kind.
pub(crate) fn kind(report: &mut Report, daemon: &Daemon, kind: &str) {
    for (name, size) in SIZES {
        let file = daemon.state().join(format!("{name}.ext4"));
        mke2fs(&file, size);
        daemon
            .banger(["image", "register", name])
            .args([&file])
            .deadline(Duration::from_secs(600))
            .ok();
        std::fs::remove_file(file).expect("remove a file");
    }
    let mut samples = [Samples::default(), Samples::default()];
    let mut raw = Vec::new();
    for _ in 0..ROUNDS {
        for ((image, _), samples) in SIZES.iter().zip(&mut samples) {
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
            samples
                .reset
                .push(time(daemon.banger(["vm", "reset", "made", "--quiet", "--yes"])));
            samples
                .delete
                .push(time(daemon.banger(["vm", "rm", "made", "--quiet"])));
        }
        // What no creation of an overlay can do without: a sparse disk with an empty file system.
        let file = daemon.state().join("raw.ext4");
        let program = e2e::testbed::find_program("mke2fs").expect("mke2fs");
        raw.push(time(
            Banger::new(program)
                .args(["-q", "-t", "ext4"])
                .args([&file])
                .args(["10G"]),
        ));
        std::fs::remove_file(file).expect("remove a file");
    }
    for (name, _) in SIZES {
        daemon.banger(["image", "rm", name]).ok();
    }
    let [small, large] = samples;
    if kind == "overlay" {
        report.add(
            "create, overlay (raw: mke2fs of its disk)",
            "ms",
            small.create.clone(),
            raw,
            Budget::None,
        );
    }
    for (verb, large, small) in [
        ("create", large.create, small.create),
        ("reset", large.reset, small.reset),
        ("delete", large.delete, small.delete),
    ] {
        report.add(
            &format!("{verb}, {kind}, 4 GiB (raw: 300 MiB)"),
            "ms",
            large,
            small,
            Budget::Ratio(1.10),
        );
    }
}

fn mke2fs(file: &std::path::Path, size: &str) {
    let program = e2e::testbed::find_program("mke2fs").expect("mke2fs");
    let made = Command::new(program)
        .args(["-q", "-t", "ext4"])
        .arg(file)
        .arg(size)
        .stdout(Stdio::null())
        .status();
    assert!(made.expect("run mke2fs").success());
}
