//! The image: the last stage's disk, as small as what is on it, with what the recipe says of its processes.

use std::path::PathBuf;

use banger_oci::ImageConfig;
use banger_recipe::Config;
use banger_store::images::{self, ImageRow};
use hostkit::digest::Digest;
use hostkit::ext4::{E2fsTools, shrink};

use super::cache;
use crate::engine::Engine;
use crate::error::{Error, io};
use crate::image::make::{enter, reporter, row_of};
use crate::image::places::{image_dir, rootfs_path};
use crate::image::registered;
use crate::image::registry::name_it;
use crate::image::rootfs;
use crate::image::work::{self, WorkDir};
use crate::operation::Progress;
use crate::{held, id};

/// How an image's row says that it was built: the digest of all that it depends on follows.
const SOURCE: &str = "build:";

/// What an image is made of.
pub(super) struct Disk {
    /// The image that the first stage began with.
    pub(super) image: ImageRow,
    /// What was made of it.
    pub(super) differences: Vec<PathBuf>,
    /// The state that it has by that.
    pub(super) state: Digest,
}

/// What an image says of itself, as recipes have it.
pub(super) fn config_of(row: &ImageRow) -> Config {
    let Some(image) = crate::image::config::of(row) else {
        return Config::default();
    };
    Config {
        env: image
            .variables()
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect(),
        user: image.user,
        workdir: image.workdir,
        entrypoint: image.entrypoint,
        cmd: image.cmd,
        exposed: image.exposed,
        volumes: image.volumes,
        labels: image.labels,
        stop_signal: image.stop_signal,
        shell: Vec::new(),
    }
}

fn image_config(config: &Config) -> ImageConfig {
    ImageConfig {
        env: config
            .env
            .iter()
            .map(|(name, value)| format!("{name}={value}"))
            .collect(),
        user: config.user.clone(),
        workdir: config.workdir.clone(),
        entrypoint: config.entrypoint.clone(),
        cmd: config.cmd.clone(),
        exposed: config.exposed.clone(),
        volumes: config.volumes.clone(),
        labels: config.labels.clone(),
        stop_signal: config.stop_signal.clone(),
        created: None,
        architecture: "amd64".to_owned(),
        os: "linux".to_owned(),
        variant: None,
    }
}

/// Makes the image, or finds it made, and gives it its name. Returns whether it was there.
pub(super) async fn make(
    engine: &Engine,
    disk: &Disk,
    config: &Config,
    kernel: Option<&str>,
    name: &str,
    progress: &Progress,
) -> Result<bool, Error> {
    let host = engine.host();
    let failed = |source: Box<dyn std::error::Error + Send + Sync>| Error::Make {
        what: "image",
        name: name.to_owned(),
        source,
    };
    let kernel = kernel.unwrap_or(&disk.image.kernel);
    let config = image_config(config);
    let text = serde_json::to_string(&config).map_err(|e| failed(Box::new(e)))?;
    let parts = [
        disk.state.as_bytes().as_slice(),
        kernel.as_bytes(),
        text.as_bytes(),
    ];
    let source = format!("{SOURCE}{}", Digest::of_parts(parts));
    let rows = host.store.read(images::list).await?;
    if let Some(there) = rows.into_iter().find(|row| row.source == source) {
        if !there.names.iter().any(|has| has == name) {
            name_it(host, &there.id, name, true).await?;
        }
        return Ok(true);
    }
    progress.stage_now("image");
    let state = &host.settings.state_dir;
    let id = id::new();
    let target = image_dir(state, &id);
    // Published before it is entered.
    let _held = held::hold(&target);
    let (base, tools) = (
        registered::usable(host, &disk.image).await?,
        host.settings.tool_dirs(),
    );
    let report = reporter(progress);
    let build = async {
        let scratch = WorkDir::beside(&target).map_err(io("make a directory beside", &target))?;
        let path = scratch.path().join("disk.ext4");
        let (to, differences) = (path.clone(), disk.differences.clone());
        let copied = work::blocking(move |cancel| {
            let from = std::fs::File::open(&base)?;
            hostkit::copy::copy(&from, &std::fs::File::create_new(&to)?, |_| cancel.check())?;
            cache::apply(&to, &differences, cancel)
        });
        copied.await.map_err(io("put together", &path))?;
        let tools_ = E2fsTools::find(&tools).map_err(|e| failed(Box::new(e)))?;
        shrink::shrink(&tools_, &path)
            .await
            .map_err(|e| failed(Box::new(e)))?;
        let made = rootfs::from_ext4_file(&target, &path, &tools, &report).await;
        made.map_err(|e| failed(Box::new(e)))
    };
    // Dropping the build removes its work directories.
    let made = progress.or_cancelled(build).await?;
    let row = ImageRow {
        source,
        config: Some(text),
        ..row_of(&id, kernel, &made, &rootfs_path(state, &id))
    };
    enter(host, row, Vec::new(), Some((name, true))).await?;
    Ok(false)
}
