//! Images whose layers are there: from blobs to a root file system with its row. What pulls and imports have in common.
//!
//! One that is there already is not made again: the manifest's digest says what an image is, so it only gets the name.

use std::ops::ControlFlow;
use std::sync::{Arc, Mutex, PoisonError};

use banger_oci::{Event, Pulled};
use banger_store::images::{self, BlobRow, ImageRow};
use hostkit::digest::Digest;
use hostkit::rootfs_tar::Limits;

use super::blobs::text;
use super::kernels::{default_name, ensure_kernel, find_kernel};
use super::make::{enter, reporter, row_of};
use super::places::{image_dir, rootfs_path};
use super::registry::name_it;
use super::rootfs::{self, LayerFile};
use crate::crash::{self, Moment, Point};
use crate::error::Error;
use crate::host::Host;
use crate::limits::bytes;
use crate::operation::Progress;
use crate::{held, id, space};

/// A layer's files take about so many times what it is packed to, as files and again as blocks of the file system.
const UNPACKED: u64 = 6;

/// What an image that comes from outside is to be here.
#[derive(Debug, Clone)]
pub(super) struct Wanted {
    pub(super) name: String,
    pub(super) kernel: Kernel,
    /// Whether the name may be taken from another image.
    pub(super) replace: bool,
    /// Where it comes from, as its row says it.
    pub(super) source: String,
}

/// What it boots with.
#[derive(Debug, Clone)]
pub(super) struct Kernel {
    pub(super) name: String,
    /// Somebody asked for this one: the same image with another does not do.
    asked_for: bool,
}

impl Kernel {
    /// The kernel asked for, which must be there, or the default one, which is made with the first image.
    pub(super) async fn of(host: &Host, asked_for: Option<String>) -> Result<Self, Error> {
        let configured = &host.settings.default_kernel;
        if let Some(name) = asked_for.as_ref().filter(|name| *name != configured) {
            find_kernel(host, name).await?;
        }
        Ok(Self {
            asked_for: asked_for.is_some(),
            name: match asked_for {
                Some(name) => name,
                None => default_name(host).await?,
            },
        })
    }
}

/// Makes an image of layers, or finds it made, and gives it its name. The caller is at work with the blobs.
pub(super) async fn make(
    host: &Arc<Host>,
    pulled: &Pulled,
    wanted: Wanted,
    progress: &Progress,
) -> Result<(), Error> {
    crash::point(Point::Moment(Moment::BlobsThere));
    let Wanted {
        name,
        kernel,
        replace,
        source,
    } = wanted;
    let digest = text(&pulled.manifest);
    if let Some(there) = same(host, &digest, &kernel).await? {
        if there.names.contains(&name) {
            progress.notice(format!("{name} is there already, and current"));
        } else {
            progress.notice(format!("{name} is the same image as {}", there.name()));
            name_it(host, &there.id, &name, replace).await?;
        }
        return Ok(());
    }
    ensure_kernel(host, &kernel.name, progress).await?;
    let state = &host.settings.state_dir;
    let id = id::new();
    let target = image_dir(state, &id);
    // Published before it is entered.
    let _held = held::hold(&target);
    let blobs = host.blobs.blobs();
    let layers: Vec<_> = pulled
        .layers
        .iter()
        .map(|layer| LayerFile {
            path: blobs.path(&layer.digest),
            packed: layer.size,
            diff_id: layer.diff_id,
        })
        .collect();
    let (report, tools) = (reporter(progress), host.settings.tool_dirs());
    let build = async {
        let made = rootfs::from_layers(&target, &layers, Limits::default(), &tools, &report).await;
        made.map_err(|e| Error::Make {
            what: "image",
            name: name.clone(),
            source: Box::new(e),
        })
    };
    // Dropping the build removes its work directory.
    let made = progress.or_cancelled(build).await?;
    let config = serde_json::to_string(&pulled.image).map_err(|source| Error::Make {
        what: "image",
        name: name.clone(),
        source: Box::new(source),
    })?;
    let row = ImageRow {
        source,
        digest: Some(digest),
        index_digest: pulled.index.as_ref().map(text),
        config: Some(config),
        ..row_of(&id, &kernel.name, &made, &rootfs_path(state, &id))
    };
    let blob = |(digest, size): (Digest, u64)| BlobRow {
        digest: text(&digest),
        size,
    };
    let blobs = pulled.blobs().into_iter().map(blob).collect();
    enter(host, row, blobs, Some((&name, replace))).await
}

