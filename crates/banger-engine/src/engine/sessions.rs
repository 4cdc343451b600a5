//! Sessions: commands that run in guests beside everybody's connections.

use tokio::sync::mpsc;

use super::Engine;
use crate::error::Error;
use crate::session::{self, NewSession, Part, Piece, Session};

impl Engine {
    /// Starts a session in a machine that runs.
    pub async fn start_session(&self, vm: &str, new: NewSession) -> Result<Session, Error> {
        session::start(&self.host, &self.machines, vm, new).await
    }

    /// Sessions of a machine, or of all.
    pub async fn sessions(&self, vm: Option<&str>) -> Result<Vec<Session>, Error> {
        session::list(&self.host, &self.machines, vm).await
    }

    /// One session.
    pub async fn session(&self, vm: &str, session: &str) -> Result<Session, Error> {
        session::show(&self.host, &self.machines, vm, session).await
    }

    /// Waits for a session's end.
    pub async fn wait_session(&self, vm: &str, session: &str) -> Result<Session, Error> {
        session::wait(&self.host, &self.machines, vm, session).await
    }

    /// Sends a signal, 1 to 64, to a session's process group.
    pub async fn signal_session(&self, vm: &str, session: &str, number: u8) -> Result<(), Error> {
        session::signal(&self.host, &self.machines, vm, session, number).await
    }

    /// Removes a session that has ended, and its log. One that runs is killed before, where that is asked for.
    pub async fn remove_session(&self, vm: &str, session: &str, force: bool) -> Result<Session, Error> {
        session::remove(&self.host, &self.machines, vm, session, force).await
    }

    /// What a session wrote: pieces until the end, or, when following, until it ends or the receiver is dropped.
    pub async fn session_logs(
        &self,
        vm: &str,
        session: &str,
        part: Part,
    ) -> Result<mpsc::Receiver<Piece>, Error> {
        session::logs(&self.host, &self.machines, vm, session, part).await
    }
}
