//! `image.promote`: a registered file becomes Banger's own, so that the user's may go.
//!
//! ```text
//!   images/.bgr-tmp-X/rootfs.ext4    copied beside (blocks shared where the host can), read-only, its digest is the row's
//!   images/ID/rootfs.ext4            the link, until the copy takes its place in one step
//!   the row                          says so; a daemon that died before finds it out (`registered::settle`)
//! ```
//!
//! Machines that run keep the file that they have open; the next start has the copy, which is the same. The copy is what is
//! digested, so nothing that happens to the user's file meanwhile gets in.

use std::fs::{self, File, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use banger_store::StoreError;
use banger_store::images::{ImageRow, RegisteredFile};
use hostkit::digest::Digest;

use super::make::MAKERS;
use super::places::{image_dir, rootfs_path};
use super::registered;
use super::registry;
use super::work::{self, Cancel, WorkDir};
use crate::crash::{self, Moment, Point};
use crate::error::{Error, io};
use crate::host::Host;
use crate::limits::bytes;
use crate::operation::{Operation, Progress};
use crate::vm::lifecycle::taken;
use crate::{held, space};

/// Progress is told after so many bytes.
const EVERY: u64 = 32 << 20;

/// Begins to copy a registered file. One that is Banger's own already is a success.
pub(crate) async fn begin(host: &Arc<Host>, reference: &str) -> Result<Operation, Error> {
    let found = registry::find(host, reference).await?;
    let (row, subject) = (found.row.clone(), found.name());
    if registered::look(&host.settings.state_dir, &row).is_none() {
        let settling = host.clone();
        let work = move |progress: Progress| async move {
            if row.registered.is_some() {
                registered::own(&settling, &row).await?;
            }
            progress.notice("it is Banger's own already");
            Ok(())
        };
        return host.operations.begin("image.promote", &subject, work).await;
    }
    let file = registered::usable(host, &row).await?;
    // As if no block could be shared, which shows only when it is done.
    space::demand(host, taken(&file))?;
    let promoting = host.clone();
    host.operations
        .begin_alone("image.promote", MAKERS, &subject, move |progress| async move {
            promote(&promoting, &row, &progress).await
        })
        .await
}

async fn promote(host: &Arc<Host>, row: &ImageRow, progress: &Progress) -> Result<(), Error> {
    let Some(file) = row.registered.clone() else {
        return Ok(());
    };
    let state = &host.settings.state_dir;
    let (directory, target) = (image_dir(state, &row.id), rootfs_path(state, &row.id));
    let _held = held::hold(&directory);
    progress.stage_now("copy");
    let copying = {
        let (row, told, directory) = (row.clone(), progress.clone(), directory.clone());
        // Dropping it removes its work directory.
        work::blocking(move |cancel| copy(&row, &file, &directory, cancel, &told))
    };
    let (work, copied) = progress.or_cancelled(copying).await?;
    // From here on it is not cancelled: what is in the link's place must be in the row.
    let publishing = work::blocking(move |_| {
        let named = fs::rename(&copied, &target);
        let named = named.and_then(|()| File::open(&directory)?.sync_all());
        crash::point(Point::Moment(Moment::CopyPublished));
        drop(work);
        named
    });
    match publishing.await {
        Ok(()) => registered::own(host, row).await,
        // It lost its row meanwhile, and with it its directory.
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Err(gone(row)),
        Err(e) => Err(io("name", rootfs_path(state, &row.id))(e)),
    }
}

fn gone(row: &ImageRow) -> Error {
    StoreError::Missing {
        what: "image",
        name: row.name().to_owned(),
    }
    .into()
}

/// Copies the user's file beside the image, and returns the copy once it has the row's digest.
fn copy(
    row: &ImageRow,
    file: &RegisteredFile,
    directory: &Path,
    cancel: &Cancel,
    progress: &Progress,
) -> Result<(WorkDir, PathBuf), Error> {
    let work = WorkDir::beside(directory).map_err(io("create a directory beside", directory))?;
    let path = work.path().join(super::rootfs::FILE);
    let source = registered::open(row, file).map_err(io("read", &file.path))?;
    let new = File::create_new(&path).map_err(io("create", &path))?;
    let tell = |what: &str, next: &mut u64, done: u64| {
        if done >= *next {
            *next = done + EVERY;
            progress.message(&format!("{what} {} of {}", bytes(&done), bytes(&row.size)));
            progress.units(done, Some(row.size));
        }
        cancel.check()
    };
    let (mut copied, mut read) = (0, 0);
    hostkit::copy::copy(&source, &new, |done| tell("copied", &mut copied, done))
        .map_err(io("copy to", &path))?;
    let copy = File::open(&path).map_err(io("open", &path))?;
    let digest = Digest::of_reader_watched(copy, |done| tell("read", &mut read, done));
    let digest = digest.map_err(io("read", &path))?;
    if digest.to_string() != row.sha256 {
        return Err(Error::Damaged {
            of: 1,
            damaged: vec![format!(
                "{}, the file of image {:?}: its digest is sha256:{digest}, not sha256:{}",
                file.path,
                row.name(),
                row.sha256
            )],
        });
    }
    new.set_permissions(Permissions::from_mode(0o444))
        .and_then(|()| new.sync_all())
        .map_err(io("write", &path))?;
    crash::point(Point::Moment(Moment::CopySynced));
    Ok((work, path))
}
