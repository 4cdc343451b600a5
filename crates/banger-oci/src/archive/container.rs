//! What an archive is in: a directory, or a tar file, perhaps packed. Files by name, read in any order.
//!
//! Of a tar file the headers are read once, and remembered where each file's bytes are. Names are what the archive's own
//! documents call them; nothing is ever made below such a name on this host.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Component, Path, PathBuf};

use hostkit::decompress;

use super::open;
use crate::DOCUMENT_LIMIT;
use crate::blobs::Blobs;
use crate::error::Error;
use crate::image::tell;
use crate::progress::{Event, Progress};
use crate::text::tame;

/// Archives consist of records of this many bytes.
const RECORD: u64 = 512;
const RECORD_BYTES: usize = 512;
/// Files in one archive; one with a hundred images of a hundred layers has 30,000.
const MEMBER_LIMIT: usize = 200_000;
/// A long name, or a set of pax records.
const EXTENSION_LIMIT: u64 = 64 << 10;
/// Links from one name to the next.
const LINK_LIMIT: usize = 8;
/// An archive may unpack to this much, and beyond that to [`RATIO_LIMIT`] times its size.
const UNPACKED_FLOOR: u64 = 1 << 30;
const RATIO_LIMIT: u64 = 200;

/// See the module.
pub(super) struct Container {
    path: PathBuf,
    kind: Kind,
}

/// A file's bytes, and how many there are.
pub(super) type Contents<'a> = (Box<dyn Read + 'a>, u64);

enum Kind {
    Directory,
    Tar {
        file: File,
        members: HashMap<String, Member>,
    },
}

enum Member {
    File {
        offset: u64,
        size: u64,
    },
    /// To another name, already taken apart.
    Link(String),
}

impl Container {
    pub(super) fn open(path: &Path, blobs: &Blobs, progress: &Progress<'_>) -> Result<Self, Error> {
        if path.is_dir() {
            return Ok(Self {
                path: path.to_owned(),
                kind: Kind::Directory,
            });
        }
        let mut file = open(path)?;
        let failed = |source| Error::File {
            action: "read",
            path: path.to_owned(),
            source,
        };
        let mut start = [0; 16];
        let read = file.read_at(&mut start, 0).map_err(failed)?;
        if let Some(format) = decompress::detect(start.get(..read).unwrap_or_default()) {
            file = unpack(path, file, format, blobs, progress)?;
        }
        let members = members(&file).map_err(|reason| match reason {
            Damage::Io(source) => failed(source),
            Damage::Format(reason) => Error::NotAnArchive {
                path: path.to_owned(),
                reason: reason.to_owned(),
            },
        })?;
        Ok(Self {
            path: path.to_owned(),
            kind: Kind::Tar { file, members },
        })
    }

    /// Whether there is a file of that name.
    pub(super) fn has(&self, name: &str) -> bool {
        match &self.kind {
            Kind::Directory => clean(name).is_some_and(|name| self.path.join(name).is_file()),
            Kind::Tar { members, .. } => find(members, name).is_some(),
        }
    }

    /// A file's contents and their length. None where there is no such file.
    pub(super) fn reader(&self, name: &str) -> Result<Option<Contents<'_>>, Error> {
        match &self.kind {
            Kind::Directory => {
                let Some(path) = clean(name)
                    .map(|name| self.path.join(name))
                    .filter(|path| path.is_file())
                else {
                    return Ok(None);
                };
                let file = open(&path)?;
                let size = file.metadata().map(|metadata| metadata.len());
                let size = size.map_err(|source| Error::File {
                    action: "read",
                    path,
                    source,
                })?;
                Ok(Some((Box::new(file), size)))
            }
            Kind::Tar { file, members } => Ok(find(members, name).map(|(offset, size)| {
                let reader: Box<dyn Read + '_> = Box::new(Section {
                    file,
                    offset,
                    left: size,
                });
                (reader, size)
            })),
        }
    }

    /// A document, whole.
    pub(super) fn document(&self, name: &str) -> Result<Option<Vec<u8>>, Error> {
        let Some((reader, _)) = self.reader(name)? else {
            return Ok(None);
        };
        let mut bytes = Vec::new();
        reader
            .take(DOCUMENT_LIMIT + 1)
            .read_to_end(&mut bytes)
            .map_err(|source| Error::File {
                action: "read",
                path: self.path.clone(),
                source,
            })?;
        if bytes.len() as u64 > DOCUMENT_LIMIT {
            return Err(Error::TooLong {
                what: "document",
                from: format!("{} ({})", self.path.display(), tame(name, 100)),
                limit: DOCUMENT_LIMIT,
            });
        }
        Ok(Some(bytes))
    }
}

