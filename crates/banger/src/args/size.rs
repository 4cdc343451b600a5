//! Sizes as people write them: `512M`, `512MiB`, `1.5GiB`. Units are binary. On the wire a size is bytes.
//!
//! A bare number is refused: `--memory 512` would be bytes to one reader and mebibytes to another. So are `MB` and
//! `GB`, which are a thousandth power to some and a 1024th to others.

/// Units by their letter, with the power of two they stand for.
const UNITS: [(char, u32); 4] = [('K', 10), ('M', 20), ('G', 30), ('T', 40)];

/// Longest accepted notation in bytes; keeps the arithmetic below within 128 bits.
const LONGEST: usize = 24;

/// Why a size was refused.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum SizeError {
    #[error("a size is a number and a unit, such as 512M or 1.5GiB")]
    NotANumber,
    #[error("a unit is needed: write {0}M for mebibytes or {0}G for gibibytes")]
    NoUnit(String),
    #[error("unit `{0}` has two meanings: write {1} or {1}iB, which are powers of 1024")]
    DecimalUnit(String, char),
    #[error("unknown unit `{0}`: use K, M, G or T (or KiB, MiB, GiB, TiB)")]
    UnknownUnit(String),
    #[error("a size cannot be negative")]
    Negative,
    #[error("a size cannot be zero")]
    Zero,
    #[error("that is not a whole number of bytes: take a smaller unit")]
    Fraction,
    #[error("that is more than 16 EiB")]
    TooLarge,
}

/// Parses a size into bytes, 1 to `u64::MAX`.
pub(crate) fn parse_size(text: &str) -> Result<u64, SizeError> {
    if text.starts_with('-') {
        return Err(SizeError::Negative);
    }
    let end = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let (whole, fraction) = match number.split_once('.') {
        Some((whole, fraction)) if !fraction.is_empty() => (whole, fraction),
        Some(_) => return Err(SizeError::NotANumber),
        None => (number, ""),
    };
    if whole.is_empty() || fraction.contains('.') {
        return Err(SizeError::NotANumber);
    }
    if number.len() > LONGEST {
        return Err(SizeError::TooLarge);
    }
    let shift = parse_unit(number, unit)?;

    // digits × 2^shift / 10^places, exactly: at most 24 digits (80 bits) shifted by 40 stay below 128 bits.
    let digits: u128 = format!("{whole}{fraction}")
        .parse()
        .map_err(|_| SizeError::NotANumber)?;
    let places = u32::try_from(fraction.len()).map_err(|_| SizeError::TooLarge)?;
    let scaled = digits << shift;
    let divisor = 10_u128.pow(places);
    if !scaled.is_multiple_of(divisor) {
        return Err(SizeError::Fraction);
    }
    match u64::try_from(scaled / divisor) {
        Ok(0) => Err(SizeError::Zero),
        Ok(bytes) => Ok(bytes),
        Err(_) => Err(SizeError::TooLarge),
    }
}

/// The power of two a unit stands for.
fn parse_unit(number: &str, unit: &str) -> Result<u32, SizeError> {
    if unit.is_empty() {
        return Err(SizeError::NoUnit(number.to_owned()));
    }
    let unknown = || SizeError::UnknownUnit(unit.to_owned());
    let mut letters = unit.chars();
    let letter = letters.next().ok_or_else(unknown)?.to_ascii_uppercase();
    let rest = letters.as_str();
    if letter == 'B' && rest.is_empty() {
        return Ok(0);
    }
    let (_, shift) = UNITS
        .into_iter()
        .find(|(known, _)| *known == letter)
        .ok_or_else(unknown)?;
    match rest {
        "" | "iB" | "ib" | "i" => Ok(shift),
        "B" | "b" => Err(SizeError::DecimalUnit(unit.to_owned(), letter)),
        _ => Err(unknown()),
    }
}

/// A size for people: `512MiB`, `1.5GiB`, `370MiB`; at most one decimal, rounded down so that it never promises more
/// than there is.
pub(crate) fn format_size(bytes: u64) -> String {
    let Some((letter, shift)) = UNITS.into_iter().rev().find(|(_, shift)| bytes >> shift > 0) else {
        return format!("{bytes}B");
    };
    let whole = bytes >> shift;
    // The remainder is below 2^40, so ten times it fits.
    let tenth = ((bytes & ((1 << shift) - 1)) * 10) >> shift;
    // Three digits say enough without a decimal.
    if tenth == 0 || whole >= 100 {
        format!("{whole}{letter}iB")
    } else {
        format!("{whole}.{tenth}{letter}iB")
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn accepts_what_people_write() {
        for (text, bytes) in [
            ("1B", 1),
            ("1K", 1 << 10),
            ("512M", 512 << 20),
            ("512m", 512 << 20),
            ("512MiB", 512 << 20),
            ("512Mi", 512 << 20),
            ("1.5GiB", 3 << 29),
            ("1.50G", 3 << 29),
            ("0.5T", 1 << 39),
            ("007M", 7 << 20),
            ("18446744073709551615B", u64::MAX),
        ] {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn refuses_the_rest_and_says_why() {
        use SizeError::*;
        for (text, error) in [
            ("", NotANumber),
            ("M", NotANumber),
            (".5G", NotANumber),
            ("1.G", NotANumber),
            ("1.2.3G", NotANumber),
            ("+1G", NotANumber),
            (" 1G", NotANumber),
            ("512", NoUnit("512".into())),
            ("512MB", DecimalUnit("MB".into(), 'M')),
            ("1gb", DecimalUnit("gb".into(), 'G')),
            ("1X", UnknownUnit("X".into())),
            ("1G ", UnknownUnit("G ".into())),
            ("1 G", UnknownUnit(" G".into())),
            ("1e3M", UnknownUnit("e3M".into())),
            ("1é", UnknownUnit("é".into())),
            ("-1G", Negative),
            ("0G", Zero),
            ("0.0G", Zero),
            ("1.3G", Fraction),
            ("0.5B", Fraction),
            ("16777216T", TooLarge),
            ("9999999999999999999999999999999999999999G", TooLarge),
        ] {
            assert_eq!(parse_size(text), Err(error), "{text:?}");
        }
    }

    #[test]
    fn formats_for_people() {
        for (bytes, text) in [
            (0, "0B"),
            (1023, "1023B"),
            (1024, "1KiB"),
            (1 << 30, "1GiB"),
            (3 << 29, "1.5GiB"),
            ((370 << 20) + 5, "370MiB"),
            ((123 << 20) + (900 << 10), "123MiB"),
            (u64::MAX, "16777215TiB"),
        ] {
            assert_eq!(format_size(bytes), text);
        }
    }

    proptest! {
        #[test]
        fn never_panics(text in "\\PC*") {
            parse_size(&text).ok();
        }

        #[test]
        fn whole_sizes_survive(number in 1_u64..1 << 20, unit in 0_usize..4) {
            let (letter, shift) = UNITS[unit];
            prop_assert_eq!(parse_size(&format!("{number}{letter}iB")), Ok(number << shift));
            prop_assert_eq!(parse_size(&format!("{number}{letter}")), Ok(number << shift));
        }

        #[test]
        fn what_is_printed_can_be_read_and_is_never_more(bytes in 1_u64..u64::MAX) {
            let text = format_size(bytes);
            match parse_size(&text) {
                Ok(read) => prop_assert!(read <= bytes && read >= bytes - bytes / 10, "{text}"),
                // One decimal of a binary unit need not be whole bytes.
                Err(error) => prop_assert_eq!(error, SizeError::Fraction),
            }
        }
    }
}
