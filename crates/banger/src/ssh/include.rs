//! The one line in the user's own ssh configuration, put there and taken away. Nothing else of that file changes.
//!
//! The line stands at the top, because what follows a `Host` or `Match` belongs to that, and because ssh takes the first
//! value that it finds.

use std::fs::{self, DirBuilder};
use std::io::{self, Read as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use super::replace::{self, Access};
use super::{config, failed};
use crate::error::{CliError, Kind};

/// Bytes of a configuration that is changed.
const MAX_CONFIG: u64 = 1024 * 1024;

/// The line, without its end.
pub(crate) fn line(config: &Path) -> Result<String, CliError> {
    Ok(format!("Include \"{}\"", config::plain(config)?))
}

/// The text with the line at its top; `None` where it is in force already.
fn with(text: &[u8], line: &str) -> Option<Vec<u8>> {
    let global = lines(text).take_while(|line| !begins_a_block(line));
    if global.into_iter().any(|has| has.trim_ascii() == line.as_bytes()) {
        return None;
    }
    Some([line.as_bytes(), b"\n", text].concat())
}

/// The text without the line; `None` where it is not there.
fn without(text: &[u8], line: &str) -> Option<Vec<u8>> {
    let is_ours = |has: &&[u8]| has.trim_ascii() == line.as_bytes();
    let left: Vec<u8> = lines(text)
        .filter(|line| !is_ours(line))
        .flatten()
        .copied()
        .collect();
    (left.len() < text.len()).then_some(left)
}

/// Lines with their ends.
fn lines(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    text.split_inclusive(|byte| *byte == b'\n')
}

/// `Host` and `Match`, which ssh reads in any case, also as `Host=…`.
fn begins_a_block(line: &[u8]) -> bool {
    let ends_word = |byte: &u8| byte.is_ascii_whitespace() || *byte == b'=' || *byte == b'"';
    let word = line
        .trim_ascii_start()
        .split(ends_word)
        .next()
        .unwrap_or_default();
    word.eq_ignore_ascii_case(b"host") || word.eq_ignore_ascii_case(b"match")
}

/// What became of the user's file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Changed {
    /// The file that was, or would have been, changed: what a link points to.
    pub(crate) file: PathBuf,
    /// It is other than before.
    pub(crate) changed: bool,
    /// What its user should know.
    pub(crate) notices: Vec<String>,
}

/// The user's file as it is.
struct Present {
    file: PathBuf,
    text: Vec<u8>,
    access: Access,
    notices: Vec<String>,
    /// Its owner has taken the right to write away.
    protected: bool,
}

/// Puts the line into the configuration at `path`, which is made where it is missing.
pub(crate) fn install(path: &Path, line: &str) -> Result<Changed, CliError> {
    let Some(present) = read(path)? else {
        make_directory(path)?;
        let text = format!("{line}\n");
        replace::replace(path, text.as_bytes(), replace::PRIVATE)
            .map_err(|error| cannot(path, line, &error))?;
        return Ok(Changed {
            file: path.to_owned(),
            changed: true,
            notices: Vec::new(),
        });
    };
    let new = with(&present.text, line);
    change(present, new.as_deref(), |file, error| cannot(file, line, error))
}

/// Takes it away. A file with nothing else in it goes with it.
pub(crate) fn remove(path: &Path, line: &str) -> Result<Changed, CliError> {
    let Some(present) = read(path)? else {
        return Ok(Changed {
            file: path.to_owned(),
            changed: false,
            notices: Vec::new(),
        });
    };
    let new = without(&present.text, line);
    let refused = |file: &Path, error: &io::Error| {
        failed("change", file, error).hint(format!("take this line away yourself: {line}"))
    };
    if new.as_ref().is_some_and(Vec::is_empty) && !present.protected && present.file == path {
        fs::remove_file(&present.file).map_err(|error| refused(&present.file, &error))?;
        return Ok(Changed {
            file: present.file,
            changed: true,
            notices: Vec::new(),
        });
    }
    change(present, new.as_deref(), refused)
}

fn change(
    present: Present,
    new: Option<&[u8]>,
    refused: impl Fn(&Path, &io::Error) -> CliError,
) -> Result<Changed, CliError> {
    if let Some(new) = new {
        if present.protected {
            let error = io::Error::new(io::ErrorKind::PermissionDenied, "it is read-only");
            return Err(refused(&present.file, &error));
        }
        replace::replace(&present.file, new, present.access)
            .map_err(|error| refused(&present.file, &error))?;
    }
    Ok(Changed {
        changed: new.is_some(),
        file: present.file,
        notices: present.notices,
    })
}

