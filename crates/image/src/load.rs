//! Loading archives of images: `docker save`'s and OCI layouts.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, BufRead as _, BufReader, Read, Write as _},
    path::PathBuf,
    sync::Arc,
};

use serde::Deserialize;
use tokio::io::AsyncRead;

use crate::{
    blobs::TemporaryPath,
    bridge::bridge,
    digest::{Digest, ImageId},
    document::{DocumentError, ImageDocument},
    layers::LayerError,
    progress::ProgressSink,
    record::{Names, RecordError, add_archive, hash_file, record_image},
    reference::{ParseReferenceError, Reference},
    registry::{Manifest, ManifestError, choose},
    space::SpaceGuard,
    store::{ImageStore, Inner, Operation},
    unpack::{Compression, Kind, TarError, TarReader},
};

/// Files of one archive. A hundred images of a hundred layers have 30,000.
const FILES_MAX: usize = 100_000;
/// Largest JSON file that is read into memory.
const JSON_MAX: u64 = 16 << 20;

/// What was loaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Loaded {
    /// "Loaded image: NAME"
    Reference(String),
    /// "Loaded image ID: ID"
    Id(ImageId),
}

/// The archive could not be loaded. Images before the faulty one stay loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error("load: read archive")]
    Archive(#[from] TarError),
    #[error("load: {action}")]
    Io {
        action: &'static str,
        #[source]
        source: io::Error,
    },
    #[error("load: {0} compression is not supported; use gzip or zstd")]
    Compression(&'static str),
    #[error("load: archive is larger than {limit} bytes or has more than {FILES_MAX} files")]
    TooLarge { limit: u64 },
    #[error(
        "load: archive holds neither manifest.json nor index.json: it is no image archive; to make an image of a root filesystem, import it"
    )]
    NotAnImage,
    #[error("load: {file} is missing from the archive")]
    Missing { file: String },
    #[error("load: {file} is not of the expected shape")]
    Json {
        file: String,
        #[source]
        source: serde_json::Error,
    },
    #[error("load: {file} does not have the content its name promises: {actual}")]
    WrongContent { file: String, actual: Digest },
    #[error("load: {file}")]
    Manifest {
        file: String,
        #[source]
        source: ManifestError,
    },
    #[error("load: image configuration {file}")]
    Document {
        file: String,
        #[source]
        source: DocumentError,
    },
    #[error("load: image name {name:?}")]
    Reference {
        name: String,
        #[source]
        source: ParseReferenceError,
    },
    #[error("load image")]
    Layer(#[from] LayerError),
    #[error("load image")]
    Record(#[from] RecordError),
}

impl ImageStore {
    /// Loads all images of an archive made by `docker save` or in OCI layout; plain, gzip or
    /// zstd. An archive that is both is read as Docker's.
    pub async fn load(
        &self,
        reader: impl AsyncRead + Send + Unpin + 'static,
        progress: ProgressSink,
    ) -> Result<Vec<Loaded>, LoadError> {
        let (mut input, pump) = bridge(reader);
        let work = self.blocking(move |inner| {
            let archive = Archive::receive(inner, &mut input)?;
            let loader = Loader {
                inner,
                archive,
                progress,
            };
            if loader.archive.has("manifest.json") {
                loader.docker()
            } else if loader.archive.has("index.json") {
                loader.oci()
            } else {
                Err(LoadError::NotAnImage)
            }
        });
        let (result, ()) = tokio::join!(work, pump);
        result
    }
}

/// Copies `from` to its end, as long as there is room.
fn receive_file(from: &mut impl Read, to: &mut File, space: &mut SpaceGuard) -> io::Result<()> {
    let mut buffer = vec![0; 128 * 1024];
    loop {
        let n = match from.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(n) => n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        space.before(to, n as u64)?;
        to.write_all(&buffer[..n])?;
    }
}

/// The files of an archive, each under a number in a temporary directory.
struct Archive {
    directory: TemporaryPath,
    files: BTreeMap<String, PathBuf>,
    /// Links of older `docker save`s, where equal layers are one file.
    links: BTreeMap<String, String>,
}

impl Archive {
    fn receive(inner: &Inner, input: &mut (impl Read + Send)) -> Result<Self, LoadError> {
        let io_error = |action| move |source| LoadError::Io { action, source };
        let limit = inner.limits.bytes;
        let too_large = || LoadError::TooLarge { limit };
        let directory = inner.blobs.temporary_path("load");
        std::fs::create_dir(directory.path()).map_err(io_error("make temporary directory"))?;

        let mut input = BufReader::with_capacity(128 * 1024, input);
        let start = input.fill_buf().map_err(io_error("receive archive"))?;
        let compression = Compression::of(start);
        if let Compression::Unsupported(name) = compression {
            return Err(LoadError::Compression(name));
        }
        let plain = compression
            .reader(input)
            .map_err(io_error("receive archive"))?;
        let mut tar = TarReader::new(plain);
        let mut archive = Self {
            directory,
            files: BTreeMap::new(),
            links: BTreeMap::new(),
        };
        let mut total = 0_u64;
        let mut space = SpaceGuard::new(inner.limits.keep_free);
        while let Some(member) = tar.next()? {
            let Some(name) = clean(&String::from_utf8_lossy(&member.path)) else {
                continue;
            };
            if archive.files.len() + archive.links.len() >= FILES_MAX {
                return Err(too_large());
            }
            match member.kind {
                Kind::File => {
                    total = total.saturating_add(member.size);
                    if total > limit || member.extents.is_some() {
                        return Err(too_large());
                    }
                    let path = archive
                        .directory
                        .path()
                        .join(archive.files.len().to_string());
                    let mut file =
                        File::create_new(&path).map_err(io_error("write temporary file"))?;
                    receive_file(&mut tar, &mut file, &mut space)
                        .map_err(io_error("receive archive"))?;
                    archive.files.insert(name, path);
                }
                Kind::Symlink | Kind::HardLink => {
                    let target = String::from_utf8_lossy(&member.link).into_owned();
                    let target = match (member.kind, name.rsplit_once('/')) {
                        (Kind::Symlink, Some((parent, _))) => format!("{parent}/{target}"),
                        _ => target,
                    };
                    if let Some(target) = clean(&target) {
                        archive.links.insert(name, target);
                    }
                }
                _ => {}
            }
        }
        tar.drain()?;
        Ok(archive)
    }

    fn find(&self, name: &str) -> Option<&PathBuf> {
        let mut name = clean(name)?;
        // Links may lead to links; a loop is no file.
        for _ in 0..16 {
            if let Some(path) = self.files.get(&name) {
                return Some(path);
            }
            name.clone_from(self.links.get(&name)?);
        }
        None
    }

    fn has(&self, name: &str) -> bool {
        self.find(name).is_some()
    }

    fn open(&self, name: &str) -> Result<File, LoadError> {
        let path = self.find(name).ok_or_else(|| LoadError::Missing {
            file: name.to_owned(),
        })?;
        File::open(path).map_err(|source| LoadError::Io {
            action: "read temporary file",
            source,
        })
    }

    fn read(&self, name: &str) -> Result<Vec<u8>, LoadError> {
        let mut content = Vec::new();
        self.open(name)?
            .take(JSON_MAX)
            .read_to_end(&mut content)
            .map_err(|source| LoadError::Io {
                action: "read temporary file",
                source,
            })?;
        Ok(content)
    }
}

/// A name without `.`, `..` and slashes that say nothing; `None` for one that leads outside.
fn clean(name: &str) -> Option<String> {
    let mut names: Vec<&str> = Vec::new();
    for part in name.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                names.pop()?;
            }
            part => names.push(part),
        }
    }
    (!names.is_empty()).then(|| names.join("/"))
}

