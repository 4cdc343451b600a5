//! The commands: one file each, with its arguments, its help and its function.
//!
//! A command turns arguments into calls of the contract and answers into output. It gives back the exit code; errors
//! carry theirs.

pub(crate) mod completions;
pub(crate) mod cp;
pub(crate) mod daemon;
pub(crate) mod doctor;
pub(crate) mod exec;
pub(crate) mod gc;
pub(crate) mod image;
pub(crate) mod kernel;
pub(crate) mod net;
pub(crate) mod op;
pub(crate) mod run;
pub(crate) mod runtime;
pub(crate) mod session;
pub(crate) mod ssh;
pub(crate) mod ssh_config;
pub(crate) mod ssh_proxy;
pub(crate) mod version;
pub(crate) mod vm;

use clap::Subcommand;

use crate::context::{Context, GlobalArgs};
use crate::error::CliError;

/// What can be asked.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Run(run::Run),
    Exec(exec::Exec),
    Ssh(ssh::Ssh),
    Cp(cp::Cp),
    #[command(visible_alias = "ps")]
    Ls(vm::ls::Ls),
    /// Manage machines
    #[command(subcommand, arg_required_else_help = true)]
    Vm(vm::Vm),
    /// Manage sessions: commands that go on in a machine whoever comes and goes
    #[command(subcommand, arg_required_else_help = true)]
    Session(session::Sessions),
    /// Manage images, which machines start from
    #[command(subcommand, arg_required_else_help = true)]
    Image(image::Image),
    /// Manage kernels, which images boot with
    #[command(subcommand, arg_required_else_help = true)]
    Kernel(kernel::Kernel),
    /// Manage runtimes: the VMMs that Banger installs itself
    #[command(subcommand, arg_required_else_help = true)]
    Runtime(runtime::Runtime),
    /// Look at the network of machines
    #[command(subcommand, arg_required_else_help = true)]
    Net(net::Net),
    /// Look at and cancel what takes time
    #[command(subcommand, arg_required_else_help = true)]
    Op(op::Op),
    /// Run, look at, install and stop the daemon
    #[command(subcommand, arg_required_else_help = true)]
    Daemon(daemon::Daemon),
    /// Let the host's own ssh, scp and editors reach machines
    #[command(subcommand, arg_required_else_help = true)]
    SshConfig(ssh_config::SshConfig),
    #[command(hide = true)]
    SshProxy(ssh_proxy::SshProxy),
    Gc(gc::Gc),
    Doctor(doctor::Doctor),
    Version(version::Version),
    Completions(completions::Completions),
}

impl Command {
    /// Runs a command. Those that need no daemon do not even look for where one would be.
    pub(crate) fn run(self, global: &GlobalArgs) -> Result<u8, CliError> {
        match self {
            Self::Completions(command) => command.run(),
            Self::Daemon(daemon::Daemon::Run(command)) => command.run(),
            Self::Run(command) => with_context(global, async |context| command.run(context).await),
            Self::Exec(command) => with_context(global, async |context| command.run(context).await),
            Self::Ssh(command) => with_context(global, async |context| command.run(context).await),
            Self::SshConfig(command) => with_context(global, async |context| command.run(context).await),
            Self::SshProxy(command) => with_context(global, async |context| command.run(context).await),
            Self::Cp(command) => with_context(global, async |context| command.run(context).await),
            Self::Ls(command) => with_context(global, async |context| command.run(context).await),
            Self::Vm(command) => with_context(global, async |context| command.run(context).await),
            Self::Session(command) => with_context(global, async |context| command.run(context).await),
            Self::Image(command) => with_context(global, async |context| command.run(context).await),
            Self::Kernel(command) => with_context(global, async |context| command.run(context).await),
            Self::Runtime(command) => with_context(global, async |context| command.run(context).await),
            Self::Net(command) => with_context(global, async |context| command.run(context).await),
            Self::Op(command) => with_context(global, async |context| command.run(context).await),
            Self::Daemon(command) => with_context(global, async |context| command.run(context).await),
            Self::Gc(command) => with_context(global, async |context| command.run(context).await),
            Self::Doctor(command) => with_context(global, async |context| command.run(context).await),
            Self::Version(command) => with_context(global, async |context| command.run(context).await),
        }
    }
}

fn with_context(
    global: &GlobalArgs,
    command: impl AsyncFnOnce(&Context) -> Result<u8, CliError>,
) -> Result<u8, CliError> {
    let context = Context::new(global)?;
    crate::context::block_on(command(&context))
}
