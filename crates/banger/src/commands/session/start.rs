//! `banger session start`: a command that goes on.

use banger_api::client::Client;
use banger_api::types::{ExecOpen, Session, SessionStart};
use clap::Args;

use crate::args::EnvVar;
use crate::context::Context;
use crate::error::CliError;
use crate::stdio;

/// Start a command that goes on in a machine, whoever comes and goes
///
/// It has neither standard input nor a terminal. What it writes is kept by the daemon, the last 16 MiB of it, and can be
/// read also when the machine is stopped. It ends by itself, by `banger session signal`, or with its machine.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  banger session start dev -- make -j2
  banger session start dev --name web -w /srv -- python3 -m http.server 80
  banger session start ci --stop-machine -- sh -c './test.sh'
")]
pub(crate) struct Start {
    /// Machine, by name or id
    #[arg(value_name = "VM")]
    vm: String,
    /// Name of the session [default: after its program]
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Set a variable of the command's environment; KEY alone takes this shell's value
    #[arg(short, long, value_name = "KEY[=VALUE]")]
    env: Vec<EnvVar>,
    /// Working directory [default: the image's, or the user's home]
    #[arg(short, long, value_name = "DIR")]
    workdir: Option<String>,
    /// User (and group) by name or number [default: the image's, or root]
    #[arg(short, long, value_name = "USER[:GROUP]")]
    user: Option<String>,
    /// Stop the machine when the command ends
    #[arg(long)]
    stop_machine: bool,
    /// Program and its arguments
    #[arg(value_name = "CMD", required = true, trailing_var_arg = true)]
    command: Vec<String>,
}

impl Start {
    pub(crate) async fn run(self, context: &Context) -> Result<u8, CliError> {
        let Self {
            vm,
            name,
            env,
            workdir,
            user,
            stop_machine,
            command,
        } = self;
        let env = env
            .into_iter()
            .filter_map(|var| var.value.map(|value| (var.key, value)));
        let params = SessionStart {
            vm,
            name,
            command,
            env: env.collect(),
            workdir,
            user,
            ends_machine: stop_machine,
        };
        let started = context.client().await?.session_start(params).await?;
        stdio::print(&format!("{}\n", started.name))?;
        Ok(0)
    }
}

/// Starts a command as `exec` would have it, which then goes on by itself.
pub(crate) async fn begin(
    client: &Client,
    name: &str,
    open: ExecOpen,
    ends_machine: bool,
) -> Result<Session, CliError> {
    let ExecOpen {
        vm,
        command,
        env,
        workdir,
        user,
        stdin: _,
        terminal: _,
    } = open;
    let params = SessionStart {
        vm,
        name: Some(name.to_owned()),
        command,
        env,
        workdir,
        user,
        ends_machine,
    };
    Ok(client.session_start(params).await?)
}
