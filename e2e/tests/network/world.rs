//! The two namespaces, and what serves in them.

use std::fs::File;
use std::io::Write as _;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use e2e::{Banger, Daemon, Guest, Settings, Testbed, wait_for};
use rustix::mount::{MountPropagationFlags, mount_bind, mount_change};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space};
use serde_json::Value;

/// Everything serves at this port, and answers with the address of who asks.
pub(crate) const PORT: u16 = 7777;
/// The host under test, on its own network.
pub(crate) const HOST: &str = "192.0.2.2";
/// Its neighbour there.
pub(crate) const LAN: &str = "192.0.2.1";
/// What is beyond.
pub(crate) const INTERNET: &str = "203.0.113.5";
/// The bridge.
pub(crate) const GATEWAY: &str = "10.209.0.1";

/// The configuration of a daemon with a bridge.
pub(crate) const CONFIG: &str = "[vmm]\nchoice = \"qemu\"\n[network]\nmode = \"bridge\"\npool = 2\n";

/// A test that waits as long for what shall be has failed.
const DEADLINE: Duration = Duration::from_secs(60);

/// How long a guest waits for an answer, in seconds. Doubled when one that is due has not come within it: an emulated
/// guest may be slow, and what is then seen to be closed has had the time in which what is open answers.
static WAIT: AtomicU64 = AtomicU64::new(2);
const LONGEST_WAIT: u64 = 32;

/// Both namespaces, which end with this.
#[derive(Debug)]
pub(crate) struct World {
    router: Child,
}

impl World {
    /// What guests are made of, and [`Self::around`] it.
    pub(crate) fn enter() -> Option<(Testbed, Self)> {
        let bed = Testbed::find()?;
        let world = Self::around(&bed)?;
        Some((bed, world))
    }

    /// Makes the namespaces and puts this thread, and what it starts from here on, into that of the host. It has mounts of
    /// its own as well.
    pub(crate) fn around(bed: &Testbed) -> Option<Self> {
        if !e2e::testbed::is_root() {
            e2e::testbed::skip("network namespaces need root");
            return None;
        }
        for program in ["ip", "nft", "unshare"] {
            if e2e::testbed::find_program(program).is_none() {
                e2e::testbed::require(&format!("{program} is missing: make setup"));
                return None;
            }
        }
        // Made while there is a way to the packages that images are made of.
        drop(Daemon::ready(bed, Settings::prepared()));
        let flags = UnshareFlags::NEWNET | UnshareFlags::NEWNS;
        // SAFETY: of the flags that can be asked for, only sharing of file descriptors is a danger to others; these are none.
        unsafe { rustix::thread::unshare_unsafe(flags) }.expect("make namespaces");
        mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
            .expect("mounts of its own");
        let router = Command::new("unshare")
            .args(["--net", "sleep", "infinity"])
            .stdin(Stdio::null())
            .spawn()
            .expect("run unshare");
        let world = Self { router };
        let ours = std::fs::read_link("/proc/thread-self/ns/net").expect("look at a namespace");
        let apart = wait_for(DEADLINE, || {
            let its = std::fs::read_link(world.router_namespace()).ok()?;
            (its != ours).then_some(())
        });
        apart.expect("a namespace for the router");
        let pid = world.router.id();
        sh(&format!(
            "ip link set lo up; ip link add uplink type veth peer name lan0 netns {pid}; ip addr add {HOST}/24 dev uplink; \
             ip link set uplink up"
        ));
        world.router_sh(&format!(
            "ip link set lo up; ip addr add {LAN}/24 dev lan0; ip link set lan0 up; ip addr add {INTERNET}/24 dev lo"
        ));
        sh(&format!("ip route add default via {LAN}"));
        serve(None);
        serve(Some(world.router_namespace()));
        Some(world)
    }

    fn router_namespace(&self) -> String {
        format!("/proc/{}/ns/net", self.router.id())
    }

    /// A process of the router's.
    pub(crate) fn router(&self) -> u32 {
        self.router.id()
    }

    /// A shell script at the router.
    pub(crate) fn router_sh(&self, script: &str) -> String {
        sh(&format!(
            "nsenter --net={} sh -euc '{script}'",
            self.router_namespace()
        ))
    }
}

/// Takes a program away from this thread and what it starts.
pub(crate) fn hide(program: &Path) {
    mount_bind("/dev/null", program).expect("nothing over a program");
}

impl Drop for World {
    fn drop(&mut self) {
        drop(self.router.kill());
        drop(self.router.wait());
    }
}

/// A shell script in the host's namespace that must succeed; returns its standard output.
#[track_caller]
pub(crate) fn sh(script: &str) -> String {
    let script = format!("PATH=$PATH:/usr/sbin:/sbin; {script}");
    Banger::new("sh")
        .args(["-euc", &script])
        .ok()
        .trim_end()
        .to_owned()
}

