//! Supervision of small real processes.

use std::ffi::OsString;
use std::sync::Mutex;

use hostkit::process::ProcessId;

use super::*;
use crate::check::tests::spec;

/// A ledger that remembers, or refuses.
#[derive(Default)]
struct Ledger {
    seen: Mutex<Vec<ProcessRecord>>,
    refuse: bool,
}

#[async_trait::async_trait]
impl ProcessLog for Ledger {
    async fn spawned(&self, record: &ProcessRecord) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        self.seen.lock().unwrap().push(*record);
        if self.refuse {
            Err("disk full".into())
        } else {
            Ok(())
        }
    }
}

/// A script with the arguments that mark this process of the specification's machine.
fn sh(role: ProcessRole, script: &str) -> Detached {
    let marks = match role {
        ProcessRole::Vmm => ["--id", "bgrabc0123456", "--api-sock", "x"],
        ProcessRole::VsockDevice => ["--groups", "bgrabc0123456", "--uds-path", "x"],
        ProcessRole::Passt => ["--search", "bgrabc0123456", "--fd", "7"],
    };
    let mut spec = Detached::new("/bin/sh");
    spec.args = ["-c", script, "sh"]
        .iter()
        .chain(&marks)
        .map(OsString::from)
        .collect();
    spec
}

/// Stays until it is killed, without a child of its own.
const FOREVER: &str = "kill -STOP $$; exit";

fn cleanup(sockets: &[&Path]) -> Cleanup {
    let sockets = sockets.iter().map(|path| (*path).to_owned()).collect();
    Cleanup {
        sockets,
        reason: Box::pin(async { Some("because".to_owned()) }),
    }
}

async fn gone(id: ProcessId) {
    if let Ok(process) = Process::open(id) {
        process.exited().await;
    }
}

#[tokio::test]
async fn one_process_takes_the_others_along() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("socket");
    drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
    let fifo = dir.path().join("fifo");
    rustix::fs::mkfifoat(rustix::fs::CWD, &fifo, rustix::fs::Mode::RWXU).unwrap();
    let fifo = fifo.display();
    // The companion is seen to end first: its end is what the VMM ends upon.
    let (last, first) = (
        format!("read line < {fifo}; exit 5"),
        format!("exec 9> {fifo}; exit 6"),
    );
    for (vmm, device, role, exit) in [
        ("exit 3", FOREVER, ProcessRole::Vmm, Exit::Code(3)),
        (FOREVER, "exit 4", ProcessRole::VsockDevice, Exit::Code(4)),
        (&last, &first, ProcessRole::Vmm, Exit::Code(5)),
    ] {
        let (ledger, log) = (Ledger::default(), dir.path().join("log"));
        let mut launching = Launching::new(&ledger, &log);
        launching
            .spawn(ProcessRole::VsockDevice, sh(ProcessRole::VsockDevice, device))
            .await
            .unwrap();
        launching
            .spawn(ProcessRole::Vmm, sh(ProcessRole::Vmm, vmm))
            .await
            .unwrap();
        let machine = launching.supervise(cleanup(&[&socket]));
        let ended = machine.exited().await;
        assert_eq!(
            ended,
            MachineExit {
                role,
                exit,
                reason: Some("because".to_owned())
            }
        );
        assert_eq!(machine.exited().await, ended, "asked again");
        assert!(!socket.exists());
        machine.kill().await.unwrap();
        for record in ledger.seen.into_inner().unwrap() {
            assert!(
                matches!(Process::open(record.id), Err(ProcessError::Gone { .. })),
                "not reaped"
            );
        }
    }
}

#[tokio::test]
async fn a_machine_goes_on_without_a_process_that_is_not_vital() {
    let (ledger, log) = (Ledger::default(), Path::new("/nonexistent"));
    let mut launching = Launching::new(&ledger, log);
    for (role, script) in [(ProcessRole::Passt, "exit 1"), (ProcessRole::Vmm, FOREVER)] {
        launching.spawn(role, sh(role, script)).await.unwrap();
    }
    let within = Duration::from_secs(60);
    let never = std::future::pending::<()>();
    let ended = launching.wait_for(ProcessRole::Passt, within, never).await;
    assert!(matches!(
        ended,
        Err(LaunchError::Exited {
            role: ProcessRole::Passt,
            ..
        })
    ));
    // Of others its end is no failure.
    let short = Duration::from_millis(10);
    let never = std::future::pending::<()>();
    let silent = launching.wait_for(ProcessRole::Vmm, short, never).await;
    assert!(matches!(silent, Err(LaunchError::Silent { .. })));

    let machine = launching.supervise(cleanup(&[]));
    assert!(!machine.runs(ProcessRole::Passt) && machine.runs(ProcessRole::Vmm));
    machine.kill().await.unwrap();
    assert_eq!(machine.exited().await.role, ProcessRole::Vmm);
}

#[tokio::test]
async fn what_is_given_up_is_gone_and_the_launch_goes_on() {
    let (ledger, log) = (Ledger::default(), Path::new("/nonexistent"));
    let mut launching = Launching::new(&ledger, log);
    for role in [ProcessRole::Passt, ProcessRole::Vmm] {
        launching.spawn(role, sh(role, FOREVER)).await.unwrap();
    }
    launching.give_up(ProcessRole::Passt).await;
    let given_up = ledger.seen.lock().unwrap()[0];
    assert!(matches!(
        Process::open(given_up.id),
        Err(ProcessError::Gone { .. })
    ));
    let machine = launching.supervise(cleanup(&[]));
    assert_eq!(machine.processes().len(), 1);
    machine.kill().await.unwrap();
}

