//! What a daemon does, one thing after the other, and how the machine stands before.

use e2e::{Wire, wait_for};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use super::bench::{Bench, STEP};

/// The machine of all scenarios.
pub(super) const VM: &str = "mortal";

/// One thing that a daemon does.
pub(super) struct Scenario {
    pub(super) name: &'static str,
    /// How the machine stands before.
    pub(super) before: Before,
    /// Asks the guest to end.
    pub(super) ends: bool,
    /// What is done to the state of a daemon that does not run. The scenario is then the daemon's own start, and what it
    /// does by itself.
    pub(super) left: Option<fn(&Bench)>,
    /// Does it; `None` once the daemon has died. Panics when it fails otherwise.
    pub(super) act: fn(&Bench, &mut Wire) -> Option<()>,
}

/// How a scenario finds the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Before {
    Absent,
    Stopped,
    Running,
    /// Stopped, with a system disk of that kind. For hosts that have it.
    Mapped,
}

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "create",
        before: Before::Absent,
        ends: false,
        left: None,
        act: create,
    },
    Scenario {
        name: "create, cancelled",
        before: Before::Absent,
        ends: false,
        left: None,
        act: create_cancelled,
    },
    Scenario {
        name: "change",
        before: Before::Stopped,
        ends: false,
        left: None,
        act: change,
    },
    Scenario {
        name: "rename",
        before: Before::Stopped,
        ends: false,
        left: None,
        act: rename,
    },
    Scenario {
        name: "publish",
        before: Before::Stopped,
        ends: false,
        left: None,
        act: publish,
    },
    Scenario {
        name: "renew the key of ssh",
        before: Before::Stopped,
        ends: false,
        left: None,
        act: renew_key,
    },
    Scenario {
        name: "reset",
        before: Before::Stopped,
        ends: false,
        left: None,
        act: reset,
    },
    Scenario {
        name: "remove",
        before: Before::Stopped,
        ends: false,
        left: None,
        act: remove,
    },
    Scenario {
        name: "images",
        before: Before::Absent,
        ends: false,
        left: None,
        act: images,
    },
    Scenario {
        name: "promote an image",
        before: Before::Absent,
        ends: false,
        left: None,
        act: promote,
    },
    Scenario {
        name: "imports and names",
        before: Before::Absent,
        ends: false,
        left: None,
        act: imports,
    },
    Scenario {
        name: "seeds",
        before: Before::Absent,
        ends: false,
        left: None,
        act: seeds,
    },
    Scenario {
        name: "kernels",
        before: Before::Absent,
        ends: false,
        left: None,
        act: kernels,
    },
    Scenario {
        name: "doctor",
        before: Before::Absent,
        ends: false,
        left: None,
        act: doctor,
    },
    Scenario {
        name: "start",
        before: Before::Stopped,
        ends: false,
        left: None,
        act: start,
    },
    Scenario {
        name: "start, failing",
        before: Before::Stopped,
        ends: false,
        left: None,
        act: start_failing,
    },
    Scenario {
        name: "stop",
        before: Before::Running,
        ends: true,
        left: None,
        act: stop,
    },
    Scenario {
        name: "kill",
        before: Before::Running,
        ends: false,
        left: None,
        act: kill,
    },
    Scenario {
        name: "restart",
        before: Before::Running,
        ends: true,
        left: None,
        act: restart,
    },
    Scenario {
        name: "remove by force",
        before: Before::Running,
        ends: false,
        left: None,
        act: remove_running,
    },
    Scenario {
        name: "sessions",
        before: Before::Running,
        ends: false,
        left: None,
        act: sessions,
    },
    Scenario {
        name: "a session that ends its machine",
        before: Before::Running,
        ends: false,
        left: None,
        act: session_ends_machine,
    },
    Scenario {
        name: "grow while running",
        before: Before::Running,
        ends: false,
        left: None,
        act: grow_running,
    },
    Scenario {
        name: "end by itself",
        before: Before::Running,
        ends: false,
        left: None,
        act: end_by_itself,
    },
    Scenario {
        name: "the host has booted",
        before: Before::Stopped,
        ends: false,
        left: Some(another_boot),
        act: comes_up,
    },
    Scenario {
        name: "take up a start that was broken off",
        before: Before::Stopped,
        ends: false,
        left: Some(broken_off),
        act: settles,
    },
    Scenario {
        name: "start on device-mapper, failing",
        before: Before::Mapped,
        ends: false,
        left: None,
        act: start_failing,
    },
];

