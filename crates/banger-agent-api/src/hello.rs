//! The hello line: one line which the agent pushes to the host as soon as it serves.
//!
//! ```text
//! BANGER-AGENT <protocol> <agent-version> <oldest-protocol> <init> <kernel-release> <boot-id>\n
//! BANGER-AGENT <protocol> <agent-version>\n                                   agents of release 0.1
//! ```
//!
//! It arrives on a connection to host port [`HELLO_PORT`](crate::HELLO_PORT) and replaces polling: the daemon listens
//! before it launches the VMM. The long form says what the Hello call would, so that a start needs no call at all: in a
//! guest without hardware virtualization the first one takes tens of milliseconds. After the short form, the daemon
//! calls.

use crate::info::{AgentInfo, InitMode, is_word};
use std::fmt;

/// Longest hello line in bytes, with its newline: the prefix, two numbers of ten digits, a short word and three of 64
/// bytes, each after a space.
pub const MAX_HELLO_LINE: usize = 256;

/// Longest agent version in bytes.
const MAX_VERSION: usize = 64;

const PREFIX: &str = "BANGER-AGENT";

/// What the hello line says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HelloLine {
    protocol_version: u32,
    agent_version: String,
    details: Option<Details>,
}

/// What only the long form says.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Details {
    min_protocol_version: u32,
    init_mode: InitMode,
    kernel_release: String,
    boot_id: String,
}

/// Why bytes are not a hello line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HelloLineError {
    /// No newline within [`MAX_HELLO_LINE`] bytes.
    #[error("find the end of the hello line within {MAX_HELLO_LINE} bytes")]
    NoEnd,
    /// Bytes after the newline.
    #[error("read the hello line: {extra} bytes follow it")]
    Trailing {
        /// How many.
        extra: usize,
    },
    /// Neither three words nor seven, or others than the module says.
    #[error("read the hello line: it is not \"{PREFIX} NUMBER VERSION [NUMBER INIT KERNEL BOOT]\"")]
    Shape,
    /// A protocol version is not a decimal number from 1 to 2³²−1 without leading zeros.
    #[error("read the hello line's protocol version")]
    ProtocolVersion,
    /// The agent version is empty, too long, or has characters outside `[A-Za-z0-9.+~-]`.
    #[error("read the hello line's agent version")]
    AgentVersion,
    /// Kernel release or boot id is empty, longer than 64 bytes, or not printable ASCII.
    #[error("read the hello line's word on the guest's kernel")]
    Kernel,
}

impl HelloLine {
    /// A short hello line from its parts.
    ///
    /// # Errors
    ///
    /// [`HelloLineError::ProtocolVersion`] for 0, [`HelloLineError::AgentVersion`] for a version that could not be
    /// read back.
    pub fn new(protocol_version: u32, agent_version: &str) -> Result<Self, HelloLineError> {
        if protocol_version == 0 {
            return Err(HelloLineError::ProtocolVersion);
        }
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'+' | b'~' | b'-');
        let length = agent_version.len();
        if length == 0 || length > MAX_VERSION || !agent_version.bytes().all(allowed) {
            return Err(HelloLineError::AgentVersion);
        }
        Ok(Self {
            protocol_version,
            agent_version: agent_version.to_owned(),
            details: None,
        })
    }

    /// The long hello line of an agent.
    ///
    /// # Errors
    ///
    /// As [`Self::new`], and [`HelloLineError::Kernel`] for a word that could not be read back.
    pub fn of(info: &AgentInfo) -> Result<Self, HelloLineError> {
        let mut line = Self::new(info.protocol_version, &info.agent_version)?;
        if info.min_protocol_version == 0 {
            return Err(HelloLineError::ProtocolVersion);
        }
        if !is_word(&info.kernel_release) || !is_word(&info.boot_id) {
            return Err(HelloLineError::Kernel);
        }
        line.details = Some(Details {
            min_protocol_version: info.min_protocol_version,
            init_mode: info.init_mode,
            kernel_release: info.kernel_release.clone(),
            boot_id: info.boot_id.clone(),
        });
        Ok(line)
    }

    /// Reads a whole line, newline included. Strict: one space between words, nothing before or after.
    ///
    /// # Errors
    ///
    /// What [`HelloLineError`]'s variants say.
    pub fn parse(bytes: &[u8]) -> Result<Self, HelloLineError> {
        let window = &bytes[..bytes.len().min(MAX_HELLO_LINE)];
        let end = window
            .iter()
            .position(|byte| *byte == b'\n')
            .ok_or(HelloLineError::NoEnd)?;
        let extra = bytes.len() - end - 1;
        if extra > 0 {
            return Err(HelloLineError::Trailing { extra });
        }
        let line = std::str::from_utf8(&bytes[..end]).map_err(|_| HelloLineError::Shape)?;
        // One more than the long form has: what follows is told from nothing.
        let words: Vec<&str> = line.splitn(8, ' ').collect();
        match words.as_slice() {
            [PREFIX, protocol, agent] => Self::new(number(protocol)?, agent),
            [PREFIX, protocol, agent, oldest, init, kernel, boot] => {
                let init_mode = InitMode::from_name(init);
                if init_mode.as_str() != *init {
                    return Err(HelloLineError::Shape);
                }
                Self::of(&AgentInfo {
                    protocol_version: number(protocol)?,
                    min_protocol_version: number(oldest)?,
                    agent_version: (*agent).to_owned(),
                    kernel_release: (*kernel).to_owned(),
                    boot_id: (*boot).to_owned(),
                    init_mode,
                })
            }
            _ => Err(HelloLineError::Shape),
        }
    }

    /// The newest protocol version the agent speaks.
    #[must_use]
    pub fn protocol_version(&self) -> u32 {
        self.protocol_version
    }

    /// The agent's release.
    #[must_use]
    pub fn agent_version(&self) -> &str {
        &self.agent_version
    }

    /// All that the agent says about itself, as the Hello call would give it; `None` for the short form.
    #[must_use]
    pub fn info(&self) -> Option<AgentInfo> {
        self.details.as_ref().map(|details| AgentInfo {
            protocol_version: self.protocol_version,
            min_protocol_version: details.min_protocol_version,
            agent_version: self.agent_version.clone(),
            kernel_release: details.kernel_release.clone(),
            boot_id: details.boot_id.clone(),
            init_mode: details.init_mode,
        })
    }
}

