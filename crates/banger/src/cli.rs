//! The command line as a whole: parsing, dispatch, and how a failure is told.

use std::ffi::OsString;

use clap::error::{ContextKind, ContextValue};
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
  banger ls                             what there is
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
  `banger ssh` gives ssh's exit code, or 125 when Banger itself failed.
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
        Err(error) => return usage(&of_machines(error)),
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

/// What is done to machines has its command below `vm`: whoever leaves that out is told, and not sent elsewhere.
fn of_machines(mut error: clap::Error) -> clap::Error {
    if let Some(ContextValue::String(word)) = error.get(ContextKind::InvalidSubcommand) {
        let below = command()
            .find_subcommand("vm")
            .and_then(|vm| vm.find_subcommand(word))
            .map(|command| format!("vm {}", command.get_name()));
        if let Some(below) = below {
            error.insert(
                ContextKind::SuggestedSubcommand,
                ContextValue::Strings(vec![below]),
            );
        }
    }
    error
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

    /// A line of a shell as far as examples have it: commands joined by pipes, quotes, a comment.
    fn commands(line: &str) -> Vec<Vec<String>> {
        let (mut commands, mut words, mut word, mut quote) = (Vec::new(), Vec::new(), None::<String>, None);
        for c in line.chars() {
            match (quote, c) {
                (Some(open), c) if c == open => quote = None,
                (None, '\'' | '"') => {
                    quote = Some(c);
                    word.get_or_insert_default();
                }
                (None, '#') if word.is_none() => break,
                (None, '|') if word.is_none() => commands.push(std::mem::take(&mut words)),
                (None, ' ') => words.extend(word.take()),
                (Some(_) | None, c) => word.get_or_insert_default().push(c),
            }
        }
        words.extend(word);
        commands.push(words);
        commands
    }

    /// Parses every `banger` in a line; how many there were.
    fn check(line: &str) -> usize {
        let mut checked = 0;
        for mut words in commands(line) {
            // Its arguments come from the pipe.
            if words.first().is_some_and(|word| word == "xargs") {
                words.push("dev".into());
            }
            // What stands before is a variable or a command that runs another; what stands behind may go to a file.
            let before = |word: &&String| {
                ["xargs", "sudo", "source", "eval"].contains(&word.as_str())
                    || word.starts_with('-')
                    || word.split_once('=').is_some_and(|(name, _)| !name.is_empty())
            };
            let at = words.iter().take_while(before).count();
            if !words
                .get(at)
                .is_some_and(|word| word == "banger" || word == "<(banger")
            {
                continue;
            }
            let mut words = words.split_off(at);
            if let Some(end) = words.iter().position(|word| word == ">") {
                words.truncate(end);
            }
            if words[0].starts_with("<(")
                && let Some(last) = words.last_mut()
            {
                *last = last.trim_end_matches(')').to_owned();
            }
            // Help and version are what was asked for.
            if let Err(error) = Cli::try_parse_from(&words)
                && error.use_stderr()
            {
                panic!("`{line}` does not parse: {error}");
            }
            checked += 1;
        }
        checked
    }

    /// The examples are parsed, so that none goes stale.
    #[test]
    fn every_example_parses() {
        fn of(command: &clap::Command) -> usize {
            let help = command
                .get_after_help()
                .map(ToString::to_string)
                .unwrap_or_default();
            let examples = help.lines().filter_map(|line| line.strip_prefix("  "));
            // What is said of an example stands three blanks away.
            let own: usize = examples
                .filter_map(|line| line.split("   ").next())
                .map(check)
                .sum();
            own + command.get_subcommands().map(of).sum::<usize>()
        }
        let checked = of(&command());
        assert!(checked > 80, "only {checked} found");
    }

    /// So are those that people read first: the README's, and what `make demo` ends with.
    #[test]
    fn every_documented_command_parses() {
        let read = |path: &str| {
            let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR"))
                .join("../..")
                .join(path);
            std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
        };
        let readme = read("README.md");
        let blocks = readme.lines().filter_map(|line| line.strip_prefix("    "));
        let checked: usize = blocks
            .map(|line| check(line.strip_prefix("$ ").unwrap_or(line)))
            .sum();
        assert!(checked > 15, "only {checked} found in the README");
        // In running text they are between backticks, and may leave out what they are about.
        let spans = readme.split('`').skip(1).step_by(2);
        for span in spans.filter(|span| span.starts_with("banger ") && !span.contains(['[', '|', '…'])) {
            let words = span.split(' ').filter(|word| !word.is_empty());
            let is_placeholder = |word: &str| word.chars().all(|c| c.is_ascii_uppercase());
            if !words.clone().any(is_placeholder)
                && let Err(error) = Cli::try_parse_from(words)
                && error.use_stderr()
            {
                let kind = error.kind();
                assert_eq!(
                    kind,
                    clap::error::ErrorKind::MissingRequiredArgument,
                    "{span}: {error}"
                );
            }
        }
        let demo = read("xtask/src/demo.rs");
        let next = demo.lines().filter_map(|line| line.strip_prefix("  banger "));
        let checked: usize = next
            .filter_map(|line| line.split("   ").next())
            .map(|line| check(&format!("banger {line}")))
            .sum();
        assert!(checked >= 5, "only {checked} found in the demo");
    }

    #[test]
    fn mistakes_name_what_was_meant() {
        let error = |words: &[&str]| Cli::try_parse_from(words).unwrap_err().to_string();
        insta::assert_snapshot!(error(&["banger", "exce", "dev"]));
        insta::assert_snapshot!(error(&["banger", "vm", "craete", "dev"]));
        for word in ["rm", "create", "ping", "start", "stop", "logs"] {
            let told = of_machines(Cli::try_parse_from(["banger", word, "dev"]).unwrap_err()).to_string();
            let tip = format!("tip: a similar subcommand exists: 'vm {word}'\n");
            assert!(told.contains(&tip), "{told}");
        }
        let told = of_machines(Cli::try_parse_from(["banger", "exce", "dev"]).unwrap_err()).to_string();
        assert_eq!(told, error(&["banger", "exce", "dev"]));
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
