//! `banger vm`: machines.

pub(crate) mod create;
pub(crate) mod health;
pub(crate) mod kill;
pub(crate) mod logs;
pub(crate) mod ls;
pub(crate) mod many;
pub(crate) mod ping;
pub(crate) mod ports;
pub(crate) mod publish;
pub(crate) mod rename;
pub(crate) mod reset;
pub(crate) mod restart;
pub(crate) mod rm;
pub(crate) mod set;
pub(crate) mod show;
pub(crate) mod start;
pub(crate) mod stats;
mod stats_table;
pub(crate) mod stop;
pub(crate) mod unpublish;
pub(crate) mod wait;

use clap::Subcommand;

use crate::context::Context;
use crate::error::CliError;

/// What can be done with machines.
#[derive(Debug, Subcommand)]
pub(crate) enum Vm {
    Create(create::Create),
    Ls(ls::Ls),
    Show(show::Show),
    Start(start::Start),
    Stop(stop::Stop),
    Restart(restart::Restart),
    Kill(kill::Kill),
    Rm(rm::Rm),
    Set(set::Set),
    Reset(reset::Reset),
    Rename(rename::Rename),
    Stats(stats::Stats),
    Health(health::Health),
    Wait(wait::Wait),
    Ping(ping::Ping),
    Ports(ports::Ports),
    Publish(publish::Publish),
    Unpublish(unpublish::Unpublish),
    Logs(logs::Logs),
}

impl Vm {
    pub(crate) async fn run(self, context: &Context) -> Result<u8, CliError> {
        match self {
            Self::Create(command) => command.run(context).await,
            Self::Ls(command) => command.run(context).await,
            Self::Show(command) => command.run(context).await,
            Self::Start(command) => command.run(context).await,
            Self::Stop(command) => command.run(context).await,
            Self::Restart(command) => command.run(context).await,
            Self::Kill(command) => command.run(context).await,
            Self::Rm(command) => command.run(context).await,
            Self::Set(command) => command.run(context).await,
            Self::Reset(command) => command.run(context).await,
            Self::Rename(command) => command.run(context).await,
            Self::Stats(command) => command.run(context).await,
            Self::Health(command) => command.run(context).await,
            Self::Wait(command) => command.run(context).await,
            Self::Ping(command) => command.run(context).await,
            Self::Ports(command) => command.run(context).await,
            Self::Publish(command) => command.run(context).await,
            Self::Unpublish(command) => command.run(context).await,
            Self::Logs(command) => command.run(context).await,
        }
    }
}
