//! What every command gets: the way to the daemon.

use std::future::Future;
use std::path::{Path, PathBuf};

use banger_api::client::{Client, ClientError, Unreachable};
use clap::Args;

use crate::error::{CliError, Kind};
use crate::paths::Paths;
use crate::service::{self, Systemctl};
use crate::spawn;

/// Flags that every command takes.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Global options")]
pub(crate) struct GlobalArgs {
    /// The daemon's socket
    #[arg(
        long,
        global = true,
        env = "BANGER_SOCKET",
        hide_env_values = true,
        value_name = "PATH"
    )]
    pub(crate) socket: Option<PathBuf>,
    /// Fail when the daemon does not run, rather than start it
    #[arg(
        long,
        global = true,
        env = "BANGER_NO_AUTOSTART",
        hide_env_values = true,
        value_parser = clap::builder::FalseyValueParser::new(),
    )]
    pub(crate) no_start: bool,
}

/// The way to the daemon.
#[derive(Debug)]
pub(crate) struct Context {
    paths: Paths,
    no_start: bool,
}

impl Context {
    pub(crate) fn new(global: &GlobalArgs) -> Result<Self, CliError> {
        let socket = global
            .socket
            .as_deref()
            .filter(|socket| !socket.as_os_str().is_empty());
        Ok(Self {
            paths: Paths::of_this_process(socket)?,
            no_start: global.no_start,
        })
    }

    /// The daemon's socket.
    pub(crate) fn socket(&self) -> &Path {
        &self.paths.socket
    }

    /// Where the daemon's files are.
    pub(crate) fn paths(&self) -> &Paths {
        &self.paths
    }

    /// Whether it was asked that no daemon be started.
    pub(crate) fn no_start(&self) -> bool {
        self.no_start
    }

    /// A client of the daemon, which is started where it does not run: by the service manager where Banger is
    /// installed as a service, by this process otherwise.
    pub(crate) async fn client(&self) -> Result<Client, CliError> {
        let client = Client::new(self.socket());
        match client.connect().await {
            Ok(()) => Ok(client),
            Err(ClientError::Unreachable {
                reason: Unreachable::NoSocket | Unreachable::Refused,
                ..
            }) if self.may_start() => {
                match service::in_charge(&self.paths) {
                    Some(installed) => {
                        // It comes back when the daemon listens.
                        let manager = Systemctl::new(installed.scope);
                        manager.run(&["start", service::DAEMON]).await?;
                        client
                            .connect()
                            .await
                            .map_err(|error| self.cannot_connect(error))?;
                    }
                    None => spawn::start(&self.paths).await?,
                }
                Ok(client)
            }
            Err(error) => Err(self.cannot_connect(error)),
        }
    }

    /// A client of the daemon that runs; none is started.
    pub(crate) async fn running_client(&self) -> Result<Client, CliError> {
        let client = Client::new(self.socket());
        client
            .connect()
            .await
            .map_err(|error| self.cannot_connect(error))?;
        Ok(client)
    }

    /// A daemon started here would serve the socket, and starting one is allowed.
    pub(crate) fn may_start(&self) -> bool {
        !self.no_start && self.paths.socket_is_default
    }

    /// Why there is no daemon to talk to, with what would help on this socket.
    fn cannot_connect(&self, error: ClientError) -> CliError {
        let ClientError::Unreachable { path, reason, source } = error else {
            return error.into();
        };
        let at = path.display();
        let error = |message: String| CliError::new(Kind::Unreachable, message);
        match reason {
            Unreachable::NoSocket | Unreachable::Refused => error(format!(
                "the daemon is not running: nobody listens on {at}"
            ))
            .hint(if self.paths.socket_is_default {
                "any command starts it unless --no-start is given; `banger daemon run` does so in the foreground"
                    .to_owned()
            } else {
                format!(
                    "none is started on a socket that --socket or BANGER_SOCKET names; leave that out, or serve it: \
                     banger daemon run -- --socket {at}"
                )
            }),
            Unreachable::Permission => CliError::new(
                Kind::Permission,
                format!("permission denied to use the daemon on {at}"),
            )
            .hint(
                "it is another user's; `group` under `[daemon]` in its configuration lets a group's members in",
            ),
            Unreachable::PathTooLong => error(format!("failed to connect to the daemon: {source}: {at}"))
                .hint("choose a shorter path with BANGER_RUNTIME_DIR or --socket"),
            Unreachable::Backlog => {
                error(format!("failed to connect to the daemon on {at}: it is too busy")).hint("try again")
            }
            Unreachable::Other => error(format!("failed to connect to the daemon on {at}: {source}")),
        }
    }
}

/// Runs a command's work on a runtime of this thread; threads that wait for the terminal are left behind.
pub(crate) fn block_on<F>(work: F) -> Result<u8, CliError>
where
    F: Future<Output = Result<u8, CliError>>,
{
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| CliError::general(format!("failed to start the runtime: {error}")))?;
    let result = runtime.block_on(work);
    runtime.shutdown_background();
    result
}
