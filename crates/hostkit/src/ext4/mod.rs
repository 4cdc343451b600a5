//! ext4 file systems in image files, made and looked at without mounting anything and without privileges.
//!
//! [`make_empty`] and [`make_filled`] make a machine's own disk, [`populate`] turns an unpacked tree into a root file system, all of
//! them with what e2fsprogs makes empty and [`write`] fills; [`mend`] repairs what was left in disorder; [`reader`] reads what is in one that may come
//! from anybody; [`superblock`] reads in Rust what has to be known about a file before it is given to a machine. The
//! features of what is made here are written out, since those that e2fsprogs picks by itself vary with its version and
//! its configuration, and the kernel that has to mount the result is not the host's.

pub mod mend;
pub mod populate;
pub mod reader;
pub mod shrink;
pub mod superblock;
mod write;

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::exec::{ExecError, Tool};
use crate::rootfs_tar::Tree;

/// The smallest file system [`make_empty`] makes, in bytes: below, a journal does not fit.
pub const MIN_SIZE: u64 = 16 << 20;
/// The largest, in bytes: what ext4 holds with 4 KiB blocks and 32-bit block numbers.
pub const MAX_SIZE: u64 = 16 << 40;

/// All of these are understood by Linux 4.4 and later.
const FEATURES: &str = "none,ext_attr,dir_index,filetype,extent,64bit,flex_bg,sparse_super,large_file,huge_file,\
                        dir_nlink,extra_isize,metadata_csum";
/// Nothing is written that the kernel can make up later, and it does not have to zero what is zero in a new file: a
/// sparse file stays so.
const FRESH: &str = "lazy_itable_init=1,lazy_journal_init=1,nodiscard,assume_storage_prezeroed=1";

/// Writing hundreds of megabytes to a slow disk takes its time.
const MKE2FS_TIMEOUT: Duration = Duration::from_secs(30 * 60);

