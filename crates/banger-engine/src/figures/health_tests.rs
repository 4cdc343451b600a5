use std::collections::BTreeMap;

use hostkit::process::ProcessId;
use jiff::Timestamp;
use proptest::prelude::*;

use super::*;
use crate::vm::change::RanWith;
use crate::vm::state::Running;

fn file_system(mount: &str, used: u64, available: u64) -> FileSystem {
    FileSystem {
        mount: mount.to_owned(),
        kind: "ext4".to_owned(),
        size: used + available,
        used,
        available,
        inodes: 1000,
        inodes_free: 900,
        read_only: false,
    }
}

fn stats(file_systems: Vec<FileSystem>) -> GuestStats {
    GuestStats {
        uptime: Duration::from_secs(1),
        load: [0.0; 3],
        processes: 3,
        memory_total: 1,
        memory_available: 1,
        swap_total: 0,
        swap_free: 0,
        file_systems,
        file_systems_incomplete: false,
        interfaces: Vec::new(),
    }
}

fn record(role: ProcessRole, pid: u32) -> ProcessRecord {
    let id = ProcessId { pid, start_time: 1 };
    ProcessRecord { role, id }
}

#[test]
fn processes() {
    let both = [record(ProcessRole::Vmm, 7), record(ProcessRole::VsockDevice, 8)];
    let fine = process("dev", &both, &[]);
    assert_eq!(
        (fine.outcome, fine.reason.as_str()),
        (Outcome::Fine, "vmm (pid 7) and vsock-device (pid 8) run")
    );
    let stopped = process("dev", &both, &[ProcessRole::VsockDevice]);
    assert_eq!(stopped.outcome, Outcome::Failure);
    assert_eq!(stopped.reason, "stopped by a signal: vsock-device (pid 8)");
    assert_eq!(
        stopped.fix.as_deref(),
        Some("let it go on: kill -CONT 8; or end it: banger vm kill dev")
    );
}

#[test]
fn a_network_that_is_lost_is_a_failure_with_a_way_out() {
    let check = network_lost("dev");
    assert_eq!((check.group, check.outcome), (NETWORK, Outcome::Failure));
    assert!(check.fix.is_some_and(|fix| fix.contains("banger vm restart dev")));
}

#[test]
fn control_sockets() {
    let took = Duration::from_micros(1500);
    let running = control("dev", Some(Ok(RunState::Running)), took);
    assert_eq!(running.reason, "answers its control socket in 1.5 ms");
    for (state, outcome, words) in [
        (Some(Ok(RunState::Paused)), Outcome::Warning, "paused"),
        (Some(Ok(RunState::Other)), Outcome::Failure, "do not run"),
        (
            None,
            Outcome::Failure,
            "does not answer its control socket within 2 s",
        ),
    ] {
        let check = control("dev", state, took);
        assert_eq!(check.outcome, outcome);
        assert!(check.reason.contains(words), "{}", check.reason);
        assert!(check.fix.is_some());
    }
}

#[test]
fn a_full_file_system_is_named_and_the_fullest_of_others() {
    let quiet = stats(vec![file_system("/", 10, 90), file_system("/root", 50, 50)]);
    let checks = guest_disks("dev", &quiet);
    assert_eq!(checks.len(), 1);
    assert_eq!(
        (checks[0].outcome, checks[0].reason.as_str()),
        (Outcome::Fine, "/root is 50 % full: 50B of 100B")
    );
    let mut full = stats(vec![file_system("/", 96, 4), file_system("/root", 95, 5)]);
    let mut many = file_system("/many", 1, 99);
    many.inodes_free = 10;
    // An image that is mounted to be read only is always full.
    let mut image = file_system("/mnt", 100, 0);
    image.read_only = true;
    full.file_systems.extend([many, image]);
    let reasons: Vec<_> = guest_disks("dev", &full)
        .into_iter()
        .map(|check| (check.outcome, check.reason))
        .collect();
    assert_eq!(
        reasons,
        [
            (Outcome::Warning, "/ is 96 % full: 96B of 100B".to_owned()),
            (
                Outcome::Warning,
                "/many can take 10 more files of 1000".to_owned()
            ),
        ]
    );
    let mut silent = stats(Vec::new());
    assert_eq!(guest_disks("dev", &silent)[0].outcome, Outcome::Fine);
    silent.file_systems_incomplete = true;
    assert_eq!(guest_disks("dev", &silent)[0].outcome, Outcome::Warning);
}

