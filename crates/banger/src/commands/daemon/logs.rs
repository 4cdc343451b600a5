//! `banger daemon logs`: what the daemon said.

use std::os::unix::process::CommandExt as _;
use std::process::Command;

use clap::Args;

use crate::context::Context;
use crate::error::{CliError, Kind};
use crate::service::{self, DAEMON, Scope};

/// Print the daemon's log
///
/// The journal's where it is installed as a service, otherwise its file.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  banger daemon logs
  banger daemon logs -n 50 -f
")]
pub(crate) struct Logs {
    /// Go on as it grows
    #[arg(short, long)]
    follow: bool,
    /// Only the last N lines
    #[arg(short = 'n', long, value_name = "N")]
    tail: Option<u32>,
}

impl Logs {
    /// Becomes journalctl or tail, which know how to follow; comes back only with an error.
    pub(crate) fn run(self, context: &Context) -> Result<u8, CliError> {
        let lines = self.tail.map(|lines| lines.to_string());
        let mut command = match service::in_charge(context.paths()) {
            Some(installed) => {
                let mut command = Command::new("journalctl");
                if installed.scope == Scope::User {
                    command.arg("--user");
                }
                command.args(["--unit", DAEMON]);
                if let Some(lines) = &lines {
                    command.args(["--lines", lines]);
                }
                command
            }
            None => {
                let log = &context.paths().log;
                if let Err(error) = std::fs::metadata(log) {
                    return Err(CliError::new(
                        Kind::of_io(&error),
                        format!("failed to read the daemon's log {}: {error}", log.display()),
                    )
                    .hint("a daemon in the foreground says it there"));
                }
                let mut command = Command::new("tail");
                let all = "+1".to_owned();
                command.arg("--lines").arg(lines.as_ref().unwrap_or(&all));
                command.arg(log);
                command
            }
        };
        if self.follow {
            command.arg("--follow");
        }
        let error = command.exec();
        Err(CliError::new(
            Kind::Prerequisite,
            format!("failed to run {}: {error}", command.get_program().display()),
        ))
    }
}
