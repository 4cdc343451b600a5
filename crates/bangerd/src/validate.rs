//! What a request's values must be, as far as it can be said without looking at anything: the engine and the guest's
//! agent check the rest.

use std::path::{Path, PathBuf};

use banger_agent_api::{MAX_ARG_STRLEN, MAX_ARGS, MAX_ARGS_BYTES, MAX_PATH};
use banger_api::contract::Caller;
use banger_api::types::{PublishPort, Terminal};
use banger_api::{ErrorKind, RpcError};
use banger_engine::guest::Command;
use banger_engine::ports::Publication;
use jiff::Timestamp;

use crate::convert;

fn invalid(message: impl Into<String>) -> RpcError {
    RpcError::new(ErrorKind::InvalidArgument, message)
}

/// Memory is given to machines in whole MiB.
pub(crate) fn memory(bytes: u64) -> Result<u64, RpcError> {
    if bytes.is_multiple_of(1 << 20) {
        Ok(bytes)
    } else {
        Err(invalid(format!(
            "memory of {bytes} bytes is not a whole number of MiB"
        )))
    }
}

/// Ports to be published: those of the guest are real ones.
pub(crate) fn publish(ports: &[PublishPort]) -> Result<Vec<Publication>, RpcError> {
    if ports.iter().any(|port| port.guest_port == 0) {
        return Err(invalid(
            "port 0 of a guest cannot be published: ports go from 1 to 65535",
        ));
    }
    Ok(ports.iter().copied().map(convert::publication_of).collect())
}

/// A new expiry, or none any more; absent where neither is asked for.
pub(crate) fn expiry(
    expires: Option<Timestamp>,
    no_expiry: bool,
) -> Result<Option<Option<Timestamp>>, RpcError> {
    match (expires, no_expiry) {
        (Some(_), true) => {
            Err(invalid("expires and no_expiry contradict each other").hint("give one of the two"))
        }
        (Some(time), false) => Ok(Some(Some(time))),
        (None, true) => Ok(Some(None)),
        (None, false) => Ok(None),
    }
}

/// A path of the host that a caller names, to be read with the caller's rights. The daemon's own user and root have at
/// least its rights. Another member of the group may be able to read less than the daemon, and a check beforehand could
/// be tricked by a link changed after it, so such a caller cannot name paths.
pub(crate) fn host_path(caller: Caller, owner: u32, what: &str, path: String) -> Result<PathBuf, RpcError> {
    if caller.uid != 0 && caller.uid != owner {
        return Err(RpcError::new(
            ErrorKind::PermissionDenied,
            format!("{what}: only root and the daemon's own user (id {owner}) may name files of the host"),
        )
        .hint("ask one of them to do it"));
    }
    text(what, &path, MAX_PATH)?;
    let path = PathBuf::from(path);
    if path.is_absolute() {
        Ok(path)
    } else {
        Err(invalid(format!("{what} {:?} is not an absolute path", path)).hint("begin it with /"))
    }
}

/// Packages of one image.
const MAX_PACKAGES: usize = 256;

/// Refuses more packages than one image is asked for. What their names may be is the engine's to say.
pub(crate) fn packages(packages: &[String]) -> Result<(), RpcError> {
    match packages.len() <= MAX_PACKAGES {
        true => Ok(()),
        false => Err(invalid(format!("packages: there are more than {MAX_PACKAGES}"))),
    }
}

/// What an image has that is not made of packages.
pub(crate) fn only_of_packages() -> RpcError {
    invalid("busybox has no suite, mirror or packages".to_owned())
        .hint("leave them out, or make debian or ubuntu")
}

/// Who may have the daemon run another program than those of its host, as its own user.
pub(crate) fn may_install(caller: Caller, owner: u32) -> Result<(), RpcError> {
    if caller.uid == 0 || caller.uid == owner {
        return Ok(());
    }
    Err(RpcError::new(
        ErrorKind::PermissionDenied,
        format!("only root and the daemon's own user (id {owner}) may install or remove runtimes"),
    )
    .hint("ask one of them to do it"))
}

/// A file that is named must be there, as far as can be seen: whether it is what it should be shows when it is read.
pub(crate) fn is_there(path: &Path) -> Result<(), RpcError> {
    match path.symlink_metadata() {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Err(RpcError::new(
            ErrorKind::NotFound,
            format!("no file {:?}", path.to_string_lossy()),
        )),
        Ok(_) | Err(_) => Ok(()),
    }
}

/// Text that becomes a C string of a guest or of the host.
fn text(what: &str, text: &str, limit: usize) -> Result<(), RpcError> {
    if text.is_empty() {
        Err(invalid(format!("{what} is empty")))
    } else if text.contains('\0') {
        Err(invalid(format!("{what} holds a zero byte")))
    } else if text.len() >= limit {
        Err(invalid(format!("{what} is longer than {limit} bytes")))
    } else {
        Ok(())
    }
}

/// A signal's number.
pub(crate) fn signal(number: u8) -> Result<(), RpcError> {
    match number {
        1..=64 => Ok(()),
        _ => Err(invalid(format!(
            "there is no signal {number}: they go from 1 to 64"
        ))),
    }
}

/// A path in a guest.
pub(crate) fn guest_path(what: &str, path: &str) -> Result<(), RpcError> {
    text(what, path, MAX_PATH)
}

