//! Following operations from their begin to their end.
//!
//! ```text
//! begin call ──► op.watch ──► ended: result
//!      │             │
//!      └── wish ─────┴──► cancel: op.cancel, go on watching until it has cleaned up ──► exit 130
//!           ▲        ├──► detach: print the operation's id ──► exit 0
//!           │        └──► abandon: leave at once; the daemon goes on cleaning up
//!           │
//! steer: Ctrl-C ── on a terminal asks "cancel? [Y/n/d]", elsewhere cancels ── Ctrl-C again: abandon
//! ```
//!
//! One [`steer`] serves all operations of a command; what the user wishes reaches each through a watch channel. A begin
//! that was sent is always waited for, because only its answer names what is to be cancelled.

use std::convert::Infallible;
use std::future::Future;
use std::time::Duration;

use banger_api::client::{Client, ClientError, Subscription};
use banger_api::types::{Operation, OperationRef, OperationState};
use tokio::sync::watch;

use crate::ask::{self, Choice};
use crate::error::{CliError, Kind};
use crate::interrupt::Interrupts;
use crate::progress::{Progress, Screen};
use crate::{stdio, terminal};

/// What a signal does to an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OnInterrupt {
    /// It is cancelled, and what it made is removed; who sits at a terminal is asked first.
    Cancel,
    /// It goes on without us: somebody else began it, or stopping half-way helps nobody.
    Leave,
}

/// What the user wants of the operations that are followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wish {
    /// To see them end.
    Follow,
    /// To have them cancelled.
    Cancel,
    /// To leave, and let them go on.
    Detach,
    /// To leave an operation that is not this command's.
    Leave,
    /// To leave at once; what can be cancelled is.
    Abandon,
}

/// How long leaving at once may take, for the daemon to be asked to cancel.
const PARTING: Duration = Duration::from_millis(250);

/// How to follow.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Follow {
    /// Draw nothing.
    quiet: bool,
    /// Say every stage, however short.
    eager: bool,
    /// Do not follow at all: the begin is enough.
    detach: bool,
    /// What a signal does.
    on_interrupt: OnInterrupt,
}

/// How following an operation ended well.
#[derive(Debug)]
pub(crate) enum End {
    /// It succeeded.
    Done(Operation),
    /// It succeeded although a signal asked to cancel it, which came too late.
    TooLate(Operation),
    /// It goes on without us, as was asked.
    Detached(Operation),
}

impl Follow {
    /// Follows what the user asked for: a signal cancels it.
    pub(crate) fn cancelling(quiet: bool, detach: bool) -> Self {
        Self {
            quiet,
            eager: false,
            detach,
            on_interrupt: OnInterrupt::Cancel,
        }
    }

    /// Follows what goes on regardless of the user.
    pub(crate) fn leaving(quiet: bool) -> Self {
        Self {
            quiet,
            eager: false,
            detach: false,
            on_interrupt: OnInterrupt::Leave,
        }
    }

    /// Follows what somebody began, for its stages' sake.
    pub(crate) fn watching(quiet: bool) -> Self {
        Self {
            eager: true,
            ..Self::leaving(quiet)
        }
    }

    /// Waits for the call that begins an operation, then for the operation's end.
    pub(crate) async fn to_end(
        self,
        client: &Client,
        interrupts: &mut Interrupts,
        begin: impl Future<Output = Result<Operation, ClientError>>,
    ) -> Result<End, CliError> {
        let screen = match self.eager {
            true => Screen::eager(self.quiet),
            false => Screen::new(self.quiet),
        };
        let (wishes, wish) = watch::channel(Wish::Follow);
        let end = follow(client, begin, self.detach, wish, Progress::new(&screen));
        // Whichever is dropped has nothing to lose: the end is the last thing that counts, and `steer` never ends.
        tokio::select! {
            biased;
            end = end => end,
            never = steer(interrupts, self.on_interrupt, &wishes, &screen) => match never {},
        }
    }

