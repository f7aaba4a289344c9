//! Saving images as archives that `docker load` and OCI tools read.
//!
//! The archive is an OCI layout with Docker's `manifest.json` beside it. Layers are written as
//! they are kept, so saving costs no packing.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{self, Read, Write},
    sync::Arc,
};

use serde_json::{Value, json};
use tokio::io::{AsyncWrite, AsyncWriteExt as _};

use crate::{
    catalog::{Descriptor, LookupError},
    digest::Digest,
    image::Image,
    reference::{Reference, familiar_key},
    registry::{OCI_INDEX, OCI_MANIFEST, build, config_descriptor},
    store::{ImageStore, Inner, Operation},
};

/// Nothing useful was written.
#[derive(Debug, thiserror::Error)]
pub enum SaveError {
    #[error(transparent)]
    Lookup(#[from] LookupError),
    #[error("save image")]
    Io(#[from] io::Error),
}

impl ImageStore {
    /// Writes images to one archive. An image is saved under the names by which it is asked for;
    /// asked for by id, it has none.
    pub async fn save(
        &self,
        names: &[String],
        mut writer: impl AsyncWrite + Send + Unpin,
    ) -> Result<(), SaveError> {
        // Found now, so that a wrong name is an error before the first byte.
        let operation = Operation::new(&self.inner);
        operation.left_nothing();
        let mut wanted: BTreeMap<String, (Arc<Image>, BTreeSet<String>)> = BTreeMap::new();
        for name in names {
            let image = self.get(name)?;
            image
                .diff_ids()
                .iter()
                .chain([&image.id.0])
                .for_each(|id| operation.pins.add(id));
            let tags = &mut wanted
                .entry(image.id.to_string())
                .or_insert((image, BTreeSet::new()))
                .1;
            let reference = Reference::parse(name).ok().map(Reference::with_default_tag);
            let key = reference
                .filter(|r| r.digest().is_none())
                .and_then(|r| r.tag_key());
            tags.extend(key.filter(|key| self.inner.catalog().tag(key).is_some()));
        }
        let (sender, receiver) = tokio::sync::mpsc::channel(8);
        let work = self.blocking(move |inner| {
            let _held = operation;
            let mut out = tar::Builder::new(io::BufWriter::with_capacity(
                128 * 1024,
                ChannelWriter(sender),
            ));
            write_archive(inner, wanted.into_values(), &mut out)?;
            out.into_inner()?.flush()
        });
        // Owns the receiver: when the client goes away, the writing side fails at once.
        let pump = async move {
            let mut receiver: tokio::sync::mpsc::Receiver<Vec<u8>> = receiver;
            while let Some(chunk) = receiver.recv().await {
                writer.write_all(&chunk).await?;
            }
            writer.flush().await
        };
        let (written, pumped) = tokio::join!(work, pump);
        pumped?;
        written?;
        Ok(())
    }
}

fn write_archive(
    inner: &Inner,
    images: impl Iterator<Item = (Arc<Image>, BTreeSet<String>)>,
    out: &mut tar::Builder<impl Write>,
) -> io::Result<()> {
    let mut done = BTreeSet::new();
    let mut docker: Vec<Value> = Vec::new();
    let mut index: Vec<Value> = Vec::new();
    let path = |digest: &Digest| format!("blobs/sha256/{}", digest.hex());
    add(out, "oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
    for (image, tags) in images {
        let catalog = inner.catalog();
        let gone = || io::Error::other("a layer of the image was removed");
        let layers: Vec<Descriptor> = image
            .diff_ids()
            .iter()
            .map(|id| {
                catalog
                    .layer(id)
                    .map(|layer| layer.blob.clone())
                    .ok_or_else(gone)
            })
            .collect::<Result<_, _>>()?;
        for layer in &layers {
            if done.insert(layer.digest.clone()) {
                let mut file = inner.blobs.open_blob(&layer.digest)?;
                let size = file.metadata()?.len();
                append(out, &path(&layer.digest), size, &mut file)?;
            }
        }
        let raw = image.config.raw();
        let config = config_descriptor(image.id.0.clone(), raw.len() as u64);
        let manifest = build(&config, &layers);
        let digest = Digest::of(&manifest);
        for (digest, content) in [(&image.id.0, raw), (&digest, manifest.as_slice())] {
            if done.insert(digest.clone()) {
                add(out, &path(digest), content)?;
            }
        }
        let descriptor = |name: Option<&String>| {
            let mut entry =
                json!({"mediaType": OCI_MANIFEST, "digest": digest, "size": manifest.len()});
            if let Some(name) = name {
                let tag = name.rsplit(':').next();
                entry["annotations"] = json!({
                    "io.containerd.image.name": name,
                    "org.opencontainers.image.ref.name": tag,
                });
            }
            entry
        };
        if tags.is_empty() {
            index.push(descriptor(None));
        }
        index.extend(tags.iter().map(|tag| descriptor(Some(tag))));
        let familiar: Vec<String> = tags.iter().map(|tag| familiar_key(tag)).collect();
        docker.push(json!({
            "Config": path(&image.id.0),
            "RepoTags": if familiar.is_empty() { Value::Null } else { json!(familiar) },
            "Layers": layers.iter().map(|layer| path(&layer.digest)).collect::<Vec<_>>(),
        }));
    }
    let index = json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": index});
    add(out, "index.json", index.to_string().as_bytes())?;
    add(
        out,
        "manifest.json",
        Value::Array(docker).to_string().as_bytes(),
    )
}

fn add(out: &mut tar::Builder<impl Write>, path: &str, content: &[u8]) -> io::Result<()> {
    append(out, path, content.len() as u64, &mut &*content)
}

fn append(
    out: &mut tar::Builder<impl Write>,
    path: &str,
    size: u64,
    content: &mut dyn Read,
) -> io::Result<()> {
    let mut header = tar::Header::new_ustar();
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(size);
    out.append_data(&mut header, path, content)
}

/// Hands blocks to the asynchronous side.
struct ChannelWriter(tokio::sync::mpsc::Sender<Vec<u8>>);

impl Write for ChannelWriter {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.0
            .blocking_send(buf.to_vec())
            .map_err(|_| io::ErrorKind::BrokenPipe)?;
        Ok(buf.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
