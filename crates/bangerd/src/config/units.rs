//! Values of the configuration that are more than strings: sizes, durations, absolute paths. Each is parsed strictly
//! and says what it would have taken.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Deserializer, de};

/// A size in bytes, a whole number of MiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Size(pub(crate) u64);

/// A size as [`Size`], or `0` for none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct MaybeSize(pub(crate) u64);

/// A duration of whole seconds, from one second to one day.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Seconds(pub(crate) Duration);

/// A path that does not depend on where the daemon was started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct AbsolutePath(pub(crate) PathBuf);

/// A network of machines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Network4(pub(crate) banger_engine::Subnet);

/// A bridge's name, after which its taps are called.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct BridgeName(pub(crate) String);

/// How many spare taps there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PoolSize(pub(crate) u16);

/// Whether passt is used, and which. It is asked for: connections through a release that is widely installed hang where a
/// guest ends its direction first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PasstPlace(pub(crate) banger_engine::PasstChoice);

/// `IFNAMSIZ` leaves 15 bytes, of which a tap's number takes up to 5.
const BRIDGE_NAME: usize = 10;
/// Each spare tap is an interface that everybody on the host sees in their lists.
const POOL_MAXIMUM: u16 = 64;

const MIB: u64 = 1 << 20;
const DAY: u64 = 24 * 60 * 60;

/// Splits `10GiB` into the number and the unit; nothing may stand between or around them. A number beyond 64 bits becomes
/// the largest one, which every range refuses.
fn number_and_unit(text: &str) -> Option<(u64, &str)> {
    let end = text.find(|c: char| !c.is_ascii_digit())?;
    match text.split_at(end) {
        ("", _) => None,
        (digits, unit) => Some((digits.parse().unwrap_or(u64::MAX), unit)),
    }
}

impl Size {
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let (number, unit) = number_and_unit(text)
            .ok_or_else(|| format!("{text:?} is not a size: write a number and a unit, like \"1GiB\""))?;
        let factor: u64 = match unit {
            "K" | "KiB" => 1 << 10,
            "M" | "MiB" => 1 << 20,
            "G" | "GiB" => 1 << 30,
            "T" | "TiB" => 1 << 40,
            "KB" | "MB" | "GB" | "TB" => {
                return Err(format!("{text:?} is in decimal units: use KiB, MiB, GiB or TiB"));
            }
            _ => return Err(format!("{text:?} has an unknown unit: use KiB, MiB, GiB or TiB")),
        };
        match number.checked_mul(factor) {
            None => Err(format!("{text:?} is too large")),
            Some(0) => Err(format!("{text:?} is nothing: the least is 1MiB")),
            Some(bytes) if bytes % MIB != 0 => Err(format!("{text:?} is not a whole number of MiB")),
            Some(bytes) => Ok(Self(bytes)),
        }
    }
}

impl BridgeName {
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '_';
        let begins = text.starts_with(|c: char| c.is_ascii_lowercase());
        if begins && text.len() <= BRIDGE_NAME && text.chars().all(allowed) {
            Ok(Self(text.to_owned()))
        } else {
            Err(format!(
                "{text:?} cannot name a bridge: write 1 to {BRIDGE_NAME} of a-z, 0-9, - and _, beginning with a letter"
            ))
        }
    }
}

impl Network4 {
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        text.parse()
            .map(Self)
            .map_err(|e: banger_engine::SubnetError| e.to_string())
    }
}

impl MaybeSize {
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        match text {
            "0" => Ok(Self(0)),
            text => Size::parse(text).map(|size| Self(size.0)),
        }
    }
}

impl Seconds {
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let (number, unit) = number_and_unit(text)
            .ok_or_else(|| format!("{text:?} is not a duration: write a number and a unit, like \"30s\""))?;
        let factor = match unit {
            "s" => 1,
            "m" => 60,
            "h" => 60 * 60,
            _ => return Err(format!("{text:?} has an unknown unit: use s, m or h")),
        };
        match number.checked_mul(factor) {
            Some(seconds @ 1..=DAY) => Ok(Self(Duration::from_secs(seconds))),
            Some(_) | None => Err(format!("{text:?} is out of range: from 1s to 24h")),
        }
    }
}