/// A protocol version. `u32::from_str` also takes a plus sign and leading zeros.
fn number(word: &str) -> Result<u32, HelloLineError> {
    let canonical = word.bytes().all(|byte| byte.is_ascii_digit()) && !word.starts_with('0');
    word.parse()
        .ok()
        .filter(|_| canonical)
        .ok_or(HelloLineError::ProtocolVersion)
}

impl fmt::Display for HelloLine {
    /// The line as it goes over the wire, newline included.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX} {} {}", self.protocol_version, self.agent_version)?;
        if let Some(details) = &self.details {
            let Details {
                min_protocol_version,
                init_mode,
                kernel_release,
                boot_id,
            } = details;
            write!(
                f,
                " {min_protocol_version} {} {kernel_release} {boot_id}",
                init_mode.as_str()
            )?;
        }
        writeln!(f)
    }
}

/// Why no hello line came over a connection.
#[cfg(feature = "client")]
#[derive(Debug, thiserror::Error)]
pub enum ReadHelloError {
    /// The connection broke.
    #[error("read the hello line")]
    Io(#[source] std::io::Error),
    /// Something else came.
    #[error("understand the agent's hello")]
    Malformed(#[source] HelloLineError),
}

/// Reads a connection to its end and parses what came as one hello line.
///
/// Never holds more than [`MAX_HELLO_LINE`] bytes. It waits as long as the peer takes: the caller sets the deadline.
///
/// # Errors
///
/// The connection broke, or what came is not exactly one hello line.
#[cfg(feature = "client")]
pub async fn read_hello_line<R>(reader: R) -> Result<HelloLine, ReadHelloError>
where
    R: tokio::io::AsyncRead + Unpin,
{
    use tokio::io::AsyncReadExt;
    let mut line = Vec::with_capacity(MAX_HELLO_LINE);
    // One byte more than a line may have shows that more came, without reading all of it. The agent closes after the
    // line, and VMMs differ in whether a close or a reset is then seen first: a complete line counts.
    let limit = u64::try_from(MAX_HELLO_LINE + 1).unwrap_or(u64::MAX);
    let read = reader.take(limit).read_to_end(&mut line).await;
    match (read, HelloLine::parse(&line)) {
        (_, Ok(hello)) => Ok(hello),
        (Err(error), Err(_)) => Err(ReadHelloError::Io(error)),
        (Ok(_), Err(error)) => Err(ReadHelloError::Malformed(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn written_lines_are_read_back(protocol in 1u32.., agent in "[A-Za-z0-9.+~-]{1,64}") {
            let line = HelloLine::new(protocol, &agent).expect("valid parts");
            let text = line.to_string();
            prop_assert!(text.len() <= MAX_HELLO_LINE);
            prop_assert_eq!(HelloLine::parse(text.as_bytes()), Ok(line));
        }

        #[test]
        fn long_lines_are_read_back(
            newest in 1u32..,
            oldest in 1u32..,
            agent in "[A-Za-z0-9.+~-]{1,64}",
            kernel in "[!-~]{1,64}",
            boot in "[!-~]{1,64}",
            init in prop::sample::select(&[InitMode::Agent, InitMode::Systemd, InitMode::Other, InitMode::None]),
        ) {
            let info = AgentInfo {
                protocol_version: newest,
                min_protocol_version: oldest,
                agent_version: agent,
                kernel_release: kernel,
                boot_id: boot,
                init_mode: init,
            };
            let text = HelloLine::of(&info).expect("valid parts").to_string();
            prop_assert!(text.len() <= MAX_HELLO_LINE);
            let line = HelloLine::parse(text.as_bytes()).expect("its own line");
            prop_assert_eq!(line.info(), Some(info));
        }

        #[test]
        fn whatever_is_accepted_is_canonical(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            if let Ok(line) = HelloLine::parse(&bytes) {
                prop_assert_eq!(line.to_string().into_bytes(), bytes);
            }
        }

        #[test]
        fn near_misses_are_canonical_too(
            text in "BANGER-AGENT {1,2}[+0-9]{0,11} {0,2}[a-z0-9. \r]{0,12}( [01+]{0,2} (agent|systemd|other|x)? {0,2}[!-~ ]{0,3})?\n{0,2}",
        ) {
            if let Ok(line) = HelloLine::parse(text.as_bytes()) {
                prop_assert_eq!(line.to_string(), text);
            }
        }
    }

    #[test]
    fn what_a_line_says() {
        let text =
            "BANGER-AGENT 3 0.2.0 2 systemd 6.1.0-28-cloud-amd64 0b6f4d2e-8a55-4b0a-9c11-2f8d1f6e7a10\n";
        let info = HelloLine::parse(text.as_bytes())
            .expect("valid")
            .info()
            .expect("long");
        assert_eq!((info.protocol_version, info.min_protocol_version), (3, 2));
        assert_eq!(info.init_mode, InitMode::Systemd);
        assert_eq!(info.kernel_release, "6.1.0-28-cloud-amd64");
        let short = HelloLine::parse(b"BANGER-AGENT 1 0.1.0\n").expect("the previous release's");
        assert_eq!(short.info(), None);
    }

    #[test]
    fn each_mistake_has_its_name() {
        let long = format!("BANGER-AGENT 1 {}\n", "x".repeat(MAX_HELLO_LINE));
        for (input, expected) in [
            ("", HelloLineError::NoEnd),
            ("BANGER-AGENT 1 0.1.0", HelloLineError::NoEnd),
            (long.as_str(), HelloLineError::NoEnd),
            ("BANGER-AGENT 1 0.1.0\n\n", HelloLineError::Trailing { extra: 1 }),
            ("BANGER-AGENT 1\n", HelloLineError::Shape),
            ("banger-agent 1 0.1.0\n", HelloLineError::Shape),
            ("BANGER-AGENT 1  0.1.0\n", HelloLineError::Shape),
            ("BANGER-AGENT 01 0.1.0\n", HelloLineError::ProtocolVersion),
            ("BANGER-AGENT 0 0.1.0\n", HelloLineError::ProtocolVersion),
            ("BANGER-AGENT +1 0.1.0\n", HelloLineError::ProtocolVersion),
            ("BANGER-AGENT 4294967296 0.1.0\n", HelloLineError::ProtocolVersion),
            ("BANGER-AGENT 1 0.1.0\r\n", HelloLineError::AgentVersion),
            ("BANGER-AGENT 1 0.1.0 1\n", HelloLineError::Shape),
            ("BANGER-AGENT 1 0.1.0 1 agent 6.1 x more\n", HelloLineError::Shape),
            ("BANGER-AGENT 1 0.1.0 1 runit 6.1 x\n", HelloLineError::Shape),
            (
                "BANGER-AGENT 1 0.1.0 0 agent 6.1 x\n",
                HelloLineError::ProtocolVersion,
            ),
            ("BANGER-AGENT 1 0.1.0 1 agent 6.1 \n", HelloLineError::Kernel),
            (
                "BANGER-AGENT 1 0.1.0 1 agent 6.1\u{e9} x\n",
                HelloLineError::Kernel,
            ),
        ] {
            assert_eq!(HelloLine::parse(input.as_bytes()), Err(expected), "{input:?}");
        }
    }

    #[cfg(feature = "client")]
    #[tokio::test]
    async fn reading_is_bounded() {
        let endless = tokio::io::repeat(b'x');
        let error = read_hello_line(endless).await.expect_err("not a line");
        assert!(
            matches!(error, ReadHelloError::Malformed(HelloLineError::NoEnd)),
            "{error:?}"
        );
        let line = read_hello_line(&b"BANGER-AGENT 1 0.1.0\n"[..])
            .await
            .expect("a line");
        assert_eq!((line.protocol_version(), line.agent_version()), (1, "0.1.0"));
    }
}