fn done(wire: &mut Wire, method: &str, params: &Value) -> Option<Value> {
    Some(
        wire.operate(method, params)?
            .unwrap_or_else(|e| panic!("{method}: {e:#}")),
    )
}

fn asked(wire: &mut Wire, method: &str, params: &Value) -> Option<Value> {
    Some(
        wire.ask(method, params)?
            .unwrap_or_else(|e| panic!("{method}: {e:#}")),
    )
}

pub(super) fn new_vm() -> Value {
    json!({"name": VM, "image": "busybox", "vcpus": 1, "memory": 256 << 20, "disk": 64 << 20, "work_disk": 32 << 20,
        "system_disk": "overlay"})
}

fn create(_: &Bench, wire: &mut Wire) -> Option<()> {
    done(wire, "vm.create", &new_vm())?;
    Some(())
}

fn create_cancelled(_: &Bench, wire: &mut Wire) -> Option<()> {
    let mut new = new_vm();
    new["start"] = json!(true);
    let operation = asked(wire, "vm.create", &new)?;
    let booting = wait_for(STEP, || {
        let now = wire.ask("op.show", &json!({"operation": operation["id"]}));
        match now {
            None => Some(None),
            Some(now) => (now.expect("an operation")["stage"] == "booting").then_some(Some(())),
        }
    });
    booting.expect("a boot")?;
    let ended = asked(wire, "op.cancel", &json!({"operation": operation["id"]}))?;
    assert_eq!(ended["state"], "cancelled", "{ended:#}");
    Some(())
}

/// Each time something else: what is so already is no change.
fn change(_: &Bench, wire: &mut Wire) -> Option<()> {
    let shown = asked(wire, "vm.show", &json!({"vm": VM}))?;
    let more = |key: &str| shown[key].as_u64().expect("a size") + (1 << 20);
    let memory = if shown["memory"] == 256 << 20 {
        320 << 20
    } else {
        256 << 20
    };
    let change = json!({"vm": VM, "memory": memory, "disk": more("disk"), "work_disk": more("work_disk")});
    asked(wire, "vm.set", &change)?;
    Some(())
}

fn rename(_: &Bench, wire: &mut Wire) -> Option<()> {
    asked(wire, "vm.rename", &json!({"vm": VM, "name": "renamed"}))?;
    asked(wire, "vm.rename", &json!({"vm": "renamed", "name": VM}))?;
    Some(())
}

/// Any free port, so that none that a daemon left published is in the way.
fn publish(_: &Bench, wire: &mut Wire) -> Option<()> {
    let ports = json!([{"guest_port": 80}, {"protocol": "udp", "guest_port": 53}]);
    let published = asked(wire, "vm.publish", &json!({"vm": VM, "ports": ports}))?;
    assert!(
        published.as_array().is_some_and(|list| list.len() >= 2),
        "{published:#}"
    );
    asked(wire, "vm.unpublish", &json!({"vm": VM}))?;
    let shown = asked(wire, "vm.show", &json!({"vm": VM}))?;
    assert_eq!(shown["published"], Value::Null, "{shown:#}");
    Some(())
}

fn renew_key(_: &Bench, wire: &mut Wire) -> Option<()> {
    let renewed = asked(wire, "ssh.rotate", &json!({}))?;
    let identity = asked(wire, "ssh.identity", &json!({}))?;
    assert_eq!(identity["public_key"], renewed["public_key"]);
    Some(())
}

fn reset(_: &Bench, wire: &mut Wire) -> Option<()> {
    done(wire, "vm.reset", &json!({"vm": VM}))?;
    Some(())
}

fn remove(_: &Bench, wire: &mut Wire) -> Option<()> {
    done(wire, "vm.remove", &json!({"vm": VM}))?;
    Some(())
}

fn images(bench: &Bench, wire: &mut Wire) -> Option<()> {
    let file = bench.small_image();
    let new = json!({"name": "small", "path": file, "replace": true});
    done(wire, "image.register", &new)?;
    // Once more, which removes the one before.
    done(wire, "image.register", &new)?;
    asked(wire, "image.remove", &json!({"image": "small"}))?;
    Some(())
}

/// The file is put back as a copy of itself, is known again, and is then not needed any more.
fn promote(bench: &Bench, wire: &mut Wire) -> Option<()> {
    let file = bench.small_image();
    let new = json!({"name": "small", "path": file, "replace": true});
    done(wire, "image.register", &new)?;
    let copy = file.with_extension("copy");
    std::fs::copy(&file, &copy).expect("copy");
    std::fs::rename(&copy, &file).expect("rename");
    let verified = json!({"images": ["small"]});
    done(wire, "image.verify", &verified)?;
    let small = json!({"image": "small"});
    let known = asked(wire, "image.show", &small)?;
    assert_eq!(known["registered"]["problem"], Value::Null, "{known:#}");
    done(wire, "image.promote", &small)?;
    let promoted = asked(wire, "image.show", &small)?;
    assert_eq!(promoted["registered"], Value::Null, "{promoted:#}");
    done(wire, "image.verify", &verified)?;
    asked(wire, "image.remove", &small)?;
    Some(())
}

