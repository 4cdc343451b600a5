//! The tests of `hostkit` for which the kernel under it matters, on XFS and on btrfs: their compiled form, run in the host.

use std::path::PathBuf;

use e2e::Host;

/// Made and mounted for these tests, and gone after them.
const FILE_SYSTEMS: [&str; 2] = ["xfs", "btrfs"];

pub(crate) fn steps(host: &Host<'_>) {
    let Some(binaries) = std::env::var_os("BANGER_TEST_HOSTKIT") else {
        e2e::testbed::skip(
            "BANGER_TEST_HOSTKIT does not name hostkit's compiled tests (cargo xtask test does)",
        );
        return;
    };
    let binaries: Vec<PathBuf> = std::env::split_paths(&binaries).collect();
    host.step("copy hostkit's tests", || {
        host.sh("mkdir -p /srv/tests");
        for binary in &binaries {
            host.put(binary, "/srv/tests/");
        }
    });
    for kind in FILE_SYSTEMS {
        let step = match kind {
            "xfs" => "hostkit's tests on XFS",
            _ => "hostkit's tests on btrfs",
        };
        host.step(step, || on(host, kind));
    }
    host.sh("rm -r /srv/tests");
}

fn on(host: &Host<'_>, kind: &str) {
    host.sh(&format!(
        "truncate --size 1G /srv/{kind}.img; mkfs.{kind} -q /srv/{kind}.img; mkdir -p /mnt/{kind}; \
         mount -o loop /srv/{kind}.img /mnt/{kind}"
    ));
    let before = host.sh("losetup --list --noheadings --output NAME,BACK-FILE");
    // A part that is missing here is no reason to skip.
    let run = format!(
        "cd /srv/tests; for test in *; do TMPDIR=/mnt/{kind} BANGER_TEST_REQUIRE=1 BANGER_TEST_SKIPS=/run/skips \
         ./$test --test-threads 2 dm:: loopdev:: reflink:: space:: 2>&1; done"
    );
    let said = host.sh(&run);
    assert!(said.contains(" passed; 0 failed"), "nothing ran: {said}");
    assert_eq!(
        host.sh("cat /run/skips 2>/dev/null || true"),
        "",
        "skipped where all is there"
    );
    assert_eq!(host.sh("dmsetup ls"), "No devices found");
    assert_eq!(
        host.sh("losetup --list --noheadings --output NAME,BACK-FILE"),
        before,
        "loop devices are left"
    );
    host.sh(&format!(
        "umount /mnt/{kind}; rmdir /mnt/{kind}; rm /srv/{kind}.img"
    ));
}
