//! A tar stream from standard input, put under one top directory, because that is what the daemon's contract takes.
//!
//! Sparse files become plain ones; extended attributes and the like are left out. Names are made relative; one that
//! points upwards is an error.

use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Component, Path, PathBuf};

use tar::{Archive, Builder, EntryType, Header};

use super::pack::append_link;
use super::warnings::Warnings;

/// Name of the top directory; its content is what arrives.
const TOP: &str = "stdin";

/// Why it failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RepackError {
    #[error("failed to read the tar archive from standard input: {0}")]
    Read(io::Error),
    /// The stream is closed: the other side has failed, and knows why.
    #[error("failed to send: {0}")]
    Send(io::Error),
    #[error("the archive holds a name that points upwards: {0}")]
    Upwards(PathBuf),
}

/// Reads an archive and writes it under one top directory.
#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "the tar crate's list of types is open"
)]
pub(crate) fn repack(from: impl Read, to: impl Write, warnings: &mut Warnings) -> Result<(), RepackError> {
    let mut builder = Builder::new(to);
    let mut top = Header::new_gnu();
    top.set_entry_type(EntryType::Directory);
    top.set_mode(0o755);
    top.set_uid(0);
    top.set_gid(0);
    top.set_mtime(u64::try_from(jiff::Timestamp::now().as_second()).unwrap_or(0));
    top.set_size(0);
    top.set_device_major(0).map_err(RepackError::Read)?;
    top.set_device_minor(0).map_err(RepackError::Read)?;
    builder
        .append_data(&mut top, TOP, io::empty())
        .map_err(RepackError::Send)?;

    let mut archive = Archive::new(from);
    for entry in archive.entries().map_err(RepackError::Read)? {
        let mut entry = entry.map_err(RepackError::Read)?;
        let path = below_top(&entry.path().map_err(RepackError::Read)?)?;
        let Some(path) = path else { continue };
        let mut header = Header::new_gnu();
        copy_header(entry.header(), &mut header).map_err(RepackError::Read)?;
        match entry.header().entry_type() {
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                header.set_entry_type(EntryType::Regular);
                header.set_size(entry.size());
                builder
                    .append_data(&mut header, &path, &mut entry)
                    .map_err(RepackError::Send)?;
            }
            kind @ (EntryType::Directory | EntryType::Fifo) => {
                header.set_entry_type(kind);
                header.set_size(0);
                builder
                    .append_data(&mut header, &path, io::empty())
                    .map_err(RepackError::Send)?;
            }
            EntryType::Symlink => {
                let target = entry.link_name_bytes().unwrap_or_default().into_owned();
                append_link(&mut builder, &mut header, EntryType::Symlink, &path, &target)
                    .map_err(RepackError::Send)?;
            }
            EntryType::Link => {
                let target = entry.link_name().map_err(RepackError::Read)?.unwrap_or_default();
                let Some(target) = below_top(&target)? else {
                    continue;
                };
                append_link(
                    &mut builder,
                    &mut header,
                    EntryType::Link,
                    &path,
                    target.as_os_str().as_bytes(),
                )
                .map_err(RepackError::Send)?;
            }
            EntryType::XGlobalHeader => {}
            kind => warnings.add(&format!("{} is of type {kind:?}, left out", path.display())),
        }
    }
    let mut to = builder.into_inner().map_err(RepackError::Send)?;
    to.flush().map_err(RepackError::Send)
}

/// A name under the top directory; `None` for the root itself.
fn below_top(path: &Path) -> Result<Option<PathBuf>, RepackError> {
    let mut below = PathBuf::from(TOP);
    for component in path.components() {
        match component {
            Component::Normal(name) => below.push(name),
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
            Component::ParentDir => return Err(RepackError::Upwards(path.to_owned())),
        }
    }
    Ok((below.as_os_str() != TOP).then_some(below))
}

fn copy_header(from: &Header, to: &mut Header) -> io::Result<()> {
    to.set_mode(from.mode()?);
    to.set_uid(from.uid()?);
    to.set_gid(from.gid()?);
    to.set_mtime(from.mtime()?);
    // A pipe has none, and readers look for one all the same.
    to.set_device_major(0)?;
    to.set_device_minor(0)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_is_put_below_one_top() {
        let long = "d/".repeat(80) + "file";
        let mut builder = Builder::new(Vec::new());
        let mut add = |kind: EntryType, name: &str, target: Option<&str>, data: &[u8]| {
            let mut header = Header::new_gnu();
            header.set_entry_type(kind);
            header.set_mode(0o640);
            header.set_uid(1234);
            header.set_gid(5);
            header.set_mtime(99);
            header.set_size(u64::try_from(data.len()).unwrap());
            match target {
                Some(target) => {
                    append_link(
                        &mut builder,
                        &mut header,
                        kind,
                        Path::new(name),
                        target.as_bytes(),
                    )
                    .unwrap();
                }
                None => builder.append_data(&mut header, name, data).unwrap(),
            }
        };
        add(EntryType::Directory, "./", None, b"");
        add(EntryType::Regular, "a", None, b"hello");
        add(EntryType::Regular, &long, None, b"deep");
        add(EntryType::Symlink, "s", Some("..//x/./y"), b"");
        add(EntryType::Link, "h", Some("a"), b"");
        add(EntryType::Fifo, "p", None, b"");
        add(EntryType::Char, "null", None, b"");
        let archive = builder.into_inner().unwrap();

        let mut warnings = Warnings::default();
        let mut out = Vec::new();
        repack(&archive[..], &mut out, &mut warnings).unwrap();
        assert_eq!(warnings.count(), 1, "the device");
        let mut archive = Archive::new(&out[..]);
        let entries: Vec<_> = archive
            .entries()
            .unwrap()
            .map(|entry| {
                let mut entry = entry.unwrap();
                assert_eq!(entry.header().device_major().unwrap(), Some(0));
                let mut text = String::new();
                entry.read_to_string(&mut text).unwrap();
                let target = entry
                    .link_name_bytes()
                    .map(|bytes| String::from_utf8(bytes.into_owned()).unwrap());
                (
                    entry.path().unwrap().to_str().unwrap().to_owned(),
                    target.unwrap_or(text),
                )
            })
            .collect();
        let pair = |a: &str, b: &str| (a.to_owned(), b.to_owned());
        assert_eq!(
            entries,
            [
                pair("stdin", ""),
                pair("stdin/a", "hello"),
                pair(&format!("stdin/{long}"), "deep"),
                pair("stdin/s", "..//x/./y"),
                pair("stdin/h", "stdin/a"),
                pair("stdin/p", ""),
            ]
        );
    }

    #[test]
    fn upwards_and_garbage_are_refused() {
        let mut header = Header::new_gnu();
        header.as_old_mut().name[..4].copy_from_slice(b"../x");
        header.set_size(0);
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_entry_type(EntryType::Regular);
        header.set_cksum();
        let mut builder = Builder::new(Vec::new());
        builder.append(&header, io::empty()).unwrap();
        let archive = builder.into_inner().unwrap();
        let mut warnings = Warnings::default();
        assert!(matches!(
            repack(&archive[..], io::sink(), &mut warnings),
            Err(RepackError::Upwards(_))
        ));
        let garbage = [b'x'; 2048];
        assert!(matches!(
            repack(&garbage[..], io::sink(), &mut warnings),
            Err(RepackError::Read(_))
        ));
    }
}
