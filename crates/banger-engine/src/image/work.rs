//! Where slow image work happens: a temporary directory beside the target, and threads that stop when nobody waits.
//!
//! Everything that images and kernels are made from is first made in a [`WorkDir`] in the directory it will live in,
//! then synced and renamed, so that a reader sees all of it or nothing. Whoever drops the future of a step abandons the
//! step: its thread notices at the next [`Cancel::check`], the last owner of the directory removes it, and what was
//! [`Published`] in that very moment is taken back. What a killed
//! daemon leaves is recognised by its name, and by nobody's holding it, and collected at the next start.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::RenameFlags;

use crate::crash::{self, Moment, Point};
use crate::held::{self, Held};

/// How every unfinished thing is called, with random letters after it.
pub const PREFIX: &str = ".bgr-tmp-";

/// How far a slow operation has come; `done` and `total` are bytes, where they are known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Progress {
    /// The step, from a small fixed set that each operation documents.
    pub stage: &'static str,
    /// A line for people.
    pub message: String,
    /// Bytes done so far.
    pub done: Option<u64>,
    /// Bytes in all.
    pub total: Option<u64>,
}

/// Receives progress; called from any thread, a few times a second at most, and must not block.
#[derive(Clone)]
pub struct Reporter(Arc<dyn Fn(Progress) + Send + Sync>);

impl Reporter {
    /// Wraps a function.
    pub fn new(report: impl Fn(Progress) + Send + Sync + 'static) -> Self {
        Self(Arc::new(report))
    }

    /// One that tells nobody.
    #[must_use]
    pub fn silent() -> Self {
        Self::new(|_| ())
    }

    /// Reports that a step is under way.
    pub fn step(&self, stage: &'static str, message: impl Into<String>) {
        (self.0)(Progress {
            stage,
            message: message.into(),
            done: None,
            total: None,
        });
    }

    /// Reports how many bytes of a step are done.
    pub fn bytes(&self, stage: &'static str, message: impl Into<String>, done: u64, total: Option<u64>) {
        (self.0)(Progress {
            stage,
            message: message.into(),
            done: Some(done),
            total,
        });
    }
}

impl std::fmt::Debug for Reporter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Reporter")
    }
}

/// A directory for unfinished work, removed with all that is in it when its last clone is dropped.
#[derive(Debug, Clone)]
pub struct WorkDir(Arc<Owned>);

#[derive(Debug)]
struct Owned(Held);

impl Drop for Owned {
    fn drop(&mut self) {
        // A command that was just killed may still be creating files; its last process is gone within moments.
        for _ in 0..20 {
            match fs::remove_dir_all(self.0.path()) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    std::thread::sleep(std::time::Duration::from_millis(10));
                }
                Ok(()) | Err(_) => return,
            }
        }
        tracing::warn!(path = %self.0.path().display(), "unfinished work is left until the next start");
    }
}

impl WorkDir {
    /// Makes one in `parent` (which is made too where it is missing), for this user alone.
    pub fn new_in(parent: &Path) -> io::Result<Self> {
        use std::os::unix::fs::PermissionsExt;
        fs::create_dir_all(parent)?;
        let held = held::hold_made(|| {
            let made = tempfile::Builder::new()
                .prefix(PREFIX)
                .permissions(fs::Permissions::from_mode(0o700))
                .tempdir_in(parent)?;
            crash::point(Point::Moment(Moment::WorkBegun));
            Ok(made.keep())
        })?;
        Ok(Self(Arc::new(Owned(held))))
    }

    /// Makes one in the directory that `target` will be in.
    pub fn beside(target: &Path) -> io::Result<Self> {
        Self::new_in(target.parent().unwrap_or(target))
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.0.0.path()
    }

    /// Moves `name` out of here to `target` in one step, on disk when this returns. Fails with
    /// [`io::ErrorKind::AlreadyExists`] where the target exists. What is returned removes the target again unless it is
    /// kept: by whoever waits for it, so that nothing appears once nobody does.
    pub fn publish(&self, name: &str, target: &Path) -> io::Result<Published> {
        let from = self.path().join(name);
        sync_tree(&from)?;
        crash::point(Point::Moment(Moment::WorkSynced));
        let cwd = rustix::fs::CWD;
        match rustix::fs::renameat_with(cwd, &from, cwd, target, RenameFlags::NOREPLACE) {
            // A file system that cannot promise it; then only another maker at the same moment goes unnoticed.
            Err(rustix::io::Errno::INVAL) if fs::symlink_metadata(target).is_ok() => {
                return Err(io::ErrorKind::AlreadyExists.into());
            }
            Err(rustix::io::Errno::INVAL) => fs::rename(&from, target)?,
            result => result?,
        }
        let published = Published(Some(target.to_owned()));
        if let Some(parent) = target.parent() {
            File::open(parent)?.sync_all()?;
        }
        crash::point(Point::Moment(Moment::WorkPublished));
        Ok(published)
    }
}

