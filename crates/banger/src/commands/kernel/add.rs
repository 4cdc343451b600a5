//! `banger kernel add`: a kernel from a file, a Debian package or a pinned download.

use std::path::{Path, PathBuf};

use banger_api::types::{KernelAdd, KernelSource};
use clap::Args;

use crate::args::absolute;
use crate::context::Context;
use crate::error::CliError;
use crate::interrupt::Interrupts;
use crate::operation::Follow;

/// Add a kernel
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  banger kernel add cloud --deb linux-image-cloud-amd64
  banger kernel add mine --deb ./linux-image-6.12_amd64.deb
  banger kernel add tiny --file ./vmlinux
  banger kernel add tiny --url https://HOST/vmlinux-6.1 --sha256 HEX
")]
pub(crate) struct Add {
    /// Name of the kernel
    #[arg(value_name = "NAME")]
    name: String,
    #[command(flatten)]
    source: SourceArgs,
    /// SHA-256 of the download; anything else is refused
    #[arg(long, value_name = "HEX", requires = "url")]
    sha256: Option<String>,
    /// Do not wait: print the operation's id and return at once
    #[arg(short, long)]
    detach: bool,
    /// Print no progress
    #[arg(short, long)]
    quiet: bool,
}

/// Where it comes from: exactly one.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
struct SourceArgs {
    /// A vmlinux (ELF) or vmlinuz (bzImage) file with everything built in
    #[arg(long, value_name = "PATH")]
    file: Option<PathBuf>,
    /// A Debian package, fetched with the host's apt; or a .deb file, with a slash in its path or .deb at its end
    #[arg(long, value_name = "PACKAGE|FILE")]
    deb: Option<String>,
    /// A download of what --file takes, or of a .deb: https, or http from this host
    #[arg(long, value_name = "URL", requires = "sha256")]
    url: Option<String>,
}

impl SourceArgs {
    /// What to ask of the daemon. Names of packages have neither a slash nor the ending of a file.
    fn source(self, sha256: Option<String>) -> Result<KernelSource, CliError> {
        if let (Some(url), Some(sha256)) = (self.url, sha256) {
            return Ok(KernelSource::Url { url, sha256 });
        }
        match (self.file, self.deb) {
            (Some(file), None) => Ok(KernelSource::File(absolute(&file)?)),
            (None, Some(deb)) if deb.contains('/') || deb.ends_with(".deb") => {
                Ok(KernelSource::Debian(absolute(Path::new(&deb))?))
            }
            (None, Some(package)) => Ok(KernelSource::Debian(package)),
            (Some(_), Some(_)) | (None, None) => {
                Err(CliError::usage("one of --file, --deb and --url is needed"))
            }
        }
    }
}

impl Add {
    pub(crate) async fn run(self, context: &Context) -> Result<u8, CliError> {
        let source = self.source.source(self.sha256)?;
        let client = context.client().await?;
        let mut interrupts = Interrupts::listen()?;
        let params = KernelAdd {
            name: self.name,
            source,
        };
        Follow::cancelling(self.quiet, self.detach)
            .print(&client, &mut interrupts, client.kernel_add(params))
            .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packages_and_files() {
        let source = |file: Option<&str>, deb: Option<&str>| {
            SourceArgs {
                file: file.map(Into::into),
                deb: deb.map(Into::into),
                url: None,
            }
            .source(None)
            .unwrap()
        };
        let here = std::env::current_dir().unwrap();
        let at = |name: &str| here.join(name).to_str().unwrap().to_owned();
        assert_eq!(source(Some("vmlinux"), None), KernelSource::File(at("vmlinux")));
        assert_eq!(
            source(None, Some("linux-image-amd64")),
            KernelSource::Debian("linux-image-amd64".into())
        );
        assert_eq!(source(None, Some("k.deb")), KernelSource::Debian(at("k.deb")));
        assert_eq!(source(None, Some("/a/k")), KernelSource::Debian("/a/k".into()));
    }
}