fn imports(bench: &Bench, wire: &mut Wire) -> Option<()> {
    let archive = bench.small_archive();
    done(
        wire,
        "image.import",
        &json!({"path": archive, "name": "small", "replace": true}),
    )?;
    asked(
        wire,
        "image.tag",
        &json!({"image": "small", "name": "small-too", "replace": true}),
    )?;
    asked(wire, "image.remove", &json!({"image": "small-too"}))?;
    asked(wire, "image.remove", &json!({"image": "small"}))?;
    Some(())
}

/// Each time of another key, so that one takes the place of another; no step depends on whether there was one before.
fn seeds(_: &Bench, wire: &mut Wire) -> Option<()> {
    let of = json!({"images": ["busybox"]});
    asked(wire, "ssh.rotate", &json!({}))?;
    asked(wire, "image.seed_refresh", &of)?;
    asked(wire, "ssh.rotate", &json!({}))?;
    let made = asked(wire, "image.seed_refresh", &of)?;
    assert_eq!(made[0]["made"]["fingerprint"], made[0]["wanted"], "{made:#}");
    Some(())
}

fn kernels(bench: &Bench, wire: &mut Wire) -> Option<()> {
    let file = bench.kernel();
    done(
        wire,
        "kernel.add",
        &json!({"name": "another", "source": {"file": file}}),
    )?;
    asked(wire, "kernel.set_default", &json!({"kernel": "another"}))?;
    asked(wire, "kernel.set_default", &json!({}))?;
    asked(wire, "kernel.remove", &json!({"kernel": "another"}))?;
    Some(())
}

fn doctor(_: &Bench, wire: &mut Wire) -> Option<()> {
    asked(wire, "doctor.run", &json!({}))?;
    Some(())
}

fn start(_: &Bench, wire: &mut Wire) -> Option<()> {
    done(wire, "vm.start", &json!({"vm": VM}))?;
    Some(())
}

/// The VMM is killed as soon as it is there.
fn start_failing(bench: &Bench, wire: &mut Wire) -> Option<()> {
    let operation = asked(wire, "vm.start", &json!({"vm": VM}))?;
    let vmm = wait_for(STEP, || {
        let vmm = bench
            .daemon
            .machine_processes()
            .into_iter()
            .find(|p| p.command.contains("qemu-system"));
        vmm.map(Some).or_else(|| bench.died().then_some(None))
    });
    if let Some(vmm) = vmm.expect("a VMM") {
        e2e::processes::kill(&[vmm]);
    }
    let failed = wire.follow(&operation)?;
    failed.expect_err("a start without a VMM");
    Some(())
}

/// The machine is to be started when the host has booted, and the state file knows another boot than this.
fn another_boot(bench: &Bench) {
    let connection =
        rusqlite::Connection::open(bench.daemon.state().join("banger.db")).expect("open the state file");
    connection
        .execute("UPDATE vms SET autostart = 1", [])
        .expect("set autostart");
    connection
        .execute("UPDATE facts SET value = 'another' WHERE key = 'boot_id'", [])
        .expect("forget the boot");
}

fn comes_up(_: &Bench, wire: &mut Wire) -> Option<()> {
    let up = wait_for(STEP, || match wire.ask("vm.show", &json!({"vm": VM})) {
        None => Some(None),
        Some(vm) => (vm.expect("a machine")["state"] == "running").then_some(Some(())),
    });
    up.expect("a machine that was started by itself")
}

