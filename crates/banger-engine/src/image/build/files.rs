//! The files of a copying step: gathered into an archive on the host, unpacked in the stage's machine.
//!
//! The context may change while a build is at work, so what is unpacked is what was looked at: one archive is written, and
//! its digest is what the step depends on. Files of another stage, or image, are as their disk is; they are read out of it
//! without a machine, and only when the step is really done.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use banger_agent_api::proto::UploadStart;
use banger_recipe::{Attributes, Compression, Context, ContextError, ResolvedCopy};
use banger_store::images::ImageRow;
use hostkit::decompress;
use hostkit::digest::Digest;
use hostkit::ext4::reader::{Entry, Last, Reader};
use hostkit::rootfs_tar::{Kind, Limits};
use tar::{Builder, EntryType, Header};

use super::bench::Bench;
use super::cache;
use super::result::Disk;
use crate::engine::Engine;
use crate::error::{Error, chain, io};
use crate::image::registered;
use crate::image::work::{self, Cancel};

/// The archives' top, where there are several files.
const TOP: &str = "c";
/// Entries of one step.
const ENTRIES: u64 = 2_000_000;

/// Where files come from.
pub(super) enum Source<'a> {
    /// The directory that the build was given.
    Context(Option<&'a Arc<Context>>),
    /// A stage that is done.
    Disk(&'a Disk),
    /// An image.
    Image(Box<ImageRow>),
}

/// The files of a step.
pub(super) struct Files {
    digest: Digest,
    archive: PathBuf,
    single: bool,
    /// What the archive is still to be made of.
    later: Option<Later>,
}

struct Later {
    base: PathBuf,
    differences: Vec<PathBuf>,
    line: u32,
}

impl Files {
    /// What the step depends on.
    pub(super) fn digest(&self) -> &Digest {
        &self.digest
    }
}

/// Gathers the files of the step in `line`, into the archive `to`.
pub(super) async fn gather(
    engine: &Engine,
    source: Source<'_>,
    copy: &ResolvedCopy,
    line: u32,
    to: PathBuf,
) -> Result<Files, Error> {
    let later = async |image: &ImageRow, differences: &[PathBuf]| {
        let base = registered::usable(engine.host(), image).await?;
        let differences = differences.to_vec();
        Ok::<_, Error>(Some(Later {
            base,
            differences,
            line,
        }))
    };
    match source {
        Source::Context(context) => {
            let (context, copy, archive) = (context.cloned(), copy.clone(), to.clone());
            let gathered =
                work::blocking(move |_cancel| from_context(context.as_deref(), &copy, line, &archive)).await;
            let (digest, single) = gathered?;
            Ok(Files {
                digest,
                archive: to,
                single,
                later: None,
            })
        }
        Source::Disk(disk) => Ok(Files {
            digest: disk.state,
            archive: to,
            single: false,
            later: later(&disk.image, &disk.differences).await?,
        }),
        Source::Image(image) => Ok(Files {
            digest: Digest::of_bytes(image.sha256.as_bytes()),
            archive: to,
            single: false,
            later: later(&image, &[]).await?,
        }),
    }
}

impl Files {
    /// Puts them where the step wants them.
    pub(super) async fn put(mut self, bench: &Bench, copy: &ResolvedCopy) -> Result<(), Error> {
        if let Some(later) = self.later.take() {
            let (sources, archive, mode) = (copy.sources.clone(), self.archive.clone(), copy.mode);
            let gathered =
                work::blocking(move |cancel| from_disk(&later, &sources, mode, &archive, cancel)).await;
            self.single = gathered?;
        }
        let becomes = self.single && !copy.into_directory;
        let made = match becomes {
            true => Path::new(&copy.to).parent().unwrap_or(Path::new("/")),
            false => Path::new(&copy.to),
        };
        make_directories(bench, &made.to_string_lossy()).await?;
        let start = UploadStart {
            path: copy.to.clone(),
            user: copy.owner.clone().unwrap_or_default(),
            keep_owner: false,
            contents_only: !becomes,
        };
        bench.unpack(start, &self.archive).await
    }
}

/// A context that cannot be used, or files of it.
pub(super) fn unusable(directory: &Path, error: &ContextError) -> Error {
    Error::BadFile {
        what: "build context",
        path: directory.to_owned(),
        problem: chain(error),
    }
}

/// Makes directories as `mkdir -p` does, root's.
pub(super) async fn make_directories(bench: &Bench, path: &str) -> Result<(), Error> {
    let mut at = PathBuf::from("/");
    for part in Path::new(path).components().skip(1) {
        at.push(part);
        let start = UploadStart {
            path: at.to_string_lossy().into_owned(),
            contents_only: true,
            ..UploadStart::default()
        };
        let mut archive = Builder::new(Vec::new());
        let made = top(&mut archive).and_then(|()| archive.into_inner());
        let archive = made.map_err(io("make an archive for", &at))?;
        bench.unpack_bytes(start, archive).await?;
    }
    Ok(())
}

/// Writes a file in the guest, in memory.
pub(super) async fn put_bytes(
    bench: &Bench,
    path: &Path,
    mode: u32,
    content: &[u8],
    owner: &str,
) -> Result<(), Error> {
    let parent = path.parent().unwrap_or(Path::new("/"));
    make_directories(bench, &parent.to_string_lossy()).await?;
    let mut archive = Builder::new(Vec::new());
    let mut header = header(EntryType::Regular, mode, content.len() as u64);
    let name = path.file_name().unwrap_or_default();
    let made = archive
        .append_data(&mut header, name, content)
        .and_then(|()| archive.into_inner());
    let archive = made.map_err(io("make an archive for", path))?;
    let start = UploadStart {
        path: path.to_string_lossy().into_owned(),
        user: owner.to_owned(),
        ..UploadStart::default()
    };
    bench.unpack_bytes(start, archive).await
}

fn header(kind: EntryType, mode: u32, size: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header
}

fn top(archive: &mut Builder<impl io::Write>) -> io::Result<()> {
    archive.append_data(
        &mut header(EntryType::Directory, 0o755, 0),
        format!("{TOP}/"),
        io::empty(),
    )
}

/// Writes what the sources mean. Returns its digest, and whether it is one file.
fn from_context(
    context: Option<&Context>,
    copy: &ResolvedCopy,
    line: u32,
    to: &Path,
) -> Result<(Digest, bool), Error> {
    let writing = || io("write", to);
    let mut file = File::create_new(to).map_err(io("create", to))?;
    if copy.sources.is_empty() {
        let single = copy.inline.len() == 1;
        ours(&mut file, single && !copy.into_directory, &copy.inline, copy.mode).map_err(writing())?;
        return Ok((Digest::of_bytes(b""), single));
    }
    let Some(context) = context else {
        return Err(Error::Contradiction {
            problem: format!("line {line} copies files, and there is no directory to copy from"),
            hint: "give it: banger image build … DIR".to_owned(),
        });
    };
    let wrong = |e: ContextError| unusable(context.path(), &e);
    let mut selection = context.select(&copy.sources, line).map_err(wrong)?;
    let archives = match copy.extract {
        true => selection.take_archives().map_err(wrong)?,
        false => Vec::new(),
    };
    let single = selection.is_single_file() && archives.is_empty() && copy.inline.is_empty();
    let becomes = single && !copy.into_directory;
    let mut parts: Vec<Vec<u8>> = Vec::new();
    if !becomes {
        ours(&mut file, false, &copy.inline, copy.mode)
            .and_then(|()| go_on(&mut file))
            .map_err(writing())?;
    }
    for (entry, compression) in &archives {
        let packed = selection.open(entry).map_err(wrong)?;
        let unpacked = unpacked(packed, *compression, &mut file).map_err(|source| Error::BadFile {
            what: "archive to unpack",
            path: context.path().join(&entry.path),
            problem: chain(&source),
        })?;
        parts.push(unpacked.as_bytes().to_vec());
        go_on(&mut file).map_err(writing())?;
    }
    let prefix = match becomes {
        true => Path::new(""),
        false => Path::new(TOP),
    };
    let attributes = Attributes {
        mode: copy.mode,
        ..Attributes::default()
    };
    let mut out = io::BufWriter::new(&mut file);
    let digest = selection
        .write_tar(&mut out, prefix, &attributes)
        .map_err(wrong)?;
    parts.push(digest.to_vec());
    Ok((Digest::of_parts(parts.iter().map(Vec::as_slice)), single))
}

/// Writes the top, unless there is one file that becomes the destination, and the files whose content the recipe has.
fn ours(file: &mut File, alone: bool, inline: &[(String, String)], mode: Option<u32>) -> io::Result<()> {
    let mut archive = Builder::new(&mut *file);
    if !alone {
        top(&mut archive)?;
    }
    for (name, content) in inline {
        let path = match alone {
            true => PathBuf::from(name),
            false => Path::new(TOP).join(name),
        };
        let mut header = header(EntryType::Regular, mode.unwrap_or(0o644), content.len() as u64);
        archive.append_data(&mut header, path, content.as_bytes())?;
    }
    archive.finish()
}

/// What is written next takes the place of the archive's end: two empty records.
fn go_on(file: &mut File) -> io::Result<()> {
    file.seek(io::SeekFrom::End(-1024)).map(|_at| ())
}

/// Copies what is in an archive below the top. Returns the digest of the archive as it was.
fn unpacked(packed: File, compression: Compression, out: &mut File) -> io::Result<Digest> {
    let mut digest_of = packed.try_clone()?;
    let digest = Digest::of_reader(&mut digest_of)?;
    digest_of.seek(io::SeekFrom::Start(0))?;
    let reader = io::BufReader::new(packed);
    let format = match compression {
        Compression::None => None,
        Compression::Gzip => Some(decompress::Format::Gzip),
        Compression::Xz => Some(decompress::Format::Xz),
        Compression::Zstd => Some(decompress::Format::Zstd),
        Compression::Bzip2 => {
            let problem = "bzip2 is not supported: pack it with gzip, xz or zstd, or COPY it";
            return Err(io::Error::new(io::ErrorKind::Unsupported, problem));
        }
    };
    let reader: Box<dyn Read> = match format {
        Some(format) => decompress::reader(format, reader).map_err(io::Error::other)?,
        None => Box::new(reader),
    };
    let mut from = tar::Archive::new(reader);
    let mut archive = Builder::new(io::BufWriter::new(&mut *out));
    let mut count = 0;
    for entry in from.entries()? {
        let mut entry = entry?;
        count += 1;
        if count > ENTRIES {
            return Err(io::Error::other(format!("more than {ENTRIES} entries")));
        }
        let below = |path: &Path| -> io::Result<PathBuf> {
            let mut below = PathBuf::from(TOP);
            for part in path.components() {
                match part {
                    Component::Normal(part) => below.push(part),
                    Component::CurDir | Component::RootDir | Component::Prefix(_) => {}
                    Component::ParentDir => {
                        let problem = format!("{} leads out of it", path.display());
                        return Err(io::Error::new(io::ErrorKind::InvalidData, problem));
                    }
                }
            }
            Ok(below)
        };
        let path = below(&entry.path()?)?;
        let mut header = entry.header().clone();
        let kind = header.entry_type();
        let is_other =
            kind.is_dir() || kind.is_character_special() || kind.is_block_special() || kind.is_fifo();
        if path == Path::new(TOP) {
            continue;
        }
        if kind.is_symlink() {
            let target = entry.link_name()?.unwrap_or_default().into_owned();
            archive.append_link(&mut header, path, target)?;
        } else if kind.is_hard_link() {
            let target = below(&entry.link_name()?.unwrap_or_default())?;
            archive.append_link(&mut header, path, target)?;
        } else if kind.is_file() || kind.is_contiguous() || kind.is_gnu_sparse() {
            header.set_entry_type(EntryType::Regular);
            header.set_size(entry.size());
            archive.append_data(&mut header, path, &mut entry)?;
        } else if is_other {
            header.set_size(0);
            archive.append_data(&mut header, path, io::empty())?;
        }
    }
    archive.finish()?;
    archive.get_mut().flush()?;
    Ok(digest)
}

/// Writes what the sources mean on a disk. Returns whether it is one file.
fn from_disk(
    later: &Later,
    sources: &[String],
    mode: Option<u32>,
    to: &Path,
    cancel: &Cancel,
) -> Result<bool, Error> {
    let mut disk = to.as_os_str().to_owned();
    disk.push(".disk");
    let disk = PathBuf::from(disk);
    let path = match later.differences.is_empty() {
        true => &later.base,
        false => {
            let from = File::open(&later.base).map_err(io("open", &later.base))?;
            let put_together = File::create_new(&disk)
                .and_then(|to| hostkit::copy::copy(&from, &to, |_| cancel.check()))
                .and_then(|_copied| cache::apply(&disk, &later.differences, cancel));
            put_together.map_err(io("put together", &disk))?;
            &disk
        }
    };
    let failed = |problem: String| Error::Contradiction {
        problem: format!("line {}: {problem}", later.line),
        hint: "what is copied must be in the stage or image, as a path without `*`".to_owned(),
    };
    let reader = Reader::open(path).map_err(|e| failed(chain(&e)))?;
    let file = File::create_new(to).map_err(io("create", to))?;
    let mut archive = Builder::new(io::BufWriter::new(&file));
    let mut single = false;
    let write = |archive: &mut Builder<_>, name: PathBuf, entry: &Entry| -> io::Result<()> {
        let node = &entry.node;
        let mut header = header(EntryType::Regular, mode.unwrap_or(node.mode), 0);
        header.set_mtime(node.mtime);
        match &node.kind {
            Kind::File { size, .. } => {
                header.set_size(*size);
                let contents = reader.contents(entry).map_err(io::Error::other)?;
                archive.append_data(&mut header, name, contents)
            }
            Kind::Directory => {
                header.set_entry_type(EntryType::Directory);
                archive.append_data(&mut header, name, io::empty())
            }
            Kind::Symlink { target } => {
                header.set_entry_type(EntryType::Symlink);
                archive.append_link(&mut header, name, Path::new(OsStr::from_bytes(target)))
            }
            // A copy of its own: the other name may not be among what is copied.
            Kind::Link { to } => {
                let Some(entry) = reader.lookup(to, Last::Keep).map_err(io::Error::other)? else {
                    return Ok(());
                };
                let Kind::File { size, .. } = entry.node.kind else {
                    return Ok(());
                };
                header.set_mode(mode.unwrap_or(entry.node.mode));
                header.set_size(size);
                let contents = reader.contents(&entry).map_err(io::Error::other)?;
                archive.append_data(&mut header, name, contents)
            }
            Kind::CharDevice { .. } | Kind::BlockDevice { .. } | Kind::Fifo => Ok(()),
        }
    };
    let writing = |e| io("write", to)(e);
    for (number, source) in sources.iter().enumerate() {
        let found = reader.lookup(source.as_bytes(), Last::Follow);
        let found = found.map_err(|e| failed(chain(&e)))?;
        let found = found.ok_or_else(|| failed(format!("there is no {source}")))?;
        let name = Path::new(source).file_name().unwrap_or_default().to_owned();
        let is_directory = matches!(found.node.kind, Kind::Directory);
        single = sources.len() == 1 && !is_directory;
        if single {
            write(&mut archive, PathBuf::from(&name), &found).map_err(writing)?;
            break;
        }
        if number == 0 {
            top(&mut archive).map_err(writing)?;
        }
        if !is_directory {
            write(&mut archive, Path::new(TOP).join(&name), &found).map_err(writing)?;
            continue;
        }
        let from = found.path.clone();
        for entry in reader.walk(found, &Limits::default()) {
            let entry = entry.map_err(|e| failed(chain(&e)))?;
            cancel.check().map_err(writing)?;
            let below = entry.path.strip_prefix(from.as_slice()).unwrap_or_default();
            let below = below.strip_prefix(b"/").unwrap_or(below);
            if !below.is_empty() {
                let name = Path::new(TOP).join(OsStr::from_bytes(below));
                write(&mut archive, name, &entry).map_err(writing)?;
            }
        }
    }
    archive.finish().map_err(writing)?;
    Ok(single)
}
