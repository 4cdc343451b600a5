//! Images to files, for other tools: as OCI archives, or their root file systems as tar archives.
//!
//! The file is written beside its place and gets its name when it is whole, so it is there or not. What came as an OCI image is
//! written with the blobs that it came as. Of any other the root file system is read ([`hostkit::ext4::reader`]) and becomes one
//! layer, with the configuration that its row has: the same image gives the same digests. Its blobs are in the directory of
//! blobs until the archive is written.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use banger_oci::{
    Compression, Event, ImageConfig, Layer, Platform, Pulled, Reference, compose, write_archive,
};
use hostkit::digest::Digest;
use hostkit::ext4::reader::{Last, ReadError, Reader};
use hostkit::rootfs_tar::write::{Source, Writer};
use hostkit::rootfs_tar::{Kind, Limits};
use rustix::fs::RenameFlags;

use super::places::rootfs_path;
use super::registry::Found;
use super::{blobs, config, registered, registry};
use crate::error::{Error, io};
use crate::host::Host;
use crate::limits::bytes;
use crate::operation::{Operation, Progress};
use crate::space;

/// What an image is written as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// An OCI archive, which `docker load` reads as well.
    Oci,
    /// Its root file system as a tar archive.
    Tar,
}

/// Begins to write an image to a file that is not there yet. The path is absolute.
pub(crate) async fn begin(
    host: &Arc<Host>,
    reference: &str,
    path: PathBuf,
    format: Format,
) -> Result<Operation, Error> {
    let found = registry::find(host, reference).await?;
    if path.symlink_metadata().is_ok() {
        return Err(exists(&path));
    }
    registered::usable(host, &found.row).await?;
    let manifest = found.row.digest.as_deref().and_then(blobs::digest);
    if format == Format::Oci && manifest.is_none() {
        // The layer, before it is in the archive.
        space::demand(host, found.row.used)?;
    }
    let (exporting, subject) = (host.clone(), found.name());
    let work = move |progress: Progress| async move {
        match format {
            Format::Tar => export_tar(&exporting, found, path, progress).await,
            Format::Oci => export_oci(&exporting, found, manifest, path, progress).await,
        }
    };
    host.operations.begin("image.export", &subject, work).await
}

async fn export_tar(host: &Arc<Host>, found: Found, path: PathBuf, progress: Progress) -> Result<(), Error> {
    let rootfs = rootfs_path(&host.settings.state_dir, &found.row.id);
    progress.stage_now("write");
    // It hears of a cancellation with every file and megabyte.
    joined(move || {
        let new = New::create(&path)?;
        let written = write_tree(&rootfs, new.file.as_file(), &found.name(), &progress);
        written.map_err(|e| told(e, &progress, &path))?;
        new.publish(&path)
    })
    .await
}

async fn export_oci(
    host: &Arc<Host>,
    found: Found,
    manifest: Option<Digest>,
    path: PathBuf,
    progress: Progress,
) -> Result<(), Error> {
    let name = found.name();
    let names = found.row.names.iter();
    let names = names.filter_map(|name| Reference::parse(name).ok());
    // One that is called by its digest has no name to write.
    let names = names.filter(|name| name.digest().is_none()).collect();
    let at_work = host.blobs.at_work().await;
    let made = match manifest {
        Some(_) => None,
        None => {
            progress.stage_now("pack");
            let (blobs, progress) = (host.blobs.blobs().clone(), progress.clone());
            let rootfs = rootfs_path(&host.settings.state_dir, &found.row.id);
            Some(joined(move || make_layer(&rootfs, &found, &blobs, &progress)).await?)
        }
    };
    let written = match manifest.or(made.as_ref().map(|made| made.manifest)) {
        Some(manifest) => {
            let export = banger_oci::Export { manifest, names };
            let (blobs, progress) = (host.blobs.blobs().clone(), progress.clone());
            progress.stage_now("write");
            // It hears of a cancellation with the next event, which comes with every megabyte.
            joined(move || write(&path, &export, &blobs, &name, &progress)).await
        }
        None => Ok(()),
    };
    drop(at_work);
    if let Some(made) = made {
        let own = made.blobs().into_iter().map(|(digest, _)| digest).collect();
        // While others are at work they stay, until `gc`.
        host.blobs.remove_unused(&host.store, own).await?;
    }
    written
}

async fn joined<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    let joined = tokio::task::spawn_blocking(work).await;
    joined.map_err(|source| Error::Host {
        action: "write an archive of images",
        source: Box::new(source),
    })?
}

