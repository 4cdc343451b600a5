//! Following an operation from its begin to its end.
//!
//! ```text
//! begin call ──► op.watch ──► ended: result
//!      │             │
//!      └── Ctrl-C ───┴──► op.cancel, go on watching until it has cleaned up ──► exit 130
//!                              └── Ctrl-C again: leave at once; the daemon goes on cleaning up
//! ```
//!
//! A signal is never lost between the two calls: a begin that was sent is always waited for, because only its answer
//! names what is to be cancelled.

use std::future::Future;

use banger_api::client::{Client, ClientError, Subscription};
use banger_api::types::{Operation, OperationRef, OperationState};

use crate::error::{CliError, Kind};
use crate::interrupt::Interrupts;
use crate::progress::Progress;

/// What a signal does to the operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OnInterrupt {
    /// It is cancelled, and what it made is removed.
    Cancel,
    /// It goes on without us: somebody else began it, or stopping half-way helps nobody.
    Leave,
}

/// How to follow.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Follow {
    /// Draw nothing.
    pub(crate) quiet: bool,
    /// What a signal does.
    pub(crate) on_interrupt: OnInterrupt,
}

/// An operation that succeeded.
#[derive(Debug)]
pub(crate) struct Followed {
    pub(crate) operation: Operation,
    /// A signal asked to cancel it, too late.
    pub(crate) interrupted: bool,
}

impl Follow {
    /// Follows what the user asked for: a signal cancels it.
    pub(crate) fn cancelling(quiet: bool) -> Self {
        Self {
            quiet,
            on_interrupt: OnInterrupt::Cancel,
        }
    }

    /// Follows what goes on regardless of the user.
    pub(crate) fn leaving(quiet: bool) -> Self {
        Self {
            quiet,
            on_interrupt: OnInterrupt::Leave,
        }
    }

    /// Waits for the call that begins an operation, then for the operation's end. Gives it back when it succeeded; a
    /// signal that came too late to cancel it is an error all the same.
    pub(crate) async fn run(
        self,
        client: &Client,
        interrupts: &mut Interrupts,
        begin: impl Future<Output = Result<Operation, ClientError>>,
    ) -> Result<Operation, CliError> {
        let followed = self.to_end(client, interrupts, begin).await?;
        match followed.interrupted {
            true => Err(too_late(&followed.operation)),
            false => Ok(followed.operation),
        }
    }

    /// As [`Follow::run`], for callers who undo what was done in spite of a signal.
    pub(crate) async fn to_end(
        self,
        client: &Client,
        interrupts: &mut Interrupts,
        begin: impl Future<Output = Result<Operation, ClientError>>,
    ) -> Result<Followed, CliError> {
        let mut progress = Progress::new(self.quiet);
        let mut interrupted = false;
        let mut begin = std::pin::pin!(begin);
        let operation = loop {
            // `begin` is pinned outside and `Interrupts::next` is cancel-safe: neither loses anything to the other.
            tokio::select! {
                operation = &mut begin => break operation?,
                _ = interrupts.next() => {
                    if interrupted {
                        return Err(CliError::interrupted("interrupted: the daemon may still carry out what it was asked"));
                    }
                    interrupted = true;
                }
            }
        };
        self.watch(client, interrupts, operation, interrupted, &mut progress)
            .await
    }

    async fn watch(
        self,
        client: &Client,
        interrupts: &mut Interrupts,
        begun: Operation,
        mut interrupted: bool,
        progress: &mut Progress,
    ) -> Result<Followed, CliError> {
        let reference = OperationRef {
            operation: begun.id.clone(),
        };
        let mut events = client.op_watch(reference.clone()).await?;
        let mut latest = begun;
        progress.update(latest.clone());
        let cancel = async {
            match self.on_interrupt {
                OnInterrupt::Cancel => client.op_cancel(reference.clone()).await.map(|_| ()),
                OnInterrupt::Leave => Ok(()),
            }
        };
        let mut cancel = std::pin::pin!(cancel);
        let mut cancelling = false;
        if interrupted {
            self.interrupted(&latest, progress)?;
            cancelling = true;
        }
        while !latest.state.ended() {
            let wake = progress.wake_at();
            // Cancel safety: `events.next` keeps a partly read line in the client's buffer, `cancel` is pinned outside,
            // signals stay pending, a timer has nothing to lose.
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
                signal = interrupts.next() => {
                    if interrupted {
                        return Err(CliError::interrupted(format!(
                            "left: the daemon goes on cleaning up {} (operation {})",
                            latest.subject, latest.id
                        )));
                    }
                    let _: i32 = signal;
                    interrupted = true;
                    self.interrupted(&latest, progress)?;
                    cancelling = true;
                }
                () = sleep_until(wake), if wake.is_some() => progress.draw(),
            }
        }
        Ok(Followed {
            operation: outcome(latest)?,
            interrupted,
        })
    }

    /// Says what the first signal does; an error where it leaves at once.
    fn interrupted(self, operation: &Operation, progress: &Progress) -> Result<(), CliError> {
        match self.on_interrupt {
            OnInterrupt::Cancel => {
                progress.line("cancelling; press Ctrl-C again to leave the clean-up to the daemon");
                Ok(())
            }
            OnInterrupt::Leave => Err(CliError::interrupted(format!(
                "left: {} of {} goes on in the daemon",
                operation.kind, operation.subject
            ))
            .hint(format!("`banger op watch {}` follows it again", operation.id))),
        }
    }
}

/// The machine or image is there although the signal came: saying so is better than a silent leftover.
pub(crate) fn too_late(operation: &Operation) -> CliError {
    CliError::interrupted(format!(
        "interrupted, but {} of {} was done already",
        operation.kind, operation.subject
    ))
}

async fn next_event(events: &mut Subscription<Operation>, latest: &Operation) -> Result<Operation, CliError> {
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
        Some(Err(error)) => Err(broken(format!(": {}", crate::error::chain(&error)))),
        None => Err(broken(String::new())),
    }
}

async fn sleep_until(at: Option<tokio::time::Instant>) {
    if let Some(at) = at {
        tokio::time::sleep_until(at).await;
    }
}

/// An ended operation as a command's result.
fn outcome(operation: Operation) -> Result<Operation, CliError> {
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