impl AbsolutePath {
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let path = PathBuf::from(text);
        if path.is_absolute() {
            Ok(Self(path))
        } else {
            Err(format!(
                "{text:?} is not an absolute path (\"~\" and variables are not replaced)"
            ))
        }
    }
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::parse(&String::deserialize(deserializer)?).map_err(de::Error::custom)
    }
}

impl<'de> Deserialize<'de> for MaybeSize {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::parse(&String::deserialize(deserializer)?).map_err(de::Error::custom)
    }
}

impl<'de> Deserialize<'de> for Seconds {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::parse(&String::deserialize(deserializer)?).map_err(de::Error::custom)
    }
}

impl<'de> Deserialize<'de> for AbsolutePath {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::parse(&String::deserialize(deserializer)?).map_err(de::Error::custom)
    }
}

impl<'de> Deserialize<'de> for BridgeName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::parse(&String::deserialize(deserializer)?).map_err(de::Error::custom)
    }
}

impl<'de> Deserialize<'de> for Network4 {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::parse(&String::deserialize(deserializer)?).map_err(de::Error::custom)
    }
}

impl Default for PasstPlace {
    fn default() -> Self {
        Self(banger_engine::PasstChoice::Off)
    }
}

impl<'de> Deserialize<'de> for PasstPlace {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        match text.as_str() {
            "auto" => Ok(Self(banger_engine::PasstChoice::Auto)),
            "off" => Ok(Self(banger_engine::PasstChoice::Off)),
            path if path.starts_with('/') => Ok(Self(banger_engine::PasstChoice::At(path.into()))),
            other => Err(de::Error::custom(format!(
                "{other:?} is none of \"auto\", \"off\" and an absolute path"
            ))),
        }
    }
}

impl<'de> Deserialize<'de> for PoolSize {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match u16::deserialize(deserializer)? {
            size if size <= POOL_MAXIMUM => Ok(Self(size)),
            size => Err(de::Error::custom(format!(
                "{size} spare taps are more than the most, {POOL_MAXIMUM}"
            ))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (text, bytes) in [
            ("1MiB", MIB),
            ("1M", MIB),
            ("2048K", 2 * MIB),
            ("10GiB", 10 << 30),
            ("1T", 1 << 40),
        ] {
            assert_eq!(Size::parse(text), Ok(Size(bytes)), "{text}");
        }
        let refusals: Vec<String> = [
            "",
            "1",
            "GiB",
            "1.5GiB",
            "-1GiB",
            "1 GiB",
            "1GB",
            "1gib",
            "0MiB",
            "1500KiB",
            "99999999T",
            "99999999999999999999M",
        ]
        .into_iter()
        .map(|text| Size::parse(text).unwrap_err())
        .collect();
        insta::assert_snapshot!(refusals.join("\n"));
    }

    #[test]
    fn sizes_that_may_be_none() {
        assert_eq!(MaybeSize::parse("0"), Ok(MaybeSize(0)));
        assert_eq!(MaybeSize::parse("1GiB"), Ok(MaybeSize(1 << 30)));
        for text in ["", "0MiB", "00", "none", "-1", "1"] {
            assert!(MaybeSize::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn durations() {
        for (text, seconds) in [("1s", 1), ("120s", 120), ("2m", 120), ("24h", DAY)] {
            assert_eq!(
                Seconds::parse(text),
                Ok(Seconds(Duration::from_secs(seconds))),
                "{text}"
            );
        }
        for text in [
            "",
            "1",
            "s",
            "0s",
            "25h",
            "1d",
            "1ms",
            "1.5s",
            "-1s",
            " 1s",
            "99999999999999999h",
        ] {
            assert!(Seconds::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn paths() {
        assert!(AbsolutePath::parse("/a/b").is_ok());
        for text in ["", "a", "./a", "~/a"] {
            assert!(AbsolutePath::parse(text).is_err(), "{text}");
        }
    }
}
