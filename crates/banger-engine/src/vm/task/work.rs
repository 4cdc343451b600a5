//! The steps of a request as futures. Each begins by entering a phase and ends with an [`Outcome`]; what it makes on the
//! way is in the ledger, so that it may be dropped anywhere.

use std::time::Duration;

use tokio::sync::oneshot;

use super::mailbox::{Caller, Terms};
use super::outcome::Outcome;
use super::{Task, Work, keep};
use crate::error::{Error, chain};
use crate::ledger::Owner;
use crate::operation::{Progress, Stage};
use crate::vm::capability::system_disk;
use crate::vm::policy::Step;
use crate::vm::state::Phase;
use crate::vm::{lifecycle, reset};

/// What is to be known when a stop is taken back.
const ASKED_ALREADY: &str = "the guest has been asked to shut down already and may still do so";

/// How a run is brought to its end.
#[derive(Debug, Clone, Copy)]
struct Stop {
    /// From asking the guest to forcing it; zero asks nobody.
    timeout: Duration,
    /// The guest may have been asked before.
    again: bool,
}

impl Task {
    /// Begins the first of these steps; whoever asked is answered when there is none left.
    pub(super) async fn step(&mut self, caller: Option<Caller>, terms: Terms, steps: &'static [Step]) {
        let Some((first, rest)) = steps.split_first() else {
            if let Some(caller) = caller {
                caller.answer(Ok(Vec::new()));
            }
            return;
        };
        match first {
            Step::Create => self.create(caller, terms, rest),
            Step::Start => self.begin_start(caller, terms, rest).await,
            Step::Stop => self.begin_stop(caller, terms, rest, false).await,
            Step::Kill => self.begin_stop(caller, terms, rest, true).await,
            Step::Reset => self.begin_reset(caller, terms, rest).await,
            Step::Remove => self.begin_remove(caller, terms),
        }
    }

    /// A new machine, as far as its creator wants it.
    pub(super) fn begin_create(
        &mut self,
        progress: Progress,
        reply: oneshot::Sender<Result<(), Error>>,
        start: bool,
    ) {
        let (caller, answer) = Caller::new(Some(progress));
        tokio::spawn(async move {
            // Without an answer the task has ended, which the creator sees by its own channel.
            if let Ok(answer) = answer.await {
                drop(reply.send(answer.map(drop)));
            }
        });
        let rest: &[Step] = if start { &[Step::Start] } else { &[] };
        self.create(Some(caller), Terms::default(), rest);
    }

    fn create(&mut self, caller: Option<Caller>, terms: Terms, rest: &'static [Step]) {
        let (host, row, paths) = (self.host.clone(), self.row.clone(), self.paths.clone());
        let progress = progress_of(caller.as_ref());
        let future = Box::pin(async move {
            stage(progress.as_ref(), Stage::Disks).await;
            Outcome::Created(or_cancelled(progress.as_ref(), system_disk::create(&host, &row, &paths)).await)
        });
        self.work(caller, terms, rest, future);
    }

    async fn begin_start(&mut self, caller: Option<Caller>, terms: Terms, rest: &'static [Step]) {
        // Every start is an operation's, also those that the task makes by itself.
        let Some(progress) = progress_of(caller.as_ref()) else {
            return;
        };
        self.before = self.phase.clone();
        let said = match self.kept {
            // The row says what is to become of this should the daemon die: undone, or started by the next one.
            Phase::Creating | Phase::Due(_) => true,
            // Removed.
            Phase::Running(_) | Phase::Stopping(_) => self.is_spent(),
            // Known before anything exists: without this row a daemon that dies now would find a run nobody wanted.
            Phase::Stopped | Phase::Starting | Phase::Resetting | Phase::Failed(_) | Phase::Removing => false,
        };
        if said {
            self.publish(Phase::Starting);
        } else if let Err(e) = self.enter(Phase::Starting).await {
            if let Some(caller) = caller {
                caller.answer(Err(e));
            }
            return;
        }
        let (host, row, paths) = (self.host.clone(), self.row.clone(), self.paths.clone());
        let timeout = terms.start_timeout.unwrap_or(host.settings.vm.start_timeout);
        let future = Box::pin(async move {
            let run = Owner::Run(row.id.clone());
            let started = async {
                // A start that was preempted may have left something.
                host.ledger.collect(&run).await?;
                // Dropping a start is safe: what it made is in the ledger.
                progress
                    .or_cancelled(lifecycle::start(&host, &row, &paths, timeout, &progress))
                    .await
            };
            let started = started.await;
            if started.is_err()
                && let Err(e) = host.ledger.collect(&run).await
            {
                tracing::error!(vm = row.name, error = chain(&e), "left after a failed start");
            }
            Outcome::Started(started.map(Box::new))
        });
        self.work(caller, terms, rest, future);
    }

    async fn begin_stop(
        &mut self,
        caller: Option<Caller>,
        terms: Terms,
        rest: &'static [Step],
        at_once: bool,
    ) {
        if let Some(running) = self.phase.running().cloned() {
            self.settle(Phase::Stopping(running)).await;
        }
        let timeout = if at_once {
            Duration::ZERO
        } else {
            terms.stop_timeout.unwrap_or(self.host.settings.vm.stop_timeout)
        };
        self.bring_down(
            caller,
            terms,
            rest,
            Stop {
                timeout,
                again: false,
            },
        );
    }