    /// As [`Follow::to_end`], for what nobody can leave.
    pub(crate) async fn run(
        self,
        client: &Client,
        interrupts: &mut Interrupts,
        begin: impl Future<Output = Result<Operation, ClientError>>,
    ) -> Result<Operation, CliError> {
        match self.to_end(client, interrupts, begin).await? {
            End::Done(operation) | End::Detached(operation) => Ok(operation),
            End::TooLate(operation) => Err(too_late(&operation)),
        }
    }

    /// Follows an operation whose result is a name, and prints that; the operation's id where it is left to itself.
    pub(crate) async fn print(
        self,
        client: &Client,
        interrupts: &mut Interrupts,
        begin: impl Future<Output = Result<Operation, ClientError>>,
    ) -> Result<u8, CliError> {
        match self.to_end(client, interrupts, begin).await? {
            End::Done(operation) => stdio::finish(&format!("{}\n", operation.subject)),
            End::Detached(operation) => detached(&operation),
            End::TooLate(operation) => Err(too_late(&operation)),
        }
    }
}

/// Prints the id of an operation that goes on by itself.
pub(crate) fn detached(operation: &Operation) -> Result<u8, CliError> {
    stdio::finish(&format!("{}\n", operation.id))
}

/// Turns signals into wishes, for as long as it is polled.
pub(crate) async fn steer(
    interrupts: &mut Interrupts,
    on_interrupt: OnInterrupt,
    wishes: &watch::Sender<Wish>,
    screen: &Screen,
) -> Infallible {
    let asks = terminal::stdin_is_terminal() && terminal::stderr_is_terminal();
    let mut interrupted = false;
    loop {
        let signal = interrupts.next().await;
        if on_interrupt == OnInterrupt::Leave {
            wishes.send_replace(Wish::Leave);
        } else if interrupted {
            wishes.send_replace(Wish::Abandon);
        } else if signal == libc::SIGINT && asks {
            match question(interrupts, screen).await {
                Wish::Cancel => {
                    interrupted = true;
                    cancelling(wishes, screen);
                }
                Wish::Follow => {}
                wish @ (Wish::Detach | Wish::Leave | Wish::Abandon) => {
                    wishes.send_replace(wish);
                }
            }
        } else {
            interrupted = true;
            cancelling(wishes, screen);
        }
    }
}

fn cancelling(wishes: &watch::Sender<Wish>, screen: &Screen) {
    screen.line("cancelling; press Ctrl-C again to leave the clean-up to the daemon");
    wishes.send_replace(Wish::Cancel);
}

/// Asks what Ctrl-C is to mean. A second one is an answer too.
async fn question(interrupts: &mut Interrupts, screen: &Screen) -> Wish {
    let _paused = screen.pause();
    let choices = [
        Choice::new('y', "cancel"),
        Choice::new('n', "go on"),
        Choice::new('d', "detach"),
    ];
    // Cancel safety: an answer that is half typed stays with the terminal; signals stay pending.
    tokio::select! {
        answer = ask::choose("cancel? (n: go on, d: go on without me) [Y/n/d] ", &choices) => match answer {
            Some('n') => Wish::Follow,
            Some('d') => Wish::Detach,
            // Return alone, and an end of the input.
            Some(_) | None => Wish::Cancel,
        },
        _ = interrupts.next() => Wish::Abandon,
    }
}

