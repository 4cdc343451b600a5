//! From an unpacked tree to a file system that is as large as what is in it, with the owners, modes, attributes and devices it
//! should have.
//!
//! Only root may give files away or make device nodes, yet a user should get the same image as root. So the tree on the host is
//! contents and a list of names, and what is to be in the file system is written into it by us ([`super::write`]): `mke2fs`
//! makes it empty. (The alternatives: `mke2fs -d` copies files, of which every one has to be made and removed first, and has
//! the host's owners; fakeroot is one more program to install and slows every call; user namespaces need ranges of ids set up by
//! an administrator; `mke2fs -d` reads a tar file by itself from version 1.47.1 on only.)

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::{E2fsTools, Error, FEATURES, FRESH, MKE2FS_TIMEOUT, Unfinished, absolute, check_label, write};
use crate::rootfs_tar::Tree;

const BLOCK: u64 = 4096;
/// How often a file system is made larger that turns out to be too small.
const ATTEMPTS: u32 = 4;

/// How the file system is to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options<'a> {
    /// Its label, at most 16 bytes.
    pub label: &'a str,
    /// Free space to leave, in bytes, beyond the 6 % that are always left.
    pub slack: u64,
}

/// Makes the new image file `image` from `tree`. With a journal and room to grow by a thousand times, since a machine's own
/// disk may be made of its blocks. `watch` is called with the bytes of contents written so far, a few times a second; its
/// error ends the work, and so does dropping the future. After any error there is no file.
pub async fn populate(
    tools: &E2fsTools,
    image: &Path,
    tree: &Arc<Tree>,
    options: &Options<'_>,
    mut watch: impl FnMut(u64) -> io::Result<()> + Send + 'static,
) -> Result<(), Error> {
    check_label(options.label)?;
    let mut layout = Layout::of(tree, options.slack);
    let mut attempts = 0;
    loop {
        let unfinished = make(tools, image, &layout, options.label).await?;
        let (result, same) = fill(image, tree, watch).await;
        attempts += 1;
        match result {
            // What it has for itself is known once it is there.
            Err(Error::Full { .. }) if attempts < ATTEMPTS => {
                layout.size += (layout.size / 8).next_multiple_of(BLOCK);
                watch = same;
            }
            result => {
                result?;
                unfinished.keep();
                return Ok(());
            }
        }
    }
}

/// Makes it with nothing in it.
async fn make(tools: &E2fsTools, image: &Path, layout: &Layout, label: &str) -> Result<Unfinished, Error> {
    let unfinished = Unfinished::create(image, layout.size)?;
    let inodes = layout.inodes.to_string();
    let features = format!("{FEATURES},has_journal,resize_inode");
    let journal = format!("size={}", layout.journal);
    let made = tools
        .mke2fs
        .command()
        .args([
            "-q", "-F", "-t", "ext4", "-T", "default", "-b", "4096", "-I", "256", "-N", &inodes, "-m", "0",
        ])
        .args(["-O", &features, "-J", &journal, "-E", FRESH])
        .args(["-L", label])
        .arg(absolute(image)?)
        .timeout(MKE2FS_TIMEOUT)
        .run()
        .await;
    made.map_err(|source| Error::Command {
        path: image.to_owned(),
        source: Box::new(source),
    })?;
    Ok(unfinished)
}

/// Has a thread write a tree into an empty file system; returns what watches it as well. Dropping the future ends the work.
pub(super) async fn fill<W>(image: &Path, tree: &Arc<Tree>, mut watch: W) -> (Result<(), Error>, W)
where
    W: FnMut(u64) -> io::Result<()> + Send + 'static,
{
    struct Abandon(Arc<AtomicBool>);
    impl Drop for Abandon {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    let abandon = Abandon(Arc::default());
    let abandoned = Arc::clone(&abandon.0);
    let (path, tree) = (image.to_owned(), Arc::clone(tree));
    let filling = tokio::task::spawn_blocking(move || {
        let filled = write::fill(&path, &tree, &mut |done| {
            if abandoned.load(Ordering::Relaxed) {
                return Err(io::Error::other("nobody waits for it"));
            }
            watch(done)
        });
        (filled, watch)
    });
    match filling.await {
        Ok(result) => result,
        // Blocking tasks are not aborted anywhere, so this is its own panic, passed on.
        Err(error) => std::panic::resume_unwind(error.into_panic()),
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
        let (mut blocks, inodes) = write::blocks(tree);
        // Some are left for whoever changes a copy of the image.
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

#[cfg(test)]
mod tests {
    use std::io;
    use std::os::unix::ffi::OsStrExt;

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
        let tree = Arc::new(unpack(archive.as_slice(), dir.path(), &Limits::default(), |_| Ok(())).unwrap());
        let image = dir.path().join("image");
        let options = Options {
            label: "test",
            slack: 0,
        };
        populate(&tools, &image, &tree, &options, |_| Ok(()))
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
        let tree = Arc::new(unpack(archive.as_slice(), dir.path(), &Limits::default(), |_| Ok(())).unwrap());
        let image = dir.path().join("image");
        let options = Options { label: "", slack: 0 };
        populate(&tools, &image, &tree, &options, |_| Ok(()))
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
        let tree = Arc::new(unpack(archive.as_slice(), dir.path(), &Limits::default(), |_| Ok(())).unwrap());
        let image = dir.path().join("image");
        let options = Options { label: "", slack: 0 };
        populate(&tools, &image, &tree, &options, |_| Ok(()))
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
}
