//! Where names are asked for: the server and the host's routing to it, there while the bridge is.
//!
//! One task follows the bridge. What could not be begun is said ([`Desk::standing`]) and tried again.

use std::io::ErrorKind;
use std::net::{SocketAddr, SocketAddrV4};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hostkit::sockets::{self, Protocol};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::routing::{HostNames, State};
use super::server::{Count, Server};
use super::upstreams::Upstreams;
use crate::net::Bridge;
use crate::net::names::Zone;

/// DNS's port (RFC 1035, 4.2).
const PORT: u16 = 53;

/// The host's own servers.
const RESOLV_CONF: &str = "/etc/resolv.conf";

/// Between two attempts to begin.
const AGAIN: Duration = Duration::from_secs(5);

/// How long the end may take: a message bus that does not answer is not waited for longer.
const END: Duration = Duration::from_secs(5);

/// How it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Standing {
    /// Where names are served; `None`: nowhere.
    pub(crate) address: Option<SocketAddr>,
    /// Why not, where there is a bridge.
    pub(crate) problem: Option<String>,
    /// What was served since it began.
    pub(crate) count: Count,
    /// Whom the rest is asked of.
    pub(crate) upstreams: Vec<SocketAddr>,
    /// Whether the host asks.
    pub(crate) host: State,
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Desk {
    shared: Arc<Mutex<Shared>>,
    task: Mutex<Option<JoinHandle<()>>>,
}

#[derive(Debug, Default)]
struct Shared {
    running: Option<Running>,
    problem: Option<String>,
}

#[derive(Debug)]
struct Running {
    bridge: Bridge,
    server: Server,
    host: HostNames,
}

impl Desk {
    /// Begins to follow the bridge.
    pub(crate) fn open(&self, bridge: watch::Receiver<Option<Bridge>>, zone: watch::Receiver<Arc<Zone>>) {
        let task = tokio::spawn(follow(Arc::clone(&self.shared), bridge, zone));
        *self.task.lock().unwrap_or_else(PoisonError::into_inner) = Some(task);
    }

    /// Ends in order: the host asks no more.
    pub(crate) async fn close(&self) {
        let task = self.task.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(task) = task {
            task.abort();
            drop(task.await);
        }
        let running = lock(&self.shared).running.take();
        if let Some(running) = running
            && tokio::time::timeout(END, running.host.stop()).await.is_err()
        {
            tracing::warn!("the host's resolver did not take the end of machines' names in time");
        }
    }

    pub(crate) fn standing(&self) -> Standing {
        let shared = lock(&self.shared);
        let running = shared.running.as_ref();
        Standing {
            address: running.map(|r| r.server.address()),
            problem: shared.problem.clone(),
            count: running.map(|r| r.server.count()).unwrap_or_default(),
            upstreams: running.map(|r| r.server.upstreams().to_vec()).unwrap_or_default(),
            host: running.map_or(State::Asking, |r| r.host.state()),
        }
    }
}

fn lock(shared: &Mutex<Shared>) -> MutexGuard<'_, Shared> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn follow(
    shared: Arc<Mutex<Shared>>,
    mut bridge: watch::Receiver<Option<Bridge>>,
    zone: watch::Receiver<Arc<Zone>>,
) {
    loop {
        let wanted = bridge.borrow_and_update().clone();
        let former = {
            let mut shared = lock(&shared);
            let same = shared.running.as_ref().map(|r| &r.bridge) == wanted.as_ref();
            if same { None } else { shared.running.take() }
        };
        if let Some(former) = former {
            // Of a bridge that is gone, with what the resolver knew of it.
            former.host.stop().await;
            former.server.stop().await;
        }
        let runs = lock(&shared).running.is_some();
        let (running, problem) = match wanted {
            Some(bridge) if !runs => match begin(bridge, zone.clone()).await {
                Ok(running) => (Some(running), None),
                Err(problem) => (None, Some(problem)),
            },
            Some(_) | None => (None, None),
        };
        let failed = problem.is_some();
        {
            let mut shared = lock(&shared);
            if let Some(problem) = problem.as_ref().filter(|p| shared.problem.as_ref() != Some(p)) {
                tracing::error!(problem, "machines' names are not served");
            }
            shared.problem = problem;
            if let Some(running) = running {
                shared.running = Some(running);
            }
        }
        tokio::select! {
            changed = bridge.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(AGAIN), if failed => {}
        }
    }
}

async fn begin(bridge: Bridge, zone: watch::Receiver<Arc<Zone>>) -> Result<Running, String> {
    let subnet = zone.borrow().subnet;
    let upstreams = Upstreams::new(Path::new(RESOLV_CONF), subnet);
    let address = SocketAddrV4::new(bridge.address, PORT);
    let server = match Server::start(address, zone, upstreams) {
        Ok(server) => server,
        Err(e) if e.kind() == ErrorKind::AddrInUse => {
            let look = move || {
                let on = |protocol| sockets::holder(protocol, address.into());
                on(Protocol::Udp).or_else(|| on(Protocol::Tcp))
            };
            let holder = tokio::task::spawn_blocking(look).await.ok().flatten();
            let holder = holder.map_or_else(
                || "another program".to_owned(),
                |holder| format!("{} (process {})", holder.name, holder.pid),
            );
            return Err(format!(
                "{holder} serves DNS on {address} or on all of the host's addresses"
            ));
        }
        Err(e) => return Err(format!("DNS cannot be served on {address}: {e}")),
    };
    let host = HostNames::start(bridge.index, subnet);
    Ok(Running { bridge, server, host })
}
