//! The image store of one node: blobs, layers, references and registries.
//!
//! It knows nothing of containers, tasks or nodes, and makes no namespace or mount. What it keeps
//! true:
//!
//! - **Content is what its digest says.** A blob is hashed while it streams in, a layer's plain
//!   archive while it is unpacked, a manifest named by digest before it is read.
//! - **All or nothing.** Blobs and layer directories are made below `tmp/` and renamed when they
//!   are complete; the index (redb) names them in one transaction after that. What an unclean end
//!   leaves is in `tmp/` or unnamed, and [`ImageStore::open`] deletes it.
//! - **A layer is unpacked once** and shared by all images that have it, under a name of a few
//!   characters, because overlay's mount options share one page of 4096 bytes.
//! - **Nothing is written outside a layer**, whatever its archive says (see `unpack`).
//! - **What is used stays.** Removal deletes only what no image needs and no running operation
//!   holds.
//!
//! ```text
//! root/index.redb            which images, names and layers there are
//! root/blobs/sha256/<hex>    configurations, manifests, compressed layers
//! root/layers/<short>/       one unpacked layer: a lower directory for overlay
//! root/tmp/                  unfinished work
//! ```
//!
//! **What is synced.** A blob is synced before its rename. A layer's files are flushed together
//! by one `syncfs(2)` before its directory gets its name ([`ImageConfig::sync_layers`]): per-file
//! syncs would cost a disk write each, none would let a power cut leave empty files in a layer
//! that the index calls complete.

mod blobs;
mod bridge;
mod catalog;
mod changes;
mod digest;
mod document;
mod hello;
mod image;
mod import;
mod index;
mod layers;
mod load;
mod locks;
mod progress;
mod pull;
mod record;
mod reference;
mod registry;
mod remove;
mod save;
mod space;
mod store;
mod unpack;

pub use catalog::{Descriptor, LookupError};
pub use changes::ChangeError;
pub use digest::{Digest, ImageId, ParseDigestError};
pub use document::{DockerFields, DocumentError, Healthcheck, ImageDocument};
pub use hello::HELLO_REFERENCE;
pub use image::{HistoryEntry, Image};
pub use import::ImportError;
pub use index::IndexError;
pub use layers::LayerError;
pub use load::{LoadError, Loaded};
pub use progress::{Progress, ProgressSink};
pub use pull::PullError;
pub use record::RecordError;
pub use reference::{ParseReferenceError, Reference};
pub use registry::{
    DistributionInfo, ManifestError, ParseAuthError, Platform, RegistryAuth, RegistryConfig,
    RegistryConfigError, RegistryError, ResolveError,
};
pub use remove::{Removal, RemoveError, Removed};
pub use save::SaveError;
pub use store::{ImageConfig, ImageStore, OpenError, TagError};
pub use unpack::{EntryProblem, TarError, UnpackError, UnpackLimits};
