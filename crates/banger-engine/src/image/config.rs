//! What an image of OCI says of the processes in it: kept in its row, the default of what runs in its machines.
//!
//! The form is ours and durable, so fields are added and never change their meaning; what the image itself says is in the
//! blob of its configuration (OCI image-spec, `config.md`).

use std::collections::BTreeMap;

use banger_store::images::ImageRow;
use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::host::Host;

/// The part of an image's configuration that means something here. What the image does not say is empty or absent.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ImageConfig {
    /// Environment of its processes, `NAME=value` each.
    pub env: Vec<String>,
    /// `USER`, `UID`, either with `:GROUP`.
    pub user: Option<String>,
    /// Directory that processes begin in.
    pub workdir: Option<String>,
    /// What is run, before the command.
    pub entrypoint: Vec<String>,
    /// The command, or arguments of the entrypoint.
    pub cmd: Vec<String>,
    /// Ports that something in it listens at: `80/tcp`.
    pub exposed: Vec<String>,
    /// Directories that are to be kept.
    pub volumes: Vec<String>,
    /// What people and programs say of it.
    pub labels: BTreeMap<String, String>,
    /// The signal that ends its process: `SIGQUIT`, `3`.
    pub stop_signal: Option<String>,
    /// `amd64`.
    pub architecture: String,
    /// `linux`.
    pub os: String,
    /// The architecture's.
    pub variant: Option<String>,
    /// When it was built, as it says: RFC 3339.
    pub created: Option<String>,
}

impl ImageConfig {
    /// The environment by names; of several with one name the last one counts, as it does for a process. What no process
    /// can have is left out: an image is not to keep commands from its machines by it.
    pub fn variables(&self) -> BTreeMap<String, String> {
        let pairs = self.env.iter().filter_map(|entry| entry.split_once('='));
        pairs
            .filter(|(name, value)| !name.is_empty() && !name.contains('\0') && !value.contains('\0'))
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect()
    }

    /// That of an image, by its id, where it has one.
    pub(crate) async fn of_image(host: &Host, id: String) -> Result<Option<Self>, Error> {
        let row = host
            .store
            .read(move |tx| banger_store::images::get(tx, &id))
            .await?;
        Ok(row.as_ref().and_then(Self::of))
    }

    /// That of an image's row, where it has one. One that cannot be read is as none, and said in the log.
    pub(crate) fn of(row: &ImageRow) -> Option<Self> {
        let text = row.config.as_deref()?;
        match serde_json::from_str(text) {
            Ok(config) => Some(config),
            Err(error) => {
                tracing::error!(image = row.name(), %error, "unreadable configuration of an image");
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_environment_is_what_a_process_can_have() {
        let config = ImageConfig {
            env: ["A=1", "B=x=y", "A=2", "=no", "C", "D=\0", "E="]
                .map(str::to_owned)
                .to_vec(),
            ..ImageConfig::default()
        };
        let expected = [("A", "2"), ("B", "x=y"), ("E", "")];
        let expected = expected.map(|(name, value)| (name.to_owned(), value.to_owned()));
        assert_eq!(config.variables(), BTreeMap::from(expected));
    }
}
