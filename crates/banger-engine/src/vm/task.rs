//! The one task that owns a machine. Requests come through a bounded mailbox; what is done with each is
//! [`policy`](crate::vm::policy)'s to say. At most one piece of work is under way; dropping it is how it is preempted, and
//! the ledger knows what it left.
//!
//! ```text
//!   mailbox --> decide --Run------> work --outcome--> phase, published and kept --> waiting requests decided anew
//!                  |---Preempt----> drop the work, then Run
//!                  |---Queue------> waiting
//!   machine's exit (no work under way) --> collect the run --> Stopped | Failed --> removed, when ephemeral
//! ```

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use banger_agent_api::AgentClient;
use banger_store::vms::VmRow;
use banger_vmm::{Machine, MachineExit};
use futures_util::FutureExt;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;

use crate::crash::Write;
use crate::error::{Error, Kind};
use crate::host::Host;
use crate::ledger::Owner;
use crate::operation::{Progress, Stage};
use crate::vm::capability::system_disk;
use crate::vm::console::{self, Ending};
use crate::vm::lifecycle::{self, Started};
use crate::vm::machines::Machines;
use crate::vm::policy::{Decision, Request, decide};
use crate::vm::state::{Paths, Phase, View};

/// Requests that may wait in a mailbox, and again as many for work to end. Full means busy.
const WAITING: usize = 16;
/// How often the files that a VMM appends to are looked at.
const ROTATION: Duration = Duration::from_secs(10);

/// A request with the way back.
pub(crate) struct Asked {
    request: Request,
    timeout: Option<Duration>,
    progress: Progress,
    reply: oneshot::Sender<Result<(), Error>>,
}

/// A machine's address.
#[derive(Clone)]
pub(crate) struct Handle {
    pub(crate) id: String,
    pub(crate) name: String,
    mailbox: mpsc::Sender<Asked>,
    pub(crate) view: watch::Receiver<View>,
}

impl Handle {
    /// Asks for something and waits for its outcome. Cancelling goes through the operation, not by dropping this.
    pub(crate) async fn ask(
        &self,
        request: Request,
        timeout: Option<Duration>,
        progress: &Progress,
    ) -> Result<(), Error> {
        let (reply, answer) = oneshot::channel();
        let asked = Asked {
            request,
            timeout,
            progress: progress.clone(),
            reply,
        };
        self.mailbox.try_send(asked).map_err(|e| match e {
            mpsc::error::TrySendError::Full(_) => Error::Busy {
                vm: self.name.clone(),
            },
            mpsc::error::TrySendError::Closed(_) => self.gone(),
        })?;
        answer.await.map_err(|_| self.gone())?
    }

    fn gone(&self) -> Error {
        Error::Missing {
            what: "machine",
            name: self.name.clone(),
            near: None,
        }
    }
}

type Boxed<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// Work under way, and who asked for it.
struct Work {
    asked: Option<Asked>,
    future: Boxed<Outcome>,
}

enum Outcome {
    /// With the outcome of the clean-up after a failure.
    Created(Result<(), (Error, Result<(), Error>)>),
    Started(Result<Box<Started>, Error>),
    /// The run is collected, unless an error says otherwise.
    Stopped(Result<(), Error>),
    /// Stopping was cancelled; the machine runs on.
    StopCancelled,
    /// The machine ended by itself; the run is collected.
    Ended(Ending, Result<(), Error>),
    Removed(Result<(), Error>),
}

enum Event {
    Work(Outcome),
    Exit(MachineExit),
    Asked(Asked),
    Closed,
    Rotate,
}

/// How a task begins.
pub(crate) enum Begin {
    /// A new machine: its disks are to be made.
    Create(Progress, oneshot::Sender<Result<(), Error>>),
    /// One that rests.
    Resting(Phase),
    /// One that an earlier daemon left running.
    Adopted(Phase, Arc<dyn Machine>, AgentClient),
    /// One that was being removed.
    Remove,
}

