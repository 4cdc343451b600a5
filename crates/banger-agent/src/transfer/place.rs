//! Where a copy lands: docker cp's rules, as plain functions over what is there.
//!
//! | destination        | source a file                  | source a directory            | contents only      |
//! |--------------------|--------------------------------|-------------------------------|--------------------|
//! | directory          | inside, own name               | inside, own name              | merged             |
//! | missing            | parent needed, last component  | parent needed, last component | made, then merged  |
//! | missing, `/` at end| refused                        | as above                      | as above           |
//! | file               | replaced                       | refused                       | refused            |
//! | file, `/` at end   | refused                        | refused                       | refused            |

use banger_agent_api::FailureKind;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;

/// What is at the destination, links followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Found {
    Nothing,
    Directory,
    /// A file, a device, a socket …
    Other,
}

/// Where the top entry goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// Into the destination, under its own name.
    Inside,
    /// It becomes the destination, in the destination's parent.
    Becomes,
    /// Its contents go into the destination, which exists.
    Merge,
    /// The destination is to be made, then its contents go there.
    MakeAndMerge,
}

/// Decides; or says which failure it is.
pub(super) fn decide(
    found: Found,
    source_is_dir: bool,
    contents_only: bool,
    directory_demanded: bool,
) -> Result<Place, FailureKind> {
    if contents_only && !source_is_dir {
        return Err(FailureKind::BadArchive);
    }
    match (found, contents_only) {
        (Found::Directory, false) => Ok(Place::Inside),
        (Found::Directory, true) => Ok(Place::Merge),
        (Found::Nothing, true) => Ok(Place::MakeAndMerge),
        (Found::Nothing, false) if directory_demanded && !source_is_dir => Err(FailureKind::PathNotFound),
        (Found::Nothing, false) => Ok(Place::Becomes),
        (Found::Other, false) if !source_is_dir && !directory_demanded => Ok(Place::Becomes),
        (Found::Other, false | true) => Err(FailureKind::NotADirectory),
    }
}

/// Why a name in an archive is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum NameError {
    #[error("it is absolute")]
    Absolute,
    #[error("it has a component \"..\"")]
    Parent,
    #[error("it has a NUL byte")]
    Nul,
    #[error("it is longer than a path may be")]
    TooLong,
    #[error("it is not under the first entry's name")]
    OutsideTop,
}

/// A name in an archive as its components; `.` and doubled slashes are dropped, so `./` is no component at all.
pub(super) fn components(name: &[u8]) -> Result<Vec<OsString>, NameError> {
    if name.len() >= banger_agent_api::MAX_PATH {
        return Err(NameError::TooLong);
    }
    if name.contains(&0) {
        return Err(NameError::Nul);
    }
    if name.starts_with(b"/") {
        return Err(NameError::Absolute);
    }
    let mut components = Vec::new();
    for component in name.split(|byte| *byte == b'/') {
        match component {
            b"" | b"." => {}
            b".." => return Err(NameError::Parent),
            component => components.push(OsStr::from_bytes(component).to_owned()),
        }
    }
    Ok(components)
}

/// How names in an archive map to names below the directory it is unpacked in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Mapping {
    /// The first entry's name; empty when the archive's top is `.`.
    pub(super) top: Option<OsString>,
    /// What the top is called at the destination; empty: its contents go straight in.
    pub(super) becomes: Option<OsString>,
}

impl Mapping {
    /// The path below the base of an entry (or of a hard link's target) with these components.
    pub(super) fn apply(&self, components: &[OsString]) -> Result<Vec<OsString>, NameError> {
        let below = match (&self.top, components.split_first()) {
            (None, _) => components,
            (Some(top), Some((first, rest))) if first == top => rest,
            (Some(_), _) => return Err(NameError::OutsideTop),
        };
        Ok(self.becomes.iter().chain(below).cloned().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn found() -> impl Strategy<Value = Found> {
        prop_oneof![Just(Found::Nothing), Just(Found::Directory), Just(Found::Other)]
    }

    #[test]
    fn dockers_table() {
        use FailureKind::{BadArchive, NotADirectory, PathNotFound};
        use Found::{Directory, Nothing, Other};
        for (found, is_dir, contents, slash, expected) in [
            (Directory, false, false, false, Ok(Place::Inside)),
            (Directory, true, false, true, Ok(Place::Inside)),
            (Directory, true, true, false, Ok(Place::Merge)),
            (Nothing, false, false, false, Ok(Place::Becomes)),
            (Nothing, true, false, true, Ok(Place::Becomes)),
            (Nothing, true, true, false, Ok(Place::MakeAndMerge)),
            (Nothing, false, false, true, Err(PathNotFound)),
            (Other, false, false, false, Ok(Place::Becomes)),
            (Other, false, false, true, Err(NotADirectory)),
            (Other, true, false, false, Err(NotADirectory)),
            (Other, true, true, false, Err(NotADirectory)),
            (Directory, false, true, false, Err(BadArchive)),
        ] {
            assert_eq!(
                decide(found, is_dir, contents, slash),
                expected,
                "{found:?} {is_dir} {contents} {slash}"
            );
        }
    }

    proptest! {
        #[test]
        fn nothing_but_a_file_ever_replaces_a_file(found in found(), is_dir: bool, contents: bool, slash: bool) {
            if let Ok(Place::Becomes) = decide(found, is_dir, contents, slash) {
                prop_assert!(found == Found::Nothing || (found == Found::Other && !is_dir));
            }
        }

        #[test]
        fn no_name_escapes(name in "[./a\0]{0,12}", top in prop::option::of("[a.]{1,2}"), becomes in prop::option::of("[b]{1,2}")) {
            let Ok(components) = components(name.as_bytes()) else { return Ok(()) };
            let mapping = Mapping { top: top.map(OsString::from), becomes: becomes.map(OsString::from) };
            let Ok(path) = mapping.apply(&components) else { return Ok(()) };
            for component in &path {
                let bytes = component.as_bytes();
                prop_assert!(!bytes.is_empty() && bytes != b"." && bytes != b"..");
                prop_assert!(!bytes.contains(&b'/') && !bytes.contains(&0));
            }
            if let Some(becomes) = &mapping.becomes {
                prop_assert_eq!(path.first(), Some(becomes));
            }
        }
    }

    #[test]
    fn names_are_strict() {
        assert_eq!(components(b"./a//b/"), Ok(vec!["a".into(), "b".into()]));
        assert_eq!(components(b"./"), Ok(vec![]));
        assert_eq!(components(b"/etc/passwd"), Err(NameError::Absolute));
        assert_eq!(components(b"a/../b"), Err(NameError::Parent));
        let mapping = Mapping {
            top: Some("src".into()),
            becomes: Some("dst".into()),
        };
        assert_eq!(
            mapping.apply(&["src".into(), "x".into()]),
            Ok(vec!["dst".into(), "x".into()])
        );
        assert_eq!(mapping.apply(&["other".into()]), Err(NameError::OutsideTop));
        assert_eq!(mapping.apply(&[]), Err(NameError::OutsideTop));
    }
}
