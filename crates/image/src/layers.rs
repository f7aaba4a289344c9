//! Layers on disk: making them, naming them, and restoring what is missing.

use std::{
    fs::{DirBuilder, File},
    io,
    os::unix::fs::DirBuilderExt as _,
    sync::Arc,
};

use crate::{
    blobs::TemporaryPath,
    catalog::{Catalog, Change, Descriptor, LayerRecord},
    digest::Digest,
    index::IndexError,
    store::Inner,
    unpack::{Job, UnpackError, Unpacked, unpack},
};

/// A layer could not be added.
#[derive(Debug, thiserror::Error)]
pub enum LayerError {
    #[error(transparent)]
    Unpack(#[from] UnpackError),
    #[error("{action} of layer {layer}")]
    Io {
        action: &'static str,
        layer: String,
        #[source]
        source: io::Error,
    },
    #[error("record layer")]
    Index(#[from] IndexError),
}

/// A tree that is complete and has no name yet.
pub(crate) struct PendingLayer {
    directory: TemporaryPath,
    pub(crate) unpacked: Unpacked,
}

impl Inner {
    /// Unpacks an archive below `tmp/`. Blocks.
    pub(crate) fn unpack_layer(
        &self,
        name: &str,
        archive: File,
        expected: Option<&Digest>,
        progress: &(dyn Fn(u64) + Sync),
    ) -> Result<PendingLayer, LayerError> {
        let directory = self.blobs.temporary_path("layer");
        let io_error = |action, source| LayerError::Io {
            action,
            layer: name.to_owned(),
            source,
        };
        DirBuilder::new()
            .mode(0o755)
            .create(directory.path())
            .map_err(|error| io_error("make directory", error))?;
        // The umask must not decide how the root of a container looks.
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(directory.path(), mode)
            .map_err(|error| io_error("make directory", error))?;
        let unpacked = unpack(&Job {
            layer: name,
            archive,
            target: directory.path(),
            expected,
            limits: &self.limits,
            progress,
        })?;
        if self.sync_layers {
            let opened = File::open(directory.path()).map_err(|e| io_error("sync", e))?;
            rustix::fs::syncfs(&opened).map_err(|errno| io_error("sync", errno.into()))?;
        }
        Ok(PendingLayer {
            directory,
            unpacked,
        })
    }

    /// Gives a layer its name and records it. If another was quicker, theirs is kept. Blocks.
    pub(crate) fn record_layer(
        &self,
        pending: PendingLayer,
        blob: Descriptor,
    ) -> Result<(), LayerError> {
        let PendingLayer {
            directory,
            unpacked,
        } = pending;
        let named = self.update(|catalog| {
            if catalog.layer(&unpacked.diff_id).is_some() {
                return Ok::<_, LayerError>((Vec::new(), None));
            }
            let number = catalog.next_layer();
            let short = base36(number);
            let target = self.layers_dir.join(&short);
            let io_error = |source| LayerError::Io {
                action: "naming",
                layer: unpacked.diff_id.to_string(),
                source,
            };
            // A crash between this and the index leaves a directory that the next start deletes.
            std::fs::rename(directory.path(), &target).map_err(io_error)?;
            File::open(&self.layers_dir)
                .and_then(|d| d.sync_all())
                .map_err(io_error)?;
            let layer = LayerRecord {
                diff_id: unpacked.diff_id.clone(),
                short,
                size: unpacked.size,
                blob,
            };
            Ok((
                vec![Change::PutLayer(layer), Change::SetNextLayer(number + 1)],
                Some(target),
            ))
        })?;
        if named.is_some() {
            directory.forget();
        }
        Ok(())
    }
}

/// Brings disk and catalog together after an unclean end: deletes directories and blobs that
/// nobody names, unpacks layers whose directory is gone again from their blobs, and drops images
/// that cannot be restored. Called before anybody else uses the store.
pub(crate) fn heal(inner: &Arc<Inner>) -> Result<(), IndexError> {
    let catalog = inner.catalog();
    remove_strangers(inner, &catalog);
    let mut lost = Vec::new();
    for layer in catalog.layers() {
        let directory = inner.layers_dir.join(&layer.short);
        if directory.is_dir() {
            continue;
        }
        match restore(inner, layer) {
            Ok(()) => tracing::warn!(layer = %layer.diff_id, "missing layer unpacked again"),
            Err(error) => {
                tracing::warn!(layer = %layer.diff_id, error = &error as &dyn std::error::Error, "missing layer cannot be restored");
                lost.push(layer.diff_id.clone());
            }
        }
    }
    inner.update(|catalog| {
        let mut changes: Vec<_> = lost.iter().cloned().map(Change::DropLayer).collect();
        let intact = |id: &crate::ImageId| {
            catalog.stored(id).is_some_and(|image| {
                let ids = image.document.diff_ids();
                ids.iter()
                    .all(|id| catalog.layer(id).is_some() && !lost.contains(id))
            })
        };
        for image in catalog.stored_images() {
            if !intact(&image.record.id) {
                tracing::warn!(image.id = %image.record.id, "image dropped: a layer is missing");
                changes.push(Change::DropImage(image.record.id.clone()));
            }
        }
        changes.extend(catalog.dangling_names(intact));
        Ok((changes, ()))
    })
}

fn restore(inner: &Inner, layer: &LayerRecord) -> Result<(), LayerError> {
    let io_error = |source| LayerError::Io {
        action: "restoring",
        layer: layer.diff_id.to_string(),
        source,
    };
    let archive = inner
        .blobs
        .open_blob(&layer.blob.digest)
        .map_err(io_error)?;
    let name = layer.diff_id.to_string();
    let pending = inner.unpack_layer(&name, archive, Some(&layer.diff_id), &|_| {})?;
    let target = inner.layers_dir.join(&layer.short);
    std::fs::rename(pending.directory.path(), target).map_err(io_error)?;
    pending.directory.forget();
    Ok(())
}

/// Directories without a record, and files in the blob directory that are no digests.
fn remove_strangers(inner: &Inner, catalog: &Catalog) {
    let known: std::collections::BTreeSet<&str> =
        catalog.layers().map(|layer| layer.short.as_str()).collect();
    let mut strangers = match std::fs::read_dir(&inner.layers_dir) {
        Ok(entries) => entries
            .flatten()
            .filter(|entry| {
                entry
                    .file_name()
                    .to_str()
                    .is_none_or(|name| !known.contains(name))
            })
            .map(|entry| entry.path())
            .collect(),
        Err(_) => Vec::new(),
    };
    strangers.extend(
        inner
            .blobs
            .list()
            .map(|(_, strangers)| strangers)
            .unwrap_or_default(),
    );
    for path in strangers {
        if let Err(errno) = crate::unpack::tree::remove_tree(&path) {
            tracing::warn!(path = %path.display(), %errno, "leftover not removed");
        }
    }
}

fn base36(mut number: u64) -> String {
    const DIGITS: &[u8; 36] = b"0123456789abcdefghijklmnopqrstuvwxyz";
    let mut text = Vec::new();
    loop {
        text.push(DIGITS[usize::try_from(number % 36).expect("below 36")]);
        number /= 36;
        if number == 0 {
            break;
        }
    }
    text.reverse();
    String::from_utf8(text).expect("digits are ASCII")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stay_short() {
        assert_eq!(base36(0), "0");
        assert_eq!(base36(35), "z");
        assert_eq!(base36(36), "10");
        assert_eq!(base36(46_655), "zzz");
    }
}
