//! What the tests with real VMMs share: an initramfs with busybox and one script, a specification around it, a ledger,
//! and waiting for words on the console.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use banger_vmm::{
    Boot, Disk, Machine, MachineExit, MachineSpec, Network, ProcessLog, ProcessRecord, Vmm, Vsock,
};
use hostkit::link::Links;

/// How long a guest may take to say something: emulated, on a machine that compiles meanwhile.
pub(crate) const GUEST_PATIENCE: Duration = Duration::from_secs(120);

/// A directory with everything one machine needs.
pub(crate) struct Bench {
    dir: tempfile::TempDir,
    pub(crate) spec: MachineSpec,
}

impl Bench {
    /// `script` runs as the guest's init, with busybox at /bin/busybox and nothing mounted. Skips where there is no static
    /// busybox.
    pub(crate) fn new(name: &str, kernel: PathBuf, memory_mib: u32, script: &str) -> Option<Self> {
        Self::with_modules(name, kernel, memory_mib, script, &[])
    }

    /// Also loads modules of the kernel's, in this order, before the script: paths below the `kernel` directory of
    /// `lib/modules/VERSION`, which a Debian package unpacks beside the kernel's `boot`.
    pub(crate) fn with_modules(
        name: &str,
        kernel: PathBuf,
        memory_mib: u32,
        script: &str,
        modules: &[&str],
    ) -> Option<Self> {
        let busybox = testkit::program("BANGER_TEST_BUSYBOX", "busybox")?;
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let version = kernel.file_name()?.to_str()?.strip_prefix("vmlinuz-");
        let directory = version.map(|version| {
            let package = kernel.parent().and_then(Path::parent).unwrap_or(Path::new("/"));
            package.join("lib/modules").join(version).join("kernel")
        });
        let mut loaded = Vec::new();
        for module in modules {
            let file = directory.as_ref().map(|directory| directory.join(module));
            match file.filter(|file| file.is_file()) {
                Some(file) => loaded.push(file),
                None => return testkit::skip(&format!("{} has no module {module}", kernel.display())),
            }
        }
        std::fs::write(path("initramfs"), initramfs(&busybox, script, &loaded)).unwrap();
        std::fs::write(path("disk"), vec![0; 1 << 20]).unwrap();
        let spec = MachineSpec {
            // Of this run alone, so that runs beside each other and leftovers do not meet.
            token: format!("bgrtest{name}{}", std::process::id()),
            vcpus: 1,
            memory_mib,
            boot: Boot {
                kernel,
                initramfs: path("initramfs"),
                args: vec!["banger.test=1".to_owned()],
            },
            disks: vec![Disk {
                id: "disk".to_owned(),
                path: path("disk"),
                read_only: true,
            }],
            vsock: Vsock {
                guest_cid: 3,
                socket: path("vsock.sock"),
            },
            network: None,
            console: path("console.log"),
            runtime_dir: dir.path().to_owned(),
            log: path("vmm.log"),
            metrics: path("metrics.json"),
        };
        Some(Self { dir, spec })
    }

