//! The handle, and the one place where catalogs are replaced.

use std::{
    io,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError, RwLock,
        atomic::{AtomicBool, Ordering},
    },
};

use jiff::Timestamp;
use tokio::sync::Semaphore;

use crate::{
    blobs::Blobs,
    catalog::{Catalog, Change, LookupError},
    digest::ImageId,
    document::ImageDocument,
    hello,
    image::Image,
    import::ImportError,
    index::{Index, IndexError},
    layers,
    locks::{KeyedLocks, PinSet, Pins, lock},
    reference::{ParseReferenceError, Reference},
    registry::{Registry, RegistryConfig, RegistryConfigError},
    unpack::{UnpackLimits, tree::remove_tree},
};

/// Layers downloaded at a time by the whole store, Docker's `max-concurrent-downloads`.
const DOWNLOADS: usize = 3;

/// How a store is set up.
#[derive(Debug, Clone)]
pub struct ImageConfig {
    /// Everything is below this directory, which must be on one filesystem that has xattrs.
    pub root: PathBuf,
    pub limits: UnpackLimits,
    pub registry: RegistryConfig,
    /// Flush a layer's files before it gets its name; see the crate's documentation. Only a test
    /// or a throw-away store has a reason to say no.
    pub sync_layers: bool,
}

impl ImageConfig {
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self {
            root: root.into(),
            limits: UnpackLimits::default(),
            registry: RegistryConfig::default(),
            sync_layers: true,
        }
    }
}

