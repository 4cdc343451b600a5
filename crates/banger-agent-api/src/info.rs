//! What an agent says about itself: in its hello line, and in its answer to the Hello call.

use crate::version::{Incompatible, negotiate};
use crate::{MIN_PROTOCOL_VERSION, PROTOCOL_VERSION, proto};

/// Longest word of these, in bytes.
pub(crate) const MAX_WORD: usize = 64;

/// Who is process 1 in a guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InitMode {
    /// The agent.
    Agent,
    /// The image's systemd.
    Systemd,
    /// Another init of the image, or one this release does not know.
    Other,
    /// Not a guest: the agent serves for debugging.
    None,
}

impl InitMode {
    /// Its name in the hello line.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Agent => "agent",
            Self::Systemd => "systemd",
            Self::Other => "other",
            Self::None => "none",
        }
    }

    /// By its name in the hello line. A name that this release does not know is another init.
    pub(crate) fn from_name(name: &str) -> Self {
        match name {
            "agent" => Self::Agent,
            "systemd" => Self::Systemd,
            "none" => Self::None,
            _ => Self::Other,
        }
    }
}

impl From<InitMode> for proto::InitMode {
    fn from(mode: InitMode) -> Self {
        match mode {
            InitMode::Agent => Self::Agent,
            InitMode::Systemd => Self::Systemd,
            InitMode::Other => Self::Other,
            InitMode::None => Self::None,
        }
    }
}

impl From<proto::InitMode> for InitMode {
    fn from(mode: proto::InitMode) -> Self {
        match mode {
            proto::InitMode::Agent => Self::Agent,
            proto::InitMode::Systemd => Self::Systemd,
            proto::InitMode::Other | proto::InitMode::Unspecified => Self::Other,
            proto::InitMode::None => Self::None,
        }
    }
}

/// What an agent says about itself, checked: its words are at most 64 printable ASCII characters without spaces.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AgentInfo {
    /// The protocol version to use with it; of what an agent says itself, the newest it speaks.
    pub protocol_version: u32,
    /// The oldest protocol version it understands.
    pub min_protocol_version: u32,
    /// Its release; the guest's word.
    pub agent_version: String,
    /// The guest's kernel, as `uname -r`; the guest's word.
    pub kernel_release: String,
    /// Changes with every boot of the guest; the guest's word.
    pub boot_id: String,
    /// Who is process 1.
    pub init_mode: InitMode,
}

impl AgentInfo {
    /// What this release's agent says.
    #[must_use]
    pub fn of_this_release(kernel_release: &str, boot_id: &str, init_mode: InitMode) -> Self {
        Self {
            protocol_version: PROTOCOL_VERSION,
            min_protocol_version: MIN_PROTOCOL_VERSION,
            agent_version: env!("CARGO_PKG_VERSION").to_owned(),
            kernel_release: kernel_release.to_owned(),
            boot_id: boot_id.to_owned(),
            init_mode,
        }
    }

    /// Settles the version to use with this agent.
    ///
    /// # Errors
    ///
    /// There is none that both sides understand.
    pub fn negotiated(mut self) -> Result<Self, Incompatible> {
        self.protocol_version = negotiate(self.protocol_version, self.min_protocol_version)?;
        Ok(self)
    }
}

/// Whether a word of an agent can be shown on a terminal, stored, and written into a hello line.
pub(crate) fn is_word(text: &str) -> bool {
    (1..=MAX_WORD).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic())
}
