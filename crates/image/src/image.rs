//! An image as the rest of the node sees it.

use jiff::Timestamp;

use crate::{
    digest::{Digest, ImageId},
    document::ImageDocument,
};

/// An image whose layers are all unpacked.
#[derive(Debug, Clone)]
pub struct Image {
    pub id: ImageId,
    pub config: ImageDocument,
    /// Names with tags, as people write them (`busybox:latest`), sorted.
    pub repo_tags: Vec<String>,
    /// Names with manifest digests (`busybox@sha256:…`), sorted.
    pub repo_digests: Vec<String>,
    /// Bytes of the files of all layers.
    pub size: u64,
    pub created: Option<Timestamp>,
    /// Directories for overlay's `lowerdir`, **top first**, relative to
    /// [`ImageStore::layers_dir`](crate::ImageStore::layers_dir). A few characters each, since
    /// all mount options share one page.
    pub lower: Vec<String>,
    /// Oldest first, as in the configuration.
    pub history: Vec<HistoryEntry>,
    pub parent: Option<ImageId>,
    /// When a name was last given to it.
    pub tagged_at: Option<Timestamp>,
}

impl Image {
    /// Digests of the plain layers, lowest first (`RootFS.Layers`).
    pub fn diff_ids(&self) -> &[Digest] {
        self.config.diff_ids()
    }
}

/// One build step.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HistoryEntry {
    pub created: Option<Timestamp>,
    pub created_by: String,
    pub author: String,
    pub comment: String,
    /// Bytes of the layer that the step made; 0 when it made none.
    pub size: u64,
    pub empty_layer: bool,
}

impl HistoryEntry {
    /// `sizes` are those of the layers, lowest first.
    pub(crate) fn of(document: &ImageDocument, sizes: &[u64]) -> Vec<Self> {
        let mut sizes = sizes.iter();
        let steps = document.history().as_deref().unwrap_or_default();
        steps
            .iter()
            .map(|step| {
                let empty_layer = step.empty_layer().unwrap_or(false);
                let text = |field: &Option<String>| field.clone().unwrap_or_default();
                Self {
                    created: step.created().as_ref().and_then(|text| text.parse().ok()),
                    created_by: text(step.created_by()),
                    author: text(step.author()),
                    comment: text(step.comment()),
                    size: if empty_layer {
                        0
                    } else {
                        sizes.next().copied().unwrap_or(0)
                    },
                    empty_layer,
                }
            })
            .collect()
    }
}
