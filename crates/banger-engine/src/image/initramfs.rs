//! The initramfs: the agent as `/init`, and the modules that a kernel needs to find its disks and its host.
//!
//! One is made per pair of agent and kernel, and kept under a name derived from its contents, so that it is made once,
//! never goes stale, and builders at the same time do no harm. It is uncompressed: unpacking would cost guest time,
//! and the smallest kernels can read nothing else. The order in which modules are loaded was settled when the kernel
//! was added, see [`super::kernel`].
//!
//! ```text
//! /init               the agent                     /dev /proc /sys    for it to mount on
//! /dev/console        its output until then         /lib/modules/*.ko  flat
//! /banger/modules     file names in load order, one a line
//! ```

use std::fs::{self, File};
use std::io::{self, BufWriter, Read};
use std::path::{Path, PathBuf};

use hostkit::cpio;
use hostkit::digest::Digest;

use super::kernel::KernelFiles;
use super::work::WorkDir;

/// Part of every key: changed whenever [`write`] lays out the same inputs differently.
const LAYOUT: &[u8] = b"banger initramfs 1";
/// The largest agent, in bytes; it is a few megabytes, and all of it stays in guest memory.
const AGENT_LIMIT: u64 = 64 << 20;

/// Why there is no initramfs.
#[derive(Debug, thiserror::Error)]
pub enum InitramfsError {
    /// The agent, a module or the list of modules cannot be read.
    #[error("failed to read {} for the initramfs", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The agent is no static x86-64 program, so the guest's kernel could not start it.
    #[error("{} is not a guest agent: {reason}", path.display())]
    NotAnAgent {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The archive cannot be laid out.
    #[error("failed to lay out the initramfs")]
    Layout(#[source] cpio::Error),
    /// The result cannot be stored.
    #[error("failed to store {}", path.display())]
    Store {
        /// Where it should go.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
}

/// An initramfs on disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Initramfs {
    /// The cpio archive, `<key>.cpio`.
    pub path: PathBuf,
    /// What it was made from.
    pub key: Digest,
    /// In bytes; also what it takes of the guest's memory while it boots.
    pub size: u64,
}

/// Gives the initramfs of `agent` and `kernel` in `dir`, made now unless it is there. It reads both inputs, which takes
/// milliseconds, to be certain that the key fits them; it blocks.
pub fn build(dir: &Path, agent: &Path, kernel: &KernelFiles) -> Result<Initramfs, InitramfsError> {
    let inputs = Inputs::read(agent, kernel)?;
    let key = inputs.key();
    let path = dir.join(format!("{key}.cpio"));
    let store_error = |source| InitramfsError::Store {
        path: path.clone(),
        source,
    };
    match fs::metadata(&path) {
        Ok(found) => {
            return Ok(Initramfs {
                size: found.len(),
                path,
                key,
            });
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(store_error(error)),
    }

    let work = WorkDir::new_in(dir).map_err(store_error)?;
    let out = BufWriter::new(File::create(work.path().join("new")).map_err(store_error)?);
    drop(write(out, &inputs.agent, &inputs.modules).map_err(InitramfsError::Layout)?);
    match work.publish("new", &path) {
        Ok(published) => published.keep(),
        // Another builder was faster; what it made is the same.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(store_error(error)),
    }
    let size = fs::metadata(&path).map_err(store_error)?.len();
    Ok(Initramfs { path, key, size })
}

/// The most bytes that the initramfs of `agent` and `kernel` takes, without reading them. What is not there counts for
/// nothing: a start says so.
pub fn size_limit(agent: &Path, kernel: &KernelFiles) -> u64 {
    /// Header, name and padding of one file (cpio(5)), and its line in the list of modules.
    const ENTRY: u64 = 1 << 10;
    /// Directories, devices, the end.
    const REST: u64 = 16 << 10;
    let of = |path: &Path| fs::metadata(path).map_or(0, |found| found.len() + ENTRY);
    let modules = kernel.modules().unwrap_or_default();
    let modules: u64 = modules.iter().map(|(_, path)| of(path)).sum();
    of(agent) + modules + REST
}

/// Where [`build`] would put the initramfs of `agent` and `kernel`. It reads both and blocks.
pub fn path_of(dir: &Path, agent: &Path, kernel: &KernelFiles) -> Result<PathBuf, InitramfsError> {
    let key = Inputs::read(agent, kernel)?.key();
    Ok(dir.join(format!("{key}.cpio")))
}

/// What an initramfs is made from.
struct Inputs {
    agent: Vec<u8>,
    /// Names and contents, in the order in which they are loaded.
    modules: Vec<(String, Vec<u8>)>,
}

impl Inputs {
    fn read(agent: &Path, kernel: &KernelFiles) -> Result<Self, InitramfsError> {
        let agent_bytes = read(agent, AGENT_LIMIT)?;
        check_agent(agent, &agent_bytes)?;
        let modules = kernel
            .modules()
            .and_then(|paths| {
                paths
                    .into_iter()
                    .map(|(name, path)| fs::read(path).map(|bytes| (name, bytes)))
                    .collect::<io::Result<Vec<_>>>()
            })
            .map_err(|source| InitramfsError::Read {
                path: kernel.modules_dir(),
                source,
            })?;

        Ok(Self {
            agent: agent_bytes,
            modules,
        })
    }

    fn key(&self) -> Digest {
        let mut parts = vec![LAYOUT, self.agent.as_slice()];
        for (name, bytes) in &self.modules {
            parts.extend([name.as_bytes(), bytes.as_slice()]);
        }
        Digest::of_parts(parts)
    }
}

fn write<W: io::Write>(out: W, agent: &[u8], modules: &[(String, Vec<u8>)]) -> Result<W, cpio::Error> {
    let mut archive = cpio::Writer::new(out);
    for directory in ["banger", "dev", "lib", "lib/modules", "proc", "sys"] {
        archive.directory(directory, 0o755)?;
    }
    archive.char_device("dev/console", 0o600, 5, 1)?;
    archive.file("init", 0o755, agent)?;
    let list: String = modules.iter().map(|(name, _)| format!("{name}\n")).collect();
    archive.file("banger/modules", 0o644, list.as_bytes())?;
    for (name, bytes) in modules {
        archive.file(&format!("lib/modules/{name}"), 0o644, bytes)?;
    }
    archive.finish()
}

fn read(path: &Path, limit: u64) -> Result<Vec<u8>, InitramfsError> {
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|file| file.take(limit + 1).read_to_end(&mut bytes))
        .and_then(|read| {
            if read as u64 > limit {
                Err(io::Error::new(
                    io::ErrorKind::FileTooLarge,
                    format!("more than {limit} bytes"),
                ))
            } else {
                Ok(bytes)
            }
        })
        .map_err(|source| InitramfsError::Read {
            path: path.to_owned(),
            source,
        })
}

/// A dynamic agent would boot to a panic in a guest without a loader, far from the cause; so it is caught here.
fn check_agent(path: &Path, bytes: &[u8]) -> Result<(), InitramfsError> {
    let wrong = |reason| {
        Err(InitramfsError::NotAnAgent {
            path: path.to_owned(),
            reason,
        })
    };
    match hostkit::elf::program(bytes) {
        Ok(program) if !program.x86_64 => wrong("it is for another processor"),
        Ok(program) if program.interpreter => wrong("it is dynamically linked"),
        Ok(_) => Ok(()),
        Err(_) => wrong("it is not an ELF program"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::kernel::tests::kernel_with_modules;

    /// This test program with its request for a loader crossed out passes for an agent.
    fn agent(dir: &Path) -> PathBuf {
        let path = dir.join("agent");
        let mut bytes = hostkit_static_elf();
        bytes.extend_from_slice(b"agent");
        fs::write(&path, bytes).unwrap();
        path
    }

    /// The smallest ELF header that says x86-64, with no segments.
    fn hostkit_static_elf() -> Vec<u8> {
        let mut elf = vec![0; 64];
        elf[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
        elf[16] = 2;
        elf[18] = 62;
        elf[52] = 64;
        elf
    }

    #[test]
    fn it_is_built_once_and_again_when_an_input_changes() {
        let top = tempfile::tempdir().unwrap();
        let dir = top.path().join("initramfs");
        let kernel = kernel_with_modules(&top.path().join("k"), &[("b.ko", b"bb"), ("a.ko", b"a")]);
        let agent = agent(top.path());

        let first = build(&dir, &agent, &kernel).unwrap();
        let bytes = fs::read(&first.path).unwrap();
        assert_eq!(bytes.len() as u64, first.size);
        let text = String::from_utf8_lossy(&bytes);
        assert!(text.contains("banger/modules\0"));
        assert!(
            text.contains("b.ko\na.ko\n"),
            "the order is the kernel's, not the alphabet's"
        );
        let written = fs::metadata(&first.path).unwrap().modified().unwrap();
        assert_eq!(build(&dir, &agent, &kernel).unwrap(), first);
        assert_eq!(fs::metadata(&first.path).unwrap().modified().unwrap(), written);
        assert_eq!(
            fs::read_dir(&dir).unwrap().count(),
            1,
            "nothing unfinished is left"
        );

        fs::write(kernel.modules_dir().join("a.ko"), "changed").unwrap();
        let second = build(&dir, &agent, &kernel).unwrap();
        assert_ne!(second.key, first.key);
        assert_eq!(path_of(&dir, &agent, &kernel).unwrap(), second.path);
    }

    #[test]
    fn builders_at_the_same_time_agree() {
        let top = tempfile::tempdir().unwrap();
        let dir = top.path().join("initramfs");
        let kernel = kernel_with_modules(&top.path().join("k"), &[]);
        let agent = agent(top.path());
        let built: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8)
                .map(|_| scope.spawn(|| build(&dir, &agent, &kernel).unwrap()))
                .collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert!(built.iter().all(|one| *one == built[0]));
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 1);
    }

    #[test]
    fn an_agent_that_could_not_start_is_refused() {
        let top = tempfile::tempdir().unwrap();
        let kernel = kernel_with_modules(&top.path().join("k"), &[]);
        let script = top.path().join("script");
        fs::write(&script, "#!/bin/sh\n").unwrap();
        let reason = |path: &Path| build(top.path(), path, &kernel).unwrap_err().to_string();
        assert!(reason(&script).ends_with("it is not an ELF program"));
        // The host's shell is; this very test may be larger than any agent.
        assert!(reason(Path::new("/bin/sh")).ends_with("dynamically linked"));
        assert!(matches!(
            build(top.path(), &top.path().join("none"), &kernel),
            Err(InitramfsError::Read { .. })
        ));
    }
}
