//! The one task that owns a machine. Requests come through a bounded mailbox; what is done with each is
//! [`policy`](crate::vm::policy)'s to say. At most one piece of work is under way; dropping it is how it is preempted, and
//! the ledger knows what it left.
//!
//! ```text
//!   mailbox --> decide --Run------> step --outcome--> phase, kept and published --> next step, or the requests that
//!                  |---Preempt----> drop the work, then Run                         wait are decided anew
//!                  |---Queue------> waiting (until cancelled)
//!   machine's exit --> collect the run --> Stopped | Failed --> removed, when ephemeral
//!                                      |-> Due --wait, turn--> step (start)                       see `own`
//!   wall clock past the expiry --> stop, remove                                                   see `own`
//! ```
//!
//! - `mailbox`: the address and what is sent to it.
//! - `work`: the futures of the steps.
//! - `outcome`: what becomes of the machine when one ends.
//! - `alter`: settings, name, disks that grow.
//! - `own`: what the task does without being asked.

mod alter;
mod mailbox;
mod outcome;
mod own;
mod work;

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use banger_agent_api::AgentClient;
use banger_store::vms::VmRow;
use banger_vmm::{Machine, MachineExit};
use jiff::Timestamp;
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot, watch};
use tokio::time::Instant;

use crate::crash::Write;
use crate::error::{Error, chain};
use crate::host::Host;
use crate::operation::Progress;
use crate::vm::change::Change;
use crate::vm::clock;
use crate::vm::console;
use crate::vm::machines::{Machines, phase_text};
use crate::vm::policy::{Decision, Request, State, Step, decide, steps};
use crate::vm::state::{Paths, Phase, View};
use mailbox::{Answer, Asked, Caller, What};
pub(crate) use mailbox::{Handle, Terms};
use outcome::Outcome;
use own::Waiting;

/// Requests that may wait in a mailbox, and again as many for work to end. Full means busy.
const WAITING: usize = 16;
/// How often the files that a VMM appends to are looked at, and a phase that could not be kept is tried again.
const ROTATION: Duration = Duration::from_secs(10);

type Boxed<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// Work under way, and who asked for it.
struct Work {
    caller: Option<Caller>,
    terms: Terms,
    /// The steps after this one.
    rest: &'static [Step],
    /// What a change has come to so far, for when it is broken off.
    changes: Vec<Change>,
    future: Boxed<Outcome>,
}

enum Event {
    Work(Outcome),
    Exit(MachineExit),
    /// Somebody who waits at this place has changed their mind.
    Withdrawn(usize),
    /// A start that the daemon makes by itself may be made.
    Turn(OwnedSemaphorePermit),
    Rotate,
    Expiry,
    Asked(Box<Asked>),
    Closed,
}

/// How a task begins.
pub(crate) enum Begin {
    /// A new machine: its disks are to be made, and it is to be started where asked. What fails of it leaves nothing.
    Create {
        progress: Progress,
        reply: oneshot::Sender<Result<(), Error>>,
        start: bool,
    },
    /// One that rests, or is to be started by itself.
    Resting(Phase),
    /// One that an earlier daemon left running, or in the middle of being stopped, which then goes on.
    Adopted(Phase, Arc<dyn Machine>, AgentClient),
    /// One that is to be removed.
    Remove,
}

struct Task {
    host: Arc<Host>,
    machines: Machines,
    row: VmRow,
    paths: Paths,
    phase: Phase,
    /// The phase in the row, as far as it was kept.
    kept: Phase,
    /// The row has another phase than it should: to be tried again.
    unkept: bool,
    view: watch::Sender<View>,
    machine: Option<Arc<dyn Machine>>,
    guest: Option<AgentClient>,
    /// When the run began, on the clock that nobody sets.
    up_since: Instant,
    work: Option<Work>,
    /// Where it stood before the work at hand, for one that changes nothing.
    before: Phase,
    /// Why a creation failed, while what it made is removed.
    undoing: Option<Error>,
    waiting: VecDeque<Asked>,
    /// A start that is to be made by itself.
    due: Option<Waiting>,
    /// The turn of the start at work.
    turn: Option<OwnedSemaphorePermit>,
    /// When the expiry was last found to have passed without anything coming of it.
    expiry_tried: Option<Instant>,
    removed: bool,
}