    /// Asks once more for the end that an earlier daemon was asked for. What that one's client wanted afterwards, if it was a
    /// restart or a reset, ended with its operation.
    pub(super) fn go_on_stopping(&mut self) {
        tracing::info!(vm = self.row.name, "it was being stopped, which goes on");
        let timeout = self.host.settings.vm.stop_timeout;
        self.bring_down(None, Terms::default(), &[], Stop { timeout, again: true });
    }

    fn bring_down(&mut self, caller: Option<Caller>, terms: Terms, rest: &'static [Step], stop: Stop) {
        let Stop { timeout, again } = stop;
        let host = self.host.clone();
        let (id, name) = (self.row.id.clone(), self.row.name.clone());
        let (machine, guest) = (self.machine.clone(), self.guest.clone());
        let progress = progress_of(caller.as_ref());
        let future = Box::pin(async move {
            if let Some(machine) = machine {
                if let Some(guest) = guest.filter(|_| !timeout.is_zero()) {
                    stage(progress.as_ref(), Stage::Stopping).await;
                    let asking = lifecycle::ask_to_stop(machine.as_ref(), &guest, timeout, again);
                    // Only the asking can be taken back. What is being killed is dead.
                    match or_cancelled(progress.as_ref(), async { Ok(asking.await) }).await {
                        Ok(Ok(())) => return Outcome::Stopped(host.ledger.collect(&Owner::Run(id)).await),
                        Ok(Err(why)) => {
                            if let Some(progress) = &progress {
                                progress.notice(why);
                            }
                        }
                        Err(_) => {
                            if let Some(progress) = &progress {
                                progress.notice(ASKED_ALREADY);
                            }
                            return Outcome::StopCancelled;
                        }
                    }
                }
                stage(progress.as_ref(), Stage::Killing).await;
                if let Err(e) = lifecycle::kill(&name, machine.as_ref()).await {
                    return Outcome::Stopped(Err(e));
                }
            }
            Outcome::Stopped(host.ledger.collect(&Owner::Run(id)).await)
        });
        self.work(caller, terms, rest, future);
    }

    async fn begin_reset(&mut self, caller: Option<Caller>, terms: Terms, rest: &'static [Step]) {
        self.before = self.phase.clone();
        let spent = self.is_spent();
        let after = if spent { self.kept.clone() } else { Phase::Stopped };
        if spent {
            self.publish(Phase::Resetting);
        } else if let Err(e) = self.enter(Phase::Resetting).await {
            if let Some(caller) = caller {
                caller.answer(Err(e));
            }
            return;
        }
        let (host, row, paths) = (self.host.clone(), self.row.clone(), self.paths.clone());
        let (image, progress) = (terms.image.clone(), progress_of(caller.as_ref()));
        let future = Box::pin(async move {
            stage(progress.as_ref(), Stage::Resetting).await;
            let renewed =
                reset::renew(&host, &row, &after, image.as_deref(), &paths, progress.as_ref()).await;
            Outcome::Reset(renewed.map(Box::new))
        });
        self.work(caller, terms, rest, future);
    }

    pub(super) fn begin_remove(&mut self, caller: Option<Caller>, terms: Terms) {
        let host = self.host.clone();
        // The handle stays ours until the machine is gone: a removal that fails must not disown what runs.
        let (id, name, machine) = (self.row.id.clone(), self.row.name.clone(), self.machine.clone());
        self.before = self.phase.clone();
        self.publish(Phase::Removing);
        let progress = progress_of(caller.as_ref());
        let future = Box::pin(async move {
            let ended = async {
                // On stable storage before the first byte goes: half a machine must never look like a whole one.
                keep(&host, &id, &Phase::Removing, true).await?;
                if let Some(machine) = machine {
                    stage(progress.as_ref(), Stage::Killing).await;
                    lifecycle::kill(&name, machine.as_ref()).await?;
                }
                Ok(())
            };
            if let Err(e) = ended.await {
                return Outcome::NotRemoved(e);
            }
            stage(progress.as_ref(), Stage::Removing).await;
            Outcome::Removed(lifecycle::remove(&host, &id).await)
        });
        self.work(caller, terms, &[], future);
    }

    pub(super) fn work(
        &mut self,
        caller: Option<Caller>,
        terms: Terms,
        rest: &'static [Step],
        future: super::Boxed<Outcome>,
    ) {
        self.work = Some(Work {
            caller,
            terms,
            rest,
            changes: Vec::new(),
            future,
        });
    }
}

fn progress_of(caller: Option<&Caller>) -> Option<Progress> {
    caller.and_then(|caller| caller.progress.clone())
}

async fn stage(progress: Option<&Progress>, stage: Stage) {
    if let Some(progress) = progress {
        progress.stage(stage).await;
    }
}

async fn or_cancelled<T>(
    progress: Option<&Progress>,
    part: impl Future<Output = Result<T, Error>>,
) -> Result<T, Error> {
    match progress {
        Some(progress) => progress.or_cancelled(part).await,
        None => part.await,
    }
}
