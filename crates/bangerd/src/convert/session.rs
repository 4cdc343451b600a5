//! Sessions as the contract has them.

use banger_api::types;
use banger_engine::session::{Outcome, Session, SessionState};

pub(crate) fn session(session: Session) -> types::Session {
    let Session {
        id,
        name,
        vm,
        command,
        user,
        state,
        started,
        ended,
        ends_machine,
    } = session;
    let (state, exit_code, signal, reason) = match state {
        SessionState::Running => (types::SessionState::Running, None, None, None),
        SessionState::Ended(Outcome::Code(code)) => (types::SessionState::Exited, Some(code), None, None),
        SessionState::Ended(Outcome::Signal(number)) => {
            (types::SessionState::Exited, None, Some(number), None)
        }
        SessionState::Ended(Outcome::Lost(reason)) => (types::SessionState::Lost, None, None, Some(reason)),
    };
    types::Session {
        id,
        name,
        vm,
        command,
        user,
        state,
        exit_code,
        signal,
        reason,
        started,
        ended,
        ends_machine,
    }
}
