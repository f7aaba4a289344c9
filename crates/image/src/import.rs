//! Makes an image of one root filesystem archive.

use std::{
    fs::File,
    io::{self, Read},
    sync::Arc,
};

use serde_json::{Map, Value, json};
use tokio::io::AsyncRead;

use crate::{
    blobs::TemporaryPath,
    bridge::bridge,
    changes::{self, ChangeError},
    digest::{Digest, ImageId},
    image::Image,
    layers::LayerError,
    record::{Names, RecordError, add_archive, record_image},
    reference::{ParseReferenceError, Reference},
    registry::host_architecture,
    store::{ImageStore, Inner, Operation},
};

/// Nothing was imported.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    #[error(transparent)]
    Reference(#[from] ParseReferenceError),
    #[error("cannot import digest reference")]
    DigestReference,
    #[error(transparent)]
    Change(#[from] ChangeError),
    #[error("import image: {action}")]
    Io {
        action: &'static str,
        #[source]
        source: io::Error,
    },
    #[error("import image: archive is larger than {limit} bytes")]
    TooLarge { limit: u64 },
    #[error("import image")]
    Layer(#[from] LayerError),
    #[error("import image")]
    Record(#[from] RecordError),
}

impl ImageStore {
    /// Makes an image of one layer from a root filesystem archive (tar; plain, gzip or zstd).
    /// `changes` are Dockerfile instructions for its configuration.
    pub async fn import(
        &self,
        reader: impl AsyncRead + Send + Unpin + 'static,
        reference: Option<&str>,
        message: &str,
        changes: &[String],
    ) -> Result<Arc<Image>, ImportError> {
        let tag = match reference {
            None => None,
            Some(text) => {
                let reference = Reference::parse(text)?;
                if reference.digest().is_some() {
                    return Err(ImportError::DigestReference);
                }
                reference.with_default_tag().tag_key()
            }
        };
        let mut config = Map::new();
        changes::apply(&mut config, changes)?;
        let comment = if message.is_empty() {
            "Imported from -".to_owned()
        } else {
            message.to_owned()
        };
        let created = jiff::Timestamp::now().to_string();

        let (mut archive, pump) = bridge(reader);
        let work = self.blocking(move |inner| {
            let spooled = spool(inner, &mut archive)?;
            import_archive(inner, spooled, tag, |diff_id| {
                document(&config, &created, &comment, diff_id)
            })
        });
        let (result, ()) = tokio::join!(work, pump);
        let id = result?;
        Ok(self
            .inner
            .catalog()
            .image(&id)
            .expect("recorded with all its layers just now"))
    }
}

/// Builds the configuration; the same input gives the same bytes and so the same id.
pub(crate) fn document(
    config: &Map<String, Value>,
    created: &str,
    comment: &str,
    diff_id: &Digest,
) -> Vec<u8> {
    let (architecture, variant) = host_architecture();
    let mut document = json!({
        "architecture": architecture,
        "os": "linux",
        "created": created,
        "config": config,
        "rootfs": {"type": "layers", "diff_ids": [diff_id]},
        "history": [{"created": created, "comment": comment}],
    });
    if let Some(variant) = variant {
        document["variant"] = json!(variant);
    }
    serde_json::to_vec(&document).expect("a JSON value prints")
}

/// Stores a layer archive and an image of it. Blocks.
pub(crate) fn import_archive(
    inner: &Arc<Inner>,
    archive: TemporaryPath,
    tag: Option<String>,
    document: impl FnOnce(&Digest) -> Vec<u8>,
) -> Result<ImageId, ImportError> {
    let operation = Operation::new(inner);
    let diff_id = add_archive(inner, "to import", archive, None, &operation.pins, &|_| {})?;
    let raw = document(&diff_id);
    Ok(record_image(
        inner,
        &raw,
        &operation.pins,
        Names {
            tag,
            ..Names::default()
        },
    )?)
}

fn spool(inner: &Inner, input: &mut impl Read) -> Result<TemporaryPath, ImportError> {
    let limit = inner.limits.bytes;
    let spooled = inner.blobs.temporary_path("import");
    let io_error = |source| ImportError::Io {
        action: "receive archive",
        source,
    };
    let mut file = File::create_new(spooled.path()).map_err(io_error)?;
    let copied = io::copy(&mut input.take(limit + 1), &mut file).map_err(io_error)?;
    if copied > limit {
        return Err(ImportError::TooLarge { limit });
    }
    Ok(spooled)
}
