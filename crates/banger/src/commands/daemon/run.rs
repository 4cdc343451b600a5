//! `banger daemon run`: becomes the daemon.

use std::ffi::OsString;
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use clap::Args;

use crate::error::{CliError, Kind};
use crate::spawn;

/// Run the daemon in the foreground
///
/// Commands start the daemon by themselves; this is for looking at it and for service managers.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  banger daemon run
  banger daemon run -- --help
")]
pub(crate) struct Run {
    /// Arguments for `bangerd run`
    #[arg(value_name = "ARG", last = true)]
    arguments: Vec<OsString>,
}

impl Run {
    /// Replaces this process; comes back only with an error.
    pub(crate) fn run(self) -> Result<u8, CliError> {
        let program = spawn::find_program()?;
        let error = Command::new(&program).arg("run").args(self.arguments).exec();
        Err(CliError::new(
            Kind::Prerequisite,
            format!("failed to run {}: {error}", program.display()),
        ))
    }
}