/// Starts a machine's task.
pub(crate) fn spawn(host: Arc<Host>, machines: &Machines, row: VmRow, begin: Begin) -> Handle {
    let paths = Paths::new(&host.settings.state_dir, &host.settings.runtime_dir, &row.id);
    let (phase, machine, guest) = match &begin {
        Begin::Create { .. } => (Phase::Creating, None, None),
        Begin::Resting(phase) => (phase.clone(), None, None),
        Begin::Adopted(phase, machine, guest) => (phase.clone(), Some(machine.clone()), Some(guest.clone())),
        Begin::Remove => (Phase::Removing, None, None),
    };
    let first = View {
        row: row.clone(),
        phase: phase.clone(),
        generation: 0,
        guest: guest.clone(),
        machine: machine.clone(),
        restarts_at: None,
    };
    let (view, watched) = watch::channel(first);
    let (mailbox, requests) = mpsc::channel(WAITING);
    let handle = Handle {
        id: row.id.clone(),
        mailbox,
        view: watched,
    };
    let ran = phase
        .running()
        .map_or(Duration::ZERO, |run| clock::since(Timestamp::now(), run.since));
    let name = row.name.clone();
    let mut task = Task {
        host,
        machines: machines.clone(),
        row,
        paths,
        kept: phase.clone(),
        phase,
        unkept: false,
        view,
        machine,
        guest,
        up_since: Instant::now().checked_sub(ran).unwrap_or_else(Instant::now),
        work: None,
        before: Phase::Stopped,
        undoing: None,
        waiting: VecDeque::new(),
        due: None,
        turn: None,
        expiry_tried: None,
        removed: false,
    };
    match begin {
        Begin::Create {
            progress,
            reply,
            start,
        } => task.begin_create(progress, reply, start),
        Begin::Remove => task.begin_remove(None, Terms::default()),
        Begin::Resting(_) => task.wait_for_turn(),
        Begin::Adopted(phase, ..) => {
            task.host.ports.follow(&task.row.id, task.guest.as_ref());
            // Somebody asked for its end, and was not told of another decision since.
            if let Phase::Stopping(_) = phase {
                task.go_on_stopping();
            }
        }
    }
    // In the table before the task runs, which may take it out again at once.
    machines.add(&name, handle.clone());
    machines.spawn(task.run(requests));
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

/// Resolves with the place of the first that was cancelled of those who wait.
async fn withdrawn(waiting: &VecDeque<Asked>) -> usize {
    if waiting.is_empty() {
        return std::future::pending().await;
    }
    let all = waiting.iter().map(|asked| Box::pin(asked.caller.cancelled()));
    futures_util::future::select_all(all).await.1
}

impl Task {
    /// Its life. What seldom runs is boxed: a machine that rests costs what [`Self::next`] takes, and there may be
    /// thousands.
    async fn run(mut self, mut requests: mpsc::Receiver<Box<Asked>>) {
        let mut open = true;
        while !self.removed && (open || self.work.is_some()) {
            match self.next(&mut requests, open).await {
                Event::Work(outcome) => {
                    if let Some(work) = self.work.take() {
                        Box::pin(self.on_outcome(outcome, work)).await;
                    }
                }
                Event::Exit(exit) => self.on_exit(&exit).await,
                Event::Withdrawn(at) => {
                    if let Some(asked) = self.waiting.remove(at) {
                        asked.caller.answer(Err(Error::Cancelled));
                    }
                }
                Event::Turn(turn) => Box::pin(self.on_turn(turn)).await,
                Event::Rotate => Box::pin(self.rotate()).await,
                Event::Expiry => Box::pin(self.on_expiry()).await,
                Event::Asked(asked) => Box::pin(self.on_request(*asked)).await,
                Event::Closed => open = false,
            }
        }
    }

    /// The next thing to see to: what happened, then what is late, then what is new.
    async fn next(&mut self, requests: &mut mpsc::Receiver<Box<Asked>>, open: bool) -> Event {
        let now = Instant::now();
        let idle = self.work.is_none();
        // A stop waits for the exit itself; a change of a machine that runs does not.
        let watched = idle || self.state() == State::Changing;
        let looks = self.machine.is_some() || !idle || self.unkept;
        let rotation = clock::next_tick(self.machines.epoch, now, ROTATION);
        let expiry = self.next_look_at_expiry(now).filter(|_| open);
        tokio::select! {
            biased;
            // The future stays in `self.work` until it has given its outcome, so nothing of it is lost.
            outcome = outcome_of(&mut self.work), if !idle => Event::Work(outcome),
            // `exited` may be asked again.
            exit = exit_of(self.machine.as_ref()), if watched => Event::Exit(exit),
            // Whoever was cancelled is so the next time as well.
            at = withdrawn(&self.waiting) => Event::Withdrawn(at),
            // It stays in `self.due` until it has given the turn.
            turn = own::turn_of(&mut self.due), if idle && open => Event::Turn(turn),
            // Timers; dropping them loses nothing, their time is reckoned anew.
            () = tokio::time::sleep_until(rotation), if looks => Event::Rotate,
            () = tokio::time::sleep_until(expiry.unwrap_or(now)), if expiry.is_some() => Event::Expiry,
            // `recv` is cancel-safe: a request is taken out only when this arm wins.
            asked = requests.recv(), if open => asked.map_or(Event::Closed, Event::Asked),
        }
    }

    /// Where it stands, for decisions. The phase of a machine that is being changed is that of one that runs.
    fn state(&self) -> State {
        match (self.phase.state(), &self.work) {
            (State::Running, Some(_)) => State::Changing,
            (state, _) => state,
        }
    }

    /// As [`Self::state`]; of a machine that could be removed by half only, there is nothing that could run.
    fn state_for(&self, request: Request) -> State {
        let half = matches!((&self.kept, &self.phase), (Phase::Removing, Phase::Failed(_)));
        match request {
            Request::Start | Request::Restart | Request::Reset { .. } if half => State::Removing,
            Request::Start
            | Request::Stop
            | Request::Kill
            | Request::Restart
            | Request::Reset { .. }
            | Request::Set
            | Request::Rename
            | Request::Remove { .. }
            | Request::Expire => self.state(),
        }
    }

    // ---- requests --------------------------------------------------------------------------------------------------

    async fn on_request(&mut self, asked: Asked) {
        let request = asked.what.request();
        let automatic = matches!(&asked.what, What::Work(_, terms) if terms.automatic);
        // The start that the turn is for does not give it up.
        if request.settles() && !(automatic && request == Request::Start) {
            self.give_up_turn().await;
        }
        match decide(self.state_for(request), request) {
            Decision::Run => self.begin(asked).await,
            Decision::Preempt => {
                self.turn = None;
                if let Some(Work {
                    caller: Some(caller),
                    changes,
                    ..
                }) = self.work.take()
                {
                    // A change is kept whatever becomes of its way into the guest.
                    let is_change = self.phase.state() == State::Running;
                    caller.answer(if is_change {
                        Ok(changes)
                    } else {
                        Err(Error::Cancelled)
                    });
                }
                self.begin(asked).await;
            }
            Decision::Queue if self.waiting.len() < WAITING => self.waiting.push_back(asked),
            Decision::Queue => {
                let vm = self.row.name.clone();
                asked.caller.answer(Err(Error::Busy { vm }));
            }
            Decision::Done => asked.caller.answer(Ok(Vec::new())),
            Decision::Refuse(refusal) => {
                let vm = self.row.name.clone();
                asked.caller.answer(Err(Error::Refused { vm, refusal }));
            }
        }
    }

    async fn begin(&mut self, asked: Asked) {
        let Asked { what, caller } = asked;
        match what {
            What::Work(request, terms) => {
                let steps = steps(self.phase.state(), request);
                self.step(Some(caller), terms, steps).await;
            }
            What::Set(set) => self.set(&set, caller).await,
            What::Rename(name) => self.rename(name, caller).await,
        }
    }

    /// Decides anew about those who waited for work to end.
    async fn go_on(&mut self) {
        for asked in std::mem::take(&mut self.waiting) {
            // Whoever asked may have changed their mind while it waited.
            if asked.caller.is_cancelled() {
                asked.caller.answer(Err(Error::Cancelled));
            } else {
                self.on_request(asked).await;
            }
        }
    }

    /// The machine is no more, or never came to be.
    fn leave(&mut self, caller: Option<Caller>, answer: Answer) {
        self.removed = true;
        self.machines.forget(&self.row.id);
        if let Some(caller) = caller {
            caller.answer(answer);
        }
        for asked in std::mem::take(&mut self.waiting) {
            let answer = match asked.what.request() {
                Request::Remove { .. } | Request::Expire => Ok(Vec::new()),
                Request::Start
                | Request::Stop
                | Request::Kill
                | Request::Restart
                | Request::Reset { .. }
                | Request::Set
                | Request::Rename => Err(Error::Missing {
                    what: "machine",
                    name: self.row.name.clone(),
                    near: None,
                }),
            };
            asked.caller.answer(answer);
        }
    }

    // ---- phase -----------------------------------------------------------------------------------------------------

    /// Keeps a phase before it is entered: on an error nothing has changed.
    async fn enter(&mut self, phase: Phase) -> Result<(), Error> {
        keep(&self.host, &self.row.id, &phase, false).await?;
        self.kept = phase.clone();
        self.unkept = false;
        self.publish(phase);
        Ok(())
    }

    /// The machine stands so, whether or not that can be kept. What cannot be is tried again.
    async fn settle(&mut self, phase: Phase) {
        self.publish(phase);
        self.keep_phase().await;
    }

    async fn keep_phase(&mut self) {
        // A machine that was promised to its creator must survive a loss of power; a run does not anyway.
        let synced = matches!(self.kept, Phase::Creating);
        match keep(&self.host, &self.row.id, &self.phase, synced).await {
            Ok(()) => {
                self.kept = self.phase.clone();
                self.unkept = false;
            }
            Err(e) => {
                self.unkept = true;
                tracing::error!(vm = self.row.name, error = chain(&e), "phase not kept yet");
            }
        }
    }

    fn publish(&mut self, phase: Phase) {
        self.phase = phase;
        self.show();
    }

    fn show(&self) {
        self.host.ports.follow(&self.row.id, self.guest.as_ref());
        self.view.send_modify(|view| {
            view.phase = self.phase.clone();
            view.guest = self.guest.clone();
            view.machine = self.machine.clone();
            view.restarts_at = self.due.as_ref().and_then(Waiting::at);
            view.generation += 1;
        });
    }

    /// As [`Self::show`], with a row that has changed.
    fn show_row(&self) {
        self.view.send_modify(|view| view.row = self.row.clone());
        self.show();
    }

    async fn rotate(&mut self) {
        if self.unkept && self.work.is_none() {
            self.keep_phase().await;
        }
        self.host.ports.retry(&self.row.id);
        for path in [self.paths.console(), self.paths.vmm_log(), self.paths.metrics()] {
            if let Err(e) = console::rotate(&path) {
                tracing::warn!(path = %path.display(), error = %e, "not rotated");
            }
        }
    }
}

/// Keeps a phase in the row.
pub(crate) async fn keep(host: &Host, id: &str, phase: &Phase, synced: bool) -> Result<(), Error> {
    let text = phase_text(phase)?;
    let what = match phase {
        // Kept by the row's insertion.
        Phase::Creating => Write::VmInsert,
        Phase::Stopped => Write::PhaseStopped,
        Phase::Starting => Write::PhaseStarting,
        Phase::Running(_) => Write::PhaseRunning,
        Phase::Stopping(_) => Write::PhaseStopping,
        Phase::Resetting => Write::PhaseResetting,
        Phase::Failed(_) => Write::PhaseFailed,
        Phase::Due(_) => Write::PhaseDue,
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
