//! How the host comes to ask the DNS server for machines' names: systemd-resolved is told to, for the bridge.
//!
//! What resolved is told it forgets when it restarts, and it may come up long after us; so one task stays at it for as
//! long as the bridge is there: it tells it at once, each time that resolved starts, and again after a while where the
//! message bus cannot be reached. An orderly end takes it back. After a daemon's death resolved goes on asking a server
//! that is not there, for these names only, until the next daemon is; the bridge's removal makes it forget them.

use std::time::Duration;

use hostkit::resolved::{Resolved, ResolvedError, Routing};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::lookup::ZONE;
use crate::error::chain;
use crate::net::subnet::Subnet;

/// How long to wait for a message bus that is not there. Where there is none there will hardly be one.
const PATIENCE: Duration = Duration::from_secs(60);

/// How many reverse zones may be routed for one network.
const REVERSE_ZONES: u32 = 16;

/// Whether the host asks us.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum State {
    /// Not known yet.
    Asking,
    /// resolved asks us for these domains.
    Routed {
        /// Without a dot at the end.
        domains: Vec<String>,
    },
    /// resolved does not run; it is told when it does.
    NotRunning,
    /// It cannot be told, in words.
    Failed(String),
}

/// Keeps resolved informed until it is stopped, or dropped.
#[derive(Debug)]
pub(crate) struct HostNames {
    interface: u32,
    state: watch::Receiver<State>,
    task: JoinHandle<()>,
}

impl HostNames {
    /// For the bridge, which is up.
    pub(crate) fn start(interface: u32, subnet: Subnet) -> Self {
        let (now, state) = watch::channel(State::Asking);
        let routing = Routing {
            server: subnet.gateway(),
            domains: domains(subnet),
        };
        let task = tokio::spawn(async move {
            loop {
                // It ends where the bus does.
                let gone = keep(interface, &routing, &now).await;
                now.send_replace(State::Failed(chain(&gone)));
                tokio::time::sleep(PATIENCE).await;
            }
        });
        Self {
            interface,
            state,
            task,
        }
    }

    /// Whether the host asks us now.
    pub(crate) fn state(&self) -> State {
        self.state.borrow().clone()
    }

    /// Takes it back. What fails is said, and lasts as long as the bridge.
    pub(crate) async fn stop(self) {
        self.task.abort();
        let routed = match self.state() {
            State::Routed { .. } => true,
            // It was told at least once where this says anything, but perhaps only in part.
            State::Failed(_) => true,
            State::Asking | State::NotRunning => false,
        };
        if !routed {
            return;
        }
        let reverted = async { Resolved::connect(None).await?.revert(self.interface).await };
        if let Err(e) = reverted.await {
            tracing::warn!(
                error = chain(&e),
                "systemd-resolved still asks for machines' names"
            );
        }
    }
}

