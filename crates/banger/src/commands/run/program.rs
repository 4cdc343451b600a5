//! What runs in a new machine: what was asked for, and what the image says (OCI image-spec, `config.md`, "Entrypoint",
//! "Cmd").
//!
//! | asked for | the image says | runs |
//! |---|---|---|
//! | a command | an entrypoint | the entrypoint with the command as its arguments |
//! | a command | none | the command |
//! | nothing | an entrypoint, a command, or both | one after the other |
//! | nothing | no more than a shell, or what boots the machine anyway | nothing: the machine stays |
//! | a shell (`-it`) | no command | the best shell there is |
//!
//! `--entrypoint` takes the place of the image's, and the image's command goes with it.

use banger_api::types::ImageConfig;

/// The best shell an image has, as a login shell.
const SHELL: &str = "if [ -x /bin/bash ]; then exec /bin/bash -l; else exec /bin/sh -l; fi";

/// Shells, which end at once where nobody types: what an image has as its command when it has nothing of its own to run.
const SHELLS: [&str; 6] = ["ash", "bash", "dash", "fish", "sh", "zsh"];

/// Programs that are the machine's first process, where the image has them.
const INITS: [&str; 4] = [
    "/sbin/init",
    "/usr/sbin/init",
    "/lib/systemd/systemd",
    "/usr/lib/systemd/systemd",
];

/// What was asked for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Asked<'a> {
    /// In place of the image's; empty: none.
    pub(super) entrypoint: Option<&'a str>,
    /// Empty: the image's.
    pub(super) command: &'a [String],
    /// Somebody types.
    pub(super) interactive: bool,
}

/// Program and arguments; empty where the machine is only to be there.
pub(super) fn program(asked: Asked<'_>, image: Option<&ImageConfig>) -> Vec<String> {
    let Asked {
        entrypoint,
        command,
        interactive,
    } = asked;
    let own = image.map(|image| (image.entrypoint.as_slice(), image.cmd.as_slice()));
    let (first, rest) = match (entrypoint, own) {
        (Some(""), _) => (Vec::new(), command),
        (Some(entrypoint), _) => (vec![entrypoint.to_owned()], command),
        (None, Some((entrypoint, cmd))) => (
            entrypoint.to_vec(),
            if command.is_empty() { cmd } else { command },
        ),
        (None, None) => (Vec::new(), command),
    };
    let whole = [first.as_slice(), rest].concat();
    let asked_for = entrypoint.is_some_and(|entrypoint| !entrypoint.is_empty()) || !command.is_empty();
    if whole.is_empty() && interactive {
        return ["/bin/sh", "-c", SHELL].map(str::to_owned).to_vec();
    }
    let is_idle = match whole.as_slice() {
        [] => true,
        [only] => INITS.contains(&only.as_str()) || is_shell(only) && !interactive,
        [first, ..] => INITS.contains(&first.as_str()),
    };
    if is_idle && !asked_for { Vec::new() } else { whole }
}

fn is_shell(program: &str) -> bool {
    let name = program.rsplit('/').next().unwrap_or(program);
    SHELLS.contains(&name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<String> {
        line.split_whitespace().map(str::to_owned).collect()
    }

    /// With `entrypoint | cmd` of the image.
    fn of(image: Option<&str>, entrypoint: Option<&str>, command: &str, interactive: bool) -> String {
        let image = image.map(|image| {
            let (entrypoint, cmd) = image.split_once('|').unwrap();
            ImageConfig {
                entrypoint: words(entrypoint),
                cmd: words(cmd),
                ..ImageConfig::default()
            }
        });
        let command = words(command);
        let asked = Asked {
            entrypoint,
            command: &command,
            interactive,
        };
        program(asked, image.as_ref()).join(" ")
    }

    #[test]
    fn as_the_table_says() {
        for (image, command, expected) in [
            (Some("serve|--port 80"), "", "serve --port 80"),
            (Some("serve|--port 80"), "--help", "serve --help"),
            (Some("|nginx -g x"), "", "nginx -g x"),
            (Some("|nginx -g x"), "sh -c y", "sh -c y"),
            (Some("|bash"), "", ""),
            (Some("|/bin/sh"), "", ""),
            (Some("|/bin/sh"), "sh", "sh"),
            (Some("|bash run.sh"), "", "bash run.sh"),
            (Some("/sbin/init|"), "", ""),
            (Some("|/lib/systemd/systemd --unit=x"), "", ""),
            (Some("|"), "", ""),
            (None, "", ""),
            (None, "true", "true"),
        ] {
            assert_eq!(of(image, None, command, false), expected, "{image:?} {command:?}");
        }
    }

    #[test]
    fn somebody_who_types_gets_a_shell() {
        let best = ["/bin/sh", "-c", SHELL].join(" ");
        assert_eq!(of(None, None, "", true), best);
        assert_eq!(of(Some("|"), None, "", true), best);
        assert_eq!(of(Some("|bash"), None, "", true), "bash");
        assert_eq!(of(Some("psql|"), None, "", true), "psql");
        assert_eq!(of(Some("psql|"), Some(""), "", true), best);
    }

    #[test]
    fn an_entrypoint_that_is_asked_for_takes_the_images_place() {
        assert_eq!(of(Some("serve|--port 80"), Some("sh"), "-c x", false), "sh -c x");
        assert_eq!(of(Some("serve|--port 80"), Some("sh"), "", false), "sh");
        assert_eq!(of(Some("serve|--port 80"), Some(""), "ls", false), "ls");
        assert_eq!(of(Some("serve|--port 80"), Some(""), "", false), "");
        assert_eq!(of(None, Some("/bin/date"), "-u", false), "/bin/date -u");
    }
}
