//! A whole host under test: a Debian with systemd and udev, booted by Banger, in which Banger is installed as it would be
//! on a machine of its own. It has what the machine that runs the tests may be without: device-mapper, XFS, a boot.
//!
//! The Banger that boots it is the *outer* one; [`Host::banger`] runs the inner one's command line. Image and kernel come
//! from the test bed (`cargo xtask testbed`).

use std::cell::Cell;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::command::{Banger, Finished};
use crate::daemon::Daemon;
use crate::guest::Guest;
use crate::testbed::Testbed;
use crate::wait_for;

/// Name of its kernel, its image and itself in the outer Banger.
const NAME: &str = "host";
/// Registering the image reads 600 MB; systemd then starts on emulated processors that others use as well.
const PATIENCE: Duration = Duration::from_secs(300);

/// The host, which runs.
#[derive(Debug)]
pub struct Host<'d> {
    daemon: &'d Daemon,
    guest: Guest<'d>,
    began: Instant,
    /// The last step that was begun.
    step: Cell<&'static str>,
}

/// The directory with its image and kernel; says why not when there is none.
#[must_use]
pub fn parts(bed: &Testbed) -> Option<PathBuf> {
    let directory =
        std::env::var_os("BANGER_TEST_HOST").map_or_else(|| bed.directory.join("host"), PathBuf::from);
    if !directory.join("rootfs.tar").is_file() {
        crate::testbed::skip("the test bed has no Debian host (cargo xtask testbed says why)");
        return None;
    }
    Some(directory)
}

impl<'d> Host<'d> {
    /// Boots it, with two processors, 3 GiB of memory and a disk of 8 GiB.
    #[must_use]
    pub fn boot(daemon: &'d Daemon, parts: &Path) -> Self {
        daemon
            .banger(["kernel", "add", NAME, "--deb"])
            .args([parts.join("kernel.deb")])
            .deadline(PATIENCE)
            .ok();
        daemon
            .banger(["image", "register", NAME])
            .args([parts.join("rootfs.tar")])
            .args(["--kernel", NAME])
            .deadline(PATIENCE)
            .ok();
        let options = ["--vcpus", "2", "--memory", "3GiB", "--disk", "8GiB"];
        let host = Self {
            daemon,
            guest: Guest::create_with(daemon, NAME, NAME, &options),
            began: Instant::now(),
            step: Cell::new("boot"),
        };
        host.power_on();
        host
    }

    fn power_on(&self) {
        self.guest.banger("start").deadline(PATIENCE).ok();
        // The agent answers before it hands over to systemd, which then needs a moment until it can be asked.
        let answer = wait_for(PATIENCE, || {
            let asked = self
                .exec(["systemctl", "is-system-running", "--wait"])
                .deadline(PATIENCE)
                .run();
            matches!(asked.out().as_str(), "running" | "degraded").then_some(asked)
        });
        let answer = answer.expect("systemd comes up");
        let failed = self.sh("systemctl --failed --no-legend --plain");
        assert_eq!((answer.out().as_str(), failed.as_str()), ("running", ""));
    }

    /// Boots it again, the way an administrator does. Everything in it is stopped by its systemd first.
    pub fn reboot(&self) {
        let before = self.sh("cat /proc/sys/kernel/random/boot_id");
        // Its agent may be gone before it has answered.
        drop(self.exec(["systemctl", "--no-block", "reboot"]).run());
        // A guest ends by resetting: to the outer Banger its reboot is its end.
        let stopped = wait_for(PATIENCE, || (self.guest.state() == "stopped").then_some(()));
        assert!(stopped.is_some(), "the host never went down");
        self.power_on();
        assert_ne!(self.sh("cat /proc/sys/kernel/random/boot_id"), before);
    }

    /// Does a step of the suite; says how long it took.
    pub fn step<T>(&self, name: &'static str, step: impl FnOnce() -> T) -> T {
        self.step.set(name);
        let began = Instant::now();
        let value = step();
        println!(
            "{:7.1} s  {name} (at {:.0} s)",
            began.elapsed().as_secs_f64(),
            self.began.elapsed().as_secs_f64()
        );
        value
    }

    /// A command in it.
    pub fn exec<I: IntoIterator<Item = S>, S: AsRef<OsStr>>(&self, command: I) -> Banger {
        self.guest.exec(command).deadline(PATIENCE)
    }

    /// Runs a shell script in it that must succeed with every one of its commands, and returns its standard output.
    #[track_caller]
    pub fn sh(&self, script: &str) -> String {
        self.exec(["bash", "-euo", "pipefail", "-c", script])
            .run()
            .expect(0)
            .out()
    }

    /// Waits until a shell condition holds in it, asked every 20 milliseconds and without a call for each: a call takes
    /// longer than what it would wait for.
    #[track_caller]
    pub fn wait(&self, what: &str, condition: &str) {
        let script =
            format!("for i in $(seq 3000); do if {condition}; then exit 0; fi; sleep 0.02; done; exit 1");
        let asked = self.exec(["bash", "-c", &script]).run();
        assert_eq!(asked.code(), 0, "never: {what}: {asked}");
    }

    /// Copies a file or directory into it.
    pub fn put(&self, from: &Path, to: &str) {
        self.daemon
            .banger(["cp"])
            .args([from])
            .args([format!("{NAME}:{to}")])
            .deadline(PATIENCE)
            .ok();
    }

    /// The inner Banger's command line.
    pub fn banger<I: IntoIterator<Item = S>, S: AsRef<OsStr>>(&self, arguments: I) -> Banger {
        self.exec(["banger"]).args(arguments)
    }

    /// A machine of the inner Banger, as `banger vm show` has it.
    #[must_use]
    pub fn vm(&self, name: &str) -> Value {
        self.banger(["vm", "show", name, "--output", "json"]).json()
    }

    /// Runs a shell script in a machine of the inner Banger.
    #[track_caller]
    pub fn vm_sh(&self, name: &str, script: &str) -> String {
        let finished: Finished = self.banger(["exec", name, "--", "sh", "-c", script]).run();
        finished.expect(0).out()
    }
}

impl Drop for Host<'_> {
    /// Tells what the host knows of a failure.
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        eprintln!("--- failed in step: {}", self.step.get());
        let evidence = "journalctl --unit bangerd --no-pager --lines 60 2>&1; echo '--- devices'; dmsetup ls 2>&1; \
             losetup --list 2>&1; echo '--- processes'; ps axww -o pid,ppid,stat,etime,args 2>&1 | grep -v '\\[' | cut -c -200";
        let said = self
            .exec(["sh", "-c", evidence])
            .deadline(Duration::from_secs(60));
        // It may not even answer; the failure that brought us here is the one to be seen.
        let said = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| said.run().out()));
        eprintln!("--- the inner daemon's last lines\n{}", said.unwrap_or_default());
        let id = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| self.guest.show()["id"].clone()));
        let directory = id.ok().and_then(|id| {
            id.as_str()
                .map(|id| self.daemon.state().join("vms").join(format!("bgr{id}")))
        });
        let console = directory.map(|vm| std::fs::read(vm.join("console.log")).unwrap_or_default());
        let console = String::from_utf8_lossy(&console.unwrap_or_default()).into_owned();
        let lines: Vec<_> = console.lines().rev().take(20).collect();
        eprintln!("--- the host's console");
        for line in lines.iter().rev() {
            eprintln!("{line}");
        }
    }
}
