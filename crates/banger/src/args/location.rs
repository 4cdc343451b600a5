//! The two ends of a copy: a host path, `MACHINE:PATH`, or `-` for a tar stream.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

/// One end of a copy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Location {
    /// A tar archive on standard input or output.
    Stream,
    /// A path of the host.
    Host(PathBuf),
    /// A path in a machine; relative to root's home.
    Guest {
        /// Machine, by name or id.
        vm: String,
        /// Path there, not empty.
        path: String,
    },
}

/// Why an argument names no location.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum LocationError {
    #[error("a path is needed")]
    Empty,
    #[error("the path in the machine is not valid UTF-8")]
    NotUtf8,
    #[error("a path cannot hold a NUL character")]
    Nul,
}

impl Location {
    /// Parses as docker does: whatever begins with `/` or `.` is a host path, and so is everything without a colon. A
    /// machine's name has no slash, so `a/b:c` is a host path too. `VM:` is `VM:.`, as scp has it.
    pub(crate) fn parse(text: &OsStr) -> Result<Self, LocationError> {
        let bytes = text.as_bytes();
        if bytes.contains(&0) {
            return Err(LocationError::Nul);
        }
        match bytes {
            [] => return Err(LocationError::Empty),
            b"-" => return Ok(Self::Stream),
            [b'/' | b'.', ..] => return Ok(Self::Host(text.into())),
            _ => {}
        }
        let Some(colon) = bytes.iter().position(|b| *b == b':') else {
            return Ok(Self::Host(text.into()));
        };
        let (vm, path) = (&bytes[..colon], &bytes[colon + 1..]);
        // Names are ASCII; anything else before the colon is part of a file's name.
        let Some(vm) = std::str::from_utf8(vm)
            .ok()
            .filter(|vm| !vm.is_empty() && !vm.contains('/'))
        else {
            return Ok(Self::Host(text.into()));
        };
        let path = match path {
            [] => ".",
            path => std::str::from_utf8(path).map_err(|_| LocationError::NotUtf8)?,
        };
        Ok(Self::Guest {
            vm: vm.to_owned(),
            path: path.to_owned(),
        })
    }
}

impl clap::builder::ValueParserFactory for Location {
    type Parser = LocationParser;

    fn value_parser() -> LocationParser {
        LocationParser
    }
}

/// Lets clap parse a [`Location`] from any bytes: host paths need not be UTF-8.
#[derive(Debug, Clone)]
pub(crate) struct LocationParser;

impl clap::builder::TypedValueParser for LocationParser {
    type Value = Location;

    fn parse_ref(
        &self,
        command: &clap::Command,
        argument: Option<&clap::Arg>,
        value: &OsStr,
    ) -> Result<Location, clap::Error> {
        let inner =
            clap::builder::OsStringValueParser::new().try_map(|text: OsString| Location::parse(&text));
        inner.parse_ref(command, argument, value)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(text: &str) -> Result<Location, LocationError> {
        Location::parse(OsStr::new(text))
    }

    #[test]
    fn either_side() {
        let guest = |vm: &str, path: &str| {
            Ok(Location::Guest {
                vm: vm.into(),
                path: path.into(),
            })
        };
        let host = |path: &str| Ok(Location::Host(path.into()));
        assert_eq!(parse("-"), Ok(Location::Stream));
        assert_eq!(parse("dev:/etc/passwd"), guest("dev", "/etc/passwd"));
        assert_eq!(parse("dev:notes"), guest("dev", "notes"));
        assert_eq!(parse("dev:a:b"), guest("dev", "a:b"));
        assert_eq!(parse("dev:."), guest("dev", "."));
        assert_eq!(parse("/a:b"), host("/a:b"));
        assert_eq!(parse("./a:b"), host("./a:b"));
        assert_eq!(parse("../a:b"), host("../a:b"));
        assert_eq!(parse("a/b:c"), host("a/b:c"));
        assert_eq!(parse(":x"), host(":x"));
        assert_eq!(parse("plain"), host("plain"));
        assert_eq!(parse("dev:"), guest("dev", "."));
        assert_eq!(parse(""), Err(LocationError::Empty));
        assert_eq!(parse("a\0b"), Err(LocationError::Nul));
        assert_eq!(
            Location::parse(OsStr::from_bytes(b"dev:\xff")),
            Err(LocationError::NotUtf8)
        );
        assert_eq!(
            Location::parse(OsStr::from_bytes(b"\xff:x")),
            Ok(Location::Host(OsStr::from_bytes(b"\xff:x").into()))
        );
    }

    proptest! {
        #[test]
        fn guest_paths_survive(vm in "[a-z][a-z0-9-]{0,62}", path in "[^\\x00]{1,200}") {
            prop_assert_eq!(parse(&format!("{vm}:{path}")), Ok(Location::Guest { vm, path }));
        }

        #[test]
        fn a_leading_dot_or_slash_is_always_the_host(first in "[./]", rest in "[^\\x00]{0,80}") {
            let text = format!("{first}{rest}");
            prop_assert_eq!(parse(&text), Ok(Location::Host(text.clone().into())));
        }
    }
}
