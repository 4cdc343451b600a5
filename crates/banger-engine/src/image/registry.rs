//! The registry of images and kernels: which there are, how they come to be, how they go.
//!
//! Files first, row second, when making: `images/ID/` and `kernels/NAME/` appear whole by a rename, and one without a row is
//! what a crash left ([`collect`](crate::collect)). Row first, files second, when removing: the row's transaction is where "in
//! use" is decided, so that nothing can begin to use what is going.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use banger_store::StoreError;
use banger_store::images::ImageRow;
use banger_store::kernels::KernelRow;
use jiff::Timestamp;
use tokio::sync::Mutex;

use super::kernel::{self, KernelError, KernelFiles};
use super::rootfs::{self, Rootfs, RootfsError};
use super::work::Reporter;
use super::{busybox, debian};
use crate::crash::{self, Moment, Point, Write};
use crate::error::{Error, chain};
use crate::held;
use crate::host::Host;
use crate::operation::{Operation, Progress};
use crate::vm::lifecycle::taken;
use crate::{id, name};

/// The package that Debian's current kernel for virtual machines comes with.
const DEFAULT_KERNEL_PACKAGE: &str = "linux-image-cloud-amd64";

/// Kernels are made one at a time: two images that both need the default kernel share one download.
static KERNEL_MAKING: Mutex<()> = Mutex::const_new(());

/// An image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// Its row.
    pub row: ImageRow,
    /// Names of the machines that use it.
    pub used_by: Vec<String>,
}

/// A kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kernel {
    /// Its row.
    pub row: KernelRow,
    /// Used when nothing else is named.
    pub default: bool,
}

/// What an image is made from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// An ext4 image or a tar archive of the caller's.
    File(PathBuf),
    /// Debian 12 from packages.
    Debian,
    /// A static busybox.
    Busybox,
}

impl Source {
    /// The image's name when none is given.
    pub fn default_name(&self) -> &'static str {
        match self {
            Self::File(_) => "image",
            Self::Debian => "debian",
            Self::Busybox => "busybox",
        }
    }

    /// Bytes that making it writes at once, its work's included; measured for what the releases make.
    fn writes(&self) -> u64 {
        match self {
            Self::File(path) => crate::vm::lifecycle::taken(path),
            Self::Debian => 1 << 30,
            Self::Busybox => 32 << 20,
        }
    }

    fn describe(&self) -> String {
        match self {
            Self::File(path) => {
                format!(
                    "file:{}",
                    path.file_name().map(|n| n.to_string_lossy()).unwrap_or_default()
                )
            }
            Self::Debian => "bootstrap:debian".to_owned(),
            Self::Busybox => "bootstrap:busybox".to_owned(),
        }
    }
}

/// What a kernel is made from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KernelSource {
    /// A vmlinux or vmlinuz with everything built in.
    File(PathBuf),
    /// A Debian package's name, or a `.deb` file.
    Debian(String),
}

// ---- places --------------------------------------------------------------------------------------------------------

pub(crate) fn images_dir(state: &Path) -> PathBuf {
    state.join("images")
}

pub(crate) fn kernels_dir(state: &Path) -> PathBuf {
    state.join("kernels")
}

/// Where initramfs archives are cached.
pub(crate) fn initramfs_dir(state: &Path) -> PathBuf {
    state.join("initramfs")
}

/// All directories that the engine expects in the state directory.
pub(crate) fn directories(state: &Path) -> [PathBuf; 4] {
    [
        images_dir(state),
        kernels_dir(state),
        initramfs_dir(state),
        crate::vm::state::machines_dir(state),
    ]
}

fn image_dir(state: &Path, id: &str) -> PathBuf {
    images_dir(state).join(id)
}

/// An image's root file system.
pub(crate) fn rootfs_path(state: &Path, id: &str) -> PathBuf {
    image_dir(state, id).join("rootfs.ext4")
}

/// A kernel's files.
pub(crate) fn kernel_files(state: &Path, name: &str) -> KernelFiles {
    KernelFiles::new(kernels_dir(state).join(name))
}

// ---- looking -------------------------------------------------------------------------------------------------------