/// A command with all that goes with it, within the guest kernel's limits.
pub(crate) fn command(command: &Command) -> Result<(), RpcError> {
    let Command {
        argv: command,
        env,
        workdir,
        user,
    } = command;
    match command.first() {
        None => return Err(invalid("command is empty").hint("name a program to run")),
        Some(program) => text("the command's program", program, MAX_PATH)?,
    }
    if let Some(argument) = command.iter().find(|argument| argument.contains('\0')) {
        return Err(invalid(format!(
            "the argument {:?} holds a zero byte",
            shorten(argument)
        )));
    }
    for (name, value) in env {
        if name.is_empty() || name.contains(['=', '\0']) || value.contains('\0') {
            let name = shorten(name);
            return Err(invalid(format!(
                "{name:?} cannot be set in the environment: a name is not empty and has no \"=\""
            )));
        }
    }
    let entries = command.iter().map(|argument| argument.len() + 1);
    let entries = entries.chain(env.iter().map(|(name, value)| name.len() + value.len() + 2));
    let (mut count, mut bytes) = (0, 0);
    for entry in entries {
        count += 1;
        bytes += entry;
        if entry > MAX_ARG_STRLEN {
            return Err(invalid(format!(
                "an argument of {entry} bytes is more than a guest takes ({MAX_ARG_STRLEN})"
            ))
            .hint("send it through standard input"));
        }
    }
    if count > MAX_ARGS || bytes > MAX_ARGS_BYTES {
        return Err(invalid(format!(
            "{count} arguments of {bytes} bytes in all are more than a guest takes ({MAX_ARGS} of {MAX_ARGS_BYTES})"
        ))
        .hint("send them through standard input, to xargs"));
    }
    if let Some(workdir) = workdir {
        guest_path("workdir", workdir)?;
    }
    if let Some(user) = user {
        text("user", user, 256)?;
    }
    Ok(())
}

/// A terminal that somebody looks at.
pub(crate) fn terminal(terminal: &Terminal) -> Result<(), RpcError> {
    text("terminal.term", &terminal.term, 128)?;
    if terminal.rows == 0 || terminal.columns == 0 {
        return Err(invalid("a terminal has at least one row and one column"));
    }
    Ok(())
}

fn shorten(text: &str) -> String {
    text.chars().take(80).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_file_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("no.deb");
        let error = is_there(&path).unwrap_err();
        assert_eq!(error.kind, ErrorKind::NotFound);
        assert_eq!(error.message, format!("no file {path:?}"));
        std::fs::write(&path, "").unwrap();
        is_there(&path).unwrap();
    }

    fn open(argv: &[&str]) -> Command {
        Command {
            argv: argv.iter().map(ToString::to_string).collect(),
            ..Command::default()
        }
    }

    #[test]
    fn commands() {
        assert_eq!(command(&open(&["true"])), Ok(()));
        assert_eq!(command(&open(&["echo", "", "a b", "é"])), Ok(()));
        let env = |name: &str, value: &str| Command {
            env: [(name.into(), value.into())].into(),
            ..open(&["a"])
        };
        assert_eq!(command(&env("A", "b=c")), Ok(()));
        let long = "x".repeat(MAX_ARG_STRLEN);
        let many = vec!["x"; MAX_ARGS + 1];
        let full: Vec<&str> = std::iter::once("a")
            .chain(std::iter::repeat_n(&long[1..], 9))
            .collect();
        let at = |rows, columns| {
            terminal(&Terminal {
                term: "xterm".into(),
                rows,
                columns,
            })
        };
        assert_eq!(at(1, 1), Ok(()));
        for (rows, columns) in [(0, 1), (1, 0)] {
            let refused = at(rows, columns).unwrap_err().message;
            assert_eq!(refused, "a terminal has at least one row and one column");
        }
        let refusals: Vec<String> = [
            open(&[]),
            open(&[""]),
            open(&["a\0"]),
            open(&["a", "b\0c"]),
            open(&["a", &long]),
            open(&many),
            open(&full),
            env("", "x"),
            env("A=B", "x"),
            env("A", "\0"),
            Command {
                workdir: Some(String::new()),
                ..open(&["a"])
            },
            Command {
                user: Some(String::new()),
                ..open(&["a"])
            },
        ]
        .iter()
        .map(|open| command(open).unwrap_err().message)
        .collect();
        insta::assert_snapshot!(refusals.join("\n"));
    }

    #[test]
    fn paths_of_the_host_are_read_with_the_callers_rights_only() {
        let caller = |uid| Caller {
            uid,
            gid: 100,
            pid: 1,
        };
        assert_eq!(host_path(caller(0), 1000, "path", "/a".into()), Ok("/a".into()));
        assert_eq!(
            host_path(caller(1000), 1000, "path", "/a".into()),
            Ok("/a".into())
        );
        assert_eq!(may_install(caller(0), 1000), Ok(()));
        assert_eq!(may_install(caller(1000), 1000), Ok(()));
        let refused = may_install(caller(1001), 1000).unwrap_err();
        assert_eq!(refused.kind, ErrorKind::PermissionDenied);
        let refused = host_path(caller(1001), 1000, "path", "/a".into()).unwrap_err();
        assert_eq!(refused.kind, ErrorKind::PermissionDenied);
        for path in ["", "a", "./a", "/a\0"] {
            let refused = host_path(caller(0), 1000, "path", path.into()).unwrap_err();
            assert_eq!(refused.kind, ErrorKind::InvalidArgument, "{path:?}");
        }
    }

    #[test]
    fn an_expiry_is_set_or_taken_off() {
        let time = Timestamp::UNIX_EPOCH;
        assert_eq!(expiry(Some(time), false), Ok(Some(Some(time))));
        assert_eq!(expiry(None, true), Ok(Some(None)));
        assert_eq!(expiry(None, false), Ok(None));
        assert!(expiry(Some(time), true).is_err());
    }

    #[test]
    fn memory_is_in_mib() {
        assert_eq!(memory(1 << 30), Ok(1 << 30));
        assert!(memory((1 << 30) + 1).is_err());
    }
}
