//! How machines fare: figures, health, how far a guest has come. Asked from outside, beside the machines' tasks: nothing
//! here changes anything, waits for a task, or makes one machine wait for another.
//!
//! Everything that a guest or a VMM is asked has a time of its own ([`ANSWER`]), so a call's time is that, however many
//! machines hang.

pub mod health;
#[cfg(test)]
mod older_agent_tests;
pub mod stats;

use std::sync::Arc;
use std::time::Duration;

use banger_agent_api::{AgentClient, AgentError, BootState};
use banger_store::vms::VmRow;
use banger_vmm::Machine;

use crate::error::{Error, chain};
use crate::guest;
use crate::vm::state::Phase;
use crate::vm::task::Handle;

/// How long a guest's agent or a VMM has to answer. Each does so within milliseconds, or tens of them when emulated.
const ANSWER: Duration = Duration::from_secs(2);

/// A machine as it is looked at: all of one moment.
struct Subject {
    id: String,
    row: VmRow,
    phase: Phase,
    /// While it runs.
    machine: Option<Arc<dyn Machine>>,
    guest: Option<AgentClient>,
}

impl Subject {
    fn of(handle: &Handle) -> Self {
        let view = handle.view.borrow();
        Self {
            id: handle.id.clone(),
            row: view.row.clone(),
            phase: view.phase.clone(),
            machine: view.machine.clone(),
            guest: view.guest.clone(),
        }
    }
}

/// Why an agent gave no figures, to follow a guest's or a machine's name.
fn agent_problem(error: &AgentError) -> String {
    match error {
        AgentError::DeadlineExceeded { after, .. } => {
            format!("its agent did not answer within {} s", after.as_secs())
        }
        AgentError::Unsupported { .. } => {
            "its agent is of an older release; restart the machine to give it this one's".to_owned()
        }
        AgentError::Unreachable(_)
        | AgentError::Failed(_)
        | AgentError::Broken { .. }
        | AgentError::Protocol { .. }
        | AgentError::Incompatible(_) => format!("failed to {}", chain(error)),
    }
}

/// Waits until the guest's init has started everything, for at most `timeout`. Gives the machine's name as well.
pub(crate) async fn wait_booted(handle: &Handle, timeout: Duration) -> Result<(String, BootState), Error> {
    let client = guest::client(handle)?;
    let mut view = handle.view.clone();
    let ended = view.wait_for(|view| view.phase.running().is_none());
    tokio::select! {
        // Cancel-safe: watching takes nothing away. A machine that ends has nothing to wait for any more.
        _ended = ended => Err(Error::NotRunning { vm: handle.name() }),
        // Dropping the call ends the wait in the guest as well.
        state = client.wait_booted(timeout) => match state {
            Ok(state) => Ok((handle.name(), state)),
            Err(e) => Err(Error::Agent { vm: handle.name(), source: Box::new(e) }),
        },
    }
}
