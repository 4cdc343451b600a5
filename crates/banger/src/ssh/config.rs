//! The configuration for the host's ssh, as ssh_config(5) has it.

use std::path::{Path, PathBuf};

use crate::error::{CliError, Kind};

/// What the configuration has ssh run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Commands {
    /// The command line's program.
    pub(crate) banger: PathBuf,
    /// The daemon's socket, where it is not where everybody would look.
    pub(crate) socket: Option<PathBuf>,
}

/// Renders it.
///
/// # Errors
///
/// A path that ssh's configuration could not hold, or would take for something else.
pub(crate) fn render(
    commands: &Commands,
    directory: &Path,
    identity: &Path,
    known_hosts: &Path,
) -> Result<String, CliError> {
    let (directory, identity, known_hosts) = (plain(directory)?, plain(identity)?, plain(known_hosts)?);
    let mut banger = format!("'{}'", plain(&commands.banger)?);
    if let Some(socket) = &commands.socket {
        banger = format!("{banger} --socket '{}'", plain(socket)?);
    }
    Ok(format!(
        r#"# Banger's machines for ssh. Written by `banger ssh` and `banger ssh-config`, and written over.

# Brings keys up to date before they are read. How it ends does not matter: the connection says what is wrong.
Match originalhost *.vm exec "{banger} ssh-config refresh --directory '{directory}' -- '%n'"

Host *.vm
    ProxyCommand {banger} ssh-proxy -- '%n'
    ProxyUseFdpass no
    User root
    Port 22
    # The daemon's key, and none of the user's.
    IdentityFile "{identity}"
    IdentitiesOnly yes
    AddKeysToAgent no
    PreferredAuthentications publickey
    # A machine is known by the key that the daemon has given it, whatever it is called.
    UserKnownHostsFile "{known_hosts}"
    GlobalKnownHostsFile /dev/null
    HostKeyAlgorithms ssh-ed25519
    StrictHostKeyChecking yes
    UpdateHostKeys no
    CheckHostIP no
    VerifyHostKeyDNS no
    # Nothing leaves this host on the way: what is fastest.
    Ciphers ^aes128-gcm@openssh.com
    Compression no
"#
    ))
}

/// A path that means itself within quotes, in ssh's configuration, its patterns and a shell.
pub(super) fn plain(path: &Path) -> Result<&str, CliError> {
    let bad = |c: char| c.is_control() || "\"'\\$`%*?[]{}~".contains(c);
    path.to_str().filter(|text| !text.contains(bad)).ok_or_else(|| {
        CliError::new(
            Kind::Prerequisite,
            format!(
                "{} cannot stand in ssh's configuration: it has quotes, wildcards or other signs in it",
                path.display()
            ),
        )
        .hint("put it elsewhere: XDG_CONFIG_HOME moves ssh's files")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn commands(banger: &str, socket: Option<&str>) -> Commands {
        Commands {
            banger: banger.into(),
            socket: socket.map(Into::into),
        }
    }

    fn of(commands: &Commands, directory: &str) -> Result<String, CliError> {
        let directory = Path::new(directory);
        render(
            commands,
            directory,
            &directory.join("id_ed25519"),
            &directory.join("known_hosts"),
        )
    }

    #[test]
    fn the_usual_one() {
        let text = of(
            &commands("/usr/local/bin/banger", None),
            "/home/u/.config/banger/ssh",
        )
        .unwrap();
        insta::assert_snapshot!(text);
    }

    #[test]
    fn a_daemon_elsewhere_and_blanks_in_paths() {
        let text = of(
            &commands("/opt/my tools/banger", Some("/tmp/a b/s.sock")),
            "/c d/ssh",
        )
        .unwrap();
        for line in [
            "    ProxyCommand '/opt/my tools/banger' --socket '/tmp/a b/s.sock' ssh-proxy -- '%n'",
            "    IdentityFile \"/c d/ssh/id_ed25519\"",
        ] {
            assert!(
                text.lines().any(|has| has == line),
                "{line} is missing in\n{text}"
            );
        }
    }

    #[test]
    fn a_path_that_would_mean_something_else_is_refused() {
        for bad in [
            "/a\"b", "/a'b", "/a%h", "/$HOME", "/a*", "/a\nb", "/`id`", "/a\\b",
        ] {
            let error = of(&commands("/bin/banger", None), bad).unwrap_err();
            assert_eq!(error.kind, Kind::Prerequisite, "{bad}");
            assert!(of(&commands(bad, None), "/c").is_err(), "{bad}");
            assert!(of(&commands("/bin/banger", Some(bad)), "/c").is_err(), "{bad}");
        }
    }
}
