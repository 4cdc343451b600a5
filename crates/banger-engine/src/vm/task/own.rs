//! What a machine's task does without being asked: start the machine again after it ended by itself or after the host has
//! booted, and remove it when its time has come. Each is an operation like those that people begin.

use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::{OwnedSemaphorePermit, oneshot};
use tokio::time::Instant;

use super::mailbox::{Asked, Caller, Terms, What};
use super::{Boxed, Task};
use crate::error::{Error, chain};
use crate::vm::clock;
use crate::vm::policy::{Decision, Request, decide};
use crate::vm::restart;
use crate::vm::state::Phase;

/// A start that is to be made, first waiting for its time and then for its turn.
pub(super) struct Waiting {
    at: Option<Timestamp>,
    turn: Boxed<OwnedSemaphorePermit>,
}

impl Waiting {
    /// Its time, where it waits for one.
    pub(super) fn at(&self) -> Option<Timestamp> {
        self.at
    }
}

/// Resolves with the turn of a start that waits for it; never, when none does.
pub(super) async fn turn_of(due: &mut Option<Waiting>) -> OwnedSemaphorePermit {
    match due {
        Some(waiting) => waiting.turn.as_mut().await,
        None => std::future::pending().await,
    }
}

impl Task {
    /// Where the machine is due to be started, sets that up.
    pub(super) fn wait_for_turn(&mut self) {
        let Phase::Due(due) = &self.phase else { return };
        let (turns, delay) = if due.autostart {
            (self.machines.autostarts.clone(), Duration::ZERO)
        } else {
            (self.machines.restarts.clone(), restart::delay(due.streak))
        };
        let until = Instant::now() + delay;
        let turn = Box::pin(async move {
            tokio::time::sleep_until(until).await;
            match turns.acquire_owned().await {
                Ok(turn) => turn,
                // Never closed.
                Err(_) => std::future::pending().await,
            }
        });
        let at = (!delay.is_zero()).then(|| Timestamp::now() + delay);
        self.due = Some(Waiting { at, turn });
        self.show();
    }

    /// Somebody has decided otherwise.
    pub(super) async fn give_up_turn(&mut self) {
        self.due = None;
        if let Phase::Due(due) = self.phase.clone() {
            self.settle(due.off()).await;
        }
    }

    pub(super) async fn on_turn(&mut self, turn: OwnedSemaphorePermit) {
        self.due = None;
        // What its outcome leads to, and what the next daemon makes of it, goes by the row: that must say it is due.
        if self.unkept {
            self.keep_phase().await;
        }
        let asked = match self.unkept {
            true => None,
            false => self.by_itself("vm.start", Request::Start).await,
        };
        let Some(asked) = asked else {
            // The state file cannot be written, or the daemon is ending.
            if let Phase::Due(due) = &mut self.phase {
                due.autostart = false;
                due.streak = due.streak.saturating_add(1);
            }
            self.wait_for_turn();
            return;
        };
        self.turn = Some(turn);
        self.on_request(asked).await;
    }

    /// Whether the machine's time has come.
    pub(super) fn expired(&self) -> bool {
        let expires = self.row.expires;
        expires.is_some_and(|time| clock::until(Timestamp::now(), time).is_none())
    }

    /// When to look at the clock for the expiry: when it should have come, and in between, since somebody may set the
    /// clock. After an attempt that came to nothing, at the next tick.
    pub(super) fn next_look_at_expiry(&self, now: Instant) -> Option<Instant> {
        let time = self.row.expires?;
        let tick = |from| clock::next_tick(self.machines.epoch, from, clock::WATCH);
        match clock::until(Timestamp::now(), time) {
            Some(left) if left < clock::WATCH => Some(now + left),
            Some(_) => Some(tick(now)),
            None => match decide(self.state(), Request::Expire) {
                Decision::Run | Decision::Preempt => Some(self.expiry_tried.map_or(now, tick).max(now)),
                // The end of what is at work looks.
                Decision::Queue | Decision::Done | Decision::Refuse(_) => None,
            },
        }
    }

    pub(super) async fn on_expiry(&mut self) {
        if !self.expired() {
            return;
        }
        match decide(self.state(), Request::Expire) {
            Decision::Run | Decision::Preempt => {
                self.expiry_tried = Some(Instant::now());
                tracing::info!(vm = self.row.name, expires = ?self.row.expires, "its time has come");
                if let Some(asked) = self.by_itself("vm.remove", Request::Expire).await {
                    self.on_request(asked).await;
                }
            }
            // Looked at again when what is at work ends.
            Decision::Queue | Decision::Done | Decision::Refuse(_) => {}
        }
    }

    /// An operation that nobody asked for, and its request.
    async fn by_itself(&mut self, kind: &'static str, request: Request) -> Option<Asked> {
        let (given, progress) = oneshot::channel();
        let begun = self
            .host
            .operations
            .begin(kind, &self.row.name, |progress| async move {
                let (caller, answer) = Caller::new(Some(progress));
                drop(given.send(caller));
                answer.await.map_err(|_| Error::ShuttingDown)?.map(drop)
            });
        if let Err(e) = begun.await {
            tracing::warn!(vm = self.row.name, error = chain(&e), kind, "not begun");
            return None;
        }
        let caller = progress.await.ok()?;
        let terms = Terms {
            automatic: true,
            ..Terms::default()
        };
        Some(Asked {
            what: What::Work(request, terms),
            caller,
        })
    }
}

#[cfg(test)]
#[path = "own_tests.rs"]
mod tests;