/// Some bytes of a file.
struct Section<'a> {
    file: &'a File,
    offset: u64,
    left: u64,
}

impl Read for Section<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let want = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        let read = self
            .file
            .read_at(buffer.get_mut(..want).unwrap_or_default(), self.offset)?;
        if read == 0 && want > 0 {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "the archive is cut short",
            ));
        }
        self.offset += read as u64;
        self.left -= read as u64;
        Ok(read)
    }
}

/// Unpacks a whole archive into a file that is gone when it is closed.
fn unpack(
    path: &Path,
    packed: File,
    format: decompress::Format,
    blobs: &Blobs,
    progress: &Progress<'_>,
) -> Result<File, Error> {
    let failed = |source| Error::File {
        action: "read",
        path: path.to_owned(),
        source,
    };
    let length = packed.metadata().map_err(failed)?.len();
    let limit = UNPACKED_FLOOR.max(length.saturating_mul(RATIO_LIMIT));
    let mut reader = decompress::reader(format, io::BufReader::with_capacity(1 << 20, packed))
        .map_err(|error| failed(io::Error::other(error)))?;
    let new = blobs.new_file()?;
    let mut out = new.file.try_clone().map_err(failed)?;
    let mut buffer = vec![0; 1 << 20];
    let mut done = 0;
    loop {
        let read = match reader.read(&mut buffer) {
            Ok(0) => break,
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(source) => return Err(failed(source)),
        };
        done += read as u64;
        if done > limit {
            return Err(Error::TooLong {
                what: "unpacked archive",
                from: path.display().to_string(),
                limit,
            });
        }
        out.write_all(buffer.get(..read).unwrap_or_default())
            .map_err(|source| blobs.write_failed(blobs.directory(), read as u64, source))?;
        tell(progress, Event::Step { done })?;
    }
    // The name goes with `new`, the file with `out`.
    drop(new);
    Ok(out)
}

