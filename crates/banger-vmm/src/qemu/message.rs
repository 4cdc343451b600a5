//! QMP messages: what QEMU writes, parsed strictly, and what is written to it.
//!
//! Source: QEMU's docs/interop/qmp-spec.rst. One JSON object a line. Members that are not known are skipped, as the
//! specification asks of clients; objects that are no QMP message are an error.

use serde::Deserialize;
use serde_json::{Value, json};

/// Longest line that is read, in bytes. Answers to the commands used here take hundreds.
pub(super) const LINE_LIMIT: usize = 64 * 1024;

/// One line from QEMU.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Message {
    /// The first line of a connection.
    Greeting,
    /// A command succeeded.
    Return { id: u64, value: Value },
    /// A command failed.
    Error { id: Option<u64>, description: String },
    /// Something happened.
    Event { name: String, data: Value },
}

#[derive(Deserialize)]
struct Wire {
    #[serde(rename = "QMP")]
    greeting: Option<serde::de::IgnoredAny>,
    #[serde(rename = "return")]
    value: Option<Value>,
    error: Option<WireError>,
    event: Option<String>,
    data: Option<Value>,
    id: Option<u64>,
}

#[derive(Deserialize)]
struct WireError {
    desc: String,
}

impl Message {
    /// Parses one line without its line break.
    pub(super) fn parse(line: &[u8]) -> Result<Self, String> {
        let wire: Wire = serde_json::from_slice(line).map_err(|error| format!("no QMP message: {error}"))?;
        match wire {
            Wire {
                greeting: Some(_),
                value: None,
                error: None,
                event: None,
                ..
            } => Ok(Self::Greeting),
            Wire {
                greeting: None,
                value: Some(value),
                error: None,
                event: None,
                id: Some(id),
                ..
            } => Ok(Self::Return { id, value }),
            // Without an id if QEMU could not read the command at all.
            Wire {
                greeting: None,
                value: None,
                error: Some(error),
                event: None,
                id,
                ..
            } => Ok(Self::Error {
                id,
                description: error.desc,
            }),
            Wire {
                greeting: None,
                value: None,
                error: None,
                event: Some(name),
                data,
                ..
            } => Ok(Self::Event {
                name,
                data: data.unwrap_or(Value::Null),
            }),
            Wire { .. } => Err("no QMP message: neither greeting, answer nor event".to_owned()),
        }
    }

    /// Why the machine ended, if this says so: the event SHUTDOWN with its `ShutdownCause`
    /// (qapi/run-state.json), such as `guest-reset` or `host-signal`.
    pub(super) fn shutdown_reason(&self) -> Option<&str> {
        match self {
            Self::Event { name, data } if name == "SHUTDOWN" => data.get("reason").and_then(Value::as_str),
            Self::Greeting | Self::Return { .. } | Self::Error { .. } | Self::Event { .. } => None,
        }
    }
}

/// A command as one line.
pub(super) fn command(name: &str, arguments: Option<&Value>, id: u64) -> String {
    let mut command = json!({ "execute": name, "id": id });
    if let Some(arguments) = arguments {
        command["arguments"] = arguments.clone();
    }
    format!("{command}\n")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn lines_as_qemu_writes_them() {
        let parse = |line: &str| Message::parse(line.as_bytes());
        let greeting = r#"{"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}, "package": "Debian"}, "capabilities": ["oob"]}}"#;
        assert_eq!(parse(greeting), Ok(Message::Greeting));
        assert_eq!(
            parse(r#"{"return": {}, "id": 1}"#),
            Ok(Message::Return {
                id: 1,
                value: json!({})
            })
        );
        let error =
            r#"{"id": 2, "error": {"class": "CommandNotFound", "desc": "The command x has not been found"}}"#;
        assert_eq!(
            parse(error),
            Ok(Message::Error {
                id: Some(2),
                description: "The command x has not been found".into()
            })
        );
        let event = r#"{"timestamp": {"seconds": 1, "microseconds": 2}, "event": "SHUTDOWN", "data": {"guest": true, "reason": "guest-reset"}}"#;
        let event = parse(event).unwrap();
        assert_eq!(event.shutdown_reason(), Some("guest-reset"));
        let other = parse(r#"{"event": "RESUME", "timestamp": {}}"#).unwrap();
        assert_eq!(other.shutdown_reason(), None);
    }

    #[test]
    fn anything_else_is_an_error() {
        for line in [
            "",
            "{}",
            "[]",
            "null",
            "{\"return\": {}}",
            r#"{"return": {}, "id": "1"}"#,
            r#"{"return": {}, "id": -1}"#,
            r#"{"return": {}, "error": {"desc": "x"}, "id": 1}"#,
            r#"{"event": 1}"#,
            r#"{"error": {}}"#,
            "{\"event\": \"X\"} trailing",
            "\u{feff}{}",
        ] {
            assert!(Message::parse(line.as_bytes()).is_err(), "{line}");
        }
        let deep = "[".repeat(100_000);
        assert!(Message::parse(format!(r#"{{"return": {deep}"#).as_bytes()).is_err());
    }

    proptest! {
        #[test]
        fn hostile_lines_do_not_panic(line in proptest::collection::vec(any::<u8>(), 0..200)) {
            drop(Message::parse(&line));
        }

        #[test]
        fn hostile_json_does_not_panic(keys in proptest::collection::vec("(QMP|return|error|event|data|id|x)", 0..4), value in "(1|null|\\{\\}|\"s\"|\\{\"desc\":\"d\"\\}|\\[\\])") {
            let members: Vec<String> = keys.iter().map(|key| format!("\"{key}\":{value}")).collect();
            drop(Message::parse(format!("{{{}}}", members.join(",")).as_bytes()));
        }
    }
}
