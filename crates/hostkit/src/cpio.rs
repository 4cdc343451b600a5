//! A writer of cpio archives in the `newc` format, the one that Linux unpacks as an initramfs.
//!
//! Source of the format: the kernel's `Documentation/driver-api/early-userspace/buffer-format.rst`. What is written is
//! a function of the calls alone: inode numbers count up, times are zero, everything belongs to root. Nothing is
//! compressed, so that any kernel reads it and no processor time is spent on it at boot. Linux creates entries as it
//! meets them and drops those whose directory is not there yet, therefore this writer insists on parents first.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};

const HEADER_LEN: u64 = 110;
const TRAILER: &str = "TRAILER!!!";
/// `N_ALIGN` and `PATH_MAX` of the kernel's `init/initramfs.c`: a longer name is skipped silently there.
const NAME_MAX: usize = 4095;

const S_IFDIR: u32 = 0o040_000;
const S_IFCHR: u32 = 0o020_000;
const S_IFBLK: u32 = 0o060_000;
const S_IFREG: u32 = 0o100_000;
const S_IFLNK: u32 = 0o120_000;

/// Why an entry could not be written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The name is not a clean relative path of at most 4095 bytes (`a/b/c`, no `.`, `..`, empty part or NUL).
    #[error("invalid cpio entry name {name:?}")]
    InvalidName {
        /// The name as given.
        name: String,
    },
    /// An entry of that name was written before.
    #[error("duplicate cpio entry {name:?}")]
    Duplicate {
        /// The name as given.
        name: String,
    },
    /// The directory that the entry is in was not written before it.
    #[error("cpio entry {name:?} comes before its directory")]
    NoParent {
        /// The name as given.
        name: String,
    },
    /// The format holds sizes of up to 4 GiB.
    #[error("cpio entry {name:?} of {size} bytes is larger than the format allows")]
    TooLarge {
        /// The name as given.
        name: String,
        /// The size of its contents, in bytes.
        size: u64,
    },
    /// The contents ended before, or went on after, the promised size.
    #[error("contents of cpio entry {name:?} are not the promised {size} bytes")]
    SizeChanged {
        /// The name as given.
        name: String,
        /// The size promised, in bytes.
        size: u64,
    },
    /// Reading the contents or writing the archive failed.
    #[error("failed to write cpio entry {name:?}")]
    Io {
        /// The name as given.
        name: String,
        /// The cause.
        #[source]
        source: io::Error,
    },
}

/// Writes one archive; entries appear in the order of the calls.
#[derive(Debug)]
pub struct Writer<W> {
    out: W,
    position: u64,
    next_inode: u32,
    /// What was written, and whether it is a directory.
    names: BTreeMap<String, bool>,
}

struct Entry<'a> {
    name: &'a str,
    mode: u32,
    links: u32,
    size: u64,
    device: (u32, u32),
}

impl<W: Write> Writer<W> {
    /// Starts an archive on `out`, which should be buffered.
    pub fn new(out: W) -> Self {
        Self {
            out,
            position: 0,
            next_inode: 1,
            names: BTreeMap::new(),
        }
    }

    /// Adds a directory with these permission bits.
    pub fn directory(&mut self, name: &str, permissions: u32) -> Result<(), Error> {
        let mode = S_IFDIR | (permissions & 0o7777);
        self.entry(
            &Entry {
                name,
                mode,
                links: 2,
                size: 0,
                device: (0, 0),
            },
            io::empty(),
        )
    }

    /// Adds a regular file from memory.
    pub fn file(&mut self, name: &str, permissions: u32, contents: &[u8]) -> Result<(), Error> {
        self.file_from(name, permissions, contents.len() as u64, contents)
    }

    /// Adds a regular file of exactly `size` bytes from a reader.
    pub fn file_from(
        &mut self,
        name: &str,
        permissions: u32,
        size: u64,
        contents: impl Read,
    ) -> Result<(), Error> {
        let mode = S_IFREG | (permissions & 0o7777);
        self.entry(
            &Entry {
                name,
                mode,
                links: 1,
                size,
                device: (0, 0),
            },
            contents,
        )
    }

    /// Adds a symbolic link.
    pub fn symlink(&mut self, name: &str, target: &str) -> Result<(), Error> {
        if target.is_empty() || target.len() > NAME_MAX || target.contains('\0') {
            return Err(Error::InvalidName {
                name: target.to_owned(),
            });
        }
        let entry = Entry {
            name,
            mode: S_IFLNK | 0o777,
            links: 1,
            size: target.len() as u64,
            device: (0, 0),
        };
        self.entry(&entry, target.as_bytes())
    }

    /// Adds a character device node.
    pub fn char_device(&mut self, name: &str, permissions: u32, major: u32, minor: u32) -> Result<(), Error> {
        let mode = S_IFCHR | (permissions & 0o7777);
        self.entry(
            &Entry {
                name,
                mode,
                links: 1,
                size: 0,
                device: (major, minor),
            },
            io::empty(),
        )
    }