/// All images, by name.
pub(crate) async fn list(host: &Host) -> Result<Vec<Image>, Error> {
    let images = host
        .store
        .read(|tx| {
            let rows = banger_store::images::list(tx)?;
            rows.into_iter()
                .map(|row| {
                    Ok(Image {
                        used_by: banger_store::images::used_by(tx, &row.id)?,
                        row,
                    })
                })
                .collect::<Result<Vec<_>, _>>()
        })
        .await?;
    Ok(images)
}

/// An image's row, by name or id.
pub(crate) async fn find(host: &Host, reference: &str) -> Result<ImageRow, Error> {
    let wanted = reference.to_owned();
    if let Some(row) = host
        .store
        .read(move |tx| banger_store::images::find(tx, &wanted))
        .await?
    {
        return Ok(row);
    }
    let all = host.store.read(banger_store::images::list).await?;
    Err(missing(
        "image",
        reference,
        all.iter().map(|row| row.name.as_str()),
    ))
}

/// One image, by name or id.
pub(crate) async fn show(host: &Host, reference: &str) -> Result<Image, Error> {
    let row = find(host, reference).await?;
    let id = row.id.clone();
    let used_by = host
        .store
        .read(move |tx| banger_store::images::used_by(tx, &id))
        .await?;
    Ok(Image { row, used_by })
}

/// All kernels, by name.
pub(crate) async fn kernels(host: &Host) -> Result<Vec<Kernel>, Error> {
    let rows = host.store.read(banger_store::kernels::list).await?;
    let default = &host.settings.default_kernel;
    Ok(rows
        .into_iter()
        .map(|row| Kernel {
            default: row.name == *default,
            row,
        })
        .collect())
}

/// A kernel's row, by name.
pub(crate) async fn find_kernel(host: &Host, name: &str) -> Result<KernelRow, Error> {
    let wanted = name.to_owned();
    if let Some(row) = host
        .store
        .read(move |tx| banger_store::kernels::find(tx, &wanted))
        .await?
    {
        return Ok(row);
    }
    let all = host.store.read(banger_store::kernels::list).await?;
    Err(missing("kernel", name, all.iter().map(|row| row.name.as_str())))
}

fn missing<'a>(what: &'static str, reference: &str, known: impl Iterator<Item = &'a str>) -> Error {
    Error::Missing {
        what,
        name: reference.chars().take(80).collect(),
        near: name::nearest(reference, known),
    }
}

// ---- removing ------------------------------------------------------------------------------------------------------

/// Removes an image that no machine uses.
pub(crate) async fn remove(host: &Host, reference: &str) -> Result<Image, Error> {
    let row = find(host, reference).await?;
    let id = row.id.clone();
    let _held = held::hold(&image_dir(&host.settings.state_dir, &id));
    let row = host
        .store
        .write(Write::ImageRemove, move |tx| {
            banger_store::images::remove(tx, &id)
        })
        .await?;
    remove_tree(&image_dir(&host.settings.state_dir, &row.id)).await;
    Ok(Image {
        row,
        used_by: Vec::new(),
    })
}

/// Removes a kernel that nothing uses.
pub(crate) async fn remove_kernel(host: &Host, name: &str) -> Result<Kernel, Error> {
    let row = find_kernel(host, name).await?;
    // Not while one of that name is being made.
    let _making = KERNEL_MAKING.lock().await;
    let _held = held::hold(&kernels_dir(&host.settings.state_dir).join(&row.name));
    let row = host
        .store
        .write(Write::KernelRemove, move |tx| {
            banger_store::kernels::remove(tx, &row.name)
        })
        .await?;
    remove_tree(&kernels_dir(&host.settings.state_dir).join(&row.name)).await;
    Ok(Kernel {
        default: row.name == host.settings.default_kernel,
        row,
    })
}

/// Without its row a directory is as good as gone; what stays is collected at the next start.
async fn remove_tree(path: &Path) {
    crash::point(Point::Moment(Moment::TreeRemoving));
    if let Err(e) = tokio::fs::remove_dir_all(path).await {
        tracing::warn!(path = %path.display(), error = %e, "left until the next start");
    }
    crash::point(Point::Moment(Moment::TreeRemoved));
}

