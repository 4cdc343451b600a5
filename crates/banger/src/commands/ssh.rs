//! `banger ssh`: the host's ssh into a running machine, with everything that it needs and nothing of the user's.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use banger_api::types::{VmRef, VmState};
use clap::Args;

use crate::context::Context;
use crate::error::{CliError, Kind};
use crate::ssh::{self, Directory, SUFFIX};

/// ssh's options that take a value (ssh(1)).
const WITH_VALUE: &[u8] = b"BbcDEeFIiJLlmOopPQRSWw";

/// Log in to a running machine by ssh
///
/// Runs the host's ssh client with Banger's keys. It reaches the ssh server of the machine's image without a network, a
/// port or a question, and neither reads nor changes ~/.ssh. All of ssh's options can be given, before the machine or
/// after it. The user is root unless USER@ or -l says otherwise. The exit code is ssh's: the command's own, 255 when the
/// connection failed; 125 when Banger itself failed.
///
/// For plain `ssh NAME.vm`, scp, rsync and editors, see `banger ssh-config install`.
#[derive(Debug, Args)]
#[command(
    override_usage = "banger ssh [SSH OPTIONS] [USER@]VM [SSH OPTIONS] [--] [CMD]...",
    after_help = "\
Examples:
  banger ssh dev
  banger ssh dev -- uname -a
  banger ssh me@dev -t -- htop
  banger ssh -L 8080:localhost:80 -N dev
"
)]
pub(crate) struct Ssh {
    /// Machine by name or id, with what ssh takes besides
    #[arg(
        value_name = "ARGS",
        required = true,
        trailing_var_arg = true,
        allow_hyphen_values = true
    )]
    arguments: Vec<OsString>,
}

impl Ssh {
    pub(crate) async fn run(self, context: &Context) -> Result<u8, CliError> {
        self.attempt(context).await.map_err(CliError::of_exec)
    }

    async fn attempt(mut self, context: &Context) -> Result<u8, CliError> {
        let (at, user, machine) = destination(&self.arguments)?;
        let client = context.client().await?;
        let vm = client.vm_show(VmRef { vm: machine }).await?;
        if vm.state != VmState::Running {
            return Err(
                CliError::new(Kind::Conflict, format!("machine {:?} is not running", vm.name))
                    .hint(format!("start it: banger vm start {}", vm.name)),
            );
        }
        let directory = Directory::of(context)?;
        directory.write(&client, Some(vm.name.clone())).await?;

        let mut host = user
            .map(|user| [&*user, OsStr::new("@")].join(OsStr::new("")))
            .unwrap_or_default();
        host.push(format!("{}{SUFFIX}", vm.name));
        self.arguments[at] = host;
        let mut command = Command::new("ssh");
        command.arg("-F").arg(directory.config()).args(&self.arguments);
        if context.no_start() {
            command.env("BANGER_NO_AUTOSTART", "1");
        }
        // Returns only when it failed.
        let error = command.exec();
        let is_missing = error.kind() == std::io::ErrorKind::NotFound;
        Err(match is_missing {
            true => CliError::new(Kind::Prerequisite, "there is no ssh client on this host")
                .hint("install one: apt-get install openssh-client; `banger exec` needs none"),
            false => CliError::general(format!("failed to run ssh: {error}")),
        })
    }
}

/// Which of the arguments is the destination, with its user and its machine. As ssh looks for it: the first that is
/// neither an option nor an option's value.
fn destination(arguments: &[OsString]) -> Result<(usize, Option<OsString>, String), CliError> {
    let mut rest = arguments.iter().enumerate();
    let missing = || CliError::usage("no machine is named").hint("banger ssh dev; `banger vm ls` lists them");
    let (at, found) = loop {
        let (at, argument) = rest.next().ok_or_else(missing)?;
        match argument.as_bytes() {
            b"--" => break rest.next().ok_or_else(missing)?,
            [b'-', letters @ ..] if !letters.is_empty() => {
                let value = letters.iter().position(|letter| WITH_VALUE.contains(letter));
                if value.is_some_and(|at| at + 1 == letters.len()) {
                    rest.next();
                }
            }
            _ => break (at, argument),
        }
    };
    // A user's name may have an @ in it, a machine's cannot.
    let (user, machine) = match found.as_bytes().iter().rposition(|byte| *byte == b'@') {
        Some(at) => (
            Some(OsStr::from_bytes(&found.as_bytes()[..at]).to_owned()),
            &found.as_bytes()[at + 1..],
        ),
        None => (None, found.as_bytes()),
    };
    let machine = String::from_utf8_lossy(machine);
    Ok((at, user, ssh::machine(&machine).to_owned()))
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::cli::Cli;
    use crate::commands::Command;

    fn arguments(words: &[&str]) -> Vec<OsString> {
        words.iter().map(OsString::from).collect()
    }

    #[test]
    fn the_destination_is_where_ssh_would_find_it() {
        let find = |words: &[&str]| {
            destination(&arguments(words))
                .map(|(at, user, machine)| (at, user.map(|user| user.into_string().unwrap()), machine))
        };
        let of = |at, user: Option<&str>, machine: &str| (at, user.map(str::to_owned), machine.to_owned());
        for (words, expected) in [
            (&["dev"][..], of(0, None, "dev")),
            (&["dev.vm", "-l", "x"], of(0, None, "dev")),
            (&["me@dev", "-t", "--", "ls", "a@b"], of(0, Some("me"), "dev")),
            (&["-l", "me", "dev"], of(2, None, "dev")),
            (
                &["-tt", "-p22", "-vL", "1:b:2", "a@b@dev"],
                of(4, Some("a@b"), "dev"),
            ),
            (&["-oUser=x", "-o", "Port=1", "dev", "-N"], of(3, None, "dev")),
            (&["-t", "--", "dev", "ls"], of(2, None, "dev")),
        ] {
            assert_eq!(find(words).unwrap(), expected, "{words:?}");
        }
        for words in [&["-t"][..], &["-l", "dev"], &["--"]] {
            assert_eq!(find(words).unwrap_err().kind, Kind::Usage, "{words:?}");
        }
    }

    #[test]
    fn everything_behind_the_command_is_sshs() {
        for (line, expected) in [
            (
                &["banger", "ssh", "dev", "--", "ls", "--socket"][..],
                &["dev", "--", "ls", "--socket"][..],
            ),
            (&["banger", "ssh", "dev", "ls", "-la"], &["dev", "ls", "-la"]),
            (
                &["banger", "ssh", "-t", "dev", "--", "top"],
                &["-t", "dev", "--", "top"],
            ),
            (
                &["banger", "ssh", "-L", "1:a:2", "-N", "dev"],
                &["-L", "1:a:2", "-N", "dev"],
            ),
            (&["banger", "ssh", "-vv", "dev", "-h"], &["-vv", "dev", "-h"]),
            (&["banger", "--socket", "/s", "ssh", "dev"], &["dev"]),
            (&["banger", "ssh", "--socket", "/s", "dev"], &["dev"]),
        ] {
            let Command::Ssh(ssh) = Cli::try_parse_from(line).unwrap().command else {
                panic!("not ssh")
            };
            assert_eq!(ssh.arguments, arguments(expected), "{line:?}");
        }
    }
}
