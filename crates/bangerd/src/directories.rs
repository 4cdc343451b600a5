//! Where the daemon keeps what it has, and the making of these directories. The rules for defaults are the XDG Base
//! Directory Specification's for a user and the Filesystem Hierarchy Standard's for root; the client in `banger` follows
//! the same ones. The environment is passed in.

use std::ffi::OsString;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use banger_api::places::RUNTIME_WITHOUT_SESSION;
use banger_api::server::MAX_SOCKET_PATH;
use banger_engine::Proxies;
use rustix::fs::Access;

use crate::config::Config;

/// What of the process's surroundings decides where things are.
#[derive(Debug, Clone, Default)]
pub(crate) struct Environment {
    /// Effective user id.
    pub(crate) uid: u32,
    pub(crate) home: Option<PathBuf>,
    pub(crate) xdg_state_home: Option<PathBuf>,
    /// The login session's directory for sockets, where there is one.
    pub(crate) xdg_runtime_dir: Option<PathBuf>,
    pub(crate) xdg_config_home: Option<PathBuf>,
    pub(crate) path: Option<OsString>,
    /// Where Docker's configuration is, where something says so.
    pub(crate) docker_config: Option<PathBuf>,
    /// Between this host and registries.
    pub(crate) proxies: Proxies,
    /// The daemon's own executable.
    pub(crate) executable: Option<PathBuf>,
}

/// Paths named on the command line or by BANGER_* variables, which go before the configuration.
#[derive(Debug, Clone, Default)]
pub(crate) struct Named {
    pub(crate) state_dir: Option<PathBuf>,
    pub(crate) runtime_dir: Option<PathBuf>,
    pub(crate) socket: Option<PathBuf>,
}

/// Where everything is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Directories {
    pub(crate) state: PathBuf,
    pub(crate) runtime: PathBuf,
    pub(crate) socket: PathBuf,
}

/// Longest name of a socket within a machine's runtime directory: `bgr` and ten characters, then `vsock.sock_1025`.
const MACHINE_SOCKET: &str = "bgr0123456789/vsock.sock_1025";

/// Why the directories cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DirectoryError {
    /// Nothing says where.
    #[error("find a place for the {what}: neither {variable} nor HOME is set")]
    Nowhere {
        what: &'static str,
        variable: &'static str,
    },
    /// Relative paths would depend on where the daemon was started.
    #[error("use {} as the {what}: it is not an absolute path", path.display())]
    Relative { what: &'static str, path: PathBuf },
    /// Sockets in it would not fit `sun_path`.
    #[error(
        "use {} as the {what}: sockets in it would have paths of {length} bytes, and Linux allows {MAX_SOCKET_PATH}",
        path.display()
    )]
    TooLong {
        what: &'static str,
        path: PathBuf,
        length: usize,
    },
    /// The socket itself would not fit.
    #[error("use {} as the socket: it has {length} bytes, and Linux allows {MAX_SOCKET_PATH}", path.display())]
    SocketTooLong { path: PathBuf, length: usize },
    /// The directory that should hold it is missing.
    #[error("use {} as the {what}: {} does not exist", path.display(), parent.display())]
    NoParent {
        what: &'static str,
        path: PathBuf,
        parent: PathBuf,
    },
    /// It is a file.
    #[error("use {} as the {what}: it is not a directory", path.display())]
    NotADirectory { what: &'static str, path: PathBuf },
    /// It belongs to somebody else.
    #[error("use {} as the {what}: it belongs to user {owner}", path.display())]
    NotOurs {
        what: &'static str,
        path: PathBuf,
        owner: u32,
    },
    /// Others could put things into it.
    #[error("use {} as the {what}: its mode {mode:04o} lets others write", path.display())]
    OthersWrite {
        what: &'static str,
        path: PathBuf,
        mode: u32,
    },
    /// The system refused.
    #[error("{action} the {what} {}", path.display())]
    Io {
        action: &'static str,
        what: &'static str,
        path: PathBuf,
        source: std::io::Error,
    },
}