/// A start that its daemon did not outlive: processes, sockets and rows of a run that nobody knows to have begun.
fn broken_off(bench: &Bench) {
    // The daemon that is to take it up must not be the one that left it, so another one is started for a moment.
    let mut daemon = std::process::Command::new(bench.daemon.bed().crash_daemon.as_ref().expect("a daemon"));
    daemon
        .arg("run")
        .envs(bench.daemon.environment())
        .env("BANGER_CRASH_AT", "stage.booting");
    let log = std::fs::File::create(bench.daemon.scratch().join("broken-off.log")).expect("make a log");
    let mut daemon = daemon
        .stdout(log.try_clone().expect("share the log"))
        .stderr(log)
        .spawn()
        .expect("run bangerd");
    // A connection may still be taken by the daemon before, at its last instructions: that one starts nothing.
    let ended = wait_for(STEP, || {
        if let Ok(mut wire) = Wire::open(&bench.daemon.socket()) {
            let told = wire.operate("vm.start", &json!({"vm": VM}));
            assert!(told.is_none(), "{told:?}");
        }
        daemon.try_wait().expect("wait for bangerd")
    });
    if ended.is_none() {
        daemon.kill().expect("kill bangerd");
        daemon.wait().expect("wait for bangerd");
        panic!("the daemon did not die at its crash point");
    }
}

fn settles(_: &Bench, wire: &mut Wire) -> Option<()> {
    asked(wire, "vm.list", &json!({}))?;
    Some(())
}

fn stop(_: &Bench, wire: &mut Wire) -> Option<()> {
    done(wire, "vm.stop", &json!({"vm": VM}))?;
    Some(())
}

fn kill(_: &Bench, wire: &mut Wire) -> Option<()> {
    done(wire, "vm.kill", &json!({"vm": VM}))?;
    Some(())
}

fn restart(_: &Bench, wire: &mut Wire) -> Option<()> {
    done(wire, "vm.restart", &json!({"vm": VM, "timeout_seconds": 0}))?;
    Some(())
}

fn remove_running(_: &Bench, wire: &mut Wire) -> Option<()> {
    done(wire, "vm.remove", &json!({"vm": VM, "force": true}))?;
    Some(())
}

fn grow_running(_: &Bench, wire: &mut Wire) -> Option<()> {
    let shown = asked(wire, "vm.show", &json!({"vm": VM}))?;
    let more = |key: &str| shown[key].as_u64().expect("a size") + (1 << 20);
    asked(
        wire,
        "vm.set",
        &json!({"vm": VM, "disk": more("disk"), "work_disk": more("work_disk")}),
    )?;
    Some(())
}

/// Under a name of its own each time: what a daemon that died has left of one keeps its name.
fn sessions(_: &Bench, wire: &mut Wire) -> Option<()> {
    let new = json!({"vm": VM, "command": ["/bin/sh", "-c", "echo said"]});
    let session = asked(wire, "session.start", &new)?["name"].clone();
    let of = json!({"vm": VM, "session": session});
    let ended = asked(wire, "session.wait", &of)?;
    assert_eq!(
        (&ended["state"], &ended["exit_code"]),
        (&json!("exited"), &json!(0)),
        "{ended:#}"
    );
    asked(wire, "session.remove", &of)?;
    Some(())
}

/// The machine stops, whatever the daemon that knew of it has come to.
fn session_ends_machine(_: &Bench, wire: &mut Wire) -> Option<()> {
    let of = json!({"vm": VM});
    let known = asked(wire, "session.list", &of)?;
    let shown = asked(wire, "vm.show", &of)?;
    // A run begins more than a second before its first session, so these order as text.
    let since = shown["running"]["since"].as_str();
    // One that the guest never came to know of is lost, and ends nothing.
    let ends_this_run = |session: &Value| {
        session["ends_machine"] == true && session["state"] != "lost" && session["started"].as_str() > since
    };
    let mut known = known.as_array().expect("sessions").iter();
    if since.is_some() && !known.any(ends_this_run) {
        let new = json!({"vm": VM, "command": ["/bin/true"], "ends_machine": true});
        asked(wire, "session.start", &new)?;
    }
    let mut seen = Value::Null;
    let stopped = wait_for(STEP, || match wire.ask("vm.show", &of) {
        None => Some(None),
        Some(vm) => {
            seen = vm.expect("a machine");
            (seen["state"] == "stopped").then_some(Some(()))
        }
    });
    stopped.unwrap_or_else(|| panic!("it goes on: {seen:#}"))
}

fn end_by_itself(_: &Bench, wire: &mut Wire) -> Option<()> {
    let pid = asked(wire, "vm.show", &json!({"vm": VM}))?["running"]["pid"].as_i64();
    let pid = pid
        .and_then(|pid| Pid::from_raw(pid.try_into().ok()?))
        .expect("a process id");
    kill_process(pid, Signal::KILL).expect("kill the VMM");
    let failed = wait_for(STEP, || match wire.ask("vm.show", &json!({"vm": VM})) {
        None => Some(None),
        Some(vm) => (vm.expect("a machine")["state"] == "failed").then_some(Some(())),
    });
    failed.expect("a machine that is known to have failed")?;
    Some(())
}
