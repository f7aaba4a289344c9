//! What the store has: images, their names, and unpacked layers. Plain values; no IO.
//!
//! A catalog is never changed in place: an operation decides on a list of [`Change`]s, the index
//! writes them in one transaction, and a new catalog replaces the old.

use std::{collections::BTreeMap, sync::Arc};

use serde::{Deserialize, Serialize};

use crate::{
    digest::{Digest, ImageId},
    document::ImageDocument,
    image::{HistoryEntry, Image},
    reference::{Reference, familiar_key},
};

/// An image could not be found by what was given. Messages are Docker's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LookupError {
    #[error("No such image: {0}")]
    NotFound(String),
    #[error("multiple IDs found with provided prefix: {0}")]
    Ambiguous(String),
}

/// A layer as the index keeps it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LayerRecord {
    /// Digest of the plain archive.
    pub(crate) diff_id: Digest,
    /// Name of its directory: a number in base 36, never used twice.
    pub(crate) short: String,
    /// Bytes of its regular files.
    pub(crate) size: u64,
    /// The archive as kept for push and save.
    pub(crate) blob: Descriptor,
}

/// A blob, as manifests describe it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    pub media_type: String,
    pub digest: Digest,
    /// Bytes as stored.
    pub size: u64,
}

/// An image as the index keeps it. Its configuration is the blob of its id.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ImageRecord {
    pub(crate) id: ImageId,
    /// Manifests it was pulled or loaded by.
    pub(crate) manifests: Vec<Digest>,
    /// The image this one was made from on this machine.
    pub(crate) parent: Option<ImageId>,
    /// Nanoseconds since the epoch of the last time a name was given to it.
    pub(crate) tagged_at: i64,
}

#[derive(Debug, Clone)]
pub(crate) struct StoredImage {
    pub(crate) record: ImageRecord,
    pub(crate) document: ImageDocument,
}

/// One step from a catalog to the next.
#[derive(Debug, Clone)]
#[expect(
    clippy::large_enum_variant,
    reason = "lists of changes are short and short-lived"
)]
pub(crate) enum Change {
    PutLayer(LayerRecord),
    DropLayer(Digest),
    PutImage(ImageRecord, ImageDocument),
    DropImage(ImageId),
    /// `domain/path:tag` now names the image.
    SetTag(String, ImageId),
    DropTag(String),
    /// `domain/path@digest` was seen to be the image.
    SetDigest(String, ImageId),
    DropDigest(String),
    /// The number of the next layer directory.
    SetNextLayer(u64),
}

#[derive(Debug, Clone, Default)]
pub(crate) struct Catalog {
    layers: BTreeMap<Digest, Arc<LayerRecord>>,
    images: BTreeMap<ImageId, Arc<StoredImage>>,
    tags: BTreeMap<String, ImageId>,
    digests: BTreeMap<String, ImageId>,
    next_layer: u64,
}

impl Catalog {
    pub(crate) fn apply(&mut self, changes: Vec<Change>) {
        for change in changes {
            match change {
                Change::PutLayer(layer) => {
                    self.layers.insert(layer.diff_id.clone(), Arc::new(layer));
                }
                Change::DropLayer(diff_id) => {
                    self.layers.remove(&diff_id);
                }
                Change::PutImage(record, document) => {
                    let id = record.id.clone();
                    self.images
                        .insert(id, Arc::new(StoredImage { record, document }));
                }
                Change::DropImage(id) => {
                    self.images.remove(&id);
                }
                Change::SetTag(key, id) => {
                    self.tags.insert(key, id);
                }
                Change::DropTag(key) => {
                    self.tags.remove(&key);
                }
                Change::SetDigest(key, id) => {
                    self.digests.insert(key, id);
                }
                Change::DropDigest(key) => {
                    self.digests.remove(&key);
                }
                Change::SetNextLayer(next) => self.next_layer = next,
            }
        }
    }

    pub(crate) fn layer(&self, diff_id: &Digest) -> Option<&Arc<LayerRecord>> {
        self.layers.get(diff_id)
    }

    pub(crate) fn layers(&self) -> impl Iterator<Item = &Arc<LayerRecord>> {
        self.layers.values()
    }

    pub(crate) fn stored(&self, id: &ImageId) -> Option<&Arc<StoredImage>> {
        self.images.get(id)
    }

    pub(crate) fn stored_images(&self) -> impl Iterator<Item = &Arc<StoredImage>> {
        self.images.values()
    }

    pub(crate) fn next_layer(&self) -> u64 {
        self.next_layer
    }

    pub(crate) fn tag(&self, key: &str) -> Option<&ImageId> {
        self.tags.get(key)
    }

    pub(crate) fn digest(&self, key: &str) -> Option<&ImageId> {
        self.digests.get(key)
    }

    /// Keys of all tags of an image.
    pub(crate) fn tags_of<'a>(&'a self, id: &'a ImageId) -> impl Iterator<Item = &'a str> {
        self.tags
            .iter()
            .filter(move |(_, named)| *named == id)
            .map(|(key, _)| key.as_str())
    }

    /// Keys of all digests of an image.
    pub(crate) fn digests_of<'a>(&'a self, id: &'a ImageId) -> impl Iterator<Item = &'a str> {
        self.digests
            .iter()
            .filter(move |(_, named)| *named == id)
            .map(|(key, _)| key.as_str())
    }

