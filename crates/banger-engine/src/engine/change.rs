//! What can be done with a machine that exists: start to remove, settings, name.

use std::time::Duration;

use super::{Engine, Preflight};
use crate::error::Error;
use crate::image::{kernels, registry};
use crate::name;
use crate::operation::{Operation, Progress};
use crate::vm::capability;
use crate::vm::change::{Change, SetVm};
use crate::vm::policy::Request;
use crate::vm::state::Vm;
use crate::vm::task::Terms;

/// Longest timeouts that can be asked for.
const TIMEOUT_MAXIMUM: Duration = Duration::from_hours(1);

/// What came of changing settings.
#[derive(Debug, Clone, PartialEq)]
pub struct Done {
    /// As it is now.
    pub vm: Vm,
    /// What changed.
    pub changes: Vec<Change>,
    /// What is to be known beside.
    pub notices: Vec<String>,
}

impl Engine {
    /// Begins to start a machine.
    pub async fn start_vm(&self, reference: &str, timeout: Option<Duration>) -> Result<Operation, Error> {
        let terms = Terms {
            start_timeout: checked_timeout(timeout)?,
            ..Terms::default()
        };
        self.begin("vm.start", reference, Request::Start, terms).await
    }

    /// Begins to stop a machine.
    pub async fn stop_vm(&self, reference: &str, timeout: Option<Duration>) -> Result<Operation, Error> {
        let terms = Terms {
            stop_timeout: checked_timeout(timeout)?,
            ..Terms::default()
        };
        self.begin("vm.stop", reference, Request::Stop, terms).await
    }

    /// Begins to kill a machine.
    pub async fn kill_vm(&self, reference: &str) -> Result<Operation, Error> {
        self.begin("vm.kill", reference, Request::Kill, Terms::default())
            .await
    }

    /// Begins to stop a machine that runs, and to start it. The timeout is the stop's. One that could not be started goes
    /// on running.
    pub async fn restart_vm(&self, reference: &str, timeout: Option<Duration>) -> Result<Operation, Error> {
        let terms = Terms {
            stop_timeout: checked_timeout(timeout)?,
            ..Terms::default()
        };
        // What could not come up again is left running.
        let handle = self.machines.find(reference)?;
        let runs = handle.view.borrow().phase.running().is_some();
        if runs {
            let Preflight { vm, checks } = self.preflight_vm(reference).await?;
            if !capability::passed(&checks) {
                return Err(Error::Preflight {
                    vm,
                    problems: capability::problems(checks),
                });
            }
        }
        self.begin("vm.restart", reference, Request::Restart, terms).await
    }

    /// Begins to renew a machine's system disk, from its own image or from another one. One that runs must be forced: it
    /// is stopped before and started afterwards.
    pub async fn reset_vm(
        &self,
        reference: &str,
        image: Option<&str>,
        force: bool,
    ) -> Result<Operation, Error> {
        let image = match image {
            Some(image) => Some(Box::new(registry::find(&self.host, image).await?)),
            None => None,
        };
        let terms = Terms {
            image,
            ..Terms::default()
        };
        self.begin("vm.reset", reference, Request::Reset { force }, terms)
            .await
    }

    /// Begins to remove a machine.
    pub async fn remove_vm(&self, reference: &str, force: bool) -> Result<Operation, Error> {
        self.begin(
            "vm.remove",
            reference,
            Request::Remove { force },
            Terms::default(),
        )
        .await
    }

    /// Changes settings; says which are different since, and from when on. Waits for work that is under way.
    pub async fn set_vm(&self, reference: &str, set: SetVm) -> Result<Done, Error> {
        let handle = self.machines.find(reference)?;
        for (key, value) in &set.labels {
            name::label(key, value.as_deref().unwrap_or_default())?;
        }
        if let Some(kernel) = &set.kernel {
            kernels::find_kernel(&self.host, kernel).await?;
        }
        let rules = set.nat.is_some() || set.allow.is_some();
        let pin = set.vmm.flatten();
        let changes = handle.set(set).await?;
        // "Now" is when the rules are in force.
        if rules && let Err(reason) = self.host.network.applied(&handle.id).await {
            return Err(Error::Host {
                action: "put the rules for the machine in force",
                source: format!("{reason}; the change is kept, and applied as soon as that is possible")
                    .into(),
            });
        }
        let missing = match pin {
            Some(pin) => self.host.vmms.missing(pin).await,
            None => None,
        };
        Ok(Done {
            vm: self.show(&handle).await?,
            changes,
            notices: missing.into_iter().collect(),
        })
    }

    /// Gives a machine another name. The guest's host name follows at its next start.
    pub async fn rename_vm(&self, reference: &str, to: String) -> Result<Vm, Error> {
        let handle = self.machines.find(reference)?;
        name::machine(&to)?;
        handle.rename(to).await?;
        self.show(&handle).await
    }

    async fn begin(
        &self,
        kind: &'static str,
        reference: &str,
        request: Request,
        terms: Terms,
    ) -> Result<Operation, Error> {
        let handle = self.machines.find(reference)?;
        let subject = handle.name();
        let work = move |progress: Progress| async move { handle.ask(request, terms, &progress).await };
        self.host.operations.begin(kind, &subject, work).await
    }
}

pub(super) fn checked_timeout(timeout: Option<Duration>) -> Result<Option<Duration>, Error> {
    match timeout {
        Some(timeout) if timeout > TIMEOUT_MAXIMUM => Err(Error::OutOfRange {
            field: "timeout",
            value: format!("{} s", timeout.as_secs()),
            problem: format!("above the maximum of {} s", TIMEOUT_MAXIMUM.as_secs()),
        }),
        other => Ok(other),
    }
}
