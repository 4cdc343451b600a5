//! The configuration of the agent's sshd, as sshd_config(5) has it. Nothing of the image's own is read or changed.

use std::fmt::Write as _;
use std::path::Path;

/// Names in a connection's directory.
pub(super) const CONFIG: &str = "sshd_config";
pub(super) const HOST_KEY: &str = "host_key";
pub(super) const AUTHORIZED: &str = "authorized_keys";

/// What the agent finds where it runs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Surroundings {
    /// The image's `/etc/pam.d/sshd`, where it has one.
    pub(super) pam: Option<String>,
    /// `GLIBC_TUNABLES` of the kernel's command line, which every process of such a guest needs; sshd does not hand its
    /// own environment on.
    pub(super) tunables: Option<String>,
}

/// Renders it for the files in `directory`.
pub(super) fn render(directory: &Path, surroundings: &Surroundings) -> String {
    let Surroundings { pam, tunables } = surroundings;
    let mut text = String::from("# Written by Banger's agent for one connection, and removed with it.\n");
    let directory = directory.display();
    let mut line = |line: std::fmt::Arguments<'_>| {
        // Writing to a string does not fail.
        let _ = writeln!(text, "{line}");
    };
    line(format_args!("HostKey {directory}/{HOST_KEY}"));
    // The user's own keys count as they do with any sshd.
    line(format_args!(
        "AuthorizedKeysFile {directory}/{AUTHORIZED} .ssh/authorized_keys .ssh/authorized_keys2"
    ));
    // Whoever gets here has come through the daemon, and could run anything as root without ssh. An image whose `/` or
    // whose homes belong to an odd user is no reason to keep him out.
    line(format_args!("StrictModes no"));
    line(format_args!("PubkeyAuthentication yes"));
    line(format_args!("PermitRootLogin prohibit-password"));
    line(format_args!("PasswordAuthentication no"));
    line(format_args!("KbdInteractiveAuthentication no"));
    // Nobody comes here who is not to be let in, and an emulated guest may need minutes for a login.
    line(format_args!("LoginGraceTime 0"));
    // There is no address at the other end.
    line(format_args!("UseDNS no"));
    // One connection may carry all the sessions of an editor.
    line(format_args!("MaxSessions 100"));
    line(format_args!("X11Forwarding yes"));
    line(format_args!("AcceptEnv LANG LC_*"));
    line(format_args!("Subsystem sftp internal-sftp"));
    line(format_args!("PidFile none"));
    // PAM opens the login session of systemd, and knows accounts that are locked for passwords only. A session of PAM
    // shows the message of the day itself where it is told to.
    let shows_motd = pam.as_ref().is_some_and(|pam| {
        pam.lines()
            .any(|line| !line.trim_start().starts_with('#') && line.contains("pam_motd"))
    });
    if pam.is_some() {
        line(format_args!("UsePAM yes"));
    }
    line(format_args!(
        "PrintMotd {}",
        if shows_motd { "no" } else { "yes" }
    ));
    let is_word = |text: &&String| {
        let fits = |b: u8| b.is_ascii_graphic() && b != b'"' && b != b'\\';
        !text.is_empty() && text.bytes().all(fits)
    };
    if let Some(tunables) = tunables.as_ref().filter(is_word) {
        line(format_args!("SetEnv GLIBC_TUNABLES={tunables}"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(pam: Option<&str>) -> String {
        let surroundings = Surroundings {
            pam: pam.map(str::to_owned),
            tunables: None,
        };
        render(Path::new("/run/banger-agent/ssh/3"), &surroundings)
    }

    #[test]
    fn as_the_image_has_pam() {
        let none = of(None);
        assert!(
            !none.contains("UsePAM") && none.contains("\nPrintMotd yes\n"),
            "{none}"
        );
        let plain = of(Some("# pam_motd\n@include common-auth\n"));
        assert!(plain.contains("\nUsePAM yes\nPrintMotd yes\n"), "{plain}");
        let shows = of(Some("session optional pam_motd.so noupdate\n"));
        assert!(shows.contains("\nUsePAM yes\nPrintMotd no\n"), "{shows}");
    }

    #[test]
    fn tunables_reach_sessions_when_they_are_a_word() {
        let of = |tunables: &str| {
            let surroundings = Surroundings {
                pam: None,
                tunables: Some(tunables.to_owned()),
            };
            render(Path::new("/d"), &surroundings)
        };
        let line = "SetEnv GLIBC_TUNABLES=glibc.cpu.hwcaps=-AVX2,-AVX";
        assert!(of("glibc.cpu.hwcaps=-AVX2,-AVX").lines().any(|has| has == line));
        for odd in ["a b", "a\nPermitRootLogin yes", "a\"", ""] {
            assert!(!of(odd).contains("SetEnv"), "{odd}");
        }
    }

    #[test]
    fn keys_are_the_connections_and_the_users() {
        let text = of(None);
        for line in [
            "HostKey /run/banger-agent/ssh/3/host_key",
            "AuthorizedKeysFile /run/banger-agent/ssh/3/authorized_keys .ssh/authorized_keys .ssh/authorized_keys2",
            "PasswordAuthentication no",
            "PermitRootLogin prohibit-password",
            "LoginGraceTime 0",
            "Subsystem sftp internal-sftp",
        ] {
            assert!(
                text.lines().any(|has| has == line),
                "{line} is missing in\n{text}"
            );
        }
    }
}
