//! Real machines under QEMU, emulated. Needs `qemu-system-x86_64` and `vhost-device-vsock` in PATH (or
//! BANGER_TEST_VHOST_DEVICE_VSOCK), a static busybox, and a kernel with PVH entry or a bzImage in BANGER_TEST_DEBIAN_KERNEL.

#![expect(clippy::unwrap_used, reason = "what cannot be prepared fails the test")]

use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::time::{Duration, Instant};

use banger_vmm::{
    Carrier, ControlError, HostVirtualization, LaunchError, Network, Passt, ProcessRole, Qemu, QemuPaths,
    RunState, Vmm, VmmKind, kill_processes,
};
use hostkit::process::Exit;

mod support;
use support::{Bench, Ledger, assert_gone};
use testkit::{file, program};

/// Says that it is up, then waits for nothing.
const IDLE: &str = "echo UP; while true; do /bin/busybox sleep 1000; done";

async fn driver() -> Option<Qemu> {
    driver_with(Passt::Off).await
}

async fn driver_with(passt: Passt) -> Option<Qemu> {
    let paths = QemuPaths {
        qemu: program("BANGER_TEST_QEMU", "qemu-system-x86_64")?,
        vhost_device_vsock: program("BANGER_TEST_VHOST_DEVICE_VSOCK", "vhost-device-vsock")?,
        passt,
    };
    let emulated = HostVirtualization::Unusable {
        reason: "test".to_owned(),
        fix: "none".to_owned(),
    };
    Some(Qemu::probe(&paths, &emulated).await.unwrap())
}

fn bench(name: &str, script: &str) -> Option<Bench> {
    Bench::new(name, file("BANGER_TEST_DEBIAN_KERNEL")?, 256, script)
}

#[tokio::test(flavor = "multi_thread")]
async fn boots_answers_and_is_killed() {
    let (Some(qemu), Some(mut bench)) = (driver().await, bench("boot", IDLE)) else {
        return;
    };
    bench.spec.network = Some(Network::User {
        mac: [0x52, 0x54, 0, 0, 0, 1],
    });
    bench.spec.vcpus = 2;
    let info = qemu.describe();
    assert_eq!(info.kind, VmmKind::Qemu);
    assert!(info.slow.is_some());
    eprintln!("{info:?}");
    // What a dead instance left is in nobody's way.
    for name in ["qmp.sock", "vhost.sock", "vsock.sock"] {
        drop(UnixListener::bind(bench.spec.runtime_dir.join(name)).unwrap());
    }
    std::fs::write(&bench.spec.console, "before\n").unwrap();

    let started = Instant::now();
    let ledger = Ledger::default();
    let machine = qemu.launch(&bench.spec, &ledger).await.unwrap();
    eprintln!("launch returned after {:?}", started.elapsed());
    assert_eq!(machine.control_alive().await.unwrap(), RunState::Running);
    machine.pause().await.unwrap();
    assert_eq!(machine.control_alive().await.unwrap(), RunState::Paused);
    machine.resume().await.unwrap();
    let console = bench.console(&machine, "UP").await;
    eprintln!("init ran after {:?}", started.elapsed());
    assert!(console.starts_with("before\n"), "appended");
    assert_eq!(machine.processes(), *ledger.0.lock().unwrap());
    // vhost-device-vsock removes its control socket once QEMU is connected.
    assert_eq!(bench.sockets(), ["qmp.sock", "vsock.sock"]);

    // Stopped processes are no obstacle.
    for record in machine.processes() {
        let process = hostkit::process::Process::open(record.id).unwrap();
        process.kill(hostkit::process::Signal::STOP).unwrap();
    }
    machine.kill().await.unwrap();
    machine.kill().await.unwrap();
    let exit = bench.ended(&machine).await;
    assert_eq!(exit.exit, Exit::Signal(9));
    assert_eq!(bench.sockets(), [""; 0]);
    assert_gone(&bench.spec.token);
}

