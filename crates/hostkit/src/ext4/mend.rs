//! Repairing a file system that was in use when its machine ended, before the next one mounts it: `e2fsck -p`, which does
//! what is safe to do without asking and gives up on the rest; and giving one a journal that has none.
//!
//! A repair holds a lock (flock(2)) on the file, and so does the program it runs, by its standard input: should we die in
//! the middle, that goes on alone, and the next repair waits for it instead of writing to the same file.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use super::E2fsTools;
use super::superblock::{self, State};
use crate::exec::{ExecError, Stream};
use crate::process::Exit;

/// Lines of a repair's output that are kept.
const LINES: usize = 8;
/// Characters of each.
const LINE: usize = 200;

/// Why a file system was not repaired.
#[derive(Debug, thiserror::Error)]
pub enum MendError {
    /// It is none, or beyond what can be looked at.
    #[error(transparent)]
    Superblock(#[from] superblock::Error),
    /// The file could not be opened or locked.
    #[error("failed to open {} for a repair", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// The kernel's word.
        source: io::Error,
    },
    /// An earlier repair, or another program, holds it.
    #[error("{} is being repaired or used by another program", path.display())]
    Busy {
        /// The file.
        path: PathBuf,
    },
    /// The damage is more than may be repaired without asking.
    #[error("{} has damage that needs a decision: {}", path.display(), said.join("; "))]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What e2fsck said last.
        said: Vec<String>,
    },
    /// e2fsck failed or was not done in time; nothing is known of the file system.
    #[error("failed to repair {}", path.display())]
    Command {
        /// The file.
        path: PathBuf,
        /// How.
        source: Box<ExecError>,
    },
}

/// Repairs the file system in `path` where its superblock says that it was not unmounted in order, or has errors. Returns
/// what was said on the way: nothing where there was nothing to do. `timeout` bounds all of it.
pub async fn mend(
    tools: &E2fsTools,
    path: &Path,
    timeout: Duration,
) -> Result<Option<Vec<String>>, MendError> {
    if superblock::check_writable(path)?.state == State::Clean {
        return Ok(None);
    }
    let end = Instant::now() + timeout;
    let locked = lock(path, end).await?;
    // Whoever held it may have done it.
    let state = superblock::check_writable(path)?.state;
    if state == State::Clean {
        return Ok(None);
    }
    let mut said = Vec::new();
    let mut command = tools.e2fsck.command().arg("-p");
    if state == State::Errors {
        // By itself it would believe a journal that says all is well.
        command = command.arg("-f");
    }
    let ran = command
        .arg(super::absolute(path).map_err(|_| no_path(path))?)
        .input_file(locked)
        .timeout(end.saturating_duration_since(Instant::now()))
        .on_line(|stream, line| {
            let line = line.trim();
            match stream {
                Stream::Stdout if !line.is_empty() && said.len() < LINES => said.push(shorten(line, path)),
                Stream::Stdout | Stream::Stderr => {}
            }
        })
        .run()
        .await;
    match ran {
        Ok(_) => Ok(Some(said)),
        // e2fsck(8): 1, errors were corrected; 2, and a system that has it mounted should be restarted; 4, errors left.
        Err(ExecError::Failed {
            exit: Exit::Code(1 | 2),
            ..
        }) => Ok(Some(said)),
        Err(ExecError::Failed {
            exit: Exit::Code(code),
            ..
        }) if code & 4 != 0 => Err(MendError::Damaged {
            path: path.to_owned(),
            said,
        }),
        Err(source) => Err(MendError::Command {
            path: path.to_owned(),
            source: Box::new(source),
        }),
    }
}

/// Gives a file system a journal of so many MiB, so that an interruption does it no harm. It must be clean and have room.
/// Returns whether it has one now.
pub async fn add_journal(tools: &E2fsTools, path: &Path, mebibytes: u32) -> Result<bool, MendError> {
    if superblock::check(path)?.journal {
        return Ok(true);
    }
    let ran = tools
        .tune2fs
        .command()
        .args(["-O", "has_journal", "-J", &format!("size={mebibytes}")])
        .arg(super::absolute(path).map_err(|_| no_path(path))?)
        .timeout(Duration::from_secs(60))
        .run()
        .await;
    match ran {
        Ok(_) => Ok(superblock::check(path)?.journal),
        // Most likely no room; it says so in prose alone.
        Err(ExecError::Failed { stderr, .. }) => {
            tracing::debug!(path = %path.display(), ?stderr, "no journal added");
            Ok(false)
        }
        Err(source) => Err(MendError::Command {
            path: path.to_owned(),
            source: Box::new(source),
        }),
    }
}

fn no_path(path: &Path) -> MendError {
    MendError::Open {
        path: path.to_owned(),
        source: io::Error::from(io::ErrorKind::InvalidFilename),
    }
}

/// e2fsck begins its lines with the file's name, which the reader knows. Labels and names in them are what somebody wrote
/// into the file system who may mean harm to a terminal.
fn shorten(line: &str, path: &Path) -> String {
    let name = path.to_string_lossy();
    line.strip_prefix(&*name)
        .and_then(|rest| rest.strip_prefix(": "))
        .unwrap_or(line)
        .chars()
        .take(LINE)
        .map(|c| if c.is_control() { '\u{fffd}' } else { c })
        .collect()
}

