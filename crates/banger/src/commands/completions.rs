//! `banger completions`: scripts that complete the command line.

use clap::{Args, ValueEnum};
use clap_complete::Shell;

use crate::error::CliError;
use crate::stdio;

/// Print a completion script
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  banger completions bash > /etc/bash_completion.d/banger
  banger completions zsh > ~/.zfunc/_banger
  banger completions fish > ~/.config/fish/completions/banger.fish
")]
pub(crate) struct Completions {
    /// Shell to complete in
    shell: Target,
}

/// Shells there are scripts for.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Target {
    Bash,
    Zsh,
    Fish,
}

impl Completions {
    pub(crate) fn run(self) -> Result<u8, CliError> {
        let shell = match self.shell {
            Target::Bash => Shell::Bash,
            Target::Zsh => Shell::Zsh,
            Target::Fish => Shell::Fish,
        };
        let mut script = Vec::new();
        clap_complete::generate(shell, &mut crate::cli::command(), "banger", &mut script);
        stdio::finish(&String::from_utf8_lossy(&script))
    }
}
