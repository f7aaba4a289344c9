//! The last steps of pull, load and import alike: storing a layer archive, naming an image.

use std::{
    fs::File,
    io::{self, BufReader, Read, Write},
    sync::Arc,
};

use crate::{
    blobs::TemporaryPath,
    catalog::{Catalog, Change, Descriptor, ImageRecord, StoredImage},
    digest::{Digest, HashingWriter, ImageId},
    document::{DocumentError, ImageDocument},
    index::IndexError,
    layers::LayerError,
    locks::PinSet,
    store::{Inner, now_nanos, tag_changes},
    unpack::{Compression, compress_zstd},
};

/// An image could not be recorded.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    #[error(transparent)]
    Document(#[from] DocumentError),
    #[error("keep image configuration")]
    Blob(#[source] io::Error),
    #[error("record image")]
    Index(#[from] IndexError),
}

/// Stores an archive as a blob and as an unpacked layer. A plain archive is kept packed with
/// zstd: it is a third as large, and its digest as a layer is that of the plain bytes in any case.
pub(crate) fn add_archive(
    inner: &Inner,
    name: &str,
    archive: TemporaryPath,
    expected: Option<&Digest>,
    pins: &PinSet,
    progress: &(dyn Fn(u64) + Sync),
) -> Result<Digest, LayerError> {
    let io_error = |action, source| LayerError::Io {
        action,
        layer: name.to_owned(),
        source,
    };
    let open = || File::open(archive.path());
    let compression = open()
        .and_then(|mut file| Compression::sniff(&mut file))
        .map_err(|error| io_error("reading", error))?;
    let packed = inner.blobs.temporary_path("packed");
    let (unpacked, stored) = std::thread::scope(|scope| {
        let store = scope.spawn(|| match compression {
            Compression::None => compress_zstd(
                &mut BufReader::new(open()?),
                File::create_new(packed.path())?,
            ),
            _ => hash_file(&open()?),
        });
        let unpacked = open()
            .map_err(|error| io_error("reading", error))
            .and_then(|file| inner.unpack_layer(name, file, expected, progress));
        (unpacked, store.join().expect("packing does not panic"))
    });
    let pending = unpacked?;
    let (digest, size) = stored.map_err(|error| io_error("packing", error))?;
    let diff_id = pending.unpacked.diff_id.clone();
    pins.add(&diff_id);
    pins.add(&digest);
    let media_type = match compression {
        Compression::Gzip => "application/vnd.oci.image.layer.v1.tar+gzip",
        _ => "application/vnd.oci.image.layer.v1.tar+zstd",
    };
    let blob = if compression == Compression::None {
        packed
    } else {
        archive
    };
    inner
        .blobs
        .keep(blob, &digest)
        .map_err(|error| io_error("keeping", error))?;
    let descriptor = Descriptor {
        media_type: media_type.to_owned(),
        digest,
        size,
    };
    inner.record_layer(pending, descriptor)?;
    Ok(diff_id)
}

/// Names and manifests that come with an image.
#[derive(Default)]
pub(crate) struct Names {
    pub(crate) tag: Option<String>,
    pub(crate) digest: Option<String>,
    pub(crate) manifests: Vec<Digest>,
    pub(crate) parent: Option<ImageId>,
}

/// Records an image whose layers are all there. Blocks.
pub(crate) fn record_image(
    inner: &Inner,
    raw: &[u8],
    pins: &PinSet,
    names: Names,
) -> Result<ImageId, RecordError> {
    let document = ImageDocument::parse(raw)?;
    let id = document.id();
    pins.add(&id.0);
    inner.blobs.put(raw).map_err(RecordError::Blob)?;
    inner.update(|catalog| {
        Ok::<_, RecordError>((image_changes(catalog, &id, document, names), id.clone()))
    })
}

fn image_changes(
    catalog: &Catalog,
    id: &ImageId,
    document: ImageDocument,
    names: Names,
) -> Vec<Change> {
    let known: Option<&Arc<StoredImage>> = catalog.stored(id);
    let mut record = known.map_or_else(
        || ImageRecord {
            id: id.clone(),
            manifests: Vec::new(),
            parent: names.parent.clone(),
            tagged_at: now_nanos(),
        },
        |stored| stored.record.clone(),
    );
    for manifest in names.manifests {
        if !record.manifests.contains(&manifest) {
            record.manifests.push(manifest);
        }
    }
    let mut changes = Vec::new();
    if let Some(tag) = names.tag
        && !tag_changes(catalog, id, tag.clone()).is_empty()
    {
        record.tagged_at = now_nanos();
        changes.push(Change::SetTag(tag, id.clone()));
    }
    if let Some(digest) = names.digest
        && catalog.digest(&digest) != Some(id)
    {
        changes.push(Change::SetDigest(digest, id.clone()));
    }
    if known.is_none_or(|stored| stored.record != record) {
        changes.push(Change::PutImage(record, document));
    }
    changes
}

/// Digest and length of a file.
pub(crate) fn hash_file(file: &File) -> io::Result<(Digest, u64)> {
    let mut writer = HashingWriter::new(io::sink());
    let mut reader = file;
    let mut buffer = vec![0; 256 * 1024];
    loop {
        let n = reader.read(&mut buffer)?;
        if n == 0 {
            break;
        }
        writer.write_all(&buffer[..n])?;
    }
    file.sync_data()?;
    let (_, digest, size) = writer.finish();
    Ok((digest, size))
}
