//! Real machines under Firecracker. Needs Firecracker in BANGER_TEST_FIRECRACKER, a `/dev/kvm` that opens, a static
//! busybox, and in BANGER_TEST_FIRECRACKER_KERNEL an ELF kernel that boots on this host.

#![expect(clippy::unwrap_used, reason = "what cannot be prepared fails the test")]

use std::time::Instant;

use banger_vmm::{
    ControlError, Firecracker, HostVirtualization, LaunchError, ProcessRole, RunState, Vmm, VmmKind,
    host_virtualization,
};
use hostkit::process::Exit;

mod support;
use support::{Bench, Ledger, assert_gone};
use testkit::{file, skip};

async fn driver() -> Option<Firecracker> {
    let virtualization = host_virtualization();
    if let HostVirtualization::Unusable { reason, .. } = &virtualization {
        return skip(reason);
    }
    Some(
        Firecracker::probe(file("BANGER_TEST_FIRECRACKER")?, &virtualization)
            .await
            .unwrap(),
    )
}

fn bench(name: &str, script: &str) -> Option<Bench> {
    Bench::new(name, file("BANGER_TEST_FIRECRACKER_KERNEL")?, 128, script)
}

/// The whole life of one machine in one test: where processors are interpreted a guest takes ten seconds to come up.
#[tokio::test(flavor = "multi_thread")]
async fn boots_is_adopted_and_ends() {
    let script = "echo UP; /bin/busybox reboot -f";
    let (Some(firecracker), Some(bench)) = (driver().await, bench("boot", script)) else {
        return;
    };
    assert_eq!(firecracker.describe().kind, VmmKind::Firecracker);
    eprintln!("{:?}", firecracker.describe());
    for name in ["api.sock", "vsock.sock"] {
        drop(std::os::unix::net::UnixListener::bind(bench.spec.runtime_dir.join(name)).unwrap());
    }
    std::fs::write(&bench.spec.console, "before\n").unwrap();

    let started = Instant::now();
    let ledger = Ledger::default();
    let machine = firecracker.launch(&bench.spec, &ledger).await.unwrap();
    eprintln!("launch returned after {:?}", started.elapsed());
    assert_eq!(machine.control_alive().await.unwrap(), RunState::Running);
    machine.pause().await.unwrap();
    assert_eq!(machine.control_alive().await.unwrap(), RunState::Paused);
    machine.resume().await.unwrap();
    assert_eq!(bench.sockets(), ["api.sock", "vsock.sock"]);

    let records = ledger.0.lock().unwrap().clone();
    drop(machine);
    let machine = firecracker.adopt(&bench.spec, &records).await.unwrap();
    assert_eq!(machine.control_alive().await.unwrap(), RunState::Running);
    let console = bench.console(&machine, "UP").await;
    eprintln!("init ran after {:?}", started.elapsed());
    assert!(console.starts_with("before\n"), "{console}");
    let exit = bench.ended(&machine).await;
    eprintln!("{exit} after {:?}; log: {}", started.elapsed(), bench.log());
    assert_eq!(exit.role, ProcessRole::Vmm);
    assert_eq!(bench.sockets(), [""; 0]);
    assert_gone(&bench.spec.token);
    assert!(
        std::fs::metadata(&bench.spec.metrics).unwrap().len() > 0,
        "metrics are written"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_grows_and_its_traffic_is_counted() {
    // Reads its disk, says how large it is, and says so again when it has changed.
    let script = "/bin/busybox mount -t devtmpfs dev /dev; /bin/busybox mount -t sysfs sys /sys
size() { /bin/busybox cat /sys/block/vda/size; }
/bin/busybox dd if=/dev/vda of=/dev/null bs=64k 2>/dev/null; before=$(size); echo BEFORE $before
while [ $(size) = $before ]; do /bin/busybox usleep 20000; done; echo AFTER $(size)
/bin/busybox reboot -f";
    let (Some(firecracker), Some(mut bench)) = (driver().await, bench("grow", script)) else {
        return;
    };
    bench.spec.disks[0].read_only = false;
    let ledger = Ledger::default();
    let machine = firecracker.launch(&bench.spec, &ledger).await.unwrap();
    bench.console(&machine, "BEFORE 2048").await;
    let figures = machine.figures().await;
    assert!(figures.disk.in_bytes >= 1 << 20, "{figures:?}");
    assert!(figures.resident > 0 && figures.network.is_none(), "{figures:?}");
    // An adopted machine has the same figures: they are the run's, not the daemon's.
    let records = ledger.0.lock().unwrap().clone();
    drop(machine);
    let machine = firecracker.adopt(&bench.spec, &records).await.unwrap();
    assert!(machine.figures().await.disk.in_bytes >= figures.disk.in_bytes);

    let file = std::fs::File::options()
        .write(true)
        .open(&bench.spec.disks[0].path)
        .unwrap();
    file.set_len(3 << 20).unwrap();
    machine.resize_disk("disk", 3 << 20).await.unwrap();
    let unknown = machine.resize_disk("other", 1 << 20).await.unwrap_err();
    assert!(matches!(unknown, ControlError::NoDisk { id } if id == "other"));
    bench.console(&machine, "AFTER 6144").await;
    bench.ended(&machine).await;
    assert_gone(&bench.spec.token);
}

#[test]
fn a_tap_carries_the_guests_packets() {
    support::a_tap_carries(async || Some((driver().await?, bench("tap", support::NETWORK_GUEST)?)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_panic_ends_the_machine() {
    let (Some(firecracker), Some(bench)) = (driver().await, bench("panic", "echo DYING; exit 3")) else {
        return;
    };
    let machine = firecracker.launch(&bench.spec, &Ledger::default()).await.unwrap();
    let exit = bench.ended(&machine).await;
    assert_eq!(exit.exit, Exit::Code(0), "{exit}: {}", bench.log());
    let console = std::fs::read_to_string(&bench.spec.console).unwrap();
    assert!(
        console.contains("Kernel panic - not syncing: Attempted to kill init!"),
        "{console}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_at_once() {
    let (Some(firecracker), Some(bench)) = (driver().await, bench("kill", "echo UP")) else {
        return;
    };
    let machine = firecracker.launch(&bench.spec, &Ledger::default()).await.unwrap();
    for record in machine.processes() {
        let process = hostkit::process::Process::open(record.id).unwrap();
        process.kill(hostkit::process::Signal::STOP).unwrap();
    }
    machine.kill().await.unwrap();
    assert_eq!(machine.exited().await.exit, Exit::Signal(9));
    assert_eq!(bench.sockets(), [""; 0]);
    assert_gone(&bench.spec.token);
}

#[tokio::test(flavor = "multi_thread")]
async fn failures_carry_firecrackers_words_and_leave_nothing() {
    let (Some(firecracker), Some(bench)) = (driver().await, bench("fail", "echo UP")) else {
        return;
    };
    let mut spec = bench.spec.clone();
    // A kernel whose head is right and whose segments are not.
    let damaged = spec.runtime_dir.join("damaged");
    let mut image = std::fs::read(&spec.boot.kernel).unwrap();
    image.truncate(8192);
    std::fs::write(&damaged, image).unwrap();
    spec.boot.kernel = damaged;
    let error = firecracker.launch(&spec, &Ledger::default()).await.unwrap_err();
    let LaunchError::Control {
        source: ControlError::Refused { request, message },
    } = &error
    else {
        panic!("{error}")
    };
    assert_eq!(request, "PUT /actions");
    assert!(message.to_lowercase().contains("kernel"), "{message}");
    assert_gone(&spec.token);
}
