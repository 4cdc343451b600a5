//! Where the daemon's socket and log are: from flags, environment and the configuration file, by the daemon's own rules.
//!
//! Everything is passed in, so that the rules can be tested; nothing here touches the file system but the reading of
//! the configuration file.

use std::path::{Path, PathBuf};

use banger_api::places::{RUNTIME_WITHOUT_SESSION, session_directory};

use crate::error::{CliError, Kind};

/// Name of the socket in the runtime directory.
const SOCKET: &str = "bangerd.sock";

/// Variables that change where the daemon's directories are. A service does not see them.
const ELSEWHERE: [&str; 5] = [
    "BANGER_STATE_DIR",
    "BANGER_RUNTIME_DIR",
    "BANGER_CONFIG",
    "XDG_STATE_HOME",
    "XDG_CONFIG_HOME",
];

/// Where things are, and whether the daemon may be started on demand.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Paths {
    /// Socket to connect to.
    pub(crate) socket: PathBuf,
    /// The daemon's log when it is started on demand: `bangerd.log` in its state directory.
    pub(crate) log: PathBuf,
    /// The socket is the one that a daemon started here would serve.
    pub(crate) socket_is_default: bool,
    /// Nothing in the environment puts the daemon elsewhere than a service of the host has it.
    pub(crate) is_plain: bool,
}

/// What the rules look at.
pub(crate) struct Surroundings<'a> {
    /// `--socket` or `BANGER_SOCKET`.
    pub(crate) socket: Option<&'a Path>,
    /// Runs as root.
    pub(crate) root: bool,
    /// An environment variable; empty counts as absent.
    pub(crate) variable: &'a dyn Fn(&str) -> Option<PathBuf>,
    /// Reads the configuration file; `None` where there is none.
    pub(crate) read: &'a dyn Fn(&Path) -> std::io::Result<Option<String>>,
}