/// Reads its disk, says how large it is, and says so again when it has changed.
const DISK: &str = "/bin/busybox mount -t devtmpfs dev /dev; /bin/busybox mount -t sysfs sys /sys
size() { /bin/busybox cat /sys/block/vda/size; }
/bin/busybox dd if=/dev/vda of=/dev/null bs=64k 2>/dev/null; before=$(size); echo BEFORE $before
while [ $(size) = $before ]; do /bin/busybox usleep 20000; done; echo AFTER $(size)
while true; do /bin/busybox sleep 1000; done";

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_grows_and_its_traffic_is_counted() {
    let modules = [
        "drivers/virtio/virtio_ring.ko",
        "drivers/virtio/virtio.ko",
        "drivers/virtio/virtio_pci_modern_dev.ko",
        "drivers/virtio/virtio_pci_legacy_dev.ko",
        "drivers/virtio/virtio_pci.ko",
        "drivers/block/virtio_blk.ko",
    ];
    let bench = file("BANGER_TEST_DEBIAN_KERNEL")
        .and_then(|kernel| Bench::with_modules("grow", kernel, 256, DISK, &modules));
    let (Some(qemu), Some(mut bench)) = (driver().await, bench) else {
        return;
    };
    bench.spec.disks[0].read_only = false;
    let machine = qemu.launch(&bench.spec, &Ledger::default()).await.unwrap();
    let before = machine.figures().await;
    assert!(before.resident > 0 && before.network.is_none(), "{before:?}");
    assert_eq!(machine.stopped_processes(), []);
    // The disk has 1 MiB; sizes in sectors.
    bench.console(&machine, "BEFORE 2048").await;
    let after = machine.figures().await;
    assert!(after.disk.in_bytes >= 1 << 20, "{after:?}");
    assert!(after.cpu > before.cpu, "{before:?} {after:?}");

    let file = std::fs::File::options()
        .write(true)
        .open(&bench.spec.disks[0].path)
        .unwrap();
    file.set_len(3 << 20).unwrap();
    machine.resize_disk("disk", 3 << 20).await.unwrap();
    bench.console(&machine, "AFTER 6144").await;
    let unknown = machine.resize_disk("other", 1 << 20).await.unwrap_err();
    assert!(matches!(unknown, ControlError::NoDisk { id } if id == "other"));

    // One that is stopped does not answer, and is waited for no longer than a second.
    for record in machine.processes() {
        let process = hostkit::process::Process::open(record.id).unwrap();
        process.kill(hostkit::process::Signal::STOP).unwrap();
    }
    let began = Instant::now();
    let stopped = machine.figures().await;
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    assert!(
        stopped.disk.in_bytes >= after.disk.in_bytes,
        "the last answer stands: {stopped:?}"
    );
    let mut roles = machine.stopped_processes();
    roles.sort();
    assert_eq!(roles, [ProcessRole::Vmm, ProcessRole::VsockDevice]);
    machine.kill().await.unwrap();
    let ended = machine.figures().await;
    assert_eq!((ended.resident, machine.stopped_processes()), (0, Vec::new()));
    assert_gone(&bench.spec.token);
}

#[test]
fn a_tap_carries_the_guests_packets() {
    support::a_tap_carries(async || {
        let kernel = file("BANGER_TEST_DEBIAN_KERNEL")?;
        let bench = Bench::with_modules("tap", kernel, 256, support::NETWORK_GUEST, &CARD)?;
        Some((driver().await?, bench))
    });
}

/// Modules of a network card, for [`Bench::with_modules`].
const CARD: [&str; 8] = [
    "drivers/virtio/virtio_ring.ko",
    "drivers/virtio/virtio.ko",
    "drivers/virtio/virtio_pci_modern_dev.ko",
    "drivers/virtio/virtio_pci_legacy_dev.ko",
    "drivers/virtio/virtio_pci.ko",
    "net/core/failover.ko",
    "drivers/net/net_failover.ko",
    "drivers/net/virtio_net.ko",
];

/// Asks a service of the host's network, and, first, where one of the host's loopback would be with QEMU's own network.
const OUTBOUND: &str = "/bin/busybox mount -t devtmpfs dev /dev; /bin/busybox mount -t sysfs sys /sys; /bin/busybox mount -t proc proc /proc
/bin/busybox ip addr add 10.0.2.15/24 dev eth0; /bin/busybox ip link set eth0 up
/bin/busybox ip route add default via 10.0.2.2
echo MTU $(/bin/busybox cat /sys/class/net/eth0/mtu)
echo LOOPBACK $(/bin/busybox nc -w 5 10.0.2.2 7778 </dev/null 2>&1)
echo OUTSIDE $(/bin/busybox nc -w 20 192.0.2.2 7777 </dev/null 2>&1)
while true; do /bin/busybox sleep 1000; done";