    pub(crate) fn children_of<'a>(&'a self, id: &'a ImageId) -> impl Iterator<Item = &'a ImageId> {
        self.images
            .values()
            .filter(move |image| image.record.parent.as_ref() == Some(id))
            .map(|image| &image.record.id)
    }

    /// Resolves a full id, a reference, or a unique prefix of an id, in Docker's order.
    pub(crate) fn find(&self, name: &str) -> Result<&ImageId, LookupError> {
        let hex = name.strip_prefix("sha256:").unwrap_or(name);
        let is_hex = |text: &str| {
            !text.is_empty()
                && text
                    .bytes()
                    .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
        };
        let full = format!("sha256:{hex}").parse::<ImageId>();
        if let Ok(id) = full {
            let found = self.images.get_key_value(&id).map(|(id, _)| id);
            return found.ok_or_else(|| LookupError::NotFound(name.to_owned()));
        }
        if let Ok(reference) = Reference::parse(name) {
            let reference = reference.with_default_tag();
            let found = match (reference.digest(), reference.tag_key()) {
                (Some(digest), _) => self
                    .digests
                    .get(&reference.digest_key(digest))
                    // Docker finds an image by its own id behind its repository's name as well.
                    .or_else(|| {
                        self.images
                            .get_key_value(&ImageId(digest.clone()))
                            .map(|(id, _)| id)
                    }),
                (None, Some(key)) => self.tags.get(&key),
                (None, None) => None,
            };
            if let Some(id) = found {
                return Ok(id);
            }
        }
        if !is_hex(hex) {
            let shown = match Reference::parse(name) {
                Ok(reference) => reference.with_default_tag().familiar(),
                Err(_) => name.to_owned(),
            };
            return Err(LookupError::NotFound(shown));
        }
        let prefix = format!("sha256:{hex}");
        let mut matching = self
            .images
            .keys()
            .filter(|id| id.as_str().starts_with(&prefix));
        match (matching.next(), matching.next()) {
            (Some(id), None) => Ok(id),
            (Some(_), Some(_)) => Err(LookupError::Ambiguous(name.to_owned())),
            (None, _) => {
                let is_id = name.starts_with("sha256:");
                let shown = Reference::parse(name).ok().filter(|_| !is_id);
                Err(LookupError::NotFound(shown.map_or_else(
                    || name.to_owned(),
                    |reference| reference.with_default_tag().familiar(),
                )))
            }
        }
    }

    /// The image as callers see it; `None` when it or one of its layers is not there.
    pub(crate) fn image(&self, id: &ImageId) -> Option<Arc<Image>> {
        let stored = self.images.get(id)?;
        let layers: Vec<_> = stored
            .document
            .diff_ids()
            .iter()
            .map(|diff_id| self.layers.get(diff_id))
            .collect::<Option<_>>()?;
        let mut lower: Vec<String> = Vec::with_capacity(layers.len());
        for layer in layers.iter().rev() {
            // Overlay refuses one directory twice in a stack. The lower of two equal layers adds
            // nothing: whatever it shows or hides, the upper one shows or hides above it.
            if !lower.contains(&layer.short) {
                lower.push(layer.short.clone());
            }
        }
        let sizes: Vec<u64> = layers.iter().map(|layer| layer.size).collect();
        let document = stored.document.clone();
        Some(Arc::new(Image {
            id: id.clone(),
            repo_tags: self.tags_of(id).map(familiar_key).collect(),
            repo_digests: self.digests_of(id).map(familiar_key).collect(),
            size: sizes.iter().sum(),
            created: document
                .created()
                .as_ref()
                .and_then(|text| text.parse().ok()),
            lower,
            history: HistoryEntry::of(&document, &sizes),
            parent: stored.record.parent.clone(),
            tagged_at: jiff::Timestamp::from_nanosecond(stored.record.tagged_at.into()).ok(),
            config: document,
        }))
    }

    /// Drops every name whose image is not `intact`.
    pub(crate) fn dangling_names(&self, intact: impl Fn(&ImageId) -> bool) -> Vec<Change> {
        let tags = self.tags.iter().filter(|(_, id)| !intact(id));
        let digests = self.digests.iter().filter(|(_, id)| !intact(id));
        tags.map(|(key, _)| Change::DropTag(key.clone()))
            .chain(digests.map(|(key, _)| Change::DropDigest(key.clone())))
            .collect()
    }

    /// Layers that no image has.
    pub(crate) fn unused_layers(&self) -> Vec<Arc<LayerRecord>> {
        let used: std::collections::BTreeSet<&Digest> = self
            .images
            .values()
            .flat_map(|image| image.document.diff_ids())
            .collect();
        self.layers
            .values()
            .filter(|layer| !used.contains(&layer.diff_id))
            .cloned()
            .collect()
    }

    /// Every blob that something in the catalog needs.
    pub(crate) fn needed_blobs(&self) -> std::collections::BTreeSet<Digest> {
        let layers = self.layers.values().map(|layer| layer.blob.digest.clone());
        let images = self.images.values().flat_map(|image| {
            image
                .record
                .manifests
                .iter()
                .cloned()
                .chain([image.record.id.0.clone()])
        });
        layers.chain(images).collect()
    }
}
