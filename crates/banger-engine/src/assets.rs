//! Finds companion files: the guest agent and `vhost-device-vsock`. Says where it looked.

use std::path::{Path, PathBuf};
use std::time::Duration;

use hostkit::exec::Tool;

use crate::error::Error;
use crate::settings::Settings;

/// Where companion files are looked for.
#[derive(Debug, Clone)]
pub(crate) struct Assets {
    agent: Option<PathBuf>,
    directories: Vec<PathBuf>,
}

/// A program says its version at once, or something is wrong with it.
const VERSION: Duration = Duration::from_secs(10);

/// The guest agent's file name.
pub(crate) const AGENT: &str = "banger-agent";

impl Assets {
    pub(crate) fn new(settings: &Settings) -> Self {
        let directories = settings.companion_dirs();
        Self {
            agent: settings.agent.clone(),
            directories,
        }
    }

    /// The static guest agent, which goes into every initramfs.
    pub(crate) fn agent(&self) -> Result<PathBuf, Error> {
        let fix = "run `make build`, or set `path` under `[agent]` in the configuration";
        self.find("the guest agent", AGENT, self.agent.as_deref(), fix)
    }

    /// The guest agent with the version it gives itself.
    pub(crate) async fn agent_version(&self) -> Result<(PathBuf, String), Error> {
        let path = self.agent()?;
        let failed = |e| Error::Host {
            action: "ask the guest agent for its version",
            source: Box::new(e),
        };
        let tool = Tool::at(&path).map_err(failed)?;
        let output = tool
            .command()
            .arg("--version")
            .timeout(VERSION)
            .run()
            .await
            .map_err(failed)?;
        let version = output.text().trim().trim_start_matches(AGENT).trim().to_owned();
        Ok((path, version))
    }

    /// A configured path counts alone: looking elsewhere would hide a mistake in it.
    fn find(&self, what: &str, name: &str, configured: Option<&Path>, fix: &str) -> Result<PathBuf, Error> {
        let candidates: Vec<PathBuf> = match configured {
            Some(path) => vec![path.to_owned()],
            None => self.directories.iter().map(|d| d.join(name)).collect(),
        };
        match candidates.iter().find(|path| path.is_file()) {
            Some(path) => Ok(path.clone()),
            None => Err(Error::Asset {
                what: format!("{what} ({name})"),
                looked: candidates.iter().map(|p| p.display().to_string()).collect(),
                fix: fix.to_owned(),
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_place_that_has_it_wins_and_a_miss_says_where_it_looked() {
        let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let directories = vec![a.path().to_owned(), b.path().to_owned()];
        let assets = Assets {
            agent: None,
            directories,
        };
        let Err(Error::Asset { looked, .. }) = assets.agent() else {
            panic!("found nothing")
        };
        assert_eq!(looked.len(), 2);
        std::fs::write(b.path().join(AGENT), "").unwrap();
        assert_eq!(assets.agent().unwrap(), b.path().join(AGENT));
        std::fs::write(a.path().join(AGENT), "").unwrap();
        assert_eq!(assets.agent().unwrap(), a.path().join(AGENT));
    }

    #[test]
    fn a_configured_path_counts_alone() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(AGENT), "").unwrap();
        let assets = Assets {
            agent: Some(dir.path().join("elsewhere")),
            directories: vec![dir.path().to_owned()],
        };
        assert!(assets.agent().is_err());
    }
}
