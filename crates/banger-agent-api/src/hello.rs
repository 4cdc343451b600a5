//! The hello line: one line which the agent pushes to the host as soon as it serves.
//!
//! ```text
//! BANGER-AGENT <protocol-version> <agent-version>\n
//! ```
//!
//! It arrives on a connection to host port [`HELLO_PORT`](crate::HELLO_PORT) and replaces polling: the daemon listens
//! before it launches the VMM. It says no more than "dial me"; what the agent is gets asked by the Hello call.

use std::fmt;

/// Longest hello line in bytes, with its newline.
pub const MAX_HELLO_LINE: usize = 96;

/// Longest agent version in bytes.
const MAX_VERSION: usize = 64;

const PREFIX: &str = "BANGER-AGENT";

/// What the hello line says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HelloLine {
    protocol_version: u32,
    agent_version: String,
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
    /// Not the three words `BANGER-AGENT`, a version number, a version.
    #[error("read the hello line: it is not \"{PREFIX} NUMBER VERSION\"")]
    Shape,
    /// The protocol version is not a decimal number from 1 to 2³²−1 without leading zeros.
    #[error("read the hello line's protocol version")]
    ProtocolVersion,
    /// The agent version is empty, too long, or has characters outside `[A-Za-z0-9.+~-]`.
    #[error("read the hello line's agent version")]
    AgentVersion,
}

impl HelloLine {
    /// A hello line from its parts.
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
        })
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
        let mut words = line.split(' ');
        let (Some(PREFIX), Some(protocol), Some(agent), None) =
            (words.next(), words.next(), words.next(), words.next())
        else {
            return Err(HelloLineError::Shape);
        };
        // `u32::from_str` also takes a plus sign and leading zeros.
        let canonical = protocol.bytes().all(|byte| byte.is_ascii_digit()) && !protocol.starts_with('0');
        let protocol = protocol
            .parse()
            .ok()
            .filter(|_| canonical)
            .ok_or(HelloLineError::ProtocolVersion)?;
        Self::new(protocol, agent)
    }

    /// The protocol version the agent speaks.
    #[must_use]
    pub fn protocol_version(&self) -> u32 {
        self.protocol_version
    }

    /// The agent's release.
    #[must_use]
    pub fn agent_version(&self) -> &str {
        &self.agent_version
    }
}

impl fmt::Display for HelloLine {
    /// The line as it goes over the wire, newline included.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{PREFIX} {} {}", self.protocol_version, self.agent_version)
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
        fn whatever_is_accepted_is_canonical(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(line) = HelloLine::parse(&bytes) {
                prop_assert_eq!(line.to_string().into_bytes(), bytes);
            }
        }

        #[test]
        fn near_misses_are_canonical_too(text in "BANGER-AGENT {1,2}[+0-9]{0,11} {0,2}[a-z0-9. \r]{0,12}\n{0,2}") {
            if let Ok(line) = HelloLine::parse(text.as_bytes()) {
                prop_assert_eq!(line.to_string(), text);
            }
        }
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