struct Task {
    host: Arc<Host>,
    machines: Machines,
    row: VmRow,
    paths: Paths,
    phase: Phase,
    view: watch::Sender<View>,
    machine: Option<Arc<dyn Machine>>,
    guest: Option<AgentClient>,
    work: Option<Work>,
    /// Where it stood before the start or removal at work, for one that changes nothing.
    before: Phase,
    waiting: VecDeque<Asked>,
    removed: bool,
}

/// Starts a machine's task.
pub(crate) fn spawn(host: Arc<Host>, machines: &Machines, row: VmRow, begin: Begin) -> Handle {
    let paths = Paths::new(&host.settings.state_dir, &host.settings.runtime_dir, &row.id);
    let (phase, machine, guest) = match &begin {
        Begin::Create(..) => (Phase::Creating, None, None),
        Begin::Resting(phase) => (phase.clone(), None, None),
        Begin::Adopted(phase, machine, guest) => (phase.clone(), Some(machine.clone()), Some(guest.clone())),
        Begin::Remove => (Phase::Removing, None, None),
    };
    let first = View {
        row: row.clone(),
        phase: phase.clone(),
        generation: 0,
        guest: guest.clone(),
    };
    let (view, watched) = watch::channel(first);
    let (mailbox, requests) = mpsc::channel(WAITING);
    let handle = Handle {
        id: row.id.clone(),
        name: row.name.clone(),
        mailbox,
        view: watched,
    };
    let mut task = Task {
        host,
        machines: machines.clone(),
        row,
        paths,
        phase,
        view,
        machine,
        guest,
        work: None,
        before: Phase::Stopped,
        waiting: VecDeque::new(),
        removed: false,
    };
    match begin {
        Begin::Create(progress, reply) => task.begin_create(progress, reply),
        Begin::Remove => task.begin_remove(None),
        Begin::Resting(_) | Begin::Adopted(..) => {}
    }
    // In the table before the task runs, which may take it out again at once.
    machines.add(handle.clone());
    machines.spawn(async move { task.run(requests).await });
    handle
}

/// Resolves with the work's outcome; never, when there is none.
async fn outcome_of(work: &mut Option<Work>) -> Outcome {
    match work {
        Some(work) => work.future.as_mut().await,
        None => std::future::pending().await,
    }
}

async fn exit_of(machine: Option<&Arc<dyn Machine>>) -> MachineExit {
    match machine {
        Some(machine) => machine.exited().await,
        None => std::future::pending().await,
    }
}

impl Task {
    async fn run(mut self, mut requests: mpsc::Receiver<Asked>) {
        let mut rotation = Instant::now() + ROTATION;
        let mut open = true;
        while !self.removed && (open || self.work.is_some()) {
            let idle = self.work.is_none();
            let event = tokio::select! {
                biased;
                // The future stays in `self.work` until it has given its outcome, so nothing of it is lost.
                outcome = outcome_of(&mut self.work), if !idle => Event::Work(outcome),
                // Only watched while no work is: a stop waits for the exit itself. `exited` may be asked again.
                exit = exit_of(self.machine.as_ref()), if idle => Event::Exit(exit),
                // A timer; dropping it loses nothing.
                () = tokio::time::sleep_until(rotation), if self.machine.is_some() || !idle => Event::Rotate,
                // `recv` is cancel-safe: a request is taken out only when this arm wins.
                asked = requests.recv(), if open => asked.map_or(Event::Closed, Event::Asked),
            };
            match event {
                Event::Work(outcome) => {
                    let asked = self.work.take().and_then(|w| w.asked);
                    self.on_outcome(outcome, asked).await;
                }
                Event::Exit(exit) => self.on_exit(&exit).await,
                Event::Asked(asked) => self.on_request(asked).await,
                Event::Closed => open = false,
                Event::Rotate => {
                    rotation = Instant::now() + ROTATION;
                    self.rotate();
                }
            }
        }
    }

    // ---- requests --------------------------------------------------------------------------------------------------