/// Runs a test with a driver and a guest of [`OUTBOUND`], in a network namespace with a default route.
fn with_a_way_out(name: &str, passt: Passt, test: impl AsyncFnOnce(Qemu, Bench) + Send) {
    let Some(ip) = program("BANGER_TEST_IP", "ip") else {
        return;
    };
    testkit::in_network_namespace_async(async || {
        for words in [
            "link add up0 type veth peer name up1",
            "addr add 192.0.2.2/24 dev up0",
            "link set up0 up",
            "link set up1 up",
            "route add default via 192.0.2.1",
        ] {
            let status = std::process::Command::new(&ip).args(words.split(' ')).status();
            assert!(status.unwrap().success(), "ip {words}");
        }
        for (address, says) in [("192.0.2.2:7777", "hello"), ("127.0.0.1:7778", "secret")] {
            let listener = std::net::TcpListener::bind(address).unwrap();
            std::thread::spawn(move || {
                for stream in listener.incoming() {
                    drop(std::io::Write::write_all(&mut stream.unwrap(), says.as_bytes()));
                }
            });
        }
        let bench = file("BANGER_TEST_DEBIAN_KERNEL")
            .and_then(|kernel| Bench::with_modules(name, kernel, 256, OUTBOUND, &CARD));
        let (Some(qemu), Some(mut bench)) = (driver_with(passt).await, bench) else {
            return;
        };
        let mac = [2, 0, 0, 0, 7, 9];
        bench.spec.network = Some(Network::User { mac });
        test(qemu, bench).await;
    });
}

#[test]
fn passt_ends_with_its_machine() {
    let Some(passt) = program("BANGER_TEST_PASST", "passt") else {
        return;
    };
    with_a_way_out("passtend", Passt::At(passt), async |qemu, bench| {
        let ledger = Ledger::default();
        let machine = qemu.launch(&bench.spec, &ledger).await.unwrap();
        let records = ledger.0.lock().unwrap().clone();
        kill_processes(&bench.spec.token, &records[2..]).await.unwrap();
        assert_eq!(bench.ended(&machine).await.role, ProcessRole::Vmm);
        assert_gone(&bench.spec.token);
    });
}

