//! Images from files and directories of other tools: OCI layouts and docker archives.
//!
//! Which image is meant can only be known when the archive has been read, which an archive of many is for one of them; so
//! a name that is taken, and a choice that is missing, are the operation's errors and not the call's.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use banger_oci::{Imported, Platform, read_archive};

use super::make::MAKERS;
use super::oci::{self, Kernel, Wanted, Watch};
use super::registry::refuse_taken;
use crate::error::Error;
use crate::host::Host;
use crate::name;
use crate::operation::{Operation, Progress};

/// What is to be imported.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Import {
    /// An archive, or the directory of an OCI layout; absolute.
    pub path: PathBuf,
    /// What it is to be called. Absent: as it is called there.
    pub name: Option<String>,
    /// Which, where there are several: a name, tag or digest.
    pub select: Option<String>,
    /// Absent: the default.
    pub kernel: Option<String>,
    /// Whether the name may be taken from another image.
    pub replace: bool,
}

/// Begins to import an image.
pub(crate) async fn begin(host: &Arc<Host>, import: Import) -> Result<Operation, Error> {
    check_path(&import.path)?;
    let name = match &import.name {
        Some(name) => {
            name::image(name)?;
            let name = name::familiar(name);
            refuse_taken(host, &name, import.replace).await?;
            Some(name)
        }
        None => None,
    };
    let kernel = Kernel::of(host, import.kernel.clone()).await?;
    let file = import.path.file_name().unwrap_or(import.path.as_os_str());
    let file = file.to_string_lossy().into_owned();
    let subject = name.clone().unwrap_or_else(|| file.clone());
    let importing = host.clone();
    let work = move |progress: Progress| async move {
        let Import {
            path,
            select,
            replace,
            ..
        } = import;
        let wanted = move |name| Wanted {
            name,
            kernel,
            replace,
            source: format!("file:{file}"),
        };
        import_one(&importing, path, select, name, wanted, &progress).await
    };
    host.operations
        .begin_alone("image.import", MAKERS, &subject, work)
        .await
}

async fn import_one(
    host: &Arc<Host>,
    path: PathBuf,
    select: Option<String>,
    name: Option<String>,
    wanted: impl FnOnce(String) -> Wanted,
    progress: &Progress,
) -> Result<(), Error> {
    let _at_work = host.blobs.at_work().await;
    progress.stage_now("read");
    let watch = Arc::new(Watch::new(host, progress));
    let (telling, blobs, from) = (watch.clone(), host.blobs.blobs().clone(), path.clone());
    // It hears of a cancellation with the next event, which comes with every megabyte.
    let reading = tokio::task::spawn_blocking(move || {
        let tell = |event: banger_oci::Event<'_>| telling.tell(event);
        read_archive(&from, &blobs, &Platform::host(), select.as_deref(), &tell)
    });
    let read = reading.await.map_err(|source| Error::Host {
        action: "read an archive of images",
        source: Box::new(source),
    })?;
    let images = read.map_err(|e| watch.failed(&path.display().to_string(), e))?;
    let (image, own) = choose(&path, images)?;
    let name = match (name, own) {
        (Some(name), _) => name,
        (None, Some(own)) => own,
        (None, None) => {
            return Err(Error::Contradiction {
                problem: format!("the image in {} has no name", path.display()),
                hint: "give it one: --name NAME".to_owned(),
            });
        }
    };
    progress.subject(&name);
    oci::make(host, &image, wanted(name), progress).await
}

/// The one image, with what it is called in the archive.
fn choose(path: &Path, mut images: Vec<Imported>) -> Result<(banger_oci::Pulled, Option<String>), Error> {
    let first = images.first().map(|image| image.image.manifest);
    if images.iter().any(|image| Some(image.image.manifest) != first) {
        let mut there: Vec<String> = images.iter().map(shown).collect();
        there.dedup();
        return Err(Error::Contradiction {
            problem: format!(
                "{} holds {} images: {}",
                path.display(),
                there.len(),
                there.join(", ")
            ),
            hint: "say which: --select TAG".to_owned(),
        });
    }
    let own = images
        .iter()
        .flat_map(|image| &image.names)
        .next()
        .map(banger_oci::Reference::familiar);
    match images.pop() {
        Some(image) => Ok((image.image, own)),
        // The reader gives one or says why there is none.
        None => Err(Error::Missing {
            what: "image",
            name: path.display().to_string(),
            near: None,
        }),
    }
}

fn shown(image: &Imported) -> String {
    let names = image.names.iter().map(banger_oci::Reference::familiar);
    let mut all = names.chain(image.tags.iter().cloned());
    all.next()
        .unwrap_or_else(|| format!("sha256:{}", image.image.manifest))
}

/// A path that a caller named: absolute, a file or a directory.
fn check_path(path: &Path) -> Result<(), Error> {
    let bad = |problem: &str| Error::BadFile {
        what: "image archive",
        path: path.to_owned(),
        problem: problem.to_owned(),
    };
    if !path.is_absolute() {
        return Err(bad("the path is not absolute"));
    }
    match std::fs::metadata(path) {
        Ok(found) if found.is_file() || found.is_dir() => Ok(()),
        Ok(_) => Err(bad("it is neither a file nor a directory")),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Err(Error::Missing {
            what: "file",
            name: path.display().to_string(),
            near: None,
        }),
        Err(e) => Err(bad(&e.to_string())),
    }
}
