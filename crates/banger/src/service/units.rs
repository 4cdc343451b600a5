//! The unit files, as text. Nothing here touches the host.
//!
//! What is in them, and what is not, has its reasons:
//!
//! - `KillMode=process`: machines are children of the daemon and outlive it, in its control group.
//! - `OOMPolicy=continue`: a machine that the kernel kills for memory must not take the daemon and all others with it.
//! - No mount namespace (`ProtectSystem=`, `ProtectHome=`, `PrivateTmp=` and their like): images come from any path of
//!   the host, and loop and device-mapper devices are to be seen by everybody.
//! - No `MemoryDenyWriteExecute=`: QEMU's emulation makes code. No `RestrictSUIDSGID=`, `RestrictNamespaces=`: making an
//!   image unpacks a whole system.
//! - No `NoNewPrivileges=` for a user: without root, mmdebstrap needs newuidmap, which is setuid.
//! - The first rules after a boot wait for the kernel's modules, minutes on a slow host that is busy booting: so long for a
//!   start and a stop.
//! - No limit on starts: whatever keeps the daemon from starting may be mended meanwhile.

use std::path::{Path, PathBuf};

use super::{DAEMON, MACHINES, Scope};

/// First line of what is written here.
const MARK: &str =
    "# Written by `banger daemon install`, which replaces it; `systemctl edit` makes changes that stay.";

/// The daemon's unit. `state`: a directory that must be mounted before it starts.
pub(crate) fn daemon(scope: Scope, program: &Path, state: Option<&Path>) -> String {
    let program = quote(program);
    let mounts = state
        .map(|state| format!("RequiresMountsFor={}\n", quote(state)))
        .unwrap_or_default();
    let (after, hardening, target) = match scope {
        Scope::System => (
            "After=network.target\n",
            "NoNewPrivileges=yes\nKeyringMode=private\nLockPersonality=yes\nRestrictRealtime=yes\n",
            "multi-user.target",
        ),
        Scope::User => ("", "", "default.target"),
    };
    format!(
        "{MARK}\n\
         [Unit]\n\
         Description=Banger: disposable Linux machines\n\
         Wants={MACHINES}\n\
         {after}{mounts}\
         StartLimitIntervalSec=0\n\
         \n\
         [Service]\n\
         Type=notify\n\
         ExecStart={program} run\n\
         Restart=on-failure\n\
         RestartSec=1\n\
         TimeoutStartSec=300\n\
         TimeoutStopSec=180\n\
         # Machines outlive the daemon.\n\
         KillMode=process\n\
         OOMPolicy=continue\n\
         TasksMax=infinity\n\
         LimitNOFILE=524288\n\
         {hardening}\
         \n\
         [Install]\n\
         WantedBy={target}\n"
    )
}

/// The unit that asks the guests to shut down before the host does: otherwise the last thing they see is a power cut.
/// The daemon's unit pulls it in, and it is stopped with the host only. `client`: the command line's program.
pub(crate) fn machines(client: &Path) -> String {
    let client = quote(client);
    format!(
        "{MARK}\n\
         [Unit]\n\
         Description=Banger: stops machines in order before the host goes down\n\
         # Stopped before the daemon is.\n\
         After={DAEMON}\n\
         \n\
         [Service]\n\
         Type=oneshot\n\
         RemainAfterExit=yes\n\
         ExecStop={client} --no-start vm stop --all --quiet\n\
         TimeoutStopSec=300\n"
    )
}

/// The daemon's program, if a unit is one of ours.
pub(crate) fn program(unit: &str) -> Option<PathBuf> {
    if !unit.starts_with(MARK) {
        return None;
    }
    let line = unit.lines().find_map(|line| line.strip_prefix("ExecStart="))?;
    unquote(line.strip_suffix(" run")?)
}

/// A path as systemd reads it in a command line or a list (systemd.syntax(7)): `%` begins a specifier, `$` a variable.
fn quote(path: &Path) -> String {
    let text = path.display().to_string();
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+@:".contains(c);
    if text.chars().all(plain) {
        return text;
    }
    let mut quoted = String::from("\"");
    for c in text.chars() {
        match c {
            '%' => quoted.push_str("%%"),
            '$' => quoted.push_str("$$"),
            '"' | '\\' => quoted.extend(['\\', c]),
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

/// The reverse of [`quote`].
fn unquote(text: &str) -> Option<PathBuf> {
    let Some(inner) = text.strip_prefix('"') else {
        return Some(text.into());
    };
    let mut path = String::new();
    let mut chars = inner.strip_suffix('"')?.chars();
    while let Some(c) = chars.next() {
        path.push(match c {
            '%' | '$' | '\\' => chars.next()?,
            c => c,
        });
    }
    Some(path.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units() {
        let bin = Path::new("/usr/local/bin/bangerd");
        let state = Path::new("/var/lib/banger");
        insta::assert_snapshot!("system", daemon(Scope::System, bin, Some(state)));
        insta::assert_snapshot!(
            "user",
            daemon(Scope::User, Path::new("/home/u/.local/bin/bangerd"), None)
        );
        insta::assert_snapshot!("machines", machines(Path::new("/usr/local/bin/banger")));
    }

    #[test]
    fn the_program_is_found_again_whatever_its_path() {
        for path in [
            "/usr/local/bin/bangerd",
            "/a b/100%/$x/\"q\"\\/bangerd",
            "/ü/bangerd",
        ] {
            let path = Path::new(path);
            let unit = daemon(Scope::System, path, None);
            assert_eq!(program(&unit).as_deref(), Some(path), "{unit}");
        }
        assert_eq!(program("[Service]\nExecStart=/usr/bin/bangerd run\n"), None);
    }

    /// systemd's own opinion of them.
    #[tokio::test]
    async fn systemd_finds_nothing_wrong() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        // It checks that programs are there.
        let program = Path::new("/bin/true");
        let state = Some(Path::new("/var/lib/x"));
        std::fs::write(at(DAEMON), daemon(Scope::System, program, state)).unwrap();
        std::fs::write(at(MACHINES), machines(program)).unwrap();
        let output = tokio::process::Command::new("systemd-analyze")
            .args(["verify", "--man=no", "--recursive-errors=no"])
            .args([at(DAEMON), at(MACHINES)])
            .output();
        let Ok(output) = output.await else {
            testkit::missing::<()>("systemd-analyze");
            return;
        };
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && said.trim().is_empty(), "{said}");
    }
}