impl DirectoryError {
    /// What to try.
    pub(crate) fn hint(&self) -> &'static str {
        match self {
            Self::Nowhere { .. } => "set HOME, or name it with --state-dir or --runtime-dir",
            Self::Relative { .. } => "begin it with /",
            Self::SocketTooLong { .. } => "name a shorter one with --socket",
            Self::TooLong { .. } => "name a shorter one with --runtime-dir or BANGER_RUNTIME_DIR",
            Self::NoParent { .. } => {
                "create it, or name another with --runtime-dir or BANGER_RUNTIME_DIR; a login session makes /run/user/UID"
            }
            Self::NotADirectory { .. } => "remove it, or name another directory",
            Self::NotOurs { .. } => "run the daemon as that user, or name another directory",
            Self::OthersWrite { .. } => "take the right away with chmod go-w, or name another directory",
            Self::Io { .. } => "check the permissions and the file system, or name another directory",
        }
    }
}

impl Environment {
    fn is_root(&self) -> bool {
        self.uid == 0
    }

    /// `$VARIABLE/banger`, or `$HOME/FALLBACK/banger`.
    fn xdg(
        &self,
        what: &'static str,
        variable: &'static str,
        value: Option<&PathBuf>,
        fallback: &str,
    ) -> Result<PathBuf, DirectoryError> {
        match (value, &self.home) {
            (Some(base), _) => Ok(base.join("banger")),
            (None, Some(home)) => Ok(home.join(fallback).join("banger")),
            (None, None) => Err(DirectoryError::Nowhere { what, variable }),
        }
    }

    /// The configuration file that is read when none is named; none where nothing says where it would be.
    pub(crate) fn default_config(&self) -> Option<PathBuf> {
        if self.is_root() {
            return Some("/etc/banger/config.toml".into());
        }
        let dir = self
            .xdg(
                "configuration",
                "XDG_CONFIG_HOME",
                self.xdg_config_home.as_ref(),
                ".config",
            )
            .ok()?;
        Some(dir.join("config.toml"))
    }

    /// Where companion programs are looked for, in order, before `PATH`.
    pub(crate) fn libexec(&self) -> Vec<PathBuf> {
        let beside = self.executable.as_deref().and_then(Path::parent).map(|bin| {
            let prefix = bin.parent().unwrap_or(bin);
            [prefix.join("libexec/banger"), bin.to_owned()]
        });
        let system = ["/usr/local/libexec/banger", "/usr/libexec/banger"].map(PathBuf::from);
        beside.into_iter().flatten().chain(system).collect()
    }

    /// Docker's configuration, which has credentials of registries. It need not be there.
    pub(crate) fn docker_config(&self) -> Option<PathBuf> {
        let directory = match (&self.docker_config, &self.home) {
            (Some(directory), _) => directory.clone(),
            (None, Some(home)) => home.join(".docker"),
            (None, None) => return None,
        };
        Some(directory.join("config.json"))
    }

    /// Directories of `PATH`. Relative ones are left out: they would depend on where the daemon was started.
    pub(crate) fn path(&self) -> Vec<PathBuf> {
        let path = self.path.as_deref().unwrap_or_default();
        std::env::split_paths(path)
            .filter(|dir| dir.is_absolute())
            .collect()
    }
}