    /// Waits until the console holds `words`, and returns all of it. Fails when the machine ends before.
    pub(crate) async fn console(&self, machine: &Arc<dyn Machine>, words: &str) -> String {
        let read = || std::fs::read_to_string(&self.spec.console).unwrap_or_default();
        let seen = async {
            loop {
                let text = read();
                if text.contains(words) {
                    return text;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::select! {
            text = seen => text,
            exit = machine.exited() => {
                let text = read();
                assert!(text.contains(words), "{exit} before {words:?}; console: {text}; log: {}", self.log());
                text
            }
            () = tokio::time::sleep(GUEST_PATIENCE) => panic!("no {words:?}; console: {}; log: {}", read(), self.log()),
        }
    }

    /// Waits until the machine has ended.
    pub(crate) async fn ended(&self, machine: &Arc<dyn Machine>) -> MachineExit {
        match tokio::time::timeout(GUEST_PATIENCE, machine.exited()).await {
            Ok(exit) => exit,
            Err(_) => panic!(
                "still running; console: {}; log: {}",
                std::fs::read_to_string(&self.spec.console).unwrap_or_default(),
                self.log()
            ),
        }
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(&self.spec.log).unwrap_or_default()
    }

    /// Names of the sockets that are there, in order.
    pub(crate) fn sockets(&self) -> Vec<String> {
        let names = std::fs::read_dir(self.dir.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name());
        let mut names: Vec<_> = names
            .map(|name| name.into_string().unwrap())
            .filter(|name| name.ends_with(".sock"))
            .collect();
        names.sort();
        names
    }
}

impl Drop for Bench {
    /// A test that failed leaves its machine.
    fn drop(&mut self) {
        for (token, record) in banger_vmm::find_processes().unwrap_or_default() {
            if token == self.spec.token
                && let Some(pid) = i32::try_from(record.id.pid)
                    .ok()
                    .and_then(rustix::process::Pid::from_raw)
            {
                rustix::process::kill_process(pid, rustix::process::Signal::KILL).ok();
            }
        }
    }
}

/// No process of this machine is left.
pub(crate) fn assert_gone(token: &str) {
    let left: Vec<_> = banger_vmm::find_processes()
        .unwrap()
        .into_iter()
        .filter(|(found, _)| found == token)
        .collect();
    assert!(left.is_empty(), "{left:?}");
}

/// A ledger in memory.
#[derive(Default)]
pub(crate) struct Ledger(pub(crate) Mutex<Vec<ProcessRecord>>);

#[async_trait::async_trait]
impl ProcessLog for Ledger {
    async fn spawned(&self, record: &ProcessRecord) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        self.0.lock().unwrap().push(*record);
        Ok(())
    }
}

/// A newc archive (Documentation/driver-api/early-userspace/buffer-format.rst) of a console, busybox, modules and
/// `/init`.
fn initramfs(busybox: &Path, script: &str, modules: &[PathBuf]) -> Vec<u8> {
    let mut archive = Vec::new();
    let mut add = |name: &str, mode: u32, device: (u32, u32), contents: &[u8]| {
        let mut header = String::from("070701");
        let size = u32::try_from(contents.len()).unwrap();
        let name_size = u32::try_from(name.len() + 1).unwrap();
        for field in [0, mode, 0, 0, 1, 0, size, 0, 0, device.0, device.1, name_size, 0] {
            write!(header, "{field:08x}").unwrap();
        }
        archive.extend(header.as_bytes());
        archive.extend(name.as_bytes());
        archive.push(0);
        archive.resize(archive.len().next_multiple_of(4), 0);
        archive.extend(contents);
        archive.resize(archive.len().next_multiple_of(4), 0);
    };
    for dir in ["bin", "dev", "proc", "sys"] {
        add(dir, 0o040_755, (0, 0), b"");
    }
    add("dev/console", 0o020_600, (5, 1), b"");
    add("bin/busybox", 0o100_755, (0, 0), &std::fs::read(busybox).unwrap());
    let mut init = String::from("#!/bin/busybox sh\n");
    for (number, module) in modules.iter().enumerate() {
        add(
            &format!("{number}.ko"),
            0o100_644,
            (0, 0),
            &std::fs::read(module).unwrap(),
        );
        writeln!(init, "/bin/busybox insmod /{number}.ko").unwrap();
    }
    init.push_str(script);
    init.push('\n');
    add("init", 0o100_755, (0, 0), init.as_bytes());
    add("TRAILER!!!", 0, (0, 0), b"");
    archive
}

/// The guest's half of [`a_tap_carries`]: says its card's address, asks the host for an echo, and answers from then on.
pub(crate) const NETWORK_GUEST: &str =
    "/bin/busybox mount -t sysfs sys /sys; /bin/busybox mount -t proc proc /proc
/bin/busybox ip addr add 10.7.0.2/24 dev eth0; /bin/busybox ip link set eth0 up
echo MAC $(/bin/busybox cat /sys/class/net/eth0/address)
/bin/busybox ping -c 1 -w 60 -s 1000 10.7.0.1 && echo ECHOED
while true; do /bin/busybox sleep 1000; done";

/// Starts a guest of [`NETWORK_GUEST`] on a tap in a bridge, both in a network namespace of their own: packets go both
/// ways, the card has its address, the traffic is counted and goes on being counted by the next daemon.
pub(crate) fn a_tap_carries<V: Vmm>(prepare: impl AsyncFnOnce() -> Option<(V, Bench)> + Send) {
    let Some(busybox) = testkit::program("BANGER_TEST_BUSYBOX", "busybox") else {
        return;
    };
    testkit::in_network_namespace_async(async || {
        let Some((driver, mut bench)) = prepare().await else {
            return;
        };
        let links = Links::connect().unwrap();
        let bridge = links.make_bridge("bgr0", "").await.unwrap();
        links
            .add_address(bridge, "10.7.0.1/24".parse().unwrap())
            .await
            .unwrap();
        links.set_up(bridge).await.unwrap();
        hostkit::tap::make("bgr0t1", None).unwrap();
        let tap = links.get("bgr0t1").await.unwrap().unwrap().index;
        links.enslave(tap, bridge, true).await.unwrap();
        links.set_up(tap).await.unwrap();
        bench.spec.network = Some(Network::Tap {
            name: "bgr0t1".to_owned(),
            mac: [2, 0, 0, 0, 7, 9],
        });

        let ledger = Ledger::default();
        let machine = driver.launch(&bench.spec, &ledger).await.unwrap();
        assert!(links.get("bgr0t1").await.unwrap().unwrap().carrier);
        let console = bench.console(&machine, "ECHOED").await;
        assert!(console.contains("MAC 02:00:00:00:07:09"), "{console}");
        let ping = tokio::process::Command::new(busybox)
            .args(["ping", "-c", "3", "-w", "30", "10.7.0.2"])
            .status();
        assert!(ping.await.unwrap().success());

        let figures = machine.figures().await.network.unwrap();
        for bytes in [figures.in_bytes, figures.out_bytes] {
            assert!((1000..100_000).contains(&bytes), "{figures:?}");
        }
        let records = ledger.0.lock().unwrap().clone();
        drop(machine);
        let machine = driver.adopt(&bench.spec, &records).await.unwrap();
        let adopted = machine.figures().await.network.unwrap();
        assert!(adopted.in_bytes >= figures.in_bytes && adopted.out_bytes >= figures.out_bytes);
        machine.kill().await.unwrap();
        bench.ended(&machine).await;
        let tap = links.get("bgr0t1").await.unwrap().unwrap();
        assert!(!tap.carrier && tap.master == Some(bridge), "it stays: {tap:?}");
        hostkit::tap::remove("bgr0t1").unwrap();
        assert_gone(&bench.spec.token);
    });
}