/// Why a file system could not be made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A size out of range.
    #[error("file system size of {size} bytes is not between {MIN_SIZE} and {MAX_SIZE}")]
    Size {
        /// As asked for.
        size: u64,
    },
    /// A label that is longer than 16 bytes or holds control characters.
    #[error("invalid file system label {label:?}: at most 16 printable ASCII characters")]
    Label {
        /// As asked for.
        label: String,
    },
    /// The file could not be made.
    #[error("failed to create {}", path.display())]
    Create {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// A program of e2fsprogs failed.
    #[error("failed to make a file system in {}", path.display())]
    Command {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: Box<ExecError>,
    },
    /// A name that the tools cannot be told.
    #[error("name {name:?} cannot be stored: {reason}")]
    Name {
        /// The path in the tree.
        name: String,
        /// Why not.
        reason: &'static str,
    },
    /// A file system that was just made is not as it was to be made.
    #[error("failed to write into {}: {what}", path.display())]
    Layout {
        /// The file.
        path: PathBuf,
        /// What was found.
        what: String,
    },
    /// A file system that was just made could not be read or written, or whoever watched ended it.
    #[error("failed to write into {}", path.display())]
    Fill {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// What was to be written has more blocks or inodes than there are.
    #[error("the file system in {} is too small", path.display())]
    Full {
        /// The file.
        path: PathBuf,
    },
}

/// The programs of e2fsprogs.
#[derive(Debug, Clone)]
pub struct E2fsTools {
    mke2fs: Tool,
    debugfs: Tool,
    e2fsck: Tool,
    tune2fs: Tool,
    resize2fs: Tool,
}

impl E2fsTools {
    /// Finds them in `dirs`. On Debian they are in `/usr/sbin`, which users do not have in their `PATH`.
    pub fn find<D: AsRef<Path>>(dirs: &[D]) -> Result<Self, ExecError> {
        Ok(Self {
            mke2fs: Tool::find("mke2fs", dirs)?,
            debugfs: Tool::find("debugfs", dirs)?,
            e2fsck: Tool::find("e2fsck", dirs)?,
            tune2fs: Tool::find("tune2fs", dirs)?,
            resize2fs: Tool::find("resize2fs", dirs)?,
        })
    }

    /// The contents of a file inside an image, at most `limit` bytes; `None` where there is nothing of that path. A
    /// symbolic link at its end is not followed.
    pub async fn read(&self, image: &Path, path: &str, limit: usize) -> Result<Option<Vec<u8>>, Error> {
        self.request(image, "cat ", path, limit).await
    }

    /// Whether there is something of that path inside an image, be it a symbolic link to nowhere.
    pub async fn exists(&self, image: &Path, path: &str) -> Result<bool, Error> {
        // What `stat` says grows with a file's fragments.
        Ok(self.request(image, "stat ", path, 16 << 20).await?.is_some())
    }

    /// Asks `debugfs` something about `path`; `None` where it complains.
    async fn request(
        &self,
        image: &Path,
        verb: &str,
        path: &str,
        limit: usize,
    ) -> Result<Option<Vec<u8>>, Error> {
        let request = [verb.as_bytes(), quote(path.as_bytes())?.as_slice()].concat();
        let output = self
            .debugfs
            .command()
            .arg("-R")
            .arg(OsString::from_vec(request))
            .arg(absolute(image)?)
            .capture_limit(limit)
            .timeout(Duration::from_secs(60))
            .run()
            .await
            .map_err(|source| Error::Command {
                path: image.to_owned(),
                source: Box::new(source),
            })?;
        let complains = output.stderr.iter().any(|line| !is_banner(line));
        Ok((!complains).then_some(output.stdout))
    }
}

/// Makes the new file `path` of `size` bytes, rounded down to a multiple of 4096, with an empty file system in it, which
/// is up to a megabyte smaller where its last group of blocks would be too short. The
/// file is sparse, and what it takes grows by 50 KB per GiB of `size`: the time hardly depends on it. An existing file
/// is an error; after any error there is no file.
pub async fn make_empty(tools: &E2fsTools, path: &Path, size: u64, label: &str) -> Result<(), Error> {
    make_disk(tools, path, size, label).await?.keep();
    Ok(())
}

/// Makes a disk as [`make_empty`] does, with `tree` on it; [`Error::Full`] where it is too small for that.
pub async fn make_filled(
    tools: &E2fsTools,
    path: &Path,
    size: u64,
    label: &str,
    tree: &Arc<Tree>,
) -> Result<(), Error> {
    let unfinished = make_disk(tools, path, size, label).await?;
    populate::fill(path, tree, |_| Ok(())).await.0?;
    unfinished.keep();
    Ok(())
}

async fn make_disk(tools: &E2fsTools, path: &Path, size: u64, label: &str) -> Result<Unfinished, Error> {
    check_label(label)?;
    if !(MIN_SIZE..=MAX_SIZE).contains(&size) {
        return Err(Error::Size { size });
    }
    let unfinished = Unfinished::create(path, size & !4095)?;
    // Large enough never to hold up a guest, small enough for the smallest disk.
    let journal = (size >> 20).div_euclid(16).clamp(4, 64);
    let journal = format!("size={journal}");
    let features = format!("{FEATURES},has_journal,resize_inode");
    let mke2fs = tools
        .mke2fs
        .command()
        // The usage type keeps e2fsprogs from choosing other parameters for small file systems; nothing is reserved for
        // root, because the disk is one machine's own.
        .args([
            "-q", "-F", "-t", "ext4", "-T", "default", "-b", "4096", "-I", "256", "-i", "16384", "-m", "0",
        ])
        .args(["-O", &features, "-E", FRESH, "-J", &journal, "-L", label])
        .timeout(MKE2FS_TIMEOUT);
    let made = mke2fs.arg(absolute(path)?).run().await;
    made.map_err(|source| Error::Command {
        path: path.to_owned(),
        source: Box::new(source),
    })?;
    Ok(unfinished)
}

/// A new file that is removed again unless it is kept.
struct Unfinished {
    path: Option<PathBuf>,
}

impl Unfinished {
    fn create(path: &Path, size: u64) -> Result<Self, Error> {
        let create_error = |source| Error::Create {
            path: path.to_owned(),
            source,
        };
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .open(path)
            .map_err(create_error)?;
        let unfinished = Self {
            path: Some(path.to_owned()),
        };
        file.set_len(size).map_err(create_error)?;
        Ok(unfinished)
    }

    fn keep(mut self) {
        self.path = None;
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        if let Some(path) = self.path.take() {
            // There is nobody to tell, and the error that led here is on its way.
            std::fs::remove_file(path).ok();
        }
    }
}

fn check_label(label: &str) -> Result<(), Error> {
    let fits = label.len() <= 16 && label.bytes().all(|byte| byte.is_ascii_graphic() || byte == b' ');
    if fits {
        Ok(())
    } else {
        Err(Error::Label {
            label: label.to_owned(),
        })
    }
}

/// So that no path is taken for an option.
fn absolute(path: &Path) -> Result<PathBuf, Error> {
    std::path::absolute(path).map_err(|source| Error::Create {
        path: path.to_owned(),
        source,
    })
}

/// Quotes a word of a `debugfs` request as `ss` parses it, the library behind `debugfs`: in double quotes, with those
/// inside doubled. Any bytes but line breaks can be in it.
fn quote(name: &[u8]) -> Result<Vec<u8>, Error> {
    let wrong = |reason| Error::Name {
        name: String::from_utf8_lossy(name).into_owned(),
        reason,
    };
    if name.iter().any(|byte| matches!(byte, b'\n' | b'\r' | 0)) {
        return Err(wrong("it holds a line break"));
    }
    let mut quoted = vec![b'"'];
    for byte in name {
        quoted.extend_from_slice(if *byte == b'"' {
            b"\"\""
        } else {
            std::slice::from_ref(byte)
        });
    }
    quoted.push(b'"');
    // Lines of requests are `BUFSIZ` long, 8192 with glibc.
    if quoted.len() > 4000 {
        return Err(wrong("it is too long"));
    }
    Ok(quoted)
}

/// `debugfs` and its kin begin with a line such as `debugfs 1.47.0 (5-Feb-2023)` on standard error.
fn is_banner(line: &str) -> bool {
    line.strip_prefix("debugfs ")
        .is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
}

/// CRC-32C (RFC 3720, appendix B.4) of more bytes, not inverted at the end: ext4's checksums.
fn crc32c(crc: u32, bytes: &[u8]) -> u32 {
    const TABLE: [u32; 256] = {
        let mut table = [0; 256];
        let mut at = 0;
        let mut first = 0_u32;
        while at < 256 {
            let mut value = first;
            let mut bit = 0;
            while bit < 8 {
                value = (value >> 1) ^ (0x82f6_3b78 * (value & 1));
                bit += 1;
            }
            table[at] = value;
            at += 1;
            first += 1;
        }
        table
    };
    bytes.iter().fold(crc, |crc, byte| {
        let [low, ..] = crc.to_le_bytes();
        crc >> 8 ^ TABLE[usize::from(low ^ byte)]
    })
}

/// Flushes a finished image to disk.
pub fn sync(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

#[cfg(test)]
pub(crate) mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    pub(crate) const DIRS: [&str; 4] = ["/usr/sbin", "/usr/bin", "/sbin", "/bin"];

    /// e2fsprogs, or a word about its absence.
    pub(crate) fn tools() -> Option<E2fsTools> {
        match E2fsTools::find(&DIRS) {
            Ok(tools) => Some(tools),
            Err(error) => testkit::skip(&error.to_string()),
        }
    }

    /// `e2fsck -fn` finds nothing to complain about.
    pub(crate) async fn assert_clean(image: &Path) {
        let e2fsck = Tool::find("e2fsck", DIRS).unwrap();
        e2fsck.command().arg("-fn").arg(image).run().await.unwrap();
    }

    #[tokio::test]
    async fn empty_disks_of_any_size_are_sparse_and_clean() {
        let Some(tools) = tools() else { return };
        let dir = tempfile::tempdir().unwrap();
        for size in [MIN_SIZE, (1 << 30) + 5000, 100 << 30] {
            let path = dir.path().join(format!("{size}.img"));
            let started = std::time::Instant::now();
            make_empty(&tools, &path, size, "banger overlay").await.unwrap();
            let metadata = std::fs::metadata(&path).unwrap();
            println!(
                "{} MiB: {:?}, {} KiB",
                size >> 20,
                started.elapsed(),
                metadata.blocks() / 2
            );
            assert_eq!(metadata.len(), size & !4095);
            assert!(metadata.blocks() * 512 < 8 << 20, "{} blocks", metadata.blocks());
            assert_clean(&path).await;
            let found = superblock::check(&path).unwrap();
            assert_eq!(found.label, "banger overlay");
            assert!(
                found.size <= metadata.len() && metadata.len() - found.size < 4 << 20,
                "{found:?}"
            );
            assert!(matches!(
                make_empty(&tools, &path, size, "").await,
                Err(Error::Create { .. })
            ));
        }
    }

    #[tokio::test]
    async fn a_filled_disk_has_what_the_tree_says_whoever_makes_it() {
        let Some(tools) = tools() else { return };
        let dir = tempfile::tempdir().unwrap();
        let mut archive = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o640);
        header.set_uid(7);
        header.set_gid(8);
        header.set_size(4);
        archive
            .append_data(&mut header, "file", b"text".as_slice())
            .unwrap();
        let archive = archive.into_inner().unwrap();
        let limits = crate::rootfs_tar::Limits::default();
        let tree = crate::rootfs_tar::unpack(archive.as_slice(), dir.path(), &limits, |_| Ok(())).unwrap();
        let path = dir.path().join("disk");
        make_filled(&tools, &path, 1 << 30, "work", &Arc::new(tree))
            .await
            .unwrap();
        assert_clean(&path).await;
        assert_eq!(std::fs::metadata(&path).unwrap().len(), 1 << 30);
        assert_eq!(tools.read(&path, "/file", 10).await.unwrap().unwrap(), b"text");
        let stat = tools
            .request(&path, "stat ", "/file", 1 << 20)
            .await
            .unwrap()
            .unwrap();
        let stat = String::from_utf8(stat).unwrap();
        let stat: Vec<_> = stat.split_ascii_whitespace().collect();
        let stat = stat.join(" ");
        assert!(
            stat.contains("Mode: 0640") && stat.contains("User: 7 Group: 8"),
            "{stat}"
        );
    }

    #[tokio::test]
    async fn what_cannot_be_made_leaves_no_file() {
        let Some(tools) = tools() else { return };
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        for (size, label) in [
            (MIN_SIZE - 1, ""),
            (MAX_SIZE + 1, ""),
            (MIN_SIZE, "seventeen letters"),
            (MIN_SIZE, "a\nb"),
        ] {
            assert!(make_empty(&tools, &path, size, label).await.is_err());
            assert!(!path.exists());
        }
        let broken = E2fsTools {
            mke2fs: Tool::find("false", DIRS).unwrap(),
            ..tools
        };
        assert!(matches!(
            make_empty(&broken, &path, MIN_SIZE, "").await,
            Err(Error::Command { .. })
        ));
        assert!(!path.exists());
    }
    #[test]
    fn line_breaks_cannot_become_commands() {
        for name in ["a\nrm /etc/passwd", "a\rb", "a\0b"] {
            assert!(matches!(quote(name.as_bytes()), Err(Error::Name { .. })));
        }
        assert!(quote(&[b'x'; 5000]).is_err());
        assert_eq!(quote(b"a\"b").unwrap(), b"\"a\"\"b\"");
    }
}
