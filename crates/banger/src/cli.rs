//! The command line as a whole: parsing, dispatch, and how a failure is told.

use std::ffi::OsString;

use clap::{CommandFactory as _, Parser};

use crate::commands::Command;
use crate::context::GlobalArgs;
use crate::error::CliError;
use crate::stdio;

/// Disposable Linux machines on your own host
#[derive(Debug, Parser)]
#[command(
    name = "banger",
    version,
    arg_required_else_help = true,
    infer_long_args = false,
    max_term_width = 100,
    after_help = EXAMPLES,
    after_long_help = concat!(examples!(), "\n", exit_codes!(), "\n", environment!()),
)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: GlobalArgs,
    #[command(subcommand)]
    pub(crate) command: Command,
}

macro_rules! examples {
    () => {
        "\
Examples:
  banger run debian --name dev          create and start a machine
  banger exec -it dev -- bash           get in
  banger run busybox --rm -- uname -a   one command in a machine of its own
  banger ps                             what there is
  banger doctor                         what this host can do
"
    };
}
use examples;

macro_rules! exit_codes {
    () => {
        "\
Exit codes:
    0  success
    1  failure without a code of its own
    2  the command line makes no sense
    3  no such machine, image, kernel, operation or file
    4  the name is taken, or a state, another object or a busy machine does not allow it
    5  permission denied
    6  the host lacks something; see `banger doctor`
    7  the time allowed ran out
    8  the guest did not come up or cannot be reached
    9  the daemon cannot be reached
  130  interrupted or cancelled
  `banger exec` and `banger run … CMD` give the command's own exit code, or 128 + the signal that
  ended it; 125 when Banger itself failed, 126 when the command cannot be run, 127 when the guest
  has no such command.
"
    };
}
use exit_codes;

macro_rules! environment {
    () => {
        "\
Environment:
  BANGER_SOCKET         the daemon's socket; elsewhere than the default, no daemon is started
  BANGER_NO_AUTOSTART   1: fail when the daemon does not run, rather than start it
  BANGER_STATE_DIR      the daemon's state, /var/lib/banger for root
  BANGER_RUNTIME_DIR    the daemon's sockets, /run/banger for root
  BANGER_CONFIG         the configuration file, /etc/banger/config.toml for root
"
    };
}
use environment;

const EXAMPLES: &str = examples!();

/// Runs the command line and gives its exit code.
pub(crate) fn run(arguments: impl IntoIterator<Item = OsString>) -> u8 {
    let cli = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    match cli.command.run(&cli.global) {
        Ok(code) => code,
        Err(error) => {
            report(&error);
            error.kind.code()
        }
    }
}

/// Tells a failure.
pub(crate) fn report(error: &CliError) {
    // The last line break is `say_line`'s.
    stdio::say_line(format_args!("{}", error.render().trim_end()));
}

/// Help and version go to standard output, mistakes to standard error.
fn usage(error: &clap::Error) -> u8 {
    if error.use_stderr() {
        stdio::say_line(format_args!("{}", error.to_string().trim_end()));
        return 2;
    }
    match stdio::finish(&error.to_string()) {
        Ok(code) => code,
        Err(error) => {
            report(&error);
            error.kind.code()
        }
    }
}

/// The whole command line, for completions and tests.
pub(crate) fn command() -> clap::Command {
    Cli::command()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_definition_is_sound() {
        command().debug_assert();
    }

    /// Every command's long help in one snapshot: what users read.
    #[test]
    fn help() {
        let mut text = String::new();
        let mut root = command().term_width(100);
        root.build();
        collect(&mut root, &mut text);
        insta::assert_snapshot!("help", text);
    }

    fn collect(command: &mut clap::Command, text: &mut String) {
        let rule = "=".repeat(100);
        text.push_str(&format!("{rule}\n{}\n", command.render_long_help()));
        for child in command.get_subcommands_mut() {
            if child.get_name() != "help" {
                collect(child, text);
            }
        }
    }

    #[test]
    fn every_command_has_an_example() {
        fn check(command: &clap::Command) {
            for child in command
                .get_subcommands()
                .filter(|child| child.get_name() != "help")
            {
                if child.has_subcommands() {
                    check(child);
                } else {
                    let help = child
                        .get_after_help()
                        .map(ToString::to_string)
                        .unwrap_or_default();
                    assert!(help.contains("banger "), "{} has no example", child.get_name());
                }
            }
        }
        check(&command());
    }

    /// The words of the examples are parsed, so that none goes stale.
    #[test]
    fn every_example_parses() {
        fn check(command: &clap::Command) {
            let help = command
                .get_after_help()
                .map(ToString::to_string)
                .unwrap_or_default();
            for line in help.lines().filter_map(|line| line.strip_prefix("  ")) {
                // What is said of an example stands three blanks away; a pipe's other end is not ours.
                let example = line.split("   ").next().unwrap_or_default();
                let Some(at) = example.find("banger ") else {
                    continue;
                };
                let words = example[at..].split(" | ").next().unwrap_or_default();
                let words = words.split(" > ").next().unwrap_or_default().split_whitespace();
                let words: Vec<&str> = words.map(|word| word.trim_matches(['\'', '(', ')'])).collect();
                if let Err(error) = Cli::try_parse_from(&words) {
                    panic!("`{example}` does not parse: {error}");
                }
            }
            command.get_subcommands().for_each(check);
        }
        check(&command());
    }

    #[test]
    fn mistakes_name_what_was_meant() {
        let error = |words: &[&str]| Cli::try_parse_from(words).unwrap_err().to_string();
        insta::assert_snapshot!(error(&["banger", "exce", "dev"]));
        insta::assert_snapshot!(error(&["banger", "vm", "craete", "dev"]));
        insta::assert_snapshot!(error(&["banger", "run", "debian", "--nmae", "dev"]));
        insta::assert_snapshot!(error(&[
            "banger", "vm", "create", "dev", "--image", "debian", "--memory", "512"
        ]));
        insta::assert_snapshot!(error(&[
            "banger", "vm", "create", "dev", "--image", "debian", "--vcpus", "0"
        ]));
        insta::assert_snapshot!(error(&["banger", "ps", "-o", "xml"]));
        insta::assert_snapshot!(error(&["banger", "image", "bootstrap", "debain"]));
    }

    #[test]
    fn run_takes_a_command_with_and_without_dashes() {
        let parse = |words: &[&str]| {
            let Command::Run(run) = Cli::try_parse_from(words).unwrap().command else {
                panic!("not a run")
            };
            (run.command, run.name, run.rm)
        };
        let words = |list: &[&str]| list.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
        assert_eq!(
            parse(&["banger", "run", "busybox", "--rm", "--", "sh", "-c", "exit 3"]),
            (words(&["sh", "-c", "exit 3"]), None, true)
        );
        assert_eq!(
            parse(&["banger", "run", "--rm", "busybox", "sh", "-c", "exit 3"]),
            (words(&["sh", "-c", "exit 3"]), None, true)
        );
        assert_eq!(
            parse(&["banger", "run", "debian", "--name", "dev"]),
            (Vec::new(), Some("dev".to_owned()), false)
        );
        assert_eq!(
            parse(&["banger", "run", "debian", "ls", "--name", "x"]).0,
            words(&["ls", "--name", "x"])
        );
        assert_eq!(
            parse(&["banger", "run", "debian", "--", "--version"]).0,
            words(&["--version"])
        );
    }
}
