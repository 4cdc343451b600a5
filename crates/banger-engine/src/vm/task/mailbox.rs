//! A machine's address, and what is sent to it.

use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};

use crate::error::Error;
use crate::image::registry::Found;
use crate::operation::Progress;
use crate::vm::change::{Change, SetVm};
use crate::vm::policy::{Request, State};
use crate::vm::state::View;

/// What comes back: what was changed, which is nothing for all but `Set`.
pub(super) type Answer = Result<Vec<Change>, Error>;

/// A request with the way back.
pub(super) struct Asked {
    pub(super) what: What,
    pub(super) caller: Caller,
}

/// What is asked for, with all that belongs to it.
pub(super) enum What {
    /// Work of some length, which is an operation's.
    Work(Request, Terms),
    /// Other settings.
    Set(Box<SetVm>),
    /// Another name.
    Rename(String),
}

impl What {
    /// As the policy sees it.
    pub(super) fn request(&self) -> Request {
        match self {
            Self::Work(request, _) => *request,
            Self::Set(_) => Request::Set,
            Self::Rename(_) => Request::Rename,
        }
    }
}

/// Terms of a piece of work.
#[derive(Debug, Clone, Default)]
pub(crate) struct Terms {
    /// From the begin of a start to the agent's answer. Absent: the configured default.
    pub(crate) start_timeout: Option<Duration>,
    /// From asking the guest to stop to forcing it; zero forces at once. Absent: the configured default.
    pub(crate) stop_timeout: Option<Duration>,
    /// The image to move to. Absent: the one it has.
    pub(crate) image: Option<Box<Found>>,
    /// Nobody asked: the machine's own task did.
    pub(crate) automatic: bool,
}

/// Who asked.
pub(super) struct Caller {
    /// The operation, where it is one's work.
    pub(super) progress: Option<Progress>,
    reply: oneshot::Sender<Answer>,
}

impl Caller {
    pub(super) fn new(progress: Option<Progress>) -> (Self, oneshot::Receiver<Answer>) {
        let (reply, answer) = oneshot::channel();
        (Self { progress, reply }, answer)
    }

    pub(super) fn answer(self, answer: Answer) {
        // Whoever asked may be gone; what was asked for is done all the same.
        drop(self.reply.send(answer));
    }

    pub(super) fn is_cancelled(&self) -> bool {
        self.progress.as_ref().is_some_and(Progress::is_cancelled)
    }

    /// Resolves when the operation is cancelled; never without one. Cancel-safe.
    pub(super) async fn cancelled(&self) {
        match &self.progress {
            Some(progress) => progress.cancelled().await,
            None => std::future::pending().await,
        }
    }
}

/// A machine's address.
#[derive(Clone)]
pub(crate) struct Handle {
    pub(crate) id: String,
    pub(super) mailbox: mpsc::Sender<Box<Asked>>,
    pub(crate) view: watch::Receiver<View>,
}

impl Handle {
    /// The machine's name, as it is now.
    pub(crate) fn name(&self) -> String {
        self.view.borrow().row.name.clone()
    }

    /// Asks for work and waits for its outcome. Cancelling goes through the operation, not by dropping this.
    pub(crate) async fn ask(&self, request: Request, terms: Terms, progress: &Progress) -> Result<(), Error> {
        let what = What::Work(request, terms);
        self.send(what, Some(progress.clone())).await.map(drop)
    }

    /// Changes settings; says what is different since.
    pub(crate) async fn set(&self, set: SetVm) -> Result<Vec<Change>, Error> {
        self.send(What::Set(Box::new(set)), None).await
    }

    /// Gives it another name.
    pub(crate) async fn rename(&self, name: String) -> Result<(), Error> {
        self.send(What::Rename(name), None).await.map(drop)
    }

    async fn send(&self, what: What, progress: Option<Progress>) -> Answer {
        let (caller, answer) = Caller::new(progress);
        let asked = Box::new(Asked { what, caller });
        self.mailbox.try_send(asked).map_err(|e| match e {
            mpsc::error::TrySendError::Full(_) => Error::Busy { vm: self.name() },
            mpsc::error::TrySendError::Closed(_) => self.gone(),
        })?;
        answer.await.map_err(|_| self.gone())?
    }

    /// Its task has ended: with the machine, which was then being removed, or with the daemon.
    fn gone(&self) -> Error {
        if self.view.borrow().phase.state() != State::Removing {
            return Error::ShuttingDown;
        }
        Error::Missing {
            what: "machine",
            name: self.name(),
            near: None,
        }
    }
}