/// An image of this manifest that does for what is wanted.
async fn same(host: &Host, digest: &str, kernel: &Kernel) -> Result<Option<ImageRow>, Error> {
    let wanted = digest.to_owned();
    let rows = host.store.read(move |tx| images::by_digest(tx, &wanted)).await?;
    Ok(rows.into_iter().find(|row| {
        let same = row.digest.as_deref() == Some(digest);
        same && (!kernel.asked_for || row.kernel == kernel.name)
    }))
}

/// Tells an operation how the layers come.
pub(super) struct Watch {
    host: Arc<Host>,
    progress: Progress,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Each layer with the bytes that are there, and those that there will be.
    layers: Vec<(Digest, u64, u64)>,
    /// Why it was stopped from here.
    error: Option<Error>,
}

impl Watch {
    pub(super) fn new(host: &Arc<Host>, progress: &Progress) -> Self {
        Self {
            host: host.clone(),
            progress: progress.clone(),
            state: Mutex::default(),
        }
    }

    /// Takes in what has happened; called from any thread.
    pub(super) fn tell(&self, event: Event<'_>) -> ControlFlow<()> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        match event {
            Event::Layers(layers) => {
                let blobs = self.host.blobs.blobs();
                let part = |digest: &Digest| blobs.size(digest).unwrap_or_default();
                state.layers = layers
                    .iter()
                    .map(|(digest, total)| (*digest, part(digest), *total))
                    .collect();
                if let Err(error) = space::demand(&self.host, needed(&state.layers)) {
                    state.error = Some(error);
                    return ControlFlow::Break(());
                }
                self.progress.stage_now("download");
            }
            Event::Bytes { digest, done, total } => {
                match state.layers.iter_mut().find(|(of, ..)| *of == digest) {
                    Some((_, there, _)) => *there = done,
                    None => state.layers.push((digest, done, total)),
                }
            }
            Event::Again { registry, why, after } => {
                let seconds = after.as_secs_f32();
                self.progress
                    .message(&format!("{registry}: {why}; again in {seconds:.1} s"));
                return self.verdict();
            }
            Event::NextSource { registry, why } => {
                self.progress
                    .notice(format!("the mirror {registry} did not help: {why}"));
                return self.verdict();
            }
            Event::Step { done } => {
                self.progress.message(&bytes(&done));
                return self.verdict();
            }
        }
        let (message, done, total) = summary(&state.layers);
        self.progress.message(&message);
        self.progress.units(done, Some(total));
        self.verdict()
    }

    fn verdict(&self) -> ControlFlow<()> {
        match self.progress.is_cancelled() {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        }
    }

    /// What an error of the registry or the archive means for the operation on `name`.
    pub(super) fn failed(&self, name: &str, source: banger_oci::Error) -> Error {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        match (state.error.take(), source) {
            (Some(error), _) => error,
            (None, banger_oci::Error::Cancelled) => Error::Cancelled,
            (None, source) => Error::Oci {
                name: name.to_owned(),
                source: Box::new(source),
            },
        }
    }
}

/// What is written at once: what is still to come, and all of it unpacked.
fn needed(layers: &[(Digest, u64, u64)]) -> u64 {
    let to_come = |(_, done, total): &(_, u64, u64)| total.saturating_sub(*done);
    layers.iter().fold(0, |sum: u64, layer| {
        sum.saturating_add(to_come(layer))
            .saturating_add(layer.2.saturating_mul(UNPACKED))
    })
}

/// How far all layers are together: `2 of 5 layers, 10MiB of 31MiB`, and the bytes.
fn summary(layers: &[(Digest, u64, u64)]) -> (String, u64, u64) {
    let whole = layers.iter().filter(|(_, done, total)| done >= total).count();
    let add = |sum: u64, bytes: u64| sum.saturating_add(bytes);
    let done = layers.iter().map(|layer| layer.1).fold(0, add);
    let total = layers.iter().map(|layer| layer.2).fold(0, add);
    let message = format!(
        "{whole} of {} layers, {} of {}",
        layers.len(),
        bytes(&done),
        bytes(&total)
    );
    (message, done, total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_are_told_of_together() {
        let digest = Digest::of_bytes(b"");
        let layers = [(digest, 1 << 20, 1 << 20), (digest, 1 << 20, 3 << 20)];
        let (message, done, total) = summary(&layers);
        assert_eq!(message, "1 of 2 layers, 2MiB of 4MiB");
        assert_eq!((done, total), (2 << 20, 4 << 20));
        assert_eq!(needed(&layers), (2 << 20) + UNPACKED * (4 << 20));
        assert_eq!(needed(&[(digest, 0, u64::MAX)]), u64::MAX);
    }
}
