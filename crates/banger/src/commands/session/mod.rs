//! `banger session`: commands that go on in a machine whoever comes and goes.

mod logs;
mod ls;
mod rm;
mod show;
mod signal;
pub(crate) mod start;
mod wait;

use banger_api::types::{Session, SessionState};
use clap::{Args, Subcommand};

use crate::context::Context;
use crate::error::CliError;

/// What can be done with sessions.
#[derive(Debug, Subcommand)]
pub(crate) enum Sessions {
    Start(start::Start),
    Ls(ls::Ls),
    Show(show::Show),
    Logs(logs::Logs),
    Wait(wait::Wait),
    Signal(signal::Signal),
    Rm(rm::Rm),
}

impl Sessions {
    pub(crate) async fn run(self, context: &Context) -> Result<u8, CliError> {
        match self {
            Self::Start(command) => command.run(context).await,
            Self::Ls(command) => command.run(context).await,
            Self::Show(command) => command.run(context).await,
            Self::Logs(command) => command.run(context).await,
            Self::Wait(command) => command.run(context).await.map_err(CliError::of_exec),
            Self::Signal(command) => command.run(context).await,
            Self::Rm(command) => command.run(context).await,
        }
    }
}

/// Names one.
#[derive(Debug, Args)]
struct Which {
    /// Machine, by name or id
    #[arg(value_name = "VM")]
    vm: String,
    /// Session, by name
    #[arg(value_name = "SESSION")]
    session: String,
}

/// Whether it runs, or how it ended.
fn state(session: &Session) -> String {
    match (session.state, session.exit_code, session.signal) {
        (SessionState::Running, _, _) => "running".to_owned(),
        (SessionState::Exited, Some(code), _) => format!("exited {code}"),
        (SessionState::Exited, None, Some(signal)) => format!("signal {signal}"),
        (SessionState::Exited, None, None) => "exited".to_owned(),
        (SessionState::Lost, _, _) => "lost".to_owned(),
    }
}

/// A command as one would type it, for people.
fn command(session: &Session) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:,@%+".contains(c);
    let word = |word: &String| match !word.is_empty() && word.chars().all(plain) {
        true => word.clone(),
        false => format!("'{}'", word.replace('\'', r"'\''")),
    };
    session.command.iter().map(word).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
fn example() -> Session {
    Session {
        id: "a1b2c3d4e5".into(),
        name: "build".into(),
        vm: "dev".into(),
        command: vec!["sh".into(), "-c".into(), "make -j2".into()],
        user: None,
        state: SessionState::Running,
        exit_code: None,
        signal: None,
        reason: None,
        started: "2026-02-01T00:00:00Z".parse().unwrap(),
        ended: None,
        ends_machine: false,
    }
}