/// Something finished at its place, removed when this is dropped without [`Published::keep`].
#[derive(Debug)]
#[must_use = "what is not kept is removed"]
pub struct Published(Option<PathBuf>);

impl Published {
    /// Leaves it where it is.
    pub fn keep(mut self) {
        self.0 = None;
    }
}

impl Drop for Published {
    fn drop(&mut self) {
        let Some(path) = self.0.take() else { return };
        let removed = if path.is_dir() {
            fs::remove_dir_all(&path)
        } else {
            fs::remove_file(&path)
        };
        if let Err(error) = removed {
            tracing::warn!(path = %path.display(), %error, "what nobody waits for cannot be removed");
        }
    }
}

/// Flushes a file, or a directory and all below it, to disk.
fn sync_tree(path: &Path) -> io::Result<()> {
    let kind = fs::symlink_metadata(path)?.file_type();
    if kind.is_dir() {
        for entry in fs::read_dir(path)? {
            sync_tree(&entry?.path())?;
        }
    }
    if kind.is_dir() || kind.is_file() {
        File::open(path)?.sync_all()
    } else {
        Ok(())
    }
}

/// Tells work on another thread that nobody waits for it any more.
#[derive(Debug, Clone, Default)]
pub struct Cancel(Arc<AtomicBool>);

impl Cancel {
    /// Fails once the work is pointless; called between small pieces of it.
    pub fn check(&self) -> io::Result<()> {
        if self.0.load(Ordering::Relaxed) {
            Err(io::Error::other("cancelled"))
        } else {
            Ok(())
        }
    }
}

/// Runs work on a thread for blocking calls. Dropping the future cancels: see [`Cancel::check`].
///
/// # Panics
/// Where the work panics.
pub async fn blocking<T: Send + 'static>(work: impl FnOnce(&Cancel) -> T + Send + 'static) -> T {
    struct CancelOnDrop(Cancel);
    impl Drop for CancelOnDrop {
        fn drop(&mut self) {
            self.0.0.store(true, Ordering::Relaxed);
        }
    }
    let guard = CancelOnDrop(Cancel::default());
    let cancel = guard.0.clone();
    match tokio::task::spawn_blocking(move || work(&cancel)).await {
        Ok(result) => result,
        // Blocking tasks are not aborted anywhere, so this is the work's own panic, passed on.
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_is_seen_whole_or_not_at_all() {
        let top = tempfile::tempdir().unwrap();
        let parent = top.path().join("images");
        let target = parent.join("one");
        {
            let work = WorkDir::new_in(&parent).unwrap();
            fs::create_dir(work.path().join("new")).unwrap();
            fs::write(work.path().join("new/file"), "x").unwrap();
            drop(work.publish("new", &target).unwrap());
            assert!(!target.exists(), "nobody kept it");
            fs::create_dir(work.path().join("new")).unwrap();
            fs::write(work.path().join("new/file"), "x").unwrap();
            work.publish("new", &target).unwrap().keep();
            fs::create_dir(work.path().join("new")).unwrap();
            let error = work.publish("new", &target).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
        }
        assert_eq!(
            fs::read_dir(&parent).unwrap().count(),
            1,
            "the work directory is gone"
        );
        assert_eq!(fs::read(target.join("file")).unwrap(), b"x");
    }

    #[test]
    fn the_last_clone_removes_the_directory_and_lets_it_go() {
        let top = tempfile::tempdir().unwrap();
        let work = WorkDir::new_in(top.path()).unwrap();
        let path = work.path().to_owned();
        let other = work.clone();
        drop(work);
        assert!(held::all().contains(&path));
        drop(other);
        assert!(!held::all().contains(&path) && !path.exists());
    }

    #[tokio::test]
    async fn dropping_the_future_cancels_the_work() {
        let (started, has_started) = tokio::sync::oneshot::channel();
        let (ended, has_ended) = tokio::sync::oneshot::channel();
        let step = blocking(move |cancel| {
            started.send(()).unwrap();
            while cancel.check().is_ok() {
                std::thread::yield_now();
            }
            ended.send(()).unwrap();
        });
        tokio::select! {
            // Not cancel-safe on purpose: losing this race is what drops the step.
            () = step => panic!("the work ends only when it is cancelled"),
            result = has_started => result.unwrap(),
        }
        has_ended.await.unwrap();
    }
}