    async fn on_request(&mut self, asked: Asked) {
        match decide(self.phase.state(), asked.request) {
            Decision::Run => self.begin(asked).await,
            Decision::Preempt => {
                if let Some(preempted) = self.work.take().and_then(|w| w.asked) {
                    answer(preempted, Err(Error::Cancelled));
                }
                self.begin(asked).await;
            }
            Decision::Queue if self.waiting.len() < WAITING => self.waiting.push_back(asked),
            Decision::Queue => {
                let vm = self.row.name.clone();
                answer(asked, Err(Error::Busy { vm }));
            }
            Decision::Done => answer(asked, Ok(())),
            Decision::Refuse(refusal) => {
                let vm = self.row.name.clone();
                answer(asked, Err(Error::Refused { vm, refusal }));
            }
        }
    }

    async fn begin(&mut self, asked: Asked) {
        match asked.request {
            Request::Start => self.begin_start(asked).await,
            Request::Stop => self.begin_stop(asked, false).await,
            Request::Kill => self.begin_stop(asked, true).await,
            Request::Remove { .. } => self.begin_remove(Some(asked)),
        }
    }

    fn begin_create(&mut self, progress: Progress, reply: oneshot::Sender<Result<(), Error>>) {
        let (host, row, paths) = (self.host.clone(), self.row.clone(), self.paths.clone());
        let asked = Asked {
            request: Request::Stop,
            timeout: None,
            progress: progress.clone(),
            reply,
        };
        let future = Box::pin(async move {
            progress.stage(Stage::Disks).await;
            let made = progress
                .or_cancelled(system_disk::create(&host, &row, &paths))
                .await;
            match made {
                Ok(()) => Outcome::Created(Ok(())),
                Err(e) => Outcome::Created(Err((e, lifecycle::remove(&host, &row.id).await))),
            }
        });
        self.work = Some(Work {
            asked: Some(asked),
            future,
        });
    }

