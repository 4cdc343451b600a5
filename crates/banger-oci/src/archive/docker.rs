//! Docker's archives: a list of images, each with the names of its configuration and its layers.
//!
//! They have no manifests, so one is made: the same archive gives the same digest each time, if another one than the
//! registry's. Layers are plain tar archives mostly, which makes their digests those of the configuration.

use std::collections::HashMap;

use hostkit::digest::Digest;
use serde::Deserialize;

use super::{IMAGE_LIMIT, Imported, Outcome, Task, note, shown};
use crate::LAYER_LIMIT;
use crate::config::ImageConfig;
use crate::error::Error;
use crate::image::{assemble, check_platform, compression, tell};
use crate::manifest::{Descriptor, Manifest, write_manifest};
use crate::media::{self, Compression};
use crate::progress::Event;
use crate::reference::Reference;
use crate::text::tame;

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Item {
    config: String,
    repo_tags: Option<Vec<String>>,
    layers: Option<Vec<String>>,
}

impl Task<'_> {
    pub(super) fn docker(&self) -> Result<Outcome, Error> {
        let text = self
            .container
            .document("manifest.json")?
            .ok_or_else(|| self.lacking("manifest.json"))?;
        let items: Vec<Item> = serde_json::from_slice(&text).map_err(|error| Error::Malformed {
            what: "manifest.json",
            reason: tame(&error.to_string(), 200),
        })?;
        let mut images = Vec::new();
        let mut others = Vec::new();
        let mut unfit = None;
        // Archives with several images have what they share once.
        let mut known = HashMap::new();
        for item in items.into_iter().take(IMAGE_LIMIT) {
            let texts = item.repo_tags.unwrap_or_default();
            let names: Vec<_> = texts
                .iter()
                .filter_map(|text| Reference::parse(text).ok())
                .collect();
            let layers = item.layers.unwrap_or_default();
            match self.docker_image(&item.config, &layers, &names, &mut known) {
                Ok(Some(image)) => images.push(Imported {
                    image,
                    names,
                    tags: Vec::new(),
                }),
                Ok(None) => note(&mut others, shown(&names, &[])),
                Err(error @ Error::NoPlatform { .. }) => unfit = unfit.or(Some(error)),
                Err(error) => return Err(error),
            }
        }
        self.outcome(images, others, unfit)
    }

    fn docker_image(
        &self,
        config_name: &str,
        layers: &[String],
        names: &[Reference],
        known: &mut HashMap<String, (Digest, u64)>,
    ) -> Result<Option<crate::Pulled>, Error> {
        let config = self
            .container
            .document(config_name)?
            .ok_or_else(|| self.lacking(config_name))?;
        let (image, diff_ids) = ImageConfig::parse(&config)?;
        let config_digest = Digest::of_bytes(&config);
        if !self.wants(names, &[], &[config_digest]) {
            return Ok(None);
        }
        check_platform(&image, self.platform, &shown(names, &[]))?;
        if layers.len() > LAYER_LIMIT {
            return Err(Error::TooManyLayers {
                count: layers.len(),
                limit: LAYER_LIMIT,
            });
        }
        if layers.len() != diff_ids.len() {
            return Err(Error::Malformed {
                what: "image configuration",
                reason: format!(
                    "it has {} layers and manifest.json {}",
                    diff_ids.len(),
                    layers.len()
                ),
            });
        }
        let mut each: Vec<(Digest, u64)> = Vec::new();
        for (name, diff_id) in layers.iter().zip(&diff_ids) {
            let size = self.container.reader(name)?.map(|(_, size)| size);
            let entry = (*diff_id, size.ok_or_else(|| self.lacking(name))?);
            if !each.contains(&entry) {
                each.push(entry);
            }
        }
        tell(self.progress, Event::Layers(&each))?;
        let mut descriptors = Vec::new();
        for (name, diff_id) in layers.iter().zip(&diff_ids) {
            descriptors.push(self.docker_layer(name, diff_id, known)?);
        }
        let manifest = Manifest {
            config: Descriptor {
                media_type: media::OCI_CONFIG.to_owned(),
                digest: self.blobs.adopt_bytes(&config)?,
                size: config.len() as u64,
            },
            layers: descriptors,
        };
        let bytes = write_manifest(&manifest.config, &manifest.layers);
        let digest = self.blobs.adopt_bytes(&bytes)?;
        assemble(self.blobs, digest, bytes.len() as u64, None, &manifest).map(Some)
    }

    fn docker_layer(
        &self,
        name: &str,
        diff_id: &Digest,
        known: &mut HashMap<String, (Digest, u64)>,
    ) -> Result<Descriptor, Error> {
        let (digest, size) = match (known.get(name), self.blobs.size(diff_id)) {
            (Some(&known), _) => known,
            // Whatever the archive has there, this is what is meant.
            (None, Some(size)) => (*diff_id, size),
            (None, None) => self.adopt(name, None, None)?,
        };
        let packed = compression(self.blobs, &digest)?;
        if packed == Compression::None && digest != *diff_id {
            // Nothing of it is kept; what it is would be garbage without a name.
            self.blobs.remove(&digest)?;
            return Err(Error::Digest {
                what: "layer",
                from: self.shown(),
                expected: *diff_id,
                actual: digest,
            });
        }
        known.insert(name.to_owned(), (digest, size));
        let event = Event::Bytes {
            digest: *diff_id,
            done: size,
            total: size,
        };
        tell(self.progress, event)?;
        Ok(Descriptor {
            media_type: packed.media_type().to_owned(),
            digest,
            size,
        })
    }
}