/// An image without layers gets one, and a manifest, in the directory of blobs.
fn make_layer(
    rootfs: &Path,
    found: &Found,
    blobs: &banger_oci::Blobs,
    progress: &Progress,
) -> Result<Pulled, Error> {
    let failed = |source: Box<dyn std::error::Error + Send + Sync>| Error::Make {
        what: "layer of image",
        name: found.name(),
        source,
    };
    let (reading, writing) = io::pipe().map_err(|e| failed(e.into()))?;
    let (adopted, written) = std::thread::scope(|scope| {
        // Its end of the pipe goes with it, so that the other side comes to its end.
        let writer = scope.spawn(move || write_tree(rootfs, writing, "", progress).map(drop));
        let adopted = blobs.adopt(reading, None, u64::MAX, |_| match progress.is_cancelled() {
            true => Err(io::ErrorKind::Interrupted.into()),
            false => Ok(()),
        });
        (adopted, writer.join())
    });
    let written = written.unwrap_or_else(|_| Err(TreeError::Write(io::ErrorKind::Other.into())));
    if progress.is_cancelled() {
        return Err(Error::Cancelled);
    }
    // A disk that is full breaks the pipe: the cause is on the reading side, which first says so.
    let (digest, size) = adopted.map_err(|e| failed(e.into()))?;
    written.map_err(|e| failed(e.into()))?;
    let layer = Layer {
        digest,
        size,
        media_type: String::new(),
        compression: Compression::None,
        diff_id: digest,
    };
    let host = Platform::host();
    let config = config::of(&found.row).unwrap_or_else(|| ImageConfig {
        created: Some(found.row.created.to_string()),
        architecture: host.architecture,
        os: host.os,
        variant: host.variant,
        ..ImageConfig::default()
    });
    compose(blobs, &config, &[layer]).map_err(|e| failed(e.into()))
}

/// Why a root file system did not become an archive.
#[derive(Debug, thiserror::Error)]
enum TreeError {
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error("failed to write the archive")]
    Write(#[source] io::Error),
}

/// Writes a root file system as an archive.
fn write_tree<W: Write>(rootfs: &Path, out: W, name: &str, progress: &Progress) -> Result<(), TreeError> {
    let check = || match progress.is_cancelled() {
        // Not `Interrupted`, which is tried again.
        true => Err(io::Error::from(io::ErrorKind::ConnectionAborted)),
        false => Ok(()),
    };
    let reader = Reader::open(rootfs)?;
    let mut writer = Writer::new(BufWriter::with_capacity(1 << 20, out));
    let root = reader.lookup(b"", Last::Keep)?;
    let mut done = 0_u64;
    // It was made of what had these bounds, or by a guest that may have more in it than an archive.
    let limits = Limits::default();
    for entry in root.into_iter().flat_map(|root| reader.walk(root, &limits)) {
        let entry = entry?;
        let contents = match entry.node.kind {
            Kind::File { .. } => Some(reader.contents(&entry)?),
            Kind::Directory
            | Kind::Symlink { .. }
            | Kind::Link { .. }
            | Kind::CharDevice { .. }
            | Kind::BlockDevice { .. }
            | Kind::Fifo => None,
        };
        check().map_err(TreeError::Write)?;
        let watch = |written: u64| {
            progress.message(&format!("{name} {}", bytes(&(done + written))));
            check()
        };
        let source = contents.as_ref().map(|contents| contents as &dyn Source);
        let written = writer.entry(&entry.path, &entry.node, source, watch);
        written.map_err(TreeError::Write)?;
        if let Kind::File { data, .. } = entry.node.kind {
            done += data;
        }
    }
    writer.finish().map(drop).map_err(TreeError::Write)
}

fn told(error: TreeError, progress: &Progress, path: &Path) -> Error {
    match error {
        _ if progress.is_cancelled() => Error::Cancelled,
        TreeError::Read(source) => Error::Make {
            what: "archive",
            name: path.display().to_string(),
            source: Box::new(source),
        },
        TreeError::Write(source) => io("write", path)(source),
    }
}

fn exists(path: &Path) -> Error {
    Error::BadFile {
        what: "new archive",
        path: path.to_owned(),
        problem: "it is there already".to_owned(),
    }
}

/// A file that is gone with the value, unless it gets its name.
struct New {
    file: tempfile::NamedTempFile,
}

impl New {
    fn create(path: &Path) -> Result<Self, Error> {
        let directory = path.parent().unwrap_or(Path::new("/"));
        let file = tempfile::NamedTempFile::with_prefix_in(".banger-export-", directory)
            .map_err(io("create a file in", directory))?;
        Ok(Self { file })
    }

    /// Gives the file its name, unless there is one of that name by now.
    fn publish(self, path: &Path) -> Result<(), Error> {
        self.file.as_file().sync_all().map_err(io("write", path))?;
        let cwd = rustix::fs::CWD;
        match rustix::fs::renameat_with(cwd, self.file.path(), cwd, path, RenameFlags::NOREPLACE) {
            Ok(()) => {}
            Err(rustix::io::Errno::EXIST) => return Err(exists(path)),
            Err(e) => return Err(io("write", path)(e.into())),
        }
        // What has another name now is nobody's to remove.
        let kept: io::Result<(File, PathBuf)> = self.file.keep().map_err(|e| e.error);
        drop(kept.map_err(io("write", path))?);
        let directory = path.parent().unwrap_or(Path::new("/"));
        File::open(directory)
            .and_then(|directory| directory.sync_all())
            .map_err(io("write", directory))
    }
}

fn write(
    path: &Path,
    export: &banger_oci::Export,
    blobs: &banger_oci::Blobs,
    name: &str,
    progress: &Progress,
) -> Result<(), Error> {
    let new = New::create(path)?;
    let mut out = BufWriter::with_capacity(1 << 20, new.file.as_file());
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
    new.publish(path)
}