// ---- making --------------------------------------------------------------------------------------------------------

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
    if let Source::File(path) = &source {
        check_file("root file system", path)?;
    }
    let kernel = kernel.unwrap_or_else(|| host.settings.default_kernel.clone());
    if kernel != host.settings.default_kernel {
        find_kernel(host, &kernel).await?;
    }
    let wanted = image.clone();
    let existing = host
        .store
        .read(move |tx| banger_store::images::find(tx, &wanted))
        .await?;
    if let Some(existing) = existing.filter(|row| row.name == image) {
        if replace {
            let id = existing.id.clone();
            let by = host
                .store
                .read(move |tx| banger_store::images::used_by(tx, &id))
                .await?;
            if !by.is_empty() {
                return Err(StoreError::InUse {
                    what: "image",
                    name: image,
                    by,
                }
                .into());
            }
        } else if matches!(source, Source::File(_)) {
            return Err(StoreError::Exists {
                what: "image",
                name: image,
            }
            .into());
        } else {
            let work = |progress: Progress| async move {
                progress.notice("it exists already; --replace makes it anew");
                Ok(())
            };
            return host.operations.begin(kind, &image, work).await;
        }
    }
    crate::space::demand(host, source.writes())?;
    let (making, subject) = (host.clone(), image.clone());
    host.operations
        .begin_alone(
            kind,
            &["image.register", "image.bootstrap"],
            &subject,
            move |progress| async move { make(&making, &image, &source, &kernel, replace, &progress).await },
        )
        .await
}

/// Begins to add a kernel.
pub(crate) async fn begin_kernel(
    host: &Arc<Host>,
    name: String,
    source: KernelSource,
) -> Result<Operation, Error> {
    name::kernel(&name)?;
    if let KernelSource::File(path) = &source {
        check_file("kernel", path)?;
    }
    let wanted = name.clone();
    if host
        .store
        .read(move |tx| banger_store::kernels::find(tx, &wanted))
        .await?
        .is_some()
    {
        return Err(StoreError::Exists { what: "kernel", name }.into());
    }
    let (making, subject) = (host.clone(), name.clone());
    host.operations
        .begin_alone(
            "kernel.add",
            &["kernel.add"],
            &subject,
            move |progress| async move {
                let lock = async { Ok(KERNEL_MAKING.lock().await) };
                let _making = progress.or_cancelled(lock).await?;
                make_kernel(&making, &name, &source, &progress).await
            },
        )
        .await
}

/// A path that a caller named: absolute, a regular file.
fn check_file(what: &'static str, path: &Path) -> Result<(), Error> {
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
        let made = match source {
            Source::File(path) => rootfs::from_file(&target, path, tools, &report).await,
            Source::Debian => debian::bootstrap(&target, tools, &report).await,
            Source::Busybox => busybox::bootstrap(&target, tools, &report).await,
        };
        made.map_err(|e| rootfs_error(image, source, e))
    };
    // Dropping the build removes its work directory.
    let made = progress.or_cancelled(build).await?;
    let row = image_row(&id, image, kernel, source, &made, &rootfs_path(state, &id));
    // The one before goes after its row has.
    let _former = find(host, image)
        .await
        .ok()
        .map(|former| held::hold(&image_dir(state, &former.id)));
    let inserted = host
        .store
        .write(Write::ImageInsert, move |tx| {
            let old = banger_store::images::find(tx, &row.name)?.filter(|old| old.name == row.name);
            if let Some(old) = old.as_ref().filter(|_| replace) {
                banger_store::images::remove(tx, &old.id)?;
            }
            // Without `replace`, one that somebody else made meanwhile makes this fail.
            banger_store::images::insert(tx, &row)?;
            Ok(old)
        })
        .await;
    match inserted {
        Ok(old) => {
            if let Some(old) = old {
                remove_tree(&image_dir(state, &old.id)).await;
            }
            Ok(())
        }
        Err(e) => {
            remove_tree(&target).await;
            match (&e, source) {
                (StoreError::Exists { .. }, Source::Debian | Source::Busybox) => {
                    progress.notice("somebody else made it meanwhile");
                    Ok(())
                }
                (_, Source::File(_) | Source::Debian | Source::Busybox) => Err(e.into()),
            }
        }
    }
}