impl Drop for HostNames {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Tells resolved whenever it starts, until the bus goes away; returns how.
async fn keep(interface: u32, routing: &Routing, now: &watch::Sender<State>) -> ResolvedError {
    let kept = async {
        let resolved = Resolved::connect(None).await?;
        // First, so that no start is missed between the two.
        let mut starts = resolved.starts().await?;
        loop {
            let told = resolved.route(interface, routing).await;
            let state = match told {
                Ok(()) => State::Routed {
                    domains: routing.domains.clone(),
                },
                Err(ResolvedError::NotRunning) => State::NotRunning,
                Err(gone @ ResolvedError::NoBus { .. }) => return Err(gone),
                Err(e @ (ResolvedError::Denied { .. } | ResolvedError::Failed { .. })) => {
                    tracing::warn!(error = chain(&e), "the host does not resolve machines' names");
                    State::Failed(chain(&e))
                }
            };
            now.send_replace(state);
            if starts.next().await.is_none() {
                return Err(ResolvedError::NoBus {
                    words: "it has gone away".to_owned(),
                });
            }
        }
    };
    let kept: Result<std::convert::Infallible, ResolvedError> = kept.await;
    match kept {
        Err(e) => e,
        Ok(never) => match never {},
    }
}

/// What resolved is to ask us for: the zone, and the reverse zones of the network, which are cut at whole octets.
fn domains(subnet: Subnet) -> Vec<String> {
    let mut domains = vec![ZONE.to_owned()];
    let whole = usize::from(subnet.prefix().div_ceil(8));
    let count = 1_u32 << (whole * 8 - usize::from(subnet.prefix()));
    // A network that is cut so that there are more has names all the same, which is what people ask for.
    if count <= REVERSE_ZONES {
        let step = 1_u32 << (32 - 8 * whole);
        for index in 0..count {
            let first = std::net::Ipv4Addr::from_bits(subnet.network().to_bits() + index * step);
            let octets = first.octets();
            let labels: Vec<String> = octets[..whole].iter().rev().map(u8::to_string).collect();
            domains.push(format!("{}.in-addr.arpa", labels.join(".")));
        }
    }
    domains
}

/// Whether programs on a host with these two files ask resolved: through its stub (systemd-resolved.service(8)), or by
/// its module for libc (nss-resolve(8)).
pub(crate) fn host_asks_resolved(resolv_conf: &str, nsswitch: &str) -> bool {
    let words = |line: &str, first: &str| -> Vec<String> {
        let mut words = line
            .split('#')
            .next()
            .unwrap_or_default()
            .split_ascii_whitespace();
        match words.next() == Some(first) {
            true => words.map(str::to_owned).collect(),
            false => Vec::new(),
        }
    };
    let stub = |line: &str| {
        let server = words(line, "nameserver");
        server
            .first()
            .is_some_and(|s| s == "127.0.0.53" || s == "127.0.0.54")
    };
    resolv_conf.lines().any(stub)
        || nsswitch
            .lines()
            .any(|line| words(line, "hosts:").iter().any(|w| w == "resolve"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reverse_zones_are_those_of_whole_octets() {
        let of = |text: &str| domains(text.parse().unwrap());
        let default = of("10.209.0.0/20");
        assert_eq!(default.len(), 17);
        assert_eq!(default[0], "vm");
        assert_eq!(default[1], "0.209.10.in-addr.arpa");
        assert_eq!(default[16], "15.209.10.in-addr.arpa");
        assert_eq!(of("192.168.7.0/24"), ["vm", "7.168.192.in-addr.arpa"]);
        assert_eq!(of("172.16.0.0/12").len(), 17);
        assert_eq!(of("10.0.0.0/8"), ["vm", "10.in-addr.arpa"]);
        // Cut into thirty-two.
        assert_eq!(of("10.8.0.0/19"), ["vm"]);
        let small = of("192.168.7.8/29");
        assert_eq!((small.len(), &*small[8]), (9, "15.7.168.192.in-addr.arpa"));
    }

    #[test]
    fn a_host_asks_resolved_by_its_stub_or_by_libcs_module() {
        assert!(host_asks_resolved("nameserver 127.0.0.53\n", ""));
        assert!(host_asks_resolved(
            "",
            "hosts: files resolve [!UNAVAIL=return] dns\n"
        ));
        assert!(!host_asks_resolved(
            "#nameserver 127.0.0.53\nnameserver 192.0.2.1\n",
            "hosts: files dns # resolve\n"
        ));
    }

    /// The whole way: resolved, our server, an answer on the host.
    #[test]
    fn the_host_resolves_names_also_after_resolved_has_restarted() {
        use crate::net::dns::server::Server;
        use crate::net::dns::upstreams::Upstreams;
        use crate::net::names::{Named, Names};

        testkit::in_network_namespace(|| {
            let Some(mut resolver) = testkit::Resolver::start() else {
                return;
            };
            for arguments in [
                "link add bgr0 type bridge",
                "addr add 10.209.0.1/20 dev bgr0",
                "link set bgr0 up",
                // resolved asks nobody on a link without a carrier.
                "link add bgr0t0 type veth peer name peer",
                "link set bgr0t0 master bgr0 up",
                "link set peer up",
            ] {
                let status = std::process::Command::new("ip")
                    .args(arguments.split(' '))
                    .status();
                assert!(status.expect("ip").success(), "{arguments}");
            }
            // The bus that the daemon uses is the system's.
            let index = std::fs::read_to_string("/sys/class/net/bgr0/ifindex").expect("an interface");
            let index = index.trim().parse().expect("a number");
            // Asking for a name waits for an answer of ours, so the two need threads of their own.
            let runtime = tokio::runtime::Builder::new_multi_thread()
                .worker_threads(2)
                .enable_all()
                .build()
                .expect("a runtime");
            let names = Names::new(Subnet::DEFAULT);
            names.publish(vec![Named {
                name: "dev".to_owned(),
                address: std::net::Ipv4Addr::new(10, 209, 0, 2),
                guests: false,
                out: true,
            }]);
            let (server, host) = runtime.block_on(async {
                let address = std::net::SocketAddrV4::new(Subnet::DEFAULT.gateway(), 53);
                let upstreams = Upstreams::new(std::path::Path::new("/nonexistent"), Subnet::DEFAULT);
                let server = Server::start(address, names.subscribe(), upstreams).expect("a server");
                (server, HostNames::start(index, Subnet::DEFAULT))
            });
            let mut state = host.state.clone();
            let mut becomes = |wanted: fn(&State) -> bool| {
                let waiting =
                    async { tokio::time::timeout(Duration::from_secs(20), state.wait_for(wanted)).await };
                runtime
                    .block_on(waiting)
                    .expect("in time")
                    .expect("a state")
                    .clone()
            };
            becomes(|state| matches!(state, State::Routed { .. }));
            let resolves = |resolver: &testkit::Resolver, question: &str| {
                let output = resolver.resolvectl(&["query", "--cache=no", "--legend=no", question]);
                String::from_utf8_lossy(&output.stdout).into_owned()
            };
            let resolves_soon = |resolver: &testkit::Resolver| {
                let begun = std::time::Instant::now();
                while !resolves(resolver, "dev.vm").contains("10.209.0.2") {
                    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", host.state());
                }
            };
            // The kernel takes a moment to say that the bridge has a carrier.
            resolves_soon(&resolver);
            let answer = resolves(&resolver, "10.209.0.2");
            assert!(answer.contains("dev.vm"), "{answer}");
            assert_eq!(resolves(&resolver, "nobody.vm"), "");

            resolver.kill();
            resolver.run();
            resolves_soon(&resolver);

            runtime.block_on(host.stop());
            let shown = resolver.resolvectl(&["status", "bgr0", "--no-pager"]).stdout;
            assert!(!String::from_utf8_lossy(&shown).contains("10.209.0.1"));
            drop(server);
        });
    }
}
