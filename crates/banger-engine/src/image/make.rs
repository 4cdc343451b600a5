//! Images from files and packages: what is looked at before, the making as an operation, and how any image is entered.
//!
//! Files first, row second: `images/ID/` appears whole by a rename, and one without a row is what a crash left
//! ([`collect`](crate::collect)). [`enter`] is the one place where an image gets its row and its name, whatever it came from.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use banger_store::StoreError;
use banger_store::images::{BlobRow, ImageRow};
use jiff::Timestamp;

use super::debian::{DebianError, DebianOptions};
use super::kernels::{default_name, ensure_kernel, find_kernel};
use super::places::{image_dir, rootfs_path};
use super::registered;
use super::registry::{clear, hold_holder, move_name, remove_tree};
use super::rootfs::{self, QemuError, Rootfs, RootfsError, disk};
use super::work::Reporter;
use super::{busybox, debian};
use crate::crash::Write;
use crate::error::{Error, chain, io};
use crate::held;
use crate::host::Host;
use crate::operation::{Operation, Progress};
use crate::vm::lifecycle::taken;
use crate::{id, name};

/// Operations that make an image: one at a time of a name.
pub(super) const MAKERS: &[&str] = &[
    "image.register",
    "image.bootstrap",
    "image.pull",
    "image.import",
    "image.build",
    "image.promote",
];

/// What an image is made from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// A file of the caller's that becomes an image of Banger's own.
    File {
        /// Absolute.
        path: PathBuf,
        /// Which of a disk's; absent: found out.
        partition: Option<u32>,
    },
    /// An ext4 image of the caller's that stays where it is; without links on the way to it.
    Registered(PathBuf),
    /// A release of Debian or Ubuntu, from packages.
    Packages(DebianOptions),
    /// A static busybox.
    Busybox,
}

impl Source {
    /// The image's name when none is given.
    pub fn default_name(&self) -> String {
        match self {
            Self::File { .. } | Self::Registered(_) => "image".to_owned(),
            Self::Packages(DebianOptions {
                distribution, suite, ..
            }) => match suite {
                Some(suite) => format!("{}:{suite}", distribution.as_str()),
                None => distribution.as_str().to_owned(),
            },
            Self::Busybox => "busybox".to_owned(),
        }
    }

    /// Bytes that making it writes at once, its work's included; measured for what the releases make.
    fn writes(&self) -> u64 {
        match self {
            Self::File { path, .. } => taken(path),
            Self::Registered(_) => 0,
            Self::Packages(_) => 1 << 30,
            Self::Busybox => 32 << 20,
        }
    }

    fn describe(&self) -> String {
        match self {
            Self::File { path, .. } => {
                format!(
                    "file:{}",
                    path.file_name().map(|n| n.to_string_lossy()).unwrap_or_default()
                )
            }
            Self::Registered(path) => format!("path:{}", path.display()),
            Self::Packages(_) | Self::Busybox => format!("bootstrap:{}", self.default_name()),
        }
    }
}

/// Begins to make an image. An existing one is a success for a bootstrap and an error for a file, unless it is to be
/// replaced.
pub(crate) async fn begin(
    host: &Arc<Host>,
    kind: &'static str,
    image: String,
    source: Source,
    kernel: Option<String>,
    replace: bool,
) -> Result<Operation, Error> {
    name::image(&image)?;
    let source = match source {
        Source::File { path, partition } => of_file(host, path, partition)?,
        Source::Registered(path) => of_file(host, path, None)?,
        Source::Packages(options) => {
            debian::check(&options).map_err(|e| refused(&e))?;
            Source::Packages(options)
        }
        Source::Busybox => source,
    };
    let kernel = match kernel {
        Some(kernel) => kernel,
        None => default_name(host).await?,
    };
    if kernel != host.settings.default_kernel {
        find_kernel(host, &kernel).await?;
    }
    let image = name::familiar(&image);
    let wanted = image.clone();
    let existing = host
        .store
        .read(move |tx| banger_store::images::find(tx, &wanted))
        .await?;
    if !replace && existing.is_some_and(|row| row.names.contains(&image)) {
        if matches!(source, Source::File { .. } | Source::Registered(_)) {
            return Err(StoreError::Exists {
                what: "image",
                name: image,
            }
            .into());
        }
        let work = |progress: Progress| async move {
            progress.notice("it exists already; --replace makes it anew");
            Ok(())
        };
        return host.operations.begin(kind, &image, work).await;
    }
    let writes = match &source {
        Source::File { path, .. } if disk::form(path) == disk::Form::Qcow2 => {
            let raw = disk::writes(path, &host.settings.tool_dirs()).await;
            // As a disk, and what of it is taken.
            raw.map_err(|e| rootfs_error(&image, &source, e))?
                .saturating_mul(2)
        }
        Source::File { .. } | Source::Registered(_) | Source::Packages(_) | Source::Busybox => {
            source.writes()
        }
    };
    crate::space::demand(host, writes)?;
    let (making, subject) = (host.clone(), image.clone());
    host.operations
        .begin_alone(kind, MAKERS, &subject, move |progress| async move {
            make(&making, &image, &source, &kernel, replace, &progress).await
        })
        .await
}

