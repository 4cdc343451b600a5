//! The registry of kernels: which there are, how they come to be, how they go.
//!
//! The same order of files and rows as for images ([`registry`](super::registry)). How a kernel is made of a file or a
//! package is [`kernel`](super::kernel).

use std::path::PathBuf;
use std::sync::Arc;

use banger_store::kernels::KernelRow;
use banger_store::{StoreError, facts};
use jiff::Timestamp;
use tokio::sync::Mutex;

use super::kernel::{self, Follow, KernelError};
use super::make::{check_file, reporter};
use super::places::kernels_dir;
use super::registry::{missing, remove_tree};
use crate::crash::Write;
use crate::error::{Error, chain};
use crate::fetch::{self, Fetched, Pin};
use crate::held;
use crate::host::Host;
use crate::name;
use crate::operation::{Operation, Progress};

/// The package that Debian's current kernel for virtual machines comes with.
const DEFAULT_KERNEL_PACKAGE: &str = "linux-image-cloud-amd64";

/// The fact that says which kernel was chosen as the default.
const DEFAULT: &str = "default-kernel";
/// A downloaded kernel is no longer than this; Debian's packages with all modules are about 100 MB.
const DOWNLOAD_LIMIT: u64 = 1 << 30;
/// What is written to make a kernel of a download, in lengths of it: packages and images unpack to some six times.
const UNPACKED: u64 = 8;

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
    /// A file on a server: what [`Self::File`] may be, or a `.deb` with a kernel in it.
    Url(Pin),
}

/// Which kernel images get that name none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DefaultKernel {
    /// Its name.
    pub name: String,
    /// Somebody chose it; else it is the configured one, which is made when it is first needed.
    pub chosen: bool,
    /// Whether it is there.
    pub there: bool,
}

/// The kernel that is used where none is named.
pub(crate) async fn default_kernel(host: &Host) -> Result<DefaultKernel, Error> {
    let configured = host.settings.default_kernel.clone();
    let found = host.store.read(move |tx| {
        let chosen = facts::find(tx, DEFAULT)?;
        let is_chosen = chosen.is_some();
        let name = chosen.unwrap_or(configured);
        Ok(DefaultKernel {
            there: banger_store::kernels::find(tx, &name)?.is_some(),
            name,
            chosen: is_chosen,
        })
    });
    Ok(found.await?)
}

/// The name of [`default_kernel`].
pub(super) async fn default_name(host: &Host) -> Result<String, Error> {
    Ok(default_kernel(host).await?.name)
}

/// Chooses another default, or the configured one again. Images that are there keep theirs.
pub(crate) async fn set_default(host: &Host, name: Option<String>) -> Result<DefaultKernel, Error> {
    if let Some(name) = &name {
        // For what a misspelt one is near to; that it is there is certain only below.
        find_kernel(host, name).await?;
    }
    let change = move |tx: &banger_store::Transaction<'_>| match &name {
        None => facts::remove(tx, DEFAULT),
        Some(name) => match banger_store::kernels::find(tx, name)? {
            Some(_) => facts::replace(tx, DEFAULT, name).map(drop),
            None => Err(StoreError::Missing {
                what: "kernel",
                name: name.clone(),
            }),
        },
    };
    host.store.write(Write::KernelDefault, change).await?;
    default_kernel(host).await
}

/// All kernels, by name.
pub(crate) async fn kernels(host: &Host) -> Result<Vec<Kernel>, Error> {
    let rows = host.store.read(banger_store::kernels::list).await?;
    let default = default_name(host).await?;
    Ok(rows
        .into_iter()
        .map(|row| Kernel {
            default: row.name == default,
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

/// Removes a kernel that nothing uses. One that was chosen as the default is used: images would boot with another one
/// without a word. The configured default may go, because it comes by itself when it is needed.
pub(crate) async fn remove_kernel(host: &Host, name: &str) -> Result<Kernel, Error> {
    let row = find_kernel(host, name).await?;
    // Not while one of that name is being made.
    let _making = KERNEL_MAKING.lock().await;
    let _held = held::hold(&kernels_dir(&host.settings.state_dir).join(&row.name));
    let removed = host
        .store
        .write(Write::KernelRemove, move |tx| {
            if facts::find(tx, DEFAULT)?.as_ref() == Some(&row.name) {
                return Ok(Err(row.name));
            }
            banger_store::kernels::remove(tx, &row.name).map(Ok)
        })
        .await?;
    let row = removed.map_err(|name| Error::DefaultKernel { name })?;
    remove_tree(&kernels_dir(&host.settings.state_dir).join(&row.name)).await;
    Ok(Kernel {
        default: row.name == default_name(host).await?,
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
    match &source {
        KernelSource::File(path) => check_file("kernel", path)?,
        KernelSource::Url(pin) => fetch::check(host, pin)?,
        KernelSource::Debian(_) => {}
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
    let fetched = match source {
        KernelSource::Url(pin) => Some(download(host, name, pin, progress).await?),
        KernelSource::File(_) | KernelSource::Debian(_) => None,
    };
    let tools = host.settings.tool_dirs();
    let build = async {
        let made = match (source, &fetched) {
            (KernelSource::Url(pin), Some(fetched)) => {
                let made = kernel::add_from_download(&target, &fetched.path, &tools, &report).await;
                made.map(|made| kernel::Kernel {
                    source: pin.url.to_string(),
                    ..made
                })
            }
            (KernelSource::File(path), _) => kernel::add_from_file(&target, path, None, &report).await,
            (KernelSource::Debian(package), _) => {
                kernel::add_from_deb(&target, package, Follow::Depends, &tools, &report).await
            }
            // It is downloaded above, or there is an error by now.
            (KernelSource::Url(_), None) => return Err(Error::Cancelled),
        };
        made.map_err(|e| kernel_error(name, source, e))
    };
    // As for images: the build may be cancelled, entering it may not.
    let made = progress.or_cancelled(build).await;
    drop(fetched);
    // What was pinned and is no kernel is of no use to a second attempt either.
    if let (KernelSource::Url(pin), Ok(_) | Err(Error::BadSource { .. })) = (source, &made) {
        fetch::forget(host, pin).await;
    }
    let made = made?;
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

async fn download<'a>(
    host: &'a Arc<Host>,
    name: &str,
    pin: &Pin,
    progress: &Progress,
) -> Result<Fetched<'a>, Error> {
    let wanted = fetch::Wanted {
        what: "kernel",
        name,
        pin,
        limit: DOWNLOAD_LIMIT,
        unpacked: UNPACKED,
    };
    fetch::fetch(host, &wanted, progress).await
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
        (
            KernelError::Image { .. } | KernelError::Modules { .. } | KernelError::NoKernelInPackage { .. },
            KernelSource::Url(pin),
        ) => Error::BadSource {
            what: "kernel",
            text: pin.url.to_string(),
            problem: match std::error::Error::source(&e) {
                Some(cause) => chain(cause),
                // A package without a kernel: what it is called here says nothing to anybody.
                None => "the package holds no kernel".to_owned(),
            },
        },
        _ => Error::Make {
            what: "kernel",
            name: name.to_owned(),
            source: Box::new(e),
        },
    }
}
