//! The smallest image: one static program with a link for each of its commands, and a handful of files.
//!
//! It is for machines that should start at once, and for hosts that read disks slowly. There is no init in it, so the
//! agent stays the first process. The program comes from the host where it is installed, else from the Debian package.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hostkit::deb::{self, DebTools};
use hostkit::exec::{ExecError, Tool};
use hostkit::ext4::populate::Options;
use hostkit::rootfs_tar::Limits;

use super::rootfs::{self, Rootfs, RootfsError};
use super::work::{self, Reporter, WorkDir};

const PACKAGE: &str = "busybox-static";
/// The largest program that is taken, in bytes; Debian's is 2 MB.
const PROGRAM_LIMIT: u64 = 32 << 20;
/// Free space for those who change a copy of the image, in bytes.
const SLACK: u64 = 1 << 20;
/// Commands that would be taken for the init of a system that has none.
const LEFT_OUT: [&str; 3] = ["init", "linuxrc", "busybox"];

/// Why the image could not be made.
#[derive(Debug, thiserror::Error)]
pub enum BusyboxError {
    /// Neither installed nor to be had as a package.
    #[error("no static busybox is installed, and Debian's package tools to fetch one are not, either")]
    NoSource(#[source] Box<ExecError>),
    /// The package could not be fetched or unpacked.
    #[error("failed to get package {PACKAGE}")]
    Package(#[source] deb::Error),
    /// The program is not what it should be.
    #[error("{} is not a static busybox for x86-64: {reason}", path.display())]
    NotBusybox {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The program does not tell its commands.
    #[error("failed to ask {} for its commands", path.display())]
    Ask {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: Box<ExecError>,
    },
    /// A file could not be read or written.
    #[error("failed to use {}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
}

/// Makes the image as the directory `target`, of the busybox that is found in `tool_dirs`, or else fetched; see
/// [`bootstrap_of`].
pub async fn bootstrap(
    target: &Path,
    tool_dirs: &[PathBuf],
    progress: &Reporter,
) -> Result<Rootfs, RootfsError> {
    bootstrap_of(target, installed(tool_dirs).as_deref(), tool_dirs, progress).await
}

/// Makes the image as the directory `target`, of this busybox, or of the package's without one. Stages: `download`,
/// then those of [`rootfs::from_tar`].
pub async fn bootstrap_of(
    target: &Path,
    program: Option<&Path>,
    tool_dirs: &[PathBuf],
    progress: &Reporter,
) -> Result<Rootfs, RootfsError> {
    let work = rootfs::new_work(target)?;
    let program = match program {
        Some(program) => program.to_owned(),
        None => match installed(tool_dirs) {
            Some(program) => program,
            None => fetch(&work, tool_dirs, progress).await?,
        },
    };
    let bytes = read_program(&program)?;
    let commands = ask(&program).await?;
    let version = version(&program, &bytes)?;

    progress.step(
        "unpack",
        format!("laying out busybox {version} with {} commands", commands.len()),
    );
    let archive = work.path().join("busybox.tar");
    let (path, held) = (archive.clone(), work.clone());
    work::blocking(move |_| {
        // So that the directory outlives this thread when nobody waits for it any more.
        let _held = held;
        lay_out(&bytes, &commands, &version).and_then(|tar| std::fs::write(&path, tar))
    })
    .await
    .map_err(|source| BusyboxError::Io {
        path: archive.clone(),
        source,
    })?;
    let options = Options {
        label: "busybox",
        slack: SLACK,
    };
    rootfs::from_tar_in(
        work,
        target,
        &archive,
        Limits::default(),
        &options,
        tool_dirs,
        progress,
    )
    .await
}

/// A busybox on this host that runs without the host's libraries.
fn installed(dirs: &[PathBuf]) -> Option<PathBuf> {
    let path = Tool::find("busybox", dirs).ok()?.path().to_owned();
    read_program(&path).is_ok().then_some(path)
}

async fn fetch(work: &WorkDir, dirs: &[PathBuf], progress: &Reporter) -> Result<PathBuf, BusyboxError> {
    let tools = DebTools::find(dirs).map_err(|source| BusyboxError::NoSource(Box::new(source)))?;
    progress.step("download", format!("fetching {PACKAGE}"));
    let report = progress.clone();
    let deb = tools
        .download(PACKAGE, &work.path().join("deb"), move |line| {
            report.step("download", line);
        })
        .await
        .map_err(BusyboxError::Package)?;
    let root = work.path().join("package");
    tools.unpack(&deb, &root).await.map_err(BusyboxError::Package)?;
    // Where it is differs between releases.
    let found = ["bin/busybox", "usr/bin/busybox"]
        .into_iter()
        .map(|path| root.join(path))
        .find(|path| path.symlink_metadata().is_ok_and(|found| found.is_file()));
    found.ok_or(BusyboxError::NotBusybox {
        path: root,
        reason: "it is not in the package",
    })
}

fn read_program(path: &Path) -> Result<Vec<u8>, BusyboxError> {
    let io_error = |source| BusyboxError::Io {
        path: path.to_owned(),
        source,
    };
    let wrong = |reason| BusyboxError::NotBusybox {
        path: path.to_owned(),
        reason,
    };
    let metadata = std::fs::metadata(path).map_err(io_error)?;
    if !metadata.is_file() || metadata.len() > PROGRAM_LIMIT {
        return Err(wrong("it is no program of a sensible size"));
    }
    let bytes = std::fs::read(path).map_err(io_error)?;
    match hostkit::elf::program(&bytes) {
        Ok(program) if !program.x86_64 => Err(wrong("it is for another processor")),
        Ok(program) if program.interpreter => Err(wrong("it is dynamically linked")),
        Ok(_) => Ok(bytes),
        Err(_) => Err(wrong("it is not an ELF program")),
    }
}

/// The paths of its commands, such as `usr/bin/awk`. It is run on the host for that, as the list depends on how it was
/// built.
async fn ask(program: &Path) -> Result<Vec<String>, BusyboxError> {
    let ask_error = |source| BusyboxError::Ask {
        path: program.to_owned(),
        source: Box::new(source),
    };
    let tool = Tool::at(program).map_err(ask_error)?;
    let output = tool
        .command()
        .arg("--list-full")
        .timeout(Duration::from_secs(30))
        .run()
        .await
        .map_err(ask_error)?;
    let commands = parse_commands(&output.text());
    if commands.iter().any(|command| command == "bin/sh") {
        Ok(commands)
    } else {
        Err(BusyboxError::NotBusybox {
            path: program.to_owned(),
            reason: "it has no command sh",
        })
    }
}

fn parse_commands(text: &str) -> Vec<String> {
    let mut commands: Vec<String> = text
        .lines()
        .filter(|path| {
            let known = ["bin/", "sbin/", "usr/bin/", "usr/sbin/"];
            let name = known
                .iter()
                .find_map(|dir| path.strip_prefix(dir))
                .unwrap_or_default();
            let plain = |c: char| c.is_ascii_alphanumeric() || "-_.[".contains(c);
            !name.is_empty() && name.chars().all(plain) && !name.starts_with('.') && !LEFT_OUT.contains(&name)
        })
        .map(str::to_owned)
        .collect();
    commands.sort();
    commands.dedup();
    commands
}

/// From the line that it greets with, `BusyBox v1.35.0 (Debian 1:1.35.0-4)`.
fn version(path: &Path, program: &[u8]) -> Result<String, BusyboxError> {
    const BANNER: &[u8] = b"BusyBox v";
    let found = program
        .windows(BANNER.len())
        .position(|window| window == BANNER)
        .and_then(|at| {
            let rest = program.get(at + BANNER.len()..)?;
            let version: Vec<u8> = rest
                .iter()
                .copied()
                .take(32)
                .take_while(|b| b.is_ascii_digit() || *b == b'.')
                .collect();
            String::from_utf8(version)
                .ok()
                .filter(|version| !version.is_empty())
        });
    found.ok_or_else(|| BusyboxError::NotBusybox {
        path: path.to_owned(),
        reason: "it does not name itself so",
    })
}

/// The image as an archive, the same bytes for the same program.
fn lay_out(program: &[u8], commands: &[String], version: &str) -> io::Result<Vec<u8>> {
    const DIRECTORIES: [(&str, u32); 19] = [
        ("./", 0o755),
        ("bin", 0o755),
        ("dev", 0o755),
        ("etc", 0o755),
        ("home", 0o755),
        ("mnt", 0o755),
        ("opt", 0o755),
        ("proc", 0o555),
        ("root", 0o700),
        ("run", 0o755),
        ("sbin", 0o755),
        ("sys", 0o555),
        ("tmp", 0o1777),
        ("usr", 0o755),
        ("usr/bin", 0o755),
        ("usr/sbin", 0o755),
        ("var", 0o755),
        ("var/log", 0o755),
        ("var/tmp", 0o1777),
    ];
    let os_release = format!(
        "ID=busybox\nNAME=BusyBox\nPRETTY_NAME=\"BusyBox {version}\"\nVERSION_ID={version}\n\
         HOME_URL=\"https://busybox.net/\"\n"
    );
    let files: [(&str, u32, &str); 10] = [
        (
            "etc/passwd",
            0o644,
            "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/nonexistent:/bin/false\n",
        ),
        (
            "etc/group",
            0o644,
            "root:x:0:\ntty:x:5:\nwheel:x:10:root\nusers:x:100:\nnogroup:x:65534:\n",
        ),
        // Locked: a shell comes by way of the agent.
        ("etc/shadow", 0o600, "root:*:::::::\nnobody:*:::::::\n"),
        (
            "etc/profile",
            0o644,
            "export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\nexport PS1='\\u@\\h:\\w\\$ '\numask 022\n",
        ),
        ("etc/shells", 0o644, "/bin/sh\n/bin/ash\n"),
        (
            "etc/hosts",
            0o644,
            "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n",
        ),
        ("etc/resolv.conf", 0o644, ""),
        ("etc/fstab", 0o644, ""),
        ("etc/os-release", 0o644, &os_release),
        ("etc/motd", 0o644, ""),
    ];
    let mut archive = tar::Builder::new(Vec::new());
    archive.mode(tar::HeaderMode::Deterministic);
    let header = |kind, mode, size| {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1);
        header.set_size(size);
        header
    };
    for (path, mode) in DIRECTORIES {
        archive.append_data(&mut header(tar::EntryType::Directory, mode, 0), path, io::empty())?;
    }
    for (path, mode, text) in files {
        let mut header = header(tar::EntryType::Regular, mode, text.len() as u64);
        archive.append_data(&mut header, path, text.as_bytes())?;
    }
    let mut file = header(tar::EntryType::Regular, 0o755, program.len() as u64);
    archive.append_data(&mut file, "bin/busybox", program)?;
    for command in commands {
        let mut link = header(tar::EntryType::Symlink, 0o777, 0);
        archive.append_link(&mut link, command, "/bin/busybox")?;
    }
    archive.append_link(&mut header(tar::EntryType::Symlink, 0o777, 0), "var/run", "/run")?;
    archive.into_inner()
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIRS: [&str; 4] = ["/usr/sbin", "/usr/bin", "/sbin", "/bin"];

    #[test]
    fn only_plain_commands_become_links() {
        let text = "bin/sh\nbin/busybox\nsbin/init\nlinuxrc\nusr/bin/[\nusr/bin/[[\nbin/../x\n/bin/y\nbin/a b\nbin/sh\n";
        assert_eq!(parse_commands(text), ["bin/sh", "usr/bin/[", "usr/bin/[["]);
    }

    #[tokio::test]
    async fn a_real_busybox_becomes_a_small_image() {
        let dirs = DIRS.map(PathBuf::from);
        let (Some(program), Ok(e2fsck)) = (installed(&dirs), Tool::find("e2fsck", &dirs)) else {
            testkit::skip::<()>("no static busybox or no e2fsprogs on this host");
            return;
        };
        let top = tempfile::tempdir().unwrap();
        let images = top.path().join("images");
        let made = bootstrap(&images.join("one"), &dirs, &Reporter::silent())
            .await
            .unwrap();
        // Most of it is a journal that nobody has written to.
        assert!(made.size <= 12 << 20, "{} bytes", made.size);
        let taken = crate::vm::lifecycle::taken(&made.path);
        assert!(taken <= 4 << 20, "{taken} bytes taken");
        assert!(made.used < made.size);
        assert_eq!(made.os.id, "busybox");
        assert_eq!(made.init, None);
        assert!(made.suggested_name.starts_with("busybox-"));
        e2fsck.command().arg("-fn").arg(&made.path).run().await.unwrap();
        let again = bootstrap_of(&images.join("two"), Some(&program), &dirs, &Reporter::silent())
            .await
            .unwrap();
        assert_eq!((again.size, again.used), (made.size, made.used));
        assert_eq!(
            std::fs::read_dir(&images).unwrap().count(),
            2,
            "nothing unfinished is left"
        );
    }

    #[tokio::test]
    async fn other_programs_are_refused() {
        let top = tempfile::tempdir().unwrap();
        let target = top.path().join("image");
        let dirs = DIRS.map(PathBuf::from);
        let script = top.path().join("busybox");
        std::fs::write(&script, "#!/bin/sh\n").unwrap();
        let error = bootstrap_of(&target, Some(&script), &dirs, &Reporter::silent())
            .await
            .unwrap_err();
        assert!(
            matches!(&error, RootfsError::Busybox(e) if e.to_string().ends_with("it is not an ELF program")),
            "{error}"
        );
        let error = bootstrap_of(&target, Some(top.path()), &dirs, &Reporter::silent())
            .await
            .unwrap_err();
        assert!(matches!(error, RootfsError::Busybox(_)), "{error}");
        assert!(!target.exists());
    }
}
