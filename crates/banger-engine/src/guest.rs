//! The way into a guest: a client of its agent, for as long as it runs; beside it the keys of [`ssh`].

pub mod ssh;

use std::collections::BTreeMap;

use banger_agent_api::{AgentClient, proto};

use crate::error::Error;
use crate::image::config::ImageConfig;
use crate::vm::task::Handle;

/// The client of a running machine's agent. The machine may end at any time; calls then fail with what the protocol says.
pub(crate) fn client(handle: &Handle) -> Result<AgentClient, Error> {
    let view = handle.view.borrow();
    view.guest
        .clone()
        .ok_or_else(|| Error::NotRunning { vm: handle.name() })
}

/// A command of somebody's.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Command {
    /// Program and arguments.
    pub argv: Vec<String>,
    /// On top of the user's and the image's.
    pub env: BTreeMap<String, String>,
    /// Absent: the image's, or the user's home.
    pub workdir: Option<String>,
    /// Absent: the image's, or root.
    pub user: Option<String>,
}

impl Command {
    /// As it is asked of the agent: what is not said is as the machine's image says. With neither standard input nor a
    /// terminal.
    #[must_use]
    pub fn start(self, image: ImageConfig) -> proto::ExecStart {
        let mut env = image.environment();
        env.extend(self.env);
        proto::ExecStart {
            argv: self.argv,
            env,
            workdir: self.workdir.or(image.workdir).unwrap_or_default(),
            user: self.user.or(image.user).unwrap_or_default(),
            stdin: false,
            terminal: None,
        }
    }
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
