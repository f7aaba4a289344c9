//! Pulling images from registries.

use std::{fs::File, io, sync::Arc};

use bytes::Bytes;
use futures_util::future::try_join_all;

use crate::{
    catalog::Descriptor,
    digest::Digest,
    document::{DocumentError, ImageDocument},
    hello,
    image::Image,
    layers::LayerError,
    progress::ProgressSink,
    record::{Names, RecordError, record_image},
    reference::{ParseReferenceError, Reference},
    registry::{Manifest, ManifestError, RegistryAuth, RegistryError, Session, choose},
    store::{ImageStore, Operation, TagError, tag_changes},
};

/// Bytes between two lines of progress.
const PROGRESS_STEP: u64 = 1 << 20;

/// Nothing was pulled: names are as before, and content nobody needs is deleted.
#[derive(Debug, thiserror::Error)]
pub enum PullError {
    #[error(transparent)]
    Reference(#[from] ParseReferenceError),
    #[error(transparent)]
    Registry(#[from] RegistryError),
    #[error("pull {reference}")]
    Manifest {
        reference: String,
        #[source]
        source: ManifestError,
    },
    #[error("pull {reference}")]
    Document {
        reference: String,
        #[source]
        source: DocumentError,
    },
    #[error("pull {reference}")]
    Layer {
        reference: String,
        #[source]
        source: LayerError,
    },
    #[error("pull {reference}: {action}")]
    Io {
        reference: String,
        action: &'static str,
        #[source]
        source: io::Error,
    },
    #[error("pull {reference}")]
    Record {
        reference: String,
        #[source]
        source: RecordError,
    },
    #[error("pull {reference}")]
    Tag {
        reference: String,
        #[source]
        source: TagError,
    },
}

/// The manifest of one image, found by way of an index or directly.
struct Found {
    session: Session,
    /// What the reference named: an index or the manifest itself.
    digest: Digest,
    config: Descriptor,
    layers: Vec<Descriptor>,
    manifests: Vec<Bytes>,
}

impl ImageStore {
    /// Pulls an image by tag or digest and names it. Work that another pull already does, on a
    /// layer or a whole image, is waited for and shared. Dropping the future ends the pull.
    pub async fn pull(
        &self,
        reference: &str,
        auth: Option<RegistryAuth>,
        progress: ProgressSink,
    ) -> Result<Arc<Image>, PullError> {
        let reference = Reference::parse(reference)?.with_default_tag();
        let pull = Pull {
            store: self.clone(),
            shown: reference.familiar(),
            operation: Arc::new(Operation::new(&self.inner)),
            reference,
            progress,
        };
        pull.run(auth).await
    }
}

struct Pull {
    store: ImageStore,
    reference: Reference,
    shown: String,
    operation: Arc<Operation>,
    progress: ProgressSink,
}

impl Pull {
    async fn run(&self, auth: Option<RegistryAuth>) -> Result<Arc<Image>, PullError> {
        let named = self.reference.digest().map(ToString::to_string);
        let named = named
            .as_deref()
            .or_else(|| self.reference.tag())
            .unwrap_or_default();
        if hello::serves(&self.reference) {
            let image = hello::pull(&self.store, &self.reference).await?;
            self.progress
                .item(named, format!("Pulling from {}", self.reference.path()));
            self.progress.line(format!("Digest: {}", image.id));
            self.progress
                .line(format!("Status: Image is up to date for {}", self.shown));
            return Ok(image);
        }
        let resolved = self
            .store
            .inner
            .registry
            .resolve(&self.reference, auth)
            .await?;
        self.progress
            .item(named, format!("Pulling from {}", self.reference.path()));

        let digest = resolved.descriptor.digest.clone();
        if let Some(image) = self.known(&digest).await? {
            return Ok(image);
        }
        let found = self.image_manifest(resolved).await?;
        let raw = found.session.small_blob(&found.config).await?;
        let document = ImageDocument::parse(&raw).map_err(|source| self.document_error(source))?;
        let (layers, diff_ids) = (found.layers.len(), document.diff_ids().len());
        if layers != diff_ids {
            return Err(self.manifest_error(ManifestError::LayerCount { layers, diff_ids }));
        }
        for (layer, _) in found.layers.iter().zip(document.diff_ids()) {
            self.progress.item(layer.digest.short(), "Pulling fs layer");
        }
        let layers = found.layers.iter().zip(document.diff_ids());
        try_join_all(layers.map(|(blob, diff_id)| self.layer(&found.session, blob, diff_id)))
            .await?;

        let image = self.record(found, raw).await?;
        self.operation.left_nothing();
        self.progress.line(format!("Digest: {digest}"));
        self.progress
            .line(format!("Status: Downloaded newer image for {}", self.shown));
        Ok(image)
    }

    /// The image, if its manifest was seen before and all is still here.
    async fn known(&self, digest: &Digest) -> Result<Option<Arc<Image>>, PullError> {
        let catalog = self.store.inner.catalog();
        let Some(id) = catalog.digest(&self.reference.digest_key(digest)).cloned() else {
            return Ok(None);
        };
        let Some(image) = catalog.image(&id) else {
            return Ok(None);
        };
        let mut status = "Image is up to date";
        let mut image = image;
        // A pinned reference gives no tag, as in Docker.
        if let (None, Some(key)) = (self.reference.digest(), self.reference.tag_key())
            && catalog.tag(&key) != Some(&id)
        {
            status = "Downloaded newer image";
            let tagged = id.clone();
            self.store
                .blocking(move |inner| {
                    inner.update(|catalog| {
                        Ok::<_, TagError>((tag_changes(catalog, &tagged, key), ()))
                    })
                })
                .await
                .map_err(|source| PullError::Tag {
                    reference: self.shown.clone(),
                    source,
                })?;
            image = self.store.inner.catalog().image(&id).unwrap_or(image);
        }
        self.operation.left_nothing();
        self.progress.line(format!("Digest: {digest}"));
        self.progress
            .line(format!("Status: {status} for {}", self.shown));
        Ok(Some(image))
    }

    async fn image_manifest(
        &self,
        resolved: crate::registry::Resolved,
    ) -> Result<Found, PullError> {
        let crate::registry::Resolved {
            session,
            descriptor,
            manifest,
            raw,
        } = resolved;
        let mut manifests = vec![raw];
        let mut current = manifest;
        // An index may list indexes; nobody needs more than two levels.
        for _ in 0..3 {
            match current {
                Manifest::Image { config, layers } => {
                    let digest = descriptor.digest;
                    return Ok(Found {
                        session,
                        digest,
                        config,
                        layers,
                        manifests,
                    });
                }
                Manifest::Index(entries) => {
                    let entry = choose(&entries).map_err(|source| self.manifest_error(source))?;
                    let (_, next, raw) =
                        session.manifest_by_digest(&entry.descriptor.digest).await?;
                    manifests.push(raw);
                    current = next;
                }
            }
        }
        Err(self.manifest_error(ManifestError::Nested))
    }

    /// Makes sure that one layer is unpacked.
    async fn layer(
        &self,
        session: &Session,
        blob: &Descriptor,
        diff_id: &Digest,
    ) -> Result<(), PullError> {
        let inner = &self.store.inner;
        let id = blob.digest.short();
        // Pinned before it is looked for: what is found stays.
        self.operation.pins.add(diff_id);
        self.operation.pins.add(&blob.digest);
        if inner.catalog().layer(diff_id).is_some() {
            self.progress.item(id, "Already exists");
            return Ok(());
        }
        if !inner.layer_locks.is_free(diff_id) {
            self.progress.item(id, "Waiting");
        }
        let guard = inner.layer_locks.acquire(diff_id).await;
        if inner.catalog().layer(diff_id).is_some() {
            self.progress.item(id, "Pull complete");
            return Ok(());
        }
        if !inner.blobs.has(&blob.digest) {
            self.download(session, blob).await?;
        }
        let permit = Arc::clone(&inner.unpackers).acquire_owned().await;
        let permit = permit.expect("the semaphore is never closed");
        let (blob, diff_id) = (blob.clone(), diff_id.clone());
        let (operation, progress) = (Arc::clone(&self.operation), self.progress.clone());
        self.store
            .blocking(move |inner| {
                // Held to the end even when nobody waits any more: another pull that wants this
                // layer must not start on it meanwhile, nor a sweep take what is being made.
                let _held = (guard, permit, operation);
                let io_error = |source| LayerError::Io {
                    action: "reading",
                    layer: blob.digest.to_string(),
                    source,
                };
                let archive = inner.blobs.open_blob(&blob.digest).map_err(io_error)?;
                let told = std::sync::atomic::AtomicU64::new(0);
                let pending =
                    inner.unpack_layer(blob.digest.as_str(), archive, Some(&diff_id), &|read| {
                        use std::sync::atomic::Ordering::Relaxed;
                        if read >= told.load(Relaxed) + PROGRESS_STEP || read == blob.size {
                            told.store(read, Relaxed);
                            progress.bytes(blob.digest.short(), "Extracting", read, blob.size);
                        }
                    })?;
                let id = blob.digest.clone();
                inner.record_layer(pending, blob)?;
                progress.item(id.short(), "Pull complete");
                Ok(())
            })
            .await
            .map_err(|source| PullError::Layer {
                reference: self.shown.clone(),
                source,
            })
    }

    async fn download(&self, session: &Session, blob: &Descriptor) -> Result<(), PullError> {
        let inner = &self.store.inner;
        let id = blob.digest.short();
        let _permit = inner
            .downloads
            .acquire()
            .await
            .expect("the semaphore is never closed");
        let temporary = inner.blobs.temporary_path("download");
        let io_error = |action, source| PullError::Io {
            reference: self.shown.clone(),
            action,
            source,
        };
        let file = File::create_new(temporary.path())
            .map_err(|source| io_error("create temporary file", source))?;
        let progress = |received| self.progress.bytes(id, "Downloading", received, blob.size);
        session
            .download(blob, file, &inner.limits, &progress)
            .await?;
        // It was verified while it came in.
        self.progress.item(id, "Verifying Checksum");
        let digest = blob.digest.clone();
        self.store
            .blocking(move |inner| inner.blobs.keep(temporary, &digest))
            .await
            .map_err(|source| io_error("keep layer", source))?;
        self.progress.item(id, "Download complete");
        Ok(())
    }

    async fn record(&self, found: Found, raw: Bytes) -> Result<Arc<Image>, PullError> {
        let operation = Arc::clone(&self.operation);
        let tag = match self.reference.digest() {
            Some(_) => None,
            None => self.reference.tag_key(),
        };
        let digest = Some(self.reference.digest_key(&found.digest));
        let id = self
            .store
            .blocking(move |inner| {
                let mut manifests = Vec::new();
                for manifest in found.manifests {
                    operation.pins.add(&Digest::of(&manifest));
                    manifests.push(inner.blobs.put(&manifest).map_err(RecordError::Blob)?);
                }
                let names = Names {
                    tag,
                    digest,
                    manifests,
                    parent: None,
                };
                record_image(inner, &raw, &operation.pins, names)
            })
            .await
            .map_err(|source| PullError::Record {
                reference: self.shown.clone(),
                source,
            })?;
        Ok(self
            .store
            .inner
            .catalog()
            .image(&id)
            .expect("its layers are pinned and recorded"))
    }

    fn manifest_error(&self, source: ManifestError) -> PullError {
        PullError::Manifest {
            reference: self.shown.clone(),
            source,
        }
    }

    fn document_error(&self, source: DocumentError) -> PullError {
        PullError::Document {
            reference: self.shown.clone(),
            source,
        }
    }
}
