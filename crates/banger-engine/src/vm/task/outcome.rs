//! What becomes of a machine when a step, or a run, has ended.

use banger_store::vms::VmRow;
use banger_vmm::MachineExit;
use futures_util::FutureExt;
use tokio::time::Instant;

use super::mailbox::Answer;
use super::{Task, Work};
use crate::error::{Error, Kind, chain};
use crate::ledger::Owner;
use crate::vm::change::Change;
use crate::vm::console::{self, Ending};
use crate::vm::lifecycle::Started;
use crate::vm::policy::Step;
use crate::vm::restart::Restart;
use crate::vm::state::{Due, Failure, Phase};

pub(super) enum Outcome {
    Created(Result<(), Error>),
    Started(Result<Box<Started>, Error>),
    /// The run is collected, unless an error says otherwise.
    Stopped(Result<(), Error>),
    /// Stopping was cancelled; the machine runs on.
    StopCancelled,
    /// The row that is kept already.
    Reset(Result<Box<VmRow>, Error>),
    /// Disks of a machine that runs have grown, as far as each change says, to the sizes given.
    Grown(Vec<Change>, Grown),
    /// The machine ended by itself, or, where `asked`, as it was asked to by a stop that this task does not wait for any
    /// more; the run is collected.
    Ended {
        ending: Ending,
        asked: bool,
        collected: Result<(), Error>,
    },
    Removed(Result<(), Error>),
    /// Nothing of it was removed yet.
    NotRemoved(Error),
}

/// Sizes that a guest's disks have since, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Grown {
    pub(super) disk: Option<u64>,
    pub(super) work_disk: Option<u64>,
}

/// What is next.
enum Next {
    /// It stands so, kept or not yet; the answer to whoever asked.
    Settle(Phase, Answer),
    /// It stands so, and the row says so.
    Settled(Phase),
    /// It stands so until the next step; the row says what is to become of it should the daemon die.
    Passing(Phase),
    /// Its run has ended, and with it the machine.
    Gone(Answer),
    /// Nothing of it may stay: why.
    Undo(Error),
    /// It stands so, and half of it is gone: the row says still that it is being removed, so that the next daemon goes on
    /// with that.
    Half(Phase, Error),
    /// It is no more.
    Leave(Answer),
}

const DONE: Answer = Ok(Vec::new());

impl Task {
    pub(super) async fn on_exit(&mut self, exit: &MachineExit) {
        let ending = console::ending(exit, &self.paths.console());
        match &ending {
            Ending::Orderly => tracing::info!(vm = self.row.name, %exit, "the guest has shut down"),
            Ending::Bad(failure) => tracing::warn!(
                vm = self.row.name,
                %exit,
                reason = failure.reason,
                console = failure.console.join("\n"),
                "ended badly"
            ),
        }
        self.machine = None;
        self.guest = None;
        // A change that was on its way into the guest comes with the next start.
        let changing = self.work.take();
        let asked = matches!(self.phase, Phase::Stopping(_));
        if let Some(running) = self.phase.running().cloned() {
            self.publish(Phase::Stopping(running));
        }
        if let Some(Work {
            caller: Some(caller),
            changes,
            ..
        }) = changing
        {
            caller.answer(Ok(changes));
        }
        let (host, run) = (self.host.clone(), Owner::Run(self.row.id.clone()));
        let future = Box::pin(async move {
            let collected = host.ledger.collect(&run).await;
            Outcome::Ended {
                ending,
                asked,
                collected,
            }
        });
        self.work(None, super::Terms::default(), &[], future);
    }

    pub(super) async fn on_outcome(&mut self, outcome: Outcome, work: Work) {
        let Work {
            mut caller,
            terms,
            rest,
            ..
        } = work;
        self.turn = None;
        match self.consider(outcome, terms.automatic, rest) {
            Next::Settle(phase, answer) => {
                let creating = matches!(self.kept, Phase::Creating);
                self.settle(phase).await;
                if creating && self.unkept && answer.is_ok() {
                    // The row says still that nobody was told of it, and the next daemon would go by that.
                    let source = "the state file could not be written".into();
                    let action = "keep the new machine";
                    self.undoing = Some(Error::Host { action, source });
                    self.begin_remove(caller, terms);
                    return;
                }
                if answer.is_ok() && !rest.is_empty() {
                    return self.proceed(caller, terms, rest).await;
                }
                if let Some(caller) = caller.take() {
                    caller.answer(answer);
                }
            }
            Next::Settled(phase) => {
                self.kept = phase.clone();
                self.unkept = false;
                self.publish(phase);
                return self.proceed(caller, terms, rest).await;
            }
            Next::Passing(phase) => {
                self.publish(phase);
                return self.proceed(caller, terms, rest).await;
            }
            Next::Gone(answer) => {
                if let Some(caller) = caller.take() {
                    if let (Err(_), Some(progress)) = (&answer, &caller.progress) {
                        progress.notice("the machine is removed, as it was to be when its run ends");
                    }
                    caller.answer(answer);
                }
                self.begin_remove(None, terms);
            }
            Next::Undo(error) => {
                self.undoing = Some(error);
                self.begin_remove(caller, terms);
            }
            Next::Half(phase, error) => {
                self.kept = Phase::Removing;
                self.unkept = false;
                self.publish(phase);
                if let Some(caller) = caller.take() {
                    caller.answer(Err(error));
                }
            }
            Next::Leave(answer) => return self.leave(caller, answer),
        }
        self.after_work().await;
    }