impl Directories {
    /// Decides where things are, and refuses what cannot work. Touches nothing.
    pub(crate) fn find(
        named: &Named,
        config: &Config,
        environment: &Environment,
    ) -> Result<Self, DirectoryError> {
        let configured = &config.daemon;
        let state = match (&named.state_dir, &configured.state_dir) {
            (Some(path), _) => path.clone(),
            (None, Some(path)) => path.0.clone(),
            (None, None) if environment.is_root() => "/var/lib/banger".into(),
            (None, None) => {
                let base = environment.xdg_state_home.as_ref();
                environment.xdg("state directory", "XDG_STATE_HOME", base, ".local/state")?
            }
        };
        let runtime = match (
            &named.runtime_dir,
            &configured.runtime_dir,
            &environment.xdg_runtime_dir,
        ) {
            (Some(path), _, _) => path.clone(),
            (None, Some(path), _) => path.0.clone(),
            (None, None, _) if environment.is_root() => "/run/banger".into(),
            (None, None, Some(base)) => base.join("banger"),
            (None, None, None) => state.join(RUNTIME_WITHOUT_SESSION),
        };
        let socket = named
            .socket
            .clone()
            .unwrap_or_else(|| runtime.join("bangerd.sock"));
        for (what, path) in [
            ("state directory", &state),
            ("runtime directory", &runtime),
            ("socket", &socket),
        ] {
            if !path.is_absolute() {
                return Err(DirectoryError::Relative {
                    what,
                    path: path.clone(),
                });
            }
        }
        let length = runtime.join(MACHINE_SOCKET).as_os_str().len();
        if length > MAX_SOCKET_PATH {
            return Err(DirectoryError::TooLong {
                what: "runtime directory",
                path: runtime,
                length,
            });
        }
        let length = socket.as_os_str().len();
        if length > MAX_SOCKET_PATH {
            return Err(DirectoryError::SocketTooLong { path: socket, length });
        }
        Ok(Self {
            state,
            runtime,
            socket,
        })
    }

    /// Checks everything that can be checked without touching anything.
    pub(crate) fn check(&self, uid: u32) -> Result<(), DirectoryError> {
        // Within a state directory that is not there yet it will be made after that.
        if !self.runtime.starts_with(&self.state) || self.state.exists() {
            check("runtime directory", &self.runtime, uid)?;
        }
        // The state directory's parents are made too, so that one that is not there yet is no error.
        if self.state.exists() {
            check("state directory", &self.state, uid)?;
        }
        Ok(())
    }

    /// Makes the state directory, with its parents, and gives it the mode 0700.
    pub(crate) fn make_state(&self) -> Result<(), DirectoryError> {
        let what = "state directory";
        if let Some(parent) = self.state.parent() {
            let made = std::fs::DirBuilder::new()
                .recursive(true)
                .mode(0o755)
                .create(parent);
            made.map_err(|source| DirectoryError::Io {
                action: "make",
                what,
                path: self.state.clone(),
                source,
            })?;
        }
        make(
            what,
            &self.state,
            0o700,
            None,
            &["lock", "banger.db", "bangerd.log"],
        )
    }

    /// Makes the runtime directory: mode 0700, or 0750 and a group whose members may reach the socket.
    pub(crate) fn make_runtime(&self, group: Option<u32>) -> Result<(), DirectoryError> {
        let mode = if group.is_some() { 0o750 } else { 0o700 };
        make(
            "runtime directory",
            &self.runtime,
            mode,
            group,
            &["bangerd.sock", banger_api::places::TOLD],
        )
    }
}

/// Refuses a directory that is not ours alone, and a missing one that could not be made.
fn check(what: &'static str, path: &Path, uid: u32) -> Result<(), DirectoryError> {
    let fail = |action, source| DirectoryError::Io {
        action,
        what,
        path: path.to_owned(),
        source,
    };
    match std::fs::metadata(path) {
        Ok(found) => {
            let mode = found.mode() & 0o7777;
            if !found.is_dir() {
                Err(DirectoryError::NotADirectory {
                    what,
                    path: path.to_owned(),
                })
            } else if found.uid() != uid {
                Err(DirectoryError::NotOurs {
                    what,
                    path: path.to_owned(),
                    owner: found.uid(),
                })
            } else if mode & 0o022 != 0 {
                Err(DirectoryError::OthersWrite {
                    what,
                    path: path.to_owned(),
                    mode,
                })
            } else {
                // Asks the kernel, which knows of read-only file systems as well.
                rustix::fs::access(path, Access::WRITE_OK | Access::EXEC_OK)
                    .map_err(|e| fail("write to", e.into()))
            }
        }
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => match path.parent() {
            Some(parent) if parent.is_dir() => rustix::fs::access(parent, Access::WRITE_OK | Access::EXEC_OK)
                .map_err(|e| fail("make", e.into())),
            parent => Err(DirectoryError::NoParent {
                what,
                path: path.to_owned(),
                parent: parent.unwrap_or(path).to_owned(),
            }),
        },
        Err(e) => Err(fail("look at", e)),
    }
}

