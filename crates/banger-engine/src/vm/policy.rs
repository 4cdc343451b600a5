//! What a machine's task does with a request in a state: plain, synchronous, complete.
//!
//! ```text
//!            create            start              agent answers           guest or host ends it
//!   (none) --------> Creating ------> Starting ----------------> Running -----------------------> Stopped | Failed
//!                       |  ^ done         |  ^                     |                                  |
//!                       v  |              v  | start               v stop, kill                       v remove
//!                     Stopped <---- (stop, kill, failure)       Stopping ---> Stopped              Removing ---> (none)
//! ```
//!
//! A request that arrives while work is under way is decided anew when that work ends, unless it preempts it.

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
    /// A stop or kill is at work.
    Stopping,
    /// As stopped; the last start or run ended badly.
    Failed,
    /// Its disks are being removed.
    Removing,
}

impl State {
    /// All, for exhaustive tests and listings.
    pub const ALL: [Self; 7] = [
        Self::Creating,
        Self::Stopped,
        Self::Starting,
        Self::Running,
        Self::Stopping,
        Self::Failed,
        Self::Removing,
    ];

    /// Work is under way, whose end brings another state.
    pub fn in_motion(self) -> bool {
        match self {
            Self::Creating | Self::Starting | Self::Stopping | Self::Removing => true,
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
    /// Cease to exist.
    Remove {
        /// Also when running.
        force: bool,
    },
}

impl Request {
    /// All, for exhaustive tests.
    pub const ALL: [Self; 5] = [
        Self::Start,
        Self::Stop,
        Self::Kill,
        Self::Remove { force: false },
        Self::Remove { force: true },
    ];
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
    /// It is about to cease to exist.
    IsBeingRemoved,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::IsRunning => "is running",
            Self::IsBeingRemoved => "is being removed",
        })
    }
}

impl Refusal {
    /// What to try instead.
    pub fn hint(self, vm: &str) -> Option<String> {
        match self {
            Self::IsRunning => Some(format!("stop it first: banger vm stop {vm}; or use --force")),
            Self::IsBeingRemoved => None,
        }
    }
}

/// The table.
pub fn decide(state: State, request: Request) -> Decision {
    use Decision::{Done, Preempt, Queue, Refuse, Run};
    match (state, request) {
        (
            State::Creating,
            Request::Start | Request::Stop | Request::Kill | Request::Remove { force: false },
        ) => Queue,
        (State::Creating, Request::Remove { force: true }) => Preempt,

        (State::Stopped | State::Failed, Request::Start | Request::Remove { .. }) => Run,
        (State::Stopped | State::Failed, Request::Stop | Request::Kill) => Done,

        // A second start waits for the first one's outcome and shares it by being decided then.
        (State::Starting, Request::Start) => Queue,
        (State::Starting, Request::Stop | Request::Kill | Request::Remove { force: true }) => Preempt,
        (State::Starting | State::Running, Request::Remove { force: false }) => Refuse(Refusal::IsRunning),

        (State::Running, Request::Start) => Done,
        (State::Running, Request::Stop | Request::Kill | Request::Remove { force: true }) => Run,

        (State::Stopping, Request::Start | Request::Stop | Request::Remove { force: false }) => Queue,
        (State::Stopping, Request::Kill | Request::Remove { force: true }) => Preempt,

        (State::Removing, Request::Remove { .. }) => Queue,
        (State::Removing, Request::Start | Request::Stop | Request::Kill) => Refuse(Refusal::IsBeingRemoved),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What the machine comes to when work of a kind succeeds; `None` when it ceases to exist.
    fn after(request: Request) -> Option<State> {
        match request {
            Request::Start => Some(State::Running),
            Request::Stop | Request::Kill => Some(State::Stopped),
            Request::Remove { .. } => None,
        }
    }

    fn under_way(request: Request) -> State {
        match request {
            Request::Start => State::Starting,
            Request::Stop | Request::Kill => State::Stopping,
            Request::Remove { .. } => State::Removing,
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
        for request in [Request::Start, Request::Stop, Request::Kill] {
            let state = after(request).unwrap();
            assert_eq!(decide(state, request), Decision::Done, "{request:?}");
        }
    }

    #[test]
    fn force_is_never_refused() {
        for state in State::ALL {
            assert!(
                !matches!(
                    decide(state, Request::Remove { force: true }),
                    Decision::Refuse(_)
                ),
                "{state:?}"
            );
        }
    }

    /// A model of a task: one state, at most one request at work, a queue.
    #[derive(Debug, Default)]
    struct Model {
        state: Option<State>,
        at_work: Option<Request>,
        queue: Vec<Request>,
        answered: usize,
    }

    impl Model {
        fn ask(&mut self, request: Request) {
            let Some(state) = self.state else {
                self.answered += 1;
                return;
            };
            match decide(state, request) {
                Decision::Run => self.begin(request),
                Decision::Preempt => {
                    if self.at_work.take().is_some() {
                        self.answered += 1;
                    }
                    self.begin(request);
                }
                Decision::Queue => self.queue.push(request),
                Decision::Done | Decision::Refuse(_) => self.answered += 1,
            }
        }

        fn begin(&mut self, request: Request) {
            assert!(self.at_work.is_none());
            self.at_work = Some(request);
            self.state = Some(under_way(request));
        }

        fn work_ends(&mut self, well: bool) {
            if self.state == Some(State::Creating) {
                self.state = well.then_some(State::Stopped);
            } else if let Some(request) = self.at_work.take() {
                self.answered += 1;
                self.state = if well { after(request) } else { Some(State::Failed) };
            }
            for request in std::mem::take(&mut self.queue) {
                self.ask(request);
            }
        }
    }

    fn request() -> impl Strategy<Value = Request> {
        proptest::sample::select(Request::ALL.to_vec())
    }

    proptest! {
        #[test]
        fn every_request_is_answered_in_the_end(steps in prop::collection::vec((request(), any::<bool>(), any::<bool>()), 1..60)) {
            let mut model = Model { state: Some(State::Creating), ..Model::default() };
            let asked = steps.len();
            for (request, end, well) in steps {
                model.ask(request);
                prop_assert_eq!(model.at_work.is_some(), model.state.is_some_and(|s| s.in_motion() && s != State::Creating));
                if end {
                    model.work_ends(well);
                }
            }
            // Work always ends; queued requests begin new work, at most one each.
            for _ in 0..=asked {
                model.work_ends(true);
            }
            prop_assert_eq!(model.answered, asked);
            prop_assert!(model.queue.is_empty() && model.at_work.is_none());
        }
    }
}