/// Begins an operation and follows it to its end, as far as the user wishes.
pub(crate) async fn follow(
    client: &Client,
    begin: impl Future<Output = Result<Operation, ClientError>>,
    detach: bool,
    mut wish: watch::Receiver<Wish>,
    mut progress: Progress,
) -> Result<End, CliError> {
    let abandoned = async {
        // The sender lives as long as this is polled; were it gone, nobody could wish anything any more.
        if wish.wait_for(|wish| *wish == Wish::Abandon).await.is_err() {
            std::future::pending::<()>().await;
        }
    };
    // Dropping `begin` here leaves only the answer unread; `abandoned` is cancel-safe.
    let mut latest = tokio::select! {
        biased;
        operation = begin => operation?,
        () = abandoned => {
            return Err(CliError::interrupted("interrupted: the daemon may still carry out what it was asked"));
        }
    };
    if detach {
        return Ok(End::Detached(latest));
    }
    let reference = OperationRef {
        operation: latest.id.clone(),
    };
    let mut events = client.op_watch(reference.clone()).await?;
    progress.update(latest.clone());
    let mut cancel = std::pin::pin!(async { client.op_cancel(reference).await.map(|_| ()) });
    // What is wished already counts as a change.
    wish.mark_changed();
    let (mut interrupted, mut cancelling) = (false, false);
    while !latest.state.ended() {
        let wake = progress.wake_at();
        // Cancel safety: `events.next` keeps a partly read line in the client's buffer, `cancel` is pinned outside,
        // `changed` marks nothing as seen before it returns, a timer has nothing to lose.
        tokio::select! {
            event = next_event(&mut events, &latest) => {
                latest = event?;
                progress.update(latest.clone());
            }
            answer = &mut cancel, if cancelling => {
                answer?;
                // The end itself comes through the watch.
                cancelling = false;
            }
            Ok(()) = wish.changed() => {
                let now = *wish.borrow_and_update();
                match now {
                    Wish::Follow => {}
                    Wish::Cancel if interrupted => {}
                    Wish::Cancel => (interrupted, cancelling) = (true, true),
                    Wish::Detach => return Ok(End::Detached(latest)),
                    Wish::Leave => return Err(left(&latest)),
                    Wish::Abandon => {
                        if !interrupted || cancelling {
                            // Whether it was heard is not waited for any longer.
                            tokio::time::timeout(PARTING, cancel).await.ok();
                        }
                        return Err(CliError::interrupted(format!(
                            "left: the daemon goes on cleaning up {} (operation {})",
                            latest.subject, latest.id
                        )));
                    }
                }
            }
            () = sleep_until(wake), if wake.is_some() => progress.draw(),
        }
    }
    drop(progress);
    let operation = outcome(latest)?;
    Ok(if interrupted {
        End::TooLate(operation)
    } else {
        End::Done(operation)
    })
}

fn left(operation: &Operation) -> CliError {
    CliError::interrupted(format!(
        "left: {} of {} goes on in the daemon",
        operation.kind, operation.subject
    ))
    .hint(format!("`banger op watch {}` follows it again", operation.id))
}

/// The machine or image is there although the signal came: saying so is better than a silent leftover.
pub(crate) fn too_late(operation: &Operation) -> CliError {
    CliError::interrupted(format!(
        "interrupted, but {} of {} was done already",
        operation.kind, operation.subject
    ))
}

/// The next state of a watched operation.
pub(crate) async fn next_event(
    events: &mut Subscription<Operation>,
    latest: &Operation,
) -> Result<Operation, CliError> {
    let broken = |reason: String| {
        CliError::new(
            Kind::Unreachable,
            format!(
                "lost the daemon during {} of {}{reason}",
                latest.kind, latest.subject
            ),
        )
        .hint(format!("`banger op show {}` says how it went", latest.id))
    };
    match events.next().await {
        Some(Ok(operation)) => Ok(operation),
        Some(Err(ClientError::Rpc(error))) => Err(error.into()),
        Some(Err(error)) => Err(broken(format!(": failed to {}", crate::error::chain(&error)))),
        None => Err(broken(String::new())),
    }
}

async fn sleep_until(at: Option<tokio::time::Instant>) {
    if let Some(at) = at {
        tokio::time::sleep_until(at).await;
    }
}

/// An ended operation as a command's result.
pub(crate) fn outcome(operation: Operation) -> Result<Operation, CliError> {
    let what = format!("{} of {}", operation.kind, operation.subject);
    match operation.state {
        OperationState::Succeeded => Ok(operation),
        // The error of a cancelled operation says no more than that.
        OperationState::Cancelled => Err(CliError::interrupted(format!("cancelled: {what}"))),
        OperationState::Running | OperationState::Cancelling | OperationState::Failed => Err(operation
            .error
            .map_or_else(|| CliError::general(format!("{what} failed")), CliError::from)),
    }
}
