//! OCI layouts.

use hostkit::digest::Digest;

use super::{IMAGE_LIMIT, Imported, Outcome, Task, note, shown};
use crate::config::ImageConfig;
use crate::error::Error;
use crate::image::{assemble, check_layers, check_platform, tell};
use crate::manifest::{self, Descriptor, Index, IndexEntry, Manifest, Parsed};
use crate::progress::Event;
use crate::reference::Reference;

/// Indexes in indexes.
const DEPTH: usize = 4;

impl Task<'_> {
    pub(super) fn layout(&self) -> Result<Outcome, Error> {
        let text = self
            .container
            .document("index.json")?
            .ok_or_else(|| self.lacking("index.json"))?;
        let from = self.shown();
        let Parsed::Index(index) = manifest::parse(&text, Some(crate::media::OCI_INDEX), &from)? else {
            return Err(Error::Malformed {
                what: "index.json",
                reason: "it is no index".to_owned(),
            });
        };
        let mut images: Vec<Imported> = Vec::new();
        let mut others = Vec::new();
        let mut unfit = None;
        for group in groups(index) {
            let (names, tags) = names(&group);
            match self.image(&group, &names, &tags) {
                Ok(Some(image)) => match images
                    .iter_mut()
                    .find(|there| there.image.manifest == image.manifest)
                {
                    Some(there) => {
                        there.names.extend(names);
                        there.tags.extend(tags);
                    }
                    None => images.push(Imported { image, names, tags }),
                },
                Ok(None) => note(&mut others, shown(&names, &tags)),
                Err(error @ Error::NoPlatform { .. }) => unfit = unfit.or(Some(error)),
                Err(error) => return Err(error),
            }
        }
        self.outcome(images, others, unfit)
    }

    /// The image of some entries that have one name. None if another was asked for.
    fn image(
        &self,
        group: &Index,
        names: &[Reference],
        tags: &[String],
    ) -> Result<Option<crate::Pulled>, Error> {
        let title = shown(names, tags);
        let mut digests = Vec::new();
        let mut index = None;
        let mut parsed_index = None;
        for _ in 0..DEPTH {
            let list = parsed_index.as_ref().unwrap_or(group);
            let chosen = list.select(self.platform, &title)?.descriptor.clone();
            digests.push(chosen.digest);
            let bytes = self.read(&chosen)?;
            match manifest::parse(&bytes, Some(&chosen.media_type), &title)? {
                Parsed::Index(list) => {
                    index = index.or(Some((chosen.digest, bytes)));
                    parsed_index = Some(list);
                }
                Parsed::Manifest(manifest) => {
                    digests.push(manifest.config.digest);
                    if !self.wants(names, tags, &digests) {
                        return Ok(None);
                    }
                    let config = self.read(&manifest.config)?;
                    let (image, diff_ids) = ImageConfig::parse(&config)?;
                    check_platform(&image, self.platform, &title)?;
                    check_layers(&manifest, &diff_ids)?;
                    self.layers(&manifest)?;
                    self.blobs.adopt_bytes(&config)?;
                    self.blobs.adopt_bytes(&bytes)?;
                    if let Some((_, index)) = &index {
                        self.blobs.adopt_bytes(index)?;
                    }
                    let index = index.map(|(digest, _)| digest);
                    let size = bytes.len() as u64;
                    return assemble(self.blobs, chosen.digest, size, index, &manifest).map(Some);
                }
            }
        }
        Err(Error::Malformed {
            what: "index",
            reason: format!("it is nested more than {DEPTH} deep"),
        })
    }

    fn layers(&self, manifest: &Manifest) -> Result<(), Error> {
        let mut each: Vec<(Digest, u64)> = Vec::new();
        for layer in &manifest.layers {
            if !each.contains(&(layer.digest, layer.size)) {
                each.push((layer.digest, layer.size));
            }
        }
        tell(self.progress, Event::Layers(&each))?;
        for (digest, size) in each {
            if self.blobs.size(&digest) != Some(size) {
                self.adopt(&blob_name(&digest), Some(size), Some(&digest))?;
            }
            let event = Event::Bytes {
                digest,
                done: size,
                total: size,
            };
            tell(self.progress, event)?;
        }
        Ok(())
    }

    /// A document among the blobs, verified.
    fn read(&self, descriptor: &Descriptor) -> Result<Vec<u8>, Error> {
        let name = blob_name(&descriptor.digest);
        let bytes = self
            .container
            .document(&name)?
            .ok_or_else(|| self.lacking(&name))?;
        let actual = Digest::of_bytes(&bytes);
        if actual != descriptor.digest {
            return Err(Error::Digest {
                what: "document",
                from: self.shown(),
                expected: descriptor.digest,
                actual,
            });
        }
        Ok(bytes)
    }
}

fn blob_name(digest: &Digest) -> String {
    format!("blobs/sha256/{digest}")
}

/// The entries of one image each: those of one name are for different platforms, and one that says neither what it is
/// called nor what it is for is by itself.
fn groups(index: Index) -> Vec<Index> {
    let says_nothing =
        |entry: &IndexEntry| entry.name.is_none() && entry.full_name.is_none() && entry.platform.is_none();
    let mut groups: Vec<Index> = Vec::new();
    let images = index.entries.into_iter().filter(|entry| !entry.is_attestation);
    for entry in images.take(IMAGE_LIMIT) {
        let same = |group: &&mut Index| {
            let first = group.entries.first();
            first.is_some_and(|first| {
                !says_nothing(first) && first.name == entry.name && first.full_name == entry.full_name
            })
        };
        match groups.iter_mut().find(same) {
            Some(group) if !says_nothing(&entry) => group.entries.push(entry),
            Some(_) | None => groups.push(Index { entries: vec![entry] }),
        }
    }
    groups
}

/// What the entries of a group are called: whole names, and tags.
fn names(group: &Index) -> (Vec<Reference>, Vec<String>) {
    let Some(IndexEntry { name, full_name, .. }) = group.entries.first() else {
        return Default::default();
    };
    if let Some(reference) = full_name.as_deref().and_then(|name| Reference::parse(name).ok()) {
        return (vec![reference], Vec::new());
    }
    match name.as_deref() {
        Some(name) if name.contains(['/', ':']) => match Reference::parse(name) {
            Ok(reference) => (vec![reference], Vec::new()),
            Err(_) => (Vec::new(), vec![name.to_owned()]),
        },
        Some(tag) => (Vec::new(), vec![tag.to_owned()]),
        None => Default::default(),
    }
}
