//! From a request to a [`Plan`]: limits, user, environment, PATH. Everything but system calls that change anything.

use super::spawn::{Plan, SpawnError, Step};
use crate::account::{self, Account, AccountError};
use banger_agent_api::proto::ExecStart;
use banger_agent_api::{Failure, FailureKind, MAX_ARG_STRLEN, MAX_ARGS, MAX_ARGS_BYTES, MAX_PATH};
use rustix::fd::OwnedFd;
use std::collections::BTreeMap;
use std::ffi::{CString, OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// PATH of root and of others where the request sets none: Debian's login.defs(5), `ENV_SUPATH` and `ENV_PATH`.
const ROOT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
const USER_PATH: &str = "/usr/local/bin:/usr/bin:/bin:/usr/local/games:/usr/games";

/// Entries of PATH that are tried.
const MAX_PATH_ENTRIES: usize = 256;

/// Handed on from the agent's own environment, that is from the kernel command line: some kernels under Firecracker
/// without hardware virtualization need it in every process (glibc must not pick AVX there).
const INHERITED: &str = "GLIBC_TUNABLES";

/// A checked request: who runs what, and where.
#[derive(Debug)]
pub(crate) struct Prepared {
    pub(crate) account: Account,
    argv: Vec<CString>,
    env: Vec<CString>,
    candidates: Vec<CString>,
    workdir: CString,
    workdir_optional: bool,
}

/// Checks a request and resolves its user. Reads `/etc/passwd` and `/etc/group`, so it may block.
pub(crate) fn prepare(start: &ExecStart) -> Result<Prepared, Failure> {
    check_limits(start)?;
    let account = account::find(&start.user).map_err(|error| user_failure(&error))?;
    prepare_for(start, account, std::env::var_os(INHERITED))
}

fn prepare_for(
    start: &ExecStart,
    account: Account,
    inherited: Option<OsString>,
) -> Result<Prepared, Failure> {
    let env = environment(start, &account, inherited);
    let path = env.get(OsStr::new("PATH")).cloned().unwrap_or_default();
    let command = start.argv.first().map(String::as_str).unwrap_or_default();
    let home = account.home.as_os_str();
    let workdir = if start.workdir.is_empty() {
        home.to_owned()
    } else {
        // An absolute path replaces the home.
        account.home.join(&start.workdir).into_os_string()
    };
    let argv = start
        .argv
        .iter()
        .map(|argument| c_string(argument.as_bytes()))
        .collect::<Result<_, _>>()?;
    let env = env
        .into_iter()
        .map(|(mut name, value)| {
            name.push("=");
            name.push(value);
            c_string(name.as_bytes())
        })
        .collect::<Result<_, _>>()?;
    Ok(Prepared {
        candidates: candidates(command, &path)?,
        argv,
        env,
        workdir: c_string(workdir.as_bytes())?,
        workdir_optional: start.workdir.is_empty(),
        account,
    })
}

impl Prepared {
    /// Completes the plan with the command's standard streams.
    pub(crate) fn into_plan(self, stdio: [OwnedFd; 3], terminal: bool, open_files: libc::rlimit) -> Plan {
        Plan {
            candidates: self.candidates,
            argv: self.argv,
            env: self.env,
            workdir: self.workdir,
            workdir_optional: self.workdir_optional,
            uid: self.account.uid,
            gid: self.account.gid,
            groups: self.account.groups,
            stdio,
            terminal,
            open_files,
        }
    }
}

/// Says why a start failed, by name.
pub(crate) fn spawn_failure(start: &ExecStart, error: &SpawnError) -> Failure {
    let command = start.argv.first().cloned().unwrap_or_default();
    let reason = &error.source;
    match error.step {
        Step::NotFound => {
            let message = format!("run {command:?} in the guest: no such command");
            Failure::new(FailureKind::CommandNotFound, command, message)
        }
        Step::NoInterpreter => {
            let message =
                format!("run {command:?} in the guest: the interpreter or loader it needs is not there");
            Failure::new(FailureKind::NotExecutable, command, message)
        }
        Step::NotExecutable => {
            let message = format!("run {command:?} in the guest: {reason}");
            Failure::new(FailureKind::NotExecutable, command, message)
        }
        Step::Workdir => {
            let message = format!(
                "enter the working directory {:?} in the guest: {reason}",
                start.workdir
            );
            Failure::new(FailureKind::WorkdirUnusable, start.workdir.clone(), message)
        }
        Step::Clone | Step::Setup | Step::Credentials => {
            let message = format!("start a process in the guest ({:?}): {reason}", error.step);
            Failure::new(FailureKind::System, command, message)
        }
    }
}

/// Says why a user specification leads to nobody.
pub(crate) fn user_failure(error: &AccountError) -> Failure {
    let message = crate::log::Chain(error).to_string();
    match error {
        AccountError::UnknownUser { name } => Failure::new(FailureKind::UnknownUser, name, message),
        AccountError::UnknownGroup { name } => Failure::new(FailureKind::UnknownGroup, name, message),
        AccountError::Malformed { spec } => Failure::new(FailureKind::InvalidRequest, spec, message),
        AccountError::Unreadable { path, .. } => {
            Failure::new(FailureKind::System, path.to_string_lossy(), message)
        }
    }
}

/// Enforces the protocol's limits, so that what the kernel would refuse has a name.
fn check_limits(start: &ExecStart) -> Result<(), Failure> {
    let refuse = |what: String| Err(Failure::new(FailureKind::InvalidRequest, "exec", what));
    match start.argv.first() {
        None => return refuse("run a command: none was given".to_owned()),
        Some(command) if command.is_empty() => {
            let message = "run a command: its name is empty";
            return Err(Failure::new(FailureKind::CommandNotFound, "", message));
        }
        Some(_) => {}
    }
    let count = start.argv.len() + start.env.len();
    if count > MAX_ARGS {
        return refuse(format!(
            "run a command with {count} arguments and variables: {MAX_ARGS} are allowed"
        ));
    }
    let variables = start.env.iter().map(|(name, value)| name.len() + 1 + value.len());
    let mut total = 0usize;
    for length in start.argv.iter().map(String::len).chain(variables) {
        if length >= MAX_ARG_STRLEN {
            return refuse(format!(
                "run a command with an argument of {length} bytes: {} are allowed",
                MAX_ARG_STRLEN - 1
            ));
        }
        total += length + 1;
    }
    if total > MAX_ARGS_BYTES {
        return refuse(format!(
            "run a command with {total} bytes of arguments and variables: {MAX_ARGS_BYTES} are allowed"
        ));
    }
    if let Some(name) = start
        .env
        .keys()
        .find(|name| name.is_empty() || name.contains('='))
    {
        return refuse(format!("set the variable {name:?}: that is no name"));
    }
    if start.workdir.len() >= MAX_PATH {
        return refuse(format!(
            "enter a directory whose path has {} bytes",
            start.workdir.len()
        ));
    }
    Ok(())
}

fn c_string(bytes: &[u8]) -> Result<CString, Failure> {
    CString::new(bytes).map_err(|_nul| {
        let message = "run a command: an argument, a variable or the directory has a NUL byte";
        Failure::new(FailureKind::InvalidRequest, "exec", message)
    })
}

/// What a login would set, then what the request sets.
fn environment(
    start: &ExecStart,
    account: &Account,
    inherited: Option<OsString>,
) -> BTreeMap<OsString, OsString> {
    let path = if account.uid == 0 { ROOT_PATH } else { USER_PATH };
    let mut env: BTreeMap<OsString, OsString> = BTreeMap::from([
        ("HOME".into(), account.home.clone().into_os_string()),
        ("USER".into(), account.name.clone()),
        ("LOGNAME".into(), account.name.clone()),
        ("SHELL".into(), account.shell.clone().into_os_string()),
        ("PATH".into(), path.into()),
    ]);
    if let Some(terminal) = &start.terminal {
        let term = if terminal.term.is_empty() {
            "xterm"
        } else {
            &terminal.term
        };
        env.insert("TERM".into(), term.into());
    }
    if let Some(value) = inherited {
        env.insert(INHERITED.into(), value);
    }
    env.extend(start.env.iter().map(|(name, value)| (name.into(), value.into())));
    env
}

/// The paths to try for a command: itself when it has a slash, else one for each entry of PATH. An empty entry is the
/// working directory, as POSIX says.
fn candidates(command: &str, path: &OsStr) -> Result<Vec<CString>, Failure> {
    if command.contains('/') {
        return Ok(vec![c_string(command.as_bytes())?]);
    }
    path.as_bytes()
        .split(|byte| *byte == b':')
        .take(MAX_PATH_ENTRIES)
        .map(|directory| {
            let directory = if directory.is_empty() { b"." } else { directory };
            c_string(
                Path::new(OsStr::from_bytes(directory))
                    .join(command)
                    .as_os_str()
                    .as_bytes(),
            )
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use banger_agent_api::proto::Terminal;
    use proptest::prelude::*;
    use std::path::PathBuf;

    fn dev() -> Account {
        Account {
            uid: 1000,
            gid: 1000,
            groups: vec![1000],
            name: "dev".into(),
            home: PathBuf::from("/home/dev"),
            shell: PathBuf::from("/bin/zsh"),
        }
    }

    fn request(argv: &[&str]) -> ExecStart {
        ExecStart {
            argv: argv.iter().map(|word| (*word).to_owned()).collect(),
            ..ExecStart::default()
        }
    }

    fn texts(strings: &[CString]) -> Vec<&str> {
        strings
            .iter()
            .map(|string| string.to_str().expect("UTF-8"))
            .collect()
    }

    #[test]
    fn a_login_environment() {
        let mut start = request(&["env"]);
        start.terminal = Some(Terminal::default());
        start.env = BTreeMap::from([("LANG".to_owned(), "C".to_owned())]);
        let prepared = prepare_for(&start, dev(), Some("x=y".into())).expect("valid");
        assert_eq!(
            texts(&prepared.env),
            [
                "GLIBC_TUNABLES=x=y",
                "HOME=/home/dev",
                "LANG=C",
                "LOGNAME=dev",
                "PATH=/usr/local/bin:/usr/bin:/bin:/usr/local/games:/usr/games",
                "SHELL=/bin/zsh",
                "TERM=xterm",
                "USER=dev",
            ]
        );
        assert_eq!(
            (prepared.workdir.to_str(), prepared.workdir_optional),
            (Ok("/home/dev"), true)
        );
    }

    #[test]
    fn the_lookup_uses_the_request_s_path() {
        let mut start = request(&["ls"]);
        start.env = BTreeMap::from([("PATH".to_owned(), "/opt/bin::rel".to_owned())]);
        start.workdir = "src".to_owned();
        let prepared = prepare_for(&start, dev(), None).expect("valid");
        assert_eq!(texts(&prepared.candidates), ["/opt/bin/ls", "./ls", "rel/ls"]);
        assert_eq!(
            (prepared.workdir.to_str(), prepared.workdir_optional),
            (Ok("/home/dev/src"), false)
        );
        let prepared = prepare_for(&request(&["bin/tool"]), dev(), None).expect("valid");
        assert_eq!(texts(&prepared.candidates), ["bin/tool"]);
    }

    #[test]
    fn limits_have_names() {
        let kind = |start: &ExecStart| {
            check_limits(start)
                .and_then(|()| prepare_for(start, dev(), None).map(|_| ()))
                .map_err(|f| f.kind)
        };
        assert_eq!(kind(&request(&[])), Err(FailureKind::InvalidRequest));
        assert_eq!(kind(&request(&[""])), Err(FailureKind::CommandNotFound));
        assert_eq!(kind(&request(&["a\0b"])), Err(FailureKind::InvalidRequest));
        assert_eq!(kind(&request(&["echo", &"x".repeat(MAX_ARG_STRLEN - 1)])), Ok(()));
        assert_eq!(
            kind(&request(&["echo", &"x".repeat(MAX_ARG_STRLEN)])),
            Err(FailureKind::InvalidRequest)
        );
        assert_eq!(kind(&request(&vec!["x"; MAX_ARGS])), Ok(()));
        assert_eq!(
            kind(&request(&vec!["x"; MAX_ARGS + 1])),
            Err(FailureKind::InvalidRequest)
        );
        let large = "x".repeat(100_000);
        assert_eq!(
            kind(&request(&[large.as_str(); 11])),
            Err(FailureKind::InvalidRequest)
        );
        for name in ["", "A=B"] {
            let mut start = request(&["env"]);
            start.env = BTreeMap::from([(name.to_owned(), String::new())]);
            assert_eq!(kind(&start), Err(FailureKind::InvalidRequest), "{name:?}");
        }
    }

    proptest! {
        #[test]
        fn a_command_never_leaves_path(command in "[a-z.]{1,8}", path in "(/?[a-z]{0,3}:?){0,8}") {
            let tried = candidates(&command, OsStr::new(&path)).expect("no NUL");
            prop_assert_eq!(tried.len(), path.split(':').count());
            for (candidate, entry) in tried.iter().zip(path.split(':')) {
                let candidate = Path::new(OsStr::from_bytes(candidate.as_bytes()));
                let entry = if entry.is_empty() { "." } else { entry };
                prop_assert_eq!(candidate, Path::new(entry).join(&command));
            }
        }
    }
}
