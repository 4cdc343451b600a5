//! The registry of kernels: which there are, how they come to be, how they go.
//!
//! The same order of files and rows as for images ([`registry`](super::registry)). How a kernel is made of a file or a
//! package is [`kernel`](super::kernel).

use std::path::PathBuf;
use std::sync::Arc;

use banger_store::StoreError;
use banger_store::kernels::KernelRow;
use jiff::Timestamp;
use tokio::sync::Mutex;

use super::kernel::{self, KernelError};
use super::make::{check_file, reporter};
use super::places::kernels_dir;
use super::registry::{missing, remove_tree};
use crate::crash::Write;
use crate::error::{Error, chain};
use crate::held;
use crate::host::Host;
use crate::name;
use crate::operation::{Operation, Progress};

/// The package that Debian's current kernel for virtual machines comes with.
const DEFAULT_KERNEL_PACKAGE: &str = "linux-image-cloud-amd64";

/// Kernels are made one at a time: two images that both need the default kernel share one download.
static KERNEL_MAKING: Mutex<()> = Mutex::const_new(());

/// A kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kernel {
    /// Its row.
    pub row: KernelRow,
    /// Used when nothing else is named.
    pub default: bool,
}

/// What a kernel is made from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KernelSource {
    /// A vmlinux or vmlinuz with everything built in.
    File(PathBuf),
    /// A Debian package's name, or a `.deb` file.
    Debian(String),
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

/// The default kernel comes by itself; others were checked before.
pub(super) async fn ensure_kernel(host: &Arc<Host>, name: &str, progress: &Progress) -> Result<(), Error> {
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
