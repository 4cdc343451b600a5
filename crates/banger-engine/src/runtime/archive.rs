//! The program in what a release of Firecracker comes as: `firecracker-vX-ARCH.tgz`, which holds
//! `release-vX-ARCH/firecracker-vX-ARCH` beside other programs, debug symbols and documents; or the bare program.
//!
//! An archive may be a stranger's: its size, its entries and what it unpacks to are bounded, and of its names nothing is
//! used but the last part, to be compared.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::Path;

use flate2::read::GzDecoder;

use super::FIRECRACKER;
use crate::image::work::Cancel;

/// The program is no longer than this, in bytes; releases have some 3 MB.
pub(super) const PROGRAM_LIMIT: u64 = 256 << 20;
/// All of an archive, unpacked.
const UNPACKED_LIMIT: u64 = 2 << 30;
const ENTRIES: usize = 10_000;
const CHUNK: usize = 1 << 20;

/// Why there is no program.
#[derive(Debug, thiserror::Error)]
pub(super) enum ArchiveError {
    #[error("it is neither a program (ELF) nor a gzip archive")]
    Unknown,
    #[error("the archive holds no {FIRECRACKER} for {}", std::env::consts::ARCH)]
    Lacking,
    #[error("the archive holds several programs {FIRECRACKER}")]
    Several,
    #[error("the archive holds more than {ENTRIES} files")]
    TooMany,
    #[error("it is longer than {PROGRAM_LIMIT} bytes")]
    TooLong,
    #[error("cannot read it")]
    Read(#[source] io::Error),
    #[error("cannot write the program")]
    Write(#[source] io::Error),
}

/// Copies the program that is, or is in, `source` to `out`.
pub(super) fn extract(source: &Path, out: &mut File, cancel: &Cancel) -> Result<(), ArchiveError> {
    let mut file = File::open(source).map_err(ArchiveError::Read)?;
    let mut head = Vec::new();
    (&mut file)
        .take(4)
        .read_to_end(&mut head)
        .and_then(|_| file.seek(SeekFrom::Start(0)))
        .map_err(ArchiveError::Read)?;
    if head == b"\x7fELF" {
        return copy(file, out, cancel);
    }
    if !head.starts_with(&[0x1f, 0x8b]) {
        return Err(ArchiveError::Unknown);
    }
    let mut archive = tar::Archive::new(GzDecoder::new(io::BufReader::new(file)).take(UNPACKED_LIMIT));
    let mut found = false;
    for (count, entry) in archive.entries().map_err(ArchiveError::Read)?.enumerate() {
        let entry = entry.map_err(ArchiveError::Read)?;
        cancel.check().map_err(ArchiveError::Read)?;
        if count >= ENTRIES {
            return Err(ArchiveError::TooMany);
        }
        let is_program = entry
            .path()
            .ok()
            .and_then(|path| path.file_name()?.to_str().map(is_program))
            .unwrap_or(false);
        if !is_program || !entry.header().entry_type().is_file() {
            continue;
        }
        if std::mem::replace(&mut found, true) {
            return Err(ArchiveError::Several);
        }
        copy(entry, out, cancel)?;
    }
    found.then_some(()).ok_or(ArchiveError::Lacking)
}

/// `firecracker`, or `firecracker-v1.12.1-x86_64`; not `….debug`, nor `firecracker_spec-…`.
fn is_program(name: &str) -> bool {
    let release = |rest: &str| {
        rest.strip_prefix("-v").is_some_and(|rest| {
            rest.strip_suffix(std::env::consts::ARCH)
                .is_some_and(|version| version.ends_with('-'))
        })
    };
    name.strip_prefix(FIRECRACKER)
        .is_some_and(|rest| rest.is_empty() || release(rest))
}

fn copy(mut from: impl Read, out: &mut File, cancel: &Cancel) -> Result<(), ArchiveError> {
    let mut buffer = vec![0; CHUNK];
    let mut copied = 0_u64;
    loop {
        cancel.check().map_err(ArchiveError::Read)?;
        let read = from.read(&mut buffer).map_err(ArchiveError::Read)?;
        let Some(bytes) = buffer.get(..read).filter(|bytes| !bytes.is_empty()) else {
            return Ok(());
        };
        copied += read as u64;
        if copied > PROGRAM_LIMIT {
            return Err(ArchiveError::TooLong);
        }
        out.write_all(bytes).map_err(ArchiveError::Write)?;
    }
}

#[cfg(test)]
mod tests {
    use flate2::Compression;
    use flate2::write::GzEncoder;

    use super::*;

    fn archive(entries: &[(&str, &[u8])]) -> Vec<u8> {
        let mut tar = tar::Builder::new(GzEncoder::new(Vec::new(), Compression::fast()));
        for (name, bytes) in entries {
            let mut header = tar::Header::new_gnu();
            header.set_size(bytes.len() as u64);
            header.set_mode(0o644);
            tar.append_data(&mut header, name, *bytes).unwrap();
        }
        tar.into_inner().unwrap().finish().unwrap()
    }

    fn extracted(bytes: &[u8]) -> Result<Vec<u8>, ArchiveError> {
        let dir = tempfile::tempdir().unwrap();
        let (source, out) = (dir.path().join("source"), dir.path().join("out"));
        std::fs::write(&source, bytes).unwrap();
        extract(&source, &mut File::create(&out).unwrap(), &Cancel::default())?;
        Ok(std::fs::read(out).unwrap())
    }

    #[test]
    fn the_program_of_a_release_is_found_among_what_is_beside_it() {
        let arch = std::env::consts::ARCH;
        let top = format!("release-v1.12.1-{arch}");
        let name = |what: &str| format!("{top}/{what}-v1.12.1-{arch}");
        let entries = [
            (name("jailer"), &b"jailer"[..]),
            (name("firecracker") + ".debug", b"symbols"),
            (name("firecracker_spec") + ".yaml", b"spec"),
            (name("firecracker"), b"program"),
            (format!("{top}/firecracker-v1.12.1-other"), b"other"),
        ];
        let entries: Vec<_> = entries
            .iter()
            .map(|(name, bytes)| (name.as_str(), *bytes))
            .collect();
        assert_eq!(extracted(&archive(&entries)).unwrap(), b"program");
        assert_eq!(extracted(b"\x7fELFbare").unwrap(), b"\x7fELFbare");
    }

    #[test]
    fn what_holds_none_says_so() {
        let refused = |bytes: &[u8]| extracted(bytes).unwrap_err().to_string();
        assert!(refused(b"#!/bin/sh\n").contains("neither a program"));
        assert!(refused(b"").contains("neither a program"));
        assert!(refused(&archive(&[("a/jailer", b"x")])).contains("holds no firecracker"));
        assert!(refused(&archive(&[("a/firecracker", b"x"), ("b/firecracker", b"y")])).contains("several"));
        let mut cut = archive(&[("a/firecracker", &[7; 4096])]);
        cut.truncate(40);
        assert!(refused(&cut).contains("cannot read"));
    }
}