#[test]
fn snapshots() {
    let usage = |used, total| snapshot("dev", Snapshot::Valid { used, total });
    assert_eq!(usage(80, 100).outcome, Outcome::Fine);
    assert_eq!(usage(81, 100).outcome, Outcome::Warning);
    assert_eq!(usage(0, 0).outcome, Outcome::Fine);
    for lost in [Snapshot::Invalid, Snapshot::Overflow] {
        let check = snapshot("dev", lost);
        assert_eq!(check.outcome, Outcome::Failure);
        assert!(check.fix.is_some_and(|fix| fix.contains("banger vm reset dev")));
    }
}

pub(in crate::figures) fn subject(vmm: VmmKind, nat: bool) -> Subject {
    let row = banger_store::vms::VmRow {
        id: "abcdefghij".to_owned(),
        name: "dev".to_owned(),
        image: String::new(),
        image_name: String::new(),
        kernel: String::new(),
        vcpus: 1,
        memory_mib: 256,
        disk: 0,
        vmm: None,
        labels: BTreeMap::new(),
        ephemeral: false,
        phase: String::new(),
        created: Timestamp::UNIX_EPOCH,
        system_disk: "overlay".to_owned(),
        generation: 0,
        work_disk: 0,
        // Changed since the run began: it does not have it yet.
        nat: !nat,
        allow: String::new(),
        autostart: false,
        restart: "no".to_owned(),
        expires: None,
    };
    let with = RanWith {
        nat,
        ..RanWith::of(&row)
    };
    let phase = Phase::Running(Running {
        vmm: vmm.as_str().to_owned(),
        acceleration: "tcg".to_owned(),
        pid: 1,
        since: Timestamp::UNIX_EPOCH,
        start_milliseconds: 1,
        agent_version: String::new(),
        kernel_release: String::new(),
        with: Some(with),
        restarts: 0,
        streak: 0,
        user_network: None,
    });
    Subject {
        id: row.id.clone(),
        row,
        phase,
        machine: None,
        guest: None,
    }
}

#[test]
fn networks_are_what_the_run_was_given() {
    let mut guest = stats(Vec::new());
    let outcome = |vmm, nat, stats: Option<&GuestStats>| network(&subject(vmm, nat), stats).outcome;
    assert_eq!(outcome(VmmKind::Qemu, false, None), Outcome::Fine, "none, as set");
    assert_eq!(outcome(VmmKind::Firecracker, true, None), Outcome::Warning);
    assert_eq!(outcome(VmmKind::Qemu, true, None), Outcome::Warning, "not known");
    assert_eq!(
        outcome(VmmKind::Qemu, true, Some(&guest)),
        Outcome::Warning,
        "no card"
    );
    guest.interfaces.push(banger_agent_api::Interface {
        name: "eth0".to_owned(),
        up: true,
        received: 2048,
        sent: 10,
    });
    let check = network(&subject(VmmKind::Qemu, true), Some(&guest));
    assert_eq!(
        (check.outcome, check.reason.as_str()),
        (Outcome::Fine, "up: eth0 (2KiB in, 10B out)")
    );
}

#[test]
fn agents_that_do_not_answer() {
    let check = agent("dev", &Ok(Duration::from_millis(3)));
    assert_eq!(check.reason, "answers in 3.0 ms");
    let after = ANSWER;
    let late = Err(AgentError::DeadlineExceeded {
        method: "ping",
        after,
    });
    let check = agent("dev", &late);
    assert_eq!(
        (check.outcome, check.reason.as_str()),
        (Outcome::Failure, "its agent did not answer within 2 s")
    );
}

#[tokio::test]
async fn a_socket_that_is_gone_comes_back_with_a_restart() {
    let gone = banger_agent_api::AgentClient::new(std::path::Path::new("/nonexistent/vsock.sock"));
    let answer = gone.ping(ANSWER).await;
    let check = agent("dev", &answer);
    assert_eq!(check.outcome, Outcome::Failure);
    assert_eq!(
        check.fix.as_deref(),
        Some("restart it, which makes its socket anew: banger vm restart dev")
    );
}

proptest! {
    #[test]
    fn shares_never_overflow(part: u64, whole: u64) {
        let share = percent(part, whole);
        prop_assert!(part > whole || share <= 100 || whole == 0);
    }
}