/// Where nothing can be written, the user may.
fn cannot(file: &Path, line: &str, error: &io::Error) -> CliError {
    failed("change", file, error).hint(format!("put this line at its top yourself: {line}"))
}

/// `~/.ssh`, with the mode that ssh would give it.
fn make_directory(path: &Path) -> Result<(), CliError> {
    let Some(directory) = path.parent() else {
        return Ok(());
    };
    match DirBuilder::new().mode(0o700).create(directory) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(failed("make", directory, &error)),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// The file at `path`, through links; `None` where there is none.
fn read(path: &Path) -> Result<Option<Present>, CliError> {
    let mut notices = Vec::new();
    let file = match fs::canonicalize(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            if fs::symlink_metadata(path).is_ok_and(|found| found.is_symlink()) {
                return Err(CliError::new(
                    Kind::Conflict,
                    format!("{} is a link that leads nowhere", path.display()),
                )
                .hint("make what it leads to, or remove it"));
            }
            return Ok(None);
        }
        Err(error) => return Err(failed("find", path, &error)),
    };
    // The path's own directory may be reached through links, as homes are.
    let is_link = fs::symlink_metadata(path).is_ok_and(|found| found.is_symlink());
    if is_link {
        notices.push(format!("{} is a link to {}", path.display(), file.display()));
    }
    let file = if is_link { file } else { path.to_owned() };
    let metadata = fs::metadata(&file).map_err(|error| failed("read", &file, &error))?;
    if !metadata.is_file() {
        return Err(CliError::new(
            Kind::Conflict,
            format!("{} is no file", file.display()),
        ));
    }
    let mut text = Vec::new();
    fs::File::open(&file)
        .and_then(|opened| opened.take(MAX_CONFIG + 1).read_to_end(&mut text))
        .map_err(|error| failed("read", &file, &error))?;
    if text.len() as u64 > MAX_CONFIG {
        return Err(CliError::general(format!(
            "{} is larger than 1 MiB",
            file.display()
        )));
    }
    let mode = metadata.mode() & 0o7777;
    let (user, us) = (metadata.uid(), rustix::process::geteuid().as_raw());
    // As ssh checks it: readconf.c, "Bad owner or permissions".
    if mode & 0o022 != 0 {
        notices.push(format!(
            "ssh refuses {} because others may write to it (mode {mode:04o}): chmod 600 {}",
            file.display(),
            file.display()
        ));
    }
    if user != us && user != 0 {
        notices.push(format!("{} belongs to another user", file.display()));
    }
    Ok(Some(Present {
        file,
        text,
        access: Access {
            mode,
            owner: (user != us).then_some((user, metadata.gid())),
        },
        notices,
        protected: mode & 0o200 == 0,
    }))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use proptest::prelude::*;

    use super::*;

    const LINE: &str = "Include \"/home/u/.config/banger/ssh/config\"";

    #[test]
    fn it_is_put_at_the_top_once() {
        let put = |text: &str| with(text.as_bytes(), LINE).map(|new| String::from_utf8(new).unwrap());
        assert_eq!(put("").unwrap(), format!("{LINE}\n"));
        assert_eq!(
            put("Host a\n  User b").unwrap(),
            format!("{LINE}\nHost a\n  User b")
        );
        assert_eq!(
            put("\u{feff}Host a\r\n").unwrap(),
            format!("{LINE}\n\u{feff}Host a\r\n")
        );
        // In force already, wherever before the first block.
        assert_eq!(put(&format!("# mine\n\n  {LINE}  \r\nHost a\n")), None);
        assert_eq!(put(LINE), None);
        assert_eq!(put(&format!("Hostname x\n{LINE}\n")), None);
        // Not in force for all.
        for block in ["Host a", "match all", "  HOST\t*", "Host=a"] {
            assert!(put(&format!("{block}\n{LINE}\n")).is_some(), "{block}");
        }
    }

    #[test]
    fn nothing_else_is_taken_away() {
        let take = |text: &str| without(text.as_bytes(), LINE).map(|new| String::from_utf8(new).unwrap());
        assert_eq!(take("Host a\n"), None);
        assert_eq!(take(""), None);
        assert_eq!(take(LINE).unwrap(), "");
        assert_eq!(
            take(&format!("# {LINE}\n{LINE}\nHost a\r\n")).unwrap(),
            format!("# {LINE}\nHost a\r\n")
        );
    }

    proptest! {
        #[test]
        fn what_was_put_is_taken_away(text: Vec<u8>) {
            let new = with(&text, LINE).unwrap();
            prop_assert_eq!(without(&new, LINE).unwrap_or_default(), text);
        }

        #[test]
        fn so_it_is_for_configurations(parts in prop::collection::vec("(Host|Match|Include|User|#| |\t|\r|\n|a|\"|=|\\*){0,6}\n?", 0..12)) {
            let text = parts.concat().into_bytes();
            let new = with(&text, LINE).unwrap();
            prop_assert_eq!(with(&new, LINE), None);
            prop_assert_eq!(without(&new, LINE).unwrap_or_default(), text);
        }
    }

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o7777
    }

    #[test]
    fn a_missing_file_is_made_and_goes_again() {
        let home = tempfile::tempdir().unwrap();
        let config = home.path().join(".ssh/config");
        assert!(!remove(&config, LINE).unwrap().changed);
        assert!(install(&config, LINE).unwrap().changed);
        assert_eq!(fs::read_to_string(&config).unwrap(), format!("{LINE}\n"));
        assert_eq!((mode(&config), mode(config.parent().unwrap())), (0o600, 0o700));
        assert!(!install(&config, LINE).unwrap().changed);
        assert!(remove(&config, LINE).unwrap().changed);
        assert_eq!(fs::read_dir(home.path().join(".ssh")).unwrap().count(), 0);
    }

    #[test]
    fn mode_and_contents_stay() {
        let home = tempfile::tempdir().unwrap();
        let config = home.path().join("config");
        let text = b"# caf\xe9, not UTF-8\r\nHost a\n\tUser b";
        for bits in [0o600, 0o644, 0o664] {
            fs::write(&config, text).unwrap();
            fs::set_permissions(&config, fs::Permissions::from_mode(bits)).unwrap();
            let put = install(&config, LINE).unwrap();
            assert!(put.changed);
            assert_eq!(put.notices.len(), usize::from(bits == 0o664), "{:?}", put.notices);
            assert_eq!(mode(&config), bits);
            assert!(remove(&config, LINE).unwrap().changed);
            assert_eq!(
                (fs::read(&config).unwrap().as_slice(), mode(&config)),
                (&text[..], bits)
            );
        }
        assert_eq!(fs::read_dir(home.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_link_stays_one_and_its_target_is_changed() {
        let home = tempfile::tempdir().unwrap();
        fs::create_dir(home.path().join("dotfiles")).unwrap();
        let (config, target) = (home.path().join("config"), home.path().join("dotfiles/ssh"));
        fs::write(&target, "Host a\n").unwrap();
        symlink("dotfiles/ssh", &config).unwrap();
        let put = install(&config, LINE).unwrap();
        assert!(put.changed && put.notices[0].contains("is a link to"), "{put:?}");
        assert!(fs::symlink_metadata(&config).unwrap().is_symlink());
        assert_eq!(fs::read_to_string(&target).unwrap(), format!("{LINE}\nHost a\n"));
        remove(&config, LINE).unwrap();
        assert_eq!(fs::read_to_string(&target).unwrap(), "Host a\n");
        // What a link leads to is not removed, even when it is empty.
        fs::write(&target, "").unwrap();
        install(&config, LINE).unwrap();
        remove(&config, LINE).unwrap();
        assert_eq!(fs::read_to_string(&target).unwrap(), "");
        fs::remove_file(&target).unwrap();
        assert_eq!(install(&config, LINE).unwrap_err().kind, Kind::Conflict);
    }

    #[test]
    fn what_must_not_be_written_is_left_alone_and_said() {
        let home = tempfile::tempdir().unwrap();
        let config = home.path().join("config");
        fs::write(&config, "Host a\n").unwrap();
        fs::set_permissions(&config, fs::Permissions::from_mode(0o400)).unwrap();
        let error = install(&config, LINE).unwrap_err();
        assert!(error.message.contains("read-only"), "{error}");
        assert!(error.hint.unwrap().contains(LINE));
        assert_eq!(fs::read_to_string(&config).unwrap(), "Host a\n");
        fs::remove_file(&config).unwrap();
        fs::create_dir(&config).unwrap();
        assert_eq!(install(&config, LINE).unwrap_err().kind, Kind::Conflict);
    }
}
