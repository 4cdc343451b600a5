//! `banger exec`: a command in a running machine.

use banger_api::types::ExecOpen;
use clap::Args;

use crate::args::EnvVar;
use crate::context::Context;
use crate::error::CliError;
use crate::interrupt::Interrupts;
use crate::session::{self, Streams};
use crate::terminal;

/// Run a command in a running machine
///
/// Its standard output and error stay apart, and its exit code is this command's: 128 + N where signal N ended it, 125
/// when Banger itself failed, 126 when it cannot be run, 127 when the guest has no such command. Without -t, the
/// signals INT, TERM, HUP and QUIT are passed on to it.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  banger exec dev -- uname -a
  banger exec -it dev -- bash
  banger exec -u nobody -w /tmp -e LANG=C dev -- env
  tar c . | banger exec -i dev -- tar x -C /srv
")]
pub(crate) struct Exec {
    /// Machine, by name or id
    #[arg(value_name = "VM")]
    vm: String,
    #[command(flatten)]
    options: ExecOptions,
    /// Program and its arguments
    #[arg(value_name = "CMD", required = true, trailing_var_arg = true)]
    command: Vec<String>,
}

/// What `exec` and `run` say of a command.
#[derive(Debug, Clone, Args)]
pub(crate) struct ExecOptions {
    /// Send standard input; without it the command reads end of file
    #[arg(short, long)]
    pub(crate) interactive: bool,
    /// Give the command a terminal; implies -i where standard input is one
    #[arg(short, long)]
    pub(crate) tty: bool,
    /// Set a variable of the command's environment; KEY alone takes this shell's value
    #[arg(short, long, value_name = "KEY[=VALUE]")]
    env: Vec<EnvVar>,
    /// Working directory [default: the image's, or the user's home]
    #[arg(short, long, value_name = "DIR")]
    workdir: Option<String>,
    /// User (and group) by name or number [default: the image's, or root]
    #[arg(short, long, value_name = "USER[:GROUP]")]
    user: Option<String>,
}

impl ExecOptions {
    /// The streams the command gets. A terminal that could not be typed at is of no use to who sits at one.
    pub(crate) fn streams(&self) -> Streams {
        Streams {
            stdin: self.interactive || (self.tty && terminal::stdin_is_terminal()),
            terminal: self.tty,
        }
    }

    /// What was asked for that only a command can have.
    pub(crate) fn first_given(&self) -> Option<&'static str> {
        let given = [
            ("--env", !self.env.is_empty()),
            ("--workdir", self.workdir.is_some()),
            ("--user", self.user.is_some()),
        ];
        given.into_iter().find(|(_, given)| *given).map(|(name, _)| name)
    }

    /// What to ask of the daemon; the streams are the session's matter.
    pub(crate) fn open(self, vm: String, command: Vec<String>) -> ExecOpen {
        let env = self
            .env
            .into_iter()
            .filter_map(|var| var.value.map(|value| (var.key, value)));
        ExecOpen {
            vm,
            command,
            env: env.collect(),
            workdir: self.workdir,
            user: self.user,
            stdin: false,
            terminal: None,
        }
    }
}

impl Exec {
    pub(crate) async fn run(self, context: &Context) -> Result<u8, CliError> {
        self.attempt(context).await.map_err(CliError::of_exec)
    }

    async fn attempt(self, context: &Context) -> Result<u8, CliError> {
        let streams = self.options.streams();
        streams.check()?;
        let client = context.client().await?;
        let mut interrupts = Interrupts::listen()?;
        session::run(
            &client,
            &mut interrupts,
            streams,
            self.options.open(self.vm, self.command),
        )
        .await
    }
}
