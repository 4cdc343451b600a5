//! Spans of time as people write them: `90s`, `30m`, `1h30m`, `7d`, `500ms`. A bare number is refused, as with sizes.

use std::time::Duration;

/// Units, longest names first where one begins another, with their milliseconds.
const UNITS: [(&str, u64); 6] = [
    ("ms", 1),
    ("s", 1_000),
    ("m", 60_000),
    ("h", 3_600_000),
    ("d", 86_400_000),
    ("w", 7 * 86_400_000),
];

/// Longest span: a hundred years, well within every clock's range.
const LONGEST: u64 = 36_525 * 86_400_000;

/// Why a span was refused.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum DurationError {
    #[error("a duration is a number and a unit, such as 90s, 30m, 12h, 7d or 1h30m")]
    NotADuration,
    #[error("a unit is needed: write {0}s for seconds or {0}m for minutes")]
    NoUnit(String),
    #[error("unknown unit `{0}`: use ms, s, m, h, d or w")]
    UnknownUnit(String),
    #[error("a duration cannot be negative")]
    Negative,
    #[error("a duration cannot be zero")]
    Zero,
    #[error("that is more than a hundred years")]
    TooLong,
}

/// Parses a span, 1 ms to 100 years; each unit at most once, from the largest to the smallest.
pub(crate) fn parse_duration(text: &str) -> Result<Duration, DurationError> {
    if text.starts_with('-') {
        return Err(DurationError::Negative);
    }
    let mut rest = text;
    let mut total: u64 = 0;
    let mut smallest = u64::MAX;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        let (number, after) = rest.split_at(digits);
        let letters = after.find(|c: char| c.is_ascii_digit()).unwrap_or(after.len());
        let (unit, next) = after.split_at(letters);
        if number.is_empty() {
            return Err(DurationError::NotADuration);
        }
        if unit.is_empty() {
            return Err(DurationError::NoUnit(number.to_owned()));
        }
        let (_, millis) = UNITS
            .into_iter()
            .find(|(known, _)| *known == unit)
            .ok_or_else(|| DurationError::UnknownUnit(unit.to_owned()))?;
        if millis >= smallest {
            return Err(DurationError::NotADuration);
        }
        smallest = millis;
        // Only digits: what does not parse is too large.
        let number: u64 = number.parse().map_err(|_| DurationError::TooLong)?;
        total = number
            .checked_mul(millis)
            .and_then(|part| total.checked_add(part))
            .filter(|total| *total <= LONGEST)
            .ok_or(DurationError::TooLong)?;
        rest = next;
    }
    match (text.is_empty(), total) {
        (true, _) => Err(DurationError::NotADuration),
        (false, 0) => Err(DurationError::Zero),
        (false, total) => Ok(Duration::from_millis(total)),
    }
}

/// Parses a span in seconds, for which a bare number stands as well; what is left of one counts as a whole one.
pub(crate) fn parse_seconds(text: &str) -> Result<u32, DurationError> {
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        return text.parse().map_err(|_| DurationError::TooLong);
    }
    let seconds = parse_duration(text)?.as_millis().div_ceil(1000);
    u32::try_from(seconds).map_err(|_| DurationError::TooLong)
}

#[cfg(test)]
mod tests {
    #[test]
    fn seconds_are_bare_or_have_a_unit() {
        let read = |text| super::parse_seconds(text).ok();
        assert_eq!(read("0"), Some(0));
        assert_eq!(read("90"), Some(90));
        assert_eq!(read("90s"), Some(90));
        assert_eq!(read("5m"), Some(300));
        assert_eq!(read("1500ms"), Some(2));
        for no in ["", "-1", "5x", "1.5", "5000000000"] {
            assert_eq!(read(no), None, "{no}");
        }
    }

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn accepts_what_people_write() {
        for (text, millis) in [
            ("500ms", 500),
            ("2s", 2_000),
            ("90s", 90_000),
            ("30m", 1_800_000),
            ("1h30m", 5_400_000),
            ("7d", 604_800_000),
            ("2w", 1_209_600_000),
            ("1d12h", 129_600_000),
            ("1s500ms", 1_500),
        ] {
            assert_eq!(parse_duration(text), Ok(Duration::from_millis(millis)), "{text}");
        }
    }

    #[test]
    fn refuses_the_rest_and_says_why() {
        use DurationError::*;
        for (text, error) in [
            ("", NotADuration),
            ("h", NotADuration),
            ("soon", NotADuration),
            ("30", NoUnit("30".into())),
            ("1h30", NoUnit("30".into())),
            ("1y", UnknownUnit("y".into())),
            ("1.5h", UnknownUnit(".".into())),
            ("1 h", UnknownUnit(" h".into())),
            ("1H", UnknownUnit("H".into())),
            ("30m1h", NotADuration),
            ("1h1h", NotADuration),
            ("-1h", Negative),
            ("0s", Zero),
            ("0h0m", Zero),
            ("36526d", TooLong),
            ("99999999999999999999d", TooLong),
        ] {
            assert_eq!(parse_duration(text), Err(error), "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn never_panics(text in "\\PC*") {
            parse_duration(&text).ok();
        }

        #[test]
        fn parts_add_up(h in 0_u64..1000, m in 0_u64..1000, s in 1_u64..1000) {
            let expected = Duration::from_secs(h * 3600 + m * 60 + s);
            prop_assert_eq!(parse_duration(&format!("{h}h{m}m{s}s")), Ok(expected));
        }
    }
}