enum Damage {
    Io(io::Error),
    Format(&'static str),
}

impl From<io::Error> for Damage {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// Reads all headers (ustar, GNU, pax). Of two entries of one name the later counts, as when they are unpacked.
fn members(file: &File) -> Result<HashMap<String, Member>, Damage> {
    let end = file.metadata()?.len();
    let mut members = HashMap::new();
    let mut at = 0;
    let mut next = Extended::default();
    while at + RECORD <= end {
        let mut block = [0; RECORD_BYTES];
        file.read_exact_at(&mut block, at)?;
        if block.iter().all(|&byte| byte == 0) {
            return Ok(members);
        }
        let header = tar::Header::from_byte_slice(&block);
        if header.cksum().ok() != Some(checksum(&block)) {
            return Err(Damage::Format(if at == 0 {
                "it is no tar file"
            } else {
                "a header in it is damaged"
            }));
        }
        let data = at + RECORD;
        let own = header
            .entry_size()
            .map_err(|_| Damage::Format("a size in it is damaged"))?;
        let kind = header.entry_type();
        let is_extension = kind.is_gnu_longname() || kind.is_gnu_longlink() || kind.is_pax_local_extensions();
        let size = if is_extension {
            own
        } else {
            next.size.unwrap_or(own)
        };
        // Of what has no contents a size is a remark.
        let size = if kind.is_dir() || kind.is_symlink() || kind.is_hard_link() {
            0
        } else {
            size
        };
        let padded = size.checked_next_multiple_of(RECORD);
        let after = padded.and_then(|padded| padded.checked_add(data));
        let after = after
            .filter(|_| data + size <= end)
            .ok_or(Damage::Format("it is cut short"))?;
        at = after;
        if is_extension {
            if size > EXTENSION_LIMIT {
                return Err(Damage::Format("a name in it is too long"));
            }
            let mut bytes = vec![0; usize::try_from(size).unwrap_or_default()];
            file.read_exact_at(&mut bytes, data)?;
            next.read(kind, &bytes)?;
            continue;
        }
        let extended = std::mem::take(&mut next);
        let name = extended.path.unwrap_or_else(|| header.path_bytes().into_owned());
        let Some(name) = std::str::from_utf8(&name).ok().and_then(clean) else {
            continue;
        };
        let member = if kind.is_file() || kind.is_contiguous() {
            Member::File { offset: data, size }
        } else if kind.is_symlink() || kind.is_hard_link() {
            let target = extended
                .link
                .or_else(|| header.link_name_bytes().map(std::borrow::Cow::into_owned))
                .unwrap_or_default();
            let Ok(target) = std::str::from_utf8(&target) else {
                continue;
            };
            let base = Path::new(&name).parent().filter(|_| kind.is_symlink());
            let Some(target) = join(base, target) else {
                continue;
            };
            Member::Link(target)
        } else {
            continue;
        };
        members.insert(name, member);
        if members.len() > MEMBER_LIMIT {
            return Err(Damage::Format("it has too many files"));
        }
    }
    // Without an end marker, between two entries: some tools leave it away.
    if at >= end && at > 0 {
        Ok(members)
    } else {
        Err(Damage::Format("it is no tar file, or cut short"))
    }
}

/// What comes before an entry and is about it.
#[derive(Default)]
struct Extended {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
}

impl Extended {
    fn read(&mut self, kind: tar::EntryType, bytes: &[u8]) -> Result<(), Damage> {
        let until_nul = |bytes: &[u8]| bytes.split(|&byte| byte == 0).next().unwrap_or_default().to_vec();
        if kind.is_gnu_longname() {
            self.path = Some(until_nul(bytes));
        } else if kind.is_gnu_longlink() {
            self.link = Some(until_nul(bytes));
        } else {
            for record in tar::PaxExtensions::new(bytes) {
                let record = record.map_err(|_| Damage::Format("a pax record in it is damaged"))?;
                match record.key_bytes() {
                    b"path" => self.path = Some(record.value_bytes().to_vec()),
                    b"linkpath" => self.link = Some(record.value_bytes().to_vec()),
                    b"size" => {
                        let size = record.value().ok().and_then(|text| text.parse().ok());
                        self.size = Some(size.ok_or(Damage::Format("a size in it is damaged"))?);
                    }
                    _ => {}
                }
            }
        }
        Ok(())
    }
}

fn find(members: &HashMap<String, Member>, name: &str) -> Option<(u64, u64)> {
    let mut name = clean(name)?;
    for _ in 0..=LINK_LIMIT {
        match members.get(&name)? {
            Member::File { offset, size } => return Some((*offset, *size)),
            Member::Link(target) => name.clone_from(target),
        }
    }
    None
}

/// A relative path without `.` parts. None for what leads outside.
fn clean(name: &str) -> Option<String> {
    join(None, name)
}

fn join(base: Option<&Path>, name: &str) -> Option<String> {
    let mut parts: Vec<&str> = Vec::new();
    let own = Path::new(name).components();
    for component in base.into_iter().flat_map(Path::components).chain(own) {
        match component {
            Component::Normal(part) => parts.push(part.to_str()?),
            Component::CurDir => {}
            Component::ParentDir => {
                parts.pop()?;
            }
            Component::RootDir | Component::Prefix(_) => return None,
        }
    }
    (!parts.is_empty()).then(|| parts.join("/"))
}

/// The sum of a header's bytes, its own field taken as spaces (POSIX.1-1988, `ustar`).
fn checksum(block: &[u8; RECORD_BYTES]) -> u32 {
    let counted = |(at, &byte): (usize, &u8)| {
        if (148..156).contains(&at) {
            u32::from(b' ')
        } else {
            u32::from(byte)
        }
    };
    block.iter().enumerate().map(counted).sum()
}