impl Paths {
    /// Paths of this process.
    pub(crate) fn of_this_process(socket: Option<&Path>) -> Result<Self, CliError> {
        let uid = rustix::process::geteuid().as_raw();
        let variable = |name: &str| {
            let value = std::env::var_os(name)
                .filter(|value| !value.is_empty())
                .map(PathBuf::from);
            match name {
                "XDG_RUNTIME_DIR" => session_directory(value, uid),
                _ => value,
            }
        };
        let read = |path: &Path| match std::fs::read_to_string(path) {
            Ok(text) => Ok(Some(text)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        };
        Self::find(&Surroundings {
            socket,
            root: uid == 0,
            variable: &variable,
            read: &read,
        })
    }

    /// The daemon's state directory.
    pub(crate) fn state(&self) -> &Path {
        self.log.parent().unwrap_or(Path::new("/"))
    }

    /// Applies the rules.
    pub(crate) fn find(here: &Surroundings<'_>) -> Result<Self, CliError> {
        let (state, runtime) = directories(here)?;
        let default = runtime.join(SOCKET);
        let log = state.join("bangerd.log");
        let is_plain = ELSEWHERE.iter().all(|name| (here.variable)(name).is_none());
        Ok(match here.socket {
            Some(socket) => Self {
                socket: socket.into(),
                log,
                socket_is_default: socket == default,
                is_plain,
            },
            None => Self {
                socket: default,
                log,
                socket_is_default: true,
                is_plain,
            },
        })
    }
}

/// State and runtime directory: environment, then configuration file, then the default of root or of a user.
fn directories(here: &Surroundings<'_>) -> Result<(PathBuf, PathBuf), CliError> {
    let variable = here.variable;
    let (state, runtime) = (variable("BANGER_STATE_DIR"), variable("BANGER_RUNTIME_DIR"));
    if let (Some(state), Some(runtime)) = (&state, &runtime) {
        return Ok((state.clone(), runtime.clone()));
    }
    let configured = Configured::read(here)?;
    let home = || {
        variable("HOME").ok_or_else(|| {
            CliError::new(
                Kind::Prerequisite,
                "failed to find the daemon's directories: HOME is not set",
            )
            .hint("set HOME, or BANGER_STATE_DIR and BANGER_RUNTIME_DIR")
        })
    };
    let state = match state.or(configured.state) {
        Some(state) => state,
        None if here.root => "/var/lib/banger".into(),
        None => match variable("XDG_STATE_HOME") {
            Some(base) => base.join("banger"),
            None => home()?.join(".local/state/banger"),
        },
    };
    let runtime = match runtime.or(configured.runtime) {
        Some(runtime) => runtime,
        None if here.root => "/run/banger".into(),
        None => match variable("XDG_RUNTIME_DIR") {
            Some(base) => base.join("banger"),
            None => state.join(RUNTIME_WITHOUT_SESSION),
        },
    };
    Ok((state, runtime))
}

/// What the configuration file says about directories.
#[derive(Debug, Default)]
struct Configured {
    state: Option<PathBuf>,
    runtime: Option<PathBuf>,
}

impl Configured {
    /// Reads `[daemon] state_dir` and `runtime_dir`; checking the rest is the daemon's matter.
    fn read(here: &Surroundings<'_>) -> Result<Self, CliError> {
        #[derive(serde::Deserialize, Default)]
        struct File {
            #[serde(default)]
            daemon: Daemon,
        }
        #[derive(serde::Deserialize, Default)]
        struct Daemon {
            state_dir: Option<PathBuf>,
            runtime_dir: Option<PathBuf>,
        }
        let variable = here.variable;
        let path = match variable("BANGER_CONFIG") {
            Some(path) => path,
            None if here.root => "/etc/banger/config.toml".into(),
            None => match variable("XDG_CONFIG_HOME")
                .or_else(|| variable("HOME").map(|home| home.join(".config")))
            {
                Some(base) => base.join("banger/config.toml"),
                None => return Ok(Self::default()),
            },
        };
        let failed = |error: &dyn std::fmt::Display| {
            CliError::general(format!(
                "failed to read the configuration {}: {error}",
                path.display()
            ))
        };
        let Some(text) = (here.read)(&path).map_err(|error| failed(&error))? else {
            return Ok(Self::default());
        };
        let file: File = toml::from_str(&text).map_err(|error| failed(&error))?;
        Ok(Self {
            state: file.daemon.state_dir,
            runtime: file.daemon.runtime_dir,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Applies the rules to made-up surroundings.
    fn find(
        socket: Option<&str>,
        uid: u32,
        variables: &[(&str, &str)],
        config: Option<(&str, &str)>,
    ) -> Result<Paths, CliError> {
        let variable = |name: &str| {
            variables
                .iter()
                .find(|(known, _)| *known == name)
                .map(|(_, value)| PathBuf::from(value))
        };
        let read = |path: &Path| {
            Ok(config
                .filter(|(at, _)| Path::new(at) == path)
                .map(|(_, text)| text.to_owned()))
        };
        let socket = socket.map(Path::new);
        Paths::find(&Surroundings {
            socket,
            root: uid == 0,
            variable: &variable,
            read: &read,
        })
    }

    fn paths(socket: &str, log: &str, socket_is_default: bool) -> Result<Paths, CliError> {
        Ok(Paths {
            socket: socket.into(),
            log: log.into(),
            socket_is_default,
            is_plain: true,
        })
    }

    /// As [`paths`], with something in the environment that a service does not see.
    fn not_plain(socket: &str, log: &str) -> Result<Paths, CliError> {
        paths(socket, log, true).map(|paths| Paths {
            is_plain: false,
            ..paths
        })
    }

    #[test]
    fn root() {
        assert_eq!(
            find(None, 0, &[], None),
            paths("/run/banger/bangerd.sock", "/var/lib/banger/bangerd.log", true)
        );
    }

    #[test]
    fn user() {
        let session = [("HOME", "/home/u"), ("XDG_RUNTIME_DIR", "/run/user/1000")];
        let expected = paths(
            "/run/user/1000/banger/bangerd.sock",
            "/home/u/.local/state/banger/bangerd.log",
            true,
        );
        assert_eq!(find(None, 1000, &session, None), expected);
        let without_session = paths(
            "/home/u/.local/state/banger/run/bangerd.sock",
            "/home/u/.local/state/banger/bangerd.log",
            true,
        );
        assert_eq!(find(None, 1000, &session[..1], None), without_session);
        assert_eq!(find(None, 1000, &[], None).unwrap_err().kind, Kind::Prerequisite);
    }

    #[test]
    fn environment_before_configuration_before_default() {
        let text = "[daemon]\nstate_dir = '/c/state'\nruntime_dir = '/c/run'\nlog_level = 'debug'\n[vm]\nvcpus = 3\n";
        let config = Some(("/etc/banger/config.toml", text));
        assert_eq!(
            find(None, 0, &[], config),
            paths("/c/run/bangerd.sock", "/c/state/bangerd.log", true)
        );
        let variables = [("BANGER_RUNTIME_DIR", "/e/run")];
        assert_eq!(
            find(None, 0, &variables, config),
            not_plain("/e/run/bangerd.sock", "/c/state/bangerd.log")
        );
        let elsewhere = [
            ("BANGER_CONFIG", "/x.toml"),
            ("HOME", "/h"),
            ("XDG_RUNTIME_DIR", "/r"),
        ];
        let config = Some(("/x.toml", "[daemon]\nstate_dir = '/c'\n"));
        assert_eq!(
            find(None, 7, &elsewhere, config),
            not_plain("/r/banger/bangerd.sock", "/c/bangerd.log")
        );
    }

    #[test]
    fn a_socket_elsewhere_is_not_the_default() {
        let log = "/var/lib/banger/bangerd.log";
        assert_eq!(find(Some("/x.sock"), 0, &[], None), paths("/x.sock", log, false));
        let default = "/run/banger/bangerd.sock";
        assert_eq!(find(Some(default), 0, &[], None), paths(default, log, true));
    }

    #[test]
    fn a_broken_configuration_is_named() {
        let error = find(None, 0, &[], Some(("/etc/banger/config.toml", "[daemon"))).unwrap_err();
        assert!(
            error
                .message
                .starts_with("failed to read the configuration /etc/banger/config.toml: "),
            "{error}"
        );
    }
}
