//! What a machine's task does with a request in a state: plain, synchronous, complete.
//!
//! ```text
//!            create            start              agent answers           guest or host ends it
//!   (none) --------> Creating ------> Starting ----------------> Running -----------------------> Stopped | Failed
//!                       |  ^ done         |  ^                    |  ^ |                           |  ^     |
//!                       v  |              v  | start         grow v  | v stop, kill         reset  v  |     v remove
//!                     Stopped <---- (stop, kill, failure)     Changing  Stopping ---> Stopped   Resetting  Removing ---> (none)
//! ```
//!
//! [`decide`] says what becomes of a request, [`steps`] what it consists of. A request that arrives while work is under
//! way is decided anew when that work ends, unless it preempts it.

use std::fmt;

/// Where a machine stands, as far as decisions go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum State {
    /// Its disks are being made.
    Creating,
    /// No VMM runs.
    Stopped,
    /// A start is at work.
    Starting,
    /// The guest's agent has answered.
    Running,
    /// As running; a change of it is being applied to the guest.
    Changing,
    /// A stop or kill is at work.
    Stopping,
    /// No VMM runs; its system disk is being renewed.
    Resetting,
    /// As stopped; the last start or run ended badly.
    Failed,
    /// Its disks are being removed.
    Removing,
}

impl State {
    /// All, for exhaustive tests and listings.
    pub const ALL: [Self; 9] = [
        Self::Creating,
        Self::Stopped,
        Self::Starting,
        Self::Running,
        Self::Changing,
        Self::Stopping,
        Self::Resetting,
        Self::Failed,
        Self::Removing,
    ];

    /// Work is under way, whose end brings another state.
    pub fn in_motion(self) -> bool {
        match self {
            Self::Creating
            | Self::Starting
            | Self::Changing
            | Self::Stopping
            | Self::Resetting
            | Self::Removing => true,
            Self::Stopped | Self::Running | Self::Failed => false,
        }
    }
}

/// What can be asked of a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Request {
    /// Run.
    Start,
    /// Stop: ask the guest, then force.
    Stop,
    /// Stop at once.
    Kill,
    /// Stop where it runs, then run.
    Restart,
    /// Have a new system disk.
    Reset {
        /// Also when running: stop before, run afterwards.
        force: bool,
    },
    /// Have other settings.
    Set,
    /// Have another name.
    Rename,
    /// Cease to exist.
    Remove {
        /// Also when running.
        force: bool,
    },
    /// Cease to exist, because its time has come: stopped in order, whatever it does. Asked by its own task alone.
    Expire,
}

impl Request {
    /// All, for exhaustive tests.
    pub const ALL: [Self; 11] = [
        Self::Start,
        Self::Stop,
        Self::Kill,
        Self::Restart,
        Self::Reset { force: false },
        Self::Reset { force: true },
        Self::Set,
        Self::Rename,
        Self::Remove { force: false },
        Self::Remove { force: true },
        Self::Expire,
    ];

    /// Whether somebody who asks for this has decided whether the machine shall run, so that a start which the daemon had
    /// in mind by itself is off.
    pub fn settles(self) -> bool {
        match self {
            Self::Start
            | Self::Stop
            | Self::Kill
            | Self::Restart
            | Self::Reset { .. }
            | Self::Remove { .. }
            | Self::Expire => true,
            Self::Set | Self::Rename => false,
        }
    }
}

/// What is done with a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// Begin it now.
    Run,
    /// Break off the work under way, then begin it.
    Preempt,
    /// Decide again when the work under way has ended.
    Queue,
    /// It is so already.
    Done,
    /// No.
    Refuse(Refusal),
}

/// Why not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// It runs, and this needs it stopped.
    IsRunning,
    /// It runs, and its disk cannot be taken from under it.
    ResetNeedsForce,
    /// It is about to cease to exist.
    IsBeingRemoved,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::IsRunning | Self::ResetNeedsForce => "is running",
            Self::IsBeingRemoved => "is being removed",
        })
    }
}

impl Refusal {
    /// What to try instead.
    pub fn hint(self, vm: &str) -> Option<String> {
        match self {
            Self::IsRunning => Some(format!("stop it first: banger vm stop {vm}; or use --force")),
            Self::ResetNeedsForce => Some(format!(
                "stop it first: banger vm stop {vm}; or use --force, which stops it, renews its disk and starts it again"
            )),
            Self::IsBeingRemoved => None,
        }
    }
}

