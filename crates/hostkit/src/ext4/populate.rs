//! From an unpacked tree to a file system with the owners, modes, attributes and devices it should have.
//!
//! Only root may give files away or make device nodes, yet a user should get the same image as root. So the tree on the
//! host has the contents alone, everything owned by whoever unpacked it and pipes in the place of devices; `mke2fs -d`
//! copies that, holes included, and then what the tree on the host could not hold is written into the image: for every
//! inode its owner, group, mode and device ([`super::inodes`]), for some their extended attributes, by `debugfs`. (The
//! alternatives: fakeroot is one more program to install and slows every call; user namespaces need ranges of ids set up
//! by an administrator; `mke2fs -d` reads a tar file by itself from version 1.47.1 on only.)

use std::fs::File;
use std::io::{BufWriter, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;

use super::inodes::{self, Attributed};
use super::{
    E2fsTools, Error, FEATURES, FRESH, MKE2FS_TIMEOUT, Unfinished, absolute, check_label, is_banner,
};
use crate::exec::Stream;
use crate::rootfs_tar::{Kind, Tree};

const BLOCK: u64 = 4096;
/// `debugfs` reads its script in lines of `BUFSIZ`, 8192 with glibc.
const LINE_LIMIT: usize = 8000;

/// How the file system is to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options<'a> {
    /// Its label, at most 16 bytes.
    pub label: &'a str,
    /// Free space to leave, in bytes, beyond the 6 % that are always left.
    pub slack: u64,
}

/// Makes the new image file `image` from `tree`, whose contents are below `staging`. `scratch` is an empty directory
/// for the script. With a journal and room to grow by a thousand times, since a machine's own disk may be made of its
/// blocks. After any error there is no file.
pub async fn populate(
    tools: &E2fsTools,
    image: &Path,
    staging: &Path,
    tree: &Arc<Tree>,
    scratch: &Path,
    options: &Options<'_>,
) -> Result<(), Error> {
    check_label(options.label)?;
    let layout = Layout::of(tree, options.slack);
    let unfinished = Unfinished::create(image, layout.size)?;
    let inodes = layout.inodes.to_string();
    let features = format!("{FEATURES},has_journal,resize_inode");
    let journal = format!("size={}", layout.journal);
    let command_error = |source| Error::Command {
        path: image.to_owned(),
        source: Box::new(source),
    };
    tools
        .mke2fs
        .command()
        .args([
            "-q", "-F", "-t", "ext4", "-T", "default", "-b", "4096", "-I", "256", "-N", &inodes, "-m", "0",
        ])
        .args(["-O", &features, "-J", &journal, "-E", FRESH])
        .args(["-L", options.label, "-d"])
        .arg(absolute(staging)?)
        .arg(absolute(image)?)
        .timeout(MKE2FS_TIMEOUT)
        .run()
        .await
        .map_err(command_error)?;

    let attributed = patch(image, tree).await?;
    if !attributed.is_empty() {
        let script = scratch.join("debugfs-script");
        write_script(tree, &attributed, scratch, &script)?;
        set_attributes(tools, image, &script).await?;
    }
    unfinished.keep();
    Ok(())
}

