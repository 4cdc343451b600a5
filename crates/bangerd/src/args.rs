//! The command line.

use std::path::PathBuf;

use clap::{Parser, Subcommand};

use crate::config::{LogFormat, LogLevel};

/// Banger's daemon: keeps machines, images and kernels, and serves them to `banger` over a Unix socket.
#[derive(Debug, Parser)]
#[command(name = "bangerd", version, arg_required_else_help = true)]
pub(crate) struct Args {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Runs the daemon in the foreground until it is told to stop.
    ///
    /// SIGTERM and SIGINT stop it in order: calls at work are answered, operations are cancelled and clean up, machines
    /// go on running. A second one ends it at once. SIGHUP is ignored: the configuration is read when the daemon starts.
    #[command(after_help = EXAMPLES)]
    Run(Run),
    /// Lists the points at which BANGER_CRASH_AT makes this build die, a name a line.
    #[cfg(feature = "crash-points")]
    #[command(hide = true)]
    CrashPoints,
}

const EXAMPLES: &str = "\
Examples:
  bangerd run                                       as `banger` starts it on demand
  bangerd run --log-level debug                     to see what it does
  bangerd run --state-dir /srv/banger --log-format json
  BANGER_STATE_DIR=/tmp/b/state BANGER_RUNTIME_DIR=/tmp/b/run bangerd run

Exit codes: 0 stopped in order, 1 could not start, 2 bad usage.";

/// What `bangerd run` takes. Flags go before variables, these before the configuration file.
#[derive(Debug, clap::Args)]
pub(crate) struct Run {
    /// Configuration file [default: /etc/banger/config.toml for root, else $XDG_CONFIG_HOME/banger/config.toml]
    #[arg(long, value_name = "FILE", env = "BANGER_CONFIG", hide_env_values = true)]
    pub(crate) config: Option<PathBuf>,

    /// Where machines, images and the state file are [default: /var/lib/banger for root, else $XDG_STATE_HOME/banger]
    #[arg(long, value_name = "DIR", env = "BANGER_STATE_DIR", hide_env_values = true)]
    pub(crate) state_dir: Option<PathBuf>,

    /// Where sockets are [default: /run/banger for root, else $XDG_RUNTIME_DIR/banger]
    #[arg(long, value_name = "DIR", env = "BANGER_RUNTIME_DIR", hide_env_values = true)]
    pub(crate) runtime_dir: Option<PathBuf>,

    /// Socket to serve [default: bangerd.sock in the runtime directory]
    #[arg(long, value_name = "PATH")]
    pub(crate) socket: Option<PathBuf>,

    /// How much to log [default: info]
    #[arg(long, value_name = "LEVEL", value_enum)]
    pub(crate) log_level: Option<LogLevel>,

    /// What a line of the log looks like [default: text]
    #[arg(long, value_name = "FORMAT", value_enum)]
    pub(crate) log_format: Option<LogFormat>,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn help() {
        Args::command().debug_assert();
        let mut command = Args::command().term_width(100);
        command.build();
        let run = command.find_subcommand_mut("run").unwrap().clone();
        let help = format!(
            "{}\n----\n{}",
            command.render_long_help(),
            run.term_width(100).render_help()
        );
        insta::assert_snapshot!(help);
    }
}