    /// On to the next step, unless whoever asked has changed their mind. What is done stays done.
    async fn proceed(&mut self, caller: Option<super::Caller>, terms: super::Terms, rest: &'static [Step]) {
        match caller {
            Some(caller) if !rest.is_empty() && caller.is_cancelled() => {
                if matches!(self.kept, Phase::Creating) {
                    self.undoing = Some(Error::Cancelled);
                    self.begin_remove(Some(caller), terms);
                } else {
                    caller.answer(Err(Error::Cancelled));
                    if self.is_spent() {
                        self.begin_remove(None, terms);
                    }
                }
            }
            caller => self.step(caller, terms, rest).await,
        }
        self.after_work().await;
    }

    /// Where nothing is at work any more: what waited, and what time asks for.
    async fn after_work(&mut self) {
        if self.work.is_none() && self.due.is_none() {
            self.wait_for_turn();
        }
        if self.work.is_none() {
            self.go_on().await;
        }
        // An attempt that has just failed is not made again at once.
        if self.work.is_none() && self.expiry_tried.is_none() {
            self.on_expiry().await;
        }
    }

    /// What an outcome leads to. Changes nothing but the handles of the run.
    fn consider(&mut self, outcome: Outcome, automatic: bool, rest: &[Step]) -> Next {
        let creating = matches!(self.kept, Phase::Creating);
        match outcome {
            Outcome::Created(Ok(())) if rest.is_empty() => Next::Settle(Phase::Stopped, DONE),
            // To be started as well: until it has been, its creator was promised nothing, and the row says so.
            Outcome::Created(Ok(())) => Next::Passing(Phase::Creating),
            Outcome::Created(Err(e)) => Next::Undo(e),

            Outcome::Started(Ok(started)) => {
                let Started {
                    machine,
                    guest,
                    mut running,
                    reserved,
                } = *started;
                self.host.ports.open(&self.row.id, &guest, reserved);
                if let Phase::Due(due) = &self.kept {
                    running.restarts = due.restarts + u32::from(!due.autostart);
                    running.streak = due.streak + 1;
                }
                self.machine = Some(machine);
                self.guest = Some(guest);
                self.up_since = Instant::now();
                Next::Settle(Phase::Running(running), DONE)
            }
            Outcome::Started(Err(e)) if creating => Next::Undo(e),
            Outcome::Started(Err(e)) if self.is_spent() => Next::Gone(Err(e)),
            Outcome::Started(Err(e)) if automatic => self.start_failed(e),
            Outcome::Started(Err(e @ Error::Cancelled)) => Next::Settle(Phase::Stopped, Err(e)),
            // A start that the host is not ready for has touched nothing and changes nothing.
            Outcome::Started(Err(e)) if e.kind() == Kind::MissingPrerequisite => {
                Next::Settle(self.before.clone(), Err(e))
            }
            Outcome::Started(Err(e)) => Next::Settle(Phase::Failed(Failure::of(&e)), Err(e)),

            Outcome::Stopped(Ok(())) => {
                self.machine = None;
                self.guest = None;
                // A start that was broken off was no run: only the end of one takes the machine with it.
                match (self.is_spent(), rest.is_empty()) {
                    (true, true) => Next::Gone(DONE),
                    (true, false) => Next::Passing(Phase::Stopped),
                    (false, _) => Next::Settle(Phase::Stopped, DONE),
                }
            }
            Outcome::Stopped(Err(e)) => {
                // Where it is still there it is still a run: nothing is hidden, and a kill may be tried again. Where only
                // something of it could not be removed, the next start or daemon tries that again.
                let run = self.phase.running().cloned().filter(|_| self.still_runs());
                let phase = run.map_or_else(|| Phase::Failed(Failure::of(&e)), Phase::Running);
                Next::Settle(phase, Err(e))
            }
            Outcome::StopCancelled => {
                // Nobody takes it back by ending the daemon: the next one goes on with it.
                let next = if self.host.operations.is_closing() {
                    Phase::Stopping
                } else {
                    Phase::Running
                };
                let running = self.phase.running().cloned();
                let phase = running.map_or(Phase::Stopped, next);
                Next::Settle(phase, Err(Error::Cancelled))
            }

            Outcome::Reset(Ok(row)) => {
                self.row = *row;
                self.show_row();
                if self.is_spent() {
                    Next::Passing(Phase::Stopped)
                } else {
                    Next::Settled(Phase::Stopped)
                }
            }
            Outcome::Reset(Err(e)) if self.is_spent() => Next::Gone(Err(e)),
            Outcome::Reset(Err(e)) => Next::Settle(self.before.clone(), Err(e)),

            Outcome::Grown(changes, grown) => {
                let Phase::Running(mut running) = self.phase.clone() else {
                    return Next::Settle(self.phase.clone(), Ok(changes));
                };
                if let Some(with) = &mut running.with {
                    with.disk = grown.disk.unwrap_or(with.disk);
                    with.work_disk = grown.work_disk.unwrap_or(with.work_disk);
                }
                Next::Settle(Phase::Running(running), Ok(changes))
            }

            Outcome::Ended {
                ending,
                asked,
                collected,
            } => {
                if let Err(e) = &collected {
                    tracing::error!(vm = self.row.name, error = chain(e), "left after a run");
                }
                self.ended(ending, asked, collected)
            }

            Outcome::Removed(Ok(())) => match self.undoing.take() {
                Some(error) => Next::Leave(Err(error)),
                None => Next::Leave(DONE),
            },
            // Its name and its image are taken still, so it is shown, and can be removed once the host lets it.
            Outcome::Removed(Err(e)) => {
                self.machine = None;
                self.guest = None;
                Next::Half(Phase::Failed(Failure::of(&e)), self.undoing.take().unwrap_or(e))
            }
            Outcome::NotRemoved(e) => {
                let run = self.before.running().cloned().filter(|_| self.still_runs());
                let phase = run.map_or_else(|| Phase::Failed(Failure::of(&e)), Phase::Running);
                Next::Settle(phase, Err(self.undoing.take().unwrap_or(e)))
            }
        }
    }

