//! Points in time: RFC 3339 (`2026-12-24T18:00:00Z`), or a date and a time of this host's own clock
//! (`2026-12-24 18:00`). Whether one has passed already is the daemon's answer.

use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;

/// Why a time was refused.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum MomentError {
    #[error("a time is `YYYY-MM-DD HH:MM` of this host's clock, or RFC 3339 such as 2026-12-24T18:00:00Z")]
    NotATime,
    #[error("that date and time does not exist, or not in the range of the clock")]
    OutOfRange,
}

/// Parses a point in time; one without an offset is of this host's time zone.
pub(crate) fn parse_moment(text: &str) -> Result<Timestamp, MomentError> {
    parse_in(text, &TimeZone::system())
}

/// As [`parse_moment`], in a given time zone. A time that a change of clocks skips is taken as the one after it, as
/// the clock on the wall would show it.
fn parse_in(text: &str, zone: &TimeZone) -> Result<Timestamp, MomentError> {
    let with_offset = text.len() > 10 && text.as_bytes()[10..].iter().any(|b| b"Zz+-".contains(b));
    if with_offset {
        return text.parse().map_err(|_| MomentError::NotATime);
    }
    let digits = |shape: &str| {
        text.len() == shape.len()
            && text.bytes().zip(shape.bytes()).all(|(b, s)| match s {
                b'0' => b.is_ascii_digit(),
                b' ' => b == b' ' || b == b'T',
                _ => b == s,
            })
    };
    if !digits("0000-00-00 00:00") && !digits("0000-00-00 00:00:00") {
        return Err(MomentError::NotATime);
    }
    let civil: DateTime = text.parse().map_err(|_| MomentError::OutOfRange)?;
    civil
        .to_zoned(zone.clone())
        .map(|zoned| zoned.timestamp())
        .map_err(|_| MomentError::OutOfRange)
}

#[cfg(test)]
mod tests {
    use jiff::tz::offset;
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn notations() {
        let zone = TimeZone::fixed(offset(2));
        let at = |text: &str| parse_in(text, &zone).map(|time| time.to_string());
        for (text, utc) in [
            ("2026-12-24T18:00:00Z", "2026-12-24T18:00:00Z"),
            ("2026-12-24T18:00:00+01:00", "2026-12-24T17:00:00Z"),
            ("2026-12-24 18:00", "2026-12-24T16:00:00Z"),
            ("2026-12-24T18:00", "2026-12-24T16:00:00Z"),
            ("2026-12-24 18:00:30", "2026-12-24T16:00:30Z"),
        ] {
            assert_eq!(at(text), Ok(utc.to_owned()), "{text}");
        }
        for text in [
            "",
            "tomorrow",
            "18:00",
            "2026-12-24",
            "24.12.2026 18:00",
            "2026-12-24 18",
            "2026-12-24 18:00 Europe/Berlin",
            "2026-12-24é18:00",
        ] {
            assert_eq!(at(text), Err(MomentError::NotATime), "{text:?}");
        }
        for text in ["2026-02-30 10:00", "2026-13-01 10:00", "2026-01-01 25:00"] {
            assert_eq!(at(text), Err(MomentError::OutOfRange), "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn never_panics(text in "\\PC*") {
            parse_in(&text, &TimeZone::UTC).ok();
        }
    }
}