#[tokio::test]
async fn killed_for_several_waiters() {
    let (ledger, log) = (Ledger::default(), Path::new("/nonexistent"));
    let mut launching = Launching::new(&ledger, log);
    launching
        .spawn(ProcessRole::Vmm, sh(ProcessRole::Vmm, FOREVER))
        .await
        .unwrap();
    let machine = Arc::new(launching.supervise(cleanup(&[])));
    let waiter = tokio::spawn({
        let machine = Arc::clone(&machine);
        async move { machine.exited().await }
    });
    assert!(
        tokio::time::timeout(Duration::from_millis(10), machine.exited())
            .await
            .is_err()
    );
    let (first, second) = tokio::join!(machine.kill(), machine.kill());
    first.unwrap();
    second.unwrap();
    assert_eq!(waiter.await.unwrap().exit, Exit::Signal(9));
}

#[tokio::test]
async fn a_launch_that_fails_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("log");
    std::fs::write(&log, "from an earlier start\n").unwrap();
    let ledger = Ledger::default();
    let mut launching = Launching::new(&ledger, &log);
    launching
        .spawn(ProcessRole::VsockDevice, sh(ProcessRole::VsockDevice, FOREVER))
        .await
        .unwrap();
    let mut failing = sh(ProcessRole::Vmm, "echo first >&2; echo last >&2; exit 1");
    failing.stderr = Some(files::open_append(&log).unwrap());
    launching.spawn(ProcessRole::Vmm, failing).await.unwrap();
    let never = std::future::pending::<()>();
    let error = launching
        .wait_for(ProcessRole::Vmm, Duration::from_secs(60), never)
        .await
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        "start the machine: vmm ended with exit code 1: first | last"
    );
    let device = ledger.seen.lock().unwrap()[0].id;
    assert!(
        Process::open(device).is_ok(),
        "the other one runs until it is abandoned"
    );
    launching.abandon().await;
    assert!(matches!(Process::open(device), Err(ProcessError::Gone { .. })));
}

#[tokio::test]
async fn a_dropped_launch_is_killed() {
    let ledger = Ledger::default();
    let mut launching = Launching::new(&ledger, Path::new("/nonexistent"));
    launching
        .spawn(ProcessRole::Vmm, sh(ProcessRole::Vmm, FOREVER))
        .await
        .unwrap();
    let id = ledger.seen.lock().unwrap()[0].id;
    drop(launching);
    gone(id).await;
}

#[tokio::test]
async fn silence_and_an_unwilling_ledger_are_errors() {
    let ledger = Ledger {
        refuse: true,
        ..Ledger::default()
    };
    let mut launching = Launching::new(&ledger, Path::new("/nonexistent"));
    let error = launching
        .spawn(ProcessRole::Vmm, sh(ProcessRole::Vmm, FOREVER))
        .await
        .unwrap_err();
    assert!(
        matches!(
            error,
            LaunchError::Record {
                role: ProcessRole::Vmm,
                ..
            }
        ),
        "{error}"
    );
    let never = std::future::pending::<()>();
    let error = launching
        .wait_for(ProcessRole::Vmm, Duration::from_millis(10), never)
        .await
        .unwrap_err();
    assert!(matches!(error, LaunchError::Silent { .. }), "{error}");
    launching.abandon().await;
}

#[tokio::test]
async fn adopting_needs_every_process() {
    let dir = tempfile::tempdir().unwrap();
    let spec = spec(dir.path());
    let ledger = Ledger::default();
    let mut launching = Launching::new(&ledger, Path::new("/nonexistent"));
    launching
        .spawn(ProcessRole::VsockDevice, sh(ProcessRole::VsockDevice, FOREVER))
        .await
        .unwrap();
    launching
        .spawn(ProcessRole::Vmm, sh(ProcessRole::Vmm, FOREVER))
        .await
        .unwrap();
    let records = ledger.seen.lock().unwrap().clone();
    let roles = [ProcessRole::Vmm, ProcessRole::VsockDevice];
    let adopt = |spec: &MachineSpec, records: &[ProcessRecord]| {
        Supervised::adopt(spec, records, &roles, cleanup(&[]))
    };

    let mut other = spec.clone();
    other.token = "bgrother".to_owned();
    assert!(matches!(
        adopt(&other, &records),
        Err(AdoptError::Stranger { .. })
    ));
    assert!(matches!(adopt(&spec, &[]), Err(AdoptError::Gone)));
    let error = adopt(&spec, &records[1..]).unwrap_err();
    assert_eq!(error.to_string(), "adopt the machine: its vsock-device ended");
    let earlier = |record: &ProcessRecord| ProcessRecord {
        id: ProcessId {
            start_time: record.id.start_time - 1,
            ..record.id
        },
        ..*record
    };
    let reused: Vec<_> = records.iter().map(earlier).collect();
    assert!(matches!(adopt(&spec, &reused), Err(AdoptError::Gone)));

    let adopted = adopt(&spec, &records).unwrap();
    assert_eq!(adopted.processes(), records);
    adopted.kill().await.unwrap();
    assert_eq!(adopted.exited().await.role, ProcessRole::Vmm);
    launching.abandon().await;
    assert!(matches!(adopt(&spec, &records), Err(AdoptError::Gone)));
}