    async fn begin_start(&mut self, asked: Asked) {
        self.before = self.phase.clone();
        // Known before anything exists: without this row a daemon that dies now would find a run nobody wanted.
        if let Err(e) = self.enter(Phase::Starting).await {
            answer(asked, Err(e));
            return;
        }
        let (host, row, paths) = (self.host.clone(), self.row.clone(), self.paths.clone());
        let timeout = asked.timeout.unwrap_or(host.settings.vm.start_timeout);
        let progress = asked.progress.clone();
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
                tracing::error!(
                    vm = row.name,
                    error = crate::error::chain(&e),
                    "left after a failed start"
                );
            }
            Outcome::Started(started.map(Box::new))
        });
        self.work = Some(Work {
            asked: Some(asked),
            future,
        });
    }

    async fn begin_stop(&mut self, asked: Asked, at_once: bool) {
        if let Some(running) = self.phase.running().cloned() {
            let entered = self.enter(Phase::Stopping(running)).await;
            if let Err(e) = entered {
                tracing::warn!(
                    vm = self.row.name,
                    error = crate::error::chain(&e),
                    "phase not kept"
                );
            }
        }
        let host = self.host.clone();
        let (id, name) = (self.row.id.clone(), self.row.name.clone());
        let (machine, guest) = (self.machine.clone(), self.guest.clone());
        let timeout = if at_once {
            Duration::ZERO
        } else {
            asked.timeout.unwrap_or(host.settings.vm.stop_timeout)
        };
        let progress = asked.progress.clone();
        let future = Box::pin(async move {
            if let Some(machine) = machine {
                let stop = lifecycle::stop(&name, machine.as_ref(), guest.as_ref(), timeout, &progress);
                match progress.or_cancelled(stop).await {
                    Ok(()) => {}
                    Err(Error::Cancelled) => return Outcome::StopCancelled,
                    Err(e) => return Outcome::Stopped(Err(e)),
                }
            }
            Outcome::Stopped(host.ledger.collect(&Owner::Run(id)).await)
        });
        self.work = Some(Work {
            asked: Some(asked),
            future,
        });
    }

    fn begin_remove(&mut self, asked: Option<Asked>) {
        let host = self.host.clone();
        // The handle stays ours until the machine is gone: a removal that fails must not disown what runs.
        let (id, name, machine) = (self.row.id.clone(), self.row.name.clone(), self.machine.clone());
        self.before = self.phase.clone();
        self.publish(Phase::Removing);
        let progress = asked.as_ref().map(|a| a.progress.clone());
        let future = Box::pin(async move {
            let removed = async {
                // On stable storage before the first byte goes: half a machine must never look like a whole one.
                keep(&host, &id, &Phase::Removing, true).await?;
                if let Some(machine) = machine {
                    if let Some(progress) = &progress {
                        progress.stage(Stage::Killing).await;
                    }
                    lifecycle::kill(&name, machine.as_ref()).await?;
                }
                if let Some(progress) = &progress {
                    progress.stage(Stage::Removing).await;
                }
                lifecycle::remove(&host, &id).await
            };
            Outcome::Removed(removed.await)
        });
        self.work = Some(Work { asked, future });
    }

    // ---- what happened ---------------------------------------------------------------------------------------------

    async fn on_exit(&mut self, exit: &MachineExit) {
        let ending = console::ending(exit, &self.paths.console());
        tracing::info!(vm = self.row.name, %exit, ?ending, "ended by itself");
        self.machine = None;
        self.guest = None;
        if let Some(running) = self.phase.running().cloned() {
            self.publish(Phase::Stopping(running));
        }
        let (host, run) = (self.host.clone(), Owner::Run(self.row.id.clone()));
        let future = Box::pin(async move { Outcome::Ended(ending, host.ledger.collect(&run).await) });
        self.work = Some(Work { asked: None, future });
    }

    async fn on_outcome(&mut self, outcome: Outcome, asked: Option<Asked>) {
        // Trying again at once what has just failed would go on for ever; a later request or daemon may.
        let removal_failed = matches!(outcome, Outcome::Removed(Err(_)));
        let (phase, result) = match outcome {
            Outcome::Created(Ok(())) => (Some(Phase::Stopped), Ok(())),
            Outcome::Created(Err((e, Ok(())))) => {
                self.leave(asked, Err(e));
                return;
            }
            // Its name and its image are taken still, so it is shown, and can be removed once the host lets it.
            Outcome::Created(Err((e, Err(left)))) => {
                let reason = left.report().message;
                (Some(Phase::Failed { reason }), Err(e))
            }
            Outcome::Started(Ok(started)) => {
                let Started {
                    machine,
                    guest,
                    running,
                } = *started;
                self.machine = Some(machine);
                self.guest = Some(guest);
                (Some(Phase::Running(running)), Ok(()))
            }
            Outcome::Started(Err(e @ Error::Cancelled)) => (Some(Phase::Stopped), Err(e)),
            // A start that the host is not ready for has touched nothing and changes nothing.
            Outcome::Started(Err(e)) if e.kind() == Kind::MissingPrerequisite => {
                (Some(self.before.clone()), Err(e))
            }
            Outcome::Started(Err(e)) => (
                Some(Phase::Failed {
                    reason: e.report().message,
                }),
                Err(e),
            ),
            Outcome::Stopped(Ok(())) => {
                self.machine = None;
                self.guest = None;
                (Some(Phase::Stopped), Ok(()))
            }
            Outcome::Stopped(Err(e)) if self.machine.is_some() => {
                // Still there, and still a run: nothing is hidden, and a kill may be tried again.
                (self.phase.running().cloned().map(Phase::Running), Err(e))
            }
            Outcome::Stopped(Err(e)) => (
                Some(Phase::Failed {
                    reason: e.report().message,
                }),
                Err(e),
            ),
            Outcome::StopCancelled => (
                self.phase.running().cloned().map(Phase::Running),
                Err(Error::Cancelled),
            ),
            Outcome::Ended(Ending::Orderly, Ok(())) => (Some(Phase::Stopped), Ok(())),
            Outcome::Ended(Ending::Bad(reason), Ok(())) => (Some(Phase::Failed { reason }), Ok(())),
            Outcome::Ended(_, Err(e)) => (
                Some(Phase::Failed {
                    reason: e.report().message,
                }),
                Ok(()),
            ),
            Outcome::Removed(Ok(())) => {
                self.leave(asked, Ok(()));
                return;
            }
            Outcome::Removed(Err(e)) => {
                let runs = match &self.machine {
                    Some(machine) => machine.exited().now_or_never().is_none(),
                    None => false,
                };
                if !runs {
                    self.machine = None;
                    self.guest = None;
                }
                let run = self.before.running().filter(|_| runs).cloned();
                let reason = e.report().message;
                (Some(run.map_or(Phase::Failed { reason }, Phase::Running)), Err(e))
            }
        };
        let created = matches!(self.phase, Phase::Creating);
        if let Some(phase) = phase {
            // A machine that was promised to its creator must survive a loss of power; a run does not anyway.
            if let Err(e) = keep(&self.host, &self.row.id, &phase, created).await {
                tracing::error!(
                    vm = self.row.name,
                    error = crate::error::chain(&e),
                    "phase not kept"
                );
            }
            self.publish(phase);
        }
        if let Some(asked) = asked {
            answer(asked, result);
        }
        let rests = matches!(self.phase, Phase::Stopped | Phase::Failed { .. });
        if rests && self.row.ephemeral && !created && !removal_failed {
            self.begin_remove(None);
        }
        for asked in std::mem::take(&mut self.waiting) {
            // Whoever asked may have changed their mind while it waited.
            if asked.progress.is_cancelled() {
                answer(asked, Err(Error::Cancelled));
            } else {
                self.on_request(asked).await;
            }
        }
    }

    /// The machine is no more, or never came to be.
    fn leave(&mut self, asked: Option<Asked>, result: Result<(), Error>) {
        self.removed = true;
        self.machines.forget(&self.row.id);
        if let Some(asked) = asked {
            answer(asked, result);
        }
        for asked in std::mem::take(&mut self.waiting) {
            let outcome = match asked.request {
                Request::Remove { .. } => Ok(()),
                Request::Start | Request::Stop | Request::Kill => Err(Error::Missing {
                    what: "machine",
                    name: self.row.name.clone(),
                    near: None,
                }),
            };
            answer(asked, outcome);
        }
    }

    // ---- phase -----------------------------------------------------------------------------------------------------

    async fn enter(&mut self, phase: Phase) -> Result<(), Error> {
        keep(&self.host, &self.row.id, &phase, false).await?;
        self.publish(phase);
        Ok(())
    }

    fn publish(&mut self, phase: Phase) {
        self.phase = phase;
        self.view.send_modify(|view| {
            view.phase = self.phase.clone();
            view.guest = self.guest.clone();
            view.generation += 1;
        });
    }

    fn rotate(&self) {
        for path in [self.paths.console(), self.paths.vmm_log(), self.paths.metrics()] {
            if let Err(e) = console::rotate(&path) {
                tracing::warn!(path = %path.display(), error = %e, "not rotated");
            }
        }
    }
}

fn answer(asked: Asked, result: Result<(), Error>) {
    // Whoever asked may be gone; what was asked for is done all the same.
    drop(asked.reply.send(result));
}

/// Keeps a phase in the row.
pub(crate) async fn keep(host: &Host, id: &str, phase: &Phase, synced: bool) -> Result<(), Error> {
    let text = crate::vm::machines::phase_text(phase)?;
    let what = match phase {
        // Kept by the row's insertion.
        Phase::Creating => Write::VmInsert,
        Phase::Stopped => Write::PhaseStopped,
        Phase::Starting => Write::PhaseStarting,
        Phase::Running(_) => Write::PhaseRunning,
        Phase::Stopping(_) => Write::PhaseStopping,
        Phase::Failed { .. } => Write::PhaseFailed,
        Phase::Removing => Write::PhaseRemoving,
    };
    let id = id.to_owned();
    if synced {
        host.store
            .write(what, move |tx| banger_store::vms::set_phase(tx, &id, &text))
            .await?;
    } else {
        host.store
            .note(what, move |tx| banger_store::vms::set_phase(tx, &id, &text))
            .await?;
    }
    Ok(())
}
