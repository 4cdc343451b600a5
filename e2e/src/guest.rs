//! A machine made and started through the command line.

use serde_json::Value;

use crate::command::Banger;
use crate::daemon::Daemon;

/// A guest of a daemon. Removed with the daemon.
#[derive(Debug)]
pub struct Guest<'d> {
    daemon: &'d Daemon,
    /// Its name.
    pub name: String,
}

impl<'d> Guest<'d> {
    /// Creates and starts a machine with that image, and little memory: several run at once.
    pub fn start(daemon: &'d Daemon, name: &str, image: &str) -> Self {
        let memory = if image == "debian" { "512M" } else { "256M" };
        Self::start_with(daemon, name, image, &["--memory", memory, "--vcpus", "1"])
    }

    /// Creates and starts a machine with those options of `vm create`.
    pub fn start_with(daemon: &'d Daemon, name: &str, image: &str, options: &[&str]) -> Self {
        let guest = Self::create_with(daemon, name, image, options);
        daemon.banger(["vm", "start", name]).ok();
        guest
    }

    /// Creates a machine with those options of `vm create`.
    pub fn create_with(daemon: &'d Daemon, name: &str, image: &str, options: &[&str]) -> Self {
        daemon
            .banger(["vm", "create", name, "--image", image])
            .args(options)
            .ok();
        Self {
            daemon,
            name: name.to_owned(),
        }
    }

    /// A machine that is there already.
    pub fn of(daemon: &'d Daemon, name: &str) -> Self {
        Self {
            daemon,
            name: name.to_owned(),
        }
    }

    /// `banger exec NAME -- COMMAND…`
    pub fn exec<I: IntoIterator<Item = S>, S: AsRef<std::ffi::OsStr>>(&self, command: I) -> Banger {
        self.exec_with(&[]).args(["--"]).args(command)
    }

    /// `banger exec OPTIONS NAME`, to which `--` and the command are still to be added.
    #[must_use]
    pub fn exec_with(&self, options: &[&str]) -> Banger {
        self.daemon.banger(["exec"]).args(options).args([&self.name])
    }

    /// Runs a shell script in it, expects success and returns its standard output.
    pub fn sh(&self, script: &str) -> String {
        self.exec(["sh", "-c", script]).ok()
    }

    /// The machine as `banger show --output json` has it.
    #[must_use]
    pub fn show(&self) -> Value {
        self.daemon
            .banger(["vm", "show", &self.name, "--output", "json"])
            .json()
    }

    /// Its state's name.
    #[must_use]
    pub fn state(&self) -> String {
        self.show()["state"].as_str().expect("a state").to_owned()
    }

    /// Process id of its VMM.
    #[must_use]
    pub fn vmm_pid(&self) -> u32 {
        let pid = self.show()["running"]["pid"]
            .as_u64()
            .expect("a machine that runs");
        pid.try_into().expect("a process id")
    }

    /// `banger vm VERB NAME`
    #[must_use]
    pub fn banger(&self, verb: &str) -> Banger {
        self.daemon.banger(["vm", verb, &self.name])
    }
}