    /// Whether its run is over or ending, and the machine with it, whatever fails meanwhile: an ephemeral one of which the row
    /// still says that it runs. A start that was no run leaves it alone.
    pub(super) fn is_spent(&self) -> bool {
        self.row.ephemeral && self.kept.running().is_some()
    }

    /// Whether the VMM is there. One that is not is forgotten, so that its end is not taken for one by itself.
    fn still_runs(&mut self) -> bool {
        let ended =
            |machine: &std::sync::Arc<dyn banger_vmm::Machine>| machine.exited().now_or_never().is_some();
        if self.machine.as_ref().is_none_or(ended) {
            self.machine = None;
            self.guest = None;
        }
        self.machine.is_some()
    }

    /// A run ended by itself.
    fn ended(&self, ending: Ending, asked: bool, collected: Result<(), Error>) -> Next {
        let failure = match (ending, collected) {
            (Ending::Bad(failure), _) if !asked => Some(failure),
            (Ending::Bad(_) | Ending::Orderly, Err(e)) => Some(Failure::of(&e)),
            (Ending::Bad(_) | Ending::Orderly, Ok(())) => None,
        };
        let run = self.phase.running();
        let due = Due {
            failure,
            autostart: false,
            restarts: run.map_or(0, |run| run.restarts),
            streak: run.map_or(0, |run| run.streak),
        };
        if !asked && Restart::of(&self.row.restart).wants(due.failure.is_some()) {
            let due = due.after(self.up_since.elapsed());
            return Next::Settle(Phase::Due(due), DONE);
        }
        if self.row.ephemeral {
            return Next::Gone(DONE);
        }
        Next::Settle(due.off(), DONE)
    }

    /// A start failed that the daemon made by itself.
    fn start_failed(&self, error: Error) -> Next {
        let Phase::Due(due) = self.kept.clone() else {
            return Next::Settle(Phase::Failed(Failure::of(&error)), Err(error));
        };
        if matches!(error, Error::Cancelled) {
            // A daemon that ends has not decided anything: the next one starts the machine.
            let ends = self.host.operations.is_closing();
            let phase = if ends { Phase::Due(due) } else { due.off() };
            return Next::Settle(phase, Err(error));
        }
        let failed = Due {
            failure: Some(Failure::of(&error)),
            autostart: false,
            restarts: due.restarts + u32::from(!due.autostart),
            streak: due.streak.saturating_add(1),
        };
        if Restart::of(&self.row.restart).wants(true) {
            Next::Settle(Phase::Due(failed), Err(error))
        } else {
            Next::Settle(failed.off(), Err(error))
        }
    }
}