/// The store cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("{action} {path}")]
    Io {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("open image store in {root}")]
    Index {
        root: PathBuf,
        #[source]
        source: IndexError,
    },
    #[error("registry settings")]
    Registry(#[from] RegistryConfigError),
    #[error("make the built-in image")]
    Hello(#[source] ImportError),
}

/// A name could not be given. Messages are Docker's.
#[derive(Debug, thiserror::Error)]
pub enum TagError {
    #[error(transparent)]
    Lookup(#[from] LookupError),
    #[error(transparent)]
    Reference(#[from] ParseReferenceError),
    #[error("refusing to create a tag with a digest reference")]
    Digest,
    #[error("tag image")]
    Index(#[from] IndexError),
}

/// The image store of a node. Clones share it.
#[derive(Clone)]
pub struct ImageStore {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub(crate) layers_dir: PathBuf,
    pub(crate) blobs: Blobs,
    pub(crate) limits: UnpackLimits,
    pub(crate) sync_layers: bool,
    pub(crate) registry: Registry,
    pub(crate) pins: Arc<Pins>,
    pub(crate) layer_locks: KeyedLocks,
    pub(crate) downloads: Semaphore,
    pub(crate) unpackers: Arc<Semaphore>,
    catalog: RwLock<Arc<Catalog>>,
    /// Held over decide, write and replace, so that every decision sees the catalog it changes.
    index: Mutex<Index>,
}

impl ImageStore {
    /// Opens or makes the store in `config.root`, deletes what an unclean end left, restores
    /// layers whose directories are gone, and makes the built-in image.
    pub async fn open(config: ImageConfig) -> Result<Self, OpenError> {
        tokio::task::spawn_blocking(move || Self::open_blocking(config))
            .await
            .expect("opening does not panic")
    }

    /// Where [`Image::lower`] names directories.
    pub fn layers_dir(&self) -> &Path {
        &self.inner.layers_dir
    }

    /// Finds an image by reference, `name@digest`, full id or unique prefix of an id.
    pub fn get(&self, name_or_id: &str) -> Result<Arc<Image>, LookupError> {
        let catalog = self.inner.catalog();
        let id = catalog.find(name_or_id)?;
        catalog
            .image(id)
            .ok_or_else(|| LookupError::NotFound(name_or_id.to_owned()))
    }

    /// All images, newest first.
    pub fn list(&self) -> Vec<Arc<Image>> {
        let catalog = self.inner.catalog();
        let mut images: Vec<_> = catalog
            .stored_images()
            .filter_map(|image| catalog.image(&image.record.id))
            .collect();
        images.sort_by(|a, b| b.created.cmp(&a.created).then_with(|| a.id.cmp(&b.id)));
        images
    }

    /// Gives the image `source` the name `target`, taking it from any other image.
    pub async fn tag(&self, source: &str, target: &str) -> Result<(), TagError> {
        let target = Reference::parse(target)?;
        if target.digest().is_some() {
            return Err(TagError::Digest);
        }
        let key = target
            .with_default_tag()
            .tag_key()
            .expect("a default tag was added");
        let source = source.to_owned();
        self.blocking(move |inner| {
            inner.update(|catalog| {
                let id = catalog.find(&source)?.clone();
                Ok::<_, TagError>((tag_changes(catalog, &id, key), ()))
            })
        })
        .await
    }

    /// Runs `work` where blocking is allowed.
    pub(crate) async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Arc<Inner>) -> T + Send + 'static,
    ) -> T {
        let inner = Arc::clone(&self.inner);
        tokio::task::spawn_blocking(move || work(&inner))
            .await
            .expect("store work does not panic")
    }

    fn open_blocking(config: ImageConfig) -> Result<Self, OpenError> {
        let ImageConfig {
            root,
            limits,
            registry,
            sync_layers,
        } = config;
        let io_error = |action, path: &Path, source| OpenError::Io {
            action,
            path: path.to_owned(),
            source,
        };
        let index_error = |source| OpenError::Index {
            root: root.clone(),
            source,
        };
        let layers_dir = root.join("layers");
        std::fs::create_dir_all(&layers_dir).map_err(|e| io_error("make", &layers_dir, e))?;
        private(&root).map_err(|e| io_error("close to others", &root, e))?;
        // First of all, since it locks out a second daemon.
        let index = Index::open(&root.join("index.redb")).map_err(index_error)?;
        let contents = index.read().map_err(index_error)?;
        let blobs = Blobs::open(&root).map_err(|e| io_error("make", &root, e))?;
        empty_directory(blobs.temporary()).map_err(|e| io_error("empty", blobs.temporary(), e))?;

        let mut catalog = Catalog::default();
        let mut changes = vec![Change::SetNextLayer(contents.next_layer)];
        changes.extend(contents.layers.into_iter().map(Change::PutLayer));
        let mut lost = Vec::new();
        for record in contents.images {
            let document = blobs
                .read(&record.id.0)
                .ok()
                .filter(|raw| ImageId(crate::Digest::of(raw)) == record.id);
            if let Some(Ok(document)) = document.map(|raw| ImageDocument::parse(&raw)) {
                changes.push(Change::PutImage(record, document));
            } else {
                // Its names are dropped with those of all images that cannot be healed.
                tracing::warn!(image.id = %record.id, "configuration is gone, image dropped");
                lost.push(Change::DropImage(record.id));
            }
        }
        index.write(&lost).map_err(index_error)?;
        changes.extend(
            contents
                .tags
                .into_iter()
                .map(|(key, id)| Change::SetTag(key, id)),
        );
        changes.extend(
            contents
                .digests
                .into_iter()
                .map(|(key, id)| Change::SetDigest(key, id)),
        );
        catalog.apply(changes);

        let unpackers = std::thread::available_parallelism().map_or(2, usize::from);
        let inner = Arc::new(Inner {
            layers_dir,
            blobs,
            limits,
            sync_layers,
            registry: Registry::new(registry)?,
            pins: Arc::default(),
            layer_locks: KeyedLocks::default(),
            downloads: Semaphore::new(DOWNLOADS),
            unpackers: Arc::new(Semaphore::new(unpackers)),
            catalog: RwLock::new(Arc::new(catalog)),
            index: Mutex::new(index),
        });
        layers::heal(&inner).map_err(index_error)?;
        hello::ensure(&inner).map_err(OpenError::Hello)?;
        inner.sweep();
        Ok(Self { inner })
    }
}

impl Inner {
    /// The catalog as it is now.
    pub(crate) fn catalog(&self) -> Arc<Catalog> {
        Arc::clone(&self.catalog.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Decides on the current catalog, writes the changes, then makes them visible. Blocks for
    /// the disk.
    pub(crate) fn update<T, E: From<IndexError>>(
        &self,
        decide: impl FnOnce(&Catalog) -> Result<(Vec<Change>, T), E>,
    ) -> Result<T, E> {
        let index = lock(&self.index);
        let current = self.catalog();
        let (changes, answer) = decide(&current)?;
        if !changes.is_empty() {
            index.write(&changes)?;
            let mut next = (*current).clone();
            next.apply(changes);
            *self.catalog.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(next);
        }
        Ok(answer)
    }

    /// Deletes layers and blobs that nothing needs. Errors are logged: what stays is deleted by
    /// the next sweep or start.
    pub(crate) fn sweep(&self) {
        let mut trash = Vec::new();
        {
            let pins = self.pins.freeze();
            let swept = self.update(|catalog| {
                let unused: Vec<_> = catalog
                    .unused_layers()
                    .into_iter()
                    .filter(|layer| !pins.contains_key(&layer.diff_id))
                    .collect();
                let changes = unused
                    .iter()
                    .map(|layer| Change::DropLayer(layer.diff_id.clone()))
                    .collect();
                Ok::<_, IndexError>((changes, unused))
            });
            match swept {
                Ok(unused) => {
                    for layer in unused {
                        let temporary = self.blobs.temporary_path("removed");
                        let directory = self.layers_dir.join(&layer.short);
                        match std::fs::rename(&directory, temporary.path()) {
                            Ok(()) => trash.push(temporary),
                            Err(error) => {
                                tracing::warn!(path = %directory.display(), %error, "layer not removed");
                            }
                        }
                    }
                }
                Err(error) => tracing::warn!(%error, "unused layers not removed"),
            }
            let needed = self.catalog().needed_blobs();
            match self.blobs.list() {
                Ok((present, _)) => {
                    for digest in present {
                        if !needed.contains(&digest)
                            && !pins.contains_key(&digest)
                            && let Err(error) = self.blobs.delete(&digest)
                        {
                            tracing::warn!(%digest, %error, "blob not removed");
                        }
                    }
                }
                Err(error) => tracing::warn!(%error, "blobs not listed"),
            }
        }
        // Deleting many files takes long; nobody waits for it but the caller.
        drop(trash);
    }
}

/// Gives `key` to `id` and notes when.
pub(crate) fn tag_changes(catalog: &Catalog, id: &ImageId, key: String) -> Vec<Change> {
    if catalog.tag(&key) == Some(id) {
        return Vec::new();
    }
    let mut changes = vec![Change::SetTag(key, id.clone())];
    if let Some(stored) = catalog.stored(id) {
        let mut record = stored.record.clone();
        record.tagged_at = now_nanos();
        changes.push(Change::PutImage(record, stored.document.clone()));
    }
    changes
}

/// Nanoseconds since the epoch.
pub(crate) fn now_nanos() -> i64 {
    i64::try_from(Timestamp::now().as_nanosecond()).unwrap_or(i64::MAX)
}

/// A running operation: what it pins, and the sweep when it ends, so that whatever it made in vain
/// goes, be it by an error, a duplicate, or because nobody waits for it any more.
pub(crate) struct Operation {
    inner: Arc<Inner>,
    pub(crate) pins: PinSet,
    needs_sweep: AtomicBool,
}

impl Operation {
    pub(crate) fn new(inner: &Arc<Inner>) -> Self {
        let pins = PinSet::new(&inner.pins);
        Self {
            inner: Arc::clone(inner),
            pins,
            needs_sweep: AtomicBool::new(true),
        }
    }

    /// Everything it made is named by the index.
    pub(crate) fn left_nothing(&self) {
        self.needs_sweep.store(false, Ordering::Relaxed);
    }
}

impl Drop for Operation {
    fn drop(&mut self) {
        self.pins.release();
        if !self.needs_sweep.load(Ordering::Relaxed) {
            return;
        }
        let inner = Arc::clone(&self.inner);
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => {
                runtime.spawn_blocking(move || inner.sweep());
            }
            Err(_) => inner.sweep(),
        }
    }
}

/// Layers hold set-id programs and hostile names; only root looks at them from outside.
fn private(root: &Path) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::set_permissions(root, std::fs::Permissions::from_mode(0o711))
}

fn empty_directory(path: &Path) -> io::Result<()> {
    for entry in std::fs::read_dir(path)? {
        remove_tree(&entry?.path())?;
    }
    Ok(())
}