/// The table.
pub fn decide(state: State, request: Request) -> Decision {
    use Decision::{Done, Preempt, Queue, Refuse, Run};
    match (state, request) {
        // No VMM runs, but one may be meant to afterwards: a stop waits to see.
        (
            State::Creating | State::Resetting,
            Request::Start
            | Request::Stop
            | Request::Kill
            | Request::Restart
            | Request::Reset { .. }
            | Request::Set
            | Request::Rename
            | Request::Remove { force: false }
            | Request::Expire,
        ) => Queue,
        (State::Creating | State::Resetting, Request::Remove { force: true }) => Preempt,

        (
            State::Stopped | State::Failed,
            Request::Start
            | Request::Restart
            | Request::Reset { .. }
            | Request::Set
            | Request::Rename
            | Request::Remove { .. }
            | Request::Expire,
        ) => Run,
        (State::Stopped | State::Failed, Request::Stop | Request::Kill) => Done,

        // A second start waits for the first one's outcome and shares it by being decided then. What the guest is being
        // started with is not changed under it.
        (State::Starting, Request::Start | Request::Set | Request::Rename) => Queue,
        (
            State::Starting,
            Request::Stop
            | Request::Kill
            | Request::Restart
            | Request::Reset { force: true }
            | Request::Remove { force: true }
            | Request::Expire,
        ) => Preempt,

        (State::Running, Request::Start) => Done,
        (
            State::Running,
            Request::Stop
            | Request::Kill
            | Request::Restart
            | Request::Reset { force: true }
            | Request::Set
            | Request::Rename
            | Request::Remove { force: true }
            | Request::Expire,
        ) => Run,

        // The settings are kept already; what is broken off is only their way into the guest, which its next start makes.
        (State::Changing, Request::Start) => Done,
        (State::Changing, Request::Set | Request::Rename) => Queue,
        (
            State::Changing,
            Request::Stop
            | Request::Kill
            | Request::Restart
            | Request::Reset { force: true }
            | Request::Remove { force: true }
            | Request::Expire,
        ) => Preempt,

        (State::Starting | State::Running | State::Changing, Request::Reset { force: false }) => {
            Refuse(Refusal::ResetNeedsForce)
        }
        (State::Starting | State::Running | State::Changing, Request::Remove { force: false }) => {
            Refuse(Refusal::IsRunning)
        }

        (
            State::Stopping,
            Request::Start
            | Request::Stop
            | Request::Restart
            | Request::Reset { .. }
            | Request::Set
            | Request::Rename
            | Request::Remove { force: false }
            | Request::Expire,
        ) => Queue,
        (State::Stopping, Request::Kill | Request::Remove { force: true }) => Preempt,

        (State::Removing, Request::Remove { .. }) => Queue,
        (State::Removing, Request::Expire) => Done,
        (
            State::Removing,
            Request::Start
            | Request::Stop
            | Request::Kill
            | Request::Restart
            | Request::Reset { .. }
            | Request::Set
            | Request::Rename,
        ) => Refuse(Refusal::IsBeingRemoved),
    }
}

/// A piece of work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Step {
    /// Make the disks.
    Create,
    /// Bring up a VMM and its guest.
    Start,
    /// Ask the guest to stop, then force it.
    Stop,
    /// End the VMM at once.
    Kill,
    /// Make the next system disk and switch over.
    Reset,
    /// Remove all there is, the VMM included.
    Remove,
}