    /// Adds a block device node.
    pub fn block_device(
        &mut self,
        name: &str,
        permissions: u32,
        major: u32,
        minor: u32,
    ) -> Result<(), Error> {
        let mode = S_IFBLK | (permissions & 0o7777);
        self.entry(
            &Entry {
                name,
                mode,
                links: 1,
                size: 0,
                device: (major, minor),
            },
            io::empty(),
        )
    }

    /// Ends the archive and gives the (flushed) output back.
    pub fn finish(mut self) -> Result<W, Error> {
        let io_error = |source| Error::Io {
            name: TRAILER.to_owned(),
            source,
        };
        self.header(
            0,
            &Entry {
                name: TRAILER,
                mode: 0,
                links: 1,
                size: 0,
                device: (0, 0),
            },
        )
        .map_err(io_error)?;
        self.pad(512).map_err(io_error)?;
        self.out.flush().map_err(io_error)?;
        Ok(self.out)
    }

    fn entry(&mut self, entry: &Entry<'_>, contents: impl Read) -> Result<(), Error> {
        let name = || entry.name.to_owned();
        check_name(entry.name)?;
        if u32::try_from(entry.size).is_err() {
            return Err(Error::TooLarge {
                name: name(),
                size: entry.size,
            });
        }
        if let Some((parent, _)) = entry.name.rsplit_once('/')
            && self.names.get(parent) != Some(&true)
        {
            return Err(Error::NoParent { name: name() });
        }
        if self
            .names
            .insert(name(), entry.mode & 0o170_000 == S_IFDIR)
            .is_some()
        {
            return Err(Error::Duplicate { name: name() });
        }
        let io_error = |source| Error::Io { name: name(), source };
        let inode = self.next_inode;
        self.next_inode += 1;
        self.header(inode, entry).map_err(io_error)?;
        // One byte more than promised is asked for, to notice a file that grew while it was read.
        let copied = io::copy(&mut contents.take(entry.size + 1), &mut self.out).map_err(io_error)?;
        self.position += copied;
        if copied != entry.size {
            return Err(Error::SizeChanged {
                name: name(),
                size: entry.size,
            });
        }
        self.pad(4).map_err(io_error)
    }

    fn header(&mut self, inode: u32, entry: &Entry<'_>) -> io::Result<()> {
        let (major, minor) = entry.device;
        // Magic, then 13 fields of eight hexadecimal digits: ino, mode, uid, gid, nlink, mtime, filesize, dev major and
        // minor, rdev major and minor, namesize with its NUL, checksum (zero in this variant).
        let (mode, links, size, name_size) = (entry.mode, entry.links, entry.size, entry.name.len() + 1);
        write!(
            self.out,
            "070701{inode:08x}{mode:08x}{0:08x}{0:08x}{links:08x}{0:08x}{size:08x}{0:08x}{0:08x}\
             {major:08x}{minor:08x}{name_size:08x}{0:08x}",
            0
        )?;
        self.out.write_all(entry.name.as_bytes())?;
        self.out.write_all(&[0])?;
        self.position += HEADER_LEN + name_size as u64;
        self.pad(4)
    }

    fn pad(&mut self, to: u64) -> io::Result<()> {
        let end = self.position.next_multiple_of(to);
        io::copy(&mut io::repeat(0).take(end - self.position), &mut self.out)?;
        self.position = end;
        Ok(())
    }
}