/// Makes a directory, or takes one over: where it is empty or holds one of our `marks`, it gets the mode and the group.
/// Somebody else's directory that the user pointed us to by mistake keeps its mode.
fn make(
    what: &'static str,
    path: &Path,
    mode: u32,
    group: Option<u32>,
    marks: &[&str],
) -> Result<(), DirectoryError> {
    let fail = |action| {
        move |source| DirectoryError::Io {
            action,
            what,
            path: path.to_owned(),
            source,
        }
    };
    match std::fs::DirBuilder::new().mode(0o700).create(path) {
        Ok(()) => {}
        Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {
            let ours = marks.iter().any(|mark| path.join(mark).exists())
                || std::fs::read_dir(path).map_err(fail("read"))?.next().is_none();
            if !ours {
                return Ok(());
            }
        }
        Err(e) => return Err(fail("make")(e)),
    }
    if let Some(group) = group {
        std::os::unix::fs::chown(path, None, Some(group)).map_err(fail("give a group to"))?;
    }
    std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).map_err(fail("set the mode of"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user() -> Environment {
        Environment {
            uid: 1000,
            home: Some("/home/u".into()),
            ..Environment::default()
        }
    }

    fn find(named: &Named, config: &str, environment: &Environment) -> Result<Directories, DirectoryError> {
        Directories::find(named, &toml::from_str(config).unwrap(), environment)
    }

    fn paths(found: &Directories) -> [&str; 3] {
        [&found.state, &found.runtime, &found.socket].map(|path| path.to_str().unwrap())
    }

    #[test]
    fn defaults() {
        let root = Environment { uid: 0, ..user() };
        let found = find(&Named::default(), "", &root).unwrap();
        assert_eq!(
            paths(&found),
            ["/var/lib/banger", "/run/banger", "/run/banger/bangerd.sock"]
        );
        assert_eq!(
            root.default_config().unwrap(),
            Path::new("/etc/banger/config.toml")
        );

        let found = find(&Named::default(), "", &user()).unwrap();
        let expected = [
            "/home/u/.local/state/banger",
            "/home/u/.local/state/banger/run",
            "/home/u/.local/state/banger/run/bangerd.sock",
        ];
        assert_eq!(paths(&found), expected);
        assert_eq!(
            user().default_config().unwrap(),
            Path::new("/home/u/.config/banger/config.toml")
        );

        let xdg = Environment {
            xdg_state_home: Some("/s".into()),
            xdg_runtime_dir: Some("/r".into()),
            xdg_config_home: Some("/c".into()),
            ..user()
        };
        let found = find(&Named::default(), "", &xdg).unwrap();
        assert_eq!(
            paths(&found),
            ["/s/banger", "/r/banger", "/r/banger/bangerd.sock"]
        );
        assert_eq!(xdg.default_config().unwrap(), Path::new("/c/banger/config.toml"));

        let nowhere = Environment {
            uid: 1000,
            ..Environment::default()
        };
        assert!(matches!(
            find(&Named::default(), "", &nowhere),
            Err(DirectoryError::Nowhere { .. })
        ));
        assert_eq!(nowhere.default_config(), None);
    }

    #[test]
    fn flags_go_before_the_configuration() {
        let config = "[daemon]\nstate_dir = \"/cs\"\nruntime_dir = \"/cr\"";
        let found = find(&Named::default(), config, &user()).unwrap();
        assert_eq!(paths(&found), ["/cs", "/cr", "/cr/bangerd.sock"]);
        let named = Named {
            state_dir: Some("/fs".into()),
            runtime_dir: Some("/fr".into()),
            socket: Some("/s".into()),
        };
        assert_eq!(
            paths(&find(&named, config, &user()).unwrap()),
            ["/fs", "/fr", "/s"]
        );
    }

    #[test]
    fn paths_that_cannot_work_are_refused() {
        let runtime = |path: String| Named {
            runtime_dir: Some(path.into()),
            ..Named::default()
        };
        assert!(matches!(
            find(&runtime("run".into()), "", &user()),
            Err(DirectoryError::Relative {
                what: "runtime directory",
                ..
            })
        ));
        let longest = format!("/{}", "x".repeat(MAX_SOCKET_PATH - MACHINE_SOCKET.len() - 2));
        assert!(find(&runtime(longest.clone()), "", &user()).is_ok());
        assert!(matches!(
            find(&runtime(longest + "x"), "", &user()),
            Err(DirectoryError::TooLong { length: 108, .. })
        ));
    }

    #[test]
    fn companions_are_looked_for_beside_the_executable_first() {
        let environment = Environment {
            executable: Some("/opt/b/bin/bangerd".into()),
            path: Some("/usr/bin:relative::/bin".into()),
            ..user()
        };
        let expected = [
            "/opt/b/libexec/banger",
            "/opt/b/bin",
            "/usr/local/libexec/banger",
            "/usr/libexec/banger",
        ];
        assert_eq!(environment.libexec(), expected.map(PathBuf::from));
        assert_eq!(environment.path(), ["/usr/bin", "/bin"].map(PathBuf::from));
    }

    fn mode(path: &Path) -> u32 {
        std::fs::metadata(path).unwrap().mode() & 0o7777
    }

    #[test]
    fn directories_are_made_private_and_foreign_ones_keep_their_mode() {
        let dir = tempfile::tempdir().unwrap();
        let uid = rustix::process::geteuid().as_raw();
        let at = |state: &str, runtime: &str| Directories {
            state: dir.path().join(state),
            runtime: dir.path().join(runtime),
            socket: dir.path().join("s"),
        };
        let found = at("a/b/state", "run");
        found.check(uid).unwrap();
        assert_eq!(
            std::fs::read_dir(dir.path()).unwrap().count(),
            0,
            "the check touches nothing"
        );
        found.make_state().unwrap();
        found.make_runtime(None).unwrap();
        assert_eq!((mode(&found.state), mode(&found.runtime)), (0o700, 0o700));

        let foreign = at("foreign", "run");
        std::fs::DirBuilder::new()
            .mode(0o755)
            .create(&foreign.state)
            .unwrap();
        std::fs::write(foreign.state.join("notes"), "").unwrap();
        foreign.make_state().unwrap();
        assert_eq!(mode(&foreign.state), 0o755);
        std::fs::write(foreign.state.join("lock"), "").unwrap();
        foreign.make_state().unwrap();
        assert_eq!(mode(&foreign.state), 0o700);

        let group = rustix::process::getegid().as_raw();
        found.make_runtime(Some(group)).unwrap();
        assert_eq!(mode(&found.runtime), 0o750);
        // What the command line leaves there makes it no stranger's.
        std::fs::write(found.runtime.join("told"), "").unwrap();
        found.make_runtime(None).unwrap();
        assert_eq!(mode(&found.runtime), 0o700);
    }

    #[test]
    fn unusable_directories_are_refused_untouched() {
        let dir = tempfile::tempdir().unwrap();
        let uid = rustix::process::geteuid().as_raw();
        let runtime = |path: PathBuf| Directories {
            state: dir.path().join("state"),
            socket: path.join("bangerd.sock"),
            runtime: path,
        };
        let none = runtime(dir.path().join("a/b"));
        assert!(matches!(none.check(uid), Err(DirectoryError::NoParent { .. })));
        let file = dir.path().join("file");
        std::fs::write(&file, "").unwrap();
        assert!(matches!(
            runtime(file).check(uid),
            Err(DirectoryError::NotADirectory { .. })
        ));
        let open = dir.path().join("open");
        std::fs::create_dir(&open).unwrap();
        std::fs::set_permissions(&open, PermissionsExt::from_mode(0o777)).unwrap();
        assert!(matches!(
            runtime(open.clone()).check(uid),
            Err(DirectoryError::OthersWrite { mode: 0o777, .. })
        ));
        std::fs::set_permissions(&open, PermissionsExt::from_mode(0o700)).unwrap();
        assert!(matches!(
            runtime(open).check(uid + 1),
            Err(DirectoryError::NotOurs { .. })
        ));
    }
}