/// What a request consists of in the state in which it begins; the first one that fails is the last.
pub fn steps(state: State, request: Request) -> &'static [Step] {
    // A start that was broken off is brought down like a run: its VMM may be there.
    let up = match state {
        State::Starting | State::Running | State::Changing | State::Stopping => true,
        State::Creating | State::Stopped | State::Resetting | State::Failed | State::Removing => false,
    };
    match (request, up) {
        (Request::Start, _) | (Request::Restart, false) => &[Step::Start],
        (Request::Stop, _) => &[Step::Stop],
        (Request::Kill, _) => &[Step::Kill],
        (Request::Restart, true) => &[Step::Stop, Step::Start],
        (Request::Reset { .. }, false) => &[Step::Reset],
        (Request::Reset { .. }, true) => &[Step::Stop, Step::Reset, Step::Start],
        (Request::Remove { .. }, _) | (Request::Expire, false) => &[Step::Remove],
        (Request::Expire, true) => &[Step::Stop, Step::Remove],
        // Done by the task at once; see its `change`.
        (Request::Set | Request::Rename, _) => &[],
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What the machine comes to when a step succeeds; `None` when it ceases to exist.
    fn after(step: Step) -> Option<State> {
        match step {
            Step::Start => Some(State::Running),
            Step::Create | Step::Stop | Step::Kill | Step::Reset => Some(State::Stopped),
            Step::Remove => None,
        }
    }

    fn under_way(step: Step) -> State {
        match step {
            Step::Create => State::Creating,
            Step::Start => State::Starting,
            Step::Stop | Step::Kill => State::Stopping,
            Step::Reset => State::Resetting,
            Step::Remove => State::Removing,
        }
    }

    #[test]
    fn only_work_under_way_is_waited_for_or_preempted() {
        for state in State::ALL {
            for request in Request::ALL {
                match decide(state, request) {
                    Decision::Queue | Decision::Preempt => {
                        assert!(state.in_motion(), "{state:?} {request:?}");
                    }
                    Decision::Run => assert!(!state.in_motion(), "{state:?} {request:?}"),
                    Decision::Done | Decision::Refuse(_) => {}
                }
            }
        }
    }

    #[test]
    fn what_is_done_is_done() {
        // Asking again for what has been reached changes nothing.
        for (request, state) in [
            (Request::Start, State::Running),
            (Request::Stop, State::Stopped),
            (Request::Kill, State::Stopped),
        ] {
            assert_eq!(decide(state, request), Decision::Done, "{request:?}");
        }
    }

    #[test]
    fn force_and_time_are_never_refused() {
        for state in State::ALL {
            for request in [Request::Remove { force: true }, Request::Expire] {
                assert!(
                    !matches!(decide(state, request), Decision::Refuse(_)),
                    "{state:?} {request:?}"
                );
            }
        }
    }

    #[test]
    fn a_machine_that_runs_keeps_its_disks_unless_forced() {
        for state in [State::Starting, State::Running, State::Changing] {
            for request in [Request::Reset { force: false }, Request::Remove { force: false }] {
                assert!(
                    matches!(decide(state, request), Decision::Refuse(_)),
                    "{state:?} {request:?}"
                );
            }
        }
        // Whatever begins with a machine that runs, it is down before its disk is touched.
        for state in [State::Starting, State::Running, State::Changing] {
            let steps = steps(state, Request::Reset { force: true });
            assert_eq!(steps, [Step::Stop, Step::Reset, Step::Start]);
        }
    }

    /// A model of a task: one state, at most one request at work, a queue.
    #[derive(Debug, Default)]
    struct Model {
        state: Option<State>,
        /// The steps to come, the one at work first. Of a creation, whose request is not counted, as well.
        work: Vec<Step>,
        /// A setting is on its way into the guest.
        growing: bool,
        queue: Vec<Request>,
        answered: usize,
        asked: usize,
        /// Whether whoever began the work counts.
        counted: bool,
    }

    impl Model {
        fn created() -> Self {
            Self {
                state: Some(State::Creating),
                work: vec![Step::Create],
                ..Self::default()
            }
        }

        fn ask(&mut self, request: Request) {
            self.asked += 1;
            self.consider(request);
        }

        fn consider(&mut self, request: Request) {
            let Some(state) = self.state else {
                self.answered += 1;
                return;
            };
            match decide(state, request) {
                Decision::Run => self.begin(state, request),
                Decision::Preempt => {
                    self.answered += usize::from(self.counted || self.growing);
                    self.work.clear();
                    self.growing = false;
                    self.begin(state, request);
                }
                Decision::Queue => self.queue.push(request),
                Decision::Done | Decision::Refuse(_) => self.answered += 1,
            }
        }

        fn begin(&mut self, state: State, request: Request) {
            assert!(self.work.is_empty() && !self.growing);
            match request {
                // A change of what runs goes into the guest; every other is done at once.
                Request::Set if state == State::Running => {
                    self.growing = true;
                    self.state = Some(State::Changing);
                }
                Request::Set | Request::Rename => self.answered += 1,
                Request::Start
                | Request::Stop
                | Request::Kill
                | Request::Restart
                | Request::Reset { .. }
                | Request::Remove { .. }
                | Request::Expire => {
                    self.work = steps(state, request).to_vec();
                    self.counted = true;
                    self.state = Some(under_way(self.work[0]));
                }
            }
        }

        fn work_ends(&mut self, well: bool) {
            if self.growing {
                self.growing = false;
                self.answered += 1;
                self.state = Some(State::Running);
            } else if !self.work.is_empty() {
                let step = self.work.remove(0);
                self.state = match (well, step) {
                    (true, step) => after(step),
                    // What was never there is gone; anything else stays and says so.
                    (false, Step::Create) => None,
                    (false, _) => Some(State::Failed),
                };
                if well && let Some(next) = self.work.first() {
                    self.state = Some(under_way(*next));
                    return;
                }
                self.work.clear();
                self.answered += usize::from(std::mem::take(&mut self.counted));
            }
            for request in std::mem::take(&mut self.queue) {
                self.consider(request);
            }
        }
    }

    fn request() -> impl Strategy<Value = Request> {
        proptest::sample::select(Request::ALL.to_vec())
    }

    proptest! {
        #[test]
        fn every_request_is_answered_in_the_end(moves in prop::collection::vec((request(), 0..3_u8, any::<bool>()), 1..60)) {
            let mut model = Model::created();
            for (request, ends, well) in moves {
                model.ask(request);
                prop_assert_eq!(
                    !model.work.is_empty() || model.growing,
                    model.state.is_some_and(State::in_motion),
                    "{:?}", &model
                );
                for _ in 0..ends {
                    model.work_ends(well);
                }
            }
            // Work always ends; a queued request begins new work, of three steps at most.
            for _ in 0..=4 * model.asked + 4 {
                model.work_ends(true);
            }
            prop_assert_eq!(model.answered, model.asked, "{:?}", &model);
            prop_assert!(model.queue.is_empty() && model.work.is_empty() && !model.growing);
        }

        #[test]
        fn a_removal_that_is_forced_leaves_nothing(moves in prop::collection::vec((request(), 0..3_u8), 0..40)) {
            let mut model = Model::created();
            for (request, ends) in moves {
                model.ask(request);
                for _ in 0..ends {
                    model.work_ends(true);
                }
            }
            model.ask(Request::Remove { force: true });
            for _ in 0..=4 * model.asked + 4 {
                model.work_ends(true);
            }
            prop_assert_eq!(model.state, None);
        }
    }
}
