//! Images to files, for other tools: as OCI archives, of the blobs that they came as.
//!
//! The file is written beside its place and gets its name when it is whole, so it is there or not. An image that was not of
//! OCI has no blobs, which is said before anything begins.

use std::fs::File;
use std::io::{self, BufWriter, Write as _};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use banger_oci::{Event, Export, Reference, write_archive};
use rustix::fs::RenameFlags;

use super::{blobs, registry};
use crate::error::{Error, io};
use crate::host::Host;
use crate::limits::bytes;
use crate::operation::{Operation, Progress};

/// Begins to write an image to a file that is not there yet. The path is absolute.
pub(crate) async fn begin(host: &Arc<Host>, reference: &str, path: PathBuf) -> Result<Operation, Error> {
    let found = registry::find(host, reference).await?;
    let name = found.name();
    let Some(manifest) = found.row.digest.as_deref().and_then(blobs::digest) else {
        return Err(Error::Contradiction {
            problem: format!(
                "image {name:?} came as no OCI image ({}), and has no layers to export",
                found.row.source
            ),
            hint: "images that were pulled or imported can be exported".to_owned(),
        });
    };
    if path.symlink_metadata().is_ok() {
        return Err(exists(&path));
    }
    let names = found
        .row
        .names
        .iter()
        .filter_map(|name| Reference::parse(name).ok());
    let export = Export {
        manifest,
        // One that is called by its digest has no name to write.
        names: names.filter(|name| name.digest().is_none()).collect(),
    };
    let exporting = host.clone();
    let subject = name.clone();
    let work = move |progress: Progress| async move {
        let _at_work = exporting.blobs.at_work().await;
        progress.stage_now("write");
        let (blobs, told) = (exporting.blobs.blobs().clone(), progress.clone());
        // It hears of a cancellation with the next event, which comes with every megabyte.
        let writing = tokio::task::spawn_blocking(move || write(&path, &export, &blobs, &name, &told));
        writing.await.map_err(|source| Error::Host {
            action: "write an archive of images",
            source: Box::new(source),
        })?
    };
    host.operations.begin("image.export", &subject, work).await
}

fn exists(path: &Path) -> Error {
    Error::BadFile {
        what: "new archive",
        path: path.to_owned(),
        problem: "it is there already".to_owned(),
    }
}

fn write(
    path: &Path,
    export: &Export,
    blobs: &banger_oci::Blobs,
    name: &str,
    progress: &Progress,
) -> Result<(), Error> {
    let directory = path.parent().unwrap_or(Path::new("/"));
    // Gone with the value, unless it gets its name.
    let new = tempfile::NamedTempFile::with_prefix_in(".banger-export-", directory)
        .map_err(io("create a file in", directory))?;
    let mut out = BufWriter::with_capacity(1 << 20, new.as_file());
    let tell = |event: Event<'_>| {
        if let Event::Bytes { done, total, .. } = event {
            progress.message(&format!("{} of {} of a layer", bytes(&done), bytes(&total)));
            progress.units(done, Some(total));
        }
        match progress.is_cancelled() {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        }
    };
    write_archive(&mut out, std::slice::from_ref(export), blobs, &tell).map_err(|source| {
        match matches!(source, banger_oci::Error::Cancelled) {
            true => Error::Cancelled,
            false => Error::Oci {
                name: name.to_owned(),
                source: Box::new(source),
            },
        }
    })?;
    out.flush().map_err(io("write", path))?;
    drop(out);
    new.as_file().sync_all().map_err(io("write", path))?;
    publish(new, path)
}

/// Gives the file its name, unless there is one of that name by now.
fn publish(new: tempfile::NamedTempFile, path: &Path) -> Result<(), Error> {
    let cwd = rustix::fs::CWD;
    match rustix::fs::renameat_with(cwd, new.path(), cwd, path, RenameFlags::NOREPLACE) {
        Ok(()) => {}
        Err(rustix::io::Errno::EXIST) => return Err(exists(path)),
        Err(e) => return Err(io("write", path)(e.into())),
    }
    // What has another name now is nobody's to remove.
    let kept: io::Result<(File, PathBuf)> = new.keep().map_err(|e| e.error);
    drop(kept.map_err(io("write", path))?);
    let directory = path.parent().unwrap_or(Path::new("/"));
    File::open(directory)
        .and_then(|directory| directory.sync_all())
        .map_err(io("write", directory))
}