fn check_name(name: &str) -> Result<(), Error> {
    let clean = name.len() <= NAME_MAX
        && name != TRAILER
        && !name.contains('\0')
        && name.split('/').all(|part| !matches!(part, "" | "." | ".."));
    if clean {
        Ok(())
    } else {
        Err(Error::InvalidName {
            name: name.to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use proptest::prelude::*;

    use super::*;

    #[derive(Debug, Clone, PartialEq, Eq)]
    struct Seen {
        name: String,
        fields: Vec<u32>,
        contents: Vec<u8>,
    }

    /// A reader that knows nothing of the writer, straight from the kernel's description.
    fn read(archive: &[u8]) -> Vec<Seen> {
        let mut seen = Vec::new();
        let mut at = 0;
        loop {
            assert_eq!(at % 4, 0);
            assert_eq!(&archive[at..at + 6], b"070701");
            let fields: Vec<u32> = (0..13)
                .map(|n| {
                    let text = std::str::from_utf8(&archive[at + 6 + n * 8..at + 14 + n * 8]).unwrap();
                    u32::from_str_radix(text, 16).unwrap()
                })
                .collect();
            let (size, name_size) = (fields[6] as usize, fields[11] as usize);
            let name = &archive[at + 110..at + 110 + name_size];
            assert_eq!(name.last(), Some(&0));
            let name = String::from_utf8(name[..name_size - 1].to_vec()).unwrap();
            let data = (at + 110 + name_size).next_multiple_of(4);
            at = (data + size).next_multiple_of(4);
            if name == TRAILER {
                assert!(archive[at..].iter().all(|byte| *byte == 0));
                return seen;
            }
            seen.push(Seen {
                name,
                fields,
                contents: archive[data..data + size].to_vec(),
            });
        }
    }

    fn sample() -> Vec<u8> {
        let mut writer = Writer::new(Vec::new());
        writer.directory("dev", 0o755).unwrap();
        writer.char_device("dev/console", 0o600, 5, 1).unwrap();
        writer.block_device("dev/vda", 0o660, 254, 0).unwrap();
        writer.file("init", 0o755, b"#!\n").unwrap();
        writer.symlink("sbin", "usr/sbin").unwrap();
        writer.finish().unwrap()
    }

    #[test]
    fn every_kind_of_entry_reads_back() {
        let archive = sample();
        assert_eq!(archive.len() % 512, 0);
        let seen = read(&archive);
        let brief: Vec<_> = seen
            .iter()
            .map(|e| (e.name.as_str(), e.fields[1], e.fields[9], e.fields[10]))
            .collect();
        assert_eq!(
            brief,
            [
                ("dev", 0o040_755, 0, 0),
                ("dev/console", 0o020_600, 5, 1),
                ("dev/vda", 0o060_660, 254, 0),
                ("init", 0o100_755, 0, 0),
                ("sbin", 0o120_777, 0, 0),
            ]
        );
        assert_eq!(seen[3].contents, b"#!\n");
        assert_eq!(seen[4].contents, b"usr/sbin");
        assert_eq!(archive, sample(), "the same calls give the same bytes");
    }

    #[test]
    fn wrong_calls_are_refused_by_name() {
        let mut writer = Writer::new(Vec::new());
        for name in ["", "/abs", "a/../b", "a//b", "./a", "a/", "a\0b", TRAILER] {
            assert!(
                matches!(writer.file(name, 0, b""), Err(Error::InvalidName { .. })),
                "{name:?}"
            );
        }
        assert!(matches!(writer.file("a/b", 0, b""), Err(Error::NoParent { .. })));
        writer.file("a", 0, b"").unwrap();
        assert!(
            matches!(writer.file("a/b", 0, b""), Err(Error::NoParent { .. })),
            "a is not a directory"
        );
        assert!(matches!(writer.directory("a", 0), Err(Error::Duplicate { .. })));
        assert!(matches!(
            writer.file_from("big", 0, 1 << 32, io::empty()),
            Err(Error::TooLarge { .. })
        ));
        for promised in [2, 4] {
            let mut writer = Writer::new(Vec::new());
            let error = writer.file_from("f", 0, promised, b"abc".as_slice()).unwrap_err();
            assert!(matches!(error, Error::SizeChanged { .. }), "{promised}");
        }
    }

    proptest! {
        #[test]
        fn any_files_read_back(
            files in prop::collection::btree_map("[a-zA-Z0-9 ._-]{1,40}", (0..0o10000_u32, prop::collection::vec(any::<u8>(), 0..600)), 0..12)
        ) {
            let mut writer = Writer::new(Vec::new());
            let mut wanted = Vec::new();
            for (name, (mode, contents)) in &files {
                if check_name(name).is_ok() {
                    writer.file(name, *mode, contents).unwrap();
                    wanted.push((name.clone(), S_IFREG | mode, contents.clone()));
                }
            }
            let seen = read(&writer.finish().unwrap());
            let inodes: std::collections::BTreeSet<_> = seen.iter().map(|e| e.fields[0]).collect();
            prop_assert_eq!(inodes.len(), seen.len());
            let seen: Vec<_> = seen.into_iter().map(|e| (e.name, e.fields[1], e.contents)).collect();
            prop_assert_eq!(seen, wanted);
        }
    }

    #[test]
    fn the_real_cpio_lists_it() {
        // Debian's cpio, else busybox' applet.
        let found = [vec!["cpio", "-t"], vec!["busybox", "cpio", "-t"]]
            .into_iter()
            .find_map(|argv| {
                Command::new(argv[0])
                    .args(&argv[1..])
                    .stdin(Stdio::piped())
                    .stdout(Stdio::piped())
                    .stderr(Stdio::null())
                    .spawn()
                    .ok()
            });
        let Some(mut child) = found else {
            testkit::skip::<()>("neither cpio nor busybox is installed");
            return;
        };
        child.stdin.take().unwrap().write_all(&sample()).unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success());
        assert_eq!(
            String::from_utf8(output.stdout).unwrap(),
            "dev\ndev/console\ndev/vda\ninit\nsbin\n"
        );
    }
}
