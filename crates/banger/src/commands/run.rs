//! `banger run`: create, start and run in one step.

use banger_api::types::{VmCreate, VmRef};
use clap::Args;

use crate::commands::exec::ExecOptions;
use crate::commands::vm::create::{self, MachineArgs};
use crate::commands::vm::rm;
use crate::context::Context;
use crate::error::CliError;
use crate::interrupt::Interrupts;
use crate::operation::{End, Follow, detached};
use crate::session;
use crate::stdio::{self, say};

/// Create and start a machine, and run a command in it
///
/// Without a command the machine is left running and its name is printed; with -i or -t and no command, a shell opens.
/// With a command, standard output carries only the command's, and its exit code is this command's (see `banger exec`).
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  banger run debian --name dev                      leave a machine running
  banger run busybox --rm -- sh -c 'echo hi'        one command in a machine of its own
  banger run -it --rm debian                        a shell in a machine of its own
  banger run debian --vcpus 4 --memory 4G -- make   with more of everything
  banger run debian --name ci --ttl 2h --detach     gone in two hours; do not wait for it
  banger run debian --name web -p 8080:80           its port 80 at http://127.0.0.1:8080
")]
pub(crate) struct Run {
    /// Image to start from
    #[arg(value_name = "IMAGE")]
    image: String,
    /// Name of the machine [default: made up]
    #[arg(long, value_name = "NAME")]
    pub(crate) name: Option<String>,
    /// Remove the machine when the command ends, or when it stops. Where this client is killed (SIGKILL) the machine
    /// goes on; `banger vm rm` removes it
    #[arg(long)]
    pub(crate) rm: bool,
    #[command(flatten)]
    options: ExecOptions,
    #[command(flatten)]
    machine: MachineArgs,
    /// Do not wait: print the operation's id and return at once
    #[arg(short, long, conflicts_with_all = ["interactive", "tty", "command"])]
    detach: bool,
    /// Print no progress
    #[arg(short, long)]
    quiet: bool,
    /// Program and its arguments
    #[arg(value_name = "CMD", trailing_var_arg = true)]
    pub(crate) command: Vec<String>,
}

/// The best shell an image has, as a login shell.
const SHELL: &str = "if [ -x /bin/bash ]; then exec /bin/bash -l; else exec /bin/sh -l; fi";

impl Run {
    pub(crate) async fn run(mut self, context: &Context) -> Result<u8, CliError> {
        let streams = self.options.streams();
        streams.check()?;
        if self.command.is_empty() && (streams.stdin || streams.terminal) {
            if !streams.stdin {
                return Err(CliError::usage(
                    "a shell at a terminal needs one on standard input, which is none here",
                )
                .hint("name a command to run, or leave out -t"));
            }
            self.command = ["/bin/sh", "-c", SHELL].map(str::to_owned).to_vec();
        }
        let with_command = !self.command.is_empty();
        if let Some(option) = self.options.first_given().filter(|_| !with_command) {
            return Err(
                CliError::usage(format!("{option} is for a command, and none is given"))
                    .hint("name one after the image, or open a shell with -it"),
            );
        }
        let result = self.attempt(context).await;
        if with_command {
            result.map_err(CliError::of_exec)
        } else {
            result
        }
    }

    async fn attempt(self, context: &Context) -> Result<u8, CliError> {
        let Self {
            image,
            name,
            rm,
            options,
            machine,
            detach,
            quiet,
            command,
        } = self;
        let params = VmCreate {
            start: true,
            ephemeral: rm,
            ..machine.create(name, image)?
        };
        let client = context.client().await?;
        let mut interrupts = Interrupts::listen()?;
        let follow = Follow::cancelling(quiet, detach);
        let created = match follow
            .to_end(&client, &mut interrupts, client.vm_create(params))
            .await?
        {
            End::Done(created) => created,
            End::TooLate(created) => return create::discard(&client, &mut interrupts, created).await,
            End::Detached(operation) => return detached(&operation),
        };
        let name = created.subject;
        if command.is_empty() {
            stdio::print(&format!("{name}\n"))?;
            if !quiet && crate::terminal::stderr_is_terminal() {
                say!("{name} is running; get in with: banger exec -it {name} -- bash");
            }
            return Ok(0);
        }
        // Removed by id: the name is free for others as soon as the machine stops by itself.
        let id = match rm {
            true => Some(client.vm_show(VmRef { vm: name.clone() }).await?.id),
            false => None,
        };
        let streams = options.streams();
        let result = session::run(&client, &mut interrupts, streams, options.open(name, command)).await;
        if let Some(id) = id
            && let Err(error) = rm::force(&client, &mut interrupts, id).await
        {
            // The command's own end decides the exit code; a machine that stays behind is still said.
            crate::cli::report(&error);
        }
        result
    }
}
