//! Signals by name or number, as kill(1) takes them.

/// Names of Linux's signals on x86-64 and aarch64, by number from 1 (signal(7)).
const NAMES: [&str; 31] = [
    "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2", "PIPE",
    "ALRM", "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG", "XCPU", "XFSZ",
    "VTALRM", "PROF", "WINCH", "IO", "PWR", "SYS",
];

/// Why a signal was refused.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("a signal is a name such as TERM, or a number from 1 to 64")]
pub(crate) struct SignalError;

/// Parses `TERM`, `SIGTERM`, `term`, `15`.
pub(crate) fn parse_signal(text: &str) -> Result<u8, SignalError> {
    if let Ok(number) = text.parse() {
        return match number {
            1..=64 => Ok(number),
            _ => Err(SignalError),
        };
    }
    let name = text.to_ascii_uppercase();
    let name = name.strip_prefix("SIG").unwrap_or(&name);
    (1..)
        .zip(NAMES)
        .find(|(_, known)| *known == name)
        .map(|(number, _)| number)
        .ok_or(SignalError)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers() {
        for (text, number) in [
            ("TERM", 15),
            ("sigkill", 9),
            ("SIGWINCH", 28),
            ("64", 64),
            ("sys", 31),
        ] {
            assert_eq!(parse_signal(text), Ok(number), "{text}");
        }
        for text in ["", "SIG", "0", "65", "-9", "NOPE"] {
            assert_eq!(parse_signal(text), Err(SignalError), "{text}");
        }
    }
}
