//! Banger's daemon: wiring, RPC entry points, signals. How anything is done is the engine's matter.
//!
//! ```text
//! main       arguments, environment, configuration, directories, lock, log     (synchronous)
//!   └ daemon   engine, socket, server, signals, ordered end                     (asynchronous)
//!       └ service   one function a method: validate, convert, delegate
//!            ├ convert        the engine's types to the wire's
//!            └ guest_stream   frames to and from the guest's agent
//! ```
//!
//! Long-lived tasks: those of `banger_api::server` and of `banger_engine`, one for SIGHUP, and one for each watched
//! operation. They end with the runtime, after the ordered end in `daemon`.

mod args;
mod config;
mod convert;
mod daemon;
mod directories;
mod guest_stream;
mod lock;
mod log;
mod process;
mod service;
mod validate;

use std::path::PathBuf;
use std::process::ExitCode;

use banger_engine::Proxies;
use clap::Parser;

use crate::args::{Args, Command, Run};
use crate::config::{ConfigError, Loaded};
use crate::daemon::{Daemon, RunError};
use crate::directories::{Directories, DirectoryError, Environment, Named};
use crate::lock::{Lock, LockError};
use crate::process::GroupError;

/// Why the daemon did not start, or did not stay.
#[derive(Debug, thiserror::Error)]
enum MainError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Group(#[from] GroupError),
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    #[error(transparent)]
    Lock(#[from] LockError),
    #[error("start the asynchronous runtime")]
    Runtime(#[source] std::io::Error),
    #[error(transparent)]
    Run(#[from] RunError),
    #[cfg(feature = "crash-points")]
    #[error(transparent)]
    Arm(#[from] banger_engine::crash::ArmError),
}

impl MainError {
    /// What to try.
    fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Config(ConfigError::Invalid { .. } | ConfigError::Registry { .. }) => {
                Some("the file config.default.toml documents every key with its default")
            }
            Self::Config(ConfigError::Read { .. } | ConfigError::TooLarge { .. }) => {
                Some("name another file with --config or BANGER_CONFIG")
            }
            Self::Group(_) => Some("create the group, or change `group` under [daemon]"),
            Self::Directory(error) => Some(error.hint()),
            Self::Lock(LockError::Held { .. }) => Some(
                "use that one, stop it with `banger daemon stop`, or name another directory with --state-dir",
            ),
            Self::Lock(LockError::Io { .. }) => {
                Some("check the permissions and the file system, or name another directory with --state-dir")
            }
            Self::Runtime(_) => None,
            Self::Run(error) => error.hint(),
            #[cfg(feature = "crash-points")]
            Self::Arm(_) => None,
        }
    }
}

fn main() -> ExitCode {
    #[cfg_attr(
        not(feature = "crash-points"),
        expect(
            clippy::infallible_destructuring_match,
            reason = "there is a second command with the feature"
        )
    )]
    let run = match Args::parse().command {
        Command::Run(run) => run,
        #[cfg(feature = "crash-points")]
        Command::CrashPoints => {
            for point in banger_engine::crash::Point::all() {
                println!("{}", point.name());
            }
            return ExitCode::SUCCESS;
        }
    };
    match start(run) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // One line, as whoever started the daemon shows it.
            let hint = error
                .hint()
                .map(|hint| format!(" (hint: {hint})"))
                .unwrap_or_default();
            eprintln!("bangerd: failed to {}{hint}", chain(&error));
            ExitCode::FAILURE
        }
    }
}

/// An error with its causes.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        next = cause.source();
    }
    text
}

/// The environment, read here and nowhere else. Empty variables count as absent.
fn environment() -> Environment {
    let path = |name| {
        std::env::var_os(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    // Either way of writing it is in use; curl prefers the first.
    let text = |names: [&str; 2]| {
        let mut set = names.into_iter().filter_map(|name| std::env::var(name).ok());
        set.find(|value| !value.is_empty())
    };
    let uid = rustix::process::geteuid().as_raw();
    Environment {
        uid,
        home: path("HOME"),
        xdg_state_home: path("XDG_STATE_HOME"),
        xdg_runtime_dir: banger_api::places::session_directory(path("XDG_RUNTIME_DIR"), uid),
        xdg_config_home: path("XDG_CONFIG_HOME"),
        path: std::env::var_os("PATH"),
        docker_config: path("DOCKER_CONFIG"),
        proxies: Proxies {
            http: text(["http_proxy", "HTTP_PROXY"]),
            https: text(["https_proxy", "HTTPS_PROXY"]),
            no_proxy: text(["no_proxy", "NO_PROXY"]).unwrap_or_default(),
        },
        executable: std::env::current_exe().ok(),
    }
}

/// Has the tests choose where this process dies, and where it records the points it passes.
#[cfg(feature = "crash-points")]
fn arm_crash_points() -> Result<(), banger_engine::crash::ArmError> {
    let at = std::env::var("BANGER_CRASH_AT").ok();
    let path = |name| std::env::var_os(name).map(PathBuf::from);
    let (record, from) = (path("BANGER_CRASH_RECORD"), path("BANGER_CRASH_FROM"));
    banger_engine::crash::arm(at.as_deref(), record.as_deref(), from.as_deref())
}

/// Everything that is checked before anything is touched, then the daemon.
fn start(run: Run) -> Result<(), MainError> {
    process::limit_arenas();
    #[cfg(feature = "crash-points")]
    arm_crash_points()?;
    let environment = environment();
    let config = run.config.as_ref().filter(|path| !path.as_os_str().is_empty());
    let loaded = match (config, environment.default_config()) {
        (Some(named), _) => Loaded::read(named, true)?,
        (None, Some(default)) => Loaded::read(&default, false)?,
        (None, None) => Loaded::default(),
    };
    let config = &loaded.config;
    log::start(
        run.log_level.unwrap_or(config.daemon.log_level),
        run.log_format.unwrap_or(config.daemon.log_format),
    );
    for key in &loaded.unknown_keys {
        tracing::warn!(key, file = ?loaded.file, "unknown key in the configuration");
    }
    let group = config
        .daemon
        .group
        .as_deref()
        .map(process::group_id)
        .transpose()?;
    let named = Named {
        state_dir: run.state_dir,
        runtime_dir: run.runtime_dir,
        socket: run.socket,
    };
    let directories = Directories::find(&named, config, &environment)?;
    directories.check(environment.uid)?;
    directories.make_state()?;
    let lock = Lock::take(&directories.state)?;
    directories.make_runtime(group)?;
    process::raise_open_files();

    let runtime = tokio::runtime::Builder::new_multi_thread()
        // The work is waiting; what computes runs on the blocking threads.
        .worker_threads(2)
        .max_blocking_threads(64)
        .thread_name("bangerd")
        // As the first thread has. Unoptimised builds keep every copy of a future that they move; what is not touched
        // costs nothing.
        .thread_stack_size(8 << 20)
        .enable_all()
        .build()
        .map_err(MainError::Runtime)?;
    let daemon = Daemon {
        directories,
        group,
        loaded,
        environment,
    };
    let result = runtime.block_on(daemon.run(lock));
    // What still runs was told to stop and did not; the next daemon takes up what it leaves.
    runtime.shutdown_background();
    Ok(result?)
}