#[test]
fn without_a_passt_that_works_qemu_carries_them_itself() {
    let dir = tempfile::tempdir().unwrap();
    let broken = dir.path().join("passt");
    std::fs::write(&broken, "#!/bin/sh\necho no namespaces here >&2; exit 1\n").unwrap();
    std::fs::set_permissions(&broken, std::fs::Permissions::from_mode(0o755)).unwrap();
    with_a_way_out("slirp", Passt::At(broken), async |qemu, bench| {
        let ledger = Ledger::default();
        let machine = qemu.launch(&bench.spec, &ledger).await.unwrap();
        let network = machine.user_network().unwrap();
        assert_eq!(network.carrier, Carrier::Slirp);
        let note = network.note.unwrap();
        assert_eq!(note, "passt does not work here: no namespaces here");
        let records = machine.processes();
        assert_eq!(records.len(), 2, "{records:?}");
        bench.console(&machine, "OUTSIDE hello").await;
        // The ledger remembers the one that was given up as well.
        let all = ledger.0.lock().unwrap().clone();
        let machine = qemu.adopt(&bench.spec, &all).await.unwrap();
        assert_eq!(machine.user_network().unwrap().carrier, Carrier::Slirp);
        assert!(!machine.network_lost());
        machine.kill().await.unwrap();
        assert_gone(&bench.spec.token);
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reset_ends_the_machine() {
    let script = "echo GOING; /bin/busybox reboot -f";
    let (Some(qemu), Some(bench)) = (driver().await, bench("reset", script)) else {
        return;
    };
    let machine = qemu.launch(&bench.spec, &Ledger::default()).await.unwrap();
    bench.console(&machine, "GOING").await;
    let exit = bench.ended(&machine).await;
    assert_eq!(
        (exit.role, exit.exit),
        (ProcessRole::Vmm, Exit::Code(0)),
        "{exit}"
    );
    assert_eq!(exit.reason.as_deref(), Some("guest-reset"));
    assert_eq!(bench.sockets(), [""; 0]);
    assert_gone(&bench.spec.token);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_panic_ends_the_machine() {
    // Init must not end.
    let (Some(qemu), Some(bench)) = (driver().await, bench("panic", "echo DYING; exit 3")) else {
        return;
    };
    let machine = qemu.launch(&bench.spec, &Ledger::default()).await.unwrap();
    let exit = bench.ended(&machine).await;
    assert_eq!(exit.reason.as_deref(), Some("guest-reset"));
    let console = std::fs::read_to_string(&bench.spec.console).unwrap();
    assert!(
        console.contains("Kernel panic - not syncing: Attempted to kill init!"),
        "{console}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn adopted_by_another_daemon() {
    let (Some(qemu), Some(bench)) = (driver().await, bench("adopt", IDLE)) else {
        return;
    };
    let ledger = Ledger::default();
    // The first daemon: a runtime of its own, which ends with the machine running.
    let (spec, driver) = (bench.spec.clone(), qemu.clone());
    let records = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            drop(driver.launch(&spec, &ledger).await.unwrap());
        });
        ledger.0.into_inner().unwrap()
    })
    .join()
    .unwrap();

    let machine = qemu.adopt(&bench.spec, &records).await.unwrap();
    assert_eq!(machine.processes(), records);
    assert_eq!(machine.control_alive().await.unwrap(), RunState::Running);
    bench.console(&machine, "UP").await;
    // One of the two processes dies: the machine is over.
    let device = records
        .iter()
        .find(|record| record.role == ProcessRole::VsockDevice)
        .unwrap();
    kill_processes(&bench.spec.token, &[*device]).await.unwrap();
    let exit = bench.ended(&machine).await;
    assert_eq!(exit.role, ProcessRole::VsockDevice);
    assert_gone(&bench.spec.token);
    assert_eq!(bench.sockets(), [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn failures_carry_the_programs_words_and_leave_nothing() {
    let (Some(qemu), Some(bench)) = (driver().await, bench("fail", IDLE)) else {
        return;
    };
    // Another program holds the image for writing, in QEMU's own way of locking.
    let mut spec = bench.spec.clone();
    spec.disks[0].read_only = false;
    let holder = qemu.launch(&spec, &Ledger::default()).await.unwrap();
    let other = tempfile::tempdir().unwrap();
    let mut second = spec.clone();
    second.token.push_str("second");
    second.runtime_dir = other.path().to_owned();
    second.vsock.socket = other.path().join("vsock.sock");
    let error = qemu.launch(&second, &Ledger::default()).await.unwrap_err();
    let LaunchError::Exited {
        role: ProcessRole::Vmm,
        exit: Exit::Code(1),
        log,
    } = &error
    else {
        panic!("{error}")
    };
    assert!(log.to_string().contains("lock"), "{log}");
    assert_gone(&second.token);
    holder.kill().await.unwrap();

    let mut unreadable = bench.spec.clone();
    unreadable.boot.kernel = "/nonexistent".into();
    let error = qemu.launch(&unreadable, &Ledger::default()).await.unwrap_err();
    assert!(matches!(error, LaunchError::Spec { problems } if problems.len() == 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_launch_can_be_cancelled_at_any_moment() {
    let (Some(qemu), Some(bench)) = (driver().await, bench("cancel", IDLE)) else {
        return;
    };
    for delay in [0, 1, 3, 10, 30, 60, 100] {
        let ledger = Arc::new(Ledger::default());
        let launch = qemu.launch(&bench.spec, &*ledger);
        match tokio::time::timeout(Duration::from_millis(delay), launch).await {
            Err(_) => {}
            Ok(machine) => machine.unwrap().kill().await.unwrap(),
        }
        // What was spawned is killed at once and reaped soon after.
        let spawned = ledger.0.lock().unwrap().clone();
        kill_processes(&bench.spec.token, &spawned).await.unwrap();
        assert_gone(&bench.spec.token);
    }
}
