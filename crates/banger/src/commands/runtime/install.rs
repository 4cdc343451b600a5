//! `banger runtime install`: Firecracker from a release's archive or a file.

use std::path::Path;

use banger_api::types::{RuntimeInstall, RuntimeSource};
use clap::Args;

use super::KindArg;
use crate::args::absolute;
use crate::context::Context;
use crate::error::CliError;
use crate::interrupt::Interrupts;
use crate::operation::Follow;

/// Install Firecracker for new runs
///
/// Takes the archive of a release (firecracker-vX-x86_64.tgz) or the program. It must run here and say its version, below
/// which it is kept; the one installed last is the one in use, unless the configuration names another. Machines that run
/// keep theirs. A download needs its checksum, which Firecracker's releases publish beside each archive.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  banger runtime install firecracker --from ./firecracker-v1.12.1-x86_64.tgz
  banger runtime install firecracker --from https://HOST/firecracker-v1.12.1-x86_64.tgz --sha256 HEX --version 1.12.1
")]
pub(crate) struct Install {
    /// What to install
    #[arg(value_name = "RUNTIME")]
    runtime: KindArg,
    /// Where it comes from. This release of Banger pins no version itself
    #[arg(long, value_name = "URL|FILE")]
    from: Option<String>,
    /// SHA-256 of what comes from there; needed for a URL
    #[arg(long, value_name = "HEX")]
    sha256: Option<String>,
    /// Refuse any other version than this
    #[arg(long, value_name = "VERSION")]
    version: Option<String>,
    /// Do not wait: print the operation's id and return at once
    #[arg(short, long)]
    detach: bool,
    /// Print no progress
    #[arg(short, long)]
    quiet: bool,
}

/// What to ask of the daemon.
fn source(from: Option<String>, sha256: Option<String>) -> Result<RuntimeSource, CliError> {
    let Some(from) = from else {
        return Err(CliError::usage(
            "this release of Banger pins no version of Firecracker: give its archive with --from FILE, or --from URL and \
             --sha256",
        ));
    };
    if !from.contains("://") {
        return Ok(RuntimeSource::File {
            path: absolute(Path::new(&from))?,
            sha256,
        });
    }
    match sha256 {
        Some(sha256) => Ok(RuntimeSource::Url { url: from, sha256 }),
        None => Err(CliError::usage(
            "a download needs its checksum: --sha256, which is published beside each archive",
        )),
    }
}

impl Install {
    pub(crate) async fn run(self, context: &Context) -> Result<u8, CliError> {
        let source = source(self.from, self.sha256)?;
        let client = context.client().await?;
        let mut interrupts = Interrupts::listen()?;
        let params = RuntimeInstall {
            runtime: self.runtime.into(),
            source,
            version: self.version,
        };
        Follow::cancelling(self.quiet, self.detach)
            .print(&client, &mut interrupts, client.runtime_install(params))
            .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_and_urls() {
        let text = |text: &str| Some(text.to_owned());
        assert!(matches!(
            source(text("fc.tgz"), None).unwrap(),
            RuntimeSource::File { path, sha256: None } if path.ends_with("/fc.tgz")
        ));
        assert_eq!(
            source(text("https://h/fc.tgz"), text("ab")).unwrap(),
            RuntimeSource::Url {
                url: "https://h/fc.tgz".into(),
                sha256: "ab".into()
            }
        );
        for (from, missing) in [(None, "--from FILE"), (text("https://h/fc.tgz"), "--sha256")] {
            let error = source(from, None).unwrap_err();
            assert!(error.message.contains(missing), "{}", error.message);
        }
    }
}