async fn lock(path: &Path, end: Instant) -> Result<File, MendError> {
    let failed = |source| MendError::Open {
        path: path.to_owned(),
        source,
    };
    let file = File::open(path).map_err(failed)?;
    loop {
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(file),
            Err(Errno::WOULDBLOCK | Errno::INTR) if Instant::now() < end => {
                // A lock that becomes free is no event, but for a thread that blocks and cannot be called off.
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            Err(Errno::WOULDBLOCK | Errno::INTR) => {
                return Err(MendError::Busy {
                    path: path.to_owned(),
                });
            }
            Err(error) => return Err(failed(error.into())),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;
    use crate::ext4::tests::{assert_clean, tools};
    use crate::ext4::{FEATURES, FRESH, MIN_SIZE, make_empty};

    const MINUTE: Duration = Duration::from_secs(60);

    /// Marks a file system as a machine leaves it that is killed: not clean.
    async fn interrupt(tools: &E2fsTools, path: &Path, command: &str) {
        let debugfs = tools.debugfs.command().args(["-w", "-R", command]).arg(path);
        debugfs.run().await.unwrap();
    }

    #[tokio::test]
    async fn what_was_interrupted_is_mended_and_what_is_clean_is_left_alone() {
        let Some(tools) = tools() else { return };
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        make_empty(&tools, &path, MIN_SIZE, "work").await.unwrap();
        assert_eq!(mend(&tools, &path, MINUTE).await.unwrap(), None);

        interrupt(&tools, &path, "set_super_value state 0").await;
        assert_eq!(superblock::check_writable(&path).unwrap().state, State::InUse);
        assert!(mend(&tools, &path, MINUTE).await.unwrap().is_some());
        assert_eq!(superblock::check(&path).unwrap().state, State::Clean);

        // A free block that is marked as taken is repaired, and said.
        interrupt(&tools, &path, "setb 3000").await;
        interrupt(&tools, &path, "set_super_value state 3").await;
        let said = mend(&tools, &path, MINUTE).await.unwrap().unwrap();
        assert!(!said.is_empty());
        assert!(
            said.iter()
                .all(|line| !line.contains(dir.path().to_str().unwrap())),
            "{said:?}"
        );
        assert_clean(&path).await;
    }

    #[tokio::test]
    async fn damage_beyond_that_is_an_error_that_says_what_it_is() {
        let Some(tools) = tools() else { return };
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        make_empty(&tools, &path, MIN_SIZE, "work").await.unwrap();
        // The root directory's inode, which nothing can replace without asking.
        interrupt(&tools, &path, "clri <2>").await;
        interrupt(&tools, &path, "set_super_value state 3").await;
        let error = mend(&tools, &path, MINUTE).await.unwrap_err();
        assert!(
            matches!(&error, MendError::Damaged { said, .. } if !said.is_empty()),
            "{error:?}"
        );
        std::fs::write(&path, [0; 4096]).unwrap();
        let error = mend(&tools, &path, MINUTE).await.unwrap_err();
        assert!(matches!(error, MendError::Superblock(_)), "{error}");
    }

    #[test]
    fn what_is_written_in_a_file_system_does_no_harm_to_a_terminal() {
        let path = Path::new("/state/work.img");
        assert_eq!(shorten("/state/work.img: clean", path), "clean");
        assert_eq!(shorten("a\u{1b}[2Jb: clean", path), "a\u{fffd}[2Jb: clean");
        assert_eq!(shorten(&"x".repeat(5000), path).len(), LINE);
    }

    #[tokio::test]
    async fn two_repairs_are_never_at_the_same_file() {
        let Some(tools) = tools() else { return };
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        make_empty(&tools, &path, MIN_SIZE, "work").await.unwrap();
        interrupt(&tools, &path, "set_super_value state 0").await;
        let other = File::open(&path).unwrap();
        flock(&other, FlockOperation::LockExclusive).unwrap();
        let refused = mend(&tools, &path, Duration::from_millis(100)).await.unwrap_err();
        assert!(matches!(refused, MendError::Busy { .. }), "{refused}");
        let (mended, ()) = tokio::join!(mend(&tools, &path, MINUTE), async {
            tokio::time::sleep(Duration::from_millis(50)).await;
            drop(other);
        });
        assert!(mended.unwrap().is_some());
    }

    #[tokio::test]
    async fn a_journal_is_added_where_there_is_room() {
        let Some(tools) = tools() else { return };
        let dir = tempfile::tempdir().unwrap();
        for (mebibytes, fits) in [(64_u64, true), (2, false)] {
            let path = dir.path().join(format!("{mebibytes}"));
            File::create_new(&path).unwrap().set_len(mebibytes << 20).unwrap();
            let mke2fs = tools
                .mke2fs
                .command()
                .args(["-q", "-F", "-t", "ext4", "-b", "4096", "-O", FEATURES]);
            mke2fs.args(["-E", FRESH]).arg(&path).run().await.unwrap();
            assert!(!superblock::check(&path).unwrap().journal);
            assert_eq!(add_journal(&tools, &path, 4).await.unwrap(), fits);
            assert_clean(&path).await;
        }
        // So that the helper is not taken for one that ignores its file.
        let mut magic = [0; 2];
        File::open(dir.path().join("64"))
            .unwrap()
            .read_exact_at(&mut magic, 1080)
            .unwrap();
        assert_eq!(u16::from_le_bytes(magic), 0xef53);
    }
}