fn image_row(id: &str, name: &str, kernel: &str, source: &Source, made: &Rootfs, file: &Path) -> ImageRow {
    ImageRow {
        id: id.to_owned(),
        name: name.to_owned(),
        kernel: kernel.to_owned(),
        sha256: made.sha256.to_string(),
        size: made.size,
        used: taken(file),
        source: source.describe(),
        created: Timestamp::now(),
    }
}

/// The default kernel comes by itself; others were checked before.
async fn ensure_kernel(host: &Arc<Host>, name: &str, progress: &Progress) -> Result<(), Error> {
    let _making = progress
        .or_cancelled(async { Ok(KERNEL_MAKING.lock().await) })
        .await?;
    match find_kernel(host, name).await {
        Ok(_) => Ok(()),
        Err(Error::Missing { .. }) if name == host.settings.default_kernel => {
            let source = KernelSource::Debian(DEFAULT_KERNEL_PACKAGE.to_owned());
            make_kernel(host, name, &source, progress).await
        }
        Err(e) => Err(e),
    }
}

async fn make_kernel(
    host: &Arc<Host>,
    name: &str,
    source: &KernelSource,
    progress: &Progress,
) -> Result<(), Error> {
    let target = kernels_dir(&host.settings.state_dir).join(name);
    // Published before it is entered.
    let _held = held::hold(&target);
    let report = reporter(progress);
    let build = async {
        let made = match source {
            KernelSource::File(path) => kernel::add_from_file(&target, path, None, &report).await,
            KernelSource::Debian(package) => {
                kernel::add_from_deb(&target, package, &host.settings.tool_dirs(), &report).await
            }
        };
        made.map_err(|e| kernel_error(name, source, e))
    };
    // As for images: the build may be cancelled, entering it may not.
    let made = progress.or_cancelled(build).await?;
    let row = KernelRow {
        name: name.to_owned(),
        version: made.release.unwrap_or_else(|| "unknown".to_owned()),
        format: format!("{:?}", made.format).to_lowercase(),
        sha256: made.sha256.to_string(),
        size: made.size,
        modules: u32::try_from(made.modules.len()).unwrap_or(u32::MAX),
        pvh: made.pvh,
        source: made.source,
        created: Timestamp::now(),
    };
    let inserted = host
        .store
        .write(Write::KernelInsert, move |tx| {
            banger_store::kernels::insert(tx, &row)
        })
        .await;
    if inserted.is_err() {
        remove_tree(&target).await;
    }
    Ok(inserted?)
}

/// A file that cannot be what it was given for is the caller's mistake; everything else is a failure to make.
fn kernel_error(name: &str, source: &KernelSource, e: KernelError) -> Error {
    match (&e, source) {
        (KernelError::Image { .. } | KernelError::Modules { .. }, KernelSource::File(path)) => {
            let problem = std::error::Error::source(&e).map_or_else(|| e.to_string(), chain);
            Error::BadFile {
                what: "kernel",
                path: path.clone(),
                problem,
            }
        }
        _ => Error::Make {
            what: "kernel",
            name: name.to_owned(),
            source: Box::new(e),
        },
    }
}

fn rootfs_error(name: &str, source: &Source, e: RootfsError) -> Error {
    match source {
        Source::File(path) if e.is_unusable_input() => {
            let problem = e.problem();
            Error::BadFile {
                what: "root file system",
                path: path.clone(),
                problem,
            }
        }
        Source::File(_) | Source::Debian | Source::Busybox => Error::Make {
            what: "image",
            name: name.to_owned(),
            source: Box::new(e),
        },
    }
}

/// From the steps that the making reports to the operation's stages.
fn reporter(progress: &Progress) -> Reporter {
    let progress = progress.clone();
    Reporter::new(move |step| {
        progress.stage_now(step.stage);
        progress.message(&step.message);
        if let Some(done) = step.done {
            progress.units(done, step.total);
        }
    })
}