/// Writes what the tree on the host could not hold into an image's inodes; gives those that have extended attributes.
pub(super) async fn patch(image: &Path, tree: &Arc<Tree>) -> Result<Vec<Attributed>, Error> {
    let (path, nodes) = (image.to_owned(), Arc::clone(tree));
    match tokio::task::spawn_blocking(move || inodes::patch(&path, &nodes)).await {
        Ok(result) => result,
        // Blocking tasks are not aborted anywhere, so this is its own panic, passed on.
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}

/// Runs a script of `debugfs` on an image.
async fn set_attributes(tools: &E2fsTools, image: &Path, script: &Path) -> Result<(), Error> {
    // It echoes every command, which nobody wants to hold; what matters is on standard error.
    let null = File::options()
        .write(true)
        .open("/dev/null")
        .map_err(|source| Error::Create {
            path: "/dev/null".into(),
            source,
        })?;
    let mut complaint = None;
    tools
        .debugfs
        .command()
        .args(["-w", "-f"])
        .arg(absolute(script)?)
        .arg(absolute(image)?)
        .output_file(null)
        .timeout(MKE2FS_TIMEOUT)
        .on_line(|stream, line| match stream {
            Stream::Stderr if !is_banner(line) && complaint.is_none() => complaint = Some(line.to_owned()),
            Stream::Stderr | Stream::Stdout => {}
        })
        .run()
        .await
        .map_err(|source| Error::Command {
            path: image.to_owned(),
            source: Box::new(source),
        })?;
    match complaint {
        None => Ok(()),
        Some(message) => Err(Error::Attributes {
            path: image.to_owned(),
            message,
        }),
    }
}

/// How large the file system has to be.
#[derive(Debug, PartialEq, Eq)]
struct Layout {
    /// Bytes.
    size: u64,
    inodes: u64,
    /// MiB.
    journal: u64,
}

impl Layout {
    fn of(tree: &Tree, slack: u64) -> Self {
        let mut inodes = 0;
        let mut blocks = 0;
        // Directories' blocks come from their entries: 8 bytes and the name, rounded up, blocks filled to 3/4 after
        // splits, plus an index block.
        let mut names = 0_u64;
        for (path, node) in tree.iter() {
            names += 8 + path.len() as u64 + 4;
            let attributes = u64::from(!node.xattrs.is_empty());
            match &node.kind {
                Kind::Link { .. } => continue,
                // A long run of blocks needs another index block about every 128 MiB.
                Kind::File { size, data } => {
                    let data = data.div_ceil(BLOCK);
                    // So does every run between holes, in a block that has room for 340.
                    let runs = if data < size.div_ceil(BLOCK) {
                        data / 256 + 1
                    } else {
                        0
                    };
                    blocks += data + (size >> 27) + runs + attributes;
                }
                Kind::Directory => blocks += 2 + attributes,
                // Up to 59 bytes are in the inode itself.
                Kind::Symlink { target } => blocks += u64::from(target.len() > 59) + attributes,
                Kind::CharDevice { .. } | Kind::BlockDevice { .. } | Kind::Fifo => blocks += attributes,
            }
            inodes += 1;
        }
        blocks += names.div_ceil(BLOCK) * 4 / 3;
        // Eleven are reserved, lost+found is one; some are left for whoever changes a copy of the image.
        let inodes: u64 = inodes + inodes / 8 + 64;
        // A disk that grows gets inodes as there are here for each group of blocks: no fewer than usual.
        let inodes = inodes.max((blocks * BLOCK).div_ceil(16_384)).max(1024);
        blocks += inodes.div_ceil(BLOCK / 256);
        // Per group of 32768 blocks two bitmaps, and superblock and descriptors in some.
        let groups = blocks.div_ceil(32_768) + 1;
        blocks += groups * 4 + 16;
        blocks += blocks / 16 + slack.div_ceil(BLOCK) + 64;
        let journal = ((blocks * BLOCK) >> 24).clamp(4, 32);
        let journal_blocks = (journal << 20) / BLOCK;
        // mke2fs wants twice a journal's blocks to be free. What is not written takes no room.
        blocks = (blocks + journal_blocks + 16).max(journal_blocks * 2 + blocks.div_ceil(8) + 256);
        Self {
            size: blocks * BLOCK,
            inodes,
            journal,
        }
    }
}

/// Writes the requests that set the extended attributes of these inodes, each value in a file of its own.
fn write_script(tree: &Tree, attributed: &[Attributed], scratch: &Path, script: &Path) -> Result<(), Error> {
    let create_error = |path: &Path, source| Error::Create {
        path: path.to_owned(),
        source,
    };
    let file = File::create(script).map_err(|source| create_error(script, source))?;
    let mut out = BufWriter::new(file);
    let mut values = 0_u32;
    for (ino, path) in attributed {
        for (attribute, value) in tree.get(path).into_iter().flat_map(|node| &node.xattrs) {
            let file = scratch.join(format!("xattr-{values}"));
            values += 1;
            std::fs::write(&file, value).map_err(|source| create_error(&file, source))?;
            let file = quote(file.as_os_str().as_bytes())?;
            let inode = format!(" <{ino}> ");
            let name = quote(attribute)?;
            let line = [b"ea_set -f ", file.as_slice(), inode.as_bytes(), &name, b"\n"].concat();
            out.write_all(&line)
                .map_err(|source| create_error(script, source))?;
        }
    }
    out.flush().map_err(|source| create_error(script, source))
}

/// Quotes a word of a `debugfs` request as `ss` parses it, the library behind `debugfs`: in double quotes, with those
/// inside doubled. Any bytes but line breaks can be in it.
pub(super) fn quote(name: &[u8]) -> Result<Vec<u8>, Error> {
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
    if quoted.len() > LINE_LIMIT / 2 {
        return Err(wrong("it is too long"));
    }
    Ok(quoted)
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;
    use crate::exec::Tool;
    use crate::ext4::superblock;
    use crate::ext4::tests::{DIRS, assert_clean, tools};
    use crate::rootfs_tar::{Limits, unpack};

    async fn stat(image: &Path, path: &str) -> String {
        let request = format!("stat \"{}\"", path.replace('"', "\"\""));
        let debugfs = Tool::find("debugfs", DIRS).unwrap();
        let output = debugfs
            .command()
            .args(["-R", &request])
            .arg(image)
            .run()
            .await
            .unwrap();
        output
            .text()
            .split_ascii_whitespace()
            .collect::<Vec<_>>()
            .join(" ")
    }

    #[tokio::test]
    async fn an_image_has_what_the_archive_says_whoever_makes_it() {
        let Some(tools) = tools() else { return };
        let mut archive = tar::Builder::new(Vec::new());
        let mut add = |name: &str, kind: tar::EntryType, mode, (uid, gid), data: &[u8], link: &str| {
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(kind);
            header.set_mode(mode);
            header.set_uid(uid);
            header.set_gid(gid);
            header.set_mtime(1_000_000_000);
            header.set_size(data.len() as u64);
            header.set_device_major(8).unwrap();
            header.set_device_minor(300).unwrap();
            if link.is_empty() {
                archive.append_data(&mut header, name, data).unwrap();
            } else {
                archive.append_link(&mut header, name, link).unwrap();
            }
        };
        use tar::EntryType as T;
        add("./", T::Directory, 0o755, (0, 0), b"", "");
        add("locked", T::Directory, 0o555, (7, 8), b"", "");
        add("locked/secret", T::Regular, 0, (70_000, 80_000), b"text", "");
        add("locked/more", T::Link, 0, (0, 0), b"", "locked/secret");
        add("su \"do\"", T::Regular, 0o4755, (0, 42), &[1; 10_000], "");
        add("link", T::Symlink, 0o777, (5, 6), b"", "su \"do\"");
        add("dev", T::Directory, 0o1777, (0, 0), b"", "");
        add("dev/sda", T::Block, 0o660, (0, 6), b"", "");
        add("dev/pipe", T::Fifo, 0o600, (1, 1), b"", "");
        add("dev/same", T::Link, 0, (0, 0), b"", "dev/sda");
        add("line\nbreak", T::Regular, 0o600, (9, 9), b"x", "");
        let capability = [1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        archive
            .append_pax_extensions([("SCHILY.xattr.security.capability", capability.as_slice())])
            .unwrap();
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o755);
        header.set_size(0);
        archive.append_data(&mut header, "ping", io::empty()).unwrap();
        let archive = archive.into_inner().unwrap();

        let dir = tempfile::tempdir().unwrap();
        let (staging, scratch) = (dir.path().join("tree"), dir.path().join("scratch"));
        std::fs::create_dir(&staging).unwrap();
        std::fs::create_dir(&scratch).unwrap();
        let tree = Arc::new(unpack(archive.as_slice(), &staging, &Limits::default(), |_| Ok(())).unwrap());
        let image = dir.path().join("image");
        let options = Options {
            label: "test",
            slack: 0,
        };
        populate(&tools, &image, &staging, &tree, &scratch, &options)
            .await
            .unwrap();

        assert_clean(&image).await;
        let found = superblock::check(&image).unwrap();
        assert_eq!(found.label, "test");
        assert!(found.journal);
        let locked = stat(&image, "/locked").await;
        assert!(
            locked.contains("Mode: 0555") && locked.contains("User: 7 Group: 8"),
            "{locked}"
        );
        assert!(locked.contains("mtime: 0x3b9aca00"), "{locked}");
        let secret = stat(&image, "/locked/secret").await;
        assert!(
            secret.contains("Mode: 0000") && secret.contains("User: 70000 Group: 80000"),
            "{secret}"
        );
        assert!(
            secret.contains("Links: 2") && secret.contains("Size: 4"),
            "{secret}"
        );
        assert_eq!(stat(&image, "/locked/more").await, secret);
        let sudo = stat(&image, "/su \"do\"").await;
        assert!(
            sudo.contains("Mode: 04755") && sudo.contains("Group: 42"),
            "{sudo}"
        );
        let link = stat(&image, "/link").await;
        assert!(
            link.contains("symlink") && link.contains("User: 5 Group: 6"),
            "{link}"
        );
        let sda = stat(&image, "/dev/sda").await;
        assert!(
            sda.contains("block special Mode: 0660") && sda.contains("08:300"),
            "{sda}"
        );
        assert!(sda.contains("mtime: 0x3b9aca00"), "{sda}");
        assert!(sda.contains("Links: 2"), "{sda}");
        assert_eq!(stat(&image, "/dev/same").await, sda);
        assert!(stat(&image, "/dev/pipe").await.contains("FIFO Mode: 0600"));
        assert!(stat(&image, "/dev").await.contains("Mode: 01777"));
        let ping = stat(&image, "/ping").await;
        assert!(ping.contains("security.capability (20) = 01 00 00 02"), "{ping}");
        let text = tools.read(&image, "/locked/secret", 100).await.unwrap();
        assert_eq!(text.as_deref(), Some(b"text".as_slice()));
        assert_eq!(tools.read(&image, "/none", 100).await.unwrap(), None);
    }

    #[tokio::test]
    async fn holes_devices_and_times_of_all_sizes_are_kept() {
        let Some(tools) = tools() else { return };
        let mut archive = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o660);
        header.set_uid(0);
        header.set_gid(0);
        header.set_size(0);
        header.set_entry_type(tar::EntryType::Char);
        // The last second of 32 bits, beyond those of a signed number.
        header.set_mtime(u32::MAX.into());
        header.set_device_major(5).unwrap();
        header.set_device_minor(1).unwrap();
        archive.append_data(&mut header, "console", io::empty()).unwrap();
        header.set_entry_type(tar::EntryType::GNUSparse);
        header.set_size(3);
        let gnu = header.as_gnu_mut().unwrap();
        gnu.set_real_size(1 << 30);
        gnu.sparse[0].set_offset(1 << 29);
        gnu.sparse[0].set_length(3);
        archive
            .append_data(&mut header, "sparse", b"end".as_slice())
            .unwrap();
        let archive = archive.into_inner().unwrap();

        let dir = tempfile::tempdir().unwrap();
        let (staging, scratch) = (dir.path().join("tree"), dir.path().join("scratch"));
        std::fs::create_dir(&staging).unwrap();
        std::fs::create_dir(&scratch).unwrap();
        let tree = Arc::new(unpack(archive.as_slice(), &staging, &Limits::default(), |_| Ok(())).unwrap());
        let image = dir.path().join("image");
        let options = Options { label: "", slack: 0 };
        populate(&tools, &image, &staging, &tree, &scratch, &options)
            .await
            .unwrap();
        assert_clean(&image).await;
        let len = std::fs::metadata(&image).unwrap().len();
        assert!(len < 64 << 20, "room for what is there, not for the holes: {len}");
        let console = stat(&image, "/console").await;
        assert!(
            console.contains("character special Mode: 0660") && console.contains("05:01"),
            "{console}"
        );
        assert!(console.contains("mtime: 0xffffffff:00000001"), "{console}");
        let sparse = stat(&image, "/sparse").await;
        assert!(
            sparse.contains("Size: 1073741824") && sparse.contains("Blockcount: 8"),
            "{sparse}"
        );
    }

    #[tokio::test]
    async fn many_files_fit_and_odd_names_are_kept() {
        let Some(tools) = tools() else { return };
        let dir = tempfile::tempdir().unwrap();
        let (staging, scratch) = (dir.path().join("tree"), dir.path().join("scratch"));
        std::fs::create_dir(&staging).unwrap();
        std::fs::create_dir(&scratch).unwrap();
        let mut archive = tar::Builder::new(Vec::new());
        let odd = [
            "tab\there",
            "back\\slash",
            "#hash",
            "<12>",
            "ünïcode",
            "-dash",
            "$HOME",
            "a'b",
        ];
        let names = odd.map(str::to_owned).into_iter().chain(
            (0..3000).map(|n| format!("a-rather-long-name-so-that-directories-need-several-blocks-{n}")),
        );
        let mut names: Vec<_> = names.map(String::into_bytes).collect();
        names.push(b"latin\xe9".to_vec());
        for name in &names {
            let mut header = tar::Header::new_gnu();
            header.set_mode(0o640);
            header.set_uid(99);
            header.set_size(5);
            let name = std::ffi::OsStr::from_bytes(name);
            archive
                .append_data(&mut header, name, b"12345".as_slice())
                .unwrap();
        }
        let archive = archive.into_inner().unwrap();
        let tree = Arc::new(unpack(archive.as_slice(), &staging, &Limits::default(), |_| Ok(())).unwrap());
        let image = dir.path().join("image");
        let options = Options { label: "", slack: 0 };
        populate(&tools, &image, &staging, &tree, &scratch, &options)
            .await
            .unwrap();
        assert_clean(&image).await;
        for name in odd {
            assert!(
                stat(&image, &format!("/{name}")).await.contains("User: 99"),
                "{name}"
            );
        }
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
