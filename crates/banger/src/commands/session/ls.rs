//! `banger session ls`: sessions of a machine, or of all.

use banger_api::types::{Session, SessionsOf};
use clap::Args;
use jiff::Timestamp;

use super::{command, state};
use crate::context::Context;
use crate::error::CliError;
use crate::output::OutputArgs;
use crate::{human, table};

/// List sessions, those that have ended among them
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  banger session ls
  banger session ls dev -o json
")]
pub(crate) struct Ls {
    /// Machine, by name or id [default: all]
    #[arg(value_name = "VM")]
    vm: Option<String>,
    #[command(flatten)]
    output: OutputArgs,
}

impl Ls {
    pub(crate) async fn run(self, context: &Context) -> Result<u8, CliError> {
        let params = SessionsOf { vm: self.vm };
        let sessions = context.client().await?.session_list(params).await?;
        let now = Timestamp::now();
        self.output.print(
            &sessions,
            |sessions| sessions.iter().map(|session| session.name.as_str()).collect(),
            |sessions| render(sessions, now),
        )
    }
}

fn render(sessions: &[Session], now: Timestamp) -> String {
    let row = |session: &Session| {
        [
            session.vm.clone(),
            session.name.clone(),
            state(session),
            human::format_age(session.started, now),
            command(session),
        ]
    };
    let headers = ["VM", "SESSION", "STATE", "AGE", "COMMAND"];
    table::render(headers, sessions.iter().map(row))
}

#[cfg(test)]
mod tests {
    use banger_api::types::SessionState;

    use super::*;

    #[test]
    fn table() {
        let running = super::super::example();
        let exited = Session {
            name: "sh".into(),
            state: SessionState::Exited,
            exit_code: Some(3),
            ..running.clone()
        };
        let killed = Session {
            state: SessionState::Exited,
            signal: Some(9),
            command: vec!["it's".into(), String::new()],
            ..running.clone()
        };
        let lost = Session {
            state: SessionState::Lost,
            ..running.clone()
        };
        let now: Timestamp = "2026-02-01T00:01:00Z".parse().unwrap();
        insta::assert_snapshot!(render(&[running, exited, killed, lost], now), @r"
        VM    SESSION   STATE      AGE   COMMAND
        dev   build     running    1m    sh -c 'make -j2'
        dev   sh        exited 3   1m    sh -c 'make -j2'
        dev   build     signal 9   1m    'it'\''s' ''
        dev   build     lost       1m    sh -c 'make -j2'
        ");
    }
}
