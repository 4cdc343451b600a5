//! `banger run`: create, start and run in one step.

mod program;

use banger_api::ErrorKind;
use banger_api::client::{Client, ClientError};
use banger_api::types::{Image, ImagePull, ImageRef, VmCreate, VmRef};
use clap::Args;

use crate::commands::exec::ExecOptions;
use crate::commands::session::start;
use crate::commands::vm::create::{self, MachineArgs};
use crate::commands::vm::rm;
use crate::context::Context;
use crate::error::CliError;
use crate::interrupt::Interrupts;
use crate::operation::{End, Follow, detached, too_late};
use crate::session;
use crate::stdio::{self, say};

use program::Asked;

/// The session of what a machine was made for.
const MAIN: &str = "main";

/// Create and start a machine, and run a command in it
///
/// Without a command the machine is left running and its name is printed; with -i or -t and no command, a shell opens.
/// With a command, standard output carries only the command's, and its exit code is this command's (see `banger exec`).
/// With --detach the command goes on as the machine's session `main`, see `banger session`.
/// Where the image has a program of its own (ENTRYPOINT, CMD), that is the command, or what the command's words go to;
/// the image's user, directory and environment are the default for every command in its machines.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  banger run debian --name dev                      leave a machine running
  banger run busybox --rm -- sh -c 'echo hi'        one command in a machine of its own
  banger run -it --rm debian                        a shell in a machine of its own
  banger run debian --vcpus 4 --memory 4G -- make   with more of everything
  banger run debian --name ci --ttl 2h --detach     gone in two hours; do not wait for it
  banger run -d --rm --name web -p 8080:80 nginx    its program in the background; gone when it ends
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
    /// Program to run in place of the image's ENTRYPOINT and CMD; "" for none
    #[arg(long, value_name = "PROGRAM")]
    entrypoint: Option<String>,
    /// Leave the command to itself: print the machine's name when it has begun. Without a command, do not even wait for the
    /// machine, and print the operation's id
    #[arg(short, long, conflicts_with_all = ["interactive", "tty"])]
    detach: bool,
    /// Print no progress
    #[arg(short, long)]
    quiet: bool,
    /// Program and its arguments
    #[arg(value_name = "CMD", trailing_var_arg = true)]
    pub(crate) command: Vec<String>,
}

impl Run {
    pub(crate) async fn run(self, context: &Context) -> Result<u8, CliError> {
        let streams = self.options.streams();
        streams.check()?;
        // Of a command's errors, those that are Banger's have a code of their own.
        let with_command = !self.command.is_empty() || streams.stdin || streams.terminal;
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
            entrypoint,
            detach,
            quiet,
            command,
        } = self;
        let client = context.client().await?;
        let mut interrupts = Interrupts::listen()?;
        let config = image_of(&client, &mut interrupts, &image, quiet).await?.config;
        let streams = options.streams();
        let asked = Asked {
            entrypoint: entrypoint.as_deref(),
            command: &command,
            interactive: streams.stdin || streams.terminal,
        };
        let program = program::program(asked, config.as_ref());
        if command.is_empty() && streams.terminal && !streams.stdin && !program.is_empty() {
            return Err(CliError::usage(
                "a shell at a terminal needs one on standard input, which is none here",
            )
            .hint("name a command to run, or leave out -t"));
        }
        if let Some(option) = options.first_given().filter(|_| program.is_empty()) {
            return Err(
                CliError::usage(format!("{option} is for a command, and none is given"))
                    .hint("name one after the image, or open a shell with -it"),
            );
        }
        let params = VmCreate {
            start: true,
            ephemeral: rm,
            ..machine.create(name, image)?
        };
        // With a program, what goes on is the program: it is begun as soon as the machine is there.
        let follow = Follow::cancelling(quiet, detach && program.is_empty());
        let created = match follow
            .to_end(&client, &mut interrupts, client.vm_create(params))
            .await?
        {
            End::Done(created) => created,
            End::TooLate(created) => return create::discard(&client, &mut interrupts, created).await,
            End::Detached(operation) => return detached(&operation),
        };
        let name = created.subject;
        if program.is_empty() {
            stdio::print(&format!("{name}\n"))?;
            if !quiet && crate::terminal::stderr_is_terminal() {
                say!("{name} is running; get in with: banger exec -it {name} -- bash");
            }
            return Ok(0);
        }
        if detach {
            let open = options.open(name.clone(), program);
            // Of a machine that is to be removed when it stops, the program's end is the end.
            if let Err(error) = start::begin(&client, MAIN, open, rm).await {
                if rm && let Err(error) = rm::force(&client, &mut interrupts, name).await {
                    crate::cli::report(&error);
                }
                return Err(error);
            }
            stdio::print(&format!("{name}\n"))?;
            if !quiet && crate::terminal::stderr_is_terminal() {
                say!(
                    "its program goes on as the session {MAIN}; see it with: banger session logs -f {name} {MAIN}"
                );
            }
            return Ok(0);
        }
        // Removed by id: the name is free for others as soon as the machine stops by itself.
        let id = match rm {
            true => Some(client.vm_show(VmRef { vm: name.clone() }).await?.id),
            false => None,
        };
        let result = session::run(&client, &mut interrupts, streams, options.open(name, program)).await;
        if let Some(id) = id
            && let Err(error) = rm::force(&client, &mut interrupts, id).await
        {
            // The command's own end decides the exit code; a machine that stays behind is still said.
            crate::cli::report(&error);
        }
        result
    }
}

/// The image, which is pulled first where it is not there and its name says that it is a registry's. One without a tag and
/// a place may as well be a slip of the pen, or one that is made here: that is said instead.
async fn image_of(
    client: &Client,
    interrupts: &mut Interrupts,
    image: &str,
    quiet: bool,
) -> Result<Image, CliError> {
    let show = || {
        client.image_show(ImageRef {
            image: image.to_owned(),
        })
    };
    let is_reference = image.contains(['/', ':', '@']) && !image.starts_with("sha256:");
    match show().await {
        Err(ClientError::Rpc(error)) if error.kind == ErrorKind::NotFound && is_reference => {}
        found => return Ok(found?),
    }
    if !quiet {
        say!("{image} is not here yet: pulling it");
    }
    let params = ImagePull {
        reference: image.to_owned(),
        name: None,
        kernel: None,
    };
    match Follow::cancelling(quiet, false)
        .to_end(client, interrupts, client.image_pull(params))
        .await?
    {
        End::Done(_) => Ok(show().await?),
        End::TooLate(operation) => Err(too_late(&operation)),
        End::Detached(operation) => Err(CliError::usage(format!("operation {} goes on", operation.id))),
    }
}
