//! The way into a guest: a client of its agent, for as long as it runs; beside it the keys of [`ssh`].

pub mod ssh;

use banger_agent_api::AgentClient;

use crate::error::Error;
use crate::vm::task::Handle;

/// The client of a running machine's agent. The machine may end at any time; calls then fail with what the protocol says.
pub(crate) fn client(handle: &Handle) -> Result<AgentClient, Error> {
    let view = handle.view.borrow();
    view.guest
        .clone()
        .ok_or_else(|| Error::NotRunning { vm: handle.name() })
}

/// An answer to a ping.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ping {
    /// Machine's name.
    pub vm: String,
    /// Round trip.
    pub latency: std::time::Duration,
    /// Agent's version.
    pub agent_version: String,
    /// Since the guest's kernel started.
    pub uptime: std::time::Duration,
}