/// What a caller's file is good for: an ext4 file system can stay where it is, everything else is made into one.
fn of_file(host: &Host, path: PathBuf, partition: Option<u32>) -> Result<Source, Error> {
    const WHAT: &str = "root file system";
    check_file(WHAT, &path)?;
    if !registered::can_stay(&path) {
        return Ok(Source::File { path, partition });
    }
    if partition.is_some() {
        return Err(Error::Contradiction {
            problem: format!(
                "{} is one file system, and a partition of it was asked for",
                path.display()
            ),
            hint: "leave --partition out".to_owned(),
        });
    }
    let bad = |problem: &str| Error::BadFile {
        what: WHAT,
        path: path.clone(),
        problem: problem.to_owned(),
    };
    let real = path.canonicalize().map_err(io("find", &path))?;
    if real.to_str().is_none() {
        return Err(bad("its path is not UTF-8"));
    }
    let state = &host.settings.state_dir;
    let state = state.canonicalize().map_err(io("find", state))?;
    match real.starts_with(state) {
        true => Err(bad(
            "it is in the state directory, so it is not yours to keep: copy it out of there",
        )),
        false => Ok(Source::Registered(real)),
    }
}

/// A path that a caller named: absolute, a regular file.
pub(crate) fn check_file(what: &'static str, path: &Path) -> Result<(), Error> {
    let bad = |problem: &str| Error::BadFile {
        what,
        path: path.to_owned(),
        problem: problem.to_owned(),
    };
    if !path.is_absolute() {
        return Err(bad("the path is not absolute"));
    }
    let metadata = match std::fs::metadata(path) {
        Ok(metadata) => metadata,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            return Err(Error::Missing {
                what: "file",
                name: path.display().to_string(),
                near: None,
            });
        }
        Err(e) => return Err(bad(&e.to_string())),
    };
    if metadata.is_dir() {
        return Err(bad("it is a directory"));
    }
    if !metadata.is_file() {
        return Err(bad("it is not a regular file"));
    }
    Ok(())
}

/// Builds an image, which may be cancelled at any time, and then enters it, which may not: a commit that nobody waits
/// for would make a cancelled image appear.
async fn make(
    host: &Arc<Host>,
    image: &str,
    source: &Source,
    kernel: &str,
    replace: bool,
    progress: &Progress,
) -> Result<(), Error> {
    ensure_kernel(host, kernel, progress).await?;
    let state = &host.settings.state_dir;
    let id = id::new();
    let target = image_dir(state, &id);
    // Published before it is entered.
    let _held = held::hold(&target);
    let tools = &host.settings.tool_dirs();
    let report = reporter(progress);
    let build = async {
        let own = |made| (made, None);
        let made = match source {
            Source::File { path, partition } => {
                progress.notice("the file is not needed any more: what is in it is copied");
                rootfs::from_file(&target, path, *partition, tools, &report)
                    .await
                    .map(own)
            }
            Source::Registered(path) => {
                let linked = registered::link(&target, path, tools, &report).await;
                linked.map(|(made, file)| (made, Some(file)))
            }
            Source::Packages(options) => debian::bootstrap(&target, options, tools, &report).await.map(own),
            Source::Busybox => busybox::bootstrap(&target, tools, &report).await.map(own),
        };
        made.map_err(|e| rootfs_error(image, source, e))
    };
    // Dropping the build removes its work directory.
    let (made, file) = progress.or_cancelled(build).await?;
    let row = row_of(&id, kernel, &made, &rootfs_path(state, &id));
    let row = ImageRow {
        source: source.describe(),
        used: if file.is_some() { 0 } else { row.used },
        registered: file,
        ..row
    };
    let entered = enter(host, row, Vec::new(), Some((image, replace))).await;
    match (entered, source) {
        (Err(Error::Store(StoreError::Exists { .. })), Source::Packages(_) | Source::Busybox) => {
            progress.notice("somebody else made it meanwhile");
            Ok(())
        }
        (entered, Source::File { .. } | Source::Registered(_) | Source::Packages(_) | Source::Busybox) => {
            entered
        }
    }
}

