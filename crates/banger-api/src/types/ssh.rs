//! ssh into machines: keys and connections.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Parameters of `ssh.identity`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SshIdentityOf {
    /// Machine, by name or id, that gets a host key where it has none yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vm: Option<String>,
}

/// What an ssh client needs.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SshIdentity {
    /// The client's private key in OpenSSH's format, without a passphrase: with it, one logs in to every machine.
    pub private_key: String,
    /// Its public half: `ssh-ed25519 AAAA…`.
    pub public_key: String,
    /// Host keys of the machines that have one, by name.
    pub hosts: Vec<SshHost>,
}

impl std::fmt::Debug for SshIdentity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SshIdentity")
            .field("public_key", &self.public_key)
            .field("hosts", &self.hosts)
            .finish_non_exhaustive()
    }
}

/// A machine as an ssh client knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SshHost {
    /// The machine's name.
    pub vm: String,
    /// Its public host key: `ssh-ed25519 AAAA…`. Follows the machine when that is renamed.
    pub host_key: String,
}

/// Parameters of `guest.ssh`. The stream carries data frames both ways.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SshOpen {
    /// Machine, by name or id.
    pub vm: String,
}