/// An entry of `manifest.json`.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DockerItem {
    config: String,
    repo_tags: Option<Vec<String>>,
    layers: Option<Vec<String>>,
    parent: Option<String>,
}

struct Loader<'a> {
    inner: &'a Arc<Inner>,
    archive: Archive,
    progress: ProgressSink,
}

impl Loader<'_> {
    fn docker(&self) -> Result<Vec<Loaded>, LoadError> {
        let file = "manifest.json";
        let items: Vec<DockerItem> =
            serde_json::from_slice(&self.archive.read(file)?).map_err(|source| {
                LoadError::Json {
                    file: file.to_owned(),
                    source,
                }
            })?;
        let mut loaded = Vec::new();
        for item in items {
            let names = item.repo_tags.unwrap_or_default();
            let layers = item.layers.unwrap_or_default();
            let parent = item.parent.and_then(|text| text.parse::<ImageId>().ok());
            let raw = self.archive.read(&item.config)?;
            loaded.extend(self.image(&item.config, &raw, &layers, &names, Vec::new(), parent)?);
        }
        Ok(loaded)
    }

    fn oci(&self) -> Result<Vec<Loaded>, LoadError> {
        let mut loaded = Vec::new();
        for entry in self.index("index.json")? {
            let names = oci_name(&entry.annotations);
            let mut file = blob_name(&entry.descriptor.digest);
            let mut manifests = Vec::new();
            let mut depth = 0;
            let (config, layers) = loop {
                let raw = self.verified(&file)?;
                let manifest_error = |source| LoadError::Manifest {
                    file: file.clone(),
                    source,
                };
                let (manifest, _) = Manifest::parse(None, &raw).map_err(manifest_error)?;
                manifests.push(raw);
                match manifest {
                    Manifest::Image { config, layers } => break (config, layers),
                    Manifest::Index(entries) => {
                        depth += 1;
                        if depth > 3 {
                            return Err(manifest_error(ManifestError::Nested));
                        }
                        let next = choose(&entries).map_err(manifest_error)?;
                        file = blob_name(&next.descriptor.digest);
                    }
                }
            };
            let config_file = blob_name(&config.digest);
            let raw = self.verified(&config_file)?;
            let mut files = Vec::new();
            for layer in &layers {
                let file = blob_name(&layer.digest);
                let (actual, _) =
                    hash_file(&self.archive.open(&file)?).map_err(|source| LoadError::Io {
                        action: "read temporary file",
                        source,
                    })?;
                if actual != layer.digest {
                    return Err(LoadError::WrongContent { file, actual });
                }
                files.push(file);
            }
            loaded.extend(self.image(&config_file, &raw, &files, &names, manifests, None)?);
        }
        Ok(loaded)
    }

    fn index(&self, file: &str) -> Result<Vec<crate::registry::IndexEntry>, LoadError> {
        match Manifest::parse(None, &self.archive.read(file)?) {
            Ok((Manifest::Index(entries), _)) => Ok(entries),
            Ok(_) => Err(LoadError::NotAnImage),
            Err(source) => Err(LoadError::Manifest {
                file: file.to_owned(),
                source,
            }),
        }
    }

    /// A blob of an OCI layout, whose name is its digest.
    fn verified(&self, file: &str) -> Result<Vec<u8>, LoadError> {
        let raw = self.archive.read(file)?;
        let actual = Digest::of(&raw);
        if file == blob_name(&actual) {
            Ok(raw)
        } else {
            Err(LoadError::WrongContent {
                file: file.to_owned(),
                actual,
            })
        }
    }

    fn image(
        &self,
        config_file: &str,
        raw: &[u8],
        layers: &[String],
        names: &[String],
        manifests: Vec<Vec<u8>>,
        parent: Option<ImageId>,
    ) -> Result<Vec<Loaded>, LoadError> {
        let document = ImageDocument::parse(raw).map_err(|source| LoadError::Document {
            file: config_file.to_owned(),
            source,
        })?;
        let diff_ids = document.diff_ids();
        if layers.len() != diff_ids.len() {
            let source = ManifestError::LayerCount {
                layers: layers.len(),
                diff_ids: diff_ids.len(),
            };
            return Err(LoadError::Manifest {
                file: config_file.to_owned(),
                source,
            });
        }
        // All names are checked before anything is kept.
        let mut keys = Vec::new();
        for name in names {
            let reference = Reference::parse(name)
                .map_err(|source| LoadError::Reference {
                    name: name.clone(),
                    source,
                })?
                .with_default_tag();
            keys.extend(reference.tag_key().map(|key| (key, reference.familiar())));
        }
        let operation = Operation::new(self.inner);
        for (file, diff_id) in layers.iter().zip(diff_ids) {
            self.layer(&operation, file, diff_id)?;
        }
        let mut digests = Vec::new();
        for manifest in manifests {
            operation.pins.add(&Digest::of(&manifest));
            digests.push(self.inner.blobs.put(&manifest).map_err(RecordError::Blob)?);
        }
        let mut loaded = Vec::new();
        let first = Names {
            manifests: digests,
            parent,
            ..Names::default()
        };
        let id = record_image(self.inner, raw, &operation.pins, first)?;
        for (key, familiar) in keys {
            let name = Names {
                tag: Some(key),
                ..Names::default()
            };
            record_image(self.inner, raw, &operation.pins, name)?;
            loaded.push(Loaded::Reference(familiar));
        }
        if loaded.is_empty() {
            loaded.push(Loaded::Id(id));
        }
        Ok(loaded)
    }

    fn layer(&self, operation: &Operation, file: &str, diff_id: &Digest) -> Result<(), LoadError> {
        operation.pins.add(diff_id);
        let id = diff_id.short();
        if self.inner.catalog().layer(diff_id).is_some() {
            self.progress.item(id, "Layer already exists");
            return Ok(());
        }
        // A second name for the file: several images of the archive may share it.
        let source = self.archive.find(file);
        let source = source.ok_or_else(|| LoadError::Missing {
            file: file.to_owned(),
        })?;
        let io_error = |source| LoadError::Io {
            action: "read temporary file",
            source,
        };
        let copy = self.inner.blobs.temporary_path("loaded");
        std::fs::hard_link(source, copy.path()).map_err(io_error)?;
        let total = std::fs::metadata(source).map_err(io_error)?.len();
        let told = std::sync::atomic::AtomicU64::new(0);
        let progress = |read: u64| {
            use std::sync::atomic::Ordering::Relaxed;
            if read == total || read >= told.load(Relaxed) + (1 << 20) {
                told.store(read, Relaxed);
                self.progress.bytes(id, "Loading layer", read, total);
            }
        };
        let pins = &operation.pins;
        add_archive(
            self.inner,
            diff_id.as_str(),
            copy,
            Some(diff_id),
            pins,
            &progress,
        )?;
        Ok(())
    }
}

fn blob_name(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

/// The name of an entry. containerd and Docker write the whole name; the specification's own
/// annotation is often no more than a tag, which names nothing here.
fn oci_name(annotations: &BTreeMap<String, String>) -> Vec<String> {
    if let Some(name) = annotations.get("io.containerd.image.name") {
        return vec![name.clone()];
    }
    let name = annotations.get("org.opencontainers.image.ref.name");
    name.filter(|name| name.contains([':', '/']))
        .cloned()
        .into_iter()
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_within_an_archive_never_lead_outside() {
        assert_eq!(clean("./a//b/../c").as_deref(), Some("a/c"));
        assert_eq!(clean("/a").as_deref(), Some("a"));
        assert_eq!(clean("../a"), None);
        assert_eq!(clean("a/../.."), None);
        assert_eq!(clean("./"), None);
    }
}