/// The row of an image that was made, with no names, and of no source.
pub(super) fn row_of(id: &str, kernel: &str, made: &Rootfs, file: &Path) -> ImageRow {
    ImageRow {
        id: id.to_owned(),
        names: Vec::new(),
        kernel: kernel.to_owned(),
        sha256: made.sha256.to_string(),
        size: made.size,
        used: taken(file),
        source: String::new(),
        created: Timestamp::now(),
        digest: None,
        index_digest: None,
        config: None,
        registered: None,
    }
}

/// Enters an image whose files are at their place, with its name, and whether that may be another's until now. What cannot
/// be entered is removed. The caller holds the files, and waits for the end: a commit that nobody waits for would make a
/// cancelled image appear.
pub(super) async fn enter(
    host: &Arc<Host>,
    row: ImageRow,
    blobs: Vec<BlobRow>,
    name: Option<(&str, bool)>,
) -> Result<(), Error> {
    let target = image_dir(&host.settings.state_dir, &row.id);
    let entered = async {
        // The one before goes after its row has.
        let _former = match name {
            Some((name, _)) => hold_holder(host, name).await?,
            None => None,
        };
        let name = name.map(|(name, replace)| (name.to_owned(), replace));
        let entering = host.store.write(Write::ImageInsert, move |tx| {
            banger_store::images::insert(tx, &row, &blobs)?;
            match name {
                // Without `replace`, one that somebody else made meanwhile makes this fail.
                Some((name, replace)) => move_name(tx, &name, &row.id, replace),
                None => Ok(None),
            }
        });
        let gone = entering.await?;
        clear(host, gone).await;
        Ok(())
    };
    let entered = entered.await;
    if entered.is_err() {
        remove_tree(&target).await;
    }
    entered
}

/// What cannot be made of packages, or not here.
fn refused(error: &DebianError) -> Error {
    match error {
        DebianError::NoKeyring { package, .. } => Error::Unavailable {
            what: "an image of these packages".to_owned(),
            fix: format!("apt-get install {package}"),
            reason: chain(error),
        },
        DebianError::Suite { .. }
        | DebianError::Mirror { .. }
        | DebianError::Package { .. }
        | DebianError::NoTool { .. }
        | DebianError::NoIds { .. }
        | DebianError::Install { .. }
        | DebianError::Io { .. } => Error::Contradiction {
            problem: chain(error),
            hint: "`banger image bootstrap --help` says what there is".to_owned(),
        },
    }
}

fn rootfs_error(name: &str, source: &Source, e: RootfsError) -> Error {
    match source {
        Source::File { path, .. } | Source::Registered(path) if e.is_unusable_input() => {
            let problem = e.problem();
            Error::BadFile {
                what: "root file system",
                path: path.clone(),
                problem,
            }
        }
        Source::File { .. } | Source::Registered(_) | Source::Packages(_) | Source::Busybox => {
            if let RootfsError::Qemu { path, source } = &e
                && matches!(**source, QemuError::Missing(_))
            {
                return Error::Unavailable {
                    what: format!("the disk in {}", path.display()),
                    reason: chain(source.as_ref()),
                    fix: "apt-get install qemu-utils".to_owned(),
                };
            }
            Error::Make {
                what: "image",
                name: name.to_owned(),
                source: Box::new(e),
            }
        }
    }
}

/// From the steps that the making reports to the operation's stages.
pub(super) fn reporter(progress: &Progress) -> Reporter {
    let progress = progress.clone();
    Reporter::new(move |step| {
        progress.stage_now(step.stage);
        progress.message(&step.message);
        if let Some(done) = step.done {
            progress.units(done, step.total);
        }
    })
}