/// Answers every connection with the peer's address; in the namespace given, else in this thread's. The thread ends with the
/// process.
fn serve(namespace: Option<String>) {
    let own = File::open("/proc/thread-self/ns/net").expect("open a namespace");
    let (ready, wait) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let file = namespace.map_or(own, |path| File::open(path).expect("open a namespace"));
        let network = Some(LinkNameSpaceType::Network);
        move_into_link_name_space(std::os::fd::AsFd::as_fd(&file), network).expect("enter a namespace");
        let listener = TcpListener::bind(("0.0.0.0", PORT)).expect("listen");
        ready.send(()).expect("a waiting test");
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { continue };
            let peer = stream.peer_addr().map(|peer| peer.ip().to_string());
            // Whoever asks may be gone.
            drop(writeln!(stream, "hello {}", peer.unwrap_or_default()));
        }
    });
    wait.recv().expect("a server");
}

/// Waits for what is due in a guest or on the host; what it gives.
#[track_caller]
pub(crate) fn eventually<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let found = wait_for(DEADLINE, || {
        let (began, wait) = (Instant::now(), WAIT.load(Ordering::Relaxed));
        let found = look();
        if found.is_none() && began.elapsed() >= Duration::from_secs(wait) {
            WAIT.store((2 * wait).min(LONGEST_WAIT), Ordering::Relaxed);
        }
        found
    });
    found.unwrap_or_else(|| panic!("never: {what}"))
}

/// What the service at an address says to a guest, which is to reach it.
#[track_caller]
pub(crate) fn answer(guest: &Guest<'_>, address: &str) -> String {
    eventually(&format!("an answer of {address}"), || ask(guest, address))
}

/// The same, asked once; `None` where it is not reached. Tells that something is closed after an [`answer`] from elsewhere
/// or from before.
pub(crate) fn ask(guest: &Guest<'_>, address: &str) -> Option<String> {
    let wait = WAIT.load(Ordering::Relaxed);
    let script = format!("nc -w {wait} {address} {PORT} </dev/null 2>/dev/null || true");
    let said = guest.sh(&script);
    said.strip_prefix("hello ").map(ToOwned::to_owned)
}

/// A guest is to get an answer to its pings.
#[track_caller]
pub(crate) fn reaches(guest: &Guest<'_>, address: &str) {
    eventually(&format!("a ping of {address}"), || {
        pings(guest, address).then_some(())
    });
}

/// Whether a guest gets an answer to one of three pings: the first may be spent on a neighbour that was sought in vain
/// a moment ago. Tells that something is closed after it [`reaches`] something else, or this before.
pub(crate) fn pings(guest: &Guest<'_>, address: &str) -> bool {
    let wait = WAIT.load(Ordering::Relaxed);
    guest.sh(&format!(
        "ping -c 3 -W {wait} {address} >/dev/null 2>&1 && echo yes || echo no"
    )) == "yes"
}

/// The host is to get an answer to its pings.
#[track_caller]
pub(crate) fn host_reaches(address: &str) {
    let ping = || Banger::new("busybox").args(["ping", "-c", "1", "-W", "5", address]);
    eventually(&format!("a ping of {address} from the host"), || {
        (ping().run().code() == 0).then_some(())
    });
}

/// Whether the bridge tells a guest that address of a name.
pub(crate) fn resolves(guest: &Guest<'_>, name: &str, address: &str) -> bool {
    let said = guest.sh(&format!("nslookup {name} {GATEWAY} 2>&1 || true"));
    said.contains(address)
}

/// Interfaces, rules and settings of Banger's that the host has.
pub(crate) fn objects() -> Vec<String> {
    let links = sh("ip -o link | sed -n 's/^[0-9]*: \\(bgr[^:@]*\\).*/\\1/p'");
    let tables = sh("nft list tables");
    let forward = sh("cat /proc/sys/net/ipv4/ip_forward");
    let mut all: Vec<String> = links
        .lines()
        .chain(tables.lines())
        .map(ToOwned::to_owned)
        .collect();
    all.extend((forward == "1").then(|| "ip_forward".to_owned()));
    all
}

/// Waits until the host has exactly as many taps.
#[track_caller]
pub(crate) fn wait_taps(count: usize) {
    let taps = || objects().iter().filter(|name| name.starts_with("bgr0t")).count();
    let there = wait_for(DEADLINE, || (taps() == count).then_some(()));
    assert!(there.is_some(), "{count} taps were to be: {:?}", objects());
}

/// What `net status` says.
pub(crate) fn status(daemon: &Daemon) -> Value {
    daemon.banger(["net", "status", "--output", "json"]).json()
}

/// What doctor says of a part of the network: state, reason and fix of each check of that name.
pub(crate) fn checks(daemon: &Daemon, name: &str) -> Vec<(String, String, String)> {
    // Its exit code is of all checks, also of those that are nothing to us.
    let said = daemon.banger(["doctor", "--output", "json"]).run().out();
    let said: Value = serde_json::from_str(&said).expect("JSON");
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let checks = said["checks"].as_array().expect("checks").iter();
    checks
        .filter(|check| check["group"] == "network" && check["name"] == name)
        .map(|check| (text(&check["state"]), text(&check["reason"]), text(&check["fix"])))
        .collect()
}
